"""Loggers: where trials go besides the study. Optuna's integrations, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.registry import Registry

# Called with (study, trial) after each trial.
Logger = Callable[[Any, Any], None]

LOGGERS: Registry[Callable[[Path], Logger]] = Registry("logger")


def _integration(name: str, needs: str) -> Any:
    try:
        import optuna_integration

        return getattr(optuna_integration, name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            "--log", "name a logger that is installed", str(error),
            f"pip install optuna-integration {needs}.",
        ) from error  # fmt: skip


@LOGGERS.register("tensorboard")
def _tensorboard(folder: Path) -> Logger:
    """Trials with their values and metrics, for TensorBoard's page HPARAMS."""
    made: Logger = _integration("TensorBoardCallback", "tensorboard")(
        str(folder / "tensorboard"), metric_name="metric"
    )
    return _first_objective(made)


@LOGGERS.register("mlflow")
def _mlflow(folder: Path) -> Logger:
    """A run for each trial, at MLFLOW_TRACKING_URI."""
    made: Logger = _integration("MLflowCallback", "mlflow")()
    return made


@LOGGERS.register("wandb")
def _wandb(folder: Path) -> Logger:
    """A run of Weights & Biases."""
    made: Logger = _integration("WeightsAndBiasesCallback", "wandb")()
    return made


def _first_objective(logger: Logger) -> Logger:
    """Returns a logger of trials with one value for one that knows only such trials."""

    def log(study: Any, trial: Any) -> None:
        import optuna

        one = optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, value=trial.values[0]
        )
        one.number = trial.number
        logger(study, one)

    return log
