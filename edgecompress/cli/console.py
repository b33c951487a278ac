"""Printing: results on standard output, progress and remarks on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from edgecompress.cli import signals
from edgecompress.core.errors import UNDECIDED, ArgumentError
from edgecompress.core.terminal import SafeConsole, plain, shown

NAME = "edgecompress"


class Console(SafeConsole):
    """Standard output whose reader may close early (`| head`) without changing the verdict."""

    def on_broken_pipe(self) -> None:
        """Discards all further output."""
        leave_pipe()


def invocation() -> tuple[str, ...]:
    """Returns the command for reports: by its name, not by where it is installed."""
    told = click.get_current_context().obj
    return (NAME, *sys.argv[1:]) if told is None else tuple(told)


def leave_pipe() -> None:
    """Discards all further standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_text(text: str) -> None:
    """Prints a result on standard output."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        leave_pipe()


def print_report(report: Any, as_json: bool) -> None:
    """Prints a report as text or as JSON."""
    if as_json:
        print_text(report.to_json().rstrip("\n"))
    else:
        from edgecompress.reports.text import render

        render(report, Console())


def print_result(result: Any, render: Callable[[Any, Console], None], as_json: bool) -> None:
    """Prints a result as JSON, or as text by its own function."""
    if as_json:
        print_text(result.to_json().rstrip("\n"))
    else:
        render(result, Console())


def needed_data(data: Any) -> Any:
    """Returns the training data of a command.

    Raises:
        ArgumentError: there are none.
    """
    if data is None:
        raise ArgumentError(
            "--data", "be given", None,
            "An .npz file with x and y, a folder of images, or module:function.",
        )  # fmt: skip
    return data


def tell(line: str) -> None:
    """Prints a line on standard error."""
    # Whether anybody reads it does not affect the verdict.
    with suppress(OSError):
        print(shown(line), file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """Prints an error, one line on standard error."""
    tell(f"edgecompress: {' '.join(message.split())}")


def exit_code(result: Any, allow_undecided: bool) -> int:
    """Returns the exit code of a result, and names the limits that it leaves undecided."""
    if result.exit_code == UNDECIDED:
        names = "; ".join(result.undecided_limits)
        if allow_undecided:
            tell(f"Accepted though undecided: {names}.")
        else:
            tell(f"Undecided: {names}. Exit code 6; --allow-undecided makes it 0.")
    return int(result.exit_code_for(allow_undecided))


@contextmanager
def progress_of(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows progress: a spinner on a terminal, else lines."""
    if quiet:
        yield signals.or_end(lambda text: None)
    elif sys.stderr.isatty():
        # A separate descriptor: standard error is redirected while library output is suppressed.
        with (
            os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal,
            SafeConsole(file=terminal).status("Starting") as status,
        ):
            yield signals.or_end(lambda text: status.update(plain(f"{text} ...")))
    else:
        start = time.monotonic()

        def line(text: str) -> None:
            tell(f"[{time.monotonic() - start:5.1f} s] {text}")

        yield signals.or_end(line)


@contextmanager
def training_progress(
    quiet: bool,
) -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    """Yields two functions, for stages and for epochs: a bar on a terminal, else lines."""
    if quiet or not sys.stderr.isatty():
        with progress_of(quiet) as progress:
            yield progress, lambda epoch: progress(epoch.text)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # A separate descriptor: standard error is redirected while library output is suppressed.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal,
        Progress(*columns, console=SafeConsole(file=terminal), transient=True) as bars,
    ):
        bar = bars.add_task("Starting", total=None)
        yield (
            signals.or_end(
                lambda text: bars.reset(bar, total=None, description=plain(f"{text} ..."))
            ),
            signals.or_end(
                lambda epoch: bars.update(
                    bar,
                    total=epoch.epochs,
                    completed=epoch.epoch,
                    description=plain(epoch.text),
                )
            ),
        )
