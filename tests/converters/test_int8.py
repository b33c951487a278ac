"""float32 -> int8 flatbuffer, judged by the engines against Keras and by the format's own rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32, int8
from edgecompress.converters.loaders import example_inputs, load_model, wrap
from edgecompress.core.errors import ArgumentError, ConversionError
from edgecompress.core.record import CompressionRecord
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.precisions.int8 import Int8

keras = pytest.importorskip("keras")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float_once")]
layers = keras.layers


def small(head: str | None = "softmax") -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(6, 3, name="conv"),
            layers.BatchNormalization(
                name="norm", gamma_initializer=keras.initializers.RandomUniform(0.3, 3, seed=1)
            ),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(4, activation=head, name="head"),
        ],
        name="small",
    )


def samples(model: Any, count: int = 60, seed: int = 0) -> list[np.ndarray]:
    return example_inputs(wrap(model).inputs, count, seed)


def quantized(tensor: Tensor, real: np.ndarray) -> np.ndarray:
    if not tensor.is_quantized:
        return real
    steps = np.round(real / tensor.scales[0]) + tensor.zero_points[0]
    return np.clip(steps, -128, 127).astype(np.int8)


def run(artifact: Artifact, inputs: list[np.ndarray], engine: str = "litert") -> list[np.ndarray]:
    """Returns the real-valued outputs of an int8 file."""
    flat = read_tflite(artifact.data)
    data = [quantized(flat.tensors[i], x) for i, x in zip(flat.inputs, inputs, strict=True)]
    outputs = run_engine(engine, artifact.data, data).outputs
    tensors = [flat.tensors[i] for i in flat.outputs]
    return [
        (y.astype(np.float32) - t.zero_points[0]) * np.float32(t.scales[0])
        for y, t in zip(outputs, tensors, strict=True)
    ]


def sqnr(want: np.ndarray, have: np.ndarray) -> float:
    noise = ((want - have.reshape(want.shape)) ** 2).sum()
    return float(10 * np.log10((want**2).sum() / noise))


def assert_all_integer(flat: FlatModel) -> None:
    assert not [t.name for t in flat.tensors if t.type.startswith("FLOAT")]
    assert "DEQUANTIZE" not in flat.histogram()
    assert {flat.tensors[i].type for i in (*flat.inputs, *flat.outputs)} == {"INT8"}


@pytest.mark.parametrize("engine", ["litert", "tflm", "tflite-runtime"])
def test_calibrated_model_agrees_with_keras(engine: str) -> None:
    model = small()
    source = float32.convert(model)
    artifact = int8.convert(source, calibration=samples(model))
    flat = read_tflite(artifact.data)
    assert_all_integer(flat)
    assert flat.histogram() == read_tflite(source.artifact.data).histogram()
    assert (artifact.kind, artifact.source) == ("int8", "small")
    assert artifact.notes[0] == "All ranges were measured on 60 calibration samples."
    x = samples(model, 40, seed=1)
    want = wrap(model).predict(x)[0]
    have = run(artifact, x, engine)[0]
    assert sqnr(want, have) > 25
    sure = np.abs(np.diff(np.sort(want)[:, -2:])).ravel() > 0.05
    assert (want.argmax(1) == have.argmax(1))[sure].all() and sure.sum() > 20


def test_quantization_follows_the_format() -> None:
    """Scales, zero points and weights against the TFLite specification, in numpy."""
    model = small(None)
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    flat = read_tflite(artifact.data)
    convolution = flat.operators[0]
    weights, bias = flat.tensor(convolution, 1), flat.tensor(convolution, 2)
    source = flat.tensor(convolution, 0)
    assert weights is not None and bias is not None and source is not None
    layer, norm = model.get_layer("conv"), model.get_layer("norm")
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    folded = np.moveaxis(layer.kernel.numpy() * factor, -1, 0)
    scales = np.abs(folded).max((1, 2, 3)) / 127
    np.testing.assert_allclose(weights.scales, scales, rtol=1e-5)
    assert set(weights.zero_points) == {0} and weights.quantized_dimension == 0
    exact = folded / scales[:, None, None, None]
    assert np.abs(weights.values() - exact).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(bias.scales, scales * source.scales[0], rtol=1e-5)
    image = samples(model)[0]
    np.testing.assert_allclose(source.scales[0], (image.max() - image.min()) / 255, rtol=1e-4)


def ranges_of(model: Any) -> dict[str, tuple[float, float]]:
    return {"input:0": (-4.0, 4.0), "relu": (0.0, 3.0), "head": (-5.0, 3.0)}


def test_learnt_ranges_hold_exactly_and_need_no_calibration() -> None:
    model = small(None)
    source = float32.convert(model)
    artifact = int8.convert(source, ranges=ranges_of(model))
    assert artifact.notes == ()
    flat = read_tflite(artifact.data)
    by_name = {t.name: t for t in flat.tensors if t.name}
    for tap, (low, high) in ranges_of(model).items():
        tensor = by_name[source.tap_tensors[tap]]
        assert tensor.scales[0] == pytest.approx((high - low) / 255)
        assert tensor.zero_points[0] == round(-128 - low / tensor.scales[0])


def test_ranges_behind_reshapes_hold_in_front_of_them() -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((16, 3)),
            layers.Conv1D(6, 3, activation="relu", name="conv"),
            layers.AveragePooling1D(2, name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="head"),
        ]
    )
    x = samples(model)[0]
    outputs = keras.Model(model.inputs, [layer.output for layer in model.layers]).predict(
        x, verbose=0
    )
    ranges = {"input:0": (float(x.min()), float(x.max()))}
    ranges["conv"] = (0.0, float(outputs[0].max()))
    ranges["head"] = (float(outputs[3].min()), float(outputs[3].max()))
    artifact = int8.convert(float32.convert(model), ranges=ranges)
    assert artifact.notes == ()
    assert_all_integer(read_tflite(artifact.data))
    assert sqnr(outputs[3], run(artifact, [x])[0]) > 25


def test_ranges_come_from_the_record() -> None:
    model = small(None)
    source = float32.convert(model)
    record = CompressionRecord(
        steps=({"technique": "quantization_aware_training"},), ranges=ranges_of(model)
    )
    artifact = int8.convert(source, record=record)
    assert artifact.record is record
    head = read_tflite(artifact.data).operators[-1]
    kernel = read_tflite(artifact.data).tensor(head, 1)
    # Training simulated a scale for each unit, so the file has them.
    assert kernel is not None and len(kernel.scales) == 4
    plain = int8.convert(source, ranges=ranges_of(model))
    kernel = read_tflite(plain.data).tensor(head, 1)
    assert kernel is not None and len(kernel.scales) == 1
    wide = int8.convert(source, ranges=ranges_of(model), dense_per_channel=True)
    assert wide.data == artifact.data


def test_gaps_between_learnt_ranges_are_measured_and_named() -> None:
    model = small(None)
    source = float32.convert(model)
    learnt = {**ranges_of(model), "gone": (0.0, 1.0)}
    del learnt["relu"]
    artifact = int8.convert(source, ranges=learnt, calibration=samples(model))
    assert any("no range for relu" in n and "60 calibration samples" in n for n in artifact.notes)
    assert any("ranges of gone have no tensor" in n for n in artifact.notes)
    flat = read_tflite(artifact.data)
    # What training learnt is not overruled by what was measured.
    assert flat.tensors[flat.inputs[0]].scales[0] == pytest.approx(8 / 255)


def test_missing_calibration_is_a_usage_error() -> None:
    source = float32.convert(small())
    with pytest.raises(ArgumentError, match="no range for image.*--calibration") as caught:
        int8.convert(source)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="no range for relu"):
        int8.convert(source, ranges={"input:0": (-1.0, 1.0)})


def test_calibration_beyond_the_limit_is_spread() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    x = np.zeros((1500, 2), np.float32)
    x[-3] = 8.0  # one of the 500 that are used
    artifact = int8.convert(float32.convert(model), calibration=[x])
    flat = read_tflite(artifact.data)
    assert flat.tensors[flat.inputs[0]].scales[0] == pytest.approx(8 / 255)
    assert "500 calibration samples" in artifact.notes[0]


HEADS = {
    "leaky": [layers.LeakyReLU(0.2)],
    "relu6": [layers.MaxPooling2D(), layers.ReLU(6)],
    "elu": [layers.ELU()],
    "prelu": [layers.PReLU(shared_axes=[1, 2],
                           alpha_initializer=keras.initializers.RandomUniform(0.1, 0.4, seed=1))],
    "maximum": [layers.GlobalMaxPooling2D(), layers.Reshape((1, 1, 5))],
}  # fmt: skip


@pytest.mark.parametrize("engine", ["litert", "tflm"])
@pytest.mark.parametrize("name", HEADS)
def test_operators_unknown_to_the_quantizer_still_become_int8(name: str, engine: str) -> None:
    body = [layers.Conv2D(5, 3), *HEADS[name], layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *body])
    source = float32.convert(model)
    artifact = int8.convert(source, calibration=samples(model))
    flat = read_tflite(artifact.data)
    assert_all_integer(flat)
    assert flat.histogram() == read_tflite(source.artifact.data).histogram()
    x = samples(model, 40, seed=1)
    assert sqnr(wrap(model).predict(x)[0], run(artifact, x, engine)[0]) > 25


def test_stand_in_at_the_output() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.LeakyReLU(0.2)])
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    assert_all_integer(read_tflite(artifact.data))
    x = samples(model, 20, seed=1)
    assert sqnr(wrap(model).predict(x)[0], run(artifact, x)[0]) > 25


class Running(layers.Layer):  # type: ignore[misc, name-defined]
    """A sum that has no integer kernel."""

    def call(self, values: Any) -> Any:
        return keras.ops.cumsum(values, axis=-1)


def running() -> Any:
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), Running(name="growth"), layers.Dense(2)]
    )


def test_float_that_is_left_is_named() -> None:
    model = running()
    source = float32.convert(model)
    artifact = int8.convert(source, calibration=samples(model))
    note = next(n for n in artifact.notes if "stays in float" in n)
    assert "CUMSUM" in note and "growth" in note
    flat = read_tflite(artifact.data)
    assert {flat.tensors[i].type for i in (*flat.inputs, *flat.outputs)} == {"INT8"}
    with pytest.raises(ConversionError, match="cannot be int8 throughout.*CUMSUM"):
        int8.convert(source, calibration=samples(model), allow_float=False)
    ends = keras.Model(model.inputs, model.get_layer("growth").output)
    flat = read_tflite(int8.convert(float32.convert(ends), calibration=samples(ends)).data)
    assert [flat.tensors[i].type for i in flat.outputs] == ["INT8"]
    with pytest.raises(ConversionError, match="input 'input_0' would be FLOAT32, not INT8"):
        int8._float_left(read_tflite(source.artifact.data), True, Int8())


class Halved(layers.Layer):  # type: ignore[misc, name-defined]
    """A loop that is no recurrent layer."""

    def call(self, values: Any) -> Any:
        halve = lambda i, v: (i + 1, 0.5 * v)  # noqa: E731
        return keras.ops.while_loop(lambda i, v: i < 3, halve, (0, values))[1]


def test_loops_are_refused_by_name_and_unrolled_ones_run() -> None:
    looped = keras.Sequential([keras.Input((3, 4)), Halved(name="memory"), layers.Dense(2)])
    with pytest.raises(ConversionError, match="memory.*Only Keras's recurrent layers"):
        int8.convert(float32.convert(looped), calibration=samples(looped))
    flat = keras.Sequential([keras.Input((3, 4)), layers.GRU(5, unroll=True), layers.Dense(2)])
    artifact = int8.convert(float32.convert(flat), calibration=samples(flat))
    x = samples(flat, 20, seed=1)
    assert sqnr(wrap(flat).predict(x)[0], run(artifact, x)[0]) > 20


def test_several_inputs_and_outputs() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    joined = layers.Concatenate()([layers.Dense(2)(a), b])
    model = keras.Model([a, b], [joined, layers.Add()([a, b])])
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    assert_all_integer(read_tflite(artifact.data))
    x = samples(model, 20, seed=1)
    for want, have in zip(wrap(model).predict(x), run(artifact, x), strict=True):
        assert sqnr(want, have) > 25


def test_integer_inputs_stay_integers() -> None:
    body = [layers.Embedding(4, 3), layers.Flatten(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,), dtype="int32"), *body])
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    flat = read_tflite(artifact.data)
    assert flat.tensors[flat.inputs[0]].type == "INT32"
    x = samples(model, 10, seed=1)
    assert sqnr(wrap(model).predict(x)[0], run(artifact, x)[0]) > 25


def test_what_is_dead_and_added_has_the_range_of_the_sum() -> None:
    """XNNPACK refuses sums of scales that are more than 256 times apart."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, padding="same", name="alive", kernel_initializer="ones")(inputs)
    x = layers.Rescaling(1e-4)(x)
    silent = layers.Conv2D(3, 3, padding="same", name="silent", kernel_initializer="zeros")(x)
    both = layers.Conv2D(3, 3, padding="same", name="read_too", kernel_initializer="zeros")(x)
    model = keras.Model(inputs, [layers.Add()([x, silent]), layers.Add()([x, both]), both])
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    flat = read_tflite(artifact.data)
    added = [operator for operator in flat.operators if operator.code == "ADD"]
    ratios = [
        max(flat.tensors[i].scales[0] for i in operator.inputs) / flat.output(operator).scales[0]
        for operator in added
    ]
    # One of the silent tensors is an output as well, which nothing else reads.
    assert max(ratios) == pytest.approx(1.0, rel=0.01)
    x = samples(model, 5, seed=1)
    for want, have in zip(wrap(model).predict(x)[:2], run(artifact, x)[:2], strict=True):
        assert sqnr(want, have) > 25


