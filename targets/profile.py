"""Target profiles: what a board, core, phone or the host offers, read from TOML files.

One file describes one target. The built-in ones are next to this module; users write their own and
refer to them by path.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError, UnreadableFileError
from edgecompress.core.forms import (
    CLOSED,
    Fault,
    Flag,
    Items,
    Number,
    Rule,
    Size,
    Text,
    Time,
    read,
)
from edgecompress.core.reading import read_toml
from edgecompress.core.structured import parse_toml
from edgecompress.targets.family import FAMILIES, family_of, kinds
from edgecompress.targets.power import BENCHMARKS, PowerModel

# Class of a predicted latency -> the source of its cycles per instruction.
CALIBRATION_CLASSES: Mapping[str, str] = {
    "A": "published results of this board",
    "A-": "published results of this board, instructions counted on a sister core",
    "B": "published results of other boards with this core or its sister",
    "B-": "published results of another board with vector instructions",
    "C": "an estimate: no open runtime has published a result on this core",
}
OWN_MEASUREMENT = "one latency that you measured"


def _told(**schema: Any) -> Rule:
    """Returns what the JSON schema says of a value that its class checks itself."""
    return Rule("", schema=schema)


_POSITIVE = _told(exclusiveMinimum=0)
_SOURCES = Rule("a list of texts", schema={"minItems": 1}, whole=True)


def _check(name: str, value: Any, rule: str, holds: bool, hint: str = "") -> None:
    if not holds:
        raise ArgumentError(name, rule, value, hint)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises UnknownNameError, suggesting the nearest choices, if `value` is not one of them."""
    if value not in choices:
        raise UnknownNameError(name, value, choices)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Budgets:
    """The limits a model must meet; None means no limit.

    Args:
        max_flash: Model file plus runtime code, in bytes.
        max_ram: Tensor arena, in bytes.
        max_latency: One inference, in microseconds; files write a time such as "60ms".
        min_accuracy: Share of correct predictions, 0 to 1.
        max_file_size: The .tflite file alone, in bytes.

    Raises:
        ArgumentError: a limit is not a positive number, or the accuracy is outside 0 to 1.

    Example:
        >>> Budgets(max_ram=98304).over(Budgets(max_ram=655360, max_flash=2097152)).max_flash
        2097152
    """

    max_flash: Size | None = None
    max_ram: Size | None = None
    max_latency: Time | None = None
    min_accuracy: Annotated[Number, _told(minimum=0, maximum=1)] | None = None
    max_file_size: Size | None = None

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses invalid limits."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            if item.name == "min_accuracy":
                rule, holds = "lie between 0 and 1", _is_number(value) and 0 <= value <= 1
            elif item.name == "max_latency":
                rule, holds = "be a positive number", _is_number(value) and value > 0
            else:
                rule = "be a positive whole number of bytes"
                holds = _is_number(value) and value == int(value) and value > 0
            _check(item.name, value, rule, holds)

    def over(self, other: Budgets) -> Budgets:
        """Returns these budgets, completed from `other` where they set no limit."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return dataclasses.replace(other, **{k: v for k, v in pairs if v is not None})


@dataclass(frozen=True)
class PublishedLatency:
    """One published measurement that a profile claims its prediction explains.

    Args:
        round: Round of the benchmark, e.g. `v1.1`.
        benchmark: MLPerf Tiny's model: `ad`, `ic`, `kws` or `vww`.
        milliseconds: The published latency of one inference.
        file: The results file inside the round's repository.
    """

    round: Text
    benchmark: Annotated[Text, _told(enum=list(BENCHMARKS))]
    milliseconds: Annotated[Number, _POSITIVE]
    file: Text

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses a row without a measurement."""
        check_choice("published benchmark", self.benchmark, BENCHMARKS)
        _check(
            "published milliseconds",
            self.milliseconds,
            "be a positive number",
            _is_number(self.milliseconds) and self.milliseconds > 0,
        )


