"""A board of the user's own takes the latency class of its core, or names the table to add."""

from __future__ import annotations

import dataclasses

import pytest

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.profile import Calibration, load_target
from edgecompress.targets.tflm.latency import predict


@pytest.mark.parametrize(
    ("core", "calibration"),
    [("cortex-m4", "B"), ("cortex-m33", "B"), ("cortex-m55", "B-"), ("cortex-m7", "C")],
)
def test_a_board_without_a_latency_table_takes_the_class_of_its_core(
    core: str, calibration: str
) -> None:
    board = dataclasses.replace(load_target("nucleo-l4r5zi"), name="own", core=core, latency=None)
    whole = dataclasses.replace(board, latency=load_target(core).latency)
    model = _dense_model()
    taken, given = predict(model, board), predict(model, whole)
    assert taken.calibration == calibration
    assert (taken.low, taken.high) == (given.low, given.high) and taken.high is not None
    found = next(c for c in check(model, board).checks if c.rule == "latency")
    assert found.detail["known_from"].endswith(f"taken from {core}")
    found = next(c for c in check(model, whole).checks if c.rule == "latency")
    assert "taken from" not in found.detail["known_from"]


def test_a_core_without_published_results_names_the_table_to_add() -> None:
    board = dataclasses.replace(load_target("nucleo-g0b1re"), name="own")
    model = _dense_model()
    limits = Budgets(max_latency=1e5)
    found = next(c for c in check(model, board, limits).checks if c.rule == "latency")
    assert (found.verdict, found.undecided) == ("not_measured", True)
    assert "add a [calibration] table (instructions, weight_bytes, milliseconds)" in str(
        found.reason
    )
    # The numbers of the reason are in the same check.
    own = Calibration(found.detail["instructions"], found.detail["weight_bytes"], 10.0)
    measured = dataclasses.replace(board, calibration=own)
    found = next(c for c in check(model, measured, limits).checks if c.rule == "latency")
    assert (found.verdict, found.measured) == ("pass", pytest.approx(10_000))
    assert found.detail["known_from"] == "one latency that you measured"


def _dense_model() -> FlatModel:
    tensors = (
        Tensor(0, "input", (1, 16), "INT8", None, (0.1,), (0,)),
        Tensor(1, "kernel", (8, 16), "INT8", bytes(128), (0.1,), (0,)),
        Tensor(2, "bias", (8,), "INT32", bytes(32), (0.01,)),
        Tensor(3, "out", (1, 8), "INT8", None, (0.1,), (0,)),
    )
    operator = Operator(0, "FULLY_CONNECTED", "", 1, (0, 1, 2), (3,))
    return FlatModel(bytes(900), tensors, (operator,), (0,), (3,))
