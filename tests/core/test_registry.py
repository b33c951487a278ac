"""The registry refuses double names and helps with unknown ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgecompress.core.errors import UnknownNameError
from edgecompress.core.registry import Registry


@pytest.fixture
def schedules() -> Registry[Callable[[int], float]]:
    registry: Registry[Callable[[int], float]] = Registry("schedule")
    registry.register("constant")(lambda step: 0.5)
    registry.register("polynomial")(lambda step: step / 10)
    return registry


def test_names_in_the_order_of_registration(schedules: Registry) -> None:
    assert list(schedules) == ["constant", "polynomial"]
    assert len(schedules) == 2
    assert schedules["polynomial"](5) == 0.5


def test_decorator_returns_its_object(schedules: Registry) -> None:
    def mine(step: int) -> float:
        return 0.0

    assert schedules.register("mine")(mine) is mine
    assert schedules["mine"] is mine


def test_double_name_is_refused_and_the_first_stays(schedules: Registry) -> None:
    first = schedules["constant"]
    with pytest.raises(ValueError, match="schedule 'constant' is registered twice"):
        schedules.register("constant")(lambda step: 1.0)
    assert schedules["constant"] is first


def test_unknown_name_offers_the_nearest(schedules: Registry) -> None:
    with pytest.raises(UnknownNameError, match=r"`schedule`.*'polinomial'.*mean polynomial\?"):
        schedules["polinomial"]


def test_asking_is_not_an_error(schedules: Registry) -> None:
    assert "nothing" not in schedules and "constant" in schedules
    assert schedules.get("nothing") is None
    assert schedules.get("nothing", 7) == 7
