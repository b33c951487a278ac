"""Files from anywhere are read within bounds, and refused in one line."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgecompress.core import reading
from edgecompress.core.errors import ModelFileError, UnreadableFileError


def _refusal(call, *arguments, **options) -> str:
    with pytest.raises(UnreadableFileError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert isinstance(caught.value, ModelFileError)
    return text


# --- files ---


def test_a_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert reading.read_bytes(tmp_path / "a", 3) == b"abc"
    assert reading.read_bytes(tmp_path / "b") == b"abc"
    # FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert reading.sha256_of(tmp_path / "b") == digest
    assert "at most 2 B" in _refusal(reading.sha256_of, tmp_path / "a", 2)
    assert "b is a link" in _refusal(reading.read_bytes, tmp_path / "b", links=False)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    assert "is a pipe" in _refusal(reading.read_bytes, tmp_path / "pipe")
    assert "is a device" in _refusal(reading.read_bytes, "/dev/zero")
    assert "is a folder" in _refusal(reading.read_bytes, tmp_path)
    assert "does not exist" in _refusal(reading.read_bytes, tmp_path / "none")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_impossible_names(name: str) -> None:
    text = _refusal(reading.read_bytes, name)
    assert "an invalid name" in text or "cannot be read" in text


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(3 << 30)
    tracemalloc.start()
    text = _refusal(reading.read_bytes, tmp_path / "large")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert "3.00 GiB" in text and "2.00 GiB" in text


def test_folders_from_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"s")
    (folder / "sub" / "a").write_bytes(b"a")
    (folder / "out").symlink_to(tmp_path)
    (folder / "file").symlink_to(tmp_path / "secret")
    assert reading.read_inside(folder, "sub/a") == b"a"
    for path in ("out/secret", "file"):
        assert "is a link" in _refusal(reading.read_inside, folder, path)
    for path in ("../secret", "/etc/passwd", "sub//a", "./sub/a", "C:/a", "sub\\a"):
        assert "outside" in _refusal(reading.read_inside, folder, path)


# --- JSON and TOML ---


def test_json_is_what_json_says() -> None:
    value = {"a": [1, 2.5, None, True, "\u00e9", -(2**63), 2**64 - 1], "b": {}}
    assert reading.parse_json(json.dumps(value).encode(), "x") == value
    assert reading.parse_json("\ufeff[]".encode(), "x") == []
    assert reading.parse_json("[" * 100 + "]" * 100, "x")


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("[" * 101 + "]" * 101, "deeper"),
        ("[" * 1_000_000, "deeper"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "deeper"),
        ("9" * 5000, "64 bits"),
        ("[-9223372036854775809]", "64 bits"),
        ("18446744073709551616", "64 bits"),
        ("1e999", "not finite"),
        ("[-Infinity]", "-Infinity"),
        ("NaN", "NaN"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[1", "JSON"),
        ("", "JSON"),
        (b"\xff\xfe", "UTF-8"),
        ("[]".encode("utf-16"), "UTF-8"),
    ],
)  # fmt: skip
def test_json_that_is_refused(text: str | bytes, wrong: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    assert wrong in _refusal(reading.parse_json, data, "x.json")


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("a = " + "[" * 5000, "deeper"),
        ("a = " + "{b=" * 5000, "deeper"),
        ("a = " + "[" * 200 + "]" * 200, "deeper"),
        ("a = " + "9" * 5000, "64 bits"),
        ("a = 0x" + "f" * 5000, "64 bits"),
        ("a = 1e999", "not finite"),
        ("a = nan", "not finite"),
        ("a = -inf", "not finite"),
        (".".join("a" * 30000) + " = 1", "parts"),
        ('"x" . ' * 17 + "a = 1", "parts"),
        ("[" + ".".join("a" * 17) + "]", "parts"),
        ("a = '" + "x" * 70_000 + "'", "KiB"),
        ("a = 2026-99-99", "TOML"),
        ("a", "TOML"),
        ("\x00", "TOML"),
    ],
)  # fmt: skip
def test_toml_that_is_refused(text: str, wrong: str) -> None:
    start = time.monotonic()
    assert wrong in _refusal(reading.parse_toml, text, "x.toml")
    assert time.monotonic() - start < 5


def test_toml_is_what_toml_says() -> None:
    text = 'a.b = 1\nc = "1.2.3.4.5.6.7.8.9.10"\n[d]\ne = 1.5\nf = [1, 2]\n'
    assert reading.parse_toml(text, "x") == {
        "a": {"b": 1}, "c": "1.2.3.4.5.6.7.8.9.10", "d": {"e": 1.5, "f": [1, 2]},
    }  # fmt: skip


# --- archives ---


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _open(data: bytes) -> None:
    with reading.open_archive(data, "a.zip") as archive:
        archive.verify()


def test_archives_are_read(tmp_path: Path) -> None:
    members = {"a.txt": b"abc" * 1000, "b/c": b"", "d": bytes(3 << 20)}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / "a.zip"
        path.write_bytes(_zip(members, method))
        for source in (path, path.read_bytes()):
            with reading.open_archive(source) as archive:
                assert archive.names == tuple(members)
                assert {name: archive.read(name) for name in archive.names} == members
                archive.verify()
                assert "does not contain x" in _refusal(archive.read, "x")
                assert "a.txt of 2.9 KiB" in _refusal(archive.read, "a.txt", 10)
                archive.extract("d", tmp_path / "d")
                assert (tmp_path / "d").read_bytes() == members["d"]
                assert "does not contain x" in _refusal(archive.extract, "x", tmp_path / "x")
                (tmp_path / "d").unlink()


def _patched(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """Returns an archive with bytes of a member's entry in the directory replaced."""
    place = data.index(b"PK\1\2")
    while data[place + 46 : place + 46 + len(name)] != name:
        place = data.index(b"PK\1\2", place + 1)
    return data[: place + offset] + value + data[place + offset + len(value) :]


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "C:\\a", "a\\..\\b", "a//b", "."])
def test_members_outside_are_refused(name: str) -> None:
    data = _zip({"x" * len(name): b"1"})
    data = data.replace(b"x" * len(name), name.encode())
    assert "outside" in _refusal(_open, data)


