"""Zeroed filters against the model with the filter replaced by its mean, and finalize."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.core.record import record_of
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.zero_filters import frozen_zeros, zero_filters


def mask(count: int, *chosen: int) -> np.ndarray:
    return np.isin(np.arange(count), chosen)


def data(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(4, *shape)).astype("float32")


def randomize(model: keras.Model) -> keras.Model:
    random = np.random.default_rng(2)
    for layer in model.layers:
        for name, low, high in (
            ("bias", -1, 1), ("gamma", 0.5, 1.5), ("beta", 0.1, 1),
            ("moving_mean", -1, 1), ("moving_variance", 0.5, 2),
        ):  # fmt: skip
            variable = getattr(layer, name, None)
            if variable is not None:
                variable.assign(random.uniform(low, high, variable.shape))
    return model


def test_dense_filter_is_replaced_by_its_bias() -> None:
    model = randomize(
        keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(6, activation="relu", name="a"),
                layers.Dense(4, activation="tanh", name="b"),
                layers.Dense(2, name="c"),
            ]
        )
    )
    model.get_layer("a").bias.assign([0.5, 0.4, 0.3, -0.2, 0.1, 0.6])
    x = data((5,))
    a, b, c = ([w.copy() for w in layer.get_weights()] for layer in model.layers)
    hidden = np.maximum(x @ a[0] + a[1], 0)
    hidden[:, 1], hidden[:, 3] = 0.4, 0.0  # relu of their biases
    expected = np.tanh(hidden @ b[0] + b[1]) @ c[0] + c[1]

    done = zero_filters(model, {"a": mask(6, 1, 3)})
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    assert done.notes == ()
    assert done.filters["a"].sum() == 2
    for index in (1, 3):
        assert not model.get_layer("a").kernel.numpy()[:, index].any()
        assert model.get_layer("a").bias.numpy()[index] == 0
    small = finalize(model)
    assert small.get_layer("a").units == 4
    np.testing.assert_allclose(small(x), expected, atol=1e-5)


def conv_norm(padding: str, bias: bool, center: bool = True, scale: bool = True) -> keras.Model:
    return randomize(
        keras.Sequential(
            [
                keras.Input((9, 9, 2)),
                layers.Conv2D(6, 3, use_bias=bias, name="a"),
                layers.BatchNormalization(name="n", center=center, scale=scale),
                layers.ReLU(),
                layers.Conv2D(5, 3, padding=padding, use_bias=False, name="b"),
                layers.BatchNormalization(name="m"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, name="c"),
            ]
        )
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (True, False)])
def test_filter_before_batch_norm_is_replaced_by_beta(
    bias: bool, center: bool, scale: bool
) -> None:
    model = conv_norm("valid", bias, center, scale)
    x = data((9, 9, 2))
    head = keras.Model(model.inputs[0], model.layers[2].output)
    tail = keras.Sequential([keras.Input((7, 7, 6)), *model.layers[3:]])
    hidden = np.array(head(x))
    beta = model.get_layer("n").beta.numpy() if center else np.zeros(6)
    hidden[..., [0, 4]] = np.maximum(beta[[0, 4]], 0)
    expected = np.array(tail(hidden))

    zero_filters(model, {"a": mask(6, 0, 4)})
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    small = finalize(model)
    assert small.get_layer("a").filters == 4
    np.testing.assert_allclose(small(x), expected, atol=1e-5)


def test_padded_reader_is_exact_in_the_middle_and_named() -> None:
    model = conv_norm("same", bias=False)
    x = data((9, 9, 2))
    head = keras.Model(model.inputs[0], model.layers[2].output)
    tail = keras.Sequential([keras.Input((7, 7, 6)), *model.layers[3:5]])
    hidden = np.array(head(x))
    hidden[..., [0, 4]] = model.get_layer("n").beta.numpy()[[0, 4]]
    expected = np.array(tail(hidden))

    done = zero_filters(model, {"a": mask(6, 0, 4)})
    got = np.array(keras.Model(model.inputs[0], model.layers[4].output)(x))
    np.testing.assert_allclose(got[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)
    assert np.abs(got - expected).max() > 1e-3  # The border is an approximation.
    assert done.notes == (
        "b: takes over the mean of 2 silenced channels approximately, as its border is padded "
        "with zeros.",
    )
    small = finalize(model)
    assert small.get_layer("a").filters == 4
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_filters_that_could_not_be_removed_stay_alive() -> None:
    x = inputs = keras.Input((6, 6, 2))
    x = stem = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.Conv2D(5, 3, padding="same", activation="sigmoid", name="in")(x)
    x = layers.Conv2D(4, 3, padding="same", name="out")(x)
    x = layers.Add()([stem, x])
    model = randomize(keras.Model(inputs, layers.Dense(2, name="d")(layers.Flatten()(x))))
    before = [w.copy() for w in model.get_weights()]
    done = zero_filters(model, {"stem": mask(4, 1), "in": mask(5, 2), "out": mask(4, 3)})
    assert not any(chosen.any() for chosen in done.filters.values())
    assert len(done.notes) == 3
    assert "stem: 1 weak filters stay because" in done.notes[0]
    # sigmoid(0) is 0.5, a constant that a padded convolution cannot take over.
    assert any("in: 1 weak filters stay because they hold a constant" in n for n in done.notes)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_joined_filters_go_together() -> None:
    x = inputs = keras.Input((6, 6, 2))
    x = stem = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.Conv2D(4, 3, padding="same", name="out")(x)
    x = layers.Add()([stem, x])
    model = randomize(keras.Model(inputs, layers.Dense(2, name="d")(layers.Flatten()(x))))
    done = zero_filters(model, {"stem": mask(4, 1, 2), "out": mask(4, 1)})
    assert np.flatnonzero(done.filters["stem"]).tolist() == [1]
    small = finalize(model)
    assert dict(record_of(small).removed_channels) == {"stem": (4, 3), "out": (4, 3)}


def test_reader_without_bias_leaves_the_constant_to_finalize() -> None:
    model = randomize(
        keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(6, name="a"),
                layers.Dense(3, use_bias=False, name="b"),
            ]
        )
    )
    x = data((5,))
    a, b = ([w.copy() for w in layer.get_weights()] for layer in model.layers)
    hidden = x @ a[0] + a[1]
    hidden[:, 2] = a[1][2]
    zero_filters(model, {"a": mask(6, 2)})
    np.testing.assert_allclose(model(x), hidden @ b[0], atol=1e-5)
    assert model.get_layer("a").bias.numpy()[2] == a[1][2]
    frozen = frozen_zeros(model, ["a"])
    assert [h.variable is model.get_layer("a").kernel for h in frozen] == [True]
    small = finalize(model)
    assert small.get_layer("a").units == 5
    np.testing.assert_allclose(small(x), hidden @ b[0], atol=1e-5)


def test_frozen_zeros_cover_kernel_gamma_beta_and_bias() -> None:
    model = conv_norm("same", bias=True)
    assert frozen_zeros(model, ["a"]) == []
    zero_filters(model, {"a": mask(6, 0, 4)})
    frozen = {h.variable.path.split("/", 1)[-1]: h.mask for h in frozen_zeros(model, ["a"])}
    names = {path.split("/")[-1] for path in frozen}
    assert names == {"kernel", "bias", "gamma", "beta"}
    for values in frozen.values():
        np.testing.assert_array_equal(values, [0, 1, 1, 1, 0, 1])


def test_transposed_and_square_kernels() -> None:
    model = randomize(
        keras.Sequential(
            [
                keras.Input((4, 4, 3)),
                layers.Conv2DTranspose(3, 2, activation="relu", name="t"),
                layers.Conv2D(2, 1, name="o"),
            ]
        )
    )
    zero_filters(model, {"t": mask(3, 1)})
    assert not model.get_layer("t").kernel.numpy()[:, :, 1, :].any()
    assert finalize(model).get_layer("t").filters == 2


@pytest.mark.parametrize("scaled", [False, True])
def test_averaged_weights_take_over_the_constant(scaled: bool) -> None:
    model = randomize(
        keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(6, activation="relu", name="a"),
                layers.Dense(4, name="b"),
            ]
        )
    )
    model.get_layer("a").bias.assign([0.5, 0.4, 0.3, -0.2, 0.1, 0.6])
    # Nothing is learnt: until the surgery, the averages are the weights.
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.999)
    inner = optimizer
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")
    x = data((5,))
    model.fit(x, np.zeros((4, 4)), epochs=2, verbose=0)
    zero_filters(model, {"a": mask(6, 1, 3)})
    expected = [w.copy() for w in model.get_weights()]
    inner.finalize_variable_values(model.trainable_variables)
    for found, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert not model.get_layer("a").kernel.numpy()[:, [1, 3]].any()
