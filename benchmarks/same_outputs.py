"""Shows that two source trees write the same files: every format, many models, reports included.

    python benchmarks/same_outputs.py record --python TREE/.venv/bin/python --models DIR \
        --output before.json
    python benchmarks/same_outputs.py compare before.json after.json

`record` runs the commands of the edgecompress that the interpreter has: export in each format,
check and inspect of every file, compress. Models and data are made once, into DIR, so that all
trees work on the same bytes; the MLPerf Tiny files of --mlperf-tiny join them where they exist.
`compare` exits 0 only if nothing differs. same_outputs_models.py builds the models,
same_outputs_values.py says what is compared of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from same_outputs_values import VOLATILE, Places, digest, measured_here, normalise

SCHEMA = "edgecompress.same_outputs/1"
MICRO = ("-t", "nucleo-l4r5zi", "-t", "cortex-m0plus", "--c-sources")
PHONE = ("-t", "pixel-8")
FORMATS: Mapping[str, tuple[str, ...]] = {
    "int8": (*MICRO, *PHONE),
    "compressed": ("-t", "nucleo-l4r5zi", "-t", "cortex-m4", "--c-sources"),
    "binary-weights": (*PHONE, "--weight-format", "smallest"),
    "sparse": PHONE,
    "xnor": PHONE,
}
CHECKED = ("nucleo-l4r5zi", "cortex-m0plus", "cortex-m55", "ek-ra8d1", "disco-f746ng", "pixel-4")
# Further exports of one model: other options, budgets that fail, and refusals.
MORE: Mapping[str, tuple[str, ...]] = {
    "more host": ("--format", "int8", "-t", "host", "--evaluate", "{data}"),
    "more budget": (
        "--format", "int8", "-t", "nucleo-g0b1re", "--kernels", "reference", "--max-ram", "1KiB",
        "--max-flash", "64KiB", "--max-latency", "50ms", "--min-accuracy", "0.5",
        "--evaluate", "{data}",
    ),
    "more lut": (
        "--format", "compressed", "--coding", "lut", "--decompression-memory", "4KiB", *MICRO[:2],
    ),
    "more wrong target": ("--format", "compressed", *PHONE),
    "more unknown target": ("--format", "int8", "-t", "nucleo"),
}  # fmt: skip
FROM_TFLITE: Mapping[str, tuple[str, ...]] = {
    "compressed": MICRO[:2],
    "binary-weights": (*PHONE, "--weight-format", "int4"),
}
COMPRESS: Mapping[str, tuple[str, ...]] = {
    "squeeze_excite": ("--remove-channels", "0.25", "--epochs", "remove=2"),
    "residual": ("--clusters", "7", "--first-last", "half", "--no-distill"),
}
COMPRESS_ALL = ("--epochs", "prune=1", "--epochs", "cluster=1", "--sparsity", "0.5", *MICRO[:4])
# One thread: the order of sums is then the same in each run.
SETTINGS = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_DETERMINISTIC_OPS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "COLUMNS": "100",
}


# --- record --------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Runs the commands of one interpreter in a folder and keeps what they gave."""

    python: Path
    work: Path
    places: Places
    tell: Callable[[str], None]
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, model: str, cell: str, arguments: Iterable[str], output: str = "") -> None:
        """Runs one command; `output` is its folder of files."""
        self.tell(f"{model}: {cell}")
        done = subprocess.run(
            [self.python, "-P", "-m", "edgecompress", *arguments],
            cwd=self.work,
            env=os.environ | SETTINGS | {"TMPDIR": f"{self.work}/tmp"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        folder = self.work / output
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if output else []
        places = self.places.with_files(files)
        stdout: Any = places.plain(done.stdout)
        measured = False
        if stdout.startswith("{"):
            raw = json.loads(stdout)
            stdout, measured = normalise(raw), measured_here(raw)
        stderr = re.sub(r"(?m)^\[ *\d+\.\d s\] ", "", places.plain(done.stderr))
        self.cells[cell] = {
            "exit_code": done.returncode,
            "stderr": stderr.splitlines(),
            "stdout": stdout,
            "files": {str(p.relative_to(folder)): digest(p, places, measured) for p in files},
        }

    def model(self, file: str) -> None:
        """Runs all commands for one model."""
        name = Path(file).stem
        path, data = f"models/{file}", f"models/{name}.npz"
        exports = {cell: ("--format", cell, *options) for cell, options in FORMATS.items()}
        if name == "sequential":
            exports |= MORE
        for cell, options in exports.items():
            self.run(
                name,
                cell,
                ("export", path, *(data if part == "{data}" else part for part in options),
                 "--calibration", data, "-o", f"{name}/{cell}", "--json"),
                f"{name}/{cell}",
            )  # fmt: skip
        self.run(name, "inspect model", ("inspect", path, "--json"))
        if name == "sequential":
            small = f"{name}/int8/{name}_int8.tflite"
            for cell, more in FROM_TFLITE.items():
                out = f"{name}/more {cell} of int8"
                self.run(name, out.partition("/")[2], ("export", small, "--format", cell, *more,
                         "-o", out, "--json"), out)  # fmt: skip
        if name in COMPRESS:
            out = f"{name}/compress"
            options = (*COMPRESS[name], *COMPRESS_ALL)
            self.run(name, "compress", ("compress", path, "--data", data, *options, "-o", out,
                     "--json"), out)  # fmt: skip
        targets = [part for target in CHECKED for part in ("-t", target)]
        seen = set()
        for made in sorted((self.work / name).rglob("*.tflite")):
            content = made.read_bytes()
            # Each format writes the same float32 file.
            if content in seen:
                continue
            seen.add(content)
            place = str(made.relative_to(self.work))
            self.run(name, f"check {place}", ("check", place, *targets, "--json"))
            self.run(name, f"inspect {place}", ("inspect", place, "--json"))


def record(options: argparse.Namespace) -> int:
    """Writes what the interpreter's edgecompress does with all models."""
    # Not resolved: what a virtual environment's link leads to knows no packages.
    python = Path(os.path.abspath(options.python))
    if not (options.models / "manifest.json").is_file():
        builder = Path(__file__).with_name("same_outputs_models.py").resolve()
        subprocess.run(
            [python, "-P", builder, options.models.resolve(), options.mlperf_tiny.resolve()],
            env=os.environ | SETTINGS,
            check=True,
        )
    manifest = json.loads((options.models / "manifest.json").read_text())
    files = {Path(name).stem: name for name in manifest["models"]}
    wanted = options.only.split(",") if options.only else list(files)
    if unknown := set(wanted) - set(files):
        print(f"No model {', '.join(sorted(unknown))}; there are {', '.join(files)}.")
        return 2
    code = "import edgecompress, os; print(os.path.dirname(os.path.abspath(edgecompress.__file__)))"
    package = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=True)
    start = time.monotonic()
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, _progress() as progress:
        work = Path(folder).resolve()
        shutil.copytree(options.models, work / "models")
        (work / "tmp").mkdir()
        places = Places(str(work), package.stdout.strip())

        def one(name: str) -> None:
            task = progress.add_task(name, total=None)
            recorder = Recorder(
                python, work, places, lambda text: progress.update(task, description=text)
            )
            recorder.model(files[name])
            models[name] = recorder.cells
            progress.update(task, description=f"{name}: {len(recorder.cells)} commands", total=1)
            progress.update(task, completed=1)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one, wanted))
    used = {n: sha for n, sha in manifest["sha256"].items() if n.partition(".")[0] in wanted}
    result = {
        "schema": SCHEMA,
        "removed": VOLATILE,
        "skipped": manifest["skipped"],
        "inputs": used,
        "models": {name: models[name] for name in wanted},
    }
    options.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    commands = sum(map(len, models.values()))
    print(f"{options.output}: {commands} commands, {time.monotonic() - start:.0f} s.")
    for name, why in manifest["skipped"].items():
        print(f"Skipped {name}: {why}")
    return 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)
    )


