"""Damage to files that keeps most of their form, so that it reaches the readers behind the parser.

All functions take bytes and a numpy generator, and return bytes: the same ones for the same seed.
"""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# What stands in the place of a value. Some of it no writer of JSON writes.
_RAW = (
    "9" * 5000, "1e999", "-1e999", "NaN", "-Infinity", "1e308", "-0", "0", "-1", "1", "true",
    "null", '""', "[]", "{}", "9223372036854775807", "18446744073709551616", "1.5", "0.1e-400",
    '"\\ud800"', '"\\u0000"', '"../../etc/passwd"', '"/dev/zero"', '"\\u001b[2J\\n"', '"x"',
    "[" * 60 + "]" * 60, "[" * 20000, '{"a":' * 3000, '"' + "x" * 20000 + '"', "[1e999]",
)  # fmt: skip
_TOML = (
    "9" * 5000, "1e999", "inf", "-nan", "0x" + "f" * 4000, "-1", "0", "true", '""', "[]", "{}",
    '"\\u001b[2J"', "1979-05-27T07:32:00Z", "1979-99-99", "[" * 3000, "{a=" * 800, "'''x", '"60ms"',
    '"' + "9" * 5000 + 'KiB"', '"1e999GiB"', "9223372036854775808", "[[1], {a = 1}]", "1.5",
    '"/dev/zero"', '"\\ud800"', '"\\U0000202e"',
)  # fmt: skip

# What every file that the seed of a bundle names holds, and their names.
FILE = b"x"
BUNDLE_FILES = ("m.tflite", "golden/i.bin", "golden/o.bin")


def flatbuffer(data: bytes, random: np.random.Generator) -> bytes:
    """Damages a .tflite file as fuzz_flatbuffers does."""
    folder = str(Path(__file__).resolve().parents[1])
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import fuzz_flatbuffers

    try:
        return fuzz_flatbuffers.mutate(data, int(random.integers(1 << 31)))
    except Exception:  # What is not a flatbuffer any more has no fields to change.
        return any_bytes(data, random)


def any_bytes(data: bytes, random: np.random.Generator) -> bytes:
    """Flips bits, cuts, doubles, moves or overwrites a part with extremes."""
    if not data:
        return b"\0"
    changed = bytearray(data)
    size = len(changed)
    place = int(random.integers(size))
    length = int(random.integers(1, max(2, min(64, size))))
    choice = int(random.integers(6))
    if choice == 0:
        for _ in range(int(random.integers(1, 16))):
            changed[int(random.integers(size))] ^= 1 << int(random.integers(8))
    elif choice == 1:
        del changed[place:]
    elif choice == 2:
        changed[place:place] = changed[place : place + length] * int(random.integers(1, 200))
    elif choice == 3:
        del changed[place : place + length]
    elif choice == 4:
        value = int(random.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
        changed[place : place + 4] = struct.pack("<I", value)
    else:
        changed[place : place + length] = random.integers(0, 256, length, np.uint8).tobytes()
    return bytes(changed)


def _places(root: Any) -> list[tuple[Any, Any]]:
    """Returns every (container, key) of a parsed JSON."""
    found: list[tuple[Any, Any]] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys):
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    return found


def json_text(data: bytes, random: np.random.Generator) -> bytes:
    """Replaces, drops, doubles or renames values of a JSON text."""
    if random.random() < 0.25:
        return any_bytes(data, random)
    try:
        root = json.loads(data)
        places = _places(root)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return any_bytes(data, random)
    if not places:
        return str(random.choice(_RAW)).encode()
    marks: dict[str, str] = {}
    for number in range(int(random.integers(1, 4))):
        node, key = places[int(random.integers(len(places)))]
        choice = int(random.integers(5))
        try:
            if choice == 0:
                del node[key]
            elif choice == 1 and isinstance(node, dict):
                node[str(random.choice(["", "x", "__proto__", "\u202e\x1b"]))] = node.pop(key)
            elif choice == 2 and isinstance(node, list):
                node.extend(node[key : key + 1] * int(random.integers(1, 300)))
            else:
                mark = f"@{number}@"
                marks[f'"{mark}"'] = _RAW[int(random.integers(len(_RAW)))]
                node[key] = mark
        except (KeyError, IndexError, TypeError):  # An earlier change took it.
            continue
    text = json.dumps(root)
    for mark, raw in marks.items():
        text = text.replace(mark, raw)
    return text.encode()


