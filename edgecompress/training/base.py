"""Base class of losses that compare a student with its teacher, and their use in `fit`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np

LOSSES: Registry[type[TeacherLoss]] = Registry("loss")
LAYER_LOSSES: Registry[type[LayerLoss]] = Registry("layer loss")

_SMALLEST = 1e-7


@dataclass(frozen=True)
class Outputs:
    """The kind of a model's outputs.

    Attributes:
        binary: A single binary output instead of one per class.
        logits: Logits instead of probabilities.
    """

    binary: bool = False
    logits: bool = True

    def to_logits(self, outputs: Any) -> Any:
        """Returns logits; for a softmax up to a constant, to which softmax is invariant."""
        from keras import ops

        if self.logits:
            return outputs
        clipped = ops.clip(outputs, _SMALLEST, 1 - _SMALLEST)
        if self.binary:
            return ops.log(clipped) - ops.log(1 - clipped)
        return ops.log(clipped)

    def from_logits(self, logits: Any) -> np.ndarray:
        """Returns the outputs that have these logits."""
        from keras import ops

        if self.logits:
            return ops.convert_to_numpy(logits)
        squash = ops.sigmoid if self.binary else ops.softmax
        return ops.convert_to_numpy(squash(logits))


class TeacherLoss(ABC):
    """Compares the outputs of a student and its teacher for the same samples.

    A loss is a frozen dataclass; its fields are its options (`core.options.option`). It runs inside
    the compiled train step.

    Attributes:
        weight: Its share of the total loss, 0 to 1; the rest is the loss on the labels.
    """

    weight: float
    # Whether the outputs have to stand for probabilities.
    of_classes: ClassVar[bool] = True

    @abstractmethod
    def compare(self, teacher: Any, student: Any, outputs: Outputs) -> Any:
        """Returns a loss for each sample, (samples,); 0 if both agree.

        Args:
            teacher: The teacher's logits, (samples, classes).
            student: The student's, of the same shape; gradients flow only to it.
            outputs: The kind of the outputs.
        """


class LayerLoss(ABC):
    """Compares what a layer of the student and a layer of its teacher compute for the same samples.

    A frozen dataclass like `TeacherLoss`, and part of the compiled train step like it.

    Attributes:
        weight: Factor of the loss of each pair of layers, which is added to the others.
    """

    weight: float

    @abstractmethod
    def why_not(
        self,
        teacher: Sequence[int | None],
        student: Sequence[int | None],
        channels: tuple[int, int],
    ) -> str | None:
        """Returns why two layers cannot be compared, a clause about their shapes; None if they can.

        Args:
            teacher: Shape of the teacher's layer, (samples, ...).
            student: Shape of the student's.
            channels: The axis of channels in either shape.
        """

    def regressor(
        self,
        teacher: Sequence[int | None],
        student: Sequence[int | None],
        channels: tuple[int, int],
    ) -> tuple[int, int] | None:
        """Returns the shape of a matrix, the student's channels to the teacher's; None for none.

        It is trained with the student, applied to the student's layer before `compare`, and dropped
        at the end. The arguments are those of `why_not`.
        """
        return None

    @abstractmethod
    def compare(self, teacher: Any, student: Any, channels: tuple[int, int]) -> Any:
        """Returns a loss for each sample, (samples,); 0 if both agree.

        Args:
            teacher: What the teacher's layer computes, (samples, ...).
            student: What the student's does; gradients flow only to it.
            channels: The axis of channels in either.
        """


def places(shape: Sequence[int | None], channels: int) -> list[int | None]:
    """Returns the sizes of a layer's axes other than samples and channels.

    Example:
        >>> places((None, 8, 6, 3), -1)
        [8, 6]
    """
    return [size for axis, size in enumerate(shape) if axis not in (0, channels % len(shape))]


class TaughtLabels:
    """Labels followed by the teacher's logits, for `fit`, and the loss that reads both.

    Keras passes a loss only labels and outputs, so the teacher's outputs travel in the rows of the
    labels. They are computed once, however many epochs there are.

    Args:
        loss: Compares teacher and student.
        label_loss: (labels, outputs) -> loss, as a Keras loss.
        form: Shape of the labels of a sample, or the number of label columns.
        outputs: The kind of the outputs.

    Example:
        >>> taught = TaughtLabels(LOSSES["distillation"](), label_loss, 1, Outputs())
        ...  # doctest: +SKIP
        >>> model.compile("adam", lambda y, outputs: taught(y, outputs))  # doctest: +SKIP
        >>> model.fit(x, taught.pack(y, teacher.predict(x)))  # doctest: +SKIP
    """

    def __init__(
        self,
        loss: TeacherLoss,
        label_loss: Callable[[Any, Any], Any],
        form: int | Sequence[int],
        outputs: Outputs,
    ) -> None:
        self._loss, self._label_loss = loss, label_loss
        self._form = (form,) if isinstance(form, int) else tuple(form)
        self._columns, self._outputs = math.prod(self._form), outputs

    def pack(self, labels: np.ndarray, taught: np.ndarray) -> np.ndarray:
        """Returns labels followed by logits in each row: (samples, columns + outputs).

        Args:
            labels: Shape (samples, ...).
            taught: The teacher's outputs, (samples, ...).
        """
        import numpy as np
        from keras import ops

        logits = ops.convert_to_numpy(self._outputs.to_logits(taught.astype(np.float32)))
        rows = len(labels)
        return np.concatenate([labels.reshape(rows, -1), logits.reshape(rows, -1)], axis=1)

    def labels(self, packed: Any) -> Any:
        """Returns the labels in packed rows."""
        from keras import ops

        return ops.reshape(packed[:, : self._columns], (-1, *self._form))

    def __call__(self, packed: Any, outputs: Any) -> Any:
        """Returns `(1 - w) * mean(loss of the labels) + w * mean(loss against the teacher)`."""
        from keras import ops

        hard = self._label_loss(self.labels(packed), outputs)
        teacher = ops.reshape(packed[:, self._columns :], ops.shape(outputs))
        student = self._outputs.to_logits(outputs)
        soft = self._loss.compare(teacher, student, self._outputs)
        weight = self._loss.weight
        return (1 - weight) * ops.mean(hard) + weight * ops.mean(soft)
