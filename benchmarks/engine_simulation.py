"""Compares `simulate(model, engine=...)` with the engines, output by output.

    python benchmarks/engine_simulation.py --data fashion_mnist.npz [--models DIR] [--epochs 2]

Seven networks are trained on Fashion-MNIST, the last epoch with QuantizationAwareTraining; their
int8 files run on test images in LiteRT (XNNPACK) and TensorFlow Lite Micro (reference kernels).
Each row says which share of the outputs the simulation gives bit for bit, the largest difference in
steps of the output, the same for the float simulation of training (`simulate(model)`, its outputs
rounded to codes) and the share of its predictions that agree (ties between codes count as
agreement), and the seconds that 1,000 images take in the simulation (processor time) and in the
engine. Ranges that training does not learn are measured on 200 images. `--models` names a
folder of .tflite files with int8 inputs, which run on random inputs. `fashion_mnist.npz` holds
x_train, y_train, x_test and y_test.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl

import edgecompress as ec
from edgecompress.converters.real_values import quantize, quantized_inputs
from edgecompress.core.errors import EdgeCompressError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.simulation import EngineSimulation

ENGINES = ("litert", "tflm")
CLASSES = 10


def unit(x: Any, layer: Any) -> Any:
    """Returns a layer, its normalization and ReLU."""
    return kl.ReLU()(kl.BatchNormalization()(layer(x)))


def cnn(x: Any) -> Any:
    """Plain convolutions with pooling."""
    x = kl.Conv2D(16, 3, activation="relu")(x)
    x = kl.Conv2D(24, 3, activation="relu")(kl.MaxPooling2D()(x))
    return kl.Dense(CLASSES)(kl.Dense(48, activation="relu")(kl.Flatten()(kl.MaxPooling2D()(x))))


def separable(x: Any) -> Any:
    """Depthwise-separable convolutions."""
    x = unit(x, kl.Conv2D(16, 3, strides=2, padding="same", use_bias=False))
    for filters, strides in ((24, 1), (32, 2), (32, 1)):
        x = unit(x, kl.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False))
        x = unit(x, kl.Conv2D(filters, 1, use_bias=False))
    return kl.Dense(CLASSES)(kl.GlobalAveragePooling2D()(x))


def residual(x: Any) -> Any:
    """Residual blocks, average pooling and softmax."""
    x = unit(x, kl.Conv2D(16, 3, strides=2, padding="same", use_bias=False))
    for _ in range(2):
        y = unit(x, kl.Conv2D(16, 3, padding="same", use_bias=False))
        y = kl.BatchNormalization()(kl.Conv2D(16, 3, padding="same", use_bias=False)(y))
        x = kl.ReLU()(kl.Add()([x, y]))
    x = kl.GlobalAveragePooling2D()(kl.AveragePooling2D(2)(x))
    return kl.Dense(CLASSES, activation="softmax")(x)


def gated(x: Any) -> Any:
    """Squeeze-and-excitation and hard-swish."""
    x = kl.Conv2D(16, 3, strides=2, padding="same", activation="hard_swish")(x)
    for filters in (24, 32):
        x = kl.DepthwiseConv2D(3, padding="same", activation="hard_swish")(x)
        gate = kl.GlobalAveragePooling2D(keepdims=True)(x)
        gate = kl.Conv2D(8, 1, activation="relu")(gate)
        gate = kl.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)
        x = kl.Conv2D(filters, 1, activation="hard_swish")(kl.Multiply()([x, gate]))
    return kl.Dense(CLASSES)(kl.GlobalAveragePooling2D()(x))


def normalized(x: Any) -> Any:
    """A multilayer perceptron with LayerNormalization."""
    x = kl.Flatten()(x)
    for _ in range(2):
        x = kl.LayerNormalization()(kl.Dense(48, activation="relu")(x))
    return kl.Dense(CLASSES)(x)


def recurrent(x: Any) -> Any:
    """An LSTM over the rows of the image, which becomes one operator."""
    return kl.Dense(CLASSES)(kl.LSTM(20, unroll=True)(kl.Reshape((28, 28))(x)))


def attention(x: Any) -> Any:
    """One block of multi-head attention over the rows of the image."""
    x = kl.Dense(24)(kl.Reshape((28, 28))(x))
    x = kl.Add()([x, kl.MultiHeadAttention(2, 12)(x, x)])
    return kl.Dense(CLASSES)(kl.GlobalAveragePooling1D()(x))


NETWORKS: dict[str, Callable[[Any], Any]] = {
    "plain CNN": cnn,
    "depthwise-separable": separable,
    "residual, softmax": residual,
    "SE, hard-swish": gated,
    "LayerNorm MLP": normalized,
    "LSTM": recurrent,
    "attention": attention,
}


def trained(build: Callable[[Any], Any], data: Any, epochs: int) -> keras.Model:
    """Returns a network after some epochs, the last of them under int8 arithmetic."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, build(inputs))
    logits = model.layers[-1].activation is not keras.activations.softmax
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile("adam", loss)
    x, y = data["x_train"][..., None] / np.float32(255), data["y_train"]
    model.fit(x, y, batch_size=128, epochs=epochs - 1, verbose=0)
    model.fit(x, y, batch_size=128, verbose=0, callbacks=[ec.QuantizationAwareTraining()])
    return model


