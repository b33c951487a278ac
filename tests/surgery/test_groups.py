"""The group lasso maths against numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from edgecompress.callbacks.group_lasso import GroupLasso
from edgecompress.core.errors import UnknownNameError
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.groups import (
    find_zero_filters,
    group_lasso_gradient,
    group_lasso_penalty,
    group_squares,
    norm_scale,
    smallest,
)


@pytest.mark.parametrize(("shape", "axis"), [((5, 4), -1), ((3, 3, 2, 4), -1), ((2, 2, 4, 3), -2)])
@pytest.mark.parametrize("with_gamma", [False, True])
def test_penalty_and_gradient_follow_the_formula(
    shape: tuple[int, ...], axis: int, with_gamma: bool
) -> None:
    random = np.random.default_rng(0)
    value = random.normal(size=shape).astype("float32")
    scale = random.normal(size=4).astype("float32") if with_gamma else None
    kernel = keras.Variable(value)
    gamma = None if scale is None else keras.Variable(scale)
    size = value.size // 4 + with_gamma
    with tf.GradientTape() as tape:
        penalty = group_lasso_penalty(group_squares(kernel, axis, gamma), size, 0.3)
    gradients = tape.gradient(penalty, [v.value for v in (kernel, gamma) if v is not None])

    groups = np.moveaxis(value, axis, -1).reshape(-1, 4).astype(np.float64)
    if scale is not None:
        groups = np.concatenate([groups, scale[None].astype(np.float64)])
    norms = np.linalg.norm(groups, axis=0)
    assert groups.shape[0] == size
    np.testing.assert_allclose(penalty, 0.3 * np.sqrt(size) * norms.sum(), rtol=1e-6)
    expected = 0.3 * np.sqrt(size) * groups / norms
    got = np.moveaxis(gradients[0].numpy(), axis, -1).reshape(-1, 4)
    np.testing.assert_allclose(got, expected[: len(got)], rtol=1e-5)
    if with_gamma:
        np.testing.assert_allclose(gradients[1], expected[-1], rtol=1e-5)


def test_gradient_of_a_zero_group_is_zero_not_nan() -> None:
    value = np.ones((3, 2), "float32")
    value[:, 1] = 0
    kernel = keras.Variable(value)
    with tf.GradientTape() as tape:
        penalty = group_lasso_penalty(group_squares(kernel, -1), 3, 1.0)
    gradient = tape.gradient(penalty, kernel.value).numpy()
    np.testing.assert_allclose(gradient[:, 0], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, 1], 0.0)


def test_folded_norms_are_the_norms_of_the_folded_kernel() -> None:
    random = np.random.default_rng(1)
    kernel = random.normal(size=(3, 3, 2, 5))
    norm = {"gamma": random.normal(size=5), "moving_variance": random.uniform(0.1, 2.0, 5)}
    folded = kernel * norm["gamma"] / np.sqrt(norm["moving_variance"] + 1e-3)
    expected = [np.linalg.norm(folded[..., c]) for c in range(5)]
    found = Magnitude().group_scores(kernel, -1)
    np.testing.assert_allclose(found * norm_scale(norm, 1e-3), expected)
    expected = [np.linalg.norm(kernel[..., c]) for c in range(5)]
    np.testing.assert_allclose(found, expected)


def test_smallest_takes_the_share_and_leaves_one() -> None:
    scores = np.array([5.0, 1.0, 3.0, 2.0, 4.0])
    np.testing.assert_array_equal(np.flatnonzero(smallest(scores, 0.5)), [1, 3])
    np.testing.assert_array_equal(np.flatnonzero(smallest(scores, 0.999)), [1, 2, 3, 4])
    assert smallest(np.arange(100.0), 0.29).sum() == 29
    assert smallest(np.array([1.0]), 0.9).sum() == 0


def test_zero_filters_by_axis() -> None:
    kernel = np.ones((2, 3, 4))
    kernel[:, 1, :] = 0
    kernel[0, :, 2] = 0
    np.testing.assert_array_equal(np.flatnonzero(find_zero_filters(kernel, -2)), [1])
    assert not find_zero_filters(kernel, -1).any()


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="filters"):
        GroupLasso(1e-3, groups="filter")


@pytest.mark.parametrize(("shape", "axis"), [((3, 3, 2, 4), -1), ((3, 3, 4, 2), -2), ((4,), 0)])
def test_gradient_of_the_penalty_is_its_slope(shape: tuple[int, ...], axis: int) -> None:
    weights = np.random.default_rng(0).normal(size=shape)
    np.moveaxis(weights, axis, 0)[1] = 0
    more = np.array([0.5, 0.0, 2.0, 0.1])  # The squares of the rest of each group.

    def squares(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values, axis, 0).reshape(4, -1).__pow__(2).sum(1) + more

    def penalty(values: np.ndarray) -> float:
        return 0.3 * 5**0.5 * np.sqrt(squares(values)).sum()

    found = ops.convert_to_numpy(
        group_lasso_gradient(
            weights, ops.convert_to_tensor(squares(weights), "float32"), axis, 5, 0.3
        )
    )
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-6
        slope = (penalty(weights + step) - penalty(weights - step)) / 2e-6
        # A group of zeros has no slope; zero is one of its subgradients.
        assert found[index] == pytest.approx(slope, abs=1e-4)
