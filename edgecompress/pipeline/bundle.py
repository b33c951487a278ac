"""The bundle of an export: bundle.json, and golden inputs and outputs of each of its files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core.bundle import BUNDLE_FILE, Bundle, BundleModel, BundleTensor, Golden
from edgecompress.core.errors import ArgumentError, EngineError, UnreadableFileError
from edgecompress.core.files import sha256
from edgecompress.core.reading import read_text
from edgecompress.core.results import tool_version
from edgecompress.engines.registry import ENGINES, LCE, LITERT, TFLM
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import Tensor

if TYPE_CHECKING:
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.profile import TargetProfile

GOLDEN_SAMPLES = 8
# Other kernels sum in a different order: int8 outputs of XNNPACK and of the built-in kernels
# occasionally differ by a step, float outputs in their last digits, more so in deeper models.
TOLERANCE_STEPS = 1
TOLERANCE = 1e-3

_DTYPES = {
    "FLOAT32": "float32",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def bundle_profile(profiles: Sequence[TargetProfile]) -> TargetProfile | None:
    """Returns the target that a bundle is for: the first phone, else the host, else None."""
    from edgecompress.targets.family import family_of
    from edgecompress.targets.measurement_form import TIERS

    found = (p for tier in TIERS for p in profiles if family_of(p).measured == tier)
    return next(found, None)


def read_labels(labels: Path | str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns the class names: as given, or the lines of a UTF-8 text file.

    Raises:
        ArgumentError: the file cannot be read, or holds no line or an empty one.
    """
    if labels is None:
        return None
    if isinstance(labels, (str, Path)):
        try:
            text = read_text(labels)
        except UnreadableFileError as error:
            raise ArgumentError(
                "--labels", "be a readable text file", str(labels), f"It {error.problem}."
            ) from error
        labels = text.splitlines()
    names = tuple(name.strip() for name in labels)
    if not names or not all(names):
        raise ArgumentError("--labels", "hold the name of one class in each line", list(names)[:5])
    return names


@dataclasses.dataclass(frozen=True)
class Bundled:
    """A bundle and the files that are written for it.

    Attributes:
        bundle: The content of bundle.json.
        files: Path in the output folder -> content; bundle.json last.
        notes: What is missing and why, one sentence each.
    """

    bundle: Bundle
    files: dict[str, bytes | str]
    notes: tuple[str, ...] = ()


def make_bundle(
    artifacts: Sequence[Artifact],
    main: Artifact,
    name: str,
    profile: TargetProfile,
    budgets: Budgets,
    samples: tuple[np.ndarray, ...] | None,
    labels: tuple[str, ...] | None,
    progress: Callable[[str], None],
) -> Bundled:
    """Runs the files of an export on a few samples and assembles the bundle.

    Args:
        artifacts: The files.
        main: The one that ships; it is the bundle's first.
        name: Name of the files.
        profile: The phone, or the host.
        budgets: The user's limits, completed by the profile's. `max_ram` limits the growth of the
            process.
        samples: Real inputs as the Keras model takes them; None for no golden outputs.
        labels: Names of the classes.
        progress: Called with a short text.

    Raises:
        ArgumentError: there are more or fewer labels than classes.
    """
    from edgecompress.converters import calibration as calibrations

    few = None
    notes: list[str] = []
    if samples is None:
        notes.append(
            "The bundle has no golden outputs, because no calibration data was given: a phone's "
            "answers cannot be checked."
        )
    else:
        few = tuple(calibrations.spread(array, GOLDEN_SAMPLES) for array in samples)
    models, files, arrays = [], {}, {}
    for artifact in sorted(artifacts, key=lambda a: a.kind != main.kind):
        flat = artifact.flat
        unknown = [t.type for t in _ends(flat) if t.type not in _DTYPES]
        if unknown:
            notes.append(
                f"The bundle leaves out the {artifact.kind} file: it has a tensor of type "
                f"{unknown[0]} as input or output."
            )
            continue
        model = _model(artifact, name, flat)
        if few is not None:
            progress(f"Computing golden outputs of the {artifact.kind} file")
            found = _golden(artifact, flat, model, few)
            if isinstance(found, str):
                notes.append(f"The bundle has no golden outputs of {model.file}: {found}")
            else:
                golden, contents, named = found
                model = dataclasses.replace(model, golden=golden)
                files.update(contents)
                arrays.update(named)
        models.append(model)
    if not models:
        raise ArgumentError(
            "MODEL", "have inputs and outputs of numbers", [t.type for t in _ends(flat)]
        )
    _check_labels(labels, models[0])
    limits = budgets.over(profile.limits)
    bundle = Bundle(
        name=name,
        target=profile.name,
        models=tuple(models),
        budgets={
            "max_latency_us": limits.max_latency,
            "max_file_size": limits.max_file_size,
            "max_ram": limits.max_ram,
            "min_accuracy": limits.min_accuracy,
        },
        version=tool_version(),
        labels=labels,
        record=None if main.record is None else main.record.to_dict(),
    )
    all_files: dict[str, bytes | str] = dict(files)
    if arrays:
        all_files["golden.npz"] = _npz(arrays)
    all_files[BUNDLE_FILE] = bundle.to_json()
    return Bundled(bundle, all_files, tuple(notes))