def test_dead_layers_get_a_usable_range() -> None:
    model = small(None)
    model.get_layer("norm").beta.assign(np.full(6, -100.0))
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    assert any("relu, pool" in n and "never left zero" in n for n in artifact.notes), artifact.notes
    x = samples(model, 5, seed=1)
    bias = model.get_layer("head").bias.numpy()
    model.get_layer("head").bias.assign(bias + [1, -2, 3, 0.5])
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    assert sqnr(wrap(model).predict(x)[0], run(artifact, x)[0]) > 30


def test_a_file_that_got_larger_is_reported() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1), layers.Dense(2), layers.Dense(1)])
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    assert any("is no smaller than the float file" in note for note in artifact.notes)
    large = small()
    artifact = int8.convert(float32.convert(large), calibration=samples(large))
    assert not any("is no smaller" in note for note in artifact.notes)


SCRIPT = """
import sys, numpy as np
from edgecompress.converters import float32, int8, loaders
loaded = loaders.load_model(sys.argv[1])
x = loaders.example_inputs(loaded.inputs, 30)
print(int8.convert(float32.convert(loaded), calibration=x).sha256)
"""


def test_equal_bytes_in_every_process_and_nothing_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], run_python: Callable[..., Any]
) -> None:
    small().save(tmp_path / "small.keras")
    loaded = load_model(tmp_path / "small.keras")
    x = example_inputs(loaded.inputs, 30)
    here = int8.convert(float32.convert(loaded), calibration=x)
    assert capfd.readouterr() == ("", "")
    done = run_python(["-c", SCRIPT, str(tmp_path / "small.keras")])
    assert done.stdout.strip() == here.sha256
    assert "Quantized model size" not in done.stderr


