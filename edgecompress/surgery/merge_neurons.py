"""`merge_neurons`: neurons that compute nearly the same become one, without data or training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.core.keras_graph import GraphNode, functional_of, graph_nodes, is_plain_model
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.model_copy import Weights, copy_model, plain_model
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.surgery.channels import Analysis, analyse, read_weights
from edgecompress.surgery.neuron_similarity import Merge, merge_order
from edgecompress.surgery.rebuild import plan_removal, rebuild
from edgecompress.surgery.rules.base import activate

# Families that only pass channels on: equal channels, or multiples, stay so.
_PASSES = {
    "pooling", "identity", "padding", "flatten", "reshape", "repeat", "permute", "concatenate",
}  # fmt: skip
_READERS = {"dense", "convolution"}
# Values where an activation shows whether h(3 x) = 3 h(x).
_PROBES = np.array([-1e30, -1e4, -40.0, -1.0, -1e-3, 0.0, 1e-3, 0.7, 1.0, 5.0, 40.0, 1e4, 1e30])


@dataclass(frozen=True)
class _Layer:
    """A layer whose neurons can be merged.

    Attributes:
        path: Its name.
        norm: The BatchNormalization behind it, or "".
        epsilon: That of the BatchNormalization.
        scaled: Whether all activations up to the readers keep positive factors.
        readers: Reader -> rows of its kernel that read each neuron, (neurons, rows).
    """

    path: str
    norm: str
    epsilon: float
    scaled: bool
    readers: Mapping[str, np.ndarray]


class _Refused(Exception):
    """Says why the neurons of a layer cannot be merged."""


def merge_neurons(
    model: keras.Model,
    share: float | Mapping[str, float] | None = None,
    max_saliency: float | None = None,
) -> keras.Model:
    """Returns a thinner plain model in which similar neurons are one; neither data nor training.

    Of two neurons (units of a Dense layer or filters of a convolution, with the BatchNormalization
    behind them) with nearly the same weights, one goes and the other takes over its outgoing
    weights: Srinivas and Babu, "Data-free parameter pruning for deep neural networks" (BMVC 2015,
    https://arxiv.org/abs/1507.06149). Behind ReLU, LeakyReLU and no activation, weights may also
    differ by a positive factor. Merges go by the saliency of `neuron_similarity`, least first,
    which is 0 where the outputs do not change.

    Layers whose neurons are tied to others (Add), read by anything but Dense layers and
    convolutions, or shared stay, and a note names them with the reason. The record has a step
    `merge_neurons` with the saliency of the last merge of each layer. Channels that are redundant
    anyway go as in `finalize`.

    Args:
        model: A built Sequential or Functional model; it is not changed. Layers of nested models
            stay.
        share: Share of the neurons of each layer to merge into others, between 0 and 1, or layer ->
            share. One neuron is always left.
        max_saliency: Instead: merges up to this saliency, e.g. from the elbow of `merge_curves`.

    Raises:
        ArgumentError: not exactly one of `share` and `max_saliency` is given, one of them breaks
            its rule, or a named layer does not exist or cannot be merged.
        UnsupportedModelError: the model is subclassed or not built.

    Example:
        >>> thinner = merge_neurons(model, share=0.25)  # doctest: +SKIP
    """
    _checked(share, max_saliency)
    model = plain_model(model)
    found, refused = _candidates(model)
    if isinstance(share, Mapping):
        for name in share:
            if name not in found:
                known = f"name layers that can be merged: {', '.join(found) or 'there is none'}"
                why = f" ({refused[name]})" if name in refused else ""
                raise ArgumentError("share", known, f"{name}{why}")
    weights = read_weights(model)
    layers: dict[str, dict[str, Any]] = {}
    for path, layer in found.items():
        incoming, outgoing = _vectors(layer, weights)
        merges = merge_order(incoming, outgoing, layer.scaled)
        chosen = merges[: _count(path, len(incoming), merges, share, max_saliency)]
        if not chosen:
            continue
        for merge in chosen:
            _take_over(layer, weights, merge)
        layers[path] = {
            "neurons": [len(incoming), len(incoming) - len(chosen)],
            "saliency": chosen[-1].saliency,
        }
    readers = {path for name in layers for path in found[name].readers}
    merged = copy_model(model, weights={path: weights[path] for path in readers})
    plan = plan_removal(merged)
    small = rebuild(merged, plan)
    step = {
        "technique": "merge_neurons",
        "layers": layers,
        "parameters_before": int(model.count_params()),
        "parameters_after": int(small.count_params()),
    }
    notes = [f"merge_neurons: {path} stays, as {reason}." for path, reason in refused.items()]
    record = CompressionRecord(
        steps=(step,), removed_channels=plan.removed, notes=(*notes, *plan.notes)
    )
    attach_record(small, record_of(model).merged(record))
    return small


def merge_curves(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the saliency of each merge of each layer, in the order in which they would be made.

    A curve that is flat and then rises steeply has its elbow where neurons cease to be alike;
    `merge_neurons(model, max_saliency=...)` cuts there. Each layer is taken alone: merges in one
    layer change the weights of the next.

    Args:
        model: A built Sequential or Functional model.

    Returns:
        Layer -> saliencies, (merges,).

    Example:
        >>> curves = merge_curves(model)  # doctest: +SKIP
        >>> thinner = merge_neurons(model, max_saliency=curves["hidden"][10])  # doctest: +SKIP
    """
    model = plain_model(model)
    found, _ = _candidates(model)
    weights = read_weights(model)
    return {
        path: np.array(
            [merge.saliency for merge in merge_order(*_vectors(layer, weights), layer.scaled)]
        )
        for path, layer in found.items()
    }


def _checked(share: Any, max_saliency: Any) -> None:
    if (share is None) == (max_saliency is None):
        given = f"share={share}, max_saliency={max_saliency}"
        raise ArgumentError("share", "be given, or else `max_saliency`, not both", given)
    shares = share.values() if isinstance(share, Mapping) else [share]
    for value in shares:
        if share is not None and not (isinstance(value, (int, float)) and 0 <= value < 1):
            raise ArgumentError("share", "be at least 0 and less than 1", value)
    if max_saliency is not None and not max_saliency >= 0:
        raise ArgumentError("max_saliency", "be 0 or more", max_saliency)


def _count(
    path: str,
    neurons: int,
    merges: list[Merge],
    share: float | Mapping[str, float] | None,
    max_saliency: float | None,
) -> int:
    if max_saliency is not None:
        above = [k for k, merge in enumerate(merges) if merge.saliency > max_saliency]
        return above[0] if above else len(merges)
    wanted = share.get(path, 0.0) if isinstance(share, Mapping) else (share or 0.0)
    # Rounded first: 0.29 * 100 is 28.999999999999996.
    return min(math.floor(round(wanted * neurons, 6)), len(merges))


def _vectors(layer: _Layer, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of each neuron as the activation sees them, and those that read it."""
    own = weights[layer.path]
    kernel = own["kernel"].astype(np.float64)
    count = kernel.shape[-1]
    bias = own.get("bias", np.zeros(count)).astype(np.float64)
    if layer.norm:
        norm = weights[layer.norm]
        scale = norm.get("gamma", 1.0) / np.sqrt(norm["moving_variance"] + layer.epsilon)
        kernel = kernel * scale
        bias = (bias - norm["moving_mean"]) * scale + norm.get("beta", 0.0)
    incoming = np.concatenate([kernel.reshape(-1, count), bias[None]]).T
    parts = []
    for path, rows in layer.readers.items():
        read = np.moveaxis(weights[path]["kernel"], -2, 0)[rows]
        parts.append(read.reshape(count, -1))
    return incoming, np.concatenate(parts, axis=1)


def _take_over(layer: _Layer, weights: Weights, merge: Merge) -> None:
    """Adds the outgoing weights of a neuron to those of another; then nothing reads it."""
    for path, rows in layer.readers.items():
        kernel = np.moveaxis(weights[path]["kernel"], -2, 0)  # A view.
        kernel[rows[merge.kept]] += (merge.scale * kernel[rows[merge.removed]]).astype(kernel.dtype)
        kernel[rows[merge.removed]] = 0


def _candidates(model: Any) -> tuple[dict[str, _Layer], dict[str, str]]:
    """Returns the layers that can be merged, in order, and why others cannot."""
    functional_of(model)
    if not is_plain_model(model):
        raise UnsupportedModelError(
            f"Model {model.name!r} is a {type(model).__name__}, not a plain Sequential or "
            "Functional model."
        )
    analysis, *_ = analyse(model)
    nodes = graph_nodes(model)
    found: dict[str, _Layer] = {}
    refused: dict[str, str] = {}
    for node in nodes:
        path, operation = node.operation.name, node.operation
        if is_plain_model(operation):
            refused[path] = "layers of nested models are not looked at"
        elif _family(operation) in _READERS and path not in refused:
            try:
                found[path] = _candidate(model, analysis, nodes, node)
            except _Refused as error:
                refused[path] = str(error)
                found.pop(path, None)
    return found, refused


def _family(operation: Any) -> str:
    kind = exact_kind_of(operation)
    return "" if kind is None else kind.family


def _candidate(model: Any, analysis: Analysis, nodes: list[GraphNode], node: GraphNode) -> _Layer:
    path = node.operation.name
    calls = Counter(id(other.operation) for other in nodes)
    if calls[id(node.operation)] > 1:
        raise _Refused("it is called more than once")
    if path not in analysis.uses:
        raise _Refused("its configuration is not understood")
    if getattr(node.operation, "groups", 1) > 1:
        raise _Refused("it convolves in groups")
    roots = analysis.roots(analysis.producers[path])
    frozen = {analysis.root(label): reason for label, reason in analysis.frozen.items()}
    for root in roots:
        if int(root) in frozen:
            raise _Refused(frozen[int(root)])
    for other, labels in analysis.producers.items():
        if other != path and np.isin(analysis.roots(labels), roots).any():
            raise _Refused(f"its channels are tied to those of {other!r}")
    if len(set(roots.tolist())) < len(roots):
        raise _Refused("its channels are tied to each other")
    consumers: dict[int, list[GraphNode]] = {}
    for after in nodes:
        for tensor in after.inputs:
            consumers.setdefault(id(tensor), []).append(after)
    norm = analysis.following_norm.get(path, "")
    scaled, read, epsilon = _is_homogeneous(node.operation.activation), [], 0.0
    waiting = list(node.outputs)
    while waiting:
        for reader in consumers.get(id(waiting.pop()), []):
            operation, family = reader.operation, _family(reader.operation)
            if family in _READERS and getattr(operation, "groups", 1) == 1:
                read.append(operation.name)
                continue
            if operation.name == norm:
                epsilon = operation.epsilon
            elif family == "activation":
                scaled &= _is_homogeneous(getattr(operation, "activation", None) or operation)
            elif family not in _PASSES:
                raise _Refused(f"its channels pass through {operation.name!r}")
            waiting += reader.outputs
    readers = {name: _rows(analysis, name, roots) for name in dict.fromkeys(read)}
    if not readers:
        raise _Refused("nothing reads it")
    return _Layer(path, norm, epsilon, scaled, readers)


def _rows(analysis: Analysis, reader: str, roots: np.ndarray) -> np.ndarray:
    """Returns the inputs of a reader that are each neuron, (neurons, inputs)."""
    labels = analysis.roots(analysis.readers[reader].labels)
    return np.stack([np.flatnonzero(labels == root) for root in roots])


def _is_homogeneous(activation: Any) -> bool:
    """Returns whether h(c x) = c h(x) for c > 0."""
    once, thrice = activate(activation, _PROBES), activate(activation, 3 * _PROBES)
    return bool(np.allclose(thrice, 3 * once, rtol=1e-5, atol=0))
