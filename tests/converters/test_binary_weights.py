"""Weights in fewer bits: the same values by numpy, the same outputs in the real engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import binary_weights
from edgecompress.converters.binary_weights import (
    Comparison,
    Reference,
    compare,
    convert,
    run_reference,
    verify_stored,
)
from edgecompress.converters.stored_weights import (
    plan_weights,
    store_weights,
)
from edgecompress.converters.weight_formats import WEIGHT_FORMATS, fit_grid
from edgecompress.core.errors import (
    ArgumentError,
    ConversionError,
    EngineError,
    UnknownNameError,
    UnsupportedModelError,
)
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import channel_axis
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor, pack_codes, unpack_codes
from edgecompress.inspection.tflite import inspect_tflite
from edgecompress.targets.operators import unsupported
from edgecompress.targets.profile import load_target

pytestmark = pytest.mark.slow

OLD = "tflite-runtime"
LITERT = ("litert",)
_MOST = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4}  # int8 versions

Codes = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def binary(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-127, 127], shape)


def ternary(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-127, 0, 127], shape)


def four_bit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """What int8 makes of levels -7 to 7: roundings, no whole multiples."""
    levels = rng.integers(-7, 8, shape)
    levels.reshape(-1)[:: max(shape[-1], 1)] = 7
    return np.rint(levels * 127 / 7)


def many(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-127, 128, shape)


def own_magnitudes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Binary units of a layer with one scale: each unit has a code of its own."""
    magnitudes = rng.permutation(np.linspace(40, 127, shape[0]).round())
    return rng.choice([-1, 1], shape) * magnitudes[:, None]


