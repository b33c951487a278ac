"""Presents the result of a recipe, as text for the terminal and as an HTML page."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from edgecompress.core.results import Verdict
from edgecompress.core.tables import Column, print_table
from edgecompress.core.units import format_size, format_time
from edgecompress.engines.registry import TFLM
from edgecompress.recipes.results import (
    CompressionResult,
    Drop,
    LayerResult,
    StageResult,
    Totals,
    mean_bits,
)

if TYPE_CHECKING:
    from rich.console import Console

NO_SPEED = (
    "Zeros save no time here: microcontroller kernels multiply them like any other weight, and "
    "decoding costs time. Only removed channels reduce the computation."
)
ACCOUNTING = (
    "The paper's accounting: weights and distances with their codebooks, no biases, no tables of "
    "the Huffman decoder. What the .tflite file stores is in the last columns."
)


def metric_text(name: str, value: float) -> str:
    """Returns a metric as human-readable text.

    Example:
        >>> metric_text("accuracy", 0.8725), metric_text("mean_squared_error", 0.0123)
        ('87.25 %', '0.0123')
    """
    return f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f}%"


def _rate(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:.1f}x"


def _bits(bits: float) -> str:
    return f"{bits:.1f}".removesuffix(".0")


def _mean(name: str) -> tuple[Callable[[LayerResult], str], Callable[[Totals], str]]:
    """Returns the cells of a column of bits: of a layer, of all layers."""
    return (
        lambda layer: _bits(mean_bits([layer.storage], name)),
        lambda totals: _bits(mean_bits([layer.storage for layer in totals.layers], name)),
    )


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


@dataclass(frozen=True)
class LayerColumn:
    """A column of the layers' table.

    Attributes:
        group: What several columns have in common; the page's upper heading.
        title: The page's heading.
        column: The terminal's.
        cell: A layer's text.
        total: The text of all layers.
    """

    group: str
    title: str
    column: Column
    cell: Callable[[LayerResult], str]
    total: Callable[[Totals], str]


# The paper's columns, then the file's.
LAYER_COLUMNS = (
    LayerColumn(
        "", "Layer", Column("Layer", left=True, widest=28), lambda r: r.name, lambda t: "Total"
    ),
    LayerColumn(
        "", "Weights", Column("Weights"), lambda r: _number(r.weights), lambda t: _number(t.weights)
    ),
    LayerColumn(
        "P", "Weights%", Column("Weights% P"),
        lambda r: _percent(r.kept_share), lambda t: _percent(t.kept / t.weights),
    ),
    LayerColumn("Weight bits", "P+Q", Column("Bits P+Q", 3), *_mean("weight_bits")),
    LayerColumn("Weight bits", "P+Q+H", Column("Bits P+Q+H", 6), *_mean("huffman_weight_bits")),
    LayerColumn("Index bits", "P+Q", Column("Index P+Q", 4), *_mean("index_bits")),
    LayerColumn("Index bits", "P+Q+H", Column("Index P+Q+H", 7), *_mean("huffman_index_bits")),
    LayerColumn(
        "P+Q", "Bytes", Column("Bytes P+Q", 5),
        lambda r: _number(r.storage.quantized_bytes), lambda t: _number(t.quantized_bytes),
    ),
    LayerColumn(
        "P+Q", "Rate", Column("Rate P+Q", 8),
        lambda r: _percent(r.quantized_rate),
        lambda t: _percent(t.quantized_bytes / t.original_bytes),
    ),
    LayerColumn(
        "P+Q+H", "Bytes", Column("Bytes P+Q+H"),
        lambda r: _number(r.storage.huffman_bytes), lambda t: _number(t.huffman_bytes),
    ),
    LayerColumn(
        "P+Q+H", "Rate", Column("Rate P+Q+H"),
        lambda r: _percent(r.huffman_rate), lambda t: _percent(t.huffman_bytes / t.original_bytes),
    ),
    LayerColumn(
        "", "FLOP%", Column("FLOP%", 2),
        lambda r: _percent(r.flop_share), lambda t: _percent(t.flop_share),
    ),
    LayerColumn(
        "File", "Code", Column("In file", 1, left=True), lambda r: r.coding or "?", lambda t: ""
    ),
    LayerColumn(
        "File", "Bytes", Column("File bytes"),
        lambda r: _number(r.file_bytes), lambda t: _number(t.sum(lambda layer: layer.file_bytes)),
    ),
)  # fmt: skip

_STAGE_COLUMNS = (
    Column("Stage", left=True),
    Column("Metric"),
    Column("Measured in", 2, left=True),
    Column("Weights left", 3),
    Column("Other than zero", 1),
    Column("Weights, paper"),
    Column("File"),
    Column("Epochs", 4),
    Column("Time", 5),
)
_ENGINES = {"keras": "Keras", TFLM: "TFLM"}


def _stage_cells(stage: StageResult, metric: str) -> list[str]:
    time = "" if not stage.epochs else ("earlier" if stage.resumed else f"{stage.seconds:.0f} s")
    return [
        stage.title,
        metric_text(metric, stage.metric),
        _ENGINES[stage.engine],
        f"{stage.weights:,}",
        f"{stage.kept:,}",
        "" if stage.stored_bytes is None else format_size(stage.stored_bytes),
        "" if stage.file_bytes is None else format_size(stage.file_bytes),
        str(stage.epochs or ""),
        time,
    ]


def summary(result: CompressionResult) -> list[tuple[str, str]]:
    """Returns the rates as (name, text): what the papers call compression and speed-up rate."""
    totals = result.totals
    facts = [
        (
            "Compression rate, weights",
            f"{_rate(totals.parameter_rate)} ({totals.weights:,} to {totals.kept:,} other than "
            "zero)",
        ),
        (
            "Compression rate, paper's bytes",
            f"{_rate(totals.paper_rate)} ({format_size(totals.original_bytes)} to "
            f"{format_size(totals.huffman_bytes)})",
        ),
        (
            "Compression rate, file",
            f"{_rate(totals.file_rate)} ({format_size(totals.float_bytes)} float32 to "
            f"{format_size(totals.file_bytes)}; int8 {format_size(totals.int8_bytes)}; download "
            f"{format_size(totals.download_bytes)})",
        ),
        (
            "Speed-up rate, MACs",
            f"{_rate(totals.macs_rate)} ({totals.macs:,} to {totals.macs_left:,}; "
            f"{totals.macs_kept:,} with a weight other than zero)",
        ),
    ]
    for name, cost, text in (
        ("instructions", totals.instructions, lambda value: f"{value:,.0f}"),
        ("predicted latency", totals.latency, format_time),
    ):
        if cost.before and cost.uncoded and cost.after:
            facts.append(
                (
                    f"Speed-up rate, {name} on {totals.target}",
                    f"{cost.uncoded_rate:.2f}x uncoded ({text(cost.before)} to "
                    f"{text(cost.uncoded)}), {cost.rate:.2f}x with decoding ({text(cost.after)})",
                )
            )
    arena = totals.arena
    if arena.before and arena.uncoded and arena.after:
        facts.append(
            (
                f"Tensor arena on {totals.target}",
                f"{format_size(arena.before)} to {format_size(arena.uncoded)} uncoded, "
                f"{format_size(arena.after)} with decoded weights",
            )
        )
    drop = result.drop
    facts.append((f"{_metric_name(drop)}, {drop.samples:,} samples", _drop(drop)))
    return facts


def _metric_name(drop: Drop) -> str:
    return drop.metric.replace("_", " ").capitalize()


def _drop(drop: Drop) -> str:
    text = f"{metric_text(drop.metric, drop.before)} to {metric_text(drop.metric, drop.after)}"
    if drop.limit is None:
        return text
    words: dict[Verdict, str] = {"pass": "within", "fail": "MORE THAN"}
    unit = " points" if drop.metric == "accuracy" else ""
    scale = 100 if drop.metric == "accuracy" else 1
    return (
        f"{text}: worse by {scale * drop.drop:.3g}{unit}, {words[drop.verdict]} the allowed "
        f"{scale * drop.limit:.3g}{unit}"
    )


def render(result: CompressionResult, console: Console) -> None:
    """Prints stages, the paper's table, rates, notes, and the report on the file that ships.

    Args:
        result: What to print.
        console: Where to print; colours follow the console.
    """
    from rich.text import Text

    from edgecompress.reports.text import render as render_report
    from edgecompress.reports.words import VERDICT_WORDS

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=not console.is_terminal)

    def table(columns: list[Column], rows: list[list[str]], footer: list[str] | None) -> None:
        left_out = print_table(
            console, columns, rows, [Text(cell, "bold") for cell in footer] if footer else None
        )
        if left_out:
            line(f"Left out at this width: {', '.join(left_out)}. --json shows all.", "dim")

    line(f"{result.name}: {result.recipe}", "bold")
    console.print()
    metric = result.drop.metric
    table(list(_STAGE_COLUMNS), [_stage_cells(s, metric) for s in result.stages], None)
    console.print()
    table(
        [column.column for column in LAYER_COLUMNS],
        [[column.cell(layer) for column in LAYER_COLUMNS] for layer in result.layers],
        [column.total(result.totals) for column in LAYER_COLUMNS],
    )
    line(ACCOUNTING, "dim")
    line(NO_SPEED, "dim")
    console.print()
    facts = summary(result)
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        line(f"{name:<{width}}  {text}")
    own = [note for note in result.notes if note not in result.report.notes]
    if own:
        console.print()
    for note in own:
        line(f"Note: {note}", "yellow")
    console.print()
    render_report(result.report, console)
    if result.drop.limit is not None:
        style = "bold red" if result.drop.verdict == "fail" else "green"
        line(f"{_metric_name(result.drop)}: {_drop(result.drop)}.", style)
        line(f"Verdict with it: {VERDICT_WORDS[result.verdict]}", style)


def render_html(result: CompressionResult) -> str:
    """Returns a result as a single HTML page: no scripts, no network, light and dark.

    The same result gives the same bytes.

    Example:
        >>> Path("compression.html").write_text(render_html(result))  # doctest: +SKIP
    """
    import jinja2

    from edgecompress.reports import plots
    from edgecompress.reports.html import page_environment, page_style
    from edgecompress.reports.words import VERDICT_WORDS

    template = page_environment().from_string(
        (resources.files("edgecompress.recipes") / "compression.html.jinja").read_text("utf-8")
    )
    svg = jinja2.utils.markupsafe.Markup
    metric = result.drop.metric
    sizes = _stage_sizes(result)
    return template.render(
        style=page_style(),
        result=result,
        words=VERDICT_WORDS,
        facts=summary(result),
        stage_columns=[c.title for c in _STAGE_COLUMNS],
        stages=[_stage_cells(stage, metric) for stage in result.stages],
        layer_columns=LAYER_COLUMNS,
        layer_groups=[
            (group, len(list(columns)))
            for group, columns in itertools.groupby(LAYER_COLUMNS, lambda column: column.group)
        ],
        layers=[[column.cell(layer) for column in LAYER_COLUMNS] for layer in result.layers],
        totals=[column.total(result.totals) for column in LAYER_COLUMNS],
        accounting=ACCOUNTING,
        no_speed=NO_SPEED,
        stage_sizes=[(t, format_size(size), metric_text(metric, m)) for t, size, m in sizes],
        stage_svg=svg(plots.stage_chart(sizes, metric.replace("_", " "))),
        layer_svg=svg(plots.stacked_chart([(row.name, _bars(row)) for row in result.layers])),
        settings=sorted(result.settings.items()),
    )


def _stage_sizes(result: CompressionResult) -> list[tuple[str, int, float]]:
    """Returns (title, bytes, metric): files if there are any, else the paper's bytes."""
    return [
        (stage.title, size, stage.metric)
        for stage in result.stages
        if (size := stage.file_bytes or stage.stored_bytes) is not None
    ]


def _bars(layer: LayerResult) -> list[tuple[str, dict[str, int]]]:
    """Returns a layer's bars: the bytes of each part in the paper's format, and in the file."""
    stored = layer.storage
    book = stored.codebook_bits // 8
    bars = [
        (
            "P+Q",
            {
                "weights": -(-stored.entries * stored.weight_bits // 8),
                "distances": -(-stored.entries * stored.index_bits // 8),
                "codebook": book,
            },
        ),
        (
            "P+Q+H",
            {
                "weights": -(-stored.huffman_weight_bits // 8),
                "distances": -(-stored.huffman_index_bits // 8),
                "codebook": book,
            },
        ),
    ]
    if layer.file_bytes is not None:
        bars.append((f"file, {layer.coding}", {"file": layer.file_bytes}))
    return bars
