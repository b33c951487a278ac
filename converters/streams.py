"""Samples from a stream: tf.data, generators, TFLite's representative datasets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError, one_line

# How much of a possibly endless stream is read. Ranges settle long before that.
MOST_SAMPLES = 1000
# A metric covers all samples, so a longer stream is refused.
MOST_EVALUATED = 100_000


def is_stream(source: Any) -> bool:
    """Returns whether a source yields samples: a dataset, a generator, or a function making one.

    Example:
        >>> is_stream(iter([])), is_stream(lambda: []), is_stream([1.0]), is_stream("x.npz")
        (True, True, False, False)
    """
    if callable(source):
        return True
    known = (str, bytes, Mapping, Sequence, np.ndarray)
    return isinstance(source, Iterable) and not isinstance(source, known) and not _is_array(source)


def collect(
    source: Any,
    ranks: Sequence[int],
    names: Sequence[str],
    argument: str,
    whole: bool = False,
) -> Any:
    """Returns what a stream yields as arrays, `MOST_SAMPLES` samples at most.

    Labels of a truncated stream are dropped: its first samples may all be of one class.

    Args:
        source: An iterable, or a function without arguments that returns one. It yields an array,
            a list of arrays (one for each input), a mapping from the inputs' names to arrays, or
            (any of these, labels): each a batch, or all a single sample without the batch axis.
        ranks: Rank of each input, the batch axis not counted.
        names: Names of the inputs, for mappings.
        argument: Name of the argument for error messages.
        whole: Read the stream to its end, up to `MOST_EVALUATED` samples. Defaults to False.

    Returns:
        A list with an array for each input, or a tuple of these and the labels.

    Raises:
        ArgumentError: the stream is empty, does not fit the inputs or fails, or with `whole` has no
            end.

    Example:
        >>> collect(([np.ones((1, 3))] for _ in range(4)), [1], ["x"], "calibration")[0].shape
        (4, 3)
    """
    columns: list[list[np.ndarray]] = []
    labels: list[np.ndarray] = []
    taken, cut = 0, False
    most = MOST_EVALUATED if whole else MOST_SAMPLES
    for item in _items(source, argument, most + 1):
        if taken >= most:
            cut = True
            break
        arrays, given = _split(item, ranks, names, argument)
        columns = columns or [[] for _ in arrays]
        for column, array in zip(columns, arrays, strict=True):
            column.append(array)
        if given is not None:
            labels.append(given)
        taken += len(arrays[0])
    cut = cut or taken > most
    if cut and whole:
        raise ArgumentError(argument, f"end after {most:,} samples at most", "more")
    if not taken:
        raise ArgumentError(argument, "yield at least one sample", "none")
    if labels and len(labels) != len(columns[0]):
        raise ArgumentError(argument, "yield labels with every batch, or with none", "both")
    joined = [_joined(column, argument, most) for column in columns]
    return (*joined, _joined(labels, argument, most)) if labels and not cut else joined


def _items(source: Any, argument: str, most: int) -> Iterator[Any]:
    try:
        made = source() if callable(source) else source
        if isinstance(made, Iterable):
            # Each yields at least one sample.
            yield from itertools.islice(iter(made), most)
            return
    except Exception as error:
        # It is the user's code, or a framework's, and may fail in any way.
        raise ArgumentError(
            argument, "yield samples until it ends", f"{type(error).__name__}: {one_line(error)}"
        ) from error
    raise ArgumentError(
        argument, "be a function that returns something to iterate over", type(made).__name__
    )


def _split(
    item: Any, ranks: Sequence[int], names: Sequence[str], argument: str
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Returns the inputs of what a stream yielded, as batches, and its labels."""
    labels = None
    if isinstance(item, tuple) and len(item) == 2:
        item, labels = item
    if isinstance(item, Mapping):
        missing = [name for name in names if name not in item]
        if missing:
            raise ArgumentError(argument, f"yield the input {missing[0]!r}", sorted(item))
        parts = [item[name] for name in names]
    else:
        parts = list(item) if isinstance(item, (list, tuple)) else [item]
    arrays = [np.asarray(part) for part in parts]
    if len(arrays) != len(ranks):
        raise ArgumentError(
            argument, f"yield one array for each of the model's {len(ranks)} inputs", len(arrays)
        )
    single = all(array.ndim == rank for array, rank in zip(arrays, ranks, strict=True))
    if not single and any(a.ndim != rank + 1 for a, rank in zip(arrays, ranks, strict=True)):
        raise ArgumentError(
            argument, "yield samples, or batches of samples, as the model takes them",
            [array.shape for array in arrays],
        )  # fmt: skip
    if single:
        arrays = [array[None] for array in arrays]
    if labels is None:
        return arrays, None
    if isinstance(labels, (list, tuple, Mapping)):
        raise ArgumentError(
            argument, "yield the labels of one output as an array", type(labels).__name__,
            "Give those of several outputs as arrays: (x, {name: y}).",
        )  # fmt: skip
    values = np.asarray(labels)
    return arrays, values[None] if single else values


def _joined(parts: list[np.ndarray], argument: str, most: int) -> np.ndarray:
    try:
        return np.concatenate(parts)[:most]
    except ValueError as error:
        shapes = sorted({part.shape[1:] for part in parts})
        raise ArgumentError(argument, "yield samples of one shape", shapes[:3]) from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
