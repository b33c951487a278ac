"""Rules: what a file is judged by on every target, and the registry they are found in.

To add a rule: one module in `rules/`, its test, and one import line in `rules/__init__.py`. An
external package registers its own from an entry point of the group `edgecompress.plugins`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgecompress.core.options import Option, options_of
from edgecompress.core.registry import Registry
from edgecompress.core.results import CheckResult
from edgecompress.targets.family import FAMILIES, NoOptions, Subject


@dataclass(frozen=True)
class Rule:
    """A rule applied to every target.

    Attributes:
        judge: Returns what the rule finds; its docstring states the rule.
        options: Its own options, a dataclass of `core.options`: flags and keywords of `export` and
            `check`. `Subject.rule` holds them.
    """

    judge: Callable[[Subject], CheckResult]
    options: type = field(default=NoOptions)


RULES: Registry[Rule] = Registry("rule", home="edgecompress.targets.rules")


def rule(
    name: str, options: type = NoOptions
) -> Callable[[Callable[[Subject], CheckResult]], Callable[[Subject], CheckResult]]:
    """Returns a decorator that registers a function as the rule `name`; see `Rule`."""

    def decorate(judge: Callable[[Subject], CheckResult]) -> Callable[[Subject], CheckResult]:
        RULES.register(name)(Rule(judge, options))
        return judge

    return decorate


def option_owners() -> list[type]:
    """Returns the option dataclasses of all target families and rules."""
    owners = [family.options for family in FAMILIES.values()]
    return owners + [found.options for found in RULES.values()]


def target_options() -> dict[str, Option]:
    """Returns the options of all target families and rules, by name."""
    return {option.name: option for owner in option_owners() for option in options_of(owner)}
