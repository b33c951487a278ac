"""`search`: the loop that proposes candidates, has them made, and stops in time."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.files import write_together
from edgecompress.core.options import options_of
from edgecompress.core.record import sidecar_path
from edgecompress.core.user_functions import is_function
from edgecompress.core.workers import Pool, threads_each
from edgecompress.pipeline.request import load_profiles, parse_budgets, usable_folder
from edgecompress.searching.layouts import MOST_TRAINED
from edgecompress.searching.loggers import Loggers, logged
from edgecompress.searching.options import ApplyOptions, SearchDataOptions, SearchOptions
from edgecompress.searching.outcome import SearchResult, result_of
from edgecompress.searching.results import (
    ACCURACIES,
    FROM_PARENT,
    UNTOUCHED,
    Beginning,
    Described,
    Job,
    Judged,
    Outcome,
    trained_for,
)
from edgecompress.searching.schedule import CLOSING
from edgecompress.searching.study import Study, import_optuna, without_password
from edgecompress.searching.workers import ConfinedWorker, LocalWorker, Worker
from edgecompress.targets.family import family_of
from edgecompress.targets.profile import TargetProfile

# Without any limit on trials or time.
_MINUTES = 15.0
# How often a trial says that it is alive.
_BEAT_S = 20.0
BEST = "best"
# Share of the time to find out what fits at all, and as much to see what learns fastest.
_BEGINNING = 0.1
# Validation data are rarely more than the training data.
_REFIT_SHARE = 2.0
# Stands for no trial: looking for where to begin.
_BEGIN = -1


def _silent(_: object) -> None:
    pass


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        trial: Number of the candidate that has just ended, or is being trained.
        job: What it is.
        outcome: What came of it; None while it is trained.
        epoch: Epochs that it has been trained for.
        best: The candidate that would be taken so far; None for none.
        front: The candidates that no other beats, by number.
        left_s: Seconds that are left; None without a limit.
    """

    trial: int
    job: Job
    outcome: Outcome | None = None
    epoch: int = 0
    best: Outcome | None = None
    front: tuple[int, ...] = ()
    left_s: float | None = None

    @property
    def text(self) -> str:
        """The progress in one line."""
        parts = [f"candidate {self.trial}"]
        if self.outcome is None:
            parts.append(f"epoch {self.epoch} of {self.job.epochs}")
        elif self.outcome.made:
            epochs = self.outcome.epochs
            parts.append(trained_for(epochs) if epochs else "not trained")
            parts.append(f"{self.outcome.metric:.4f}")
            parts.append("fits" if self.outcome.fits else "does not fit")
        else:
            parts.append(self.outcome.reason or "not made")
        if self.best is not None:
            parts.append(f"best so far {self.best.metric:.4f}")
        if self.left_s is not None:
            parts.append(f"{max(0.0, self.left_s) / 60:.1f} min left")
        return ", ".join(parts)


@dataclass
class _Clock:
    """How much of a search is used up.

    Attributes:
        minutes: Of this run; None for no limit.
        trials: In all; None for no limit.
        began: When the run began.
        reserve_s: Seconds that the export of the best will take.
    """

    minutes: float | None
    trials: int | None
    began: float = field(default_factory=time.monotonic)
    reserve_s: float = 0.0

    @property
    def left_s(self) -> float | None:
        if self.minutes is None:
            return None
        return self.minutes * 60 - self.reserve_s - (time.monotonic() - self.began)

    def used(self, trials: int) -> float:
        """Returns the share that is used up, of the time or the trials, whichever is more."""
        shares = [0.0]
        if self.left_s is not None and self.minutes:
            shares.append(1 - self.left_s / (self.minutes * 60))
        if self.trials is not None:
            shares.append(trials / self.trials)
        return max(shares)


