"""What same_outputs.py compares of a file or report: all but what varies from run to run."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# What an earlier and a later run of one tree do not have in common, and why.
VOLATILE = {
    "tool.argv, tool.version": "name of the program's file and of the release",
    "time, time_utc, date_saved": "time of day",
    "seconds": "duration of a stage of training",
    "host_latency_us": "latency measured on this computer",
    "values of checks whose how_known is measured_host": "latency measured on this computer; the "
    "names of the values are compared",
    "times in sentences that say `on this computer`": "latency measured on this computer",
    "numbers and drawings of report.html beside such a latency": "they show it",
    "[ 0.0 s] on standard error": "time since the start",
    "SHA-256 of a .keras file that the command wrote": "Keras puts the time of day into it; its "
    "parts are compared, and the hash of them",
    "paths of the package and of temporary folders": "each tree and run has its own",
}
MARK = "(volatile)"


def normalise(value: Any, key: str = "", path: str = "") -> Any:
    """Returns a JSON value whose volatile parts are marks."""
    if isinstance(value, dict):
        if value.get("how_known") == "measured_host":
            kept = ("rule", "unit", "limit", "how_known")
            return {k: v if k in kept else _marks(v) for k, v in value.items()}
        return {k: normalise(v, k, f"{path}.{k}" if path else k) for k, v in value.items()}
    if isinstance(value, list) and path != "tool.argv":
        return [normalise(part, key, path) for part in value]
    if value is not None and (
        path in ("tool.argv", "tool.version")
        or key in ("time", "time_utc", "date_saved", "host_latency_us")
        or (key == "seconds" and isinstance(value, float))
    ):
        return MARK
    if isinstance(value, str) and "on this computer" in value:
        return re.sub(r"[\d.,]+ (ns|us|ms|s)\b", f"{MARK} s", value)
    return value


def _marks(value: Any) -> Any:
    return {k: _marks(v) for k, v in value.items()} if isinstance(value, dict) else MARK


def measured_here(value: Any) -> bool:
    """Says whether a raw report holds a latency of this computer."""
    if isinstance(value, dict):
        if value.get("how_known") == "measured_host" or value.get("host_latency_us") is not None:
            return True
        return any(map(measured_here, value.values()))
    return isinstance(value, list) and any(map(measured_here, value))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Places:
    """What differs between trees and runs: paths, and hashes of files that hold a date.

    `hashes` leads from such a hash to that of the file's parts without the date.
    """

    work: str
    package: str
    hashes: dict[str, str] = field(default_factory=dict)

    def plain(self, text: str) -> str:
        """Returns a text without them."""
        text = text.replace(self.package, "PACKAGE")
        text = re.sub(re.escape(f"{self.work}/tmp") + r"[^\s'\",:;)]*", "TEMPORARY", text)
        for found, parts in self.hashes.items():
            text = text.replace(found, f"SHA-256 of parts {parts}")
        return text.replace(self.work, "WORK")

    def with_files(self, files: Iterable[Path]) -> Places:
        """Returns them with the hashes of Keras files, which hold the time of day."""
        # By content: two files of one second may be equal, or not.
        found = {
            _sha(p.read_bytes()): _sha(json.dumps(digest(p, self, False)).encode())
            for p in files
            if p.suffix == ".keras"
        }
        return replace(self, hashes=self.hashes | found)


def digest(path: Path, places: Places, measured: bool) -> Any:
    """Returns what is compared of a file: a hash, or the normalised values of a JSON file."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return normalise(json.loads(places.plain(data.decode())))
    if path.suffix == ".html":
        text = places.plain(data.decode())
        text = re.sub(r"PACKAGE\S*__main__\.py", "PROGRAM", text)
        if measured:
            text = re.sub(r"(?s)<svg.*?</svg>", "", text)
            text = re.sub(r"\d[\d.,]*( (ns|us|ms|s)\b)?", "0", text)
        return _sha(text.encode())
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in sorted(archive.namelist())}
        return {
            name: normalise(json.loads(part)) if name.endswith(".json") else _sha(part)
            for name, part in parts.items()
        }
    return _sha(data)
