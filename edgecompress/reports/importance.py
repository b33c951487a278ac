"""A picture of what pruning under a budget cut: the filters of each layer, sorted."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.core.errors import ArgumentError
from edgecompress.core.importance import FilterImportance, Importance
from edgecompress.core.terminal import shown
from edgecompress.reports.html import page_style
from edgecompress.reports.plots import COLOURS, cut_text, drawing, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_FORMATS = (".html", ".svg", ".png")
# Outside a page, whose style sheet has them, colours are those of a light page.
_LIGHT = {
    "ink": "#16191d",
    "muted": "#59616b",
    "grid": "#d9dde2",
    "paper": "#ffffff",
    "c1": "#2867b2",
    "c2": "#c2571a",
}


def plot_importance(importance: Importance, path: str | Path) -> Path:
    """Draws the importance of the filters of every layer for what they save, and the cut.

    One panel for each layer: a bar for each filter that could be removed, the least important
    first, in one colour if it stays and in another if it goes. The line is where the last round
    cut; filters that went in earlier rounds have the importance of that round.

    Args:
        importance: `ChannelPruning.importance`, or that of a `GroupLasso` with a budget.
        path: Where to write it: a .html page, or a .svg or .png picture.

    Returns:
        The path.

    Raises:
        ArgumentError: the path has another ending, or there is nothing to draw.

    Example:
        >>> plot_importance(pruning.importance, "importance.html")  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ArgumentError("path", f"end in {', '.join(_FORMATS)}", str(path))
    if not isinstance(importance, Importance) or not importance.filters:
        rule = "be the importance of a callback after `fit`"
        raise ArgumentError("importance", rule, importance, "Use pruning.importance.")
    as_page = path.suffix == ".html"
    colours = COLOURS if as_page else _LIGHT
    layers = importance.by_layer()
    rows = math.ceil(len(layers) / _COLUMNS)
    with drawing(0.5 + 1.35 * rows, "importance", colours) as figure:
        _draw(figure, importance, layers, rows, colours)
        if not as_page:
            figure.savefig(path, dpi=160, facecolor=colours["paper"], metadata={"Date": None}
                           if path.suffix == ".svg" else None)  # fmt: skip
            return path
        picture = svg(figure, "importance")
    path.write_text(_page(importance, layers, picture), encoding="utf-8")
    return path


def _draw(
    figure: Figure,
    importance: Importance,
    layers: Mapping[str, list[FilterImportance]],
    rows: int,
    colours: Mapping[str, str],
) -> None:
    columns = min(_COLUMNS, len(layers))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    positive = [x.rank for x in importance.filters if 0 < x.rank < math.inf]
    lowest = min(positive, default=1.0) / 2
    for place, axes in enumerate(panels.flat):
        if place >= len(layers):
            axes.axis("off")
            continue
        layer, filters = list(layers.items())[place]
        _panel(axes, layer, filters, lowest, importance.cut, colours)
    figure.supylabel("importance / saving", color=colours["muted"], fontsize=8)
    figure.legend(
        handles=_handles(colours, importance.cut is not None),
        loc="outside upper left",
        ncols=3,
        fontsize=8,
    )


def _panel(
    axes: Axes,
    layer: str,
    filters: list[FilterImportance],
    lowest: float,
    cut: float | None,
    colours: Mapping[str, str],
) -> None:
    heights = [max(x.rank, lowest) if x.rank < math.inf else lowest for x in filters]
    shades = [colours["c1" if x.kept else "c2"] for x in filters]
    axes.bar(range(len(filters)), heights, 0.9, color=shades, bottom=0)
    if cut is not None:
        axes.axhline(max(cut, lowest), color=colours["ink"], linewidth=0.9, linestyle="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_ylim(bottom=lowest * 0.9)
    axes.set_xticks([])
    axes.grid(axis="y")
    kept = sum(x.kept for x in filters)
    axes.set_title(f"{cut_text(layer, 18)}  {kept}/{len(filters)}", fontsize=8)


def _handles(colours: Mapping[str, str], cut: bool) -> list[object]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[object] = [
        Patch(color=colours["c1"], label="stays"),
        Patch(color=colours["c2"], label="goes"),
    ]
    if cut:
        line = Line2D([], [], color=colours["ink"], linewidth=0.9, linestyle="--", label="cut")
        handles.append(line)
    return handles


def _page(
    importance: Importance, layers: Mapping[str, list[FilterImportance]], picture: str
) -> str:
    def text(value: object) -> str:
        return html.escape(shown(value))

    lines = [
        f"{name}: {before:,.0f} to {after:,.0f} {importance.units[name]}"
        for name, (before, after) in importance.costs.items()
    ]
    table = "".join(
        f"<tr><td>{text(layer)}</td><td>{sum(x.kept for x in own)}</td><td>{len(own)}</td></tr>"
        for layer, own in layers.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Importance</title>'
        f"<style>{page_style()}</style></head><body><main><h1>{text(importance.budget)}</h1>"
        f"<p>{text('; '.join(lines))}</p>{picture}"
        "<table><thead><tr><th>layer</th><th>stay</th><th>could go</th></tr></thead>"
        f"<tbody>{table}</tbody></table></main></body></html>\n"
    )
