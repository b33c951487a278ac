"""Recurrent layers without a loop: LSTM as one operator, others as operators for each time step.

Keras runs LSTM, GRU and SimpleRNN in a loop, which TensorFlow Lite writes as WHILE with further
subgraphs; no quantizer follows it. While a model is traced for conversion, the loop of each layer
is replaced: by an operator that runs all time steps (`fused_lstm`) where that is wanted and
possible, else by a loop that runs at trace time. The products of all inputs are taken out of that
loop as one matrix product, and a state that starts at zero is left out of the first step:

    LSTM  i, f, g, o = split(x_t W + b + h U);  c = sigmoid(f) c + sigmoid(i) tanh(g)
          h = sigmoid(o) tanh(c)
    GRU   z, r = split(sigmoid(x_t W_zr + b_zr + h U_zr));  n = tanh(x_t W_n + b_n + r (h U_n + d))
          h = n + z (h - n)

TimeDistributed calls its layer once, with all time steps as a batch, instead of once for each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgecompress.converters.fused_lstm import LSTM, RESET, mark, why_not_fused
from edgecompress.converters.time_steps import joined, reversed_steps
from edgecompress.core.keras_graph import every_layer
from edgecompress.core.lstm_layers import replaced

# Computes the states of the next time step from the input's part, by gate, and the states, which
# are None at the first time step if they start at zero.
_Step = Callable[[Sequence[Any], Sequence[Any]], list[Any]]


@contextlib.contextmanager
def without_loops(model: Any, fused: bool = False) -> Iterator[list[str]]:
    """Traces inside the block contain no loops of Keras 3's layers over time.

    Layers inside others (Bidirectional, TimeDistributed) are included. A layer whose number of time
    steps is open keeps its loop.

    Args:
        model: A Keras 3 model; it is as before after the block.
        fused: Whether LSTM layers become one operator where possible (as a marker: see
            `fused_lstm`), instead of operators for each time step. Defaults to False.

    Yields:
        Notes, which the trace adds.
    """
    import keras

    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        for layer in every_layer(model):
            if isinstance(layer, keras.layers.Bidirectional):
                stack.enter_context(replaced(layer, "call", functools.partial(_both_ways, layer)))
            elif isinstance(layer, keras.layers.TimeDistributed) and _takes_a_batch(layer.layer):
                steps = functools.partial(_all_steps, layer, layer.call, notes)
                stack.enter_context(replaced(layer, "call", steps))
            elif isinstance(layer, keras.layers.RNN):
                loop = functools.partial(_run, layer, layer.inner_loop, fused, notes)
                stack.enter_context(replaced(layer, "inner_loop", loop))
                # Keras draws the masks of dropout in inference, too, and does not use them.
                for cell in getattr(layer.cell, "cells", [layer.cell]):
                    for rate in ("dropout", "recurrent_dropout"):
                        if getattr(cell, rate, 0):
                            stack.enter_context(replaced(cell, rate, 0.0))
        yield notes


def _run(
    layer: Any,
    loop: Callable[..., Any],
    fused: bool,
    notes: list[str],
    sequences: Any,
    initial_state: Sequence[Any],
    mask: Any,
    training: bool = False,
) -> tuple[Any, Any, list[Any]]:
    """Runs a layer's time steps; returns its last output, all outputs and its last states."""
    import tensorflow as tf

    batch, steps = sequences.shape[:2]
    states: list[Any] = [
        None if _is_zero(state) else state for state in tf.nest.flatten(initial_state)
    ]
    label = f"{layer.name} ({type(layer).__name__})"
    make = _CELLS.get(type(layer.cell).__name__)
    if not type(layer.cell).__module__.startswith("keras."):
        make = None
    if make is None or None in (batch, steps) or batch > 1 or mask is not None:
        notes += _notes(label, steps, mask)
        # Keras's own unrolled loop also takes masks, other cells and several of them.
        with replaced(layer, "unroll", steps is not None):
            found: tuple[Any, Any, list[Any]] = loop(sequences, initial_state, mask, training)
        return found
    why = why_not_fused(layer, states) if fused else None
    if fused and why is None:
        notes.append(f"{label} is one {LSTM} operator. {RESET}")
        outputs = mark(layer.cell, sequences, layer.go_backwards)
        return outputs[:, -1], outputs, [*initial_state]
    notes += _notes(label, steps, mask, why)

    parts, step = make(layer.cell, tf.reshape(sequences, (steps, sequences.shape[2])))
    by_step = list(zip(*(tf.split(part, steps) for part in parts), strict=True))
    outputs = []
    for inputs in reversed(by_step) if layer.go_backwards else by_step:
        states = step(inputs, states)
        outputs.append(states[0])
    if not layer.return_sequences:
        return outputs[-1], outputs[-1][:, None], states
    sequence = tf.reshape(joined(outputs, axis=0), (1, steps, outputs[0].shape[1]))
    return outputs[-1], sequence, states


