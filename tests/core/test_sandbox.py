"""What a confined process can and cannot do; the kernel itself is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core import sandbox
from edgecompress.core.errors import EngineError, EngineNotRunError
from edgecompress.core.sandbox import Confinement, Limits, limits_for
from edgecompress.engines import run as engines
from edgecompress.engines.registry import Engine
from edgecompress.engines.run import load_failure, run_engine, session

# Each line is one attempt; its result, or the name of the error, is printed.
_PROGRAM = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("sandbox", {source!r})
sandbox = importlib.util.module_from_spec(spec)
sys.modules["sandbox"] = sandbox
spec.loader.exec_module(sandbox)
found = dict(gaps=sandbox.confine(sandbox.Limits(1 << 30, 100, 1 << 20), [{own!r}], [{own!r}]).gaps)
def attempt(name, what):
    try:
        what()
        found[name] = "done"
    except BaseException as error:
        found[name] = type(error).__name__
def connect():
    import socket
    socket.create_connection(("127.0.0.1", {port}), 1)
attempt("read inside", lambda: open({own!r} + "/inside").read())
attempt("write inside", lambda: open({own!r} + "/new", "w").write("x"))
attempt("read outside", lambda: open({other!r} + "/secret").read())
attempt("write outside", lambda: open({other!r} + "/new", "w"))
attempt("overwrite outside", lambda: open({other!r} + "/secret", "r+"))
attempt("empty outside", lambda: os.truncate({other!r} + "/secret", 0))
attempt("delete outside", lambda: os.unlink({other!r} + "/secret"))
attempt("move in", lambda: os.rename({other!r} + "/secret", {own!r} + "/stolen"))
attempt("link and read", lambda: (os.symlink({other!r} + "/secret", {own!r} + "/link"),
                                  open({own!r} + "/link").read()))
attempt("connect", connect)
attempt("large file", lambda: open({own!r} + "/big", "wb").write(bytes(2 << 20)))
attempt("memory", lambda: bytearray(2 << 30))
attempt("library", lambda: __import__("decimal"))
attempt("environment of others", lambda: open("/proc/%d/environ" % os.getppid()).read())
import subprocess
child = "open({other!r} + '/child', 'w')".format(other={other!r})
attempt("child", lambda: subprocess.run([sys.executable, "-c", child], check=True,
                                        stderr=subprocess.DEVNULL))
print(json.dumps(found))
"""


