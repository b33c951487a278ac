"""What int4 costs an LSTM, as one operator of 8 bits and unrolled in 4, on subjects held out.

    python benchmarks/int4_recurrent.py --watch watch_exercises.npz --results results.json
        [--folds 5] [--seeds 3] [--docs docs/qat.md]

The LSTM of `qat_agreement.py` on the sensors of a watch. `held out`: each training subject in turn
is left out and predicted by a network trained on the others; settings are chosen by this column.
`test`: trained on all training subjects, predicted are the five subjects of the test data, once for
each seed. Both are accuracies of the file in LiteRT less those of the float network after as many
epochs from the same weights, in points, with the standard error over folds or seeds. `--results`
keeps every finished run: an interrupted benchmark continues. With `--docs`, the table replaces what
is between the page's markers. Two minutes of one core for each fold and seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from precision_engines import replaced
from qat_agreement import Data, accuracy, file_accuracy, file_of, further, trained, watch

import edgecompress as ec
from edgecompress.converters.int8 import strip_names
from edgecompress.core.files import write_atomic
from edgecompress.precisions.base import Precision

_NETWORK = "LSTM"
_VARIANTS: Mapping[str, Precision] = {
    "Int8()": ec.Int8(),
    "Int4()": ec.Int4(),
    "Int4(recurrent_bits=4)": ec.Int4(recurrent_bits=4),
    'Int4(recurrent_bits=4, weight_ranges="mse")': ec.Int4(recurrent_bits=4, weight_ranges="mse"),
    'Int4(recurrent_bits=4, weight_ranges="lsq")': ec.Int4(recurrent_bits=4, weight_ranges="lsq"),
}


def _without(data: Data, held: np.ndarray) -> Data:
    """Returns the training data without some samples, which are those to predict."""
    return dataclasses.replace(
        data, x=data.x[~held], y=data.y[~held], x_test=data.x[held], y_test=data.y[held]
    )


def _run(data: Data, seed: int) -> dict[str, Any]:
    """Returns the accuracy of the float network, and of the file and its bytes by setting."""
    start = trained(_NETWORK, data, seed)
    longer = further(start, data, ())
    row: dict[str, Any] = {"float": accuracy(longer.predict(data.x_test, verbose=0), data.y_test)}
    for name, precision in _VARIANTS.items():
        model = further(start, data, [ec.QuantizationAwareTraining(precision)])
        file = file_of(model, data, precision, trained=True)
        row[name] = [file_accuracy(file, data), len(strip_names(file).data)]
    return row


def _cell(rows: list[Mapping[str, Any]], name: str) -> str:
    points = [100 * (row[name][0] - row["float"]) for row in rows]
    error = stdev(points) / len(points) ** 0.5 if len(points) > 1 else float("nan")
    return f"{fmean(points):+.2f} +/- {error:.2f}" if points else "-"


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    folds, seeds = (
        [row for key, row in results.items() if key.startswith(kind)] for kind in ("held", "test")
    )
    columns = {name: rows for name, rows in (("held out", folds), ("test", seeds)) if rows}
    lines = [
        f"| precision | {' | '.join(columns)} | bytes |",
        "| --- |" + " ---: |" * (len(columns) + 1),
    ]
    for name in _VARIANTS:
        cells = [_cell(rows, name) for rows in columns.values()]
        size = next(row[name][1] for row in (*seeds, *folds))
        lines.append(f"| `{name}` | {' | '.join(cells)} | {size:,} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing from the results, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--watch", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    data = watch(options.watch, 10_000)
    with np.load(options.watch) as file:
        subjects = file["subject_train"]
    jobs = {
        f"held out {subject}": (_without(data, subjects == subject), 0)
        for subject in np.unique(subjects)[: options.folds]
    }
    jobs |= {f"test {seed}": (data, seed) for seed in range(options.seeds)}
    for key, (part, seed) in jobs.items():
        if key not in results:
            results[key] = _run(part, seed)
            write_atomic(options.results, json.dumps(results, indent=1).encode())
            print(key, json.dumps(results[key]), flush=True)
    text = _table(results)
    print(text)
    if options.docs is not None:
        page = options.docs.read_text(encoding="utf-8")
        options.docs.write_text(replaced(page, "int4 recurrent", text), encoding="utf-8")


if __name__ == "__main__":
    main()
