"""What CI installs is locked with hashes, and stands in the bill of materials."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).resolve().parents[1]
# Where the lock file counts; see the Makefile.
_ENVIRONMENT = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "implementation_name": "cpython",
}


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    """The script that writes the bill of materials."""
    spec = importlib.util.spec_from_file_location("sbom", _ROOT / "scripts" / "sbom.py")
    if spec is None or spec.loader is None:
        raise AssertionError("scripts/sbom.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sbom"] = module
    spec.loader.exec_module(module)
    return module


def _wanted(project: dict[str, Any], extra: str | None = None) -> list[Requirement]:
    """Returns the requirements of a project where the lock file counts, extras resolved."""
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    found = []
    for requirement in map(Requirement, texts):
        if requirement.marker and not requirement.marker.evaluate(_ENVIRONMENT):
            continue
        if requirement.name == project["name"]:
            for name in sorted(requirement.extras):
                found += _wanted(project, name)
        else:
            found.append(requirement)
    return found


def _unmet(lock: dict[str, tuple[str, tuple[str, ...]]], project: dict[str, Any]) -> list[str]:
    wanted = [*_wanted(project), *_wanted(project, "dev")]
    pinned = {canonicalize_name(name): version for name, (version, _) in lock.items()}
    return [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(
            pinned.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]


def test_the_lock_file_meets_every_requirement(sbom: ModuleType) -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    lock = sbom.locked((_ROOT / "requirements.lock").read_text())
    assert _unmet(lock, project) == [], "run `make lock`"
    assert "setuptools" in lock, "the package itself is built without a download"
    newer = {**project, "dependencies": ["numpy>=9", "no-such-package>=1"]}
    assert _unmet(lock, newer) == ["numpy>=9", "no-such-package>=1"]


def test_a_package_without_a_hash_is_no_lock(sbom: ModuleType) -> None:
    one = "typer==0.15 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    assert sbom.locked(one) == {"typer": ("0.15", ("0" * 64,))}
    with pytest.raises(ValueError, match="rich has no hash"):
        sbom.locked(one + "rich==13.0\n    # via typer\n")
    with pytest.raises(ValueError, match="typer is locked twice"):
        sbom.locked(one + one)


def test_the_bill_of_materials_is_valid_and_whole(sbom: ModuleType) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    lock, checksums = sbom.LOCK.read_text(), sbom.CHECKSUMS.read_text()
    text = sbom.bill(lock, checksums)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"version"', '"versoin"')) is not None
    parts = {part["purl"]: part for part in json.loads(text)["components"]}
    packages = sbom.locked(lock)
    assert {f"pkg:pypi/{name}@{version}" for name, (version, _) in packages.items()} <= set(parts)
    files = [line for line in checksums.splitlines() if not line.endswith(".pom")]
    assert len(parts) == len(packages) + len(files)
    engine = parts["pkg:maven/ai.djl.tflite/tflite-engine@0.27.0"]
    assert engine["hashes"][0]["content"] in checksums
