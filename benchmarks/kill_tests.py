"""Kills processes that write (SIGKILL) and looks at what they leave.

First before each step that a write takes in the file system, every rename, link and swap among
them, then at random moments of it, then at random moments of whole exports. After each kill all
files are the old or all are the new ones, other files are untouched, and after the next run nothing
of the killed one is left.

Where two folders cannot be swapped, files take their places one by one: a kill in between leaves a
mix, which the next write into the folder ends.

Usage: `python benchmarks/kill_tests.py [--kills 200] [--exports 0] [--seed 0]`; exit code 1 where
something is wrong. Needs Linux. Without --exports it takes a minute; an export takes some 10 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgecompress.core import files as writer
from edgecompress.core.folders import PREFIX

_EVENTS = ("open", "os.", "shutil.", "tempfile.", "fcntl.", "ctypes.dlopen")
_RENAMES = ("os.rename", "os.link", "ctypes.dlopen")
_NAMES = ("model_int8.tflite", "model_int8.tflite.edgecompress.json", "c/model.cc", "c/model.h",
          "golden/int8_input_0.bin", "bundle.json", "report.html", "report.json")  # fmt: skip
_OTHERS = {"notes.txt": b"mine", "other_int8.tflite": b"theirs", "runs/1/log.txt": b"log"}
_PROGRAM = """
import keras, numpy as np, sys
keras.utils.set_random_seed(int(sys.argv[1]))
model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, "relu"),
                          keras.layers.Dense(3, "softmax")], name="m")
model.save("model.keras")
np.savez("x.npz", x=np.random.default_rng(0).normal(size=(32, 12)).astype("float32"))
"""


@dataclass(frozen=True)
class Case:
    """A way to write.

    Attributes:
        write: Writes files, name -> content, into the folder `root / "build"`.
        names: The files.
        before: Whether the folder is there before, with old files and those of others.
        mixes: Whether a kill may leave a mix for the next write to end.
    """

    write: Callable[[Path, dict[str, bytes]], object]
    names: tuple[str, ...] = _NAMES
    before: bool = True
    mixes: bool = False


def _together(root: Path, files: dict[str, bytes]) -> None:
    writer.write_together(root / "build", files)


def _here(root: Path, files: dict[str, bytes]) -> None:
    os.chdir(root / "build")
    writer.write_together(".", files)


def _linked(root: Path, files: dict[str, bytes]) -> None:
    if not (root / "link").is_symlink():
        (root / "link").symlink_to("build")
    writer.write_together(root / "link", files)


def _one_by_one(root: Path, files: dict[str, bytes]) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(22, "Invalid argument")

    writer.exchange = refuse
    writer.write_together(root / "build", files)


def _single(root: Path, files: dict[str, bytes]) -> None:
    (content,) = files.values()
    writer.write_atomic(root / "build" / "report.json", content)


CASES = {
    "folder with other files": Case(_together),
    "current folder": Case(_here),
    "link to a folder": Case(_linked),
    "new folder": Case(_together, before=False),
    "one file": Case(_single, names=("report.json",)),
    "no swap of folders": Case(_one_by_one, mixes=True),
}


def _files(case: Case, version: str, size: int = 1) -> dict[str, bytes]:
    return {name: f"{version} {name}".encode() * size for name in case.names}


def _prepare(case: Case, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if case.before:
        for name, data in {**_OTHERS, **_files(case, "old")}.items():
            (root / "build" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "build" / name).write_bytes(data)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(PREFIX) for p in path.relative_to(folder).parts)
    }


def _state(case: Case, root: Path, size: int = 1) -> str:
    """Returns `old`, `new`, `mix`, or `lost` where files of others are missing."""
    found = _content(root / "build")
    others = {name: data for name, data in found.items() if name not in case.names}
    if others != (_OTHERS if case.before else {}):
        return "lost"
    mine = {name: data for name, data in found.items() if name in case.names}
    if mine == (_files(case, "old") if case.before else {}):
        return "old"
    return "new" if mine == _files(case, "new", size) else "mix"


def _left(root: Path) -> list[str]:
    """Returns what a run has left: scratch folders, and whatever else nobody asked for."""
    return [str(p.relative_to(root)) for p in root.rglob("*") if p.name.startswith(".")]


def _child(work: Callable[[], object], before_step: int | None) -> tuple[int, list[str]]:
    """Runs `work` in a child that is killed before a step; returns its status and its steps."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        steps: list[str] = []

        def step(event: str, arguments: object) -> None:
            if event.startswith(_EVENTS):
                steps.append(event)
                if len(steps) - 1 == before_step:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(step)
            work()
            status = 0
        finally:
            os.write(write, "\n".join(steps).encode())
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode().split()
    return os.waitpid(child, 0)[1], said


def _judge(case: Case, root: Path, counts: Counter[str], size: int = 1) -> None:
    """Counts what a kill has left, and what the next run makes of it."""
    state = _state(case, root, size)
    counts["kills"] += 1
    if state == "mix" and case.mixes:
        counts["mix until the next run"] += 1
    else:
        counts[state] += 1
    counts["scratch until the next run"] += bool(_left(root))
    # The next run writes another file: what it ends is not what it writes.
    other = root / "build"
    if case.mixes:
        _child(lambda: writer.write_atomic(other / "notes.txt", b"mine"), None)
        counts["mix"] += _state(case, root, size) not in ("old", "new")
    _child(lambda: case.write(root, _files(case, "new", size)), None)
    counts["wrong after the next run"] += _state(case, root, size) != "new"
    counts["left behind"] += bool(_left(root))


