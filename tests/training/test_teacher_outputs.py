"""Outputs of teachers on disk: computed once, resumed after a kill, refused for other data."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, NotFiniteError
from edgecompress.training import teacher_outputs
from edgecompress.training.teacher_outputs import TeacherOutputs, sample_hashes

keras = pytest.importorskip("keras")

X = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")


def _teacher(seed: int = 1) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="d")], name="teacher")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_outputs, "_SAMPLES", 8)


class _Counted:
    """Counts the samples that a teacher sees."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        predict = model.predict

        def counted(x: Any, **more: Any) -> Any:
            self.seen.append(len(x))
            return predict(x, **more)

        monkeypatch.setattr(model, "predict", counted)


def _looked_up(stored: TeacherOutputs, x: Any) -> tuple[np.ndarray, np.ndarray]:
    outputs, unknown = stored.tensors()(x)
    return np.array(outputs[0]), np.array(unknown)


def test_each_sample_finds_its_outputs(tmp_path: Path) -> None:
    teacher = _teacher()
    stored = TeacherOutputs(teacher, X, tmp_path)
    assert len(stored) == 40
    order = np.random.default_rng(1).permutation(40)
    found, unknown = _looked_up(stored, X[order])
    np.testing.assert_allclose(found, np.array(teacher(X))[order], rtol=1e-5, atol=1e-6)
    assert not unknown.any()
    moved = X.copy()
    moved[5, 1] = np.nextafter(moved[5, 1], np.float32(9))
    assert np.flatnonzero(_looked_up(stored, moved)[1]).tolist() == [5]


