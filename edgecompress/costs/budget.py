"""A budget: limits of what a model may take, from which pruning finds how much has to go."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.costs.base import COSTS, Cost


@dataclass(frozen=True)
class Limit:
    """A limit of one cost.

    Attributes:
        name: Of the cost, in `COSTS`.
        value: A number in the cost's unit, or a share of what the model takes at the start.
        share: Which of the two.
    """

    name: str
    value: float
    share: bool

    @property
    def cost(self) -> Cost:
        """The cost that is limited."""
        return COSTS[self.name]

    def of(self, whole: float) -> float:
        """Returns the limit as a number, for a model that takes `whole` at the start."""
        return self.value * whole if self.share else self.value


@dataclass(frozen=True, init=False)
class Budget:
    """What a model may take once it is finalized: one or more limits, all of which have to hold.

    A float up to 1.0 is a share of what the model takes at the start of training. Anything else is
    absolute: an int in the cost's unit, or a text with a unit. Built in are:

    - `macs`: multiply-accumulates of one inference.
    - `parameters`: everything learnt.
    - `file_bytes`: size of the int8 file, e.g. `"64KiB"`.
    - `arena`: the tensor arena on `target`, to the byte.
    - `latency`: the predicted time of one inference on `target`, e.g. `"30ms"`. The upper end of
      the prediction's band has to meet it, so that a check of the file passes.

    Args:
        target: Name of the target, for the costs that need one. If it is named, widths are
            multiples of what its kernels compute together. Defaults to None.
        limits: Name in `COSTS` -> limit.

    Raises:
        ArgumentError: a limit breaks its rule, there is none, or a target is missing.
        UnknownNameError: a cost or the target is unknown.

    Example:
        >>> Budget(macs=0.5)
        Budget(macs=0.5)
        >>> Budget(file_bytes="64KiB", latency="30ms", target="nucleo-l4r5zi")
        Budget(file_bytes=65536, latency=30000, target='nucleo-l4r5zi')
    """

    limits: tuple[Limit, ...]
    target: str | None

    def __init__(self, *, target: str | None = None, **limits: Any) -> None:
        """Checks the limits; see the class."""
        if not limits:
            rule = f"limit at least one of {', '.join(COSTS)}"
            raise ArgumentError("Budget", rule, limits, "For half of the MACs, Budget(macs=0.5).")
        object.__setattr__(self, "limits", tuple(_limit(*item) for item in limits.items()))
        object.__setattr__(self, "target", target)
        _ = self.multiple  # Refuses an unknown target.
        for limit in self.limits:
            if not limit.cost.needs_target:
                continue
            if not isinstance(target, str):
                rule = f"name a target, because {limit.name} is limited"
                raise ArgumentError("target", rule, target, 'E.g. target="nucleo-l4r5zi".')
            reason = limit.cost.check_target(target)
            if reason is not None:
                raise ArgumentError("target", f"be one whose {limit.name} is known", target, reason)

    @property
    def multiple(self) -> int:
        """How many channels the kernels of the target compute together; 1 without a target."""
        if self.target is None:
            return 1
        return max(cost.multiple(self.target) for cost in COSTS.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns the arguments as JSON values."""
        values: dict[str, Any] = {limit.name: limit.value for limit in self.limits}
        return values | ({} if self.target is None else {"target": self.target})

    def exceeded(self, costs: Mapping[str, float], whole: Mapping[str, float]) -> list[str]:
        """Returns for each limit that is not met by how much, as text.

        Args:
            costs: What a model takes, by name.
            whole: What the model took at the start, by name.

        Example:
            >>> Budget(macs=0.5).exceeded({"macs": 600}, {"macs": 1000})
            ['macs: 600 MACs, 100 MACs above the limit of 500 MACs']
        """
        texts = []
        for limit in self.limits:
            found, most = costs[limit.name], limit.of(whole[limit.name])
            if found > most:
                show = limit.cost.show
                over, allowed = show(found - most), show(most)
                texts.append(f"{limit.name}: {show(found)}, {over} above the limit of {allowed}")
        return texts

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"Budget({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"


def check_budget(until: Any) -> Budget:
    """Returns a budget.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(until, Budget):
        raise ArgumentError("until", "be a Budget", until, "Use edgecompress.Budget(macs=0.5).")
    return until


def _limit(name: str, value: Any) -> Limit:
    if name not in COSTS:
        raise UnknownNameError("Budget", name, COSTS)
    cost = COSTS[name]
    if cost.of_values:
        rule = "be left out: it depends on the values of weights, which training changes"
        raise ArgumentError(name, rule, value, "Limit file_bytes.")
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float):
        if not 0 < value <= 1:
            rule = "be above 0 and at most 1.0 where it is a share of the model's"
            raise ArgumentError(name, rule, value, f"Absolute: a whole number of {cost.unit}.")
        return Limit(name, value, share=True)
    return Limit(name, cost.parse(value, name), share=False)
