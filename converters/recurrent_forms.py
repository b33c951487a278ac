"""Which form LSTM layers get in an int8 file: one operator, or operators for each time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgecompress.converters.formats import FormatRequest
from edgecompress.converters.fused_lstm import learnt_cells, lstm_operators
from edgecompress.converters.recalled import float_file
from edgecompress.core.units import format_size
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import strip
from edgecompress.flatbuffers.model import FlatModel

if TYPE_CHECKING:
    from edgecompress.converters.float32 import Float32Result

FORMS = ("auto", "fused", "unrolled")
# Unrolling more time steps than these takes long and has never given the smaller file.
MOST_COMPARED = 64

Made = tuple["Float32Result", Artifact]


def choose_form(request: FormatRequest, form: str, make: Callable[[bool], Made]) -> Made:
    """Returns the files with LSTM layers in the wanted form, or in the cheaper one.

    The cheaper form needs the fewest bytes, of the file and of the arena together where the arena
    is known on all targets. A note gives the sizes of both. Layers that training simulated in one
    form get that.

    Args:
        request: What is converted.
        form: One of FORMS.
        make: Makes the float and the int8 file; called with whether LSTM layers are fused.
    """
    if form == "unrolled":
        return make(False)
    floats, fused = make(True)
    lstms = lstm_operators(floats.artifact.flat)
    if form == "fused" or not lstms:
        return floats, fused
    if _trained_fused(floats):
        note = "LSTM layers are fused (--recurrent auto), as training simulated them."
        return floats, fused.having(notes=(*fused.notes, note))
    if (steps := _steps(floats.artifact.flat)) > MOST_COMPARED:
        note = (
            f"LSTM layers are fused, at {_sizes(request, fused.flat)[1]}; unrolling {steps} time "
        )
        return floats, fused.having(notes=(*fused.notes, note + "steps was not tried."))
    other_floats, unrolled = make(False)
    costs = {
        "fused": _sizes(request, fused.flat),
        "unrolled": _sizes(request, unrolled.flat),
    }
    chosen = min(costs, key=lambda name: costs[name][0])
    note = (
        f"LSTM layers are {chosen} (--recurrent auto): "
        + ", ".join(f"{name} {text}" for name, (_, text) in costs.items())
        + "."
    )
    floats, made = (floats, fused) if chosen == "fused" else (other_floats, unrolled)
    return floats, made.having(notes=(*made.notes, note))


def float_files(request: FormatRequest, form: str) -> dict[bool, Float32Result]:
    """Returns the float files of `choose_form`, by whether LSTM layers are fused."""
    if form == "unrolled":
        return {False: float_file(request)}
    found = {True: float_file(request, True)}
    compared = 0 < _steps(found[True].artifact.flat) <= MOST_COMPARED
    if form == "auto" and compared and not _trained_fused(found[True]):
        found[False] = float_file(request)
    return found


def _trained_fused(floats: Float32Result) -> bool:
    """Returns whether training has learnt the ranges of all fused LSTM layers."""
    record, count = floats.artifact.record, len(lstm_operators(floats.artifact.flat))
    return record is not None and len(learnt_cells(floats.lstms, record.ranges)) == count


def _steps(flat: FlatModel) -> int:
    """Returns the time steps of all fused LSTM layers together."""
    return sum(flat.tensors[o.inputs[0]].shape[0] for o in lstm_operators(flat))


def _sizes(request: FormatRequest, flat: FlatModel) -> tuple[float, str]:
    """Returns what a file costs in bytes, and that in words."""
    size = len(strip(flat))
    measure = request.costs.arena(flat, None)
    if measure is None:
        return size, format_size(size)
    arena = measure(flat)
    return size + arena, f"{format_size(size)} and {format_size(int(arena))} of arena"
