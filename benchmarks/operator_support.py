"""Measures which operators, types, ranks and forms the kernels of TensorFlow Lite Micro run.

Builds thousands of models of one operator (`operator_models.py`), lets an engine load and run each,
and writes what came of it into `targets/tflm/operator_support.csv`, the table behind the
`operators` check.

Usage:
    python benchmarks/operator_support.py reference
        The reference kernels: the tflite-micro wheel on this computer (Linux on x86-64).
    python benchmarks/operator_support.py "cmsis-nn dsp" --program "qemu-system-arm ..." \
            --title "TensorFlow Lite Micro COMMIT, CMSIS-NN COMMIT, Cortex-M4, QEMU 7.2"
        Other kernels: a program of your own, in the emulator or on this computer. It is started in
        a folder that holds NAME.tflite, NAME.tflite.in (the inputs, one behind the other) and
        job.txt (one file name a line). For each it prints `@BEGIN NAME`, the engine's own messages
        and `@END NAME STATUS` (0 ran, 1 to 3 refused), and leaves the outputs in
        NAME.tflite.out. If it dies it is started again behind the model that killed it.

One column of the table is replaced at a time. Results are compared too: those of the reference
kernels with LiteRT's, those of other kernels with the reference kernels'.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import io
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from operator_models import POSITIVE, cases, pattern

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.tflm.operator_support import (
    COLUMNS,
    CONTROL,
    CRASHES,
    DEPENDS,
    DIFFERS,
    RUNS,
    TABLE,
    Signature,
    signature,
)

_SECONDS = 20
_POSITIONS = frozenset({"DYNAMIC_UPDATE_SLICE", "GATHER", "GATHER_ND", "SLICE", "STRIDED_SLICE"})
_NUMPY = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16,
    "UINT32": np.uint32, "BOOL": np.bool_, "INT4": np.int8, "INT2": np.int8,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What an engine did with a model; `arena`: the bytes of its arena where it says so."""

    text: str
    outputs: bytes = b""
    arena: int | None = None

    @property
    def runs(self) -> bool:
        """Whether it ran."""
        return self.text == RUNS


def inputs_of(model: FlatModel) -> list[np.ndarray]:
    """Returns the same small inputs for every engine."""
    found = []
    for position, index in enumerate(model.inputs):
        tensor = model.tensors[index]
        values = pattern(_NUMPY[tensor.type], tensor.elements, position + 1)
        # Computed indices and positions have to be some that exist.
        if any(index in o.inputs[1:] and o.code in _POSITIONS for o in model.operators):
            values = np.zeros_like(values)
        if tensor.scales == (POSITIVE,):
            values = np.abs(values) + 4
        found.append(values.reshape(tensor.shape))
    return found


def _one_line(text: str) -> str:
    kept: list[str] = []
    for line in text.splitlines():
        # Paths, and numbers of lines and nodes, change with every build.
        line = re.sub(r"\S*/(\w+\.(?:cc|h))(?::\d+)?", r"\1", " ".join(line.split()))
        if line and line not in kept and not re.search(r"[Ff]ailed to (prepare|invoke)", line):
            kept.append(line)
    return "; ".join(kept)[:160] or "no reason given"


def _complains(printed: str) -> bool:
    """Tells whether a kernel says that it cannot, even if the interpreter then goes on."""
    return bool(re.search(r"was not true|not supported|[Uu]nsupported", printed))


def _micro(data: bytes) -> bytes:
    """Runs a model with the reference kernels of TensorFlow Lite Micro."""
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(data, arena_size=1 << 20)
    model = read_tflite(data)
    for position, values in enumerate(inputs_of(model)):
        interpreter.set_input(values, position)
    interpreter.invoke()
    return b"".join(
        np.asarray(interpreter.get_output(p)).tobytes() for p in range(len(model.outputs))
    )


