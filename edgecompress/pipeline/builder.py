"""`build`: from a model to everything known about its file, in memory.

load -> make the files of the format -> run them in the engines -> check the targets

A build writes no file and prints nothing; `writer.write` puts it on disk. A model file is read in a
separate process, which returns the build as JSON and bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.converters.formats import FORMATS, FormatRequest, FormatResult, file_stem
from edgecompress.converters.verify import Parity
from edgecompress.core import handover, isolation
from edgecompress.core.errors import ArgumentError, EdgeCompressError, ProcessError
from edgecompress.core.labelled import Labelled
from edgecompress.core.record import sidecar_path
from edgecompress.core.results import ModelInfo, TargetResult, Verdict, worst_verdict
from edgecompress.core.sensitivity import Sensitivity
from edgecompress.engines.registry import LEGACY
from edgecompress.engines.run import session
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline import scores
from edgecompress.pipeline.bundle import Bundled, bundle_profile, make_bundle
from edgecompress.pipeline.costs import costs_on
from edgecompress.pipeline.elsewhere import as_file, on_another_backend
from edgecompress.pipeline.inputs import Inputs, read_inputs, recalled
from edgecompress.pipeline.measuring import Measurements
from edgecompress.pipeline.parity import Agreement, legacy_runtime_note
from edgecompress.pipeline.request import BuildRequest, labelled_data, silent
from edgecompress.pipeline.target_checks import model_info, run_checks
from edgecompress.targets.family import family_of
from edgecompress.targets.profile import TargetProfile

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.tasks import Output

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Build:
    """A model's files, and everything known about the one that ships.

    Attributes:
        name: Base name of the files.
        file_format: The format. None if a .tflite file was checked as it is.
        artifacts: The files to write; none for a .tflite file checked as it is.
        main: The file that ships, and that was checked. `main.flat` may know more tensor names
            than the file stores.
        model: That file in numbers; its path is relative to the output folder, or the one given.
        targets: The checks of each target.
        profiles: The targets, with the engine that ran the file on each.
        target_options: Name -> value of the options of families of targets and of rules.
        parities: Engine -> how well the file agrees with the Keras model there.
        layered: The comparison layer by layer. None if there was none.
        latencies: Kind of file -> microseconds of one inference on this computer, if measured.
        decompression_memory: Bytes outside the tensor arena for decoded weights; None for none.
        bundled: The bundle for a phone or the host; None without one.
        notes: What was skipped or done differently, one sentence each.
        gaps: Protections that this system does not offer, one sentence each.
        sensitivity: The damage of each layer; None unless requested.
        by_sample: Engine -> the first metric of each labelled sample; empty unless requested.
    """

    name: str
    file_format: str | None
    artifacts: tuple[Artifact, ...] = field(repr=False)
    main: Artifact = field(repr=False)
    model: ModelInfo
    targets: tuple[TargetResult, ...] = field(repr=False)
    profiles: tuple[TargetProfile, ...] = field(repr=False)
    target_options: Mapping[str, Any] = field(default_factory=dict)
    parities: Mapping[str, Parity] = field(default_factory=dict, repr=False)
    layered: Parity | None = field(default=None, repr=False)
    latencies: Mapping[str, float] = field(default_factory=dict)
    decompression_memory: int | None = None
    bundled: Bundled | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None
    by_sample: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the targets."""
        return worst_verdict([target.verdict for target in self.targets])

    def artifact(self, kind: str) -> Artifact:
        """Returns the file of a kind.

        Raises:
            KeyError: the format makes none.
        """
        found = {artifact.kind: artifact for artifact in (self.main, *self.artifacts)}
        return found[kind]


def build(request: BuildRequest, progress: Progress = silent) -> Build:
    """Converts a model, runs its file in the targets' engines and checks the budgets.

    Pure: equal requests give equal artifacts; it writes nothing outside temporary folders, prints
    nothing, and does not modify the request.

    Args:
        request: What to build, e.g. from `build_request`.
        progress: Called with a short text as each stage begins.

    Raises:
        EdgeCompressError: a file or a conversion is wrong, or a file that must compute the same
            does not.

    Example:
        >>> request = build_request(model, ["cortex-m4"], calibration=x)  # doctest: +SKIP
        >>> made = build(request)  # doctest: +SKIP
        >>> made.verdict, len(made.main.data)  # doctest: +SKIP
        ('pass', 98496)
    """
    if request.file_format is not None and isinstance(request.model, (str, Path)):
        return _build_apart(request, progress)
    if request.file_format is not None and on_another_backend(request.model):
        with as_file(request) as saved:
            return _build_apart(saved, progress)
    return _build(request, progress)


# --- a model file, in a separate process -- ------------------------------------------------------