def _places(folder: Path) -> tuple[Path, Path]:
    own, other = folder / "own", folder / "other"
    own.mkdir()
    other.mkdir()
    (own / "inside").write_text("mine")
    (other / "secret").write_text("secret")
    return own, other


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_a_confined_process_reaches_its_own_places_only(tmp_path: Path) -> None:
    import socket

    own, other = _places(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = _PROGRAM.format(
            source=sandbox.__file__, own=str(own), other=str(other), port=server.getsockname()[1]
        )
        done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    if found.pop("gaps"):
        pytest.skip("this kernel does not offer all of it")
    expected = {
        "read inside": "done", "write inside": "done", "library": "done",
        "read outside": "PermissionError", "write outside": "PermissionError",
        "overwrite outside": "PermissionError", "empty outside": "PermissionError",
        "delete outside": "PermissionError", "move in": "PermissionError",
        "link and read": "PermissionError", "connect": "PermissionError",
        "large file": "OSError", "memory": "MemoryError",
        "environment of others": "PermissionError", "child": "CalledProcessError",
    }  # fmt: skip
    # Moving between folders is its own error where the kernel compares the rights of both.
    assert found.pop("move in") in ("PermissionError", "OSError")
    expected.pop("move in")
    assert found == expected
    assert (other / "secret").read_text() == "secret"
    assert [path.name for path in other.iterdir()] == ["secret"]


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is Linux's")
def test_processor_time_is_bounded() -> None:
    program = _PROGRAM.split("found =")[0].format(source=sandbox.__file__)
    program += "sandbox.confine(sandbox.Limits(cpu_s=1))\nwhile True: pass"
    done = subprocess.run([sys.executable, "-I", "-c", program], timeout=60)
    assert -done.returncode in (24, 9)  # SIGXCPU, SIGKILL


def test_what_a_system_does_not_offer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Confinement().gaps == ()
    gaps = Confinement(files="this Linux kernel has no Landlock").gaps
    assert gaps == (
        "The model file was read without limits on the files that it reads and writes: "
        "this Linux kernel has no Landlock.",
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sandbox._lock_files([], []) == "this system has no Landlock"
    assert sandbox._cut_network() == "this system has no seccomp filters"


def test_limits_grow_with_the_file_and_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits_for(1 << 30).memory == (4 << 30) + (32 << 30)
    monkeypatch.setenv("EDGECOMPRESS_MAX_MEMORY_MIB", "500")
    monkeypatch.setenv("EDGECOMPRESS_MAX_CPU_MINUTES", "2")
    assert limits_for(1 << 30) == Limits(500 << 20, 120, (4 << 30) + (4 << 30))


# --- engines ------------------------------------------------------------------------------------

# A TFLite build that a hostile model has taken over.
_TAKEN = """
import os
from pathlib import Path

class OpResolverType:
    AUTO = BUILTIN_WITHOUT_DEFAULT_DELEGATES = None

class Interpreter:
    def __init__(self, **_):
        for attempt in (
            lambda: Path({other!r}, "new").write_text("x"),
            lambda: Path({other!r}, "secret").unlink(),
            lambda: print("leaked " + Path({other!r}, "secret").read_text(), flush=True),
            lambda: __import__("socket").create_connection(("127.0.0.1", 9), 1),
        ):
            try:
                attempt()
            except PermissionError:
                continue
            except OSError as error:
                print(error, flush=True)
            raise RuntimeError("it got out")
        raise RuntimeError("all refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_an_engine_that_a_model_took_over_reaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = _places(tmp_path)
    package = tmp_path / "packages" / "taken"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '1'")
    (package / "interpreter.py").write_text(_TAKEN.format(other=str(other)))
    monkeypatch.syspath_prepend(str(package.parent))
    engine = Engine("taken", "Taken", "taken", "taken", "lite", "")
    monkeypatch.setitem(engines.ENGINES._entries, "taken", engine)
    with session() as shared:
        problem = load_failure("taken", b"\0\0\0\0TFL3")
    if shared.gaps:
        pytest.skip("this kernel does not offer all of it")
    assert problem is not None and "all refused" in problem
    assert [path.name for path in other.iterdir()] == ["secret"]


def _worker(folder: Path, program: str) -> Engine:
    path = folder / "worker.py"
    path.write_text(program)
    return Engine("own", "Own", "own", "own", "lite", "", worker=path)


def test_an_engines_answer_cannot_name_a_file_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "secret.npy", np.arange(3))
    secret = str(tmp_path / "secret.npy")
    program = (
        "import json, os, sys\njob = json.load(open(sys.argv[1]))\n"
        "link = os.path.join(job['folder'], 'outputs_0.npy')\n{make}\n"
        f"print(json.dumps(dict(result=dict(outputs=[{secret!r}], tensors=[]), version='1',"
        " kernels='x')))\n"
    )
    x = [np.zeros((1, 2), np.float32)]
    for make in ("", f"os.symlink({secret!r}, link)"):
        engine = _worker(tmp_path, program.replace("{make}", make))
        monkeypatch.setitem(engines.ENGINES._entries, "own", engine)
        with pytest.raises(EngineError, match="left no result"):
            run_engine("own", b"", x)


def test_a_model_that_never_ends_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "PATIENCE_S", 0.5)
    engine = _worker(tmp_path, "import time\ntime.sleep(100)")
    for name in ("own", "other"):
        monkeypatch.setitem(engines.ENGINES._entries, name, engine)
    with session() as shared:
        assert shared.patience_s == 0.5
        problem = load_failure("own", b"")
        assert problem is not None and "0.5 s passed without a finished inference" in problem
        with pytest.raises(EngineNotRunError, match="in all engines together"):
            load_failure("other", b"")
    with session() as shared:
        assert shared.patience_s == 0.5
    assert os.path.exists(engine.worker)
