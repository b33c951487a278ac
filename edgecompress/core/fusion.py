"""Where an int8 model rounds its activations: the boundaries of fused operators.

The converter folds BatchNormalization into the convolution before it and fuses ReLU and ReLU6 into
the operator before them, so Conv+BN+ReLU rounds once, after the ReLU. Training and conversion must
agree on these points, called taps, or the trained ranges would not match the file's tensors. This
module finds them in a Keras model; `core.fusion_rules` defines what each layer becomes.

A tap is named after its layer (`conv_relu`), `<layer>/pre_activation` for the linear output of a
layer whose own activation cannot be fused (softmax, sigmoid, ...), `<layer>/<part>` for a part of a
layer that is several operators (`core.composites`), `<layer>/depthwise` for the first half of a
separable convolution, and `input:0`, `input:1`, ... for the model's inputs. A layer that is used
again has taps for each use: `<layer>/use_2`, ...
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgecompress.core.composites import COMPOSITES
from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.fusion_rules import (
    AFFINE,
    AVERAGE,
    BINARY,
    IDENTITY,
    INSIDE,
    JOIN,
    KEEPS_RANGE,
    MAXPOOL,
    MEAN,
    OWN_RANGE,
    RECURRENT,
    RELU,
    RELU6,
    TABLE,
    UNROLLED,
    UNSUPPORTED,
    VIEW,
    Step,
    composite,
    lower,
    only_moves,
    recorded,
)
from edgecompress.core.keras_graph import GraphNode, are_sequences, follow_graph, functional_of
from edgecompress.core.layer_kinds import WEIGHTED, KernelAxes, int8_kernels
from edgecompress.core.lstm_layers import cell_name, lstm_parts
from edgecompress.core.value_tables import tabulate


@dataclass(frozen=True)
class Tap:
    """A point where the int8 model rounds activations.

    Attributes:
        name: The tap's name, unique in the model.
        layer: Name of the layer it belongs to; "" for a model input.
        fixed: (minimum, maximum) if the operator prescribes its range, else None.
        same_as: Tap whose range this one must have, else None. An earlier tap for average
            pooling, which rounds to its input's range; a later one for a tensor read only by a
            concatenation or maximum, where that tap does the rounding.
        is_output: Whether its values are an output of the model.
        relu: Maximum of the ReLU whose output it rounds, infinity or 6; None behind other operators
            and where the range is that of another tap.
        lowered: How much further down than its values the file's range reaches, for masked scores.
        table: Attribute of its layer whose values it holds; their scale is its own. "" if none.
    """

    name: str
    layer: str = ""
    fixed: tuple[float, float] | None = None
    same_as: str | None = None
    is_output: bool = False
    relu: float | None = None
    lowered: float = 0.0
    table: str = ""


@dataclass(frozen=True)
class FusedOperator:
    """One operator of the int8 file: what it reads and writes once everything is fused.

    Attributes:
        kind: Of `core.fusion_rules`.
        layer: Name of the layer it computes.
        inputs: The taps that its inputs were rounded at, one for each.
        output: The tap that its output is rounded at, behind what is fused into it.
        batch_norms: The uses of BatchNormalization layers folded into it, in order.
        kernel: Name of the inner kernel that it reads; "" if it reads none.
    """

    kind: str
    layer: str
    inputs: tuple[str, ...]
    output: str
    batch_norms: tuple[str, ...] = ()
    kernel: str = ""


@dataclass(frozen=True)
class FusedGraph:
    """A model as the int8 converter sees it.

    Attributes:
        taps: In the order of the graph, inputs first.
        weights: Layer name -> its kernels: each output channel has its own scale.
        batch_norms: Uses of BatchNormalization layers that fold into the layer before.
        notes: What training cannot simulate, one sentence each with the layer and the reason.
        operators: The operators that round, `<layer>` or `<layer>/<part>` -> operator. Those are
            left out whose inputs or outputs are not all rounded at taps, and those that absorb a
            Rescaling.
        cells: Ranges of the cell states of LSTM layers that are one operator: `<layer>/cell`, of a
            Bidirectional `<layer>/forward/cell` and `<layer>/backward/cell` -> the layer.
        composites: The uses of layers that are computed operator by operator.
        pooled: Max pooling layers that alone read the values of a tap: layer -> tap.
    """

    taps: tuple[Tap, ...]
    weights: Mapping[str, tuple[KernelAxes, ...]] = field(default_factory=dict)
    batch_norms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    operators: Mapping[str, FusedOperator] = field(default_factory=dict)
    cells: Mapping[str, str] = field(default_factory=dict)
    composites: frozenset[str] = frozenset()
    pooled: Mapping[str, str] = field(default_factory=dict)

    def unrolled_notes(self) -> list[str]:
        """Returns the notes on LSTM layers for files in which they are not one operator."""
        kinds = {
            layer: "LSTM" if name == cell_name(layer) else "Bidirectional"
            for name, layer in self.cells.items()
        }
        return [f"not simulated: {name} ({kind}): {UNROLLED}." for name, kind in kinds.items()]


def use_name(layer: str, number: int) -> str:
    """Returns what the uses of a layer are called: by its name, the second `<layer>/use_2`, ..."""
    return layer if number == 1 else f"{layer}/use_{number}"


def layer_of_use(name: str) -> str:
    """Returns the layer of a use, tap or operator."""
    return name.partition("/")[0]


@dataclass(eq=False)
class _Operator:
    """One operator with the values it reads and writes (numbers), and how it is fused."""

    layer: Any
    use: str
    step: Step
    inputs: tuple[int, ...]
    output: int
    last: bool
    same_channels: bool
    rank: int
    dtype: str
    same_shape: bool
    absorbed: bool = False  # fused into the operator before it
    folded_forward: bool = False  # Rescaling that the next convolution's weights absorb

    @property
    def name(self) -> str:
        return f"{self.use}/{self.step.suffix}" if self.step.suffix else self.use


class _Graph:
    """The operators of a model, including nested models, in execution order."""

    def __init__(self, model: Any, own_means: Collection[str] = ()) -> None:
        self.operators: list[_Operator] = []
        self.notes: list[str] = []
        self.composites: set[str] = set()
        self._uses: Counter[int] = Counter()
        self._before: dict[int, list[_Operator]] = {}
        self._count = 0
        functional = functional_of(model)
        self.inputs = [self._new() for _ in functional.inputs]
        self.input_dtypes = [str(tensor.dtype) for tensor in functional.inputs]
        self.outputs = follow_graph(model, self.inputs, self._add)
        self._tabulate()
        self._refuse_ambiguous()
        self.producer = {operator.output: operator for operator in self.operators}
        self.readers = Counter(v for o in self.operators for v in o.inputs)
        self.readers.update(self.outputs)
        self.readers_of: dict[int, list[_Operator]] = {}
        for operator in self.operators:
            for value in dict.fromkeys(operator.inputs):
                self.readers_of.setdefault(value, []).append(operator)
        self._average(own_means)

    def _average(self, own_means: Collection[str]) -> None:
        """Has means of values that are hardly below zero computed as averages: they need no range.

        The mean of a map around zero is much smaller than the map, and would get few codes.
        """
        above: set[int] = set()
        for operator in self.operators:
            kept = operator.step.kind != MEAN or operator.name in own_means
            if not kept and operator.inputs[0] in above:
                operator.step = replace(operator.step, kind=AVERAGE)
            kind = operator.step.kind
            if kind == JOIN or (kind == BINARY and type(operator.layer).__name__ != "Subtract"):
                stays = all(value in above for value in operator.inputs)
            else:
                stays = kind in (*KEEPS_RANGE, AVERAGE) and operator.inputs[0] in above
            if operator.step.above or stays:
                above.add(operator.output)

    def _new(self) -> int:
        self._count += 1
        return self._count

    def _add(self, node: GraphNode, read: list[int]) -> list[int]:
        layer, outputs = node.operation, node.outputs
        self._uses[id(layer)] += 1
        if len(outputs) != 1 and not only_moves(layer):
            self.notes.append(_not_simulated(layer, "it has several outputs"))
            return [self._new() for _ in outputs]
        use = use_name(layer.name, self._uses[id(layer)])
        shapes = [t.shape for t in (*node.inputs, *outputs)]
        sequences, called = are_sequences(node), (node.args, node.kwargs)
        steps = lower(layer, len(read), node.plain, len(shapes[0]), sequences, *called)
        if steps[0].kind != UNSUPPORTED and composite(layer, *called) is not None:
            self.composites.add(use)
        same = len(shapes[0]) > 0 and shapes[0][-1] == shapes[-1][-1]
        values = list(read)
        for position, step in enumerate(steps):
            offsets = (-1,) if step.reads is None else step.reads
            used = [values[offset] for offset in offsets]
            if position == 0 and step.reads is None:
                used = read
            last = position == len(steps) - 1
            values.append(self._new())
            dtype = str(outputs[0].dtype)
            self.operators.append(
                _Operator(
                    layer,
                    use,
                    step,
                    tuple(used),
                    values[-1],
                    last,
                    same,
                    len(shapes[-1]),
                    dtype,
                    all(shape == shapes[-1] for shape in shapes),
                )
            )
            if step.reason:
                self.notes.append(_not_simulated(layer, step.reason))
        # Further outputs of a layer that only moves values.
        more = [replace(self.operators[-1], output=self._new()) for _ in outputs[1:]]
        self.operators += more
        return [values[-1], *(operator.output for operator in more)]

    def _tabulate(self) -> None:
        """Finds the chains of functions of one number that the file holds as a table."""
        refused = tabulate(self.operators, self.outputs)
        self.notes += [_not_simulated(o.layer, o.step.reason) for o in refused]

    def _refuse_ambiguous(self) -> None:
        for operator in self.operators:
            if operator.step.kind == RECURRENT and self._uses[id(operator.layer)] > 1:
                raise UnsupportedModelError(
                    f"Layer {operator.layer.name!r} is used {self._uses[id(operator.layer)]} times "
                    "in the model's graph: its states would need ranges for each use. Create one "
                    "layer per use."
                )
        layers = {id(o.layer): o.layer for o in self.operators if o.step.kind not in KEEPS_RANGE}
        names = Counter(layer.name for layer in layers.values())
        for name, count in names.items():
            if count > 1:
                raise UnsupportedModelError(
                    f"{count} layers of nested models share the name {name!r}. Give each layer a "
                    "name of its own."
                )

    def split(self, operator: _Operator) -> None:
        """Replaces a normalization that does not fold by a multiplication and an addition."""
        import keras

        given = keras.KerasTensor((None,) * operator.rank)
        steps = recorded(COMPOSITES[AFFINE], operator.layer, (given,), {})
        self.composites.add(operator.use)
        for step in steps[:-1]:
            first = replace(operator, step=step, output=self._new(), last=False)
            self._before.setdefault(id(operator), []).append(first)
            readers = self.readers_of[operator.inputs[0]]
            readers[readers.index(operator)] = first
            self.producer[first.output] = first
            self.readers[first.output] = 1
            self.readers_of[first.output] = [operator]
            operator.inputs = (first.output,)
        operator.step = steps[-1]

    def settle(self) -> None:
        """Puts the operators that `split` made in their places."""
        self.operators = [
            found for o in self.operators for found in (*self._before.get(id(o), ()), o)
        ]

    def before(self, operator: _Operator, transparent: tuple[str, ...]) -> _Operator | None:
        """Returns the operator whose only reader is this one, looking through some kinds."""
        value = operator.inputs[0]
        merged = operator.step.kind in (RELU, RELU6) and self._is_merged(operator)
        while (self.readers[value] == 1 or merged) and value in self.producer:
            merged = False
            found = self.producer[value]
            if found.step.kind not in transparent:
                return found
            if found.step.kind == VIEW and operator.step.kind == AFFINE and not _keeps_axis(found):
                return None
            value = found.inputs[0]
        return None

    def _is_merged(self, operator: _Operator) -> bool:
        """Returns whether all readers of this one's input are equal: the converter merges them."""
        readers = self.readers_of[operator.inputs[0]]
        return len(readers) == self.readers[operator.inputs[0]] and all(
            o.step.kind == operator.step.kind for o in readers
        )

    def after(self, operator: _Operator) -> _Operator | None:
        """Returns the only reader of an operator's output, looking through dropout."""
        value = operator.output
        while self.readers[value] == 1:
            readers = self.readers_of.get(value)
            if not readers:
                return None
            if readers[0].step.kind != IDENTITY:
                return readers[0]
            value = readers[0].output
        return None

    def only_tap(self, operator: _Operator, covering: Mapping[int, str | None]) -> str | None:
        """Returns the tap of a layer's output that no other operator reads; None if there is none.

        Args:
            operator: One whose layer is used once.
            covering: The tap that each value was rounded at.
        """
        value = operator.inputs[0]
        before = self.producer.get(value)
        if before is None or self.readers[value] != 1 or covering[value] != before.use:
            return None
        once = all(self._uses[id(found.layer)] == 1 for found in (before, operator))
        return before.use if once else None

    def root(self, operator: _Operator) -> _Operator:
        """Returns the operator that this one is fused into, or itself."""
        while operator.absorbed and (before := self.before(operator, (VIEW, IDENTITY))):
            operator = before
        return operator


