"""What every rule keeps; new ones are found in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from edgecompress.core import errors
from edgecompress.core.options import options_of
from edgecompress.core.results import CheckResult, Rule, exit_code
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.checks import check
from edgecompress.targets.family import FAMILIES
from edgecompress.targets.profile import load_target, target_names
from edgecompress.targets.rule import RULES, target_options

pytestmark = [pytest.mark.parametrize("name", RULES), pytest.mark.slow]


def test_it_is_one_sentence(name: str) -> None:
    text = str(RULES[name].judge.__doc__)
    assert text.endswith(".") and "\n" not in text


def test_it_answers_on_every_target(name: str, tiny: Path) -> None:
    model = read_tflite(tiny / "classifier_int8.tflite")
    for target in target_names():
        found = [c for c in check(model, load_target(target)).checks if c.rule == name]
        assert len(found) == 1 and found[0].verdict != "fail", target


def test_what_fails_it_never_ends_with_0(name: str) -> None:
    """The failing direction."""
    failed = CheckResult(name, "fail", reason="It is too much.")
    assert exit_code([failed]) in (
        errors.UNSUPPORTED_OPERATOR, errors.OVER_BUDGET, errors.BELOW_ACCURACY,
    )  # fmt: skip


def test_its_options_are_reached_by_name(name: str) -> None:
    own = {option.name for option in options_of(RULES[name].options)}
    assert own <= set(target_options())
    for family in FAMILIES.values():
        assert not own & {option.name for option in options_of(family.options)}


def test_a_given_result_replaces_it(name: str, tiny: Path) -> None:
    model, profile = read_tflite(tiny / "classifier_int8.tflite"), load_target("cortex-m4")
    mine = CheckResult(name, "fail", reason="It was measured.")
    found = [c for c in check(model, profile, extra=[mine]).checks if c.rule == name]
    assert found == [mine]


def test_the_types_name_it(name: str) -> None:
    assert name in get_args(Rule)
