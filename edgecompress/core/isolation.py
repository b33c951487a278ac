"""Runs a function on untrusted files in a separate, confined process, and returns its results.

Whatever a model file does to the libraries that read it happens there: the process has no network,
writes into one temporary folder, reads only what it was given, and has memory and time limits. It
returns JSON and bytes, never objects: by then, it may have been taken over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import importlib.util
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from edgecompress.core import errors
from edgecompress.core.errors import (
    ArgumentError,
    EdgeCompressError,
    IsolatedDefect,
    ProcessError,
)
from edgecompress.core.folders import temporary_folder
from edgecompress.core.sandbox import Limits, limits_for
from edgecompress.core.terminal import shown
from edgecompress.core.units import format_size

T = TypeVar("T")

_CHILD = Path(__file__).with_name("isolation_child.py")
# One line of progress, the result's JSON, one file, and how many files.
_LONGEST_LINE = 1 << 20
_LARGEST_RESULT = 256 << 20
_MOST_FILES = 10_000
# Seconds without output: longer than the processor time of any step.
_SILENCE_S = 7200.0
_PLAIN_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")
_DEEPEST = 4
# Keras and TensorFlow import them, if they are installed, for functions that only users call; that
# takes half a second each.
_UNUSED = ("matplotlib", "jax", "sklearn")
# TensorFlow's own allocator keeps what it once took: a model's weights three times. The C library
# gives large blocks back when they are freed; by default, it learns to keep those up to 32 MiB.
_FRUGAL = {
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
}
# Only training takes the accelerator, and only as much of its memory as it needs: others may train
# on it meanwhile.
_DEVICES = "CUDA_VISIBLE_DEVICES"
_UNTRAINED = {**_FRUGAL, _DEVICES: "-1"}
_TRAINED = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
_HINT = (
    "Set EDGECOMPRESS_MAX_MEMORY_MIB or EDGECOMPRESS_MAX_CPU_MINUTES for a model that needs more."
)


@dataclass(frozen=True)
class Answer:
    """The result of an isolated function.

    Attributes:
        value: A JSON value.
        files: Name -> bytes; names are relative and stay inside a folder.
    """

    value: Any
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def call(
    function: str,
    arguments: Mapping[str, Any],
    *,
    readable: Sequence[Path | str] = (),
    writable: Sequence[Path | str] = (),
    modules: Sequence[str] = (),
    functions: Mapping[str, str] | None = None,
    training: bool = False,
    progress: Callable[[str], None] | None = None,
    on_event: Callable[[Any], None] | None = None,
    on_start: Callable[[Callable[[], None]], None] | None = None,
    verbose: bool = False,
) -> Answer:
    """Runs `function(**arguments, tell=..., gaps=...)` in a confined process.

    Args:
        function: `module:function`. It returns (value, files): a JSON value, and name -> bytes or
            text. It may call `tell("progress", text)` and `tell("event", value)`; `gaps` are the
            missing protections, one sentence each.
        arguments: Anything that can be pickled.
        readable: Files and folders that it may read.
        writable: Further folders that it may write into.
        modules: Modules that are imported first, from the current folder, too.
        functions: Functions of the user's that it calls, argument -> `module:function`; their
            modules are imported and readable like `modules`. Defaults to None.
        training: Whether it trains: no time limit, all of the machine's memory and its accelerator.
        progress: Called with each text of progress.
        on_event: Called with each event.
        on_start: Called with a function that kills the process, from any thread.
        verbose: Let its standard error through.

    Returns:
        Its value and files.

    Raises:
        EdgeCompressError: what the function raised; ProcessError: the process died.
        IsolatedDefect: it raised anything else.
    """
    if not sys.executable:
        raise ProcessError(
            "Model files are read in a separate Python process, but this program does not know "
            "where Python is (sys.executable is empty). Load the model and pass it instead."
        )
    limits = limits_for(sum(_bytes_of(Path(path)) for path in readable))
    devices: list[str] = []
    if training:
        limits = dataclasses.replace(
            limits, cpu_s=None, memory=max(limits.memory or 0, _machine_memory())
        )
        if os.environ.get(_DEVICES) != "-1":
            devices = glob.glob("/dev/nvidia*")
    with _folder() as folder:
        job = {
            "function": function,
            "folder": str(folder),
            "paths": _import_folders(),
            "modules": [
                *(("--import", name) for name in modules),
                *((key, name.partition(":")[0]) for key, name in (functions or {}).items()),
            ],
            "here": _here(),
            "readable": [*_package_folders(), *(str(Path(path).resolve()) for path in readable)],
            "writable": [*devices, *(str(Path(path).resolve()) for path in writable)],
            "limits": dataclasses.asdict(limits),
            "parent": os.getpid(),
            "verbose": verbose,
            # Training writes pages with charts, and modules of the user's own may import anything.
            "unused": [] if training or modules or functions else _UNUSED,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "arguments.pickle").write_bytes(_pickled(arguments))
        log = folder / "log.txt"
        with open(log, "wb") as errors_to:
            process = subprocess.Popen(
                # -I: nothing is imported from the current folder or from PYTHON* variables.
                [sys.executable, "-I", str(_CHILD), str(folder / "job.json")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if verbose else errors_to,
                cwd=folder,
                env=_environment(folder, _TRAINED if training else _UNTRAINED),
                # Ctrl-C is the caller's to handle; it ends the whole group.
                start_new_session=os.name == "posix",
            )
            reader = threading.Thread(target=_let_through, args=(process.stderr,), daemon=True)
            reader.start()
            try:
                if on_start is not None:
                    on_start(lambda: _kill(process))
                failure = _listen(process, None if training else _SILENCE_S, progress, on_event)
            finally:
                _end(process)
                reader.join(timeout=5)
        if failure is not None:
            raise failure
        if process.returncode != 0 or not (folder / "result.json").is_file():
            raise _death(process.returncode, log, limits)
        return _result(folder)


def encode(value: Any) -> dict[str, Any]:
    """Returns a frozen dataclass in a lossless JSON form for `decode`."""
    return dataclasses.asdict(value)


def decode(kind: type[T], value: Any) -> T:
    """Returns the dataclass that an isolated function returned, after checking all its fields.

    Raises:
        ProcessError: the value is invalid.
    """
    from pydantic import ValidationError

    try:
        # A class is hashable, which its annotation as a type variable does not say.
        key: Any = kind
        found: T = _adapter(key).validate_python(value, by_alias=False, by_name=True)
        return found
    except (ValidationError, RecursionError) as error:
        raise ProcessError(
            "The process that reads the model returned something that is not a "
            f"{kind.__name__} ({_one_line(str(error), 200)})."
        ) from error


@functools.cache
def _adapter(kind: type) -> Any:
    """Returns what checks values of a type: making it takes longer than a check."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder.resolve()


