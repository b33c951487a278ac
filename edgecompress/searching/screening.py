"""Screening: what a model would cost on its targets with fewer channels, before any training.

Thousands of candidates a minute: a `FileModel` stands for the conversion, and the targets' own
rules judge its files. Where there is no file model, every candidate is converted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import CheckResult, TargetResult
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.pipeline.trial_file import trial_file
from edgecompress.searching.file_model import FileModel, NoFileModel, matched
from edgecompress.searching.forms import PLAIN, FileForm
from edgecompress.surgery.channel_groups import ChannelGroups
from edgecompress.surgery.rebuild import rebuild
from edgecompress.targets.checks import check
from edgecompress.targets.profile import Budgets, TargetProfile

# Rule -> the limit that a user gives for it.
LIMITS = {
    "file_size": "max_file_size",
    "flash": "max_flash",
    "arena": "max_ram",
    "latency": "max_latency",
    "energy": "max_energy",
}
# Conversions from which a file model is solved, the proof included, beside two for each branch.
_FEWEST_PROBES, _MOST_PROBES = 5, 10
# Of the interval of shares; widths are whole numbers, so few tell shares apart.
_HALVINGS = 9


@dataclass(frozen=True)
class Costs:
    """What a file takes on the neediest of its targets.

    Attributes:
        values: Rule -> the largest value that it may have: bytes or microseconds.
        limits: Rule -> the limit there, for rules with one.
        unknown: Rule -> why it has no value.
        unsupported: Why a target cannot run the file; None if all can.
    """

    values: Mapping[str, float]
    limits: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    unsupported: str | None = None

    def excess(self, fill: float = 1.0) -> dict[str, float]:
        """Returns for each limit how far it is exceeded, as a share of it; 0 or less if met.

        Args:
            fill: Share of every limit to stay within.

        Example:
            >>> Costs({"arena": 120.0}, {"arena": 100.0}).excess()["arena"]
            0.2
        """
        found = {
            rule: 1.0
            if rule not in self.values
            else (self.values[rule] - limit * fill) / (limit or 1.0)
            for rule, limit in self.limits.items()
        }
        if self.unsupported is not None:
            found["operators"] = 1.0
        return {rule: round(value, 9) for rule, value in found.items()}

    def fits(self, fill: float = 1.0) -> bool:
        """Returns whether every limit is met."""
        return all(value <= 0 for value in self.excess(fill).values())


def costs_of(results: Sequence[TargetResult]) -> Costs:
    """Returns what a file takes, from its checks on all targets.

    Of several, the value and the limit of a cost are those of the target where it is the largest
    share of its limit. Where a target without a limit leaves it open, it is that of the others.
    """
    values: dict[str, float] = {}
    limits: dict[str, float] = {}
    unknown: dict[str, str] = {}
    unsupported = None
    for target in results:
        for found in target.checks:
            if found.rule == "operators" and found.verdict == "fail":
                unsupported = f"{target.name}: {found.reason}"
    for rule in LIMITS:
        own = [(t.name, found) for t in results for found in t.checks if found.rule == rule]
        counted = (
            [pair for pair in own if pair[1].limit is not None]
            or [pair for pair in own if pair[1].largest is not None]
            or own
        )
        if not counted:
            continue
        name, neediest = max(counted, key=lambda pair: _share(pair[1]))
        if neediest.largest is None:
            unknown[rule] = f"{name}: {neediest.reason or 'it has no such rule'}"
        else:
            values[rule] = neediest.largest
        if neediest.limit is not None:
            limits[rule] = neediest.limit
    return Costs(values, limits, unknown, unsupported)


def _share(found: CheckResult) -> float:
    """Returns the share of its limit that a cost may take, or without any, the cost."""
    if found.largest is None:
        return math.inf
    if found.limit is None:
        return found.largest
    if found.limit <= 0:
        return math.inf if found.largest > 0 else 0.0
    return found.largest / found.limit


def judge(
    flat: FlatModel,
    profiles: Sequence[TargetProfile],
    budgets: Budgets,
    options: Mapping[str, Any],
) -> Costs:
    """Returns what a file takes on its targets."""
    return costs_of([check(flat, profile, budgets, options=options) for profile in profiles])


@dataclass(frozen=True)
class Targets:
    """Where files have to fit.

    Attributes:
        profiles: The targets.
        budgets: The user's limits.
        options: Options of families of targets and of rules.
        multiple: How many channels their kernels compute together.
    """

    profiles: tuple[TargetProfile, ...]
    budgets: Budgets
    options: Mapping[str, Any] = field(default_factory=dict)
    multiple: int = 1

    @property
    def limited(self) -> tuple[str, ...]:
        """The rules that the user has limited."""
        return tuple(rule for rule in LIMITS if self.limit(rule) is not None)

    def limit(self, rule: str) -> float | None:
        """Returns the user's limit for a rule; None for none."""
        flag = LIMITS[rule]
        found = self.options.get(flag) if rule == "energy" else getattr(self.budgets, flag)
        return None if found is None else float(found)

    def judge(self, flat: FlatModel) -> Costs:
        """Returns what a file takes."""
        return judge(flat, self.profiles, self.budgets, self.options)

    def file(self, model: Any, form: FileForm = PLAIN) -> FlatModel:
        """Returns the file of a Keras model; its values are stand-ins."""
        made = trial_file(
            form.stand_in(model), self.profiles, not form.weights, form.format, form.options,
            self.budgets,
        )  # fmt: skip
        return made.artifact.flat


