"""Columns of very different sizes: scaled in float where one int8 scale would erase some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.loaders import wrap
from edgecompress.converters.real_values import dequantize
from edgecompress.engines.run import run_engine

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl = keras.layers


def _model(scales: np.ndarray) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,), name="features"),
            kl.Normalization(mean=scales, variance=scales**2, name="scaled"),
            kl.Dense(8, activation="relu"),
            kl.Dense(3, activation="softmax", name="classes"),
        ]
    )


def _samples(scales: np.ndarray) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(128, 4)) * scales + scales).astype(np.float32)


def test_small_columns_survive(tmp_path: Path) -> None:
    scales = np.array([1e-3, 1.0, 1e3, 1e5])
    model, x = _model(scales), _samples(scales)
    report = ec.export(
        model, ["cortex-m4", "host"], calibration=x, name="net", output=str(tmp_path)
    )
    assert report.exit_code == 0
    assert any("'features' is float32" in note and "0, 1, 2" in note for note in report.notes)
    artifact = int8.convert(float32.convert(model), calibration=[x])
    flat = artifact.flat
    assert (tmp_path / "net_int8.tflite").read_bytes() == int8.strip_names(artifact).data
    assert [flat.tensors[i].type for i in flat.inputs] == ["FLOAT32"]
    assert [o.code for o in flat.operators][:3] == ["SUB", "MUL", "QUANTIZE"]
    assert not any("stays in float" in note for note in artifact.notes)
    wanted = wrap(model).predict([x])[0]
    for engine in ("litert", "tflm"):
        output = run_engine(engine, artifact.data, [x]).outputs[0]
        found = dequantize(output, flat.tensors[flat.outputs[0]])
        assert np.abs(found - wanted).max() < 0.05, engine


def test_columns_of_one_size_are_int8_throughout() -> None:
    """The failing direction: nothing to save."""
    scales = np.array([1.0, 2.0, 3.0, 4.0])
    artifact = int8.convert(float32.convert(_model(scales)), calibration=[_samples(scales)])
    assert {t.type for t in artifact.flat.tensors} <= {"INT8", "INT32"}