def _build_apart(request: BuildRequest, progress: Progress) -> Build:
    """Builds from a file in a separate process: files are untrusted."""
    model = Path(request.model)
    given = [request.calibration, request.evaluate]
    data = [Path(path) for path in given if isinstance(path, (str, Path))]
    answer = isolation.call(
        f"{__name__}:build_isolated",
        {"request": dataclasses.replace(request, model=str(model))},
        readable=[model, sidecar_path(model), *data],
        modules=request.import_modules,
        progress=progress,
        verbose=request.verbose,
    )
    return _received(answer, request)


def build_isolated(
    request: BuildRequest, tell: Callable[[str, Any], None], gaps: Sequence[str] = ()
) -> tuple[dict[str, Any], Mapping[str, bytes | str]]:
    """Builds in the process that was started for it; returns the build as JSON and bytes."""
    made = _build(request, lambda text: tell("progress", text), gaps)
    files: dict[str, bytes | str] = {a.file_name(made.name): a.data for a in made.artifacts}
    value = isolation.encode(dataclasses.replace(made, profiles=()))
    for artifact in value["artifacts"]:
        del artifact["data"]
    value["main"] = {
        "kind": made.main.kind,
        "tensors": [tensor.name for tensor in made.main.flat.tensors],
    }
    value["engines"] = [profile.engine for profile in made.profiles]
    if made.bundled is not None:
        files |= made.bundled.files
        value["bundled"]["files"] = list(made.bundled.files)
    return value, files


def _received(answer: isolation.Answer, request: BuildRequest) -> Build:
    """Returns the build that the process returned, after validating it."""
    try:
        value, files = dict(answer.value), answer.files
        for artifact in value["artifacts"]:
            artifact["data"] = files[f"{value['name']}_{artifact['kind']}.tflite"]
        shipped, engines = value.pop("main"), value.pop("engines")
        value["main"] = next(a for a in value["artifacts"] if a["kind"] == shipped["kind"])
        if value["bundled"] is not None:
            value["bundled"]["files"] = {name: files[name] for name in value["bundled"]["files"]}
        value["target_options"] = dict(request.target_options)
        value["profiles"] = tuple(
            dataclasses.replace(profile, engine=engine)
            for profile, engine in zip(request.profiles, engines, strict=True)
        )
        made = isolation.decode(Build, value)
        main = _with_names(made.main, [str(name) for name in shipped["tensors"]])
    except ProcessError:
        raise
    except (KeyError, TypeError, ValueError, StopIteration, EdgeCompressError) as error:
        raise ProcessError(
            f"The process that reads the model returned an invalid build ({error})."
        ) from error
    return dataclasses.replace(made, main=main, artifacts=_with_main(made.artifacts, main))


def _with_names(file: Artifact, names: Sequence[str]) -> Artifact:
    """Returns the file with the tensor names known to its converter."""
    tensors = tuple(
        dataclasses.replace(tensor, name=name)
        for tensor, name in zip(file.flat.tensors, names, strict=True)
    )
    return file.read_as(dataclasses.replace(file.flat, tensors=tensors))


def _with_main(artifacts: Sequence[Artifact], main: Artifact) -> tuple[Artifact, ...]:
    """Returns the artifacts with the parsed one that ships, so that it is parsed once."""
    return tuple(main if artifact.kind == main.kind else artifact for artifact in artifacts)


# --- the build itself ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Made:
    """The files of a format, or a file checked as it is, and the data to measure them with.

    Attributes:
        name: Base name of the files.
        made: The files.
        loaded: The Keras model. None for a .tflite file.
        samples: Inputs to run the files on; None for none.
        labelled: Labelled data; None for none.
        outputs: The outputs of the original model.
        path: Path of the checked file.
        notes: What was skipped or done differently on the way.
    """

    name: str
    made: FormatResult
    loaded: LoadedModel | None
    samples: tuple[np.ndarray, ...] | None
    labelled: Labelled | None
    outputs: tuple[Output, ...]
    path: str
    notes: tuple[str, ...] = ()


def _build(request: BuildRequest, progress: Progress, gaps: Sequence[str] = ()) -> Build:
    """Builds in this process."""
    with session() as shared:
        shared.gaps.update(dict.fromkeys(gaps))
        if request.file_format is None:
            source = _checked_file(request)
        else:
            source = _made_files(request, progress)
        build = _measured(request, source, progress)
        return dataclasses.replace(build, gaps=tuple(shared.gaps))


