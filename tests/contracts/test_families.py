"""What every family of targets keeps; new ones are found in the registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgecompress.core.errors import EdgeCompressError, UnknownNameError
from edgecompress.core.options import options_of
from edgecompress.core.results import CheckResult
from edgecompress.engines.registry import ENGINES
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.family import FAMILIES, Family, Subject, family_of, kinds, titles
from edgecompress.targets.operators import OPERATOR_RULES
from edgecompress.targets.profile import TargetProfile, load_target, target_names

pytestmark = pytest.mark.parametrize("name", FAMILIES)
_TIGHT = Budgets(max_flash=1, max_ram=1, max_latency=1e-3)
_WIDE = Budgets(max_flash=1 << 40, max_ram=1 << 40, max_latency=1e12)


def _targets(name: str) -> list[TargetProfile]:
    profiles = [load_target(target) for target in target_names()]
    return [profile for profile in profiles if family_of(profile).name == name]


def _model(tiny: Path) -> Any:
    return read_tflite(tiny / "classifier_int8.tflite")


def test_it_is_described(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name and family.title and type(family).__doc__
    assert family.kinds and set(family.kinds) <= set(kinds())
    assert dataclasses.is_dataclass(family.options)
    assert titles([name]) == family.title
    for engine in family.engines:
        assert engine in ENGINES and engine in OPERATOR_RULES


def test_it_has_targets_that_name_it(name: str) -> None:
    profiles = _targets(name)
    assert profiles, "a family without a built-in target is tried by nobody"
    for profile in profiles:
        family = family_of(profile)
        assert profile.kind in family.kinds and profile.engine in family.engines
        named = dataclasses.replace(profile, family=name)
        assert family_of(named) is family
        assert TargetProfile.from_dict(named.to_dict()) == named


def test_its_profiles_keep_its_rules(name: str) -> None:
    profile = _targets(name)[0]
    other = next(e for e in ENGINES if e not in FAMILIES[name].engines)
    for change in ({"engine": other}, {"kind": "zzz"}, {"family": "zzz"}):
        with pytest.raises(EdgeCompressError):
            dataclasses.replace(profile, **change)


def test_every_check_is_judged_or_says_why_not(name: str, tiny: Path) -> None:
    for profile in _targets(name):
        for budgets in (Budgets(), _TIGHT, _WIDE):
            for found in check(_model(tiny), profile, budgets).checks:
                if found.verdict not in ("pass", "not_applicable"):
                    assert found.reason, (profile.name, found.rule)
                if found.verdict == "not_applicable":
                    assert found.limit is None or found.rule == "flash", (profile.name, found.rule)


def test_no_limit_of_one_byte_is_kept(name: str, tiny: Path) -> None:
    """The failing direction: a limit that no model keeps is never a pass."""
    for profile in _targets(name):
        result = check(_model(tiny), profile, _TIGHT)
        for found in result.checks:
            if found.rule in ("flash", "arena", "latency"):
                assert found.verdict != "pass", (profile.name, found)
        if FAMILIES[name].has_arena:
            assert {c.verdict for c in result.checks if c.rule in ("flash", "arena")} == {"fail"}


def test_costs_are_those_of_the_checks(name: str, tiny: Path) -> None:
    model = _model(tiny)
    for profile in _targets(name):
        family = family_of(profile)
        settings = family.settle(profile, {})
        checks = {c.rule: c for c in check(model, profile, _WIDE).checks}
        plan = family.arena_of(model, profile, settings)
        assert (plan is not None) == family.has_arena
        if plan is not None:
            assert plan.used == checks["arena"].measured
        time = family.microseconds_of(model, profile, settings)
        if checks["latency"].how_known == "predicted":
            assert time == checks["latency"].measured
        shares = family.operator_times(model, profile, settings)
        assert bool(shares) == (time is not None)
        if time is not None:
            assert sum(share for _, share in shares) <= time * (1 + 1e-9)


def test_its_options_belong_to_it_alone(name: str) -> None:
    own = {option.name for option in options_of(FAMILIES[name].options)}
    for other in FAMILIES:
        if FAMILIES[other].options is not FAMILIES[name].options:
            assert not own & {option.name for option in options_of(FAMILIES[other].options)}
    settings = FAMILIES[name].settle(_targets(name)[0], {"zzz": 1})
    assert isinstance(settings, FAMILIES[name].options)


def test_what_a_family_does_not_say_is_unknown(name: str, tiny: Path) -> None:
    """A new family that overrides nothing passes no limit."""
    profile, bare = _targets(name)[0], Family()
    subject = Subject(_model(tiny), profile, _WIDE, bare)
    for found in (bare.flash(subject), bare.arena(subject), bare.latency(subject)):
        assert isinstance(found, CheckResult)
        assert found.verdict == "not_measured" and found.undecided and found.reason


def test_an_unknown_family_lists_it(name: str) -> None:
    with pytest.raises(UnknownNameError, match=name):
        FAMILIES["zzz"]
