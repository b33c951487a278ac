"""Functions of keras.ops, resizing and shared heads: training rounds as the file computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.fusion import analyse
from edgecompress.core.record import record_of
from edgecompress.engines.run import run_engine
from edgecompress.simulation import EngineSimulation

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl, ops = keras.layers, keras.ops
ENGINES = ("litert", "tflm")


def _functions() -> Any:
    x = keras.Input((6, 8))
    h = kl.Dense(8, name="hidden")(x)
    # tanh rounds in training, so that the file holds it, and the table begins behind it.
    soft = ops.log(1.0 + ops.exp(-kl.Activation("tanh")(h)))
    bent = ops.where(ops.greater(h, 0.2), h, ops.multiply(h, 0.1))
    root = ops.sqrt(ops.mean(ops.square(h), axis=-1, keepdims=True) + 1e-3)
    moved = ops.flip(ops.roll(ops.clip(h, -0.7, 0.9), 1, axis=1), axis=1)
    halves = ops.stack(ops.split(bent, 2, axis=-1), axis=1)
    tiled = ops.reshape(ops.tile(halves, (1, 1, 1, 2)), (-1, 6, 16))
    joined = ops.concatenate([soft, moved, tiled, root], axis=-1)
    return keras.Model(x, kl.Dense(3)(kl.LeakyReLU()(kl.Dense(6)(joined))))


def _maps() -> Any:
    x = keras.Input((5, 6, 3))
    near = kl.Resizing(7, 9, "nearest")(kl.Conv2D(3, 1)(x))
    fine = kl.Resizing(10, 12)(kl.Conv2D(4, 3)(near))
    return keras.Model(x, kl.Conv2D(2, 3)(kl.LeakyReLU()(fine)))


def _heads() -> Any:
    x = keras.Input((6, 8))
    heads = kl.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True)
    return keras.Model(x, kl.Dense(3)(kl.LeakyReLU()(heads)))


# Model -> (steps that validation may be from the file, operators of the file).
MODELS = {
    # Two behind Concatenate, whose inputs are rounded twice.
    "functions": (_functions, 2, {"GATHER": 4, "CAST": 3, "TANH": 1}),
    "maps": (_maps, 1, {"RESIZE_BILINEAR": 1, "RESIZE_NEAREST_NEIGHBOR": 1}),
    "heads": (_heads, 1, {"BATCH_MATMUL": 2, "RESIZE_NEAREST_NEIGHBOR": 2}),
}


class _Validation(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
    def __init__(self, x: Any) -> None:
        super().__init__()
        self._x = x

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.outputs = np.asarray(self.model(self._x, training=False))


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    build, steps, operators = MODELS[request.param]
    keras.utils.set_random_seed(3)
    model = build()
    random = np.random.default_rng(4)
    x = random.normal(size=(48, *model.input_shape[1:])).astype("f4")
    y = random.normal(size=(48, *model.output_shape[1:])).astype("f4")
    model.compile(keras.optimizers.SGD(0.02), "mse")
    validation = _Validation(x)
    callbacks = [ec.QuantizationAwareTraining(), validation]
    model.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks)
    artifact = int8.convert(float32.convert(model), record=record_of(model))
    return model, x, validation.outputs, artifact, steps, operators


def test_nothing_is_left_out_of_the_simulation(trained: tuple[Any, ...]) -> None:
    model, *_, artifact, _, operators = trained
    assert analyse(model).notes == ()
    found = artifact.flat.histogram()
    assert {name: found.get(name) for name in operators} == operators
    assert {t.type for t in artifact.flat.tensors} <= {"INT8", "INT32", "BOOL"}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_file_is_a_step_from_validation_and_equals_the_simulation(
    trained: tuple[Any, ...], engine: str
) -> None:
    model, x, validated, artifact, steps, _ = trained
    output = artifact.flat.tensors[artifact.flat.outputs[0]]
    given = quantized_inputs(artifact.flat, [x])
    real = dequantize(run_engine(engine, artifact.data, given).outputs[0], output)
    simulated = EngineSimulation(artifact, engine).predict([x])
    np.testing.assert_array_equal(simulated.reshape(real.shape), real)
    if engine == "tflm":
        return  # Training follows LiteRT, which rounds sums in another way.
    for values in (validated, ec.simulate(model)(x)):
        error = np.abs(np.asarray(values).reshape(real.shape) - real) / output.scales[0]
        assert error.max() < steps + 0.5
    float_error = np.abs(np.asarray(model(x)).reshape(real.shape) - real) / output.scales[0]
    assert float_error.max() > steps + 0.5, "the comparison shows nothing"


def test_a_chain_rounds_once() -> None:
    x = keras.Input((4,))
    h = kl.Dense(4, name="hidden")(x)
    model = keras.Model(x, ops.log(1.0 + ops.exp(h)))
    taps = [tap.name for tap in analyse(model).taps]
    assert len(taps) == 3 and taps[:2] == ["input:0", "hidden"]
    # Read once more, the sum exists in the file, and is rounded there.
    total = 1.0 + ops.exp(h)
    model = keras.Model(x, kl.Concatenate()([ops.log(total), kl.Dense(2)(total)]))
    assert analyse(model).notes == () and len(analyse(model).taps) == 6


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda a, b: ops.where(ops.greater(a, 0.0), a, b), "not a function of one tensor"),
        (lambda a, b: ops.where(np.arange(4) > 1, a, 0.0), "constant of several numbers"),
        (lambda a, b: -a, "not a function of one tensor"),
        (lambda a, b: ops.power(a, -0.5), "ops.rsqrt"),
        (lambda a, b: ops.power(a, b), "its exponent is not one number"),
        (lambda a, b: ops.clip(a, -np.ones(4, "f4"), 1.0), "its limits are not two numbers"),
    ],
)
def test_what_is_no_table_is_named(build: Any, reason: str) -> None:
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], ops.concatenate([build(a, b), a + b]))
    assert any(reason in note for note in analyse(model).notes), analyse(model).notes


def test_training_goes_on_around_what_is_not_simulated() -> None:
    a, b = keras.Input((4,)), keras.Input((4,))
    odd = ops.where(ops.greater(a, 0.0), a, b) + ops.power(ops.abs(a) + 1.0, -0.5)
    model = keras.Model([a, b], kl.Dense(2)(odd))
    x = [np.random.default_rng(i).normal(size=(16, 4)).astype("f4") for i in range(2)]
    model.compile("sgd", "mse")
    model.fit(x, np.ones((16, 2)), verbose=0, callbacks=[ec.QuantizationAwareTraining()])
    simulated = np.asarray(ec.simulate(model)(x))
    np.testing.assert_allclose(simulated, model(x), atol=0.1)
