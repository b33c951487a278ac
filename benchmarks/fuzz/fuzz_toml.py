"""Fuzzes TOML and its readers: target profiles, configuration files of the command line."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import atheris
import driver
import mutations

with atheris.instrument_imports(include=["edgecompress", "tomllib"]):
    from edgecompress import cli
    from edgecompress.core import reading
    from edgecompress.core.errors import EdgeCompressError
    from edgecompress.targets import profile

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def _target(path: Path) -> None:
    found = profile.load_target(path)
    profile.TargetProfile.from_dict(found.to_dict())
    found.limits.over(found.budgets)


def _config(path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["check", "none.tflite", "--config", str(path)])
    text = err.getvalue()
    if code not in (1, 2) or "internal error" in text or len(text.splitlines()) > 2:
        raise AssertionError(f"exit code {code}: {text}")


def run(data: bytes) -> None:
    """Gives one input to every reader; what one refuses may be another's."""
    path = _FOLDER / "own.toml"
    path.write_bytes(data)
    root = reading.read_toml(path)
    for read in (_target, _config) if root else ():
        try:
            read(path)
        except EdgeCompressError as error:
            if "\n" in str(error):
                raise AssertionError(repr(error)) from error


if __name__ == "__main__":
    driver.main("toml", run, mutations.toml_text)
