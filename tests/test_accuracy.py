"""Accuracy through the pipeline: the right metric of every output, its limits, Keras beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.converters.tasks import outputs_of_file
from edgecompress.core.errors import ArgumentError
from edgecompress.core.labelled import Labelled
from edgecompress.core.results import CheckResult, Report
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline import score_plan, scores, scoring
from edgecompress.targets.profile import Budgets, load_target

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

_SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text())
_X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
_W = np.array([[1.0, -2, 0.5, 1, 0, 3], [0, 1, 1, -1, 2, 0], [2, 0, -1, 0, 1, 1]], np.float32).T


def _dense(
    columns: int, activation: str | None = None, bias: float = 0.0, scale: float = 1.0
) -> keras.Model:
    """A model of one layer, whose outputs before the activation are `scale * x @ W + bias`."""
    model = keras.Sequential(
        [keras.Input((6,), name="x"), layers.Dense(columns, activation=activation, name="unit")],
        name="tiny",
    )
    model.set_weights([scale * _W[:, :columns], np.full(columns, bias, np.float32)])
    return model


def _heads() -> keras.Model:
    """A classifier of three classes, and three values, in this order."""
    entry = keras.Input((6,), name="x")
    label = layers.Dense(3, activation="softmax", name="label")
    box = layers.Dense(3, name="box")
    model = keras.Model(entry, [label(entry), box(entry)], name="heads")
    label.set_weights([_W, np.zeros(3, np.float32)])
    box.set_weights([_W, np.full(3, 5, np.float32)])
    return model


_LABEL = (_X @ _W).argmax(1)
_BOX = _X @ _W + 5


def _wrong(labels: np.ndarray, every: int = 10) -> np.ndarray:
    """Labels of which every tenth is another one."""
    labels = labels.copy()
    labels[::every] = (labels[::every] + 1) % (labels.max() + 1)
    return labels


def _export(model: Any, folder: Path, y: Any, **options: Any) -> Report:
    options = {"calibration": _X, "evaluate": (_X, y), "min_agreement": 0.0, **options}
    report = ec.export(model, ["cortex-m4"], output=folder, **options)
    jsonschema.validate(json.loads(report.to_json()), _SCHEMA)
    return report


def _accuracies(report: Report) -> list[CheckResult]:
    return [check for check in report.targets[0].checks if check.rule == "accuracy"]


# --- one logit ----------------------------------------------------------------------------------

# Small logits: many lie between 0 and 0.5, where the wrong cut is wrong.
_LOGITS = 0.2 * _X @ _W[:, 0]
_LOGIT_LABELS = _wrong((_LOGITS > 0).astype(int))


def _logit() -> keras.Model:
    return _dense(1, scale=0.2)


def test_a_logit_is_cut_at_zero(tmp_path: Path) -> None:
    model = _logit()
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    report = _export(model, tmp_path, _LOGIT_LABELS, min_accuracy=0.88)
    (check,) = _accuracies(report)
    assert report.exit_code == 0
    assert check.measured == pytest.approx(0.9, abs=0.02)
    assert check.detail["keras"] == pytest.approx(0.9)
    assert check.detail["cut"] == 0
    # What the wrong cut gives.
    assert np.mean((_LOGITS >= 0.5) == _LOGIT_LABELS) < 0.8


def test_a_broken_logit_fails(tmp_path: Path) -> None:
    model = _logit()
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    report = _export(model, tmp_path, 1 - _LOGIT_LABELS, min_accuracy=0.89)
    assert report.exit_code == 4
    assert _accuracies(report)[0].measured == pytest.approx(0.1, abs=0.01)


def test_a_unit_without_loss_is_undecided_until_the_metric_is_named(tmp_path: Path) -> None:
    report = _export(_logit(), tmp_path, _LOGIT_LABELS, min_accuracy=0.89)
    (check,) = _accuracies(report)
    assert (check.verdict, check.limit, check.measured) == ("not_measured", 0.89, None)
    assert check.reason is not None and "--metric binary_accuracy@0" in check.reason
    assert report.exit_code == 6
    file = tmp_path / "tiny_int8.tflite"
    for cut, code in (("0", 0), ("0.5", 4)):
        checked = ec.check(
            file,
            ["cortex-m4"],
            evaluate=(_X, _LOGIT_LABELS),
            min_metric={f"binary_accuracy@{cut}": 0.88},
        )
        assert checked.exit_code == code


# --- several labels -----------------------------------------------------------------------------


def test_several_labels_are_not_taken_for_classes(tmp_path: Path) -> None:
    model = _dense(3, "sigmoid")
    model.compile(loss="binary_crossentropy")
    labels = (_X @ _W > 0).astype(np.uint8)
    report = _export(model, tmp_path, labels, min_accuracy=0.98)
    (check,) = _accuracies(report)
    assert report.exit_code == 0
    assert check.title == "binary_accuracy"
    broken = labels.copy()
    broken[:, 1] = 1 - broken[:, 1]
    checked = ec.check(
        tmp_path / "tiny_int8.tflite", ["cortex-m4"], evaluate=(_X, broken), min_accuracy=0.98
    )
    assert checked.exit_code == 4
    assert _accuracies(checked)[0].measured == pytest.approx(2 / 3, abs=0.02)
    assert _accuracies(checked)[0].detail["worst_label"] < 0.05


def test_a_floor_that_a_constant_answer_reaches_is_named(tmp_path: Path) -> None:
    labels = np.zeros((200, 3), int)
    labels[:4] = 1
    model = _dense(3, "sigmoid", bias=-20.0)  # says no to everything
    model.compile(loss="binary_crossentropy")
    (check,) = _accuracies(_export(model, tmp_path, labels, min_accuracy=0.9))
    assert (check.verdict, check.measured, check.detail["constant"]) == ("pass", 0.98, 0.98)
    assert check.reason is not None and "A constant answer scores 98.00 %" in check.reason


# --- several outputs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported file of a model with two outputs."""
    folder = tmp_path_factory.mktemp("heads")
    model = _heads()
    model.compile(loss={"label": "sparse_categorical_crossentropy", "box": "mae"})
    model.save(folder / "heads.keras")
    report = _export(
        folder / "heads.keras",
        folder,
        {"label": _wrong(_LABEL), "box": _BOX},
        min_accuracy=0.85,
        max_metric={"mae:box": 0.5},
        max_drop={"accuracy:label": 0.02},
    )
    assert report.exit_code == 0
    label, box = _accuracies(report)
    assert (label.title, box.title) == ("accuracy:label", "mae:box")
    # The stricter of the floor and the Keras model's own 90 % less two points.
    assert label.limit == pytest.approx(0.88)
    assert (label.is_floor, box.is_floor, box.unit) == (True, False, "number")
    assert box.detail["keras"] == pytest.approx(0, abs=1e-5)
    return folder / "heads_int8.tflite"


