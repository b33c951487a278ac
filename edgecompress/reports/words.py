"""The wording of values, bands, limits and verdicts, and of the remarks that explain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgecompress.core.results import CheckResult, Verdict
from edgecompress.core.units import format_energy, format_size, format_time

VERDICT_WORDS: Mapping[Verdict, str] = {
    "pass": "PASS",
    "fail": "FAIL",
    "uncertain": "UNCERTAIN",
    "not_measured": "NOT MEASURED",
    "not_applicable": "n/a",
}
VERDICT_STYLES: Mapping[Verdict, str] = {
    "pass": "bold green",
    "fail": "bold red",
    "uncertain": "bold yellow",
    "not_measured": "yellow",
    "not_applicable": "dim",
}
HOW_KNOWN = {
    "computed": "computed",
    "measured_device": "on device",
    "measured_host": "on host",
    "emulated": "emulated",
    "predicted": "predicted",
    "published": "published",
    None: "",
}


def format_share(share: float) -> str:
    """Returns a share in percent with two decimals."""
    return f"{100 * share:.2f} %"


_UNITS: Mapping[str, Callable[[float], str]] = {
    "bytes": format_size,
    "microseconds": format_time,
    "share": format_share,
    "number": lambda value: f"{value:.6g}",
    "microjoules": format_energy,
}


def format_value(value: float | None, unit: str) -> str:
    """Returns a value as human-readable text; "" for none.

    Example:
        >>> format_value(54996, "bytes"), format_value(60000.0, "microseconds")
        ('53.7 KiB', '60.0 ms')
    """
    if value is None:
        return ""
    return _UNITS[unit](value) if unit in _UNITS else f"{value:,.12g}"


def used_share(check: CheckResult) -> float | None:
    """Returns the share of a limit that is needed; None without a ceiling."""
    needed = needed_of(check)
    if needed is None or not check.limit or check.is_floor:
        return None
    return needed / check.limit


def needed_of(check: CheckResult) -> float | None:
    """Returns the value that a limit is compared with; None if there is none.

    A small arena takes more to allocate than it uses afterwards, and the limit applies to that.
    """
    if check.measured is None:
        return None
    return max(check.measured, check.detail.get("smallest") or check.measured)


def band_text(check: CheckResult) -> str:
    """Returns the band of a value; "" if the value is exact."""
    if check.low == check.high:
        return ""
    low, high = format_value(check.low, check.unit), format_value(check.high, check.unit)
    if not (low and high):
        return f"at least {low}" if low else f"at most {high}"
    # A unit shared by both ends is stated once.
    return f"{low.removesuffix(' ' + high.partition(' ')[2])} to {high}"


def limit_text(check: CheckResult) -> str:
    """Returns the limit of a check, a floor or a ceiling; "" for none."""
    if check.measured is None and check.detail.get("floor", check.limit) is None:
        # Only a drop from an unknown value.
        drop = check.detail.get("max_drop")
        return "" if drop is None else f"drop {format_value(drop, check.unit)}"
    text = format_value(check.limit, check.unit)
    return f"min {text}" if text and check.is_floor else text


def percent_text(share: float | None) -> str:
    """Returns a share in whole percent; "" for none."""
    return "" if share is None else f"{100 * share:.0f}%"


def remarks(check: CheckResult) -> list[str]:
    """Returns the basis of a value, one sentence each: class and runtime, range, comparison."""
    return _REMARKS[check.rule](check) if check.rule in _REMARKS else []


def _arena_remarks(check: CheckResult) -> list[str]:
    found, needed = list(check.detail.get("notes", ())), needed_of(check)
    text, used = format_value(needed, check.unit), format_value(check.measured, check.unit)
    if text != used and check.reason is None:
        found.append(f"{text} are needed to allocate it; once allocated, {used} are used.")
    return found


def _flash_remarks(check: CheckResult) -> list[str]:
    stands = check.detail.get("range")
    return [stands] if stands else []


def _latency_remarks(check: CheckResult) -> list[str]:
    detail = check.detail
    if check.how_known != "predicted" or not detail.get("class"):
        return []
    runtime = f", with {detail['runtime']}" if detail.get("runtime") else ""
    return [
        f"Predicted for {detail['kernels']} kernels, class {detail['class']}: "
        f"{detail['known_from']}{runtime}."
    ]


def _energy_remarks(check: CheckResult) -> list[str]:
    detail = check.detail
    if check.how_known != "predicted" or "milliwatts" not in detail:
        return []
    low, high = detail["milliwatts"]
    source = detail["known_from"]
    if detail["published"]:
        source = f"{detail['published']} published energies of this board"
    return [f"The latency times {low:.1f} to {high:.1f} mW, from {source}."]


def _parity_remarks(check: CheckResult) -> list[str]:
    """Returns what a parity check found, in one line: engines, error, worst layers."""
    detail = check.detail
    # If there is a reason, it says this already.
    if "engines" not in detail or check.reason:
        return []
    engines = ", ".join(f"{format_share(v)} in {name}" for name, v in detail["engines"].items())
    layers = ", ".join(
        f"{layer['name']} {layer['sqnr_db']:.1f} dB"
        for layer in detail["layers"][:3]
        if layer["sqnr_db"] is not None
    )
    rounding = detail.get("rounding")
    cost = (
        f" Rounding alone, simulated in Keras, keeps {format_share(rounding['simulated'])}; the "
        f"file agrees with that simulation on {format_share(rounding['file'])}."
        if rounding
        else ""
    )
    worst = f"; lowest signal-to-noise: {layers}" if layers else ""
    return [
        f"{engines} agree with the {detail['reference']} ({detail['samples']} samples); largest "
        f"error {detail['max_error_steps']:.1f} steps of the output{worst}.{cost}"
    ]


def _accuracy_remarks(check: CheckResult) -> list[str]:
    """Returns the value next to the Keras model's, and how the metric was chosen."""
    detail = check.detail
    if check.measured is None or "found" not in detail:
        return []
    keras = detail.get("keras")
    beside = "" if keras is None else f"; the Keras model has {format_value(keras, check.unit)}"
    return [
        f"{format_value(check.measured, check.unit)} in {detail['engine']} on "
        f"{detail['samples']} samples{beside}; {detail['found']}."
    ]


_REMARKS: Mapping[str, Callable[[CheckResult], list[str]]] = {
    "arena": _arena_remarks,
    "flash": _flash_remarks,
    "latency": _latency_remarks,
    "energy": _energy_remarks,
    "accuracy": _accuracy_remarks,
    "parity": _parity_remarks,
}
