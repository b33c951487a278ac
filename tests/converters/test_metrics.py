"""Metrics against Keras's own, against formulas written out, and on labels that fit nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.converters.labels import Labels
from edgecompress.converters.metrics import (
    METRICS,
    Form,
    NotMeasurable,
    Score,
    parse_metric,
)
from edgecompress.core.errors import ArgumentError

_RANDOM = np.random.default_rng(0)


def _score(name: str, form: Form, labels: Any, outputs: Any, cut: float | None = None) -> Score:
    wanted = parse_metric(name)
    outputs = np.asarray(outputs, np.float64)
    ignored = wanted.parameter if wanted.metric.name == "mean_iou" else None
    scored = Labels(np.asarray(labels), outputs.shape).scored(form, outputs, cut, True, ignored)
    return wanted.measure(scored)


def _keras(metric: Any, labels: Any, outputs: Any) -> float:
    metric.update_state(np.asarray(labels), np.asarray(outputs, np.float32))
    return float(np.mean(np.asarray(metric.result())))


def _rows(classes: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers and probabilities that are right more often than not."""
    labels = _RANDOM.integers(0, classes, count)
    logits = _RANDOM.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    powers = np.exp(logits)
    return labels, powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("form", ["numbers", "column", "uint8", "float", "one_hot", "bool"])
def test_top1_takes_every_form_of_class_labels(form: str) -> None:
    labels, outputs = _rows(4)
    shaped: Any = {
        "numbers": labels,
        "column": labels[:, None],
        "uint8": labels.astype(np.uint8),
        "float": labels.astype(np.float32),
        "one_hot": np.eye(4, dtype=np.float32)[labels],
        "bool": np.eye(4, dtype=bool)[labels],
    }[form]
    want = _keras(keras.metrics.SparseCategoricalAccuracy(), labels, outputs)
    assert _score("accuracy", "classes", shaped, outputs).value == pytest.approx(want, abs=1e-6)


def test_accuracy_says_what_a_constant_answer_reaches() -> None:
    score = _score("accuracy", "classes", [0, 0, 0, 1], [[1, 0]] * 4)
    assert (score.value, score.detail["constant"]) == (0.75, 0.75)


@pytest.mark.parametrize("cut", [0.5, 0.0, -0.3])
def test_sides_are_cut_where_the_task_says(cut: float) -> None:
    outputs = _RANDOM.normal(size=(300, 1))
    labels = (outputs[:, 0] + _RANDOM.normal(size=300) > cut).astype(int)
    want = _keras(keras.metrics.BinaryAccuracy(threshold=cut), labels[:, None], outputs)
    assert _score("accuracy", "sides", labels, outputs, cut).value == pytest.approx(want, abs=1e-6)
    # A cut behind the name goes before the task's.
    named = _score(f"binary_accuracy@{cut}", "sides", labels, outputs, 99.0)
    assert named.value == pytest.approx(want, abs=1e-6)


def test_several_labels_are_counted_one_by_one() -> None:
    labels = _RANDOM.integers(0, 2, (100, 5))
    outputs = np.clip(labels + 0.6 * _RANDOM.normal(size=labels.shape), 0, 1)
    score = _score("binary_accuracy", "sides", labels, outputs, 0.5)
    want = _keras(keras.metrics.BinaryAccuracy(), labels, outputs)
    assert score.value == pytest.approx(want, abs=1e-6)
    assert score.detail["worst_label"] == ((outputs >= 0.5) == labels).mean(0).min()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_is_that_of_keras_without_ties(k: int) -> None:
    labels, outputs = _rows(6)
    want = _keras(keras.metrics.SparseTopKCategoricalAccuracy(k), labels, outputs)
    assert _score(f"top{k}", "classes", labels, outputs).value == pytest.approx(want, abs=1e-6)


def test_among_equal_outputs_the_first_counts_as_larger() -> None:
    # Keras calls all five right: a file that always says the same would be perfect.
    equal = np.zeros((5, 5))
    labels = np.arange(5)
    assert _keras(keras.metrics.SparseTopKCategoricalAccuracy(2), labels, equal) == 1
    assert _score("top2", "classes", labels, equal).value == 0.4
    assert _score("top1", "classes", labels, equal).value == 0.2
    assert _score("accuracy", "classes", labels, equal).value == 0.2


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("mae", keras.metrics.MeanAbsoluteError),
        ("mse", keras.metrics.MeanSquaredError),
        ("rmse", keras.metrics.RootMeanSquaredError),
        ("r2", keras.metrics.R2Score),
    ],
)
@pytest.mark.parametrize("columns", [1, 3])
def test_errors_are_those_of_keras(name: str, metric: Any, columns: int) -> None:
    labels = _RANDOM.normal(size=(150, columns)) * [1, 10, 100][:columns]
    outputs = labels + _RANDOM.normal(size=labels.shape)
    got = _score(name, "values", labels, outputs)
    assert got.value == pytest.approx(_keras(metric(), labels, outputs), rel=1e-4)


