"""Predicted time of one inference on a microcontroller, with its band.

    cycles = cycles per instruction * instructions + 0.35 * bytes of weights

The instructions follow from the flatbuffer (see `instructions`), the cycles per instruction belong
to the board and its runtime, and the second term is the wait for weights that are read from flash.
The band depends on how well the cycles per instruction are known; if the instruction count is less
certain than the class allows for, the band is wider.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgecompress.core.errors import ArgumentError
from edgecompress.engines.registry import TFLM_KERNELS
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.targets.profile import Calibration, TargetProfile, check_choice
from edgecompress.targets.tflm.arena import CORES
from edgecompress.targets.tflm.geometry import Unmodelled
from edgecompress.targets.tflm.instructions import (
    PER_INFERENCE,
    PER_OPERATOR,
    operator_instructions,
)

# Cycles per byte of weights read from flash; one value for all boards, because four published
# networks per board cannot separate it from the cycles per instruction.
CYCLES_PER_WEIGHT_BYTE = 0.35

# Class -> the band's ends as factors of the typical value. A: fitted on published rows of the very
# board, leaving one benchmark out errs by up to 18 percent and the instruction count by up to 4.
# A-: the same for Cortex-M85, whose instructions are counted on Cortex-M55. B: CPI of 1.2 to 1.8
# seen over the boards of a core. B-: MVE cores, 0.8 to 1.4. C: no open measurement of the core.
BANDS: Mapping[str, tuple[float, float]] = {
    "A": (0.75, 1.25),
    "A-": (0.65, 1.35),
    "B": (1 / 1.5, 1.5),
    "B-": (1 / 1.6, 1.6),
    "C": (1 / 2, 2.0),
}

# Class -> the relative error of the instruction count that its band allows for: the band divided by
# the error of the cycles per instruction (A: 1.25 / 1.18, leaving one benchmark out; A-: 1.35 /
# 1.19; B: 1.5 over 1.8 / 1.47; B-: 1.6 over 1.4 / 1.06; C: 2 over 1.3 / 0.88).
ROOM: Mapping[str, float] = {"A": 0.06, "A-": 0.13, "B": 0.22, "B-": 0.21, "C": 0.35}

# No core issues more than one (dual-issue cores: two) instructions per cycle. Halved, because
# another compiler may need fewer instructions than the one counted.
_FEWEST_CYCLES = {"cortex-m7": 0.25, "cortex-m33": 0.25, "cortex-m55": 0.25, "cortex-m85": 0.25}
_FEWEST_CYCLES_SINGLE_ISSUE = 0.5


@dataclass(frozen=True)
class OperatorCost:
    """The cost of one operator.

    Attributes:
        index: Position in the order of execution.
        name: The operator's name.
        output: Name of its first output tensor.
        instructions: Instructions of one inference; None if no formula covers it.
        reason: Why the operator was not counted; None if it was.
        error: Largest relative error of the instructions.
    """

    index: int
    name: str
    output: str
    instructions: float | None
    reason: str | None = None
    error: float = 0.0


@dataclass(frozen=True)
class LatencyEstimate:
    """The predicted time of one inference.

    Attributes:
        operators: One entry for each operator.
        kernels: `cmsis-nn` or `reference`.
        instructions: Sum over the operators that have a formula, and the interpreter's own.
        weight_bytes: Bytes of weights and biases in flash.
        calibration: Class of the band; None if there is none.
        cycles_per_instruction: The factor in use; None if unknown.
        instruction_error: Relative error of `instructions`, from `instruction_error()`.
        band: The band's ends as factors of the typical value; those of the class if the
            instructions are as certain as it assumes.
        cycles: Cycles of one inference; None if unknown.
        microseconds: Typical time; None if the clock or the cycles are unknown.
        low: Lower end of the band in microseconds; valid even if the typical time is unknown.
        high: Upper end of the band; None if there is none.
        reason: Why there is no typical time; None if there is one.
    """

    operators: tuple[OperatorCost, ...]
    kernels: str
    instructions: float
    weight_bytes: int
    instruction_error: float = 0.0
    calibration: str | None = None
    cycles_per_instruction: float | None = None
    band: tuple[float, float] | None = None
    cycles: float | None = None
    microseconds: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @property
    def unknown(self) -> tuple[OperatorCost, ...]:
        """The operators that no formula covers."""
        return tuple(cost for cost in self.operators if cost.instructions is None)


def cycles_per_instruction(calibration: Calibration, clock_mhz: float) -> float:
    """Returns the factor implied by one measured latency.

        (milliseconds * 1000 * MHz - 0.35 * weight bytes) / instructions

    Args:
        calibration: The measured latency.
        clock_mhz: Clock of the core in MHz.

    Raises:
        ArgumentError: the measured time is shorter than reading the weights takes.

    Example:
        >>> cycles_per_instruction(Calibration(1_000_000, 100_000, 10.0), clock_mhz=120)
        1.165
    """
    cycles = calibration.milliseconds * 1e3 * clock_mhz
    factor = (cycles - CYCLES_PER_WEIGHT_BYTE * calibration.weight_bytes) / calibration.instructions
    if factor <= 0:
        raise ArgumentError(
            "calibration milliseconds",
            "be longer than reading the weights takes",
            calibration.milliseconds,
            "Check the unit: milliseconds of one inference.",
        )
    return factor


def operator_costs(model: FlatModel, core: str, kernels: str) -> tuple[OperatorCost, ...]:
    """Returns the instructions of every operator.

    Args:
        model: The file.
        core: The processor core, e.g. `cortex-m4`. Cores without DSP instructions get the count of
            those with, a lower bound.
        kernels: `cmsis-nn` or `reference`.
    """
    kernel_set = "reference" if kernels == "reference" else CORES[core]
    kernel_set = "dsp" if kernel_set == "scalar" else kernel_set
    costs = []
    for operator in model.operators:
        output = model.output(operator).name if operator.outputs else ""
        try:
            found = operator_instructions(model, operator, kernel_set, core)
            cost = OperatorCost(
                operator.index, operator.name, output, found.instructions, error=found.error
            )
        except Unmodelled as error:
            cost = OperatorCost(operator.index, operator.name, output, None, str(error))
        costs.append(cost)
    return tuple(costs)


def instruction_error(costs: Iterable[OperatorCost]) -> float:
    """Returns the relative error of the instructions of all operators together.

    The errors of different operators are independent, those of equal ones are the same:
    `sqrt(sum of squares of instructions * error) / instructions`, equal operators counted as one.

    Args:
        costs: The operators; those without a number are ignored.

    Example:
        >>> twice = OperatorCost(0, "ADD", "", 100.0, error=0.1), OperatorCost(
        ...     1, "MUL", "", 100.0, error=0.1)
        >>> round(instruction_error(twice), 4)
        0.0707
    """
    groups: dict[tuple[str, float], float] = defaultdict(float)
    total = 0.0
    for cost in costs:
        if cost.instructions is not None:
            groups[cost.name, cost.instructions] += cost.instructions * cost.error
            total += cost.instructions
    return math.hypot(*groups.values()) / total if total else 0.0


def _widened(band: tuple[float, float], calibration: str, error: float) -> tuple[float, float]:
    """Returns the band for instructions that are off by up to `error`.

    A count that is `error` too high means a time of `1 / (1 + error)` of it, one that is too low
    `1 / (1 - error)`; the band has room for that of an error of `ROOM`.
    """
    room = ROOM[calibration]
    if error <= room:
        return band
    return band[0] * (1 + room) / (1 + error), band[1] * (1 - room) / (1 - error)


def _weight_bytes(model: FlatModel) -> int:
    """Returns the bytes that every inference reads from flash: weights, plain or encoded."""
    encoded = {
        index: model.tensors[index]
        for operator in model.operators
        if operator.name == DECODE
        for index in operator.inputs[::2]
    }
    plain = {tensor.index: tensor for tensor in model.weight_tensors()}
    return sum(tensor.bytes for tensor in (plain | encoded).values())


def predict(
    model: FlatModel, profile: TargetProfile, kernels: str | None = None
) -> LatencyEstimate:
    """Predicts the time of one inference on a microcontroller.

    If the time cannot be predicted (an operator without a formula, a core without published
    results, no clock, external RAM), `reason` says so and at most a lower bound is given.

    Args:
        model: The file.
        profile: The target; a board or a bare core.
        kernels: `cmsis-nn` or `reference`. Defaults to the profile's.

    Raises:
        ArgumentError: the target is not a microcontroller, or its calibration contradicts itself.
        UnknownNameError: `kernels` is not a kernel set.

    Example:
        >>> estimate = predict(read_tflite("kws.tflite"), load_target("nucleo-l4r5zi"))
        ... # doctest: +SKIP
        >>> estimate.low, estimate.microseconds, estimate.high  # doctest: +SKIP
        (75.1e3, 100.1e3, 125.2e3)
    """
    if profile.core is None or profile.kernels is None:
        raise ArgumentError("target", "be a microcontroller to be predicted", profile.name)
    if kernels is not None:
        check_choice("--kernels", kernels, TFLM_KERNELS)
    kernels = kernels or profile.kernels
    costs = operator_costs(model, profile.core, kernels)
    known = sum(cost.instructions for cost in costs if cost.instructions is not None)
    instructions = known + PER_INFERENCE + PER_OPERATOR * len(costs)
    weight_bytes = _weight_bytes(model)
    error = instruction_error(costs)

    factor, band, calibration, reason = _factor(profile, kernels)
    cycles = None
    if factor is None:
        fewest = _FEWEST_CYCLES.get(profile.core, _FEWEST_CYCLES_SINGLE_ISSUE)
        least_cycles = fewest * instructions
    else:
        if band is not None and calibration is not None:
            band = _widened(band, calibration, error)
        cycles = factor * instructions + CYCLES_PER_WEIGHT_BYTE * weight_bytes
        least_cycles = cycles * (band[0] if band else 1.0)
    missing = [cost for cost in costs if cost.instructions is None]
    if missing:
        names = ", ".join(f"operator {cost.index} ({cost.reason})" for cost in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        reason = f"No instruction count for {names}{more}."
        cycles = None
    if profile.external_ram:
        reason = f"{profile.name} keeps the arena in external RAM, whose speed is not modelled."
        cycles = None
    clock = profile.clock_mhz
    if clock is None:
        reason = reason or (
            f"{profile.name} is a bare core without a clock. Name a board, or write a profile with "
            "clock_mhz."
        )
    typical = high = None
    if cycles is not None and clock is not None and band is not None:
        typical, high = cycles / clock, cycles / clock * band[1]
    return LatencyEstimate(
        operators=costs,
        kernels=kernels,
        instructions=instructions,
        weight_bytes=weight_bytes,
        instruction_error=error,
        calibration=calibration,
        cycles_per_instruction=factor,
        band=band,
        cycles=cycles,
        microseconds=typical,
        low=least_cycles / clock if clock else None,
        high=high,
        reason=reason if typical is None else None,
    )


def _factor(
    profile: TargetProfile, kernels: str
) -> tuple[float | None, tuple[float, float] | None, str | None, str | None]:
    """Returns cycles per instruction, the band and its class, or why there is none."""
    if profile.calibration is not None and profile.clock_mhz and kernels == profile.kernels:
        return (
            cycles_per_instruction(profile.calibration, profile.clock_mhz),
            BANDS["A"],
            "A",
            None,
        )
    if kernels == "reference":
        return None, None, None, (
            "No published result gives the cycles of the reference kernels on this core. Measure "
            "one model and add a [calibration] table to a profile with kernels = \"reference\"."
        )  # fmt: skip
    cycles = profile.cycles
    if cycles is None:
        return None, None, None, (
            f"No published result of an open runtime gives the cycles of {profile.core}. Measure "
            "one model on the board and add a [calibration] table (instructions, weight_bytes, "
            "milliseconds) to its profile."
        )  # fmt: skip
    calibration = cycles.calibration
    return cycles.cycles_per_instruction, BANDS[calibration], calibration, None
