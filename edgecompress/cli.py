"""The command line: parse, call one library function, print, return the exit code.

Results go to standard output, everything else (progress, notes, errors) to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from edgecompress.core.errors import (
    FAILURE,
    OK,
    USAGE,
    ArgumentError,
    EdgeCompressError,
    UnknownNameError,
)

# typer carries its own copy of click; its base classes are reached through the public subclass.
_UsageError = typer.BadParameter.__base__

_INTERRUPTED = 130

app = typer.Typer(
    name="edgecompress",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Export Keras models to devices and fail the build when they do not fit.",
    epilog=(
        "Exit codes: 0 fits, 1 error, 2 usage, 3 a budget is exceeded, 4 accuracy below its "
        "floor, 5 an operator the target cannot run."
    ),
)


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the values of a TOML file the defaults of the command's options."""
    if path is None:
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError("--config", "be a readable TOML file", str(path), reason) from error
    known = {parameter.name: parameter for parameter in ctx.command.params}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key, value in values.items():
        if key not in known or key in ("config", "help"):
            raise UnknownNameError(f"--config key in {path.name}", key, set(known) - {"config"})
        # A single target may be written without brackets.
        if (
            known[key].nargs == 1
            and getattr(known[key], "multiple", False)
            and isinstance(value, str)
        ):
            values[key] = [value]
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgecompress {version('edgecompress')}")
        raise typer.Exit


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", callback=_read_config, is_eager=True, metavar="FILE.toml",
        help="TOML file whose keys are these options (max_ram = \"96KiB\"); flags win.",
    ),
]  # fmt: skip
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", "-t", metavar="NAME",
        help="A name that `edgecompress targets` lists, or a .toml of your own. May be repeated.",
    ),
]  # fmt: skip
Evaluate = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Labelled data (x, y) for the accuracy check."),
]
MaxFlash = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget for model and runtime code, e.g. 512KiB.")
]
MaxRam = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget for the tensor arena, e.g. 96KiB.")
]
MaxLatency = Annotated[
    str | None, typer.Option(metavar="TIME", help="Budget for one inference, e.g. 60ms or 800us.")
]
MaxFileSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget for the .tflite file alone.")
]
MinAccuracy = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Floor for top-1 accuracy, 0 to 1.")
]
Kernels = Annotated[
    str | None,
    typer.Option(metavar="SET", help="Microcontroller kernels: cmsis-nn or reference."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit 3 also where a verdict is uncertain or not measured.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the log of converters, and tracebacks.")
]


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(help="A .keras or .h5 file, or a SavedModel folder.", metavar="MODEL")
    ],
    target: Targets = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Real inputs (x) as the model takes them: they set the int8 ranges that training "
            "did not learn, and the parity check runs on them.",
        ),
    ] = None,
    evaluate: Evaluate = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for all files.")
    ] = Path("build"),
    max_flash: MaxFlash = None,
    max_ram: MaxRam = None,
    max_latency: MaxLatency = None,
    max_file_size: MaxFileSize = None,
    min_accuracy: MinAccuracy = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Floor for the agreement with the Keras model, 0 to 1."),
    ] = None,
    kernels: Kernels = None,
    config: Config = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Convert a Keras model to int8, run it in the targets' engines and check its budgets."""
    from edgecompress.pipeline import export as run

    with _progress(quiet) as progress:
        report = run(
            model,
            _required(target),
            calibration=calibration,
            evaluate=evaluate,
            output=output,
            max_flash=max_flash,
            max_ram=max_ram,
            max_latency=max_latency,
            max_file_size=max_file_size,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            kernels=kernels,
            progress=progress,
            verbose=verbose,
            argv=sys.argv,
        )
    _print_report(report, as_json)
    if not as_json:
        Console(stderr=True).print(f"Wrote {output}/report.json and report.html", soft_wrap=True)
    return report.exit_code_for(strict)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="FILE")],
    target: Targets = None,
    evaluate: Evaluate = None,
    max_flash: MaxFlash = None,
    max_ram: MaxRam = None,
    max_latency: MaxLatency = None,
    max_file_size: MaxFileSize = None,
    min_accuracy: MinAccuracy = None,
    kernels: Kernels = None,
    config: Config = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Check a .tflite file against targets and budgets; the exit code is the verdict."""
    from edgecompress.pipeline import check as run

    with _progress(quiet) as progress:
        report = run(
            model,
            _required(target),
            evaluate=evaluate,
            max_flash=max_flash,
            max_ram=max_ram,
            max_latency=max_latency,
            max_file_size=max_file_size,
            min_accuracy=min_accuracy,
            kernels=kernels,
            progress=progress,
            argv=sys.argv,
        )
    _print_report(report, as_json)
    return report.exit_code_for(strict)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A .tflite, .keras or .h5 file.", metavar="FILE")],
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Print a model's layers: shape, parameters, zeros, bits, MACs, bytes; and the totals."""
    from edgecompress.inspection import inspect_file, render

    with _progress(quiet) as progress:
        progress(f"Reading {model.name}")
        result = inspect_file(model)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        render(result, Console())
    return OK


@app.command()
def targets(
    name: Annotated[
        str | None, typer.Argument(help="Show this target alone, with its sources.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the targets, or show one: core, clock, memory, kernels, sources."""
    from edgecompress.targets.profile import load_target, target_names
    from edgecompress.targets.report import render_target, render_targets

    if name is not None:
        profile = load_target(name)
        if as_json:
            typer.echo(json.dumps(profile.to_dict(), indent=1))
        else:
            render_target(profile, Console())
        return OK
    profiles = [load_target(known) for known in target_names()]
    if as_json:
        typer.echo(json.dumps([profile.to_dict() for profile in profiles], indent=1))
    else:
        render_targets(profiles, Console())
    return OK


def _required(target: list[str] | None) -> list[str]:
    if not target:
        raise ArgumentError(
            "--target", "name at least one target", None, "`edgecompress targets` lists them."
        )
    return target


def _print_report(report: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        from edgecompress.targets.report import render

        render(report, Console())


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that tells what is going on: a spinner on a terminal, else lines."""
    console = Console(stderr=True)
    if quiet:
        yield lambda text: None
    elif console.is_terminal:
        with console.status("Starting") as status:
            yield lambda text: status.update(f"{text} ...")
    else:
        start = time.monotonic()

        def line(text: str) -> None:
            print(f"[{time.monotonic() - start:5.1f} s] {text}", file=sys.stderr, flush=True)

        yield line


def _fail(message: str) -> None:
    print(f"edgecompress: {' '.join(message.split())}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Example:
        >>> main(["targets", "no-such-board"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    verbose = "-v" in arguments or "--verbose" in arguments
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "3")
    try:
        result = typer.main.get_command(app).main(arguments, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except EdgeCompressError as error:
        if verbose:
            traceback.print_exc()
        _fail(str(error))
        return error.exit_code
    except _UsageError as error:  # type: ignore[misc]
        command = error.ctx.command_path if error.ctx else "edgecompress"
        _fail(f"{error.format_message()} `{command} --help` shows the usage.")
        return USAGE
    except typer.Abort:
        _fail("interrupted; nothing was written.")
        return _INTERRUPTED
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written.")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): not an error, and nothing more to print.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _fail(
            f"internal error: {type(error).__name__}: {error}. This is a defect; run again with "
            "--verbose and report the traceback."
        )
        return FAILURE
