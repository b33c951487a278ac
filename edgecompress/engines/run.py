"""Runs flatbuffers in the inference engines that devices use, each in a separate process.

Two TFLite builds in one process corrupt each other's memory, and a damaged file can take the
process down, so an engine never runs in the caller's process. A crash, an abort, a hang or a
refusal raises EngineError with the engine's own reason in one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core import handover
from edgecompress.core.errors import (
    ArgumentError,
    EdgeCompressError,
    EngineError,
    EngineNotRunError,
    MissingDependencyError,
    ModelFileError,
)
from edgecompress.core.folders import temporary_folder
from edgecompress.core.sandbox import limits_for
from edgecompress.engines import warm
from edgecompress.engines.registry import ENGINES, WORKER, Engine, folder_of
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.stepping import Stepping

_SANDBOX = Path(__file__).parents[1] / "core" / "sandbox.py"
# Maximum length of a reason; beyond it engines only repeat themselves.
_REASON_LENGTH = 500


@dataclass(frozen=True)
class EngineRun:
    """What an engine computed.

    Attributes:
        engine: The engine's registered name.
        version: Version of its package.
        kernels: `XNNPACK`, `built-in`, `TFLM reference` or `LCE`. Results of one engine differ
            between kernel sets, so a golden output needs all three of engine, version and kernels.
        outputs: One array for each output of the model, first axis = samples; it replaces a leading
            axis of 1 in the model's own output.
        tensors: Tensor index -> values, stacked in the same way.
    """

    engine: str
    version: str
    kernels: str
    outputs: tuple[np.ndarray, ...] = field(repr=False)
    tensors: Mapping[int, np.ndarray] = field(default_factory=dict, repr=False)


# Seconds that all engines of one command together may spend without a finished inference.
PATIENCE_S = 120.0


@dataclass
class Session:
    """What the engine runs of one command share.

    Attributes:
        patience_s: Seconds left for unfinished inferences.
        gaps: Protections that are unavailable here, one sentence each.
    """

    patience_s: float
    gaps: dict[str, None] = field(default_factory=dict)


_SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """Bounds the time for unfinished inferences jointly for all engines of the block.

    Inside another session, it joins that one.

    Example:
        >>> with session() as shared:
        ...     shared.patience_s
        120.0
    """
    outer = _SESSION.get()
    if outer is not None:
        yield outer
        return
    shared = Session(PATIENCE_S)
    token = _SESSION.set(shared)
    try:
        yield shared
    finally:
        _SESSION.reset(token)


def run_engine(
    name: str,
    model: bytes,
    inputs: Sequence[np.ndarray],
    *,
    tensors: Sequence[int] = (),
    timeout_s: float = 120.0,
    progress: Callable[[int, int], None] | None = None,
    stepping: Stepping | None = None,
) -> EngineRun:
    """Runs a model on a batch of samples, one sample after the other.

    Samples are independent: variables of recurrent models are reset in between.

    Args:
        name: An engine's name: `litert`, `tflm`, `tflite-runtime` or `lce`.
        model: The .tflite file's bytes.
        inputs: One array for each input of the model, by position, in the type of that input;
            shape (samples, *shape), where a leading 1 of the model's shape may be left out.
        tensors: Indices of further tensors to return. The engine then runs without a delegate and
            keeps every intermediate result, so its outputs come from different kernels. `lce` does
            not support it.
        timeout_s: Seconds without a sign of life (a finished sample) after which the engine is
            stopped; a long run over many samples is not stopped.
        progress: Called with (finished samples, all samples) a few times a second.
        stepping: How a streaming file runs over the samples: each is a sequence, (steps, ...), and
            the states are not among the inputs. Defaults to None: each is one inference.

    Returns:
        Outputs and tensors, stacked over the samples.

    Raises:
        UnknownNameError: no engine has that name.
        MissingDependencyError: the engine is not installed.
        ArgumentError: the inputs do not fit the model, or the engine returns no `tensors`.
        EngineError: the engine refused the file or a tensor index, crashed or hung.

    Example:
        >>> run = run_engine("litert", Path("m.tflite").read_bytes(), [images])  # doctest: +SKIP
        >>> run.outputs[0].shape  # doctest: +SKIP
        (10000, 10)
    """
    arrays = [np.asarray(array) for array in inputs]
    for array in arrays:
        if array.ndim < 1:
            raise ArgumentError("inputs", "be arrays whose first axis is samples", array.shape)
    if any(index < 0 for index in tensors):
        raise ArgumentError("tensors", "be indices of tensors, 0 or more", tuple(tensors))
    engine = ENGINES[name]
    if tensors and not engine.intermediates:
        raise ArgumentError(
            "tensors", f"be left out: {engine.title} returns outputs only", tuple(tensors)
        )
    if arrays and not len(arrays[0]):
        raise ArgumentError("inputs", "hold at least one sample", arrays[0].shape)
    total = len(arrays[0]) if arrays else 1
    report = None if progress is None else functools.partial(_forward, progress, total)
    with temporary_folder() as place:
        folder = str(place)
        files = []
        for position, array in enumerate(arrays):
            files.append(os.path.join(folder, f"input_{position}.npy"))
            np.save(files[-1], array)
        answer = start_job(
            engine,
            folder,
            {
                "mode": "run" if stepping is None else "sequences",
                **({} if stepping is None else _steps(model, stepping)),
                "inputs": files,
                "tensors": [int(index) for index in tensors],
                "stateful": total > 1 and engine.interpreter == "larq" and _is_stateful(model),
            },
            model,
            timeout_s,
            report,
        )
        result = answer["result"]
        return EngineRun(
            name,
            answer["version"],
            answer["kernels"],
            tuple(_loaded(folder, "outputs", at) for at in range(len(result["outputs"]))),
            {int(index): _loaded(folder, "tensors", index) for index in dict.fromkeys(tensors)},
        )


def _steps(model: bytes, stepping: Stepping) -> dict[str, Any]:
    """Returns what the worker needs to know of a streaming file."""
    flat = read_tflite(model)
    states = flat.inputs[len(flat.inputs) - len(stepping.states) :]
    points = [flat.tensors[index].zero_points for index in states]
    return {
        "hop": stepping.hop,
        "states": list(stepping.states),
        "rows": list(stepping.rows),
        "starts": [found[0] if found else 0 for found in points],
    }


def _loaded(folder: str, kind: str, key: int) -> np.ndarray:
    """Returns an array written by a worker, whose untrusted answer does not choose the path."""
    no_links = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    path = os.path.join(folder, f"{kind}_{int(key)}.npy")
    try:
        with open(os.open(path, no_links), "rb") as file:
            array: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EngineError(f"The engine left no result that can be read: {error}") from error
    return array


def load_failure(name: str, model: bytes, *, timeout_s: float = 120.0) -> str | None:
    """Loads a model and runs one sample of zeros; returns why that failed, or None.

    Args:
        name: An engine's name.
        model: The .tflite file's bytes.
        timeout_s: Seconds after which a hanging engine is stopped.

    Raises:
        UnknownNameError: no engine has that name.
        MissingDependencyError: the engine is not installed, so nothing is known about the model.
        EngineNotRunError: other engines have used up the session's time.
    """
    with temporary_folder() as place:
        folder = str(place)
        try:
            start_job(ENGINES[name], folder, {"mode": "load"}, model, timeout_s)
        except EngineNotRunError:
            raise
        except EngineError as error:
            return str(error)
    return None


def time_engine(
    name: str,
    model: bytes,
    *,
    threads: int = 1,
    warmup: int = 10,
    min_seconds: float = 0.3,
    min_samples: int = 10,
    seed: int = 0,
    timeout_s: float = 120.0,
) -> dict[str, Any]:
    """Times a model in one fresh process; `targets.bench` makes a verdict of several.

    Args:
        name: An engine's name.
        model: The .tflite file's bytes.
        threads: Threads of the engine.
        warmup: Inferences before the timed ones.
        min_seconds: Minimum duration of the timed part.
        min_samples: Minimum number of timed samples.
        seed: Seed of the random inputs.
        timeout_s: Seconds without a sign of life after which the engine is stopped.

    Returns:
        `wall` and `cpu`: nanoseconds of one inference, one entry for each sample; `group`:
        inferences in a sample; `first`, `warmup` (mean), `init`: nanoseconds; `init_kib` and
        `overall_kib`: growth of the process, where known; `version` and `kernels`.

    Raises:
        EngineError, MissingDependencyError, UnknownNameError: as in `run_engine`.
    """
    job = {
        "mode": "bench",
        "threads": threads,
        "warmup": warmup,
        "min_seconds": min_seconds,
        "min_samples": min_samples,
        "seed": seed,
    }
    with temporary_folder() as place:
        folder = str(place)
        answer = start_job(ENGINES[name], folder, job, model, timeout_s)
    return {**answer["result"], "version": answer["version"], "kernels": answer["kernels"]}


def engine_available(name: str) -> str | None:
    """Returns why an engine cannot be used here, or None if it can.

    The engine's package is imported once, in a separate process: an installed package may still
    fail to load, e.g. because it needs another NumPy.

    Args:
        name: An engine's name.

    Raises:
        UnknownNameError: no engine has that name.

    Example:
        >>> engine_available("litert") is None
        True
    """
    return _unavailable(ENGINES[name])


@functools.cache
def _unavailable(engine: Engine) -> str | None:
    with temporary_folder() as place:
        folder = str(place)
        try:
            start_job(engine, folder, {"mode": "import"}, b"", 60.0)
        except EdgeCompressError as error:
            return str(error)
    return None


def _forward(progress: Callable[[int, int], None], total: int, done: int) -> None:
    progress(done, total)


def start_job(
    engine: Engine,
    folder: str,
    job: Mapping[str, Any],
    model: bytes,
    timeout_s: float,
    report: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Runs the worker on a job and returns its last answer."""
    if timeout_s <= 0:
        raise ArgumentError("timeout_s", "be more than 0 seconds", timeout_s)
    # Whether the package loads does not depend on the model.
    shared = None if job["mode"] == "import" else _SESSION.get()
    if shared is not None:
        if shared.patience_s <= 0:
            raise EngineNotRunError(
                f"{engine.title} was not run: the {PATIENCE_S:g} s that inferences may take "
                "without finishing, in all engines together, were used up before."
            )
        timeout_s = min(timeout_s, shared.patience_s)
    if not sys.executable:
        raise EngineError(
            f"{engine.title} needs a separate Python interpreter, but this program does not "
            "know where Python is (sys.executable is empty)."
        )
    place = folder_of(engine.module)
    if place is None and engine.worker == WORKER:
        raise MissingDependencyError(
            f"{engine.title} is not installed: run `{engine.install}`. {engine.wheels}"
        )
    paths = {
        "model": os.path.join(folder, "model.tflite"),
        "job": os.path.join(folder, "job.json"),
        "log": os.path.join(folder, "log.txt"),
    }
    # The program of another package may look for it in its folder.
    stored = handover.stored(model) if engine.worker == WORKER else None
    if stored is not None:
        paths["model"] = str(stored)
    else:
        Path(paths["model"]).write_bytes(model)
    full = {
        "folder": folder,
        "model": paths["model"],
        "log": paths["log"],
        "module": engine.module,
        "interpreter": engine.interpreter,
        "paths": [p for p in (str(Path(np.__file__).parents[1]), place) if p],
        "threads": 1,
        "tensors": [],
        "stateful": False,
        "sandbox": str(_SANDBOX),
        "parent": os.getpid(),
        "limits": dataclasses.asdict(limits_for(len(model) + _size_of(job))),
        **job,
    }
    Path(paths["job"]).write_text(json.dumps(full), encoding="utf-8")
    # Only a process of its own shows what an inference costs in memory and time.
    for forked in (False,) if job["mode"] == "bench" else (True, False):
        with open(paths["log"], "ab") as log:
            log.truncate(0)
            process = _process(engine, full, paths["job"], log.fileno(), forked)
            try:
                answer = _listen(process, timeout_s, report)
            finally:
                # Even after Ctrl-C: no engine outlives the call.
                process.kill()
                process.wait()
                if process.stdout:
                    process.stdout.close()
        if answer is not None or process.returncode is not None:
            break
    printed = _printed(Path(paths["log"]))
    if answer is None:
        raise EngineError(_with_damage(_ending(engine, process.returncode or 0, printed), model))
    if shared is not None:
        shared.gaps.update(dict.fromkeys((answer or {}).get("gaps", ())))
    if answer == {}:
        if shared is not None:
            shared.patience_s = 0.0
        last = f" It last said: {printed}" if printed else ""
        raise EngineError(
            f"{engine.title} was stopped: {timeout_s:g} s passed without a finished inference."
            f"{last}"
        )
    if "error" in answer:
        raise _refusal(engine, answer, printed, model)
    return answer


