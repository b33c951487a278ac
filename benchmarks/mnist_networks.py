"""LeNet-300-100, LeNet-5, a teacher, and MNIST's images with distorted copies, for benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
from keras import layers as kl

COPIES, VALIDATION, BATCH = 4, 5_000, 256


def lenet_300_100(crop: int = 0) -> keras.Sequential:
    """Returns the fully connected network.

    Args:
        crop: Rows and columns that are not read at each side; four are empty in nearly all images.
    """
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *([kl.Cropping2D(crop)] if crop else []),
            kl.Flatten(),
            kl.Dense(300, activation="relu", name="fc1"),
            kl.Dense(100, activation="relu", name="fc2"),
            kl.Dense(10, name="fc3"),
        ],
        name="lenet_300_100",
    )


def lenet_5(
    first: int = 20, second: int = 50, units: int = 500, dropout: float = 0.0
) -> keras.Sequential:
    """Returns the convolution network in the form of Caffe, or of other widths."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            kl.Conv2D(first, 5, activation="relu", name="conv1"),
            kl.MaxPooling2D(),
            kl.Conv2D(second, 5, activation="relu", name="conv2"),
            kl.MaxPooling2D(),
            kl.Flatten(),
            *([kl.Dropout(dropout)] if dropout else []),
            kl.Dense(units, activation="relu", name="fc1"),
            kl.Dense(10, name="fc2"),
        ],
        name="lenet_5",
    )


NETWORKS = {
    "lenet-300-100": lambda: lenet_300_100(crop=4),
    "lenet-5": lenet_5,
    "teacher": lambda: lenet_5(24, 48, 256, dropout=0.3),
}


def images(path: Path, cache: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns training images with distorted copies, validation and test images, with digits.

    Args:
        path: The file that keras.datasets.mnist loads.
        cache: A file for the copies.
    """
    with np.load(path) as file:
        x, test = (file[k][..., None].astype("float32") / 255 for k in ("x_train", "x_test"))
        y, y_test = (file[k].astype(int) for k in ("y_train", "y_test"))
    order = np.random.default_rng(0).permutation(len(x))
    held, used = order[-VALIDATION:], order[:-VALIDATION]
    if not cache.exists():
        keras.utils.set_random_seed(0)
        fill = {"fill_mode": "constant", "fill_value": 0.0}
        distort = keras.Sequential(
            [
                kl.RandomRotation(0.03, **fill),
                kl.RandomZoom(0.12, **fill),
                kl.RandomTranslation(0.06, 0.06, **fill),
            ]
        )
        parts = np.array_split(np.tile(x[used], (COPIES, 1, 1, 1)), 200)
        made = np.concatenate([np.asarray(distort(part, training=True)) for part in parts])
        # Whole or not at all, whichever of several processes is first.
        part = cache.with_suffix(f".{os.getpid()}.npy")
        np.save(part, np.rint(255 * np.clip(made, 0, 1)).astype("uint8"))
        part.replace(cache)
    copies = np.load(cache).astype("float32") / 255
    train = np.concatenate([x[used], copies]), np.tile(y[used], COPIES + 1)
    return [train, (x[held], y[held]), (test, y_test)]


def trained(name: str, seed: int, train: tuple[np.ndarray, np.ndarray], work: Path) -> Path:
    """Returns the file of a network trained for two epochs, which is made unless it exists."""
    path = work / f"{name}_{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = NETWORKS[name]()
        rate = keras.optimizers.schedules.CosineDecay(2e-3, 2 * len(train[0]) // BATCH)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss, steps_per_execution=20)
        model.fit(*train, BATCH, epochs=2, verbose=0)
        part = path.with_suffix(f".{os.getpid()}.keras")
        model.save(part)
        part.replace(path)
    return path
