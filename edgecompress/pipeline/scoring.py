"""Accuracy: what each output is worth on labels, in each engine, beside the Keras model.

what is asked (`Scoring`) + labels -> a plan (which metric of which output) -> one CheckResult each
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import CheckResult, judge
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.metrics import Labels, Wanted
    from edgecompress.converters.tasks import Output, Task, Unclear
    from edgecompress.core.labelled import Labelled

_SAY = "Say --metric NAME[:OUTPUT], e.g. --metric binary_accuracy@0 for a logit."


@dataclass(frozen=True)
class Asked:
    """A metric that the user names.

    Attributes:
        wanted: The metric.
        output: Name or position of the output; None for the only one.
        limit: Its floor, or its ceiling; None for none.
        argument: Where it was asked for, for messages.
    """

    wanted: Wanted
    output: str | None
    limit: float | None
    argument: str

    @property
    def text(self) -> str:
        """`NAME` or `NAME:OUTPUT`."""
        return self.wanted.name if self.output is None else f"{self.wanted.name}:{self.output}"


@dataclass(frozen=True)
class Drop:
    """How far a metric of the file may be worse than the Keras model's.

    Attributes:
        limit: In the metric's own unit.
        wanted: The metric; None for every one.
        output: Its output; None for every one.
    """

    limit: float
    wanted: Wanted | None = None
    output: str | None = None


@dataclass(frozen=True)
class Scoring:
    """What is asked about accuracy.

    Attributes:
        min_accuracy: Floor for the accuracy of every output that classifies.
        asked: Metrics by name.
        drops: How far the file may be worse than the Keras model.
    """

    min_accuracy: float | None = None
    asked: tuple[Asked, ...] = ()
    drops: tuple[Drop, ...] = ()

    @property
    def is_limited(self) -> bool:
        """Whether any limit is set."""
        return (
            self.min_accuracy is not None
            or bool(self.drops)
            or any(asked.limit is not None for asked in self.asked)
        )


def parse_scoring(
    min_accuracy: float | None,
    metric: Any = None,
    min_metric: Any = None,
    max_metric: Any = None,
    max_drop: Any = None,
) -> Scoring:
    """Returns what a user asks about accuracy.

    Args:
        min_accuracy: A share.
        metric: A name or names: `NAME[:OUTPUT]`.
        min_metric: Floors: a mapping from these names to numbers, or texts `NAME[:OUTPUT]=NUMBER`.
        max_metric: Ceilings of errors, in the same forms.
        max_drop: A number for all metrics, or as the floors.

    Raises:
        ArgumentError: a name, a number or a direction is wrong, or something is asked for twice.

    Example:
        >>> parse_scoring(None, min_metric={"R2:bbox": 0.9}).asked[0].text
        'r2:bbox'
    """
    from edgecompress.pipeline.request import check_share

    share = check_share("--min-accuracy", min_accuracy)
    asked = [_asked(text, None, "--metric") for text in _texts(metric, "--metric")]
    for argument, given, floor in (
        ("--min-metric", min_metric, True),
        ("--max-metric", max_metric, False),
    ):
        for name, limit in _limits(given, argument):
            if name is None:
                raise ArgumentError(argument, "be NAME[:OUTPUT]=NUMBER", limit)
            found = _asked(name, limit, argument)
            if found.wanted.metric.higher_is_better is not floor:
                other = "--max-metric" if floor else "--min-metric"
                better = "less" if floor else "more"
                raise ArgumentError(
                    argument, f"name a metric of which {'more' if floor else 'less'} is better",
                    found.text, f"Of {found.wanted.title} {better} is better: use {other}.",
                )  # fmt: skip
            if found.wanted.metric.unit == "share":
                check_share(argument, limit)
            asked.append(found)
    drops = []
    for name, limit in _limits(max_drop, "--max-drop"):
        if limit < 0:
            raise ArgumentError("--max-drop", "be 0 or more", limit)
        if name is None:
            drops.append(Drop(limit))
        else:
            found = _asked(name, None, "--max-drop")
            drops.append(Drop(limit, found.wanted, found.output))
            asked.append(found)
    merged: dict[tuple[str, str | None], Asked] = {}
    for item in asked:
        key = (item.wanted.name, item.output)
        known = merged.get(key)
        if known is not None and None not in (known.limit, item.limit):
            raise ArgumentError(item.argument, f"limit {item.text} once", item.limit)
        merged[key] = item if known is None or known.limit is None else known
    return Scoring(share, tuple(merged.values()), tuple(drops))


def _texts(given: Any, argument: str) -> list[str]:
    if given is None:
        return []
    texts = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(text, str) for text in texts):
        raise ArgumentError(argument, "be the name of a metric, or a list of names", given)
    return texts


def _asked(text: str, limit: float | None, argument: str) -> Asked:
    from edgecompress.converters.metrics import parse_metric

    name, colon, output = text.strip().partition(":")
    if colon and not output:
        raise ArgumentError(argument, "name an output behind the colon", text)
    return Asked(parse_metric(name, argument), output or None, limit, argument)


def _limits(given: Any, argument: str) -> Iterator[tuple[str | None, float]]:
    """Yields (name, number); the name is None for a number alone."""
    if given is None:
        return
    entries: list[tuple[Any, Any]] = []
    if isinstance(given, Mapping):
        entries = [(None if name == "*" else name, value) for name, value in given.items()]
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        entries = [(None, given)]
    else:
        for text in _texts(given, argument):
            name, equals, value = text.rpartition("=")
            entries.append((name if equals else None, value))
    for name, value in entries:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = value if name is None else f"{name}={value}"
            raise ArgumentError(argument, "be NAME[:OUTPUT]=NUMBER", shown)
        yield name, number


# --- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Item:
    """One metric of one output.

    Attributes:
        position: The output's position.
        output: What messages call it; None for the only output.
        task: What the output is for; a reason where that is not known.
        wanted: The metric; None where the task is not known.
        labels: The labels; None where there are none.
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
        """A label beyond the classes that may occur all the same."""
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
    """Refuses, before any long work, labels and names that fit no output.

    Args:
        scoring: What the user asks.
        outputs: The model's outputs.
        shapes: Their shapes, samples first.
        labelled: The data.

    Raises:
        ArgumentError: a key, a shape or a number is wrong, or a metric names no output.
    """
    from edgecompress.converters.metrics import Labels
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
        scoring: What the user asks.
        outputs: The model's outputs, by the position they have in the file.
        flat: The file.
        labelled: The data.
        floor: The target's own floor for accuracy, where the user gave none.

    Raises:
        ArgumentError: the labels do not fit, or a metric names no output.
    """
    from edgecompress.converters.metrics import Labels, parse_metric
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
                # Without labels nobody knows whether the output has an accuracy.
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
    return tuple(_with_drop(item, scoring) for item in items)


def _named_item(nothing: Item, asked: Asked) -> Item:
    return replace(nothing, wanted=asked.wanted, floor=asked.limit)


def _is_accuracy(wanted: Wanted | None) -> bool:
    return wanted is not None and wanted.metric.name in ("accuracy", "binary_accuracy")


def _place(asked: Asked, outputs: Sequence[Output]) -> tuple[int, Asked]:
    """Returns the position of the output that a metric is asked of."""
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
    """Refuses a floor for accuracy where no output can have one."""
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


def _with_drop(item: Item, scoring: Scoring) -> Item:
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
        # A drop by name goes before one for all.
        if fits and (best is None or named):
            best = drop
    return item if best is None else replace(item, max_drop=best.limit)


# --- results ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reference:
    """What the Keras model says to the labelled samples.

    Attributes:
        outputs: One array for each output, in the order of the file's; None where unknown.
        reason: Why they are unknown.
    """

    outputs: tuple[np.ndarray, ...] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """What an engine gave for the labelled samples.

    Attributes:
        engine: The engine's name.
        version: Version of its package.
        samples: How many.
        outputs: Real numbers, one array for each output.
    """

    engine: str
    version: str
    samples: int
    outputs: tuple[np.ndarray, ...] = field(repr=False)


def result(item: Item, run: Run, reference: Reference) -> CheckResult:
    """Returns what a metric of an output is in an engine, judged against its limits."""
    from edgecompress.converters.metrics import NotMeasurable
    from edgecompress.converters.tasks import Task

    if item.labels is None or item.wanted is None or not isinstance(item.task, Task):
        return missing(item)
    metric, task, labels = item.wanted.metric, item.task, item.labels

    def measure(outputs: np.ndarray) -> Any:
        scored = labels.scored(task.form, outputs, task.cut, task.normal, item.ignored)
        return item.wanted and item.wanted.measure(scored)

    detail = {**_named(item), "samples": run.samples, "engine": run.engine, "version": run.version}
    try:
        score = measure(run.outputs[item.position])
        keras = None
        if reference.outputs is not None:
            keras = measure(reference.outputs[item.position]).value
    except NotMeasurable as error:
        return _not_measured(item, str(error), detail)
    sign = 1 if metric.higher_is_better else -1
    known = keras is not None and math.isfinite(keras)
    drop = sign * (keras - score.value) if known and keras is not None else None
    detail |= {
        **score.detail,
        "keras": keras if known else None,
        "drop": drop if drop is not None and math.isfinite(drop) else None,
        "floor": item.floor,
        "max_drop": item.max_drop,
    }
    limits = [] if item.floor is None else [item.floor]
    if item.max_drop is not None:
        if not known or keras is None:
            reason = reference.reason or "The Keras model's own value is not a finite number."
            return _not_measured(item, reason, detail)
        limits.append(keras - sign * item.max_drop)
    limit = None if not limits else max(limits) if sign > 0 else min(limits)
    if not math.isfinite(score.value):
        broken = f"{_title(item)} in {run.engine} is not a number: the file gives NaN or infinity."
        return CheckResult(
            "accuracy", "fail", limit=limit, unit=metric.unit, detail=detail, reason=broken
        )
    verdict = _judge(score.value, limit, item.max_drop, metric.higher_is_better)
    return CheckResult(
        "accuracy",
        verdict,
        score.value,
        score.value,
        score.value,
        limit,
        metric.unit,
        "measured_host",
        detail,
        _reason(item, verdict, score, keras, drop, run, limit),
    )


def _judge(value: float, limit: float | None, max_drop: float | None, floor: bool) -> Any:
    if limit is not None and max_drop is not None:
        # What the Keras model's value minus the drop is, rounds; equal is allowed.
        slack = 1e-9 * max(1.0, abs(limit))
        limit += -slack if floor else slack
    return judge(value, value, limit, at_least=floor)


def _named(item: Item) -> dict[str, Any]:
    from edgecompress.converters.tasks import Task

    wanted, task = item.wanted, item.task
    known = isinstance(task, Task)
    return {
        "metric": None if wanted is None else wanted.name,
        "output": item.output,
        "task": task.kind if isinstance(task, Task) else None,
        "found": task.found if isinstance(task, Task) else getattr(task, "reason", None),
        "higher_is_better": wanted is None or wanted.metric.higher_is_better,
        **({"cut": task.cut} if known and isinstance(task, Task) and task.cut is not None else {}),
    }


def _title(item: Item) -> str:
    title = item.wanted.title if item.wanted else "accuracy"
    return f"{title[0].upper()}{title[1:]}{item.of}"


def _text(value: float, unit: str) -> str:
    return f"{100 * value:.2f} %" if unit == "share" else f"{value:.6g}"


def _reason(
    item: Item, verdict: str, score: Any, keras: float | None, drop: float | None, run: Run,
    limit: float | None,
) -> str | None:  # fmt: skip
    unit = item.wanted.metric.unit if item.wanted else "share"
    floor = item.wanted is None or item.wanted.metric.higher_is_better
    constant = score.detail.get("constant")
    if verdict == "fail" and limit is not None:
        side = "below" if floor else "above"
        parts = [f"{_title(item)} is {_text(score.value, unit)} in {run.engine}"]
        if item.floor is not None and judge(score.value, score.value, item.floor, floor) == "fail":
            parts.append(f"{side} {_text(item.floor, unit)}")
        if item.max_drop is not None and drop is not None and drop > item.max_drop:
            allowed = _points(item.max_drop, unit)
            parts.append(f"{_points(drop, unit)} worse than in Keras, {allowed} are allowed")
        text = f"{', '.join(parts)}."
        if keras is not None:
            text += f" The Keras model has {_text(keras, unit)}."
        return text
    if item.floor is not None and constant is not None and item.floor <= constant:
        return (
            f"An answer that is always the same reaches {_text(constant, unit)} on these labels: "
            f"a limit of {_text(item.floor, unit)} cannot tell it from a model."
        )
    return None


def _points(value: float, unit: str) -> str:
    return f"{100 * value:.3g} points" if unit == "share" else f"{value:.6g}"


def missing(item: Item, reason: str = "") -> CheckResult:
    """Returns the result of an item that cannot be measured."""
    from edgecompress.converters.tasks import Unclear

    if not reason and item.labels is None:
        keys = f"y{item.position}" if item.output is None else (
            f"y_{item.output} or y{item.position}"
        )  # fmt: skip
        reason = f"There are no labels{item.of}: give them under {keys}."
        if item.wanted is None and (item.floor is None and item.max_drop is None):
            return CheckResult(
                "accuracy", "not_applicable", unit="share", detail=_named(item), reason=reason
            )
        if item.wanted is None:
            reason += (
                f" Or limit an output that has some: --min-metric accuracy:OUTPUT={item.floor} "
                "instead of --min-accuracy."
            )
    elif not reason and isinstance(item.task, Unclear):
        output = "the output" if item.output is None else f"output {item.output!r}"
        reason = f"What {output} is for is not clear: {item.task.reason}. {_SAY}"
    return _not_measured(item, reason, _named(item))


def _not_measured(item: Item, reason: str, detail: Mapping[str, Any]) -> CheckResult:
    unit = item.wanted.metric.unit if item.wanted else "share"
    detail = {**detail, "floor": item.floor, "max_drop": item.max_drop}
    # The value that a drop is counted from may be unknown; that there is a limit is not.
    limit = item.max_drop if item.floor is None else item.floor
    return CheckResult(
        "accuracy", "not_measured", limit=limit, unit=unit, detail=detail, reason=reason
    )


def unmeasured(scoring: Scoring, reason: str) -> tuple[CheckResult, ...]:
    """Returns the results where there are no labels at all: one for each thing that is asked.

    Args:
        scoring: What is asked.
        reason: Why nothing is measured; `{}` stands for the argument that asked.
    """
    results = []
    if scoring.min_accuracy is not None:
        item = Item(0, None, None, None, None, scoring.min_accuracy)
        results.append(_not_measured(item, reason.replace("{}", "--min-accuracy"), {}))
    for asked in scoring.asked:
        item = Item(0, asked.output, None, asked.wanted, None, asked.limit)
        item = _with_drop(item, scoring)
        results.append(
            _not_measured(
                item, reason.replace("{}", f"{asked.argument} {asked.text}"), _named(item)
            )
        )
    if scoring.drops and not results:
        item = Item(0, None, None, None, None, max_drop=scoring.drops[0].limit)
        results.append(_not_measured(item, reason.replace("{}", "--max-drop"), _named(item)))
    why = None if "{}" in reason else reason
    return tuple(results) or (CheckResult("accuracy", "not_applicable", unit="share", reason=why),)


def run_file(data: bytes, x: Sequence[np.ndarray], engine: str) -> Run:
    """Runs a file on samples and returns its outputs as real numbers.

    Raises:
        ArgumentError: the samples do not fit the file.
        EngineError, MissingDependencyError: see `run_engine`.
    """
    from edgecompress.converters.verify import dequantize, quantize
    from edgecompress.engines.run import run_engine

    flat = read_tflite(data)
    inputs = [
        quantize(array, flat.tensors[index]) for array, index in zip(x, flat.inputs, strict=True)
    ]
    run = run_engine(engine, data, inputs)
    outputs = tuple(
        dequantize(raw, flat.tensors[index])
        for raw, index in zip(run.outputs, flat.outputs, strict=True)
    )
    return Run(run.engine, run.version, len(x[0]), outputs)
