"""What every criterion keeps: scores that rank, inside and outside of a compiled step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import named, named_config, options_of
from edgecompress.core.record import record_of
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion, FilterCriterion

keras = pytest.importorskip("keras")
ops = keras.ops

_RNG = np.random.default_rng(3)
WEIGHTS = _RNG.normal(size=(6, 4)).astype("f4")
GRADIENT = _RNG.normal(size=(6, 4)).astype("f4")


@pytest.fixture(params=sorted(CRITERIA))
def criterion(request: pytest.FixtureRequest) -> Criterion:
    return named(CRITERIA, request.param, "criterion")


def _observed(criterion: Criterion, axis: int = -1) -> dict[str, Any]:
    kernel = KernelShape(WEIGHTS.shape, axis)
    found: dict[str, Any] = dict(criterion.start("dense", kernel))
    for step in range(3):
        found |= criterion.observe_kernel(
            ops.convert_to_tensor(WEIGHTS * (1 + 0.1 * (2 - step) * GRADIENT)),
            ops.convert_to_tensor(GRADIENT),
            found,
            ops.convert_to_tensor(float(step)),
            kernel,
        )
    assert set(found) == set(criterion.statistics)
    for value in found.values():
        assert tuple(value.shape) == criterion.statistic_shape(kernel)
    views = np.random.default_rng(5).uniform(0.1, 1, (len(criterion.views), kernel.filters))
    return found | dict(zip(criterion.views, views.astype("f4"), strict=True))


def test_scores_have_the_shape_of_the_weights(criterion: Criterion) -> None:
    scores = criterion.score(ops.convert_to_tensor(WEIGHTS), _observed(criterion))
    assert tuple(scores.shape) == WEIGHTS.shape
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    values = ops.convert_to_numpy(scores)
    assert np.isfinite(values).all() and (values >= 0).all()
    # A criterion that gives every weight the same score chooses nothing.
    assert len(np.unique(values)) > WEIGHTS.size // 2


@pytest.mark.parametrize("axis", [0, 1])
def test_a_group_scores_by_its_members(criterion: Criterion, axis: int) -> None:
    kernel = KernelShape(WEIGHTS.shape, axis)
    statistics = _observed(criterion, axis)
    scores = criterion.score_kernel(ops.convert_to_tensor(WEIGHTS), statistics, kernel)
    squares = ops.convert_to_numpy(scores).astype("f8") ** 2
    groups = criterion.group_scores(WEIGHTS, axis, statistics)
    np.testing.assert_allclose(groups, np.sqrt(squares.sum(1 - axis)), rtol=1e-12)
    if isinstance(criterion, FilterCriterion):
        filters = ops.convert_to_tensor(WEIGHTS if axis == 0 else WEIGHTS.T)
        own = ops.convert_to_numpy(criterion.score_filters(filters, statistics))
        np.testing.assert_allclose(groups, own, rtol=1e-5)


def test_it_comes_back_from_its_config(criterion: Criterion) -> None:
    config = named_config(CRITERIA, criterion)
    assert named(CRITERIA, config, "criterion") == criterion
    assert all(item.help.endswith(".") for item in options_of(type(criterion)))


@pytest.fixture(scope="module")
def trained() -> tuple[Any, dict[str, dict[str, Any]]]:
    """A model trained by all criteria in one fit, each on a layer of its own, and their steps."""
    keras.utils.set_random_seed(0)
    layers = []
    for name in CRITERIA:
        layers += [keras.layers.Dense(20, name=name), keras.layers.BatchNormalization()]
        layers.append(keras.layers.ReLU())
    model = keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(3)])
    model.compile("adam", "mse", steps_per_execution=4)
    schedule = ec.PolynomialDecay(0.8, 0, 24, frequency=4)
    pruning = [ec.Pruning(schedule, name, layers=[name]) for name in CRITERIA]
    x, y = _RNG.normal(size=(128, 12)), _RNG.normal(size=(128, 3))
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=pruning)
    return model, {step["layers"][0]: step for step in record_of(model).steps}


def test_it_prunes_in_fit(criterion: Criterion, trained: tuple[Any, Any]) -> None:
    model, steps = trained
    config = named_config(CRITERIA, criterion)
    assert np.mean(model.get_layer(config["name"]).kernel.numpy() == 0) == pytest.approx(0.8)
    assert steps[config["name"]]["criterion"] == config


def test_nothing_of_them_stays(trained: tuple[Any, Any]) -> None:
    model, _ = trained
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)
    assert not any("call" in vars(part) for part in (model, *model.layers))


@pytest.mark.parametrize(
    "criterion, last, reason",
    [
        ("norm-scale", keras.layers.Dense(3, name="head"), "no BatchNormalization follows it"),
        ("fisher", keras.layers.EinsumDense("ab,bc->ac", 3, name="head"), "no separate filters"),
    ],
)
def test_a_kernel_that_it_cannot_score_is_named(criterion: str, last: Any, reason: str) -> None:
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="first"), norm, last])
    model.compile("sgd", "mse")
    pruning = ec.Pruning(ec.ConstantSparsity(0.5, 1), criterion)
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0, callbacks=[pruning])
    (note,) = [note for note in pruning.notes if note.startswith("head is not pruned")]
    assert reason in note and "\n" not in note
    with pytest.raises(ArgumentError, match=reason):
        alone = ec.Pruning(ec.ConstantSparsity(0.5, 1), criterion, layers=["head"])
        model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0, callbacks=[alone])


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="criterion") as error:
        ec.Pruning(ec.ConstantSparsity(0.5), "zzz")
    assert all(name in str(error.value) for name in CRITERIA)
