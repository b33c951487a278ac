"""The checks: each rule in both directions, and every rule on every target."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import UnknownNameError
from edgecompress.core.results import CheckResult, TargetResult
from edgecompress.engines.run import engine_available, load_failure, run_engine
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.sparse_tensors import encode_blocks
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.operators import (
    LITERT_BUILTINS,
    TFLM_BUILTINS,
    unsupported,
    wrong_results,
)
from edgecompress.targets.profile import load_target, target_names
from edgecompress.targets.rule import RULES
from edgecompress.targets.tflm.arena import compute_arena

BOARD = load_target("nucleo-l4r5zi")


def quantized(index: int, name: str, shape: tuple[int, ...], **more: Any) -> Tensor:
    return Tensor(index, name, shape, **{"type": "INT8", "scales": (0.1,), **more})


def chain(*operators: tuple[str, dict[str, Any]]) -> FlatModel:
    """A model of operators that each turn (1, 16) into (1, 16)."""
    tensors = [quantized(0, "input", (1, 16))]
    chained = []
    for code, extra in operators:
        tensors.append(quantized(len(tensors), f"{code.lower()}_out", (1, 16)))
        source, output = 0 if len(tensors) == 2 else len(tensors) - 2, len(tensors) - 1
        chained.append(Operator(len(chained), code, version=1, inputs=(source,), outputs=(output,),
                                **{"custom_name": "", **extra}))  # fmt: skip
    return FlatModel(bytes(2000), tuple(tensors), tuple(chained), (0,), (len(tensors) - 1,))


def dense(weight_type: str = "INT8", type_: str = "INT8", scales: int = 1) -> FlatModel:
    """A model of one fully connected operator, 16 -> 8."""
    tensors = (
        quantized(0, "input", (1, 16), type=type_),
        quantized(1, "kernel", (8, 16), type=weight_type, raw=bytes(512), scales=(0.1,) * scales),
        Tensor(2, "bias", (8,), "INT32", bytes(32), (0.01,)),
        quantized(3, "dense/BiasAdd", (1, 8), type=type_),
    )
    operator = Operator(0, "FULLY_CONNECTED", "", 1, (0, 1, 2), (3,))
    return FlatModel(bytes(900), tensors, (operator,), (0,), (3,))


def by_rule(result: TargetResult, rule: str) -> CheckResult:
    return next(item for item in result.checks if item.rule == rule)


# --- every rule on every target -------------------------------------------------------------------


@pytest.mark.parametrize("name", target_names())
@pytest.mark.parametrize("budgets", [Budgets(), Budgets(10, 10, 0.001, 0.5, 10)])
def test_every_rule_answers_on_every_target(name: str, budgets: Budgets) -> None:
    profile = load_target(name)
    for model in (dense(), dense("INT8", "FLOAT32"), chain(("GELU", {}))):
        result = check(model, profile, budgets)
        assert [c.rule for c in result.checks[: len(RULES)]] == list(RULES)
        json.dumps(result.to_dict(), allow_nan=False)
        for found in result.checks:
            if found.verdict in ("fail", "uncertain", "not_measured"):
                assert found.reason and "\n" not in found.reason
            if found.measured is not None and found.low is not None and found.high is not None:
                assert found.low <= found.measured <= found.high


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_states_itself(rule: str) -> None:
    assert str(RULES[rule].judge.__doc__).count("\n") == 0


@pytest.mark.parametrize("name", target_names())
def test_without_a_budget_nothing_fails_and_what_is_unknown_is_no_pass(name: str) -> None:
    profile = load_target(name)
    # The board's core has no published cycles; no other value of this model is unknown anywhere.
    unknown = profile.kind == "host" or name == "nucleo-g0b1re"
    result = check(dense(), profile)
    assert result.verdict == ("not_measured" if unknown else "pass")
    assert not any(found.undecided for found in result.checks)


def test_a_phone_is_asked_for_its_latency_by_a_budget_alone() -> None:
    phone = load_target("pixel-8")
    assert by_rule(check(dense(), phone), "latency").verdict == "not_applicable"
    asked = by_rule(check(dense(), phone, Budgets(max_latency=1e4)), "latency")
    assert (asked.verdict, asked.undecided) == ("not_measured", True)


def test_a_memory_budget_of_a_process_waits_for_a_run() -> None:
    for name in ("pixel-8", "host"):
        profile = load_target(name)
        assert by_rule(check(dense(), profile), "arena").verdict == "not_applicable"
        asked = by_rule(check(dense(), profile, Budgets(max_ram=4096)), "arena")
        assert (asked.verdict, asked.undecided) == ("not_measured", True)


# --- rule by rule ---------------------------------------------------------------------------------


def test_file_size_at_its_limit() -> None:
    assert by_rule(check(dense(), BOARD, Budgets(max_file_size=900)), "file_size").verdict == "pass"
    over = by_rule(check(dense(), BOARD, Budgets(max_file_size=899)), "file_size")
    assert (over.verdict, over.measured, over.how_known) == ("fail", 900, "computed")
    assert by_rule(check(dense(), BOARD), "file_size").verdict == "not_applicable"


def test_flash_is_judged_only_where_its_whole_range_lies_on_one_side() -> None:
    model = chain(("RESHAPE", {}), ("SOFTMAX", {}))
    found = by_rule(check(model, BOARD), "flash")
    assert found.low is not None and found.high is not None
    assert (found.verdict, found.limit, found.how_known) == ("pass", 2 * 1024**2, "predicted")
    assert (found.detail["unmeasured_operators"], found.detail["bound"]) == ((), True)
    for limit, verdict in (
        (int(found.high), "pass"),
        (int(found.high) - 1, "uncertain"),
        (int(found.low), "uncertain"),
        (int(found.low) - 1, "fail"),
    ):
        assert by_rule(check(model, BOARD, Budgets(max_flash=limit)), "flash").verdict == verdict


def test_a_range_of_flash_that_is_no_bound_does_not_pass_close_to_its_end() -> None:
    """An LSTM's code, linked with the reference kernels, has 37,996 bytes: above the range."""
    model = chain(("UNIDIRECTIONAL_SEQUENCE_LSTM", {}))

    def flash(limit: int) -> CheckResult:
        found = check(model, BOARD, Budgets(max_flash=limit), options={"kernels": "reference"})
        return by_rule(found, "flash")

    needed = len(model.data) + 37_996
    end = int(flash(needed).high or 0)
    assert end < needed
    for limit in (end, needed - 1):
        found = flash(limit)
        assert (found.verdict, found.detail["bound"]) == ("uncertain", False)
        assert "a range without bounds, too close to the limit" in str(found.reason)
    assert flash(64 * 1024).verdict == "pass"


