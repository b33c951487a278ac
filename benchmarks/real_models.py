"""Exports whole models for a phone and a microcontroller, and says what became of each.

    python benchmarks/real_models.py --output rows.jsonl [--models DIR ...] [--only PART]

The networks of keras.applications (random weights: nothing is downloaded), a two-layer GRU, a small
transformer, a U-Net, a classifier of token sequences, a keyword spotter, and every Keras file in
the folders `--models`. Each runs in a process of its own; a finished row is kept in `--output`, so
an interrupted run continues. With random weights an agreement of classes says little, so there is
no floor; the signal-to-noise ratio of the outputs (SQNR) against Keras is printed.

A row: operators that stay in float ("none": all integer); SQNR in LiteRT and in TensorFlow Lite
Micro; the verdict for a phone and for a board (operators, flash, RAM), with the first rule that
fails or cannot be decided; the exit code; size; cost of the export in processor seconds and peak
memory. Models above `--board-limit` weights are made for the phone only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

APPLICATIONS = {
    # Name -> largest value of its inputs; their smallest is 0, or minus that.
    "MobileNet": (-1, 1), "MobileNetV2": (-1, 1), "MobileNetV3Small": (0, 255),
    "EfficientNetB0": (0, 255), "EfficientNetV2B0": (0, 255), "NASNetMobile": (-1, 1),
    "DenseNet121": (-2, 2), "ResNet50": (-100, 150), "ResNet50V2": (-1, 1), "Xception": (-1, 1),
    "InceptionV3": (-1, 1), "ConvNeXtTiny": (0, 255), "VGG16": (-100, 150),
    "InceptionResNetV2": (-1, 1),
}  # fmt: skip
SAMPLES = 16
PHONE, BOARD = "pixel-8", "nucleo-h7a3zi-q"


def gru() -> Any:
    """Two GRU layers with default arguments."""
    import keras
    from keras import layers as kl

    return keras.Sequential(
        [
            keras.Input((20, 9)),
            kl.GRU(16, return_sequences=True),
            kl.GRU(16),
            kl.Dense(5, activation="softmax"),
        ]
    )


def transformer() -> Any:
    """Tokens and positions, two blocks of LayerNormalization, attention and GELU."""
    import keras
    from keras import layers as kl
    from keras import ops

    tokens = keras.Input((16,), dtype="int32")
    x = kl.Embedding(100, 32)(tokens) + kl.Embedding(16, 32)(ops.arange(16))
    for _ in range(2):
        y = kl.LayerNormalization()(x)
        x = x + kl.MultiHeadAttention(4, 8)(y, y, use_causal_mask=True)
        y = kl.Dense(64, activation="gelu")(kl.LayerNormalization()(x))
        x = x + kl.Dense(32)(y)
    x = kl.GlobalAveragePooling1D()(kl.LayerNormalization()(x))
    return keras.Model(tokens, kl.Dense(5, activation="softmax")(x))


def unet() -> Any:
    """A U-Net of default layers: max pooling down, nearest upsampling up."""
    import keras
    from keras import layers as kl

    def block(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = kl.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = kl.ReLU()(kl.BatchNormalization()(x))
        return x

    image = keras.Input((48, 48, 3))
    down, x = [], image
    for filters in (8, 16):
        x = block(x, filters)
        down.append(x)
        x = kl.MaxPooling2D()(x)
    x = block(x, 32)
    for filters, skip in zip((16, 8), reversed(down), strict=True):
        x = block(kl.Concatenate()([kl.UpSampling2D()(x), skip]), filters)
    return keras.Model(image, kl.Conv2D(1, 1, activation="sigmoid")(x))


def embedding() -> Any:
    """A classifier of token sequences: Embedding, mean, Dense."""
    import keras
    from keras import layers as kl

    return keras.Sequential(
        [
            keras.Input((24,), dtype="int32"),
            kl.Embedding(200, 16),
            kl.GlobalAveragePooling1D(),
            kl.Dense(16, activation="relu"),
            kl.Dense(4, activation="softmax"),
        ]
    )


def keywords() -> Any:
    """A DS-CNN over spectrograms."""
    import keras
    from keras import layers as kl

    image = keras.Input((49, 10, 1))
    x = kl.Conv2D(32, (10, 4), strides=2, padding="same", use_bias=False)(image)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    for _ in range(3):
        x = kl.ReLU()(kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same")(x)))
        x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(32, 1)(x)))
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(image, kl.Dense(12, activation="softmax")(x))


def streamed_keywords() -> Any:
    """A DS-CNN over time for streaming: convolutions that look back only."""
    import keras
    from keras import layers as kl

    wide = keras.initializers.RandomNormal(stddev=20.0, seed=0)
    return keras.Sequential(
        [
            keras.Input((48, 16)),
            kl.Conv1D(24, 5, padding="causal", activation="relu"),
            kl.SeparableConv1D(24, 5, activation="relu"),
            kl.SeparableConv1D(24, 5, activation="relu"),
            kl.GlobalAveragePooling1D(),
            # Classes further apart than a step of the output, as training would make them.
            kl.Dense(4, activation="softmax", kernel_initializer=wide),
        ]
    )


OWN: dict[str, Callable[[], Any]] = {
    "GRU, two layers": gru,
    "transformer": transformer,
    "U-Net": unet,
    "Embedding classifier": embedding,
    "DS-CNN": keywords,
    "DS-CNN, streaming": streamed_keywords,
}


def made(name: str, size: int) -> tuple[Any, list[Any]]:
    """Returns a model and calibration samples."""
    import keras
    import numpy as np

    from edgecompress.converters.loaders import load_model, wrap

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    low, high = -1.0, 1.0
    if name in APPLICATIONS:
        low, high = APPLICATIONS[name]
        model: Any = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=10
        )
        settle(model, rng)
    elif name in OWN:
        model = OWN[name]()
        settle(model, rng)
    else:
        model = name
    loaded = load_model(name) if isinstance(model, str) else wrap(model)
    samples = []
    for spec in loaded.inputs:
        shape = (SAMPLES, *(size or 1 for size in spec.shape))
        if spec.dtype.startswith("int"):
            samples.append(rng.integers(0, 16, shape).astype(spec.dtype))
        else:
            samples.append(rng.uniform(low, high, shape).astype(np.float32))
    return model, samples


def settle(model: Any, rng: Any) -> None:
    """Gives BatchNormalization statistics that are not the neutral ones."""
    import numpy as np
    from keras import layers as kl

    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            for variable in (layer.moving_mean, layer.beta):
                if variable is not None:
                    variable.assign(rng.normal(scale=0.1, size=variable.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))
        elif type(layer).__name__ == "LayerScale":
            layer.gamma.assign(np.full(layer.gamma.shape, 0.5))


def row(name: str, size: int, board_limit: int) -> dict[str, Any]:
    """Exports a model and returns its row."""
    import numpy as np

    import edgecompress as ec
    from edgecompress.converters.loaders import load_model, wrap
    from edgecompress.converters.real_values import dequantize, quantized_inputs
    from edgecompress.core.errors import EdgeCompressError
    from edgecompress.engines.run import run_engine
    from edgecompress.flatbuffers.reading import read_tflite

    model, samples = made(name, size)
    loaded = load_model(model) if isinstance(model, str) else wrap(model)
    weights = sum(int(np.prod(w.shape)) for w in loaded.model.weights)
    targets = [PHONE, BOARD] if weights <= board_limit else [PHONE]
    found: dict[str, Any] = {"model": Path(name).name, "weights": weights, "targets": targets}
    start, before = time.monotonic(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        data = tuple(samples) if len(samples) > 1 else samples[0]
        try:
            report = ec.export(
                model, targets, calibration=list(data) if isinstance(data, tuple) else data,
                name="net", output=folder, min_agreement=0.0, min_r2=0.0,
                **({"streaming": True} if name.endswith("streaming") else {}),
            )  # fmt: skip
        except EdgeCompressError as error:
            return {**found, "error": " ".join(str(error).split()), "exit": error.exit_code}
        file = (Path(folder) / "net_int8.tflite").read_bytes()
    after, usage = os.times(), resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["exit"] = report.exit_code
    found["seconds"] = round(time.monotonic() - start, 1)
    found["cpu"] = round(sum(after[:4]) - sum(before[:4]), 1)
    found["peak_mb"] = round((usage.ru_maxrss + children.ru_maxrss) / 1024)
    flat = read_tflite(file)
    found["bytes"], found["operators"] = len(file), flat.histogram()
    found["float"] = sorted(
        {
            o.name
            for o in flat.operators
            if o.name not in ("QUANTIZE", "DEQUANTIZE")
            and any(flat.tensors[i].type == "FLOAT32" for i in (*o.inputs, *o.outputs) if i >= 0)
        }
    )
    found["notes"] = [note for note in report.notes if "float" in note]
    for target in report.targets:
        wrong = [
            f"{c.verdict}: {c.rule}: {c.reason}"
            for c in target.checks
            if c.verdict in ("fail", "uncertain")
            or (c.verdict == "not_measured" and c.limit is not None)
        ]
        found[f"runs on {target.name}"] = wrong[0] if wrong else "pass"
    if len(flat.inputs) != len(samples):
        # A streaming file is run step by step by the export itself.
        (parity,) = (c for c in report.targets[0].checks if c.rule == "parity")
        shares = parity.detail.get("engines", {})
        return {**found, **{engine: f"agree {share:.0%}" for engine, share in shares.items()}}
    wanted = loaded.predict(samples)[0]
    few = [array[:4] for array in quantized_inputs(flat, samples)]
    for engine in ("litert", "tflm") if BOARD in targets else ("litert",):
        try:
            output = run_engine(engine, file, few).outputs[0]
            real = dequantize(output, flat.tensors[flat.outputs[0]]).reshape(wanted[:4].shape)
            noise = float(np.square(real - wanted[:4]).sum())
            power = float(np.square(wanted[:4]).sum())
            found[engine] = round(10 * float(np.log10(power / max(noise, 1e-12))), 1)
        except EdgeCompressError as error:
            found[engine] = " ".join(str(error).split())[:120]
    return found


def table(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a table."""
    print(
        "| model | weights | float left | LiteRT, dB | TFLM, dB | phone | board | exit code "
        "| bytes | CPU, s | peak, MB |"
    )
    print("| --- " * 11 + "|")
    for found in rows:
        name = found["model"]
        if "error" in found:
            print(f"| {name} | {found.get('weights', '')} | {found['error'][:200]} "
                  f"| | | | | {found['exit']} | | | |")  # fmt: skip
            continue
        left = ", ".join(found["float"]) or "none"
        board = found.get(f"runs on {BOARD}", "not made")
        print(
            f"| {name} | {found['weights']:,} | {left} | {found.get('litert', '')} "
            f"| {found.get('tflm', '')} | {found[f'runs on {PHONE}'][:120]} | {board[:120]} "
            f"| {found['exit']} | {found['bytes']:,} | {found['cpu']} | {found['peak_mb']:,} |"
        )


