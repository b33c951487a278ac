"""`edgecompress inspect`."""

from __future__ import annotations

import json
from typing import Any

import click

from edgecompress.cli.console import Console, print_text, progress_of
from edgecompress.cli.parameters import (
    Command,
    Sections,
    json_switch,
    quiet_switch,
    verbose_switch,
)
from edgecompress.core.errors import OK


def _sections() -> Sections:
    from edgecompress.pipeline import options

    return [("Options", [options.ModuleOptions])]


def run(model: str, as_json: bool, quiet: bool, verbose: bool, import_modules: Any = ()) -> int:
    """Prints the layers of a model."""
    from pathlib import Path

    from edgecompress.inspection import inspect_file, render

    path = Path(model)
    with progress_of(quiet) as progress:
        progress(f"Reading {path.name}")
        result = inspect_file(path, import_modules, verbose)
    if as_json:
        print_text(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        render(result, Console())
    return OK


COMMAND = Command(
    "inspect",
    run,
    [click.Argument(["model"], metavar="FILE")],
    _sections,
    [json_switch(), quiet_switch(), verbose_switch()],
    [("FILE", "A .tflite, .keras or .h5 file.")],
)
