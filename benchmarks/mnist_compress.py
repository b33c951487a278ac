"""Compresses LeNet-300-100 and LeNet-5 on MNIST with `edgecompress.compress` alone.

    python benchmarks/mnist_compress.py --data mnist.npz --work DIR [--only KEY ...] [--docs PAGE]

Two larger networks teach on distorted images; `labels` is the same without them. Settings were
chosen on 5,000 training images. The error is that of the file in TensorFlow Lite Micro on all test
images; arenas and predicted times are of nucleo-l4r5zi. DIR keeps what is finished.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import keras
from mnist_networks import BATCH, images, trained
from precision_engines import replaced

import edgecompress as ec
from edgecompress.converters.accuracy import accuracy
from edgecompress.core.files import write_atomic

VARIANTS = {"taught": {"distillation": "distillation:temperature=3,weight=1"},
            "labels": {"distill": False}}  # fmt: skip
ROUNDED = {"cluster_start": "density", "cluster_rounded": True,
           "learning_rate": {"*": 2e-3, "cluster": 5e-4}}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "lenet-300-100": {
        "remove_channels": {"fc1": 0.78, "fc2": 0.66}, "sparsity": {"fc1": 0.8, "fc2": 0.65},
        "clusters": 15, "epochs": {"remove": 8, "prune": 10, "cluster": 4},
        "learning_rate": {"*": 2e-3, "cluster": 3e-4},
    },
    "lenet-5": {
        "remove_channels": {"conv1": 0.5, "conv2": 0.68, "fc1": 0.94},
        "sparsity": {"conv2": 0.56, "fc1": 0.695}, "clusters": {"conv2": 11, "fc1": 7},
        "epochs": {"remove": 4, "prune": 14, "cluster": 6}, **ROUNDED,
    },
    "lenet-5 narrow": {
        "remove_channels": {"conv1": 0.6, "conv2": 0.76, "fc1": 0.952},
        "sparsity": {"conv2": 0.57, "fc1": 0.7}, "clusters": {"conv2": 10, "fc1": 6},
        "epochs": {"remove": 6, "prune": 18, "cluster": 8}, **ROUNDED,
    },
}  # fmt: skip
KEYS = [f"{name}, {seed}, {how}" for name in RUNS for seed in (0, 1, 2) for how in VARIANTS]


def compressed(key: str, data: Any, teachers: list[Path], work: Path) -> dict[str, Any]:
    """Compresses a network; returns the bytes, the errors and the costs of its file."""
    (name, seed, how), (train, held, test) = key.split(", "), data
    out = work / key.replace(", ", "_")
    network = trained(name.split()[0], int(seed), train, work)
    result = ec.compress(
        keras.models.load_model(network), train, validation=held, output=out, seed=int(seed),
        batch_size=BATCH, targets=["nucleo-l4r5zi"],
        **RUNS[name], **VARIANTS[how], **({"teachers": teachers} if how == "taught" else {}),
    )  # fmt: skip
    file = (out / f"{result.name}_compressed.tflite").read_bytes()
    found = accuracy(file, test[:1], test[1], engine="tflm").top1
    arena, time = result.totals.arena, result.totals.latency
    return {
        "bytes": len(file), "validation": 100 * (1 - result.drop.after), "test": 100 * (1 - found),
        "arena": [arena.uncoded, arena.after], "us": [time.uncoded, time.after - time.uncoded],
    }  # fmt: skip


def table(done: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown table of finished runs."""
    rows = ["| network, seed, variant | bytes | error, % | on validation images, % | arena, int8 "
            "| arena, coded | int8 | decoding |", "| --- |" + " ---: |" * 7]  # fmt: skip
    for key, row in ((key, done[key]) for key in KEYS if key in done):
        costs = [f"{b:,.0f} B" for b in row["arena"]] + [f"{t / 1e3:.1f} ms" for t in row["us"]]
        errors = [f"{row['bytes']:,} B", f"{row['test']:.2f}", f"{row['validation']:.2f}"]
        rows.append(f"| {' | '.join([key, *errors, *costs])} |")
    return "\n".join(rows)


def main() -> None:
    """Makes what is missing, and prints bytes and errors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("--data", "--work", "--docs"):
        parser.add_argument(name, type=Path, required=name != "--docs")
    parser.add_argument("--only", nargs="*", choices=KEYS, default=KEYS)
    asked = parser.parse_args()
    rows = {key: asked.work / f"{key.replace(', ', '_')}.json" for key in KEYS}
    if due := [key for key in asked.only if not rows[key].exists()]:
        asked.work.mkdir(parents=True, exist_ok=True)
        data = images(asked.data, asked.work / "copies.npy")
        teachers = [trained("teacher", number, data[0], asked.work) for number in (0, 1)]
        for key in due:
            write_atomic(rows[key], json.dumps(compressed(key, data, teachers, asked.work)))
    done = {key: json.loads(row.read_text()) for key, row in rows.items() if row.exists()}
    print(table(done))
    if asked.docs is not None:
        asked.docs.write_text(replaced(asked.docs.read_text(), "mnist compress", table(done)))


if __name__ == "__main__":
    main()
