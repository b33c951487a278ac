"""Codes, scales and biases of an int8 file, element by element, by numpy from the Keras weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.core.fusion import analyse
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.options import named_config
from edgecompress.core.record import CompressionRecord
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.precisions.base import PRECISIONS, QAT, Precision
from edgecompress.precisions.mixed import assign, kernels_step, places_of

pytestmark = pytest.mark.slow

RANGES = {"input:0": (-1.0, 2.0), "first": (0.0, 3.0), "second": (0.0, 4.0), "third": (-5.0, 5.0)}


PRECISIONS_OF: dict[str, Precision] = {
    "per channel": ec.Int8(),
    "shared scale": ec.Int8(),
    "int4": ec.Int4(edge_bits=4),
    "clipped": ec.Int4(edge_bits=4, weight_ranges="mse"),
}


def network(shared: bool) -> keras.Model:
    """Three kernels, two with BatchNormalization whose gamma is negative in some channels."""
    keras.backend.clear_session()
    random = np.random.default_rng(4)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.ReLU(name="first")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.ReLU(name="second")(layers.BatchNormalization(name="norm_2")(x))
    model = keras.Model(inputs, layers.Conv2D(5, 1, name="third")(x))
    for layer in model.layers:
        for weight in layer.weights:
            values = random.normal(size=weight.shape)
            if weight.name == "moving_variance":
                values = np.abs(values) + 0.2
            if shared and weight.name == "kernel" and layer.name == "conv":
                # Half of the channels hold only the smaller values.
                shared_values = np.linspace(-1, 1, 12)
                values = random.choice(shared_values, weight.shape)
                values[..., ::2] = random.choice(shared_values[3:9], values[..., ::2].shape)
            weight.assign(values)
    return model


def file_of(model: keras.Model, precision: Precision) -> FlatModel:
    config = named_config(PRECISIONS, precision)["config"]
    kernels = kernels_step(assign(places_of(model, analyse(model)), precision))
    step = {"technique": QAT, "quantizer": precision.name, **config, **kernels}
    record = tied(CompressionRecord((step,), RANGES), model)
    return int8.convert(float32.convert(model), record=record, precision=precision).flat


def expected(
    model: keras.Model,
    name: str,
    norm: str | None,
    source: float,
    levels: int,
    axes: Any,
    clipped: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns codes (channels, weights), scales and biases."""
    layer = model.get_layer(name)
    kernel = layer.kernel.numpy().astype(np.float64)
    depthwise = name == "depthwise"
    rows = kernel.reshape(-1, kernel.shape[-2] if depthwise else kernel.shape[-1]).T
    scales = np.abs(rows).max(axes, keepdims=True) / levels * np.ones((len(rows), 1))
    if clipped:
        scales *= np.array([[clipped_share(row, levels)] for row in rows])
    codes, scales = np.clip(np.rint(rows / scales), -levels, levels), scales[:, 0]
    bias = layer.bias.numpy().astype(np.float64) if layer.use_bias else np.zeros(len(rows))
    if norm is not None:
        gamma, beta, mean, variance = (
            weight.numpy().astype(np.float64) for weight in model.get_layer(norm).weights
        )
        factor = gamma / np.sqrt(variance + model.get_layer(norm).epsilon)
        bias = (bias - mean) * factor + beta
        codes, scales = codes * np.sign(factor)[:, None], scales * np.abs(factor)
        assert (factor < 0).any()
    return codes, scales, np.rint(bias / (source * scales))


def clipped_share(row: np.ndarray, levels: int) -> float:
    """Returns the limit that OCTAV's iteration converges to, in 64ths of the largest weight."""
    sizes = np.abs(row)
    limit = sizes.mean()
    for _ in range(100):
        above = sizes > limit
        limit = sizes[above].sum() / ((~above).sum() / (12 * levels**2) + above.sum())
    return float(np.rint(64 * limit / sizes.max()) / 64)


@pytest.mark.parametrize("case", ["per channel", "shared scale", "int4", "clipped"])
def test_weights_in_the_file_are_those_of_the_simulation(case: str) -> None:
    model = network(shared=case == "shared scale")
    flat = file_of(model, PRECISIONS_OF[case])
    readers = [operator for operator in flat.operators if operator.code in FILTER_READERS]
    assert len(readers) == 3
    clipped = case == "clipped"
    few = 7 if case == "int4" or clipped else 127
    # One scale for the whole kernel, or one for each row.
    one = None if case == "shared scale" else 1
    plan = (("conv", "norm", few, one), ("depthwise", "norm_2", 127, 1), ("third", None, few, 1))
    for operator, (name, norm, levels, axes) in zip(readers, plan, strict=True):
        filters, bias = flat.tensor(operator, 1), flat.tensor(operator, 2)
        assert filters.type == ("INT4" if levels == 7 else "INT8")
        source = float(flat.tensor(operator, 0).scales[0])
        codes, scales, biases = expected(model, name, norm, source, levels, axes, clipped)
        # Some weights are clipped, or the case would show nothing.
        assert not clipped or levels == 127 or (np.abs(codes) == levels).sum() > len(codes)
        stored = filters.values()
        if name == "depthwise":
            stored = np.moveaxis(stored, -1, 0)
        np.testing.assert_array_equal(stored.reshape(codes.shape), codes)
        np.testing.assert_allclose(filters.scales, scales, rtol=1e-5)
        # float32 arithmetic of folding decides ties of large biases.
        assert np.abs(bias.values() - biases).max() <= 1
        np.testing.assert_allclose(bias.scales, source * scales, rtol=1e-5)
