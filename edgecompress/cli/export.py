"""`edgecompress export`."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.config import verdict_switches
from edgecompress.cli.console import exit_code, invocation, print_report, progress_of, tell
from edgecompress.cli.parameters import Command, Sections


def _sections() -> Sections:
    from edgecompress.converters.formats import FORMATS
    from edgecompress.pipeline import options
    from edgecompress.targets.rule import option_owners

    return [
        ("Data and targets", [options.TargetOptions, options.DataOptions, options.FormatOptions]),
        (
            "Limits",
            [options.BudgetOptions, options.ScoringOptions, options.ExportOptions],
        ),
        (
            "Target options",
            [*option_owners(), options.MeasuredOptions, options.ModuleOptions],
        ),
        *((f"With --format {name}", [FORMATS[name].options]) for name in FORMATS),
    ]


def run(
    model: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    allow_undecided: bool,
    targets: Any = (),
    **options: Any,
) -> int:
    """Exports a model, prints its report and returns the exit code."""
    from pathlib import Path

    from edgecompress.cli.targets import required
    from edgecompress.pipeline import export
    from edgecompress.pipeline.options import ExportOptions

    output = Path(options.pop("output", ExportOptions.output))
    with progress_of(quiet) as progress:
        report = export(
            Path(model),
            required(targets),
            output=output,
            progress=progress,
            verbose=verbose,
            argv=invocation(),
            **options,
        )
    print_report(report, as_json)
    if not quiet:
        tell(f"Wrote {output / 'report.json'} and report.html")
    return exit_code(report, allow_undecided)


COMMAND = Command(
    "export",
    run,
    [click.Argument(["model"], metavar="MODEL")],
    _sections,
    verdict_switches(),
    [("MODEL", "A .keras or .h5 file, a SavedModel folder, or an int8 .tflite file to compress.")],
)
