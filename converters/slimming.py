"""Parts of an int8 flatbuffer that TensorFlow Lite Micro reads for nothing, taken out of the file.

A file of a few kilobytes is mostly tables: each tensor costs about 100 bytes and each operator
about 60, whatever it holds. What goes here changes no output bit in that engine; other engines may
need it, so only files that no other engine runs are slimmed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.core.flatbuffer_edit import drop_unused, pack, unpack

# Their kernels take the scale of the bias from input and filter.
_PER_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D")


def slim(data: bytes) -> bytes:
    """Returns the file without reshapes, scales and zero points that nothing reads.

    - FULLY_CONNECTED reads its input as rows of the filter's length, whatever its shape: a RESHAPE
      that only it reads moves nothing.
    - Convolutions compute a bias in units of `input scale * filter scale`; the scales and zero
      points stored with it, 12 bytes for each channel, are not read.
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
    for operator in graph.operators:
        biased = len(operator.inputs) > 2 and operator.inputs[2] >= 0
        if _name(model, operator) in _PER_CHANNEL and biased:
            bias = graph.tensors[operator.inputs[2]]
            if bias.type == schema.TensorType.INT32:
                bias.quantization = None
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
