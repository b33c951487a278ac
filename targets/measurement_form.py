"""The form of a measurement file: what each value must be before it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecompress.core.errors import ModelFileError
from edgecompress.core.results import HowKnown

# Kind of a target -> how what is measured on it is known.
TIERS: dict[str, HowKnown] = {"phone": "measured_device", "host": "measured_host"}

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
class Form:
    """What a value must be.

    Attributes:
        kinds: Its types.
        fields: Of an object: name -> form.
        items: Of a list: the form of each item.
        among: The only values.
        least: The smallest number.
    """

    kinds: tuple[type, ...]
    fields: Mapping[str, Form] = field(default_factory=dict)
    items: Form | None = None
    among: tuple[Any, ...] = ()
    least: float | None = None


def _object(optional: bool = False, **fields: Form) -> Form:
    return Form((dict, type(None)) if optional else (dict,), fields)


_TEXT, _MAYBE_TEXT = Form((str,)), Form(_OPTIONAL_TEXT)
_MAYBE_NUMBER = Form(_OPTIONAL_NUMBER)
_DURATION = Form(_NUMBER, least=0)
_DURATIONS = Form((list,), items=_DURATION)
_COUNT, _POSITIVE = Form((int,), least=0), Form((int,), least=1)
_MAYBE_COUNT = Form(_OPTIONAL_WHOLE, least=0)
_BOOL = Form((bool,))
_ERROR = _object(True, code=_TEXT, message=_TEXT)
_STATE = _object(thermal_before=_MAYBE_COUNT, thermal_after=_MAYBE_COUNT)
_LATENCY = _object(
    True,
    **dict.fromkeys(
        ("init", "first", "min", "p5", "median", "p95", "max", "mean", "std"), _DURATION
    ),
    warmup=Form(_OPTIONAL_NUMBER, least=0),
    p90=Form(_OPTIONAL_NUMBER, least=0),
    spread_pct=_DURATION,
    samples=_POSITIVE,
    inferences_per_sample=_POSITIVE,
    repeat_medians=_DURATIONS,
    histogram=_object(True, edges=_DURATIONS, counts=Form((list,), items=_COUNT)),
)
_MEASUREMENT = _object(
    tier=Form((str,), among=tuple(TIERS.values())),
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
    checks=Form((list,), items=_object(rule=_TEXT, verdict=_TEXT)),
    output_sha256=_MAYBE_TEXT,
    error=_ERROR,
    time=_TEXT,
)  # fmt: skip
FILE = _object(
    tool=_object(name=_TEXT, version=_TEXT),
    time=_TEXT,
    bundle=_object(True, name=_TEXT, target=_MAYBE_TEXT, sha256=_TEXT),
    device=_object(manufacturer=_MAYBE_TEXT, model=_MAYBE_TEXT),
    state=_STATE,
    measurements=Form((list,), items=_MEASUREMENT),
    error=_ERROR,
)


def check_form(value: Any, form: Form, label: str, place: str) -> None:
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
            check_form(value[name], inner, label, f"{place}.{name}".lstrip("."))
    if isinstance(value, list) and form.items is not None:
        for position, item in enumerate(value):
            check_form(item, form.items, label, f"{place}[{position}]")
        if place.endswith("histogram.edges") and len(value) < 2:
            raise _wrong(label, place, "a list of at least 2 edges", value)
        if place.endswith("repeat_medians") and not (value and min(value) > 0):
            raise _wrong(label, place, "a list of times above 0", value)


def _wrong(label: str, place: str, rule: str, got: object) -> ModelFileError:
    return ModelFileError(
        f"{label} is no whole measurement file: {place} must be {rule}. Got {str(got)[:60]!r}."
    )
