"""Rules of layers of sequences: tables, recurrent layers, attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.surgery.channels import Analysis, BiasOf, Call, Channels, Reader
from edgecompress.surgery.groups import FilterAxis, Filters
from edgecompress.surgery.rules.base import (
    Cut,
    Rule,
    activate,
    is_elementwise,
    need,
    plain_weights,
    register,
)


@register("lookup")
class EmbeddingRule(Rule):
    """A table of vectors; a channel is a column of it."""

    reads_channels: ClassVar[bool] = False

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        plain_weights(call.layer)
        table = call.weights["embeddings"]
        labels = analysis.made_by(call.path, table.shape[1])
        analysis.filters[call.path] = ~(table != 0).any(axis=0)
        same = (table == table[:1]).all(axis=0)
        return Channels(labels, np.where(same, table[0].astype(np.float64), np.nan))

    def filters(self, layer: Any) -> tuple[Filters, ...]:
        """See Rule."""
        return (Filters((FilterAxis("embeddings", -1),)),)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        table = call.weights["embeddings"][:, keep_out]
        return {"embeddings": table}, {"output_dim": table.shape[1]}


# Class -> number of gates, and which of them proposes the new state.
_GATES = {"LSTM": (4, 2), "GRU": (3, 2), "SimpleRNN": (1, 0)}


def _reader(
    source: Channels, outputs: np.ndarray, kernel: np.ndarray, bias: BiasOf | None
) -> Reader:
    """Returns what reads channels with a kernel of shape (inputs, outputs, parts).

    Without a bias that could make up for them, only zeros can be left out.
    """
    reads, fixed = (kernel != 0).any(axis=2), bias is None
    return Reader(source.labels, source.constant, outputs, kernel, reads, True, bias, fixed)


def _starts_at_zero(layer: Any) -> None:
    need(not layer.stateful, "keeps its state between calls")
    zero = activate(layer.activation, np.zeros(1)) if is_elementwise(layer.activation) else [1]
    need(zero[0] == 0, "has an activation that does not keep zero")


@register("recurrent")
class RecurrentRule(Rule):
    """LSTM, GRU and SimpleRNN with a state that starts at zero.

    A unit whose proposed state is always activation(0) = 0 never leaves zero, whatever its other
    gates do.
    """

    skips_masked: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, weights, source = call.layer, call.weights, call.inputs[0]
        need(len(call.inputs) == 1, "starts from a state that it is given")
        _starts_at_zero(layer)
        labels = analysis.made_by(call.path, layer.units)
        own = (call.path, "cell.bias")
        still = _recur(analysis, call.path, layer, _cell_weights(weights, ""), source, labels, own)
        analysis.filters[call.path] = still
        return Channels(labels, np.where(still, 0.0, np.nan))

    def filters(self, layer: Any) -> tuple[Filters, ...]:
        """See Rule."""
        return (_units_of(layer, ""),)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        weights = _cut_cell(call.layer, _cell_weights(call.weights, ""), keep_in, keep_out)
        return {f"cell.{name}": value for name, value in weights.items()}, {
            "units": int(keep_out.sum())
        }


def _cell_weights(weights: Mapping[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
    """Returns the weights of a recurrent layer's cell: kernel, recurrent_kernel, bias."""
    prefix = f"{layer}.cell." if layer else "cell."
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _units_of(layer: Any, name: str) -> Filters:
    """Returns where the units of a recurrent layer are: columns of each gate."""
    gates = _GATES[type(layer).__name__][0]
    prefix = f"{name}.cell." if name else "cell."
    kernels = (FilterAxis(f"{prefix}{k}", -1, gates) for k in ("kernel", "recurrent_kernel"))
    biases = [FilterAxis(f"{prefix}bias", -1, gates)] if layer.use_bias else []
    return Filters(tuple(kernels), tuple(biases))


