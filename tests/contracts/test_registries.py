"""What every registry of the package keeps, and that each has tests over all its entries."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import edgecompress
import edgecompress.converters
import edgecompress.targets
from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import options_of
from edgecompress.core.registry import Registry

pytest.importorskip("keras")

_TESTS = Path(__file__).resolve().parents[1]


def _registries() -> dict[str, Registry[Any]]:
    """Returns every registry by the module that makes it and its name there."""
    found: dict[int, tuple[str, Registry[Any]]] = {}
    # In an editable install converters/ and targets/ are not below the package's folder.
    for package in (edgecompress, edgecompress.converters, edgecompress.targets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # It runs as it is imported.
            if not module.name.endswith(".__main__"):
                found |= _registries_of(importlib.import_module(module.name))
    return dict(sorted(found.values()))


def _registries_of(module: Any) -> dict[int, tuple[str, Registry[Any]]]:
    """Returns those that a module makes, by identity; not those that it imports."""
    targets = [
        node.target.id
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    made = {name: getattr(module, name, None) for name in targets}
    return {
        id(value): (f"{module.__name__}.{name}", value)
        for name, value in made.items()
        if isinstance(value, Registry)
    }


REGISTRIES = _registries()
# As imported: examples in docstrings, run as tests, register more.
ENTRIES = {place: dict(registry) for place, registry in REGISTRIES.items()}
every_registry = pytest.mark.parametrize("place", REGISTRIES)


def test_every_axis_that_grows_is_found() -> None:
    names = {place.rpartition(".")[2] for place in REGISTRIES}
    assert names >= {
        "CRITERIA", "PATTERNS", "SCHEDULES", "PRECISIONS", "LOSSES", "REWRITES", "FORMATS",
        "RECIPES", "RUNNERS", "ENGINES", "FAMILIES", "OPERATOR_RULES", "RULES", "LAYER_KINDS",
    }  # fmt: skip


@every_registry
def test_an_unknown_name_lists_the_known_ones(place: str) -> None:
    registry = REGISTRIES[place]
    assert len(registry) > 0
    with pytest.raises(UnknownNameError) as error:
        registry["zzz"]
    said = str(error.value)
    assert "zzz" in said and all(name in said for name in registry)
    assert "zzz" not in registry and registry.get("zzz") is None


@every_registry
def test_a_name_is_taken_once(place: str) -> None:
    registry = REGISTRIES[place]
    before = dict(registry)
    name = next(iter(registry))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(name)(object())
    assert dict(registry) == before


@every_registry
def test_options_of_its_entries_have_defaults_and_help(place: str) -> None:
    """An entry that is a dataclass, or holds one as `options` or `settings`, explains it."""
    for name, entry in ENTRIES[place].items():
        assert name and name == name.strip()
        for owner in (entry, getattr(entry, "options", None), getattr(entry, "settings", None)):
            if not (isinstance(owner, type) and dataclasses.is_dataclass(owner)):
                continue
            assert owner.__dataclass_params__.frozen, owner  # type: ignore[attr-defined]
            assert str(owner.__doc__).splitlines()[0].endswith("."), owner
            for option in options_of(owner):
                assert option.help.endswith("."), (owner, option.name)


# --- each registry has tests over all its entries -------------------------------------------------


def _runs_over(source: str, name: str, registry: object) -> bool:
    """Whether a test module imports a registry and goes through what is in it."""
    if name not in source:
        return False
    tree = ast.parse(source)
    local = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == name
        and getattr(importlib.import_module(str(node.module)), name, None) is registry
    }

    def is_registry(node: ast.expr) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return node.func.attr in ("items", "values") and is_registry(node.func.value)
        return isinstance(node, ast.Name) and node.id in local

    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)) and is_registry(node.iter):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            goes_through = called in ("sorted", "list", "tuple") or called.startswith("pytest.")
            if goes_through and any(map(is_registry, given)):
                return True
    return False


def test_the_search_tells_going_through_from_naming() -> None:
    from edgecompress.criteria import CRITERIA

    head = "from edgecompress.criteria import CRITERIA\n"
    for through in (
        "pytest.mark.parametrize('n', CRITERIA)",
        "x = [n for n, thing in CRITERIA.items()]",
        "NAMES = sorted(CRITERIA)",
    ):
        assert _runs_over(head + through, "CRITERIA", CRITERIA)
        assert not _runs_over(through, "CRITERIA", CRITERIA)
        assert not _runs_over(head + through, "CRITERIA", {**CRITERIA})
    assert not _runs_over(head + "CRITERIA['magnitude']", "CRITERIA", CRITERIA)
    assert not _runs_over(head + "x = sorted(CRITERIA.get('magnitude'))", "CRITERIA", CRITERIA)


@every_registry
def test_its_entries_are_tested_as_they_are_found(place: str) -> None:
    name = place.rpartition(".")[2]
    sources = sorted(_TESTS.rglob("test_*.py"))
    tests = [p.name for p in sources if _runs_over(p.read_text(), name, REGISTRIES[place])]
    assert tests, f"no test goes through all of {place}"
