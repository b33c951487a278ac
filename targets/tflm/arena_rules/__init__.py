"""What each operator takes from the tensor arena: one rule per operator, in bytes.

The sizes hold for tflite-micro of August 2026 with CMSIS-NN 4ab83cc3, built by GCC 12.2 for 32-bit
Arm. A rule covers the types and shapes that were verified by measurements; for anything else it
raises `Unmeasured`. Importing this package registers the rules. To add an operator, register a rule
in one of its modules, and measure it with benchmarks/arena_operators.py.
"""

from edgecompress.targets.tflm.arena_rules import plain, shaped, weighted
from edgecompress.targets.tflm.arena_rules.base import (
    ALIGNMENT,
    EVAL_TENSOR_BYTES,
    QUANTIZATION_BYTES,
    RULES,
    TENSOR_BYTES,
    OperatorMemory,
    Rule,
    Unmeasured,
    described_bytes,
    has_quantization,
    round_up,
)
from edgecompress.targets.tflm.arena_rules.vectors import require_compared

__all__ = [
    "ALIGNMENT",
    "EVAL_TENSOR_BYTES",
    "QUANTIZATION_BYTES",
    "RULES",
    "TENSOR_BYTES",
    "OperatorMemory",
    "Rule",
    "Unmeasured",
    "described_bytes",
    "has_quantization",
    "plain",
    "require_compared",
    "round_up",
    "shaped",
    "weighted",
]
