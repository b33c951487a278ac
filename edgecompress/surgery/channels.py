"""Which channels of a model are redundant: labels, constants and readers of every tensor.

Each channel of each tensor gets a label, the filter that made it. A layer that keeps channels
separate (BatchNormalization, ReLU, pooling, a depthwise convolution) passes the labels on, Flatten
and Concatenate move them, Add and Multiply merge two labels into one. Besides its label, a channel
has the constant that it holds at inference whatever the input, or NaN if it depends on the input:
an all-zero filter produces a channel that equals its bias, transformed by BatchNormalization and
the activation, which is not zero in general.

A channel can be removed if no reader needs it: the reader's weights for it are all zero, or it is a
constant that the reader's bias can absorb. Everything here is numpy on a copy of the weights; the
model is not modified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from edgecompress.core.keras_graph import (
    GraphNode,
    carries_mask,
    functional_of,
    graph_nodes,
    input_layers,
    is_plain_model,
    named_layers,
)
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.model_copy import Weights, variable_of


@dataclass(frozen=True)
class Channels:
    """The last axis of a tensor.

    Attributes:
        labels: Which filter made each channel, (channels,).
        constant: The constant of each channel, (channels,), NaN if it depends on the input.
    """

    labels: np.ndarray
    constant: np.ndarray


@dataclass(frozen=True)
class BiasOf:
    """A bias inside a layer that takes over constants, where it is not the layer's `bias`.

    Attributes:
        layer: The layer's path.
        attribute: The bias, of shape (outputs, parts); with gates (parts * outputs,), one gate
            after the other, or rows of these of which the first belongs to the inputs.
        gates: Whether the parts are gates.
    """

    layer: str
    attribute: str
    gates: bool = False

    def plus(self, bias: np.ndarray, added: np.ndarray) -> np.ndarray:
        """Returns the bias with what constant inputs add, (outputs, parts), in float32.

        Example:
            >>> BiasOf("gru", "cell.bias", gates=True).plus(np.zeros((2, 2)), np.ones((1, 2)))
            array([[1., 1.],
                   [0., 0.]], dtype=float32)
        """
        if not self.gates:
            return (bias + added).astype("float32")
        total = bias.astype(np.float64)
        (total[0] if total.ndim == 2 else total)[:] += added.T.ravel()
        return total.astype("float32")


@dataclass(frozen=True)
class Reader:
    """A layer that mixes channels: each output is a weighted sum over its input channels.

    Attributes:
        labels: Labels of its input channels, (inputs,).
        constant: Constants of its input channels, (inputs,).
        outputs: Labels of its outputs, (outputs,).
        sums: Weight sums over the kernel's positions, (inputs, outputs), or (inputs, outputs,
            parts) of an output that is made of several sums.
        reads: Whether any of these weights is not zero, (inputs, outputs).
        exact: Whether every output position sees all of the kernel's weights, so that a constant
            input is equivalent to a bias; false if the border is padded with zeros.
        bias: That bias, where it is not the layer's `bias`, which could also be switched on.
        fixed: Whether there is no bias to take over constants, and none can be switched on.
    """

    labels: np.ndarray
    constant: np.ndarray
    outputs: np.ndarray
    sums: np.ndarray
    reads: np.ndarray
    exact: bool
    bias: BiasOf | None = None
    fixed: bool = False

    @property
    def foldable(self) -> np.ndarray:
        """Which inputs a bias can absorb, (inputs,)."""
        absorbs = self.exact and not self.fixed
        return ~np.isnan(self.constant) & (absorbs | (self.constant == 0))

    def respond(self, values: np.ndarray) -> np.ndarray:
        """Returns what constant inputs add, (outputs,) or (outputs, parts), in float64."""
        some = np.flatnonzero(values)  # Only a few: a copy of all weights in float64 can be large.
        added: np.ndarray = np.tensordot(values[some], self.sums[some].astype(np.float64), 1)
        return added


@dataclass(frozen=True)
class Use:
    """How a layer that can be cut to fewer channels is used in the graph.

    Attributes:
        call: The layer and its first call.
        inputs: Labels of its (first) input's channels.
        outputs: Labels of its output's channels.
    """

    call: Call
    inputs: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True)
class Call:
    """One call of a layer, as a rule sees it.

    Attributes:
        path: The layer's name; `<nested model>/<layer>` inside nested models.
        layer: The Keras layer.
        weights: The layer's weights by attribute name.
        inputs: Channels of its inputs.
        shapes: Shapes of its inputs, with the batch axis.
        output_shape: Shape of its output.
        tensors: The graph tensors that it reads.
        args: Positional arguments of the call, tensors among them.
        kwargs: The other arguments.
        plain: Whether it is called with tensors only.
        masked: Whether an input carries a mask.
        inner: Which of its other channels stay, by name: those of `Analysis.inner`, once they are
            chosen.
    """

    path: str
    layer: Any
    weights: Mapping[str, np.ndarray]
    inputs: tuple[Channels, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    output_shape: tuple[int | None, ...]
    tensors: tuple[Any, ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = True
    masked: bool = False
    inner: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The layer's name in messages: `'conv' (Conv2D)`."""
        return f"{self.path!r} ({type(self.layer).__name__})"


