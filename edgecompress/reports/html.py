"""A report as a single HTML page without scripts or network access."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.results import Report
from edgecompress.core.terminal import shown
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.reports import sensitivity
from edgecompress.reports.figures import (
    Comparison,
    MemoryMap,
    compare,
    gauge,
    layer_bars,
    memory_maps,
    operator_latency,
    sizes,
    sqnr_bars,
    time_bars,
)
from edgecompress.reports.words import (
    VERDICT_WORDS,
    band_text,
    format_value,
    limit_text,
    percent_text,
    remarks,
    used_share,
)

if TYPE_CHECKING:
    import jinja2

    from edgecompress.targets.profile import TargetProfile


def render_html(
    report: Report,
    *,
    inspection: Any = None,
    flat: FlatModel | None = None,
    profiles: Sequence[TargetProfile] = (),
    options: Mapping[str, Any] | None = None,
    baseline: Report | None = None,
    comparison: Sequence[Comparison] = (),
    history: Mapping[str, Sequence[float | None]] | None = None,
    memory: Sequence[MemoryMap] = (),
    latency: Mapping[str, Sequence[tuple[str, float]]] | None = None,
    layers: Sequence[tuple[str, float | None]] = (),
    title: str | None = None,
) -> str:
    """Returns a report as a single HTML page: no scripts, no network, light and dark, print styles.

    The same arguments give the same bytes.

    Args:
        report: What to show.
        inspection: `edgecompress.inspection.Inspection` of the checked file: the layer table.
        flat: The checked file; with `profiles` it gives memory maps and latency per operator.
        profiles: Profiles of the targets.
        options: Name -> value of the options of families of targets.
        baseline: An earlier report to compare with.
        comparison: Further lines of the before/after table.
        history: Training curves, name -> values by epoch or logged step.
        memory: Memory maps in addition to those made from `flat`.
        latency: Target -> (operator, microseconds) in addition to those made from `flat`.
        layers: Layer -> signal-to-quantization-noise ratio against the Keras model, in dB; None
            or infinite where the layer agrees exactly.
        title: The page's title. Defaults to the model's file name.

    Example:
        >>> Path("report.html").write_text(render_html(report))  # doctest: +SKIP
    """
    import jinja2

    from edgecompress.reports import plots

    maps = [*memory, *memory_maps(flat, profiles, options or {})]
    times = {**(latency or {}), **operator_latency(flat, profiles, options or {})}
    compared = [*(compare(baseline, report) if baseline else ()), *comparison]
    files = sizes(report, baseline)
    curves = {name: list(values) for name, values in (history or {}).items() if len(values)}
    svg = jinja2.utils.markupsafe.Markup
    return _page_template().render(
        style=page_style(),
        title=title or Path(report.model.path).name,
        report=report,
        words=VERDICT_WORDS,
        gauges={t.name: [gauge(check) for check in t.checks] for t in report.targets},
        comparison=compared,
        sizes=files,
        sizes_svg=svg(plots.size_chart(files)) if len(files) > 1 else None,
        inspection=inspection,
        layer_bars=layer_bars(inspection),
        curves_svg=svg(plots.curves(curves)) if curves else None,
        curves=[(name, values[0], values[-1]) for name, values in curves.items()],
        maps=[(m, svg(plots.memory_chart(m))) for m in maps if m.rectangles],
        latency=[(name, time_bars(rows)) for name, rows in times.items() if rows],
        sqnr=sqnr_bars(layers),
        sensitivity=_sensitivity(report),
    )


def _sensitivity(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the tables on single layers: caption, headings, rows."""
    found = report.sensitivity
    if found is None:
        return []
    return [
        (
            f"Signal-to-noise ratio of the outputs on {found.samples} samples, each layer rounded "
            "alone, the most damaging first.",
            sensitivity.damage_columns(found),
            sensitivity.damage_rows(found),
        ),
        (
            "Files with layers kept more exact.",
            sensitivity.choice_columns(found),
            sensitivity.choice_rows(found),
        ),
    ]


@functools.cache
def _page_template() -> jinja2.Template:
    """Returns the compiled page, which takes longer to compile than to fill."""
    environment = page_environment()
    own: dict[str, Callable[..., Any]] = {
        "band": band_text,
        "limit": limit_text,
        "used": used_share,
        "how": lambda known: (known or "").replace("_", " on "),
        "remarks": remarks,
        "pairs": _pairs,
    }
    environment.filters |= own
    return environment.from_string(
        (resources.files("edgecompress.reports") / "report.html.jinja").read_text("utf-8")
    )


def page_environment() -> jinja2.Environment:
    """Returns the page's template environment: everything is escaped, undefined names are errors.

    Unprintable characters are shown as by `core.terminal.shown`.

    Filters: `value` (a number and its unit as text), `percent` and `number`.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        # Only what this package drew is markup; everything else may be a name from a file.
        finalize=lambda value: shown(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "percent": percent_text,
        "number": lambda value: "?" if value is None else f"{value:,}",
    }
    return environment


def page_style() -> str:
    """Returns the style sheet of all pages, for the inside of `<style>`."""
    import jinja2

    text = (resources.files("edgecompress.reports") / "page.css").read_text("utf-8")
    return jinja2.utils.markupsafe.Markup(text.rstrip("\n"))


def _pairs(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a check's detail as lines of text."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return "; ".join(text(item) for item in value)
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "not known"}[value]
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return [(key.replace("_", " "), text(value)) for key, value in detail.items()]
