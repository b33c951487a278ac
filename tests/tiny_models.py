"""Makes the tiny flatbuffers of the engine tests; run as a program, in a process of its own.

Usage: `python tiny_models.py FOLDER`. TFLiteConverter makes them, so the tests of the engines do
not stand on this package's own converters.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from keras import layers


def _classifier() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), batch_size=1),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise"),
            layers.Conv2D(6, 1, activation="relu", name="mix"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="head"),
        ]
    )
    kernel, bias = model.get_layer("head").get_weights()
    # Large enough that every class wins sometimes and margins are wide.
    model.get_layer("head").set_weights([kernel * 10, bias])
    return model


def _autoencoder() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16,), batch_size=1),
            layers.Dense(12, activation="relu", name="encode"),
            layers.Dense(16, name="decode"),
        ]
    )


def _sigmoid() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,), batch_size=1), layers.Dense(1, activation="sigmoid", name="unit")]
    )


def _two() -> keras.Model:
    a, b = keras.Input((3,), batch_size=1), keras.Input((2, 5), batch_size=1)
    wide = layers.Dense(7, name="wide")(layers.Flatten()(b))
    return keras.Model([a, b], [layers.Dense(2, name="narrow")(a), wide])


def _recurrent(folder: Path) -> bytes:
    # Keras 2's LSTM becomes the fused operator, whose state is a variable of the file.
    model = tf_keras.Sequential(
        [tf_keras.Input((4, 3), batch_size=1), tf_keras.layers.LSTM(5, name="memory")]
    )
    model.save(folder / "recurrent", save_format="tf")
    return bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / "recurrent")).convert())


def _convert(model: keras.Model, x: list[np.ndarray] | None) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if x is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([a[i : i + 1] for a in x] for i in range(40))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def main(folder: Path) -> None:
    keras.utils.set_random_seed(1)
    makers: dict[str, Any] = {
        "classifier": _classifier,
        "autoencoder": _autoencoder,
        "sigmoid": _sigmoid,
        "two": _two,
    }
    for name, make in makers.items():
        model = make()
        random = np.random.default_rng(2)
        x = [random.normal(size=(60, *i.shape[1:])).astype(np.float32) for i in model.inputs]
        outputs = [model([a[i : i + 1] for a in x]) for i in range(60)]
        outputs = [o if isinstance(o, list) else [o] for o in outputs]
        y = [np.concatenate([np.asarray(o[k]) for o in outputs]) for k in range(len(outputs[0]))]
        arrays = {f"x{i}": a for i, a in enumerate(x)} | {f"y{i}": a for i, a in enumerate(y)}
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.tflite").write_bytes(_convert(model, None))
        (folder / f"{name}_int8.tflite").write_bytes(_convert(model, x))
    (folder / "recurrent.tflite").write_bytes(_recurrent(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