@dataclass(frozen=True)
class LatencyModel:
    """How instructions become time on a target.

    Args:
        calibration: How well the cycles are known: `A` (fitted on published rows of this board),
            `A-`, `B` (same core on another board), `B-` (the same for MVE cores) or `C` (no open
            measurement of the core).
        cycles_per_instruction: Mean cycles of one instruction, without the flash term.
        runtime: The runtime whose rows the number comes from.
        published: The published rows that the profile claims; empty for B and C.
    """

    # Files call it `class`, which Python cannot.
    calibration: Annotated[Text, _told(enum=list(CALIBRATION_CLASSES))] = field(
        metadata={"alias": "class"}
    )
    cycles_per_instruction: Annotated[Number, _told(minimum=0.1, maximum=20)]
    runtime: Text = ""
    published: Items[PublishedLatency] = ()

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses invalid classes and factors."""
        check_choice("latency class", self.calibration, CALIBRATION_CLASSES)
        cpi = self.cycles_per_instruction
        _check(
            "cycles_per_instruction",
            cpi,
            "lie between 0.1 and 20",
            _is_number(cpi) and 0.1 <= cpi <= 20,
        )
        _check(
            "latency class",
            self.calibration,
            "be B, B- or C where no published rows are named",
            bool(self.published) or not self.calibration.startswith("A"),
            "Add `published` rows, or measure one model and add a [calibration] table.",
        )


@dataclass(frozen=True)
class Calibration:
    """One latency that a user measured on the board; it makes the prediction class A.

    Args:
        instructions: `instructions` from the latency check of the measured model.
        weight_bytes: `weight_bytes` from the same check.
        milliseconds: The measured time of one inference.
    """

    instructions: Annotated[Number, _POSITIVE]
    weight_bytes: Annotated[Number, _told(minimum=0)]
    milliseconds: Annotated[Number, _POSITIVE]

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses measurements that cannot be turned into cycles per instruction."""
        for name in ("instructions", "milliseconds"):
            value = getattr(self, name)
            _check(
                f"calibration {name}",
                value,
                "be a positive number",
                _is_number(value) and value > 0,
            )
        weight_bytes = self.weight_bytes
        _check(
            "calibration weight_bytes",
            weight_bytes,
            "be zero or more",
            _is_number(weight_bytes) and weight_bytes >= 0,
        )


@dataclass(frozen=True)
class TargetProfile:
    """What a target offers.

    Args:
        name: Its name, e.g. `nucleo-l4r5zi`.
        title: The maker's name for it.
        kind: `board` (a microcontroller board), `core` (a bare core without its own memory),
            `phone` or `host`.
        engine: The runtime that runs the file: `tflm`, `litert`, or `lce` (Larq Compute Engine).
        sources: Where the numbers come from: URLs or named publications.
        core: The processor core of boards and cores, e.g. `cortex-m4`.
        clock_mhz: Clock of that core, in MHz; None for a bare core.
        kernels: Kernel set that the runtime is built with: `cmsis-nn` or `reference`.
        flash: Flash of the device, in bytes; None if it does not limit a model.
        sram: Largest block of on-chip RAM that can hold one arena, in bytes; None as above.
        external_ram: Whether the arena is in external RAM, whose speed is not modelled.
        soc: Chip of a phone.
        cpu: Cores of a phone in words.
        ram: RAM of a phone, in bytes.
        device: What `adb shell getprop ro.product.device` prints on a phone.
        budgets: Its own limits; flash and SRAM are limits without being listed.
        latency: How instructions become time; None if unknown.
        calibration: One latency measured by the user; None for none.
        power: What it draws while a model runs; None if unknown.
        family: What runs files there: a name of `FAMILIES`. None for the first family that knows
            the kind.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> load_target("nucleo-l4r5zi").core
        'cortex-m4'
    """

    name: Text
    title: Text
    kind: Text
    engine: Text
    sources: Annotated[Items[Text], _SOURCES]
    core: Text | None = None
    clock_mhz: Annotated[Number, _POSITIVE] | None = None
    kernels: Text | None = None
    flash: Size | None = None
    sram: Size | None = None
    external_ram: Flag = False
    soc: Text | None = None
    cpu: Text | None = None
    ram: Size | None = None
    device: Text | None = None
    budgets: Budgets = field(default_factory=Budgets)
    latency: LatencyModel | None = None
    calibration: Calibration | None = None
    power: PowerModel | None = None
    family: Text | None = None

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses profiles that contradict themselves."""
        _check("name", self.name, "be a name without spaces", self.name.split() == [self.name])
        _check("sources", self.sources, "name at least one source", bool(self.sources))
        check_choice("kind", self.kind, kinds())
        engines = dict.fromkeys(e for other in FAMILIES.values() for e in other.engines)
        check_choice("engine", self.engine, engines)
        family = family_of(self)
        rule = f"be a kind of the family {family.name} ({', '.join(family.kinds)})"
        _check("kind", self.kind, rule, self.kind in family.kinds)
        what = family.title if family.has_arena else f"a {self.kind}"
        rule = f"be {' or '.join(family.engines)} for {what}"
        _check("engine", self.engine, rule, self.engine in family.engines)
        family.check_profile(self)
        if self.kind == "board":
            for name in ("clock_mhz", "flash", "sram"):
                value = getattr(self, name)
                _check(name, value, "be given for a board", value is not None)
        clock = self.clock_mhz
        if clock is not None:
            _check(
                "clock_mhz",
                clock,
                "be a positive number of MHz",
                _is_number(clock) and clock > 0,
            )
        if self.calibration is not None:
            _check("clock_mhz", clock, "be given together with a [calibration]", clock is not None)

    @property
    def limits(self) -> Budgets:
        """The target's own limits: its budgets, else its flash and SRAM."""
        return self.budgets.over(Budgets(max_flash=self.flash, max_ram=self.sram))

    @property
    def cycles(self) -> LatencyModel | None:
        """How instructions become time: the own [latency] table, else that of the core's target.

        None if neither states it. The class of a bare core applies to every board with it.
        """
        if self.latency is not None or self.kind != "board" or self.core not in target_names():
            return self.latency
        return load_target(self.core).latency

    def to_dict(self) -> dict[str, Any]:
        """Returns the tables of the profile's file, as `from_dict` reads them."""
        data = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        data["sources"] = list(self.sources)
        data["budgets"] = {k: v for k, v in data["budgets"].items() if v is not None}
        if self.budgets.max_latency is not None:
            data["budgets"]["max_latency"] = f"{self.budgets.max_latency}us"
        if self.latency is not None:
            table = dataclasses.asdict(self.latency)
            data["latency"] = {"class": table.pop("calibration"), **table}
            data["latency"]["published"] = list(table["published"])
        if self.power is not None:
            data["power"] = {"published": list(data["power"]["published"])}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str = "profile") -> TargetProfile:
        """Returns the profile that a TOML file's tables describe.

        Args:
            data: The file's tables.
            origin: The file's name in error messages.

        Raises:
            ArgumentError: a key is unknown or missing, or a value breaks its rule.
        """
        return read(cls, data, functools.partial(_wrong, origin))


