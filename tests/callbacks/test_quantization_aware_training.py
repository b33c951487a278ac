"""Quantization-aware training on tiny models: what trains, what remains, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import quantize, quantized_inputs
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.fusion import find_taps
from edgecompress.core.record import read_record, record_of
from edgecompress.engines.run import run_engine
from edgecompress.precisions.fake_quantization import fake_quantize, quantize_weights
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.simulation import simulate

pytestmark = pytest.mark.slow

SAMPLES, BATCH = 96, 16


def data(classes=3):
    random = np.random.default_rng(7)
    y = random.integers(0, classes, SAMPLES)
    x = random.normal(size=(SAMPLES, 8, 8, 2)).astype("f4")
    x[..., 0] += 2 * y[:, None, None]
    return x, y


def network(activation=None):
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.5, name="bn")(x))
    y = layers.SeparableConv2D(4, 3, padding="same", activation="relu", name="sep")(x)
    x = layers.AveragePooling2D(2, name="pool")(layers.Add(name="add")([x, y]))
    x = layers.Dense(3, activation=activation, name="dense")(layers.Flatten()(x))
    return keras.Model(inputs, x)


def small():
    """As few operators as these properties need: a fit traces and rounds each of them."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(momentum=0.5, name="bn"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, name="dense"),
        ]
    )


def compiled(model, from_logits=True, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss, metrics=["accuracy"], **options)
    return model


def fit(model, callbacks, epochs=2, **options):
    x, y = data()
    return model.fit(
        x, y, epochs=epochs, batch_size=BATCH, shuffle=False, verbose=0,
        callbacks=callbacks, **options,
    )  # fmt: skip


def is_plain(model):
    stack, found = [model], []
    while stack:
        layer = stack.pop()
        found.append("call" not in vars(layer))
        stack += getattr(layer, "layers", [])
    return all(found)


@pytest.fixture(scope="module")
def plain():
    """Losses of a fit without the callback."""
    return fit(compiled(network()), [], epochs=6, initial_epoch=3).history["loss"]


@pytest.fixture(scope="module")
def aware(tmp_path_factory):
    """What a fit with the callback left, and what it wrote into files meanwhile."""
    x, y = data()
    path = tmp_path_factory.mktemp("aware") / "model.keras"
    model = compiled(network())
    before = [weight.path for weight in model.weights]
    callbacks = [QuantizationAwareTraining(), keras.callbacks.ModelCheckpoint(path)]
    history = fit(model, callbacks, epochs=8, validation_data=(x, y)).history
    return SimpleNamespace(
        history=history,
        same_weights=[weight.path for weight in model.weights] == before,
        is_plain=is_plain(model),
        kind=type(model),
        kernel=model.get_layer("conv").kernel.numpy(),
        outputs=model(x).numpy(),
        simulated=simulate(model)(x).numpy(),
        record=record_of(model),
        path=path,
    )


@pytest.fixture(scope="module")
def softmax():
    """A fit of a model that ends in a softmax, and the int8 file of it."""
    from edgecompress.converters import float32, int8

    model = compiled(network("softmax"), from_logits=False)
    history = fit(model, [QuantizationAwareTraining()], epochs=8).history
    simulated = simulate(model)(data()[0]).numpy()
    artifact = int8.convert(float32.convert(model))
    return SimpleNamespace(
        history=history, ranges=record_of(model).ranges, simulated=simulated, artifact=artifact
    )


@pytest.fixture(scope="module")
def begun():
    """History and record of a fit that rounds from its second epoch on, and the taps."""
    model = compiled(network())
    callback = QuantizationAwareTraining(Int8(momentum=0.5), begin_epoch=4)
    history = fit(model, [callback], epochs=6, initial_epoch=3).history
    return history, record_of(model), [tap.name for tap in find_taps(model)]


def test_training_changes_the_loss_and_leaves_a_plain_model(aware, plain):
    losses = aware.history["loss"]
    assert losses[: len(plain)] != plain
    np.testing.assert_allclose(losses[:2], plain[:2], rtol=0.2)
    assert aware.history["quantization_active"] == [1] * 8
    assert aware.history["quantization_drift"][0] == 1 > aware.history["quantization_drift"][1]
    assert aware.is_plain
    assert aware.same_weights
    codes = aware.kernel / (np.abs(aware.kernel).max(axis=(0, 1, 2)) / 127)
    assert np.abs(codes - np.rint(codes)).max() > 0.1  # float, not baked


