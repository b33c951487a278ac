"""Metrics: scoring the outputs of a model against labels.

Pure numpy. To add a metric, register a function here and write its test.

Labels come in four forms; each metric declares which it takes:

| form | labels | what an output says |
| --- | --- | --- |
| `classes` | class numbers `(samples, ...)` | one value for each class, along the last axis; the largest wins, the first of equal ones |
| `numbers` | class numbers | the number of the class itself (the file ends in ARG_MAX) |
| `sides` | 0 or 1 for each element | yes from a cut on: 0.5 for a probability, 0 for a logit |
| `values` | real numbers in the shape of the output | those numbers |
"""  # noqa: E501 a table has no shorter lines

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgecompress.core.errors import ArgumentError, EdgeCompressError, UnknownNameError
from edgecompress.core.registry import Registry

Form = Literal["classes", "numbers", "sides", "values"]
Unit = Literal["share", "number"]

# At most this many classes or columns are listed individually in a score's detail.
_LISTED = 32


class NotMeasurable(EdgeCompressError):
    """A metric is not defined for these labels; the text is one sentence."""


@dataclass(frozen=True)
class Score:
    """What a metric found.

    Attributes:
        value: In the metric's unit; not finite if the outputs are not.
        detail: What explains it.
    """

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scored:
    """Labels and outputs in a form that metrics take.

    Attributes:
        form: See the table above.
        labels: `classes`, `numbers`: (elements,) whole numbers; `sides`: (rows, columns) of 0 and
            1; `values`: (samples, columns).
        outputs: `classes`: (elements, classes); `numbers`: (elements,); else as the labels.
        cut: The threshold from which an element is positive; None if not applicable.
        normal: Whether the outputs of the classes are probabilities.
    """

    form: Form
    labels: np.ndarray
    outputs: np.ndarray
    cut: float | None = None
    normal: bool = True


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: As `--metric` takes it.
        title: What reports call it.
        unit: `share` for 0 to 1, else `number`.
        higher_is_better: Whether higher is better: its limit is a floor, else a ceiling.
        forms: Which forms of labels it takes.
        measure: (labels and outputs, parameter) -> score.
        parameter: What may follow `@`; "" for nothing.
        each: (labels and outputs, parameter) -> numbers whose mean is the metric, elements or
            samples first; None for a metric that is no mean over samples.
    """

    name: str
    title: str
    unit: Unit
    higher_is_better: bool
    forms: tuple[Form, ...]
    measure: Callable[[Scored, float | None], Score] = field(repr=False)
    parameter: str = ""
    each: Callable[[Scored, float | None], np.ndarray] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Wanted:
    """A metric as written by a user: `accuracy`, `top5`, `binary_accuracy@0`, `mean_iou@255`.

    Attributes:
        metric: The metric.
        parameter: The k of top-k, the cut, the class to ignore; None for none.
    """

    metric: Metric
    parameter: float | None = None

    @property
    def name(self) -> str:
        """The name that `parse_metric` takes."""
        if self.parameter is None:
            return self.metric.name
        if self.metric.name == "top":
            return f"top{self.parameter:g}"
        return f"{self.metric.name}@{self.parameter:g}"

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name if self.metric.name == "top" else self.metric.title

    def measure(self, scored: Scored) -> Score:
        """Returns the score.

        Raises:
            NotMeasurable: the metric is not defined on these labels.
        """
        # Outputs may hold infinity; the score then does, too.
        with np.errstate(invalid="ignore", over="ignore"):
            return self.metric.measure(scored, self.parameter)

    def by_sample(self, scored: Scored, samples: int) -> np.ndarray | None:
        """Returns the metric of each sample, whose mean is the score; None if there is none.

        Args:
            scored: Labels and outputs.
            samples: How many samples they are of.
        """
        if self.metric.each is None:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            found = self.metric.each(scored, self.parameter)
        return np.asarray(found.reshape(samples, -1).mean(1, dtype=np.float64))


METRICS: Registry[Metric] = Registry("--metric")

# Names used by other libraries. `top1`, `top-5`, `top_5_accuracy` are matched by a pattern.
_ALIASES = {
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "r2_score": "r2",
    "roc_auc": "auc",
    "miou": "mean_iou",
    "categorical_accuracy": "accuracy",
    "sparse_categorical_accuracy": "accuracy",
}
_TOP = re.compile(r"top_?(\d{1,4})(?:_accuracy)?")


def parse_metric(text: str, argument: str = "--metric") -> Wanted:
    """Returns the metric that a text names, whatever its case; `-` counts as `_`.

    Raises:
        UnknownNameError: no metric has the name.
        ArgumentError: a parameter is missing, wrong or superfluous.

    Example:
        >>> parse_metric("R2").name, parse_metric("top-5").name, parse_metric("MAE").title
        ('r2', 'top5', 'MAE')
    """
    name, at, parameter = text.strip().partition("@")
    name = name.lower().replace("-", "_")
    if top := _TOP.fullmatch(name):
        name, at, parameter = "top", "@", top[1]
    name = _ALIASES.get(name, name)
    if name not in METRICS:
        raise UnknownNameError(argument, text, [n if n != "top" else "top5" for n in METRICS])
    metric = METRICS[name]
    if not at:
        if name == "top":
            raise ArgumentError(argument, "name how many, e.g. top5", text)
        return Wanted(metric)
    try:
        number = float(parameter)
    except ValueError:
        number = np.nan
    if not metric.parameter or not np.isfinite(number):
        rule = f"have {metric.parameter} after @" if metric.parameter else "be given without @"
        raise ArgumentError(argument, rule, text)
    if name in ("top", "mean_iou") and (number != int(number) or (name == "top" and number < 1)):
        raise ArgumentError(argument, "have a whole number, 1 or more" if name == "top" else
                            "have a class number after @", text)  # fmt: skip
    return Wanted(metric, number)


def _register(
    name: str,
    title: str,
    unit: Unit,
    forms: tuple[Form, ...],
    higher_is_better: bool = True,
    parameter: str = "",
    each: Callable[[Scored, float | None], np.ndarray] | None = None,
) -> Callable[[Callable[[Scored, float | None], Score]], Callable[[Scored, float | None], Score]]:
    def decorate(
        measure: Callable[[Scored, float | None], Score],
    ) -> Callable[[Scored, float | None], Score]:
        METRICS.register(name)(
            Metric(name, title, unit, higher_is_better, forms, measure, parameter, each)
        )
        return measure

    return decorate


# --- classes ------------------------------------------------------------------------------------


def _right(scored: Scored, parameter: float | None = None) -> np.ndarray:
    """Returns which predictions are correct."""
    if scored.form == "sides":
        return _right_sides(scored, parameter)
    return np.asarray(predictions(scored) == scored.labels)


def _right_sides(scored: Scored, parameter: float | None) -> np.ndarray:
    """Returns which elements are on the correct side of the threshold."""
    outputs = scored.outputs
    right = ((outputs >= _cut(scored, parameter)) == (scored.labels > 0)) & ~np.isnan(outputs)
    return np.asarray(right)


def _right_top(scored: Scored, k: float | None) -> np.ndarray:
    """Returns which labels are among the k largest outputs."""
    rows = np.arange(len(scored.labels))
    own = scored.outputs[rows, scored.labels][:, None]
    larger = (scored.outputs > own).sum(1)
    before = np.arange(scored.outputs.shape[1]) < scored.labels[:, None]
    rank = larger + ((scored.outputs == own) & before).sum(1)
    return np.asarray((rank < (k or 1)) & ~np.isnan(scored.outputs).any(1))


def _absolute(scored: Scored, parameter: float | None = None) -> np.ndarray:
    return np.asarray(np.abs(scored.outputs - scored.labels))


def _squared(scored: Scored, parameter: float | None = None) -> np.ndarray:
    return np.asarray((scored.outputs - scored.labels) ** 2)


@_register("accuracy", "accuracy", "share", ("classes", "numbers", "sides"), each=_right)
def accuracy(scored: Scored, parameter: float | None = None) -> Score:
    """Share of correct predictions: the largest output is the label's, or the side is correct.

    An element with NaN in its output is wrong. `constant` in the detail is the score of the best
    constant answer: a floor below it is meaningless.
    """
    if scored.form == "sides":
        return _side_accuracy(scored, parameter)
    right = _right(scored)
    counts = np.unique(scored.labels, return_counts=True)[1]
    return Score(float(np.mean(right)), {"constant": float(counts.max() / len(right))})


@_register("binary_accuracy", "binary accuracy", "share", ("sides",), parameter="the cut",
           each=_right_sides)  # fmt: skip
def _side_accuracy(scored: Scored, parameter: float | None = None) -> Score:
    """Share of elements on the correct side of the threshold, counting each label separately."""
    right = _right_sides(scored, parameter)
    yes = scored.labels.mean(0)
    constant = float(np.maximum(yes, 1 - yes).mean())
    detail = {"cut": _cut(scored, parameter), "constant": constant}
    if scored.labels.shape[1] > 1:
        detail["worst_label"] = float(right.mean(0).min())
    return Score(float(np.mean(right)), detail)


@_register("top", "top-k accuracy", "share", ("classes",), parameter="k", each=_right_top)
def top_k(scored: Scored, parameter: float | None) -> Score:
    """Share of elements whose label is among the k largest outputs.

    Ties go to the first output, as in an application's argmax: rounding creates ties, and a file
    that always gives the same answer must not benefit from them.
    """
    k, classes = int(parameter or 1), scored.outputs.shape[1]
    if k >= classes:
        raise ArgumentError("--metric", f"have a k below the {classes} classes", f"top{k}")
    return Score(float(np.mean(_right_top(scored, k))))


@_register("mean_iou", "mean IoU", "share", ("classes", "numbers", "sides"),
           parameter="the class to ignore")  # fmt: skip
def mean_iou(scored: Scored, parameter: float | None = None) -> Score:
    """Mean over the classes of intersection / union; classes that occur nowhere do not count.

    `mean_iou@255` leaves out the elements that are labelled 255.
    """
    found, labels = predictions(scored), scored.labels.reshape(-1).astype(np.int64)
    if parameter is not None:
        kept = labels != int(parameter)
        if not kept.any():
            raise NotMeasurable(f"Every label is {parameter:g}, the class that is ignored.")
        found, labels = found[kept], labels[kept]
    ratios = {}
    for number in np.union1d(np.unique(labels), np.unique(found[found >= 0])):
        mine, said = labels == number, found == number
        ratios[int(number)] = float((mine & said).sum() / (mine | said).sum())
    worst = min(ratios, key=lambda number: ratios[number])
    detail: dict[str, Any] = {"classes": len(ratios), "worst_class": worst}
    if len(ratios) <= _LISTED:
        detail["iou"] = {str(number): ratio for number, ratio in ratios.items()}
    return Score(float(np.mean(list(ratios.values()))), detail)


@_register("auc", "ROC AUC", "share", ("classes", "sides"))
def auc(scored: Scored, parameter: float | None = None) -> Score:
    """Area under the ROC curve: the share of correctly ordered pairs, ties counting half.

    Exact, by ranks (Mann-Whitney), over (positive, negative) pairs. Several labels: the mean over
    those that have both. Several classes: one against the rest, on probabilities. Two classes: the
    second.
    """
    if np.isnan(scored.outputs).any():
        return Score(np.nan)
    if scored.form == "sides":
        labels, outputs = scored.labels > 0, scored.outputs
    else:
        outputs = scored.outputs if scored.normal else _softmax(scored.outputs)
        labels = scored.labels[:, None] == np.arange(outputs.shape[1])
        if outputs.shape[1] == 2:
            labels, outputs = labels[:, 1:], (scored.outputs[:, 1:] - scored.outputs[:, :1])
    areas, without = [], []
    for column in range(labels.shape[1]):
        area = _area(labels[:, column], outputs[:, column])
        if area is None:
            without.append(column)
        else:
            areas.append(area)
    if not areas:
        raise NotMeasurable("The labels are all the same: AUC needs a yes and a no.")
    detail: dict[str, Any] = {"worst_label": min(areas)} if len(areas) > 1 else {}
    if without:
        detail["labels_left_out"] = without[:_LISTED]
    return Score(float(np.mean(areas)), detail)


def _area(yes: np.ndarray, scores: np.ndarray) -> float | None:
    positive = int(yes.sum())
    negative = len(yes) - positive
    if not positive or not negative:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Equal scores share the mean of their ranks.
    ranks = np.cumsum(counts) - (counts - 1) / 2
    total = float(ranks[place.reshape(-1)][yes].sum())
    return (total - positive * (positive + 1) / 2) / (positive * negative)


def _softmax(outputs: np.ndarray) -> np.ndarray:
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def predictions(scored: Scored) -> np.ndarray:
    """Returns the class that each element's output names; -1 where it holds NaN."""
    if scored.form == "sides":
        flat = scored.outputs.reshape(-1)
        found = (flat >= _cut(scored, None)).astype(np.int64)
        return np.where(np.isnan(flat), -1, found)
    if scored.form == "numbers":
        return np.where(np.isfinite(scored.outputs), scored.outputs, -1).astype(np.int64)
    found = np.where(np.isnan(scored.outputs), -np.inf, scored.outputs).argmax(1)
    return np.where(np.isnan(scored.outputs).any(1), -1, found)


