"""Parts of an int8 flatbuffer that TensorFlow Lite Micro reads for nothing, taken out of the file.

A file of a few kilobytes is mostly tables: each tensor costs about 100 bytes and each operator
about 60, whatever it holds. What goes here changes no output bit in that engine; other engines may
need it, so only files that no other engine runs are slimmed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.flatbuffers.editor import drop_unused, pack, unpack

# Their kernels take the scale of the bias from input and filter.
_PER_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D")
# FULLY_CONNECTED asks that the scale of the bias, 0 without one, and `input scale * filter scale`
# differ by no more than this share of the output's scale; it reads it for nothing else.
_BIAS_SCALE_TOLERANCE = 0.02


def slim(data: bytes) -> bytes:
    """Returns the file without reshapes, scales and zero points that nothing reads.

    - FULLY_CONNECTED reads its input as rows of the filter's length, whatever its shape: a RESHAPE
      that only it reads moves nothing.
    - Convolutions and FULLY_CONNECTED compute a bias in units of `input scale * filter scale`; the
      scales and zero points stored with it, 12 bytes for each channel, are not used. (The latter
      checks them, with a tolerance that nearly all layers keep without them.)
    - Scales of a convolution's filter that are the same for all channels: one serves them all.
    - Zero points that are the same for all channels: the engine reads one value for all of them,
      where LiteRT asks for one each.
    - The flag that a tensor has a known rank tells only scalars from tensors without a shape.

    Args:
        data: An int8 .tflite file with one subgraph. Tensors may get new numbers.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(data)
    graph = model.subgraphs[0]
    _drop_reshapes(model)
    readers: dict[int, list[tuple[Any, int]]] = {}
    for operator in graph.operators:
        for position, index in enumerate(operator.inputs):
            readers.setdefault(int(index), []).append((operator, position))
    for index, tensor in enumerate(graph.tensors):
        uses = readers.get(index, [])
        if not uses or tensor.quantization is None:
            continue
        if all(position == 2 and _ignores_bias_scale(model, o) for o, position in uses):
            if tensor.type == schema.TensorType.INT32:
                tensor.quantization = None
        elif all(position == 1 and _name(model, o) in _PER_CHANNEL for o, position in uses):
            _share_scale(tensor.quantization)
    for tensor in graph.tensors:
        if tensor.shape is not None and len(tensor.shape):
            tensor.hasRank = False
        points = tensor.quantization and tensor.quantization.zeroPoint
        if points is not None and len(set(points)) == 1:
            tensor.quantization.zeroPoint = np.array(points[:1], np.int64)
    return pack(model)


def _name(model: Any, operator: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    entry = model.operatorCodes[operator.opcodeIndex]
    code = max(entry.builtinCode, entry.deprecatedBuiltinCode)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return str(names.get(code, code))


def _ignores_bias_scale(model: Any, operator: Any) -> bool:
    name = _name(model, operator)
    if name != "FULLY_CONNECTED":
        return name in _PER_CHANNEL
    tensors = model.subgraphs[0].tensors
    ends = (*operator.inputs[:2], operator.outputs[0])
    scales = [tensors[i].quantization and tensors[i].quantization.scale for i in ends]
    if any(scale is None or len(scale) == 0 for scale in scales):
        return False
    source, weights, output = (float(np.max(scale)) for scale in scales)
    return source * weights < 0.99 * _BIAS_SCALE_TOLERANCE * output


def _share_scale(quantization: Any) -> None:
    scales, points = quantization.scale, quantization.zeroPoint
    if scales is None or points is None or len(set(scales)) != 1 or len(set(points)) != 1:
        return
    quantization.scale = np.array(scales[:1], np.float32)
    quantization.quantizedDimension = 0


def _drop_reshapes(model: Any) -> None:
    graph = model.subgraphs[0]
    kept: list[Any] = []
    moved: dict[int, int] = {}
    for operator in graph.operators:
        output = int(operator.outputs[0]) if len(operator.outputs) else -1
        readers = [o for o in graph.operators if output in o.inputs]
        if (
            _name(model, operator) == "RESHAPE"
            and output not in graph.outputs
            and readers
            and all(_flattens(model, reader, output) for reader in readers)
        ):
            # A reshape of a reshape has moved before.
            source = int(operator.inputs[0])
            moved[output] = moved.get(source, source)
        else:
            kept.append(operator)
    if not moved:
        return
    for operator in kept:
        operator.inputs = [moved.get(int(i), int(i)) for i in operator.inputs]
    graph.operators = kept
    drop_unused(model)


def _flattens(model: Any, operator: Any, index: int) -> bool:
    """Tells whether an operator reads a tensor as rows, without a look at its shape."""
    options = operator.builtinOptions
    return (
        _name(model, operator) == "FULLY_CONNECTED"
        and operator.inputs[0] == index
        and index not in operator.inputs[1:]
        and not getattr(options, "keepNumDims", False)
    )
