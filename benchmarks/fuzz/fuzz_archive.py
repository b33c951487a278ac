"""Fuzzes zip archives: any, those of Keras, the app's package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import atheris
import driver
import mutations

with atheris.instrument_imports(include=["edgecompress", "zipfile"]):
    from edgecompress.core import reading
    from edgecompress.core.errors import EdgeCompressError

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def run(data: bytes) -> None:
    """Opens, reads and verifies; then as a .keras file."""
    with reading.open_archive(data, "x.zip") as archive:
        for name in archive.names:
            if not reading.is_inside(name):
                raise AssertionError(name)
            if len(archive.read(name)) != archive.sizes[name]:
                raise AssertionError(f"{name} is not as long as it says")
        archive.verify()
    path = _FOLDER / "m.keras"
    path.write_bytes(data)
    try:
        reading.check_keras_archive(path)
    except EdgeCompressError as error:
        if "\n" in str(error):
            raise AssertionError(repr(error)) from error


if __name__ == "__main__":
    driver.main("archive", run, mutations.zip_archive)