def compared(found: np.ndarray, expected: np.ndarray) -> str:
    """Returns the share of equal codes and the largest difference."""
    steps = np.abs(found.astype(int) - expected.astype(int))
    return f"{100 * (steps == 0).mean():.3f} % | {steps.max()}"


def agreement(found: np.ndarray, expected: np.ndarray) -> str:
    """Returns the share of samples whose predicted class is among the largest codes expected."""
    chosen = np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
    return f"{100 * (chosen == expected.max(1)).mean():.2f} %"


def rows(
    name: str, artifact: Artifact, codes: Sequence[np.ndarray], real: np.ndarray | None
) -> None:
    """Prints a row for each engine: the file `artifact` on the inputs `codes`.

    Args:
        name: Of the network.
        artifact: The int8 file.
        codes: Inputs in the file's types.
        real: Outputs of the float simulation; None for none.
    """
    flat = artifact.flat
    for engine in ENGINES:
        start = time.monotonic()
        run = run_engine(engine, artifact.data, codes)
        engine_time = (time.monotonic() - start) / len(codes[0]) * 1000
        floats = "- | - | -"
        if real is not None:
            output = quantize(real, flat.tensors[flat.outputs[0]])
            floats = f"{compared(output, run.outputs[0])} | {agreement(output, run.outputs[0])}"
        start = time.process_time()
        try:
            own = EngineSimulation(artifact, engine).codes(codes)[0][0]
        except EdgeCompressError as error:
            print(f"| {name} | {run.kernels} | not simulated: {error} | | {floats} | | |")
            continue
        own_time = (time.process_time() - start) / len(codes[0]) * 1000
        print(
            f"| {name} | {run.kernels} | {compared(own, run.outputs[0])} | {floats} "
            f"| {own_time:.2f} s | {engine_time:.2f} s |",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--only", default="", help="part of a network's name")
    arguments = parser.parse_args()
    print(
        "| network | kernels | equal | steps | float: equal | steps | same class | 1,000 images "
        "| engine |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with np.load(arguments.data) as data:
        x = data["x_test"][: arguments.images, ..., None] / np.float32(255)
        for name, build in NETWORKS.items():
            if arguments.only not in name:
                continue
            model = trained(build, data, arguments.epochs)
            calibration = [data["x_train"][:200, ..., None] / np.float32(255)]
            artifact = int8_file(model, calibration)
            try:
                real = ec.simulate(model).predict(x, verbose=0)
            except EdgeCompressError:
                real = None
            rows(name, artifact, quantized_inputs(artifact.flat, [x]), real)
    for path in sorted(arguments.models.glob("*.tflite")) if arguments.models else ():
        artifact = Artifact("int8", path.read_bytes(), path.name)
        flat = artifact.flat
        if all(flat.tensors[index].type == "INT8" for index in flat.inputs):
            random = np.random.default_rng(0)
            codes = [
                random.integers(-128, 128, (500, *flat.tensors[index].shape[1:])).astype(np.int8)
                for index in flat.inputs
            ]
            rows(path.stem, artifact, codes, None)


def int8_file(model: keras.Model, calibration: Sequence[np.ndarray]) -> Artifact:
    """Returns the int8 file of a model, whether or not it can be simulated."""
    from edgecompress.converters import float32, int8

    floats = float32.convert(float32.Trace(model, fused=True))
    return int8.convert(floats, calibration=calibration)


if __name__ == "__main__":
    main()
