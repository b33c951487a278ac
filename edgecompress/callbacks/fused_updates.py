"""The optimizer's updates of large weights, each as one compiled operator (TensorFlow only).

Keras writes an update as a dozen operators, and each of them passes over the weights: a quarter of
the step of a fully connected net. Compiled, they pass over the memory once, which saves more than
what the callbacks add there. The arithmetic is the same, except that the compiler rounds some
products and sums once instead of twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from edgecompress.callbacks.fused import is_large
from edgecompress.callbacks.hooks import HookSession, Wrapping
from edgecompress.core.keras_graph import optimizers_of

# Optimizers that keep states for each weight. SGD has few operators, and stays exact.
_WITH_STATES = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "Lion", "Nadam", "RMSprop")


class FusedUpdates(Wrapping):
    """Compiles the updates of large weights.

    Args:
        model: The model being trained.

    Attributes:
        compiled: The update of each weight so far, by identity.
    """

    def __init__(self, model: keras.Model) -> None:
        """Compiles nothing yet."""
        super().__init__(optimizers_of(model)[-1], "update_step", self._compiling)
        self._model = model
        self.compiled: dict[int, Callable[[Any, Any], None]] = {}

    def _compiling(self, update: Callable[..., None]) -> Callable[..., None]:
        import tensorflow as tf

        @functools.wraps(update)
        def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
            if isinstance(gradient, tf.IndexedSlices) or not is_large(self._model, variable):
                update(gradient, variable, learning_rate)
                return
            if id(variable) not in self.compiled:
                self.compiled[id(variable)] = tf.function(
                    lambda found, rate: update(found, variable, rate),
                    jit_compile=True,
                    autograph=False,
                )
            found = map(tf.convert_to_tensor, (gradient, learning_rate))
            self.compiled[id(variable)](*found)

        return update_step


def fused_updates(session: HookSession) -> list[FusedUpdates]:
    """Returns the hook that compiles updates, where that is worthwhile and not done yet.

    Args:
        session: The hooks of a fit.
    """
    model = session.model
    known = [getattr(keras.optimizers, name) for name in _WITH_STATES]
    if (
        type(optimizers_of(model)[-1]) not in known
        or any(isinstance(hook, FusedUpdates) for hook in session.hooks)
        or not any(is_large(model, variable) for variable in model.trainable_variables)
    ):
        return []
    return [FusedUpdates(model)]
