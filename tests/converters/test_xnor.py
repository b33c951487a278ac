"""XNOR files: every binary layer found by its bits, equal to Keras in Larq Compute Engine."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgecompress.converters import float32, xnor, xnor_rewriting, xnor_worker
from edgecompress.converters.accuracy import top1
from edgecompress.converters.loaders import load_model, wrap
from edgecompress.core.errors import (
    ArgumentError,
    ConversionError,
    MissingDependencyError,
    ModelFileError,
    UnsupportedModelError,
)
from edgecompress.engines.run import engine_available, load_failure, run_engine
from edgecompress.flatbuffers.operators import binary_kernel_shape
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.inspection import inspect_keras, inspect_tflite
from edgecompress.layers.binary import BinaryConv2D, BinaryDense
from edgecompress.precisions.sign import SIGNS
from edgecompress.targets.operators import unsupported
from edgecompress.targets.profile import load_target

pytestmark = pytest.mark.slow

MISSING = engine_available("lce")
needs_engine = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
OTHER = np.random.default_rng(4)


def normal(*shape: int) -> np.ndarray:
    return OTHER.normal(size=shape).astype(np.float32)


def norm(z: Any, **settings: Any) -> Any:
    """BatchNormalization as after training: factors of both signs, moved means."""
    layer = layers.BatchNormalization(**settings)
    z = layer(z)
    channels = z.shape[-1]
    layer.set_weights(
        [normal(channels), normal(channels), normal(channels), np.abs(normal(channels)) + 0.5]
    )
    return z


def residual_net() -> keras.Model:
    """Shortcuts as in Bi-Real Net, a stride, both paddings, 40 channels, a dense layer."""
    inputs = keras.Input((12, 12, 3), name="image")
    z = norm(layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem")(inputs))
    for name, scale in (("first", False), ("second", True)):
        z = layers.Add()([norm(BinaryConv2D(32, 3, scale=scale, name=name)(z)), z])
    z = norm(BinaryConv2D(40, 3, strides=2, name="down")(z))
    z = norm(BinaryConv2D(33, 3, padding="same", name="zeros")(z))
    z = layers.Flatten()(z)
    z = norm(BinaryDense(24, input_quantizer="approx_sign", name="dense")(z))
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(z), name="bnn")


def plain_net() -> keras.Model:
    """Nothing but binary convolutions in a row: bits need not become floats between them."""
    inputs = keras.Input((8, 8, 32))
    z = norm(BinaryConv2D(64, 3, name="one")(inputs))
    z = layers.MaxPooling2D()(z)
    z = norm(BinaryConv2D(32, 3, padding="valid", name="two")(z))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(z))


def one(layer: keras.layers.Layer, *more: keras.layers.Layer, shape: tuple[int, ...]) -> Any:
    return keras.Sequential([keras.Input(shape), layer, *more])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(7)
    return residual_net()


@pytest.fixture(scope="module")
def result(model: keras.Model) -> xnor.XnorResult:
    if MISSING is not None:
        pytest.skip(MISSING)
    return xnor.convert(model)


# ---- the converter's route


def test_every_binary_layer_is_an_xnor_operator(result: xnor.XnorResult) -> None:
    assert (result.artifact.kind, result.route) == ("xnor", "converter")
    assert [layer.name for layer in result.layers] == ["first", "second", "down", "zeros", "dense"]
    assert all(layer.is_binary and not layer.reason for layer in result.layers)
    flat = read_tflite(result.artifact.data)
    histogram = flat.histogram()
    assert histogram["LceBconv2d"] == 5
    assert histogram["CONV_2D"] == histogram["FULLY_CONNECTED"] == 1  # stem and head
    for layer in result.layers:
        (number,) = layer.operators
        assert result.flat.output(result.flat.operators[number]).name == layer.name


def test_bits_in_the_file_are_the_kernels_signs(
    model: keras.Model, result: xnor.XnorResult
) -> None:
    assert result.layers
    for layer in result.layers:
        operator = result.flat.operators[layer.operators[0]]
        kernel = np.asarray(model.get_layer(layer.name).kernel)
        kernel = kernel.reshape(*(1,) * (4 - kernel.ndim), *kernel.shape)
        assert binary_kernel_shape(result.flat, operator) == (kernel.shape[3], *kernel.shape[:3])
        words = result.flat.tensors[operator.inputs[1]].values()
        channels = range(kernel.shape[2])
        bits = np.stack([words[..., c // 32] >> (c % 32) & 1 for c in channels], -1)
        wrong = (bits != np.moveaxis(kernel < 0, -1, 0)).reshape(len(bits), -1).mean(1)
        # An output of packed bits has its filter turned around where its factor is negative.
        packed = result.flat.output(operator).type == "INT32"
        assert set(wrong) <= ({0.0, 1.0} if packed else {0.0})


def test_outputs_are_those_of_keras(model: keras.Model, result: xnor.XnorResult) -> None:
    x = normal(40, 12, 12, 3)
    wanted = model.predict(x, verbose=0)
    run = run_engine("lce", result.artifact.data, [x])
    close = np.abs(run.outputs[0] - wanted).max(1) < 1e-4
    # A sign within rounding of zero may turn; that is seldom.
    assert close.mean() > 0.9
    assert result.agreement > 0.9 and result.samples == 16
    found = xnor.check(result, model, [x], wanted.argmax(1))
    assert found.parity.engine == "lce" and found.parity.kind == "classes"
    assert found.parity.agreement > 0.95
    assert found.keras_accuracy == 1.0
    assert float(found.accuracy or 0) == found.parity.agreement
    assert xnor.check(result.artifact, model, [x]).accuracy is None


def test_the_file_is_small(model: keras.Model, result: xnor.XnorResult) -> None:
    floats = float32.convert(model).artifact.data
    assert len(result.artifact.data) < len(floats) / 8


def test_notes_say_which_runtime_and_what_padding_costs(result: xnor.XnorResult) -> None:
    runtime, padding = result.notes
    assert "Only Larq Compute Engine" in runtime and "unresolved custom op" in runtime
    assert "LiteRT" in runtime and "TensorFlow Lite Micro" in runtime
    assert "(zeros)" in padding and "same_one" in padding


def test_equal_models_give_equal_bytes(
    model: keras.Model, result: xnor.XnorResult, tmp_path: Path
) -> None:
    model.save(tmp_path / "bnn.keras")
    again = xnor.convert(load_model(tmp_path / "bnn.keras"))
    assert again.artifact.data == result.artifact.data
    assert again.artifact.source == str(tmp_path / "bnn.keras")


@needs_engine
def test_bits_stay_bits_between_layers() -> None:
    made = xnor.convert(plain_net())
    names = [operator.name for operator in made.flat.operators]
    assert names[:4] == ["LceQuantize", "LceBconv2d", "LceBMaxPool2d", "LceBconv2d"]
    assert made.notes == (xnor.RUNTIME_NOTE,)


@pytest.mark.parametrize("stock", ["litert", "tflm", "tflite-runtime"])
def test_stock_runtimes_refuse_the_file(result: xnor.XnorResult, stock: str) -> None:
    if missing := engine_available(stock):
        pytest.skip(missing)
    assert "LceQuantize" in (load_failure(stock, result.artifact.data) or "")


# ---- rewriting


VARIANTS: dict[str, Callable[[], keras.Model]] = {
    "residual": residual_net,
    "plain": plain_net,
    "stride": lambda: one(BinaryConv2D(5, 4, strides=2), shape=(9, 8, 40)),
    "oblong": lambda: one(BinaryConv2D(5, (1, 3), strides=(2, 1)), shape=(6, 7, 3)),
    "dilation": lambda: one(BinaryConv2D(5, 3, dilation_rate=2), shape=(9, 9, 33)),
    "bias_relu": lambda: one(
        BinaryConv2D(8, 3, use_bias=True, bias_initializer="random_normal", activation="relu"),
        shape=(6, 6, 32),
    ),
    "relu6": lambda: one(
        BinaryConv2D(8, 3, scale=True), layers.ReLU(6.0), BinaryDense(3), shape=(5, 5, 8)
    ),
    "dense": lambda: one(BinaryDense(6), BinaryDense(3), shape=(70,)),
    "sequence": lambda: one(BinaryDense(6, scale=True), shape=(4, 35)),
}


@needs_engine
@pytest.mark.parametrize("name", VARIANTS)
def test_rewritten_files_compute_what_keras_computes(name: str) -> None:
    source = VARIANTS[name]()
    data = xnor_rewriting.rewrite(float32.to_flatbuffer(wrap(source)))
    flat = read_tflite(data)
    binary = xnor._binary_layers(wrap(source))
    assert all(layer.is_binary for layer in xnor._matched(flat, binary, ""))
    assert not {"GREATER_EQUAL", "SELECT_V2", "PADV2"} & set(flat.histogram())
    x = normal(12, *source.input_shape[1:])
    wanted = source.predict(x, verbose=0)
    found = run_engine("lce", data, [x]).outputs[0]
    close = np.abs(found - wanted).reshape(12, -1).max(1) < 1e-4 * max(np.abs(wanted).max(), 1)
    assert close.mean() > 0.8


def test_one_tensor_is_packed_once_for_all_readers() -> None:
    inputs = keras.Input((6, 6, 4))
    parts = [BinaryConv2D(3, size)(inputs) for size in (1, 3)]
    data = xnor_rewriting.rewrite(
        float32.to_flatbuffer(wrap(keras.Model(inputs, layers.Concatenate()(parts))))
    )
    assert read_tflite(data).histogram() == {
        "LceQuantize": 1, "LceBconv2d": 2, "CONCATENATION": 1,
    }  # fmt: skip


def test_convolutions_that_are_not_of_signs_are_left_alone() -> None:
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(
        inputs,
        [
            layers.Conv2D(3, 3)(inputs),
            BinaryConv2D(3, 3, input_quantizer=None, padding="valid")(inputs),
            # A step, and a sign padded with something else.
            layers.Conv2D(2, 3)(ops.where(inputs >= 0, 1.0, 0.0)),
            BinaryConv2D(2, 3, input_quantizer=None, padding="valid")(
                ops.pad(ops.where(inputs >= 0, 1.0, -1.0), [(0, 0), (1, 1), (1, 1), (0, 0)],
                        constant_values=-1)
            ),
        ],
    )  # fmt: skip
    data = float32.to_flatbuffer(wrap(model))
    flat = read_tflite(xnor_rewriting.rewrite(data))
    assert flat.histogram()["CONV_2D"] == 4
    assert "LceBconv2d" not in flat.histogram()


def test_a_factor_of_zero_keeps_its_layer(model: keras.Model) -> None:
    inputs = keras.Input((5, 5, 8))
    layer = layers.BatchNormalization()
    source = keras.Model(inputs, layer(BinaryConv2D(4, 3, name="conv")(inputs)))
    layer.set_weights([np.float32([1, 0, -2, 0]), normal(4), normal(4), np.ones(4, np.float32)])
    flat = read_tflite(xnor_rewriting.rewrite(float32.to_flatbuffer(wrap(source))))
    (found,) = xnor._matched(flat, xnor._binary_layers(wrap(source)), "")
    assert found.is_binary


# ---- which route, and what is refused


def broken(*arguments: Any) -> bytes:
    raise ConversionError("it failed.")


@needs_engine
def test_where_the_converter_fails_the_float_file_is_rewritten(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xnor, "_by_converter", broken)
    made = xnor.convert(model)
    assert made.route == "rewriting" and all(layer.is_binary for layer in made.layers)
    assert any("rewriting" in note and "it failed." in note for note in made.notes)


@needs_engine
def test_where_the_converter_misses_layers_the_float_file_is_rewritten(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The converter's silent miss: float convolutions.
    monkeypatch.setattr(
        xnor, "_by_converter", lambda loaded, verbose: float32.to_flatbuffer(loaded)
    )
    made = xnor.convert(model)
    assert made.route == "rewriting" and all(layer.is_binary for layer in made.layers)
    assert any("left first, second, down, zeros, dense in float" in note for note in made.notes)


@pytest.fixture
def unmatched() -> Any:
    """A quantizer whose form no route knows."""
    SIGNS.register("strange")(lambda x: ops.sign(x))
    yield "strange"
    del SIGNS._entries["strange"]


@needs_engine
def test_a_layer_that_no_route_makes_binary_is_named(unmatched: str) -> None:
    source = one(
        BinaryConv2D(8, 3, name="known"),
        BinaryConv2D(8, 3, input_quantizer=unmatched, name="lost"),
        shape=(6, 6, 32),
    )
    with pytest.raises(ConversionError, match=r"would be float convolutions: 'lost': the conv"):
        xnor.convert(source)
    made = xnor.convert(source, allow_float=True)
    assert [layer.is_binary for layer in made.layers] == [True, False]
    assert any(note.startswith("Layer 'lost' stays float: ") for note in made.notes)


@needs_engine
def test_layers_of_binary_weights_alone_stay_float_and_are_named() -> None:
    weights_only = BinaryConv2D(8, 3, input_quantizer=None, padding="same", name="weights")
    made = xnor.convert(one(weights_only, BinaryConv2D(4, 3, name="both"), shape=(6, 6, 3)))
    assert made.route == "converter"
    assert [layer.is_binary for layer in made.layers] == [False, True]
    assert any("'weights' stays float" in n and "input_quantizer=None" in n for n in made.notes)
    with pytest.raises(ConversionError, match="No binary layer of model .* 'weights': its input"):
        xnor.convert(one(weights_only, shape=(6, 6, 3)))


@needs_engine
def test_a_shared_layer_has_an_operator_for_each_use() -> None:
    inputs = keras.Input((6, 6, 8))
    shared = BinaryConv2D(8, 3, name="shared")
    made = xnor.convert(keras.Model(inputs, shared(shared(inputs))))
    (layer,) = made.layers
    assert (layer.uses, len(layer.operators)) == (2, 2)


def spoilt(change: Callable[[Any, Any, Any], None]) -> Callable[[Any, bool], bytes]:
    """Returns a converter whose first binary convolution is changed."""

    def convert(loaded: Any, verbose: bool) -> bytes:
        data = xnor_rewriting.rewrite(float32.to_flatbuffer(loaded))
        model = unpack(data)
        number = next(o.index for o in read_tflite(data).operators if o.name == "LceBconv2d")
        change(model, model.subgraphs[0], model.subgraphs[0].operators[number])
        return pack(model)

    return convert


def turn_scale(model: Any, graph: Any, operator: Any) -> None:
    buffer = model.buffers[graph.tensors[operator.inputs[2]].buffer]
    buffer.data = (-np.frombuffer(bytes(buffer.data), np.float32)).view(np.uint8)


@needs_engine
def test_a_file_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = one(BinaryConv2D(8, 3), shape=(6, 6, 8))
    monkeypatch.setattr(xnor, "_by_converter", spoilt(turn_scale))
    with pytest.raises(ConversionError, match="computes something else .* only 0% of 16"):
        xnor.convert(source)


@needs_engine
def test_a_turned_bit_is_no_longer_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn_bit(model: Any, graph: Any, operator: Any) -> None:
        buffer = model.buffers[graph.tensors[operator.inputs[1]].buffer]
        buffer.data = np.array(buffer.data) ^ np.eye(1, len(buffer.data), dtype=np.uint8)[0]

    source = one(BinaryConv2D(8, 3), shape=(6, 6, 8))
    monkeypatch.setattr(xnor, "_by_converter", spoilt(turn_bit))
    assert xnor.convert(source).route == "rewriting"


@needs_engine
@pytest.mark.parametrize(
    "program, text",
    [
        ("import os; os.abort()", "converter failed: it ended with status -6"),
        ("import sys, json; job = json.load(open(sys.argv[1]))\n"
         "open(job['reason'], 'w').write('Exception: no such thing'); sys.exit(1)",
         "converter failed: Exception: no such thing"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
    ],
)  # fmt: skip
def test_the_converter_may_crash_fail_or_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, text: str
) -> None:
    (tmp_path / "worker.py").write_text(program)
    monkeypatch.setattr(xnor, "_WORKER", tmp_path / "worker.py")
    with pytest.raises(ConversionError, match=text):
        xnor._by_converter(float32.Trace(one(BinaryDense(2), shape=(4,))), False, timeout_s=1)


@needs_engine
def test_the_library_is_called_as_its_package_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's own function, in a process that imports it, makes the same bytes."""
    program = tmp_path / "worker.py"
    program.write_text(
        "import json, sys; job = json.load(open(sys.argv[1])); sys.path += job['paths']\n"
        "import larq_compute_engine as package\n"
        "open(job['output'], 'wb').write(package.convert_saved_model(job['saved_model']))\n"
    )
    trace = float32.Trace(plain_net())
    direct = xnor._by_converter(trace, False)
    monkeypatch.setattr(xnor, "_WORKER", program)
    assert xnor._by_converter(trace, False) == direct