def test_links_devices_and_secrets_are_refused() -> None:
    for mode in (0o120777, 0o020666, 0o010644):
        info = zipfile.ZipInfo("link")
        info.external_attr = mode << 16
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(info, "/etc/passwd")
        assert "link or a device" in _refusal(_open, buffer.getvalue())
    data = _zip({"a": b"1"})
    assert "encrypted" in _refusal(_open, _patched(data, b"a", 8, b"\1\0"))
    for method in (12, 14, 99):
        assert f"method {method}" in _refusal(
            _open, _patched(data, b"a", 10, struct.pack("<H", method))
        )
    assert "twice" in _refusal(_open, _zip({"a": b"1", "b": b"2"}).replace(b"b", b"a"))


def test_archives_that_inflate_are_refused_by_what_they_declare() -> None:
    one = _zip({"a": bytes(4 << 20)})
    sizes = struct.pack("<I", 0x7FFFFFFF)
    text = _refusal(_open, _patched(one, b"a", 24, sizes))
    assert "2.00 GiB" in text and "uncompressed" in text
    many = _zip({f"m{i}": b"" for i in range(reading.MEMBERS_LIMIT + 1)})
    assert "10,001 files" in _refusal(_open, many)


def test_members_that_inflate_beyond_what_they_declare_stay_small() -> None:
    data = _zip({"a": bytes(200 << 20)})
    lying = _patched(data, b"a", 24, struct.pack("<I", 100))
    tracemalloc.start()
    assert "damaged" in _refusal(_open, lying)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_directories_are_bounded() -> None:
    data = bytearray(_zip({"a": b"1"}))
    end = data.rindex(b"PK\5\6")
    struct.pack_into("<I", data, end + 12, 0x7FFFFFFF)
    _refusal(_open, bytes(data))
    padded = bytes(20 << 20) + _zip({"a": b"1"})
    end = padded.rindex(b"PK\5\6")
    large = bytearray(padded)
    struct.pack_into("<II", large, end + 12, 19 << 20, 0)
    assert "too long" in _refusal(_open, bytes(large))


def test_damage_of_every_byte_ends_in_one_line() -> None:
    """Any exception but UnreadableFileError fails."""
    data = _zip({"config.json": b'{"a": 1}', "w": bytes(range(256))})
    refused = 0
    for place in range(len(data)):
        for value in (0, 255, data[place] ^ 1):
            damaged = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                _open(damaged)
            except UnreadableFileError:
                refused += 1
    assert refused > len(data)


def test_cut_archives_end_in_one_line() -> None:
    data = _zip({"config.json": b'{"a": 1}', "w": bytes(range(256))})
    for size in range(len(data) - 1):
        _refusal(_open, data[:size])


def test_keras_archives(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    members = {"config.json": b'{"class_name": "X"}', "model.weights.h5": b"w"}
    path.write_bytes(_zip(members))
    assert reading.check_keras_archive(path) == ({"class_name": "X"}, {})
    path.write_bytes(_zip({**members, "metadata.json": b'{"keras_version": "3.0"}'}))
    assert reading.check_keras_archive(path)[1] == {"keras_version": "3.0"}
    path.write_bytes(_zip({"model.weights.h5": b"w"}))
    assert "without config.json" in _refusal(reading.check_keras_archive, path)
    path.write_bytes(_zip({**members, "config.json": b"[" * 100_000}))
    assert "config.json is not valid JSON" in _refusal(reading.check_keras_archive, path)


# --- arrays ---


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _headed(header: str, body: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + body


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array(5, np.int64),
        np.zeros((0, 3), np.uint8),
        np.array(["a", "bc"]),
        np.array([True, False]),
        np.arange(4, dtype=">i2"),
    ],
)
def test_arrays_are_what_numpy_wrote(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=array)
    for read in (
        reading.read_arrays(path),
        reading.read_arrays(path.read_bytes()),
        *reading.read_arrays(tmp_path / "a.npz").values(),
    ):
        assert read.dtype == array.dtype and read.shape == array.shape
        assert read.flags.writeable and read.flags.aligned
        np.testing.assert_array_equal(read, array)


