"""Showing a report: as text for the terminal and as one HTML page that needs no network.

The HTML page is filled from a frozen `Page`, so that what is shown can be tested apart from how.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.results import CheckResult, Report, Verdict
from edgecompress.core.tables import Column, print_table
from edgecompress.core.terminal import shown
from edgecompress.core.units import format_size, format_time
from edgecompress.flatbuffers.model import FlatModel

if TYPE_CHECKING:
    import jinja2
    from rich.console import Console

    from edgecompress.targets.profile import TargetProfile
    from edgecompress.targets.tflm.arena import Arena, Buffer

VERDICT_WORDS: Mapping[Verdict, str] = {
    "pass": "PASS",
    "fail": "FAIL",
    "uncertain": "UNCERTAIN",
    "not_measured": "NOT MEASURED",
    "not_applicable": "n/a",
}
_VERDICT_STYLES: Mapping[Verdict, str] = {
    "pass": "bold green",
    "fail": "bold red",
    "uncertain": "bold yellow",
    "not_measured": "yellow",
    "not_applicable": "dim",
}
_HOW_KNOWN = {
    "computed": "computed",
    "measured_device": "on device",
    "measured_host": "on host",
    "emulated": "emulated",
    "predicted": "predicted",
    "published": "published",
    None: "",
}


# --- values as text -----------------------------------------------------------------------------


def _format_share(share: float) -> str:
    return f"{100 * share:.2f} %"


def _format_energy(microjoules: float) -> str:
    return f"{microjoules:.1f} uJ" if microjoules < 1e3 else f"{microjoules / 1e3:.2f} mJ"


_UNITS: Mapping[str, Callable[[float], str]] = {
    "bytes": format_size,
    "microseconds": format_time,
    "share": _format_share,
    "number": lambda value: f"{value:.6g}",
    "microjoules": _format_energy,
}


def format_value(value: float | None, unit: str) -> str:
    """Returns a value as people read it; "" for none.

    Example:
        >>> format_value(54996, "bytes"), format_value(60000.0, "microseconds")
        ('53.7 KiB', '60.0 ms')
    """
    if value is None:
        return ""
    return _UNITS[unit](value) if unit in _UNITS else f"{value:,.12g}"


def used_share(check: CheckResult) -> float | None:
    """Returns measured / limit; None where there is no ceiling to use up."""
    if check.measured is None or not check.limit or check.is_floor:
        return None
    return check.measured / check.limit


def _band(check: CheckResult) -> str:
    if check.low == check.high:
        return ""
    low, high = format_value(check.low, check.unit), format_value(check.high, check.unit)
    if not (low and high):
        return f"at least {low}" if low else f"at most {high}"
    # A unit that both ends share is said once.
    return f"{low.removesuffix(' ' + high.partition(' ')[2])} to {high}"


def _limit(check: CheckResult) -> str:
    if check.measured is None and check.detail.get("floor", check.limit) is None:
        # Only a drop from a value that is not known.
        drop = check.detail.get("max_drop")
        return "" if drop is None else f"drop {format_value(drop, check.unit)}"
    text = format_value(check.limit, check.unit)
    return f"min {text}" if text and check.is_floor else text


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


# --- text ---------------------------------------------------------------------------------------

_CHECK_COLUMNS = (
    Column("Rule", left=True),
    Column("Verdict", left=True),
    Column("Value"),
    Column("Band", drop=2),
    Column("Limit"),
    Column("Used", drop=3),
    # Without it a prediction looks like a measurement.
    Column("How known", drop=1, left=True),
)


def render(report: Report, console: Console) -> None:
    """Prints a report: a table for each target, the reasons below it, the verdict last.

    Args:
        report: What to print.
        console: Where to print; colours follow the console, so a pipe gets none.
    """
    from rich.text import Text

    def line(text: str | Text, style: str = "") -> None:
        text = Text(text, style) if isinstance(text, str) else text
        console.print(text, soft_wrap=not console.is_terminal)

    model = report.model
    line(model.path, "bold")
    line(
        f"file {format_size(model.file_bytes)}; compressed {format_size(model.compressed_bytes)}; "
        f"{model.parameters:,} parameters; {model.macs:,} MACs"
        + (f" and {model.binary_macs:,} of bits" if model.binary_macs else "")
    )
    for artifact in report.artifacts or ():
        parts = [artifact.kind, format_size(artifact.bytes)]
        if artifact.host_latency_us is not None:
            parts.append(f"{format_time(artifact.host_latency_us)} on this computer")
        line(f"{artifact.path}: {', '.join(parts)}")
    for target in report.targets:
        console.print()
        line(Text.assemble((target.name, "bold"), " ", _verdict_text(target.verdict)))
        left_out = print_table(
            console, _CHECK_COLUMNS, [_check_cells(check) for check in target.checks]
        )
        if left_out:
            line(f"Left out at this width: {', '.join(left_out)}.", "dim")
        for check in target.checks:
            if check.reason:
                line(f"{check.title}: {check.reason}", _VERDICT_STYLES[check.verdict].split()[-1])
            for remark in remarks(check):
                line(f"{check.title}: {remark}", "dim")
    if report.notes:
        console.print()
    for note in report.notes:
        line(f"Note: {note}", "yellow")
    console.print()
    line(Text.assemble("Verdict: ", _verdict_text(report.verdict)))


def remarks(check: CheckResult) -> list[str]:
    """Returns what a value stands on, one sentence each: class and runtime, range, comparison."""
    return _REMARKS[check.rule](check) if check.rule in _REMARKS else []


def _arena_remarks(check: CheckResult) -> list[str]:
    return list(check.detail.get("notes", ()))


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


def _parity_remarks(check: CheckResult) -> list[str]:
    """Returns what a parity check found, in one line: engines, error, worst layers."""
    detail = check.detail
    # Where it has a reason, that says it.
    if "engines" not in detail or check.reason:
        return []
    engines = ", ".join(f"{_format_share(v)} in {name}" for name, v in detail["engines"].items())
    layers = ", ".join(
        f"{layer['name']} {layer['sqnr_db']:.1f} dB"
        for layer in detail["layers"][:3]
        if layer["sqnr_db"] is not None
    )
    rounding = detail.get("rounding")
    cost = (
        f" Rounding alone, simulated in Keras, keeps {_format_share(rounding['simulated'])}; the "
        f"file agrees with that simulation on {_format_share(rounding['file'])}."
        if rounding
        else ""
    )
    worst = f"; lowest signal-to-noise: {layers}" if layers else ""
    return [
        f"{engines} agree with the {detail['reference']} ({detail['samples']} samples); largest "
        f"error {detail['max_error_steps']:.1f} steps of the output{worst}.{cost}"
    ]


def _accuracy_remarks(check: CheckResult) -> list[str]:
    """Returns the value beside the Keras model's, and what told the metric."""
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
    "accuracy": _accuracy_remarks,
    "parity": _parity_remarks,
}


