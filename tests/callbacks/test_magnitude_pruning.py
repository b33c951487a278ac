"""Magnitude pruning against numpy, and in every way of running fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from edgecompress.callbacks.group_lasso import GroupLasso
from edgecompress.callbacks.hooks import rebuild_train_function
from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.record import CompressionRecord, record_of, sidecar_path
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.patterns.blocks import Blocks
from edgecompress.patterns.weights import Weights
from edgecompress.schedules import ConstantSparsity, PolynomialDecay

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(128, 12)).astype("f4")
Y = _RNG.integers(0, 3, 128)
STEPS = 8  # a fit of one epoch at batch size 16
TO_80 = PolynomialDecay(0.8, begin_step=0, end_step=24, frequency=4)
TO_80_SPARSITY = (round(0.8 * 240) + round(0.8 * 60)) / 300


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
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **compile_args,
    )
    return model


def _fit(model: keras.Model, callbacks: list[Any], epochs: int = 4, **args: Any) -> dict[str, Any]:
    return model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **args
    ).history


def _zeros(model: keras.Model, *names: str) -> float:
    kernels = [model.get_layer(n).kernel.numpy().ravel() for n in names or ("first", "second")]
    return float(np.mean(np.concatenate(kernels) == 0))


@dataclass(frozen=True)
class Trained:
    """A training that nothing interrupts, as it was before the model trained on."""

    history: dict[str, Any]
    record: CompressionRecord
    kernels: dict[str, np.ndarray]
    outputs: np.ndarray
    optimizer: tuple[str, ...]  # What it holds: names of attributes and variables.
    folder: Path  # Holds the model, and checkpoints by epoch.
    held: np.ndarray  # The kernel of `first` after an epoch more with the callback,
    grown: float  # and the share of zeros after one more without.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("whole")
    model = _model()
    checkpoint = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
    history = _fit(model, [MagnitudePruning(TO_80), checkpoint])
    model.save(folder / "model.keras")
    record, outputs = record_of(model), np.array(model(X))
    kernels = {name: model.get_layer(name).kernel.numpy() for name in ("first", "second")}
    optimizer = (*vars(model.optimizer), *(v.name for v in model.optimizer.variables))
    _fit(model, [MagnitudePruning(TO_80)], epochs=1)
    held = model.get_layer("first").kernel.numpy()
    _fit(model, [], epochs=1)
    return Trained(history, record, kernels, outputs, optimizer, folder, held, _zeros(model))


def _many(**compile_args: Any) -> keras.Model:
    """Layers for three callbacks: with a threshold of their own, with one for all, with blocks."""
    keras.utils.set_random_seed(1)
    sizes = {"own": 20, "all": 12, "blocks": 8, "own_too": 16}
    hidden = [kl.Dense(size, activation="relu", name=name) for name, size in sizes.items()]
    model = keras.Sequential([keras.Input((12,)), *hidden, kl.Dense(3, name="all_too")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, **compile_args)
    return model


def _prune_many(model: keras.Model) -> dict[str, Any]:
    return _fit(
        model,
        [
            MagnitudePruning(TO_80, layers=["own", "own_too"]),
            MagnitudePruning(TO_80, layers=["all", "all_too"], scope="global"),
            MagnitudePruning(TO_80, layers=["blocks"], block_size=(4, 1)),
        ],
    )


@pytest.fixture(scope="module")
def many() -> dict[str, Any]:
    return _prune_many(_many(jit_compile=False))


def magnitude_masks(kernels: list[Any], sparsity: float) -> list[Any]:
    scores = [Magnitude().score(kernel, {}) for kernel in kernels]
    return Weights().masks(scores, sparsity, [KernelShape(tuple(k.shape)) for k in kernels])


def block_magnitudes(kernel: Any, block_size: tuple[int, int]) -> Any:
    return Blocks(*block_size).units(Magnitude().score(kernel, {}), KernelShape(kernel.shape))


class TestMasks:
    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.999])
    @pytest.mark.parametrize("shape", [(7,), (3, 3, 4, 5), (40, 30)])
    def test_k_th_largest_by_numpy(self, sparsity: float, shape: tuple[int, ...]) -> None:
        kernel = _RNG.normal(size=shape).astype("f4")
        size = np.float32(kernel.size)
        kept = int(max(np.round(size * (np.float32(1) - np.float32(sparsity))), 1))
        threshold = np.sort(np.abs(kernel).ravel())[-kept]
        mask = ops.convert_to_numpy(magnitude_masks([kernel], sparsity)[0])
        np.testing.assert_array_equal(mask, np.abs(kernel) >= threshold)
        assert mask.sum() == kept

    def test_equal_magnitudes_all_stay(self) -> None:
        mask = magnitude_masks([np.array([0.5, -0.5, 0.5, 0.1], "f4")], 0.5)[0]
        np.testing.assert_array_equal(mask, [True, True, True, False])

    def test_tiny_and_huge_magnitudes(self) -> None:
        # Down to the smallest subnormal: the order of bit patterns is the order of magnitudes.
        kernel = np.array([0.0, 1e-45, -1e-38, 1e-20, -3e38], "f4")
        for kept in range(1, 6):
            mask = magnitude_masks([kernel], 1 - kept / 5)[0]
            np.testing.assert_array_equal(mask, np.arange(5) >= 5 - kept)

    def test_global_threshold_by_numpy(self) -> None:
        kernels = [_RNG.normal(size=(9, 9)).astype("f4"), 3 * _RNG.normal(size=50).astype("f4")]
        everything = np.abs(np.concatenate([k.ravel() for k in kernels]))
        threshold = np.sort(everything)[-round(0.3 * everything.size)]
        masks = magnitude_masks(kernels, 0.7)
        for kernel, mask in zip(kernels, masks, strict=True):
            np.testing.assert_array_equal(mask, np.abs(kernel) >= threshold)

    def test_global_threshold_leaves_every_layer_its_largest_weight(self) -> None:
        small, large = np.array([1e-3, -2e-3], "f4"), np.arange(1, 9, dtype="f4")
        masks = magnitude_masks([small, large], 0.5)
        np.testing.assert_array_equal(masks[0], [False, True])
        np.testing.assert_array_equal(masks[1], large >= 4)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_other_float_types(self, dtype: str) -> None:
        kernel = ops.cast(np.array([0.1, -0.4, 0.3, 0.2], "f4"), dtype)
        np.testing.assert_array_equal(magnitude_masks([kernel], 0.5)[0], [False, True, True, False])


class TestFit:
    def test_reaches_the_schedule_and_says_so(self, whole: Trained) -> None:
        history = whole.history
        assert history["sparsity"][-1] == pytest.approx(TO_80_SPARSITY)
        assert history["sparsity/first"][-1] == pytest.approx(0.8)
        assert history["sparsity"] == sorted(history["sparsity"])
        zeros = np.concatenate([kernel.ravel() == 0 for kernel in whole.kernels.values()])
        assert zeros.mean() == pytest.approx(TO_80_SPARSITY)
        assert whole.record.notes == ()
        (step,) = whole.record.steps
        assert step["technique"] == "magnitude_pruning"
        assert step["schedule"] == {"name": "polynomial_decay", "config": TO_80.get_config()}
        assert step["scope"] == "layer"
        assert step["sparsity"] == pytest.approx(TO_80_SPARSITY)
        assert step["layer_sparsity"] == pytest.approx({"first": 0.8, "second": 0.8})
        assert step["optimizer_steps"] == 4 * STEPS

    @pytest.mark.parametrize(
        "compile_args",
        [
            {"steps_per_execution": 4},
            {"steps_per_execution": 3},
            {"jit_compile": True},
            {"run_eagerly": True},
        ],
        ids=str,
    )
    def test_losses_do_not_depend_on_how_steps_run(
        self, many: dict[str, Any], compile_args: dict[str, Any]
    ) -> None:
        got = _prune_many(_many(**compile_args))
        np.testing.assert_allclose(got["loss"], many["loss"], rtol=1e-5)
        layers = [name for name in many if name.startswith("sparsity/")]
        assert len(layers) == 5
        for name in layers:
            assert got[name] == many[name]
        for name in ("own", "blocks"):
            assert got[f"sparsity/{name}"][-1] == pytest.approx(0.8, abs=0.01)

    def test_constant_sparsity_of_each_layer(self) -> None:
        model = _model()
        start = model.get_layer("first").kernel.numpy()
        pruning = MagnitudePruning(ConstantSparsity(0.4, begin_step=1), layers=["second"])
        half = ConstantSparsity(0.5, begin_step=1, end_step=1)
        _fit(model, [MagnitudePruning(half, layers=["first"]), pruning], epochs=2)
        kernel = model.get_layer("first").kernel.numpy()
        # The mask acts before the first step, and zeros stay zero between updates.
        kept = np.abs(start) >= np.sort(np.abs(start).ravel())[start.size // 2]
        np.testing.assert_array_equal(kernel != 0, kept)
        assert np.mean(kernel == 0) == 0.5
        assert not np.signbit(kernel[kernel == 0]).any()  # -0.0 would not compress.
        # The other update, at the first step too, is that of another callback.
        assert _zeros(model, "second") == pytest.approx(0.4)
        assert pruning.notes == ()
        assert len(record_of(model).steps) == 2

    def test_global_scope_prunes_the_layer_with_small_weights_more(self) -> None:
        model = _model()
        model.get_layer("first").kernel.assign(0.1 * model.get_layer("first").kernel)
        history = _fit(
            model, [MagnitudePruning(ConstantSparsity(0.6, frequency=4), scope="global")], epochs=1
        )
        assert history["sparsity"][-1] == pytest.approx(0.6, abs=0.002)
        assert history["sparsity/first"][-1] > 0.65 > 0.5 > history["sparsity/second"][-1]

    def test_model_is_plain_afterwards(self, whole: Trained) -> None:
        assert "apply" not in whole.optimizer
        assert not [name for name in whole.optimizer if "mask" in name]
        assert sidecar_path(whole.folder / "model.keras").exists()
        loaded = keras.models.load_model(whole.folder / "model.keras")
        assert type(loaded.get_layer("first")) is kl.Dense
        assert loaded.get_layer("first").kernel.constraint is None
        for name, kernel in whole.kernels.items():
            np.testing.assert_array_equal(loaded.get_layer(name).kernel, kernel)
        np.testing.assert_array_equal(loaded(X), whole.outputs)

    def test_zeros_grow_back_without_the_callback(self, whole: Trained) -> None:
        assert whole.grown < 0.7

    def test_user_constraint_is_kept_and_weight_decay_moves_no_zero(self) -> None:
        inputs = keras.Input((12,))
        hidden = kl.Dense(20, name="first", kernel_constraint=keras.constraints.MaxNorm(0.5))(
            inputs
        )
        model = keras.Model(inputs, kl.Dense(3, name="second")(hidden))
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-3)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        _fit(model, [MagnitudePruning(TO_80)])
        kernel = model.get_layer("first").kernel
        assert kernel.constraint is model.get_layer("first").kernel_constraint
        assert np.linalg.norm(kernel.numpy(), axis=0).max() <= 0.5001
        assert _zeros(model) == pytest.approx(TO_80_SPARSITY)

    @pytest.mark.parametrize("every", [None, 3])
    def test_exponential_moving_average(self, every: int | None) -> None:
        optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=every)
        model = _model(optimizer)
        _fit(model, [MagnitudePruning(TO_80)])
        assert _zeros(model) == pytest.approx(TO_80_SPARSITY)
        assert record_of(model).steps[0]["sparsity"] == pytest.approx(TO_80_SPARSITY)

    def test_loss_scaling(self, whole: Trained) -> None:
        scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9))
        history = _fit(_model(scaled), [MagnitudePruning(TO_80)])
        assert history["sparsity"] == whole.history["sparsity"]
        np.testing.assert_allclose(history["loss"], whole.history["loss"], rtol=1e-3)

    def test_mixed_precision(self) -> None:
        keras.mixed_precision.set_global_policy("mixed_float16")
        try:
            model = _model()
            history = _fit(model, [MagnitudePruning(TO_80)])
        finally:
            keras.mixed_precision.set_global_policy("float32")
        assert model.get_layer("first").compute_dtype == "float16"
        assert _zeros(model) == pytest.approx(TO_80_SPARSITY)
        assert np.isfinite(history["loss"]).all()

    def test_gradient_accumulation_counts_updates(self) -> None:
        model = _model(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2))
        schedule = PolynomialDecay(0.8, begin_step=0, end_step=12, frequency=4)
        history = _fit(model, [MagnitudePruning(schedule)])
        # Update 4, the first, comes before forward pass 4 of 2 batches each: in epoch 1.
        expected = [schedule(4), schedule(8), schedule(12), schedule(12)]
        np.testing.assert_allclose(history["sparsity"], expected, atol=0.01)
        assert record_of(model).steps[0]["optimizer_steps"] == 16

    def test_two_mirrored_devices(self, run_python: Callable[..., Any]) -> None:
        done = run_python(["-c", _MIRRORED])
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == "0.8 0.8 2"


_MIRRORED = """
import keras, numpy as np, tensorflow as tf
from edgecompress import MagnitudePruning, PolynomialDecay
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
with strategy.scope():
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    model.compile("adam", "mse", steps_per_execution=2)
x = np.random.default_rng(0).normal(size=(64, 10)).astype("f4")
schedule = PolynomialDecay(0.8, begin_step=0, end_step=12, frequency=4)
history = model.fit(
    x, x, batch_size=16, epochs=4, verbose=0, callbacks=[MagnitudePruning(schedule)]).history
