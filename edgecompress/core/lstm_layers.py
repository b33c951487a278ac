"""LSTM layers that become one operator of an int8 file, UNIDIRECTIONAL_SEQUENCE_LSTM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgecompress.core.gate_tables import CELL_BITS
from edgecompress.core.layer_kinds import exact_kind_of

# What cell states of 0 to 5 integer bits reach to.
CELL_LIMITS = 2.0 ** np.arange(len(CELL_BITS) - 1)
# A cell state may become larger than any that was seen.
CELL_MARGIN = 1.25


def why_not_fused(layer: Any) -> str | None:
    """Returns why a recurrent layer of Keras cannot become the operator; None if it can.

    Args:
        layer: The layer; it must be called without a mask and without initial states.
    """
    import keras

    cell = layer.cell
    if type(cell) is not keras.layers.LSTMCell:
        return "only LSTM has a fused operator"
    if cell.activation is not keras.activations.tanh:
        return "its activation is not tanh"
    if cell.recurrent_activation is not keras.activations.sigmoid:
        return "its recurrent activation is not sigmoid"
    return "its final states are read" if layer.return_state else None


def lstm_parts(layer: Any) -> dict[str, Any]:
    """Returns the LSTM layers that a layer consists of, if each becomes one operator.

    Their states have the range of the layer's tap (`tap_name`), which they share, their cell states
    one each (`cell_name`).

    Args:
        layer: Any layer of Keras 3.

    Returns:
        `{name: layer}` for an LSTM, `<name>/forward` and `<name>/backward` for a Bidirectional that
        concatenates; {} for all others.
    """
    name = type(layer).__name__
    if exact_kind_of(layer) is None or name not in ("LSTM", "Bidirectional"):
        return {}
    if name == "LSTM":
        parts = {layer.name: layer}
    elif layer.merge_mode == "concat":
        parts = {
            f"{layer.name}/forward": layer.forward_layer,
            f"{layer.name}/backward": layer.backward_layer,
        }
    else:
        return {}
    for part in parts.values():
        known = type(part).__name__ == "LSTM" and exact_kind_of(part) is not None
        if not known or part.stateful or why_not_fused(part) is not None:
            return {}
    return parts


def cell_name(part: str) -> str:
    """Returns the name of the range of a part's cell states."""
    return f"{part}/cell"


def is_cell(name: str) -> bool:
    """Returns whether a range is that of cell states."""
    return name.endswith("/cell")


def tap_name(part: str) -> str:
    """Returns the layer of a part or of its cell states, whose tap has the states' range."""
    return part.partition("/")[0]


@contextlib.contextmanager
def replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an object another method, or value, of its own."""
    own = vars(target).get(name, None)
    setattr(target, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(target, name)
        else:
            setattr(target, name, own)


def integer_bits(bound: float) -> int:
    """Returns the integer bits of a cell state of 16 bits: 0 to 6; its scale is 2^(bits - 15).

    Args:
        bound: The largest absolute value that must fit.
    """
    return int((bound > CELL_LIMITS).sum())