@pytest.mark.parametrize(
    "library",
    [None, "other = 1", "def convert_saved_model_to_tflite_flatbuffer(folder, target): ..."],
)
def test_another_version_of_the_library_is_left_to_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str | None
) -> None:
    package = tmp_path / "larq_compute_engine"
    (package / "mlir").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "def convert_saved_model(folder): return b'of ' + folder.encode()"
    )
    if library is not None:
        (package / "mlir" / "_tf_tfl_flatbuffer.py").write_text(library)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "larq_compute_engine", raising=False)
    assert xnor_worker.convert("model") == b"of model"


def test_models_without_binary_layers_are_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match="no BinaryConv2D or BinaryDense") as caught:
        xnor.convert(one(layers.Dense(2), shape=(3,)))
    assert "\n" not in str(caught.value) and "int8" in str(caught.value)


def test_open_dimensions_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="open dimensions"):
        xnor.convert(one(BinaryConv2D(2, 3), shape=(None, None, 2)))


def test_a_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Larq Compute Engine is not installed: run `pip install 'edgecompress[binary]'`."
    monkeypatch.setattr(xnor, "engine_available", lambda name: text)
    with pytest.raises(MissingDependencyError, match=r"edgecompress\[binary\]"):
        xnor.convert(one(BinaryDense(2), shape=(4,)))