def test_whole_numbers_are_regression_targets_too() -> None:
    labels = _RANDOM.integers(20, 80, 100)
    got = _score("mae", "values", labels, labels[:, None] + 2.0)
    assert got.value == 2


def test_r2_names_the_column_that_a_mean_hides() -> None:
    labels = _RANDOM.normal(size=(100, 10))
    outputs = labels.copy()
    outputs[:, 3] = 50.0
    score = _score("r2", "values", labels, outputs)
    assert score.detail["worst_column"] == score.detail["columns"][3] < -100
    constant = labels.copy()
    constant[:, 2] = 1
    assert _score("r2", "values", constant, constant).detail["columns_left_out"] == 1
    with pytest.raises(NotMeasurable, match="all the same"):
        _score("r2", "values", np.ones((5, 1)), np.ones((5, 1)))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    labels = _RANDOM.integers(0, 2, 60)
    # Few values, so many ties.
    outputs = np.round(labels + _RANDOM.normal(size=60), 0)
    yes, no = outputs[labels == 1], outputs[labels == 0]
    pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
    assert _score("auc", "sides", labels, outputs[:, None]).value == pytest.approx(pairs)
    # Any rising function of the outputs has the same area: a logit needs no cut.
    assert _score("auc", "sides", labels, 3 * outputs[:, None] - 7).value == pytest.approx(pairs)
    assert _score("auc", "sides", labels, np.zeros((60, 1))).value == 0.5


def test_auc_of_two_classes_is_that_of_the_second() -> None:
    labels, outputs = _rows(2)
    one = _score("auc", "sides", labels, outputs[:, 1:])
    assert _score("auc", "classes", labels, outputs).value == pytest.approx(one.value)


def test_auc_of_several_classes_is_each_against_the_rest() -> None:
    labels, outputs = _rows(3)
    each = [_score("auc", "sides", labels == c, outputs[:, c : c + 1]).value for c in range(3)]
    assert _score("auc", "classes", labels, outputs).value == pytest.approx(np.mean(each))


def test_auc_of_one_class_is_no_number() -> None:
    with pytest.raises(NotMeasurable, match="a yes and a no"):
        _score("auc", "sides", np.ones(5), np.arange(5.0)[:, None])
    labels = np.stack([np.ones(6), [0, 1, 0, 1, 0, 1]], 1)
    score = _score("auc", "sides", labels, labels)
    assert (score.value, score.detail["labels_left_out"]) == (1.0, [0])


def test_mean_iou_is_that_of_keras() -> None:
    labels = _RANDOM.integers(0, 3, (4, 6, 5))
    outputs = _RANDOM.normal(size=(4, 6, 5, 4)) + 2 * np.eye(4)[labels]
    outputs[..., 3] = -9  # a class that occurs nowhere
    for shaped in (labels, labels[..., None], np.eye(4)[labels]):
        got = _score("mean_iou", "classes", shaped, outputs)
        want = _keras(keras.metrics.MeanIoU(4), labels, outputs.argmax(-1))
        assert got.value == pytest.approx(want, abs=1e-6)
        assert got.detail["classes"] == 3
    # A file that always says the same class.
    constant = np.zeros_like(outputs)
    constant[..., 0] = 1
    assert _score("mean_iou", "classes", labels, constant).value < 0.2


def test_mean_iou_ignores_the_class_that_is_named() -> None:
    labels = _RANDOM.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    outputs = np.eye(3)[labels] + 0.1
    labels[:, :2] = 255
    assert _score("mean_iou@255", "classes", labels, outputs).value == 1
    with pytest.raises(ArgumentError, match="class numbers from 0 to 2"):
        _score("mean_iou", "classes", labels, outputs)


def test_a_map_with_one_channel_has_two_classes() -> None:
    labels = np.array([[[0, 1], [1, 1]]])
    outputs = np.array([[[[0.2], [0.9]], [[0.8], [0.1]]]])
    # yes: 2 of 3; no: 1 of 2
    got = _score("mean_iou", "sides", labels, outputs, 0.5)
    assert got.value == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("name", ["accuracy", "binary_accuracy", "top2", "auc", "mean_iou"])
