"""Workers: confined processes that make rows, and the order in which rows are made by several."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.comparison.plan import Plan
from edgecompress.comparison.results import Beginning, Made
from edgecompress.comparison.rows import Rows, Sources
from edgecompress.core import isolation
from edgecompress.core.errors import IsolatedDefect, ProcessError
from edgecompress.core.workers import Confined, Pool, serve
from edgecompress.engines.run import session

Item = tuple[int, int]
# How long Ctrl-C may wait where it does not wake a thread that waits.
_BEAT_S = 0.5


class RowWorker:
    """Makes rows in a confined process, one at a time.

    Args:
        asked: Keywords of `work` that can be sent.
        alone: Keeps rows from being measured while others run.
        progress: Called with texts of progress.
        others: Keywords of `Confined`.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        alone: Alone,
        progress: Callable[[str], None],
        **others: Any,
    ) -> None:
        self._process = Confined(f"{__name__}:work", asked, progress=progress, **others)
        self._alone, self._ready = alone, False

    @property
    def ready(self) -> bool:
        """Whether it has loaded the model and the data."""
        return self._ready

    def begin(self) -> Beginning:
        """Returns where the comparison begins, once model and data are loaded."""
        found = isolation.decode(Beginning, self._process.ask("begin"))
        self._ready = True
        return found

    def make(self, row: int, seed: int) -> Made:
        """Makes a row, or returns what an earlier run made of it."""
        with self._alone.together():
            if not self._ready:
                self.begin()
            trained = self._process.ask("train", row=row, seed=seed)
        if trained is None:
            with self._alone.alone():
                trained = self._process.ask("finish")
        return isolation.decode(Made, trained)

    def close(self) -> None:
        """See `Confined.close`."""
        self._process.close()


def work(
    plan: Plan,
    sources: Sources,
    output: Path,
    fresh: bool,
    verbose: bool,
    mailbox: str,
    threads: int | None,
    tell: Callable[[str, Any], None],
    gaps: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Makes rows in the process that was started for it, until told to end."""

    def begin() -> Callable[[str, Mapping[str, Any], Callable[[Any], None]], Any]:
        rows = Rows(plan, sources, output, fresh, lambda text: tell("progress", text), verbose)
        return lambda what, arguments, told: _answer(rows, plan, what, arguments)

    with session() as shared:
        shared.gaps.update(dict.fromkeys(gaps))
        serve(mailbox, threads, tell, begin)
    return {}, {}


def _answer(rows: Rows, plan: Plan, what: str, arguments: Mapping[str, Any]) -> Any:
    made: Made | Beginning | None
    if what == "begin":
        made = rows.beginning()
    elif what == "train":
        made = rows.train(arguments["row"], arguments["seed"])
    else:
        made = rows.finish()
    return None if made is None else isolation.encode(made)


class Alone:
    """Lets rows run together, and one at a time be measured while no other runs.

    Args:
        needed: Whether anything is measured that other rows would disturb; if not, nobody waits.
    """

    def __init__(self, needed: bool) -> None:
        self._needed = needed
        self._changed = threading.Condition()
        self._together = self._waiting = 0
        self._measuring = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Waits until nobody is measured, or waits for it, and keeps others from it meanwhile."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._needed and (self._waiting or self._measuring))
            )
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until all others have paused, and keeps them from going on meanwhile."""
        if not self._needed:
            yield
            return
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not (self._together or self._measuring))
            self._waiting -= 1
            self._measuring = True
        try:
            yield
        finally:
            with self._changed:
                self._measuring = False
                self._changed.notify_all()


class Flight:
    """The progress of several rows at a time, in one text.

    Args:
        show: Called with the text.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._lock = show, threading.Lock()
        self._texts: dict[object, str] = {}

    def of(self, owner: object) -> Callable[[str], None]:
        """Returns what takes the progress of one of them."""

        def tell(text: str) -> None:
            with self._lock:
                self._texts[owner] = text
                self._show(" | ".join(self._texts.values()))

        return tell

    def ended(self, owner: object) -> None:
        """Forgets the progress of one of them."""
        with self._lock:
            self._texts.pop(owner, None)


def make_all(
    items: Sequence[Item],
    keys: Mapping[Item, str],
    first: RowWorker,
    another: Callable[[], RowWorker],
    jobs: int,
    add: Callable[[Item, Made | str], None],
    ended: Callable[[RowWorker], None],
) -> None:
    """Makes rows, as many at a time as there are jobs.

    Rows begin in the order given. One whose work is also that of a running one waits for it, and
    then takes what that has made. One that brings its process down is a row that cannot be made:
    the others go on.

    Args:
        items: (row, seed) of what is to be made.
        keys: Hash of everything that each depends on.
        first: A worker, which is ready.
        another: Starts a further worker.
        jobs: Rows at a time.
        add: Called with each row, or why it cannot be made, in the order in which they end.
        ended: Called with a worker that has nothing to do.

    Raises:
        ProcessError: a process could not even load the model and the data.
    """
    waiting = list(items)
    pool: Pool[Item, RowWorker] = Pool([first])

    def start(item: Item) -> None:
        waiting.remove(item)
        pool.start(item, lambda worker: worker.make(*item))

    while waiting or pool.running:
        while len(pool.running) < jobs:
            busy = {keys[item] for item in pool.running}
            due = next((item for item in waiting if keys[item] not in busy), None)
            if due is None:
                break
            if not pool.free:
                pool.free.append(another())
            start(due)
        found = pool.next(_BEAT_S)
        if found is None:
            continue
        ended(found.worker)
        match found.error:
            case None:
                add(found.key, found.value)
            case ProcessError() if found.worker.ready:
                add(found.key, str(found.error))
            case IsolatedDefect() if found.worker.ready:
                text = " ".join(str(found.error).split())
                add(found.key, f"It raised {type(found.error).__name__}: {text}")
            case _:
                raise found.error