@pytest.mark.parametrize(
    ("labels", "limits", "code", "verdicts"),
    [
        # The floor holds for the classifier alone.
        ({"y0": _LABEL, "y1": _BOX}, {"min_accuracy": 0.9}, 0, ["pass", "not_applicable"]),
        # A broken second output is not averaged away, and not passed over.
        ({"y0": _LABEL, "y1": _BOX + 3}, {"max_metric": {"mae:1": 0.5}}, 4,
         ["not_applicable", "fail"]),
        ({"y0": _LABEL, "y1": _BOX[::-1]}, {"min_metric": ["r2:1=0.9"]}, 4,
         ["not_applicable", "fail"]),
        ({"y0": (_LABEL + 1) % 3, "y1": _BOX}, {"min_accuracy": 0.9}, 4,
         ["fail", "not_applicable"]),
        # Labels of one output say nothing about the other.
        ({"y1": _BOX}, {"min_accuracy": 0.9}, 6, ["not_measured", "not_applicable"]),
        ({"y0": _LABEL}, {"min_metric": {"accuracy:0": 0.9}}, 0, ["pass", "not_applicable"]),
        ({"y0": _LABEL}, {"max_metric": {"mae:1": 0.5}}, 6, ["not_applicable", "not_measured"]),
    ],
)  # fmt: skip
def test_every_output_is_judged(
    heads: Path, labels: Any, limits: Any, code: int, verdicts: list[str]
) -> None:
    report = ec.check(heads, ["cortex-m4"], evaluate=(_X, labels), **limits)
    assert [check.verdict for check in _accuracies(report)] == verdicts
    assert report.exit_code == code


