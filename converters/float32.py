"""Keras model -> float32 flatbuffer: batch 1, BatchNorm folded, built-in operators only.

The model is traced at batch 1 and its weights are frozen into the graph before conversion: faster
than TFLiteConverter.from_keras_model, free of variables, and with every shape fixed. The file is
then run against the model, which also locates the tensor of each tap by value.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from edgecompress.converters.calibration import tensor_values
from edgecompress.converters.fused_lstm import has_marks, layers_of_lstms, replace_marks
from edgecompress.converters.infinite_constants import without_infinities
from edgecompress.converters.layer_paths import layer_names, layer_of
from edgecompress.converters.lean_freezing import lean_freezing
from edgecompress.converters.loaders import LoadedModel, example_inputs, wrap
from edgecompress.converters.portable.base import PORTABLE, Rewritten, rewritten
from edgecompress.core.errors import ConversionError, UnsupportedModelError, few, one_line
from edgecompress.core.freed_memory import give_back
from edgecompress.core.inner_kernels import inner_kernels
from edgecompress.core.keras_graph import functional_of, name_scopes_kept, walk_layers
from edgecompress.core.layer_kinds import int8_kernels
from edgecompress.core.learnt_ranges import own_means
from edgecompress.core.shared_values import channels_first, fold_factors, shares_values
from edgecompress.core.suppress_output import suppress_output
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, channel_axis
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.stepping import Stepping

KIND = "float32"
# Relative to the largest value: BatchNorm folding and different summation orders stay far below.
_TOLERANCE = 1e-3
# A wrong file is wrong on every sample. In a correct one with binary layers, the sign of a value
# that is zero up to rounding may flip, and everything after it with it.
_PROBES = 16
_TRIES = 3
# Operators that give a tensor another shape only.
_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_TYPES = ("float32", "int32", "int64", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Float32Result:
    """A float flatbuffer, and which tensors carry the model's taps.

    Attributes:
        artifact: The file. Its tensors are named after taps or layers, so that a file quantized
            from it can be compared layer by layer.
        tap_tensors: Tap -> name of the tensor that carries it.
        kernels: Name of a filter -> the layer's own kernel in the filter's layout, if the file
            holds a different one because BatchNormalization was folded into it, `W_c = g_c * w_c`.
        owners: Name of a filter -> the kernel it holds, `<layer>/<attribute>`.
        lstms: Name of a fused LSTM's output -> its name in `core.lstm_layers.lstm_parts`.
        stepping: How a streaming file runs over a sequence; None for other files.
    """

    artifact: Artifact
    tap_tensors: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    owners: Mapping[str, str] = field(default_factory=dict, repr=False)
    stepping: Stepping | None = None
    lstms: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Makes the mappings read-only."""
        object.__setattr__(self, "tap_tensors", MappingProxyType(dict(self.tap_tensors)))
        object.__setattr__(self, "kernels", MappingProxyType(dict(self.kernels)))
        object.__setattr__(self, "owners", MappingProxyType(dict(self.owners)))
        object.__setattr__(self, "lstms", MappingProxyType(dict(self.lstms)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles it with ordinary mappings."""
        mappings = (dict(self.tap_tensors), dict(self.kernels), dict(self.owners))
        return Float32Result, (self.artifact, *mappings, self.stepping, dict(self.lstms))


class Trace:
    """A model with its graph at batch 1, traced on first use.

    Converters take it in place of a model, so that several of them trace the model once. The graph
    holds the weights as they were then.

    Args:
        model: A LoadedModel or a Keras model.
        fused: Whether LSTM layers become one operator where possible. Only the file then computes
            what the model does; the graph has markers (`fused_lstm`). Defaults to False.
    """

    def __init__(self, model: Any, fused: bool = False) -> None:
        self.loaded: LoadedModel = wrap(model)
        self.fused = fused
        self.notes: tuple[str, ...] = ()

    @functools.cached_property
    def concrete(self) -> Any:
        """The model as a TensorFlow function; see `concrete_function`."""
        function, self.notes = concrete_function(self.loaded, self.fused)
        return function

    @functools.cached_property
    def frozen(self) -> Any:
        """The same function with its weights as constants."""
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        return convert_variables_to_constants_v2(self.concrete)


def traced(model: Any) -> Trace:
    """Returns the trace of a LoadedModel or a Keras model; a trace as it is."""
    return model if isinstance(model, Trace) else Trace(model)


def convert(
    model: Any,
    taps: bool = True,
    verbose: bool = False,
    unwanted: Collection[str] = (),
) -> Float32Result:
    """Converts a model to a float32 flatbuffer.

    Equal models give equal bytes, in any process.

    Args:
        model: A LoadedModel, a Keras model or a Trace; every dimension but the batch must be
            fixed.
        taps: Locate the tensors of the taps; needs a Keras 3 Sequential or Functional model, others
            get none and a note. Defaults to True.
        verbose: Let TensorFlow's log through. Defaults to False.
        unwanted: Names of rewrites (`portable`) that are left out, unless the model has learnt
            ranges: it was trained with them. Defaults to none.

    Returns:
        The file, `Artifact(kind="float32")`, and the taps' tensors.

    Raises:
        UnsupportedModelError: the model has open dimensions or inputs of no known type.
        ConversionError: an operator has no built-in form, or the file computes something different
            from the model.

    Example:
        >>> result = convert(load_model("model.keras"))  # doctest: +SKIP
        >>> len(result.artifact.data)  # doctest: +SKIP
        319688
    """
    trace = traced(model)
    loaded = trace.loaded
    check_inputs(loaded)
    own = own_means(loaded.record)
    if loaded.record is not None and loaded.record.ranges:
        unwanted = ()
    names = layer_names(loaded)
    made = rewritten(
        read_tflite(to_flatbuffer(trace, verbose)),
        keep=lambda name, output: (
            name in unwanted
            or (name == "means" and (layer_of(output, names) or "").rpartition("/")[2] in own)
        ),
    )
    raw, notes = made.flat, [*trace.notes]
    # Its graph, unless the caller needs it for another file.
    del model, trace
    give_back()
    sample, values = _compared(loaded, raw)
    give_back()
    tensors: dict[str, int] = {}
    if taps:
        tensors = _find_taps(loaded, raw, values, sample, notes)
    # The values of all tensors, and those of the taps.
    del values
    give_back()
    folded, owners = _match_kernels(loaded, raw, notes)
    named = _tensor_names(loaded, raw, tensors)
    notes += _rewrites(loaded, made)
    editor = ModelEditor(raw)
    editor.rename(lambda graph, index: named.get((graph, index), f"subgraph_{graph}/{index}"))
    editor.strip(keep_names="all")
    return Float32Result(
        Artifact(KIND, editor.pack(), str(loaded.path or loaded.name), loaded.record, tuple(notes)),
        {tap: named[0, index] for tap, index in tensors.items()},
        {named[0, index]: kernel for index, kernel in folded.items()},
        {named[0, index]: owner for index, owner in owners.items()},
        lstms={named[0, index]: name for index, name in layers_of_lstms(loaded, raw).items()},
    )


def _rewrites(loaded: LoadedModel, made: Rewritten) -> list[str]:
    """Returns a note on each rewrite that applied, with the layers it applied in."""
    layers, notes = layer_names(loaded), []
    for name, outputs in made.places.items():
        places = dict.fromkeys(layer_of(output, layers) or output for output in outputs)
        notes.append(f"{PORTABLE[name].note}, which computes the same, in {few(list(places))}.")
    return notes


def check_inputs(loaded: LoadedModel) -> None:
    """Refuses a model whose inputs have open dimensions or a type that files do not support."""
    for spec in loaded.inputs:
        if any(size is None for size in spec.shape):
            raise UnsupportedModelError(
                f"Input {spec.name!r} of model {loaded.name!r} has open dimensions {spec.shape}: a "
                "flatbuffer for devices has fixed shapes. Build the model with keras.Input(shape) "
                "of the shape the device will feed."
            )
        if spec.dtype not in _TYPES:
            raise UnsupportedModelError(
                f"Input {spec.name!r} of model {loaded.name!r} takes {spec.dtype}; supported are "
                f"{', '.join(_TYPES)}. Convert outside the model."
            )


def concrete_function(loaded: LoadedModel, fused: bool = False) -> tuple[Any, tuple[str, ...]]:
    """Returns a model as a TensorFlow function at batch 1, and notes.

    Binary layers become constants of their signs; recurrent layers have no loop (`recurrent`).
    """
    import tensorflow as tf

    from edgecompress.converters.recurrent import without_loops
    from edgecompress.layers.binary import frozen_kernels

    signature = [
        tf.TensorSpec((1, *spec.shape), spec.dtype, name=f"input_{position}")
        for position, spec in enumerate(loaded.inputs)
    ]
    traced = tf.function(lambda *tensors: loaded.call(tensors), input_signature=signature)
    rewritten: contextlib.AbstractContextManager[list[str]] = contextlib.nullcontext([])
    if loaded.flavour == "keras3":
        rewritten = without_loops(loaded.model, fused)
    with frozen_kernels(), name_scopes_kept(), rewritten as notes:
        return traced.get_concrete_function(), tuple(notes)


def to_flatbuffer(model: LoadedModel | Trace, verbose: bool = False) -> bytes:
    """Returns the float flatbuffer of a model as TensorFlow's converter makes it.

    Raises:
        ConversionError: an operator has no built-in form.
    """
    trace, concrete = traced(model), None
    loaded = trace.loaded
    try:
        with suppress_output(verbose):
            concrete = trace.concrete
            marked = has_marks(concrete)
            data = _converted(concrete, marked) or _converted(concrete, marked, whole=True)
            return replace_marks(data) if marked else data
    # The converter raises its own error type and, for models it cannot trace, any other.
    except Exception as error:
        raise ConversionError(
            f"Model {loaded.name!r} could not be converted: {_reason(error, concrete, loaded)}"
        ) from error


def _converted(concrete: Any, marked: bool, whole: bool = False) -> bytes:
    """Returns the file of a function; empty if a kernel that was left out is not in it.

    Args:
        concrete: The function.
        marked: Whether it has markers of fused LSTMs.
        whole: Leave no kernel out (`lean_freezing`). Defaults to False.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], None)
    # By way of a SavedModel, a Keras 3 model converts without an error, but to a file whose
    # variables have no values. This way the converter freezes them, once.
    converter.experimental_lower_to_saved_model = False
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.allow_custom_ops = marked
    # It would be unpacked and packed once more for metadata that are removed here.
    converter.exclude_conversion_metadata = True
    # Nor are its buffers copied into the flatbuffer, to be searched for equal ones.
    converter._experimental_use_buffer_offset = True
    # `without_infinities` does that in a fraction of the time.
    converter.canonicalizing_inf_as_min_max_float = False
    with lean_freezing(whole) as frozen:
        data = frozen.completed(bytes(converter.convert()))
    del converter, frozen
    give_back()
    return without_infinities(data) if data else b""