# numpy's threads only cost start-up time; the worker computes nothing with them. The accelerator is
# for training, and no engine needs it.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
}


def _process(
    engine: Engine, job: Mapping[str, Any], path: str, log: int, forked: bool
) -> subprocess.Popen[bytes] | warm.Fork:
    """Starts a job, in a fork if wanted and possible, or else in a fresh process."""
    environment = {**os.environ, **_ENVIRONMENT}
    # The program of another package need not be made for forks.
    if forked and engine.worker == WORKER:
        process = warm.fork(engine.worker, job, path, log, environment)
        if process is not None:
            return process
    return subprocess.Popen(
        # -I: nothing is imported from the current folder or from PYTHON* variables.
        [sys.executable, "-I", str(engine.worker), path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=job["folder"],
        env=environment,
    )


def _size_of(job: Mapping[str, Any]) -> int:
    """Returns the bytes of a job's inputs."""
    return sum(os.path.getsize(path) for path in job.get("inputs", ()))


def _is_stateful(model: bytes) -> bool:
    """Returns whether a model keeps state from one inference to the next."""
    with contextlib.suppress(ModelFileError):
        flat = read_tflite(model)
        return any(tensor.is_variable for tensor in flat.tensors) or any(
            operator.code == "VAR_HANDLE" for operator in flat.operators
        )
    return False


def _listen(
    process: subprocess.Popen[bytes] | warm.Fork,
    timeout_s: float,
    report: Callable[[int], None] | None,
) -> dict[str, Any] | None:
    """Returns the last answer; None if the worker ended without one, {} if it hung."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        # A closed pipe ends the thread like the end of the file.
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout or ():
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=timeout_s)
        except queue.Empty:
            return {}
        if line is None:
            # The worker has closed its answers; give it a moment to exit on its own, because its
            # exit status distinguishes a crash from an exit.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            return None
        try:
            answer = json.loads(line)
        except ValueError:
            continue  # Printed by native code before the worker took over.
        if not isinstance(answer, dict):
            continue
        if "done" not in answer:
            return answer
        if report is not None:
            report(int(answer["done"]))


def _printed(log: Path) -> str:
    """Returns what the engine printed, as one line without its chatter."""
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    kept: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith(("INFO:", "WARNING: All log")) and line not in kept:
            kept.append(line)
    return _one_line("; ".join(kept[-6:]))


def _one_line(text: str) -> str:
    """Joins the lines of a text and drops the engines' boilerplate."""
    text = re.sub(r"\s*Registration failed\.\s*", " ", text)
    text = re.sub(r"An older version of this builtin might be supported\..*?\?", "", text)
    # Runtimes concatenate their messages without a space.
    text = re.sub(r"(?<=[a-z)])(?=(Node number|Tensor) \d)", ". ", text)
    text = " ".join(text.split())
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 3]}..."


