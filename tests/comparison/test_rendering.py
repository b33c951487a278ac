"""Tables of hand-made results, by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgecompress.comparison.rendering import (
    render_html,
    render_markdown,
    row_line,
    table_html,
    table_of,
)
from edgecompress.comparison.results import Cell, ComparisonResult, Made, Subject, merged

_SUBJECT = Subject("net", "accuracy", True, 100, "20 samples of their own", 20)


def _made(row: int, label: str, seed: int, accuracy: float, size: int) -> Made:
    return Made(
        row, label, seed, "k",
        {
            "latency@board": Cell(2000.0, "microseconds", "predicted", "", 1000.0, 3000.0),
            "metric": Cell(accuracy, "share", "measured_host", "tflm"),
            "file_bytes": Cell(size, "bytes", "computed"),
            "flash@board": Cell(None, "bytes", None, reason="It has none."),
        },
        file="rows/k/net_int8.tflite",
    )  # fmt: skip


def _result(*made: Made, rows: int | None = None) -> ComparisonResult:
    return ComparisonResult(_SUBJECT, made, ("board",), len(made) if rows is None else rows, "1")


def test_markdown_of_one_seed() -> None:
    result = _result(_made(0, "a", 0, 0.9, 2048), _made(1, "b|c", 0, 0.75, 1024))
    assert render_markdown(result).splitlines() == [
        "|  | Error, file | File | Latency |",
        "| --- | ---: | ---: | ---: |",
        "| a | 10.00 % | 2.0 KiB | 2.0 ms (1.0 ms to 3.0 ms) |",
        r"| b\|c | 25.00 % | 1.0 KiB | 2.0 ms (1.0 ms to 3.0 ms) |",
        "| *how known* | *measured in tflm* | *computed* | *predicted* |",
        "",
        "- net: 100 training samples; errors and metrics on 20 validation samples (20 samples of "
        "their own).",
        "- Flash on board is not known: It has none.",
    ]
    assert result.exit_code == 0
    assert row_line(result, "a").startswith("a: Error, file 10.00 %; File 2.0 KiB")


def test_seeds_are_averaged_and_their_band_is_that_of_the_error() -> None:
    result = _result(_made(0, "a", 0, 0.9, 1000), _made(0, "a", 1, 0.7, 3000))
    (row,) = table_of(result).rows
    assert row == (
        "a", "20.00 % (10.00 % to 30.00 %)", "2.0 KiB (1000 B to 2.9 KiB)",
        "2.0 ms (1.0 ms to 3.0 ms)",
    )  # fmt: skip


def test_a_value_known_in_another_way_says_so() -> None:
    other = _made(2, "c", 0, 0.5, 1024)
    cells = {**other.cells, "metric": Cell(0.5, "share", "measured_host", "litert")}
    result = _result(
        _made(0, "a", 0, 0.9, 1), _made(1, "b", 0, 0.9, 1), dataclasses.replace(other, cells=cells)
    )
    table = table_of(result)
    assert table.known[1] == "measured in tflm"
    assert [row[1] for row in table.rows] == ["10.00 %", "10.00 %", "50.00 % (measured in litert)"]


def test_rows_that_were_not_made_are_named() -> None:
    failed = Made(1, "b", 0, "", reason="It <b>diverged</b>.")
    result = _result(_made(0, "a", 0, 0.9, 2048), failed)
    assert result.exit_code == 1
    table = table_of(result)
    assert table.rows[1] == ("b", "-", "-", "-")
    assert table.remarks[0] == "b, seed 0, was not made: It <b>diverged</b>."
    for page in (render_html(result), render_markdown(result)):
        assert "<b>diverged" not in page
        assert "&lt;b" in page
    assert json.loads(result.to_json())["missing"] == [
        {"label": "b", "seed": 0, "reason": "It <b>diverged</b>."}
    ]
    assert row_line(result, "b") == "b: not made"


def test_a_table_without_all_its_rows_is_no_success() -> None:
    assert _result(_made(0, "a", 0, 0.9, 1), rows=2).exit_code == 1


def test_other_metrics_are_shown_as_they_are() -> None:
    subject = dataclasses.replace(_SUBJECT, metric="mean_squared_error", higher_is_better=False)
    made = Made(0, "a", 0, "k", {"metric": Cell(0.25, "number", "measured_host", "litert")})
    result = dataclasses.replace(_result(made), subject=subject)
    table = table_of(result)
    assert table.titles == ("", "Mean squared error, file")
    assert table.rows == (("a", "0.25"),)


def test_notebook_shows_the_table_escaped() -> None:
    page = table_html(_result(_made(0, "<i>", 0, 0.9, 1)))
    assert page.startswith("<table><tr><th></th>")
    assert "<i>" not in page


def test_merged_cells() -> None:
    assert merged([Cell(3, "count", "computed")] * 2) == Cell(3, "count", "computed")
    mean = merged(
        [Cell(2, "bytes", "predicted", "", 1, 3), Cell(6, "bytes", "predicted", "", 5, 7)]
    )
    assert (mean.value, mean.low, mean.high) == (4, 1, 7)
    unknown = Cell(None, "bytes", None, reason="no")
    assert merged([unknown, Cell(6, "bytes", "computed")]).value == 6
    assert merged([unknown]) == unknown
    assert pytest.approx(merged([Cell(0.1, "share"), Cell(0.3, "share")]).value) == 0.2
