"""What the kernels of an engine are told, and the tables of kernels by engine and operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from edgecompress.core.errors import UnsupportedModelError, one_line
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

LITERT, TFLM = "litert", "tflm"

# Values of `fused_activation_function` -> the range it clamps to.
_FUSED = {0: (-math.inf, math.inf), 1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_RANGES = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767)}


class NotSimulated(Exception):
    """A kernel cannot compute an operator exactly; the text is the reason, without the operator."""


@dataclass(frozen=True)
class Call:
    """One operator and the values of its inputs.

    Attributes:
        engine: The engine whose arithmetic is wanted.
        flat: The file.
        operator: The operator.
        values: One array for each input, None for one left out. The first axis is samples, the
            others are the tensor's; constants have one sample.
    """

    engine: str
    flat: FlatModel
    operator: Operator
    values: tuple[np.ndarray | None, ...] = field(repr=False)

    def tensor(self, position: int) -> Tensor:
        """Returns an input tensor.

        Raises:
            NotSimulated: it was left out.
        """
        tensor = self.flat.tensor(self.operator, position)
        if tensor is None:
            raise NotSimulated(f"it has no input {position}")
        return tensor

    @property
    def output(self) -> Tensor:
        """The first output tensor."""
        return self.flat.output(self.operator)

    @property
    def outputs(self) -> list[Tensor]:
        """All output tensors."""
        return [self.flat.tensors[index] for index in self.operator.outputs]

    def value(self, position: int) -> np.ndarray:
        """Returns an input's values, with the axis of samples.

        Raises:
            NotSimulated: it was left out.
        """
        found = self.values[position] if position < len(self.values) else None
        if found is None:
            raise NotSimulated(f"it has no input {position}")
        return found

    def centred(self, position: int) -> np.ndarray:
        """Returns an input's codes less their zero point, as int64."""
        tensor = self.tensor(position)
        self.require_int8(tensor)
        return self.value(position).astype(np.int64) - zero_point(tensor)

    def precise_scale(self, tensor: Tensor) -> np.float32 | np.float64:
        """Returns a tensor's only scale in the type in which the engine computes integer factors.

        TensorFlow Lite Micro divides scales in float64, LiteRT's own kernels in float32. A factor
        that differs in its 24th bit changes about one code in a million.
        """
        return scale(tensor) if self.engine == LITERT else np.float64(scale(tensor))

    def constant(self, position: int) -> np.ndarray:
        """Returns the values of a constant input in its own shape.

        Raises:
            NotSimulated: the input is computed.
        """
        tensor = self.tensor(position)
        if not tensor.is_constant:
            raise NotSimulated(f"its input {position} is not a constant")
        return tensor.values()

    def option(self, name: str, default: int = 0) -> int:
        """Returns an integer option."""
        return int(self.operator.options.get(name, default))

    def require_int8(self, *tensors: Tensor) -> None:
        """Checks that tensors are int8 with one scale.

        Raises:
            NotSimulated: one is not.
        """
        for tensor in tensors:
            if tensor.type != "INT8" or len(tensor.scales) != 1:
                raise NotSimulated(
                    f"{tensor.name or 'a tensor'} is {tensor.type} with {len(tensor.scales)} "
                    "scales; exact arithmetic is known for int8 with one scale"
                )

    def require_same_scale(self, *tensors: Tensor) -> None:
        """Checks that tensors have the output's scale and zero point, so that codes just move.

        Raises:
            NotSimulated: one has another.
        """
        for tensor in tensors:
            if (tensor.scales, tensor.zero_points) != (
                self.output.scales,
                self.output.zero_points,
            ):
                raise NotSimulated("its input and output have different scales")

    def clamp(self, codes: np.ndarray, activation: int | None = None) -> np.ndarray:
        """Returns codes in the output's type, clamped to its range and to that of an activation.

        Args:
            codes: Integers of any type.
            activation: As in `fused_activation_function`. Defaults to that option.

        Raises:
            NotSimulated: the activation is not known, or engines round its range differently.
        """
        low, high = _RANGES[self.output.type]
        if activation is None:
            activation = self.option("fused_activation_function")
        if activation not in _FUSED:
            raise NotSimulated(f"its fused activation {activation} is not known")
        smallest, largest = _FUSED[activation]
        if smallest > -math.inf:
            low = max(low, self._code(smallest))
        if largest < math.inf:
            high = min(high, self._code(largest))
        return np.clip(codes, low, high).astype(numpy_type(self.output))

    def _code(self, value: float) -> int:
        """Returns the code of the end of an activation's range."""
        steps = float(np.float32(value) / scale(self.output))
        if abs(abs(steps) % 1 - 0.5) < 1e-4:
            raise NotSimulated(f"{value:g} is halfway between two codes of its output")
        return round(steps) + zero_point(self.output)


# A kernel returns its output, or a list for operators that have several.
Kernel = Callable[[Call], "np.ndarray | list[np.ndarray]"]
_K = TypeVar("_K", bound=Kernel)

# Engine -> operator -> kernel.
KERNELS: dict[str, dict[str, Kernel]] = {LITERT: {}, TFLM: {}}


def kernel(*operators: str, engines: tuple[str, ...] = (LITERT, TFLM)) -> Callable[[_K], _K]:
    """Returns a decorator that registers a function as kernel of operators in engines."""

    def store(function: _K) -> _K:
        for engine in engines:
            for operator in operators:
                KERNELS[engine][operator] = function
        return function

    return store


def run_operator(call: Call) -> list[np.ndarray]:
    """Returns an operator's outputs, with the axis of samples.

    Raises:
        UnsupportedModelError: the engine's arithmetic of the operator is not known; names the
            operator, its output and the reason.
    """
    function = KERNELS[call.engine].get(call.operator.name)
    reason = "its arithmetic there is not known"
    if function is not None:
        try:
            found = function(call)
            return found if isinstance(found, list) else [found]
        except NotSimulated as refusal:
            reason = str(refusal)
        # A file may hold shapes and options that no converter writes.
        except (ArithmeticError, IndexError, KeyError, ValueError) as error:
            reason = f"its shapes or options do not fit together ({one_line(error)})"
    raise UnsupportedModelError(
        f"{call.operator.name} (operator {call.operator.index}, {call.output.name!r}) cannot be "
        f"simulated as {call.engine} computes it: {reason}. Run the file in the engine itself."
    )


def scale(tensor: Tensor) -> np.float32:
    """Returns a tensor's only scale."""
    return np.float32(tensor.scales[0])


def zero_point(tensor: Tensor) -> int:
    """Returns a tensor's zero point; 0 if the file gives none."""
    return tensor.zero_points[0] if tensor.zero_points else 0


def numpy_type(tensor: Tensor) -> type:
    """Returns the numpy type of a tensor's values."""
    kinds = {
        "INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16, "INT32": np.int32,
        "INT64": np.int64, "FLOAT32": np.float32, "BOOL": np.bool_,
    }  # fmt: skip
    if tensor.type not in kinds:
        raise NotSimulated(f"the type {tensor.type} is not known")
    return kinds[tensor.type]


def merged(values: np.ndarray) -> np.ndarray:
    """Returns (samples, batch, ...) as (samples * batch, ...)."""
    return values.reshape(-1, *values.shape[2:])


def split(values: np.ndarray, samples: int) -> np.ndarray:
    """Reverses `merged`."""
    return values.reshape(samples, -1, *values.shape[1:])
