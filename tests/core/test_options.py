"""Options: one dataclass is flags, keywords, keys and a table."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import pytest

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.options import (
    ByName,
    Choice,
    Flag,
    Kind,
    Named,
    Number,
    Path,
    Size,
    Text,
    Time,
    by_name,
    many,
    named,
    named_config,
    option,
    options_of,
    parse_options,
    share,
    whole,
)


@dataclass(frozen=True)
class Owner:
    memory: int | None = option(None, "Memory.", Size())
    codes: tuple[str, ...] | None = option(
        None, "A code.", many(Choice(names=("lut", "prune"))), flag="--code"
    )
    sparsity: object = option(0.8, "Share.", by_name(share(), "LAYER"))
    strict: bool = option(False, "Be strict.")
    inner: int = 3


@dataclass(frozen=True)
class Other:
    weight: str = option("a", "Weight.")


@pytest.mark.parametrize(
    "kind, given, value",
    [
        (Size(), "96KiB", 98304),
        (Size(), 5, 5),
        (Time(), "60ms", 60000.0),
        (Time(), 12, 12.0),
        (share(), "0.5", 0.5),
        (share(), 1, 1),
        (whole(0), "7", 7),
        (Flag(), True, True),
        (Text(), "a", "a"),
        (Path(), "a/b", pathlib.Path("a/b")),
        (Choice(names=("lut",)), "lut", "lut"),
        (many(whole()), ["1", 2], (1, 2)),
        (many(whole()), 3, (3,)),
        (by_name(share(), "LAYER"), ["0.8", "head=0.5"], {"*": 0.8, "head": 0.5}),
        (by_name(share(), "LAYER"), ["0.8"], 0.8),
        (by_name(share(), "LAYER"), {"head": 0.5}, {"head": 0.5}),
        (by_name(share(), "LAYER"), 0.5, 0.5),
        (ByName(), ["a=b=1"], {"a=b": 1.0}),
    ],
)
def test_values(kind: Kind, given: object, value: object) -> None:
    assert kind.parse(given, "--x") == value


@pytest.mark.parametrize(
    "kind, given, rule",
    [
        (Size(), "many", "positive size"),
        (Size(), True, "be a size"),
        (Time(), "60", "with a unit"),
        (share(), "1.5", "between 0 and 1"),
        (share(), "nan", "between 0 and 1"),
        (share(), True, "between 0 and 1"),
        (whole(1, 4), "5", "a whole number, 1 to 4"),
        (whole(1), 1.5, "a whole number, 1 or more"),
        (Flag(), "yes", "true or false"),
        (Text(), 3, "text"),
        (Choice(names=("lut",)), "lot", "Did you mean lut"),
        (many(whole()), ["a"], "a whole number"),
        (by_name(share(), "LAYER"), ["head=2"], "NAME= and a share between 0 and 1"),
        (Number(), "a", "be a number"),
    ],
)
def test_refused_values(kind: Kind, given: object, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        kind.parse(given, "--x")


def test_options_of_an_owner() -> None:
    found = {item.name: item for item in options_of(Owner)}
    assert list(found) == ["memory", "codes", "sparsity", "strict"]
    assert found["codes"].flag == "--code" and found["memory"].flag == "--memory"
    assert found["sparsity"].kind.metavar == "[LAYER=]SHARE"
    assert found["strict"].kind.flag and not found["memory"].kind.flag


def test_parse_options() -> None:
    given = {"memory": "1KiB", "codes": ["lut"], "strict": True, "sparsity": None}
    assert parse_options(Owner, given, "x") == Owner(1024, ("lut",), 0.8, True)


def test_options_of_others_are_refused_by_the_owners_name() -> None:
    owners = {"--format a": Owner, "--format b": Other}
    with pytest.raises(ArgumentError, match="`--weight` must go with --format b. Got '--format a'"):
        parse_options(Owner, {"weight": "x"}, "--format a", owners)
    with pytest.raises(UnknownNameError, match="option of --format a"):
        parse_options(Owner, {"wait": "x"}, "--format a", owners)
    # A switch that is off asks for nothing.
    assert parse_options(Other, {"strict": False}, "--format b", owners) == Other()


@dataclass(frozen=True)
class Blocks:
    rows: int = option(4, "Rows.", whole(1))
    columns: int = option(1, "Columns.", whole(1))


@pytest.mark.parametrize(
    "given, thing",
    [
        ("blocks", Blocks()),
        ("blocks:rows=2", Blocks(2)),
        ("blocks:rows=2, columns=3", Blocks(2, 3)),
        (Blocks(7), Blocks(7)),
        ({"name": "blocks", "config": {"rows": 5}}, Blocks(5)),
    ],
)
def test_named_objects(given: object, thing: Blocks) -> None:
    registry = {"blocks": Blocks, "other": Other}
    assert Named(names=registry).parse(given, "pattern") == thing
    assert named(registry, named_config(registry, thing), "pattern") == thing


@pytest.mark.parametrize(
    "given, said",
    [
        ("block", "Did you mean blocks"),
        ("blocks:row=2", "option of pattern blocks"),
        ("blocks:rows=0", "`--rows` must be a whole number, 1 or more"),
        (3, "be one of blocks, other. Got 3"),
        (Blocks, "be one of blocks, other"),
    ],
)
def test_refused_named_objects(given: object, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        named({"blocks": Blocks, "other": Other}, given, "pattern")


@dataclass(frozen=True)
class Told:
    plain: int | None = option(None, "Memory.", Size())
    off: bool = option(False, "Be strict.")
    zero: int = option(0, "Seed.", whole())
    small: float = option(1e-3, "Rate.", Number())
    codes: tuple[str, ...] | None = option(
        None, "A code.", many(Choice(names=("lut", "prune"))), unset="all"
    )
    threads: tuple[int, ...] = option((1, 2), "Threads.", many(whole()))


def test_the_text_tells_what_each_name_is() -> None:
    @dataclass(frozen=True)
    class Thing:
        summary: str

    things = {"one": Thing("The first."), "two": Thing("")}
    for names in (things, lambda: things):
        kind = Choice(names=names)
        assert kind.known == ("one (The first)", "two")
        assert kind.parse("two", "--thing") == "two"
        with pytest.raises(UnknownNameError, match="one, two"):
            kind.parse("three", "--thing")


def test_the_text_tells_names_repetition_and_default() -> None:
    assert [item.text for item in options_of(Told)] == [
        "Memory.",
        "Be strict.",
        "Seed. Default: 0.",
        "Rate. Default: 0.001.",
        "A code. Names: lut, prune. May be repeated. Default: all.",
        "Threads. May be repeated. Default: 1, 2.",
    ]