def _lite(data: bytes) -> bytes:
    """Runs a model with the reference kernels of LiteRT."""
    from ai_edge_litert import interpreter as litert

    engine = litert.Interpreter(
        model_content=data,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    engine.allocate_tensors()
    given = inputs_of(read_tflite(data))
    for detail, values in zip(engine.get_input_details(), given, strict=True):
        engine.set_tensor(detail["index"], values)
    engine.invoke()
    return b"".join(
        np.asarray(engine.get_tensor(d["index"])).tobytes() for d in engine.get_output_details()
    )


def apart(engine: str, models: Sequence[bytes]) -> list[Outcome]:
    """Runs an engine in a process of its own, which is started again where a model kills it."""
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while len(found) < len(models):
            (folder / "asked").write_bytes(pickle.dumps(models[len(found) :]))
            subprocess.run([sys.executable, __file__, "--engine", engine, folder], check=False)
            with (folder / "answered").open("rb") as file, contextlib.suppress(EOFError):
                while True:
                    found.append(Outcome(*pickle.load(file)))
            if len(found) < len(models):
                printed = (folder / "log").read_text(errors="replace")
                found.append(Outcome(f"{CRASHES}: {_one_line(printed)}"))
    return found


def answer(engine: str, folder: Path) -> None:
    """The other side of `apart`."""
    run = {"tflm": _micro, "litert": _lite}[engine]
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with (folder / "answered").open("wb") as file:
        for data in pickle.loads((folder / "asked").read_bytes()):
            os.ftruncate(log, 0)
            signal.alarm(_SECONDS)
            try:
                outputs = run(data)
                printed = (folder / "log").read_text(errors="replace")
                wrong = engine == "tflm" and _complains(printed)
                outcome = (_one_line(printed), b"") if wrong else (RUNS, outputs)
            except RuntimeError as error:
                printed = (folder / "log").read_text(errors="replace")
                outcome = (_one_line(printed or str(error)), b"")
            except Exception:
                # The Python interface lacks the type; the kernel is not to blame.
                outcome = ("", b"")
            pickle.dump(outcome, file)
            file.flush()


def deviates(model: FlatModel, mine: bytes, theirs: bytes, steps: int = 1) -> bool:
    """Tells whether two results differ by more than rounding."""
    if len(mine) != len(theirs):
        return True
    at = 0
    for index in model.outputs:
        tensor = model.tensors[index]
        dtype = np.dtype(_NUMPY[tensor.type])
        size = tensor.elements * dtype.itemsize
        a, b = (np.frombuffer(raw[at : at + size], dtype) for raw in (mine, theirs))
        at += size
        if np.issubdtype(dtype, np.floating):
            if not np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True):
                return True
        elif np.abs(a.astype(np.int64) - b.astype(np.int64)).max(initial=0) > (
            steps if tensor.type in ("INT8", "INT16", "UINT8") else 0
        ):
            return True
    return False