def toml_text(data: bytes, random: np.random.Generator) -> bytes:
    """Replaces values, keys and headers of a TOML text, or drops and doubles lines."""
    if random.random() < 0.25:
        return any_bytes(data, random)
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(lines)))
        choice = int(random.integers(6))
        if choice < 3 and "=" in lines[place]:
            raw = _TOML[int(random.integers(len(_TOML)))]
            lines[place] = f"{lines[place].split('=')[0]}= {raw}"
        elif choice == 3:
            lines.insert(place, lines[int(random.integers(len(lines)))])
        elif choice == 4:
            lines[place] = re.sub(r"[\w-]+", lambda m: ".".join([m[0]] * 17), lines[place], count=1)
        else:
            lines[place] = str(random.choice(["", "[x]", "[[budgets]]", "[budgets]", "a.b.c = 1"]))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def npy(data: bytes, random: np.random.Generator) -> bytes:
    """Changes the header of an .npy content, its length included."""
    end = data.find(b"\n")
    if end < 10 or random.random() < 0.25:
        return any_bytes(data, random)
    header = data[10:end].decode("latin-1")
    numbers = ["0", "-1", "1", "99999999", "9" * 19, "9" * 5000, "(" * 900]
    kinds = ["|O", "<f2", "<c16", "|V4", "<U0", "<U999999999", "M8[s]", "x", ">i8"]
    number, kind = str(random.choice(numbers)), str(random.choice(kinds))
    choice = int(random.integers(5))
    if choice == 0:
        header = re.sub(r"\d+(?=[,)])", number, header, count=1)
    elif choice == 1:
        header = re.sub(r"'[<>|=][^']*'", repr(kind), header, count=1)
    elif choice == 2:
        header = header.replace("(", "(" + "1," * int(random.integers(1, 60)))
    elif choice == 3:
        header = header.replace("False", str(random.choice(["True", "1", "None", "[" * 300])))
    else:
        header = any_bytes(header.encode("latin-1"), random).decode("latin-1")
    body = header.encode("latin-1", "replace") + b"\n"
    version = int(random.choice([1, 1, 1, 2, 3, 9]))
    form = "<H" if version == 1 else "<I"
    size = struct.pack(form, min(len(body), 65535))
    return b"\x93NUMPY" + bytes([version, 0]) + size + body + data[end + 1 :]


def prefixed(data: bytes, random: np.random.Generator) -> bytes:
    """Changes an .npy content or an archive behind the byte that says which of them it is."""
    change = npy if data[:1] == b"m" else zip_archive
    return data[:1] + change(data[1:], random)


_NAMES = ("../x", "/x", "a\\b", "x\0y", "", "config.json", "C:x", "a/", "\u202e", "x" * 300)


