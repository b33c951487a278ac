"""Activation statistics: channels that are mostly silent matter least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import Choice, option
from edgecompress.criteria.base import CRITERIA, FilterCriterion

_VIEWS = {"active": "active-share", "mean": "mean-activation"}


@CRITERIA.register("activation")
@dataclass(frozen=True)
class Activation(FilterCriterion):
    """Scores a filter by how active its channel is, after the activation function that follows.

    With `measure="active"`, the share of outputs that are not 0: one minus the APoZ of Hu et al.,
    "Network trimming: a data-driven neuron pruning approach" (2016,
    https://arxiv.org/abs/1607.03250), equation (1). Only activation functions with an exact 0, such
    as ReLU, tell channels apart. With `measure="mean"`, the mean magnitude of the outputs. Both are
    exponential moving averages over the batches of training.

    Args:
        measure: `active` or `mean`.
    """

    measure: str = option("active", "What is measured.", Choice(names=tuple(_VIEWS)))

    @property
    def views(self) -> tuple[str, ...]:
        """As `Criterion.views`."""
        return (_VIEWS[self.measure],)

    @property
    def waits(self) -> bool:
        """Yes, for activations."""
        return True

    def score_filters(self, filters: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns what was measured; see `FilterCriterion`."""
        return statistics[_VIEWS[self.measure]]
