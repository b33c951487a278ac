"""Builds the models and data of same_outputs.py, from fixed seeds.

    python benchmarks/same_outputs_models.py FOLDER [FOLDER_OF_MLPERF_TINY]

Writes NAME.keras or NAME.h5, NAME.npz with inputs x and labels y, and manifest.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

SAMPLES = 96
MLPERF_TINY = {"pretrainedResnet.h5": (32, 32, 3), "ad01.h5": (640,)}


def _convolution(x: Any, filters: int, stride: int = 1, activation: str | None = "relu") -> Any:
    x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def sequential() -> keras.Model:
    """A plain CNN with depthwise and strided convolutions."""
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu6"),
            layers.Flatten(),
            layers.Dense(24, activation="relu"),
            # With a seed of its own: the seed of `compress` comes after the model is loaded.
            layers.Dropout(0.1, seed=3),
            layers.Dense(5, activation="softmax"),
        ]
    )


def residual() -> keras.Model:
    """Two residual blocks, one with a projection."""
    inputs = keras.Input((16, 16, 3))
    x = _convolution(inputs, 8)
    for filters, stride in ((8, 1), (16, 2)):
        y = _convolution(_convolution(x, filters, stride), filters, activation=None)
        x = x if stride == 1 else layers.Conv2D(filters, 1, stride)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def squeeze_excite() -> keras.Model:
    """Hard swish, and channels scaled by a hard sigmoid."""
    inputs = keras.Input((16, 16, 3))
    x = _convolution(inputs, 16, 2, "hard_swish")
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Conv2D(4, 1, activation="relu")(scale)
    scale = layers.Conv2D(16, 1, activation="hard_sigmoid")(scale)
    x = _convolution(layers.Multiply()([x, scale]), 24, 2, "hard_swish")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def two_inputs() -> keras.Model:
    """An image and a vector; two outputs; pruned blocks in a wide Dense layer."""
    image, vector = keras.Input((8, 8, 1), name="image"), keras.Input((64,), name="vector")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image))
    wide = layers.Dense(64, activation="relu", name="wide")
    x = layers.Concatenate()([x, wide(vector)])
    model = keras.Model(
        [image, vector],
        {
            "label": layers.Dense(4, activation="softmax", name="label")(x),
            "value": layers.Dense(1, name="value")(x),
        },
    )
    kernel, bias = wide.get_weights()
    kept = np.random.default_rng(5).random((16, 64)) < 0.05
    wide.set_weights([kernel * np.repeat(kept, 4, axis=0), bias])
    return model


def nested() -> keras.Model:
    """A model inside a model, and one layer used twice."""
    part = keras.Sequential(
        [
            keras.Input((12, 12, 4)),
            layers.SeparableConv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.1),
        ],
        name="part",
    )
    inputs = keras.Input((12, 12, 4))
    x = layers.AveragePooling2D(2)(part(inputs))
    shared = layers.Conv2D(4, 1, activation="tanh", name="shared")
    x = layers.GlobalMaxPooling2D()(shared(shared(x)))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


def binary() -> keras.Model:
    """Layers of signs, which Larq Compute Engine runs."""
    from edgecompress.layers.binary import BinaryConv2D, BinaryDense

    inputs = keras.Input((12, 12, 3))
    x = _convolution(inputs, 32, activation=None)
    for _ in range(2):
        y = BinaryConv2D(32, 3, padding="same")(x)
        x = layers.Add()([layers.BatchNormalization()(y), x])
    x = layers.BatchNormalization()(layers.GlobalAveragePooling2D()(x))
    x = BinaryDense(24)(x)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


BUILDERS: dict[str, Callable[[], keras.Model]] = {
    function.__name__: function
    for function in (sequential, residual, squeeze_excite, two_inputs, nested, binary)
}


def _trained_looking(model: keras.Model, random: np.random.Generator) -> None:
    """Gives biases and normalizations values as after training: zeros and ones hide errors."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _trained_looking(layer, random)
            continue
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
            elif weight.name in ("beta", "bias", "moving_mean"):
                weight.assign(random.normal(0, 0.1, weight.shape))


def _data(model: keras.Model, random: np.random.Generator) -> dict[str, np.ndarray]:
    x = [random.normal(size=(SAMPLES, *i.shape[1:])).astype("float32") for i in model.inputs]
    if len(x) > 1:
        return {i.name: array for i, array in zip(model.inputs, x, strict=True)}
    y = model.predict(x[0], verbose=0)
    labels = y.argmax(1) if y.shape[1] > 1 else y[:, 0] > 0.5
    return {"x": x[0], "y": labels.astype("int32")}


def main(folder: Path, mlperf_tiny: Path | None) -> int:
    """Builds all models."""
    folder.mkdir(parents=True, exist_ok=True)
    files, skipped = [], {}
    for number, (name, build) in enumerate(BUILDERS.items()):
        keras.utils.set_random_seed(number)
        random = np.random.default_rng(number)
        model = build()
        _trained_looking(model, random)
        model.save(folder / f"{name}.keras")
        np.savez(folder / f"{name}.npz", **_data(model, random))
        files.append(f"{name}.keras")
    for name, shape in MLPERF_TINY.items():
        if mlperf_tiny is None or not (mlperf_tiny / name).is_file():
            skipped[name] = f"not in {mlperf_tiny}"
            continue
        shutil.copyfile(mlperf_tiny / name, folder / name)
        x = np.random.default_rng(7).normal(size=(32, *shape)).astype("float32")
        np.savez(folder / f"{Path(name).stem}.npz", x=x)
        files.append(name)
    from edgecompress import demo

    with tempfile.TemporaryDirectory() as scratch:
        demo.run(Path(scratch), epochs=1)
        for made in Path(scratch).glob("fashion.keras*"):
            shutil.copyfile(made, folder / made.name)
    _, _, x, y = demo.load_sample()
    np.savez(folder / "fashion.npz", x=x[:SAMPLES], y=y[:SAMPLES])
    files.append("fashion.keras")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
    manifest = {"models": files, "skipped": skipped, "sha256": sums}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None))
