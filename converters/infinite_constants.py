"""Constants of infinity in a converted file: no integer kernel has them.

TensorFlow's converter has a pass for them, which visits every weight as an object of its own and
takes as long as the rest of a conversion of large layers.
"""

from __future__ import annotations

import numpy as np


def without_infinities(data: bytes) -> bytes:
    """Returns a file with the largest float of the same sign in place of infinite constants.

    Args:
        data: A file from the converter; returned as it is if it has none.
    """
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(data, 0)
    found: list[tuple[int, int]] = []
    for graph in map(root.Subgraphs, range(root.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            if tensor.Type() != schema.TensorType.FLOAT32:
                continue
            buffer = root.Buffers(tensor.Buffer())
            start, size = buffer.Offset(), buffer.Size()
            if start <= 1:
                # Values in the flatbuffer itself, not after it.
                field = buffer._tab.Offset(4)
                if not field:
                    continue
                start, size = buffer._tab.Vector(field), buffer.DataLength()
            values = np.frombuffer(data, "<f4", size // 4, start)
            # A sum is finite only if all values are, and takes no memory.
            with np.errstate(all="ignore"):
                suspect = not np.isfinite(values.sum())
            if suspect and np.isinf(values).any():
                found.append((start, size // 4))
    if not found:
        return data
    changed, largest = bytearray(data), np.finfo(np.float32).max
    for start, count in found:
        values = np.frombuffer(changed, "<f4", count, start)
        values[np.isposinf(values)], values[np.isneginf(values)] = largest, -largest
    return bytes(changed)
