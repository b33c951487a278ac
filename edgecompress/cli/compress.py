"""`edgecompress compress`."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.config import verdict_switches
from edgecompress.cli.console import (
    exit_code,
    invocation,
    needed_data,
    print_result,
    tell,
    training_progress,
)
from edgecompress.cli.parameters import Command, Sections


def _sections() -> Sections:
    from edgecompress.pipeline import options
    from edgecompress.recipes import RECIPES
    from edgecompress.recipes.registry import RecipeOptions
    from edgecompress.targets.rule import option_owners

    return [
        (
            "Data and recipe",
            [RecipeOptions, options.TrainingDataOptions, options.CompressOptions],
        ),
        *((f"With --recipe {name}", [RECIPES[name].settings]) for name in RECIPES),
        ("Targets and limits", [options.RecipeTargetOptions, options.BudgetOptions,
                                *option_owners(), options.ModuleOptions]),
    ]  # fmt: skip


def run(
    model: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    allow_undecided: bool,
    data: Any = None,
    **options: Any,
) -> int:
    """Compresses a model, prints the result and returns the exit code."""
    from pathlib import Path

    from edgecompress.pipeline.options import CompressOptions, RecipeTargetOptions
    from edgecompress.recipes import compress
    from edgecompress.recipes.registry import RecipeOptions
    from edgecompress.recipes.rendering import render

    needed_data(data)
    output = Path(options.pop("output", CompressOptions.output))
    with training_progress(quiet) as (progress, on_epoch):
        result = compress(
            Path(model),
            data,
            options.pop("recipe", RecipeOptions.recipe),
            output=output,
            targets=list(options.pop("targets", RecipeTargetOptions.targets)),
            progress=progress,
            on_epoch=on_epoch,
            verbose=verbose,
            argv=invocation(),
            **options,
        )
    print_result(result, render, as_json)
    if not quiet:
        tell(f"Wrote {output / 'compression.html'}, compression.json and report.html")
    return exit_code(result, allow_undecided)


COMMAND = Command(
    "compress",
    run,
    [click.Argument(["model"], metavar="MODEL")],
    _sections,
    verdict_switches(),
    [("MODEL", "A trained .keras or .h5 file of Keras 3.")],
)
