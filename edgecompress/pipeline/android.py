"""`android build` and `android install`: the demo app for phones, optionally with an export.

The app's sources ship with this package. They are built in the user's cache folder, since the
package's own may be read-only; downloads stay there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import edgecompress
from edgecompress.core.bundle import Bundle, read_bundle
from edgecompress.core.errors import (
    ArgumentError,
    BuildError,
    DeviceError,
    MissingDependencyError,
    ModelFileError,
    UnreadableFileError,
)
from edgecompress.core.files import sha256, write_atomic
from edgecompress.core.folders import temporary_folder
from edgecompress.core.reading import open_archive, read_bytes
from edgecompress.core.units import format_size
from edgecompress.pipeline.options import AppOptions
from edgecompress.pipeline.request import silent

_SCRIPT = "scripts/build_apk.sh"
# The source files that the build needs.
_PARTS = ("pom.xml", ".mvn", "scripts", "app/src/main")
# Downloads may be slow; nothing else takes minutes.
_LONGEST_S = 3600.0
_POLL_S = 0.1
_WIDTH = 100
_HINTS = {
    "INSTALL_FAILED_UPDATE_INCOMPATIBLE": "the app on the phone is signed with another key; "
    "`adb uninstall {package}` removes it, and its results, first",
    "INSTALL_FAILED_INSUFFICIENT_STORAGE": "its storage is full; remove something, the app needs "
    "{size}",
    "INSTALL_FAILED_NO_MATCHING_ABIS": "the app has no library for its processor (it has those for "
    "{abis})",
    "INSTALL_FAILED_USER_RESTRICTED": "it does not allow it, or somebody said no on its screen; "
    "switch on `Install via USB` in its developer options and say yes",
    "INSTALL_FAILED_VERSION_DOWNGRADE": "a newer version of the app is on it; "
    "`adb uninstall {package}` removes it, and its results, first",
    "INSTALL_FAILED_OLDER_SDK": "it is older than Android 7",
}


@dataclass(frozen=True)
class AppFile:
    """An APK of the demo app.

    Attributes:
        path: Where it is.
        bytes: Its size.
        sha256: Of its content.
        bundle: The export that it ships; None for the demo's own models, or if unknown.
    """

    path: Path
    bytes: int
    sha256: str
    bundle: Bundle | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        bundle = self.bundle
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "bundle": None if bundle is None else {
                "name": bundle.name, "target": bundle.target, "sha256": bundle.sha256,
            },
        }  # fmt: skip

    def to_json(self) -> str:
        """Returns the JSON text, indented, ending in a newline."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def text(self) -> str:
        """Returns the result as human-readable text."""
        ships = "the demo's models" if self.bundle is None else self.bundle.name
        return f"{self.path}\n{format_size(self.bytes)}, ships {ships}\nSHA-256 {self.sha256}"


@dataclass(frozen=True)
class InstalledApp:
    """The demo app on a phone.

    Attributes:
        file: What was installed.
        package: Its name on the phone.
        serial: Of the phone.
        path: Of the app on the phone.
    """

    file: AppFile
    package: str
    serial: str
    path: str

    def to_json(self) -> str:
        """Returns the JSON text, indented, ending in a newline."""
        file = self.file.to_dict()
        del file["bundle"]
        data = {"serial": self.serial, "package": self.package, "path": self.path, "file": file}
        return json.dumps(data, indent=1) + "\n"

    def text(self) -> str:
        """Returns the result as human-readable text."""
        return f"{self.package} is on the phone {self.serial}: {self.path}"


