"""What every operator with an instruction formula keeps, from the flatbuffer to the number."""

from __future__ import annotations

import pytest

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.geometry import _READERS, Geometry, Unmodelled, geometry
from edgecompress.targets.tflm.instruction_formulas import formulas
from edgecompress.targets.tflm.instructions import _CASES, KERNEL_SETS, count


@pytest.mark.parametrize("code", sorted(_CASES))
def test_an_operator_has_a_formula_that_was_counted(code: str) -> None:
    counted = [
        (kernels, example)
        for kernels in KERNEL_SETS
        for formula in formulas(kernels).values()
        if (example := Geometry(**formula.example)).code == code
    ]
    assert counted, "no formula was ever fitted to it"
    for kernels, example in counted:
        found = count(example, kernels)
        assert found.instructions > 0 and found.error > 0


@pytest.mark.parametrize("code", sorted(_READERS))
def test_an_operator_without_its_inputs_is_refused_by_name(code: str) -> None:
    assert code in _CASES, "it is read, but nothing is computed from it"
    output = Tensor(0, "y", (1, 4, 4, 2), "INT8", None, (0.1,), (0,))
    operator = Operator(0, code, "", 1, (), (0,))
    with pytest.raises(Unmodelled, match=f"{code} lacks its input"):
        geometry(FlatModel(b"", (output,), (operator,), (), (0,)), operator)
