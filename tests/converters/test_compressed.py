"""Compressed flatbuffers, judged by TensorFlow Lite Micro itself: same outputs, smaller files."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgecompress.converters.comparison import random_inputs
from edgecompress.converters.compressed import (
    CompressedResult,
    compress,
    verify_exact,
)
from edgecompress.converters.decoders import (
    insert_decoders,
)
from edgecompress.converters.stripping import strip_for_tflm
from edgecompress.core.errors import (
    ArgumentError,
    ConversionError,
    EngineError,
    UnknownNameError,
    UnsupportedModelError,
)
from edgecompress.core.results import CheckResult
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.coding import CODINGS, Encoded, Layout, encode_lut
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.profile import load_target
from edgecompress.targets.tflm.arena import compute_arena

pytestmark = pytest.mark.slow

FILTERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
MODELS = {
    "ad01_int8.tflite": 185_920,
    "pretrainedResnet_quant.tflite": 86_544,
    "kws_ref_model.tflite": 42_240,
    "vww_96_int8.tflite": 146_496,
}


def _benchmark(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def filters(flat: FlatModel) -> dict[int, Tensor]:
    return {
        tensor.index: tensor
        for operator in flat.operators
        if operator.code in FILTERS and (tensor := flat.tensor(operator, 1)) is not None
    }


def with_weights(data: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Returns the file with other filter values."""
    model, flat = unpack(data), read_tflite(data)
    for index, tensor in filters(flat).items():
        values = change(tensor.values()).astype(np.int8)
        buffer = model.buffers[model.subgraphs[0].tensors[index].buffer]
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    return pack(model)


def cluster(count: int) -> Callable[[np.ndarray], np.ndarray]:
    centres = np.linspace(-120, 120, count).round()
    return lambda w: centres[np.abs(w[..., None] - centres).argmin(-1)]


