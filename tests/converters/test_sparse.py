"""Sparse fully-connected weights: by numpy, and in the runtimes of phones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import sparse
from edgecompress.converters.sparse import convert, kernel_sparsity, store_sparse, verify_sparse
from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.editor import strip
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.inspection.tflite import inspect_tflite

pytestmark = pytest.mark.slow

LITERT = ("litert",)


def pruned(units: int, inputs: int, share: float, width: int = 4, seed: int = 0) -> np.ndarray:
    """A filter (units, inputs) with `share` of its blocks of 1 x `width` zero, rounded down."""
    rng = np.random.default_rng(seed)
    count = units * inputs // width
    kept = np.ones(count, bool)
    kept[rng.permutation(count)[: int(share * count)]] = False
    mask = np.repeat(kept.reshape(units, -1), width, 1)
    return np.where(mask, rng.normal(size=(units, inputs)), 0).astype(np.float32)


def network(*filters: np.ndarray, bias: bool = True, batch: int = 1) -> bytes:
    """FULLY_CONNECTED layers with ReLU, built by hand."""
    from ai_edge_litert import schema_py_generated as s

    rng = np.random.default_rng(1)
    buffers, tensors, operators = [s.BufferT()], [], []

    def add(shape: tuple[int, ...], values: np.ndarray | None = None) -> int:
        if values is not None:
            buffers.append(s.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        tensors.append(
            s.TensorT(
                shape=np.array(shape, np.int32), type=s.TensorType.FLOAT32, hasRank=True,
                buffer=0 if values is None else len(buffers) - 1, name=f"t{len(tensors)}",
            )
        )  # fmt: skip
        return len(tensors) - 1

    last = first = add((batch, filters[0].shape[1]))
    for values in filters:
        inputs = [last, add(values.shape, values)]
        if bias:
            inputs.append(add((len(values),), rng.normal(size=len(values)).astype(np.float32)))
        last = add((batch, len(values)))
        options = s.FullyConnectedOptionsT()
        options.fusedActivationFunction = s.ActivationFunctionType.RELU
        operators.append(
            s.OperatorT(
                opcodeIndex=0, inputs=inputs, outputs=[last], builtinOptions=options,
                builtinOptionsType=s.BuiltinOptions.FullyConnectedOptions,
            )
        )  # fmt: skip
    graph = s.SubGraphT(tensors=tensors, inputs=[first], outputs=[last], operators=operators)
    code = s.OperatorCodeT(builtinCode=9, deprecatedBuiltinCode=9, version=1)
    model = s.ModelT(version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers)
    return pack(model)


@pytest.fixture(scope="module")
def model() -> bytes:
    """90 % of the blocks zero; none; zeros that do not form blocks."""
    single = np.where(np.random.default_rng(2).random((32, 64)) < 0.95, 0, 1).astype(np.float32)
    return network(pruned(64, 128, 0.9), pruned(64, 64, 0.0), single)


def test_sparse_and_dense_filters(model: bytes) -> None:
    result = convert(model, samples=4)
    data = result.artifact.data
    assert result.artifact.kind == "sparse"
    assert len(data) < result.bytes_before == len(strip(model))
    rows = {t.index: t for t in result.tensors}
    assert set(rows) == {1, 4, 7}
    assert rows[1].reason == "" and rows[1].sparsity == pytest.approx(0.9, abs=1 / 2048)
    assert rows[1].name == "t1"
    assert "0.0% of its 1x4 blocks are zero, below 90%" in rows[4].reason
    assert rows[7].sparsity is not None and rows[7].sparsity < 0.9
    # A tenth of the values, an index of one byte for each four of them, 65 segments of one.
    blocks = 2048 - int(0.9 * 2048)
    assert rows[1].bytes_after == blocks * 16 + blocks + 65
    assert result.error <= 1e-4
    assert result.engines["litert"] == ""
    if engine_available("tflite-runtime") is None:
        assert result.engines["tflite-runtime"] == ""
    flat = read_tflite(data)
    assert [o.version for o in flat.operators] == [8, 1, 1]
    assert flat.tensors[1].sparsity is not None and flat.tensors[4].sparsity is None
    assert len(flat.tensors[1].raw or b"") == blocks * 16


def test_outputs_by_numpy(model: bytes) -> None:
    data = convert(model, engines=LITERT).artifact.data
    flat = read_tflite(model)
    x = np.random.default_rng(3).normal(size=(16, 128)).astype(np.float32)
    expected = x.astype(float)
    for operator in flat.operators:
        weights, bias = (flat.tensors[i].values().astype(float) for i in operator.inputs[1:])
        expected = np.maximum(expected @ weights.T + bias, 0)
    found = run_engine("litert", data, [x]).outputs[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_reader_and_the_inspection_see_the_dense_weights(model: bytes) -> None:
    dense, data = read_tflite(model), convert(model, engines=LITERT).artifact.data
    flat = read_tflite(data)
    for index in (1, 4, 7):
        assert np.array_equal(flat.tensors[index].values(), dense.tensors[index].values())
    rows = inspect_tflite(flat).rows
    assert [row.zeros for row in rows] == [row.zeros for row in inspect_tflite(dense).rows]
    assert rows[0].dense_bytes == 4 * (64 * 128 + 64)
    assert rows[0].weight_bytes < 0.12 * rows[0].dense_bytes
    assert rows[0].bits == pytest.approx(32 * 0.1 * (1 + 1 / 16), rel=0.05)
    # Files of this package and of others alike.
    assert np.array_equal(read_tflite(strip(data)).tensors[1].values(), dense.tensors[1].values())


def test_notes_say_what_was_measured(model: bytes) -> None:
    notes = convert(model, samples=1, engines=LITERT).notes
    assert notes[0].startswith("1 of 3 filters are stored sparse: ")
    assert "on x86 only" in notes[0] and "failed to load" in notes[0]
    assert "not for microcontrollers" in notes[1]
    assert any(note.startswith("Left dense, as 0.0% of its 1x4 blocks") for note in notes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_without_bias_and_in_batches(bias: bool, batch: int) -> None:
    data = network(pruned(64, 128, 0.95), bias=bias, batch=batch)
    result = convert(data, samples=3, engines=LITERT)
    assert result.error <= 1e-4


def test_wide_layers_have_wider_indices() -> None:
    data = network(pruned(8, 1200, 0.9))
    sparsity = (
        read_tflite(convert(data, samples=2, engines=LITERT).artifact.data).tensors[1].sparsity
    )
    assert sparsity is not None
    indices = sparsity.levels[1].indices
    assert max(indices) > 255
    assert sparsity.bytes == 2 * len(indices) + 9 * 1


def test_equal_inputs_give_equal_bytes(model: bytes, tmp_path: Any) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(model)
    first = convert(path, samples=1, engines=LITERT).artifact
    again = convert(Artifact("float32", model, "mine", notes=("Mine.",)), engines=LITERT).artifact
    assert first.data == again.data
    assert (first.source, again.source, again.notes[0]) == (str(path), "mine", "Mine.")


def test_models_pruned_in_blocks() -> None:
    keras = pytest.importorskip("keras")
    from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
    from edgecompress.converters import float32
    from edgecompress.schedules import ConstantSparsity

    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu", name="wide"),
            keras.layers.Dense(6, name="odd"),
        ]
    )
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 64)).astype("f4"), rng.integers(0, 6, 64)
    pruning = MagnitudePruning(
        ConstantSparsity(0.9, frequency=1), layers=["wide"], block_size=(4, 1)
    )
    net.fit(x, y, batch_size=16, verbose=0, callbacks=[pruning])
    share = kernel_sparsity(net.get_layer("wide").kernel.numpy())
    assert share == pytest.approx(0.9, abs=1 / 1024)
    result = convert(float32.convert(net).artifact, engines=LITERT)
    chosen = [t for t in result.tensors if not t.reason]
    assert [t.sparsity for t in chosen] == [share]
    found = run_engine("litert", result.artifact.data, [x]).outputs[0]
    np.testing.assert_allclose(found, net.predict(x, verbose=0), atol=1e-4)


def test_latency_is_asked_for_both(model: bytes) -> None:
    def latency(flat: FlatModel) -> float:
        return float(len(flat.data))

    result = convert(model, samples=1, engines=LITERT, latency=latency)
    assert result.latency_before_us == result.bytes_before
    assert result.latency_after_us == len(result.artifact.data)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ([pruned(64, 128, 0.8)], r"80.0% of its 1x4 blocks are zero, below 90%"),
        ([pruned(64, 128, 0.95, width=1)], "below 90%"),
        ([pruned(64, 126, 0.95, width=1)], "its 126 inputs are not a multiple of 4"),
        ([pruned(4, 8, 1.0)], "would take no fewer bytes"),
    ],
)
def test_no_filter_that_gains(filters: list[np.ndarray], reason: str) -> None:
    with pytest.raises(ConversionError, match=reason) as caught:
        convert(network(*filters))
    assert "block_size=(4, 1)" in str(caught.value)


def test_other_operators_and_types_stay_dense(tiny_operators: dict[str, bytes]) -> None:
    with pytest.raises(ConversionError, match="sparse weights do not speed up CONV_2D"):
        convert(tiny_operators["conv"])
    with pytest.raises(ConversionError, match="INT8 is faster dense"):
        convert(tiny_operators["int8"])


@pytest.fixture
def tiny_operators() -> dict[str, bytes]:
    """A convolution and an int8 layer; they are refused before any engine sees them."""

    def change(edit: Callable[[Any], None]) -> bytes:
        model = unpack(network(pruned(64, 128, 0.95)))
        edit(model)
        return pack(model)

    def conv(model: Any) -> None:
        model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 3
        model.subgraphs[0].tensors[1].shape = np.array([64, 1, 1, 128], np.int32)

    def int8(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors[:2]:
            tensor.type = 9

    return {"conv": change(conv), "int8": change(int8)}


def test_shared_filters_and_sparse_files_stay(model: bytes) -> None:
    data = unpack(network(pruned(64, 64, 0.95), pruned(64, 64, 0.9)))
    operators = data.subgraphs[0].operators
    operators[1].inputs = [operators[1].inputs[0], *operators[0].inputs[1:]]
    with pytest.raises(ConversionError, match="several readers"):
        convert(pack(data))
    with pytest.raises(ConversionError, match="it is sparse already"):
        convert(convert(network(pruned(64, 64, 0.95)), samples=1, engines=LITERT).artifact)


def test_several_subgraphs(model: bytes) -> None:
    data = unpack(model)
    data.subgraphs.append(data.subgraphs[0])
    with pytest.raises(UnsupportedModelError, match="2 subgraphs"):
        convert(pack(data))


def test_kernels_without_blocks() -> None:
    with pytest.raises(ArgumentError, match="the second a multiple of 4"):
        kernel_sparsity(np.zeros((6, 4)))
    assert kernel_sparsity(np.zeros((4, 6))) == 1.0


# --- The failing direction ------------------------------------------------------------------------


def test_wrong_indices_and_values_are_caught(model: bytes) -> None:
    base = strip(model)
    good = store_sparse(base, [1])
    assert verify_sparse(base, good, samples=1) <= 1e-4
    moved = unpack(good)
    vector = moved.subgraphs[0].tensors[1].sparsity.dimMetadata[1].arrayIndices
    vector.values = np.roll(vector.values, 1)
    values = unpack(good)
    buffer = values.buffers[values.subgraphs[0].tensors[1].buffer]
    buffer.data = np.roll(buffer.data, 16)
    for wrong in (moved, values):
        with pytest.raises(ConversionError, match="does not expand to its original weights"):
            verify_sparse(base, pack(wrong))


def test_other_outputs_are_caught(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    base = strip(model)
    good = store_sparse(base, [1])

    def wrong(name: str, data: bytes, inputs: Any, **more: Any) -> Any:
        run = run_engine("litert", data, inputs, **more)
        outputs = tuple(o * (1.001 if data == good else 1) for o in run.outputs)
        return dataclasses.replace(run, outputs=outputs)

    monkeypatch.setattr(sparse, "run_engine", wrong)
    with pytest.raises(ConversionError, match="computes different outputs in LiteRT"):
        verify_sparse(base, good, samples=1)
    monkeypatch.setattr(sparse, "TOLERANCE", 1.0)
    assert verify_sparse(base, good, samples=1) > 1e-4