# Maximum of each kind of ReLU.
_MAXIMA = {RELU: math.inf, RELU6: 6.0}


def _not_simulated(layer: Any, reason: str) -> str:
    return f"not simulated: {layer.name} ({type(layer).__name__}): {reason}."


def _keeps_axis(view: _Operator) -> bool:
    """Returns whether a reshape leaves the channel axis alone."""
    return view.same_channels and type(view.layer).__name__ in ("Reshape", "Flatten")


def _absorb(graph: _Graph, operator: _Operator) -> None:
    """Decides whether an operator is fused into the one before it."""
    kind = operator.step.kind
    if kind == AFFINE:
        before = graph.before(operator, (VIEW, IDENTITY))
        channels_last = getattr(operator.layer, "axis", -1) in (-1,) or _last_axis(operator.layer)
        operator.absorbed = (
            before is not None
            and channels_last
            and (before.step.kind == WEIGHTED or (before.step.kind == AFFINE and before.absorbed))
        )
        if not operator.absorbed:
            _fold_forward(graph, operator)
    elif kind in (RELU, RELU6):
        before = graph.before(operator, (VIEW, IDENTITY))
        takes = (WEIGHTED, AFFINE, BINARY, AVERAGE, MAXPOOL)
        operator.absorbed = before is not None and (
            (before.step.kind in takes and not before.folded_forward)
            or (kind == RELU and before.step.kind in (RELU, RELU6))
        )


