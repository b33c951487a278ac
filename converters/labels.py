"""The labels of an output, in the forms that metrics take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgecompress.converters.metrics import Form, Scored
from edgecompress.core.errors import ArgumentError

# A row of probabilities sums to 1 within the rounding of float16.
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one output, and what they can mean for an output of a certain shape.

    Args:
        array: As given: (samples, ...).
        shape: Of the output: (samples, ...).
        argument: Where they came from, for error messages.

    Raises:
        ArgumentError: they are not finite numbers, or not one per sample.
    """

    array: np.ndarray
    shape: tuple[int, ...]
    argument: str = "--evaluate"

    def __post_init__(self) -> None:
        """Refuses what cannot be labels."""
        array = self.array
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise ArgumentError(
                self.argument, "hold finite numbers as labels", self.got if
                array.dtype.kind not in "biuf" else "NaN or infinity",
            )  # fmt: skip
        if array.ndim < 1 or len(array) != self.shape[0]:
            raise ArgumentError(
                self.argument, f"hold a label for each of the {self.shape[0]} samples", self.got
            )

    @property
    def got(self) -> str:
        """The labels in words."""
        return f"labels of shape {self.array.shape} and dtype {self.array.dtype}"

    @property
    def classes(self) -> int:
        """How many classes an output of this shape can distinguish along its last axis."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def whole(self) -> bool:
        """Whether every label is a whole number."""
        return self.array.dtype.kind != "f" or bool((self.array == np.round(self.array)).all())

    @property
    def same_shape(self) -> bool:
        """Whether there is a label for each element of the output; axes of size 1 do not count."""
        return _squeezed(self.array.shape) == _squeezed(self.shape)

    @property
    def has_number_shape(self) -> bool:
        """Whether there is one label for each row of classes."""
        return self.classes > 1 and _squeezed(self.array.shape) == _squeezed(self.shape[:-1])

    @property
    def two_valued(self) -> bool:
        """Whether each element of the output has a label of 0 or 1."""
        return self.same_shape and bool(np.isin(self.array, (0, 1)).all())

    @property
    def signs(self) -> bool:
        """Whether each element of the output has a label of -1 or 1, and some are -1."""
        return self.same_shape and bool(np.isin(self.array, (-1, 1)).all() and self.array.min() < 0)

    @property
    def one_hot(self) -> bool:
        """Whether each row of classes holds exactly one 1 and otherwise 0."""
        return self.two_valued and self.classes > 1 and bool((self._rows.sum(1) == 1).all())

    @property
    def distributions(self) -> bool:
        """Whether each row of classes holds probabilities that sum to 1."""
        if not self.same_shape or self.classes < 2 or self.array.min() < 0:
            return False
        return bool(np.abs(self._rows.sum(1) - 1).max() < _SUM_TOLERANCE)

    @property
    def _rows(self) -> np.ndarray:
        return self.array.reshape(-1, self.classes).astype(np.float64)

    def class_numbers(self, ignored: float | None = None) -> np.ndarray:
        """Returns class numbers, one for each row of classes, from numbers or rows.

        Args:
            ignored: A number beyond the classes that is allowed nevertheless.

        Raises:
            ArgumentError: the labels are neither.
        """
        if not self.has_number_shape and self.distributions:
            return self._rows.argmax(1)
        numbers = self.array.reshape(-1)
        fit = np.isin(numbers, [] if ignored is None else [ignored])
        fit |= (numbers >= 0) & (numbers < self.classes)
        if not self.has_number_shape or not self.whole or not fit.all():
            wrong = "" if not self.has_number_shape else (
                f"; values from {self.array.min():g} to {self.array.max():g}"
            )  # fmt: skip
            raise ArgumentError(
                self.argument,
                f"hold class numbers from 0 to {self.classes - 1} or one-hot rows for an output of "
                f"shape {self.shape[1:]}",
                f"{self.got}{wrong}",
            )
        return numbers.astype(np.int64)

    def sides(self) -> np.ndarray:
        """Returns 0 and 1 for each element, (rows, columns); -1 and 1 are taken as well.

        Raises:
            ArgumentError: the labels are of another kind or shape.
        """
        if not self.two_valued and not self.signs:
            raise ArgumentError(
                self.argument, f"hold 0 or 1 for each element of an output of shape "
                f"{self.shape[1:]}", self.got,
            )  # fmt: skip
        return (self.array.reshape(-1, self.classes) > 0).astype(np.int64)

    def values(self) -> np.ndarray:
        """Returns a number for each element, (samples, columns).

        Raises:
            ArgumentError: the labels have another shape than the output.
        """
        if not self.same_shape:
            raise ArgumentError(
                self.argument, f"hold a number for each element of an output of shape "
                f"{self.shape[1:]}", self.got,
            )  # fmt: skip
        return self.array.reshape(len(self.array), -1).astype(np.float64)

    def scored(
        self,
        form: Form,
        outputs: np.ndarray,
        cut: float | None = None,
        normal: bool = True,
        ignored: float | None = None,
    ) -> Scored:
        """Returns labels and outputs in a form that metrics take.

        Args:
            form: Which.
            outputs: Real numbers in the shape of the output.
            cut: As in `Scored`.
            normal: As in `Scored`.
            ignored: As in `class_numbers`.

        Raises:
            ArgumentError: the labels do not have this form.
        """
        labels = self.of(form, ignored)
        outputs = np.asarray(outputs, np.float64)
        if form == "classes" or form == "sides":
            return Scored(form, labels, outputs.reshape(-1, self.classes), cut, normal)
        return Scored(form, labels, outputs.reshape(labels.shape))

    def check(self, beyond: bool = False) -> None:
        """Refuses labels that cannot fit an output of this shape, whatever its kind.

        Args:
            beyond: Allow class numbers beyond the classes, which some metrics ignore.

        Raises:
            ArgumentError: they are neither class numbers nor in the output's shape.
        """
        if not self.same_shape and not (beyond and self.has_number_shape and self.whole):
            self.class_numbers()

    def of(self, form: Form, ignored: float | None = None) -> np.ndarray:
        """Returns the labels in a form, as `Scored` has them.

        Raises:
            ArgumentError: they do not have this form.
        """
        if form == "classes":
            return self.class_numbers(ignored)
        if form == "sides":
            return self.sides()
        if form == "values":
            return self.values()
        if not self.whole:
            raise ArgumentError(self.argument, "hold class numbers", self.got)
        return self.values().reshape(-1).astype(np.int64)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without its axes of size 1; the first one, for samples, stays."""
    return (shape[0], *(size for size in shape[1:] if size != 1))
