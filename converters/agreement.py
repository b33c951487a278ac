"""How well outputs agree: each output by its kind, each of its columns on its own scale.

Pure numpy. A column is one index of an output's last axis: one target of a regression, one class,
one channel of an image. An average over columns of different magnitude says nothing about the small
ones, so each has its own coefficient of determination,

    R2_c = 1 - sum (y_c - f_c)^2 / sum (y_c - mean y_c)^2,

with y from the reference and f from the file: 1 if they are equal, 0 if the file is no better than
a constant. It corresponds to a signal-to-noise ratio of 10 log10(1 / (1 - R2_c)) dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import Verdict

Kind = Literal["auto", "classes", "scores", "binary", "labels", "values"]

# A sample of a model without classes agrees when its root-mean-square error is at most this share
# of the reference's range: rounding stays far below, a broken layer goes far beyond.
TOLERANCE = 0.05
# A classifier that agrees with its own reference on fewer samples is broken, not merely rounded.
MIN_AGREEMENT = 0.9
# The floor of each column; docs/reading_the_report.md states what sound files reach.
MIN_R2 = 0.9
# The floor for class scores: where they affect the prediction, agreement is the finer measure.
MIN_R2_SCORES = 0.5
# Scores of unknown use whose columns are all this exact have no wrong predictions, only ties.
TIES_R2 = 0.99
# An input column counts as erased if even exact rounding to the input's scale stays below this.
ERASED_R2 = 0.5
# More columns are a vector or a picture, not as many quantities: of these, columns that vary by
# less than a step are named, and count only where they are the most.
_VECTOR = 32
# Variation below this share of a column's values is that of float32 arithmetic.
_NOISE = 1e-6
# Steps by which rounding may move a constant.
_CONSTANT_STEPS = 1.5
# Fewer samples say nothing about the spread of a ratio, or about an output that does not vary.
_FEWEST, _FEW = 4, 8
_DRAWS = 500


@dataclass(frozen=True)
class Meaning:
    """How an output is interpreted.

    Attributes:
        kind: See `verify`; `auto` to infer it.
        cut: For `binary` and `labels`: the threshold from which it is positive.
    """

    kind: Kind = "auto"
    cut: float = 0.5


def meaning_of(loss: str | None) -> Meaning:
    """Returns how to interpret an output that was trained with a loss in `tasks.LOSSES`.

    Args:
        loss: `classes` or the metric of a loss on values; others, and None, are not conclusive
            here.
    """
    kinds: dict[str | None, Kind] = {"classes": "classes", "mse": "values", "mae": "values"}
    return Meaning(kinds.get(loss, "auto"))


@dataclass(frozen=True)
class OutputAgreement:
    """How well one output of a file agrees with the reference.

    Attributes:
        name: The output's name, or its position.
        kind: `classes`, `scores`, `binary`, `labels` or `values`.
        samples: Number of samples.
        agreement: Share of samples that agree, as defined in `verify`, 0 to 1.
        sqnr_db: 10 log10(sum (y - mean)^2 / sum (y - f)^2) over all columns, in dB.
        r2: Lowest R2 of a column that was judged; None if none was.
        r2_high: Upper end of its 95 % interval, bootstrapped over the samples.
        column: That column; None if none was judged.
        columns: Number of columns.
        floor: The floor of R2 that the columns were judged by.
        failing: Columns whose whole interval is below the floor.
        erased: Columns that vary so little that even exact rounding to the output's scale leaves
            them below the floor.
        constant: Number of columns in which the reference does not vary.
        decided: Whether the samples suffice to judge the columns.
    """

    name: str
    kind: str
    samples: int
    agreement: float
    sqnr_db: float
    r2: float | None
    r2_high: float | None
    column: int | None
    columns: int
    floor: float
    failing: tuple[int, ...] = ()
    erased: tuple[int, ...] = ()
    constant: int = 0
    decided: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for reports."""
        return {
            "name": self.name,
            "kind": self.kind,
            "agreement": self.agreement,
            "sqnr_db": self.sqnr_db,
            "r2": self.r2,
            "column": self.column,
            "columns": self.columns,
            "columns_failing": list(self.failing),
            "columns_erased": list(self.erased),
            "columns_constant": self.constant,
        }


