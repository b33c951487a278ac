"""The one module that touches Keras internals; everything else uses the functions here.

Private names used: `Sequential._functional` (the Functional model inside a built Sequential).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgecompress.core.errors import UnsupportedModelError


def functional_of(model: Any) -> Any:
    """Returns the Functional model behind a Sequential or Functional Keras model.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or no Keras 3 model.
    """
    import keras

    if isinstance(model, keras.Sequential):
        if not model.built or getattr(model, "_functional", None) is None:
            raise UnsupportedModelError(
                f"Model {model.name!r} has no input shape yet. Start it with keras.Input(shape) or "
                "call it once on data."
            )
        return model._functional
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            f"Expected a Keras 3 model, got {type(model).__module__}.{type(model).__name__}. Load "
            "Keras 2 files with edgecompress export."
        )
    if type(model) is not keras.Model and not hasattr(model, "operations"):
        raise UnsupportedModelError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): its graph is hidden in "
            "call(). Build it with keras.Sequential or the functional API."
        )
    if not hasattr(model, "operations"):
        raise UnsupportedModelError(f"Model {model.name!r} has no graph of layers.")
    return model


def walk_layers(model: Any) -> Iterator[Any]:
    """Yields the leaf layers of a model in order, entering nested models, each layer once."""
    seen: set[int] = set()

    def walk(layers: list[Any]) -> Iterator[Any]:
        for layer in layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            inner = getattr(layer, "layers", None)
            if inner:
                yield from walk(inner)
            else:
                yield layer

    yield from walk(model.layers)
