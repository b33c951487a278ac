"""Options that live with their owner: one dataclass field is a flag, a keyword and a key.

A format, recipe, runner or target family declares its options as a dataclass whose fields are made
by `option`. The command line, the Python keywords, the TOML keys and the `--help` pages are
generated from that class; no other file knows its options.

    @dataclass(frozen=True)
    class Compressed:
        coding: tuple[str, ...] | None = option(None, "A code.", many(Choice(names=CODINGS)))
        decompression_memory: int | None = option(None, "Memory for decoded weights.", Size())
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.units import parse_size, parse_time

T = TypeVar("T")

_KEY = "option"
# The key of the value for all names without their own.
ALL_OTHERS = "*"


@dataclass(frozen=True)
class Kind:
    """How the value of an option is written; subclasses are the kinds.

    Attributes:
        metavar: What `--help` shows for the value.
        rule: What a value from Python or TOML must be, as worded in an error.
    """

    metavar: str = "TEXT"
    rule: str = "be text in quotation marks"

    # Whether the option may be given several times, is a switch, or is a path that in a TOML file
    # counts from the file's folder.
    multiple = False
    flag = False
    path = False

    @property
    def known(self) -> tuple[str, ...]:
        """The names that it takes, where there is a list of them."""
        return ()

    def parse(self, value: Any, argument: str) -> Any:
        """Returns the value of an option in the owner's form.

        Args:
            value: A flag's text, or a value from Python or TOML.
            argument: The user's name for it, for the error.

        Raises:
            ArgumentError: the value breaks the rule.
        """
        if not isinstance(value, str):
            raise ArgumentError(argument, self.rule, value)
        return value

    def from_toml(self, value: Any, argument: str) -> Any:
        """Returns the value of a TOML key in the command line's form.

        Args:
            value: What the file holds: text, number, true or false, list, table.
            argument: The user's name for it, for the error.

        Raises:
            ArgumentError: the value is of another type, such as a number in quotation marks. Other
                problems surface when it is parsed.
        """
        if not isinstance(value, str):
            raise ArgumentError(argument, "be text in quotation marks", value)
        return value


@dataclass(frozen=True)
class Text(Kind):
    """Any text."""


@dataclass(frozen=True)
class Flag(Kind):
    """A switch."""

    metavar: str = ""
    rule: str = "be true or false"
    flag = True

    def parse(self, value: Any, argument: str) -> bool:
        """Returns true or false; see `Kind.parse`."""
        if not isinstance(value, bool):
            raise ArgumentError(argument, self.rule, value)
        return value

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`."""
        return self.parse(value, argument)


@dataclass(frozen=True)
class Number(Kind):
    """A number, optionally within bounds.

    Attributes:
        low: Smallest value.
        high: Largest value.
        whole: Whether it has to be a whole number.
    """

    metavar: str = "NUMBER"
    rule: str = "be a number"
    low: float | None = None
    high: float | None = None
    whole: bool = False

    def parse(self, value: Any, argument: str) -> float:
        """Returns the number; see `Kind.parse`."""
        number = self._read(value, argument)
        below = self.low is not None and number < self.low
        above = self.high is not None and number > self.high
        if below or above or number != number:
            raise ArgumentError(argument, self.rule, value)
        return number

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`; a number is written without quotation marks."""
        kind = "a whole number" if self.whole else "a number"
        if (self.low, self.high) == (0, 1):
            kind = "a number between 0 and 1"
        if not _is_number(value) or (self.whole and not isinstance(value, int)):
            raise ArgumentError(argument, f"be {kind}, without quotation marks", value)
        return value

    def _read(self, value: Any, argument: str) -> float:
        if isinstance(value, str):
            try:
                return int(value) if self.whole else float(value)
            except ValueError:
                raise ArgumentError(argument, self.rule, value) from None
        known = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, known):
            raise ArgumentError(argument, self.rule, value)
        return value


def whole(low: int | None = None, high: int | None = None, metavar: str = "N") -> Number:
    """Returns the kind of whole numbers within bounds."""
    return Number(metavar, "be a whole number" + _bounds(low, high), low, high, whole=True)


def share() -> Number:
    """Returns the kind of numbers from 0 to 1."""
    return Number("SHARE", "be a share between 0 and 1", 0.0, 1.0)


def _bounds(low: int | None, high: int | None) -> str:
    if low is None:
        return "" if high is None else f", {high} or less"
    return f", {low} or more" if high is None else f", {low} to {high}"


@dataclass(frozen=True)
class Size(Kind):
    """A size in bytes, written as `96KiB`."""

    metavar: str = "SIZE"
    rule: str = 'be a size such as "96KiB", or bytes'

    def parse(self, value: Any, argument: str) -> int:
        """Returns bytes; see `Kind.parse`."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ArgumentError(argument, self.rule, value)
        return parse_size(value, argument)

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`; the command line reports what is wrong with a text."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ArgumentError(argument, self.rule, value)
        return str(value)


