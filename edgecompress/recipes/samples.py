"""Samples in memory, and batches that come from a dataset."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgecompress.converters import calibration
from edgecompress.converters.loaders import LoadedModel
from edgecompress.core.content_hashes import arrays_sha256
from edgecompress.core.errors import ArgumentError, EdgeCompressError, one_line

# How much of a dataset is held in memory: for calibration, for the kind of its labels, to notice
# that it has changed.
SAMPLED = 2_000
# Validation samples are all held in memory and run in the engine.
MOST_VALIDATION = 10_000
MOST_BYTES = 2 << 30
# Samples of a batch, where samples in memory are divided into batches.
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels.

    Attributes:
        x: One array for each input of the model; first axis samples.
        y: Labels as they came; None if there were none.
        groups: What each sample is of (`recipes.groups`); None if that was not said.
    """

    x: tuple[np.ndarray, ...]
    y: np.ndarray | None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.x[0])

    def at(self, indices: np.ndarray | slice) -> Samples:
        """Returns the samples at these positions."""
        return Samples(
            tuple(array[indices] for array in self.x),
            None if self.y is None else self.y[indices],
            None if self.groups is None else self.groups[indices],
        )

    def sha256(self) -> str:
        """Returns a hash of all values, shapes and types of inputs and labels."""
        return arrays_sha256((*self.x, *(() if self.y is None else (self.y,))))


