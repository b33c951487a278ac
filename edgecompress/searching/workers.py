"""Workers: who makes candidates, in this process or in a confined one.

A confined worker lives as long as the search, as loading a model and its data takes a while. Work
reaches it as files in a mailbox, one at a time; answers come back as events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.core import isolation
from edgecompress.core.errors import ProcessError
from edgecompress.core.files import jsonable, write_atomic
from edgecompress.core.folders import temporary_folder
from edgecompress.searching.results import Beginning, Described, Exported, Job, Outcome

Told = Callable[[int, float], None]
_POLL_S = 0.05
# What an idle process needs to end.
_PATIENCE_S = 3.0


class Worker(ABC):
    """Makes candidates, one at a time."""

    @abstractmethod
    def describe(self) -> Described:
        """Returns what can be chosen."""

    @abstractmethod
    def begin(self, most: int, seconds: float | None) -> Beginning:
        """Returns where the search begins; see `Evaluator.begin`."""

    @abstractmethod
    def evaluate(self, job: Job, tell: Told) -> Outcome:
        """Makes a candidate; `tell` is called with (epochs done, loss)."""

    @abstractmethod
    def export(self, job: Job, into: Path, argv: Sequence[str]) -> Exported:
        """Exports a candidate into a folder."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""


class LocalWorker(Worker):
    """Works in this process, on a model in memory.

    Args:
        asked: Keywords of `Evaluator`.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from edgecompress.searching.evaluator import Evaluator

        self._evaluator = Evaluator(**asked)

    def describe(self) -> Described:
        """See `Worker.describe`."""
        return self._evaluator.describe()

    def begin(self, most: int, seconds: float | None) -> Beginning:
        """See `Worker.begin`."""
        return self._evaluator.begin(most, seconds)

    def evaluate(self, job: Job, tell: Told) -> Outcome:
        """See `Worker.evaluate`."""
        return self._evaluator.evaluate(job, tell)

    def export(self, job: Job, into: Path, argv: Sequence[str]) -> Exported:
        """See `Worker.export`."""
        return self._evaluator.export(job, into, argv)

    def close(self) -> None:
        """Nothing to end."""


class ConfinedWorker(Worker):
    """Works in a confined process of its own, on a model file.

    Args:
        asked: Keywords of `Evaluator` that can be sent.
        readable: Files that it may read.
        writable: Folders that it may write into.
        modules: Modules that register the model's layers.
        functions: Argument -> `module:function` that returns its data.
        threads: Threads of its arithmetic; None for all.
        progress: Called with texts of progress.
        verbose: Let its log through.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        *,
        readable: Sequence[Path],
        writable: Sequence[Path],
        modules: Sequence[str],
        functions: Mapping[str, str],
        threads: int | None,
        progress: Callable[[str], None],
        verbose: bool,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._mailbox = self._stack.enter_context(temporary_folder())
        self._answers: queue.Queue[Any] = queue.Queue()
        self._tell: Told = lambda epoch, loss: None
        self._count = 0

        def run() -> None:
            try:
                isolation.call(
                    f"{__name__}:work",
                    {"asked": dict(asked), "mailbox": str(self._mailbox), "threads": threads},
                    readable=readable,
                    writable=[self._mailbox, *writable],
                    modules=modules,
                    functions=functions,
                    training=True,
                    progress=progress,
                    on_event=self._heard,
                    verbose=verbose,
                )
                self._answers.put(ProcessError("The process that makes candidates has ended."))
            # Whatever it is, the thread that waits for an answer raises it.
            except BaseException as error:
                self._answers.put(error)

        # A daemon: the confined process ends with this one, and nothing has to be waited for.
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _heard(self, event: Any) -> None:
        if isinstance(event, dict) and "epoch" in event:
            self._tell(int(event["epoch"]), float(event["loss"]))
        else:
            self._answers.put(event)

    def _ask(self, what: str, **arguments: Any) -> Any:
        self._count += 1
        text = json.dumps({"do": what, **jsonable(arguments)})
        write_atomic(self._mailbox / f"{self._count}.json", text.encode())
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def describe(self) -> Described:
        """See `Worker.describe`."""
        return isolation.decode(Described, self._ask("describe"))

    def begin(self, most: int, seconds: float | None) -> Beginning:
        """See `Worker.begin`."""
        return isolation.decode(Beginning, self._ask("begin", most=most, seconds=seconds))

    def evaluate(self, job: Job, tell: Told) -> Outcome:
        """See `Worker.evaluate`."""
        self._tell = tell
        return isolation.decode(Outcome, self._ask("evaluate", job=vars(job)))

    def export(self, job: Job, into: Path, argv: Sequence[str]) -> Exported:
        """See `Worker.export`."""
        answer = self._ask("export", job=vars(job), into=str(into), argv=list(argv))
        return isolation.decode(Exported, answer)

    def close(self) -> None:
        """Ends the process and removes its mailbox.

        One that is at work ends with this process: nobody waits for it.
        """
        with contextlib.suppress(OSError):
            write_atomic(self._mailbox / "end", b"")
        self._thread.join(timeout=_PATIENCE_S)
        self._stack.close()


def work(
    asked: dict[str, Any],
    mailbox: str,
    threads: int | None,
    tell: Callable[[str, Any], None],
    gaps: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Makes candidates in the process that was started for it, until told to end."""
    if threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    from edgecompress.searching.evaluator import Evaluator

    evaluator = Evaluator(**asked, progress=lambda text: tell("progress", text))
    count = 1
    while not (Path(mailbox) / "end").exists():
        letter = Path(mailbox) / f"{count}.json"
        if not letter.exists():
            time.sleep(_POLL_S)
            continue
        order = json.loads(letter.read_text())
        tell("event", jsonable(_done(evaluator, order, tell, gaps)))
        count += 1
    return {}, {}


def _done(
    evaluator: Any,
    order: Mapping[str, Any],
    tell: Callable[[str, Any], None],
    gaps: Sequence[str],
) -> Any:
    if order["do"] == "describe":
        found = evaluator.describe()
        return isolation.encode(dataclasses.replace(found, notes=(*found.notes, *gaps)))
    if order["do"] == "begin":
        return isolation.encode(evaluator.begin(order["most"], order["seconds"]))
    job = Job(**order["job"])
    if order["do"] == "export":
        return isolation.encode(evaluator.export(job, Path(order["into"]), order["argv"]))
    return isolation.encode(
        evaluator.evaluate(job, lambda epoch, loss: tell("event", {"epoch": epoch, "loss": loss}))
    )