def _ends(flat: FlatModel) -> list[Tensor]:
    return [flat.tensors[index] for index in (*flat.inputs, *flat.outputs)]


def _check_labels(labels: tuple[str, ...] | None, model: BundleModel) -> None:
    shape = model.outputs[0].shape
    classes = shape[-1] if shape else 1
    if labels is not None and len(labels) != classes:
        raise ArgumentError(
            "--labels",
            f"name the {classes} values of the first output, one in each line",
            f"{len(labels)} names",
        )


def runtime_of(flat: FlatModel) -> str:
    """Returns the runtime that a file needs: `litert`, `lce` or `tflm`."""
    custom = {operator.custom_name for operator in flat.operators if operator.custom_name}
    if any(name.startswith("Lce") for name in custom):
        return LCE
    return TFLM if DECODE in custom else LITERT


def _model(artifact: Artifact, name: str, flat: FlatModel) -> BundleModel:
    return BundleModel(
        file=artifact.file_name(name),
        kind=artifact.kind,
        sha256=artifact.sha256,
        bytes=len(artifact.data),
        runtime=runtime_of(flat),
        inputs=tuple(_tensor(flat.tensors[index]) for index in flat.inputs),
        outputs=tuple(_tensor(flat.tensors[index]) for index in flat.outputs),
    )


def _tensor(tensor: Tensor) -> BundleTensor:
    quantized = len(tensor.scales) == 1
    return BundleTensor(
        tensor.name,
        # A dimension known only at run time is 1 for a single sample.
        tuple(max(1, size) for size in tensor.shape),
        _DTYPES[tensor.type],
        tensor.scales[0] if quantized else None,
        (tensor.zero_points[0] if tensor.zero_points else 0) if quantized else None,
    )


def _golden(
    artifact: Artifact, flat: FlatModel, model: BundleModel, samples: tuple[np.ndarray, ...]
) -> tuple[Golden, dict[str, bytes], dict[str, np.ndarray]] | str:
    """Returns the golden outputs, their files and arrays by name; or why there are none."""
    from edgecompress.converters.real_values import quantize

    missing = engine_available(model.runtime)
    if missing:
        return missing
    try:
        inputs = [
            quantize(array, flat.tensors[index])
            for array, index in zip(samples, flat.inputs, strict=True)
        ]
        run = run_engine(model.runtime, artifact.data, inputs)
    except (EngineError, ArgumentError) as error:
        return str(error)
    count = len(inputs[0])
    files: dict[str, bytes] = {}
    arrays: dict[str, np.ndarray] = {}
    paths: dict[str, list[str]] = {"input": [], "output": []}
    ends: list[tuple[str, Any, Any]] = [
        ("input", inputs, model.inputs),
        ("output", run.outputs, model.outputs),
    ]
    for end, values, tensors in ends:
        for position, (array, tensor) in enumerate(zip(values, tensors, strict=True)):
            data = np.ascontiguousarray(array, np.dtype(tensor.dtype).newbyteorder("<")).tobytes()
            if len(data) != count * tensor.bytes:
                return f"{end} {position} has another shape than the file says."
            label = f"{artifact.kind}_{end}_{position}"
            path = f"golden/{label}.bin"
            files[path], arrays[label] = data, array
            paths[end].append(path)
    floats = any(tensor.dtype == "float32" for tensor in model.outputs)
    golden = Golden(
        count,
        tuple(paths["input"]),
        tuple(paths["output"]),
        {path: sha256(data) for path, data in files.items()},
        ENGINES[run.engine].title,
        run.version,
        run.kernels,
        TOLERANCE_STEPS,
        TOLERANCE if floats else None,
    )
    return golden, files, arrays


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
