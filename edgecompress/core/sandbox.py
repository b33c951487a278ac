"""Drops privileges not needed to read an untrusted file; to be run in a separate process.

A process that calls `confine` can afterwards read and write only the named places, has no network,
and dies if it exceeds its memory or processor time. Linux offers all of this to any user: resource
limits, Landlock for files, a seccomp filter for sockets. Other systems offer less; what is missing
is returned, to be stated in the report.

Standard library only, and no edgecompress imports: programs that do not import the package load
this file by its path.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# <linux/prctl.h>
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
# <linux/landlock.h>; the numbers of the calls are the same on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# Rights that a rule on a single file may grant.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_RULE_PATH_BENEATH = 1
# Size of the structure that describes a set of rules, by the first ABI that knows it.
_RULESET_SIZES = ((6, 24), (4, 16), (1, 8))

# What Python, numpy and TensorFlow read from a system, besides their own folders. From /etc only
# what the loader and the C library need: it also holds keys and passwords. Under Landlock a process
# cannot read the memory or environment of others in /proc.
_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store", "/proc", "/sys", "/etc/ld.so.cache",
    "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives",
    "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/mime.types",
    "/etc/ssl/openssl.cnf", "/etc/os-release", "/dev/null", "/dev/zero", "/dev/random",
    "/dev/urandom",
)  # fmt: skip
_SINKS = ("/dev/null",)
_GRACE_S = 5

# <linux/audit.h> and the numbers of calls that reach other machines or other processes:
# socket, io_uring_setup (which opens sockets, too), ptrace, process_vm_writev, bpf, add_key,
# request_key, keyctl, userfaultfd, perf_event_open, open_by_handle_at, mount.
_CALLS = {
    "x86_64": (0xC000003E, (41, 425, 101, 311, 321, 248, 249, 250, 323, 298, 304, 165)),
    "aarch64": (0xC00000B7, (198, 425, 117, 271, 280, 217, 218, 219, 282, 241, 265, 40)),
}
_X32 = 0x40000000
# <linux/capability.h>: what root needs to read others' files; nothing else is kept.
_CAPABILITY_VERSION = 0x20080522
_KEPT = 1 << 1 | 1 << 2 | 1 << 3  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
# <linux/seccomp.h>, <linux/bpf_common.h>
_MODE_FILTER, _ALLOW, _REFUSE = 2, 0x7FFF0000, 0x00050000 | 13  # 13: EACCES
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


@dataclass(frozen=True)
class Limits:
    """Resource limits of a process; None for no limit.

    Attributes:
        memory: Bytes of private memory.
        cpu_s: Seconds of processor time, summed over its threads.
        file_bytes: Size of the largest file that it may write.
    """

    memory: int | None = None
    cpu_s: int | None = None
    file_bytes: int | None = None


def limits_for(size: int) -> Limits:
    """Returns the limits for reading, converting or running a model.

    Args:
        size: Bytes of input: the model file and the data. Conversion holds many copies
            of both: ResNet50, 103 MB, and 12 MB of data took 5.6 GB.

    Example:
        >>> limits_for(0).memory == 4 << 30
        True
    """
    memory = os.environ.get("EDGECOMPRESS_MAX_MEMORY_MIB", "")
    minutes = os.environ.get("EDGECOMPRESS_MAX_CPU_MINUTES", "")
    return Limits(
        memory=int(memory) << 20 if memory.isdecimal() else (4 << 30) + 32 * size,
        cpu_s=60 * int(minutes) if minutes.isdecimal() else 3600 + (size >> 20),
        file_bytes=(4 << 30) + 4 * size,
    )


@dataclass(frozen=True)
class Confinement:
    """Why a process is not confined: one clause per protection, "" if it is in force.

    Attributes:
        memory: Memory, processor time and the size of files are not limited.
        files: It can read and write whatever its user can.
        network: It can open connections.
    """

    memory: str = ""
    files: str = ""
    network: str = ""

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is missing, one sentence each; empty if everything is in force."""
        named = (
            ("memory and time limits", self.memory),
            ("limits on the files that it reads and writes", self.files),
            ("network isolation", self.network),
        )
        return tuple(
            f"The model file was read without {what}: {why}." for what, why in named if why
        )


def confine(
    limits: Limits, readable: Sequence[str] = (), writable: Sequence[str] = ()
) -> Confinement:
    """Confines this process and its children permanently; call it before any thread starts.

    Args:
        limits: Its resource limits.
        readable: Files and folders that it may read, besides system libraries and Python's import
            folders.
        writable: Files and folders that it may read and change.

    Returns:
        What could not be done, and why.
    """
    return Confinement(
        memory=_limit(limits),
        files=_lock_files([*_SYSTEM, *python_folders(), *readable], [*_SINKS, *writable]),
        network=_cut_network(),
    )


