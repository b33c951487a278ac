"""Training and validation data of a recipe: loaded, checked, split with a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecompress.converters.loaders import LoadedModel
from edgecompress.core.content_hashes import arrays_sha256
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import functional_of
from edgecompress.core.options import share as unit_share
from edgecompress.recipes.groups import check_several, held_out, named, shared_note
from edgecompress.recipes.samples import Samples, Stream, joined, read_batches
from edgecompress.recipes.sources import Ask, in_memory, source_of
from edgecompress.training.mixup import Mixup

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
        test: Samples that are neither trained on nor chosen by; None for none.
    """

    train: Samples
    validation: Samples
    split: str
    stream: Stream | None = None
    notes: tuple[str, ...] = ()
    test: Samples | None = None

    def joined(self) -> Data:
        """Returns the data with the validation samples among those to train on.

        Raises:
            ArgumentError: the labels of the two have different forms.
        """
        train, more = self.train, self.validation
        if train.y is not None and more.y is not None and train.y.shape[1:] != more.y.shape[1:]:
            raise ArgumentError(
                "--refit", "go with labels of one form in --data and --validation",
                f"labels of shapes {train.y.shape} and {more.y.shape}",
            )  # fmt: skip
        if self.stream is not None:
            return replace(self, stream=self.stream.with_samples(more))
        return replace(self, train=joined([train, more]))

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
        mixup: Mixup | None = None,
    ) -> Feed:
        """Returns what to train on.

        Args:
            model: A Keras model; inputs come in the structure that it takes.
            batch_size: Samples of a batch; a stream has batches of its own.
            labels: Returns the labels of samples as the loss takes them, such as `Task.labels`.
            packed: Labels of all training samples, if they are known. Defaults to None.
            mixup: Mixes the samples of each batch. Defaults to None: they stay as they are.
        """
        if self.stream is not None:
            return Feed(model, self.stream, labels, mixup=mixup)
        if packed is None:
            packed = labels(self.train)
        if mixup is not None:
            batches = _Shuffled(Samples(self.train.x, packed), batch_size, mixup.random)
            return Feed(model, batches, _own_labels, mixup=mixup)
        return Feed(
            model, None, labels,
            {"x": inputs_of(model, self.train), "y": packed, "batch_size": batch_size},
        )  # fmt: skip

    @property
    def is_fixed(self) -> bool:
        """Whether the samples to train on are the same in each epoch."""
        return self.stream is None or self.stream.fixed is not None

    def fixed_inputs(self, model: Any) -> tuple[Any, str] | None:
        """Returns the inputs to train on as `TeacherOutputs` takes them, and a hash of them.

        None if samples may differ from epoch to epoch.
        """
        if self.stream is None:
            return inputs_of(model, self.train), arrays_sha256(self.train.x)
        if self.stream.fixed is None:
            return None
        return _FixedInputs(model, self.stream), self.stream.sha256()

    def sha256(self) -> str:
        """Returns a hash of the training data, as far as they can be told apart."""
        return (self.train if self.stream is None else self.stream).sha256()


@dataclass(frozen=True, eq=False)
class _FixedInputs:
    """The inputs of a stream whose samples never change, in one order."""

    model: Any
    stream: Stream

    def __iter__(self) -> Iterator[Any]:
        stream = self.stream
        if stream.fixed is not None:
            for samples in read_batches(stream.fixed, stream.loaded, stream.argument, once=True):
                yield (batch_of(self.model, samples),)


class Feed:
    """Training data in the form that `Model.fit` takes.

    Args:
        model: The model to be trained.
        stream: Batches; None for arrays.
        labels: Returns the labels of a batch.
        arrays: Arguments of `fit`, for arrays.
        mixup: Mixes the samples of each batch.

    Example:
        >>> feed = data.feed(model, 64, labels)  # doctest: +SKIP
        >>> with feed.errors():  # doctest: +SKIP
        ...     model.fit(**feed.arguments(), epochs=3)
    """

    def __init__(
        self,
        model: Any,
        stream: Stream | _Shuffled | None,
        labels: Callable[[Samples], np.ndarray],
        arrays: dict[str, Any] | None = None,
        mixup: Mixup | None = None,
    ) -> None:
        self._model, self._stream, self._labels, self._arrays = model, stream, labels, arrays
        self._mixup = mixup
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
                inputs, labels = batch_of(self._model, batch), self._labels(batch)
                yield (inputs, labels) if self._mixup is None else self._mixup(inputs, labels)
        # Keras wraps it beyond recognition.
        except Exception as error:
            self._failure = error
            raise


@dataclass(frozen=True, eq=False)
class _Shuffled:
    """Samples in memory as batches, in another order in each epoch.

    Attributes:
        samples: All of them, with labels as the loss takes them.
        size: Samples of a batch.
        random: Of the order.
    """

    samples: Samples
    size: int
    random: np.random.Generator

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.samples) // self.size)

    def batches(self) -> Iterator[Samples]:
        """Returns batches without end, epoch after epoch."""
        while True:
            order = self.random.permutation(len(self.samples))
            for start in range(0, len(order), self.size):
                yield self.samples.at(order[start : start + self.size])


def _own_labels(samples: Samples) -> np.ndarray:
    return np.asarray(samples.y)


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
    groups: str | None = None,
    test: Any = None,
) -> Data:
    """Loads training, validation and test data.

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
        groups: Name of the array in each of them that says what a sample is of, such as a person:
            of those that are divided, whole groups are held out. Defaults to None: independent
            samples.
        test: The same as `validation` for data that neither train nor choose. Defaults to None.

    Raises:
        ArgumentError: data are missing, damaged, too few or not finite, or their shapes do not
            match the model's.
    """
    share = unit_share().parse(share, "--validation-split")
    ask = Ask(loaded, "--data", seed, pixels, steps_per_epoch, groups=groups)
    found = _train_and_validation(source, validation, ask, share)
    if test is None:
        return found
    held, notes = _held("--test", test, ask, found.train, found.stream)
    notes += _seen(found.validation, held, "test", "validation")
    if held.groups is not None and found.validation.groups is not None:
        notes += shared_note(held.groups, "--test", found.validation.groups, "--validation")
    return replace(found, test=held, notes=(*found.notes, *notes))


