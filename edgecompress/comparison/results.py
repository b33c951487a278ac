"""The frozen types that a comparison returns; their JSON form is stable."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecompress.core import errors
from edgecompress.core.files import jsonable

COMPARISON_SCHEMA = "edgecompress.comparison/1"


@dataclass(frozen=True)
class Cell:
    """A number of the table, and how it is known.

    Attributes:
        value: The number; None if it is not known.
        unit: As of a check: `bytes`, `microseconds`, `share`, `number`; `count` of things.
        how_known: As of a check: `computed`, `measured_host`, `predicted`, ...; None for no number.
        where: What measured or ran it: `keras` or an engine; "" for what the file alone says.
        low: Lower end of the band of a prediction.
        high: Upper end of it.
        reason: Why the number is missing.
    """

    value: int | float | None
    unit: str
    how_known: str | None = None
    where: str = ""
    low: int | float | None = None
    high: int | float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Made:
    """A row with one seed.

    Attributes:
        row: Its position in the plan.
        label: Its name.
        seed: Of everything random in it.
        key: Hash of everything that it depends on.
        cells: Column -> number; empty if it was not made.
        reason: Why it was not made; None if it was.
        stages: What was done, a few words each.
        epochs: Epochs of all its trainings together.
        seconds: It took.
        file: Path of the file in the output folder; "" if there is none.
        notes: What was skipped or done differently, one sentence each.
        resumed: Whether an earlier run had made it.
    """

    row: int
    label: str
    seed: int
    key: str
    cells: Mapping[str, Cell] = field(default_factory=dict)
    reason: str | None = None
    stages: tuple[str, ...] = ()
    epochs: int = 0
    seconds: float = 0.0
    file: str = ""
    notes: tuple[str, ...] = ()
    resumed: bool = False


@dataclass(frozen=True)
class Subject:
    """What is compared, as the loaded model and data say it.

    Attributes:
        model: The model's name.
        metric: Name of the metric.
        higher_is_better: Whether more of it is better.
        samples: Training samples.
        validation: How the validation samples were obtained, for people.
        validation_samples: Their number.
        notes: For people, one sentence each.
    """

    model: str
    metric: str
    higher_is_better: bool
    samples: int
    validation: str
    validation_samples: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beginning:
    """Where a comparison begins.

    Attributes:
        subject: What is compared.
        keys: (row, seed, hash of everything that it depends on) of all rows.
        stored: The rows that earlier runs have made.
    """

    subject: Subject
    keys: tuple[tuple[int, int, str], ...]
    stored: tuple[Made, ...] = ()


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison: one row for each technique, with one result for each seed.

    Attributes:
        subject: What is compared; None if the model was never read.
        made: The rows, by row and seed.
        targets: Their names.
        rows: How many results the plan asks for.
        version: Version of edgecompress.
        argv: The command.
    """

    subject: Subject | None
    made: tuple[Made, ...]
    targets: tuple[str, ...]
    rows: int
    version: str
    argv: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows' names, in the order of the plan."""
        return tuple(dict.fromkeys(m.label for m in sorted(self.made, key=lambda m: m.row)))

    @property
    def missing(self) -> tuple[Made, ...]:
        """What could not be made, with the reason."""
        return tuple(made for made in self.made if made.reason is not None)

    @property
    def exit_code(self) -> int:
        """0 if every row was made with every seed, else 1."""
        whole = len(self.made) == self.rows and not self.missing
        return errors.OK if whole else errors.FAILURE

    def of(self, label: str) -> tuple[Made, ...]:
        """Returns what was made of a row, by seed."""
        return tuple(m for m in self.made if m.label == label and m.reason is None)

    def columns(self) -> tuple[str, ...]:
        """Returns the columns of which some row has a number, in order."""
        found = dict.fromkeys(name for made in self.made for name in made.cells)
        known = {n for m in self.made for n, cell in m.cells.items() if cell.value is not None}
        return tuple(name for name in found if name in known)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "schema": COMPARISON_SCHEMA,
            "tool": {"name": "edgecompress", "version": self.version, "argv": list(self.argv)},
            "subject": None if self.subject is None else jsonable(dataclasses.asdict(self.subject)),
            "targets": list(self.targets),
            "rows": [jsonable(dataclasses.asdict(made)) for made in self.made],
            "missing": [
                {"label": m.label, "seed": m.seed, "reason": m.reason} for m in self.missing
            ],
            "exit_code": self.exit_code,
        }

    def to_json(self) -> str:
        """Returns the JSON text, indented, ending in a newline."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def _repr_html_(self) -> str:
        """Returns the table for a notebook."""
        from edgecompress.comparison.rendering import table_html

        return table_html(self)


def merged(cells: Sequence[Cell]) -> Cell:
    """Returns a number over several seeds: the mean, with the smallest and the largest as band.

    Example:
        >>> merged([Cell(0.25, "share", "computed"), Cell(0.75, "share", "computed")]).value
        0.5
    """
    known = [cell for cell in cells if cell.value is not None]
    if not known:
        return cells[0]
    values = [cell.value for cell in known if cell.value is not None]
    first = known[0]
    if len(set(values)) == 1:
        return first
    lows = [c.value if c.low is None else c.low for c in known]
    highs = [c.value if c.high is None else c.high for c in known]
    return dataclasses.replace(
        first,
        value=statistics.fmean(values),
        low=min(low for low in lows if low is not None),
        high=max(high for high in highs if high is not None),
    )
