"""Functions of one number as tables of codes, compared with formulas, LiteRT and both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32, int8, tables
from edgecompress.converters.loaders import wrap
from edgecompress.converters.real_values import dequantize
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.operators import unsupported, wrong_results
from edgecompress.targets.profile import load_target

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl, ops = keras.layers, keras.ops
ENGINES = ("litert", "tflm")
CODES = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)


def _int8(build: Callable[[Any], Any]) -> Artifact:
    inputs = keras.Input((16,), name="inputs")
    floats = float32.convert(keras.Model(inputs, build(inputs), name="net"))
    samples = np.linspace(-3, 5, 320, dtype=np.float32).reshape(20, 16)
    return int8.convert(floats, calibration=[samples])


def _check(artifact: Artifact, formula: Callable[[np.ndarray], np.ndarray]) -> None:
    """Both engines give the code nearest to the formula, for every code of the input."""
    flat = artifact.flat
    source, output = flat.tensors[flat.inputs[0]], flat.tensors[flat.outputs[0]]
    wanted = formula(dequantize(CODES, source)) / output.scales[0] + output.zero_points[0]
    for engine in ENGINES:
        found = run_engine(engine, artifact.data, [CODES]).outputs[0]
        assert found.dtype == np.int8
        assert np.abs(found - np.clip(wanted, -128, 127)).max() <= 0.5 + 1e-3, engine


def _three(x: Any) -> Any:
    """Softplus, a leaky curve written by hand, and the input itself, which is no table."""
    left = kl.Activation("softplus", name="soft")(x)
    return [left, ops.where(ops.greater(x, 0.5), x, ops.multiply(x, -0.25)), ops.add(x, x)]


def test_functions_of_one_number_become_tables_of_all_codes() -> None:
    artifact = _int8(_three)
    flat = artifact.flat
    assert flat.histogram() == {"CAST": 2, "ADD": 3, "GATHER": 2}
    assert {t.type for t in flat.tensors} == {"INT8", "INT32"}
    assert any("soft (EXP, ADD, LOG)" in note for note in artifact.notes), artifact.notes
    x = dequantize(CODES, flat.tensors[flat.inputs[0]])
    for position, wanted in enumerate((np.log1p(np.exp(x)), np.where(x > 0.5, x, -0.25 * x))):
        output = flat.tensors[flat.outputs[position]]
        codes = np.clip(wanted / output.scales[0] + output.zero_points[0], -128, 127)
        for engine in ENGINES:
            found = run_engine(engine, artifact.data, [CODES]).outputs[position]
            assert np.abs(found - codes).max() <= 0.5 + 1e-3, (engine, position)


def test_a_table_replaces_what_a_target_lacks_and_only_that() -> None:
    def gelu(x: Any) -> Any:
        return kl.Activation("gelu", name="curved")(x)

    artifact, board = _int8(gelu), load_target("cortex-m4")
    plain = run_engine("litert", artifact.data, [CODES]).outputs[0]

    def refused(flat: Any) -> set[int]:
        return {problem.index for problem in unsupported(flat, board)}

    assert artifact.flat.histogram() == {"GELU": 1} and refused(artifact.flat) == {0}
    assert tables.for_targets(artifact, lambda flat: ()) is artifact
    # A firmware without GATHER gains nothing.
    assert tables.for_targets(artifact, lambda f: {o.index for o in f.operators}) is artifact
    made = tables.for_targets(artifact, refused)
    assert not refused(made.flat) and "curved (GELU)" in made.notes[-1]
    for engine in ENGINES:
        found = run_engine(engine, made.data, [CODES]).outputs[0]
        assert np.abs(found.astype(int) - plain).max() <= 1
        assert (found == plain).mean() > 0.98


def test_relu6_alone_is_right_in_both_engines() -> None:
    artifact = _int8(lambda x: kl.ReLU(6.0, name="clipped")(ops.multiply(x, 2.0)))
    assert "RELU6" not in artifact.flat.histogram()
    _check(_int8(lambda x: kl.ReLU(6.0)(x)), lambda x: np.clip(x, 0, 5))
    assert not wrong_results(artifact.flat, load_target("cortex-m4"))


def test_a_relu6_between_scales_is_known_to_be_wrong() -> None:
    """The failing direction: TensorFlow Lite Micro's kernel, fed what other tools write."""
    from edgecompress.flatbuffers.editor import ModelEditor

    editor = ModelEditor(_int8(lambda x: kl.ReLU()(x)).flat)
    editor.set_code(editor.operators[0], "RELU6", 2)
    flat = read_tflite(editor.pack())
    (problem,) = wrong_results(flat, load_target("cortex-m4"))
    assert "RELU6" in problem.reason
    outputs = [run_engine(engine, flat.data, [CODES]).outputs[0] for engine in ENGINES]
    assert np.abs(outputs[0].astype(int) - outputs[1]).max() > 10


def test_what_is_no_function_of_one_number_is_left_alone() -> None:
    def build(x: Any) -> Any:
        y = kl.Dense(16, name="dense")(x)
        scaled = ops.multiply(y, np.arange(16, dtype=np.float32))  # a constant of many numbers
        return ops.add(kl.Activation("silu", name="silu")(scaled), x)

    inputs = keras.Input((16,))
    flat = read_tflite(float32.to_flatbuffer(wrap(keras.Model(inputs, build(inputs)))))
    assert tables.curves(flat) == []
