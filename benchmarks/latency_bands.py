"""Compares predicted latencies with the published rows that the target profiles claim.

    python benchmarks/latency_bands.py --models DIR --published mlperf_tiny.csv

DIR holds the four reference models of MLPerf Tiny (closed division). The CSV file has a line for
each published result with the columns round, benchmark, latency_ms and file. A row that a profile
names must be in the CSV with the same value. Times are in milliseconds. Ends with exit code 1 if a
published latency lies outside its predicted band, 2 if a file is missing.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from pathlib import Path

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.profile import LatencyModel, TargetProfile, load_target, target_names
from edgecompress.targets.tflm.latency import BANDS, CYCLES_PER_WEIGHT_BYTE, predict

MODELS = {
    "ad": "ad01_int8.tflite",
    "ic": "pretrainedResnet_quant.tflite",
    "kws": "kws_ref_model.tflite",
    "vww": "vww_96_int8.tflite",
}
_SHARED = Path(__file__).resolve().parents[2] / "shared"


def claimed(profile: TargetProfile) -> LatencyModel | None:
    """Returns the profile's latency model where it claims published rows."""
    model = profile.latency
    return model if model is not None and model.published else None


def implied_factors(
    profile: TargetProfile, latency: LatencyModel, models: dict[str, FlatModel]
) -> dict[str, float]:
    """Returns the cycles per instruction that each benchmark's published rows mean."""
    found = {}
    for benchmark, model in models.items():
        rows = [r.milliseconds for r in latency.published if r.benchmark == benchmark]
        if rows and profile.clock_mhz:
            estimate = predict(model, profile)
            cycles = statistics.mean(rows) * 1e3 * profile.clock_mhz
            weights = CYCLES_PER_WEIGHT_BYTE * estimate.weight_bytes
            found[benchmark] = (cycles - weights) / estimate.instructions
    return found


def error(profile: TargetProfile, model: FlatModel, factor: float, implied: float) -> float:
    """Returns the relative error of a prediction with `factor` where `implied` is right."""
    estimate = predict(model, profile)
    weights = CYCLES_PER_WEIGHT_BYTE * estimate.weight_bytes
    right = implied * estimate.instructions + weights
    return (factor * estimate.instructions + weights) / right - 1


def print_rows(models: dict[str, FlatModel], published: dict[tuple[str, str], float]) -> int:
    """Prints one line for each claimed row; returns how many lie outside their band or differ."""
    wrong = 0
    columns = "target, class, round, runtime, benchmark, published, low, typical, high, inside"
    print(f"| {columns.replace(', ', ' | ')} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in target_names():
        profile = load_target(name)
        latency = claimed(profile)
        if latency is None:
            continue
        for row in latency.published:
            estimate = predict(models[row.benchmark], profile)
            low, typical, high = (
                (value or math.nan) / 1e3
                for value in (estimate.low, estimate.microseconds, estimate.high)
            )
            inside = low <= row.milliseconds <= high
            stated = published.get((row.round, row.file))
            if stated is None or not math.isclose(stated, row.milliseconds):
                print(
                    f"{name}: {row.round} {row.file} has {stated} ms in the CSV file",
                    file=sys.stderr,
                )
                wrong += 1
            wrong += not inside
            print(
                f"| {name} | {latency.calibration} | {row.round} | {latency.runtime} | "
                f"{row.benchmark} | {row.milliseconds:.2f} | {low:.2f} | {typical:.2f} | "
                f"{high:.2f} | {'yes' if inside else 'NO'} |"
            )
    return wrong


def print_fits(models: dict[str, FlatModel]) -> int:
    """Prints the fitted factors, the errors of the fit and of fits that leave one benchmark out.

    Returns how many profiles state another factor than the fit, or err by more than their band
    when the benchmark was left out.
    """
    wrong = 0
    print(
        "\n| target | cycles per instruction | stated | band | error of the fit | leaving one out |"
    )
    print("|---|---|---|---|---|---|")
    for name in target_names():
        profile = load_target(name)
        latency = claimed(profile)
        if latency is None:
            continue
        implied = implied_factors(profile, latency, models)
        fit = statistics.geometric_mean(implied.values())
        fitted, left_out = {}, {}
        for benchmark, factor in implied.items():
            others = [f for b, f in implied.items() if b != benchmark]
            fitted[benchmark] = error(profile, models[benchmark], fit, factor)
            left_out[benchmark] = error(
                profile, models[benchmark], statistics.geometric_mean(others), factor
            )
        stated = latency.cycles_per_instruction
        low, high = BANDS[latency.calibration]
        # The band is around the prediction, the error around the truth.
        wrong += abs(stated / fit - 1) > 0.001
        wrong += any(not low <= 1 / (1 + e) <= high for e in left_out.values())

        def text(errors: dict[str, float]) -> str:
            return ", ".join(f"{b} {100 * e:+.1f} %" for b, e in errors.items())

        print(
            f"| {name} | {fit:.3f} | {stated} | {low:.2f} to {high:.2f} | {text(fitted)} | "
            f"{text(left_out)} |"
        )
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description="Predicted latencies against published ones.")
    parser.add_argument("--models", type=Path, default=_SHARED / "models" / "mlperf_tiny")
    parser.add_argument("--published", type=Path, default=_SHARED / "facts" / "mlperf_tiny.csv")
    arguments = parser.parse_args(argv)
    paths = {benchmark: arguments.models / file for benchmark, file in MODELS.items()}
    missing = [str(path) for path in (*paths.values(), arguments.published) if not path.is_file()]
    if missing:
        print(
            f"Missing: {', '.join(missing)}. The models are in github.com/mlcommons/tiny under "
            "benchmark/training, the results in github.com/mlcommons/tiny_results_*; give --models "
            "and --published.",
            file=sys.stderr,
        )
        return 2
    models = {benchmark: read_tflite(path) for benchmark, path in paths.items()}
    with arguments.published.open(newline="", encoding="utf-8") as file:
        published = {
            (row["round"], row["file"]): float(row["latency_ms"]) for row in csv.DictReader(file)
        }
    wrong = print_rows(models, published) + print_fits(models)
    print(
        f"\n{'Every' if not wrong else f'{wrong} outside: not every'} claimed row lies in its band."
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
