"""The runs of `pruning_curves.py` in tensorflow-model-optimization, with tf_keras."""

from __future__ import annotations

import os
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tf_keras
from pruning_curves_networks import BATCH, Task, fit
from tensorflow_model_optimization.python.core.sparsity.keras import (
    prune,
    pruning_callbacks,
    pruning_schedule,
)

# Of the masks.
_UPDATES = 20


def pruned(
    task: Task, data: Any, seed: int, share: float, weights: list[np.ndarray]
) -> dict[str, float]:
    """Prunes single weights so that `share` of the MACs has a weight that is not zero.

    Depthwise kernels are not pruned (its default), the others more for it.
    """
    tf_keras.utils.set_random_seed(seed)
    model = task.build(tf_keras)
    model.set_weights(weights)
    whole, fixed = _macs(model, dense=True), _macs(model, dense=True, only_depthwise=True)
    sparsity = 1 - (share * whole - fixed) / (whole - fixed)
    steps = -(-len(data[0]) // BATCH)
    frequency = max(1, task.pruning_epochs * steps // _UPDATES)
    end = _UPDATES * frequency  # The last update has to fall on it.
    schedule = pruning_schedule.PolynomialDecay(0.0, sparsity, 0, end, frequency=frequency)
    model = prune.prune_low_magnitude(model, pruning_schedule=schedule)
    epochs = task.pruning_epochs + task.tuning_epochs
    update = [pruning_callbacks.UpdatePruningStep()]
    accuracy = fit(tf_keras, model, data, epochs, task.rate, update)
    stripped = prune.strip_pruning(model)
    parameters = sum(int(np.count_nonzero(array)) for array in stripped.get_weights())
    left = _macs(stripped, dense=False) / whole
    return {"accuracy": accuracy, "macs": left, "parameters": parameters}


def _macs(model: Any, dense: bool, only_depthwise: bool = False) -> int:
    """Returns the multiply-accumulates; without those of zero weights if not `dense`."""
    total = 0
    for layer in model.layers:
        depthwise = isinstance(layer, tf_keras.layers.DepthwiseConv2D)
        kernel = getattr(layer, "depthwise_kernel" if depthwise else "kernel", None)
        if kernel is None or (only_depthwise and not depthwise):
            continue
        array = kernel.numpy()
        weights = array.size if dense else int(np.count_nonzero(array))
        total += weights * int(np.prod(layer.output_shape[1:-1]))
    return total
