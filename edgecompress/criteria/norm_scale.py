"""Scale of the BatchNormalization: channels that it makes small matter least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.criteria.base import CRITERIA, FilterCriterion


@CRITERIA.register("norm-scale")
@dataclass(frozen=True)
class NormScale(FilterCriterion):
    """Scores a filter by |gamma| of the BatchNormalization that follows its layer.

    Liu et al., "Learning efficient convolutional networks through network slimming" (2017,
    https://arxiv.org/abs/1708.06519), section 3: train with an L1 penalty on gamma
    (`BatchNormalization(gamma_regularizer="l1")`), so that the scales of channels that do not
    matter approach 0. Layers that no BatchNormalization follows are skipped.
    """

    @property
    def views(self) -> tuple[str, ...]:
        """As `Criterion.views`."""
        return ("norm-scale",)

    def score_filters(self, filters: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns |gamma|; see `FilterCriterion`."""
        return statistics["norm-scale"]
