"""Fits that give the same on every Keras backend: `python backend_fits.py FOLDER` saves results."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import edgecompress as ec
from edgecompress.core.record import record_of

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 4, 4, 2)).astype("f4")
Y = RANDOM.integers(0, 3, 32)
SCHEDULE = ec.PolynomialDecay(0.5, begin_step=0, end_step=3, frequency=1)


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the train functions alive, and counts a layer's zeros after each batch."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer, self.zeros, self.functions = layer, [], []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        kernel = keras.ops.convert_to_numpy(self.model.get_layer(self.layer).kernel)
        self.zeros.append(int((kernel == 0).all(0).sum()))
        self.functions.append(self.model.train_function)


def residual() -> Any:
    """Convolution with BatchNormalization, depthwise convolution, residual sum, pooling, Dense."""
    inputs = keras.Input((4, 4, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(inputs)
    first = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(first)
    x = layers.Conv2D(4, 1, name="pointwise")(x)
    x = layers.ReLU(6, name="sum_relu")(layers.Add(name="sum")([x, first]))
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(name="pool")(x))
    return _compiled(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def dense() -> Any:
    """A layer for each callback."""
    names = ("pruned", "clustered", "ternary", "fixed", "groups")
    hidden = [layers.Dense(8, activation="tanh", name=name) for name in names]
    parts = [keras.Input((4, 4, 2)), layers.Flatten(), *hidden, layers.Dense(3, name="head")]
    return _compiled(keras.Sequential(parts), keras.optimizers.Adam(0.01))


def _compiled(model: Any, optimizer: Any = None) -> Any:
    random = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(random.uniform(-0.5, 0.5, variable.shape).astype("f4"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), loss)
    return model


def _fitted(model: Any, *callbacks: Any, **more: Any) -> dict[str, Any]:
    done = model.fit(
        X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks), **more
    )
    return {
        "history": {name: np.array(values, "f8") for name, values in done.history.items()},
        "weights": {v.path: keras.ops.convert_to_numpy(v) for v in model.weights},
        "ranges": dict(record_of(model).ranges),
        "outputs": keras.ops.convert_to_numpy(model(X)),
        "lent": len(model.variables) - len(model.weights),
    }


def quantized(model: Any) -> dict[str, Any]:
    """Pruning and quantization-aware training of `residual`."""
    callbacks = ec.MagnitudePruning(SCHEDULE), ec.QuantizationAwareTraining()
    return _fitted(model, *callbacks, validation_data=(X, Y))


def distilled(model: Any) -> dict[str, Any]:
    """`residual` taught by another of its kind, outputs and a layer."""
    teacher = residual()
    for variable in teacher.trainable_variables:
        variable.assign(variable * 1.5)
    return _fitted(model, ec.Distillation(teacher, "distillation:weight=0.5", {"sum_relu": "relu"}))


def compressed(model: Any) -> dict[str, Any]:
    """Every other callback on a layer of `dense`."""
    watch = Watch("groups")
    done = _fitted(
        model,
        ec.GroupLasso(1e-3, final_sparsity=0.5, layers=["groups"], end_epoch=1),
        ec.Pruning(SCHEDULE, criterion="taylor", layers=["pruned"]),
        ec.WeightClustering(4, layers=["clustered"]),
        ec.Ternarize("ttq", layers=["ternary"]),
        ec.FixedPointTraining(8, 6, "nearest", layers=["fixed"]),
        watch,
    )
    return {**done, "zeros": watch.zeros}


def thinned(model: Any) -> dict[str, Any]:
    """Channels of `residual` under a budget, ranked by gradients."""
    return _fitted(model, ec.ChannelPruning(ec.Budget(macs=0.6), begin_epoch=1))


def main(folder: Path) -> None:
    """Runs on JAX; the quantized model on as many devices as there are."""
    found: dict[str, Any] = {"compressed": compressed(dense()), "thinned": thinned(residual())}
    found["distilled"] = distilled(residual())
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    found["devices"] = len(keras.distribution.list_devices())
    model = residual()
    found["quantized"] = quantized(model)
    model.save(folder / "model.keras")
    found["finalized"] = keras.ops.convert_to_numpy(ec.finalize(model)(X))
    (folder / "found.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    # Nothing here needs TensorFlow, which Keras imports to save a model.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    main(Path(sys.argv[1]))
