"""Which candidate of a finished search is taken, and what it has on data that no search has seen.

    python benchmarks/search_choice.py FOLDER --held HELD.npz [--groups NAME] [--test TEST.npz]

FOLDER is a search's output with the files of its candidates, HELD the validation data that it chose
by; `benchmarks/search.py` leaves both. Every file that meets the limits runs on HELD in the
target's engine; the choice is that of the product. With TEST, the one with the best validation
metric, the one that is taken and the untouched file are measured there: look once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

TARGET = "nucleo-l4r5zi"


def measured(folder: Path, entry: dict[str, Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns whether a candidate's file is right, for each sample."""
    from edgecompress.pipeline import build, build_request

    file = folder / "candidates" / entry["key"] / str(entry["epochs"]) / "model.tflite"
    request = build_request(file, [TARGET], file_format=None, evaluate=(x, y), metric=["accuracy"])
    made = build(dataclasses.replace(request, by_sample=True))
    (found,) = made.by_sample.values()
    return np.array(found)


def main() -> None:
    """Measures, chooses, and prints what was chosen."""
    from edgecompress.searching.choice import choose
    from edgecompress.searching.outcome import Point
    from edgecompress.searching.packing import numbered, pack, pack_groups
    from edgecompress.searching.results import Described, Job, Outcome

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held", type=Path, required=True)
    parser.add_argument("--groups", help="array of HELD that says what each sample is of")
    parser.add_argument("--test", type=Path)
    options = parser.parse_args()
    found = json.loads((options.folder / "search.json").read_text())
    with np.load(options.held) as file:
        x, y = file["x"], file["y"]
        groups = None if options.groups is None else numbered(file[options.groups])
    points = []
    names = {field.name for field in dataclasses.fields(Outcome)}
    for entry in found["candidates"]:
        if entry["metric"] is None or not (entry["fits"] or entry["start"] == "untouched"):
            continue
        right = measured(options.folder, entry, x, y)
        if entry["samples"] == len(x) and abs(right.mean() - entry["metric"]) > 1e-9:
            raise SystemExit(f"Candidate {entry['number']} is another on {options.held}.")
        outcome = Outcome(**{key: value for key, value in entry.items() if key in names})
        outcome = dataclasses.replace(
            outcome, by_sample=pack(right), samples=len(x), metric=float(right.mean())
        )
        job = Job(entry["values"], entry["start"], entry["epochs"])
        points.append(Point(entry["number"], job, outcome))
    described = Described(
        (), {}, "accuracy", True, "", (), {}, True, 0, 0, groups=pack_groups(groups)
    )
    choice = choose(described, points)
    if choice is None:
        raise SystemExit("No candidate meets every limit.")
    print(choice.reason)
    print(f"The best of the equal ones is expected to look {choice.too_good:.4f} too good.")
    if options.test is None:
        return
    with np.load(options.test) as file:
        x, y = file["x"], file["y"]
    by_number = {entry["number"]: entry for entry in found["candidates"]}
    untouched = next(e for e in by_number.values() if e["start"] == "untouched")
    for what, entry in (
        ("untouched", untouched),
        ("best on validation data", by_number[choice.leader]),
        ("taken", by_number[choice.candidate]),
    ):
        share = 100 * measured(options.folder, entry, x, y).mean()
        print(f"{what}: candidate {entry['number']}, {share:.2f} % of {len(x):,} test samples")


if __name__ == "__main__":
    main()