def _notes(label: str, steps: int | None, mask: Any, why: str | None = None) -> list[str]:
    if steps is None:
        return [
            f"{label} keeps its loop: its number of time steps is open. Give keras.Input a fixed "
            "number."
        ]
    if steps == 1 and mask is None:
        return []
    found = [f"{label}: its {steps} time steps are unrolled{f': {why}' if why else ''}."]
    if mask is not None:
        found.append(
            f"{label} reads a mask, which is computed in float with operators that "
            "microcontrollers do not have. Remove the Masking layer (or mask_zero) and feed "
            "sequences of one length."
        )
    return found


def _is_zero(tensor: Any) -> bool:
    import tensorflow as tf

    value = tf.get_static_value(tensor)
    return value is not None and not value.any()


def _both_ways(
    layer: Any, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = None
) -> Any:
    """Calls a Bidirectional; as Keras does, but without an operator that reverses a tensor."""
    import keras

    starts: list[Any] = [None, None]
    if initial_state is not None:
        half = len(initial_state) // 2
        starts = [initial_state[:half], initial_state[half:]]
    found, states = [], []
    for part, start in zip((layer.forward_layer, layer.backward_layer), starts, strict=True):
        outputs = part(sequences, initial_state=start, mask=mask, training=training)
        if layer.return_state:
            outputs, *rest = outputs
            states += rest
        found.append(outputs)
    if layer.return_sequences:
        found[1] = reversed_steps(found[1])
    ahead, back = found
    merges: dict[str | None, Callable[[], Any]] = {
        "concat": lambda: keras.ops.concatenate([ahead, back], axis=-1),
        "sum": lambda: ahead + back,
        "ave": lambda: (ahead + back) / 2,
        "mul": lambda: ahead * back,
        None: lambda: (ahead, back),
    }
    merged = merges[layer.merge_mode]()
    if not states:
        return merged
    return (*merged, *states) if layer.merge_mode is None else (merged, *states)


def _takes_a_batch(layer: Any) -> bool:
    """Returns whether a layer is known to compute each sample of a batch by itself.

    A user's own layers and functions may not. Recurrent layers do, but are one operator, or free
    of loops, with a single sample alone.
    """
    import keras

    unsuited = (keras.layers.RNN, keras.layers.Lambda)
    parts = (layer, *every_layer(layer))
    steps = [step for part in parts for step in getattr(part, "operations", ())]
    return all(
        isinstance(part, keras.layers.Layer)
        and type(part).__module__.startswith("keras.")
        and not isinstance(part, unsuited)
        for part in (*parts, *steps)
    )


