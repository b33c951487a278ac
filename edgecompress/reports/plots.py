"""The report's charts as SVG that is inlined in the page, most of them drawn by matplotlib.

Colours are CSS variables, so that the page's light and dark schemes also apply to the charts, and
text stays text. The same data give the same bytes.
"""

from __future__ import annotations

import html
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import shown
from edgecompress.core.units import format_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from edgecompress.reports.figures import MemoryMap

# matplotlib does not support CSS variables: it draws with placeholders that are replaced in the
# SVG.
COLOURS = {
    "ink": "#010203",
    "muted": "#020304",
    "grid": "#030405",
    "paper": "#040506",
    "c1": "#050607",
    "c2": "#060708",
    "c3": "#070809",
    "c4": "#08090a",
    "c5": "#090a0b",
    "c6": "#0a0b0c",
}
_SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")
_DASHES = ("-", "--", ":", "-.")
# Inches; 9-point text is still legible at a phone's width.
_WIDTH = 5.6
_TEXT = 9
# More curves than this in one chart cannot be distinguished.
_MOST_CURVES = 8


def _style(colours: Mapping[str, str]) -> dict[Any, Any]:
    """Returns matplotlib's settings."""
    return {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": _TEXT,
        "text.color": colours["ink"],
        # Layer names may contain dollar signs.
        "text.parse_math": False,
        "axes.edgecolor": colours["grid"],
        "axes.labelcolor": colours["muted"],
        "axes.titlesize": _TEXT,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "xtick.color": colours["muted"],
        "ytick.color": colours["muted"],
        "grid.color": colours["grid"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.labelcolor": colours["ink"],
    }


def svg(figure: Figure, name: str) -> str:
    """Returns the figure as an SVG element for the inside of a page."""
    import io

    out = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text with its own fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for variable, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{variable})")
    # Ids of several charts share one page.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    # The page sets the width; text next to the chart describes it.
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    # The page sets fonts, but not sizes.
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


