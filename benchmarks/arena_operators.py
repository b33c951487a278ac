"""Measures the tensor arena of single operators on 32-bit Arm, and compares the rules with it.

    python benchmarks/arena_operators.py "cmsis-nn dsp" --program "qemu-system-arm ..." [--write]

Builds the models of `operator_models.py` and more of other sizes, lets a program load each (its
protocol is that of `operator_support.py`; it prints `@USED N`, the interpreter's
`arena_used_bytes()`), and compares every model that the program ran with the computed arena. With
`--smallest` the program is also given lines `NAME aSIZE`: it allocates an arena of that size and
prints `@END NAME 0` if the model fits; the smallest size is searched. With `--write` a few models
of each operator and types go into tests/targets/tflm/operator_arenas.csv.

Prints, by operator, how many models agree, and every rule that differs or is missing. Exits with 1
where a computed arena differs from a measured one.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from operator_models import Case, T, cases
from operator_support import run_program

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.arena import CORES, compute_arena
from edgecompress.targets.tflm.operator_support import signature, support

FILE = Path(__file__).parents[1] / "tests" / "targets" / "tflm" / "operator_arenas.csv"
# Column -> core and kernels of the computed arena.
COLUMNS = {
    "cmsis-nn dsp": ("cortex-m4", "cmsis-nn"),
    "cmsis-nn mve": ("cortex-m55", "cmsis-nn"),
    "reference": ("cortex-m4", "reference"),
}
KEYS = ("operator", "inputs", "outputs", "options", "unread")
# Models of an operator, its output's type and options that the file keeps, and as many with tensors
# that nothing reads.
_KEPT = 2
_INDEX = ("INT32", "INT64")


def _constant(type_: str, *shape: int) -> T:
    return T(type_, shape, np.ones(shape))


def _products() -> Iterator[Case]:
    """Matrix products of every form: batches, broadcast, transposed, with a constant."""
    shapes = (
        ((3, 5), (5, 7)), ((2, 3, 5), (2, 5, 7)), ((1, 4, 9, 33), (1, 4, 33, 17)),
        ((2, 3, 8, 8), (1, 3, 8, 8)), ((4, 6, 10), (10, 12)), ((1, 1, 40), (1, 40, 100)),
    )  # fmt: skip
    for kind in ("INT8", "INT16", "FLOAT32"):
        for left, right in shapes:
            rank = max(len(left), len(right))
            out = (*max(left[:-2], right[:-2], key=len), left[-2], right[-1])
            if rank > 2:
                pairs = zip(left[-3::-1], right[-3::-1], strict=False)
                batches = [max(a, b) for a, b in pairs][::-1]
                out = (*out[: rank - 2 - len(batches)], *batches, *out[-2:])
            for x in (False, True):
                for y in (False, True):
                    a = (*left[:-2], *left[:-3:-1]) if x else left
                    b = (*right[:-2], *right[:-3:-1]) if y else right
                    options = {"adjX": x, "adjY": y}
                    for second in (T(kind, b), _constant(kind, *b)):
                        yield Case("BATCH_MATMUL", (T(kind, a), second), (T(kind, out),), options)


def _gathers() -> Iterator[Case]:
    for kind in ("INT8", "INT16", "INT32", "FLOAT32", "BOOL"):
        for index in _INDEX:
            for rows, width, tokens in ((200, 16, (1, 24)), (100, 32, (16,)), (37, 1, (2, 3, 5))):
                table = _constant(kind, rows, width)
                yield Case("GATHER", (table, T(index, tokens)), (T(kind, (*tokens, width)),),
                           {"axis": 0})  # fmt: skip
            yield Case("GATHER", (_constant(kind, 256), T(index, (1, 16, 64))),
                       (T(kind, (1, 16, 64)),), {"axis": 0})  # fmt: skip
            yield Case("GATHER", (T(kind, (9,)), T(index, ())), (T(kind, ()),), {"axis": 0})
            yield Case("GATHER_ND", (T(kind, (6, 7, 3)), T(index, (5, 2))), (T(kind, (5, 3)),))


def _sizes() -> Iterator[Case]:
    """The operators of `operator_models.py` at sizes whose dimensions differ."""
    shape = (1, 7, 5, 9)
    for kind in ("INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL", "FLOAT32"):
        data = T(kind, shape)
        for operator in (
            "ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "HARD_SWISH", "LEAKY_RELU", "LOG",
            "LOGICAL_NOT", "LOGISTIC", "NEG", "RELU", "RELU6", "ROUND", "RSQRT", "SIN", "SQRT",
            "SQUARE", "ZEROS_LIKE",
        ):  # fmt: skip
            yield Case(operator, (data,), (data,))
        for operator in (
            "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV",
            "FLOOR_MOD", "LOGICAL_AND", "LOGICAL_OR",
        ):  # fmt: skip
            for other in (data, _constant(kind, 9), T(kind, (1, 1, 1, 9))):
                yield Case(operator, (data, other), (data,))
        for operator in ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"):
            yield Case(operator, (data, _constant(kind, 9)), (T("BOOL", shape),))
        for operator in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"):
            for axes in ((3,), (1, 2), (1, 2, 3), (2,)):
                out = tuple(1 if i in axes else size for i, size in enumerate(shape))
                yield Case(operator, (data, T("INT32", (len(axes),), np.array(axes))),
                           (T(kind, out),), {"keepDims": True})  # fmt: skip
        for count in (2, 5):
            yield Case("ADD_N", (data,) * count, (data,))
            yield Case("PACK", (data,) * count, (T(kind, (count, *shape)),),
                       {"valuesCount": count, "axis": 0})  # fmt: skip
            yield Case("UNPACK", (T(kind, (count, *shape[1:])),), (T(kind, shape[1:]),) * count,
                       {"num": count, "axis": 0})  # fmt: skip
        for condition in ((), (9,), shape):
            yield Case("SELECT_V2", (T("BOOL", condition), data, data), (data,))
        yield Case("SELECT_V2", (T("BOOL", shape), data, _constant(kind)), (data,))
        pads = T("INT32", (4, 2), np.array([[0, 0], [1, 2], [2, 1], [0, 0]]))
        padded = T(kind, (1, 10, 8, 9))
        yield Case("PAD", (data, pads), (padded,))
        yield Case("PADV2", (data, pads, _constant(kind)), (padded,))
        for mode in (0, 1):
            yield Case("MIRROR_PAD", (data, pads), (padded,), {"mode": mode})
        for target in ("INT8", "INT16", "INT32", "FLOAT32"):
            yield Case("CAST", (data,), (T(target, shape),))
        grown = T(kind, (1, 14, 10, 9))
        for name in ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"):
            yield Case(name, (data, T("INT32", (2,), np.array([14, 10]))), (grown,))
        yield Case("BROADCAST_TO", (T(kind, (1, 1, 1, 9)), T("INT32", (4,), np.array(shape))),
                   (data,))  # fmt: skip
        yield Case("CUMSUM", (data, T("INT32", (), np.array(2))), (data,))
        yield Case("ARG_MAX", (data, T("INT32", (), np.array(3))), (T("INT32", shape[:3]),),
                   {"outputType": 2})  # fmt: skip
        yield Case(
            "DYNAMIC_UPDATE_SLICE",
            (data, T(kind, (1, 2, 5, 9)), T("INT32", (4,), np.zeros(4))),
            (data,),
        )
        yield Case(
            "SPLIT_V",
            (data, T("INT32", (3,), np.array([2, 3, 4])), T("INT32", (), np.array(3))),
            tuple(T(kind, (1, 7, 5, size)) for size in (2, 3, 4)),
            {"numSplits": 3},
        )
        yield Case("RESHAPE", (data, T("INT32", (2,), np.array([35, -1]))), (T(kind, (35, 9)),),
                   {"newShape": np.int32([35, -1])})  # fmt: skip


def _shifted(made: Sequence[Case]) -> Iterator[Case]:
    """One model of each operator and types, with 1 to 3 empty tensors that nothing reads.

    Each moves the rest of the tail by 12 bytes: a size that is wrong by 4 shows.
    """
    seen = set()
    for case in made:
        tensors = (*case.inputs, *case.outputs)
        key = (case.operator, *((t.type, t.values is None) if t else None for t in tensors))
        if key not in seen:
            seen.add(key)
            for count in (1, 2, 3):
                yield replace(case, intermediates=(_constant("INT8", 0),) * count)


def models() -> list[Case]:
    """Returns every model that is measured."""
    made = [*_products(), *_gathers(), *_sizes()]
    given = [case for case in cases() if isinstance(case, Case)]
    plain = [case for case in given if not case.intermediates]
    return [*given, *made, *_shifted([*made, *plain])]


def _may_run(model: FlatModel, column: str) -> bool:
    """Whether the table of supported operators does not say that a model is refused."""
    core, kernels = COLUMNS[column]
    (operator,) = model.operators
    known = support(signature(model, operator), kernels, CORES[core])
    return known is None or known.outcome != "refused"


def _described(tensor: Tensor) -> str:
    mark = "=" if tensor.is_constant else "~" if tensor.is_variable else ""
    return f"{tensor.type}:{'x'.join(map(str, tensor.shape))}:{len(tensor.scales)}{mark}"


def row_of(model: FlatModel) -> dict[str, str]:
    """Returns a model of one operator as a row: all that its arena depends on."""
    (operator,) = model.operators
    tensors = [model.tensors[i] if i >= 0 else None for i in operator.inputs]
    options = {
        name: value
        for name, value in operator.options.items()
        if isinstance(value, (bool, int)) and value
    }
    return {
        "operator": operator.name,
        "inputs": " ".join(_described(t) if t else "-" for t in tensors),
        "outputs": " ".join(_described(model.tensors[i]) for i in operator.outputs),
        "options": json.dumps(options) if options else "",
        # Of the tensors that nothing reads.
        "unread": str(len(model.tensors) - len({*operator.inputs, *operator.outputs} - {-1})),
    }


def model_of(row: Mapping[str, str]) -> FlatModel:
    """Returns the model of a row."""
    tensors: list[Tensor] = []
    inputs: list[int] = []

    def add(text: str, is_input: bool) -> int:
        if text == "-":
            return -1
        found = re.fullmatch(r"(\w+):([\dx]*):(\d+)([=~]?)", text)
        if found is None:
            raise SystemExit(f"{text} is not a tensor")
        kind, sizes, scales, mark = found.groups()
        shape, count = tuple(map(int, sizes.split("x"))) if sizes else (), int(scales)
        raw = b"\0" if mark == "=" else None
        tensors.append(
            Tensor(
                len(tensors), f"t{len(tensors)}", shape, kind, raw, (0.5,) * count, (0,) * count,
                is_variable=mark == "~",
            )
        )  # fmt: skip
        if is_input and not mark:
            inputs.append(len(tensors) - 1)
        return len(tensors) - 1

    read = tuple(add(text, True) for text in row["inputs"].split())
    written = tuple(add(text, False) for text in row["outputs"].split())
    for _ in range(int(row["unread"])):
        add("INT8:0:1=", False)
    options = json.loads(row["options"] or "{}")
    operator = Operator(0, row["operator"], "", 1, read, written, options, ())
    return FlatModel(b"", tuple(tensors), (operator,), tuple(inputs), written)


def computed(model: FlatModel, column: str) -> Any:
    """Returns the computed arena."""
    core, kernels = COLUMNS[column]
    return compute_arena(model, core, kernels)


def _allocates(files: Mapping[str, bytes], sizes: Mapping[str, int], command: str) -> set[str]:
    """Returns which of the models the program can allocate in arenas of the given sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        left, can = list(sizes), set()
        while left:
            part = left[:100]
            (folder / "job.txt").write_text("".join(f"{f} a{sizes[f]}\n" for f in part))
            done = subprocess.run(
                shlex.split(command), cwd=folder, capture_output=True, timeout=60, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            text = done.stdout.decode(errors="replace")
            begun = re.findall(r"@BEGIN (\S+)", text)
            if not begun:
                raise SystemExit(f"the program ran nothing: {text[-500:]}")
            can |= {name for name, end in re.findall(r"@END (\S+) (\d+)", text) if end == "0"}
            # A kernel that uses what it was refused ends the program.
            left = left[len(begun) :]
        return can


def smallest(files: Sequence[bytes], used: Sequence[int], command: str) -> list[int]:
    """Returns the smallest arena, a multiple of 16, in which each model can be allocated."""
    names = {f"m{i:05}.tflite": data for i, data in enumerate(files)}
    low = {name: size // 16 - 1 for name, size in zip(names, used, strict=True)}
    high = {name: size // 16 + 128 for name, size in zip(names, used, strict=True)}
    while open_ := [name for name in names if high[name] - low[name] > 1]:
        middle = {name: (low[name] + high[name]) // 2 for name in open_}
        can = _allocates(
            {name: names[name] for name in open_},
            {name: size * 16 for name, size in middle.items()},
            command,
        )
        for name, size in middle.items():
            (high if name in can else low)[name] = size
    return [high[name] * 16 for name in names]


def write(column: str, measured: Sequence[tuple[FlatModel, int]]) -> None:
    """Replaces one column of the file; a few models of each operator and types are kept."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    if FILE.exists():
        with FILE.open(newline="") as file:
            for row in csv.DictReader(file):
                row[column] = ""
                rows[tuple(row[key] for key in KEYS)] = row
    kept: Counter = Counter()
    # The last ones have sizes that tell their dimensions apart.
    for model, used in reversed(measured):
        row = row_of(model)
        key = tuple(row[name] for name in KEYS)
        kinds = (row["operator"], row["outputs"].partition(":")[0], row["options"])
        group = (*kinds, row["unread"] != "0")
        if key in rows or kept[group] < _KEPT:
            kept[group] += key not in rows
            rows.setdefault(key, row)[column] = str(used)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*KEYS, *COLUMNS), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()) if any(row.get(c) for c in COLUMNS))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("column", choices=list(COLUMNS))
    parser.add_argument("--program", required=True)
    parser.add_argument("--only", help="operators, separated by commas")
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    wanted = set(options.only.split(",")) if options.only else None
    files = [
        case.data() for case in models() if wanted is None or case.operator in wanted
    ]  # fmt: skip
    files = [data for data in files if _may_run(read_tflite(data), options.column)]
    found = [
        (data, read_tflite(data), outcome.arena)
        for data, outcome in zip(files, run_program(files, options.program), strict=True)
        if outcome.arena is not None
    ]
    total: Counter = Counter()
    same: Counter = Counter()
    unknown: dict[str, Counter] = defaultdict(Counter)
    wrong = []
    for _, model, used in found:
        name, arena = model.operators[0].name, computed(model, options.column)
        total[name] += 1
        if not arena.is_known:
            unknown[name][str(arena.unknown[0]).partition(": ")[2]] += 1
        elif arena.used == used:
            same[name] += 1
        else:
            wrong.append(f"{row_of(model)}: {arena.used} instead of {used}")
    print("\n| operator | ran | exact | unknown |\n|-|-|-|-|")
    for name in sorted(total):
        reasons = "; ".join(f"{count} {why}" for why, count in unknown[name].items())
        print(f"| {name} | {total[name]} | {same[name]} | {reasons} |")
    print(f"\n{same.total()} of {total.total()} exact, {len(wrong)} differ.")
    print("\n".join(wrong[:80]))
    if options.smallest:
        chosen = [(data, model, used) for data, model, used in found
                  if computed(model, options.column).is_known]  # fmt: skip
        searched = smallest([c[0] for c in chosen], [c[2] for c in chosen], options.program)
        misses: Counter = Counter()
        for (_, model, _), size in zip(chosen, searched, strict=True):
            miss = (computed(model, options.column).smallest or 0) - size
            misses[miss] += 1
            if miss < 0:
                print(f"smallest {miss:+}: {row_of(model)}")
        print(f"Smallest arena, computed less searched: {sorted(misses.items())}")
    if options.write:
        write(options.column, [(model, used) for _, model, used in found])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
