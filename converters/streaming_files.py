"""The files of a streaming model: states that can be fed back, ranges measured over sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.converters.calibration import spread
from edgecompress.converters.formats import FormatRequest
from edgecompress.converters.fused_lstm import lstm_operators
from edgecompress.core.errors import ConversionError
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.stepping import Stepping

if TYPE_CHECKING:
    from edgecompress.converters.float32 import Float32Result

Made = tuple["Float32Result", Artifact]
# Inferences of a calibration.
_MOST_INFERENCES = 5000
_SLICES = ("STRIDED_SLICE", "SLICE")
_MOVES = (*_SLICES, "RESHAPE")


def make_streaming(
    request: FormatRequest, fused: bool, make: Callable[[FormatRequest, bool, Stepping], Made]
) -> Made:
    """Returns the float and the int8 file of a model that reads a few time steps at once.

    Args:
        request: What to convert; its samples are whole sequences.
        fused: Whether LSTM layers keep their states as variables, where they can.
        make: Makes both files of another request; called with that, `fused` and the stepping.

    Raises:
        UnsupportedModelError: a layer cannot stream.
    """
    from edgecompress.converters.streaming import stream

    if request.loaded is None:
        raise ConversionError("Only a Keras model can be made to stream.")
    streamed = stream(request.loaded, fused)
    stepping = streamed.stepping
    floats, made = make(dataclasses.replace(request, loaded=streamed.loaded), fused, stepping)
    note = _how_to_run(made.flat, stepping)
    return (
        dataclasses.replace(floats, artifact=floats.artifact.having(stepping=stepping)),
        made.having(stepping=stepping, notes=(note, *made.notes)),
    )


def _how_to_run(flat: FlatModel, stepping: Stepping) -> str:
    count = f"{stepping.hop} time step{'s' if stepping.hop > 1 else ''}"
    parts = [f"Streaming: one inference reads {count}."]
    if stepping.states:
        pairs = ", ".join(
            f"{flat.tensors[source].name} from output {output}"
            for source, output in zip(
                flat.inputs[-len(stepping.states) :], stepping.states, strict=True
            )
        )
        parts.append(
            f"Inputs for states start at their zero points and then take the codes of outputs: "
            f"{pairs}."
        )
    if lstm_operators(flat):
        parts.append("Reset the interpreter's variables before each sequence only.")
    return " ".join(parts)


def few_sequences(samples: Sequence[np.ndarray], stepping: Stepping) -> list[np.ndarray]:
    """Returns evenly spaced sequences, as many as a calibration can afford."""
    inferences = samples[0].shape[1] // stepping.hop
    return [spread(array, max(1, _MOST_INFERENCES // inferences)) for array in samples]


def _pairs(flat: FlatModel, stepping: Stepping) -> list[tuple[int, int]]:
    """Returns the tensors of each state: the input and the output that it takes."""
    if not stepping.states:
        return []
    inputs = flat.inputs[-len(stepping.states) :]
    return [(i, flat.outputs[o]) for i, o in zip(inputs, stepping.states, strict=True)]


def tie_states(
    flat: FlatModel, stepping: Stepping, ranges: Mapping[int, tuple[float, float]]
) -> dict[int, tuple[float, float]]:
    """Returns ranges in which both ends of a state have the same, so that codes can be copied.

    Args:
        flat: The float file.
        stepping: How it runs.
        ranges: Tensor index -> (minimum, maximum).
    """
    found = dict(ranges)
    writer = {index: operator for operator in flat.operators for index in operator.outputs}
    for source, target in _pairs(flat, stepping):
        tied = {source, target}
        # What an output is sliced from has the output's scale.
        while target in writer and writer[target].code in _MOVES:
            target = writer[target].inputs[0]
            tied.add(target)
        for operator in flat.operators:
            if operator.code == "CONCATENATION" and source in operator.inputs:
                tied.update(operator.outputs)
        known = [found[index] for index in tied if index in found]
        if known:
            bounds = (min(low for low, _ in known), max(high for _, high in known))
            found |= dict.fromkeys(tied, bounds)
    return found


def check_states(flat: FlatModel, stepping: Stepping) -> None:
    """Refuses a file in which both ends of a state differ in type or scale.

    Raises:
        ConversionError: copying codes would change their values.
    """
    for source, target in _pairs(flat, stepping):
        a, b = flat.tensors[source], flat.tensors[target]
        if (a.type, a.scales, a.zero_points) != (b.type, b.scales, b.zero_points):
            raise ConversionError(
                f"State {a.name!r} and the output that it takes have different types or scales: "
                f"{a.type} {a.scales} {a.zero_points}, {b.type} {b.scales} {b.zero_points}."
            )
