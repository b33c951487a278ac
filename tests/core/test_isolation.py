"""The process that reads model files: what it cannot reach, how it can end, what is believed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgecompress.core import errors, isolation
from edgecompress.core.errors import ArgumentError, IsolatedDefect, ProcessError
from edgecompress.core.isolation_child import _NotInstalled
from edgecompress.core.sandbox import Limits

# What runs in the process; each function is what a hostile file might make of it.
_ATTACKS = """
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path

def attempt(what):
    try:
        what()
        return "done"
    except BaseException as error:
        return type(error).__name__

def reach(own, other, tell, gaps):
    tell("progress", "two\\nlines \\x1b[2J")
    tell("event", {"epoch": 1})
    found = {
        "read own": attempt(lambda: Path(own).read_text()),
        "temporary": attempt(lambda: __import__("tempfile").mkdtemp()),
        "read": attempt(lambda: Path(other, "secret").read_text()),
        "write": attempt(lambda: Path(other, "new").write_text("x")),
        "here": attempt(lambda: Path("new").write_text("x")),
        "delete": attempt(lambda: Path(other, "secret").unlink()),
        "home": attempt(lambda: Path("~").expanduser().joinpath("new").write_text("x")),
        "network": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        "started": attempt(lambda: subprocess.run(
            [sys.executable, "-c", f"open({other + '/child'!r}, 'w')"], check=True,
            stderr=subprocess.DEVNULL)),
        "import": attempt(lambda: __import__("beside")),
        "path": str(os.getcwd() in sys.path or "" in sys.path),
        "secret": os.environ.get("MY_API_TOKEN", "none"),
    }
    return {"found": found, "gaps": list(gaps)}, {"a.txt": "text", "c/b.bin": b"bytes"}

def variable(name, tell, gaps):
    return os.environ.get(name, "none"), {}

def accelerator(device, tell, gaps):
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    return [seen, attempt(lambda: Path(device).write_text("x"))], {}

def spin(tell, gaps):
    while True: pass

def hog(tell, gaps):
    return len(bytearray(1 << 40)), {}

def abort(tell, gaps):
    print("terminate called: std::bad_alloc", file=sys.stderr, flush=True)
    os.abort()

def crash(tell, gaps):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def leave(tell, gaps):
    os._exit(0)

def raise_own(tell, gaps):
    from edgecompress.core.errors import ArgumentError
    raise ArgumentError("--calibration", "be finite", "nan")

def raise_other(tell, gaps):
    raise ZeroDivisionError("of a library")

def forge(lie, tell, gaps):
    folder = os.environ["TMPDIR"]
    if lie == "link":
        os.symlink("/etc/passwd", folder + "/file_0")
        names = ["a.txt"]
    elif lie == "pipe":
        os.mkfifo(folder + "/file_0")
        names = ["a.txt"]
    else:
        Path(folder, "file_0").write_text("x")
        names = json.loads(lie)
    text = json.dumps({"value": 1, "files": names})
    Path(folder, "result.json").write_text("[" * 100_000 if lie == '"deep"' else text)
    os._exit(0)

def wait(place, tell, gaps):
    Path(place).write_text(str(os.getpid()))
    time.sleep(100)
