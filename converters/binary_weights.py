"""int8 flatbuffer -> int8 flatbuffer whose weights take fewer bits, for phones.

Activations stay int8, and stock runtimes load the files. Only filters that a format in
`weight_formats` represents losslessly are changed: binary and ternary weights, and others with few
levels. Every file has run in LiteRT before it is returned: on the built-in kernels it is
bit-identical to an int8 file with the same weights, and on the default ones its outputs match those
of the original file up to the last steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgecompress.converters.comparison import random_inputs
from edgecompress.converters.formats import (
    PROCESSES,
    FormatRequest,
    FormatResult,
    int8_source,
    proven_parity,
    register,
)
from edgecompress.converters.stored_weights import filters_of, plan_weights, store_weights
from edgecompress.converters.weight_formats import WEIGHT_FORMATS, Stored
from edgecompress.core.errors import (
    ArgumentError,
    ConversionError,
    EdgeCompressError,
    MissingDependencyError,
    UnsupportedModelError,
)
from edgecompress.core.options import Choice, option
from edgecompress.core.units import format_size, format_time
from edgecompress.engines.registry import LEGACY, LITERT
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.flatbuffers.reading import read_tflite

KIND = "binary-weights"
# The runtimes on phones: the current one, and a legacy one.
PHONE_ENGINES = (LITERT, LEGACY)
# Steps by which outputs may differ: kernels round differently, and biases are rounded to scales.
MAX_STEPS = 2
# Saving less than this share is not worth different outputs.
_WORTH = 0.02


@dataclass(frozen=True)
class StoredTensor:
    """The outcome for one filter.

    Attributes:
        index: Index of the tensor, the same before and after.
        name: Its name in the original file, or that of its operator's output.
        operator: The operator that reads it, as it was.
        bits: Bits of a stored weight.
        bytes_before: Bytes of its weights.
        bytes_after: The same in the new file, not counting a look-up table.
        reason: Why it was left unchanged, or "".
    """

    index: int
    name: str
    operator: str
    bits: float
    bytes_before: int
    bytes_after: int
    reason: str = ""


@dataclass(frozen=True)
class StoredResult:
    """A file in one format, with what is needed to choose among formats.

    Attributes:
        format: The format's name.
        artifact: `Artifact(kind="binary-weights-<format>")`.
        tensors: The filters, by index.
        steps: Largest difference of an output from the int8 file's, in steps of its scale.
        changed: Share of output values that differ at all, 0 to 1.
        samples: Random inputs on which outputs were compared.
        kernels: The kernels that ran in LiteRT: `XNNPACK`, or `built-in` if it took no operator.
        engines: Engine -> "" where it runs the file, else why not.
        latency_us: Microseconds returned by the `latency` argument; None without it.
    """

    format: str
    artifact: Artifact
    tensors: tuple[StoredTensor, ...]
    steps: float
    changed: float
    samples: int
    kernels: str
    engines: Mapping[str, str]
    latency_us: float | None = None

    @property
    def stored(self) -> int:
        """Number of filters that the format changes; if 0, it is the stripped int8 file."""
        return sum(not tensor.reason for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(self.artifact.data)

    @property
    def compressed_bytes(self) -> int:
        """Download size of the file."""
        return self.artifact.compressed_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """The artifact's notes."""
        return self.artifact.notes


@dataclass(frozen=True)
class Comparison:
    """A model in all formats.

    Attributes:
        bytes_before: Bytes of the original int8 file, names and metadata left out.
        compressed_before: Its download size.
        latency_before_us: Microseconds returned by the `latency` argument; None without it.
        results: One for each format that could be made.
        failures: Format -> why it could not be made.
    """

    bytes_before: int
    compressed_before: int
    latency_before_us: float | None
    results: tuple[StoredResult, ...]
    failures: Mapping[str, str]

    def __getitem__(self, name: str) -> StoredResult:
        """Returns the result of a format."""
        return next(result for result in self.results if result.format == name)


