"""`edgecompress compare`."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.console import invocation, print_result, progress_of, tell
from edgecompress.cli.parameters import (
    Command,
    Sections,
    json_switch,
    quiet_switch,
    verbose_switch,
)


def _sections() -> Sections:
    from edgecompress.comparison.options import CompareOptions
    from edgecompress.pipeline import options

    return [("Options", [CompareOptions, options.ModuleOptions])]


def run(plan: str, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> int:
    """Compares, prints the table and returns the exit code."""
    from pathlib import Path

    from edgecompress.comparison import ComparisonResult, compare
    from edgecompress.comparison.rendering import render, row_line
    from edgecompress.comparison.results import Made
    from edgecompress.pipeline.options import CompressOptions

    output = Path(options.pop("output", CompressOptions.output))
    with progress_of(quiet) as progress:

        def on_row(made: Made, result: ComparisonResult) -> None:
            if not quiet:
                where = " (made by an earlier run)" if made.resumed else ""
                tell(f"{len(result.made)} of {result.rows}: {row_line(result, made.label)}{where}")

        result = compare(
            Path(plan),
            output=output,
            progress=progress,
            on_row=on_row,
            verbose=verbose,
            argv=invocation(),
            **options,
        )
    print_result(result, render, as_json)
    for made in result.missing:
        tell(f"Not made: {made.label}, seed {made.seed}: {made.reason}")
    if not quiet:
        tell(f"Wrote {output / 'compare.html'}, compare.md and compare.json")
    return result.exit_code


COMMAND = Command(
    "compare",
    run,
    [click.Argument(["plan"], metavar="FILE.toml")],
    _sections,
    [json_switch(), quiet_switch(), verbose_switch()],
    [("FILE.toml", "Model, data, targets, and what each row does; see docs/compare.md.")],
)
