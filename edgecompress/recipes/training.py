"""Trains a student on labels and on the original model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.distillation import Distillation
from edgecompress.core.content_hashes import arrays_sha256
from edgecompress.core.errors import ConversionError
from edgecompress.core.suppress_output import no_warnings
from edgecompress.recipes.data import Data, Samples, inputs_of
from edgecompress.recipes.registry import Epoch
from edgecompress.recipes.task import Task, output_kind
from edgecompress.training.base import Outputs, TaughtLabels, TeacherLoss
from edgecompress.training.teacher_outputs import TeacherOutputs, kept_outputs, known_as
from edgecompress.training.teachers import joined

_BATCH = 256


class Trainer:
    """Fits models on the same data with the same loss, stage by stage.

    Args:
        task: Loss, metric and labels.
        data: Training and validation data.
        teacher: The original model, or the models that teach.
        teacher_loss: Compares their outputs with the student's; None for no teacher.
        batch_size: Samples per batch.
        learning_rate: Initial Adam learning rate of a fit; cosine decay to 0.
        on_epoch: Called after each epoch.
        kept: Folder in which the teachers' outputs are kept; None keeps none.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        teacher: Any,
        teacher_loss: TeacherLoss | None,
        batch_size: int,
        learning_rate: float,
        on_epoch: Callable[[Epoch], None],
        kept: Path | None = None,
    ) -> None:
        self._task = task
        self._kept = kept
        self._data = data
        self._batch_size = batch_size
        self._learning_rate = learning_rate
        self._on_epoch = on_epoch
        teachers = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        shape = tuple(teachers[0].outputs[0].shape[1:])
        self._shape = shape
        self._taught = None
        # Outputs for arrays are computed once and travel with the labels; those for batches are
        # looked up, or where samples may change, the teacher runs in every step.
        self._callbacks: list[Any] = []
        if teacher_loss is not None and data.stream is not None:
            self._callbacks = [Distillation(stored(teachers, data, kept) or teachers, teacher_loss)]
        elif teacher_loss is not None:
            self._meaning = Outputs(task.kind == "binary", task.output == "logits")
            form = (*shape[:-1], 1) if task.kind == "classes" and task.sparse else shape
            self._taught = TaughtLabels(teacher_loss, task.loss, form, self._meaning)
        self._train = None if data.stream is not None else self._packed(data.train, teachers)
        self._validation = self._packed(data.validation, teachers)

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch."""
        return self._data.steps(self._batch_size)

    def fit(
        self, model: Any, stage: str, epochs: int, callbacks: Sequence[Any],
        learning_rate: float | None = None, done: int = 0, of: int | None = None,
    ) -> dict[str, list[float]]:  # fmt: skip
        """Trains a model in place and returns the curves, one value per epoch.

        Args:
            model: A Keras model.
            stage: Name of the stage, for progress.
            epochs: How many.
            callbacks: Compression callbacks.
            learning_rate: Of this fit. Defaults to None, the trainer's.
            done: Epochs of the stage before this fit. Defaults to 0.
            of: Epochs of the whole stage. Defaults to `epochs`.

        Raises:
            ConversionError: the loss is no longer finite.
        """
        steps = self.steps_per_epoch * epochs
        schedule = keras.optimizers.schedules.CosineDecay(
            self._learning_rate if learning_rate is None else learning_rate, steps
        )
        model.compile(keras.optimizers.Adam(schedule), self._loss, metrics=[self._metric()])
        reporter = _Reporter(stage, done, of or epochs, self._on_epoch)
        feed = self._data.feed(model, self._batch_size, self._labels_of, self._train)
        with no_warnings(), feed.errors():
            history = model.fit(
                **feed.arguments(),
                epochs=epochs,
                verbose=0,
                callbacks=[*self._callbacks, *callbacks, reporter],
                validation_data=(inputs_of(model, self._data.validation), self._validation),
            ).history
        return {name: [float(v) for v in values] for name, values in history.items()}

    def measure(self, model: Any) -> float:
        """Returns the metric of a model on the validation data."""
        return measure(model, self._task, self._data.validation)

    def _packed(self, samples: Samples, teachers: Sequence[Any]) -> np.ndarray:
        """Returns labels followed by the logits of the teachers in each row."""
        labels = self._labels_of(samples)
        if self._taught is None:
            return labels
        outputs = [self._outputs(teacher, samples) for teacher in teachers]
        binary = self._meaning.binary
        kinds = [
            Outputs(binary, output_kind(teacher, taught, binary) == "logits")
            for teacher, taught in zip(teachers, outputs, strict=True)
        ]
        if kinds == [self._meaning]:
            return self._taught.pack(labels, outputs[0])
        return self._taught.pack(labels, self._meaning.from_logits(joined(outputs, kinds)))

    def _outputs(self, teacher: Any, samples: Samples) -> np.ndarray:
        """Returns a teacher's output on samples: kept by an earlier run, or computed."""
        if self._kept is None:
            return predict(teacher, samples)
        folder = self._kept / known_as([teacher], arrays_sha256(samples.x))
        with no_warnings():
            return kept_outputs([teacher], inputs_of(teacher, samples), folder, _BATCH)[0]

    def _labels_of(self, samples: Samples) -> np.ndarray:
        return self._task.labels(samples, self._shape)

    def _labels(self, packed: Any) -> Any:
        return packed if self._taught is None else self._taught.labels(packed)

    def _loss(self, packed: Any, outputs: Any) -> Any:
        """Returns the loss on the labels, with or without the teacher's share."""
        loss = self._task.loss if self._taught is None else self._taught
        return loss(packed, outputs)

    def _metric(self) -> Callable[[Any, Any], Any]:
        task = self._task

        def accuracy(packed: Any, outputs: Any) -> Any:
            labels = self._labels(packed)
            if task.kind == "binary":
                limit = 0.0 if task.output == "logits" else 0.5
                return ops.mean(ops.cast((labels >= 0.5) == (outputs >= limit), "float32"), axis=-1)
            classes = labels[..., 0] if task.sparse else ops.argmax(labels, axis=-1)
            found = ops.argmax(outputs, axis=-1)
            return ops.cast(ops.cast(classes, "int64") == ops.cast(found, "int64"), "float32")

        def mean_squared_error(packed: Any, outputs: Any) -> Any:
            return ops.square(self._labels(packed) - outputs)

        return accuracy if task.is_classifier else mean_squared_error


