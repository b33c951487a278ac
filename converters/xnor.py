"""Keras model with binary layers -> flatbuffer for Larq Compute Engine: XNOR and popcount.

Two routes lead to `LceBconv2d`, the engine's binary convolution. The engine's own converter takes
the model as a SavedModel with its weights frozen; it also passes bits from one binary layer to the
next. If it fails or misses a layer, the float flatbuffer of TensorFlow's converter is rewritten: a
CONV_2D after a sign, with filters of one magnitude per output, becomes LceBconv2d. A layer that
both routes miss is an ordinary-looking float convolution, so every layer is looked up in the file
by its bits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters import float32
from edgecompress.converters.accuracy import Accuracy, accuracy, top1
from edgecompress.converters.float32 import Trace, check_inputs, to_flatbuffer, traced
from edgecompress.converters.formats import PROCESSES, FormatRequest, FormatResult, register
from edgecompress.converters.loaders import LoadedModel, example_inputs, wrap
from edgecompress.converters.verify import Parity, verify
from edgecompress.converters.xnor_rewriting import QUANTIZE, rewrite
from edgecompress.core.errors import (
    ConversionError,
    EngineError,
    MissingDependencyError,
    UnsupportedModelError,
    one_line,
)
from edgecompress.core.folders import temporary_folder
from edgecompress.core.keras_graph import layer_calls, walk_layers
from edgecompress.core.suppress_output import suppress_output
from edgecompress.core.units import format_size
from edgecompress.engines.registry import LCE, folder_of
from edgecompress.engines.run import engine_available
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import ModelEditor, strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import BINARY_CONV, Operator, binary_kernel_shape
from edgecompress.flatbuffers.reading import read_tflite

KIND = "xnor"
RUNTIME_NOTE = (
    "Only Larq Compute Engine runs this file: LiteRT, TensorFlow Lite and TensorFlow Lite Micro "
    "fail with 'unresolved custom op: LceQuantize'. The app must carry a build of that engine."
)
_WORKER = Path(__file__).with_name("xnor_worker.py")
# Number of samples a new file is run on.
_SAMPLES = 16
# A rounding error before a sign flips a bit, and changes the rest of the network: rare, and not
# evidence of a wrong file. With correct files nearly all samples agree, with wrong ones nearly
# none.
_LEAST_AGREEMENT = 0.75


@dataclass(frozen=True)
class XnorLayer:
    """The outcome for one binary layer.

    Attributes:
        name: The Keras layer's name.
        operators: Indices of the LceBconv2d operators that compute it, one per use.
        uses: How often the model calls the layer.
        reason: Why it has fewer operators than uses, or "".
    """

    name: str
    operators: tuple[int, ...]
    uses: int
    reason: str = ""

    @property
    def is_binary(self) -> bool:
        """Whether every use of the layer runs as XNOR and popcount."""
        return len(self.operators) == self.uses


@dataclass(frozen=True)
class XnorResult:
    """A file for Larq Compute Engine.

    Attributes:
        artifact: `Artifact(kind="xnor")`.
        layers: The model's binary layers in order.
        route: `converter` (Larq's own) or `rewriting` (of the float flatbuffer).
        agreement: Share of `samples` samples on which the file, run in the engine, agreed with the
            Keras model.
        samples: Number of those samples.
        flat: The file before tensor names were removed: a binary convolution's output is named
            after its layer.
    """

    artifact: Artifact
    layers: tuple[XnorLayer, ...]
    route: str
    agreement: float
    samples: int
    flat: FlatModel = field(repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """The artifact's notes."""
        return self.artifact.notes


@dataclass(frozen=True)
class XnorCheck:
    """A file in Larq Compute Engine against its Keras model.

    Attributes:
        parity: Agreement of the outputs.
        accuracy: Top-1 accuracy of the file in the engine; None without labels.
        keras_accuracy: That of the Keras model on the same samples; None without labels.
    """

    parity: Parity
    accuracy: Accuracy | None = None
    keras_accuracy: float | None = None


@register(
    "xnor",
    summary="binary layers for Larq Compute Engine",
    families=PROCESSES,
    why="Larq Compute Engine runs on phones and computers.",
)
def make(request: FormatRequest) -> FormatResult:
    """Makes the float32 file and the one with binary convolutions."""
    request.progress("Converting to a float32 flatbuffer")
    trace = Trace(request.loaded)
    floats = float32.convert(trace, verbose=request.verbose)
    request.progress("Converting to binary convolutions and running them")
    result = convert(trace, samples=request.samples, verbose=request.verbose)
    engine = (
        "Targets are checked as if their app ran Larq Compute Engine. On this computer that engine "
        "shows that the file is correct, not how fast a phone runs it."
    )
    price = (
        f"{len(result.layers)} binary layers: file {format_size(len(floats.artifact.data))} as "
        f"float32, {format_size(len(result.artifact.data))} with binary convolutions."
    )
    # Checks refer to layers by name; the file that ships does not store the names.
    file = result.artifact.read_as(result.flat)
    return FormatResult(
        artifacts=(floats.artifact, file),
        main=file,
        engine=LCE,
        legacy_runtime=False,
        notes=(*floats.artifact.notes, *result.notes, price, engine),
    )


def convert(
    model: Any,
    samples: Sequence[np.ndarray] | None = None,
    allow_float: bool = False,
    verbose: bool = False,
) -> XnorResult:
    """Converts a model with binary layers to a file for Larq Compute Engine.

    Binary layers become LceBconv2d with 32 weights per word; everything else stays float. The file
    is run in the engine before it is returned. Equal models give equal bytes.

    Args:
        model: A LoadedModel, a Keras 3 model or a Trace with BinaryConv2D or BinaryDense layers;
            every dimension but the batch must be fixed.
        samples: Inputs to run the file on, one array `(samples, ...)` for each input; 16 are used.
            Defaults to random ones.
        allow_float: Accept a file in which a layer with binary weights and inputs is nevertheless a
            float convolution, and say so in the notes, instead of refusing. Layers with
            `input_quantizer=None` are always float. Defaults to False.
        verbose: Let TensorFlow's log through. Defaults to False.

    Raises:
        UnsupportedModelError: the model has no binary layer, is not a Keras 3 model, or has open
            dimensions.
        MissingDependencyError: Larq Compute Engine is not installed.
        ConversionError: no route makes a file, a layer stays float, or the file computes something
            different from the model.

    Example:
        >>> result = convert(load_model("binary_net.keras"))  # doctest: +SKIP
        >>> len(result.artifact.data), [layer.operators for layer in result.layers]
        ... # doctest: +SKIP
        (26076, [(2,), (5,), (9,)])
    """
    trace = traced(model)
    loaded = trace.loaded
    layers = _binary_layers(loaded)
    check_inputs(loaded)
    if (missing := engine_available(LCE)) is not None:
        raise MissingDependencyError(missing)
    data, found, route, notes = _best_route(trace, layers, verbose)
    floats = [layer for layer in found if not layer.is_binary]
    if len(floats) == len(found):
        raise ConversionError(
            f"No binary layer of model {loaded.name!r} becomes an XNOR operator: "
            f"{_listed(floats)}. Convert it as an ordinary model."
        )
    left_float = [x for x in floats if layers[x.name].layer.input_quantizer is not None]
    if left_float and not allow_float:
        raise ConversionError(
            f"Binary layers of model {loaded.name!r} would be float convolutions: "
            f"{_listed(left_float)}. Change them, or allow it (allow_float)."
        )
    flat = _named(data, loaded, found)
    small = strip(flat)
    parity = _run(small, loaded, samples)
    notes += [f"Layer {x.name!r} stays float: {x.reason}." for x in floats]
    notes += _padding_notes(layers)
    artifact = Artifact(
        KIND, small, str(loaded.path or loaded.name), loaded.record, (RUNTIME_NOTE, *notes)
    )
    return XnorResult(artifact, found, route, parity.agreement, parity.samples, flat)


def check(
    file: bytes | Artifact | XnorResult,
    model: Any,
    samples: Sequence[np.ndarray],
    labels: np.ndarray | None = None,
) -> XnorCheck:
    """Runs a file in Larq Compute Engine and compares it with its Keras model.

    It compares the winning class and the accuracy, not the output digits: if the input of a sign is
    zero up to rounding, a bit may flip, which changes the outputs.

    Args:
        file: What `convert` returned, or the file's bytes.
        model: The Keras model or LoadedModel.
        samples: One array `(samples, ...)` for each input of the model.
        labels: Class numbers `(samples,)` or one-hot rows. Optional.

    Raises:
        ArgumentError: samples or labels do not fit the model.
        EngineError, MissingDependencyError: see `run_engine`.

    Example:
        >>> found = check(result, model, [x_test], y_test)  # doctest: +SKIP
        >>> found.parity.agreement, float(found.accuracy), found.keras_accuracy  # doctest: +SKIP
        (0.9996, 0.8712, 0.8713)
    """
    if isinstance(file, XnorResult):
        file = file.artifact
    data = file.data if isinstance(file, Artifact) else file
    reference = wrap(model).predict(samples)
    parity = verify(data, reference=reference, samples=list(samples), engine=LCE)
    if labels is None:
        return XnorCheck(parity)
    return XnorCheck(parity, accuracy(data, list(samples), labels, LCE), top1(reference[0], labels))


# --- The model's binary layers -------------------------------------------------------------------


@dataclass(frozen=True)
class _Binary:
    """A binary layer of the model.

    Attributes:
        layer: The Keras layer.
        uses: How often the model calls it.
        negative: Where its weights are negative: (outputs, height, width, channels), as filters are
            laid out in flatbuffers.
    """

    layer: Any
    uses: int
    negative: np.ndarray


def _binary_layers(loaded: LoadedModel) -> dict[str, _Binary]:
    """Returns the binary layers of a model by name, in order."""
    from edgecompress.layers.binary import BinaryConv2D, BinaryDense

    found: dict[str, _Binary] = {}
    if loaded.flavour == "keras3":
        uses = Counter(id(call.layer) for call in layer_calls(loaded.model))
        for outer in walk_layers(loaded.model):
            layer = getattr(outer, "layer", outer)  # TimeDistributed and the like.
            if isinstance(layer, (BinaryConv2D, BinaryDense)):
                name = layer.name
                while name in found:  # Layers of nested models may share a name.
                    name += "'"
                bits = np.moveaxis(layer.kernel_bits(), -1, 0)
                shape = (bits.shape[0], *(1,) * (4 - bits.ndim), *bits.shape[1:])
                found[name] = _Binary(layer, max(uses[id(outer)], 1), bits.reshape(shape) == 0)
    if not found:
        raise UnsupportedModelError(
            f"Model {loaded.name!r} has no BinaryConv2D or BinaryDense layer, so nothing in it can "
            "run as XNOR. Build it with these layers (docs/xnor.md), or export it as int8."
        )
    return found


def _listed(layers: Sequence[XnorLayer]) -> str:
    return "; ".join(f"{layer.name!r}: {layer.reason}" for layer in layers)


def _padding_notes(layers: Mapping[str, _Binary]) -> list[str]:
    zeros = [
        name
        for name, entry in layers.items()
        if getattr(entry.layer, "padding", "") == "same" and entry.layer.input_quantizer
    ]
    if not zeros:
        return []
    return [
        f"Padding with zeros ({', '.join(zeros)}) costs a correction of the border and float "
        'outputs; padding="same_one" keeps bits.'
    ]


def _matched(flat: FlatModel, layers: Mapping[str, _Binary], missed: str) -> tuple[XnorLayer, ...]:
    """Locates each layer's operators in a file by the bits of their filters."""
    operators: dict[str, list[int]] = {name: [] for name in layers}
    for operator in flat.operators:
        if operator.name != BINARY_CONV or not flat.tensors[operator.inputs[1]].is_constant:
            continue
        filters, scales = _unpacked(flat, operator)
        for name, entry in layers.items():
            if len(operators[name]) < entry.uses and _same_bits(entry.negative, filters, scales):
                operators[name].append(operator.index)
                break
    return tuple(
        XnorLayer(
            name,
            tuple(operators[name]),
            entry.uses,
            "" if len(operators[name]) == entry.uses else _reason(entry.layer, missed),
        )
        for name, entry in layers.items()
    )


def _reason(layer: Any, missed: str) -> str:
    if layer.input_quantizer is None:
        return "its input is not reduced to signs (input_quantizer=None)"
    return missed


def _unpacked(flat: FlatModel, operator: Operator) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns which weights of a binary convolution are negative, and its scale per output."""
    shape = binary_kernel_shape(flat, operator)
    words = np.ascontiguousarray(flat.tensors[operator.inputs[1]].values()).astype("<i4")
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., : shape[3]]
    scale = flat.tensor(operator, 2)
    known = scale is not None and scale.is_constant and scale.type == "FLOAT32"
    return bits.astype(bool), scale.values() if known and scale is not None else None


def _same_bits(want: np.ndarray, have: np.ndarray, scales: np.ndarray | None) -> bool:
    """Returns whether two filters are the same, allowing for sign-flipped outputs.

    Folding a negative BatchNormalization factor into the filter flips all its signs; a factor of
    zero leaves no signs.
    """
    if want.shape != have.shape:
        return False
    differs = (want != have).reshape(len(want), -1)
    same = ~differs.any(1) | differs.all(1)
    if scales is not None:
        same |= scales == 0
    return bool(same.all())


# --- The two routes ------------------------------------------------------------------------------


def _best_route(
    trace: Trace, layers: Mapping[str, _Binary], verbose: bool
) -> tuple[bytes, tuple[XnorLayer, ...], str, list[str]]:
    """Returns the file of the route that makes more layers binary; on a tie, the first."""
    missed = "the converter of Larq Compute Engine found no sign in front of it"
    notes: list[str] = []
    first: tuple[bytes, tuple[XnorLayer, ...]] | None = None
    try:
        data = _by_converter(trace, verbose)
        first = data, _matched(read_tflite(data), layers, missed)
        expected = [x for x in first[1] if layers[x.name].layer.input_quantizer is not None]
        if all(layer.is_binary for layer in expected):
            return *first, "converter", notes
        lost = [layer.name for layer in expected if not layer.is_binary]
        notes.append(
            f"Larq Compute Engine's converter left {', '.join(lost)} in float, so the file was "
            "made by rewriting the float flatbuffer; it holds no bits between layers."
        )
    except ConversionError as error:
        notes.append(
            "The file was made by rewriting the float flatbuffer, and holds no bits between "
            f"layers: {error}"
        )
    try:
        data = rewrite(to_flatbuffer(trace, verbose))
    except ConversionError:
        if first is None:
            raise
        return *first, "converter", []
    missed = "no CONV_2D behind a sign has its weights in the float flatbuffer"
    second = data, _matched(read_tflite(data), layers, missed)
    if first is not None and _operators(first[1]) >= _operators(second[1]):
        return *first, "converter", []
    return *second, "rewriting", notes


def _operators(layers: Sequence[XnorLayer]) -> int:
    return sum(len(layer.operators) for layer in layers)


def _by_converter(trace: Trace, verbose: bool, timeout_s: float = 900.0) -> bytes:
    """Converts by Larq Compute Engine's converter, in a separate process."""
    with temporary_folder() as scratch:
        folder = str(scratch)
        place = {name: os.path.join(folder, name) for name in ("model", "output", "reason", "job")}
        _save(trace, place["model"], verbose)
        paths = [folder_of(name) for name in ("larq_compute_engine", "tensorflow")]
        job = {
            "saved_model": place["model"],
            "output": place["output"],
            "reason": place["reason"],
            "paths": [path for path in paths if path],
        }
        Path(place["job"]).write_text(json.dumps(job), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(_WORKER), place["job"]],
                stdin=subprocess.DEVNULL,
                capture_output=not verbose,
                cwd=folder,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConversionError(
                f"Larq Compute Engine's converter was stopped after {timeout_s:g} s."
            ) from None
        if done.returncode == 0:
            return Path(place["output"]).read_bytes()
        reason = Path(place["reason"])
        text = reason.read_text(encoding="utf-8") if reason.is_file() else ""
        raise ConversionError(
            "Larq Compute Engine's converter failed: "
            + (one_line(text) if text else f"it ended with status {done.returncode}.")
        )


def _save(trace: Trace, folder: str, verbose: bool) -> None:
    """Writes a model as a SavedModel at batch 1 whose weights are constants."""
    import tensorflow as tf

    try:
        with suppress_output(verbose):
            frozen = trace.frozen
            # The converter orders inputs and outputs by name.
            signature = [
                tf.TensorSpec(tensor.shape, tensor.dtype, name=f"input_{position:03}")
                for position, tensor in enumerate(frozen.inputs)
            ]

            @tf.function(input_signature=signature)
            def serve(*tensors: Any) -> dict[str, Any]:
                outputs = tf.nest.flatten(frozen(*tensors))
                return {f"output_{position:03}": y for position, y in enumerate(outputs)}

            module = tf.Module()
            module.serve = serve
            tf.saved_model.save(
                module,
                folder,
                signatures=serve.get_concrete_function(),
                # A frozen function no longer has what gradients would need.
                options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
            )
    # Tracing runs the model's own code and raises anything.
    except Exception as error:
        raise ConversionError(
            f"Model {trace.loaded.name!r} could not be traced: {one_line(error)}"
        ) from error


# --- The finished file ---------------------------------------------------------------------------


def _named(data: bytes, loaded: LoadedModel, layers: Sequence[XnorLayer]) -> FlatModel:
    """Returns the file with names that depend only on the model: inputs, outputs, layers."""
    flat = read_tflite(data)
    made = {o.outputs[0] for o in flat.operators if o.name == QUANTIZE}
    names = {
        flat.operators[number].outputs[0]: layer.name
        for layer in layers
        for number in layer.operators
    }
    for operator in flat.operators:
        reads_signs = operator.name == BINARY_CONV and operator.outputs[0] in names
        if reads_signs and operator.inputs[0] in made:
            names.setdefault(operator.inputs[0], f"{names[operator.outputs[0]]}/signs")
    known = list(getattr(loaded.model, "output_names", ()))
    if len(known) != len(flat.outputs):
        known = [f"output_{position}" for position in range(len(flat.outputs))]
    names |= dict(zip(flat.outputs, known, strict=True))
    names |= {i: spec.name for i, spec in zip(flat.inputs, loaded.inputs, strict=True)}
    editor = ModelEditor(flat)
    editor.rename(lambda graph, index: "" if graph else names.get(index, ""))
    editor.strip(keep_names="all")
    return read_tflite(editor.pack())


def _run(data: bytes, loaded: LoadedModel, samples: Sequence[np.ndarray] | None) -> Parity:
    """Runs a new file in the engine and refuses one that computes something different."""
    inputs = (
        example_inputs(loaded.inputs, _SAMPLES)
        if samples is None
        else [np.asarray(array)[:_SAMPLES] for array in samples]
    )
    try:
        parity = verify(
            data, reference=loaded.predict(inputs), samples=inputs, engine=LCE, kind="values"
        )
    except EngineError as error:
        raise ConversionError(f"The file of model {loaded.name!r} does not run: {error}") from error
    if parity.agreement < _LEAST_AGREEMENT:
        raise ConversionError(
            f"The file of model {loaded.name!r} computes something else than the model: only "
            f"{parity.agreement:.0%} of {parity.samples} samples agree in Larq Compute Engine."
        )
    return parity