def _wrong(origin: str, fault: Fault) -> ArgumentError:
    """Returns the error on a file; its places are `key`, `[table]: key`, `[table] list[0]: key`."""
    if isinstance(fault.error, ArgumentError):
        fault.error.args = (f"{origin}: {_table(fault.place)}{fault.error}",)
        return fault.error
    table, _, key = fault.place.rpartition(".")
    where = f"{origin}: {_table(table)}"
    if fault.known:
        return UnknownNameError(f"{where}key", key, fault.known)
    rule = fault.rule.removesuffix(" or null").replace("an object", "a table of keys and values")
    return ArgumentError(f"{where}{key}", "be given" if fault.missing else f"be {rule}", fault.got)


def _table(place: str) -> str:
    name, _, inner = place.partition(".")
    return f"[{name}] {inner}: ".replace(" :", ":") if name else ""


def target_names() -> tuple[str, ...]:
    """Returns the names of the built-in targets, sorted."""
    files = resources.files("edgecompress.targets").iterdir()
    return tuple(sorted(f.name[: -len(".toml")] for f in files if f.name.endswith(".toml")))


def load_target(name_or_path: str | Path) -> TargetProfile:
    """Returns a built-in target by name, or one of the user's own by the path of its TOML file.

    Args:
        name_or_path: A name from `target_names()`, or a path that ends in `.toml`.

    Raises:
        UnknownNameError: no target has this name.
        ArgumentError: the file cannot be read, is not TOML, or breaks a rule.

    Example:
        >>> load_target("pixel-4").engine
        'litert'
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml"):
        path = Path(name_or_path)
        try:
            return TargetProfile.from_dict(read_toml(path), text)
        except UnreadableFileError as error:
            raise ArgumentError(
                "target", "be a readable TOML file", text, f"It {error.problem}."
            ) from error
    names = target_names()
    if text not in names:
        if any(mark in text for mark in "/\\") or Path(text).exists():
            raise ArgumentError("target", "be a built-in name or a path ending in .toml", text)
        raise UnknownNameError("target", text, names)
    file = resources.files("edgecompress.targets") / f"{text}.toml"
    origin = f"{text}.toml"
    return TargetProfile.from_dict(parse_toml(file.read_text(encoding="utf-8"), origin), origin)
