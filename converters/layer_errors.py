"""Compares a quantized model with its float model tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.agreement import sqnr_db
from edgecompress.converters.real_values import dequantize, quantize, quantized_inputs
from edgecompress.engines.registry import LITERT
from edgecompress.engines.tensor_errors import tensor_errors
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import Tensor

# Operators that leave the values as they are.
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class LayerError:
    """How far a tensor of the integer model is from the same tensor of the float model.

    Attributes:
        name: Name of the tensor in the float model; for fused operators the first of its names.
        sqnr_db: Signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_q)^2), in dB;
            infinite if both are equal. It accumulates the errors of all preceding layers.
        operator: The operator that makes the tensor; `INPUT` for an input of the model.
        drop_db: The ratio of the operator's worst input minus its own: the operator's own error.
            None if no input is known.
    """

    name: str
    sqnr_db: float
    operator: str = ""
    drop_db: float | None = None


def layer_errors(
    floats: FlatModel, quantized: FlatModel, samples: Sequence[np.ndarray], timeout_s: float
) -> tuple[tuple[LayerError, ...], list[str]]:
    """Compares every tensor that both models compute; also returns the unmatched ones."""
    pairs, unmatched = _pairs(floats, quantized)
    if not pairs:
        return (), unmatched
    inputs = (quantized_inputs(floats, samples), quantized_inputs(quantized, samples))
    sums = tensor_errors(LITERT, (floats, quantized), inputs, [*pairs.items()], timeout_s)
    # The input counts as a layer: a scale that clips it harms everything downstream.
    ratios: dict[int, float] = {}
    makers = dict.fromkeys(floats.inputs, "INPUT")
    sources: dict[int, tuple[int, ...]] = {}
    for position, index in enumerate(floats.inputs):
        tensor = quantized.tensors[quantized.inputs[position]]
        exact = np.asarray(samples[position], np.float64)
        rounded = dequantize(quantize(samples[position], tensor), tensor)
        ratios[index] = sqnr_db(float(np.sum(exact**2)), float(np.sum((exact - rounded) ** 2)))
    for operator in floats.operators:
        for index in operator.outputs:
            makers[index] = operator.name
            sources[index] = operator.inputs
    ratios |= {index: sqnr_db(*found) for index, found in zip(pairs, sums, strict=True)}
    layers = []
    for index, ratio in ratios.items():
        before = [ratios[i] for i in sources.get(index, ()) if i in ratios]
        drop = None
        if before:
            # Two exact tensors in a row lose nothing (infinity minus infinity is NaN).
            drop = 0.0 if min(before) == ratio else min(before) - ratio
        layers.append(LayerError(_short(floats.tensors[index]), ratio, makers[index], drop))
    return tuple(sorted(layers, key=lambda layer: layer.sqnr_db)), unmatched


def _pairs(floats: FlatModel, quantized: FlatModel) -> tuple[dict[int, int], list[str]]:
    """Matches the computed tensors of two models by name, or by position without names."""
    wanted = _results(floats)
    offered = _results(quantized)
    by_name: dict[str, list[int]] = {}
    for index in offered:
        by_name.setdefault(quantized.tensors[index].name, []).append(index)
    names = Counter(floats.tensors[index].name for index in wanted)
    makers, offering = _makers(floats), _makers(quantized)
    same_order = [makers[i] for i in wanted] == [offering[i] for i in offered]
    by_position = dict(zip(wanted, offered, strict=True)) if same_order else {}
    pairs, unmatched = {}, []
    for index in wanted:
        tensor = floats.tensors[index]
        found = by_name.get(tensor.name, [])
        unique = tensor.name and len(found) == 1 and names[tensor.name] == 1
        partner = found[0] if unique else by_position.get(index)
        if (
            tensor.type == "FLOAT32"
            and partner is not None
            and quantized.tensors[partner].elements == tensor.elements
        ):
            pairs[index] = partner
        elif tensor.type == "FLOAT32" and makers[index] != "RESHAPE":
            # A reshape that the other model does without moves no value.
            unmatched.append(_short(tensor))
    return pairs, unmatched


def _makers(model: FlatModel) -> dict[int, str]:
    return {index: o.name for o in model.operators for index in o.outputs}


def _results(model: FlatModel) -> list[int]:
    """Returns the tensors that operators compute, except type conversions."""
    return [i for o in model.operators if o.code not in CONVERSIONS for i in o.outputs]


def _short(tensor: Tensor) -> str:
    return tensor.name.split(";")[0] or f"tensor {tensor.index}"
