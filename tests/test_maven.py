"""What the demo app is built and tested with is compared with its checksums before it is used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_APP = Path(__file__).resolve().parents[1] / "android_demo"
_LIST = _APP / ".mvn" / "checksums" / "checksums.sha256"
_PLUGIN = "org/codehaus/mojo/exec-maven-plugin/3.1.0/exec-maven-plugin-3.1.0.jar"


def _checksums() -> dict[str, str]:
    lines = [line.split() for line in _LIST.read_text().splitlines()]
    return {path: digest for digest, path in lines}


def test_all_plugins_and_dependencies_have_a_checksum() -> None:
    listed = _checksums()
    pom = (_APP / "pom.xml").read_text()
    properties = dict(re.findall(r"<([\w.]+version)>([^<$]+)</", pom))
    wanted = re.findall(
        r"<groupId>([\w.-]+)</groupId>\s*<artifactId>([\w.-]+)</artifactId>\s*"
        r"<version>([^<]+)</version>",
        pom,
    )
    assert len(wanted) > 20
    for group, name, version in wanted:
        if name == "android-demo":
            continue
        version = re.sub(r"\$\{([^}]+)\}", lambda match: properties[match[1]], version)
        files = [p for p in listed if p.startswith(f"{group.replace('.', '/')}/{name}/{version}/")]
        assert {Path(file).suffix for file in files} & {".jar", ".aar"}, (group, name, version)
        assert f"{name}-{version}.pom" in {Path(file).name for file in files}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in listed.values())


def test_the_lists_agree() -> None:
    listed = {Path(path).name: digest for path, digest in _checksums().items()}
    lines = (_APP / "scripts" / "artifacts.sha256").read_text().splitlines()
    assert lines
    for line in lines:
        digest, name = line.split()
        assert listed[name] == digest


def _copy(folder: Path) -> Path:
    app = folder / "android_demo"
    for name in (".mvn", "scripts", "app/src/main"):
        shutil.copytree(_APP / name, app / name)
    shutil.copy(_APP / "pom.xml", app)
    return app


def _maven(app: Path, *goals: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", app / "scripts" / "maven.sh", "-q", *goals],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecompress"


_needs_maven = pytest.mark.skipif(
    shutil.which("java") is None
    or not (Path.home() / ".m2" / "repository" / _PLUGIN).is_file()
    or not (any(_cache().glob("apache-maven-*/bin/mvn")) or shutil.which("mvn")),
    reason="there is no JDK, or the app's tests have not fetched their plugins: make android-test",
)


@_needs_maven
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: "0" * 64 + line[64:], "trusted checksum mismatch"),
        (lambda line: "", "Missing from summaryFile trusted checksum"),
    ],
)
def test_a_plugin_that_is_another_one_does_not_run(change, words: str, tmp_path: Path) -> None:
    app = _copy(tmp_path)
    path = app / ".mvn" / "checksums" / "checksums.sha256"
    lines = path.read_text().splitlines()
    (index,) = [i for i, line in enumerate(lines) if line.endswith(_PLUGIN)]
    lines[index] = change(lines[index])
    path.write_text("\n".join(filter(None, lines)) + "\n")
    done = _maven(app, "-o", "generate-sources")
    assert done.returncode == 1
    assert words in done.stdout and "exec-maven-plugin" in done.stdout
    # It would have made these.
    assert not (app / "target" / "resources").exists()


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no JDK")
def test_another_maven_than_the_known_one_is_refused(tmp_path: Path) -> None:
    """The fake curl has the right address, but stores something else; so has the fake mvn."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mvn").write_text("#!/bin/sh\nexit 1\n")
    (tools / "curl").write_text(
        '#!/bin/sh\necho "$@" >"$0.log"\nwhile [ "$1" != -o ]; do shift; done\necho other >"$2"\n'
    )
    for tool in ("mvn", "curl"):
        (tools / tool).chmod(0o755)
    cache = tmp_path / "cache"
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = _maven(_copy(tmp_path), "test", PATH=path, XDG_CACHE_HOME=str(cache))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"android_demo: the archive of Maven [\d.]+ .* is another file", line)
    assert (
        "https://repo.maven.apache.org/maven2/org/apache/maven" in (tools / "curl.log").read_text()
    )
    assert not [*(cache / "edgecompress").iterdir()]


def test_the_pinned_maven_is_the_one_of_the_readme() -> None:
    script = (_APP / "scripts" / "maven.sh").read_text()
    (version,) = re.findall(r"^version=(.+)$", script, re.MULTILINE)
    assert f"Maven {version} " in (_APP / "README.md").read_text()
