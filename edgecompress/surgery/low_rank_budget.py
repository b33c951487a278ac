"""`low_rank`: factorizes layers until the whole model meets a budget."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from edgecompress.core.errors import ArgumentError, EdgeCompressError, UnknownNameError
from edgecompress.core.keras_graph import LayerCall
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.costs.budget import Budget, Limit, check_budget
from edgecompress.surgery.factors import FACTORIZATIONS
from edgecompress.surgery.factors.base import Factorization, Part
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.layer_parts import NO_DEPTHWISE, depthwise_exists, given_up, part_macs
from edgecompress.surgery.low_rank import (
    BEST,
    Factors,
    candidates,
    factors_of,
    methods,
    replaced,
    times,
)

# Shares of a kernel's squares that may stay: fewer where each takes a conversion to be measured.
_LEVELS = np.concatenate([[0.99, 0.98], np.linspace(0.97, 0, 48)])
# What the lowest ranks keep at least.
_LEAST = 0.01
_FEW_LEVELS = np.array([0.98, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0])


@dataclass(frozen=True)
class _Choice:
    """One way to factorize a layer.

    Attributes:
        path: The layer.
        method: How.
        ranks: The ranks.
        saved: What it saves, as a share of the model's limited costs, summed over them.
        damage: -log of the share of the kernel's squares that stays, at most.
    """

    path: str
    method: Factorization
    ranks: tuple[int, ...]
    saved: float
    damage: float


def low_rank(
    model: keras.Model, until: Budget, method: str = BEST, layers: str = ".*"
) -> keras.Model:
    """Returns a plain model whose layers are factorized until the whole of it meets a budget.

    Each kernel becomes a product of two or three smaller ones, as by the rewrite `low-rank`. Ranks
    fall where that costs least. With E the share of a kernel's squares that stays, the product of E
    over the layers is to be large (Zhang, Zou, He and Sun, Accelerating Very Deep Convolutional
    Networks for Classification and Detection, 2016, https://arxiv.org/abs/1505.06798, section 2.4,
    equation (14)): of all layers, the next step is the one with the least damage, -log E, for what
    it saves of the limited costs. The steps of a layer are those of its convex hull, on which
    damage for savings rises. What is left is built and measured, and the fewest steps are taken
    with which it meets the budget.

    A layer is factorized only if that takes fewer multiply-accumulates, and with `target` in the
    budget, if it is predicted to be faster there. The outputs change: train the model further.

    Args:
        model: A built Sequential or Functional model; it is not changed. What training has zeroed
            is removed first, as by `finalize`.
        until: The budget, `Budget(macs=0.5)`. Shares are of the finalized model.
        method: A name in `FACTORIZATIONS`, or `"best"` of those with a closed form.
        layers: Regular expression: the layers whose whole name it matches.

    Returns:
        The model. The record's step `low-rank` says what each layer became, and the costs before
        and after; its notes name the layers that stay, with the reason.

    Raises:
        ArgumentError: no choice of ranks meets the budget, and by how much not; or an argument
            breaks its rule.
        UnknownNameError: there is no such method.
        UnsupportedModelError: the model is subclassed or not built.
        NotFiniteError: a weight is NaN or infinite.

    Example:
        >>> small = low_rank(model, until=Budget(macs=0.5))  # doctest: +SKIP
        >>> small.compile("adam", loss)  # doctest: +SKIP
        >>> small.fit(x, y, epochs=2)  # doctest: +SKIP
    """
    budget = check_budget(until)
    if method != BEST and method not in FACTORIZATIONS:
        raise UnknownNameError("method", method, [BEST, *FACTORIZATIONS])
    try:
        re.compile(layers)
    except (re.error, TypeError) as error:
        raise ArgumentError("layers", "be a regular expression", layers) from error
    plain = finalize(model)
    plan = _Plan(plain, budget, method, layers)
    count, costs = plan.fewest()
    factors = plan.factors(count)
    result = plan.model(factors) if factors else plain
    step = {
        "technique": "low-rank",
        "until": budget.to_dict(),
        "method": method,
        "layers": layers,
        "factorized": {path: found.details() for path, found in factors.items()},
        "costs": {name: [plan.whole[name], cost] for name, cost in costs.items()},
    }
    record = record_of(plain)
    if factors:
        # They describe other activations.
        record = dataclasses.replace(record, ranges={})
    notes = [*plan.notes]
    for path in factors:
        notes += [f"low-rank: {path}: {text}." for text in given_up(plan.chosen[path][0])]
    attach_record(result, record.merged(CompressionRecord(steps=(step,), notes=tuple(notes))))
    return result


class _Plan:
    """The steps from the whole model to the lowest ranks, and what the model takes on the way."""

    def __init__(self, model: Any, budget: Budget, method: str, layers: str) -> None:
        self._plain, self._budget, self._method = model, budget, method
        self.chosen, self.notes = candidates(model, layers)
        self.whole = self._measure(model)
        self._parts = {
            limit.name: limit.cost.by_layer(model, budget.target) for limit in budget.limits
        }
        steps: list[tuple[float, _Choice]] = []
        for path, (layer, call) in self.chosen.items():
            found = self._choices(path, layer, call)
            if isinstance(found, str):
                self.notes.append(f"low-rank leaves {path}: {found}.")
            else:
                steps += _hull(found)
        self._steps = [choice for _, choice in sorted(steps, key=lambda step: step[0])]
        self._known: dict[_Choice, Factors] = {}

    def fewest(self) -> tuple[int, dict[str, float]]:
        """Returns the fewest steps that meet the budget, and what the model takes after them.

        Raises:
            ArgumentError: not even all of them do.
        """
        low, high, costs = 0, len(self._steps), self.whole
        if not self._budget.exceeded(costs, self.whole):
            return 0, costs
        costs = self._after(high)
        missed = self._budget.exceeded(costs, self.whole)
        if missed:
            raise ArgumentError(
                "until", "be within reach", self._budget,
                f"At the lowest ranks, the model takes {'; '.join(missed)}. "
                + (" ".join(self.notes) or "Raise the limit, or let more layers be factorized."),
            )  # fmt: skip
        while low + 1 < high:
            middle = (low + high) // 2
            found = self._after(middle)
            if self._budget.exceeded(found, self.whole):
                low = middle
            else:
                high, costs = middle, found
        return high, costs

    def factors(self, count: int) -> dict[str, Factors]:
        """Returns what takes the place of each layer after some steps."""
        last = {choice.path: choice for choice in self._steps[:count]}
        return {path: self._made(last[path]) for path in self.chosen if path in last}

    def model(self, factors: Mapping[str, Factors]) -> Any:
        """Returns the model with factors in place of layers."""
        return replaced(self._plain, self.chosen, factors)

    def _after(self, count: int) -> dict[str, float]:
        factors = self.factors(count)
        return self._measure(self.model(factors) if factors else self._plain)

    def _made(self, choice: _Choice) -> Factors:
        if choice not in self._known:
            layer, call = self.chosen[choice.path]
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            before = part_macs(_as_it_is(kernel.shape), call)
            after = part_macs(choice.method.parts(kernel.shape, choice.ranks), call)
            made = factors_of(choice.method, kernel, choice.ranks, (before, after))
            self._known[choice] = made
        return self._known[choice]

    def _measure(self, model: Any) -> dict[str, float]:
        budget = self._budget
        return {limit.name: limit.cost.measure(model, budget.target) for limit in budget.limits}

    def _choices(self, path: str, layer: Any, call: LayerCall) -> list[_Choice] | str:
        """Returns the ways to factorize a layer that make it cheaper, or why there are none."""
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        target = self._budget.target
        before = part_macs(_as_it_is(kernel.shape), call)
        try:
            time = None if target is None else times(layer, call, kernel, target)
            found, least = [], np.inf
            for method in methods(self._method, kernel.shape):
                if method.depthwise and not depthwise_exists(layer):
                    return NO_DEPTHWISE
                ranks_for, seen = method.ranks(kernel), set()
                for energy in _LEVELS if time is None else _FEW_LEVELS:
                    ranks = ranks_for(float(energy))
                    if ranks in seen:
                        continue
                    seen.add(ranks)
                    macs = part_macs(method.parts(kernel.shape, ranks), call) / before
                    taken = macs if time is None else time(method, ranks)
                    least = min(least, taken)
                    if taken >= 1:
                        continue
                    saved = self._saved(path, layer, method.parts(kernel.shape, ranks), macs, taken)
                    damage = -math.log(max(float(energy), _LEAST))
                    found.append(_Choice(path, method, ranks, saved, damage))
        except EdgeCompressError as error:
            return f"its time on {target} is not known ({str(error).rstrip('.')})"
        if not found:
            what = "multiply-accumulates" if target is None else f"time on {target}"
            return f"at its lowest ranks it takes {least:.2f} times its {what}"
        found = [choice for choice in found if choice.saved > 0]
        return found or "factorizing it saves nothing that is limited"

    def _saved(
        self, path: str, layer: Any, parts: Sequence[Part], macs: float, taken: float
    ) -> float:
        """Returns what parts save of the limited costs, as shares of the model's, summed."""
        known: Mapping[str, float] = {"macs": macs, "latency": taken}
        total = 0.0
        for limit in self._budget.limits:
            left = known.get(limit.name)
            if left is None:
                left = _left(limit, layer, parts, macs)
            part = self._parts[limit.name].get(path, 0.0)
            total += (1 - left) * part / max(1e-12, self.whole[limit.name])
        return total


