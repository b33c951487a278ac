"""Measurement files: what the demo app, or `bench`, measured on a bundle.

docs/measurement.schema.json describes the file. A file comes from another machine, so nothing in it
is taken on trust: its form, the model's SHA-256 and the target are checked before a number counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError, ModelFileError, UnreadableFileError
from edgecompress.core.reading import JSON_LIMIT, parse_json, read_bytes
from edgecompress.core.results import CheckResult, HowKnown, Verdict, judge
from edgecompress.core.units import format_size, format_time

if TYPE_CHECKING:
    from edgecompress.targets.profile import Budgets, TargetProfile

MEASUREMENT_SCHEMA = "edgecompress.measurement/1"
# MLPerf Mobile's rule for repeats of a run (v4.0): further apart, they allow no verdict.
MOST_SPREAD_PCT = 5.0
# Android's thermal status: 1 is light, where a device may already slow down a little; from 2 on
# (moderate) it does so noticeably.
THERMAL_MODERATE = 2
TIERS: dict[str, HowKnown] = {"phone": "measured_device", "host": "measured_host"}


@dataclass(frozen=True)
class Measurement:
    """One model with one setting.

    Attributes:
        data: The whole entry, as docs/measurement.schema.json describes it.
    """

    data: Mapping[str, Any] = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of the model that was run."""
        return str(self.data["model"]["sha256"])

    @property
    def setting(self) -> str:
        """Kind of the file, threads and kernels, for people."""
        config = self.data["config"]
        threads = "1 thread" if config["threads"] == 1 else f"{config['threads']} threads"
        return f"{self.data['model']['kind']}, {threads}, XNNPACK " + (
            "on" if config["xnnpack"] else "off"
        )

    @property
    def median(self) -> float | None:
        """Microseconds of one inference: CPU time where that was measured, else wall clock."""
        latency = self.data["latency_us"]
        if latency is None:
            return None
        cpu = latency.get("cpu_medians")
        return float(statistics.median(cpu) if cpu else latency["median"])

    @property
    def repeats(self) -> tuple[float, ...]:
        """The medians of the repeats, which are the band of the result."""
        latency = self.data["latency_us"]
        if latency is None:
            return ()
        return tuple(latency.get("cpu_medians") or latency["repeat_medians"])

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Why there is no, or no whole, result: `code` and `message`."""
        found: Mapping[str, Any] | None = self.data["error"]
        return found

    def doubt(self) -> str | None:
        """Returns why the times allow no verdict; None where they do."""
        golden = self.data["golden"]
        if golden is not None and not golden["passed"]:
            return "The outputs differ from the golden ones, so something else was timed."
        spread = spread_pct(self.repeats)
        if spread > MOST_SPREAD_PCT:
            return f"The repeats lie {spread:.1f} % apart, more than {MOST_SPREAD_PCT:g} %."
        before, after = (self.data["state"][f"thermal_{end}"] for end in ("before", "after"))
        if before is not None and after is not None and after > before:
            return f"The device got hotter (thermal status {before} to {after}) and may be slowed."
        hottest = max(before or 0, after or 0)
        if hottest >= THERMAL_MODERATE:
            return f"The device was throttled (thermal status {hottest})."
        return None


@dataclass(frozen=True)
class MeasurementFile:
    """A measurement file.

    Attributes:
        path: Where it was read.
        data: The whole object.
        measurements: One for each model and setting.
    """

    path: str
    data: Mapping[str, Any] = field(repr=False)
    measurements: tuple[Measurement, ...] = ()

    @property
    def target(self) -> str | None:
        """Name of the target it was measured for."""
        bundle = self.data["bundle"]
        return None if bundle is None else bundle["target"]


def read_measurement(path: Path | str) -> MeasurementFile:
    """Reads a measurement file.

    Raises:
        ModelFileError: it cannot be read, is no whole JSON, or is not of the form of
            docs/measurement.schema.json.

    Example:
        >>> read_measurement("result.json").measurements[0].median  # doctest: +SKIP
        305.2
    """
    return parse_measurement(read_bytes(path, JSON_LIMIT), str(path))


def parse_measurement(content: bytes, label: str) -> MeasurementFile:
    """Returns the measurement file of a content.

    Args:
        content: What the file holds.
        label: What errors call it.

    Raises:
        ModelFileError: as in `read_measurement`.
    """
    try:
        root = parse_json(content, label)
    except UnreadableFileError as error:
        cut = "" if content.rstrip().endswith(b"}") else " The file is cut off."
        raise ModelFileError(f"{label} is no measurement file: it {error.problem}.{cut}") from error
    schema = root.get("schema") if isinstance(root, dict) else None
    if schema != MEASUREMENT_SCHEMA:
        raise ModelFileError(
            f"{label} must have the schema {MEASUREMENT_SCHEMA}. Got {str(schema)[:60]!r}. Measure "
            "again with the app and the edgecompress of one version."
        )
    _check(root, _FILE, label, "")
    return MeasurementFile(label, root, tuple(Measurement(m) for m in root["measurements"]))


# --- the form -----------------------------------------------------------------------------------

_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))
_OPTIONAL_TEXT = (str, type(None))
_OPTIONAL_WHOLE = (int, type(None))
_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class _Form:
    """What a value must be.

    Attributes:
        kinds: Its types.
        fields: Of an object: name -> form.
        items: Of a list: the form of each item.
        among: The only values.
        least: The smallest number.
    """

    kinds: tuple[type, ...]
    fields: Mapping[str, _Form] = field(default_factory=dict)
    items: _Form | None = None
    among: tuple[Any, ...] = ()
    least: float | None = None


def _object(optional: bool = False, **fields: _Form) -> _Form:
    return _Form((dict, type(None)) if optional else (dict,), fields)


_TEXT, _MAYBE_TEXT = _Form((str,)), _Form(_OPTIONAL_TEXT)
_MAYBE_NUMBER = _Form(_OPTIONAL_NUMBER)
_DURATION = _Form(_NUMBER, least=0)
_DURATIONS = _Form((list,), items=_DURATION)
_COUNT, _POSITIVE = _Form((int,), least=0), _Form((int,), least=1)
_MAYBE_COUNT = _Form(_OPTIONAL_WHOLE, least=0)
_BOOL = _Form((bool,))
_ERROR = _object(True, code=_TEXT, message=_TEXT)
_STATE = _object(thermal_before=_MAYBE_COUNT, thermal_after=_MAYBE_COUNT)
_LATENCY = _object(
    True,
    **dict.fromkeys(
        ("init", "first", "min", "p5", "median", "p95", "max", "mean", "std"), _DURATION
    ),
    warmup=_Form(_OPTIONAL_NUMBER, least=0),
    p90=_Form(_OPTIONAL_NUMBER, least=0),
    spread_pct=_DURATION,
    samples=_POSITIVE,
    inferences_per_sample=_POSITIVE,
    repeat_medians=_DURATIONS,
    histogram=_object(True, edges=_DURATIONS, counts=_Form((list,), items=_COUNT)),
)
_MEASUREMENT = _object(
    tier=_Form((str,), among=tuple(TIERS.values())),
    target=_MAYBE_TEXT,
    model=_object(sha256=_TEXT, bytes=_COUNT, kind=_TEXT, file=_TEXT),
    runtime=_object(name=_TEXT, version=_MAYBE_TEXT, api=_TEXT, kernels=_MAYBE_TEXT),
    config=_object(
        threads=_POSITIVE,
        xnnpack=_BOOL,
        warmup=_COUNT,
        runs=_POSITIVE,
        min_s=_DURATION,
        repeats=_POSITIVE,
        processes=_POSITIVE,
        input=_TEXT,
    ),
    state=_STATE,
    latency_us=_LATENCY,
    memory_kb=_object(init=_MAYBE_NUMBER, overall=_MAYBE_NUMBER, peak=_MAYBE_NUMBER),
    golden=_object(
        True, checked=_COUNT, equal=_COUNT, max_steps=_MAYBE_COUNT, max_error=_MAYBE_NUMBER,
        passed=_BOOL, kernels=_TEXT,
    ),
    checks=_Form((list,), items=_object(rule=_TEXT, verdict=_TEXT)),
    output_sha256=_MAYBE_TEXT,
    error=_ERROR,
    time=_TEXT,
)  # fmt: skip
_FILE = _object(
    tool=_object(name=_TEXT, version=_TEXT),
    time=_TEXT,
    bundle=_object(True, name=_TEXT, target=_MAYBE_TEXT, sha256=_TEXT),
    device=_object(manufacturer=_MAYBE_TEXT, model=_MAYBE_TEXT),
    state=_STATE,
    measurements=_Form((list,), items=_MEASUREMENT),
    error=_ERROR,
)


def _check(value: Any, form: _Form, label: str, place: str) -> None:
    """Refuses a value that is not of a form."""
    right = isinstance(value, form.kinds) and (not isinstance(value, bool) or bool in form.kinds)
    if not right:
        names = list(dict.fromkeys(_KINDS[kind] for kind in form.kinds))
        if float in form.kinds:
            names.remove("a whole number")
        raise _wrong(label, place, " or ".join(names), value)
    if form.among and value not in form.among:
        raise _wrong(label, place, " or ".join(form.among), value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _wrong(label, place, "a finite number", value)
        if form.least is not None and value < form.least:
            raise _wrong(label, place, f"at least {form.least:g}", value)
    if isinstance(value, dict):
        for name, inner in form.fields.items():
            if name not in value:
                raise _wrong(label, f"{place}.{name}".lstrip("."), "there", None)
            _check(value[name], inner, label, f"{place}.{name}".lstrip("."))
    if isinstance(value, list) and form.items is not None:
        for position, item in enumerate(value):
            _check(item, form.items, label, f"{place}[{position}]")
        if place.endswith("histogram.edges") and len(value) < 2:
            raise _wrong(label, place, "a list of at least 2 edges", value)
        if place.endswith("repeat_medians") and not (value and min(value) > 0):
            raise _wrong(label, place, "a list of times above 0", value)


def _wrong(label: str, place: str, rule: str, got: object) -> ModelFileError:
    return ModelFileError(
        f"{label} is no whole measurement file: {place} must be {rule}. Got {str(got)[:60]!r}."
    )


# --- the verdict --------------------------------------------------------------------------------


def spread_pct(medians: Sequence[float]) -> float:
    """Returns how far repeats lie apart: (slowest / fastest - 1) in percent.

    Example:
        >>> round(spread_pct([100.0, 104.0, 106.0]), 1)
        6.0
    """
    return (max(medians) - min(medians)) / min(medians) * 100 if medians else 0.0


def latency_check(measurement: Measurement, limit: float | None) -> CheckResult:
    """Returns whether a measured inference takes no longer than its limit.

    The band is that of the repeats. Where they lie more than 5 % apart, the device got hotter or
    was throttled, or the golden outputs were not met, the verdict is `uncertain`, whatever the
    numbers are and whether there is a limit or not.

    Args:
        measurement: What was measured.
        limit: Microseconds; None for none.
    """
    error, median = measurement.error, measurement.median
    if median is None or error is not None:
        reason = error["message"] if error is not None else "It was not timed."
        return CheckResult(
            "latency", "not_measured", limit=limit, unit="microseconds", reason=reason
        )
    low, high = min(measurement.repeats), max(measurement.repeats)
    verdict: Verdict = judge(low, high, limit)
    reason = None
    doubt = measurement.doubt()
    band = f"{format_time(low)} to {format_time(high)}"
    if doubt is not None:
        against = "" if limit is None else f", the limit is {format_time(limit)}"
        verdict, reason = "uncertain", f"{doubt} It took {band}{against}."
    elif limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "lies around"
        reason = f"{band} {does} the limit of {format_time(limit)} ({measurement.setting})."
    return CheckResult(
        "latency",
        verdict,
        median,
        low,
        high,
        limit,
        "microseconds",
        measurement.data["tier"],
        dict(measurement.data),
        reason,
    )


def check_target(file: MeasurementFile, profiles: Sequence[TargetProfile]) -> None:
    """Refuses a file that was measured for none of the targets.

    Raises:
        ArgumentError: it names another target, or none.
    """
    names = [profile.name for profile in profiles]
    if file.target not in names:
        raise ArgumentError(
            "--measured", f"be of a target of this command ({', '.join(names)})", file.target,
            f"{file.path} is of that one.",
        )  # fmt: skip


def measured_checks(
    file: MeasurementFile, sha256: str, profile: TargetProfile, limits: Budgets
) -> tuple[CheckResult, ...]:
    """Returns what a file says about a model on a target: latency, and memory if it has a limit.

    Of several settings the one that LiteRT has without being told counts: XNNPACK on, and the
    fewest threads.

    Args:
        file: What was measured.
        sha256: Of the checked model.
        profile: The target; nothing is returned where the file is of another one.
        limits: The budgets.

    Raises:
        ArgumentError: the file holds no measurement of this model, or one of another kind of
            machine.
    """
    if file.target != profile.name:
        return ()
    if file.data["error"] is not None and not file.measurements:
        raise ArgumentError(
            "--measured", "hold a measurement", file.path,
            f"The run failed: {file.data['error']['message']}",
        )  # fmt: skip
    found = [m for m in file.measurements if m.sha256 == sha256]
    if not found:
        others = ", ".join(dict.fromkeys(m.sha256[:12] for m in file.measurements)) or "none"
        raise ArgumentError(
            "--measured", f"be of this model (SHA-256 {sha256[:12]}...)", others,
            "It was measured on another file: measure this one.",
        )  # fmt: skip
    tier = TIERS.get(profile.kind)
    wrong = next((m.data["tier"] for m in found if m.data["tier"] != tier), None)
    if wrong is not None or any(m.data["target"] != profile.name for m in found):
        raise ArgumentError(
            "--measured", f"be measured on {profile.title}", wrong or found[0].data["target"],
            "Numbers of another machine say nothing about it.",
        )  # fmt: skip
    chosen = min(found, key=standard_first)
    checks = [latency_check(chosen, limits.max_latency)]
    if limits.max_ram is not None:
        grown = chosen.data["memory_kb"]["overall"]
        checks.append(memory_check(grown, limits.max_ram, chosen.data["tier"]))
    return tuple(checks)


def memory_check(grown_kib: float | None, limit: int, how_known: HowKnown) -> CheckResult:
    """Returns whether a process grew by no more than a limit, where there is no tensor arena.

    Args:
        grown_kib: KiB that it grew by; None where the system does not tell.
        limit: Bytes.
        how_known: Where it ran.
    """
    entry = _bytes("arena", None if grown_kib is None else grown_kib * 1024, limit, "It takes")
    detail = {"what": "growth of the process: there is no tensor arena"}
    known = None if entry["measured"] is None else how_known
    return CheckResult(**entry, how_known=known, detail=detail)


def standard_first(measurement: Measurement) -> tuple[bool, bool, int]:
    """Sorts settings: without an error, with XNNPACK and with few threads come first."""
    config = measurement.data["config"]
    return (measurement.error is not None, not config["xnnpack"], config["threads"])


def budget_checks(
    measurement: Measurement, budgets: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Returns what a measurement says about a bundle's budgets, as `checks` of the file's form.

    Args:
        measurement: What was measured.
        budgets: As a bundle has them: `max_latency_us`, `max_file_size`, `max_ram`.
    """
    latency = latency_check(measurement, budgets["max_latency_us"])
    checks = [_entry("latency", latency.verdict, latency.measured, latency.low, latency.high,
                     latency.limit, "microseconds", latency.reason)]  # fmt: skip
    size = measurement.data["model"]["bytes"]
    checks.append(_bytes("file_size", size, budgets["max_file_size"], "The file has"))
    grown = measurement.data["memory_kb"]["overall"]
    checks.append(
        _bytes("ram", None if grown is None else grown * 1024, budgets["max_ram"], "It takes")
    )
    golden = measurement.data["golden"]
    if golden is None:
        # A runner that compares no outputs says so itself.
        reason = measurement.data.get("golden_reason") or (
            "The bundle has no golden outputs, or they were not reached."
        )
        checks.append(_entry("golden", "not_applicable", None, None, None, None, "steps", reason))
    else:
        steps, passed = golden["max_steps"], golden["passed"]
        reason = (
            f"{golden['checked'] - golden['equal']} of {golden['checked']} values differ from the "
            f"golden ones, by up to {_difference(golden)}."
        )
        checks.append(
            _entry("golden", "pass" if passed else "fail", steps, steps, steps,
                   golden.get("allowed_steps"), "steps", None if passed else reason)
        )  # fmt: skip
    return checks


