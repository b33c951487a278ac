"""Runs a user-supplied benchmark program on a phone: the common part of Google's two.

Both read options and write results in the same way (tensorflow/lite/tools/benchmark:
benchmark_model.cc, benchmark_result.proto), so they are driven in the same way: a fresh process per
result, started in the phone's shell, with options, timeout, exit status and result checked here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from edgecompress.core.bundle import Bundle, BundleModel
from edgecompress.core.clock import utc_now
from edgecompress.core.errors import ArgumentError, DeviceError, ModelFileError
from edgecompress.core.options import Path, option
from edgecompress.targets.measurement import MeasurementFile, parse_measurement
from edgecompress.targets.measurement_form import MEASUREMENT_SCHEMA
from edgecompress.targets.measurement_merge import merge
from edgecompress.targets.phones.adb import NoAnswerError, Phone, one_line
from edgecompress.targets.phones.elf import Program
from edgecompress.targets.phones.runners import PhonePlan, cool_down
from edgecompress.targets.phones.state import between, read_device, read_state

_FOLDER = "/data/local/tmp/edgecompress"
_LOG_BYTES = 20_000
# As in the demo app and on the host.
_WARMUP = 10
# Options without which an older build would measure something else.
_OPTIONAL = ("result_file_path", "enable_op_profiling")
_OPERATOR = re.compile(
    r"Encountered unresolved custom op: ?(\S*?)\.?(?=\s|$|See )|"
    r"Didn't find op for builtin opcode '(\w+)'|Op builtin_code out of range: (\d+)"
)


@dataclass(frozen=True)
class ProgramOptions:
    """Options of a runner that starts a user-supplied program."""

    binary: str | None = option(
        None, "The program of this runner, built for the phone.", Path("FILE")
    )


@dataclass(frozen=True)
class Figures:
    """What a program measured in one process: microseconds of an inference, KiB of memory.

    Attributes:
        init: Loading the file and allocating.
        first: The first inference.
        warmup: Mean of the warm-up.
        min: The fastest.
        p5: 5th percentile.
        median: Of the timed ones.
        p95: 95th percentile.
        max: The slowest.
        mean: Of the timed ones.
        std: Of the population.
        samples: How many were timed.
        model_mb: Size of the file it read, in millions of bytes; None if not reported.
        memory_init: Growth of the process by loading; None if not reported.
        memory_overall: Growth by loading and running; None if not reported.
    """

    init: float
    first: float
    warmup: float
    min: float
    p5: float
    median: float
    p95: float
    max: float
    mean: float
    std: float
    samples: int
    model_mb: float | None = None
    memory_init: float | None = None
    memory_overall: float | None = None

    def problem(self, size: int) -> str | None:
        """Returns what invalidates the figures for a model of `size` bytes, or None.

        Example:
            >>> Figures(9, 9, 9, 1, 2, 3, 4, 5, 3, 1, samples=0).problem(1000)
            'it timed no inference'
        """
        if self.samples < 1:
            return "it timed no inference"
        times = (self.init, self.first, self.warmup, self.min, self.p5, self.median, self.p95,
                 self.max, self.mean, self.std)  # fmt: skip
        if not all(math.isfinite(value) and value >= 0 for value in times):
            return "its times are not times"
        if not self.min <= self.p5 <= self.median <= self.p95 <= self.max:
            return "its percentiles are out of order"
        # Both are written with 6 or 7 digits.
        if self.model_mb is not None and abs(self.model_mb * 1e6 - size) > size * 1e-4 + 1:
            return f"it is of a file of {self.model_mb:g} MB, and not of the one that was pushed"
        return None


@dataclass(frozen=True)
class Tool:
    """A benchmark program.

    Attributes:
        name: Its human-readable name.
        api: The runtime interface it measures.
        options: Its own options, depending on whether XNNPACK is on.
        kernels: Which kernels ran, from its output and whether XNNPACK is on; None if not reported.
        from_log: Reads the figures from its output if it wrote no result; raises ValueError with
            the reason if that is impossible.
    """

    name: str
    api: str
    options: Callable[[bool], Mapping[str, str]]
    kernels: Callable[[str, bool], str | None]
    from_log: Callable[[str], Figures]


# --- the result ---------------------------------------------------------------------------------

# Field numbers of BenchmarkResult and of the messages in it.
_LATENCY, _MEMORY, _MISC = 2, 3, 4
_LATENCY_MS = {
    1: "mean", 2: "min", 3: "max", 4: "std", 5: "median", 6: "p5", 7: "p95", 8: "init", 9: "first",
    10: "warmup",
}  # fmt: skip
_MEMORY_KB = {1: "memory_init", 2: "memory_overall"}
_MODEL_MB, _RUNS = 1, 2


def decode_result(content: bytes) -> Figures:
    """Returns the figures of a BenchmarkResult in protobuf's binary form.

    Raises:
        ValueError: it is damaged, or lacks a figure.
    """
    parts = dict(_fields(content))
    found: dict[str, Any] = {}
    for number, value in _message(parts.get(_LATENCY)):
        if number in _LATENCY_MS:
            # A float in milliseconds holds whole microseconds up to its last bit.
            found[_LATENCY_MS[number]] = round(_float(value) * 1000, 3)
    for number, value in _message(parts.get(_MEMORY)):
        if number in _MEMORY_KB:
            grown = _whole(value)
            # A process that has not grown was not measured.
            found[_MEMORY_KB[number]] = grown if grown > 0 else None
    misc = dict(_message(parts.get(_MISC)))
    found["samples"] = _whole(misc.get(_RUNS, 0))
    if _MODEL_MB in misc:
        found["model_mb"] = _float(misc[_MODEL_MB])
    missing = [name for name in _LATENCY_MS.values() if name not in found]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return Figures(**found)


def _message(value: bytes | int | None) -> Iterator[tuple[int, bytes | int]]:
    if value is None:
        return iter(())
    if not isinstance(value, bytes):
        raise ValueError("a message is a number")
    return _fields(value)


def _float(value: bytes | int) -> float:
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("a figure is not a float")
    return float(struct.unpack("<f", value)[0])


def _whole(value: bytes | int) -> int:
    if not isinstance(value, int):
        raise ValueError("a count is not a number")
    # Negative numbers are written as 64-bit ones.
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yields the number and value of a message's fields: integers or bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(data) or shift > 63:
                raise ValueError("it is cut off")
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    sizes = {1: 8, 5: 4}
    while place < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind != 2 and kind not in sizes:
            raise ValueError("it is not a result")
        size = varint() if kind == 2 else sizes[kind]
        if place + size > len(data):
            raise ValueError("it is cut off")
        yield key >> 3, data[place : place + size]
        place += size


# --- a run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What is run in one folder on the phone.

    Attributes:
        tool: The program's kind.
        phone: The phone.
        program: The program.
        folder: The program's folder on the phone.
        plan: How to run it.
    """

    tool: Tool
    phone: Phone
    program: Program
    folder: str
    plan: PhonePlan = field(repr=False)

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.tool.name}"

    def start(self, options: Mapping[str, str]) -> tuple[int, bytes | None, str]:
        """Runs one process and returns its exit status, its result file and its output."""
        result = f"{self.folder}/result.pb"
        options = {**options, "result_file_path": result}
        words = [self.path, *(f"--{name}={value}" for name, value in options.items())]
        # The exit status is printed, as older phones do not pass it on. The process id is kept so
        # that it can be killed on a timeout.
        text = (
            f"cd {self.folder} && rm -f result.pb log pid && {{ {shlex.join(words)} > log 2>&1 & "
            'echo $! > pid; wait $!; echo "exit=$?"; rm -f pid; [ -s result.pb ] && '
            f'echo "result=yes"; echo "log:"; tail -c {_LOG_BYTES} log; rm -f log; }}'
        )
        try:
            answer = self.phone.script(text, timeout_s=self.plan.timeout_s)
            head, log_begins, log = answer.out.partition("log:\n")
            status = re.search(r"^exit=(\d+)", head, re.MULTILINE)
            if status is None or not log_begins:
                raise DeviceError(
                    f"The phone {self.phone.serial} no longer answers: was it unplugged? "
                    f"{answer.line}"
                )
            content = self.phone.pull(result) if "result=yes" in head else None
        except NoAnswerError as error:
            raise DeviceError(
                f"No result came within {self.plan.timeout_s:g} s (--timeout); {self.tool.name} is "
                f"stopped ({self.phone.serial})."
            ) from error
        finally:
            # Even after Ctrl-C: nothing keeps running on the phone.
            with suppress(DeviceError):
                self.phone.script(
                    f"cd {self.folder} && {{ [ -f pid ] && kill -9 $(cat pid); "
                    "rm -f pid log result.pb; }"
                )
        return int(status[1]), content, log


