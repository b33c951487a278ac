"""NaN and infinity: refused where they arise, with the name of the layer."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import edgecompress as ec
from edgecompress.converters import float32
from edgecompress.converters.calibration import measure_ranges
from edgecompress.core.errors import NotFiniteError
from edgecompress.core.finite import check_outputs, check_ranges, check_weights
from edgecompress.core.record import record_of
from edgecompress.precisions.binary import SCALES, binarize, binary_gradient
from edgecompress.precisions.fake_quantization import quantize_weights
from edgecompress.precisions.ternary import mean_beyond, ternarize, ttq_value_gradients, twn

pytestmark = pytest.mark.slow


def network(policy: str = "float32", seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, use_bias=False, activation="relu", name="conv", dtype=policy),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="head"),
        ],
        name="net",
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("f4")
    return x, np.arange(32) % 3


def compiled(model: keras.Model, rate: float = 0.01) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, jit_compile=False)
    return model


# ---- scales are float32


def test_a_zero_filter_trains_under_mixed_float16() -> None:
    model = network("mixed_float16")
    (kernel,) = model.get_layer("conv").get_weights()
    kernel[..., 1] = 0
    model.get_layer("conv").set_weights([kernel])
    history = compiled(model).fit(
        *data(), batch_size=8, verbose=0, callbacks=[ec.QuantizationAwareTraining()]
    )
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(list(record_of(model).ranges.values())).all()


def test_half_precision_weights_round_as_float32_ones_do() -> None:
    # Halves of sixteenths are exact in half precision, so both types hold the same numbers.
    weights = np.random.default_rng(1).integers(-40, 41, (3, 3, 2, 5)).astype("f4") / 16
    weights[..., 2] = 0
    half = ops.cast(weights, "float16")
    for function in (
        lambda w: quantize_weights(w, (-1,)),
        lambda w: binarize(w, (-1,)),
        lambda w: twn(w, (-1,)),
        lambda w: ternarize(w, 0.5, 1.0, 2.0),
        lambda w: binary_gradient(ops.ones_like(w), w, (-1,)),
    ):
        found = function(half)
        assert keras.backend.standardize_dtype(found.dtype) == "float16"
        expected = np.asarray(ops.cast(function(ops.convert_to_tensor(weights)), "float16"))
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_sums_of_half_precision_weights_do_not_overflow() -> None:
    weights = ops.cast(np.full((200_000, 1), 0.75, "f4"), "float16")
    assert np.asarray(mean_beyond(weights, 0.5, ())).item() == pytest.approx(0.75)
    assert np.asarray(binarize(weights, ())).max() == pytest.approx(0.75)
    assert np.asarray(ttq_value_gradients(weights, weights, 0.5)[0]) == pytest.approx(150_000)
    assert list(SCALES) == ["mean", "one"]


# ---- training


@pytest.mark.parametrize("callback", [ec.QuantizationAwareTraining, ec.MagnitudePruning])
def test_a_diverging_training_ends_with_the_layer(callback: type) -> None:
    arguments = [ec.ConstantSparsity(0.5, frequency=2)] if callback is ec.MagnitudePruning else []
    model = compiled(network(), rate=1e38)
    with pytest.raises(NotFiniteError, match=r"(Layer|activations of) '(conv|head|net|input:0)'"):
        model.fit(*data(), epochs=9, batch_size=8, verbose=0, callbacks=[callback(*arguments)])
    assert "call" not in vars(model.get_layer("conv"))


# ---- files, ranges, data, outputs


def test_weights_that_are_no_numbers_are_refused_when_loaded(tmp_path: Path) -> None:
    model = network()
    check_weights(model, "")
    kernel, bias = model.get_layer("head").get_weights()
    kernel[0, 0], kernel[5, 1] = np.nan, np.inf
    model.get_layer("head").set_weights([kernel, bias])
    model.save(tmp_path / "net.keras")
    for source in (model, tmp_path / "net.keras"):
        with pytest.raises(NotFiniteError, match="'head': 2 of 432 values of its weight 'kernel'"):
            ec.export(source, ["host"], calibration=data()[0], output=tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_ranges_that_are_no_numbers_are_named() -> None:
    check_ranges({"conv": (0.0, 1.0)}, "")
    with pytest.raises(NotFiniteError, match="activations of 'head' are NaN or infinite"):
        check_ranges({"conv": (0.0, 1.0), "head": (0.0, float("nan"))}, "")


def overflowing() -> keras.Model:
    """Finite weights whose second layer overflows where the input is large."""
    inputs = keras.Input((2,), name="x")
    x = layers.Dense(2, name="first", kernel_initializer="ones", use_bias=False)(inputs)
    x = layers.Dense(2, name="second", use_bias=False,
                     kernel_initializer=keras.initializers.Constant(3e38))(x)  # fmt: skip
    return keras.Model(inputs, layers.Dense(1, name="third")(x))


def test_outputs_that_are_no_numbers_name_the_layer_they_arise_in() -> None:
    model, x = overflowing(), np.array([[0.1, 0.1], [5.0, 5.0]], "f4")
    y = model.predict(x, verbose=0)
    with pytest.raises(NotFiniteError, match="1 of 2 samples.*arises in layer 'second'"):
        check_outputs(model, [y], [x])
    check_outputs(model, [y[:1]], [x[:1]])


def test_calibration_that_ends_in_nan_names_the_layer() -> None:
    inputs = keras.Input((2,), name="x")
    root = layers.Dense(2, name="root")(ops.sqrt(inputs))
    floats = float32.convert(keras.Model(inputs, root)).artifact.data
    x = np.array([[0.1, 0.1], [-5.0, 5.0]], "f4")
    assert measure_ranges(floats, [x[:1]])
    with pytest.raises(NotFiniteError, match=r"'.*[Ss]qrt.*'.*calibration sample 1"):
        measure_ranges(floats, [x])
