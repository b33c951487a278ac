"""What an output is for: losses as Keras writes them, operators, labels, and what is not clear."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters.labels import Labels
from edgecompress.converters.loaders import load_model, wrap
from edgecompress.converters.metrics import parse_metric
from edgecompress.converters.tasks import (
    Loss,
    Output,
    Task,
    Unclear,
    find_task,
    match_labels,
    may_be_classifier,
    outputs_of,
    read_loss,
    task_for,
)
from edgecompress.core.errors import ArgumentError

_SIGNS = np.array([-1, 1, 1, -1])
_YES = np.array([0, 1, 1, 0])
_FOUR = np.array([0, 3, 1, 2])
_MULTI = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 1, 0]])
_HOT = np.eye(4)[_FOUR]
_REAL = np.array([0.3, 1.7, -2.0, 40.0])
_LOGITS = Loss("BinaryCrossentropy", "sides", True)
_BCE = Loss("binary_crossentropy", "sides")
_MSE = Loss("mse", "mse")
_CE = Loss("categorical_crossentropy", "classes")
_OWN = Loss("mine")


def _task(operator: str, loss: Loss | None, labels: Any, columns: int) -> Task | Unclear:
    return find_task(operator, loss, Labels(np.asarray(labels), (4, columns)))


@pytest.mark.parametrize(
    ("operator", "loss", "labels", "columns", "kind", "metric", "cut"),
    [
        # One unit: the loss tells a logit from a probability.
        ("FULLY_CONNECTED", _LOGITS, _YES, 1, "binary", "accuracy", 0.0),
        ("FULLY_CONNECTED", _LOGITS, _YES.astype(bool), 1, "binary", "accuracy", 0.0),
        ("LOGISTIC", _BCE, _YES[:, None], 1, "binary", "accuracy", 0.5),
        ("LOGISTIC", None, _YES, 1, "binary", "accuracy", 0.5),
        ("LOGISTIC", _OWN, _YES, 1, "binary", "accuracy", 0.5),
        # A loss for probabilities on an output without a sigmoid (clipped by hand).
        ("MINIMUM", _BCE, _YES, 1, "binary", "accuracy", 0.5),
        ("TANH", Loss("hinge", "hinge"), _SIGNS, 1, "binary", "accuracy", 0.0),
        ("FULLY_CONNECTED", None, _SIGNS, 1, "binary", "accuracy", 0.0),
        # Several labels; one-hot rows and class numbers exclude each other.
        ("LOGISTIC", _BCE, _MULTI, 4, "multilabel", "binary_accuracy", 0.5),
        ("LOGISTIC", None, _MULTI, 4, "multilabel", "binary_accuracy", 0.5),
        ("FULLY_CONNECTED", _LOGITS, _MULTI, 4, "multilabel", "binary_accuracy", 0.0),
        ("LOGISTIC", _BCE, _HOT, 4, "classes", "accuracy", None),
        ("LOGISTIC", None, _FOUR, 4, "classes", "accuracy", None),
        ("LOGISTIC", None, np.eye(2)[_YES], 2, "classes", "accuracy", None),
        # Classes.
        ("SOFTMAX", _CE, _HOT, 4, "classes", "accuracy", None),
        ("SOFTMAX", None, np.full((4, 4), 0.25), 4, "classes", "accuracy", None),
        ("SOFTMAX", None, _YES, 2, "classes", "accuracy", None),
        ("SOFTMAX", _MSE, _HOT, 4, "classes", "accuracy", None),
        ("FULLY_CONNECTED", None, _FOUR, 4, "classes", "accuracy", None),
        ("FULLY_CONNECTED", None, _HOT, 4, "classes", "accuracy", None),
        ("ARG_MAX", None, _FOUR, 1, "classes", "accuracy", None),
        # Values: whole numbers as well, and a probability that soft labels were for.
        ("FULLY_CONNECTED", _MSE, _REAL, 1, "values", "mse", None),
        ("FULLY_CONNECTED", _MSE, _FOUR, 1, "values", "mse", None),
        ("FULLY_CONNECTED", _MSE, _YES, 1, "values", "mse", None),
        ("FULLY_CONNECTED", Loss("huber", "mae"), _REAL, 1, "values", "mae", None),
        ("FULLY_CONNECTED", None, _FOUR, 1, "values", "r2", None),
        ("FULLY_CONNECTED", None, _REAL, 1, "values", "r2", None),
        ("LOGISTIC", _BCE, _MULTI / 2, 4, "values", "mae", None),
        ("LOGISTIC", _MSE, _YES, 1, "binary", "accuracy", 0.5),
    ],
)
def test_task(
    operator: str, loss: Loss | None, labels: Any, columns: int, kind: str, metric: str,
    cut: float | None,
) -> None:  # fmt: skip
    task = _task(operator, loss, labels, columns)
    assert isinstance(task, Task), task
    assert (task.kind, task.metric, task.cut) == (kind, metric, cut)
    # What was found fits the labels.
    Labels(np.asarray(labels), (4, columns)).of(task.form)


@pytest.mark.parametrize(
    ("operator", "loss", "labels", "columns", "why"),
    [
        ("FULLY_CONNECTED", None, _YES, 1, "a logit .* or a value"),
        ("FULLY_CONNECTED", _OWN, _YES, 1, "mine is not known here, and no loss"),
        ("FULLY_CONNECTED", None, _MULTI, 4, "a logit .* or a value"),
        ("LOGISTIC", _LOGITS, _YES, 1, "a logit for the former and a probability for the latter"),
        ("SOFTMAX", None, _MULTI, 4, "not classes"),
        ("SOFTMAX", _CE, _MULTI, 4, "several 1 or none"),
        ("SOFTMAX", None, _YES, 1, "always 1"),
        ("FULLY_CONNECTED", _CE, _YES, 1, "no classes"),
        ("L2_NORMALIZATION", Loss("cosine_similarity", "unjudged"), _HOT, 4, "no metric here"),
    ],
)
def test_two_readings_are_named_and_none_is_guessed(
    operator: str, loss: Loss | None, labels: Any, columns: int, why: str
) -> None:
    task = _task(operator, loss, labels, columns)
    assert isinstance(task, Unclear)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(task.reason)


def test_a_map_has_a_task_for_each_pixel() -> None:
    numbers = np.zeros((4, 6, 6), np.uint8)
    for labels in (numbers, numbers[..., None], np.eye(3)[numbers]):
        task = find_task("SOFTMAX", None, Labels(labels, (4, 6, 6, 3)))
        assert isinstance(task, Task) and task.kind == "classes"
    dice = Loss("dice", "overlap")
    task = find_task("LOGISTIC", dice, Labels(numbers[..., None], (4, 6, 6, 1)))
    assert isinstance(task, Task) and (task.kind, task.cut) == ("binary", 0.5)


# --- a metric that the user names ---------------------------------------------------------------


def _named(name: str, operator: str, loss: Loss | None, labels: Any, columns: int) -> Any:
    return task_for(parse_metric(name), operator, loss, Labels(np.asarray(labels), (4, columns)))


@pytest.mark.parametrize(
    ("name", "operator", "loss", "labels", "columns", "form", "cut"),
    [
        ("binary_accuracy@0", "FULLY_CONNECTED", None, _YES, 1, "sides", 0.0),
        ("binary_accuracy", "FULLY_CONNECTED", _LOGITS, _YES, 1, "sides", 0.0),
        ("binary_accuracy", "LOGISTIC", _BCE, _HOT, 4, "sides", 0.5),
        ("auc", "FULLY_CONNECTED", None, _YES, 1, "sides", None),
        ("auc", "SOFTMAX", None, _FOUR, 4, "classes", None),
        ("top2", "LOGISTIC", _BCE, _FOUR, 4, "classes", None),
        ("accuracy", "FULLY_CONNECTED", _MSE, _HOT, 4, "classes", None),
        ("mae", "LOGISTIC", _BCE, _YES, 1, "values", None),
        ("mean_iou@255", "SOFTMAX", None, np.array([0, 3, 255, 2]), 4, "classes", None),
    ],
)
def test_a_named_metric(
    name: str, operator: str, loss: Loss | None, labels: Any, columns: int, form: str,
    cut: float | None,
) -> None:  # fmt: skip
    task = _named(name, operator, loss, labels, columns)
    assert isinstance(task, Task)
    assert (task.form, task.cut) == (form, cut)


@pytest.mark.parametrize("name", ["accuracy", "binary_accuracy", "mean_iou"])
def test_a_named_metric_needs_a_cut_all_the_same(name: str) -> None:
    assert isinstance(_named(name, "FULLY_CONNECTED", None, _YES, 1), Unclear)
    assert isinstance(_named(name, "LOGISTIC", _LOGITS, _YES, 1), Unclear)


@pytest.mark.parametrize(
    ("name", "labels", "columns"), [("mae", _FOUR, 4), ("top2", _REAL, 1), ("accuracy", _REAL, 1)]
)
def test_labels_that_a_named_metric_does_not_take(name: str, labels: Any, columns: int) -> None:
    with pytest.raises(ArgumentError):
        _named(name, "FULLY_CONNECTED", _MSE, labels, columns)


# --- losses -------------------------------------------------------------------------------------


def _mine(labels: Any, outputs: Any) -> Any:
    return keras.ops.mean(outputs - labels)


class BinaryCrossentropy(keras.losses.Loss):
    """A loss of one's own under a known name."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns something else."""
        return keras.ops.mean(y_pred)


