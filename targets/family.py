"""Target families: what runs a file, and how much memory and time it takes.

To add a family: one module in `families/` with a subclass of `Family` that registers itself, its
test, and one import line in `families/__init__.py`. External packages register theirs the same
way, through the entry point group `edgecompress.plugins`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import options_of, parse_options
from edgecompress.core.registry import Registry
from edgecompress.core.results import CheckResult, HowKnown

if TYPE_CHECKING:
    from edgecompress.flatbuffers.model import FlatModel
    from edgecompress.targets.bench import HostLatency
    from edgecompress.targets.profile import Budgets, TargetProfile
    from edgecompress.targets.tflm.arena import Arena


@dataclass(frozen=True)
class NoOptions:
    """The options of a family, or of a rule, that has none."""


@dataclass(frozen=True)
class Subject:
    """The input of a rule.

    Attributes:
        model: The file.
        profile: The target.
        budgets: The limits: the user's, completed by the target's own.
        family: The target's family.
        settings: The family's own options for this target, an instance of `Family.options`.
        host_latency: What was measured on this machine; None if nothing was.
        decompression_memory: Bytes outside the arena that the firmware has for decoded weights;
            None if it has none.
        ran: Whether the target's engine has run this file on this computer.
        rule: The options of the rule being applied.
    """

    model: FlatModel
    profile: TargetProfile
    budgets: Budgets
    family: Family
    settings: Any = field(default_factory=NoOptions)
    host_latency: HostLatency | None = None
    decompression_memory: int | None = None
    ran: bool = False
    rule: Any = field(default_factory=NoOptions)
    # What was found for one rule and serves another: copies for other rules share it.
    _found: dict[str, CheckResult] = field(default_factory=dict, repr=False, compare=False)

    @property
    def latency(self) -> CheckResult:
        """What the family says of the latency, which several rules ask for."""
        if "latency" not in self._found:
            self._found["latency"] = self.family.latency(self)
        return self._found["latency"]


class Family:
    """A target family: one way to run files, and to know what they cost.

    What a subclass does not override is unknown: such a check is `not_measured`, with the reason.

    Attributes:
        name: Name in the registry, and value of `family` in a target's TOML file.
        title: How messages refer to one of its targets, e.g. `a microcontroller`.
        kinds: The kinds of its targets. A profile without a `family` belongs to the first family
            that knows its kind.
        engines: The engines that its targets may name.
        options: Its own options, a dataclass of `core.options`; flags and keywords of `export`,
            `check` and `compress`.
        has_arena: Whether a model is stored in flash and runs in one tensor arena, so that the
            limits of flash and RAM apply to these.
        c_sources: Whether its firmware takes the C++ sources that `export` writes.
        measured: How the latency that `edgecompress bench` measures on it is known; None if it
            cannot measure.
        unpredicted: Source of a latency that no profile predicts, in a word or two.
        unwanted: Names of rewrites (`converters.portable`) whose operators its kernels run slower
            than the original ones.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ()
    engines: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type] = NoOptions
    has_arena: ClassVar[bool] = False
    c_sources: ClassVar[bool] = False
    measured: ClassVar[HowKnown | None] = None
    unpredicted: ClassVar[str] = "unknown"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def check_profile(self, profile: TargetProfile) -> None:
        """Refuses profiles that such a target cannot have; kind and engine have been checked.

        Raises:
            ArgumentError: a value breaks its rule.
        """

    def settle(self, profile: TargetProfile, given: Mapping[str, Any]) -> Any:
        """Returns the family's options on a target.

        Args:
            profile: The target, whose own values apply unless others are given.
            given: Name -> value, of any family or rule.
        """
        return own_options(self.options, given, f"--target {profile.name}")

    # --- the checks -----------------------------------------------------------------------------

    def operators(self, subject: Subject) -> CheckResult:
        """Returns whether the target runs every operator of the file."""
        from edgecompress.targets.operators import judged

        return judged(subject)

    def flash(self, subject: Subject) -> CheckResult:
        """Returns whether the file and the code that runs it fit into the flash."""
        return _unknown("flash", subject, subject.budgets.max_flash, "bytes")

    def arena(self, subject: Subject) -> CheckResult:
        """Returns whether the memory that the file works in fits into the RAM."""
        return _unknown("arena", subject, subject.budgets.max_ram, "bytes")

    def latency(self, subject: Subject) -> CheckResult:
        """Returns whether one inference takes no longer than its budget."""
        return _unknown("latency", subject, subject.budgets.max_latency, "microseconds")

    # --- what files cost, for formats that choose among candidates, and for figures --------------

    def arena_of(
        self, model: FlatModel, profile: TargetProfile, settings: Any, memory: int | None = None
    ) -> Arena | None:
        """Returns the plan of a file's tensor arena; None for targets without one.

        Args:
            model: The file.
            profile: The target.
            settings: What `settle` returned.
            memory: Bytes outside the arena for decoded weights; None for none.
        """
        return None

    def microseconds_of(
        self, model: FlatModel, profile: TargetProfile, settings: Any
    ) -> float | None:
        """Returns the predicted latency of a file; None if it cannot be predicted."""
        return None

    def width_multiple(self, profile: TargetProfile, settings: Any) -> int:
        """Returns how many channels the kernels compute together.

        Of two widths that are multiples of it, the smaller one is never the slower one.
        """
        return 1

    def operator_times(
        self, model: FlatModel, profile: TargetProfile, settings: Any
    ) -> Sequence[tuple[str, float]]:
        """Returns (operator, predicted microseconds); nothing if there is no prediction."""
        return ()


FAMILIES: Registry[Family] = Registry("family", home="edgecompress.targets.families")


def register(family: type[Family]) -> type[Family]:
    """Registers a subclass of `Family` under its name, as a decorator of the class."""
    FAMILIES.register(family.name)(family())
    return family


def family_of(profile: TargetProfile) -> Family:
    """Returns the family of a target: the one it names, else the first with its kind.

    Raises:
        UnknownNameError: there is no such family, or none with such a kind.
    """
    if profile.family is not None:
        return FAMILIES[profile.family]
    for family in FAMILIES.values():
        if profile.kind in family.kinds:
            return family
    raise UnknownNameError("kind", profile.kind, kinds())


def kinds() -> tuple[str, ...]:
    """Returns the target kinds of all families."""
    return tuple(dict.fromkeys(kind for family in FAMILIES.values() for kind in family.kinds))


def titles(names: Sequence[str]) -> str:
    """Returns families in words: `a phone or this computer (host)`."""
    return " or ".join(FAMILIES[name].title for name in names)


def own_options(owner: type, given: Mapping[str, Any], what: str) -> Any:
    """Returns an owner's options from those of all families and rules.

    Args:
        owner: The dataclass.
        given: Name -> value, of any owner.
        what: The owner in an error.

    Raises:
        ArgumentError: a value breaks its rule.
    """
    names = {option.name for option in options_of(owner)}
    return parse_options(owner, {n: v for n, v in given.items() if n in names}, what)


def _unknown(rule: str, subject: Subject, limit: float | None, unit: Any) -> CheckResult:
    return CheckResult(
        rule,
        "not_measured",
        limit=limit,
        unit=unit,
        reason=f"There is no prediction for {subject.profile.title}: measure it on the device.",
    )
