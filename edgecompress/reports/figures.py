"""The numbers behind the HTML page's drawings: memory maps, comparisons and bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompress.core.results import CheckResult, Report
from edgecompress.core.units import format_time
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.reports.words import needed_of

if TYPE_CHECKING:
    from edgecompress.targets.profile import TargetProfile
    from edgecompress.targets.tflm.arena import Arena, Buffer


@dataclass(frozen=True)
class Rectangle:
    """One buffer on the memory map.

    Attributes:
        name: Tensor or scratch.
        first_op: Operator that writes it first; -1 for a model input.
        last_op: Operator that reads it last.
        offset: Its position in the arena, in bytes.
        bytes: Its size.
        label: Its label in a chart; the name if there is none.
    """

    name: str
    first_op: int
    last_op: int
    offset: int
    bytes: int
    label: str = ""


@dataclass(frozen=True)
class MemoryMap:
    """The layout of a tensor arena while the operators run.

    Attributes:
        title: The core and kernels it applies to.
        rectangles: The buffers.
        operators: Names of the operators, in order.
        used: Bytes of the whole arena; None if only the plan is known.
        peak_operator: Index of the operator where the plan is highest; None if unknown.
    """

    title: str
    rectangles: tuple[Rectangle, ...]
    operators: tuple[str, ...] = ()
    used: int | None = None
    peak_operator: int | None = None

    @property
    def height(self) -> int:
        """Bytes of the plan."""
        return max((r.offset + r.bytes for r in self.rectangles), default=0)

    @property
    def length(self) -> int:
        """Number of operators."""
        return max(len(self.operators), *(r.last_op + 1 for r in self.rectangles), 0)


@dataclass(frozen=True)
class Comparison:
    """One line of the before/after table.

    Attributes:
        name: What is compared, e.g. `File size`.
        before: Earlier value, in `unit`; None if unknown.
        after: Present value; None if unknown.
        unit: As in CheckResult.
    """

    name: str
    before: float | None
    after: float | None
    unit: str = "bytes"

    @property
    def change(self) -> str:
        """The change in words: a factor for amounts, percentage points for shares."""
        if self.before is None or self.after is None:
            return ""
        if self.unit == "share":
            return f"{100 * (self.after - self.before):+.2f} points"
        if self.before == self.after:
            return "same"
        if self.before <= 0 or self.after <= 0:
            return f"{self.after - self.before:+,.6g}"
        factor = self.before / self.after
        less, more = ("faster", "slower") if self.unit == "microseconds" else ("smaller", "larger")
        return f"{factor:.2f}x {less}" if factor > 1 else f"{1 / factor:.2f}x {more}"


@dataclass(frozen=True)
class Bar:
    """One line of a table with bars.

    Attributes:
        name: Its meaning.
        value: Its value; None if unknown.
        text: The value as text.
        share: Length of the bar, 0 to 1.
    """

    name: str
    value: float | None
    text: str
    share: float


def compare(before: Report, after: Report) -> tuple[Comparison, ...]:
    """Returns the before/after table of two reports: sizes, work, and each target's values.

    Example:
        >>> [row.name for row in compare(old, new)][:2]  # doctest: +SKIP
        ['File size', 'Compressed']
    """
    old, new = before.model, after.model
    rows = [
        Comparison("File size", old.file_bytes, new.file_bytes),
        Comparison("Compressed", old.compressed_bytes, new.compressed_bytes),
        Comparison("Parameters", old.parameters, new.parameters, "count"),
        Comparison("MACs", old.macs, new.macs, "count"),
    ]
    earlier = {(t.name, c.title): c for t in before.targets for c in t.checks}
    for target in after.targets:
        for check in target.checks:
            known = earlier.get((target.name, check.title))
            # The file is compared above.
            if check.rule == "file_size" or known is None or known.unit != check.unit:
                continue
            # Neither unknown nor zero on both sides; missing operators are covered by the checks.
            if known.measured or check.measured:
                name = f"{check.title} on {target.name}"
                rows.append(Comparison(name, known.measured, check.measured, check.unit))
    return tuple(rows)


def join_curves(
    parts: Iterable[Mapping[str, Sequence[float | None]]],
) -> dict[str, list[float | None]]:
    """Returns the curves of several fits as one history; a fit without a curve leaves a gap.

    Example:
        >>> join_curves([{"loss": [2.0, 1.0]}, {"loss": [0.5], "sparsity": [0.8]}])
        {'loss': [2.0, 1.0, 0.5], 'sparsity': [None, None, 0.8]}
    """
    known = [part for part in parts if part]
    names = dict.fromkeys(name for part in known for name in part)
    joined: dict[str, list[float | None]] = {name: [] for name in names}
    for part in known:
        length = max(len(values) for values in part.values())
        for name in names:
            joined[name] += part.get(name, [None] * length)
    return joined


def memory_map(arena: Arena, operators: Sequence[str] = ()) -> MemoryMap:
    """Returns the memory map of a computed arena.

    Args:
        arena: From `compute_arena`; must be known.
        operators: Names of the model's operators, in order.
    """

    def label(buffer: Buffer) -> str:
        if buffer.index is None:
            return "scratch"
        if buffer.first < 0:
            return "input"
        return operators[buffer.first] if buffer.first < len(operators) else ""

    return MemoryMap(
        title=f"{arena.core}, {arena.kernels}",
        # Buffers that no operator uses have no lifetime.
        rectangles=tuple(
            Rectangle(_short(b.name), b.first, b.last, b.offset, b.bytes, label(b))
            for b in arena.buffers
            if b.last >= 0
        ),
        operators=tuple(operators),
        used=arena.used,
        peak_operator=arena.peak_operator,
    )


def _short(name: str) -> str:
    """Returns the first name of a fused operator's tensor."""
    return name.split(";")[0]