def _difference(golden: Mapping[str, Any]) -> str:
    steps, error = golden["max_steps"], golden["max_error"]
    parts = [] if steps is None else [f"{steps} steps"]
    parts += [] if error is None else [f"{error:g}"]
    return " and ".join(parts) or "values that are no numbers"


def _bytes(rule: str, size: float | None, limit: float | None, what: str) -> dict[str, Any]:
    if size is None:
        verdict: Verdict = "not_applicable" if limit is None else "not_measured"
        reason = None if limit is None else "The system does not tell the memory of the process."
        return _entry(rule, verdict, None, None, None, limit, "bytes", reason)
    verdict = judge(size, size, limit)
    reason = None
    if verdict == "fail" and limit is not None:
        reason = f"{what} {format_size(size)}, the limit is {format_size(limit)}."
    return _entry(rule, verdict, size, size, size, limit, "bytes", reason)


def _entry(
    rule: str,
    verdict: Verdict,
    measured: float | None,
    low: float | None,
    high: float | None,
    limit: float | None,
    unit: str,
    reason: str | None,
) -> dict[str, Any]:
    return {
        "rule": rule,
        "verdict": verdict,
        "measured": measured,
        "low": low,
        "high": high,
        "limit": limit,
        "unit": unit,
        "reason": reason,
    }


def merge(files: Sequence[MeasurementFile]) -> MeasurementFile:
    """Puts the runs of several processes together; each process is one repeat.

    Times: `min` and `max` over all, `mean` and `std` of all samples, `median`, percentiles and what
    happens once in a process as the median over the processes. The state is that before the first
    and after the last; of the thermal status afterwards the highest counts.

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
    # Variance of all: within the processes and between them.
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
    """Counts each bin where its middle lies in bins of equal width over all of them."""
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
