"""Accuracy: the score of each output in an engine, judged against its limits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgecompress.core.labelled import Labelled
from edgecompress.core.results import CheckResult, judge
from edgecompress.engines.registry import LITERT
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.pipeline.score_plan import Item, plan, with_drop
from edgecompress.pipeline.scoring import Scoring

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.tasks import Output

_SAY = "Say --metric NAME[:OUTPUT], e.g. --metric binary_accuracy@0 for a logit."


@dataclass(frozen=True, eq=False)
class Reference:
    """The outputs of the Keras model on the labelled samples.

    Attributes:
        outputs: One array for each output, in the order of the file's; None if unknown.
        reason: Why they are unknown.
    """

    outputs: tuple[np.ndarray, ...] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """An engine's outputs for the labelled samples.

    Attributes:
        engine: The engine's name.
        version: Version of its package.
        samples: Number of samples.
        outputs: Real numbers, one array for each output.
    """

    engine: str
    version: str
    samples: int
    outputs: tuple[np.ndarray, ...] = field(repr=False)


def result(item: Item, run: Run, reference: Reference) -> CheckResult:
    """Returns a metric of an output in an engine, judged against its limits."""
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


def by_sample(item: Item, run: Run) -> np.ndarray | None:
    """Returns the metric of an output for each sample; None if it has no value of its own there."""
    from edgecompress.converters.metrics import NotMeasurable
    from edgecompress.converters.tasks import Task

    if item.labels is None or item.wanted is None or not isinstance(item.task, Task):
        return None
    task, outputs = item.task, run.outputs[item.position]
    scored = item.labels.scored(task.form, outputs, task.cut, task.normal, item.ignored)
    try:
        return item.wanted.by_sample(scored, run.samples)
    except NotMeasurable:
        return None


def _judge(value: float, limit: float | None, max_drop: float | None, floor: bool) -> Any:
    if limit is not None and max_drop is not None:
        # The Keras model's value minus the drop is rounded; equality is allowed.
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
            f"A constant answer scores {_text(constant, unit)} on these labels: "
            f"a limit of {_text(item.floor, unit)} cannot distinguish it from a model."
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
        reason = f"What {output} predicts is unclear: {item.task.reason}. {_SAY}"
    return _not_measured(item, reason, _named(item))


def _not_measured(item: Item, reason: str, detail: Mapping[str, Any]) -> CheckResult:
    unit = item.wanted.metric.unit if item.wanted else "share"
    detail = {**detail, "floor": item.floor, "max_drop": item.max_drop}
    # The value that a drop refers to may be unknown, but there is a limit.
    limit = item.max_drop if item.floor is None else item.floor
    return CheckResult(
        "accuracy", "not_measured", limit=limit, unit=unit, detail=detail, reason=reason
    )


def unmeasured(scoring: Scoring, reason: str) -> tuple[CheckResult, ...]:
    """Returns the results if there are no labels at all: one per requested item.

    Args:
        scoring: The request.
        reason: Why nothing is measured; `{}` stands for the requesting argument.
    """
    results = []
    if scoring.min_accuracy is not None:
        item = Item(0, None, None, None, None, scoring.min_accuracy)
        results.append(_not_measured(item, reason.replace("{}", "--min-accuracy"), {}))
    for asked in scoring.asked:
        item = Item(0, asked.output, None, asked.wanted, None, asked.limit)
        item = with_drop(item, scoring)
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


def run_file(file: Artifact, x: Sequence[np.ndarray], engine: str) -> Run:
    """Runs a file on samples and returns its outputs as real numbers.

    Raises:
        ArgumentError: the samples do not fit the file.
        EngineError, MissingDependencyError: see `run_engine`.
    """
    from edgecompress.converters.real_values import dequantize, quantized_inputs
    from edgecompress.engines.run import run_engine

    flat, stepping = file.flat, file.stepping
    inputs = quantized_inputs(flat, x, 0 if stepping is None else len(stepping.states))
    run = run_engine(engine, file.data, inputs, stepping=stepping)
    outputs = tuple(
        dequantize(raw, flat.tensors[index])
        for raw, index in zip(run.outputs, flat.outputs[: len(run.outputs)], strict=True)
    )
    return Run(run.engine, run.version, len(x[0]), outputs)


# Labelled samples that files are compared on which are made only to be compared.
_MOST_COMPARED = 1000


def scorer(
    labelled: Labelled,
    scoring: Scoring,
    outputs: Sequence[Output],
    loaded: LoadedModel | None,
    engine: str,
) -> Callable[[Artifact, bool], CheckResult | None]:
    """Returns what measures the accuracy of one file after another, in LiteRT or on a target.

    Its result is the metric that fails, else the first with a limit, else the first that could be
    measured; None if there is none.

    Args:
        labelled: The data; at most 1,000 samples, evenly spaced, are used.
        scoring: What is requested.
        outputs: The model's outputs, by the position they have in a file.
        loaded: The Keras model, which `--max-drop` compares with; None without one.
        engine: The target's engine; LiteRT takes its place where it is not installed.
    """
    import numpy as np

    from edgecompress.engines.run import engine_available

    on_target = LITERT if engine_available(engine) else engine
    count = min(len(labelled), _MOST_COMPARED)
    few = labelled.at(np.arange(count) * len(labelled) // count)

    @functools.cache
    def reference() -> Reference:
        if loaded is None or not scoring.drops:
            return Reference(reason="There is no Keras model to compare with.")
        return Reference(tuple(loaded.predict(few.x)))

    def score(file: Artifact, as_target: bool) -> CheckResult | None:
        items = plan(scoring, outputs, file.flat, few)
        run = run_file(file, few.x, on_target if as_target else LITERT)
        results = [result(item, run, reference()) for item in items]
        known = [check for check in results if check.measured is not None]
        order = {"fail": 0, "pass": 1}
        known.sort(key=lambda check: (check.limit is None, order.get(check.verdict, 2)))
        return known[0] if known else None

    return score
