"""The pipeline as two functions: `export` a Keras model, `check` a .tflite file.

load -> float32 flatbuffer -> int8 flatbuffer -> run in the engines -> check the targets
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.engines import engine_available, load_failure
from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from edgecompress.core.files import sha256, write_together
from edgecompress.core.flatbuffer import FlatModel, read_tflite
from edgecompress.core.quiet import quiet
from edgecompress.core.record import CompressionRecord, sidecar_path, sidecar_text
from edgecompress.core.results import (
    Artifact,
    ArtifactInfo,
    CheckResult,
    ModelInfo,
    Report,
    TargetResult,
    judge,
)
from edgecompress.core.units import format_size, format_time, parse_size, parse_time

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.verify import Parity
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.profile import TargetProfile

# How many of the given samples the engines run for parity, and for the per-layer comparison.
PARITY_SAMPLES = 200
LAYER_SAMPLES = 16

# A classifier that agrees with its own reference on fewer samples is broken, not merely rounded.
# Models without classes have no such floor: what error they bear depends on their use.
MIN_AGREEMENT = 0.9

# The runtime of devices in the field: not run for numbers, but asked whether it loads the file.
FIELD_RUNTIME = "tflite-runtime"


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Labelled:
    """Inputs and class numbers for the accuracy check.

    Attributes:
        x: Inputs as the model takes them, one array for each; first axis samples.
        y: Class numbers, one for each sample.
    """

    x: tuple[np.ndarray, ...]
    y: np.ndarray


def export(
    model: Any,
    targets: Sequence[str | Path | TargetProfile],
    *,
    calibration: Any = None,
    evaluate: Any = None,
    output: Path | str = "build",
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    min_agreement: float | None = None,
    kernels: str | None = None,
    c_sources: bool = False,
    baseline: Report | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    progress: Callable[[str], None] = _silent,
    verbose: bool = False,
    argv: Sequence[str] = (),
) -> Report:
    """Converts a Keras model to int8, runs it in the targets' engines and checks its budgets.

    Writes `<model>_float32.tflite`, `<model>_int8.tflite`, its record, `report.json` and
    `report.html` into `output`, each file in one step and only after all work has succeeded.

    Args:
        model: A Keras model, or the path of a .keras or .h5 file or a SavedModel folder.
        targets: Names that `edgecompress targets` lists, paths of own .toml profiles, or profiles.
        calibration: Real inputs as the model takes them: an array, a list of arrays for several
            inputs, or the path of an .npz or .npy file (key `x`; labels `y` are used as
            `evaluate` where that is not given). They set the ranges that training did not learn,
            and parity is measured on them.
        evaluate: Labelled data for the accuracy check: (x, y), or the path of an .npz file.
        output: Folder of the files; made where it is missing.
        max_flash: Budget for the model and the runtime's code, e.g. `"512KiB"`, or bytes.
        max_ram: Budget for the tensor arena, e.g. `"96KiB"`, or bytes.
        max_latency: Budget for one inference, e.g. `"60ms"`, or microseconds.
        max_file_size: Budget for the int8 file alone.
        min_accuracy: Floor for top-1 accuracy of the int8 file in the target's engine, 0 to 1.
        min_agreement: Floor for the share of predictions that agree with the Keras model.
            Defaults to 0.9 for classifiers and none for other models.
        kernels: Kernel set of microcontrollers, `cmsis-nn` or `reference`, instead of the
            profile's.
        c_sources: Also write C++ sources for TensorFlow Lite Micro into `<output>/c`: the model as
            an array, a resolver of exactly its operators, the arena size, an example program.
        baseline: An earlier report; the HTML page compares against it.
        history: Training curves for the HTML page, name -> values (`model.fit(...).history`).
        progress: Called with a short text as each stage begins.
        verbose: Let the converters write their log to standard error.
        argv: The command for the report.

    Returns:
        The report; `report.exit_code` is 0 where the model fits every target.

    Raises:
        EdgeCompressError: an argument, a file or a conversion is wrong; nothing was written.

    Example:
        >>> report = ec.export(model, ["nucleo-l4r5zi"], calibration=x[:200],
        ...                    max_ram="96KiB", output="build/")  # doctest: +SKIP
        >>> report.verdict  # doctest: +SKIP
        'pass'
    """
    profiles = _profiles(targets)
    budgets = _budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    _check_kernels(kernels)
    floor = _share("--min-agreement", min_agreement)
    folder = _usable_folder(output)
    if c_sources and not any(profile.is_microcontroller for profile in profiles):
        raise ArgumentError(
            "--c-sources", "go with a microcontroller among the targets", [p.name for p in profiles]
        )

    from edgecompress.converters import calibration as calibrations
    from edgecompress.converters import float32, int8, loaders

    progress("Loading the model")
    # The first import of TensorFlow writes to standard error.
    with quiet(verbose):
        from_file = isinstance(model, (str, Path))
        loaded = loaders.load_model(model) if from_file else loaders.wrap(model)
    samples, labels = calibrations.load(calibration, loaded, argument="--calibration")
    labelled, label_notes = _labelled(evaluate, loaded, samples, labels)

    progress("Converting to a float32 flatbuffer")
    floats = float32.convert(loaded, verbose=verbose)
    progress("Quantizing to int8")
    learnt = loaded.record or CompressionRecord()
    step = {
        "technique": "int8_conversion",
        "learnt_ranges": len(learnt.ranges),
        "calibration_samples": 0 if samples is None else len(samples[0]),
    }
    named = dataclasses.replace(
        int8.convert(floats, calibration=samples, verbose=verbose),
        record=learnt.merged(CompressionRecord(steps=(step,))),
    )
    quantized = int8.strip_names(named)
    # Checks speak of tensors by name; the file that ships does not pay for the names.
    flat = dataclasses.replace(read_tflite(named.data), data=quantized.data)

    notes = [*loaded.notes, *floats.artifact.notes, *quantized.notes]
    notes += learnt.notes
    notes += label_notes

    if samples is None and labelled is not None:
        samples = labelled.x
    measurements = _Measurements(quantized.data, progress, labelled, min_accuracy)
    parities: dict[str, Parity] = {}
    few = reference = None
    reference_name = ""
    if samples is not None:
        few = tuple(calibrations.spread(array, PARITY_SAMPLES) for array in samples)
        reference, reference_name, reference_notes = _reference(loaded, few)
        notes += reference_notes
    for engine in dict.fromkeys(["litert", *(p.engine for p in profiles)]):
        if engine_available(engine) is not None:
            continue
        progress(f"Running the int8 file in {engine}")
        if few is None or reference is None:
            measurements.try_loading(engine)
            continue
        try:
            parities[engine] = _verify(named, floats.artifact, reference, few, engine)
            notes += parities[engine].notes
        except EngineError as error:
            measurements.note_refusal(engine, error)

    progress(f"Loading the int8 file in {FIELD_RUNTIME}")
    notes += _field_runtime_note(quantized.data)

    results, model_info = _run_checks(
        flat,
        profiles,
        budgets,
        kernels,
        measurements,
        lambda profile: [
            _parity_check(profile, parities, measurements.refusals, reference_name, floor)
        ],
        str(folder / quantized.file_name(loaded.name)),
        progress,
    )

    progress("Writing the files")
    artifacts = [floats.artifact, quantized]
    sources: dict[str, str] = {}
    if c_sources:
        try:
            sources = _c_sources(quantized.data, loaded.name, profiles, kernels, results)
        except (UnsupportedOperatorError, UnsupportedModelError) as error:
            notes.append(f"No C++ sources were written: {error}")
    report = Report(
        model=model_info,
        targets=results,
        argv=tuple(argv) or tuple(sys.argv),
        version=_version(),
        artifacts=_listing(artifacts, loaded.name, sources),
        notes=tuple(dict.fromkeys(notes)),
    )
    page = _html(report, flat, profiles, kernels, baseline, history, parities)
    _write(folder, artifacts, loaded.name, sources, report, page)
    return report


def check(
    model: Path | str | bytes,
    targets: Sequence[str | Path | TargetProfile],
    *,
    evaluate: Any = None,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    kernels: str | None = None,
    progress: Callable[[str], None] = _silent,
    argv: Sequence[str] = (),
) -> Report:
    """Checks a .tflite file against targets and budgets.

    Args:
        model: Path of a .tflite file, or its bytes.
        targets: Names, paths of .toml profiles, or profiles.
        evaluate: Labelled data for the accuracy check: (x, y), or the path of an .npz file.
        max_flash: As in `export`, and so the other budgets.
        max_ram: Budget for the tensor arena.
        max_latency: Budget for one inference.
        max_file_size: Budget for the file.
        min_accuracy: Floor for top-1 accuracy, 0 to 1.
        kernels: Kernel set of microcontrollers instead of the profile's.
        progress: Called with a short text as each stage begins.
        argv: The command for the report.

    Returns:
        The report; `report.exit_code` is 0 where the model fits every target.

    Raises:
        EdgeCompressError: an argument or the file is wrong.

    Example:
        >>> ec.check("kws_int8.tflite", ["cortex-m4"], max_ram="24KiB").verdict  # doctest: +SKIP
        'pass'
    """
    profiles = _profiles(targets)
    budgets = _budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    _check_kernels(kernels)
    path = "model.tflite" if isinstance(model, bytes) else str(model)
    if Path(path).suffix in (".keras", ".h5"):
        raise ArgumentError(
            "FILE", "be a .tflite file", path, "Use `edgecompress export` for Keras models."
        )
    flat = read_tflite(model)
    labelled = None
    if evaluate is not None:
        labelled, _ = _labelled(evaluate, flat, None, None)
    results, model_info = _run_checks(
        flat,
        profiles,
        budgets,
        kernels,
        _Measurements(flat.data, progress, labelled, min_accuracy),
        lambda profile: [],
        path,
        progress,
    )
    return Report(model_info, results, tuple(argv) or tuple(sys.argv), _version())


def export_compressed(
    model: Path | str,
    targets: Sequence[str | Path | TargetProfile],
    *,
    evaluate: Any = None,
    output: Path | str = "build",
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    kernels: str | None = None,
    c_sources: bool = False,
    progress: Callable[[str], None] = _silent,
    argv: Sequence[str] = (),
) -> Report:
    """Codes the weights of an int8 .tflite file for microcontrollers, without any loss.

    The file decodes its weights as it runs, in stock TensorFlow Lite Micro: flash becomes less,
    arena and time more. Where RAM or latency are limited, as many tensors as need be stay as they
    are. Writes `<model>_compressed.tflite`, `report.json` and `report.html`.

    Args:
        model: Path of an int8 .tflite file, e.g. what `export` wrote.
        targets: Microcontrollers: names, paths of .toml profiles, or profiles.
        evaluate: As in `export`, and so the other arguments.
        output: Folder of the files.
        max_flash: Budget for the model and the runtime's code.
        max_ram: Budget for the tensor arena, decoded weights included.
        max_latency: Budget for one inference, decoding included.
        max_file_size: Budget for the compressed file.
        min_accuracy: Floor for top-1 accuracy, 0 to 1.
        kernels: Kernel set instead of the profiles'.
        c_sources: Also write C++ sources into `<output>/c`.
        progress: Called with a short text as each stage begins.
        argv: The command for the report.

    Raises:
        EdgeCompressError: an argument or the file is wrong, or an output differs; nothing was
            written.

    Example:
        >>> report = ec.export_compressed("kws_int8.tflite", ["cortex-m4"])  # doctest: +SKIP
        >>> report.notes[-1]  # doctest: +SKIP
        'Flash 52.7 KiB -> 31.4 KiB, ...'
    """
    profiles = _profiles(targets)
    budgets = _budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    _check_kernels(kernels)
    folder = _usable_folder(output)
    others = [profile.name for profile in profiles if not profile.is_microcontroller]
    if others:
        raise ArgumentError(
            "--target", "be a microcontroller for --format compressed", others,
            "Only TensorFlow Lite Micro decodes such files.",
        )  # fmt: skip
    path = Path(model)
    if path.suffix != ".tflite":
        raise ArgumentError(
            "MODEL", "be an int8 .tflite file for --format compressed", str(path),
            "Export the Keras model first, then compress <output>/<model>_int8.tflite.",
        )  # fmt: skip

    from edgecompress.converters.compressed import compress

    original = read_tflite(path)
    labelled = None
    if evaluate is not None:
        labelled, _ = _labelled(evaluate, original, None, None)
    progress("Coding the weights and comparing the outputs")
    ram = [b for p in profiles if (b := budgets.over(p.limits).max_ram) is not None]
    arena, latency = _costs(original, profiles, kernels)
    slowest = budgets.max_latency
    result = compress(
        path,
        arena=arena,
        # A budget that even the plain file exceeds is the checks' to fail, not a wrong argument.
        max_arena=int(max(min(ram), arena(original))) if ram and arena else None,
        latency=latency,
        max_latency_us=max(slowest, latency(original)) if slowest and latency else None,
    )
    flat = read_tflite(result.artifact.data)
    name = path.stem.removesuffix("_int8")
    lossless = CheckResult(
        "parity", "pass", 1.0, 1.0, 1.0, 1.0, "share", "measured_host",
        {
            "engine": "tflm",
            "reference": path.name,
            "samples": result.verified_samples,
            "kind": "values",
            "max_error": 0.0,
            "max_error_steps": 0.0,
            "engines": {"tflm": 1.0},
            "layers": [],
        },
    )  # fmt: skip
    results, info = _run_checks(
        flat,
        profiles,
        budgets,
        kernels,
        _Measurements(flat.data, progress, labelled, min_accuracy),
        lambda profile: [lossless],
        str(folder / result.artifact.file_name(name)),
        progress,
    )

    progress("Writing the files")
    notes = [*result.notes]
    price = [f"File {format_size(result.bytes_before)} -> {format_size(len(flat.data))}"]
    if result.arena_before is not None and result.arena_after is not None:
        before, after = format_size(result.arena_before), format_size(result.arena_after)
        price.append(f"tensor arena {before} -> {after}")
    if result.latency_before_us is not None and result.latency_after_us is not None:
        before = format_time(result.latency_before_us)
        price.append(f"predicted latency {before} -> {format_time(result.latency_after_us)}")
    notes.append(f"{', '.join(price)}.")
    sources: dict[str, str] = {}
    if c_sources:
        sources = _c_sources(flat.data, name, profiles, kernels, results)
    report = Report(
        # The weights behind a decoder are parameters still.
        model=dataclasses.replace(info, parameters=original.parameters()),
        targets=results,
        argv=tuple(argv) or tuple(sys.argv),
        version=_version(),
        artifacts=_listing([result.artifact], name, sources),
        notes=tuple(dict.fromkeys(notes)),
    )
    page = _html(report, flat, profiles, kernels, None, None, {})
    _write(folder, [result.artifact], name, sources, report, page)
    return report


def _costs(
    model: FlatModel, profiles: Sequence[TargetProfile], kernels: str | None
) -> tuple[Callable[[FlatModel], float] | None, Callable[[FlatModel], float] | None]:
    """Returns what tells a file's arena and latency on the neediest target; None if unknown."""
    from edgecompress.targets.arena import compute_arena
    from edgecompress.targets.latency import predict

    def arena(flat: FlatModel) -> float:
        found = [compute_arena(flat, str(p.core), kernels or str(p.kernels)) for p in profiles]
        return max(max(a.used or 0, a.smallest or 0) for a in found)

    timed = [p for p in profiles if predict(model, p, kernels).microseconds is not None]

    def latency(flat: FlatModel) -> float:
        return max(predict(flat, p, kernels).microseconds or 0.0 for p in timed)

    known = all(
        compute_arena(model, str(p.core), kernels or str(p.kernels)).is_known for p in profiles
    )
    return arena if known else None, latency if timed else None


