"""`--format int8`: integer weights and activations, for phones and microcontrollers."""

from __future__ import annotations

from dataclasses import replace

from edgecompress.flatbuffers.model import read_tflite
from edgecompress.pipeline.formats import Job, Product, make_int8, register


@register("int8")
def make(job: Job) -> Product:
    """Makes the float32 and the int8 file."""
    from edgecompress.converters import int8

    floats, named = make_int8(job)
    quantized = int8.strip_names(named)
    return Product(
        artifacts=(floats.artifact, quantized),
        main=quantized,
        # Checks speak of tensors by name; the file that ships does not pay for the names.
        flat=replace(read_tflite(named.data), data=quantized.data),
        layers=(named, floats.artifact),
        notes=(*floats.artifact.notes, *quantized.notes),
    )
