"""Channel groups: what can be removed as one decision, in which order, and what would be left.

A group is everything that has to go together: one filter, or the filters of several layers whose
channels are added. Everything here is numpy on the analysis of a model, which is not changed.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.surgery.carriers import if_all_were_silent
from edgecompress.surgery.channels import Analysis, analyse, read_weights
from edgecompress.surgery.rebuild import Plan, cut_layers


@dataclass(frozen=True)
class ChannelGroup:
    """Filters that are removed together.

    Attributes:
        graph: Which analysis of the model it belongs to.
        root: The label that stands for its channels.
        filters: Layer -> which of its filters belong to it.
    """

    graph: int
    root: int
    filters: Mapping[str, tuple[int, ...]]


def _part_of_rest(scores: np.ndarray) -> np.ndarray:
    """Returns each score's square divided by the sum of those that are not smaller, in [0, 1]."""
    squares = np.square(scores / max(float(scores.max(initial=0)), np.finfo(np.float64).tiny))
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    parts = np.zeros(len(scores))
    parts[order] = squares[order] / np.where(rest > 0, rest, 1.0)
    return parts


class ChannelGroups:
    """The groups of a model that may be removed, and what is left without some of them.

    Args:
        model: A built Sequential or Functional model; zero filters are gone already.
        layers: Layers whose filters may be removed: path -> number of filters. A group with a
            filter of another layer stays.
    """

    def __init__(self, model: Any, layers: Mapping[str, int]) -> None:
        """Finds the groups."""
        self.weights = read_weights(model)
        self.analyses = analyse(model, self.weights)
        self.layers = dict(layers)
        self._heads = {
            f"{path}:heads"
            for analysis in self.analyses
            for path, inner in analysis.inner.items()
            if "heads" in inner
        }
        # What `finalize` would remove as the weights are now.
        self.gone = [analysis.removable() for analysis in self.analyses]
        self.groups: list[ChannelGroup] = []
        silent = if_all_were_silent(model, self.weights, self.analyses)
        for index, analysis in enumerate(silent):
            self.groups += self._of(index, analysis)

    def _of(self, index: int, analysis: Analysis) -> list[ChannelGroup]:
        frozen = {analysis.root(label) for label in analysis.frozen} | self.gone[index]
        members: dict[int, dict[str, list[int]]] = {}
        for path, labels in analysis.producers.items():
            roots = analysis.roots(labels)
            if path not in self.layers:
                frozen.update(int(root) for root in roots)
                continue
            for position, root in enumerate(roots):
                members.setdefault(int(root), {}).setdefault(path, []).append(position)
        return [
            ChannelGroup(index, root, {path: tuple(own) for path, own in filters.items()})
            for root, filters in sorted(members.items())
            if root not in frozen
        ]

    def importance(self, scores: Mapping[str, np.ndarray], power: float | None) -> np.ndarray:
        """Returns the importance of each group: the sum of the importances of its filters.

        If scores estimate the loss, importance is s_c^power, the loss without the filter. Any
        others become a filter's part of what is left of its layer once the weaker filters are gone
        (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", 2021,
        https://arxiv.org/abs/2010.07611, equation (4)):

            s_c^2 / sum over the filters j of the layer with s_j >= s_c of s_j^2

        So layers are comparable, and none with filters alike goes as a whole: its last filter is
        worth 1.

        Args:
            scores: Layer -> score of each filter, (filters,), 0 or more.
            power: `Criterion.loss_power`; None if scores are not about the loss.

        Returns:
            (groups,) in float64.
        """
        worth = {}
        for path, own in scores.items():
            values = np.asarray(own, np.float64)
            worth[path] = _part_of_rest(values) if power is None else values**power
        return np.array(
            [
                sum(float(worth[path][list(own)].sum()) for path, own in group.filters.items())
                for group in self.groups
            ]
        )

    def savings(self, by_layer: Mapping[str, float]) -> np.ndarray:
        """Returns what each group would save if it alone were removed.

        A layer's part of the cost is taken as proportional to its input channels times its output
        channels, or to its channels if it keeps them apart; that of attention also to its heads.

        Args:
            by_layer: Layer -> its part of a cost.

        Returns:
            (groups,) in float64.
        """
        saved: dict[tuple[int, int], float] = defaultdict(float)
        for index, analysis in enumerate(self.analyses):
            for path, use in analysis.uses.items():
                part = by_layer.get(path, 0.0)
                if not part:
                    continue
                inner = analysis.inner.get(path, {}).get("heads", np.empty(0, np.int64))
                read, made, heads = (
                    Counter(analysis.roots(labels).tolist())
                    for labels in (use.inputs, use.outputs, inner)
                )
                apart = set(made) <= set(read)
                for root in {*read, *made, *heads}:
                    inputs = 0.0 if apart else read[root] / max(1, len(use.inputs))
                    outputs = made[root] / max(1, len(use.outputs))
                    kept = 1 - heads[root] / max(1, len(inner))
                    saved[index, root] += part * (1 - (1 - inputs) * (1 - outputs) * kept)
        return np.array([saved[group.graph, group.root] for group in self.groups])

    def order(
        self,
        importance: np.ndarray,
        savings: np.ndarray,
        most: Mapping[str, float] | None = None,
        stuck: Mapping[str, np.ndarray] | None = None,
    ) -> list[int]:
        """Returns the order in which groups go: the least importance for what they save first.

        Groups that save nothing, and those without which a layer would have no filter, or fewer
        than it may have, are left out.

        Args:
            importance: Of each group, (groups,).
            savings: Of each group, (groups,).
            most: Regular expression -> the largest share of a layer's filters that may go, for
                layers whose whole name it matches; the first that does counts. Defaults to none.
            stuck: Layer -> filters that have to stay, (filters,) booleans. Defaults to none.
        """
        stuck = stuck or {}
        ratio = importance / np.where(savings > 0, savings, 1.0)
        limits = {path: self._most(path, most or {}) for path in self.layers}
        left = {path: limit - self._gone_of(path) for path, limit in limits.items()}
        chosen = []
        for index in np.argsort(ratio, kind="stable"):
            filters = self.groups[index].filters
            if savings[index] <= 0 or any(len(own) > left[path] for path, own in filters.items()):
                continue
            if any(stuck[path][list(own)].any() for path, own in filters.items() if path in stuck):
                continue
            for path, own in filters.items():
                left[path] -= len(own)
            chosen.append(int(index))
        return chosen

    def _most(self, path: str, most: Mapping[str, float]) -> int:
        count = self.layers[path]
        for pattern, share in most.items():
            if re.fullmatch(pattern, path):
                # Rounded first: 0.29 * 100 is 28.999999999999996.
                return min(int(math.floor(round(share * count, 6))), count - 1)
        return count - 1

    def _gone_of(self, path: str) -> int:
        for index, analysis in enumerate(self.analyses):
            if path in analysis.producers:
                roots = analysis.roots(analysis.producers[path])
                return sum(int(root) in self.gone[index] for root in roots)
        return 0

    def rounded(self, chosen: Sequence[int], multiple: int) -> list[int]:
        """Returns the groups without the last of those whose layers would keep an odd width.

        Args:
            chosen: Positions of groups, in the order in which they go.
            multiple: Every layer keeps a multiple of this many filters, or all of them; of heads
                any number.
        """
        if multiple <= 1:
            return list(chosen)
        kinds: dict[tuple[str, ...], list[int]] = {}
        for index in chosen:
            kinds.setdefault(tuple(self.groups[index].filters), []).append(index)
        kept: set[int] = set()
        for kind, indices in kinds.items():
            if kind[0] in self._heads:
                kept.update(indices)
                continue
            each = len(self.groups[indices[0]].filters[kind[0]])
            total = self.layers[kind[0]]
            left = total - self._gone_of(kind[0]) - each * len(indices)
            up = math.ceil(left / multiple) * multiple
            back = math.ceil((up - left) / each) if up < total else len(indices)
            kept.update(indices[: max(0, len(indices) - back)])
        return [index for index in chosen if index in kept]

    def masks(self, chosen: Iterable[int]) -> dict[str, np.ndarray]:
        """Returns which filters groups are: layer -> (filters,) booleans."""
        masks = {path: np.zeros(count, bool) for path, count in self.layers.items()}
        for index in chosen:
            for path, own in self.groups[index].filters.items():
                masks[path][list(own)] = True
        return masks

    def without(self, chosen: Iterable[int]) -> Plan:
        """Returns what removes groups, and all that is gone already, from the model.

        Biases do not take over the constants of removed channels: shapes are right, values are not.
        """
        plan = Plan({path: dict(own) for path, own in self.weights.items()}, {}, {}, (), {})
        for analysis, roots in zip(self.analyses, self._roots(chosen), strict=True):
            cut_layers(analysis, roots, plan)
        return plan

    def left_over(
        self, chosen: Iterable[int]
    ) -> Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]]:
        """Returns what is left of layers: weights before and after, and the share of outputs."""
        chosen = list(chosen)
        plan = self.without(chosen)
        found = {}
        for analysis, roots in zip(self.analyses, self._roots(chosen), strict=True):
            for path, use in analysis.uses.items():
                kept = analysis.kept(use.outputs, roots)
                before = self.weights.get(path, {})
                outputs = float(kept.mean()) if len(kept) else 1.0
                if (heads := analysis.inner.get(path, {}).get("heads")) is not None:
                    outputs *= float(analysis.kept(heads, roots).mean())
                found[path] = (before, plan.weights.get(path, before), outputs)
        return found

    def _roots(self, chosen: Iterable[int]) -> list[set[int]]:
        gone = [set(roots) for roots in self.gone]
        for index in chosen:
            gone[self.groups[index].graph].add(self.groups[index].root)
        return gone
