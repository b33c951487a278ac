"""Lottery tickets: what goes, what returns to the start, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X, Y = _RNG.normal(size=(48, 6)).astype("f4"), _RNG.normal(size=(48, 2)).astype("f4")


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(20, "relu", name="hidden"), keras.layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((6,)), *layers])


class _Trainer:
    """Trains, and keeps the kernels before and after each training."""

    def __init__(self) -> None:
        self.begun: list[list[np.ndarray]] = []
        self.ended: list[list[np.ndarray]] = []

    def __call__(self, model: Any, callbacks: Sequence[Any]) -> int:
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        self.begun.append([layer.kernel.numpy() for layer in model.layers])
        model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        self.ended.append([layer.kernel.numpy() for layer in model.layers])
        return len(self.ended)


@pytest.mark.parametrize("rewind_step", [0, 2])
def test_the_smallest_go_and_the_rest_returns(rewind_step: int) -> None:
    fit, model = _Trainer(), _model()
    ticket = ec.lottery_ticket(model, fit, 0.75, rounds=2, rewind_step=rewind_step)
    assert ticket.results == (1, 2, 3) and ticket.model is model
    assert ticket.sparsities == pytest.approx((0.5, 0.75))
    # One threshold for all layers; the second round prunes among those that stayed.
    for number, count in ((0, 80), (1, 40)):
        trained = np.concatenate([k.ravel() for k in fit.ended[number]])
        kept = np.concatenate([k.ravel() for k in fit.begun[number + 1]]) != 0
        assert kept.sum() == count
        np.testing.assert_array_equal(kept, np.abs(trained) >= np.sort(np.abs(trained))[-count])
    start = fit.begun[0]
    if rewind_step:
        again = _model()
        again.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        again.fit(X[:32], Y[:32], batch_size=16, shuffle=False, verbose=0)
        start = [layer.kernel.numpy() for layer in again.layers]
    for mask, weights, first, end in zip(
        ticket.masks.values(), fit.begun[-1], start, fit.ended[-1], strict=True
    ):
        np.testing.assert_allclose(weights, np.where(mask, first, 0), rtol=1e-5)
        np.testing.assert_array_equal(end != 0, mask)


def test_the_control_has_the_mask_and_other_weights() -> None:
    fit = _Trainer()
    ticket = ec.lottery_ticket(_model(), fit, 0.5, rounds=1, control=True)
    for mask, weights, first in zip(
        ticket.masks.values(), fit.begun[-1], fit.begun[0], strict=True
    ):
        np.testing.assert_array_equal(weights != 0, mask)
        assert not np.allclose(weights[mask], first[mask])


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"rounds": 0}, "rounds"),
        ({"rewind_step": -1}, "rewind_step"),
        ({"criterion": "taylor"}, "read the weights alone"),
        ({"pattern": "blocks:rows=7"}, "fit at least one kernel"),
        ({"rewind_step": 100}, "step of the first training"),
    ],
)
def test_what_makes_no_ticket_is_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule) as error:
        ec.lottery_ticket(_model(), _Trainer(), **{"sparsity": 0.5} | settings)
    assert "\n" not in str(error.value)


def test_an_optimizer_that_goes_on_is_refused() -> None:
    model = _model()
    model.compile("sgd", "mse")

    def fit(model: Any, callbacks: Sequence[Any]) -> None:
        model.fit(X, Y, verbose=0, callbacks=callbacks)

    with pytest.raises(ArgumentError, match="compile the model anew"):
        ec.lottery_ticket(model, fit, 0.5, rounds=1)


def test_a_training_without_the_callbacks_is_refused() -> None:
    """The first training needs them for the start, the others to keep zeros."""

    trainings = []

    def forgets(model: Any, callbacks: Sequence[Any]) -> None:
        model.compile("sgd", "mse")
        model.fit(X, Y, batch_size=16, verbose=0, callbacks=[] if trainings else callbacks)
        trainings.append(model)

    with pytest.raises(ArgumentError, match=r"`fit` must train .* with the callbacks .*hidden"):
        ec.lottery_ticket(_model(), forgets, 0.5, rounds=1, scope="layer")
