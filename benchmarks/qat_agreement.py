"""Compares trained arithmetic with int8 files, beside tensorflow-model-optimization's.

    python benchmarks/qat_agreement.py --fashion-mnist fashion_mnist.npz --watch watch_exercises.npz
        --results results.json [--seeds 3] [--networks CNN LSTM] [--docs docs/qat.md]

Seven networks on two data sets. One float model for each seed; from its weights, a few more epochs
in float, and the same epochs quantization-aware in int8, int16x8 and int4, and in
tensorflow-model-optimization (`qat_agreement_peer.py`, a process of its own with tf_keras). The
learning rate falls to 0 as half a cosine, in both: an accuracy taken in mid-descent moves by more
than rounding does. Files run in LiteRT (XNNPACK) and TensorFlow Lite Micro (reference kernels).

Columns: accuracy of the float model, of the int8 model as `fit` validates it, and of the file in
each engine; share of test samples on which `fit`'s validation and the file predict the same class,
where equal largest codes count as agreement; the largest difference in steps between
`simulate(engine=...)` and the file; bytes of the file as each writes it. `--results` keeps every
finished run: an interrupted benchmark continues. With `--docs`, the table replaces what is between
the page's markers. The second table has the agreement of int4. The data files hold x_train,
y_train, x_test and y_test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from precision_engines import replaced
from qat_agreement_networks import (
    BATCH,
    FURTHER_RATE,
    NETWORKS,
    Input,
    build,
    keeps_probabilities,
)

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import quantize, quantized_inputs
from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.files import write_atomic
from edgecompress.core.record import record_of
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.precisions.base import Precision
from edgecompress.simulation import EngineSimulation

ENGINES = ("litert", "tflm")
_CALIBRATION = 200
_PEER = Path(__file__).with_name("qat_agreement_peer.py")


@dataclass(frozen=True)
class Data:
    """A data set: how the networks see it, and its arrays."""

    inputs: Input
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    float_epochs: int
    further_epochs: int

    @property
    def calibration(self) -> list[np.ndarray]:
        return [self.x[:_CALIBRATION]]


def fashion(path: Path, images: int) -> Data:
    """Returns 12,000 images for training and the test images, 28 x 28 x 1 in [0, 1]."""
    with np.load(path) as data:
        parts = (data["x_train"][:12_000], data["x_test"][:images])
        x, x_test = (part[..., None].astype("f4") / 255 for part in parts)
        return Data(
            Input((28, 28, 1), square=True, classes=10), x, data["y_train"][:12_000].astype("i4"),
            x_test, data["y_test"][:images].astype("i4"), 6, 2,
        )  # fmt: skip


def watch(path: Path, images: int) -> Data:
    """Returns windows of 128 steps of 6 sensors, standardized by the training data."""
    with np.load(path) as data:
        x, x_test = data["x_train"].astype("f4"), data["x_test"][:images].astype("f4")
        mean, deviation = x.mean((0, 1)), x.std((0, 1))
        return Data(
            Input((128, 6), square=False, classes=7), (x - mean) / deviation,
            data["y_train"].astype("i4"), (x_test - mean) / deviation,
            data["y_test"][:images].astype("i4"), 20, 4,
        )  # fmt: skip


DATA: dict[str, Callable[[Path, int], Data]] = {"Fashion-MNIST": fashion, "watch": watch}


class Validation(keras.callbacks.Callback):
    """Keeps what the model predicts at the end of the training, as `fit` validates it.

    Args:
        x: The inputs.
        training: Validation follows each engine in turn.
    """

    def __init__(self, x: np.ndarray, training: ec.QuantizationAwareTraining) -> None:
        super().__init__()
        self.x, self.training = x, training
        self.outputs: dict[str, np.ndarray] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch == self.params["epochs"] - 1:
            for engine in ENGINES:
                self.training.engine = engine
                self.outputs[engine] = self.model.predict(self.x, batch_size=250, verbose=0)


def fit(
    model: keras.Model, data: Data, rate: float, epochs: int, callbacks: Sequence[Any] = ()
) -> keras.Model:
    """Trains a model with a learning rate that falls from `rate` to 0."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not keeps_probabilities(model))
    steps = epochs * -(-len(data.x) // BATCH)
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(decay), loss)
    model.fit(data.x, data.y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def further(start: keras.Model, data: Data, callbacks: Sequence[Any]) -> keras.Model:
    """Returns a copy of a model after some more epochs."""
    model = keras.models.clone_model(start)
    model.set_weights(start.get_weights())
    keras.utils.set_random_seed(1)
    return fit(model, data, FURTHER_RATE, data.further_epochs, callbacks)


def agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the share of samples with a common largest code."""
    same = [codes == codes.max(1, keepdims=True) for codes in (found, expected)]
    return float((same[0] & same[1]).any(1).mean())


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    return float((outputs.argmax(1) == y).mean())


def int8_columns(
    data: Data, artifact: Artifact, outputs: Mapping[str, np.ndarray], tflm_images: int
) -> dict[str, Any]:
    """Returns what is measured of an int8 file: accuracy, agreement, steps of the simulation."""
    file = int8.strip_names(artifact)
    flat = artifact.flat
    codes = quantized_inputs(flat, [data.x_test])
    row: dict[str, Any] = {
        "bytes": len(file.data),
        "val": accuracy(outputs["litert"], data.y_test),
    }
    for engine in ENGINES:
        count = len(codes[0]) if engine == "litert" else min(tflm_images, len(codes[0]))
        some = [array[:count] for array in codes]
        try:
            found = run_engine(engine, file.data, some, timeout_s=900).outputs[0]
        except EdgeCompressError as error:
            row[f"error_{engine}"] = str(error)
            continue
        found = found.reshape(count, -1)
        row[engine] = accuracy(found, data.y_test[:count])
        validated = quantize(outputs[engine][:count], flat.tensors[flat.outputs[0]])
        row[f"agree_{engine}"] = agreement(validated, found)
        row[f"val_{engine}"] = accuracy(outputs[engine][:count], data.y_test[:count])
        first = [array[:tflm_images] for array in some]
        try:
            own = EngineSimulation(artifact, engine).codes(first)[0][0].reshape(len(first[0]), -1)
        except EdgeCompressError as error:
            row[f"not_simulated_{engine}"] = str(error)
            continue
        steps = np.abs(own.astype(int) - found[: len(own)])
        row[f"steps_{engine}"], row[f"equal_{engine}"] = (
            int(steps.max()),
            float((steps == 0).mean()),
        )
    return row


def file_of(model: keras.Model, data: Data, precision: Precision, trained: bool) -> Artifact:
    # LSTM layers are one operator where they have 8 bits.
    floats = float32.convert(float32.Trace(model, fused=precision.fuses_lstm))
    return int8.convert(
        floats,
        record=record_of(model) if trained else None,
        calibration=data.calibration,
        precision=precision,
    )


def file_outputs(artifact: Artifact, data: Data) -> np.ndarray:
    """Returns the codes that a file computes in LiteRT, a row for each test sample."""
    file = int8.strip_names(artifact)
    codes = quantized_inputs(file.flat, [data.x_test])
    found = run_engine("litert", file.data, codes, timeout_s=900).outputs[0]
    return found.reshape(len(found), -1)


def file_accuracy(artifact: Artifact, data: Data) -> float:
    """Returns the accuracy of a file in LiteRT."""
    return accuracy(file_outputs(artifact, data), data.y_test)


def ours(network: str, data: Data, seed: int, arguments: Any, start: keras.Model) -> dict[str, Any]:
    """Returns the columns of one network and seed."""
    longer = further(start, data, ())
    floats = accuracy(longer.predict(data.x_test, verbose=0), data.y_test)
    row: dict[str, Any] = {"float": floats}
    for precision in (ec.Int8(), ec.Int16x8(), ec.Int4()):
        training = ec.QuantizationAwareTraining(precision)
        validation = Validation(data.x_test, training)
        try:
            model = further(start, data, [training, validation])
            artifact = file_of(model, data, precision, trained=True)
            if precision == ec.Int8():
                row |= int8_columns(data, artifact, validation.outputs, arguments.tflm_images)
            else:
                found, validated = file_outputs(artifact, data), validation.outputs["litert"]
                codes = quantize(validated, artifact.flat.tensors[artifact.flat.outputs[0]])
                row[precision.name] = accuracy(found, data.y_test)
                row[f"{precision.name}_val"] = accuracy(validated, data.y_test)
                row[f"{precision.name}_agree"] = agreement(codes, found)
        except EdgeCompressError as error:
            row[f"error_{precision.name}"] = str(error)
    row["int4_calibrated"] = file_accuracy(file_of(longer, data, ec.Int4(), trained=False), data)
    return row


def peer(network: str, data: Data, seed: int, arguments: Any, start: keras.Model) -> dict[str, Any]:
    """Returns the columns of tensorflow-model-optimization, or why it refuses the network."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.npz"), Path(folder, "made.npz")
        weights = {f"w{i}": w for i, w in enumerate(start.get_weights())}
        np.savez(given, x=data.x, y=data.y, x_test=data.x_test, **weights)
        square = data.inputs.square
        done = subprocess.run(
            [
                sys.executable, str(_PEER), network, str(int(square)), str(data.further_epochs),
                str(given), str(made),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return {"refused": (done.stderr.strip().splitlines() or ["no reason"])[-1][:300]}
        with np.load(made) as result:
            outputs, content = result["outputs"], result["content"].tobytes()
        artifact = Artifact("int8", content, "tensorflow-model-optimization")
        row = int8_columns(data, artifact, dict.fromkeys(ENGINES, outputs), arguments.tflm_images)
        return row | {"bytes": len(content)}


def trained(network: str, data: Data, seed: int) -> keras.Model:
    """Returns the float model that all of a seed's rows start from."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = build(keras, NETWORKS[network], data.inputs)
    return fit(model, data, 2e-3, data.float_epochs)


def main() -> None:
    """Runs what is missing from the results, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion-mnist", type=Path)
    parser.add_argument("--watch", type=Path)
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=10_000, help="test samples in LiteRT")
    parser.add_argument(
        "--tflm-images", type=int, default=2_000, help="test samples in TFLM and the simulation"
    )
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    given = {"Fashion-MNIST": arguments.fashion_mnist, "watch": arguments.watch}
    for seed in range(arguments.seeds):
        for name, path in given.items():
            data = DATA[name](path, arguments.images) if path else None
            for network in arguments.networks if data is not None else ():
                start = None
                for who, run in (("ours", ours), ("tfmot", peer)):
                    key = f"{name}/{network}/{seed}/{who}"
                    if key in results:
                        continue
                    began = time.process_time(), time.monotonic()
                    start = start or trained(network, data, seed)
                    results[key] = run(network, data, seed, arguments, start)
                    results[key]["seconds"] = round(time.monotonic() - began[1], 1)
                    write_atomic(arguments.results, json.dumps(results, indent=1).encode())
                    print(key, json.dumps(results[key]), flush=True)
    text = table(results)
    print(text)
    if arguments.docs is not None:
        page = arguments.docs.read_text(encoding="utf-8")
        arguments.docs.write_text(replaced(page, "qat agreement", text), encoding="utf-8")


def _mean(rows: Iterable[Mapping[str, Any]], column: str) -> str:
    """Returns the mean over the seeds as text; of steps the largest."""
    values = [row[column] for row in rows if column in row]
    if not values:
        return "-"
    if column.startswith("steps"):
        return str(max(values))
    if column == "bytes":
        return f"{fmean(values):,.0f}"
    return f"{100 * fmean(values):.2f}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the means over the seeds, in Markdown."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    places = list(NETWORKS)
    for key, row in sorted(
        results.items(),
        key=lambda item: (item[0].split("/")[0], places.index(item[0].split("/")[1])),
    ):
        name, network, _, who = key.split("/")
        groups.setdefault((name, network, who), []).append(row)
    columns = (
        "float", "val", "litert", "tflm", "agree_litert", "agree_tflm", "steps_litert",
        "steps_tflm", "bytes",
    )  # fmt: skip
    lines = [
        "| data | network | by | seeds | float | validated | LiteRT | TFLM | agreement LiteRT "
        "| TFLM | steps LiteRT | TFLM | bytes |",
        "|" + " --- |" * 13,
    ]
    for (name, network, who), rows in groups.items():
        if any("refused" in row for row in rows):
            lines.append(f"| {name} | {network} | {who} | {len(rows)} | refused |" + " |" * 8)
            continue
        cells = [_mean(rows, column) for column in columns]
        lines.append(f"| {name} | {network} | {who} | {len(rows)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| data | network | float | int8 | int16x8 | int4 | its agreement | int4, no training |",
        "|" + " --- |" * 8,
    ]
    for (name, network, who), rows in groups.items():
        if who == "ours":
            shown = ("float", "litert", "int16x8", "int4", "int4_agree", "int4_calibrated")
            cells = [_mean(rows, column) for column in shown]
            lines.append(f"| {name} | {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
