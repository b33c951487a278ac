"""The errors of this package; each knows the exit code the command line ends with.

| exit code | meaning |
| --- | --- |
| 0 | the model fits |
| 1 | something failed: a file, a conversion, an engine |
| 2 | the command was used wrongly: an argument, a name, a size |
| 3 | a budget is exceeded |
| 4 | accuracy or parity is below its floor |
| 5 | the target cannot run an operator of the model |
| 6 | a limit could not be decided: `uncertain` or `not_measured` |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

OK, FAILURE, USAGE, OVER_BUDGET, BELOW_ACCURACY, UNSUPPORTED_OPERATOR, UNDECIDED = range(7)

# Maximum characters shown of a received value; a file may hold any number of them.
_LONGEST = 500


def shown(text: object) -> str:
    r"""Returns a text for one line, with unprintable characters as escape sequences.

    These are control characters, newlines included, bidirectional controls, invisible characters,
    halves of surrogate pairs, and all spaces but the ordinary one.

    Example:
        >>> shown("a\nb\x1b[2J\u202ec")
        'a\\nb\\x1b[2J\\u202ec'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def one_line(error: BaseException | str, limit: int = 240) -> str:
    """Returns an error's text on one line, cut to `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def few(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names and how many more there are.

    Example:
        >>> few(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class EdgeCompressError(Exception):
    """Base class of all errors raised on purpose; its text is one line for the user.

    Text from files (names with line breaks, control characters) is made harmless.
    """

    exit_code = FAILURE

    def __str__(self) -> str:
        """Returns the text, on one line and printable."""
        text = super().__str__()
        return text if text.isprintable() else shown(" ".join(text.split()))


class ArgumentError(EdgeCompressError, ValueError):
    """An argument breaks its rule.

    Args:
        argument: Name of the argument as the user wrote it, e.g. `end_step` or `--max-ram`.
        rule: What the argument must be, e.g. "be greater than `begin_step`".
        got: The value received; shown with `repr`.
        hint: What to do about it. Optional.

    Example:
        >>> str(ArgumentError("end_step", "be greater than begin_step", 3, "Use end_step=100."))
        '`end_step` must be greater than begin_step. Got 3. Use end_step=100.'
    """

    exit_code = USAGE

    def __init__(self, argument: str, rule: str, got: object, hint: str = "") -> None:
        self.argument = argument
        self.rule = rule
        text = f"`{argument}` must {rule}. Got {_short(got)}."
        super().__init__(f"{text} {hint}".rstrip())


def _short(got: object) -> str:
    try:
        text = repr(got)
    except ValueError:  # Python cannot print a number of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class UnknownNameError(ArgumentError):
    """A name is not in the registry; the nearest known names are suggested.

    Args:
        argument: Name of the argument.
        name: The unknown name.
        known: All names that would have been right.
    """

    def __init__(self, argument: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        text = name if isinstance(name, str) else ""
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
        super().__init__(argument, "be a known name", name, hint)


class ModelFileError(EdgeCompressError):
    """A model file is missing, unreadable or not what its name says."""


class UnreadableFileError(ModelFileError):
    """A file cannot be read, or exceeds the bounds for untrusted files.

    Args:
        label: The file, or another name for the content.
        problem: What is wrong, as the rest of a sentence: "does not exist".

    Example:
        >>> str(UnreadableFileError("a.json", "does not exist"))
        'a.json does not exist.'
    """

    def __init__(self, label: object, problem: str) -> None:
        self.label = str(label)
        self.problem = problem.rstrip(".")
        super().__init__(f"{self.label} {self.problem}.")


class UnsupportedModelError(EdgeCompressError):
    """A model is built in a way that an operation cannot handle (subclassed, Lambda, ...)."""


class NotFiniteError(EdgeCompressError):
    """A weight, a range or an output is NaN or infinite; the text names the layer."""


class ProcessError(EdgeCompressError):
    """The process that reads a model file died, or returned no result."""


class IsolatedDefect(Exception):
    """A bug that surfaced in the process that reads a model file, under its own class name."""


class DiskFullError(EdgeCompressError):
    """There is no space left where a file has to be written."""


class ConversionError(EdgeCompressError):
    """A converter could not make its file."""


class EngineError(EdgeCompressError):
    """An inference engine could not load or run a file."""


class EngineNotRunError(EngineError):
    """An engine was not started, so nothing is known about the file."""


class DeviceError(EdgeCompressError):
    """A phone is not reachable, or a run on it did not end with a result."""


class BuildError(EdgeCompressError):
    """The demo app for phones could not be built."""


class UnsupportedOperatorError(EdgeCompressError):
    """The target's runtime cannot run an operator of the model."""

    exit_code = UNSUPPORTED_OPERATOR


class MissingDependencyError(EdgeCompressError):
    """An optional package is not installed; the text names the extra that installs it."""