@pytest.mark.parametrize("name", ["disco-f746ng", "nucleo-g0b1re", "ek-ra8d1"])
def test_code_of_another_core_decides_neither_way_close_to_its_range(name: str) -> None:
    board = load_target(name)
    found = by_rule(check(dense(), board), "flash")
    low, high = int(found.low or 0), int(found.high or 0)
    for limit in (low - 1, low, high, high + 1):
        near = by_rule(check(dense(), board, Budgets(max_flash=limit)), "flash")
        assert near.verdict == "uncertain", limit
        here = by_rule(check(dense(), BOARD, Budgets(max_flash=limit)), "flash").verdict
        assert here == ("fail" if limit < low else "pass" if limit >= high else "uncertain")
    for limit, verdict in ((low // 2, "fail"), (high * 2, "pass")):
        assert by_rule(check(dense(), board, Budgets(max_flash=limit)), "flash").verdict == verdict


def test_the_arena_names_the_operator_and_tensors_at_its_peak() -> None:
    model = dense()
    arena = compute_arena(model, "cortex-m4", "cmsis-nn")
    assert arena.used is not None and arena.smallest is not None
    needed = max(arena.used, arena.smallest)
    assert by_rule(check(model, BOARD, Budgets(max_ram=needed)), "arena").verdict == "pass"
    over = by_rule(check(model, BOARD, Budgets(max_ram=needed - 1)), "arena")
    assert (over.verdict, over.measured, over.how_known) == ("fail", arena.used, "computed")
    # So small a model takes more to allocate than to run, and the limit is about that.
    assert (arena.used, needed) == (432, 640)
    assert str(over.reason).startswith(
        "640 B are needed to allocate it, the limit is 639 B. Once allocated, 432 B are used. "
    )
    assert "operator 0 FULLY_CONNECTED" in str(over.reason)
    assert "input" in str(over.reason) and "dense/BiasAdd" in str(over.reason)
    assert over.detail["peak_operator"] == 0
    assert over.detail["head"] + over.detail["tail"] == arena.used


def test_the_boards_sram_is_the_limit_of_the_arena(shared: Path) -> None:
    model = read_tflite(shared / "models" / "mlperf_tiny" / "pretrainedResnet_quant.tflite")
    found = by_rule(check(model, BOARD), "arena")
    assert (found.verdict, found.measured, found.limit) == ("pass", 54996, 655360)
    assert by_rule(check(model, BOARD, Budgets(max_ram=54996)), "arena").verdict == "fail"


def test_an_unknown_arena_is_not_guessed_but_its_lower_bound_counts() -> None:
    model = chain(("GELU", {}))
    found = by_rule(check(model, BOARD), "arena")
    assert (found.verdict, found.measured) == ("not_measured", None)
    assert "GELU" in str(found.reason)
    small = by_rule(check(model, BOARD, Budgets(max_ram=8)), "arena")
    assert small.verdict == "fail" and "At least" in str(small.reason)
    bare = check(model, load_target("cortex-m4"))
    assert (by_rule(bare, "arena").verdict, by_rule(bare, "arena").limit) == ("not_measured", None)


def test_latency_falls_on_one_side_or_is_uncertain() -> None:
    found = by_rule(check(dense(), BOARD), "latency")
    assert found.verdict == "not_applicable" and found.how_known == "predicted"
    low, typical, high = (float(v or 0) for v in (found.low, found.measured, found.high))
    for limit, verdict in ((high, "pass"), (typical, "uncertain"), (low * 0.99, "fail")):
        judged = by_rule(check(dense(), BOARD, Budgets(max_latency=limit)), "latency")
        assert judged.verdict == verdict
    assert found.detail["class"] == "A" and found.detail["costliest"][0]["index"] == 0


def test_kernels_may_be_overridden() -> None:
    usual = check(dense(), load_target("cortex-m4"))
    other = check(dense(), load_target("cortex-m4"), options={"kernels": "reference"})
    assert by_rule(usual, "arena").measured != by_rule(other, "arena").measured
    assert by_rule(other, "arena").detail["kernels"] == "reference"
    with pytest.raises(UnknownNameError, match="Did you mean reference"):
        check(dense(), BOARD, options={"kernels": "referenze"})


def test_a_core_without_published_times_fails_only_by_its_lower_bound() -> None:
    board = load_target("nucleo-g0b1re")
    hopeless = by_rule(check(dense(), board, Budgets(max_latency=0.01)), "latency")
    assert (hopeless.verdict, hopeless.measured) == ("fail", None)
    assert "at least" in str(hopeless.reason)
    unknown = by_rule(check(dense(), board, Budgets(max_latency=1e6)), "latency")
    assert unknown.verdict == "not_measured" and "[calibration]" in str(unknown.reason)


def test_phones_are_measured_or_not_known() -> None:
    result = check(dense(), load_target("pixel-4"), Budgets(max_latency=1e6, max_flash=1))
    latency = by_rule(result, "latency")
    assert (latency.verdict, latency.measured) == ("not_measured", None)
    assert "Google Pixel 4" in str(latency.reason)
    for rule in ("arena", "flash"):
        assert by_rule(result, rule).verdict == "not_applicable"
    on_device = CheckResult(
        "latency", "pass", 9.0, 8.0, 10.0, 1e6, "microseconds", "measured_device"
    )
    measured = check(dense(), load_target("pixel-4"), extra=[on_device])
    assert measured.verdict == "pass"
    assert [c for c in measured.checks if c.rule == "latency"] == [on_device]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the host rule reads of a measurement."""

    low: float = 90.0
    measured: float = 100.0
    high: float = 110.0
    wall_refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"tier": "measured_host"}


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(110, "pass"), (100, "uncertain"), (89, "fail"), (None, "not_applicable")],
)
def test_host_latency_comes_from_its_measurement(limit: float | None, verdict: str) -> None:
    host = load_target("host")
    measured: Any = Measured()
    result = check(dense(), host, Budgets(max_latency=limit), host_latency=measured)
    found = by_rule(result, "latency")
    assert (found.verdict, found.how_known, found.measured) == (verdict, "measured_host", 100.0)
    untimed = by_rule(check(dense(), host, Budgets(max_latency=1.0)), "latency")
    assert untimed.verdict == "not_measured"


def test_accuracy_needs_labels_and_knows_the_targets_floor() -> None:
    missing = by_rule(check(dense(), BOARD, Budgets(min_accuracy=0.9)), "accuracy")
    assert missing.verdict == "not_measured" and "--evaluate" in str(missing.reason)
    value = CheckResult(
        "accuracy", "not_applicable", 0.85, 0.85, 0.85, None, "share", "measured_host"
    )
    demanding = dataclasses.replace(BOARD, budgets=Budgets(min_accuracy=0.9))
    judged = by_rule(check(dense(), demanding, extra=[value]), "accuracy")
    assert (judged.verdict, judged.limit) == ("fail", 0.9)
    assert by_rule(check(dense(), BOARD, extra=[value]), "accuracy") == value


# --- operators ------------------------------------------------------------------------------------


def test_an_operator_that_the_runtime_lacks_is_named() -> None:
    model = chain(("RELU", {}), ("GELU", {}))
    found = by_rule(check(model, BOARD), "operators")
    assert (found.verdict, found.measured, found.limit) == ("fail", 1, 0)
    assert "operator 1 GELU ('gelu_out')" in str(found.reason)
    assert found.detail["unsupported"][0]["index"] == 1
    assert by_rule(check(model, load_target("pixel-8")), "operators").verdict == "pass"


@pytest.mark.parametrize(
    ("name", "message"),
    [("FlexErf", "TensorFlow's own Erf"), ("LceBconv2d", "Larq"), ("Mine", "'Mine'"),
     ("ethos-u", "Ethos-U")],
)  # fmt: skip
def test_custom_operators_are_explained(name: str, message: str) -> None:
    model = chain(("CUSTOM", {"custom_name": name}))
    for target in ("cortex-m4", "pixel-4"):
        (problem,) = unsupported(model, load_target(target))
        assert message in problem.reason and problem.name == name
    decode = chain(("CUSTOM", {"custom_name": "TFLM_DECODE"}))
    assert not unsupported(decode, BOARD)
    assert unsupported(decode, load_target("pixel-4"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dense("INT8", "FLOAT32"), "hybrid"),
        (dense("INT4", scales=8), "one scale for all its weights"),
        (dense("INT2"), "INT8 INT2"),
        (dense("UINT8", "UINT8"), "refuse UINT8 UINT8"),
    ],
)
def test_types_that_the_micro_kernels_refuse(model: FlatModel, message: str) -> None:
    (problem,) = unsupported(model, BOARD)
    assert message in problem.reason
    assert not unsupported(model, load_target("pixel-4"))


def test_sparse_weights_which_the_micro_kernels_read_as_dense() -> None:
    model = dense("FLOAT32", "FLOAT32")
    matrix = np.kron(np.eye(8, 4, dtype=np.float32), np.ones((1, 4)))
    values, sparsity = encode_blocks(matrix.astype(np.float32))
    kernel = dataclasses.replace(model.tensors[1], raw=values.tobytes(), sparsity=sparsity)
    tensors = (model.tensors[0], kernel, *model.tensors[2:])
    sparse = dataclasses.replace(model, tensors=tensors)
    (problem,) = unsupported(sparse, BOARD)
    assert "stored sparse" in problem.reason
    assert not unsupported(sparse, load_target("pixel-4"))
    assert "sparse" in str(compute_arena(sparse, "cortex-m4").unknown[0])


def test_bits_that_are_unpacked_on_phones() -> None:
    model = chain(("CAST", {}), ("RELU", {}))
    assert not unsupported(model, BOARD)
    tensors = (dataclasses.replace(model.tensors[0], type="UINT8"), *model.tensors[1:])
    (problem,) = unsupported(dataclasses.replace(model, tensors=tensors), BOARD)
    assert problem.name == "CAST" and "refuse UINT8 > INT8" in problem.reason


@pytest.mark.parametrize(
    "model", [dense(), dense("INT4"), dense("FLOAT32", "FLOAT32"), dense("INT8", "INT16")]
)
def test_types_that_the_micro_kernels_take(model: FlatModel) -> None:
    assert not unsupported(model, BOARD)


def test_newer_versions_than_the_runtime_knows() -> None:
    newest = LITERT_BUILTINS["RELU"]
    model = chain(("RELU", {}))
    newer = dataclasses.replace(model.operators[0], version=newest + 1)
    (problem,) = unsupported(dataclasses.replace(model, operators=(newer,)), load_target("pixel-4"))
    assert f"up to version {newest}" in problem.reason


def transposed(channels: int, size: int, stride: int, same: bool) -> FlatModel:
    out = 8 * stride if same else 7 * stride + size
    tensors = (
        Tensor(0, "shape", (4,), "INT32", bytes(16)),
        quantized(1, "kernel", (4, size, size, channels), raw=bytes(4 * size * size * channels)),
        quantized(2, "input", (1, 8, 8, channels)),
        quantized(3, "up", (1, out, out, 4)),
    )
    options = {"stride_h": stride, "stride_w": stride, "padding": 0 if same else 1}
    operator = Operator(0, "TRANSPOSE_CONV", "", 1, (0, 1, 2), (3,), options)
    return FlatModel(bytes(900), tensors, (operator,), (2,), (3,))


@pytest.mark.parametrize(
    ("channels", "size", "stride", "same", "wrong"),
    [
        (8, 4, 2, True, True),
        (8, 5, 2, True, True),
        (8, 6, 2, True, False),  # two rows above, a multiple of the stride
        (32, 5, 3, True, True),
        (8, 3, 2, True, False),  # no row above the first
        (8, 4, 2, False, False),
        (32, 4, 2, True, False),  # the other path
        (8, 4, 1, True, False),
    ],
)
def test_transposed_convolutions_that_cmsis_nn_computes_wrongly(
    channels: int, size: int, stride: int, same: bool, wrong: bool
) -> None:
    model = transposed(channels, size, stride, same)
    for name in ("cortex-m4", "cortex-m55"):
        assert bool(wrong_results(model, load_target(name))) is wrong
    assert not wrong_results(model, BOARD, "reference")
    assert not wrong_results(model, load_target("pixel-4"))
    if wrong:
        found = by_rule(check(model, BOARD), "operators")
        assert found.verdict == "uncertain" and "operator 0 TRANSPOSE_CONV ('up')" in str(
            found.reason
        )


@pytest.mark.parametrize(
    ("width", "size", "stride", "wrong"),
    # VALID: (OW-1)*2 + kw - W is 0, or -1 where a column is left over, which is odd.
    [(20, 5, 2, True), (21, 5, 2, False), (20, 3, 2, True), (21, 3, 2, False), (20, 5, 1, False)],
)
def test_one_row_convolutions_that_cmsis_nn_computes_wrongly(
    width: int, size: int, stride: int, wrong: bool
) -> None:
    out = (width - size) // stride + 1
    tensors = (
        quantized(0, "input", (1, 1, width, 4)),
        quantized(1, "kernel", (8, 1, size, 4), raw=bytes(32 * size)),
        quantized(2, "conv1d", (1, 1, out, 8)),
    )
    options = {"stride_w": stride, "stride_h": stride, "padding": 1}
    operator = Operator(0, "CONV_2D", "", 1, (0, 1), (2,), options)
    model = FlatModel(bytes(900), tensors, (operator,), (0,), (2,))
    assert bool(wrong_results(model, load_target("cortex-m55"))) is wrong
    assert not wrong_results(model, load_target("cortex-m4"))


# --- the tables against the engines ---------------------------------------------------------------


def file_of(*operators: tuple[str, int]) -> bytes:
    """A file with these operators and versions: no kernel can run it, but a resolver reads it."""
    from ai_edge_litert import schema_py_generated as schema

    codes = vars(schema.BuiltinOperator)
    tensor = schema.TensorT(shape=[1], type=0, name="x", buffer=0)
    graph = schema.SubGraphT(tensors=[tensor], inputs=[0], outputs=[0], operators=[], name="main")
    model = schema.ModelT(version=3, subgraphs=[graph], operatorCodes=[])
    model.buffers = [schema.BufferT()]
    for index, (name, version) in enumerate(operators):
        number = codes[name]
        code = schema.OperatorCodeT(
            deprecatedBuiltinCode=min(number, 127), version=version, builtinCode=number
        )
        model.operatorCodes.append(code)
        graph.operators.append(schema.OperatorT(opcodeIndex=index, inputs=[0], outputs=[0]))
    return pack(model)


def file_of_graphs(*graphs: str) -> bytes:
    """A file with a subgraph for each operator; every subgraph has one."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(file_of(*((name, 1) for name in graphs)))
    first = model.subgraphs[0]
    model.subgraphs = [
        schema.SubGraphT(tensors=first.tensors, inputs=[0], outputs=[0], operators=[operator],
                         name=str(number))
        for number, operator in enumerate(first.operators)
    ]  # fmt: skip
    return pack(model)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_operators_of_every_subgraph_are_looked_at(place: int) -> None:
    names = ["ABS"] * 3
    assert by_rule(check(read_tflite(file_of_graphs(*names)), BOARD), "operators").verdict == "pass"
    names[place] = "GELU"
    model = read_tflite(file_of_graphs(*names))
    found = by_rule(check(model, BOARD), "operators")
    where = f"subgraph {place}, operator" if place else "operator"
    assert (found.verdict, found.measured) == ("fail", 1)
    assert found.reason is not None and found.reason.startswith(f"{where} 0 GELU")
    assert found.detail["unsupported"][0]["subgraph"] == place
    assert by_rule(check(model, load_target("pixel-8")), "operators").verdict == "pass"
    # Its code takes flash wherever it is used.
    assert by_rule(check(model, BOARD), "flash").detail["unmeasured_operators"] == ("ABS", "GELU")


def test_subgraphs_that_were_not_read_are_no_pass() -> None:
    model = dataclasses.replace(chain(("RELU", {})), subgraphs=2)
    found = by_rule(check(model, BOARD), "operators")
    assert (found.verdict, found.undecided) == ("uncertain", True)
    assert "1 of 2 subgraphs" in str(found.reason)


def test_a_streaming_wake_word_is_no_pass(shared: Path) -> None:
    """Two subgraphs and resource variables: nobody knows its arena."""
    model = read_tflite(shared / "models" / "real" / "okay_nabu.tflite")
    assert model.subgraphs == 2 and len(model.others) == 1
    core = check(model, load_target("cortex-m4"))
    assert (core.verdict, by_rule(core, "arena").undecided) == ("not_measured", False)
    # The board's own RAM is a limit, and so is a budget.
    for limits in (Budgets(), Budgets(max_ram=4096)):
        board = check(model, BOARD, limits)
        assert board.verdict == "not_measured"
        assert by_rule(board, "arena").undecided


def lacks(engine: str, *operators: tuple[str, int]) -> bool:
    missing = engine_available(engine)
    if missing:
        pytest.skip(missing)
    return "Didn't find op" in str(load_failure(engine, file_of(*operators)))


def test_the_table_of_litert_is_the_engines_own() -> None:
    assert not lacks("litert", *LITERT_BUILTINS.items())
    assert lacks("litert", ("CONV_2D", LITERT_BUILTINS["CONV_2D"] + 1))
    assert lacks("litert", ("STABLEHLO_TANH", 1))


def test_the_table_of_tflm_is_the_engines_own() -> None:
    # Variables are parsed before operators are looked up and need options.
    assert not lacks("tflm", *((name, 1) for name in TFLM_BUILTINS - {"VAR_HANDLE"}))
    assert lacks("tflm", ("ABS", 1), ("GELU", 1))


@pytest.mark.parametrize(
    ("name", "cmsis_nn", "reference"),
    [
        ("i16_mlp", "fail", "pass"), ("FC__int16_per", "fail", "pass"),
        ("transpose5d", "fail", "pass"), ("HARD_SWISH__int16", "fail", "fail"),
        ("EMBEDDING_LOOKUP__int8", "pass", "pass"), ("person_detect", "pass", "pass"),
        ("keyword_scrambled", "pass", "pass"), ("conv_dequant", "pass", "pass"),
    ],
)  # fmt: skip
def test_verdicts_are_those_of_the_kernels(
    shared: Path, name: str, cmsis_nn: str, reference: str
) -> None:
    data = (shared / "repro" / f"{name}.tflite").read_bytes()
    model = read_tflite(data)
    for kernels, verdict in (("cmsis-nn", cmsis_nn), ("reference", reference)):
        found = by_rule(check(model, BOARD, options={"kernels": kernels}), "operators")
        assert (found.verdict, kernels) == (verdict, kernels), found.reason
    if engine_available("tflm") is None:
        assert (load_failure("tflm", data) is None) is (reference == "pass")


def test_narrow_weights_that_vector_kernels_compute_wrongly(shared: Path) -> None:
    model = read_tflite(shared / "repro" / "DEPTHWISE__w4.tflite")
    found = by_rule(check(model, load_target("cortex-m55")), "operators")
    assert found.verdict == "uncertain" and "INT4 weights" in str(found.reason)
    assert by_rule(check(model, load_target("cortex-m4")), "operators").verdict == "pass"


@pytest.mark.parametrize(
    ("code", "type_"),
    [(code, "INT16") for code in ("HARD_SWISH", "EXP", "ELU", "SQUARE")]
    + [("EXP", "UINT8"), ("ABS", "INT32"), ("NEG", "INT16")],
)
def test_types_that_no_kernel_takes(code: str, type_: str) -> None:
    model = chain((code, {}))
    tensors = tuple(dataclasses.replace(t, type=type_) for t in model.tensors)
    (problem,) = unsupported(dataclasses.replace(model, tensors=tensors), BOARD)
    assert problem.name == code and type_ in problem.reason


def test_what_was_not_measured_is_no_pass_unless_the_file_ran_here() -> None:
    model = chain(("RELU", {}))
    wide = dataclasses.replace(model.tensors[0], shape=(1,) * 9)
    tensors = (wide, dataclasses.replace(wide, index=1, name="out"))
    odd = dataclasses.replace(model, tensors=tensors)
    found = by_rule(check(odd, BOARD), "operators")
    assert found.verdict == "uncertain" and "was not measured" in str(found.reason)
    assert by_rule(check(odd, BOARD, ran=True), "operators").verdict == "pass"


def test_a_bias_with_a_stray_axis_runs_on_microcontrollers_only(shared: Path) -> None:
    data = (shared / "repro" / "person_detect.tflite").read_bytes()
    model = read_tflite(data)
    assert not unsupported(model, BOARD)
    problems = unsupported(model, load_target("pixel-8"))
    assert "its bias names a channel axis" in problems[0].reason
    for engine, runs in (("tflm", True), ("litert", False)):
        if engine_available(engine) is None:
            assert (load_failure(engine, data) is None) is runs
    # With the axis put right, LiteRT computes what TensorFlow Lite Micro does.
    right = unpack(data)
    for tensor in right.subgraphs[0].tensors:
        if tensor.quantization is not None and len(tensor.shape) == 1:
            tensor.quantization.quantizedDimension = 0
    if engine_available("tflm") or engine_available("litert"):
        pytest.skip("an engine is not here")
    x = np.random.default_rng(0).integers(-128, 128, (5, 96, 96, 1), np.int8)
    micro, lite = run_engine("tflm", data, [x]), run_engine("litert", pack(right), [x])
    assert len(np.unique(micro.outputs[0])) > 4
    assert np.abs(micro.outputs[0].astype(int) - lite.outputs[0]).max() <= 1


def test_the_engine_refuses_the_hybrid_model_too(shared: Path) -> None:
    path = shared / "models" / "mlperf_tiny" / "kws_ref_model_float32.tflite"
    assert unsupported(read_tflite(path), BOARD)
    missing = engine_available("tflm")
    if missing:
        pytest.skip(missing)
    assert "Hybrid models are not supported" in str(load_failure("tflm", path.read_bytes()))


@pytest.mark.parametrize("name", ["max_rma", "min_acuracy", "lernels", "zzz"])
def test_a_misspelt_limit_is_never_lost(tiny: Path, name: str) -> None:
    file = tiny / "classifier_int8.tflite"
    with pytest.raises(UnknownNameError, match=name):
        ec.check(file, ["cortex-m4"], **{name: "1KiB"})
    # Rightly spelt, it breaks the build.
    assert ec.check(file, ["cortex-m4"], max_ram="1KiB").exit_code == 3
