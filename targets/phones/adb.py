"""Drives a phone through `adb` from Android's platform tools.

Every call has a timeout; whatever adb or the phone answers becomes one line.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgecompress.core.errors import ArgumentError, DeviceError, MissingDependencyError
from edgecompress.core.files import sha256
from edgecompress.core.folders import temporary_folder

# Seconds for immediate answers, and the minimum speed of a push or pull over a bad cable.
_ANSWER_S = 30.0
_BYTES_PER_S = 200_000
_LENGTH = 300
_STATES = {
    "unauthorized": "does not trust this computer: unlock it and accept the question on its "
    "screen (Allow USB debugging)",
    "offline": "is offline: reconnect the cable, or run `adb reconnect`",
    "authorizing": "is still being connected: accept the question on its screen",
    "recovery": "is in recovery mode: start it normally",
    "bootloader": "is in the bootloader: start it normally",
}


class NoAnswerError(DeviceError):
    """An adb call timed out."""


@dataclass(frozen=True)
class Answer:
    """The result of an adb call.

    Attributes:
        code: Its exit status; for shell commands, that of the command on the phone.
        out: Standard output.
        err: Standard error.
    """

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """Its output, as one line."""
        return one_line(self.err if self.err.strip() else self.out) or f"exit status {self.code}"


def one_line(text: str) -> str:
    """Returns the end of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _LENGTH else f"...{line[-_LENGTH:]}"


def thermal_status(text: str) -> int | None:
    """Returns Android's thermal status from the output of `dumpsys thermalservice`, or None.

    Example:
        >>> thermal_status("IsStatusOverride: false\\nThermal Status: 1")
        1
    """
    for line in text.splitlines():
        name, _, value = line.strip().partition(":")
        if name == "Thermal Status" and value.strip().isdigit():
            return int(value)
    return None


def _call(command: list[str], timeout_s: float) -> Answer:
    # Files instead of pipes: the server that adb leaves behind would hold a pipe open forever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            raise DeviceError(f"{command[0]} cannot be started: {error.strerror}.") from error
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            shown = one_line(" ".join(command[1:]))
            raise NoAnswerError(
                f"adb gave no answer within {timeout_s:g} s (`{shown}`): check the cable, or run "
                "`adb kill-server`."
            ) from error
        finally:
            process.kill()
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Answer(code, *texts)


