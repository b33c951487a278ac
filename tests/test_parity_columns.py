"""Each output and each column is judged by its own scale; what int8 erases is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters.agreement import OutputAgreement, compare, judge_output

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float_once")]


def judged(got: np.ndarray, expected: np.ndarray, kind: str = "values", **options: Any) -> str:
    return judge_output(compare("y", kind, got, expected, **options), None)[0]


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    return np.rint(values / step) * step


def parity(report: Any) -> Any:
    return next(check for check in report.targets[0].checks if check.rule == "parity")


def test_r2_is_numpys() -> None:
    y = np.random.default_rng(0).normal(size=(50, 3))
    f = y + np.random.default_rng(1).normal(size=y.shape) * [0.1, 0.2, 0.3]
    found = compare("y", "values", f, y)
    expected = 1 - ((y - f) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    assert (found.column, found.r2) == (int(expected.argmin()), pytest.approx(expected.min()))


def test_a_small_column_beside_a_large_one_fails_and_is_named() -> None:
    y = np.random.default_rng(0).uniform(size=(200, 2)) * [1, 1000]
    step = 1000 / 255
    found = compare("y", "scores", rounded(y, step), y, step)
    assert found.agreement > 0.99 and found.failing == found.erased == (0,)
    verdict, text = judge_output(found, None)
    assert verdict == "fail" and "Workarounds" in text
    assert judged(rounded(y, 0.001), y, "scores", step=0.001) == "pass"


def test_constants_and_few_samples() -> None:
    y = np.random.default_rng(0).normal(size=(50, 2))
    y[:, 1] = 3.0
    assert judged(y + [0, 0.01], y, step=0.02) == "pass"
    assert judged(y * [1, 0], y, step=0.02) == "fail"
    assert judged(y[:1], y[:1]) == "uncertain"
    assert judged(-y[:3], y[:3]) == "uncertain"
    assert judged(-y, y) == "fail"


@pytest.mark.parametrize("kind", ["values", "classes", "scores"])
def test_swapped_columns_and_wrong_scales_fail(kind: str) -> None:
    logits = np.random.default_rng(0).normal(size=(200, 20)) * 2
    y = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if kind == "classes" else logits
    swapped = y.copy()
    swapped[:, [3, 7]] = y[:, [7, 3]]
    erased = y.copy()
    erased[:, 5] = 0
    for broken in (swapped, erased, 2 * y):
        assert judged(broken, y, kind) == "fail"
    assert judged(rounded(y, 1 / 256), y, kind, step=1 / 256) == "pass"


def test_a_user_may_lower_the_floor() -> None:
    y = np.random.default_rng(0).normal(size=(50, 1))
    assert judged(0 * y, y) == "fail"
    assert judged(0 * y, y, min_r2=0) == "pass"
    assert isinstance(compare("y", "values", y, y), OutputAgreement)


def test_targets_of_unlike_scale_fail_the_export(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="out")])
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([kernel * [0.5, 500], bias + [0.5, 500]])
    x = np.random.default_rng(0).uniform(size=(200, 4)).astype("f4")
    report = ec.export(model, ["host"], calibration=x, output=tmp_path)
    found = parity(report)
    assert (report.exit_code, found.verdict) == (4, "fail")
    assert found.detail["outputs"][0]["columns_erased"] == [0]


def test_features_of_unlike_scale_fail_and_are_named_unless_a_normalization_scales_them(
    tmp_path: Path,
) -> None:
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(300, 3)).astype("f4") * [1000, 1, 1]
    x = x.astype("f4")
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(1, name="out")])
    plain.get_layer("out").set_weights([np.array([[1e-4], [1], [1]], "f4"), np.zeros(1, "f4")])
    report = ec.export(plain, ["host"], calibration=x, output=tmp_path)
    found = parity(report)
    assert report.exit_code == 4
    assert found.detail["inputs"][0]["columns_erased"] == [1, 2]
    assert found.reason is not None and "int8 erases it" in found.reason
    # A Normalization inside the model scales them in float, before the first rounding.
    normal = layers.Normalization()
    normal.adapt(x)
    model = keras.Sequential([keras.Input((3,)), normal, layers.Dense(1, name="out")])
    model.get_layer("out").set_weights([np.array([[0.1], [1], [1]], "f4"), np.zeros(1, "f4")])
    assert ec.export(model, ["host"], calibration=x, output=tmp_path).exit_code == 0


def test_the_compiled_loss_tells_quantities_from_classes(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="out")])
    kernel, bias = model.layers[0].get_weights()
    # Two quantities that are nearly equal: which is larger means nothing.
    model.layers[0].set_weights([np.repeat(kernel[:, :1], 2, axis=1), bias + [0, 0.001]])
    x = np.random.default_rng(0).uniform(size=(200, 4)).astype("f4")
    for loss, kind in (("mse", "values"), ("categorical_crossentropy", "classes")):
        model.compile("sgd", loss)
        report = ec.export(model, ["host"], calibration=x, output=tmp_path)
        assert parity(report).detail["outputs"][0]["kind"] == kind
        assert (report.exit_code == 0) == (kind == "values")
