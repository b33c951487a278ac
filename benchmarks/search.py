"""`edgecompress search` against random search and uniform thinning, at a third of everything.

    python benchmarks/search.py --data DATA --work WORK [--minutes 15] [--jobs 2]
        [--tasks resnet watch] [--seeds N] [--samplers tpe random] [--docs docs/search.md]
        [--storage postgresql+psycopg://user@host/database --workers 3]

DATA holds fashion_mnist.npz and watch_exercises.npz. A ResNet-20 (Fashion-MNIST) and a DS-CNN (the
watch) are trained once for each seed and kept in WORK. Limits on nucleo-l4r5zi: a third of what the
untouched int8 file takes of tensor arena, file size and latency (the upper end of its band). The
code of the runtime, which no search makes smaller, is not part of the flash limit. Candidates are
chosen on validation data (held-out training images; two held-out subjects of the watch, named as
groups); the test data are used once, for the file that was chosen. Uniform thinning is the search's
own baseline, trained from scratch. `refit`: the same candidate after further training on training
and validation data together (`--refit`), for the watch: the untouched network has not seen the
latter.

Each search is a process that is killed twice on the way and resumed. With `--storage`, it is
several processes that share a study; one is killed at a time. Finished ones are kept in WORK: an
interrupted benchmark continues. Two networks, two samplers, three seeds and one: two hours of two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from precision_engines import replaced
from pruning_curves_networks import TASKS, fit, load

TARGET = "nucleo-l4r5zi"
# When a search is killed, as shares of its minutes.
KILLS = (0.2, 0.5)


@dataclass(frozen=True)
class Case:
    """A network to search.

    Attributes:
        task: Its key in `pruning_curves_networks.TASKS`.
        epochs: Of the longest training.
        seeds: How many.
        groups: The array of the data that says what a sample is of; None for none.
        refit: Whether the chosen candidate is also trained on the validation data.
    """

    task: str
    epochs: int
    seeds: int
    groups: str | None = None
    refit: bool = False


CASES = {"resnet": Case("resnet", 18, 3), "watch": Case("ds_cnn", 162, 1, "subject", True)}


def prepare(case: Case, seed: int, data: Path, work: Path) -> dict[str, Path]:
    """Trains the network, and writes training, validation and test data."""
    import keras

    task = TASKS[case.task]
    paths = {
        name: work / f"{case.task}_{seed}{ending}"
        for name, ending in (
            ("model", ".keras"), ("train", "_train.npz"), ("held", "_held.npz"),
            ("test", "_test.npz"),
        )
    }  # fmt: skip
    if all(path.exists() for path in paths.values()) and _names_groups(case, paths["held"]):
        return paths
    x, y, x_test, y_test = load(task, data)
    held = _held_out(case, data, len(x), seed)
    groups, test_groups = (_groups(case, data, part) for part in ("train", "test"))
    for name, inputs, labels, own in (
        ("train", x[~held], y[~held], {key: of[~held] for key, of in groups.items()}),
        ("held", x[held], y[held], {key: of[held] for key, of in groups.items()}),
        ("test", x_test, y_test, test_groups),
    ):
        np.savez(paths[name], x=inputs, y=labels, **own)
    if not paths["model"].exists():
        keras.utils.set_random_seed(seed)
        model = task.build(keras)
        fit(keras, model, [x[~held], y[~held], x_test, y_test], task.dense_epochs, task.rate)
        model.save(paths["model"])
    return paths


def _names_groups(case: Case, path: Path) -> bool:
    with np.load(path) as file:
        return case.groups is None or case.groups in file.files


def _groups(case: Case, data: Path, part: str) -> dict[str, np.ndarray]:
    """Returns what each sample is of, under the name of the array; empty if nothing says it."""
    if case.groups is None:
        return {}
    with np.load(data / "watch_exercises.npz") as file:
        return {case.groups: file[f"{case.groups}_{part}"]}


def _held_out(case: Case, data: Path, count: int, seed: int) -> np.ndarray:
    """Returns which training samples are for validation: of the watch, whole subjects."""
    random = np.random.default_rng(seed)
    held = np.zeros(count, bool)
    for groups in _groups(case, data, "train").values():
        return np.isin(groups, random.permutation(np.unique(groups))[:2])
    held[random.permutation(count)[: count // 10]] = True
    return held


def limits(paths: dict[str, Path]) -> dict[str, int]:
    """Returns a third of what the untouched int8 file takes."""
    import keras

    from edgecompress.pipeline.trial_file import trial_file
    from edgecompress.searching.screening import Targets
    from edgecompress.targets.profile import Budgets, load_target

    targets = Targets((load_target(TARGET),), Budgets())
    model = keras.models.load_model(paths["model"], compile=False)
    costs = targets.judge(trial_file(model, targets.profiles).artifact.flat).values
    return {rule: int(costs[rule] // 3) for rule in ("arena", "file_size", "latency")}


def run(
    case: Case, sampler: str, seed: int, paths: dict[str, Path], options: Any
) -> dict[str, Any]:
    """Searches, killed twice on the way, and measures the best file on the test data."""
    folder = options.work / _key(case, sampler, seed, options)
    most = limits(paths)
    command = [
        "search", str(paths["model"]), "--data", str(paths["train"]), "--validation",
        str(paths["held"]), "--target", TARGET, "--max-ram", str(most["arena"]),
        "--max-file-size", str(most["file_size"]), "--max-latency", f"{most['latency']}us",
        "--epochs", str(case.epochs), "--sampler", sampler, "--seed", str(seed), "--json",
    ]  # fmt: skip
    if case.groups is not None:
        command += ["--groups", case.groups]
    if case.refit:
        command += ["--test", str(paths["test"]), "--refit"]
    if options.storage is None:
        each = [[*command, "--jobs", str(options.jobs), "-o", str(folder)]]
    else:
        command += ["--jobs", "1", "--storage", options.storage, "--study", folder.name]
        each = [[*command, "-o", str(folder / str(n))] for n in range(options.workers)]
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    workers = [_start(one, ends, folder / f"{n}.json") for n, one in enumerate(each)]
    for number, share in enumerate(KILLS):
        time.sleep(max(0.0, ends - (1 - share) * 60 * options.minutes - time.monotonic()))
        killed = number % len(workers)
        workers[killed].send_signal(signal.SIGKILL)
        workers[killed].wait()
        workers[killed] = _start(each[killed], ends, folder / f"{killed}.json")
    codes = [worker.wait() for worker in workers]
    told = [json.loads((folder / f"{n}.json").read_bytes()) for n in range(len(workers))]
    # All tell of the same study. The last to end has seen all of it.
    last = max(range(len(told)), key=lambda n: len(_made(told[n])))
    return {"limits": most, "exit_code": codes[last], **_summary(told[last], folder, paths)}


def _key(case: Case, sampler: str, seed: int, options: Any) -> str:
    """Returns the name of a search."""
    shared = "" if options.storage is None else f"-{options.workers}-workers"
    return f"{case.task}_{sampler}{shared}_{seed}"


def _start(arguments: list[str], ends: float, output: Path) -> subprocess.Popen[bytes]:
    """Starts a worker that searches for the minutes that are left."""
    minutes = f"{(ends - time.monotonic()) / 60:.2f}"
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "edgecompress", *arguments, "--minutes", minutes], stdout=file
        )


def _made(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the candidates that ended as a file."""
    return [entry for entry in found["candidates"] if entry["metric"] is not None]


