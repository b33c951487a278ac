"""What files cost on the targets, for formats that choose among candidates by cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgecompress.converters.formats import Costs, Measure
from edgecompress.core.units import format_size
from edgecompress.flatbuffers.model import FlatModel

if TYPE_CHECKING:
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.profile import TargetProfile


def costs_on(
    profiles: Sequence[TargetProfile],
    budgets: Budgets,
    kernels: str | None,
    progress: Callable[[str], None],
) -> Costs:
    """Returns what measures files on targets.

    Args:
        profiles: The targets.
        budgets: The user's limits, which take precedence over the profiles' own.
        kernels: Kernel set of microcontrollers instead of the profiles'.
        progress: Called when a file is measured on this computer, which takes a while.
    """
    ram = [b for p in profiles if (b := budgets.over(p.limits).max_ram) is not None]

    def host_latency(flat: FlatModel) -> float:
        from edgecompress.targets.bench import bench_host

        progress(f"Measuring latency of {format_size(len(flat.data))} on this computer")
        return bench_host(flat.data, processes=3).measured

    return Costs(
        lambda flat, memory: _arena(flat, profiles, kernels, memory),
        lambda flat: _latency(flat, profiles, kernels),
        host_latency,
        min(ram, default=None),
        budgets.max_latency,
    )


def _arena(
    model: FlatModel, profiles: Sequence[TargetProfile], kernels: str | None, memory: int | None
) -> Measure | None:
    from edgecompress.targets.tflm.arena import compute_arena

    boards = [(str(p.core), kernels or str(p.kernels)) for p in profiles]
    if not all(compute_arena(model, *board).is_known for board in boards):
        return None

    def measure(flat: FlatModel) -> float:
        found = [compute_arena(flat, *board, decompression_memory=memory) for board in boards]
        return max(max(a.used or 0, a.smallest or 0) for a in found)

    return measure


def _latency(
    model: FlatModel, profiles: Sequence[TargetProfile], kernels: str | None
) -> Measure | None:
    from edgecompress.targets.tflm.latency import predict

    timed = [p for p in profiles if predict(model, p, kernels).microseconds is not None]
    if not timed:
        return None
    return lambda flat: max(predict(flat, p, kernels).microseconds or 0.0 for p in timed)
