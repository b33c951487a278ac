"""Printing an inspection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecompress.core.units import format_size
from edgecompress.inspection.types import Endpoint, Inspection, Row, Shape

if TYPE_CHECKING:
    from rich.console import Console

_NAME_WIDTH = 36


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        title: Its heading.
        cell: Row -> text.
        total: Inspection -> text of the last line.
        drop: Where the terminal is too narrow the highest goes first; 0 stays.
        left: Whether the text starts at the left.
    """

    title: str
    cell: Callable[[Row], str]
    total: Callable[[Inspection], str] = lambda inspection: ""
    drop: int = 0
    left: bool = False

    def width(self, inspection: Inspection) -> int:
        """Returns the width that shows every cell; long names are cut."""
        cells = [self.cell(row) for row in inspection.rows]
        width = max(len(text) for text in (self.title, self.total(inspection), *cells))
        return min(width, _NAME_WIDTH) if self.title == "Name" else width


def _shape_text(shape: Shape | None) -> str:
    # The batch axis is 1 or unknown everywhere and only takes room.
    if shape is None:
        return "?"
    return "x".join("?" if size is None else str(size) for size in shape[1:]) or "1"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _sparsity_text(row: Row) -> str:
    return "?" if row.zeros is None else _percent(row.sparsity)


def _bits_text(row: Row) -> str:
    return "" if row.bits is None else f"{row.bits:.2f}".rstrip("0").rstrip(".")


def _filters_text(what: Row | Inspection) -> str:
    return f"{_number(what.zero_filters)}/{what.filters:,}" if what.filters else ""


_COLUMNS = (
    _Column("#", lambda row: str(row.index)),
    _Column("Name", lambda row: row.name, drop=5, left=True),
    _Column("Type", lambda row: row.type, lambda model: "Total", left=True),
    _Column("Output", lambda row: _shape_text(row.output_shape), drop=3),
    _Column("Parameters", lambda row: _number(row.parameters), lambda m: _number(m.parameters)),
    _Column("Zeros", _sparsity_text, lambda model: _percent(model.sparsity), drop=1),
    _Column("Zero filters", _filters_text, _filters_text, drop=4),
    _Column("Bits", _bits_text, drop=2),
    _Column("MACs", lambda row: _number(row.macs), lambda model: _number(model.macs)),
    _Column("Bytes", lambda row: _number(row.weight_bytes), lambda m: _number(m.weight_bytes)),
)


def _fitting(inspection: Inspection, width: int | None) -> tuple[list[_Column], list[_Column]]:
    """Returns the columns that fit into `width` (None: all) and those that do not."""
    kept = [c for c in _COLUMNS if c.title != "Zero filters" or inspection.zero_filters]
    left_out: list[_Column] = []
    while width is not None and sum(2 + column.width(inspection) for column in kept) > width:
        spare = max(kept, key=lambda column: column.drop)
        if not spare.drop:
            break
        kept.remove(spare)
        left_out.insert(0, spare)
    return kept, left_out


def render(inspection: Inspection, console: Console) -> None:
    """Prints an inspection as tables.

    On a terminal the table leaves columns out until it fits, and says which; elsewhere (a file, a
    pipe) every column is printed at full width.

    Args:
        inspection: What to print.
        console: Where to print; colours follow the console.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=not console.is_terminal)

    line(inspection.name, "bold")
    for title, ends in (("Input", inspection.inputs), ("Output", inspection.outputs)):
        for end in ends:
            line(f"{title}: {_endpoint_text(end)}")
    line(_operators_text(inspection))

    terminal_width = console.width
    columns, left_out = _fitting(inspection, terminal_width if console.is_terminal else None)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(
            column.title,
            Text(column.total(inspection), "bold"),
            justify="left" if column.left else "right",
            no_wrap=True,
            width=column.width(inspection),
        )
    for row in inspection.rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    # rich never prints wider than its console, and a pipe's console is 80 columns wide.
    try:
        if not console.is_terminal:
            needed = sum(2 + column.width(inspection) for column in columns)
            console.width = max(terminal_width, needed)
        console.print(table)
    finally:
        if not console.is_terminal:
            console.width = terminal_width
    if left_out:
        titles = ", ".join(column.title for column in left_out)
        line(f"Left out at this width: {titles}. A wider terminal or --json shows all.", "dim")
    line(_totals_text(inspection))
    for note in inspection.notes:
        line(f"Note: {note}", "yellow")


def _operators_text(inspection: Inspection) -> str:
    title = "Operators" if inspection.format == "tflite" else "Layers"
    entries = (
        f"{entry.count}x {entry.name}" + ("" if entry.version is None else f" v{entry.version}")
        for entry in inspection.operators
    )
    return f"{title}: {', '.join(entries)}"


def _endpoint_text(end: Endpoint) -> str:
    shape = "x".join("?" if size is None else str(size) for size in end.shape)
    text = f"{end.name} {shape} {end.dtype}"
    if end.scale is not None:
        text += f", scale {end.scale:.8g}, zero_point {end.zero_point}"
    return text


def _totals_text(inspection: Inspection) -> str:
    parts = []
    if inspection.file_bytes is not None and inspection.compressed_bytes is not None:
        parts += [
            f"file {format_size(inspection.file_bytes)}",
            f"compressed {format_size(inspection.compressed_bytes)}",
        ]
    parts += [
        f"{inspection.parameters:,} parameters",
        f"{inspection.macs:,} MACs",
        f"{_percent(inspection.sparsity)} of {inspection.weights:,} weights are zero",
    ]
    if inspection.weight_bytes != inspection.dense_bytes:
        parts.append(
            f"weights {format_size(inspection.weight_bytes)} stored, "
            f"{format_size(inspection.dense_bytes)} dense"
        )
    if inspection.peak_activation_bytes is not None:
        parts.append(
            f"activations peak at {format_size(inspection.peak_activation_bytes)} "
            f"(operator {inspection.peak_operator})"
        )
    return "; ".join(parts)
