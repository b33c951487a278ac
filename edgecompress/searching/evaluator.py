"""The evaluator: a candidate's values in, its file and what it costs out.

cut (no training) -> convert (exact costs) -> train -> export -> run in the target's engine

It is independent of the study, and runs in this process or in a confined one.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.content_hashes import model_sha256
from edgecompress.core.errors import (
    ArgumentError,
    EdgeCompressError,
    UnsupportedOperatorError,
    few,
)
from edgecompress.core.files import jsonable, sha256, write_together
from edgecompress.core.suppress_output import suppress_output
from edgecompress.recipes.samples import Samples
from edgecompress.searching.fitting import Fitting, Stopwatch, lower_dropout
from edgecompress.searching.knobs import Knob, Value
from edgecompress.searching.layouts import begin_with
from edgecompress.searching.measured import judged, not_made, outcome_of, unfit, wanted_metric
from edgecompress.searching.packing import numbered, pack_groups
from edgecompress.searching.results import (
    FROM_SCRATCH,
    METRIC_LIMIT,
    UNTOUCHED,
    Beginning,
    Described,
    Exported,
    Job,
    Judged,
    Outcome,
    trained_for,
)
from edgecompress.searching.screening import (
    Costs,
    Targets,
    refuse_unknown,
)
from edgecompress.searching.space import Space
from edgecompress.searching.structures import Structure
from edgecompress.searching.techniques import TECHNIQUES, Fit, Subject, Technique, own_values
from edgecompress.searching.techniques.channels import Channels
from edgecompress.training.base import TeacherLoss

# Batches by which criteria score filters.
_BATCHES = 50
_CALIBRATION = 500
# Random widths by which the space is described.
_SAMPLE = 300
# Samples that shorter trainings are measured on.
QUICK_SAMPLES = 2000
_RATE = 2e-3
RESULT = "result.json"


class Evaluator:
    """Makes candidates of one model.

    Args:
        model: A Keras model, or the path of its file.
        data: Training data, as `compress` takes them.
        validation: Validation data; None for a part of `data`.
        profiles: The targets.
        export: Keywords of `build_request`: limits and options.
        folder: Where candidates are kept.
        techniques: Names in `TECHNIQUES`; all if empty.
        share: Of the data for validation, if there are none of their own.
        pixels: Range of pixels of a folder of images.
        steps_per_epoch: Batches of an epoch, for a dataset without an end.
        seed: Of everything random.
        progress: Called with a short text as each stage begins.
        verbose: Let libraries' logs through.
        groups: Name of the array in the data that says what each sample is of; None for none.
        test: Data that neither train nor choose; None for none.
        refit: Whether what is exported is trained on the validation data, too.
        metric: Metric that candidates are compared by; None for that of the task.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        validation: Any,
        profiles: Sequence[Any],
        export: Mapping[str, Any],
        folder: Path,
        techniques: Sequence[str] = (),
        share: float = 0.1,
        pixels: str | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        progress: Callable[[str], None] = lambda text: None,
        verbose: bool = False,
        groups: str | None = None,
        test: Any = None,
        refit: bool = False,
        metric: str | None = None,
    ) -> None:
        """Loads the model and the data."""
        from edgecompress.pipeline.request import build_request
        from edgecompress.recipes.loading import load_trainable
        from edgecompress.targets.family import family_of

        found = load_trainable(
            model, data, validation, share, seed, pixels, steps_per_epoch,
            progress=progress, verbose=verbose, groups=groups, test=test,
        )  # fmt: skip
        loaded, self._data, self._task = found.loaded, found.data, found.task
        self._model, self._folder, self._seed = loaded.model, folder, seed
        self._progress, self._verbose = progress, verbose
        self._asked_metric = metric
        wanted = wanted_metric(metric, self._task)
        self._metric, self._higher = wanted.name, wanted.metric.higher_is_better
        self._refit = refit
        if refit:
            self._data.joined()  # Refused before the search, not after it.
        self._notes = list(found.notes)
        self._request = build_request(
            loaded.model,
            profiles,
            calibration=self._calibration(),
            evaluate=self._evaluation(self._data.validation, None),
            metric=[self._metric],
            name=loaded.name,
            **export,
        )
        self._request = dataclasses.replace(self._request, by_sample=True)
        options = self._request.target_options
        multiple = max(
            family_of(p).width_multiple(p, family_of(p).settle(p, options)) for p in profiles
        )
        self.targets = Targets(
            self._request.profiles, self._request.budgets, dict(options), multiple
        )
        self._kept = folder.parent / "teacher_outputs"
        self._fitting = Fitting(loaded.model, self._data, self._task, self._kept)
        self._subject = Subject(
            loaded.model, self._data, self._task, self.targets, self._fitting.loss_of
        )
        self._techniques: dict[str, Technique] = {}
        self._asked = tuple(techniques) or tuple(TECHNIQUES)
        self._space = Space(
            loaded.model,
            self.targets,
            self._task.loss,
            functools.partial(self._fitting.batches, _BATCHES),
            self._techniques,
        )
        self._described: Described | None = None

    # --- what there is to choose ------------------------------------------------------------------

    def describe(self) -> Described:
        """Returns what can be chosen, and how much of it fits; refuses limits that are unknown."""
        if self._described is not None:
            return self._described
        self._progress("Looking for what can be made smaller")
        knobs: list[Knob] = []
        left_out: dict[str, str] = {}
        for name in sorted(TECHNIQUES, key=lambda name: TECHNIQUES[name].order):
            if name not in self._asked:
                continue
            technique = self._techniques[name] = TECHNIQUES[name](self._subject)
            own = technique.knobs()
            knobs += [dataclasses.replace(knob, name=f"{name}.{knob.name}") for knob in own]
            if not own:
                left_out[name] = technique.reason or "there is nothing to choose"
        defaults = {knob.name: knob.default for knob in knobs}
        structure = self._space.structure(defaults)
        whole = structure.whole
        refuse_unknown(whole, self.targets)
        began, before = time.monotonic(), structure.screen.screened
        random = np.random.default_rng(self._seed)
        fitting, samples = 0, _SAMPLE if structure.screen.exact else 0
        for _ in range(samples):
            totals = structure.screen.totals
            widths = np.maximum(1, np.round(totals * random.uniform(0, 1, len(totals)))).astype(int)
            fitting += structure.screen.costs(widths).fits()
        spent = max(time.monotonic() - began, 1e-9)
        screened = structure.screen.screened - before
        told = [technique.note for technique in self._techniques.values() if technique.note]
        notes = [*self._notes, *told, *structure.notes]
        if structure.screen.reason is not None:
            notes.append(
                f"Candidates are converted to be screened, which is slow: {structure.screen.reason}"
            )
        self._described = Described(
            knobs=tuple(knobs),
            left_out=left_out,
            metric=self._metric,
            higher_is_better=self._higher,
            basis=self._basis(knobs),
            rules=tuple(rule for rule in whole.values if rule != "flash"),
            limits=dict(whole.limits),
            exact=structure.screen.exact,
            per_minute=60 * screened / spent,
            reachable=fitting / samples if samples else None,
            notes=tuple(dict.fromkeys(notes)),
            groups=pack_groups(numbered(self._data.validation.groups)),
        )
        return self._described

    def begin(self, most: int, seconds: float | None = None) -> Beginning:
        """Returns where the search begins.

        Args:
            most: Layouts to train for a moment.
            seconds: As in `begin_with`.
        """
        knobs = self.describe().knobs
        self._progress("Comparing depths and resolutions")
        rate, teacher = self._teaching({knob.name: knob.default for knob in knobs})

        def train(model: Any) -> float:
            return self._fitting.glance(model, rate, teacher, self._seed)

        return begin_with(self._space, knobs, train, most, seconds)

    def _basis(self, knobs: Sequence[Knob]) -> str:
        """Returns a hash of what every candidate depends on."""
        parts = [
            model_sha256(self._model),
            self._data.sha256(),
            self._data.validation.sha256(),
            self._task.loss_text,
            repr(self.targets.profiles),
            repr(self.targets.budgets),
            repr(sorted(self.targets.options.items(), key=str)),
            repr([self._seed, knobs]),
            *([] if self._asked_metric is None else [self._metric]),
        ]
        return sha256("\n".join(parts).encode())

    # --- one candidate ----------------------------------------------------------------------------

    def evaluate(
        self, job: Job, tell: Callable[[int, float], None] = lambda epoch, loss: None
    ) -> Outcome:
        """Makes a candidate; what an earlier process has made of it is used again.

        Args:
            job: What to make.
            tell: Called with (epochs done, loss) as it trains.
        """
        described = self.describe()
        values, key = self._values(job), job.key(described.basis)
        place = self._folder / key / f"{job.epochs}"
        found = self._finished(place)
        if found is not None:
            return found
        watch, before = Stopwatch(), self._space.screened
        try:
            outcome = self._make(job, values, key, place, watch, tell)
        except UnsupportedOperatorError as error:
            outcome = not_made(key, job, str(error), {"operators": 1.0})
        except EdgeCompressError as error:
            # One candidate's conversion or training; the others may do better.
            outcome = not_made(key, job, str(error), {"candidate": 1.0})
        return dataclasses.replace(
            outcome, seconds=dict(watch.seconds), screened=self._space.screened - before
        )

    def _values(self, job: Job) -> dict[str, Value]:
        """Returns the values of a job's knobs, checked."""
        known = {knob.name: knob for knob in self.describe().knobs}
        if unknown := sorted(set(job.values) - set(known)):
            raise ArgumentError("--study", "hold candidates of this space", few(unknown))
        values = {name: known[name].check(value) for name, value in job.values.items()}
        if job.start in (UNTOUCHED, FROM_SCRATCH):
            return values
        return {name: values.get(name, knob.default) for name, knob in known.items()}

    def _make(
        self,
        job: Job,
        values: Mapping[str, Value],
        key: str,
        place: Path,
        watch: Stopwatch,
        tell: Callable[[int, float], None],
    ) -> Outcome:
        from edgecompress.core.model_copy import copy_model

        if job.start == UNTOUCHED:
            model, epochs = copy_model(self._model), 0
        else:
            model, done = self._continued(key, job.epochs)
            if model is None:
                model, costs = self._candidate(job, values)
                watch.lap("cut")
                if not costs.fits():
                    return unfit(key, job, costs)
                lower_dropout(model, min(1.0, model.count_params() / self._model.count_params()))
            epochs = job.epochs
            if epochs > done:
                self._train(model, job, values, done, tell)
                watch.lap("train")
        quick = None if self._is_last(job) else QUICK_SAMPLES
        made = self._build(model, values, self._data.validation, quick)
        outcome = outcome_of(key, job, made, model, epochs, self._metric)
        resting = self._space.resting(values, model)
        if resting is not None:
            note = f"{resting} rests: its format has no place for what others ask of the file."
            outcome = dataclasses.replace(outcome, notes=(*outcome.notes, note))
        watch.lap("export")
        self._store(place, model, made, outcome, watch)
        return outcome

    def _candidate(self, job: Job, values: Mapping[str, Value]) -> tuple[Any, Costs]:
        """Returns the model of a candidate before its training, and what its file takes."""
        from edgecompress.baselines.fresh_copy import fresh_copy

        channels = self._techniques.get("channels")
        own = own_values(values, "channels")
        if own:
            least = self._space.least(values)
            if not least.fits():
                return None, least
        structure = self._space.structure(values)
        screen = structure.screen
        if job.start == FROM_SCRATCH or not own or not isinstance(channels, Channels):
            # Each layer thinner by the same share; as it is, if channels are not to go.
            even = np.ones(len(screen.groups.groups))
            model, costs = structure.confirmed(
                lambda fill: (
                    screen.uniform(
                        lambda costs: all(v <= 0 for v in structure.excess(costs, fill).values()),
                        self.targets.multiple,
                    )
                    if job.start == FROM_SCRATCH
                    else screen.totals
                ),
                even,
                1.0,
            )
            return (fresh_copy(model, self._seed) if job.start == FROM_SCRATCH else model), costs
        structure = self._shrunk(structure, channels, values)
        importance = channels.importance(own, structure)
        return structure.confirmed(
            lambda fill: channels.widths(own, structure, importance, fill),
            importance,
            channels.fill(own),
        )

    def _shrunk(
        self, structure: Structure, channels: Channels, values: Mapping[str, Value]
    ) -> Structure:
        """Returns what is left after all rounds but the last, each with a moment of training."""
        own = own_values(values, "channels")
        rounds, fill = channels.rounds(own), channels.fill(own)
        least = channels.least(own, structure)
        if not structure.screen.exact or not structure.costs(least).fits(fill):
            # Nothing that is left will fit, whatever it learns in between.
            return structure
        rate, teacher = self._teaching(values)
        for number in range(rounds - 1):
            importance = channels.importance(own, structure)
            way = (number + 1) / rounds
            widths = channels.widths(own, structure, importance, fill, way)
            model = structure.narrowed(structure.screen.chosen(widths, importance))
            self._fitting.recover(model, rate, teacher, number, self._seed)
            left = structure.of(model)
            if left is None:
                break
            structure = left
        return structure

    def _teaching(self, values: Mapping[str, Value]) -> tuple[float, TeacherLoss | None]:
        """Returns the learning rate, and what compares with the untouched model."""
        rate, teacher = _RATE, None
        for name, technique in self._techniques.items():
            own = own_values(values, name)
            if own:
                rate = technique.rate(own) or rate
                teacher = technique.teacher(own) or teacher
        return rate, teacher

    def _continued(self, key: str, epochs: int) -> tuple[Any, int]:
        """Returns the longest training of a candidate that is kept, and its epochs; else None."""
        from edgecompress.converters.loaders import load_model
        from edgecompress.core.record import attach_record

        folder = self._folder / key
        lengths = sorted(
            int(path.name) for path in folder.iterdir() if path.name.isdigit()
        ) if folder.is_dir() else []  # fmt: skip
        for length in reversed([n for n in lengths if n <= epochs]):
            try:
                found = load_model(folder / str(length) / "model.keras")
            # Missing, damaged, or not what was stored: it is trained anew.
            except EdgeCompressError:
                continue
            if found.record is not None:
                # Its file is made of what training has learnt, too.
                attach_record(found.model, found.record)
            return found.model, length
        return None, 0

    def _train(
        self,
        model: Any,
        job: Job,
        values: Mapping[str, Value],
        done: int,
        tell: Callable[[int, float], None],
        fitting: Fitting | None = None,
    ) -> None:
        fitting = self._fitting if fitting is None else fitting
        epochs = job.epochs - done
        fit = Fit(model, epochs, done, fitting.steps, job.last)
        rate, teacher = self._teaching(values)
        callbacks: list[Any] = []
        alpha = 0.0
        resting = self._space.resting(values, model)
        for name, technique in self._techniques.items():
            own = own_values(values, name)
            if own and name != resting:
                callbacks += technique.callbacks(own, fit)
                alpha = technique.mixup(own) or alpha
        self._progress(f"Training a candidate for {trained_for(epochs)}")
        fitting.fit(
            model, epochs, rate, teacher, callbacks,
            lambda epoch, loss: tell(done + epoch, loss), self._seed + done, alpha=alpha,
        )  # fmt: skip

    def export(self, job: Job, into: Path, argv: Sequence[str] = ()) -> Exported:
        """Writes a candidate as `edgecompress.export` does, on all validation data.

        With test data, it is measured and judged on those instead, and so is the untouched model.

        Args:
            job: The candidate; its training is kept in the folder of the search.
            into: Output folder.
            argv: The command, for the report.

        Raises:
            ArgumentError: the candidate was not made, or is kept elsewhere.
        """
        from edgecompress.core.model_copy import copy_model
        from edgecompress.pipeline import write

        key = job.key(self.describe().basis)
        place = self._folder / key / f"{job.epochs}"
        model = None
        if job.start == UNTOUCHED:
            model = copy_model(self._model)
        elif self._finished(place) is not None:
            model = self._continued(key, job.epochs)[0]
        if model is None:
            raise ArgumentError(
                "--apply", "be a candidate whose file is in the folder of the search", str(place),
                "Candidates that did not fit have none; those of other workers are where they "
                "were trained.",
            )  # fmt: skip
        self._progress("Exporting the candidate")
        test = self._data.test
        judging = self._data.validation if test is None else test
        made = self._build(model, job.values, judging, None)
        refit = ""
        if self._refit and job.start != UNTOUCHED and job.epochs:
            made, model, refit = self._refitted(key, job, made, model, judging)
        report = write(made, into, argv=argv)
        found: dict[str, Any] = report.to_dict()
        found["exit_code"] = report.exit_code
        tested = None
        if test is not None:
            tested = self._judged(outcome_of(key, job, made, model, 0, self._metric), test)
            tested = dataclasses.replace(tested, refit=refit)
        return Exported(found, tested)

    def _refitted(
        self, key: str, job: Job, made: Any, before: Any, judging: Samples
    ) -> tuple[Any, Any, str]:
        """Returns the build and the model after training on all data, and a sentence on it.

        Further training may change how well weights are coded: a file that exceeds a limit only
        then is not taken.
        """
        values, whole = self._values(job), self._data.joined()
        model = self._continued(key, job.epochs)[0]
        # The untouched model has not seen the validation samples, and is wrong about some.
        fitting = Fitting(self._model, whole, self._task, self._kept, adjust=True)
        longer = dataclasses.replace(job, epochs=2 * job.epochs)
        self._train(model, longer, values, job.epochs, lambda epoch, loss: None, fitting)
        again = self._build(model, values, judging, None)
        was, now = (
            outcome_of(key, job, build, model, 0, self._metric).excess for build in (made, again)
        )
        over = [
            rule
            for rule, share in now.items()
            if share > 0 >= was.get(rule, 0.0) and not rule.startswith(METRIC_LIMIT)
        ]
        if over:
            text = f"exceeded the limit of {' and '.join(over)}: it stays as it was chosen"
            return made, before, f"Trained further on the validation data, too, its file {text}."
        count = f", {whole.count:,} samples" if whole.count else ""
        text = (
            f"It was trained for {job.epochs} further epochs on training and validation data "
            f"together{count}; what chose it was measured before."
        )
        return again, model, text

    def _judged(self, outcome: Outcome, test: Samples) -> Judged:
        """Returns a candidate on the test data, beside the untouched model."""
        from edgecompress.core.model_copy import copy_model

        self._progress("Measuring the untouched model on the test data")
        model = copy_model(self._model)
        made = self._build(model, {}, test, None)
        before = outcome_of("", Job({}, UNTOUCHED), made, model, 0, self._metric)
        return judged(outcome, before, test, self.describe().higher_is_better)

    # --- its file -----------------------------------------------------------------------------

    def _is_last(self, job: Job) -> bool:
        return job.last or job.start == UNTOUCHED

    def _build(
        self, model: Any, values: Mapping[str, Value], data: Samples, samples: int | None
    ) -> Any:
        from edgecompress.converters.formats import FORMATS, format_options
        from edgecompress.pipeline import build

        form = self._space.form(values, model)
        request = dataclasses.replace(
            self._request,
            model=model,
            file_format=form.format,
            options=format_options(FORMATS[form.format], form.options),
            evaluate=self._evaluation(data, samples),
        )
        with suppress_output(self._verbose):
            return build(request)

    def _calibration(self) -> Any:
        from edgecompress.converters.calibration import spread

        return [spread(array, _CALIBRATION) for array in self._data.train.x]

    def _evaluation(self, data: Samples, samples: int | None) -> Any:
        from edgecompress.converters.calibration import spread

        part = data if samples is None else data.at(spread(np.arange(len(data)), samples))
        shape = tuple(self._model.outputs[0].shape[1:])
        return (*part.x, self._task.exported_labels(part, shape))

    def _store(
        self, place: Path, model: Any, made: Any, outcome: Outcome, watch: Stopwatch
    ) -> None:
        import json

        from edgecompress.recipes.checkpoints import saved_model

        full = dataclasses.replace(outcome, seconds=dict(watch.seconds))
        files: dict[str, bytes | str] = {
            **saved_model(model, "model.keras"),
            "model.tflite": made.main.data,
            RESULT: json.dumps(jsonable(full.to_dict()), indent=1) + "\n",
        }
        write_together(place, files)

    def _finished(self, place: Path) -> Outcome | None:
        """Returns the outcome that is stored with a candidate; None unless all of it is there."""
        import json

        from edgecompress.core import isolation

        try:
            found = isolation.decode(Outcome, json.loads((place / RESULT).read_text()))
            data = (place / "model.tflite").read_bytes()
        except (OSError, ValueError, EdgeCompressError):
            return None
        return found if sha256(data) == found.sha256 else None
