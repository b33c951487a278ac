"""Deep Compression as one recipe: remove channels, prune, cluster, int8, encode.

Han, Mao and Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding, 2016, https://arxiv.org/abs/1510.00149. Differences: magnitudes are
compared over all layers, masks follow a schedule instead of a single cut, centroids are trained
with Adam, weights end up as int8 codes, the coding is TensorFlow Lite Micro's, and the original
model teaches the shrinking one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.content_hashes import model_sha256
from edgecompress.core.errors import ArgumentError
from edgecompress.core.files import jsonable, write_together
from edgecompress.engines.registry import TFLM
from edgecompress.recipes.deep_compression_settings import (
    ALL_OTHERS,
    EPOCHS,
    NAME,
    DeepCompression,
)
from edgecompress.recipes.deep_compression_stages import (
    STAGES,
    check_removed,
    cluster_counts,
    clusters_at_all,
    prunes_at_all,
    pruning_groups,
)
from edgecompress.recipes.registry import RECIPES, Recipe, Request

if TYPE_CHECKING:
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.core.results import Report
    from edgecompress.flatbuffers.model import FlatModel
    from edgecompress.pipeline import Build
    from edgecompress.recipes.checkpoints import Checkpoints, Finished
    from edgecompress.recipes.data import Data
    from edgecompress.recipes.layer_table import TableKernel
    from edgecompress.recipes.results import (
        CompressionResult,
        Drop,
        LayerResult,
        StageResult,
        Totals,
    )
    from edgecompress.recipes.task import Task
    from edgecompress.recipes.training import Trainer
CALIBRATION_SAMPLES = 500
_DENSITY_SAMPLES = 200
# Folder in the output folder.
TEACHER_OUTPUTS = "teacher_outputs"


# --- the run -------------------------------------------------------------------------------------


def run(request: Request) -> CompressionResult:
    """Compresses a model; see `DeepCompression` and `edgecompress.compress`.

    Raises:
        EdgeCompressError: an argument, a file, a training or a conversion is wrong.
    """
    from edgecompress.core.suppress_output import suppress_output
    from edgecompress.pipeline import write
    from edgecompress.reports.figures import join_curves

    settings = request.settings
    _check_request(request)
    # The first import of TensorFlow writes to standard error.
    with suppress_output(request.verbose):
        from edgecompress.recipes import training
        from edgecompress.recipes.checkpoints import Checkpoints

    loaded, data, task, notes = _load(request)
    _check_kinds(request, task)
    # Check layer names before hours of training.
    if prunes_at_all(settings):
        pruning_groups(loaded.model, settings)
    if clusters_at_all(settings):
        cluster_counts(loaded.model, settings)
    check_removed(loaded.model, settings)
    teachers = _teachers(request, loaded)
    baseline = _measure_baseline(request, loaded, data, task)

    distills = task.is_classifier if settings.distill is None else settings.distill
    distillation = None
    if distills:
        distillation = settings.teaching
        who = (
            f"{', '.join(teacher.name for teacher in teachers)} teach"
            if teachers
            else "The original model teaches"
        )
        notes.append(
            f"{who}: soft labels at temperature {settings.temperature:g} "
            f"are {settings.soft_weight:.0%} of the loss."
            if settings.distillation is None
            else f"{who} by {distillation}."
        )
        notes.append(
            f"Outputs of teachers are computed once, and kept in {TEACHER_OUTPUTS}."
            if data.is_fixed
            else "Outputs of teachers are computed in every step: the samples of a dataset may "
            "differ from epoch to epoch."
        )
    trainer = training.Trainer(
        task, data, teachers or [loaded.model], distillation, settings.batch_size,
        settings.rate_of(ALL_OTHERS), request.on_epoch, request.output / TEACHER_OUTPUTS,
    )  # fmt: skip
    checkpoints = Checkpoints(request.output, request.fresh)
    model, finished = _run_stages(
        request, loaded, data, task, distills, trainer, checkpoints, teachers
    )
    notes += checkpoints.notes
    for stage, _ in finished:
        notes += stage.notes

    made = _build(request, loaded, model, data, task)
    request.progress("Writing the files")
    # Curves that exist only in some stages have gaps.
    curves: Any = join_curves([stage.history for stage, _ in finished])
    report = write(made, request.output, argv=request.argv, history=curves)
    return _finish(
        request, loaded, model, data, task, distills, baseline, finished, made, report, notes
    )


def _check_request(request: Request) -> None:
    """Refuses what the export would refuse, but before hours of training."""
    from edgecompress.converters.formats import FORMATS
    from edgecompress.pipeline.request import (
        check_targets,
        load_profiles,
        parse_budgets,
        split_options,
        usable_folder,
    )
    from edgecompress.pipeline.scoring import check_share

    check_targets(FORMATS["compressed"], load_profiles(request.targets))
    export = request.export
    budgets = ("max_flash", "max_ram", "max_latency", "max_file_size", "min_accuracy")
    parse_budgets(*(export.get(name) for name in budgets))
    check_share("--min-agreement", export.get("min_agreement"))
    split_options(export["options"])
    usable_folder(request.output)


def _check_kinds(request: Request, task: Task) -> None:
    """Refuses settings that need classes if there are none."""
    if request.settings.distill and not task.is_classifier:
        raise ArgumentError(
            "--distill", "go with a classifier", "labels that are values",
            "Soft labels are probabilities of classes.",
        )  # fmt: skip
    if request.export.get("min_accuracy") is not None and not task.has_classes_for_export:
        raise ArgumentError(
            "--min-accuracy", "go with a classifier that gives an output a class, or a probability",
            request.export["min_accuracy"], "Use --max-drop.",
        )  # fmt: skip


def _load(request: Request) -> tuple[LoadedModel, Data, Task, list[str]]:
    """Loads model and data, and infers what the model is trained for."""
    from edgecompress.core.record import CompressionRecord
    from edgecompress.recipes.loading import load_trainable

    settings = request.settings
    found = load_trainable(
        request.model, request.data, request.validation, settings.validation_split, settings.seed,
        request.pixels, request.steps_per_epoch, settings.metric, settings.metric_goal,
        request.progress, request.verbose,
    )  # fmt: skip
    loaded, notes = found.loaded, list(found.notes)
    if request.validation is None:
        notes.append(
            "If the original model was trained on these validation samples, its metric is too good "
            "and the drop is overstated: give --validation samples that it was not trained on."
        )
    record = loaded.record or CompressionRecord()
    if record.ranges:
        # They describe activations that training is about to change.
        record = dataclasses.replace(record, ranges={})
        notes.append("Learnt ranges of the model are not used: the weights change.")
    loaded = dataclasses.replace(loaded, record=record)
    target = _model_path(request, loaded)
    if loaded.path is not None and target.resolve() == loaded.path.resolve():
        raise ArgumentError(
            "--output", "be another folder than that of the model, which it would replace",
            str(request.output),
        )  # fmt: skip
    return loaded, found.data, found.task, notes


def _teachers(request: Request, loaded: LoadedModel) -> list[Any]:
    """Returns the models that teach instead of the original.

    Raises:
        ArgumentError: one does not fit the original, or nothing is taught.
    """
    from edgecompress.converters import loaders
    from edgecompress.core.finite import check_weights
    from edgecompress.core.suppress_output import suppress_output

    if request.teachers and request.settings.distill is False:
        raise ArgumentError(
            "--teacher", "be left out with --no-distill", f"{len(request.teachers)} teachers"
        )
    found = []
    for given in request.teachers:
        with suppress_output(request.verbose):
            from_file = isinstance(given, (str, Path))
            teacher = loaders.load_model(given) if from_file else loaders.wrap(given)
        for what in ("inputs", "outputs"):
            wanted = [tuple(t.shape[1:]) for t in getattr(loaded.model, what)]
            got = [tuple(t.shape[1:]) for t in getattr(teacher.model, what)]
            if got != wanted:
                raise ArgumentError(
                    "--teacher", f"have {what} of shapes {wanted}, as the model has",
                    f"{teacher.name} with {got}",
                )  # fmt: skip
        check_weights(teacher.model, "Train the teacher again, or load another file of it.")
        found.append(teacher.model)
    return found


def _model_path(request: Request, loaded: LoadedModel) -> Path:
    return request.output / f"{loaded.name}_compressed.keras"


@dataclass(frozen=True, eq=False)
class _Baseline:
    """The metric of the original model, and its files without further training."""

    metric: float
    int8_metric: float
    float_bytes: int
    int8: FlatModel
    kernels: tuple[TableKernel, ...]


def _calibration(data: Data) -> list[Any]:
    from edgecompress.converters.calibration import spread

    return [spread(array, CALIBRATION_SAMPLES) for array in data.train.x]


def _measure_baseline(request: Request, loaded: LoadedModel, data: Data, task: Task) -> _Baseline:
    """Converts and measures the original model, so that one that cannot be converted fails here."""
    from edgecompress.converters import float32, int8
    from edgecompress.recipes import training
    from edgecompress.recipes.layer_table import kernels

    request.progress("Measuring the original model")
    metric = training.measure(loaded.model, task, data.validation)
    floats = float32.convert(loaded, verbose=request.verbose)
    quantized = int8.strip_names(
        int8.convert(floats, calibration=_calibration(data), verbose=request.verbose)
    )
    return _Baseline(
        metric,
        _file_metric(quantized.flat, task, data),
        len(int8.strip_names(floats.artifact).data),
        quantized.flat,
        tuple(kernels(loaded.model)),
    )


def _file_metric(flat: FlatModel, task: Task, data: Data) -> float:
    """Returns the metric of a .tflite file in TensorFlow Lite Micro."""
    from edgecompress.converters.real_values import dequantize, quantize
    from edgecompress.engines.run import run_engine

    inputs = [
        quantize(array, flat.tensors[index])
        for array, index in zip(data.validation.x, flat.inputs, strict=True)
    ]
    output = run_engine(TFLM, flat.data, inputs).outputs[0]
    values = dequantize(output, flat.tensors[flat.outputs[0]])
    values = values.reshape(len(data.validation), *flat.tensors[flat.outputs[0]].shape[1:])
    return task.metric.measure(task.labels(data.validation, values.shape[1:]), values)


# A finished stage as stored, and as listed in the result.
_Done = tuple["Finished", "StageResult"]


def _run_stages(
    request: Request,
    loaded: LoadedModel,
    data: Data,
    task: Task,
    distills: bool,
    trainer: Trainer,
    checkpoints: Checkpoints,
    teachers: Sequence[Any],
) -> tuple[Any, list[_Done]]:
    """Trains stage by stage, resuming after the last one that an earlier run finished."""
    import keras

    from edgecompress.converters.loaders import load_model
    from edgecompress.core.model_copy import copy_model
    from edgecompress.core.record import CompressionRecord, attach_record
    from edgecompress.recipes.checkpoints import Finished, chain_key
    from edgecompress.recipes.layer_table import kernels, stored_bytes
    from edgecompress.recipes.results import StageResult
    from edgecompress.reports.figures import join_curves

    settings = request.settings
    model = copy_model(loaded.model)
    attach_record(model, loaded.record or CompressionRecord())
    active = [stage for stage in STAGES if stage.active(settings)]
    key = _first_key(settings, loaded, data, task, distills, teachers)
    finished: list[_Done] = []
    for number, stage in enumerate(active, 1):
        key = chain_key(key, {"stage": stage.name, **stage.identity(settings)})
        done = checkpoints.find(stage.name, key)
        resumed = done is not None
        if done is not None:
            request.progress(f"Stage {stage.name} was finished by an earlier run")
            found = load_model(checkpoints.path(stage.name))
            model = found.model
            attach_record(model, found.record or CompressionRecord())
        else:
            request.progress(f"Stage {number} of {len(active)}: {stage.name}")
            # A stage draws the same random numbers whether or not earlier stages were skipped.
            keras.utils.set_random_seed(settings.seed + number)
            start = time.monotonic()
            model, curves, notes = stage.run(settings, trainer, model)
            unsaved = Finished(
                stage.name,
                key,
                sha256="",
                metric=trainer.measure(model),
                epochs=settings.epochs_of(stage.name),
                seconds=time.monotonic() - start,
                history=join_curves(curves),
                notes=notes,
            )
            done = checkpoints.store(unsaved, model)
        weights, kept, size = stored_bytes(kernels(model), settings.index_bits)
        result = StageResult(
            stage.name, stage.title, done.metric, "keras", weights, kept,
            stored_bytes=size, epochs=done.epochs, seconds=done.seconds, resumed=resumed,
        )  # fmt: skip
        finished.append((done, result))
    return model, finished


def _first_key(
    settings: DeepCompression,
    loaded: LoadedModel,
    data: Data,
    task: Task,
    distills: bool,
    teachers: Sequence[Any],
) -> str:
    """Returns the key that all stages start from: model, data, and how they are trained."""
    from edgecompress.core.results import tool_version
    from edgecompress.recipes.checkpoints import chain_key

    taught = settings.distillation or [settings.temperature, settings.soft_weight]
    return chain_key(
        model_sha256(loaded.model),
        {
            "recipe": NAME,
            "version": tool_version(),
            "train": data.sha256(),
            "validation": data.validation.sha256(),
            "loss": task.loss_text,
            "batch_size": settings.batch_size,
            # One by stage belongs to the stage.
            "learning_rate": (
                None if isinstance(settings.learning_rate, Mapping) else settings.learning_rate
            ),
            "distillation": taught if distills else None,
            "seed": settings.seed,
            **({"metric": settings.metric} if task.metric.given else {}),
            **({"teachers": [model_sha256(teacher) for teacher in teachers]} if teachers else {}),
        },
    )


# --- the file, the tables ------------------------------------------------------------------------


def _build(
    request: Request,
    loaded: LoadedModel,
    model: Any,
    data: Data,
    task: Task,
) -> Build:
    """Converts to int8, codes the weights, and checks the targets."""
    from edgecompress.core.learnt_ranges import settled_record, valid_record
    from edgecompress.pipeline import build, build_request

    validation = data.validation
    evaluate = None
    if task.has_classes_for_export and validation.y is not None:
        shape = tuple(model.outputs[0].shape[1:])
        evaluate = (*validation.x, task.exported_labels(validation, shape))
    # The name is that of the original model, and so are the file names.
    record = valid_record(model, settled_record(model))
    asked = build_request(
        dataclasses.replace(loaded, model=model, record=record, notes=()),
        request.targets,
        file_format="compressed",
        calibration=_calibration(data),
        evaluate=evaluate,
        verbose=request.verbose,
        **request.export,
    )
    return build(asked, request.progress)


def _finish(
    request: Request,
    loaded: LoadedModel,
    model: Any,
    data: Data,
    task: Task,
    distills: bool,
    baseline: _Baseline,
    finished: Sequence[_Done],
    made: Build,
    report: Report,
    notes: Sequence[str],
) -> CompressionResult:
    """Makes the tables, and writes them and the Keras model."""
    import numpy as np

    from edgecompress.recipes import layer_table, rendering, training
    from edgecompress.recipes.checkpoints import saved_model
    from edgecompress.recipes.results import CompressionResult, Drop

    settings = request.settings
    request.progress("Making the tables")
    few = data.validation.at(np.arange(min(len(data.validation), _DENSITY_SAMPLES)))
    densities = layer_table.input_densities(model, training.inputs_of(model, few))
    final = layer_table.kernels(model)
    layers, table_notes = layer_table.table(
        baseline.kernels, final, settings.index_bits, densities, made.main.flat
    )
    after = None if task.metric.given else _reported_accuracy(report)
    if after is None:
        request.progress("Measuring the file")
        after = _file_metric(made.main.flat, task, data)
    drop = Drop(
        task.metric.name, baseline.metric, after, task.metric.drop(baseline.metric, after),
        settings.max_drop, len(data.validation),
    )  # fmt: skip
    totals = _totals(loaded, model, baseline, layers, made)
    keras_path = _model_path(request, loaded)
    files = ("compression.json", "compression.html", keras_path.name)
    result = CompressionResult(
        recipe=request.recipe,
        name=loaded.name,
        path=None if loaded.path is None else str(loaded.path),
        settings=jsonable(
            {
                **dataclasses.asdict(settings),
                "epochs": {stage: settings.epochs_of(stage) for stage in EPOCHS},
                "distill": distills,
            }
        ),
        data={
            "samples": data.count,
            "validation_samples": len(data.validation),
            "kind": task.kind,
            "output": task.output,
            "loss": task.loss_text,
            "metric": task.metric.name,
        },
        stages=_stage_results(baseline, finished, drop, totals),
        layers=layers,
        totals=totals,
        drop=drop,
        report=report,
        files=files,
        notes=tuple(dict.fromkeys([*notes, *table_notes, *report.notes])),
        version=report.version,
        argv=report.argv,
    )
    page = rendering.render_html(result)
    tables = {"compression.html": page, "compression.json": result.to_json()}
    write_together(keras_path.parent, {**saved_model(model, keras_path.name), **tables})
    return result


def _reported_accuracy(report: Report) -> float | None:
    """Returns the accuracy that the build measured in TensorFlow Lite Micro, if it did."""
    for target in report.targets:
        for check in target.checks:
            if check.rule == "accuracy" and check.detail.get("engine") == TFLM:
                return check.measured
    return None


def _totals(
    loaded: LoadedModel,
    model: Any,
    baseline: _Baseline,
    layers: Sequence[LayerResult],
    made: Build,
) -> Totals:
    from edgecompress.recipes.results import Cost, Totals
    from edgecompress.targets.family import family_of
    from edgecompress.targets.tflm.latency import predict

    profile, memory = made.profiles[0], made.decompression_memory
    family = family_of(profile)
    settings = family.settle(profile, made.target_options)
    files = (baseline.int8, made.artifact("int8").flat, made.main.flat)
    estimates = [predict(file, profile, settings.kernels) for file in files]
    plans = [family.arena_of(file, profile, settings, memory) for file in files]
    return Totals(
        layers=tuple(layers),
        float_bytes=baseline.float_bytes,
        int8_bytes=len(baseline.int8.data),
        file_bytes=made.model.file_bytes,
        download_bytes=made.model.compressed_bytes,
        target=profile.name,
        latency=Cost(*(estimate.microseconds for estimate in estimates)),
        instructions=Cost(*(None if e.unknown else e.instructions for e in estimates)),
        arena=Cost(*(None if plan is None else plan.used for plan in plans)),
        parameters_before=int(loaded.model.count_params()),
        parameters_after=int(model.count_params()),
    )


def _stage_results(
    baseline: _Baseline, finished: Sequence[_Done], drop: Drop, totals: Totals
) -> tuple[StageResult, ...]:
    """Returns the steps from the original model to the file that ships."""
    from edgecompress.recipes.results import StageResult

    kept = sum(int((kernel.values != 0).sum()) for kernel in baseline.kernels)
    return (
        StageResult(
            "original", "original", baseline.metric, "keras", totals.weights, kept,
            stored_bytes=totals.original_bytes, file_bytes=totals.float_bytes,
        ),
        StageResult(
            "int8", "int8 file, untrained", baseline.int8_metric, TFLM, totals.weights, kept,
            file_bytes=totals.int8_bytes,
        ),
        *(stage for _, stage in finished),
        StageResult(
            "file", "int8 file, encoded", drop.after, TFLM,
            sum(layer.storage.weights for layer in totals.layers), totals.kept,
            stored_bytes=totals.huffman_bytes, file_bytes=totals.file_bytes,
        ),
    )  # fmt: skip


RECIPES.register(NAME)(Recipe(NAME, DeepCompression, run))
