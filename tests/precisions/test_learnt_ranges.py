"""Ranges with gradients (LSQ, PACT): by numpy, in training, in the record, in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.learnt_bounds import LearntBounds
from edgecompress.converters import float32, int8
from edgecompress.converters.loaders import load_model
from edgecompress.core.learnt_ranges import valid_record
from edgecompress.core.record import CompressionRecord, record_of
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.precisions.ranges import RANGES
from edgecompress.precisions.ranges.learnt import (
    learnt_fake_quantize,
    learnt_fake_quantize_weights,
)

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(16, 5)).astype("f4")
Y = RANDOM.normal(size=(16, 3)).astype("f4")


def gradients(rounding: Any, values: np.ndarray, upstream: np.ndarray) -> tuple[Any, ...]:
    """Returns the outputs, the gradient of the values and what `found` was given."""
    import tensorflow as tf

    found: list[Any] = []
    tensor = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        outputs = rounding(tensor, found.append)
        loss = tf.reduce_sum(outputs * upstream)
    gradient = tape.gradient(loss, tensor)
    return outputs.numpy(), gradient.numpy(), found[0].numpy()


def lsq(values: np.ndarray, step: Any, lowest: int, highest: int) -> np.ndarray:
    """Derivative of rounded values by the step: equation 3 of the paper."""
    position = values / step
    inside = np.rint(position) - position
    return np.where(position < lowest, lowest, np.where(position > highest, highest, inside))


def test_steps_of_activations_have_the_gradient_of_lsq() -> None:
    values = RANDOM.uniform(-0.5, 3, 400).astype("f4")
    upstream = RANDOM.normal(size=400).astype("f4")
    for bits in (2, 8):
        highest = 2**bits - 1
        step = np.float32(2.0 / highest)
        outputs, gradient, ends = gradients(
            lambda x, found, bits=bits: learnt_fake_quantize(
                x, np.array([0.0, 2.0], "f4"), bits, RANGES["lsq"], found
            ),
            values, upstream,
        )  # fmt: skip
        np.testing.assert_allclose(
            outputs, np.clip(np.rint(values / step), 0, highest) * step, atol=1e-6
        )
        np.testing.assert_array_equal(gradient, upstream * ((values >= 0) & (values <= 2)))
        # By the chain rule d/ds = n d/dh; an update of h by n g ds moves s by g ds.
        by_step = (upstream * lsq(values, step, 0, highest)).sum() / np.sqrt(400 * highest)
        assert ends[1] / highest == pytest.approx(by_step, rel=1e-3, abs=1e-4)
        # The range of a ReLU stays on one side.
        assert ends[0] == 0


def test_clipping_has_the_gradient_of_pact() -> None:
    values = RANDOM.uniform(-3, 3, 400).astype("f4")
    upstream = RANDOM.normal(size=400).astype("f4")
    *_, ends = gradients(
        lambda x, found: learnt_fake_quantize(
            x, np.array([-1.0, 2.0], "f4"), 8, RANGES["pact"], found
        ),
        values, upstream,
    )  # fmt: skip
    # The range moves by up to half a step, to hold zero exactly.
    scale = 3 / 255
    high = (255 - np.rint(1 / scale)) * scale
    decay = 2 * 5e-4 * np.array([-1.0, 2.0])
    want = [upstream[values < high - 3].sum(), upstream[values > high].sum()]
    np.testing.assert_allclose(ends, want + decay, rtol=1e-4)


def test_steps_of_weights_have_the_gradient_of_lsq() -> None:
    weights = RANDOM.normal(size=(50, 3)).astype("f4")
    upstream = RANDOM.normal(size=(50, 3)).astype("f4")
    steps = np.array([[0.2, 0.1, 0.5]], "f4")
    outputs, gradient, limits = gradients(
        lambda w, found: learnt_fake_quantize_weights(w, 7 * steps, 4, found), weights, upstream
    )
    np.testing.assert_allclose(outputs, np.clip(np.rint(weights / steps), -7, 7) * steps, rtol=1e-5)
    np.testing.assert_array_equal(gradient, upstream * (np.abs(weights / steps) <= 7))
    by_step = (upstream * lsq(weights, steps, -7, 7)).sum(0) / np.sqrt(50 * 7)
    np.testing.assert_allclose(limits[0] / 7, by_step, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, list[np.ndarray]]:
    """A model after one step, and its weights before."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5,), name="x"), keras.layers.Dense(3, use_bias=False, name="dense")]
    )
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    precision = ec.Int4(
        edge_bits=4, scale_per_unit=True, weight_ranges="lsq", activation_ranges="lsq"
    )
    model.fit(X, Y, batch_size=16, verbose=0, callbacks=[ec.QuantizationAwareTraining(precision)])
    return model, before


