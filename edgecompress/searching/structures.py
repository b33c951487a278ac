"""Structures: a model after the techniques that change its graph, and before channels go."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgecompress.callbacks.channel_targets import find_targets
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import named_layers
from edgecompress.core.model_copy import copy_model
from edgecompress.core.options import named
from edgecompress.criteria import CRITERIA
from edgecompress.searching.forms import PLAIN, FileForm
from edgecompress.searching.importance import ObserveFilters, filter_scores
from edgecompress.searching.screening import Costs, Screen, Targets
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.zero_filters import zero_filters

# What a criterion is told, as it sees a few hundred steps.
_OPTIONS = {"taylor": "taylor:momentum=0.99"}
# Rule -> what stands for the cost of single layers, where only their shares count.
_PARTS = {
    "file_size": "parameters",
    "flash": "parameters",
    "arena": "arena",
    "latency": "macs",
    "energy": "macs",
}
# Building a candidate may keep channels that screening took for removable.
_TRIES, _LOWER = 6, 0.97


def removable_filters(model: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns the layers whose filters can be removed, with their number, and notes on others."""
    notes: list[str] = []
    criterion = named(CRITERIA, "magnitude", "criterion")
    try:
        found = find_targets(model, None, criterion, "The search", notes.append)
    except ArgumentError:
        # None has any.
        return {}, tuple(notes)
    return {target.path: target.filters for target in found.layers}, tuple(notes)


class Structure:
    """A model of one structure: what its channels are worth, and what is left without some.

    Args:
        model: A built Keras model.
        targets: Where files have to fit.
        loss: The Keras loss of its training.
        batches: Inputs and labels by which criteria score filters.
        form: Of its files. Defaults to int8.
        like: Screens files of the same model in another form. Costs are in proportion to theirs,
            as far as built candidates tell. Defaults to none.
    """

    def __init__(
        self,
        model: Any,
        targets: Targets,
        loss: Any,
        batches: Sequence[tuple[Any, Any]],
        form: FileForm = PLAIN,
        like: Screen | None = None,
    ) -> None:
        """Finds the removable filters and learns what they cost."""
        self.model, self._targets, self._form = model, targets, form
        self._loss, self._batches = loss, batches
        self._scores: dict[str, ObserveFilters] = {}
        self._savings: dict[str, np.ndarray] | None = None
        layers, self.notes = removable_filters(model)
        self.screen = Screen(model, layers, targets, form) if like is None else like
        # Rule -> what costs are to those that are screened.
        self._ratios: dict[str, float] = {}
        self._alike = like is not None
        if self._alike:
            self._compare(self.screen.totals, targets.judge(targets.file(model, form)))
        self.whole = self.costs(self.screen.totals)
        self._place_groups()

    def _place_groups(self) -> None:
        places = {path: place for place, (path, _) in enumerate(named_layers(self.model))}
        depth = max(1, len(places) - 1)
        self._position = np.array(
            [
                # Heads are `<layer>:heads`.
                min(places[path.removesuffix(":heads")] for path in g.filters) / depth
                for g in self.screen.groups.groups
            ]
        )

    def of(self, model: Any) -> Structure | None:
        """Returns the same for what is left of its model; importance and parts are found anew.

        Args:
            model: The model without some of its channels.

        Returns:
            None if its width classes are no longer the same.
        """
        screen = self.screen.narrowed(model, removable_filters(model)[0])
        if screen is None:
            return None
        found = copy.copy(self)
        found.model, found.screen = model, screen
        found._scores, found._savings = {}, None
        found._place_groups()
        return found

    def costs(self, widths: np.ndarray) -> Costs:
        """Returns what the model takes at these widths, (width classes,)."""
        return self.scaled(self.screen.costs(widths))

    def scaled(self, costs: Costs) -> Costs:
        """Returns what this format takes where the one that is screened takes `costs`."""
        values = {rule: v * self._ratios.get(rule, 1.0) for rule, v in costs.values.items()}
        return dataclasses.replace(costs, values=values)

    def _compare(self, widths: np.ndarray, costs: Costs) -> None:
        known = self.screen.costs(widths).values
        self._ratios = {r: v / known[r] for r, v in costs.values.items() if known.get(r)}

    def importance(self, criterion: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the importance of each channel group, and its place in the model, 0 to 1.

        Args:
            criterion: A name in `CRITERIA`.
        """
        found = named(CRITERIA, _OPTIONS.get(criterion, criterion), "criterion")
        scores = self._observed(criterion).scores
        return self.screen.groups.importance(scores, found.loss_power), self._position

    def savings(self) -> dict[str, np.ndarray]:
        """Returns the share of each cost that each group saves if it alone goes."""
        from edgecompress.costs import COSTS

        if self._savings is None:
            found = {}
            for rule in self._targets.limited or tuple(self.whole.values):
                cost = COSTS[_PARTS[rule]]
                # The bytes of outputs are the same on any target.
                parts = cost.by_layer(self.model, self._targets.profiles)  # type: ignore[arg-type]
                total = sum(parts.values()) or 1.0
                found[rule] = self.screen.groups.savings(parts) / total
            self._savings = found
        return self._savings

    def excess(self, costs: Costs, fill: float, way: float = 1.0) -> dict[str, float]:
        """Returns how far costs are above a share of the limits, or without any, of the model's.

        Args:
            costs: Of a candidate.
            fill: The share.
            way: Part of the way there, in ratios: whole^(1 - way) * goal^way.
        """
        goals = dict(costs.limits)
        if not self._targets.limited:
            goals = {rule: value for rule, value in self.whole.values.items() if rule != "flash"}
        for rule, goal in goals.items():
            whole = self.whole.values.get(rule, goal)
            if whole > goal * fill:
                goals[rule] = whole ** (1 - way) * (goal * fill) ** way
            else:
                goals[rule] = goal * fill
        return Costs(costs.values, goals, unsupported=costs.unsupported).excess()

    def narrowed(self, chosen: Sequence[int]) -> Any:
        """Returns a plain model without channel groups; their constants move into biases."""
        if not chosen:
            return copy_model(self.model)
        copied = copy_model(self.model)
        zero_filters(copied, self.screen.groups.masks(chosen))
        return finalize(copied)

    def confirmed(
        self, cut: Callable[[float], np.ndarray], importance: np.ndarray, fill: float
    ) -> tuple[Any, Costs]:
        """Returns a candidate as it is built, and what its own file takes.

        Args:
            cut: Returns the widths to keep for a share of the limits.
            importance: Of each channel group.
            fill: The share to begin with; it is lowered while the built model exceeds a limit
                that screening met.
        """
        for _ in range(_TRIES):
            widths = cut(fill)
            model = self.narrowed(self.screen.chosen(widths, importance))
            costs = self._targets.judge(self._targets.file(model, self._form))
            if costs.fits() or not self.costs(widths).fits(fill):
                break
            if self._alike:
                self._compare(widths, costs)
            else:
                fill *= _LOWER
        return model, costs

    def _observed(self, criterion: str) -> ObserveFilters:
        if criterion not in self._scores:
            found = named(CRITERIA, _OPTIONS.get(criterion, criterion), "criterion")
            batches = self._batches if found.looks else self._batches[:1]
            self._scores[criterion] = filter_scores(self.model, found, self._loss, batches)
        return self._scores[criterion]