def every_step(case: Case, root: Path, share: int = 1) -> Counter[str]:
    """Kills before each rename, link and swap, and before each `share`-th other step."""
    counts: Counter[str] = Counter()
    _prepare(case, root)
    status, steps = _child(lambda: case.write(root, _files(case, "new")), None)
    counts["wrong without a kill"] += bool(status) or _state(case, root) != "new"
    for number, event in enumerate(steps):
        if event in _RENAMES or number % share == 0:
            _prepare(case, root)
            status, _ = _child(lambda: case.write(root, _files(case, "new")), number)
            counts["not killed"] += not os.WIFSIGNALED(status)
            counts["at renames"] += event in _RENAMES
            _judge(case, root, counts)
    return counts


def random_moments(case: Case, root: Path, kills: int, seed: int) -> Counter[str]:
    """Kills at random moments of the writing of files of some MB."""
    counts: Counter[str] = Counter()
    size = 20_000
    moments = random.Random(seed)
    longest = 0.0
    for number in range(kills + 3):
        _prepare(case, root)
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                case.write(root, _files(case, "new", size))
            finally:
                os._exit(0)
        if number >= 3:
            time.sleep(moments.random() * longest)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if number < 3:
            longest = max(longest, 1.1 * (time.monotonic() - begin))
        else:
            _judge(case, root, counts, size)
    return counts


def whole_exports(root: Path, kills: int, seed: int) -> Counter[str]:
    """Kills `edgecompress export` at random moments."""
    counts: Counter[str] = Counter()
    moments = random.Random(seed)
    shutil.rmtree(root, ignore_errors=True)
    temporary = root / "tmp"
    temporary.mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(temporary), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [str(Path(sys.executable).with_name("edgecompress")), "export", "model.keras",
               "-t", "cortex-m4", "-t", "pixel-8", "--c-sources", "-c", "x.npz", "-q",
               "--allow-undecided", "-o", "build"]  # fmt: skip

    def model(number: int) -> None:
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(number)], cwd=root, env=environment, check=True
        )

    def whole() -> dict[str, bytes]:
        subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        found = _content(root / "build")
        # The time and the durations of a report differ from run to run.
        return {name: data for name, data in found.items() if not name.startswith("report.")}

    def now() -> dict[str, bytes]:
        found = _content(root / "build")
        return {name: data for name, data in found.items() if not name.startswith("report.")}

    model(1)
    begin = time.monotonic()
    old = whole()
    longest = time.monotonic() - begin
    old_reports = [(root / "build" / name).read_bytes() for name in ("report.json", "report.html")]
    model(2)
    shutil.copytree(root / "build", root / "old")
    new = whole()
    for _ in range(kills):
        shutil.rmtree(root / "build")
        shutil.copytree(root / "old", root / "build")
        process = subprocess.Popen(
            command, cwd=root, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.random() * longest)
        process.kill()
        process.wait()
        reports = [(root / "build" / name).read_bytes() for name in ("report.json", "report.html")]
        same = [report == before for report, before in zip(reports, old_reports, strict=True)]
        counts["kills"] += 1
        if now() == old and all(same):
            counts["old"] += 1
        else:
            counts["new" if now() == new and not any(same) else "mix"] += 1
        time.sleep(1)
        counts["processes left"] += bool(_session(process.pid))
        counts["scratch until the next run"] += bool(_left(root) or [*temporary.iterdir()])
    counts["wrong after the next run"] += whole() != new
    counts["left behind"] += len(_left(root)) + len([*temporary.iterdir()])
    return counts


def _session(leader: int) -> list[int]:
    """Returns the processes that a killed leader of a session has left."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


_WRONG = ("mix", "lost", "left behind", "wrong after the next run", "wrong without a kill",
          "not killed", "processes left")  # fmt: skip


def main() -> int:
    """Kills, and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments")
    parser.add_argument("--exports", type=int, default=0, help="kills of whole exports")
    parser.add_argument("--share", type=int, default=1, help="of steps other than renames, 1 in N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()

    def tell(title: str, counts: Counter[str]) -> None:
        total.update(counts)
        told = ", ".join(f"{name} {n}" for name, n in counts.items() if n or name in ("old", "new"))
        print(f"{title}: {told}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        for name, case in CASES.items():
            tell(f"{name}, before each step", every_step(case, root, options.share))
        for number, (name, case) in enumerate(CASES.items()):
            kills = options.kills // len(CASES) + (number < options.kills % len(CASES))
            counts = random_moments(case, root, kills, options.seed + number)
            tell(f"{name}, at random moments", counts)
        if options.exports:
            tell("whole exports", whole_exports(root, options.exports, options.seed))
    print(
        f"{total['kills']} kills, {total['at renames']} of them at renames: old {total['old']}, "
        f"new {total['new']}, {', '.join(f'{name} {total[name]}' for name in _WRONG)}"
    )
    return int(any(total[name] for name in _WRONG))


if __name__ == "__main__":
    sys.exit(main())