def _reason(error: Exception, concrete: Any, loaded: LoadedModel) -> str:
    """Explains in one line what stopped the converter, naming operators and their layers."""
    refused = re.search(r"'(.*)/?' is not a valid (?:root )?scope name", str(error), re.DOTALL)
    if refused is not None:
        # The trace indents what follows a line break.
        name = refused[1].rstrip("/").replace("\n    ", "\n")
        return (
            f"TensorFlow's graphs do not take the name {name!r} of the model or "
            "of a layer. A name has letters of English, digits, and _ . - alone, a model's begins "
            "with a letter or digit: give it another, name=..."
        )
    missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
    if not missing or concrete is None:
        return one_line(error)
    parts = []
    graph = concrete.graph.as_graph_def()
    all_nodes = [*graph.node, *(n for inner in graph.library.function for n in inner.node_def)]
    for operator in missing:
        nodes = [n.name for n in all_nodes if n.op == operator]
        layers = sorted({layer for n in nodes if (layer := layer_of(n, layer_names(loaded)))})
        parts.append(f"{operator} (layer {', '.join(layers)})" if layers else operator)
    return (
        f"no built-in operator exists for {', '.join(parts)}. Replace the layer by one made of "
        "supported operations."
    )


def _compared(
    loaded: LoadedModel, raw: FlatModel
) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
    """Returns a random sample on which file and model agree, and the file's tensors on it."""
    for seed in range(_TRIES):
        sample = example_inputs(loaded.inputs, seed=seed)
        values = tensor_values(raw, [array[0] for array in sample])
        difference = _difference(loaded, raw, values, sample)
        if difference is None:
            return sample, values
    raise ConversionError(difference)


