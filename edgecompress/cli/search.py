"""`edgecompress search`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from edgecompress.cli.console import (
    exit_code,
    invocation,
    needed_data,
    print_result,
    progress_of,
    tell,
)
from edgecompress.cli.parameters import (
    Command,
    Sections,
    json_switch,
    quiet_switch,
    undecided_switch,
    verbose_switch,
)


def _sections() -> Sections:
    from edgecompress.pipeline import options
    from edgecompress.searching.options import ApplyOptions, SearchDataOptions, SearchOptions
    from edgecompress.targets.rule import option_owners

    return [
        ("Data", [options.TrainingDataOptions, SearchDataOptions]),
        ("Targets and limits", [options.TargetOptions, options.BudgetOptions, *option_owners(),
                                options.ModuleOptions]),
        ("Search", [SearchOptions]),
        ("A candidate of a search", [ApplyOptions]),
    ]  # fmt: skip


@contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    with progress_of(quiet) as show:
        yield show, lambda progress: show(progress.text)


def run(
    model: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    allow_undecided: bool,
    data: Any = None,
    targets: Any = (),
    **options: Any,
) -> int:
    """Searches, prints what was found and returns the exit code."""
    from pathlib import Path

    from edgecompress.core.suppress_output import suppress_output
    from edgecompress.searching.options import ApplyOptions, SearchOptions

    needed_data(data)
    # The first import of TensorFlow writes to standard error.
    with suppress_output(verbose):
        from edgecompress.searching import search
        from edgecompress.searching.rendering import render
    output = Path(options.get("output", SearchOptions.output))
    with _progress(quiet) as (progress, on_progress):
        result = search(
            Path(model),
            data,
            list(targets),
            progress=progress,
            on_progress=on_progress,
            verbose=verbose,
            argv=invocation(),
            **options,
        )
    print_result(result, render, as_json)
    if not quiet:
        if result.applied is not None:
            into = options.get("into", ApplyOptions.into)
            tell(f"Wrote candidate {result.applied} into {into}")
        elif result.exported is not None:
            tell(
                f"Wrote {output / 'search.html'}, search.json, and the best into {output / 'best'}"
            )
        else:
            tell(f"Wrote {output / 'search.html'} and search.json")
    return exit_code(result, allow_undecided)


COMMAND = Command(
    "search",
    run,
    [click.Argument(["model"], metavar="MODEL")],
    _sections,
    [json_switch(), quiet_switch(), verbose_switch(), undecided_switch()],
    [("MODEL", "A trained .keras or .h5 file of Keras 3.")],
)