"""


@pytest.fixture
def attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds the module `attacks` and another one."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "attacks.py").write_text(_ATTACKS)
    (folder / "beside.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(folder)
    return folder


def call(function: str, **arguments: Any) -> isolation.Answer:
    return isolation.call(f"attacks:{function}", arguments, modules=["attacks"])


def test_allocators_are_frugal_but_for_training(
    attacks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TF_ONEDNN_USE_SYSTEM_ALLOCATOR"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    assert call("variable", name=name).value == "1"
    # The caller's own settings win.
    assert call("variable", name="MALLOC_ARENA_MAX").value == "3"
    training = isolation.call(
        "attacks:variable", {"name": name}, modules=["attacks"], training=True
    )
    assert training.value == "none"


@pytest.mark.parametrize(
    ("given", "training", "seen"),
    [(None, False, "-1"), (None, True, "none"), ("1", False, "1"), ("1", True, "1"),
     ("-1", True, "-1")],
)  # fmt: skip
def test_the_accelerator_is_for_training(
    given: str | None, training: bool, seen: str, attacks: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    device = tmp_path / "nvidia0"
    device.write_text("")
    monkeypatch.setattr(isolation.glob, "glob", lambda pattern: [str(device)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    answer = isolation.call(
        "attacks:accelerator", {"device": str(device)}, modules=["attacks"], training=training
    )
    # The file of the device opens where training may see it.
    assert answer.value == [seen, "done" if training and seen != "-1" else "PermissionError"]


def test_it_reaches_what_it_was_given_alone(
    attacks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hush")
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret").write_text("secret")
    (tmp_path / "model").write_text("model")
    told: list[Any] = []
    answer = isolation.call(
        "attacks:reach",
        {"own": str(tmp_path / "model"), "other": str(other)},
        readable=[tmp_path / "model"],
        modules=["attacks"],
        progress=told.append,
        on_event=told.append,
    )
    assert told == ["two lines \x1b[2J", {"epoch": 1}]
    assert answer.files == {"a.txt": b"text", "c/b.bin": b"bytes"}
    if answer.value["gaps"]:
        pytest.skip("this system does not offer all of it")
    found = answer.value["found"]
    inside = {found.pop(name) for name in ("read own", "temporary", "home")}
    assert inside == {"done"}
    assert (found.pop("path"), found.pop("secret")) == ("False", "none")
    assert found.pop("import") == "ModuleNotFoundError"
    assert found.pop("started") == "CalledProcessError"
    assert set(found.values()) == {"PermissionError"}, found
    assert [p.name for p in other.iterdir()] == ["secret"]
    assert not (attacks / "imported").exists() and not (attacks / "new").exists()


def test_modules_of_the_current_folder_are_imported_on_demand_only(attacks: Path) -> None:
    with pytest.raises(IsolatedDefect, match="attacks"):
        isolation.call("attacks:leave", {})
    with pytest.raises(ArgumentError, match="--import.*'nowhere'"):
        isolation.call("attacks:leave", {}, modules=["nowhere"])
    (attacks / "leaving.py").write_text("raise SystemExit(0)")
    with pytest.raises(ArgumentError, match="--import.*'leaving'.*SystemExit: 0"):
        isolation.call("attacks:leave", {}, modules=["leaving"])


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("hog", "more memory than its process may take.*EDGECOMPRESS_MAX_MEMORY_MIB"),
        ("abort", "ran out of memory; it may take 4.00 GiB"),
        ("crash", r"crashed \(SIGSEGV\).*last words"),
        ("leave", "ended with 0"),
    ],
)
def test_every_way_to_die_is_one_line(attacks: Path, function: str, text: str) -> None:
    with pytest.raises(ProcessError, match=text) as caught:
        call(function)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is Linux's")
def test_processor_time_runs_out(attacks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "limits_for", lambda size: Limits(1 << 30, 2, 1 << 20))
    with pytest.raises(ProcessError, match="stopped after 2 s of processor time"):
        call("spin")


def test_silence_is_bounded(attacks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_SILENCE_S", 2.0)
    with pytest.raises(ProcessError, match="silent for 2 s"):
        call("wait", place=os.devnull)


def test_errors_come_back_as_they_are(attacks: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        call("raise_own")
    assert str(caught.value) == "`--calibration` must be finite. Got 'nan'."
    assert (caught.value.exit_code, caught.value.argument) == (errors.USAGE, "--calibration")
    with pytest.raises(IsolatedDefect) as defect:
        call("raise_other")
    assert (type(defect.value).__name__, str(defect.value)) == ("ZeroDivisionError", "of a library")


@pytest.mark.parametrize(
    "lie",
    ['["../a.txt"]', '["/etc/passwd"]', '["a/../../b"]', '[".hidden"]', '["a\\u001b[2J"]',
     '["a\\nb"]', "[7]", '["a", "b"]', "3", '"deep"', "link", "pipe"],
)  # fmt: skip
def test_a_forged_result_is_not_believed(attacks: Path, lie: str) -> None:
    with pytest.raises(ProcessError, match="not a result"):
        call("forge", lie=lie)


@dataclass(frozen=True)
class _Value:
    size: int
    names: tuple[str, ...]


def test_values_of_the_wrong_kind_are_not_believed() -> None:
    value = _Value(3, ("a",))
    assert isolation.decode(_Value, {"size": 3, "names": ["a"]}) == value
    assert isolation.encode(value) == {"size": 3, "names": ("a",)}
    for wrong in ({"size": "many", "names": []}, {"size": 3}, {"size": 3, "names": 7}, [], None):
        with pytest.raises(ProcessError, match="not a _Value"):
            isolation.decode(_Value, wrong)


def test_what_cannot_be_sent_is_said() -> None:
    with pytest.raises(ArgumentError, match="be a loaded model"):
        isolation.call("json:dumps", {"x": lambda: None})


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends children with their parents")
def test_it_dies_with_the_process_that_started_it(attacks: Path, tmp_path: Path) -> None:
    # The only place that the process may write into, told by the caller.
    place = tmp_path / "place"
    place.mkdir()
    program = (
        "from edgecompress.core import isolation\n"
        f"isolation.call('attacks:wait', {{'place': {str(place / 'pid')!r}}},"
        f" writable=[{str(place)!r}], modules=['attacks'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=attacks) as parent:
        for _ in range(600):
            if (place / "pid").exists() and (place / "pid").read_text():
                break
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    child = int((place / "pid").read_text())
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or _is_dead(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it lives on")


def _is_dead(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_it_runs_on_tensorflow_whatever_the_user_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert isolation._environment(tmp_path, {})["KERAS_BACKEND"] == "tensorflow"


def test_what_it_has_no_use_for_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [_NotInstalled(["colorsys"]), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(ModuleNotFoundError, match="No module named 'colorsys'"):
        importlib.import_module("colorsys")
    assert "colorsys" not in sys.modules
    assert {"jax", "matplotlib"} <= set(isolation._UNUSED)
