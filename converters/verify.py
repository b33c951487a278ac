"""Runs a flatbuffer in a real engine and compares it with the model it was made from.

Inputs are quantized and outputs dequantized here, as an application does it around its
interpreter: q = clip(round(x / scale) + zero_point) in 32-bit floats, halves rounded to even
(XNNPACK's and numpy's rounding), and y = scale * (q - zero_point).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.agreement import (
    MIN_R2,
    TOLERANCE,
    InputLoss,
    Kind,
    Meaning,
    OutputAgreement,
    compare,
    input_loss,
    sqnr_db,
)
from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    NotFiniteError,
    UnsupportedModelError,
)
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

Progress = Callable[[int, int], None]

# The per-layer comparison keeps every intermediate result; this many elements fit at a time.
_ELEMENTS = 32 << 20


_NUMPY = {
    "FLOAT32": "f4", "FLOAT16": "f2", "FLOAT64": "f8", "INT8": "i1", "INT16": "i2", "INT32": "i4",
    "INT64": "i8", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "BOOL": "?",
}  # fmt: skip
# Operators that leave the values as they are.
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
# Operators that prescribe the scale of their output.
_PRESCRIBED = ("SOFTMAX", "LOGISTIC")
_CARRIERS = (*_CONVERSIONS, "RESHAPE", "SQUEEZE", "EXPAND_DIMS")


@dataclass(frozen=True)
class LayerError:
    """How far one tensor of the integer model lies from the same tensor of the float model.

    Attributes:
        name: Name of the tensor in the float model; for fused operators the first of its names.
        sqnr_db: Signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_q)^2), in dB;
            infinite where both are equal. It holds the errors of all layers before.
        operator: The operator that makes the tensor; `INPUT` for an input of the model.
        drop_db: The ratio of the operator's worst input minus its own: what the operator itself
            adds. None where no input is known.
    """

    name: str
    sqnr_db: float
    operator: str = ""
    drop_db: float | None = None


@dataclass(frozen=True)
class Rounding:
    """How much of a disagreement is rounding, and how much is not.

    Attributes:
        simulated: Share of samples where the reference agrees with its own simulation of the
            rounding: what rounding costs.
        file: Share of samples where the file agrees with that simulation: what is below 1 is the
            converter's or the engine's.
    """

    simulated: float
    file: float


@dataclass(frozen=True)
class Parity:
    """How well a flatbuffer in an engine agrees with its reference.

    Attributes:
        engine: The engine's registered name.
        version: Version of the engine's package.
        kernels: Which kernels computed, e.g. `XNNPACK`.
        samples: Number of samples compared.
        kind: What counts as agreement in the worst output: `classes`, `scores`, `binary`, `labels`
            or `values`, see `verify`.
        agreement: Share of samples that agree, 0 to 1.
        max_error: Largest absolute error of an output element, in the output's unit.
        max_error_steps: The same in steps of the output (its scale).
        mean_error_steps: Mean absolute error in steps.
        step: Size of one step. For float outputs a 255th of the range of the reference, as an
            8-bit output of it would have.
        layers: Per-layer errors, the lowest ratio first; empty without a float model.
        notes: What could not be compared, one sentence each.
        rounding: What of it rounding costs; None where it was not simulated.
        outputs: Each output by itself.
        inputs: What the scales of the inputs do to the samples; none for float inputs.
    """

    engine: str
    version: str
    kernels: str
    samples: int
    kind: str
    agreement: float
    max_error: float
    max_error_steps: float
    mean_error_steps: float
    step: float
    layers: tuple[LayerError, ...] = ()
    notes: tuple[str, ...] = ()
    rounding: Rounding | None = None
    outputs: tuple[OutputAgreement, ...] = ()
    inputs: tuple[InputLoss, ...] = ()

    @property
    def suspect(self) -> LayerError | None:
        """The layer that adds the largest error of its own; None where none adds any."""
        adding = [layer for layer in self.layers if (layer.drop_db or 0) > 0]
        return max(adding, key=lambda layer: layer.drop_db or 0, default=None)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of a flatbuffer; `float(accuracy)` is the share.

    Attributes:
        engine: The engine's registered name.
        version: Version of the engine's package.
        samples: Number of samples.
        top1: Share of samples whose largest output is the label's, 0 to 1.
    """

    engine: str
    version: str
    samples: int
    top1: float

    def __float__(self) -> float:
        """Returns the share."""
        return self.top1


def quantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Returns real values in the type of a tensor: clip(round(x / scale) + zero_point).

    Tensors without a scale take the values as they are: floats are rounded to the tensor's float
    type, integers must be whole numbers in its range.

    Args:
        values: Real numbers, any shape.
        tensor: An input of the model; per-tensor scale.

    Raises:
        ArgumentError: the values are not finite, or not whole where the tensor needs that.
        UnsupportedModelError: the tensor has a type without a numpy form or per-channel scales.

    Example:
        >>> t = Tensor(0, "x", (1, 3), "INT8", None, (0.5,), (10,))
        >>> quantize(np.array([[0.25, 0.75, 100.0]]), t)
        array([[ 10,  12, 127]], dtype=int8)
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        raise ArgumentError(
            "samples",
            "hold finite numbers",
            f"{values.dtype} with NaN or infinity" if values.dtype.kind == "f" else values.dtype,
        )
    dtype = _dtype(tensor)
    if tensor.scales:
        if len(tensor.scales) > 1:
            raise UnsupportedModelError(
                f"Input {tensor.name!r} has {len(tensor.scales)} scales; an input needs one."
            )
        limits = np.iinfo(dtype)
        scale = np.float32(tensor.scales[0])
        steps = np.rint(values.astype(np.float32) / scale) + _zero_point(tensor)
        return np.clip(steps, limits.min, limits.max).astype(dtype)
    if dtype.kind == "f":
        return values.astype(dtype)
    converted = values.astype(dtype)
    if not np.array_equal(converted, values):
        raise ArgumentError(
            "samples",
            f"hold whole numbers that fit {dtype}, because input {tensor.name!r} has no scale",
            f"values from {values.min():g} to {values.max():g}",
        )
    return converted


def dequantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Returns a tensor's values as real numbers: scale * (q - zero_point); floats as they are.

    Args:
        values: Values as the engine returned them.
        tensor: The tensor they belong to.

    Example:
        >>> dequantize(np.array([12], np.int8), Tensor(0, "", (1,), "INT8", None, (0.5,), (10,)))
        array([1.])
    """
    if not tensor.scales:
        return np.asarray(values, np.float64)
    return (np.asarray(values, np.float64) - _zero_point(tensor)) * tensor.scales[0]


def verify(
    quantized: bytes | FlatModel,
    *,
    reference: np.ndarray | Sequence[np.ndarray],
    samples: np.ndarray | Sequence[np.ndarray],
    engine: str = "litert",
    float_model: bytes | FlatModel | None = None,
    layer_samples: int = 32,
    kind: Kind | Sequence[Meaning] = "auto",
    tolerance: float = TOLERANCE,
    min_r2: float = MIN_R2,
    timeout_s: float = 120.0,
    progress: Progress | None = None,
    simulated: Sequence[np.ndarray] | None = None,
) -> Parity:
    """Runs a flatbuffer in an engine and compares its outputs with the reference's.

    What it means that a sample agrees:

    - `classes` (outputs made by a softmax): the largest output is the same; among equal ones the
      first counts, as in an application's argmax. Where an output has several positions
      (segmentation), the share of positions counts.
    - `scores` (outputs of shape (samples, k) with k of 2 or more that no softmax makes: logits, an
      embedding, or as many quantities): the same, and every column counts as one of `values`.
    - `binary`, `labels` (one output or several made by a sigmoid): both lie on the same side of
      0.5; with several the share of labels counts.
    - `values` (everything else: regression, images, autoencoders, whose output is as large as an
      input): the root-mean-square error over the sample's output is at most `tolerance` times
      the range (maximum minus minimum) that the reference spans over all samples.

    Besides, every column of every output is compared by its own scale: see `agreement`.

    Args:
        quantized: The .tflite file, as bytes or read; integer or float.
        reference: Outputs of the Keras model, shape (samples, ...), as real numbers; one array
            for the first output or one for each, in the order of the flatbuffer's outputs.
        samples: Inputs of the Keras model as real numbers; one array (samples, ...), or one for
            each input, in the order of the flatbuffer's inputs.
        engine: Which engine runs the file. Defaults to `litert`.
        float_model: The float flatbuffer that `quantized` was made from, for the comparison layer
            by layer. Defaults to none.
        layer_samples: How many samples the layers are compared on. Defaults to 32.
        kind: One of these kinds for all outputs, what each output means, or `auto` for what the
            outputs look like.
        tolerance: Largest error of an agreeing sample of kind `values`, as a share of the range.
        min_r2: Floor of R2 for the columns of `values` and `scores`. Defaults to 0.9.
        timeout_s: Seconds without a finished sample after which the engine is stopped.
        progress: Called with (finished samples, all samples).
        simulated: Outputs of the reference under the simulated rounding of the file, in the form
            of `reference`, to tell rounding apart from other errors. Defaults to none.

    Returns:
        Agreement and errors; with several outputs the lowest agreement and the largest errors.

    Raises:
        ArgumentError: samples or reference do not fit the model or each other.
        EngineError, MissingDependencyError: see `run_engine`.
        ModelFileError: a file is damaged.
        NotFiniteError: an output of the file is NaN or infinite.

    Example:
        >>> parity = verify(int8, reference=model.predict(x), samples=x)  # doctest: +SKIP
        >>> parity.agreement, parity.max_error_steps  # doctest: +SKIP
        (0.998, 1.4)
    """
    if layer_samples < 1:
        raise ArgumentError("layer_samples", "be at least 1", layer_samples)
    if tolerance <= 0:
        raise ArgumentError("tolerance", "be greater than 0", tolerance)
    model = read_tflite(quantized)
    arrays = _listed(samples)
    wanted = [np.asarray(array, np.float64) for array in _listed(reference)]
    codes = _inputs(model, arrays)
    run = run_engine(engine, model.data, codes, timeout_s=timeout_s, progress=progress)
    if not 1 <= len(wanted) <= len(run.outputs):
        raise ArgumentError(
            "reference", f"hold at most {len(run.outputs)} outputs, as the model", len(wanted)
        )
    meanings = [Meaning(kind)] * len(wanted) if isinstance(kind, str) else list(kind)
    meanings += [Meaning()] * (len(wanted) - len(meanings))
    parts = [
        _compare(model, position, output, expected, meaning, tolerance, min_r2)
        for position, (output, expected, meaning) in enumerate(
            zip(run.outputs, wanted, meanings, strict=False)
        )
    ]
    rounding = None
    if simulated is not None:
        pairs = [
            _rounding(part, output, exact, rounded, meaning, tolerance)
            for part, output, exact, rounded, meaning in zip(
                parts, run.outputs, wanted, _listed(simulated), meanings, strict=False
            )
        ]
        rounding = Rounding(*(min(shares) for shares in zip(*pairs, strict=True)))
    notes: list[str] = []
    if len(wanted) < len(run.outputs):
        notes.append(
            f"Only {len(wanted)} of {len(run.outputs)} outputs were compared: the reference has "
            "no others."
        )
    layers: tuple[LayerError, ...] = ()
    if float_model is not None:
        few = [array[:layer_samples] for array in arrays]
        try:
            layers, unmatched = _layers(read_tflite(float_model), model, few, timeout_s)
            if unmatched:
                named = ", ".join(unmatched[:5]) + (", ..." if len(unmatched) > 5 else "")
                notes.append(
                    f"{len(unmatched)} tensors of the float model have no partner in the other "
                    f"model and were not compared: {named}."
                )
        except EngineError as error:
            notes.append(f"The layers were not compared: {error}")
    # With several outputs the worst one speaks for the model.
    worst = max(parts, key=lambda part: part.max_error_steps)
    return Parity(
        run.engine,
        run.version,
        run.kernels,
        len(wanted[0]),
        worst.agreement.kind,
        min(part.agreement.agreement for part in parts),
        worst.max_error,
        worst.max_error_steps,
        max(part.mean_error_steps for part in parts),
        worst.step,
        layers,
        tuple(notes),
        rounding,
        tuple(part.agreement for part in parts),
        tuple(
            input_loss(
                _shown(tensor, position), dequantize(read, tensor), array, float(tensor.scales[0])
            )
            for position, (tensor, read, array) in enumerate(
                zip((model.tensors[i] for i in model.inputs), codes, arrays, strict=True)
            )
            if tensor.scales
        ),
    )


def _rounding(
    part: _Part,
    raw: np.ndarray,
    exact: np.ndarray,
    rounded: np.ndarray,
    meaning: Meaning,
    tolerance: float,
) -> tuple[float, float]:
    """Returns the shares of `Rounding` for one output."""
    kind = part.agreement.kind
    file = dequantize(raw, part.tensor)
    pairs = ((rounded, exact), (file, np.asarray(rounded, np.float64)))
    simulated, made = (
        compare("", kind, got.reshape(exact.shape), expected, None, meaning.cut, tolerance)
        for got, expected in pairs
    )
    return simulated.agreement, made.agreement


def accuracy(
    model: bytes,
    x: np.ndarray | Sequence[np.ndarray],
    y: np.ndarray,
    engine: str = "litert",
    *,
    timeout_s: float = 120.0,
    progress: Progress | None = None,
) -> Accuracy:
    """Returns the top-1 accuracy of a flatbuffer, measured in an engine.

    Args:
        model: The .tflite file's bytes; integer or float.
        x: Inputs as real numbers, one array (samples, ...) or one for each input.
        y: Class numbers (samples,) or (samples, 1), or one-hot rows (samples, classes). A model
            with one output is taken as a sigmoid: class 1 from 0.5 on.
        engine: Which engine runs the file. Defaults to `litert`.
        timeout_s: Seconds without a finished sample after which the engine is stopped.
        progress: Called with (finished samples, all samples).

    Raises:
        ArgumentError: the labels do not fit the samples or the model's outputs.
        EngineError, MissingDependencyError: see `run_engine`.

    Example:
        >>> float(accuracy(int8, x_test, y_test))  # doctest: +SKIP
        0.9132
    """
    flat = read_tflite(model)
    arrays = _listed(x)
    run = run_engine(engine, model, _inputs(flat, arrays), timeout_s=timeout_s, progress=progress)
    tensor = flat.tensors[flat.outputs[0]]
    total = len(arrays[0])
    outputs = dequantize(run.outputs[0], tensor).reshape(total, -1)
    return Accuracy(run.engine, run.version, total, top1(outputs, y))


def top1(outputs: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of samples whose largest output is the label's.

    Args:
        outputs: Real numbers (samples, classes), or (samples, 1) of a sigmoid.
        y: Labels as in `accuracy`.

    Raises:
        ArgumentError: the labels do not fit the outputs.

    Example:
        >>> top1(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([1, 1]))
        0.5
    """
    total = len(outputs)
    outputs = outputs.reshape(total, -1)
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if labels.shape[1] != outputs.shape[1]:
            raise ArgumentError(
                "y", f"have one column for each of the {outputs.shape[1]} outputs", labels.shape
            )
        labels = labels.argmax(1)
    labels = labels.reshape(-1) if labels.size == total else labels
    if labels.shape != (total,):
        raise ArgumentError("y", f"hold one label for each of the {total} samples", labels.shape)
    classes = max(outputs.shape[1], 2)
    if not np.array_equal(labels, labels.astype(np.int64)) or not (
        labels.min() >= 0 and labels.max() < classes
    ):
        raise ArgumentError(
            "y",
            f"hold class numbers from 0 to {classes - 1}",
            f"values from {labels.min()} to {labels.max()}",
        )
    if outputs.shape[1] == 1:
        predicted = (outputs[:, 0] >= 0.5).astype(np.int64)
    else:
        predicted = outputs.argmax(1)
    return float(np.mean(predicted == labels))


