"""Layer choice: which layers of a model a callback works on, and which of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.keras_graph import functional_of, walk_layers
from edgecompress.core.layer_kinds import LayerKind, Use, layer_classes

LayerChoice = Iterable[str] | Callable[[Any], bool] | None


@dataclass(frozen=True)
class ChosenKernel:
    """Weights that a callback works on.

    Attributes:
        name: The layer's name, or its path if layers of nested models share the name.
        layer: The layer.
        variable: The weights.
        attribute: Name of the layer's attribute that holds them.
    """

    name: str
    layer: keras.layers.Layer
    variable: keras.Variable
    attribute: str


def layer_choice(layers: LayerChoice) -> LayerChoice:
    """Returns a choice that can be iterated repeatedly; a single name becomes a list of one.

    Raises:
        ArgumentError: it is something else than names or a predicate.
    """
    if layers is None or callable(layers):
        return layers
    names = [layers] if isinstance(layers, str) or not isinstance(layers, Iterable) else [*layers]
    if not names or not all(isinstance(name, str) for name in names):
        rule = "be names of layers, or a predicate `layer -> bool`"
        raise ArgumentError("layers", rule, layers, "Leave it out for all layers.")
    return names


def select_layers(
    model: keras.Model, layers: LayerChoice, kinds: tuple[type, ...]
) -> list[keras.layers.Layer]:
    """Returns the layers a technique works on, in the model's order, nested models included.

    Args:
        model: A built Sequential or Functional model.
        layers: Names of the layers, or a predicate `layer -> bool`, or None for every layer of
            `kinds`. A predicate only sees layers of `kinds`.
        kinds: Layer classes the technique can handle.

    Raises:
        UnsupportedModelError: the model is subclassed or has no input shape yet.
        UnknownNameError: a name is not a layer of the model; the nearest names are offered.
        ArgumentError: a named layer is of another kind, or nothing is chosen.

    Example:
        >>> select_layers(model, ["dense_1"], (keras.layers.Dense,))  # doctest: +SKIP
        [<Dense name=dense_1, built=True>]
    """
    functional_of(model)  # Refuses models whose graph cannot be read.
    known = list(walk_layers(model))
    if layers is None or callable(layers):
        chosen = [
            layer
            for layer in known
            if isinstance(layer, kinds) and (layers is None or layers(layer))
        ]
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
        for name in names:
            named = [layer for layer in known if layer.name == name]
            if not named:
                raise UnknownNameError("layers", name, {layer.name for layer in known})
            for layer in named:
                if not isinstance(layer, kinds):
                    raise ArgumentError(
                        "layers",
                        f"name layers of {', '.join(sorted(k.__name__ for k in kinds))}",
                        f"{name} ({type(layer).__name__})",
                    )
        chosen = [layer for layer in known if layer.name in names]
    if not chosen:
        raise ArgumentError(
            "layers",
            "choose at least one layer",
            layers,
            f"Model {model.name!r} has: "
            + ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in known)
            + ".",
        )
    return chosen


def choose_kernels(
    model: keras.Model,
    layers: LayerChoice,
    done: str,
    note: Callable[[str], None],
    suits: Callable[[LayerKind], bool] = lambda kind: True,
) -> list[ChosenKernel]:
    """Returns the weights that a technique works on, and notes what it skips.

    Args:
        model: A built Sequential or Functional model.
        layers: The user's choice.
        done: What is done to them, for the notes, e.g. "pruned".
        note: Called with a sentence for each skipped layer.
        suits: Returns whether the technique can work on a kind of layer. Defaults to all kinds
            whose kernels callbacks change.

    Raises:
        UnknownNameError: a name is not a layer of the model.
        ArgumentError: a layer is of a class the technique cannot handle, or none is left.
        UnsupportedModelError: the model is subclassed or has no input shape yet.
    """
    by_default = layer_classes(Use.BY_DEFAULT, suits)
    supported = {**by_default, **layer_classes(Use.ON_REQUEST, suits)}
    kinds = by_default if layers is None else supported
    selected = select_layers(model, layers, tuple(kinds))
    left_out: list[str] = []
    chosen: list[tuple[keras.layers.Layer, keras.Variable, str]] = []
    for layer in selected:
        attribute = next(name for kind, name in kinds.items() if isinstance(layer, kind))
        kernel = getattr(layer, attribute)
        reason = None
        if not isinstance(kernel, keras.Variable):
            reason = f"its {attribute} is computed (LoRA?)"
        elif not layer.trainable or not kernel.trainable:
            reason = "it is frozen (trainable=False)"
        elif any(kernel is other for _, other, _ in chosen):
            reason = f"it shares its weights with another {done} layer"
        elif not keras.backend.is_float_dtype(kernel.dtype):
            reason = f"its weights are {kernel.dtype}"
        if reason is None:
            chosen.append((layer, kernel, attribute))
        else:
            left_out.append(f"{layer.name} is not {done}: {reason}.")
    if layers is None:
        for layer in walk_layers(model):
            has_kernel = any(len(w.shape) > 1 for w in layer.trainable_weights)
            if layer not in selected and has_kernel:
                known = isinstance(layer, tuple(supported))
                rule = f"are {done} only if named" if known else f"cannot be {done}"
                kind = type(layer).__name__
                left_out.append(f"{layer.name} is not {done}: {kind} layers {rule}.")
    for text in left_out:
        note(text)
    if not chosen:
        reasons = " ".join(dict.fromkeys(left_out))
        raise ArgumentError("layers", f"leave at least one layer to be {done}", layers, reasons)
    names = [layer.name for layer, _, _ in chosen]
    return [
        ChosenKernel(layer.name if names.count(layer.name) == 1 else layer.path, layer, *found)
        for layer, *found in chosen
    ]
