"""Calibration data: loading it, checking it against the model, measuring ranges with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters.loaders import InputSpec, LoadedModel, wrap
from edgecompress.converters.streams import collect, is_stream
from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    NotFiniteError,
    UnreadableFileError,
    one_line,
)
from edgecompress.core.reading import read_arrays
from edgecompress.core.suppress_output import suppress_output
from edgecompress.flatbuffers.all_outputs import with_outputs
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.stepping import Stepping
from edgecompress.precisions.ranges.histogram import Histogram

# Minimum and maximum settle long before that; more samples only cost time.
MAX_SAMPLES = 500
_LABELS = "y"
# Keys of labels: `y`, `y0`, `y1`, ... and `y_<output>`.
_LABEL_KEY = re.compile(r"y(\d+|_.+)?", re.DOTALL)

# Labels of one output, or by key: `y_<output>`, `y0`, `y1`, ...
Labels = np.ndarray | Mapping[str, np.ndarray]
Data = tuple[tuple[np.ndarray, ...] | None, Labels | None]


def load(
    source: Any,
    model: Any,
    argument: str = "calibration",
    max_samples: int | None = None,
    whole: bool = False,
) -> Data:
    """Loads samples, and labels if there are any, and checks them against a model's inputs.

    Args:
        source: Path of an .npy or .npz file, an array, a list of arrays (one for each input), a
            mapping from names to arrays, or (x, y) with labels y: an array, a list for several
            outputs, or a mapping from their names. In files and mappings, labels have the key `y`,
            those of several outputs `y_<output>` or `y0`, `y1`, ... by position; the samples of a
            single input have its name, the key `x`, or are the first other array, those of several
            inputs have the inputs' names or `x0`, `x1`, ... by position. A tf.data.Dataset, a
            generator or a function that returns one (TFLite's representative dataset) yields
            batches or samples of these; `streams.MOST_SAMPLES` of them are taken. None gives
            (None, None).
        model: What the samples are for: a LoadedModel, a Keras model or a FlatModel.
        argument: Name of the argument for error messages. Defaults to `calibration`.
        max_samples: Keep this many, evenly spaced so that data sorted by class stay balanced.
            Defaults to None: all.
        whole: Read a stream to its end instead of only its first samples. Defaults to False.

    Returns:
        (samples, labels): one array for each input, `(samples, *input shape)`, in the dtype the
        float model takes; labels `(samples, ...)`, a mapping from keys to them, or None.

    Raises:
        ArgumentError: the source is missing, damaged, pickled, empty, not finite, or its shape or
            dtype is not the model's. Integer arrays are refused for floating inputs: whether the
            model was trained on raw or scaled values cannot be told from them.

    Example:
        >>> samples, labels = load("calibration.npz", model)  # doctest: +SKIP
    """
    if source is None:
        return None, None
    inputs = _inputs(model)
    if is_stream(source):
        ranks, names = [len(spec.shape) for spec in inputs], [spec.name for spec in inputs]
        source = collect(source, ranks, names, argument, whole)
    arrays, labels = _arrays(source, inputs, argument)
    checked = tuple(
        _checked(array, spec, argument) for array, spec in zip(arrays, inputs, strict=True)
    )
    each = _each(labels)
    if any(array.ndim == 0 for array in each.values()):
        raise ArgumentError(argument, "hold labels whose first axis is samples", "a single number")
    lengths = {len(array) for array in (*checked, *each.values())}
    if len(lengths) > 1:
        raise ArgumentError(
            argument, "hold as many samples in each array (labels included)", sorted(lengths)
        )
    if max_samples is not None:
        checked = tuple(spread(array, max_samples) for array in checked)
        each = {key: spread(array, max_samples) for key, array in each.items()}
    return checked, each.get("") if set(each) <= {""} else each


def _each(labels: Labels | None) -> dict[str, np.ndarray]:
    """Returns labels by key; those of a single array have the key ""."""
    if labels is None:
        return {}
    return dict(labels) if isinstance(labels, Mapping) else {"": labels}


def spread(array: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` samples of an array, evenly spaced over its first axis.

    Example:
        >>> spread(np.arange(10), 4)
        array([0, 2, 5, 7])
    """
    if len(array) <= count:
        return array
    return array[np.arange(count) * len(array) // count]


def _inputs(model: Any) -> tuple[InputSpec, ...]:
    if isinstance(model, FlatModel):
        # A quantized input still takes real numbers here: whatever runs the file quantizes them.
        return tuple(
            InputSpec(t.name, t.shape[1:], "float32" if t.is_quantized else t.type.lower())
            for t in (model.tensors[index] for index in model.inputs)
        )
    return model.inputs if isinstance(model, LoadedModel) else wrap(model).inputs


def _arrays(
    source: Any, inputs: Sequence[InputSpec], argument: str
) -> tuple[list[np.ndarray], Labels | None]:
    """Returns one array for each input, and the labels."""
    if isinstance(source, (str, Path)):
        source = read_file(Path(source), argument)
    pair = isinstance(source, tuple) and len(source) == 2
    if pair and (not _is_array(source[1]) or isinstance(source[0], (list, Mapping))):
        arrays, labels = _arrays(source[0], inputs, argument)
        if labels is not None:
            raise ArgumentError(argument, "hold labels once", "labels in both parts of (x, y)")
        return arrays, _given_labels(source[1], argument)
    if isinstance(source, Mapping):
        return _from_mapping(source, inputs, argument)
    if isinstance(source, (list, tuple)) and all(hasattr(a, "shape") for a in source):
        arrays = [np.asarray(array) for array in source]
        if len(arrays) == len(inputs) + 1 and isinstance(source, tuple):
            return arrays[:-1], arrays[-1]
    else:
        try:
            arrays = [np.asarray(source)]
        except ValueError as error:
            raise ArgumentError(
                argument, "be arrays of samples of one shape", str(error)
            ) from error
    if len(arrays) != len(inputs):
        raise ArgumentError(
            argument, f"hold one array for each of the model's {len(inputs)} inputs", len(arrays)
        )
    return arrays, None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _given_labels(labels: Any, argument: str) -> Labels | None:
    """Returns labels that came as the second of (x, y) and are not an array."""
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        named = {str(key): np.asarray(array) for key, array in labels.items()}
        return {key if _LABEL_KEY.fullmatch(key) else f"y_{key}": a for key, a in named.items()}
    if isinstance(labels, (list, tuple)) and labels and all(_is_array(a) for a in labels):
        return {f"y{position}": np.asarray(array) for position, array in enumerate(labels)}
    return np.asarray(labels)


def read_file(path: Path, argument: str) -> Any:
    """Returns the array of an .npy file, or the arrays of an .npz file by name.

    Raises:
        ArgumentError: it is neither, or is damaged.
    """
    rule = "be a readable .npy or .npz file of numbers"
    if path.suffix not in (".npy", ".npz"):
        raise ArgumentError(argument, rule, str(path), "Write one with numpy.savez(path, x=x).")
    try:
        return read_arrays(path)
    except UnreadableFileError as error:
        raise ArgumentError(argument, rule, str(path), f"It {error.problem}.") from error


def _from_mapping(
    source: Mapping[str, Any], inputs: Sequence[InputSpec], argument: str
) -> tuple[list[np.ndarray], Labels | None]:
    names = {spec.name for spec in inputs}
    keys = [key for key in source if _LABEL_KEY.fullmatch(key) and key not in names]
    labels: Labels | None = {key: np.asarray(source[key]) for key in keys} or None
    if keys == [_LABELS]:
        labels = np.asarray(source[_LABELS])
    data = {key: value for key, value in source.items() if key not in keys}
    if not data:
        raise ArgumentError(argument, "hold samples under the key x", sorted(source))
    if len(inputs) == 1:
        first = inputs[0].name if inputs[0].name in data else next(iter(data))
        return [np.asarray(data.get("x", data[first]))], labels
    arrays = []
    for position, spec in enumerate(inputs):
        key = spec.name if spec.name in data else f"x{position}"
        if key not in data:
            known = ", ".join(i.name for i in inputs)
            raise ArgumentError(argument, f"hold an array for each input ({known})", sorted(source))
        arrays.append(np.asarray(data[key]))
    return arrays, labels


def _checked(array: np.ndarray, spec: InputSpec, argument: str) -> np.ndarray:
    expected = ", ".join("any" if size is None else str(size) for size in spec.shape)
    rule = f"hold samples of shape ({expected}) for input {spec.name!r}"
    got = f"array of shape {array.shape} and dtype {array.dtype}"
    if (
        array.ndim == 0
        or array.ndim != len(spec.shape) + 1
        or any(
            want is not None and want != have
            for want, have in zip(spec.shape, array.shape[1:], strict=True)
        )
    ):
        hint = "The first axis counts the samples."
        if spec.shape[-1:] == (1,) and array.shape[1:] == spec.shape[:-1]:
            hint = "Add the channel axis: x[..., None]."
        elif array.shape == spec.shape:
            hint = "Add the sample axis: x[None]."
        raise ArgumentError(argument, rule, got, hint)
    if len(array) == 0:
        raise ArgumentError(argument, "hold at least one sample", got)
    floating = np.issubdtype(array.dtype, np.floating)
    if spec.dtype.startswith(("float", "bfloat")):
        if not floating:
            raise ArgumentError(
                argument,
                "hold floating-point numbers, scaled as in training",
                got,
                "Give x.astype('float32') with the scaling that training used (e.g. / 255).",
            )
        array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            bad = int(np.count_nonzero(~np.isfinite(array)))
            raise ArgumentError(
                argument, "hold finite numbers only", f"{bad} of {array.size} are NaN or infinite"
            )
        return np.ascontiguousarray(array)
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise ArgumentError(argument, f"hold integers for input {spec.name!r}", got)
    converted = array.astype(spec.dtype)
    if not np.array_equal(converted, array):
        raise ArgumentError(argument, f"fit {spec.dtype} for input {spec.name!r}", got)
    return np.ascontiguousarray(converted)


class _Interpreter:
    """A float flatbuffer in LiteRT that exposes every tensor.

    Args:
        data: The file's bytes.
        fast: Whether XNNPACK runs it, which exposes only outputs of the file. Defaults to False:
            built-in kernels, which take four times as long.
    """

    def __init__(self, data: bytes, fast: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kinds = OpResolverType
        try:
            with suppress_output():
                self._interpreter = Interpreter(
                    model_content=data,
                    num_threads=1,
                    experimental_preserve_all_tensors=not fast,
                    experimental_op_resolver_type=(
                        kinds.AUTO if fast else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                    ),
                )
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"LiteRT cannot load the float file: {one_line(error)}") from error
        self._inputs = [d["index"] for d in self._interpreter.get_input_details()]

    def invoke(self, sample: Sequence[np.ndarray]) -> None:
        """Runs one sample: one array for each input, without the sample axis."""
        for index, array in zip(self._inputs, sample, strict=True):
            self._interpreter.set_tensor(index, array[None])
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise EngineError(f"LiteRT cannot run the float file: {one_line(error)}") from error

    def run(
        self, samples: Sequence[np.ndarray], stepping: Stepping | None = None
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Runs samples; yields the number of the sample and its inputs after each inference.

        Args:
            samples: One array for each input, `(samples, ...)`; those of a streaming file are
                sequences, without its states.
            stepping: How a streaming file runs over them. Defaults to None: one inference each.
        """
        for position in range(len(samples[0])):
            # Samples are independent: a recurrent model's state starts at zero.
            self._interpreter.reset_all_variables()
            sequence = [array[position] for array in samples]
            if stepping is None:
                self.invoke(sequence)
                yield position, sequence
                continue
            details = self._interpreter.get_input_details()[len(samples) :]
            states = [np.zeros(d["shape"][1:], d["dtype"]) for d in details]
            outputs = [d["index"] for d in self._interpreter.get_output_details()]
            for start in range(0, len(sequence[0]), stepping.hop):
                given = [array[start : start + stepping.hop] for array in sequence] + states
                self.invoke(given)
                yield position, given
                states = [
                    self._interpreter.get_tensor(outputs[number])[0] for number in stepping.states
                ]

    def value(self, index: int) -> np.ndarray | None:
        """Returns a tensor's present value; None for one that no operator has filled."""
        try:
            return self._interpreter.get_tensor(index)
        except ValueError:
            return None

    def view(self, index: int) -> np.ndarray | None:
        """Returns the same without a copy; it must be gone before the next inference."""
        try:
            found: np.ndarray = self._interpreter.tensor(index)()
        except ValueError:
            return None
        return found


def computed_tensors(model: FlatModel) -> list[int]:
    """Returns the floating tensors that inference computes, in order of execution, inputs first."""
    found = dict.fromkeys(model.inputs)
    for operator in model.operators:
        found.update(dict.fromkeys(operator.outputs))
    return [i for i in found if model.tensors[i].type == "FLOAT32"]


def tensor_values(model: bytes | FlatModel, sample: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Returns what a float flatbuffer computes for one sample: tensor index -> value.

    Args:
        model: A float .tflite file of batch 1: bytes, or as read.
        sample: One array for each input, without the sample axis.

    Raises:
        EngineError: LiteRT cannot load or run the file.
    """
    flat = read_tflite(model)
    interpreter = _Interpreter(flat.data)
    interpreter.invoke(sample)
    values = ((i, interpreter.value(i)) for i in computed_tensors(flat))
    return {i: value for i, value in values if value is not None}


def tensor_samples(
    model: FlatModel,
    samples: Sequence[np.ndarray],
    indices: Sequence[int],
    stepping: Stepping | None = None,
) -> dict[int, np.ndarray]:
    """Returns what tensors of a float file hold after each inference: index -> (runs, *shape).

    Args:
        model: A float .tflite file of batch 1.
        samples: One array for each input, `(samples, ...)`.
        indices: Tensors that inference computes, or variables.
        stepping: How a streaming file runs over samples, which are sequences. Defaults to None.

    Raises:
        EngineError: LiteRT cannot load or run the file.
    """
    interpreter = _Interpreter(model.data)
    found: dict[int, list[Any]] = {index: [] for index in indices}
    for _ in interpreter.run(samples, stepping):
        for index, values in found.items():
            values.append(interpreter.value(index))
    return {index: np.stack(values) for index, values in found.items()}


def measure_ranges(
    model: bytes | FlatModel, samples: Sequence[np.ndarray], stepping: Stepping | None = None
) -> dict[int, tuple[float, float]]:
    """Returns the range each floating tensor covers over the samples: index -> (min, max).

    Args:
        model: A float .tflite file of batch 1: bytes, or as read.
        samples: One array for each input, `(samples, ...)`.
        stepping: How a streaming file runs over samples, which are sequences. Defaults to None.

    Raises:
        EngineError: LiteRT cannot load or run the file.
        NotFiniteError: a tensor holds NaN or infinity; the text names the first one.
    """
    flat = read_tflite(model)
    indices = computed_tensors(flat)
    interpreter = _Interpreter(with_outputs(flat, indices), fast=True)
    ranges: dict[int, tuple[float, float]] = {}
    for position, _ in interpreter.run(samples, stepping):
        for index in indices:
            value = interpreter.view(index)
            if value is None or value.size == 0:
                continue
            smallest, largest = float(value.min()), float(value.max())
            del value
            # NaN anywhere makes both NaN.
            if not (math.isfinite(smallest) and math.isfinite(largest)):
                # Operators are in execution order, so this is where it arises.
                name = flat.tensors[index].name.split(";")[0]
                raise NotFiniteError(
                    f"Layer {name!r} computes NaN or infinity for calibration sample {position}. "
                    "Check the weights and operators of that layer."
                )
            low, high = ranges.get(index, (np.inf, -np.inf))
            ranges[index] = (min(low, smallest), max(high, largest))
    return ranges


def measure_histograms(
    model: bytes | FlatModel,
    samples: Sequence[np.ndarray],
    ranges: Mapping[int, tuple[float, float]],
    stepping: Stepping | None = None,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns how often tensors hold which values: index -> (values, counts).

    Args:
        model: A float .tflite file of batch 1: bytes, or as read.
        samples: One array for each input, `(samples, ...)`.
        ranges: What `measure_ranges` returned for the tensors that are wanted.
        stepping: How a streaming file runs over samples, which are sequences. Defaults to None.

    Returns:
        The middles of 2,048 equal intervals, ascending, and zero, which is not counted in them.

    Raises:
        EngineError: LiteRT cannot load or run the file.
    """
    flat = read_tflite(model)
    interpreter = _Interpreter(with_outputs(flat, list(ranges)), fast=True)
    found = {index: Histogram(low, high) for index, (low, high) in ranges.items()}
    for _ in interpreter.run(samples, stepping):
        for index, histogram in found.items():
            value = interpreter.view(index)
            if value is not None:
                histogram.add(value)
            del value
    return {index: histogram.result() for index, histogram in found.items()}
