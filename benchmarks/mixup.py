"""What mixup is worth to a small candidate of `edgecompress search`, on people it has not seen.

    python benchmarks/mixup.py --data DATA --work WORK [--pairs 10] [--jobs 2]
        [--docs docs/search.md]

DATA holds watch_exercises.npz. For each pair of its five training people, a DS-CNN is trained on
the other three. The first candidate of a search, limited to a third of the arena, file size and
latency of the untouched int8 file on nucleo-l4r5zi, is then trained for 162 epochs without mixup
and with it; nothing is chosen. Accuracies are those of the files in the target's engine on the two
people who were left out. Finished pairs are kept in WORK. Ten pairs: an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from precision_engines import replaced
from pruning_curves_networks import TASKS, fit, load
from search import CASES, TARGET, limits

# What a candidate is made by, beside mixup.
_TECHNIQUES = ("channels", "depth", "distillation", "resolution", "training")
_ALPHAS = (0.0, 0.2, 0.4, 1.0)


def measure(pair: tuple[int, int], data: Path, work: Path) -> dict[str, float]:
    """Returns accuracies in % on two people: of the untouched file, and by each alpha."""
    import keras

    from edgecompress.pipeline.request import parse_budgets
    from edgecompress.searching.evaluator import Evaluator
    from edgecompress.searching.results import UNTOUCHED, Job
    from edgecompress.targets.profile import load_target

    kept = work / f"mixup_{pair[0]}_{pair[1]}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    task, epochs = TASKS["ds_cnn"], CASES["watch"].epochs
    x, y = load(task, data)[:2]
    with np.load(data / "watch_exercises.npz") as file:
        held = np.isin(file["subject_train"], pair)
    keras.utils.set_random_seed(0)
    model = task.build(keras)
    fit(keras, model, [x[~held], y[~held], x[held], y[held]], task.dense_epochs, task.rate)
    path = work / f"mixup_{pair[0]}_{pair[1]}.keras"
    model.save(path)
    most = limits({"model": path})
    budgets = parse_budgets(None, most["arena"], f"{most['latency']}us", most["file_size"], None)
    export: dict[str, Any] = {
        "max_flash": None, "max_ram": budgets.max_ram, "max_latency": budgets.max_latency,
        "max_file_size": budgets.max_file_size, "min_accuracy": None, "options": {},
    }  # fmt: skip
    found: dict[str, float] = {}
    values: Mapping[str, Any] = {}
    for names in (_TECHNIQUES, (*_TECHNIQUES, "mixup")):
        evaluator = Evaluator(
            path, (x[~held], y[~held]), (x[held], y[held]), [load_target(TARGET)], export,
            work / path.stem, names,
        )  # fmt: skip
        known = {knob.name: knob for knob in evaluator.describe().knobs}
        if not values:
            found["untouched"] = 100 * float(evaluator.evaluate(Job({}, UNTOUCHED)).metric or 0.0)
            # The first that fits.
            for values in evaluator.begin(10).candidates:
                outcome = evaluator.evaluate(Job(values, epochs=epochs, last=True))
                if outcome.metric is not None and outcome.fits:
                    break
            else:
                raise SystemExit(f"No candidate fits for people {pair[0]} and {pair[1]}.")
            found["alpha 0"] = 100 * float(outcome.metric or 0.0)
            continue
        for alpha in known["mixup.alpha"].choices:
            job = Job({**values, "mixup.alpha": alpha}, epochs=epochs, last=True)
            found[f"alpha {alpha:g}"] = 100 * float(evaluator.evaluate(job).metric or 0.0)
    kept.write_text(json.dumps(found))
    return found


def table(rows: dict[tuple[int, int], dict[str, float]]) -> str:
    """Returns the Markdown table: points relative to the untouched file."""
    names = [f"alpha {alpha:g}" for alpha in _ALPHAS]
    names = [name for name in names if all(name in row for row in rows.values())]
    lines = [
        f"| people left out | untouched | {' | '.join(names)} |",
        "| --- |" + " ---: |" * (1 + len(names)),
    ]
    lines += [
        f"| {pair[0]} and {pair[1]} | {row['untouched']:.2f} % | "
        + " | ".join(f"{row[name] - row['untouched']:+.2f}" for name in names)
        + " |"
        for pair, row in sorted(rows.items())
    ]
    means = []
    for name in names:
        gains = [row[name] - row["untouched"] for row in rows.values()]
        means.append(f"{fmean(gains):+.2f} ± {stdev(gains) if len(gains) > 1 else 0.0:.2f}")
    untouched = fmean(row["untouched"] for row in rows.values())
    lines.append(f"| mean | {untouched:.2f} % | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished pairs")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pairs = list(itertools.combinations(range(1, 6), 2))[: options.pairs]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = pool.map(
            measure, pairs, itertools.repeat(options.data), itertools.repeat(options.work)
        )
        text = table(dict(zip(pairs, found, strict=True)))
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "mixup", text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
