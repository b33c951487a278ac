"""Several workers of one study: who trains what longer, and what ends in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.searching.knobs import Knob
from edgecompress.searching.results import (
    FROM_PARENT,
    UNTOUCHED,
    Beginning,
    Described,
    Job,
    Outcome,
)
from edgecompress.searching.runner import _in_time, _next, _reserve_s
from edgecompress.searching.study import Study

DESCRIBED = Described(
    (Knob("c.share", 0.5, low=0.1, high=1.0),), {}, "accuracy", True, "basis", ("arena",), {},
    True, 1.0, 1.0,
)  # fmt: skip


@pytest.fixture
def shared(tmp_path: Path) -> tuple[Study, Study]:
    """Two workers; the first has trained three candidates for an epoch, the second works."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first, second = (Study(url, folder, None, DESCRIBED, "random", 0, 3) for folder in folders)
    assert first.claim_beginning()
    first.begin(Beginning(({"c.share": 0.5}, {"c.share": 0.6}, {"c.share": 0.7})))
    while first.waiting:
        number, job = first.propose(closing=False, beyond=False)
        first.finish(number, _outcome(job, 0.5 + number / 100))
    return first, second


def _outcome(job: Job, metric: float, seconds: float = 1.0) -> Outcome:
    return Outcome(
        job.key("basis"), job.start, job.epochs, metric, costs={"arena": 10.0},
        excess={"arena": -0.1}, seconds={"train": seconds * job.epochs, "export": 2.0}, sha256="x",
    )  # fmt: skip


def test_the_best_is_trained_longer_by_who_has_it(shared: tuple[Study, Study]) -> None:
    first, second = shared
    running, _ = first.propose(closing=False, beyond=False)
    first.shorten(running, Job({"c.share": 0.1}, FROM_PARENT, 1))
    _, due = second.propose(closing=False, beyond=False)
    assert due.epochs == 1
    _, due = first.propose(closing=False, beyond=False)
    assert (due.epochs, due.values) == (3, {"c.share": 0.7})


def test_the_best_of_a_worker_that_ended_is_taken_over(shared: tuple[Study, Study]) -> None:
    _, second = shared
    _, due = second.propose(closing=False, beyond=False)
    assert (due.epochs, due.values) == (3, {"c.share": 0.7})


def test_what_another_worker_trained_does_not_shorten_a_training() -> None:
    job = Job({"c.share": 0.7}, FROM_PARENT, 9)
    shorter = Job(job.values, FROM_PARENT, 3)
    made = {4: (shorter, _outcome(shorter, 0.9))}
    # Six epochs are left of nine, and the export.
    assert _in_time(job, made, 8.5, here=(4,)) == job
    cut = _in_time(job, made, 5.5, here=(4,))
    assert cut is not None
    assert cut.epochs == 6
    # All nine have to be trained where there is no beginning.
    assert _in_time(job, made, 8.5, here=()) is None
    assert _in_time(job, made, 11.5, here=()) == job


class _Clock:
    trials = None

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s

    def used(self, trials: int) -> float:
        return 0.0


def test_the_time_of_a_training_is_that_of_this_machine(shared: tuple[Study, Study]) -> None:
    fast, slow = shared
    number, job = slow.propose(closing=False, beyond=False)
    slow.finish(number, _outcome(job, 0.1, seconds=100.0))
    # An epoch takes one of them a second, the other one 100.
    clock: Any = _Clock(50.0)
    assert _next(slow, clock, 0) is None
    assert _next(fast, clock, 0) is not None


def test_the_time_of_the_export_is_kept_when_a_search_is_continued() -> None:
    untouched = Job({}, UNTOUCHED, 0)
    trained = Job({"c.share": 0.7}, FROM_PARENT, 3)
    made = {0: (untouched, _outcome(untouched, 0.9)), 4: (trained, _outcome(trained, 0.9, 5.0))}
    assert _reserve_s({}, None) == 0.0
    assert _reserve_s(made, None) == 2.0
    assert _reserve_s(made, 4) > 2.0 + 15.0
