"""The study: Optuna's trials as the search's candidates, in a storage that survives anything."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgecompress.core import isolation
from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.files import jsonable
from edgecompress.searching.choice import preferred
from edgecompress.searching.front import objectives
from edgecompress.searching.knobs import Knob, Value
from edgecompress.searching.outcome import Point
from edgecompress.searching.results import (
    FROM_PARENT,
    FROM_SCRATCH,
    UNTOUCHED,
    Beginning,
    Described,
    Job,
    Outcome,
)
from edgecompress.searching.samplers import SAMPLERS
from edgecompress.searching.schedule import Entry, lengths, promotion

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")

_SCHEMA = "edgecompress.search/1"
_JOB, _OUTCOME, _WORKER, _ALIVE, _TRIES = "job", "outcome", "worker", "alive", "tries"
_PLACE, _NOTES, _BEGINNING, _LOOKED = "place", "notes", "beginning", "looked"
# A trial of another machine that has not been heard of for this long is lost.
_SILENCE_S = 900.0
_MOST_TRIES = 3
# How often a study is opened that others are just making, and how long is waited in between.
_OPENINGS, _PAUSE_S = 5, 1.0
# Candidates from which importance is worth anything.
_FEWEST_FOR_IMPORTANCE = 4
# What a candidate without a file counts as: Optuna takes no infinities.
_WORST = 1e18


def import_optuna() -> Any:
    """Returns Optuna, with its log silenced.

    Raises:
        ArgumentError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ArgumentError(
            "search", "have Optuna installed", str(error), "pip install 'edgecompress[search]'."
        ) from error
    logging.getLogger("optuna").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class Study:
    """The candidates of one model, data set and set of limits.

    Args:
        storage: URL of an Optuna storage; None for a SQLite file in `folder`.
        folder: Of the SQLite file.
        name: Of the study; None for one that follows from what it is about.
        described: What can be chosen.
        sampler: A name in `SAMPLERS`.
        seed: Of the sampler.
        epochs: Of the longest training.
        begin: Whether it is begun if there is none.
    """

    def __init__(
        self,
        storage: str | None,
        folder: Path,
        name: str | None,
        described: Described,
        sampler: str,
        seed: int,
        epochs: int,
        begin: bool = True,
    ) -> None:
        """Opens the study, or makes it with the untouched model in it."""
        self._optuna = import_optuna()
        self._described = described
        self._knobs = {knob.name: knob for knob in described.knobs}
        self.lengths = lengths(epochs)
        # The trials that this process works on.
        self._asked: dict[int, optuna.Trial] = {}
        self._place = f"{socket.gethostname()}:{folder.resolve()}"
        self.name = name or f"edgecompress-{described.basis[:12]}"
        url = f"sqlite:///{(folder / 'study.db').resolve()}" if storage is None else storage
        directions = ["minimize"] * (1 + len(described.rules))
        try:
            if not begin and self.name not in self._optuna.get_all_study_names(
                _storage(self._optuna, url)
            ):
                raise ArgumentError(
                    "--apply", "go with the options of the search whose candidate it is", self.name,
                    "The storage has no study of this model, data, space and limits.",
                )  # fmt: skip
            self._study: optuna.Study = self._opened(url, directions)
            attributes = self._study.user_attrs
            # A sampler that began anew would propose the same again, in other workers, too.
            made = len(self._study.get_trials(deepcopy=False))
            apart = 0 if storage is None else os.getpid()
            self._study.sampler = SAMPLERS[sampler](seed + made + apart)
        # Drivers and databases raise what they like.
        except Exception as error:
            if isinstance(error, EdgeCompressError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ArgumentError(
                "--storage", "be the URL of an Optuna storage that can be reached",
                without_password(url), f"{type(error).__name__}: {reason}",
            ) from error  # fmt: skip
        basis = attributes.get("basis")
        if basis is not None and basis != described.basis:
            raise ArgumentError(
                "--study", "be about the same model, data, targets and limits", self.name,
                "Give another name, or another --output.",
            )  # fmt: skip
        if basis is None:
            self._open()

    def _opened(self, url: str, directions: list[str]) -> Any:
        """Returns the study; workers that begin together make its tables at the same time."""
        left = _OPENINGS
        while True:
            try:
                return self._optuna.create_study(
                    storage=_storage(self._optuna, url),
                    study_name=self.name,
                    load_if_exists=True,
                    directions=directions,
                )
            # Drivers have their own classes for what they found.
            except Exception as error:
                left -= 1
                if not left or "already exists" not in str(error):
                    raise
                time.sleep(_PAUSE_S)

    def _open(self) -> None:
        for name, value in (
            ("schema", _SCHEMA),
            ("basis", self._described.basis),
            ("metric", self._described.metric),
            ("rules", list(self._described.rules)),
        ):
            self._study.set_user_attr(name, value)
        self._enqueue(Job({}, UNTOUCHED, 0, last=True))

    def claim_beginning(self) -> bool:
        """Returns whether this process has to find out where the search begins.

        Not if that is known, or another worker is about it that can be alive.
        """
        attributes = self._study.user_attrs
        if _NOTES in attributes:
            return False
        worker, since = attributes.get(_BEGINNING, ("", 0.0))
        mine = f"{socket.gethostname()}:{os.getpid()}"
        if worker != mine and not self._gone(worker, since):
            return False
        self._study.set_user_attr(_BEGINNING, (mine, time.time()))
        return True

    @staticmethod
    def _gone(worker: str, since: float) -> bool:
        """Returns whether a worker, `host:process`, is no more; since when it was heard of."""
        host, _, process = worker.rpartition(":")
        dead = host == socket.gethostname() and not _lives(process)
        return dead or time.time() - since > _SILENCE_S

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found out before the first training."""
        return tuple(self._study.user_attrs.get(_NOTES, ()))

    def begin(self, beginning: Beginning) -> None:
        """Queues the first candidates and the thinner baseline, unless another worker has."""
        if _NOTES in self._study.user_attrs:
            return
        self._study.set_user_attr(_NOTES, list(beginning.notes))
        first = [Job(values, FROM_PARENT, self.lengths[0]) for values in beginning.candidates]
        baseline = Job({}, FROM_SCRATCH, self.lengths[-1], last=True)
        for job in (*first[:1], baseline, *first[1:]):
            self._enqueue(job)

    @property
    def optuna_study(self) -> Any:
        """Optuna's own study, for its callbacks."""
        return self._study

    def shorten(self, number: int, job: Job) -> None:
        """Says that a trial is trained for less than was planned."""
        self._asked[number].set_user_attr(_JOB, jsonable(vars(job)))

    # --- proposing --------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether candidates are queued."""
        state = self._optuna.trial.TrialState.WAITING
        return bool(self._study.get_trials(deepcopy=False, states=(state,)))

    def propose(self, closing: bool, beyond: bool) -> tuple[int, Job]:
        """Returns the next trial and what to make.

        Args:
            closing: Whether the best are trained longer before new ones are proposed.
            beyond: Whether the best may be trained for longer than asked for.
        """
        if not self.waiting:
            due = promotion(self._entries(), self.lengths, closing, beyond, self._preferred)
            if due is not None:
                entry, epochs = due
                old = self.job(entry.trial)
                self._enqueue(Job(old.values, old.start, epochs, epochs >= self.lengths[-1]))
        trial = self._study.ask()
        self._asked[trial.number] = trial
        trial.set_user_attr(_WORKER, f"{socket.gethostname()}:{os.getpid()}")
        trial.set_user_attr(_ALIVE, time.time())
        trial.set_user_attr(_PLACE, self._place)
        asked = trial.user_attrs.get(_JOB)
        job = self._read(Job, asked) if asked else Job({}, FROM_PARENT, self.lengths[0])
        if job.start == FROM_PARENT:
            values = {name: _suggest(trial, knob) for name, knob in self._knobs.items()}
            job = Job(values, job.start, job.epochs, job.last)
        trial.set_user_attr(_JOB, jsonable(vars(job)))
        return trial.number, job

    def _preferred(self, entries: Sequence[Entry]) -> Entry:
        known = self.outcomes()
        points = {e.trial: Point(e.trial, *known[e.trial]) for e in entries if e.trial in known}
        if not points:
            return entries[0]
        number = preferred(self._described, list(points.values())).number
        return next(entry for entry in entries if entry.trial == number)

    def _enqueue(self, job: Job, tries: int = 0) -> None:
        attributes = {_JOB: jsonable(vars(job)), _TRIES: tries}
        self._study.enqueue_trial(dict(job.values), user_attrs=attributes)

    def _entries(self) -> list[Entry]:
        found, others = [], self._others()
        for trial in self._study.get_trials(deepcopy=False):
            told = trial.user_attrs.get(_JOB)
            job = None if told is None else self._read(Job, told)
            if job is None or job.start != FROM_PARENT:
                continue
            if trial.state == self._optuna.trial.TrialState.FAIL:
                continue
            outcome = self._outcome(trial)
            score = None
            if outcome is not None and outcome.fits and outcome.metric is not None:
                score = outcome.metric if self._described.higher_is_better else -outcome.metric
            key = json.dumps(sorted(job.values.items()))
            here = trial.user_attrs.get(_PLACE) not in others
            found.append(Entry(trial.number, key, job.epochs, score, here))
        return found

    def _others(self) -> set[str]:
        """Returns where other workers are at work."""
        state = self._optuna.trial.TrialState.RUNNING
        running = self._study.get_trials(deepcopy=False, states=(state,))
        places = {str(trial.user_attrs.get(_PLACE)) for trial in running if not self._lost(trial)}
        return places - {self._place}

    # --- what came of it --------------------------------------------------------------------------

    def alive(self, number: int) -> None:
        """Says that a trial is being worked on."""
        self._asked[number].set_user_attr(_ALIVE, time.time())

    def finish(self, number: int, outcome: Outcome) -> Any:
        """Stores the outcome of a trial that this process proposed; returns Optuna's form of it."""
        trial = self._asked.pop(number)
        trial.set_user_attr(_OUTCOME, jsonable(outcome.to_dict()))
        for rule, value in outcome.excess.items():
            trial.set_constraint(rule, float(value))
        values = objectives(
            outcome.metric, self._described.higher_is_better, outcome.costs, self._described.rules
        )
        return self._study.tell(trial, [min(max(v, -_WORST), _WORST) for v in values])

    def give_up(self, number: int, begun: bool = True) -> None:
        """Ends a trial whose work was interrupted; it is queued again, up to a few times.

        Args:
            number: The trial.
            begun: Whether it may be to blame for the interruption.
        """
        trial = self._study.get_trials(deepcopy=False)[number]
        job, tries = trial.user_attrs.get(_JOB), int(trial.user_attrs.get(_TRIES, 0)) + begun
        self._asked.pop(number, None)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        if job is not None and tries < _MOST_TRIES:
            self._enqueue(self._read(Job, job), tries)

    def _lost(self, trial: Any) -> bool:
        """Returns whether the worker of a trial is no more."""
        told = trial.user_attrs
        since = told.get(_ALIVE)
        heard = float(since) if isinstance(since, (int, float)) else 0.0
        return self._gone(str(told.get(_WORKER, ":")), heard)

    def recover(self) -> int:
        """Queues the trials again whose workers are gone; returns how many."""
        lost = 0
        state = self._optuna.trial.TrialState.RUNNING
        for trial in self._study.get_trials(deepcopy=False, states=(state,)):
            if self._lost(trial):
                self.give_up(trial.number)
                lost += 1
        return lost

    def job(self, number: int) -> Job:
        """Returns what a trial was to make.

        Raises:
            ArgumentError: there is no such trial.
        """
        trials = self._study.get_trials(deepcopy=False)
        if not 0 <= number < len(trials) or _JOB not in trials[number].user_attrs:
            raise ArgumentError(
                "--apply", f"be a candidate of the study, 0 to {len(trials) - 1}", number
            )
        return self._read(Job, trials[number].user_attrs[_JOB])

    def outcomes(self, here: bool = False) -> dict[int, tuple[Job, Outcome]]:
        """Returns the finished candidates by number.

        Args:
            here: Leave out what another worker keeps.
        """
        found = {}
        for trial in self._study.get_trials(deepcopy=False):
            outcome = self._outcome(trial)
            elsewhere = here and trial.user_attrs.get(_PLACE) not in (None, self._place)
            if outcome is not None and trial.state.is_finished() and not elsewhere:
                job = self._read(Job, trial.user_attrs.get(_JOB))
                found[trial.number] = (job, outcome)
        return found

    def look(self, number: int) -> tuple[int, ...]:
        """Says that a candidate is measured on test data; returns all that were, by number."""
        looked = sorted({*self._study.user_attrs.get(_LOOKED, ()), number})
        self._study.set_user_attr(_LOOKED, looked)
        return tuple(looked)

    def elsewhere(self, number: int) -> str | None:
        """Returns where another worker keeps a candidate, `host:folder`; None if it is here."""
        place = self._study.get_trials(deepcopy=False)[number].user_attrs.get(_PLACE)
        return None if place in (None, self._place) else str(place)

    def _outcome(self, trial: Any) -> Outcome | None:
        told = trial.user_attrs.get(_OUTCOME)
        return None if told is None else self._read(Outcome, told)

    def _read(self, kind: type[T], told: Any) -> T:
        """Returns what a trial says; a storage is shared, and may hold anything."""
        try:
            return isolation.decode(kind, told)
        except EdgeCompressError as error:
            raise ArgumentError(
                "--study", "be as this program wrote it", self.name,
                f"It holds something that is not a {kind.__name__}. Give another name, or another "
                "--output.",
            ) from error  # fmt: skip

    def importance(self) -> dict[str, float]:
        """Returns how much of the metric's variance each knob explains (fANOVA), largest first.

        Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter
        importance" (2014). Only the shortest trainings count: longer ones differ by their length.
        Empty with too few candidates, or without scikit-learn.
        """
        shortest = self.lengths[0]
        made = [
            trial
            for trial in self._study.get_trials(deepcopy=False)
            if (outcome := self._outcome(trial)) is not None
            and outcome.made
            and outcome.start == FROM_PARENT
            and outcome.epochs == shortest
        ]
        if len(made) < _FEWEST_FOR_IMPORTANCE:
            return {}
        alone = self._optuna.create_study(direction="minimize")
        for trial in made:
            alone.add_trial(
                self._optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=trial.values[0]
                )
            )
        try:
            evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = self._optuna.importance.get_param_importances(alone, evaluator=evaluator)
        # Without scikit-learn, or if all metrics are equal.
        except (ImportError, ValueError, RuntimeError):
            return {}
        return {name: float(value) for name, value in found.items()}


def _storage(optuna: Any, url: str) -> Any:
    if not url.startswith("sqlite"):
        return url
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _suggest(trial: Any, knob: Knob) -> Value:
    """Returns what the sampler proposes for a knob, or what was queued for it."""
    found: Any
    if knob.choices:
        found = trial.suggest_categorical(knob.name, list(knob.choices))
    elif knob.whole:
        found = trial.suggest_int(knob.name, int(knob.low), int(knob.high), log=knob.log)
    else:
        found = trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log)
    value: Value = found
    return value


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


def without_password(url: str) -> str:
    """Returns a URL that may be printed.

    Example:
        >>> without_password("postgresql://me:secret@host/x")
        'postgresql://me:***@host/x'
    """
    import re

    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)