def _train_and_validation(source: Any, validation: Any, ask: Ask, share: float) -> Data:
    seed = ask.seed
    kind = source_of(source)
    if validation is not None:
        return _with_validation(kind.read(source, ask), validation, ask)
    if kind.split is not None:
        _refuse_groups(ask)
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
    if samples.groups is not None:
        return _by_groups(samples, samples.groups, share, seed)
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
        notes=_one_label(samples.at(held_out), "validation"),
    )


def _by_groups(samples: Samples, groups: np.ndarray, share: float, seed: int) -> Data:
    """Returns samples divided so that each group is on one side."""
    check_several(groups, "--data")
    held = held_out(groups, share, seed)
    train, validation = samples.at(~held), samples.at(held)
    total, taken = len(np.unique(groups)), np.unique(groups[held])
    text = (
        f"{held.sum():,} of {len(samples):,} samples, {len(taken)} of {total} groups "
        f"({named(taken)}), drawn with seed {seed}"
    )
    return Data(
        _enough(train, "--data without the groups for validation"),
        _enough(validation, "--validation-split"),
        text,
        notes=_one_label(validation, "validation"),
    )


def _with_validation(data: Samples | Stream, validation: Any, ask: Ask) -> Data:
    """Returns training data with validation data of their own."""
    train = data.sample if isinstance(data, Stream) else data
    _enough(train, ask.argument)
    stream = data if isinstance(data, Stream) else None
    held, notes = _held("--validation", validation, ask, train, stream)
    check_several(held.groups, "--validation")
    if stream is not None:
        notes = (*stream.notes, *notes)
    return Data(train, held, f"{len(held):,} samples of their own", stream, notes)


def _held(
    argument: str, given: Any, ask: Ask, train: Samples, stream: Stream | None
) -> tuple[Samples, tuple[str, ...]]:
    """Returns samples that are not trained on, all of them in memory, and notes about them."""
    # The number of steps is that of the training data.
    asked = replace(ask, argument=argument, steps=None, whole=True)
    read = source_of(given).read(given, asked)
    if isinstance(read, Stream):
        _refuse_groups(asked)
    held = _enough(in_memory(read), argument)
    if (train.y is None) != (held.y is None):
        rule = "hold labels (y) as --data does" if held.y is None else "hold no labels"
        raise ArgumentError(argument, rule, "none" if held.y is None else "labels")
    notes: tuple[str, ...] = ()
    if isinstance(read, Stream):
        notes += read.notes
        if read.count is not None and read.count > len(held):
            notes += (f"{argument}: {len(held):,} samples, drawn from {read.count:,}.",)
        if stream is not None:
            _same_classes(stream, read, argument)
    name = argument.removeprefix("--")
    notes += (*_seen(train, held, name, "training"), *_one_label(held, name))
    if held.groups is not None and train.groups is not None:
        notes += shared_note(held.groups, argument, train.groups, "--data")
    elif held.groups is not None:
        notes += (
            f"Whether a group of {argument} is in --data, too, is not known: it is a dataset.",
        )
    return held, notes


def _refuse_groups(ask: Ask) -> None:
    """Refuses groups of data that have no named arrays."""
    if ask.groups is not None:
        raise ArgumentError(
            "--groups", f"go with arrays: {ask.argument} is a dataset or a folder", ask.groups,
            "Give an .npz file, or a mapping with the keys x, y and that name.",
        )  # fmt: skip


def _seen(train: Samples, held: Samples, name: str, known: str) -> tuple[str, ...]:
    """Returns a note if inputs of held-out samples are among others, such as those trained on."""
    rows = set(_rows(train))
    count = sum(row in rows for row in _rows(held))
    if count < _SEEN * len(held):
        return ()
    unseen = "that the model has not seen" if known == "training" else "that did not choose"
    return (
        f"{count:,} of {len(held):,} {name} samples have the inputs of a {known} sample: the "
        f"metric says little about samples {unseen}.",
    )


def _one_label(held: Samples, name: str) -> tuple[str, ...]:
    """Returns a note if all labels are the same number: whoever always gives it is right."""
    if held.y is None or held.y.size != len(held) or len(np.unique(held.y)) > 1:
        return ()
    return (
        f"All {len(held):,} {name} labels are {held.y.flat[0]}: the metric does not tell a model "
        "that has learnt from one that always answers this.",
    )


def _rows(samples: Samples) -> Iterator[int]:
    """Yields a hash of the inputs of each sample."""
    arrays = [np.ascontiguousarray(array, np.float32) for array in samples.x]
    for at in range(len(samples)):
        yield hash(b"".join(array[at].tobytes() for array in arrays))


def _same_classes(train: Stream, held: Stream, argument: str) -> None:
    """Refuses folders whose classes differ: their numbers would mean different things."""
    if train.classes and held.classes and train.classes != held.classes:
        raise ArgumentError(
            argument, f"hold the classes of --data ({', '.join(train.classes)})",
            ", ".join(held.classes),
        )  # fmt: skip


def _enough(samples: Samples, argument: str) -> Samples:
    if len(samples) < _FEWEST:
        raise ArgumentError(argument, f"hold at least {_FEWEST} samples", len(samples))
    return samples