def search(
    model: Any,
    data: Any,
    targets: Sequence[Any],
    *,
    validation: Any = None,
    validation_split: float = SearchDataOptions.validation_split,
    metric: str | None = SearchDataOptions.metric,
    groups: str | None = SearchDataOptions.groups,
    test: Any = None,
    refit: bool = SearchDataOptions.refit,
    data_files: Sequence[Path | str] = (),
    pixels: str | None = None,
    steps_per_epoch: int | None = None,
    output: Path | str = SearchOptions.output,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    trials: int | None = SearchOptions.trials,
    minutes: float | None = SearchOptions.minutes,
    epochs: int = SearchOptions.epochs,
    jobs: int = SearchOptions.jobs,
    sampler: str = SearchOptions.sampler,
    techniques: Sequence[str] = SearchOptions.techniques,
    storage: str | None = SearchOptions.storage,
    study: str | None = SearchOptions.study,
    seed: int = SearchOptions.seed,
    log: Sequence[str] = SearchOptions.log,
    callbacks: Sequence[Callable[[Any, Any], None]] = (),
    apply: int | None = None,
    into: Path | str = ApplyOptions.into,
    kernels: str | None = None,
    operators: Any = None,
    max_energy: str | float | None = None,
    power: str | float | None = None,
    import_modules: Sequence[str] = (),
    progress: Callable[[str], None] = _silent,
    on_progress: Callable[[Progress], None] = _silent,
    verbose: bool = False,
    argv: Sequence[str] = (),
    **options: Any,
) -> SearchResult:
    """Searches the best file that fits: widths, depth, rank, precision, distillation and more.

    Every candidate is first judged without training: what its file takes is computed. Those that
    fit are trained from the model's weights, short before long; each ends as a .tflite file that
    ran in the target's engine. The untouched int8 file and a uniformly thinner network trained from
    scratch are always among them. The study is kept in `output` and continued by the same call.

    Writes `search.json`, `search.html`, and the best candidate as `export` does into
    `<output>/best`.

    Args:
        model: A trained Keras model, which is not changed, or the path of a .keras or .h5 file.
        data: Training data, as `compress` takes them.
        targets: As in `export`.
        validation: Data by which candidates are chosen. Defaults to None: a share of `data`.
        validation_split: That share.
        metric: Metric by which candidates are compared, as in `export`: `auc`, `mean_iou`, `top5`,
            `mae`, ... Defaults to None: accuracy, for values the mean squared error.
        groups: Name of the array in all data, files or mappings, that says what each sample is of,
            such as a person, a recording or a device. Whole groups are held out, and candidates
            are told apart by how they differ from group to group. Defaults to None: samples are
            independent.
        test: Data that neither train nor choose: the chosen candidate is judged on them, and the
            untouched model is measured beside it.
        refit: Whether the chosen candidate is trained further, as long as it was, on training and
            validation data together, before it is exported and judged. It needs `test`: nothing
            else is left to judge it.
        data_files: As in `compress`, as are the next two.
        pixels: Range of pixels of a folder of images.
        steps_per_epoch: Batches of an epoch, for a dataset without an end.
        output: Folder of the study and its files; created if it is missing.
        max_flash: A limit as in `export`, as are the next four.
        max_ram: For the tensor arena.
        max_latency: For the upper end of the predicted band.
        max_file_size: For the .tflite file alone.
        min_accuracy: Floor for the accuracy of the file on the validation data, and of the one
            that is chosen on the test data.
        trials: Candidates in all, those of earlier runs included. Defaults to no limit.
        minutes: Of this run. Defaults to 15, without `trials`.
        epochs: Of the longest training; most candidates get a ninth.
        jobs: Candidates trained at a time. A model in memory takes one.
        sampler: What proposes candidates, a name in `search.samplers.SAMPLERS`.
        techniques: What may be done, names in `search.techniques.TECHNIQUES`. Defaults to all.
        storage: URL of an Optuna storage that several workers share. Defaults to a SQLite file.
        study: Name of the study there. Defaults to one that follows from model, data and limits.
        seed: Of everything random.
        log: Loggers of trials: `tensorboard`, `mlflow`, `wandb`.
        callbacks: Optuna callbacks, called with (study, trial) after each trial.
        apply: Do not search, but export this candidate into `into`.
        into: Output folder of `apply`.
        kernels: As in `export`, as are the next two.
        operators: What the firmware has of its runtime's operators.
        max_energy: For the upper end of the predicted band.
        power: What the board draws, as in `export`.
        import_modules: Modules that register custom layers.
        progress: Called with a short text as each stage begins.
        on_progress: Called with a `Progress` after each epoch and each candidate.
        verbose: Let libraries' logs through.
        argv: The command, for the reports.
        options: Options of the targets, as in `export`.

    Returns:
        Candidates, front and the best; `exit_code` is 0 if it meets every limit.

    Raises:
        EdgeCompressError: an argument, a file or a storage is wrong, or a limit is not known
            before training.

    Example:
        >>> found = ec.search("model.keras", "train.npz", ["nucleo-l4r5zi"], max_ram="16KiB",
        ...                   max_latency="30ms", minutes=15)  # doctest: +SKIP
        >>> found.best.metric, found.exit_code  # doctest: +SKIP
        (0.914, 0)
    """
    from edgecompress.searching.report import page

    if refit and test is None:
        raise ArgumentError(
            "--refit", "go with --test", True,
            "Validation data that a candidate was trained on cannot judge it.",
        )  # fmt: skip
    given = _parsed(
        {
            "trials": trials, "minutes": minutes, "epochs": epochs, "jobs": jobs, "seed": seed,
            "sampler": sampler, "techniques": techniques, "log": log, "storage": storage,
            "study": study, "apply": apply, "groups": groups, "refit": refit, "metric": metric,
        }
    )  # fmt: skip
    techniques, log = given["techniques"], given["log"]
    if not isinstance(callbacks, Sequence) or not all(callable(each) for each in callbacks):
        raise ArgumentError("callbacks", "be a list of functions of (study, trial)", callbacks)
    import_optuna()
    clock = _Clock(_MINUTES if minutes is None and trials is None else minutes, trials)
    profiles = load_profiles(targets)
    budgets = parse_budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    folder = usable_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    candidates = folder / "candidates"
    candidates.mkdir(exist_ok=True)
    loggers = Loggers(log, folder)
    in_file = isinstance(model, (str, Path))
    if not in_file and jobs > 1:
        raise ArgumentError("jobs", "be 1 for a model in memory", jobs, "Save it to a file.")
    asked = {
        "model": str(model) if in_file else model,
        "data": data,
        "validation": validation,
        "metric": metric,
        "groups": groups,
        "test": test,
        "refit": refit,
        "profiles": tuple(profiles),
        "export": {
            "max_flash": budgets.max_flash,
            "max_ram": budgets.max_ram,
            "max_latency": budgets.max_latency,
            "max_file_size": budgets.max_file_size,
            "min_accuracy": budgets.min_accuracy,
            "options": {
                "kernels": kernels,
                "operators": operators,
                "max_energy": max_energy,
                "power": power,
                **options,
            },
        },
        "folder": candidates,
        "techniques": tuple(techniques),
        "share": validation_split,
        "pixels": pixels,
        "steps_per_epoch": steps_per_epoch,
        "seed": seed,
        "verbose": verbose,
    }
    destination = None if apply is None else usable_folder(into)
    with _workers(
        asked, in_file, 1 if apply is not None else jobs, [folder, destination], data_files,
        import_modules, progress, verbose,
    ) as workers:  # fmt: skip
        described = workers[0].describe()
        if min_accuracy is not None and described.metric.partition("@")[0] not in ACCURACIES:
            raise ArgumentError(
                "--min-accuracy", "go with a classifier that is measured by accuracy", min_accuracy,
                f"This model's files are measured by {described.metric}.",
            )  # fmt: skip
        notes = (*described.notes, *disturbed(profiles, len(workers)))
        described = dataclasses.replace(described, notes=notes)
        kept = Study(storage, folder, study, described, sampler, seed, epochs, apply is None)
        # It is printed on pages that are passed on.
        command = tuple(without_password(word) for word in argv or sys.argv)
        if apply is not None and destination is not None:
            exported = workers[0].export(kept.job(apply), destination, command)
            tested = _looked(kept, apply, exported.tested)
            return result_of(described, kept, command, exported.report, apply, tested)
        lost = kept.recover()
        if lost:
            progress(f"{lost} candidates of an interrupted run are queued again")
        _run(kept, described, workers, clock, on_progress, callbacks, loggers, refit)
        notes = (*notes, *loggers.notes)
        described = dataclasses.replace(described, notes=notes)
        result = result_of(described, kept, command, None)
        number = None if result.best is None else result.best.number
        place = None if number is None else kept.elsewhere(number)
        if (number is None or place is not None) and (folder / BEST).exists():
            progress(f"{folder / BEST} is of an earlier search")
        if place is not None:
            progress(f"Candidate {number}, the best, is where it was trained: {place}")
            result = result_of(described, kept, command, None, untested=test is not None)
        elif number is not None:
            exported = workers[0].export(kept.job(number), folder / BEST, command)
            tested = _looked(kept, number, exported.tested)
            result = result_of(described, kept, command, exported.report, tested=tested)
    write_together(folder, {"search.json": result.to_json(), "search.html": page(result)})
    return result