@contextmanager
def drawing(height: float, salt: str, colours: Mapping[str, str] = COLOURS) -> Iterator[Figure]:
    """Yields a figure as wide as the page, in its style.

    Args:
        height: In inches.
        salt: Makes its ids its own.
        colours: As those of the page, by the names of its variables. Defaults to the page's.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Without a fixed salt, ids would differ in every run.
    with rc_context({**_style(colours), "svg.hashsalt": salt}):
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def size_chart(sizes: Sequence[tuple[str, int, int | None]]) -> str:
    """Returns bars of file sizes.

    Every report has this chart. It is written without matplotlib, whose import would cost as much
    time as the rest of the report.

    Args:
        sizes: (name, bytes, compressed bytes or None) of each file.
    """
    width, row, bar = 72 * _WIDTH, 48, 20
    names = [cut_text(name, 28) for name, _, _ in sizes]
    # The browser's font is unknown: 0.62 em is a wide average.
    start = 6 + max(len(name) for name in names) * 0.62 * _TEXT
    # Leaves room for the longest text beside the longest bar.
    scale = (width - start) / (1.45 * max(1, *(size for _, size, _ in sizes)))
    parts = []
    for place, (name, (_, size, compressed)) in enumerate(zip(names, sizes, strict=True)):
        top = place * row + 4
        parts.append(_text(start - 4, top + bar, name, "ink", "end"))
        bars = [(size, format_size(size), "c1", "ink")]
        if compressed is not None:
            bars.append((compressed, f"{format_size(compressed)} compressed", "c2", "muted"))
        for number, (value, label, colour, ink) in enumerate(bars):
            y = top + number * bar
            parts.append(
                f'<rect x="{start:.1f}" y="{y}" width="{value * scale:.1f}" height="{bar - 1}" '
                f'style="fill: var(--{colour})"/>'
            )
            parts.append(_text(start + value * scale + 4, y + bar / 2, label, ink, "start"))
    height = row * len(sizes)
    parts.append(
        f'<path d="M {start:.1f} 0 V {height}" '
        'style="fill: none; stroke: var(--grid); stroke-width: 0.8"/>'
    )
    return (
        f'<svg aria-hidden="true" focusable="false" viewBox="0 0 {width:.1f} {height}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    """Returns a text element whose middle line is at `y`."""
    return (
        f'<text x="{x:.1f}" y="{y + 0.35 * _TEXT:.1f}" style="font-size: {_TEXT}px; '
        f'text-anchor: {anchor}; fill: var(--{colour})">{html.escape(shown(text))}</text>'
    )


def _beside(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=COLOURS[colour],
    )


def curves(history: Mapping[str, Sequence[float | None]]) -> str:
    """Returns training curves: one chart each for sparsity, losses, and everything else.

    Args:
        history: Name -> values; None and non-finite values leave a gap.
    """
    from matplotlib.ticker import MaxNLocator

    groups = _curve_groups(history)
    drawn = [names[:_MOST_CURVES] for names in groups.values()]
    columns = [max(1, min(3, 60 // (6 + max(len(_label(n)) for n in names)))) for names in drawn]
    # A chart grows with the lines of its legend.
    heights = [
        1.9 + 0.17 * (math.ceil(len(names) / wide) - 1)
        for names, wide in zip(drawn, columns, strict=True)
    ]
    with drawing(sum(heights), "curves") as figure:
        charts = figure.subplots(len(groups), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, names), wide in zip(charts, groups.items(), columns, strict=True):
            for order, name in enumerate(names[:_MOST_CURVES]):
                values = [math.nan if v is None else float(v) for v in history[name]]
                axes.plot(
                    range(1, len(values) + 1),
                    values,
                    color=COLOURS[_SERIES[order % len(_SERIES)]],
                    linestyle=_DASHES[order % len(_DASHES)],
                    linewidth=1.6,
                    marker="o" if len(values) < 3 else "",
                    markersize=3,
                    label=_label(name),
                )
            more = len(names) - _MOST_CURVES
            title = cut_text(title, 24)
            axes.set_title(f"{title} ({more} more not drawn)" if more > 0 else title)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.legend(
                loc="lower right",
                bbox_to_anchor=(1.0, 1.0),
                ncols=wide,
                fontsize=8,
                borderaxespad=0,
            )
        axes.set_xlabel("epoch or logged step")
        return svg(figure, "curves")


def _label(name: str) -> str:
    return cut_text(name, 30)


def _curve_groups(history: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Returns title -> names: curves of one kind and scale share a chart."""
    groups: dict[str, list[str]] = {}
    for name in history:
        base = name.lower().removeprefix("val_")
        if "sparsity" in base:
            title = "sparsity"
        elif "loss" in base:
            title = "loss"
        elif "acc" in base:
            title = "accuracy"
        else:
            title = base
        groups.setdefault(title, []).append(name)
    return groups


def memory_chart(memory: MemoryMap) -> str:
    """Returns the memory map: operators to the right, addresses upwards, one box per buffer.

    Args:
        memory: The memory layout.
    """
    from matplotlib.patches import Rectangle as Box
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    name = re.sub(r"\W+", "-", f"map-{memory.title}")
    with drawing(3.2, name) as figure:
        axes = figure.subplots()
        length, height = memory.length, memory.height
        for order, box in enumerate(memory.rectangles):
            first = max(box.first_op, 0)
            width = box.last_op - first + 1
            axes.add_patch(
                Box(
                    (first - 0.5, box.offset),
                    width,
                    box.bytes,
                    facecolor=COLOURS[_SERIES[order % len(_SERIES)]],
                    edgecolor=COLOURS["paper"],
                    linewidth=0.8,
                    alpha=0.85,
                )
            )
            # A label that does not fit is left to the table below the chart.
            room = int(width / length * 75)
            label = box.label or box.name
            if box.bytes > 0.05 * height and room >= min(len(label), 5):
                axes.text(
                    first - 0.5 + width / 2,
                    box.offset + box.bytes / 2,
                    cut_text(label, room),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=COLOURS["paper"],
                    clip_on=True,
                )
        if memory.peak_operator is not None:
            peak = memory.peak_operator
            axes.plot([peak, peak], [0, 1.02 * height], ":", color=COLOURS["ink"], linewidth=0.8)
            axes.text(peak, 1.03 * height, "peak", ha="center", va="bottom", fontsize=7)
        axes.set_xlim(-0.5, length - 0.5)
        axes.set_ylim(0, 1.1 * height)
        axes.set_xlabel("operator")
        # Three to six lines at round numbers of KiB.
        axes.yaxis.set_major_locator(MultipleLocator(2 ** math.floor(math.log2(height / 3))))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: format_size(size)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        return svg(figure, name)