def _last_axis(layer: Any) -> bool:
    axis, spec = getattr(layer, "axis", None), getattr(layer, "input_spec", None)
    return isinstance(axis, int) and getattr(spec, "ndim", None) == axis + 1


def _fold_forward(graph: _Graph, operator: _Operator) -> None:
    """Folds Rescaling into the weights of the following convolution, or notes what is lost."""
    layer, after = operator.layer, graph.after(operator)
    rescaling = type(layer).__name__ == "Rescaling"
    if rescaling and after is not None and after.step.kind == WEIGHTED:
        convolution = type(after.layer).__name__ in _FOLDS_BEFORE
        # An offset would also have to reach the padded border.
        operator.folded_forward = convolution and (
            layer.offset == 0 or after.layer.padding == "valid"
        )
    if not operator.folded_forward:
        graph.split(operator)
    elif layer.offset != 0:
        graph.notes.append(
            _not_simulated(
                layer,
                "its offset becomes part of the next convolution's bias, computed from weights "
                "before rounding",
            )
        )


# Convolutions that take over a Rescaling before them.
_FOLDS_BEFORE = (
    "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
)  # fmt: skip


def analyse(model: Any, own_means: Collection[str] = ()) -> FusedGraph:
    """Returns the taps, quantized weights and foldable layers of a Keras model.

    Args:
        model: A built Sequential or Functional model; nested models are entered.
        own_means: Taps of means that keep a range of their own in any case. Defaults to none.

    Raises:
        UnsupportedModelError: the model is subclassed, has no input shape yet, or has two layers of
            one name.

    Example:
        >>> [tap.name for tap in analyse(model).taps]    # Conv2D, BatchNormalization, ReLU, Dense
        ...  # doctest: +SKIP
        ['input:0', 're_lu', 'dense/pre_activation', 'dense']
    """
    graph = _Graph(model, own_means)
    for operator in graph.operators:
        _absorb(graph, operator)
    graph.settle()

    taps: list[Tap] = []
    covering: dict[int, str | None] = {}
    for position, (value, dtype) in enumerate(zip(graph.inputs, graph.input_dtypes, strict=True)):
        covering[value] = None
        if "float" in dtype:
            taps.append(Tap(f"input:{position}"))
            covering[value] = taps[-1].name
        elif any(not o.step.table for o in graph.readers_of.get(value, ())):
            graph.notes.append(f"not simulated: input:{position}: it holds {dtype}, not floats.")

    # Values that a fused ReLU or BN reads are inside a fused operator.
    inside = _inside(graph)
    for operator in graph.operators:
        source = covering.get(operator.inputs[0]) if operator.inputs else None
        tap = _tap_of(graph, operator, source)
        if operator.output in inside or operator.step.kind in KEEPS_RANGE or tap is None:
            covering[operator.output] = source
        else:
            taps.append(tap)
            covering[operator.output] = tap.name

    layers = {o.layer.name: o.layer for o in graph.operators if o.step.kind == WEIGHTED}
    return FusedGraph(
        taps=tuple(taps),
        weights={name: found for name, layer in layers.items() if (found := int8_kernels(layer))},
        batch_norms=tuple(
            o.use
            for o in graph.operators
            if o.absorbed and type(o.layer).__name__ == "BatchNormalization"
        ),
        notes=tuple(dict.fromkeys(graph.notes)),
        operators=_fused(graph, covering),
        cells={
            cell_name(part): operator.layer.name
            for operator in graph.operators
            if operator.step.kind == RECURRENT
            for part in lstm_parts(operator.layer)
        },
        composites=frozenset(graph.composites),
        pooled={
            operator.layer.name: name
            for operator in graph.operators
            if operator.step.kind == MAXPOOL and (name := graph.only_tap(operator, covering))
        },
    )