def test_one_step_of_training_by_numpy(trained: tuple[keras.Model, list[np.ndarray]]) -> None:
    model, (kernel,) = trained
    start = np.asarray(ec.Int4(weight_ranges="mse").weight_scales(kernel, (-1,)))
    record = record_of(model)
    low, high = X.min(), X.max()
    # The first batch's range with the smallest error; no gradient reaches an input.
    precision = ec.Int8(activation_ranges="mse")
    np.testing.assert_allclose(record.ranges["input:0"], precision.batch_range(X), rtol=1e-5)
    low, high = record.ranges["input:0"]
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(X / scale) + zero, 0, 255) - zero) * scale
    linear = rounded @ (np.clip(np.rint(kernel / start), -7, 7) * start)
    ends = np.asarray(precision.batch_range(linear.astype("f4")), np.float64)
    step = (ends[1] - ends[0]) / 255
    least = -np.rint(-ends[0] / step) * step
    outputs = np.clip(np.rint((linear - least) / step), 0, 255) * step + least
    upstream = 2 * (outputs - Y) / Y.size
    inside = (linear >= least) & (linear <= least + 255 * step)
    by_kernel = rounded.T @ (upstream * inside)
    by_step = (by_kernel * lsq(kernel, start, -7, 7)).sum(0) / np.sqrt(5 * 7)
    np.testing.assert_allclose(
        record.weight_scales["dense/kernel"], start[0] - 0.1 * by_step, rtol=1e-4
    )
    assert np.abs(by_step).min() > 1e-4


def test_scales_survive_a_file_and_reach_the_exported_one(
    trained: tuple[keras.Model, list[np.ndarray]], tmp_path: Path
) -> None:
    model, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    scales = np.array(loaded.record.weight_scales["dense/kernel"])
    assert CompressionRecord.from_dict(loaded.record.to_dict()) == loaded.record
    precision = ec.Int4(
        edge_bits=4, scale_per_unit=True, weight_ranges="lsq", activation_ranges="lsq"
    )
    flat = int8.convert(float32.convert(loaded), record=loaded.record, precision=precision).flat
    (reader,) = [o for o in flat.operators if o.code in FILTER_READERS]
    filters, kernel = flat.tensor(reader, 1), model.get_weights()[0]
    np.testing.assert_allclose(filters.scales, scales, rtol=1e-6)
    codes = np.clip(np.rint(kernel / scales.astype("f4")), -7, 7)
    np.testing.assert_array_equal(filters.values(), codes.T)
    # The largest weights would give other scales.
    assert not np.allclose(np.abs(kernel).max(0) / 7, scales, rtol=1e-3)
    np.testing.assert_allclose(ec.simulate(model).get_weights()[0], codes * scales, rtol=1e-5)


def test_other_weights_lose_their_scales(trained: tuple[keras.Model, list[np.ndarray]]) -> None:
    model, before = trained
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    assert valid_record(copy, record_of(model)).weight_scales
    copy.set_weights(before)
    assert not valid_record(copy, record_of(model)).weight_scales
    with pytest.raises(ValueError, match="finite and positive"):
        CompressionRecord(weight_scales={"dense/kernel": (0.0,)})


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Lion"])
def test_ends_are_updated_without_the_weights_decay_and_clipping(name: str) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(getattr(keras.optimizers, name)(0.1, weight_decay=0.5, clipnorm=1e-3), "mse")
    bounds, end = LearntBounds(model), keras.Variable([2.0, -2.0])
    bounds.add("end", end, lambda values: values)
    bounds.prepare()
    bounds.found("end", keras.ops.zeros(2))
    hook = bounds.hook()
    assert hook is not None
    hook.after()
    # Decay would pull them to zero.
    np.testing.assert_array_equal(end.numpy(), [2.0, -2.0])
    bounds.found("end", keras.ops.convert_to_tensor([1.0, -1.0]))
    hook.after()
    np.testing.assert_array_less(np.abs(end.numpy()), 1.95)