def _environment(folder: Path, defaults: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of the process: settings and caches in its own folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "HDF5_")) and not _SECRET.search(name)
    }
    own = ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
           "MPLCONFIGDIR", "KERAS_HOME")  # fmt: skip
    # HDF5 filters are code; none is loaded from elsewhere.
    fixed = {"HDF5_PLUGIN_PRELOAD": "::", "KERAS_BACKEND": "tensorflow"}
    return {**defaults, **kept, **dict.fromkeys(own, str(folder)), **fixed}


# A confined process has no network to use a secret on, and no need to know it.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # It was removed.
        return os.path.abspath(os.sep)


def _import_folders() -> list[str]:
    """Returns the folders that this process imports from, except the current one."""
    here = os.path.realpath(_here())
    found = []
    for path in sys.path:
        if path and os.path.realpath(path) != here and os.path.exists(path):
            found.append(os.path.abspath(path))
    return list(dict.fromkeys(found))


def _package_folders() -> list[str]:
    """Returns the folders of this package: in an editable installation, they may be anywhere."""
    found = []
    for name in ("edgecompress", "edgecompress.converters", "edgecompress.targets"):
        spec = importlib.util.find_spec(name)
        found += [] if spec is None else list(spec.submodule_search_locations or ())
    return found


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _bytes_of(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _pickled(arguments: Mapping[str, Any]) -> bytes:
    try:
        return pickle.dumps(dict(arguments), protocol=5)
    # Pickling can fail in many ways.
    except Exception as error:
        raise ArgumentError(
            "model", "be a loaded model for such arguments", "a path",
            "The file is read in a separate process, and they cannot be sent there "
            f"({' '.join(str(error).split())[:160]}).",
        ) from error  # fmt: skip


def _listen(
    process: subprocess.Popen[bytes],
    patience_s: float | None,
    progress: Callable[[str], None] | None,
    on_event: Callable[[Any], None] | None,
) -> BaseException | None:
    """Forwards the messages of the process; returns what it raised.

    A process that waits forever uses no processor time, so its silence is bounded, too.
    """
    stream = process.stdout
    if stream is None:
        return None
    silent = threading.Event()

    def give_up() -> None:
        silent.set()
        _kill(process)

    def next_line() -> bytes:
        if patience_s is None:
            return stream.readline(_LONGEST_LINE)
        timer = threading.Timer(patience_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            return stream.readline(_LONGEST_LINE)
        finally:
            timer.cancel()

    while line := next_line():
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(told, dict):
            continue
        if isinstance(told.get("progress"), str) and progress is not None:
            progress(_one_line(told["progress"], 400))
        if "event" in told and on_event is not None:
            on_event(told["event"])
        if isinstance(told.get("error"), dict):
            return _raised(told["error"])
        if told.get("done") is True:
            break
    if silent.is_set():
        return ProcessError(
            "The process that reads the model was stopped: it was silent for "
            f"{patience_s:,.0f} s. {_HINT}"
        )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    return None


def _let_through(stream: IO[bytes] | None) -> None:
    """Prints what the process prints, escaped, since names may come from the file."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError), stream:
        while line := stream.readline(_LONGEST_LINE):
            text = line.decode(errors="replace").rstrip("\r\n")
            print(shown(text), file=sys.stderr, flush=True)


def _one_line(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _raised(told: Mapping[str, Any]) -> BaseException:
    """Returns the exception that the process names, of a class that this package has."""
    name, text = str(told.get("type", "")), _one_line(str(told.get("text", "")), 4000)
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, EdgeCompressError):
        # Its text is already complete; the constructors build texts from parts.
        made = kind.__new__(kind)
        Exception.__init__(made, text)
        for attribute in ("argument", "label", "problem"):
            if isinstance(told.get(attribute), str):
                setattr(made, attribute, told[attribute])
        return made
    if name == "OSError":
        return OSError(text)
    if name == "MemoryError":
        return ProcessError(f"The model needs more memory than its process may take. {_HINT}")
    # A class with the defect's own name, which is all the caller shows of it.
    return type(name if name.isidentifier() else "Exception", (IsolatedDefect,), {})(text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and everything it started, even after Ctrl-C."""
    _kill(process)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _death(status: int, log: Path, limits: Limits) -> ProcessError:
    """Describes how a process ended without a result."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        text = log.read_bytes()[-20_000:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = f" It last said: {_one_line(lines[-1], 300)}" if lines else ""
    memory = "" if limits.memory is None else format_size(limits.memory)
    if re.search(r"bad_alloc|MemoryError|[Cc]annot allocate|out of memory|OOM", last):
        return ProcessError(
            f"The process that reads the model ran out of memory; it may take {memory}. {_HINT}"
        )
    if -status == getattr(signal, "SIGXCPU", 24):
        return ProcessError(
            f"The process that reads the model was stopped after {limits.cpu_s:,} s of processor "
            f"time. {_HINT}"
        )
    if -status == getattr(signal, "SIGXFSZ", 25):
        return ProcessError(
            "The process that reads the model was stopped: its files grew too large."
        )
    try:
        how = f"crashed ({signal.Signals(-status).name})" if status < 0 else f"ended with {status}"
    except ValueError:
        how = f"crashed (signal {-status})"
    return ProcessError(
        f"The process that reads the model {how}: the file is damaged or hostile, or memory ran "
        f"out.{last}"
    )


def _result(folder: Path) -> Answer:
    """Reads what the process left behind, trusting none of it."""
    try:
        told = json.loads(_read(folder / "result.json", _LARGEST_RESULT))
        names, value = told["files"], told["value"]
        if not isinstance(names, list) or len(names) > _MOST_FILES:
            raise ValueError("its file list is invalid")
        files: dict[str, bytes] = {}
        for at, name in enumerate(names):
            files[_inside(name)] = _read(folder / f"file_{at}", 2 << 30)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ProcessError(
            f"The process that reads the model returned something that is not a result ({error})."
        ) from error
    return Answer(value, files)


def _read(path: Path, limit: int) -> bytes:
    # A link would have this process read what that process cannot.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise ValueError(f"{path.name} is not a file, or is too large")
        return file.read(limit)


def _inside(name: Any) -> str:
    parts = name.split("/") if isinstance(name, str) else [""]
    plain = all(_PLAIN_NAME.fullmatch(part) and not part.startswith(".") for part in parts)
    if not plain or len(parts) > _DEEPEST:
        raise ValueError(f"the name {str(name)[:80]!r}")
    return str(name)
