"""The frozen types of an inspection: rows, endpoints, totals."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

INSPECT_SCHEMA = "edgecompress.inspect/1"

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Row:
    """One layer of a Keras model or one operator of a flatbuffer.

    Attributes:
        index: Position, from 0.
        name: The layer's name; for an operator, the most informative part of its tensor names.
        type: `Conv2D`, ... for Keras, `CONV_2D`, ... for a flatbuffer.
        output_shape: With the batch axis; None for an unknown size, and no shape at all (None) if
            the graph is hidden.
        parameters: Everything learnt: weights, biases, batch normalization.
        weights: Elements of filters and matrices.
        zeros: How many of `weights` are zero; None if they cannot be read.
        filters: Output channels of the layer's weights; 0 for a layer without filters.
        zero_filters: Output channels whose weights are all zero; None if unreadable.
        bits: Bits of one stored weight, encoded ones on average; None without weights.
        macs: Multiply-accumulates of one inference, except binary ones; None if unknown.
        binary_macs: Those with one-bit factors: XNOR and popcount in a suitable engine. None if
            unknown.
        weight_bytes: Bytes that hold the parameters, as stored.
        dense_bytes: Bytes the same parameters take without sparse or encoded storage.
    """

    index: int
    name: str
    type: str
    output_shape: Shape | None
    parameters: int = 0
    weights: int = 0
    zeros: int | None = 0
    filters: int = 0
    zero_filters: int | None = 0
    bits: float | None = None
    macs: int | None = 0
    weight_bytes: int = 0
    dense_bytes: int = 0
    binary_macs: int | None = 0

    @property
    def sparsity(self) -> float | None:
        """Share of weights that are zero, 0 to 1; None without (readable) weights."""
        return self.zeros / self.weights if self.weights and self.zeros is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self) | {"sparsity": self.sparsity}


@dataclass(frozen=True)
class Endpoint:
    """An input or output of the model.

    Attributes:
        name: As stored.
        shape: With the batch axis; None for an unknown size.
        dtype: `int8`, `float32`, ...
        scale: Quantization scale; None for a float tensor.
        zero_point: Quantization zero point; None for a float tensor.
    """

    name: str
    shape: Shape
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class OperatorCount:
    """How often an operator (or Keras layer type) occurs.

    Attributes:
        name: Operator or layer type; the custom name of a custom operator.
        version: Version the file asks for; None for Keras layers.
        count: Occurrences.
    """

    name: str
    version: int | None
    count: int


@dataclass(frozen=True)
class Inspection:
    """A model in numbers.

    Attributes:
        name: File name or model name.
        format: `tflite` or `keras`.
        rows: One for each operator or layer, in order.
        inputs: The model's inputs.
        outputs: The model's outputs.
        operators: Which operators or layer types occur, in order of appearance.
        file_bytes: Size of the file; None for a model in memory.
        compressed_bytes: The file after zlib at level 9 (download); None for a model in memory.
        peak_activation_bytes: Most bytes of activations alive at once, before any planner rounds
            them (a lower bound of the tensor arena); None for Keras models.
        peak_operator: Index of the operator at which that happens.
        notes: What could not be counted, and what to watch, one sentence each.
    """

    name: str
    format: str
    rows: tuple[Row, ...]
    inputs: tuple[Endpoint, ...]
    outputs: tuple[Endpoint, ...]
    operators: tuple[OperatorCount, ...]
    file_bytes: int | None = None
    compressed_bytes: int | None = None
    peak_activation_bytes: int | None = None
    peak_operator: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Learnt values of all rows."""
        return sum(row.parameters for row in self.rows)

    @property
    def weights(self) -> int:
        """Elements of all filters and matrices."""
        return sum(row.weights for row in self.rows)

    @property
    def zeros(self) -> int:
        """Zeros among the weights that can be read."""
        return sum(row.zeros or 0 for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Share of the readable weights that are zero, 0 to 1; 0 without weights."""
        readable = self.readable_weights
        return self.zeros / readable if readable else 0.0

    @property
    def readable_weights(self) -> int:
        """Weights whose values are known."""
        return sum(row.weights for row in self.rows if row.zeros is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference, over the rows with a known count."""
        return sum(row.macs or 0 for row in self.rows)

    @property
    def binary_macs(self) -> int:
        """Those with one-bit factors, not included in `macs`."""
        return sum(row.binary_macs or 0 for row in self.rows)

    @property
    def weight_bytes(self) -> int:
        """Bytes that hold the parameters."""
        return sum(row.weight_bytes for row in self.rows)

    @property
    def dense_bytes(self) -> int:
        """Bytes the parameters take without sparse or encoded storage."""
        return sum(row.dense_bytes for row in self.rows)

    @property
    def filters(self) -> int:
        """Filters of all rows."""
        return sum(row.filters for row in self.rows)

    @property
    def zero_filters(self) -> int:
        """Filters whose weights are all zero."""
        return sum(row.zero_filters or 0 for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form (schema `edgecompress.inspect/1`)."""
        return {
            "schema": INSPECT_SCHEMA,
            "model": {
                "name": self.name,
                "format": self.format,
                "file_bytes": self.file_bytes,
                "compressed_bytes": self.compressed_bytes,
            },
            "totals": {
                "parameters": self.parameters,
                "weights": self.weights,
                "zeros": self.zeros,
                "sparsity": self.sparsity,
                "filters": self.filters,
                "zero_filters": self.zero_filters,
                "macs": self.macs,
                "binary_macs": self.binary_macs,
                "weight_bytes": self.weight_bytes,
                "dense_bytes": self.dense_bytes,
                "peak_activation_bytes": self.peak_activation_bytes,
                "peak_operator": self.peak_operator,
            },
            "inputs": [dataclasses.asdict(end) for end in self.inputs],
            "outputs": [dataclasses.asdict(end) for end in self.outputs],
            "operators": [dataclasses.asdict(operator) for operator in self.operators],
            "layers": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
        }


def count_operators(entries: Iterable[tuple[str, int | None]]) -> tuple[OperatorCount, ...]:
    """Returns how often each (name, version) occurs, in order of appearance."""
    return tuple(OperatorCount(*key, count) for key, count in Counter(entries).items())


def zero_filter_notes(rows: Sequence[Row]) -> list[str]:
    """Returns the note on all-zero filters, if there are any."""
    dead = sum(row.zero_filters or 0 for row in rows)
    if not dead:
        return []
    total = sum(row.filters for row in rows)
    return [
        f"{dead:,} of {total:,} filters are zero throughout: each computes a constant. Removing "
        "these channels (edgecompress.finalize) saves their MACs; zeros alone do not."
    ]
