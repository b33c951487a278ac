"""Reads mutated files of every kind in this process's children, and prints what became of them.

A file may be read or refused in one line. Anything else is a failure: a traceback, more than 10 s,
more than 2 GiB, a file left behind. Keras and HDF5 files go through all that is checked before
TensorFlow sees them, and some of them through the commands, within 60 s. libhdf5 may crash on
damage: it runs in a process of its own there, as it does in the commands, and crashes are counted.

Usage: `python benchmarks/fuzz_files.py [--flatbuffers 20000] [--others 5000] [--models 2500]
[--full 40] [--seed 0]`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, str(HERE / "fuzz"))

import mutations  # noqa: E402

from edgecompress.converters import loaders  # noqa: E402
from edgecompress.core import bundle, reading, record  # noqa: E402
from edgecompress.core.errors import EdgeCompressError  # noqa: E402
from edgecompress.core.terminal import SafeConsole  # noqa: E402
from edgecompress.flatbuffers.reading import read_tflite  # noqa: E402
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
    """Gives a text to each of its readers, with the files that the seed of a bundle names."""
    data = path.read_bytes()
    folder, model = path.parent, path.parent / "m.tflite"
    (folder / "golden").mkdir(exist_ok=True)
    for name in mutations.BUNDLE_FILES:
        (folder / name).write_bytes(mutations.FILE)
    (folder / bundle.BUNDLE_FILE).write_bytes(data)
    record.sidecar_path(model).write_bytes(data)
    read, refused = 0, None
    for reader in (
        lambda: bundle.read_bundle(folder),
        lambda: parse_measurement(data, path.name),
        lambda: record.read_record(model),
    ):
        try:
            reader()
            read += 1
        except EdgeCompressError as error:
            refused = error
            if "\n" in str(error):
                raise ValueError("an error of two lines") from error
    if not read and refused is not None:
        raise refused


# Kind -> seeds, how they are mutated, what reads them.
_KINDS: dict[str, tuple[Callable[..., bytes], Callable[[Path], object]]] = {
    "archive": (mutations.zip_archive, reading.check_keras_archive),
    "npz": (mutations.prefixed, reading.read_arrays),
    "json": (mutations.json_text, _json),
    "toml": (mutations.toml_text, load_target),
    "flatbuffer": (mutations.flatbuffer, _flatbuffer),
    "keras": (mutations.keras_archive, loaders.check_archive),
    "hdf5": (mutations.hdf5, loaders.check_hdf5),
}
_SUFFIXES = {
    "archive": ".keras", "npz": ".npz", "json": ".json", "toml": ".toml", "keras": ".keras",
    "hdf5": ".h5",
}  # fmt: skip
_MODELS = ("keras", "hdf5")
_CRASH = "crash in its process"


def _make_seeds(folder: Path) -> None:
    """Saves small models in every form of Keras file."""
    import logging

    import h5py
    import keras
    import tf_keras

    logging.disable()
    warnings.simplefilter("ignore")
    for name, library in (("keras3", keras), ("keras2", tf_keras)):
        library.utils.set_random_seed(0)
        layers = library.layers
        model = library.Sequential(
            [
                layers.InputLayer((6, 6, 1)),
                layers.Conv2D(3, 3, activation="relu", name="conv"),
                layers.BatchNormalization(name="norm"),
                layers.Flatten(),
                layers.Dense(4, activation="softmax", name="head"),
            ]
        )
        for kind in _MODELS:
            (folder / kind).mkdir(exist_ok=True)
            model.save(folder / kind / f"{name}{_SUFFIXES[kind]}")
    with (
        h5py.File(folder / "hdf5" / "keras3.h5") as source,
        h5py.File(folder / "hdf5" / "small.h5", "w") as target,
    ):
        target.attrs.update(source.attrs)

        def copy(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                packed = {"compression": "gzip", "shuffle": True} if node.shape else {}
                target.create_dataset(name, data=node[()], **packed)
            else:
                target.require_group(name).attrs.update(node.attrs)

        source.visititems(copy)


def _apart(kind: str, seeds: list[bytes], seed: int, path: Path) -> str:
    """Returns what `_one` does, from a process that may crash or hang in a library's own code."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            # Two above the alarm, which comes first where Python runs.
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 2, SECONDS + 2))
            os.write(writer, _one(kind, seeds, seed, path).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status and os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL):
        return "HANG"
    if status and os.WIFEXITED(status):
        return f"TRACEBACK {kind} seed {seed}: the script itself"
    return told if told and not status else _CRASH


