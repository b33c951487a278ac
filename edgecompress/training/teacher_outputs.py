"""Outputs of teachers, computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.content_hashes import arrays_sha256, model_sha256
from edgecompress.core.datasets import is_dataset, is_endless, one_epoch
from edgecompress.core.errors import ArgumentError, NotFiniteError, UnreadableFileError
from edgecompress.core.files import sha256, write_atomic
from edgecompress.core.reading import read_arrays, read_json
from edgecompress.training.teachers import Teacher, checked_teachers, model_of

SCHEMA = "edgecompress.teacher_outputs/1"
_INDEX = "teacher_outputs.json"
# Stands for the hash of all data where each part has its own, under this name.
_IN_PARTS, _CONTENT = "in parts", "content"
# Samples of a file, at least, and files of a folder, at most.
_SAMPLES, _FILES = 1024, 64
# Of murmur3's finalizer (Appleby, 2011), as signed 32-bit numbers, and 2**32 / golden ratio.
_FACTORS = (-2048144789, -1028477387)
_GOLDEN = -1640531527
_SEEDS = (1, 0x5BD1E995)


class TeacherOutputs:
    """What one or several teachers compute for training data, kept in a folder.

    In place of the teachers in `Distillation`, they spare the student's steps the teachers. `fit`
    gets the same data as ever, in any order: a step knows a sample again by a hash of its values.
    A sample that is not among the data, an augmented one for instance, ends training with an error.

    The outputs are written in parts, each whole or not at all. A run that was interrupted, by
    `kill -9` too, continues with the first part that is missing. The folder belongs to these
    teachers and these data: with others it is refused. Of a dataset, parts whose samples have
    changed are computed anew.

    Args:
        teacher: As in `Distillation`.
        x: The training data: an array (samples, ...), or one for each input, as the teachers take
            them. Arrays that are mapped from disk are read part by part. Or batches as `fit` takes
            them, with or without labels, that can be read any number of times: a tf.data.Dataset,
            a keras.utils.PyDataset or another iterable; in the same order each time, else nothing
            that is stored is found again.
        folder: Where the outputs are kept; created if it is missing.
        batch_size: Samples that a teacher sees at once.

    Raises:
        ArgumentError: an argument breaks its rule, or the folder holds the outputs of other
            teachers or for other data.
        NotFiniteError: a teacher computes NaN or infinite values.

    Example:
        >>> outputs = TeacherOutputs(teacher, x, "teacher_outputs")  # doctest: +SKIP
        >>> model.fit(x, y, callbacks=[Distillation(outputs)])  # doctest: +SKIP
    """

    def __init__(self, teacher: Any, x: Any, folder: Path | str, batch_size: int = 256) -> None:
        """Computes what is missing."""
        self.teachers: tuple[Teacher, ...] = checked_teachers(teacher)
        self.folder = Path(folder)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError("batch_size", "be a whole number, 1 or more", batch_size)
        parts = (
            _kept_of_batches(self.teachers, _readable(x), self.folder, batch_size)
            if _yields(x)
            else _kept_of_arrays(self.teachers, _arrays(x), self.folder, batch_size)
        )
        hashes, tables = [], []
        for inputs, outputs in parts:
            hashes.append(_hashes(inputs))
            tables.append(outputs)
        self._samples = sum(len(first) for first, _ in hashes)
        self._tables = [np.concatenate(found) for found in zip(*tables, strict=True)]
        first, second = (np.concatenate(found) for found in zip(*hashes, strict=True))
        # Equal samples have equal outputs: one of them is enough.
        _, once = np.unique(np.stack([first, second]), axis=1, return_index=True)
        order = once[np.lexsort((second[once], first[once]))]
        self._hashes = first[order], second[order]
        self._tables = [table[order] for table in self._tables]
        # How many samples have the same first hash, at most.
        self._most = int(np.unique(self._hashes[0], return_counts=True)[1].max())

    def __len__(self) -> int:
        """Returns the number of samples."""
        return self._samples

    def tensors(self) -> Found:
        """Returns the outputs as a training step looks them up; call it outside of the step."""
        return Found(self._hashes, self._tables, self._most)


def kept_outputs(
    teachers: Sequence[Teacher], x: Any, folder: Path, batch_size: int
) -> list[np.ndarray]:
    """Returns what teachers compute for samples, in their order: of a folder, or kept there now.

    The values are those of `predict` with this batch size, bit for bit.

    Args:
        teachers: The teachers.
        x: Arrays (samples, ...), in the structure that the teachers take.
        folder: As in `TeacherOutputs`.
        batch_size: As in `TeacherOutputs`.

    Returns:
        Each output of each teacher, (samples, ...), 32-bit.

    Raises:
        ArgumentError: the folder holds the outputs of other teachers or for other data.
        NotFiniteError: a teacher computes NaN or infinite values.
    """
    parts = _kept_of_arrays(teachers, x, folder, batch_size)
    return [np.concatenate(found) for found in zip(*(own for _, own in parts), strict=True)]


# Inputs of some samples, and each output of each teacher.
_Part = tuple[Any, list[np.ndarray]]


def _kept_of_arrays(
    teachers: Sequence[Teacher], x: Any, folder: Path, batch_size: int
) -> Iterator[_Part]:
    """Yields arrays part by part, with what teachers compute for each."""
    import keras

    arrays = keras.tree.flatten(x)
    _take(folder, _identity(teachers, arrays_sha256(arrays)))
    samples = len(arrays[0])
    per_file = _per_file(samples, batch_size)
    for start in range(0, samples, per_file):
        inputs = keras.tree.map_structure(lambda array: array[start : start + per_file], x)  # noqa: B023
        yield inputs, _part(teachers, folder, start, inputs, batch_size)


def _kept_of_batches(
    teachers: Sequence[Teacher], batches: Iterable[Any], folder: Path, batch_size: int
) -> Iterator[_Part]:
    """Yields the inputs of batches part by part, with what teachers compute for each."""
    import keras

    _take(folder, _identity(teachers, _IN_PARTS))
    start = 0
    for inputs in _regrouped(batches, _per_file(0, batch_size)):
        arrays = keras.tree.flatten(inputs)
        content = arrays_sha256(arrays)
        yield inputs, _part(teachers, folder, start, inputs, batch_size, content)
        start += len(arrays[0])
    if not start:
        raise ArgumentError("x", "yield at least one batch", "none")


def _regrouped(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Yields the inputs of batches, `size` samples at a time and what is left at the end."""
    import keras

    held: list[Any] = []
    count = 0
    for batch in batches:
        held.append(_arrays(_inputs(batch)))
        count += len(keras.tree.flatten(held[-1])[0])
        if count < size:
            continue
        whole = _joined(held)
        for start in range(0, count - size + 1, size):
            yield keras.tree.map_structure(lambda array: array[start : start + size], whole)  # noqa: B023
        count %= size
        held = [keras.tree.map_structure(lambda array: array[len(array) - count :], whole)]  # noqa: B023
    if count:
        yield _joined(held)


