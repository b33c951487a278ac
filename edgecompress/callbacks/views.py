"""Views: what a criterion looks at in the model around a kernel.

Each view gives one number for each filter of a kernel. A criterion names the views it needs in
`Criterion.views`; to add one: a class here, decorated with `@VIEWS.register(name)`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.backends import check_backend, current
from edgecompress.callbacks.hooks import Hook, UpdateHook, Wrapping
from edgecompress.callbacks.replicas import averaged
from edgecompress.core.keras_graph import (
    GraphNode,
    graph_nodes,
    is_plain_model,
    layer_calls,
    walk_layers,
)
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.registry import Registry

VIEWS: Registry[type[View]] = Registry("view")

# Weight of the past in a moving average over the batches of training.
_MOMENTUM = 0.9


class View(ABC):
    """One number for each filter of a layer's kernel, read inside the compiled train step.

    Args:
        model: The model, built; nothing of it is changed before `begin`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model

    def missing(self, layer: Any) -> str | None:
        """Returns why there is nothing to see around a layer; None if there is."""
        return None

    def begin(self, layers: Sequence[tuple[Any, KernelShape]], hook: UpdateHook) -> Sequence[Hook]:
        """Prepares for a fit.

        Args:
            layers: The layers looked at and the kernels that hold their filters.
            hook: An attached hook of the fit, which owns the view's variables.

        Returns:
            Further hooks to attach.
        """
        return ()

    @abstractmethod
    def tensor(self, layer: Any) -> Any:
        """Returns the numbers of a layer, float32, (filters,)."""


@VIEWS.register("macs")
class Macs(View):
    """Multiply-accumulates of each filter, for one sample; unknown sizes count as 1."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(model)
        self._positions: dict[int, int] = {}
        for call in layer_calls(model):
            size = sum(math.prod(s or 1 for s in shape[1:]) for shape in call.outputs)
            self._positions[id(call.layer)] = self._positions.get(id(call.layer), 0) + size

    def begin(self, layers: Sequence[tuple[Any, KernelShape]], hook: UpdateHook) -> Sequence[Hook]:
        """Counts; see `View.begin`."""
        self._kernels = {id(layer): kernel for layer, kernel in layers}
        return ()

    def tensor(self, layer: Any) -> Any:
        """Returns output positions * weights of a filter; see `View.tensor`."""
        kernel = self._kernels[id(layer)]
        filters = kernel.filters or 1
        weights = math.prod(kernel.shape) // filters
        positions = self._positions.get(id(layer), filters) // filters
        return ops.full((filters,), float(max(1, positions * weights)), dtype="float32")


@VIEWS.register("norm-scale")
class FollowingScale(View):
    """|gamma| of the BatchNormalization that is the only reader of a layer."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(model)
        self._norms = {
            id(node.operation): after.operation
            for node, after in _only_readers(model).values()
            if type(after.operation) is keras.layers.BatchNormalization
        }

    def missing(self, layer: Any) -> str | None:
        """As `View.missing`."""
        norm = self._norms.get(id(layer))
        if norm is None or not _is_linear(layer):
            return "no BatchNormalization follows it"
        if current().pure and not norm.trainable:
            return "its BatchNormalization is frozen, which an update on JAX does not see"
        return "its BatchNormalization has no gamma (scale=False)" if norm.gamma is None else None

    def tensor(self, layer: Any) -> Any:
        """Returns |gamma|; see `View.tensor`."""
        gamma = ops.convert_to_tensor(self._norms[id(layer)].gamma)
        return ops.abs(ops.cast(gamma, "float32"))


