"""Printing an inspection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgecompress.core.tables import Column, print_table
from edgecompress.core.units import format_size
from edgecompress.inspection.types import Endpoint, Inspection, Row, Shape

if TYPE_CHECKING:
    from rich.console import Console


def _shape_text(shape: Shape | None) -> str:
    # The batch axis is always 1 or unknown and only takes up space.
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


# Column, row -> text, inspection -> text of the last line.
_COLUMNS: tuple[tuple[Column, Callable[[Row], str], Callable[[Inspection], str]], ...] = (
    (Column("#"), lambda row: str(row.index), lambda model: ""),
    (Column("Name", 5, left=True, widest=36), lambda row: row.name, lambda model: ""),
    (Column("Type", left=True), lambda row: row.type, lambda model: "Total"),
    (Column("Output", 3), lambda row: _shape_text(row.output_shape), lambda model: ""),
    (Column("Parameters"), lambda r: _number(r.parameters), lambda m: _number(m.parameters)),
    (Column("Zeros", 1), _sparsity_text, lambda model: _percent(model.sparsity)),
    (Column("Zero filters", 4), _filters_text, _filters_text),
    (Column("Bits", 2), _bits_text, lambda model: ""),
    (Column("MACs"), lambda row: _number(row.macs), lambda model: _number(model.macs)),
    (
        Column("Binary MACs"),
        lambda row: _number(row.binary_macs),
        lambda model: _number(model.binary_macs),
    ),
    (Column("Bytes"), lambda row: _number(row.weight_bytes), lambda m: _number(m.weight_bytes)),
)


def render(inspection: Inspection, console: Console) -> None:
    """Prints an inspection as tables.

    On a terminal, the table drops columns until it fits, and says which; elsewhere (a file, a pipe)
    every column is printed at full width.

    Args:
        inspection: What to print.
        console: Where to print; colours follow the console.
    """
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=not console.is_terminal)

    line(inspection.name, "bold")
    for title, ends in (("Input", inspection.inputs), ("Output", inspection.outputs)):
        for end in ends:
            line(f"{title}: {_endpoint_text(end)}")
    line(_operators_text(inspection))

    # Columns that are empty for most models.
    shown = {"Zero filters": inspection.zero_filters, "Binary MACs": inspection.binary_macs}
    columns = [column for column in _COLUMNS if shown.get(column[0].title, True)]
    left_out = print_table(
        console,
        [column for column, _, _ in columns],
        [[cell(row) for _, cell, _ in columns] for row in inspection.rows],
        [Text(total(inspection), "bold") for _, _, total in columns],
    )
    if left_out:
        titles = ", ".join(left_out)
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
        *([f"{inspection.binary_macs:,} binary MACs"] if inspection.binary_macs else []),
        f"{_percent(inspection.sparsity)} of {inspection.readable_weights:,} weights are zero",
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
