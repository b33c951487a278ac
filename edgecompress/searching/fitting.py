"""Training a candidate: on labels, and on what the untouched model says of the same samples."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from edgecompress.core.errors import ConversionError
from edgecompress.core.keras_graph import walk_layers
from edgecompress.recipes.data import Data, Samples, batch_of, inputs_of
from edgecompress.recipes.task import Task, class_numbers
from edgecompress.training.base import Outputs, TaughtLabels, TeacherLoss
from edgecompress.training.knowledge_adjustment import adjusted
from edgecompress.training.mixup import Mixup

BATCH = 128
# Steps that the train function runs at a time: tiny models wait for Python otherwise.
_STEPS_AT_ONCE = 8
# A moment of training: a quarter of an epoch, but at least so many updates.
_PARTS, _FEWEST_UPDATES = 4, 100
# A glance: so many updates, on a part of the samples that comes so often.
_GLANCE_UPDATES, _GLANCES, _MOST_GLANCES = 150, 3, 20


class Batches(Sequence[tuple[Any, Any]]):
    """The first whole batches of some samples: none is kept, images of all would fill the memory.

    Args:
        model: A Keras model, for the structure of its inputs.
        samples: The samples.
        labels: Of each sample, as the loss takes them.
        size: Samples of a batch.
        most: Batches at most.
    """

    def __init__(
        self, model: Any, samples: Samples, labels: np.ndarray, size: int, most: int
    ) -> None:
        self._model, self._samples, self._labels = model, samples, labels
        self._starts = [place * size for place in range(min(most, len(samples) // size))]
        self._size = size

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> tuple[Any, Any]: ...

    @overload
    def __getitem__(self, place: slice) -> list[tuple[Any, Any]]: ...

    def __getitem__(self, place: int | slice) -> tuple[Any, Any] | list[tuple[Any, Any]]:
        """Returns inputs and labels of a batch."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        at = np.arange(self._starts[place], self._starts[place] + self._size)
        return batch_of(self._model, self._samples.at(at)), self._labels[at]


