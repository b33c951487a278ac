"""Lists of operators: what a firmware was built with, where that is less than the runtime has.

The lists in `operator_lists/` come with their source and date. A user's own is a TOML file:

    title = "our firmware"
    operators = ["CONV_2D", "FULLY_CONNECTED", "RESHAPE"]
    custom = ["MyOperator"]
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError, UnreadableFileError, few
from edgecompress.core.forms import CLOSED, Fault, Items, Rule, Text, read
from edgecompress.core.options import Kind, option
from edgecompress.core.reading import read_toml
from edgecompress.core.results import CheckResult
from edgecompress.core.structured import parse_toml
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator

_FOLDER = "operator_lists"
# How many operators a check names; the rest is counted.
_NAMED = 3
_SOME = Rule("a list of at least one name", lambda names: len(names) > 0, whole=True)


@dataclass(frozen=True)
class OperatorList:
    """The operators that a firmware has.

    Args:
        operators: Built-in operators, e.g. `CONV_2D`.
        custom: Names of custom operators.
        title: What has them.
        source: Where the list comes from.
        date: When it was true, e.g. `2026-11-28`.

    Raises:
        UnknownNameError: a built-in operator does not exist.
    """

    operators: Annotated[Items[Text], _SOME]
    custom: Items[Text] = ()
    title: Text = ""
    source: Text = ""
    date: Text = ""

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses names that no file can hold."""
        for name in self.operators:
            if name not in _builtins():
                raise UnknownNameError("operators", name, _builtins())

    def has(self, operator: Operator) -> bool:
        """Returns whether an operator of a file is on the list."""
        if operator.code == "CUSTOM":
            return operator.custom_name in self.custom
        return operator.code in self.operators


@functools.cache
def _builtins() -> tuple[str, ...]:
    from edgecompress.targets.operators import LITERT_BUILTINS, TFLM_BUILTINS

    return tuple(sorted(TFLM_BUILTINS | set(LITERT_BUILTINS)))


def list_names() -> tuple[str, ...]:
    """Returns the names of the built-in lists, sorted."""
    files = (resources.files("edgecompress.targets") / _FOLDER).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_list(name_or_path: str | Path, argument: str = "operators") -> OperatorList:
    """Returns a built-in list by name, or a user's own by the path of its TOML file.

    Args:
        name_or_path: A name from `list_names()`, or a path that ends in `.toml`.
        argument: The user's name for it. Defaults to `operators`.

    Raises:
        UnknownNameError: no list has this name, or a key or an operator in it is unknown.
        ArgumentError: the file cannot be read, is not TOML, or breaks a rule.

    Example:
        >>> load_list("esphome").title
        'ESPHome micro_wake_word'
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml"):
        try:
            tables = read_toml(Path(text))
        except UnreadableFileError as error:
            raise ArgumentError(
                argument, "be a readable TOML file", text, f"It {error.problem}."
            ) from error
        found = read(OperatorList, tables, functools.partial(_wrong, text))
        return replace(found, title=found.title or Path(text).name)
    if text not in list_names():
        raise UnknownNameError(argument, text, [*list_names(), "the path of a .toml file"])
    file = resources.files("edgecompress.targets") / _FOLDER / f"{text}.toml"
    tables = parse_toml(file.read_text(encoding="utf-8"), file.name)
    return read(OperatorList, tables, functools.partial(_wrong, file.name))


def _wrong(origin: str, fault: Fault) -> ArgumentError:
    where = f"{origin}: {fault.place}"
    if isinstance(fault.error, ArgumentError):
        fault.error.args = (f"{origin}: {fault.error}",)
        return fault.error
    if fault.known:
        return UnknownNameError(f"{origin}: key", fault.place, fault.known)
    rule = fault.rule.removesuffix(" or null")
    return ArgumentError(where, "be given" if fault.missing else f"be {rule}", fault.got)


@dataclass(frozen=True)
class OperatorLimit(Kind):
    """A list of operators: a built-in one by name, or a TOML file."""

    metavar: str = "LIST"
    rule: str = "be the name of a list of operators or the path of a .toml file"

    @property
    def known(self) -> tuple[str, ...]:
        """As `Kind.known`."""
        return list_names()

    def parse(self, value: Any, argument: str) -> OperatorList:
        """Returns the list; see `Kind.parse`."""
        if isinstance(value, OperatorList):
            return value
        if not isinstance(value, (str, Path)):
            raise ArgumentError(argument, self.rule, value)
        return load_list(value, argument)


@dataclass(frozen=True)
class OperatorOptions:
    """What a firmware has of its runtime."""

    operators: OperatorList | None = option(
        None,
        "What the firmware has of its runtime's operators: the name of a list, or a .toml file; a "
        "file with any other fails.",
        OperatorLimit(),
    )


def limited(found: CheckResult, model: FlatModel, allowed: OperatorList | None) -> CheckResult:
    """Returns the check of the operators, failed by those that are not on a list.

    Args:
        found: What the target's runtime runs of the file.
        model: The file.
        allowed: The list; None for no limit.
    """
    if allowed is None:
        return found
    missing = [
        (number, operator, graph)
        for number, graph in enumerate((model, *model.others))
        for operator in graph.operators
        if not allowed.has(operator)
    ]
    detail = {
        **found.detail,
        "operator_list": {
            "title": allowed.title,
            "source": allowed.source,
            "date": allowed.date,
            "missing": [
                {"subgraph": n, "index": o.index, "name": o.name, "output": _place(g, o)}
                for n, o, g in missing
            ],
        },
    }
    if not missing:
        return replace(found, detail=detail)
    reason = _reason([(operator, graph) for _, operator, graph in missing], allowed)
    if found.verdict == "fail" and found.reason:
        reason = f"{found.reason} {reason}"
    count = max(len(missing), int(found.measured or 0))
    return replace(
        found,
        verdict="fail",
        measured=count,
        low=count,
        high=count,
        limit=0,
        unit="operators",
        how_known="computed",
        detail=detail,
        reason=reason,
    )


def _place(graph: FlatModel, operator: Operator) -> str:
    return graph.output(operator).name.split(";")[0] if operator.outputs else ""


def _reason(missing: Sequence[tuple[Operator, FlatModel]], allowed: OperatorList) -> str:
    """Names the operators, and the layers to change where tensors are called after them."""
    places = [_place(graph, operator) for operator, graph in missing]
    texts = [
        f"operator {operator.index} {operator.name} ({place!r})"
        for (operator, _), place in zip(missing[:_NAMED], places, strict=False)
    ]
    more = len(missing) - _NAMED
    also = f"; and {more} more" if more > 0 else ""
    # `layer`, or `layer/operator` inside a layer; other tools' names are paths.
    layers = list(dict.fromkeys(p.split("/")[0] for p in places if p and p.count("/") < 2))
    change = f" Change {few(layers)}." if len(layers) else ""
    since = f" ({allowed.date})" if allowed.date else ""
    return f"{allowed.title}{since} lacks {'; '.join(texts)}{also}.{change}"