# --- compare -------------------------------------------------------------------------------------


def differences(
    before: Any, after: Any, path: str = "", equal_numbers: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Yields where two values differ: "differs", "missing" or "added", key path, both values.

    With `equal_numbers` 1 and 1.0 do not differ.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            place = f"{path}.{key}" if path else key
            if key not in after:
                yield "missing", place, ""
            elif key not in before:
                yield "added", place, ""
            else:
                yield from differences(before[key], after[key], place, equal_numbers)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, two) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, two, f"{path}[{index}]", equal_numbers)
    else:
        # The text tells 1 from 1.0 and from true, and NaN equals itself.
        one, two = (json.dumps(value, sort_keys=True) for value in (before, after))
        numbers = {type(before), type(after)} == {int, float}
        if one != two and not (equal_numbers and numbers and before == after):
            yield "differs", path, f": {_short(one)} -> {_short(two)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# Where sentences for people stand, and pages that hold them.
_PROSE = re.compile(
    r"(\.reason|\.detail\.range|\.title|notes\[\d+\]|^stderr\[\d+\]|^files\.[\w.-]+\.html)$"
)


@dataclass(frozen=True)
class Verdict:
    """What the comparison of one cell found."""

    word: str
    wrong: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def judge(
    before: Mapping[str, Any],
    after: Mapping[str, Any] | None,
    equal_numbers: bool = False,
    reworded: bool = False,
) -> Verdict:
    """Compares one command's results; an added file is a difference, an added key is none.

    With `reworded`, a command of which only sentences and pages differ is `reworded`.
    """
    if after is None:
        return Verdict("missing", ("the command was not run",))
    found = list(differences(before, after, equal_numbers=equal_numbers))
    new = {f"files.{name}" for name in after["files"] if name not in before["files"]}
    counted = [item for item in found if item[0] != "added" or item[1] in new]
    prose = [kind == "differs" and bool(_PROSE.search(place)) for kind, place, _ in counted]
    wrong = tuple(
        f"{kind} {place}{values}"
        for (kind, place, values), is_prose in zip(counted, prose, strict=True)
        if not (reworded and is_prose)
    )
    added = tuple(place for kind, place, _ in found if kind == "added" and place not in new)
    if wrong:
        return Verdict("differs", wrong, added)
    made = before["files"] or isinstance(before["stdout"], dict)
    if reworded and any(prose):
        return Verdict("reworded", (), added)
    return Verdict("same" if made else "refused alike", (), added)


