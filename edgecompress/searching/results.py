"""What a search asks for and gets, in frozen types that processes exchange."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecompress.searching.knobs import Knob, Value

# Where a candidate's weights come from.
FROM_PARENT, FROM_SCRATCH, UNTOUCHED = "parent", "scratch", "untouched"
# What limits of the metric begin with, in `Outcome.excess`.
METRIC_LIMIT = "metric_"
# Metrics that are an accuracy, without what follows @.
ACCURACIES = ("accuracy", "binary_accuracy")


@dataclass(frozen=True)
class Job:
    """One candidate to make.

    Attributes:
        values: Knob -> value; empty for a baseline.
        start: `parent`: it begins with the trained weights; `scratch`: a uniformly thinner copy
            with new ones; `untouched`: the model as it is.
        epochs: How long it is trained in all; shorter trainings of it are continued.
        last: Whether no longer training is planned.
    """

    values: Mapping[str, Value]
    start: str = FROM_PARENT
    epochs: int = 0
    last: bool = False

    def key(self, basis: str) -> str:
        """Returns what names the candidate, however long it is trained.

        Args:
            basis: Hash of the model, the data and the limits.

        Example:
            >>> Job({"a": 1}).key("x") == Job({"a": 1}, epochs=9).key("x")
            True
        """
        text = json.dumps([basis, self.start, sorted(self.values.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def trained_for(epochs: int) -> str:
    """Returns a number of epochs in words.

    Example:
        >>> trained_for(1), trained_for(2)
        ('1 epoch', '2 epochs')
    """
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"


@dataclass(frozen=True)
class Outcome:
    """A candidate that was made, or the reason why it was not.

    Attributes:
        key: Names its folder.
        start: As in `Job`.
        epochs: Epochs that it was trained for, those of earlier jobs included.
        metric: The metric of the file in its engine; None if it was not made.
        keras_metric: The same of the Keras model.
        samples: Validation samples that both were measured on.
        costs: Rule -> the largest value that it may have.
        excess: Limit -> by which share it is exceeded; 0 or less if it is met.
        verdict: Of the checks; `not_applicable` if there was no file.
        exit_code: What `export` of the file would end with.
        parameters: Weights of the Keras model.
        macs: Multiply-accumulates of the file.
        seconds: Stage -> how long it took.
        reason: Why there is no file; None if there is one.
        notes: What was skipped or done differently.
        sha256: Of the file; empty without one.
        screened: Candidates that were judged without training on the way.
        by_sample: The metric of each of the samples, packed (`searching.packing`); empty if it is
            not known.
    """

    key: str
    start: str
    epochs: int = 0
    metric: float | None = None
    keras_metric: float | None = None
    samples: int = 0
    costs: Mapping[str, float] = field(default_factory=dict)
    excess: Mapping[str, float] = field(default_factory=dict)
    verdict: str = "not_applicable"
    exit_code: int = 0
    parameters: int = 0
    macs: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    notes: tuple[str, ...] = ()
    sha256: str = ""
    screened: int = 0
    by_sample: str = ""

    @property
    def made(self) -> bool:
        """Whether there is a file."""
        return self.metric is not None

    @property
    def fits(self) -> bool:
        """Whether there is a file that meets every limit."""
        return self.made and all(value <= 0 for value in self.excess.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        found: dict[str, Any] = dataclasses.asdict(self)
        return found


@dataclass(frozen=True)
class Described:
    """What the search knows of a model before it begins.

    Attributes:
        knobs: What can be chosen.
        left_out: Technique -> why it is of no use here.
        metric: Name of the metric.
        higher_is_better: Whether more of it is better.
        basis: Hash of the model, the data and the limits.
        rules: The costs that are known, objectives of the search.
        limits: Rule -> limit.
        exact: Whether candidates are screened without converting them.
        per_minute: Candidates that were screened a minute, on a sample.
        reachable: Share of a sample of random widths that meets every limit; None if candidates
            are not screened without converting them.
        notes: What the user should know.
        groups: Number of the group of each validation sample, packed (`searching.packing`); empty
            without groups.
    """

    knobs: tuple[Knob, ...]
    left_out: Mapping[str, str]
    metric: str
    higher_is_better: bool
    basis: str
    rules: tuple[str, ...]
    limits: Mapping[str, float]
    exact: bool
    per_minute: float
    reachable: float | None
    notes: tuple[str, ...] = ()
    groups: str = ""


@dataclass(frozen=True)
class Beginning:
    """Where a search begins.

    Attributes:
        candidates: Values of all knobs; empty if nothing is known that could fit.
        notes: What the user should know.
    """

    candidates: tuple[Mapping[str, Value], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A candidate on the test data, which neither trained nor chose.

    Attributes:
        candidate: Its number.
        metric: Of its file; None if it could not be measured.
        untouched: The same of the untouched int8 model.
        samples: Test samples.
        groups: Groups that they are of; 0 if that was not said.
        difference: How much better than the untouched model it is; None if unknown.
        error: Standard error of the difference (`searching.choosing`).
        looked: Candidates of this study that were measured on test data, by number.
        refit: Whether it was trained on the validation data, too, for people; "" if not asked.
    """

    candidate: int
    metric: float | None
    untouched: float | None
    samples: int
    groups: int
    difference: float | None = None
    error: float | None = None
    looked: tuple[int, ...] = ()
    refit: str = ""


@dataclass(frozen=True)
class Exported:
    """A candidate that was exported.

    Attributes:
        report: Of `export`, as JSON values.
        tested: It on the test data; None without any.
    """

    report: Mapping[str, Any]
    tested: Judged | None = None