def test_nan_is_never_right(name: str) -> None:
    form: Form = "sides" if name == "binary_accuracy" else "classes"
    labels = [0, 0, 0] if form == "classes" else np.zeros((3, 3), int)
    value = _score(name, form, labels, np.full((3, 3), np.nan), 0.5).value
    assert np.isnan(value) or value == 0


@pytest.mark.parametrize("name", ["mae", "mse", "rmse", "r2"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_give_none(name: str, bad: float) -> None:
    outputs = np.arange(4.0)[:, None]
    outputs[1] = bad
    assert not np.isfinite(_score(name, "values", [0, 1, 2, 3], outputs).value)


def test_numbers_of_classes_are_compared_as_they_are() -> None:
    assert _score("accuracy", "numbers", [3, 1, 2], np.array([3.0, 1, 0])).value == 2 / 3


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_named_and_has_a_direction(name: str) -> None:
    wanted = parse_metric("top5" if name == "top" else name.upper().replace("_", "-"))
    assert wanted.metric is METRICS[name]
    assert parse_metric(wanted.name) == wanted
    assert wanted.metric.higher_is_better is (name not in ("mae", "mse", "rmse"))
    assert wanted.metric.measure.__doc__


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("acuracy", "Did you mean accuracy"),
        ("top", "name how many"),
        ("top0", "a whole number, 1 or more"),
        ("top-2.5", "known name"),
        ("mae@3", "be given without @"),
        ("binary_accuracy@half", "have the cut after @"),
        ("binary_accuracy@nan", "have the cut after @"),
        ("mean_iou@1.5", "have a class number"),
        ("", "known name"),
    ],
)
def test_names_that_are_none_are_refused(text: str, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        parse_metric(text)


def test_top_k_of_all_classes_is_refused() -> None:
    with pytest.raises(ArgumentError, match="below the 3 classes"):
        _score("top3", "classes", [0], [[1.0, 2, 3]])


@pytest.mark.parametrize(
    ("labels", "form", "rule"),
    [
        (np.array(["cat"] * 4), "classes", "finite numbers as labels"),
        (np.array([0, 1, np.nan, 0]), "classes", "finite numbers as labels"),
        (np.array([0, 1, 2]), "classes", "a label for each of the 4 samples"),
        (np.array([0, 1, 2, 3]), "classes", "from 0 to 2 or one-hot rows.*from 0 to 3"),
        (np.array([-1, 1, 2, 0]), "classes", "from 0 to 2"),
        (np.array([0.5, 1, 2, 0]), "classes", "from 0 to 2"),
        (np.zeros((4, 2)), "classes", "from 0 to 2"),
        (np.zeros((4, 5)), "values", "a number for each element"),
        (np.full((4, 3), 0.5), "sides", "0 or 1 for each element"),
    ],
)
def test_labels_that_fit_nothing_are_named(labels: np.ndarray, form: Form, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        Labels(labels, (4, 3)).of(form)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("accuracy", "classes"),
        ("accuracy", "sides"),
        ("top2", "classes"),
        ("binary_accuracy@0.2", "sides"),
        ("mae", "values"),
        ("mse", "values"),
    ],
)
def test_the_metric_of_a_sample_is_that_of_the_sample_alone(name: str, form: Form) -> None:
    random = np.random.default_rng(1)
    # 30 samples of 5 positions each.
    outputs = random.normal(size=(30, 5, 3))
    labels = random.integers(0, 3, (30, 5)) if form == "classes" else random.integers(
        0, 2, (30, 5, 3)
    )  # fmt: skip
    wanted = parse_metric(name)
    scored = Labels(labels, outputs.shape).scored(form, outputs, 0.5)
    found = wanted.by_sample(scored, 30)
    assert found is not None
    alone = [_score(name, form, labels[at : at + 1], outputs[at : at + 1], 0.5).value
             for at in range(30)]  # fmt: skip
    assert len(set(alone)) > 3
    np.testing.assert_allclose(found, alone)
    assert wanted.measure(scored).value == pytest.approx(found.mean())


@pytest.mark.parametrize("name", ["auc", "rmse", "r2", "mean_iou"])
def test_metrics_that_are_no_means_have_none_by_sample(name: str) -> None:
    form: Form = "values" if name in ("rmse", "r2") else "classes"
    outputs = np.random.default_rng(1).normal(size=(30, 3))
    labels = outputs if form == "values" else np.arange(30) % 3
    scored = Labels(labels, outputs.shape).scored(form, outputs, 0.5)
    assert parse_metric(name).by_sample(scored, 30) is None
