"""float32 flatbuffer -> float32 flatbuffer whose pruned fully-connected weights are stored sparse.

TensorFlow Lite has one kernel that benefits from sparse weights: the float fully-connected one,
with 1x4 blocks, four inputs of one unit. With 90 % of the blocks zero, it is faster than the dense
one, and the file stores only the other blocks. Everything else (single zeros, convolutions, int8)
is expanded when the file is loaded, or not loaded at all, and is left dense here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.converters import float32
from edgecompress.converters.comparison import random_inputs
from edgecompress.converters.formats import PROCESSES, FormatRequest, FormatResult, register
from edgecompress.core.errors import ConversionError, EdgeCompressError, UnsupportedModelError
from edgecompress.core.units import format_size, format_time
from edgecompress.engines.registry import LEGACY, LITERT
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor, strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.sparse_tensors import block_sparsity, encode_blocks
from edgecompress.flatbuffers.tensors import Tensor

KIND = "sparse"
BLOCK = 4
# Share of zero blocks above which the sparse kernel is clearly faster; break-even is about 80 %.
MIN_SPARSITY = 0.9
# Relative to the largest output: kernels sum in different orders.
TOLERANCE = 1e-4
_VERSION = 8
# The tables of a sparse tensor in the file: levels, vectors.
_TABLE_BYTES = 160
_HINT = (
    "Prune Dense layers with MagnitudePruning(block_size=(4, 1)) to a final_sparsity of at least "
    "0.9."
)


@dataclass(frozen=True)
class SparseTensor:
    """The outcome for one filter.

    Attributes:
        index: Index of the tensor, the same before and after.
        name: Its name in the original file, or that of its operator's output.
        operator: The operator that reads it.
        sparsity: Share of its 1x4 blocks that are zero; None if it has no such blocks.
        bytes_before: Bytes of its weights.
        bytes_after: Bytes of its values and indices.
        reason: Why it is left dense, or "".
    """

    index: int
    name: str
    operator: str
    sparsity: float | None
    bytes_before: int
    bytes_after: int
    reason: str = ""


@dataclass(frozen=True)
class SparseResult:
    """A sparse file and its benefit.

    Attributes:
        artifact: `Artifact(kind="sparse")`.
        tensors: The filters, by index.
        bytes_before: Bytes of the original file without names and metadata.
        error: Largest difference of an output from the dense file's, relative to the largest.
        engines: Engine -> "" where it runs the file, else why not.
        latency_before_us: Microseconds returned by the `latency` argument; None without it.
        latency_after_us: The same for the sparse file.
    """

    artifact: Artifact
    tensors: tuple[SparseTensor, ...]
    bytes_before: int
    error: float
    engines: Mapping[str, str]
    latency_before_us: float | None = None
    latency_after_us: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The artifact's notes."""
        return self.artifact.notes


@register(
    "sparse",
    summary="a float file that skips pruned blocks",
    families=PROCESSES,
    why="TensorFlow Lite Micro does not support sparse tensors; use --format compressed.",
)
def make(request: FormatRequest) -> FormatResult:
    """Makes the float32 file, dense and sparse."""
    request.progress("Converting to a float32 flatbuffer")
    floats = float32.convert(request.loaded, verbose=request.verbose)
    request.progress("Storing the weights sparse and comparing the outputs")
    result = convert(floats.artifact, latency=request.costs.host_latency)
    before, after = result.latency_before_us or 0.0, result.latency_after_us or 0.0
    price = (
        f"File {format_size(result.bytes_before)} -> {format_size(len(result.artifact.data))}, "
        f"latency on this computer {format_time(before)} -> {format_time(after)}."
    )
    return FormatResult(
        artifacts=(floats.artifact, result.artifact),
        main=result.artifact,
        legacy_runtime=False,
        latencies={floats.artifact.kind: before, result.artifact.kind: after},
        notes=(*result.notes, price),
    )


def kernel_sparsity(kernel: np.ndarray) -> float:
    """Returns the share of a Dense kernel's 1x4 blocks that are zero, 0 to 1.

    Args:
        kernel: Shape (inputs, units), the inputs a multiple of 4.

    Raises:
        ArgumentError: the kernel has other dimensions.

    Example:
        >>> kernel = np.zeros((8, 2))
        >>> kernel[0, 0] = 1
        >>> kernel_sparsity(kernel)
        0.75
    """
    return block_sparsity(np.asarray(kernel).T, BLOCK)


