"""Files stripped for TensorFlow Lite Micro: smaller, and the same outputs there, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.converters import float32, int8
from edgecompress.converters.compressed import (
    verify_exact,
)
from edgecompress.converters.portable.base import reshape
from edgecompress.converters.stripping import strip_for_tflm
from edgecompress.core.errors import ConversionError, EngineError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.editor import ModelEditor, strip
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.operators import unsupported
from edgecompress.targets.profile import load_target
from edgecompress.targets.tflm.arena import compute_arena


def stripped(data: bytes) -> bytes:
    editor = ModelEditor(data)
    strip_for_tflm(editor)
    return editor.pack()


def _file(*layers: keras.layers.Layer) -> bytes:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    for layer in model.layers:
        # Biases of zero alone would be left out of the file.
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.linspace(0.1, 0.5, layer.bias.shape[0]))
    x = np.random.default_rng(0).normal(size=(30, 6, 6, 2)).astype(np.float32)
    return strip(int8.convert(float32.convert(model), calibration=[x]).data)


def _reshaped(data: bytes) -> bytes:
    """Returns a file with a RESHAPE before the first FULLY_CONNECTED, as other converters write."""
    editor = ModelEditor(data)
    flat = editor.original
    dense = next(o for o in flat.operators if o.code == "FULLY_CONNECTED")
    source = flat.tensors[dense.inputs[0]]
    rows = editor.add((1, int(np.prod(source.shape))), source.type)
    editor.type_as(rows, source.index)
    entry = editor.operators[dense.index]
    editor.set_input(entry, 0, rows)
    sizes = (1, int(np.prod(source.shape)))
    editor.place_before(entry, [reshape(editor, source.index, rows, sizes)])
    return editor.pack()


@pytest.fixture(scope="module")
def own() -> bytes:
    return _file(
        keras.layers.Conv2D(5, 3, activation="relu"),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.Flatten(),
        keras.layers.Dense(7, activation="relu"),
        keras.layers.Dense(3),
    )


@pytest.fixture(scope="module")
def small(own: bytes) -> bytes:
    return _reshaped(own)


def test_files_have_what_every_engine_reads(own: bytes, small: bytes) -> None:
    # The rest is scales and zero points, which LiteRT asks for.
    assert len(stripped(small)) < len(own) < len(small)
    assert "RESHAPE" not in read_tflite(own).histogram()
    assert not any(tensor.hasRank for tensor in unpack(own).subgraphs[0].tensors)
    x = np.random.default_rng(1).integers(-128, 128, (50, 6, 6, 2), np.int8)
    for engine in ("litert", "tflm", "tflite-runtime"):
        pair = [run_engine(engine, data, [x]).outputs[0] for data in (small, own)]
        np.testing.assert_array_equal(*pair)
        assert len(np.unique(pair[0])) > 50
    with pytest.raises(EngineError):
        run_engine("litert", stripped(small), [x])


def test_outputs_stay_and_the_file_shrinks(small: bytes) -> None:
    without = stripped(small)
    before, after = read_tflite(small), read_tflite(without)
    verify_exact(small, without, samples=50)
    assert "RESHAPE" in before.histogram()
    assert "RESHAPE" not in after.histogram()
    # The reshape's output and shape; 12 bytes for each of the 5 + 10 channels of the biases.
    assert len(after.tensors) == len(before.tensors) - 2
    assert len(small) - len(without) > 15 * 12
    assert stripped(without) == without


def test_one_zero_point_is_stored_for_all_channels(small: bytes) -> None:
    """TensorFlow Lite Micro reads one value for all channels; LiteRT refuses it, and so do we."""
    tensors = unpack(stripped(small)).subgraphs[0].tensors
    scales = [t.quantization for t in tensors if t.quantization is not None]
    assert {len(q.zeroPoint) for q in scales} == {1}
    assert max(len(q.scale) for q in scales) == 5
    read = read_tflite(stripped(small))
    assert all(len(t.zero_points) == len(t.scales) for t in read.tensors)
    (problem, *_) = unsupported(read, load_target("pixel-8"))
    assert "one zero point for all channels" in problem.reason
    assert not unsupported(read, load_target("nucleo-l4r5zi"))
    with pytest.raises(EngineError, match="1 zero_point values"):
        run_engine("litert", stripped(small), [np.zeros((1, 6, 6, 2), np.int8)])


def _dense_bias(model: Any) -> Any:
    graph = model.subgraphs[0]
    return graph.tensors[graph.operators[-1].inputs[2]]


def test_biases_lose_their_scales(small: bytes) -> None:
    biases = [t for t in unpack(stripped(small)).subgraphs[0].tensors if t.type == 2]
    assert len(biases) == 4
    assert all(bias.quantization is None for bias in biases)


def test_the_scale_of_a_bias_that_the_engine_would_miss_stays(small: bytes) -> None:
    """With the scale gone, the engine's check of a layer with a tiny output scale fails."""
    model = unpack(small)
    graph = model.subgraphs[0]
    output = graph.tensors[graph.outputs[0]].quantization
    output.scale = np.array(output.scale) / 1000
    coarse = pack(model)
    assert _dense_bias(unpack(stripped(coarse))).quantization is not None
    verify_exact(coarse, stripped(coarse))
    model = unpack(coarse)
    _dense_bias(model).quantization = None
    with pytest.raises(EngineError):
        verify_exact(coarse, pack(model))


