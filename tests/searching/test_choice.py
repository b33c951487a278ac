"""Which candidate is taken, why, and what is said of the data that chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.searching.choice import Choice, choose, notes, preferred
from edgecompress.searching.outcome import Point
from edgecompress.searching.packing import pack, pack_groups
from edgecompress.searching.results import (
    FROM_PARENT,
    FROM_SCRATCH,
    Described,
    Job,
    Judged,
    Outcome,
)

_SAMPLES = 400


def described(higher: bool = True, groups: Any = None) -> Described:
    metric = "accuracy" if higher else "mse"
    return Described(
        (), {}, metric, higher, "", (), {}, True, 0, 0, groups=pack_groups(groups)
    )  # fmt: skip


def point(number: int, values: np.ndarray, macs: int = 100, **changed: Any) -> Point:
    told = {
        "parameters": 10, "samples": len(values), "excess": {"arena": -0.1},
        "by_sample": pack(values), "start": FROM_PARENT, "epochs": 2, **changed,
    }  # fmt: skip
    outcome = Outcome("key", macs=macs, metric=float(values.mean()), **told)
    return Point(number, Job({}, outcome.start, outcome.epochs), outcome)


def right(count: int) -> np.ndarray:
    """As many samples right, the first ones."""
    return (np.arange(_SAMPLES) < count).astype(float)


def scattered(share: float, seed: int) -> np.ndarray:
    """Some samples right, others for each seed."""
    return (np.random.default_rng(seed).uniform(size=_SAMPLES) < share).astype(float)


def hits(count: int, seed: int) -> np.ndarray:
    """Exactly as many samples right, others for each seed."""
    return (np.random.default_rng(seed).permutation(_SAMPLES) < count).astype(float)


def taken(*points: Point, **told: Any) -> Choice:
    found = choose(described(**told), points)
    assert found is not None
    return found


def test_the_nearest_within_a_standard_error_is_trained_longer() -> None:
    best, near = point(0, hits(330, 0), macs=50), point(1, hits(324, 1), macs=200)
    far = point(2, hits(310, 2), macs=400)
    assert preferred(described(), [best, near, far]) is near
    # What a final choice cannot tell apart may differ enough for one that can be taken back.
    assert far.number in taken(best, near, far).equal
    assert preferred(described(), [best, far]) is best
    # Two people whom each serves better cannot tell them apart at all.
    people = np.arange(_SAMPLES) // (_SAMPLES // 2)
    first, second = point(0, np.where(people, 0.5, 0.9)), point(1, np.where(people, 0.7, 0.5), 200)
    assert preferred(described(groups=people), [first, second]) is second
    assert (
        preferred(
            described(), [point(0, right(300)), point(1, right(200), by_sample="")]
        ).outcome.metric
        == 0.75
    )
    # An error is better if it is smaller.
    small, large = point(0, scattered(0.2, 0)), point(1, scattered(0.9, 1), macs=200)
    assert preferred(described(higher=False), [small, large]) is small


def test_of_equal_ones_the_nearest_is_taken() -> None:
    found = taken(
        point(0, scattered(0.86, 0), macs=50),
        point(1, scattered(0.77, 1), macs=200),
        point(2, scattered(0.30, 2), macs=900),
    )
    assert (found.candidate, found.leader, found.equal, found.compared) == (1, 0, (0, 1), 3)
    assert "2 of 3 candidates" in found.reason
    assert "cannot be told apart on 400 validation samples. Of them, candidate 1" in found.reason
    assert found.difference == pytest.approx(scattered(0.86, 0).mean() - scattered(0.77, 1).mean())


def test_a_better_one_is_taken_however_small() -> None:
    found = taken(point(0, right(360), macs=50), point(1, right(300), macs=900))
    assert (found.candidate, found.equal, found.too_good) == (0, (0,), 0.0)
    assert "by more than can be chance" in found.reason


def test_the_order_of_nearness() -> None:
    same = [scattered(0.8, seed) for seed in range(5)]
    assert taken(
        point(0, same[0], macs=100, parameters=10),
        point(1, same[1], macs=100, parameters=20, epochs=2),
        point(2, same[2], macs=100, parameters=20, epochs=6),
        point(3, same[3], macs=90, parameters=90, epochs=18),
        point(4, same[4], macs=500, start=FROM_SCRATCH),
    ).candidate == 2  # fmt: skip
    assert taken(point(4, same[4], macs=500, start=FROM_SCRATCH)).candidate == 4


def test_only_what_meets_the_limits_on_most_samples_is_compared() -> None:
    found = taken(
        point(0, scattered(0.8, 0)),
        point(1, scattered(0.8, 1), macs=900, excess={"arena": 0.1}),
        point(2, scattered(0.9, 2)[:200], macs=900),
    )
    assert (found.candidate, found.compared, found.samples) == (0, 1, _SAMPLES)
    assert "the only one that meets every limit" in found.reason
    assert choose(described(), [point(1, right(3), excess={"arena": 0.1})]) is None


def test_errors_are_less_the_better() -> None:
    random = np.random.default_rng(0)
    errors = random.uniform(0, 1, _SAMPLES)
    found = taken(point(0, errors), point(1, errors + 0.5, macs=900), higher=False)
    assert (found.candidate, found.leader, found.difference) == (0, 0, 0.0)
    near = errors + random.normal(size=_SAMPLES) * 0.1
    found = taken(point(0, errors), point(1, near, macs=900), higher=False)
    assert found.candidate == 1


def test_groups_keep_apart_what_only_one_of_them_told_apart() -> None:
    first = right(300)
    second = first.copy()
    # Much better, in one half alone.
    first[300:340] = 1.0
    halves = np.arange(_SAMPLES) // 200
    points = (point(0, first, macs=50), point(1, second, macs=900))
    assert taken(*points).candidate == 0
    found = taken(*points, groups=halves)
    assert (found.candidate, found.groups) == (1, 2)
    assert "of 2 groups" in found.reason
    (note,) = notes("accuracy", found, False, None, False)
    assert "of 2 groups, by which it is known but roughly" in note


def test_without_samples_the_best_metric_is_taken_and_said_to_be() -> None:
    found = taken(point(0, right(301)), point(1, right(300), macs=900, by_sample=""))
    assert (found.candidate, found.error, found.too_good) == (0, None, None)
    assert "is not known: not all of them keep their metric by sample" in found.reason
    damaged = pack(right(300))[:-9] + "!" * 9
    assert taken(point(0, right(301)), point(1, right(300), by_sample=damaged)).error is None


def test_a_floor_is_said_to_be_judged_on_the_data_that_chose() -> None:
    one = taken(point(0, right(300)))
    (note,) = notes("accuracy", one, True, None, False)
    assert note == (
        "The limit of accuracy was judged on the 400 validation samples that also chose. Give "
        "--test data, which neither train nor choose."
    )
    assert notes("accuracy", one, False, None, False) == []
    many = taken(*(point(n, scattered(0.8, n)) for n in range(10)))
    for floor in (True, False):
        (note,) = notes("accuracy", many, floor, None, False)
        assert f"look {many.too_good:.4f} better there than it is" in note
    # The expected maximum of 10 standard normal deviates is 1.539.
    assert many.too_good == pytest.approx(1.539 * 0.4 / 20, rel=0.1)
    assert notes("accuracy", None, True, None, False) == []


def test_test_data_speak_for_themselves() -> None:
    many = taken(*(point(n, scattered(0.8, n)) for n in range(10)))
    tested = Judged(3, 0.75, 0.78, 900, 4, -0.03, 0.01, (3,))
    (note,) = notes("accuracy", many, True, tested, False)
    assert note == (
        "On the 900 test samples of 4 groups, candidate 3 has accuracy 0.7500, the untouched "
        "model 0.7800: 0.0300 worse, standard error 0.0100."
    )
    again = Judged(3, 0.75, None, 900, 0, looked=(1, 3))
    assert "Candidates 1, 3 of this study were measured" in notes("a", many, True, again, False)[1]
    assert "could not be measured" in notes("a", many, True, Judged(3, None, 1, 9, 0), False)[0]
    left, floor = notes("accuracy", many, True, None, True)
    assert "was not measured on the test data, as it is not here" in left
    assert "--test" not in floor