def convert(
    model: bytes | Path | str | Artifact,
    *,
    samples: int = 8,
    seed: int = 0,
    engines: Sequence[str] = (LITERT, LEGACY),
    latency: Callable[[FlatModel], float] | None = None,
) -> SparseResult:
    """Stores pruned fully-connected weights sparse, and runs the file.

    Names and metadata are removed. Equal inputs give equal bytes.

    Args:
        model: A float32 .tflite file of a pruned model: bytes, path or artifact.
        samples: Random inputs to compare the outputs on. Defaults to 8.
        seed: Of the random inputs. Defaults to 0.
        engines: Which engines to try the file in. Defaults to LiteRT and tflite-runtime.
        latency: Returns a model's microseconds for one inference. Optional.

    Raises:
        UnsupportedModelError: the model has several subgraphs.
        ConversionError: no filter has enough zero blocks, or the file is no smaller, or
            its outputs differ.
        EngineError, MissingDependencyError: LiteRT cannot run the file, or is not installed.

    Example:
        >>> result = convert(float_result.artifact)  # doctest: +SKIP
        >>> len(result.artifact.data), result.bytes_before  # doctest: +SKIP
        (1441504, 12596208)
    """
    original = model.flat if isinstance(model, Artifact) else read_tflite(model)
    if original.subgraphs > 1:
        raise UnsupportedModelError(
            f"The model has {original.subgraphs} subgraphs; weights of one with control flow "
            "cannot be stored sparse. Build recurrent layers with unroll=True."
        )
    base = strip(original)
    flat = read_tflite(base)
    tensors = _tensors(flat, original)
    chosen = [tensor.index for tensor in tensors if not tensor.reason]
    if not chosen:
        why = "; ".join(f"{t.name or f'tensor {t.index}'}: {t.reason}" for t in tensors[:5])
        more = f" (and {len(tensors) - 5} more)" if len(tensors) > 5 else ""
        raise ConversionError(f"No filter can be stored sparse: {why or 'none'}{more}. {_HINT}")
    data = store_sparse(flat, chosen)
    if len(data) >= len(base):
        raise ConversionError(
            f"The sparse file ({format_size(len(data))}) would be no smaller than the dense one "
            f"({format_size(len(base))})."
        )
    error = verify_sparse(base, data, samples, seed)
    problems = {
        name: "" if name == LITERT else _problem(name, base, data, samples, seed)
        for name in engines
    }
    source = model if isinstance(model, Artifact) else None
    label = str(model) if isinstance(model, (str, Path)) else "model"
    artifact = Artifact(
        KIND,
        data,
        source.source if source else label,
        source.record if source else None,
        (*(source.notes if source else ()), *_notes(tensors, base, data, problems)),
    )
    return SparseResult(
        artifact,
        tensors,
        len(base),
        error,
        problems,
        latency(flat) if latency else None,
        latency(artifact.flat) if latency else None,
    )


def _tensors(flat: FlatModel, original: FlatModel) -> tuple[SparseTensor, ...]:
    """Returns the filters, with the reason for each one that stays dense."""
    readers: dict[int, list[Operator]] = {}
    for operator in flat.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    rows: dict[int, SparseTensor] = {}
    for operator in flat.operators:
        tensor = flat.tensor(operator, 1)
        if operator.code not in FILTER_READERS or tensor is None or not tensor.is_constant:
            continue
        share, reason = _judge(flat, operator, tensor)
        if not reason and (len(readers[tensor.index]) > 1 or tensor.index in flat.outputs):
            reason = "it has several readers"
        after = tensor.stored_bytes
        if not reason:
            values, sparsity = encode_blocks(tensor.values(), BLOCK)
            after = values.nbytes + sparsity.bytes
            if after + _TABLE_BYTES >= tensor.bytes:
                reason, after = "it would take no fewer bytes", tensor.stored_bytes
        name = original.tensors[tensor.index].name or original.output(operator).name
        rows[tensor.index] = SparseTensor(
            tensor.index, name, operator.code, share, tensor.stored_bytes, after, reason
        )
    return tuple(rows[index] for index in sorted(rows))


