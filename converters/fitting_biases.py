"""Integer flatbuffer -> the same with biases that fit 32 bits.

A bias has the scale of input times weights. The quantizer gives a channel without weights, as
pruning leaves it, a scale of nearly zero: its bias b saturates at 2^31 steps of nearly nothing, and
what the channel adds is lost. Such a channel gets the weight scale |b| / (s_input * 2^30).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.shared_scales import bias_type, biases_of, replace_constant
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator, channel_axis
from edgecompress.flatbuffers.tensors import PACKED, Tensor, pack_codes

_MOST = np.iinfo(np.int32).max
# Half of what fits: the products of the weights are added to it.
_STEPS = 1 << 30


@dataclass(frozen=True)
class _Biased:
    """An operator with an integer bias.

    Attributes:
        operator: In the quantized file.
        position: Of the bias among its inputs.
        weights: Its filter.
        step: Scale of its input.
        bias: Its bias before quantization.
    """

    operator: Operator
    position: int
    weights: Tensor
    step: float
    bias: np.ndarray


def fit_biases(model: FlatModel, floats: FlatModel) -> bytes | None:
    """Returns the file with larger weight scales where biases did not fit; None if all did.

    Args:
        model: A quantized file.
        floats: The float file that it was made from.
    """
    needed: dict[int, np.ndarray] = {}
    for found in _biased(model, floats):
        scales = np.asarray(found.weights.scales, np.float64)
        large = np.abs(found.bias.astype(np.float64)) / found.step
        too_large = large / scales > _MOST
        if too_large.any():
            wanted = np.where(too_large, large / _STEPS, scales)
            wanted = wanted.max(keepdims=True) if len(scales) == 1 else wanted
            index = found.weights.index
            needed[index] = np.maximum(needed.get(index, 0.0), wanted)
    if not needed:
        return None
    editor = ModelEditor(model)
    for found in _biased(model, floats):
        weights = found.weights
        if weights.index in needed:
            scales = needed[weights.index].astype(np.float32)
            axis = channel_axis(found.operator)
            editor.replace(weights.index, _codes(weights, scales, axis))
            editor.quantize(weights.index, scales, axis)
            steps = np.float32(found.step) * scales
            kind = bias_type(model, found.operator, found.position)
            codes = biases_of(found.bias, steps, kind)
            replace_constant(editor, found.operator, found.position, codes, steps)
    editor.drop_unused_buffers()
    return editor.pack()


def _codes(weights: Tensor, scales: np.ndarray, axis: int) -> bytes | np.ndarray:
    """Returns a filter's codes with other scales, as they are stored."""
    codes = weights.values()
    shape = [1] * codes.ndim
    shape[axis] = -1
    ratio = np.asarray(weights.scales, np.float64) / scales
    codes = np.rint(codes * ratio.reshape(shape)).astype(np.int8)
    return pack_codes(codes, PACKED[weights.type]) if weights.type in PACKED else codes


def _biased(model: FlatModel, floats: FlatModel) -> Iterator[_Biased]:
    # Neither the quantizer nor what follows it adds or removes one of these operators.
    for source, target in zip(_readers(floats), _readers(model), strict=True):
        position, reads = (3, 2) if target.code == "TRANSPOSE_CONV" else (2, 0)
        weights, into = model.tensor(target, 1), model.tensor(target, reads)
        bias, present = floats.tensor(source, position), model.tensor(target, position)
        if weights is None or into is None or bias is None or present is None:
            continue
        constant = weights.is_constant and bias.is_constant
        if constant and weights.scales and present.type in ("INT32", "INT64"):
            yield _Biased(target, position, weights, into.scales[0], bias.values())


def _readers(flat: FlatModel) -> list[Operator]:
    return [operator for operator in flat.operators if operator.code in FILTER_READERS]