def _inputs(batch: Any) -> Any:
    import keras

    try:
        return keras.utils.unpack_x_y_sample_weight(batch)[0]
    except ValueError as error:
        got = f"{len(batch)} values"
        raise ArgumentError("x", "yield x, (x, y) or (x, y, sample_weight)", got) from error


def _joined(parts: Sequence[Any]) -> Any:
    import keras

    try:
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    except ValueError as error:
        shapes = sorted({str(array.shape[1:]) for array in keras.tree.flatten(list(parts))})
        raise ArgumentError("x", "yield samples of one shape", ", ".join(shapes[:3])) from error


def known_as(teachers: Sequence[Teacher], content: str) -> str:
    """Returns the name of a folder that is of these teachers and data of this hash alone."""
    return sha256(json.dumps(_identity(teachers, content)).encode())[:16]


def _identity(teachers: Sequence[Teacher], content: str) -> dict[str, Any]:
    """Returns what a folder of outputs belongs to, as JSON values."""
    return {
        "schema": SCHEMA,
        "teachers": [model_sha256(model_of(each)) for each in teachers],
        "data": content,
    }


def _per_file(samples: int, batch_size: int) -> int:
    """Returns the samples of a part: whole batches, as `predict` of all samples has them."""
    least = max(_SAMPLES, -(-samples // _FILES))
    return -(-least // batch_size) * batch_size


def _take(folder: Path, index: Mapping[str, Any]) -> None:
    """Takes the folder, or refuses that of other teachers or data."""
    place = folder / _INDEX
    if place.exists():
        found = read_json(place)
        for key in index:
            if not isinstance(found, dict) or found.get(key) != index[key]:
                what = {"teachers": "of these teachers", "data": "for these data"}.get(key)
                raise ArgumentError(
                    "folder", f"hold outputs {what}" if what else f"be of {SCHEMA}",
                    str(folder), "Name another folder, or delete this one.",
                )  # fmt: skip
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            "folder", "be a writable place", str(folder), f"{error.strerror}."
        ) from error
    write_atomic(place, json.dumps(index, indent=1) + "\n")


def _part(
    teachers: Sequence[Teacher],
    folder: Path,
    start: int,
    x: Any,
    batch_size: int,
    content: str = "",
) -> list[np.ndarray]:
    """Returns the outputs of all teachers for some samples: of a file, or computed and kept.

    Args:
        teachers: The teachers.
        folder: Of the file.
        start: How many samples come before these.
        x: The inputs.
        batch_size: As in `TeacherOutputs`.
        content: Hash of the inputs, which the file has to have, too. Defaults to that of the
            folder, which says it for all parts.
    """
    import io

    import keras

    count = len(keras.tree.flatten(x)[0])
    place = folder / f"{start:09d}.npz"
    digest = np.frombuffer(bytes.fromhex(content), np.uint8)
    shapes = [tuple(out.shape[1:]) for each in teachers for out in model_of(each).outputs]
    try:
        stored = read_arrays(place) if place.exists() else {}
    # Damaged, by a disk for instance: it is computed again.
    except UnreadableFileError:
        stored = {}
    kept = [stored.get(str(number)) for number in range(len(shapes))]
    if np.array_equal(stored.get(_CONTENT, digest[:0]), digest) and all(
        isinstance(array, np.ndarray)
        and array.dtype == np.float32
        and len(array) == count
        and _fits(array.shape[1:], shape)
        and np.isfinite(array).all()
        for array, shape in zip(kept, shapes, strict=True)
    ):
        return [np.asarray(array) for array in kept]
    found: list[np.ndarray] = []
    for each in teachers:
        model = model_of(each)
        outputs = keras.tree.flatten(model.predict(x, batch_size=batch_size, verbose=0))
        found += [np.asarray(output, np.float32) for output in outputs]
        if not all(np.isfinite(output).all() for output in outputs):
            raise NotFiniteError(
                f"What the teacher ({model.name}) computes for samples {start} to "
                f"{start + count - 1} is NaN or infinite. Check the teacher and the scaling of "
                "the data."
            )
    buffer = io.BytesIO()
    more = {_CONTENT: digest} if content else {}
    np.savez(buffer, **{str(number): array for number, array in enumerate(found)}, **more)
    write_atomic(place, buffer.getvalue())
    return found


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Returns whether a shape is the wanted one, in which None is any size."""
    return len(found) == len(wanted) and all(
        want is None or have == want for have, want in zip(found, wanted, strict=True)
    )


class Found:
    """Outputs of known samples, as tensors of the backend.

    Args:
        hashes: Both hashes of each sample, sorted.
        tables: Each output of each teacher, in the same order.
        most: How many samples share a first hash, at most.
    """

    def __init__(
        self, hashes: Sequence[np.ndarray], tables: Sequence[np.ndarray], most: int
    ) -> None:
        from keras import ops

        self._hashes = [ops.convert_to_tensor(each) for each in hashes]
        self._tables = [ops.convert_to_tensor(each) for each in tables]
        self._most = most

    def __call__(self, x: Any) -> tuple[list[Any], Any]:
        """Returns the outputs for a batch, and which of its samples are unknown, (samples,)."""
        from keras import ops

        first, second = sample_hashes(x)
        begin = ops.cast(ops.searchsorted(self._hashes[0], first), "int32")
        place, known = ops.zeros_like(begin), ops.zeros_like(begin, dtype="bool")
        for step in range(self._most):
            at = ops.minimum(begin + step, self._hashes[0].shape[0] - 1)
            same = [
                ops.equal(ops.take(table, at), own)
                for table, own in zip(self._hashes, (first, second), strict=True)
            ]
            hit = ops.logical_and(*same)
            place, known = ops.where(hit, at, place), ops.logical_or(known, hit)
        return [ops.take(table, place, axis=0) for table in self._tables], ops.logical_not(known)


def sample_hashes(x: Any) -> tuple[Any, Any]:
    """Returns two 32-bit hashes of the values of each sample of a batch, (samples,) each.

    Values count as 32-bit numbers, each mixed with its position; the sum is taken modulo 2**32, so
    that the result does not depend on the order in which it is computed.

    Args:
        x: The inputs of a batch, tensors (samples, ...) in any structure.
    """
    import keras
    from keras import ops

    columns = []
    for tensor in keras.tree.flatten(x):
        tensor = ops.convert_to_tensor(tensor)
        if "float" in keras.backend.standardize_dtype(tensor.dtype):
            tensor = ops.view(ops.cast(tensor, "float32"), dtype="int32")
        columns.append(ops.reshape(ops.cast(tensor, "int32"), (ops.shape(tensor)[0], -1)))
    values = columns[0] if len(columns) == 1 else ops.concatenate(columns, axis=1)
    places = ops.arange(ops.shape(values)[1], dtype="int32")[None]
    found = [
        ops.sum(_mixed(ops.bitwise_xor(values, _mixed(places * _GOLDEN + seed))), axis=1)
        for seed in _SEEDS
    ]
    return found[0], found[1]


def _mixed(values: Any) -> Any:
    """Returns 32-bit numbers of which each bit depends on all bits of the given one."""
    from keras import ops

    for shift, factor in zip((16, 13), _FACTORS, strict=True):
        values = ops.bitwise_xor(values, ops.bitwise_right_shift(values, shift))
        values = values * ops.convert_to_tensor(factor, "int32")
    return ops.bitwise_xor(values, ops.bitwise_right_shift(values, 16))


def _hashes(inputs: Any) -> list[np.ndarray]:
    """Returns the hashes of samples in memory."""
    import keras
    from keras import ops

    tensors = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    return [ops.convert_to_numpy(each) for each in sample_hashes(tensors)]


def _yields(x: Any) -> bool:
    """Returns whether data are batches to be read one by one."""
    if is_dataset(x):
        return True
    whole = (str, bytes, Sequence, Mapping, np.ndarray)
    return isinstance(x, Iterable) and not isinstance(x, whole) and not hasattr(x, "dtype")


def _readable(x: Any) -> Iterable[Any]:
    """Returns batches that end and that can be read again."""
    if isinstance(x, Iterator):
        raise ArgumentError(
            "x", "be arrays, or batches that can be read more than once", type(x).__name__,
            "Wrap a generator: tf.data.Dataset.from_generator.",
        )  # fmt: skip
    if not is_dataset(x):
        return x
    if is_endless(x):
        raise ArgumentError("x", "end", "a dataset without an end", "Take one epoch of it.")
    return one_epoch(x)


def _arrays(x: Any) -> Any:
    """Returns inputs as arrays, all of one number of samples."""
    import keras

    inputs = keras.tree.map_structure(_array, x)
    arrays = keras.tree.flatten(inputs)
    if not arrays or len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        raise ArgumentError("x", "be arrays of the same number of samples", type(x).__name__)
    return inputs


def _array(values: Any) -> np.ndarray:
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise ArgumentError("x", "be arrays, or batches of them", type(values).__name__)
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.ndim < 1 or array.dtype.kind not in "biuf":
        raise ArgumentError("x", "be arrays of numbers", f"{array.dtype} {array.shape}")
    return array