class NotUnderstood(Exception):
    """Raised by a rule that cannot follow its layer's configuration; says why."""


@dataclass
class Analysis:
    """Labels, readers and producers of one graph; `analyse` says which nested models are in it.

    Attributes:
        producers: Layer -> labels of the filters it makes.
        filters: Layer -> which of its filters are entirely zero.
        readers: Layer -> what it reads.
        uses: Layer -> how it is used in the graph, for every layer that follows channels.
        following_norm: Layer -> the BatchNormalization that is the only reader of its linear
            output.
        frozen: Label -> why it must stay.
        inputs: Input layer of a nested model -> labels of its channels.
        inner: Layer -> labels of its other channels by name: heads, or further inputs.
        borders: Whether zero padding at the border counts; if not, a constant is its value in the
            interior of an image.
    """

    producers: dict[str, np.ndarray] = field(default_factory=dict)
    filters: dict[str, np.ndarray] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    following_norm: dict[str, str] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    inner: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    borders: bool = True
    _parents: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> np.ndarray:
        """Returns `count` unused labels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, label: int) -> int:
        """Returns the label that stands for all labels united with this one."""
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def roots(self, labels: Iterable[int]) -> np.ndarray:
        """Returns `root` of each label."""
        return np.array([self.root(int(label)) for label in labels], dtype=np.int64)

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        """Ties channels together pair by pair: they are kept or removed together."""
        for a, b in zip(first, second, strict=True):
            root_a, root_b = self.root(int(a)), self.root(int(b))
            if root_a == root_b:
                continue
            self._parents[root_b] = root_a
            if root_b in self.frozen:
                self.frozen.setdefault(root_a, self.frozen[root_b])

    def freeze(self, labels: Iterable[int], reason: str) -> None:
        """Keeps channels, for the first reason given."""
        for root in self.roots(labels):
            self.frozen.setdefault(int(root), reason)

    def opaque(self, count: int, reason: str) -> Channels:
        """Returns channels with unknown values that must stay."""
        labels = self.fresh(count)
        self.freeze(labels, reason)
        return Channels(labels, np.full(count, np.nan))

    def made_by(self, path: str, count: int) -> np.ndarray:
        """Returns the labels of a layer's filters; a shared layer has the same at each call."""
        if path not in self.producers:
            self.producers[path] = self.fresh(count)
        return self.producers[path]

    def read(self, path: str, reader: Reader) -> None:
        """Notes what a mixing layer reads; calls of a shared layer must agree to be foldable."""
        before = self.readers.get(path)
        if before is not None:
            agreed = np.where(before.constant == reader.constant, reader.constant, np.nan)
            exact = before.exact and reader.exact
            reader = replace(reader, labels=before.labels, constant=agreed, exact=exact)
        self.readers[path] = reader

    def removable(self) -> set[int]:
        """Returns the roots of all channels that no reader needs.

        A reader's weights count only for its kept outputs, so removing a channel can free others:
        the search repeats until nothing changes. Each layer keeps at least one channel.
        """
        made = {path: self.roots(labels) for path, labels in self.producers.items() if len(labels)}
        readers = [(self.roots(r.labels), self.roots(r.outputs), r) for r in self.readers.values()]
        candidates = {int(root) for roots in made.values() for root in roots}
        frozen = {self.root(label) for label in self.frozen}
        while True:
            removed = self._fixpoint(candidates, frozen, readers)
            emptied = [
                int(roots[0])
                for roots in made.values()
                if all(int(root) in removed for root in roots)
            ]
            if not emptied:
                return removed
            frozen.update(emptied)  # A layer without channels cannot be built.

    @staticmethod
    def _fixpoint(
        candidates: set[int],
        frozen: set[int],
        readers: list[tuple[np.ndarray, np.ndarray, Reader]],
    ) -> set[int]:
        removed: set[int] = set()
        while True:
            needed = set(frozen)
            for inputs, outputs, reader in readers:
                kept = np.array([int(o) not in removed for o in outputs], dtype=bool)
                wanted = (reader.reads & kept[None, :]).any(axis=1) & ~reader.foldable
                needed.update(int(root) for root in inputs[wanted])
            if candidates - needed == removed:
                return removed
            removed = candidates - needed

    def kept(self, labels: np.ndarray, removed: set[int]) -> np.ndarray:
        """Returns which of a tensor's channels stay, (channels,) booleans."""
        return np.array([int(root) not in removed for root in self.roots(labels)], dtype=bool)

    def why_kept(self, label: int, removed: set[int]) -> str:
        """Returns why a channel whose filter is zero has to stay."""
        root = self.root(label)
        reasons = {self.root(k): reason for k, reason in self.frozen.items()}
        if root in reasons:
            return reasons[root]
        for path, reader in self.readers.items():
            here = self.roots(reader.labels) == root
            kept = self.kept(reader.outputs, removed)
            wanted = here & (reader.reads & kept[None, :]).any(axis=1) & ~reader.foldable
            if (wanted & np.isnan(reader.constant)).any():
                return f"{path!r} reads them joined with channels that are not zero"
            if wanted.any():
                cause = "it has no bias" if reader.fixed else "its border is padded with zeros"
                return f"they hold a constant that {path!r} cannot take over exactly, as {cause}"
        return "a layer keeps at least one channel"


