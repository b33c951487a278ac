"""Times a flatbuffer on this computer, largely undisturbed by other programs.

Wall-clock time of a shared machine says more about its other users than about the model: medians
of fresh processes differ by tens of percent. The CPU time of the computing thread repeats within a
few percent, so it is the measured value; wall-clock numbers are reported as well.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.clock import utc_now
from edgecompress.core.errors import ArgumentError
from edgecompress.core.files import sha256
from edgecompress.engines.registry import ENGINES, LITERT
from edgecompress.engines.run import time_engine

LATENCY_SCHEMA = "edgecompress.latency/1"
# Above this ratio of the medians, the wall clock has measured other programs.
WALL_LIMIT = 1.2
_BINS = 20


@dataclass(frozen=True)
class HostLatency:
    """Latency of a model on this computer; all times in microseconds.

    Attributes:
        engine: The engine's registered name.
        version: Version of its package.
        kernels: Which kernels ran, e.g. `XNNPACK`.
        threads: Threads of the engine.
        cpu_medians: Median CPU time of the computing thread, one for each process.
        wall_medians: Median wall-clock time, one for each process.
        latency_us: `init` (loading the file), `first` (first inference), `warmup` (mean):
            medians over the processes; `min`, `p5`, `median`, `p90`, `p95`, `max`, `mean`, `std`:
            wall clock over the samples of all processes; `cpu_median`: median of `cpu_medians`.
        samples: Timed samples of all processes.
        inferences_per_sample: A sample is the mean over this many inferences (1 for slow models);
            the largest number of all processes.
        config: How it was measured: `processes`, `warmup`, `min_seconds`, `min_samples`, `seed`.
        cpu: Model name of the CPU.
        cores: Logical CPUs that this process may use.
        state: `load_before` and `load_after` (1-minute averages), `steal` (share of CPU time taken
            by the hypervisor, 0 to 1), `governor`; None if the system does not report it.
        memory_kib: Growth of the process: `init` by loading the file, `overall` in total; medians.
        model_sha256: SHA-256 of the file.
        model_bytes: Size of the file.
        time: Time of the measurement, in UTC.
        histogram: `edges` in microseconds and `counts` of the wall clock over all samples; the last
            bin also counts slower ones.

    Example:
        >>> bench_host(Path("model_int8.tflite").read_bytes()).measured  # doctest: +SKIP
        305.2
    """

    engine: str
    version: str
    kernels: str
    threads: int
    cpu_medians: tuple[float, ...]
    wall_medians: tuple[float, ...]
    latency_us: Mapping[str, float] = field(repr=False)
    samples: int
    inferences_per_sample: int
    config: Mapping[str, Any] = field(repr=False)
    cpu: str
    cores: int
    state: Mapping[str, float | str | None] = field(repr=False)
    memory_kib: Mapping[str, float | None] = field(repr=False)
    model_sha256: str = field(repr=False)
    model_bytes: int
    time: str
    histogram: Mapping[str, list[float] | list[int]] = field(default_factory=dict, repr=False)

    @property
    def measured(self) -> float:
        """The latency: CPU time with one thread, wall-clock time with more (median)."""
        return statistics.median(self.cpu_medians if self.threads == 1 else self.wall_medians)

    @property
    def low(self) -> float:
        """Lower end of the band: the fastest process (with several threads, also its CPU time)."""
        if self.threads == 1:
            return min(self.cpu_medians)
        return min(*self.wall_medians, *(self.cpu_medians if self.wall_refused else ()))

    @property
    def high(self) -> float:
        """Upper end of the band: the slowest process."""
        return max(self.cpu_medians if self.threads == 1 else self.wall_medians)

    @property
    def spread_pct(self) -> float:
        """Spread of the processes: (slowest / fastest - 1) in percent."""
        chosen = self.cpu_medians if self.threads == 1 else self.wall_medians
        return (max(chosen) / min(chosen) - 1) * 100

    @property
    def wall_refused(self) -> str | None:
        """Why the wall-clock numbers allow no verdict; None if they do."""
        wall, cpu = self.latency_us["median"], self.latency_us["cpu_median"]
        if wall <= WALL_LIMIT * cpu:
            return None
        load = self.state.get("load_after")
        busy = "" if load is None else f" (load {load:.1f} on {self.cores} CPUs)"
        return (
            f"The wall-clock median of {wall:.1f} us is {wall / cpu:.2f} times the CPU time, more "
            f"than {WALL_LIMIT}: the computer was busy{busy}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: times in microseconds, memory in KiB, nothing rounded."""
        return {
            "schema": LATENCY_SCHEMA,
            "tier": "measured_host",
            "model": {"sha256": self.model_sha256, "bytes": self.model_bytes},
            "runtime": {"name": self.engine, "version": self.version, "kernels": self.kernels},
            "device": {"cpu": self.cpu, "cores": self.cores},
            "config": {"threads": self.threads, **self.config},
            "state": dict(self.state),
            "latency_us": {
                **self.latency_us,
                "measured": self.measured,
                "low": self.low,
                "high": self.high,
                "spread_pct": self.spread_pct,
                "samples": self.samples,
                "inferences_per_sample": self.inferences_per_sample,
                "cpu_medians": list(self.cpu_medians),
                "wall_medians": list(self.wall_medians),
            },
            "wall_refused": self.wall_refused,
            "memory_kib": dict(self.memory_kib),
            "time": self.time,
        }