def _listing(
    artifacts: Sequence[Artifact], name: str, sources: Mapping[str, str]
) -> tuple[ArtifactInfo, ...]:
    """Returns the files of an export as its report lists them."""
    files = [
        ArtifactInfo(a.file_name(name), a.kind, len(a.data), a.sha256, a.notes) for a in artifacts
    ]
    texts = [(path, text.encode()) for path, text in sources.items()]
    files += [ArtifactInfo(path, "c_source", len(data), sha256(data)) for path, data in texts]
    return tuple(files)


class _Measurements:
    """What has to be run, each at most once however many targets ask for it.

    Attributes:
        refusals: Engine -> why it cannot run the file, for those found not to.
    """

    def __init__(
        self,
        data: bytes,
        progress: Callable[[str], None],
        labelled: Labelled | None,
        min_accuracy: float | None,
    ) -> None:
        self._data = data
        self._progress = progress
        self._labelled = labelled
        self._floor = min_accuracy
        self._accuracy: dict[str, CheckResult] = {}
        self._latency: Any = None
        self.refusals: dict[str, str] = {}

    def try_loading(self, engine: str) -> None:
        """Lets an engine load the file and run zeros; remembers why it cannot."""
        problem = load_failure(engine, self._data)
        if problem is not None:
            self.refusals[engine] = problem

    def note_refusal(self, engine: str, error: EngineError) -> None:
        """Takes an engine's error as a property of the file, where it cannot even run zeros."""
        if engine not in self.refusals:
            self.try_loading(engine)
        if engine not in self.refusals:
            raise error

    def host_latency(self) -> Any:
        """Returns the latency measured on this machine; None where its engine refuses the file."""
        if self._latency is None and "litert" not in self.refusals:
            from edgecompress.targets.bench import bench_host

            self._progress("Measuring latency on this machine")
            try:
                self._latency = bench_host(self._data)
            except EngineError as error:
                self.note_refusal("litert", error)
        return self._latency

    def accuracy(self, engine: str) -> CheckResult:
        """Returns top-1 accuracy in an engine against its floor."""
        if engine not in self._accuracy:
            self._accuracy[engine] = self._measure_accuracy(engine)
        return self._accuracy[engine]

    def _measure_accuracy(self, engine: str) -> CheckResult:
        if self._labelled is None:
            if self._floor is None:
                return CheckResult("accuracy", "not_applicable", unit="share")
            return CheckResult(
                "accuracy",
                "not_measured",
                limit=self._floor,
                unit="share",
                reason="--min-accuracy needs labels: give --evaluate FILE.npz with x and y.",
            )
        why = self.refusals.get(engine) or engine_available(engine)
        if why is None:
            from edgecompress.converters.verify import accuracy

            self._progress(f"Measuring accuracy in {engine} on {len(self._labelled.y)} samples")
            try:
                run = accuracy(self._data, self._labelled.x, self._labelled.y, engine=engine)
            except EngineError as error:
                self.note_refusal(engine, error)
                why = self.refusals[engine]
        if why is not None:
            return CheckResult(
                "accuracy", "not_measured", limit=self._floor, unit="share", reason=why
            )
        verdict = judge(run.top1, run.top1, self._floor, at_least=True)
        reason = None
        if verdict == "fail":
            reason = f"top-1 accuracy {run.top1:.4f} in {engine} is below {self._floor}."
        return CheckResult(
            "accuracy",
            verdict,
            run.top1,
            run.top1,
            run.top1,
            self._floor,
            "share",
            "measured_host",
            {"engine": engine, "version": run.version, "samples": run.samples},
            reason,
        )


