"""Reads untrusted files, each within bounds that are checked before it is read.

Every function returns the result or raises `UnreadableFileError`: it never waits for a pipe, no
archive inflates beyond its bound, and no text nests deeper than its readers recurse.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import stat
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgecompress.core.errors import UnreadableFileError
from edgecompress.core.structured import DEPTH_LIMIT, TOML_LIMIT, decoded, parse_json, parse_toml
from edgecompress.core.units import format_size

# Bounds in bytes. Flatbuffers and Keras files cannot exceed 2 GiB, data can.
MODEL_LIMIT = 2 << 30
DATA_LIMIT = 64 << 30
# Parsed JSON takes up to 24 times its text: [[],[],...].
JSON_LIMIT = 16 << 20
TEXT_LIMIT = 16 << 20
# What an archive may inflate to: this much, or this multiple of its own size.
INFLATED_LIMIT = 512 << 20
INFLATED_RATIO = 16
MEMBERS_LIMIT = 10_000
_DIRECTORY_LIMIT = 8 << 20
_CHUNK = 1 << 20
_HEADER_LIMIT = 16 << 10
# Characters of an .npy header: 32 dimensions take half of it. Damaged ones with thousands keep
# numpy's parser for Python 2 literals busy for minutes.
_HEADER_TEXT = 1 << 10
_LONGEST_ITEM = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_file(path: Path | str, *, links: bool = True) -> Iterator[IO[bytes]]:
    """Opens a regular file for reading; opens nothing else, and never blocks.

    Args:
        path: The file.
        links: Whether the path itself may be a symbolic link. Defaults to True.

    Raises:
        UnreadableFileError: it is missing, a folder, a pipe, a device or a link, or cannot be
            read.
    """
    with _translated(path):
        # Checked before opening: opening a device may already have side effects.
        _check_kind(path, (os.stat if links else os.lstat)(path).st_mode)
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        flags |= getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
        handle = os.open(path, flags)
    with os.fdopen(handle, "rb") as file:
        _check_kind(path, os.fstat(handle).st_mode)
        yield file


@contextlib.contextmanager
def _translated(path: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableFileError(path, "does not exist") from error
    except OSError as error:
        raise UnreadableFileError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # A NUL, or a character unknown to the file system's encoding.
        raise UnreadableFileError(path, "has an invalid name") from error
    except MemoryError as error:
        raise UnreadableFileError(path, "does not fit in memory") from error


def _check_kind(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise UnreadableFileError(path, f"is {kind}, not a regular file")


def size_of(file: IO[bytes]) -> int:
    """Returns the bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def file_size(path: Path | str, *, links: bool = True) -> int:
    """Returns the bytes of a regular file.

    Raises:
        UnreadableFileError: as in `open_file`.
    """
    with open_file(path, links=links) as file:
        return size_of(file)


