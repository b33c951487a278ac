"""Freezing a TensorFlow function without eight copies of its weights.

TensorFlow's function writes every variable into a protocol buffer, copies the buffer from graph to
graph and parses it again. Here, large variables are stood in for by a few bytes on that way, and
their values are put into the finished graph, which is the same as without. The converter works on
the serialized graph: once that is made, the graph itself is emptied.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgecompress.core.freed_memory import give_back

# Bytes of a variable that is worth it, and of one that no buffer may hold.
_LARGE, _LARGEST = 1 << 20, 1 << 31


@contextlib.contextmanager
def lean_freezing() -> Iterator[None]:
    """Makes TFLiteConverter freeze functions in this way inside the block.

    The graphs frozen inside are empty after a conversion. With a TensorFlow of other inner names,
    it freezes as it always does.
    """
    import tensorflow as tf

    try:
        from tensorflow.core.framework.tensor_pb2 import TensorProto
        from tensorflow.lite.python import convert as conversion
        from tensorflow.python.framework import convert_to_constants, tensor_util

        original = convert_to_constants.convert_variables_to_constants_v2_as_graph
        make = tensor_util.make_tensor_proto
        convert_serialized = conversion.convert
    except (ImportError, AttributeError):
        yield
        return
    graphs: list[Any] = []

    def convert(*arguments: Any, **options: Any) -> Any:
        while graphs:
            graphs.pop().Clear()
        give_back()
        return convert_serialized(*arguments, **options)

    def freeze(function: Any, *arguments: Any, **options: Any) -> Any:
        held: dict[bytes, np.ndarray] = {}

        def stand_in(values: Any, dtype: Any = None, shape: Any = None, **more: Any) -> Any:
            large = isinstance(values, np.ndarray) and _LARGE <= values.nbytes < _LARGEST
            if not large or values.dtype != np.float32:
                return make(values, dtype, shape, **more)
            # No constant of the model can hold it: it is drawn anew, and no array of floats.
            name = secrets.token_bytes(17)
            held[name] = values
            return TensorProto(
                dtype=tf.float32.as_datatype_enum,
                tensor_shape=tf.TensorShape(values.shape).as_proto(),
                tensor_content=name,
            )

        tensor_util.make_tensor_proto = stand_in
        try:
            frozen, graph = original(function, *arguments, **options)
        finally:
            tensor_util.make_tensor_proto = make
        bodies = (inner.node_def for inner in graph.library.function)
        for node in itertools.chain(graph.node, *bodies):
            if node.op == "Const":
                tensor = node.attr["value"].tensor
                if tensor.tensor_content in held:
                    tensor.tensor_content = held[tensor.tensor_content].tobytes()
        graphs.append(graph)
        return frozen, graph

    convert_to_constants.convert_variables_to_constants_v2_as_graph = freeze
    conversion.convert = convert
    try:
        yield
    finally:
        convert_to_constants.convert_variables_to_constants_v2_as_graph = original
        conversion.convert = convert_serialized
