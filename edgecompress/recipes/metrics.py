"""The metric by which stages are judged: accuracy, an error, or any metric of Keras."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core.errors import ArgumentError, one_line

if TYPE_CHECKING:
    from edgecompress.recipes.task import Task

_BATCH = 1024
# Keras's own metrics by the direction in which they get better. Those of others have to say it.
GOALS = {
    "max": frozenset({
        "AUC", "BinaryAccuracy", "BinaryIoU", "CategoricalAccuracy", "ConcordanceCorrelation",
        "CosineSimilarity", "F1Score", "FBetaScore", "OneHotIoU", "OneHotMeanIoU",
        "PearsonCorrelation", "Precision", "PrecisionAtRecall", "R2Score", "Recall",
        "RecallAtPrecision", "SensitivityAtSpecificity", "SparseCategoricalAccuracy",
        "SparseTopKCategoricalAccuracy", "SpecificityAtSensitivity", "TopKCategoricalAccuracy",
        "TrueNegatives", "TruePositives",
    }),
    "min": frozenset({
        "BinaryCrossentropy", "CategoricalCrossentropy", "CategoricalHinge", "FalseNegatives",
        "FalsePositives", "Hinge", "KLDivergence", "LogCoshError", "MeanAbsoluteError",
        "MeanAbsolutePercentageError", "MeanSquaredError", "MeanSquaredLogarithmicError", "Poisson",
        "RootMeanSquaredError", "SparseCategoricalCrossentropy", "SquaredHinge",
    }),
}  # fmt: skip
# They compare class numbers with outputs, which are none.
_OF_NUMBERS = {"Accuracy", "IoU", "MeanIoU"}
_ACCURACY = ("accuracy", "acc")


@dataclass(frozen=True)
class Metric:
    """The metric by which the stages are judged.

    Attributes:
        name: `accuracy`, `mean_squared_error`, or the name of a Keras metric.
        higher_is_better: Whether more is better.
        measure: (labels as the task keeps them, outputs) -> value.
        given: Whether it was asked for by `--metric`.
    """

    name: str
    higher_is_better: bool
    measure: Callable[[np.ndarray, np.ndarray], float] = field(repr=False)
    given: bool = False

    def drop(self, before: float, after: float) -> float:
        """Returns how much worse `after` is than `before`; negative if it is better."""
        return before - after if self.higher_is_better else after - before


def given_metric(given: Any, goal: str | None, task: Task) -> Metric:
    """Returns the metric that the user asked for.

    Args:
        given: Name of a Keras metric, its serialized form, or that form as JSON.
        goal: `max` or `min`; None: as Keras's own metrics are known.
        task: What the model is trained for; its own metric is that of the loss.

    Raises:
        ArgumentError: there is no such metric, it does not suit the task, or its direction is
            unknown.
    """
    if isinstance(given, str) and given in _ACCURACY:
        if not task.is_classifier:
            raise ArgumentError("--metric", "be a metric of values for this model", given)
        return _checked_goal(task.metric, "max", goal)
    metric = _keras_metric(given)
    kind = type(metric).__name__
    if kind in _OF_NUMBERS:
        raise ArgumentError(
            "--metric", "be a metric of a model's outputs", kind,
            "Use accuracy, OneHotIoU or OneHotMeanIoU.",
        )  # fmt: skip
    known = next((name for name, kinds in GOALS.items() if kind in kinds), None)
    # A class of the user's own may have the name of one of Keras's.
    known = known if type(metric).__module__.split(".")[0] == "keras" else None
    if known is None and goal is None:
        raise ArgumentError(
            "--metric-goal", f"be given with {metric.name}: max if more is better, else min", None
        )
    found = Metric(metric.name, (goal or known) == "max", _measure(metric, task), given=True)
    return _checked_goal(found, known, goal)


def _checked_goal(metric: Metric, known: str | None, goal: str | None) -> Metric:
    if goal is not None and known is not None and goal != known:
        raise ArgumentError("--metric-goal", f"be {known} for {metric.name}", goal)
    return metric


def _keras_metric(given: Any) -> Any:
    """Returns a metric of Keras by name or by its serialized form."""
    import keras

    config = given
    try:
        if isinstance(given, str) and given.lstrip().startswith("{"):
            config = json.loads(given)
        if isinstance(config, dict):
            # Keras's own, unless the form says where it is from.
            config = {"module": "keras.metrics", "registered_name": None, **config}
            made = keras.metrics.deserialize(config)
        else:
            made = keras.metrics.get(config)
        if inspect.isfunction(made):
            made = keras.metrics.MeanMetricWrapper(made, name=made.__name__)
        if isinstance(made, keras.metrics.Metric):
            return made
    # Configurations fail in many ways.
    except Exception as error:
        raise ArgumentError(
            "--metric", "be a metric of Keras, by name or as JSON of its serialized form", given,
            one_line(error, 160),
        ) from error  # fmt: skip
    raise ArgumentError("--metric", "be a metric of Keras", given)


def _measure(metric: Any, task: Task) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns a function of labels and outputs in the form that the task keeps them."""
    from edgecompress.recipes.task import class_numbers

    config = metric.get_config()
    sparse = type(metric).__name__.startswith("Sparse")

    def measure(labels: np.ndarray, outputs: np.ndarray) -> float:
        outputs = outputs.astype(np.float32)
        if task.is_classifier and task.output == "logits" and not config.get("from_logits"):
            outputs = _probabilities(outputs, task.kind == "binary")
        size = _BATCH
        if task.kind == "classes":
            # Each row of classes is an answer, wherever in a sample it is.
            classes = outputs.shape[-1]
            numbers = class_numbers(labels, outputs.shape[1:]).reshape(-1)
            size *= len(numbers) // len(labels)
            labels = numbers if sparse else np.eye(classes, dtype=np.float32)[numbers]
            outputs = outputs.reshape(-1, classes)
        metric.reset_state()
        for start in range(0, len(outputs), size):
            part = slice(start, start + size)
            metric.update_state(labels[part], outputs[part].reshape(_form(labels[part], outputs)))
        result = metric.result()
        value = np.asarray(result if not isinstance(result, dict) else list(result.values()))
        if value.size != 1:
            raise ArgumentError(
                "--metric", "be a single number", f"{metric.name} of {value.size}",
                'Give an average, as in {"class_name": "F1Score", "config": {"average": "macro"}}.',
            )  # fmt: skip
        number = float(value.reshape(()))
        if not math.isfinite(number):
            raise ArgumentError("--metric", "be finite on the data", f"{metric.name} = {number}")
        return number

    return measure


def _form(labels: np.ndarray, outputs: np.ndarray) -> tuple[int, ...]:
    """Returns the shape of outputs: that of labels, if they are the same values."""
    shape = (len(labels), *outputs.shape[1:])
    return labels.shape if labels.size == int(np.prod(shape)) else shape


def _probabilities(logits: np.ndarray, binary: bool) -> np.ndarray:
    if binary:
        return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