def test_an_output_without_labels_is_named(heads: Path) -> None:
    report = ec.check(heads, ["cortex-m4"], evaluate=(_X, _LABEL))
    label, box = _accuracies(report)
    assert label.measured == pytest.approx(1.0, abs=0.02)
    assert box.reason is not None and "no labels of output" in box.reason
    assert report.exit_code == 0


# --- regression ---------------------------------------------------------------------------------


def test_whole_numbers_beside_the_calibration_are_regression_targets(tmp_path: Path) -> None:
    model = _dense(1, bias=40.0)
    model.compile(loss="mse")
    ages = np.round(_X @ _W[:, 0] + 40).astype(int)
    options: Any = {"calibration": (_X, ages), "evaluate": None}
    report = _export(model, tmp_path, None, min_metric={"R2": 0.98}, **options)
    (check,) = _accuracies(report)
    assert report.exit_code == 0
    assert (check.title, check.unit) == ("r2", "number")
    with pytest.raises(ArgumentError, match="a classifier, but the compiled loss is mse"):
        _export(model, tmp_path, ages, min_accuracy=0.9)


def test_a_drop_is_counted_from_the_plain_keras_model(tmp_path: Path) -> None:
    model = _dense(3, "softmax")
    healthy = _export(model, tmp_path, _LABEL, max_drop=0.02)
    assert healthy.exit_code == 0
    # A tenth of the range: most inputs are clipped.
    options: Any = {"calibration": _X / 30, "max_drop": 0.02}
    report = _export(model, tmp_path, _LABEL, **options)
    (check,) = _accuracies(report)
    assert report.exit_code == 4
    assert check.detail["keras"] == 1.0
    assert check.detail["drop"] > 0.02
    assert check.reason is not None and "points worse than in Keras, 2 points are allowed" in (
        check.reason
    )