def main() -> None:
    """Runs each model in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--size", type=int, default=96, help="of images for keras.applications")
    parser.add_argument("--board-limit", type=int, default=600_000, help="weights")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("\n" + json.dumps(row(arguments.one, arguments.size, arguments.board_limit)))
        return
    files = sorted(
        str(path)
        for folder in arguments.models
        for path in folder.iterdir()
        if path.suffix in (".h5", ".hdf5", ".keras")
    )
    done = []
    if arguments.output.exists():
        done = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    for name in (*OWN, *files, *APPLICATIONS):
        known = any(found["model"] == Path(name).name for found in done)
        if known or arguments.only.lower() not in name.lower():
            continue
        command = [sys.executable, __file__, "--output", str(arguments.output), "--one", name]
        command += ["--size", str(arguments.size), "--board-limit", str(arguments.board_limit)]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=arguments.timeout, check=False
            )
            last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""
            found = json.loads(last) if last.startswith("{") else None
            what = (run.stderr.strip().splitlines() or ["no output"])[-1]
        except subprocess.TimeoutExpired:
            found, what = None, f"no end after {arguments.timeout:g} s"
        found = found or {"model": Path(name).name, "error": what, "exit": "crash"}
        done.append(found)
        with arguments.output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{found['model']}: exit {found['exit']}", file=sys.stderr, flush=True)
    table(done)


if __name__ == "__main__":
    main()