def zip_archive(data: bytes, random: np.random.Generator) -> bytes:
    """Changes members (their checksums stay right), names and kinds, or fields of the directory."""
    if random.random() < 0.4:
        return _directory(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # Damaged already.
        return any_bytes(data, random)
    if not members:
        return any_bytes(data, random)
    name = list(members)[int(random.integers(len(members)))]
    content, mode, twice = members[name], 0, False
    change: Callable[[bytes, np.random.Generator], bytes] = any_bytes
    change = json_text if name.endswith(".json") else npy if name.endswith(".npy") else any_bytes
    choice = int(random.integers(6))
    if choice < 3:
        members[name] = change(content, random)
    elif choice == 3:
        members[_NAMES[int(random.integers(len(_NAMES)))]] = members.pop(name)
    elif choice == 4:
        mode = int(random.choice([0o120777, 0o010644, 0o060644, 0o040755]))
    else:
        twice = True
    buffer = io.BytesIO()
    method = int(random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(buffer, "w") as archive:
        for position, (key, value) in enumerate(members.items()):
            info = zipfile.ZipInfo(key)
            info.external_attr = mode << 16
            archive.writestr(info, value, method if position == 0 else zipfile.ZIP_STORED)
    return buffer.getvalue().replace(b"y.npy", b"x.npy") if twice else buffer.getvalue()


def _directory(data: bytes, random: np.random.Generator) -> bytes:
    """Overwrites a field of an entry of the directory, or of its end."""
    marks = [m.start() for m in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06)", data)]
    if not marks or random.random() < 0.25:
        return any_bytes(data, random)
    changed = bytearray(data)
    place = marks[int(random.integers(len(marks)))] + 4 + 2 * int(random.integers(21))
    value = int(random.choice([0, 1, 8, 9, 12, 14, 0xFF, 0x0800, 0x7FFF, 0xFFFF, 0x7FFFFFFF]))
    form = "<H" if value < 1 << 16 and random.random() < 0.6 else "<I"
    if place + 4 <= len(changed):
        struct.pack_into(form, changed, place, value)
    return bytes(changed)


def hdf5(data: bytes, random: np.random.Generator) -> bytes:
    """Changes attributes and datasets of an HDF5 file, or bytes of it; `data` must be sound."""
    import h5py

    choice = int(random.integers(5))
    if choice < 2:
        return any_bytes(data, random)
    if choice == 2:
        # Headers and trees lie at the start, before the values.
        end = min(len(data), 4096)
        return any_bytes(data[:end], random) + data[end:]
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        found: list[h5py.HLObject] = [file]
        file.visititems(lambda name, node: found.append(node))
        text = file.attrs.get("model_config")
        if choice == 3 and text is not None:
            content = text.encode() if isinstance(text, str) else bytes(text)
            # NumPy's fixed text: h5py takes no text of its own with a NUL in it.
            file.attrs["model_config"] = np.bytes_(json_text(content, random)[:60_000])
        else:
            datasets = [node for node in found if isinstance(node, h5py.Dataset)]
            node = datasets[int(random.integers(len(datasets)))]
            name, parent, dtype = node.name, node.parent, node.dtype
            del parent[name]
            _dataset(parent, name, dtype, random)
    return buffer.getvalue()


def _dataset(parent: Any, name: str, dtype: np.dtype, random: np.random.Generator) -> None:
    """Puts something else in the place of a dataset."""
    import h5py

    size = int(random.choice([1, 10, 1 << 20, 1 << 40]))
    choice = int(random.integers(7))
    if choice == 0:
        parent.create_dataset(name, (size,), dtype)
    elif choice == 1:
        parent.create_dataset(name, (size,), dtype, chunks=(min(size, 64),), compression="gzip")
    elif choice == 2:
        parent.create_dataset(name, (4,), dtype, external=[("/etc/passwd", 0, 4 * dtype.itemsize)])
    elif choice == 3:
        parent[name] = h5py.ExternalLink("other.h5", "/x")
    elif choice == 4:
        parent[name] = h5py.SoftLink("/")
    elif choice == 5:
        parent[name] = parent
    else:
        parent.create_dataset(name, (2,), h5py.string_dtype())[:] = "x" * 100


def keras_archive(data: bytes, random: np.random.Generator) -> bytes:
    """Changes the weights of a .keras file, or as `zip_archive` does; `data` must be sound."""
    if random.random() < 0.5:
        return zip_archive(data, random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as made:
        for info in source.infolist():
            content = source.read(info)
            if info.filename == "model.weights.h5":
                content = hdf5(content, random)
            made.writestr(info, content)
    return buffer.getvalue()
