"""What `step_overhead.py` and its peer share: five networks, and variants that train by turns.

Works with Keras 3 and with tf_keras, whichever module it is given.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WARM_UP, COOL_DOWN = 2, 1
# Steps between two updates of the masks.
FREQUENCY = 100


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        title: In the table.
        build: Makes it with a Keras module.
        shape: Of a sample.
        batch: Samples of a step.
        steps: Steps of a turn.
    """

    title: str
    build: Callable[[Any], Any]
    shape: tuple[int, ...]
    batch: int
    steps: int


def _mlp(keras: Any) -> Any:
    """LeNet-300-100: 266,610 parameters."""
    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(300, activation="relu"),
        keras.layers.Dense(100, activation="relu"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers)


def unit(keras: Any, x: Any, layer: Any, relu: bool = True, momentum: float = 0.99) -> Any:
    """Returns the outputs of a layer, normalized over the batch and rectified."""
    x = keras.layers.BatchNormalization(momentum=momentum)(layer(x))
    return keras.layers.ReLU()(x) if relu else x


def _conv(keras: Any) -> Any:
    """Two convolutions with pooling, two Dense layers."""
    layers = keras.layers
    x = inputs = keras.Input((28, 28, 1))
    for filters in (16, 24):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 3, activation="relu")(x))
    x = layers.Dense(48, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def _separable(keras: Any) -> Any:
    """Depthwise-separable, one residual sum: 13,770 parameters."""
    layers, same = keras.layers, {"padding": "same", "use_bias": False}
    inputs = keras.Input((28, 28, 1))
    x = unit(keras, inputs, layers.Conv2D(16, 3, strides=2, **same))
    x = unit(keras, x, layers.DepthwiseConv2D(3, **same))
    x = unit(keras, x, layers.Conv2D(32, 1, **same))
    y = unit(keras, x, layers.Conv2D(32, 3, **same), relu=False)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = unit(keras, x, layers.DepthwiseConv2D(3, strides=2, **same))
    x = unit(keras, x, layers.Conv2D(64, 1, **same))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def resnet20(
    keras: Any,
    shape: tuple[int, ...] = (32, 32, 3),
    strides: int = 1,
    momentum: float = 0.99,
) -> Any:
    """ResNet-20 (He et al., 2015, section 4.2).

    Args:
        keras: A Keras module.
        shape: Of an image.
        strides: Of the first convolution.
        momentum: Of every BatchNormalization.
    """
    layers, same = keras.layers, {"padding": "same", "use_bias": False}
    norm = {"momentum": momentum}
    inputs = keras.Input(shape)
    x = unit(keras, inputs, layers.Conv2D(16, 3, strides=strides, **same), **norm)
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            step = 2 if stage and not block else 1
            y = unit(keras, x, layers.Conv2D(filters, 3, strides=step, **same), **norm)
            y = unit(keras, y, layers.Conv2D(filters, 3, **same), relu=False, **norm)
            if step == 2:
                shortcut = layers.Conv2D(filters, 1, strides=2, **same)
                x = unit(keras, x, shortcut, relu=False, **norm)
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _mobilenet(keras: Any) -> Any:
    """MobileNetV2 with a linear output."""
    arguments = {"weights": None, "classes": 10, "classifier_activation": None}
    return keras.applications.MobileNetV2((96, 96, 3), **arguments)


NETWORKS = {
    "mlp": Network("LeNet-300-100", _mlp, (28, 28, 1), 128, 100),
    "conv": Network("small conv net", _conv, (28, 28, 1), 64, 40),
    "separable": Network("depthwise-separable", _separable, (28, 28, 1), 64, 30),
    "mobilenet": Network("MobileNetV2-96", _mobilenet, (96, 96, 3), 16, 5),
    "resnet": Network("ResNet-20", resnet20, (32, 32, 3), 32, 8),
}


class Turns:
    """Lets the variants run one epoch at a time, round after round."""

    def __init__(self, names: list[str]) -> None:
        """Begins with the first."""
        self.names, self.next, self.changed = list(names), 0, threading.Condition()

    def wait(self, name: str) -> None:
        """Returns when it is a variant's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.next] == name)

    def pass_on(self) -> None:
        """Ends a turn."""
        with self.changed:
            self.next = (self.next + 1) % len(self.names)
            self.changed.notify_all()

    def leave(self, name: str) -> None:
        """Ends a variant."""
        with self.changed:
            self.names.remove(name)
            self.next %= max(len(self.names), 1)
            self.changed.notify_all()


def gates(keras: Any, name: str, turns: Turns, seconds: list[float]) -> tuple[Any, Any]:
    """Returns callbacks to list last and first, which measure the CPU seconds of an epoch's steps.

    What other callbacks do before and after the steps of an epoch is left out. The first waits for
    the variant's turn at every epoch.
    """

    class Start(keras.callbacks.Callback):
        started = 0.0

        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch:
                turns.pass_on()
                turns.wait(name)
            self.started = time.process_time()

    start = Start()

    class End(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            seconds.append(time.process_time() - start.started)

    return start, End()


# Prepares a model; returns it with its callbacks. Given: model, number of steps.
Variant = Callable[[Any, int], tuple[Any, list[Any]]]


def measure(
    keras: Any, network: Network, variants: Mapping[str, Variant], rounds: int
) -> dict[str, list[float]]:
    """Returns the CPU seconds of every measured turn of each variant."""
    epochs = WARM_UP + rounds + COOL_DOWN
    turns, failures = Turns(list(variants)), []
    seconds: dict[str, list[float]] = {name: [] for name in variants}

    def train(name: str) -> None:
        turns.wait(name)
        try:
            keras.utils.set_random_seed(0)
            random = np.random.default_rng(0)
            x = random.random((network.steps * network.batch, *network.shape), dtype="f4")
            y = random.integers(0, 10, len(x))
            model, callbacks = variants[name](network.build(keras), network.steps * epochs)
            start, end = gates(keras, name, turns, seconds[name])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, metrics=["accuracy"])
            model.fit(
                x,
                y,
                batch_size=network.batch,
                epochs=epochs,
                verbose=0,
                callbacks=[end, *callbacks, start],
            )
        except Exception as error:
            failures.append((name, error))
        turns.leave(name)

    threads = [threading.Thread(target=train, args=(name,)) for name in variants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, error in failures:
        raise RuntimeError(f"variant {name} failed on {network.title}") from error
    return {name: found[WARM_UP : WARM_UP + rounds] for name, found in seconds.items()}


def rows(seconds: Mapping[str, list[float]], steps: int) -> dict[str, dict[str, float]]:
    """Returns the time of a step and its ratio to plain fit, in turns of the same round."""
    found = {}
    for name, turns in seconds.items():
        ratios = [a / b for a, b in zip(turns, seconds["plain"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        found[name] = {
            "us": statistics.median(turns) / steps * 1e6,
            "ratio": statistics.median(ratios),
            "low": quartiles[0],
            "high": quartiles[2],
            "minima": min(turns) / min(seconds["plain"]),
        }
    return found
