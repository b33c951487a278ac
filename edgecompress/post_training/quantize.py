"""`quantize`: a float model, a precision and calibration data; no training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.core.keras_graph import functional_of, named_layers
from edgecompress.core.layer_kinds import int8_kernels
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.model_copy import Weights, copy_model
from edgecompress.core.options import named, named_config
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.post_training.folding import attributes, paths
from edgecompress.post_training.layout import (
    as_products,
    from_products,
    is_product,
    second_moments,
)
from edgecompress.post_training.network import Network, Ranges
from edgecompress.post_training.techniques import (
    TECHNIQUES,
    Kernel,
    Technique,
    chosen_techniques,
)
from edgecompress.precisions.base import POST_TRAINING, PRECISIONS, Precision
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.integer_operators import linear
from edgecompress.precisions.mixed import (
    assign,
    kernel_name,
    kernels_step,
    places_of,
    scale_axes,
)
from edgecompress.precisions.uniform import Uniform

# Samples that ranges are measured on, as export does, and that techniques compute with.
_MOST_SAMPLES, _MOST_COMPUTED = 500, 128
# Of these, every fourth judges what the others have chosen.
_JUDGE = 4
_TOLERANCE = 1e-4
_HALF = "/depthwise"


@dataclass(frozen=True)
class _Outcome:
    """One run of a model, in float and quantized.

    Attributes:
        kernels: Kernel -> rounded weights.
        biases: Operator -> what its bias gains.
        ratio: Signal-to-noise ratio of the outputs in dB, on the samples that judge.
    """

    ratio: float
    kernels: dict[str, np.ndarray] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)


def quantize(
    model: keras.Model,
    precision: Precision | str | None = None,
    calibration: Any = None,
    *,
    techniques: str | Technique | Iterable[str | Technique] = (),
    per_layer: Mapping[str, Precision] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> keras.Model:
    """Returns a copy of a float model, prepared for integers without training.

    The copy is a plain float Keras model, like one after QuantizationAwareTraining: its
    CompressionRecord holds the precision and the activation ranges, so that `export` needs no
    calibration data and `simulate` computes what the file computes. Techniques change its weights
    so that rounding costs less. Each is tried in the order given, on top of those kept before, and
    is kept only if it raises the signal-to-noise ratio of the outputs on samples that it did not
    see; the record's notes say what each brought.

    Args:
        model: A built Sequential or Functional model; not changed. Layers and nested models as for
            QuantizationAwareTraining.
        precision: The number format, or its name. Defaults to `Int8()`.
        calibration: Real inputs: an array, or a list of arrays for several inputs, samples first.
            At most 500 samples, evenly spaced, set the ranges; techniques use 128 of them.
        techniques: Names in `post_training.TECHNIQUES`, `NAME:OPTION=VALUE`, or techniques:
            `"cross-layer-equalization"`, `"adaround"`, `"gptq"`, `"bias-correction"`. Defaults to
            none: rounding to the nearest.
        per_layer: Regular expression -> precision of the weights of layers whose whole name it
            matches. Defaults to what `precision` chooses by place.
        progress: Called with a short text as each step begins.

    Raises:
        ArgumentError: an argument breaks its rule.
        UnknownNameError: a technique or precision is unknown.
        UnsupportedModelError: the model is subclassed, uses a layer twice or has none with weights
            that int8 supports.
        NotFiniteError: an activation is NaN or infinite.

    Example:
        >>> small = ec.quantize(model, ec.Int4(), x[:200], techniques=["gptq", "bias-correction"])
        ...  # doctest: +SKIP
        >>> record_of(small).notes  # doctest: +SKIP
        ('gptq: outputs at 24.1 dB instead of 19.8 dB; kept.', ...)
        >>> ec.export(small, ["cortex-m4"])  # doctest: +SKIP
    """
    precision = Int8() if precision is None else named(PRECISIONS, precision, "precision")
    if not precision.trains:
        raise ArgumentError(
            "precision", "be one with rounded activations", precision.name,
            f"Files in {precision.name} need no calibration: export with "
            f"--precision {precision.name}.",
        )  # fmt: skip
    if keras.backend.backend() != "tensorflow":
        raise ArgumentError("KERAS_BACKEND", "be tensorflow for quantize", keras.backend.backend())
    chosen = chosen_techniques(techniques)
    samples = _samples(model, calibration)
    return _Search(model, precision, per_layer, samples, progress).run(chosen)


def _samples(model: Any, calibration: Any) -> list[np.ndarray]:
    """Returns the calibration inputs as a list of arrays, checked."""
    rule = "hold real inputs, one array for each of the model's inputs"
    if calibration is None:
        raise ArgumentError("calibration", rule, None, "E.g. x_train[:200].")
    listed = list(calibration) if isinstance(calibration, (list, tuple)) else [calibration]
    arrays = [np.asarray(array) for array in listed]
    shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or ()]
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape)
        and all(s in (None, n) for s, n in zip(shape[1:], array.shape[1:], strict=True))
        for array, shape in zip(arrays, shapes, strict=True)
    )
    if shapes and not fits:
        raise ArgumentError("calibration", f"{rule}, {shapes}", [a.shape for a in arrays])
    counts = {len(array) for array in arrays}
    if len(counts) != 1 or 0 in counts:
        raise ArgumentError(
            "calibration", "hold the same number of samples for each input", sorted(counts)
        )
    return [_spread(array, _MOST_SAMPLES) for array in arrays]


def _spread(array: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` samples, evenly spaced."""
    return array if len(array) <= count else array[np.arange(count) * len(array) // count]


class _Search:
    """Tries techniques one after another."""

    def __init__(
        self,
        model: Any,
        precision: Precision,
        per_layer: Mapping[str, Precision] | None,
        samples: list[np.ndarray],
        progress: Callable[[str], None],
    ) -> None:
        self._model, self._precision, self._per_layer = model, precision, per_layer
        self._samples, self._progress = samples, progress

    def run(self, techniques: Sequence[Technique]) -> Any:
        """Returns the best model."""
        self._progress("Measuring ranges")
        best = _Candidate(self._model, self._precision, self._per_layer, self._samples, ())
        kept: tuple[Technique, ...] = ()
        notes: list[str] = []
        steps: list[dict[str, Any]] = []
        for technique in techniques:
            name = named_config(TECHNIQUES, technique)["name"]
            self._progress(f"Trying {name}")
            prepared = self._model
            for each in (*kept, technique):
                found = each.prepare(prepared)
                prepared = found.model
            notes += found.notes
            problem = (
                None if prepared is self._model else _differs(self._model, prepared, self._samples)
            )
            if problem is not None:
                notes.append(f"{name}: not kept, because {problem}.")
                continue
            candidate = _Candidate(
                prepared, self._precision, self._per_layer, self._samples, (*kept, technique)
            )
            before, after = best.outcome.ratio, candidate.outcome.ratio
            better = after > before
            said = f"{name}: outputs at {after:.1f} dB instead of {before:.1f} dB"
            notes.append(f"{said}; {'kept' if better else 'not kept'}.")
            steps.append(
                {**named_config(TECHNIQUES, technique), "sqnr_db": _finite(after), "kept": better}
            )
            if better:
                best, kept = candidate, (*kept, technique)
        return self._finished(best, steps, notes)

    def _finished(self, best: _Candidate, steps: list[dict[str, Any]], notes: list[str]) -> Any:
        result = best.written()
        precision, kernels = self._precision, best.kernels
        if best.rounds:
            # The weights are on their grids, whose ends the largest ones are.
            precision = _by_extremes(precision)
            kernels = {name: _by_extremes(own) for name, own in kernels.items()}
        step = {
            "technique": POST_TRAINING,
            "quantizer": precision.name,
            **named_config(PRECISIONS, precision)["config"],
            "techniques": steps,
            "sqnr_db": _finite(best.outcome.ratio),
            "calibration_samples": len(self._samples[0]),
            **kernels_step(kernels),
        }
        record = CompressionRecord((step,), best.ranges, notes=(*best.network.graph.notes, *notes))
        earlier = dataclasses.replace(record_of(self._model), ranges={}, outdated=())
        attach_record(result, tied(earlier.merged(record), result))
        return result


def _by_extremes(precision: Precision) -> Precision:
    """Returns a precision whose weights have the scales of the largest ones."""
    if not isinstance(precision, Uniform):
        return precision
    return dataclasses.replace(precision, weight_ranges="minmax")


def _finite(ratio: float) -> float | None:
    return round(ratio, 2) if math.isfinite(ratio) else None


def _differs(model: Any, prepared: Any, samples: Sequence[np.ndarray]) -> str | None:
    """Returns how the outputs of a rewritten model differ; None if they do not."""
    structure = functional_of(model).input
    few = keras.tree.pack_sequence_as(structure, [_spread(array, 16) for array in samples])
    for old, new in zip(
        keras.tree.flatten(model(few, training=False)),
        keras.tree.flatten(prepared(few, training=False)),
        strict=True,
    ):
        largest = float(ops.max(ops.abs(old)))
        difference = float(ops.max(ops.abs(old - new)))
        # NaN fails.
        if not difference <= _TOLERANCE * max(largest, 1.0):
            return f"the float outputs change by {difference:.2g}"
    return None


class _Candidate:
    """A model, quantized with some techniques."""

    def __init__(
        self,
        model: Any,
        precision: Precision,
        per_layer: Mapping[str, Precision] | None,
        samples: Sequence[np.ndarray],
        techniques: Sequence[Technique],
    ) -> None:
        self.network = Network(model)
        if not self.network.graph.weights:
            raise UnsupportedModelError(
                f"Model {model.name!r} has no layer whose weights int8 quantization knows "
                "(Dense, Conv1D, Conv2D, Conv2DTranspose, DepthwiseConv, SeparableConv)."
            )
        self._model, self._precision, self._techniques = model, precision, techniques
        self.kernels = assign(places_of(model, self.network.graph), precision, per_layer)
        self.ranges: Ranges = self.network.ranges(samples, precision)
        self.outcome = self._quantized([_spread(array, _MOST_COMPUTED) for array in samples])

    @property
    def rounds(self) -> bool:
        """Whether a technique chooses codes."""
        return any(type(found).round is not Technique.round for found in self._techniques)

    def _quantized(self, samples: Sequence[np.ndarray]) -> _Outcome:
        """Runs the model in float (first half of each tensor) and quantized (second half)."""
        count = len(samples[0])
        judging = np.arange(count) % _JUDGE == _JUDGE - 1
        if count < 2 * _JUDGE:
            judging[:] = True
        fitting = np.flatnonzero(~judging) if not judging.all() else np.arange(count)
        kernels: dict[str, np.ndarray] = {}
        biases: dict[str, np.ndarray] = {}
        judged = self.network.judged()
        powers = [0.0, 0.0]

        def tap(name: str, values: Any) -> Any:
            rounded = ops.concatenate([values[:count], self._rounded(name, values[count:])], 0)
            if name in judged:
                exact = np.asarray(rounded[:count], np.float64)[judging]
                error = exact - np.asarray(rounded[count:], np.float64)[judging]
                powers[0] += float(np.sum((exact - exact.mean(axis=0)) ** 2))
                powers[1] += float(np.sum(error**2))
            return rounded

        def weighted(operator: str, layer: Any, values: Any) -> Any:
            exact, inputs = values[:count], values[count:]
            owner, axes = self.network.kernel_of(operator)
            name = kernel_name(owner, axes.attribute)
            attribute = int8_kernels(layer)[-1].attribute
            kernel = np.asarray(getattr(layer, attribute))
            with linear(layer):
                target = layer(exact)
                kernels[name] = self._rounded_kernel(
                    name, axes.outputs, layer, kernel, ops.take(inputs, fitting, axis=0)
                )
                getattr(layer, attribute).assign(kernels[name])
                outputs = layer(inputs)
            # The first half of a separable layer has no bias.
            able = [t for t in self._techniques if t.corrects and not operator.endswith(_HALF)]
            for technique in able:
                errors = np.asarray(ops.take(target - outputs, fitting, axis=0))
                gain = technique.correction(errors.reshape(-1, errors.shape[-1]))
                if gain is not None:
                    biases[operator] = biases.get(operator, 0.0) + gain.astype(np.float32)
                    outputs = outputs + gain.astype(np.float32)
            return layer.activation(ops.concatenate([target, outputs], 0))

        self.network.run([np.concatenate([array, array]) for array in samples], tap, weighted)
        ratio = math.inf if powers[1] == 0 else 10 * math.log10(max(powers[0], 1e-30) / powers[1])
        return _Outcome(ratio, kernels, biases)

    def _rounded(self, name: str, values: Any) -> Any:
        low, high = self.ranges[name]
        if self.network.taps[name].fixed is not None:
            low, high = self._precision.fixed_range(low, high)
        return self._precision.fake_quantize(values, low, high)

    def _rounded_kernel(
        self, name: str, outputs: tuple[int, ...], layer: Any, kernel: np.ndarray, inputs: Any
    ) -> np.ndarray:
        """Returns a kernel's rounded weights, by the techniques where they are better."""
        precision = self.kernels.get(name, self._precision)
        axes = scale_axes(kernel, precision.weight_axes(outputs, kernel.ndim), precision)
        nearest = np.asarray(precision.quantize_weights(kernel, axes))
        found = precision.weight_codes(kernel, axes)
        if found is None or not is_product(layer) or not self.rounds:
            return nearest
        scales = np.broadcast_to(np.asarray(found[1], np.float64), kernel.shape)
        problem = Kernel(
            name,
            as_products(layer, kernel.astype(np.float64)),
            as_products(layer, scales)[:, :1, :],
            2 ** (precision.weight_bits - 1) - 1,
            second_moments(layer, inputs),
        )
        best = as_products(layer, np.asarray(found[0], np.float64))
        for technique in self._techniques:
            codes = technique.round(problem, best)
            if problem.error(codes) < problem.error(best):
                best = codes
        values = (best * problem.scales).astype(np.float32)
        rounded = from_products(layer, values, kernel.shape)
        # Rounded weights must have the scales that they were rounded with.
        again = scale_axes(rounded, precision.weight_axes(outputs, kernel.ndim), precision)
        return rounded if again == axes else nearest

    def written(self) -> Any:
        """Returns a copy of the model with what the techniques chose."""
        layers, where = dict(named_layers(self._model)), paths(self._model)
        weights: Weights = {}

        def of(name: str) -> dict[str, np.ndarray]:
            return weights.setdefault(where[name], attributes(layers[where[name]]))

        if self.rounds:
            for name, values in self.outcome.kernels.items():
                layer, _, attribute = name.rpartition("/")
                of(layer)[attribute] = values
        for operator, gain in self.outcome.biases.items():
            owner, _ = self.network.kernel_of(operator)
            own = of(owner)
            found = self.network.graph.operators.get(operator)
            norms = found.batch_norms if found is not None else ()
            if "bias" not in own and norms:
                norm = of(norms[0])
                norm["moving_mean"] = norm["moving_mean"] - gain
            else:
                own["bias"] = own.get("bias", 0.0) + gain

        def edit(path: str, config: dict[str, Any]) -> dict[str, Any]:
            return {**config, "use_bias": True} if "bias" in weights.get(path, {}) else config

        return copy_model(self._model, edit, weights)
