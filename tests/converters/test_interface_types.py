"""Inputs and outputs of other types than the file computes in."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.interface_types import with_interface
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.errors import ArgumentError
from edgecompress.engines.registry import LITERT, TFLM
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.pipeline.builder import build
from edgecompress.pipeline.request import build_request

layers = keras.layers

_RNG = np.random.default_rng(9)
A = _RNG.normal(size=(24, 6)).astype("f4")
B = _RNG.uniform(0, 3, size=(24, 4)).astype("f4")


def _model() -> keras.Model:
    keras.utils.set_random_seed(8)
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    x = layers.Concatenate()([layers.Dense(5, "relu")(a), layers.Dense(5, "relu")(b)])
    scores = layers.Dense(3, activation="softmax", name="scores")(x)
    return keras.Model([a, b], [scores, layers.Dense(2, name="values")(x)])


@pytest.fixture(scope="module")
def made() -> Callable[[ec.Int8], Artifact]:
    source = float32.convert(_model())
    files: dict[str, Artifact] = {}

    def convert(precision: ec.Int8) -> Artifact:
        if precision.name not in files:
            files[precision.name] = int8.convert(source, calibration=[A, B], precision=precision)
        return files[precision.name]

    return convert


def _types(flat: FlatModel) -> list[str]:
    return [flat.tensors[i].type for i in (*flat.inputs, *flat.outputs)]


def _outputs(flat: FlatModel, engine: str) -> list[np.ndarray]:
    run = run_engine(engine, flat.data, quantized_inputs(flat, [A, B]))
    return [
        dequantize(values, flat.tensors[index])
        for values, index in zip(run.outputs, flat.outputs, strict=True)
    ]


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("engine", [LITERT, TFLM])
def test_the_file_computes_the_same(kind: str, engine: str, made: Callable[..., Artifact]) -> None:
    if engine_available(engine) is not None:
        pytest.skip(f"{engine} is not installed")
    plain = made(ec.Int8())
    other = with_interface(plain, kind, kind)
    assert _types(other.flat) == [kind.upper()] * 4
    assert [other.flat.tensors[i].name for i in other.flat.outputs] == ["scores", "values"]
    for old, new, index in zip(
        _outputs(plain.flat, engine), _outputs(other.flat, engine), plain.flat.outputs, strict=True
    ):
        step = (plain.flat.tensors[index].scales or (1.0,))[0]
        # int16 inputs are rounded twice: a value halfway between two codes may take the other one.
        limit = 2.01 if kind == "int16" else 0.01
        assert np.abs(old - new).max() <= limit * step
    assert len(np.unique(_outputs(other.flat, engine)[1])) > 10


def test_types_by_name_and_position(made: Callable[..., Artifact]) -> None:
    plain = made(ec.Int8())
    other = with_interface(plain, {"b": "uint8"}, {"0": "float32", "*": "int16"})
    assert _types(other.flat) == ["INT8", "UINT8", "FLOAT32", "INT16"]
    assert sum("inside, the file computes in int8" in note for note in other.notes) == 3
    assert with_interface(plain, None, None) is plain
    assert with_interface(plain, "int8", None) is plain
    wide = with_interface(made(ec.Int16x8()), "float32", None)
    assert _types(wide.flat) == ["FLOAT32", "FLOAT32", "INT16", "INT16"]


def test_uint8_codes_are_int8_codes_plus_128(made: Callable[..., Artifact]) -> None:
    plain = made(ec.Int8()).flat
    other = with_interface(made(ec.Int8()), "uint8", "uint8").flat
    for before, after in zip(
        quantized_inputs(plain, [A, B]), quantized_inputs(other, [A, B]), strict=True
    ):
        assert np.array_equal(before.astype(int) + 128, after.astype(int))


@pytest.mark.parametrize(
    ("inputs", "precision", "said"),
    [
        ({"c": "int8"}, ec.Int8(), r"--input-type.*a, b"),
        ("int8", ec.Int16x8(), r"--input-type.*int16 or float32 for a"),
        ("uint8", ec.Float16(), r"--input-type.*float32 for a"),
    ],
)
def test_what_cannot_be_is_refused(
    inputs: object, precision: ec.Int8, said: str, made: Callable[..., Artifact]
) -> None:
    with pytest.raises(ArgumentError, match=said):
        with_interface(made(precision), inputs, None)


def test_export_judges_the_file_that_ships() -> None:
    options = {"input_type": "float32", "output_type": "uint8"}
    request = build_request(
        _model(), ["cortex-m4"], calibration=[A, B], bundle=False, options=options
    )
    build_ = build(request)
    assert _types(build_.main.flat) == ["FLOAT32", "FLOAT32", "UINT8", "UINT8"]
    checks = {check.rule: check for check in build_.targets[0].checks}
    assert checks["operators"].verdict == "pass", checks["operators"].reason
    assert checks["parity"].verdict == "pass", checks["parity"].reason
    assert checks["arena"].verdict != "not_measured"
