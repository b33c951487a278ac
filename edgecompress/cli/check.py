"""`edgecompress check`."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.config import verdict_switches
from edgecompress.cli.console import exit_code, invocation, print_report, progress_of
from edgecompress.cli.parameters import Command, Sections


def _sections() -> Sections:
    from edgecompress.flatbuffers.coding import DecodingOptions
    from edgecompress.pipeline import options
    from edgecompress.targets.rule import option_owners

    return [
        ("Data and targets", [options.TargetOptions, options.CheckOptions]),
        ("Limits", [options.BudgetOptions, options.ScoringOptions]),
        (
            "Target options",
            [*option_owners(), DecodingOptions, options.MeasuredOptions],
        ),
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
    """Checks a file, prints the report and returns the exit code."""
    from pathlib import Path

    from edgecompress.cli.targets import required
    from edgecompress.core.errors import ArgumentError
    from edgecompress.pipeline import check

    drop = options.pop("max_drop", None)
    if drop:
        raise ArgumentError(
            "--max-drop", "go with `edgecompress export`, which also has the Keras model",
            drop[0], "Here use --min-metric accuracy=NUMBER.",
        )  # fmt: skip
    with progress_of(quiet) as progress:
        report = check(
            Path(model), required(targets), progress=progress, argv=invocation(), **options
        )
    print_report(report, as_json)
    return exit_code(report, allow_undecided)


COMMAND = Command(
    "check",
    run,
    [click.Argument(["model"], metavar="FILE")],
    _sections,
    verdict_switches(),
    [("FILE", "A .tflite file.")],
)
