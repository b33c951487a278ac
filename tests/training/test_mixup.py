"""Mixup: mixtures of samples, and the loss of both."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.converters.loaders import wrap
from edgecompress.recipes.data import Data, Samples
from edgecompress.training.mixup import Mixup

_X = np.random.default_rng(0).normal(size=(20, 4, 2)).astype("float32")
_NUMBERS = np.arange(20.0)[:, None]


def test_a_batch_holds_mixtures_and_says_of_what() -> None:
    x, rows = Mixup(0.4, (1,), batches=10, seed=0)({"a": _X, "b": _X[:, 0]}, _NUMBERS)
    first, second = rows[:, 0].astype(int), rows[:, 1].astype(int)
    share = rows[0, 2]
    assert 0 < share < 1 and (rows[:, 2] == share).all()
    assert first.tolist() == list(range(20)) and sorted(second) == list(range(20))
    np.testing.assert_allclose(x["a"], share * _X[first] + (1 - share) * _X[second], rtol=1e-5)
    np.testing.assert_array_equal(x["b"], x["a"][:, 0])
    assert x["a"].dtype == np.float32


def test_shares_follow_the_beta_distribution() -> None:
    for alpha in (0.2, 1.0):
        mix = Mixup(alpha, (1,), batches=10_000, seed=1)
        shares = [mix(_X[:2], _NUMBERS[:2])[1][0, 2] for _ in range(2000)]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
        assert np.var(shares) == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


def test_the_last_tenth_is_as_it_is() -> None:
    mix = Mixup(1.0, (1,), batches=30, seed=0)
    same = [np.array_equal(mix(_X, _NUMBERS)[0], _X) for _ in range(30)]
    assert same == [False] * 27 + [True] * 3


def test_the_loss_is_that_of_mixed_one_hot_labels() -> None:
    random = np.random.default_rng(2)
    logits, labels = random.normal(size=(20, 3)), random.integers(0, 3, (20, 1))
    mix = Mixup(0.4, (1,), batches=10, seed=3)
    _, rows = mix(_X, labels.astype("float32"))
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = float(mix.loss(cross_entropy)(rows, logits.astype("float32")))
    hot = np.eye(3)[rows[:, :2].astype(int)]
    asked = rows[0, 2] * hot[:, 0] + (1 - rows[0, 2]) * hot[:, 1]
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found == pytest.approx(float(-(asked * logs).sum(1).mean()), rel=1e-5)
    # Not that of either sample alone.
    assert found != pytest.approx(float(cross_entropy(rows[:, :1], logits)), rel=1e-3)


def test_labels_keep_their_form() -> None:
    mix = Mixup(0.4, (4, 2), batches=10, seed=0)
    x, rows = mix(_X, _X)
    assert rows.shape == (20, 17)
    found = mix.loss(lambda y, outputs: np.mean((np.array(y) - outputs) ** 2, axis=(1, 2)))(rows, x)
    # The mean squared error against mixtures, and how far the two samples are from each other.
    share, spread = rows[0, -1], ((rows[:, :8] - rows[:, 8:16]) ** 2).mean(1)
    np.testing.assert_allclose(found, share * (1 - share) * spread, rtol=1e-4, atol=1e-6)


def test_an_epoch_holds_each_sample_once() -> None:
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.Flatten(), keras.layers.Dense(1)])
    samples = Samples((_X,), _NUMBERS)
    data = Data(samples, samples, "")

    def labels(some: Samples) -> Any:
        return some.y

    wrap(model)
    feed = data.feed(model, 6, labels, mixup=Mixup(0.4, (1,), batches=8, seed=0))
    arguments = feed.arguments()
    assert arguments["steps_per_epoch"] == 4
    batches = [next(arguments["x"]) for _ in range(8)]
    assert [len(rows) for _, rows in batches] == [6, 6, 6, 2] * 2
    epochs = [np.concatenate([rows[:, 0] for _, rows in batches[at : at + 4]]) for at in (0, 4)]
    for numbers in epochs:
        assert sorted(numbers) == list(range(20))
    assert epochs[0].tolist() != epochs[1].tolist()
