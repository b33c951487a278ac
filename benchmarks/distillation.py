"""What distillation brings: soft targets when training data are few, hints, specialists.

    python benchmarks/distillation.py --data mnist.npz --results results.json
        [--docs docs/distillation.md] [--seeds 3] [--share 0.03]
    python benchmarks/distillation.py --kinds --data fashion_mnist.npz --results results.json
        [--docs docs/distillation.md] [--seeds 3]

Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531, section 6, train a model on 3 % of
their data with hard and with soft targets. Here a student of one hidden layer of 100 units is
trained on all images, on a share of them, and on the same share with soft targets of a teacher (two
layers of 800 units, dropout) that has seen all. Each student takes as many steps from the same
initial weights.

With `--kinds`, a narrow convolutional student learns from 3,000 images and from a wide teacher of
12,000: by labels, by soft targets, by hints for a quarter of the steps and then soft targets
(FitNets: Romero et al., 2015, https://arxiv.org/abs/1412.6550), and by soft targets of the teacher
and specialists (Hinton et al., section 5), which start from its weights.

Errors are of all 10,000 test images, of the last epoch: nothing is chosen on them. `--results`
keeps every finished run: an interrupted benchmark continues.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
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
# Of `--kinds`: images and steps of teacher, specialists and students.
MANY, FEW = 12_000, 3_000
WIDE_STEPS, SPECIALIST_STEPS, STEPS, HINT_STEPS = 600, 150, 600, 150
HINTS = "hints:weight=10"
CONVOLUTIONAL_RATE = 5e-3
GROUPS = 4
KINDS = {
    "labels": "labels",
    "soft": "soft targets",
    "hints": "hints, then soft targets",
    "specialists": "soft targets with specialists",
}


def network(seed: int, units: Sequence[int], dropout: float = 0.0) -> keras.Model:
    """Returns a network of fully connected layers."""
    keras.utils.set_random_seed(seed)
    hidden = [layer for n in units for layer in (kl.Dense(n, "relu"), kl.Dropout(dropout))]
    return keras.Sequential([keras.Input((28, 28)), kl.Flatten(), *hidden, kl.Dense(10)])


def fit(
    model: keras.Model,
    x: Any,
    y: Any,
    steps: int,
    callbacks: Sequence[Any] = (),
    rate: float = RATE,
) -> None:
    """Trains for about a number of steps; the learning rate falls to 0 as half a cosine."""
    each = -(-len(x) // BATCH)
    epochs = round(steps / each)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * each)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))


def convolutional(seed: int, filters: int, classes: int = 10) -> keras.Model:
    """Returns a network of three convolutions, the last two with twice as many filters.

    Each has BatchNormalization and ReLU behind it.
    """
    keras.utils.set_random_seed(seed)
    layers: list[Any] = [keras.Input((28, 28)), kl.Reshape((28, 28, 1))]
    for name, more, strides in (("first", 1, 2), ("second", 2, 2), ("third", 2, 1)):
        layers += [
            kl.Conv2D(filters * more, 3, strides, "same", use_bias=False, name=name),
            kl.BatchNormalization(momentum=0.9, name=f"{name}_norm"),
            kl.ReLU(name=f"{name}_relu"),
        ]
    return keras.Sequential([*layers, kl.GlobalAveragePooling2D(), kl.Dense(classes)])


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


def kinds(seed: int, data: Any) -> dict[str, Any]:
    """Trains a teacher, its specialists and the students of a seed; returns their errors."""
    chosen = np.random.default_rng(seed).permutation(len(data[0]))[:MANY]
    x, y = data[0][chosen], data[1][chosen]
    teacher = convolutional(seed, 32)
    fit(teacher, x, y, WIDE_STEPS, rate=CONVOLUTIONAL_RATE)
    p = keras.ops.softmax(teacher.predict(x, batch_size=1000, verbose=0))
    groups = ec.confusable_classes(np.array(p), GROUPS)
    specialists = [_specialist(seed, teacher, x, y, classes) for classes in groups]
    found: dict[str, Any] = {"teacher": error(teacher, data), "groups": groups}
    folder = Path(tempfile.mkdtemp())
    alone, together = (
        ec.Distillation(ec.TeacherOutputs(teachers, x[:FEW], folder / name), LOSS)
        for name, teachers in (("alone", [teacher]), ("together", [teacher, *specialists]))
    )
    stages: dict[str, list[tuple[int, list[Any]]]] = {
        "labels": [(STEPS, [])],
        "soft": [(STEPS, [alone])],
        "hints": [
            (HINT_STEPS, [ec.Distillation(
                teacher, "distillation:weight=0", {"second_relu": "second_relu"}, HINTS)]),
            (STEPS - HINT_STEPS, [alone]),
        ],
        "specialists": [(STEPS, [together])],
    }  # fmt: skip
    for name, parts in stages.items():
        student = convolutional(seed, 4)
        for steps, callbacks in parts:
            fit(student, x[:FEW], y[:FEW], steps, callbacks, CONVOLUTIONAL_RATE)
        found[name] = error(student, data)
    shutil.rmtree(folder)
    return found


def _specialist(seed: int, teacher: Any, x: Any, y: Any, classes: tuple[int, ...]) -> Any:
    """Returns a specialist that starts from the teacher's convolutions."""
    chosen, labels, oversampled = ec.specialist_samples(y, classes, seed)
    model = convolutional(seed, 32, len(classes) + 1)
    for ours, theirs in zip(model.layers[:-1], teacher.layers[:-1], strict=True):
        ours.set_weights(theirs.get_weights())
    fit(model, x[chosen], labels, SPECIALIST_STEPS)
    return ec.Specialist(model, classes, oversampled)