@dataclass(frozen=True)
class InputLoss:
    """What the scale of an input does to its columns.

    Attributes:
        name: The input's name, or its position.
        columns: Number of columns: indices of its last axis.
        erased: Columns that vary in the samples, but hardly at all in the file's codes.
        clipped: Share of the values outside the input's range, 0 to 1.
        step: The input's scale.
    """

    name: str
    columns: int
    erased: tuple[int, ...]
    clipped: float
    step: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for reports."""
        return {
            "name": self.name,
            "columns": self.columns,
            "columns_erased": list(self.erased),
            "clipped": self.clipped,
        }


@dataclass(frozen=True)
class _Columns:
    """Sums over the samples of each column.

    Attributes:
        spread: Squares of the reference around its mean, (samples, columns).
        error: Squares of the error, (samples, columns).
        ideal: R2 of exact rounding to the output's step, (columns,); 1 without a step.
        varies: Whether the reference varies, (columns,).
        moved: Whether a constant is a different constant in the file, (columns,).
    """

    spread: np.ndarray
    error: np.ndarray
    ideal: np.ndarray
    varies: np.ndarray
    moved: np.ndarray = field(repr=False)

    @property
    def r2(self) -> np.ndarray:
        """R2 of each column; -inf for a constant that moved, 1 for one that stayed."""
        total = self.spread.sum(0)
        ratio = self.error.sum(0) / np.where(self.varies, total, 1.0)
        return np.where(self.varies, 1 - ratio, np.where(self.moved, -np.inf, 1.0))

    def high(self, columns: np.ndarray) -> np.ndarray:
        """Returns the upper end of the 95 % interval of R2 of some columns."""
        samples = len(self.spread)
        if samples < _FEWEST:
            return np.ones(len(columns))
        draws = np.random.default_rng(0).multinomial(
            samples, np.full(samples, 1 / samples), size=_DRAWS
        )
        spread, error = draws @ self.spread[:, columns], draws @ self.error[:, columns]
        ratios = 1 - error / np.where(spread > 0, spread, np.inf)
        high = np.maximum(np.quantile(ratios, 0.975, axis=0), self.r2[columns])
        return np.where(self.moved[columns], -np.inf, high)


def by_columns(values: np.ndarray) -> np.ndarray:
    """Returns values (samples, ...) as (samples, positions, columns), columns the last axis."""
    total = len(values)
    columns = values.shape[-1] if values.ndim > 1 else 1
    return np.asarray(values, np.float64).reshape(total, -1, max(columns, 1))


def _sums(got: np.ndarray, expected: np.ndarray, step: float | None) -> _Columns:
    mean = expected.mean((0, 1))
    spread = ((expected - mean) ** 2).sum(1)
    error = ((got - expected) ** 2).sum(1)
    count = expected.shape[0] * expected.shape[1]
    largest = np.abs(expected).max((0, 1), initial=0.0)
    deviation = np.sqrt(spread.sum(0) / count)
    varies = deviation > _NOISE * largest
    ideal = np.ones(expected.shape[2])
    if step:
        rounded = np.rint(expected / step) * step
        lost = ((rounded - expected) ** 2).sum((0, 1))
        ideal = np.where(varies, 1 - lost / np.where(varies, spread.sum(0), 1.0), 1.0)
    off = np.sqrt(error.sum(0) / count)
    allowed = np.maximum(TOLERANCE * largest, _CONSTANT_STEPS * (step or 0.0))
    return _Columns(spread, error, ideal, varies, ~varies & (off > allowed + 1e-12))


def compare(
    name: str,
    kind: str,
    got: np.ndarray,
    expected: np.ndarray,
    step: float | None = None,
    cut: float = 0.5,
    tolerance: float = TOLERANCE,
    prescribed: bool = False,
    min_r2: float = MIN_R2,
) -> OutputAgreement:
    """Compares one output with the reference's.

    Args:
        name: The output's name.
        kind: `classes`, `scores`, `binary`, `labels` or `values`.
        got: The file's output, real numbers (samples, ...).
        expected: The reference's output, the same shape.
        step: The output's scale; None for a float output.
        cut: For `binary` and `labels`: the threshold from which it is positive.
        tolerance: As in `verify`.
        prescribed: Whether the operator prescribes the scale (softmax, sigmoid): a probability that
            stays below one step is then rounded as usual, and not judged by its variation.
        min_r2: Floor of the columns of `values` and `scores`; 0 for no floor of any kind.

    Raises:
        ArgumentError: the kind is unknown.
    """
    got, expected = by_columns(got), by_columns(expected)
    sums = _sums(got, expected, step)
    floor = min_r2 if kind in ("values", "scores") else min(MIN_R2_SCORES, min_r2)
    floor = floor if floor > 0 else -np.inf
    unresolved = sums.varies & (sums.ideal < floor)
    resolved = sums.varies & ~unresolved
    judged = sums.varies | sums.moved
    vector = expected.shape[2] > _VECTOR and resolved.sum() >= unresolved.sum()
    if prescribed or vector:
        judged = judged & ~unresolved
    positions = np.flatnonzero(judged)
    r2 = sums.r2
    low = positions[r2[positions] < floor]
    high = sums.high(low)
    worst = int(positions[np.argmin(r2[positions])]) if len(positions) else None
    total_spread, total_error = float(sums.spread.sum()), float(sums.error.sum())
    samples = len(got)
    decided = bool(len(positions)) or (samples >= _FEW and not sums.varies.any())
    return OutputAgreement(
        name=name,
        kind=kind,
        samples=samples,
        agreement=_agreement(kind, got, expected, cut, tolerance),
        sqnr_db=sqnr_db(total_spread, total_error),
        r2=None if worst is None else float(r2[worst]),
        r2_high=None if worst is None else float(max(r2[worst], *sums.high(np.array([worst])))),
        column=worst,
        columns=expected.shape[2],
        floor=floor,
        failing=tuple(int(c) for c in low[high < floor]),
        erased=tuple(int(c) for c in np.flatnonzero(unresolved & judged)),
        constant=int((~sums.varies).sum()),
        decided=decided,
    )


def _agreement(
    kind: str, got: np.ndarray, expected: np.ndarray, cut: float, tolerance: float
) -> float:
    if kind in ("classes", "scores"):
        return float(np.mean(got.argmax(2) == expected.argmax(2)))
    if kind in ("binary", "labels"):
        return float(np.mean((got >= cut) == (expected >= cut)))
    if kind != "values":
        raise ArgumentError("kind", "be auto, classes, scores, binary, labels or values", kind)
    # A reference with a single value spans no range; its magnitude is used instead.
    span = float(np.ptp(expected)) or float(np.abs(expected).max(initial=0.0))
    errors = np.sqrt(np.mean((got - expected) ** 2, (1, 2)))
    return float(np.mean(errors <= tolerance * span))


def input_loss(
    name: str, codes: np.ndarray, values: np.ndarray, step: float, zero_point: int = 0
) -> InputLoss:
    """Returns the effect of an input's scale on the samples.

    Images are many values: their sums are taken sample by sample, so that the intermediate results
    stay small.

    Args:
        name: The input's name.
        codes: The samples as the file reads them: integers (samples, ...).
        values: The samples.
        step: The input's scale.
        zero_point: The code of zero.
    """
    columns = values.shape[-1] if values.ndim > 1 else 1
    given = np.asarray(values).reshape(len(values), -1, max(columns, 1))
    read = np.asarray(codes).reshape(given.shape)
    mean = given.mean((0, 1), dtype=np.float64)
    spread, lost, largest = (np.zeros(given.shape[2]) for _ in range(3))
    clipped = 0
    for real, stored in zip(given, read, strict=True):
        exact = real.astype(np.float64)
        largest = np.maximum(largest, np.abs(exact).max(0, initial=0.0))
        spread += ((exact - mean) ** 2).sum(0)
        lost += ((np.rint(exact / step) * step - exact) ** 2).sum(0)
        back = (stored.astype(np.float64) - zero_point) * step
        clipped += int(np.count_nonzero(np.abs(back - exact) > step))
    varies = np.sqrt(spread / (given.shape[0] * given.shape[1])) > _NOISE * largest
    erased = np.flatnonzero(varies & (1 - lost / np.where(varies, spread, 1.0) < ERASED_R2))
    share = clipped / given.size
    return InputLoss(name, given.shape[2], tuple(int(c) for c in erased), share, step)


def likely_at_most(share: float, samples: int) -> float:
    """Returns the upper end of the 95 % interval of a share observed in a sample (Wilson, 1927)."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return (share + z**2 / (2 * samples) + spread) / (1 + z**2 / samples)


