"""Operators on tensors without elements."""

import pytest

from edgecompress.targets.tflm.geometry import Geometry, Unmodelled
from edgecompress.targets.tflm.instructions import count


@pytest.mark.parametrize("elements", [0, 4])
def test_an_operator_on_an_empty_tensor_has_no_formula(elements: int) -> None:
    empty = Geometry("SOFTMAX", in_elements=elements, out_elements=elements, ci=0, co=0)
    with pytest.raises(Unmodelled, match="SOFTMAX on an empty tensor"):
        count(empty, "cmsis-nn")
