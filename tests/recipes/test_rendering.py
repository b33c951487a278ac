"""What a run looks like: as text, and as a page that loads nothing and that no name breaks."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from edgecompress.core.units import format_size
from edgecompress.recipes.rendering import (
    LAYER_COLUMNS,
    NO_SPEED,
    metric_text,
    render,
    render_html,
    summary,
)
from edgecompress.recipes.results import CompressionResult, Drop
from edgecompress.recipes.storage import storage
from edgecompress.reports import plots

from .conftest import Run

pytestmark = pytest.mark.slow


def _text(result: CompressionResult, width: int | None = None) -> str:
    out = io.StringIO()
    terminal = width is not None
    render(result, Console(file=out, width=width or 80, force_terminal=terminal, no_color=True))
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


class _Page(HTMLParser):
    """Collects the cells of tables, and complains where a tag is not closed."""

    _VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self._VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src",)]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def _page(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    assert page.open == []
    return page


class TestText:
    def test_every_column_in_a_pipe(self, whole: Run) -> None:
        text = _text(whole.result)
        header = next(line for line in text.splitlines() if line.startswith("Layer"))
        for column in LAYER_COLUMNS:
            assert column.column.title in header
        for layer in whole.result.layers:
            line = next(line for line in text.splitlines() if line.startswith(layer.name))
            assert f"{layer.weights:,}" in line and f"{layer.storage.huffman_bytes:,}" in line
            assert f"{100 * layer.kept_share:.1f}%" in line
        assert NO_SPEED in text
        total = next(line for line in text.splitlines() if line.startswith("Total"))
        assert f"{whole.result.totals.weights:,}" in total

    def test_narrow_terminals_name_what_they_leave_out(self, whole: Run) -> None:
        text = _text(whole.result, width=90)
        assert "Left out at this width:" in text
        assert max(len(line) for line in text.splitlines()) <= 90

    def test_rates(self, whole: Run) -> None:
        totals = whole.result.totals
        facts = dict(summary(whole.result))
        assert facts["Compression rate, weights"].startswith(f"{totals.parameter_rate:.1f}x")
        assert facts["Compression rate, paper's bytes"].startswith(f"{totals.paper_rate:.1f}x")
        assert facts["Compression rate, file"].startswith(f"{totals.file_rate:.1f}x")
        assert facts["Speed-up rate, MACs"].startswith(f"{totals.macs_rate:.1f}x")
        latency = facts["Speed-up rate, predicted latency on nucleo-l4r5zi"]
        assert f"{totals.latency.uncoded_rate:.2f}x uncoded" in latency
        assert f"{totals.latency.rate:.2f}x with decoding" in latency

    def test_the_arena_that_decoding_costs(self, whole: Run) -> None:
        arena = whole.result.totals.arena
        (checked,) = (c for c in whole.result.report.targets[0].checks if c.rule == "arena")
        assert arena.after == checked.measured
        if arena.uncoded is None or arena.after is None:
            raise AssertionError("the arena is not known")
        assert arena.after > arena.uncoded > 0
        fact = dict(summary(whole.result))["Tensor arena on nucleo-l4r5zi"]
        assert format_size(arena.uncoded) in fact
        assert fact.endswith(f"{format_size(arena.after)} with decoded weights")
        assert "Tensor arena on nucleo-l4r5zi" in _text(whole.result)

    def test_the_drop_and_its_verdict(self, whole: Run) -> None:
        def shown(limit: float | None) -> str:
            drop = Drop("accuracy", 0.9, 0.88, 0.02, limit, 50)
            return _text(dataclasses.replace(whole.result, drop=drop))

        assert "90.00 % to 88.00 %" in shown(None) and "Verdict with it" not in shown(None)
        assert "worse by 2 points, within the allowed 3 points." in shown(0.03)
        failed = shown(0.01)
        assert "worse by 2 points, MORE THAN the allowed 1 points." in failed
        assert failed.rstrip().endswith("Verdict with it: FAIL")

    def test_metrics(self) -> None:
        assert metric_text("accuracy", 0.87251) == "87.25 %"
        assert metric_text("mean_squared_error", 0.012345) == "0.01235"

    def test_a_drop_of_exactly_the_limit_is_allowed(self) -> None:
        assert 0.90 - 0.89 > 0.01  # Binary fractions.
        assert Drop("accuracy", 0.90, 0.89, 0.90 - 0.89, 0.01, 100).verdict == "pass"
        assert Drop("accuracy", 0.90, 0.88, 0.90 - 0.88, 0.01, 100).verdict == "fail"
        assert Drop("accuracy", 0.90, 0.10, 0.80, None, 100).verdict == "not_applicable"


class TestPage:
    def test_the_page_shows_the_tables(self, whole: Run) -> None:
        html = (whole.folder / "compression.html").read_text()
        page = _page(html)
        for layer in whole.result.layers:
            cells = [column.cell(layer) for column in LAYER_COLUMNS]
            assert cells in page.rows
        assert [column.total(whole.result.totals) for column in LAYER_COLUMNS] in page.rows
        assert [row[0] for row in page.rows].count("original") == 1
        assert NO_SPEED in html
        # Both charts, drawn into the page.
        assert html.count("<svg") == 2
        for note in whole.result.notes:
            assert note.split(" ")[0] in html

    def test_it_loads_nothing(self, whole: Run) -> None:
        html = (whole.folder / "compression.html").read_text()
        assert "<script" not in html and "@import" not in html
        links = [link for link in _page(html).links if not link.startswith("#")]
        assert set(links) <= {"report.html", "https://arxiv.org/abs/1510.00149"}

    def test_the_same_result_gives_the_same_bytes(self, whole: Run) -> None:
        assert render_html(whole.result) == (whole.folder / "compression.html").read_text()

    def test_names_do_not_break_it(self, whole: Run) -> None:
        evil = '<b>"&$x_{1}$</b>' + "x" * 60
        layers = tuple(dataclasses.replace(layer, name=evil) for layer in whole.result.layers)
        result = dataclasses.replace(
            whole.result,
            name=evil,
            layers=layers,
            totals=dataclasses.replace(whole.result.totals, layers=layers),
            notes=(evil,),
        )
        html = render_html(result)
        assert "<b>" not in html
        assert evil in [cell for row in _page(html).rows for cell in row]
        assert evil[:20] in _text(result)

    def test_unknown_values_are_shown_as_such(self, whole: Run) -> None:
        layer = dataclasses.replace(
            whole.result.layers[0], macs=None, macs_left=None, coding=None, file_bytes=None
        )
        totals = dataclasses.replace(whole.result.totals, layers=(layer,))
        html = render_html(dataclasses.replace(whole.result, layers=(layer,), totals=totals))
        row = next(row for row in _page(html).rows if row[0] == layer.name)
        assert row[-3:] == ["?", "?", "?"]


class TestCharts:
    def test_stacked_bars_say_their_bytes(self) -> None:
        rows = [("fc", [("P+Q", {"weights": 1000, "distances": 24}), ("file", {"file": 2048})])]
        svg = plots.stacked_chart(rows)
        assert "P+Q 1.0 KiB" in svg and "file 2.0 KiB" in svg and "distances" in svg
        assert plots.stacked_chart(rows) == svg

    def test_a_layer_without_bytes(self) -> None:
        assert "fc 0 B" in plots.stacked_chart([("empty", [("fc", {"weights": 0})])])

    def test_stages_with_their_metric(self) -> None:
        svg = plots.stage_chart([("original", 4096, 0.9), ("pruned", 1024, 0.88)], "accuracy")
        assert "4.0 KiB" in svg and "pruned" in svg and "accuracy" in svg


def test_layers_of_zeros_are_shown(whole: Run) -> None:
    layer = dataclasses.replace(whole.result.layers[0], storage=storage(np.zeros(72)))
    cells = [column.cell(layer) for column in LAYER_COLUMNS]
    assert "0.0%" in cells
