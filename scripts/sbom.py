"""Writes the software bill of materials: all that CI installs or fetches, as CycloneDX JSON.

    make sbom        # build/sbom.cdx.json

The Python packages come from requirements.lock, those of Maven from android_demo/.mvn/checksums:
the two files that installations are compared with, so nothing can be missing here that is used.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
CHECKSUMS = ROOT / "android_demo" / ".mvn" / "checksums" / "checksums.sha256"

_PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def locked(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns the packages of a lock file: name -> (version, SHA-256 of its files).

    Args:
        text: A requirements file with `name==version` and `--hash=sha256:...` on the lines behind.

    Raises:
        ValueError: a package is there twice, or has no hash.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    hashes: list[str] | None = None
    for line in text.splitlines():
        package = _PACKAGE.match(line)
        if package:
            name, version = package.groups()
            if name in found:
                raise ValueError(f"{name} is locked twice.")
            hashes = []
            found[name] = (version, hashes)
        if hashes is not None:
            hashes += _HASH.findall(line)
    bare = [name for name, (_, sums) in found.items() if not sums]
    if bare:
        raise ValueError(f"{', '.join(bare)} has no hash.")
    return {name: (version, tuple(sums)) for name, (version, sums) in found.items()}


def python_components(text: str) -> Iterator[Component]:
    """Yields a component for each package of a lock file."""
    for name, (version, sums) in locked(text).items():
        url = PackageURL("pypi", None, name, version)
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=url,
            bom_ref=str(url),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=item) for item in sums],
        )


def maven_components(text: str) -> Iterator[Component]:
    """Yields a component for each file but the .pom of `SHA-256  group/artifact/version/file`."""
    for line in text.splitlines():
        content, path = line.split(maxsplit=1)
        *group, artifact, version, file = path.split("/")
        stem, _, ending = file.removeprefix(f"{artifact}-{version}").rpartition(".")
        if ending == "pom":
            continue
        kind = {"type": ending, "classifier": stem.removeprefix("-")}
        kind = {key: value for key, value in kind.items() if value and value != "jar"}
        url = PackageURL("maven", ".".join(group), artifact, version, kind)
        yield Component(
            type=ComponentType.LIBRARY,
            group=".".join(group),
            name=artifact,
            version=version,
            purl=url,
            bom_ref=str(url),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content)],
        )


def bill(lock: str, checksums: str) -> str:
    """Returns the bill of materials, CycloneDX 1.6 as JSON."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = Component(
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=project["version"],
        description=project["description"],
        purl=PackageURL("pypi", None, project["name"], project["version"]),
        supplier=OrganizationalEntity(name="edgecompress maintainers"),
    )
    bom = Bom(components=[*python_components(lock), *maven_components(checksums)])
    bom.metadata.component = own
    bom.register_dependency(own, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def main() -> None:
    """Writes the file and says what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "sbom.cdx.json")
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    lock, checksums = LOCK.read_text(), CHECKSUMS.read_text()
    output.write_text(bill(lock, checksums), encoding="utf-8")
    print(
        f"{output}: {len(list(python_components(lock)))} Python packages, "
        f"{len(list(maven_components(checksums)))} files of Maven"
    )


if __name__ == "__main__":
    main()