@dataclass(frozen=True)
class Gauge:
    """Lengths for the bar that shows a value and its band against a limit, in percent."""

    value: float
    low: float
    high: float
    limit: float


def gauge(check: CheckResult) -> Gauge | None:
    """Returns the bar of a check; None if there is no limit, or nothing below it."""
    if check.measured is None or not check.limit:
        return None
    if min(check.measured, check.limit) < 0:  # An R2 below 0 cannot be shown on the bar.
        return None
    low = check.measured if check.low is None else check.low
    # What the limit is compared with may be more than the value.
    high = max(check.measured if check.high is None else check.high, needed_of(check) or 0)
    top = max(check.limit, high, check.measured)
    # Space after the larger one, so that both ends of the bar are visible.
    full = max(top, 1.0) if check.is_floor and check.unit == "share" else top * 1.04
    return Gauge(*(round(100 * x / full, 2) for x in (check.measured, low, high, check.limit)))


def sizes(report: Report, baseline: Report | None) -> list[tuple[str, int, int | None]]:
    """Returns (name, bytes, compressed bytes) of every file in the report."""
    sizes: list[tuple[str, int, int | None]] = []
    if baseline is not None:
        old = baseline.model
        sizes.append(("before", old.file_bytes, old.compressed_bytes))
    model = report.model
    listed = [artifact for artifact in report.artifacts or () if artifact.sha256 != model.sha256]
    sizes += [(artifact.kind, artifact.bytes, None) for artifact in listed]
    kinds = [a.kind for a in report.artifacts or () if a.sha256 == model.sha256]
    name = kinds[0] if kinds else "this file"
    return [*sizes, (name, model.file_bytes, model.compressed_bytes)]


@dataclass(frozen=True)
class LayerBars:
    """A layer's row and the lengths of its bars, in percent."""

    row: Any
    bytes: float
    macs: float
    zeros: float


def layer_bars(inspection: Any) -> list[LayerBars]:
    """Returns the rows of an inspection with their bars; none without one."""
    if inspection is None:
        return []
    most_bytes = max((row.weight_bytes for row in inspection.rows), default=0) or 1
    most_macs = max((row.macs or 0 for row in inspection.rows), default=0) or 1
    return [
        LayerBars(
            row,
            round(100 * row.weight_bytes / most_bytes, 2),
            round(100 * (row.macs or 0) / most_macs, 2),
            round(100 * (row.sparsity or 0), 2),
        )
        for row in inspection.rows
    ]


def time_bars(rows: Sequence[tuple[str, float]]) -> list[Bar]:
    """Returns one bar for each (name, microseconds)."""
    longest = max((time for _, time in rows), default=0) or 1
    return [
        Bar(name, time, format_time(time), round(100 * time / longest, 2)) for name, time in rows
    ]


def sqnr_bars(layers: Iterable[tuple[str, float | None]]) -> list[Bar]:
    """Returns the layers, worst first; full length is 60 dB, about what int8 can reach."""

    def bar(name: str, db: float | None) -> Bar:
        if db is None or not math.isfinite(db):
            return Bar(name, None, "exact", 100.0)
        return Bar(name, db, f"{db:.1f} dB", round(min(max(100 * db / 60, 0), 100), 2))

    bars = [bar(name, db) for name, db in layers]
    return sorted(bars, key=lambda b: math.inf if b.value is None else b.value)


def memory_maps(
    flat: FlatModel | None, profiles: Sequence[TargetProfile], options: Mapping[str, Any]
) -> list[MemoryMap]:
    """Returns the memory maps of a file on the microcontrollers among the profiles."""
    from edgecompress.targets.family import family_of

    maps = {}
    for profile in profiles if flat is not None else ():
        if flat is not None:
            family = family_of(profile)
            arena = family.arena_of(flat, profile, family.settle(profile, options))
            if arena is not None and arena.is_known:
                found = memory_map(arena, [o.name for o in flat.operators])
                maps[(found.rectangles, found.used)] = found
    return list(maps.values())


def operator_latency(
    flat: FlatModel | None, profiles: Sequence[TargetProfile], options: Mapping[str, Any]
) -> dict[str, list[tuple[str, float]]]:
    """Returns target -> (operator, typical microseconds), for targets that are predicted."""
    from edgecompress.targets.family import family_of

    times = {}
    for profile in profiles if flat is not None else ():
        if flat is None:
            continue
        family = family_of(profile)
        found = family.operator_times(flat, profile, family.settle(profile, options))
        if found:
            times[profile.name] = list(found)
    return times
