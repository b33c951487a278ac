"""Checks of single arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgecompress.core.arguments import check_between, check_number, check_positive, check_whole
from edgecompress.core.errors import ArgumentError


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_whole, 0, [-1, 1.0, True, "1", None, np.float32(1), float("nan")]),
        (check_positive, 0.5, [0, -1, True, "1", None, float("nan"), float("inf")]),
        (check_number, -0.5, [True, "1", None, float("nan"), float("inf")]),
        (check_between, 0.5, [0, 1, -1, True, "0.5", None, float("nan")]),
    ],
)
def test_refuses_what_breaks_the_rule(
    check: Callable[[str, Any], Any], good: Any, bad: list[Any]
) -> None:
    assert check("a", good) == good
    for value in bad:
        with pytest.raises(ArgumentError, match="`a` must be a"):
            check("a", value)


def test_numbers_of_numpy_become_plain_ones() -> None:
    whole, share = check_whole("a", np.int64(3), 3), check_between("a", np.float32(0.5))
    assert (type(whole), type(share)) == (int, float)
    with pytest.raises(ArgumentError, match="4 or more"):
        check_whole("a", np.int64(3), 4)
