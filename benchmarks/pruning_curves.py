"""Accuracy against multiply-accumulates (MACs): six criteria, group lasso, and what they must beat.

    python benchmarks/pruning_curves.py --data DATA --work WORK [--jobs 2] [--tasks resnet ...]
        [--seeds N] [--docs docs/pruning.md] [--plot docs/pruning_curves.png]

DATA holds fashion_mnist.npz and watch_exercises.npz (x_train, y_train, x_test, y_test; the test
subjects of the watch are not among those of training). From one dense network for each seed, every
method leaves half, a quarter and an eighth of its MACs:

- `dense`: the network itself, at its best before or after as many further epochs as all others;
- a criterion: `ChannelPruning` to a `Budget` in five rounds, then `finalize` and further training;
- `lasso`: `GroupLasso` to the same budget, then `finalize` and further training;
- `thinner`: the same share of channels left out of every layer, trained from scratch;
- `taylor-taught`, `thinner-taught`: the same, with the dense network as the teacher of what is left
  (`Distillation` in the further training), or of the thinner network; on some networks;
- `tfmot`: tensorflow-model-optimization's magnitude pruning of single weights in tf_keras. Its
  zeros are not counted as MACs, though no dense kernel skips them: the file is as slow as before.

Settings are fixed here, none is chosen on test data; accuracies are of the last epoch. Each run is
a process, WORK keeps each finished one: an interrupted benchmark continues. About three hours on
two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from precision_engines import replaced
from pruning_curves_networks import TASKS, Task, fit, load

from edgecompress.core.files import write_atomic

# `fisher` divides by a filter's cost, as the budget's ranking does again.
OPTIONS = {"fisher": "fisher:cost=false"}
CRITERIA = ("magnitude", "taylor", "fisher", "norm-scale", "geometric-median", "random")
SHARES = (0.5, 0.25, 0.125)
LASSO_STRENGTH = 1e-4
# In which channels go, in each epoch of pruning; the last round trains on without them.
ROUNDS = 6
# Points that half of the MACs may cost.
LIMIT = 0.3


def dense(task: Task, data: Any, seed: int, work: Path) -> dict[str, float]:
    """Trains the dense network, keeps its weights, and trains it on as the others are."""
    import keras

    keras.utils.set_random_seed(seed)
    model = task.build(keras)
    before = fit(keras, model, data, task.dense_epochs, task.rate)
    model.save_weights(_weights(task, seed, work))
    epochs = task.pruning_epochs + task.tuning_epochs
    after = fit(keras, model, data, epochs, task.rate)
    return {"before": before, "after": after, **_row(model, max(before, after), 1.0)}


def criterion(name: str, share: float, taught: bool = False) -> Callable[..., dict[str, float]]:
    """Returns a run of channel pruning."""

    def run(task: Task, data: Any, seed: int, work: Path) -> dict[str, float]:
        import edgecompress as ec

        last = task.pruning_epochs * ROUNDS - 1
        given = OPTIONS.get(name, name)
        callback = ec.ChannelPruning(ec.Budget(macs=share), criterion=given, end_epoch=last)
        return _pruned(task, data, seed, work, callback, taught)

    return run


def lasso(share: float) -> Callable[..., dict[str, float]]:
    """Returns a run of group lasso."""

    def run(task: Task, data: Any, seed: int, work: Path) -> dict[str, float]:
        import edgecompress as ec

        last = task.pruning_epochs * ROUNDS - 1
        callback = ec.GroupLasso(LASSO_STRENGTH, until=ec.Budget(macs=share), end_epoch=last)
        return _pruned(task, data, seed, work, callback)

    return run


def thinner(share: float, taught: bool = False) -> Callable[..., dict[str, float]]:
    """Returns a run of a thinner network from scratch, for all epochs."""

    def run(task: Task, data: Any, seed: int, work: Path) -> dict[str, float]:
        import keras

        import edgecompress as ec

        model = task.build(keras)
        small = ec.thinner_copy(model, macs=share, seed=seed)
        epochs = task.dense_epochs + task.pruning_epochs + task.tuning_epochs
        teaching = _teaching(task, seed, work) if taught else []
        keras.utils.set_random_seed(seed)
        accuracy = fit(keras, small, data, epochs, task.rate, teaching)
        return _row(small, accuracy, _macs(small) / _macs(model))

    return run


def peer(share: float) -> Callable[..., dict[str, float]]:
    """Returns a run in tensorflow-model-optimization."""

    def run(task: Task, data: Any, seed: int, work: Path) -> dict[str, float]:
        from pruning_curves_peer import pruned

        return pruned(task, data, seed, share, _keras_weights(task, seed, work))

    return run


METHODS: dict[str, Callable[[float], Callable[..., dict[str, float]]]] = {
    **{name: lambda share, name=name: criterion(name, share) for name in CRITERIA},
    "lasso": lasso,
    "taylor-taught": lambda share: criterion("taylor", share, taught=True),
    "thinner": thinner,
    "thinner-taught": lambda share: thinner(share, taught=True),
    "tfmot": peer,
}


def _teaching(task: Task, seed: int, work: Path) -> list[Any]:
    """Returns the callback with which a network learns from the dense one."""
    import keras
    from distillation import LOSS

    import edgecompress as ec

    teacher = task.build(keras)
    teacher.load_weights(_weights(task, seed, work))
    return [ec.Distillation(teacher, LOSS)]


def _pruned(
    task: Task, data: Any, seed: int, work: Path, callback: Any, taught: bool = False
) -> dict[str, float]:
    import keras

    import edgecompress as ec

    keras.utils.set_random_seed(seed)
    model = task.build(keras)
    model.load_weights(_weights(task, seed, work))
    whole = _macs(model)
    fit(keras, model, data, task.pruning_epochs, task.rate, [callback], ROUNDS)
    small = ec.finalize(model)
    teaching = _teaching(task, seed, work) if taught else []
    accuracy = fit(keras, small, data, task.tuning_epochs, task.rate, teaching)
    return _row(small, accuracy, _macs(small) / whole)


def _row(model: Any, accuracy: float, macs: float) -> dict[str, float]:
    return {"accuracy": accuracy, "macs": macs, "parameters": model.count_params()}


def _macs(model: Any) -> int:
    from edgecompress.inspection.keras_models import inspect_keras

    return int(inspect_keras(model).macs)


def _weights(task: Task, seed: int, work: Path) -> Path:
    return work / f"{task.build.__name__}_{seed}.weights.h5"


def _keras_weights(task: Task, seed: int, work: Path) -> list[Any]:
    """Returns the dense network's arrays, read in a process without tf_keras."""
    import numpy as np

    made = work / f"{task.build.__name__}_{seed}.npz"
    if not made.exists():
        code = (
            "import sys, keras, numpy as np; from pruning_curves_networks import TASKS;"
            "t = TASKS[sys.argv[1]]; m = t.build(keras); m.load_weights(sys.argv[2]);"
            "np.savez(sys.argv[3], *m.get_weights())"
        )
        name = next(key for key, value in TASKS.items() if value is task)
        command = [sys.executable, "-c", code, name, _weights(task, seed, work), made]
        environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        subprocess.run(command, check=True, env=environment)
    with np.load(made) as file:
        return [file[name] for name in file.files]


