"""`--format sparse`: float32 with pruned blocks of fully-connected layers left out."""

from __future__ import annotations

from edgecompress.core.units import format_size, format_time
from edgecompress.flatbuffers.model import FlatModel, read_tflite
from edgecompress.pipeline.formats import Job, Product, register


@register(
    "sparse",
    targets=("phone", "host"),
    why="TensorFlow Lite Micro knows no sparse tensors; take --format compressed.",
)
def make(job: Job) -> Product:
    """Makes the float32 file, dense and sparse."""
    from edgecompress.converters import float32, sparse

    job.progress("Converting to a float32 flatbuffer")
    floats = float32.convert(job.loaded, verbose=job.verbose)

    def latency(flat: FlatModel) -> float:
        from edgecompress.targets.bench import bench_host

        job.progress(f"Measuring latency of {format_size(len(flat.data))} on this computer")
        return bench_host(flat.data, processes=3).measured

    job.progress("Storing the weights sparse and comparing the outputs")
    result = sparse.convert(floats.artifact, latency=latency)
    before, after = result.latency_before_us or 0.0, result.latency_after_us or 0.0
    price = (
        f"File {format_size(result.bytes_before)} -> {format_size(len(result.artifact.data))}, "
        f"latency on this computer {format_time(before)} -> {format_time(after)}."
    )
    return Product(
        artifacts=(floats.artifact, result.artifact),
        main=result.artifact,
        flat=read_tflite(result.artifact.data),
        field_runtime=False,
        latencies={floats.artifact.kind: before, result.artifact.kind: after},
        notes=(*result.notes, price),
    )
