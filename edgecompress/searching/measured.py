"""What came of a candidate, as an `Outcome`: measured, refused, or on the test data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.files import sha256
from edgecompress.recipes.samples import Samples
from edgecompress.searching.choosing import standard_errors
from edgecompress.searching.packing import numbered, pack, unpack
from edgecompress.searching.results import ACCURACIES, METRIC_LIMIT, Job, Judged, Outcome
from edgecompress.searching.screening import LIMITS, Costs, costs_of

if TYPE_CHECKING:
    from edgecompress.converters.metrics import Wanted
    from edgecompress.recipes.task import Task

# Kind of labels -> what is measured of a file, and the form of labels that other metrics take.
_METRICS = {"classes": "accuracy", "binary": "binary_accuracy", "values": "mse"}
_FORMS = {"classes": "classes", "binary": "sides", "values": "values"}


def wanted_metric(name: str | None, task: Task) -> Wanted:
    """Returns the metric that candidates are compared by.

    Args:
        name: As in `export`; None for that of the task.
        task: What the model is trained for.

    Raises:
        UnknownNameError: there is no such metric.
        ArgumentError: it takes other labels.
    """
    from edgecompress.converters.metrics import parse_metric

    usual = _METRICS[task.kind]
    found = parse_metric(usual if name is None else name)
    if _FORMS[task.kind] not in found.metric.forms:
        raise ArgumentError(
            "--metric", "suit the labels of the data", name,
            f"Without it, files are measured by {usual}.",
        )  # fmt: skip
    if task.kind == "binary" and found.name in ACCURACIES:
        # Nothing but the task says from where on a logit is a yes.
        return parse_metric(f"{usual}@0" if task.output == "logits" else usual)
    return found


def unfit(key: str, job: Job, costs: Costs) -> Outcome:
    """Returns a candidate that was not trained, as it exceeds a limit."""
    parts = [
        f"{rule} is not known ({costs.unknown[rule].rstrip('.')})"
        if rule in costs.unknown
        else f"{rule} is {share:.1%} above its limit"
        for rule, share in costs.excess().items()
        if share > 0 and rule in costs.limits
    ]
    if costs.unsupported is not None:
        parts.append(f"a target cannot run it ({costs.unsupported.rstrip('.')})")
    return Outcome(
        key,
        job.start,
        costs=dict(costs.values),
        excess=costs.excess(),
        reason=f"Not trained: {' and '.join(parts)}.",
    )


def not_made(key: str, job: Job, reason: str, excess: Mapping[str, float]) -> Outcome:
    """Returns a candidate that could not be converted or trained."""
    return Outcome(key, job.start, excess=dict(excess), reason=" ".join(reason.split()))


def outcome_of(key: str, job: Job, made: Any, model: Any, epochs: int, metric_name: str) -> Outcome:
    """Returns what was measured of a build.

    Args:
        key: Names the candidate.
        job: What it is.
        made: The build.
        model: The Keras model.
        epochs: That it was trained for.
        metric_name: The metric that counts; a target may have a floor for another one.
    """
    from edgecompress.core.results import exit_code

    costs = costs_of(made.targets)
    accuracies = [
        found
        for target in made.targets
        for found in target.checks
        if found.rule == "accuracy" and found.measured is not None
    ]
    reason = None
    counted = [found for found in accuracies if found.detail.get("metric") == metric_name]
    if not counted:
        reasons = [c.reason for t in made.targets for c in t.checks if c.rule == "accuracy"]
        why = next((text for text in reasons if text), "no engine ran the file")
        reason = f"Not measured: {why.rstrip('.')}."
    excess = costs.excess()
    for target in made.targets:
        for found in target.checks:
            # Agreement with the Keras model, a rule of a plugin, or a floor without a measurement.
            other = found.rule not in (*LIMITS, "accuracy") or found.measured is None
            if other and (found.verdict in ("fail", "uncertain") or found.undecided):
                excess[found.rule] = max(1.0, excess.get(found.rule, 1.0))
    metric = keras_metric = None
    samples, by_sample = 0, ""
    if counted:
        worst = min(counted, key=lambda found: _goodness(found))
        metric, keras_metric = float(worst.measured), worst.detail.get("keras")
        samples = int(worst.detail.get("samples") or 0)
        own = made.by_sample.get(worst.detail.get("engine"))
        by_sample = "" if own is None else pack(np.array(own))
        for found in accuracies:
            if found.limit is not None:
                sign = 1.0 if found.detail.get("higher_is_better", True) else -1.0
                rule = f"{METRIC_LIMIT}{found.detail.get('metric', 'accuracy')}"
                below = sign * (found.limit - float(found.measured))
                # Of several targets, the worst counts.
                excess[rule] = max(below, excess.get(rule, below))
    return Outcome(
        key,
        job.start,
        epochs=epochs,
        metric=metric,
        keras_metric=None if keras_metric is None else float(keras_metric),
        samples=samples,
        costs=dict(costs.values),
        excess=excess,
        verdict=made.verdict,
        exit_code=exit_code(check for target in made.targets for check in target.checks),
        parameters=int(model.count_params()),
        macs=int(made.main.flat.macs()),
        reason=reason,
        notes=tuple(made.notes),
        sha256=sha256(made.main.data),
        by_sample=by_sample,
    )


def _goodness(found: Any) -> float:
    value = float(found.measured)
    return value if found.detail.get("higher_is_better", True) else -value


def judged(outcome: Outcome, before: Outcome, test: Samples, higher_is_better: bool) -> Judged:
    """Returns a candidate beside the untouched model, both on the test data.

    Args:
        outcome: Of the candidate.
        before: Of the untouched model.
        test: The test data.
        higher_is_better: Whether more of the metric is better.
    """
    numbers = numbered(test.groups)
    count = 0 if numbers is None else int(numbers.max()) + 1
    difference = error = None
    if outcome.metric is not None and before.metric is not None:
        difference = (1.0 if higher_is_better else -1.0) * (outcome.metric - before.metric)
        own, other = unpack(outcome.by_sample), unpack(before.by_sample)
        if own is not None and other is not None:
            error = float(standard_errors((own - other)[:, None], numbers)[0])
    return Judged(-1, outcome.metric, before.metric, len(test), count, difference, error)
