"""`bench`: runs a bundle on a phone or on this computer, and judges it by its budgets."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core import errors
from edgecompress.core.bundle import Bundle, BundleModel, read_bundle
from edgecompress.core.clock import utc_now
from edgecompress.core.errors import ArgumentError, EdgeCompressError, UnknownNameError
from edgecompress.core.files import jsonable, write_atomic
from edgecompress.core.options import parse_options
from edgecompress.core.results import (
    CheckResult,
    Verdict,
    accept_undecided,
    exit_code,
    tool_version,
    worst_verdict,
)
from edgecompress.core.units import format_time, parse_time
from edgecompress.engines.registry import ENGINES
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.pipeline.options import BenchOptions
from edgecompress.pipeline.request import silent

if TYPE_CHECKING:
    from edgecompress.targets.bench import HostLatency
    from edgecompress.targets.measurement import MeasurementFile
    from edgecompress.targets.phones.elf import Program

_STATES = ("thermal_before", "thermal_after", "thermal_headroom_before", "thermal_headroom_after",
           "battery_before", "battery_after", "battery_temperature_c", "charging", "power_save",
           "governor", "load_before", "load_after", "available_kb")  # fmt: skip


@dataclass(frozen=True)
class BenchResult:
    """What was measured, as in a measurement file.

    Attributes:
        data: The object that docs/measurement.schema.json describes.
    """

    data: Mapping[str, Any]

    @property
    def checks(self) -> list[dict[str, Any]]:
        """The checks of all measurements, as in the file."""
        return [check for entry in self.data["measurements"] for check in entry["checks"]]

    @property
    def results(self) -> tuple[tuple[str, CheckResult], ...]:
        """The checks of all measurements: (setting, check) of each."""
        from edgecompress.targets.measurement import Measurement
        from edgecompress.targets.measurement_checks import recorded_checks

        found = [Measurement(entry) for entry in self.data["measurements"]]
        return tuple((m.setting, check) for m in found for check in recorded_checks(m))

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The errors (`code`, `message`) of the run and of single measurements."""
        entries = [self.data, *self.data["measurements"]]
        return [entry["error"] for entry in entries if entry["error"] is not None]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the checks; `fail` if something could not run."""
        if self.failures:
            return "fail"
        return worst_verdict([check.verdict for _, check in self.results])

    @property
    def undecided_limits(self) -> tuple[str, ...]:
        """The undecided limits, by name."""
        return tuple(
            f"{check.rule} of {setting}" for setting, check in self.results if check.undecided
        )

    @property
    def exit_code(self) -> int:
        """0; 5 for a missing operator, 3 for a budget, 4 for wrong outputs, 1 for errors, 6.

        6 means that limits could not be decided; failures take precedence.
        """
        codes = {error["code"] for error in self.failures}
        if "operator" in codes:
            return errors.UNSUPPORTED_OPERATOR
        code = exit_code(check for _, check in self.results)
        # An error outranks an undecided limit, but not a broken one.
        return errors.FAILURE if codes and code in (errors.OK, errors.UNDECIDED) else code

    def exit_code_for(self, allow_undecided: bool) -> int:
        """Returns the exit code; with `allow_undecided`, 0 in place of 6."""
        return accept_undecided(self.exit_code) if allow_undecided else self.exit_code

    def to_json(self) -> str:
        """Returns the JSON text, indented, ending in a newline."""
        return json.dumps(jsonable(self.data), indent=1, allow_nan=False) + "\n"

    def text(self) -> str:
        """Returns the result as human-readable text."""
        from edgecompress.targets.measurement import Measurement

        device = self.data["device"]
        name = " ".join(filter(None, (device["manufacturer"], device["model"]))) or device["soc"]
        lines = [f"{self.data['bundle']['name']} on {name}"]
        for entry in self.data["measurements"]:
            measurement = Measurement(entry)
            lines.append("")
            if measurement.median is not None:
                low, high = min(measurement.repeats), max(measurement.repeats)
                count = entry["config"]["processes"]
                lines.append(
                    f"{measurement.setting}: {format_time(measurement.median)}, "
                    f"{format_time(low)} to {format_time(high)} in {count} "
                    f"process{'' if count == 1 else 'es'}"
                )
            else:
                lines.append(f"{measurement.setting}: not timed")
            for check in entry["checks"]:
                reason = f"  {check['reason']}" if check["reason"] else ""
                lines.append(f"{check['rule']:<10} {_WORDS[check['verdict']]}{reason}".rstrip())
        lines += [f"Error: {error['message']}" for error in self.failures]
        return "\n".join([*lines, "", f"Verdict: {_WORDS[self.verdict]}"])


_WORDS: dict[str, str] = {
    "pass": "PASS",
    "fail": "FAIL",
    "uncertain": "uncertain",
    "not_measured": "not measured",
    "not_applicable": "n/a",
}


def bench(
    bundle: Path | str,
    *,
    host: bool = False,
    adb: bool = False,
    serial: str | None = None,
    runner: str = BenchOptions.runner,
    models: Sequence[str] = (),
    threads: Sequence[int] = BenchOptions.threads,
    processes: int = BenchOptions.processes,
    min_seconds: float = BenchOptions.min_seconds,
    timeout_s: float = BenchOptions.timeout_s,
    max_latency: str | float | None = None,
    output: Path | str | None = None,
    poll_s: float = 2.0,
    cooldown_s: float = 300.0,
    progress: Callable[[str], None] = silent,
    **options: Any,
) -> BenchResult:
    """Measures a bundle on this computer or on a phone, and writes a measurement file.

    Args:
        bundle: Folder of an export with a phone or the host among its targets.
        host: Measure on this computer.
        adb: Measure on a phone, through adb.
        serial: Which phone; needed if several are connected.
        runner: What runs on the phone; `app`: the demo app, which also checks outputs;
            `benchmark_model` and `litert`: Google's benchmark programs, which do not.
        models: Kinds of the files to run, e.g. `["int8", "float32"]`. Defaults to the one that
            ships.
        threads: Numbers of threads to measure.
        processes: Number of fresh processes, run one after another; they form the band of the
            result.
        min_seconds: Minimum duration of the timed part of a process.
        timeout_s: Seconds that a process may take.
        max_latency: Budget instead of the bundle's, e.g. `"10ms"`, or microseconds.
        output: The file. Defaults to `measurement.json` in the bundle's folder.
        poll_s: Seconds between two polls of the phone.
        cooldown_s: Longest pause for a phone that has heated up.
        progress: Called with a short text.
        options: Options of the runner: `binary`, the program of `benchmark_model` and `litert`,
            built for the phone.

    Raises:
        EdgeCompressError: an argument, the bundle, the phone or its result is wrong; nothing was
            written.

    Example:
        >>> ec.bench("build/", adb=True).verdict  # doctest: +SKIP
        'pass'
    """
    from edgecompress.targets.measurement import Measurement
    from edgecompress.targets.measurement_checks import budget_checks, to_record
    from edgecompress.targets.phones.adb import connect
    from edgecompress.targets.phones.runners import RUNNERS, PhonePlan

    if host and adb:
        raise ArgumentError("--host", "be left out with --adb", True, "Run it once for each.")
    if not (host or adb):
        raise ArgumentError(
            "--host or --adb", "be given", None,
            "--host measures on this computer, --adb on the phone that adb is connected to.",
        )  # fmt: skip
    if serial is not None and not adb:
        raise ArgumentError("--serial", "go with --adb", serial)
    chosen_runner = RUNNERS[runner]
    if runner != "app" and not adb:
        raise ArgumentError("--runner", "go with --adb", runner)
    of_runner: Any = parse_options(
        chosen_runner.options,
        options,
        f"--runner {runner}",
        {f"--runner {name}": RUNNERS[name].options for name in RUNNERS},
    )
    program = _program(chosen_runner.program, getattr(of_runner, "binary", None))
    for name, value in (("--processes", processes), *(("--threads", t) for t in threads)):
        if value < 1:
            raise ArgumentError(name, "be at least 1", value)
    if not 0 < min_seconds < timeout_s:
        raise ArgumentError(
            "--min-seconds", f"be more than 0 and less than --timeout {timeout_s:g}", min_seconds
        )
    if isinstance(max_latency, str):
        max_latency = parse_time(max_latency, "--max-latency")
    read = read_bundle(bundle)
    place = Path(output) if output is not None else (read.folder or Path()) / "measurement.json"
    if not place.parent.is_dir() or place.is_dir():
        raise ArgumentError("--output", "be a file in a folder that exists", str(place))
    chosen = _chosen(read, models)
    wanted = tuple(dict.fromkeys(threads))
    file: MeasurementFile
    if adb:
        phone = connect(serial)
        kinds = tuple(model.kind for model in chosen)
        plan = PhonePlan(kinds, wanted, processes=processes, min_seconds=min_seconds,
                         timeout_s=timeout_s, poll_s=poll_s, cooldown_s=cooldown_s,
                         program=program, options=of_runner)  # fmt: skip
        file = chosen_runner.run(phone, read, plan, progress)
    else:
        file = _on_host(read, chosen, wanted, processes, min_seconds, timeout_s, progress)
    budgets = dict(read.budgets)
    if max_latency is not None:
        budgets["max_latency_us"] = max_latency
    entries = [
        {**entry, "checks": [*map(to_record, budget_checks(Measurement(entry), budgets))]}
        for entry in file.data["measurements"]
    ]
    # A run that could not even read the bundle does not name one.
    named = file.data["bundle"] or _bundle_entry(read)
    result = BenchResult({**file.data, "bundle": named, "measurements": entries})
    write_atomic(place, result.to_json())
    return result


def _program(wanted: str | None, binary: str | None) -> Program | None:
    """Returns the program of a runner; None for one that needs none."""
    from edgecompress.targets.phones.elf import read_program

    if wanted is None:
        return None
    if binary is None:
        raise ArgumentError("--binary", f"name {wanted}", None)
    return read_program(binary, "--binary")


def _chosen(bundle: Bundle, kinds: Sequence[str]) -> list[BundleModel]:
    known = {model.kind: model for model in bundle.models}
    for kind in kinds:
        if kind not in known:
            raise UnknownNameError("--model", kind, known)
    return [known[kind] for kind in dict.fromkeys(kinds)] or [bundle.models[0]]


def _bundle_entry(bundle: Bundle) -> dict[str, Any]:
    return {"name": bundle.name, "target": bundle.target, "sha256": bundle.sha256}


def _on_host(
    bundle: Bundle,
    models: Sequence[BundleModel],
    threads: Sequence[int],
    processes: int,
    min_seconds: float,
    timeout_s: float,
    progress: Callable[[str], None],
) -> MeasurementFile:
    """Measures on this computer, in the form of a measurement file."""
    from edgecompress.targets.measurement import Measurement, MeasurementFile

    entries = []
    for model in models:
        for count in threads:
            progress(f"Measuring the {model.kind} file on this computer, threads: {count}")
            entries.append(
                _host_entry(bundle, model, count, processes, min_seconds, timeout_s, progress)
            )
    states = [entry["state"] for entry in entries]
    data = {
        "schema": "edgecompress.measurement/1",
        "tool": {"name": "edgecompress", "version": tool_version()},
        "time": utc_now(),
        "bundle": _bundle_entry(bundle),
        "device": _host_device(),
        "state": {**states[0], "load_after": states[-1]["load_after"]},
        "measurements": entries,
        "error": None,
    }
    return MeasurementFile("", data, tuple(Measurement(entry) for entry in entries))


def _host_device() -> dict[str, Any]:
    from edgecompress.targets import bench

    return {
        "manufacturer": None,
        "model": platform.node() or None,
        "soc": bench.cpu_name(),
        "abi": platform.machine() or None,
        "android": None,
        "sdk": None,
        "build_fingerprint": None,
        "cpu_features": None,
        "cores": bench.cores(),
        "max_freq_khz": None,
        "ram_kb": bench.memory_kib(),
    }


def _host_entry(
    bundle: Bundle,
    model: BundleModel,
    threads: int,
    processes: int,
    min_seconds: float,
    timeout_s: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    from edgecompress.targets.bench import bench_host

    data = bundle.content(model.file)
    entry: dict[str, Any] = {
        "tier": "measured_host",
        "target": bundle.target,
        "model": {
            "sha256": model.sha256, "bytes": model.bytes, "kind": model.kind, "file": model.file,
        },
        "runtime": {
            "name": ENGINES[model.runtime].title, "version": None, "api": "Interpreter",
            "delegate": None, "kernels": None,
        },
        "config": {
            "threads": threads, "xnnpack": False, "affinity": None, "warmup": 10, "runs": 10,
            "min_s": min_seconds, "repeats": processes, "processes": processes, "input": "random",
        },
        "state": dict.fromkeys(_STATES),
        "latency_us": None,
        "memory_kb": {"init": None, "overall": None, "peak": None},
        "golden": None,
        "checks": [],
        "output_sha256": None,
        "error": None,
        "time": utc_now(),
    }  # fmt: skip
    missing = engine_available(model.runtime)
    if missing is not None:
        return {**entry, "error": _error("operator", missing)}
    try:
        samples = bundle.samples(model)
        if samples is not None:
            entry |= _host_golden(model, data, *samples)
        latency = bench_host(
            data, processes=processes, min_seconds=min_seconds, threads=threads,
            engine=model.runtime, timeout_s=timeout_s,
            progress=lambda done, all_of: progress(f"{model.kind}: process {done} of {all_of}"),
        )  # fmt: skip
    except EdgeCompressError as error:
        return {**entry, "error": _error("engine", str(error))}
    return {**entry, **_host_latency(entry, latency)}


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": " ".join(message.split())}


def _host_latency(entry: Mapping[str, Any], latency: HostLatency) -> dict[str, Any]:
    """Returns the parts of an entry that come from the timing."""
    xnnpack = latency.kernels == "XNNPACK"
    times = {k: v for k, v in latency.latency_us.items() if k != "cpu_median"}
    wall = latency.wall_medians
    return {
        "runtime": {
            **entry["runtime"],
            "version": latency.version,
            "delegate": "XNNPACK" if xnnpack else None,
            "kernels": latency.kernels,
        },
        "config": {
            **entry["config"],
            "xnnpack": xnnpack,
            "warmup": latency.config["warmup"],
            "runs": latency.config["min_samples"] * len(wall),
            "min_s": latency.config["min_seconds"] * len(wall),
        },
        "state": {
            **entry["state"],
            **{key: latency.state[key] for key in ("load_before", "load_after", "governor")},
        },
        "latency_us": {
            **times,
            "spread_pct": (max(wall) / min(wall) - 1) * 100,
            "samples": latency.samples,
            "inferences_per_sample": latency.inferences_per_sample,
            "repeat_medians": list(wall),
            "histogram": dict(latency.histogram),
            # CPU times of the computing thread: hardly disturbed by other programs, so they count.
            **({"cpu_medians": list(latency.cpu_medians)} if latency.threads == 1 else {}),
        },
        "memory_kb": {**latency.memory_kib, "peak": None},
        "time": latency.time,
    }


def _host_golden(
    model: BundleModel,
    data: bytes,
    inputs: tuple[np.ndarray, ...],
    wanted: tuple[np.ndarray, ...],
) -> dict[str, Any]:
    """Runs the golden inputs and returns `golden` and `output_sha256` of an entry."""
    run = run_engine(model.runtime, data, inputs)
    golden = model.golden
    if golden is None:
        return {}
    same = (golden.engine_version, golden.kernels) == (run.version, run.kernels)
    found = compare_golden(
        run.outputs, wanted, 0 if same else golden.tolerance_steps, golden.tolerance or 0.0
    )
    digest = hashlib.sha256()
    for sample in range(golden.samples):
        for output in run.outputs:
            digest.update(np.ascontiguousarray(output[sample]).tobytes())
    return {
        "golden": {**found, "kernels": golden.kernels},
        "output_sha256": digest.hexdigest(),
    }


def compare_golden(
    got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], steps: int, tolerance: float
) -> dict[str, Any]:
    """Compares outputs with golden ones.

    Args:
        got: One array (samples, ...) for each output.
        wanted: The golden ones, of the same types.
        steps: How much whole numbers may differ.
        tolerance: |got - want| <= tolerance * max(1, |want|) of floats.

    Example:
        >>> found = compare_golden([np.int8([[3, 5]])], [np.int8([[3, 4]])], 1, 0.0)
        >>> found["equal"], found["max_steps"], found["passed"]
        (1, 1, True)
    """
    result: dict[str, Any] = {"checked": 0, "equal": 0, "max_steps": None, "max_error": None}
    passed = True
    for have, want in zip(got, wanted, strict=True):
        have = have.reshape(want.shape)
        result["checked"] += want.size
        result["equal"] += int((have == want).sum())
        if want.dtype.kind == "f":
            error = np.abs(have.astype(np.float64) - want)
            # NaN agrees with NaN.
            error = np.where((have == want) | (np.isnan(have) & np.isnan(want)), 0.0, error)
            passed &= bool((error <= tolerance * np.maximum(1, np.abs(want))).all())
            largest = float(error.max(initial=0.0))
            known = result["max_error"]
            result["max_error"] = largest if known is None else max(known, largest)
        else:
            apart = int(np.abs(have.astype(np.int64) - want.astype(np.int64)).max(initial=0))
            passed &= apart <= steps
            result["max_steps"] = max(result["max_steps"] or 0, apart)
    first = wanted[0].reshape(len(wanted[0]), -1)
    answers = got[0].reshape(first.shape).argmax(1) == first.argmax(1)
    return {
        **jsonable(result),
        "passed": passed,
        "allowed_steps": None if result["max_steps"] is None else steps,
        "same_answer": int(answers.sum()),
        "samples": len(first),
    }
