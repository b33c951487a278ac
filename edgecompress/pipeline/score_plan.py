"""Decides which metric of which output to measure, from the request, outputs and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgecompress.core.errors import ArgumentError
from edgecompress.core.labelled import Labelled
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.pipeline.scoring import Asked, Drop, Scoring

if TYPE_CHECKING:
    from edgecompress.converters.labels import Labels
    from edgecompress.converters.metrics import Wanted
    from edgecompress.converters.tasks import Output, Task, Unclear


@dataclass(frozen=True, eq=False)
class Item:
    """One metric of one output.

    Attributes:
        position: The output's position.
        output: Its name in messages; None for the only output.
        task: What the output predicts; a reason if that is unknown.
        wanted: The metric; None if the task is not known.
        labels: The labels; None if there are none.
        floor: The limit that the user gave; None for none.
        max_drop: As in `Drop`; None for none.
    """

    position: int
    output: str | None
    task: Task | Unclear | None
    wanted: Wanted | None
    labels: Labels | None
    floor: float | None = None
    max_drop: float | None = None

    @property
    def ignored(self) -> float | None:
        """A label beyond the classes that is allowed nevertheless."""
        if self.wanted is None or self.wanted.metric.name != "mean_iou":
            return None
        return self.wanted.parameter

    @property
    def of(self) -> str:
        """` of output 'name'`, or nothing for the only one."""
        return "" if self.output is None else f" of output {self.output!r}"


def check_labels(
    scoring: Scoring,
    outputs: Sequence[Output],
    shapes: Sequence[tuple[int | None, ...]],
    labelled: Labelled,
) -> None:
    """Refuses, before any long work, labels and names that do not fit any output.

    Args:
        scoring: The user's request.
        outputs: The model's outputs.
        shapes: Their shapes, samples first.
        labelled: The data.

    Raises:
        ArgumentError: a key, a shape or a number is wrong, or a metric names no output.
    """
    from edgecompress.converters.labels import Labels
    from edgecompress.converters.tasks import match_labels

    for asked in scoring.asked:
        _place(asked, outputs)
    arrays = match_labels(labelled.y, outputs, labelled.argument)
    for array, shape in zip(arrays, shapes, strict=True):
        if array is not None and None not in shape[1:]:
            sizes = tuple(size or 0 for size in shape[1:])
            ignores = any(asked.wanted.metric.name == "mean_iou" for asked in scoring.asked)
            Labels(array, (len(labelled.x[0]), *sizes), labelled.argument).check(ignores)


def plan(
    scoring: Scoring,
    outputs: Sequence[Output],
    flat: FlatModel,
    labelled: Labelled,
    floor: float | None = None,
) -> tuple[Item, ...]:
    """Returns which metric of which output is measured.

    Args:
        scoring: The user's request.
        outputs: The model's outputs, by the position they have in the file.
        flat: The file.
        labelled: The data.
        floor: The target's own floor for accuracy, if the user gave none.

    Raises:
        ArgumentError: the labels do not fit, or a metric names no output.
    """
    from edgecompress.converters.labels import Labels
    from edgecompress.converters.metrics import parse_metric
    from edgecompress.converters.tasks import (
        Task,
        find_task,
        match_labels,
        may_be_classifier,
        output_operator,
        task_for,
    )

    own = scoring.min_accuracy is not None
    scoring = scoring if own else replace(scoring, min_accuracy=floor)
    count = len(labelled.x[0])
    arrays = match_labels(labelled.y, outputs, labelled.argument)
    several = len(outputs) > 1
    asked = [_place(item, outputs) for item in scoring.asked]
    items: list[Item] = []
    for position, (output, array) in enumerate(zip(outputs, arrays, strict=True)):
        operator = output_operator(flat, position)
        named = [item for place, item in asked if place == position]
        nothing = Item(position, output.name if several else None, None, None, None)
        if array is None:
            mine = [_named_item(nothing, item) for item in named]
            if may_be_classifier(operator, output.loss):
                # Without labels it is unknown whether the output has an accuracy.
                nothing = replace(nothing, floor=scoring.min_accuracy)
            else:
                told = f"the compiled loss is {output.loss.text if output.loss else ''}"
                nothing = replace(nothing, task=Task("values", "values", "r2", told))
            items += mine or [nothing]
            continue
        shape = flat.tensors[flat.outputs[position]].shape
        labels = Labels(array, (count, *shape[1:]), labelled.argument)
        nothing = replace(nothing, labels=labels)
        mine = [
            replace(
                _named_item(nothing, item),
                task=task_for(item.wanted, operator, output.loss, labels),
            )
            for item in named
        ]
        if any(_is_accuracy(item.wanted) for item in mine):
            mine = [
                replace(item, floor=scoring.min_accuracy)
                if _is_accuracy(item.wanted) and item.floor is None
                else item
                for item in mine
            ]
        elif not mine or scoring.min_accuracy is not None:
            task = find_task(operator, output.loss, labels)
            classifies = not isinstance(task, Task) or task.is_classifier
            if not mine or classifies:
                mine.append(
                    replace(
                        nothing,
                        task=task,
                        wanted=parse_metric(task.metric) if isinstance(task, Task) else None,
                        floor=scoring.min_accuracy if classifies else None,
                    )
                )
        items += mine
    for item in items:
        if isinstance(item.task, Task) and item.labels is not None:
            item.labels.of(item.task.form, item.ignored)
    if own:
        _refuse_idle_floor(scoring, items, outputs)
    return tuple(with_drop(item, scoring) for item in items)


def _named_item(nothing: Item, asked: Asked) -> Item:
    return replace(nothing, wanted=asked.wanted, floor=asked.limit)


def _is_accuracy(wanted: Wanted | None) -> bool:
    return wanted is not None and wanted.metric.name in ("accuracy", "binary_accuracy")


def _place(asked: Asked, outputs: Sequence[Output]) -> tuple[int, Asked]:
    """Returns the position of the output that a metric refers to."""
    names = ", ".join(output.name for output in outputs)
    if asked.output is None:
        if len(outputs) > 1:
            raise ArgumentError(
                asked.argument, f"name one of the {len(outputs)} outputs ({names})", asked.text,
                f"E.g. {asked.wanted.name}:{outputs[0].name}.",
            )  # fmt: skip
        return 0, asked
    for position, output in enumerate(outputs):
        if asked.output in output.names:
            return position, asked
    if asked.output.isdecimal() and len(asked.output) < 4 and int(asked.output) < len(outputs):
        return int(asked.output), asked
    raise ArgumentError(asked.argument, f"name an output of the model: {names}", asked.text)


def _refuse_idle_floor(scoring: Scoring, items: Sequence[Item], outputs: Sequence[Output]) -> None:
    """Refuses a floor for accuracy if no output can have one."""
    from edgecompress.converters.tasks import Task

    if any(
        _is_accuracy(item.wanted) or (item.floor is not None and item.wanted is None)
        for item in items
    ):
        return
    told = next((i.task.found for i in items if isinstance(i.task, Task)), "it gives values")
    names = "" if len(outputs) == 1 else f":{outputs[0].name}"
    raise ArgumentError(
        "--min-accuracy", f"go with a classifier, but {told}", scoring.min_accuracy,
        f"Use --max-metric mae{names}=NUMBER or --min-metric r2{names}=NUMBER.",
    )  # fmt: skip


def with_drop(item: Item, scoring: Scoring) -> Item:
    """Returns the item with its allowed drop: one by name, else one for all."""
    best: Drop | None = None
    for drop in scoring.drops:
        named = drop.wanted is not None
        fits = not named or (
            item.wanted is not None
            and drop.wanted is not None
            and drop.wanted.name == item.wanted.name
            and (
                drop.output is None
                or item.output in (None, drop.output)
                or drop.output == str(item.position)
            )
        )
        # A drop by name takes precedence over one for all.
        if fits and (best is None or named):
            best = drop
    return item if best is None else replace(item, max_drop=best.limit)