def _judge(flat: FlatModel, operator: Operator, tensor: Tensor) -> tuple[float | None, str]:
    """Returns the share of zero blocks, and why the filter stays dense ("": it does not)."""
    source = flat.tensor(operator, 0)
    if tensor.sparsity is not None:
        return None, "it is sparse already"
    if operator.code != "FULLY_CONNECTED":
        return None, f"sparse weights do not speed up {operator.code}"
    if tensor.type != "FLOAT32" or source is None or source.type != "FLOAT32":
        return None, f"{tensor.type} is faster dense (only float32 weights and activations benefit)"
    if tensor.shape[1] % BLOCK:
        return None, f"its {tensor.shape[1]} inputs are not a multiple of {BLOCK}"
    share = block_sparsity(tensor.values(), BLOCK)
    # Schedules round to the nearest block, so missing it by one block is tolerated.
    if share < MIN_SPARSITY - 1 / max(tensor.elements // BLOCK, 1):
        return share, (
            f"{share:.1%} of its 1x{BLOCK} blocks are zero, below {MIN_SPARSITY:.0%}, where dense "
            "is about as fast"
        )
    return share, ""


def store_sparse(model: bytes | FlatModel, indices: Collection[int]) -> bytes:
    """Returns the file with filters of fully-connected layers stored as 1x4 blocks.

    Args:
        model: A float .tflite file with one subgraph: bytes, or as read.
        indices: Tensor numbers of the filters.
    """
    editor = ModelEditor(model)
    flat = editor.original
    for operator, entry in zip(flat.operators, editor.operators, strict=True):
        if len(operator.inputs) < 2 or operator.inputs[1] not in indices:
            continue
        index = operator.inputs[1]
        values, sparsity = encode_blocks(flat.tensors[index].values(), BLOCK)
        editor.replace(index, values)
        editor.set_sparsity(index, sparsity)
        editor.set_code(entry, operator.code, max(operator.version, _VERSION), shared=False)
    editor.drop_unused_buffers()
    return editor.pack()


def verify_sparse(before: bytes, after: bytes, samples: int = 8, seed: int = 0) -> float:
    """Expands the sparse weights again, and compares the outputs of both files in LiteRT.

    Args:
        before: A .tflite file.
        after: The same with sparse weights.
        samples: Random inputs. Defaults to 8.
        seed: Of the inputs. Defaults to 0.

    Returns:
        Largest difference of an output, relative to the largest output.

    Raises:
        ConversionError: a weight or an output differs.
        EngineError: LiteRT refuses a file.
    """
    dense = read_tflite(before)
    for tensor in read_tflite(after).tensors:
        if tensor.sparsity is None:
            continue
        if not np.array_equal(tensor.values(), dense.tensors[tensor.index].values()):
            raise ConversionError(f"Tensor {tensor.index} does not expand to its original weights.")
    error = _error(LITERT, before, after, random_inputs(dense, samples, seed))
    if error > TOLERANCE:
        raise ConversionError(
            f"The sparse file computes different outputs in LiteRT: they differ by {error:.2g} of "
            f"the largest output, more than {TOLERANCE:g}."
        )
    return error


def _error(engine: str, before: bytes, after: bytes, inputs: Sequence[np.ndarray]) -> float:
    want = run_engine(engine, before, inputs).outputs
    have = run_engine(engine, after, inputs).outputs
    error = 0.0
    for one, other in zip(want, have, strict=True):
        apart = np.abs(one.astype(np.float64) - other).max(initial=0)
        largest = max(float(np.abs(one).max(initial=0)), float(np.finfo(np.float32).tiny))
        # NaN counts as infinitely far away.
        error = max(error, float(np.nan_to_num(apart / largest, nan=np.inf)))
    return error


def _problem(engine: str, before: bytes, after: bytes, samples: int, seed: int) -> str:
    """Returns why an engine does not run the sparse file as it runs the dense one, or ""."""
    inputs = random_inputs(read_tflite(before), samples, seed)
    try:
        error = _error(engine, before, after, inputs)
    except EdgeCompressError as problem:
        return str(problem)
    return "" if error <= TOLERANCE else f"{engine} computes different outputs ({error:.2g} apart)."


def _notes(
    tensors: Sequence[SparseTensor], base: bytes, data: bytes, problems: Mapping[str, str]
) -> list[str]:
    chosen = [tensor for tensor in tensors if not tensor.reason]
    notes = [
        f"{len(chosen)} of {len(tensors)} filters are stored sparse: {format_size(len(base))} -> "
        f"{format_size(len(data))}. The speed-up was measured on x86 only. On an emulated "
        "Arm core one of two models with sparse weights failed to load: try it on the phone.",
        "TensorFlow Lite Micro reads sparse weights as if they were dense: not for "
        "microcontrollers.",
    ]
    by_reason: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.reason:
            by_reason.setdefault(tensor.reason, []).append(str(tensor.index))
    notes += [
        f"Left dense, as {why}: tensor{'s' * (len(numbers) > 1)} {', '.join(numbers)}."
        for why, numbers in by_reason.items()
    ]
    return notes + [f"Not for {engine}: {why}" for engine, why in problems.items() if why]
