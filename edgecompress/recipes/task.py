"""What a model is trained for: the kind of its labels and outputs, its loss, its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters import configurations
from edgecompress.converters.loaders import LoadedModel
from edgecompress.converters.tasks import read_loss, stored_loss
from edgecompress.core.errors import ArgumentError, UnsupportedModelError, one_line
from edgecompress.core.keras_graph import functional_of, graph_nodes
from edgecompress.core.registry import Registry
from edgecompress.recipes.data import Data, Samples
from edgecompress.recipes.metrics import Metric, given_metric

# A row of probabilities sums to 1 within float32's and float16's rounding.
_SUM_TOLERANCE = 1e-2
_SAMPLES = 256
# Kinds of losses (`converters.tasks`) whose labels are values, whatever they look like.
_OF_VALUES = ("mse", "mae")


@dataclass(frozen=True)
class Task:
    """What a model is trained for.

    Attributes:
        kind: `classes` (one of several, along the last axis), `binary` (yes or no, for each number
            of the output) or `values`.
        output: The kind of its outputs: `probabilities`, `logits` or `values`.
        metric: The metric by which the stages are judged.
        loss: The Keras loss, (y_true, y_pred) -> loss.
        loss_text: The loss and where it comes from, for people.
        sparse: Whether the loss takes class numbers instead of one-hot rows.
    """

    kind: str
    output: str
    metric: Metric
    loss: Callable[[Any, Any], Any] = field(repr=False)
    loss_text: str
    sparse: bool

    @property
    def is_classifier(self) -> bool:
        """Whether the model is a classifier."""
        return self.kind != "values"

    @property
    def has_classes_for_export(self) -> bool:
        """Whether `export` can measure the accuracy: it treats a single output as a probability."""
        return self.kind == "classes" or (self.kind == "binary" and self.output != "logits")

    def labels(self, samples: Samples, outputs: tuple[int, ...]) -> np.ndarray:
        """Returns labels as the loss takes them: (samples, ...), float32.

        Args:
            samples: With checked labels.
            outputs: Shape of one output.
        """
        y = samples.x[0] if samples.y is None else samples.y
        if self.kind != "classes":
            return y.reshape(len(y), *outputs).astype(np.float32)
        if self.sparse:
            return class_numbers(y, outputs)[..., None].astype(np.float32)
        if y.shape[1:] == tuple(outputs):
            return y.astype(np.float32)
        return np.eye(outputs[-1], dtype=np.float32)[class_numbers(y, outputs)]

    def exported_labels(self, samples: Samples, outputs: tuple[int, ...]) -> np.ndarray:
        """Returns labels as `export` takes them: class numbers, or in the shape of the outputs.

        Args:
            samples: With checked labels.
            outputs: Shape of one output.
        """
        y = samples.x[0] if samples.y is None else samples.y
        return class_numbers(y, outputs) if self.kind == "classes" else y


def class_numbers(y: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
    """Returns class numbers from class numbers, one-hot rows or probabilities.

    Args:
        y: Labels, (samples, ...).
        outputs: Shape of one output, classes last.

    Returns:
        (samples, *outputs[:-1]).
    """
    if y.shape[1:] == tuple(outputs):
        return np.asarray(y.argmax(-1))
    return y.reshape(len(y), *outputs[:-1]).astype(np.int64)


def _top1(labels: np.ndarray, outputs: np.ndarray) -> float:
    return float(np.mean(class_numbers(labels, outputs.shape[1:]) == outputs.argmax(-1)))


def _sides(limit: float) -> Callable[[np.ndarray, np.ndarray], float]:
    def measure(labels: np.ndarray, outputs: np.ndarray) -> float:
        return float(np.mean((labels.reshape(-1) >= 0.5) == (outputs.reshape(-1) >= limit)))

    return measure


def _squares(labels: np.ndarray, outputs: np.ndarray) -> float:
    return float(np.mean((labels.astype(np.float64) - outputs.reshape(labels.shape)) ** 2))


def find_task(
    loaded: LoadedModel,
    data: Data,
    outputs: np.ndarray,
    given_loss: Any,
    metric: Any = None,
    goal: str | None = None,
) -> Task:
    """Infers what a model is trained for from its outputs, its labels and its own loss.

    Args:
        loaded: The model.
        data: Training and validation data.
        outputs: The model's outputs for the first training samples.
        given_loss: The loss it was compiled with, as `own_loss` returns it; None for none.
        metric: Metric to judge by, as `metrics.given_metric` takes it. Defaults to None: accuracy,
            or the mean squared error of values.
        goal: Its direction, `max` or `min`. Defaults to None.

    Raises:
        ArgumentError: the labels do not fit the outputs, or the metric does not.
    """
    task = _find_task(loaded, data, outputs, given_loss)
    if metric is None:
        if goal is not None:
            raise ArgumentError("--metric-goal", "go with --metric", goal)
        return task
    return replace(task, metric=given_metric(metric, goal, task))


def _find_task(loaded: LoadedModel, data: Data, outputs: np.ndarray, given_loss: Any) -> Task:
    said = _Said(_last_activation(loaded.model), getattr(read_loss(given_loss), "kind", ""))
    kind = _kind(data.train, outputs, said, "--data")
    for argument, held in (("--validation", data.validation), ("--test", data.test)):
        found = kind if held is None else _kind(held, outputs, said, argument)
        if {found, kind} == {"classes", "binary"} and said.several:
            # Each row of one of the two happens to hold a single 1.
            kind = found = "binary"
        if held is not None and found != kind:
            raise ArgumentError(
                argument, "hold labels like those of --data",
                None if held.y is None else held.y.dtype,
            )  # fmt: skip
    output = "values"
    if kind != "values":
        output = output_kind(loaded.model, outputs, kind == "binary")
    if kind == "classes":
        metric = Metric("accuracy", True, _top1)
    elif kind == "binary":
        metric = Metric("accuracy", True, _sides(0.0 if output == "logits" else 0.5))
    else:
        metric = Metric("mean_squared_error", False, _squares)
    if given_loss is not None:
        text = f"{_loss_name(given_loss)}, the model's own"
        return Task(kind, output, metric, given_loss, text, "sparse" in _loss_name(given_loss))
    loss, why = LOSSES[kind](output)
    text = f"{_loss_name(loss)}, as the model brings none and {why}"
    return Task(kind, output, metric, loss, text, kind == "classes")


@dataclass(frozen=True)
class _Said:
    """What a model says of its outputs.

    Attributes:
        activation: Its last one; None if there is none to inspect.
        loss: Kind of its own loss (`converters.tasks.LOSSES`); "" without one, or if it is unknown.
    """

    activation: str | None
    loss: str

    @property
    def several(self) -> bool:
        """Whether each number of an output is a yes or no of its own."""
        return self.loss == "sides" or (self.loss == "" and self.activation == "sigmoid")

    @property
    def values(self) -> bool:
        """Whether the outputs are values to be met, whatever the labels look like."""
        return self.loss in _OF_VALUES and self.activation not in ("softmax", "sigmoid")


def _kind(samples: Samples, outputs: np.ndarray, said: _Said, argument: str) -> str:
    y, shape = samples.y, outputs.shape[1:]
    if y is None:
        if samples.x[0].shape[1:] != shape:
            raise ArgumentError(
                argument, f"hold labels under the key y for a model with outputs of shape {shape}",
                "x alone", "Only a model that gives its input back is trained without.",
            )  # fmt: skip
        return "values"
    whole = bool((y == np.round(y)).all())
    each = _squeezed(y.shape) == _squeezed((len(y), *shape))
    sides = whole and each and y.min() >= 0 and y.max() <= 1
    if shape and shape[-1] > 1:
        if whole and _squeezed(y.shape) == _squeezed((len(y), *shape[:-1])) and not each:
            if y.min() < 0 or y.max() >= shape[-1]:
                raise ArgumentError(
                    argument, f"hold class numbers from 0 to {shape[-1] - 1} under the key y",
                    f"values from {y.min()} to {y.max()}",
                )  # fmt: skip
            return "classes"
        if y.shape[1:] == shape and y.min() >= 0 and not (said.values and not sides):
            rows = np.abs(y.sum(-1) - 1).max() < _SUM_TOLERANCE
            # In images, three numbers of a pixel may sum to 1 by chance, but are not 0 and 1.
            if rows and (len(shape) == 1 or sides or said.loss == "classes"):
                return "classes"
    if sides and (said.several or (int(np.prod(shape)) == 1 and not said.values)):
        return "binary"
    if each:
        return "values"
    wanted = f"values of shape {shape}"
    if shape and shape[-1] > 1:
        numbers = "class numbers" if len(shape) == 1 else f"class numbers of shape {shape[:-1]}"
        wanted = f"{numbers}, one-hot rows or {wanted}"
    got = f"array of shape {y.shape} and dtype {y.dtype}"
    raise ArgumentError(argument, f"hold {wanted} under the key y, as the model gives", got)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without its axes of size 1; the first one, for samples, stays."""
    return (shape[0], *(size for size in shape[1:] if size != 1))


