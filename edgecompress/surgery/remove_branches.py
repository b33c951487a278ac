"""Removes branches of sums that do not depend on the input: the rewrite `remove-branches`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.core.keras_graph import (
    GraphNode,
    functional_of,
    graph_nodes,
    input_layers,
    is_plain_model,
    named_layers,
    run_graph,
)
from edgecompress.core.model_copy import Weights, copy_model
from edgecompress.core.record import record_of
from edgecompress.surgery.bypass import identity_named
from edgecompress.surgery.rewrites import REWRITES, Rewrite, Rewritten


@REWRITES.register("remove-branches")
@dataclass(frozen=True)
class RemoveBranches(Rewrite):
    """Removes branches of an Add that hold a constant whatever the input, as behind a zero kernel.

        y = x + c,  c = branch(anything): one number for each channel

    c follows from the weights alone: biases, BatchNormalization and activations behind a kernel of
    zeros (`surgery.channels`). If c is 0, the Add becomes x. If not, it moves into the bias or the
    BatchNormalization that makes x, where nothing else reads x and the model has no learnt ranges
    (x would leave its own); elsewhere a BatchNormalization that
    does nothing but add c, frozen, takes the place and the name of the Add. This is how the depth
    of Wen et al., "Learning structured sparsity in deep neural networks" (2016,
    https://arxiv.org/abs/1608.03665), section 3.1, gets smaller.
    """

    def apply(self, model: Any) -> Rewritten:
        """Returns the model without its constant branches; see `Rewrite.apply`."""
        found = _find(model)
        if not found.cuts:
            return Rewritten(model, notes=tuple(found.notes))
        copied = copy_model(model, weights=found.weights)
        # Once more: layers of `copied` now belong to two graphs.
        result = copy_model(_rewired(copied, "", found.cuts))
        left = {path for path, _ in named_layers(result)}
        gone = [path for path, _ in named_layers(model) if path not in left]
        notes = [
            f"{path}: its branch was the same for any input; a frozen BatchNormalization adds that "
            "constant, as no layer before it can take it over."
            for path, cut in found.cuts.items()
            if cut.adds
        ]
        details = {"branches": sorted(found.cuts), "removed_layers": gone}
        return Rewritten(result, details=details, notes=(*found.notes, *notes))


@dataclass(frozen=True)
class _Cut:
    """What becomes of an Add.

    Attributes:
        live: Positions of the inputs that stay.
        constant: What the others sum up to, (channels,), unless a layer before has taken it over.
        output: Whether it makes an output of its model, whose name stays.
    """

    live: tuple[int, ...]
    constant: np.ndarray
    output: bool

    @property
    def adds(self) -> bool:
        return bool(self.constant.any())


@dataclass(frozen=True)
class _Found:
    """The sums to change by path, the weights that take over constants, and notes."""

    cuts: dict[str, _Cut] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _find(model: Any) -> _Found:
    import keras

    from edgecompress.surgery.channels import analyse, read_weights

    weights = read_weights(model)
    uses = {path: use for found in analyse(model, weights) for path, use in found.uses.items()}
    # A layer that takes over a constant makes other values than those its range was learnt from.
    may_move = not record_of(model).ranges
    found = _Found()
    for prefix, graph in _graphs(model, ""):
        nodes = graph_nodes(graph)
        calls = Counter(id(node.operation) for node in nodes)
        outputs = {id(tensor) for tensor in functional_of(graph).outputs}
        for node in nodes:
            path = f"{prefix}{node.operation.name}"
            if type(node.operation) is not keras.layers.Add or path not in uses:
                continue
            call = uses[path].call
            constants = [channels.constant for channels in call.inputs]
            live = tuple(i for i, values in enumerate(constants) if np.isnan(values).any())
            if len(live) == len(constants):
                continue
            reason = None
            if calls[id(node.operation)] > 1:
                reason = "is used several times"
            elif call.masked:
                reason = "reads a mask"
            elif not live:
                reason = "is a constant as a whole"
            elif any(call.shapes[i] != call.output_shape for i in live):
                reason = "also spreads its input over more positions"
            if reason is not None:
                found.notes.append(f"left: a constant branch of {call.title}, which {reason}.")
                continue
            width = call.output_shape[-1] or 1
            dead = [np.broadcast_to(c, width) for i, c in enumerate(constants) if i not in live]
            constant = np.sum(dead, axis=0)
            taker = None
            if constant.any() and may_move:
                tensors = [node.inputs[i] for i in live]
                taker = _taker(nodes, outputs, tensors, prefix, weights)
            if taker is not None:
                target, name = taker
                values = found.weights.setdefault(target, dict(weights[target]))
                values[name] = (values[name] + constant).astype("float32")
                constant = np.zeros_like(constant)
            found.cuts[path] = _Cut(live, constant, id(node.outputs[0]) in outputs)
    return found


def _graphs(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields (prefix of paths, model) of a model and of the models nested in it."""
    yield prefix, model
    for layer in model.layers:
        if is_plain_model(layer):
            yield from _graphs(layer, f"{prefix}{layer.name}/")


def _taker(
    nodes: list[GraphNode], outputs: set[int], tensors: list[Any], prefix: str, weights: Weights
) -> tuple[str, str] | None:
    """Returns the weight that can add a constant to one of the tensors and to nothing else."""
    import keras

    calls = Counter(id(node.operation) for node in nodes)
    readers = Counter(id(tensor) for node in nodes for tensor in node.inputs)
    makers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    for tensor in tensors:
        layer = makers.get(id(tensor))
        if layer is None or calls[id(layer)] > 1 or readers[id(tensor)] > 1:
            continue
        path = f"{prefix}{layer.name}"
        if id(tensor) in outputs or path not in weights:
            continue
        if type(layer) is keras.layers.BatchNormalization and "beta" in weights[path]:
            return path, "beta"
        linear = getattr(layer, "activation", None) is keras.activations.linear
        if linear and "kernel" in weights[path] and "bias" in weights[path]:
            return path, "bias"
    return None


def _rewired(model: Any, prefix: str, cuts: Mapping[str, _Cut]) -> Any:
    """Returns a model of the same layers without the inputs of sums that go."""
    import keras

    if not any(path.startswith(prefix) for path in cuts):
        return model
    nested = {
        id(layer): _rewired(layer, f"{prefix}{layer.name}/", cuts)
        for layer in model.layers
        if is_plain_model(layer)
    }
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)
        for tensor, layer in zip(functional_of(model).inputs, input_layers(model), strict=True)
    ]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        cut = cuts.get(f"{prefix}{layer.name}")
        if cut is None:
            return nested.get(id(layer), layer)(*args, **kwargs)
        read = keras.tree.flatten((args, kwargs))
        live = [read[i] for i in cut.live]
        if cut.adds:
            # The whole sum keeps its name, with which outputs and learnt ranges are found.
            rest = keras.layers.Add(name=f"{layer.name}_rest", dtype=layer.dtype_policy)
            total = live[0] if len(live) == 1 else rest(live)
            return _adding(total, cut.constant, layer.name, layer.dtype_policy)
        if len(live) > 1:
            return layer(live)
        if cut.output:
            return identity_named(layer)(live[0])
        return live[0]

    if isinstance(model, keras.Sequential):
        layers = [nested.get(id(layer), layer) for layer in model.layers]
        made = keras.Sequential([*inputs, *layers], name=model.name)
    else:
        structure = keras.tree.pack_sequence_as(functional_of(model).input, inputs)
        made = keras.Model(structure, run_graph(model, structure, call), name=model.name)
    flags = [(layer, layer.trainable) for layer in made.layers]
    made.trainable = model.trainable  # Sets those of its layers as well.
    for layer, flag in flags:
        layer.trainable = flag
    return made


def _adding(tensor: Any, constant: np.ndarray, name: str, dtype: Any) -> Any:
    """Returns tensor + constant, computed by a layer that every converter knows."""
    import keras

    # Frozen, so that later training does not normalize with the statistics of a batch.
    layer = keras.layers.BatchNormalization(
        epsilon=0.0, scale=False, name=name, dtype=dtype, trainable=False
    )
    total = layer(tensor)
    layer.beta.assign(constant.astype("float32"))
    return total
