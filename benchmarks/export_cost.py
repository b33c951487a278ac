"""Compares the processor time of an export between two interpreters, in turns.

    python benchmarks/export_cost.py --before TREE/.venv/bin/python --after OTHER/.venv/bin/python

Each run exports MobileNetV2 at 224 x 224 with seeded random weights as int8, calibrated with 8
random images, and counts user and system time of the command and all processes that it started.
The first pair warms the disk's cache and is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

_MODEL = """
import keras, numpy as np
keras.utils.set_random_seed(0)
keras.applications.MobileNetV2(weights=None).save("mobilenet.keras")
x = np.random.default_rng(0).uniform(-1, 1, (8, 224, 224, 3)).astype("float32")
np.savez("images.npz", x=x)
"""
_EXPORT = ("export", "mobilenet.keras", "--format", "int8", "-t", "pixel-8", "--calibration",
           "images.npz", "-o", "out", "--quiet")  # fmt: skip


def _cost(python: str, folder: Path) -> float:
    """Returns the processor seconds of one export."""
    process = subprocess.Popen(
        [python, "-P", "-m", "edgecompress", *_EXPORT], cwd=folder, stdout=subprocess.DEVNULL
    )
    # The usage of a process that was waited for holds that of the children it waited for.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{python}: export ended with exit code {process.returncode}.")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="interpreter of the first tree")
    parser.add_argument("--after", required=True, help="interpreter of the second tree")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each")
    options = parser.parse_args()
    # Not resolved: what a virtual environment's link leads to knows no packages.
    before, after = (os.path.abspath(path) for path in (options.before, options.after))
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([before, "-P", "-c", _MODEL], cwd=folder, env=quiet, check=True)
        console = Console(stderr=True)
        for number in track(range(options.pairs + 1), "Exporting in pairs", console=console):
            # Who goes first alternates: a machine that gets slower favours neither.
            order = (before, after) if number % 2 else (after, before)
            costs = [_cost(python, folder) for python in order]
            pairs.append((costs[0], costs[1]) if number % 2 else (costs[1], costs[0]))
    pairs = pairs[1:]
    ratios = sorted(b / a for a, b in pairs)
    print("| pair | before, s | after, s | after / before |")
    print("| --- | --- | --- | --- |")
    for number, (a, b) in enumerate(pairs, 1):
        print(f"| {number} | {a:.2f} | {b:.2f} | {b / a:.3f} |")
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    print(f"| median | {a:.2f} | {b:.2f} | {ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
