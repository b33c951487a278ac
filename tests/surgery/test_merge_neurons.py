"""Data-free merging of neurons: the order against a direct search, exactness on real duplicates."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of
from edgecompress.surgery.merge_neurons import merge_curves, merge_neurons
from edgecompress.surgery.neuron_similarity import merge_order

pytestmark = pytest.mark.slow


def _direct(weights: np.ndarray, outgoing: np.ndarray) -> list[tuple[int, int, float]]:
    """The algorithm of the paper, word by word: all pairs at each step."""
    weights, outgoing = weights.copy(), outgoing.copy()
    left, merges = list(range(len(weights))), []
    while len(left) > 1:
        saliency, kept, removed = min(
            (float((outgoing[j] ** 2).mean() * ((weights[i] - weights[j]) ** 2).sum()), i, j)
            for i in left
            for j in left
            if i != j
        )
        outgoing[kept] += outgoing[removed]
        left.remove(removed)
        merges.append((kept, removed, saliency))
    return merges


def test_order_is_that_of_the_paper() -> None:
    random = np.random.default_rng(0)
    weights, outgoing = random.normal(size=(9, 4)), random.normal(size=(9, 5))
    found = merge_order(weights, outgoing, scaled=False)
    truth = _direct(weights, outgoing)
    assert [(m.kept, m.removed) for m in found] == [(i, j) for i, j, _ in truth]
    np.testing.assert_allclose([m.saliency for m in found], [s for _, _, s in truth])
    assert {m.scale for m in found} == {1.0}


def test_scaled_copies_have_saliency_zero_and_opposites_are_never_merged() -> None:
    weights = np.array([[1.0, -2.0], [3.0, -6.0], [-1.0, 2.0]])
    found = merge_order(weights, np.ones((3, 2)), scaled=True)
    assert len(found) == 1  # Neuron 2 is -1 times neuron 0.
    assert {found[0].kept, found[0].removed} == {0, 1}
    assert found[0].saliency == pytest.approx(0.0, abs=1e-20)
    assert found[0].scale == pytest.approx(3.0 if found[0].removed == 1 else 1 / 3)
    assert merge_order(weights, np.ones((3, 2)), scaled=False)[0].saliency > 1


def _dense(activation: str, factor: float) -> keras.Model:
    """Unit 3 of `hidden` is `factor` times unit 1."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((5,))
    x = layers.Dense(6, activation=activation, bias_initializer="normal", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    for variable in model.get_layer("hidden").weights:
        value = np.array(variable)
        value[..., 3] = factor * value[..., 1]
        variable.assign(value)
    return model


def _conv() -> keras.Model:
    """Filters 0 and 2 of `conv` are the same up to 2 x, with BatchNormalization in between."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.MaxPooling2D()(layers.ZeroPadding2D()(x))
    same = layers.Conv2D(5, 3, padding="same", activation="tanh", name="same")(x)
    flat = layers.Dense(3, name="flat")(layers.Flatten()(x))
    y = layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(same))
    model = keras.Model(inputs, [flat, y])
    random = np.random.default_rng(0)
    kernel = np.array(model.get_layer("conv").kernel)
    kernel[..., 2] = 4 * kernel[..., 0]
    model.get_layer("conv").kernel.assign(kernel)
    norm = model.get_layer("norm")
    gamma, beta, mean, variance = random.uniform(0.5, 1.5, (4, 4))
    # gamma (4 x - mean) / sigma + beta is twice that of filter 0.
    sigma = np.sqrt(variance + norm.epsilon)
    gamma[2] = 2 * gamma[0] * sigma[2] / sigma[0] / 4
    mean[2], beta[2] = 4 * mean[0], 2 * beta[0]
    for variable, value in zip(
        (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance),
        (gamma, beta, mean, variance),
        strict=True,
    ):
        variable.assign(value)
    return model


def _apart(a: keras.Model, b: keras.Model) -> float:
    random = np.random.default_rng(3)
    x = random.normal(size=(16, *a.inputs[0].shape[1:])).astype("float32")
    pairs = zip(keras.tree.flatten(a(x)), keras.tree.flatten(b(x)), strict=True)
    return max(float(np.abs(np.array(p) - np.array(q)).max()) for p, q in pairs)


@pytest.mark.parametrize(
    ("activation", "factor"), [("relu", 1.0), ("relu", 2.5), ("leaky_relu", 0.5), ("tanh", 1.0)]
)
def test_a_copy_is_merged_exactly(activation: str, factor: float) -> None:
    model = _dense(activation, factor)
    small = merge_neurons(model, share=0.2)
    assert dict(record_of(small).removed_channels) == {"hidden": (6, 5)}
    assert small.count_params() == model.count_params() - (5 + 1 + 3)
    assert _apart(model, small) < 1e-5
    step = record_of(small).steps[-1]
    assert step["technique"] == "merge_neurons"
    assert step["layers"]["hidden"]["neurons"] == [6, 5]
    assert step["layers"]["hidden"]["saliency"] < 1e-12


@pytest.mark.parametrize(("activation", "factor"), [("relu", -1.0), ("tanh", 2.0), ("relu6", 2.0)])
def test_what_is_no_copy_costs(activation: str, factor: float) -> None:
    """Opposite weights, and multiples behind an activation that bends."""
    model = _dense(activation, factor)
    assert merge_curves(model)["hidden"][0] > 1e-4
    assert merge_neurons(model, max_saliency=1e-6).count_params() == model.count_params()
    assert _apart(model, merge_neurons(model, share=0.2)) > 1e-3


def test_filters_with_batch_normalization_and_several_readers() -> None:
    model = _conv()
    small = merge_neurons(model, max_saliency=1e-9)
    assert dict(record_of(small).removed_channels) == {"conv": (4, 3)}
    assert _apart(model, small) < 1e-5
    assert small.get_layer("norm").gamma.shape == (3,)


def test_several_layers_and_a_table() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), *(layers.Dense(n, "relu", name=f"d{n}") for n in (10, 8, 3))]
    )
    both = merge_neurons(model, share=0.5)
    assert dict(record_of(both).removed_channels) == {"d10": (10, 5), "d8": (8, 4)}
    one = merge_neurons(model, share={"d8": 0.25})
    assert dict(record_of(one).removed_channels) == {"d8": (8, 6)}
    with pytest.raises(ArgumentError, match=r"d10, d8.*d3 \(they are an output of the model\)"):
        merge_neurons(model, share={"d3": 0.5})


def test_the_curve_has_its_elbow_where_copies_end() -> None:
    curve = merge_curves(_dense("relu", 2.0))["hidden"]
    assert curve[0] < 1e-12 < 1e-4 < curve[1]
    assert len(curve) <= 5


def test_layers_that_cannot_be_merged_are_named() -> None:
    x = inputs = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same", name="a")(x)
    b = layers.Conv2D(4, 3, padding="same", name="b")(x)
    x = layers.Add()([a, b])
    x = layers.DepthwiseConv2D(3, name="dw")(layers.Conv2D(3, 1, name="c")(x))
    x = layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(x))
    small = merge_neurons(keras.Model(inputs, x), share=0.5)
    assert record_of(small).removed_channels == {}
    notes = record_of(small).notes
    assert "merge_neurons: a stays, as its channels are tied to those of 'b'." in notes
    assert "merge_neurons: c stays, as its channels pass through 'dw'." in notes
    assert "merge_neurons: out stays, as they are an output of the model." in notes


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "be given, or else `max_saliency`"),
        ({"share": 0.5, "max_saliency": 1.0}, "not both"),
        ({"share": 1.0}, "less than 1"),
        ({"share": {"hidden": -0.1}}, "at least 0"),
        ({"max_saliency": float("nan")}, "0 or more"),
        ({"share": {"nothing": 0.1}}, "name layers that can be merged: hidden"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        merge_neurons(_dense("relu", 1.0), **given)  # type: ignore[arg-type]
