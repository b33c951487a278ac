"""Merges the runs of several processes into one measurement file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.targets.measurement import Measurement, MeasurementFile, spread_pct


def merge(files: Sequence[MeasurementFile]) -> MeasurementFile:
    """Merges the runs of several processes; each process is one repeat.

    Times: `min` and `max` over all, `mean` and `std` of all samples; `median`, percentiles and what
    happens once per process are medians over the processes. The state is that before the first and
    after the last; for the thermal status afterwards, the highest counts.

    Args:
        files: One for each process, in their order; at least one.
    """
    first, last = files[0], files[-1]
    groups: dict[tuple[str, int, bool], list[Measurement]] = {}
    for file in files:
        for found in file.measurements:
            config = found.data["config"]
            key = (found.sha256, config["threads"], config["xnnpack"])
            groups.setdefault(key, []).append(found)
    merged = [_merged(group) for group in groups.values()]
    data = {
        **first.data,
        "time": last.data["time"],
        "state": _merged_state([file.data["state"] for file in files]),
        "measurements": merged,
        "error": next((f.data["error"] for f in files if f.data["error"] is not None), None),
    }
    return MeasurementFile(first.path, data, tuple(Measurement(entry) for entry in merged))


def _merged(group: Sequence[Measurement]) -> dict[str, Any]:
    failed = next((m for m in group if m.error is not None), None)
    if failed is not None or len(group) == 1:
        return dict((failed or group[0]).data)
    entries = [measurement.data for measurement in group]
    wrong = [e for e in entries if e["golden"] is not None and not e["golden"]["passed"]]
    config = entries[0]["config"]
    return {
        **entries[0],
        "config": {
            **config,
            "processes": sum(e["config"]["processes"] for e in entries),
            "repeats": len(entries),
            "runs": sum(e["config"]["runs"] for e in entries),
            "min_s": sum(e["config"]["min_s"] for e in entries),
        },
        "state": _merged_state([e["state"] for e in entries]),
        "latency_us": _merged_latency([e["latency_us"] for e in entries if e["latency_us"]]),
        "memory_kb": {
            key: _median_or_none([e["memory_kb"][key] for e in entries])
            for key in ("init", "overall", "peak")
        },
        "golden": (wrong or entries)[0]["golden"],
        "time": entries[-1]["time"],
    }


def _merged_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    after = {key: value for key, value in states[-1].items() if key.endswith("_after")}
    known = [s["thermal_after"] for s in states if s["thermal_after"] is not None]
    return {**states[0], **after, "thermal_after": max(known, default=None)}


def _median_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _merged_latency(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not parts:
        return None
    once = ("init", "first", "p5", "median", "p95")
    samples = sum(part["samples"] for part in parts)
    mean = sum(part["mean"] * part["samples"] for part in parts) / samples
    # Total variance: within the processes and between them.
    squares = sum(
        part["samples"] * (part["std"] ** 2 + (part["mean"] - mean) ** 2) for part in parts
    )
    medians = [part["median"] for part in parts]
    return {
        **{key: statistics.median(part[key] for part in parts) for key in once},
        **{key: _median_or_none([part[key] for part in parts]) for key in ("warmup", "p90")},
        "min": min(part["min"] for part in parts),
        "max": max(part["max"] for part in parts),
        "mean": mean,
        "std": math.sqrt(squares / samples),
        "spread_pct": spread_pct(medians),
        "samples": samples,
        "inferences_per_sample": max(part["inferences_per_sample"] for part in parts),
        "repeat_medians": medians,
        "histogram": _merged_histogram([part["histogram"] for part in parts]),
    }


def _merged_histogram(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Adds each bin's count at its middle to bins of equal width over all of them."""
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return None
    low = min(part["edges"][0] for part in parts)
    high = max(part["edges"][-1] for part in parts)
    bins = max(len(part["counts"]) for part in parts)
    width = (high - low) / bins
    counts = [0] * bins
    for part in parts:
        ends = zip(part["edges"], part["edges"][1:], part["counts"], strict=False)
        for left, right, count in ends:
            place = int(((left + right) / 2 - low) / width) if width > 0 else 0
            counts[min(place, bins - 1)] += count
    return {"edges": [low + width * position for position in range(bins + 1)], "counts": counts}