def _fused(graph: _Graph, covering: Mapping[int, str | None]) -> dict[str, FusedOperator]:
    """Returns the operators whose inputs and outputs are all rounded at taps, by name."""
    absorbed: dict[int, list[_Operator]] = {}
    for operator in graph.operators:
        if operator.absorbed:
            absorbed.setdefault(graph.root(operator).output, []).append(operator)
    found = {}
    for operator in graph.operators:
        if operator.absorbed or operator.step.kind in (*KEEPS_RANGE, MEAN, TABLE, INSIDE):
            continue
        chain = absorbed.get(operator.output, [])
        affine = [o for o in chain if o.step.kind == AFFINE]
        reads = [covering.get(value) for value in operator.inputs]
        writes = covering.get((chain[-1] if chain else operator).output)
        scaled = any(
            producer is not None and producer.folded_forward
            for producer in map(graph.producer.get, operator.inputs)
        ) or any(type(o.layer).__name__ != "BatchNormalization" for o in affine)
        if scaled or writes is None or None in reads:
            continue
        found[operator.name] = FusedOperator(
            operator.step.kind,
            operator.layer.name,
            tuple(tap for tap in reads if tap is not None),
            writes,
            tuple(o.use for o in affine),
            operator.step.kernel,
        )
    return found


def _inside(graph: _Graph) -> set[int]:
    """Returns the values between an operator and what is fused into it."""
    inside: set[int] = set()
    for operator in graph.operators:
        if not operator.absorbed:
            continue
        value = operator.inputs[0]
        while True:
            inside.add(value)
            producer = graph.producer[value]
            if producer.step.kind not in (VIEW, IDENTITY):
                break
            value = producer.inputs[0]
    return inside


