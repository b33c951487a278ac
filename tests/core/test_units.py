"""Sizes and times as people write them."""

from __future__ import annotations

import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.core.units import format_size, format_time, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("96KiB", 98304),
        ("96 kib", 98304),
        ("96K", 98304),
        ("64kB", 64000),
        ("1.5MiB", 1572864),
        ("2M", 2097152),
        ("2MB", 2000000),
        ("1GiB", 1 << 30),
        (".5KiB", 512),
        ("1.KiB", 1024),
        ("98304", 98304),
        (98304, 98304),
        ("98304 B", 98304),
        (" 7b ", 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "0KiB", "-5KiB", "KiB", "1,5MiB", "96 KiB RAM", "1e3", "1.5", "0.5", "nan", "inf",
     "9" * 400 + "KiB", "96TiB", "0.0001KiB", -1, True, "1KiB 2KiB"],
)  # fmt: skip
def test_no_sizes(text: str | int) -> None:
    with pytest.raises(ArgumentError, match=r"`--max-ram` must be a positive size such as 96KiB"):
        parse_size(text, "--max-ram")


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("60ms", 60_000),
        ("800us", 800),
        ("800 \u00b5s", 800),  # micro sign
        ("800 \u03bcs", 800),  # Greek letter
        ("1.5s", 1_500_000),
        ("0.25 MS", 250),
    ],
)
def test_times(text: str, microseconds: float) -> None:
    assert parse_time(text) == microseconds


@pytest.mark.parametrize("text", ["60", 60, 60.0, "0ms", "-1ms", "60 min", "ms", "", "1h", "inf s"])
def test_no_times(text: str | float) -> None:
    with pytest.raises(ArgumentError, match=r"`--max-latency` must be a positive time with a unit"):
        parse_time(text, "--max-latency")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (98304, "96.0 KiB"), (1 << 20, "1.00 MiB"),
     (655360, "640.0 KiB"), (6 << 30, "6.00 GiB")],
)  # fmt: skip
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [(0.25, "0.2 us"), (999.0, "999.0 us"), (60_000, "60.0 ms"), (2_500_000, "2.50 s")],
)
def test_format_time(time: float, text: str) -> None:
    assert format_time(time) == text


@pytest.mark.parametrize("size", [1, 512, 98304, 1 << 20, 3 << 29])
def test_what_is_printed_can_be_typed_in(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    "value",
    ["1e999GiB", "9" * 5000, "9" * 5000 + "KiB", "9" * 30 + "GiB", 2**63,
     pytest.param(10**5000, id="digits")],
)  # fmt: skip
def test_sizes_beyond_all_memory_are_refused_in_one_line(value: object) -> None:
    with pytest.raises(ArgumentError, match="positive size") as caught:
        parse_size(value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "value", ["9" * 400 + "s", "9" * 5000 + "ms", pytest.param(10**5000, id="digits"), "1e999s"]
)
def test_times_beyond_all_patience_are_refused_in_one_line(value: object) -> None:
    with pytest.raises(ArgumentError, match="positive time") as caught:
        parse_time(value)
    assert len(str(caught.value)) < 700


def test_sizes_of_any_number_of_digits_have_a_text() -> None:
    assert format_size(10**5000) == format_size(2**63) == "more than 8 EiB"
