"""float32 flatbuffer -> int8 flatbuffer: integer inputs, outputs, weights and activations.

Weights are quantized symmetrically per channel, activations asymmetrically per tensor, by
litert-quantizer and the recipe of a precision (`edgecompress.precisions`), int8 by default. A range
that training learnt is used as it is; the other ranges are measured on the calibration set.

Kernels whose weights share few values (weight clustering) get a single scale S = max|w| / 127 for
the kernel without BatchNormalization, and channel c gets the scale |g_c| * S, where g_c is the
factor by which folding multiplied the channel. Every channel then has the codes round(w / S), and k
values give at most k codes. The quantizer cannot do this, so its weights, scales and biases are
replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.filter_precisions import (
    configure,
    filter_precisions,
    folded_dense,
    notes_on,
    one_scale_each,
    trained_scales,
)
from edgecompress.converters.fitting_biases import fit_biases
from edgecompress.converters.float32 import Float32Result
from edgecompress.converters.float_inputs import float_inputs, put_before, without
from edgecompress.converters.formats import FormatRequest, FormatResult, make_int8, register
from edgecompress.converters.fused_lstm import (
    largest_cells,
    learnt_cells,
    put_stand_ins,
    take_stand_ins,
)
from edgecompress.converters.interface_types import TYPES, with_interface
from edgecompress.converters.kept_layers import Kept, KeptOperators, kept_operators, tell
from edgecompress.converters.masks import narrowed
from edgecompress.converters.recalled import Sources
from edgecompress.converters.recurrent_forms import FORMS, choose_form, float_files
from edgecompress.converters.shared_scales import share_scales
from edgecompress.converters.stand_ins import put, take
from edgecompress.converters.streaming_files import check_states, make_streaming
from edgecompress.converters.tables import inner_tensors
from edgecompress.converters.techniques import quantized
from edgecompress.converters.tensor_ranges import tensor_ranges
from edgecompress.converters.weight_ranges import choose_scales
from edgecompress.converters.weights_only import float_weights_left, narrow_weights
from edgecompress.core.errors import ArgumentError, ConversionError, one_line
from edgecompress.core.options import ByName, Choice, Flag, Named, Text, by_name, many, option
from edgecompress.core.record import CompressionRecord
from edgecompress.core.suppress_output import suppress_output
from edgecompress.core.units import format_size
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor, strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator
from edgecompress.post_training.techniques import TECHNIQUES, Technique
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.base import QAT, QUANTIZED_BY, Place, Precision, trained_precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.int16x8 import Int16x8
from edgecompress.precisions.mixed import fuses_lstm

WEIGHT_SCALES = ("auto", "channel", "tensor")
_DENSE, _LOOKUP = "FULLY_CONNECTED", "GATHER"
_BOUNDARY = ("QUANTIZE", "DEQUANTIZE")


def convert(
    source: Float32Result,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    calibration: Sequence[np.ndarray] | None = None,
    record: CompressionRecord | None = None,
    dense_per_channel: bool | None = None,
    allow_float: bool = True,
    verbose: bool = False,
    weight_scales: str = "auto",
    precision: Precision | None = None,
    per_layer: Mapping[str, Precision] | None = None,
    keep: Kept | None = None,
) -> Artifact:
    """Converts a float flatbuffer to an int8 one.

    Equal inputs give equal bytes.

    Args:
        source: What `float32.convert` returned.
        ranges: Ranges that training learnt: tap -> (minimum, maximum) in real units. Defaults to
            those of the record.
        calibration: Samples, one array `(samples, ...)` for each input, to measure the remaining
            ranges on; at most 500, evenly spaced, are used. Optional if training learnt all of
            them.
        record: Record for the artifact. Defaults to the source's.
        dense_per_channel: Per-channel weight scales for Dense layers (one per unit) instead of
            per-tensor ones: more exact, but 8 more bytes per unit, and older TensorFlow Lite Micro
            and NPUs cannot run it. Defaults to None: only if training simulated it, or if a Dense
            layer followed by BatchNormalization shares values. Convolutions are always per-channel.
        allow_float: Keep an operator without an int8 form in float and say so in the notes, instead
            of refusing the model. Inputs and outputs are int8 in either case. Defaults to True.
        verbose: Let the quantizer's log through. Defaults to False.
        weight_scales: `"tensor"`: the weights of every kernel use a single scale, apart from the
            factors of folded BatchNormalization; Dense layers only if `dense_per_channel` is None.
            `"channel"`: each output channel of a convolution has its own scale. `"auto"`:
            `"tensor"` for kernels that share few values and get fewer codes that way
            (`core.shared_values`), `"channel"` for all others, as QuantizationAwareTraining
            simulates. Defaults to `"auto"`.
        precision: The number format. Defaults to int8.
        per_layer: Regular expression -> precision of the weights of layers whose whole name it
            matches. Defaults to what training simulated, or else to what `precision` chooses by
            place, e.g. 8 bits for the first layer of int4.
        keep: Layers that stay in float or get int16 activations; an output that such a layer
            computes has its type. Defaults to none.

    Returns:
        The file, with the precision's name as its kind; its notes say what was calibrated, what
        stayed in float, and whether the file did not get smaller.

    Raises:
        ArgumentError: ranges are missing and there is no calibration, or `weight_scales` is
            unknown.
        ConversionError: the quantizer refuses the model, or float operators remain although not
            allowed.

    Example:
        >>> small = convert(float_result, calibration=[x[:200]])  # doctest: +SKIP
        >>> small.notes  # doctest: +SKIP
        ('All ranges were measured on 200 calibration samples.',)
    """
    if weight_scales not in WEIGHT_SCALES:
        raise ArgumentError("weight_scales", f"be {', '.join(WEIGHT_SCALES)}", weight_scales)
    record = record if record is not None else source.artifact.record
    precision = Int8() if precision is None else precision
    if ranges is None:
        ranges = record.ranges if record is not None else {}
    flat = source.artifact.flat
    if flat.subgraphs > 1:
        raise ConversionError(
            f"The model has a loop ({', '.join(_loops(flat))}), which the quantizer cannot follow. "
            "Only Keras's recurrent layers with a fixed number of time steps can be unrolled."
        )
    if not precision.trains:
        return _weights_only(source, precision, per_layer, keep, record, verbose)
    notes: list[str] = []
    outdated = record.outdated if record is not None else ()
    known = ranges if record is None else record.ranges
    rounded = {source.tap_tensors[tap] for tap in known if tap in source.tap_tensors}
    inner = inner_tensors(flat, rounded) if precision.activation_bits == 8 else set()
    by_tensor = tensor_ranges(flat, source, ranges, calibration, notes, outdated, precision, inner)
    trained = _trained_quantized(record)
    one_scale = not precision.weight_axes((-1,), 2)
    if dense_per_channel and one_scale:
        raise ArgumentError(
            "dense_per_channel",
            f"be False or None with {precision.name}",
            dense_per_channel,
            "TensorFlow Lite Micro runs such Dense layers with one scale only.",
        )
    exceptions = filter_precisions(source, precision, per_layer, record)
    chosen = kept_operators(source, keep or Kept(), precision)
    # Dense layers of a file of fewer bits that keep 8 are rounded as in int8.
    per_channel = trained and (not one_scale or precision.stored_bits < 8)
    if dense_per_channel is not None:
        per_channel = dense_per_channel
    stepping = source.stepping
    one_by_one = precision.activation_bits == 8 and stepping is None
    kept = float_inputs(flat, by_tensor, calibration) if one_by_one else ()
    notes += [part.note for part in kept]
    whole, flat = flat, without(flat, kept)
    editor = _quantize(
        flat, by_tensor, precision, exceptions, chosen, rounded, per_channel, notes, verbose
    )
    cells = learnt_cells(source.lstms, ranges)
    cells |= largest_cells(whole, calibration, stepping, cells)
    editor = take_stand_ins(editor, flat, cells, limited=stepping is None)
    exceptions = {name: own for name, own in exceptions.items() if name not in chosen}
    notes += [*notes_on(precision, exceptions, source.lstms.values()), *chosen.notes(whole)]
    if trained:
        notes += folded_dense(source, precision, exceptions)
    own = exceptions | {name: (Place(name, ""), Int16x8()) for name in chosen.int16}
    learnt = trained_scales(source, precision, record)
    settled = choose_scales(editor, flat, source.kernels, precision, own, learnt)
    if weight_scales != "channel":
        always = weight_scales == "tensor"
        # If the user or the precision decided on Dense layers, the quantizer has applied it.
        decided = dense_per_channel is not None or one_scale
        codes = FILTER_READERS - {_DENSE} if decided else FILTER_READERS
        notes += share_scales(
            editor,
            flat,
            source.kernels,
            codes,
            always or one_scale_each(source, precision, exceptions),
            settled,
        )
    notes += _other_training(precision, record)
    if trained and weight_scales != "auto":
        notes.append(
            f"weight_scales={weight_scales!r} is not what training simulated: predictions of the "
            "file may differ from those of training."
        )
    put_before(editor, whole, kept)
    editor.strip(keep_names="computed")
    artifact = Artifact(precision.name, editor.pack(), source.artifact.source, record)
    fitting = fit_biases(artifact.flat, flat)
    if fitting is not None:
        artifact = Artifact(precision.name, fitting, source.artifact.source, record)
    notes += _float_left(
        artifact.flat, allow_float, precision, [part.name for part in kept], chosen.floating
    )
    notes += _wide_tables(flat, artifact.flat, precision)
    if stepping is not None:
        check_states(artifact.flat, stepping)
    return artifact.having(notes=(*notes, *_no_smaller(artifact, source)))


def _weights_only(
    source: Float32Result,
    precision: Precision,
    per_layer: Mapping[str, Precision] | None,
    keep: Kept | None,
    record: CompressionRecord | None,
    verbose: bool,
) -> Artifact:
    """Returns the file of a precision that needs no ranges."""
    kept_operators(source, keep or Kept(), precision)
    if per_layer:
        raise ArgumentError(
            "per_layer",
            f"be left out with {precision.name}",
            ", ".join(per_layer),
            "It combines precisions with integer activations.",
        )
    editor = narrow_weights(source.artifact.flat, precision, verbose)
    editor.strip(keep_names="computed")
    artifact = Artifact(precision.name, editor.pack(), source.artifact.source, record)
    notes = _other_training(precision, record) + float_weights_left(artifact.flat, precision.name)
    return artifact.having(notes=(*notes, *_no_smaller(artifact, source)))


def _wide_tables(flat: FlatModel, made: FlatModel, precision: Precision) -> list[str]:
    """Returns a note on the tables of Embedding layers, which have 8 bits in files of fewer.

    Args:
        flat: The float file.
        made: The file made from it.
        precision: Of its weights.
    """
    if precision.stored_bits >= 8:
        return []
    lookups = [o for o in flat.operators if o.code == _LOOKUP and _constant(flat, o)]
    names = {flat.output(operator).name for operator in lookups}
    found = [
        made.output(operator).name
        for operator in made.operators
        if operator.code == _LOOKUP and made.output(operator).name in names
    ]
    if not found:
        return []
    return [
        f"Tables in int8 instead of {precision.name}: {', '.join(found)}. Of all engines, only "
        "LiteRT looks up narrower ones."
    ]


def _constant(flat: FlatModel, operator: Operator) -> bool:
    table = flat.tensor(operator, 0)
    return table is not None and table.is_constant and table.type == "FLOAT32"


def _other_training(precision: Precision, record: CompressionRecord | None) -> list[str]:
    training = trained_precision(record)
    if training is None or training.name == precision.name:
        return []
    steps = () if record is None else record.steps
    trained = any(step.get("technique") == QAT for step in steps)
    what = "Training simulated" if trained else "The model was quantized for"
    than = "those of training" if trained else "what was simulated"
    return [
        f"{what} {training.name}, the file is {precision.name}: its predictions may differ from "
        f"{than}."
    ]


def _no_smaller(artifact: Artifact, source: Float32Result) -> list[str]:
    if len(artifact.data) < len(source.artifact.data):
        return []
    return [
        f"The {artifact.kind} file ({format_size(len(artifact.data))}) is no smaller than the "
        f"float file ({format_size(len(source.artifact.data))})."
    ]


@dataclass(frozen=True)
class Int8Options:
    """The options of the format `int8`.

    Attributes:
        precision: The number format of weights and activations.
        per_layer: Regular expression -> number format of the weights of the layers it matches.
        input_type: The type of the inputs, or types by name or position.
        output_type: The same for the outputs.
        recurrent: How LSTM layers are written, see `recurrent_forms`.
        streaming: Whether the files take a few time steps at once, see `streaming`.
        keep_float: Regular expressions for layers that stay in float.
        keep_int16: Regular expressions for layers with int16 activations.
        sensitivity: Whether the damage of each layer is measured.
        techniques: Techniques of post-training quantization, tried in this order.
    """

    precision: Precision | None = option(
        None,
        "Number format of weights and activations.",
        Named(names=PRECISIONS),
        unset="as trained, else int8",
    )
    per_layer: Mapping[str, Precision] | None = option(
        None,
        "Number format of the weights of layers whose whole name matches a regular expression.",
        ByName("REGEX=NAME", "be REGEX= and the name of a precision", Named(names=PRECISIONS)),
        unset="as trained, else as the precision chooses",
    )
    input_type: str | Mapping[str, str] | None = option(
        None,
        "Type of the inputs, by name or position if they differ.",
        by_name(Choice("TYPE", names=TYPES), "INPUT"),
        unset="the precision's",
    )
    output_type: str | Mapping[str, str] | None = option(
        None,
        "Type of the outputs, by name or position if they differ.",
        by_name(Choice("TYPE", names=TYPES), "OUTPUT"),
        unset="the precision's",
    )
    recurrent: str = option(
        "auto",
        "LSTM layers as one operator each (fused), as operators for each time step (unrolled), or "
        "in whichever form is smaller (auto).",
        Choice("FORM", names=FORMS),
    )
    streaming: bool = option(
        False,
        "Files that read one time step (or as many as the strides need) in each inference and keep "
        "what they must remember as states.",
        Flag(),
    )
    keep_float: Sequence[str] = option(
        (),
        "Layers that stay in float: a regular expression for their whole names.",
        many(Text("REGEX")),
    )
    keep_int16: Sequence[str] = option(
        (),
        "Layers with int16 activations in an int8 or int4 file: a regular expression for their "
        "whole names.",
        many(Text("REGEX")),
    )
    sensitivity: bool = option(
        False,
        "Measure the damage of each layer alone, and search the cheapest layers to keep in int16 "
        "or float for a limit of accuracy.",
        Flag(),
    )
    techniques: Sequence[Technique] = option(
        (),
        "Technique of post-training quantization, tried in the order given, and kept where it "
        "brings the outputs closer to float.",
        many(Named(names=TECHNIQUES)),
        flag="--technique",
    )


def _precision(request: FormatRequest) -> Precision | None:
    """Returns the precision that was asked for or trained."""
    chosen: Precision | None = request.options.precision or trained_precision(_record(request))
    return chosen


def _record(request: FormatRequest) -> CompressionRecord | None:
    return request.loaded.record if request.loaded else None


def _form(
    options: Int8Options, precision: Precision | None, record: CompressionRecord | None
) -> str:
    """Returns the form of LSTM layers, after making sure that the file can have it."""
    keep = options.keep_float or options.keep_int16
    may = fuses_lstm(precision or Int8(), record)
    if options.per_layer or keep or not may:
        if options.recurrent == "fused":
            raise ArgumentError(
                "--recurrent", "be auto or unrolled unless LSTM layers are int8", "fused",
                "The fused operator has int8 weights and activations alone.",
            )  # fmt: skip
        return "unrolled"
    return options.recurrent


def sources(request: FormatRequest) -> Sources | None:
    """Returns the float files; None with options that go back to the Keras model."""
    options: Int8Options = request.options
    if options.techniques or options.streaming or options.sensitivity:
        return None
    precision = _precision(request)
    kind = Int8.name if precision is None else precision.name
    return Sources(kind, float_files(request, _form(options, precision, _record(request))))


@register("int8", summary="integer weights and activations", options=Int8Options, sources=sources)
def make(request: FormatRequest) -> FormatResult:
    """Makes the float32 and the int8 file."""
    _check_sensitivity(request.options)
    precision = _precision(request)
    per_layer = request.options.per_layer
    found, said = None, tuple[str, ...]()
    if techniques := request.options.techniques:
        request, precision, said = quantized(request, techniques, precision, per_layer)
        per_layer = None  # As quantized: the record has it.
    keep = Kept(tuple(request.options.keep_float), tuple(request.options.keep_int16))
    given = dataclasses.replace(request.options, per_layer=per_layer)
    form = _form(given, precision, _record(request))
    if request.options.streaming:
        floats, plain = make_streaming(
            request,
            form != "unrolled",
            lambda job, fused, stepping: make_int8(
                job, precision, per_layer, fused, stepping, keep
            ),
        )
    else:
        floats, plain = choose_form(
            request, form, lambda fused: make_int8(request, precision, per_layer, fused, keep=keep)
        )
    if request.options.sensitivity:
        from edgecompress.converters import sensitivity

        found = sensitivity.measure(request, floats, precision, per_layer, keep)
    named = with_interface(plain, request.options.input_type, request.options.output_type)
    shipped = strip_names(named)
    return FormatResult(
        artifacts=(floats.artifact, shipped),
        main=shipped,
        # A streaming file's states differ from sample to sample.
        layers=None if floats.stepping else (named, floats.artifact),
        notes=(*said, *floats.artifact.notes, *shipped.notes),
        sensitivity=found,
    )


def _check_sensitivity(options: Int8Options) -> None:
    """Refuses what changes the layers before they are measured."""
    for flag, given in (("--streaming", options.streaming), ("--technique", options.techniques)):
        if options.sensitivity and given:
            raise ArgumentError(
                "--sensitivity", f"be left out with {flag}", True,
                "It measures the layers of the float model, each in one inference.",
            )  # fmt: skip


def strip_names(artifact: Artifact) -> Artifact:
    """Returns the artifact without the names of inner tensors, which only comparisons need.

    Tensor numbers stay as they are. Its `flat` still has the names, for checks to use.
    """
    return artifact.having(data=strip(artifact.flat)).read_as(artifact.flat)


def _trained_quantized(record: CompressionRecord | None) -> bool:
    steps = () if record is None else record.steps
    return any(step.get("technique") in QUANTIZED_BY for step in steps)


def _loops(flat: FlatModel) -> list[str]:
    return [flat.output(o).name for o in flat.operators if o.code in ("WHILE", "IF", "CALL_ONCE")]


def _quantize(
    flat: FlatModel,
    ranges: Mapping[str, tuple[float, float]],
    precision: Precision,
    exceptions: Mapping[str, tuple[Place, Precision]],
    keep: KeptOperators,
    rounded: Collection[str],
    dense_per_channel: bool,
    notes: list[str],
    verbose: bool,
) -> ModelEditor:
    """Returns the quantizer's file, including operators that the quantizer does not support."""
    prepared = put_stand_ins(flat)
    masks = narrowed(prepared, ranges)
    statistics = {
        name: {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)}
        for name, (low, high) in masks.ranges.items()
    }
    stand_ins = put(prepared, precision.activation_bits, masks.constants, keep.floating, rounded)
    notes += stand_ins.notes
    try:
        with suppress_output(verbose):
            from litert_quantizer import Quantizer, qtyping

            quantizer = Quantizer(stand_ins.data, precision.recipe())
            # It iterates over signatures when it changes an output.
            quantizer._float_model.signatureDefs = []
            # It loads the file into an interpreter to look for empty ranges. None is.
            quantizer._ensure_model_qsv_sufficient = lambda statistics: None
            if exceptions or precision.stored_bits < 8:
                configure(quantizer, flat, precision, exceptions, dense_per_channel)
            elif not dense_per_channel:
                quantizer.add_static_config(
                    ".*", qtyping.TFLOperationName.FULLY_CONNECTED,
                    activation_num_bits=precision.activation_bits,
                    weight_num_bits=precision.weight_bits,
                    weight_granularity=qtyping.QuantGranularity.TENSORWISE,
                )  # fmt: skip
            tell(quantizer, keep, {flat.output(o).name: o.code for o in flat.operators})
            quantized = bytes(quantizer.quantize(statistics).quantized_model)
    # For models it cannot handle, the quantizer raises ValueError, RuntimeError or KeyError.
    except Exception as error:
        raise ConversionError(f"The model could not be quantized: {one_line(error)}") from error
    return take(quantized, stand_ins)