def _verdict_text(verdict: Verdict) -> tuple[str, str]:
    return VERDICT_WORDS[verdict], _VERDICT_STYLES[verdict]


def _check_cells(check: CheckResult) -> list[Any]:
    from rich.text import Text

    return [
        check.title,
        Text(*_verdict_text(check.verdict)),
        format_value(check.measured, check.unit),
        _band(check),
        _limit(check),
        _percent(used_share(check)),
        _HOW_KNOWN[check.how_known],
    ]


def render_targets(profiles: Sequence[TargetProfile], console: Console) -> None:
    """Prints the list of targets: one line each.

    Args:
        profiles: What to print.
        console: Where to print.
    """
    columns = (
        Column("Name", left=True),
        Column("Kind", drop=2, left=True),
        Column("Core", left=True, widest=24),
        Column("Clock"),
        Column("Flash"),
        Column("RAM"),
        Column("Engine", drop=3, left=True),
        Column("Latency", drop=1, left=True),
        Column("Device", drop=4, left=True),
    )
    rows = [
        [
            profile.name,
            profile.kind,
            profile.core or profile.soc or "",
            f"{profile.clock_mhz:g} MHz" if profile.clock_mhz else "",
            format_value(profile.flash, "bytes"),
            format_value(profile.sram or profile.ram, "bytes"),
            profile.engine,
            _latency_source(profile),
            profile.title,
        ]
        for profile in profiles
    ]
    left_out = print_table(console, columns, rows)
    if left_out:
        console.print(
            f"Left out at this width: {', '.join(left_out)}. A wider terminal or --json shows all.",
            style="dim",
        )


