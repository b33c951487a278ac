"""The networks and the training of `pruning_curves.py`, for Keras 3 and tf_keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import step_overhead_protocol
from step_overhead_protocol import unit

BATCH = 128


@dataclass(frozen=True)
class Task:
    """A network and how it is trained.

    Attributes:
        title: In the table.
        data: Which data file: `fashion` or `watch`.
        build: Makes the network with a Keras module.
        dense_epochs: Of the dense network.
        pruning_epochs: In which channels become zero.
        tuning_epochs: Of what is left.
        seeds: How often all is repeated.
        rate: Learning rate that every training starts with.
        taught: Whether the dense network also teaches smaller ones.
    """

    title: str
    data: str
    build: Callable[[Any], Any]
    dense_epochs: int
    pruning_epochs: int
    tuning_epochs: int
    seeds: int
    rate: float = 2e-3
    taught: bool = False


_MOMENTUM = 0.9


def _unit(keras: Any, x: Any, layer: Any) -> Any:
    return unit(keras, x, layer, momentum=_MOMENTUM)


def resnet20(keras: Any) -> Any:
    """ResNet-20 for small images: its first convolution has stride 2."""
    return step_overhead_protocol.resnet20(keras, (28, 28, 1), strides=2, momentum=_MOMENTUM)


def mobilenet_v1(keras: Any) -> Any:
    """MobileNetV1 (Howard et al., 2017, table 1) at a quarter of its width, for small images."""
    layers, same = keras.layers, {"padding": "same", "use_bias": False}
    inputs = keras.Input((28, 28, 1))
    x = _unit(keras, inputs, layers.Conv2D(16, 3, strides=2, **same))
    for filters, strides in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1)):
        x = _unit(keras, x, layers.DepthwiseConv2D(3, strides=strides, **same))
        x = _unit(keras, x, layers.Conv2D(filters, 1, **same))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def ds_cnn(keras: Any) -> Any:
    """DS-CNN (Zhang et al., "Hello edge", 2017) over time: 128 samples of six axes."""
    layers, same = keras.layers, {"padding": "same", "use_bias": False}
    inputs = keras.Input((128, 6))
    x = layers.Reshape((128, 1, 6))(inputs)
    x = _unit(keras, x, layers.Conv2D(64, (10, 1), strides=(2, 1), **same))
    for _ in range(4):
        x = _unit(keras, x, layers.DepthwiseConv2D((5, 1), **same))
        x = _unit(keras, x, layers.Conv2D(64, 1, **same))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(7)(x))


TASKS = {
    "resnet": Task("ResNet-20, Fashion-MNIST", "fashion", resnet20, 8, 1, 6, 3),
    "mobilenet": Task("MobileNetV1, Fashion-MNIST", "fashion", mobilenet_v1, 8, 1, 6, 1),
    "ds_cnn": Task("DS-CNN, watch exercises", "watch", ds_cnn, 30, 6, 24, 1, taught=True),
}


def load(task: Task, folder: Path) -> list[np.ndarray]:
    """Returns x_train, y_train, x_test, y_test; test subjects of the watch are not training's."""
    name = {"fashion": "fashion_mnist.npz", "watch": "watch_exercises.npz"}[task.data]
    with np.load(folder / name) as file:
        x, y, x_test, y_test = (
            file[f"{part}_{split}"] for split in ("train", "test") for part in ("x", "y")
        )
    if task.data == "fashion":
        x, x_test = (part[..., None] / np.float32(255) for part in (x, x_test))
    else:
        x, x_test = (part.astype(np.float32) for part in (x, x_test))
        mean, deviation = x.mean((0, 1)), x.std((0, 1))
        x, x_test = ((part - mean) / deviation for part in (x, x_test))
    return [x.astype(np.float32), y.astype(np.int64), x_test.astype(np.float32), y_test]


def fit(
    keras: Any,
    model: Any,
    data: Any,
    epochs: int,
    rate: float,
    callbacks: Sequence[Any] = (),
    rounds: int = 1,
) -> float:
    """Trains with Adam, its rate falling to 0 as half a cosine; returns the test accuracy in %.

    What a callback does once an epoch, it does `rounds` times in each: they are cut into parts.
    """
    x, y, x_test, y_test = data
    steps = -(-len(x) // BATCH) // rounds
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * rounds * steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    parts: dict[str, Any] = {"x": x, "y": y, "batch_size": BATCH}
    if rounds > 1:
        import tensorflow as tf

        samples = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).repeat()
        parts = {"x": samples.batch(BATCH), "steps_per_epoch": steps, "shuffle": False}
    model.fit(**parts, epochs=epochs * rounds, verbose=0, callbacks=list(callbacks))
    return 100 * float(model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1])