def _full(kind: str, seeds: list[bytes], seed: int, folder: Path) -> str:
    """Gives one file to a command as a user would, and returns how that ended."""
    path = folder / f"x{_SUFFIXES[kind]}"
    path.write_bytes(_KINDS[kind][0](seeds[seed % len(seeds)], np.random.default_rng(seed)))
    command = [sys.executable, "-P", "-m", "edgecompress"]
    rest = ["inspect", str(path)] if seed % 2 else ["export", str(path), "-t", "host", "-o", "out"]
    started = folder / "here"
    started.mkdir()
    before = path.read_bytes()
    try:
        done = subprocess.run(
            [*command, *rest, "-q"], cwd=started, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "HANG"
    if "Traceback" in done.stderr or done.returncode < 0 or "bug in edgecompress" in done.stderr:
        return f"TRACEBACK {kind} seed {seed}: {done.stderr[-200:]!r}"
    wrong = {p.name for p in folder.iterdir()} - {path.name, "here"}
    wrong |= {p.name for p in started.iterdir()} - {"out"}
    if wrong or path.read_bytes() != before or (done.returncode == 1 and any(started.iterdir())):
        return f"LEFT {kind} seed {seed}: {sorted(wrong) or 'changes'}"
    if done.returncode == 1:
        return "refused: one line" if done.stderr.count("\n") == 1 else "two lines"
    return "read"


def _full_in(kind: str, corpus: Path, seed: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _full(kind, _seeds(corpus, kind), seed, Path(folder))


def _seeds(corpus: Path, kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((corpus / kind).iterdir())]


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


def _batch(
    kind: str, corpus: Path, first: int, count: int
) -> tuple[Counter[str], int, list[str], list[int]]:
    """Returns how a batch ended, the peak in KiB, what lies where nothing should, what was read."""
    signal.signal(signal.SIGALRM, _time_up)
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY, 4 * MEMORY))
    seeds = _seeds(corpus, kind)
    one = _one
    if kind in _MODELS:
        # Names that are on no list are looked up there.
        import keras
        import tf_keras  # noqa: F401

        keras.saving.get_registered_object("")
        one = _apart
    found: Counter[str] = Counter()
    good: list[int] = []
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
            end = one(kind, seeds, seed, path)
            found[end] += 1
            good += [seed] if end == "read" else []
        own = {path, work / bundle.BUNDLE_FILE, here, work}
        if kind == "json":
            own |= {work / name for name in ("golden", *mutations.BUNDLE_FILES)}
            own.add(record.sidecar_path(work / mutations.BUNDLE_FILES[0]))
        left = [str(p) for p in Path(folder).rglob("*") if p not in own]
    who = resource.RUSAGE_CHILDREN if kind in _MODELS else resource.RUSAGE_SELF
    return found, resource.getrusage(who).ru_maxrss, left, good


def main() -> int:
    """Runs all and prints a row for each kind."""
    parser = argparse.ArgumentParser(description="Reads mutated files.")
    parser.add_argument("--flatbuffers", type=int, default=20_000)
    parser.add_argument("--others", type=int, default=5_000)
    parser.add_argument("--models", type=int, default=2_500)
    parser.add_argument("--full", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    totals = dict.fromkeys(("archive", "npz", "json", "toml"), options.others // 4)
    totals["flatbuffer"] = options.flatbuffers
    totals |= dict.fromkeys(_MODELS, options.models // 2)
    sound = True
    good: dict[str, list[int]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, context.Pool(options.processes) as pool:
        made = Path(name)
        if options.models or options.full:
            # In a process of its own, whose memory is not counted.
            maker = context.Process(target=_make_seeds, args=(made,))
            maker.start()
            maker.join()
        for kind in _KINDS:
            start = time.monotonic()
            corpus = made if kind in _MODELS else HERE / "fuzz" / "corpus"
            jobs = [
                (kind, corpus, options.seed + first, min(250, totals[kind] - first))
                for first in range(0, totals[kind], 250)
            ]
            ends: Counter[str] = Counter()
            peak, left = 0, []
            for counter, kib, more, read in pool.starmap(_batch, jobs, chunksize=1):
                ends += counter
                good.setdefault(kind, []).extend(read)
                peak, left = max(peak, kib), [*left, *more]
            sound &= not left and peak <= MEMORY >> 10
            memory = f"peak {peak >> 10} MiB, {len(left)} files outside, "
            sound &= _print(kind, ends, memory, start)
        for kind in _MODELS:
            start = time.monotonic()
            # What the checks let through is what TensorFlow sees.
            full = [(kind, made, seed) for seed in good.get(kind, ())[: options.full // 2]]
            ends = Counter(pool.starmap(_full_in, full, chunksize=1))
            sound &= _print(f"{kind}, whole command", ends, "", start)
    return 0 if sound else 1


def _print(kind: str, ends: Counter[str], more: str, start: float) -> bool:
    """Prints the row of a kind; returns whether nothing is wrong in it."""
    refused = {k[9:]: n for k, n in ends.items() if k.startswith("refused")}
    good = {"read", _CRASH, *(f"refused: {name}" for name in refused)}
    wrong = {k: n for k, n in ends.items() if k not in good}
    crashes = f"{ends[_CRASH]} crashes of libhdf5, " if ends[_CRASH] else ""
    print(
        f"{kind}: {ends.total()} inputs, {ends['read']} read, refused {refused}, {crashes}"
        f"{sum(n for k, n in wrong.items() if k != 'HANG')} tracebacks, {ends['HANG']} hangs, "
        f"{more}{time.monotonic() - start:.0f} s",
        flush=True,
    )
    for text, number in list(wrong.items())[:20]:
        print(f"  {number} x {text}")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