def render_target(profile: TargetProfile, console: Console) -> None:
    """Prints one target: what it offers, how well its latency is known, and the sources.

    Args:
        profile: What to print.
        console: Where to print.
    """
    from rich.text import Text

    facts = [
        ("Name", profile.name),
        ("Device", profile.title),
        ("Kind", profile.kind),
        ("Engine", profile.engine),
        ("Core", profile.core),
        ("Clock", f"{profile.clock_mhz:g} MHz" if profile.clock_mhz else None),
        ("Kernels", profile.kernels),
        ("Flash", format_value(profile.flash, "bytes")),
        ("SRAM", format_value(profile.sram, "bytes")),
        ("Chip", profile.soc),
        ("CPU", profile.cpu),
        ("RAM", format_value(profile.ram, "bytes")),
        ("Latency", _latency_source(profile)),
        *(("Source", source) for source in profile.sources),
    ]
    for name, value in facts:
        if value:
            console.print(
                Text.assemble((f"{name:<8} ", "bold"), str(value)),
                soft_wrap=not console.is_terminal,
            )


def _latency_source(profile: TargetProfile) -> str:
    if profile.calibration is not None:
        return "predicted, class A (your calibration)"
    if profile.cycles is not None:
        own = "" if profile.latency is not None else f", taken from {profile.core}"
        return f"predicted, class {profile.cycles.calibration}{own}"
    return {"phone": "on device", "host": "on host"}.get(profile.kind, "unknown")


# --- HTML ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectangle:
    """One buffer on the memory map.

    Attributes:
        name: Tensor or scratch.
        first_op: Operator that writes it first; -1 for a model input.
        last_op: Operator that reads it last.
        offset: Where it lies in the arena, in bytes.
        bytes: Its size.
        label: What a chart calls it; the name where there is none.
    """

    name: str
    first_op: int
    last_op: int
    offset: int
    bytes: int
    label: str = ""


