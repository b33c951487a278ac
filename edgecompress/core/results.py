"""The verdict in frozen types: CheckResult, TargetResult, ModelInfo, ArtifactInfo, Report.

The JSON form of a report is what scripts rely on; docs/report.schema.json describes it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from edgecompress.core import errors
from edgecompress.core.files import jsonable
from edgecompress.core.sensitivity import Sensitivity

REPORT_SCHEMA = "edgecompress.report/1"

Verdict = Literal["pass", "fail", "uncertain", "not_measured", "not_applicable"]
HowKnown = Literal[
    "computed", "measured_device", "measured_host", "emulated", "predicted", "published"
]
Rule = Literal[
    "file_size", "flash", "arena", "latency", "operators", "accuracy", "parity", "energy"
]
# Rules that occur only in measurement files.
BenchRule = Literal["ram", "golden"]
Unit = Literal["bytes", "microseconds", "share", "number", "operators", "microjoules"]
# The unit that occurs only in measurement files.
BenchUnit = Literal["steps"]
# Plugins bring rules of their own.
_RULE_NAME = re.compile("[a-z][a-z0-9_]{0,60}")
_UNITS = (*get_args(Unit), *get_args(BenchUnit))

# The exit code of a failed rule; a rule of a plugin is a budget. Where several fail, the first code
# of this order decides.
_FIRST = (errors.UNSUPPORTED_OPERATOR, errors.OVER_BUDGET, errors.BELOW_ACCURACY)
_EXIT_CODES = {
    "operators": errors.UNSUPPORTED_OPERATOR,
    "accuracy": errors.BELOW_ACCURACY,
    "parity": errors.BELOW_ACCURACY,
    "golden": errors.BELOW_ACCURACY,
}
# Verdicts that leave a limit undecided.
OPEN_VERDICTS: tuple[Verdict, ...] = ("uncertain", "not_measured")
# From worst to best; a group's verdict is its worst member's.
_ORDER: tuple[Verdict, ...] = ("fail", "uncertain", "not_measured", "pass", "not_applicable")


def worst_verdict(verdicts: list[Verdict]) -> Verdict:
    """Returns the worst of `verdicts`: fail, uncertain, not_measured, pass, not_applicable."""
    return min(verdicts, key=_ORDER.index, default="not_applicable")


def judge(low: float, high: float, limit: float | None, at_least: bool = False) -> Verdict:
    """Returns the verdict on a value known to lie in [low, high] against a limit.

    A verdict is given only if the whole band is on one side of the limit; without a limit the rule
    is not applicable.

    Args:
        low: Lower end of the band, in the limit's unit.
        high: Upper end of the band.
        limit: The budget, or None for none.
        at_least: The limit is a floor (accuracy) instead of a ceiling (bytes, time).

    Example:
        >>> judge(90, 110, 100), judge(90, 95, 100), judge(0.9, 0.9, 0.95, at_least=True)
        ('uncertain', 'pass', 'fail')
    """
    if limit is None:
        return "not_applicable"
    if at_least:
        low, high, limit = -high, -low, -limit
    if high <= limit:
        return "pass"
    return "fail" if low > limit else "uncertain"


def accept_undecided(code: int) -> int:
    """Returns an exit code with undecided limits accepted: 0 instead of 6."""
    return errors.OK if code == errors.UNDECIDED else code


@dataclass(frozen=True)
class CheckResult:
    """What one rule found on one target.

    Attributes:
        rule: Which rule, e.g. `arena`.
        verdict: `pass`, `fail`, `uncertain`, `not_measured` or `not_applicable`.
        measured: The value, in `unit`; None if there is none.
        low: Lower end of the band that contains the true value; equal to `measured` if exact.
        high: Upper end of that band.
        limit: The limit, in `unit`: the user's budget, the profile's own, or a floor that always
            applies; None for none.
        unit: `bytes`, `microseconds`, `share` (0 to 1), `number` (as the labels), `operators`,
            `microjoules` or `steps` (of quantized outputs).
        how_known: How the value was obtained; None if there is none.
        detail: What explains the value (peak operator, kernel set, worst layers, ...).
        reason: One sentence unless the verdict is a plain pass.
    """

    rule: str
    verdict: Verdict
    # Integers stay integers when a result is read back from another process.
    measured: int | float | None = None
    low: int | float | None = None
    high: int | float | None = None
    limit: int | float | None = None
    unit: Unit | BenchUnit = "bytes"
    how_known: HowKnown | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def __post_init__(self) -> None:
        """Refuses results that contradict themselves."""
        if not _RULE_NAME.fullmatch(self.rule):
            raise ValueError(f"rule must be a name such as file_size. Got {self.rule!r}.")
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {get_args(Verdict)}. Got {self.verdict!r}.")
        if self.unit not in _UNITS:
            raise ValueError(f"unit must be one of {_UNITS}. Got {self.unit!r}.")
        if self.how_known is not None and self.how_known not in get_args(HowKnown):
            raise ValueError(
                f"how_known must be one of {get_args(HowKnown)}. Got {self.how_known!r}."
            )
        if self.verdict in ("fail", "uncertain", "not_measured") and not self.reason:
            raise ValueError(f"A {self.rule} check with verdict {self.verdict} needs a reason.")
        if self.measured is not None and self.how_known is None:
            raise ValueError(f"A {self.rule} check with a value must say how it is known.")

    @property
    def undecided(self) -> bool:
        """Whether there is a limit, and it is unknown whether it is met."""
        return self.limit is not None and self.verdict in OPEN_VERDICTS

    @property
    def largest(self) -> float | None:
        """What a ceiling is compared with: the upper end of the band; None if it is not known.

        A small arena takes more to allocate than it uses afterwards.
        """
        return None if self.high is None else max(self.high, self.detail.get("smallest") or 0)

    @property
    def is_floor(self) -> bool:
        """Whether the limit is a floor: higher is better."""
        if self.rule == "accuracy":
            return bool(self.detail.get("higher_is_better", True))
        return self.rule == "parity"

    @property
    def title(self) -> str:
        """The check's name in tables, unique per target: the rule.

        An accuracy with another metric, or of one of several outputs, is named as for `--metric`:
        `mae`, `accuracy:label`.
        """
        if self.rule != "accuracy":
            return self.rule
        output = self.detail.get("output")
        name = str(self.detail.get("metric") or self.rule)
        return name if output is None else f"{name}:{output}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CheckResult:
        """Returns the result that `to_dict` described, ignoring fields of later versions."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