def _difference(
    loaded: LoadedModel,
    raw: FlatModel,
    values: Mapping[int, np.ndarray],
    sample: Sequence[np.ndarray],
) -> str | None:
    """Says in one sentence where the file's outputs differ from the model's; None if nowhere."""
    expected = loaded.predict(sample)
    if len(expected) != len(raw.outputs):
        return (
            f"Model {loaded.name!r} has {len(expected)} outputs, its flatbuffer {len(raw.outputs)}."
        )
    for position, (want, index) in enumerate(zip(expected, raw.outputs, strict=True)):
        have = values.get(index)
        # Integer outputs are not compared by tolerance and stay unchecked here.
        if have is None:
            continue
        error = _distance(want, have) if want.shape == have.shape else np.inf
        if error > _TOLERANCE:
            return (
                f"The float flatbuffer of model {loaded.name!r} computes another output "
                f"{position}: its relative error on random data is {error:.2g}."
            )
    return None


def _distance(want: np.ndarray, have: np.ndarray) -> float:
    """Returns the largest difference relative to the largest value; infinity for NaN."""
    if not np.isfinite(want).all():
        return 0.0 if np.array_equal(np.isfinite(want), np.isfinite(have)) else np.inf
    error = float(np.abs(want.astype(np.float64) - have).max(initial=0)) / _scale(want)
    return np.inf if np.isnan(error) else error


