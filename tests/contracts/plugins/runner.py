"""A toy plugin: a runner that lets the demo app warm up before it measures."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgecompress.core.bundle import Bundle
from edgecompress.core.options import option, whole
from edgecompress.targets.measurement import MeasurementFile
from edgecompress.targets.phones.adb import Phone
from edgecompress.targets.phones.runners import RUNNERS, PhonePlan, Runner, run_app


@dataclass(frozen=True)
class WarmOptions:
    """Options of `--runner warm`."""

    warmups: int = option(1, "Runs that do not count.", whole(1, 9))


def run(
    phone: Phone, bundle: Bundle, plan: PhonePlan, progress: Callable[[str], None]
) -> MeasurementFile:
    """Runs the demo app a few times for nothing, then as the plan says."""
    for number in range(plan.options.warmups):
        progress(f"Warm-up {number + 1} of {plan.options.warmups}")
        run_app(phone, bundle, replace(plan, processes=1), progress)
    return run_app(phone, bundle, plan, progress)


RUNNERS.register("warm")(Runner(run, options=WarmOptions))
