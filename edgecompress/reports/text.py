"""A report, and the list of targets, as text for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.core.results import CheckResult, Report, Verdict
from edgecompress.core.sensitivity import Sensitivity
from edgecompress.core.tables import Column, print_table
from edgecompress.core.units import format_size, format_time
from edgecompress.reports import sensitivity
from edgecompress.reports.words import (
    HOW_KNOWN,
    VERDICT_STYLES,
    VERDICT_WORDS,
    band_text,
    format_value,
    limit_text,
    percent_text,
    remarks,
    used_share,
)
from edgecompress.targets.family import family_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from edgecompress.targets.profile import TargetProfile

_CHECK_COLUMNS = (
    Column("Rule", left=True),
    Column("Verdict", left=True),
    Column("Value"),
    Column("Band", drop=2),
    Column("Limit"),
    Column("Used", drop=3),
    # Without it, a prediction looks like a measurement.
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
                line(f"{check.title}: {check.reason}", VERDICT_STYLES[check.verdict].split()[-1])
            for remark in remarks(check):
                line(f"{check.title}: {remark}", "dim")
    if report.sensitivity is not None:
        _render_sensitivity(report.sensitivity, console, line)
    if report.notes:
        console.print()
    for note in report.notes:
        line(f"Note: {note}", "yellow")
    console.print()
    line(Text.assemble("Verdict: ", _verdict_text(report.verdict)))


def _render_sensitivity(
    found: Sensitivity, console: Console, line: Callable[[str, str], None]
) -> None:
    """Prints what each layer costs, and what keeping some costs."""
    for title, columns, rows in (
        (
            f"Each layer rounded alone, {found.samples} samples",
            sensitivity.damage_columns(found),
            sensitivity.damage_rows(found),
        ),
        ("Layers kept", sensitivity.choice_columns(found), sensitivity.choice_rows(found)),
    ):
        console.print()
        line(title, "bold")
        shown = [Column(c, left=i < 2, widest=60 if i < 2 else None) for i, c in enumerate(columns)]
        print_table(console, shown, rows)
    for choice in found.choices:
        if choice.cheapest:
            line(f"To keep them: {shlex.join(sensitivity.command_of(choice))}", "")
    for note in found.notes:
        line(f"Sensitivity: {note}", "dim")


def _verdict_text(verdict: Verdict) -> tuple[str, str]:
    return VERDICT_WORDS[verdict], VERDICT_STYLES[verdict]


def _check_cells(check: CheckResult) -> list[Any]:
    from rich.text import Text

    return [
        check.title,
        Text(*_verdict_text(check.verdict)),
        format_value(check.measured, check.unit),
        band_text(check),
        limit_text(check),
        percent_text(used_share(check)),
        HOW_KNOWN[check.how_known],
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
    return family_of(profile).unpredicted