def die_with(parent: int) -> None:
    """Has the kernel end this process when its parent, `parent`, ends."""
    if sys.platform != "linux":
        return
    _libc().prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    # It may have ended before the kernel knew.
    if os.getppid() != parent:
        os._exit(1)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failure(what: str) -> str:
    return f"{what} failed ({os.strerror(ctypes.get_errno())})"


def _limit(limits: Limits) -> str:
    """Sets the resource limits; returns why not."""
    try:
        import resource
    except ImportError:
        return "this system has no resource limits"
    # RLIMIT_DATA counts private writable memory. RLIMIT_AS would count what libraries merely
    # reserve, too: gigabytes.
    wanted = (
        (resource.RLIMIT_DATA, limits.memory),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in wanted:
        if value is None:
            continue
        _, hard = resource.getrlimit(kind)
        # The soft time limit sends SIGXCPU, which tells why; the hard one SIGKILL.
        most = value + _GRACE_S if kind == resource.RLIMIT_CPU else value
        if hard != resource.RLIM_INFINITY:
            value, most = min(value, hard), min(most, hard)
        try:
            resource.setrlimit(kind, (value, most))
        except (OSError, ValueError) as error:
            return f"they cannot be set ({error})"
    return "" if sys.platform == "linux" else "this system does not enforce memory limits"


@functools.cache
def python_folders() -> tuple[str, ...]:
    """Returns the folders of Python and its packages, including the targets of links.

    A process looks once. One that forks others to be confined does it for all of them.
    """
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)}
    places |= {*filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))}
    found = [os.path.realpath(sys.executable), *places]
    for place in places:
        try:
            with os.scandir(place) as entries:
                found += [os.path.realpath(e.path) for e in entries if e.is_symlink()]
        except OSError:
            continue
    return tuple(found)


def _lock_files(readable: Iterable[str], writable: Iterable[str]) -> str:
    """Restricts which files can be opened (Landlock); returns why not."""
    if sys.platform != "linux":
        return "this system has no Landlock"
    libc = _libc()
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return "this Linux kernel has no Landlock"
    if _threads() > 1:
        return "other threads are already running"
    all_rights = (1 << 13) - 1
    for first, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if version >= first:
            all_rights |= right
    size = next(size for first, size in _RULESET_SIZES if version >= first)
    # Files; TCP: bind and connect, none given below; abstract sockets and signals to processes
    # outside.
    attributes = (ctypes.c_uint64 * 3)(all_rights, 3, 3)
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return _failure("making Landlock's rules")
    try:
        for paths, rights in ((readable, _READ), (writable, all_rights)):
            for path in dict.fromkeys(paths):
                if not _allow(libc, rules, path, rights & all_rights):
                    return _failure(f"giving Landlock a rule for {path}")
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _drop_capabilities(libc)
        if libc.syscall(_RESTRICT_SELF, rules, 0):
            return _failure("Landlock")
    finally:
        os.close(rules)
    return ""


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Leaves root little more than its files; with CAP_PERFMON it could read others' memory."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Two halves of effective, permitted, inheritable.
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        kept = (ctypes.c_uint32 * 6)(*(sets[at] & _KEPT if at < 3 else 0 for at in range(6)))
        libc.capset(header, kept)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> bool:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return True  # Missing paths need no rule.
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        # struct landlock_path_beneath_attr, which is packed.
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        return bool(libc.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(place)


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _cut_network() -> str:
    """Refuses new sockets, and calls that reach into other processes; returns why not."""
    if sys.platform != "linux":
        return "this system has no seccomp filters"
    known = _CALLS.get(platform.machine())
    if known is None or sys.maxsize < 1 << 32:
        return f"no filter is known for {platform.machine()}"
    architecture, calls = known
    refuse = len(calls) + 1
    steps = [
        (_LOAD, 0, 0, 4),  # The architecture: numbers differ between them.
        (_JUMP_EQUAL, 0, refuse + 2, architecture),
        (_LOAD, 0, 0, 0),  # The number of the call.
        (_JUMP_AT_LEAST, refuse, 0, _X32),
        *((_JUMP_EQUAL, len(calls) - at, 0, call) for at, call in enumerate(calls)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = b"".join(
        kind.to_bytes(2, sys.byteorder) + bytes((yes, no)) + value.to_bytes(4, sys.byteorder)
        for kind, yes, no, value in steps
    )
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = _Program(len(steps), code)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0):
        return _failure("a seccomp filter")
    return ""
