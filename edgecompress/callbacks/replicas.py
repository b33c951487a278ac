"""Copies of a model that train together: the replicas of a TensorFlow strategy.

On JAX a step sees the whole batch, whatever devices share it.
"""

from __future__ import annotations

from typing import Any

import keras


def replicas(model: keras.Model) -> int:
    """Returns how many copies of a model train together, on all devices of all workers."""
    if keras.backend.backend() != "tensorflow":
        return 1
    return int(model.distribute_strategy.num_replicas_in_sync)


def dense(gradient: Any) -> Any:
    """Returns a gradient as a tensor; that of a table of vectors comes as the rows that were read.

    Example:
        >>> dense(keras.ops.ones((2,)))
        <tf.Tensor: shape=(2,), dtype=float32, numpy=array([1., 1.], dtype=float32)>
    """
    if keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def summed(value: Any) -> Any:
    """Returns the sum of a tensor over all replicas, inside a train step; itself without others."""
    return _reduced(value, "SUM")


def averaged(value: Any) -> Any:
    """Returns the mean of a tensor over all replicas, inside a train step; itself without others.

    Replicas whose batch is smaller count as much as the others.
    """
    return _reduced(value, "MEAN")


def _reduced(value: Any, operation: str) -> Any:
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    # Outside of a replica, where Keras looks at shapes, there is nothing to add up.
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(operation, tf.convert_to_tensor(value))
