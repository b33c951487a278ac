"""Flash footprint of a model on a microcontroller: the file plus the code that runs it.

The file's size is exact. The code's is a range: kernels share code, so their sizes do not add up.
The low end is the interpreter with the largest single operator, the high end is the plain sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.flatbuffers.model import FlatModel

# KB of text and read-only data, without a model: TensorFlow Lite Micro 90b983c2b for Cortex-M4, GCC
# 12.2, kernels at -O2 and the rest at -Os, NDEBUG, newlib-nano, unused sections dropped.
_INTERPRETER_KB = 18.3
# What one operator adds to the interpreter: reference kernels, CMSIS-NN.
_OPERATOR_KB = {
    "FULLY_CONNECTED": (10.2, 23.6),
    "CONV_2D": (13.1, 34.2),
    "DEPTHWISE_CONV_2D": (12.2, 24.2),
    "AVERAGE_POOL_2D": (6.6, 7.2),
    "ADD": (13.8, 16.2),
    "SOFTMAX": (11.9, 13.1),
    "RESHAPE": (3.0, 3.0),
    "PAD": (7.5, 7.5),
    "QUANTIZE": (6.8, 6.8),
    "MEAN": (9.8, 9.8),
}
# Sizes were recorded in KB with one decimal: the low end uses 1,000 bytes, the high end 1,024.
_KB_LOW, _KB_HIGH = 1000, 1024


@dataclass(frozen=True)
class FlashEstimate:
    """Flash footprint of a model and its runtime.

    Attributes:
        model_bytes: Size of the file; exact.
        code_low: Minimum code: the interpreter and the largest operator, in bytes.
        code_high: Maximum code: the interpreter and every operator, in bytes.
        unmeasured: Operators whose code size is not in the table; each counts as the largest
            measured one in `code_high` and as nothing in `code_low`.
    """

    model_bytes: int
    code_low: int
    code_high: int
    unmeasured: tuple[str, ...] = ()

    @property
    def low(self) -> int:
        """Minimum flash in bytes."""
        return self.model_bytes + self.code_low

    @property
    def high(self) -> int:
        """Maximum flash in bytes."""
        return self.model_bytes + self.code_high


def estimate_flash(model: FlatModel, kernels: str) -> FlashEstimate:
    """Returns the flash footprint of a model and the code for its operators.

    Args:
        model: The file.
        kernels: `cmsis-nn` or `reference`.

    Example:
        >>> estimate = estimate_flash(read_tflite("kws.tflite"), "cmsis-nn")  # doctest: +SKIP
        >>> estimate.code_low, estimate.code_high  # doctest: +SKIP
        (52500, 126566)
    """
    column = 0 if kernels == "reference" else 1
    largest = max(sizes[column] for sizes in _OPERATOR_KB.values())
    kinds = set(model.histogram())
    measured = [_OPERATOR_KB[kind][column] for kind in kinds if kind in _OPERATOR_KB]
    unmeasured = tuple(sorted(kinds - set(_OPERATOR_KB)))
    low = _INTERPRETER_KB + max(measured, default=0.0)
    high = _INTERPRETER_KB + sum(measured) + largest * len(unmeasured)
    return FlashEstimate(len(model.data), round(low * _KB_LOW), round(high * _KB_HIGH), unmeasured)
