"""A small trained classifier with a residual branch, and one search of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

LIMITS = {"max_ram": 4600, "max_file_size": "9KiB"}
# Everything that would cost the tests time and is tested on its own.
FEW = ("depth", "channels", "distillation")


def make_data(seed: int = 0, samples: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Images whose label says which quarter is brightest."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, 8, 8, 1)).astype("float32")
    y = random.integers(0, 4, samples)
    for image, label in zip(x, y, strict=True):
        row, column = divmod(int(label), 2)
        image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1
    return x, y


def make_model() -> Any:
    """A convolution, two residual blocks, a classifier."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same")(inputs)))
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same")(x)))
        y = layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same")(y))
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="quarters")


@pytest.fixture(scope="package")
def trained() -> Any:
    """The trained model."""
    import keras

    model = make_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(*make_data(), epochs=6, batch_size=32, verbose=0)
    return model


@pytest.fixture(scope="package")
def asked() -> dict[str, Any]:
    """What all searches of it have in common."""
    return {
        "data": make_data(),
        "validation": make_data(1, 120),
        "targets": ["nucleo-l4r5zi"],
        "techniques": FEW,
        "epochs": 2,
        "minutes": None,
        **LIMITS,
    }


@pytest.fixture(scope="package")
def found(
    trained: Any, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """A search of five candidates, and its folder."""
    import edgecompress as ec

    folder = tmp_path_factory.mktemp("search")
    return ec.search(trained, **asked, trials=5, output=folder), folder
