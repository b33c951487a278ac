"""A comparison as a table: for the terminal, in Markdown, and as an HTML page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from edgecompress.comparison.results import Cell, ComparisonResult, merged
from edgecompress.core.tables import Column, print_table
from edgecompress.core.terminal import shown
from edgecompress.reports.words import HOW_KNOWN, format_value

if TYPE_CHECKING:
    from rich.console import Console

_NOTHING = "-"
# Column of a result, up to an @ -> its heading; {metric} is the metric's.
_TITLES = {
    "parameters": "Parameters",
    "kept": "Weights other than zero",
    "macs": "MACs",
    "metric_keras": "{metric}, Keras",
    "metric": "{metric}, file",
    "file_bytes": "File",
    "download_bytes": "Download",
    "flash": "Flash",
    "arena": "Arena",
    "latency": "Latency",
}
# The order of the columns: what the literature's tables have, then what devices ask for.
_ORDER = tuple(_TITLES)


@dataclass(frozen=True)
class Table:
    """A comparison as text.

    Attributes:
        titles: Headings; the first is that of the labels.
        known: How the numbers of each column are known; "" for the first.
        rows: Label and cells of each row; a number known in another way says so.
        remarks: What the table leaves open, one sentence each.
    """

    titles: tuple[str, ...]
    known: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]


def table_of(result: ComparisonResult) -> Table:
    """Returns the table of a comparison: means over the seeds, and smallest to largest."""
    columns = sorted(result.columns(), key=_place)
    several = len(result.targets) > 1
    titles = tuple(_title(result, name, several) for name in columns)
    lines = []
    for label in result.labels:
        made = result.of(label)
        cells = []
        for name in columns:
            of_seeds = [m.cells[name] for m in made if name in m.cells]
            cells.append(_as_error(result, name, merged(of_seeds or [Cell(None, "count")])))
        lines.append((label, cells))
    known = []
    for at in range(len(columns)):
        ways = Counter(_how(cells[at]) for _, cells in lines if cells[at].value is not None)
        known.append(ways.most_common(1)[0][0])
    rows = tuple(
        (label, *(_text(cell, how) for cell, how in zip(cells, known, strict=True)))
        for label, cells in lines
    )
    return Table(("", *titles), ("how known", *known), rows, tuple(_remarks(result)))


def _place(column: str) -> tuple[int, str]:
    name, _, where = column.partition("@")
    return _ORDER.index(name), where


def _title(result: ComparisonResult, column: str, several: bool) -> str:
    name, _, where = column.partition("@")
    metric = result.subject.metric if result.subject is not None else "metric"
    metric = "Error" if metric == "accuracy" else metric.replace("_", " ").capitalize()
    suffix = f" in {where}" if name == "metric" and where else ""
    suffix = f", {where}" if name in ("flash", "arena", "latency") and several else suffix
    return _TITLES[name].format(metric=metric) + suffix


def _as_error(result: ComparisonResult, column: str, cell: Cell) -> Cell:
    """Returns an accuracy as the error that the literature's tables have."""
    accuracy = result.subject is not None and result.subject.metric == "accuracy"
    if not column.startswith("metric") or not accuracy:
        return cell

    def rest(value: float | None) -> float | None:
        return None if value is None else 1 - value

    return dataclasses.replace(cell, value=rest(cell.value), low=rest(cell.high),
                               high=rest(cell.low))  # fmt: skip


def _how(cell: Cell) -> str:
    """Returns how a number is known, and in what.

    Example:
        >>> _how(Cell(0.5, "share", "measured_host", "tflm"))
        'measured in tflm'
    """
    if cell.where:
        return f"measured in {'Keras' if cell.where == 'keras' else cell.where}"
    return HOW_KNOWN.get(cell.how_known or "", cell.how_known or "") or "computed"


