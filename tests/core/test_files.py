"""Files appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core import files, folders
from edgecompress.core.errors import ArgumentError, DiskFullError
from edgecompress.core.files import (
    compressed_size,
    jsonable,
    sha256,
    sweep,
    write_atomic,
    write_together,
)
from edgecompress.core.folders import scratch_folder, temporary_folder


def test_sha256_of_the_published_example() -> None:
    # FIPS 180-2, appendix B.1.
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _large(kind: str) -> bytes:
    """Returns 17 MiB that end within a part."""
    random, count = np.random.default_rng(0), (17 << 20) + 12345
    if kind == "weights":
        return random.normal(size=count // 4 + 1).astype(np.float32).tobytes()[:count]
    if kind == "zeros":
        return bytes(count)
    clustered = random.integers(0, 16, count).astype(np.int8)
    clustered[random.random(count) < 0.7] = 0
    # Weights, then what repeats itself: a sample of one says nothing of the other.
    return random.bytes(9 << 20) + clustered[: 1 << 20].tobytes() + bytes(range(256)) * 28672


@pytest.mark.parametrize("kind", ["weights", "zeros", "mixed"])
def test_the_compressed_size_of_large_files_is_no_worse_than_zlibs(kind: str) -> None:
    """In parts, and without looking for repetitions where there are none."""
    data = _large(kind)
    level_9, found = len(zlib.compress(data, 9)), compressed_size(data)
    # A part costs some bytes of its own; what is all zeros is mostly that.
    assert found <= 1.002 * level_9 + 64 * len(data) // (1 << 20)
    assert found > 0.85 * level_9


def test_the_compressed_size_of_small_files_is_zlibs() -> None:
    data = np.random.default_rng(0).normal(size=9000).astype(np.float32).tobytes()
    assert compressed_size(data) == len(zlib.compress(data, 9))


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


@pytest.mark.parametrize("where", ["fsync", "mkdir", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    path = write_atomic(tmp_path / "report.json", "old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(os, where, fail)
    expected = DiskFullError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomic(path, "new")
    if isinstance(caught.value, DiskFullError):
        assert "report.json: No space left on device. Free some space" in str(caught.value)
        # 2 is for a command that was used wrongly.
        assert caught.value.exit_code == 1
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


# --- several files at one moment ------------------------------------------------------------------

_NEW: dict[str, bytes | str] = {"a.json": "new", "c/model.cc": b"new", "d/e/f.bin": b"new"}
_OTHERS = {"notes.txt": b"mine", "d/notes.txt": b"mine", "runs/1/log.txt": b"log"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with old files, and files of others."""
    folder = tmp_path / "build"
    for name, data in {**_OTHERS, "a.json": b"old", "c/model.cc": b"old"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder, hidden ones included."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file()}  # fmt: skip


_OLD_CONTENT = {**_OTHERS, "a.json": b"old", "c/model.cc": b"old"}
_NEW_CONTENT = {**_OTHERS, **dict.fromkeys(_NEW, b"new")}


def _never(one: Path, other: Path) -> None:
    raise OSError(22, "Invalid argument")


def test_a_folder_is_made_with_its_files(tmp_path: Path) -> None:
    write_together(tmp_path / "x" / "y", _NEW)
    assert _content(tmp_path / "x" / "y") == dict.fromkeys(_NEW, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("swap", [True, False])
def test_files_of_others_and_the_folder_itself_stay(
    old: Path, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr(files, "exchange", _never)
    (old / "link").symlink_to("notes.txt")
    old.chmod(0o2775)
    (old / "runs").chmod(0o555)
    before = {path: path.lstat() for path in (old, *old.rglob("*"))}
    write_together(old, _NEW)
    assert {k: v for k, v in _content(old).items() if k != "link"} == _NEW_CONTENT
    assert [p.name for p in old.parent.iterdir()] == ["build"]
    replaced = {old / name for name in _NEW}
    for path, was in before.items():
        now = path.lstat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
        assert (now.st_ino == was.st_ino) == (path not in replaced), path
        assert path.is_dir() or now.st_nlink == 1
    assert os.readlink(old / "link") == "notes.txt"


def test_at_no_moment_there_is_a_mix(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the folder before and after each step that changes something in it."""
    seen = []

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            seen.append(_content(old))
            result = function(*args, **kwargs)
            seen.append(_content(old))
            return result

        return watched

    for name in ("mkdir", "link", "replace", "rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, watch(getattr(os, name)))
    monkeypatch.setattr(files, "exchange", watch(files.exchange))
    write_together(old, _NEW)
    turn = seen.index(_NEW_CONTENT)
    assert 5 < turn < len(seen) - 5
    assert all(content == _OLD_CONTENT for content in seen[:turn])
    assert all(content == _NEW_CONTENT for content in seen[turn:])


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("where", ["fsync", "mkdir", "link", "replace", "exchange"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whatever_fails_leaves_all_old_or_all_new_files(
    old: Path, monkeypatch: pytest.MonkeyPatch, swap: bool, where: str, error: BaseException
) -> None:
    module = files if where == "exchange" else os
    if not swap:
        monkeypatch.setattr(files, "exchange", _never)
    function = getattr(module, where)
    outcomes = set()
    for failing in range(100):
        with monkeypatch.context() as patch:
            calls = 0

            def fail(*args: Any, failing: int = failing, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == failing + 1:
                    raise error
                return function(*args, **kwargs)

            patch.setattr(module, where, fail)
            outcome = "new"
            try:
                write_together(old, _NEW)
            except (DiskFullError, KeyboardInterrupt) as caught:
                outcome = "failed"
                assert isinstance(caught, DiskFullError) == isinstance(error, OSError)
        found = _content(old)
        assert found in ([_NEW_CONTENT] if outcome == "new" else [_OLD_CONTENT, _NEW_CONTENT])
        assert [p.name for p in old.parent.iterdir()] == ["build"]
        outcomes.add(outcome)
        if calls <= failing:
            break
        for name in ("a.json", "c/model.cc"):
            (old / name).write_bytes(b"old")
        shutil.rmtree(old / "d" / "e", ignore_errors=True)
    assert failing < 99 and "new" in outcomes
    if where == "fsync":
        assert ("failed" in outcomes) == (not swap or isinstance(error, KeyboardInterrupt))


def test_what_others_write_meanwhile_stays(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = files.exchange
    calls = []

    def late(one: Path, other: Path) -> None:
        swap(one, other)
        calls.append(one)
        if len(calls) == 1:
            (old / "late.txt").write_text("late")
            (old / "more").mkdir()
            (old / "more" / "late.txt").write_text("late")
            os.replace(shutil.copy(old / "runs/1/log.txt", old / "t"), old / "runs/1/log.txt")
            with open(old / "runs/1/log.txt", "ab") as file:
                file.write(b" late")

    monkeypatch.setattr(files, "exchange", late)
    write_together(old, _NEW)
    assert len(calls) == 2
    late_content = {"late.txt": b"late", "more/late.txt": b"late", "runs/1/log.txt": b"log late"}
    assert _content(old) == {**_NEW_CONTENT, **late_content}


def test_links_to_folders_are_followed(old: Path, tmp_path: Path) -> None:
    shutil.rmtree(old / "c")
    (tmp_path / "elsewhere").mkdir()
    (old / "c").symlink_to("../elsewhere")
    (tmp_path / "link").symlink_to("build")
    write_together(tmp_path / "link", _NEW)
    assert (old / "c").is_symlink() and (tmp_path / "link").is_symlink()
    assert (old / "a.json").read_bytes() == (old / "d/e/f.bin").read_bytes() == b"new"
    assert _content(tmp_path / "elsewhere") == {"model.cc": b"new"}


def test_a_path_that_is_a_folder_is_refused(old: Path) -> None:
    (old / "a.json").unlink()
    (old / "a.json").mkdir()
    with pytest.raises(ArgumentError, match=r"a\.json.*It is a folder"):
        write_together(old, _NEW)
    assert (old / "c/model.cc").read_bytes() == b"old"


def test_very_many_files_are_not_linked(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_LINKS", 3)
    monkeypatch.setattr(files, "exchange", lambda one, other: pytest.fail("swapped"))
    write_together(old, _NEW)
    assert _content(old) == _NEW_CONTENT


# --- what killed runs leave -----------------------------------------------------------------------


def test_scratch_of_the_living_stays_and_of_the_dead_goes(tmp_path: Path) -> None:
    dead = tmp_path / f"{folders.PREFIX}dead"
    (dead / "inner").mkdir(parents=True)
    (dead / "inner" / "link").symlink_to(tmp_path)
    (tmp_path / "mine").write_text("")
    with scratch_folder(tmp_path) as living:
        sweep(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {living.name, "mine"}
        assert stat.S_IMODE(living.stat().st_mode) == 0o700
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_temporary_folders_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(folders, "_sweep_temporary", folders._sweep_temporary.__wrapped__)
    (tmp_path / f"{folders._TEMPORARY_PREFIX}dead").mkdir()
    mine = tmp_path / "edgecompress-mine"
    mine.mkdir()
    with temporary_folder() as folder:
        write_atomic(folder / "x", "")
        with temporary_folder() as other:
            assert {*tmp_path.iterdir()} == {mine, folder.parent, other.parent}
    assert [*tmp_path.iterdir()] == [mine]


def test_every_temporary_folder_is_one_that_others_leave_alone() -> None:
    """One that is not locked, and carries the name of those that are, would vanish in use."""
    root = Path(__file__).resolve().parents[2]
    parts = (root / part for part in ("edgecompress", "converters", "targets"))
    sources = [path for part in parts for path in part.rglob("*.py")]
    assert len(sources) > 100
    assert not [p.name for p in sources if 'prefix="edgecompress' in p.read_text()]


def test_a_folder_that_another_process_has_locked(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_LONGEST_WAIT_S", 0.05)
    handle = os.open(old, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ArgumentError, match="no other process has locked"):
            write_together(old, _NEW)
    finally:
        os.close(handle)
    assert _content(old) == _OLD_CONTENT
    assert [p.name for p in old.parent.iterdir()] == ["build"]


def _half_done(folder: Path) -> Path:
    """Leaves what a run leaves that was killed when one of two files had taken its place."""
    dead = folder / f"{folders.PREFIX}dead"
    (dead / "files" / "c").mkdir(parents=True)
    (dead / "files" / "a.json").write_text("new")
    (dead / "files" / "c" / "model.cc").write_text("new")
    journal = {
        name: [files._identity(folder / name), files._identity(dead / "files" / name)]
        for name in ("a.json", "c/model.cc")
    }
    (dead / "journal.json").write_text(json.dumps(journal))
    os.replace(dead / "files" / "a.json", folder / "a.json")
    return dead


def test_the_next_write_ends_what_a_killed_run_has_begun(old: Path) -> None:
    _half_done(old)
    write_atomic(old / "b", "")
    assert _content(old) == {**_OTHERS, "a.json": b"new", "c/model.cc": b"new", "b": b""}


@pytest.mark.parametrize("name", ["a.json", "c/model.cc"])
def test_files_that_changed_since_are_left_alone(old: Path, name: str) -> None:
    _half_done(old)
    (old / name).write_bytes(b"mine")
    sweep(old)
    both = {"a.json": b"new", "c/model.cc": b"old", name: b"mine"}
    assert _content(old) == {**_OTHERS, **both}


@pytest.mark.parametrize(
    "journal",
    ["", "[]", "null", '{"a.json": 1}', "[" * 10_000,
     '{"../stolen": [null, null], "x": [[1, 2], 1]}',
     '{"/stolen": [null, null], "x": [null, [1, 2]]}'],
)  # fmt: skip
def test_a_journal_that_is_none_is_not_followed(old: Path, journal: str) -> None:
    dead = _half_done(old)
    (dead / "journal.json").write_text(journal)
    (dead / "stolen").write_text("stolen")
    sweep(old)
    assert _content(old) == {**_OLD_CONTENT, "a.json": b"new"}
    assert {p.name for p in old.parent.iterdir()} == {"build"}


def test_a_journal_does_not_lead_through_a_link(old: Path, tmp_path: Path) -> None:
    _half_done(old)
    (tmp_path / "elsewhere").mkdir()
    os.rename(old / "c" / "model.cc", tmp_path / "elsewhere" / "model.cc")
    (old / "c").rmdir()
    (old / "c").symlink_to("../elsewhere")
    sweep(old)
    assert _content(tmp_path / "elsewhere") == {"model.cc": b"old"}


_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_tests.py"


# Storing for good takes most of the time.
_IN_MEMORY = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}


def _kill(program: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "--kills", "6", "--share", "9"],
        env={**os.environ, "PYTHONPATH": str(_SCRIPT.parent), **_IN_MEMORY},
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()[-1]


def test_kills_leave_all_old_or_all_new_files_and_nothing_else() -> None:
    code, line = _kill("import kill_tests, sys; sys.exit(kill_tests.main())")
    assert code == 0, line
    assert int(line.split()[0]) > 120
    assert "mix 0, lost 0, left behind 0" in line


def test_kills_show_a_mix_and_what_is_left_behind() -> None:
    program = """
import os, sys
from edgecompress.core import files
import kill_tests

def rename_one_by_one(folder, contents):
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f".edgecompress-{name.replace('/', '-')}").write_bytes(data)
    for name in contents:
        os.replace(folder / f".edgecompress-{name.replace('/', '-')}", folder / name)

files.write_together = rename_one_by_one
kill_tests.CASES = {"broken": kill_tests.Case(kill_tests._together)}
sys.exit(kill_tests.main())
"""
    code, line = _kill(program)
    assert code == 1
    assert " mix 0" not in line


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