def _all_steps(
    layer: Any,
    loop: Callable[..., Any],
    notes: list[str],
    sequences: Any,
    training: Any = None,
    mask: Any = None,
) -> Any:
    """Calls a TimeDistributed with its time steps as a batch."""
    import tensorflow as tf

    batch, steps, *shape = sequences.shape
    if mask is not None or batch != 1 or None in (steps, *shape):
        return loop(sequences, training=training, mask=mask)
    outputs = layer.layer(tf.reshape(sequences, (steps, *shape)))
    notes.append(f"{layer.name} (TimeDistributed): its {steps} time steps are one batch.")
    return tf.reshape(outputs, (1, steps, *outputs.shape[1:]))


def _tensor(variable: Any) -> Any:
    import keras

    return keras.ops.convert_to_tensor(variable)


def _projected(cell: Any, inputs: Any) -> Any:
    """Returns the part of all gates that depends on the input alone, of all time steps."""
    products = inputs @ _tensor(cell.kernel)
    return products + _tensor(cell.bias) if cell.use_bias else products


def _lstm(cell: Any, inputs: Any) -> tuple[list[Any], _Step]:
    import tensorflow as tf

    recurrent = _tensor(cell.recurrent_kernel)
    projected = _projected(cell, inputs)

    def step(parts: Sequence[Any], states: Sequence[Any]) -> list[Any]:
        (gates,), (hidden, carry) = parts, states
        if hidden is not None:
            gates += hidden @ recurrent
        i, f, g, o = tf.split(gates, 4, axis=1)
        new = cell.recurrent_activation(i) * cell.activation(g)
        if carry is not None:
            new = cell.recurrent_activation(f) * carry + new
        return [cell.recurrent_activation(o) * cell.activation(new), new]

    return [projected], step


def _gru(cell: Any, inputs: Any) -> tuple[list[Any], _Step]:
    import tensorflow as tf

    sizes = [2 * cell.units, cell.units]
    gate_kernel, kernel = tf.split(_tensor(cell.kernel), sizes, axis=1)
    gate_recurrent, recurrent = tf.split(_tensor(cell.recurrent_kernel), sizes, axis=1)
    gates, candidate, offset = inputs @ gate_kernel, inputs @ kernel, None
    if cell.use_bias:
        bias = _tensor(cell.bias)
        if cell.reset_after:
            bias, after = bias[0], bias[1]
            # Both biases of the gates are added to the same sum.
            gates += after[: 2 * cell.units]
            offset = after[2 * cell.units :]
        gates += bias[: 2 * cell.units]
        candidate += bias[2 * cell.units :]

    def remembered(reset: Any, hidden: Any) -> Any:
        """Returns what the states contribute to the candidate; None for nothing."""
        if not cell.reset_after:
            return None if hidden is None else (reset * hidden) @ recurrent
        if hidden is None:
            return None if offset is None else reset * offset
        product = hidden @ recurrent
        return reset * (product if offset is None else product + offset)

    def step(parts: Sequence[Any], states: Sequence[Any]) -> list[Any]:
        (gate, new), (hidden,) = parts, states
        if hidden is not None:
            gate += hidden @ gate_recurrent
        update, reset = tf.split(cell.recurrent_activation(gate), 2, axis=1)
        memory = remembered(reset, hidden)
        new = cell.activation(new if memory is None else new + memory)
        return [new - update * new if hidden is None else new + update * (hidden - new)]

    return [gates, candidate], step


def _simple(cell: Any, inputs: Any) -> tuple[list[Any], _Step]:
    recurrent = _tensor(cell.recurrent_kernel)
    projected = _projected(cell, inputs)

    def step(parts: Sequence[Any], states: Sequence[Any]) -> list[Any]:
        (total,), (hidden,) = parts, states
        return [cell.activation(total if hidden is None else total + hidden @ recurrent)]

    return [projected], step


# Cells of Keras -> from cell and inputs (time steps, features): the inputs' part of each gate, one
# row for each time step, and the time step.
_CELLS: dict[str, Callable[[Any, Any], tuple[list[Any], _Step]]] = {
    "LSTMCell": _lstm,
    "GRUCell": _gru,
    "SimpleRNNCell": _simple,
}
