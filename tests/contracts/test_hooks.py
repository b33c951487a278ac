"""What every public callback keeps: a fit leaves no trace, also one that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.base import HookedCallback

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

# A new callback: one line here.
CALLBACKS: dict[type, Callable[[], Any]] = {
    ec.MagnitudePruning: lambda: ec.MagnitudePruning(ec.ConstantSparsity(0.5, frequency=1)),
    ec.Pruning: lambda: ec.Pruning(ec.ConstantSparsity(0.5, frequency=1), "taylor"),
    ec.KeepSparsity: lambda: ec.KeepSparsity(lambda layer: True),
    ec.ChannelPruning: lambda: ec.ChannelPruning(ec.Budget(parameters=0.9)),
    ec.GroupLasso: lambda: ec.GroupLasso(1e-3),
    ec.Distillation: lambda: ec.Distillation(_model()),
    ec.QuantizationAwareTraining: lambda: ec.QuantizationAwareTraining(),
    ec.WeightClustering: lambda: ec.WeightClustering(4),
    ec.Binarize: lambda: ec.Binarize(first_and_last=True),
    ec.FixedPointTraining: lambda: ec.FixedPointTraining(8, 5),
    ec.Ternarize: lambda: ec.Ternarize(first_and_last=True),
    ec.VariationalDropout: lambda: ec.VariationalDropout(32, initial_log_variance=-3.0),
    ec.BayesianGroupSparsity: lambda: ec.BayesianGroupSparsity(32),
    ec.VariationalQuantization: lambda: ec.VariationalQuantization(32),
    ec.SoftWeightSharing: lambda: ec.SoftWeightSharing(32, 3),
    ec.PatternBinarization: lambda: ec.PatternBinarization(),
    ec.FastGroupedConvolutions: lambda: ec.FastGroupedConvolutions(),
}
X = np.random.default_rng(0).normal(size=(32, 4, 4, 4)).astype("f4")
Y = (X[:, 0, 0, 0] > 0).astype("i4")


class _Interrupt(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the state of the model in a fit and ends it, after two steps or before the first."""

    def __init__(self, state: Callable[[], Any], trained: bool) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}
        self.state, self.trained = state, trained

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if not self.trained:
            self._stop()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self._stop()

    def _stop(self) -> None:
        self.seen = self.state()
        raise KeyboardInterrupt


def _model() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            keras.layers.Conv2D(
                4, 3, groups=2, kernel_constraint="non_neg", kernel_regularizer="l2"
            ),
            keras.layers.Conv2D(4, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _state(model: Any) -> dict[str, Any]:
    """Returns everything a hook can replace, by identity."""
    found: dict[str, Any] = {"optimizer": [id(v) for v in model.optimizer.variables]}
    for part in (model, model.optimizer, *model.layers):
        for name in (
            "call",
            "compute_loss",
            "convolution_op",
            "apply",
            "save_own_variables",
            "_edgecompress_hooks",
        ):
            found[f"{part.name}.{name}"] = id(vars(part)[name]) if name in vars(part) else None
    for weight in model.weights:
        found[weight.path] = (id(weight.regularizer), id(weight.constraint))
    return found


def test_every_public_callback_is_here() -> None:
    public = {getattr(ec, name) for name in ec.__all__ if isinstance(getattr(ec, name), type)}
    assert {kind for kind in public if issubclass(kind, HookedCallback)} == set(CALLBACKS)


def _interrupted(model: Any, callback: Any, trained: bool) -> dict[str, Any]:
    """Returns the state of the model in a fit that ended early."""
    interrupt = _Interrupt(lambda: _state(model), trained)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback, interrupt])
    assert _state(model) == interrupt.seen
    return interrupt.seen


@pytest.fixture(params=CALLBACKS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_an_interrupted_fit_can_be_undone(kind: type) -> None:
    model, callback = _model(), CALLBACKS[kind]()
    before = _state(model)
    # It did reach into the training.
    assert _interrupted(model, callback, trained=True) != before
    callback.detach()
    assert _state(model) == before


def test_the_next_fit_undoes_an_interrupted_one_and_leaves_no_trace_itself(kind: type) -> None:
    kinds = list(CALLBACKS)
    other = CALLBACKS[kinds[kinds.index(kind) - 1]]()
    model = _model()
    before = _state(model)
    assert _interrupted(model, other, trained=False) != before
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[CALLBACKS[kind]()])
    assert _state(model) == before