class Fitting:
    """Trains candidates on the same data.

    Args:
        model: The untouched model.
        data: Training and validation data.
        task: Its loss and labels.
        kept: Folder in which the model's outputs for a folder of images are kept; None keeps none.
        batch_size: Samples of a step; a dataset has batches of its own.
        adjust: Whether answers of the untouched model that are wrong are set right
            (`training.knowledge_adjustment`): of samples that it was not trained on, many are.
    """

    def __init__(
        self,
        model: Any,
        data: Data,
        task: Task,
        kept: Path | None = None,
        batch_size: int = BATCH,
        adjust: bool = False,
    ) -> None:
        self._model, self._data, self._task, self._kept = model, data, task, kept
        self._adjust = adjust and task.kind == "classes"
        self.batch_size = min(batch_size, len(data.train))
        self._shape = tuple(model.outputs[0].shape[1:])
        self.labels = self._labels_of(data.train)
        self._taught: np.ndarray | None = None
        self._stored: Any = None

    @property
    def steps(self) -> int:
        """Updates of an epoch."""
        return self._data.steps(self.batch_size)

    def batches(self, count: int) -> Batches:
        """Returns inputs and labels of the first whole batches, each made when it is asked for."""
        return Batches(self._model, self._data.train, self.labels, self.batch_size, count)

    def fit(
        self,
        model: Any,
        epochs: int,
        rate: float,
        teacher: TeacherLoss | None,
        callbacks: Sequence[Any],
        tell: Callable[[int, float], None],
        seed: int,
        part: np.ndarray | None = None,
        alpha: float = 0.0,
    ) -> None:
        """Trains a model in place.

        Args:
            model: A Keras model.
            epochs: How many.
            rate: Learning rate that Adam begins with; it falls to 0 as half a cosine.
            teacher: Compares its outputs with those of the untouched model; None for labels alone.
            callbacks: Compression callbacks.
            tell: Called with (epochs done, loss).
            seed: Of the order of samples and of dropout.
            part: Positions of the samples to train on; None for all. Only for arrays.
            alpha: How much samples are mixed (`training.mixup.Mixup`). Defaults to 0, not at all.

        Raises:
            ConversionError: the loss is no longer finite.
        """
        import keras

        from edgecompress.callbacks.distillation import Distillation
        from edgecompress.core.suppress_output import no_warnings

        labels, loss, taught = self.labels, self._task.loss, list(callbacks)
        labels_of: Callable[[Samples], np.ndarray] = self._labels_of
        if teacher is not None and self._data.stream is None:
            labels, loss = self._packed(teacher)
        elif teacher is not None and not (alpha or self._adjust):
            taught = [Distillation(self._teacher(), teacher), *taught]
        elif teacher is not None:
            # Its answers travel with the labels: they are mixed or set right.
            labels_of, loss = self._answered(teacher)
        keras.utils.set_random_seed(seed)
        data = self._data
        if part is not None:
            data, labels = dataclasses.replace(data, train=data.train.at(part)), labels[part]
        steps = data.steps(self.batch_size)
        mixup = None
        if alpha:
            form = self.labels.shape[1:]
            if teacher is not None:
                form = (math.prod(form) + math.prod(self._shape),)
            mixup = Mixup(alpha, form, steps * epochs, seed)
            loss = mixup.loss(loss)
        decay = keras.optimizers.schedules.CosineDecay(rate, steps * epochs)
        model.compile(
            keras.optimizers.Adam(decay), loss, steps_per_execution=min(_STEPS_AT_ONCE, steps)
        )

        class Told(keras.callbacks.Callback):
            """Tells of each epoch, and stops a diverged training."""

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                value = float((logs or {}).get("loss", 0.0))
                if not np.isfinite(value):
                    raise ConversionError(f"Training diverged: the loss is {value}.")
                tell(epoch + 1, value)

        feed = data.feed(model, self.batch_size, labels_of, labels, mixup)
        with no_warnings(), feed.errors():
            model.fit(**feed.arguments(), epochs=epochs, verbose=0, callbacks=[*taught, Told()])

    def recover(
        self, model: Any, rate: float, teacher: TeacherLoss | None, number: int, seed: int
    ) -> None:
        """Trains a model for a moment, on a part of the samples that its number chooses.

        Args:
            model: A Keras model.
            rate: Learning rate to begin with.
            teacher: As in `fit`.
            number: Of the round, from 0.
            seed: Of the choice.
        """
        epochs, part = max(1, -(-_FEWEST_UPDATES // self.steps)), None
        if self._data.stream is None and self.steps >= _PARTS * _FEWEST_UPDATES:
            order = np.random.default_rng(seed).permutation(len(self._data.train))
            part = np.sort(order[number % _PARTS :: _PARTS])
        self.fit(model, epochs, rate, teacher, (), lambda epoch, loss: None, seed + number, part)

    def glance(self, model: Any, rate: float, teacher: TeacherLoss | None, seed: int) -> float:
        """Returns how far a model gets in a moment of training: the mean loss at its end.

        Args:
            model: A Keras model; it is trained.
            rate: Learning rate to begin with.
            teacher: As in `fit`.
            seed: Of the choice of samples.
        """
        part = None
        if self._data.stream is None:
            count = min(len(self._data.train), _GLANCE_UPDATES // _GLANCES * self.batch_size)
            part = np.random.default_rng(seed).permutation(len(self._data.train))[:count]
        losses: list[float] = []
        steps = self.steps if part is None else -(-len(part) // self.batch_size)
        self.fit(
            model, max(1, min(_GLANCE_UPDATES // steps, _MOST_GLANCES)), rate, teacher, (),
            lambda epoch, loss: losses.append(loss), seed, part,
        )  # fmt: skip
        return losses[-1]

    def loss_of(self, model: Any, samples: int = 1000) -> float:
        """Returns a model's mean loss on the first training samples."""
        at = np.arange(min(samples, len(self._data.train)))
        from edgecompress.recipes.training import predict

        outputs = predict(model, self._data.train.at(at))
        return float(np.mean(np.asarray(self._task.loss(self.labels[at], outputs))))

    def _teacher(self) -> Any:
        """Returns what the untouched model computes for a stream, or where that may change, it."""
        from edgecompress.recipes.training import stored

        if self._stored is None:
            self._stored = stored([self._model], self._data, self._kept) or self._model
        return self._stored

    def _labels_of(self, samples: Samples) -> np.ndarray:
        return self._task.labels(samples, self._shape)

    def _packed(self, teacher: TeacherLoss) -> tuple[np.ndarray, Any]:
        """Returns labels with the untouched model's outputs, computed once, and a loss."""
        from edgecompress.recipes.training import predict

        if self._taught is None:
            self._taught = self._right(predict(self._model, self._data.train), self.labels)
        taught = self._taught_labels(teacher)
        return taught.pack(self.labels, self._taught), _called(taught)

    def _answered(self, teacher: TeacherLoss) -> tuple[Callable[[Samples], np.ndarray], Any]:
        """Returns what adds the untouched model's outputs to the labels of a batch, and a loss."""
        taught, model = self._taught_labels(teacher), self._model

        def labels(samples: Samples) -> np.ndarray:
            outputs = np.asarray(model.predict_on_batch(inputs_of(model, samples)))
            own = self._labels_of(samples)
            return taught.pack(own, self._right(outputs, own))

        return labels, _called(taught)

    def _right(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the untouched model's outputs, wrong ones set right if that is asked."""
        if not self._adjust:
            return outputs
        return adjusted(outputs, class_numbers(labels, self._shape))

    def _taught_labels(self, teacher: TeacherLoss) -> TaughtLabels:
        task = self._task
        meaning = Outputs(task.kind == "binary", task.output == "logits")
        return TaughtLabels(teacher, task.loss, self.labels.shape[1:], meaning)


def _called(taught: TaughtLabels) -> Callable[[Any, Any], Any]:
    def loss(packed: Any, outputs: Any) -> Any:
        return taught(packed, outputs)

    return loss


def lower_dropout(model: Any, share: float) -> None:
    """Lowers the dropout rates of a model that has lost weights, in place.

        rate * sqrt(share)

    Han et al., "Learning both weights and connections for efficient neural networks" (2015,
    https://arxiv.org/abs/1506.02626), equation 2: a smaller network overfits less.

    Args:
        model: A Keras model.
        share: Of the weights that are left, 0 to 1.
    """
    import keras

    layers = keras.layers
    for layer in walk_layers(model):
        if isinstance(layer, (layers.Dropout, layers.GaussianDropout, layers.AlphaDropout)):
            layer.rate *= math.sqrt(share)


class Stopwatch:
    """Seconds of named stages.

    Example:
        >>> watch = Stopwatch()
        >>> watch.lap("train") >= 0, list(watch.seconds)
        (True, ['train'])
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, stage: str) -> float:
        """Adds the time since the last lap to a stage; returns it."""
        now = time.monotonic()
        spent, self._since = now - self._since, now
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        return spent
