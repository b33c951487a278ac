"""`edgecompress bench`."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.config import verdict_switches
from edgecompress.cli.console import exit_code, print_text, progress_of
from edgecompress.cli.parameters import Command, Sections


def _sections() -> Sections:
    from edgecompress.core.options import options_of
    from edgecompress.pipeline import options
    from edgecompress.targets.phones.runners import RUNNERS

    return [
        ("Measurement", [options.BenchOptions]),
        *(
            (f"With --runner {name}", [RUNNERS[name].options])
            for name in RUNNERS
            if options_of(RUNNERS[name].options)
        ),
    ]


def run(
    bundle: str, as_json: bool, quiet: bool, verbose: bool, allow_undecided: bool, **options: Any
) -> int:
    """Measures a bundle, prints the result and returns the exit code."""
    from pathlib import Path

    from edgecompress.pipeline import bench

    with progress_of(quiet) as progress:
        result = bench(Path(bundle), progress=progress, **options)
    print_text(result.to_json().rstrip("\n") if as_json else result.text())
    return exit_code(result, allow_undecided)


COMMAND = Command(
    "bench",
    run,
    [click.Argument(["bundle"], metavar="BUNDLE")],
    _sections,
    verdict_switches(),
    [("BUNDLE", "Folder of an export that had a phone or the host among its targets.")],
)
