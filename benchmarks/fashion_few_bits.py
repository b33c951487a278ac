"""Trains networks of few bits on Fashion-MNIST and compares Keras with what the engines compute.

    python benchmarks/fashion_few_bits.py --data fashion_mnist.npz [--epochs 6] [--cache DIR]

A small convolution network with float, ternary (Ternarize) and binary weights (Binarize), a SEP-Net
(sepnet, PatternBinarization), and an XNOR network (BinaryConv2D). Each is trained with
QuantizationAwareTraining in its last epochs but the XNOR network, exported, and run on all 10,000
test images: the Keras model, the int8 file in LiteRT, the compressed file in TensorFlow Lite Micro,
the smallest file with binary weights in LiteRT, the XNOR file in Larq Compute Engine. "Spread" is
the largest difference between Keras and a file, in points. `fashion_mnist.npz` holds x_train,
y_train, x_test and y_test, as keras.datasets.fashion_mnist loads them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl

import edgecompress as ec
from edgecompress.layers.sepnet import sepnet

BATCH = 128
# Epochs at the end that train under int8 arithmetic.
QUANTIZED_EPOCHS = 2


def convolution_network() -> keras.Model:
    """Returns four convolutions with BatchNormalization and a classifier."""
    x = inputs = keras.Input((28, 28, 1), name="image")
    for number, (filters, strides) in enumerate(((16, 2), (32, 1), (48, 2), (48, 1)), 1):
        x = kl.Conv2D(filters, 3, strides, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = kl.ReLU(name=f"relu{number}")(kl.BatchNormalization(name=f"norm{number}")(x))
    x = kl.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, kl.Dense(10, name="classifier")(x), name="cnn")


def sep_network() -> keras.Model:
    """Returns a SEP-Net for images of 28 x 28."""
    return sepnet(
        (28, 28, 1),
        10,
        filters=(16, 32, 64),
        modules=(1, 1, 1),
        groups=2,
        stem_kernel_size=3,
        classifier_activation=None,
        name="sepnet_small",
    )


def xnor_network() -> keras.Model:
    """Returns binary convolutions with a shortcut around each (Bi-Real Net, Liu et al. 2018)."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = kl.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem")(inputs)
    x = kl.BatchNormalization()(x)
    for number, filters in enumerate((32, 32, 64, 64), 1):
        shortcut, strides = x, 1
        if filters != x.shape[-1]:
            strides = 2
            shortcut = kl.AveragePooling2D(2)(x)
            shortcut = kl.Concatenate()([shortcut, shortcut])
        x = ec.BinaryConv2D(filters, 3, strides, name=f"binary{number}")(x)
        x = kl.Add()([kl.BatchNormalization()(x), shortcut])
    x = kl.GlobalAveragePooling2D(name="pool")(kl.ReLU()(x))
    return keras.Model(inputs, kl.Dense(10, name="classifier")(x), name="xnor")


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Attributes:
        title: What the table says.
        build: Returns the untrained model.
        callbacks: Number of epochs -> the callbacks of the fit.
        start: The row whose trained weights it starts from; "" for none.
        passes: Epochs as a multiple of `--epochs`.
    """

    title: str
    build: Callable[[], keras.Model]
    callbacks: Callable[[int], list[Any]]
    start: str = ""
    passes: float = 1.0


def _quantized(epochs: int) -> list[Any]:
    return [ec.QuantizationAwareTraining(begin_epoch=epochs - QUANTIZED_EPOCHS)]


NETWORKS = {
    "float": Network("CNN, float weights", convolution_network, _quantized),
    "ternary": Network(
        "CNN, ternary weights",
        convolution_network,
        lambda n: [ec.Ternarize(), *_quantized(n)],
        "float",
    ),
    "binary": Network(
        "CNN, binary weights",
        convolution_network,
        lambda n: [ec.Binarize(), *_quantized(n)],
        "float",
    ),
    "sep-net": Network(
        "SEP-Net, binary patterns",
        sep_network,
        lambda n: [
            ec.FastGroupedConvolutions(),
            ec.PatternBinarization(begin_epoch=n // 2),
            *_quantized(n),
        ],
        passes=1.5,
    ),
    "xnor": Network("XNOR network", xnor_network, lambda n: [], passes=2.0),
}


def trained(
    name: str, x: np.ndarray, y: np.ndarray, epochs: int, cache: Path | None
) -> keras.Model:
    """Returns the network after training; from the cache where it is there."""
    path = None if cache is None else cache / f"fashion_{name}.keras"
    if path is not None and path.exists():
        from edgecompress.converters.loaders import load_model
        from edgecompress.core.record import attach_record

        loaded = load_model(path)
        if loaded.record is not None:
            attach_record(loaded.model, loaded.record)
        return loaded.model
    network = NETWORKS[name]
    keras.utils.set_random_seed(0)
    model = network.build()
    rate = 2e-3
    if network.start:
        model.set_weights(trained(network.start, x, y, epochs, cache).get_weights())
        rate = 1e-3
    count = round(epochs * network.passes)
    steps = count * (len(x) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=10,
    )
    start = time.monotonic()
    model.fit(x, y, batch_size=BATCH, epochs=count, verbose=0, callbacks=network.callbacks(count))
    print(f"{name}: trained in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return model


def size(data: bytes) -> str:
    """Returns the size of a file."""
    return f"{len(data):,}"


def row(
    name: str, model: keras.Model, x: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> str:
    """Converts a network and returns its row."""
    from edgecompress.converters import binary_weights, float32, int8, xnor
    from edgecompress.converters.accuracy import accuracy
    from edgecompress.converters.compressed import compress

    def percent(data: bytes, engine: str) -> float:
        return 100 * accuracy(data, (x_test,), y_test, engine=engine).top1

    outputs = model.predict(x_test, batch_size=500, verbose=0)
    in_keras = 100 * float((outputs.argmax(1) == y_test).mean())
    floats = float32.convert(model)
    bits = dict.fromkeys(("int8", "coded", "smallest", "xnor"), "")
    found: dict[str, float] = {}
    if name == "xnor":
        data = xnor.convert(model).artifact.data
        bits["xnor"], found["lce"] = size(data), percent(data, "lce")
    else:
        plain = int8.strip_names(int8.convert(floats, calibration=[x[:500]]))
        coded = compress(plain, samples=100).artifact.data
        bits |= {"int8": size(plain.data), "coded": size(coded)}
        found["litert"], found["tflm"] = percent(plain.data, "litert"), percent(coded, "tflm")
        smallest = binary_weights.convert(plain, "smallest").artifact.data
        if len(smallest) < 0.9 * len(plain.data):
            bits["smallest"] = size(smallest)
            found["smallest"] = percent(smallest, "litert")
    spread = max(abs(value - in_keras) for value in found.values())
    cells = [
        f"{found[key]:.2f}" if key in found else "" for key in ("litert", "tflm", "smallest", "lce")
    ]
    return (
        f"| {NETWORKS[name].title} | {model.count_params():,} | {in_keras:.2f} | "
        f"{' | '.join(cells)} | {spread:.2f} | {size(floats.artifact.data)} | "
        f"{' | '.join(bits.values())} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--cache", type=Path, help="folder for what has been trained")
    arguments = parser.parse_args()
    with np.load(arguments.data) as file:
        x, x_test = (file[k][..., None].astype(np.float32) / 255 for k in ("x_train", "x_test"))
        y, y_test = (file[k].astype(np.int64) for k in ("y_train", "y_test"))
    print(
        "| network | parameters | Keras % | int8, LiteRT % | coded, TFLM % | smallest, LiteRT % | "
        "XNOR, LCE % | spread | float32 B | int8 B | coded B | smallest B | XNOR B |\n"
        "| --- |" + " ---: |" * 12,
        flush=True,
    )
    for name in arguments.networks:
        model = trained(name, x, y, arguments.epochs, arguments.cache)
        print(row(name, model, x, x_test, y_test), flush=True)


if __name__ == "__main__":
    main()