@dataclass(frozen=True)
class Reference:
    """The original file, and its outputs in LiteRT.

    Attributes:
        original: The file as it was given.
        flat: The file without names and metadata.
        inputs: Random inputs, one array (samples, *shape) for each input.
        outputs: What LiteRT computes from them.
        allowed: Steps by which outputs of another file may differ.
    """

    original: FlatModel
    flat: FlatModel
    inputs: tuple[np.ndarray, ...] = field(repr=False)
    outputs: tuple[np.ndarray, ...] = field(repr=False)
    allowed: float


@dataclass(frozen=True)
class BinaryWeightsOptions:
    """Options of `--format binary-weights`."""

    weight_format: str | None = option(
        None,
        "The weight format to check and compare with the model; all formats are written.",
        Choice(names=WEIGHT_FORMATS),
        unset="int8",
    )
    smallest: bool = option(False, "The same as `--weight-format smallest`.")


@register(
    "binary-weights",
    summary="low-bit weights for phones",
    options=BinaryWeightsOptions,
    from_tflite=True,
    families=PROCESSES,
    why="For microcontrollers use --format compressed.",
)
def make(request: FormatRequest) -> FormatResult:
    """Makes every weight format; the requested one, int8 by default, is checked."""
    options = request.options
    chosen = options.weight_format or ("smallest" if options.smallest else "int8")
    if options.smallest and chosen != "smallest":
        raise ArgumentError("--smallest", "be left out if --weight-format is given", chosen)
    source = int8_source(request)
    request.progress("Storing the weights in fewer bits and comparing the outputs")
    made = compare(source.plain, latency=request.costs.host_latency)
    # Of the formats that change nothing, the requested one is enough.
    results = {
        result.format: result for result in made.results if result.stored or result.format == chosen
    }
    unchanged = [result.format for result in made.results if result.format not in results]
    if chosen not in results:
        raise ConversionError(
            f"The weight format {chosen} cannot be made: {made.failures.get(chosen, 'no reason')}"
        )
    main = results[chosen]
    table = [
        f"{name}: {format_size(result.bytes)}, {format_size(result.compressed_bytes)} in a "
        f"download, {format_time(result.latency_us or 0.0)} on this computer ({result.kernels}); "
        f"outputs at most {result.steps:g} steps from the int8 file's"
        + "".join(
            f"; not in {engine}: {why.rstrip('.')}" for engine, why in result.engines.items() if why
        )
        + "."
        for name, result in results.items()
    ]
    before = (
        f"int8 file before: {format_size(made.bytes_before)}, "
        f"{format_size(made.compressed_before)} in a download, "
        f"{format_time(made.latency_before_us or 0.0)} on this computer."
    )
    if unchanged:
        table.append(f"No file of its own for {', '.join(unchanged)}: no weights would change.")
    failed = [f"No file with {name} weights: {why}" for name, why in made.failures.items()]
    return FormatResult(
        artifacts=(*source.artifacts, *(result.artifact for result in results.values())),
        main=main.artifact,
        layers=source.layers,
        parity=proven_parity(request, LITERT, main.samples, main.steps),
        legacy_runtime=False,
        latencies={
            result.artifact.kind: result.latency_us
            for result in results.values()
            if result.latency_us is not None
        },
        parameters=source.flat.parameters(),
        notes=(*source.notes, *main.notes, before, *table, *failed),
    )


