"""Files whose inner tensors are outputs, so that even a delegate exposes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from edgecompress.flatbuffers.model import FlatModel

# Place of a subgraph's outputs in its table of fields: the third one, after a header of 4 bytes.
_OUTPUTS = 8


def with_outputs(model: FlatModel, tensors: Sequence[int]) -> bytes:
    """Returns the file with further outputs of its first subgraph, after its own ones.

    Only a vector is added at the end of the file: nothing is unpacked, however large the file is.
    Signatures do not name the new outputs.

    Args:
        model: A file with outputs, below 2 GiB.
        tensors: Numbers of tensors; those that are inputs or outputs already are left out.

    Example:
        >>> read_tflite(with_outputs(flat, [3, 4])).outputs  # doctest: +SKIP
        (9, 3, 4)
    """
    from ai_edge_litert import schema_py_generated as schema

    known = {*model.inputs, *model.outputs}
    outputs = [*model.outputs, *(i for i in dict.fromkeys(tensors) if i not in known)]
    data = memoryview(model.data)
    table = schema.Model.GetRootAs(model.data, 0).Subgraphs(0)._tab
    place = table.Pos + table.Offset(_OUTPUTS)
    padding = -len(data) % 4
    # Offsets are relative to where they are stored, and always point forward.
    offset = struct.pack("<I", len(data) + padding - place)
    vector = struct.pack("<I", len(outputs)) + np.array(outputs, "<i4").tobytes()
    return b"".join([data[:place], offset, data[place + 4 :], bytes(padding), vector])
