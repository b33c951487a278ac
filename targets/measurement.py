"""Measurement files: what the demo app, or `bench`, measured on a bundle.

docs/measurement.schema.json describes the file. A file comes from another machine, so nothing in it
is trusted: its form, the model's SHA-256 and the target are checked before a number counts.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ModelFileError, UnreadableFileError
from edgecompress.core.forms import read
from edgecompress.core.reading import JSON_LIMIT, read_bytes
from edgecompress.core.structured import parse_json
from edgecompress.targets.measurement_form import MEASUREMENT_SCHEMA, MeasurementForm, wrong_form

# MLPerf Mobile's rule for repeats of a run (v4.0): if further apart, they allow no verdict.
MOST_SPREAD_PCT = 5.0
# Android's thermal status: at 1 (light) a device may already slow down a little; from 2 (moderate)
# on it does so noticeably.
THERMAL_MODERATE = 2


@dataclass(frozen=True)
class Measurement:
    """One model with one setting.

    Attributes:
        data: The whole entry, as docs/measurement.schema.json describes it.
    """

    data: Mapping[str, Any] = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the model that was run."""
        return str(self.data["model"]["sha256"])

    @property
    def setting(self) -> str:
        """Kind of the file, threads and kernels, human-readable."""
        config = self.data["config"]
        threads = "1 thread" if config["threads"] == 1 else f"{config['threads']} threads"
        return f"{self.data['model']['kind']}, {threads}, XNNPACK " + (
            "on" if config["xnnpack"] else "off"
        )

    @property
    def median(self) -> float | None:
        """Microseconds of one inference: CPU time if it was measured, else wall clock."""
        latency = self.data["latency_us"]
        if latency is None:
            return None
        cpu = latency.get("cpu_medians")
        return float(statistics.median(cpu) if cpu else latency["median"])

    @property
    def repeats(self) -> tuple[float, ...]:
        """The medians of the repeats, which form the band of the result."""
        latency = self.data["latency_us"]
        if latency is None:
            return ()
        return tuple(latency.get("cpu_medians") or latency["repeat_medians"])

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Why there is no result, or only part of one: `code` and `message`."""
        found: Mapping[str, Any] | None = self.data["error"]
        return found

    def doubt(self) -> str | None:
        """Returns why the times allow no verdict; None if they do."""
        golden = self.data["golden"]
        if golden is not None and not golden["passed"]:
            return "The outputs differ from the golden ones, so something else was timed."
        spread = spread_pct(self.repeats)
        if spread > MOST_SPREAD_PCT:
            return f"The repeats lie {spread:.1f} % apart, more than {MOST_SPREAD_PCT:g} %."
        before, after = (self.data["state"][f"thermal_{end}"] for end in ("before", "after"))
        if before is not None and after is not None and after > before:
            return f"The device got hotter (thermal status {before} to {after}) and may be slowed."
        hottest = max(before or 0, after or 0)
        if hottest >= THERMAL_MODERATE:
            return f"The device was throttled (thermal status {hottest})."
        return None


@dataclass(frozen=True)
class MeasurementFile:
    """A measurement file.

    Attributes:
        path: The file it was read from.
        data: The whole object.
        measurements: One for each model and setting.
    """

    path: str
    data: Mapping[str, Any] = field(repr=False)
    measurements: tuple[Measurement, ...] = ()

    @property
    def target(self) -> str | None:
        """Name of the target it was measured for."""
        bundle = self.data["bundle"]
        return None if bundle is None else bundle["target"]


def read_measurement(path: Path | str) -> MeasurementFile:
    """Reads a measurement file.

    Raises:
        ModelFileError: it cannot be read, is not complete JSON, or does not conform to
            docs/measurement.schema.json.

    Example:
        >>> read_measurement("result.json").measurements[0].median  # doctest: +SKIP
        305.2
    """
    return parse_measurement(read_bytes(path, JSON_LIMIT), str(path))


def parse_measurement(content: bytes, label: str) -> MeasurementFile:
    """Parses the content of a measurement file.

    Args:
        content: The file's content.
        label: Its name in errors.

    Raises:
        ModelFileError: as in `read_measurement`.
    """
    try:
        root = parse_json(content, label)
    except UnreadableFileError as error:
        cut = "" if content.rstrip().endswith(b"}") else " The file is cut off."
        raise ModelFileError(
            f"{label} is not a measurement file: it {error.problem}.{cut}"
        ) from error
    schema = root.get("schema") if isinstance(root, dict) else None
    if schema != MEASUREMENT_SCHEMA:
        raise ModelFileError(
            f"{label} must have the schema {MEASUREMENT_SCHEMA}. Got {str(schema)[:60]!r}. Measure "
            "again with the app and the edgecompress of one version."
        )
    read(MeasurementForm, root, functools.partial(wrong_form, label))
    return MeasurementFile(label, root, tuple(Measurement(m) for m in root["measurements"]))


def spread_pct(medians: Sequence[float]) -> float:
    """Returns the spread of repeats: (slowest / fastest - 1) in percent.

    Example:
        >>> round(spread_pct([100.0, 104.0, 106.0]), 1)
        6.0
    """
    return (max(medians) - min(medians)) / min(medians) * 100 if medians else 0.0
