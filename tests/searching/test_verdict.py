"""What a search says of its files is what `check` says of them, for several kinds of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.files import sha256

keras = pytest.importorskip("keras")
layers = keras.layers

pytestmark = pytest.mark.slow

_BOARD = "nucleo-l4r5zi"
Made = tuple[Any, np.ndarray, np.ndarray | None]


def trained(model: Any, loss: str, x: np.ndarray, y: np.ndarray) -> Any:
    model.compile("adam", loss)
    model.fit(x, y, epochs=3, verbose=0)
    return model


def regression() -> Made:
    x = np.random.default_rng(0).normal(size=(120, 10)).astype("float32")
    y = (2 * x[:, :1] + np.sin(x[:, 1:2])).astype("float32")
    parts = [keras.Input((10,)), layers.Dense(24, activation="relu"), layers.Dense(1)]
    return trained(keras.Sequential(parts), "mse", x, y), x, y


def recurrent() -> Made:
    x = np.random.default_rng(0).normal(size=(120, 6, 4)).astype("float32")
    y = (x.sum((1, 2)) > 0).astype("int64")
    parts = [keras.Input((6, 4)), layers.LSTM(12), layers.Dense(2, activation="softmax")]
    return trained(keras.Sequential(parts), "sparse_categorical_crossentropy", x, y), x, y


def autoencoder() -> Made:
    random = np.random.default_rng(0)
    x = np.tanh(random.normal(size=(120, 3)) @ random.normal(size=(3, 12))).astype("float32")
    parts = [keras.Input((12,)), layers.Dense(8, activation="relu"), layers.Dense(12)]
    return trained(keras.Sequential(parts), "mse", x, x), x, None


@pytest.mark.parametrize(
    ("make", "metric", "trials", "limits"),
    [
        (regression, "mse", 2, {"max_file_size": 1800, "max_latency": "1ms"}),
        (recurrent, "accuracy", 1, {"max_file_size": "7KiB", "min_accuracy": 0.3}),
        # Out of reach.
        (autoencoder, "mse", 2, {"max_ram": 300}),
    ],
)
def test_numbers_and_exit_code_are_those_of_a_check_of_the_file(
    make: Callable[[], Made], metric: str, trials: int, limits: dict[str, Any], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    model, x, y = make()
    data, held = ((x[:80], y[:80]), (x[80:], y[80:])) if y is not None else (x[:80], x[80:])
    found = ec.search(
        model, data, [_BOARD], validation=held, trials=trials, epochs=1, output=tmp_path,
        techniques=("channels",), **limits,
    )  # fmt: skip
    labelled = (held, held) if y is None else held

    def checked(path: Path) -> Any:
        return ec.check(path, [_BOARD], evaluate=labelled, metric=[metric], **limits)

    made = [point.outcome for point in found.points if point.outcome.made]
    assert made
    for outcome in made:
        path = tmp_path / "candidates" / outcome.key / f"{outcome.epochs}" / "model.tflite"
        report = checked(path)
        real = {check.rule: check for check in report.targets[0].checks}
        assert outcome.samples == len(x) - 80
        assert outcome.metric == pytest.approx(real["accuracy"].measured, abs=1e-12)
        for rule, cost in outcome.costs.items():
            assert cost == max(real[rule].high, real[rule].detail.get("smallest") or 0)
        # `check` has no Keras model to agree with.
        if outcome.fits:
            assert report.exit_code == 0
    assert (found.best is None) == (found.exit_code != 0)
    if found.best is None:
        assert not (tmp_path / "best").exists()
        return
    (file,) = (tmp_path / "best").glob("*_int8.tflite")
    assert sha256(file.read_bytes()) == found.best.outcome.sha256
    assert checked(file).exit_code == 0