class Screen:
    """What is left of a model without some of its channels, and what that costs.

    Channels that can only go together, and those of the same layers, are one width class.

    Args:
        model: A built Keras model; it is not changed.
        layers: Layers whose filters may be removed: path -> number of filters.
        targets: Where files have to fit.
        form: Of its files. Defaults to int8.
        seed: Of the widths that are probed.
    """

    def __init__(
        self,
        model: Any,
        layers: Mapping[str, int],
        targets: Targets,
        form: FileForm = PLAIN,
        seed: int = 0,
    ) -> None:
        """Converts the model at a few widths."""
        self.model, self._targets, self._form = model, targets, form
        self.groups = ChannelGroups(model, layers)
        kinds: dict[tuple[str, ...], list[int]] = {}
        for index, group in enumerate(self.groups.groups):
            kinds.setdefault(tuple(group.filters), []).append(index)
        self._kinds = tuple(kinds)
        self.members = list(kinds.values())
        self.totals = np.array([len(members) for members in self.members], int)
        self.screened = 0
        self.reason: str | None = None
        self._files: FileModel | None = None
        self._cache: dict[tuple[int, ...], Costs] = {}
        if len(self.totals):
            self._learn(seed)

    @property
    def exact(self) -> bool:
        """Whether candidates are judged without being converted."""
        return self._files is not None

    def _learn(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        count = min(_MOST_PROBES, max(_FEWEST_PROBES, len(self.totals) // 4 + 3))
        rows = [self.totals.copy()]
        for _ in range(count - 1):
            share = random.uniform(0.3, 1.0, len(self.totals))
            rows.append(np.maximum(1, np.round(self.totals * share)).astype(int))
        try:
            flats = [self._convert(row) for row in rows]
            # Where layers happen to be equally wide, constants may be shared: no rule of widths.
            alike = [matched(flats[0], flat) is not None for flat in flats]
            if sum(alike) >= max(_FEWEST_PROBES, 2 * count // 3):
                rows = [row for row, same in zip(rows, alike, strict=True) if same]
                flats = [flat for flat, same in zip(flats, alike, strict=True) if same]
            widths = np.array(rows)
            self._files = FileModel(flats, widths)
            wanted = self._targets.judge(flats[-1]).values
            found = self._targets.judge(self._files.at(widths[-1])).values
            for rule in ("arena", "latency"):
                if not np.isclose(wanted.get(rule, 0), found.get(rule, 0), rtol=1e-6):
                    raise NoFileModel(
                        f"Its {rule} was predicted as {found.get(rule)}, and is {wanted.get(rule)}."
                    )
        except NoFileModel as error:
            self._files, self.reason = None, str(error)

    def narrowed(self, model: Any, layers: Mapping[str, int]) -> Screen | None:
        """Returns the same for what is left of the model, without learning anew what it costs.

        Args:
            model: The model without some of its channels.
            layers: Layers whose filters may be removed: path -> number of filters.

        Returns:
            None if its width classes are no longer the same.
        """
        found = copy.copy(self)
        found.model, found.groups = model, ChannelGroups(model, layers)
        kinds: dict[tuple[str, ...], list[int]] = {kind: [] for kind in self._kinds}
        for index, group in enumerate(found.groups.groups):
            kinds.setdefault(tuple(group.filters), []).append(index)
        if tuple(kinds) != self._kinds or not all(kinds.values()):
            return None
        found.members = list(kinds.values())
        found.totals = np.array([len(members) for members in found.members], int)
        return found

    def costs(self, widths: np.ndarray) -> Costs:
        """Returns what the model takes at these widths, (width classes,)."""
        key = tuple(int(width) for width in widths)
        if key not in self._cache:
            self.screened += 1
            flat = self._convert(widths) if self._files is None else self._files.at(widths)
            self._cache[key] = self._targets.judge(flat)
        return self._cache[key]

    def size(self, widths: np.ndarray) -> tuple[int, int]:
        """Returns multiply-accumulates and weights at these widths, (width classes,)."""
        flat = self._convert(widths) if self._files is None else self._files.at(widths)
        weights = sum(int(np.prod(tensor.shape)) for tensor in flat.weight_tensors())
        return int(flat.macs()), weights

    def chosen(self, widths: np.ndarray, importance: np.ndarray) -> list[int]:
        """Returns the groups to remove so that each class keeps its most important ones.

        Args:
            widths: (width classes,).
            importance: Of each group, (groups,).
        """
        gone: list[int] = []
        for members, width in zip(self.members, widths, strict=True):
            ascending = sorted(members, key=lambda group: importance[group])
            gone += ascending[: len(members) - int(width)]
        return gone

    def uniform(self, meets: Callable[[Costs], bool], step: int = 1) -> np.ndarray:
        """Returns the widths of which each class keeps the same, largest share that it can.

        Args:
            meets: Whether costs are low enough.
            step: Widths are multiples of it, or whole.
        """

        def at(share: float) -> np.ndarray:
            found = np.floor(share * self.totals / step).astype(int) * step
            return np.asarray(np.clip(found, np.minimum(step, self.totals), self.totals))

        low, high = 0.0, 1.0
        if meets(self.costs(at(high))):
            return at(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if meets(self.costs(at(middle))) else (low, middle)
        return at(low)

    def built(self, chosen: Sequence[int]) -> Any:
        """Returns the Keras model without some groups: right shapes, biases not adapted."""
        return rebuild(self.model, self.groups.without(chosen))

    def _convert(self, widths: np.ndarray) -> FlatModel:
        chosen = [
            index
            for members, keep in zip(self.members, widths, strict=True)
            for index in members[int(keep) :]
        ]
        model = self.model if not chosen else self.built(chosen)
        return self._targets.file(model, self._form)


def thinnest(
    model: Any,
    layers: Mapping[str, int],
    targets: Targets,
    form: FileForm = PLAIN,
) -> Costs:
    """Returns what a model takes with one channel of each kind left, the least that it can."""
    groups = ChannelGroups(model, layers)
    seen: set[tuple[str, ...]] = set()
    gone = []
    for index, group in enumerate(groups.groups):
        kind = tuple(group.filters)
        if kind in seen:
            gone.append(index)
        seen.add(kind)
    return targets.judge(targets.file(rebuild(model, groups.without(gone)), form))


def refuse_unknown(costs: Costs, targets: Targets) -> None:
    """Refuses limits that cannot be decided: a search would find nothing that is known to fit.

    Raises:
        ArgumentError: there is one.
    """
    for rule, reason in costs.unknown.items():
        limit = targets.limit(rule)
        if limit is not None or rule in costs.limits:
            raise ArgumentError(
                f"--{LIMITS[rule].replace('_', '-')}",
                "limit what is known before a model is trained",
                costs.limits[rule] if limit is None else limit,
                f"{reason} Leave it out, and measure what the search finds.",
            )
