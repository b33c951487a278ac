"""The techniques' arithmetic against brute force, in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.post_training import TECHNIQUES
from edgecompress.post_training.adaround import AdaRound
from edgecompress.post_training.bias_correction import BiasCorrection
from edgecompress.post_training.equalization import factors
from edgecompress.post_training.gptq import GPTQ
from edgecompress.post_training.techniques import Kernel, chosen_techniques


def kernel(correlated: bool, groups: int = 1, inputs: int = 7, outputs: int = 5) -> Kernel:
    rng = np.random.default_rng(1)
    moments = np.tile(np.eye(inputs), (groups, 1, 1))
    if correlated:
        mixed = rng.normal(size=(groups, 500, 2)) @ rng.normal(size=(groups, 2, inputs))
        x = np.maximum(mixed + 0.3 * rng.normal(size=(groups, 500, inputs)), 0)
        moments = x.transpose(0, 2, 1) @ x / 500
    weights = rng.normal(size=(groups, inputs, outputs))
    return Kernel("k", weights, np.abs(weights).max(1, keepdims=True) / 7, 7, moments)


def best_up_or_down(problem: Kernel) -> float:
    """The least error of all ways of rounding each weight up or down, output by output."""
    total = 0.0
    for output in range(problem.weights.shape[2]):
        scale = problem.scales[0, 0, output]
        weights = problem.weights[0, :, output]
        floor = np.floor(weights / scale)
        ways = np.array(list(itertools.product((0, 1), repeat=len(weights))))
        change = np.clip(floor + ways, -7, 7) * scale - weights
        total += np.einsum("wi,ij,wj->w", change, problem.moments[0], change).min()
    return total


def test_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(2)
    x, codes = rng.normal(size=(300, 7)), kernel(True).nearest()
    problem = kernel(True)
    problem = Kernel("k", problem.weights, problem.scales, 7, (x.T @ x / 300)[None])
    outputs = x @ (codes * problem.scales - problem.weights)[0]
    assert problem.error(codes) == pytest.approx((outputs**2).sum() / 300)


@pytest.mark.parametrize("technique", [AdaRound(), GPTQ()])
def test_rounding_comes_close_to_the_best_of_all(technique: AdaRound | GPTQ) -> None:
    problem = kernel(correlated=True)
    nearest, best = problem.error(problem.nearest()), best_up_or_down(problem)
    found = technique.round(problem, problem.nearest())
    assert best < 0.6 * nearest  # There is something to gain.
    assert problem.error(found) < 0.5 * (best + nearest)
    assert set(np.abs(found[problem.pinned])) == {7.0}
    assert np.array_equal(found, np.round(found)) and np.abs(found).max() <= 7


@pytest.mark.parametrize("technique", [AdaRound(200), GPTQ()])
def test_of_unrelated_inputs_nearest_is_the_best(technique: AdaRound | GPTQ) -> None:
    problem = kernel(correlated=False)
    found = technique.round(problem, problem.nearest())
    assert problem.error(found) >= problem.error(problem.nearest()) * (1 - 1e-9)


@pytest.mark.parametrize("technique", [AdaRound(300), GPTQ()])
def test_groups_are_rounded_one_by_one(technique: AdaRound | GPTQ) -> None:
    problem = kernel(correlated=True, groups=3, outputs=1)
    found = technique.round(problem, problem.nearest())
    assert problem.error(found) < problem.error(problem.nearest())
    for group in range(3):
        alone = Kernel("k", *(a[group : group + 1] for a in (problem.weights, problem.scales)), 7,
                       problem.moments[group : group + 1])  # fmt: skip
        if isinstance(technique, GPTQ):
            assert np.array_equal(technique.round(alone, alone.nearest())[0], found[group])


def test_gptq_takes_inputs_that_are_always_zero() -> None:
    problem = kernel(correlated=True)
    moments = problem.moments.copy()
    moments[:, 3] = moments[:, :, 3] = 0
    for all_zero in (moments, np.zeros_like(moments)):
        dead = Kernel("k", problem.weights, problem.scales, 7, all_zero)
        assert np.isfinite(GPTQ().round(dead, dead.nearest())).all()


def test_equalization_makes_both_ranges_equal() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(9, 4)) * [1, 10, 0.1, 1], rng.normal(size=(4, 6))
    second[3] = 0
    scales = factors(first, second)
    one, two = np.abs(first / scales).max(0), np.abs(second * scales[:, None]).max(1)
    assert one[:3] == pytest.approx(two[:3])
    assert scales[3] == 1


def test_bias_correction_is_the_mean() -> None:
    errors = np.array([[1.0, -2.0], [3.0, -4.0]])
    assert BiasCorrection().correction(errors).tolist() == [2.0, -3.0]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_is_named_and_leaves_what_it_does_not_do(name: str) -> None:
    (technique,) = chosen_techniques(name)
    problem = kernel(correlated=True)
    model, codes = object(), problem.nearest()
    rounds = type(technique).round is not type(technique).__mro__[1].round
    if not rounds:
        assert technique.round(problem, codes) is codes
    if name != "cross-layer-equalization":
        assert technique.prepare(model).model is model
    assert (technique.correction(np.ones((2, 3))) is None) == (not technique.corrects)
    assert TECHNIQUES[name].summary


def test_wrong_names_and_options_are_refused() -> None:
    assert chosen_techniques("gptq:damping=0.1") == (GPTQ(damping=0.1),)
    with pytest.raises(UnknownNameError, match="gptq"):
        chosen_techniques(["gptx"])
    for text in ("gptq:damping=0", "gptq:damping=x", "adaround:iterations=0"):
        with pytest.raises(ArgumentError):
            chosen_techniques(text)
