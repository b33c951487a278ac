"""The formats that `export` writes: their inputs, their results, and their registry.

To add a format: one module in this folder with its options, a function that makes its files and is
registered here, its test, and one import line in `converters/__init__.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.options import parse_options
from edgecompress.core.record import CompressionRecord
from edgecompress.core.registry import Registry
from edgecompress.core.results import CheckResult
from edgecompress.core.sensitivity import Sensitivity
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.stepping import Stepping

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.float32 import Float32Result
    from edgecompress.converters.kept_layers import Kept
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.recalled import Sources
    from edgecompress.flatbuffers.model import FlatModel
    from edgecompress.precisions.base import Precision

# The families of targets on which a process loads the file.
PROCESSES = ("litert", "host")

# Returns what a file costs: bytes of tensor arena, or microseconds of one inference.
Measure = Callable[["FlatModel"], float]


@dataclass(frozen=True)
class Costs:
    """What files cost on the targets, for formats that choose among candidates by cost.

    Attributes:
        arena: Called with a model and the bytes of memory outside the arena for decoded weights
            (None for none). Returns what measures the arena of that model's variants on the
            neediest target; None if a target's arena is unknown.
        latency: Called with a model. Returns what predicts the latency of its variants on the
            slowest target; None if no target's latency can be predicted.
        host_latency: Measures a file's latency on this computer.
        max_arena: The smallest RAM budget of all targets, in bytes; None for no limit.
        max_latency: The latency budget, in microseconds; None for no limit.
        refused: Returns the positions of a file's operators that a target cannot run.
        unwanted: Names of rewrites (`portable`) that slow the file down on every target.
    """

    arena: Callable[[FlatModel, int | None], Measure | None]
    latency: Callable[[FlatModel], Measure | None]
    host_latency: Measure
    max_arena: float | None = None
    max_latency: float | None = None
    refused: Callable[[FlatModel], Collection[int]] = lambda flat: ()
    unwanted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FormatRequest:
    """A format's input: either `loaded` or `original`, and what the user requested.

    Attributes:
        name: Base name of the files.
        loaded: The Keras model; None if a .tflite file was given.
        original: The .tflite file; None if a Keras model was given.
        samples: Calibration inputs, one array for each input; None if there are none.
        options: The format's own options, an instance of `Format.options`.
        costs: What files cost on the targets.
        progress: Called with a short text as each stage begins.
        verbose: Let the converters' log through.
        score: Measures the accuracy of a file and judges it, in LiteRT or, with True, in the
            engine of the first target; None without labelled data.
    """

    name: str
    loaded: LoadedModel | None
    original: FlatModel | None
    samples: tuple[np.ndarray, ...] | None
    options: Any
    costs: Costs
    progress: Callable[[str], None]
    verbose: bool = False
    score: Callable[[Artifact, bool], CheckResult | None] | None = None


@dataclass(frozen=True)
class FormatResult:
    """What a format made.

    Attributes:
        artifacts: The files to write.
        main: The artifact that is checked and shipped; its `flat` may have more names than the file
            itself.
        layers: A file with the names of inner tensors, and the float file it was made from:
            compared layer by layer. None if there is nothing to compare.
        parity: Agreement with the original .tflite file that making the file has already proven.
            None if the Keras model is the reference.
        engine: The engine that runs the file on phones and computers, if it is not the target's
            own. None for the target's own.
        latencies: Kind of file -> microseconds of one inference on this computer, if measured.
        legacy_runtime: Whether the legacy runtime of deployed devices should load the file.
        parameters: Number of weights, if the file does not show it. None for the file's own count.
        decompression_memory: Bytes outside the tensor arena that the firmware provides for decoded
            weights; None if they are in the arena.
        notes: What the user needs to know, one sentence each.
        sensitivity: The damage of each layer, if requested.
    """

    artifacts: tuple[Artifact, ...]
    main: Artifact
    layers: tuple[Artifact, Artifact] | None = None
    parity: CheckResult | None = None
    engine: str | None = None
    latencies: Mapping[str, float] = field(default_factory=dict)
    legacy_runtime: bool = True
    parameters: int | None = None
    decompression_memory: int | None = None
    notes: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None


@dataclass(frozen=True)
class NoOptions:
    """The options of a format without any."""


@dataclass(frozen=True)
class Format:
    """A kind of file that `export` writes.

    Attributes:
        name: What `--format` takes.
        make: Makes the files.
        options: Its own options, a dataclass of `core.options`.
        from_tflite: Whether it takes an int8 .tflite file in place of a Keras model.
        families: Names of the families of targets that run it; empty for all.
        why: Why only those, one sentence.
        summary: What it is, in a few words for `--help`.
        sources: Returns the float files, if `make` needs nothing else of the Keras model; then
            that model, and TensorFlow, are gone when it is called. None if it does.
    """

    name: str
    make: Callable[[FormatRequest], FormatResult] = field(repr=False)
    options: type = NoOptions
    from_tflite: bool = False
    families: tuple[str, ...] = ()
    why: str = ""
    summary: str = ""
    sources: Callable[[FormatRequest], Sources | None] = field(
        default=lambda request: None, repr=False
    )


FORMATS: Registry[Format] = Registry("--format", home="edgecompress.converters")


def register(
    name: str, **details: Any
) -> Callable[[Callable[[FormatRequest], FormatResult]], Callable[[FormatRequest], FormatResult]]:
    """Returns a decorator that registers a function as the format `name`; see `Format`."""

    def decorate(
        make: Callable[[FormatRequest], FormatResult],
    ) -> Callable[[FormatRequest], FormatResult]:
        FORMATS.register(name)(Format(name, make, **details))
        return make

    return decorate


def format_options(chosen: Format, given: Mapping[str, Any]) -> Any:
    """Returns a format's own options; refuses those of other formats.

    Args:
        chosen: The format.
        given: Option -> value, of any format; None means not given.

    Raises:
        ArgumentError: an option belongs to another format, or breaks its rule.
    """
    owners = {f"--format {name}": FORMATS[name].options for name in FORMATS}
    return parse_options(chosen.options, given, f"--format {chosen.name}", owners)


def make_int8(
    request: FormatRequest,
    precision: Precision | None = None,
    per_layer: Mapping[str, Precision] | None = None,
    fused: bool = False,
    stepping: Stepping | None = None,
    keep: Kept | None = None,
) -> tuple[Float32Result, Artifact]:
    """Converts the Keras model to int8; the first stage of every format of int8 weights.

    Args:
        request: What to convert.
        precision: The number format. Defaults to int8.
        per_layer: As in `int8.convert`.
        fused: Whether LSTM layers become one operator where possible. Defaults to False.
        stepping: How a streaming file runs over the samples. Defaults to None.
        keep: As in `int8.convert`.

    Returns:
        The float flatbuffer, and the int8 file with the names of its inner tensors.
    """
    from edgecompress.converters import int8, tables
    from edgecompress.converters.recalled import float_file

    floats = float_file(request, fused)
    if stepping is not None:
        floats = dataclasses.replace(floats, stepping=stepping)
    name = "int8" if precision is None else precision.name
    request.progress(f"Quantizing to {name}")
    learnt = (request.loaded.record if request.loaded else None) or CompressionRecord()
    step = {
        "technique": f"{name}_conversion",
        "learnt_ranges": len(learnt.ranges),
        "calibration_samples": 0 if request.samples is None else len(request.samples[0]),
    }
    made = int8.convert(
        floats,
        calibration=request.samples,
        verbose=request.verbose,
        precision=precision,
        per_layer=per_layer,
        keep=keep,
    )
    made = tables.for_targets(made, request.costs.refused)
    return floats, made.having(record=learnt.merged(CompressionRecord(steps=(step,))))


@dataclass(frozen=True)
class Int8Source:
    """The int8 file that a format changes: made from the Keras model, or the original.

    Attributes:
        plain: The file; its notes are in `notes`.
        flat: The same, parsed.
        artifacts: Further files to write; none for an original file.
        layers: As in `FormatResult`.
        notes: Notes on making it.
    """

    plain: Artifact
    flat: FlatModel
    artifacts: tuple[Artifact, ...] = ()
    layers: tuple[Artifact, Artifact] | None = None
    notes: tuple[str, ...] = ()


def int8_source(request: FormatRequest) -> Int8Source:
    """Returns the original int8 file, or makes one from the Keras model."""
    from edgecompress.converters import int8

    if request.original is not None:
        return Int8Source(Artifact("int8", request.original.data, request.name), request.original)
    floats, named = make_int8(request)
    shipped = int8.strip_names(named)
    return Int8Source(
        shipped.having(notes=()),
        shipped.flat,
        (floats.artifact, shipped),
        (named, floats.artifact),
        (*floats.artifact.notes, *shipped.notes),
    )


def proven_parity(
    request: FormatRequest, engine: str, samples: int, steps: float
) -> CheckResult | None:
    """Returns the parity proven by comparing a file with the original .tflite file.

    Args:
        request: What the file was made from; for a Keras model, which is the reference, None.
        engine: Where both files ran.
        samples: Number of random inputs.
        steps: Largest difference of an output, in steps of its scale.
    """
    if request.original is None:
        return None
    detail = {
        "engine": engine,
        "reference": f"{request.name}.tflite",
        "samples": samples,
        "kind": "values",
        "max_error_steps": steps,
        "engines": {engine: 1.0},
        "layers": [],
    }
    return CheckResult("parity", "pass", 1.0, 1.0, 1.0, 1.0, "share", "measured_host", detail)


def file_stem(path: Path) -> str:
    """Returns the name for files made from a .tflite file: `kws` for `kws_int8.tflite`."""
    return path.stem.removesuffix("_int8")
