"""Runs a flatbuffer in a real engine and compares it with the model it was made from.

Inputs are quantized and outputs dequantized as in an application: see `real_values`.
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
)
from edgecompress.converters.layer_errors import CONVERSIONS, LayerError, layer_errors
from edgecompress.converters.real_values import dequantize, listed, quantized_inputs
from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    NotFiniteError,
)
from edgecompress.engines.registry import LITERT
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.stepping import Stepping
from edgecompress.flatbuffers.tensors import Tensor

Progress = Callable[[int, int], None]

# Operators that prescribe the scale of their output.
_PRESCRIBED = ("SOFTMAX", "LOGISTIC")
_CARRIERS = (*CONVERSIONS, "RESHAPE", "SQUEEZE", "EXPAND_DIMS")


@dataclass(frozen=True)
class Rounding:
    """How much of a disagreement is due to rounding, and how much is not.

    Attributes:
        simulated: Share of samples on which the reference agrees with its own simulation of the
            rounding: the cost of rounding.
        file: Share of samples on which the file agrees with that simulation: anything below 1 is
            due to the converter or the engine.
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
        kind: The kind of agreement in the worst output: `classes`, `scores`, `binary`, `labels`
            or `values`, see `verify`.
        agreement: Share of samples that agree, 0 to 1.
        max_error: Largest absolute error of an output element, in the output's unit.
        max_error_steps: The same in steps of the output (its scale).
        mean_error_steps: Mean absolute error in steps.
        step: Size of one step. For float outputs 1/255 of the reference's range, as for an 8-bit
            output.
        layers: Per-layer errors, the lowest ratio first; empty without a float model.
        notes: What could not be compared, one sentence each.
        rounding: The part due to rounding; None if it was not simulated.
        outputs: Each output separately.
        inputs: The effect of the inputs' scales on the samples; none for float inputs.
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
        """The layer that itself adds the largest error; None if none adds any."""
        adding = [layer for layer in self.layers if (layer.drop_db or 0) > 0]
        return max(adding, key=lambda layer: layer.drop_db or 0, default=None)


def verify(
    quantized: bytes | FlatModel,
    *,
    reference: np.ndarray | Sequence[np.ndarray],
    samples: np.ndarray | Sequence[np.ndarray],
    engine: str = LITERT,
    float_model: bytes | FlatModel | None = None,
    layer_samples: int = 32,
    kind: Kind | Sequence[Meaning] = "auto",
    tolerance: float = TOLERANCE,
    min_r2: float = MIN_R2,
    timeout_s: float = 120.0,
    progress: Progress | None = None,
    simulated: Sequence[np.ndarray] | None = None,
    stepping: Stepping | None = None,
) -> Parity:
    """Runs a flatbuffer in an engine and compares its outputs with the reference's.

    A sample agrees if:

    - `classes` (outputs made by a softmax): the largest output is the same; ties go to the first,
      as in an application's argmax. If an output has several positions (segmentation), the share of
      positions counts.
    - `scores` (outputs of shape (samples, k) with k of 2 or more that no softmax makes: logits, an
      embedding, or as many quantities): the same, and every column is also judged like `values`.
    - `binary`, `labels` (one output or several made by a sigmoid): both are on the same side of
      0.5; with several, the share of labels counts.
    - `values` (everything else: regression, images, autoencoders, whose output is as large as an
      input): the root-mean-square error over the sample's output is at most `tolerance` times
      the range (maximum minus minimum) that the reference spans over all samples.

    In addition, every column of every output is compared on its own scale: see `agreement`.

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
        kind: One of these kinds for all outputs, a kind for each output, or `auto` to infer them.
        tolerance: Largest error of an agreeing sample of kind `values`, as a share of the range.
        min_r2: Floor of R2 for the columns of `values` and `scores`. Defaults to 0.9.
        timeout_s: Seconds without a finished sample after which the engine is stopped.
        progress: Called with (finished samples, all samples).
        simulated: Outputs of the reference under the simulated rounding of the file, in the form
            of `reference`, to tell rounding apart from other errors. Defaults to none.
        stepping: How a streaming file runs over the samples, which are sequences. Defaults to
            None.

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
    arrays = listed(samples)
    wanted = [np.asarray(array, np.float64) for array in listed(reference)]
    codes = quantized_inputs(model, arrays, 0 if stepping is None else len(stepping.states))
    run = run_engine(
        engine, model.data, codes, timeout_s=timeout_s, progress=progress, stepping=stepping
    )
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
                parts, run.outputs, wanted, listed(simulated), meanings, strict=False
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
            layers, unmatched = layer_errors(read_tflite(float_model), model, few, timeout_s)
            if unmatched:
                named = ", ".join(unmatched[:5]) + (", ..." if len(unmatched) > 5 else "")
                notes.append(
                    f"{len(unmatched)} tensors of the float model have no partner in the other "
                    f"model and were not compared: {named}."
                )
        except EngineError as error:
            notes.append(f"The layers were not compared: {error}")
    # With several outputs, the worst one represents the model.
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
                _shown(tensor, position),
                read,
                array,
                float(tensor.scales[0]),
                tensor.zero_points[0] if tensor.zero_points else 0,
            )
            for position, (tensor, read, array) in enumerate(
                zip((model.tensors[i] for i in model.inputs), codes, arrays, strict=False)
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
    # A constant reference has no steps; only an equal value is then zero steps away.
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
    """Infers the kind of an output from its shape and its last operator."""
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
    """Returns the operator that computes a tensor, ignoring conversions and reshapes."""
    for operator in reversed(model.operators):
        if index in operator.outputs:
            if operator.code not in _CARRIERS:
                return operator.name
            index = operator.inputs[0]
    return ""


def _shown(tensor: Tensor, position: int) -> str:
    """Returns the name of an input or output for people."""
    return tensor.name.split(";")[0] or str(position)