def checked(source: Any, loaded: LoadedModel, argument: str) -> Samples:
    """Returns arrays as samples of a model.

    Raises:
        ArgumentError: they are missing, damaged or not finite, do not match the model's inputs, or
            have labels of several outputs or of text.
    """
    x, y = calibration.load(source, loaded, argument=argument)
    if x is None:
        raise ArgumentError(
            argument, "be given", None,
            "An .npz file with x and y, a folder of images, or module:function.",
        )  # fmt: skip
    if isinstance(y, Mapping):
        if len(y) > 1:
            raise ArgumentError(argument, "hold labels of one output under the key y", sorted(y))
        y = next(iter(y.values()))
    if y is None:
        return Samples(x, None)
    got = f"array of shape {y.shape} and dtype {y.dtype}"
    if y.dtype.kind not in "biuf":
        raise ArgumentError(
            argument, "hold numbers under the key y", got,
            "Number the classes: names, y = numpy.unique(y, return_inverse=True)."
            if y.dtype.kind in "SU" else "",
        )  # fmt: skip
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int(np.count_nonzero(~np.isfinite(y)))
        raise ArgumentError(
            argument, "hold finite labels", f"{bad} of {y.size} are NaN or infinite"
        )
    return Samples(x, y)


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches for training that are read anew in each epoch.

    Attributes:
        epoch: Returns the batches of one epoch, elements of a dataset: x, or (x, y).
        steps: Batches of an epoch.
        loaded: The model that the data are for.
        argument: Name of the argument for errors.
        sample: The first samples, `SAMPLED` at most.
        identity: What tells whether the data have changed, as a JSON value.
        count: Samples of an epoch; None if unknown.
        notes: About the data, for people.
        classes: Names of the classes by number, where the data name them.
        fixed: As `epoch`, in an order that never changes; None where samples may differ from epoch
            to epoch.
    """

    epoch: Callable[[], Iterator[Any]] = field(repr=False)
    steps: int
    loaded: LoadedModel = field(repr=False)
    argument: str
    sample: Samples
    identity: Any = None
    count: int | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    fixed: Callable[[], Iterator[Any]] | None = field(default=None, repr=False)

    def batches(self) -> Iterator[Samples]:
        """Returns checked batches without end, epoch after epoch.

        Raises:
            ArgumentError: a batch is damaged, or the dataset fails.
        """
        return read_batches(self.epoch, self.loaded, self.argument)

    def with_samples(self, more: Samples) -> Stream:
        """Returns batches that also hold other samples: a part of them each, all in an epoch.

        They come in another order in each epoch.
        """
        calls = itertools.count()

        def epoch() -> Iterator[Any]:
            random = np.random.default_rng(next(calls))
            own = read_batches(self.epoch, self.loaded, self.argument, once=True)
            order = np.empty(0, np.int64)
            for number, batch in enumerate(own):
                place = number % self.steps
                if place == 0:
                    order = random.permutation(len(more))
                start, stop = (at * len(more) // self.steps for at in (place, place + 1))
                yield _element(joined([batch, more.at(order[start:stop])]))

        def fixed(own: Callable[[], Iterator[Any]]) -> Iterator[Any]:
            yield from own()
            for start in range(0, len(more), _BATCH):
                yield _element(more.at(slice(start, start + _BATCH)))

        return replace(
            self,
            epoch=epoch,
            identity=[self.identity, more.sha256()],
            count=None if self.count is None else self.count + len(more),
            fixed=None if self.fixed is None else functools.partial(fixed, self.fixed),
        )

    def sha256(self) -> str:
        """Returns a hash that changes with the data, as far as `identity` tells."""
        text = json.dumps([self.identity, self.steps, self.count], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_batches(
    epoch: Callable[[], Iterator[Any]], loaded: LoadedModel, argument: str, once: bool = False
) -> Iterator[Samples]:
    """Returns the batches of a dataset, each checked; endlessly unless `once`.

    Raises:
        ArgumentError: a batch is damaged, the dataset is empty or fails.
    """
    labelled: bool | None = None
    while True:
        empty = True
        for item in _told(epoch, argument):
            samples = checked(_arrays(item, loaded, argument), loaded, argument)
            if labelled is None:
                labelled = samples.y is not None
            elif labelled != (samples.y is not None):
                raise ArgumentError(argument, "yield labels with every batch, or with none", "both")
            empty = False
            yield samples
        if empty:
            raise ArgumentError(argument, "yield at least one batch", "none")
        if once:
            return


def _told(epoch: Callable[[], Iterator[Any]], argument: str) -> Iterator[Any]:
    """Yields elements; whatever reading them raises becomes one line."""
    try:
        yield from epoch()
    except EdgeCompressError:
        raise
    # It is the user's code, or a framework's, and may fail in any way, and end the program.
    except (Exception, SystemExit) as error:
        # TensorFlow wraps what a generator raises: where it was, the error, and its traceback.
        text = str(error).rpartition("}} ")[2].partition("\nTraceback (")[0] or error
        raise ArgumentError(
            argument, "yield batches until it ends", f"{type(error).__name__}: {one_line(text)}"
        ) from error


def _element(samples: Samples) -> Any:
    """Returns samples as a dataset yields them."""
    return list(samples.x) if samples.y is None else (list(samples.x), samples.y)


def _arrays(item: Any, loaded: LoadedModel, argument: str) -> Any:
    """Returns an element of a dataset as `calibration.load` takes it, after checking its form."""
    x, y = item, None
    if isinstance(item, tuple):
        if len(item) not in (1, 2):
            raise ArgumentError(
                argument, "yield x or (x, y)", f"{len(item)} values",
                "Sample weights are not supported.",
            )  # fmt: skip
        x, y = item if len(item) == 2 else (item[0], None)
    names = [spec.name for spec in loaded.inputs]
    if isinstance(x, Mapping):
        missing = [name for name in names if name not in x]
        if missing:
            raise ArgumentError(argument, f"yield the input {missing[0]!r}", sorted(map(str, x)))
        x = [x[name] for name in names]
    parts = [np.asarray(part) for part in (x if isinstance(x, (list, tuple)) else [x])]
    if len(parts) != len(names):
        raise ArgumentError(
            argument, f"yield one array for each of the model's {len(names)} inputs", len(parts)
        )
    ranks = [len(spec.shape) for spec in loaded.inputs]
    if all(part.ndim == rank for part, rank in zip(parts, ranks, strict=True)):
        raise ArgumentError(
            argument, "yield batches", f"single samples of shape {parts[0].shape}",
            "Add .batch(64) to the dataset.",
        )  # fmt: skip
    if y is None:
        return parts
    if isinstance(y, (list, tuple, Mapping)):
        raise ArgumentError(argument, "yield the labels of one output", type(y).__name__)
    return (*parts, np.asarray(y))


def first_samples(batches: Iterator[Samples], most: int) -> Samples:
    """Returns the first samples of batches, `most` at the most."""
    taken: list[Samples] = []
    count = 0
    for batch in batches:
        taken.append(batch)
        count += len(batch)
        if count >= most:
            break
    return joined(taken).at(slice(most))


def joined(parts: list[Samples]) -> Samples:
    """Returns batches as one."""
    labels = [part.y for part in parts if part.y is not None]
    return Samples(
        tuple(np.concatenate(arrays) for arrays in zip(*(p.x for p in parts), strict=True)),
        np.concatenate(labels) if labels else None,
    )
