"""int8 flatbuffer -> int8 flatbuffer in which k shared weight values stay at most k codes.

A kernel w that shares values gets a single scale S = max|w| / 127, unless it has as few codes with
per-channel scales. If BatchNormalization was folded into it, the file holds g_c * w_c, and channel
c has the scale |g_c| * S, so the codes of every channel are sign(g_c) * round(w / S). Only negative
factors can produce more codes than values, at most twice as many, as a scale cannot be negative.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.core.errors import ConversionError
from edgecompress.core.shared_values import (
    channels_first,
    codes,
    fold_factors,
    per_tensor,
    shares_values,
)
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator, channel_axis

_DENSE = "FULLY_CONNECTED"


def share_scales(
    editor: ModelEditor,
    source: FlatModel,
    kernels: Mapping[str, np.ndarray],
    operators: Collection[str] = FILTER_READERS,
    always: bool | Collection[str] = False,
    settled: Collection[str] = (),
) -> list[str]:
    """Gives kernels the codes of one scale each; replaces their weights, scales and biases.

    Args:
        editor: Changes an int8 file that litert-quantizer made.
        source: The float file that it was made from.
        kernels: `Float32Result.kernels`: filters before folding, by name.
        operators: Kinds of operators whose filters may be changed. Defaults to all.
        always: Do so for every kernel, or for those of the operators with these outputs, not only
            if it gives fewer codes. Defaults to False.
        settled: Outputs of operators whose filters stay as they are. Defaults to none.

    Returns:
        Notes on what changed.
    """
    quantized = editor.original
    changed: dict[str, list[str]] = {}
    replaced, turned = False, []
    kinds, chosen = set(operators), () if isinstance(always, bool) else always
    # The quantizer adds and removes none of these operators; it may rename their constants.
    for before, after in zip(_readers(source), _readers(quantized), strict=True):
        if source.output(before).name in settled:
            continue
        floats, present = source.tensor(before, 1), quantized.tensor(after, 1)
        forced = always is True or source.output(before).name in chosen
        if (after.code not in kinds and not forced) or floats is None or present is None:
            continue
        if not floats.is_constant or present.type != "INT8" or not present.is_constant:
            continue
        axis, folded = channel_axis(after), floats.values()
        kernel = kernels.get(floats.name, folded)
        if not kernel.any() or not (forced or shares_values(kernel)):
            continue
        wanted = forced or per_tensor(kernel, (axis,))
        # A single scale over the folded kernel: a Dense layer that training did not quantize.
        single = len(present.scales) == 1
        axes = () if wanted or single else (axis,)
        weights, scales, signs = _codes_and_scales(kernel, folded, axis, axes, present.scales)
        old, new = (len(np.unique(w)) for w in (present.values(), weights))
        if np.array_equal(weights, present.values()) or (single and not wanted and new >= old):
            continue
        if after.code == _DENSE and len(set(scales.tolist())) == 1:
            scales = scales[:1]
        replaced = True
        replace_constant(editor, after, 1, weights, scales, axis)
        reads, bias = (2, 3) if after.code == "TRANSPOSE_CONV" else (0, 2)
        constant, into = source.tensor(before, bias), quantized.tensor(after, reads)
        if constant is not None and into is not None:
            bias_scales = np.float32(into.scales[0]) * scales
            biases = biases_of(constant.values(), bias_scales, bias_type(quantized, after, bias))
            replace_constant(editor, after, bias, biases, bias_scales)
        name = source.output(before).name
        if not axes:
            why = "" if forced else "as their weights share values"
            changed.setdefault(why, []).append(f"{name} ({new} codes instead of {old})")
        if new > len(np.unique(kernel)) and (signs < 0).any():
            turned.append(f"{name} ({int((signs < 0).sum())})")
    if not replaced:
        return []
    notes = [
        f"One weight scale for all channels{why and f', {why}'}: {', '.join(names)}."
        for why, names in changed.items()
    ]
    if turned:
        notes.append(
            "BatchNormalization turns the sign of channels, which makes more codes than values: "
            f"{', '.join(turned)}."
        )
    editor.drop_unused_buffers()
    return notes


def _readers(flat: FlatModel) -> list[Operator]:
    return [operator for operator in flat.operators if operator.code in FILTER_READERS]


def _codes_and_scales(
    kernel: np.ndarray,
    folded: np.ndarray,
    axis: int,
    axes: tuple[int, ...],
    present: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a filter's codes, the scale of each channel and the signs of the factors.

    The codes come from the kernel before folding: g_c * w_c has rounding errors, which split equal
    values where w / S is halfway between two codes.
    """
    rows = channels_first(kernel, (axis,))
    factors = fold_factors(rows, channels_first(folded, (axis,)))
    if factors is None:
        raise ConversionError("A folded kernel is not a multiple of its layer's kernel.")
    signs = np.sign(factors).astype(np.int32)
    shape = [1] * kernel.ndim
    shape[axis] = -1
    weights = codes(kernel, axes) * signs.reshape(shape)
    largest = np.abs(rows).max(1 if axes else None) / np.float32(127)
    # An all-zero channel keeps its scale; `fitting_biases` sees to its bias.
    scales = np.where(factors != 0, np.abs(factors) * largest, present).astype(np.float32)
    return weights.astype(np.int8), scales, signs


def bias_type(flat: FlatModel, operator: Operator, position: int) -> type[np.signedinteger[Any]]:
    """Returns the type of a bias: 64 bits with int16 activations, else 32."""
    present = flat.tensor(operator, position)
    return np.int64 if present is not None and present.type == "INT64" else np.int32


def biases_of(
    values: np.ndarray, scales: np.ndarray, kind: type[np.signedinteger[Any]]
) -> np.ndarray:
    """Returns `round(b / s)` as an integer type; 64 bits hold every such bias."""
    rounded = np.rint(values / scales.astype(np.float64))
    if kind is np.int32:
        span = np.iinfo(kind)
        rounded = np.clip(rounded, span.min, span.max)
    return rounded.astype(kind)


def replace_constant(
    editor: ModelEditor,
    operator: Operator,
    position: int,
    values: np.ndarray,
    scales: np.ndarray,
    axis: int = 0,
) -> None:
    """Gives an operator's constant input other values and scales; other readers keep theirs."""
    tensor = editor.own_input(editor.operators[operator.index], position)
    editor.replace(tensor, values)
    editor.quantize(tensor, scales, axis)
