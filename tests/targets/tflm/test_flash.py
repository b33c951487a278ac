"""Flash: the file is exact, the code a range around what was linked."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.tflm.flash import estimate_flash


def model(*codes: str) -> FlatModel:
    operators = tuple(Operator(i, code, "", 1, (), ()) for i, code in enumerate(codes))
    return FlatModel(bytes(1000), (), operators, (), ())


def test_one_operator_is_exact_but_for_the_unit() -> None:
    estimate = estimate_flash(model("FULLY_CONNECTED", "FULLY_CONNECTED"), "cmsis-nn")
    assert (estimate.code_low, estimate.code_high) == (41_900, 42_906)  # 18.3 + 23.6 KB
    assert estimate.low == 42_900
    assert estimate.unmeasured == ()


def test_more_operators_widen_the_range() -> None:
    estimate = estimate_flash(model("FULLY_CONNECTED", "CONV_2D"), "reference")
    assert estimate.code_low == 31_400  # 18.3 + 13.1
    assert estimate.code_high == round(41.6 * 1024)  # 18.3 + 13.1 + 10.2


def test_an_unmeasured_operator_is_named_and_widens_the_range() -> None:
    with_gelu = estimate_flash(model("ADD", "GELU"), "cmsis-nn")
    alone = estimate_flash(model("ADD"), "cmsis-nn")
    assert with_gelu.unmeasured == ("GELU",)
    assert with_gelu.code_low == alone.code_low
    assert with_gelu.code_high > alone.code_high


@pytest.mark.parametrize(
    ("file", "reference_kb", "cmsis_kb"),
    # What the linker made of the interpreter with all operators of these models.
    [
        ("kws_ref_model.tflite", 53.8, 99.9),
        ("pretrainedResnet_quant.tflite", 57.9, 94.5),
        ("ad01_int8.tflite", 28.5, 41.9),
    ],
)
def test_linked_programs_lie_in_the_range(
    shared: Path, file: str, reference_kb: float, cmsis_kb: float
) -> None:
    flat = read_tflite(shared / "models" / "mlperf_tiny" / file)
    for kernels, size in (("reference", reference_kb), ("cmsis-nn", cmsis_kb)):
        estimate = estimate_flash(flat, kernels)
        assert estimate.code_low <= size * 1000 <= size * 1024 <= estimate.code_high
        assert estimate.model_bytes == (shared / "models" / "mlperf_tiny" / file).stat().st_size
