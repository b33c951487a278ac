"""Suppresses third-party output, even from C++, without losing it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO


class CapturedOutput:
    """What libraries printed inside `suppress_output()`; complete once the block has ended."""

    text = ""


@contextlib.contextmanager
def suppress_output(verbose: bool = False) -> Iterator[CapturedOutput]:
    """Keeps everything printed, logged or warned inside the block from stdout and stderr.

    File descriptors 1 and 2 are redirected for the whole process, since TensorFlow and LiteRT log
    from C++; so do not print from another thread at the same time.

    Args:
        verbose: Let the output through instead. Defaults to False.

    Yields:
        An object whose `text` holds what was printed, once the block has ended (also by an error).

    Example:
        >>> with suppress_output() as captured:
        ...     _ = os.write(2, b"from C++")
        >>> captured.text
        'from C++'
    """
    captured = CapturedOutput()
    if verbose:
        yield captured
        return
    # TensorFlow reads this once, when it is loaded; it is left alone if the user set it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    disabled = logging.root.manager.disable
    usual = {"stdout": sys.stdout, "stderr": sys.stderr}
    for stream in usual.values():
        stream.flush()
    with tempfile.TemporaryFile() as sink:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            # Python-level streams may not be file descriptors at all (notebooks, test runners).
            writer = open(os.dup(sink.fileno()), "w", encoding="utf-8", errors="replace")  # noqa: SIM115
            logging.disable(logging.WARNING)
            with (
                writer,
                contextlib.redirect_stdout(writer),
                contextlib.redirect_stderr(writer),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                try:
                    yield captured
                finally:
                    _give_back(writer, usual["stderr"])
        finally:
            logging.disable(disabled)
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            captured.text = sink.read().decode(errors="replace")


def _give_back(writer: IO[str], stream: IO[str]) -> None:
    """Redirects handlers created by loggers inside the block to `stream`.

    TensorFlow creates its handler with its first message, and keeps the stderr of that time.
    """
    for name in [None, *logging.root.manager.loggerDict]:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is writer:
                handler.setStream(stream)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Suppresses logged and raised warnings of the block, and lets everything else through.

    For long work that reports progress, which `suppress_output` would swallow.

    Example:
        >>> with no_warnings():
        ...     logging.getLogger("noise").warning("retracing")
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