def _scale(values: np.ndarray) -> float:
    return max(float(np.abs(values).max(initial=0)), 1e-6)


def _find_taps(
    loaded: LoadedModel,
    raw: FlatModel,
    values: Mapping[int, np.ndarray],
    sample: Sequence[np.ndarray],
    notes: list[str],
) -> dict[str, int]:
    """Returns the tensor index of each tap, found by value on one random sample."""
    inputs = {f"input:{position}": index for position, index in enumerate(raw.inputs)}
    if loaded.flavour != "keras3":
        return inputs
    from edgecompress.core.fusion import find_taps
    from edgecompress.core.operator_copy import tap_model

    try:
        model = functional_of(loaded.model)
        tapped = wrap(tap_model(model))
    except UnsupportedModelError as error:
        notes.append(f"Ranges are set for the whole file, not by layer of the Keras model: {error}")
        return inputs
    # Named outputs come in the order of the names; taps are in execution order.
    by_name = dict(zip(sorted(tapped.model.output), tapped.predict(sample), strict=True))
    wanted = {tap.name: by_name[tap.name] for tap in find_taps(model) if tap.layer}
    others = {i: v for i, v in values.items() if i not in raw.inputs}
    views = {o.outputs[0]: o.inputs[0] for o in raw.operators if o.code in _VIEWS}
    return inputs | match_by_value(wanted, others, views)


