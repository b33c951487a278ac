"""The examples in docstrings give what they say; those that need files are marked to be skipped."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import types

import pytest

import edgecompress.converters
import edgecompress.targets

_LEFT_OUT = (
    "edgecompress.__main__",
    "edgecompress.demo.__main__",
    "edgecompress.engines.worker",
)
_PACKAGES = (edgecompress, edgecompress.converters, edgecompress.targets)
MODULES = sorted(
    module.name
    for package in _PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.name not in _LEFT_OUT
)


def _run(module: types.ModuleType) -> doctest.TestResults:
    return doctest.testmod(module, optionflags=doctest.ELLIPSIS)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert _run(importlib.import_module(name)).failed == 0


def test_a_wrong_example_is_seen() -> None:
    module = types.ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n"
    assert _run(module).failed == 1


def test_modules_of_the_mapped_folders_are_seen() -> None:
    assert {"edgecompress.targets.tflm.arena", "edgecompress.converters.int8"} <= set(MODULES)
