"""Workers: who makes candidates, in this process or in a confined one that lives as long."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.core import isolation
from edgecompress.core.workers import Confined, serve
from edgecompress.searching.results import Beginning, Described, Exported, Job, Outcome

Told = Callable[[int, float], None]


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
        others: Keywords of `Confined`.
    """

    def __init__(self, asked: Mapping[str, Any], **others: Any) -> None:
        self._process = Confined(f"{__name__}:work", {"asked": dict(asked)}, **others)

    def describe(self) -> Described:
        """See `Worker.describe`."""
        return isolation.decode(Described, self._process.ask("describe"))

    def begin(self, most: int, seconds: float | None) -> Beginning:
        """See `Worker.begin`."""
        return isolation.decode(Beginning, self._process.ask("begin", most=most, seconds=seconds))

    def evaluate(self, job: Job, tell: Told) -> Outcome:
        """See `Worker.evaluate`."""

        def told(event: Any) -> None:
            tell(int(event["epoch"]), float(event["loss"]))

        return isolation.decode(Outcome, self._process.ask("evaluate", told, job=vars(job)))

    def export(self, job: Job, into: Path, argv: Sequence[str]) -> Exported:
        """See `Worker.export`."""
        answer = self._process.ask("export", job=vars(job), into=str(into), argv=list(argv))
        return isolation.decode(Exported, answer)

    def close(self) -> None:
        """See `Confined.close`."""
        self._process.close()


def work(
    asked: dict[str, Any],
    mailbox: str,
    threads: int | None,
    tell: Callable[[str, Any], None],
    gaps: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Makes candidates in the process that was started for it, until told to end."""

    def begin() -> Callable[[str, Mapping[str, Any], Callable[[Any], None]], Any]:
        from edgecompress.searching.evaluator import Evaluator

        evaluator = Evaluator(**asked, progress=lambda text: tell("progress", text))
        return lambda what, arguments, told: _answer(evaluator, what, arguments, told, gaps)

    serve(mailbox, threads, tell, begin)
    return {}, {}


def _answer(
    evaluator: Any,
    what: str,
    arguments: Mapping[str, Any],
    told: Callable[[Any], None],
    gaps: Sequence[str],
) -> Any:
    if what == "describe":
        found = evaluator.describe()
        return isolation.encode(dataclasses.replace(found, notes=(*found.notes, *gaps)))
    if what == "begin":
        return isolation.encode(evaluator.begin(arguments["most"], arguments["seconds"]))
    job = Job(**arguments["job"])
    if what == "export":
        made = evaluator.export(job, Path(arguments["into"]), arguments["argv"])
        return isolation.encode(made)
    return isolation.encode(
        evaluator.evaluate(job, lambda epoch, loss: told({"epoch": epoch, "loss": loss}))
    )