def _float_left(
    flat: FlatModel,
    allow_float: bool,
    precision: Precision,
    kept: Sequence[str] = (),
    wanted: Collection[str] = (),
) -> list[str]:
    """Returns a note on each operator left in float; refuses float inputs and outputs.

    Args:
        flat: The quantized file.
        allow_float: Whether operators may be left.
        precision: Its precision.
        kept: Names of the inputs that are meant to be float.
        wanted: Names of the outputs of operators that are meant to be float.
    """
    kind = f"INT{precision.activation_bits}"
    scaling = _scaling_of(flat, kept)
    left = [
        operator
        for operator in flat.operators
        if operator.code not in _BOUNDARY
        and operator.index not in scaling
        and flat.output(operator).name not in wanted
        and any(flat.tensors[i].type.startswith("FLOAT") for i in _used(operator))
    ]
    reasons = [
        f"{operator.name} ({flat.output(operator).name}) stays in float with conversions around "
        f"it: the quantizer has no {kind.lower()} form of it."
        for operator in left
    ]
    for what, indices in (("input", flat.inputs), ("output", flat.outputs)):
        for index in indices:
            tensor = flat.tensors[index]
            if tensor.type.startswith("FLOAT") and tensor.name not in (*kept, *wanted):
                why = " ".join(reasons) or "The quantizer left it so."
                raise ConversionError(
                    f"The model's {what} {tensor.name!r} would be {tensor.type}, not {kind}. {why}"
                )
    if reasons and not allow_float:
        raise ConversionError(
            f"The model cannot be {precision.name} throughout. {' '.join(reasons)}"
        )
    return reasons


def _scaling_of(flat: FlatModel, kept: Sequence[str]) -> set[int]:
    """Returns the operators between the inputs that are meant to be float and their QUANTIZE."""
    reached = {i for i in flat.inputs if flat.tensors[i].name in kept}
    found = set()
    for operator in flat.operators:
        if operator.code not in _BOUNDARY and reached.intersection(operator.inputs):
            found.add(operator.index)
            reached.update(operator.outputs)
    return found


def _used(operator: Operator) -> list[int]:
    return [i for i in (*operator.inputs, *operator.outputs) if i >= 0]