def _profiles(targets: Sequence[str | Path | TargetProfile]) -> list[TargetProfile]:
    from edgecompress.targets.profile import TargetProfile, load_target

    if isinstance(targets, (str, Path)) or not targets:
        raise ArgumentError(
            "targets", "be a list of at least one target", targets, 'E.g. ["nucleo-l4r5zi"].'
        )
    profiles: dict[str, TargetProfile] = {}
    for target in targets:
        profile = target if isinstance(target, TargetProfile) else load_target(str(target))
        # A target named twice is checked once; two different ones cannot share a name in a report.
        if profiles.setdefault(profile.name, profile) != profile:
            raise ArgumentError(
                "--target",
                "name different targets differently",
                profile.name,
                f"Change `name` in {target}.",
            )
    return list(profiles.values())


def _check_kernels(kernels: str | None) -> None:
    from edgecompress.targets.arena import KERNELS
    from edgecompress.targets.profile import check_choice

    if kernels is not None:
        check_choice("--kernels", kernels, KERNELS)


def _share(argument: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise ArgumentError(argument, "be a share between 0 and 1", value)
    return value


def _budgets(
    max_flash: str | int | None,
    max_ram: str | int | None,
    max_latency: str | float | None,
    max_file_size: str | int | None,
    min_accuracy: float | None,
) -> Budgets:
    from edgecompress.targets.checks import Budgets

    def size(value: str | int | None, argument: str) -> int | None:
        return None if value is None else parse_size(value, argument)

    if isinstance(max_latency, str):
        max_latency = parse_time(max_latency, "--max-latency")
    return Budgets(
        max_flash=size(max_flash, "--max-flash"),
        max_ram=size(max_ram, "--max-ram"),
        max_latency=max_latency,
        max_file_size=size(max_file_size, "--max-file-size"),
        min_accuracy=_share("--min-accuracy", min_accuracy),
    )


def _usable_folder(output: Path | str) -> Path:
    """Returns the output folder after making sure, before any long work, that it can be written."""
    folder = Path(output)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ArgumentError("--output", "be a folder", str(output), f"{place} is a file.")
    try:
        # Permissions alone do not tell: some places refuse even who may write there.
        with tempfile.TemporaryDirectory(prefix=".edgecompress-", dir=place):
            pass
    except OSError as error:
        raise ArgumentError(
            "--output",
            "be a writable folder",
            str(output),
            f"Nothing can be made in {place}: {error.strerror}.",
        ) from error
    return folder


def _labelled(
    evaluate: Any,
    model: Any,
    samples: tuple[np.ndarray, ...] | None,
    labels: np.ndarray | None,
) -> tuple[Labelled | None, tuple[str, ...]]:
    """Returns the labelled data, those of `evaluate` or of the calibration, and notes on them."""
    from edgecompress.converters import calibration

    if evaluate is None:
        if samples is None or labels is None:
            return None, ()
        if not _are_classes(labels):
            return None, (
                "The y beside the calibration data is not used: it holds no class numbers "
                f"(shape {labels.shape}, dtype {labels.dtype}).",
            )
        return Labelled(samples, labels), ()
    inputs, y = calibration.load(evaluate, model, argument="--evaluate")
    if inputs is None or y is None:
        raise ArgumentError("--evaluate", "hold labels under the key y", str(evaluate)[:80])
    if not _are_classes(y):
        raise ArgumentError(
            "--evaluate",
            "hold class numbers under the key y",
            f"array of shape {y.shape} and dtype {y.dtype}",
        )
    return Labelled(inputs, y), ()


def _are_classes(labels: np.ndarray) -> bool:
    """Tells whether labels are whole numbers, one a sample, or one-hot rows."""
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "biuf":
        return False
    return bool((labels == labels.round()).all()) if labels.dtype.kind == "f" else True


def _reference(
    loaded: Any, samples: tuple[np.ndarray, ...]
) -> tuple[list[np.ndarray], str, tuple[str, ...]]:
    """Returns what the Keras model says to the samples, which model that was, and notes on it."""
    plain = "Keras model"
    if loaded.record is None or not loaded.record.ranges:
        return loaded.predict(samples), plain, ()
    from edgecompress.quantizers.simulation import simulate

    try:
        model = simulate(loaded.model, loaded.record)
    except (ArgumentError, UnsupportedModelError) as error:
        note = f"Parity is measured against the float model, not its simulation: {error}"
        return loaded.predict(samples), plain, (note,)
    simulated = dataclasses.replace(loaded, model=model).predict(samples)
    notes = _simulation_notes(simulated[0], loaded.predict(samples)[0])
    return simulated, f"{plain} under quantization-aware training", notes


def _simulation_notes(simulated: np.ndarray, plain: np.ndarray) -> tuple[str, ...]:
    """Returns a note where learnt ranges change what a classifier says.

    Parity then cannot tell: the file and its reference bear the same wrong ranges.
    """
    if plain.ndim != 2 or plain.shape[1] < 2:
        return ()
    share = float((simulated.argmax(1) == plain.argmax(1)).mean())
    if share >= MIN_AGREEMENT:
        return ()
    return (
        f"With the learnt ranges the Keras model agrees with itself on {share:.1%} of {len(plain)} "
        "samples only: the ranges do not fit its weights. Train it longer, or train "
        "quantization-aware again.",
    )


def _verify(
    quantized: Artifact,
    floats: Artifact,
    reference: Sequence[np.ndarray],
    samples: tuple[np.ndarray, ...],
    engine: str,
) -> Parity:
    from edgecompress.converters.verify import verify

    return verify(
        quantized.data,
        reference=reference,
        samples=samples,
        engine=engine,
        # The layers are compared once, in the engine that can show them.
        float_model=floats.data if engine == "litert" else None,
        layer_samples=LAYER_SAMPLES,
    )


def _likely_at_most(share: float, samples: int) -> float:
    """Returns the upper end of the 95 % interval of a share seen in a sample (Wilson, 1927)."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return (share + z**2 / (2 * samples) + spread) / (1 + z**2 / samples)


def _parity_check(
    profile: TargetProfile,
    parities: Mapping[str, Parity],
    refusals: Mapping[str, str],
    reference: str,
    floor: float | None,
) -> CheckResult:
    """Returns how well the file agrees with its reference in the target's engine."""
    parity = parities.get(profile.engine)
    if parity is None:
        why = refusals.get(profile.engine) or engine_available(profile.engine)
        why = why or "No calibration or evaluation data was given."
        return CheckResult("parity", "not_measured", limit=floor, unit="share", reason=why)
    value = parity.agreement
    high = value
    if floor is None and parity.kind != "values":
        # The user asked for no floor: only a sample that is large enough to tell fails this one.
        floor, high = MIN_AGREEMENT, _likely_at_most(value, parity.samples)
    verdict = judge(value, high, floor, at_least=True)
    layers = parities["litert"].layers if "litert" in parities else ()
    reason = None
    if verdict in ("fail", "uncertain"):
        worst = ", ".join(f"{layer.name} {layer.sqnr_db:.1f} dB" for layer in layers[:3])
        # Errors add up on the way; where they arise is what has to be mended.
        suspect = parities["litert"].suspect if "litert" in parities else None
        source = f" The largest error arises in {suspect.name}." if suspect else ""
        reason = (
            f"The int8 file agrees with the {reference} on {value:.1%} of {parity.samples} "
            f"samples, the floor is {floor:.1%}. Lowest signal-to-noise: {worst or 'not known'}."
            f"{source}"
        )
        if verdict == "uncertain":
            reason += " So few samples cannot tell; give more, or set --min-agreement."
    detail = {
        "engine": parity.engine,
        "version": parity.version,
        "kernels": parity.kernels,
        "reference": reference,
        "samples": parity.samples,
        "kind": parity.kind,
        "max_error": parity.max_error,
        "max_error_steps": parity.max_error_steps,
        "mean_error_steps": parity.mean_error_steps,
        "engines": {name: p.agreement for name, p in parities.items()},
        "layers": [
            {
                "name": layer.name,
                "operator": layer.operator,
                "sqnr_db": layer.sqnr_db,
                "drop_db": layer.drop_db,
            }
            for layer in layers
        ],
    }
    return CheckResult(
        "parity", verdict, value, value, value, floor, "share", "measured_host", detail, reason
    )


def _field_runtime_note(data: bytes) -> list[str]:
    """Returns a note where the runtime of devices in the field cannot load the file."""
    from edgecompress.converters.verify import field_runtime_problem

    missing = engine_available(FIELD_RUNTIME)
    if missing:
        return [f"Not tried in {FIELD_RUNTIME}: {missing}"]
    problem = field_runtime_problem(data)
    return [] if problem is None else [f"Devices in the field: {problem}"]


def _run_checks(
    flat: FlatModel,
    profiles: Sequence[TargetProfile],
    budgets: Budgets,
    kernels: str | None,
    measurements: _Measurements,
    more: Callable[[TargetProfile], list[CheckResult]],
    path: str,
    progress: Callable[[str], None],
) -> tuple[tuple[TargetResult, ...], ModelInfo]:
    from edgecompress.targets.checks import check as check_target

    results = []
    for profile in profiles:
        progress(f"Checking {profile.name}")
        latency = measurements.host_latency() if profile.kind == "host" else None
        extra = [measurements.accuracy(profile.engine), *more(profile)]
        result = check_target(
            flat, profile, budgets, kernels=kernels, host_latency=latency, extra=extra
        )
        refusal = measurements.refusals.get(profile.engine)
        results.append(result if refusal is None else _refused(result, refusal))
    artifact = Artifact("tflite", flat.data, path)
    info = ModelInfo(
        path=path,
        sha256=artifact.sha256,
        file_bytes=len(flat.data),
        compressed_bytes=artifact.compressed_bytes,
        macs=flat.macs(),
        parameters=flat.parameters(),
        operators=flat.histogram(),
    )
    return tuple(results), info


def _refused(result: TargetResult, refusal: str) -> TargetResult:
    """Lets the engine's refusal stand above the table of operators, which found nothing wrong."""
    checks = tuple(
        dataclasses.replace(
            check,
            verdict="fail",
            measured=None,
            low=1,
            high=None,
            how_known="measured_host",
            reason=refusal,
        )
        if check.rule == "operators" and check.verdict != "fail"
        else check
        for check in result.checks
    )
    return dataclasses.replace(result, checks=checks)


def _html(
    report: Report,
    flat: FlatModel,
    profiles: Sequence[TargetProfile],
    kernels: str | None,
    baseline: Report | None,
    history: Mapping[str, Sequence[float]] | None,
    parities: Mapping[str, Parity],
) -> str:
    from edgecompress.inspection import inspect_tflite
    from edgecompress.targets.report import render_html

    return render_html(
        report,
        inspection=inspect_tflite(flat),
        flat=flat,
        profiles=profiles,
        kernels=kernels,
        baseline=baseline,
        history=history,
        layers=[(e.name, e.sqnr_db) for e in parities["litert"].layers]
        if "litert" in parities
        else (),
        title=Path(report.model.path).name,
    )


def _c_sources(
    data: bytes,
    name: str,
    profiles: Sequence[TargetProfile],
    kernels: str | None,
    results: Sequence[TargetResult],
) -> dict[str, str]:
    """Returns the C++ sources, path -> text, with the largest arena that any target needs."""
    from edgecompress.converters import c_array

    arenas: dict[int, TargetProfile] = {}
    for profile, result in zip(profiles, results, strict=True):
        for found in result.checks:
            if found.rule == "arena" and found.measured is not None:
                size = max(int(found.measured), found.detail["smallest"] or 0)
                arenas[size] = profile
    microcontroller = next(p for p in profiles if p.is_microcontroller)
    largest = max(arenas, default=None)
    profile = microcontroller if largest is None else arenas[largest]
    files = c_array.generate(
        data,
        name=name,
        arena_bytes=largest,
        kernels=kernels or profile.kernels or "reference",
        core=profile.core,
    )
    return {f"c/{path}": text for path, text in files.items()}


def _write(
    folder: Path,
    artifacts: Sequence[Artifact],
    name: str,
    sources: Mapping[str, str],
    report: Report,
    page: str,
) -> None:
    try:
        (folder / "c" if sources else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            "--output", "be a folder that can be made", str(folder), f"{error.strerror}."
        ) from error
    files: dict[Path, bytes | str] = {}
    for artifact in artifacts:
        path = folder / artifact.file_name(name)
        files[path] = artifact.data
        # A model in memory always has a record; an empty one says nothing.
        if artifact.record not in (None, CompressionRecord()):
            files[sidecar_path(path)] = sidecar_text(artifact.record, artifact.data)
    files |= {folder / path: text for path, text in sources.items()}
    files[folder / "report.html"] = page
    # Last: who finds a report.json finds all that it lists.
    files[folder / "report.json"] = report.to_json()
    write_together(files)


def _version() -> str:
    from importlib.metadata import version

    return version("edgecompress")
