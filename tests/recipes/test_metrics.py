"""Metrics of Keras as a recipe measures them, by their own formulas in numpy."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.recipes.metrics import GOALS, Metric, given_metric
from edgecompress.recipes.task import Task

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
_CLASSES = _RNG.integers(0, 3, 1500)
_LOGITS = _RNG.normal(size=(1500, 3)).astype("float32") + np.eye(3)[_CLASSES].astype("float32")
_YES = (_CLASSES == 0).astype("float32")[:, None]
_F1 = {"class_name": "F1Score", "config": {"average": "macro"}}
_OWN = Metric("accuracy", True, lambda labels, outputs: 0.5)


def _task(kind: str, output: str = "logits", sparse: bool = True) -> Task:
    return Task(kind, output, _OWN, lambda y, p: 0.0, "a loss", sparse)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _f1() -> float:
    found = _LOGITS.argmax(1)
    scores = []
    for number in range(3):
        hits = np.sum((found == number) & (number == _CLASSES))
        scores.append(2 * hits / (np.sum(found == number) + np.sum(number == _CLASSES)))
    return float(np.mean(scores))


@pytest.mark.parametrize("form", ["json", "dictionary"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_f1_by_numpy(form: str, sparse: bool, output: str) -> None:
    given = json.dumps(_F1) if form == "json" else _F1
    metric = given_metric(given, None, _task("classes", output, sparse))
    assert metric.higher_is_better and metric.given and metric.name == "f1_score"
    labels = _CLASSES[:, None].astype("float32") if sparse else np.eye(3)[_CLASSES]
    outputs = _LOGITS if output == "logits" else _softmax(_LOGITS)
    # Twice: nothing is left of the first time.
    for _ in range(2):
        assert metric.measure(labels, outputs) == pytest.approx(_f1(), abs=1e-5)


def test_cross_entropy_by_numpy_gets_better_downwards() -> None:
    want = -np.log(_softmax(_LOGITS))[np.arange(1500), _CLASSES].mean()
    labels = _CLASSES[:, None].astype("float32")
    logits = {"class_name": "SparseCategoricalCrossentropy", "config": {"from_logits": True}}
    for given in ("sparse_categorical_crossentropy", "categorical_crossentropy", logits):
        metric = given_metric(given, None, _task("classes"))
        assert metric.measure(labels, _LOGITS) == pytest.approx(want, rel=1e-4)
        assert not metric.higher_is_better and metric.drop(1.0, 1.5) == 0.5


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_auc_of_a_single_output_by_numpy(output: str) -> None:
    score = _LOGITS[:, :1]
    pairs = score[_YES == 1][:, None] > score[_YES == 0][None]
    metric = given_metric("auc", None, _task("binary", output))
    outputs = score if output == "logits" else 1 / (1 + np.exp(-score))
    assert metric.measure(_YES, outputs) == pytest.approx(pairs.mean(), abs=0.01)


@pytest.mark.parametrize("name", ["mae", "mean_absolute_error"])
def test_values(name: str) -> None:
    metric = given_metric(name, None, _task("values", "values"))
    values = _RNG.normal(size=(1500, 3)).astype("float32")
    want = np.abs(values - _LOGITS).mean()
    assert metric.measure(_LOGITS, values) == pytest.approx(want, rel=1e-5)
    single = metric.measure(_LOGITS[:, :1], values[:, :1])
    assert single == pytest.approx(np.abs(values - _LOGITS)[:, 0].mean(), rel=1e-5)


def test_directions_are_those_in_which_answers_get_better() -> None:
    """Of every metric of Keras whose direction is taken as known."""
    options: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("F1Score", "FBetaScore"), {"average": "macro"}),
        "OneHotIoU": {"num_classes": 3, "target_class_ids": [0]},
        "OneHotMeanIoU": {"num_classes": 3},
        **dict.fromkeys(("SparseTopKCategoricalAccuracy", "TopKCategoricalAccuracy"), {"k": 1}),
        "PrecisionAtRecall": {"recall": 0.5},
        "RecallAtPrecision": {"precision": 0.5},
        "SensitivityAtSpecificity": {"specificity": 0.9},
        "SpecificityAtSensitivity": {"sensitivity": 0.9},
    }
    of_values = {"R2Score", "PearsonCorrelation", "ConcordanceCorrelation"}
    kinds = {n for n in dir(keras.metrics) if n[0].isupper()}
    neutral = {"Accuracy", "IoU", "MeanIoU", "Mean", "MeanMetricWrapper", "Metric", "Sum"}
    assert kinds - neutral == GOALS["max"] | GOALS["min"]
    for goal, names in GOALS.items():
        for name in sorted(names):
            task = _task("values", "values") if name in of_values else _task(
                "binary" if name.startswith("Binary") else "classes", "probabilities"
            )  # fmt: skip
            metric = given_metric({"class_name": name, "config": options.get(name, {})}, None, task)
            if task.kind == "values":
                labels, good, bad = _LOGITS, _LOGITS + 0.01, -_LOGITS
            elif task.kind == "binary":
                labels, good, bad = _YES, 0.1 + 0.8 * _YES, 0.9 - 0.8 * _YES
            else:
                labels = _CLASSES[:, None].astype("float32")
                rows = np.eye(3, dtype="float32")
                good, bad = 0.1 + 0.7 * rows[_CLASSES], 0.1 + 0.7 * rows[(_CLASSES + 1) % 3]
            better, worse = metric.measure(labels, good), metric.measure(labels, bad)
            assert (better > worse) == (goal == "max") and better != worse, name
            assert metric.drop(better, worse) > 0, name


@keras.saving.register_keras_serializable("metrics_of_tests")
class MeanSquaredError(keras.metrics.MeanAbsoluteError):
    """The name of one of Keras's, and another meaning."""


