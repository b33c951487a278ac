"""The instruction formulas and the cases each of them was fitted on.

They are data, in `instruction_formulas.json`. A formula is valid only in its domain: types, batch,
strides and the like as counted, sizes up to `REACH` times the largest counted one, because a
formula is a sum over loops. `benchmarks/instruction_domains.py` writes the domains and the errors
from the counts, and shows that sizes may be extrapolated that far.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

# Multiple of the largest counted size; fitted on sizes up to a quarter, the formulas still hold.
REACH = 4

_WORDS = {
    "n": "batch",
    "in_type": "input type",
    "out_type": "output type",
    "weight_type": "weight type",
    "kh": "filter height",
    "kw": "filter width",
    "sh": "vertical stride",
    "sw": "horizontal stride",
    "dh": "vertical dilation",
    "dw": "horizontal dilation",
    "ci": "input channels",
    "co": "output channels",
    "ni": "inputs",
    "no": "outputs",
    "in_elements": "input elements",
    "out_elements": "output elements",
    "per_channel": "scales for each channel",
    "in_scale": "input scale",
    "same_scale": "equal scales of input and output",
    "pad_c": "padding of channels",
    "stride_c": "stride along channels",
    "n_inputs": "number of inputs",
    "state_type": "state type",
}


@dataclass(frozen=True)
class Domain:
    """The cases a formula was fitted on, by attribute of `Geometry`.

    Attributes:
        kinds: Attribute -> the values that were counted; no other value is covered.
        spans: Attribute -> the smallest and the largest that were counted, both covered.
        sizes: Attribute -> the same; covered up to `REACH` times the largest, and down to zero.
    """

    kinds: Mapping[str, tuple[Any, ...]]
    spans: Mapping[str, tuple[float, float]]
    sizes: Mapping[str, tuple[float, float]]

    def largest(self, name: str) -> float:
        """Returns the largest covered value of a size."""
        low, high = self.sizes[name]
        # An attribute that was never varied says nothing about other values.
        return high if low == high else high * REACH

    def missing(self, geometry: Any) -> str | None:
        """Returns what was not counted, in words; None if the formula covers the case.

        Args:
            geometry: The operator, a `Geometry`.
        """
        for name, seen in self.kinds.items():
            value = getattr(geometry, name)
            if value not in seen:
                return _missing(name, value, ", ".join(map(_text, seen)))
        for name, (low, high) in self.spans.items():
            value = getattr(geometry, name)
            # Scales are stored in 32 bits.
            if not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
                return _missing(name, value, _text(low) + ("" if low == high else f" to {high:g}"))
        for name, (_, high) in self.sizes.items():
            value = getattr(geometry, name)
            if value > self.largest(name):
                return _missing(name, value, f"up to {high:g}")
        return None

    def is_smaller(self, geometry: Any) -> bool:
        """Whether some size is below all counted ones."""
        return any(getattr(geometry, name) < low for name, (low, _) in self.sizes.items())


def _text(value: Any) -> str:
    return (f"{value:.4g}" if isinstance(value, float) else str(value)) or "none"


def _missing(name: str, value: Any, seen: str) -> str:
    words = _WORDS.get(name, name)
    if isinstance(value, bool):
        has, counted = ("with", "without") if value else ("without", "with")
        return f"{has} {words} was not counted, only {counted}"
    return f"with {words} {_text(value)} was not counted, only {seen}"


@dataclass(frozen=True)
class CoreFit:
    """How well a formula works on a core that runs another core's kernels.

    Attributes:
        ratio: Instructions on this core to the formula's.
        error: Largest relative error of formula times ratio.
    """

    ratio: float
    error: float


@dataclass(frozen=True)
class Formula:
    """One formula.

    Attributes:
        text: A sum of products, e.g. `1.5*out*K + 20`.
        domain: What it was fitted on.
        rows: Number of counted operators.
        error: Largest relative error over them: prediction / count - 1.
        slack: Largest error in instructions over the smallest of them; below their sizes the
            relative error is meaningless.
        cores: Core -> how well the formula works there; other cores of the kernel set run the same
            code.
        example: Attributes of one of the counted operators.
    """

    text: str
    domain: Domain
    rows: int
    error: float
    slack: float
    cores: Mapping[str, CoreFit]
    example: Mapping[str, Any]

    def on(self, core: str | None) -> CoreFit:
        """Returns the ratio and the error on a core."""
        if core is not None and core in self.cores:
            return self.cores[core]
        return CoreFit(1.0, max(self.error, uncounted_errors().get(core or "", 0.0)))


def _pairs(ranges: Mapping[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {name: (low, high) for name, (low, high) in ranges.items()}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@functools.cache
def _data() -> dict[str, Any]:
    file = resources.files("edgecompress.targets.tflm") / "instruction_formulas.json"
    return dict(json.loads(file.read_text("utf-8")))


@functools.cache
def uncounted_errors() -> Mapping[str, float]:
    """Returns core -> error of a formula that was counted only on its sister core."""
    return dict(_data()["uncounted_errors"])


@functools.cache
def formulas(kernels: str) -> Mapping[str, Formula]:
    """Returns the formulas of a kernel set by name.

    Args:
        kernels: `dsp`, `mve` or `reference`.
    """
    return {
        name: Formula(
            entry["formula"],
            Domain(
                {key: tuple(map(_plain, seen)) for key, seen in entry["kinds"].items()},
                _pairs(entry["spans"]),
                _pairs(entry["sizes"]),
            ),
            entry["rows"],
            entry["error"],
            entry["slack"],
            {core: CoreFit(**fit) for core, fit in entry["cores"].items()},
            {key: _plain(value) for key, value in entry["example"].items()},
        )
        for name, entry in _data()[kernels].items()
    }


@functools.cache
def terms(formula: str) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """Returns a formula's terms as (coefficient, names to multiply it with).

    Example:
        >>> terms("1.5*out*K + 20")
        ((1.5, ('out', 'K')), (20.0, ()))
    """
    parts = (term.split("*") for term in formula.split(" + "))
    return tuple((float(first), tuple(names)) for first, *names in parts)


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Returns a formula's value for the given numbers.

    Example:
        >>> evaluate("1.5*out*K + 20", {"out": 4, "K": 9})
        74.0
    """
    return sum(
        coefficient * math.prod(values[name] for name in names)
        for coefficient, names in terms(formula)
    )
