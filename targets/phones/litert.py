"""The runner `litert`: Google's benchmark program for LiteRT's CompiledModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgecompress.core.bundle import Bundle
from edgecompress.core.errors import ArgumentError
from edgecompress.targets.measurement import MeasurementFile
from edgecompress.targets.phones.adb import Phone
from edgecompress.targets.phones.program import Figures, ProgramOptions, Tool, run_tool
from edgecompress.targets.phones.runners import RUNNERS, PhonePlan, Runner


def _options(xnnpack: bool) -> Mapping[str, str]:
    return {"use_cpu": "true", "use_gpu": "false", "use_npu": "false"}


def _kernels(log: str, xnnpack: bool) -> str | None:
    # The CPU accelerator delegates what it can to XNNPACK without reporting how much.
    return None


def _no_log(log: str) -> Figures:
    # Its output is rounded to 10 us, goes elsewhere on some phones, and has no median.
    raise ValueError("it wrote no result file, use a newer build")


TOOL = Tool("benchmark_litert_model", "CompiledModel", _options, _kernels, _no_log)


def run_litert(
    phone: Phone, bundle: Bundle, plan: PhonePlan, progress: Callable[[str], None]
) -> MeasurementFile:
    """Runs a bundle in benchmark_litert_model; arguments and errors are those of `run_tool`.

    Raises:
        ArgumentError: the plan has XNNPACK off, which CompiledModel does not offer.
    """
    if plan.xnnpack != "on":
        raise ArgumentError("xnnpack", "be on for the runner litert", plan.xnnpack)
    return run_tool(TOOL, phone, bundle, plan, progress)


RUNNERS.register("litert")(
    Runner(
        run_litert,
        "the program benchmark_litert_model for the phone's ABI, built from LiteRT's sources "
        "(litert/tools)",
        ProgramOptions,
        "Google's benchmark program of LiteRT's CompiledModel; checks no outputs",
    )
)