def _summary(found: dict[str, Any], folder: Path, paths: dict[str, Path]) -> dict[str, Any]:
    """Returns what the table shows of a search."""
    by_number = {entry["number"]: entry for entry in found["candidates"]}
    untouched = next(e for e in by_number.values() if e["start"] == "untouched")
    thinner = next((e for e in by_number.values() if e["start"] == "scratch"), None)
    best = by_number.get(found["best"], {})
    return {
        "candidates": len(by_number),
        "made": len(_made(found)),
        "screened": sum(entry["screened"] for entry in by_number.values()),
        "hypervolume": found["hypervolume"],
        "costs": best.get("costs"),
        "excess": best.get("excess"),
        "untouched": _test_accuracy(folder, untouched, paths),
        "thinner": None if thinner is None or thinner["metric"] is None
        else _test_accuracy(folder, thinner, paths),
        "best": _test_accuracy(folder, best, paths) if best else None,
        "refit": 100 * found["tested"]["metric"] if found.get("tested") else None,
    }  # fmt: skip


def thinner_volume(folder: Path) -> float:
    """Returns the hypervolume of the uniformly thinner network alone; 0 if it does not fit."""
    found = json.loads(next(folder.glob("**/search.json")).read_text())
    points = {entry["start"]: entry for entry in found["candidates"]}
    whole, thinner = points["untouched"], points.get("scratch")
    if thinner is None or not thinner["fits"]:
        return 0.0
    # All is counted as `SearchResult.volume` does.
    shares = [thinner["costs"][rule] / whole["costs"][rule] for rule in found["space"]["rules"]]
    return float(thinner["metric"] * np.prod([max(0.0, 1 - share) for share in shares]))