def convert(
    model: bytes | Path | str | Artifact,
    weight_format: str = "int8",
    *,
    max_steps: float | None = None,
    samples: int = 8,
    seed: int = 0,
    engines: Sequence[str] = PHONE_ENGINES,
    latency: Callable[[FlatModel], float] | None = None,
) -> StoredResult:
    """Stores the weights of an int8 model in fewer bits, and runs the file.

    Names and metadata are removed. Equal inputs give equal bytes.

    Args:
        model: An int8 .tflite file: bytes, path or artifact.
        weight_format: `int8`, `int4`, `int4-dense`, `int2` or `smallest`; see
            `weight_formats.WEIGHT_FORMATS`.
        max_steps: By how many steps an output may differ from the int8 file's in LiteRT. Defaults
            to None: 2, or twice as many as the int8 file's own outputs differ between LiteRT's
            kernels.
        samples: Random inputs to compare on. Defaults to 8.
        seed: Of the random inputs. Defaults to 0.
        engines: Which engines to try the file in. Defaults to LiteRT and tflite-runtime.
        latency: Returns a model's microseconds for one inference. Optional.

    Raises:
        UnknownNameError: there is no such format.
        UnsupportedModelError: the model has several subgraphs, or no int8 filters.
        ConversionError: the file does not compute what the int8 file computes.
        EngineError, MissingDependencyError: LiteRT cannot run it, or is not installed.

    Example:
        >>> result = convert("kws_int8.tflite", "smallest")  # doctest: +SKIP
        >>> result.bytes, result.compressed_bytes, result.engines  # doctest: +SKIP
        (31424, 22693, {'litert': '', 'tflite-runtime': ''})
    """
    WEIGHT_FORMATS[weight_format]
    reference = run_reference(model, max_steps, samples, seed)
    return _convert(model, reference, weight_format, engines, latency)


def compare(
    model: bytes | Path | str | Artifact,
    formats: Sequence[str] | None = None,
    *,
    max_steps: float | None = None,
    samples: int = 8,
    seed: int = 0,
    engines: Sequence[str] = PHONE_ENGINES,
    latency: Callable[[FlatModel], float] | None = None,
) -> Comparison:
    """Makes a model in several formats, to choose one by size, speed and runtimes.

    Args:
        model: As in `convert`.
        formats: Names of formats. Defaults to all.
        max_steps: As in `convert`.
        samples: As in `convert`.
        seed: As in `convert`.
        engines: As in `convert`.
        latency: As in `convert`; called for the original file as well.

    Raises:
        UnknownNameError: there is no such format.
        UnsupportedModelError: the model has several subgraphs, or no int8 filters.
        EngineError, MissingDependencyError: LiteRT cannot run the original file, or is not
            installed.
    """
    names = list(WEIGHT_FORMATS) if formats is None else list(formats)
    for name in names:
        WEIGHT_FORMATS[name]
    reference = run_reference(model, max_steps, samples, seed)
    results, failures = [], {}
    for name in names:
        try:
            results.append(_convert(model, reference, name, engines, latency))
        except MissingDependencyError:
            raise
        except EdgeCompressError as error:
            failures[name] = str(error)
    base = Artifact("int8", reference.flat.data, "model")
    return Comparison(
        len(base.data),
        base.compressed_bytes,
        latency(reference.flat) if latency else None,
        tuple(results),
        failures,
    )


def _convert(
    model: bytes | Path | str | Artifact,
    reference: Reference,
    name: str,
    engines: Sequence[str],
    latency: Callable[[FlatModel], float] | None,
) -> StoredResult:
    flat = reference.flat
    plan, reasons = plan_weights(flat, name)
    data = store_weights(flat, plan)
    before, after = Artifact("", flat.data, ""), Artifact("", data, "")
    sizes = [
        a.compressed_bytes if WEIGHT_FORMATS[name].compressed else len(a.data)
        for a in (before, after)
    ]
    if plan and sizes[1] > (1 - _WORTH) * sizes[0]:
        reasons |= dict.fromkeys(plan, "the file would hardly get smaller, if at all")
        plan, data = {}, flat.data
    difference = verify_stored(reference, data, plan)
    problems = {
        engine: "" if engine == LITERT else _problem(engine, reference, data, plan)
        for engine in engines
    }
    tensors = _report(reference.original, plan, reasons)
    source = model if isinstance(model, Artifact) else None
    label = str(model) if isinstance(model, (str, Path)) else "model"
    artifact = Artifact(
        f"{KIND}-{name}",
        data,
        source.source if source else label,
        source.record if source else None,
        (
            *(source.notes if source else ()),
            *_notes(before, after, plan, tensors, difference, problems),
        ),
    )
    return StoredResult(
        name,
        artifact,
        tensors,
        difference.steps,
        difference.changed,
        difference.samples,
        difference.kernels,
        problems,
        latency(artifact.flat) if latency else None,
    )