def cut_text(text: str, length: int) -> str:
    """Returns a text of at most `length` characters."""
    return text if len(text) <= length else text[: max(length - 1, 1)] + "\u2026"


def stacked_chart(rows: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, int]]]]]) -> str:
    """Returns stacked bars of bytes: a group of bars per layer, and each bar's parts.

    Args:
        rows: (layer, bars), each bar (label, part -> bytes).
    """
    from matplotlib.patches import Patch

    parts = list(dict.fromkeys(p for _, bars in rows for _, sizes in bars for p in sizes))
    colours = {part: COLOURS[_SERIES[i % len(_SERIES)]] for i, part in enumerate(parts)}
    most = max(len(bars) for _, bars in rows)
    with drawing(0.6 + (0.2 * most + 0.14) * len(rows), "layers") as figure:
        axes = figure.subplots()
        longest = max((sum(sizes.values()) for _, bars in rows for _, sizes in bars), default=0)
        places = []
        for row, (_, bars) in enumerate(rows):
            places.append(row * (most + 0.7) + (len(bars) - 1) / 2)
            for number, (label, sizes) in enumerate(bars):
                place, start = row * (most + 0.7) + number, 0
                for part, size in sizes.items():
                    axes.barh(place, size, 0.84, left=start, color=colours[part])
                    start += size
                _beside(axes, start, place, f"{label} {format_size(start)}", "muted")
        axes.set_yticks(places, [cut_text(name, 28) for name, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.set_xlim(0, 1.4 * max(longest, 1))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.invert_yaxis()
        axes.legend(
            handles=[Patch(color=colours[part], label=part) for part in parts],
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(parts),
            fontsize=8,
            borderaxespad=0,
        )
        return svg(figure, "layers")


def stage_chart(stages: Sequence[tuple[str, int, float]], metric: str) -> str:
    """Returns the size of each stage as bars, and the metric as a line.

    Args:
        stages: (title, bytes, metric) of each stage, in order.
        metric: Name of the metric.
    """
    with drawing(0.7 + 0.34 * len(stages), "stages") as figure:
        bars, line = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        places = range(len(stages))
        longest = max(size for _, size, _ in stages)
        for place, (_, size, _) in enumerate(stages):
            bars.barh(place, size, 0.6, color=COLOURS["c1"])
            _beside(bars, size, place, format_size(size), "ink")
        bars.set_yticks(places, [cut_text(title, 24) for title, _, _ in stages])
        bars.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        bars.set_xlim(0, 1.45 * longest)
        bars.set_xticks([])
        bars.spines["bottom"].set_visible(False)
        bars.invert_yaxis()
        values = [value for _, _, value in stages]
        line.plot(values, places, color=COLOURS["c2"], marker="o", markersize=4, linewidth=1.4)
        line.set_title(cut_text(metric, 24))
        line.tick_params(axis="y", length=0)
        line.grid(axis="x")
        line.margins(x=0.25)
        line.locator_params(axis="x", nbins=3)
        line.spines["left"].set_visible(False)
        return svg(figure, "stages")