def _recur(
    analysis: Analysis,
    path: str,
    layer: Any,
    weights: Mapping[str, np.ndarray],
    source: Channels,
    labels: np.ndarray,
    where: tuple[str, str],
) -> np.ndarray:
    """Notes what a recurrent layer reads; returns which units stay zero, (units,).

    Args:
        analysis: What is noted in.
        path: Name of the reader.
        layer: The recurrent layer.
        weights: Its weights.
        source: What it reads.
        labels: Its units.
        where: The layer's path and the attribute of its bias.
    """
    gates, proposal = _GATES[type(layer).__name__]
    units = layer.units
    kernel = weights["kernel"].reshape(-1, gates, units)
    recurrent = weights["recurrent_kernel"].reshape(units, gates, units)
    bias = weights.get("bias", np.zeros(gates * units)).reshape(-1, gates, units)
    parts = (kernel, recurrent, bias)
    still: np.ndarray = ~np.any([(p[:, proposal] != 0).any(axis=0) for p in parts], axis=0)
    own = BiasOf(*where, gates=True) if "bias" in weights else None
    analysis.read(path, _reader(source, labels, kernel.transpose(0, 2, 1), own))
    again = recurrent.transpose(0, 2, 1).copy()
    again[np.diag_indices(units)] = 0  # What only a unit itself reads goes with it.
    made = Channels(labels, np.where(still, 0.0, np.nan))
    analysis.read(f"{path}:recurrent", _reader(made, labels, again, None))
    return still


def _cut_cell(
    layer: Any, weights: Mapping[str, np.ndarray], keep_in: np.ndarray, keep_out: np.ndarray
) -> dict[str, np.ndarray]:
    columns = np.tile(keep_out, _GATES[type(layer).__name__][0])
    cut = {name: value[..., columns] for name, value in weights.items()}
    cut["kernel"] = cut["kernel"][keep_in]
    cut["recurrent_kernel"] = cut["recurrent_kernel"][keep_out]
    return cut


@register("bidirectional")
class BidirectionalRule(Rule):
    """LSTM, GRU or SimpleRNN in both directions, joined or added.

    A unit goes from both directions or stays: Keras expects both to have the same number.
    """

    skips_masked: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, source = call.layer, call.inputs[0]
        need(len(call.inputs) == 1, "starts from a state that it is given")
        need(layer.merge_mode in ("concat", "sum", "ave"), "multiplies its two directions")
        joined = layer.merge_mode == "concat"
        directions = {name: getattr(layer, f"{name}_layer") for name in ("forward", "backward")}
        for cell in directions.values():
            need(type(cell).__name__ in _GATES, "is not understood")
            need(exact_kind_of(cell) is not None, "is not understood")
            _starts_at_zero(cell)
        alike = layer.forward_layer.units == layer.backward_layer.units
        need(alike, "has another number of units in each direction")
        labels = analysis.made_by(call.path, layer.forward_layer.units)
        still = []
        for name, cell in directions.items():
            weights = _cell_weights(call.weights, f"{name}_layer")
            own, name = (call.path, f"{name}_layer.cell.bias"), f"{call.path}:{name}"
            still.append(_recur(analysis, name, cell, weights, source, labels, own))
        silent = np.concatenate(still) if joined else still[0] & still[1]
        analysis.filters[call.path] = silent
        made = np.concatenate([labels, labels]) if joined else labels
        return Channels(made, np.where(silent, 0.0, np.nan))

    def filters(self, layer: Any) -> tuple[Filters, ...]:
        """See Rule."""
        cells = {name: getattr(layer, name) for name in ("forward_layer", "backward_layer")}
        if any(type(cell).__name__ not in _GATES for cell in cells.values()):
            return ()
        found = [_units_of(cell, name) for name, cell in cells.items()]
        kernels = tuple(part for each in found for part in each.kernels)
        return (Filters(kernels, tuple(part for each in found for part in each.biases)),)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        layer, config = call.layer, call.layer.get_config()
        split = layer.forward_layer.units if layer.merge_mode == "concat" else 0
        kept = {"forward": keep_out[:split] if split else keep_out, "backward": keep_out[split:]}
        weights, entries = {}, {}
        for name, keep in kept.items():
            cell = getattr(layer, f"{name}_layer")
            own = _cut_cell(cell, _cell_weights(call.weights, f"{name}_layer"), keep_in, keep)
            weights.update({f"{name}_layer.cell.{part}": value for part, value in own.items()})
            key = "layer" if name == "forward" else "backward_layer"
            # Without the shape that it was built with.
            entry = {k: value for k, value in config[key].items() if k != "build_config"}
            entries[key] = {**entry, "config": {**entry["config"], "units": int(keep.sum())}}
        return weights, entries


