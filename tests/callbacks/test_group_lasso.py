"""GroupLasso in real fits, against the formula and against plain training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.callbacks.group_lasso import GroupLasso
from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.record import record_of
from edgecompress.precisions.int8 import Int8
from edgecompress.schedules import ConstantSparsity, PolynomialDecay
from edgecompress.surgery.finalize import finalize

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8, 8, 1)).astype("float32")
# Two features of the image decide, so that most filters are not needed.
Y = (2 * (X[:, 2, 2, 0] > 0) + (X[:, 5, 5, 0] > 0)).astype("int32")


def net(norm: bool = False, seed: int = 0, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, use_bias=not norm, name="conv", **options),
            *([layers.BatchNormalization(name="norm", momentum=0.5)] if norm else []),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(12, activation="relu", name="hidden"),
            layers.Dense(4, name="out"),
        ]
    )
    return compiled(model)


def compiled(model: keras.Model, **options: Any) -> keras.Model:
    options.setdefault("optimizer", keras.optimizers.SGD(0.05, momentum=0.9))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, **options)
    return model


def fit(model: keras.Model, *callbacks: Any, epochs: int = 3, **options: Any) -> dict[str, list]:
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options).history


def zero_columns(layer: keras.layers.Layer) -> list[int]:
    kernel = layer.kernel.numpy()
    return np.flatnonzero(~kernel.reshape(-1, kernel.shape[-1]).any(axis=0)).tolist()


def test_loss_grows_by_the_formula() -> None:
    plain, model = net(True), net(True)
    model.get_layer("norm").gamma.assign(np.linspace(0.5, 1, 6))
    plain.get_layer("norm").gamma.assign(np.linspace(0.5, 1, 6))
    without = fit(compiled(plain, optimizer=keras.optimizers.SGD(0.0)), epochs=1)
    history = fit(compiled(model, optimizer=keras.optimizers.SGD(0.0)), GroupLasso(0.01), epochs=1)
    conv, hidden = (plain.get_layer(n).kernel.numpy() for n in ("conv", "hidden"))
    squares = np.square(conv).sum((0, 1, 2)) + np.square(np.linspace(0.5, 1, 6))
    expected = 0.01 * np.sqrt(3 * 3 + 1) * np.sqrt(squares).sum()
    expected += 0.01 * np.sqrt(hidden.shape[0]) * np.linalg.norm(hidden, axis=0).sum()
    assert history["group_lasso_penalty"][0] == pytest.approx(expected, rel=1e-5)
    assert history["loss"][0] - without["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_step_follows_the_gradient_and_own_regularizers_stay() -> None:
    """On zeros as input nothing but the penalties moves the kernel."""
    keras.utils.set_random_seed(0)
    own = keras.regularizers.L2(0.05)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(3, kernel_regularizer=own, name="a"),
            layers.Dense(2, name="b"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    kernel = model.get_layer("a").kernel
    before = kernel.numpy().astype(np.float64)
    model.fit(
        np.zeros((4, 5)),
        np.zeros((4, 2)),
        shuffle=False,
        verbose=0,
        callbacks=[GroupLasso(0.2, layers=["a"])],
    )
    gradient = 0.2 * np.sqrt(5) * before / np.linalg.norm(before, axis=0) + 2 * 0.05 * before
    np.testing.assert_allclose(kernel.numpy(), before - 0.1 * gradient, atol=1e-6)
    assert kernel.regularizer is own
    assert model.get_layer("b").kernel.regularizer is None


@pytest.mark.parametrize("norm", [False, True])
def test_lasso_and_finalize_give_a_smaller_model_with_the_same_outputs(norm: bool) -> None:
    model = net(norm)
    history = fit(model, GroupLasso(0.01, threshold=0.2, end_epoch=30), epochs=40)
    zeros = {name: zero_columns(model.get_layer(name)) for name in ("conv", "hidden")}
    count = sum(len(z) for z in zeros.values())
    assert 0 < count < 18
    assert history["group_lasso_zero_filters"][-10:] == [count] * 10
    assert history["group_lasso_zero_share"][-1] == pytest.approx(count / 18)
    assert history["group_lasso_penalty"][29] < history["group_lasso_penalty"][0]
    assert history["group_lasso_penalty"][-10:] == [0.0] * 10

    small = finalize(model)
    assert small.count_params() < model.count_params()
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)
    removed = record_of(small).removed_channels
    for name, size in (("conv", 6), ("hidden", 12)):
        if zeros[name]:
            assert removed[name] == (size, size - len(zeros[name]))
    step = record_of(small).steps[0]
    assert step["technique"] == "group_lasso"
    assert step["zero_filters"] == {"conv": [len(zeros["conv"]), 6], "hidden": [len(zeros["hidden"]), 12]}  # fmt: skip  # noqa: E501
    # The small model trains on.
    fit(compiled(small), epochs=1)


def test_without_the_penalty_no_filter_falls_under_the_threshold() -> None:
    model = net()
    history = fit(model, GroupLasso(1e-12, threshold=0.05), epochs=5)
    assert history["group_lasso_zero_filters"] == [0.0] * 5
    assert zero_columns(model.get_layer("hidden")) == []
    assert record_of(finalize(model)).removed_channels == {}
    assert any("set no filter to zero" in note for note in record_of(model).notes)


def test_final_sparsity_takes_an_exact_share() -> None:
    model = net(True)
    fit(model, GroupLasso(1e-3, final_sparsity=0.5))
    assert len(zero_columns(model.get_layer("conv"))) == 3
    assert len(zero_columns(model.get_layer("hidden"))) == 6
    small = finalize(model)
    assert (small.get_layer("conv").filters, small.get_layer("hidden").units) == (3, 6)
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)
    assert not any("restore_best_weights" in note for note in record_of(small).notes)


def test_zeros_stay_while_training_goes_on_and_constraints_come_back() -> None:
    own = keras.constraints.MaxNorm(0.5)
    model = net(True, kernel_constraint=own)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            norm = self.model.get_layer("norm")
            conv = self.model.get_layer("conv")
            seen.append((zero_columns(conv), (norm.gamma.numpy() == 0).sum()))
            assert np.linalg.norm(conv.kernel.numpy(), axis=0).max() < 0.5 + 1e-5

    fit(model, GroupLasso(1e-3, final_sparsity=0.5, end_epoch=2), Watch(), epochs=4)
    assert all(zeros == [] for zeros, _ in seen[:8])
    assert all(zeros == seen[-1][0] and gammas == 3 for zeros, gammas in seen[8:])
    conv = model.get_layer("conv")
    assert conv.kernel.constraint is own
    assert model.get_layer("norm").gamma.constraint is None
    # Trained on with its zeros, and dead channels changed nothing.
    small = finalize(model)
    assert small.get_layer("conv").filters == 3
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)
    before = conv.kernel.numpy()
    fit(model, epochs=1)  # Without the callback everything trains again.
    assert not np.array_equal(before, conv.kernel.numpy())
    assert zero_columns(conv) == []


def lasso() -> GroupLasso:
    return GroupLasso(1e-2, final_sparsity=0.4, end_epoch=2)


@pytest.fixture(scope="module")
def whole() -> list[np.ndarray]:
    """The weights of a training that nothing interrupts, its steps one by one."""
    model = net(True)
    fit(model, lasso(), epochs=5)
    return model.get_weights()


@pytest.mark.parametrize("options", [{"steps_per_execution": 3}, {"jit_compile": True}])
def test_execution_options_do_not_change_the_result(
    options: dict[str, Any], whole: list[np.ndarray]
) -> None:
    model = compiled(net(True), **options)
    fit(model, lasso(), epochs=5)
    for a, b in zip(whole, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What BackupAndRestore kept where a training was killed: a folder for each epoch."""
    folder = tmp_path_factory.mktemp("backups")

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch:
                shutil.copytree(folder / "running", folder / str(epoch))
            if epoch == 3:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        backup = keras.callbacks.BackupAndRestore(folder / "running")
        fit(net(True), Kill(), backup, lasso(), epochs=5)
    return folder


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_training_equals_uninterrupted_training(
    stop: int, backups: Path, whole: list[np.ndarray]
) -> None:
    resumed = net(True, seed=9)
    backup = keras.callbacks.BackupAndRestore(backups / str(stop))
    history = fit(resumed, backup, lasso(), epochs=5)
    assert len(history["loss"]) == 5 - stop
    for a, b in zip(whole, resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_interrupted_fit_leaves_nothing_twice() -> None:
    model = net()

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(model, GroupLasso(1e-2), Kill())
    assert model.get_layer("conv").kernel.regularizer is not None
    fit(model, GroupLasso(1e-2), epochs=1)
    assert model.get_layer("conv").kernel.regularizer is None


def test_averaged_weights_keep_the_zeros() -> None:
    model = net()
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    compiled(model, optimizer=optimizer)
    fit(model, GroupLasso(1e-3, final_sparsity=0.5, end_epoch=2, layers="conv"), epochs=3)
    assert record_of(model).steps[0]["layers"] == ["conv"]
    assert len(zero_columns(model.get_layer("conv"))) == 3


@pytest.mark.parametrize("lasso_first", [True, False])
def test_together_with_magnitude_pruning(lasso_first: bool) -> None:
    model = net(True)
    lasso = GroupLasso(1e-3, final_sparsity=0.5, end_epoch=2)
    # New masks while the penalty works, and afterwards.
    pruning = MagnitudePruning(PolynomialDecay(0.8, begin_step=0, end_step=16, frequency=4))
    both = [lasso, pruning] if lasso_first else [pruning, lasso]
    history = fit(model, *both, epochs=5)
    assert history["sparsity"][-1] >= 0.8 - 0.01
    assert "apply" not in vars(model.optimizer)
    for name, dead in (("conv", 3), ("hidden", 6)):
        layer = model.get_layer(name)
        assert len(zero_columns(layer)) >= dead
        assert (layer.kernel.numpy() == 0).mean() == pytest.approx(0.8, abs=0.03)
        assert layer.kernel.constraint is None
    small = finalize(model)
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)
    assert small.get_layer("conv").filters <= 3
    techniques = [step["technique"] for step in record_of(small).steps]
    assert sorted(techniques) == ["finalize", "group_lasso", "magnitude_pruning"]


