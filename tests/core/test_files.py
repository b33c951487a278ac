"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.core.files import jsonable, sha256, write_atomic


def test_sha256_of_the_published_example() -> None:
    # FIPS 180-2, appendix B.1.
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_writes_bytes_and_text(tmp_path: Path) -> None:
    assert write_atomic(tmp_path / "a", b"\x00\x01").read_bytes() == b"\x00\x01"
    assert write_atomic(str(tmp_path / "b"), "caf\u00e9").read_bytes() == "caf\u00e9".encode()
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("where", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    path = write_atomic(tmp_path / "report.json", "old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(os, where, fail)
    expected = ArgumentError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomic(path, "new")
    if expected is ArgumentError:
        assert "No space left on device" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "a", tmp_path / "file" / "a", tmp_path):
        with pytest.raises(ArgumentError, match="`output` must be a writable place"):
            write_atomic(path, b"")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArgumentError, match="Permission denied"):
            write_atomic(tmp_path / "a", b"")
    finally:
        tmp_path.chmod(0o700)


def test_jsonable() -> None:
    value = {
        1: (np.int64(2), np.float32(0.5)),
        "array": np.arange(3, dtype=np.int8),
        "none": [float("nan"), np.float64("inf"), None],
        "plain": [True, "text", 1 << 60],
    }
    plain = jsonable(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "1": [2, 0.5],
        "array": [0, 1, 2],
        "none": [None, None, None],
        "plain": [True, "text", 1 << 60],
    }
    assert type(plain["1"][0]) is int
