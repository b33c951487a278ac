"""Compares what an int8 export costs with TensorFlow's own converter, in fresh processes, in turns.

    python benchmarks/export_against_converter.py [--models mobilenet_v2 ds_cnn ...] [--pairs 3]
        [--results results.json] [--docs docs/converters.md]

The export is the whole command: conversion, calibration with 100 random samples, runs in the
engines, agreement, checks for a phone, report. The converter only makes its file: full integer,
the same samples. Each row: user and system time of all processes, the most memory that they held
together (proportional set size, sampled 20 times a second), bytes of the file, and microseconds of
processor time of an inference in LiteRT with one thread (the median of 9 runs of each file, in
turns). `floor` is
the least that a checked export costs, in one process: it imports TensorFlow and Keras, loads the
model, and runs it and the converter's finished file on the samples, without converting anything; as
shares of the converter's time and memory.

With `--results`, pairs are kept in that file, and a benchmark that was interrupted, or asked for
more pairs, continues. With `--docs`, the table of all results replaces what is between the page's
markers.

Linux only. With the defaults about 12 minutes on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from precision_engines import replaced
from rich.console import Console

_SAMPLES = 100
_SAMPLING_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>

_CONVERTER = """
import sys
import keras, numpy as np, tensorflow as tf
model = keras.saving.load_model(sys.argv[1])
x = np.load(sys.argv[2])["x"]
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([sample[None]] for sample in x)
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = converter.inference_output_type = tf.int8
open(sys.argv[3], "wb").write(converter.convert())
"""


_FLOOR = """
import sys
import keras, numpy as np, tensorflow as tf
model = keras.saving.load_model(sys.argv[1])
x = np.load(sys.argv[2])["x"]
model.predict(x, batch_size=4, verbose=0)
interpreter = tf.lite.Interpreter(sys.argv[3], num_threads=1)
interpreter.allocate_tensors()
entry = interpreter.get_input_details()[0]
scale, zero = entry["quantization"]
for sample in x:
    codes = np.clip(np.round(sample[None] / scale) + zero, -128, 127).astype("int8")
    interpreter.set_tensor(entry["index"], codes)
    interpreter.invoke()
"""


def _application(name: str, side: int) -> Callable[[], object]:
    def make() -> object:
        import keras

        return getattr(keras.applications, name)(
            input_shape=(side, side, 3), weights=None, classes=1000
        )

    return make


def _ds_cnn() -> object:
    """The keyword spotter of MLPerf Tiny: a convolution and four depthwise-separable blocks."""
    import keras
    from keras import layers

    x = inputs = keras.Input((49, 10, 1))
    x = layers.Conv2D(64, (10, 4), 2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(64, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D((25, 5))(x))
    return keras.Model(inputs, layers.Dense(12, activation="softmax")(x))


def _dense() -> object:
    """40 million weights in three layers."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((1024,)),
            layers.Dense(6000, activation="relu"),
            layers.Dense(5600, activation="relu"),
            layers.Dense(10),
        ]
    )


_MODELS: dict[str, Callable[[], object]] = {
    "mobilenet_v2": _application("MobileNetV2", 224),
    "resnet50": _application("ResNet50", 224),
    "efficientnet_b0": _application("EfficientNetB0", 224),
    "ds_cnn": _ds_cnn,
    "dense_40m": _dense,
}


@dataclass(frozen=True)
class Cost:
    """What a command cost: processor seconds and bytes of memory, all processes together."""

    cpu_s: float
    memory: int


def _tree(root: int) -> list[int]:
    """Returns a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue  # It has ended.
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry))
    found, stack = [], [root]
    while stack:
        found.append(stack.pop())
        stack += children.get(found[-1], [])
    return found


def _memory(root: int) -> int:
    """Returns the bytes that a process and its descendants hold; shared pages count once."""
    total = 0
    for pid in _tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def _run(command: list[str], folder: Path) -> Cost:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        most, cpu_s, running = 0, 0.0, True
        while running:
            most = max(most, _memory(process.pid))
            time.sleep(_SAMPLING_S)
            # Descendants that nobody waited for come to this process, the command itself too.
            for pid, status, usage in _ended():
                cpu_s += usage.ru_utime + usage.ru_stime
                if pid == process.pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
            running = _tree(os.getpid()) != [os.getpid()]
    # 4: outputs of random weights are too close together to agree. The work is the same.
    if process.returncode not in (0, 4):
        text = (folder / "log.txt").read_text(errors="replace")
        raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}: {text[-800:]}")
    return Cost(cpu_s, most)


def _adopt_orphans() -> None:
    """Makes processes whose parent has ended children of this one, which counts their time."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SystemExit("the system does not hand over orphans")