@dataclass(frozen=True)
class MemoryMap:
    """What lies where in a tensor arena while the operators run.

    Attributes:
        title: Which core and kernels it holds for.
        rectangles: The buffers.
        operators: Names of the operators, in order.
        used: Bytes of the whole arena; None where only the plan is known.
        peak_operator: Index of the operator where the plan is highest; None where unknown.
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
        before: Earlier value, in `unit`; None where it was not known.
        after: Present value; None where it is not known.
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
        name: What it stands for.
        value: Its value; None where unknown.
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
            # Neither unknown nor zero on both sides: that no operator lacks is in the checks.
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
        # Buffers that no operator uses have no place in time.
        rectangles=tuple(
            Rectangle(_short(b.name), b.first, b.last, b.offset, b.bytes, label(b))
            for b in arena.buffers
            if b.last >= 0
        ),
        operators=tuple(operators),
        used=arena.used,
        peak_operator=arena.peak_operator,
    )


def render_html(
    report: Report,
    *,
    inspection: Any = None,
    flat: FlatModel | None = None,
    profiles: Sequence[TargetProfile] = (),
    kernels: str | None = None,
    baseline: Report | None = None,
    comparison: Sequence[Comparison] = (),
    history: Mapping[str, Sequence[float | None]] | None = None,
    memory: Sequence[MemoryMap] = (),
    latency: Mapping[str, Sequence[tuple[str, float]]] | None = None,
    layers: Sequence[tuple[str, float | None]] = (),
    title: str | None = None,
) -> str:
    """Returns a report as one HTML page: no script, no network, light and dark, screen and print.

    The same arguments give the same bytes.

    Args:
        report: What to show.
        inspection: `edgecompress.inspection.Inspection` of the checked file: the layer table.
        flat: The checked file; with `profiles` it gives memory maps and latency per operator.
        profiles: Profiles of the targets.
        kernels: Kernel set instead of the profiles' own.
        baseline: An earlier report to compare with.
        comparison: Further lines of the before/after table.
        history: Training curves, name -> values by epoch or logged step.
        memory: Memory maps beside those made from `flat`.
        latency: Target -> (operator, microseconds) beside those made from `flat`.
        layers: Layer -> signal-to-quantization-noise ratio against the Keras model, in dB; None
            or infinite where the layer agrees exactly.
        title: The page's title. Defaults to the model's file name.

    Example:
        >>> Path("report.html").write_text(render_html(report))  # doctest: +SKIP
    """
    import jinja2

    from edgecompress.reports import plots

    maps = [*memory, *_memory_maps(flat, profiles, kernels)]
    times = {**(latency or {}), **_operator_latency(flat, profiles, kernels)}
    compared = [*(compare(baseline, report) if baseline else ()), *comparison]
    sizes = _sizes(report, baseline)
    curves = {name: list(values) for name, values in (history or {}).items() if len(values)}
    environment = page_environment()
    own: dict[str, Callable[..., Any]] = {
        "band": _band,
        "limit": _limit,
        "used": used_share,
        "how": lambda known: (known or "").replace("_", " on "),
        "remarks": remarks,
        "pairs": _pairs,
    }
    environment.filters |= own
    template = environment.from_string(
        (resources.files("edgecompress.reports") / "report.html.jinja").read_text("utf-8")
    )
    svg = jinja2.utils.markupsafe.Markup
    return template.render(
        style=page_style(),
        title=title or Path(report.model.path).name,
        report=report,
        words=VERDICT_WORDS,
        gauges={t.name: [_gauge(check) for check in t.checks] for t in report.targets},
        comparison=compared,
        sizes=sizes,
        sizes_svg=svg(plots.size_chart(sizes)) if len(sizes) > 1 else None,
        inspection=inspection,
        layer_bars=_layer_bars(inspection),
        curves_svg=svg(plots.curves(curves)) if curves else None,
        curves=[(name, values[0], values[-1]) for name, values in curves.items()],
        maps=[(m, svg(plots.memory_chart(m))) for m in maps if m.rectangles],
        latency=[(name, _time_bars(rows)) for name, rows in times.items() if rows],
        sqnr=_sqnr_bars(layers),
    )


def page_environment() -> jinja2.Environment:
    """Returns what fills a page: everything is escaped, and what is missing is an error.

    What is not printable stands as in `core.terminal.shown`.

    Filters: `value` (a number and its unit as text), `percent` and `number`.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        # Markup is what this package drew; all else may be a name from a file.
        finalize=lambda value: shown(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "percent": _percent,
        "number": lambda value: "?" if value is None else f"{value:,}",
    }
    return environment


def page_style() -> str:
    """Returns the style sheet of all pages, as it stands inside `<style>`."""
    import jinja2

    text = (resources.files("edgecompress.reports") / "page.css").read_text("utf-8")
    return jinja2.utils.markupsafe.Markup(text.rstrip("\n"))


def _short(name: str) -> str:
    """Returns the first of the names that a fused operator's tensor carries."""
    return name.split(";")[0]


def _pairs(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a check's detail as lines of text."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return "; ".join(text(item) for item in value)
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "not known"}[value]
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return [(key.replace("_", " "), text(value)) for key, value in detail.items()]