@pytest.fixture(scope="module")
def step_by_step():
    """Losses where each step is a call of its own, and compiled by TensorFlow."""
    model = compiled(small(), jit_compile=False)
    return fit(model, [QuantizationAwareTraining(begin_epoch=1)]).history["loss"]


@pytest.mark.parametrize(
    "options", [{"steps_per_execution": 4}, {"jit_compile": True}, {"steps_per_execution": 3}]
)
@pytest.mark.filterwarnings("ignore:.*retracing")
def test_execution_settings_give_the_same_losses(options, step_by_step):
    model = compiled(small(), **options)
    got = fit(model, [QuantizationAwareTraining(begin_epoch=1)])
    # XLA sums in another order, and a rounded value may then fall on the other side of a tie.
    tolerance = 2e-3 if "jit_compile" in options else 1e-5
    np.testing.assert_allclose(got.history["loss"], step_by_step, rtol=tolerance)


def test_first_step_matches_numpy():
    """Range and loss of one step, computed apart from the callback."""
    x, y = data()
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(3)])
    kernel, bias = (w.astype(np.float64) for w in model.get_weights())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(
        x, y, batch_size=SAMPLES, shuffle=False, verbose=0, callbacks=[QuantizationAwareTraining()]
    )

    def rounded(values):
        low, high = min(values.min(), 0), max(values.max(), 0)
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale

    scale = np.abs(kernel).max(axis=0) / 127
    flat = rounded(x.astype(np.float64)).reshape(SAMPLES, -1)
    linear = flat @ (np.rint(kernel / scale) * scale) + bias
    logits = rounded(linear)
    loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(SAMPLES), y]
    assert history.history["loss"][0] == pytest.approx(loss.mean(), rel=1e-4)
    ranges = record_of(model).ranges
    assert ranges["input:0"] == pytest.approx((x.min(), x.max()))
    assert ranges[model.layers[-1].name] == pytest.approx((linear.min(), linear.max()), rel=1e-4)


def test_moving_average_over_batches(begun):
    x, _ = data()
    starts = [*range(0, SAMPLES, BATCH)] * 2  # Two epochs with the rounding.
    low, high = x[:BATCH].min(), x[:BATCH].max()
    for start in starts[1:]:
        batch = x[start : start + BATCH]
        low, high = (low + batch.min()) / 2, (high + batch.max()) / 2
    assert begun[1].ranges["input:0"] == pytest.approx((low, high), rel=1e-5)


def test_record_names_every_tap_and_the_step(begun):
    _, record, taps = begun
    assert list(record.ranges) == taps
    assert record.ranges["pool"] == record.ranges["add"]
    (step,) = record.steps
    assert step["technique"] == "quantization_aware_training"
    assert (step["weight_bits"], step["momentum"], step["begin_epoch"]) == (8, 0.5, 4)
    assert step["layers"] == ["conv", "sep", "dense"]
    assert step["epochs"] == 2


def test_begin_epoch_counts_as_keras_does(begun, plain):
    history, _, _ = begun
    assert history["quantization_active"] == [0, 1, 1]
    assert history["loss"][0] == pytest.approx(plain[0], rel=1e-6)
    assert history["loss"][1] != pytest.approx(plain[1], rel=1e-6)


def test_training_that_ends_before_begin_epoch_says_so():
    model = compiled(small())
    history = fit(model, [QuantizationAwareTraining(begin_epoch=5)]).history
    assert history["quantization_active"] == [0, 0]
    assert any("never active: begin_epoch is 5" in note for note in record_of(model).notes)
    assert record_of(model).ranges == {}


def test_validation_sees_the_simulation(aware):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    _, y = data()
    want = float(loss(y, aware.simulated))
    assert aware.history["val_loss"][-1] == pytest.approx(want, rel=1e-5)
    assert float(loss(y, aware.outputs)) != pytest.approx(want, rel=1e-5)


