"""Which precision each filter of a file gets, and how the quantizer is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgecompress.converters.float32 import Float32Result
from edgecompress.converters.fused_lstm import LSTM
from edgecompress.core.inner_kernels import is_recurrent
from edgecompress.core.record import CompressionRecord
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator
from edgecompress.precisions.base import Place, Precision, trained_precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.mixed import assign, trained_kernels

_DENSE, _DEPTHWISE = "FULLY_CONNECTED", "DEPTHWISE_CONV_2D"
# Names of operators in the quantizer that differ from the schema's.
_QUANTIZER_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}


def filter_precisions(
    source: Float32Result,
    precision: Precision,
    per_layer: Mapping[str, Precision] | None = None,
    record: CompressionRecord | None = None,
) -> dict[str, tuple[Place, Precision]]:
    """Returns the filters that have a precision of their own.

    Args:
        source: The float file.
        precision: The precision of all other filters.
        per_layer: Regular expression for names of layers -> precision. If given, it decides, with
            the places in which `precision` is finer; else the kernels that training rounded
            otherwise, if it trained in `precision`; else those places alone.
        record: What training did.

    Returns:
        Name of the output of the filter's operator -> where it is, and its precision.

    Raises:
        ArgumentError: as in `precisions.mixed.assign`.
    """
    flat = source.artifact.flat
    readers = [o for o in flat.operators if o.code in FILTER_READERS and _is_filter(flat, o)]
    # LSTM layers of one operator are layers with weights, too.
    weighted = [
        operator.index
        for operator in flat.operators
        if operator in readers or operator.code == LSTM
    ]
    owners, places = {}, {}
    for operator in readers:
        weights, output = flat.tensor(operator, 1), flat.output(operator).name
        owners[output] = source.owners.get(weights.name, "") if weights else ""
        places[output] = Place(
            owners[output].rpartition("/")[0] or output,
            operator.code,
            operator.index == weighted[0],
            operator.index == weighted[-1],
            _is_grouped(flat, operator),
            is_recurrent(owners[output]),
        )
    if not per_layer and trained_precision(record) == precision:
        trained = trained_kernels(record)
        found = {output: trained[owner] for output, owner in owners.items() if owner in trained}
    else:
        found = assign(places, precision, per_layer)
    chosen = _shared(flat, readers, found, precision)
    return {output: (places[output], own) for output, own in chosen.items()}


def _is_filter(flat: FlatModel, operator: Operator) -> bool:
    weights = flat.tensor(operator, 1)
    return weights is not None and weights.is_constant and weights.type == "FLOAT32"


def _is_grouped(flat: FlatModel, operator: Operator) -> bool:
    source, weights = flat.tensor(operator, 0), flat.tensor(operator, 1)
    if operator.code != "CONV_2D" or source is None or weights is None:
        return False
    return source.shape[-1] != weights.shape[-1]


def _shared(
    flat: FlatModel,
    readers: list[Operator],
    found: dict[str, Precision],
    precision: Precision,
) -> dict[str, Precision]:
    """Gives operators that read the same filter its finest precision."""
    finest: dict[int, Precision] = {}
    for operator in readers:
        own = found.get(flat.output(operator).name, precision)
        seen = finest.setdefault(operator.inputs[1], own)
        if own.stored_bits > seen.stored_bits:
            finest[operator.inputs[1]] = own
    chosen = {flat.output(o).name: finest[o.inputs[1]] for o in readers}
    return {output: own for output, own in chosen.items() if own != precision}


def configure(
    quantizer: Any,
    flat: FlatModel,
    precision: Precision,
    exceptions: Mapping[str, tuple[Place, Precision]],
    units: bool,
) -> None:
    """Tells the quantizer the width and the granularity of every filter.

    Args:
        quantizer: A `litert_quantizer.Quantizer` with the precision's recipe.
        flat: The float file.
        precision: The precision of filters without an exception.
        exceptions: What `filter_precisions` returned.
        units: Whether Dense layers of 8 bits get a scale for each unit.
    """
    from litert_quantizer import qtyping

    activations = qtyping.TensorQuantizationConfig(
        num_bits=precision.activation_bits, symmetric=precision.activation_bits == 16
    )
    for operator in flat.operators:
        if operator.code not in FILTER_READERS:
            continue
        output = flat.output(operator).name
        own = exceptions[output][1] if output in exceptions else precision
        per_unit = bool(own.weight_axes((-1,), 2)) and (units or own.stored_bits < 8)
        one = operator.code == _DENSE and not per_unit
        granularity = "TENSORWISE" if one else "CHANNELWISE"
        weights = qtyping.TensorQuantizationConfig(
            num_bits=own.stored_bits,
            symmetric=True,
            granularity=qtyping.QuantGranularity[granularity],
        )
        quantizer.update_quantization_recipe(
            f"^{re.escape(output)};$",
            qtyping.TFLOperationName[_QUANTIZER_NAMES.get(operator.code, operator.code)],
            qtyping.OpQuantizationConfig(
                activation_tensor_config=activations,
                weight_tensor_config=weights,
                compute_precision=qtyping.ComputePrecision.INTEGER,
                # The quantizer's list lacks filters that engines run: depthwise ones of 4 bits,
                # and 2 bits with integer activations.
                skip_checks=own.stored_bits < (8 if operator.code == _DEPTHWISE else 4),
            ),
        )


def notes_on(
    precision: Precision,
    exceptions: Mapping[str, tuple[Place, Precision]],
    lstms: Iterable[str] = (),
) -> list[str]:
    """Returns a note for each precision but the model's own, with the layers that have it.

    Args:
        precision: The model's own.
        exceptions: What `filter_precisions` returned.
        lstms: Names of LSTM layers that are one operator, which are int8 in every precision.
    """
    groups: dict[str, list[str]] = {}
    if precision.stored_bits < 8:
        for name in lstms:
            groups.setdefault(Int8.name, []).append(str(Place(name, LSTM)))
    for place, own in exceptions.values():
        if own.name != precision.name:
            groups.setdefault(own.name, []).append(str(place))
    return [
        f"Weights in {name} instead of {precision.name}: {', '.join(dict.fromkeys(layers))}."
        for name, layers in groups.items()
    ]


def one_scale_each(
    source: Float32Result, precision: Precision, exceptions: Mapping[str, tuple[Place, Precision]]
) -> frozenset[str]:
    """Returns the outputs of operators whose int8 filters have one scale for all channels."""
    flat = source.artifact.flat
    readers = [flat.output(o).name for o in flat.operators if o.code in FILTER_READERS]
    own = {name: exceptions[name][1] if name in exceptions else precision for name in readers}
    return frozenset(n for n, p in own.items() if p.stored_bits == 8 and not p.weight_axes((0,), 4))


def folded_dense(
    source: Float32Result, precision: Precision, exceptions: Mapping[str, tuple[Place, Precision]]
) -> list[str]:
    """Returns a note on Dense layers whose single scale is not the one that training simulated."""
    flat, found = source.artifact.flat, []
    for operator in flat.operators:
        weights = flat.tensor(operator, 1) if operator.code == _DENSE else None
        output = flat.output(operator).name
        own = exceptions[output][1] if output in exceptions else precision
        single = not own.weight_axes((-1,), 2) and bool(own.weight_axes((0,), 4))
        if weights is not None and weights.name in source.kernels and single:
            found.append(source.owners.get(weights.name, output).partition("/")[0])
    if not found:
        return []
    return [
        f"not simulated: {', '.join(found)}: BatchNormalization is folded into a Dense layer with "
        "one scale; training rounded the weights before folding, the file rounds them after it."
    ]


def trained_scales(
    source: Float32Result, precision: Precision, record: CompressionRecord | None
) -> dict[str, Sequence[float]]:
    """Returns the filters whose scales training learnt: name -> one for each channel, or one."""
    if record is None or trained_precision(record) != precision:
        return {}
    known = record.weight_scales
    return {name: known[owner] for name, owner in source.owners.items() if owner in known}
