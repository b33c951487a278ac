"""Sigmoid and tanh of 16-bit numbers as the engines' LSTM kernels compute them, as tables.

A table has an entry for each of the 65,536 codes of an int16, lowest first. Results have 15 bits
after the point. LiteRT computes in fixed point with 16 bits, TensorFlow Lite Micro interpolates
between 256 values of a sigmoid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from edgecompress.core import fixed_point

# Integer bits of what a gate's function reads: 12 bits after the point.
GATE_BITS = 3
# Those that the kernels know of a cell state.
CELL_BITS = range(7)
_BITS = 15


class GateTables(NamedTuple):
    """The functions of an engine.

    Attributes:
        sigmoid: () -> table of codes with 3 integer bits.
        tanh: (integer bits of the codes) -> table.
    """

    sigmoid: Callable[[], np.ndarray]
    tanh: Callable[[int], np.ndarray]


def _codes() -> np.ndarray:
    return np.arange(-(1 << _BITS), 1 << _BITS, dtype=np.int64)


@functools.lru_cache(maxsize=1)
def _fixed_sigmoid() -> np.ndarray:
    return fixed_point.logistic(_codes(), GATE_BITS, _BITS).astype(np.int16)


@functools.lru_cache(maxsize=len(CELL_BITS))
def _fixed_tanh(integer_bits: int) -> np.ndarray:
    return fixed_point.tanh(_codes(), integer_bits, _BITS).astype(np.int16)


@functools.lru_cache(maxsize=1)
def _knots() -> np.ndarray:
    """Returns 2^16 sigmoid(i / 24) for i = 0 ... 255, raised by half of what a chord lies below."""
    knots = np.arange(256)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        result: np.ndarray = 2**16 / (1 + np.exp(-x / 24))
        return result

    below = sigmoid(knots + 0.5) - (sigmoid(knots) + sigmoid(knots + 1)) / 2
    found = np.floor(sigmoid(knots) + below / 2 + 0.5).astype(np.int64)
    # The last value is what both functions saturate to.
    found[-1] = 2**16 - 1
    return found


def _interpolated(scaled: np.ndarray, bits: int) -> np.ndarray:
    """Returns 2^(16 + bits) times the sigmoid of |codes|; a knot is every 2^bits of them."""
    distance = np.abs(scaled)
    knot = np.minimum(distance >> bits, 254)
    low, high = _knots()[knot], _knots()[knot + 1]
    return (low << bits) + (distance & ((1 << bits) - 1)) * (high - low)


@functools.lru_cache(maxsize=1)
def _interpolated_sigmoid() -> np.ndarray:
    scaled = 3 * _codes()
    result = _interpolated(scaled, 9)
    result = np.where(np.abs(scaled) >> 9 >= 255, 0x7FFF << 10, result)
    rounded = np.where(scaled >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1)
    return (rounded >> 10).astype(np.int16)


@functools.lru_cache(maxsize=len(CELL_BITS))
def _interpolated_tanh(integer_bits: int) -> np.ndarray:
    right = max(GATE_BITS - integer_bits, 0)
    scaled = (3 * _codes()) << max(integer_bits - GATE_BITS, 0)
    scaled = (scaled + ((1 << right) >> 1)) >> right
    result = _interpolated(scaled, 8)
    result = np.where(np.abs(scaled) >> 8 >= 255, 0xFFFF << 8, result)
    # tanh(x) = 2 sigmoid(2 x) - 1
    above = result - (1 << 23)
    rounded = np.where(scaled >= 0, above + (1 << 7), -above + (1 << 7) - 1)
    return (rounded >> 8).astype(np.int16)


# Engine -> its functions.
GATE_TABLES: Mapping[str, GateTables] = {
    "litert": GateTables(_fixed_sigmoid, _fixed_tanh),
    "tflm": GateTables(_interpolated_sigmoid, _interpolated_tanh),
}