def compare(options: argparse.Namespace) -> int:
    """Prints the table; returns 1 if anything differs, 2 if the inputs do."""
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    console = Console(width=options.width, soft_wrap=False, highlight=False)
    names = [name for name in before["models"] if name in after["models"]]
    inputs = [n for n, sha in before["inputs"].items() if after["inputs"].get(n, sha) != sha]
    if inputs or not names:
        console.print(f"Nothing to compare: {', '.join(inputs) or 'no model'} in common.")
        return 2
    verdicts = {
        (name, cell): judge(
            before["models"][name][cell],
            after["models"][name].get(cell),
            options.equal_numbers,
            options.reworded,
        )
        if cell in before["models"][name]
        else Verdict("differs", ("only in the second record",))
        for name in names
        for cell in before["models"][name] | after["models"][name]
    }
    columns = list(dict.fromkeys(cell.split()[0] for _, cell in verdicts))
    table = Table("model", *columns)
    for name in names:
        table.add_row(name, *(_cell(verdicts, name, column) for column in columns))
    console.print(table)
    for title, part in (("Differences", "wrong"), ("Added, no difference", "added")):
        lines = [(key, line) for key, v in verdicts.items() for line in getattr(v, part)]
        if lines:
            console.print(f"{title}:")
        for (name, cell), line in lines:
            console.print(f"  {name}, {cell}: {line}", markup=False, soft_wrap=True)
    for name in sorted(before["models"].keys() ^ after["models"].keys()):
        console.print(f"Not compared: {name} is in one record only.")
    words = [verdict.word for verdict in verdicts.values()]
    count = {word: words.count(word) for word in dict.fromkeys(words)}
    console.print(", ".join(f"{number} {word}" for word, number in count.items()))
    return 0 if count.get("same") and not set(count) & {"differs", "missing"} else 1


def _cell(verdicts: Mapping[tuple[str, str], Verdict], name: str, column: str) -> str:
    words = [v.word for (n, cell), v in verdicts.items() if (n, cell.split()[0]) == (name, column)]
    counted = {
        w: words.count(w) for w in ("differs", "missing", "reworded", "same", "refused alike")
    }
    return ", ".join(f"{w} {n}" if len(words) > 1 else w for w, n in counted.items() if n)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record", help="run all commands of one tree")
    one.add_argument("--python", required=True, help="interpreter of the tree")
    one.add_argument("--models", type=Path, required=True, help="made there if it holds none")
    one.add_argument("--mlperf-tiny", type=Path, default=Path("../shared/models/mlperf_tiny"),
                     help="folder of the MLPerf Tiny .h5 files")  # fmt: skip
    one.add_argument("--output", type=Path, required=True, help="the record, a JSON file")
    one.add_argument("--only", metavar="NAME[,NAME]", help="only these models")
    one.add_argument("--jobs", type=int, default=1, help="models at a time")
    one.set_defaults(run=record)
    two = commands.add_parser("compare", help="compare two records")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--width", type=int, help="columns of the table")
    two.add_argument("--equal-numbers", action="store_true",
                     help="1 and 1.0 in a JSON file count as equal")  # fmt: skip
    two.add_argument("--reworded", action="store_true",
                     help="reasons, notes, messages and pages may be reworded")  # fmt: skip
    two.set_defaults(run=compare)
    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
