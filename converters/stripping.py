"""Removes parts of an int8 flatbuffer that TensorFlow Lite Micro does not use.

A file of a few kilobytes is mostly tables: each tensor costs about 100 bytes and each operator
about 60, whatever it holds. Stripping these parts changes no output bit in that engine. Other
engines may need some of them, so only files that no other engine runs are stripped of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecompress.converters.portable.reshapes import reads_rows
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

# Their kernels derive the scale of the bias from input and filter.
_PER_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D")
# FULLY_CONNECTED checks that the scale of the bias, 0 without one, and `input scale * filter scale`
# differ by no more than this share of the output's scale; it does not use it otherwise.
_BIAS_SCALE_TOLERANCE = 0.02


def strip_for_tflm(editor: ModelEditor) -> tuple[int, ...]:
    """Removes reshapes, scales and zero points that TensorFlow Lite Micro does not read.

    - FULLY_CONNECTED reads its input as rows of the filter's length, whatever its shape: a RESHAPE
      that only it reads moves nothing.
    - Convolutions and FULLY_CONNECTED compute a bias in units of `input scale * filter scale`; the
      scales and zero points stored with it, 12 bytes for each channel, are not used. (The latter
      checks them, with a tolerance that nearly all layers keep without them.)
    - Scales of a convolution's filter that are the same for all channels: one is enough.
    - Zero points that are the same for all channels: the engine reads one value for all of them,
      where LiteRT asks for one each.

    Args:
        editor: Changes an int8 file with one subgraph that has no other changes yet. Tensors may
            get new numbers.

    Returns:
        The former numbers of the tensors that are left.
    """
    readers = _readers(editor.original)
    moved = _moved(editor.original, readers)
    for tensor in editor.original.tensors:
        _strip_scales(editor, tensor, readers.get(tensor.index, []), moved)
    return _strip_moves(editor, moved)


def _readers(flat: FlatModel) -> dict[int, list[Operator]]:
    readers: dict[int, list[Operator]] = {}
    for operator in flat.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    return readers


def _strip_moves(editor: ModelEditor, moved: Mapping[int, int]) -> tuple[int, ...]:
    """Removes reshapes; returns the former numbers of the tensors that are left."""
    flat = editor.original
    if not moved:
        return tuple(range(len(flat.tensors)))
    for operator, entry in zip(flat.operators, editor.operators, strict=True):
        if operator.outputs and operator.outputs[0] in moved:
            editor.place_instead(entry, [])
        for position, index in enumerate(operator.inputs):
            if index in moved:
                editor.set_input(entry, position, moved[index])
    return editor.drop_unused()


def _strip_scales(
    editor: ModelEditor, tensor: Tensor, readers: Sequence[Operator], moved: Mapping[int, int]
) -> None:
    """Removes the scales that the readers of a tensor ignore, and duplicate ones."""
    index, scales, points = tensor.index, tensor.scales, tensor.zero_points
    if not scales:
        return
    biases = [
        _reads_at(o, index, 2) and _ignores_bias_scale(editor.original, o, moved) for o in readers
    ]
    if biases and all(biases) and tensor.type == "INT32":
        editor.quantize(index, None)
        return
    if len(set(points)) != 1:
        return
    filters = [_reads_at(o, index, 1) and o.code in _PER_CHANNEL for o in readers]
    if filters and all(filters) and len(set(scales)) == 1:
        editor.quantize(index, np.array(scales[:1]))
    editor.set_zero_points(index, np.array(points[:1]))


def _reads_at(operator: Operator, tensor: int, position: int) -> bool:
    """Returns whether an operator reads a tensor at this position and no other."""
    return [p for p, index in enumerate(operator.inputs) if index == tensor] == [position]


def _ignores_bias_scale(flat: FlatModel, operator: Operator, moved: Mapping[int, int]) -> bool:
    if operator.code != "FULLY_CONNECTED":
        return operator.code in _PER_CHANNEL
    ends = (*operator.inputs[:2], operator.outputs[0])
    scales = [flat.tensors[moved.get(i, i)].scales for i in ends]
    if not all(scales):
        return False
    source, weights, output = (float(np.float32(max(scale))) for scale in scales)
    return source * weights < 0.99 * _BIAS_SCALE_TOLERANCE * output


def _moved(flat: FlatModel, readers: Mapping[int, Sequence[Operator]]) -> dict[int, int]:
    """Returns the outputs of unneeded reshapes -> what their readers read instead."""
    moved: dict[int, int] = {}
    for operator in flat.operators:
        output = operator.outputs[0] if operator.outputs else -1
        reading = readers.get(output, [])
        if (
            operator.code == "RESHAPE"
            and output not in flat.outputs
            and reading
            and all(reads_rows(reader, output) for reader in reading)
        ):
            # A reshape of a reshape has already been moved.
            source = operator.inputs[0]
            moved[output] = moved.get(source, source)
    return moved
