"""Samplers: what proposes the next candidate. Optuna's, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgecompress.core.registry import Registry

SAMPLERS: Registry[Callable[[int], Any]] = Registry("sampler")
# Random candidates before a sampler learns from what it has seen.
_STARTUP = 8


@SAMPLERS.register("tpe")
def _tpe(seed: int) -> Any:
    """Tree-structured Parzen estimators, with constraints (Watanabe and Hutter, 2023)."""
    import optuna

    # In groups, as baselines have no values and others' must not be forgotten for that.
    return optuna.samplers.TPESampler(
        n_startup_trials=_STARTUP, multivariate=True, group=True, seed=seed
    )


@SAMPLERS.register("random")
def _random(seed: int) -> Any:
    """Every value as likely as any other: what a sampler has to beat."""
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)
