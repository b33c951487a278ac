"""Layers that stay in float or get int16 activations, in files and in the engine."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.kept_layers import Kept
from edgecompress.core.errors import ArgumentError
from edgecompress.engines.registry import LITERT
from edgecompress.engines.run import run_engine


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(5, activation="softplus", name="curve")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.LeakyReLU(name="leaky")(x)))


@pytest.fixture(scope="module")
def floats(model) -> float32.Float32Result:
    return float32.convert(model)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype("float32")


def types(floats, x, **kept) -> tuple[dict[str, str], tuple[str, ...], bytes]:
    """Returns output -> type of all operators but conversions, the notes, and the file."""
    precision = kept.pop("precision", None)
    made = int8.convert(floats, calibration=[x], keep=Kept(**kept), precision=precision)
    flat = made.flat
    found = {
        flat.output(o).name: flat.output(o).type
        for o in flat.operators
        # A table is read with numbers of its entries.
        if o.code not in ("QUANTIZE", "DEQUANTIZE") and flat.output(o).type != "INT32"
    }
    return found, made.notes, made.data


def test_only_the_named_layers_are_kept(floats, x) -> None:
    plain, _, _ = types(floats, x)
    assert set(plain.values()) == {"INT8"}
    found, notes, _ = types(floats, x, floating=("conv",), int16=("head",))
    assert found == plain | {"relu": "FLOAT32", "head": "INT16"}
    assert "Kept in float as requested, with conversions from and to int8: conv (CONV_2D)." in notes
    assert "Output 'head' is int16." in notes
    # A layer is also known by the last that is fused into it.
    again, _, _ = types(floats, x, floating=("relu",), int16=("hea.",))
    assert again == found


def test_kept_layers_of_int4_files_have_weights_of_eight_bits(floats, x) -> None:
    found, notes, data = types(floats, x, int16=("curve",), precision=ec.Int4(edge_bits=4))
    assert found["curve/pre_activation"] == "INT16" and found["head"] == "INT8"
    assert not any(note.startswith("Weights in int8") for note in notes)


def test_everything_kept_computes_what_float_does(model, floats, x) -> None:
    """Also functions that would be a table, and operators that the quantizer does not know."""
    found, notes, data = types(floats, x, floating=(".*",))
    assert set(found.values()) == {"FLOAT32"}
    low, high = float(x.min()), float(x.max())
    scale = (high - low) / 255
    codes = np.clip(np.round((x - low) / scale) - 128, -128, 127).astype(np.int8)
    (outputs,) = run_engine(LITERT, data, [codes]).outputs
    # Only the input is rounded.
    exact = model(((codes.astype(np.float32) + 128) * scale + low).astype("float32")).numpy()
    assert outputs.dtype == np.float32
    assert np.abs(outputs - exact).max() < 0.02 * np.abs(exact).max()
    assert "Output 'head' is float32." in notes


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        ({"floating": ("nothing",)}, "`--keep-float` must match the whole name of a layer .*conv"),
        ({"floating": ("con",)}, "`--keep-float` must match"),
        ({"int16": ("(",)}, "`--keep-int16` must be a valid regular expression"),
        ({"floating": ("conv",), "int16": ("c.*",)}, "match no layer of --keep-float"),
        ({"floating": ("conv",), "precision": ec.Int16x8()}, "unless activations are int8"),
        ({"int16": ("conv",), "precision": ec.Float16()}, "unless activations are int8"),
    ],
)
def test_wrong_requests_are_refused(floats, x, kept, problem) -> None:
    with pytest.raises(ArgumentError, match=problem):
        types(floats, x, **kept)
