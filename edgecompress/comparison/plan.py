"""The TOML file of a comparison: what is compared on which data, and the rows of the table."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.forms import (
    CLOSED,
    AboveZero,
    Count,
    Fault,
    Items,
    Object,
    Positive,
    Share,
    Text,
    filled,
    read,
)
from edgecompress.core.reading import read_toml
from edgecompress.core.user_functions import is_function

_LONGEST_LABEL = 60


@dataclass(frozen=True)
class Row:
    """A row of the table: what is done to the model, and what file is made of it.

    Attributes:
        label: Its name in the table.
        stages: What is done, in order; each a table with a key of `STAGES`. None: the model as it
            is.
        export: Keys of the file, over those of the plan.
    """

    __pydantic_config__ = CLOSED

    label: Text
    stages: Items[Object] = ()
    export: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A comparison as its file has it.

    Attributes:
        rows: The rows of the table.
        model: Path of the trained model.
        data: Training data: an .npz file or a folder of images.
        validation: The data that every row is measured on; None: a share of `data`.
        validation_split: That share.
        pixels: As for `compress`.
        metric: Name of a Keras metric; None: accuracy, or the mean squared error of values.
        targets: Names, or paths of .toml profiles.
        epochs: Of each stage that trains, unless it has its own.
        learning_rate: That Adam begins a stage with; it falls to 0 as half a cosine.
        batch_size: Samples of an update.
        seeds: Every row is made once for each.
        export: `format`, and options of formats and targets.
    """

    __pydantic_config__ = CLOSED

    rows: Annotated[Items[Row], filled("a list of at least one table, [[rows]]")]
    model: Text | None = None
    data: Text | None = None
    validation: Text | None = None
    validation_split: Share = 0.2
    pixels: Text | None = None
    metric: Text | None = None
    targets: Annotated[Items[Text], filled("a list of at least one target")] = ("cortex-m4",)
    epochs: Positive = 5
    learning_rate: AboveZero = 1e-3
    batch_size: Positive = 64
    seeds: Annotated[Items[Count], filled("a list of at least one whole number")] = (0,)
    export: Object = field(default_factory=dict)


def read_plan(source: Path | str | Mapping[str, Any]) -> Plan:
    """Returns a plan from its TOML file, or from a mapping with the same keys.

    Paths in a file are relative to the file's folder.

    Args:
        source: Path of the file, or the mapping.

    Raises:
        UnreadableFileError: the file is not TOML.
        ArgumentError: a key is unknown or missing, or a value breaks its rule.

    Example:
        >>> read_plan({"rows": [{"label": "untouched"}]}).epochs
        5
    """
    if isinstance(source, Mapping):
        return _checked(read(Plan, dict(source), functools.partial(_wrong, "plan")), "plan")
    path = Path(source)
    if path.suffix != ".toml":
        raise ArgumentError("FILE", "be a .toml file that describes a comparison", str(path))
    plan = read(Plan, read_toml(path), functools.partial(_wrong, path.name))
    return _checked(_beside(plan, path), path.name)


def wanted(plan: Plan) -> Iterator[tuple[int, int]]:
    """Yields (row, seed) of all results of a plan: every row once before any a second time.

    Example:
        >>> list(wanted(Plan((Row("a"), Row("b")), seeds=(0, 1))))
        [(0, 0), (1, 0), (0, 1), (1, 1)]
    """
    for seed in plan.seeds:
        for row in range(len(plan.rows)):
            yield row, seed


def _wrong(origin: str, fault: Fault) -> ArgumentError:
    """Returns the error on a file; its places are `key` and `rows[0].key`."""
    if fault.known:
        table, _, key = fault.place.rpartition(".")
        return UnknownNameError(f"{origin}: key{f' in {table}' if table else ''}", key, fault.known)
    rule = fault.rule.removesuffix(" or null").replace("an object", "a table of keys and values")
    rule = "be given" if fault.missing else f"be {rule}"
    return ArgumentError(f"{origin}: {fault.place}", rule, fault.got)


def _checked(plan: Plan, origin: str) -> Plan:
    """Refuses what the form cannot say."""
    seen: set[str] = set()
    for number, row in enumerate(plan.rows):
        where = f"{origin}: rows[{number}].label"
        if not 0 < len(row.label.strip()) <= _LONGEST_LABEL or not row.label.isprintable():
            raise ArgumentError(where, f"be 1 to {_LONGEST_LABEL} printable characters", row.label)
        if row.label in seen:
            raise ArgumentError(where, "be different from the other rows'", row.label)
        seen.add(row.label)
    # The serialized form of a metric may name a module, which is code.
    if plan.metric is not None and not plan.metric.isidentifier():
        raise ArgumentError(f"{origin}: metric", "be the name of a Keras metric", plan.metric)
    if len(set(plan.seeds)) < len(plan.seeds):
        raise ArgumentError(f"{origin}: seeds", "differ from one another", list(plan.seeds))
    if not 0 < plan.validation_split < 1:
        raise ArgumentError(
            f"{origin}: validation_split", "be above 0 and below 1", plan.validation_split
        )
    return plan


def _beside(plan: Plan, path: Path) -> Plan:
    """Returns the plan of a file with its paths relative to the file's folder."""

    def place(key: str) -> str | None:
        value = getattr(plan, key)
        if is_function(value):
            raise ArgumentError(
                f"{path.name}: {key}", "be a file or a folder: a function is code", value,
                "Name it on the command line.",
            )  # fmt: skip
        return None if value is None else str(path.parent / value)

    targets = tuple(
        str(path.parent / name) if name.endswith(".toml") else name for name in plan.targets
    )
    return replace(
        plan,
        targets=targets,
        model=place("model"),
        data=place("data"),
        validation=place("validation"),
    )