def output_kind(model: Any, outputs: np.ndarray, binary: bool = False) -> str:
    """Returns whether a classifier gives `probabilities` or `logits`.

    This follows from the activation of the output layer or, if there is none to inspect, from the
    outputs: probabilities are between 0 and 1 and sum to 1.

    Args:
        model: A Keras model.
        outputs: Its outputs for some samples, (samples, ...).
        binary: Whether each number of an output is a yes or no of its own: those have no sum.
    """
    activation = _last_activation(model)
    if activation is not None:
        return "probabilities" if activation in ("softmax", "sigmoid") else "logits"
    inside = outputs.min() >= 0 and outputs.max() <= 1
    one = binary or outputs.shape[-1] == 1
    sums = one or np.abs(outputs.sum(-1) - 1).max() < _SUM_TOLERANCE
    return "probabilities" if inside and sums else "logits"


def _last_activation(model: Any) -> str | None:
    output = model.outputs[0]
    for node in graph_nodes(model):
        if any(tensor is output for tensor in node.outputs):
            operation = node.operation
            if hasattr(operation, "layers"):
                return _last_activation(operation)
            if type(operation).__name__ in ("Softmax", "Sigmoid"):
                return type(operation).__name__.lower()
            function = getattr(operation, "activation", None)
            return getattr(function, "__name__", None)
    return None


