"""Layers that stay in float, or get int16 activations, in a file of int8 activations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecompress.converters.float32 import Float32Result
from edgecompress.core.errors import ArgumentError, few
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.precisions.base import Precision
from edgecompress.precisions.int16x8 import Int16x8

_DENSE = "FULLY_CONNECTED"


@dataclass(frozen=True)
class Kept:
    """Which layers are kept more exact than the rest of the file.

    Attributes:
        floating: Regular expressions for the whole names of layers that stay in float.
        int16: The same for layers with int16 activations.
    """

    floating: tuple[str, ...] = ()
    int16: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.floating or self.int16)


@dataclass(frozen=True)
class KeptOperators:
    """The operators of a float file that are kept.

    Attributes:
        floating: Name of the output -> layer, of operators that stay in float.
        int16: The same for those with int16 activations.
    """

    floating: Mapping[str, str] = field(default_factory=dict)
    int16: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, output: object) -> bool:
        """Whether the operator with an output is kept."""
        return output in self.floating or output in self.int16

    def notes(self, flat: FlatModel) -> list[str]:
        """Returns a note for each kind of kept layers, and on outputs that they compute.

        Args:
            flat: The float file.
        """
        code = {flat.output(operator).name: operator.name for operator in flat.operators}
        outputs = [flat.tensors[index].name for index in flat.outputs]
        said = []
        for what, kept in (("in float", self.floating), ("with int16 activations", self.int16)):
            names = [f"{layer} ({code[output]})" for output, layer in kept.items()]
            if names:
                said.append(
                    f"Kept {what} as requested, with conversions from and to int8: {few(names, 8)}."
                )
            kind = "float32" if kept is self.floating else "int16"
            said += [f"Output {name!r} is {kind}." for name in outputs if name in kept]
        return said


def layers_of(source: Float32Result, operator: Operator) -> tuple[str, ...]:
    """Returns the layers that an operator of a float file computes, the one with weights first.

    The second is the last of what is fused into it, such as a ReLU, after which its output is
    named.
    """
    flat = source.artifact.flat
    owners = [source.owners.get(flat.tensors[i].name, "") for i in operator.inputs if i >= 0]
    names = [owner.rpartition("/")[0] for owner in owners if owner]
    names.append(flat.output(operator).name.partition("/")[0])
    return tuple(dict.fromkeys(names))


def kept_operators(source: Float32Result, kept: Kept, precision: Precision) -> KeptOperators:
    """Returns the operators of the layers to keep.

    Args:
        source: The float file.
        kept: The layers.
        precision: That of all other layers.

    Raises:
        ArgumentError: an expression is invalid or matches no layer, or the precision's activations
            are not int8.
    """
    if kept and precision.activation_bits != 8:
        raise ArgumentError(
            "--keep-float" if kept.floating else "--keep-int16",
            "be left out unless activations are int8",
            precision.name,
            "It keeps layers of int8 and int4 files more exact.",
        )
    found = [_matching(source, "--keep-float", kept.floating)]
    found.append(_matching(source, "--keep-int16", kept.int16))
    both = [name for name in found[0] if name in found[1]]
    if both:
        raise ArgumentError("--keep-int16", "match no layer of --keep-float", found[0][both[0]])
    return KeptOperators(*found)


def _matching(source: Float32Result, argument: str, patterns: Sequence[str]) -> dict[str, str]:
    flat = source.artifact.flat
    operators = {flat.output(o).name: layers_of(source, o) for o in flat.operators}
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise ArgumentError(
                argument, "be a valid regular expression", pattern, f"{error}."
            ) from error
        matching = {
            output: layers[0]
            for output, layers in operators.items()
            if any(wanted.fullmatch(layer) for layer in layers)
        }
        if not matching:
            names = list(dict.fromkeys(layers[0] for layers in operators.values()))
            rule = f"match the whole name of a layer ({few(names, 8)})"
            raise ArgumentError(argument, rule, pattern)
        found |= matching
    return found


def tell(quantizer: Any, kept: KeptOperators, operators: Mapping[str, str]) -> None:
    """Tells the quantizer which operators are kept.

    Args:
        quantizer: A `litert_quantizer.Quantizer` that knows everything else.
        kept: The operators.
        operators: Output -> operator of the file that it quantizes.
    """
    from litert_quantizer import qtyping

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    for output in kept.floating:
        quantizer.update_quantization_recipe(_scope(output), every, algorithm_key="no_quantize")
    activations = qtyping.TensorQuantizationConfig(num_bits=16, symmetric=True)
    for output in kept.int16:
        per_channel = Int16x8().weight_axes((-1,), 2 if operators.get(output) == _DENSE else 4)
        granularity = "CHANNELWISE" if per_channel else "TENSORWISE"
        weights = qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity[granularity]
        )
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=activations,
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.INTEGER,
        )
        quantizer.update_quantization_recipe(_scope(output), every, config)


def _scope(output: str) -> str:
    return f"^{re.escape(output)};$"
