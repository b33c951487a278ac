"""Writes the tables of options in docs/, from the commands themselves.

    .venv/bin/python scripts/option_tables.py

A table stands between `<!-- options: COMMAND, ... -->` and `<!-- end -->`; of some options alone:
`<!-- options: COMMAND; --max-ram, --max-flash -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from edgecompress.cli.app import app
from edgecompress.cli.parameters import Command

DOCS = Path(__file__).resolve().parents[1] / "docs"
# What several commands have stands in their one table; the tables of others leave it out.
SHARED = ("export", "check", "inspect", "targets")
_TABLE = re.compile(
    r"(<!-- options: ([a-z, ]+)(?:; ([a-z0-9, -]+))? -->\n).*?(<!-- end -->)", re.DOTALL
)


@dataclass(frozen=True)
class Row:
    """One option.

    Attributes:
        flags: As the command line takes them, e.g. `-o, --output DIR`.
        text: What it means.
    """

    flags: str
    text: str


def commands(group: click.Group = app, above: str = "") -> Iterator[tuple[str, Command]]:
    """Yields (name, command) of all commands, those of groups as `android build`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from commands(found, f"{above}{name} ")
        elif isinstance(found, Command):
            yield f"{above}{name}", found


def rows(command: Command) -> dict[Row, str]:
    """Returns the options of a command, in the order of its `--help`.

    Returns:
        Option -> where it holds, e.g. `--format compressed`; "" for always.
    """
    context = click.Context(command)
    switches = [param for param in command.params if isinstance(param, click.Option)]
    return {
        Row(*record): heading.removeprefix("With ") if heading.startswith("With ") else ""
        for heading, options in [*command.grouped, ("", switches)]
        for option in options
        if (record := option.get_help_record(context)) is not None
    }


def table(names: Sequence[str], flags: Sequence[str] = ()) -> str:
    """Returns the table of some commands' options, as Markdown.

    Args:
        names: The commands. Several get a column that says whose an option is; without `flags`,
            all but `SHARED` leave out what stands in the table of those.
        flags: The options to list. Defaults to all.

    Raises:
        ValueError: no command has an option of `flags`.
    """
    known = {name: rows(command) for name, command in commands()}
    chosen = list(dict.fromkeys(row for name in names for row in known[name]))
    if flags:
        by_flag = {flag: row for row in chosen for flag in re.findall(r"--[\w-]+", row.flags)}
        if missing := set(flags) - set(by_flag):
            raise ValueError(f"no {', '.join(sorted(missing))} of {', '.join(names)}")
        chosen = [by_flag[flag] for flag in flags]
    elif tuple(names) != SHARED:
        shared = {row for name in SHARED for row in known[name]}
        chosen = [row for row in chosen if row not in shared]
    of = {row: _owners(row, known if tuple(names) == SHARED else {n: known[n] for n in names})
          for row in chosen}  # fmt: skip
    if len(names) == 1:
        of = {row: known[names[0]][row] for row in chosen}
        of = {row: f"`{condition}`" if condition else "" for row, condition in of.items()}
    cells = [(f"`{row.flags}`", of[row], row.text.replace("|", "\\|")) for row in chosen]
    cells = [("option", "with" if len(names) == 1 else "of", "meaning"), ("---",) * 3, *cells]
    if not any(of.values()):
        cells = [(first, last) for first, _, last in cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells).replace("|  |", "| |")


def _owners(row: Row, known: dict[str, dict[Row, str]]) -> str:
    """Returns which commands have an option, and where it holds."""
    found = {name: options[row] for name, options in known.items() if row in options}
    others = [name for name in known if name not in found]
    if not others:
        return "all"
    if len(others) == 1 and len(found) > 1:
        return f"all but {others[0]}"
    return ", ".join(f"{name} `{where}`" if where else name for name, where in found.items())


def page(text: str) -> str:
    """Returns a page with its tables as the commands are now."""

    def made(found: re.Match[str]) -> str:
        flags = [f"--{flag.strip().removeprefix('--')}" for flag in (found[3] or "").split(",")]
        return found[1] + table(found[2].split(", "), flags if found[3] else ()) + found[4]

    return _TABLE.sub(made, text)


def pages() -> list[Path]:
    """Returns the pages that have such a table."""
    return [path for path in sorted(DOCS.glob("*.md")) if _TABLE.search(path.read_text())]


def main() -> int:
    """Writes the pages; returns the exit code."""
    for path in pages():
        path.write_text(page(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
