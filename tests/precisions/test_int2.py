"""int2 weights: the best three levels of each unit, in a file that computes with them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import quantized_inputs
from edgecompress.core.errors import ArgumentError, EngineError
from edgecompress.engines.registry import LEGACY, LITERT, TFLM
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.precisions.base import Place
from edgecompress.simulation import EngineSimulation

X = np.random.default_rng(5).normal(size=(40, 12)).astype("f4")


def _file(widths: tuple[int, ...], inputs: int = 12) -> Any:
    keras.utils.set_random_seed(4)
    dense = [keras.layers.Dense(width, "relu", name=f"dense_{width}") for width in widths]
    model = keras.Sequential([keras.Input((inputs,)), *dense])
    x = np.resize(X, (40, inputs))
    precision = ec.Int2(edge_bits=2 if len(widths) == 1 else 8)
    made = int8.convert(float32.convert(model), calibration=[x], precision=precision)
    return model, made, quantized_inputs(made.flat, [x])


def _filters(flat: Any) -> list[Any]:
    return [flat.tensor(o, 1) for o in flat.operators if o.code == "FULLY_CONNECTED"]


@pytest.fixture(scope="module")
def three() -> Any:
    return _file((8, 16, 3))


def test_only_dense_layers_in_the_middle_have_2_bits(three: Any) -> None:
    assert [filters.type for filters in _filters(three[1].flat)] == ["INT8", "INT2", "INT8"]
    assert any("int8 instead of int2: dense_8" in note for note in three[1].notes)
    every = ec.Int2(edge_bits=2)
    assert every.weights_at(Place("x", "FULLY_CONNECTED", first=True)) is every
    assert every.weights_at(Place("x", "CONV_2D")) == ec.Int8()
    for bits in (4, True, "2"):
        with pytest.raises(ArgumentError, match=r"edge_bits.*2 or 8"):
            ec.Int2(edge_bits=bits)


def test_each_unit_has_the_three_levels_with_the_smallest_error(three: Any) -> None:
    model, made, _ = three
    (filters,) = [f for f in _filters(made.flat) if f.type == "INT2"]
    weights = np.array(model.get_layer("dense_16").kernel).T
    codes = filters.values()
    assert set(np.unique(codes)) == {-1, 0, 1}
    found = ((weights - codes * np.array(filters.scales)[:, None]) ** 2).sum(1)
    # Of all scales that could be chosen, by trying them.
    scales = np.linspace(0.05, 1.0, 400)[:, None, None] * np.abs(weights).max(1)[:, None]
    tried = ((weights - np.clip(np.round(weights / scales), -1, 1) * scales) ** 2).sum(-1).min(0)
    largest = np.abs(weights).max(1)[:, None]
    plain = ((weights - np.round(weights / largest) * largest) ** 2).sum(1)
    assert (found <= 1.02 * tried).all()
    assert (plain > 1.2 * tried).mean() > 0.5  # the largest weight is a bad scale


@pytest.mark.skipif(engine_available(LITERT) is not None, reason="LiteRT is not installed")
def test_litert_computes_it_and_others_refuse(three: Any) -> None:
    _, made, codes = three
    found = run_engine(LITERT, made.data, codes).outputs[0]
    np.testing.assert_array_equal(EngineSimulation(made, LITERT).codes(codes)[0][0], found)
    assert len(np.unique(found)) > 20
    for engine in (LEGACY, TFLM):
        if engine_available(engine) is None:
            with pytest.raises(EngineError):
                run_engine(engine, made.data, codes)


@pytest.mark.skipif(engine_available(LITERT) is not None, reason="LiteRT is not installed")
def test_rows_that_do_not_fill_bytes_are_computed_as_another_kernel_does() -> None:
    _, made, codes = _file((6,), inputs=13)
    assert _filters(made.flat)[0].type == "INT2"
    found = run_engine(LITERT, made.data, codes).outputs[0]
    np.testing.assert_array_equal(EngineSimulation(made, LITERT).codes(codes)[0][0], found)
