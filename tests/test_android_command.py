"""`android build` and `android install`: a build script of the test's own, a fake adb."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.core.errors import (
    ArgumentError,
    BuildError,
    DeviceError,
    EdgeCompressError,
    MissingDependencyError,
    ModelFileError,
)
from edgecompress.core.files import sha256
from edgecompress.pipeline import android, build_app, install_app

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = "io.edgecompress.demo"
# An export for a phone that comes along.
_BUNDLE = _ROOT / "android_demo" / "app" / "src" / "main" / "assets" / "demo"
Source = Callable[[str], Path]


def _apk(package: str = _PACKAGE, encoding: str = "utf-16-le", extra: int = 0) -> bytes:
    file = io.BytesIO()
    entries = {
        "AndroidManifest.xml": b"\3\0\10\0" + package.encode(encoding),
        "lib/arm64-v8a/libtensorflowlite_jni.so": b"x" * extra,
        "lib/x86_64/libtensorflowlite_jni.so": b"",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            # Not with the time of day: equal arguments give equal bytes.
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Makes the sources of an app whose build is a text of the shell; $out is its output."""

    def make(script: str) -> Path:
        app = tmp_path / "my app"
        (app / "scripts").mkdir(parents=True, exist_ok=True)
        (app / "good.apk").write_bytes(_apk())
        text = f"while (($#)); do case $1 in --output) out=$2;; esac; shift 2; done\n{script}\n"
        # Without the bit of a program: package data may lose it.
        (app / "scripts" / "build_apk.sh").write_text(text)
        return app

    return make


def _good(tmp_path: Path) -> str:
    return f'cp "{tmp_path}/my app/good.apk" "$out"'


# --- build --------------------------------------------------------------------------------------


