"""Layers that are several operators in an int8 file, computed operator by operator.

One function for each kind of layer or operation (`core.composite_layers`), written in terms of
`Parts`. It is run three ways: `core.fusion_rules.recorded` lists the operators; training and its
simulation compute them (`Computing`), round behind each, and follow the integers of the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgecompress.core.registry import Registry


@dataclass(frozen=True)
class Constant:
    """A number or an array that the file holds beside an operator, in the range of its values."""

    values: Any


@dataclass(frozen=True)
class Part:
    """One operator with its constants: a function of the tensors it reads.

    Attributes:
        function: Name of a function of keras.ops, or in `FUNCTIONS`.
        arguments: Its further arguments.
        constants: Position among its values -> a constant, rounded as the file holds it.
        bounds: Position -> (minimum, maximum) of the constant.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Any] = field(default_factory=dict)
    bounds: Mapping[int, tuple[Any, Any]] = field(default_factory=dict)

    def __call__(self, *tensors: Any) -> Any:
        """Computes it in float."""
        return function_of(self.function)(*self.filled(tensors), **self.arguments)

    def filled(
        self, tensors: tuple[Any, ...], constants: Mapping[int, Any] | None = None
    ) -> list[Any]:
        """Returns tensors with the constants, or what stands for them, at their positions."""
        given = self.constants if constants is None else constants
        rest = iter(tensors)
        count = len(tensors) + len(given)
        return [given[i] if i in given else next(rest) for i in range(count)]


class Parts(Protocol):
    """What computes the parts of a layer.

    The tap behind an operator is `<layer>/<suffix>`; a part without a suffix is the layer's output.
    """

    def operate(self, suffix: str, function: str, *values: Any, **arguments: Any) -> Any:
        """Computes a function of keras.ops that rounds; numbers and arrays are constants."""

    def move(self, function: str, *values: Any, **arguments: Any) -> Any:
        """Computes a function of keras.ops that leaves values as they are."""

    def weighted(self, suffix: str, kernel: str, layer: Any, values: Any) -> Any:
        """Computes an EinsumDense layer without its activation.

        Args:
            suffix: Of the tap.
            kernel: Name of its kernel (`core.inner_kernels`).
            layer: The layer.
            values: Its input.
        """

    def activate(self, layer: Any, values: Any) -> Any:
        """Computes a layer's own activation."""

    def masked(self, scores: Any, mask: Any) -> Any:
        """Keeps scores out of a softmax where a constant mask is false."""

    def statistics(self, layer: Any, values: Any) -> tuple[Any, Any]:
        """Returns mean and variance that a BatchNormalization layer uses."""

    def inner(self, layer: Any, values: Any) -> Any:
        """Calls a layer that does nothing in inference."""

    def looked_up(self, layer: Any, *values: Any, forces: bool = True) -> Any:
        """Calls an operation that is a function of one number, element by element.

        Args:
            layer: The operation.
            values: Its arguments: tensors, and constants of one number.
            forces: Whether int8 has no operator for it. Defaults to True; else it has one, but
                training does not follow it outside of a table.
        """


def _inverse_root(x: Any, epsilon: float) -> Any:
    """Returns 1 / sqrt(x); rounding may leave 0, of which the file takes the largest code."""
    from keras import ops

    return ops.rsqrt(ops.maximum(x, epsilon))


def _squared_difference(a: Any, b: Any) -> Any:
    from keras import ops

    return ops.square(ops.subtract(a, b))


def _product(a: Any, b: Any, equation: str) -> Any:
    from keras import ops

    return ops.einsum(equation, a, b)


def _prelu(x: Any, alpha: Any) -> Any:
    from keras import ops

    return ops.subtract(ops.relu(x), ops.multiply(alpha, ops.relu(ops.negative(x))))


def _masked_sum(x: Any, mask: Any) -> Any:
    from keras import ops

    return ops.add(x, ops.cast(mask, x.dtype))


def _bilinear(x: Any, size: tuple[int, int]) -> Any:
    from keras import ops

    return ops.image.resize(x, size, data_format="channels_last")


def _nearest(x: Any, size: tuple[int, int]) -> Any:
    from keras import ops

    return ops.image.resize(x, size, interpolation="nearest", data_format="channels_last")


def _get_item(x: Any, key: Any) -> Any:
    return x[key]


# Functions of parts that keras.ops has under no name or in another form.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "inverse_root": _inverse_root,
    "squared_difference": _squared_difference,
    "product": _product,
    "prelu": _prelu,
    "get_item": _get_item,
    "bilinear": _bilinear,
    "nearest": _nearest,
    "masked_sum": _masked_sum,
}


