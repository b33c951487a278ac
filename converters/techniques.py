"""`--technique`: post-training quantization of the model before it is converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edgecompress.converters.formats import FormatRequest
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.post_training.techniques import Technique
from edgecompress.precisions.base import Precision, trained_precision


def quantized(
    request: FormatRequest,
    techniques: Sequence[Technique],
    precision: Precision | None,
    per_layer: Mapping[str, Precision] | None,
) -> tuple[FormatRequest, Precision | None, tuple[str, ...]]:
    """Returns the request with the quantized model, its precision, and what each technique brought.

    The original model stays the reference that the file is compared with.

    Args:
        request: What is exported.
        techniques: What is tried, in this order.
        precision: The number format. Defaults to int8.
        per_layer: As in `int8.convert`.

    Raises:
        ArgumentError: there are no samples, or the model is not a Keras 3 model.
    """
    from edgecompress.post_training.quantize import quantize

    loaded = request.loaded
    if loaded is None or loaded.flavour != "keras3":
        raise ArgumentError(
            "--technique", "go with a Keras 3 model", request.name,
            "They change the weights of its layers.",
        )  # fmt: skip
    if request.samples is None:
        raise ArgumentError(
            "--technique", "go with --calibration", None, "They fit the rounding to real inputs."
        )
    small = quantize(
        loaded.model,
        precision,
        list(request.samples),
        techniques=techniques,
        per_layer=per_layer,
        progress=request.progress,
    )
    record = record_of(small)
    known = () if loaded.record is None else loaded.record.notes
    notes = (
        *(note for note in record.notes if note not in known),
        "Techniques were fitted to some of the calibration samples that agreement is measured on: "
        "judge accuracy by --evaluate with other samples.",
    )
    request = dataclasses.replace(
        request, loaded=dataclasses.replace(loaded, model=small, record=record)
    )
    return request, trained_precision(record), notes
