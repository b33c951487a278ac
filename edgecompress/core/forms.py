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

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
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
    """A value of exactly the annotated type: text is no number, true is not 1, and 3 stays 3."""

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
    """

    place: str
    rule: str
    got: Any
    missing: bool = False


def read(kind: type[T], value: Any, wrong: Callable[[Fault], Exception]) -> T:
    """Returns a parsed file as an object of its form.

    Args:
        kind: The dataclass.
        value: What `parse_json` or `read_toml` returned; keys that the form does not have are left
            out.
        wrong: Makes the error from the first fault.
    """
    from pydantic import ValidationError

    try:
        form: Any = kind
        found: T = _adapter(form).validate_python(value)
        return found
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=True)
    raise wrong(_fault(kind, first))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Returns pydantic's reader of a form."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _fault(kind: Any, error: Mapping[str, Any]) -> Fault:
    place, here = "", kind
    for part in error["loc"]:
        here = _inside(here, part)
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    missing = error["type"] == "missing"
    if error["type"] == "rule":
        rule = error["ctx"]["words"]
    else:
        whole = next((m for m in _marks(here) if isinstance(m, Rule) and m.whole), None)
        rule = whole.words if whole else " or ".join(_words(here))
    return Fault(place.removeprefix("."), rule, None if missing else error["input"], missing)


def _inside(kind: Any, part: str | int) -> Any:
    """Returns the annotation of a field or an item."""
    (here,) = (k for k in _plain(kind) if k is not type(None))
    if dataclasses.is_dataclass(here):
        return get_type_hints(here, include_extras=True)[str(part)]
    return get_args(here)[0 if get_origin(here) is tuple else 1]


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
