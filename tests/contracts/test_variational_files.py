"""Every callback with uncertain kernels, then clustering and int8 training, and the file runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.posterior import Posterior
from edgecompress.converters import float32, int8
from edgecompress.converters.compressed import compress
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.record import record_of
from edgecompress.engines.run import run_engine

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 8, 8, 2)).astype("f4")
Y = np.eye(3)[np.argmax(X[:, :3, 0, 0], axis=1)]
# As if there were more data: a prior that hardly pulls in the few steps, which start near to zeros.
CALLBACKS: dict[type, Callable[[], Any]] = {
    ec.VariationalDropout: lambda: ec.VariationalDropout(6400, initial_log_variance=-4.0),
    ec.BayesianGroupSparsity: lambda: ec.BayesianGroupSparsity(
        6400, threshold=-4.0, initial_log_variance=-4.0, rate=3.0
    ),
    ec.VariationalQuantization: lambda: ec.VariationalQuantization(6400),
    ec.SoftWeightSharing: lambda: ec.SoftWeightSharing(6400, 6, zero_share=0.6),
}
# What a kernel holds beside zero afterwards, at most.
VALUES = {ec.VariationalQuantization: 2, ec.SoftWeightSharing: 6}


def _model() -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            kl.Conv2D(8, 3, name="a"),
            kl.BatchNormalization(),
            kl.ReLU(),
            kl.Conv2D(6, 3, activation="relu", name="b"),
            kl.Flatten(),
            kl.Dense(24, activation="relu", name="c"),
            kl.Dense(3, name="d"),
        ]
    )
    return _compiled(model)


def _compiled(model: Any) -> Any:
    model.compile(keras.optimizers.Adam(0.003), "mse")
    return model


def _fit(model: Any, *callbacks: Any, epochs: int = 3) -> None:
    model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0, callbacks=list(callbacks))


def _kernels(model: Any) -> dict[str, np.ndarray]:
    return {x.name: np.array(x.kernel) for x in model.layers if hasattr(x, "kernel")}


def test_every_callback_with_uncertain_kernels_is_here() -> None:
    public = {getattr(ec, name) for name in ec.__all__ if isinstance(getattr(ec, name), type)}
    assert {kind for kind in public if issubclass(kind, Posterior)} == set(CALLBACKS)


@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_from_uncertain_kernels_to_a_file_that_runs(kind: type) -> None:
    model = _model()
    _fit(model, epochs=15)
    # In the same fit first. Ranges see the noise there, and have to be learnt anew afterwards.
    _fit(model, CALLBACKS[kind](), ec.QuantizationAwareTraining(), epochs=2)
    _fit(model, CALLBACKS[kind]())
    assert any((kernel == 0).any() for kernel in _kernels(model).values())
    for kernel in _kernels(model).values():
        assert np.unique(kernel[kernel != 0]).size <= VALUES.get(kind, kernel.size)
    outputs = model.predict(X, verbose=0)
    small = _compiled(ec.finalize(model))
    np.testing.assert_allclose(small.predict(X, verbose=0), outputs, rtol=1e-4, atol=1e-5)
    if kind is ec.BayesianGroupSparsity:
        assert small.count_params() < model.count_params()
    before = _kernels(small)
    kept = [ec.KeepSparsity()] if any((x == 0).any() for x in before.values()) else []
    _fit(small, *kept, ec.WeightClustering(7), ec.QuantizationAwareTraining(ec.Int8(0.5)), epochs=2)
    for name, kernel in _kernels(small).items():
        assert (kernel[before[name] == 0] == 0).all()
        assert np.unique(kernel[kernel != 0]).size <= 7
    steps = [step["technique"] for step in record_of(small).steps]
    assert {kind.technique, "weight_clustering", "quantization_aware_training"} <= set(steps)
    plain = int8.strip_names(int8.convert(float32.convert(small), calibration=[X]))
    expected = small.predict(X, verbose=0)
    coded = compress(plain, samples=8).artifact.data
    assert len(coded) < len(plain.data)
    for engine, data in (("litert", plain.data), ("tflm", coded)):
        codes = run_engine(engine, data, quantized_inputs(plain.flat, [X])).outputs[0]
        found = dequantize(codes, plain.flat.tensors[plain.flat.outputs[0]])
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
        assert np.abs(found - expected).max() <= 0.3 * np.abs(expected).max()


def test_ternary_kernels_are_stored_in_two_bits() -> None:
    model = _model()
    _fit(model, CALLBACKS[ec.VariationalQuantization](), epochs=4)
    plain = int8.strip_names(int8.convert(float32.convert(model), calibration=[X]))
    codes = [t for t in plain.flat.tensors if len(t.shape) == 2 and t.shape == (24, 96)]
    assert len(codes) == 1
    assert set(np.unique(codes[0].values())) <= {-127, 0, 127}
    coded = compress(plain, samples=8).artifact.data
    assert len(plain.data) - len(coded) > 0.6 * np.prod(model.get_layer("c").kernel.shape)
