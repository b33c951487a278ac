"""What binary, ternary and pattern training share, in every way of running fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.binarize import Binarize
from edgecompress.callbacks.group_lasso import GroupLasso
from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
from edgecompress.callbacks.pattern_binarization import PatternBinarization
from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
from edgecompress.callbacks.ternarize import Ternarize
from edgecompress.callbacks.weight_clustering import WeightClustering
from edgecompress.core.errors import ArgumentError, ModelFileError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.schedules import ConstantSparsity
from edgecompress.surgery.finalize import finalize

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 5, 5, 2)).astype("f4")
Y = _RNG.integers(0, 3, 64)

# Callback of the layer of the same name; one fit takes all of them.
MAKERS: dict[str, Callable[..., Any]] = {
    "pattern": lambda **more: PatternBinarization(layers="pattern", **more),
    "binary": lambda **more: Binarize(layers="binary", **more),
    "twn": lambda **more: Ternarize(layers="twn", **more),
    "ttq": lambda **more: Ternarize("ttq", 0.2, layers="ttq", **more),
}
LATENT = ("binary", "twn", "ttq")
VALUES = {"pattern": 2, "binary": 2, "twn": 3, "ttq": 3}  # In each channel.


def _all(**more: Any) -> list[Any]:
    return [make(**more) for make in MAKERS.values()]


def _model(optimizer: Any = None, only: str = "", **compile_args: Any) -> keras.Model:
    """Returns a network with a layer for each of MAKERS, or for one of them."""
    keras.utils.set_random_seed(1)
    hidden = [
        kl.Conv2D(6, 3, activation="relu", name="pattern"),
        kl.Flatten(name="flat"),
        kl.Dense(16, activation="relu", name="binary"),
        kl.Dense(14, activation="relu", name="twn"),
        kl.Dense(12, activation="relu", name="ttq"),
    ]
    chosen = [layer for layer in hidden if not only or layer.name in (only, "flat")]
    model = keras.Sequential([keras.Input((5, 5, 2)), *chosen, kl.Dense(3, name="last")])
    model.compile(
        optimizer or keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"jit_compile": False, **compile_args},
    )
    return model


def _fit(model: keras.Model, *callbacks: Any, epochs: int = 2, **args: Any) -> dict[str, Any]:
    return model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks),
        **args,
    ).history  # fmt: skip


def _kernel(model: keras.Model, name: str) -> np.ndarray:
    return np.array(model.get_layer(name).kernel)


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    names = {layer.name for layer in model.layers}
    return {name: _kernel(model, name) for name in MAKERS if name in names}


def _values(model: keras.Model) -> dict[str, int]:
    """Returns the most different values in a channel of each quantized kernel."""
    return {
        name: max(len(np.unique(channel)) for channel in np.moveaxis(kernel, -1, 0))
        for name, kernel in _kernels(model).items()
    }


def _same_kernels(model: keras.Model, other: dict[str, np.ndarray], **tolerance: float) -> None:
    found = _kernels(model)
    assert found.keys() == other.keys()
    for name, kernel in found.items():
        np.testing.assert_allclose(kernel, other[name], **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def _notes(model: keras.Model) -> str:
    return " ".join(record_of(model).notes)


class At(keras.callbacks.Callback):
    """Does something at the end of an epoch."""

    def __init__(self, epoch: int, action: Any) -> None:
        super().__init__()
        self.epoch, self.action = epoch, action

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch:
            self.action(self.model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training that nothing interrupts, as it was before the model trained on without."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint.keras"
    model, callbacks = _model(), _all()
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    history = _fit(model, *callbacks, checkpoint, epochs=4, validation_data=(X, Y))
    small = finalize(model)
    found = SimpleNamespace(
        history=history,
        kernels=_kernels(model),
        values=_values(model),
        last=_kernel(model, "last"),
        loss=float(model.loss(Y, model(X))),
        variables=len(model.optimizer.variables),
        path=path,
        techniques={name: c.technique for name, c in zip(MAKERS, callbacks, strict=True)},
        small=_kernels(small),
        steps=record_of(small).steps,
    )
    model.get_layer("binary").trainable = False
    model.compile("sgd", model.loss)
    _fit(model, epochs=1)
    found.later = _kernels(model)
    found.later_values = _values(model)
    return found


class TestEveryWay:
    def test_same_losses_and_few_values(self, whole: Any) -> None:
        assert whole.values == VALUES
        assert len(np.unique(whole.last)) == 36
        for way, rtol in (({"steps_per_execution": 4}, 0), ({"jit_compile": True}, 1e-4)):
            model = _model(**way)
            losses = _fit(model, *_all(), epochs=4)["loss"]
            assert _values(model) == VALUES
            np.testing.assert_allclose(losses, whole.history["loss"], rtol=rtol)

    @pytest.mark.parametrize("name", ["scaled", "accumulated", "averaged"])
    def test_special_optimizers(self, name: str) -> None:
        optimizers = {
            "scaled": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
            "accumulated": keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2),
            "averaged": keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
        }
        model = _model(optimizers[name])
        _fit(model, *_all(begin_epoch=1))
        assert _values(model) == VALUES
        assert _notes(model).count("again at the end") == (4 if name == "averaged" else 0)

    def test_validation_and_checkpoints_see_the_quantized_values(self, whole: Any) -> None:
        assert whole.history["val_loss"][-1] == pytest.approx(whole.loss, rel=1e-5)
        loaded = keras.saving.load_model(whole.path)
        _same_kernels(loaded, whole.kernels, rtol=0, atol=0)
        # The file holds a plain optimizer.
        assert len(loaded.optimizer.variables) == whole.variables

    def test_without_the_callback_the_values_part_unless_frozen(self, whole: Any) -> None:
        np.testing.assert_array_equal(whole.later["binary"], whole.kernels["binary"])
        found = whole.later_values
        assert found["binary"] == 2 and min(found[k] for k in MAKERS if k != "binary") > 3
        model = _model(only="binary")
        model.get_layer("binary").trainable = False
        with pytest.raises(ArgumentError, match="binary is not binarized: it is frozen"):
            _fit(model, Binarize(layers="binary"))

    def test_never_active_is_named(self) -> None:
        model = _model()
        _fit(model, *_all(begin_epoch=9), epochs=1)
        for name in ("Binarize", "Ternarize", "PatternBinarization"):
            assert f"{name} was never active: begin_epoch is 9" in _notes(model)
        assert min(_values(model).values()) > 3

    @pytest.mark.parametrize("kind", sorted(MAKERS))
    def test_weights_that_are_no_numbers_are_refused(self, kind: str) -> None:
        model = _model(only=kind)
        kernel = model.get_layer(kind).kernel
        kernel.assign(np.full(kernel.shape, np.nan))
        with pytest.raises(ArgumentError, match=f"finite weights. Got '{kind}'. Did training fail"):
            _fit(model, MAKERS[kind]())


class TestSeveralFits:
    def test_a_second_fit_goes_on_in_memory_and_from_files(
        self, whole: Any, tmp_path: Path
    ) -> None:
        def callbacks() -> list[Any]:
            made = [MAKERS[kind](latent_file=tmp_path / f"{kind}.npz") for kind in LATENT]
            return [MAKERS["pattern"](), *made]

        model = _model()
        _fit(model, *callbacks())
        model.save(tmp_path / "model.keras")
        # Not float until epoch 9.
        _fit(model, *_all(begin_epoch=9), epochs=4, initial_epoch=2)
        _same_kernels(model, whole.kernels)
        assert "earlier training" not in _notes(model)
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        _fit(loaded, *callbacks(), epochs=4, initial_epoch=2)
        _same_kernels(loaded, whole.kernels)
        assert "earlier training" not in _notes(loaded)
        # Without the files it goes on from the quantized values, and says so.
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        _fit(loaded, *_all(), epochs=4, initial_epoch=2)
        assert _notes(loaded).count("the latent weights of an earlier training are not known") == 3
        assert _values(loaded) == VALUES

    def test_a_latent_file_of_other_weights_is_not_used(self, tmp_path: Path) -> None:
        file = tmp_path / "latent.npz"
        _fit(_model(only="binary"), Binarize(layers="binary", latent_file=file), epochs=1)
        assert file.exists()
        fresh, same = _model(only="binary"), _model(only="binary")
        for model in (fresh, same):
            model.get_layer("binary").kernel.assign(-_kernel(model, "binary"))
        _fit(fresh, Binarize(layers="binary", latent_file=file), epochs=1)
        _fit(same, Binarize(layers="binary"), epochs=1)
        np.testing.assert_array_equal(_kernel(fresh, "binary"), _kernel(same, "binary"))

    def test_backup_and_restore(self, tmp_path: Path) -> None:
        def crash(model: Any) -> None:
            raise RuntimeError("power cut")

        def callbacks() -> list[Any]:
            backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
            return [Ternarize(layers="twn", latent_file=tmp_path / "latent.npz"), backup]

        uninterrupted, model = _model(only="twn"), _model(only="twn")
        _fit(uninterrupted, Ternarize(layers="twn"), epochs=4)
        with pytest.raises(RuntimeError, match="power cut"):
            _fit(model, *callbacks(), At(2, crash), epochs=4)
        model = _model(only="twn")
        _fit(model, *callbacks(), epochs=4)
        _same_kernels(model, _kernels(uninterrupted))

    def test_restored_weights(self) -> None:
        model, kept = _model(), []
        dense, restore = model.get_weights(), keras.callbacks.Callback()
        restore.on_train_end = lambda logs=None: model.set_weights(dense)
        _fit(model, restore, *_all(), At(0, lambda m: kept.append(m.get_weights())))
        assert _values(model) == VALUES
        assert _notes(model).count("again at the end") == 4
        # Quantized ones, as of EarlyStopping, stay as they are.
        restore.on_train_end = lambda logs=None: model.set_weights(kept[0])
        _fit(model, restore, *_all())
        for values, want in zip(model.get_weights(), kept[0], strict=True):
            np.testing.assert_array_equal(values, want)


class TestOthers:
    @pytest.mark.parametrize("swap", [False, True])
    def test_two_on_the_same_weights_are_refused(self, swap: bool) -> None:
        for kind, other in (
            ("binary", MagnitudePruning(ConstantSparsity(0.5, frequency=2))),
            ("twn", WeightClustering(4)),
            ("pattern", Binarize(layers="pattern")),
        ):
            callbacks: list[CompressionCallback] = [MAKERS[kind](), other]
            with pytest.raises(ArgumentError, match="another callback of this fit"):
                _fit(_model(only=kind), *(callbacks[::-1] if swap else callbacks))

    def test_each_on_its_own_weights(self) -> None:
        model = _model()
        pruning = MagnitudePruning(ConstantSparsity(0.5, 0, frequency=2), layers=["last"])
        _fit(model, Binarize(layers="binary"), pruning, WeightClustering({"ttq": 4}))
        assert _values(model)["binary"] == 2
        assert (_kernel(model, "last") == 0).mean() == 0.5
        assert len(np.unique(_kernel(model, "ttq"))) == 4

    @pytest.mark.parametrize("swap", [False, True])
    def test_filters_that_group_lasso_silences_stay_silent(self, swap: bool) -> None:
        model = _model(only="twn")
        lasso = GroupLasso(1e-3, final_sparsity=0.5, end_epoch=1, layers=["twn"])
        callbacks = [Ternarize(layers="twn"), lasso]
        _fit(model, *(callbacks[::-1] if swap else callbacks), epochs=3)
        assert (np.abs(_kernel(model, "twn")).sum(0) == 0).sum() == 7
        assert _values(model)["twn"] == 3
        assert finalize(model).get_layer("twn").units == 7

    def test_finalize_keeps_the_values_and_the_record(self, whole: Any) -> None:
        assert whole.small.keys() == whole.kernels.keys()
        for name, technique in whole.techniques.items():
            np.testing.assert_array_equal(whole.small[name], whole.kernels[name])
            step = next(s for s in whole.steps if s["layers"] == [name])
            assert step["technique"] == technique
            assert set(step["scales"]) == {name}

    def test_mistakes_are_named(self) -> None:
        for make in (Binarize, Ternarize, PatternBinarization):
            with pytest.raises(ArgumentError, match="`begin_epoch` must be a whole number, 0 or m"):
                make(begin_epoch=-1)
            with pytest.raises(UnknownNameError, match="Did you mean pattern"):
                _fit(_model(only="pattern"), make(layers=["patern"]))
        for arguments, text in (
            ({"first_and_last": 1}, "`first_and_last` must be True or False. Got 1."),
            ({"per_channel": "no"}, "`per_channel` must be True or False"),
            ({"latent_file": 3}, "`latent_file` must be a path, or None. Got 3."),
        ):
            for make in (Binarize, Ternarize):
                with pytest.raises(ArgumentError, match=re.escape(text)):
                    make(**arguments)

    def test_latent_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="`latent_file` must lie in a folder that exists"):
            model = _model(only="twn")
            _fit(model, Binarize(layers="twn", latent_file=tmp_path / "no" / "x.npz"))
        file = tmp_path / "latent.npz"
        array = tmp_path / "array.npy"
        np.save(array, np.zeros(3))
        for content in (b"", b"no zip", b"PK\x03\x04 cut", array.read_bytes()):
            file.write_bytes(content)
            with pytest.raises(ModelFileError, match=r"latent.npz (holds|is) .*Delete it"):
                _fit(_model(only="twn"), Binarize(layers="twn", latent_file=file))


class TestLayers:
    def test_first_and_last_are_left_out_and_named(self) -> None:
        model = _model()
        ends = Ternarize(layers=lambda layer: layer.name in "pattern last")
        _fit(model, Binarize(), ends, epochs=1)
        chosen = [step["layers"] for step in record_of(model).steps]
        assert chosen == [["binary", "twn", "ttq"], ["pattern", "last"]]
        assert "pattern is not binarized: it is the first layer with weights" in _notes(model)
        assert "last is not binarized: it is the last layer with weights" in _notes(model)
        model = _model()
        _fit(model, Ternarize(first_and_last=True), epochs=1)
        assert record_of(model).steps[0]["layers"] == [*MAKERS, "last"]
        assert not record_of(model).notes

    def test_nothing_left_is_an_error(self) -> None:
        model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="only")])
        model.compile("sgd", "mse")
        with pytest.raises(ArgumentError, match="leave at least one layer to be binarized.*only"):
            model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0, callbacks=[Binarize()])


def _kinds() -> keras.Model:
    """Every kind of layer with weights, BatchNormalization with negative gammas behind some."""
    keras.utils.set_random_seed(0)
    gamma = keras.initializers.RandomUniform(-2, 2, seed=3)

    def norm() -> kl.Layer:
        return kl.BatchNormalization(gamma_initializer=gamma)

    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            kl.Conv2D(4, 1, name="first"),
            kl.Conv2D(6, 3, padding="same", use_bias=False, name="conv"),
            norm(),
            kl.ReLU(),
            kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
            norm(),
            kl.SeparableConv2D(5, 3, name="separable"),
            norm(),
            kl.ReLU(),
            kl.Conv2DTranspose(4, 3, strides=2, name="transpose"),
            kl.Reshape((49, 4)),
            kl.Conv1D(4, 3, activation="relu", name="conv1d"),
            kl.AveragePooling1D(2),
            kl.Flatten(),
            kl.Dense(8, activation="relu", name="dense"),
            kl.Dense(3, name="last"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _codes(model: keras.Model) -> list[tuple[int, ...]]:
    """Returns the codes of each filter of the int8 file."""
    from edgecompress.converters import float32, int8

    artifact = int8.convert(float32.convert(model), ranges=record_of(model).ranges)
    flat = read_tflite(artifact.data)
    filters = [
        flat.tensor(operator, 1)
        for operator in flat.operators
        if operator.code.endswith("CONV_2D")
        or operator.code in ("FULLY_CONNECTED", "TRANSPOSE_CONV")
    ]
    assert all(tensor is not None and tensor.type == "INT8" for tensor in filters)
    return [tuple(np.unique(tensor.values()).tolist()) for tensor in filters if tensor is not None]


NAMED = ["conv", "depthwise", "separable", "transpose", "conv1d", "dense"]


@pytest.mark.parametrize("later", [False, True])
def test_int8_codes_of_binary_and_ternary_kernels(later: bool) -> None:
    model = _kinds()
    make = (lambda: Ternarize(layers=NAMED)) if later else (lambda: Binarize(layers=NAMED))
    if later:
        _fit(model, make(), epochs=1)
        _fit(model, make(), QuantizationAwareTraining(), epochs=1)
    else:
        _fit(model, QuantizationAwareTraining(), make(), epochs=1)
    wanted = (-127, 0, 127) if later else (-127, 127)
    codes = _codes(model)
    # first, conv, depthwise, both halves of separable, transpose, conv1d, dense, last
    assert len(codes) == 9
    assert [codes[i] for i in (1, 2, 4, 5, 6, 7)] == [wanted] * 6
    assert all(len(codes[i]) > 3 for i in (0, 3, 8))


def test_int8_codes_of_trained_ternary_values() -> None:
    keras.utils.set_random_seed(0)
    gamma = keras.initializers.RandomUniform(-2, 2, seed=3)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            kl.Conv2D(6, 3, use_bias=False, name="conv"),
            kl.BatchNormalization(gamma_initializer=gamma),
            kl.ReLU(),
            kl.Flatten(),
            kl.Dense(8, activation="relu", name="dense"),
            kl.Dense(3, name="last"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    _fit(model, Ternarize("ttq", 0.2, layers=["conv", "dense"]), QuantizationAwareTraining())
    conv, dense, last = _codes(model)
    kernel = _kernel(model, "dense")
    assert len(np.unique(kernel)) == 3 and kernel.max() != pytest.approx(-kernel.min())
    assert len(dense) <= 5 and len(conv) <= 5 < len(last)
