"""float32 flatbuffer -> flatbuffer with narrow weights and float activations."""

from __future__ import annotations

import numpy as np

from edgecompress.core.errors import ConversionError, one_line
from edgecompress.core.suppress_output import suppress_output
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.precisions.base import Precision

_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def narrow_weights(flat: FlatModel, precision: Precision, verbose: bool = False) -> ModelEditor:
    """Returns the file with its weights in a precision.

    Args:
        flat: A float file.
        precision: A precision without ranges, such as float16.
        verbose: Let the quantizer's log through. Defaults to False.

    Raises:
        ConversionError: the quantizer refuses the model, or a weight overflows.
    """
    if precision.stored_bits == 16:
        _refuse_overflow(flat)
    editor = ModelEditor(flat)
    # The quantizer iterates over signatures when it changes an output.
    editor.set_signatures()
    try:
        with suppress_output(verbose):
            from litert_quantizer import Quantizer

            quantizer = Quantizer(editor.pack(), precision.recipe())
            return ModelEditor(bytes(quantizer.quantize().quantized_model))
    # For models it cannot handle, the quantizer raises ValueError, RuntimeError or KeyError.
    except Exception as error:
        raise ConversionError(f"The model could not be quantized: {one_line(error)}") from error


def _refuse_overflow(flat: FlatModel) -> None:
    for operator in flat.operators:
        weights = flat.tensor(operator, 1) if operator.code in FILTER_READERS else None
        if weights is None or not weights.is_constant or weights.type != "FLOAT32":
            continue
        largest = float(np.abs(weights.values()).max(initial=0))
        if largest > _LARGEST_FLOAT16:
            raise ConversionError(
                f"The weights of {flat.output(operator).name} reach {largest:.3g}; float16 ends at "
                f"{_LARGEST_FLOAT16:.0f}. Use --precision int8 or a float32 file."
            )


def float_weights_left(flat: FlatModel, name: str) -> list[str]:
    """Returns a note on each operator whose weights stayed in float32.

    Args:
        flat: The file.
        name: The precision's name.
    """
    notes = []
    for operator in flat.operators:
        weights = flat.tensor(operator, 1) if operator.code in FILTER_READERS else None
        if weights is not None and weights.is_constant and weights.type == "FLOAT32":
            notes.append(
                f"The weights of {operator.name} ({flat.output(operator).name}) stay in float32: "
                f"not every runtime has a {name} kernel of it."
            )
    return notes
