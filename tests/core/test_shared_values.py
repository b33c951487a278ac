"""Which kernels share values, and what one scale does to their codes; against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.core import shared_values
from edgecompress.core.shared_values import (
    channels_first,
    codes,
    fold_factors,
    per_tensor,
    shares_values,
)

VALUES = np.linspace(-1, 1, 16, dtype=np.float32)


def clustered(shape: tuple[int, ...], values: np.ndarray = VALUES) -> np.ndarray:
    return np.random.choice(values, shape).astype(np.float32)


def test_clustered_kernels_share_values() -> None:
    assert shares_values(clustered((3, 3, 8, 16)))
    assert shares_values(clustered((20, 20), np.linspace(1, 2, 128)))
    kernel = clustered((40, 40))
    kernel[np.random.random(kernel.shape) < 0.9] = 0
    assert shares_values(kernel)


@pytest.mark.parametrize(
    "kernel",
    [
        np.random.default_rng(0).normal(size=(3, 3, 8, 16)),
        np.random.default_rng(0).normal(size=(3, 3, 1, 8)),  # few weights, all different
        np.where(np.arange(1000) % 20, 0, np.random.default_rng(0).normal(size=1000)),  # pruned
        np.random.default_rng(0).choice(np.linspace(1, 2, 129), (200, 200)),
        np.zeros((10, 10)),
    ],
)
def test_ordinary_and_pruned_kernels_do_not(kernel: np.ndarray) -> None:
    assert not shares_values(kernel.astype(np.float32))


def test_values_behind_the_first_weights_count() -> None:
    kernel = np.concatenate([clustered((5000,)), np.random.normal(size=5000)])
    assert not shares_values(kernel)


@pytest.mark.parametrize("axes", [(), (-1,), (0,), (2, 3)])
def test_codes_match_a_loop(axes: tuple[int, ...]) -> None:
    kernel = np.random.normal(size=(3, 4, 5, 2)).astype(np.float32)
    kernel[..., 0] *= 0.01
    kernel[1] = 0
    found = codes(kernel, axes)
    places = [a % 4 for a in axes]
    for index in np.ndindex(*(kernel.shape[a] for a in places)):
        pick: list = [slice(None)] * 4
        for axis, i in zip(places, index, strict=True):
            pick[axis] = i
        channel = kernel[tuple(pick)]
        scale = np.abs(channel).max() / np.float32(127)
        want = np.rint(channel / scale) if scale else channel
        assert np.array_equal(found[tuple(pick)], want)


def test_one_scale_where_it_gives_fewer_codes() -> None:
    kernel = clustered((5, 6))
    kernel[:, :3] = np.random.choice(VALUES[4:12], (5, 3))
    assert len(np.unique(codes(kernel, ()))) <= 16 < len(np.unique(codes(kernel, (-1,))))
    assert not per_tensor(kernel, ())
    assert per_tensor(kernel, (-1,)) is (2 * len(np.unique(kernel)) <= 30)


@pytest.mark.parametrize("levels", [(-1, 1), (-1, 0, 1)])
def test_factors_of_binary_and_ternary_channels_keep_their_scales(levels: tuple[int, ...]) -> None:
    factors = np.random.uniform(0.5, 2, 20)
    kernel = np.random.choice(levels, (3, 3, 8, 20)) * factors
    assert shares_values(kernel)
    assert not per_tensor(kernel, (-1,))
    assert per_tensor(clustered((3, 3, 8, 20)) * np.repeat([0.5, 1], 10), (-1,)) is False


def test_fold_factors_of_kernels_that_are_compared_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = np.random.default_rng(0).normal(size=(11, 7)).astype(np.float32)
    factors = np.linspace(-2, 2, 11)
    folded = (kernel * factors[:, None]).astype(np.float32)
    whole = fold_factors(kernel, folded)
    assert whole is not None
    np.testing.assert_allclose(whole, factors, rtol=1e-6)
    for at_once in (1, 21):
        monkeypatch.setattr(shared_values, "_AT_ONCE", at_once)
        np.testing.assert_array_equal(fold_factors(kernel, folded), whole)
        for row in range(11):
            wrong = folded.copy()
            wrong[row, 3] += 1
            assert fold_factors(kernel, wrong) is None


def test_fold_factors() -> None:
    kernel = np.random.normal(size=(4, 9)).astype(np.float32)
    kernel[2] = 0
    want = np.array([2.0, -0.1, 0.0, 0.0])
    folded = (kernel * want[:, None].astype(np.float32)).astype(np.float32)
    found = fold_factors(kernel, folded)
    assert found is not None
    np.testing.assert_allclose(found, want, rtol=1e-6)
    folded[0, 3] *= 1.001
    assert fold_factors(kernel, folded) is None
    assert fold_factors(kernel, np.ones((4, 9), np.float32)) is None
    assert fold_factors(kernel, kernel.T) is None


def test_channels_first() -> None:
    kernel = np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    assert np.array_equal(channels_first(kernel, (-1,)), np.moveaxis(kernel, -1, 0).reshape(5, -1))
    depthwise = channels_first(kernel, (-2, -1))
    assert depthwise.shape == (20, 6)
    assert np.array_equal(depthwise[5 + 1], kernel[:, :, 1, 1].ravel())
