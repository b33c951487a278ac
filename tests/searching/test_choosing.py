"""The choice among candidates, against simulated truth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.searching.choosing import compare, standard_errors, too_good
from edgecompress.searching.packing import MOST, pack, pack_groups, unpack, unpack_groups


def right(
    random: np.random.Generator,
    chances: np.ndarray,
    samples: int,
    groups: int = 0,
    apart: float = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Whether candidates are right, on samples that are hard for all, in groups that suit some."""
    hard = random.normal(size=(samples, 1))
    own = random.normal(size=(samples, len(chances)))
    place = None
    latent = (hard + own) / np.sqrt(2)
    if groups:
        place = np.arange(samples) % groups
        suits = random.normal(size=(groups, len(chances))) * apart
        latent = (latent + suits[place]) / np.sqrt(1 + apart**2)
    cuts = np.array([NormalDist().inv_cdf(chance) for chance in chances])
    return (latent < cuts).astype(float), place


def test_the_error_of_a_difference_is_that_of_many_draws() -> None:
    random = np.random.default_rng(0)
    chances = np.array([0.8, 0.8])
    found, told = [], []
    for _ in range(400):
        values, _ = right(random, chances, 300)
        difference = values[:, :1] - values[:, 1:]
        found.append(difference.mean())
        told.append(standard_errors(difference)[0])
    assert np.std(found) == pytest.approx(np.mean(told), rel=0.12)


def test_errors_of_groups_cover_what_groups_differ_in() -> None:
    random = np.random.default_rng(0)
    found, by_sample, by_group = [], [], []
    for _ in range(300):
        values, groups = right(random, np.array([0.8, 0.8]), 400, groups=20, apart=0.5)
        difference = values[:, :1] - values[:, 1:]
        found.append(difference.mean())
        by_sample.append(standard_errors(difference)[0])
        by_group.append(standard_errors(difference, groups)[0])
    assert np.std(found) == pytest.approx(np.mean(by_group), rel=0.15)
    assert np.std(found) > 1.5 * np.mean(by_sample)


def test_the_larger_error_counts() -> None:
    # Each group's sum is the same: no difference between groups, and still few samples.
    difference = np.array([1.0, -1.0, 1.0, 0.0] * 2)[:, None]
    groups = np.repeat([0, 1], 4)
    assert standard_errors(difference, groups) == standard_errors(difference)
    assert standard_errors(difference, np.zeros(8, int)) == standard_errors(difference)


@pytest.mark.parametrize(("groups", "apart"), [(0, 0.0), (12, 0.4)])
def test_the_best_is_rarely_left_out_and_equal_ones_are_kept(groups: int, apart: float) -> None:
    random = np.random.default_rng(1)
    lost = 0
    for _ in range(200):
        values, place = right(random, np.full(40, 0.75), 360, groups, apart)
        # All are equally good; any of them is the best.
        lost += not compare(values, place).equal[0]
    assert lost <= 20


def test_few_groups_are_pooled_so_that_the_best_is_rarely_left_out() -> None:
    random = np.random.default_rng(6)
    lost = alone = 0
    for _ in range(150):
        values, groups = right(random, np.full(40, 0.75), 900, groups=3, apart=0.6)
        compared = compare(values, groups)
        lost += not compared.equal[0]
        difference = values[:, compared.leader] - values[:, 0]
        error = standard_errors(difference[:, None], groups)[0]
        alone += difference.mean() > compared.quantile * error
    assert lost <= 15
    assert alone >= 30


def test_groups_that_are_ignored_lose_the_best() -> None:
    random = np.random.default_rng(1)
    lost = 0
    for _ in range(100):
        values, _ = right(random, np.full(40, 0.75), 1200, groups=4, apart=0.6)
        lost += not compare(values).equal[0]
    assert lost > 25


def test_choosing_the_highest_is_biased_as_foretold_and_a_choice_of_equal_ones_is_not() -> None:
    random = np.random.default_rng(2)
    naive, foretold, taken = [], [], []
    for _ in range(150):
        values, _ = right(random, np.full(60, 0.7), 300)
        compared = compare(values)
        means = values.mean(0)
        naive.append(means[compared.leader] - 0.7)
        foretold.append(too_good(values[:, compared.equal]))
        # The order of candidates has nothing to do with the samples.
        taken.append(means[int(compared.equal.argmax())] - 0.7)
    assert np.mean(naive) > 0.03
    assert np.mean(naive) == pytest.approx(np.mean(foretold), rel=0.1)
    assert abs(np.mean(taken)) < 0.006


def test_a_truly_better_one_is_found_when_samples_suffice() -> None:
    chances = np.full(60, 0.7)
    chances[-1] = 0.8
    few, _ = right(np.random.default_rng(3), chances, 100)
    many, _ = right(np.random.default_rng(3), chances, 4000)
    assert compare(few).equal.sum() > 1
    assert compare(many).equal.tolist() == [False] * 59 + [True]
    # Groups that agree do not hide it; two that disagree do.
    assert compare(many, np.arange(4000) % 20).equal.sum() == 1
    values = np.zeros((400, 2))
    values[:200, 1] = 1.0
    assert compare(values).equal.tolist() == [False, True]
    assert compare(values, np.repeat([0, 1], 200)).equal.all()


def test_candidates_that_err_together_are_hardly_too_good() -> None:
    random = np.random.default_rng(4)
    one = random.integers(0, 2, (500, 1)).astype(float)
    assert too_good(np.repeat(one, 50, 1)) == pytest.approx(0, abs=1e-12)
    assert too_good(one) == 0
    apart = random.integers(0, 2, (500, 50)).astype(float)
    # The expected maximum of 50 standard normal deviates is 2.249.
    assert too_good(apart) == pytest.approx(2.249 * 0.5 / np.sqrt(500), rel=0.05)


def test_what_differs_between_groups_makes_the_best_look_better() -> None:
    values, groups = right(np.random.default_rng(5), np.full(30, 0.7), 800, groups=8, apart=0.6)
    assert too_good(values, groups) > 1.5 * too_good(values)


@given(
    st.lists(st.booleans(), min_size=1, max_size=40)
    | st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40)
)
@settings(max_examples=80, deadline=None)
def test_what_is_packed_is_unpacked(values: list[float]) -> None:
    given = np.array(values, np.float64)
    found = unpack(pack(given))
    assert found is not None
    np.testing.assert_allclose(found, given, rtol=1e-3, atol=1e-7 * max(1e-300, abs(given).max()))


def test_only_what_fits_is_packed() -> None:
    assert len(pack(np.ones(1200))) < 400
    assert len(pack(np.random.default_rng(0).normal(size=MOST))) < 65_000
    assert pack(np.full(MOST + 1, 0.5)) == ""
    assert pack(np.array([0.5, np.nan])) == ""
    assert unpack("") is None
    for damaged in ("bits 3 !!", pack(np.array([0.5, 0.2])).replace(" 2 ", " 3 ")):
        with pytest.raises(ValueError):
            unpack(damaged)
    assert unpack_groups(pack_groups(np.array([2, 0, 2]))).tolist() == [2, 0, 2]
    assert unpack_groups("") is None
