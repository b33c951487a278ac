"""Formats that store the weights of an int8 model losslessly in fewer bits.

A filter with few levels (binary, ternary, 4-bit) does not need the 8 bits of its codes. Each format
is a pure function from a filter to what is stored, or to the reason why the filter stays int8. To
add a format: a function here, its test, its line in docs/phone_formats.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.operators import Operator, channel_axis
from edgecompress.flatbuffers.tensors import PACKED, Tensor

# Largest level of a symmetric INT4 and INT8 weight. INT4 also has -8, which symmetric quantization
# does not use.
_INT4_MOST, _INT8_MOST = 7, 127
# From this magnitude up, a channel uses the whole int8 range, so its codes may be roundings of
# coarser levels: 4-bit levels k become round(k * 127 / 7).
_FULL_SCALE = 100
# The file's own overhead for one look-up filter: operators, tensors, their vectors, shapes.
_LOOKUP_BYTES = 300
# Bits of an index -> number of values that it can distinguish.
_TABLES = {1: 2, 2: 4, 4: 16}


@dataclass(frozen=True)
class Grid:
    """Weights as small whole numbers: code = step of the channel * level, rounded.

    Attributes:
        levels: int8, in the filter's shape.
        steps: Step of each output channel, in codes.
        most: Largest level of each output channel, 1 for binary and ternary ones.
        rounded: Whether some code is a rounding of its level, off by half a code at most.
    """

    levels: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    most: np.ndarray = field(repr=False)
    rounded: bool


def fit_grid(codes: np.ndarray, axis: int) -> Grid | None:
    """Returns the coarsest evenly spaced levels that give every code; None if 15 are not enough.

    A code must be a whole multiple of its channel's step. If the channel uses the whole int8 range,
    it may be such a multiple rounded, as the codes of 4-bit weights are.

    Args:
        codes: int8 weights.
        axis: Of the output channels.

    Example:
        >>> fit_grid(np.array([[127, -127, 127], [-3, 0, 3]], np.int8), 0).levels
        array([[ 1, -1,  1],
               [-1,  0,  1]], dtype=int8)
        >>> fit_grid(np.array([[127, 17, -90]], np.int8), 0) is None
        True
    """
    moved = np.moveaxis(codes, axis, 0).astype(np.float64)
    rows = moved.reshape(len(moved), -1)
    largest = np.abs(rows).max(1, initial=0)
    steps, most = np.ones(len(rows)), np.ones(len(rows), np.int64)
    levels = np.zeros_like(rows)
    left, rounded = largest > 0, False
    for count in range(1, _INT4_MOST + 1):
        if not left.any():
            break
        step = largest[left] / count
        tried = np.rint(rows[left] / step[:, None])
        error = np.abs(rows[left] - tried * step[:, None]).max(1)
        exact = error < 1e-6
        fits = exact | ((error <= 0.5) & (largest[left] >= _FULL_SCALE))
        where = np.flatnonzero(left)[fits]
        levels[where], steps[where], most[where] = tried[fits], step[fits], count
        rounded |= bool((fits & ~exact).any())
        left[where] = False
    if left.any():
        return None
    shaped = np.moveaxis(levels.reshape(moved.shape), 0, axis)
    return Grid(shaped.astype(np.int8), steps, most, rounded)


@dataclass(frozen=True)
class Filter:
    """The filter of a CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED.

    Attributes:
        operator: Its only reader.
        tensor: int8, symmetric.
    """

    operator: Operator
    tensor: Tensor

    @property
    def axis(self) -> int:
        """The axis of its output channels."""
        return channel_axis(self.operator)

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """Its values, int8."""
        return self.tensor.values()

    @functools.cached_property
    def grid(self) -> Grid | None:
        """Its levels; None if there are too many."""
        return fit_grid(self.codes, self.axis)

    @property
    def is_dense(self) -> bool:
        """Whether the operator is a fully-connected layer."""
        return self.operator.code == "FULLY_CONNECTED"

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a 1x1 convolution of stride 1: the same sums as a fully-connected layer."""
        options = self.operator.options
        return (
            self.operator.code == "CONV_2D"
            and self.tensor.shape[1:3] == (1, 1)
            and options.get("stride_h") == options.get("stride_w") == 1
        )