@pytest.mark.parametrize("norm", [False, True])
def test_together_with_pruning_and_quantization(norm: bool) -> None:
    model = net(norm)
    fit(
        model,
        QuantizationAwareTraining(Int8(), begin_epoch=3),
        GroupLasso(1e-3, final_sparsity=0.5, end_epoch=2),
        MagnitudePruning(ConstantSparsity(0.7, begin_step=10, frequency=1)),
        epochs=4,
    )
    small = finalize(model)
    record = record_of(small)
    assert small.get_layer("conv").filters <= 3
    assert {"input:0", "hidden", "out"} <= set(record.ranges)
    assert {tap for tap in record.ranges if not tap.startswith("input")} <= {
        layer.name for layer in small.layers
    }
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)


def test_what_cannot_be_removed_is_skipped_and_named() -> None:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, name="into_norm")(x)
    x = layers.LayerNormalization(name="ln", scale=False)(x)
    x = layers.Dense(5, name="free")(x)
    x = layers.Dense(5, name="still", trainable=False)(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    model.compile("adam", "mse")
    data = np.ones((4, 4), "float32"), np.ones((4, 2), "float32")
    lasso = GroupLasso(1e-3)
    model.fit(*data, shuffle=False, verbose=0, callbacks=[lasso])
    text = "\n".join(record_of(model).notes)
    assert "skips out: its filters have to stay because they are an output of the model" in text
    assert "skips into_norm: its filters have to stay because 'ln'" in text
    assert "skips still: it is not trainable" in text
    assert list(record_of(model).steps[0]["zero_filters"]) == ["free"]
    with pytest.raises(ArgumentError, match="output of the model"):
        model.fit(*data, shuffle=False, verbose=0, callbacks=[GroupLasso(1e-3, layers=["out"])])
    with pytest.raises(UnknownNameError, match="free"):
        model.fit(*data, shuffle=False, verbose=0, callbacks=[GroupLasso(1e-3, layers=["fre"])])
    with pytest.raises(ArgumentError, match="can be removed"):
        model.fit(
            *data,
            shuffle=False,
            verbose=0,
            callbacks=[GroupLasso(1e-3, layers=lambda x: x.name == "out")],
        )


def test_residual_filters_become_zero_together() -> None:
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 1))
    x = stem = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="in")(x)
    x = layers.Conv2D(6, 3, padding="same", name="out")(x)
    x = layers.GlobalMaxPooling2D()(layers.Add()([stem, x]))
    model = compiled(keras.Model(inputs, layers.Dense(4, name="top")(x)))
    fit(model, GroupLasso(1e-3, final_sparsity=0.5), epochs=2)
    assert zero_columns(model.get_layer("stem")) == zero_columns(model.get_layer("out"))
    small = finalize(model)
    assert [small.get_layer(n).filters for n in ("stem", "in", "out")] == [3, 3, 3]
    np.testing.assert_allclose(small(X), model(X), atol=1e-5)