def _test_accuracy(folder: Path, entry: dict[str, Any], paths: dict[str, Path]) -> float:
    """Returns the accuracy of a candidate's file in the target's engine on the test data, in %."""
    import edgecompress as ec

    epochs = entry["epochs"]
    # Of several workers, each keeps in a folder of its own what it has trained.
    file = next(folder.glob(f"**/candidates/{entry['key']}/{epochs}/model.tflite"))
    report = ec.check(file, [TARGET], evaluate=paths["test"])
    checks = {check.rule: check for check in report.targets[0].checks}
    return 100 * float(checks["accuracy"].measured)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown table, and what it says."""
    lines = [
        "| network, seed | sampler | candidates, with a file | screened | untouched | "
        "uniformly thinner | found | difference | refit | arena | file | latency | hypervolume |",
        "| --- | --- |" + " ---: |" * 11,
    ]
    for key, row in sorted(rows.items()):
        task, sampler, seed = key.rsplit("_", 2)
        sampler, _, workers = sampler.partition("-")
        sampler += f", {workers.replace('-', ' ')}" if workers else ""
        costs, most = row["costs"] or {}, row["limits"]
        shown = [
            f"{costs[rule]:,.0f} of {most[rule]:,}" if rule in costs else "–"
            for rule in ("arena", "file_size", "latency")
        ]
        thinner = "does not fit" if row["thinner"] is None else f"{row['thinner']:.2f} %"
        best = row["best"]
        lines.append(
            f"| {TASKS[task].title}, {seed} | {sampler} | {row['candidates']}, {row['made']} | "
            f"{row['screened']:,} | {row['untouched']:.2f} % | {thinner} | "
            + (
                "none | – | "
                if best is None
                else f"{best:.2f} % | {best - row['untouched']:+.2f} | "
            )
            + ("– | " if row.get("refit") is None else f"{row['refit']:.2f} % | ")
            + " | ".join(shown)
            + f" | {row['hypervolume']:.4f} |"
        )
    lines.append("")
    for case in CASES.values():
        means = []
        for sampler in ("tpe", "random"):
            start = f"{case.task}_{sampler}_"
            own = [row["hypervolume"] for key, row in rows.items() if key.startswith(start)]
            if own:
                count = f"{len(own)} search{'es' if len(own) > 1 else ''}"
                means.append(f"{sampler} {fmean(own):.4f} ({count})")
        thinner = [row["thinner_volume"] for key, row in rows.items() if f"{case.task}_" in key]
        if means:
            means.append(f"uniformly thinner {fmean(thinner):.4f}")
            lines.append(f"Mean hypervolume, {TASKS[case.task].title}: {', '.join(means)}.")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished searches")
    parser.add_argument("--minutes", type=float, default=15.0, help="of each search")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    parser.add_argument("--storage", help="URL of an Optuna storage that --workers share")
    parser.add_argument("--workers", type=int, default=3, help="of one job each, with --storage")
    parser.add_argument("--seeds", type=int, help="instead of each network's own number")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "results.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.tasks:
        case = CASES[name]
        for seed in range(options.seeds or case.seeds):
            paths = prepare(case, seed, options.data, options.work)
            for sampler in options.samplers:
                key = _key(case, sampler, seed, options)
                if key not in rows:
                    rows[key] = run(case, sampler, seed, paths, options)
                    kept.write_text(json.dumps(rows, indent=1))
    for key, row in rows.items():
        row["thinner_volume"] = thinner_volume(options.work / key)
    text = table(rows)
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "search", text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