def run_tool(
    tool: Tool,
    phone: Phone,
    bundle: Bundle,
    plan: PhonePlan,
    progress: Callable[[str], None],
) -> MeasurementFile:
    """Pushes a program and the models, runs them in fresh processes and merges the results.

    Args:
        tool: The kind of program.
        phone: The phone.
        bundle: The bundle to run.
        plan: How to run it, including the program.
        progress: Called with a short text.

    Raises:
        ArgumentError: there is no program, or it is built for another phone.
        DeviceError: adb failed, a timeout, or the program crashed or does not start.
        ModelFileError: it ended normally, but without a result, or with a damaged one.
    """
    if plan.program is None:
        raise ArgumentError("--binary", f"be the program {tool.name}", None)
    program = plan.program
    device, abis = read_device(phone)
    runs_here = {*abis, *(("armeabi-v7a",) if "armeabi" in abis else ())}
    if abis and program.abi not in runs_here:
        raise ArgumentError(
            "--binary", f"be built for {' or '.join(abis)}, which the phone {phone.serial} runs",
            program.abi, f"Take another build of {tool.name}.",
        )  # fmt: skip
    known = {model.kind: model for model in bundle.models}
    models = [known[kind] for kind in plan.models]
    progress(f"Pushing {tool.name} and the models to {phone.serial}")
    run = _Run(tool, phone, program, f"{_FOLDER}/{program.sha256[:16]}", plan)
    places = {model.kind: f"{_FOLDER}/{model.sha256[:16]}/model.tflite" for model in models}
    files = {places[model.kind]: bundle.content(model.file) for model in models}
    sent = phone.push({run.path: program.data, **files})
    progress(f"Pushed {sent} of {len(files) + 1} files; the others were there")
    answer = phone.shell("chmod", "755", run.path)
    if answer.code:
        raise DeviceError(
            f"{tool.name} cannot be made a program on the phone {phone.serial}: {answer.line}."
        )
    settings = [(model, threads, xnnpack == "on") for model in models for threads in plan.threads
                for xnnpack in plan.xnnpack.split(",")]  # fmt: skip
    results: list[MeasurementFile] = []
    for number in range(plan.processes):
        entries = []
        for model, threads, xnnpack in settings:
            progress(f"Process {number + 1} of {plan.processes}: {model.kind}, threads: {threads}")
            entries.append(_entry(run, bundle, model, places[model.kind], threads, xnnpack))
        results.append(_file(bundle, {**device, "abi": program.abi}, entries))
        # What cannot run once cannot run again.
        settings = [
            setting for setting, entry in zip(settings, entries, strict=True)
            if entry["error"] is None
        ]  # fmt: skip
        if not settings:
            break
        if number + 1 < plan.processes:
            cool_down(phone, results, plan, progress)
    return merge(results)


