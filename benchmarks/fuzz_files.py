"""Reads mutated files of every kind in this process's children, and prints what became of them.

A file may be read or refused in one line. Anything else is a failure: a traceback, more than 10 s,
more than 2 GiB, a file left behind.

Usage: `python benchmarks/fuzz_files.py [--flatbuffers 20000] [--others 5000] [--seed 0]`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "fuzz"))

import mutations  # noqa: E402

from edgecompress.core import bundle, reading, record  # noqa: E402
from edgecompress.core.errors import EdgeCompressError  # noqa: E402
from edgecompress.core.flatbuffer import read_tflite  # noqa: E402
from edgecompress.core.terminal import SafeConsole  # noqa: E402
from edgecompress.inspection.table import render  # noqa: E402
from edgecompress.inspection.tflite import inspect_tflite  # noqa: E402
from edgecompress.targets.checks import check  # noqa: E402
from edgecompress.targets.measurement import parse_measurement  # noqa: E402
from edgecompress.targets.profile import load_target  # noqa: E402

SECONDS = 10
MEMORY = 2 << 30
_TARGETS = [load_target(n) for n in ("cortex-m4", "cortex-m55", "nucleo-l4r5zi", "pixel-8")]


def _flatbuffer(path: Path) -> None:
    model = read_tflite(path)
    render(inspect_tflite(model), SafeConsole(file=io.StringIO()))
    for target in _TARGETS:
        check(model, target).to_dict()


def _json(path: Path) -> None:
    data = path.read_bytes()
    (path.parent / bundle.BUNDLE_FILE).write_bytes(data)
    record.sidecar_path(path).write_bytes(data)
    refused: EdgeCompressError | None = None
    for read in (
        lambda: bundle.read_bundle(path.parent),
        lambda: parse_measurement(data, path.name),
        lambda: record.read_record(path),
    ):
        try:
            read()
        except EdgeCompressError as error:
            refused = error
    if refused is not None:
        raise refused


# Kind -> seeds, how they are mutated, what reads them.
_KINDS: dict[str, tuple[Callable[..., bytes], Callable[[Path], object]]] = {
    "archive": (mutations.zip_archive, reading.check_keras_archive),
    "npz": (mutations.prefixed, reading.read_arrays),
    "json": (mutations.json_text, _json),
    "toml": (mutations.toml_text, load_target),
    "flatbuffer": (mutations.flatbuffer, _flatbuffer),
}
_SUFFIXES = {"archive": ".keras", "npz": ".npz", "json": ".json", "toml": ".toml"}


def _one(kind: str, seeds: list[bytes], seed: int, path: Path) -> str:
    mutate, read = _KINDS[kind]
    random = np.random.default_rng(seed)
    data = mutate(seeds[seed % len(seeds)], random)
    path.write_bytes(data[1:] if kind == "npz" else data)
    signal.alarm(SECONDS)
    try:
        read(path)
    except EdgeCompressError as error:
        return f"refused: {type(error).__name__}" if "\n" not in str(error) else "two lines"
    except TimeoutError:
        return "HANG"
    except BaseException as error:
        return f"TRACEBACK {kind} seed {seed}: {type(error).__name__}: {str(error)[:80]}"
    finally:
        signal.alarm(0)
    return "read"


def _time_up(number: int, frame: object) -> None:
    raise TimeoutError


def _batch(kind: str, first: int, count: int) -> tuple[Counter[str], int, list[str]]:
    """Returns how a batch ended, the peak in KiB, and what lies where nothing should."""
    signal.signal(signal.SIGALRM, _time_up)
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY, 4 * MEMORY))
    seeds = [path.read_bytes() for path in sorted((HERE / "fuzz" / "corpus" / kind).iterdir())]
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        here = Path(folder) / "here"
        work = Path(folder) / "work"
        here.mkdir()
        work.mkdir()
        before = Path.cwd()
        os.chdir(here)
        stack.callback(os.chdir, before)
        path = work / f"x{_SUFFIXES.get(kind, '.tflite')}"
        for seed in range(first, first + count):
            found[_one(kind, seeds, seed, path)] += 1
        own = {path, work / bundle.BUNDLE_FILE, record.sidecar_path(path), here, work}
        left = [str(p) for p in Path(folder).rglob("*") if p not in own]
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, left


def main() -> int:
    """Runs all and prints a row for each kind."""
    parser = argparse.ArgumentParser(description="Reads mutated files.")
    parser.add_argument("--flatbuffers", type=int, default=20_000)
    parser.add_argument("--others", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    failed = False
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for kind in _KINDS:
            total = options.flatbuffers if kind == "flatbuffer" else options.others // 4
            start = time.monotonic()
            jobs = [
                (kind, options.seed + first, min(250, total - first))
                for first in range(0, total, 250)
            ]
            ends: Counter[str] = Counter()
            peak, left = 0, []
            for counter, kib, more in pool.starmap(_batch, jobs, chunksize=1):
                ends += counter
                peak, left = max(peak, kib), [*left, *more]
            wrong = {k: n for k, n in ends.items() if k != "read" and not k.startswith("refused")}
            failed |= bool(wrong or left or peak > MEMORY >> 10)
            refused = {k[9:]: n for k, n in ends.items() if k.startswith("refused")}
            print(
                f"{kind}: {total} inputs, {ends['read']} read, refused {refused}, "
                f"{sum(n for k, n in wrong.items() if k != 'HANG')} tracebacks, {ends['HANG']} "
                f"hangs, peak {peak >> 10} MiB, {len(left)} files outside, "
                f"{time.monotonic() - start:.0f} s"
            )
            for text, number in list(wrong.items())[:20]:
                print(f"  {number} x {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
