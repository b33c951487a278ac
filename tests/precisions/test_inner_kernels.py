"""Kernels of 4 bits in recurrent cells, attention and EinsumDense: training, simulation, file."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.core.inner_kernels import inner_kernels
from edgecompress.core.record import record_of
from edgecompress.flatbuffers.operators import FILTER_READERS

pytestmark = pytest.mark.slow

X = np.random.default_rng(1).normal(size=(8, 2, 3)).astype("f4")
# Kernels of 4 bits see this column alone.
X[..., 2] = 0
# Unrolled: as one operator, the LSTM would have 8 bits.
PRECISION = ec.Int4(recurrent_bits=4)
BRANCHES = ("einsum", "gru", "lstm", "both")


def network(dropout: float = 0.0) -> keras.Model:
    """Each branch reads the input through a kernel of which 4 bits leave the last row alone."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(2)
    inputs = keras.Input((2, 3))
    first = layers.Dense(3, name="first")(inputs)
    parts = [
        layers.Flatten()(layers.EinsumDense("abc,cd->abd", (2, 2), name="einsum")(first)),
        layers.GRU(2, unroll=True, name="gru")(first),
        layers.LSTM(2, recurrent_dropout=dropout, unroll=True, name="lstm")(first),
        layers.Bidirectional(layers.SimpleRNN(2, unroll=True), name="both")(first),
    ]
    model = keras.Model(inputs, layers.Dense(4, name="last")(layers.Concatenate()(parts)))
    model.get_layer("first").set_weights([np.eye(3), np.zeros(3)])
    # Without a bias, the states would stay at zero, and dropout would change nothing.
    model.get_layer("lstm").cell.bias.assign(np.linspace(-1, 1, 8))
    for name in BRANCHES:
        for kernel in inner_kernels(model.get_layer(name)):
            if not kernel.name.endswith("recurrent_kernel"):
                values = random.uniform(-0.05, 0.05, kernel.variable.shape)
                values[2] = 1.0
                kernel.variable.assign(values)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


class Outputs(keras.callbacks.Callback):
    """What validation computes."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.values = self.model.predict_on_batch(X)


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, np.ndarray, list[float]]:
    model, outputs = network(0.5), Outputs()
    precision = ec.QuantizationAwareTraining(PRECISION)
    history = model.fit(
        X, np.zeros((8, 4)), epochs=2, batch_size=8, verbose=0, callbacks=[precision, outputs]
    )
    return model, outputs.values, history.history["loss"]


def test_training_and_simulation_round_them(trained: Any) -> None:
    model, validated, losses = trained
    for outputs in (validated, ec.simulate(model).predict_on_batch(X)):
        assert np.ptp(outputs, axis=0).max() < 1e-6
    assert np.ptp(model.predict_on_batch(X), axis=0).max() > 0.01
    # The state of dropout advances.
    assert losses[0] != losses[1]


def test_the_file_holds_what_training_rounded(trained: Any) -> None:
    model = network()
    floats = float32.convert(model)
    record = record_of(trained[0])
    made = int8.convert(floats, record=record, calibration=[X], precision=PRECISION).flat
    readers = [o for o in floats.artifact.flat.operators if o.code in FILTER_READERS]
    stored = [o for o in made.operators if o.code in FILTER_READERS]
    seen = set()
    for before, after in zip(readers, stored, strict=True):
        weights = floats.artifact.flat.tensor(before, 1)
        owner = floats.owners[weights.name]
        if owner.split("/")[0] not in BRANCHES:
            continue
        seen.add(owner)
        filters, values = made.tensor(after, 1), weights.values()
        assert filters.type == "INT4" and len(filters.scales) == 1
        scale = np.abs(values).max() / 7
        np.testing.assert_allclose(filters.scales[0], scale, rtol=1e-6)
        np.testing.assert_array_equal(filters.values(), np.rint(values / scale))
    assert seen == {
        f"{name}/{kernel.name}"
        for name in BRANCHES
        for kernel in inner_kernels(model.get_layer(name))
    }


def test_axes_of_output_channels() -> None:
    attention = layers.MultiHeadAttention(2, 3)
    attention(np.zeros((1, 4, 6), "f4"), np.zeros((1, 4, 6), "f4"))
    found = {kernel.name: kernel.outputs for kernel in inner_kernels(attention)}
    assert found == {
        "query_dense.kernel": (-2, -1),
        "key_dense.kernel": (-2, -1),
        "value_dense.kernel": (-2, -1),
        "output_dense.kernel": (-1,),
    }
    shared = layers.EinsumDense("abc,bcd->abd", (4, 2))
    shared(np.zeros((1, 4, 6), "f4"))
    assert inner_kernels(shared) == inner_kernels(layers.Dense(2)) == inner_kernels(None) == ()