def _file(
    bundle: Bundle, device: Mapping[str, Any], entries: list[dict[str, Any]]
) -> MeasurementFile:
    """Returns the file of one round, whose form is not trusted."""
    states = [entry["state"] for entry in entries]
    after = {key: value for key, value in states[-1].items() if key.endswith("_after")}
    data = {
        "schema": MEASUREMENT_SCHEMA,
        "tool": {"name": "edgecompress", "version": version("edgecompress")},
        "time": utc_now(),
        "bundle": {"name": bundle.name, "target": bundle.target, "sha256": bundle.sha256},
        "device": dict(device),
        "state": {**states[0], **after},
        "measurements": entries,
        "error": None,
    }
    return parse_measurement(json.dumps(data).encode(), "The phone's result")


def _entry(
    run: _Run, bundle: Bundle, model: BundleModel, graph: str, threads: int, xnnpack: bool
) -> dict[str, Any]:
    """Runs one process and returns the entry of its result."""
    tool, plan, program = run.tool, run.plan, run.program
    options = {
        "graph": graph,
        "num_threads": str(threads),
        **tool.options(xnnpack),
        "num_runs": str(plan.runs),
        "warmup_runs": str(_WARMUP),
        "min_secs": f"{plan.min_seconds:g}",
        # Their own limit is 150 s, with fewer runs than requested.
        "max_secs": f"{plan.timeout_s:g}",
    }
    before = read_state(run.phone)
    status, content, log = run.start(options)
    after = read_state(run.phone)
    entry: dict[str, Any] = {
        "tier": "measured_device",
        "target": bundle.target,
        "model": {
            "sha256": model.sha256, "bytes": model.bytes, "kind": model.kind, "file": model.file,
        },
        "runtime": {
            "name": "LiteRT", "version": None, "api": tool.api,
            "delegate": "XNNPACK" if xnnpack else None, "kernels": tool.kernels(log, xnnpack),
            "program": {
                "name": program.name, "sha256": program.sha256, "bytes": len(program.data),
            },
        },
        "config": {
            "threads": threads, "xnnpack": xnnpack, "affinity": None, "warmup": _WARMUP,
            "runs": plan.runs, "min_s": plan.min_seconds, "repeats": 1, "processes": 1,
            "input": "random",
        },
        "state": between(before, after),
        "latency_us": None,
        "memory_kb": {"init": None, "overall": None, "peak": None},
        "golden": None,
        "golden_reason": f"{tool.name} feeds random values, so its outputs were not checked; the "
        "demo app checks them.",
        "checks": [],
        "output_sha256": None,
        "error": None,
        "time": utc_now(),
    }  # fmt: skip
    _refuse_unknown_options(run, options, log)
    error = _error(run, status, log)
    if error is not None:
        return {**entry, "error": error}
    figures = _figures(run, content, log, model)
    if figures.median <= 0:
        reason = f"An inference takes less than 1 us, the smallest step of {tool.name}."
        return {**entry, "error": {"code": "engine", "message": reason}}
    times = dataclasses.asdict(figures)
    latency = {
        **{name: times[name] for name in _LATENCY_MS.values()},
        "p90": None,
        "spread_pct": 0.0,
        "samples": figures.samples,
        "inferences_per_sample": 1,
        "repeat_medians": [figures.median],
        "histogram": None,
    }
    memory = {"init": figures.memory_init, "overall": figures.memory_overall, "peak": None}
    return {**entry, "latency_us": latency, "memory_kb": memory}


