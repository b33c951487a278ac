"""Starts the jobs of engines in forks of servers that have imported the engine, one server each.

Most of a short job's time goes into starting Python and importing numpy and the engine. A server
(`engines/server.py`) does that once. Its forks are as separate from each other, from the caller and
from other engines as fresh processes are. Linux only: elsewhere, system libraries do not support
forks that go on without `exec`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgecompress.engines.server import PACKET

_PROGRAM = Path(__file__).with_name("server.py")
# Seconds that a server may take to answer; it has nothing else to do.
_GRACE_S = 5.0
# A server that dies is replaced once; after that, every job gets a fresh process.
_MOST_STARTS = 2
# Variables with these prefixes take effect when a program or library is loaded.
_READ_ONCE = ("GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "NPY_", "OMP_", "OPENBLAS_")


@dataclass
class _Server:
    """A server process and its socket for requests.

    Attributes:
        stamp: What it depends on; where that changes, another server takes over.
        starts: How many were started with that stamp.
    """

    process: subprocess.Popen[bytes]
    requests: socket.socket
    stamp: tuple[Any, ...]
    starts: int

    def end(self) -> None:
        """Ends the process and its jobs."""
        self.requests.close()
        self.process.kill()
        self.process.wait()


@dataclass
class _State:
    """The servers of this process by what they run, and replaced ones that finish their jobs."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    servers: dict[tuple[str, ...], _Server] = field(default_factory=dict)
    replaced: list[_Server] = field(default_factory=list)


_state = _State()


class Fork:
    """A job in a fork: as much of `subprocess.Popen` as `engines.run` needs.

    Attributes:
        stdout: The job's standard output.
        returncode: As in `Popen`, but still None after `wait` if the server died, and the job with
            it.
    """

    def __init__(self, server: _Server, status: socket.socket, stdout: IO[bytes]) -> None:
        """Takes over the socket and the file."""
        self.stdout = stdout
        self.returncode: int | None = None
        self._server, self._status = server, status

    def kill(self) -> None:
        """Has the server kill the job."""
        with contextlib.suppress(OSError):
            self._status.shutdown(socket.SHUT_WR)

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the job to end and returns its exit status.

        Without `timeout`, which follows `kill`, a server that does not answer is killed, too.

        Raises:
            subprocess.TimeoutExpired: the job is still running.
        """
        told = b""
        if self._status.fileno() >= 0:
            try:
                self._status.settimeout(_GRACE_S if timeout is None else timeout)
                told = self._status.recv(16)
            except TimeoutError:
                if timeout is not None:
                    raise subprocess.TimeoutExpired("job", timeout) from None
                self._server.process.kill()
            except OSError:
                pass
            self._status.close()
        if told:
            self.returncode = int(told)
        return self.returncode


def fork(
    worker: Path, job: Mapping[str, Any], path: str, log: int, environment: Mapping[str, str]
) -> Fork | None:
    """Starts a job in a fork; returns None if it needs a fresh process.

    Args:
        worker: The program that does the job.
        job: The job.
        path: File that holds the job.
        log: Descriptor that the job prints to.
        environment: The job's environment variables.
    """
    if sys.platform != "linux":
        return None
    request = {"job": path, "folder": job["folder"], "environment": dict(environment)}
    packet = json.dumps(request).encode()
    if len(packet) > PACKET:
        return None
    with contextlib.suppress(OSError), contextlib.ExitStack() as theirs:
        server = _running(worker, job, environment)
        if server is None:
            return None
        with contextlib.ExitStack() as ours:
            read, write = os.pipe()
            theirs.callback(os.close, write)
            stdout = ours.enter_context(os.fdopen(read, "rb"))
            status, other = map(ours.enter_context, socket.socketpair())
            theirs.enter_context(other)
            socket.send_fds(server.requests, [packet], [write, log, other.fileno()])
            ours.pop_all()
        return Fork(server, status, stdout)
    return None


def _running(
    worker: Path, job: Mapping[str, Any], environment: Mapping[str, str]
) -> _Server | None:
    """Returns the server for a job, started if there is none; None if it has died too often."""
    key = (str(worker), job["module"], job["interpreter"])
    stamp = tuple(_stamp(worker, job, environment))
    with _state.lock:
        # Reaps those that have ended.
        _state.replaced[:] = [old for old in _state.replaced if old.process.poll() is None]
        server, starts = _state.servers.get(key), 0
        if server is not None and server.stamp == stamp:
            if server.process.poll() is None:
                return server
            starts = server.starts
            if starts == _MOST_STARTS:
                return None
        if server is not None:
            # It ends as soon as its jobs have.
            server.requests.close()
            _state.replaced.append(server)
            del _state.servers[key]
        engine = {name: job[name] for name in ("module", "interpreter", "paths", "sandbox")}
        engine |= {"worker": str(worker), "parent": os.getpid()}
        requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other, contextlib.ExitStack() as stack:
            stack.enter_context(requests).settimeout(_GRACE_S)
            process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM), str(other.fileno()), json.dumps(engine)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=os.sep,
                env=environment,
                pass_fds=[other.fileno()],
            )
            stack.pop_all()
        server = _state.servers[key] = _Server(process, requests, stamp, starts + 1)
        return server


def _stamp(
    worker: Path, job: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[object]:
    """Yields what a process takes over at its start, and the state of the installed packages."""
    import resource

    yield sys.executable
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            yield resource.getrlimit(getattr(resource, name))
    yield from sorted(item for item in environment.items() if item[0].startswith(_READ_ONCE))
    spec = importlib.machinery.PathFinder.find_spec(job["module"], job["paths"])
    # Installing a package changes its folder; importing it adds to the package's own.
    for path in (worker, *job["paths"], *([spec.origin] if spec and spec.origin else [])):
        with contextlib.suppress(OSError):
            found = os.stat(path)
            yield path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _forget() -> None:
    """Leaves the servers to the process that this one was forked from."""
    global _state
    for server in (*_state.servers.values(), *_state.replaced):
        server.requests.close()
        server.process.returncode = 0  # Not a child of this process, which must not wait for it.
    _state = _State()


def _end() -> None:
    for server in (*_state.servers.values(), *_state.replaced):
        server.end()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