def test_validation_follows_the_engine_bit_for_bit():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(6, 3, activation="relu")(inputs)
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, padding="same")(x))
    x = keras.layers.Multiply()([keras.layers.Add()([x, y]), x])
    model = keras.Model(inputs, keras.layers.Dense(9)(keras.layers.Flatten()(x)))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(500, 8, 8, 1)).astype("f4")
    callback, seen = QuantizationAwareTraining(engine="tflm"), {}

    def predict(epoch, logs):
        for callback.engine in ("tflm", "litert"):
            seen[callback.engine] = model.predict(x, batch_size=500, verbose=0)

    watching = keras.callbacks.LambdaCallback(on_epoch_end=predict)
    model.fit(x, np.zeros((500, 9)), batch_size=250, verbose=0, callbacks=[callback, watching])
    flat = int8.convert(float32.convert(model), record=record_of(model)).flat
    for engine, outputs in seen.items():
        found = run_engine(engine, flat.data, quantized_inputs(flat, [x])).outputs[0]
        np.testing.assert_array_equal(
            quantize(outputs, flat.tensors[flat.outputs[0]]), found.reshape(-1, 9)
        )
    assert (seen["litert"] != seen["tflm"]).any()
    with pytest.raises(ArgumentError, match="`engine` must be litert or tflm"):
        QuantizationAwareTraining(engine="other")


def test_training_rounds_behind_max_pooling():
    """The same values with fewer operations; the range is that of what the next layer reads."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5, 5, 1))
    x = layers.Conv2D(3, 1, activation="relu", name="conv")(inputs)
    y = layers.Conv2D(3, 1, name="linear")(layers.MaxPooling2D(2, name="pool")(x))
    outputs = layers.Flatten()(layers.MaxPooling2D(2, name="last")(y))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(4).uniform(-1, 1, (6, 5, 5, 1)).astype("f4")
    # Pooling leaves out the last row, and pooled values of both signs remain.
    x[:, 4] *= 8
    y = np.zeros((6, 3), "f4")
    fitted = model.fit(x, y, batch_size=6, verbose=0, callbacks=[QuantizationAwareTraining()])
    ranges = record_of(model).ranges

    def pooled(values):
        return (
            values[:, : values.shape[1] // 2 * 2, : values.shape[2] // 2 * 2]
            .reshape(6, values.shape[1] // 2, 2, values.shape[2] // 2, 2, 3)
            .max((2, 4))
        )

    def weighted(values, name):
        kernel, bias = (np.asarray(w) for w in model.get_layer(name).weights)
        return values @ np.asarray(quantize_weights(kernel, (-1,)))[0, 0] + bias

    def rounded(values, low, high):
        assert (low, high) == pytest.approx((min(values.min(), 0), values.max()), rel=1e-5)
        return np.asarray(fake_quantize(values, low, high))

    # Every step rounds before it pools, as the file does.
    read = rounded(x, *ranges["input:0"])
    first = np.maximum(weighted(read, "conv"), 0)
    assert first.max() > 2 * pooled(first).max() == pytest.approx(2 * ranges["conv"][1], rel=1e-5)
    first = pooled(np.asarray(fake_quantize(first, *ranges["conv"])))
    second = weighted(first, "linear")
    low, high = ranges["linear"]
    assert high == pytest.approx(pooled(second).max(), rel=1e-5)
    assert second.min() < low == pytest.approx(min(pooled(second).min(), 0), rel=1e-5)
    second = pooled(np.asarray(fake_quantize(second, low, high)))
    assert fitted.history["loss"][0] == pytest.approx(np.mean(second**2), rel=1e-4)


def test_losses_on_softmax_outputs_keep_their_gradient(softmax, aware):
    """A rounded softmax would be 0 for most classes: no loss could train on it."""
    losses = softmax.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, aware.history["loss"], rtol=1e-3)
    assert softmax.ranges["dense"] == (0.0, 255 / 256)
    np.testing.assert_allclose(softmax.simulated * 256 % 1, 0, atol=1e-4)


def test_second_fit_continues_the_ranges_and_float_epochs_start_them_anew():
    x, y = data()
    model = compiled(small())
    fit(model, [QuantizationAwareTraining()], epochs=1)
    before = record_of(model).ranges["input:0"]
    model.fit(10 * x, y, epochs=1, batch_size=SAMPLES, shuffle=False, verbose=0,
              callbacks=[QuantizationAwareTraining()])  # fmt: skip
    after = record_of(model).ranges["input:0"]
    assert after[1] == pytest.approx(before[1] + 0.01 * (10 * x.max() - before[1]), rel=1e-5)
    assert len(record_of(model).steps) == 1
    model.fit(10 * x, y, epochs=2, batch_size=SAMPLES, shuffle=False, verbose=0,
              callbacks=[QuantizationAwareTraining(begin_epoch=1)])  # fmt: skip
    assert record_of(model).ranges["input:0"][1] == pytest.approx(10 * x.max())


class Stop(keras.callbacks.Callback):
    """Interrupts training as a lost machine would."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("first", [True, False])