def test_stripping_names_changes_nothing_else() -> None:
    model = small()
    artifact = int8.convert(float32.convert(model), calibration=samples(model))
    bare = int8.strip_names(artifact)
    assert len(bare.data) < len(artifact.data)
    assert {t.name for t in read_tflite(artifact.data).tensors} > {"image", "relu", "head", ""}
    assert {t.name for t in read_tflite(bare.data).tensors} == {"image", "head", ""}
    x = samples(model, 5)
    np.testing.assert_array_equal(run(artifact, x)[0], run(bare, x)[0])


@pytest.mark.parametrize(
    "name, reference", [("pretrainedResnet", "pretrainedResnet_quant"), ("ad01", "ad01_int8")]
)
def test_published_models_are_no_larger_than_their_published_files(
    shared: Path, name: str, reference: str
) -> None:
    folder = shared / "models" / "mlperf_tiny"
    loaded = load_model(folder / f"{name}.h5")
    x = example_inputs(loaded.inputs, 30)
    artifact = int8.convert(float32.convert(loaded), calibration=x)
    published = read_tflite(folder / f"{reference}.tflite")
    ours = read_tflite(artifact.data)
    assert_all_integer(ours)
    assert len(artifact.data) <= len(published.data)
    assert ours.macs() == published.macs()
    for engine in ("litert", "tflm"):
        assert sqnr(loaded.predict(x)[0], run(artifact, x, engine)[0]) > 15