def read_weights(model: Any) -> Weights:
    """Returns a copy of the weights that rules use: layer -> attribute -> array."""
    from edgecompress.surgery.rules import rule_of

    weights: Weights = {}
    for path, layer in named_layers(model):
        kind = exact_kind_of(layer)
        if kind is None or rule_of(layer) is None:
            continue
        found = {name: variable_of(layer, name) for name in kind.weights}
        weights[path] = {
            name: keras.ops.convert_to_numpy(value).copy()
            for name, value in found.items()
            if value is not None
        }
    return weights


def analyse(
    model: Any,
    weights: Weights | None = None,
    borders: bool = True,
    observed: Mapping[str, np.ndarray] | None = None,
) -> list[Analysis]:
    """Follows every channel through a model.

    Args:
        model: A built Sequential or Functional model.
        weights: The result of `read_weights`, possibly modified, to analyse hypothetical weights.
            Defaults to the model's own.
        borders: See `Analysis.borders`. Defaults to True, the exact answer.
        observed: Layer -> the constants that its output was seen to hold, (channels,), NaN where
            none: taken as if it held them whatever the input. Defaults to none, the exact answer.

    Returns:
        The analysis of the model itself, then one for each nested model that is called more than
        once, or with masks: the channels at its inputs and outputs stay as they are. Any other
        nested model belongs to the analysis of the model around it.

    Raises:
        UnsupportedModelError: the model is subclassed or not built.
    """
    weights = read_weights(model) if weights is None else weights
    walk = _Walk(weights, borders, observed or {})
    _analyse(model, "", walk)
    return walk.analyses


@dataclass
class _Walk:
    weights: Weights
    borders: bool
    observed: Mapping[str, np.ndarray]
    analyses: list[Analysis] = field(default_factory=list)

    def seen(self, path: str, channels: Channels) -> Channels:
        """Adds the constants that an output was seen to hold to those that follow from weights."""
        if path not in self.observed:
            return channels
        unknown = np.isnan(channels.constant)
        return Channels(channels.labels, np.where(unknown, self.observed[path], channels.constant))


def _analyse(model: Any, prefix: str, walk: _Walk) -> None:
    """Adds the analysis of a model whose inputs and outputs stay as they are."""
    analysis = Analysis(borders=walk.borders)
    walk.analyses.append(analysis)
    inputs = [
        _opaque(analysis, tensor, "they are an input of the model")
        for tensor in functional_of(model).inputs
    ]
    for found in _follow(analysis, model, inputs, prefix, walk):
        if found is not None:
            analysis.freeze(found.labels, "they are an output of the model")


