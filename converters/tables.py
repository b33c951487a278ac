"""Functions of one value as tables of the 256 int8 codes.

An activation that no integer kernel computes (exponential, SELU, softplus, mish, the absolute
value, ...), or that a target lacks (GELU), is a function of one number: of 256 codes in int8. Its
operators become three that every runtime has, and its values are rounded once:

    CAST to int32, ADD 128, GATHER from a table of 256 codes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.converters.portable.base import Graph, activation
from edgecompress.core.errors import few
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

_CODES = np.arange(-128, 128)
_Function = Callable[..., np.ndarray]


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in x.ravel()]).reshape(x.shape)


def _gelu(options: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    if options.get("approximate"):
        gate = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        gate = _erf(x / math.sqrt(2))
    result: np.ndarray = 0.5 * x * (1 + gate)
    return result


def _leaky(options: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, x * float(options.get("alpha", 0)))


# Functions of one number that quantized operators of the same name compute.
_KNOWN: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "ELU": lambda _, x: np.where(x >= 0, x, np.expm1(x)),
    "GELU": _gelu,
    "HARD_SWISH": lambda _, x: x * np.clip(x + 3, 0, 6) / 6,
    "LEAKY_RELU": _leaky,
    "LOGISTIC": lambda _, x: 1 / (1 + np.exp(-x)),
    "RELU": lambda _, x: np.maximum(x, 0),
    "RELU6": lambda _, x: np.clip(x, 0, 6),
    "RSQRT": lambda _, x: 1 / np.sqrt(x),
    "TANH": lambda _, x: np.tanh(x),
}
# Of two numbers, one of which may be a constant.
_PAIRS: dict[str, _Function] = {
    "ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "DIV": np.divide,
    "MAXIMUM": np.maximum, "MINIMUM": np.minimum,
    "SQUARED_DIFFERENCE": lambda a, b: np.square(a - b),
    "EQUAL": np.equal, "NOT_EQUAL": np.not_equal,
}  # fmt: skip
# The same for operators that the quantizer leaves in float, or that only some runtimes have.
_UNKNOWN: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "ABS": lambda _, x: np.abs(x),
    "CEIL": lambda _, x: np.ceil(x),
    "COS": lambda _, x: np.cos(x),
    "EXP": lambda _, x: np.exp(x),
    "FLOOR": lambda _, x: np.floor(x),
    "LOG": lambda _, x: np.log(x),
    "LOGICAL_NOT": lambda _, x: np.logical_not(x),
    "NEG": lambda _, x: -x,
    "RELU_N1_TO_1": lambda _, x: np.clip(x, -1, 1),
    "ROUND": lambda _, x: np.rint(x),
    "SIGN": lambda _, x: np.sign(x),
    "SIN": lambda _, x: np.sin(x),
    "SQRT": lambda _, x: np.sqrt(x),
    "SQUARE": lambda _, x: np.square(x),
}
_UNKNOWN_PAIRS: dict[str, _Function] = {
    "GREATER": np.greater, "GREATER_EQUAL": np.greater_equal, "LESS": np.less,
    "LESS_EQUAL": np.less_equal, "LOGICAL_AND": np.logical_and, "LOGICAL_OR": np.logical_or,
    "POW": np.power, "FLOOR_DIV": np.floor_divide, "FLOOR_MOD": np.mod,
}  # fmt: skip
_CHOICES = ("SELECT", "SELECT_V2")
_FUSED: dict[int, Callable[[Any], Any]] = {
    0: lambda x: x,
    1: lambda x: np.maximum(x, 0),
    2: lambda x: np.clip(x, -1, 1),
    3: lambda x: np.clip(x, 0, 6),
}
_ELEMENTWISE = frozenset({*_KNOWN, *_PAIRS, *_UNKNOWN, *_UNKNOWN_PAIRS, *_CHOICES})
# The operators that make a table worthwhile: without one, they stay in float.
_FLOAT = frozenset({*_UNKNOWN, *_UNKNOWN_PAIRS, "SELECT"})


@dataclass(frozen=True)
class Curve:
    """A function of one number that some operators of a float file compute, element by element.

    Attributes:
        source: Number of the tensor that it is a function of.
        output: Number of the tensor that holds it.
        operators: Names of the operators that compute it.
        function: Returns its values for numbers of any shape.
    """

    source: int
    output: int
    operators: tuple[str, ...]
    function: Callable[[np.ndarray], np.ndarray]


def curves(flat: FlatModel, kept: Collection[str] = ()) -> list[Curve]:
    """Returns the functions of one number whose operators have no integer form.

    Args:
        flat: A float file.
        kept: Names of tensors that stay in the file: training rounded there, so no function goes
            beyond. Defaults to none.

    Example:
        >>> [c.operators for c in curves(flat)]    # softplus: log(1 + exp(x))  # doctest: +SKIP
        [('EXP', 'ADD', 'LOG')]
    """
    graph = Graph(flat)
    roots = _roots(graph, kept)
    found = []
    for operator in flat.operators:
        output = operator.outputs[0] if operator.outputs else -1
        root = roots.get(output, output)
        if root == output or flat.tensors[output].type != "FLOAT32":
            continue
        readers = graph.readers(output)
        inner = readers and output not in flat.outputs
        if inner and all(roots.get(r.outputs[0], -1) == root for r in readers if r.outputs):
            continue
        parts = _between(graph, root, output)
        if any(part.code in _FLOAT for part in parts):
            found.append(
                Curve(root, output, tuple(p.name for p in parts), _function(graph, root, output))
            )
    return found


def inner_tensors(flat: FlatModel, kept: Collection[str] = ()) -> set[int]:
    """Returns the tensors of a float file that only exist inside functions that become tables.

    Args:
        flat: The file.
        kept: As for `curves`.
    """
    graph, found = Graph(flat), curves(flat, kept)
    sources = {curve.output: curve.source for curve in found}
    needed: set[int] = set()
    wanted = [*flat.outputs]
    while wanted:
        tensor = wanted.pop()
        if tensor in needed:
            continue
        needed.add(tensor)
        writer = graph.writer(tensor)
        if tensor in sources:
            wanted.append(sources[tensor])
        elif writer is not None:
            wanted += writer.inputs
    inside = {i for c in found for o in _between(graph, c.source, c.output) for i in o.outputs}
    return inside - needed


def _roots(graph: Graph, kept: Collection[str]) -> dict[int, int]:
    """Returns computed tensor -> the only tensor that it is an elementwise function of."""
    roots: dict[int, int] = {}
    for operator in graph.flat.operators:
        if operator.code not in _ELEMENTWISE or activation(operator) not in _FUSED:
            continue
        given = [graph.tensor(i) for i in operator.inputs if i >= 0]
        computed = [tensor for tensor in given if not tensor.is_constant]
        sources = {t.index if t.name in kept else roots.get(t.index, t.index) for t in computed}
        single = all(t.elements == 1 for t in given if t.is_constant)
        shape = graph.flat.output(operator).shape
        if len(sources) != 1 or not single or any(t.shape != shape for t in computed):
            continue
        (source,) = sources
        if graph.tensor(source).type == "FLOAT32":
            roots[operator.outputs[0]] = source
    return roots


def _between(graph: Graph, root: int, output: int) -> list[Operator]:
    """Returns the operators from a tensor to another, in order of execution."""
    found: dict[int, Operator] = {}
    wanted = [output]
    while wanted:
        tensor = wanted.pop()
        writer = None if tensor == root else graph.writer(tensor, *_ELEMENTWISE)
        if writer is not None and writer.index not in found:
            found[writer.index] = writer
            wanted += writer.inputs
    return [found[index] for index in sorted(found)]


def _function(graph: Graph, root: int, output: int) -> Callable[[np.ndarray], np.ndarray]:
    parts = _between(graph, root, output)

    def value(x: np.ndarray) -> np.ndarray:
        known: dict[int, Any] = {root: x}
        with np.errstate(all="ignore"):
            for part in parts:
                given = [_value(graph, known, index) for index in part.inputs]
                known[part.outputs[0]] = _computed(part, given)
        result: np.ndarray = np.broadcast_to(known[output], x.shape)
        return result

    return value


def _value(graph: Graph, known: Mapping[int, Any], index: int) -> Any:
    return known[index] if index in known else graph.tensor(index).values().reshape(-1)[0]


def _computed(operator: Operator, given: list[Any]) -> Any:
    code = operator.code
    if code in _CHOICES:
        return np.where(*given)
    pair = _PAIRS.get(code) or _UNKNOWN_PAIRS.get(code)
    if pair is not None:
        return _FUSED[activation(operator)](pair(*given))
    single = _KNOWN.get(code) or _UNKNOWN[code]
    return single(operator.options, *given)


def table(
    function: Callable[[np.ndarray], np.ndarray], source: Tensor, output: Tensor
) -> np.ndarray:
    """Returns the code of the output for each code of the input, from -128 to 127.

    Args:
        function: Of real numbers.
        source: The int8 tensor of the input.
        output: The int8 tensor of the output.
    """
    real = (_CODES - source.zero_points[0]) * float(source.scales[0])
    with np.errstate(all="ignore"):
        steps = np.asarray(function(real), np.float64) / float(output.scales[0])
    # Where the function has no value (the logarithm of a negative number) no input ever is.
    steps = np.nan_to_num(steps, nan=0.0, posinf=1e9, neginf=-1e9)
    codes = np.clip(np.rint(steps) + output.zero_points[0], -128, 127)
    result: np.ndarray = codes.astype(np.int8)
    return result


def look_up(editor: ModelEditor, source: Tensor, output: Tensor, codes: np.ndarray) -> list[Any]:
    """Returns new operators that look up the codes of a tensor in a table."""
    shape, name = source.shape, output.name
    wide, place = (editor.add(shape, "INT32", name=f"{name}/{part}") for part in ("cast", "place"))
    offset = editor.add((1,), "INT32", np.array([128], np.int32))
    entries = editor.copy(output.index)
    editor.retype(entries, "INT8", np.array([len(codes)], np.int32))
    editor.replace(entries, codes)
    kinds = {"inDataType": "INT8", "outDataType": "INT32"}
    cast = editor.new_operator(editor.operator_code("CAST"), [source.index], [wide])
    editor.set_options(cast, "CastOptions", **{k: editor.type_number(v) for k, v in kinds.items()})
    added = editor.new_operator(editor.operator_code("ADD"), [wide, offset], [place])
    editor.set_options(added, "AddOptions")
    gathered = editor.new_operator(editor.operator_code("GATHER"), [entries, place], [output.index])
    editor.set_options(gathered, "GatherOptions", axis=0)
    return [cast, added, gathered]


def for_targets(artifact: Artifact, refused: Callable[[FlatModel], Collection[int]]) -> Artifact:
    """Returns a quantized file with tables in place of operators that a target cannot run.

    Args:
        artifact: The file.
        refused: Returns the positions of the operators of a file that a target cannot run.

    Returns:
        The file as it is where no table helps.
    """
    flat = artifact.flat
    wanted = refused(flat)
    replaced = [o for o in flat.operators if o.index in wanted and o.code in _KNOWN]
    if not replaced:
        return artifact
    editor = _with_tables(flat, replaced)
    editor.strip(keep_names="computed")
    made = artifact.having(data=editor.pack())
    if len(refused(made.flat)) >= len(wanted):
        return artifact
    names = [f"{flat.output(operator).name} ({operator.name})" for operator in replaced]
    note = f"Computed by a table of all int8 codes, because a target lacks it: {few(names)}."
    return made.having(notes=(*artifact.notes, note))


def _with_tables(flat: FlatModel, operators: Collection[Operator]) -> ModelEditor:
    editor = ModelEditor(flat)
    for operator in operators:
        source, output = flat.tensor(operator, 0), flat.output(operator)
        if source is None or {source.type, output.type} != {"INT8"}:
            continue
        function = _KNOWN[operator.code]
        codes = table(
            lambda x, f=function, o=operator: f(o.options, x),  # type: ignore[misc]
            source,
            output,
        )
        editor.place_instead(
            editor.operators[operator.index], look_up(editor, source, output, codes)
        )
    return editor
