"""Parity: the formulas against numpy, and above all that a broken model is found and named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.converters import layer_errors
from edgecompress.converters.accuracy import Accuracy, accuracy
from edgecompress.converters.agreement import sqnr_db
from edgecompress.converters.real_values import dequantize, quantize
from edgecompress.converters.verify import Parity, verify
from edgecompress.core.errors import (
    ArgumentError,
    ModelFileError,
    NotFiniteError,
    UnsupportedModelError,
)
from edgecompress.engines.registry import LEGACY
from edgecompress.engines.run import load_failure, run_engine
from edgecompress.flatbuffers.all_outputs import with_outputs
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

pytestmark = pytest.mark.slow


def tensor(type_: str = "INT8", scales: Any = (0.5,), zero_points: Any = (10,)) -> Tensor:
    return Tensor(0, "x", (1, 3), type_, None, scales, zero_points)


class Tiny:
    """One of the tiny models: its files, inputs and the outputs of Keras."""

    def __init__(self, folder: Path, name: str) -> None:
        self.floats = (folder / f"{name}.tflite").read_bytes()
        self.int8 = (folder / f"{name}_int8.tflite").read_bytes()
        arrays = np.load(folder / f"{name}.npz")
        self.x = [arrays[f"x{i}"] for i in range(2) if f"x{i}" in arrays]
        self.y = [arrays[f"y{i}"] for i in range(2) if f"y{i}" in arrays]

    def verify(self, model: bytes | None = None, **options: Any) -> Parity:
        options = {"reference": self.y, "samples": self.x} | options
        return verify(model or self.int8, **options)


@pytest.fixture
def classifier(tiny: Path) -> Tiny:
    return Tiny(tiny, "classifier")


@pytest.fixture
def autoencoder(tiny: Path) -> Tiny:
    return Tiny(tiny, "autoencoder")


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def wrecked(data: bytes, position: int) -> bytes:
    """Returns the model with the filter of its operator at `position` turned around."""
    flat = read_tflite(data)
    target = flat.operators[position].inputs[1]

    def change(model: Any) -> None:
        buffer = model.buffers[model.subgraphs[0].tensors[target].buffer]
        values = np.asarray(buffer.data, np.uint8).view(np.int8)
        buffer.data = (-values[::-1]).view(np.uint8)

    return edited(data, change)


# ---- formulas


def test_quantization_rounds_halves_to_even_and_clips() -> None:
    values = np.array([0.25, 0.75, -0.25, 100.0, -100.0, 0.0])
    found = quantize(values, tensor())
    np.testing.assert_array_equal(found, [10, 12, 10, 127, -128, 10])
    assert found.dtype == np.int8


@pytest.mark.parametrize("type_", ["INT8", "UINT8", "INT16"])
def test_quantization_is_within_half_a_step_inside_the_range(type_: str) -> None:
    of = tensor(type_, (0.037,), (3 if type_ != "INT16" else 0,))
    values = np.random.default_rng(0).uniform(0, 4, 1000)
    assert np.abs(dequantize(quantize(values, of), of) - values).max() <= 0.037 / 2 * 1.001


def test_tensors_without_scale_take_values_as_they_are() -> None:
    assert quantize(np.array([0.1]), tensor("FLOAT32", (), ())).dtype == np.float32
    np.testing.assert_array_equal(quantize(np.array([3.0, 4.0]), tensor("INT32", (), ())), [3, 4])
    for values in ([0.5], [300.0]):
        with pytest.raises(ArgumentError, match="whole numbers that fit uint8"):
            quantize(np.array(values), tensor("UINT8", (), ()))


def test_values_that_cannot_be_quantized_are_refused() -> None:
    for values in ([np.nan], [np.inf]):
        with pytest.raises(ArgumentError, match="finite"):
            quantize(np.array(values), tensor())
    with pytest.raises(UnsupportedModelError, match="2 scales"):
        quantize(np.zeros(1), tensor(scales=(0.5, 0.6), zero_points=(0, 0)))
    with pytest.raises(UnsupportedModelError, match="STRING"):
        quantize(np.zeros(1), tensor("STRING", (), ()))


def test_sqnr_is_the_formula() -> None:
    assert sqnr_db(100.0, 1.0) == 20
    assert sqnr_db(1.0, 0.0) == math.inf and sqnr_db(0.0, 0.0) == math.inf
    assert sqnr_db(0.0, 1.0) == -math.inf


# ---- the passing direction


@pytest.mark.parametrize("engine", ["litert", "tflm", "tflite-runtime"])
def test_a_sound_int8_model_agrees(classifier: Tiny, engine: str) -> None:
    parity = classifier.verify(engine=engine)
    assert (parity.engine, parity.kind, parity.samples) == (engine, "classes", 60)
    assert parity.agreement >= 0.95
    assert 0 < parity.mean_error_steps < parity.max_error_steps
    assert parity.max_error == pytest.approx(parity.max_error_steps * parity.step)
    assert parity.step == pytest.approx(1 / 256)


@pytest.mark.parametrize("name", ["classifier", "autoencoder", "sigmoid"])
def test_the_float_flatbuffer_equals_keras(tiny: Path, name: str) -> None:
    model = Tiny(tiny, name)
    parity = model.verify(model.floats, float_model=model.floats)
    assert parity.agreement == 1 and parity.max_error < 1e-5
    # A float output has the steps that an 8-bit one would have.
    assert parity.step == pytest.approx(np.ptp(model.y[0]) / 255)
    assert all(layer.sqnr_db == math.inf for layer in parity.layers)
    assert parity.suspect is None


def test_errors_equal_numpys(autoencoder: Tiny) -> None:
    parity = autoencoder.verify()
    flat = read_tflite(autoencoder.int8)
    run = run_engine(
        "litert", autoencoder.int8, [quantize(autoencoder.x[0], flat.tensors[flat.inputs[0]])]
    )
    output = flat.tensors[flat.outputs[0]]
    real = (run.outputs[0].astype(float) - output.zero_points[0]) * output.scales[0]
    errors = np.abs(real - autoencoder.y[0])
    assert parity.max_error == pytest.approx(errors.max())
    assert parity.mean_error_steps == pytest.approx(errors.mean() / output.scales[0])
    rms = np.sqrt((errors**2).mean(1))
    assert 0 < rms.min() < rms.max()
    for tolerance in (rms.min() * 1.01, np.median(rms), rms.max() * 1.01):
        share = tolerance / np.ptp(autoencoder.y[0])
        assert autoencoder.verify(tolerance=share).agreement == np.mean(rms <= tolerance)


def test_what_counts_as_agreement_follows_the_outputs(tiny: Path, classifier: Tiny) -> None:
    assert Tiny(tiny, "autoencoder").verify().kind == "values"
    assert Tiny(tiny, "sigmoid").verify().kind == "binary"
    assert classifier.verify(kind="values").kind == "values"
    with pytest.raises(ArgumentError, match="kind"):
        classifier.verify(kind="segments")


def test_agreement_is_the_share_of_equal_argmax(classifier: Tiny) -> None:
    reference = classifier.y[0].copy()
    reference[:15] = np.roll(reference[:15], 1, axis=1)
    before = classifier.verify(classifier.floats).agreement
    after = classifier.verify(classifier.floats, reference=reference).agreement
    assert (before, after) == (1, 0.75)


def test_binary_agreement_is_the_side_of_one_half(tiny: Path) -> None:
    model = Tiny(tiny, "sigmoid")
    assert model.verify().agreement >= 0.95
    assert model.verify(reference=1 - model.y[0]).agreement <= 0.05


def test_several_outputs_count_with_the_worst(tiny: Path) -> None:
    two = Tiny(tiny, "two")
    flat = read_tflite(two.int8)
    order = [two.y[0] if flat.tensors[i].shape[1] == 2 else two.y[1] for i in flat.outputs]
    sound = two.verify(reference=order)
    assert sound.agreement > 0.9 and not sound.notes
    first = two.verify(reference=order[0])
    assert "Only 1 of 2 outputs" in first.notes[0]
    broken = two.verify(reference=[order[0], -order[1]])
    assert broken.agreement < 0.6 and broken.max_error_steps > 10 * sound.max_error_steps
    with pytest.raises(ArgumentError, match="at most 2 outputs"):
        two.verify(reference=[*order, order[0]])


# ---- the failing direction


@pytest.mark.parametrize(
    ("position", "operator"),
    [(0, "CONV_2D"), (1, "DEPTHWISE_CONV_2D"), (2, "CONV_2D"), (4, "FULLY_CONNECTED")],
)
def test_a_wrecked_layer_is_found_and_named(classifier: Tiny, position: int, operator: str) -> None:
    flat = read_tflite(classifier.floats)
    victim = flat.operators[position]
    assert victim.code == operator
    name = flat.output(victim).name.split(";")[0]
    parity = classifier.verify(wrecked(classifier.int8, position), float_model=classifier.floats)
    assert parity.agreement < 0.8
    assert parity.suspect is not None and parity.suspect.name == name
    assert parity.suspect.operator == operator and (parity.suspect.drop_db or 0) > 10
    found = {layer.name: layer.sqnr_db for layer in parity.layers}
    assert found[name] < 10
    # Layers before it are as good as in the sound model, those behind it suffer with it.
    sound = {
        layer.name: layer.sqnr_db
        for layer in classifier.verify(float_model=classifier.floats).layers
    }
    for operator_before in flat.operators[:position]:
        before = flat.output(operator_before).name.split(";")[0]
        assert found[before] == sound[before] > 15


def test_the_worst_layer_comes_first(classifier: Tiny) -> None:
    flat = read_tflite(classifier.floats)
    # The last weighted layer: nothing behind it but the softmax can be worse.
    parity = classifier.verify(wrecked(classifier.int8, 4), float_model=classifier.floats)
    ratios = [layer.sqnr_db for layer in parity.layers]
    assert ratios == sorted(ratios)
    ends = {flat.output(flat.operators[i]).name.split(";")[0] for i in (4, 5)}
    assert {layer.name for layer in parity.layers[:2]} == ends


def test_a_wrecked_autoencoder_does_not_agree(autoencoder: Tiny) -> None:
    assert autoencoder.verify().agreement == 1
    assert autoencoder.verify(wrecked(autoencoder.int8, 1)).agreement < 0.1


def test_inputs_that_the_scale_clips_show_at_the_input(classifier: Tiny) -> None:
    def narrow(model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].quantization.scale = [0.001]

    parity = classifier.verify(edited(classifier.int8, narrow), float_model=classifier.floats)
    inputs = [layer for layer in parity.layers if layer.operator == "INPUT"]
    assert len(inputs) == 1 and inputs[0].sqnr_db < 2


def test_outputs_that_are_no_numbers_are_an_error(autoencoder: Tiny) -> None:
    def poison(model: Any) -> None:
        flat = read_tflite(autoencoder.floats)
        target = flat.operators[1].inputs[1]
        buffer = model.buffers[model.subgraphs[0].tensors[target].buffer]
        values = np.asarray(buffer.data, np.uint8).view(np.float32).copy()
        values[0] = np.nan
        buffer.data = values.view(np.uint8)

    with pytest.raises(NotFiniteError, match="made by .*NaN or infinite in 60 of 60 samples"):
        autoencoder.verify(edited(autoencoder.floats, poison))


# ---- layers


def test_layer_ratios_equal_numpys(classifier: Tiny) -> None:
    parity = classifier.verify(float_model=classifier.floats, layer_samples=7)
    flat, small = read_tflite(classifier.floats), read_tflite(classifier.int8)
    index, partner = flat.operators[1].outputs[0], small.operators[1].outputs[0]
    x = classifier.x[0][:7]
    exact = run_engine("litert", with_outputs(flat, [index]), [x]).outputs[-1]
    quantized = quantize(x, small.tensors[small.inputs[0]])
    run = run_engine("litert", with_outputs(small, [partner]), [quantized])
    rounded = dequantize(run.outputs[-1], small.tensors[partner])
    expected = 10 * np.log10((exact.astype(float) ** 2).sum() / ((exact - rounded) ** 2).sum())
    name = flat.tensors[index].name.split(";")[0]
    (found,) = [layer.sqnr_db for layer in parity.layers if layer.name == name]
    assert found == pytest.approx(expected)
    assert len(parity.layers) == len(flat.operators) + 1


def test_layers_are_matched_by_position_where_names_are_gone(classifier: Tiny) -> None:
    def strip(model: Any) -> None:
        for entry in model.subgraphs[0].tensors:
            entry.name = ""

    named = classifier.verify(float_model=classifier.floats).layers
    stripped = classifier.verify(edited(classifier.int8, strip), float_model=classifier.floats)
    assert stripped.layers == named and not stripped.notes


def test_tensors_without_a_partner_are_named(classifier: Tiny) -> None:
    def rename(model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.operators[0].outputs[0]].name = "other"
        # Another order of operators, so that positions say nothing.
        graph.operators[-1].opcodeIndex = graph.operators[0].opcodeIndex
        graph.operators[-1].builtinOptionsType = graph.operators[0].builtinOptionsType

    pairs, unmatched = layer_errors._pairs(
        read_tflite(classifier.floats), read_tflite(edited(classifier.int8, rename))
    )
    flat = read_tflite(classifier.floats)
    assert unmatched == [flat.output(flat.operators[0]).name.split(";")[0]]
    assert len(pairs) == len(flat.operators) - 1


# ---- accuracy


def test_accuracy_is_the_share_of_right_labels(classifier: Tiny) -> None:
    x, labels = classifier.x[0], classifier.y[0].argmax(1)
    found = accuracy(classifier.floats, x, labels)
    assert isinstance(found, Accuracy) and float(found) == found.top1 == 1
    assert found.samples == 60
    wrong = labels.copy()
    wrong[:12] = (wrong[:12] + 1) % 4
    for shape in (wrong, wrong[:, None], np.eye(4)[wrong], wrong.astype(float)):
        assert accuracy(classifier.floats, x, shape).top1 == 0.8
    assert accuracy(classifier.int8, x, labels, engine="tflm").top1 >= 0.95


def test_accuracy_of_a_sigmoid(tiny: Path) -> None:
    model = Tiny(tiny, "sigmoid")
    labels = model.y[0] >= 0.5
    assert 0.2 < labels.mean() < 0.8
    assert accuracy(model.floats, model.x, labels).top1 == 1


def test_labels_that_do_not_fit_are_refused(classifier: Tiny) -> None:
    x = classifier.x[0]
    for labels, text in (
        (np.zeros(59), "one label for each of the 60 samples"),
        (np.full(60, 4), "class numbers from 0 to 3"),
        (np.full(60, -1), "class numbers from 0 to 3"),
        (np.full(60, 0.5), "class numbers from 0 to 3"),
        (np.zeros((60, 7)), "one column for each of the 4 outputs"),
    ):
        with pytest.raises(ArgumentError, match=text):
            accuracy(classifier.floats, x, labels)


# ---- arguments and files


def test_arguments_that_do_not_fit_are_refused(classifier: Tiny) -> None:
    for options, text in (
        ({"reference": classifier.y[0][:, :3]}, "have the shape of output 0"),
        ({"reference": classifier.y[0][:9]}, "have the shape of output 0"),
        ({"reference": np.full((60, 4), np.nan)}, "reference.*finite"),
        ({"samples": classifier.x * 2}, "one array for each of the model's 1 inputs"),
        ({"samples": np.zeros((0, 8, 8, 1))}, "at least one sample"),
        ({"tolerance": 0}, "tolerance"),
        ({"layer_samples": 0}, "layer_samples"),
    ):
        with pytest.raises(ArgumentError, match=text):
            classifier.verify(**options)


def test_a_truncated_file_is_refused(classifier: Tiny) -> None:
    with pytest.raises(ModelFileError, match="damaged"):
        classifier.verify(classifier.int8[:1000])
    with pytest.raises(ModelFileError):
        accuracy(b"not a model", classifier.x, classifier.y[0].argmax(1))


def test_the_legacy_runtime_says_what_it_lacks(classifier: Tiny) -> None:
    assert load_failure(LEGACY, classifier.int8) is None

    def newer(model: Any) -> None:
        for code in model.operatorCodes:
            code.version = 77

    problem = load_failure(LEGACY, edited(classifier.int8, newer))
    assert problem and "tflite-runtime 2.14" in problem and "version '77'" in problem


def test_the_autoencoder_of_mlperf_tiny_is_compared_by_values(shared: Path) -> None:
    model = (shared / "models" / "mlperf_tiny" / "ad01_int8.tflite").read_bytes()
    x = np.random.default_rng(0).normal(-35, 8, (4, 640))
    parity = verify(model, reference=np.zeros((4, 640)), samples=x)
    assert parity.kind == "values" and parity.agreement == 0
