"""Commands whose options come from dataclasses (`core.options`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from edgecompress.core.errors import ProcessError
from edgecompress.core.options import Kind, Many, Option, options_of

# Heading of a --help section -> the dataclasses whose options it lists.
Sections = Sequence[tuple[str, Sequence[type]]]


class KindType(click.ParamType):
    """A kind of value as a click parameter type: sizes, times, shares, names, paths.

    Args:
        kind: How the value is written.
        flag: Its name in errors.
    """

    def __init__(self, kind: Kind, flag: str) -> None:
        self.kind, self.flag = kind, flag
        self.name = kind.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the value in its owner's form; an ArgumentError says what is wrong."""
        return self.kind.parse(value, self.flag)


class _Raw(click.ParamType):
    """Texts that are parsed together, once all of them are known."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


class OwnedOption(click.Option):
    """A click option that knows its declaration, in `owned`."""

    def __init__(self, owned: Option) -> None:
        self.owned = owned
        kind = owned.kind
        names = [owned.name, *([owned.short] if owned.short else [])]
        details: dict[str, Any] = {"default": None, "hidden": owned.hidden}
        if kind.flag:
            names.append(f"{owned.flag}/{owned.off}" if owned.off else owned.flag)
            details["is_flag"] = True
        else:
            names.append(owned.flag)
            details["metavar"] = kind.metavar
            details["multiple"] = kind.multiple
            inner = kind.inner if isinstance(kind, Many) else kind
            together = kind.multiple and not isinstance(kind, Many)
            details["type"] = _Raw() if together else KindType(inner, owned.flag)
        super().__init__(names, **details)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns flags and text; the text may read registries, so it is only made here."""
        self.help = self.owned.text
        return super().get_help_record(ctx)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Returns the value, or None if the option was not given."""
        found = super().process_value(ctx, value)
        kind = self.owned.kind
        if kind.multiple:
            return kind.parse(found, self.owned.flag) if found else None
        return found


class Command(click.Command):
    """A command with the options of its owners.

    Args:
        name: Its name.
        run: Called with the values of the options that were given, by name, and the arguments.
        arguments: Positional arguments.
        sections: Returns the headings of `--help` and the owners below them. It is called together
            with the command, so that owners are not imported earlier.
        switches: Options that belong to no owner: `--json`, `--quiet`, ...
        notes: Help of the arguments, name -> text.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., int],
        arguments: Sequence[click.Argument],
        sections: Callable[[], Sections],
        switches: Sequence[click.Option],
        notes: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(name, callback=run, params=[*arguments, *switches])
        self._sections = sections
        self._notes = notes

    @functools.cached_property
    def grouped(self) -> list[tuple[str, list[OwnedOption]]]:
        """Heading -> options; a flag of several owners is listed under the first."""
        seen: set[str] = set()
        found = []
        for heading, owners in self._sections():
            group = []
            for item in (item for owner in owners for item in options_of(owner)):
                if item.flag not in seen:
                    seen.add(item.flag)
                    group.append(OwnedOption(item))
            found.append((heading, group))
        return found

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns arguments, the owners' options, and the switches."""
        own = super().get_params(ctx)
        arguments = [param for param in own if isinstance(param, click.Argument)]
        switches = [param for param in own if not isinstance(param, click.Argument)]
        return [*arguments, *(o for _, group in self.grouped for o in group), *switches]

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command with the given values; the owners' defaults apply otherwise."""
        owned = {option.name for _, group in self.grouped for option in group}
        values = {
            name: value
            for name, value in ctx.params.items()
            if name not in owned or value is not None
        }
        ctx.params = values
        try:
            return super().invoke(ctx)
        # The program takes both for a reader that closed standard output early, which a command
        # deals with itself: what reaches this place would end without a verdict, but with code 0.
        except (BrokenPipeError, SystemExit) as error:
            raise ProcessError(
                f"Code that the command runs ended it ({type(error).__name__}: {error}): a plugin, "
                "a logger or a library."
            ) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the arguments, then each group of options under its heading."""
        if self._notes:
            with formatter.section("Arguments"):
                formatter.write_dl(list(self._notes))
        own = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        sections: list[tuple[str, Sequence[click.Option]]] = [*self.grouped, ("Output", own)]
        for heading, group in sections:
            rows = [row for option in group if (row := option.get_help_record(ctx))]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def switch(flags: Sequence[str], name: str, help: str) -> click.Option:
    """Returns an on/off option."""
    return click.Option([name, *flags], is_flag=True, default=False, help=help)


def json_switch() -> click.Option:
    """Returns `--json`."""
    return switch(
        ["--json"], "as_json", "Print one JSON object on standard output and nothing else."
    )


def quiet_switch() -> click.Option:
    """Returns `--quiet`."""
    return switch(["--quiet", "-q"], "quiet", "Do not print progress on standard error.")


def verbose_switch() -> click.Option:
    """Returns `--verbose`."""
    return switch(["--verbose", "-v"], "verbose", "Show converter logs and tracebacks.")


def undecided_switch() -> click.Option:
    """Returns `--allow-undecided`."""
    return switch(
        ["--allow-undecided"],
        "allow_undecided",
        "Exit with 0 instead of 6 if a limit could not be decided; prints which.",
    )