def test_samples_must_fit(model: keras.Model, result: xnor.XnorResult) -> None:
    with pytest.raises(ArgumentError, match="labels|`y`"):
        xnor.check(result, model, [normal(3, 12, 12, 3)], np.arange(4))
    with pytest.raises(ArgumentError, match="one label for each"):
        top1(np.zeros((3, 2)), np.zeros(2))


# ---- the file, read


def rewritten() -> bytes:
    return xnor_rewriting.rewrite(float32.to_flatbuffer(wrap(plain_net())))


def test_inspection_agrees_with_the_keras_model(model: keras.Model) -> None:
    for source in (model, plain_net()):
        data = xnor_rewriting.rewrite(float32.to_flatbuffer(wrap(source)))
        ours, file = inspect_keras(source), inspect_tflite(read_tflite(data))
        assert (file.macs, file.binary_macs) == (ours.macs, ours.binary_macs)
        assert file.weights == ours.weights
        flat = read_tflite(data)
        assert (flat.macs(), flat.binary_macs()) == (ours.macs, ours.binary_macs)
        assert flat.parameters() == file.parameters
        rows = [row for row in file.rows if row.type == "LceBconv2d"]
        assert all(row.zeros == 0 and row.filters for row in rows)
        assert not any("not counted" in note for note in file.notes)
    # 32 and 64 channels fill their words: one bit for each weight.
    assert {row.bits for row in rows} == {1}


