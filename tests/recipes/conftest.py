"""A tiny trained classifier, its data, and one whole run of the recipe that several tests read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.recipes import Epoch
from edgecompress.recipes.results import CompressionResult

CLASSES = 4


@dataclass(frozen=True)
class Case:
    """A trained model, in memory and as a file, and data."""

    model: keras.Model
    path: Path
    x: np.ndarray
    y: np.ndarray

    @property
    def npz(self) -> Path:
        return self.path.with_name("train.npz")


@dataclass(frozen=True)
class Run:
    """A run of the recipe and what it told meanwhile."""

    result: CompressionResult
    folder: Path
    progress: list[str]
    epochs: list[Epoch]


def labelled(samples: int = 320, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns images of one bright quarter each, and which quarter it is."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 0.25, size=(samples, 8, 8, 1)).astype("float32")
    y = random.integers(0, CLASSES, samples)
    for image, quarter in zip(x, y, strict=True):
        top, left = 4 * (quarter // 2), 4 * (quarter % 2)
        image[top : top + 4, left : left + 4] += 0.6
    return x, y


def classifier() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(8, 3, use_bias=False, name="stem"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.DepthwiseConv2D(3, name="depth"),
            layers.Flatten(name="flat"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(CLASSES, name="head"),
        ],
        name="quarters",
    )


@pytest.fixture(scope="session")
def case(once: Callable[..., Path]) -> Case:
    x, y = labelled()

    def fill(folder: Path) -> None:
        model = classifier()
        model.compile(
            keras.optimizers.Adam(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x, y, batch_size=64, epochs=8, verbose=0)
        model.save(folder / "quarters.keras")
        np.savez(folder / "train.npz", x=x, y=y)

    path = once("case", fill) / "quarters.keras"
    return Case(keras.saving.load_model(path), path, x, y)


@pytest.fixture(scope="session")
def whole(case: Case, once: Callable[..., Path]) -> Run:
    """All stages, channels removed first; validated on samples that are new to the model."""

    def fill(folder: Path) -> None:
        (folder / "run.pickle").write_bytes(pickle.dumps(_run(case, folder / "out")))

    run: Run = pickle.loads((once("whole", fill) / "run.pickle").read_bytes())
    return run


def _run(case: Case, folder: Path) -> Run:
    progress: list[str] = []
    epochs: list[Epoch] = []
    result = ec.compress(
        case.path,
        case.npz,
        validation=labelled(120, seed=1),
        output=folder,
        targets=["nucleo-l4r5zi"],
        remove_channels=0.5,
        sparsity=0.7,
        epochs=2,
        learning_rate=5e-3,
        max_drop=0.5,
        progress=progress.append,
        on_epoch=epochs.append,
        argv=("edgecompress", "compress"),
    )
    return Run(result, folder, progress, epochs)