def match_by_value(
    wanted: Mapping[str, np.ndarray],
    values: Mapping[int, np.ndarray],
    views: Mapping[int, int] = MappingProxyType({}),
) -> dict[str, int]:
    """Returns for each tap the tensor that holds its value.

    The nearest tensor of the same shape (or of the same size: converters drop reshapes) is used if
    its error is below 0.1 % of the largest value. Taps with equal values (a ReLU of positive
    values, dead layers) get the tensors with that value in the order of execution; if the counts
    differ and there is more than one tensor, none.

    Args:
        wanted: Tap -> value, in order of execution.
        values: Tensor index -> value, in order of execution.
        views: Tensor -> the tensor whose values it has in another shape; of the two, that one is
            found. Defaults to none.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    by_size: dict[int, list[int]] = {}
    for index, value in values.items():
        by_shape.setdefault(value.shape, []).append(index)
        by_size.setdefault(value.size, []).append(index)
    probes: dict[tuple[int, ...] | int, np.ndarray] = {}
    candidates = {}
    for tap, want in wanted.items():
        key: tuple[int, ...] | int = want.shape if want.shape in by_shape else want.size
        same = by_shape[key] if isinstance(key, tuple) else by_size.get(key, [])
        if key not in probes:
            probes[key] = np.array([_probe(values[i]) for i in same])
        nearest = _nearest(want, _near(want, same, probes[key]), values)
        candidates[tap] = tuple(i for i in nearest if views.get(i) not in nearest)
    groups: dict[tuple[int, ...], list[str]] = {}
    for tap, tensors in candidates.items():
        groups.setdefault(tensors, []).append(tap)
    found: dict[str, int] = {}
    for tensors, taps in groups.items():
        if len(tensors) == 1:
            found |= dict.fromkeys(taps, tensors[0])
        elif len(tensors) == len(taps):
            found |= dict(zip(taps, tensors, strict=True))
    return {tap: found[tap] for tap in wanted if tap in found}


def _probe(values: np.ndarray) -> np.ndarray:
    """Returns a few of the values."""
    flat = values.ravel()
    count = min(_PROBES, flat.size)
    return flat[np.arange(count) * flat.size // max(count, 1)].astype(np.float64)


def _near(want: np.ndarray, tensors: Sequence[int], probes: np.ndarray) -> list[int]:
    """Returns the tensors that are not too far off at the probes: comparing a few values is cheap.

    A network of a thousand operators has a million pairs of a tap and a tensor.
    """
    if not tensors or not np.isfinite(want).all():
        return list(tensors)
    far = np.abs(probes - _probe(want)).max(axis=1, initial=0) > _TOLERANCE * _scale(want)
    return [index for index, is_far in zip(tensors, far, strict=True) if not is_far]


def _nearest(
    want: np.ndarray, tensors: Sequence[int], values: Mapping[int, np.ndarray]
) -> tuple[int, ...]:
    if not tensors:
        return ()
    errors = {i: _distance(want.ravel(), values[i].ravel()) for i in tensors}
    best = min(tensors, key=lambda i: errors[i])
    if errors[best] > _TOLERANCE:
        return ()
    return tuple(i for i in tensors if np.array_equal(values[i].ravel(), values[best].ravel()))


def _match_kernels(
    loaded: LoadedModel, raw: FlatModel, notes: list[str]
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Finds the layers' kernels in the file by value.

    Returns:
        The layers' own kernels for filters that hold different ones, and the name of each filter's
        kernel.
    """
    if loaded.flavour == "saved_model":
        return {}, {}
    kernels = [
        (
            layer.name,
            f"{layer.name}/{kernel.attribute}",
            channels_first(np.asarray(kernel.of(layer)), kernel.outputs),
        )
        for layer in walk_layers(loaded.model)
        for kernel in int8_kernels(layer)
    ]
    found: dict[int, np.ndarray] = {}
    owners: dict[int, str] = {}
    lost = {name for name, _, kernel in kernels if shares_values(kernel)}
    kernels += [
        (
            layer.name,
            f"{layer.name}/{kernel.name}",
            channels_first(np.asarray(part), kernel.outputs),
        )
        for layer in walk_layers(loaded.model)
        for kernel in inner_kernels(layer)
        for part in kernel.split(kernel.variable)
    ]
    left = len(kernels)  # Those without a filter yet come first.
    for operator in raw.operators:
        weights = raw.tensor(operator, 1) if operator.code in FILTER_READERS else None
        if weights is None or not weights.is_constant or weights.type != "FLOAT32":
            continue
        axis, values = channel_axis(operator), weights.values()
        rows = channels_first(values, (axis,))
        # Files mostly have the order of the layers: the first kernel left is the likely one. Layers
        # with the same kernel own a filter each; a layer that is used twice has several.
        own = rows
        for number, (name, owner, kernel) in enumerate(kernels):
            same = _same(kernel, rows)
            if same or fold_factors(kernel, rows) is not None:
                own = rows if same else kernel
                lost.discard(name)
                if number < left:
                    owners[weights.index] = owner
                    left -= 1
                    kernels.append(kernels.pop(number))
                break
        if own is not rows:
            shape = np.moveaxis(values, axis, 0).shape
            found[weights.index] = np.moveaxis(own.reshape(shape), 0, axis)
    if lost:
        notes.append(
            f"The weights of {', '.join(sorted(lost))} share few values, but the converter merged "
            "them with an adjacent layer (no activation in between): the file holds more values."
        )
    return found, owners


def _same(kernel: np.ndarray, rows: np.ndarray) -> bool:
    """Returns whether two kernels are equal; most that are not differ in their first channel."""
    return np.array_equal(kernel[:1], rows[:1]) and np.array_equal(kernel, rows)


def _tensor_names(
    loaded: LoadedModel, raw: FlatModel, tensors: Mapping[str, int]
) -> dict[tuple[int, int], str]:
    """Returns a name for each tensor that depends only on the model, not on the process."""
    layers = layer_names(loaded)
    wanted = {index: tap for tap, index in reversed([*tensors.items()]) if index not in raw.inputs}
    wanted |= {index: spec.name for index, spec in zip(raw.inputs, loaded.inputs, strict=True)}
    for operator in raw.operators:
        for index in operator.outputs:
            layer = layer_of(raw.tensors[index].name, layers)
            wanted.setdefault(
                index, f"{layer}/{operator.name.lower()}" if layer else operator.name.lower()
            )
    names: dict[tuple[int, int], str] = {}
    used: set[str] = set()
    for index in [*wanted, *(t.index for t in raw.tensors if t.index not in wanted)]:
        base = name = wanted.get(index, f"constant_{index}")
        count = 1
        while name in used:
            name, count = f"{base}_{count}", count + 1
        used.add(name)
        names[0, index] = name
    return names
