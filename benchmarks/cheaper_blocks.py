"""What attention transfer brings to cheaper blocks, on Fashion-MNIST.

    python benchmarks/cheaper_blocks.py --data fashion_mnist.npz --results results.json
        [--docs docs/cheaper_blocks.md] [--seeds 3]

Crowley, Gray and Storkey, Moonshine, 2018, https://arxiv.org/abs/1711.02613: a network whose
convolutions have become cheaper blocks learns from the original by attention transfer. Here the
original is trained on 12,000 images first; then the same new network is trained from the same start
on 1,200 of them, with labels alone, with attention transfer, and with attention transfer and soft
targets. Errors are of all 10,000 test images, of the last epoch: nothing is chosen on them. The
weight of attention transfer (1, 3, 4, 30 and 100 were tried) and the number of images (12,000,
2,400 and 1,200) were chosen on the last 10,000 training images, which no run trains on, with a seed
of its own.
`--results` keeps every finished run: an interrupted benchmark continues.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl
from precision_engines import replaced

import edgecompress as ec
from edgecompress.core.files import write_atomic
from edgecompress.inspection.keras_models import inspect_keras

RATE = 2e-3
# Images, batch and epochs of the original, and of the new networks, which see the first of them.
ORIGINAL = (12_000, 128, 8)
NEW = (1_200, 32, 15)
# Of BatchNormalization: there are too few steps for Keras's 0.99.
MOMENTUM = 0.9
# Everything but the first convolution, which has one input channel.
BLOCKS = {
    "depthwise-separable": "cheaper-blocks:kind=depthwise-separable,layers=conv[2-5]",
    "depthwise-separable, nonlinear": (
        "cheaper-blocks:kind=depthwise-separable,nonlinear=true,layers=conv[2-5]"
    ),
}
LAYERS = {name: name for name in ("relu2", "relu3", "relu4", "relu5")}
ATTENTION = "attention-transfer:weight=4"
TEACHING = {
    "labels": None,
    "attention": "distillation:weight=0",
    "both": "distillation:temperature=4,weight=0.9",
}


def network(seed: int) -> keras.Model:
    """Returns the original: five convolutions with BatchNormalization and ReLU."""
    keras.utils.set_random_seed(seed)
    layers: list[Any] = [keras.Input((28, 28, 1))]
    for index, (filters, strides) in enumerate(((16, 2), (32, 2), (32, 1), (64, 2), (64, 1)), 1):
        layers += [
            kl.Conv2D(
                filters, 3, strides=strides, padding="same", use_bias=False, name=f"conv{index}"
            ),
            kl.BatchNormalization(momentum=MOMENTUM, name=f"norm{index}"),
            kl.ReLU(name=f"relu{index}"),
        ]
    return keras.Sequential([*layers, kl.GlobalAveragePooling2D(), kl.Dense(10)])


def fit(
    model: keras.Model,
    data: Sequence[Any],
    amount: tuple[int, int, int],
    callbacks: Sequence[Any] = (),
) -> None:
    """Trains on the first images; the learning rate falls to 0 as half a cosine."""
    images, batch, epochs = amount
    x, y = (part[:images] for part in data)
    decay = keras.optimizers.schedules.CosineDecay(RATE, epochs * -(-images // batch))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))


def error(model: keras.Model, data: Sequence[Any]) -> float:
    """Returns the error in percent."""
    found = model.predict(data[0], batch_size=1000, verbose=0).argmax(-1)
    return 100 * float((found != data[1]).mean())


def run(seed: int, train: Sequence[Any], test: Sequence[Any]) -> dict[str, Any]:
    """Trains the original and the new networks of a seed; returns errors and MACs."""
    original = network(seed)
    fit(original, train, ORIGINAL)
    found = {"original": error(original, test), "macs": inspect_keras(original).macs}
    for block, rewrite in BLOCKS.items():
        for teaching, loss in TEACHING.items():
            keras.utils.set_random_seed(seed)
            small = ec.finalize(original, rewrites=rewrite)
            found[f"macs {block}"] = inspect_keras(small).macs
            taught = [] if loss is None else [ec.Distillation(original, loss, LAYERS, ATTENTION)]
            fit(small, train, NEW, taught)
            found[f"{block}/{teaching}"] = error(small, test)
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown tables: means, then each seed."""
    runs = list(results.values())
    if not runs:
        return ""

    def mean(key: str) -> float:
        return fmean(run[key] for run in runs)

    lines = [
        f"| mean of {len(runs)} seeds | multiply-accumulates | labels, % | attention transfer, % "
        "| and soft targets, % | gain of attention transfer by seed |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        f"| the original | {runs[0]['macs']:,} | {mean('original'):.2f} | | | |",
    ]
    for block in BLOCKS:
        cells = [f"{mean(f'{block}/{teaching}'):.2f}" for teaching in TEACHING]
        gains = [f"{run[f'{block}/labels'] - run[f'{block}/attention']:+.2f}" for run in runs]
        macs = runs[0][f"macs {block}"]
        lines.append(f"| {block} | {macs:,} | {' | '.join(cells)} | {', '.join(gains)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with np.load(options.data) as file:
        x, y, x_test, y_test = (
            file[f"{name}_{part}"] for part in ("train", "test") for name in ("x", "y")
        )
    train, test = (
        (images[: ORIGINAL[0], ..., None].astype("f4") / 255, labels)
        for images, labels in ((x, y), (x_test, y_test))
    )
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    for seed in range(options.seeds):
        if str(seed) in results:
            continue
        began = time.monotonic()
        results[str(seed)] = run(seed, train, test)
        print(seed, results[str(seed)], f"{time.monotonic() - began:.0f} s", flush=True)
        write_atomic(options.results, json.dumps(results, indent=1).encode())
    text = table(results)
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "cheaper blocks", text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
