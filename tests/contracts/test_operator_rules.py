"""What the operator rules of every engine keep: they accept the usual and refuse by name."""

from __future__ import annotations

import pytest

from edgecompress.engines.registry import ENGINES
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.operators import OPERATOR_RULES

every_engine = pytest.mark.parametrize("engine", sorted(OPERATOR_RULES))


def _problem(engine: str, code: str, custom: str = "") -> str | None:
    tensors = tuple(Tensor(index, f"t{index}", (1, 4, 4, 2), "FLOAT32", None) for index in range(2))
    operator = Operator(0, code, custom, 1, (0,), (1,))
    model = FlatModel(bytes(100), tensors, (operator,), (0,), (1,))
    return OPERATOR_RULES[engine](model, operator, "reference", "scalar")


@every_engine
def test_it_belongs_to_an_engine(engine: str) -> None:
    assert engine in ENGINES


@every_engine
def test_an_operator_that_every_engine_has_is_no_problem(engine: str) -> None:
    assert _problem(engine, "RELU") is None


@every_engine
@pytest.mark.parametrize(
    ("code", "custom", "said"),
    [
        ("NO_SUCH_OPERATOR", "", "no such operator"),
        ("CUSTOM", "Mine", "no custom operator 'Mine'"),
        ("CUSTOM", "FlexErf", "TensorFlow's own Erf"),
    ],
)
def test_what_an_engine_lacks_is_refused_in_one_line(
    engine: str, code: str, custom: str, said: str
) -> None:
    problem = _problem(engine, code, custom)
    assert problem is not None and said in problem and "\n" not in problem
