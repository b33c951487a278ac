"""Removes redundant channels: the rewrite `remove-channels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.record import CompressionRecord
from edgecompress.surgery.rewrites import REWRITES, Rewrite, Rewritten


@REWRITES.register("remove-channels")
@dataclass(frozen=True)
class RemoveChannels(Rewrite):
    """Removes all-zero filters, and filters that nothing reads, from every layer they pass through.

    Their constant is folded into the bias of the layers that read it: `surgery.channels`.
    """

    left_out: ClassVar[str] = "left masked: all layers, because without their zero filters"

    def apply(self, model: Any) -> Rewritten:
        """Returns the smaller model; see `Rewrite.apply`."""
        from edgecompress.surgery.rebuild import plan_removal, rebuild

        plan = plan_removal(model)
        result = rebuild(model, plan) if plan.removed else model
        return Rewritten(result, plan.removed, notes=plan.notes)

    def missed(self, model: Any, record: CompressionRecord) -> tuple[str, ...]:
        """Returns notes on zeros that training made and something else undid."""
        from edgecompress.surgery.undone import undone_zeros

        return undone_zeros(model, record)