# --- Checks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How much the outputs of two files differ.

    Attributes:
        steps: Largest difference, in steps of the output's scale; for a float output, in 1/255 of
            its range.
        changed: Share of values that differ at all, 0 to 1.
        samples: Random inputs.
        kernels: What computed the second file.
    """

    steps: float
    changed: float
    samples: int
    kernels: str


def run_reference(
    model: bytes | Path | str | Artifact,
    max_steps: float | None = None,
    samples: int = 8,
    seed: int = 0,
) -> Reference:
    """Runs the int8 file; the arguments are those of `convert`."""
    if max_steps is not None and not max_steps >= 0:
        raise ArgumentError("max_steps", "be 0 or more", max_steps)
    original = model.flat if isinstance(model, Artifact) else read_tflite(model)
    if original.subgraphs > 1:
        raise UnsupportedModelError(
            f"The model has {original.subgraphs} subgraphs; weights of one with control flow "
            "cannot be converted. Build recurrent layers with unroll=True."
        )
    flat = read_tflite(strip(original))
    filters_of(flat)
    inputs = tuple(random_inputs(flat, samples, seed))
    outputs = run_engine(LITERT, flat.data, inputs).outputs
    allowed = max_steps
    if allowed is None:
        # In a deep model small differences grow: those between kernels, which round differently,
        # and as much again from rounded biases.
        allowed = max(MAX_STEPS, 2 * _distance(outputs, _built_in(flat.data, inputs))[0])
    return Reference(original, flat, inputs, outputs, allowed)


def _built_in(data: bytes, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns the outputs that LiteRT computes without its delegate."""
    indices = read_tflite(data).outputs
    run = run_engine(LITERT, data, inputs, tensors=indices)
    return tuple(run.tensors[index] for index in indices)


