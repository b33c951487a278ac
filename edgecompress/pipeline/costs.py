"""What files cost on the targets, for formats that choose among candidates by cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.converters.formats import Costs, Measure
from edgecompress.core.units import format_size
from edgecompress.flatbuffers.model import FlatModel

if TYPE_CHECKING:
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.family import Family
    from edgecompress.targets.profile import TargetProfile


def costs_on(
    profiles: Sequence[TargetProfile],
    budgets: Budgets,
    options: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Costs:
    """Returns what measures files on targets.

    Args:
        profiles: The targets.
        budgets: The user's limits, which take precedence over the profiles' own.
        options: Name -> value of the options of families of targets.
        progress: Called when a file is measured on this computer, which takes a while.
    """

    ram = [b for p in profiles if (b := budgets.over(p.limits).max_ram) is not None]

    def host_latency(flat: FlatModel) -> float:
        from edgecompress.targets.bench import bench_host

        progress(f"Measuring latency of {format_size(len(flat.data))} on this computer")
        return bench_host(flat.data, processes=3).measured

    return Costs(
        lambda flat, memory: _arena(flat, _settled(profiles, options), memory),
        lambda flat: _latency(flat, _settled(profiles, options)),
        host_latency,
        min(ram, default=None),
        budgets.max_latency,
        lambda flat: _refused(flat, profiles, options),
        _unwanted(profiles),
    )


def _unwanted(profiles: Sequence[TargetProfile]) -> frozenset[str]:
    """Returns the rewrites that slow the file down on every target."""
    from edgecompress.targets.family import family_of

    each = [family_of(profile).unwanted for profile in profiles]
    return frozenset.intersection(*each) if each else frozenset()


def _refused(
    flat: FlatModel, profiles: Sequence[TargetProfile], options: Mapping[str, Any]
) -> frozenset[int]:
    """Returns the positions of the operators that a target, or its firmware, does not have."""
    from edgecompress.targets.operators import OPERATOR_RULES, unsupported

    allowed = options.get("operators")
    found = {o.index for o in flat.operators if allowed is not None and not allowed.has(o)}
    for profile in profiles:
        if profile.engine in OPERATOR_RULES:
            problems = unsupported(flat, profile, options.get("kernels"))
            found |= {problem.index for problem in problems}
    return frozenset(found)


def _settled(
    profiles: Sequence[TargetProfile], options: Mapping[str, Any]
) -> list[tuple[Family, TargetProfile, Any]]:
    """Returns each target with its family and that family's options."""
    from edgecompress.targets.family import family_of

    families = [(family_of(profile), profile) for profile in profiles]
    return [(family, profile, family.settle(profile, options)) for family, profile in families]


def _arena(
    model: FlatModel, targets: Sequence[tuple[Family, TargetProfile, Any]], memory: int | None
) -> Measure | None:
    for family, profile, settings in targets:
        plan = family.arena_of(model, profile, settings)
        if plan is None or not plan.is_known:
            return None

    def measure(flat: FlatModel) -> float:
        plans = (family.arena_of(flat, p, settings, memory) for family, p, settings in targets)
        return max(max(plan.used or 0, plan.smallest or 0) for plan in plans if plan is not None)

    return measure


def _latency(
    model: FlatModel, targets: Sequence[tuple[Family, TargetProfile, Any]]
) -> Measure | None:
    def microseconds(flat: FlatModel) -> list[float]:
        found = [family.microseconds_of(flat, p, settings) for family, p, settings in targets]
        return [time for time in found if time is not None]

    return (lambda flat: max(microseconds(flat), default=0.0)) if microseconds(model) else None