@dataclass(frozen=True)
class Phone:
    """One phone.

    Attributes:
        program: The adb executable.
        serial: Of the phone.
    """

    program: str
    serial: str

    def call(self, *arguments: str, timeout_s: float = _ANSWER_S) -> Answer:
        """Runs adb for this phone and returns its answer, whatever the exit status.

        Raises:
            DeviceError: it did not end in time.
        """
        return _call([self.program, "-s", self.serial, *arguments], timeout_s)

    def shell(self, *words: str, timeout_s: float = _ANSWER_S) -> Answer:
        """Runs a command of the phone's shell; the words are quoted for it."""
        return self.script(shlex.join(words), timeout_s=timeout_s)

    def script(self, text: str, timeout_s: float = _ANSWER_S) -> Answer:
        """Runs a command line verbatim in the phone's shell."""
        return self.call("shell", text, timeout_s=timeout_s)

    def hashes(self, paths: list[str]) -> dict[str, str]:
        """Returns path -> SHA-256 of those files that are on the phone.

        Raises:
            DeviceError: the phone cannot compute it.
        """
        answer = self.shell("sha256sum", *paths, timeout_s=4 * _ANSWER_S)
        if answer.code == 127:
            raise DeviceError(
                f"The phone {self.serial} has no sha256sum, so files on it cannot be compared: "
                f"{answer.line}"
            )
        found = {}
        for line in answer.out.splitlines():
            digest, _, path = line.strip().partition(" ")
            if len(digest) == 64:
                found[path.strip().lstrip("*")] = digest
        return found

    def push(self, files: dict[str, bytes]) -> int:
        """Updates files on the phone; up-to-date ones are left alone.

        Args:
            files: Absolute path on the phone -> content.

        Returns:
            Number of files sent.

        Raises:
            DeviceError: one cannot be sent, or differs afterwards.
        """
        wanted = {path: sha256(content) for path, content in files.items()}
        folders = sorted({path.rpartition("/")[0] for path in files})
        answer = self.shell("mkdir", "-p", *folders)
        if answer.code:
            raise DeviceError(f"The phone {self.serial} cannot make {folders[0]}: {answer.line}.")
        there = self.hashes(list(files))
        missing = [path for path in files if there.get(path) != wanted[path]]
        with temporary_folder() as folder:
            for path in missing:
                local = folder / "file"
                local.write_bytes(files[path])
                limit = _ANSWER_S + len(files[path]) / _BYTES_PER_S
                answer = self.call("push", str(local), path, timeout_s=limit)
                if answer.code:
                    raise DeviceError(
                        f"{path.rpartition('/')[2]} cannot be pushed to the phone {self.serial}: "
                        f"{answer.line.rstrip('.')}."
                    )
        there = self.hashes(missing) if missing else {}
        for path in missing:
            if there.get(path) != wanted[path]:
                raise DeviceError(
                    f"{path.rpartition('/')[2]} is another file on the phone {self.serial} than "
                    "the one that was pushed (SHA-256): is its storage full?"
                )
        return len(missing)

    def pull(self, path: str) -> bytes:
        """Returns the content of a file on the phone.

        Raises:
            DeviceError: it cannot be fetched.
        """
        with temporary_folder() as folder:
            local = folder / "file"
            answer = self.call("pull", path, str(local), timeout_s=4 * _ANSWER_S)
            if answer.code or not local.is_file():
                raise DeviceError(
                    f"The result cannot be pulled from the phone {self.serial}: "
                    f"{answer.line.rstrip('.')}."
                )
            return local.read_bytes()

    def install(self, apk: Path) -> Answer:
        """Installs an app, replacing an older one, and returns adb's answer, whatever it is.

        Raises:
            DeviceError: it did not end in time.
        """
        # The phone also verifies and optimizes the app.
        limit = 4 * _ANSWER_S + apk.stat().st_size / _BYTES_PER_S
        return self.call("install", "-r", str(apk), timeout_s=limit)

    def thermal_status(self) -> int | None:
        """Returns Android's thermal status; None if the phone does not report it."""
        return thermal_status(self.shell("dumpsys", "thermalservice").out)

    def log(self, tag: str) -> str:
        """Returns the last lines of the phone's log for a tag and for crashes, as one line."""
        try:
            answer = self.call("logcat", "-d", "-t", "20", "-s", f"{tag}:V", "AndroidRuntime:E")
        except DeviceError:
            return ""
        lines = [line for line in answer.out.splitlines() if not line.startswith("-----")]
        return one_line("; ".join(line.strip() for line in lines[-4:]))


def connect(serial: str | None = None) -> Phone:
    """Returns the phone that is connected, or the one with a serial number.

    Args:
        serial: As `adb devices` lists it. Defaults to the only phone.

    Raises:
        MissingDependencyError: adb is not installed.
        ArgumentError: several phones are connected, or none has that serial number.
        DeviceError: no phone is connected, or it is not ready.
    """
    program = shutil.which("adb")
    if program is None:
        raise MissingDependencyError(
            "adb is not installed: install Android's platform tools (Debian: `apt install adb`)."
        )
    answer = _call([program, "devices"], 2 * _ANSWER_S)
    if answer.code:
        raise DeviceError(f"`adb devices` failed: {answer.line}")
    states: dict[str, str] = {}
    for line in answer.out.splitlines():
        name, tab, state = line.partition("\t")
        if tab and not line.startswith("*"):
            states[name.strip()] = state.strip()
    if not states:
        raise DeviceError(
            "No phone is connected: plug it in, and enable USB debugging in its developer "
            "options. `adb devices` lists it then."
        )
    if serial is None and len(states) > 1:
        raise ArgumentError(
            "--serial", "name one of the connected phones", None,
            f"Connected: {', '.join(sorted(states))}.",
        )  # fmt: skip
    chosen = serial if serial is not None else next(iter(states))
    if chosen not in states:
        raise ArgumentError(
            "--serial", "name a connected phone", chosen, f"Connected: {', '.join(sorted(states))}."
        )
    state = states[chosen]
    if state != "device":
        default = f"is not ready: adb calls it {one_line(state)!r}"
        raise DeviceError(f"The phone {chosen} {_STATES.get(state, default)}.")
    return Phone(program, chosen)
