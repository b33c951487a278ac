"""What was compared on a core with vector instructions, where other kernels run than elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.targets.tflm.arena_rules.base import Unmeasured

_INT8, _INT8_16 = ("INT8",), ("INT8", "INT16")
_INT8_TO_FLOAT = ("INT8", "INT16", "UINT8", "FLOAT32")

# Operator -> types of its input with which a Cortex-M55 used what the rule says; () for all types
# that the rule covers.
COMPARED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("MAXIMUM", "MINIMUM", "RELU", "RELU6", "HARD_SWISH", "PRELU", "REDUCE_MAX",
             "RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"),
            _INT8,
        ),
        **dict.fromkeys(
            ("ADD", "SUB", "MUL", "LOGISTIC", "TANH", "LEAKY_RELU", "SOFTMAX", "PAD", "DEQUANTIZE",
             "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "SUM"),
            _INT8_16,
        ),
        "QUANTIZE": _INT8_TO_FLOAT,
        **dict.fromkeys(
            ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "SVDF",
             "UNIDIRECTIONAL_SEQUENCE_LSTM", "CONCATENATION", "RESHAPE", "SQUEEZE", "SPLIT",
             "STRIDED_SLICE", "SLICE", "TRANSPOSE", DECODE),
            (),
        ),
    }
)  # fmt: skip


def require_compared(model: FlatModel, operator: Operator) -> None:
    """Refuses an operator whose memory was never compared with a run with vector instructions.

    A firmware with other versions of the kernels needed 96 bytes less for a transformer than the
    rules say: the operators are the same code, but that is no proof.

    Raises:
        Unmeasured: the operator, or the type of its input, was not compared.
    """
    types = COMPARED.get(operator.name)
    if types is None:
        raise Unmeasured("its size was not compared on a core with vector instructions (MVE)")
    source = model.tensor(operator, 0)
    if types and source is not None and source.type not in types:
        raise Unmeasured(
            f"its input is {source.type}; on cores with vector instructions (MVE) sizes are known "
            f"for {' and '.join(types)}"
        )
