"""A .tflite file as frozen types, made by `reading.read_tflite`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress.flatbuffers.operators import (
    BINARY_CONV,
    WEIGHTED,
    Operator,
    binary_kernel_shape,
    operator_binary_macs,
    operator_macs,
)
from edgecompress.flatbuffers.tensors import Tensor


@dataclass(frozen=True)
class FlatModel:
    """A parsed .tflite file.

    Attributes:
        data: The file's bytes.
        tensors: Of the first subgraph, by index.
        operators: Of the first subgraph, in order of execution.
        inputs: Tensor indices of the model's inputs.
        outputs: Tensor indices of the model's outputs.
        subgraphs: Number of subgraphs.
        metadata: Names of metadata entries -> bytes.
        description: The file's own description.
        others: The subgraphs after the first, each as a separate model, without metadata.
    """

    data: bytes = field(repr=False)
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int = 1
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""
    others: tuple[FlatModel, ...] = field(default=(), repr=False)

    def tensor(self, operator: Operator, position: int) -> Tensor | None:
        """Returns an operator's input tensor by position; None if it was left out."""
        if position >= len(operator.inputs) or operator.inputs[position] < 0:
            return None
        return self.tensors[operator.inputs[position]]

    def output(self, operator: Operator, position: int = 0) -> Tensor:
        """Returns an operator's output tensor by position."""
        return self.tensors[operator.outputs[position]]

    def histogram(self) -> dict[str, int]:
        """Returns how often each operator occurs in all subgraphs, by name."""
        graphs = (self, *self.others)
        return dict(Counter(operator.name for graph in graphs for operator in graph.operators))

    def parameters(self) -> int:
        """Returns the number of weights and biases: constants that are not shapes or indices."""
        packed = {o.inputs[1]: o for o in self.operators if o.name == BINARY_CONV}
        return sum(
            math.prod(binary_kernel_shape(self, packed[t.index]))
            if t.index in packed
            else t.elements
            for t in self.weight_tensors()
        )

    def weight_tensors(self) -> list[Tensor]:
        """Returns the constants that hold learnt values, each once.

        These are the constant inputs from position 1 of weighted operators (filters, biases) and
        floating or quantized constants of any other operator.
        """
        found: dict[int, Tensor] = {}
        for operator in self.operators:
            for position, index in enumerate(operator.inputs):
                if index < 0:
                    continue
                tensor = self.tensors[index]
                learnt = (
                    (
                        operator.code in WEIGHTED
                        and position > 0
                        and operator.code != "TRANSPOSE_CONV"
                    )
                    or (operator.code == "TRANSPOSE_CONV" and position in (1, 3))
                    or (operator.name == BINARY_CONV and position > 0)
                    or tensor.is_quantized
                    or tensor.type.startswith("FLOAT")
                )
                if tensor.is_constant and learnt:
                    found[index] = tensor
        return list(found.values())

    def macs(self) -> int:
        """Returns the multiply-accumulates of one inference, except binary ones."""
        return sum(operator_macs(self, operator) for operator in self.operators)

    def binary_macs(self) -> int:
        """Returns the multiply-accumulates of one inference that are XNOR and popcount of bits."""
        return sum(operator_binary_macs(self, operator) for operator in self.operators)