def _measured(request: BuildRequest, source: _Made, progress: Progress) -> Build:
    """Runs the files of a format and checks the targets."""
    made, notes = source.made, list(source.notes)
    main = made.main
    profiles = request.profiles
    if made.engine is not None:
        profiles = tuple(
            dataclasses.replace(p, engine=made.engine) if made.engine in family_of(p).engines else p
            for p in profiles
        )
    measurements = Measurements(
        main,
        progress,
        source.labelled,
        request.scoring,
        outputs=source.outputs,
        loaded=source.loaded,
        each=request.by_sample,
    )
    agreement = Agreement(made, measurements, request.min_agreement, request.min_r2, source.outputs)
    engines = [profile.engine for profile in profiles]
    if source.loaded is None:
        agreement.load(engines, progress if request.file_format is None else silent)
    else:
        notes += agreement.measure(source.loaded, source.samples, engines, progress)
        measurements.ran.update(agreement.parities)
    if made.legacy_runtime:
        progress(f"Loading the {main.kind} file in {LEGACY}")
        notes += legacy_runtime_note(main.data)
    targets = run_checks(
        main,
        profiles,
        request.budgets,
        request.target_options,
        measurements,
        lambda profile: [] if request.file_format is None else [agreement.check(profile)],
        progress,
        made.decompression_memory,
        request.measured,
    )
    bundled = _bundled(request, profiles, source, made.artifacts, main, progress)
    if bundled is not None:
        notes += bundled.notes
    return Build(
        name=source.name,
        file_format=request.file_format,
        artifacts=made.artifacts,
        main=main,
        model=model_info(main, source.path, made.parameters),
        targets=targets,
        profiles=profiles,
        target_options=request.target_options,
        parities=agreement.parities,
        layered=agreement.layered,
        latencies=made.latencies,
        decompression_memory=made.decompression_memory,
        bundled=bundled,
        notes=tuple(dict.fromkeys(notes)),
        sensitivity=made.sensitivity,
        by_sample=measurements.by_sample,
    )


def _bundled(
    request: BuildRequest,
    profiles: Sequence[TargetProfile],
    source: _Made,
    artifacts: Sequence[Artifact],
    main: Artifact,
    progress: Progress,
) -> Bundled | None:
    """Returns the bundle for the first phone, or for the host; None without either."""
    profile = bundle_profile(request.profiles)
    if profile is None or not request.bundle or request.file_format is None:
        return None
    if main.stepping is not None:
        # Golden outputs are those of one inference.
        return None
    budgets = request.budgets
    if any(family_of(profile).has_arena for profile in profiles):
        # With a microcontroller, the limit refers to its arena, not to a process.
        budgets = dataclasses.replace(budgets, max_ram=None)
    return make_bundle(
        artifacts, main, source.name, profile, budgets, source.samples, request.labels, progress
    )


def _checked_file(request: BuildRequest) -> _Made:
    """Reads a .tflite file to be checked as it is."""
    path = "model.tflite" if isinstance(request.model, bytes) else str(request.model)
    if Path(path).suffix in (".keras", ".h5"):
        raise ArgumentError(
            "FILE", "be a .tflite file", path, "Use `edgecompress export` for Keras models."
        )
    flat = read_tflite(request.model)
    labelled = None
    if request.evaluate is not None:
        labelled = labelled_data(request.evaluate, flat, None, None)
    notes: tuple[str, ...] = ()
    if flat.subgraphs > 1:
        notes = (
            f"The model has {flat.subgraphs} subgraphs: parameters and MACs are those of the "
            "first, operators and the code in flash those of all.",
        )
    file = Artifact("tflite", flat.data, path).read_as(flat)
    made = FormatResult(
        artifacts=(),
        main=file,
        legacy_runtime=False,
        decompression_memory=request.decompression_memory,
    )
    return _Made(file_stem(Path(path)), made, None, None, labelled, (), path, notes)


def _made_files(request: BuildRequest, progress: Progress) -> _Made:
    """Reads the model and the data, and makes the files of the format."""
    chosen = FORMATS[str(request.file_format)]
    costs = costs_on(request.profiles, request.budgets, request.target_options, progress)
    found = read_inputs(request, chosen, progress)

    def job_of(inputs: Inputs) -> FormatRequest:
        return FormatRequest(
            request.name or inputs.name, inputs.loaded, inputs.original, inputs.samples,
            request.options, costs, progress, request.verbose,
        )  # fmt: skip

    inputs = handover.apart(lambda: recalled(found(), job_of(found()), chosen)) or found()
    job, labelled, outputs = job_of(inputs), inputs.labelled, inputs.outputs
    if labelled is not None:
        engine = request.profiles[0].engine
        score = scores.scorer(labelled, request.scoring, outputs, job.loaded, engine)
        job = dataclasses.replace(job, score=score)
    made = chosen.make(job)
    samples = job.samples
    if samples is None and labelled is not None:
        samples = labelled.x
    return _Made(
        job.name,
        made,
        job.loaded,
        samples,
        labelled,
        outputs,
        made.main.file_name(job.name),
        (*inputs.notes, *made.notes),
    )