def test_backup_and_restore(tmp_path, first, aware):
    def callbacks(*more):
        restore = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        quantize = QuantizationAwareTraining()
        return [quantize, restore, *more] if first else [restore, quantize, *more]

    stopped, killed = compiled(network()), callbacks(Stop())
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, killed, epochs=4)
    callback = killed[0 if first else 1]
    assert callback.active
    assert not is_plain(stopped)
    callback.detach()
    assert not callback.active
    assert is_plain(stopped)
    model = compiled(network())
    history = fit(model, callbacks(), epochs=4)
    assert len(history.history["loss"]) in (2, 3)
    assert set(history.history["quantization_active"]) == {1}
    # No jump: the restored run goes on where the other stopped.
    restored = history.history["loss"]
    assert max(restored) < aware.history["loss"][:4][-len(restored) - 1]
    assert list(record_of(model).ranges) == list(aware.record.ranges)


def test_an_interrupted_fit_is_cleaned_up_by_the_next():
    model = compiled(small())
    with pytest.raises(KeyboardInterrupt):
        fit(model, [QuantizationAwareTraining(), Stop()], epochs=4)
    assert not is_plain(model)
    fit(model, [QuantizationAwareTraining()], epochs=1)
    assert is_plain(model)


def test_checkpoints_in_mid_training_load_plain(aware):
    loaded = keras.models.load_model(aware.path)
    assert type(loaded) is aware.kind
    assert is_plain(loaded)
    np.testing.assert_allclose(loaded(data()[0]), aware.outputs, atol=1e-6)
    record, reason = read_record(aware.path)
    assert reason is None
    assert record.ranges == aware.record.ranges


