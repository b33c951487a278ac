"""The page of a search: the front, what explains it, what it cost, and how to get a point."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgecompress.core.terminal import shown
from edgecompress.reports.html import page_style
from edgecompress.searching.outcome import Point, SearchResult
from edgecompress.searching.rendering import describe, show

if TYPE_CHECKING:
    import jinja2

_LABELS = {"file_size": "file size in bytes", "flash": "flash in bytes",
           "arena": "tensor arena in bytes", "latency": "latency in microseconds",
           "energy": "energy in microjoules"}  # fmt: skip
_COLOURS = {"fits": "#2867b2", "does not fit": "#9aa3ad", "baseline": "#c2571a", "best": "#1a7f37"}


def page(result: SearchResult) -> str:
    """Returns a search as a single HTML page that loads nothing.

    With plotly, its charts are interactive; without, the page has its tables alone and says so.

    Args:
        result: The search.

    Example:
        >>> Path("search.html").write_text(page(result))  # doctest: +SKIP
    """
    described = result.described
    charts = _charts(result)
    return _template().render(
        style=page_style(),
        result=result,
        charts=charts,
        untouched=result.untouched,
        rules=described.rules,
        labels=_LABELS,
        limits=[(rule, show(rule, limit)) for rule, limit in described.limits.items()],
        rows=[_row(result, point) for point in result.points],
        stages=_stages(result),
        techniques=_by_technique(result),
        importance=list(result.importance.items()),
        command=_command(result),
    )


def _row(result: SearchResult, point: Point) -> dict[str, Any]:
    outcome = point.outcome
    return {
        "number": point.number,
        "what": describe(point),
        "metric": None if outcome.metric is None else f"{outcome.metric:.4f}",
        "costs": [show(rule, outcome.costs.get(rule)) for rule in result.described.rules],
        "state": "fits" if outcome.fits else (outcome.reason or "exceeds a limit"),
        "front": point in result.front,
        "best": result.best is not None and point.number == result.best.number,
        "equal": result.choice is not None and point.number in result.choice.equal,
        "seconds": sum(outcome.seconds.values()),
        "settings": point.job.values,
    }


def _stages(result: SearchResult) -> list[dict[str, Any]]:
    """Returns what each training of the best candidate cost and bought, the untouched first."""
    if result.best is None:
        return []
    own = [
        point
        for point in result.points
        if point.outcome.made
        and point.job.values == result.best.job.values
        and point.job.start == result.best.job.start
    ]
    first = [result.untouched] if result.untouched is not None else []
    return [
        {
            "what": describe(point),
            "metric": f"{point.outcome.metric:.4f}",
            "costs": [show(rule, point.outcome.costs.get(rule)) for rule in result.described.rules],
            "parameters": f"{point.outcome.parameters:,}",
            "macs": f"{point.outcome.macs:,}",
            "seconds": {stage: f"{s:.1f}" for stage, s in point.outcome.seconds.items()},
        }
        for point in [*first, *sorted(own, key=lambda point: point.outcome.epochs)]
        if point.outcome.metric is not None
    ]


def _by_technique(result: SearchResult) -> list[tuple[str, float]]:
    """Returns the importance of each technique: that of its knobs together."""
    found: dict[str, float] = {}
    for name, share in result.importance.items():
        technique = name.partition(".")[0]
        found[technique] = found.get(technique, 0.0) + share
    return sorted(found.items(), key=lambda item: -item[1])


def _command(result: SearchResult) -> str:
    """Returns the command of the search, for `--apply` to be added to."""
    return shlex.join(result.argv)


def _charts(result: SearchResult) -> list[str] | None:
    """Returns interactive charts as HTML, the first with the library; None without plotly."""
    try:
        import plotly.graph_objects as go
    except ImportError:
        return None
    figures = [_front_chart(go, result), *_knob_charts(go, result)]
    return [
        figure.to_html(
            full_html=False,
            include_plotlyjs=at == 0,
            div_id=f"chart{at}",
            config={"displaylogo": False, "responsive": True},
        )
        for at, figure in enumerate(figures)
    ]


def _front_chart(go: Any, result: SearchResult) -> Any:
    """The metric against a cost, which a menu chooses."""
    described = result.described
    groups = _groups(result)
    figure = go.Figure()
    for name, points in groups.items():
        figure.add_scatter(
            x=[point.outcome.costs.get(described.rules[0]) for point in points],
            y=[point.outcome.metric for point in points],
            mode="markers",
            name=name,
            marker={"color": _COLOURS[name], "size": 14 if name == "best" else 9,
                    "symbol": "star" if name == "best" else "circle"},
            text=[_hover(result, point) for point in points],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    buttons = [
        {
            "label": rule.replace("_", " "),
            "method": "update",
            "args": [
                {"x": [[p.outcome.costs.get(rule) for p in points] for points in groups.values()]},
                {"xaxis.title.text": _LABELS.get(rule, rule), "shapes": _limit_line(result, rule)},
            ],
        }
        for rule in described.rules
    ]
    figure.update_layout(
        template="plotly_white",
        height=480,
        margin={"t": 88, "r": 16},
        xaxis={"title": _LABELS.get(described.rules[0], described.rules[0])},
        yaxis={"title": shown(described.metric)},
        shapes=_limit_line(result, described.rules[0]),
        # Above the legend; plotly's own buttons appear at the right.
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.26}],
        legend={"orientation": "h", "y": 1.1},
    )
    return figure


def _groups(result: SearchResult) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {"does not fit": [], "fits": [], "baseline": [], "best": []}
    for point in result.points:
        if not point.outcome.made:
            continue
        if result.best is not None and point.number == result.best.number:
            found["best"].append(point)
        elif point.job.start != "parent":
            found["baseline"].append(point)
        else:
            found["fits" if point.outcome.fits else "does not fit"].append(point)
    return {name: points for name, points in found.items() if points}


def _limit_line(result: SearchResult, rule: str) -> list[dict[str, Any]]:
    limit = result.described.limits.get(rule)
    whole = result.untouched
    # A limit far beyond every candidate, such as the whole flash of a board, would flatten them.
    if limit is None or whole is None or limit > 2 * whole.outcome.costs.get(rule, 0.0):
        return []
    return [
        {"type": "line", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "yref": "paper",
         "line": {"dash": "dot", "color": "#c2571a"}}
    ]  # fmt: skip


def _hover(result: SearchResult, point: Point) -> str:
    outcome = point.outcome
    lines = [f"<b>{point.number}</b>: {describe(point)}", f"{outcome.metric:.4f}"]
    lines += [f"{rule} {show(rule, outcome.costs.get(rule))}" for rule in result.described.rules]
    lines += [f"{name} {_short(value)}" for name, value in point.job.values.items()]
    return "<br>".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _knob_charts(go: Any, result: SearchResult) -> Sequence[Any]:
    """The importance of knobs, and every candidate as a line over them."""
    figures = []
    if result.importance:
        names = list(result.importance)[::-1]
        figure = go.Figure(
            go.Bar(x=[result.importance[name] for name in names], y=names, orientation="h",
                   marker={"color": _COLOURS["fits"]})
        )  # fmt: skip
        figure.update_layout(
            template="plotly_white", height=80 + 24 * len(names),
            margin={"t": 40, "r": 16, "l": 200},
            xaxis={"title": "share of the variance of the metric"},
        )  # fmt: skip
        figures.append(figure)
    made = [p for p in result.points if p.outcome.made and p.job.start == "parent"]
    if len(made) > 1:
        dimensions = [_dimension(knob, made) for knob in result.described.knobs]
        dimensions.append(
            {"label": result.described.metric, "values": [p.outcome.metric for p in made]}
        )
        figure = go.Figure(
            go.Parcoords(
                dimensions=dimensions,
                line={"color": [p.outcome.metric for p in made], "colorscale": "Viridis"},
                labelangle=-20,
            )
        )
        figure.update_layout(
            template="plotly_white", height=460, margin={"t": 130, "b": 24},
            title="Each line is a candidate, from its settings to its metric (drawn with WebGL)",
        )  # fmt: skip
        figures.append(figure)
    return figures


def _dimension(knob: Any, points: Sequence[Point]) -> dict[str, Any]:
    values = [point.job.values.get(knob.name, knob.default) for point in points]
    if not knob.choices:
        return {"label": knob.name, "values": values, "range": [knob.low, knob.high]}
    places = list(range(len(knob.choices)))
    return {
        "label": knob.name,
        "values": [knob.choices.index(value) for value in values],
        "tickvals": places,
        "ticktext": [str(choice) for choice in knob.choices],
        "range": [0, max(1, len(places) - 1)],
    }


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = (
        resources.files("edgecompress.searching").joinpath("search.html.jinja").read_text("utf-8")
    )
    return environment.from_string(text)