copies = model.layers[0].kernel.value.values
zeros = np.mean([copy.numpy() == 0 for copy in copies])
np.testing.assert_array_equal(copies[0].numpy(), copies[1].numpy())
print(history["sparsity"][-1], round(float(zeros), 6), len(copies))
"""


class TestContinuing:
    """Whatever interrupts a training, the losses equal those of the uninterrupted one."""

    @pytest.mark.parametrize("same_callback", [True, False])
    def test_second_fit_interrupted_and_third_fit(
        self, whole: Trained, same_callback: bool
    ) -> None:
        losses: list[float] = []

        def stop(epoch: int, logs: dict[str, float]) -> None:
            losses.append(logs["loss"])
            raise KeyboardInterrupt

        def again() -> MagnitudePruning:
            return pruning if same_callback else MagnitudePruning(TO_80)

        model, pruning = _model(), MagnitudePruning(TO_80)
        losses += _fit(model, [pruning], epochs=1)["loss"]
        assert "training ended at step 8" in record_of(model).notes[0]
        with pytest.raises(KeyboardInterrupt):
            _fit(model, [again(), keras.callbacks.LambdaCallback(on_epoch_end=stop)])
        third = _fit(model, [again()], epochs=2)
        np.testing.assert_allclose([*losses, *third["loss"]], whole.history["loss"], rtol=1e-6)
        assert third["sparsity"] == whole.history["sparsity"][2:]
        assert len(record_of(model).steps) == 1
        assert record_of(model).steps[0]["sparsity"] == whole.history["sparsity"][-1]
        if same_callback:
            assert record_of(model).notes == ()
        assert "apply" not in vars(model.optimizer)
        assert not [v.name for v in model.optimizer.variables if "mask" in v.name]

    @pytest.mark.parametrize("stopped_at", [1, 2])
    def test_checkpoint_of_a_running_fit_and_load_model(
        self, whole: Trained, stopped_at: int
    ) -> None:
        loaded = keras.models.load_model(whole.folder / f"{stopped_at}.keras")
        assert int(loaded.optimizer.iterations) == stopped_at * STEPS
        history = _fit(loaded, [MagnitudePruning(TO_80)], epochs=4, initial_epoch=stopped_at)
        np.testing.assert_allclose(history["loss"], whole.history["loss"][stopped_at:], rtol=1e-6)
        assert history["sparsity"] == whole.history["sparsity"][stopped_at:]

    @pytest.mark.parametrize("pruning_first", [True, False])
    def test_backup_and_restore_after_a_kill(
        self, whole: Trained, tmp_path: Path, pruning_first: bool
    ) -> None:
        def kill(epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

        def callbacks() -> list[Any]:
            both = [MagnitudePruning(TO_80), keras.callbacks.BackupAndRestore(tmp_path / "b")]
            return both if pruning_first else both[::-1]

        with pytest.raises(KeyboardInterrupt):
            killer = keras.callbacks.LambdaCallback(on_epoch_begin=kill)
            _fit(_model(), [*callbacks(), killer])
        history = _fit(_model(), callbacks())
        np.testing.assert_allclose(history["loss"], whole.history["loss"][2:], rtol=1e-6)
        assert history["sparsity"] == whole.history["sparsity"][2:]

    def test_finished_schedule_holds_its_masks(self, whole: Trained) -> None:
        np.testing.assert_array_equal(whole.held != 0, whole.kernels["first"] != 0)
        assert not np.array_equal(whole.held, whole.kernels["first"])

    def _at_step(self, step: int) -> keras.Model:
        """Returns a model that has trained without the callback, as far as its optimizer knows."""
        model = _model()
        model.optimizer.iterations.assign(step)
        return model

    def test_schedule_that_is_over_before_training_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match="optimizer is at step 32.*Compile the model again"):
            _fit(self._at_step(32), [MagnitudePruning(TO_80)])

    def test_start_in_the_middle_of_a_schedule_is_said(self) -> None:
        model = self._at_step(16)
        with pytest.warns(UserWarning, match="optimizer is at step 16"):
            _fit(model, [MagnitudePruning(TO_80)], epochs=2)
        assert "in the middle of its schedule" in record_of(model).notes[0]
        assert _zeros(model) == pytest.approx(TO_80_SPARSITY)

    def test_constant_schedule_may_start_at_any_step(self) -> None:
        model = self._at_step(16)
        _fit(model, [MagnitudePruning(ConstantSparsity(0.5, frequency=5))], epochs=1)
        assert _zeros(model) == 0.5


class TestLayers:
    def _conv_model(self) -> keras.Model:
        inputs = keras.Input((8, 8, 2))
        x = kl.Conv2D(6, 3, name="conv")(inputs)
        x = kl.BatchNormalization(name="norm")(x)
        x = kl.DepthwiseConv2D(3, name="depthwise")(x)
        x = kl.SeparableConv2D(8, 3, name="separable")(x)
        x = kl.Conv2DTranspose(4, 2, name="transpose")(x)
        model = keras.Model(inputs, kl.Dense(3, name="fc")(kl.Flatten()(x)))
        model.compile("sgd", "mse")
        return model

    def _prune(self, model: keras.Model, *choices: Any) -> None:
        schedule = ConstantSparsity(0.5, frequency=1)
        shape = (8, *model.input_shape[1:])
        targets = np.zeros((8, *model.output_shape[1:]), "f4")
        callbacks = [MagnitudePruning(schedule, layers) for layers in choices or (None,)]
        model.fit(
            np.ones(shape, "f4"), targets, epochs=1, shuffle=False, verbose=0, callbacks=callbacks
        )

    def _sparsity(self, model: keras.Model, layer: str, attribute: str = "kernel") -> float:
        return float(np.mean(getattr(model.get_layer(layer), attribute).numpy() == 0))

    def test_default_layers_are_those_of_tfmot(self) -> None:
        model = self._conv_model()
        self._prune(model)
        (step,) = record_of(model).steps
        assert step["layers"] == ["conv", "separable", "transpose", "fc"]
        assert self._sparsity(model, "separable", "pointwise_kernel") == 0.5
        assert self._sparsity(model, "separable", "depthwise_kernel") == 0
        assert self._sparsity(model, "depthwise") == 0
        assert record_of(model).notes == (
            "depthwise is not pruned: DepthwiseConv2D layers are pruned only if named.",
        )

    def test_names_and_predicates(self) -> None:
        model = self._conv_model()
        self._prune(model, ["depthwise"], lambda layer: "conv" in layer.name)
        assert [step["layers"] for step in record_of(model).steps] == [["depthwise"], ["conv"]]
        assert self._sparsity(model, "depthwise") == pytest.approx(0.5, abs=0.02)
        assert self._sparsity(model, "conv") == pytest.approx(0.5, abs=0.02)
        for left in ("transpose", "fc"):
            assert self._sparsity(model, left) == 0
        assert self._sparsity(model, "separable", "pointwise_kernel") == 0

    def test_embedding_and_recurrent_layers(self) -> None:
        model = keras.Sequential(
            [keras.Input((4,)), kl.Embedding(10, 4, name="table"), kl.LSTM(3, name="lstm")]
        )
        model.compile("sgd", "mse")
        self._prune(model)
        assert self._sparsity(model, "table", "embeddings") == 0.5
        assert record_of(model).notes == ("lstm is not pruned: LSTM layers cannot be pruned.",)

    def test_frozen_layer_is_left_and_named(self) -> None:
        model = _model()
        model.get_layer("first").trainable = False
        model.compile("sgd", model.loss)
        _fit(model, [MagnitudePruning(ConstantSparsity(0.5, frequency=1))], epochs=1)
        assert (_zeros(model, "first"), _zeros(model, "second")) == (0, 0.5)
        assert record_of(model).notes == ("first is not pruned: it is frozen (trainable=False).",)

    def test_nested_models_names_used_twice_and_shared_layers(self) -> None:
        def branch(name: str) -> keras.Model:
            return keras.Sequential([keras.Input((12,)), kl.Dense(12, name="same")], name=name)

        inputs = keras.Input((12,))
        shared = kl.Dense(12, name="shared")
        hidden = shared(shared(branch("right")(branch("left")(inputs))))
        model = keras.Model(inputs, kl.Dense(3, name="second")(hidden))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = _fit(model, [MagnitudePruning(TO_80)])
        (step,) = record_of(model).steps
        assert len(step["layer_sparsity"]) == len(step["layers"]) == 4
        assert step["layers"].count("shared") == 1
        for nested in ("left", "right"):
            kernel = model.get_layer(nested).get_layer("same").kernel.numpy()
            assert np.mean(kernel == 0) == pytest.approx(0.8, abs=0.01)
        assert _zeros(model, "shared") == pytest.approx(0.8, abs=0.01)
        assert history["sparsity/second"][-1] == pytest.approx(0.8, abs=0.02)

    def test_layer_without_gradient_is_pruned_too(self) -> None:
        inputs = keras.Input((12,))
        used, unused = kl.Dense(3, name="used")(inputs), kl.Dense(10, name="unused")(inputs)
        model = keras.Model(inputs, {"a": used, "b": unused})
        model.compile("sgd", {"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True)})
        pruning = MagnitudePruning(TO_80, scope="global")
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            model.fit(
                X, {"a": Y}, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=[pruning]
            )
        assert _zeros(model, "used", "unused") == pytest.approx(0.8, abs=0.01)

    def test_two_prunings_of_one_layer_are_refused(self) -> None:
        with pytest.raises(ArgumentError, match="another callback of this fit.*'second'"):
            _fit(
                _model(),
                [MagnitudePruning(TO_80, layers=["second"]), MagnitudePruning(TO_80, ["second"])],
            )


class TestNotes:
    def test_end_step_beyond_training_and_frequency_that_skips_the_end(self) -> None:
        model = _model()
        beyond = PolynomialDecay(0.8, begin_step=0, end_step=1000, frequency=4)
        skips = PolynomialDecay(0.8, begin_step=0, end_step=20, frequency=13, power=1)
        callbacks = [MagnitudePruning(beyond, ["first"]), MagnitudePruning(skips, ["second"])]
        _fit(model, callbacks, epochs=3)
        (first,), (second,) = (callback.notes for callback in callbacks)
        assert record_of(model).notes == (first, second)
        assert "below the schedule's 0.800: training ended at step 24" in first
        assert "frequency 13 puts the last mask update at step 13" in second

    def test_no_update_at_all(self) -> None:
        model, pruning = _model(), MagnitudePruning(ConstantSparsity(0.5))
        with pytest.warns(
            UserWarning, match="has 8 steps, and the masks are first computed at step 100"
        ):
            _fit(model, [pruning], epochs=1)
        (note,) = record_of(model).notes
        assert "Sparsity is 0.000, below the schedule's 0.500: training ended at step 8" in note
        assert "before the first mask update at step 100 (frequency 100)" in note


class TestBlocks:
    @pytest.mark.parametrize("block_size", [(4, 1), (1, 5), (2, 3), (12, 1)])
    def test_mean_magnitude_of_blocks_by_numpy(self, block_size: tuple[int, int]) -> None:
        kernel = _RNG.normal(size=(12, 15)).astype("f4")
        height, width = block_size
        blocks = [
            [np.abs(kernel[i : i + height, j : j + width]).mean() for j in range(0, 15, width)]
            for i in range(0, 12, height)
        ]
        found = ops.convert_to_numpy(block_magnitudes(kernel, block_size))
        np.testing.assert_allclose(found, blocks, rtol=1e-6)

    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 0.99])
    def test_whole_blocks_of_smallest_mean_go(self, sparsity: float) -> None:
        kernel = _RNG.normal(size=(12, 20)).astype("f4")
        shape = KernelShape(kernel.shape)
        (mask,) = Blocks(4, 1).masks([Magnitude().score(kernel, {})], sparsity, [shape])
        means = np.abs(kernel).reshape(3, 4, 20).mean(1)
        kept = means >= np.sort(means.ravel())[-max(round(60 * (1 - sparsity)), 1)]
        np.testing.assert_array_equal(mask, np.repeat(kept, 4, axis=0))

    def test_fit_prunes_blocks_by_layer_and_by_one_threshold(self) -> None:
        model = _many()
        together, alone = ("all", "all_too"), "blocks"
        kernels = {name: model.get_layer(name).kernel.numpy() for name in (*together, alone)}
        means = {n: np.abs(k).reshape(-1, 4, k.shape[1]).mean(1) for n, k in kernels.items()}
        at_once = {"begin_step": 1, "end_step": 1}
        by_layer = ConstantSparsity(0.9, **at_once)
        by_all = ConstantSparsity(0.6, **at_once)
        _fit(
            model,
            [
                MagnitudePruning(by_layer, [alone], block_size=(4, 1)),
                MagnitudePruning(by_all, list(together), scope="global", block_size=(4, 1)),
            ],
            epochs=1,
        )
        every = np.concatenate([means[name].ravel() for name in together])
        least = dict.fromkeys(together, np.sort(every)[-round(0.4 * every.size)])
        least[alone] = np.sort(means[alone].ravel())[-round(0.1 * means[alone].size)]
        for name, mean in means.items():
            found = model.get_layer(name).kernel.numpy() != 0
            np.testing.assert_array_equal(found, np.repeat(mean >= least[name], 4, axis=0))

    def test_settings_and_a_second_fit_keep_the_blocks(self) -> None:
        model = _model()
        _fit(model, [MagnitudePruning(TO_80, block_size=[4, 1])])
        zeros = model.get_layer("first").kernel.numpy() == 0
        _fit(model, [MagnitudePruning(TO_80, block_size=(4, 1))], epochs=1)
        np.testing.assert_array_equal(model.get_layer("first").kernel.numpy() == 0, zeros)
        (step,) = record_of(model).steps
        assert step["block_size"] == [4, 1]

    def test_kernels_without_such_blocks_are_left_out_and_named(self) -> None:
        inputs = keras.Input((6, 6, 1))
        x = kl.Flatten()(kl.Conv2D(4, 3, name="filters")(inputs))
        x = kl.Dense(7, name="odd")(kl.Dense(6, name="even")(x))
        model = keras.Model(inputs, kl.Dense(3, name="last")(x))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        images = _RNG.normal(size=(64, 6, 6, 1)).astype("f4")
        pruning = MagnitudePruning(ConstantSparsity(0.5, frequency=1), block_size=(4, 1))
        model.fit(images, Y[:64], batch_size=16, shuffle=False, verbose=0, callbacks=[pruning])
        assert _zeros(model, "even") == pytest.approx(0.5)
        assert _zeros(model, "filters", "odd", "last") == 0
        notes = " ".join(record_of(model).notes)
        for name, shape in (("filters", "3, 3, 1, 4"), ("odd", "6, 7"), ("last", "7, 3")):
            assert f"{name} is not pruned: its kernel of shape ({shape}) has no blocks" in notes

    def test_no_kernel_at_all(self) -> None:
        with pytest.raises(ArgumentError, match="divide at least one kernel.*first is not pruned"):
            _fit(_model(), [MagnitudePruning(TO_80, block_size=(7, 1))])

    @pytest.mark.parametrize("block_size", [4, (4,), (4, 0), (4, 1.0), (True, 1), "41", None])
    def test_what_is_no_block(self, block_size: Any) -> None:
        with pytest.raises(ArgumentError, match="two whole numbers of at least 1"):
            MagnitudePruning(TO_80, block_size=block_size)


class TestRefusals:
    def test_schedule_that_is_none(self) -> None:
        with pytest.raises(ArgumentError, match="`schedule` must be a Schedule. Got 0.8. Use Poly"):
            MagnitudePruning(0.8)  # type: ignore[arg-type]

    def test_unknown_scope(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean global"):
            MagnitudePruning(TO_80, scope="globl")

    def test_unknown_layer(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean first"):
            _fit(_model(), [MagnitudePruning(TO_80, layers=["firts"])])

    def test_subclassed_model(self) -> None:
        class Mine(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.dense = kl.Dense(3)

            def call(self, x: Any) -> Any:
                return self.dense(x)

        model = Mine()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with pytest.raises(UnsupportedModelError, match="Mine"):
            _fit(model, [MagnitudePruning(TO_80)])

    def test_only_frozen_layers(self) -> None:
        model = _model()
        model.get_layer("second").trainable = False
        with pytest.raises(ArgumentError, match="second is not pruned: it is frozen"):
            _fit(model, [MagnitudePruning(TO_80, layers="second")])

    def test_sequential_without_input_shape(self) -> None:
        model = keras.Sequential([kl.Dense(10, name="first"), kl.Dense(3, name="second")])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with pytest.raises(UnsupportedModelError, match="Start it with keras.Input"):
            _fit(model, [MagnitudePruning(TO_80)])
        model.build((None, 12))
        _fit(model, [MagnitudePruning(TO_80)])
        assert _zeros(model) == pytest.approx(0.8, abs=0.01)


class _Rebuilding(keras.callbacks.Callback):
    """Another callback that hooks something into the kernels and rebuilds the step."""

    def on_train_begin(self, logs: Any = None) -> None:
        for name in ("first", "second"):
            self.model.get_layer(name).kernel.regularizer = keras.regularizers.L1(1e-3)
        rebuild_train_function(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        rebuild_train_function(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        rebuild_train_function(self.model)


class TestTogether:
    @pytest.mark.parametrize("pruning_first", [True, False])
    def test_step_rebuilt_many_times(self, pruning_first: bool) -> None:
        callbacks = [MagnitudePruning(TO_80), _Rebuilding()]
        history = _fit(_model(), callbacks if pruning_first else callbacks[::-1])
        assert history["sparsity"][-1] == pytest.approx(TO_80_SPARSITY)

    @pytest.mark.parametrize("pruning_first", [True, False])
    def test_group_lasso(self, pruning_first: bool) -> None:
        model = _model()
        lasso = GroupLasso(1e-4, final_sparsity=0.25, layers=["first"])
        callbacks = [MagnitudePruning(TO_80), lasso]
        history = _fit(model, callbacks if pruning_first else callbacks[::-1])
        assert history["sparsity"][-1] >= TO_80_SPARSITY - 1e-9
        assert _zeros(model) >= TO_80_SPARSITY - 1e-9
        kernel = model.get_layer("first").kernel.numpy()
        assert (kernel == 0).all(axis=0).sum() >= 5
        assert {s["technique"] for s in record_of(model).steps} == {
            "magnitude_pruning",
            "group_lasso",
        }
        assert "apply" not in vars(model.optimizer)


def test_example_of_the_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "pruning.md"
    code, other, ticket = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["history"]["sparsity"][-1] == pytest.approx(0.8, abs=0.002)
    assert record_of(scope["model"]).notes == ()
    exec(other, scope)
    assert scope["pruning"].criterion.momentum == 0.95
    exec(ticket, scope)
    assert scope["ticket"].sparsities[-1] == pytest.approx(0.8, abs=0.002)
