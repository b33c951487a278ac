"""What `export` can write: each format makes its files from a Keras model or a .tflite file.

To add a format: one module with a function that is registered here, its test, and one import line
in `edgecompress/pipeline/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import CompressionRecord
from edgecompress.core.registry import Registry
from edgecompress.core.results import Artifact, CheckResult
from edgecompress.flatbuffers.model import FlatModel, read_tflite

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.float32 import Float32Result
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.profile import TargetProfile


@dataclass(frozen=True)
class Job:
    """What a format works from: one of `loaded` and `original`, and what the user asked for.

    Attributes:
        name: Name of the files.
        loaded: The Keras model; None where a .tflite file was given.
        original: The .tflite file; None where a Keras model was given.
        samples: Calibration inputs, one array for each input; None where there are none.
        profiles: The targets.
        budgets: The user's limits.
        kernels: Kernel set of microcontrollers instead of the profiles'.
        options: Options of the format, by name.
        progress: Called with a short text as each stage begins.
        verbose: Let the converters' log through.
    """

    name: str
    loaded: LoadedModel | None
    original: FlatModel | None
    samples: tuple[np.ndarray, ...] | None
    profiles: tuple[TargetProfile, ...]
    budgets: Budgets
    kernels: str | None
    options: Mapping[str, Any]
    progress: Callable[[str], None]
    verbose: bool = False


@dataclass(frozen=True)
class Product:
    """What a format made.

    Attributes:
        artifacts: The files to write.
        main: The one of them that is checked and shipped.
        flat: That file as the checks read it; it may know more names than the file itself.
        layers: A file with the names of inner tensors, and the float file it came from: compared
            layer by layer. None where there is nothing to compare.
        parity: Agreement that making the file has proven already, against the .tflite file that
            came in. None where the Keras model is the reference.
        engine: The engine that runs the file on phones and computers where that is not the
            target's own. None for the target's own.
        latencies: Kind of file -> microseconds of one inference on this computer, where measured.
        field_runtime: Whether devices in the field are expected to load the file.
        parameters: Number of weights where the file does not show it. None for what it shows.
        notes: What the user has to know, one sentence each.
    """

    artifacts: tuple[Artifact, ...]
    main: Artifact
    flat: FlatModel
    layers: tuple[Artifact, Artifact] | None = None
    parity: CheckResult | None = None
    engine: str | None = None
    latencies: Mapping[str, float] = field(default_factory=dict)
    field_runtime: bool = True
    parameters: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A kind of file that `export` writes.

    Attributes:
        name: What `--format` takes.
        make: Makes the files.
        from_tflite: Whether an int8 .tflite file will do instead of a Keras model.
        targets: Kinds of targets that run it.
        why: Why only those, one sentence.
        options: Options of its own and what each must be, in the words of an error.
    """

    name: str
    make: Callable[[Job], Product] = field(repr=False)
    from_tflite: bool = False
    targets: tuple[str, ...] = ("board", "core", "phone", "host")
    why: str = ""
    options: tuple[str, ...] = ()


FORMATS: Registry[Format] = Registry("--format")


def register(
    name: str, **details: Any
) -> Callable[[Callable[[Job], Product]], Callable[[Job], Product]]:
    """Returns a decorator that registers a function as the format `name`."""

    def decorate(make: Callable[[Job], Product]) -> Callable[[Job], Product]:
        FORMATS.register(name)(Format(name, make, **details))
        return make

    return decorate


def check_targets(chosen: Format, profiles: Sequence[TargetProfile]) -> None:
    """Refuses targets that cannot run a format.

    Raises:
        ArgumentError: a target is of another kind.
    """
    others = [profile.name for profile in profiles if profile.kind not in chosen.targets]
    if others:
        boards = "board" in chosen.targets
        kind = "a microcontroller" if boards else "a phone or this computer (host)"
        raise ArgumentError("--target", f"be {kind} for --format {chosen.name}", others, chosen.why)


def check_options(chosen: Format, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that were given; refuses those of other formats.

    Raises:
        ArgumentError: an option belongs to another format.
    """
    found = {name: value for name, value in given.items() if value not in (None, False, ())}
    for name in found:
        if name not in chosen.options:
            owners = [known for known in FORMATS if name in FORMATS[known].options]
            raise ArgumentError(
                f"--{name.replace('_', '-')}",
                f"go with --format {' or '.join(owners)}",
                f"--format {chosen.name}",
            )
    return found


def make_int8(job: Job) -> tuple[Float32Result, Artifact]:
    """Converts the job's Keras model to int8; the stage before every coding of int8 weights.

    Returns:
        The float flatbuffer, and the int8 file with the names of its inner tensors.
    """
    from edgecompress.converters import float32, int8

    job.progress("Converting to a float32 flatbuffer")
    floats = float32.convert(job.loaded, verbose=job.verbose)
    job.progress("Quantizing to int8")
    learnt = (job.loaded.record if job.loaded else None) or CompressionRecord()
    step = {
        "technique": "int8_conversion",
        "learnt_ranges": len(learnt.ranges),
        "calibration_samples": 0 if job.samples is None else len(job.samples[0]),
    }
    named = replace(
        int8.convert(floats, calibration=job.samples, verbose=job.verbose),
        record=learnt.merged(CompressionRecord(steps=(step,))),
    )
    return floats, named


@dataclass(frozen=True)
class Int8Source:
    """The int8 file that a format codes anew, made from the Keras model or given.

    Attributes:
        plain: The file; without notes, which are in `notes`.
        flat: The same, read.
        artifacts: Files to write beside the coded ones; none for a file that was given.
        layers: As in `Product`.
        notes: Notes on making it.
    """

    plain: Artifact
    flat: FlatModel
    artifacts: tuple[Artifact, ...] = ()
    layers: tuple[Artifact, Artifact] | None = None
    notes: tuple[str, ...] = ()


def int8_source(job: Job) -> Int8Source:
    """Returns the int8 file that came in, or makes it from the Keras model."""
    from edgecompress.converters import int8

    if job.original is not None:
        return Int8Source(Artifact("int8", job.original.data, job.name), job.original)
    floats, named = make_int8(job)
    shipped = int8.strip_names(named)
    return Int8Source(
        replace(shipped, notes=()),
        read_tflite(shipped.data),
        (floats.artifact, shipped),
        (named, floats.artifact),
        (*floats.artifact.notes, *shipped.notes),
    )


def proven_parity(job: Job, engine: str, samples: int, steps: float) -> CheckResult | None:
    """Returns what comparing a coded file with the .tflite file that came in has shown.

    Args:
        job: What the user asked for; of a Keras model, that model is the reference: None.
        engine: Where both files ran.
        samples: On how many random inputs.
        steps: Largest difference of an output, in steps of its scale.
    """
    if job.original is None:
        return None
    detail = {
        "engine": engine,
        "reference": f"{job.name}.tflite",
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
