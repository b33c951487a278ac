"""Which candidate is taken: of those that cannot be told apart, the one nearest to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.searching.choosing import compare, too_good
from edgecompress.searching.packing import unpack, unpack_groups
from edgecompress.searching.results import FROM_SCRATCH, UNTOUCHED, Described, Judged

if TYPE_CHECKING:
    from edgecompress.searching.outcome import Point

# Candidates among which the choice itself makes the best look better than it is.
_MANY = 10
# Below that, how much groups differ is known but roughly.
_FEW_GROUPS = 6


@dataclass(frozen=True)
class Choice:
    """The candidate that was taken, and why.

    Attributes:
        candidate: Its number.
        leader: That of the candidate with the best metric.
        equal: Those that the samples cannot tell apart from the leader, itself among them.
        compared: Candidates that meet every limit and were measured on these samples.
        samples: Validation samples.
        groups: Groups that they are of; 0 if that was not said.
        difference: How much better the metric of the leader is than that of the candidate.
        error: Standard error of the difference (`searching.choosing`); None if unknown.
        too_good: By how much the best of the equal ones is expected to look too good on these
            samples; None if unknown.
        reason: Why it was taken, for people.
    """

    candidate: int
    leader: int
    equal: tuple[int, ...]
    compared: int
    samples: int
    groups: int
    difference: float
    error: float | None
    too_good: float | None
    reason: str


def choose(described: Described, made: Sequence[Point]) -> Choice | None:
    """Returns which candidate is taken; None if none meets every limit.

    Of those measured on most samples, all that cannot be told apart from the best one are equal:
    the one is taken that keeps most of the model's multiply-accumulates, then of its weights, then
    the one trained longest. One that was trained from scratch keeps nothing of the model.

    Args:
        described: What the search knows of the model.
        made: Candidates with a file.
    """
    fitting = [point for point in made if point.outcome.fits]
    samples = max((point.outcome.samples for point in fitting), default=0)
    whole = [point for point in fitting if point.outcome.samples == samples]
    if not whole:
        return None
    sign = 1 if described.higher_is_better else -1
    leader = max(whole, key=lambda point: sign * (point.outcome.metric or 0.0))
    groups = _groups(described, samples)
    count = 0 if groups is None else len(np.unique(groups))
    values = _values(whole, samples)
    if values is None:
        return Choice(
            leader.number, leader.number, (leader.number,), len(whole), samples, count, 0.0, None,
            None,
            f"Candidate {leader.number} has the best {described.metric} of {len(whole)} that meet "
            f"every limit. Whether the {samples:,} validation samples suffice to tell them apart "
            "is not known: not all of them keep their metric by sample.",
        )  # fmt: skip
    compared = compare(sign * values, groups)
    # Equal metrics may differ by rounding.
    equal = [p for p, same in zip(whole, compared.equal, strict=True) if same or p is leader]
    taken = max(equal, key=lambda point: (_nearness(point), sign * (point.outcome.metric or 0.0)))
    at = whole.index(taken)
    return Choice(
        candidate=taken.number,
        leader=leader.number,
        equal=tuple(point.number for point in equal),
        compared=len(whole),
        samples=samples,
        groups=count,
        difference=sign * ((leader.outcome.metric or 0.0) - (taken.outcome.metric or 0.0)),
        error=float(compared.errors[at]),
        too_good=too_good(sign * values[:, [whole.index(point) for point in equal]], groups),
        reason=_reason(described, made, taken, leader, len(equal), len(whole),
                       _of(samples, count, "validation"), float(compared.errors[at])),
    )  # fmt: skip


def preferred(described: Described, points: Sequence[Point]) -> Point:
    """Returns which of some candidates deserves a longer training.

    Of those within one standard error of the best one, the nearest to the model, as in `choose`: a
    choice that can be taken back needs no more (Breiman et al., 1984, section 3.4.3). Of candidates
    whose metrics by sample are not known, the best.

    Args:
        described: What the search knows of the model.
        points: Candidates with a file that meet every limit, at least one.
    """
    samples = max(point.outcome.samples for point in points)
    whole = [point for point in points if point.outcome.samples == samples]
    sign = 1 if described.higher_is_better else -1
    leader = max(whole, key=lambda point: sign * (point.outcome.metric or 0.0))
    values = _values(whole, samples)
    if values is None:
        return leader
    near = compare(sign * values, _groups(described, samples)).within(1.0)
    equal = [p for p, same in zip(whole, near, strict=True) if same or p is leader]
    return max(equal, key=lambda point: (_nearness(point), sign * (point.outcome.metric or 0.0)))


def _nearness(point: Point) -> tuple[bool, int, int, int]:
    outcome = point.outcome
    return outcome.start != FROM_SCRATCH, outcome.macs, outcome.parameters, outcome.epochs


def _values(points: Sequence[Point], samples: int) -> np.ndarray | None:
    """Returns the metric of each sample, (samples, candidates); None if one is not kept."""
    found = []
    for point in points:
        try:
            own = unpack(point.outcome.by_sample)
        except ValueError:
            return None
        if own is None or len(own) != samples:
            return None
        found.append(own)
    return np.stack(found, 1)


def _groups(described: Described, samples: int) -> np.ndarray | None:
    from edgecompress.converters.calibration import spread

    found = unpack_groups(described.groups)
    # Candidates are measured on all of them, or on some, evenly spaced.
    return None if found is None else spread(found, samples)


def _reason(
    described: Described,
    made: Sequence[Point],
    taken: Point,
    leader: Point,
    equal: int,
    compared: int,
    measured: str,
    error: float,
) -> str:
    if compared == 1:
        return f"Candidate {taken.number} is the only one that meets every limit."
    if equal == 1:
        text = (
            f"Candidate {leader.number} is better than the other {compared - 1} that meet every "
            f"limit, by more than can be chance on {measured}."
        )
    else:
        whole = next((p.outcome.macs for p in made if p.job.start == UNTOUCHED), 0)
        kept = f" ({taken.outcome.macs / whole:.1%})" if whole else ""
        text = (
            f"{equal} of {compared} candidates that meet every limit cannot be told apart on "
            f"{measured}. Of them, candidate {taken.number} is nearest to the untouched model: "
            f"it keeps most of its multiply-accumulates{kept}."
        )
    if taken is not leader:
        lost = abs((leader.outcome.metric or 0.0) - (taken.outcome.metric or 0.0))
        text += (
            f" Candidate {leader.number} has the best {described.metric} there, "
            f"{leader.outcome.metric:.4f}; the difference of {lost:.4f} has a standard error of "
            f"{error:.4f}."
        )
    return text


def _of(samples: int, groups: int, name: str) -> str:
    return f"{samples:,} {name} samples" + (f" of {groups} groups" if groups else "")


def notes(
    metric: str, choice: Choice | None, floor: bool, tested: Judged | None, untested: bool
) -> list[str]:
    """Returns what the user should know of the data that chose and judged.

    Args:
        metric: Its name.
        choice: What was taken; None for nothing.
        floor: Whether the metric has a limit.
        tested: The exported candidate on the test data; None without any.
        untested: Whether there are test data, on which the chosen one was not measured.
    """
    found = []
    if choice is not None and 0 < choice.groups < _FEW_GROUPS:
        found.append(
            f"The validation samples are of {choice.groups} groups"
            ", by which it is known but roughly how much groups differ: more of them tell more "
            "candidates apart."
            if choice.groups > 1
            else "The validation samples are of a single group: how much groups differ is not "
            "known. Raise --validation-split, or give --validation of several."
        )
    if tested is not None:
        return [*found, *_tested_notes(metric, tested)]
    if choice is None:
        return found
    if untested:
        found.append(
            f"Candidate {choice.candidate} was not measured on the test data, as it is not here: "
            "its metric is of the validation data that chose it."
        )
    if floor or choice.compared >= _MANY:
        of = _of(choice.samples, choice.groups, "validation")
        text = (
            f"The limit of {metric} was judged on the {of} that also chose"
            if floor
            else f"{metric} was measured on the {of} that also chose"
        )
        if choice.too_good is not None and len(choice.equal) > 1:
            text += (
                f": the best of {len(choice.equal)} equally good candidates is expected to look "
                f"{choice.too_good:.4f} better there than it is"
            )
        found.append(
            f"{text[0].upper()}{text[1:]}."
            + ("" if untested else " Give --test data, which neither train nor choose.")
        )
    return found


def _tested_notes(metric: str, tested: Judged) -> list[str]:
    of = _of(tested.samples, tested.groups, "test")
    if tested.metric is None:
        return [f"Candidate {tested.candidate} could not be measured on the {of}."]
    text = f"On the {of}, candidate {tested.candidate} has "
    text += f"{metric} {tested.metric:.4f}"
    if tested.untouched is not None:
        text += f", the untouched model {tested.untouched:.4f}"
    if tested.difference is not None and tested.error is not None:
        side = "better" if tested.difference >= 0 else "worse"
        text += f": {abs(tested.difference):.4f} {side}, standard error {tested.error:.4f}"
    found = [f"{text}.", *filter(None, [tested.refit])]
    if len(tested.looked) > 1:
        numbers = ", ".join(str(number) for number in tested.looked)
        found.append(
            f"Candidates {numbers} of this study were measured on test data: the best of several "
            "looks better there than it is, too."
        )
    return found