def sqnr_db(signal: float, noise: float) -> float:
    """Returns 10 log10(signal / noise) for two sums of squares; infinite without noise.

    Example:
        >>> sqnr_db(100.0, 1.0)
        20.0
    """
    if noise == 0:
        return math.inf
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise)


def judge_output(output: OutputAgreement, floor: float | None) -> tuple[Verdict, str]:
    """Returns the verdict on an output and, unless it is a pass, the reason in one sentence.

    Args:
        output: The comparison.
        floor: The user's floor for the agreement; None for the default one, which applies to all
            kinds but `values` and fails only what this many samples can prove.
    """
    found: list[tuple[Verdict, str]] = []
    ties = output.kind == "scores" and output.r2 is not None and output.r2 >= TIES_R2
    default = None if output.kind == "values" or ties else MIN_AGREEMENT
    limit = default if floor is None else floor
    if limit is not None and output.agreement < limit:
        high = likely_at_most(output.agreement, output.samples) if floor is None else 0.0
        verdict: Verdict = "fail" if high < limit else "uncertain"
        text = f"{output.agreement:.1%} of {output.samples} samples agree, the floor is {limit:.1%}"
        if verdict == "uncertain":
            text += "; too few samples to decide: give more, or set --min-agreement"
        found.append((verdict, text))
    if output.failing:
        named = listed(output.failing)
        text = f"R2 of column {named} is below {output.floor:g} (lowest {_r2(output)})"
        erased = [c for c in output.failing if c in output.erased]
        if erased:
            text += (
                f"; column {listed(erased)} varies by less than the output's scale can resolve "
                "next to the larger columns. Workarounds: scale the targets to similar ranges for "
                "training, give each scale a separate output, or ship the float32 file"
            )
        found.append(("fail", text))
    elif output.r2 is not None and output.r2 < output.floor and output.columns <= _VECTOR:
        # Some of a vector's many columns hardly ever vary; single samples decide nothing there.
        text = (
            f"R2 of column {output.column} is {_r2(output)}, below {output.floor:g}, but "
            f"{output.samples} samples cannot decide: give more, or set --min-r2"
        )
        found.append(("uncertain", text))
    if not output.decided and output.floor > 0:
        text = (
            f"in {output.samples} samples it varies by less than a step of its scale, so it is "
            "unknown how well it agrees: give more varied samples"
        )
        found.append(("uncertain", text))
    if not found:
        return "pass", ""
    verdict = "fail" if any(v == "fail" for v, _ in found) else "uncertain"
    reasons = "; ".join(text for v, text in found if v == verdict)
    return verdict, f"Output {output.name} ({output.kind}): {reasons}."


def _r2(output: OutputAgreement) -> str:
    if output.r2 is None or math.isinf(output.r2):
        return "none: a constant became a different one"
    return f"{output.r2:.3f}"


def listed(columns: Sequence[int]) -> str:
    """Returns columns in words: the first five, and how many more.

    Example:
        >>> listed([1, 2, 3, 4, 5, 6, 7])
        '1, 2, 3, 4, 5 and 2 more'
    """
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return ", ".join(map(str, columns[:5])) + more