def bench_host(
    model: bytes,
    *,
    processes: int = 5,
    min_seconds: float = 0.3,
    threads: int = 1,
    warmup: int = 10,
    min_samples: int = 10,
    seed: int = 0,
    engine: str = LITERT,
    timeout_s: float = 120.0,
    progress: Callable[[int, int], None] | None = None,
) -> HostLatency:
    """Times a model on this computer, in consecutive fresh processes.

    Args:
        model: The .tflite file's bytes.
        processes: Number of processes; their spread is the band of the result. Defaults to 5.
        min_seconds: Minimum duration of the timed part of each process. Defaults to 0.3 seconds.
        threads: Threads of the engine. With more than 1 the CPU time of one thread is not a
            latency, so the wall clock counts.
        warmup: Inferences before the timed ones. Defaults to 10.
        min_samples: Minimum number of timed samples of each process. Defaults to 10.
        seed: Seed of the random inputs.
        engine: Which engine runs the file. Defaults to `litert`.
        timeout_s: Seconds after which a process without a result is stopped.
        progress: Called with (finished processes, all processes).

    Raises:
        ArgumentError: a number is out of its range.
        EngineError, MissingDependencyError: the engine cannot run the file or is not installed.

    Example:
        >>> latency = bench_host(int8)  # doctest: +SKIP
        >>> latency.low, latency.measured, latency.high  # doctest: +SKIP
        (302.9, 305.2, 311.0)
    """
    _at_least("processes", processes, 1)
    _at_least("threads", threads, 1)
    _at_least("warmup", warmup, 0)
    _at_least("min_samples", min_samples, 1)
    if not 0 < min_seconds < timeout_s:
        raise ArgumentError(
            "min_seconds", f"be more than 0 and less than timeout_s={timeout_s:g}", min_seconds
        )
    before, ticks = _load(), _cpu_ticks()
    runs = []
    for done in range(processes):
        runs.append(
            time_engine(
                engine,
                model,
                threads=threads,
                warmup=warmup,
                min_seconds=min_seconds,
                min_samples=min_samples,
                seed=seed,
                timeout_s=timeout_s,
            )
        )
        if progress is not None:
            progress(done + 1, processes)
    return summarize(
        runs,
        engine=engine,
        threads=threads,
        config={
            "processes": processes,
            "warmup": warmup,
            "min_seconds": min_seconds,
            "min_samples": min_samples,
            "seed": seed,
        },
        state={
            "load_before": before,
            "load_after": _load(),
            "steal": _steal(ticks, _cpu_ticks()),
            "governor": _governor(),
        },
        model=model,
    )


def summarize(
    runs: list[dict[str, Any]],
    *,
    engine: str,
    threads: int,
    config: Mapping[str, Any],
    state: Mapping[str, float | str | None],
    model: bytes,
) -> HostLatency:
    """Merges the processes' timings into one result.

    Args:
        runs: What `engines.run.time_engine` returned, one for each process; nanoseconds.
        engine: The engine's name.
        threads: Threads of the engine.
        config: How it was measured.
        state: The state of the computer during the run.
        model: The .tflite file's bytes.
    """
    wall = np.concatenate([run["wall"] for run in runs]) / 1e3
    cpu_medians = tuple(float(np.median(run["cpu"])) / 1e3 for run in runs)
    latency = {key: statistics.median(run[key] for run in runs) / 1e3 for key in _ONCE}
    latency |= {key: float(measure(wall)) for key, measure in _STATISTICS.items()}
    latency["cpu_median"] = statistics.median(cpu_medians)
    return HostLatency(
        engine=ENGINES[engine].name,
        version=runs[0]["version"],
        kernels=runs[0]["kernels"],
        threads=threads,
        cpu_medians=cpu_medians,
        wall_medians=tuple(float(np.median(run["wall"])) / 1e3 for run in runs),
        latency_us=latency,
        samples=len(wall),
        inferences_per_sample=max(run["group"] for run in runs),
        config=dict(config),
        cpu=cpu_name(),
        cores=cores(),
        state=dict(state),
        memory_kib={
            key: statistics.median(run[f"{key}_kib"] for run in runs)
            if all(f"{key}_kib" in run for run in runs)
            else None
            for key in ("init", "overall")
        },
        model_sha256=sha256(model),
        model_bytes=len(model),
        time=utc_now(),
        histogram=_histogram(wall),
    )


def _histogram(wall: np.ndarray) -> dict[str, list[float] | list[int]]:
    # A few samples disturbed by another program would squeeze all others into one bin.
    low, high = float(wall.min()), float(np.percentile(wall, 95))
    edges = np.linspace(low, max(high, low * 1.01), _BINS + 1)
    counts, _ = np.histogram(np.minimum(wall, edges[-1]), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


_ONCE = ("init", "first", "warmup")
_STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "min": np.min,
    "p5": lambda wall: np.percentile(wall, 5),
    "median": np.median,
    "p90": lambda wall: np.percentile(wall, 90),
    "p95": lambda wall: np.percentile(wall, 95),
    "max": np.max,
    "mean": np.mean,
    "std": np.std,
}


def _at_least(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(argument, f"be a whole number of at least {least}", value)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def memory_kib() -> int | None:
    """Returns the memory of this computer in KiB; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    except (AttributeError, OSError, ValueError):
        return None


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _cpu_ticks() -> tuple[int, ...]:
    """Returns Linux's counters user, nice, system, idle, iowait, irq, softirq, steal."""
    lines = _read("/proc/stat").splitlines()
    return tuple(int(n) for n in lines[0].split()[1:9]) if lines else ()


def _steal(before: tuple[int, ...], after: tuple[int, ...]) -> float | None:
    if len(before) < 8 or len(after) < 8 or sum(after) <= sum(before):
        return None
    return (after[7] - before[7]) / (sum(after) - sum(before))


def _governor() -> str | None:
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def cores() -> int:
    """Returns how many logical CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Returns the model name of the CPU, as far as the system reports it."""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"
