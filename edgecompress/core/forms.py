"""The form of a file from elsewhere: dataclasses whose annotations say what a value must be.

pydantic checks a parsed file against such a class, and writes the JSON schema of docs/ from it. It
is imported when the first file is read, not with this module. A class of this kind reads:

    @dataclass(frozen=True)
    class Tensor:
        name: Text
        shape: Items[Positive]
        scale: Number | None
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from edgecompress.core.errors import ArgumentError
from edgecompress.core.units import parse_size, parse_time

if TYPE_CHECKING:
    from pydantic import (
        GetCoreSchemaHandler,
        GetJsonSchemaHandler,
        TypeAdapter,
        ValidationInfo,
    )
    from pydantic_core import CoreSchema

T = TypeVar("T")

_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class Exact:
    """A value of exactly the annotated type: text is not a number, true is not 1, and 3 stays 3."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Returns pydantic's form of it."""
        from pydantic_core import core_schema

        strict: Any = {**handler(source), "strict": True}
        return core_schema.no_info_wrap_validator_function(_unchanged, strict)


def _unchanged(value: Any, check: Callable[[Any], Any]) -> Any:
    check(value)
    return value


@dataclass(frozen=True)
class FirstFault:
    """A list that is left at its first wrong item, however many follow."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Returns pydantic's form of it."""
        return {**handler(source), "fail_fast": True}


@dataclass(frozen=True, eq=False)
class Rule:
    """What a value must be beside its type.

    Attributes:
        words: The rule in the words of an error, after "must be".
        holds: Whether a value of the right type keeps it.
        schema: The same in JSON schema, as far as that can say it.
        whole: The words also stand for a value of another type, or with wrong items.
    """

    words: str
    holds: Callable[[Any], bool] = lambda value: True
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    whole: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Returns pydantic's form of it."""
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Returns JSON schema's form of it."""
        return {**handler(core), **self.schema}

    def _checked(self, value: Any, check: Callable[[Any], Any]) -> Any:
        from pydantic import ValidationError
        from pydantic_core import PydanticCustomError

        error = PydanticCustomError("rule", "{words}", {"words": self.words})
        try:
            found = check(value)
        except ValidationError:
            if not self.whole:
                raise
            raise error from None
        if not self.holds(found):
            raise error
        return found