class _Reporter(keras.callbacks.Callback):
    """Reports the epochs, and stops a diverged training."""

    def __init__(
        self, stage: str, done: int, epochs: int, on_epoch: Callable[[Epoch], None]
    ) -> None:
        super().__init__()
        self._stage, self._done, self._epochs, self._tell = stage, done, epochs, on_epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        if not np.isfinite(values.get("loss", 0.0)):
            raise ConversionError(
                f"Training diverged in stage {self._stage}, epoch {self._done + epoch + 1}: the "
                f"loss is {values['loss']}. Use a smaller --learning-rate."
            )
        self._tell(Epoch(self._stage, self._done + epoch + 1, self._epochs, values))


def stored(teachers: Sequence[Any], data: Data, folder: Path | None) -> TeacherOutputs | None:
    """Returns what teachers compute for the training data, kept in a part of a folder.

    None without a folder, or if samples may differ from epoch to epoch.
    """
    found = data.fixed_inputs(teachers[0])
    if folder is None or found is None:
        return None
    inputs, content = found
    with no_warnings():
        return TeacherOutputs(teachers, inputs, folder / known_as(teachers, content))


def predict(model: Any, samples: Samples) -> np.ndarray:
    """Returns a model's output on samples."""
    with no_warnings():
        return np.asarray(model.predict(inputs_of(model, samples), batch_size=_BATCH, verbose=0))


def measure(model: Any, task: Task, samples: Samples) -> float:
    """Returns the metric of a model on samples."""
    outputs = predict(model, samples)
    return task.metric.measure(task.labels(samples, outputs.shape[1:]), outputs)
