"""Makes the rows of a comparison in one process: train, finalize, convert, run, measure."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.comparison.plan import Plan, wanted
from edgecompress.comparison.results import Beginning, Cell, Made, Subject
from edgecompress.comparison.stages import Defaults, Work, parse_stage
from edgecompress.core import isolation
from edgecompress.core.content_hashes import model_sha256
from edgecompress.core.errors import (
    ArgumentError,
    EdgeCompressError,
    MissingDependencyError,
    ProcessError,
    UnknownNameError,
)
from edgecompress.core.files import jsonable, sha256, write_together
from edgecompress.core.options import options_of

if TYPE_CHECKING:
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.pipeline import Build
    from edgecompress.recipes.data import Data
    from edgecompress.recipes.task import Task

_CALIBRATION = 500
_RESULT = "result.json"
# Checks that become columns, for each target.
_RULES = ("flash", "arena", "latency")


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a comparison is about, where the command line or Python says it over the plan."""

    model: Any
    data: Any
    validation: Any
    profiles: tuple[Any, ...]
    steps_per_epoch: int | None = None


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A row after its stages; `seconds` is what they took."""

    row: int
    seed: int
    model: Any
    seconds: float


class Rows:
    """Makes rows of one plan.

    Args:
        plan: The plan.
        sources: Model, data and targets.
        output: Folder in which finished rows are kept.
        fresh: Makes rows anew that an earlier run has finished.
        progress: Called with a short text as each step begins.
        verbose: Let libraries' logs through.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sources,
        output: Path,
        fresh: bool,
        progress: Callable[[str], None],
        verbose: bool = False,
    ) -> None:
        """Loads model and data, and refuses what cannot be made, before anything is trained."""
        from edgecompress.core.suppress_output import suppress_output

        self._plan, self._sources, self._progress = plan, sources, progress
        self._folder, self._fresh, self._verbose = output / "rows", fresh, verbose
        self._trained: _Trained | None = None
        self._taught: Any = None
        self.stages = tuple(
            tuple(
                parse_stage(
                    stage, Defaults(plan.epochs, plan.learning_rate), f"rows[{row}].stages[{at}]"
                )
                for at, stage in enumerate(found.stages)
            )
            for row, found in enumerate(plan.rows)
        )
        self._exports = tuple(
            export_keys({**plan.export, **row.export}, f"rows[{at}].export")
            for at, row in enumerate(plan.rows)
        )
        # The first import of TensorFlow writes to standard error.
        with suppress_output(verbose):
            from edgecompress.recipes import training

            self._training = training
        self._loaded, self._data, self._task, notes = self._load()
        self._check()
        self._basis = self._hash()
        self.subject = Subject(
            self._loaded.name,
            self._task.metric.name,
            self._task.metric.higher_is_better,
            self._data.count,
            self._data.split,
            len(self._data.validation),
            tuple(dict.fromkeys(notes)),
        )

    def _load(self) -> tuple[LoadedModel, Data, Task, list[str]]:
        from edgecompress.core.record import CompressionRecord
        from edgecompress.recipes.loading import load_trainable

        sources, plan = self._sources, self._plan
        found = load_trainable(
            sources.model, sources.data, sources.validation, plan.validation_split, 0, plan.pixels,
            sources.steps_per_epoch, plan.metric, None, self._progress, self._verbose,
        )  # fmt: skip
        loaded, told = found.loaded, list(found.notes)
        if sources.validation is None:
            told.append(
                "If the model was trained on these validation samples, its own error is too good: "
                "give validation samples that it was not trained on."
            )
        # What an earlier training learnt holds for the untouched model alone.
        record = loaded.record or CompressionRecord()
        return dataclasses.replace(loaded, record=record), found.data, found.task, told

    def _work(
        self, seed: int, fit: Callable[..., Any], taught: Callable[[], Any] | None = None
    ) -> Work:
        return Work(
            self._loaded.model, self._data.steps(self._plan.batch_size),
            self._data.count or len(self._data.train), seed, fit, taught,
        )  # fmt: skip

    def _teacher(self) -> Any:
        """Returns what the untouched model computes for the training data, if these are fixed."""
        from edgecompress.recipes.training import stored

        if self._taught is None:
            model = self._loaded.model
            if self._data.is_fixed:
                self._progress("Computing the outputs of the untouched model")
            found = stored([model], self._data, self._folder.parent / "teacher_outputs")
            # Of a dataset, samples may differ from epoch to epoch: the model itself teaches.
            self._taught = model if found is None else found
        return self._taught

    def _check(self) -> None:
        for row, stages in enumerate(self.stages):
            self._request(self._loaded, row)
            for stage in stages:
                stage.check(self._work(self._plan.seeds[0], _never))

    def _hash(self) -> str:
        """Returns a hash of everything that all rows depend on."""
        from edgecompress.core.results import tool_version

        parts = [
            model_sha256(self._loaded.model),
            self._data.sha256(),
            self._data.validation.sha256(),
            self._task.loss_text,
            self._task.metric.name,
            tool_version(),
            repr(self._sources.profiles),
        ]
        return sha256("\n".join(parts).encode())

    def key(self, row: int, seed: int) -> str:
        """Returns the hash of everything that a row depends on; its label does not matter."""
        found = {
            "basis": self._basis,
            "stages": list(self._plan.rows[row].stages),
            # Of stages that say nothing of their own.
            "epochs": [stage.epochs for stage in self.stages[row]],
            "learning_rate": self._plan.learning_rate,
            "batch_size": self._plan.batch_size,
            "seed": seed,
            "export": self._exports[row],
        }
        return sha256(json.dumps(jsonable(found), sort_keys=True).encode())

    def beginning(self) -> Beginning:
        """Returns what is compared, what each row depends on, and the rows that are stored."""
        items = list(wanted(self._plan))
        found = [self.stored(row, seed) for row, seed in items]
        return Beginning(
            self.subject,
            tuple((row, seed, self.key(row, seed)) for row, seed in items),
            tuple(made for made in found if made is not None),
        )

    # --- one row ----------------------------------------------------------------------------------

    def stored(self, row: int, seed: int) -> Made | None:
        """Returns a row that an earlier run has made; None if there is none, or `fresh`."""
        found = None if self._fresh else self._stored(self.key(row, seed))
        if found is None:
            return None
        label = self._plan.rows[row].label
        return dataclasses.replace(found, row=row, label=label, resumed=True)

    def make(self, row: int, seed: int) -> Made:
        """Makes a row, or returns what an earlier run made of it."""
        return self.train(row, seed) or self.finish()

    def train(self, row: int, seed: int) -> Made | None:
        """Does the stages of a row; `finish` does the rest.

        Returns:
            The row, if nothing is left to do: it was made earlier, or it cannot be made.
        """
        found = self.stored(row, seed)
        if found is not None:
            return found
        began, label = time.monotonic(), self._plan.rows[row].label
        self._progress(f"Row {row + 1} of {len(self._plan.rows)}: {label}")
        try:
            model = self._changed(row, seed)
        except EdgeCompressError as error:
            # One row's training; the others say something all the same.
            return self._failed(row, seed, error)
        self._trained = _Trained(row, seed, model, time.monotonic() - began)
        return None

    def finish(self) -> Made:
        """Makes and measures the file of the row that `train` has trained, and keeps the row."""
        if self._trained is None:
            raise ProcessError("No row was trained.")
        trained, self._trained = self._trained, None
        began = time.monotonic()
        try:
            made, files = self._made(trained)
        except EdgeCompressError as error:
            return self._failed(trained.row, trained.seed, error)
        made = dataclasses.replace(made, seconds=trained.seconds + time.monotonic() - began)
        text = json.dumps(jsonable(isolation.encode(made)), indent=1, allow_nan=False) + "\n"
        write_together(self._folder / made.key[:16], {**files, _RESULT: text})
        return made

    def _failed(self, row: int, seed: int, error: EdgeCompressError) -> Made:
        label = self._plan.rows[row].label
        return Made(row, label, seed, self.key(row, seed), reason=str(error))

    def _stored(self, key: str) -> Made | None:
        """Returns a finished row; None if there is none, or its files are not all there."""
        folder = self._folder / key[:16]
        try:
            made = isolation.decode(Made, json.loads((folder / _RESULT).read_text("utf-8")))
        # Missing, damaged or of another version: it is made again.
        except (OSError, ValueError, ProcessError):
            return None
        whole = made.key == key and (folder / Path(made.file).name).is_file()
        return made if whole else None

    def _changed(self, row: int, seed: int) -> Any:
        """Returns the model after the stages of a row."""
        import keras

        from edgecompress.core.model_copy import copy_model
        from edgecompress.core.record import CompressionRecord, attach_record

        label = self._plan.rows[row].label
        model = copy_model(self._loaded.model)
        attach_record(model, self._loaded.record or CompressionRecord())
        work = self._work(seed, self._fit(label), self._teacher)
        for number, stage in enumerate(self.stages[row]):
            # Rows with the same first stages draw the same random numbers.
            keras.utils.set_random_seed(seed * 1000 + number)
            self._progress(f"{label}: {stage.title}")
            model = stage.run(model, work)
        return model

    def _made(self, trained: _Trained) -> tuple[Made, dict[str, bytes]]:
        from edgecompress.pipeline import build
        from edgecompress.recipes.checkpoints import saved_model
        from edgecompress.recipes.layer_table import kernels

        row, seed, model = trained.row, trained.seed, trained.model
        key, stages, label = self.key(row, seed), self.stages[row], self._plan.rows[row].label
        loaded = self._current(model, bool(stages))
        made = build(self._request(loaded, row), lambda text: self._progress(f"{label}: {text}"))
        self._progress(f"{label}: Measuring the file")
        weights = kernels(model)
        name = f"{self._loaded.name}.keras"
        file = made.main.file_name(made.name)
        notes = [*(loaded.record.notes if loaded.record else ()), *made.notes]
        return (
            Made(
                row, label, seed, key,
                cells={
                    "parameters": Cell(int(model.count_params()), "count", "computed"),
                    "kept": Cell(
                        sum(int(np.count_nonzero(k.values)) for k in weights), "count", "computed"
                    ),
                    **self._costs(made),
                    **self._metrics(model, made),
                },
                stages=tuple(stage.title for stage in stages),
                epochs=sum(stage.epochs for stage in stages),
                file=f"rows/{key[:16]}/{file}",
                notes=tuple(dict.fromkeys(notes)),
            ),
            {file: made.main.data, **saved_model(model, name)},
        )  # fmt: skip

    def _fit(self, label: str) -> Callable[..., Any]:
        def fit(model: Any, title: str, epochs: int, rate: float, callbacks: Sequence[Any]) -> Any:
            trainer = self._training.Trainer(
                self._task, self._data, self._loaded.model, None, self._plan.batch_size, rate,
                lambda epoch: self._progress(f"{label}: {epoch.text}"),
            )  # fmt: skip
            return trainer.fit(model, title, epochs, callbacks)

        return fit

    def _current(self, model: Any, changed: bool) -> LoadedModel:
        """Returns a row's model with the record that still holds."""
        from edgecompress.core.learnt_ranges import settled_record, valid_record

        if not changed:
            return self._loaded
        record = valid_record(model, settled_record(model))
        return dataclasses.replace(self._loaded, model=model, record=record, notes=())

    def _request(self, loaded: LoadedModel, row: int) -> Any:
        from edgecompress.converters.calibration import spread
        from edgecompress.pipeline import build_request

        options = dict(self._exports[row])
        try:
            return build_request(
                loaded,
                self._sources.profiles,
                file_format=options.pop("format"),
                options=options,
                calibration=[spread(array, _CALIBRATION) for array in self._data.train.x],
                bundle=False,
                verbose=self._verbose,
            )
        except EdgeCompressError as error:
            error.args = (f"rows[{row}].export: {error}",)
            raise

    # --- its numbers ------------------------------------------------------------------------------

    def _costs(self, made: Build) -> dict[str, Cell]:
        cells = {
            "macs": Cell(made.model.macs, "count", "computed"),
            "file_bytes": Cell(made.model.file_bytes, "bytes", "computed"),
            "download_bytes": Cell(made.model.compressed_bytes, "bytes", "computed"),
        }
        for rule in _RULES:
            for target in made.targets:
                for check in (check for check in target.checks if check.rule == rule):
                    cells[f"{rule}@{target.name}"] = Cell(
                        check.measured, check.unit, check.how_known, "", check.low, check.high,
                        check.reason if check.measured is None else None,
                    )  # fmt: skip
        return cells

    def _metrics(self, model: Any, made: Build) -> dict[str, Cell]:
        """Returns the metric on the validation data: of the Keras model, of the file by engine."""
        found = self._training.measure(model, self._task, self._data.validation)
        unit = "share" if self._task.metric.name == "accuracy" else "number"
        cells = {"metric_keras": Cell(found, unit, "measured_host", "keras")}
        engines = list(dict.fromkeys(profile.engine for profile in made.profiles))
        for engine in engines:
            name = "metric" if engine == engines[0] else f"metric@{engine}"
            try:
                value = self._file_metric(made, engine)
            except MissingDependencyError as error:
                cells[name] = Cell(None, unit, None, engine, reason=str(error))
                continue
            cells[name] = Cell(value, unit, "measured_host", engine)
        return cells

    def _file_metric(self, made: Build, engine: str) -> float:
        from edgecompress.converters.real_values import dequantize, quantize
        from edgecompress.engines.run import run_engine

        flat, held = made.main.flat, self._data.validation
        inputs = [
            quantize(array, flat.tensors[index])
            for array, index in zip(held.x, flat.inputs, strict=True)
        ]
        tensor = flat.tensors[flat.outputs[0]]
        values = dequantize(run_engine(engine, flat.data, inputs).outputs[0], tensor)
        values = values.reshape(len(held), *self._loaded.model.outputs[0].shape[1:])
        return self._task.metric.measure(self._task.labels(held, values.shape[1:]), values)


def _never(*_: Any) -> Any:
    raise ProcessError("A check of a stage trained the model.")


def export_keys(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the keys of a file as `build_request` names them, `format` among them.

    Raises:
        UnknownNameError: the format, or an option of it, is unknown.
        ArgumentError: a value is of another type.
    """
    from edgecompress.converters.formats import FORMATS
    from edgecompress.pipeline.options import FormatOptions
    from edgecompress.targets.rule import target_options

    name = given.get("format", FormatOptions.file_format)
    if not isinstance(name, str) or name not in FORMATS:
        raise UnknownNameError(f"{where}: format", str(name), FORMATS)
    own = [*options_of(FORMATS[name].options), *target_options().values()]
    known = {key: option for option in own for key in (option.key, option.name)}
    found: dict[str, Any] = {"format": name}
    for key, value in given.items():
        if key == "format":
            continue
        if key not in known:
            raise UnknownNameError(f"{where}: option of --format {name}", key, known)
        option = known[key]
        if option.kind.path:
            raise ArgumentError(f"{where}: {key}", "be left out: rows name no files", value)
        found[option.name] = option.kind.from_toml(value, f"{where}: {key}")
    return found