def _follow(
    analysis: Analysis, model: Any, inputs: list[Channels | None], prefix: str, walk: _Walk
) -> list[Channels | None]:
    """Follows channels through a graph; returns those of its outputs."""
    from edgecompress.surgery.rules import rule_of

    functional, nodes = functional_of(model), graph_nodes(model)
    channels: dict[int, Channels | None] = {
        id(tensor): found for tensor, found in zip(functional.inputs, inputs, strict=True)
    }
    calls_of: dict[int, int] = {}
    for node in nodes:
        calls_of[id(node.operation)] = calls_of.get(id(node.operation), 0) + 1

    entered: set[str] = set()
    unclear: dict[str, str] = {}
    for node in nodes:
        operation = node.operation
        path = f"{prefix}{operation.name}"
        rule = rule_of(operation)
        given = node.inputs
        if rule is not None and rule.skips_masked:
            mask = {id(tensor) for tensor in keras.tree.flatten(node.kwargs.get("mask"))}
            given = tuple(tensor for tensor in given if id(tensor) not in mask)
        read = [channels.get(id(tensor)) for tensor in given]
        if is_plain_model(operation) and path not in entered:
            entered.add(path)
            if calls_of[id(operation)] == 1 and enters(node):
                for layer, found in zip(input_layers(operation), read, strict=True):
                    if found is not None:
                        analysis.inputs[f"{path}/{layer.name}"] = found.labels
                made = _follow(analysis, operation, read, f"{path}/", walk)
                channels.update({id(t): c for t, c in zip(node.outputs, made, strict=True)})
                continue
            _analyse(operation, f"{path}/", walk)
        reason = None
        if (
            rule is None
            or not (node.plain or rule.operations)
            or len(node.outputs) != 1
            or (None in read and rule.reads_channels)
        ):
            reason = f"'{path}' ({type(operation).__name__}) is not understood"
        else:
            call = Call(
                path,
                operation,
                walk.weights.get(path, {}),
                tuple(c for c in read if c is not None),
                tuple(tuple(tensor.shape) for tensor in given),
                tuple(node.outputs[0].shape),
                given,
                node.args,
                node.kwargs,
                node.plain,
                any(carries_mask(tensor) for tensor in node.inputs),
            )
            try:
                result = walk.seen(path, rule.follow(analysis, call))
            except NotUnderstood as error:
                reason = f"{call.title} {error}"
            else:
                _use(analysis, call, result)
                channels[id(node.outputs[0])] = result
        if reason is not None:
            for known in read:
                if known is not None:
                    analysis.freeze(known.labels, reason)
            unclear[path] = reason
            for tensor in node.outputs:
                channels[id(tensor)] = _opaque(analysis, tensor, reason)

    for path, reason in unclear.items():
        _freeze_layer(analysis, path, reason)
    _find_norms(analysis, nodes, functional, calls_of, prefix)
    return [channels.get(id(tensor)) for tensor in functional.outputs]


def enters(node: GraphNode) -> bool:
    """Returns whether a nested model reads and writes tensors in the order of its own."""
    model = functional_of(node.operation)
    structures = (model.input, model.output, *node.args)
    return (
        not any(isinstance(part, dict) for part in structures)
        and node.plain
        and not any(isinstance(leaf, keras.KerasTensor) for leaf in node.kwargs.values())
        and not any(carries_mask(tensor) for tensor in node.inputs)
        and len(model.inputs) == len(node.inputs)
        and len(model.outputs) == len(node.outputs)
    )


def _use(analysis: Analysis, call: Call, result: Channels) -> None:
    read = call.inputs[0].labels if call.inputs else np.empty(0, np.int64)
    before = analysis.uses.get(call.path)
    if before is None:
        analysis.uses[call.path] = Use(call, read, result.labels)
    else:
        # A shared layer is cut once, so its calls share one choice of channels.
        analysis.unite(before.inputs, read)
        analysis.unite(before.outputs, result.labels)


def _freeze_layer(analysis: Analysis, path: str, reason: str) -> None:
    """Keeps a shared layer intact even if another of its calls was understood."""
    use = analysis.uses.get(path)
    if use is not None:
        analysis.freeze(use.inputs, reason)
        analysis.freeze(use.outputs, reason)


def _opaque(analysis: Analysis, tensor: Any, reason: str) -> Channels | None:
    shape = tuple(tensor.shape)
    if len(shape) < 2 or shape[-1] is None:
        return None
    return analysis.opaque(shape[-1], reason)


def _find_norms(
    analysis: Analysis,
    nodes: list[GraphNode],
    functional: Any,
    calls_of: dict[int, int],
    prefix: str,
) -> None:
    readers: dict[int, list[GraphNode]] = {}
    for node in nodes:
        for tensor in node.inputs:
            readers.setdefault(id(tensor), []).append(node)
    outputs = {id(tensor) for tensor in functional.outputs}
    for node in nodes:
        path = f"{prefix}{node.operation.name}"
        if path not in analysis.uses or calls_of[id(node.operation)] != 1:
            continue
        if getattr(node.operation, "activation", None) is not keras.activations.linear:
            continue
        after = readers.get(id(node.outputs[0]), [])
        if len(after) != 1 or id(node.outputs[0]) in outputs:
            continue
        norm = after[0].operation
        norm_path = f"{prefix}{norm.name}"
        is_norm = type(norm) is keras.layers.BatchNormalization and calls_of[id(norm)] == 1
        if is_norm and norm_path in analysis.uses:
            analysis.following_norm[path] = norm_path