def _tap_of(graph: _Graph, operator: _Operator, source: str | None) -> Tap | None:
    """Returns the tap on an operator's output, or None if its values are already rounded."""
    name, layer, step = operator.name, operator.layer.name, operator.step
    if "float" not in operator.dtype or operator.folded_forward or step.kind == INSIDE:
        return None
    is_output = operator.output in graph.outputs
    root, after = graph.root(operator), graph.after(operator)
    if root.step.kind == MAXPOOL:
        return None  # a fused ReLU: pooling keeps its input's range
    if root.step.kind == AVERAGE:
        return Tap(name, layer, same_as=source, is_output=is_output)
    # Convolutions of one dimension end in a reshape, which must keep their range.
    reshaped = root.step.kind == WEIGHTED and operator.rank == 3
    own = step.kind in OWN_RANGE and not reshaped and not step.table
    if after is not None and after.step.kind == JOIN and own:
        return Tap(name, layer, same_as=after.name)
    return Tap(
        name,
        layer,
        step.fixed,
        None,
        is_output,
        _MAXIMA.get(step.kind),
        step.lowered,
        step.table,
    )


def find_taps(model: Any) -> tuple[Tap, ...]:
    """Returns the points where the int8 model rounds activations, inputs first.

    Args:
        model: A built Sequential or Functional model; nested models are entered.

    Raises:
        UnsupportedModelError: as for `analyse`.
    """
    return analyse(model).taps


def source_of(tap: Tap, taps: Mapping[str, Tap]) -> Tap:
    """Returns the tap whose range a tap uses: itself, or the end of its chain of `same_as`.

    Args:
        tap: A tap of a model.
        taps: All taps of the model by name.
    """
    while tap.same_as is not None:
        tap = taps[tap.same_as]
    return tap