def _ending(engine: Engine, status: int, printed: str) -> str:
    """Describes how a worker ended without an answer."""
    if status < 0:
        try:
            how = f"crashed ({signal.Signals(-status).name})"
        except ValueError:
            how = f"crashed (signal {-status})"
        if -status == getattr(signal, "SIGKILL", 9):
            how = "was killed from outside (SIGKILL), mostly because memory ran out"
        if -status == getattr(signal, "SIGXCPU", 24):
            how = "was stopped (SIGXCPU): its processor time was used up"
    else:
        how = f"ended without an answer (exit status {status})"
    last = f" It last said: {printed}" if printed else ""
    return f"{engine.title} {how} while it handled the model.{last}"


def _refusal(
    engine: Engine, answer: Mapping[str, Any], printed: str, model: bytes
) -> EdgeCompressError:
    """Turns an error of the worker into the exception for the caller."""
    error = str(answer["error"])
    if answer.get("kind") == "input":
        rule, _, got = error.partition("||")
        # The values are text already; the error would put quotation marks around them.
        return ArgumentError("inputs", rule, _Verbatim(got))
    if answer.get("kind") == "import":
        return MissingDependencyError(
            f"{engine.title} is installed but does not load: {_one_line(error)}. Reinstall it: "
            f"`{engine.install.replace('install', 'install --force-reinstall', 1)}`."
        )
    kind, _, message = error.partition(": ")
    message = _one_line(message)
    if kind not in ("RuntimeError", "ValueError"):
        # The type says nothing for these two; for others it often says everything ("MemoryError").
        message = f"{kind}: {message}".rstrip(": ")
    # The interpreter for microcontrollers prints its reasons and raises only that it failed.
    reason = _named(model, f"{printed} ({message})" if printed else message)
    text = f"{engine.title} {answer.get('version')} cannot run the model: {reason}"
    return EngineError(_with_damage(text, model))


def _with_damage(text: str, model: bytes) -> str:
    """Adds what is wrong with an unreadable file, about which engines say little."""
    try:
        read_tflite(model)
    except ModelFileError as error:
        return f"{text.rstrip('.')}. {str(error)[:1].upper()}{str(error)[1:]}"
    return text


class _Verbatim(str):
    """Text shown without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def _named(model: bytes, reason: str) -> str:
    """Adds operator names that an engine reports as numbers or not at all."""
    if number := re.search(r"builtin_code out of range: (\d+)", reason):
        from ai_edge_litert import schema_py_generated as schema

        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        operator = names.get(int(number[1]), "unknown")
        return reason.replace(number[0], f"{number[0]} (operator '{operator}')", 1)
    if re.search(r"\bCUSTOM\b", reason):
        with contextlib.suppress(ModelFileError):
            custom = sorted({o.custom_name for o in read_tflite(model).operators if o.custom_name})
            if custom:
                return f"{reason} (the model's custom operators: {', '.join(custom)})"
    return reason
