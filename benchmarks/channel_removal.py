"""Removes half of the channels of networks of keras.applications, and measures what that buys.

    python benchmarks/channel_removal.py --output rows.jsonl [--only NAME ...] [--no-latency]
    python benchmarks/channel_removal.py --output rows.jsonl --table

Random weights (nothing is downloaded), 10 classes, logits. Half of the channels of every group of
tied channels are silenced: the filters that make them, their biases, and the gamma and beta of
the normalizations on their way become zero. `finalize` then removes what it can. A row:
parameters and multiply-accumulates before and after; the largest difference of the outputs of the
silenced and the smaller model, relative to the largest output, in float32 and, because a deep
network's own rounding is as large, of copies of both that compute in float64; bytes and LiteRT
latency (one thread, median of five processes by turns) of the float and the int8 file of the
silenced, and of the smaller model; notes of what stayed. Each network runs in a process of its own;
a finished row is kept in `--output`, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# Name -> side of the image, and the smallest and the largest value of a pixel.
APPLICATIONS = {
    "MobileNet": (96, -1, 1), "MobileNetV2": (96, -1, 1), "MobileNetV3Small": (96, 0, 255),
    "ResNet50": (96, -100, 150), "ResNet50V2": (96, -1, 1), "EfficientNetB0": (96, 0, 255),
    "EfficientNetV2B0": (96, 0, 255), "DenseNet121": (96, -2, 2), "InceptionV3": (96, -1, 1),
    "InceptionResNetV2": (96, -1, 1), "Xception": (96, -1, 1), "VGG16": (96, -100, 150),
    "NASNetMobile": (96, -1, 1), "ConvNeXtTiny": (96, 0, 255),
}  # fmt: skip
_CLASSES = 10
_ROUNDS = 5


def made(name: str) -> Any:
    """Returns a network with random weights."""
    import keras

    keras.utils.set_random_seed(0)
    side = APPLICATIONS[name][0]
    network = getattr(keras.applications, name)
    model = network(
        input_shape=(side, side, 3), weights=None, classes=_CLASSES, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(rng.normal(scale=0.1, size=layer.beta.shape))
        elif type(layer).__name__ == "LayerScale":
            layer.gamma.assign(np.full(layer.gamma.shape, 0.5))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(scale=0.1, size=layer.bias.shape))
    return model


def silence(model: Any) -> None:
    """Sets every second channel of each group of tied channels to zero, wherever it is made."""
    from edgecompress.core.keras_graph import named_layers
    from edgecompress.core.model_copy import variable_of
    from edgecompress.surgery.channels import analyse
    from edgecompress.surgery.groups import FilterAxis
    from edgecompress.surgery.rules import filters_of

    live = dict(named_layers(model))
    for analysis in analyse(model):
        ends = {
            analysis.root(label)
            for label, reason in analysis.frozen.items()
            if "of the model" in reason
        }
        gone: dict[int, bool] = {}
        for labels in analysis.producers.values():
            fresh = [r for r in dict.fromkeys(analysis.roots(labels).tolist()) if r not in gone]
            gone.update({root: position % 2 == 1 for position, root in enumerate(fresh)})
        for path, use in analysis.uses.items():
            roots = analysis.roots(use.outputs).tolist()
            dead = np.array([gone.get(root, False) and root not in ends for root in roots])
            layer = live.get(path)
            if layer is None or not dead.any():
                continue
            found = filters_of(layer) if path in analysis.producers else None
            parts = [] if found is None else [*found.kernels, *found.biases]
            names = ("bias", "gamma", "beta", "moving_mean")
            parts += [FilterAxis(name, -1) for name in names if name in use.call.weights]
            for part in parts:
                variable = variable_of(layer, part.attribute)
                variable.assign(np.where(part.spread(dead), 0, np.array(variable)))


def settle(model: Any, samples: Any) -> None:
    """Sets the statistics of every BatchNormalization to those of the samples.

    With any others, the signal of a deep network of random weights fades to a constant, and equal
    outputs would prove nothing.
    """
    import keras

    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(samples, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _outputs(model: Any, samples: Any, dtype: str) -> np.ndarray:
    """Returns a model's outputs, computed in float32 or float64."""
    from edgecompress.core.model_copy import copy_model

    def edit(_: str, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "dtype": "float64"} if "dtype" in config else config

    model = copy_model(model, edit) if dtype == "float64" else model
    return np.asarray(model(samples.astype(dtype), training=False))