def run_program(models: Sequence[bytes], command: str) -> Iterator[Outcome]:
    """Runs models with a program; see the usage above."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"m{number:05}.tflite" for number in range(len(models))]
        for file, data in zip(names, models, strict=True):
            (folder / file).write_bytes(data)
            raw = b"".join(values.tobytes() for values in inputs_of(read_tflite(data)))
            (folder / f"{file}.in").write_bytes(raw)
        found: dict[str, Outcome] = {}
        while len(found) < len(names):
            # A hanging model takes its share of the time only.
            left = [file for file in names if file not in found][:100]
            (folder / "job.txt").write_text("\n".join(left) + "\n")
            try:
                done = subprocess.run(
                    shlex.split(command), cwd=folder, capture_output=True, timeout=_SECONDS * 3,
                    check=False, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                text = done.stdout.decode(errors="replace")
            except subprocess.TimeoutExpired as error:
                text = (error.stdout or b"").decode(errors="replace")
            for part in text.split("@BEGIN ")[1:]:
                file, _, rest = part.partition("\n")
                file = file.strip()
                printed, end, status = rest.partition("@END ")
                used = re.search(r"@USED (\d+)", printed)
                arena = int(used[1]) if used else None
                printed = re.sub(r"@(USED|INVOKE|OP) .*", "", printed)
                if not end:
                    found[file] = Outcome(f"{CRASHES}: {_one_line(printed.replace('@FAULT', ''))}")
                elif status.split()[1] == "0" and not _complains(printed):
                    found[file] = Outcome(RUNS, (folder / f"{file}.out").read_bytes(), arena)
                else:
                    found[file] = Outcome(_one_line(printed))
            if not text.count("@BEGIN "):
                raise SystemExit(f"the program ran nothing: {text[-500:]}")
            print(f"\r{len(found)} of {len(names)}", end="", file=sys.stderr, flush=True)
        yield from (found[file] for file in names)


def signatures(model: FlatModel) -> list[Signature]:
    """Returns what a model says something about; of control flow, its own operators only."""
    graphs = (model, *model.others)
    if len(graphs) == 1:
        return [signature(model, model.operators[0])]
    return [signature(g, o) for g in graphs for o in g.operators if o.code in CONTROL]


def compared(
    models: Sequence[FlatModel], mine: Sequence[Outcome], theirs: Sequence[Outcome], other: str
) -> list[Outcome]:
    """Replaces results that are not those of another engine, more than rounding allows."""
    return [
        Outcome(f"{DIFFERS} from {other}")
        if a.runs and b.runs and deviates(model, a.outputs, b.outputs)
        else a
        for model, a, b in zip(models, mine, theirs, strict=True)
    ]


def merged(texts: Sequence[str]) -> str:
    """Returns one entry for models of one signature; they mostly agree."""
    texts = [text for text in texts if text]
    other = [text for text in texts if text != RUNS]
    if not texts:
        return ""
    for text in other:
        if text.startswith(DIFFERS):
            return text
    if len(set(map(bool, other))) and len(other) < len(texts):
        return f"{DEPENDS}: {other[0]}"
    return other[0] if other else RUNS


def write_table(column: str, title: str, found: dict[Signature, str]) -> None:
    """Replaces one column of the table."""
    engines: dict[str, str] = {}
    cells: dict[Signature, dict[str, str]] = defaultdict(dict)
    if TABLE.exists():
        lines = TABLE.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("#"):
                name, _, text = line[1:].partition(":")
                engines[name.strip()] = text.strip()
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            low, _, high = row["ranks"].partition("-")
            for rank in range(int(low), int(high or low) + 1):
                key = Signature(row["operator"], row["types"], row["form"], rank)
                cells[key] = {k: v for k, v in row.items() if k not in COLUMNS and k != column}
    engines[column] = title
    for key, text in found.items():
        cells[key][column] = text
    columns = sorted(engines)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for key, values in cells.items():
        if any(values.values()):
            texts = tuple(values.get(name, "") for name in columns)
            groups[(key.operator, key.types, key.form, *texts)].append(key.rank)
    file = io.StringIO()
    for name in columns:
        file.write(f"# {name}: {engines[name]}\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *columns])
    for (operator, types, form, *texts), ranks in sorted(groups.items()):
        for low, high in _spans(sorted(ranks)):
            span = str(low) if low == high else f"{low}-{high}"
            writer.writerow([operator, types, form, span, *texts])
    TABLE.write_text(file.getvalue(), encoding="utf-8")


def _spans(ranks: Sequence[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1] = (spans[-1][0], rank)
        else:
            spans.append((rank, rank))
    return spans


def main() -> None:
    """Measures one column."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("column", choices=["reference", "cmsis-nn dsp", "cmsis-nn mve"])
    parser.add_argument("--program")
    parser.add_argument("--title")
    options = parser.parse_args()
    if (options.column == "reference") == bool(options.program):
        parser.error("--program is for the columns of CMSIS-NN, and they need it")
    files = [case.data() for case in cases()]
    models = [read_tflite(data) for data in files]
    micro = apart("tflm", files)
    if options.program:
        outcomes = compared(
            models, list(run_program(files, options.program)), micro, "the reference kernels"
        )
        title = options.title or options.program
    else:
        outcomes = compared(models, micro, apart("litert", files), "LiteRT")
        title = (
            f"tflite-micro {importlib.metadata.version('tflite-micro')}, reference kernels, "
            "Linux x86-64"
        )
    grouped: dict[Signature, list[str]] = defaultdict(list)
    for model, outcome in zip(models, outcomes, strict=True):
        for key in signatures(model):
            grouped[key].append(outcome.text)
    found = {key: merged(group) for key, group in grouped.items()}
    write_table(options.column, f"{title}, {datetime.date.today().isoformat()}", found)
    kinds = Counter(
        next((k for k in (RUNS, DIFFERS, DEPENDS, CRASHES) if text.startswith(k)), "refuses")
        for text in found.values()
        if text
    )
    counts = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
    print(f"\n{len(files)} models, {len(found)} signatures: {counts}")
    for key, text in found.items():
        if text.startswith((DEPENDS, DIFFERS)):
            print(f"  {key.operator} {key}: {text}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--engine"]:
        answer(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