def test_options_are_read() -> None:
    operators = read_tflite(rewritten()).operators
    options = [dict(o.options) for o in operators if o.name == "LceBconv2d"]
    assert options[0]["channels_in"] == 32 and options[1]["channels_in"] == 64
    assert [(o["padding"], o["pad_values"]) for o in options] == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda settings: settings | {"channels_in": 65}, "65 input channels"),
        (lambda settings: settings | {"channels_in": -1}, "-1 input channels"),
        (lambda settings: {"stride_width": 1}, "0 input channels"),
    ],
)
def test_options_that_contradict_the_filter_are_damage(
    change: Callable[[dict[str, int]], dict[str, int]], text: str
) -> None:
    data = rewritten()
    model = unpack(data)
    operator = next(o for o in read_tflite(data).operators if o.name == "LceBconv2d")
    entry = model.subgraphs[0].operators[operator.index]
    entry.customOptions = np.frombuffer(
        xnor_rewriting._flexbuffer(change(dict(operator.options))), np.uint8
    )
    with pytest.raises(ModelFileError, match=text):
        read_tflite(pack(model))


def test_damaged_options_end_in_one_line() -> None:
    data = rewritten()
    operators = read_tflite(data).operators
    number = next(o.index for o in operators if o.name == "LceBconv2d")
    for seed in range(60):
        model = unpack(data)
        entry = model.subgraphs[0].operators[number]
        options = np.array(entry.customOptions, np.uint8)
        random = np.random.default_rng(seed)
        options[random.integers(0, len(options), 3)] = random.integers(0, 256, 3)
        entry.customOptions = options[: random.integers(1, len(options) + 1)]
        try:
            read_tflite(pack(model))
        except ModelFileError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("target", ["pixel-4", "nucleo-l4r5zi", "host"])