def keys(tasks: Iterable[str], methods: Iterable[str], seeds: int | None) -> list[str]:
    """Returns the names of all runs; dense networks first, then seed by seed."""
    tasks, methods = list(tasks), list(methods)
    found = []
    for name in tasks:
        count = seeds or TASKS[name].seeds
        found += [f"{name}/{seed}/dense/1" for seed in range(count)]
    for seed in range(seeds or max(TASKS[name].seeds for name in tasks)):
        for name in tasks:
            if seed < (seeds or TASKS[name].seeds):
                own = [m for m in methods if TASKS[name].taught or not m.endswith("-taught")]
                found += [f"{name}/{seed}/{m}/{share}" for share in SHARES for m in own]
    return found


def run_one(key: str, data: Path, work: Path, threads: int) -> None:
    """Trains one network and writes its row."""
    name, seed, method, share = key.split("/")
    if method == "tfmot":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    task = TASKS[name]
    began = time.process_time()
    run = dense if method == "dense" else METHODS[method](float(share))
    row = run(task, load(task, data), int(seed), work)
    row["seconds"] = time.process_time() - began
    write_atomic(_row_file(key, work), json.dumps({"key": key, **row}).encode())
    print(key, {name: round(value, 3) for name, value in row.items()}, flush=True)


def _row_file(key: str, work: Path) -> Path:
    return work / (key.replace("/", "_") + ".json")


def read(work: Path) -> dict[str, dict[str, float]]:
    """Returns the finished runs by key."""
    rows = [json.loads(path.read_text()) for path in sorted(work.glob("*.json"))]
    return {row.pop("key"): row for row in rows}


def _by_method(rows: dict[str, Any], task: str) -> dict[tuple[str, str], list[dict[str, float]]]:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, row in rows.items():
        name, seed, method, share = key.split("/")
        start = rows.get(f"{task}/{seed}/dense/1")
        if name == task and start is not None:
            found.setdefault((method, share), []).append(
                row | {"lost": row["accuracy"] - start["accuracy"]}
            )
    return found