def _cut(scored: Scored, parameter: float | None) -> float:
    cut = scored.cut if parameter is None else parameter
    if cut is None:
        raise NotMeasurable("It is unknown from which value the output counts as a yes.")
    return cut


# --- values -------------------------------------------------------------------------------------


@_register("mae", "MAE", "number", ("values",), higher_is_better=False, each=_absolute)
def mae(scored: Scored, parameter: float | None = None) -> Score:
    """Mean absolute error, in the unit of the labels."""
    errors = _absolute(scored)
    return Score(float(errors.mean()), _worst(errors.mean(0), max))


@_register("mse", "MSE", "number", ("values",), higher_is_better=False, each=_squared)
def mse(scored: Scored, parameter: float | None = None) -> Score:
    """Mean squared error, in the squared unit of the labels."""
    errors = _squared(scored)
    return Score(float(errors.mean()), _worst(errors.mean(0), max))


@_register("rmse", "RMSE", "number", ("values",), higher_is_better=False)
def rmse(scored: Scored, parameter: float | None = None) -> Score:
    """Square root of the mean squared error, in the unit of the labels."""
    errors = _squared(scored)
    return Score(float(np.sqrt(errors.mean())), _worst(np.sqrt(errors.mean(0)), max))


@_register("r2", "R2", "number", ("values",))
def r2(scored: Scored, parameter: float | None = None) -> Score:
    """Coefficient of determination, `1 - sum (y - f)^2 / sum (y - mean y)^2`: the columns' mean.

    1 is perfect, 0 as good as the mean, below 0 worse. Columns with a constant label have none and
    are skipped.
    """
    rest = ((scored.outputs - scored.labels) ** 2).sum(0)
    spread = ((scored.labels - scored.labels.mean(0)) ** 2).sum(0)
    varied = spread > 0
    if not varied.any():
        raise NotMeasurable("The labels are all the same: R2 needs some that differ.")
    ratios = 1 - rest[varied] / spread[varied]
    detail = _worst(ratios, min)
    if not varied.all():
        detail["columns_left_out"] = int((~varied).sum())
    return Score(float(ratios.mean()), detail)


def _worst(columns: np.ndarray, choose: Callable[..., Any]) -> dict[str, Any]:
    """Returns the worst column if there are several."""
    if len(columns) < 2:
        return {}
    finite = [float(column) if np.isfinite(column) else None for column in columns]
    known = [column for column in finite if column is not None]
    detail: dict[str, Any] = {"worst_column": choose(known) if len(known) == len(finite) else None}
    if len(columns) <= _LISTED:
        detail["columns"] = finite
    return detail