@register("product")
class AttentionRule(Rule):
    """MultiHeadAttention: its heads, and the widths of its inputs and output.

    A head without values, or whose output nothing reads, is removed whole.
    """

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        need(type(call.layer) is keras.layers.MultiHeadAttention, "is not understood")
        weights = call.weights
        whole = len(weights) == len([w for w in call.layer.weights if "seed" not in w.path])
        need(whole and weights["output_dense.kernel"].ndim == 3, "has an unusual form")
        given = _given(call)
        heads, _, width = weights["output_dense.kernel"].shape
        inner = analysis.made_by(f"{call.path}:heads", heads)
        value = weights["value_dense.kernel"]
        silent = ~(value != 0).any(axis=(0, 2))
        if "value_dense.bias" in weights:
            silent &= ~(weights["value_dense.bias"] != 0).any(axis=1)
        for name, source in given.items():
            own = f"{name}_dense.bias"
            bias = BiasOf(call.path, own) if own in weights else None
            reader = _reader(source, inner, weights[f"{name}_dense.kernel"], bias)
            analysis.read(f"{call.path}:{name}", reader)
        labels = analysis.made_by(call.path, width)
        kernel = weights["output_dense.kernel"]
        reads = (kernel != 0).any(axis=1)
        made = Channels(inner, np.where(silent, 0.0, np.nan))
        analysis.read(f"{call.path}:output", _reader(made, labels, kernel.swapaxes(1, 2), None))
        analysis.filters[call.path] = ~reads.any(axis=0)
        chosen = {"heads": inner, **{name: source.labels for name, source in given.items()}}
        for name, before in analysis.inner.setdefault(call.path, chosen).items():
            analysis.unite(before, chosen[name])
        offset = weights.get("output_dense.bias", np.zeros(width)).astype(np.float64)
        return Channels(labels, np.where(reads[~silent].any(axis=0), np.nan, offset))

    def filters(self, layer: Any) -> tuple[Filters, ...]:
        """Returns where the heads are, their slices of all four kernels, and the channels."""
        if type(layer) is not keras.layers.MultiHeadAttention:
            return ()
        given = [f"{name}_dense" for name in ("query", "key", "value")]
        kernels = (
            *(FilterAxis(f"{name}.kernel", -2) for name in given),
            FilterAxis("output_dense.kernel", -3),
        )
        biases = [
            FilterAxis(f"{name}.bias", -2)
            for name in given
            if getattr(getattr(layer, name, None), "bias", None) is not None
        ]
        channels = Filters((FilterAxis("output_dense.kernel", -1),), bias="output_dense.bias")
        return Filters(kernels, tuple(biases), "heads"), channels

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        heads, weights = call.inner["heads"], dict(call.weights)
        for name in ("query", "key", "value"):
            kernel = weights[f"{name}_dense.kernel"]
            weights[f"{name}_dense.kernel"] = kernel[call.inner[name]][:, heads]
            if f"{name}_dense.bias" in weights:
                weights[f"{name}_dense.bias"] = weights[f"{name}_dense.bias"][heads]
        weights["output_dense.kernel"] = weights["output_dense.kernel"][heads][..., keep_out]
        if "output_dense.bias" in weights:
            weights["output_dense.bias"] = weights["output_dense.bias"][keep_out]
        return weights, {"num_heads": int(heads.sum()), "output_shape": [int(keep_out.sum())]}


def _given(call: Call) -> dict[str, Channels]:
    """Returns the channels of `query`, `value` and `key`."""
    arguments = {**dict(zip(("query", "value", "key"), call.args, strict=False)), **call.kwargs}
    known = {id(tensor): c for tensor, c in zip(call.tensors, call.inputs, strict=True)}
    given = {
        name: known[id(arguments[name])]
        for name in ("query", "value", "key")
        if arguments.get(name) is not None
    }
    if "key" not in given:
        given["key"] = given["value"]
    others = {name: value for name, value in arguments.items() if name not in given}
    others.pop("use_causal_mask", None)
    unused = all(value is None or value is False for value in others.values())
    need(unused, "is called with a mask of its own")
    return given