def test_begin_epoch() -> None:
    history = fit(net(), GroupLasso(1e-2, begin_epoch=2), epochs=4)
    penalties = history["group_lasso_penalty"]
    assert penalties[:2] == [0.0, 0.0]
    assert min(penalties[2:]) > 0
    plain = fit(net(), epochs=4)
    np.testing.assert_allclose(history["loss"][:2], plain["loss"][:2], rtol=1e-6)
    assert history["loss"][2] > plain["loss"][2]
    model = net()
    with pytest.warns(UserWarning, match="will not begin"):
        fit(model, GroupLasso(1e-2, final_sparsity=0.5, begin_epoch=9), epochs=1)
    assert any("never began" in note for note in record_of(model).notes)
    assert zero_columns(model.get_layer("conv")) == []


def test_subclassed_models_are_refused_by_name() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="hidden_graph")
            self.dense = layers.Dense(4)

        def call(self, x: Any) -> Any:
            return self.dense(keras.ops.reshape(x, (-1, 64)))

    with pytest.raises(UnsupportedModelError, match="hidden_graph"):
        fit(compiled(Net()), GroupLasso(1e-3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"strength": 0}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": 1, "threshold": 1}, "threshold"),
        ({"strength": 1, "final_sparsity": 1.0}, "final_sparsity"),
        ({"strength": 1, "begin_epoch": -1}, "begin_epoch"),
        ({"strength": 1, "begin_epoch": 3, "end_epoch": 3}, "end_epoch"),
        ({"strength": 1, "groups": "filter"}, "filters"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        GroupLasso(**arguments)


class OwnStep(keras.Model):
    """A model whose train step leaves the penalties of layers out of its loss."""

    skipped = ""

    def train_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            logits = self(x, training=True)
            loss = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
            loss = keras.ops.mean(loss)
        weights = [
            w for w in self.trainable_variables if not self.skipped or self.skipped not in w.path
        ]
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"own": loss}


class OwnLoss(keras.Model):
    """A model whose loss leaves the penalties of layers out."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        loss = keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        return keras.ops.mean(loss)


def functional(kind: type[keras.Model], norm: bool) -> keras.Model:
    plain = net(norm)
    return compiled(kind(plain.inputs, plain.outputs), optimizer=keras.optimizers.SGD(0.1))


@pytest.fixture(scope="module")
def added() -> tuple[list[np.ndarray], np.ndarray]:
    """The weights where Keras adds the penalty to the loss, and a kernel without any penalty.

    One layer has its normalization, one has none.
    """
    plain, without = functional(keras.Model, True), functional(keras.Model, True)
    fit(plain, GroupLasso(0.05), epochs=2)
    fit(without, epochs=2)
    assert not any("reported loss" in note for note in record_of(plain).notes)
    weights = [weight.numpy() for weight in plain.weights]
    return weights, without.get_layer("conv").kernel.numpy()


@pytest.mark.parametrize("kind", [OwnStep, OwnLoss])
def test_the_penalty_works_where_the_loss_leaves_it_out(
    kind: type[keras.Model], added: tuple[list[np.ndarray], np.ndarray]
) -> None:
    own = functional(kind, True)
    fit(own, GroupLasso(0.05), epochs=2)
    weights, without = added
    for a, b in zip(weights, own.weights, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(own.get_layer("conv").kernel.numpy() - without).max() > 0.01
    assert any("not part of the reported loss" in note for note in record_of(own).notes)


def test_a_train_step_past_the_optimizer_is_refused() -> None:
    model = functional(OwnStep, False)
    model.skipped = "conv"
    with pytest.raises(UnsupportedModelError, match=r"does not update conv through model\.optim"):
        fit(model, GroupLasso(0.05))


def test_finalize_says_that_restored_weights_undid_the_zeros() -> None:
    model = net()
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    fit(model, GroupLasso(0.01, final_sparsity=0.5), stop)
    notes = record_of(finalize(model)).notes
    undone = [note for note in notes if "restore_best_weights" in note]
    assert undone and "set 9 filters to zero, of which 0 still are" in undone[0]


def test_filters_are_compared_by_the_criterion() -> None:
    """Input channel 0 is always 0: the filter that reads it alone is large, and does nothing."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, use_bias=False, name="hidden"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    kernel = np.eye(4, dtype="f4")
    kernel[0, 0] = 5.0
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("f4")
    x[:, 0] = 0.0
    found = {}
    for criterion in ("magnitude", "taylor"):
        model.get_layer("hidden").kernel.assign(kernel)
        model.get_layer("out").kernel.assign(np.ones((4, 1)))
        model.compile(keras.optimizers.SGD(1e-9), "mse")
        lasso = GroupLasso(1e-9, final_sparsity=0.25, layers="hidden", criterion=criterion)
        model.fit(x, np.zeros((64, 1)), epochs=1, shuffle=False, verbose=0, callbacks=[lasso])
        dead = ~model.get_layer("hidden").kernel.numpy().any(axis=0)
        found[criterion] = list(np.flatnonzero(dead))
    assert found["taylor"] == [0]
    assert found["magnitude"] != [0] and len(found["magnitude"]) == 1


def test_a_criterion_that_has_seen_nothing_zeroes_nothing() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="hidden"), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    before = model.get_layer("hidden").kernel.numpy()
    lasso = GroupLasso(1e-9, layers="hidden", end_epoch=1, criterion="taylor")
    with pytest.raises(ArgumentError, match="end_epoch"):
        GroupLasso(1e-9, end_epoch=0, criterion="taylor")
    model.fit(
        np.ones((8, 4)),
        np.ones((8, 1)),
        initial_epoch=1,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[lasso],
    )
    assert np.count_nonzero(model.get_layer("hidden").kernel.numpy()) == before.size
    assert any("has seen no step of training" in note for note in lasso.notes)
