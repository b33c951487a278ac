"""The APK of the demo app: what is in it, that its bytes can be reproduced, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[1]
_APP = _ROOT / "android_demo"
_ABIS = ("arm64-v8a", "armeabi-v7a", "x86_64")
_TOOLS = {
    "aapt2": "aapt",
    "zipalign": "zipalign",
    "apksigner": "apksigner",
    "zip": "zip",
    "flock": "util-linux",
    **dict.fromkeys(("java", "javac", "jar", "keytool"), "openjdk-17-jdk-headless"),
}
_MISSING = [tool for tool in _TOOLS if shutil.which(tool) is None]
_needs_tools = pytest.mark.skipif(
    bool(_MISSING), reason=f"Debian packages for {', '.join(_MISSING)} are not installed"
)


def _checkout(folder: Path) -> Path:
    """Copies what a checkout has of the app; the fetched artifacts are shared."""
    names = [
        "LICENSE",
        *(f"android_demo/{name}" for name in ("pom.xml", ".mvn", "scripts", "app/src/main")),
    ]
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (_ROOT / name).is_dir():
            shutil.copytree(_ROOT / name, target)
        else:
            shutil.copy(_ROOT / name, target)
    fetched = _APP / "target" / "artifacts"
    fetched.mkdir(parents=True, exist_ok=True)
    (folder / "android_demo" / "target").mkdir()
    (folder / "android_demo" / "target" / "artifacts").symlink_to(fetched)
    return folder / "android_demo"


def _build(
    app: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if "KEYSTORE" not in key}
    variables["XDG_CONFIG_HOME"] = str(app.parent / "config")
    return subprocess.run(
        ["/bin/bash", app / "scripts" / "build_apk.sh", *arguments],
        cwd=app.parent, env=variables | environment,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def _refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def _end(data: bytes) -> int:
    return data.rindex(b"PK\x05\x06")


def _unsigned(path: Path) -> bytes:
    """Takes the signing block out, as the format of APK Signature Scheme v2 describes it."""
    data = path.read_bytes()
    end = _end(data)
    (directory,) = struct.unpack_from("<I", data, end + 16)
    assert data[directory - 16 : directory] == b"APK Sig Block 42"
    (size,) = struct.unpack_from("<Q", data, directory - 24)
    start = directory - size - 8
    plain = bytearray(data[:start] + data[directory:])
    struct.pack_into("<I", plain, _end(plain) + 16, start)
    return bytes(plain)


def _tool(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkout(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def built(checkout: Path) -> tuple[Path, str]:
    """The APK of the shipped demo, and what the build printed."""
    output = checkout.parent / "out" / "demo.apk"
    done = _build(checkout, "--output", "out/demo.apk")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return output, done.stdout


@pytest.fixture(scope="module")
def apk(built: tuple[Path, str]) -> Path:
    return built[0]


@_needs_tools
def test_what_is_printed_is_so(built: tuple[Path, str]) -> None:
    path, printed = built
    fields = dict(line.split() for line in printed.splitlines()[-3:])
    assert str(path) in printed.splitlines()
    assert int(fields["bytes"]) == path.stat().st_size
    assert fields["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", fields["unsigned"])


@_needs_tools
def test_nothing_is_left_of_the_build(built: tuple[Path, str], checkout: Path) -> None:
    assert [path.name for path in built[0].parent.iterdir()] == [built[0].name]
    assert [path.name for path in (checkout / "target").iterdir()] == ["artifacts"]


@_needs_tools
def test_signature(apk: Path, checkout: Path) -> None:
    said = _tool("apksigner", "verify", "-v", apk)
    assert "(APK Signature Scheme v2): true" in said
    assert "(APK Signature Scheme v3): true" in said
    key = checkout.parent / "config" / "edgecompress" / "debug.keystore"
    assert key.stat().st_mode & 0o777 == 0o600


@_needs_tools
def test_manifest(apk: Path) -> None:
    said = _tool("aapt2", "dump", "badging", apk)
    assert "package: name='io.edgecompress.demo' versionCode='1' versionName='1.0.0'" in said
    assert "sdkVersion:'24'" in said
    assert "targetSdkVersion:'34'" in said
    # Nobody attaches a debugger, and `run-as` does not open the app's files.
    assert "debuggable" not in said
    assert "native-code: 'arm64-v8a' 'armeabi-v7a' 'x86_64'\n" in said
    assert "WAKE_LOCK" in said
    assert "INTERNET" not in said + _tool("aapt2", "dump", "permissions", apk)
    tree = _tool("aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", apk)
    assert re.search(r"extractNativeLibs\(\w+\)=false", tree)
    assert re.search(r"debuggable\(\w+\)=false", tree)


def _exported(tree: str) -> dict[str, str | None]:
    """Returns what other apps may start or read, and the permission that they need for it."""
    found = {}
    for part in re.split(r"\n *E: ", tree):
        if re.search(r"exported\(\w+\)=true", part) and not part.startswith("application"):
            (name,) = re.findall(r'name\(\w+\)="([^"]+)"', part)
            needed = re.findall(r'permission\(\w+\)="([^"]+)"', part)
            found[name] = needed[0] if needed else None
    return found


@_needs_tools
def test_only_adb_starts_runs(apk: Path) -> None:
    tree = _tool("aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", apk)
    assert _exported(tree) == {
        ".MainActivity": None,
        # adb's shell has it; other apps can get it from adb alone.
        ".HeadlessActivity": "android.permission.DUMP",
    }


@_needs_tools
def test_libraries_can_be_mapped(apk: Path) -> None:
    data = apk.read_bytes()
    with zipfile.ZipFile(apk) as archive:
        assert archive.testzip() is None
        libraries = [entry for entry in archive.infolist() if entry.filename.startswith("lib/")]
        resources = archive.getinfo("resources.arsc")
    assert [entry.filename for entry in libraries] == [
        f"lib/{abi}/libtensorflowlite_jni.so" for abi in _ABIS
    ]
    # Android 11 refuses compressed resources.
    for entry, boundary in [(resources, 4), *((library, 4096) for library in libraries)]:
        name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
        start = entry.header_offset + 30 + name + extra
        assert entry.compress_type == zipfile.ZIP_STORED
        assert start % boundary == 0, entry.filename
    # ELF, and the machines AArch64, ARM and x86-64.
    with zipfile.ZipFile(apk) as archive:
        heads = [archive.read(library)[:20] for library in libraries]
    assert all(head.startswith(b"\x7fELF") for head in heads)
    assert [struct.unpack_from("<H", head, 18)[0] for head in heads] == [183, 40, 62]


@_needs_tools
def test_code(apk: Path) -> None:
    with zipfile.ZipFile(apk) as archive:
        dex = archive.read("classes.dex")
        assert [name for name in archive.namelist() if name.endswith(".dex")] == ["classes.dex"]
    # What minSdk 24 reads.
    assert dex[:8] == b"dex\n037\0"
    for name in (b"Lio/edgecompress/demo/MainActivity;", b"Lorg/tensorflow/lite/Interpreter;"):
        assert name in dex
    # Neither tests nor what runs on computers only.
    for name in (b"Lorg/junit", b"Lai/djl", b"CopyBundle", b"Landroidx/test"):
        assert name not in dex


@_needs_tools
def test_the_shipped_bundle_and_notices_are_in_it(apk: Path) -> None:
    assets = _APP / "app" / "src" / "main" / "assets"
    wanted = {
        f"assets/{path.relative_to(assets).as_posix()}": path.read_bytes()
        for path in assets.rglob("*")
        if path.is_file()
    }
    wanted["assets/LICENSE.txt"] = (_ROOT / "LICENSE").read_bytes()
    with zipfile.ZipFile(apk) as archive:
        found = {name for name in archive.namelist() if name.startswith("assets/")}
        assert found == set(wanted)
        assert all(archive.read(name) == content for name, content in wanted.items())


@_needs_tools
def test_bytes_can_be_reproduced(built: tuple[Path, str], tmp_path: Path) -> None:
    app = _checkout(tmp_path / "another folder")
    for path in sorted(app.rglob("*"), reverse=True):
        if path.is_file() and "target" not in path.parts:
            os.utime(path, (1e9, 1e9))
    output = tmp_path / "again.apk"
    done = _build(app, "--output", output, TZ="Asia/Tokyo", LC_ALL="C", LANG="de_DE.UTF-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == built[1].splitlines()[-1]
    assert _unsigned(output) == _unsigned(built[0])
    # Each made its own key.
    assert output.read_bytes() != built[0].read_bytes()


def _export(folder: Path, rename: dict[str, str]) -> Path:
    """Copies the shipped bundle under other names of files, with a file that it does not name."""
    source = _APP / "app" / "src" / "main" / "assets" / "demo"
    text = (source / "bundle.json").read_text()
    for old, new in rename.items():
        text = text.replace(f'"{old}"', json.dumps(new))
    for path in source.rglob("*"):
        if path.is_file() and path.name != "bundle.json":
            name = path.relative_to(source).as_posix()
            target = folder / rename.get(name, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (folder / "bundle.json").write_text(text)
    (folder / "report.html").write_text("not named by bundle.json")
    return folder


@_needs_tools
def test_another_bundle(checkout: Path, tmp_path: Path) -> None:
    rename = {
        "digits_int8.tflite": "my digits é 模型.tflite",
        "golden/int8_input_0.bin": "golden/in put's $HOME.bin",
    }
    folder = _export(tmp_path / "an export é", rename)
    output = tmp_path / "with its own bundle.apk"
    done = _build(checkout, "--bundle", folder, "--output", output, "--debuggable")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "application-debuggable" in _tool("aapt2", "dump", "badging", output)
    wanted = {
        f"assets/demo/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "report.html"
    }
    with zipfile.ZipFile(output) as archive:
        # Android reads names as UTF-8 without the flag that Python asks for.
        names = {
            entry.filename if entry.flag_bits & 0x800 else entry.filename.encode("cp437").decode()
            for entry in archive.infolist()
        }
        found = {
            entry.filename.encode("cp437").decode(): archive.read(entry)
            for entry in archive.infolist()
            if entry.filename.startswith("assets/demo/")
        }
    assert found == wanted
    assert "assets/NOTICE.txt" in names
    _tool("zipalign", "-c", "-p", "4", output)


@_needs_tools
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle.json"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "digits_int8.tflite").unlink(), "digits_int8.tflite"),
        (lambda folder: (folder / "digits_int8.tflite").write_bytes(b"x"), "another file"),
    ],
)
def test_damaged_bundles_are_refused(checkout: Path, tmp_path: Path, damage, word: str) -> None:
    folder = _export(tmp_path / "export", {})
    damage(folder)
    output = tmp_path / "no.apk"
    _refused(_build(checkout, "--bundle", folder, "--output", output), "--bundle", word)
    assert not output.exists()


@_needs_tools
def test_a_file_that_an_apk_cannot_hold_is_refused(checkout: Path, tmp_path: Path) -> None:
    folder = _export(tmp_path, {"digits_int8.tflite": ".hidden/int8.tflite"})
    _refused(_build(checkout, "--bundle", folder), "dot", ".hidden/int8.tflite")


@_needs_tools
def test_a_tampered_artifact_is_refused(tmp_path: Path) -> None:
    app = _checkout(tmp_path)
    artifacts = app / "target" / "artifacts"
    shared = artifacts.resolve()
    artifacts.unlink()
    artifacts.mkdir()
    for path in shared.iterdir():
        (artifacts / path.name).symlink_to(path)
    victim = artifacts / "gson-2.10.1.jar"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.unlink()
    victim.write_bytes(content)
    _refused(_build(app, "--output", tmp_path / "no.apk"), "gson-2.10.1.jar")
    assert not (tmp_path / "no.apk").exists()


@_needs_tools
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle"], ["--bundle needs a value"]),
        (["--output", "demo.zip"], [".apk"]),
        (["--fast"], ["--fast", "Usage"]),
        (["--bundle", "nowhere"], ["nowhere", "bundle.json"]),
    ],
)
def test_bad_arguments(checkout: Path, arguments: list[str], words: list[str]) -> None:
    _refused(_build(checkout, *arguments), *words)


@_needs_tools
@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere.keystore", ["no file", "nowhere.keystore"]), ("LICENSE", ["_PASSWORD"])],
)
def test_keys_that_are_given_must_be_whole(checkout: Path, name: str, words: list[str]) -> None:
    _refused(_build(checkout, EDGECOMPRESS_KEYSTORE=name), "EDGECOMPRESS_KEYSTORE", *words)


def test_missing_tools_are_named_at_once(tmp_path: Path) -> None:
    app = _checkout(tmp_path / "checkout")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "sed", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or name)
    (tools / "zip").symlink_to("/bin/true")
    done = _build(app, PATH=str(tools))
    _refused(done, *(f"{tool} (Debian package {_TOOLS[tool]})" for tool in _TOOLS if tool != "zip"))
    assert (
        "apt-get install aapt zipalign apksigner util-linux openjdk-17-jdk-headless\n"
        in done.stderr
    )
    assert "zip (" not in done.stderr


def test_gradle_and_script_agree() -> None:
    script = (_APP / "scripts" / "tools.sh").read_text()
    gradle = (_APP / "app" / "build.gradle").read_text()
    for ours, theirs in [
        ("PACKAGE", "applicationId"),
        ("VERSION_NAME", "versionName"),
        ("VERSION_CODE", "versionCode"),
        ("MIN_SDK", "minSdk"),
        ("TARGET_SDK", "targetSdk"),
    ]:
        value = re.search(rf"^{ours}=(.+)$", script, re.MULTILINE)
        other = re.search(rf"^\s*{theirs} '?([^'\n]+)'?$", gradle, re.MULTILINE)
        assert value is not None
        assert other is not None
        assert value[1] == other[1]