def disturbed(profiles: Sequence[TargetProfile], jobs: int) -> tuple[str, ...]:
    """Returns a note if latency is measured where other candidates are trained meanwhile."""
    names = [p.name for p in profiles if family_of(p).measured == "measured_host"]
    if not names or jobs == 1:
        return ()
    return (
        f"Latency on {', '.join(names)} was measured while other candidates were trained, which "
        "makes candidates look slower; the exported one was measured alone.",
    )


def _looked(study: Study, number: int, tested: Judged | None) -> Judged | None:
    """Returns how a candidate is on the test data, and notes in the study that it was measured."""
    if tested is None:
        return None
    return dataclasses.replace(tested, candidate=number, looked=study.look(number))


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as the command line reads them; refuses what it refuses, too."""
    owners = (SearchOptions, SearchDataOptions, ApplyOptions)
    kinds = {item.name: item.kind for owner in owners for item in options_of(owner)}
    return {
        name: value if value is None else kinds[name].parse(value, name)
        for name, value in given.items()
    }


@contextlib.contextmanager
def _workers(
    asked: Mapping[str, Any],
    in_file: bool,
    jobs: int,
    places: Sequence[Path | None],
    data_files: Sequence[Path | str],
    modules: Sequence[str],
    progress: Callable[[str], None],
    verbose: bool,
) -> Iterator[list[Worker]]:
    """Yields the workers, and ends them."""
    made: list[Worker] = []
    try:
        if not in_file:
            made.append(LocalWorker({**asked, "progress": progress}))
        for _ in range(jobs if in_file else 0):
            sources = {f"--{name}": asked[name] for name in ("data", "validation", "test")}
            files = [asked["model"], sidecar_path(Path(asked["model"])), *data_files]
            files += [x for x in sources.values() if isinstance(x, (str, Path))]
            written = [place for place in places if place is not None]
            for place in written:
                place.mkdir(parents=True, exist_ok=True)
            made.append(
                ConfinedWorker(
                    asked,
                    readable=[Path(file) for file in files],
                    writable=written,
                    modules=modules,
                    functions={name: x for name, x in sources.items() if is_function(x)},
                    threads=threads_each(jobs),
                    progress=progress,
                    verbose=verbose,
                )
            )
        yield made
    finally:
        for worker in made:
            worker.close()


def _run(
    study: Study,
    described: Described,
    workers: Sequence[Worker],
    clock: _Clock,
    on_progress: Callable[[Progress], None],
    callbacks: Sequence[Callable[[Any, Any], None]],
    loggers: Loggers,
    refit: bool,
) -> None:
    """Proposes candidates and has them made until time or trials are used up."""
    pool: Pool[int, Worker] = Pool(workers)
    # Number of the trial, or that of no trial for what comes before them.
    running: dict[int, Job] = {}
    best: Outcome | None = None
    front: tuple[int, ...] = ()

    def work(worker: Worker, number: int, job: Job) -> Outcome | Beginning:
        def tell(epoch: int, loss: float) -> None:
            on_progress(Progress(number, job, None, epoch, best, front, clock.left_s))

        if number != _BEGIN:
            return worker.evaluate(job, tell)
        # Of few candidates, most are better trained for longer.
        most = MOST_TRAINED if clock.trials is None else clock.trials // 3
        left = clock.left_s
        return worker.begin(min(MOST_TRAINED, most), None if left is None else _BEGINNING * left)

    def start(number: int, job: Job) -> None:
        running[number] = job
        pool.start(number, lambda worker: work(worker, number, job))

    def judge() -> None:
        nonlocal best, front
        finished = study.outcomes()
        so_far = result_of(described, study, (), None)
        best = None if so_far.best is None else so_far.best.outcome
        front = tuple(point.number for point in so_far.front)
        again = so_far.best.number if refit and so_far.best is not None else None
        clock.reserve_s = _reserve_s(finished, again)

    try:
        judge()
        if study.claim_beginning():
            start(_BEGIN, Job({}))
        while True:
            while pool.free and (_BEGIN not in running or study.waiting):
                due = _next(study, clock, len(set(running) - {_BEGIN}))
                if due is None:
                    break
                start(*due)
            if not running:
                return
            found = pool.next(_BEAT_S)
            if found is None:
                for number in set(running) - {_BEGIN}:
                    study.alive(number)
                continue
            if found.error is not None:
                raise found.error
            number, answer = found.key, found.value
            job = running.pop(number)
            if isinstance(answer, Beginning):
                study.begin(answer)
                continue
            trial = study.finish(number, answer)
            judge()
            on_progress(Progress(number, job, answer, 0, best, front, clock.left_s))
            for callback in callbacks:
                callback(study.optuna_study, trial)
            loggers(logged(described, study.name, number, job, answer))
    except BaseException:
        for number in set(running) - {_BEGIN}:
            with contextlib.suppress(Exception):
                study.give_up(number)
        raise


def _next(study: Study, clock: _Clock, running: int) -> tuple[int, Job] | None:
    """Returns the next trial; None if it would not end in time, or all have been made."""
    finished = study.outcomes()
    if clock.trials is not None and len(finished) + running >= clock.trials:
        return None
    left = clock.left_s
    if left is not None and left <= 0:
        return None
    closing = clock.used(len(finished) + running) >= CLOSING
    number, job = study.propose(closing, beyond=closing and left is not None)
    if left is None:
        return number, job
    # Of another worker's machine, neither the speed nor the files are of use.
    mine = study.outcomes(here=True)
    shortened = _in_time(job, mine if _spent(mine) else finished, left, tuple(mine))
    if shortened is None:
        study.give_up(number, begun=False)
        return None
    if shortened != job:
        study.shorten(number, shortened)
    return number, shortened


def _spent(finished: Mapping[int, tuple[Job, Outcome]]) -> dict[int, float]:
    """Returns the seconds that an epoch of each candidate that was trained took, by number."""
    return {
        number: outcome.seconds["train"] / max(1, _epochs_of(outcome, job, finished))
        for number, (job, outcome) in finished.items()
        if outcome.made and outcome.seconds.get("train")
    }


def _in_time(
    job: Job,
    finished: Mapping[int, tuple[Job, Outcome]],
    left: float,
    here: Collection[int],
) -> Job | None:
    """Returns a job that ends in the time that is left, shortened if need be; None if none does.

    How long an epoch takes is known of the same candidate, else of the slowest one.

    Args:
        job: What is due.
        finished: What was made, by number.
        left: Seconds.
        here: Those that this worker has: it goes on where they ended.
    """
    spent = _spent(finished)
    if not spent or job.epochs == 0:
        return job
    one = (job.values, job.start)
    same = [n for n in spent if (finished[n][0].values, finished[n][0].start) == one]
    done = max((finished[n][1].epochs for n in same if n in here), default=0)
    exports = [o.seconds.get("export", 0.0) + o.seconds.get("cut", 0.0)
               for _, o in finished.values() if o.made]  # fmt: skip
    rate = max(spent[n] for n in same or spent)
    epochs = int((left - max(exports, default=0.0)) / rate)
    if epochs < 1:
        return None
    if done + epochs >= job.epochs:
        return job
    if job.start != FROM_PARENT or done == 0:
        return None
    return dataclasses.replace(job, epochs=done + epochs, last=True)


def _reserve_s(finished: Mapping[int, tuple[Job, Outcome]], again: int | None) -> float:
    """Returns how long the end will take: export and, for a candidate's number, its refit."""
    export_s = max(
        (o.seconds.get("export", 0.0) for job, o in finished.values() if job.start == UNTOUCHED),
        default=0.0,
    )
    return export_s if again is None else export_s + _refit_s(again, finished)


def _refit_s(number: int, finished: Mapping[int, tuple[Job, Outcome]]) -> float:
    """Returns how long it takes, at most, to train a candidate again with validation data."""
    job, outcome = finished[number]
    whole = outcome.seconds.get("train", 0.0) / max(1, _epochs_of(outcome, job, finished))
    return _REFIT_SHARE * whole * outcome.epochs


def _epochs_of(outcome: Outcome, job: Job, finished: Mapping[int, tuple[Job, Outcome]]) -> int:
    """Returns the epochs that a job itself trained: what a shorter one did comes first."""
    shorter = [
        before.epochs
        for other, before in finished.values()
        if other.values == job.values and other.start == job.start
        and before.epochs < outcome.epochs
    ]  # fmt: skip
    return outcome.epochs - max(shorter, default=0)
