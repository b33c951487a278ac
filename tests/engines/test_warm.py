"""Forks of warm engines: like fresh processes in all but time, whatever dies and whenever."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import EngineError
from edgecompress.engines import run as engines
from edgecompress.engines import warm
from edgecompress.engines.registry import ENGINES, WORKER, Engine
from edgecompress.engines.run import engine_available, load_failure, run_engine, time_engine
from edgecompress.flatbuffers.reading import read_tflite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has warm engines"),
]

# An engine whose models are programs. What they `say` is in the message of the error.
_OWN = """
import json, os, signal, sys, time
seen = []
class OpResolverType:
    AUTO = BUILTIN_WITHOUT_DEFAULT_DELEGATES = None
def say(value):
    raise RuntimeError("<<" + json.dumps(value) + ">>")
class Interpreter:
    def __init__(self, model_content, **_):
        exec(model_content.decode(), globals())
"""
# Packages with a build of TensorFlow Lite.
_PACKAGES = sorted({"tensorflow", *(engine.module for engine in ENGINES.values())})
_PARENT = "say(os.getppid())"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Registers the engine `own`, with no server running; yields the folder of its package."""
    package = tmp_path / "packages" / "own_engine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '1'")
    (package / "interpreter.py").write_text(_OWN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(ENGINES._entries, "own", _engine())
    state = warm._State()
    monkeypatch.setattr(warm, "_state", state)
    monkeypatch.setattr(engines, "_REASON_LENGTH", 100_000)
    yield package
    for server in (*state.servers.values(), *state.replaced):
        server.end()


def _engine(worker: Path = WORKER) -> Engine:
    return Engine("own", "Own", "own", "own_engine", "lite", "Nowhere.", worker)


def said(program: str, **options: Any) -> Any:
    """Returns what a model says."""
    reason = load_failure("own", program.encode(), **options) or ""
    found = re.search("<<(.*)>>", reason)
    return json.loads(found[1]) if found else reason


def server() -> int:
    """Returns the process number of the only server."""
    (only,) = warm._state.servers.values()
    return only.process.pid


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


# ---- as a fresh process


def test_jobs_are_forks_of_one_server_and_do_not_see_each_other(own: Path) -> None:
    program = "seen.append(1); say([os.getppid(), os.getpid(), len(seen)])"
    first, second = said(program), said(program)
    assert first[0] == second[0] == server() != os.getpid()
    assert first[1] != second[1]
    assert first[2] == second[2] == 1
    assert not children(server())


_STATE = """
import resource
def kinds():
    for handle in sorted(map(int, os.listdir('/proc/self/fd'))):
        try:
            target = os.readlink(f'/proc/self/fd/{handle}')
        except OSError:
            continue
        yield handle, os.path.basename(target).split('[')[0], os.get_inheritable(handle)
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
say([
    [*kinds()], dict(os.environ), os.path.basename(os.getcwd()), sys.path, sys.flags.isolated,
    [resource.getrlimit(n) for n in range(16)], os.umask(0), str(signal.getsignal(2)),
    *(status[key] for key in ('Threads', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters', 'CapEff',
                              'SigBlk', 'SigIgn', 'SigCgt', 'Uid', 'Groups')),
])
"""


def test_a_fork_has_the_state_of_a_fresh_process(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the caller has open and has set since the server's start is not lost or passed on.
    said(_PARENT)
    monkeypatch.setenv("EDGECOMPRESS_TEST_ADDED", "\udcff1")
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        with _limited(resource.RLIMIT_NOFILE, 200):
            forked = said(_STATE)
            assert server()
            monkeypatch.setattr(warm, "fork", lambda *_: None)
            fresh = said(_STATE)
    assert forked == fresh
    assert [handle for handle, *_ in fresh[0]][:3] == [0, 1, 2] and len(fresh[0]) < 8
    assert fresh[1]["EDGECOMPRESS_TEST_ADDED"] == "\udcff1"
    assert [200, 200] not in fresh[5] and any(soft == 200 for soft, _ in fresh[5])


@contextlib.contextmanager
def _limited(kind: int, value: int) -> Iterator[None]:
    old = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, old)


@pytest.mark.parametrize("model", ["classifier", "classifier_int8", "recurrent", "two_int8"])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "own"])
def test_results_equal_those_of_a_fresh_process(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, model: str
) -> None:
    if missing := engine_available(name):
        pytest.skip(missing)
    data = (tiny / f"{model}.tflite").read_bytes()
    flat = read_tflite(data)
    generator = np.random.default_rng(5)
    inputs = [
        generator.integers(-128, 128, (3, *flat.tensors[i].shape[1:])).astype(
            np.int8 if model.endswith("int8") else np.float32
        )
        for i in flat.inputs
    ]
    tensors = (flat.operators[0].outputs[0],) if ENGINES[name].intermediates else ()
    runs = []
    forks = []
    original = warm.fork

    def counted(*arguments: Any) -> Any:
        forks.append(original(*arguments))
        return forks[-1]

    for fork in (counted, lambda *_: None):
        monkeypatch.setattr(warm, "fork", fork)
        for wanted in {(), tensors}:
            run = run_engine(name, data, inputs, tensors=wanted)
            arrays = [*run.outputs, *run.tensors.values()]
            runs.append([run.version, run.kernels, *((a.dtype, a.tobytes()) for a in arrays)])
        if fork is counted:
            (key,) = (key for key in warm._state.servers if key[1] == ENGINES[name].module)
            mapped = Path(f"/proc/{warm._state.servers[key].process.pid}/maps").read_text()
            # One build of TensorFlow Lite, and not the one in TensorFlow.
            assert [n for n in _PACKAGES if f"packages/{n}/" in mapped] == [ENGINES[name].module]
    half = len(runs) // 2
    assert runs[:half] == runs[half:]
    assert len(forks) == half and all(fork and fork.returncode is not None for fork in forks)


