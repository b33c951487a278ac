"""Base class of what a search may do to a model.

A technique names its knobs for a model and turns their values into something: another structure,
an order in which channels go, callbacks and a teacher for the training, options for the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.registry import Registry
from edgecompress.searching.knobs import Knob, Value

if TYPE_CHECKING:
    from edgecompress.recipes.data import Data
    from edgecompress.recipes.task import Task
    from edgecompress.searching.screening import Targets
    from edgecompress.training.base import TeacherLoss

TECHNIQUES: Registry[type[Technique]] = Registry("technique")

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Subject:
    """What a search is about.

    Attributes:
        model: The trained model.
        data: Training and validation data.
        task: Its loss and its metric.
        targets: Where files have to fit.
        loss: Returns the loss of a model on some of the training data.
    """

    model: Any
    data: Data
    task: Task
    targets: Targets
    loss: Callable[[Any], float] = field(repr=False)


@dataclass(frozen=True)
class Fit:
    """A training of a candidate.

    Attributes:
        model: The candidate.
        epochs: How many it has.
        done: How many the candidate has had before.
        steps: Updates of each.
        last: Whether no longer training of the candidate is planned.
    """

    model: Any = field(repr=False)
    epochs: int
    done: int
    steps: int
    last: bool


class Technique:
    """Something that a search may do; see the module. Methods do nothing unless overridden.

    An instance lives as long as the search of one model, and may keep what it found out about it.

    Args:
        subject: What the search is about.

    Example:
        >>> class Warm(Technique):  # registered with @TECHNIQUES.register("warm")
        ...     def knobs(self): return (Knob("epochs", 1, (0, 1, 2)),)
        ...     def callbacks(self, values, fit): return [WarmUp(values["epochs"])]
    """

    # Whether it changes the structure, so that costs have to be found anew.
    reshapes: ClassVar[bool] = False
    # Of those, the ones with lower numbers come first.
    order: ClassVar[int] = 0
    # Whether its knobs decide how much of a model fits within its limits, so that a grid of them is
    # looked at before anything is trained.
    lays_out: ClassVar[bool] = False

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        # Why it has no knobs for this model.
        self.reason: str | None = None
        # What the user should know of its knobs for this model.
        self.note: str | None = None

    def knobs(self) -> Sequence[Knob]:
        """Returns its knobs for the model, their names without the technique's; none: no use."""
        return ()

    def reshape(self, model: Any, values: Values) -> Any:
        """Returns a model of another structure; the given one is not changed."""
        return model

    def callbacks(self, values: Values, fit: Fit) -> Sequence[Any]:
        """Returns callbacks for a training."""
        return ()

    def teacher(self, values: Values) -> TeacherLoss | None:
        """Returns what compares a candidate with the model it comes from; None for nothing."""
        return None

    def rate(self, values: Values) -> float | None:
        """Returns the learning rate; None to leave it to others."""
        return None

    def mixup(self, values: Values) -> float:
        """Returns how much samples are mixed (`training.mixup.Mixup`); 0 for not at all."""
        return 0.0

    def file(self, values: Values, model: Any) -> Mapping[str, Any]:
        """Returns options of the format for a candidate, with or without all of its channels."""
        return {}

    def file_format(self, values: Values) -> str | None:
        """Returns the format of the file, a name in `FORMATS`; None to leave it to others.

        Where others have options of the int8 format, they take precedence: this technique rests.
        """
        return None

    def stand_in(self, values: Values, model: Any) -> Any:
        """Returns a model with weights such as its training leaves, so that its file is as large.

        The given one is not changed, and returned where they decide nothing.
        """
        return model


def own_values(values: Values, technique: str) -> dict[str, Value]:
    """Returns a technique's values, their names without its own.

    Example:
        >>> own_values({"depth.blocks": 2, "training.rate": 1e-3}, "depth")
        {'blocks': 2}
    """
    start = f"{technique}."
    return {name[len(start) :]: value for name, value in values.items() if name.startswith(start)}
