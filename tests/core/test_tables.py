"""Tables leave columns out where a terminal is narrow, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgecompress.core.tables import Column, print_table

_COLUMNS = (Column("Name", left=True, widest=8), Column("Much", drop=1), Column("More", drop=2))
_ROWS = [["convolution", "1", "x" * 20], ["b", "22", "y"]]


def _print(width: int, terminal: bool, footer: list[str] | None = None) -> tuple[str, tuple]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, no_color=True)
    left_out = print_table(console, _COLUMNS, _ROWS, footer)
    assert console.width == width
    return out.getvalue(), left_out


@pytest.mark.parametrize(
    ("width", "left_out"), [(80, ()), (37, ()), (36, ("More",)), (14, ("Much", "More")),
                            (2, ("Much", "More"))],
)  # fmt: skip
def test_terminal(width: int, left_out: tuple[str, ...]) -> None:
    text, titles = _print(width, terminal=True)
    assert titles == left_out
    assert ("x" * 20 in text) == ("More" not in left_out)


def test_a_pipe_gets_everything() -> None:
    text, left_out = _print(10, terminal=False)
    assert left_out == ()
    assert "x" * 20 in text and "\x1b" not in text


def test_long_texts_are_cut_where_asked() -> None:
    text, _ = _print(80, terminal=False)
    assert "convolu\u2026" in text and "convolution" not in text


def test_footer_comes_last() -> None:
    text, _ = _print(80, terminal=False, footer=["Total", "23", ""])
    assert text.rstrip().splitlines()[-1].split() == ["Total", "23"]
    assert "Total" not in _print(80, terminal=False)[0]


def test_no_rows() -> None:
    out = io.StringIO()
    assert print_table(Console(file=out), _COLUMNS, []) == ()
    assert out.getvalue().split()[:3] == ["Name", "Much", "More"]