def build_app(
    bundle: Path | str | None = None,
    *,
    output: Path | str = AppOptions.output,
    source: Path | str | None = None,
    progress: Callable[[str], None] = silent,
) -> AppFile:
    """Builds the demo app for phones as an APK signed with a debug key.

    Needs bash, a JDK and Debian's Android tools; the error names what is missing. The first build
    downloads 190 MB from Maven Central, and Maven itself unless 3.9 or later is installed;
    everything is verified against the checksums that ship with the sources.

    Args:
        bundle: Folder of an export with a phone among its targets, which the app then ships instead
            of its own models.
        output: The APK; its folder must exist.
        source: Folder of the app's sources. Defaults to those that ship with this package.
        progress: Called with a short text.

    Raises:
        EdgeCompressError: an argument or the bundle is wrong, a tool is missing, or the build
            failed; nothing was written.

    Example:
        >>> build_app("build/", output="mine.apk").bytes  # doctest: +SKIP
        14950231
    """
    place = Path(output)
    if place.suffix != ".apk" or not place.parent.is_dir() or place.is_dir():
        raise ArgumentError("--output", "be a .apk in a folder that exists", str(place))
    read = None if bundle is None else read_bundle(bundle)
    app = _source(source)
    if sys.platform == "win32":
        raise MissingDependencyError("The app is built on Linux or macOS: use WSL on Windows.")
    bash = shutil.which("bash")
    if bash is None:
        raise MissingDependencyError("bash is not installed; the app's build needs it.")
    progress("Copying the app's sources")
    try:
        with _copy(app, progress) as copy:
            content = _build(bash, copy, read, progress)
    except OSError as error:
        raise ArgumentError(
            "XDG_CACHE_HOME", "lead to a folder that can be written", str(_cache()), f"{error}."
        ) from error
    write_atomic(place, content)
    return AppFile(place, len(content), sha256(content), read)


def install_app(
    file: Path | str = AppOptions.output,
    *,
    serial: str | None = None,
    progress: Callable[[str], None] = silent,
) -> InstalledApp:
    """Installs the demo app on a phone through adb; an older one is replaced and keeps its data.

    Args:
        file: An APK that `build_app` made.
        serial: Which phone; needed if several are connected.
        progress: Called with a short text.

    Raises:
        EdgeCompressError: the file is not an APK of the app, adb or the phone is missing, or the
            phone rejects the app; the text says why.

    Example:
        >>> install_app("mine.apk").serial  # doctest: +SKIP
        '37021FDJH0018Y'
    """
    from edgecompress.targets.phones.adb import connect, one_line
    from edgecompress.targets.phones.runners import PACKAGE

    place = Path(file)
    try:
        content = read_bytes(place)
    except UnreadableFileError as error:
        raise ModelFileError(f"{error} `edgecompress android build` makes it.") from error
    _check_apk(content, str(place))
    phone = connect(serial)
    progress(f"Installing {place.name} on {phone.serial}")
    with temporary_folder() as folder:
        # The checked file, under a name that adb accepts as an APK.
        local = folder / "app.apk"
        local.write_bytes(content)
        answer = phone.install(local)
    if answer.code or "Success" not in answer.out + answer.err:
        said = one_line(f"{answer.out} {answer.err}")
        code = next((code for code in _HINTS if code in said), None)
        reason = said
        if code is not None:
            size, abis = format_size(len(content)), ", ".join(_abis(content)) or "none"
            reason = f"{_HINTS[code].format(package=PACKAGE, size=size, abis=abis)} ({code})."
        raise DeviceError(f"The phone {phone.serial} rejects the app: {reason}")
    found = phone.shell("pm", "path", PACKAGE).out.split()
    if not found:
        raise DeviceError(
            f"adb says that the app was installed, but the phone {phone.serial} does not have it: "
            "run the command again."
        )
    made = AppFile(place, len(content), sha256(content))
    return InstalledApp(made, PACKAGE, phone.serial, found[0].removeprefix("package:"))


def _abis(content: bytes) -> list[str]:
    with open_archive(content) as archive:
        parts = [name.split("/") for name in archive.names]
    return sorted({part[1] for part in parts if part[0] == "lib" and len(part) > 2})


def _check_apk(content: bytes, name: str) -> None:
    """Refuses anything but an APK of the demo app."""
    from edgecompress.targets.phones.runners import PACKAGE

    try:
        with open_archive(content, name) as archive:
            manifest = archive.read("AndroidManifest.xml")
    except UnreadableFileError as error:
        raise ModelFileError(
            f"{name} is not an APK, or is cut off: `edgecompress android build` makes one."
        ) from error
    # A compiled manifest stores its texts as UTF-16 or UTF-8.
    if PACKAGE.encode("utf-16-le") not in manifest and PACKAGE.encode() not in manifest:
        raise ModelFileError(f"{name} is the APK of an app other than {PACKAGE}.")


