"""The schema of a measurement file: what each value must be before it counts.

A file may omit fields with a default here: nothing is read from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgecompress.core.errors import ModelFileError
from edgecompress.core.forms import (
    Count,
    Fault,
    Flag,
    Items,
    NotNegative,
    Number,
    Positive,
    Rule,
    Sha256,
    Text,
    filled,
    one_of,
    this_schema,
)
from edgecompress.core.results import HowKnown

MEASUREMENT_SCHEMA = "edgecompress.measurement/1"
# `how_known` of what was measured, phones first: values of `Family.measured`.
TIERS: tuple[HowKnown, ...] = ("measured_device", "measured_host")

Times = Annotated[
    Items[NotNegative],
    Rule(
        "a list of times above 0",
        lambda times: bool(times) and min(times) > 0,
        {"minItems": 1, "items": {"type": "number", "exclusiveMinimum": 0}},
    ),
]


@dataclass(frozen=True)
class MeasurementTool:
    """What measured."""

    name: Text
    version: Text


@dataclass(frozen=True)
class MeasuredBundle:
    """The requested bundle.

    Attributes:
        name: Its name.
        target: Name of its target profile.
        sha256: Of bundle.json.
    """

    name: Text
    target: Text | None
    sha256: Sha256


@dataclass(frozen=True)
class Device:
    """The machine.

    Attributes:
        manufacturer: Who made it.
        model: What they call it.
        soc: Its chip.
        abi: The ABI that the process runs in.
        android: The release, e.g. 14.
        sdk: The API level.
        build_fingerprint: Of the system.
        cpu_features: As in /proc/cpuinfo; asimddp is the dot product.
        cores: How many.
        max_freq_khz: One for each core; null for a core that does not tell.
        ram_kb: KiB of memory.
    """

    manufacturer: Text | None
    model: Text | None
    soc: Text | None = None
    abi: Text | None = None
    android: Text | None = None
    sdk: Count | None = None
    build_fingerprint: Text | None = None
    cpu_features: Items[Text] | None = None
    cores: Count | None = None
    max_freq_khz: Items[Count | None] | None = None
    ram_kb: Count | None = None


@dataclass(frozen=True)
class DeviceState:
    """What may have disturbed it; `_before` and `_after` are values of the two ends.

    Attributes:
        thermal_before: Android's thermal status: 0 none, 1 light, 2 moderate, 3 severe, 4 critical,
            5 emergency, 6 shutdown.
        thermal_after: The same.
        thermal_headroom_before: 1 is where heavy throttling begins.
        thermal_headroom_after: The same.
        battery_before: Share, 0 to 1.
        battery_after: Share, 0 to 1.
        battery_temperature_c: Degrees Celsius.
        charging: Whether it is.
        power_save: Whether the system saves power.
        governor: Of CPU 0.
        load_before: 1-minute load average.
        load_after: 1-minute load average.
        available_kb: KiB of free memory at the start.
    """

    thermal_before: Count | None
    thermal_after: Count | None
    thermal_headroom_before: Number | None = None
    thermal_headroom_after: Number | None = None
    battery_before: Number | None = None
    battery_after: Number | None = None
    battery_temperature_c: Number | None = None
    charging: Flag | None = None
    power_save: Flag | None = None
    governor: Text | None = None
    load_before: Number | None = None
    load_after: Number | None = None
    available_kb: Count | None = None


@dataclass(frozen=True)
class RunError:
    """Why there is no, or no whole, result.

    Attributes:
        code: arguments: the request is wrong. bundle: the bundle is missing, damaged or leads
            outside its folder. operator: the file needs another runtime. engine: the runtime
            refused it otherwise. memory: not enough of it. storage: a file could not be read or
            written. cancelled: the user, or the system, stopped it. internal: a fault of the app.
        message: One line.
    """

    code: Text
    message: Text


@dataclass(frozen=True)
class MeasuredModel:
    """The model that was run.

    Attributes:
        sha256: As in the bundle; if there is no error, the bytes that were run have it.
        bytes: Its size.
        kind: The artifact's kind.
        file: Its path in the bundle.
    """

    sha256: Sha256
    bytes: Count
    kind: Text
    file: Text


@dataclass(frozen=True)
class Program:
    """The program that ran it, where that is not the demo app or edgecompress."""

    name: Text
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What ran the model.

    Attributes:
        name: The runtime's name.
        version: Its version.
        api: The interface that was called.
        delegate: The requested delegate, e.g. XNNPACK; null for none.
        kernels: XNNPACK or built-in: what computed, as far as the runtime tells; null where it does
            not.
        program: Optional.
    """

    name: Text
    version: Text | None
    api: Text
    delegate: Text | None = None
    kernels: Text | None
    program: Program | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How it was measured.

    Attributes:
        threads: Threads of the runtime.
        xnnpack: Whether XNNPACK was on.
        affinity: Mask of the CPUs; null where it was left to the system.
        warmup: Inferences before the timed ones.
        runs: Least number of timed samples in all.
        min_s: Least duration of the timed part in seconds.
        repeats: The timed part is cut into so many repeats.
        processes: Processes whose samples were put together; the app's own files have 1.
        input: What was fed: `golden` inputs in turn, or `random` values of a fixed seed.
    """

    threads: Positive
    xnnpack: Flag
    affinity: Text | None = None
    warmup: Count
    runs: Positive
    min_s: NotNegative
    repeats: Positive
    processes: Positive
    input: Text


@dataclass(frozen=True)
class Histogram:
    """Samples between edges[i] and edges[i + 1]; the last bin also holds what is slower."""

    edges: Annotated[Items[NotNegative], filled("a list of at least 2 edges", 2)]
    counts: Annotated[Items[Count], filled("a list of at least 1 count")]


@dataclass(frozen=True)
class Latency:
    """Wall clock of one inference, in microseconds.

    Attributes:
        init: Loading the file and allocating.
        first: The first inference.
        min: Of the samples.
        p5: 5th percentile.
        median: Of the samples.
        p95: 95th percentile.
        max: Of the samples.
        mean: Of the samples.
        std: Standard deviation of the population.
        warmup: Mean of the warm-up; null without one.
        p90: 90th percentile; null where the runner does not tell it.
        spread_pct: (slowest / fastest - 1) * 100 of `repeat_medians`.
        samples: How many.
        inferences_per_sample: A sample is the mean over so many; 1 for slow models.
        repeat_medians: The median of each repeat, in order.
        histogram: Null where the runner does not tell single samples.
        cpu_medians: Optional: the median CPU time of each repeat. Where it is there, it is what
            counts.
    """

    init: NotNegative
    first: NotNegative
    min: NotNegative
    p5: NotNegative
    median: NotNegative
    p95: NotNegative
    max: NotNegative
    mean: NotNegative
    std: NotNegative
    warmup: NotNegative | None
    p90: NotNegative | None
    spread_pct: NotNegative
    samples: Positive
    inferences_per_sample: Positive
    repeat_medians: Times
    histogram: Histogram | None
    cpu_medians: Times | None = None


@dataclass(frozen=True)
class Memory:
    """Growth of the process, in KiB.

    Attributes:
        init: By loading the file and allocating.
        overall: By loading and running.
        peak: The process's highest resident size, not a growth.
    """

    init: Number | None
    overall: Number | None
    peak: Number | None


@dataclass(frozen=True)
class GoldenResult:
    """How the outputs compare with the golden ones.

    Attributes:
        checked: Values that were compared.
        equal: How many of them are equal to the bit.
        max_steps: Largest difference of quantized outputs in steps; null without one.
        max_error: Largest difference of float outputs; null without one, or where an output is NaN.
        passed: Whether all lie within what is allowed.
        kernels: Those that gave the golden outputs.
        allowed_steps: Optional: 0 between equal kernels, else the bundle's tolerance.
        same_answer: Optional: samples whose largest value of the first output is at the same place.
        samples: Optional: how many.
    """

    checked: Count
    equal: Count
    max_steps: Count | None
    max_error: Number | None
    passed: Flag
    kernels: Text
    allowed_steps: Count | None = None
    same_answer: Count | None = None
    samples: Count | None = None


@dataclass(frozen=True)
class RecordedCheck:
    """A check against the bundle's budgets, on what was measured here.

    Attributes:
        rule: latency, file_size, ram, accuracy or golden.
        verdict: pass, fail, uncertain, not_measured or not_applicable.
        measured: The value, in `unit`.
        low: Lower end of the band the true value lies in.
        high: Upper end of that band.
        limit: The budget, in `unit`.
        unit: microseconds, bytes, share or steps.
        reason: One sentence wherever the verdict is not a plain pass.
    """

    rule: Text
    verdict: Text
    measured: Number | None = None
    low: Number | None = None
    high: Number | None = None
    limit: Number | None = None
    unit: Text | None = None
    reason: Text | None = None


@dataclass(frozen=True, kw_only=True)
class MeasurementEntry:
    """One model with one setting.

    Attributes:
        tier: How it is known. Tiers are never mixed.
        target: Name of the target profile.
        model: The model that was run.
        runtime: What ran it.
        config: How it was measured.
        state: Of this part of the run.
        latency_us: Null where nothing was timed.
        memory_kb: Growth of the process.
        golden: Null where no outputs were compared.
        golden_reason: Optional: why `golden` is null, from a runner that compares no outputs.
        checks: Against the bundle's budgets.
        output_sha256: Of the outputs for the golden inputs, sample after sample and output after
            output; null if there are none.
        error: Null if there is none.
        time: UTC, e.g. 2026-01-02T03:04:05Z.
    """

    tier: Annotated[Text, one_of(*TIERS, words=" or ".join(TIERS))]
    target: Text | None
    model: MeasuredModel
    runtime: Runtime
    config: RunConfig
    state: DeviceState
    latency_us: Latency | None
    memory_kb: Memory
    golden: GoldenResult | None
    golden_reason: Text | None = None
    checks: Items[RecordedCheck]
    output_sha256: Sha256 | None
    error: RunError | None
    time: Text


@dataclass(frozen=True)
class MeasurementForm:
    """One run over a bundle: the result file of the demo app and of `edgecompress bench`.

    Times in microseconds, memory in KiB (1,024 bytes), unrounded. What the system does not tell is
    null, never a guess. A run that failed before the first measurement has an `error` and no
    measurement. Fields may be added; those listed here stay as they are while the schema's number
    stays.

    Attributes:
        schema: Name and number of this schema.
        tool: What measured.
        time: UTC, e.g. 2026-01-02T03:04:05Z.
        bundle: The requested bundle; null if no bundle could be read.
        device: The machine.
        state: Of the whole run.
        measurements: One for each model, number of threads and setting of XNNPACK.
        error: Why the run as a whole did not end.
    """

    schema: Annotated[Text, this_schema(MEASUREMENT_SCHEMA)]
    tool: MeasurementTool
    time: Text
    bundle: MeasuredBundle | None
    device: Device
    state: DeviceState
    measurements: Items[MeasurementEntry]
    error: RunError | None


def wrong_form(label: str, fault: Fault) -> ModelFileError:
    """Returns the error on a file that is not of this form; `label` is what it is called."""
    rule, got = ("there", None) if fault.missing else (fault.rule, fault.got)
    return ModelFileError(
        f"{label} is not a complete measurement file: {fault.place} must be {rule}. "
        f"Got {str(got)[:60]!r}."
    )
