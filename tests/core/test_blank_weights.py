"""Large weights start at zero inside the block, and only there."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgecompress.core import blank_weights as module
from edgecompress.core.blank_weights import blank_weights

INITIALIZERS = ["glorot_uniform", "he_normal", "random_normal", "random_uniform",
                "truncated_normal", "orthogonal"]  # fmt: skip


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_large_weights_start_at_zero(initializer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", 12)

    def kernels() -> list[np.ndarray]:
        made = [keras.layers.Dense(units, kernel_initializer=initializer) for units in (3, 2)]
        for layer in made:
            layer.build((None, 4))
        return [np.asarray(layer.kernel) for layer in made]

    with blank_weights():
        large, small = kernels()
    assert not large.any() and small.any()
    large, small = kernels()
    assert large.any() and small.any()


def test_memory_that_is_zero_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    empty = tf.raw_ops.Empty
    monkeypatch.setattr(module, "_LARGE", 12)
    monkeypatch.setattr(module, "comes_zeroed", lambda size: size >= 48)

    def recorded(shape: tuple[int, ...], dtype: tf.DType) -> tf.Tensor:
        made.append(tuple(shape))
        return empty(shape=shape, dtype=dtype)

    monkeypatch.setattr(tf.raw_ops, "Empty", recorded)
    with blank_weights():
        for dtype in ("float32", "float16"):
            layer = keras.layers.Dense(3, dtype=dtype)
            layer.build((None, 4))
            assert layer.kernel.shape == (4, 3) and layer.kernel.dtype == dtype
    assert made == [(4, 3)]


def test_drawing_comes_back_after_an_error() -> None:
    draw = keras.initializers.VarianceScaling.__call__
    with pytest.raises(RuntimeError), blank_weights():
        assert keras.initializers.VarianceScaling.__call__ is not draw
        raise RuntimeError
    assert keras.initializers.VarianceScaling.__call__ is draw
