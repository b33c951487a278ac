"""`--format xnor`: layers of signs as XNOR and popcount, for Larq Compute Engine."""

from __future__ import annotations

from dataclasses import replace

from edgecompress.core.units import format_size
from edgecompress.pipeline.formats import Job, Product, register


@register(
    "xnor",
    targets=("phone", "host"),
    why="Larq Compute Engine runs on phones and computers.",
)
def make(job: Job) -> Product:
    """Makes the float32 file and the one with binary convolutions."""
    from edgecompress.converters import float32, xnor

    job.progress("Converting to a float32 flatbuffer")
    floats = float32.convert(job.loaded, verbose=job.verbose)
    job.progress("Converting to binary convolutions and running them")
    result = xnor.convert(job.loaded, samples=job.samples, verbose=job.verbose)
    engine = (
        "Targets are checked as if their app ran Larq Compute Engine. On this computer that engine "
        "shows that the file is right, not how fast a phone runs it."
    )
    price = (
        f"{len(result.layers)} binary layers: file {format_size(len(floats.artifact.data))} as "
        f"float32, {format_size(len(result.artifact.data))} with binary convolutions."
    )
    return Product(
        artifacts=(floats.artifact, result.artifact),
        main=result.artifact,
        flat=replace(result.flat, data=result.artifact.data),
        engine=xnor.ENGINE,
        field_runtime=False,
        notes=(*floats.artifact.notes, *result.notes, price, engine),
    )
