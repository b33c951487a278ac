"""Calibration data: every way to give it, every way to get it wrong, and the measured ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import calibration
from edgecompress.converters.loaders import InputSpec, LoadedModel
from edgecompress.core.errors import ArgumentError

IMAGE = LoadedModel(None, "keras3", "m", (InputSpec("image", (4, 4, 1), "float32"),))
TWO = LoadedModel(
    None, "keras3", "m", (InputSpec("a", (3,), "float32"), InputSpec("tokens", (5,), "int32"))
)
X = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32)
Y = np.arange(6)


def same(data: calibration.Data, *arrays: np.ndarray, labels: np.ndarray | None = None) -> bool:
    samples, found = data
    return (
        samples is not None
        and len(samples) == len(arrays)
        and all(np.array_equal(a, b) for a, b in zip(samples, arrays, strict=True))
        and (labels is None) == (found is None)
        and (labels is None or np.array_equal(labels, found))
    )


def test_nothing_given() -> None:
    assert calibration.load(None, IMAGE) == (None, None)


def test_arrays_and_files(tmp_path: Path) -> None:
    assert same(calibration.load(X, IMAGE), X)
    assert same(calibration.load([X], IMAGE), X)
    assert same(calibration.load((X, Y), IMAGE), X, labels=Y)
    assert same(calibration.load({"x": X, "y": Y}, IMAGE), X, labels=Y)
    np.save(tmp_path / "x.npy", X)
    assert same(calibration.load(tmp_path / "x.npy", IMAGE), X)
    np.savez(tmp_path / "xy.npz", other=np.zeros(3), x=X, y=Y)
    assert same(calibration.load(str(tmp_path / "xy.npz"), IMAGE), X, labels=Y)
    np.savez(tmp_path / "first.npz", y=Y, images=X)
    assert same(calibration.load(tmp_path / "first.npz", IMAGE), X, labels=Y)


def test_several_inputs_by_name_position_and_order() -> None:
    a, tokens = np.ones((2, 3), np.float32), np.arange(10).reshape(2, 5)
    for source in ({"tokens": tokens, "a": a}, {"x0": a, "x1": tokens}, [a, tokens], (a, tokens)):
        assert same(calibration.load(source, TWO), a, tokens)
    samples, _ = calibration.load([a, tokens], TWO)
    assert samples is not None and samples[1].dtype == np.int32


def test_doubles_become_floats() -> None:
    samples, _ = calibration.load(X.astype(np.float64), IMAGE)
    assert samples is not None and samples[0].dtype == np.float32


def test_samples_are_spread_evenly() -> None:
    x, y = np.repeat(np.arange(4.0), 5)[:, None] + np.zeros((20, 3)), np.repeat(np.arange(4), 5)
    model = LoadedModel(None, "keras3", "m", (InputSpec("a", (3,), "float32"),))
    samples, labels = calibration.load((x, y), model, max_samples=4)
    assert labels is not None and labels.tolist() == [0, 1, 2, 3]  # sorted data stay balanced
    assert samples is not None and samples[0][:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "source, text",
    [
        ((X * 255).astype(np.uint8), "scaled as in training"),
        (X[..., 0], r"x\[..., None\]"),
        (X[0], r"x\[None\]"),
        (X[:, :3], r"shape \(4, 4, 1\)"),
        (X[:0], "at least one sample"),
        (np.where(X > 1, np.nan, X), "NaN or infinite"),
        (np.full_like(X, np.inf), "NaN or infinite"),
        ([X, X], "1 inputs"),
        ((X, Y[:4]), r"as many samples.*\[4, 6\]"),
        ({"y": Y}, "under the key x"),
        (np.float32(3), "shape"),
        ("samples.txt", "numpy.savez"),
        ("missing.npz", "does not exist"),
        (np.array(["a", "b"]), "shape"),
    ],
)
def test_wrong_data_are_named(source: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text) as caught:
        calibration.load(source, IMAGE, argument="--calibration")
    assert "`--calibration` must" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_wrong_integers_are_named() -> None:
    a = np.ones((2, 3), np.float32)
    with pytest.raises(ArgumentError, match="integers for input 'tokens'"):
        calibration.load([a, np.ones((2, 5), np.float32)], TWO)
    with pytest.raises(ArgumentError, match="fit int32"):
        calibration.load([a, np.full((2, 5), 2**40)], TWO)
    with pytest.raises(ArgumentError, match="array for each input"):
        calibration.load({"a": a}, TWO)


def test_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    np.save(tmp_path / "pickle.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "good.npz", x=X)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:100])
    (tmp_path / "text.npy").write_text("1, 2, 3")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("pickle.npy", "cut.npz", "text.npy", "empty.npz"):
        with pytest.raises(ArgumentError, match="be a readable .npy or .npz"):
            calibration.load(tmp_path / name, IMAGE)
    assert not (tmp_path / "exploded").exists()


def test_ranges_equal_numpy() -> None:
    data, weights = relu_of_dense()
    x = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    out = np.maximum(x @ weights.T, 0)
    ranges = calibration.measure_ranges(data, [x])
    assert ranges[0] == (x.min(), x.max())
    assert ranges[2] == (pytest.approx(out.min()), pytest.approx(out.max()))
    values = calibration.tensor_values(data, [x[4]])
    np.testing.assert_allclose(values[2], out[4:5], rtol=1e-6)
    assert set(values) == {0, 2}  # computed tensors only, no weights


def relu_of_dense() -> tuple[bytes, np.ndarray]:
    from ai_edge_litert import schema_py_generated as s

    from edgecompress.flatbuffers.packing import pack

    weights = np.float32([[1, -2, 3], [0.5, 0, -1]])
    tensors = [
        s.TensorT(shape=np.int32([1, 3]), type=s.TensorType.FLOAT32, name="x"),
        s.TensorT(shape=np.int32([2, 3]), type=s.TensorType.FLOAT32, name="w", buffer=1),
        s.TensorT(shape=np.int32([1, 2]), type=s.TensorType.FLOAT32, name="y"),
    ]
    operator = s.OperatorT(
        inputs=np.int32([0, 1, -1]), outputs=np.int32([2]),
        builtinOptionsType=s.BuiltinOptions.FullyConnectedOptions,
        builtinOptions=s.FullyConnectedOptionsT(fusedActivationFunction=1),
    )  # fmt: skip
    graph = s.SubGraphT(
        tensors=tensors, inputs=np.int32([0]), outputs=np.int32([2]), operators=[operator]
    )
    model = s.ModelT(
        version=3, operatorCodes=[s.OperatorCodeT(builtinCode=9, deprecatedBuiltinCode=9)],
        subgraphs=[graph], buffers=[s.BufferT(), s.BufferT(data=weights.view(np.uint8).ravel())],
    )  # fmt: skip
    return pack(model), weights