class Net:
    """An int8 model, built operator by operator."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8, 8), seed: int = 0) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.rng = schema, np.random.default_rng(seed)
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph.tensors, self.graph.operators = [], []
        self.last = self.tensor(shape, "INT8", [0.02])
        self.graph.inputs = [self.last]

    def tensor(
        self,
        shape: tuple[int, ...],
        kind: str,
        scales: Any,
        values: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        buffer = 0
        if values is not None:
            data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            self.model.buffers.append(self.schema.BufferT(data=data))
            buffer = len(self.model.buffers) - 1
        scales = np.asarray(scales, np.float32)
        self.graph.tensors.append(
            self.schema.TensorT(
                shape=np.array(shape, np.int32), type=getattr(self.schema.TensorType, kind),
                buffer=buffer, name=f"t{len(self.graph.tensors)}", hasRank=True,
                quantization=self.schema.QuantizationParametersT(
                    scale=scales, zeroPoint=np.zeros(len(scales), np.int64),
                    quantizedDimension=axis,
                ),
            )
        )  # fmt: skip
        return len(self.graph.tensors) - 1

    def layer(
        self, code: str, codes: Codes, shape: tuple[int, ...], per_channel: bool = True,
        bias: bool = True, stride: int = 1,
    ) -> Net:  # fmt: skip
        """Adds CONV_2D, DEPTHWISE_CONV_2D (VALID) or FULLY_CONNECTED with a filter of `shape`."""
        schema, rng = self.schema, self.rng
        axis = 3 if code == "DEPTHWISE_CONV_2D" else 0
        channels = shape[axis]
        source = self.graph.tensors[self.last]
        old = tuple(int(n) for n in source.shape)
        values = codes(rng, shape).astype(np.int8)
        scales = rng.uniform(0.5, 2, channels if per_channel else 1) * 1e-3
        weights = self.tensor(shape, "INT8", scales, values, axis)
        inputs = [self.last, weights]
        summed = source.quantization.scale[0] * scales
        taps = values.size // channels
        if bias:
            numbers = rng.normal(size=channels) * 3000 * np.sqrt(taps)
            inputs.append(self.tensor((channels,), "INT32", summed, numbers.astype(np.int32)))
        if code == "FULLY_CONNECTED":
            new: tuple[int, ...] = (1, channels)
        else:
            size = [(old[i] - shape[i]) // stride + 1 for i in (1, 2)]
            new = (1, *size, channels)
        # Sums of random products spread by this; most then fit into 8 bits.
        spread = float(summed.mean()) * np.abs(values).astype(float).mean() * 74 * np.sqrt(taps)
        self.last = self.tensor(new, "INT8", [spread / 40])
        option = {"FULLY_CONNECTED": "FullyConnectedOptions", "CONV_2D": "Conv2DOptions",
                  "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions"}[code]  # fmt: skip
        options = getattr(schema, f"{option}T")()
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        if code != "FULLY_CONNECTED":
            options.padding, options.strideH = schema.Padding.VALID, stride
            options.strideW = stride
        if code == "DEPTHWISE_CONV_2D":
            options.depthMultiplier = channels // old[3]
        self.operator(code, _MOST[code], inputs, getattr(schema.BuiltinOptions, option), options)
        return self

    def operator(
        self, code: str, version: int, inputs: list[int], kind: int = 0, options: Any = None
    ) -> None:
        number = getattr(self.schema.BuiltinOperator, code)
        self.model.operatorCodes.append(
            self.schema.OperatorCodeT(
                builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=version
            )
        )
        self.graph.operators.append(
            self.schema.OperatorT(
                opcodeIndex=len(self.model.operatorCodes) - 1, inputs=inputs, outputs=[self.last],
                builtinOptionsType=kind, builtinOptions=options,
            )
        )  # fmt: skip

    def data(self) -> bytes:
        self.graph.outputs = [self.last]
        return pack(self.model)


def mixed() -> bytes:
    """Every kind of filter: binary, ternary, 4-bit, any."""
    net = Net()
    net.layer("CONV_2D", binary, (16, 3, 3, 8))
    net.layer("DEPTHWISE_CONV_2D", binary, (1, 3, 3, 96))
    net.layer("CONV_2D", ternary, (32, 1, 1, 96))
    net.layer("CONV_2D", many, (8, 1, 1, 32), stride=2)
    net.layer("FULLY_CONNECTED", own_magnitudes, (64, 32), per_channel=False)
    net.layer("FULLY_CONNECTED", ternary, (33, 64), bias=False)
    net.layer("FULLY_CONNECTED", four_bit, (40, 33))
    return net.data()


FILTERS = (1, 4, 7, 10, 13, 16, 18)
# Format -> bits of each filter of `mixed`.
BITS = {
    "int8": (8, 8, 8, 8, 8, 8, 8),
    "int4": (4, 4, 4, 8, 4, 4, 4),
    "int4-dense": (8, 8, 8, 8, 4, 4, 4),
    "int2": (8, 8, 2, 8, 2, 2, 8),
    "smallest": (1, 1, 2, 8, 1, 2, 8),
}


@pytest.fixture(scope="module")
def compared() -> Comparison:
    available = engine_available(OLD) is None
    return compare(mixed(), samples=4, engines=(*LITERT, *([OLD] if available else [])))


def real(tensor: Tensor, axis: int) -> np.ndarray:
    """Returns the weights in real units, channels first."""
    values = np.moveaxis(tensor.values().astype(float), axis, 0).reshape(tensor.shape[axis], -1)
    return values * np.asarray(tensor.scales)[:, None]


# --- The contract of every format -----------------------------------------------------------------


def test_every_format_is_covered() -> None:
    assert set(BITS) == set(WEIGHT_FORMATS)


@pytest.mark.parametrize("name", list(WEIGHT_FORMATS))
def test_mixed_model(compared: Comparison, name: str) -> None:
    result = compared[name]
    assert compared.failures == {}
    assert result.artifact.kind == f"binary-weights-{name}"
    assert result.bytes == len(result.artifact.data)
    assert tuple(t.index for t in result.tensors) == FILTERS
    assert tuple(t.bits for t in result.tensors) == BITS[name]
    assert [t.name for t in result.tensors] == [f"t{i}" for i in FILTERS]
    for tensor in result.tensors:
        assert bool(tensor.reason) == (tensor.bits == 8)
        assert tensor.bytes_after == -(-tensor.bytes_before * tensor.bits // 8)
    assert result.stored == sum(bits != 8 for bits in BITS[name])
    # Kernels round differently; with the same kernels and codes nothing may differ.
    assert result.steps <= 2
    assert (result.steps == 0) == (result.changed == 0)
    assert result.engines["litert"] == ""
    assert result.bytes < compared.bytes_before or name == "int8"
    if name == "int8":
        assert result.artifact.data == strip(mixed())
    assert result.samples == 4


@pytest.mark.parametrize("name", list(WEIGHT_FORMATS))
def test_equal_inputs_give_equal_bytes(compared: Comparison, name: str) -> None:
    flat = read_tflite(strip(mixed()))
    plan, _ = plan_weights(flat, name)
    # Other codes are not worth it here.
    data = flat.data if name == "int8" else store_weights(flat.data, plan)
    assert data == compared[name].artifact.data


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_stored_weights_have_the_values_they_had(compared: Comparison, name: str) -> None:
    before, after = read_tflite(mixed()), read_tflite(compared[name].artifact.data)
    assert len(before.operators) >= 4
    if name != "int8":
        wanted, types = name.upper(), [tensor.type for tensor in after.tensors]
        assert wanted in types and wanted not in [tensor.type for tensor in before.tensors]
    for operator in before.operators:
        index, axis = operator.inputs[1], channel_axis(operator)
        old, new = before.tensors[index], after.tensors[index]
        if operator.inputs[1] == 18 and name == "int4":
            # Roundings of 4-bit levels: half a code away at most.
            assert np.abs(real(old, axis) - real(new, axis)).max() <= 0.5 * max(old.scales)
            continue
        # 1x1 convolutions become fully-connected.
        expected = real(
            dataclasses.replace(
                old, scales=old.scales * (1 if len(old.scales) > 1 else old.shape[axis])
            ),
            axis,
        )
        found = real(new, 0 if len(new.shape) == 2 else axis)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_looked_up_weights_by_numpy(compared: Comparison) -> None:
    before, after = read_tflite(mixed()), read_tflite(compared["smallest"].artifact.data)
    made = {o.outputs[0]: o for o in after.operators}
    for index, per_byte in ((1, 8), (7, 4), (16, 4)):
        operator = made[index]
        while operator.code != "GATHER":
            operator = made[operator.inputs[0]]
        table = after.tensors[operator.inputs[0]].values()
        packed = after.tensors[made[operator.inputs[1]].inputs[0]].values()
        assert table.shape == (256, per_byte)
        want = before.tensors[index].values()
        assert np.array_equal(table[packed].reshape(-1)[: want.size].reshape(want.shape), want)
        assert after.tensors[index].scales == before.tensors[index].scales
    # 33 x 64 / 4 is a whole number of bytes, and so no filter here has to be cut.
    assert after.histogram()["GATHER"] == 5
    # One table for each number of bits.
    tables = [t.shape for t in after.tensors if t.is_constant and t.shape in ((256, 8), (256, 4))]
    assert sorted(tables) == [(256, 4), (256, 8)]


def test_operators_and_versions(compared: Comparison) -> None:
    int4 = read_tflite(compared["int4"].artifact.data)
    assert [(o.code, o.version) for o in int4.operators] == [
        ("CONV_2D", 7),
        ("DEPTHWISE_CONV_2D", 7),
        ("FULLY_CONNECTED", 10),  # 1x1 of stride 1
        ("CONV_2D", 3),
        ("FULLY_CONNECTED", 10),
        ("FULLY_CONNECTED", 10),
        ("FULLY_CONNECTED", 10),
    ]
    assert int4.operators[2].options["keep_num_dims"]
    int2 = read_tflite(compared["int2"].artifact.data)
    assert [o.version for o in int2.operators] == [3, 3, 14, 3, 14, 14, 4]
    # Codes are as large as they can be, so that the bias is rounded as little as possible.
    assert set(np.unique(int4.tensors[1].values())) == {-7, 7}
    assert set(np.unique(int2.tensors[7].values())) == {-1, 0, 1}


def test_one_pair_of_codes_where_units_had_their_own() -> None:
    net = Net((1, 256)).layer("FULLY_CONNECTED", own_magnitudes, (64, 256), per_channel=False)
    result = convert(net.data(), "int8", samples=4)
    tensor = read_tflite(result.artifact.data).tensors[1]
    assert set(np.unique(tensor.values())) == {-127, 127}
    assert len(tensor.scales) == 64
    before = Artifact("int8", strip(net.data()), "")
    assert result.compressed_bytes < 0.9 * before.compressed_bytes
    assert result.steps <= 1
    assert not any(result.engines.values()) or engine_available(OLD)


def test_runtimes(compared: Comparison) -> None:
    if engine_available(OLD) is not None:
        pytest.skip(f"{OLD} is not installed")
    refused = {name for name in WEIGHT_FORMATS if compared[name].engines[OLD]}
    assert refused == {"int4", "int4-dense", "int2"}
    for name in refused:
        assert any(note.startswith(f"Not for {OLD}: ") for note in compared[name].notes)
    # Convolutions alone in int4 are known to it.
    net = Net((1, 6, 6, 4)).layer("CONV_2D", binary, (16, 3, 3, 4)).data()
    result = convert(net, "int4", samples=2)
    assert result.engines == {"litert": "", OLD: ""}
    assert [t.bits for t in result.tensors] == [4]


def test_notes(compared: Comparison) -> None:
    int4, smallest = compared["int4"].notes, compared["smallest"].notes
    assert int4[0].startswith("6 of 7 filters are stored in a new form: ")
    assert any("2 operators leave LiteRT's fast kernels" in note for note in int4)
    assert any("tensor 18 were roundings" in note for note in int4)
    assert (
        "Left as int8, as its weights are not 15 evenly spaced levels or fewer: tensor 10." in int4
    )
    assert any("5 operators leave LiteRT's fast kernels" in note for note in smallest)
    assert not any("fast kernels" in note for note in compared["int4-dense"].notes)
    assert "Left as int8, as it is neither binary nor ternary: tensor 18." in compared["int2"].notes


def test_inspection_shows_the_bits(compared: Comparison) -> None:
    rows = inspect_tflite(read_tflite(compared["int2"].artifact.data)).rows
    assert [row.bits for row in rows] == [8, 8, 2, 8, 2, 2, 8]
    assert rows[5].weight_bytes == 33 * 64 // 4
    rows = inspect_tflite(read_tflite(compared["int4"].artifact.data)).rows
    assert [row.bits for row in rows] == [4, 4, 4, 8, 4, 4, 4]
    values = read_tflite(mixed()).tensors[16].values()
    assert rows[5].zeros == int((values == 0).sum())
    smallest = inspect_tflite(read_tflite(compared["smallest"].artifact.data))
    weighted = [row for row in smallest.rows if row.weights]
    assert [row.weights for row in weighted] == [1152, 864, 3072, 256, 2048, 2112, 1320]
    # The table of 2,048 bytes counts for the first that uses it.
    assert weighted[4].bits == 1
    assert weighted[0].bits == 8 * (1152 / 8 + 2048) / 1152


def test_microcontrollers(compared: Comparison) -> None:
    board = load_target("nucleo-l4r5zi")
    for name, operator in (("int2", "INT2"), ("smallest", "UINT8"), ("int4", "one scale")):
        problems = unsupported(read_tflite(compared[name].artifact.data), board)
        assert problems and all(operator in problem.reason for problem in problems)


# --- Levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", range(1, 8))
@pytest.mark.parametrize("axis", [0, 2])
def test_levels_are_found_again(most: int, axis: int) -> None:
    rng = np.random.default_rng(most)
    levels = rng.integers(-most, most + 1, (6, 5, 4))
    np.moveaxis(levels, axis, 0)[:, 0, :2] = [most, 1]  # No coarser grid would do.
    steps = rng.integers(1, 127 // most + 1, levels.shape[axis])
    shape = [1, 1, 1]
    shape[axis] = -1
    grid = fit_grid((levels * steps.reshape(shape)).astype(np.int8), axis)
    assert grid is not None and not grid.rounded
    assert np.array_equal(grid.levels, levels)
    assert np.array_equal(grid.steps, steps)
    assert np.array_equal(grid.most, np.full(levels.shape[axis], most))


@pytest.mark.parametrize("most", [2, 3, 5, 6, 7])
def test_rounded_levels_are_found_again(most: int) -> None:
    levels = np.arange(-most, most + 1)[None]
    grid = fit_grid(np.rint(levels * 127 / most).astype(np.int8), 0)
    assert grid is not None and grid.rounded
    assert np.array_equal(grid.levels, levels)
    assert grid.steps[0] == pytest.approx(127 / most)


@pytest.mark.parametrize(
    "codes",
    [
        np.arange(-8, 9) * 15,  # 17 levels
        np.array([127, -127, 62]),  # half of 127 is 63 or 64
        np.array([10, 7, 3]),  # roundings, but of a channel that does not use its range
        np.array([-128, 127]),
    ],
)
def test_other_codes_have_no_levels(codes: np.ndarray) -> None:
    assert fit_grid(codes[None].astype(np.int8), 0) is None


def test_a_channel_of_zeros_has_a_level() -> None:
    grid = fit_grid(np.zeros((3, 4), np.int8), 0)
    assert grid is not None and not grid.levels.any() and grid.steps.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_there_and_back(bits: int) -> None:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    codes = np.random.default_rng(0).integers(low, high + 1, 23)
    packed = pack_codes(codes, bits)
    assert len(packed) == -(-23 * bits // 8)
    assert np.array_equal(unpack_codes(packed, bits)[:23], codes)
    first = packed[0] & ((1 << bits) - 1)
    assert first == codes[0] % (1 << bits)  # Lowest bits first.


# --- Odd sizes, layers of their own ---------------------------------------------------------------


@pytest.mark.parametrize(("codes", "bits"), [(binary, 1), (ternary, 2), (four_bit, 4)])
def test_tables_of_sizes_that_fill_no_byte(codes: Codes, bits: int) -> None:
    data = Net((1, 61)).layer("FULLY_CONNECTED", codes, (63, 61)).data()
    result = convert(data, "smallest", samples=4, engines=LITERT)
    assert [t.bits for t in result.tensors] == [bits]
    assert read_tflite(result.artifact.data).histogram().get("SLICE", 0) == 1
    assert result.bytes < len(strip(data))


def test_models_trained_in_keras() -> None:
    keras = pytest.importorskip("keras")
    from edgecompress.converters import float32, int8

    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            keras.layers.Conv2D(24, 3, activation="relu"),
            keras.layers.Conv2D(48, 1, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            # XNOR-Net's form: signs times one factor for each filter.
            scale = np.abs(kernel).mean(axis=tuple(range(kernel.ndim - 1)))
            layer.kernel.assign(np.where(kernel >= 0, scale, -scale))
            layer.bias.assign(rng.normal(size=layer.bias.shape) * 0.1)
    x = rng.normal(size=(64, 6, 6, 4)).astype(np.float32)
    artifact = int8.convert(float32.convert(model), calibration=[x])
    expected = np.argmax(model.predict(x, verbose=0), -1)
    for name in ("int4", "int2", "smallest"):
        result = convert(artifact, name, samples=2, engines=LITERT)
        assert result.artifact.source == artifact.source
        assert result.artifact.notes[: len(artifact.notes)] == artifact.notes
        scale, point = _input_scale(read_tflite(result.artifact.data))
        codes = np.clip(np.rint(x / scale) + point, -128, 127).astype(np.int8)
        found = np.argmax(run_engine("litert", result.artifact.data, [codes]).outputs[0], -1)
        assert (found == expected).mean() >= 0.9
    assert result.bytes < 0.6 * len(artifact.data)


def _input_scale(flat: FlatModel) -> tuple[float, int]:
    tensor = flat.tensors[flat.inputs[0]]
    return tensor.scales[0], tensor.zero_points[0]


# --- What stays as it is --------------------------------------------------------------------------


def changed(change: Callable[[Any, Any], None]) -> bytes:
    net = Net((1, 32)).layer("FULLY_CONNECTED", binary, (48, 32))
    net.layer("FULLY_CONNECTED", binary, (48, 48))
    net.layer("FULLY_CONNECTED", binary, (48, 48))
    model = unpack(net.data())
    change(model, model.subgraphs[0])
    return pack(model)


def share_filter(model: Any, graph: Any) -> None:
    graph.operators[2].inputs = [graph.operators[2].inputs[0], *graph.operators[1].inputs[1:]]


def share_bias(model: Any, graph: Any) -> None:
    last = graph.operators[2]
    last.inputs = [*last.inputs[:2], graph.operators[1].inputs[2]]


def shift(model: Any, graph: Any) -> None:
    quantization = graph.tensors[graph.operators[1].inputs[1]].quantization
    quantization.zeroPoint = np.ones(48, np.int64)


def huge_bias(model: Any, graph: Any) -> None:
    tensor = graph.tensors[graph.operators[1].inputs[2]]
    values = np.full(48, 1 << 28, np.int32)
    model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (share_filter, "int4", "it has several readers"),
        (share_bias, "int4", "its bias has several readers"),
        (shift, "int4", "it is not symmetric and dense"),
        (lambda model, graph: None, "smallest", ""),
        (share_bias, "smallest", ""),  # Codes and scales stay.
    ],
)
def test_what_cannot_change_is_named(
    change: Callable[[Any, Any], None], name: str, reason: str
) -> None:
    _, reasons = plan_weights(read_tflite(changed(change)), name)
    assert reasons.get(4, "") == reason
    assert 1 not in reasons


def test_a_bias_that_would_overflow_keeps_its_codes() -> None:
    def small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.choice([-1, 1], shape) * np.arange(1, shape[0] + 1)[:, None]

    net = Net((1, 32)).layer("FULLY_CONNECTED", small, (48, 32), per_channel=False)
    model = unpack(net.data())
    bias = model.subgraphs[0].tensors[2]
    values = np.full(48, 1 << 28, np.int32)
    model.buffers[bias.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    _, reasons = plan_weights(read_tflite(pack(model)), "int8")
    assert reasons == {1: "its bias would not fit 32 bits"}


def test_small_filters_get_no_table() -> None:
    data = Net((1, 16)).layer("FULLY_CONNECTED", binary, (128, 16)).data()
    result = convert(data, "smallest", samples=2, engines=LITERT)
    assert "more bytes than the weights" in result.tensors[0].reason
    assert result.artifact.data == strip(data)
    assert result.notes[0].startswith("No filter changes")
    assert (result.steps, result.changed) == (0, 0)


def test_a_file_that_would_not_be_smaller_stays() -> None:
    data = Net((1, 4)).layer("FULLY_CONNECTED", binary, (2, 4), per_channel=False).data()
    result = convert(data, "int2", samples=2, engines=LITERT)
    assert result.tensors[0].reason == "the file would hardly get smaller, if at all"
    assert result.artifact.data == strip(data)


# --- The failing direction ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense() -> bytes:
    net = Net((1, 64)).layer("FULLY_CONNECTED", binary, (64, 64))
    return net.layer("FULLY_CONNECTED", ternary, (64, 64)).data()


@pytest.fixture(scope="module")
def reference(dense: bytes) -> Reference:
    return run_reference(dense, samples=4)


def damaged(data: bytes, find: Callable[[Tensor], bool], change: Any) -> bytes:
    """Returns the file with the constants that `find` chooses changed."""
    flat, model = read_tflite(data), unpack(data)
    found = [t for t in flat.tensors if t.is_constant and find(t)]
    assert found
    for tensor in found:
        values = change(np.frombuffer(tensor.raw or b"", np.uint8).copy())
        model.buffers[model.subgraphs[0].tensors[tensor.index].buffer].data = values
    return pack(model)


@pytest.mark.parametrize(
    ("name", "find"),
    [
        ("smallest", lambda t: t.type == "UINT8"),
        ("smallest", lambda t: t.type == "INT8" and t.shape[0] == 256),
        ("int4", lambda t: t.type == "INT4"),
        ("int2", lambda t: t.type == "INT2"),
        ("int4", lambda t: t.type == "INT32" and t.shape == (64,)),
    ],
)
def test_wrong_codes_tables_and_biases_are_caught(
    reference: Reference, name: str, find: Callable[[Tensor], bool]
) -> None:
    plan, _ = plan_weights(reference.flat, name)
    data = store_weights(reference.flat.data, plan)
    wrong = damaged(data, find, lambda values: values[::-1].copy())
    with pytest.raises(ConversionError, match="stored incorrectly"):
        verify_stored(reference, wrong, plan)


def test_wrong_scales_are_caught(reference: Reference) -> None:
    plan, _ = plan_weights(reference.flat, "int4")
    wrong = {
        index: dataclasses.replace(stored, steps=np.asarray(stored.steps) * 1.1)
        for index, stored in plan.items()
    }
    data = store_weights(reference.flat.data, wrong)
    with pytest.raises(ConversionError, match="Outputs differ from the int8 file's by up to"):
        verify_stored(reference, data, wrong)


def test_a_stricter_limit(dense: bytes) -> None:
    with pytest.raises(ConversionError, match="more than 0. Keep int8, or allow it with max_steps"):
        convert(dense, "int2", max_steps=0, engines=LITERT)
    found = compare(dense, ["int8", "int2"], max_steps=0, engines=LITERT)
    assert list(found.failures) == ["int2"]
    assert [result.format for result in found.results] == ["int8"]


def test_an_engine_that_computes_something_else_is_named(
    dense: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(name: str, model: bytes, inputs: Any, **more: Any) -> Any:
        run = run_engine("litert", model, inputs, **more)
        if name == OLD and "GATHER" in read_tflite(model).histogram():
            return dataclasses.replace(run, outputs=tuple(o // 2 for o in run.outputs))
        return run

    monkeypatch.setattr(binary_weights, "run_engine", other)
    result = convert(dense, "smallest", samples=2)
    assert "loads it but computes different outputs" in result.engines[OLD]


def test_an_engine_that_is_missing_is_named(dense: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, model: bytes, inputs: Any, **more: Any) -> Any:
        if name == OLD:
            raise EngineError("tflite-runtime is not installed")
        return run_engine(name, model, inputs, **more)

    monkeypatch.setattr(binary_weights, "run_engine", missing)
    assert "not installed" in convert(dense, "int8", samples=2).engines[OLD]


# --- Arguments ------------------------------------------------------------------------------------


def test_latency_is_asked_for_each_file(dense: bytes) -> None:
    seen: list[int] = []

    def latency(flat: FlatModel) -> float:
        seen.append(len(flat.data))
        return float(len(flat.data))

    found = compare(dense, ["int4", "int2"], samples=2, engines=LITERT, latency=latency)
    assert [r.latency_us for r in found.results] == [r.bytes for r in found.results]
    assert found.latency_before_us == found.bytes_before == len(strip(dense))
    assert sorted(seen) == sorted([found.bytes_before, *(r.bytes for r in found.results)])


def test_unknown_format(dense: bytes) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean smallest"):
        convert(dense, "smalest")
    with pytest.raises(UnknownNameError, match="int8"):
        compare(dense, ["int7"])


@pytest.mark.parametrize("steps", [-1, float("nan")])
def test_limits_that_are_none(dense: bytes, steps: float) -> None:
    with pytest.raises(ArgumentError, match="`max_steps` must be 0 or more"):
        convert(dense, max_steps=steps)


def test_other_models_are_refused(dense: bytes) -> None:
    model = unpack(dense)
    for tensor in model.subgraphs[0].tensors:
        tensor.type = 0  # FLOAT32
    with pytest.raises(UnsupportedModelError, match="has no int8 weights"):
        convert(pack(model))
    model = unpack(dense)
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(UnsupportedModelError, match="2 subgraphs"):
        convert(pack(model))


def test_the_source_is_named(dense: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense)
    assert convert(path, samples=1, engines=LITERT).artifact.source == str(path)
    artifact = Artifact("int8", dense, "mine", notes=("Mine.",))
    result = convert(artifact, samples=1, engines=LITERT).artifact
    assert (result.source, result.notes[0]) == ("mine", "Mine.")
