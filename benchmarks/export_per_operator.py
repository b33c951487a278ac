"""Exports networks of 10 to 1,000 operators and prints the processor time of each.

    python benchmarks/export_per_operator.py [--operators 10 100 300 1000]

The export is the whole command for a phone and a microcontroller: conversion, calibration with 100
random samples, runs in the engines, agreement, layer by layer comparison, report. The networks are
four chains of Dense and Add: nearly all of the time is spent on operators, not on arithmetic. Each
size runs in processes of its own; the time is that of all of them. With the defaults 2 minutes on
two cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
_CHAINS, _WIDTH = 4, 16


def network(operators: int) -> Any:
    """Returns four chains of Dense and Add, and a Dense layer: about as many operators."""
    import keras
    from keras import layers

    inputs = keras.Input((_WIDTH,))
    ends = []
    for _ in range(_CHAINS):
        x = inputs
        for _ in range(round(operators / _CHAINS / 2)):
            x = layers.Add()([layers.Dense(_WIDTH, activation="relu")(x), inputs])
        ends.append(x)
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(ends)))


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operators", type=int, nargs="+", default=[10, 100, 300, 1000])
    options = parser.parse_args()
    import keras

    print("| operators | export, CPU s | ms for each operator above the first row |")
    print("| ---: | ---: | ---: |")
    first: tuple[int, float] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        x = np.random.default_rng(0).normal(size=(100, _WIDTH)).astype(np.float32)
        np.savez(folder / "x.npz", x=x)
        for count in options.operators:
            keras.utils.set_random_seed(0)
            network(count).save(folder / "model.keras")
            command = [sys.executable, "-P", "-m", "edgecompress", "export", "model.keras", "-q",
                       "-t", "pixel-8", "-t", "cortex-m4", "--calibration", "x.npz", "-o", "out",
                       "--min-agreement", "0"]  # fmt: skip
            before = _children_s()
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{count} operators: {done.stderr[-800:]}")
            cost = _children_s() - before
            each = "" if first is None else f"{(cost - first[1]) / (count - first[0]) * 1e3:.1f}"
            first = first or (count, cost)
            print(f"| {count:,} | {cost:.1f} | {each} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