def _refuse_unknown_options(run: _Run, options: Mapping[str, str], log: str) -> None:
    ignored = re.search(r"Unconsumed cmdline flags: (.*)", log)
    names = {} if ignored is None else dict.fromkeys(re.findall(r"--(\w+)=", ignored[1]))
    lost = [name for name in names if name in options and name not in _OPTIONAL]
    if lost:
        raise DeviceError(
            f"This build of {run.tool.name} does not support {' and '.join(lost)}, so it did not "
            "measure what was requested: use a newer one."
        )


def _error(run: _Run, status: int, log: str) -> dict[str, str] | None:
    """Returns why the program could not run the model; raises if it does not run itself."""
    name, serial = run.tool.name, run.phone.serial
    if status == 0:
        return None
    missing = _OPERATOR.search(log)
    if missing is not None:
        operator = next(filter(None, missing.groups()), "of the file")
        return {"code": "operator", "message": f"{name} has no operator {operator[:80]}."}
    said = f" Its output ends: {one_line(log)}" if log.strip() else ""
    if status > 128:
        number = status - 128
        names = {one.value: one.name for one in signal.Signals}
        what = f"signal {number}, {names.get(number, 'unknown')}"
        if number == signal.SIGKILL:
            raise DeviceError(
                f"{name} was killed on the phone {serial} ({what}): its memory is full?{said}"
            )
        raise DeviceError(f"{name} crashed on the phone {serial} ({what}).{said}")
    if "Benchmarking failed" in log:
        errors = [line.strip() for line in log.splitlines() if "ERROR" in line]
        reason = one_line(" ".join(errors) or log)
        return {"code": "engine", "message": f"{name} does not run the file: {reason}"}
    raise DeviceError(f"{name} does not run on the phone {serial} (exit status {status}).{said}")


def _figures(run: _Run, content: bytes | None, log: str, model: BundleModel) -> Figures:
    """Returns what the program measured, from its result or otherwise from its output."""
    name = run.tool.name
    try:
        figures = run.tool.from_log(log) if content is None else decode_result(content)
    except ValueError as error:
        said = f" Its output ends: {one_line(log)}" if log.strip() else " It printed nothing."
        raise ModelFileError(f"{name} gave no result that can be read: {error}.{said}") from error
    problem = figures.problem(model.bytes)
    if problem is not None:
        raise ModelFileError(f"The result of {name} is invalid: {problem}.")
    return figures
