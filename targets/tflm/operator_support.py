"""What the kernels of TensorFlow Lite Micro run, measured with single-operator models.

`operator_support.csv` is the table: for each operator, the types of its tensors, their rank and its
form, what happened when a model of only that operator was loaded and run. It is written by
`benchmarks/operator_support.py`, which builds the models and tries the engines; nothing in it is
written by hand. Anything not listed is unknown.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import WEIGHTED, Operator
from edgecompress.flatbuffers.tensors import Tensor

TABLE = Path(__file__).with_name("operator_support.csv")
COLUMNS = ("operator", "types", "form", "ranks")

# Columns of the table: a kernel set on a family of cores -> the column that was measured for it.
# CMSIS-NN's refusals are in code that all cores share; only results differ between cores.
KERNEL_COLUMNS = {
    ("reference", "scalar"): "reference",
    ("reference", "dsp"): "reference",
    ("reference", "mve"): "reference",
    ("cmsis-nn", "scalar"): "cmsis-nn dsp",
    ("cmsis-nn", "dsp"): "cmsis-nn dsp",
    ("cmsis-nn", "mve"): "cmsis-nn mve",
}

# Prefixes of a cell; any other text is the engine's refusal.
RUNS, CRASHES, DIFFERS, DEPENDS = "runs", "crashes", "differs", "depends"

# Operators around other subgraphs and variables; they were measured in models with several.
CONTROL = frozenset({"ASSIGN_VARIABLE", "CALL_ONCE", "IF", "READ_VARIABLE", "VAR_HANDLE", "WHILE"})
# Operators for which TensorFlow Lite Micro uses CMSIS-NN's kernels; all others run the reference
# kernels on every core.
CMSIS_NN = frozenset({
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
    "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "MUL", "PAD", "PADV2", "SOFTMAX", "SVDF", "TRANSPOSE",
    "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM",
})  # fmt: skip

# Operators with any number of inputs of one kind.
_VARIADIC = frozenset({"ADD_N", "CONCATENATION", "PACK"})
# Inputs that are shapes, axes, orders or paddings: their rank does not count, and kernels may
# require them to be constant.
_PARAMETERS: dict[str, tuple[int, ...]] = {
    "ARG_MAX": (1,), "ARG_MIN": (1,), "BATCH_TO_SPACE_ND": (1, 2), "BROADCAST_ARGS": (0, 1),
    "BROADCAST_TO": (1,), "CUMSUM": (1,), "DYNAMIC_UPDATE_SLICE": (2,), "EXPAND_DIMS": (1,),
    "FILL": (0,), "MEAN": (1,), "MIRROR_PAD": (1,), "PAD": (1,), "PADV2": (1,), "REDUCE_ALL": (1,),
    "REDUCE_MAX": (1,), "REDUCE_MIN": (1,), "RESHAPE": (1,), "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,), "REVERSE_V2": (1,), "SLICE": (1, 2),
    "SPACE_TO_BATCH_ND": (1, 2), "SPLIT": (0,), "SPLIT_V": (1, 2), "STRIDED_SLICE": (1, 2, 3),
    "SUM": (1,), "TRANSPOSE": (1,), "TRANSPOSE_CONV": (0,),
}  # fmt: skip
# Filters and biases: kernels read them while they prepare.
_LEARNT: dict[str, tuple[int, ...]] = {
    "CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3), "SVDF": (1, 2, 3), "EMBEDDING_LOOKUP": (1,), "PRELU": (1,),
}  # fmt: skip
_ELEMENTWISE = frozenset({
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV",
    "FLOOR_MOD", "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL",
    "LOGICAL_AND", "LOGICAL_OR",
})  # fmt: skip
_LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
# Input, input and recurrent weights of the cell gate, its bias, output state, cell state.
_LSTM_TYPES = (0, 3, 7, 14, 18, 19)
# Options that select a different computation, with their usual values.
_SWITCHES = {
    "ellipsis_mask": 0, "new_axis_mask": 0, "shrink_axis_mask": 0, "offset": False,
    "align_corners": False, "half_pixel_centers": False, "adj_x": False, "adj_y": False,
    "exclusive": False, "reverse": False, "batch_dims": 0, "time_major": False, "mode": 0,
    "asymmetric_quantize_inputs": False, "cache_coefficient": None,
}  # fmt: skip
# Flags of a mask are alike in every position.
_MASKS = frozenset({"ellipsis_mask", "new_axis_mask", "shrink_axis_mask"})
# NONE, RELU, RELU_N1_TO_1, RELU6.
_USUAL_ACTIVATIONS = frozenset({0, 1, 2, 3})


@dataclass(frozen=True)
class Signature:
    """What the support of an operator depends on.

    Attributes:
        operator: Its name.
        types: Types of its inputs, `>`, types of its outputs. `-` is an input left out; `~` marks
            a shape, an axis or a filter that is computed instead of constant.
        form: Keywords for other factors: `per-channel`, `broadcast`, `grouped`, ...; mostly "".
        rank: Largest number of dimensions of its data.
    """

    operator: str
    types: str
    form: str
    rank: int

    def __str__(self) -> str:
        """For messages: types, form and rank."""
        form = f", {self.form}" if self.form else ""
        return f"{self.types}{form}, {self.rank} dimension{'' if self.rank == 1 else 's'}"


@dataclass(frozen=True)
class Support:
    """The outcome of a single-operator model.

    Attributes:
        outcome: `runs`; `refused`; `differs`: it runs and computes different values from another
            engine; `depends`: some models of this signature ran, others did not.
        message: The engine's message if it did not run.
        how: The engine, its version and where it ran.
    """

    outcome: str
    message: str = ""
    how: str = ""


@dataclass(frozen=True)
class Table:
    """The parsed table.

    Attributes:
        engines: Column -> what was tested: engine, version, kernels, day.
        rows: Column -> signature -> outcome.
    """

    engines: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[Signature, Support]] = field(default_factory=dict)


def signature(model: FlatModel, operator: Operator) -> Signature:
    """Returns what the support of an operator depends on.

    Example:
        >>> str(signature(model, model.operators[0]))  # doctest: +SKIP
        'INT8 INT8 INT32 > INT8, per-channel, 4 dimensions'
    """
    inputs = [model.tensor(operator, position) for position in range(len(operator.inputs))]
    outputs = [model.tensors[index] for index in operator.outputs]
    code = operator.code
    if code == _LSTM:
        given = [inputs[p] if p < len(inputs) else None for p in _LSTM_TYPES]
        types = [_type(tensor) for tensor in given]
    else:
        known = _PARAMETERS.get(code, ()) + _LEARNT.get(code, ())
        types = [
            _type(t) + ("~" if t and p in known and not _constant(model, t) else "")
            for p, t in enumerate(inputs)
        ]
        while types and types[-1] == "-":
            types.pop()
    results = dict.fromkeys(_type(tensor) for tensor in outputs)
    if code in _VARIADIC:
        types = list(dict.fromkeys(types))
    parameters = _PARAMETERS.get(code, ())
    data = [t for p, t in enumerate(inputs) if t is not None and p not in parameters] + outputs
    return Signature(
        operator.name,
        f"{' '.join(types)} > {' '.join(results)}",
        " ".join(_form(operator, inputs, outputs)),
        max((len(tensor.shape) for tensor in data), default=0),
    )


def _constant(model: FlatModel, tensor: Tensor) -> bool:
    """Weights that are decoded while the model runs count as constants, as for the kernels."""
    return (
        tensor.is_constant
        or tensor.is_variable
        or not tensor.elements
        or any(tensor.index in o.outputs for o in model.operators if o.name == DECODE)
    )


def _type(tensor: Tensor | None) -> str:
    return "-" if tensor is None else tensor.type


def _form(
    operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]
) -> Iterable[str]:
    code, options = operator.code, operator.options
    # A broken file may leave out any input.
    source, weights = (*inputs, None, None)[:2]
    if code == _LSTM:
        yield f"inputs {sum(1 << p for p, t in enumerate(inputs) if t is not None):x}"
    elif code in WEIGHTED and code != "BATCH_MATMUL" and weights is not None:
        if len(weights.scales) > 1:
            yield "per-channel"
        if any(weights.zero_points):
            yield "asymmetric"
        if code == "CONV_2D" and source is not None and len(weights.shape) == 4:
            channels = source.shape[-1] if source.shape else 0
            if channels != weights.shape[3]:
                yield "grouped"
    if code == "RSQRT" and source is not None and _signed(source):
        yield "signed"
    if code in _ELEMENTWISE and len({t.shape for t in inputs if t is not None}) > 1:
        yield "broadcast"
    for tensor in (*inputs, *outputs):
        if tensor is not None and tensor.type == "INT16" and any(tensor.zero_points):
            yield "int16 zero point"
            break
    for name, usual in _SWITCHES.items():
        value = options.get(name, usual)
        if value is not None and value != usual and not (value in (0, False) and not usual):
            yield name if name in _MASKS or value is True else f"{name}={value}"
    activation = options.get("fused_activation_function", 0)
    if code != _LSTM and activation not in _USUAL_ACTIVATIONS:
        yield f"activation={activation}"


def _signed(tensor: Tensor) -> bool:
    """Returns whether the codes of a quantized tensor can stand for negative numbers."""
    least = {"INT8": -128, "INT16": -32768}.get(tensor.type)
    return least is not None and (tensor.zero_points or (0,))[0] > least


def _support(text: str, how: str) -> Support:
    if text == RUNS:
        return Support(RUNS, "", how)
    for outcome in (DIFFERS, DEPENDS):
        if text.startswith(outcome):
            return Support(outcome, text.removeprefix(f"{DEPENDS}: "), how)
    return Support("refused", text, how)


def read_table(path: Path = TABLE) -> Table:
    """Reads a table of operator support.

    Lines that begin with `#` say what was tested: `# COLUMN: ENGINE`.
    """
    engines: dict[str, str] = {}
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            column, _, text = line[1:].partition(":")
            engines[column.strip()] = text.strip()
        else:
            lines.append(line)
    rows: dict[str, dict[Signature, Support]] = {}
    for row in csv.DictReader(lines):
        low, _, high = row["ranks"].partition("-")
        for column, text in row.items():
            if column in COLUMNS or not text:
                continue
            support = _support(text, engines.get(column, ""))
            for rank in range(int(low), int(high or low) + 1):
                key = Signature(row["operator"], row["types"], row["form"], rank)
                rows.setdefault(column, {})[key] = support
    return Table(engines, rows)


@functools.cache
def _table() -> Table:
    return read_table()


def support(wanted: Signature, kernels: str, family: str) -> Support | None:
    """Returns what was measured for an operator; None if nothing was.

    If this exact signature was not measured, but no model with these types of data and weights ran
    in any form or rank, it counts as refused.

    Args:
        wanted: What `signature` returned.
        kernels: `cmsis-nn` or `reference`.
        family: Family of the core: `scalar`, `dsp` or `mve`.
    """
    column = KERNEL_COLUMNS[kernels, family]
    found = _table().rows.get(column, {}).get(wanted)
    return found or _never_run(column).get((wanted.operator, _leading(wanted)))


def _leading(key: Signature) -> tuple[str, ...]:
    """Returns the types by which a kernel chooses its code: those of the data and the weights."""
    types = [text.rstrip("~") for text in key.types.partition(" >")[0].split()]
    if key.operator == "TRANSPOSE_CONV":
        return tuple(types[1:3])
    return tuple(types[: 2 if key.operator in _LEARNT else 1])


@functools.cache
def _never_run(column: str) -> dict[tuple[str, tuple[str, ...]], Support]:
    groups: dict[tuple[str, tuple[str, ...]], list[Support]] = {}
    for key, found in _table().rows.get(column, {}).items():
        groups.setdefault((key.operator, _leading(key)), []).append(found)
    return {
        group: found[0]
        for group, found in groups.items()
        if all(item.outcome == "refused" for item in found)
    }


def runs_with(wanted: Signature, kernels: str, family: str) -> tuple[str, ...]:
    """Returns the types of data (and weights) with which an operator of this rank runs."""
    rows = _table().rows.get(KERNEL_COLUMNS[kernels, family], {})
    return tuple(
        dict.fromkeys(
            " and ".join(_leading(key))
            for key, found in rows.items()
            if found.outcome == RUNS
            and (key.operator, key.form, key.rank) == (wanted.operator, wanted.form, wanted.rank)
        )
    )