# --- the build ----------------------------------------------------------------------------------


def _source(source: Path | str | None) -> Path:
    """Returns the folder of the app's sources."""
    if source is not None:
        app = Path(source)
        if not (app / _SCRIPT).is_file():
            raise ArgumentError("--source", f"be a folder with {_SCRIPT}", str(source))
        return app.resolve()
    package = Path(edgecompress.__file__).resolve().parent
    # In a wheel, and in a checkout.
    for app in (package / "android_demo", package.parent / "android_demo"):
        if (app / _SCRIPT).is_file():
            return app
    raise MissingDependencyError(
        "The sources of the app are not in this installation: install edgecompress again, or name "
        "their folder with --source."
    )


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("edgecompress") / "android"


def _license(app: Path) -> bytes:
    """Returns the license text, which the app shows."""
    beside = app.parent / "LICENSE"
    if beside.is_file():
        return beside.read_bytes()
    files = metadata.files("edgecompress") or []
    found = next((file for file in files if file.match("licenses/LICENSE")), None)
    return b"" if found is None else found.read_binary()


@contextmanager
def _copy(app: Path, progress: Callable[[str], None]) -> Iterator[Path]:
    """Yields a writable copy of the sources that no other build uses at the same time."""
    import fcntl

    paths = [path for part in _PARTS for path in (app / part, *(app / part).rglob("*"))]
    files = {
        path.relative_to(app): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and "__pycache__" not in path.parts
    }
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name.as_posix()}\0{sha256(content)}\n".encode())
    folder = _cache() / digest.hexdigest()[:16]
    copy = folder / "android_demo"
    copy.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for name, content in {**files, Path("../LICENSE"): _license(app)}.items():
            _write_if_other(copy / name, content)
        # Downloads of a checkout are reused.
        fetched, link = app / "target" / "artifacts", copy / "target" / "artifacts"
        if fetched.is_dir() and not os.path.lexists(link):
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(fetched)
        elif link.is_symlink() and not link.exists():
            link.unlink()
        yield copy


def _write_if_other(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _build(bash: str, app: Path, bundle: Bundle | None, progress: Callable[[str], None]) -> bytes:
    """Runs the script and returns the APK that it wrote."""
    made = app.parent / f"made-{os.getpid()}.apk"
    command = [bash, str(app / _SCRIPT)]
    if bundle is not None and bundle.folder is not None:
        command += ["--bundle", str(bundle.folder.resolve())]
    command += ["--output", str(made)]
    progress("Building the app")
    told: list[str] = []

    def tell(line: str) -> None:
        # From its path on, the script describes an APK that will be moved.
        told.append(line)
        if str(made) not in told:
            progress(line[:_WIDTH])

    try:
        with tempfile.TemporaryFile() as said:
            code = _run(command, app, said, tell)
            said.seek(0)
            text = said.read().decode(errors="replace")
        if code:
            raise BuildError(f"The app cannot be built: {_last_words(text, code)}")
        if not made.is_file():
            raise BuildError(f"The build wrote no APK. {_last_words(text, code)}")
        content = made.read_bytes()
    finally:
        made.unlink(missing_ok=True)
    _check_apk(content, "What the build wrote")
    return content


def _last_words(text: str, code: int) -> str:
    """Returns the end of an output as one line."""
    from edgecompress.targets.phones.adb import one_line

    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line("; ".join(lines[-3:])) or f"It ended with status {code} and no output."


def _run(command: list[str], folder: Path, said: IO[bytes], progress: Callable[[str], None]) -> int:
    """Runs a command to its end, forwarding its lines as they arrive; returns its exit status."""
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    begin, seen = time.monotonic(), 0
    try:
        while True:
            code = process.poll()
            # The process shares the file's write position, so it is read through a second handle.
            new = os.pread(said.fileno(), 1 << 20, seen)
            whole = new if code is not None else new[: new.rfind(b"\n") + 1]
            seen += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.strip():
                    progress(" ".join(line.split()))
            if code is not None:
                return code
            if time.monotonic() - begin > _LONGEST_S:
                raise BuildError(f"The build did not end within {_LONGEST_S:g} s.")
            time.sleep(_POLL_S)
    finally:
        # Even after Ctrl-C; its own child processes end with it.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
