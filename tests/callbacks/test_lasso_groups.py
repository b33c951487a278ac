"""Groups of group lasso besides filters, its proximal step, and strengths that change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.lasso_groups import kinds
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.surgery.groups import (
    group_lasso_gradient,
    group_lasso_penalty,
    group_lasso_step,
    group_squares,
    smallest,
)

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(64, 8, 8, 3)).astype("f4")
Y = (X.mean((1, 2)) @ _RNG.normal(size=(3, 4))).argmax(1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STRENGTHS = keras.optimizers.schedules


def _network() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            kl.Conv2D(8, 3, activation="relu", name="first"),
            kl.Conv2D(6, 3, activation="relu", name="second"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(4, name="head"),
        ]
    )


def _fit(
    lasso: ec.GroupLasso | None, epochs: int = 2, optimizer: Any = None, **compiled: Any
) -> tuple[Any, dict[str, list[float]]]:
    model = _network()
    model.compile(optimizer or keras.optimizers.SGD(0.1), LOSS, **compiled)
    callbacks = [] if lasso is None else [lasso]
    arguments = {"batch_size": 16, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model, model.fit(X, Y, callbacks=callbacks, **arguments).history


@pytest.mark.parametrize("axes", [(0, 1, 2), (2,), (2, 3), (-1,)])
def test_the_maths_of_any_axes(axes: tuple[int, ...]) -> None:
    """Against loops over the groups."""
    kernel = _RNG.normal(size=(3, 2, 4, 5))
    kernel[:, :, 1, 2] = 0
    own = tuple(axis % 4 for axis in axes)
    moved = np.moveaxis(kernel, own, range(len(own)))
    count = int(np.prod(moved.shape[: len(own)]))
    groups = moved.reshape(count, -1)
    norms = np.sqrt((groups**2).sum(1))
    size, lam = groups.shape[1], 0.7
    squares = group_squares(kernel, axes)
    assert float(group_lasso_penalty(squares, size, lam)) == pytest.approx(
        lam * size**0.5 * norms.sum(), rel=1e-5
    )
    slopes, shrunk = np.zeros_like(groups), np.zeros_like(groups)
    for index, (group, norm) in enumerate(zip(groups, norms, strict=True)):
        if norm:
            slopes[index] = lam * size**0.5 * group / norm
            shrunk[index] = max(0.0, 1 - 0.4 * size**0.5 / norm) * group
    for found, wanted in (
        (group_lasso_gradient(kernel, squares, axes, size, lam), slopes),
        (group_lasso_step(kernel, squares, axes, size, 0.4), shrunk),
    ):
        back = np.moveaxis(wanted.reshape(moved.shape), range(len(own)), own)
        np.testing.assert_allclose(found, back, atol=1e-5)


def test_the_step_minimizes_what_it_is_the_proximal_operator_of() -> None:
    """argmin over u of 1/2 ||u - w||^2 + a ||u||, searched along w, where it lies."""
    for length in (0.3, 2.0):
        w = np.array([[0.6], [0.8]]) * length
        found = np.array(group_lasso_step(w, np.float32([length**2]), 1, 4, 0.25))
        scales = np.linspace(0, 1, 10001)
        costs = 0.5 * ((scales - 1) * length) ** 2 + 0.25 * 2 * scales * length
        np.testing.assert_allclose(found, w * scales[costs.argmin()], atol=2e-4)


def test_the_smallest_of_a_matrix() -> None:
    scores = np.array([[3.0, 1.0], [2.0, 4.0]])
    np.testing.assert_array_equal(smallest(scores, 0.5), [[False, True], [True, False]])


def test_one_proximal_update_is_a_plain_update_and_the_step() -> None:
    keras.utils.set_random_seed(0)
    batch = {"batch_size": 64, "epochs": 1, "shuffle": False, "verbose": 0}
    models = []
    for callbacks in ([], [ec.GroupLasso(0.3, method="proximal", threshold=1e-9)]):
        model = _network()
        model.compile(keras.optimizers.SGD(0.1), LOSS)
        model.fit(X, Y, callbacks=callbacks, **batch)
        models.append(model)
    plain, shrunk = models
    for name in ("first", "second"):
        kernel = plain.get_layer(name).kernel.numpy()
        norms = np.sqrt((kernel**2).sum((0, 1, 2)))
        size = kernel[..., 0].size
        wanted = kernel * np.maximum(0, 1 - 0.1 * 0.3 * size**0.5 / norms)
        np.testing.assert_allclose(shrunk.get_layer(name).kernel, wanted, atol=1e-6)
    np.testing.assert_array_equal(plain.get_layer("head").kernel, shrunk.get_layer("head").kernel)


class _ExactZeros(keras.callbacks.Callback):
    """Counts the filters that are exactly zero after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        kernel = self.model.get_layer("first").kernel.numpy()
        self.counts.append(int((np.abs(kernel).sum((0, 1, 2)) == 0).sum()))


