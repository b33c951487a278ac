"""Freezing a TensorFlow function without eight copies of its weights.

TensorFlow's function writes every variable into a protocol buffer, copies the buffer from graph to
graph and parses it again. Here, large variables are stood in for by a few bytes on that way, and
their values are put into the finished graph, which is the same as without. The converter works on
the serialized graph: once that is made, the graph itself is emptied.

The converter itself copies each weight a dozen times. It does nothing to the kernel of a Dense
layer but transpose it, so such a kernel goes through as one repeated number, which the converter
stores once, and its values are put into the finished file. A kernel that has become anything else
there (a scale was multiplied into it) is noticed, and the model is converted again.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.core.freed_memory import give_back

# Bytes of a variable that is worth it, and of one that no buffer may hold.
_LARGE, _LARGEST = 1 << 20, 1 << 31
# Operators that pass a variable's value on.
_PASSING = ("Identity", "ReadVariableOp")
_BIASING = ("BiasAdd", "AddV2", "Add", "Sub", "Identity")
# Operators that the converter multiplies into the kernel before them.
_SCALING = ("Mul", "RealDiv", "Div", "DivNoNan", "FusedBatchNormV3")


@dataclass
class Frozen:
    """What was left out of the graphs that were frozen.

    Attributes:
        kernels: The number that fills a kernel in the converted file -> its values,
            (inputs, outputs).
    """

    kernels: dict[float, np.ndarray] = field(default_factory=dict)

    def completed(self, data: bytes) -> bytes | None:
        """Returns the converted file with the values of all kernels; None if one is not in it.

        Args:
            data: A file whose buffers are after the flatbuffer.
        """
        if not self.kernels:
            return data
        from ai_edge_litert import schema_py_generated as schema

        root = schema.Model.GetRootAs(data, 0)
        left, places = dict(self.kernels), []
        for graph in map(root.Subgraphs, range(root.SubgraphsLength())):
            for tensor in map(graph.Tensors, range(graph.TensorsLength())):
                buffer = root.Buffers(tensor.Buffer())
                start, size = buffer.Offset(), buffer.Size()
                if start <= 1 or size < _LARGE or tensor.Type() != schema.TensorType.FLOAT32:
                    continue
                values = np.frombuffer(data, "<f4", size // 4, start)
                kernel = left.pop(float(values[0]), None)
                if kernel is None:
                    continue
                if [*tensor.ShapeAsNumpy()] != [*kernel.shape[::-1]] or np.ptp(values) != 0:
                    return None
                places.append((start, size, kernel))
        if left:
            return None
        parts: list[Any] = []
        end, view = 0, memoryview(data)
        for start, size, kernel in sorted(places, key=lambda place: place[0]):
            parts += [view[end:start], np.ascontiguousarray(kernel.T).data.cast("B")]
            end = start + size
        return b"".join([*parts, view[end:]])


@contextlib.contextmanager
def lean_freezing(whole: bool = False) -> Iterator[Frozen]:
    """Makes TFLiteConverter freeze functions in this way inside the block.

    The graphs frozen inside are empty after a conversion, and its file has to be `completed`. With
    a TensorFlow of other inner names, it freezes as it always does.

    Args:
        whole: Leave no kernel out of the graph. Defaults to False.
    """
    import tensorflow as tf

    found = Frozen()
    try:
        from tensorflow.core.framework.tensor_pb2 import TensorProto
        from tensorflow.lite.python import convert as conversion
        from tensorflow.python.framework import convert_to_constants, tensor_util

        original = convert_to_constants.convert_variables_to_constants_v2_as_graph
        make = tensor_util.make_tensor_proto
        convert_serialized = conversion.convert
    except (ImportError, AttributeError):
        yield found
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
        for tensor in () if whole else _kernels(graph):
            values = held.get(tensor.tensor_content)
            if values is not None and _is_ordinary(values, held.values()):
                number = _unlike(found.kernels)
                found.kernels[number] = values
                tensor.ClearField("tensor_content")
                tensor.float_val.append(number)
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
        yield found
    finally:
        convert_to_constants.convert_variables_to_constants_v2_as_graph = original
        conversion.convert = convert_serialized


def _kernels(graph: Any) -> list[Any]:
    """Returns the constants that are only the kernel of one MatMul, which nothing scales."""
    readers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers[name.removesuffix(":0")].append((node, position))

    def only_reader(name: str) -> tuple[Any, int] | None:
        while len(readers[name]) == 1 and readers[name][0][0].op in _PASSING:
            name = readers[name][0][0].name
        return readers[name][0] if len(readers[name]) == 1 else None

    def is_scaled(node: Any) -> bool:
        following = [reader for reader, _ in readers[node.name]]
        biased = [reader for reader in following if reader.op in _BIASING]
        return any(n.op in _SCALING for n in following) or any(is_scaled(n) for n in biased)

    found = []
    for node in graph.node:
        if node.op != "Const" or (reader := only_reader(node.name)) is None:
            continue
        product, position = reader
        plain = product.op == "MatMul" and position == 1 and not product.attr["transpose_b"].b
        if plain and not is_scaled(product):
            found.append(node.attr["value"].tensor)
    return found


def _is_ordinary(values: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    """Returns whether the converter has no reason to treat a kernel as a special one.

    It merges equal constants, and knows some that hold one number.
    """
    first = values[0]
    alike = (o for o in others if o is not values and o.shape == values.shape)
    return bool((first != first[0]).any()) and not any(np.array_equal(o[0], first) for o in alike)


def _unlike(taken: Container[float]) -> float:
    """Returns a number of many digits between 1 and 2: no constant of a model is filled with it."""
    while True:
        number = float(np.float32(1 + secrets.randbelow(1 << 23) / (1 << 23)))
        if number != 1 and number not in taken:
            return number
