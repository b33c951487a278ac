"""The layer of a Keras model that a node of its TensorFlow graph belongs to, by their names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from edgecompress.converters.loaders import LoadedModel


def layer_names(loaded: LoadedModel) -> list[str]:
    """Returns the paths of a model's layers, nested ones too; none for a SavedModel."""
    names, stack = [], [("", loaded.model)] if loaded.flavour != "saved_model" else []
    while stack:
        prefix, model = stack.pop()
        for layer in getattr(model, "layers", ()):
            names.append(f"{prefix}{layer.name}")
            stack.append((f"{names[-1]}/", layer))
    return names


def layer_of(graph_name: str, layers: Iterable[str]) -> str | None:
    """Returns the innermost layer in a graph name such as `model_1/conv_2/Relu`, or None.

    The last part is an operator, which may be called like some other layer. Tracing may add `_1`,
    `_2`, ... to the name of a layer or of a model around it.

    Args:
        graph_name: The name.
        layers: Paths of layers, such as `encoder/conv`.

    Returns:
        Its name; its path if layers of several nested models are called the same.
    """
    known = _by_name(tuple(layers))
    parts = graph_name.split(";")[0].split("/")
    for place in reversed(range(max(1, len(parts) - 1))):
        found = next((name for name in _untraced(parts[place]) if name in known), None)
        if found is None:
            continue
        if len(known[found]) == 1:
            return found
        around = [models for models in known[found] if _lies_in(parts[:place], models)]
        return "/".join([*max(around, key=len, default=[]), found])
    return None


# Each operator of a file asks about the same layers.
@functools.lru_cache(maxsize=4)
def _by_name(layers: tuple[str, ...]) -> dict[str, list[list[str]]]:
    """Returns the nested models around the layers of each name."""
    known: dict[str, list[list[str]]] = {}
    for path in layers:
        *models, name = path.split("/")
        known.setdefault(name, []).append(models)
    return known


def _untraced(part: str) -> tuple[str, str]:
    """Returns what a part of a graph name may have been called in the model."""
    return part, re.sub(r"_\d+$", "", part)


def _lies_in(parts: Sequence[str], models: Sequence[str]) -> bool:
    """Returns whether parts of a graph name end with these nested models."""
    last = parts[len(parts) - len(models) :] if models else ()
    return len(last) == len(models) and all(
        model in _untraced(part) for part, model in zip(last, models, strict=True)
    )
