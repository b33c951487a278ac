"""Fuzzes arrays: .npy, .npz, and .npy contents inside of a sound archive."""

from __future__ import annotations

import io
import zipfile

import atheris
import driver
import mutations

with atheris.instrument_imports(include=["edgecompress", "numpy.lib.format"]):
    from edgecompress.core import reading


def run(data: bytes) -> None:
    """The first byte says what the rest is."""
    kind, content = data[:1], data[1:]
    if kind == b"m":
        # A member whose checksum is right: damage reaches the header.
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("x.npy", content)
        content = buffer.getvalue()
    found = reading.read_arrays(content)
    for array in found.values() if isinstance(found, dict) else (found,):
        array.astype(array.dtype.newbyteorder("="))
        if array.nbytes > 64 * len(content) + (1 << 20):
            raise AssertionError(f"{array.nbytes} bytes from {len(content)}")


if __name__ == "__main__":
    driver.main("npz", run, mutations.prefixed)
