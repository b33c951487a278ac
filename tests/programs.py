"""Runs programs in processes forked off one that has TensorFlow loaded: 2.5 s saved each time.

What runs is what `python PROGRAM` would run, in a process, folder, environment and import path of
its own; only the libraries from outside are there before it starts. For tests of what a program
does: how Python starts, what is imported, signals and confinement need the real thing.

Run as a program, this file is the process that forks: `programs.py FILE_DESCRIPTOR`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What edgecompress imports in the course of its work; nothing of edgecompress itself.
_LIBRARIES = (
    "tensorflow", "keras", "tensorflow.lite.python.lite", "h5py", "numpy", "click", "rich.console",
    "rich.progress", "rich.table", "pydantic", "jinja2", "flatbuffers", "platformdirs",
)  # fmt: skip
_LARGEST_REQUEST = 1 << 17
_START_S = 120
_PR_SET_PDEATHSIG = 1
# Where the arguments of Popen._execute_child have them.
_CWD, _ENVIRONMENT, _PIPES, _NEW_SESSION = 5, 6, slice(10, 16), 20


class Programs:
    """Runs Python programs by forking; its server starts with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def run(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python ARGUMENTS` like `subprocess.run`, and captures its output as text.

        Args:
            arguments: Perhaps `-P` or `-I`; then `-c CODE`, `-m MODULE` or a script; then what
                the program is given.
            cwd: Its folder; this process's if None.
            env: Its environment; this process's if None.
            timeout: Seconds until it is killed, and TimeoutExpired raised.
        """
        words = [os.fspath(word) for word in arguments]
        if not hasattr(os, "fork"):
            return subprocess.run(
                [sys.executable, *words], cwd=cwd, env=env, timeout=timeout, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
        request = {
            "arguments": words,
            "cwd": os.path.abspath(cwd or "."),
            "env": dict(os.environ if env is None else env),
        }
        with (
            open(os.devnull, "rb") as nothing,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            status = self._ask(request, [f.fileno() for f in (nothing, out, err)], timeout)
            texts = [(stream.seek(0), stream.read().decode())[1] for stream in (out, err)]
        return subprocess.CompletedProcess([sys.executable, *words], status, *texts)

    def close(self) -> None:
        """Ends the server."""
        if self._socket is not None and self._server is not None:
            self._socket.close()
            self._server.wait(timeout=_START_S)
        self._server = self._socket = None

    def _ask(self, request: Mapping[str, Any], files: list[int], timeout: float) -> int:
        """Returns the exit code of a program that the server forks, as Popen has it."""
        connection = self._socket or self._start()
        socket.send_fds(connection, [json.dumps(request).encode()], files)
        connection.settimeout(_START_S)
        pid = int(connection.recv(64))
        connection.settimeout(timeout)
        try:
            return int(connection.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            connection.recv(64)
            raise subprocess.TimeoutExpired(request["arguments"], timeout) from None

    def _start(self) -> socket.socket:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            )
        return self._socket


# --- the process that forks -----------------------------------------------------------------------

_status = 0


def _serve(connection: socket.socket) -> None:
    """Forks a program for each request; in the program's process, returns when it has run."""
    _die_with_parent()
    # The first function registered runs last.
    atexit.register(_leave)
    for name in _LIBRARIES:
        importlib.import_module(name)
    if "edgecompress" in sys.modules:
        raise RuntimeError("a library imports edgecompress, so no program would")
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(connection, _LARGEST_REQUEST, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            _die_with_parent()
            request = json.loads(message)
            _take(request, files)
            if _Popen.prepare():
                _run(request["arguments"])
            return
        for file in files:
            os.close(file)
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _take(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Gives this process the streams, folder and environment of a program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None


def _leave() -> None:
    """Ends this process without destructors, which take longer than most programs."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)


def _run(arguments: Sequence[str]) -> None:
    """Does what `python ARGUMENTS` does; notes the exit code for `_leave`."""
    global _status
    try:
        _execute(arguments)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        _status = code if isinstance(code, int) else int(code is not None)
        raise


def _execute(arguments: Sequence[str]) -> None:
    options = [word for word in arguments[:1] if word in ("-P", "-I")]
    kind, *rest = arguments[len(options) :]
    named = {"-c": "", "-m": os.getcwd()}
    if "-I" not in options:
        places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [os.path.abspath(place) for place in places if place]
    if not options:
        sys.path.insert(0, named.get(kind, os.path.dirname(os.path.abspath(kind))))
    if kind in named:
        program, *rest = rest
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    source = program if kind == "-c" else Path(kind).read_bytes()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind != "-c":
        main.__file__ = kind
    exec(compile(source, "<string>" if kind == "-c" else kind, "exec"), vars(main))


# --- the confined process that a program starts ---------------------------------------------------


class _Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts the first `isolation_child.py` of a program as a process that has been waiting for it.

    It was forked when the program had not begun: it knows no module of edgecompress, and is the
    program's own child, as it must be to die with it.
    """

    _waiting: tuple[int, socket.socket] | None = None

    @classmethod
    def prepare(cls) -> bool:
        """Forks the process; returns False in that process, when it has run and is to end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.Popen = cls  # type: ignore[misc]
        pid = os.fork()
        if pid:
            theirs.close()
            cls._waiting = pid, ours
            return True
        ours.close()
        message, files, _, _ = socket.recv_fds(theirs, _LARGEST_REQUEST, 3)
        if not message:
            os._exit(0)
        request = json.loads(message)
        _take(request, files)
        if request["new_session"]:
            os.setsid()
        theirs.send(b"1")
        theirs.close()
        _run(request["arguments"])
        return False

    def _execute_child(self, args: Any, *more: Any) -> None:
        words = [] if isinstance(args, str) else [os.fspath(word) for word in args]
        script = os.path.basename(words[2]) if words[1:2] == ["-I"] else ""
        if script == "worker.py" and words[3:]:
            _shorten(words[3])
        waiting = type(self)._waiting
        if waiting is None or script != "isolation_child.py":
            super()._execute_child(args, *more)  # type: ignore[misc]
            return
        type(self)._waiting = None
        self.pid, connection = waiting
        request = {
            "arguments": words[1:],
            "cwd": os.fspath(more[_CWD - 1]),
            "env": dict(more[_ENVIRONMENT - 1]),
            "new_session": bool(more[_NEW_SESSION - 1]),
        }
        pipes = more[_PIPES.start - 1 : _PIPES.stop - 1]
        files = [
            own if own != -1 else number for number, own in enumerate(pipes[i] for i in (0, 3, 5))
        ]
        with connection:
            socket.send_fds(connection, [json.dumps(request).encode()], files)
            connection.recv(1)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _shorten(path: str) -> None:
    """Has an engine's job measure latency for milliseconds."""
    job = json.loads(Path(path).read_text())
    if job.get("min_seconds"):
        Path(path).write_text(json.dumps({**job, "min_seconds": 0.02}))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
