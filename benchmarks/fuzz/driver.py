"""What the harnesses share: atheris, the oracle, a planted bug.

An input may be read or refused with one of the package's own errors, of one line. Any other
exception, more than 10 s or more than 2 GiB of memory for one input is a finding: libFuzzer prints
it, keeps the input and ends with a status that is not 0.

Usage: `python benchmarks/fuzz/fuzz_json.py [--seconds 60] [--plant] [input file ...]`. With files,
these are run once. `--plant` adds a bug to find: a harness that ends with 0 then is broken.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import atheris
import numpy as np

HERE = Path(__file__).resolve().parent
SECONDS_AN_INPUT = 10
MEGABYTES = 2048

Target = Callable[[bytes], None]
Mutator = Callable[[bytes, np.random.Generator], bytes]


class PlantedError(Exception):
    """The bug that `--plant` adds."""


def _planted(data: bytes) -> None:
    if len(data) % 7 == 5:
        raise PlantedError


def _guarded(target: Target, plant: bool, keep: Path) -> Target:
    from edgecompress.core.errors import EdgeCompressError

    def judged(data: bytes) -> None:
        if plant:
            _planted(data)
        try:
            target(data)
        except EdgeCompressError as error:
            if "\n" in str(error):
                raise AssertionError(f"an error of several lines: {error!r}") from error

    def run(data: bytes) -> None:
        try:
            judged(data)
        except BaseException:
            # libFuzzer keeps inputs that hang or fill the memory, not those that raise.
            (keep / f"raised-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise

    return run


def main(kind: str, target: Target, mutator: Mutator) -> None:
    """Runs a harness from the command line.

    Args:
        kind: Folder of its seeds in `corpus`.
        target: Called with each input.
        mutator: Makes an input from another one. Half of the inputs come from libFuzzer's own
            all the same.
    """
    parser = argparse.ArgumentParser(description=f"Fuzzes what reads {kind} files.")
    parser.add_argument("files", nargs="*", help="run these inputs once, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--plant", action="store_true", help="add a bug that must be found")
    parser.add_argument("--keep", type=Path, help="folder for the input that is a finding")
    options = parser.parse_args()
    keep = (options.keep or Path(tempfile.gettempdir()) / "edgecompress-fuzz").resolve()
    keep.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-timeout={SECONDS_AN_INPUT}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-artifact_prefix={keep}/{kind}-",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    # libFuzzer writes what it finds interesting into the first folder; it ends without atexit.
    work = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    try:
        if options.files:
            arguments += [str(Path(name).resolve()) for name in options.files]
        else:
            arguments.append(f"-max_total_time={options.seconds}")
            grown = work / "corpus"
            grown.mkdir()
            arguments += [str(grown), str(HERE / "corpus" / kind)]
        # Whatever the readers write by mistake lands here, and is found below.
        place = work / "place"
        place.mkdir()
        os.chdir(place)
        _run(arguments, _guarded(target, options.plant, keep), mutator)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(arguments: list[str], target: Target, mutator: Mutator) -> None:
    child = os.fork()
    if not child:
        _fuzz(arguments, target, mutator)
    _, status = os.waitpid(child, 0)
    left = sorted(p.name for p in Path.cwd().iterdir())
    if left:
        sys.exit(f"the readers left {left}")
    sys.exit(os.waitstatus_to_exitcode(status) % 256)


def _fuzz(arguments: list[str], target: Target, mutator: Mutator) -> NoReturn:
    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        if seed % 2:
            return mutator(data, np.random.default_rng(seed))[:longest]
        return atheris.Mutate(data, longest)

    code = 1
    try:
        atheris.Setup(arguments, target, custom_mutator=mutate, enable_python_coverage=True)
        atheris.Fuzz()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The parent cleans up.
        os._exit(code)