def table(rows: dict[str, Any]) -> str:
    """Returns the Markdown tables and what they say."""
    parts = []
    for name, task in TASKS.items():
        found = _by_method(rows, name)
        if ("dense", "1") not in found:
            continue
        start = [row["accuracy"] for row in found["dense", "1"]]
        parts.append(
            f"**{task.title}**: dense {_mean(start)} %, {len(start)} seed(s). Accuracy minus "
            "dense in points, with the standard deviation where there are several seeds, and the "
            "share of MACs that is left:\n"
        )
        shares = [str(share) for share in SHARES]
        parts.append("| method | " + " | ".join(f"{float(s):.1%} of MACs" for s in shares) + " |")
        parts.append("| --- |" + " ---: |" * len(shares))
        for method in METHODS:
            cells = [_cell(found.get((method, share))) for share in shares]
            if any(cell != "–" for cell in cells):
                parts.append(f"| `{method}` | {' | '.join(cells)} |")
        parts.append("\n" + " ".join(_verdicts(found, shares)) + "\n")
    return "\n".join(parts)


def _mean(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _cell(found: list[dict[str, float]] | None) -> str:
    if not found:
        return "–"
    lost = [row["lost"] for row in found]
    spread = f" ± {stdev(lost):.2f}" if len(lost) > 1 else ""
    return f"{fmean(lost):+.2f}{spread} ({fmean(row['macs'] for row in found):.3f})"


def _verdicts(found: dict[Any, Any], shares: list[str]) -> Iterable[str]:
    """Says whether pruning beats the thinner network, and at half of the MACs the limit."""
    for share in shares:
        pruned = {
            method: fmean(row["lost"] for row in found[method, share])
            for method in (*CRITERIA, "lasso")
            if (method, share) in found and method != "random"
        }
        if not pruned or ("thinner", share) not in found:
            continue
        best = max(pruned, key=lambda method: pruned[method])
        thin = fmean(row["lost"] for row in found["thinner", share])
        verb = "beats" if pruned[best] > thin else "does not beat"
        yield (
            f"At {float(share):.1%}, the best pruning (`{best}`, {pruned[best]:+.2f}) {verb} the "
            f"thinner network ({thin:+.2f})."
        )
        taught = [found.get((f"{method}-taught", share)) for method in ("taylor", "thinner")]
        if all(taught):
            ours, other = (fmean(row["lost"] for row in rows or ()) for rows in taught)
            yield f"With the dense network as teacher: `taylor` {ours:+.2f}, thinner {other:+.2f}."
            pruned["taylor-taught"] = ours
        if share == shares[0]:
            kept = [method for method in pruned if pruned[method] >= -LIMIT]
            yield f"Within {LIMIT} points of dense there: {', '.join(kept) or 'none'}."


def plot(rows: dict[str, Any], path: Path) -> None:
    """Draws the curves, a panel for each network."""
    from matplotlib.figure import Figure

    names = [name for name in TASKS if f"{name}/0/dense/1" in rows]
    figure = Figure(figsize=(4.4 * len(names), 4.2), layout="constrained")
    styles = {method: f"C{place}o-" for place, method in enumerate(METHODS)}
    styles |= {"thinner": "k--", "thinner-taught": "k-.", "tfmot": "k:"}
    lines: dict[str, Any] = {}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        found = _by_method(rows, name)
        for method in METHODS:
            runs = [found[method, str(share)] for share in SHARES if (method, str(share)) in found]
            if runs:
                macs, lost = (
                    [fmean(row[name] for row in run) for run in runs] for name in ("macs", "lost")
                )
                (lines[method],) = axes.plot(macs, lost, styles[method], markersize=3)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(title=TASKS[name].title, xlabel="share of MACs", ylabel="accuracy minus dense")
        axes.set_xscale("log", base=2)
        axes.set_xticks(SHARES, [f"1/{1 / share:.0f}" for share in SHARES])
    known = [method for method in METHODS if method in lines]
    figure.legend([lines[m] for m in known], known, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, help="instead of each network's own number")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    if options.run:
        run_one(options.run, options.data, options.work, threads)
        return

    def start(key: str) -> None:
        if not _row_file(key, options.work).exists():
            command = [sys.executable, __file__, *sys.argv[1:], "--run", key]
            subprocess.run(command, check=True)

    due = keys(options.tasks, options.methods, options.seeds)
    first = [key for key in due if "/dense/" in key]
    with ThreadPoolExecutor(options.jobs) as pool:
        # Everything else starts from the dense networks.
        list(pool.map(start, first))
        list(pool.map(start, (key for key in due if key not in first)))
    rows = read(options.work)
    text = table(rows)
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "pruning curves", text)
        options.docs.write_text(page, encoding="utf-8")
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
