"""What every criterion keeps: scores that rank, inside and outside of a compiled step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import named, named_config, options_of
from edgecompress.core.record import record_of
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion

keras = pytest.importorskip("keras")
ops = keras.ops

_RNG = np.random.default_rng(3)
WEIGHTS = _RNG.normal(size=(6, 4)).astype("f4")
GRADIENT = _RNG.normal(size=(6, 4)).astype("f4")


@pytest.fixture(params=sorted(CRITERIA))
def criterion(request: pytest.FixtureRequest) -> Criterion:
    return named(CRITERIA, request.param, "criterion")


def _observed(criterion: Criterion, gradient: np.ndarray, times: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = {name: ops.zeros(WEIGHTS.shape) for name in criterion.statistics}
    for step in range(times):
        found |= criterion.observe(
            ops.convert_to_tensor(WEIGHTS),
            ops.convert_to_tensor(gradient),
            found,
            ops.convert_to_tensor(float(step)),
        )
    return found


def test_scores_have_the_shape_of_the_weights(criterion: Criterion) -> None:
    scores = criterion.score(ops.convert_to_tensor(WEIGHTS), _observed(criterion, GRADIENT))
    assert tuple(scores.shape) == WEIGHTS.shape
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    values = ops.convert_to_numpy(scores)
    assert np.isfinite(values).all() and (values >= 0).all()
    # A criterion that gives every weight the same score chooses nothing.
    assert len(np.unique(values)) > WEIGHTS.size // 2


def test_statistics_are_those_it_names(criterion: Criterion) -> None:
    found = _observed(criterion, GRADIENT)
    assert set(found) == set(criterion.statistics)
    for value in found.values():
        assert tuple(value.shape) == WEIGHTS.shape


def test_a_group_scores_by_its_members(criterion: Criterion) -> None:
    statistics = _observed(criterion, GRADIENT)
    scores = ops.convert_to_numpy(criterion.score(ops.convert_to_tensor(WEIGHTS), statistics))
    groups = criterion.group_scores(WEIGHTS, 1, statistics)
    np.testing.assert_allclose(groups, np.sqrt((scores.astype("f8") ** 2).sum(0)), rtol=1e-12)


def test_it_comes_back_from_its_config(criterion: Criterion) -> None:
    config = named_config(CRITERIA, criterion)
    assert named(CRITERIA, config, "criterion") == criterion
    assert all(item.help.endswith(".") for item in options_of(type(criterion)))


@pytest.mark.parametrize("compiled", [{"jit_compile": False}, {"steps_per_execution": 4}])
def test_it_prunes_in_fit(criterion: Criterion, compiled: dict[str, Any]) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(20, "relu"), keras.layers.Dense(3)]
    )
    model.compile("adam", "mse", **compiled)
    pruning = ec.Pruning(ec.PolynomialDecay(0.8, 0, 24, frequency=4), criterion)
    x, y = _RNG.normal(size=(128, 12)), _RNG.normal(size=(128, 3))
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[pruning])
    for layer in model.layers:
        assert np.mean(layer.kernel.numpy() == 0) == pytest.approx(0.8, abs=0.02)
    (step,) = record_of(model).steps
    assert step["criterion"] == named_config(CRITERIA, criterion)
    # Nothing of it stays in the optimizer.
    assert len(model.optimizer.variables) == 2 + 2 * 4


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="criterion") as error:
        ec.Pruning(ec.ConstantSparsity(0.5), "zzz")
    assert all(name in str(error.value) for name in CRITERIA)
