"""DECODE operators of TensorFlow Lite Micro in a flatbuffer: inserted, and read back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgecompress.core.errors import ConversionError
from edgecompress.flatbuffers.coding import DECODE, Encoded, Layout, decode
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import Tensor


def layout_of(tensor: Tensor) -> Layout:
    """Returns what a decoder takes over from the tensor that it writes."""
    return Layout(tensor.zero_points, tensor.quantized_dimension)


def insert_decoders(model: bytes | FlatModel, codes: Mapping[int, Encoded]) -> bytes:
    """Returns the file with coded tensors and a DECODE operator before each of their readers.

    A tensor keeps its number, shape and scales and becomes the decoder's output. Each further
    reader gets its own decoder and tensor: a decoded tensor lives for one operator, so that the
    next one may reuse its memory.

    Args:
        model: A .tflite file with one subgraph: bytes, or as read.
        codes: Tensor index -> its code.
    """
    editor = ModelEditor(model)
    editor.complete_operator_codes()
    decoder = editor.new_operator_code(DECODE, custom=True)
    ancillary: dict[bytes, int] = {}
    encoded: dict[int, tuple[int, int]] = {}
    for index, code in sorted(codes.items()):
        if code.ancillary not in ancillary:
            ancillary[code.ancillary] = _constant(editor, code.ancillary)
        encoded[index] = (_constant(editor, code.data), ancillary[code.ancillary])
        editor.replace(index, None)
    taken: set[int] = set()
    for operator, entry in zip(editor.original.operators, editor.operators, strict=True):
        for position, index in enumerate(operator.inputs):
            if index not in encoded:
                continue
            output = index
            if index in taken:
                output = editor.copy(index)
                editor.set_input(entry, position, output)
            taken.add(index)
            editor.place_before(entry, [editor.new_operator(decoder, encoded[index], [output])])
    editor.drop_unused_buffers()
    return editor.pack()


def _constant(editor: ModelEditor, values: bytes) -> int:
    return editor.add([len(values)], "UINT8", values)


def check_codes(flat: FlatModel, weights: Mapping[int, Tensor]) -> None:
    """Decodes every code in the file and compares it with the weights."""
    checked = set()
    for operator in flat.operators:
        if operator.custom_name != DECODE or operator.outputs[0] not in weights:
            continue
        index = operator.outputs[0]
        code, ancillary = (bytes(flat.tensors[i].raw or b"") for i in operator.inputs)
        want = weights[index]
        have = decode(Encoded("", code, ancillary), want.shape, layout_of(flat.tensors[index]))
        if not np.array_equal(have, want.values()):
            raise ConversionError(f"The code of tensor {index} does not decode to its weights.")
        checked.add(index)
    missing = sorted(weights.keys() - checked)
    if missing:
        raise ConversionError(f"Tensors {missing} have no decoder in the file.")
