"""`--format compressed`: coded weights that TensorFlow Lite Micro decodes as it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgecompress.core.units import format_size, format_time
from edgecompress.flatbuffers.model import FlatModel, read_tflite
from edgecompress.pipeline.formats import Job, Product, int8_source, proven_parity, register

if TYPE_CHECKING:
    from edgecompress.targets.profile import TargetProfile


@register(
    "compressed",
    from_tflite=True,
    targets=("board", "core"),
    why="Only TensorFlow Lite Micro decodes such files.",
    options=("coding", "decompression_memory"),
)
def make(job: Job) -> Product:
    """Makes the int8 file where a Keras model came in, and codes its weights.

    Where RAM or latency are limited, as many tensors as need be stay as they are.
    """
    from edgecompress.converters.compressed import compress
    from edgecompress.flatbuffers.coding import CODINGS

    source = int8_source(job)
    original = source.flat
    job.progress("Coding the weights and comparing the outputs")
    ram = [b for p in job.profiles if (b := job.budgets.over(p.limits).max_ram) is not None]
    memory = job.options.get("decompression_memory")
    arena, latency = _costs(original, job.profiles, job.kernels, memory)
    slowest = job.budgets.max_latency
    result = compress(
        source.plain,
        codings=tuple(job.options.get("coding", CODINGS)),
        arena=arena,
        # A budget that even the plain file exceeds is the checks' to fail, not a wrong argument.
        max_arena=int(max(min(ram), arena(original))) if ram and arena else None,
        latency=latency,
        max_latency_us=max(slowest, latency(original)) if slowest and latency else None,
        decompression_memory=memory,
    )
    notes = (*source.notes, *result.notes)
    if memory is not None:
        taken = format_size(result.decompression_memory)
        outside = f"Decoded weights take {taken} of the {format_size(memory)} outside the arena."
        notes = (*notes, outside)
    price = [f"File {format_size(result.bytes_before)} -> {format_size(len(result.artifact.data))}"]
    if result.arena_before is not None and result.arena_after is not None:
        before, after = format_size(result.arena_before), format_size(result.arena_after)
        price.append(f"tensor arena {before} -> {after}")
    if result.latency_before_us is not None and result.latency_after_us is not None:
        before = format_time(result.latency_before_us)
        price.append(f"predicted latency {before} -> {format_time(result.latency_after_us)}")
    return Product(
        artifacts=(*source.artifacts, result.artifact),
        main=result.artifact,
        flat=read_tflite(result.artifact.data),
        layers=source.layers,
        parity=proven_parity(job, "tflm", result.verified_samples, 0.0),
        field_runtime=False,
        # The weights behind a decoder are parameters still.
        parameters=original.parameters(),
        notes=(*notes, f"{', '.join(price)}."),
    )


def _costs(
    model: FlatModel,
    profiles: Sequence[TargetProfile],
    kernels: str | None,
    memory: int | None,
) -> tuple[Callable[[FlatModel], float] | None, Callable[[FlatModel], float] | None]:
    """Returns what tells a file's arena and latency on the neediest target; None if unknown."""
    from edgecompress.targets.tflm.arena import compute_arena
    from edgecompress.targets.tflm.latency import predict

    def arena(flat: FlatModel) -> float:
        found = [
            compute_arena(flat, str(p.core), kernels or str(p.kernels), decompression_memory=memory)
            for p in profiles
        ]
        return max(max(a.used or 0, a.smallest or 0) for a in found)

    timed = [p for p in profiles if predict(model, p, kernels).microseconds is not None]

    def latency(flat: FlatModel) -> float:
        return max(predict(flat, p, kernels).microseconds or 0.0 for p in timed)

    known = all(
        compute_arena(model, str(p.core), kernels or str(p.kernels)).is_known for p in profiles
    )
    return arena if known else None, latency if timed else None
