"""Masked attention in int8, judged by LiteRT against Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32, int8
from edgecompress.converters.loaders import wrap
from edgecompress.converters.masks import narrowed
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.engines.run import run_engine

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl, ops = keras.layers, keras.ops
UPPER = np.triu(np.ones((6, 6), np.float32), 1)


def _selected(x: Any) -> Any:
    return kl.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)


def _added(x: Any, masked: float = -1e9) -> Any:
    query, key, value = (kl.Dense(8)(x) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 8**0.5 + UPPER * masked
    return ops.matmul(ops.softmax(scores, axis=-1), value)


def _model(build: Any) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, build(inputs))


@pytest.mark.parametrize("build", [_selected, _added])
def test_a_mask_leaves_the_scores_their_range(build: Any) -> None:
    model = _model(build)
    x = np.random.default_rng(0).normal(size=(64, 6, 8)).astype(np.float32)
    artifact = int8.convert(float32.convert(model), calibration=[x])
    flat, wanted = artifact.flat, wrap(model).predict([x])[0]
    (softmax,) = (o for o in flat.operators if o.code == "SOFTMAX")
    assert flat.tensors[softmax.inputs[0]].scales[0] < 0.2
    output = run_engine("litert", artifact.data, quantized_inputs(flat, [x])).outputs[0]
    noise = dequantize(output, flat.tensors[flat.outputs[0]]) - wanted
    assert 10 * np.log10(np.square(wanted).sum() / np.square(noise).sum()) > 25
    # What is masked has no share: the first position sees itself alone.
    shares = run_engine("litert", artifact.data, quantized_inputs(flat, [x[:1]]),
                        tensors=[softmax.outputs[0]]).tensors[softmax.outputs[0]]  # fmt: skip
    first = shares.reshape(-1, 6, 6)[:, 0].astype(int) + 128
    assert (first[:, 0] >= 254).all() and (first[:, 1:] == 0).all()


def test_small_constants_are_no_mask() -> None:
    """The failing direction: an ordinary bias of the scores keeps its measured range."""
    flat = float32.convert(_model(lambda x: _added(x, -2.0))).artifact.flat
    ranges = {tensor.name: (-3.0, 3.0) for tensor in flat.tensors}
    found = narrowed(flat, ranges)
    assert (found.ranges, found.constants) == (ranges, {})