class _Activity(View):
    """A moving average over training of something about each channel's activations."""

    name = ""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(model)
        readers = _only_readers(model)
        self._sources = {id(layer): _activation_of(layer, readers) for layer in walk_layers(model)}
        self._averages: dict[int, keras.Variable] = {}
        self._training = False

    def begin(self, layers: Sequence[tuple[Any, KernelShape]], hook: UpdateHook) -> Sequence[Hook]:
        """Hooks into the layers whose outputs it averages; see `View.begin`.

        Raises:
            ArgumentError: Keras runs on JAX.
        """
        # On JAX, a pass through the model cannot leave averages behind for the update.
        check_backend("criteria that look at activations", ["tensorflow"])
        hooks: list[Hook] = [Wrapping(self.model, "call", self._noticing_training)]
        for layer, kernel in layers:
            filters = kernel.filters or 1
            average = hook.add_variable((filters,), "float32", f"{layer.name}_{self.name}")
            average.assign(ops.zeros((filters,)))
            self._averages[id(layer)] = average
            watch = functools.partial(self._watching, layer, average)
            hooks.append(Wrapping(self._sources[id(layer)], "call", watch))
        return hooks

    def tensor(self, layer: Any) -> Any:
        """Returns the averages; see `View.tensor`."""
        return ops.convert_to_tensor(self._averages[id(layer)])

    @abstractmethod
    def measure(self, outputs: Any) -> Any:
        """Returns what is averaged, of the shape of the outputs."""

    def _noticing_training(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noticing(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._training = bool(args[0] if args else kwargs.get("training"))
            try:
                return call(inputs, *args, **kwargs)
            finally:
                self._training = False

        return noticing

    def _watching(
        self, layer: Any, average: keras.Variable, call: Callable[..., Any]
    ) -> Callable[..., Any]:
        @functools.wraps(call)
        def watching(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            if self._training:
                found = ops.cast(self.measure(ops.stop_gradient(outputs)), "float32")
                first = getattr(layer, "data_format", None) == "channels_first"
                axis = 1 if first else len(found.shape) - 1
                others = [i for i in range(len(found.shape)) if i != axis]
                found = averaged(ops.mean(found, axis=others))
                past = ops.convert_to_tensor(average)
                # Starts with the first batch's.
                share = ops.where(ops.any(past != 0), _MOMENTUM, 0.0)
                average.assign(share * past + (1 - share) * found)
            return outputs

        return watching


@VIEWS.register("active-share")
class ActiveShare(_Activity):
    """Share of a channel's outputs, after its activation function, that are not 0."""

    name = "active_share"

    def measure(self, outputs: Any) -> Any:
        """Returns 1 where an output is not 0."""
        return ops.not_equal(outputs, 0)


@VIEWS.register("mean-activation")
class MeanActivation(_Activity):
    """Mean magnitude of a channel's outputs, after its activation function."""

    name = "mean_activation"

    def measure(self, outputs: Any) -> Any:
        """Returns the magnitudes."""
        return ops.abs(outputs)


def _only_readers(model: Any) -> dict[int, tuple[GraphNode, GraphNode]]:
    """Returns the nodes whose output only one other reads, and that one, by the layer's identity.

    Layers that are called several times are left out.
    """
    nodes = graph_nodes(model)
    readers: dict[int, list[GraphNode]] = {}
    for node in nodes:
        for tensor in node.inputs:
            readers.setdefault(id(tensor), []).append(node)
    called = [id(node.operation) for node in nodes]
    found: dict[int, tuple[GraphNode, GraphNode]] = {}
    for node in nodes:
        if is_plain_model(node.operation):
            found.update(_only_readers(node.operation))
            continue
        after = readers.get(id(node.outputs[0]), []) if node.outputs else []
        if len(after) == 1 and called.count(id(node.operation)) == 1:
            found[id(node.operation)] = (node, after[0])
    return found


def _is_linear(layer: Any) -> bool:
    return getattr(layer, "activation", keras.activations.linear) is keras.activations.linear


def _activation_of(layer: Any, readers: dict[int, tuple[GraphNode, GraphNode]]) -> Any:
    """Returns what applies the activation function to a layer's output; itself if nothing does."""
    current = layer
    while _is_linear(current) and id(current) in readers:
        after = readers[id(current)][1].operation
        kind = exact_kind_of(after)
        if kind is None or kind.family not in ("activation", "slope", "normalization", "identity"):
            break
        if kind.family in ("activation", "slope"):
            return after
        current = after
    return layer