def test_a_scale_for_all_channels_is_stored_once(small: bytes) -> None:
    model = unpack(small)
    graph = model.subgraphs[0]
    filters = [graph.tensors[o.inputs[1]].quantization for o in graph.operators[:2]]
    filters[0].scale = np.full(5, filters[0].scale[0])
    shared = pack(model)
    graph = unpack(stripped(shared)).subgraphs[0]
    scales = [graph.tensors[o.inputs[1]].quantization.scale for o in graph.operators[:2]]
    assert [len(scale) for scale in scales] == [1, 5]
    verify_exact(shared, stripped(shared), samples=20)


def test_the_arena_of_the_slimmed_file_is_known_and_no_larger(small: bytes) -> None:
    before = compute_arena(read_tflite(small), "cortex-m4").used
    after = compute_arena(read_tflite(stripped(small)), "cortex-m4").used
    assert before is not None and after is not None
    assert after < before


def test_reshapes_that_others_need_stay() -> None:
    data = _file(
        keras.layers.Reshape((9, 8)),
        keras.layers.Conv1D(4, 3, activation="relu"),
        keras.layers.Reshape((14, 2)),
        keras.layers.Softmax(),
    )
    before = read_tflite(data).histogram()["RESHAPE"]
    without = stripped(data)
    assert read_tflite(without).histogram()["RESHAPE"] == before
    verify_exact(data, without)


def test_a_reshape_before_an_output_stays() -> None:
    data = _file(keras.layers.Conv2D(2, 3), keras.layers.Flatten())
    assert stripped(data).count(b"TFL3") == 1
    assert "RESHAPE" in read_tflite(stripped(data)).histogram()


def test_a_filter_that_is_reshaped_is_no_input(small: bytes) -> None:
    """A matrix product whose *filter* comes out of a reshape keeps it."""
    model = unpack(small)
    graph = model.subgraphs[0]
    reshape = next(o for o in graph.operators if o.builtinOptions is None or len(o.inputs) == 2)
    dense = next(o for o in graph.operators if reshape.outputs[0] in o.inputs)
    dense.inputs = np.array([dense.inputs[0], reshape.outputs[0], dense.inputs[2]], np.int32)
    assert "RESHAPE" in read_tflite(stripped(pack(model))).histogram()


def test_a_changed_bias_is_detected(small: bytes) -> None:
    model = unpack(stripped(small))
    graph = model.subgraphs[0]
    bias = next(t for t in graph.tensors if t.type == 2 and t.buffer)
    buffer = model.buffers[bias.buffer]
    buffer.data = (np.frombuffer(bytes(buffer.data), np.int32) + 4000).view(np.uint8)
    with pytest.raises(ConversionError, match="not exact"):
        verify_exact(small, pack(model))


@pytest.mark.parametrize(
    "name", ["ad01_int8", "kws_ref_model", "pretrainedResnet_quant", "vww_96_int8"]
)
def test_reference_models_stay_exact(shared: Path, name: str) -> None:
    data = strip((shared / "models" / "mlperf_tiny" / f"{name}.tflite").read_bytes())
    without = stripped(data)
    assert len(without) <= len(data)
    verify_exact(data, without, samples=3)
