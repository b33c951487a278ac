"""One of two workers that train together: two_workers.py INDEX PORT PORT FOLDER.

Writes the final weights to FOLDER/INDEX.npz and, as worker 0, those of one worker on the same
batches to FOLDER/one.npz; prints what Keras says of two workers before it is mended.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

_, INDEX, *PORTS, FOLDER = sys.argv
os.environ["TF_CONFIG"] = json.dumps(
    {
        "cluster": {"worker": [f"localhost:{port}" for port in PORTS]},
        "task": {"type": "worker", "index": int(INDEX)},
    }
)
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras.src.backend.tensorflow import trainer  # noqa: E402

import edgecompress as ec  # noqa: E402

STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()
X = np.random.default_rng(0).normal(size=(32, 10)).astype("f4")
CALLBACKS = {
    "magnitude": lambda: ec.MagnitudePruning(_to_80_percent()),
    "hessian": lambda: ec.Pruning(_to_80_percent(), "optimal-brain-damage"),
    "activation": lambda: ec.Pruning(_to_80_percent(), "activation", "filters"),
    "random": lambda: ec.Pruning(_to_80_percent(), "random"),
    "channels": lambda: ec.ChannelPruning(ec.Budget(macs=0.5), "taylor", end_epoch=1),
    "lasso": lambda: ec.GroupLasso(0.05, final_sparsity=0.5, end_epoch=1),
    "clustering": lambda: ec.WeightClustering(4, begin_epoch=1),
}


def _to_80_percent() -> ec.PolynomialDecay:
    return ec.PolynomialDecay(0.8, begin_step=0, end_step=6, frequency=2)


def trained(strategy: Any, *callbacks: Any) -> list[np.ndarray]:
    """Returns the weights after two epochs of four steps."""
    keras.utils.set_random_seed(0)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        dense = keras.layers.Dense
        # Random scores depend on names.
        layers = [
            dense(12, "relu", name="first"), dense(8, "relu", name="second"), dense(10, name="last")
        ]  # fmt: skip
        model = keras.Sequential([keras.Input((10,)), *layers])
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    model.fit(X, X**2, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
    return [np.array(weight) for weight in model.get_weights()]


def mend_keras() -> None:
    """Lets `fit` look at one replica's batch, and average numbers over the replicas."""

    def build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda value: STRATEGY.experimental_local_results(value)[0], next(batches)
            )
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def mean(values: Any, strategy: Any, reduction: str) -> Any:
        return keras.tree.map_structure(lambda x: strategy.reduce("MEAN", x, axis=None), values)

    trainer.TensorFlowTrainer._maybe_symbolic_build = build
    trainer.reduce_per_replica = mean


def save(name: str, strategy: Any) -> None:
    """Trains with each callback, and writes all weights."""
    found = {kind: trained(strategy, make()) for kind, make in CALLBACKS.items()}
    arrays = {f"{k}/{i}": w for k, weights in found.items() for i, w in enumerate(weights)}
    np.savez(os.path.join(FOLDER, name), **arrays)


if __name__ == "__main__":
    try:
        trained(STRATEGY, ec.MagnitudePruning(_to_80_percent()))
    except ValueError as error:
        print(str(error).splitlines()[0])
    mend_keras()
    save(INDEX, STRATEGY)
    if INDEX == "0":
        trainer.reduce_per_replica = lambda values, strategy, reduction: values
        save("one", None)
