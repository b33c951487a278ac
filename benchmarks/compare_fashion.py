"""Six rows of `edgecompress compare` on Fashion-MNIST: the table of docs/compare.md.

    python benchmarks/compare_fashion.py --data fashion_mnist.npz --work DIR
        [--docs docs/compare.md]

Trains a small convolutional network, writes it and the data into the folder in the form that
`compare` takes, and runs it on compare_fashion.toml. The test images are the validation samples:
nothing is chosen on them. An interrupted benchmark continues.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl
from precision_engines import replaced

from edgecompress.cli import main as edgecompress
from edgecompress.core.files import write_atomic

EPOCHS, BATCH = 5, 128


def network() -> keras.Model:
    """Returns three convolutions and a classifier."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            kl.Conv2D(16, 3, strides=2, activation="relu", name="conv1"),
            kl.Conv2D(32, 3, activation="relu", name="conv2"),
            kl.MaxPooling2D(),
            kl.Conv2D(48, 3, activation="relu", name="conv3"),
            kl.Flatten(),
            kl.Dense(10, activation="softmax", name="classes"),
        ],
        name="fashion",
    )


def prepare(data: Path, folder: Path) -> None:
    """Writes model, training and test data, unless they are there."""
    held = np.load(data)
    files = {}
    for name in ("train", "test"):
        x = held[f"x_{name}"].astype("float32")[..., None] / 255
        files[name] = {"x": x, "y": held[f"y_{name}"]}
        if not (folder / f"{name}.npz").is_file():
            np.savez(folder / f"{name}.npz", **files[name])
    path = folder / "fashion.keras"
    if path.is_file():
        return
    model = network()
    decay = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * -(-60_000 // BATCH))
    model.compile(keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    model.fit(files["train"]["x"], files["train"]["y"], BATCH, EPOCHS, verbose=2)
    model.save(path)


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--work", type=Path, required=True, help="model, data and results")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    prepare(asked.data, asked.work)
    plan = asked.work / "compare_fashion.toml"
    shutil.copyfile(Path(__file__).with_suffix(".toml"), plan)
    out = asked.work / "build"
    code = edgecompress(["compare", str(plan), "--output", str(out)])
    if code == 0 and asked.docs is not None:
        table = (out / "compare.md").read_text("utf-8")
        write_atomic(asked.docs, replaced(asked.docs.read_text("utf-8"), "fashion", table))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
