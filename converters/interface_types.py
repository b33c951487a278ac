"""The types in which an application writes a file's inputs and reads its outputs.

A conversion is added at the interface; what is inside stays as it is. uint8 codes are int8 codes
plus 128, so nothing is lost. int16 has 256 times finer steps than the int8 inside, whose range it
covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import ALL_OTHERS
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.tensors import Tensor

TYPES = ("int8", "uint8", "int16", "float32")
# Type inside the file -> types outside that a conversion reaches.
_REACHED = {"INT8": TYPES, "INT16": ("int16", "float32"), "FLOAT32": ("float32",)}
_LARGEST_INT16 = 32767

Wanted = str | Mapping[str, str] | None


def with_interface(artifact: Artifact, inputs: Wanted, outputs: Wanted) -> Artifact:
    """Returns a file whose inputs and outputs have other types.

    Args:
        artifact: The file, with the names of its tensors.
        inputs: A type of `TYPES` for all inputs, or by name or position, `"*"` for all others. None
            to leave them.
        outputs: The same for the outputs.

    Raises:
        ArgumentError: a name is unknown, or the type cannot be converted to the one inside.

    Example:
        >>> with_interface(made, "uint8", {"scores": "float32"})  # doctest: +SKIP
    """
    flat = artifact.flat
    ends = [
        *_chosen("--input-type", inputs, [flat.tensors[i] for i in flat.inputs]),
        *_chosen("--output-type", outputs, [flat.tensors[i] for i in flat.outputs]),
    ]
    if not ends:
        return artifact
    editor = ModelEditor(flat)
    names = {tensor.index: tensor.name for tensor in flat.tensors}
    for argument, tensor, kind in ends:
        if argument == "--input-type":
            inner = _convert_input(editor, tensor, kind)
        else:
            inner = _convert_output(editor, tensor, kind)
        names[inner] = f"{tensor.name}_{tensor.type.lower()}"
    editor.rename(lambda graph, index: names[index])
    said = [
        f"{'Input' if argument == '--input-type' else 'Output'} {tensor.name} is {kind}; inside, "
        f"the file computes in {tensor.type.lower()}."
        for argument, tensor, kind in ends
    ]
    return artifact.having(data=editor.pack(), notes=(*artifact.notes, *said))


def _chosen(
    argument: str, wanted: Wanted, tensors: Sequence[Tensor]
) -> list[tuple[str, Tensor, str]]:
    """Returns the tensors that get another type."""
    if wanted is None:
        return []
    by_name = {ALL_OTHERS: wanted} if isinstance(wanted, str) else dict(wanted)
    keys = {tensor.name: str(position) for position, tensor in enumerate(tensors)}
    known = {*keys, *keys.values(), ALL_OTHERS}
    for name in by_name:
        if name not in known:
            raise ArgumentError(argument, f"name one of {', '.join(keys)}, or its position", name)
    found = []
    for name, position in keys.items():
        kind = by_name.get(name) or by_name.get(position) or by_name.get(ALL_OTHERS)
        tensor = tensors[int(position)]
        if kind is None or kind == tensor.type.lower():
            continue
        reached = _REACHED.get(tensor.type, (tensor.type.lower(),))
        if kind not in reached:
            raise ArgumentError(
                argument,
                f"be {' or '.join(reached)} for {name}, which is {tensor.type.lower()} in this "
                "precision",
                kind,
            )
        found.append((argument, tensor, kind))
    return found


def _retype(editor: ModelEditor, tensor: Tensor, kind: str) -> None:
    """Gives the outer tensor its type, scale and zero point."""
    editor.retype(tensor.index, kind.upper())
    if kind == "float32":
        editor.quantize(tensor.index, None)
        return
    scale, point = (tensor.scales or (1.0,))[0], (tensor.zero_points or (0,))[0]
    if kind == "uint8":
        editor.set_zero_points(tensor.index, np.array([point + 128]))
    else:
        reach = max(127 - point, 128 + point) * scale
        editor.quantize(tensor.index, np.array([reach / _LARGEST_INT16]))


def _operator(editor: ModelEditor, source: int, target: int, kinds: tuple[str, str]) -> Any:
    """Returns the operator that converts from the first type to the second."""
    if kinds[1] == "FLOAT32":
        code = editor.operator_code("DEQUANTIZE", 3 if kinds[0] == "INT16" else 2)
        made = editor.new_operator(code, [source], [target])
        editor.set_options(made, "DequantizeOptions")
        return made
    code = editor.operator_code("QUANTIZE", 2 if "INT16" in kinds else 1)
    made = editor.new_operator(code, [source], [target])
    editor.set_options(made, "QuantizeOptions")
    return made


def _convert_input(editor: ModelEditor, tensor: Tensor, kind: str) -> int:
    inner = _moved(editor, tensor)
    _retype(editor, tensor, kind)
    made = _operator(editor, tensor.index, inner, (kind.upper(), tensor.type))
    editor.place_before(editor.operators[0], [made])
    return inner


def _convert_output(editor: ModelEditor, tensor: Tensor, kind: str) -> int:
    inner = _moved(editor, tensor)
    for operator in editor.operators:
        operator.outputs = [inner if i == tensor.index else int(i) for i in operator.outputs]
    _retype(editor, tensor, kind)
    made = _operator(editor, inner, tensor.index, (tensor.type, kind.upper()))
    last = editor.operators[-1]
    editor.place_after(last, [made])
    return inner


def _moved(editor: ModelEditor, tensor: Tensor) -> int:
    """Returns a copy of a tensor that all operators read in its place."""
    inner = editor.copy(tensor.index)
    for operator in editor.operators:
        for position, index in enumerate(_indices(operator.inputs)):
            if index == tensor.index:
                editor.set_input(operator, position, inner)
    return inner


def _indices(numbers: Iterable[Any] | None) -> list[int]:
    return [] if numbers is None else [int(i) for i in numbers]
