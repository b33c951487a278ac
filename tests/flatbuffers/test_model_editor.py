"""The model editor: each edit does what it says and nothing else; LiteRT runs the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers import packing
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite

W = np.array([1.0, 2.0, 3.0], np.float32)
X = np.array([[0.5, -1.0, 4.0]], np.float32)


@pytest.fixture
def data() -> bytes:
    """y = (x + w) * w, z = x - w; z is not an output: tensors x, w, sum, y, z."""
    from ai_edge_litert import schema_py_generated as s

    def tensor(name: str, buffer: int) -> Any:
        return s.TensorT(shape=np.int32([3]), type=s.TensorType.FLOAT32, buffer=buffer, name=name)

    def operator(code: int, inputs: list[int], output: int) -> Any:
        return s.OperatorT(opcodeIndex=code, inputs=np.int32(inputs), outputs=np.int32([output]))

    graph = s.SubGraphT(
        tensors=[tensor("x", 0), tensor("w", 1), tensor("sum", 0), tensor("y", 0), tensor("z", 0)],
        inputs=np.int32([0]), outputs=np.int32([3]),
        operators=[operator(0, [0, 1], 2), operator(1, [2, 1], 3), operator(2, [0, 1], 4)],
    )  # fmt: skip
    numbers = s.BuiltinOperator
    codes = [
        s.OperatorCodeT(builtinCode=n, deprecatedBuiltinCode=n, version=1)
        for n in (numbers.ADD, numbers.MUL, numbers.SUB)
    ]
    tree = s.ModelT(
        version=3, operatorCodes=codes, subgraphs=[graph],
        buffers=[s.BufferT(), s.BufferT(data=W.view(np.uint8))],
        signatureDefs=[s.SignatureDefT(signatureKey="serving_default")],
    )  # fmt: skip
    return pack(tree)


def output(data: bytes) -> np.ndarray:
    return run_engine("litert", data, [X]).outputs[0][0]


def test_no_edit_is_the_same_file(data: bytes) -> None:
    editor = ModelEditor(data)
    assert editor.pack() == data == editor.pack()
    np.testing.assert_array_equal(output(data), (X[0] + W) * W)


def test_it_parses_a_file_once_and_one_that_was_read_not_at_all(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecompress.flatbuffers import reading

    parsed: list[int] = []
    read = reading._read

    def counted(content: bytes) -> FlatModel:
        parsed.append(len(content))
        return read(content)

    monkeypatch.setattr(reading, "_read", counted)
    ModelEditor(data).pack()
    assert len(parsed) == 1
    flat = read_tflite(data)
    assert ModelEditor(flat).original is flat
    assert len(parsed) == 2


def test_many_edits_pack_once(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Any] = []
    finish = packing._Builder.Finish
    monkeypatch.setattr(
        packing._Builder, "Finish", lambda b, *a, **k: (packed.append(b), finish(b, *a, **k))[1]
    )
    editor = ModelEditor(data)
    editor.replace(1, 2 * W)
    editor.rename(lambda graph, index: str(index))
    editor.strip(keep_names="all")
    editor.drop_unused()
    assert not packed
    editor.pack()
    assert len(packed) == 1


def test_other_values_reach_every_reader(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.replace(1, 2 * W)
    np.testing.assert_array_equal(output(editor.pack()), (X[0] + 2 * W) * 2 * W)
    assert output(data).tolist() == ((X[0] + W) * W).tolist()


def test_an_input_of_its_own_leaves_other_readers_alone(data: bytes) -> None:
    editor = ModelEditor(data)
    tensor = editor.own_input(editor.operators[1], 1)
    assert tensor == 5
    editor.replace(tensor, 10 * W)
    np.testing.assert_array_equal(output(editor.pack()), (X[0] + W) * 10 * W)
    # The last of several readers keeps the tensor itself.
    editor.own_input(editor.operators[0], 1)
    assert editor.own_input(editor.operators[2], 1) == 1


def test_a_copy_has_scales_of_its_own(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.quantize(1, np.array([0.5]))
    copied = editor.copy(1)
    editor.quantize(copied, np.array([0.25, 0.5, 1.0]), 0)
    editor.set_zero_points(copied, np.array([7]))
    editor.retype(copied, "INT8")
    flat = read_tflite(editor.pack())
    assert (flat.tensors[1].scales, flat.tensors[1].zero_points) == ((0.5,), (0,))
    assert flat.tensors[copied].scales == (0.25, 0.5, 1.0)
    assert flat.tensors[copied].zero_points == (7, 7, 7)
    assert flat.tensors[copied].shared_zero_point
    assert (flat.tensors[1].type, flat.tensors[copied].type) == ("FLOAT32", "INT8")
    editor.quantize(1, None)
    editor.type_as(1, copied)
    flat = read_tflite(editor.pack())
    assert (flat.tensors[1].type, flat.tensors[1].scales) == ("INT8", (0.25, 0.5, 1.0))


def test_operators_are_placed_before_and_instead(data: bytes) -> None:
    editor = ModelEditor(data)
    neg, relu = editor.operator_code("NEG"), editor.operator_code("RELU")
    turned, cut = editor.add((3,), "FLOAT32"), editor.add((3,), "FLOAT32")
    editor.place_before(editor.operators[1], [editor.new_operator(neg, [2], [turned])])
    editor.place_before(editor.operators[1], [editor.new_operator(relu, [turned], [cut])])
    editor.set_input(editor.operators[1], 0, cut)
    editor.place_instead(editor.operators[2], [])
    flat = read_tflite(editor.pack())
    assert [o.code for o in flat.operators] == ["ADD", "NEG", "RELU", "MUL"]
    np.testing.assert_array_equal(output(flat.data), np.maximum(-(X[0] + W), 0) * W)


def test_an_operator_becomes_another(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.set_code(editor.operators[0], "SUB", 1)
    editor.set_options(editor.operators[0], "SubOptions", fusedActivationFunction=1)
    editor.copy_options(editor.operators[1], editor.operators[0])
    flat = read_tflite(editor.pack())
    assert [o.code for o in flat.operators] == ["SUB", "MUL", "SUB"]
    assert flat.operators[0].options["fused_activation_function"] == 1
    np.testing.assert_array_equal(output(flat.data), np.maximum(X[0] - W, 0) * W)


def test_codes_are_shared_unless_asked_otherwise(data: bytes) -> None:
    editor = ModelEditor(data)
    assert editor.operator_code("MUL") == 1
    assert editor.operator_code("MUL", 2) == editor.operator_code("MUL", 2) == 3
    assert editor.new_operator_code("MUL", 2) == 4
    editor.set_code(editor.operators[1], "MUL", 2, shared=False)
    code = editor.new_operator_code("Mine", custom=True)
    editor.place_instead(editor.operators[2], [editor.new_operator(code, [0, -1], [4], b"\x07")])
    flat = read_tflite(editor.pack())
    assert [(o.name, o.version) for o in flat.operators] == [("ADD", 1), ("MUL", 2), ("Mine", 1)]
    assert flat.operators[2].inputs == (0, -1)
    assert flat.operators[2].has_custom_options
    assert len(unpack(flat).operatorCodes) == 7


def test_codes_above_127_keep_the_marker_of_the_old_field(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.set_code(editor.operators[0], "GELU", 1)
    entry = unpack(editor.pack()).operatorCodes[3]
    assert (entry.builtinCode, entry.deprecatedBuiltinCode) == (150, 127)


def test_old_files_get_both_fields() -> None:
    from ai_edge_litert import schema_py_generated as s

    graph = s.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[])
    tree = s.ModelT(
        subgraphs=[graph], buffers=[s.BufferT()],
        operatorCodes=[s.OperatorCodeT(builtinCode=0, deprecatedBuiltinCode=18)],
    )  # fmt: skip
    editor = ModelEditor(pack(tree))
    editor.complete_operator_codes()
    assert unpack(editor.pack()).operatorCodes[0].builtinCode == 18


def test_what_nothing_reads_is_dropped_and_numbers_follow(data: bytes) -> None:
    editor = ModelEditor(data)
    left = editor.add((2,), "INT32", np.array([1, 2], np.int32))
    assert editor.drop_unused() == (0, 1, 2, 3)
    flat = read_tflite(editor.pack())
    assert [t.name for t in flat.tensors] == ["x", "w", "sum", "y"]
    assert [o.code for o in flat.operators] == ["ADD", "MUL"]
    assert len(unpack(flat).operatorCodes) == 2
    assert unpack(flat).signatureDefs is None
    assert left == 5
    np.testing.assert_array_equal(output(flat.data), output(data))
    # Edits go on from there.
    editor.set_code(editor.operators[1], "SUB", 1)
    np.testing.assert_array_equal(output(editor.pack()), X[0])


def test_unused_buffers_leave_the_file(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.replace(1, 5 * W)
    assert W.tobytes() in editor.pack()
    editor.drop_unused_buffers()
    smaller = editor.pack()
    assert W.tobytes() not in smaller
    np.testing.assert_array_equal(output(smaller), (X[0] + 5 * W) * 5 * W)


def test_computed_from_now_on(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.replace(1, None)
    assert not read_tflite(editor.pack()).tensors[1].is_constant
    editor.place_before(
        editor.operators[0],
        [editor.new_operator(editor.operator_code("NEG"), [0], [1])],
    )
    np.testing.assert_array_equal(output(editor.pack()), np.zeros(3))


def test_stripping_counts_a_constant_without_bytes_as_computed(data: bytes) -> None:
    editor = ModelEditor(data)
    editor.add((0,), "FLOAT32", b"")
    editor.rename(lambda graph, index: f"t{index}")
    editor.strip(keep_names="computed")
    flat = read_tflite(editor.pack())
    assert [t.name for t in flat.tensors] == ["t0", "", "t2", "t3", "t4", "t5"]


def test_rank_flags_and_signatures(data: bytes) -> None:
    editor = ModelEditor(data)
    made = [editor.add((3,), "FLOAT32", has_rank=True), editor.add((), "FLOAT32", has_rank=True)]
    editor.strip()
    tensors = unpack(editor.pack()).subgraphs[0].tensors
    assert [bool(tensors[i].hasRank) for i in made] == [False, True]
    assert unpack(editor.pack()).signatureDefs is None
    editor.set_signatures()
    assert unpack(editor.pack()).signatureDefs == []