def _left(limit: Limit, layer: Any, parts: Sequence[Part], macs: float) -> float:
    """Returns an estimate of the share of a layer's cost that parts take, by their weights."""
    bias = {} if layer.bias is None else {"bias": _shaped(layer.bias.shape)}
    before = {"kernel": _shaped(layer.kernel.shape), **bias}
    after = {f"kernel_{i}": _shaped(part.shape) for i, part in enumerate(parts)} | bias
    left = limit.cost.left_over(before, after, 1.0)
    # Its outputs stay as they are; between the parts there is less, in proportion to the ranks.
    return macs if left == 1 else left


def _shaped(shape: Sequence[int]) -> np.ndarray:
    """Returns an array of a shape that takes no memory."""
    return np.broadcast_to(np.float32(0), tuple(shape))


def _as_it_is(shape: tuple[int, ...]) -> tuple[Part, ...]:
    return (Part(shape, tuple(range(len(shape) - 2))),)


def _hull(choices: Sequence[_Choice]) -> list[tuple[float, _Choice]]:
    """Returns the steps of the lower convex hull of damage over savings, each with its slope.

    It begins where nothing is saved and nothing damaged; slopes rise.
    """
    points: list[tuple[float, float, _Choice | None]] = [(0.0, 0.0, None)]
    ordered = sorted(choices, key=lambda choice: (choice.saved, choice.damage))
    slope: Callable[[Any, Any], float] = lambda a, b: (b[1] - a[1]) / (b[0] - a[0])  # noqa: E731
    for choice in ordered:
        point = (choice.saved, choice.damage, choice)
        if point[0] <= points[-1][0]:
            continue
        while len(points) > 1 and slope(points[-1], point) <= slope(points[-2], points[-1]):
            points.pop()
        points.append(point)
    return [
        (slope(before, point), point[2])
        for before, point in zip(points, points[1:], strict=False)
        if point[2] is not None
    ]
