"""The options of `search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import (
    Choice,
    Flag,
    Number,
    Path,
    Text,
    many,
    option,
    share,
    whole,
)
from edgecompress.core.suppress_output import suppress_output
from edgecompress.core.user_functions import PathOrFunction


def _techniques() -> Mapping[str, Any]:
    # The first import of TensorFlow writes to standard error.
    with suppress_output():
        from edgecompress.searching.techniques import TECHNIQUES

    return TECHNIQUES


def _samplers() -> Mapping[str, Any]:
    from edgecompress.searching.samplers import SAMPLERS

    return SAMPLERS


def _loggers() -> Mapping[str, Any]:
    from edgecompress.searching.loggers import LOGGERS

    return LOGGERS


@dataclass(frozen=True)
class SearchDataOptions:
    """What `search` chooses and judges by."""

    validation_split: float = option(0.1, "Share of --data for validation.", share())
    metric: str | None = option(
        None,
        "Metric by which candidates are compared, as in export: e.g. auc, mean_iou, top5 or mae.",
        Text("NAME"),
        unset="accuracy, for values mse",
    )
    groups: str | None = option(
        None,
        "Array in the data that says what each sample is of, such as a person, a recording or a "
        "device: samples of one are not independent, and are not divided.",
        Text("NAME"),
        unset="independent samples",
    )
    test: Any = option(
        None,
        "Data that neither train nor choose: the chosen candidate is judged on them.",
        PathOrFunction(),
    )
    refit: bool = option(
        False,
        "Train the chosen candidate further on the validation data, too, before it is judged; "
        "needs --test.",
        Flag(),
    )


@dataclass(frozen=True)
class SearchOptions:
    """How `search` searches."""

    output: str = option("search", "Folder of the study and its files.", Path("DIR"), short="-o")
    trials: int | None = option(
        None, "Candidates in all, those of earlier runs included.", whole(1), unset="no limit"
    )
    minutes: float | None = option(
        None, "Minutes of this run.", Number("MINUTES", "be greater than 0", 1e-9),
        unset="15, without --trials",
    )  # fmt: skip
    epochs: int = option(
        18, "Epochs of the longest training; most candidates get a ninth of them.", whole(1)
    )
    jobs: int = option(1, "Candidates trained at a time.", whole(1))
    sampler: str = option("tpe", "What proposes candidates.", Choice(names=_samplers))
    techniques: Sequence[str] = option(
        (), "What may be done.", many(Choice(names=_techniques)), flag="--technique", unset="all"
    )
    storage: str | None = option(
        None,
        "Optuna storage that several workers share, e.g. postgresql://user@host/name.",
        Text("URL"),
        unset="study.db in DIR",
    )
    study: str | None = option(
        None, "Name of the study in the storage.", Text("NAME"), unset="of model, data and limits"
    )
    seed: int = option(0, "Of everything random.", whole(0))
    log: Sequence[str] = option(
        (), "Where trials are logged, too.", many(Choice("LOGGER", names=_loggers))
    )


@dataclass(frozen=True)
class ApplyOptions:
    """What becomes of a finished search."""

    apply: int | None = option(
        None,
        "Do not search: export this candidate of the study into --into, with all checks.",
        whole(0),
    )
    into: str = option("build", "Output folder of --apply.", Path("DIR"))
