"""Specialists: teachers for a few classes that are easily confused, beside a generalist.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015,
https://arxiv.org/abs/1503.02531, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError

# Steps of the iteration of `combined`, and of K-means.
_STEPS, _ROUNDS = 30, 100
_SMALLEST = 1e-7
# By how much probabilities may miss a sum of 1: those of half precision do.
_ROUNDING = 0.02


@dataclass(frozen=True, eq=False)
class Specialist:
    """A teacher that tells some classes apart, and from all others taken together.

    It is asked about the samples whose most probable class, by the generalist, is one of its own
    (section 5.5 with n = 1).

    Args:
        model: A trained Keras model with a softmax over its classes, in their order, and one last
            class for all others.
        classes: Its classes, as the student numbers them.
        oversampled: How many times as often as others its classes occurred in its training data;
            the logit of the last class is raised by the logarithm of it (section 5.3).

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> Specialist(model, classes=(3, 5, 8), oversampled=7.0)  # doctest: +SKIP
    """

    model: Any
    classes: tuple[int, ...]
    oversampled: float = 1.0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        import keras

        if not isinstance(self.model, keras.Model):
            raise ArgumentError("model", "be a Keras 3 model", self.model)
        classes = tuple(self.classes)
        whole = all(isinstance(c, (int, np.integer)) and not isinstance(c, bool) for c in classes)
        if not classes or not whole or len(set(classes)) < len(classes) or min(classes) < 0:
            raise ArgumentError("classes", "be different numbers of classes", self.classes)
        object.__setattr__(self, "classes", tuple(int(c) for c in classes))
        number = isinstance(self.oversampled, (int, float)) and np.isfinite(self.oversampled)
        if not number or isinstance(self.oversampled, bool) or not self.oversampled > 0:
            raise ArgumentError("oversampled", "be a number above 0", self.oversampled)


def combined(
    generalist: Any, specialists: Sequence[tuple[Sequence[int], Any]], steps: int = _STEPS
) -> Any:
    """Returns the distribution that agrees best with a generalist and its specialists.

    It is the q that minimizes `KL(g, q) + sum of KL(p_m, q) over the specialists m that are asked`
    (section 5.5, equation (5)), where q counts for a specialist with all classes but its own taken
    together. Each step shares p_m of those among them as the last q does and takes the mean: the EM
    algorithm for counts of which some are known only in sum (Dempster, Laird and Rubin, 1977),
    which lowers the sum in every step and needs no learning rate.

    Args:
        generalist: Probabilities, (samples, classes).
        specialists: Of each, the classes, and the probabilities of these and of all others,
            (samples, its classes + 1).
        steps: Number of steps.

    Returns:
        Logarithms of q, (samples, classes).
    """
    from keras import ops

    count = generalist.shape[-1]
    own, others, asked = ops.zeros_like(generalist), [], ops.ones_like(generalist[:, :1])
    best = ops.argmax(generalist, axis=-1)
    for classes, found in specialists:
        places = np.zeros((len(classes), count), "float32")
        places[range(len(classes)), list(classes)] = 1
        inside = places.sum(0)
        counts = ops.cast(ops.take(ops.convert_to_tensor(inside), best), generalist.dtype)[:, None]
        own = own + counts * ops.matmul(found[:, :-1], places)
        others.append((counts * found[:, -1:], ops.convert_to_tensor(1 - inside)))
        asked = asked + counts
    known = generalist + own
    q = generalist
    for _ in range(steps):
        total = known
        for share, outside in others:
            rest = q * outside
            total = total + share * rest / (ops.sum(rest, axis=-1, keepdims=True) + _SMALLEST)
        q = total / asked
    return ops.log(ops.maximum(q, _SMALLEST))


def confusable_classes(outputs: Any, groups: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Returns classes that a generalist predicts together: one specialist for each group.

    K-means on the columns of the covariance matrix of its predictions (section 5.4). No labels are
    needed.

    Args:
        outputs: Probabilities of the generalist, (samples, classes).
        groups: How many groups, at most as many as there are classes.
        seed: Of the first centres.

    Returns:
        The groups without those of a single class, which need no specialist, the largest first.

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> confusable_classes(teacher.predict(x), groups=4)  # doctest: +SKIP
        ((3, 5, 8), (4, 9), (1, 7))
    """
    found = np.asarray(outputs, np.float64)
    if found.ndim != 2 or len(found) < 2 or not np.isfinite(found).all():
        raise ArgumentError("outputs", "be finite, (samples, classes)", found.shape)
    if found.min() < 0 or np.abs(found.sum(1) - 1).max() > _ROUNDING:
        raise ArgumentError(
            "outputs", "be probabilities, which sum to 1",
            f"numbers from {found.min():.3g} to {found.max():.3g}",
            "Of logits: keras.ops.softmax(outputs).",
        )  # fmt: skip
    count = found.shape[1]
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= count:
        raise ArgumentError("groups", f"be a whole number, 1 to {count}", groups)
    columns = np.cov(found, rowvar=False).reshape(count, count)
    random = np.random.default_rng(seed)
    # k-means++ (Arthur and Vassilvitskii, 2007): far from those that are there already.
    centres = columns[[random.integers(count)]]
    while len(centres) < groups:
        far = np.square(columns[:, None] - centres[None]).sum(-1).min(1)
        total = far.sum()
        chosen = random.choice(count, p=far / total) if total else len(centres)
        centres = np.concatenate([centres, columns[[chosen]]])
    nearest = np.full(count, -1)
    for _ in range(_ROUNDS):
        before = nearest
        nearest = np.square(columns[:, None] - centres[None]).sum(-1).argmin(1)
        if (nearest == before).all():
            break
        for group in set(nearest.tolist()):
            centres[group] = columns[nearest == group].mean(0)
    lists = [np.flatnonzero(nearest == group).tolist() for group in range(groups)]
    lists = [classes for classes in lists if len(classes) > 1]
    return tuple(tuple(classes) for classes in sorted(lists, key=lambda c: (-len(c), c)))


