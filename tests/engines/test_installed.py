"""Engines may be missing only where they have no wheels: otherwise their tests skip unnoticed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgecompress.engines.registry import ENGINES
from edgecompress.engines.run import engine_available

_PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
_REQUIRED = {
    requirement.name: requirement
    for text in (
        *_PROJECT["project"]["dependencies"],
        *_PROJECT["project"]["optional-dependencies"]["binary"],
    )
    if (requirement := Requirement(text))
}


def _has_wheels(package: str) -> bool:
    marker = _REQUIRED[package].marker
    return marker is None or marker.evaluate()


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_engine_with_wheels_for_this_python_is_installed(name: str) -> None:
    package = ENGINES[name].package
    assert package in _REQUIRED, "no requirement brings it"
    if _has_wheels(package):
        assert engine_available(name) is None


def test_at_least_one_engine_runs_everywhere() -> None:
    assert [name for name in ENGINES if _has_wheels(ENGINES[name].package)]