def read_bytes(path: Path | str, limit: int = MODEL_LIMIT, *, links: bool = True) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: The file.
        limit: Its maximum size in bytes. Defaults to 2 GiB.
        links: Whether the path itself may be a symbolic link. Defaults to True.

    Raises:
        UnreadableFileError: as in `open_file`, or it is larger.

    Example:
        >>> read_bytes("/dev/zero")
        Traceback (most recent call last):
        ...
        edgecompress.core.errors.UnreadableFileError: /dev/zero is a device, not a regular file.
    """
    with _sized(path, limit, links) as (file, size):
        # Not a byte more than its size: it may grow endlessly.
        return file.read(size)


@contextlib.contextmanager
def _sized(path: Path | str, limit: int, links: bool) -> Iterator[tuple[IO[bytes], int]]:
    """Opens a regular file up to a size, and gives that size."""
    with open_file(path, links=links) as file:
        size = size_of(file)
        if size > limit:
            raise UnreadableFileError(
                path, f"has {format_size(size)}; at most {format_size(limit)} are read"
            )
        with _translated(path):
            yield file, size


def sha256_of(path: Path | str, limit: int = MODEL_LIMIT) -> str:
    """Returns the SHA-256 of a regular file as 64 hexadecimal digits, without holding its content.

    Args:
        path: The file.
        limit: Its maximum size in bytes. Defaults to 2 GiB.

    Raises:
        UnreadableFileError: as in `read_bytes`.
    """
    digest = hashlib.sha256()
    with _sized(path, limit, links=True) as (file, size):
        while size and (chunk := file.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def read_text(path: Path | str, limit: int = TEXT_LIMIT) -> str:
    """Returns the content of a UTF-8 text file, without a byte order mark.

    Raises:
        UnreadableFileError: as in `read_bytes`, or it is not UTF-8.
    """
    return decoded(read_bytes(path, limit), path)


def read_inside(folder: Path, path: str, limit: int = MODEL_LIMIT) -> bytes:
    """Returns the content of a file in an untrusted folder; links are refused.

    Args:
        folder: The folder.
        path: Relative, with /; see `is_inside`.
        limit: The most bytes it may have.

    Raises:
        UnreadableFileError: the path leads outside, a part of it is a link, or as in `read_bytes`.
    """
    return read_bytes(inside(folder, path), limit, links=False)


def inside(folder: Path, path: str) -> Path:
    """Returns the path of a file in an untrusted folder.

    Raises:
        UnreadableFileError: the path leads outside, or a part of it is a link.
    """
    if not is_inside(path):
        raise UnreadableFileError(folder / path, "leads outside its folder")
    place = folder
    with _translated(folder / path):
        for part in path.split("/"):
            place = place / part
            if stat.S_ISLNK(os.lstat(place).st_mode):
                raise UnreadableFileError(place, "is a link, not a regular file")
    return place


def is_inside(path: str) -> bool:
    """Returns whether a path is relative, with /, and stays inside its folder.

    Example:
        >>> is_inside("golden/a.bin"), is_inside("../a.bin"), is_inside("/a.bin")
        (True, False, False)
    """
    parts = path.split("/")
    return not (
        re.match("[A-Za-z]:", path) or set(parts) & {"", ".", ".."} or "\\" in path or "\0" in path
    )


def read_json(path: Path | str, limit: int = JSON_LIMIT, depth: int = DEPTH_LIMIT) -> Any:
    """Returns the value of a JSON file.

    Raises:
        UnreadableFileError: as in `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, limit), path, depth)


def read_toml(path: Path | str) -> dict[str, Any]:
    """Returns the tables of a TOML file.

    Raises:
        UnreadableFileError: as in `read_text` and `parse_toml`.
    """
    return parse_toml(read_text(path, TOML_LIMIT), path)


# --- archives -----------------------------------------------------------------------------------


def check_inflated(total: int, size: int, label: Path | str) -> None:
    """Refuses a file that inflates to more than 512 MiB and 16 times its size.

    Args:
        total: The size in bytes that it claims to inflate to.
        size: Its size in bytes.
        label: Its name in errors.

    Raises:
        UnreadableFileError: it inflates to more.
    """
    if total > max(INFLATED_LIMIT, INFLATED_RATIO * size):
        raise UnreadableFileError(
            label,
            f"inflates from {format_size(size)} to {format_size(total)}, more than "
            f"{format_size(INFLATED_LIMIT)} and {INFLATED_RATIO} times its size; store it "
            "uncompressed if that is meant",
        )


class _Bounded:
    """A file for zipfile with a bounded directory."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self.limit = file, limit
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise zipfile.BadZipFile("its list of members is too long")
        return self._file.read(min(size, self.limit) if size >= 0 else self.limit)

    def seekable(self) -> bool:
        return True


class Archive:
    """A zip archive with validated members, made by `open_archive`.

    Attributes:
        names: Of its members, folders left out.
        sizes: Name -> bytes, inflated.
    """

    def __init__(self, archive: zipfile.ZipFile, label: Path | str) -> None:
        self._archive, self._label = archive, label
        self._members = {i.filename: i for i in archive.infolist() if not i.is_dir()}
        self.names = tuple(self._members)
        self.sizes = {name: info.file_size for name, info in self._members.items()}

    def read(self, name: str, limit: int | None = None) -> bytearray:
        """Returns the content of a member.

        Args:
            name: The member.
            limit: The most bytes it may have; None for the archive's own bound.

        Raises:
            UnreadableFileError: there is no such member, it is larger, or it is damaged.
        """
        if name not in self._members:
            raise UnreadableFileError(self._label, f"does not contain {name}")
        size = self.sizes[name]
        if limit is not None and size > limit:
            raise UnreadableFileError(
                self._label,
                f"holds {name} of {format_size(size)}; at most {format_size(limit)} are read",
            )
        content = bytearray(size)
        place = 0
        for chunk in self._chunks(name):
            content[place : place + len(chunk)] = chunk
            place += len(chunk)
        return content

    def extract(self, name: str, path: Path) -> None:
        """Writes the content of a member into a new file, without holding all of it.

        Raises:
            UnreadableFileError: as in `read`.
        """
        if name not in self._members:
            raise UnreadableFileError(self._label, f"does not contain {name}")
        with open(path, "xb") as file:
            for chunk in self._chunks(name):
                file.write(chunk)

    def head(self, name: str, size: int) -> bytes:
        """Returns the first bytes of a member.

        Raises:
            UnreadableFileError: it is damaged.
        """
        with _sound(self._label, name), self._archive.open(self._members[name]) as file:
            return file.read(size)

    def verify(self) -> None:
        """Reads all members, and discards the content.

        Raises:
            UnreadableFileError: one is cut off, damaged, or not what its checksum says.
        """
        for name in self.names:
            for _ in self._chunks(name):
                pass

    def _chunks(self, name: str) -> Iterator[bytes]:
        done = 0
        with _sound(self._label, name), self._archive.open(self._members[name]) as file:
            # In pieces: otherwise zipfile inflates everything, whatever size is declared.
            while chunk := file.read(_CHUNK):
                done += len(chunk)
                yield chunk
            if done != self.sizes[name]:
                raise zipfile.BadZipFile("it is cut off")


@contextlib.contextmanager
def _sound(label: Path | str, name: str = "") -> Iterator[None]:
    """Turns what zipfile and zlib raise for a damaged archive into one line."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError,
            RuntimeError, OverflowError, MemoryError) as error:  # fmt: skip
        what = " ".join(str(error).split()) or type(error).__name__
        where = f" ({name})" if name else ""
        raise UnreadableFileError(label, f"is truncated or damaged{where}: {what}") from error


@contextlib.contextmanager
def open_archive(source: Path | str | bytes, label: Path | str | None = None) -> Iterator[Archive]:
    """Opens a zip archive after validating all of its members' names, kinds and sizes.

    Members must be stored or deflated, have unique relative names without `..`, must not be links
    or encrypted, and may inflate to at most 512 MiB or 16 times the archive in total.

    Args:
        source: The file, or its bytes.
        label: Its name in errors; by default the path.

    Raises:
        UnreadableFileError: it cannot be read, is not an archive, or breaks one of these rules.
    """
    if isinstance(source, bytes):
        with _opened(io.BytesIO(source), len(source), label or "the archive") as archive:
            yield archive
    else:
        with (
            open_file(source) as file,
            _opened(file, size_of(file), label or source) as archive,
        ):
            yield archive


@contextlib.contextmanager
def _opened(file: IO[bytes], size: int, label: Path | str) -> Iterator[Archive]:
    bounded: Any = _Bounded(file, _DIRECTORY_LIMIT)
    with _sound(label):
        archive = zipfile.ZipFile(bounded)
    with archive:
        # zipfile chooses the size of the pieces that are read.
        bounded.limit = sys.maxsize
        _check_members(archive.infolist(), size, label)
        yield Archive(archive, label)


def _check_members(members: list[zipfile.ZipInfo], size: int, label: Path | str) -> None:
    if len(members) > MEMBERS_LIMIT:
        raise UnreadableFileError(label, f"contains {len(members):,} files, more than allowed")
    seen: set[str] = set()
    for member in members:
        # zipfile cuts names at a NUL; other readers may not.
        name = member.filename
        mode = member.external_attr >> 16
        problem = None
        if "\0" in member.orig_filename or not is_inside(name.removesuffix("/")):
            problem = "leads outside its folder"
        elif name in seen:
            problem = "occurs twice"
        elif member.flag_bits & 0x41:
            problem = "is encrypted"
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a device"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"is compressed by method {member.compress_type}, not by deflate"
        if problem is not None:
            raise UnreadableFileError(label, f"contains {name!r}, which {problem}")
        seen.add(name)
    check_inflated(sum(member.file_size for member in members), size, label)


def check_keras_archive(path: Path | str) -> tuple[Any, Any]:
    """Returns config.json and metadata.json of a .keras file after validating its members.

    Args:
        path: The file.

    Raises:
        UnreadableFileError: as in `open_archive` and `parse_json`, a member is damaged, or there is
            no config.json. The metadata are {} if there are none.
    """
    with open_archive(path) as archive:
        if "config.json" not in archive.names:
            raise UnreadableFileError(
                path,
                "is a zip archive without config.json, so no Keras model; save it with "
                "model.save()",
            )
        parts: list[Any] = []
        for name in ("config.json", "metadata.json"):
            if name == "metadata.json" and name not in archive.names:
                parts.append({})
                continue
            parts.append(parse_json(archive.read(name, JSON_LIMIT), f"{path}: {name}"))
        archive.verify()
    return parts[0], parts[1]


# --- arrays -------------------------------------------------------------------------------------


def read_arrays(source: Path | str | bytes, label: Path | str | None = None) -> Any:
    """Returns the array of an .npy file, or the arrays of an .npz file by name.

    Header sizes are compared with the actual bytes before memory is allocated.

    Args:
        source: The file, or its bytes.
        label: Its name in errors; by default the path.

    Raises:
        UnreadableFileError: it cannot be read, is neither, is damaged, holds Python objects, or
            breaks a rule of `open_archive`.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, x=np.arange(3))
        >>> read_arrays(buffer.getvalue())
        {'x': array([0, 1, 2])}
    """
    label = label if label is not None else "the data" if isinstance(source, bytes) else source
    if isinstance(source, bytes):
        head = source[:4]
    else:
        with open_file(source) as file:
            head = file.read(4)
    if head.startswith(b"\x93NUM"):
        data = source if isinstance(source, bytes) else read_bytes(source, DATA_LIMIT)
        return _array(data, label, "")
    if not head.startswith(b"PK"):
        raise UnreadableFileError(label, "is neither .npy nor .npz")
    arrays = {}
    with open_archive(source, label) as archive:
        for name in archive.names:
            if not name.endswith(".npy"):
                raise UnreadableFileError(label, f"contains {name!r}, which is not an .npy array")
            key = name.removesuffix(".npy")
            _header(archive.head(name, _HEADER_LIMIT), archive.sizes[name], label, key)
            arrays[key] = _array(archive.read(name), label, key)
    return arrays


def _array(data: bytes | bytearray, label: Path | str, key: str) -> np.ndarray:
    start, shape, fortran, dtype = _header(bytes(data[:_HEADER_LIMIT]), len(data), label, key)
    array = np.frombuffer(data, dtype, math.prod(shape), start)
    return np.require(
        array.reshape(shape, order="F" if fortran else "C"), requirements=("ALIGNED", "WRITEABLE")
    )


def _header(
    head: bytes, size: int, label: Path | str, key: str
) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Returns where the values of an .npy content of `size` bytes start, type and shape."""
    where = f"holds an array {key!r} that" if key else "is an .npy file that"
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings():
            # numpy warns of headers of Python 2 (`3L`), which take it up to a tenth of a second
            # each: one of them is enough to refuse an archive of thousands.
            warnings.simplefilter("error", UserWarning)
            shape, fortran, dtype = read(stream, max_header_size=_HEADER_TEXT)
    # Headers are Python literals: parsing a damaged one fails in many ways.
    except UserWarning as warning:
        raise UnreadableFileError(
            label, f"{where} was written by Python 2: read and save it once with numpy"
        ) from warning
    except Exception as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableFileError(label, f"{where} has no readable header: {what}") from error
    if dtype.hasobject:
        raise UnreadableFileError(label, f"{where} contains Python objects, which could run code")
    # numpy's size of a long text type may overflow to a negative number.
    if not 0 < dtype.itemsize <= _LONGEST_ITEM or dtype.kind not in "biufcSUmM":
        raise UnreadableFileError(label, f"{where} is of type {dtype}, not of numbers")
    if any(length < 0 for length in shape) or len(shape) > 32:
        raise UnreadableFileError(label, f"{where} has the shape {str(shape)[:80]}")
    wanted = math.prod(max(length, 1) for length in shape) * dtype.itemsize
    if wanted > size - stream.tell() and (0 not in shape or wanted > sys.maxsize):
        raise UnreadableFileError(
            label,
            f"{where} claims {format_size(wanted)}, but only {format_size(size - stream.tell())} "
            "are present",
        )
    return stream.tell(), shape, fortran, dtype