def exit_code(checks: Iterable[CheckResult]) -> int:
    """Returns 0 if every limit is kept; else 5 for operators, 3 for a budget, 4 for accuracy, 6.

    6 means that limits could not be decided; failures take precedence.

    Example:
        >>> exit_code([CheckResult("arena", "fail", reason="It takes 2 KiB.")])
        3
    """
    found = tuple(checks)
    failed = {
        _EXIT_CODES.get(check.rule, errors.OVER_BUDGET)
        for check in found
        if check.verdict == "fail"
    }
    code = next((code for code in _FIRST if code in failed), errors.OK)
    undecided = any(check.undecided for check in found)
    return errors.UNDECIDED if code == errors.OK and undecided else code


@dataclass(frozen=True)
class TargetResult:
    """All checks of one target.

    Attributes:
        name: The target's name.
        checks: One result for each rule.
    """

    name: str
    checks: tuple[CheckResult, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the checks."""
        return worst_verdict([check.verdict for check in self.checks])

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "checks": [check.to_dict() for check in self.checks],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TargetResult:
        """Returns the result that `to_dict` described."""
        return cls(data["name"], tuple(CheckResult.from_dict(c) for c in data["checks"]))


@dataclass(frozen=True)
class ModelInfo:
    """The checked file in numbers.

    Attributes:
        path: Its location. sha256: Of its bytes.
        file_bytes: Size in flash.
        compressed_bytes: Size after zlib at level 9 (download).
        macs: Multiply-accumulates of one inference, except binary ones.
        parameters: Number of weights and biases.
        operators: How often each operator occurs.
        binary_macs: Multiply-accumulates of bits: XNOR and popcount.
    """

    path: str
    sha256: str
    file_bytes: int
    compressed_bytes: int
    macs: int
    parameters: int
    operators: Mapping[str, int]
    binary_macs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class ArtifactInfo:
    """An artifact as a report lists it.

    Attributes:
        path: Relative to the output folder.
        kind: The converter's registered name.
        bytes: Size of the file.
        sha256: Of its bytes.
        notes: What the converter did differently from the request.
        compressed_bytes: Download size; None if it was not determined.
        host_latency_us: Microseconds of one inference on the computer of the export; None if it
            was not measured.
    """

    path: str
    kind: str
    bytes: int
    sha256: str
    notes: tuple[str, ...] = ()
    compressed_bytes: int | None = None
    host_latency_us: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class Report:
    """The verdict on one model and its targets; its JSON form is stable.

    Attributes:
        model: The checked file.
        targets: One result for each target.
        argv: The command that produced the report.
        version: Version of edgecompress.
        artifacts: Files that an export wrote; None for a plain check.
        notes: What was skipped or done differently, one sentence each.
        sensitivity: The damage of each layer; None unless requested.
    """

    model: ModelInfo
    targets: tuple[TargetResult, ...]
    argv: tuple[str, ...]
    version: str
    artifacts: tuple[ArtifactInfo, ...] | None = None
    notes: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the targets."""
        return worst_verdict([target.verdict for target in self.targets])

    @property
    def undecided(self) -> tuple[tuple[str, CheckResult], ...]:
        """The undecided limits: (target, check) of each."""
        return tuple((t.name, c) for t in self.targets for c in t.checks if c.undecided)

    @property
    def undecided_limits(self) -> tuple[str, ...]:
        """The undecided limits by name, e.g. `arena on nucleo-l4r5zi`."""
        return tuple(f"{check.rule} on {target}" for target, check in self.undecided)

    @property
    def exit_code(self) -> int:
        """0 if every limit is kept; else 5 for operators, 3 for a budget, 4 for accuracy, 6.

        6 means that limits could not be decided; failures take precedence.
        """
        return exit_code(check for target in self.targets for check in target.checks)

    def exit_code_for(self, allow_undecided: bool) -> int:
        """Returns the exit code; with `allow_undecided`, 0 in place of 6."""
        return accept_undecided(self.exit_code) if allow_undecided else self.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, as docs/report.schema.json describes it."""
        result: dict[str, Any] = {
            "schema": REPORT_SCHEMA,
            "tool": {"name": "edgecompress", "version": self.version, "argv": list(self.argv)},
            "model": self.model.to_dict(),
            "targets": [target.to_dict() for target in self.targets],
            "verdict": self.verdict,
            "undecided": [
                {"target": target, "rule": check.rule} for target, check in self.undecided
            ],
        }
        if self.artifacts is not None:
            result["artifacts"] = [artifact.to_dict() for artifact in self.artifacts]
        if self.notes:
            result["notes"] = list(self.notes)
        if self.sensitivity is not None:
            result["sensitivity"] = self.sensitivity.to_dict()
        return result

    def to_json(self) -> str:
        """Returns the JSON text, indented, ending in a newline."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def tool_version() -> str:
    """Returns the version of edgecompress."""
    from importlib.metadata import version

    return version("edgecompress")
