"""What a build starts from: the model, the data, and what is known about its outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.converters.formats import FORMATS, Format, FormatRequest, file_stem
from edgecompress.core.errors import ArgumentError
from edgecompress.core.freed_memory import give_back
from edgecompress.core.handover import spilled
from edgecompress.core.labelled import Labelled
from edgecompress.core.suppress_output import suppress_output
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline.parity import parity_samples, reference_outputs
from edgecompress.pipeline.request import BuildRequest, labelled_data
from edgecompress.pipeline.score_plan import check_labels

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.tasks import Output

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The model and the data of a build.

    Attributes:
        name: Base name of the files.
        loaded: The Keras model; None if a .tflite file was given.
        original: The .tflite file; None if a Keras model was given.
        samples: Calibration inputs; None for none.
        labelled: Labelled data; None for none.
        outputs: The outputs of the model.
        shapes: Their shapes, samples first.
        notes: What was done differently in reading them.
    """

    name: str
    loaded: LoadedModel | None
    original: FlatModel | None
    samples: tuple[np.ndarray, ...] | None
    labelled: Labelled | None
    outputs: tuple[Output, ...]
    shapes: list[tuple[int | None, ...]]
    notes: tuple[str, ...] = ()


def read_inputs(request: BuildRequest, chosen: Format, progress: Progress) -> Callable[[], Inputs]:
    """Returns what reads the model and the data, once, when it is first called."""
    return functools.cache(lambda: _read(request, chosen, progress))


def _read(request: BuildRequest, chosen: Format, progress: Progress) -> Inputs:
    model = request.model
    if isinstance(model, (str, Path)) and Path(model).suffix == ".tflite":
        found = _read_file(request, chosen)
    else:
        found = _read_keras(request, progress)
    labelled = found.labelled
    if labelled is not None and labelled.argument == "--evaluate":
        check_labels(request.scoring, found.outputs, found.shapes, labelled)
    return found


def _read_keras(request: BuildRequest, progress: Progress) -> Inputs:
    from edgecompress.converters import calibration as calibrations
    from edgecompress.converters import loaders, tasks
    from edgecompress.converters.streams import is_stream

    model = request.model
    progress("Loading the model")
    # The first import of TensorFlow writes to standard error.
    with suppress_output(request.verbose):
        from_file = isinstance(model, (str, Path))
        loaded = loaders.load_model(model) if from_file else loaders.wrap(model)
    loaders.refuse_unconvertible(loaded)
    calibration, evaluate = request.calibration, request.evaluate
    samples, labels = calibrations.load(calibration, loaded, argument="--calibration")
    if samples is not None:
        samples = tuple(map(spilled, samples))
    labelled = labelled_data(evaluate, loaded, samples, labels)
    if evaluate is not None and labelled is not None:
        labelled = replace(labelled, x=tuple(map(spilled, labelled.x)))
    give_back()
    taken = [
        f"{len(data[0])} samples were taken from what {argument} yields."
        for argument, source, data in (
            ("--calibration", calibration, samples),
            ("--evaluate", evaluate, labelled.x if labelled is not None else None),
        )
        if data and is_stream(source)
    ]
    learnt = loaded.record.notes if loaded.record else ()
    return Inputs(
        loaded.name, loaded, None, samples, labelled, tasks.outputs_of(loaded),
        tasks.output_shapes(loaded), (*loaded.notes, *learnt, *taken),
    )  # fmt: skip


def _read_file(request: BuildRequest, chosen: Format) -> Inputs:
    """Reads a .tflite file that a format starts from."""
    from edgecompress.converters import tasks

    original = _original(request, chosen)
    labelled = None
    if request.evaluate is not None:
        labelled = labelled_data(request.evaluate, original, None, None)
    if request.scoring.drops:
        raise ArgumentError(
            "--max-drop", "be left out with a .tflite file", str(request.model),
            "There is no Keras model to compare with; use --min-metric.",
        )  # fmt: skip
    tensors = [original.tensors[index] for index in original.outputs]
    return Inputs(
        file_stem(Path(request.model)), None, original, None, labelled,
        tasks.outputs_of_file(original), [tensor.shape for tensor in tensors],
    )  # fmt: skip


def _original(request: BuildRequest, chosen: Format) -> FlatModel:
    """Returns the .tflite file that a format starts from."""
    path = Path(request.model)
    if not chosen.from_tflite:
        able = " or ".join(name for name in FORMATS if FORMATS[name].from_tflite)
        raise ArgumentError(
            "MODEL", f"be a Keras model for --format {chosen.name}", str(path),
            f"With --format {able} it may be an int8 .tflite file; `edgecompress check` checks it.",
        )  # fmt: skip
    for name, value in (
        ("--calibration", request.calibration),
        ("--min-agreement", request.min_agreement),
    ):
        if value is not None:
            raise ArgumentError(
                name, "be left out with a .tflite file", str(value)[:80],
                "Its ranges are set, and its outputs stay the same.",
            )  # fmt: skip
    return read_tflite(path)


def recalled(inputs: Inputs, job: FormatRequest, chosen: Format) -> Inputs | None:
    """Returns the inputs with all that a build needs of the Keras model, but without it.

    Args:
        inputs: As read.
        job: What the format would be asked for.
        chosen: The format.

    Returns:
        None if there is no Keras model, or the format goes back to it.
    """
    from edgecompress.converters.recalled import RecalledModel, Run

    loaded, labelled = inputs.loaded, inputs.labelled
    if loaded is None:
        return None
    sources = chosen.sources(job)
    if sources is None:
        return None
    give_back()
    runs, simulated = [], None
    samples = inputs.samples
    if samples is None and labelled is not None:
        samples = labelled.x
    if samples is not None:
        few = parity_samples(samples)
        plain, rounded = reference_outputs(loaded, few, sources.kind)
        runs.append(Run(few, tuple(plain)))
        simulated = None if rounded is None else tuple(rounded)
    if labelled is not None and not any(run.holds(labelled.x) for run in runs):
        runs.append(Run(labelled.x, tuple(loaded.predict(labelled.x))))
    known = {item.name: getattr(loaded, item.name) for item in fields(loaded)} | {"model": None}
    model = RecalledModel(**known, sources=sources, runs=tuple(runs), simulated=simulated)
    return replace(inputs, loaded=model)
