"""Channels without weights keep their bias: the file against the Keras model, in LiteRT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32, int8
from edgecompress.converters.fitting_biases import fit_biases
from edgecompress.converters.loaders import wrap
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.precisions.int4 import Int4
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.int16x8 import Int16x8

keras = pytest.importorskip("keras")
layers = keras.layers

# What is left of a channel's weights.
DEAD, TINY = 0.0, 1e-12


def layer_of(kind: str) -> Any:
    made = {
        "conv": lambda: layers.Conv2D(4, 3),
        "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        "transposed": lambda: layers.Conv2DTranspose(4, 3),
        "dense": lambda: layers.Dense(4),
    }
    return made[kind]()


def network(kind: str, left: float, all_channels: bool = False) -> Any:
    """A layer whose second channel (or all) has no weights to speak of, but a bias."""
    keras.utils.set_random_seed(0)
    layer = layer_of(kind)
    model = keras.Sequential([keras.Input((6, 6, 2)), layer])
    kernel = np.array(layer.kernel)
    # (height, width, channels out, channels in) of a transposed convolution.
    channels = np.moveaxis(kernel, -2 if kind == "transposed" else -1, 0)
    if kind == "depthwise":
        channels = np.moveaxis(kernel, (-2, -1), (0, 1)).reshape(-1, 3, 3)
    dead = slice(None) if all_channels else slice(1, 2)
    channels[dead] *= left
    if kind == "depthwise":
        kernel = np.moveaxis(channels.reshape(2, 2, 3, 3), (0, 1), (-2, -1))
    layer.kernel.assign(kernel)
    layer.bias.assign([0.1, -2.0, 0.3, 0.5])
    return model


def converted(model: Any, precision: Any = None) -> tuple[Artifact, float]:
    """Returns the file and its largest error in steps of its output."""
    x = np.random.default_rng(1).normal(size=(40, 6, 6, 2)).astype(np.float32)
    made = int8.convert(float32.convert(wrap(model)), calibration=[x], precision=precision)
    into, out = (made.flat.tensors[i[0]] for i in (made.flat.inputs, made.flat.outputs))
    kind = np.iinfo(into.type.lower())
    codes = np.clip(np.rint(x / into.scales[0]) + into.zero_points[0], kind.min, kind.max)
    (found,) = run_engine("litert", made.data, [codes.astype(kind.dtype)]).outputs
    values = (found.astype(float) - out.zero_points[0]) * out.scales[0]
    return made, float(np.abs(values - np.asarray(model(x))).max() / out.scales[0])


@pytest.mark.parametrize("left", [DEAD, TINY])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "transposed", "dense"])
def test_a_channel_without_weights_keeps_its_bias(kind: str, left: float) -> None:
    _, error = converted(network(kind, left), Int8())
    assert error < 4


def test_a_layer_without_weights_gives_its_biases() -> None:
    _, error = converted(network("dense", DEAD, all_channels=True), Int8(per_channel=False))
    assert error < 1


@pytest.mark.parametrize("precision", [Int4(), Int16x8()], ids=["int4", "int16x8"])
def test_precisions(precision: Any) -> None:
    made, _ = converted(network("conv", DEAD), precision)
    (operator,) = [o for o in made.flat.operators if o.code == "CONV_2D"]
    bias = made.flat.tensors[operator.inputs[2]]
    found = bias.values() * np.asarray(bias.scales)
    np.testing.assert_allclose(found, [0.1, -2.0, 0.3, 0.5], rtol=1e-3)


def test_files_whose_biases_fit_are_left_alone() -> None:
    model = network("conv", 1.0)
    source = float32.convert(wrap(model))
    made = int8.convert(source, calibration=[np.ones((2, 6, 6, 2), np.float32)])
    assert fit_biases(read_tflite(made.data), read_tflite(source.artifact.data)) is None
