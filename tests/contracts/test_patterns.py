"""What every pattern keeps: whole units, the asked share of them, the strongest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import named, named_config, options_of
from edgecompress.core.record import record_of
from edgecompress.patterns import PATTERNS
from edgecompress.patterns.base import Pattern

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
ops = keras.ops

_RNG = np.random.default_rng(4)
SCORES = _RNG.uniform(0.1, 1.0, size=(16, 24)).astype("f4")
SHAPE = KernelShape((16, 24))
# The others are tested in a fit of their own: one layer gives them no choice.
_WITHIN_LAYERS = sorted(name for name in PATTERNS if not PATTERNS[name].compares_layers)


@pytest.fixture(params=sorted(PATTERNS))
def pattern(request: pytest.FixtureRequest) -> Pattern:
    return named(PATTERNS, request.param, "pattern")


def _mask(pattern: Pattern, scores: np.ndarray, sparsity: float) -> np.ndarray:
    kernels = [scores[i : i + 1] for i in range(len(scores))]  # Every row is a layer.
    if not pattern.compares_layers:
        kernels = [scores]
    masks = pattern.masks(
        [ops.convert_to_tensor(kernel) for kernel in kernels],
        sparsity,
        [KernelShape(kernel.shape) for kernel in kernels],
    )
    return np.concatenate([ops.convert_to_numpy(mask) for mask in masks])


def test_it_fits_an_ordinary_matrix(pattern: Pattern) -> None:
    assert pattern.fits(SHAPE)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5])
def test_it_drops_the_asked_share(pattern: Pattern, sparsity: float) -> None:
    mask = _mask(pattern, SCORES, sparsity)
    assert mask.shape == SCORES.shape and mask.dtype == bool
    assert 1 - mask.mean() == pytest.approx(sparsity, abs=0.03)


def test_what_stays_scores_higher(pattern: Pattern) -> None:
    mask = _mask(pattern, SCORES, 0.5)
    assert SCORES[mask].mean() > SCORES[~mask].mean()
    # The mask follows the scores, not the places.
    mirrored = _mask(pattern, SCORES[::-1, ::-1].copy(), 0.5)
    np.testing.assert_array_equal(mirrored[::-1, ::-1], mask)


def test_something_always_stays(pattern: Pattern) -> None:
    assert _mask(pattern, SCORES, 0.999).any()


def test_it_comes_back_from_its_config(pattern: Pattern) -> None:
    config = named_config(PATTERNS, pattern)
    assert named(PATTERNS, config, "pattern") == pattern
    assert pattern.title
    assert all(item.help.endswith(".") for item in options_of(type(pattern)))


@pytest.fixture(scope="module", params=[False, True], ids=["graph", "xla"])
def pruned(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Kernel and recorded step of each pattern, all in one fit, each on a layer of its own."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(24, "relu", name=name) for name in _WITHIN_LAYERS]
    model = keras.Sequential([keras.Input((16,)), *hidden, keras.layers.Dense(8)])
    model.compile("adam", "mse", jit_compile=request.param)
    schedule = ec.PolynomialDecay(0.5, 0, 24, frequency=4)
    pruning = [
        ec.Pruning(schedule, pattern=named(PATTERNS, name, "pattern"), layers=[name])
        for name in _WITHIN_LAYERS
    ]
    random = np.random.default_rng(4)
    x, y = random.normal(size=(128, 16)), random.normal(size=(128, 8))
    model.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=pruning)
    kernels = {name: model.get_layer(name).kernel.numpy() for name in _WITHIN_LAYERS}
    return kernels, {step["layers"][0]: step for step in record_of(model).steps}


@pytest.mark.parametrize("name", _WITHIN_LAYERS)
def test_it_prunes_in_fit(name: str, pruned: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    kernels, steps = pruned
    pattern, kernel = named(PATTERNS, name, "pattern"), kernels[name]
    assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.03)
    # Whole units: the pattern, asked again with what is left, drops the same.
    again = _mask_of(pattern, np.abs(kernel).astype("f4"))
    np.testing.assert_array_equal(again, kernel != 0)
    assert steps[name]["pattern"] == named_config(PATTERNS, pattern)
    assert steps[name]["layers"] == [name]


def _mask_of(pattern: Pattern, scores: np.ndarray) -> np.ndarray:
    shape = KernelShape(scores.shape)
    (mask,) = pattern.masks([ops.convert_to_tensor(scores)], 0.5, [shape])
    return np.asarray(ops.convert_to_numpy(mask))


def test_layers_it_does_not_fit_are_named() -> None:
    model = keras.Sequential(
        [keras.Input((7,)), keras.layers.Dense(6, name="odd"), keras.layers.Dense(3, name="even")]
    )
    model.compile("adam", "mse")
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, 1), pattern="blocks:rows=2")
    model.fit(np.ones((8, 7)), np.ones((8, 3)), verbose=0, callbacks=[pruning])
    assert any("odd is not pruned" in note and "blocks of 2 x 1" in note for note in pruning.notes)
    with pytest.raises(ArgumentError, match="pattern"):
        model.fit(
            np.ones((8, 7)), np.ones((8, 3)), verbose=0,
            callbacks=[ec.Pruning(ec.ConstantSparsity(0.5, 1), pattern="blocks:rows=5")],
        )  # fmt: skip


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="pattern") as error:
        ec.Pruning(ec.ConstantSparsity(0.5), pattern="zzz")
    assert all(name in str(error.value) for name in PATTERNS)