def test_targets_say_which_runtime_runs_it(target: str) -> None:
    problems = unsupported(read_tflite(rewritten()), load_target(target))
    assert {problem.name for problem in problems} >= {"LceQuantize", "LceBconv2d"}
    for problem in problems:
        if problem.name.startswith("Lce"):
            text = str(problem)
            assert "does not support it: only Larq Compute Engine runs it" in text
            assert "\n" not in text


# ---- the page


@needs_engine
def test_the_program_of_the_page_runs(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "xnor.md"
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
    done = run_python(["-P", "-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(2,)" in done.stdout and "XnorCheck" in done.stdout
    assert (tmp_path / "model_xnor.tflite").stat().st_size < 20_000


@needs_engine
def test_an_export_traces_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.framework import convert_to_constants

    from edgecompress.pipeline import build, build_request

    freeze, frozen = convert_to_constants.convert_variables_to_constants_v2, []

    def counted(function: Any, *args: Any, **kwargs: Any) -> Any:
        frozen.append(function)
        return freeze(function, *args, **kwargs)

    monkeypatch.setattr(convert_to_constants, "convert_variables_to_constants_v2", counted)
    keras.utils.set_random_seed(7)
    source = plain_net()
    made = build(build_request(source, ["host"], file_format="xnor", bundle=False))
    assert len(frozen) == 1
    # Two traces give the same files.
    assert made.main.data == xnor.convert(source).artifact.data
    assert len(frozen) == 2
    assert made.artifacts[0].data == float32.convert(source).artifact.data