_ENTRIES = [
    ("mse", "mse", False),
    ("bce", "sides", False),
    ("BinaryCrossentropy", "sides", False),
    (keras.losses.BinaryCrossentropy(from_logits=True), "sides", True),
    (keras.losses.binary_crossentropy, "sides", False),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "classes", True),
    (keras.losses.Huber(), "mae", False),
    (keras.losses.SquaredHinge(), "hinge", False),
    (_mine, "", False),
    (BinaryCrossentropy(), "", False),
]


@pytest.mark.parametrize(("loss", "kind", "logits"), _ENTRIES)
@pytest.mark.parametrize("stored", [False, True])
def test_a_loss_is_read_alike_from_a_model_and_from_its_file(
    loss: Any, kind: str, logits: bool, stored: bool, tmp_path: Path
) -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, name="unit")])
    model.compile(loss=loss)
    loaded = wrap(model)
    if stored and not isinstance(loss, BinaryCrossentropy):  # Such a file is not loaded at all.
        model.save(tmp_path / "m.keras")
        loaded = load_model(tmp_path / "m.keras")
    (output,) = outputs_of(loaded)
    assert output.names == ("unit",)
    assert output.loss is not None
    assert (output.loss.kind, output.loss.from_logits) == (kind, logits)


def test_a_model_that_was_never_compiled_has_no_loss(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.save(tmp_path / "m.keras")
    assert outputs_of(load_model(tmp_path / "m.keras"))[0].loss is None
    assert outputs_of(wrap(model))[0].loss is None


@pytest.mark.parametrize(
    "loss", [None, 3, [], {}, {"class_name": 7}, {"class_name": "function", "config": None}, "\x00"]
)
def test_an_entry_that_is_no_loss_says_nothing(loss: Any) -> None:
    found = read_loss(loss)
    assert found is None or found.kind == ""


@pytest.mark.parametrize("loss", [7, [[["mse"]]], {"class_name": ["x"]}, {"unit": {"a": 1}}])
def test_a_damaged_configuration_says_nothing(loss: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, name="unit")])
    model.compile(loss="mse")
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["compile_config"]["loss"] = loss
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    found = outputs_of(load_model(path))[0].loss
    assert found is None or found.kind == ""