def test_a_class_of_ones_own_has_to_say_its_direction() -> None:
    given, task = keras.metrics.serialize(MeanSquaredError()), _task("values", "values")
    with pytest.raises(ArgumentError, match="--metric-goal.*be given with mean_absolute_error"):
        given_metric(given, None, task)
    for goal in ("min", "max"):
        metric = given_metric(given, goal, task)
        assert metric.higher_is_better == (goal == "max")
        assert metric.measure(_LOGITS, _LOGITS + 2) == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "goal", "kind", "text"),
    [
        ("f1", None, "classes", "--metric.*be a metric of Keras"),
        ("{f1", None, "classes", "--metric.*be a metric of Keras"),
        ('{"class_name": "os.system"}', None, "classes", "--metric.*be a metric of Keras"),
        ({"class_name": "OneHotMeanIoU"}, None, "classes", "--metric.*be a metric of Keras"),
        ({"class_name": "MeanIoU", "config": {"num_classes": 3}}, None, "classes", "OneHotMeanIoU"),
        ("f1_score", "min", "classes", "--metric-goal.*be max for f1_score"),
        ("accuracy", "min", "classes", "--metric-goal.*be max for accuracy"),
        ("accuracy", None, "values", "--metric.*a metric of values"),
        ({"class_name": "Sum"}, None, "values", "--metric-goal.*be given with sum"),
    ],
)
def test_refusals(given: Any, goal: str | None, kind: str, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        given_metric(given, goal, _task(kind))


def test_every_position_of_a_map_counts() -> None:
    maps, numbers = _LOGITS.reshape(60, 5, 5, 3), _CLASSES.reshape(60, 5, 5, 1)
    for given, sparse in ((_F1, True), ("sparse_categorical_accuracy", False)):
        metric = given_metric(given, None, _task("classes", sparse=sparse))
        labels = numbers.astype("float32") if sparse else np.eye(3)[numbers[..., 0]]
        want = _f1() if sparse else float((_LOGITS.argmax(1) == _CLASSES).mean())
        assert metric.measure(labels, maps) == pytest.approx(want, abs=1e-5)


def test_results_that_are_no_number() -> None:
    labels = _CLASSES[:, None].astype("float32")
    each = given_metric("f1_score", None, _task("classes"))
    with pytest.raises(ArgumentError, match="--metric.*single number.*f1_score of 3"):
        each.measure(labels, _LOGITS)
    values = given_metric("mse", None, _task("values", "values"))
    with pytest.raises(ArgumentError, match="--metric.*finite"):
        values.measure(_LOGITS, np.full_like(_LOGITS, np.nan))


def test_accuracy_by_name_is_the_tasks_own() -> None:
    assert given_metric("accuracy", None, _task("classes")) is _OWN