@dataclass(frozen=True, eq=False)
class Parsed:
    """A value that a file writes otherwise than the program: 98304 bytes are `96KiB`.

    Attributes:
        parse: Returns the value; raises ArgumentError.
        schema: JSON schema of how it is written.
    """

    parse: Callable[[Any], Any]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Returns pydantic's form of it."""
        from pydantic_core import core_schema

        return core_schema.with_info_wrap_validator_function(self._parsed, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Returns JSON schema's form of it."""
        return dict(self.schema)

    def _parsed(self, value: Any, check: Callable[[Any], Any], info: ValidationInfo[Any]) -> Any:
        from pydantic_core import PydanticCustomError

        if info.context is not _FILE:
            return check(value)
        try:
            return self.parse(value)
        except ArgumentError as error:
            words = error.rule.removeprefix("be ")
            raise PydanticCustomError("rule", "{words}", {"words": words}) from None


def at_least(least: int) -> Rule:
    """Returns the rule of a smallest number."""
    return Rule(f"at least {least}", lambda value: value >= least, {"minimum": least})


def one_of(*choices: str, words: str = "") -> Rule:
    """Returns the rule of a few values; `words` tell them where "one of a, b" does not."""
    rule = words or f"one of {', '.join(choices)}"
    return Rule(rule, lambda value: value in choices, {"enum": list(choices)})


def this_schema(name: str) -> Rule:
    """Returns the rule of a file's `schema`."""
    words = f"{name}, which this version reads"
    return Rule(words, lambda value: value == name, {"const": name}, whole=True)


def filled(words: str, least: int = 1) -> Rule:
    """Returns the rule of a list's smallest length."""
    return Rule(words, lambda value: len(value) >= least, {"minItems": least})


_HEX = frozenset("0123456789abcdef")


def is_sha256(value: Any) -> bool:
    """Tells whether a value is the text of a SHA-256."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEX


# As `parse_size` and `parse_time` take them; that a size is 1 byte at least only they can say.
_UNIT = r"^\s*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"
Size = Annotated[
    int,
    Parsed(
        parse_size,
        {
            "type": ["integer", "string"],
            "minimum": 1,
            "exclusiveMaximum": 1 << 63,
            "pattern": _UNIT + r"(?:[kKmMgG](?:[iI]?[bB])?|[bB])?\s*$",
        },
    ),
]
Time = Annotated[
    float,
    Parsed(parse_time, {"type": "string", "pattern": _UNIT + r"[uU\u00b5\u03bc\u039cmM]?[sS]\s*$"}),
]
Text = Annotated[str, Exact()]
Flag = Annotated[bool, Exact()]
Whole = Annotated[int, Exact()]
Number = Annotated[float, Exact()]
Object = dict[str, Any]
Items = Annotated[tuple[T, ...], FirstFault()]
Count = Annotated[Whole, at_least(0)]
Positive = Annotated[Whole, at_least(1)]
NotNegative = Annotated[Number, at_least(0)]
AboveZero = Annotated[Number, Rule("above 0", lambda value: value > 0, {"exclusiveMinimum": 0})]
Share = Annotated[
    Number,
    Rule("between 0 and 1", lambda value: 0 <= value <= 1, {"minimum": 0, "maximum": 1}),
]
Sha256 = Annotated[Text, Rule("64 hexadecimal digits", is_sha256, {"pattern": "^[0-9a-f]{64}$"})]


@dataclass(frozen=True)
class Fault:
    """Why a value is not of its form.

    Attributes:
        place: Where it stands in the file, e.g. `models[0].shape`; "" for the whole.
        rule: What must stand there.
        got: What stands there; None where nothing does.
        missing: Whether nothing does.
        known: Where the form does not have the key: those that it has.
        error: What the object's own `__post_init__` raised.
    """

    place: str
    rule: str
    got: Any
    missing: bool = False
    known: tuple[str, ...] = ()
    error: ValueError | None = None


def read(kind: type[T], value: Any, wrong: Callable[[Fault], Exception]) -> T:
    """Returns a parsed file as an object of its form.

    Args:
        kind: The dataclass.
        value: What `parse_json` or `read_toml` returned; keys that the form does not have are left
            out, or refused where the class is `CLOSED`.
        wrong: Makes the error from the first fault.
    """
    from pydantic import ValidationError

    try:
        form: Any = kind
        found: T = _adapter(form).validate_python(value, context=_FILE)
        return found
    except ValidationError as error:
        faults = error.errors(include_url=False)
    # A misspelt key explains why another one is missing.
    raise wrong(_fault(kind, next((f for f in faults if f["type"] == _UNKNOWN), faults[0])))


# Of a class whose files may hold no other keys: `__pydantic_config__ = CLOSED`.
CLOSED: Any = {"extra": "forbid"}
_UNKNOWN = "unexpected_keyword_argument"
# What tells `Parsed` that a value is as a file has it, not as the program has it.
_FILE = {"file": True}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Returns pydantic's reader of a form."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _fault(kind: Any, error: Mapping[str, Any]) -> Fault:
    known: tuple[str, ...] = ()
    place, here = "", kind
    for part in error["loc"]:
        form = _form(here)
        if dataclasses.is_dataclass(form):
            fields = _fields(form)
            here, known = fields.get(part), tuple(fields)
        else:
            here = get_args(form)[0]
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    place, what, got = place.removeprefix("."), error["type"], error["input"]
    if what == _UNKNOWN:
        return Fault(place, "left out", got, known=known)
    if what == "value_error":
        return Fault(place, "", got, error=error["ctx"]["error"])
    if what == "rule":
        return Fault(place, error["ctx"]["words"], got)
    whole = next((m for m in _marks(here) if isinstance(m, Rule) and m.whole), None)
    rule = whole.words if whole else " or ".join(_words(here))
    return Fault(place, rule, None if what == "missing" else got, what == "missing")


def _form(kind: Any) -> Any:
    """Returns the one type of an annotation that is not null."""
    (found,) = (plain for plain in _plain(kind) if plain is not type(None))
    return found


def _fields(form: Any) -> dict[str, Any]:
    """Returns key in the file -> annotation."""
    hints = get_type_hints(form, include_extras=True)
    return {f.metadata.get("alias", f.name): hints[f.name] for f in dataclasses.fields(form)}


def _plain(kind: Any) -> list[Any]:
    """Returns the types of an annotation, without what is said beside them."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _plain(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [plain for part in get_args(kind) for plain in _plain(part)]
    return [kind]


def _marks(kind: Any) -> list[Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        first, *marks = get_args(kind)
        return [*marks, *_marks(first)]
    if origin in (Union, types.UnionType):
        return [mark for part in get_args(kind) for mark in _marks(part)]
    return []


def _words(kind: Any) -> list[str]:
    return [
        "an object" if dataclasses.is_dataclass(plain) else _WORDS[get_origin(plain) or plain]
        for plain in _plain(kind)
    ]
