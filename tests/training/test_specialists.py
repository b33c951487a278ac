"""Specialists: what they and a generalist say together, their classes and their data."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.training.specialists import (
    Specialist,
    combined,
    confusable_classes,
    specialist_samples,
)

keras = pytest.importorskip("keras")
optimize = pytest.importorskip("scipy.optimize")

_RNG = np.random.default_rng(3)


def _probabilities(rows: int, classes: int) -> np.ndarray:
    values = _RNG.gamma(0.5, size=(rows, classes)) + 1e-3
    return (values / values.sum(-1, keepdims=True)).astype("f4")


def _apart(logits: np.ndarray, p: np.ndarray, asked: list[tuple[Any, np.ndarray]]) -> float:
    """The sum of divergences that q has to make small, for one sample."""
    q = np.exp(logits - logits.max())
    q /= q.sum()
    total = np.sum(p * np.log(p / q))
    for classes, own in asked:
        rest = np.delete(q, list(classes)).sum()
        of_q = np.append(q[list(classes)], rest)
        total += np.sum(own * np.log(own / of_q))
    return float(total)


def test_together_they_say_what_is_nearest_to_all_that_are_asked() -> None:
    p = _probabilities(12, 6)
    experts = [((0, 4), _probabilities(12, 3)), ((1, 2, 4), _probabilities(12, 4))]
    found = np.array(combined(p, experts))
    several = 0
    for row in range(12):
        best = p[row].argmax()
        asked = [(classes, own[row]) for classes, own in experts if best in classes]
        several += len(asked) > 1
        if not asked:
            np.testing.assert_allclose(np.exp(found[row]), p[row], rtol=1e-5)
            continue
        # Convex in q: where no class gains by a small change, there is the smallest sum.
        apart = functools.partial(_apart, p=p[row], asked=asked)
        slope = optimize.approx_fprime(found[row].astype("f8"), apart, 1e-6)
        np.testing.assert_allclose(slope, 0, atol=1e-3)
        alone = optimize.approx_fprime(np.log(p[row].astype("f8")), apart, 1e-6)
        assert np.abs(alone).max() > 1e-2
    assert several


def test_classes_that_are_confused_are_one_group() -> None:
    pairs = [(0, 3), (1, 4), (2, 5)]
    rows = []
    for pair in pairs * 40:
        row = _RNG.uniform(0, 0.02, 6)
        share = _RNG.uniform(0.3, 0.6)
        row[list(pair)] += share, 0.9 - share
        rows.append(row / row.sum())
    # The two of a pair are predicted together: they vary with the pair, not with each other alone.
    assert set(confusable_classes(np.array(rows), 3)) == set(pairs)
    assert confusable_classes(np.array(rows), 6) == ()
    assert confusable_classes(np.array(rows), 1) == ((0, 1, 2, 3, 4, 5),)


def test_half_of_a_specialists_samples_are_of_its_classes() -> None:
    labels = np.arange(200) % 10
    chosen, own, oversampled = specialist_samples(labels, (7, 2), seed=1)
    assert len(chosen) == len(set(chosen.tolist())) == 80
    np.testing.assert_array_equal(labels[chosen[own == 0]], 7)
    np.testing.assert_array_equal(labels[chosen[own == 1]], 2)
    assert not np.isin(labels[chosen[own == 2]], (7, 2)).any()
    assert np.bincount(own).tolist() == [20, 20, 40]
    # 160 others of which 40 were drawn: the two classes occur four times as often as they should.
    assert oversampled == 4.0
    assert not np.array_equal(chosen, specialist_samples(labels, (7, 2), seed=2)[0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Specialist("net.keras", (1,)), "`model` must be a Keras 3 model"),
        (lambda: Specialist(keras.Sequential(), (1, 1)), "`classes` must be different"),
        (lambda: Specialist(keras.Sequential(), (1, -2)), "`classes`"),
        (lambda: Specialist(keras.Sequential(), (1,), 0), "`oversampled` must be a number above 0"),
        (lambda: confusable_classes(np.ones(4), 1), "`outputs`"),
        (lambda: confusable_classes(np.eye(3) - 1, 2), "`outputs` must be probabilities.*softmax"),
        (lambda: confusable_classes(np.eye(3) * 5, 2), "`outputs` must be probabilities"),
        (lambda: confusable_classes(np.eye(3), 4), "`groups` must be a whole number, 1 to 3"),
        (
            lambda: specialist_samples(np.eye(3), (0, 1)),
            "`labels` must be numbers of classes.*argmax",
        ),
        (lambda: specialist_samples([1, 2], (3,)), "`classes` must be some of the classes"),
        (lambda: specialist_samples([1, 2], (1, 2)), "`classes` must be some of the classes"),
    ],
)
def test_bad_arguments_are_named(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()
