"""The tensor arena against measured 32-bit builds and hand-worked plans."""

from __future__ import annotations

import bisect
import csv
import dataclasses
import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgecompress.core.errors import UnknownNameError
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.arena import CORES, Buffer, _peak, compute_arena, plan_offsets
from edgecompress.targets.tflm.arena_rules import RULES


def _load(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Its dataclasses look themselves up there.
    spec.loader.exec_module(module)
    return module


reference, models = _load("arena_reference"), _load("operator_models")
_load("operator_support")  # The next one imports it.
operators = _load("arena_operators")


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[dict[str, str]]:
    return list(reference.read_rows(shared / "facts" / "mcu_ops.csv"))


# --- Measured -----------------------------------------------------------------------------------


def test_networks_to_the_byte(shared: Path) -> None:
    checked = 0
    with (shared / "facts" / "mcu_arena.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            model = read_tflite(shared / "models" / "mlperf_tiny" / row["model"])
            arena = compute_arena(model, row["core"], row["kernels"])
            got = (arena.used, arena.head, arena.tail)
            columns = ("arena_used_bytes", "head_bytes", "tail_bytes")
            assert got == tuple(int(row[c]) for c in columns), row
            if row["smallest_arena_bytes"]:
                assert arena.smallest == int(row["smallest_arena_bytes"]), row
            assert arena.verified
            assert arena.unknown == arena.notes == ()
            assert arena.at_least == arena.used
            checked += 1
    assert checked == 20


def test_single_operators_to_the_byte(rows: list[dict[str, str]]) -> None:
    total, same, wrong = reference.compare(rows)
    assert wrong == []
    assert sum(same.values()) == sum(total.values()) == 11417
    assert {"m4 cmsis_dsp", "m55 cmsis_mve", "m4 reference"} <= {key[1] for key in total}
    measured = {key[0] for key in total}
    assert set(RULES) - measured - {row["operator"] for row in _operator_rows()} == {"TFLM_DECODE"}


def _operator_rows() -> list[dict[str, str]]:
    with operators.FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_operator_to_the_byte() -> None:
    """What builds for Cortex-M used, of every operator, its types and its alignments."""
    checked: Counter = Counter()
    for row in _operator_rows():
        model = operators.model_of(row)
        assert operators.row_of(model) == {key: row[key] for key in operators.KEYS}
        for column in operators.COLUMNS:
            if row[column]:
                arena = operators.computed(model, column)
                assert arena.used == int(row[column]), (column, row, arena.unknown)
                checked[column] += 1
    assert min(checked.values()) > 1000 and len(checked) >= 2


def test_what_no_vector_core_was_measured_with_is_unknown_there() -> None:
    wide = {"GATHER", "BATCH_MATMUL", "RSQRT", "SELECT_V2", "CAST", "ABS"}
    seen = set()
    for row in _operator_rows():
        if row["operator"] in wide:
            arena = operators.computed(operators.model_of(row), "cmsis-nn mve")
            assert arena.used is None and "vector instructions" in str(arena.unknown[0])
            seen.add(row["operator"])
        elif row["operator"] == "RELU":
            known = row["inputs"].startswith("INT8")
            assert (
                operators.computed(operators.model_of(row), "cmsis-nn mve").used is None
            ) != known
    assert seen == wide


def _int16_case(operator: str, shape: tuple[int, ...], axes: tuple[int, ...] = ()) -> FlatModel:
    T, data = models.T, models.T("INT16", shape, None, (1 / 512,), 0)
    if not axes:
        out = T("INT16", shape, None, (1 / 32768,), 0)
        return read_tflite(models.Case(operator, (data,), (out,), {"beta": 1.0}).data())
    kept = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    order = T("INT32", (len(axes),), list(axes))
    out = T("INT16", kept, None, (1 / 512,), 0)
    return read_tflite(models.Case(operator, (data, order), (out,)).data())


@pytest.mark.parametrize(
    ("shape", "used"), [((1, 10), 2532), ((1, 257), 3524), ((1, 4, 4, 3), 2660), ((3, 7), 2564)]
)
def test_int16_softmax_to_the_byte(shape: tuple[int, ...], used: int) -> None:
    """Cortex-M55 firmware with CMSIS-NN: two tables of 1,026 bytes that int8 does not need."""
    assert compute_arena(_int16_case("SOFTMAX", shape), "cortex-m55", "cmsis-nn").used == used


def test_int16_means_to_the_byte() -> None:
    """The head as the tflite-micro wheel plans it; the tail is that of int8."""
    for operator in ("MEAN", "SUM"):
        found = compute_arena(_int16_case(operator, (1, 7, 5, 9), (1, 2)), "cortex-m4", "cmsis-nn")
        assert (found.head, found.tail) == (752, 388)


def test_smallest_arena(rows: list[dict[str, str]]) -> None:
    misses = reference.compare_smallest(rows)
    assert misses == {0: 2181, 16: 31}


def test_decoded_weights_to_the_byte(shared: Path) -> None:
    count, wrong = reference.compare_decoded(shared / "facts" / "mcu_decode.csv")
    assert (count, wrong) == (330, [])


# Rows measured on Cortex-M4 and M55 builds, so that this file stands alone:
# (operator, geometry), {(core, kernels): (head, tail)}.
_CONV = {"op": "CONV_2D", "n": 1, "dh": 1, "dw": 1, "bias": 1, "in_type": 9, "w_type": 9,
         "sh": 1, "sw": 1}  # fmt: skip
_FC = {"op": "FULLY_CONNECTED", "in_type": 9, "w_type": 9, "bias": 1, "ndim_out": 2, "batch": 1,
       "perch": 0}  # fmt: skip
_MEASURED: list[tuple[dict[str, Any], str, str, int, int]] = [
    (_CONV | {"h": 5, "w": 6, "ci": 8, "oh": 5, "ow": 6, "co": 40, "kh": 5, "kw": 5},
     "cortex-m4", "cmsis-nn", 2240, 756),
    (_CONV | {"h": 15, "w": 15, "ci": 256, "oh": 13, "ow": 13, "co": 1, "kh": 3, "kw": 3},
     "cortex-m4", "cmsis-nn", 66992, 468),
    (_CONV | {"op": "DEPTHWISE_CONV_2D", "h": 29, "w": 29, "ci": 32, "oh": 14, "ow": 14, "co": 32,
              "kh": 3, "kw": 3, "sh": 2, "sw": 2}, "cortex-m4", "cmsis-nn", 33184, 692),
    (_CONV | {"op": "TRANSPOSE_CONV", "h": 13, "w": 21, "ci": 16, "oh": 13, "ow": 21, "co": 24,
              "kh": 3, "kw": 3}, "cortex-m4", "cmsis-nn", 17552, 644),
    (_FC | {"ni": 4096, "no": 1}, "cortex-m4", "cmsis-nn", 4112, 436),
    ({"op": "SVDF", "ni": 77, "no": 80, "mem": 5, "nf": 80, "state_type": 9},
     "cortex-m4", "cmsis-nn", 800, 836),
    ({"op": "UNIDIRECTIONAL_SEQUENCE_LSTM", "T": 4, "ni": 37, "no": 7},
     "cortex-m4", "cmsis-nn", 240, 1780),
]  # fmt: skip


@pytest.mark.parametrize(("row", "core", "kernels", "head", "tail"), _MEASURED)
def test_measured_rows(row: dict[str, Any], core: str, kernels: str, head: int, tail: int) -> None:
    arena = compute_arena(_row_model(**row), core, kernels)
    assert (arena.head, arena.tail, arena.used) == (head, tail, head + tail)


def test_comparison_can_fail(rows: list[dict[str, str]]) -> None:
    right = rows[0]
    assert reference.differences(right) == []
    wrong = {**right, "head": str(int(right["head"]) + 16)}
    assert reference.differences(wrong) == [f"head {right['head']} instead of {wrong['head']}"]
    wider = {**right, "kw": str(int(right["kw"]) + 2)}
    assert reference.differences(wider) != []


def test_more_output_channels_need_more(rows: list[dict[str, str]]) -> None:
    small = _row_model(**_MEASURED[0][0])
    large = _row_model(**_MEASURED[0][0] | {"co": 41})
    arenas = [compute_arena(m, "cortex-m4").used for m in (small, large)]
    assert arenas[0] < arenas[1]


# --- The planner --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "lifetimes", "offsets"),
    [
        ([], [], ()),
        ([10, 20], [(0, 1), (2, 3)], (0, 0)),
        # Equal sizes: the last one is placed first.
        ([16, 16], [(0, 1), (1, 2)], (16, 0)),
        # The 10 bytes fit between the 50 at 0 and the 20 at 70.
        ([10, 20, 30, 40, 50], [(0, 1), (1, 2), (2, 3), (3, 4), (0, 1)], (50, 70, 40, 0, 0)),
        # A gap that is one byte too small is passed over.
        ([21, 20, 30, 40, 50], [(0, 1), (1, 2), (2, 3), (3, 4), (0, 1)], (50, 71, 40, 0, 0)),
        # Nothing overlaps a buffer of no bytes.
        ([32, 0], [(0, 1), (0, 1)], (0, 0)),
    ],
)
def test_plan_by_hand(
    sizes: list[int], lifetimes: list[tuple[int, int]], offsets: tuple[int, ...]
) -> None:
    assert plan_offsets(sizes, lifetimes) == offsets


def test_plan_never_overlaps() -> None:
    generator = random.Random(0)
    for _ in range(50):
        count = generator.randrange(2, 25)
        starts = [generator.randrange(10) for _ in range(count)]
        lifetimes = [(s, s + generator.randrange(4)) for s in starts]
        sizes = [16 * generator.randrange(1, 20) for _ in range(count)]
        offsets = plan_offsets(sizes, lifetimes)
        for i in range(count):
            for j in range(i):
                together = lifetimes[i][0] <= lifetimes[j][1] and lifetimes[j][0] <= lifetimes[i][1]
                apart = offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
                assert apart or not together
        alive = [
            sum(s for s, (a, b) in zip(sizes, lifetimes, strict=True) if a <= step <= b)
            for step in range(14)
        ]
        assert max(o + s for o, s in zip(offsets, sizes, strict=True)) >= max(alive)


def _plan_one_by_one(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The planner as TensorFlow Lite Micro has it: every buffer against every placed one."""
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for buffer in sorted(range(len(sizes)), key=lambda i: (-sizes[i], -i)):
        first, last = lifetimes[buffer]
        offset = 0
        for other in placed:
            if lifetimes[other][0] > last or first > lifetimes[other][1]:
                continue
            if offsets[other] - offset >= sizes[buffer]:
                break
            offset = max(offset, offsets[other] + sizes[other])
        offsets[buffer] = offset
        position = bisect.bisect_right([offsets[other] for other in placed], offset)
        placed.insert(position, buffer)
    return tuple(offsets)


def test_plan_equals_the_plain_algorithm() -> None:
    generator = random.Random(0)
    for _ in range(400):
        starts = [generator.randrange(-2, 30) for _ in range(generator.randrange(40))]
        longest = generator.choice([1, 4, 30])
        lifetimes = [(start, start + generator.randrange(longest)) for start in starts]
        # Many of equal size, none at all, and some beyond what 64 bits hold.
        largest = 1 << generator.choice([1, 3, 12, 64])
        sizes = [16 * generator.randrange(largest) for _ in starts]
        assert plan_offsets(sizes, lifetimes) == _plan_one_by_one(sizes, lifetimes)


def test_plan_looks_at_each_lifetime_once() -> None:
    class Counted(list[tuple[int, int]]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            return super().__getitem__(index)

    lifetimes = Counted((step, step + 1) for step in range(500))
    plan_offsets([16] * 500, lifetimes)
    assert lifetimes.reads == 500


# --- Peak and map -------------------------------------------------------------------------------


def test_the_peak_is_where_most_is_needed() -> None:
    """Against the definition: every operator against every buffer."""
    generator = random.Random(1)
    for _ in range(100):
        count = generator.randrange(1, 20)
        model = _chain([16] * (count + 1))
        buffers = []
        for index in range(generator.randrange(30)):
            first = generator.randrange(-2, count)
            last = generator.randrange(first, count)
            size, offset = 16 * generator.randrange(4), 16 * generator.randrange(6)
            buffers.append(Buffer(index, "", size, offset, first, last))
        alive = [[b for b in buffers if b.first <= step <= b.last] for step in range(count)]
        heights = [(max((b.end for b in at), default=0), sum(b.bytes for b in at)) for at in alive]
        peak, found = _peak(model, buffers)
        assert peak is not None
        assert (peak.index, found) == (highest := heights.index(max(heights)), alive[highest])


def test_the_peak_is_found_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(Buffer, "end", property(lambda b: reads.append(b) or b.offset + b.bytes))
    assert compute_arena(_chain([16] * 401), "cortex-m4").peak_operator == 0
    assert len(reads) <= 3 * 401


def _tensor(index: int, shape: tuple[int, ...], kind: str = "INT8", **fields: Any) -> Tensor:
    scales = () if kind == "FLOAT32" else (0.5,)
    zeros = (0,) * len(scales)
    values = {"scales": scales, "zero_points": zeros} | fields
    return Tensor(index, f"tensor_{index}", shape, kind, **values)


def _row_model(**row: Any) -> FlatModel:
    keys = ("bias", "n_tensors", "reduce_axes", "n_inputs", "const_bytes", "dh", "dw")
    text = dict.fromkeys(keys, "") | {key: str(value) for key, value in row.items()}
    return reference.build_model(text)


def _chain(sizes: list[int], code: str = "RELU", **operator: Any) -> FlatModel:
    """A chain of operators between tensors of the given sizes."""
    tensors = tuple(_tensor(i, (1, 1, 1, size)) for i, size in enumerate(sizes))
    operators = tuple(
        Operator(i, code, "", 1, (i,), (i + 1,), **operator) for i in range(len(sizes) - 1)
    )
    return FlatModel(b"", tensors, operators, (0,), (len(sizes) - 1,))


def test_peak_names_operator_and_tensors() -> None:
    # 64 at 0 and 48 at 64 live at operator 1; 16 and 32 go where there is room.
    arena = compute_arena(_chain([16, 33, 64, 20]), "cortex-m4", "cmsis-nn")
    assert arena.head == 112
    assert (arena.peak_operator, arena.peak_operator_name) == (1, "RELU")
    assert [(b.index, b.bytes, b.offset) for b in arena.peak_tensors] == [(2, 64, 0), (1, 33, 64)]
    assert [(b.first, b.last) for b in arena.buffers] == [(-1, 0), (0, 1), (1, 2), (2, 2)]
    assert [b.offset for b in arena.buffers] == [0, 64, 0, 64]
    assert arena.scratch == (0, 0, 0)
    assert arena.explain() == (
        "The arena peaks at operator 1 RELU: tensor_2 64 B, tensor_1 33 B live there; "
        f"head 112 B + tail {arena.tail} B = {arena.used} B."
    )
    assert "tensor_2 64 B and 1 more (33 B) live there" in arena.explain(tensors=1)


def test_scratch_is_part_of_the_peak() -> None:
    arena = compute_arena(_row_model(**_MEASURED[0][0]), "cortex-m4", "cmsis-nn")
    assert arena.scratch == (800,)
    assert [b.bytes for b in arena.peak_tensors] == [1200, 800, 240]
    assert (arena.peak_tensors[1].index, arena.peak_tensors[1].name) == (
        None,
        "scratch of CONV_2D 0",
    )
    assert "scratch of CONV_2D 0 800 B" in arena.explain()


def test_gaps_are_said() -> None:
    # 576 lies at 0, the later 288 above it at 576, the earlier 288 above that at 864: only then
    # does the 432 of the input, at 0, leave room for nothing more below.
    arena = compute_arena(_chain([432, 288, 288, 576, 144]), "cortex-m4", "cmsis-nn")
    assert [b.offset for b in arena.buffers] == [0, 864, 576, 0, 576]
    assert (arena.head, arena.peak_operator) == (1152, 0)
    assert "with 432 B unused between them" in arena.explain()


def test_variables_live_in_the_tail() -> None:
    model = _row_model(op="SVDF", ni=77, no=80, mem=5, nf=80, state_type=9)
    state = next(t.index for t in model.tensors if t.is_variable)
    arena = compute_arena(model, "cortex-m4", "cmsis-nn")
    assert state not in [b.index for b in arena.buffers]
    larger = _row_model(op="SVDF", ni=77, no=80, mem=6, nf=80, state_type=9)
    assert compute_arena(larger, "cortex-m4", "cmsis-nn").tail - arena.tail == 80


def test_model_without_operators() -> None:
    arena = compute_arena(FlatModel(b"", (_tensor(0, (4,)),), (), (0,), (0,)), "cortex-m4")
    assert (arena.head, arena.peak_operator) == (16, None)
    assert "no operator runs" in arena.explain()


# --- Cores and kernels --------------------------------------------------------------------------


def test_scalar_cores_differ_where_dsp_code_does() -> None:
    conv = _row_model(**_MEASURED[0][0])
    for kernels in ("cmsis-nn", "reference"):
        plain = compute_arena(conv, "cortex-m0plus", kernels)
        assert plain.used == compute_arena(conv, "cortex-m4", kernels).used
        assert not plain.verified
        assert "not compared with a run" in plain.notes[0]
    pool = _row_model(op="AVERAGE_POOL_2D", in_type=9, n=1, h=4, w=4, ci=8, out_elems=32)
    assert compute_arena(pool, "cortex-m4").scratch == (32,)
    assert compute_arena(pool, "cortex-m0plus").scratch == (0,)


def test_m85_is_m55_and_says_so() -> None:
    model = _row_model(**_FC, ni=64, no=32)
    m55, m85 = (compute_arena(model, core) for core in ("cortex-m55", "cortex-m85"))
    assert m55.used == m85.used
    assert (m55.verified, m85.verified) == (True, False)
    assert "cortex-m55" in m85.notes[0]


def test_unknown_names() -> None:
    model = _chain([16, 16])
    with pytest.raises(UnknownNameError, match="Did you mean cortex-m4"):
        compute_arena(model, "cortex-m44")
    with pytest.raises(UnknownNameError, match="`kernels`"):
        compute_arena(model, "cortex-m4", "cmsis")


# --- Unknown ------------------------------------------------------------------------------------


def _conv(**changes: Any) -> FlatModel:
    return _row_model(**_MEASURED[0][0] | changes)


def _grouped() -> FlatModel:
    model = _conv()
    tensors = list(model.tensors)
    tensors[1] = dataclasses.replace(tensors[1], shape=(40, 5, 5, 4))
    return dataclasses.replace(model, tensors=tuple(tensors))


def _int16_bias() -> FlatModel:
    model = _conv(in_type=7)
    tensors = list(model.tensors)
    tensors[2] = dataclasses.replace(tensors[2], type="INT32")
    return dataclasses.replace(model, tensors=tuple(tensors))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_chain([16, 16], "GELU"), "operator 0 GELU: no rule for this operator"),
        (_chain([16, 16], "VAR_HANDLE"), "no rule for this operator"),
        (_conv(in_type=0, w_type=0), "its input is FLOAT32"),
        (_conv(n=2), "its batch is 2"),
        (_conv(sh=0), "its option stride_h is 0"),
        (_grouped(), "it has groups"),
        (_int16_bias(), "its bias is INT32"),
        (_row_model(**_MEASURED[3][0] | {"in_type": 7}), "its input is INT16"),
        (_conv(op="DEPTHWISE_CONV_2D", w_type=17), "its filter is INT4"),
        (
            _row_model(op="SOFTMAX", in_type=2, n=1, h=1, w=1, ci=4, out_elems=4),
            "its input is INT32",
        ),
        (dataclasses.replace(_chain([16, 16]), subgraphs=2), "model: it has 2 subgraphs"),
        (
            dataclasses.replace(_chain([16, 16]), metadata={"OfflineMemoryAllocation": b""}),
            "OfflineMemoryAllocation changes the plan",
        ),
        (
            FlatModel(b"", (_tensor(0, (4,), "INT4"),), (), (0,), (0,)),
            "tensor 0 is INT4",
        ),
    ],
)
def test_unknown_is_said(model: FlatModel, reason: str) -> None:
    arena = compute_arena(model, "cortex-m4", "cmsis-nn")
    assert not arena.is_known
    assert arena.used is arena.head is arena.tail is arena.smallest is arena.peak_operator is None
    assert reason in str(arena.unknown[0])
    assert arena.explain().startswith("The arena is unknown: ")


def test_int16_convolution_is_unknown_without_dsp() -> None:
    assert compute_arena(_conv(in_type=7), "cortex-m4").is_known
    assert "INT16" in compute_arena(_conv(in_type=7), "cortex-m0plus").unknown[0].reason


def test_unknown_decoder() -> None:
    row = {"weights": "16384", "enc": "lut4"}
    _, model = reference.build_decoded(row)
    assert compute_arena(model, "cortex-m4").is_known
    tensors = tuple(
        dataclasses.replace(t, raw=b"\x7f\x01") if t.raw and t.raw[:2] == b"\x00\x01" else t
        for t in model.tensors
    )
    changed = dataclasses.replace(model, tensors=tensors)
    assert "decoder type 127" in compute_arena(changed, "cortex-m4").unknown[0].reason


def test_all_unknown_operators_are_listed_with_a_lower_bound() -> None:
    model = _chain([1600, 3200, 1600, 16], "GELU")
    arena = compute_arena(model, "cortex-m4")
    assert [u.index for u in arena.unknown] == [0, 1, 2]
    assert "(and 2 more)" in arena.explain()
    known = compute_arena(_chain([1600, 3200, 1600, 16]), "cortex-m4")
    assert 4800 < arena.at_least <= known.used
    # A plan made elsewhere may do anything.
    planned = dataclasses.replace(model, metadata={"OfflineMemoryAllocation": b""})
    assert compute_arena(planned, "cortex-m4").at_least is None


def test_lower_bound_never_exceeds_the_arena(rows: list[dict[str, str]]) -> None:
    from edgecompress.targets.tflm import arena as module

    assert len(rows) > 50
    for row in rows[::50]:
        model = reference.build_model(row)
        bound = module._lower_bound(model, module._lifetimes(model))
        assert bound <= int(row["arena_used"])


# --- Contract -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RULES))
def test_rules_say_what_they_are(name: str) -> None:
    assert RULES[name].__doc__


@pytest.mark.parametrize("name", list(RULES))
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_rules_never_crash_on_odd_operators(name: str, core: str) -> None:
    """A file from anywhere: no inputs, no outputs, scalars, missing options."""
    tensors = (_tensor(0, ()), _tensor(1, (1,)), _tensor(2, (1, 2, 2, 1), "INT16", raw=b"\0"))
    for inputs in ((), (0,), (0, 0, 0, 0, 0), (2, 2, 2), (1, -1), (2,) * 20):
        for outputs in ((), (1,)):
            operator = Operator(0, name, "", 1, inputs, outputs)
            arena = compute_arena(FlatModel(b"", tensors, (operator,), (0,), (1,)), core)
            assert arena.is_known != bool(arena.unknown)


def test_every_core_works() -> None:
    for core in CORES:
        assert compute_arena(_conv(), core).is_known