def test_what_is_stored_is_not_computed_again(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _teacher()
    count = _Counted(first, monkeypatch)
    TeacherOutputs(first, X, tmp_path, 8)
    assert count.seen == [8] * 5
    again = _teacher()
    count = _Counted(again, monkeypatch)
    # A missing part, a damaged one, one of another form.
    names = sorted(path.name for path in tmp_path.glob("*.npz"))
    (tmp_path / names[0]).unlink()
    data = (tmp_path / names[2]).read_bytes()
    (tmp_path / names[2]).write_bytes(data[: len(data) // 2])
    np.savez(tmp_path / names[4], **{"0": np.zeros((7, 2), "f4")})
    stored = TeacherOutputs(again, X, tmp_path, 8)
    assert count.seen == [8, 8, 8]
    np.testing.assert_allclose(_looked_up(stored, X)[0], again(X), rtol=1e-5, atol=1e-6)
    # Numbers that no teacher gives.
    np.savez(tmp_path / names[1], **{"0": np.zeros((8, 5), "f4")})
    np.savez(tmp_path / names[3], **{"0": np.full((8, 2), np.nan, "f4")})
    stored = TeacherOutputs(again, X, tmp_path, 8)
    assert count.seen == [8, 8, 8, 8, 8]
    np.testing.assert_allclose(_looked_up(stored, X)[0], again(X), rtol=1e-5, atol=1e-6)


_KILLED = """
import os, signal, sys
import numpy as np
import keras
from edgecompress.training import teacher_outputs
keras.utils.set_random_seed(1)
teacher = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="d")], name="teacher")
teacher_outputs._SAMPLES = 8
predict, seen = teacher.predict, []
def dying(x, **more):
    seen.append(len(x))
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(x, **more)
teacher.predict = dying
x = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
teacher_outputs.TeacherOutputs(teacher, x, sys.argv[1], 8)
"""


def test_a_killed_run_is_continued(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch, run_python: Callable[..., Any]
) -> None:
    done = run_python(["-P", "-c", _KILLED, str(tmp_path)])
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr[-2000:]
    assert len(list(tmp_path.glob("*.npz"))) == 2
    teacher = _teacher()
    count = _Counted(teacher, monkeypatch)
    stored = TeacherOutputs(teacher, X, tmp_path, 8)
    assert count.seen == [8, 8, 8]
    np.testing.assert_allclose(_looked_up(stored, X)[0], teacher(X), rtol=1e-5, atol=1e-6)
    # Only whole files are left.
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".json"}


def test_the_folder_of_other_data_or_teachers_is_refused(tmp_path: Path) -> None:
    TeacherOutputs(_teacher(), X, tmp_path)
    other = X.copy()
    other[3, 1] += 1
    for teacher, x, text in (
        (_teacher(), other, "hold outputs for these data"),
        (_teacher(), X[:39], "hold outputs for these data"),
        (_teacher(2), X, "hold outputs of these teachers"),
        ([_teacher(), _teacher(2)], X, "hold outputs of these teachers"),
    ):
        with pytest.raises(ArgumentError, match=f"`folder` must {text}.*Name another folder"):
            TeacherOutputs(teacher, x, tmp_path)
    (tmp_path / "teacher_outputs.json").write_text(json.dumps({"schema": "other/1"}))
    with pytest.raises(ArgumentError, match="`folder` must be of edgecompress.teacher_outputs/1"):
        TeacherOutputs(_teacher(), X, tmp_path)


def test_samples_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array([3, 3, 3, 7], "i4")
    second = np.array([1, 4, 9, 1], "i4")
    table = teacher_outputs.Found((first, second), [np.arange(4.0)[:, None]], 3)
    monkeypatch.setattr(
        teacher_outputs, "sample_hashes", lambda x: (np.array([3, 7, 3, 3, 8], "i4"),
                                                     np.array([9, 1, 1, 2, 1], "i4")),
    )  # fmt: skip
    outputs, unknown = table(None)
    np.testing.assert_array_equal(np.array(outputs[0])[:3, 0], [2, 3, 0])
    np.testing.assert_array_equal(np.array(unknown), [False, False, False, True, True])


def test_equal_samples_are_looked_up_once(tmp_path: Path) -> None:
    # A step looks at as many places as samples share a hash.
    teacher = _teacher()
    x = np.concatenate([np.zeros((30, 3), "f4"), X[:5]])
    stored = TeacherOutputs(teacher, x, tmp_path)
    assert stored._most == 1
    assert len(stored) == 35
    found, unknown = _looked_up(stored, x[::-1].copy())
    np.testing.assert_allclose(found, np.array(teacher(x))[::-1], rtol=1e-5, atol=1e-6)
    assert not unknown.any()


def test_hashes_differ_wherever_samples_do() -> None:
    """Also small whole numbers, of which only the first bits of a float differ, and order."""
    grid = np.stack(np.meshgrid(*[np.arange(20.0)] * 3), -1).reshape(-1, 3).astype("f4")
    pairs = np.stack([np.array(each) for each in sample_hashes(grid)], -1)
    assert len(np.unique(pairs, axis=0)) == len(grid) == 8000
    # Each alone, too, but for the few that chance brings together.
    assert all(len(np.unique(column)) > 7990 for column in pairs.T)
    doubled = [np.array(each) for each in sample_hashes(grid.astype("f8"))]
    np.testing.assert_array_equal(np.stack(doubled, -1), pairs)
    whole = np.stack([np.array(each) for each in sample_hashes(grid.astype("u1"))], -1)
    assert len(np.unique(whole, axis=0)) == 8000


class _Batches:
    """Batches of 7 that can be read any number of times."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.x), 7):
            yield self.x[start : start + 7], np.zeros(7)


def _dataset(x: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(7)


def _sequence(x: np.ndarray) -> Any:
    class Sequence(keras.utils.PyDataset):  # type: ignore[misc]
        @property
        def num_batches(self) -> int:
            return -(-len(x) // 7)

        def __getitem__(self, at: int) -> Any:
            return x[7 * at : 7 * at + 7], np.zeros(7), np.ones(7)

    return Sequence()


@pytest.mark.parametrize("made", [_Batches, _dataset, _sequence])
def test_batches_are_kept_in_parts(
    made: Callable[[np.ndarray], Any], tmp_path: Path, short: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Parts of 8 from batches of 7: the outputs of arrays; what has changed is computed anew."""
    teacher = _teacher()
    count = _Counted(teacher, monkeypatch)
    stored = TeacherOutputs(teacher, made(X), tmp_path / "batches", 8)
    assert count.seen == [8] * 5 and len(stored) == 40
    whole = TeacherOutputs(teacher, X, tmp_path / "arrays", 8)
    order = np.random.default_rng(1).permutation(40)
    for ours, theirs in zip(_looked_up(stored, X[order]), _looked_up(whole, X[order]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    count.seen.clear()
    TeacherOutputs(teacher, made(X), tmp_path / "batches", 8)
    assert not count.seen
    moved = X.copy()
    moved[17] += 1
    stored = TeacherOutputs(teacher, made(moved), tmp_path / "batches", 8)
    assert count.seen == [8]
    np.testing.assert_allclose(_looked_up(stored, moved)[0], teacher(moved), rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match="hold outputs of these teachers"):
        TeacherOutputs(_teacher(2), made(X), tmp_path / "batches", 8)
    with pytest.raises(ArgumentError, match="hold outputs for these data"):
        TeacherOutputs(teacher, X, tmp_path / "batches", 8)


def test_batches_of_several_inputs(tmp_path: Path, short: None) -> None:
    keras.utils.set_random_seed(1)
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((2,), name="b")}
    joined = keras.layers.Concatenate()([inputs["b"], inputs["a"]])
    teacher = keras.Model(inputs, keras.layers.Dense(2)(joined))
    x = {"a": X[:, :1], "b": X[:, 1:]}
    batches = [{name: array[at : at + 9] for name, array in x.items()} for at in range(0, 40, 9)]

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    found, unknown = _looked_up(TeacherOutputs(teacher, Again(), tmp_path, 8), x)
    np.testing.assert_allclose(found, teacher(x), rtol=1e-5, atol=1e-6)
    assert not unknown.any()


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        (
            lambda: iter([X]),
            "`x` must be arrays, or batches that can be read more than once",
        ),
        (lambda: _dataset(X).repeat(), "`x` must end"),
        (lambda: _dataset(X).take(0), "`x` must yield at least one batch"),
        (lambda: {X.shape: 1}.keys(), "`x` must be arrays, or batches of them"),
        (lambda: {0: X, 1: X[:, :2]}.values(), "`x` must yield samples of one shape"),
        (lambda: {0: (X, X, X, X)}.values(), "`x` must yield x, .x, y. or"),
    ],
)
def test_bad_batches_are_named(batches: Callable[[], Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=text):
        TeacherOutputs(_teacher(), batches(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"x": [[1.0, 2.0]]}, "`x` must be arrays"),
        ({"x": np.array(["a"])}, "`x` must be arrays of numbers"),
        ({"x": X[:0]}, "`x` must be arrays of the same number of samples"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"teacher": "net.keras"}, "`teacher`"),
        ({"folder": "/dev/null/outputs"}, "`folder` must be a writable place"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=text):
        TeacherOutputs(**{"teacher": _teacher(), "x": X, "folder": tmp_path} | arguments)


def test_a_teacher_that_computes_nan_is_named(tmp_path: Path) -> None:
    broken = X.copy()
    broken[9] = np.nan
    with pytest.raises(NotFiniteError, match="samples 0 to 39 is NaN"):
        TeacherOutputs(_teacher(), broken, tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    assert os.listdir(tmp_path) == ["teacher_outputs.json"]
