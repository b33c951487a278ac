"""Workers: confined processes that stay, and a pool in which each does one thing at a time.

Loading a model and its data takes a while, so a process that has done so is asked again and again.
A request reaches it as a file in its mailbox; the answer comes back as an event.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgecompress.core import isolation
from edgecompress.core.errors import ProcessError
from edgecompress.core.files import jsonable, write_atomic
from edgecompress.core.folders import temporary_folder

K = TypeVar("K")
W = TypeVar("W")

_POLL_S = 0.05
# What an idle process needs to end, and one that was killed.
_PATIENCE_S = 3.0
_END = "end"


class Confined:
    """A confined process that answers one request after the other, until it is closed.

    Args:
        function: `module:function`, called as `isolation.call` does, with the further keywords
            `mailbox` and `threads`; it hands both to `serve`.
        arguments: Its other arguments.
        readable: Files and folders that it may read.
        writable: Folders that it may write into.
        modules: Modules that are imported first.
        functions: Functions of the user's, argument -> `module:function`.
        threads: Threads of its arithmetic; None for all.
        progress: Called with texts of progress, in another thread.
        verbose: Let its log through.
    """

    def __init__(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        readable: Sequence[Path | str],
        writable: Sequence[Path | str],
        modules: Sequence[str],
        functions: Mapping[str, str],
        threads: int | None,
        progress: Callable[[str], None],
        verbose: bool,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._mailbox = self._stack.enter_context(temporary_folder())
        self._answers: queue.Queue[Any] = queue.Queue()
        self._told: Callable[[Any], None] = lambda told: None
        self._kill: Callable[[], None] = lambda: None
        self._count = 0
        self._busy = self._closed = False

        def run() -> None:
            try:
                isolation.call(
                    function,
                    {**arguments, "mailbox": str(self._mailbox), "threads": threads},
                    readable=readable,
                    writable=[self._mailbox, *writable],
                    modules=modules,
                    functions=functions,
                    training=True,
                    progress=progress,
                    on_event=self._heard,
                    on_start=self._started,
                    verbose=verbose,
                )
                self._answers.put(ProcessError("The process that reads the model has ended."))
            # Whatever it is, the thread that waits for an answer raises it.
            except BaseException as error:
                self._answers.put(error)

        # A daemon: the confined process ends with this one, and nothing has to be waited for.
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def ask(
        self, what: str, told: Callable[[Any], None] = lambda told: None, **arguments: Any
    ) -> Any:
        """Returns the answer to a request, a JSON value.

        Args:
            what: Its name.
            told: Called with what the process tells on the way.
            arguments: JSON values.

        Raises:
            EdgeCompressError: what answering it raised; ProcessError: the process died.
            IsolatedDefect: answering it raised anything else.
        """
        self._count += 1
        self._told, self._busy = told, True
        text = json.dumps({"do": what, "with": jsonable(arguments)})
        write_atomic(self._mailbox / f"{self._count}.json", text.encode())
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        self._busy = False
        return answer

    def close(self) -> None:
        """Ends the process, at once if it is at work, and removes its mailbox."""
        self._closed = True
        with contextlib.suppress(OSError):
            (self._mailbox / _END).touch()
        if not self._busy:
            self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self._kill()
            self._thread.join(_PATIENCE_S)
        self._stack.close()

    def _started(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        if self._closed:
            kill()

    def _heard(self, event: Any) -> None:
        match event:
            case {"told": told}:
                self._told(told)
            case {"answer": answer}:
                self._answers.put(answer)


def serve(
    mailbox: str,
    threads: int | None,
    tell: Callable[[str, Any], None],
    begin: Callable[[], Callable[[str, Mapping[str, Any], Callable[[Any], None]], Any]],
) -> None:
    """Answers requests in a confined process, until it is closed.

    Args:
        mailbox: As `Confined` gives it.
        threads: As `Confined` gives it.
        tell: As `isolation.call` gives it.
        begin: Called once, with the threads limited; returns the function that answers:
            (what, arguments, told) -> a JSON value, where `told` reaches that of `Confined.ask`.
    """
    if threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    answer, folder, count = begin(), Path(mailbox), 1
    # A mailbox without its folder is that of a process that was closed.
    while folder.is_dir() and not (folder / _END).exists():
        letter = folder / f"{count}.json"
        if not letter.exists():
            time.sleep(_POLL_S)
            continue
        order = json.loads(letter.read_text("utf-8"))
        found = answer(
            order["do"], order["with"], lambda value: tell("event", {"told": jsonable(value)})
        )
        tell("event", {"answer": jsonable(found)})
        count += 1


def threads_each(jobs: int) -> int | None:
    """Returns the threads of each of several processes at a time; None, for all, for one alone.

    Example:
        >>> threads_each(10_000)
        1
    """
    if jobs == 1:
        return None
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return max(1, cores // jobs)


@dataclass(frozen=True)
class Finished(Generic[K, W]):
    """What came of one thing.

    Attributes:
        key: Of what was started.
        worker: Who did it.
        value: What it returned.
        error: What it raised; None for nothing.
    """

    key: K
    worker: W
    value: Any = None
    error: BaseException | None = None


class Pool(Generic[K, W]):
    """Workers that each do one thing at a time, in threads.

    Attributes:
        free: Workers that have nothing to do.
        running: Key of what is being done -> who does it.

    Example:
        >>> pool = Pool(["a"])
        >>> pool.start(7, lambda worker: worker.upper())
        >>> pool.next().value
        'A'
    """

    def __init__(self, workers: Sequence[W]) -> None:
        self.free = list(workers)
        self.running: dict[K, W] = {}
        self._finished: queue.SimpleQueue[Finished[K, W]] = queue.SimpleQueue()

    def start(self, key: K, work: Callable[[W], Any]) -> None:
        """Lets a free worker begin something, and returns at once."""
        worker = self.free.pop()
        self.running[key] = worker

        def run() -> None:
            try:
                self._finished.put(Finished(key, worker, work(worker)))
            # The thread that waits for it decides what becomes of it.
            except BaseException as error:
                self._finished.put(Finished(key, worker, error=error))

        # A daemon: an interrupted command does not wait for it to end.
        threading.Thread(target=run, daemon=True).start()

    def next(self, timeout: float | None = None) -> Finished[K, W] | None:
        """Waits for something to end, and returns it; None if nothing does in time.

        A worker whose work raised something is no longer of the pool.
        """
        try:
            found = self._finished.get(timeout=timeout)
        except queue.Empty:
            return None
        del self.running[found.key]
        if found.error is None:
            self.free.append(found.worker)
        return found