@pytest.mark.parametrize("order", [1, -1])
def test_pruning_runs_with_it(order):
    from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
    from edgecompress.schedules import PolynomialDecay

    model = compiled(network())
    pruning = MagnitudePruning(PolynomialDecay(0.5, begin_step=0, end_step=8, frequency=2))
    history = fit(model, [QuantizationAwareTraining(), pruning][::order]).history
    zeros = model.get_layer("dense").kernel.numpy() == 0
    assert zeros.mean() == pytest.approx(0.5, abs=0.01)
    assert history["sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    assert history["quantization_active"] == [1, 1]
    record = record_of(model)
    assert {step["technique"] for step in record.steps} == {
        "magnitude_pruning",
        "quantization_aware_training",
    }
    assert list(record.ranges) == [tap.name for tap in find_taps(model)]
    assert is_plain(model)
    assert "apply" not in vars(model.optimizer)
    baked = simulate(model).get_layer("dense").kernel.numpy()
    assert not baked[zeros].any()


def test_group_lasso_runs_with_it():
    from edgecompress.callbacks.group_lasso import GroupLasso

    losses = []
    for order in (1, -1):
        model = compiled(small())
        callbacks = [QuantizationAwareTraining(), GroupLasso(1e-3, groups="filters")][::order]
        losses.append(fit(model, callbacks).history["loss"])
        assert is_plain(model)
        assert len(record_of(model).steps) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_frozen_batch_norm_keeps_its_statistics_and_constraints_hold():
    model = network()
    model.get_layer("dense").kernel.constraint = keras.constraints.NonNeg()
    seen = []

    class Statistics(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.get_layer("bn").moving_mean.numpy().copy())

    callbacks = [QuantizationAwareTraining(freeze_batch_norm_epochs=1), Statistics()]
    fit(compiled(model), callbacks, epochs=3)
    assert np.abs(seen[0] - seen[1]).max() > 0
    np.testing.assert_array_equal(seen[1], seen[2])
    assert any(model.get_layer("bn").gamma is weight for weight in model.trainable_variables)
    assert model.get_layer("dense").kernel.numpy().min() >= 0


def test_nested_models_dict_inputs_and_layers_int8_does_not_know():
    x, y = data()
    keras.utils.set_random_seed(1)
    inner = keras.Sequential(
        [keras.Input((8, 8, 2)), layers.Conv2D(3, 3, activation="silu", name="inner")]
    )
    a, b = keras.Input((8, 8, 2), name="a"), keras.Input((1,), name="b")
    flat = layers.Flatten()(inner(layers.Lambda(lambda v: v, name="mystery")(a)))
    model = keras.Model({"b": b, "a": a}, layers.Dense(3)(layers.Concatenate()([flat, b])))
    compiled(model).fit(
        {"a": x, "b": 100.0 * y[:, None]},
        y,
        shuffle=False,
        verbose=0,
        callbacks=[QuantizationAwareTraining()],
    )
    assert {"inner/pre_activation", "inner/sigmoid", "inner"} <= set(record_of(model).ranges)
    positions = {t.name: i for i, t in enumerate(model.inputs)}
    assert record_of(model).ranges[f"input:{positions['b']}"] == pytest.approx((0, 200))
    assert any("mystery (Lambda)" in note for note in record_of(model).notes)
    assert is_plain(model)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(network())
    finally:
        keras.config.set_dtype_policy("float32")
    history = fit(model, [QuantizationAwareTraining()]).history
    assert np.isfinite(history["loss"]).all()
    assert list(record_of(model).ranges) == [tap.name for tap in find_taps(model)]


def test_layers_choose_the_weights():
    model = compiled(network())
    fit(model, [QuantizationAwareTraining(layers=["dense"])])
    record = record_of(model)
    assert record.steps[0]["layers"] == ["dense"]
    assert any(note.startswith("not simulated: conv (Conv2D): `layers`") for note in record.notes)
    with pytest.raises(UnknownNameError, match="Did you mean dense"):
        fit(compiled(network()), [QuantizationAwareTraining(layers=["dens"])])


class Hidden(keras.Model):
    def __init__(self):
        super().__init__(name="hidden")
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(keras.ops.reshape(inputs, (-1, 128)))


def test_refusals():
    x, y = data()
    with pytest.raises(UnsupportedModelError, match="'hidden' is subclassed"):
        compiled(Hidden()).fit(x, y, verbose=0, callbacks=[QuantizationAwareTraining()])
    empty = keras.Sequential([keras.Input((8, 8, 2)), layers.GlobalAveragePooling2D()])
    with pytest.raises(UnsupportedModelError, match="no layer whose weights"):
        compiled(empty).fit(x, y, verbose=0, callbacks=[QuantizationAwareTraining()])
    with pytest.raises(ArgumentError, match="hold one QuantizationAwareTraining"):
        fit(compiled(network()), [QuantizationAwareTraining(), QuantizationAwareTraining()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin_epoch": -1}, "begin_epoch` must be a whole number, 0 or more"),
        ({"begin_epoch": 1.5}, "begin_epoch` must be a whole number, 0 or more"),
        ({"freeze_batch_norm_epochs": True}, "freeze_batch_norm_epochs` must be a whole"),
        ({"settings": "int8"}, "settings` must be an Int8"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        QuantizationAwareTraining(**arguments)


def test_exported_file_predicts_what_training_saw(softmax):
    """Train, convert with the learnt ranges alone (no calibration), compare in the engine."""
    from edgecompress.converters.verify import verify

    artifact = softmax.artifact
    parity = verify(artifact.data, reference=softmax.simulated, samples=data()[0])
    assert parity.agreement >= 0.99
    assert parity.max_error_steps <= 2
    assert not [note for note in artifact.notes if "calibration" in note]
