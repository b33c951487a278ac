"""Which precision each kernel of a model has: by place, by the layer's name, or as trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.fusion import FusedGraph
from edgecompress.core.inner_kernels import inner_kernels, is_recurrent
from edgecompress.core.keras_graph import layers_by_name
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.options import named, named_config
from edgecompress.core.per_layer import check_patterns, first_matches
from edgecompress.core.record import CompressionRecord
from edgecompress.core.shared_values import per_tensor
from edgecompress.precisions.base import PRECISIONS, QUANTIZED_BY, Place, Precision

# The key of a training step in a record that holds the kernels with a precision of their own.
_KERNELS = "kernels"


def kernel_name(layer: str, attribute: str) -> str:
    """Returns a kernel's name in records: `conv/kernel`."""
    return f"{layer}/{attribute}"


def scale_axes(kernel: np.ndarray, axes: tuple[int, ...], precision: Precision) -> tuple[int, ...]:
    """Returns `axes`, or () if the weights share values and get fewer codes with one scale.

    Args:
        kernel: Float weights of any shape.
        axes: The channel axes that `precision.weight_axes` returned.
        precision: Only int8 codes are changed that way by the converter.
    """
    if getattr(precision, "weight_ranges", "minmax") != "minmax":
        return axes
    if precision.stored_bits == 8 and per_tensor(kernel, axes, precision.weight_bits):
        return ()
    return axes


def check_mix(base: Precision, per_layer: Mapping[str, Precision]) -> None:
    """Refuses exceptions that cannot be combined with a precision.

    Args:
        base: The precision of all other layers.
        per_layer: Regular expression for names of layers -> precision of their weights.

    Raises:
        ArgumentError: an expression is invalid, or a precision has other activations.
    """
    check_patterns(per_layer)
    for precision in per_layer.values():
        if type(precision) not in PRECISIONS.values():
            known = ", ".join(kind.__name__ for kind in PRECISIONS.values())
            raise ArgumentError("per_layer", f"hold an object of {known}", precision)
        if precision.activation_bits != base.activation_bits:
            raise ArgumentError(
                "per_layer",
                f"hold precisions with activations of {base.activation_bits} bits, as {base.name}",
                precision.name,
                "It sets the weights of single layers; all layers share one type of activations.",
            )


# Family of a layer class -> operator that reads its kernel; a separable layer has two kernels.
_OPERATORS = {
    "dense": "FULLY_CONNECTED",
    "depthwise": "DEPTHWISE_CONV_2D",
    "transposed": "TRANSPOSE_CONV",
}


def operator_of(layer: Any, attribute: str) -> str:
    """Returns the operator that reads a kernel of a layer in a file.

    Args:
        layer: A layer of Keras 3 with int8 kernels.
        attribute: The kernel's name in it; a separable layer has two.
    """
    kind = exact_kind_of(layer)
    family = "depthwise" if attribute == "depthwise_kernel" else kind and kind.family
    return _OPERATORS.get(str(family), "CONV_2D")


def places_of(model: Any, graph: FusedGraph) -> dict[str, Place]:
    """Returns where each kernel of a Keras model is, in the order in which the model computes."""
    by_name = layers_by_name(model)
    kernels = [
        (name, attribute)
        for name, layer in by_name.items()
        for attribute in (
            [kernel.attribute for kernel in graph.weights[name]]
            if name in graph.weights
            else [kernel.name for kernel in inner_kernels(layer)]
        )
    ]
    fused = set(graph.cells.values())
    places = {}
    for position, (name, attribute) in enumerate(kernels):
        inner = name not in graph.weights
        places[kernel_name(name, attribute)] = Place(
            name,
            _OPERATORS["dense"] if inner else operator_of(by_name[name], attribute),
            position == 0,
            position == len(kernels) - 1,
            getattr(by_name[name], "groups", 1) != 1,
            is_recurrent(attribute),
            name in fused,
        )
    return places


def assign(
    places: Mapping[str, Place], base: Precision, per_layer: Mapping[str, Precision] | None = None
) -> dict[str, Precision]:
    """Returns the kernels whose precision is not `base`, with that precision.

    Args:
        places: Kernel -> where it is.
        base: The precision of the model.
        per_layer: Regular expression -> precision of the weights of layers whose whole name it
            matches; the first that does counts. It takes precedence over the places in which `base`
            is finer.

    Raises:
        ArgumentError: as in `check_mix`, or an expression matches no layer.
    """
    per_layer = per_layer or {}
    check_mix(base, per_layer)
    layers = [place.layer for place in places.values()]
    given = first_matches(layers, per_layer, "a layer with weights")
    found: dict[str, Precision] = {}
    for (kernel, place), own in zip(places.items(), given, strict=True):
        chosen = base.weights_at(place) if own is None else own
        if chosen != base:
            found[kernel] = chosen
    return found


def fused_cells(
    model: Any, graph: FusedGraph, base: Precision, kernels: Mapping[str, Precision]
) -> Mapping[str, str]:
    """Returns the ranges of cell states (`FusedGraph.cells`) if LSTM layers are one operator each.

    {} if the file has another form: with a base that has none, or with a kernel of fewer bits than
    the operator's 8. A file has all of them in one form.

    Args:
        model: A model of Keras 3.
        graph: Its graph.
        base: The precision of the model.
        kernels: The kernels whose precision is another.
    """
    layers = set(graph.cells.values())
    own = [
        kernels.get(kernel, base)
        for kernel, place in places_of(model, graph).items()
        if place.layer in layers
    ]
    whole = base.fuses_lstm and all(precision.stored_bits == 8 for precision in own)
    return dict(graph.cells) if whole else {}


def fuses_lstm(base: Precision, record: CompressionRecord | None) -> bool:
    """Returns whether a file may have LSTM layers as one operator.

    Args:
        base: The precision of the file.
        record: What training did: with a recurrent kernel of fewer than 8 bits, it may not.
    """
    narrow = [
        kernel
        for kernel, precision in trained_kernels(record).items()
        if is_recurrent(kernel) and precision.stored_bits < 8
    ]
    return base.fuses_lstm and not narrow


def mix_config(mix: Mapping[str, Precision]) -> dict[str, Any]:
    """Returns precisions by name as JSON values."""
    return {name: named_config(PRECISIONS, precision) for name, precision in mix.items()}


def kernels_step(kernels: Mapping[str, Precision]) -> dict[str, Any]:
    """Returns the kernels with a precision of their own as JSON values of a training step."""
    return {_KERNELS: mix_config(kernels)} if kernels else {}


def trained_kernels(record: CompressionRecord | None) -> dict[str, Precision]:
    """Returns the kernels that training or `quantize` rounded in a precision of their own.

    Raises:
        ArgumentError: the record holds something else.
        UnknownNameError: it names a precision that is not registered here.
    """
    for step in reversed(() if record is None else record.steps):
        if step.get("technique") in QUANTIZED_BY:
            given = step.get(_KERNELS, {})
            if not isinstance(given, Mapping):
                raise ArgumentError("record", "hold precisions by kernel", given)
            return {str(k): named(PRECISIONS, v, "precision") for k, v in given.items()}
    return {}
