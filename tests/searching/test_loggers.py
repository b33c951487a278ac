"""Where candidates are logged: read back from what the services keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.searching.knobs import Knob
from edgecompress.searching.loggers import LOGGERS, Logged, Loggers, logged
from edgecompress.searching.results import Described, Job, Outcome

DESCRIBED = Described(
    (Knob("channels.rounds", 4, (4, 1)),), {}, "accuracy", True, "x", ("arena",), {"arena": 5.0},
    True, 2.0, 0.5,
)  # fmt: skip
JOB = Job({"channels.rounds": 1, "coding.sparsity": 0.5, "channels.criterion": "taylor"})
VALUES = {"epochs": 3.0, "accuracy": 0.8, "arena": 896.0}


@pytest.fixture
def candidate() -> Logged:
    made = Outcome("key", "parent", 3, 0.8, costs={"arena": 896.0}, verdict="pass")
    return logged(DESCRIBED, "study", 7, JOB, made)


def test_accuracy_is_logged_by_its_name_and_with_its_own_sign(candidate: Logged) -> None:
    # Optuna minimises its negative.
    assert candidate.values == VALUES
    assert candidate.settings == JOB.values
    assert candidate.tags == {"start": JOB.start, "verdict": "pass"}


def test_a_candidate_without_a_file_says_why() -> None:
    failed = Outcome("key", "parent", reason="no file")
    found = logged(DESCRIBED, "study", 7, JOB, failed)
    assert found.values == {"epochs": 0.0}
    assert found.tags["reason"] == "no file"


def test_a_logger_that_fails_is_named_and_left_out(
    candidate: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def offline(candidate: Logged) -> None:
        seen.append("offline")
        raise ConnectionError("no\nnetwork")

    loggers = {"offline": lambda _: offline, "list": lambda _: lambda one: seen.append(one.name)}
    for name, made in loggers.items():
        monkeypatch.setitem(LOGGERS._entries, name, made)
    both = Loggers(["offline", "list"], tmp_path)
    both(candidate)
    both(candidate)
    assert seen == ["offline", "candidate-7", "candidate-7"]
    assert both.notes == [
        "Nothing is logged to offline from candidate-7 on: ConnectionError: no network"
    ]


def test_a_logger_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(folder: Path) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(LOGGERS._entries, "unreachable", unreachable)
    with pytest.raises(ArgumentError, match="--log` must name a logger that can be reached") as it:
        Loggers(["unreachable"], tmp_path)
    assert "ConnectionError: no network" in str(it.value)


def test_tensorboard_shows_values_and_settings(candidate: Logged, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.util.tensor_util import make_ndarray

    LOGGERS["tensorboard"](tmp_path)(candidate)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "candidate-7")).Reload()
    for name, value in VALUES.items():
        (event,) = events.Tensors(name)
        assert make_ndarray(event.tensor_proto) == pytest.approx(value)
    kept = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(kept).session_start_info.hparams
    assert settings["channels.rounds"].number_value == 1
    assert settings["channels.criterion"].string_value == "taylor"


@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_mlflow_has_a_run_with_values_and_settings(
    candidate: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="mlflow is not installed")
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    logger = LOGGERS["mlflow"](tmp_path)
    logger(candidate)
    logger(candidate)
    client = mlflow.MlflowClient(place)
    home = client.get_experiment_by_name("study").experiment_id
    run, other = client.search_runs([home])
    assert run.info.run_name == other.info.run_name == "candidate-7"
    assert run.info.status == "FINISHED"
    assert run.data.metrics == VALUES
    assert run.data.params == {name: str(value) for name, value in JOB.values.items()}
    assert run.data.tags["verdict"] == "pass"


def test_wandb_keeps_a_run(
    candidate: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    LOGGERS["wandb"](tmp_path)(candidate)
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"channels.criterion" in kept.read_bytes()
