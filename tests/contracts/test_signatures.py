"""The public functions take what the commands take: names, defaults and types of one declaration.

The signatures are spelled out, so that type checkers and editors see them; that they say the same
as the dataclasses of options is what is tested here.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import click
import pydantic
import pytest

import edgecompress as ec
from edgecompress.cli.app import app
from edgecompress.cli.parameters import Command
from edgecompress.core.options import (
    ByNameText,
    Choice,
    Flag,
    Kind,
    Many,
    Number,
    Option,
    Size,
    Text,
    Time,
    option,
    options_of,
    whole,
)
from edgecompress.core.options import Path as PathKind
from edgecompress.core.user_functions import PathOrFunction
from edgecompress.targets.operator_limits import OperatorLimit
from edgecompress.targets.profile import TargetProfile
from edgecompress.targets.rules.energy import Energy, Power

# Public function -> its command, and what only Python has.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "export": (
        ec.export,
        {"model", "name", "baseline", "history", "progress", "verbose", "argv", "options"},
    ),
    "check": (ec.check, {"model", "progress", "argv", "options"}),
    "bench": (ec.bench, {"bundle", "poll_s", "cooldown_s", "progress", "options"}),
    "compress": (
        ec.compress,
        {"model", "progress", "on_epoch", "verbose", "argv", "settings"},
    ),
    "compare": (ec.compare, {"plan", "progress", "on_row", "verbose", "argv"}),
    "search": (
        ec.search,
        {"model", "callbacks", "progress", "on_progress", "verbose", "argv", "options"},
    ),
    "android build": (ec.build_app, {"bundle", "progress"}),
    "android install": (ec.install_app, {"file", "progress"}),
}


def _options(command: str) -> list[Option]:
    """Returns a command's own options; those of formats, recipes and runners are theirs."""
    found: click.Command = app
    for name in command.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), name)
        assert inner is not None
        found = inner
    assert isinstance(found, Command)
    return [
        o.owned
        for heading, group in found.grouped
        if not heading.startswith("With ")
        for o in group
        if not o.hidden
    ]


def _samples(kind: Kind) -> list[Any]:
    """Returns values of an option as Python gives them."""
    if isinstance(kind, Many):
        return [tuple(_samples(kind.inner)), _samples(kind.inner)]
    if isinstance(kind, ByNameText):
        return [["r2=0.9"], {"r2": 0.9}]
    if isinstance(kind, Number):
        return [3] if kind.whole else [0.5]
    samples: dict[type, list[Any]] = {
        Size: ["96KiB", 98304],
        Time: ["60ms", 60000.0],
        Energy: ["5mJ", 5000.0],
        Power: ["41mW", 41.0],
        Flag: [True],
        PathKind: [Path("a/b"), "a/b"],
        PathOrFunction: [Path("a/b"), "a/b", "module:function"],
        Text: ["text"],
        Choice: ["text"],
        OperatorLimit: ["esphome", Path("a/b.toml")],
    }
    return samples[type(kind)]


def _problems(function: Callable[..., Any], options: list[Option], python: set[str]) -> list[str]:
    """Returns how a function's signature and docstring differ from the options of its command."""
    hints = typing.get_type_hints(function, {**vars(inspect.getmodule(function)),
                                             "TargetProfile": TargetProfile})  # fmt: skip
    parameters = dict(inspect.signature(function).parameters)
    told = (inspect.getdoc(function) or "").split("Args:\n")[-1].split("\n\n")[0]
    described = set(re.findall(r"^    (\w+): ", told, re.MULTILINE))
    known = {o.name: o for o in options}
    found = [f"{name}: no command has it" for name in set(parameters) - set(known) - python]
    found += [f"{name}: not in the docstring" for name in set(parameters) - described]
    found += [f"{name}: not in the signature" for name in described - set(parameters)]
    for name, of_command in known.items():
        if name not in parameters:
            found.append(f"{name}: not in the signature")
            continue
        default = parameters[name].default
        if default is inspect.Parameter.empty:
            if of_command.default not in (None, ()):
                found.append(f"{name}: no default")
        elif default != of_command.default or type(default) is not type(of_command.default):
            found.append(f"{name}: default {default!r}, not {of_command.default!r}")
        accepts = pydantic.TypeAdapter(
            hints[name], config=pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True)
        )
        for value in _samples(of_command.kind):
            try:
                accepts.validate_python(value)
            except pydantic.ValidationError:
                found.append(f"{name}: {hints[name]} does not take {value!r}")
    return found


@pytest.mark.parametrize("command", _FUNCTIONS)
def test_the_signature_is_what_the_command_takes(command: str) -> None:
    function, python = _FUNCTIONS[command]
    options = _options(command)
    assert options
    assert _problems(function, options, python) == []


def test_every_command_with_a_public_function_is_compared() -> None:
    commands = set(app.list_commands(click.Context(app))) - {"android"}
    # These two print, and have no function of their own.
    assert commands - set(_FUNCTIONS) == {"inspect", "targets"}


@pytest.mark.parametrize("command", _FUNCTIONS)
def test_a_default_has_one_home(command: str) -> None:
    """Nothing but "off" and "not given" is spelled out for what the command takes."""
    head = inspect.getsource(_FUNCTIONS[command][0]).split('"""')[0]
    for known in _options(command):
        for default in re.findall(rf"^    {known.name}: .* = (.*),$", head, re.MULTILINE):
            assert default in ("False", "None", "()") or re.fullmatch(
                rf"\w+Options\.{known.name}", default
            ), f"{known.name} = {default}"


def test_every_kind_of_difference_is_seen() -> None:
    owner = make_dataclass(
        "Owner",
        [
            ("ram", "int | None", option(None, "RAM.", Size())),
            ("runs", int, option(5, "Runs.", whole())),
            ("loud", bool, option(False, "Loud.")),
            ("gone", str, option("a", "Gone.")),
            ("needed", str, option("a", "Needed.")),
        ],
        frozen=True,
    )

    def function(
        needed: str, ram: int | None = None, runs: int = 4, loud: bool = False, extra: int = 1
    ) -> None:
        """Does nothing.

        Args:
            needed: Text.
            ram: RAM.
            runs: Runs.
            absent: Nothing.
            extra: More.
        """

    assert set(_problems(function, list(options_of(owner)), set())) == {
        "extra: no command has it",
        "loud: not in the docstring",
        "absent: not in the signature",
        "gone: not in the signature",
        "needed: no default",
        "runs: default 4, not 5",
        f"ram: {int | None} does not take '96KiB'",
    }
