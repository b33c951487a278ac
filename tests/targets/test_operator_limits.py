"""--operators: a list of operators that a firmware has, and what a file needs beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgecompress as ec
from edgecompress.core import errors
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.results import CheckResult
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.checks import check
from edgecompress.targets.operator_limits import (
    OperatorLimit,
    OperatorList,
    limited,
    list_names,
    load_list,
)
from edgecompress.targets.operators import TFLM_BUILTINS
from edgecompress.targets.profile import load_target

pytestmark = pytest.mark.slow


def test_the_lists_say_where_they_come_from() -> None:
    assert list_names() == ("esp-tflite-micro", "esphome")
    for name in list_names():
        found = load_list(name)
        assert found.source.startswith("https://github.com/") and found.date[:2] == "20"
        # Both are builds of TensorFlow Lite Micro.
        assert set(found.operators) <= TFLM_BUILTINS
    assert len(load_list("esphome").operators) == 20  # MicroMutableOpResolver<20>


def _operators(tiny: Path, **options: object) -> CheckResult:
    report = ec.check(tiny / "classifier_int8.tflite", ["cortex-m4"], **options)
    (found,) = (c for c in report.targets[0].checks if c.rule == "operators")
    return found


def test_a_file_within_the_list_passes(tiny: Path) -> None:
    used = set(read_tflite(tiny / "classifier_int8.tflite").histogram())
    assert used <= set(load_list("esp-tflite-micro").operators)
    found = _operators(tiny, operators="esp-tflite-micro")
    assert found.verdict == "pass"
    assert found.detail["operator_list"]["title"] == "esp-tflite-micro 1.4.0"
    assert found.detail["operator_list"]["missing"] == []


def test_another_operator_fails_with_the_layer_to_change(tiny: Path) -> None:
    """The failing direction: a softmax on a firmware without one."""
    flat = read_tflite(tiny / "classifier_int8.tflite")
    profile = load_target("cortex-m4")
    result = check(flat, profile, options={"operators": "esphome"})
    (found,) = (c for c in result.checks if c.rule == "operators")
    wanted = [o.index for o in flat.operators if o.code == "SOFTMAX"]
    assert wanted and found.verdict == "fail" and found.measured == len(wanted)
    assert [m["index"] for m in found.detail["operator_list"]["missing"]] == wanted
    assert found.reason is not None
    assert found.reason.startswith("ESPHome micro_wake_word") and "SOFTMAX" in found.reason
    report = ec.check(tiny / "classifier_int8.tflite", ["cortex-m4"], operators="esphome")
    assert report.exit_code == errors.UNSUPPORTED_OPERATOR == 5
    # It changes no other check, and nothing without the option.
    assert "operator_list" not in _operators(tiny).detail


def test_layers_are_named_where_tensors_are_called_after_them() -> None:
    tensors = tuple(
        Tensor(i, name, (1, 4), "INT8", None) for i, name in enumerate(["x", "head", "net/a/Mean"])
    )
    codes = enumerate(("TANH", "NEG"))
    chain = tuple(Operator(i, code, "", 1, (i,), (i + 1,)) for i, code in codes)
    model = FlatModel(b"", tensors, chain, (0,), (2,))
    fine = CheckResult("operators", "pass", 0, 0, 0, 0, "operators", "computed")
    found = limited(fine, model, OperatorList(("ADD",), title="ours"))
    assert found.reason == (
        "ours lacks operator 0 TANH ('head'); operator 1 NEG ('net/a/Mean'). Change head."
    )
    assert limited(fine, model, OperatorList(("TANH", "NEG"))).verdict == "pass"


def test_a_users_own_list(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('operators = ["CONV_2D"]\ncustom = ["Mine"]\n')
    found = _operators(tiny, operators=str(path))
    assert found.verdict == "fail" and str(found.reason).startswith("ours.toml lacks operator 1 ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('operators = ["CONV2D"]', "CONV_2D"),
        ("operators = []", "a list of at least one name"),
        ('operators = "CONV_2D"', "a list of at least one name"),
        ("title = 'x'", "be given"),
        ("operators = ['ADD']\nkernels = 1", "kernels"),
        ("operators = [", "TOML"),
    ],
)
def test_bad_lists_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError) as error:
        load_list(str(path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_name_and_a_wrong_type(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="esphome"):
        load_list("esphom")
    with pytest.raises(ArgumentError, match="name of a list"):
        OperatorLimit().parse(3, "--operators")
    with pytest.raises(ArgumentError, match="readable TOML"):
        load_list(str(tmp_path / "none.toml"))
