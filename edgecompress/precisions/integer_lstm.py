"""A fused LSTM in inference, with the integers of the engines' kernels, over keras.ops.

The same arithmetic over numpy, for whole files, is in `edgecompress.simulation.recurrent`, which
says how the engines differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from edgecompress.core.gate_tables import CELL_BITS, GATE_BITS, GATE_TABLES
from edgecompress.core.lstm_layers import CELL_LIMITS, CELL_MARGIN, cell_name, replaced
from edgecompress.precisions.integer_arithmetic import LITERT, Grid, steps_of
from edgecompress.precisions.requantization import (
    Multiplier,
    Requantization,
    multiplied,
    multiplier_of,
    shifted_right,
)

_GATES = 4
_CODES = 2**16
_LOWEST, _HIGHEST = -(2**15), 2**15 - 1
_LARGEST_WEIGHT = 127.0
# Largest sum of products that float32 holds exactly.
_EXACT = 2**24


class _Engine(NamedTuple):
    """What engines compute differently, besides the functions of the gates.

    Attributes:
        kind: The type in which factors are computed.
        saturates: Whether the products with the state saturate before they are added.
        shifted: (product of 16-bit numbers, bits) -> product / 2^bits.
    """

    kind: str
    saturates: bool
    shifted: Callable[[Any, Any], Any]


def shifted_twice(products: Any, bits: Any) -> Any:
    """Returns int64 products / 2^bits, rounded twice as `multiplied` does."""
    return shifted_right(ops.right_shift(products + 1, ops.ones_like(bits)), bits - 1)


_ENGINES: Mapping[str, _Engine] = {
    "litert": _Engine("float32", False, shifted_right),
    "tflm": _Engine("float64", True, shifted_twice),
}


class _Matrices(NamedTuple):
    """The matrices of the four gates: codes side by side, and the limit of each in float64."""

    codes: Any
    limits: Any

    @property
    def scales(self) -> Any:
        """Scales as the file holds them."""
        return ops.cast(self.limits / _LARGEST_WEIGHT, "float32")


def _matrices(weights: Any) -> _Matrices:
    parts = ops.split(ops.cast(weights, "float32"), _GATES, axis=1)
    limits = [ops.max(ops.abs(part)) for part in parts]
    limits = [ops.where(limit > 0, limit, 1.0) for limit in limits]
    found = _Matrices(parts, ops.cast(ops.stack(limits), "float64"))
    scales = ops.unstack(found.scales)
    codes = [ops.round(part / scale) for part, scale in zip(parts, scales, strict=True)]
    return found._replace(codes=ops.concatenate(codes, axis=1))


def _sums(steps: Any, codes: Any) -> Any:
    """Returns exact sums of products as int64."""
    kind = "float32" if codes.shape[0] * 255 * 127 < _EXACT else "float64"
    return ops.cast(ops.round(ops.matmul(ops.cast(steps, kind), ops.cast(codes, kind))), "int64")


def _int16(values: Any) -> Any:
    return ops.clip(values, _LOWEST, _HIGHEST)


def time_steps(
    weights: Sequence[Any],
    sequences: Any,
    source: Grid,
    target: Grid,
    largest: Any,
    engine: Requantization = LITERT,
) -> Any:
    """Returns the states of an LSTM after each time step, on their grid.

    Args:
        weights: Kernel (features, 4 units), recurrent kernel (units, 4 units) and bias (4 units,)
            or None, in the order i, f, g, o.
        sequences: The input, (batch, steps, features), on the grid `source`.
        source: The input's grid.
        target: The grid of the states.
        largest: The largest absolute cell state seen.
        engine: Whose arithmetic. Defaults to LiteRT's.

    Returns:
        (batch, steps, units).
    """
    kernel, recurrent, bias = weights
    own, tables = _ENGINES[engine.engine], GATE_TABLES[engine.engine]
    _, length, _ = sequences.shape
    units = recurrent.shape[0]

    def factors(scales: Any, step: Any) -> Multiplier:
        products = ops.cast(scales, own.kind) * ops.cast(step, own.kind)
        found = ops.cast(products, "float64") * 2.0 ** (15 - GATE_BITS)
        return multiplier_of(ops.repeat(found, units))

    inputs, states = _matrices(kernel), _matrices(recurrent)
    sums = _sums(steps_of(sequences, source), inputs.codes)
    if bias is not None:
        steps = ops.repeat(inputs.limits / _LARGEST_WEIGHT, units)
        offsets = ops.round(ops.cast(bias, "float64") / (ops.cast(source.scale, "float64") * steps))
        sums = sums + ops.cast(ops.clip(offsets, -(2.0**31), 2.0**31 - 1), "int64")
    projected = _int16(multiplied(sums, factors(inputs.scales, source.scale)))

    by_state = factors(states.scales, target.scale)
    output = 2.0**-30 / ops.cast(target.scale, "float64")
    output = multiplier_of(ops.cast(ops.cast(output, own.kind), "float64"))
    seen = CELL_MARGIN * ops.cast(largest, "float64")
    bits = ops.sum(ops.cast(ops.minimum(seen, float(length)) > CELL_LIMITS, "int64"))
    fifteen = ops.full_like(bits, 15)
    sigmoid = ops.convert_to_tensor(tables.sigmoid())
    tanh = ops.convert_to_tensor(np.concatenate([tables.tanh(b) for b in CELL_BITS]))

    def looked_up(table: Any, codes: Any) -> Any:
        return ops.cast(ops.take(table, codes - _LOWEST), "int64")

    def step(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        hidden, cell = carry
        remembered = multiplied(_sums(hidden, states.codes), by_state)
        gates = _int16(part + (_int16(remembered) if own.saturates else remembered))
        i, f, g, o = ops.split(gates, _GATES, axis=1)
        i, f, o = ops.split(looked_up(sigmoid, ops.concatenate([i, f, o], axis=1)), 3, axis=1)
        g = looked_up(tanh, g + GATE_BITS * _CODES)
        cell = own.shifted(f * cell, fifteen) + own.shifted(i * g, fifteen + bits)
        cell = _int16(cell)
        products = multiplied(o * looked_up(tanh, cell + bits * _CODES), output)
        hidden = ops.clip(ops.cast(products, "float32"), target.lowest, target.highest)
        # Keras's scan takes outputs of the structure of the carry only.
        return (hidden, cell), (hidden, cell)

    start = ops.zeros_like(projected[:, 0, :units])
    _, (found, _) = ops.scan(
        step, (ops.cast(start, "float32"), start), ops.transpose(projected, (1, 0, 2))
    )
    return ops.transpose(found, (1, 0, 2)) * target.scale


def layer_states(
    part: Any,
    sequences: Any,
    source: Grid,
    target: Grid,
    largest: Any,
    engine: Requantization = LITERT,
) -> Any:
    """Returns what `time_steps` does of an LSTM layer, in the order in which it computes them."""
    cell = part.cell
    found = (cell.kernel, cell.recurrent_kernel, cell.bias if cell.use_bias else None)
    weights = [w if w is None else ops.convert_to_tensor(w) for w in found]
    ordered = ops.flip(sequences, axis=1) if part.go_backwards else sequences
    return time_steps(weights, ordered, source, target, largest, engine)


class _Seen(NamedTuple):
    """What an LSTM layer computed in float.

    Attributes:
        last: Its last state.
        outputs: Its outputs, of all time steps if it returns them.
        states: Values with the range of its states.
        cells: Values with the range of its cell states.
    """

    last: Any
    outputs: Any
    states: Any
    cells: Any


def _all_states(part: Any, sequences: Any, initial: Any, mask: Any, training: Any) -> _Seen:
    """Computes a layer as Keras does, and returns the states of all time steps."""
    import keras

    call = part.cell.call

    def step(inputs: Any, states: Any, training: bool = False) -> tuple[Any, Any]:
        hidden, states = call(inputs, states, training=training)
        return ops.concatenate([hidden, states[1]], axis=-1), states

    with replaced(part.cell, "call", step), replaced(part, "return_sequences", True):
        _, outputs, _ = keras.layers.RNN.inner_loop(part, sequences, initial, mask, training)
    hidden, cells = ops.split(outputs, 2, axis=-1)
    return _Seen(hidden[:, -1], hidden, hidden, cells)


def _extremes(part: Any, sequences: Any, initial: Any, mask: Any, training: Any) -> _Seen:
    """Computes a layer as Keras does, and keeps the extremes of its states: that costs less."""
    import keras

    call = part.cell.call

    def step(inputs: Any, states: Any, training: bool = False) -> tuple[Any, Any]:
        before, (lowest, highest, largest) = states[:2], states[2:]
        output, after = call(inputs, before, training=training)
        hidden, cell = map(ops.stop_gradient, after)
        lowest, highest = ops.minimum(lowest, hidden), ops.maximum(highest, hidden)
        return output, [*after, lowest, highest, ops.maximum(largest, ops.abs(cell))]

    start = [*initial, *[ops.zeros_like(initial[0])] * 3]
    with replaced(part.cell, "call", step):
        last, outputs, found = keras.layers.RNN.inner_loop(part, sequences, start, mask, training)
    _, _, lowest, highest, largest = found
    states, cells = (
        ops.concatenate(ends, axis=-1) for ends in ((lowest, highest), (-largest, largest))
    )
    return _Seen(last, outputs, states, cells)


def run_layers(
    parts: Mapping[str, Any],
    call: Callable[[], Any],
    integer: Callable[[str, Any, Any], Any] | None = None,
    observe: Callable[[str, Any], None] | None = None,
    extremes_only: bool = False,
) -> tuple[Any, list[Any]]:
    """Returns what calls LSTM layers, with integers where possible, and values of their states.

    Args:
        parts: The layers, as `core.lstm_layers.lstm_parts` returns them.
        call: Calls them.
        integer: `(name, layer, sequences) -> states of all time steps`; not called for sequences
            with a mask or of another type than float32. Defaults to none.
        observe: `(name of the range, values)`, called with cell states of all time steps of a layer
            that is computed in float. Defaults to none.
        extremes_only: Whether only the ends of the values matter. Defaults to False.

    Returns:
        What `call` returns, and, with `observe`, states of all time steps of each layer computed in
        float.
    """
    import keras

    seen = []

    def loop(name: str, part: Any) -> Callable[..., Any]:
        plain = part.inner_loop

        def inner_loop(
            sequences: Any, initial_state: Any, mask: Any, training: Any = False
        ) -> tuple[Any, Any, Any]:
            types = {part.compute_dtype, keras.backend.standardize_dtype(sequences.dtype)}
            if integer is not None and mask is None and types == {"float32"}:
                states = integer(name, part, sequences)
                return states[:, -1], states, initial_state
            if observe is None:
                found: tuple[Any, Any, Any] = plain(
                    sequences, initial_state, mask=mask, training=training
                )
                return found
            watch = _extremes if extremes_only and mask is None else _all_states
            watched = watch(part, sequences, initial_state, mask, training)
            observe(cell_name(name), watched.cells)
            seen.append(watched.states)
            return watched.last, watched.outputs, initial_state

        return inner_loop

    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(replaced(part, "inner_loop", loop(name, part)))
        return call(), seen
