"""The registry refuses double names and helps with unknown ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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


def test_the_home_is_imported_on_the_first_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    shelf = Registry("book", home="the_home_of_books")
    # What cannot be imported is not forgotten: a half-filled registry would be wrong in silence.
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="the_home_of_books"):
            list(shelf)
    (tmp_path / "the_home_of_books.py").write_text(
        "import gc\n"
        "from edgecompress.core.registry import Registry\n"
        "(shelf,) = [r for r in gc.get_objects()\n"
        "            if isinstance(r, Registry) and r._argument == 'book']\n"
        "shelf.register('one')(1)\n"
    )
    assert dict(shelf) == {"one": 1}
