"""What a target's cost model says about a layer and about what would take its place."""

from __future__ import annotations

from typing import Any

from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.keras_graph import LayerCall
from edgecompress.costs import COSTS

_LATENCY = "latency"


def check_latency_target(target: str) -> None:
    """Refuses a target without predictions.

    Raises:
        UnknownNameError: there is no such target.
        ArgumentError: its latency cannot be predicted.
    """
    why = COSTS[_LATENCY].check_target(target)
    if why is not None:
        raise ArgumentError("target", "be one whose latency is predicted", target, why)


def alone(layer: Any, call: LayerCall) -> Any:
    """Returns a model of a layer alone, with the values of its weights."""
    import keras

    model = keras.Sequential(
        [
            keras.Input(call.inputs[0][1:], dtype=layer.compute_dtype),
            type(layer).from_config(layer.get_config()),
        ]
    )
    model.set_weights(layer.get_weights())
    return model


def time_of(model: Any, target: str) -> float:
    """Returns the predicted time of a model on a target in microseconds, at most.

    It is the upper end of the band, as a limit compares it: where the count of instructions is less
    certain, the band is wider, and the model counts as slower.

    Raises:
        EdgeCompressError: it cannot be predicted; the text says why.
    """
    return COSTS[_LATENCY].measure(model, target)


def why_not_faster(layer: Any, call: LayerCall, instead: Any, target: str) -> str | None:
    """Returns why a layer stays although something would take its place; None if that is faster.

    Args:
        layer: The layer.
        call: Its use.
        instead: The model that would take its place.
        target: Name of the target.
    """
    try:
        before, after = time_of(alone(layer, call), target), time_of(instead, target)
    except EdgeCompressError as error:
        return f"its time on {target} is not known ({str(error).rstrip('.')})"
    if after < before:
        return None
    return f"what would take its place needs {after / before:.2f} times its time on {target}"
