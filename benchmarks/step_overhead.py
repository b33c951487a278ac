"""Prints what the training callbacks cost: CPU time of a training step, relative to plain fit.

Every variant trains a model of its own with a real `model.fit`, each in a thread, and they take
turns of one epoch. Only one thread runs at a time, so the CPU time of the process is the variant's.
A ratio compares turns of the same round, which saw the same load of the machine; the table shows
the median over all rounds with quartiles, and the ratio of the shortest turns. Tracing, the first
epochs, the last ones, and what callbacks do between epochs are left out. Masks are recomputed every
100 steps; where a turn has fewer, the median turn has no such step.

tensorflow-model-optimization runs right after, by the same protocol, in a process of its own with
tf_keras; its ratios are relative to the plain fit of tf_keras.

Run: python benchmarks/step_overhead.py [--networks mlp conv] [--variants plain pruning qat both]
         [--no-peer] [--results FILE.json] [--docs docs/pruning.md]

`--results` keeps rows of earlier runs; the table has all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
from precision_engines import replaced
from step_overhead_protocol import FREQUENCY, NETWORKS, Variant, measure, rows

LIMITS = {"pruning": 1.03, "lasso": 1.08, "clustering": 1.15, "qat": 1.12}
# Where the peer's ratio is a limit, too.
BELOW_PEER = ("pruning", "qat")
TITLES = {
    "pruning": "`MagnitudePruning`",
    "lasso": "`GroupLasso`",
    "clustering": "`WeightClustering`",
    "qat": "`QuantizationAwareTraining`",
    "both": "pruning and quantization-aware",
}


def pruning(steps: int) -> list[Any]:
    """Masks recomputed every 100 steps up to the end."""
    from edgecompress import MagnitudePruning, PolynomialDecay

    end = max(steps, 2 * FREQUENCY)
    schedule = PolynomialDecay(0.8, begin_step=0, end_step=end, frequency=FREQUENCY)
    return [MagnitudePruning(schedule)]


def lasso() -> list[Any]:
    """The penalty from the first step to the last."""
    from edgecompress import GroupLasso

    return [GroupLasso(1e-5)]


def clustering() -> list[Any]:
    """16 values in each kernel from the first step on."""
    from edgecompress import WeightClustering

    return [WeightClustering(16)]


def qat() -> list[Any]:
    """int8 simulated from the first step."""
    from edgecompress import QuantizationAwareTraining

    return [QuantizationAwareTraining()]


VARIANTS: dict[str, Variant] = {
    "plain": lambda model, steps: (model, []),
    "pruning": lambda model, steps: (model, pruning(steps)),
    "lasso": lambda model, steps: (model, lasso()),
    "clustering": lambda model, steps: (model, clustering()),
    "qat": lambda model, steps: (model, qat()),
    "both": lambda model, steps: (model, [*pruning(steps), *qat()]),
}


def peer(network: str, rounds: int, variants: list[str]) -> dict[str, dict[str, float]]:
    """Returns the rows of tensorflow-model-optimization."""
    script = Path(__file__).with_name("step_overhead_peer.py")
    done = subprocess.run(
        [sys.executable, str(script), network, str(rounds), *variants],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def verdict(name: str, ratio: float, other: float | None) -> str:
    """Returns whether a ratio meets its limits."""
    if name not in LIMITS:
        return "-"
    met = ratio <= LIMITS[name]
    if name in BELOW_PEER and other is not None:
        met = met and ratio < other
    return "met" if met else "missed"


def table(results: Mapping[str, Any]) -> str:
    """Returns the table of all measured networks."""
    lines = [
        "| network | plain, us a step | callback | ratio | quartiles | of minima | limit "
        "| tensorflow-model-optimization | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, network in NETWORKS.items():
        if key not in results:
            continue
        ours, theirs = results[key]["ours"], results[key].get("peer", {})
        title = f"{network.title}, batch {network.batch}"
        plain = f"{ours['plain']['us']:,.0f}"
        for name in (name for name in TITLES if name in ours):
            row, other = ours[name], theirs.get(name)
            limit = f"{LIMITS[name]:.2f}" if name in LIMITS else "-"
            their = "-" if other is None else f"{other['ratio']:.2f}"
            met = verdict(name, row["ratio"], None if other is None else other["ratio"])
            lines.append(
                f"| {title} | {plain} | {TITLES[name]} | {row['ratio']:.3f} "
                f"| {row['low']:.3f} to {row['high']:.3f} | {row['minima']:.3f} "
                f"| {limit} | {their} | {met} |"
            )
            title = plain = ""
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=15, help="measured turns (default 15)")
    parser.add_argument("--no-peer", action="store_true", help="without the other toolkit")
    parser.add_argument("--results", type=Path, help="JSON file of all rows")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()

    results: dict[str, Any] = {}
    if arguments.results is not None and arguments.results.exists():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    names = ["plain", *(name for name in arguments.variants if name != "plain")]
    for key in arguments.networks:
        network = NETWORKS[key]
        seconds = measure(
            keras, network, {name: VARIANTS[name] for name in names}, arguments.rounds
        )
        entry = results.setdefault(key, {"ours": {}})
        entry["ours"].update(rows(seconds, network.steps))
        if not arguments.no_peer:
            entry.setdefault("peer", {}).update(peer(key, arguments.rounds, names))
        if arguments.results is not None:
            arguments.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"{arguments.rounds} rounds, {os.cpu_count()} cores, Keras {keras.__version__}")
    print(table(results))
    if arguments.docs is not None:
        page = arguments.docs.read_text(encoding="utf-8")
        text = replaced(page, "step overhead", table(results))
        arguments.docs.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
