"""Tables that fit the terminal: columns are dropped rather than cut, and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_GAP = 2


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        drop: On a narrow terminal the highest is dropped first; 0 is always kept.
        left: Whether the text is left-aligned.
        widest: Longer texts are cut to this many characters; None for no limit.
    """

    title: str
    drop: int = 0
    left: bool = False
    widest: int | None = None


def print_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Text]],
    footer: Sequence[str | Text] | None = None,
) -> tuple[str, ...]:
    """Prints a table and returns the titles of the columns that did not fit.

    A terminal gets the columns that fit its width; a file or a pipe gets all of them.

    Args:
        console: Where to print.
        columns: In order.
        rows: One cell for each column.
        footer: A last row under a line; None for none.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from edgecompress.core.terminal import safe_text

    lines = [*rows, *([footer] if footer else [])]
    cells = [
        [safe_text(cell if isinstance(cell, Text) else Text(cell)) for cell in line]
        for line in lines
    ]
    widths = []
    for position, column in enumerate(columns):
        width = max(len(column.title), *(line[position].cell_len for line in cells), 0)
        widths.append(width if column.widest is None else min(width, column.widest))
    kept = list(range(len(columns)))
    while console.is_terminal and sum(widths[i] + _GAP for i in kept) - 1 > console.width:
        spare = max(kept, key=lambda i: columns[i].drop)
        if not columns[spare].drop:
            break
        kept.remove(spare)

    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=footer is not None,
        show_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for position in kept:
        column = columns[position]
        table.add_column(
            column.title,
            cells[-1][position] if footer else "",
            justify="left" if column.left else "right",
            no_wrap=True,
            width=widths[position],
        )
    for line in cells[: len(rows)]:
        table.add_row(*(line[position] for position in kept))
    terminal_width = console.width
    # rich never prints wider than its console, which for a pipe is 80 columns.
    if not console.is_terminal:
        console.width = max(terminal_width, sum(widths) + _GAP * len(widths))
    try:
        console.print(table)
    finally:
        if not console.is_terminal:
            console.width = terminal_width
    return tuple(column.title for i, column in enumerate(columns) if i not in kept)
