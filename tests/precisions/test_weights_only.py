"""float16 and dynamic-range: files without ranges, for phones only."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.core.errors import ArgumentError, ConversionError
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.pipeline.builder import build
from edgecompress.pipeline.request import build_request
from edgecompress.precisions.base import Precision

layers = keras.layers

X = np.random.default_rng(5).normal(size=(24, 6, 6, 2)).astype("f4")


def _model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )


@pytest.mark.parametrize(
    ("precision", "kind"), [(ec.DynamicRange(), "INT8"), (ec.Float16(), "FLOAT16")]
)
def test_weights_are_narrow_and_the_rest_is_float(precision: Precision, kind: str) -> None:
    source = float32.convert(_model())
    made = int8.convert(source, precision=precision)
    large = [t for t in made.flat.tensors if t.is_constant and len(t.shape) > 1]
    assert len(large) == 3
    assert {t.type for t in large} == {kind}
    ends = (*made.flat.inputs, *made.flat.outputs)
    assert {made.flat.tensors[i].type for i in ends} == {"FLOAT32"}
    if kind == "FLOAT16":
        wanted = [w for w in _model().get_weights() if w.ndim == 2][0].T.astype(np.float16)
        assert any(t.shape == wanted.shape and np.array_equal(t.values(), wanted) for t in large)


def test_dynamic_range_computes_alike_in_older_runtimes() -> None:
    """With a scale for each unit, tflite-runtime 2.14 returns zeros for a Dense layer."""
    image = keras.Input((4, 4, 2))
    x = layers.Conv2DTranspose(3, 2, strides=2, name="larger")(image)
    model = keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(x)))
    made = int8.convert(float32.convert(model), precision=ec.DynamicRange())
    assert any("larger" in note and "stay in float32" in note for note in made.notes)
    dense = next(o for o in made.flat.operators if o.code == "FULLY_CONNECTED")
    weights = made.flat.tensor(dense, 1)
    assert weights is not None and weights.type == "INT8" and len(weights.scales or ()) == 1
    x = X[:4, :4, :4]
    wanted = model.predict(x, verbose=0)
    for engine in ec.DynamicRange.engines:
        if engine_available(engine) is None:
            got = run_engine(engine, made.data, [x]).outputs[0]
            assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max(), engine


@pytest.mark.parametrize("name", ["dynamic-range", "float16"])
def test_a_phone_passes_and_a_board_fails(name: str) -> None:
    request = build_request(
        _model(),
        ["pixel-8", "cortex-m4"],
        evaluate=(X, np.arange(24) % 3),
        bundle=False,
        options={"precision": name},
    )
    made = build(request)
    phone, board = ({c.rule: c for c in target.checks} for target in made.targets)
    assert made.main.kind == name
    assert (phone["operators"].verdict, phone["parity"].verdict) == ("pass", "pass")
    assert board["operators"].verdict == "fail"
    assert made.verdict == "fail"


def test_float16_refuses_weights_that_overflow() -> None:
    model = _model()
    kernel, bias = model.get_layer("head").get_weights()
    kernel[0, 0] = 1e5
    model.get_layer("head").set_weights([kernel, bias])
    source = float32.convert(model)
    with pytest.raises(ConversionError, match=r"head.*1e\+05.*65504"):
        int8.convert(source, precision=ec.Float16())
    int8.convert(source, precision=ec.DynamicRange())


def test_precisions_by_layer_are_refused() -> None:
    source = float32.convert(_model())
    with pytest.raises(ArgumentError, match=r"per_layer.*float16"):
        int8.convert(source, precision=ec.Float16(), per_layer={"head": ec.Int8()})
    with pytest.raises(ArgumentError, match=r"per_layer.*dynamic-range"):
        int8.convert(source, calibration=[X], per_layer={"head": ec.DynamicRange()})