def table_of_kinds(results: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown table: a row for each way to teach."""
    rows = [run for key, run in results.items() if key.startswith("kinds/")]
    lines = [
        f"| {len(rows)} seeds | error, % | gain over labels by seed |",
        "| --- | ---: | --- |",
        f"| the teacher | {fmean(run['teacher'] for run in rows):.2f} | |",
    ]
    for name, text in KINDS.items():
        gains = ", ".join(f"{run['labels'] - run[name]:+.2f}" for run in rows)
        mean = fmean(run[name] for run in rows)
        lines.append(f"| {text} | {mean:.2f} | {gains if name != 'labels' else ''} |")
    return "\n".join(lines)


def table(results: dict[str, dict[str, float]], share: float) -> str:
    """Returns the Markdown table: a row for each seed, then the mean."""
    part = f"{100 * share:g} %"
    lines = [
        f"| seed | teacher, % | all data, % | {part} of the data, % | {part}, taught, % "
        "| share of the gap recovered |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = ("teacher", "all", "few", "taught")
    few = {key: run for key, run in results.items() if key.isdigit()}
    mean = {name: fmean(run[name] for run in few.values()) for name in names}
    for seed, run in [*few.items(), ("mean", mean)]:
        back = (run["few"] - run["taught"]) / (run["few"] - run["all"])
        cells = (seed, *(f"{run[name]:.2f}" for name in names), f"{100 * back:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz of keras.datasets")
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--kinds", action="store_true", help="compare hints and specialists")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.03, help="of the training images")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with np.load(options.data) as file:
        parts = [file[f"{name}_{part}"] for part in ("train", "test") for name in ("x", "y")]
    data = (parts[0].astype("f4") / 255, parts[1], parts[2].astype("f4") / 255, parts[3])
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    for seed in range(options.seeds):
        key = f"kinds/{seed}" if options.kinds else str(seed)
        if key in results:
            continue
        began = time.monotonic()
        results[key] = kinds(seed, data) if options.kinds else runs(seed, data, options.share)
        print(key, results[key], f"{time.monotonic() - began:.0f} s", flush=True)
        write_atomic(options.results, json.dumps(results, indent=1).encode())
    text = table_of_kinds(results) if options.kinds else table(results, options.share)
    print(text)
    if options.docs is not None:
        place = "distillation kinds" if options.kinds else "distillation mnist"
        page = replaced(options.docs.read_text(encoding="utf-8"), place, text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
