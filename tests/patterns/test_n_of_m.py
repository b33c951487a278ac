"""N:M masks against numpy, and on every kind of kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.n_of_m import NOfM

keras = pytest.importorskip("keras")
kl, ops = keras.layers, keras.ops

_RNG = np.random.default_rng(5)


def _mask(pattern: NOfM, scores: np.ndarray, sparsity: float, filter_axis: int = -1) -> Any:
    shape = KernelShape(scores.shape, filter_axis)
    assert pattern.fits(shape)
    (mask,) = pattern.masks([ops.convert_to_tensor(scores)], sparsity, [shape])
    return ops.convert_to_numpy(mask)


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_the_highest_of_each_group_stay(n: int, m: int) -> None:
    scores = _RNG.uniform(size=(3, 3, 16, 5)).astype("f4")
    mask = _mask(NOfM(n, m), scores, 1 - n / m)
    for where in np.ndindex(3, 3, 16 // m, 5):
        y, x, group, filters = where
        place = (y, x, slice(group * m, group * m + m), filters)
        kept = np.sort(np.argsort(scores[place])[m - n :])
        np.testing.assert_array_equal(np.flatnonzero(mask[place]), kept)


@pytest.mark.parametrize("sparsity, staying", [(0.0, 4), (0.2, 3), (0.3, 3), (0.5, 2), (0.9, 2)])
def test_groups_lose_weights_one_by_one(sparsity: float, staying: int) -> None:
    mask = _mask(NOfM(2, 4), _RNG.uniform(size=(8, 6)).astype("f4"), sparsity)
    np.testing.assert_array_equal(mask.reshape(2, 4, 6).sum(1), staying)


def test_equal_scores_do_not_keep_more() -> None:
    mask = _mask(NOfM(2, 4), np.ones((4, 1), "f4"), 0.5)
    np.testing.assert_array_equal(mask[:, 0], [True, True, False, False])


@pytest.mark.parametrize("n, m", [(0, 4), (4, 4), (5, 4), (1, 1), (1, 65), (True, 4), (1.0, 4)])
def test_groups_that_lose_nothing_or_everything_are_refused(n: Any, m: Any) -> None:
    with pytest.raises(ArgumentError, match="whole number from"):
        NOfM(n, m)


def test_a_schedule_beyond_the_pattern_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at most 0.5"):
        ec.Pruning(ec.PolynomialDecay(0.8, 0, 100), pattern="n-of-m:n=2,m=4")


def test_along_the_inputs_of_every_kind_of_kernel() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            kl.Conv2D(8, 3, name="conv"),
            kl.Conv2DTranspose(12, 3, name="transposed"),
            kl.Conv2D(5, 1, name="after"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(3, name="odd"),
        ]
    )
    model.compile("adam", "mse")
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, 1, frequency=1), pattern="n-of-m")
    x = _RNG.normal(size=(32, 8, 8, 4))
    model.fit(x, _RNG.normal(size=(32, 3)), epochs=2, verbose=0, callbacks=[pruning])

    def zeros(name: str, axis: int) -> np.ndarray:
        kernel = np.moveaxis(model.get_layer(name).kernel.numpy(), axis, -1)
        return (kernel == 0).reshape(-1, 4).sum(-1)

    assert (zeros("conv", -2) == 2).all()
    assert (zeros("transposed", -1) == 2).all()
    assert (zeros("after", -2) == 2).all()
    # Five input channels do not divide into groups of four.
    assert np.count_nonzero(model.get_layer("odd").kernel.numpy()) == 15
    assert any("odd is not pruned" in note and "groups of 4" in note for note in pruning.notes)