@dataclass(frozen=True)
class Stored:
    """How a filter is stored.

    Attributes:
        codes: The kernel's operands, int8, in the filter's shape.
        type: Type of the stored tensor: `INT8`, `INT4` or `INT2`.
        steps: Factor by which the scale of each output channel grows; None if scales stay.
        table_bits: Bits of the index into a table of values, looked up at run time; 0 for none.
        as_dense: The 1x1 convolution becomes a fully-connected layer.
        one_scale: Whether the kernels take one scale for all channels.
        rounded: The original codes were roundings of these, see `Grid`.
    """

    codes: np.ndarray = field(repr=False)
    type: str = "INT8"
    steps: np.ndarray | None = field(default=None, repr=False)
    table_bits: int = 0
    as_dense: bool = False
    one_scale: bool = True
    rounded: bool = False

    @property
    def bits(self) -> float:
        """Bits of a stored weight."""
        return self.table_bits or PACKED.get(self.type, 8)

    def leaves_fast_kernels(self, operator: str) -> bool:
        """Whether XNNPACK leaves the operator to slower kernels.

        It accepts constant int8 filters, and fewer bits only in fully-connected layers.
        """
        dense = self.as_dense or operator == "FULLY_CONNECTED"
        return bool(self.table_bits) or (self.type in PACKED and not dense)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The codes of each value of a byte of indices, (256, 8 / bits); empty without a table."""
        if not self.table_bits:
            return np.zeros((0, 0), np.int8)
        values = np.unique(self.codes)
        shifts = self.table_bits * np.arange(8 // self.table_bits)
        indices = np.arange(256)[:, None] >> shifts & ((1 << self.table_bits) - 1)
        # Unused indices may have any value.
        return values[np.minimum(indices, len(values) - 1)]

    @property
    def saved_bytes(self) -> int:
        """Bytes of weights that a look-up saves, not counting its table."""
        return self.codes.size - self.codes.size * self.table_bits // 8 - _LOOKUP_BYTES


Store = Callable[[Filter], "Stored | str"]


@dataclass(frozen=True)
class WeightFormat:
    """A way to store weights.

    Attributes:
        name: Its registered name.
        summary: What it is and what it is good for, one sentence.
        store: Returns how a filter is stored, or why it stays as it is.
        compressed: Whether the format targets the compressed size rather than the file size.
    """

    name: str
    summary: str
    store: Store = field(repr=False)
    compressed: bool = False


WEIGHT_FORMATS: Registry[WeightFormat] = Registry("weight_format")


def _register(name: str, summary: str, compressed: bool = False) -> Callable[[Store], Store]:
    def decorate(store: Store) -> Store:
        WEIGHT_FORMATS.register(name)(WeightFormat(name, summary, store, compressed))
        return store

    return decorate


_MANY = "its weights are not 15 evenly spaced levels or fewer"
_BEST = "its codes are already the best"
TABLE_TOO_LARGE = "a table and its operators would take more bytes than the weights"


def _scaled(filter_: Filter, grid: Grid, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes up to `most` with the filter's values, and the steps of their channels.

    Uses the largest multiple that fits: the finer the step, the less the bias is rounded.
    """
    times = most // grid.most
    shape = [1] * grid.levels.ndim
    shape[filter_.axis] = -1
    return (grid.levels * times.reshape(shape)).astype(np.int8), grid.steps / times


@_register("int8", "int8 codes that compress well; every runtime loads them.", compressed=True)
def _int8(filter_: Filter) -> Stored | str:
    """The same few codes in every channel, e.g. +-127, where channels had different codes."""
    grid = filter_.grid
    if len(filter_.tensor.scales) > 1 or grid is None or grid.rounded:
        return _BEST
    codes, steps = _scaled(filter_, grid, _INT8_MOST)
    return _BEST if np.array_equal(codes, filter_.codes) else Stored(codes, "INT8", steps)


@_register("int4", "4 bits per weight; convolutions other than 1x1 become slower.")
def _int4(filter_: Filter) -> Stored | str:
    grid = filter_.grid
    if grid is None:
        return _MANY
    codes, steps = _scaled(filter_, grid, _INT4_MOST)
    return Stored(codes, "INT4", steps, as_dense=filter_.is_pointwise, rounded=grid.rounded)


@_register("int4-dense", "4 bits per weight in fully-connected layers, which become faster.")
def _int4_dense(filter_: Filter) -> Stored | str:
    return _int4(filter_) if filter_.is_dense else "convolutions are faster in int8"


@_register("int2", "2 bits per weight in fully-connected layers and 1x1 convolutions.")
def _int2(filter_: Filter) -> Stored | str:
    if not filter_.is_dense and not filter_.is_pointwise:
        return "int2 kernels exist only for fully-connected layers"
    grid = filter_.grid
    if grid is None or grid.most.max(initial=1) > 1:
        return "it is neither binary nor ternary"
    return Stored(grid.levels, "INT2", grid.steps, as_dense=filter_.is_pointwise, one_scale=False)


@_register("smallest", "1, 2 or 4 bits per weight, looked up in a table at every inference; slow.")
def _smallest(filter_: Filter) -> Stored | str:
    options: list[tuple[np.ndarray, np.ndarray | None]] = [(filter_.codes, None)]
    if filter_.grid is not None:
        # The same levels in every channel, so that one table is enough.
        times = _INT8_MOST // int(filter_.grid.most.max(initial=1))
        levels = (filter_.grid.levels * times).astype(np.int8)
        options.append((levels, filter_.grid.steps / times))
    # For equal bits, prefer the first: it leaves scales and bias alone.
    bits, (codes, steps) = min(
        ((_index_bits(option[0]), option) for option in options), key=lambda found: found[0]
    )
    if bits not in _TABLES:
        return f"it has more than {max(_TABLES.values())} values"
    rounded = steps is not None and filter_.grid is not None and filter_.grid.rounded
    stored = Stored(codes, "INT8", steps, table_bits=bits, rounded=rounded)
    return stored if stored.saved_bytes > 0 else TABLE_TOO_LARGE


def _index_bits(codes: np.ndarray) -> int:
    """Returns the bits needed to distinguish the values; 8 if a byte table cannot."""
    values = len(np.unique(codes))
    return next((bits for bits, count in _TABLES.items() if values <= count), 8)