@dataclass(frozen=True)
class Time(Kind):
    """A time, written as `60ms`; a plain number from Python is in microseconds."""

    metavar: str = "TIME"
    rule: str = 'be a time such as "60ms"'

    _parse: ClassVar[Any] = staticmethod(parse_time)

    def parse(self, value: Any, argument: str) -> float:
        """Returns the value in the unit of plain numbers; see `Kind.parse`."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not 0 < value < math.inf:
                raise ArgumentError(argument, "be a positive number", value)
            return float(value)
        return float(self._parse(value, argument))

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`; the unit is part of the text."""
        if not isinstance(value, str):
            raise ArgumentError(argument, "be text in quotation marks", value)
        return value


@dataclass(frozen=True)
class Choice(Kind):
    """One of several names.

    Attributes:
        names: The names, e.g. a registry, or a function that returns them: read when a value is
            parsed. For a mapping, `--help` also shows the `summary` of each value.
    """

    metavar: str = "NAME"
    rule: str = "be a known name"
    names: Iterable[str] | Callable[[], Iterable[str]] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """As `Kind.known`."""
        names = self._names()
        if not isinstance(names, Mapping):
            return tuple(names)
        told = {name: getattr(value, "summary", "").rstrip(".") for name, value in names.items()}
        return tuple(f"{name} ({text})" if text else name for name, text in told.items())

    def _names(self) -> Iterable[str]:
        return self.names() if callable(self.names) else self.names

    def parse(self, value: Any, argument: str) -> str:
        """Returns the name; see `Kind.parse`.

        Raises:
            UnknownNameError: the name is unknown; the error suggests the nearest or all.
        """
        known = tuple(self._names())
        if value not in known:
            raise UnknownNameError(argument, str(value), known)
        return str(value)