_CLAIM = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"


@pytest.mark.parametrize(
    "data, wrong",
    [
        (_headed(_CLAIM % "805306368"), "6.00 GiB"),
        (_headed(_CLAIM % ("9" * 30)), "are present"),
        (_headed(_CLAIM % ("9" * 5000)), "header"),
        (_headed(_CLAIM % ", ".join(["9" * 19] * 20)), "more than 8 EiB"),
        (_headed(_CLAIM % "-1"), "shape"),
        (_headed(_CLAIM % "0, 1999999999999999999"), "claims"),
        (_headed(_CLAIM % ("(" * 5000)), "header"),
        (_headed(_CLAIM % ("1," * 40)), "shape"),
        (_headed("(" * 9000), "header"),
        (_headed("{'descr': '<f8'"), "header"),
        (_headed("x" * 60_000, version=1), "header"),
        (_headed("x" * 60_000, version=2), "header"),
        (_headed(_CLAIM.replace("<f8", "|O") % "1", b"\x80\x04K\x01."), "Python objects"),
        (_headed(_CLAIM.replace("'<f8'", "[('a', '<f8')]") % "1", bytes(8)), "not of numbers"),
        (_headed(_CLAIM.replace("<f8", "<U0") % "1000000000000"), "not of numbers"),
        # Newer versions of NumPy do not read this type at all.
        (_headed(_CLAIM.replace("<f8", "<U999999999") % "1"), "not of numbers|readable header"),
        (b"\x93NUMPY\x03\x00", "header"),
        (b"\x93NUM", "header"),
        (b"", "neither"),
        (b"GIF89a", "neither"),
        (_zip({"a.txt": b"1"}), "not an .npy"),
        (_zip({"a.npy": _headed(_CLAIM % "805306368")}), "'a' that claims 6.00 GiB"),
    ],
)
def test_arrays_that_are_refused(data: bytes, wrong: str) -> None:
    tracemalloc.start()
    assert re.search(wrong, _refusal(reading.read_arrays, data, "x.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_two_gigabytes_of_zeros_in_a_small_file(tmp_path: Path) -> None:
    """The real thing, in a process whose memory is measured."""
    path = tmp_path / "zeros.keras"
    # Deflating 2 GiB takes long; one stream of 16 MiB repeated is the same to a reader.
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = block.compress(bytes(1 << 24)) + block.flush(zlib.Z_FULL_FLUSH)
    size, crc = 128 << 24, 0
    for _ in range(128):
        crc = zlib.crc32(bytes(1 << 24), crc)
    body = first * 128 + b"\x03\x00"
    name = b"model.weights.h5"
    tail = struct.pack("<HHHIIIHH", 8, 0, 0, crc, len(body), size, len(name), 0)
    local = b"PK\3\4" + struct.pack("<HH", 20, 0) + tail + name
    entry = b"PK\1\2" + struct.pack("<HHH", 20, 20, 0) + tail
    entry += struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local + body), 0)
    path.write_bytes(local + body + entry + end)
    with zipfile.ZipFile(path) as archive:  # It is a sound archive, and that large.
        assert archive.getinfo("model.weights.h5").file_size == 2 << 30
    assert path.stat().st_size < 9 << 20
    code = (
        "import sys\nfrom edgecompress.core import errors, reading\n"
        "try: reading.check_keras_archive(sys.argv[1])\n"
        "except errors.ModelFileError as error: print(error)\n"
        # Not ru_maxrss: it starts with what the process had that this one was forked from.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, path], capture_output=True, text=True, check=True
    )
    text, peak = done.stdout.splitlines()
    assert "to 2.00 GiB" in text
    assert int(peak) < 150_000  # KiB; numpy alone takes 30,000


@pytest.mark.parametrize(
    ("length", "padding", "problem"),
    [
        ("3", 200, None),
        ("3", 4000, "no readable header"),
        # numpy's reader of such literals takes minutes for a long one, a tenth of a second for a
        # short one, and an archive holds thousands.
        ("3L", 200, "was written by Python 2: read and save it once"),
        ("3L", 4000, "no readable header"),
    ],
)
def test_headers_that_take_long_to_parse_are_refused(
    length: str, padding: int, problem: str | None
) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({length},), }}".encode()
    header = text + b" " * padding + b"\n"
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(12)
    if problem is None:
        assert reading.read_arrays(data).tolist() == [0, 0, 0]
    else:
        assert problem in _refusal(reading.read_arrays, data)
