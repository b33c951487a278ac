"""Budget search: how many channel groups have to go until a model would meet its budget."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.callbacks.channel_targets import ChannelTargets
from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.importance import FilterImportance, Importance
from edgecompress.core.per_layer import first_matches
from edgecompress.costs import COSTS
from edgecompress.costs.budget import Budget, Limit
from edgecompress.surgery.channel_groups import ChannelGroups
from edgecompress.surgery.rebuild import plan_removal, rebuild
from edgecompress.surgery.rules import producers_of
from edgecompress.surgery.zero_filters import zero_filters

# Candidates that are built, where only that tells what they take.
_BUILDS = 8
# If what is left still exceeds a limit, each further try saves this share of it more.
_TRIES, _LOWER = 10, 0.02


@dataclass(frozen=True)
class Cut:
    """Groups in the order in which they go, and where the budget cuts.

    Attributes:
        groups: The channel groups of the model.
        importance: Of each group, (groups,).
        savings: What each saves, as a share of the limited costs, (groups,).
        order: Positions of the groups that may go, the first first.
        chosen: Those that go.
    """

    groups: ChannelGroups
    importance: np.ndarray
    savings: np.ndarray
    order: Sequence[int]
    chosen: Sequence[int]


class BudgetSearch:
    """Finds which channel groups have to go for a budget.

    Args:
        model: The model as it is at the start; zero filters in it count as whole ones.
        budget: The limits.
        targets: The layers whose filters may be removed.
        most: As in `ChannelGroups.order`. Defaults to none.
        multiple: Widths that are kept are multiples of it. Defaults to the budget's.
    """

    def __init__(
        self,
        model: Any,
        budget: Budget,
        targets: ChannelTargets,
        most: Mapping[str, float] | None = None,
        multiple: int | None = None,
    ) -> None:
        """Measures the model, and the thinnest one that could be left of it.

        Raises:
            ArgumentError: even the thinnest one exceeds the budget; the text says by how much. Or
                `most` names no layer with filters, or a cost is not known.
        """
        self.model, self.budget = model, budget
        self.layers = layers = {target.path: target.filters for target in targets.layers}
        self.most = dict(most or {})
        # One for a layer that has to stay anyway is no mistake.
        first_matches([*producers_of(model)], self.most, "a layer with filters")
        self.multiple = budget.multiple if multiple is None else multiple
        self.costs: dict[str, float] = {}
        self._power = targets.criterion.loss_power
        self._seen: dict[tuple[str, int], FilterImportance] = {}
        self._rank: float | None = None
        self._stuck = {path: np.zeros(count, bool) for path, count in layers.items()}
        self.whole = self.measure(model)
        self._parts = {
            limit.name: limit.cost.by_layer(model, budget.target) for limit in budget.limits
        }
        groups = ChannelGroups(model, layers)
        order = self._ordered(groups, np.ones(len(groups.groups)))
        thinnest = self._rounded(groups, order)
        self._thinnest = self.measure(rebuild(model, groups.without(thinnest)))
        missed = budget.exceeded(self._thinnest, self.whole)
        if missed:
            hint = (
                f"With as few channels as each layer may keep, the model takes {'; '.join(missed)}."
                " Raise the limit, or let more layers be pruned."
            )
            raise ArgumentError(
                "until", "be within reach", budget, " ".join([hint, *targets.left_out])
            )
        # What the formulas say where the costs themselves are known.
        # A model that is pruned already has some of its channels zero, so its sum is not the whole.
        whole = {limit.name: _sum(self._parts, limit) for limit in budget.limits}
        self._ends = [whole, self._formula(groups, thinnest)]

    def measure(self, model: Any) -> dict[str, float]:
        """Returns what a model takes of each limited cost.

        Raises:
            ArgumentError: one cannot be determined.
        """
        found = {}
        for limit in self.budget.limits:
            try:
                found[limit.name] = limit.cost.measure(model, self.budget.target)
            except EdgeCompressError as error:
                counted = [x for x, cost in COSTS.items() if cost.exact_shares and x != limit.name]
                rule = "limit what is known of the model"
                hint = f"{error} Counted on any model: {' and '.join(counted)}."
                raise ArgumentError("until", rule, self.budget, hint) from error
        return found

    def prune(
        self,
        scores: Mapping[str, np.ndarray],
        progress: float,
        title: str,
        note: Callable[[str], None],
    ) -> None:
        """Sets filters to zero for a part of the way to the budget.

        Args:
            scores: Layer -> score of each filter, as of now.
            progress: Share of what has to be saved, up to 1. At 1 what `finalize` would leave is
                measured, and the budget is met, or a warning and a note say by how much not.
            title: Of the technique, for the notes.
            note: Takes a sentence about what is only approximate, or missed.
        """
        lower = 0.0
        for _ in range(_TRIES):
            cut = self.cut(scores, progress, lower)
            self._remember(cut)
            masks = cut.groups.masks(cut.chosen)
            if any(mask.any() for mask in masks.values()):
                done = zero_filters(self.model, masks)
                self.keep({path: masks[path] & ~own for path, own in done.filters.items()})
                for text in done.notes:
                    note(f"{title}: {text}")
            if progress < 1:
                return
            self.costs = self.final()
            if not self.budget.exceeded(self.costs, self.whole):
                return
            # Constants that need a bias of their own, or filters that had to stay.
            lower += _LOWER
        text = f"{title} misses its budget: "
        text += f"{'; '.join(self.budget.exceeded(self.costs, self.whole))}."
        note(text)
        warnings.warn(text, stacklevel=2)

    def _remember(self, cut: Cut) -> None:
        """Keeps what the filters that are still there are worth."""
        going = set(cut.chosen)
        found = [
            FilterImportance(
                path, position, float(cut.importance[i]), float(cut.savings[i]), i not in going
            )
            for i, group in enumerate(cut.groups.groups)
            for path, own in group.filters.items()
            for position in own
        ]
        self._seen |= {(entry.layer, entry.filter): entry for entry in found}
        self._rank = max((x.rank for x in found if not x.kept), default=self._rank)

    def importance(self) -> Importance:
        """Returns what each filter was worth in the last round in which it was there."""
        places = {path: place for place, path in enumerate(self.layers)}
        filters = [
            dataclasses.replace(
                entry, kept=entry.kept or bool(self._stuck[entry.layer][entry.filter])
            )
            for entry in self._seen.values()
        ]
        return Importance(
            tuple(sorted(filters, key=lambda entry: (places[entry.layer], entry.filter))),
            self._rank,
            repr(self.budget),
            {name: (self.whole[name], cost) for name, cost in self.costs.items()},
            {limit.name: limit.cost.unit for limit in self.budget.limits},
        )

    def results(self) -> dict[str, Any]:
        """Returns what the model took at the start and takes finalized, as JSON values."""
        return {"costs": {name: [self.whole[name], cost] for name, cost in self.costs.items()}}

    def keep(self, filters: Mapping[str, np.ndarray]) -> None:
        """Leaves filters out from now on, which had to stay: layer -> (filters,) booleans."""
        for path, mask in filters.items():
            self._stuck[path] |= mask

    def final(self) -> dict[str, float]:
        """Returns what `finalize` would leave of the model as it is now."""
        return self.measure(rebuild(self.model, plan_removal(self.model)))

    def cut(self, scores: Mapping[str, np.ndarray], progress: float, lower: float = 0.0) -> Cut:
        """Returns the groups that go for a part of the way to the budget.

        Args:
            scores: Layer -> score of each filter, as of now.
            progress: Share of what has to be saved, up to 1. At 1 the result has been measured,
                before that it may be estimated.
            lower: By which share of each limit to save more than it asks for.
        """
        groups = ChannelGroups(self.model, self.layers)
        importance = groups.importance(scores, self._power)
        order = self._ordered(groups, importance)
        goals = {
            limit.name: self.whole[limit.name]
            - max(0.0, self.whole[limit.name] - limit.of(self.whole[limit.name]) * (1 - lower))
            * progress
            for limit in self.budget.limits
        }
        exact = progress >= 1 and not all(x.cost.exact_shares for x in self.budget.limits)
        low, high = 0, len(order)
        estimate = self._first(groups, order, goals, low, high)
        chosen = estimate
        if exact:
            chosen = self._measured(groups, order, goals, estimate)
        savings = self._savings(groups)
        return Cut(groups, importance, savings, order, self._rounded(groups, order[:chosen]))

    def _first(
        self,
        groups: ChannelGroups,
        order: Sequence[int],
        goals: Mapping[str, float],
        low: int,
        high: int,
    ) -> int:
        """Returns the smallest number of groups that is estimated to meet the goals."""
        while low < high:
            middle = (low + high) // 2
            found = self._estimate(groups, self._rounded(groups, order[:middle]))
            if all(found[name] <= goal for name, goal in goals.items()):
                high = middle
            else:
                low = middle + 1
        return low

    def _measured(
        self,
        groups: ChannelGroups,
        order: Sequence[int],
        goals: Mapping[str, float],
        guess: int,
    ) -> int:
        """Returns a number of groups that meets the goals, found by building candidates.

        The search begins at a guess and ends after a few candidates, at one that has met them.
        """
        low, high = 0, len(order)  # The whole order is known to meet the budget.

        def meets(count: int) -> bool:
            chosen = self._rounded(groups, order[:count])
            found = self.measure(rebuild(self.model, groups.without(chosen)))
            return all(found[name] <= goal for name, goal in goals.items())

        # From the guess outwards, in steps that grow, then by halves.
        step, at = max(1, len(order) // 32), min(guess, len(order) - 1)
        for _ in range(_BUILDS):
            if low >= high:
                break
            if meets(at):
                high, at = at, at - step
            else:
                low, at = at + 1, at + step
            step *= 2
            if not low <= at < high:
                at = (low + high) // 2
        return high

    def _ordered(self, groups: ChannelGroups, importance: np.ndarray) -> list[int]:
        return groups.order(importance, self._savings(groups), self.most, self._stuck)

    def _savings(self, groups: ChannelGroups) -> np.ndarray:
        """Returns the share of the limited costs that each group saves, summed over them."""
        return sum(
            (
                groups.savings(self._parts[limit.name]) / max(1e-12, _sum(self._parts, limit))
                for limit in self.budget.limits
            ),
            np.zeros(len(groups.groups)),
        )

    def _rounded(self, groups: ChannelGroups, chosen: Sequence[int]) -> list[int]:
        return groups.rounded(chosen, self.multiple)

    def _formula(self, groups: ChannelGroups, chosen: Sequence[int]) -> dict[str, float]:
        """Returns the costs by layer without groups, summed."""
        kept = groups.left_over(chosen)
        found = {}
        for limit in self.budget.limits:
            cost, total = limit.cost, 0.0
            for path, part in self._parts[limit.name].items():
                total += part * (cost.left_over(*kept[path]) if path in kept else 1.0)
            found[limit.name] = total
        return found

    def _estimate(self, groups: ChannelGroups, chosen: Sequence[int]) -> dict[str, float]:
        """Returns the costs without groups, on the line between the two models that are known."""
        found = self._formula(groups, chosen)
        for name, value in found.items():
            whole, thinnest = (end[name] for end in self._ends)
            if whole == thinnest:
                found[name] = self.whole[name]
                continue
            way = (whole - value) / (whole - thinnest)
            found[name] = self.whole[name] - (self.whole[name] - self._thinnest[name]) * way
        return found


def _sum(parts: Mapping[str, Mapping[str, float]], limit: Limit) -> float:
    return sum(parts[limit.name].values())
