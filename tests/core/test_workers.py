"""Confined processes that stay, and the pool of workers."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecompress.core.errors import ArgumentError, IsolatedDefect, ProcessError
from edgecompress.core.workers import Confined, Pool, threads_each

_ANSWERS = """
import os, signal, time
from edgecompress.core.errors import ArgumentError
from edgecompress.core.workers import serve

def work(base, mailbox, threads, tell, gaps):
    def answer(what, arguments, told):
        if what == "add":
            told(arguments["n"] - 1)
            return base + arguments["n"]
        if what == "pid":
            return os.getpid()
        if what == "sleep":
            told("asleep")
            time.sleep(600)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "refuse":
            raise ArgumentError("n", "be even", 3)
        raise ZeroDivisionError("a defect")
    serve(mailbox, threads, tell, lambda: answer)
    return {}, {}
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Confined]]:
    (tmp_path / "answers.py").write_text(_ANSWERS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    made: list[Confined] = []

    def start() -> Confined:
        made.append(
            Confined(
                "answers:work", {"base": 40}, readable=[], writable=[], modules=[], functions={},
                threads=None, progress=lambda text: None, verbose=False,
            )
        )  # fmt: skip
        return made[-1]

    yield start
    for each in made:
        each.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestConfined:
    def test_one_process_answers_and_tells_until_it_is_closed(
        self, process: Callable[[], Confined]
    ) -> None:
        told: list[Any] = []
        worker = process()
        assert [worker.ask("add", told.append, n=n) for n in (2, 5)] == [42, 45]
        assert told == [1, 4]
        pid = worker.ask("pid")
        assert worker.ask("pid") == pid
        assert _alive(pid)
        worker.close()
        assert not _alive(pid)

    def test_one_at_work_is_killed_at_once(self, process: Callable[[], Confined]) -> None:
        worker = process()
        pid, asleep, caught = worker.ask("pid"), threading.Event(), list[BaseException]()

        def ask() -> None:
            try:
                worker.ask("sleep", lambda told: asleep.set())
            except ProcessError as error:
                caught.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        assert asleep.wait(60)
        worker.close()
        asking.join(60)
        assert "SIGKILL" in str(caught[0])
        assert not _alive(pid)

    def test_one_that_has_not_started_is_killed_too(
        self, process: Callable[[], Confined], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: list[int] = []
        monkeypatch.setattr("edgecompress.core.isolation._let_through", lambda stream: None)
        real = Confined._started

        def late(self: Confined, kill: Callable[[], None]) -> None:
            begun.append(1)
            time.sleep(0.2)
            real(self, kill)

        monkeypatch.setattr(Confined, "_started", late)
        monkeypatch.setattr("edgecompress.core.workers._PATIENCE_S", 0.01)
        worker = process()
        worker.close()
        worker._thread.join(60)
        assert begun == [1]

    @pytest.mark.parametrize(
        ("what", "kind", "words"),
        [
            ("die", ProcessError, "SIGKILL"),
            ("refuse", ArgumentError, "must be even"),
            ("other", IsolatedDefect, "a defect"),
        ],
    )
    def test_what_it_raises_is_raised_here(
        self, process: Callable[[], Confined], what: str, kind: type[BaseException], words: str
    ) -> None:
        with pytest.raises(kind, match=words):
            process().ask(what)


class TestPool:
    def test_work_ends_in_its_own_order(self) -> None:
        gate = threading.Event()
        pool: Pool[int, str] = Pool(["a", "b"])
        pool.start(1, lambda worker: gate.wait(60) and worker)
        pool.start(2, lambda worker: worker)
        first = pool.next(60)
        assert first is not None
        assert (first.key, first.value) == (2, "a")
        assert pool.free == ["a"]
        assert pool.running == {1: "b"}
        assert pool.next(0.01) is None
        gate.set()
        second = pool.next(60)
        assert second is not None
        assert (second.key, second.value, second.error) == (1, "b", None)
        assert sorted(pool.free) == ["a", "b"]

    def test_a_worker_that_raised_is_dropped(self) -> None:
        pool: Pool[int, str] = Pool(["a"])
        pool.start(1, lambda worker: 1 / 0)
        found = pool.next(60)
        assert found is not None
        assert isinstance(found.error, ZeroDivisionError)
        assert (pool.free, pool.running) == ([], {})


def test_threads_are_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [threads_each(jobs) for jobs in (1, 2, 3, 8, 20)] == [None, 4, 2, 1, 1]
