"""Kernels of layers that become several operators: recurrent cells, attention, EinsumDense.

Int8 simulation does not follow what such a layer computes inside, but a file of fewer bits holds
its kernels with a scale each, and training can round them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgecompress.core.keras_graph import inner_layer
from edgecompress.core.layer_kinds import exact_kind_of

_RECURRENT = "recurrent_kernel"


@dataclass(frozen=True)
class InnerKernel:
    """A kernel that matrix products of the file read.

    Attributes:
        name: Where it is in the layer: `recurrent_kernel`, `query_dense.kernel`.
        variable: Its variable.
        outputs: Axes that count output channels, negative.
        parts: Widths of the filters that the file cuts it into, along its last axis; () for one.
    """

    name: str
    variable: Any
    outputs: tuple[int, ...] = (-1,)
    parts: tuple[int, ...] = ()

    def split(self, values: Any) -> list[Any]:
        """Returns the filters that the file holds of it."""
        ends = [sum(self.parts[: i + 1]) for i in range(len(self.parts))]
        return [
            values[..., end - size : end] for end, size in zip(ends, self.parts, strict=True)
        ] or [values]


def inner_kernels(layer: Any) -> tuple[InnerKernel, ...]:
    """Returns the kernels of a layer that `layer_kinds.int8_kernels` leaves out.

    Args:
        layer: A built layer of Keras 3, or anything else, which has none.
    """
    kind = exact_kind_of(layer)
    find = None if kind is None or kind.int8_kernels else _KERNELS.get(type(layer).__name__)
    return () if find is None or not getattr(layer, "built", False) else find(layer)


def is_recurrent(kernel: str) -> bool:
    """Returns whether a kernel, by its name or `<layer>/<name>`, multiplies a recurrent state.

    Example:
        >>> is_recurrent("lstm/forward_layer.recurrent_kernel"), is_recurrent("lstm/kernel")
        (True, False)
    """
    return re.split(r"[/.]", kernel)[-1] == _RECURRENT


def _recurrent(layer: Any) -> tuple[InnerKernel, ...]:
    cell = layer.cell
    # The gates and the candidate of a GRU are separate products.
    parts = (2 * cell.units, cell.units) if type(layer).__name__ == "GRU" else ()
    return (
        InnerKernel("kernel", cell.kernel, parts=parts),
        InnerKernel(_RECURRENT, cell.recurrent_kernel, parts=parts),
    )


def _nested(*parts: str) -> Callable[[Any], tuple[InnerKernel, ...]]:
    def find(layer: Any) -> tuple[InnerKernel, ...]:
        return tuple(
            replace(kernel, name=f"{part}.{kernel.name}")
            for part in parts
            for kernel in inner_kernels(inner_layer(layer, part))
        )

    return find


def _einsum(layer: Any) -> tuple[InnerKernel, ...]:
    sources, _, result = layer.equation.replace(" ", "").partition("->")
    values, _, kernel = sources.partition(",")
    if set(values) & set(kernel) & set(result) - {"."}:
        # A matrix for each index of a shared axis: no fully connected operator.
        return ()
    outputs = tuple(i - len(kernel) for i, letter in enumerate(kernel) if letter in result)
    return (InnerKernel("kernel", layer.kernel, outputs),)


_PROJECTIONS = ("query_dense", "key_dense", "value_dense", "output_dense")
_KERNELS: Mapping[str, Callable[[Any], tuple[InnerKernel, ...]]] = {
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "SimpleRNN": _recurrent,
    "Bidirectional": _nested("forward_layer", "backward_layer"),
    "MultiHeadAttention": _nested(*_PROJECTIONS),
    "GroupedQueryAttention": _nested(*_PROJECTIONS),
    "EinsumDense": _einsum,
}
