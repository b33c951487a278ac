"""Functions of a training step that run as one compiled operator (XLA, TensorFlow only).

A step over the weights of a model reads and writes each of them for every operator, and the
scheduling of an operator takes longer than a small kernel. Compiled together, the operators pass
over the memory once. Arithmetic and order stay the same for each element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import keras

F = TypeVar("F", bound=Callable[..., Any])

# Starting a compiled operator takes as long as plain ones take for smaller kernels.
_WORTHWHILE = 2**14


def on_one_device(model: keras.Model) -> bool:
    """Returns whether TensorFlow trains a model without copies on other devices."""
    if keras.backend.backend() != "tensorflow":
        return False
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None:
        return True
    import tensorflow as tf

    # These wrap variables even on one device.
    wraps = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    return strategy.num_replicas_in_sync == 1 and not isinstance(strategy, wraps)


def is_large(model: keras.Model, weight: Any) -> bool:
    """Returns whether a function of a weight is faster when compiled."""
    return math.prod(weight.shape) >= _WORTHWHILE and on_one_device(model)


def fused(function: F, model: keras.Model, weights: Iterable[Any]) -> F:
    """Returns a function that computes the same, as one operator where that is worthwhile.

    Args:
        function: Called inside the step with tensors of static shapes; it may assign variables.
        model: The model being trained.
        weights: What it passes over: kernels, whose mean size decides.
    """
    sizes = [math.prod(weight.shape) for weight in weights]
    if sum(sizes) < _WORTHWHILE * len(sizes) or not on_one_device(model):
        return function
    import tensorflow as tf

    compiled: F = tf.function(function, jit_compile=True, autograph=False)
    return compiled


def apart(function: F, model: keras.Model) -> F:
    """Returns a function that is one operator of the step's graph, for a branch seldom taken.

    TensorFlow puts the operators of a branch among the others, and visits each in every step to
    find that it is not due.

    Args:
        function: Called inside the step; it may assign variables.
        model: The model being trained.
    """
    if not on_one_device(model):
        return function
    import tensorflow as tf

    whole: F = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    return whole
