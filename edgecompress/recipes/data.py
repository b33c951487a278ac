"""Training and validation data of a recipe: loaded, checked, split with a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecompress.converters.loaders import LoadedModel
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import functional_of
from edgecompress.recipes.samples import Samples, Stream
from edgecompress.recipes.sources import Ask, in_memory, source_of

__all__ = ["Data", "Feed", "Samples", "Stream", "load"]

# Fewer samples than this on either side are too few to train or to measure.
_FEWEST = 2
# Share of the validation samples that may be known without a note: data sets hold a few duplicates.
_SEEN = 0.01


@dataclass(frozen=True, eq=False)
class Data:
    """What a recipe trains on and what it measures on.

    Attributes:
        train: Training samples: all of them, or the first ones of `stream`.
        validation: Samples that are never trained on.
        split: How the two were obtained, for people.
        stream: Batches to train on, where the samples are not all in memory; None if they are.
        notes: About the data, for people.
    """

    train: Samples
    validation: Samples
    split: str
    stream: Stream | None = None
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Training samples; 0 if a dataset does not tell."""
        return len(self.train) if self.stream is None else self.stream.count or 0

    def steps(self, batch_size: int) -> int:
        """Returns the updates of one epoch; a stream has batches of its own."""
        return -(-len(self.train) // batch_size) if self.stream is None else self.stream.steps

    def feed(
        self,
        model: Any,
        batch_size: int,
        labels: Callable[[Samples], np.ndarray],
        packed: np.ndarray | None = None,
    ) -> Feed:
        """Returns what to train on.

        Args:
            model: A Keras model; inputs come in the structure that it takes.
            batch_size: Samples of a batch; a stream has batches of its own.
            labels: Returns the labels of samples as the loss takes them, such as `Task.labels`.
            packed: Labels of all training samples, if they are known. Defaults to None.
        """
        if self.stream is not None:
            return Feed(model, self.stream, labels)
        if packed is None:
            packed = labels(self.train)
        return Feed(
            model, None, labels,
            {"x": inputs_of(model, self.train), "y": packed, "batch_size": batch_size},
        )  # fmt: skip

    def sha256(self) -> str:
        """Returns a hash of the training data, as far as they can be told apart."""
        return (self.train if self.stream is None else self.stream).sha256()


class Feed:
    """Training data in the form that `Model.fit` takes.

    Args:
        model: The model to be trained.
        stream: Batches; None for arrays.
        labels: Returns the labels of a batch.
        arrays: Arguments of `fit`, for arrays.

    Example:
        >>> feed = data.feed(model, 64, labels)  # doctest: +SKIP
        >>> with feed.errors():  # doctest: +SKIP
        ...     model.fit(**feed.arguments(), epochs=3)
    """

    def __init__(
        self,
        model: Any,
        stream: Stream | None,
        labels: Callable[[Samples], np.ndarray],
        arrays: dict[str, Any] | None = None,
    ) -> None:
        self._model, self._stream, self._labels, self._arrays = model, stream, labels, arrays
        self._failure: Exception | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns `x`, `y` and `batch_size`, or `x` and `steps_per_epoch`."""
        if self._stream is None:
            return dict(self._arrays or {})
        return {"x": self._batches(), "steps_per_epoch": self._stream.steps}

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises what was wrong with the data, if that made `fit` fail."""
        try:
            yield
        except Exception as error:
            if self._failure is None:
                raise
            raise self._failure from error

    def _batches(self) -> Iterator[tuple[Any, np.ndarray]]:
        stream = self._stream
        if stream is None:
            return
        try:
            for batch in stream.batches():
                yield batch_of(self._model, batch), self._labels(batch)
        # Keras wraps it beyond recognition.
        except Exception as error:
            self._failure = error
            raise


def inputs_of(model: Any, samples: Samples) -> Any:
    """Returns inputs in the structure that a model takes: an array, a list or a dictionary."""
    import keras

    return keras.tree.pack_sequence_as(functional_of(model).input, list(samples.x))


def batch_of(model: Any, samples: Samples) -> Any:
    """Returns inputs as a generator gives them to Keras, which takes tuples there, not lists."""
    found = inputs_of(model, samples)
    return tuple(found) if isinstance(found, list) else found


def load(
    source: Any,
    validation: Any,
    loaded: LoadedModel,
    share: float,
    seed: int,
    pixels: str | None = None,
    steps_per_epoch: int | None = None,
) -> Data:
    """Loads training and validation data.

    Args:
        source: Training data of any kind in `SOURCES`: path of an .npz file with `x` and `y`,
            (x, y), a mapping, only inputs for a model that reconstructs its input, a folder of
            images, a tf.data.Dataset of batches, a keras.utils.PyDataset, or the name of a function
            that returns arrays or a dataset, `module:function`.
        validation: The same for validation; None takes a random share of the training data.
        loaded: The model that the data are for.
        share: Share of the training data held out for validation.
        seed: Of the random split, and of the random numbers that a function draws.
        pixels: A name in `sources.PIXELS`: range of the values of images in a folder.
        steps_per_epoch: Batches of an epoch, for datasets without an end.

    Raises:
        ArgumentError: data are missing, damaged, too few or not finite, or their shapes do not
            match the model's.
    """
    ask = Ask(loaded, "--data", seed, pixels, steps_per_epoch)
    kind = source_of(source)
    if validation is not None:
        return _with_validation(kind.read(source, ask), validation, ask)
    if kind.split is not None:
        stream, held, text = kind.split(source, ask, share)
        return Data(_enough(stream.sample, "--data"), _enough(held, "--validation-split"), text,
                    stream, stream.notes)  # fmt: skip
    samples = kind.read(source, ask)
    if isinstance(samples, Stream):
        raise ArgumentError(
            "--validation", "be given with a dataset, which cannot be divided", None,
            "Give samples that it does not hold: FILE.npz or module:function.",
        )  # fmt: skip
    _enough(samples, "--data")
    count = round(share * len(samples))
    if count < _FEWEST or len(samples) - count < _FEWEST:
        raise ArgumentError(
            "--validation-split",
            f"leave at least {_FEWEST} samples on both sides",
            f"{share:g} of {len(samples)} samples",
            "Give more data, or --validation FILE.npz.",
        )
    order = np.random.default_rng(seed).permutation(len(samples))
    # Sorted, so that the split preserves the order of the data.
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    return Data(
        samples.at(rest),
        samples.at(held_out),
        f"{count:,} of {len(samples):,} samples, drawn with seed {seed}",
    )


def _with_validation(data: Samples | Stream, validation: Any, ask: Ask) -> Data:
    """Returns training data with validation data of their own."""
    train = data.sample if isinstance(data, Stream) else data
    _enough(train, ask.argument)
    # The number of steps is that of the training data.
    held = replace(ask, argument="--validation", steps=None, whole=True)
    read = source_of(validation).read(validation, held)
    other = _enough(in_memory(read), held.argument)
    if (train.y is None) != (other.y is None):
        rule = "hold labels (y) as --data does" if other.y is None else "hold no labels"
        raise ArgumentError("--validation", rule, "none" if other.y is None else "labels")
    notes: tuple[str, ...] = ()
    for each in (data, read):
        notes += each.notes if isinstance(each, Stream) else ()
    text = f"{len(other):,} samples of their own"
    if isinstance(read, Stream) and read.count is not None and read.count > len(other):
        text += f", drawn from {read.count:,}"
    stream = data if isinstance(data, Stream) else None
    if stream is not None and isinstance(read, Stream):
        _same_classes(stream, read)
    return Data(train, other, text, stream, (*notes, *_seen(train, other)))


def _seen(train: Samples, held: Samples) -> tuple[str, ...]:
    """Returns a note if inputs of the validation samples are among those trained on."""
    known = set(_rows(train))
    count = sum(row in known for row in _rows(held))
    if count < _SEEN * len(held):
        return ()
    return (
        f"{count:,} of {len(held):,} validation samples have the inputs of a training sample: the "
        "metric says little about samples that the model has not seen.",
    )


def _rows(samples: Samples) -> Iterator[int]:
    """Yields a hash of the inputs of each sample."""
    arrays = [np.ascontiguousarray(array, np.float32) for array in samples.x]
    for at in range(len(samples)):
        yield hash(b"".join(array[at].tobytes() for array in arrays))


def _same_classes(train: Stream, validation: Stream) -> None:
    """Refuses folders whose classes differ: their numbers would mean different things."""
    if train.classes and validation.classes and train.classes != validation.classes:
        raise ArgumentError(
            "--validation", f"hold the classes of --data ({', '.join(train.classes)})",
            ", ".join(validation.classes),
        )  # fmt: skip


def _enough(samples: Samples, argument: str) -> Samples:
    if len(samples) < _FEWEST:
        raise ArgumentError(argument, f"hold at least {_FEWEST} samples", len(samples))
    return samples