def prune(sparsity: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: np.where(np.abs(w.astype(int)) <= np.quantile(np.abs(w), sparsity), 0, w)


def coded(data: bytes, coding: str, root_bits: int | None = None) -> bytes:
    """Codes every filter, whether it pays or not."""
    codes = {}
    for index, tensor in filters(read_tflite(data)).items():
        layout = Layout(tensor.zero_points, tensor.quantized_dimension)
        codes[index] = CODINGS[coding](tensor.values(), layout, root_bits)
    assert codes
    assert None not in codes.values()
    return insert_decoders(data, codes)


@pytest.fixture(scope="module")
def classifier(tiny: Path) -> bytes:
    return (tiny / "classifier_int8.tflite").read_bytes()


@pytest.fixture(scope="module")
def transposed() -> bytes:
    """An int8 model with a transposed convolution and a wide dense layer."""
    keras = pytest.importorskip("keras")
    from edgecompress.converters import float32, int8

    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2DTranspose(5, 3, strides=2, name="up"),
            keras.layers.Flatten(),
            keras.layers.Dense(24, name="wide"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(40, 4, 4, 2)).astype(np.float32)
    return int8.convert(float32.convert(model), calibration=[x]).data


# --- Exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
def test_tables_of_every_width_are_exact(classifier: bytes, bits: int) -> None:
    model = with_weights(classifier, cluster(1 << bits))
    verify_exact(model, coded(model, "lut"), samples=4)


@pytest.mark.parametrize("root_bits", [None, 2, 8])
def test_huffman_is_exact_on_untouched_weights(classifier: bytes, root_bits: int | None) -> None:
    verify_exact(classifier, coded(classifier, "huffman", root_bits), samples=4)


@pytest.mark.parametrize("coding", ["prune", "huffman"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 1.0])
def test_pruned_weights_are_exact(classifier: bytes, coding: str, sparsity: float) -> None:
    model = with_weights(classifier, prune(sparsity))
    verify_exact(model, coded(model, coding), samples=4)


@pytest.mark.parametrize("coding", ["lut", "prune", "huffman"])
def test_transposed_convolutions_are_exact(transposed: bytes, coding: str) -> None:
    assert "TRANSPOSE_CONV" in read_tflite(transposed).histogram()
    model = with_weights(transposed, cluster(16))
    verify_exact(model, coded(model, coding), samples=4)


def test_bitmaps_of_weights_with_a_zero_point(classifier: bytes) -> None:
    # Weights of a foreign converter: the zero point of the dense layer's filter is not 0.
    model = unpack(classifier)
    flat = read_tflite(classifier)
    index = next(o.inputs[1] for o in flat.operators if o.code == "FULLY_CONNECTED")
    quantization = model.subgraphs[0].tensors[index].quantization
    quantization.zeroPoint = np.full(len(quantization.scale), 5, np.int64)
    shifted = with_weights(pack(model), lambda w: np.where(np.abs(w) < 60, 5, w))
    values = read_tflite(shifted).tensors[index].values()
    right = CODINGS["prune"](values, Layout((5,)), None)
    wrong = CODINGS["prune"](values, Layout((0,)), None)
    # Coded against 0, every value other than 0 is stored, and a 0 comes back as 5.
    assert len(right.data + right.ancillary) < len(wrong.data + wrong.ancillary)
    with_zero = with_weights(shifted, lambda w: np.where(w == 5, 0, w))
    zeros = read_tflite(with_zero).tensors[index].values()
    broken = CODINGS["prune"](zeros, Layout((0,)), None)
    run = run_engine("tflm", insert_decoders(shifted, {index: right}), random(shifted)).outputs[0]
    assert np.array_equal(run, run_engine("tflm", shifted, random(shifted)).outputs[0])
    with pytest.raises(ConversionError, match="not exact"):
        verify_exact(with_zero, insert_decoders(with_zero, {index: broken}))


def random(data: bytes) -> list[np.ndarray]:
    return random_inputs(read_tflite(data), 4)


_WHEEL = """
import sys, numpy as np
from tflite_micro.tensorflow.lite.micro.compression import lut, model_editor, spec
values = np.load(sys.argv[1])
method = spec.LookUpTableCompression(index_bitwidth=4, mode=spec.PerTensor())
tensor = model_editor.Tensor(shape=values.shape, dtype=9, data=values, name="w")
code = lut.LutCompressor().compress(tensor, method)
print("CODE", bytes(code.encoded_data).hex(), bytes(code.ancillary_data).hex())
"""


def test_the_wheels_own_per_tensor_table_is_wrong_on_per_channel_tensors(
    classifier: bytes, tmp_path: Path
) -> None:
    model = with_weights(classifier, cluster(16))
    flat = read_tflite(model)
    index = next(o.inputs[1] for o in flat.operators if o.code == "CONV_2D")
    tensor = flat.tensors[index]
    assert len(tensor.scales) > 1
    np.save(tmp_path / "w.npy", tensor.values())
    done = subprocess.run(
        [sys.executable, "-c", _WHEEL, tmp_path / "w.npy"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    line = next((x for x in done.stdout.splitlines() if x.startswith("CODE")), None)
    assert line is not None, done.stderr[-1000:]
    data, ancillary = (bytes.fromhex(text) for text in line.split()[1:])
    naive = Encoded("lut", data, ancillary)
    ours = encode_lut(tensor.values())
    with pytest.raises(ConversionError, match="not exact"):
        verify_exact(model, insert_decoders(model, {index: naive}))
    verify_exact(model, insert_decoders(model, {index: ours}))
    # Only the channel stride differs.
    assert data == ours.data
    assert ancillary[6] == len(np.unique(tensor.values()))
    assert ancillary[:6] + b"\0" + ancillary[7:] == ours.ancillary


@pytest.mark.parametrize("name", list(MODELS))
def test_reference_models_lossless(shared: Path, name: str) -> None:
    path = shared / "models" / "mlperf_tiny" / name

    def arena(flat: FlatModel) -> float:
        found = compute_arena(flat, "cortex-m4")
        assert found.unknown == ()
        assert found.used is not None
        return found.used

    result = compress(path, samples=3, arena=arena)
    data = result.artifact.data
    assert result.verified_samples == 3
    assert len(data) <= MODELS[name]
    assert len(data) <= result.bytes_stripped < result.bytes_before == path.stat().st_size
    assert result.arena_after == compute_arena(read_tflite(data), "cortex-m4").used
    coded_tensors = [t for t in result.tensors if t.coding != "raw"]
    decoders = read_tflite(data).histogram().get("TFLM_DECODE", 0)
    assert decoders == len(coded_tensors)
    assert (result.arena_after > result.arena_before) is bool(coded_tensors)
    assert result.decompression_memory == max((t.bytes_before for t in coded_tensors), default=0)
    assert all(t.reason for t in result.tensors if t.coding == "raw")
    assert len(result.tensors) == len(filters(read_tflite(path)))
    # Kernels read tables and words in place.
    offsets = [data.find(t.raw) % 16 for t in read_tflite(data).tensors if t.type == "UINT8"]
    assert set(offsets) <= {0}


benchmark, exactness = (_benchmark(n) for n in ("compressed_sizes", "compressed_exactness"))
LABELS = [row.label for row in benchmark.ROWS if row.reference is not None]


@pytest.mark.parametrize("label", LABELS)
def test_no_file_is_larger_than_another_encoders(shared: Path, label: str) -> None:
    row = next(row for row in benchmark.ROWS if row.label == label)
    for name, limit in zip(benchmark.MODELS, row.reference, strict=True):
        data = (shared / "models" / "mlperf_tiny" / name).read_bytes()
        if row.change is not None:
            data = benchmark.treated(data, row.change)
        result = compress(data, codings=row.codings, verify=False)
        assert len(result.artifact.data) <= limit, name
        assert {t.coding for t in result.tensors} <= {*row.codings, "raw"}
        # Close to what these codes can do at all with these weights.
        weights = {t.name: t for t in read_tflite(data).tensors}
        for tensor in result.tensors:
            if tensor.coding == "lut" and "16 clusters" in label:
                values = weights[tensor.name].values()
                assert tensor.bytes_after <= values.size / 2 + 32
            if tensor.coding == "prune":
                values = weights[tensor.name].values()
                assert tensor.bytes_after <= -(-values.size // 8) + 16 + np.count_nonzero(values)


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_encoder_is_exact_on_100_inputs(shared: Path, name: str, turn: int) -> None:
    """The filters of a file take turns; benchmarks/compressed_exactness.py codes whole files."""
    data = (shared / "models" / "mlperf_tiny" / name).read_bytes()
    encoders = exactness.ENCODERS
    order = [*encoders][7 * turn :] + [*encoders][: 7 * turn]
    indices = [*filters(read_tflite(data))]
    groups = {e: indices[i :: len(order)] for i, e in enumerate(order) if indices[i :: len(order)]}
    chosen = {index: encoder for encoder, group in groups.items() for index in group}
    data = exactness.rounded(data, {i: encoders[e].change for i, e in chosen.items()})
    tensors = filters(read_tflite(data))
    codes: dict[int, Encoded] = {}
    for encoder, group in groups.items():
        codes |= encoders[encoder].encode({i: tensors[i] for i in group})
    assert codes.keys() == tensors.keys()
    assert None not in codes.values()
    verify_exact(data, insert_decoders(data, codes), samples=100)
    # Together the two turns reach every encoder.
    reached = {*order[: len(indices)], *(order[7:] + order[:7])[: len(indices)]}
    assert reached == {*encoders} or len(indices) < 7


@pytest.mark.parametrize("entry_bits", [16, 32])
def test_int8_weights_decode_with_both_widths_of_tables(classifier: bytes, entry_bits: int) -> None:
    tensors = filters(read_tflite(classifier))
    codes = exactness.own_book(entry_bits)(tensors)
    assert {code.ancillary[5] & 1 for code in codes.values()} == {int(entry_bits == 32)}
    verify_exact(classifier, insert_decoders(classifier, codes), samples=4)


# --- The file -----------------------------------------------------------------------------------


def wide(seed: int = 0) -> bytes:
    """Two dense layers of 64 x 64 with the same filter, a third with another."""
    from ai_edge_litert import schema_py_generated as schema

    rng = np.random.default_rng(seed)
    shared = rng.choice(np.array([-100, -20, 0, 50], np.int8), (64, 64))
    other = rng.choice(np.array([-90, 0, 0, 0, 0, 0, 0, 7, 8, 9, 10, 11], np.int8), (64, 64))
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    # As written before schema 3a: only the one-byte field is filled.
    fully = schema.BuiltinOperator.FULLY_CONNECTED
    model.operatorCodes = [schema.OperatorCodeT(deprecatedBuiltinCode=fully, version=4)]
    graph.tensors, graph.operators = [], []

    def tensor(shape: list[int], scale: float, values: np.ndarray | None = None) -> int:
        buffer = 0
        if values is not None:
            buffer = len(model.buffers)
            model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        graph.tensors.append(
            schema.TensorT(
                shape=shape, type=schema.TensorType.INT8, buffer=buffer, name=f"t{buffer}",
                quantization=schema.QuantizationParametersT(scale=[scale], zeroPoint=[0]),
            )
        )  # fmt: skip
        return len(graph.tensors) - 1

    filters = [tensor([64, 64], 0.01, values) for values in (shared, other)]
    last = first = tensor([1, 64], 0.05)
    for number in (0, 1, 0):
        out = tensor([1, 64], 0.3 + number)
        options = schema.FullyConnectedOptionsT()
        graph.operators.append(
            schema.OperatorT(
                opcodeIndex=0, inputs=[last, filters[number], -1], outputs=[out],
                builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
                builtinOptions=options,
            )
        )  # fmt: skip
        last = out
    graph.inputs, graph.outputs = [first], [last]
    return pack(model)


def test_every_reader_gets_a_decoder_of_its_own() -> None:
    model = wide()
    flat = read_tflite(compress(model).artifact.data)
    names = [operator.name for operator in flat.operators]
    assert names == ["TFLM_DECODE", "FULLY_CONNECTED"] * 3
    decoders = [o for o in flat.operators if o.name == "TFLM_DECODE"]
    readers = [o for o in flat.operators if o.name == "FULLY_CONNECTED"]
    assert [d.outputs[0] for d in decoders] == [r.inputs[1] for r in readers]
    assert len({d.outputs for d in decoders}) == 3
    # The first and the last read one code.
    assert decoders[0].inputs == decoders[2].inputs != decoders[1].inputs
    for decoder in decoders:
        for index in decoder.inputs:
            assert flat.tensors[index].type == "UINT8"
            assert not flat.tensors[index].is_quantized
            assert flat.tensors[index].name == ""
        assert flat.tensors[decoder.outputs[0]].is_quantized
        assert not flat.tensors[decoder.outputs[0]].is_constant


def test_equal_input_gives_equal_bytes() -> None:
    assert compress(wide()).artifact.sha256 == compress(wide(), verify=False).artifact.sha256


@pytest.mark.parametrize("coding", ["lut", "prune", "huffman"])
def test_codings_can_be_switched_off(coding: str) -> None:
    result = compress(wide(), codings=[coding], samples=2)
    found = {t.coding for t in result.tensors}
    assert coding in found
    assert found <= {coding, "raw"}


def test_only_the_old_operator_field_is_read_right() -> None:
    after = unpack(compress(wide()).artifact.data)
    assert {code.builtinCode for code in after.operatorCodes} == {9, 32}


_OUTSIDE = """
import sys, numpy as np
from tflite_micro.python.tflite_micro import runtime
data, x = open(sys.argv[1], "rb").read(), np.load(sys.argv[2])
engine = runtime.Interpreter.from_bytes(
    data, arena_size=int(sys.argv[3]), alt_decompression_memory_size=int(sys.argv[4]))
engine.set_input(x, 0)
engine.invoke()
np.save(sys.argv[5], engine.get_output(0))
"""


def test_decoded_tensors_fit_the_memory_outside_the_arena(tmp_path: Path) -> None:
    result = compress(wide(), samples=2)
    assert result.decompression_memory == 64 * 64
    (tmp_path / "m.tflite").write_bytes(result.artifact.data)
    x = random(wide())[0][:1]
    np.save(tmp_path / "x.npy", x.reshape(1, 64))

    def run(arena: int, outside: int) -> subprocess.CompletedProcess[str]:
        files = [tmp_path / "m.tflite", tmp_path / "x.npy"]
        return subprocess.run(
            [sys.executable, "-c", _OUTSIDE, *files, str(arena), str(outside), tmp_path / "y.npy"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert run(5_000, 0).returncode != 0
    # A byte less, and the tensors lie in the arena again.
    assert run(5_000, result.decompression_memory - 1).returncode != 0
    done = run(5_000, result.decompression_memory)
    assert done.returncode == 0, done.stderr[-1000:]
    want = run_engine("tflm", wide(), [x]).outputs[0]
    assert np.array_equal(np.load(tmp_path / "y.npy").reshape(-1), want.reshape(-1))


_ALLOCATIONS = """
import sys
from tflite_micro.python.tflite_micro import runtime
data = open(sys.argv[1], "rb").read()
for size in map(int, sys.argv[2:]):
    print("SIZE", size, flush=True)
    runtime.Interpreter.from_bytes(
        data, arena_size=200_000, alt_decompression_memory_size=size).print_allocations()
"""


def pyramid() -> bytes:
    """Dense layers of 4,096, 2,048 and 512 weights, all coded."""
    keras = pytest.importorskip("keras")
    from edgecompress.converters import float32, int8

    keras.utils.set_random_seed(2)
    sizes = (64, 32, 16)
    model = keras.Sequential([keras.Input((64,)), *(keras.layers.Dense(n) for n in sizes)])
    x = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    data = int8.convert(float32.convert(model), calibration=[x]).data
    return with_weights(data, cluster(4))


def test_arena_without_decoded_tensors_as_the_engine_plans_it(tmp_path: Path) -> None:
    result = compress(pyramid(), codings=["lut"], samples=1)
    assert [t.coding for t in result.tensors] == ["lut"] * 3
    path = tmp_path / "m.tflite"
    path.write_bytes(result.artifact.data)
    sizes = [0, 1, 512, 2047, 2048, 4095, 4096, 9000]
    done = subprocess.run(
        [sys.executable, "-c", _ALLOCATIONS, path, *map(str, sizes)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    heads, tails = (
        [int(n) for n in re.findall(rf"Arena allocation {part} (\d+) bytes", text)]
        for part in ("head", "tail")
    )
    flat = read_tflite(result.artifact.data)
    arenas = [compute_arena(flat, "cortex-m4", "reference", size or None) for size in sizes]
    assert [arena.head for arena in arenas] == heads
    assert len(set(heads)) == 2  # The largest layer decides.
    assert [a.decompression_memory for a in arenas] == [0, 0, 512, 512, 2048, 2048, 4096, 4096]
    # The region itself costs some bytes of the tail: here 8, rounded up to 16.
    assert {tail - tails[0] for tail in tails[1:]} == {16}
    assert all(0 <= a.tail - arenas[0].tail <= 16 for a in arenas[1:] if a.tail)
    assert all("64-bit" in a.notes[0] for a in arenas[1:])


def test_larger_tensors_than_the_decompression_memory_stay_raw() -> None:
    result = compress(pyramid(), codings=["lut"], samples=1, decompression_memory=2048)
    assert {t.bytes_before: t.coding for t in result.tensors} == {
        4096: "raw", 2048: "lut", 512: "lut",
    }  # fmt: skip
    assert result.decompression_memory == 2048
    assert any("larger than the 2,048 bytes outside the arena" in note for note in result.notes)
    assert compress(pyramid(), codings=["lut"], samples=1).decompression_memory == 4096
    for size in (0, -1):
        with pytest.raises(ArgumentError, match="decompression_memory.*1 byte or more"):
            compress(pyramid(), decompression_memory=size)
        with pytest.raises(ArgumentError, match="decompression_memory.*1 byte or more"):
            compute_arena(read_tflite(pyramid()), "cortex-m4", decompression_memory=size)


def test_arena_limit_with_decompression_memory() -> None:
    """The limit that forbids decoding in the arena allows it outside."""

    def arena(flat: FlatModel, memory: int | None = None) -> float:
        return compute_arena(flat, "cortex-m4", decompression_memory=memory).used or 0

    limit = int(arena(read_tflite(pyramid()))) + 700
    inside = compress(pyramid(), codings=["lut"], verify=False, arena=arena, max_arena=limit)
    assert "raw" in {t.coding for t in inside.tensors}
    outside = compress(
        pyramid(), codings=["lut"], verify=False, max_arena=limit, decompression_memory=4096,
        arena=lambda flat: arena(flat, 4096),
    )  # fmt: skip
    assert {t.coding for t in outside.tensors} == {"lut"}
    assert outside.arena_after <= limit


def test_the_check_of_the_arena_counts_decoded_tensors_or_leaves_them_out() -> None:
    flat = read_tflite(compress(pyramid(), codings=["lut"], samples=1).artifact.data)
    board = load_target("cortex-m4")
    budgets = Budgets(max_ram=4096)

    def arena(memory: int | None) -> CheckResult:
        found = check(flat, board, budgets, decompression_memory=memory)
        return next(result for result in found.checks if result.rule == "arena")

    assert arena(None).verdict == "fail"
    assert "decompression_memory" not in arena(None).detail
    outside = arena(5000)
    assert outside.verdict == "pass"
    assert outside.measured == compute_arena(flat, "cortex-m4", decompression_memory=5000).used
    assert outside.detail["decompression_memory"] == 5000
    assert outside.detail["decompression_memory_used"] == 4096
    small = arena(2048)
    assert (small.verdict, small.detail["decompression_memory_used"]) == ("fail", 2048)


def test_decoded_tensors_that_are_read_late_are_named() -> None:
    # One decoder for two layers, and another one in between: not what `compress` writes.
    model = unpack(compress(wide(), codings=["lut"], samples=1).artifact.data)
    graph = model.subgraphs[0]
    first, last = graph.operators[0], graph.operators[5]
    last.inputs = np.int32([last.inputs[0], first.outputs[0], -1])
    flat = read_tflite(pack(model))
    notes = compute_arena(flat, "cortex-m4", decompression_memory=4096).notes
    assert any("operator 2 has decoded over it" in note for note in notes)
    assert not compute_arena(flat, "cortex-m4").notes


def test_what_does_not_pay_stays_raw_and_is_named(classifier: bytes) -> None:
    result = compress(classifier, samples=2)
    assert {t.coding for t in result.tensors} == {"raw"}
    editor = ModelEditor(classifier)
    strip_for_tflm(editor)
    editor.strip()
    assert result.artifact.data == editor.pack()
    assert "No weight tensor gets smaller by coding" in result.notes[0]
    assert "no code makes the file smaller" in result.notes[1]
    assert result.decompression_memory == 0


def test_artifact_keeps_source_and_notes() -> None:
    source = Artifact("int8", wide(), "net", None, ("Said before.",))
    artifact = compress(source, samples=1).artifact
    assert (artifact.kind, artifact.source) == ("compressed", "net")
    assert artifact.notes[0] == "Said before."


def test_shared_books_save_bytes(shared: Path) -> None:
    path = shared / "models" / "mlperf_tiny" / "pretrainedResnet_quant.tflite"
    alone = compress(path, share_books=False, verify=False)
    together = compress(path, verify=False)
    assert len(together.artifact.data) < len(alone.artifact.data)
    assert any(t.shared_book for t in together.tensors)
    assert not any(t.shared_book for t in alone.tensors)


# --- Limits -------------------------------------------------------------------------------------


def used(flat: FlatModel) -> float:
    return compute_arena(flat, "cortex-m4").used or 0


def test_arena_limit_leaves_tensors_raw(shared: Path) -> None:
    path = shared / "models" / "mlperf_tiny" / "vww_96_int8.tflite"
    free = compress(path, verify=False, arena=used)
    limit = int(free.arena_after) - 1
    bounded = compress(path, verify=False, arena=used, max_arena=limit)
    assert bounded.arena_after <= limit < free.arena_after
    assert len(free.artifact.data) < len(bounded.artifact.data) < bounded.bytes_stripped
    left = [t for t in bounded.tensors if "bytes of arena" in t.reason]
    assert left
    assert any(f"over {limit:,} bytes of arena" in note for note in bounded.notes)


def test_latency_limit_leaves_tensors_raw() -> None:
    def latency(flat: FlatModel) -> float:
        return 10.0 * flat.histogram().get("TFLM_DECODE", 0)

    result = compress(wide(), samples=1, latency=latency, max_latency_us=25)
    assert (result.latency_before_us, result.latency_after_us) == (0, 20)
    assert [t.coding for t in result.tensors].count("raw") == 1


def test_limit_below_the_raw_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="max_arena.*at least"):
        compress(wide(), arena=used, max_arena=10)


def test_limit_without_its_function_is_refused() -> None:
    with pytest.raises(ArgumentError, match="max_arena.*`arena`"):
        compress(wide(), max_arena=10_000)


# --- Refusals -----------------------------------------------------------------------------------


def test_unknown_coding_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="huffman"):
        compress(wide(), codings=["huffmann"])


def test_several_subgraphs_are_refused() -> None:
    model = unpack(wide())
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(UnsupportedModelError, match="2 subgraphs"):
        compress(pack(model))


def test_corrupted_streams_are_detected_by_the_engine() -> None:
    model = unpack(compress(wide(), codings=["lut"], samples=1).artifact.data)
    flat = read_tflite(pack(model))
    index = next(o.inputs[0] for o in flat.operators if o.name == "TFLM_DECODE")
    buffer = model.buffers[model.subgraphs[0].tensors[index].buffer]
    buffer.data = np.array(buffer.data) ^ 0b01
    with pytest.raises(ConversionError, match="not exact"):
        verify_exact(wide(), pack(model))


@pytest.mark.parametrize("coding", ["lut", "prune", "huffman"])
def test_an_encoder_that_loses_values_is_refused(
    monkeypatch: pytest.MonkeyPatch, coding: str
) -> None:
    right = CODINGS[coding]

    def lossy(values: np.ndarray, layout: Layout, root_bits: int | None) -> Encoded | None:
        return right(np.where(values == -20, 0, values).astype(np.int8), layout, root_bits)

    monkeypatch.setitem(CODINGS._entries, coding, lossy)
    with pytest.raises(ConversionError, match="does not decode to its weights"):
        compress(wide(), codings=[coding], verify=False, share_books=False)


def test_other_engines_refuse_the_file() -> None:
    data = compress(wide(), samples=1).artifact.data
    with pytest.raises(EngineError):
        run_engine("litert", data, random(wide()))


# --- The smallest saving that counts ------------------------------------------------------------


def savings(result: CompressedResult) -> dict[int, int]:
    """Coded tensor -> bytes that its code saves."""
    return {t.index: t.bytes_before - t.bytes_after for t in result.tensors if t.coding != "raw"}


def test_small_savings_leave_tensors_raw() -> None:
    everything = compress(wide(), samples=1)
    assert savings(everything).keys() == {0, 1}
    # In the file the Huffman code of tensor 1 saves 2,752 bytes, the table code of tensor 0 more.
    some = compress(wide(), samples=1, min_saving=2753)
    assert savings(some).keys() == {0}
    assert len(some.artifact.data) - len(everything.artifact.data) == 2752
    (raw,) = [tensor for tensor in some.tensors if tensor.coding == "raw"]
    assert raw.reason == "its code would save less than 2.7 KiB"
    assert any(raw.reason in note for note in some.notes)
    assert savings(compress(wide(), samples=1, min_saving=2752)).keys() == {0, 1}


@pytest.mark.parametrize("share_books", [False, True])
def test_what_is_coded_saves_as_much(share_books: bool) -> None:
    counts = []
    for least in (1, 1500, 2000, 2500, 5000):
        result = compress(wide(), samples=1, share_books=share_books, min_saving=least)
        # The file saves less than the code by its tables, and up to 16 bytes more by alignment.
        assert all(saved + 16 >= least for saved in savings(result).values())
        counts.append(len(savings(result)))
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (2, 0)


def test_one_byte_is_what_holds_without_a_limit() -> None:
    assert (
        compress(wide(), samples=1, min_saving=1).artifact == compress(wide(), samples=1).artifact
    )


def test_the_option_reaches_the_format(tmp_path: Path) -> None:
    from edgecompress.pipeline import build, build_request

    path = tmp_path / "net_int8.tflite"
    path.write_bytes(wide())
    made = [
        build(
            build_request(
                path, ["cortex-m4"], file_format="compressed", options={"min_saving": size}
            )
        )
        for size in (None, "1MiB")
    ]
    decoders = [build.main.flat.histogram().get("TFLM_DECODE", 0) for build in made]
    assert decoders[0] > decoders[1] == 0


@pytest.mark.parametrize("least", [0, -5])
def test_a_saving_of_nothing_is_refused(least: int) -> None:
    with pytest.raises(ArgumentError, match="min_saving"):
        compress(wide(), min_saving=least)
