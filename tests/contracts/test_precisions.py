"""What every precision keeps: its grid, its gradient, and a file that computes what it trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import quantized_inputs
from edgecompress.core.errors import ArgumentError, EngineError, UnknownNameError
from edgecompress.core.options import named, named_config, options_of
from edgecompress.core.record import record_of
from edgecompress.engines.registry import ENGINES
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.base import Precision, trained_precision

keras = pytest.importorskip("keras")
ops = keras.ops

_RNG = np.random.default_rng(4)
WEIGHTS = _RNG.normal(size=(9, 5)).astype("f4")
X = _RNG.normal(size=(64, 6)).astype("f4")
Y = (X[:, 0] > 0).astype("int32")


@pytest.fixture(params=sorted(PRECISIONS))
def precision(request: pytest.FixtureRequest) -> Precision:
    return named(PRECISIONS, request.param, "precision")


@pytest.fixture(params=sorted(name for name in PRECISIONS if PRECISIONS[name].trains))
def trainable(request: pytest.FixtureRequest) -> Precision:
    return named(PRECISIONS, request.param, "precision")


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def test_it_comes_back_from_its_config(precision: Precision) -> None:
    config = named_config(PRECISIONS, precision)
    assert config["name"] == precision.name
    assert named(PRECISIONS, config, "precision") == precision
    assert all(item.help.endswith(".") for item in options_of(type(precision)))
    assert set(precision.engines) <= set(ENGINES)
    assert precision.engines


def test_weights_stay_on_a_grid(precision: Precision) -> None:
    once = _numpy(precision.quantize_weights(WEIGHTS, (-1,)))
    np.testing.assert_allclose(
        _numpy(precision.quantize_weights(once, (-1,))), once, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        _numpy(precision.fake_quantize_weights(WEIGHTS, (-1,))), once, rtol=1e-5, atol=1e-7
    )
    order = np.argsort(WEIGHTS, axis=0)
    assert (np.diff(np.take_along_axis(once, order, axis=0), axis=0) >= -1e-6).all()
    assert len(np.unique(once[:, 0])) <= 2**precision.weight_bits
    # A precision that changes nothing is none.
    assert np.abs(once - WEIGHTS).max() > 0


def test_activations_stay_on_a_grid(trainable: Precision) -> None:
    precision = trainable
    values = np.linspace(-3, 5, 4001).astype("f4")
    once = _numpy(precision.fake_quantize(values, -1.5, 3.0))
    again = _numpy(precision.fake_quantize(once, -1.5, 3.0))
    np.testing.assert_allclose(again, once, rtol=1e-5, atol=1e-6)
    assert (np.diff(once) >= 0).all()
    assert len(np.unique(once)) <= 2**precision.activation_bits
    assert once.min() < -1.4 and once.max() < 3.1
    assert float(_numpy(precision.fake_quantize(np.zeros(1, "f4"), -1.5, 3.0))[0]) == pytest.approx(
        0, abs=1e-7
    )


def test_a_range_starts_at_the_first_batch(trainable: Precision) -> None:
    unseen = np.array([np.inf, -np.inf], "f4")
    np.testing.assert_allclose(
        _numpy(trainable.moving_range(unseen, np.array([[-2.0, 3.0]], "f4"))), [-2, 3]
    )


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(2),
        ]
    )


def test_it_trains_and_its_file_runs(trainable: Precision) -> None:
    precision, model = trainable, _model()
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(X, Y, batch_size=16, verbose=0, callbacks=[ec.QuantizationAwareTraining(precision)])
    record = record_of(model)
    assert record.steps[0]["quantizer"] == precision.name
    assert trained_precision(record) == type(precision)()
    _runs(int8.convert(float32.convert(model), record=record, precision=precision), precision)


def test_its_file_without_training_runs(precision: Precision) -> None:
    _runs(int8.convert(float32.convert(_model()), calibration=[X], precision=precision), precision)


def _runs(artifact: Artifact, precision: Precision) -> None:
    """The engines that a precision claims run its file alike; all others do not."""
    assert artifact.kind == precision.name
    flat = artifact.flat
    kinds = {tensor.type for tensor in flat.tensors if tensor.is_constant}
    stored = "FLOAT" if precision.stored_bits == 16 else "INT"
    assert f"{stored}{precision.stored_bits}" in kinds
    inputs = quantized_inputs(flat, [X[:4]])
    answers, others = {}, {}
    for name in ENGINES:
        if engine_available(name) is not None:
            continue
        into = answers if name in precision.engines else others
        try:
            into[name] = run_engine(name, artifact.data, inputs).outputs[0]
        except EngineError:
            assert name not in precision.engines
    assert answers
    first = next(iter(answers.values()))
    step = 1.0 if first.dtype.kind == "i" else 0.05
    for outputs in answers.values():
        assert len(np.unique(outputs)) > 1
        np.testing.assert_allclose(outputs, first, atol=step)
    for outputs in others.values():
        # An engine that a precision does not claim refuses its files, or computes something else.
        assert np.abs(outputs - first).max() > step


def test_training_refuses_what_it_cannot_simulate(precision: Precision) -> None:
    if precision.trains:
        ec.QuantizationAwareTraining(precision)
        return
    with pytest.raises(ArgumentError, match=f"settings.*--precision {precision.name}"):
        ec.QuantizationAwareTraining(precision)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="precision") as error:
        named(PRECISIONS, "zzz", "precision")
    assert all(name in str(error.value) for name in PRECISIONS)