def _ended() -> Iterator[tuple[int, int, Any]]:
    """Yields the number, status and usage of each child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            found = os.wait4(-1, os.WNOHANG)
            if not found[0]:
                return
            yield found


def _latencies(files: list[Path]) -> list[float]:
    """Returns the median processor microseconds of an inference of each file."""
    from edgecompress.engines.run import time_engine

    runs: list[list[float]] = [[] for _ in files]
    for _ in range(9):
        for found, file in zip(runs, files, strict=True):
            timed = time_engine("litert", file.read_bytes())
            found.append(statistics.median(timed["cpu"]) / 1e3)
    return [statistics.median(found) for found in runs]


def _saved(name: str, folder: Path) -> None:
    """Saves the model, with seeded random weights, and the samples."""
    import keras

    keras.utils.set_random_seed(0)
    model = _MODELS[name]()
    model.save(folder / "model.keras")  # type: ignore[attr-defined]
    shape = model.input_shape[1:]  # type: ignore[attr-defined]
    # EfficientNet scales pixels itself.
    low, high = (0, 255) if name.startswith("efficientnet") else (-1, 1)
    x = np.random.default_rng(0).uniform(low, high, (_SAMPLES, *shape)).astype("float32")
    np.savez(folder / "x.npz", x=x)
    keras.backend.clear_session()


def _measure(name: str, pairs: int, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Adds pairs of a model to the results until there are enough."""
    found = results.setdefault(name, {"pairs": []})
    if len(found["pairs"]) >= pairs:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _saved(name, folder)
        theirs = [sys.executable, "-P", "-c", _CONVERTER, "model.keras", "x.npz", "theirs.tflite"]
        ours = [sys.executable, "-P", "-m", "edgecompress", "export", "model.keras", "-t",
                "pixel-8", "--calibration", "x.npz", "-o", "out", "--quiet"]  # fmt: skip
        while len(found["pairs"]) < pairs:
            number = len(found["pairs"])
            Console(stderr=True).print(f"{name}: pair {number + 1} of {pairs}")
            # Who goes first alternates: a machine that gets slower favours neither.
            order = (theirs, ours) if number % 2 else (ours, theirs)
            costs = [_run(command, folder) for command in order]
            costs = costs if number % 2 else costs[::-1]
            least = [sys.executable, "-P", "-c", _FLOOR, "model.keras", "x.npz", "theirs.tflite"]
            costs.append(_run(least, folder))
            found["pairs"].append([dataclasses.asdict(cost) for cost in costs])
            save()
        files = [folder / "theirs.tflite", next((folder / "out").glob("*_int8.tflite"))]
        found["bytes"] = [file.stat().st_size for file in files]
        found["latency_us"] = _latencies(files)
        save()


def _row(name: str, found: dict[str, Any]) -> str:
    cells = [name]
    for label, unit, digits in (("cpu_s", 1, 1), ("memory", 1e6, 0)):
        columns = list(
            zip(*([cost[label] for cost in pair] for pair in found["pairs"]), strict=True)
        )
        theirs, ours, floor = (statistics.median(column) / unit for column in columns)
        ratio = statistics.median(b / a for a, b, _ in zip(*columns, strict=True))
        cells += [f"{theirs:.{digits}f}", f"{ours:.{digits}f}", f"{ratio:.2f}"]
        cells.append(f"{floor / theirs:.2f}")
    cells += [f"{size:,}" for size in found["bytes"]]
    cells.append(f"{found['latency_us'][1] / found['latency_us'][0]:.2f}")
    cells.append(str(len(found["pairs"])))
    return f"| {' | '.join(cells)} |"


def _table(results: dict[str, Any]) -> str:
    head = ("model", "converter, s", "export, s", "ratio", "floor", "converter, MB", "export, MB",
            "ratio", "floor", "converter, bytes", "export, bytes", "latency", "pairs")  # fmt: skip
    rows = [_row(name, results[name]) for name in _MODELS if "bytes" in results.get(name, {})]
    return "\n".join([f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1), *rows])


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=_MODELS, default=list(_MODELS))
    parser.add_argument("--pairs", type=int, default=3, help="runs of each")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _adopt_orphans()
    results: dict[str, Any] = {}
    if options.results is not None and options.results.exists():
        results = json.loads(options.results.read_text(encoding="utf-8"))

    def save() -> None:
        if options.results is not None:
            options.results.write_text(json.dumps(results, indent=1), encoding="utf-8")

    for name in options.models:
        _measure(name, options.pairs, results, save)
    table = _table(results)
    print(table)
    if options.docs is not None:
        page = options.docs.read_text(encoding="utf-8")
        page = replaced(page, "export against converter", table)
        options.docs.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
