"""What differs between the Keras backends that callbacks train on; everything else is keras.ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from edgecompress.callbacks.backends.base import Backend
from edgecompress.callbacks.backends.on_jax import OnJax
from edgecompress.core.errors import ArgumentError

# Name, as in KERAS_BACKEND -> the backend.
BACKENDS: Mapping[str, Backend] = {"tensorflow": Backend(), "jax": OnJax()}


def current() -> Backend:
    """Returns the backend of this process; callbacks have refused those that are unknown."""
    return BACKENDS[keras.backend.backend()]


def check_backend(what: str, known: Sequence[str] = tuple(BACKENDS)) -> None:
    """Refuses a Keras backend.

    Args:
        what: What needs another one: the name of a callback.
        known: The backends on which it runs. Defaults to all in `BACKENDS`.

    Raises:
        ArgumentError: Keras runs on another backend.
    """
    name = keras.backend.backend()
    if name not in known:
        raise ArgumentError(
            "KERAS_BACKEND",
            f"be {' or '.join(known)} for {what}",
            name,
            "Set it before Keras is imported; a .keras file loads on every backend.",
        )
