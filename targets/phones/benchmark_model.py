"""The runner `benchmark_model`: Google's benchmark program for the Interpreter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from edgecompress.core.bundle import Bundle
from edgecompress.targets.measurement import MeasurementFile
from edgecompress.targets.phones.adb import Phone
from edgecompress.targets.phones.program import Figures, ProgramOptions, Tool, run_tool
from edgecompress.targets.phones.runners import RUNNERS, PhonePlan, Runner

_NUMBER = r"([-+.\w]+?)"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}\s*$",
    re.MULTILINE,
)
# If all are the same, it omits most.
_RUNS = re.compile(
    rf"count=(?P<samples>\d+)(?: first={_NUMBER})?(?: curr={_NUMBER}(?:\(all same\))?)?"
    rf"(?: min=(?P<min>\S+) max=(?P<max>\S+) avg=(?P<mean>\S+) std=(?P<std>\S+))?"
    rf"(?: p5=(?P<p5>\S+) median=(?P<median>\S+) p95=(?P<p95>\S+))?\s*$",
    re.MULTILINE,
)
_MEMORY = re.compile(r"Memory footprint delta .*init=(\S+) overall=(\S+)")
_SIZE = re.compile(r"The input model file size \(MB\): (\S+)")
_DELEGATED = {
    "completely executed by the delegate": "XNNPACK",
    "partially executed by the delegate": "XNNPACK and built-in",
    "will not be executed by the delegate": "built-in",
}


def read_log(log: str) -> Figures:
    """Returns the figures that benchmark_model printed.

    Raises:
        ValueError: it printed none, or no median, as older builds do.

    Example:
        >>> read_log(Path("log.txt").read_text()).median  # doctest: +SKIP
        141253.0
    """
    timings = _TIMINGS.search(log)
    runs = list(_RUNS.finditer(log))
    # The warm-up comes first.
    if timings is None or len(runs) < 2:
        raise ValueError("there is no line of inference timings")
    found: dict[str, Any] = runs[-1].groupdict()
    if found["median"] is None:
        raise ValueError("it prints no median, use a newer build")
    if found["min"] is None:
        found |= {"min": found["median"], "max": found["median"], "std": "0", "mean": timings[4]}
    memory, size = _MEMORY.search(log), _SIZE.search(log)
    grown = [None, None] if memory is None else [float(value) * 1024 for value in memory.groups()]
    times = {name: float(value) for name, value in found.items() if name != "samples"}
    return Figures(
        init=float(timings[1]),
        first=float(timings[2]),
        warmup=float(timings[3]),
        samples=int(found["samples"]),
        model_mb=None if size is None else float(size[1]),
        memory_init=grown[0] or None,
        memory_overall=grown[1] or None,
        **times,
    )


def _kernels(log: str, xnnpack: bool) -> str | None:
    if not xnnpack:
        return "built-in"
    # The sentence is broken differently in each version.
    flat = " ".join(log.split())
    return next((kernels for said, kernels in _DELEGATED.items() if said in flat), None)


def _options(xnnpack: bool) -> Mapping[str, str]:
    return {"use_xnnpack": "true" if xnnpack else "false", "enable_op_profiling": "false"}


TOOL = Tool("benchmark_model", "Interpreter", _options, _kernels, read_log)


def run_benchmark_model(
    phone: Phone, bundle: Bundle, plan: PhonePlan, progress: Callable[[str], None]
) -> MeasurementFile:
    """Runs a bundle in benchmark_model; arguments and errors are those of `run_tool`."""
    return run_tool(TOOL, phone, bundle, plan, progress)


RUNNERS.register("benchmark_model")(
    Runner(
        run_benchmark_model,
        "the program benchmark_model for the phone's ABI, as the guide of LiteRT's performance "
        "tools offers it (native benchmark binary, e.g. android_aarch64_benchmark_model)",
        ProgramOptions,
        "Google's benchmark program of LiteRT's interpreter; checks no outputs",
    )
)