def specialist_samples(
    labels: Any, classes: Sequence[int], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns what a specialist is trained on: one half its classes, one half all others.

    Section 5.3. All samples of its classes, and as many of the others, drawn at random.

    Args:
        labels: Numbers of classes, (samples,) or (samples, 1).
        classes: The specialist's.
        seed: Of the drawing.

    Returns:
        Positions of the samples, in random order; their labels, 0 to `len(classes)`, the last for
        all other classes; how many times as often as others its classes occur.

    Raises:
        ArgumentError: the classes do not occur, or are all there are; or the labels are no numbers
            of classes.

    Example:
        >>> specialist_samples([0, 1, 2, 2, 2, 2], (0, 1))[2]
        2.0
    """
    known = np.asarray(labels)
    if known.shape[1:] not in ((), (1,)) or not known.ndim or known.dtype.kind not in "biuf":
        raise ArgumentError(
            "labels", "be numbers of classes, (samples,)", f"{known.dtype} {known.shape}",
            "Of one-hot labels: np.argmax(labels, axis=-1).",
        )  # fmt: skip
    known = known.reshape(-1)
    own = np.flatnonzero(np.isin(known, list(classes)))
    rest = np.setdiff1d(np.arange(len(known)), own)
    if not len(own) or not len(rest):
        raise ArgumentError("classes", "be some of the classes that occur", tuple(classes))
    random = np.random.default_rng(seed)
    drawn = random.permutation(rest)[: len(own)]
    chosen = random.permutation(np.concatenate([own, drawn]))
    numbers = {int(value): place for place, value in enumerate(classes)}
    found = np.array([numbers.get(int(value), len(numbers)) for value in known[chosen]])
    return chosen, found, len(rest) / len(drawn)
