"""Runs the jobs of one engine, each in a fork of a process that has imported the engine.

Usage: `python -I server.py SOCKET ENGINE`, started by `engines.warm`: the number of an inherited
socket, and a job without a model, as JSON. A request is one packet, a job's file and environment as
JSON, with three descriptors: where the answers go, where the log goes, and a socket for the exit
status. The caller ends a job by shutting that socket down.

The server reads no model and nothing that an engine wrote: of a job it learns the exit status, from
the kernel. It ends with the program that started it, and the jobs end with the server. Linux only,
and nothing of edgecompress is imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import sys
from types import ModuleType
from typing import Any

# Bytes of the longest request.
PACKET = 128 << 10
# <linux/prctl.h>, and a number that all architectures share; Python may be built without it.
_PR_SET_PDEATHSIG, _PIDFD_OPEN = 1, 434


def _watch(pid: int) -> int:
    """Returns a descriptor that can be read once a process has ended."""
    handle = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_OPEN, pid, 0)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    return int(handle)


def serve(requests: socket.socket, parent: int, worker: ModuleType) -> None:
    """Forks a process for every request until the parent ends or closes its side."""
    own, interrupt = os.getpid(), signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll = select.poll()
    ended = _watch(parent)
    # From here on only the end of the whole parent counts, not that of the thread that started it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    if os.getppid() != parent:
        return
    for handle in (ended, requests.fileno()):
        poll.register(handle, select.POLLIN)
    # By descriptor: (process, its end, the socket of its status), each under both descriptors.
    jobs: dict[int, tuple[int, int, socket.socket]] = {}
    accepting = True
    while accepting or jobs:
        # One at a time: a later event may be of a descriptor that an earlier one closes.
        handle = poll.poll()[0][0]
        if handle == ended:
            return
        if handle == requests.fileno():
            packet, handles = _receive(requests)
            if not packet:
                accepting = False
                poll.unregister(handle)
            elif len(handles) == 3:
                answers, log, status = handles
                pid = os.fork()
                if pid == 0:
                    signal.signal(signal.SIGINT, interrupt)
                    _work(worker, own, json.loads(packet), answers, log)
                job = pid, _watch(pid), socket.socket(fileno=status)
                for each in (job[1], status):
                    jobs[each] = job
                    poll.register(each, select.POLLIN)
                handles = [answers, log]
            for each in handles:
                os.close(each)
            continue
        pid, end, told = jobs[handle]
        poll.unregister(handle)
        if handle != end:
            # Nobody has waited for it yet, so the number is still its own.
            os.kill(pid, signal.SIGKILL)
            del jobs[handle]
            continue
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if jobs.pop(told.fileno(), None):
            poll.unregister(told)
        with contextlib.suppress(OSError):
            told.send(str(code).encode())
        told.close()
        os.close(end)
        del jobs[end]


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    """Returns a request and its descriptors; an empty one if the other side is closed."""
    try:
        packet, handles, _, _ = socket.recv_fds(requests, PACKET, 3)
    except ConnectionError:
        return b"", []
    return packet, handles


def _work(worker: ModuleType, parent: int, job: dict[str, Any], answers: int, log: int) -> None:
    """Becomes the process of one job, with what a fresh one would have, and ends."""
    code = 1
    try:
        os.dup2(answers, 1)
        os.dup2(log, 2)
        for handle in map(int, os.listdir("/proc/self/fd")):
            # The folder's own is closed already.
            with contextlib.suppress(OSError):
                if handle > 2:
                    os.close(handle)
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        code = worker.main(job["job"], parent)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def main(handle: int, engine: dict[str, Any]) -> int:
    """Imports an engine and serves it; returns the exit code, 1 if it cannot be forked."""
    parent = engine["parent"]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    spec = importlib.util.spec_from_file_location("worker", engine["worker"])
    if spec is None or spec.loader is None:
        return 1
    worker = sys.modules["worker"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    worker.prepare(engine)
    if len(os.listdir("/proc/self/task")) > 1:
        return 1  # A fork would lose the other threads.
    # The forks share these pages as long as nobody counts references in them.
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=handle), parent, worker)
    return 0


if __name__ == "__main__":
    # Skips the destructors, as the worker does.
    os._exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
