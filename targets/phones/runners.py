"""Runs a bundle on a phone, in fresh processes of the demo app, and fetches the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edgecompress.core.bundle import Bundle
from edgecompress.core.errors import DeviceError, ModelFileError
from edgecompress.core.registry import Registry
from edgecompress.targets.measurement import MeasurementFile, parse_measurement
from edgecompress.targets.measurement_merge import merge
from edgecompress.targets.phones.adb import Phone
from edgecompress.targets.phones.elf import Program

PACKAGE = "io.edgecompress.demo"
_ACTIVITY = f"{PACKAGE}/.HeadlessActivity"
_FILES = f"/sdcard/Android/data/{PACKAGE}/files"
_TAG = "edgecompress"
# For a brief moment, the process is gone before its result is visible.
_GONE = 3
_LOST = 3


@dataclass(frozen=True)
class PhonePlan:
    """How to run a bundle.

    Attributes:
        models: Kinds of the models.
        threads: Numbers of threads.
        xnnpack: `on`, `off` or `on,off`.
        processes: Number of fresh processes, run one after another.
        runs: Minimum number of timed samples of a process.
        min_seconds: Minimum duration of the timed part of a process.
        timeout_s: Seconds a process may take.
        poll_s: Seconds between two polls.
        cooldown_s: Longest pause for a phone that has heated up.
        program: The program to run, for runners that need one.
        options: The runner's own options.
    """

    models: tuple[str, ...]
    threads: tuple[int, ...] = (1,)
    xnnpack: str = "on"
    processes: int = 5
    runs: int = 50
    min_seconds: float = 1.0
    timeout_s: float = 600.0
    poll_s: float = 2.0
    cooldown_s: float = 300.0
    program: Program | None = None
    options: Any = None


@dataclass(frozen=True)
class NoOptions:
    """The options of a runner without any."""


@dataclass(frozen=True)
class Runner:
    """A way to run a bundle on a phone.

    Attributes:
        run: Runs it there and merges the runs of all processes.
        program: The user-supplied program, and where to get it; None for none.
        options: Its own options, a dataclass of `core.options`; `PhonePlan.options` holds them.
        summary: What it is, in a few words for `--help`.
    """

    run: Callable[[Phone, Bundle, PhonePlan, Callable[[str], None]], MeasurementFile]
    program: str | None = None
    options: type = NoOptions
    summary: str = ""


RUNNERS: Registry[Runner] = Registry("--runner", home="edgecompress.targets.phones.all_runners")


def run_app(
    phone: Phone, bundle: Bundle, plan: PhonePlan, progress: Callable[[str], None]
) -> MeasurementFile:
    """Pushes a bundle, runs it in the demo app and merges the runs of all processes.

    Args:
        phone: The phone.
        bundle: The bundle to run; all of its files.
        plan: How to run it.
        progress: Called with a short text.

    Raises:
        DeviceError: the app is missing or was killed, a timeout, or adb failed.
        ModelFileError: the result is damaged, or belongs to another bundle.
    """
    if PACKAGE not in phone.shell("pm", "path", PACKAGE).out:
        raise DeviceError(
            f"The demo app is not installed on the phone {phone.serial}: `edgecompress android "
            "build` makes it, `edgecompress android install` installs it."
        )
    progress(f"Pushing the bundle to {phone.serial}")
    # A name that is safe in every shell and file system.
    name = f"bench-{bundle.sha256[:16]}"
    sent = phone.push(
        {f"{_FILES}/bundles/{name}/{path}": bundle.content(path) for path in bundle.files()}
    )
    progress(f"Pushed {sent} of {len(bundle.files())} files; the others were there")
    results: list[MeasurementFile] = []
    try:
        for number in range(plan.processes):
            label = f"Process {number + 1} of {plan.processes}"
            results.append(_one(phone, bundle, plan, name, label, progress))
            if results[-1].data["error"] is not None:
                break
            if number + 1 < plan.processes:
                cool_down(phone, results, plan, progress)
    finally:
        # Even after Ctrl-C: nothing keeps running on the phone.
        with suppress(DeviceError):
            phone.shell("am", "force-stop", PACKAGE)
    return merge(results)


RUNNERS.register("app")(Runner(run_app, summary="the demo app"))


def _one(
    phone: Phone,
    bundle: Bundle,
    plan: PhonePlan,
    name: str,
    label: str,
    progress: Callable[[str], None],
) -> MeasurementFile:
    """Runs one process and returns its result."""
    result = f"{name}.json"
    path = f"{_FILES}/results/{result}"
    phone.shell("am", "force-stop", PACKAGE)
    phone.shell("rm", "-f", path)
    extras = {
        "bundle": name,
        "result": result,
        "threads": ",".join(map(str, plan.threads)),
        "xnnpack": plan.xnnpack,
        "runs": str(plan.runs),
        "min_s": f"{plan.min_seconds:g}",
        "models": ",".join(plan.models),
    }
    words = [word for key, value in extras.items() for word in ("-e", key, value)]
    started = phone.shell("am", "start", "-W", "-n", _ACTIVITY, *words, timeout_s=60)
    if started.code or "Error" in started.out + started.err:
        raise DeviceError(
            f"The demo app does not start on the phone {phone.serial}: {started.line}"
        )
    _wait(phone, path, plan, label, progress)
    content = phone.pull(path)
    phone.shell("rm", "-f", path)
    file = parse_measurement(content, "The phone's result")
    of = file.data["bundle"]
    if of is not None and of["sha256"] != bundle.sha256:
        raise ModelFileError(
            f"The phone's result is of another bundle ({of['name']}, SHA-256 {of['sha256'][:12]}"
            f"... instead of {bundle.sha256[:12]}...)."
        )
    known = {model.sha256 for model in bundle.models}
    for measurement in file.measurements:
        if measurement.sha256 not in known:
            raise ModelFileError(
                "The phone's result is of another model (SHA-256 "
                f"{measurement.sha256[:12]}...), which the bundle does not have."
            )
        if measurement.data["tier"] != "measured_device":
            raise ModelFileError("The phone's result was not measured on a phone.")
    if not file.measurements and file.data["error"] is None:
        raise ModelFileError("The phone's result holds no measurement.")
    return file


def _wait(
    phone: Phone, path: str, plan: PhonePlan, label: str, progress: Callable[[str], None]
) -> None:
    """Waits for the result file; the app writes it in one step."""
    look = (
        f"if [ -f {path} ]; then echo done; elif pidof {PACKAGE} > /dev/null; then echo running; "
        f"else echo gone; fi; logcat -d -t 1 -s {_TAG}:I"
    )
    begin = time.monotonic()
    gone = lost = 0
    while True:
        try:
            answer = phone.script(look)
            lines = answer.out.splitlines()
            state = lines[0].strip() if lines else ""
        except DeviceError:
            lines, state = [], ""
        if state == "done":
            return
        gone = gone + 1 if state == "gone" else 0
        lost = 0 if state in ("gone", "running") else lost + 1
        if gone >= _GONE:
            raise _failure(phone, "The app was killed before it had a result")
        if lost >= _LOST:
            raise _failure(phone, "The phone no longer answers: was it unplugged?")
        waited = time.monotonic() - begin
        if waited > plan.timeout_s:
            raise _failure(
                phone, f"No result came within {plan.timeout_s:g} s (--timeout); the app is stopped"
            )
        said = next((f": {line.rpartition(': ')[2]}" for line in lines[1:] if _TAG in line), "")
        progress(f"{label}, {waited:.0f} s{said}")
        time.sleep(plan.poll_s)


def _failure(phone: Phone, what: str) -> DeviceError:
    log = phone.log(_TAG)
    return DeviceError(f"{what} ({phone.serial}). " + (f"Its log ends: {log}" if log else ""))


def cool_down(
    phone: Phone,
    results: list[MeasurementFile],
    plan: PhonePlan,
    progress: Callable[[str], None],
) -> None:
    """Waits while the phone is hotter than before the first process."""
    before = results[0].data["state"]["thermal_before"]
    after = results[-1].data["state"]["thermal_after"]
    if before is None or after is None or after <= before:
        return
    begin = time.monotonic()
    while time.monotonic() - begin < plan.cooldown_s:
        status = phone.thermal_status()
        if status is None or status <= before:
            return
        progress(f"Cooling down: thermal status {status}, {before} at the start")
        time.sleep(plan.poll_s)
    progress(f"The phone did not cool down within {plan.cooldown_s:g} s")