def _heads(structure: str) -> keras.Model:
    entry = keras.Input((3,))
    box, label = layers.Dense(4, name="box")(entry), layers.Dense(1, name="label")(entry)
    ends: Any = {"list": [label, box], "dict": {"z": label, "k": box}}[structure]
    return keras.Model(entry, ends)


_LIST = [keras.losses.BinaryCrossentropy(from_logits=True), "mae"]


@pytest.mark.parametrize(
    ("structure", "loss", "names", "kinds"),
    [
        ("list", {"box": "mae", "label": _LIST[0]}, ["label", "box"], ["sides", "mae"]),
        ("list", _LIST, ["label", "box"], ["sides", "mae"]),
        ("list", [None, "mse"], ["label", "box"], [None, "mse"]),
        ("list", {"box": "mse"}, ["label", "box"], [None, "mse"]),
        # Keras gives back the outputs of a dictionary in the order of its keys.
        ("dict", {"z": _LIST[0], "k": "mae"}, ["k", "z"], ["mae", "sides"]),
    ],
)
def test_each_output_has_its_own_loss(
    structure: str, loss: Any, names: list[str], kinds: list[str | None]
) -> None:
    model = _heads(structure)
    model.compile(loss=loss)
    loaded = wrap(model)
    found = outputs_of(loaded)
    assert [output.name for output in found] == names
    assert [output.loss and output.loss.kind for output in found] == kinds
    shapes = [array.shape[1] for array in loaded.predict([np.zeros((1, 3), np.float32)])]
    # The outputs are in the order in which the file has them.
    assert shapes == [{"label": 1, "z": 1, "box": 4, "k": 4}[name] for name in names]


# --- labels of several outputs ------------------------------------------------------------------

_TWO = (Output(("label",)), Output(("k", "box")))


@pytest.mark.parametrize(
    "labels",
    [
        {"y_label": "a", "y_box": "b"},
        {"y_label": "a", "y_k": "b"},
        {"y0": "a", "y1": "b"},
        {"y": "a", "y1": "b"},
        {"label": "a", "box": "b"},
        {"y1": "b", "y_label": "a"},
    ],
)
def test_labels_go_to_outputs_by_name_then_by_position(labels: Any) -> None:
    assert match_labels(labels, _TWO, "--evaluate") == ("a", "b")


def test_labels_of_one_output_leave_the_other_without() -> None:
    assert match_labels({"y_box": "b"}, _TWO, "--evaluate") == (None, "b")
    labels = np.zeros(3)
    assert match_labels(labels, _TWO, "--evaluate")[0] is labels


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        ({"y_boxes": 1}, "y_label or y0, y_k or y1.*Got 'y_boxes'"),
        ({"y2": 1}, "Got 'y2'"),
        ({"y_box": 1, "y1": 2}, "labels of output 'k' once"),
    ],
)
def test_labels_of_no_output_are_refused(labels: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        match_labels(labels, _TWO, "--evaluate")


def test_only_a_loss_of_values_rules_a_classifier_out() -> None:
    assert may_be_classifier("LOGISTIC", _MSE)
    assert may_be_classifier("FULLY_CONNECTED", None)
    assert may_be_classifier("FULLY_CONNECTED", _OWN)
    assert not may_be_classifier("FULLY_CONNECTED", _MSE)
