"""An artifact is read once, and again only for other bytes."""

from __future__ import annotations

import copy
import pickle
import zlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.core.errors import ModelFileError
from edgecompress.core.files import sha256
from edgecompress.flatbuffers import reading as reader
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.packing import pack
from edgecompress.flatbuffers.reading import read_tflite


def _file() -> bytes:
    """Returns a file of one RELU between two tensors of three floats."""
    tensors = [
        schema.TensorT(shape=np.array([1, 3], np.int32), name=name, buffer=0)
        for name in (b"x", b"y")
    ]
    relu = schema.OperatorT(
        inputs=np.array([0], np.int32), outputs=np.array([1], np.int32), opcodeIndex=0
    )
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=np.array([0], np.int32),
        outputs=np.array([1], np.int32),
        operators=[relu],
    )
    code = schema.BuiltinOperator.RELU
    return pack(
        schema.ModelT(
            version=3,
            operatorCodes=[schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code)],
            subgraphs=[graph],
            buffers=[schema.BufferT()],
        )
    )


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Lists the files that are parsed."""
    found: list[bytes] = []
    parse = reader._parse

    def counted(data: bytes, label: str) -> reader.FlatModel:
        found.append(data)
        return parse(data, label)

    monkeypatch.setattr(reader, "_parse", counted)
    return found


def test_numbers() -> None:
    artifact = Artifact("int8", b"abc" * 100, "m.keras")
    assert artifact.sha256 == sha256(b"abc" * 100)
    assert artifact.compressed_bytes == len(zlib.compress(b"abc" * 100, 9)) < 300
    assert artifact.file_name("kws") == "kws_int8.tflite"


def _renamed(data: bytes) -> bytes:
    editor = ModelEditor(data)
    editor.rename(lambda graph, tensor: f"t{tensor}")
    return editor.pack()


def test_it_is_read_once(parsed: list[bytes]) -> None:
    artifact = Artifact("float32", _file(), "m")
    assert [tensor.name for tensor in artifact.flat.tensors] == ["x", "y"]
    assert artifact.flat is artifact.flat is reader.read_tflite(artifact.flat)
    assert len(parsed) == 1


def test_only_other_bytes_are_read_again(parsed: list[bytes]) -> None:
    artifact = Artifact("float32", _file(), "m")
    flat = artifact.flat
    assert artifact.having(notes=("a note",)).flat is flat
    assert len(parsed) == 1
    other = _renamed(artifact.data)
    changed = artifact.having(data=other)
    assert [tensor.name for tensor in changed.flat.tensors] == ["t0", "t1"]
    assert [tensor.name for tensor in artifact.flat.tensors] == ["x", "y"]


def test_names_of_a_variant(parsed: list[bytes]) -> None:
    plain = Artifact("float32", _file(), "m")
    named = reader.read_tflite(_renamed(plain.data))
    count = len(parsed)
    known = plain.read_as(named)
    assert [tensor.name for tensor in known.flat.tensors] == ["t0", "t1"]
    assert known.flat.data == plain.data == known.data
    assert known == plain
    assert len(parsed) == count


def test_damage_is_reported_when_it_is_read() -> None:
    with pytest.raises(ModelFileError, match="TFL3"):
        _ = Artifact("int8", b"abc" * 100, "m").flat


def _with_constant(values: bytes) -> bytes:
    editor = ModelEditor(_file())
    editor.add((len(values),), "UINT8", values)
    return editor.pack()


def test_pickled_files_are_whole() -> None:
    artifact = Artifact("int8", _file(), "model", notes=("a note",))
    assert artifact.flat.tensors
    for protocol in (4, 5):
        again = pickle.loads(pickle.dumps(artifact, protocol))
        assert again == artifact and type(again.data) is bytes
    assert copy.copy(artifact) == copy.deepcopy(artifact) == artifact
    flat = read_tflite(_with_constant(bytes([0, 1, 2])))
    same = pickle.loads(pickle.dumps(flat))
    assert [bytes(t.raw) for t in same.tensors if t.raw is not None] == [bytes([0, 1, 2])]
