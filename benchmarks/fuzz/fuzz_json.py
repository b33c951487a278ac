"""Fuzzes JSON and its readers: bundles, measurement files, records, states of recipes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import driver
import mutations

with atheris.instrument_imports(include=["edgecompress"]):
    from edgecompress.core import bundle, reading, record
    from edgecompress.core.errors import EdgeCompressError
    from edgecompress.targets import measurement, measurement_checks
    from edgecompress.targets.profile import load_target

_TARGETS = [load_target("pixel-8"), load_target("cortex-m4")]
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
(_FOLDER / "golden").mkdir()
for _name in mutations.BUNDLE_FILES:
    (_FOLDER / _name).write_bytes(mutations.FILE)


def _bundle(data: bytes) -> None:
    (_FOLDER / bundle.BUNDLE_FILE).write_bytes(data)
    found = bundle.read_bundle(_FOLDER)
    found.to_json()
    for model in found.models:
        found.samples(model)


def _measurement(data: bytes) -> None:
    found = measurement.parse_measurement(data, "x.json")
    for item in found.measurements:
        measurement_checks.latency_check(item, 1000.0)
    measurement_checks.check_target(found, _TARGETS)


def _record(data: bytes) -> None:
    (_FOLDER / "m.keras").write_bytes(b"model")
    record.sidecar_path(_FOLDER / "m.keras").write_bytes(data)
    found, _ = record.read_record(_FOLDER / "m.keras")
    if found is not None:
        record.sidecar_text(found.merged(found), b"model")


_READERS: tuple[Callable[[bytes], None], ...] = (_bundle, _measurement, _record)


def run(data: bytes) -> None:
    """Gives one input to every reader; what one refuses may be another's."""
    root = reading.parse_json(data, "x.json")
    reading.parse_json(data.decode("utf-8-sig"), "x.json")
    for read in _READERS if isinstance(root, dict) else ():
        try:
            read(data)
        except EdgeCompressError as error:
            if "\n" in str(error):
                raise AssertionError(repr(error)) from error


if __name__ == "__main__":
    driver.main("json", run, mutations.json_text)