def test_the_proximal_step_makes_exact_zeros_and_a_penalty_does_not() -> None:
    exact = {}
    for method in ("penalty", "proximal"):
        model, watch = _network(), _ExactZeros()
        model.compile(keras.optimizers.SGD(0.1), LOSS)
        # Zeros are counted before those of the threshold are made.
        callbacks = [ec.GroupLasso(0.2, method=method), watch]
        model.fit(X, Y, batch_size=16, epochs=4, verbose=0, callbacks=callbacks)
        exact[method] = watch.counts
    assert max(exact["penalty"]) == 0
    assert max(exact["proximal"]) > 0 and exact["proximal"] == sorted(exact["proximal"])


@pytest.mark.parametrize(
    "compiled", [{"steps_per_execution": 3}, {"jit_compile": True}], ids=["several", "xla"]
)
@pytest.mark.parametrize("method", ["penalty", "proximal"])
def test_however_the_step_runs(method: str, compiled: dict[str, Any]) -> None:
    ramp = STRENGTHS.PolynomialDecay(0.0, 8, end_learning_rate=0.02)
    want, history = _fit(ec.GroupLasso(ramp, method=method), jit_compile=False)
    got, other = _fit(ec.GroupLasso(ramp, method=method), **compiled)
    np.testing.assert_allclose(other["loss"], history["loss"], rtol=1e-4)
    for a, b in zip(want.get_weights(), got.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_gradients_that_are_only_added_up_shrink_nothing() -> None:
    """Two halves of a batch: one update, one step."""
    models = []
    for batch, every in ((32, None), (16, 2)):
        model = _network()
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=every)
        model.compile(optimizer, LOSS)
        lasso = ec.GroupLasso(0.05, method="proximal")
        model.fit(X, Y, batch_size=batch, epochs=2, shuffle=False, verbose=0, callbacks=[lasso])
        models.append(model)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_adam_is_told_of_the_proximal_step() -> None:
    lasso = ec.GroupLasso(1e-3, method="proximal")
    _fit(lasso, 1, keras.optimizers.Adam())
    assert any("steps of Adam differ from weight to weight" in note for note in lasso.notes)


def test_a_strength_that_grows() -> None:
    """4 updates an epoch: nothing happens during the first two, then the penalty is there."""
    steps = STRENGTHS.PiecewiseConstantDecay([8], [0.0, 0.1])
    model, history = _fit(ec.GroupLasso(steps, threshold=1e-9), 3)
    plain, plain_history = _fit(None, 3)
    np.testing.assert_allclose(history["loss"][:2], plain_history["loss"][:2], rtol=1e-6)
    assert history["loss"][2] > plain_history["loss"][2] + 0.1
    assert history["group_lasso_penalty"][0] == 0
    kernels = [model.get_layer(name).kernel.numpy() for name in ("first", "second")]
    wanted = sum(
        0.1 * kernel[..., 0].size ** 0.5 * np.sqrt((kernel**2).sum((0, 1, 2))).sum()
        for kernel in kernels
    )
    assert history["group_lasso_penalty"][2] == pytest.approx(wanted, rel=1e-5)
    step = record_of(model).steps[0]
    assert json.loads(json.dumps(step["strength"]))["boundaries"] == [8]


@pytest.mark.parametrize("kind", [name for name in kinds() if name not in ("filters", "layers")])
def test_slices_become_zero_and_stay_it(kind: str, tmp_path: Path) -> None:
    lasso = ec.GroupLasso(1e-3, groups=kind, final_sparsity=0.5, end_epoch=1, layers=["second"])
    model, history = _fit(lasso, 3)
    kernel = model.get_layer("second").kernel.numpy()
    axes = {"input-channels": (2,), "kernel-shapes": (0, 1, 2), "kernels": (2, 3)}[kind]
    others = tuple(axis for axis in range(4) if axis not in axes)
    zero = ~(kernel != 0).any(axis=others)
    assert zero.mean() == pytest.approx(0.5, abs=1 / zero.size)
    assert history["group_lasso_zero_share"][-1] == pytest.approx(zero.mean())
    (found,) = (s for s in record_of(model).steps if s["technique"] == "group_lasso")
    assert found["groups"] == kind
    assert found["zero_filters"] == {"second": [int(zero.sum()), zero.size]}
    model.save(tmp_path / "model.keras")
    small = ec.finalize(ec.load_model(tmp_path / "model.keras"))
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)
    # An input channel that its one reader ignores goes; other zeros stay in the kernel.
    first = small.get_layer("first").filters
    assert first == (4 if kind == "input-channels" else 8)