# --- what is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"metric": "acc"}, "Did you mean auc or accuracy"),
        ({"metric": ["accuracy:"]}, "name an output behind the colon"),
        ({"metric": [3]}, "be the name of a metric"),
        ({"min_metric": {"mae": 3}}, "Of MAE less is better: use --max-metric"),
        ({"max_metric": {"r2": 3}}, "use --min-metric"),
        ({"min_metric": {"accuracy": 90}}, "be a share between 0 and 1"),
        ({"min_metric": ["accuracy"]}, "be NAME"),
        ({"min_metric": ["accuracy=high"]}, "be NAME"),
        ({"min_metric": {"accuracy": True}}, "be NAME"),
        ({"min_metric": 0.9}, "be NAME"),
        ({"min_metric": ["r2=0.1", "R2=0.2"]}, "limit r2 once"),
        ({"max_drop": -0.1}, "be 0 or more"),
        ({"max_drop": float("nan")}, "be NAME"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        scoring.parse_scoring(None, **asked)


def test_what_is_asked_in_texts_is_what_is_asked_in_mappings() -> None:
    texts = scoring.parse_scoring(0.5, "auc:a", ["r2:b=0.5"], ["mae:b=2"], ["0.01", "mae:b=0.5"])
    mappings = scoring.parse_scoring(
        0.5, ["AUC:a"], {"R2:b": 0.5}, {"MAE:b": 2}, {"*": 0.01, "mae:b": 0.5}
    )
    assert texts == mappings


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"metric": "mae"}, r"name one of the 2 outputs \(label, box\).*E.g. mae:label"),
        ({"metric": "mae:boxes"}, "name an output of the model: label, box"),
        ({"metric": "mae:7"}, "name an output of the model"),
    ],
)
def test_a_metric_names_its_output(heads: Path, asked: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        ec.check(heads, ["cortex-m4"], evaluate=(_X, _LABEL), **asked)


def test_limits_without_labels_are_undecided(heads: Path) -> None:
    for limits in (
        {"min_accuracy": 0.9}, {"min_metric": {"accuracy:0": 0.9}}, {"max_metric": {"mae:1": 1.0}},
    ):  # fmt: skip
        report = ec.check(heads, ["cortex-m4"], **limits)  # type: ignore[arg-type]
        (check,) = _accuracies(report)
        assert (check.verdict, report.exit_code) == ("not_measured", 6)
        assert check.reason is not None and "needs labels: give --evaluate" in check.reason
    assert scores.unmeasured(scoring.parse_scoring(None, max_drop=0.1), "{}")[0].limit == 0.1


def test_the_targets_own_floor_says_nothing_about_values(tmp_path: Path) -> None:
    model = _dense(1)
    model.compile(loss="mse")
    board = load_target("nucleo-l4r5zi")
    object.__setattr__(board, "budgets", Budgets(min_accuracy=0.9))
    report = ec.export(
        model, [board], calibration=_X, evaluate=(_X, _X @ _W[:, 0]), output=tmp_path
    )
    values, accuracy = _accuracies(report)
    assert values.verdict == "not_applicable"
    assert (accuracy.verdict, accuracy.limit, report.exit_code) == ("not_measured", 0.9, 6)


def test_an_output_of_nan_fails(heads: Path) -> None:
    flat = read_tflite(heads)
    asked = scoring.parse_scoring(None, min_metric={"r2:1": 0.5})
    labelled = Labelled((_X,), {"y0": _LABEL, "y1": _BOX})
    items = score_plan.plan(asked, outputs_of_file(flat), flat, labelled)
    broken = scores.Run("tflm", "0", 200, (np.eye(3)[_LABEL], np.full((200, 3), np.nan)))
    results = [scores.result(item, broken, scores.Reference()) for item in items]
    assert [r.verdict for r in results] == ["not_applicable", "fail"]
    assert results[1].measured is None


# --- the command line ---------------------------------------------------------------------------


def test_flags_and_configuration_ask_the_same(
    heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=_X, y_label=_LABEL, y1=_BOX)
    (tmp_path / "edge.toml").write_text(
        'target = "cortex-m4"\nevaluate = "data.npz"\nmetric = "auc:0"\n'
        'min_metric = {"accuracy:label" = 0.9, "r2:1" = 0.9}\nmax_metric = ["mae:1=0.5"]\n'
    )
    flags = [
        "-t", "cortex-m4", "--evaluate", str(tmp_path / "data.npz"), "--metric", "auc:0",
        "--min-metric", "accuracy:label=0.9", "--min-metric", "r2:1=0.9",
        "--max-metric", "mae:1=0.5",
    ]  # fmt: skip
    found = []
    for arguments in (flags, ["--config", str(tmp_path / "edge.toml")]):
        assert main(["check", str(heads), *arguments, "-q", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["targets"])
    assert found[0] == found[1]
    named = [c["detail"]["metric"] for c in found[0][0]["checks"] if c["rule"] == "accuracy"]
    assert named == ["auc", "accuracy", "r2", "mae"]
    assert main(["check", str(heads), *flags, "-q"]) == 0
    text = capsys.readouterr().out
    assert "mae:box" in text and "min 0.9 " in text and "accuracy:label: " in text


def test_a_drop_needs_the_keras_model(heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(heads), "-t", "cortex-m4", "--max-drop", "0.1", "-q"]) == 2
    assert "edgecompress export" in capsys.readouterr().err
    command = ["export", str(heads), "-t", "cortex-m4", "--format", "compressed", "-q"]
    assert main([*command, "--max-drop", "0.1", "-o", str(heads.parent / "no")]) == 2
    assert "There is no Keras model" in capsys.readouterr().err