def test_a_measurement_gets_a_process_of_its_own(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match=f"<<{os.getpid()}>>"):
        time_engine("own", _PARENT.encode())
    assert not warm._state.servers


# ---- jobs that end badly


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.abort()", "crashed (SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory ran out"),
        ("os.write(2, b'last words'); os._exit(3)", "(exit status 3) while it handled the model. "
         "It last said: last words"),
        ("sys.exit(4)", "exit status 4"),
        ("os.close(3); os._exit(5)", "exit status 5"),
        ("bytearray(1 << 40)", "MemoryError"),
        ("open('/etc/shadow')", "PermissionError"),
        ("os.kill(os.getppid(), 9); say(1)", "PermissionError"),
    ],
)  # fmt: skip
def test_an_end_is_told_as_ever_and_leaves_the_server(
    own: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    before = said(_PARENT)
    text = said(program)
    assert said(_PARENT) == before == server()
    if "getppid" in program and not isinstance(text, str):
        pytest.skip("this kernel lets confined processes send signals")
    assert reason in text
    monkeypatch.setattr(warm, "fork", lambda *_: None)
    if "getppid" not in program:
        assert said(program) == text


def test_a_hanging_job_is_killed_and_the_server_is_not(own: Path) -> None:
    before = said(_PARENT)
    assert "1 s passed without" in said("time.sleep(600)", timeout_s=1)
    assert not children(before)
    assert said(_PARENT) == before


def test_an_interrupted_call_leaves_no_job(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = said(_PARENT)

    def interrupt(*_: Any) -> Any:
        wait_for(lambda: children(before))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines, "_listen", interrupt)
        with pytest.raises(KeyboardInterrupt):
            said("time.sleep(600)")
    assert not children(before)
    # Ctrl-C at a terminal reaches the server as well.
    os.kill(before, signal.SIGINT)
    assert said(_PARENT) == before


# ---- servers that end badly


def test_a_dead_server_is_replaced_once(own: Path) -> None:
    parents = []
    for _ in range(2):
        parents.append(said(_PARENT))
        assert parents[-1] == server()
        os.kill(server(), signal.SIGKILL)
        os.waitid(os.P_PID, server(), os.WEXITED | os.WNOWAIT)
    assert parents[0] != parents[1]
    assert [said(_PARENT) for _ in range(2)] == [os.getpid()] * 2


def test_a_job_whose_server_dies_runs_again_in_a_fresh_process(own: Path) -> None:
    before = said(_PARENT)
    program = f"os.getppid() == {os.getpid()} or time.sleep(600)\n{_PARENT}"
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(said, program)
        (job,) = wait_for(lambda: children(before))
        os.kill(before, signal.SIGKILL)
        assert answer.result(20) == os.getpid()
    wait_for(lambda: not running(job))


def test_a_server_that_does_not_answer_is_killed(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_GRACE_S", 0.3)
    before = said(_PARENT)
    os.kill(before, signal.SIGSTOP)
    assert "1 s passed" in said(_PARENT, timeout_s=1)
    assert said(_PARENT) not in (before, os.getpid())


@pytest.mark.parametrize(
    "source",
    ["import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
     "import os, sys\n'server' in sys.argv[0] and os.abort()"],
)  # fmt: skip
def test_an_engine_that_cannot_be_forked_runs_in_fresh_processes(own: Path, source: str) -> None:
    (own / "__init__.py").write_text(source)
    assert [said(_PARENT) for _ in range(3)] == [os.getpid()] * 3


# ---- which server serves


def test_an_upgraded_engine_gets_another_server(own: Path) -> None:
    assert "Own 1 cannot" in (load_failure("own", b"say(0)") or "")
    old = server()
    (own / "__init__.py").write_text("__version__ = '2.0'")
    assert "Own 2.0 cannot" in (load_failure("own", b"say(0)") or "")
    assert server() != old
    wait_for(lambda: not running(old))
    old = said(_PARENT)
    assert not warm._state.replaced
    # A package that it needs.
    (own.parent / "other-2.0.dist-info").mkdir()
    assert said(_PARENT) != old


def test_variables_of_the_loader_take_another_server(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said(_PARENT)
    monkeypatch.setenv("EDGECOMPRESS_TEST", "1")
    assert said("say([os.getppid(), os.environ['EDGECOMPRESS_TEST']])") == [first, "1"]
    monkeypatch.delenv("EDGECOMPRESS_TEST")
    assert said("say([os.getppid(), os.environ.get('EDGECOMPRESS_TEST')])") == [first, None]
    monkeypatch.setenv("LD_LIBRARY_PATH", str(own))
    assert said(_PARENT) not in (first, os.getpid())


def test_no_engine_sees_the_accelerator(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert said("say(os.environ['CUDA_VISIBLE_DEVICES'])") == "-1"


def test_the_program_of_another_package_is_not_forked(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(_PARENT)
    shutil.copy(WORKER, tmp_path / "worker.py")
    monkeypatch.setitem(ENGINES._entries, "own", _engine(tmp_path / "worker.py"))
    assert said(_PARENT) == os.getpid()


# ---- callers


def test_threads_run_engines_at_the_same_time(own: Path) -> None:
    program = "time.sleep(0.05)\n{} and os.abort()\nsay([os.getppid(), {}])"
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda n: said(program.format(n % 5 == 0, n)), range(24))]
    for n, answer in enumerate(answers):
        assert "SIGABRT" in answer if n % 5 == 0 else answer == [server(), n]


_CALLER = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from edgecompress.engines import warm
from edgecompress.engines.registry import ENGINES, Engine
from edgecompress.engines.run import load_failure
sys.path.insert(0, sys.argv[1])
ENGINES.register("own")(Engine("own", "Own", "own", "own_engine", "lite", "Nowhere."))
def server():
    return next(iter(warm._state.servers.values())).process.pid
"""


def _caller(own: Path, program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _CALLER + program, str(own.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_nothing_outlives_a_caller_that_is_killed(own: Path) -> None:
    # The second process, forked behind Python's back, keeps the caller's sockets open.
    program = """
load_failure("own", b"say(0)")
hang = threading.Thread(target=load_failure, args=("own", b"time.sleep(600)"))
hang.start()
while not (jobs := Path(f"/proc/{server()}/task/{server()}/children").read_text()):
    time.sleep(0.01)
if (other := ctypes.CDLL(None).fork()) == 0:
    time.sleep(600)
print(server(), jobs, other, flush=True)
hang.join()
"""
    with _caller(own, program) as caller:
        assert caller.stdout
        printed = caller.stdout.readline()
        caller.kill()
        pids = [*map(int, printed.split())]
        assert len(pids) == 3
        wait_for(lambda: not running(pids[0]) and not running(pids[1]))
        os.kill(pids[2], signal.SIGKILL)


def test_a_forked_caller_has_servers_of_its_own(own: Path) -> None:
    program = """
def parent(): return load_failure("own", b"say(os.getppid())").split("<<")[1].split(">>")[0]
first = parent()
lock = warm._state.lock
lock.acquire()  # As another thread may at any time.
child = os.fork()
if child == 0:
    print(parent() not in (first, str(os.getppid()), str(os.getpid())), flush=True)
    sys.exit()
lock.release()
_, status = os.waitpid(child, 0)
print(status, parent() == first, first)
os.kill(server(), signal.SIGSTOP)
"""
    with _caller(own, program) as caller:
        try:
            output = caller.communicate(timeout=30)[0].split()
        finally:
            caller.kill()
    assert output[:3] == ["True", "0", "True"] and len(output) == 4, output
    assert not running(int(output[3]))