def function_of(name: str) -> Callable[..., Any]:
    """Returns the function of a part."""
    from keras import ops

    found: Callable[..., Any] = FUNCTIONS.get(name) or getattr(ops, name)
    return found


# (layer or operation, its parts, *arguments of the call, **further arguments) -> output.
Composite = Callable[..., Any]


class Computing(ABC):
    """Computes the parts of a layer; subclasses say how an operator is computed and rounded.

    Args:
        name: Of the layer, or of one of its uses.
    """

    def __init__(self, name: str) -> None:
        """Keeps the name."""
        self.name = name

    def _named(self, suffix: str) -> str:
        return f"{self.name}/{suffix}" if suffix else self.name

    @abstractmethod
    def compute(self, operator: str, function: Callable[..., Any], *tensors: Any) -> Any:
        """Returns the output of an operator, unrounded or on its grid."""

    @abstractmethod
    def insert(self, tap: str, values: Any) -> Any:
        """Returns what is read instead of an operator's output."""

    @abstractmethod
    def rounded(self, values: Any, like: Any) -> tuple[Any, tuple[Any, Any]]:
        """Returns a constant as the file holds it, and its (minimum, maximum).

        Args:
            values: A number, an array or a tensor.
            like: A tensor of the type that it is computed with.
        """

    @abstractmethod
    def weigh(self, operator: str, kernel: str, layer: Any, values: Any) -> Any:
        """Returns the output of an EinsumDense layer without its activation."""

    @abstractmethod
    def statistics(self, layer: Any, values: Any) -> tuple[Any, Any]:
        """As `Parts.statistics`."""

    def inner(self, layer: Any, values: Any) -> Any:
        """As `Parts.inner`."""
        return layer(values)

    @abstractmethod
    def looked_up(self, layer: Any, *values: Any, forces: bool = True) -> Any:
        """As `Parts.looked_up`."""

    def operate(self, suffix: str, function: str, *values: Any, **arguments: Any) -> Any:
        """As `Parts.operate`."""
        tensors = [value for value in values if not isinstance(value, Constant)]
        constants, bounds = {}, {}
        for position, value in enumerate(values):
            if isinstance(value, Constant):
                constants[position], bounds[position] = self.rounded(value.values, tensors[0])
        part = Part(function, arguments, constants, bounds)
        return self._finished(suffix, self.compute(self._named(suffix), part, *tensors))

    def _finished(self, suffix: str, outputs: Any) -> Any:
        # Whoever calls the layer rounds its output.
        return self.insert(self._named(suffix), outputs) if suffix else outputs

    def move(self, function: str, *values: Any, **arguments: Any) -> Any:
        """As `Parts.move`."""
        return function_of(function)(*values, **arguments)

    def weighted(self, suffix: str, kernel: str, layer: Any, values: Any) -> Any:
        """As `Parts.weighted`."""
        return self._finished(suffix, self.weigh(self._named(suffix), kernel, layer, values))

    def activate(self, layer: Any, values: Any, function: Any = None) -> Any:
        """As `Parts.activate`; `function` computes an activation of one operator."""
        from edgecompress.core.composite_layers import ACTIVATIONS
        from edgecompress.core.fusion_rules import activation_name

        name = activation_name(layer)
        if name == "linear":
            return values
        if name in ACTIVATIONS:
            return ACTIVATIONS[name](self, values)
        return self.compute(self.name, function or layer.activation, values)

    def masked(self, scores: Any, mask: Any) -> Any:
        """As `Parts.masked`."""
        from keras import ops

        return ops.where(mask, scores, ops.cast(_LEAST, scores.dtype))


def bounds_of(array: np.ndarray) -> tuple[np.float32, np.float32]:
    """Returns the range that the file gives a constant: (minimum, maximum), zero among them."""
    low, high = (np.float32(f(array, initial=0)) for f in (np.min, np.max))
    return low, high


# A constant added to scores that is lower than this keeps them out of a softmax.
MASKED = -1e3
# Below every score, and finite in half precision.
_LEAST = -3e4


class Declined(Exception):
    """A composite cannot follow a layer in these settings; the text is the reason."""


# Operator of a layer class (`LayerKind.operator`) -> its function.
COMPOSITES: Registry[Composite] = Registry("layer of several operators")


def is_computed(value: Any) -> bool:
    """Returns whether an argument of a call is a tensor of the graph."""
    return not isinstance(value, (int, float, bool, np.ndarray, np.generic, list, tuple)) and (
        hasattr(value, "shape")
    )


def is_number(value: Any) -> bool:
    """Returns whether a constant is one number, whatever holds it."""
    return all(size == 1 for size in getattr(value, "shape", ())) and not isinstance(value, list)


def told(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call that a composite is called with, besides its inputs."""
    return {name: v for name, v in kwargs.items() if v is not None and name != "training"}