def _distance(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns the largest difference in steps, and the share of values that differ."""
    steps, differing = 0.0, 0.0
    for one, other in zip(before, after, strict=True):
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64).reshape(one.shape))
        differing += np.count_nonzero(apart)
        if one.dtype.kind == "f":
            apart *= 255 / max(float(np.ptp(one)), float(np.finfo(np.float32).tiny))
        # NaN counts as infinitely far away.
        steps = max(steps, float(np.nan_to_num(apart, nan=np.inf).max(initial=0)))
    values = sum(one.size for one in before)
    return steps, differing / values if values else 0.0


def verify_stored(reference: Reference, data: bytes, plan: Mapping[int, Stored]) -> Difference:
    """Runs a file in LiteRT and compares its outputs with the int8 file's.

    On the built-in kernels it must be bit-identical to the same weights as plain int8, which proves
    that they are stored correctly. On the default kernels it may differ from the original file by
    the reference's `allowed` steps: kernels round differently, and biases follow changed scales.

    Raises:
        ConversionError: an output differs.
        EngineError: LiteRT refuses the file.
    """
    plain = store_weights(reference.flat, plan, plain=True)
    if plain != data:
        want, have = (_built_in(file, reference.inputs) for file in (plain, data))
        share = _distance(want, have)[1]
        if share:
            raise ConversionError(
                f"The weights are stored incorrectly: {share:.2%} of the outputs differ from those "
                "of the same weights in int8, in LiteRT's built-in kernels on random inputs."
            )
    run = run_engine(LITERT, data, reference.inputs)
    steps, changed = _distance(reference.outputs, run.outputs)
    if steps > reference.allowed:
        raise ConversionError(
            f"Outputs differ from the int8 file's by up to {steps:g} steps in LiteRT, more than "
            f"{reference.allowed:g}. Keep int8, or allow it with max_steps={steps:g} and measure "
            "the accuracy."
        )
    samples = len(reference.inputs[0]) if reference.inputs else 1
    return Difference(steps, changed, samples, run.kernels)


def _problem(engine: str, reference: Reference, data: bytes, plan: Mapping[int, Stored]) -> str:
    """Returns why an engine does not run the file as it runs the same weights in int8, or ""."""
    plain = store_weights(reference.flat, plan, plain=True)
    try:
        have = run_engine(engine, data, reference.inputs)
        want = have if plain == data else run_engine(engine, plain, reference.inputs)
    except EdgeCompressError as error:
        return str(error)
    steps = _distance(want.outputs, have.outputs)[0]
    if steps > reference.allowed:
        return (
            f"{engine} {have.version} loads it but computes different outputs "
            f"({steps:g} steps apart)."
        )
    return ""


# --- Report --------------------------------------------------------------------------------------


def _report(
    flat: FlatModel, plan: Mapping[int, Stored], reasons: Mapping[int, str]
) -> tuple[StoredTensor, ...]:
    readers = {o.inputs[1]: o for o in flat.operators if o.code in FILTER_READERS}
    rows = []
    for index in sorted({*plan, *reasons}):
        tensor, stored = flat.tensors[index], plan.get(index)
        bits = tensor.bits if stored is None else stored.bits
        rows.append(
            StoredTensor(
                index,
                tensor.name or flat.output(readers[index]).name,
                readers[index].code,
                bits,
                tensor.bytes,
                -(-tensor.elements * int(bits) // 8),
                reasons.get(index, ""),
            )
        )
    return tuple(rows)


def _notes(
    before: Artifact,
    after: Artifact,
    plan: Mapping[int, Stored],
    tensors: Sequence[StoredTensor],
    difference: Difference,
    problems: Mapping[str, str],
) -> list[str]:
    if not plan:
        notes = ["No filter changes: the file is only stripped."]
    else:
        sizes = " -> ".join(
            f"{format_size(len(a.data))} ({format_size(a.compressed_bytes)} compressed)"
            for a in (before, after)
        )
        same = "are those of the int8 file"
        if difference.changed:
            plural = "s" if difference.steps != 1 else ""
            same = (
                f"differ from the int8 file's in {difference.changed:.1%} of the values, by up to "
                f"{difference.steps:g} step{plural}"
            )
        notes = [
            f"{len(plan)} of {len(tensors)} filters are stored in a new form: {sizes}. Outputs "
            f"{same}, on {difference.samples} random inputs."
        ]
    rounded = [str(index) for index, stored in sorted(plan.items()) if stored.rounded]
    if rounded:
        notes.append(
            f"Codes of tensor{'s' * (len(rounded) > 1)} {', '.join(rounded)} were roundings of "
            "evenly spaced levels; the levels are stored, up to half a code away."
        )
    slow = [
        tensor
        for tensor in tensors
        if tensor.index in plan and plan[tensor.index].leaves_fast_kernels(tensor.operator)
    ]
    if slow:
        notes.append(
            f"{len(slow)} operators leave LiteRT's fast kernels (XNNPACK), which take no such "
            "weights, and become several times slower."
        )
    by_reason: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.reason:
            by_reason.setdefault(tensor.reason, []).append(str(tensor.index))
    notes += [
        f"Left as int8, as {why}: tensor{'s' * (len(numbers) > 1)} {', '.join(numbers)}."
        for why, numbers in by_reason.items()
    ]
    return notes + [f"Not for {engine}: {why}" for engine, why in problems.items() if why]
