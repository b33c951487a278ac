"""Predicted latency: formulas against counted instructions, bands against published rows."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import runpy
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.profile import (
    Calibration,
    LatencyModel,
    TargetProfile,
    load_target,
)
from edgecompress.targets.tflm.geometry import Geometry, Unmodelled, geometry, taps_inside
from edgecompress.targets.tflm.instruction_formulas import (
    REACH,
    Domain,
    evaluate,
    formulas,
    terms,
)
from edgecompress.targets.tflm.instructions import (
    KERNEL_SETS as FORMULA_SETS,
)
from edgecompress.targets.tflm.instructions import (
    PER_INFERENCE,
    PER_OPERATOR,
    count,
    operator_instructions,
)
from edgecompress.targets.tflm.latency import (
    BANDS,
    ROOM,
    OperatorCost,
    _widened,
    cycles_per_instruction,
    instruction_error,
    predict,
)

NETS = {
    "ad": "ad01_int8.tflite",
    "ic": "pretrainedResnet_quant.tflite",
    "kws": "kws_ref_model.tflite",
    "vww": "vww_96_int8.tflite",
}
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
DOMAINS = runpy.run_path(str(BENCHMARKS / "instruction_domains.py"))
KERNEL_SETS, of_row = DOMAINS["KERNEL_SETS"], DOMAINS["of_row"]
EVERY = [(kernels, name) for kernels in ("dsp", "mve", "reference") for name in formulas(kernels)]
# Median error in percent that the formulas are known to have where it is more than 4.5.
WEAK = {"TRANSPOSE": 8, "TRANSPOSE_CONV": 5, "CONCATENATION": 6, "RESIZE_NEAREST_NEIGHBOR": 6.5}


def dense(ni: int = 8, no: int = 2, type_: str = "INT8") -> FlatModel:
    """A model of one fully connected operator."""
    width = 1 if type_ == "INT8" else 4
    tensors = (
        Tensor(0, "x", (1, ni), type_, None, (0.1,), (0,)),
        Tensor(1, "w", (no, ni), type_, bytes(no * ni * width), (0.1,), (0,)),
        Tensor(2, "b", (no,), "INT32", bytes(no * 4), (0.01,), (0,)),
        Tensor(3, "y", (1, no), type_, None, (0.2,), (0,)),
    )
    operator = Operator(0, "FULLY_CONNECTED", "", 1, (0, 1, 2), (3,))
    return FlatModel(bytes(500), tensors, (operator,), (0,), (3,))


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        pytest.skip(f"the measurements are not here ({path})")
    with path.open(newline="") as file:
        return [r for r in csv.DictReader(file) if (r["core"], r["kernels"]) in KERNEL_SETS]


# --- formulas -------------------------------------------------------------------------------------


def test_terms_of_a_formula() -> None:
    assert terms("1.5*a*b + 2*a + 7") == ((1.5, ("a", "b")), (2.0, ("a",)), (7.0, ()))
    assert evaluate("1.5*a*b + 2*a + 7", {"a": 2, "b": 3}) == 9 + 4 + 7


@pytest.mark.parametrize(("kernels", "name"), EVERY)
def test_every_formula_has_a_domain_and_holds_in_it(kernels: str, name: str) -> None:
    formula = formulas(kernels)[name]
    assert {"in_type", "out_type", "n"} <= set(formula.domain.kinds)
    assert formula.domain.sizes
    assert formula.rows >= 3
    assert 0 < formula.error < 1
    example = Geometry(**formula.example)
    assert formula.domain.missing(example) is None
    found = count(example, kernels)
    assert found.instructions > 0
    assert found.error == formula.error


@pytest.mark.parametrize(("kernels", "name"), EVERY)
def test_what_was_not_counted_has_no_number(kernels: str, name: str) -> None:
    """Every attribute at the ends of its domain, and just outside."""
    formula = formulas(kernels)[name]
    example, domain = Geometry(**formula.example), formula.domain
    inside: dict[str, list[Any]] = {
        **{field: list(seen) for field, seen in domain.kinds.items()},
        **{field: list(ends) for field, ends in domain.spans.items()},
        **{field: [low / 2, domain.largest(field)] for field, (low, _) in domain.sizes.items()},
    }
    outside: dict[str, list[Any]] = {}
    for field, seen in domain.kinds.items():
        values = {"axes": [(0, 3)], "n": [0, 2], "rank": [5], "multiplier": [3, 64]}.get(
            field, [False, True] if isinstance(seen[0], bool) else ["FLOAT64"]
        )
        outside[field] = [value for value in values if value not in seen]
    for field, (low, high) in domain.spans.items():
        scale = field == "in_scale"
        outside[field] = [low * 0.99, high * 1.01] if scale else [low - 1, high + 1]
    for field in domain.sizes:
        largest = domain.largest(field)
        outside[field] = [largest * 1.01 if field == "in_scale" else largest + 1]
    for field, values in inside.items():
        for value in values:
            changed = dataclasses.replace(example, **{field: value})
            assert domain.missing(changed) is None, (field, value)
    for field, values in outside.items():
        for value in values:
            changed = dataclasses.replace(example, **{field: value})
            assert "was not counted, only" in (domain.missing(changed) or ""), (field, value)
            if _kernel(changed, kernels) == name:  # Else another kernel runs then.
                with pytest.raises(Unmodelled, match="was not counted"):
                    count(changed, kernels)


def _kernel(g: Geometry, kernels: str) -> str | None:
    try:
        return DOMAINS["instructions"]._CASES[g.code](g, kernels)[0]
    except Unmodelled:
        return None


def test_sizes_reach_further_but_not_those_that_never_varied() -> None:
    domain = Domain({"n": (1,)}, {"sh": (1, 2)}, {"ci": (8, 64), "co": (1, 1)})
    assert domain.missing(Geometry("CONV_2D", ci=64 * REACH)) is None
    assert domain.missing(Geometry("CONV_2D", ci=64 * REACH + 1)) == (
        "with input channels 257 was not counted, only up to 64"
    )
    assert "output channels 2" in str(domain.missing(Geometry("CONV_2D", co=2)))
    assert domain.missing(Geometry("CONV_2D", n=2)) == "with batch 2 was not counted, only 1"
    assert domain.missing(Geometry("CONV_2D", sh=3)) == (
        "with vertical stride 3 was not counted, only 1 to 2"
    )
    assert domain.is_smaller(Geometry("CONV_2D", ci=7))
    assert not domain.is_smaller(Geometry("CONV_2D", ci=8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "LOGISTIC", "in_scale": 0.2}, "input scale 0.2 was not counted"),
        ({"code": "TANH", "in_scale": 0.5}, "input scale 0.5 was not counted"),
        ({"code": "DEPTHWISE_CONV_2D", "n": 2, "kh": 3, "kw": 3}, "batch 2 was not counted"),
        ({"code": "SOFTMAX", "in_scale": 0.1, "out_type": "INT16"}, "output type INT16"),
        ({"code": "QUANTIZE", "in_type": "UINT8"}, "without equal scales of input and output"),
        ({"code": "QUANTIZE", "in_type": "INT16", "out_type": "INT32"}, "output type INT32"),
        ({"kh": 3, "kw": 3, "sh": 3, "sw": 3}, "vertical stride 3"),
    ],
)
@pytest.mark.parametrize("kernels", FORMULA_SETS)
def test_known_gaps_have_no_number(kernels: str, changes: dict[str, Any], message: str) -> None:
    g = Geometry(**{"code": "CONV_2D", "h": 9, "w": 9, "oh": 9, "ow": 9, **changes})
    with pytest.raises(Unmodelled, match=message):
        count(g, kernels)


@pytest.mark.parametrize(("multiplier", "known"), [(2, True), (4, False), (8, False)])
def test_depthwise_multipliers_on_vector_cores(multiplier: int, known: bool) -> None:
    g = Geometry("DEPTHWISE_CONV_2D", h=9, w=9, ci=16, oh=7, ow=7, co=16 * multiplier, kh=3, kw=3,
                 multiplier=multiplier)  # fmt: skip
    if known:
        assert count(g, "mve").instructions > 0
        return
    with pytest.raises(Unmodelled, match=f"multiplier {multiplier} was not counted"):
        count(g, "mve")


def test_conversion_to_float_is_done_in_hardware_on_a_cortex_m7() -> None:
    g = Geometry("DEQUANTIZE", h=96, w=96, ci=3, oh=96, ow=96, co=3, in_elements=27648,
                 out_elements=27648, out_type="FLOAT32")  # fmt: skip
    assert count(g, "dsp", "cortex-m4").instructions == pytest.approx(108 * 27648, rel=0.01)
    assert count(g, "dsp", "cortex-m7").instructions == pytest.approx(12 * 27648, rel=0.04)


def test_an_operator_below_all_sizes_is_known_to_some_instructions() -> None:
    small = Geometry("LOGISTIC", in_scale=0.05, in_elements=1, out_elements=1)
    large = dataclasses.replace(small, in_elements=1000, out_elements=1000)
    assert (
        count(small, "dsp").error > count(large, "dsp").error == formulas("dsp")["logistic"].error
    )


def test_a_missing_bias_makes_a_number_less_certain() -> None:
    g = Geometry("FULLY_CONNECTED", ni=64, no=16, out_elements=16, rank=2)
    found, without = count(g, "dsp"), count(dataclasses.replace(g, bias=False), "dsp")
    assert without.instructions == found.instructions
    assert without.error == pytest.approx(found.error + 5 * 16 / found.instructions)


def test_an_empty_operator_costs_its_call_at_most() -> None:
    empty = Geometry("LOGISTIC", in_scale=0.05, in_elements=0, out_elements=0)
    assert count(empty, "dsp").instructions == 0


@pytest.mark.parametrize(
    ("position", "message"),
    [(None, ""), (9, "peepholes"), (16, "a projection"), (20, "normalized gates"), (1, "gate")],
)
def test_variants_of_lstm(position: int | None, message: str) -> None:
    tensors = (
        Tensor(0, "x", (1, 8, 16), "INT8", None, (0.1,), (0,)),
        Tensor(1, "w", (16, 16), "INT8", bytes(256), (0.1,), (0,)),
        Tensor(2, "y", (1, 8, 16), "INT8", None, (0.1,), (0,)),
    )
    inputs = [0, *[1] * 8, *[-1] * 3, *[1] * 4, -1, -1, 1, 1, *[-1] * 4]
    if position is not None:
        inputs[position] = -1 if position == 1 else 1
    operator = Operator(0, "UNIDIRECTIONAL_SEQUENCE_LSTM", "", 1, tuple(inputs), (2,))
    model = FlatModel(b"", tensors, (operator,), (0,), (2,))
    if position is None:
        assert operator_instructions(model, operator, "dsp").instructions > 0
        return
    with pytest.raises(Unmodelled, match=message):
        operator_instructions(model, operator, "dsp")


def _arithmetic(first: tuple[int, ...], second: tuple[int, ...], kind: str = "INT8") -> FlatModel:
    tensors = (
        Tensor(0, "x", first, "INT8", None, (0.1,), (0,)),
        Tensor(1, "y", second, kind, None, (0.1,), (0,)),
        Tensor(2, "z", first, "INT8", None, (0.1,), (0,)),
    )
    operator = Operator(0, "MUL", "", 1, (0, 1), (2,))
    return FlatModel(b"", tensors, (operator,), (0, 1), (2,))


def test_one_element_over_one_channel_is_a_vector_of_channels() -> None:
    """The inner loop runs over one channel: 10,785 instructions were counted on Cortex-M4."""
    model = _arithmetic((1, 10, 10, 1), (1,))
    assert geometry(model, model.operators[0]).broadcast == "channel"
    found = operator_instructions(model, model.operators[0], "dsp")
    assert found.instructions == pytest.approx(10785, rel=0.02)
    scalar = _arithmetic((1, 10, 10, 4), (1,))
    assert geometry(scalar, scalar.operators[0]).broadcast == "scalar"


@pytest.mark.parametrize(
    ("second", "kind", "message"),
    [((1, 10, 1, 4), "INT8", "of shapes"), ((4,), "INT16", "MUL of INT8 and INT16")],
)
def test_other_broadcasts_have_no_number(second: tuple[int, ...], kind: str, message: str) -> None:
    model = _arithmetic((1, 10, 10, 4), second, kind)
    with pytest.raises(Unmodelled, match=message):
        operator_instructions(model, model.operators[0], "dsp")


@pytest.mark.parametrize(("slopes", "known"), [((8,), True), ((5, 5, 8), False)])
def test_slopes_of_prelu(slopes: tuple[int, ...], known: bool) -> None:
    tensors = (
        Tensor(0, "x", (1, 5, 5, 8), "INT8", None, (0.1,), (0,)),
        Tensor(1, "a", slopes, "INT8", bytes(math.prod(slopes)), (0.1,), (0,)),
        Tensor(2, "y", (1, 5, 5, 8), "INT8", None, (0.1,), (0,)),
    )
    operator = Operator(0, "PRELU", "", 1, (0, 1), (2,))
    model = FlatModel(b"", tensors, (operator,), (0,), (2,))
    if known:
        assert operator_instructions(model, operator, "dsp").instructions > 0
        return
    with pytest.raises(Unmodelled, match="broadcast none"):
        operator_instructions(model, operator, "dsp")


@pytest.mark.parametrize(
    ("file", "boards", "gap"),
    [
        ("LOGISTIC_0.2", ("nucleo-l4r5zi", "ek-ra8d1"), "input scale 0.2"),
        ("DEPTHWISE__batch2", ("nucleo-l4r5zi", "ek-ra8d1"), "batch 2"),
        ("QUANTIZE__uint8_int8", ("nucleo-l4r5zi", "ek-ra8d1"), "equal scales"),
        ("dw_mult4_m55", ("ek-ra8d1",), "multiplier 4"),
        ("keyword_scrambled", ("nucleo-l4r5zi", "ek-ra8d1"), "output type INT16"),
    ],
)
def test_files_with_uncounted_operators_have_a_lower_bound_alone(
    shared: Path, file: str, boards: tuple[str, ...], gap: str
) -> None:
    path = shared / "repro" / f"{file}.tflite"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    for board_name in boards:
        estimate = predict(read_tflite(path), load_target(board_name))
        assert estimate.microseconds is estimate.high is None
        assert estimate.low is not None
        assert gap in (estimate.reason or "")


def test_the_file_of_domains_holds_what_was_counted(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = shared / "facts"
    if not (facts / "mcu_ops.csv").is_file():
        pytest.skip("the measurements are not here")
    assert DOMAINS["main"]([str(facts / "mcu_ops.csv"), str(facts / "mcu_nets.csv")]) == 0
    output = capsys.readouterr().out
    assert "0 of 11767 counted operators lie outside the domains." in output
    assert "\n0 err by more than their formula says." in output


def test_the_comparison_notices_a_wrong_formula(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = shared / "facts"
    if not (facts / "mcu_ops.csv").is_file():
        pytest.skip("the measurements are not here")
    lines = (facts / "mcu_ops.csv").read_text().splitlines()
    column = lines[0].split(",").index("instr_op")
    cells = lines[1].split(",")
    cells[column] = str(2 * int(cells[column]))
    changed = tmp_path / "ops.csv"
    changed.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    assert DOMAINS["main"]([str(changed), str(facts / "mcu_nets.csv")]) == 1
    output = capsys.readouterr().out
    assert "\n1 err by more than their formula says." in output
    assert "run with --write" in output


def test_fully_connected_by_hand() -> None:
    # 2 outputs of 8 inputs: 16 multiply-accumulates in groups of 4, no rest, no odd output.
    even = Geometry("FULLY_CONNECTED", ni=8, no=2, rank=2)
    assert count(even, "dsp").instructions == pytest.approx(1.88 * 16 + 50.1 * 2 + 426)
    # 3 outputs of 10 inputs: 24 in groups of 4, a rest of 2 an output, one odd output.
    odd = Geometry("FULLY_CONNECTED", ni=10, no=3, rank=2)
    expected = 1.88 * 24 + 5.92 * 3 * 2 + 50.1 * 3 + 0.49 * 10 + 426
    assert count(odd, "dsp").instructions == pytest.approx(expected)
    assert count(odd, "reference").instructions == pytest.approx(7 * 30 + 57.7 * 3 + 423)
    # Vector kernel: no group of 4 outputs, 3 single ones of one block of 16 inputs.
    assert count(odd, "mve").instructions == pytest.approx(12.9 * 3 + 73.9 * 3 + 419)


def test_pointwise_convolution_on_vector_cores_by_hand() -> None:
    # 6 pixels = one group of 4 and a rest of 2; 20 channels take two blocks of 16.
    g = Geometry("CONV_2D", h=2, w=3, ci=20, oh=2, ow=3, co=5)
    expected = 11 * 5 * 2 + 56 * 5 + 4.99 * 2 * 5 * 2 + 26.9 * 2 * 5 + 43 * 1 * 2 + 42.2 + 17.7 * 2
    assert count(g, "mve").instructions == pytest.approx(expected + 432)


def test_depthwise_convolution_counts_only_taps_inside_the_image() -> None:
    # 3x3 over 2x2 with one pixel of padding: every output sees 2x2 taps.
    g = Geometry(
        "DEPTHWISE_CONV_2D", h=2, w=2, ci=4, oh=2, ow=2, co=4, kh=3, kw=3, pad_h=1, pad_w=1
    )
    expected = 10.0 * 16 + 14.9 * 8 + 157 * 4 + 68.4 * 4 + 597
    assert count(g, "dsp").instructions == pytest.approx(expected)


def test_taps_inside_the_image_match_a_loop() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        outputs, inputs, taps = (int(n) for n in random.integers(1, 12, 3))
        stride, dilation = (int(n) for n in random.integers(1, 4, 2))
        pad = int(random.integers(-3, 8))
        loop = sum(
            0 <= position * stride - pad + tap * dilation < inputs
            for position in range(outputs)
            for tap in range(taps)
        )
        assert taps_inside(outputs, inputs, taps, stride, dilation, pad) == loop


@pytest.mark.parametrize("changes", [{"kh": 1 << 20}, {"sw": 0}, {"sh": -2}])
def test_windows_of_damaged_files_have_no_formula(changes: dict[str, int]) -> None:
    with pytest.raises(Unmodelled, match="A window of"):
        count(Geometry("CONV_2D", h=1 << 20, w=4, oh=1 << 20, ow=4, **changes), "dsp")


def test_depthwise_channels_go_in_blocks() -> None:
    case = DOMAINS["instructions"]._CASES["DEPTHWISE_CONV_2D"]
    for channels in (1, 3, 123, 124, 125, 248, 500):
        blocks = [min(124, channels - start) for start in range(0, channels, 124)]
        _, values = case(Geometry("DEPTHWISE_CONV_2D", ci=channels, co=channels), "mve")
        found = values["cb4"], values["cb16"], values["blocks"]
        expected = (math.ceil(b / 4) for b in blocks), (math.ceil(b / 16) for b in blocks)
        assert found == (*map(sum, expected), len(blocks))


def test_channels_of_damaged_files_cost_nothing_to_count() -> None:
    channels = 1 << 44  # A list of their blocks fills no memory of this world.
    g = Geometry("DEPTHWISE_CONV_2D", ci=channels, co=channels, out_elements=channels)
    with pytest.raises(Unmodelled, match="was not counted"):
        count(g, "mve")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "GELU"}, "GELU has no"),
        ({"in_type": "FLOAT32"}, "FLOAT32 input"),
        ({"weight_type": "INT2"}, "INT2 weights"),
        ({"code": "RELU", "in_type": "INT16"}, "RELU of this kind"),
        ({"code": "MAXIMUM", "broadcast": "scalar"}, "MAXIMUM of this kind"),
    ],
)
def test_what_has_no_formula_says_so(changes: dict[str, Any], message: str) -> None:
    g = dataclasses.replace(Geometry("CONV_2D"), **changes)
    with pytest.raises(Unmodelled, match=message):
        count(g, "dsp")


def test_geometry_of_a_flatbuffer() -> None:
    tensors = (
        Tensor(0, "x", (1, 9, 8, 3), "INT8"),
        Tensor(1, "w", (16, 3, 5, 3), "INT8", bytes(720), (0.1,) * 16),
        Tensor(2, "y", (1, 5, 4, 16), "INT8"),
    )
    options = {"stride_h": 2, "stride_w": 2, "padding": 0, "dilation_h_factor": 1}
    operator = Operator(0, "CONV_2D", "", 1, (0, 1), (2,), options)
    g = geometry(FlatModel(b"", tensors, (operator,), (0,), (2,)), operator)
    # SAME: 4*2+3-9 = 2 rows and 3*2+5-8 = 3 columns of padding, the smaller half first.
    assert (g.kh, g.kw, g.sh, g.sw, g.pad_h, g.pad_w, g.same) == (3, 5, 2, 2, 1, 1, True)
    assert (g.h, g.w, g.ci, g.oh, g.ow, g.co) == (9, 8, 3, 5, 4, 16)


@pytest.mark.parametrize(("rows", "stride"), [(1, 1), (2, 32)])
def test_the_stride_of_a_single_output_does_not_matter(rows: int, stride: int) -> None:
    """A kernel multiplies it with the output's position, 0; of two outputs it counts."""
    tensors = (Tensor(0, "x", (1, 64, 1, 24), "INT8"), Tensor(1, "y", (1, rows, 1, 24), "INT8"))
    options = {"stride_h": 64 // rows, "stride_w": 1, "filter_height": 64 // rows,
               "filter_width": 1, "padding": 1}  # fmt: skip
    pool = Operator(0, "AVERAGE_POOL_2D", "", 1, (0,), (1,), options)
    g = geometry(FlatModel(b"", tensors, (pool,), (0,), (1,)), pool)
    assert (g.sh, g.sw, g.kh, g.pad_h) == (stride, 1, 64 // rows, 0)
    if rows == 1:
        # As long as two windows of half the height, each counted.
        half = dataclasses.replace(g, h=32, kh=32, in_elements=g.in_elements // 2)
        halves = 2 * count(half, "dsp").instructions
        assert count(g, "dsp").instructions == pytest.approx(halves, rel=0.15)
    else:
        with pytest.raises(Unmodelled, match="vertical stride 32"):
            count(g, "dsp")


def test_grouped_convolutions_have_no_formula() -> None:
    tensors = (
        Tensor(0, "x", (1, 4, 4, 8), "INT8"),
        Tensor(1, "w", (8, 1, 1, 4), "INT8", bytes(32)),
        Tensor(2, "y", (1, 4, 4, 8), "INT8"),
    )
    operator = Operator(0, "CONV_2D", "", 1, (0, 1), (2,))
    with pytest.raises(Unmodelled, match="groups"):
        geometry(FlatModel(b"", tensors, (operator,), (0,), (2,)), operator)


@pytest.mark.parametrize("net", NETS)
def test_networks_against_counted_instructions(shared: Path, net: str) -> None:
    model = read_tflite(shared / "models" / "mlperf_tiny" / NETS[net])
    rows = [r for r in read_rows(shared / "facts" / "mcu_nets.csv") if r["net"] == net]
    seen = set()
    for (core, kernels), kernel_set in KERNEL_SETS.items():
        counted = [r for r in rows if (r["core"], r["kernels"]) == (core, kernels)]
        if not counted:
            continue
        seen.add(kernel_set)
        assert [r["op"] for r in counted] == [o.code for o in model.operators]
        predicted = sum(
            operator_instructions(model, o, kernel_set).instructions for o in model.operators
        )
        # None of these networks was used in fitting. M7 and M33 use the formulas of M4.
        tolerance = 0.015 if core in ("m4", "m55") else 0.03
        assert predicted == pytest.approx(sum(float(r["instr_op"]) for r in counted), rel=tolerance)
    assert seen == {"dsp", "mve", "reference"}


def test_the_interpreters_own_instructions(shared: Path) -> None:
    profiler = {"dsp": 35, "mve": 31, "reference": 35}
    ops = defaultdict(list)
    for row in read_rows(shared / "facts" / "mcu_nets.csv"):
        key = (row["net"], KERNEL_SETS[row["core"], row["kernels"]], row["core"])
        ops[key].append((float(row["instr_op"]), float(row["instr_invoke"])))
    fitted = {key: rows for key, rows in ops.items() if key[2] in ("m4", "m55")}
    assert {core for *_, core in fitted} == {"m4", "m55"}
    for (_, kernels, _), rows in fitted.items():
        own = rows[0][1] - sum(instructions for instructions, _ in rows)
        expected = PER_INFERENCE + (PER_OPERATOR + profiler[kernels]) * len(rows)
        assert own == pytest.approx(expected, rel=0.02, abs=10)


def test_single_operators_against_counted_instructions(shared: Path) -> None:
    rows = read_rows(shared / "facts" / "mcu_ops.csv")
    errors = defaultdict(list)
    for row in rows[::3]:
        if row["core"] in ("m4", "m55") and row["op"] != "CHAIN":
            kernels = KERNEL_SETS[row["core"], row["kernels"]]
            ratio = count(of_row(row), kernels).instructions / float(row["instr_op"])
            errors[kernels, row["op"]].append(100 * abs(ratio - 1))
    medians = {key: statistics.median(e) for key, e in errors.items() if len(e) > 2}
    wrong = {key: m for key, m in medians.items() if m > WEAK.get(key[1], 4.5)}
    assert not wrong
    assert len({op for _, op in medians}) > 25
    assert statistics.median(e for found in errors.values() for e in found) < 1.0


# --- time -----------------------------------------------------------------------------------------


def board(**changes: Any) -> TargetProfile:
    base = TargetProfile(
        "mine", "Mine", "board", "tflm", ("a test",), "cortex-m4", 100.0, "cmsis-nn", 10**6, 10**6,
        latency=LatencyModel("B", 2.0),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_time_by_hand() -> None:
    estimate = predict(dense(), board())
    instructions = 1.88 * 16 + 50.1 * 2 + 426 + PER_INFERENCE + PER_OPERATOR
    cycles = 2.0 * instructions + 0.35 * (16 + 8)
    assert estimate.instructions == pytest.approx(instructions)
    assert (estimate.weight_bytes, estimate.cycles) == (24, pytest.approx(cycles))
    assert estimate.microseconds == pytest.approx(cycles / 100)
    assert estimate.low == pytest.approx(cycles / 100 / 1.5)
    assert estimate.high == pytest.approx(cycles / 100 * 1.5)
    assert (estimate.calibration, estimate.reason, estimate.unknown) == ("B", None, ())


def test_errors_of_different_operators_are_independent() -> None:
    def cost(index: int, instructions: float | None, error: float) -> OperatorCost:
        return OperatorCost(index, "CONV_2D", "", instructions, None, error)

    assert instruction_error([]) == 0
    assert instruction_error([cost(0, 100, 0.2)]) == pytest.approx(0.2)
    # sqrt((30 * 0.2)^2 + (70 * 0.1)^2) / 100
    two = [cost(0, 30, 0.2), cost(1, 70, 0.1), cost(2, None, 0.0)]
    assert instruction_error(two) == pytest.approx(math.sqrt(36 + 49) / 100)
    # The same operator twice errs the same way twice.
    assert instruction_error([cost(0, 50, 0.2), cost(1, 50, 0.2)]) == pytest.approx(0.2)


def test_a_band_widens_by_what_the_count_is_off_beyond_its_room() -> None:
    def transpose() -> FlatModel:
        tensors = (
            Tensor(0, "x", (1, 24, 24, 4), "INT8", None, (0.1,), (0,)),
            Tensor(1, "p", (4,), "INT32", np.array([0, 3, 2, 1], np.int32).tobytes()),
            Tensor(2, "y", (1, 4, 24, 24), "INT8", None, (0.1,), (0,)),
        )
        operator = Operator(0, "TRANSPOSE", "", 1, (0, 1), (2,))
        return FlatModel(bytes(500), tensors, (operator,), (0,), (2,))

    assert set(ROOM) == set(BANDS)
    known = predict(dense(), board())
    assert known.band == BANDS["B"]
    error = formulas("dsp")["transpose_0321"].error
    estimate = predict(transpose(), board())
    room = ROOM["B"]
    assert error > room + 0.1
    assert estimate.instruction_error == pytest.approx(error)
    assert estimate.band == pytest.approx(
        (1 / 1.5 * (1 + room) / (1 + error), 1.5 * (1 - room) / (1 - error))
    )
    assert estimate.low is not None and estimate.high is not None
    assert estimate.microseconds is not None
    # The worst counted operator of this kind lies inside: it took 2.7 times what is predicted.
    assert estimate.high > estimate.microseconds / (1 - error)


@pytest.mark.parametrize("calibration", BANDS)
def test_every_counted_operator_lies_in_its_band(calibration: str) -> None:
    """A count that is off by a formula's whole error, with cycles as predicted."""
    for kernels, name in EVERY:
        formula = formulas(kernels)[name]
        for error in (formula.error, *(fit.error for fit in formula.cores.values())):
            low, high = _widened(BANDS[calibration], calibration, error)
            assert low <= 1 / (1 + error) < 1 / (1 - error) <= high


def test_one_measured_latency_makes_the_prediction_class_a() -> None:
    before = predict(dense(64, 32), board())
    measured = Calibration(before.instructions, before.weight_bytes, 3.0)
    estimate = predict(dense(64, 32), board(calibration=measured))
    assert estimate.microseconds == pytest.approx(3000)
    assert (estimate.calibration, estimate.band) == ("A", BANDS["A"])
    assert estimate.low == pytest.approx(3000 * 0.75)
    other = predict(dense(), board(calibration=measured))
    assert other.cycles_per_instruction == pytest.approx(estimate.cycles_per_instruction or 0)
    # What was measured with one kernel set says nothing about the other.
    assert predict(dense(), board(calibration=measured), "reference").microseconds is None


def test_an_impossible_measurement_is_refused() -> None:
    with pytest.raises(ArgumentError, match="milliseconds"):
        cycles_per_instruction(Calibration(1000, 10**6, 0.001), 100)


@pytest.mark.parametrize(
    ("changes", "kernels", "message", "has_low"),
    [
        ({"latency": None, "core": "cortex-m0plus"}, None, "cortex-m0plus.*calibration", True),
        ({}, "reference", "reference kernels", True),
        ({"external_ram": True}, None, "external RAM", True),
        ({"clock_mhz": None, "kind": "core"}, None, "bare core without a clock", False),
    ],
)
def test_what_cannot_be_predicted_has_a_reason_and_no_time(
    changes: dict[str, Any], kernels: str | None, message: str, has_low: bool
) -> None:
    estimate = predict(dense(), board(**changes), kernels)
    assert (estimate.microseconds, estimate.high) == (None, None)
    assert (estimate.low is not None) is has_low
    assert estimate.reason is not None
    assert re.search(message, estimate.reason)


def test_an_operator_without_formula_leaves_a_lower_bound() -> None:
    estimate = predict(dense(type_="FLOAT32"), board())
    assert estimate.microseconds is None
    assert "operator 0 (FULLY_CONNECTED with FLOAT32 input" in str(estimate.reason)
    assert [cost.index for cost in estimate.unknown] == [0]
    known = predict(dense(), board())
    assert 0 < (estimate.low or 0) < (known.low or 0)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ArgumentError, match="microcontroller"):
        predict(dense(), load_target("pixel-4"))
    with pytest.raises(UnknownNameError, match="cmsis-nn"):
        predict(dense(), board(), "cmsis")


def test_bands_get_wider_from_class_to_class() -> None:
    widths = [high / low for low, high in (BANDS[c] for c in ("A", "A-", "B", "B-", "C"))]
    assert widths == sorted(widths)
    assert all(low < 1 < high for low, high in BANDS.values())


# --- published rows -------------------------------------------------------------------------------

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "latency_bands.py"


def test_published_latencies_lie_in_the_bands(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    paths = ["--models", str(shared / "models" / "mlperf_tiny")]
    assert main([*paths, "--published", str(shared / "facts" / "mlperf_tiny.csv")]) == 0
    output = capsys.readouterr().out
    assert output.count("| yes |") == 26
    assert "| NO |" not in output
    for name in ("nucleo-l4r5zi", "nrf5340-dk", "ek-ra6m4", "ek-ra8d1"):
        claims = load_target(name).latency
        assert claims is not None
        assert {row.benchmark for row in claims.published} == set(NETS)


def test_the_comparison_notices_a_row_outside_its_band(
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = runpy.run_path(str(SCRIPT))
    main = script["main"]

    def slower(name: str) -> TargetProfile:
        profile = load_target(name)
        if name != "ek-ra6m4" or profile.latency is None:
            return profile
        # 1.3 times the fitted factor moves the slowest row out of plus or minus 25 percent.
        factor = profile.latency.cycles_per_instruction * 1.3
        latency = dataclasses.replace(profile.latency, cycles_per_instruction=factor)
        return dataclasses.replace(profile, latency=latency)

    monkeypatch.setitem(main.__globals__, "load_target", slower)
    paths = ["--models", str(shared / "models" / "mlperf_tiny")]
    assert main([*paths, "--published", str(shared / "facts" / "mlperf_tiny.csv")]) == 1
    assert "| NO |" in capsys.readouterr().out


def test_the_comparison_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(["--models", str(tmp_path), "--published", str(tmp_path / "x.csv")]) == 2
    assert "ad01_int8.tflite" in capsys.readouterr().err


def test_factors_follow_from_their_rows(shared: Path) -> None:
    """The stated cycles per instruction are the geometric mean over the benchmarks."""
    profile = load_target("nrf5340-dk")
    latency = profile.latency
    assert latency is not None
    logs = []
    for net, file in NETS.items():
        model = read_tflite(shared / "models" / "mlperf_tiny" / file)
        estimate = predict(model, profile)
        mean = statistics.mean(r.milliseconds for r in latency.published if r.benchmark == net)
        cycles = mean * 1e3 * 128 - 0.35 * estimate.weight_bytes
        logs.append(math.log(cycles / estimate.instructions))
    assert latency.cycles_per_instruction == pytest.approx(
        math.exp(statistics.mean(logs)), rel=1e-3
    )
