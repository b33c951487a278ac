"""Loggers: where finished candidates go besides the study.

Optuna's own callbacks for these services are deprecated (4.9) and know the objectives by number
alone, accuracy with its sign changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.registry import Registry
from edgecompress.searching.knobs import Value
from edgecompress.searching.results import Described, Job, Outcome


@dataclass(frozen=True)
class Logged:
    """A finished candidate as a logger sees it.

    Attributes:
        study: Name of the study.
        name: Of the candidate.
        number: Of the candidate.
        settings: Knob -> value; empty for a baseline.
        values: Epochs, the metric by its name, and costs by rule, as on the search's page.
        tags: What it began from, its verdict, and why there is no file if there is none.
    """

    study: str
    name: str
    number: int
    settings: Mapping[str, Value]
    values: Mapping[str, float]
    tags: Mapping[str, str]


Logger = Callable[[Logged], None]

LOGGERS: Registry[Callable[[Path], Logger]] = Registry("logger")


def logged(described: Described, study: str, number: int, job: Job, outcome: Outcome) -> Logged:
    """Returns what loggers are told of a candidate."""
    metric = {} if outcome.metric is None else {described.metric: outcome.metric}
    reason = {} if outcome.reason is None else {"reason": outcome.reason}
    return Logged(
        study, f"candidate-{number}", number, dict(job.values),
        {"epochs": float(outcome.epochs), **metric, **outcome.costs},
        {"start": job.start, "verdict": outcome.verdict, **reason},
    )  # fmt: skip


class Loggers:
    """Several loggers. One that fails does not end the search: it is named, and left out.

    Args:
        names: Names in `LOGGERS`.
        folder: Of the search, for those that write files.

    Raises:
        ArgumentError: one is not installed, or cannot be reached.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """Makes the loggers."""
        self._loggers: dict[str, Logger] = {}
        self.notes: list[str] = []
        for name in names:
            try:
                self._loggers[name] = LOGGERS[name](folder)
            except EdgeCompressError:
                raise
            except Exception as error:
                raise ArgumentError(
                    "--log", "name a logger that can be reached", name, _one_line(error)
                ) from error

    def __call__(self, candidate: Logged) -> None:
        """Logs a candidate."""
        for name, logger in list(self._loggers.items()):
            try:
                logger(candidate)
            # Services and their clients raise what they like.
            except Exception as error:
                del self._loggers[name]
                self.notes.append(
                    f"Nothing is logged to {name} from {candidate.name} on: {_one_line(error)}"
                )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _missing(package: str, error: ImportError) -> ArgumentError:
    return ArgumentError(
        "--log", "name a logger that is installed", str(error), f"pip install {package}."
    )


@LOGGERS.register("tensorboard")
def _tensorboard(folder: Path) -> Logger:
    """Scalars and settings of each candidate, for TensorBoard's page HPARAMS."""
    try:
        import tensorflow as tf
        from tensorboard.plugins.hparams import api
    except ImportError as error:
        raise _missing("tensorboard", error) from error

    def log(candidate: Logged) -> None:
        writer = tf.summary.create_file_writer(str(folder / "tensorboard" / candidate.name))
        with writer.as_default():
            api.hparams({**candidate.settings, **candidate.tags}, trial_id=candidate.name)
            for name, value in candidate.values.items():
                tf.summary.scalar(name, value, step=0)
        writer.close()

    return log


@LOGGERS.register("mlflow")
def _mlflow(folder: Path) -> Logger:
    """A run for each candidate at MLFLOW_TRACKING_URI, in an experiment named after the study."""
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise _missing("mlflow", error) from error
    # The client leaves a run of the user's own, in the same process, alone.
    client = MlflowClient()

    def log(candidate: Logged) -> None:
        found = client.get_experiment_by_name(candidate.study)
        home = client.create_experiment(candidate.study) if found is None else found.experiment_id
        run = client.create_run(home, run_name=candidate.name, tags=dict(candidate.tags)).info
        for name, setting in candidate.settings.items():
            client.log_param(run.run_id, name, setting)
        for name, value in candidate.values.items():
            client.log_metric(run.run_id, name, value)
        client.set_terminated(run.run_id)

    return log


@LOGGERS.register("wandb")
def _wandb(folder: Path) -> Logger:
    """A run of Weights & Biases for each candidate, in a group named after the study."""
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", error) from error

    def log(candidate: Logged) -> None:
        run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "edgecompress"), group=candidate.study,
            name=candidate.name, config={**candidate.settings, **candidate.tags},
            dir=str(folder), reinit="create_new", settings=wandb.Settings(silent=True),
        )  # fmt: skip
        run.log(dict(candidate.values))
        run.finish()

    return log
