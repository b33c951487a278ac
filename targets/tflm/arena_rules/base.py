"""What a rule is made of: the memory of one operator, and how its tensors are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

# sizeof() of what describes a tensor, and of its quantization without the zero points; of what the
# interpreter keeps of every tensor.
TENSOR_BYTES, QUANTIZATION_BYTES, EVAL_TENSOR_BYTES = 32, 12, 12
ALIGNMENT = 16


@dataclass(frozen=True)
class OperatorMemory:
    """What one operator takes from the arena, in bytes.

    Attributes:
        params: Size and alignment of its parsed options.
        data: The kernel's own structure, 16-byte aligned; 0 for none.
        persistent: Buffers in the tail that it requests while being prepared, each 16-byte aligned.
        scratch: Buffers in the head that live while it runs.
        described: Bytes that describe tensors a second time while it is prepared; each of its
            tensors is described once anyway. Only matters to the smallest arena of tiny models.
    """

    params: tuple[int, int] = (0, 1)
    data: int = 0
    persistent: tuple[int, ...] = ()
    scratch: tuple[int, ...] = ()
    described: int = 0


class Unmeasured(Exception):
    """A rule does not cover this use of its operator; the text is the reason."""


Rule = Callable[[FlatModel, Operator, str], OperatorMemory]

RULES: Registry[Rule] = Registry("operator")
"""Operator name -> rule (model, operator, family) -> OperatorMemory.

Families: `reference` for the reference kernels, `scalar`, `dsp` and `mve` for CMSIS-NN on cores
without DSP instructions, with them, and with MVE.
"""


def round_up(size: int, alignment: int = ALIGNMENT) -> int:
    """Returns the next multiple of `alignment`."""
    return -(-size // alignment) * alignment


# --- Reading operators -------------------------------------------------------------------------


def input_of(model: FlatModel, operator: Operator, position: int, what: str = "") -> Tensor:
    """Returns an input that the rule needs."""
    tensor = model.tensor(operator, position)
    if tensor is None:
        raise Unmeasured(f"its {what or f'input {position}'} is left out")
    return tensor


def output_of(model: FlatModel, operator: Operator) -> Tensor:
    """Returns the first output."""
    if not operator.outputs:
        raise Unmeasured("it has no output")
    return model.output(operator)


def step(operator: Operator, name: str) -> int:
    """Returns a stride or dilation."""
    value = operator.options.get(name)
    if not isinstance(value, int) or value < 1:
        raise Unmeasured(f"its option {name} is {value}")
    return value


def require_type(tensor: Tensor, types: tuple[str, ...], what: str = "input") -> None:
    """Refuses types that were not measured."""
    if tensor.type not in types:
        raise Unmeasured(f"its {what} is {tensor.type}; sizes are known for {' and '.join(types)}")


def require_rank(tensor: Tensor, rank: int, what: str) -> tuple[int, ...]:
    """Returns the shape of a tensor of `rank` dimensions."""
    if len(tensor.shape) != rank:
        raise Unmeasured(f"its {what} has {len(tensor.shape)} dimensions instead of {rank}")
    return tensor.shape


def require_single_batch(shape: tuple[int, ...]) -> None:
    """Refuses batches."""
    if shape[0] != 1:
        raise Unmeasured(f"its batch is {shape[0]}; sizes are known for 1")


def has_quantization(tensor: Tensor) -> bool:
    """Whether the interpreter keeps scales and zero points of a tensor."""
    return bool(
        tensor.scales and tensor.zero_points and not tensor.type.startswith(("FLOAT", "BFLOAT"))
    )


def described_bytes(*tensors: Tensor) -> int:
    """Returns the bytes of the structures that describe tensors while an operator is prepared."""
    zero_points = [4 + 4 * len(t.scales) for t in tensors if has_quantization(t)]
    return TENSOR_BYTES * len(tensors) + QUANTIZATION_BYTES * len(zero_points) + sum(zero_points)


def dims_bytes(tensor: Tensor) -> int:
    """Returns the bytes of a tensor's shape, which some kernels copy into the tail."""
    return 4 + 4 * len(tensor.shape)
