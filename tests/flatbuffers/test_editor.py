"""Editing .tflite files: alignment, sharing, stripping; engines judge that nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

from edgecompress.core.errors import ModelFileError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.editor import ModelEditor, strip
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite

REFERENCES = ["ad01_int8", "pretrainedResnet_quant", "kws_ref_model", "vww_96_int8"]


def two_biases() -> Any:
    """A tree with two equal per-channel constants, odd-sized buffers, metadata and a signature."""
    from ai_edge_litert import schema_py_generated as s

    def quantization() -> Any:
        return s.QuantizationParametersT(
            scale=np.float32([0.5, 0.25, 0.125]), zeroPoint=np.zeros(3, np.int64),
            min=np.float32([-1]), max=np.float32([1]),
        )  # fmt: skip

    def tensor(name: str, buffer: int) -> Any:
        return s.TensorT(
            shape=np.int32([3]), type=s.TensorType.INT32, buffer=buffer, name=name,
            quantization=quantization(),
        )  # fmt: skip

    values = np.int32([1, -2, 3]).view(np.uint8)
    graph = s.SubGraphT(
        tensors=[tensor("x", 0), tensor("bias", 1), tensor("same bias", 2), tensor("sum", 3)],
        inputs=np.int32([0]), outputs=np.int32([3]), name="main",
        operators=[
            s.OperatorT(opcodeIndex=0, inputs=np.int32([1, 2]), outputs=np.int32([3])),
        ],
    )  # fmt: skip
    return s.ModelT(
        version=3, operatorCodes=[s.OperatorCodeT(builtinCode=0)], subgraphs=[graph],
        buffers=[s.BufferT(), s.BufferT(data=values), s.BufferT(data=values.copy()), s.BufferT(),
                 s.BufferT(data=np.arange(7, dtype=np.uint8))],
        metadata=[s.MetadataT(name="min_runtime_version", buffer=4)], description="made by hand",
        signatureDefs=[s.SignatureDefT(signatureKey="serving_default")],
    )  # fmt: skip


def buffer_offsets(data: bytes) -> list[int]:
    from ai_edge_litert import schema_py_generated as s

    root = s.Model.GetRootAs(data, 0)
    tables = [root.Buffers(i)._tab for i in range(root.BuffersLength())]
    return [tab.Vector(tab.Offset(4)) for tab in tables if tab.Offset(4)]


def test_pack_aligns_and_shares_buffers() -> None:
    data = pack(two_biases())
    offsets = buffer_offsets(data)
    assert len(offsets) == 2  # The two biases are one buffer; the metadata is the other.
    assert all(offset % 16 == 0 for offset in offsets)
    tensors = read_tflite(data).tensors
    assert tensors[1].values().tolist() == tensors[2].values().tolist() == [1, -2, 3]
    assert not tensors[3].is_constant
    assert read_tflite(data).metadata["min_runtime_version"] == bytes(range(7))


def test_equal_trees_give_equal_bytes_and_round_trip() -> None:
    data = pack(two_biases())
    assert pack(two_biases()) == data
    assert pack(unpack(data)) == data


def test_equal_vectors_are_stored_once() -> None:
    def distinct(model: Any) -> Any:
        for number, tensor in enumerate(model.subgraphs[0].tensors):
            tensor.quantization.zeroPoint = np.int64([number, 1, 2])
        return model

    # Three of four vectors of 3 zero points, 8 bytes each, and their lengths.
    assert len(pack(distinct(two_biases()))) - len(pack(two_biases())) >= 3 * 3 * 8


def test_equal_tables_are_stored_once_and_the_tree_stays() -> None:
    from ai_edge_litert import schema_py_generated as s

    def quantization_tables(model: Any) -> list[int]:
        graph = s.Model.GetRootAs(pack(model), 0).Subgraphs(0)
        return [graph.Tensors(i).Quantization()._tab.Pos for i in range(graph.TensorsLength())]

    equal = two_biases()
    assert len(set(quantization_tables(equal))) == 1
    different = two_biases()
    different.subgraphs[0].tensors[1].quantization.scale[0] = 0.75
    assert len(set(quantization_tables(different))) == 2
    # A second look at the tree, after it was packed, sees the objects that were there.
    assert equal.subgraphs[0].tensors[1].quantization.scale[0] == 0.5
    assert pack(equal) == pack(two_biases())


def test_buffers_behind_the_flatbuffer_are_taken_in() -> None:
    from ai_edge_litert import schema_py_generated as s

    start = 4096
    model = two_biases()
    model.buffers[1] = s.BufferT(offset=start, size=12)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    data = bytes(builder.Output()).ljust(start, b"\0") + np.int32([7, 8, 9]).tobytes()
    assert read_tflite(data).tensors[1].values().tolist() == [7, 8, 9]
    assert read_tflite(pack(unpack(data))).tensors[1].values().tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "keep, names",
    [
        ("interface", ["x", "", "", "sum"]),
        ("computed", ["x", "", "", "sum"]),
        ("all", ["x", "bias", "same bias", "sum"]),
    ],
)
def test_strip_keeps_what_runs(keep: Any, names: list[str]) -> None:
    original = pack(two_biases())
    model = read_tflite(strip(original, keep_names=keep))
    before = read_tflite(original)
    assert [t.name for t in model.tensors] == names
    assert not model.metadata and not model.description
    assert unpack(model.data).signatureDefs is None
    for now, then in zip(model.tensors, before.tensors, strict=True):
        assert (now.shape, now.type, now.raw) == (then.shape, then.type, then.raw)
        assert (now.scales, now.zero_points) == (then.scales, then.zero_points)
    assert model.operators == before.operators
    assert pack(two_biases()) == original


def test_strip_keeps_names_of_computed_tensors_inside() -> None:
    model = two_biases()
    model.subgraphs[0].outputs = np.int32([0])
    assert [t.name for t in read_tflite(strip(pack(model), "computed")).tensors][3] == "sum"
    assert [t.name for t in read_tflite(strip(pack(model))).tensors][3] == ""


def test_rename() -> None:
    editor = ModelEditor(pack(two_biases()))
    editor.rename(lambda graph, index: f"{graph}:{index}")
    assert [t.name for t in read_tflite(editor.pack()).tensors] == ["0:0", "0:1", "0:2", "0:3"]


def test_damaged_files_are_refused() -> None:
    data = pack(two_biases())
    for broken in (data[: len(data) // 2], b"text", b"\0\0\0\0TFL3" + bytes(40)):
        with pytest.raises(ModelFileError):
            strip(broken)


@pytest.mark.parametrize("name", REFERENCES)
def test_stripped_reference_models_shrink_and_hold_the_same(shared: Path, name: str) -> None:
    data = (shared / "models" / "mlperf_tiny" / f"{name}.tflite").read_bytes()
    small = strip(data)
    before, after = read_tflite(data), read_tflite(small)
    assert len(small) < len(data)
    assert strip(small) == small
    assert all(offset % 16 == 0 for offset in buffer_offsets(small))
    assert after.operators == before.operators
    for now, then in zip(after.tensors, before.tensors, strict=True):
        assert (now.shape, now.type, now.raw) == (then.shape, then.type, then.raw)
        assert (now.scales, now.zero_points) == (then.scales, then.zero_points)


@pytest.mark.parametrize("engine", ["litert", "tflm", "tflite-runtime"], indirect=True)
def test_stripped_model_computes_the_same(shared: Path, engine: str) -> None:
    data = (shared / "models" / "mlperf_tiny" / "pretrainedResnet_quant.tflite").read_bytes()
    x = np.random.default_rng(0).integers(-128, 128, (3, 32, 32, 3), np.int8)
    before = run_engine(engine, data, [x]).outputs
    after = run_engine(engine, strip(data), [x]).outputs
    np.testing.assert_array_equal(before[0], after[0])
