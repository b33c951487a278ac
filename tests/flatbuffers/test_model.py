"""Reading .tflite files: what is read, and that damage of any kind stays one readable error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import EdgeCompressError, ModelFileError
from edgecompress.flatbuffers.packing import pack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor


def tiny_model(**changes: Any) -> bytes:
    """A FULLY_CONNECTED of 3 inputs and 2 outputs, built by hand from the schema."""
    from ai_edge_litert import schema_py_generated as s

    weights = np.arange(6, dtype=np.float32)
    scale = s.QuantizationParametersT(
        scale=np.float32([0.5]), zeroPoint=np.int64([3]), min=np.float32([-1]), max=np.float32([1])
    )
    tensors = [
        s.TensorT(shape=np.int32([1, 3]), type=s.TensorType.INT8, buffer=1, name="in",
                  quantization=scale),
        s.TensorT(shape=np.int32([2, 3]), type=s.TensorType.FLOAT32, buffer=2, name="weights"),
        s.TensorT(shape=np.int32([1, 2]), type=s.TensorType.FLOAT32, buffer=3, name="out"),
    ]  # fmt: skip
    operator = s.OperatorT(
        opcodeIndex=0, inputs=np.int32([0, 1, -1]), outputs=np.int32([2]),
        builtinOptionsType=s.BuiltinOptions.FullyConnectedOptions,
        builtinOptions=s.FullyConnectedOptionsT(fusedActivationFunction=1),
    )  # fmt: skip
    graph = s.SubGraphT(
        tensors=tensors, inputs=np.int32([0]), outputs=np.int32([2]), operators=[operator],
        name="main",
    )  # fmt: skip
    model = s.ModelT(
        version=3, operatorCodes=[s.OperatorCodeT(builtinCode=9, deprecatedBuiltinCode=9)],
        subgraphs=[graph], description="by hand",
        buffers=[s.BufferT(), s.BufferT(), s.BufferT(data=weights.view(np.uint8)), s.BufferT(),
                 s.BufferT(data=np.frombuffer(b"1.0", np.uint8))],
        metadata=[s.MetadataT(name="key", buffer=4)],
    )  # fmt: skip
    for name, change in changes.items():
        change(model, s) if callable(change) else setattr(model, name, change)
    return pack(model)


def test_reads_what_was_written() -> None:
    model = read_tflite(tiny_model())
    assert model.histogram() == {"FULLY_CONNECTED": 1}
    assert model.macs() == 6
    assert model.parameters() == 6
    assert (model.inputs, model.outputs) == ((0,), (2,))
    assert model.metadata == {"key": b"1.0"}
    assert model.description == "by hand"
    tensor = model.tensors[0]
    assert (tensor.type, tensor.scales, tensor.zero_points) == ("INT8", (0.5,), (3,))
    assert not tensor.is_constant
    np.testing.assert_array_equal(model.tensors[1].values(), [[0, 1, 2], [3, 4, 5]])
    assert model.tensor(model.operators[0], 2) is None
    assert model.operators[0].options["fused_activation_function"] == 1


@pytest.mark.parametrize(
    "bits, packed, expected",
    [(4, [0x21, 0xF8], [1, 2, -8, -1]), (2, [0b11100100], [0, 1, -2, -1])],
)
def test_unpacks_narrow_integers(bits: int, packed: list[int], expected: list[int]) -> None:
    def narrow(model: Any, s: Any) -> None:
        tensor = model.subgraphs[0].tensors[1]
        tensor.type = getattr(s.TensorType, f"INT{bits}")
        tensor.shape = np.int32([1, 4])
        model.buffers[2].data = np.uint8(packed)

    tensor = read_tflite(tiny_model(change=narrow)).tensors[1]
    assert tensor.values().tolist() == [expected]
    assert tensor.bytes == len(packed)


@pytest.mark.parametrize(
    "name, macs",
    [
        ("ad01_int8", 264_192),
        ("pretrainedResnet_quant", 12_501_632),
        ("kws_ref_model", 2_656_768),
        ("vww_96_int8", 7_489_664),
    ],
)
def test_macs_of_published_models(shared: Path, name: str, macs: int) -> None:
    assert read_tflite(shared / "models" / "mlperf_tiny" / f"{name}.tflite").macs() == macs


def _refused(data: bytes) -> bool:
    """Whether reading ends in ModelFileError; any other exception fails the test."""
    try:
        model = read_tflite(data)
        for tensor in model.tensors:
            if tensor.is_constant:
                tensor.values()
        model.macs()
    except ModelFileError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_truncated_files_are_refused() -> None:
    data = tiny_model()
    cuts = [data[:n] for n in range(len(data))]
    assert all(_refused(cut) for cut in cuts[:64])
    assert sum(_refused(cut) for cut in cuts) > len(data) // 2


@pytest.mark.parametrize("seed", range(8))
def test_mutated_files_end_in_one_error_at_most(seed: int) -> None:
    random = np.random.default_rng(seed)
    original = np.frombuffer(tiny_model(), np.uint8)
    refused = 0
    for _ in range(50):
        data = original.copy()
        where = random.integers(8, len(data), random.integers(1, 6))
        data[where] = random.integers(0, 256, len(where))
        refused += _refused(data.tobytes())
    assert refused > 5  # The mutations do reach the tables.


def _shape(model: Any, s: Any) -> None:
    model.subgraphs[0].tensors[0].shape = np.int32([1, -3])


def _buffer(model: Any, s: Any) -> None:
    model.buffers[2].data = np.zeros(8, np.uint8)


def _operator(model: Any, s: Any) -> None:
    model.subgraphs[0].operators[0].inputs = np.int32([7, 1, -1])


def _code(model: Any, s: Any) -> None:
    model.subgraphs[0].operators[0].opcodeIndex = 4


def _graphs(model: Any, s: Any) -> None:
    model.subgraphs = []


def _huge(model: Any, s: Any) -> None:
    model.subgraphs[0].tensors[0].shape = np.int32([2**31 - 1] * 3)


def _rank(model: Any, s: Any) -> None:
    model.subgraphs[0].tensors[1].shape = np.int32([6])


def _vector(model: Any, s: Any) -> None:
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 126
    model.subgraphs[0].operators[0].builtinOptionsType = 0
    _rank(model, s)


def _no_output(model: Any, s: Any) -> None:
    model.subgraphs[0].operators[0].outputs = np.int32([])


def _quantized(scales: list[float], points: list[int], axis: int = 0) -> Callable[..., None]:
    def change(model: Any, s: Any) -> None:
        model.subgraphs[0].tensors[1].quantization = s.QuantizationParametersT(
            scale=np.float32(scales), zeroPoint=np.int64(points), quantizedDimension=axis
        )

    return change


@pytest.mark.parametrize(
    "change, text",
    [
        (_shape, "shape"),
        (_huge, "larger than any memory"),
        (_rank, "operator 0 FULLY_CONNECTED has weights of shape"),
        (
            _vector,
            r"operator 0 BATCH_MATMUL multiplies a tensor of shape \(6,\) instead of a matrix",
        ),
        (_no_output, "operator 0 FULLY_CONNECTED has no output"),
        (_quantized([1, 2, 3], [0, 0, 0]), "has 3 scales along its dimension 0"),
        (_quantized([1, 2], [0, 0], 2), "has 2 scales along its dimension 2"),
        (_quantized([1, 2, 3, 4], [0, 0, 0]), "has 4 scales and 3 zero points"),
        (_quantized([float("nan")], [0]), "a scale that is not a number"),
        (_operator, "names tensors"),
        (_code, "operator code"),
        (_graphs, "no subgraph"),
    ],
)
def test_inconsistent_tables_are_named(change: Callable[..., None], text: str) -> None:
    with pytest.raises(ModelFileError, match=text):
        read_tflite(tiny_model(change=change))


@pytest.mark.parametrize("axis", [0, 3])
def test_a_vector_whose_scales_name_another_axis_is_read(axis: int) -> None:
    def change(model: Any, s: Any) -> None:
        operator, buffers = model.subgraphs[0].operators[0], model.buffers
        bias = s.TensorT(shape=np.int32([2]), type=s.TensorType.INT32, buffer=len(buffers))
        bias.quantization = s.QuantizationParametersT(
            scale=np.float32([1, 2]), zeroPoint=np.int64([0, 0]), quantizedDimension=axis
        )
        buffers.append(s.BufferT(data=np.zeros(8, np.uint8)))
        model.subgraphs[0].tensors.append(bias)
        operator.inputs = np.int32([0, 1, 3])

    bias = read_tflite(tiny_model(change=change)).tensors[3]
    assert (bias.quantized_dimension, bias.stray_axis) == (0, axis != 0)


def test_short_constant_is_named() -> None:
    model = read_tflite(tiny_model(change=_buffer))
    with pytest.raises(ModelFileError, match="fewer than its shape"):
        model.tensors[1].values()


def test_shape_beyond_all_bounds_is_named() -> None:
    tensor = Tensor(3, "w", (0, 1 << 40, 1 << 40), "INT8", b"")
    with pytest.raises(ModelFileError, match="Tensor 3 has the shape"):
        tensor.values()


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "model.tflite"
    text.write_text("no model at all")
    with pytest.raises(ModelFileError, match="TFL3"):
        read_tflite(text)
    with pytest.raises(ModelFileError, match="does not exist"):
        read_tflite(tmp_path / "missing.tflite")
    with pytest.raises(EdgeCompressError):
        read_tflite(tmp_path)
    with pytest.raises(ModelFileError):
        read_tflite(b"")


def _many_subgraphs(count: int, operators: int) -> bytes:
    """A file whose subgraphs are all the same table."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    builder = flatbuffers.Builder()
    s.OperatorStart(builder)
    operator = s.OperatorEnd(builder)
    s.SubGraphStartOperatorsVector(builder, operators)
    for _ in range(operators):
        builder.PrependUOffsetTRelative(operator)
    vector = builder.EndVector()
    s.SubGraphStart(builder)
    s.SubGraphAddOperators(builder, vector)
    graph = s.SubGraphEnd(builder)
    s.ModelStartSubgraphsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    s.OperatorCodeStart(builder)
    code = s.OperatorCodeEnd(builder)
    s.ModelStartOperatorCodesVector(builder, 1)
    builder.PrependUOffsetTRelative(code)
    codes = builder.EndVector()
    s.ModelStart(builder)
    s.ModelAddSubgraphs(builder, graphs)
    s.ModelAddOperatorCodes(builder, codes)
    builder.Finish(s.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def test_every_subgraph_is_read_and_shared_tables_count_each_time() -> None:
    model = read_tflite(_many_subgraphs(3, 4))
    assert [len(graph.operators) for graph in (model, *model.others)] == [4, 4, 4]
    assert model.histogram() == {"ADD": 12}
    # 40 kB that stand for a hundred million operators.
    with pytest.raises(ModelFileError, match="a table is longer than the file"):
        read_tflite(_many_subgraphs(5_000, 5_000))


def test_a_buffer_that_many_tensors_name_is_copied_once() -> None:
    def share(model: Any, s: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors += [copy.copy(graph.tensors[1]) for _ in range(9)]

    tensors = read_tflite(tiny_model(change=share)).tensors
    assert len({id(t.raw) for t in tensors if t.raw is not None}) == 1
