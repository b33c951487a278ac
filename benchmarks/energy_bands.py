"""Compares predicted energies with published ones, and how much power differs between models.

    python benchmarks/energy_bands.py --models DIR --published mlperf_tiny.csv [--docs PAGE]

DIR and the CSV file are as for `latency_bands.py`; of the CSV also energy_uJ and energy_file. The
first table has the band of powers of each target. The second compares energies where the profile's
latency claims the same submission: other runtimes take other times. Ends with exit code 1 if such
an energy lies outside its predicted band, or if a profile's row is not in the CSV file.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from latency_bands import MODELS
from precision_engines import replaced

from edgecompress.core.units import format_energy
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.power import SAME_SETUP, PowerModel, PublishedEnergy
from edgecompress.targets.profile import TargetProfile, load_target, target_names

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def setup_of(row: PublishedEnergy) -> str:
    """Returns what names the submission: its folder of results."""
    return f"{row.round} {row.file.rsplit('/', 3)[0]}"


def ratios(power: PowerModel) -> list[float]:
    """Returns how many times the power of one model another draws on the same setup."""
    setups = defaultdict(list)
    for row in power.published:
        setups[setup_of(row)].append(row)
    return [
        math.exp(abs(math.log(a.milliwatts / b.milliwatts)))
        for rows in setups.values()
        for a, b in combinations(rows, 2)
        if a.benchmark != b.benchmark
    ]


def claimed(profile: TargetProfile) -> list[PublishedEnergy]:
    """Returns the energies of the submissions whose latency the profile claims."""
    if profile.power is None or profile.latency is None:
        return []
    folders = {row.file.rsplit("/", 3)[0] for row in profile.latency.published}
    return [row for row in profile.power.published if row.file.rsplit("/", 3)[0] in folders]


def missing(power: PowerModel, path: Path) -> list[str]:
    """Returns the files of rows that are not in the CSV with the same values."""
    with path.open(newline="") as file:
        known = {
            (line["energy_file"], f"{float(line['energy_uJ']):g}", f"{float(line['latency_ms']):g}")
            for line in csv.DictReader(file)
            if line["energy_uJ"] and line["latency_ms"]
        }
    return [
        row.file
        for row in power.published
        if (row.file, f"{row.microjoules:g}", f"{row.milliseconds:g}") not in known
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=_SHARED / "models" / "mlperf_tiny")
    parser.add_argument("--published", type=Path, default=_SHARED / "facts" / "mlperf_tiny.csv")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    profiles = [load_target(name) for name in target_names()]
    powers = [
        "| target | published | setups | mW, published | mW, band | same setup, at most |",
        "|---|---|---|---|---|---|",
    ]
    energies = [
        "| target | round | benchmark | published | low | typical | high | inside |",
        "|---|---|---|---|---|---|---|---|",
    ]
    every: list[float] = []
    wrong = False
    for profile in profiles:
        if profile.power is None:
            continue
        lost = missing(profile.power, options.published)
        wrong |= bool(lost)
        for file in lost:
            print(f"{profile.name}: {file} is not in {options.published} with this value")
        low, high = profile.power.milliwatts
        rows = [row.milliwatts for row in profile.power.published]
        own = ratios(profile.power)
        every += own
        setups = len({setup_of(row) for row in profile.power.published})
        powers.append(
            f"| {profile.name} | {len(profile.power.published)} | {setups} | "
            f"{min(rows):.1f} to {max(rows):.1f} | {low:.1f} to {high:.1f} | {max(own):.2f} times |"
        )
        for row in claimed(profile):
            flat = read_tflite((options.models / MODELS[row.benchmark]).read_bytes())
            found = next(c for c in check(flat, profile, Budgets()).checks if c.rule == "energy")
            inside = found.low <= row.microjoules <= found.high
            wrong |= not inside
            cells = [row.microjoules, found.low, found.measured, found.high]
            energies.append(
                f"| {profile.name} | {row.round} | {row.benchmark} | "
                + " | ".join(format_energy(value) for value in cells)
                + f" | {'yes' if inside else 'NO'} |"
            )
    every.sort()
    share = sum(ratio <= SAME_SETUP for ratio in every) / len(every)
    text = "\n".join(
        [
            *powers, "",
            f"Of {len(every)} pairs of models on the same setup, {100 * share:.1f} % draw powers "
            f"within {SAME_SETUP:g} times of each other; half of them within "
            f"{every[len(every) // 2]:.2f} times.", "", *energies,
        ]
    )  # fmt: skip
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "energy", text)
        options.docs.write_text(page, encoding="utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
