"""Programs for Android: where they run, from the header of an ELF file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.core.errors import ArgumentError, UnreadableFileError
from edgecompress.core.files import sha256
from edgecompress.core.reading import read_bytes

# Machine of the ELF header -> Android's name of the ABI.
_ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}
_EXECUTABLE = (2, 3)
_INTERPRETER = 3
_ANDROID = ("/system/bin/linker", "/apex/")


@dataclass(frozen=True)
class Program:
    """A program for a phone.

    Attributes:
        name: Of its file.
        data: Its content.
        abi: The ABI it is built for, in Android's naming.
    """

    name: str
    data: bytes = field(repr=False)
    abi: str

    @property
    def sha256(self) -> str:
        """Of its content."""
        return sha256(self.data)


def read_program(path: Path | str, argument: str) -> Program:
    """Reads a program, and refuses one that no phone can run.

    Args:
        path: An ELF file.
        argument: Its argument, for errors, e.g. `--binary`.

    Raises:
        ArgumentError: the file cannot be read, is not an ELF program, is built for a processor that
            Android does not support, or is one for Linux: its interpreter is not Android's linker.

    Example:
        >>> read_program("benchmark_model", "--binary").abi  # doctest: +SKIP
        'arm64-v8a'
    """
    try:
        data = read_bytes(path)
    except UnreadableFileError as error:
        raise ArgumentError(
            argument, "be a readable file", str(path), f"It {error.problem}."
        ) from error
    try:
        machine, interpreter = _head(data)
    except (struct.error, ValueError) as error:
        raise ArgumentError(
            argument, "be a program for Android (ELF)", str(path), "It is not, or it is cut off."
        ) from error
    abi = _ABIS.get(machine)
    if abi is None:
        raise ArgumentError(
            argument, f"be built for one of {', '.join(_ABIS.values())}", f"machine {machine}"
        )
    if interpreter and not interpreter.startswith(_ANDROID):
        raise ArgumentError(
            argument, "be built for Android", str(path),
            f"It is for Linux: it needs {interpreter[:80]}, which no phone has.",
        )  # fmt: skip
    return Program(Path(path).name, data, abi)


def _head(data: bytes) -> tuple[int, str]:
    """Returns machine and interpreter ("" for none) of an ELF file."""
    if data[:4] != b"\x7fELF" or data[4:5] not in (b"\x01", b"\x02") or data[5:6] != b"\x01":
        raise ValueError("not a little-endian ELF file")
    wide = data[4] == 2
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind not in _EXECUTABLE:
        raise ValueError("no program")
    (start,) = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    for place in range(start, start + size * count, size or 1):
        (segment,) = struct.unpack_from("<I", data, place)
        if segment == _INTERPRETER:
            if wide:
                offset, length = (struct.unpack_from("<Q", data, place + at)[0] for at in (8, 32))
            else:
                offset, length = (struct.unpack_from("<I", data, place + at)[0] for at in (4, 16))
            return machine, data[offset : offset + length].split(b"\0")[0].decode(errors="replace")
    return machine, ""
