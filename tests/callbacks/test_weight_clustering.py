"""Weight clustering against a numpy training loop, and in every way of running fit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress.callbacks.group_lasso import GroupLasso
from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
from edgecompress.callbacks.weight_clustering import WeightClustering
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.precisions.kmeans import cluster
from edgecompress.schedules import ConstantSparsity
from edgecompress.surgery.finalize import finalize

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 12)).astype("f4")
Y = _RNG.integers(0, 3, 64)


def _model(optimizer: Any = None, **compile_args: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            kl.Dense(20, activation="relu", name="first"),
            kl.Dense(3, name="second"),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **compile_args,
    )
    return model


def _fit(model: keras.Model, callbacks: list[Any], epochs: int = 2, **args: Any) -> dict[str, Any]:
    return model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **args
    ).history


def _kernel(model: keras.Model, name: str = "first") -> np.ndarray:
    return np.array(model.get_layer(name).kernel)


def _values(kernel: np.ndarray) -> int:
    return len(np.unique(kernel[kernel != 0]))


class Train(keras.callbacks.Callback):
    """Keeps the kernels after every epoch, or does something once."""

    def __init__(self, epoch: int = -1, action: Any = None) -> None:
        super().__init__()
        self.epoch, self.action, self.kernels = epoch, action, []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.kernels.append(_kernel(self.model))
        if epoch == self.epoch:
            self.action(self.model)


class TestUpdate:
    @pytest.mark.parametrize(
        ("preserve_zeros", "way"),
        [
            (True, {}),
            (False, {}),
            (False, {"steps_per_execution": 4}),
            (True, {"jit_compile": True}),
        ],
    )
    def test_summed_gradients_by_numpy(self, preserve_zeros: bool, way: dict[str, Any]) -> None:
        """Eight steps of SGD on a linear model: C_k -= rate * sum of dL/dW over the cluster."""
        keras.utils.set_random_seed(2)
        model = keras.Sequential([keras.Input((12,)), kl.Dense(5, use_bias=False, name="first")])
        model.compile(keras.optimizers.SGD(0.02), "mse", **{"jit_compile": False, **way})
        weights = _kernel(model).copy()
        weights[np.abs(weights) < 0.1] = 0
        model.get_layer("first").kernel.assign(weights)
        targets = _RNG.normal(size=(64, 5)).astype("f4")

        found = cluster(weights, 4, preserve_zeros=preserve_zeros)
        values = found.centroids.copy()
        for step in range(8):
            batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
            full = np.where(found.labels < 0, 0.0, values[found.labels])
            errors = X[batch] @ full - targets[batch]
            gradient = 2 * X[batch].T @ errors / errors.size
            for k in range(len(values)):
                values[k] -= 0.02 * gradient[found.labels == k].sum()

        model.fit(
            X, targets, batch_size=16, epochs=2, shuffle=False, verbose=0,
            callbacks=[WeightClustering(4, preserve_zeros=preserve_zeros)],
        )  # fmt: skip
        want = np.where(found.labels < 0, 0.0, values[found.labels])
        np.testing.assert_allclose(_kernel(model), want, rtol=1e-4, atol=1e-6)
        mean = np.where(found.labels < 0, 0.0, found.centroids[found.labels])
        assert np.abs(want - mean).max() > 1e-2  # The values did move.

    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "lion"])
    def test_states_from_before_do_not_part_the_members(self, optimizer: str) -> None:
        model = _model(optimizer)
        watch = Train()
        callback = WeightClustering(6, begin_epoch=2)
        history = _fit(model, [callback, watch], epochs=4)
        assert _values(watch.kernels[1]) == 240
        labels = [np.unique(k, return_inverse=True)[1].ravel() for k in watch.kernels[2:]]
        assert _values(watch.kernels[2]) == _values(watch.kernels[3]) == 6
        # The same members, whatever the order of the values is now.
        assert len(set(zip(*labels, strict=True))) == 6
        assert np.abs(watch.kernels[2] - watch.kernels[3]).max() > 0
        assert history["clusters"] == [240.0, 240.0, 6.0, 6.0]
        assert history["clusters/second"][-1] == 6
        assert history["clustering_error"][:2] == [0, 0]
        assert 0 < history["clustering_error"][2] == history["clustering_error"][3] < 0.5

    def test_every_way_of_running_gives_the_same_weights(self) -> None:
        kernels = []
        # Each alone: above, by numpy.
        for way in ({}, {"steps_per_execution": 3, "jit_compile": True}):
            model = _model(**{"jit_compile": False, **way})
            _fit(model, [WeightClustering(8)])
            kernels.append(_kernel(model))
        np.testing.assert_allclose(kernels[1], kernels[0], rtol=1e-4, atol=1e-6)

    def test_mixed_precision_accumulation_and_averaged_weights(self) -> None:
        scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
        accumulated = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
        averaged = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
        for optimizer in (scaled, accumulated, averaged):
            model = _model(optimizer)
            callback = WeightClustering(5, begin_epoch=1)
            _fit(model, [callback], epochs=3)
            assert _values(_kernel(model)) == _values(_kernel(model, "second")) == 5
        assert "averaged" in " ".join(record_of(model).notes)

    def test_convolutions_and_embeddings(self) -> None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                kl.Embedding(10, 4, name="table"),
                kl.Conv1D(6, 3, name="conv"),
                kl.DepthwiseConv1D(2, name="depth"),
                kl.Flatten(),
                kl.Dense(2, name="head"),
            ]
        )
        model.compile("sgd", "mse")
        tokens = _RNG.integers(0, 10, (32, 6))
        targets = _RNG.normal(size=(32, 2)).astype("f4")
        before = np.asarray(model.get_layer("table").embeddings)
        model.fit(tokens, targets, shuffle=False, verbose=0, callbacks=[WeightClustering(4)])
        table = np.asarray(model.get_layer("table").embeddings)
        assert _values(table) == 4 and np.abs(table - before).max() > 0
        assert _values(_kernel(model, "conv")) == 4
        assert _values(_kernel(model, "depth")) > 4
        assert "depth is not clustered" in " ".join(record_of(model).notes)


class TestZeros:
    def test_pruned_in_an_earlier_fit(self) -> None:
        model = _model()
        _fit(model, [MagnitudePruning(ConstantSparsity(0.6, 0, frequency=4))])
        zeros = _kernel(model) == 0
        assert zeros.mean() == 0.6
        _fit(model, [WeightClustering(4)])
        np.testing.assert_array_equal(_kernel(model) == 0, zeros)
        assert _values(_kernel(model)) == 4

    @pytest.mark.parametrize("swap", [False, True])
    @pytest.mark.parametrize("begin_epoch", [0, 2])
    def test_pruned_in_the_same_fit(self, swap: bool, begin_epoch: int) -> None:
        model = _model()
        callbacks = [
            MagnitudePruning(ConstantSparsity(0.6, 4, frequency=4)),
            WeightClustering(8, begin_epoch=begin_epoch),
        ]
        watch = Train()
        history = _fit(model, [*(callbacks[::-1] if swap else callbacks), watch], epochs=4)
        zeros = [(kernel == 0).mean() for kernel in watch.kernels]
        assert zeros == sorted(zeros)
        assert 0 < _values(_kernel(model)) <= 8
        if begin_epoch:
            assert history["sparsity"][-1] == pytest.approx(0.6)
            assert _values(_kernel(model)) == 8
        assert {s["technique"] for s in record_of(model).steps} == {
            "magnitude_pruning",
            "weight_clustering",
        }

    def test_zeros_that_may_move_are_refused_beside_pruning(self) -> None:
        pruning = MagnitudePruning(ConstantSparsity(0.5, frequency=2))
        with pytest.raises(ArgumentError, match=r"`preserve_zeros` must be True.*first"):
            _fit(_model(), [pruning, WeightClustering(4, preserve_zeros=False)])

    def test_filters_that_group_lasso_silences_stay_silent(self) -> None:
        model = _model()
        lasso = GroupLasso(1e-3, final_sparsity=0.5, end_epoch=1, layers=["first"])
        _fit(model, [WeightClustering(4), lasso], epochs=3)
        assert (np.abs(_kernel(model)).sum(0) == 0).sum() == 10
        assert 0 < _values(_kernel(model)) <= 4

    def test_a_kernel_of_zeros_is_named(self) -> None:
        model = _model()
        model.get_layer("second").kernel.assign(np.zeros((20, 3)))
        _fit(model, [WeightClustering(4)])
        assert not _kernel(model, "second").any()
        assert "second holds only zeros, which stay as they are." in record_of(model).notes


class TestSeveralFits:
    def test_a_second_fit_goes_on_with_what_it_finds(self) -> None:
        model = _model()
        _fit(model, [WeightClustering(5, begin_epoch=1)])
        labels = np.unique(_kernel(model), return_inverse=True)[1]
        watch = Train()
        history = _fit(model, [WeightClustering(5, begin_epoch=1), watch])
        assert history["clusters"] == [5.0, 5.0]  # Not pulled apart until begin_epoch.
        again = np.unique(watch.kernels[-1], return_inverse=True)[1]
        assert len(set(zip(labels.ravel(), again.ravel(), strict=True))) == 5
        assert len(record_of(model).steps) == 1

    def test_saved_in_the_middle_and_loaded_or_backed_up_and_restored(self, tmp_path: Path) -> None:
        def keep(model: Any) -> None:
            # What is there if the power is cut now; a finished fit removes it.
            shutil.copytree(tmp_path / "running", tmp_path / "backup")

        callback = WeightClustering(5, begin_epoch=1)
        save = Train(1, lambda m: m.save(tmp_path / "model.keras"))
        running = keras.callbacks.BackupAndRestore(tmp_path / "running")
        whole = _model()
        _fit(whole, [callback, running, save, Train(2, keep)], epochs=4)
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        _fit(loaded, [WeightClustering(5, begin_epoch=1)], epochs=4, initial_epoch=2)
        np.testing.assert_allclose(_kernel(loaded), _kernel(whole), rtol=1e-4, atol=1e-6)
        restored = _model()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        history = _fit(restored, [WeightClustering(5, begin_epoch=1), backup], epochs=4)
        assert len(history["loss"]) == 1
        np.testing.assert_allclose(_kernel(restored), _kernel(whole), rtol=1e-3, atol=1e-5)

    def test_restored_best_weights_are_clustered_anew(self) -> None:
        model = _model()
        dense = _kernel(model).copy()
        restore = Train()
        restore.on_train_end = lambda logs=None: model.get_layer("first").kernel.assign(dense)
        _fit(model, [restore, WeightClustering(5)])
        assert _values(_kernel(model)) == 5
        assert np.abs(_kernel(model) - dense).max() < 0.3
        assert "first was assigned again" in " ".join(record_of(model).notes)

    def test_never_active_is_named(self) -> None:
        model = _model()
        _fit(model, [WeightClustering(4, begin_epoch=9)])
        (step,) = record_of(model).steps
        assert step["codebooks"] == {}
        assert "never active: begin_epoch is 9" in record_of(model).notes[0]


class TestOthers:
    def test_record_holds_the_codebooks_finalize_keeps_the_values_and_training_parts_them(
        self,
    ) -> None:
        model = _model()
        _fit(model, [WeightClustering({"first": 4})])
        (step,) = record_of(model).steps
        assert step["clusters"] == {"first": 4} and step["layers"] == ["first"]
        kernel = _kernel(model)
        np.testing.assert_array_equal(step["codebooks"]["first"], np.unique(kernel))
        assert step["unique_values"] == {"first": 4}
        assert 0 < step["clustering_error"] < 0.5
        np.testing.assert_array_equal(_kernel(finalize(model)), kernel)
        _fit(model, [])  # Without the callback the values part.
        assert _values(_kernel(model)) > 100

    @pytest.mark.parametrize("swap", [False, True])
    def test_int8_files_keep_few_values_in_a_kernel(self, swap: bool) -> None:
        from edgecompress.converters import float32, int8
        from edgecompress.flatbuffers.reading import read_tflite

        model = _model()
        callbacks = [WeightClustering(4), QuantizationAwareTraining()]
        _fit(model, callbacks[::-1] if swap else callbacks)
        assert _values(_kernel(model)) == 4
        artifact = int8.convert(float32.convert(model), ranges=record_of(model).ranges)
        flat = read_tflite(artifact.data)
        weights = [flat.tensor(operator, 1) for operator in flat.operators]
        kernels = [w for w in weights if w is not None and w.type == "INT8" and len(w.shape) == 2]
        assert len(kernels) == 2
        for tensor in kernels:
            assert len(np.unique(tensor.values())) <= 4
        # One scale: with one for each channel, 4 values would become many codes.
        assert len(kernels[0].scales) == 1

    def test_two_on_one_layer_are_refused_and_on_two_layers_allowed(self) -> None:
        with pytest.raises(ArgumentError, match="another callback of this fit.*first"):
            _fit(_model(), [WeightClustering(4), WeightClustering({"first": 4})])
        model = _model()
        _fit(model, [WeightClustering({"second": 3}), WeightClustering({"first": 6})])
        assert (_values(_kernel(model)), _values(_kernel(model, "second"))) == (6, 3)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"clusters": 1}, "`clusters` must be a whole number, 2 or more. Got 1."),
            ({"clusters": True}, "`clusters` must be a whole number"),
            ({"clusters": {"first": 2.5}}, "`clusters['first']` must be a whole number"),
            ({"clusters": {}}, "`clusters` must name at least one layer"),
            ({"preserve_zeros": 1}, "`preserve_zeros` must be True or False"),
            ({"begin_epoch": -1}, "`begin_epoch` must be a whole number, 0 or more"),
            ({"seed": 0.5}, "`seed` must be a whole number"),
        ],
    )
    def test_mistakes_are_named(self, arguments: dict[str, Any], text: str) -> None:
        with pytest.raises(ArgumentError, match=re.escape(text)):
            WeightClustering(**arguments)

    def test_names_are_checked(self) -> None:
        with pytest.raises(UnknownNameError, match="k-means"):
            WeightClustering(initialization="kmeans")
        with pytest.raises(UnknownNameError, match="first"):
            _fit(_model(), [WeightClustering({"frist": 4})])
        with pytest.raises(ArgumentError, match="name every layer of `layers`, second too"):
            _fit(_model(), [WeightClustering({"first": 4}, layers=["first", "second"])])

    def test_frozen_layers_are_left_and_named(self) -> None:
        model = _model()
        model.get_layer("first").trainable = False
        model.compile("adam", model.loss)
        before = _kernel(model)
        _fit(model, [WeightClustering(4)])
        np.testing.assert_array_equal(_kernel(model), before)
        assert record_of(model).notes[0].startswith("first is not clustered: it is frozen")