# Kind -> function of the output that returns a loss and the reason for it.
LOSSES: Registry[Callable[[str], tuple[Any, str]]] = Registry("kind of labels")


@LOSSES.register("classes")
def _class_loss(output: str) -> tuple[Any, str]:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=output == "logits")
    return loss, f"its outputs are {output}"


@LOSSES.register("binary")
def _binary_loss(output: str) -> tuple[Any, str]:
    import keras

    logits = output == "logits"
    why = f"its output is a {'logit' if logits else 'probability'}"
    return keras.losses.BinaryCrossentropy(from_logits=logits), why


@LOSSES.register("values")
def _value_loss(output: str) -> tuple[Any, str]:
    import keras

    return keras.losses.MeanSquaredError(), "its labels are values"


def _loss_name(loss: Any) -> str:
    name = getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    return f"{name}(from_logits=True)" if config.get("from_logits") else str(name)


def own_loss(model: Any, path: Path | None) -> tuple[Any, tuple[str, ...]]:
    """Returns the loss that a model was compiled with, and notes; None if there is none.

    Files are loaded without being compiled, so the loss is read from their configuration.

    Args:
        model: The Keras model.
        path: The file that it was loaded from; None for a model in memory.

    Raises:
        UnsupportedModelError: the model has several losses.
    """
    import keras

    try:
        if path is not None:
            loss = stored_loss(path)
            try:
                configurations.check_part(loss, path)
            except UnsupportedModelError as error:
                return None, (f"The model's own loss is not read: {one_line(error, 160)}",)
        else:
            loss = model.loss if getattr(model, "compiled", False) else None
        if isinstance(loss, dict) and "class_name" in loss:
            return keras.losses.get(loss), ()
        if isinstance(loss, dict):
            loss = list(loss.values())
        if isinstance(loss, (list, tuple)):
            if len(loss) > 1:
                raise UnsupportedModelError(
                    f"Model {model.name!r} has {len(loss)} losses; recipes train models with one."
                )
            loss = loss[0] if loss else None
        return keras.losses.get(loss), ()
    # Configurations of other Keras versions fail in many ways.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return None, (f"The model's own loss cannot be read: {one_line(error, 120)}",)


def check_model(loaded: LoadedModel) -> None:
    """Refuses models that a recipe cannot train.

    Raises:
        UnsupportedModelError: no Keras 3 graph, several outputs, or nothing to train.
    """
    if loaded.flavour != "keras3":
        kind = {"tf_keras": "a Keras 2 model", "saved_model": "a SavedModel"}[loaded.flavour]
        raise UnsupportedModelError(
            f"{loaded.path or loaded.name} is {kind}, which recipes cannot train. Save it from "
            "Keras 3 as a .keras file."
        )
    functional_of(loaded.model)
    if len(loaded.model.outputs) != 1:
        raise UnsupportedModelError(
            f"Model {loaded.name!r} has {len(loaded.model.outputs)} outputs; recipes train models "
            "with one. Compress it by callbacks in your own `fit`, and export it."
        )
    if not loaded.model.trainable_variables:
        raise UnsupportedModelError(
            f"Model {loaded.name!r} has no trainable weights: nothing can be compressed by "
            "training. `edgecompress export` converts it as it is."
        )


def first_outputs(loaded: LoadedModel, samples: Samples) -> np.ndarray:
    """Returns the model's outputs for some samples; refuses outputs that are not finite."""
    outputs = loaded.predict([array[:_SAMPLES] for array in samples.x])[0]
    if not np.isfinite(outputs).all():
        raise UnsupportedModelError(
            f"Model {loaded.name!r} gives NaN or infinite outputs on the data: it is not trained, "
            "or the data are not scaled as in its training."
        )
    return outputs
