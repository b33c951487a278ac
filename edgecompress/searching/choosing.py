"""Which candidates cannot be told apart from the best one, and how much too good it looks.

Pure numpy. All candidates are measured on the same samples, so that the difference of two is a
mean over samples, `d_s`, whose standard error leaves out what is hard for both. It has two
estimates:

    by sample   sqrt(sum d_s^2) / n, McNemar's, which holds if the samples are independent
    by group    sqrt(g / (g - 1) sum (D_k - D)^2) / n, with D_k the sum of `d_s` over group k and
                D their mean: robust to samples of a person or a device that are alike

McNemar, "Note on the sampling error of the difference between correlated proportions" (1947);
Liang and Zeger, "Longitudinal data analysis using generalized linear models" (1986), equation 7.
The larger one counts. With few groups the second is rough, and by chance often far too small: there
it is no less than what all candidates have on average (their root mean square), as in comparisons
that take the variance to be common to all.

The best is compared with all others at a level that holds for all comparisons together
(Bonferroni), which makes the result a confidence set of the best: Hsu, "Simultaneous confidence
intervals for all distances from the best" (1981). Taking a simpler candidate within the error of
the best is the rule of Breiman, Friedman, Olshen and Stone, "Classification and regression trees"
(1984), section 3.4.3, with 1 standard error in place of the quantile.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# Chance, at most, that the truly best candidate is not among the equal ones.
_LEVEL = 0.05
_DRAWS = 4000
# Below that, what is known of a candidate's differences between groups is pooled.
_FEW_GROUPS = 10


@dataclass(frozen=True, eq=False)
class Comparison:
    """Candidates compared with the one that is best on some samples.

    Attributes:
        leader: Position of the best.
        differences: How much better it is than each.
        errors: Standard error of each difference.
        quantile: Standard errors from which a difference counts.
    """

    leader: int
    differences: np.ndarray
    errors: np.ndarray
    quantile: float

    @property
    def equal(self) -> np.ndarray:
        """Whether each cannot be told apart from the best; the best itself cannot."""
        return self.within(self.quantile)

    def within(self, errors: float) -> np.ndarray:
        """Whether each is at most so many standard errors worse than the best."""
        return np.asarray(self.differences <= errors * self.errors)


def compare(values: np.ndarray, groups: np.ndarray | None = None) -> Comparison:
    """Compares candidates with the best of them.

    Args:
        values: (samples, candidates), more is better.
        groups: (samples,) group of each sample, whole numbers. Defaults to None: they are
            independent. With a single group it makes no difference.

    Example:
        >>> values = np.array([[1.0, 1.0, 0.0]] * 30 + [[1.0, 0.0, 0.0]] * 2)
        >>> compare(values).equal.tolist()
        [True, True, False]
    """
    values = np.asarray(values, np.float64)
    means = values.mean(0)
    leader = int(means.argmax())
    others = np.delete(np.arange(values.shape[1]), leader)
    errors = np.zeros(values.shape[1])
    errors[others] = standard_errors(values[:, leader : leader + 1] - values[:, others], groups)
    return Comparison(
        leader,
        means[leader] - means,
        errors,
        NormalDist().inv_cdf(1 - _LEVEL / max(1, len(others))),
    )


def standard_errors(differences: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Returns the standard error of the mean of each column, as above.

    Args:
        differences: (samples, columns).
        groups: As in `compare`.

    Example:
        >>> standard_errors(np.array([[1.0], [0.0], [0.0], [-1.0]])).tolist()
        [0.3535533905932738]
        >>> standard_errors(np.array([[1.0], [1.0], [0.0], [0.0]]), np.array([0, 0, 1, 1])).tolist()
        [0.5]
    """
    differences = np.asarray(differences, np.float64)
    found = np.sqrt((differences**2).sum(0)) / len(differences)
    sums = _sums(differences - differences.mean(0), groups)
    if sums is None or not differences.shape[1]:
        return found
    squares = (sums**2).sum(0)
    if len(sums) < _FEW_GROUPS:
        squares = np.maximum(squares, squares.mean())
    return np.asarray(np.maximum(found, np.sqrt(squares)))


def too_good(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Returns by how much the best of equally good candidates is expected to look too good.

    E max_i e_i for normal errors of the means with the covariance of the candidates on the samples:
    candidates that err together win less by luck. The larger of that by sample and by group.

    Args:
        values: (samples, candidates), more is better; none is better than another.
        groups: As in `compare`.

    Example:
        >>> values = np.random.default_rng(0).integers(0, 2, (400, 100))
        >>> round(too_good(values), 2)  # 2.51 standard errors of 0.025
        0.06
    """
    values = np.asarray(values, np.float64)
    if values.shape[1] < 2:
        return 0.0
    apart = values - values.mean(0)
    # What all have in common makes none the best.
    apart -= apart.mean(1, keepdims=True)
    rows = [apart / len(values)]
    sums = _sums(apart, groups)
    if sums is not None:
        rows.append(sums)
    return max(_expected_maximum(part.T @ part) for part in rows)


def _sums(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray | None:
    """Returns each group's part of the mean, (groups, columns), scaled so that squares add up.

    None for a single group, which tells nothing about others.
    """
    if groups is None:
        return None
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, place.reshape(-1), values)
    return np.asarray(sums * np.sqrt(len(names) / (len(names) - 1)) / len(values))


def _expected_maximum(covariance: np.ndarray) -> float:
    """Returns E max of normal deviates with mean 0."""
    sizes, directions = np.linalg.eigh(covariance)
    root = directions * np.sqrt(np.maximum(sizes, 0.0))
    draws = np.random.default_rng(0).standard_normal((_DRAWS, len(root))) @ root.T
    return float(draws.max(1).mean())