def test_an_app_is_built(source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app = source(f"echo Fetching what it is built with; {_good(tmp_path)}; echo $out; echo sum")
    before = sorted(app.rglob("*"))
    file = tmp_path / "out" / "demo.apk"
    file.parent.mkdir()
    assert main(["android", "build", "--source", str(app), "-o", str(file)]) == 0
    out, err = capfd.readouterr()
    content = file.read_bytes()
    assert content == _apk()
    assert out.splitlines()[0] == str(file)
    assert f"SHA-256 {sha256(content)}" in out
    assert "ships the demo's models" in out
    # What the script says is told while it runs.
    assert "Fetching what it is built with" in err
    assert "sum" not in err
    assert "made-" not in err
    # Nothing is left beside the app, or among its sources.
    assert [path.name for path in file.parent.iterdir()] == ["demo.apk"]
    assert sorted(app.rglob("*")) == before


def test_a_bundle_is_handed_on(source: Source, tmp_path: Path) -> None:
    app = source(f"{_good(tmp_path)}")
    script = app / "scripts" / "build_apk.sh"
    script.write_text(f'echo "$@" > "{tmp_path}/arguments"\n{script.read_text()}')
    made = build_app(_BUNDLE, output=tmp_path / "a.apk", source=app)
    words = (tmp_path / "arguments").read_text()
    assert words.startswith(f"--bundle {_BUNDLE} --output ")
    assert made.bundle is not None
    entry = json.loads(made.to_json())
    assert entry == {
        "path": str(tmp_path / "a.apk"), "bytes": len(_apk()), "sha256": sha256(_apk()),
        "bundle": {"name": made.bundle.name, "target": made.bundle.target,
                   "sha256": sha256((_BUNDLE / "bundle.json").read_bytes())},
    }  # fmt: skip


def test_json(source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app = source(_good(tmp_path))
    command = ["android", "build", "--source", str(app), "-o", str(tmp_path / "a.apk"), "--json"]
    assert main([*command, "-q"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert json.loads(out)["bundle"] is None


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo working; echo 'android_demo: aapt2 is missing.' >&2; exit 1",
         "The app cannot be built: working; android_demo: aapt2 is missing."),
        ("exit 3", "The app cannot be built: It ended with status 3 and no output."),
        ("kill -9 $$", "The app cannot be built: It ended with status -9"),
        ("echo done", "The build wrote no APK. done"),
        ("echo text > \"$out\"", "What the build wrote is not an APK, or is cut off"),
        ("head -c 150 TMP/good.apk > \"$out\"", "What the build wrote is not an APK, or is cut"),
    ],
)  # fmt: skip
def test_a_build_that_fails_is_one_line_and_writes_nothing(
    script: str, text: str, source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.apk"
    file.write_bytes(b"old")
    (tmp_path / "good.apk").write_bytes(_apk())
    app = source(script.replace("TMP", str(tmp_path)))
    command = ["android", "build", "--source", str(app), "-o", str(file), "-q"]
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert text in err
    assert file.read_bytes() == b"old"
    assert not list((tmp_path / "cache").rglob("*.apk"))


def test_wrong_arguments(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = source(_good(tmp_path))
    for output in (tmp_path / "a.zip", tmp_path / "nowhere" / "a.apk"):
        with pytest.raises(ArgumentError, match=r"`--output` must be a \.apk in a folder"):
            build_app(output=output, source=app)
    with pytest.raises(ArgumentError, match="`--source` must be a folder with scripts/build_apk"):
        build_app(output=tmp_path / "a.apk", source=tmp_path)
    with pytest.raises(ModelFileError, match="Give the folder of an export"):
        build_app(tmp_path, output=tmp_path / "a.apk", source=app)
    # A damaged bundle is refused before anything is built.
    shutil.copytree(_BUNDLE, tmp_path / "damaged")
    next((tmp_path / "damaged").glob("*.tflite")).write_bytes(b"x")
    with pytest.raises(ModelFileError, match="Export again"):
        build_app(tmp_path / "damaged", output=tmp_path / "a.apk", source=app)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ArgumentError, match="XDG_CACHE_HOME. must lead to a folder"):
        build_app(output=tmp_path / "a.apk", source=app)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="bash is not installed"):
        build_app(output=tmp_path / "a.apk", source=app)
    assert not (tmp_path / "a.apk").exists()


def test_a_build_is_stopped_after_its_time(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android, "_LONGEST_S", 0.3)
    begin = time.monotonic()
    app = source(f"sleep 300 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(BuildError, match=r"did not end within 0.3 s"):
        build_app(output=tmp_path / "a.apk", source=app)
    assert time.monotonic() - begin < 60
    _gone(int((tmp_path / "pid").read_text()))


def _gone(process: int) -> None:
    """Waits until a process is gone, or only waits for its parent to notice."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    raise AssertionError(f"the process {process} goes on")


def test_ctrl_c_ends_the_build_too(source: Source, tmp_path: Path) -> None:
    app = source(f"sleep 300 & echo $! > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; wait")
    command = [sys.executable, "-P", "-m", "edgecompress", "android", "build", "--source", str(app),
               "-o", str(tmp_path / "a.apk")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "interrupted" in err.splitlines()[-1]
    _gone(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "a.apk").exists()


def test_what_a_build_fetches_stays_for_the_next(source: Source, tmp_path: Path) -> None:
    fetched = "mkdir -p ../target && echo x >> ../target/fetched"
    app = source(f'cd "$(dirname "$0")"; {fetched}; {_good(tmp_path)}')
    for _ in range(2):
        build_app(output=tmp_path / "a.apk", source=app)
    (found,) = (tmp_path / "cache").rglob("fetched")
    assert found.read_text() == "x\nx\n"
    copy = found.parents[1]
    # A copy that was damaged is made good.
    (copy / "scripts" / "build_apk.sh").write_text("exit 1")
    build_app(output=tmp_path / "a.apk", source=app)
    # Other sources are another copy.
    source(f"{_good(tmp_path)}; true")
    build_app(output=tmp_path / "a.apk", source=app)
    assert len(list((tmp_path / "cache" / "edgecompress" / "android").iterdir())) == 2


def test_two_builds_of_the_same_sources_wait_for_each_other(source: Source, tmp_path: Path) -> None:
    import fcntl

    app = source(_good(tmp_path))
    build_app(output=tmp_path / "a.apk", source=app)
    (lock,) = (tmp_path / "cache").rglob("lock")
    said: list[str] = []
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def listen(text: str) -> None:
            said.append(text)
            if text.startswith("Waiting"):
                fcntl.flock(file, fcntl.LOCK_UN)

        build_app(output=tmp_path / "a.apk", source=app, progress=listen)
    assert "Waiting for another build" in said


def test_the_sources_come_along() -> None:
    app = android._source(None)
    assert (app / "pom.xml").is_file()
    assert (app / "app" / "src" / "main" / "AndroidManifest.xml").is_file()
    assert android._license(app).startswith(b"\n") or b"Apache License" in android._license(app)
    # As in a wheel, where the license does not lie beside them.
    assert b"Apache License" in android._license(app / "scripts")


def test_without_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ec, "__file__", str(tmp_path / "edgecompress" / "__init__.py"))
    with pytest.raises(MissingDependencyError, match="install edgecompress again"):
        build_app(output=tmp_path / "a.apk")


def test_the_real_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = ("aapt2", "zipalign", "apksigner", "zip", "flock", "javac", "keytool")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not (_ROOT / "android_demo" / "target" / "artifacts").is_dir():
        pytest.skip("what the app is built with is not fetched: run tests/test_apk.py")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = build_app(_BUNDLE, output=tmp_path / "mine.apk")
    with zipfile.ZipFile(made.path) as archive:
        shipped = archive.read("assets/demo/bundle.json")
    assert made.bundle is not None
    assert sha256(shipped) == made.bundle.sha256
    assert android._abis(made.path.read_bytes()) == ["arm64-v8a", "armeabi-v7a", "x86_64"]


# --- install ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-8"])
def test_the_app_is_installed(
    phone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], encoding: str
) -> None:
    file = tmp_path / "-r \u00e4.bin"
    file.write_bytes(_apk(encoding=encoding))
    assert main(["android", "install", str(file), "--json", "-q"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "serial": "PHONE1", "package": _PACKAGE, "path": f"/data/app/{_PACKAGE}/base.apk",
        "file": {"path": str(file), "bytes": len(file.read_bytes()),
                 "sha256": sha256(file.read_bytes())},
    }  # fmt: skip
    assert (phone / "base.apk").read_bytes() == file.read_bytes()
    assert main(["android", "install", str(file), "--serial", "PHONE1"]) == 0
    assert f"{_PACKAGE} is on the phone PHONE1" in capfd.readouterr().out


_INCOMPATIBLE = (
    "INSTALL_FAILED_UPDATE_INCOMPATIBLE: Existing package io.edgecompress.demo signatures do not "
    "match newer version; ignoring!"
)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"INSTALL": _INCOMPATIBLE}, DeviceError, "`adb uninstall io.edgecompress.demo` removes"),
        ({"INSTALL": _INCOMPATIBLE, "FAULTS": "old_adb"}, DeviceError, "signed with another key"),
        ({"INSTALL": "INSTALL_FAILED_INSUFFICIENT_STORAGE"}, DeviceError,
         "its storage is full; remove something, the app needs 4.9 KiB"),
        ({"INSTALL": "INSTALL_FAILED_NO_MATCHING_ABIS: Failed to extract, res=-113"},
         DeviceError, "no library for its processor (it has those for arm64-v8a, x86_64)"),
        ({"INSTALL": "INSTALL_FAILED_USER_RESTRICTED: Install canceled by user"}, DeviceError,
         "switch on `Install via USB`"),
        ({"INSTALL": "INSTALL_FAILED_VERSION_DOWNGRADE"}, DeviceError, "a newer version"),
        ({"INSTALL": "INSTALL_FAILED_OLDER_SDK"}, DeviceError, "older than Android 7"),
        ({"INSTALL": "INSTALL_FAILED_VERIFICATION_FAILURE: a\nb"}, DeviceError,
         "rejects the app: Performing Streamed Install adb: failed"),
        ({"FAULTS": "no_app"}, DeviceError, "but the phone PHONE1 does not have it"),
        ({"DEVICES": ""}, DeviceError, "No phone is connected"),
        ({"DEVICES": "A\tdevice\nB\tdevice"}, ArgumentError, "Connected: A, B."),
    ],
)  # fmt: skip
def test_what_the_phone_refuses_is_one_line(
    settings: dict[str, str],
    error: type[EdgeCompressError],
    text: str,
    phone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"FAKE_{name}", value)
    file = tmp_path / "a.apk"
    file.write_bytes(_apk(extra=4500))
    with pytest.raises(error) as caught:
        install_app(file)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "`edgecompress android build` makes it."),
        (b"", "is not an APK, or is cut off"),
        (_apk()[:-30], "is not an APK, or is cut off"),
        (_apk("com.example.other"), "is the APK of an app other than io.edgecompress.demo."),
    ],
)
def test_what_is_no_app_is_not_installed(
    content: bytes | None, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.apk"
    if content is not None:
        file.write_bytes(content)
    assert main(["android", "install", str(file)]) == 1
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert text in err


def test_a_command_must_be_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["android"]) == 2
    assert "Missing command" in capfd.readouterr().err
