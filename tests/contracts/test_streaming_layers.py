"""Every layer that can stream: step by step it computes what it computes on a whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgecompress.converters.loaders import wrap
from edgecompress.converters.streaming import LAYERS, stream
from edgecompress.core.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

STEPS = 6
FLAT, PLANE = (STEPS, 4), (STEPS, 4, 3)
ALL = {"return_sequences": True}

# Class of a layer or operation -> how it is made, where its class is not enough.
MAKE: dict[str, Callable[[], Any]] = {
    "Activation": lambda: layers.Activation("tanh"),
    "PReLU": lambda: layers.PReLU("uniform", shared_axes=[1]),
    "Rescaling": lambda: layers.Rescaling(0.3, 0.1),
    "Normalization": lambda: layers.Normalization(mean=0.2, variance=3.0),
    "Dropout": lambda: layers.Dropout(0.5),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "SpatialDropout2D": lambda: layers.SpatialDropout2D(0.5),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5),
    "Dense": lambda: layers.Dense(3),
    "Embedding": lambda: layers.Embedding(9, 3),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(2)),
    "Relu": lambda: ops.relu,
    "Relu6": lambda: ops.relu6,
    "Sigmoid": lambda: ops.sigmoid,
    "Tanh": lambda: ops.tanh,
    "HardSilu": lambda: ops.hard_silu,
    "Silu": lambda: ops.silu,
    "Gelu": lambda: ops.gelu,
    "Conv1D": lambda: layers.Conv1D(3, 3, padding="causal"),
    "SeparableConv1D": lambda: layers.SeparableConv1D(3, 2),
    "DepthwiseConv1D": lambda: layers.DepthwiseConv1D(2),
    "Conv2D": lambda: layers.Conv2D(3, 2),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(2),
    "SeparableConv2D": lambda: layers.SeparableConv2D(3, 2),
    "ZeroPadding1D": lambda: layers.ZeroPadding1D((1, 0)),
    "ZeroPadding2D": lambda: layers.ZeroPadding2D(((1, 0), (0, 1))),
    "MaxPooling1D": lambda: layers.MaxPooling1D(2),
    "AveragePooling1D": lambda: layers.AveragePooling1D(2),
    "MaxPooling2D": lambda: layers.MaxPooling2D(2),
    "AveragePooling2D": lambda: layers.AveragePooling2D(2),
    "Reshape": lambda: layers.Reshape((STEPS, 2, 2)),
    "LSTM": lambda: layers.LSTM(3, **ALL),
    "GRU": lambda: layers.GRU(3, **ALL),
    "SimpleRNN": lambda: layers.SimpleRNN(3, **ALL),
    "Bidirectional": lambda: layers.Bidirectional(layers.GRU(2)),
}
OF_TWO = {"Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average", "Concatenate"}
# What always ends in a refusal.
REFUSED = {"Bidirectional"}


def made(name: str) -> Any:
    """Returns a model whose only layer of interest is of a class."""
    keras.utils.set_random_seed(2)
    make = MAKE.get(name) or getattr(layers, name)
    indices = name == "Embedding"
    shape = (STEPS,) if indices else PLANE if "2D" in name else FLAT
    inputs = keras.Input(shape, dtype="int32" if indices else "float32", name="x")
    read = [inputs, layers.Dense(4, name="other")(inputs)] if name in OF_TWO else inputs
    outputs = make()(read)
    if "Padding" in name:
        last = layers.Conv2D(2, 2) if "2D" in name else layers.Conv1D(2, 2)
        outputs = last(outputs)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_step_by_step_it_computes_the_whole_sequence(name: str) -> None:
    model = made(name)
    if name in REFUSED:
        with pytest.raises(UnsupportedModelError):
            stream(wrap(model), fused=False)
        return
    random = np.random.default_rng(1)
    (spec,) = wrap(model).inputs
    x = random.normal(size=(2, *spec.shape)) if spec.dtype == "float32" else None
    x = random.integers(0, 9, (2, *spec.shape)) if x is None else x.astype("f4")
    want = np.asarray(model(x))
    streamed = stream(wrap(model), fused=False)
    stepping, net = streamed.stepping, streamed.loaded
    states = [np.zeros((2, *spec.shape), "f4") for spec in net.inputs[1:]]
    ends = []
    for start in range(0, STEPS, stepping.hop):
        outputs = [np.asarray(y) for y in net.call([x[:, start : start + stepping.hop], *states])]
        states = [outputs[position] for position in stepping.states]
        ends.append(next(y for i, y in enumerate(outputs) if i not in stepping.states))
    (rows,) = stepping.rows
    have = np.concatenate(ends, axis=1)[:, -rows:] if rows else ends[-1]
    np.testing.assert_allclose(have.reshape(want.shape), want, atol=1e-5)
