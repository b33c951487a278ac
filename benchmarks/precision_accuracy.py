"""Measures what each precision costs on Fashion-MNIST: accuracy, agreement, bytes, time.

    python benchmarks/precision_accuracy.py --data fashion_mnist.npz [--seeds 3]
        [--docs docs/quantization.md]

One float model for each seed: three epochs on 12,000 images. `calibrated` files are made from it
with 200 images; `trained` ones after two more epochs of quantization-aware training, which the
float model gets as well. Accuracy is that of the file in LiteRT on the test images, agreement the
share of equal predictions with the simulation that training validates with, or with the float model
where there is none. Times are one thread of LiteRT on this computer. With `--docs`, the table
replaces what is between the page's markers.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from precision_engines import replaced

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.record import record_of
from edgecompress.engines.registry import LITERT
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.precisions.base import Precision
from edgecompress.precisions.simulation import simulate

layers = keras.layers
TRAINED: tuple[Precision, ...] = (
    ec.Int8(),
    ec.Int16x8(),
    ec.Int4(),
    ec.Int4(edge_bits=4, depthwise_bits=4),
)
CALIBRATED: tuple[Precision, ...] = (*TRAINED, ec.DynamicRange(), ec.Float16())
_TRAIN, _CALIBRATION = 12_000, 200


def network() -> keras.Model:
    """Returns a network of convolutions, depthwise convolutions and a residual connection."""
    image = keras.Input((28, 28, 1))
    x = _block(image, layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False))
    y = _block(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = _block(x, layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False))
    x = _block(x, layers.Conv2D(32, 3, padding="same", use_bias=False))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(layers.Dense(32, "relu")(x)))


def _block(x: keras.KerasTensor, layer: keras.Layer) -> keras.KerasTensor:
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layer(x)))


def measured(
    made: Artifact, x: np.ndarray, y: np.ndarray, wanted: np.ndarray
) -> tuple[float, float, int, float]:
    """Returns accuracy, agreement, bytes and microseconds of a file in LiteRT."""
    file = int8.strip_names(made)
    inputs = quantized_inputs(file.flat, [x])
    outputs = run_engine(LITERT, file.data, inputs, timeout_s=600).outputs[0]
    predicted = dequantize(outputs, file.flat.tensors[file.flat.outputs[0]]).argmax(1)
    return (
        float(np.mean(predicted == y)),
        float(np.mean(predicted == wanted)),
        len(file.data),
        microseconds(file.data),
    )


def microseconds(data: bytes) -> float:
    """Returns the median time of one inference."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    times = []
    for _ in range(60):
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
    return 1e6 * median(times[20:])


def label(precision: Precision) -> str:
    """Returns a precision's name with its unusual settings."""
    wide = isinstance(precision, ec.Int4) and precision.edge_bits == 4
    return f"{precision.name}, every layer" if wide else precision.name


def main() -> None:
    """Prints the table, and writes it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    with np.load(arguments.data) as data:
        x = data["x_train"][:_TRAIN, ..., None].astype("f4") / 255
        y = data["y_train"][:_TRAIN].astype("i4")
        x_test = data["x_test"][: arguments.images, ..., None].astype("f4") / 255
        y_test = data["y_test"][: arguments.images].astype("i4")
    rows: dict[tuple[str, str], list[tuple[float, float, int, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        keras.utils.set_random_seed(seed)
        model = network()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(2e-3), loss)
        model.fit(x, y, epochs=3, batch_size=64, verbose=0)
        start = model.get_weights()
        longer = keras.models.clone_model(model)
        longer.set_weights(start)
        longer.compile(keras.optimizers.Adam(1e-3), loss)
        longer.fit(x, y, epochs=2, batch_size=64, verbose=0)
        floats = float32.convert(longer)
        wanted = longer.predict(x_test, verbose=0).argmax(1)
        rows["float32", ""].append(measured(floats.artifact, x_test, y_test, wanted))
        for precision in CALIBRATED:
            made = int8.convert(floats, calibration=[x[:_CALIBRATION]], precision=precision)
            how = "calibrated" if precision.trains else ""
            rows[label(precision), how].append(measured(made, x_test, y_test, wanted))
        for precision in TRAINED:
            trained = keras.models.clone_model(model)
            trained.set_weights(start)
            trained.compile(keras.optimizers.Adam(1e-3), loss)
            callback = ec.QuantizationAwareTraining(precision)
            trained.fit(x, y, epochs=2, batch_size=64, verbose=0, callbacks=[callback])
            simulated = simulate(trained).predict(x_test, verbose=0).argmax(1)
            made = int8.convert(
                float32.convert(trained), record=record_of(trained), precision=precision
            )
            rows[label(precision), "trained"].append(measured(made, x_test, y_test, simulated))
    text = table(rows, arguments.seeds, len(x_test))
    print(text)
    if arguments.docs is not None:
        page = arguments.docs.read_text(encoding="utf-8")
        page = replaced(page, "precision accuracy", text)
        arguments.docs.write_text(page, encoding="utf-8")


def table(
    rows: dict[tuple[str, str], list[tuple[float, float, int, float]]], seeds: int, images: int
) -> str:
    """Returns the means over the seeds, in Markdown."""
    many = f"means of {seeds} seeds" if seeds > 1 else "one seed"
    lines = [
        f"Fashion-MNIST, {images:,} test images, {many}.",
        "",
        "| precision | ranges | accuracy | agreement | bytes | time in LiteRT |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (name, how), found in rows.items():
        accuracy, agreement, size, spent = (fmean(column) for column in zip(*found, strict=True))
        lines.append(
            f"| {name} | {how} | {accuracy:.2%} | {agreement:.2%} | {size:,.0f} | {spent:.0f} us |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
