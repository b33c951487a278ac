"""What the small registries keep: choices of a callback, a quantizer or a recipe, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.pruning import SCOPES
from edgecompress.callbacks.ternarize import METHODS
from edgecompress.precisions.binary import SCALES
from edgecompress.precisions.kmeans import INITIALIZATIONS, cluster
from edgecompress.recipes.deep_compression_settings import FIRST_LAST
from edgecompress.recipes.task import LOSSES

keras = pytest.importorskip("keras")

_RNG = np.random.default_rng(6)


@pytest.mark.parametrize("name", sorted(SCOPES))
def test_a_scope_puts_every_kernel_into_one_group(name: str) -> None:
    for count in range(6):
        groups = SCOPES[name](count)
        assert sorted(index for group in groups for index in group) == list(range(count))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_trains_ternary_weights(name: str) -> None:
    assert 0 < METHODS[name] < 1
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(5, use_bias=False)])
    model.compile("sgd", "mse")
    x = _RNG.normal(size=(32, 12)).astype("f4")
    per_channel = {"per_channel": False}
    ternarize = ec.Ternarize(method=name, first_and_last=True, **per_channel)
    model.fit(x, x[:, :5], batch_size=16, verbose=0, callbacks=[ternarize])
    values = np.unique(model.layers[0].kernel.numpy())
    assert len(values) == 3 and values[0] < 0 == values[1] < values[2]


@pytest.mark.parametrize("name", sorted(SCALES))
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_the_gradient_of_a_scale_is_its_derivative(name: str, axes: tuple[int, ...]) -> None:
    """Against finite differences of sum(g alpha(W) sign(W)), signs held."""
    weights, upstream = (_RNG.normal(size=(6, 4)) for _ in range(2))
    weights += 0.1 * np.sign(weights)
    signs, scale = np.sign(weights), SCALES[name]

    def loss(values: np.ndarray) -> float:
        alpha = np.asarray(scale.value(values, axes), np.float64)
        assert (alpha > 0).all() and np.broadcast_shapes(alpha.shape, values.shape) == (6, 4)
        return float((upstream * alpha * signs).sum())

    found = np.broadcast_to(np.asarray(scale.gradient(upstream, signs, axes)), weights.shape)
    for place in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-2  # The value is linear in each weight; the arithmetic is float32.
        wanted = (loss(weights + step) - loss(weights - step)) / 2e-2
        assert found[place] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("name", sorted(INITIALIZATIONS))
def test_an_initialization_starts_inside_of_the_values(name: str) -> None:
    values, counts = np.unique(_RNG.normal(size=200).round(1), return_counts=True)
    start = INITIALIZATIONS[name](values, counts, 5, np.random.default_rng(0))
    assert start.shape == (5,) and len(np.unique(start)) == 5
    assert values[0] <= start.min() and start.max() <= values[-1]
    again = INITIALIZATIONS[name](values, counts, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(start, again)
    # As many values as clusters: nothing is lost.
    assert cluster(values[:4], 4, name).error == pytest.approx(0)


@pytest.mark.parametrize("name", sorted(FIRST_LAST))
def test_the_first_and_the_last_layer_lose_no_more_than_the_others(name: str) -> None:
    shares = [FIRST_LAST[name](share) for share in (0.0, 0.3, 0.9)]
    assert all(0 <= own <= share for own, share in zip(shares, (0.0, 0.3, 0.9), strict=True))
    assert shares == sorted(shares)


# Labels of each kind, and outputs that are right about them.
_LABELS: dict[str, tuple[Any, Any]] = {
    "classes": (np.array([0, 2, 1]), np.eye(3)[[0, 2, 1]]),
    "binary": (np.array([[1], [0], [1]]), np.array([[1.0], [0.0], [1.0]])),
    "values": (np.array([[1.5], [-2.0], [0.5]]), np.array([[1.5], [-2.0], [0.5]])),
}


def test_every_kind_of_labels_has_an_example() -> None:
    assert sorted(_LABELS) == sorted(LOSSES)


@pytest.mark.parametrize("output", ["probabilities", "logits"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_least_where_the_outputs_are_right(name: str, output: str) -> None:
    labels, right = _LABELS[name]
    if name != "values":
        right = 0.98 * right + 0.01
        right = np.log(right / (1 - right)) if output == "logits" else right
    loss, why = LOSSES[name](output)
    assert why
    best, wrong = float(loss(labels, right)), float(loss(labels, right[::-1] * 0.5))
    assert 0 <= best < wrong / 2
