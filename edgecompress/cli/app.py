"""The program: its commands, and how every outcome becomes a line and an exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from edgecompress.cli import signals
from edgecompress.cli.console import NAME, fail, leave_pipe, tell
from edgecompress.core.errors import FAILURE, OK, USAGE, EdgeCompressError

_OBJECTS_BETWEEN_COLLECTIONS = 100_000
# Command -> what it does, in one line. Its module is loaded on first use.
_COMMANDS = {
    "export": "Convert a Keras model, run it in the targets' engines and check its budgets.",
    "check": "Check a .tflite file against targets and budgets; the exit code is the verdict.",
    "bench": "Measure an export on a phone or on this computer; the exit code is the verdict.",
    "compress": "Shrink a trained Keras model; writes the file to ship and the paper's tables.",
    "compare": "Compare techniques on one model and data set, as one TOML file says; a table.",
    "search": "Search for the best file that fits a device; the exit code is the verdict on it.",
    "inspect": "Print a model's layers (shape, parameters, zeros, bits, MACs, bytes) and totals.",
    "targets": "List the targets, or show one: core, clock, memory, kernels, sources.",
    "android": "Build the demo app for phones, and install it.",
}


class _Commands(click.Group):
    """The commands by name; the overall help loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"edgecompress.cli.{cmd_name}").COMMAND
        found.help = _COMMANDS[cmd_name]
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"edgecompress {version('edgecompress')}")
        ctx.exit()


app = _Commands(
    name=NAME,
    help="Export Keras models to devices, and fail the build if they do not fit.",
    epilog=(
        "Exit codes: 0 fits, 1 error, 2 usage, 3 budget exceeded, 4 accuracy below its floor, "
        "5 an operator the target cannot run, 6 a limit that could not be decided."
    ),
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        )
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Example:
        >>> main(["targets", "no-such-board"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    verbose = "-v" in arguments or "--verbose" in arguments
    _prepare(verbose)
    with signals.ending_on_signals():
        return _run(arguments, verbose)


def _prepare(verbose: bool) -> None:
    """Configures the process before any framework is loaded."""
    # Imported libraries make objects that stay; looking for garbage among them takes a tenth of a
    # second of a short command.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "3")
    if "keras" not in sys.modules:
        # Conversion uses TensorFlow.
        os.environ["KERAS_BACKEND"] = "tensorflow"
    # Closed by the caller (`>&-`): output is discarded, through the same descriptor.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # File names may contain characters that the terminal cannot show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str], verbose: bool) -> int:
    """Runs a command; every outcome becomes one line and an exit code."""
    try:
        result: Any = app.main(
            arguments, prog_name=NAME, standalone_mode=False, obj=(NAME, *arguments)
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else NAME
        fail(f"{error.format_message().rstrip('.')}. `{command} --help` shows the usage.")
        return USAGE
    except (BrokenPipeError, SystemExit):
        # The reader closed the pipe (`| head`): not an error, and nothing more to print.
        # The command line's own pages (--help) report it as SystemExit.
        leave_pipe()
        return OK
    except (Exception, KeyboardInterrupt, signals.Interrupted) as error:
        if verbose:
            # Marked as such: the error's own text may have several lines, none of them ours.
            for line in traceback.format_exc().splitlines():
                tell(f"| {line}")
        if signals.received() or isinstance(error, (KeyboardInterrupt, click.Abort)):
            fail("interrupted; no file was left half-written.")
            return signals.code()
        return _failed(error, arguments)


def _failed(error: BaseException, arguments: list[str]) -> int:
    """Prints what went wrong in one line; returns the exit code."""
    if isinstance(error, EdgeCompressError):
        fail(str(error))
        return error.exit_code
    if isinstance(error, OSError):
        # A full disk, no more processes, ...: a problem of the machine, not a bug.
        fail(f"cannot continue: {error}.")
        return FAILURE
    if isinstance(error, MemoryError):
        fail(f"cannot continue: not enough memory for `{' '.join(arguments)}`.")
        return FAILURE
    fail(
        f"internal error: {type(error).__name__}: {error}. This is a defect; run again with "
        "--verbose and report the traceback."
    )
    return FAILURE
