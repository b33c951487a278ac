"""Measures recurrent layers: fused against unrolled, whole sequences against streaming.

    python benchmarks/recurrent_layers.py FASHION_MNIST.npz [--docs docs/recurrent.md] [--only NAME]

The rows of Fashion-MNIST's images are 28 time steps of 28 features; each network trains for two
epochs. A file is exported for a NUCLEO-L4R5ZI and run on test images in LiteRT and TensorFlow Lite
Micro. Printed: bytes of the int8 file, its operators, tensor arena, predicted latency of one
inference on the board, time of one inference on this computer in LiteRT (one thread), agreement of
the predicted class with the Keras model, and accuracy. With `--docs`, the table replaces what is
between the page's markers.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import edgecompress as ec
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.engines.run import run_engine, time_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.stepping import Stepping

layers = keras.layers
STEPS, FEATURES, CLASSES = 28, 28, 10
TARGET = "nucleo-l4r5zi"
TEST = 2000
COLUMNS = (
    "network", "form", "file", "operators", "arena", "board", "host", "agree LiteRT", "agree TFLM",
    "accuracy",
)  # fmt: skip


def networks() -> dict[str, list[Any]]:
    """Returns the layers of each network before the last."""
    return {
        "LSTM(20)": [layers.LSTM(20)],
        "two LSTM(16)": [layers.LSTM(16, return_sequences=True), layers.LSTM(16)],
        "Bidirectional(LSTM(16))": [layers.Bidirectional(layers.LSTM(16))],
        "GRU(20)": [layers.GRU(20)],
        "two GRU(16)": [layers.GRU(16, return_sequences=True), layers.GRU(16)],
        "causal Conv1D": [
            layers.Conv1D(16, 3, padding="causal", activation="relu"),
            layers.Conv1D(16, 3, padding="causal", dilation_rate=2, activation="relu"),
            layers.GlobalAveragePooling1D(),
        ],
    }


def forms(name: str) -> dict[str, dict[str, Any]]:
    """Returns the options of each form of a network."""
    found: dict[str, dict[str, Any]] = {}
    if "LSTM" in name:
        found["fused"] = {"recurrent": "fused"}
    found["unrolled" if "U" in name or "LSTM" in name else "whole"] = {"recurrent": "unrolled"}
    if "Bidirectional" not in name:
        found["streaming"] = {"streaming": True}
    return found


def measure(model: Any, options: dict[str, Any], data: Any) -> list[str]:
    """Exports a model in one form and returns the cells of its row after its name."""
    x, x_test, y_test = data
    with tempfile.TemporaryDirectory() as folder:
        report = ec.export(model, [TARGET], calibration=x, output=folder, name="net", **options)
        flat = read_tflite(Path(folder) / "net_int8.tflite")
    checks = {check.rule: check for check in report.targets[0].checks}
    stepping = (
        Stepping(1, tuple(range(1, len(flat.inputs))), (0,)) if "streaming" in options else None
    )
    want = model.predict(x_test, verbose=0)
    agree, accuracy = {}, 0.0
    for engine in ("tflm", "litert"):
        codes = quantized_inputs(flat, [x_test], len(flat.inputs) - 1)
        run = run_engine(engine, flat.data, codes, stepping=stepping)
        have = dequantize(run.outputs[0], flat.tensors[flat.outputs[0]])
        top = have.max(1)
        # A tie of codes counts as agreement.
        agree[engine] = float(np.mean(have[np.arange(len(have)), want.argmax(1)] == top))
        accuracy = float(np.mean(have.argmax(1) == y_test))
    host = float(np.median(time_engine("litert", flat.data)["wall"])) / 1000
    arena, latency = checks["arena"].measured, checks["latency"].measured
    return [
        f"{len(flat.data):,} B",
        str(len(flat.operators)),
        "not measured" if arena is None else f"{arena:,.0f} B",
        "not measured" if latency is None else f"{latency / 1000:.2f} ms",
        f"{host:.0f} us",
        f"{agree['litert']:.2%}",
        f"{agree['tflm']:.2%}",
        f"{accuracy:.2%}",
    ]


def main() -> None:
    """Trains, exports, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--only", help="one of the networks")
    arguments = parser.parse_args()
    with np.load(arguments.data) as arrays:
        x = arrays["x_train"].reshape(-1, STEPS, FEATURES)[:12000].astype(np.float32) / 255
        y = arrays["y_train"][:12000]
        x_test = arrays["x_test"].reshape(-1, STEPS, FEATURES)[:TEST].astype(np.float32) / 255
        y_test = arrays["y_test"][:TEST]
    rows = []
    for name, body in networks().items():
        if arguments.only not in (None, name):
            continue
        keras.utils.set_random_seed(1)
        head = layers.Dense(CLASSES, activation="softmax")
        model = keras.Sequential([keras.Input((STEPS, FEATURES)), *body, head])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, batch_size=64, epochs=2, verbose=0)
        score = model.evaluate(x_test, y_test, verbose=0)[1]
        for form, options in forms(name).items():
            cells = measure(model, options, (x[:300], x_test, y_test))
            rows.append([name, form, *cells[:-1], f"{cells[-1]} (Keras {score:.2%})"])
            print(*rows[-1], sep=" | ", flush=True)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    print(table)
    if arguments.docs:
        text = arguments.docs.read_text()
        pattern = r"(<!-- recurrent -->\n).*?(\n<!-- end -->)"
        arguments.docs.write_text(
            re.sub(pattern, lambda m: m[1] + table + m[2], text, flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