def _text(cell: Cell, usual: str) -> str:
    if cell.value is None:
        return _NOTHING
    show = _count if cell.unit == "count" else lambda value: format_value(value, cell.unit)
    text = show(cell.value)
    if cell.low is not None and cell.high is not None and cell.low != cell.high:
        text += f" ({show(cell.low)} to {show(cell.high)})"
    how = _how(cell)
    return text if how == usual else f"{text} ({how})"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _remarks(result: ComparisonResult) -> list[str]:
    """Returns what the table leaves open, and what its numbers stand on."""
    found = [
        f"{made.label}, seed {made.seed}, was not made: {made.reason}" for made in result.missing
    ]
    subject = result.subject
    if subject is not None:
        found.append(
            f"{subject.model}: {subject.samples:,} training samples; errors and metrics on "
            f"{subject.validation_samples:,} validation samples ({subject.validation})."
        )
    seeds = sorted({made.seed for made in result.made})
    if len(seeds) > 1:
        told = ", ".join(str(seed) for seed in seeds)
        found.append(
            f"Mean over seeds {told}; in parentheses the smallest and the largest value, bands of "
            "predictions included."
        )
    return found + _unknown(result)


def _unknown(result: ComparisonResult) -> list[str]:
    """Returns which numbers are not known, and why."""
    found: dict[str, list[str]] = {}
    for made in result.made:
        for column, cell in made.cells.items():
            if cell.value is None and cell.reason:
                name, _, where = column.partition("@")
                what = f"{_TITLES[name].format(metric='Metric')} on {where or cell.where}"
                found.setdefault(f"{what} is not known: {cell.reason}", []).append(made.label)
    whole = sum(made.reason is None for made in result.made)
    return [
        text if len(labels) == whole else f"{', '.join(dict.fromkeys(labels))}: {text}"
        for text, labels in found.items()
    ]


def render_markdown(result: ComparisonResult) -> str:
    """Returns the table in Markdown, with its remarks below."""
    table = table_of(result)
    lines = [_line(table.titles), "| --- |" + " ---: |" * (len(table.titles) - 1)]
    lines += [_line(row) for row in table.rows]
    lines.append(_line([f"*{text}*" if text else "" for text in table.known]))
    return "\n".join([*lines, "", *(f"- {_safe(text)}" for text in table.remarks)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_safe(cell) for cell in cells)} |"


_ESCAPED = str.maketrans({"|": r"\|", "<": "&lt;", ">": "&gt;", "`": r"\`", "[": r"\["})


def _safe(text: str) -> str:
    return shown(text).translate(_ESCAPED)


def render(result: ComparisonResult, console: Console) -> None:
    """Prints the table, what is done in each row, and the remarks."""
    table = table_of(result)
    columns = [
        Column(title, left=at == 0, drop=_DROPS.get(title.partition(",")[0], 0))
        for at, title in enumerate(table.titles)
    ]
    dropped = print_table(console, columns, [*table.rows, table.known])
    if dropped:
        console.print(f"Not shown: {', '.join(dropped)}; they are in compare.html.")
    for made in result.made:
        if made.stages and made.seed == result.made[0].seed:
            _print(console, f"{made.label}: {'; '.join(made.stages)}")
    for remark in table.remarks:
        _print(console, remark)


# Dropped first on a narrow terminal: the highest.
_DROPS = {"Weights other than zero": 3, "Download": 5, "Flash": 4, "Parameters": 2}


def _print(console: Console, text: str) -> None:
    from rich.text import Text

    console.print(Text(shown(text)), soft_wrap=not console.is_terminal)


def render_html(result: ComparisonResult) -> str:
    """Returns the comparison as one HTML page: no scripts, nothing loaded."""
    from edgecompress.reports.html import page_environment, page_style

    page = resources.files("edgecompress.comparison") / "compare.html.jinja"
    template = page_environment().from_string(page.read_text("utf-8"))
    seeds = sorted({made.seed for made in result.made})
    first = [made for made in result.made if made.seed == seeds[0]] if seeds else []
    return template.render(
        style=page_style(),
        result=result,
        table=table_of(result),
        rows=first,
        several=len(seeds) > 1,
        count=_count,
    )


def table_html(result: ComparisonResult) -> str:
    """Returns the table alone as HTML."""
    from html import escape

    table = table_of(result)

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(shown(c))}</{tag}>' for c in cells)}</tr>"

    rows = "".join(line(row, "td") for row in (*table.rows, table.known))
    return f"<table>{line(table.titles, 'th')}{rows}</table>"


def row_line(result: ComparisonResult, label: str) -> str:
    """Returns one row in one line, for progress: what is known of it by heading."""
    table = table_of(result)
    row = next(row for row in table.rows if row[0] == label)
    told = [
        f"{title} {text}"
        for title, text in zip(table.titles[1:], row[1:], strict=True)
        if text != _NOTHING
    ]
    return f"{label}: {'; '.join(told) or 'not made'}"