def _listed(arrays: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(arrays, (list, tuple)):
        return [np.asarray(array) for array in arrays]
    return [np.asarray(arrays)]


def _dtype(tensor: Tensor) -> np.dtype:
    if tensor.type not in _NUMPY:
        raise UnsupportedModelError(
            f"Tensor {tensor.name!r} has the type {tensor.type}; inputs must be of type "
            f"{', '.join(_NUMPY)}."
        )
    return np.dtype(_NUMPY[tensor.type])


def _zero_point(tensor: Tensor) -> int:
    return tensor.zero_points[0] if tensor.zero_points else 0


def _inputs(model: FlatModel, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    if len(samples) != len(model.inputs):
        raise ArgumentError(
            "samples",
            f"hold one array for each of the model's {len(model.inputs)} inputs",
            f"{len(samples)} arrays",
        )
    return [
        quantize(array, model.tensors[index])
        for array, index in zip(samples, model.inputs, strict=True)
    ]


@dataclass(frozen=True)
class _Part:
    """The comparison of one output."""

    tensor: Tensor
    agreement: OutputAgreement
    max_error: float
    max_error_steps: float
    mean_error_steps: float
    step: float


def _compare(
    model: FlatModel,
    position: int,
    raw: np.ndarray,
    expected: np.ndarray,
    meaning: Meaning,
    tolerance: float,
    min_r2: float,
) -> _Part:
    tensor = model.tensors[model.outputs[position]]
    total = len(raw)
    if expected.shape[:1] != (total,) or expected.size != raw.size:
        raise ArgumentError(
            "reference", f"have the shape of output {position}, {raw.shape}", expected.shape
        )
    if not np.isfinite(expected).all():
        raise ArgumentError("reference", "hold finite numbers", "NaN or infinity")
    name = _shown(tensor, position)
    got = dequantize(raw, tensor).reshape(expected.shape)
    if not np.isfinite(got).all():
        bad = int(np.sum(~np.isfinite(got.reshape(total, -1)).all(1)))
        maker = _maker(model, tensor.index)
        raise NotFiniteError(
            f"Output {name!r} of the file, made by {maker or 'no operator'}, is NaN or infinite in "
            f"{bad} of {total} samples. Check the model and the scaling of the data."
        )
    errors = np.abs(got - expected)
    step = float(tensor.scales[0]) if tensor.scales else float(np.ptp(expected)) / 255
    maker = _maker(model, model.outputs[position])
    kind = _kind(model, position, expected, maker) if meaning.kind == "auto" else meaning.kind
    agreement = compare(
        name,
        kind,
        got,
        expected,
        float(tensor.scales[0]) if tensor.scales else None,
        meaning.cut,
        tolerance,
        maker in _PRESCRIBED,
        min_r2,
    )
    # A constant reference has no steps; then only equality is zero steps away.
    steps = errors / step if step else np.where(errors == 0, 0.0, np.inf)
    return _Part(
        tensor,
        agreement,
        float(errors.max()),
        float(steps.max()),
        float(steps.mean()),
        step,
    )


def _kind(model: FlatModel, position: int, expected: np.ndarray, maker: str) -> Kind:
    """Tells from shapes and the last operator what an output means."""
    elements = expected[0].size
    as_large_as_input = any(model.tensors[i].elements == elements for i in model.inputs)
    if elements == 1:
        return "binary" if maker == "LOGISTIC" else "values"
    if maker == "SOFTMAX" and expected.shape[-1] > 1:
        return "classes"
    if as_large_as_input:
        return "values"
    if maker == "LOGISTIC":
        return "labels"
    return "scores" if expected.ndim == 2 else "values"


def _maker(model: FlatModel, index: int) -> str:
    """Returns the operator that computes a tensor, conversions and reshapes left out."""
    for operator in reversed(model.operators):
        if index in operator.outputs:
            if operator.code not in _CARRIERS:
                return operator.name
            index = operator.inputs[0]
    return ""


def _layers(
    floats: FlatModel, quantized: FlatModel, samples: Sequence[np.ndarray], timeout_s: float
) -> tuple[tuple[LayerError, ...], list[str]]:
    """Compares every tensor that both models compute; also returns those without a partner."""
    pairs, unmatched = _pairs(floats, quantized)
    if not pairs:
        return (), unmatched
    signal = dict.fromkeys(pairs, 0.0)
    noise = dict.fromkeys(pairs, 0.0)
    per_sample = sum(floats.tensors[index].elements for index in pairs)
    chunk = max(1, _ELEMENTS // max(per_sample, 1))
    for start in range(0, len(samples[0]), chunk):
        part = [array[start : start + chunk] for array in samples]
        runs = [
            run_engine("litert", m.data, _inputs(m, part), tensors=indices, timeout_s=timeout_s)
            for m, indices in ((floats, list(pairs)), (quantized, list(pairs.values())))
        ]
        for index, partner in pairs.items():
            exact = np.asarray(runs[0].tensors[index], np.float64)
            rounded = dequantize(runs[1].tensors[partner], quantized.tensors[partner])
            signal[index] += float(np.sum(exact**2))
            noise[index] += float(np.sum((exact - rounded.reshape(exact.shape)) ** 2))
    # The input counts as a layer: a scale that clips it harms everything behind it.
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
    ratios |= {index: sqnr_db(signal[index], noise[index]) for index in pairs}
    layers = []
    for index, ratio in ratios.items():
        before = [ratios[i] for i in sources.get(index, ()) if i in ratios]
        drop = None
        if before:
            # Two exact tensors in a row lose nothing (infinity minus infinity is no number).
            drop = 0.0 if min(before) == ratio else min(before) - ratio
        layers.append(LayerError(_short(floats.tensors[index]), ratio, makers[index], drop))
    return tuple(sorted(layers, key=lambda layer: layer.sqnr_db)), unmatched


def _pairs(floats: FlatModel, quantized: FlatModel) -> tuple[dict[int, int], list[str]]:
    """Matches the computed tensors of two models by name; by position where names are gone."""
    wanted = _results(floats)
    offered = _results(quantized)
    by_name: dict[str, list[int]] = {}
    for index in offered:
        by_name.setdefault(quantized.tensors[index].name, []).append(index)
    names = [floats.tensors[index].name for index in wanted]
    same_order = [_makers(floats)[i] for i in wanted] == [_makers(quantized)[i] for i in offered]
    by_position = dict(zip(wanted, offered, strict=True)) if same_order else {}
    pairs, unmatched = {}, []
    for index in wanted:
        tensor = floats.tensors[index]
        found = by_name.get(tensor.name, [])
        unique = tensor.name and len(found) == 1 and names.count(tensor.name) == 1
        partner = found[0] if unique else by_position.get(index)
        if (
            tensor.type == "FLOAT32"
            and partner is not None
            and quantized.tensors[partner].elements == tensor.elements
        ):
            pairs[index] = partner
        elif tensor.type == "FLOAT32":
            unmatched.append(_short(tensor))
    return pairs, unmatched


def _makers(model: FlatModel) -> dict[int, str]:
    return {index: o.name for o in model.operators for index in o.outputs}


def _results(model: FlatModel) -> list[int]:
    """Returns the tensors that operators compute, conversions between types left out."""
    return [i for o in model.operators if o.code not in _CONVERSIONS for i in o.outputs]


def _short(tensor: Tensor) -> str:
    return tensor.name.split(";")[0] or f"tensor {tensor.index}"


def _shown(tensor: Tensor, position: int) -> str:
    """Returns the name of an input or output for people."""
    return tensor.name.split(";")[0] or str(position)