@pytest.mark.parametrize("criterion", ["taylor", "weight-change"])
def test_slices_are_compared_by_a_criterion(criterion: str) -> None:
    lasso = ec.GroupLasso(
        1e-6, groups="input-channels", final_sparsity=0.25, criterion=criterion, layers=["second"]
    )
    model, _ = _fit(lasso)
    zero = ~(model.get_layer("second").kernel.numpy() != 0).any(axis=(0, 1, 3))
    assert zero.sum() == 2


def _blocks() -> Any:
    keras.utils.set_random_seed(4)
    x = inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(8, 3, padding="same", name="stem")(x)
    for block in range(3):
        y = kl.Conv2D(8, 3, padding="same", name=f"branch_{block}")(x)
        x = kl.Add()([x, kl.BatchNormalization(name=f"norm_{block}")(y)])
    return keras.Model(inputs, kl.Dense(4, name="head")(kl.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("method", ["penalty", "proximal"])
def test_the_weakest_layers_leave_their_branches(method: str, tmp_path: Path) -> None:
    model = _blocks()
    model.compile(keras.optimizers.SGD(0.05), LOSS)
    lasso = ec.GroupLasso(1e-3, "layers", final_sparsity=0.4, method=method, end_epoch=1)
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=[lasso])
    zero = [not model.get_layer(f"branch_{i}").kernel.numpy().any() for i in range(3)]
    assert sum(zero) == 1
    gone = f"norm_{zero.index(True)}"
    assert not model.get_layer(gone).gamma.numpy().any()
    assert all(any(name in note for note in lasso.notes) for name in ("stem", "head"))
    model.save(tmp_path / "model.keras")
    small = ec.finalize(ec.load_model(tmp_path / "model.keras"))
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)
    assert not {layer.name for layer in small.layers} & {gone, f"branch_{zero.index(True)}"}


def test_layers_need_a_shortcut() -> None:
    with pytest.raises(ArgumentError, match="a shortcut passes by"):
        _fit(ec.GroupLasso(1e-3, groups="layers"), 1)


def test_a_layer_is_one_group() -> None:
    kernel, gamma = _RNG.normal(size=(2, 3)), _RNG.normal(size=3)
    squares = group_squares(kernel, (), gamma)
    norm2 = (kernel**2).sum() + (gamma**2).sum()
    assert float(squares) == pytest.approx(norm2, rel=1e-6)
    shrunk = group_lasso_step(gamma, squares, (), 9, 0.1)
    wanted = gamma * max(0.0, 1 - 0.1 * 3 / norm2**0.5)
    np.testing.assert_allclose(shrunk, wanted, rtol=1e-5)


def test_layers_without_such_groups_are_named() -> None:
    words = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            kl.Embedding(9, 4, name="words"),
            kl.GlobalAveragePooling1D(),
            kl.Dense(2, name="head"),
        ]
    )
    words.compile("sgd", LOSS)
    x, y = _RNG.integers(0, 9, (16, 5)), _RNG.integers(0, 2, 16)
    lasso = ec.GroupLasso(1e-3, groups="input-channels")
    words.fit(x, y, verbose=0, callbacks=[lasso])
    assert any("words is not penalized: its kernel of shape (9, 4)" in note for note in lasso.notes)
    named = ec.GroupLasso(1e-3, groups="input-channels", layers=["words"])
    with pytest.raises(ArgumentError, match="fit at least one kernel"):
        words.fit(x, y, verbose=0, callbacks=[named])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0}, "strength"),
        ({"strength": "much"}, "schedule"),
        ({"strength": True}, "strength"),
        ({"strength": 1e-3, "groups": "kernels", "until": ec.Budget(macs=0.5)}, "left out with"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ec.GroupLasso(**arguments)


@pytest.mark.parametrize("argument", ["groups", "method"])
def test_unknown_names_list_the_known_ones(argument: str) -> None:
    known = "input-channels" if argument == "groups" else "proximal"
    with pytest.raises(UnknownNameError, match=known):
        ec.GroupLasso(1e-3, **{argument: "zzz"})