def _error(model: Any, small: Any, samples: Any, dtype: str) -> float:
    before, after = (_outputs(m, samples, dtype) for m in (model, small))
    return float(np.abs(before - after).max() / np.abs(before).max())


def _macs(model: Any) -> int | None:
    from edgecompress.inspection.keras_models import inspect_keras

    rows = [row.macs for row in inspect_keras(model).rows]
    return None if None in rows else sum(rows)


def _files(model: Any, samples: Any) -> dict[str, bytes]:
    from edgecompress.converters import float32, int8
    from edgecompress.converters.loaders import wrap

    plain = float32.convert(wrap(model))
    return {
        "float": plain.artifact.data,
        "int8": int8.convert(plain, calibration=[samples]).data,
    }


def row(name: str, latency: bool) -> dict[str, Any]:
    """Measures one network."""
    from edgecompress.core.record import record_of
    from edgecompress.engines.run import time_engine
    from edgecompress.surgery.finalize import finalize

    model = made(name)
    silence(model)
    side, low, high = APPLICATIONS[name]
    samples = np.random.default_rng(1).uniform(low, high, (16, side, side, 3)).astype("float32")
    settle(model, samples)
    small = finalize(model)
    before = _outputs(model, samples, "float32")
    found: dict[str, Any] = {
        "model": name,
        "side": side,
        "parameters": [model.count_params(), small.count_params()],
        "macs": [_macs(model), _macs(small)],
        "error": _error(model, small, samples, "float32"),
        "error_float64": _error(model, small, samples, "float64"),
        "largest": float(np.abs(before).max()),
        "spread": float(before.std(axis=0).max()),
        "notes": list(record_of(small).notes),
    }
    if not latency:
        return found
    files = [_files(m, samples) for m in (model, small)]
    for precision in ("float", "int8"):
        contents = [each[precision] for each in files]
        found[f"{precision}_bytes"] = [len(content) for content in contents]
        runs: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for times, content in zip(runs, contents, strict=True):
                times.append(statistics.median(time_engine("litert", content)["wall"]) / 1e3)
        found[f"{precision}_us"] = [statistics.median(times) for times in runs]
    return found


def _ratio(pair: list[Any] | None) -> str:
    return "-" if not pair or None in pair else f"{pair[0] / pair[1]:.2f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as Markdown: ratios of before to after."""
    keys = ("parameters", "macs", "float_bytes", "int8_bytes", "float_us", "int8_us")
    lines = [
        "| network | parameters | MACs | float file | int8 file | float latency | int8 latency |"
        " error, float32 | error, float64 |",
        "| --- |" + " --- |" * 8,
    ]
    for found in rows:
        cells = [_ratio(found.get(key)) for key in keys]
        lines.append(
            f"| {found['model']} | {' | '.join(cells)} | {found['error']:.1e} |"
            f" {found['error_float64']:.1e} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs what is missing in `--output`, or prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="*", choices=APPLICATIONS, default=list(APPLICATIONS))
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child", choices=APPLICATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(row(options.child, not options.no_latency)))
        return 0
    if options.output is None:
        parser.error("--output is missing")
    known = options.output.read_text().splitlines() if options.output.exists() else []
    rows = {found["model"]: found for found in map(json.loads, known)}
    if options.table:
        print(table([rows[name] for name in APPLICATIONS if name in rows]))
        return 0
    failed = 0
    for name in options.only:
        if name in rows:
            continue
        command = [sys.executable, __file__, "--child", name]
        command += ["--no-latency"] if options.no_latency else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            failed = 1
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        with options.output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(table([found]).splitlines()[-1], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
