"""How much of the lost accuracy soft targets bring back when training data are few, on MNIST.

    python benchmarks/distillation.py --data mnist.npz --results results.json
        [--docs docs/distillation.md] [--seeds 3] [--share 0.03]

Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531, section 6, train a model on 3 % of
their data with hard and with soft targets. Here a student of one hidden layer of 100 units is
trained on all images, on a share of them, and on the same share with soft targets of a teacher (two
layers of 800 units, dropout) that has seen all. Each student takes as many steps from the same
initial
weights. Errors are of all 10,000 test images, of the last epoch: nothing is chosen on them.
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

BATCH, RATE = 128, 1e-3
TEACHER_EPOCHS, EPOCHS = 6, 8
LOSS = "distillation:temperature=4,weight=0.9"


def network(seed: int, units: Sequence[int], dropout: float = 0.0) -> keras.Model:
    """Returns a network of fully connected layers."""
    keras.utils.set_random_seed(seed)
    hidden = [layer for n in units for layer in (kl.Dense(n, "relu"), kl.Dropout(dropout))]
    return keras.Sequential([keras.Input((28, 28)), kl.Flatten(), *hidden, kl.Dense(10)])


def fit(model: keras.Model, x: Any, y: Any, steps: int, callbacks: Sequence[Any] = ()) -> None:
    """Trains for about a number of steps; the learning rate falls to 0 as half a cosine."""
    each = -(-len(x) // BATCH)
    epochs = round(steps / each)
    decay = keras.optimizers.schedules.CosineDecay(RATE, epochs * each)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))


def error(model: keras.Model, data: Any) -> float:
    """Returns the error on the test images in percent."""
    return 100 * (1 - model.evaluate(data[2], data[3], batch_size=1000, verbose=0)[1])


def runs(seed: int, data: Any, share: float) -> dict[str, float]:
    """Trains the teacher and the three students of a seed; returns their errors."""
    x, y = data[:2]
    steps = len(x) // BATCH
    teacher = network(seed, (800, 800), 0.3)
    fit(teacher, x, y, TEACHER_EPOCHS * steps)
    few = np.random.default_rng(seed).permutation(len(x))[: round(share * len(x))]
    found = {"teacher": error(teacher, data)}
    for name, chosen, callbacks in (
        ("all", slice(None), []),
        ("few", few, []),
        ("taught", few, [ec.Distillation(teacher, LOSS)]),
    ):
        student = network(seed, (100,))
        fit(student, x[chosen], y[chosen], EPOCHS * steps, callbacks)
        found[name] = error(student, data)
    return found


def table(results: dict[str, dict[str, float]], share: float) -> str:
    """Returns the Markdown table: a row for each seed, then the mean."""
    part = f"{100 * share:g} %"
    lines = [
        f"| seed | teacher, % | all data, % | {part} of the data, % | {part}, taught, % "
        "| share of the gap recovered |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = ("teacher", "all", "few", "taught")
    mean = {name: fmean(run[name] for run in results.values()) for name in names}
    for seed, run in [*results.items(), ("mean", mean)]:
        back = (run["few"] - run["taught"]) / (run["few"] - run["all"])
        cells = (seed, *(f"{run[name]:.2f}" for name in names), f"{100 * back:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz of keras.datasets")
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.03, help="of the training images")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with np.load(options.data) as file:
        parts = [file[f"{name}_{part}"] for part in ("train", "test") for name in ("x", "y")]
    data = (parts[0].astype("f4") / 255, parts[1], parts[2].astype("f4") / 255, parts[3])
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    for seed in range(options.seeds):
        if str(seed) in results:
            continue
        began = time.monotonic()
        results[str(seed)] = runs(seed, data, options.share)
        print(seed, results[str(seed)], f"{time.monotonic() - began:.0f} s", flush=True)
        write_atomic(options.results, json.dumps(results, indent=1).encode())
    text = table(results, options.share)
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "distillation mnist", text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