@dataclass(frozen=True)
class _Gauge:
    """Lengths for the bar that shows a value and its band against a limit, in percent."""

    value: float
    low: float
    high: float
    limit: float


def _gauge(check: CheckResult) -> _Gauge | None:
    if check.measured is None or not check.limit:
        return None
    if min(check.measured, check.limit) < 0:  # An R2 below 0 has no place on the bar.
        return None
    low = check.measured if check.low is None else check.low
    high = check.measured if check.high is None else check.high
    top = max(check.limit, high, check.measured)
    # Room behind the larger one, so that both ends of the bar are seen.
    full = max(top, 1.0) if check.is_floor and check.unit == "share" else top * 1.04
    return _Gauge(*(round(100 * x / full, 2) for x in (check.measured, low, high, check.limit)))


def _sizes(report: Report, baseline: Report | None) -> list[tuple[str, int, int | None]]:
    """Returns (name, bytes, compressed bytes) of every file that the report knows."""
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
class _LayerBars:
    """A layer's row and the lengths of its bars, in percent."""

    row: Any
    bytes: float
    macs: float
    zeros: float


def _layer_bars(inspection: Any) -> list[_LayerBars]:
    if inspection is None:
        return []
    most_bytes = max((row.weight_bytes for row in inspection.rows), default=0) or 1
    most_macs = max((row.macs or 0 for row in inspection.rows), default=0) or 1
    return [
        _LayerBars(
            row,
            round(100 * row.weight_bytes / most_bytes, 2),
            round(100 * (row.macs or 0) / most_macs, 2),
            round(100 * (row.sparsity or 0), 2),
        )
        for row in inspection.rows
    ]


def _time_bars(rows: Sequence[tuple[str, float]]) -> list[Bar]:
    longest = max((time for _, time in rows), default=0) or 1
    return [
        Bar(name, time, format_time(time), round(100 * time / longest, 2)) for name, time in rows
    ]


def _sqnr_bars(layers: Iterable[tuple[str, float | None]]) -> list[Bar]:
    """Returns the layers, worst first; full length is 60 dB, about what int8 can reach."""

    def bar(name: str, db: float | None) -> Bar:
        if db is None or not math.isfinite(db):
            return Bar(name, None, "exact", 100.0)
        return Bar(name, db, f"{db:.1f} dB", round(min(max(100 * db / 60, 0), 100), 2))

    bars = [bar(name, db) for name, db in layers]
    return sorted(bars, key=lambda b: math.inf if b.value is None else b.value)


def _memory_maps(
    flat: FlatModel | None, profiles: Sequence[TargetProfile], kernels: str | None
) -> list[MemoryMap]:
    from edgecompress.targets.tflm.arena import compute_arena

    maps = {}
    for profile in profiles if flat is not None else ():
        if profile.is_microcontroller and profile.core and flat is not None:
            arena = compute_arena(flat, profile.core, kernels or profile.kernels or "cmsis-nn")
            if arena.is_known:
                found = memory_map(arena, [o.name for o in flat.operators])
                maps[(found.rectangles, found.used)] = found
    return list(maps.values())


def _operator_latency(
    flat: FlatModel | None, profiles: Sequence[TargetProfile], kernels: str | None
) -> dict[str, list[tuple[str, float]]]:
    """Returns target -> (operator, typical microseconds), for targets that are predicted.

    The predicted time is divided in proportion to each operator's instructions.
    """
    from edgecompress.targets.tflm.latency import predict

    times = {}
    for profile in profiles if flat is not None else ():
        if flat is None or not profile.is_microcontroller:
            continue
        try:
            estimate = predict(flat, profile, kernels)
        except EdgeCompressError:
            continue  # The latency check of the same target has said why.
        counted = sum(cost.instructions or 0 for cost in estimate.operators)
        if estimate.microseconds is not None and counted:
            scale = estimate.microseconds / counted
            times[profile.name] = [
                (f"{cost.index} {cost.name}", scale * (cost.instructions or 0))
                for cost in estimate.operators
            ]
    return times