@dataclass(frozen=True)
class Path(Kind):
    """The path of a file or folder."""

    metavar: str = "FILE"
    path = True

    def parse(self, value: Any, argument: str) -> Any:
        """Returns the path; arrays, lists and the like, from Python, are returned unchanged."""
        return pathlib.Path(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Many(Kind):
    """An option that may be repeated, or a list; a single value is a list of one.

    Attributes:
        inner: Kind of each value.
    """

    inner: Kind = field(default_factory=Text)
    multiple = True

    @property
    def path(self) -> bool:  # type: ignore[override]
        """As the inner kind."""
        return self.inner.path

    @property
    def known(self) -> tuple[str, ...]:
        """As the inner kind."""
        return self.inner.known

    def parse(self, value: Any, argument: str) -> tuple[Any, ...]:
        """Returns all values; see `Kind.parse`."""
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            value = (value,)
        return tuple(self.inner.parse(item, argument) for item in value)

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`: a value or a list of them."""
        single = isinstance(value, str) or not isinstance(value, Iterable)
        kind = "a whole number" if isinstance(self.inner, Number) else "a name"
        items = [value] if single else value
        rule = f"be {kind} or a list of {'them' if kind != 'a name' else 'names'}"
        if isinstance(items, Mapping):
            raise ArgumentError(argument, rule, value)
        try:
            return [self.inner.from_toml(item, argument) for item in items]
        except ArgumentError:
            raise ArgumentError(argument, rule, value) from None


def many(inner: Kind) -> Many:
    """Returns the kind of options that may be repeated."""
    return Many(inner.metavar, inner.rule, inner)


@dataclass(frozen=True)
class ByName(Kind):
    """A value for all, and values by name: `0.8`, `head=0.5`, or a mapping.

    Attributes:
        inner: Kind of each value.
    """

    inner: Kind = field(default_factory=Number)
    multiple = True

    def parse(self, value: Any, argument: str) -> Any:
        """Returns the value for all, or a mapping name -> value, `"*"` for all others."""
        if isinstance(value, Mapping):
            return {str(k): self.inner.parse(v, f"{argument} {k}") for k, v in value.items()}
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = (value,)
        found: dict[str, Any] = {}
        for item in value:
            name, equals, text = item.rpartition("=") if isinstance(item, str) else ("", "", item)
            key = name if equals else ALL_OTHERS
            try:
                found[key] = self.inner.parse(text, argument)
            except ArgumentError:
                what = self.inner.rule.removeprefix("be ")
                raise ArgumentError(argument, f"be {what}, or NAME= and {what}", item) from None
        return found.get(ALL_OTHERS) if set(found) <= {ALL_OTHERS} else found

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`: a number, a table by name, or both as the flags are written."""
        return _texts_by_name(value, argument, "be a name or a list of names")


@dataclass(frozen=True)
class ByNameText(Kind):
    """Values by name that the owner parses itself: texts `NAME=NUMBER`, a mapping, or a number."""

    multiple = True

    def parse(self, value: Any, argument: str) -> Any:
        """Returns a tuple of texts; a mapping or a number unchanged."""
        if isinstance(value, (Mapping, int, float)):
            return value
        return (value,) if isinstance(value, str) else tuple(value)

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `ByName.from_toml`."""
        return _texts_by_name(value, argument, "be a name or a list of names")


def _texts_by_name(value: Any, argument: str, rule: str) -> list[str]:
    if isinstance(value, Mapping) and all(_is_number(item) for item in value.values()):
        return [f"{key}={item}" for key, item in value.items()]
    if _is_number(value) or isinstance(value, str):
        return [str(value)]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ArgumentError(argument, rule, value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def by_name(inner: Kind, what: str) -> ByName:
    """Returns the kind of a value for all with exceptions by name; `what` is e.g. `LAYER`."""
    return ByName(f"[{what}=]{inner.metavar}", inner.rule, inner)


@dataclass(frozen=True)
class Named(Kind):
    """One of a registry's classes, with its options: `blocks` or `blocks:rows=4,columns=1`.

    Attributes:
        names: Name -> dataclass.
    """

    metavar: str = "NAME[:OPTION=VALUE,...]"
    rule: str = "be a known name"
    names: Mapping[str, type] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """As `Kind.known`."""
        return tuple(self.names)

    def parse(self, value: Any, argument: str) -> Any:
        """Returns an object of the class; an object is returned unchanged."""
        return named(self.names, value, argument)


def named(registry: Mapping[str, type[T]], given: Any, argument: str) -> T:
    """Returns an object of a registered class: given as such, by name, or by name and options.

    Args:
        registry: Name -> dataclass.
        given: A name, `NAME:OPTION=VALUE,...`, a mapping as `named_config` returns it, or an object
            of a registered class.
        argument: The user's name for it.

    Raises:
        UnknownNameError: no class, or no option of the class, has this name.
        ArgumentError: a value breaks its rule.

    Example:
        >>> named(PATTERNS, "blocks:rows=2", "pattern")  # doctest: +SKIP
        Blocks(rows=2, columns=1)
    """
    if isinstance(given, Mapping) and set(given) == {"name", "config"}:
        name, options = given["name"], dict(given["config"])
    elif isinstance(given, str):
        name, _, text = given.partition(":")
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        options = {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}
        owner = registry.get(name)
        switches = [item.name for item in options_of(owner) if item.kind.flag] if owner else []
        words: dict[str, Any] = {"true": True, "false": False}
        options = {k: words.get(v, v) if k in switches else v for k, v in options.items()}
    elif not isinstance(given, type) and type(given) in registry.values():
        return given
    else:
        raise ArgumentError(argument, f"be one of {', '.join(registry)}", given)
    if name not in registry:
        raise UnknownNameError(argument, name, registry)
    return parse_options(registry[name], options, f"{argument} {name}")


def named_config(registry: Mapping[str, type], thing: Any) -> dict[str, Any]:
    """Returns an object of a registered class as JSON values that `named` reads back."""
    for name, owner in registry.items():
        if owner is type(thing):
            config = {item.name: getattr(thing, item.name) for item in options_of(owner)}
            return {"name": name, "config": config}
    raise ArgumentError("object", "be of a registered class", type(thing).__name__)


@dataclass(frozen=True)
class Option:
    """One option: its name, its meaning, and how its value is written.

    Attributes:
        name: The field's name, which is the keyword in Python and the key in TOML.
        help: What it means, in one or two sentences.
        kind: How its value is written.
        default: The value if it is not given.
        flag: Its name on the command line, e.g. `--max-ram`.
        off: The flag that switches it off, for switches that are undecided without one; "" for
            none.
        short: Its short flag, e.g. `-o`; "" for none.
        hidden: Whether `--help` and the docs leave it out.
        unset: What a default of None stands for, e.g. `all`; "" where that needs no word.
    """

    name: str
    help: str
    kind: Kind
    default: Any
    flag: str
    off: str = ""
    short: str = ""
    hidden: bool = False
    unset: str = ""

    @property
    def key(self) -> str:
        """The key in a TOML file: the flag without its hyphens."""
        return self.flag.removeprefix("--")

    @property
    def text(self) -> str:
        """What `--help` and the docs say: its meaning, the names it takes, its default.

        Example:
            >>> options_of(DeepCompression)[0].text  # doctest: +SKIP
            'Share of weights to prune. 0 prunes nothing. May be repeated. Default: 0.8.'
        """
        told = [self.help]
        if self.kind.known:
            told.append(f"Names: {', '.join(self.kind.known)}.")
        if self.kind.multiple:
            told.append("May be repeated.")
        default = self._default_text()
        if default:
            told.append(f"Default: {default}.")
        return " ".join(told)

    def _default_text(self) -> str:
        if any(self.default is nothing for nothing in (None, False, ())):
            return self.unset
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def option(
    default: Any,
    help: str,
    kind: Kind | None = None,
    *,
    flag: str = "",
    off: str = "",
    short: str = "",
    hidden: bool = False,
    unset: str = "",
) -> Any:
    """Returns a dataclass field that is an option.

    Args:
        default: The value if it is not given.
        help: What it means, in one or two sentences. `Option.text` adds which names there are,
            that it may be repeated, and the default.
        kind: How its value is written. Defaults to a switch for a bool, else text.
        flag: The command line's name. Defaults to `--` and the field's name with hyphens.
        off: Flag that switches it off, e.g. `--no-distill`. Defaults to none.
        short: Its short flag, e.g. `-o`. Defaults to none.
        hidden: Whether `--help` and the docs leave it out. Defaults to no.
        unset: What a default of None stands for, for `--help` and the docs, e.g. `all`.
    """
    chosen = kind or (Flag() if isinstance(default, bool) else Text())
    return field(default=default, metadata={_KEY: (help, chosen, flag, off, short, hidden, unset)})


def options_of(owner: type) -> tuple[Option, ...]:
    """Returns the options that a dataclass declares, in the order of its fields."""
    found = []
    for item in dataclasses.fields(owner):
        if _KEY in item.metadata:
            text, kind, flag, *more = item.metadata[_KEY]
            flag = flag or f"--{item.name.replace('_', '-')}"
            found.append(Option(item.name, text, kind, item.default, flag, *more))
    return tuple(found)


def parse_options(
    owner: type[T], given: Mapping[str, Any], what: str, others: Mapping[str, type] | None = None
) -> T:
    """Returns an owner's options, each read by its kind.

    Args:
        owner: The dataclass.
        given: Name -> value as given; None means not given.
        what: The owner in an error, e.g. `--format compressed`.
        others: Name like `what` -> dataclass, for all owners of the same kind: an option of another
            owner is refused, naming that owner. Defaults to none.

    Raises:
        UnknownNameError: no owner has an option of that name.
        ArgumentError: the option is another owner's, or a value breaks its rule.

    Example:
        >>> parse_options(Compressed, {"coding": "lut"}, "--format compressed")  # doctest: +SKIP
        Compressed(coding=('lut',), decompression_memory=None)
    """
    known = {known.name: known for known in options_of(owner)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known:
            _refuse(name, what, known, others or {}, value)
            continue
        values[name] = known[name].kind.parse(value, known[name].flag)
    return owner(**values)


def _refuse(
    name: str, what: str, known: Mapping[str, Option], others: Mapping[str, type], value: Any
) -> None:
    """Refuses an option that the owner does not have, unless it is off anyway."""
    owners = {
        other: found
        for other, owner in others.items()
        for found in options_of(owner)
        if found.name == name
    }
    if not owners:
        raise UnknownNameError(f"option of {what}", name, known)
    if value is False or value == ():
        return
    flag = next(iter(owners.values())).flag
    raise ArgumentError(flag, f"go with {' or '.join(owners)}", what)
