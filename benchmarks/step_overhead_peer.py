"""The variants of `step_overhead.py` in tensorflow-model-optimization, with tf_keras.

    python benchmarks/step_overhead_peer.py NETWORK ROUNDS VARIANT ...

Prints the rows of the table as JSON; they are relative to tf_keras's own plain fit.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tf_keras
from step_overhead_protocol import FREQUENCY, NETWORKS, Variant, measure, rows
from tensorflow_model_optimization.python.core.clustering.keras import cluster
from tensorflow_model_optimization.python.core.quantization.keras import quantize
from tensorflow_model_optimization.python.core.sparsity.keras import (
    prune,
    pruning_callbacks,
    pruning_schedule,
)


def pruning(model: Any, steps: int) -> tuple[Any, list[Any]]:
    """Masks recomputed every 100 steps up to the end."""
    schedule = pruning_schedule.PolynomialDecay(0.0, 0.8, 0, max(steps, 2 * FREQUENCY))
    model = prune.prune_low_magnitude(model, pruning_schedule=schedule)
    return model, [pruning_callbacks.UpdatePruningStep()]


VARIANTS: dict[str, Variant] = {
    "plain": lambda model, steps: (model, []),
    "pruning": pruning,
    "clustering": lambda model, steps: (
        cluster.cluster_weights(
            model, 16, cluster_centroids_init=cluster.cluster_config.CentroidInitialization.LINEAR
        ),
        [],
    ),
    "qat": lambda model, steps: (quantize.quantize_model(model), []),
}


def main() -> None:
    """Measures and prints."""
    network = NETWORKS[sys.argv[1]]
    chosen = {name: VARIANTS[name] for name in ("plain", *sys.argv[3:]) if name in VARIANTS}
    seconds = measure(tf_keras, network, chosen, int(sys.argv[2]))
    print(json.dumps(rows(seconds, network.steps)))


if __name__ == "__main__":
    main()
