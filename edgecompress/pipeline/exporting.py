"""`export`: a Keras model, or an int8 .tflite file, to the file that ships.

load -> make the files of the format -> run in the engines -> check the targets -> write
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.converters.formats import (
    FORMATS,
    Format,
    FormatRequest,
    FormatResult,
    file_stem,
    format_options,
)
from edgecompress.core import isolation
from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from edgecompress.core.files import write_together
from edgecompress.core.labelled import Labelled
from edgecompress.core.record import sidecar_path
from edgecompress.core.results import CheckResult, Report
from edgecompress.core.suppress_output import suppress_output
from edgecompress.engines.run import Session, engine_available, session
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline.bundle import bundle_profile, make_bundle, read_labels
from edgecompress.pipeline.costs import costs_on
from edgecompress.pipeline.measuring import (
    FIELD_RUNTIME,
    PARITY_SAMPLES,
    Measurements,
    field_runtime_note,
    input_losses,
    parity_check,
    reference_outputs,
    verify_in,
)
from edgecompress.pipeline.request import (
    check_flash_budget,
    check_kernels,
    check_name,
    check_share,
    check_targets,
    labelled_data,
    load_profiles,
    parse_budgets,
    read_measured,
    silent,
    usable_folder,
)
from edgecompress.pipeline.scoring import Scoring, check_labels, parse_scoring
from edgecompress.pipeline.writing import (
    c_source_files,
    export_files,
    html_page,
    listing,
    run_checks,
    tool_version,
)

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.tasks import Output
    from edgecompress.converters.verify import Parity
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.measurement import MeasurementFile
    from edgecompress.targets.profile import TargetProfile


def export(
    model: Any,
    targets: Sequence[str | Path | TargetProfile],
    *,
    file_format: str = "int8",
    calibration: Any = None,
    evaluate: Any = None,
    output: Path | str = "build",
    name: str | None = None,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    metric: str | Sequence[str] | None = None,
    min_metric: Mapping[str, float] | Sequence[str] | None = None,
    max_metric: Mapping[str, float] | Sequence[str] | None = None,
    max_drop: float | Mapping[str, float] | Sequence[str] | None = None,
    min_agreement: float | None = None,
    min_r2: float | None = None,
    kernels: str | None = None,
    codings: Sequence[str] | None = None,
    decompression_memory: str | int | None = None,
    weight_format: str | None = None,
    smallest: bool = False,
    c_sources: bool = False,
    labels: Path | str | Sequence[str] | None = None,
    measured: Path | str | None = None,
    baseline: Report | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    import_modules: Sequence[str] = (),
    progress: Callable[[str], None] = silent,
    verbose: bool = False,
    argv: Sequence[str] = (),
) -> Report:
    """Converts a model, runs it in the targets' engines and checks its budgets.

    Writes the files of the format (`<model>_float32.tflite`, `<model>_int8.tflite`, ...), their
    record, `report.json` and `report.html` into `output`, all at one moment and only after all
    work has succeeded. With a phone or the host among the targets also `bundle.json`, which
    `edgecompress bench` and the demo app run, and golden inputs and outputs.

    Args:
        model: A Keras model, or the path of a .keras or .h5 file or a SavedModel folder. Formats
            that code int8 weights also take the path of an int8 .tflite file.
        targets: Names that `edgecompress targets` lists, paths of own .toml profiles, or profiles.
        file_format: `"int8"`; `"compressed"`: weights coded without loss for TensorFlow Lite
            Micro, less flash for more arena and time; `"binary-weights"`: binary, ternary and other
            weights of few levels in fewer bits, for phones; `"sparse"`: float32 with pruned blocks
            of fully-connected layers left out, for phones; `"xnor"`: layers of `BinaryConv2D` and
            `BinaryDense` for Larq Compute Engine. Defaults to `"int8"`.
        calibration: Real inputs as the model takes them: an array, a list of arrays for several
            inputs, a mapping from their names, a tf.data.Dataset or a generator (or a function that
            returns one) of which 1,000 samples are taken, or the path of an .npz or .npy file (key
            `x`; labels `y` are used as `evaluate` where that is not given). They set ranges that
            training did not learn, and parity is measured on them. Not with a .tflite file, which
            has its ranges.
        evaluate: Labelled data for the accuracy check: (x, y), or the path of an .npz file.
        output: Folder of the files; made where it is missing.
        name: Name that the files begin with, e.g. `"kws"` for `kws_int8.tflite`. Defaults to the
            name of the model file, for a model in memory to `model.name`.
        max_flash: Budget for the model and the runtime's code, e.g. `"512KiB"`, or bytes.
        max_ram: Budget for the tensor arena, decoded weights included, e.g. `"96KiB"`, or bytes.
        max_latency: Budget for one inference, decoding included, e.g. `"60ms"`, or microseconds.
        max_file_size: Budget for the shipped file alone.
        min_accuracy: Floor for the accuracy of the file in the target's engine, 0 to 1; it holds
            for every output that classifies.
        metric: Metrics to measure, `NAME` or `NAME:OUTPUT`: `accuracy`, `binary_accuracy`, `top5`,
            `auc`, `mean_iou`, `mae`, `mse`, `rmse`, `r2`. Defaults to what fits the compiled loss,
            else the operator that makes the output, else the labels.
        min_metric: Floors of metrics of which more is better, e.g. `{"r2:box": 0.9}`.
        max_metric: Ceilings of errors, e.g. `{"mae:box": 2.5}`.
        max_drop: How far a metric of the file may be worse than that of the Keras model, in its
            own unit: a number for all, e.g. 0.01 for one point of accuracy, or by metric.
        min_agreement: Floor for the share of predictions that agree with the Keras model.
            Defaults to 0.9 for outputs that answer (classes, yes or no) and none for values.
        min_r2: Floor for R2 of each column of values against the Keras model, 0 to 1; 0 for none,
            of scores of classes neither. Defaults to 0.9.
        kernels: Kernel set of microcontrollers, `cmsis-nn` or `reference`, instead of the
            profile's.
        codings: With `"compressed"`: the codes that may be used, of `lut`, `prune`, `huffman`.
            Defaults to all.
        decompression_memory: With `"compressed"`: memory outside the arena that the firmware hands
            to `SetDecompressionMemory` for decoded weights, e.g. `"16KiB"`; they then take no
            arena, and the C++ sources set it. Defaults to None: decoded weights lie in the arena.
        weight_format: With `"binary-weights"`: which form of the weights is checked and compared
            with the model: `int8`, `int4`, `int4-dense`, `int2` or `smallest`. All are written.
            Defaults to `int8`.
        smallest: The same as `weight_format="smallest"`.
        c_sources: Also write C++ sources for TensorFlow Lite Micro into `<output>/c`: the model as
            an array, a resolver of exactly its operators, the arena size, an example program.
        labels: Names of the classes for the bundle, in the order of the first output: a list, or a
            text file with one in each line. Needs a phone or the host among the targets.
        measured: A file that `edgecompress bench` or the demo app wrote for this model and one of
            the targets: the latency of that target is the measured one.
        baseline: An earlier report; the HTML page compares against it.
        history: Training curves for the HTML page, name -> values (`model.fit(...).history`).
        import_modules: Modules that register the layers of your own that a model file names
            (`keras.saving.register_keras_serializable`); found in the current folder, too. A file
            is read in a separate process, where classes registered in this one are unknown.
        progress: Called with a short text as each stage begins.
        verbose: Let the converters write their log to standard error.
        argv: The command for the report.

    Returns:
        The report; `report.exit_code` is 0 where every limit of every target is kept.

    Raises:
        EdgeCompressError: an argument, a file or a conversion is wrong, or a file that must
            compute the same does not; nothing was written.

    Example:
        >>> report = ec.export(model, ["nucleo-l4r5zi"], calibration=x[:200],
        ...                    max_ram="96KiB", output="build/")  # doctest: +SKIP
        >>> report.verdict  # doctest: +SKIP
        'pass'
    """
    profiles = load_profiles(targets)
    budgets = parse_budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    check_flash_budget(max_flash, profiles)
    scoring = parse_scoring(min_accuracy, metric, min_metric, max_metric, max_drop)
    check_kernels(kernels)
    floor = check_share("--min-agreement", min_agreement)
    check_share("--min-r2", min_r2)
    chosen = FORMATS[file_format]
    check_targets(chosen, profiles)
    options = format_options(
        chosen,
        {
            "codings": codings or None,
            "decompression_memory": decompression_memory,
            "weight_format": weight_format,
            "smallest": smallest,
        },
    )
    timed = read_measured(measured, profiles)
    folder = usable_folder(output)
    if c_sources and not any(profile.is_microcontroller for profile in profiles):
        raise ArgumentError(
            "--c-sources", "go with a microcontroller among the targets", [p.name for p in profiles]
        )
    bundled_for = bundle_profile(profiles)
    class_names = read_labels(labels)
    if class_names is not None and bundled_for is None:
        raise ArgumentError(
            "--labels", "go with a phone or the host among the targets", [p.name for p in profiles]
        )
    check_name(name)
    asked = _Asked(
        name=name,
        file_format=file_format,
        profiles=tuple(profiles),
        budgets=budgets,
        kernels=kernels,
        options=options,
        floor=floor,
        min_r2=min_r2,
        scoring=scoring,
        timed=timed,
        calibration=calibration,
        evaluate=evaluate,
        folder=folder,
        c_sources=c_sources,
        class_names=class_names,
        baseline=baseline,
        history=history,
        verbose=verbose,
        argv=tuple(argv) or tuple(sys.argv),
    )
    if isinstance(model, (str, Path)):
        built = _build_apart(Path(model), asked, tuple(import_modules), progress)
    else:
        built = _build(model, asked, progress)
    progress("Writing the files")
    write_together(folder, built.files)
    return built.report


@dataclass(frozen=True)
class _Asked:
    """What an export was asked for, checked; what is read from files is still to be read."""

    name: str | None
    file_format: str
    profiles: tuple[TargetProfile, ...]
    budgets: Budgets
    kernels: str | None
    options: Any
    floor: float | None
    min_r2: float | None
    scoring: Scoring
    timed: MeasurementFile | None
    calibration: Any
    evaluate: Any
    folder: Path
    c_sources: bool
    class_names: tuple[str, ...] | None
    baseline: Report | None
    history: Mapping[str, Sequence[float]] | None
    verbose: bool
    argv: tuple[str, ...]


@dataclass(frozen=True)
class _Built:
    """An export before it is written."""

    report: Report
    files: Mapping[str, bytes | str]


def _build_apart(
    model: Path, asked: _Asked, import_modules: tuple[str, ...], progress: Callable[[str], None]
) -> _Built:
    """Builds from a file, in a process of its own: files come from anywhere."""
    given = [asked.calibration, asked.evaluate]
    data = [Path(path) for path in given if isinstance(path, (str, Path))]
    answer = isolation.call(
        f"{__name__}:build_isolated",
        {"model": str(model), "asked": asked},
        readable=[model, sidecar_path(model), *data],
        modules=import_modules,
        progress=progress,
        verbose=asked.verbose,
    )
    return _Built(isolation.decode(Report, answer.value), answer.files)


def build_isolated(
    model: str, asked: _Asked, tell: Callable[[str, Any], None], gaps: Sequence[str] = ()
) -> tuple[dict[str, Any], Mapping[str, bytes | str]]:
    """Builds an export in the process that was started for it; returns its report and files."""
    with session() as shared:
        shared.gaps.update(dict.fromkeys(gaps))
        built = _build(Path(model), asked, lambda text: tell("progress", text))
    return isolation.encode(built.report), built.files


def _build(model: Any, asked: _Asked, progress: Callable[[str], None]) -> _Built:
    """Converts, runs and checks; writes nothing."""
    with session() as shared:
        return _build_in(shared, model, asked, progress)


def _build_in(
    shared: Session, model: Any, asked: _Asked, progress: Callable[[str], None]
) -> _Built:
    chosen, profiles, budgets = FORMATS[asked.file_format], list(asked.profiles), asked.budgets
    kernels, scoring = asked.kernels, asked.scoring
    bundled_for = bundle_profile(profiles)
    job, labelled, notes = _job(
        model,
        chosen,
        asked.calibration,
        asked.evaluate,
        asked.floor,
        progress,
        asked.verbose,
        options=asked.options,
        costs=costs_on(asked.profiles, budgets, kernels, progress),
    )
    if asked.name is not None:
        job = dataclasses.replace(job, name=asked.name)
    if scoring.drops and job.loaded is None:
        raise ArgumentError(
            "--max-drop", "be left out with a .tflite file", str(model),
            "There is no Keras model to compare with; use --min-metric.",
        )  # fmt: skip
    outputs = _outputs(job)
    if labelled is not None and labelled.argument == "--evaluate":
        check_labels(scoring, outputs, _output_shapes(job), labelled)
    product = chosen.make(job)
    if product.engine is not None:
        profiles = [
            p if p.is_microcontroller else dataclasses.replace(p, engine=product.engine)
            for p in profiles
        ]
    notes += product.notes

    measurements = Measurements(
        product.main.data, progress, labelled, scoring, outputs=outputs, loaded=job.loaded
    )
    agreement = _Agreement(product, measurements, asked.floor, asked.min_r2, outputs)
    samples = job.samples
    if samples is None and labelled is not None:
        samples = labelled.x
    if job.loaded is None:
        agreement.load({p.engine for p in profiles})
    else:
        notes += agreement.measure(job, samples, [p.engine for p in profiles])
    if product.legacy_runtime:
        progress(f"Loading the {product.main.kind} file in {FIELD_RUNTIME}")
        notes += field_runtime_note(product.main.data)

    results, model_info = run_checks(
        product.flat,
        profiles,
        budgets,
        kernels,
        measurements,
        lambda profile: [agreement.check(profile)],
        str(asked.folder / product.main.file_name(job.name)),
        progress,
        product.decompression_memory,
        asked.timed,
    )

    extra: dict[str, bytes | str] = {}
    if bundled_for is not None:
        boards = any(profile.is_microcontroller for profile in profiles)
        bundled = make_bundle(
            product.artifacts,
            product.main,
            job.name,
            bundled_for,
            # Beside a microcontroller the limit is meant for its arena, not for a process.
            dataclasses.replace(budgets, max_ram=None) if boards else budgets,
            samples,
            asked.class_names,
            progress,
        )
        extra = bundled.files
        notes += bundled.notes

    sources: dict[str, str] = {}
    if asked.c_sources:
        try:
            sources = c_source_files(
                product.main.data,
                job.name,
                profiles,
                kernels,
                results,
                product.decompression_memory,
            )
        except (UnsupportedOperatorError, UnsupportedModelError) as error:
            notes.append(f"No C++ sources were written: {error}")
    if product.parameters is not None:
        model_info = dataclasses.replace(model_info, parameters=product.parameters)
    report = Report(
        model=model_info,
        targets=results,
        argv=asked.argv,
        version=tool_version(),
        artifacts=listing(product.artifacts, job.name, sources, product.latencies),
        notes=tuple(dict.fromkeys([*notes, *shared.gaps])),
    )
    page = html_page(
        report, product.flat, profiles, kernels, asked.baseline, asked.history, agreement.layered
    )
    files = export_files(product.artifacts, job.name, sources, report, page, extra)
    return _Built(report, files)


def _job(
    model: Any,
    chosen: Format,
    calibration: Any,
    evaluate: Any,
    min_agreement: float | None,
    progress: Callable[[str], None],
    verbose: bool,
    **asked: Any,
) -> tuple[FormatRequest, Labelled | None, list[str]]:
    """Reads the model and the data; returns them with notes on both."""
    if isinstance(model, (str, Path)) and Path(model).suffix == ".tflite":
        return _flatbuffer_job(model, chosen, calibration, evaluate, min_agreement, **asked,
                               progress=progress, verbose=verbose)  # fmt: skip
    from edgecompress.converters import calibration as calibrations
    from edgecompress.converters import loaders
    from edgecompress.converters.streams import is_stream

    progress("Loading the model")
    # The first import of TensorFlow writes to standard error.
    with suppress_output(verbose):
        from_file = isinstance(model, (str, Path))
        loaded = loaders.load_model(model) if from_file else loaders.wrap(model)
    loaders.refuse_unconvertible(loaded)
    samples, labels = calibrations.load(calibration, loaded, argument="--calibration")
    labelled = labelled_data(evaluate, loaded, samples, labels)
    taken = [
        f"{len(data[0])} samples were taken from what {argument} yields."
        for argument, source, data in (
            ("--calibration", calibration, samples),
            ("--evaluate", evaluate, labelled.x if labelled is not None else None),
        )
        if data and is_stream(source)
    ]
    learnt = loaded.record.notes if loaded.record else ()
    job = FormatRequest(
        loaded.name, loaded, None, samples, progress=progress, verbose=verbose, **asked
    )
    return job, labelled, [*loaded.notes, *learnt, *taken]


def _flatbuffer_job(
    model: str | Path,
    chosen: Format,
    calibration: Any,
    evaluate: Any,
    min_agreement: float | None,
    **asked: Any,
) -> tuple[FormatRequest, Labelled | None, list[str]]:
    path = Path(model)
    if not chosen.from_tflite:
        able = " or ".join(name for name in FORMATS if FORMATS[name].from_tflite)
        raise ArgumentError(
            "MODEL", f"be a Keras model for --format {chosen.name}", str(path),
            f"With --format {able} it may be an int8 .tflite file; `edgecompress check` checks it.",
        )  # fmt: skip
    for name, value in (("--calibration", calibration), ("--min-agreement", min_agreement)):
        if value is not None:
            raise ArgumentError(
                name, "be left out with a .tflite file", str(value)[:80],
                "Its ranges are set, and its outputs stay the same.",
            )  # fmt: skip
    original = read_tflite(path)
    labelled = None
    if evaluate is not None:
        labelled = labelled_data(evaluate, original, None, None)
    return FormatRequest(file_stem(path), None, original, None, **asked), labelled, []


def _outputs(job: FormatRequest) -> tuple[Output, ...]:
    """Returns the outputs of the input model."""
    from edgecompress.converters.tasks import outputs_of, outputs_of_file

    return outputs_of(job.loaded) if job.original is None else outputs_of_file(job.original)


def _output_shapes(job: FormatRequest) -> list[tuple[int | None, ...]]:
    """Returns the shapes of these outputs, samples first."""
    if job.original is not None:
        return [job.original.tensors[index].shape for index in job.original.outputs]
    from edgecompress.converters.tasks import output_shapes

    return output_shapes(job.loaded)


class _Agreement:
    """How well the made file agrees with the model it was made from, in each engine."""

    def __init__(
        self,
        product: FormatResult,
        measurements: Measurements,
        floor: float | None,
        min_r2: float | None,
        outputs: Sequence[Output] = (),
    ) -> None:
        from edgecompress.converters.agreement import meaning_of

        self._meanings = [
            meaning_of(None if output.loss is None else output.loss.kind) for output in outputs
        ]
        self._min_r2 = min_r2
        self._product = product
        self._measurements = measurements
        self._floor = floor
        self._parities: dict[str, Parity] = {}
        self.layered: Parity | None = None

    def load(self, engines: set[str]) -> None:
        """Lets the engines load the file."""
        for engine in sorted(engines):
            if engine_available(engine) is None:
                self._measurements.try_loading(engine)

    def measure(
        self, job: FormatRequest, samples: tuple[np.ndarray, ...] | None, engines: Sequence[str]
    ) -> list[str]:
        """Runs the file, and the file with the inner tensors' names; returns notes."""
        from edgecompress.converters import calibration as calibrations

        notes: list[str] = []
        few = reference = simulated = None
        if samples is not None and job.loaded is not None:
            few = tuple(calibrations.spread(array, PARITY_SAMPLES) for array in samples)
            reference, simulated = reference_outputs(job.loaded, few)
        for engine, file, floats in self._runs(engines):
            if engine_available(engine) is not None:
                continue
            job.progress(f"Running the {file.kind} file in {engine}")
            if few is None or reference is None:
                self._measurements.try_loading(engine)
                continue
            try:
                parity = verify_in(
                    file.data,
                    floats,
                    reference,
                    few,
                    engine,
                    simulated,
                    kind=self._meanings,
                    min_r2=self._min_r2,
                )
            except EngineError as error:
                self._measurements.note_refusal(engine, error)
                continue
            notes += parity.notes
            if file.kind == self._product.main.kind:
                notes += input_losses(parity)
            if floats is not None:
                self.layered = parity
            if file.kind == self._product.main.kind:
                self._parities[engine] = parity
        return notes

    def _runs(self, engines: Sequence[str]) -> list[tuple[str, Artifact, Artifact | None]]:
        """Returns what runs where: engine, file, and the float file to compare its layers with."""
        product, shown = self._product, None
        runs: list[tuple[str, Artifact, Artifact | None]] = []
        if product.layers is not None:
            # LiteRT alone shows the inner tensors of an int8 file.
            shown = ("litert", product.layers[0].kind)
            runs.append(("litert", *product.layers))
        for engine in dict.fromkeys(engines):
            if (engine, product.main.kind) != shown:
                runs.append((engine, product.main, None))
        return runs

    def check(self, profile: TargetProfile) -> CheckResult:
        """Returns the parity check of a target."""
        if self._product.parity is not None:
            return self._product.parity
        return parity_check(
            profile,
            self._parities,
            {**self._measurements.not_run, **self._measurements.refusals},
            self._floor,
            self._product.main.kind,
            self.layered,
            self._min_r2,
        )
