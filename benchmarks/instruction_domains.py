"""Writes and checks the domains and errors of the instruction formulas.

    python benchmarks/instruction_domains.py mcu_ops.csv mcu_nets.csv [--write]

`mcu_ops.csv` has one row per single-operator model, core and kernel set, `mcu_nets.csv` one per
operator of a network: the operator's geometry and the instructions that a simulator counted. A
formula's domain is what its rows span, its error the largest over them. With `--write` both go
into targets/tflm/instruction_formulas.json, beside the formulas; without, the file must already
hold them.

Printed are the errors inside the domains, what the rows of the fit alone would have promised for
those held out, and how far sizes may be extrapolated: formulas fitted anew on the smaller operators
against those at least four times as large. Exits with 1 where the file holds something else or a
row errs by more than its formula says.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.targets.tflm import instructions
from edgecompress.targets.tflm.geometry import Geometry, Unmodelled
from edgecompress.targets.tflm.instruction_formulas import REACH, evaluate, terms

FILE = Path(__file__).resolve().parents[1] / "targets" / "tflm" / "instruction_formulas.json"
TYPES = {"": "INT8", "9": "INT8", "7": "INT16", "17": "INT4", "0": "FLOAT32", "3": "UINT8"}
KERNEL_SETS = {
    ("m4", "cmsis_dsp"): "dsp",
    ("m33", "cmsis_dsp"): "dsp",
    ("m7", "cmsis_dsp"): "dsp",
    ("m55", "cmsis_mve"): "mve",
    ("m4", "reference"): "reference",
}
# The core that a kernel set's formulas were fitted on.
FITTED = {"dsp": "m4", "mve": "m55", "reference": "m4"}

# Operator -> what must have been counted as it is, between which ends, and up to which size.
ELEMENTS: tuple[tuple[str, ...], ...] = ((), (), ("in_elements",))
ARITHMETIC: tuple[tuple[str, ...], ...] = (("broadcast",), (), ("in_elements",))
REDUCTION: tuple[tuple[str, ...], ...] = (("axes",), (), ("in_elements", "out_elements"))
WINDOW = ("kh", "kw", "sh", "sw", "dh", "dw")
POOL: tuple[tuple[str, ...], ...] = ((), ("sh", "sw"), ("kh", "kw", "ci", "out_elements"))
RESIZE: tuple[tuple[str, ...], ...] = ((), (), ("in_elements", "out_elements", "ci"))
AXES = {
    "CONV_2D": (("weight_type",), WINDOW, ("ci", "co", "out_elements")),
    "DEPTHWISE_CONV_2D": (("weight_type", "multiplier"), WINDOW, ("ci", "out_elements")),
    "TRANSPOSE_CONV": (
        ("weight_type", "bias"), ("kh", "kw", "sh", "sw"), ("ci", "co", "out_elements"),
    ),
    "FULLY_CONNECTED": (
        ("weight_type", "rank", "per_channel"), (), ("ni", "no", "batch"),
    ),
    "AVERAGE_POOL_2D": POOL,
    "MAX_POOL_2D": POOL,
    # What they cost depends on how many inputs saturate, and so on the scale.
    "LOGISTIC": ((), ("in_scale",), ("in_elements",)),
    "TANH": ((), ("in_scale",), ("in_elements",)),
    "SOFTMAX": ((), (), ("ci", "in_elements", "in_scale")),
    "ADD": ARITHMETIC,
    "SUB": ARITHMETIC,
    "MUL": ARITHMETIC,
    "MAXIMUM": ARITHMETIC,
    "MINIMUM": ARITHMETIC,
    "PRELU": ARITHMETIC,
    "MEAN": REDUCTION,
    "SUM": REDUCTION,
    "REDUCE_MAX": REDUCTION,
    "CONCATENATION": ((), (), ("out_elements", "copies", "n_inputs")),
    "SPLIT": ((), (), ("in_elements", "copies")),
    "PAD": ((), (), ("out_elements", "pad_c")),
    "TRANSPOSE": (("axes",), (), ("in_elements",)),
    "SLICE": ((), (), ("out_elements",)),
    "STRIDED_SLICE": ((), ("sh", "sw", "stride_c"), ("out_elements",)),
    "RESIZE_BILINEAR": RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": RESIZE,
    "QUANTIZE": (("same_scale",), (), ("in_elements",)),
    "SVDF": (("state_type",), (), ("ni", "no", "filters", "memory")),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (("weight_type",), (), ("ni", "no", "steps")),
}  # fmt: skip
COMMON = ("in_type", "out_type", "n")


@dataclass(frozen=True)
class Counted:
    """One counted operator: its kernel set and core, where it is from, and its instructions."""

    kernels: str
    core: str
    source: str
    geometry: Geometry
    instructions: float

    @functools.cached_property
    def case(self) -> tuple[str, dict[str, float]]:
        """The formula's name and the numbers that it may use."""
        return instructions._CASES[self.geometry.code](self.geometry, self.kernels)


def of_row(row: Mapping[str, str]) -> Geometry:
    """Returns the geometry that a line of the counts describes."""

    def number(key: str, default: int = 1) -> int:
        return int(row[key]) if row[key] else default

    code = row["op"]
    window = {key: number(key) for key in ("h", "w", "oh", "ow", "kh", "kw", "sh", "sw")}
    if code == "STRIDED_SLICE":
        window |= {"sh": number("stride_h"), "sw": number("stride_w")}
    same = row["same"] == "1"
    pads = {}
    for axis in "hw":
        sizes = (window[axis], window[f"o{axis}"])
        source, output = sizes[::-1] if code == "TRANSPOSE_CONV" else sizes
        total = (output - 1) * window[f"s{axis}"] + window[f"k{axis}"] - source
        pads[f"pad_{axis}"] = number(f"pad_{axis}", max(total, 0) // 2 if same else 0)
    axes = tuple(map(int, row["reduce_axes"])) or tuple(map(int, row["perm"]))
    kind = TYPES[row["in_type"]]
    broadcast = ("", "channel", "scalar")[number("bcast", 0)]
    if code == "PRELU" or (broadcast and number("co") == 1):
        broadcast = "channel"
    elements = number("in_elems")
    return Geometry(
        code,
        kind,
        TYPES[row["w_type"]],
        number("n"),
        ci=number("ci"),
        co=number("co"),
        in_elements=elements,
        out_elements=elements if code == "SPLIT" else number("out_elems"),
        dh=number("dh"),
        dw=number("dw"),
        same=same,
        multiplier=number("mult"),
        bias=row["bias"] in ("", "1"),
        per_channel=row["perch"] == "1",
        batch=number("batch"),
        ni=number("ni"),
        no=number("no"),
        rank=number("ndim_out", 4),
        broadcast=broadcast,
        copies=number("copies"),
        n_inputs=number("n_inputs"),
        axes=(0, *axes) if row["perm"] else axes,
        in_scale=float(row["in_scale"] or 0),
        pad_c=number("padc", 0),
        stride_c=number("stride_c"),
        steps=number("T"),
        filters=number("nf"),
        memory=number("mem"),
        state_type=TYPES[row["state_type"]],
        out_type={"QUANTIZE": "INT8", "DEQUANTIZE": "FLOAT32"}.get(code, kind),
        # The models with uint8 inputs flip a bit; the others compute, whatever the scales are.
        same_scale=kind == "UINT8",
        **window,
        **pads,
    )


def read(path: Path) -> Iterator[Counted]:
    """Yields the rows of single operators."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["op"] != "CHAIN":
                kernels = KERNEL_SETS[row["core"], row["kernels"]]
                source = row.get("split") or "net"
                yield Counted(kernels, row["core"], source, of_row(row), float(row["instr_op"]))


def by_formula(rows: Iterable[Counted]) -> dict[tuple[str, str], list[Counted]]:
    """Returns the rows by kernel set and formula."""
    found = defaultdict(list)
    for row in rows:
        found[row.kernels, row.case[0]].append(row)
    return found


def relative_errors(formula: str, rows: Iterable[Counted], ratio: float = 1.0) -> list[float]:
    """Returns prediction / count - 1 of each row."""
    return [ratio * evaluate(formula, r.case[1]) / r.instructions - 1 for r in rows]


def worst(errors: Iterable[float]) -> float:
    return max((abs(e) for e in errors), default=0.0)


def up(value: float) -> float:
    """Rounds up to what is printed."""
    return float(np.ceil(value * 1e4) / 1e4)


def core_fits(formula: str, rows: Sequence[Counted], error: float) -> dict[str, dict[str, float]]:
    """Returns how a formula does on the sister cores of the one that was fitted."""
    fits = {}
    for core in sorted({r.core for r in rows} - {FITTED[rows[0].kernels]}):
        own = [r for r in rows if r.core == core]
        ratio = statistics.median(1 / (1 + e) for e in relative_errors(formula, own))
        # One operator says little, unless another instruction does the work.
        if (len(own) < 3 or abs(ratio - 1) < 0.05) and abs(ratio - 1) < 0.5:
            ratio = 1.0
        ratio = round(ratio, 4)
        found = worst(relative_errors(formula, own, ratio))
        fits[f"cortex-{core}"] = {"ratio": ratio, "error": up(max(error, found))}
    return fits


def describe(formula: str, rows: Sequence[Counted]) -> dict[str, Any]:
    """Returns a formula's entry of the file."""
    kinds, spans, sizes = AXES.get(rows[0].geometry.code, ELEMENTS)
    fitted = [r for r in rows if r.core == FITTED[r.kernels]]
    seen = [r.geometry for r in fitted]
    if seen[0].in_type != "UINT8":
        kinds = tuple(kind for kind in kinds if kind != "same_scale")

    def ends(name: str) -> list[float]:
        values = [getattr(g, name) for g in seen]
        return [min(values), max(values)]

    error = up(worst(relative_errors(formula, fitted)))
    smallest = sorted(fitted, key=lambda r: r.instructions)[: max(3, len(fitted) // 10)]
    slack = max(abs(evaluate(formula, r.case[1]) - r.instructions) for r in smallest)
    middle = sorted(fitted, key=lambda r: r.instructions)[len(fitted) // 2].geometry
    example = {
        name: value
        for name, value in vars(middle).items()
        if value != getattr(Geometry(middle.code), name) or name == "code"
    }
    return {
        "formula": formula,
        "rows": len(fitted),
        "error": error,
        "slack": float(np.ceil(slack)),
        "kinds": {name: sorted({getattr(g, name) for g in seen}) for name in (*COMMON, *kinds)},
        "spans": {name: ends(name) for name in spans},
        "sizes": {name: ends(name) for name in sizes},
        "cores": core_fits(formula, rows, error),
        "example": example,
    }


def build(texts: Mapping[str, Mapping[str, str]], rows: Sequence[Counted]) -> dict[str, Any]:
    """Returns the whole file for formulas that are given as kernel set -> name -> text."""
    groups = by_formula(rows)
    data: dict[str, Any] = {"uncounted_errors": {}}
    for kernels, formulas in texts.items():
        data[kernels] = {
            name: describe(text, groups[kernels, name]) for name, text in formulas.items()
        }
    for core in ("m7", "m33"):
        errors = []
        for (kernels, name), group in groups.items():
            entry = data[kernels].get(name)
            fit = entry and entry["cores"].get(f"cortex-{core}")
            if fit:
                own = [r for r in group if r.core == core]
                errors += relative_errors(entry["formula"], own, fit["ratio"])
        data["uncounted_errors"][f"cortex-{core}"] = up(float(np.quantile(np.abs(errors), 0.95)))
    return json.loads(json.dumps(data))  # As it is read back: lists, no tuples.


def write(data: Mapping[str, Any], path: Path) -> None:
    """Writes the file, one line for each formula's part."""
    lines = [f' "uncounted_errors": {json.dumps(data["uncounted_errors"])}']
    for kernels in FITTED:
        entries = []
        for name, entry in data[kernels].items():
            parts = (f'   "{key}": {json.dumps(value)}' for key, value in entry.items())
            entries.append(f'  "{name}": {{\n' + ",\n".join(parts) + "\n  }")
        lines.append(f' "{kernels}": {{\n' + ",\n".join(entries) + "\n }")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def refitted(formula: str, rows: Sequence[Counted]) -> str:
    """Returns the formula with coefficients of least relative squares over other rows."""
    names = [product for _, product in terms(formula)]
    values = [[float(np.prod([r.case[1][n] for n in p])) for p in names] for r in rows]
    scaled = np.array(values) / np.array([[r.instructions] for r in rows])
    found = np.linalg.lstsq(scaled, np.ones(len(rows)), rcond=None)[0]
    return " + ".join("*".join((repr(float(c)), *p)) for c, p in zip(found, names, strict=True))


def quantiles(errors: Sequence[float]) -> str:
    found = np.quantile(np.abs(errors), [0.5, 0.95, 1.0])
    return " / ".join(f"{100 * e:.1f}" for e in found)


def print_errors(data: Mapping[str, Any], rows: Sequence[Counted]) -> tuple[int, int]:
    """Prints the errors by kernel set and core; returns rows beyond their error, and outside."""
    found = defaultdict(list)
    beyond = outside = 0
    for row in rows:
        try:
            count = instructions.count(row.geometry, row.kernels, f"cortex-{row.core}")
        except Unmodelled:
            outside += 1
            continue
        error = count.instructions / row.instructions - 1
        beyond += abs(error) > count.error * 1.0001
        found[row.kernels, row.core].append(error)
    print("| kernels | core | rows in the domains | error in percent: median / p95 / largest |")
    print("|---|---|---|---|")
    for (kernels, core), errors in sorted(found.items()):
        print(f"| {kernels} | {core} | {len(errors)} | {quantiles(errors)} |")
    print(f"\n{outside} of {len(rows)} counted operators lie outside the domains.")
    print(f"{beyond} err by more than their formula says.")
    return beyond, outside


def print_held_out(data: Mapping[str, Any], rows: Sequence[Counted]) -> None:
    """Prints how often domains and errors of the fitted rows hold for those held out."""
    inside = beyond = outside = 0
    for (kernels, name), group in by_formula(rows).items():
        own = [r for r in group if r.core == FITTED[kernels]]
        fit = [r for r in own if r.source == "fit"]
        if name not in data[kernels] or not fit:
            continue
        text = data[kernels][name]["formula"]
        error = worst(relative_errors(text, fit))
        kinds, spans, sizes = AXES.get(fit[0].geometry.code, ELEMENTS)
        for row in own:
            if row.source == "fit":
                continue

            def covered(field: str, row: Counted = row, fit: list[Counted] = fit) -> bool:
                return getattr(row.geometry, field) in {getattr(f.geometry, field) for f in fit}

            def within(
                field: str, reach: int, row: Counted = row, fit: list[Counted] = fit
            ) -> bool:
                seen = [getattr(f.geometry, field) for f in fit]
                value = getattr(row.geometry, field)
                return value <= reach * max(seen) and (reach > 1 or value >= min(seen))

            if not (
                all(map(covered, (*COMMON, *kinds)))
                and all(within(s, 1) for s in spans)
                and all(within(s, REACH) for s in sizes)
            ):
                outside += 1
                continue
            inside += 1
            beyond += worst(relative_errors(text, [row])) > error + 0.005
    print(
        f"\nHeld out: {outside} of {inside + outside} outside the domains of the fitted rows; of "
        f"the {inside} inside {beyond} err by more than the fitted rows' largest error + 0.5 %."
    )


def print_extrapolation(data: Mapping[str, Any], rows: Sequence[Counted]) -> None:
    """Prints the errors of formulas fitted on small operators for those far larger."""
    print(f"\n| kernels | operators at least {REACH} times as large | error there | error inside |")
    print("|---|---|---|---|")
    for kernels, core in FITTED.items():
        far, near = [], []
        for (found, name), group in by_formula(rows).items():
            if found != kernels or name not in data[kernels]:
                continue
            text = data[kernels][name]["formula"]
            own = sorted(
                (r for r in group if r.core == core), key=lambda r: r.geometry.out_elements
            )
            half = own[: len(own) // 2]
            large = [
                r for r in own
                if r.geometry.out_elements >= REACH * half[-1].geometry.out_elements
            ] if half else []  # fmt: skip
            if len(half) < 3 * len(terms(text)) or not large:
                continue
            again = refitted(text, half)
            near += relative_errors(again, half)
            far += relative_errors(again, large)
        print(f"| {kernels} | {len(far)} | {quantiles(far)} | {quantiles(near)} |")


def agree(held: Any, found: Any) -> bool:
    """Whether two files of domains hold the same, but for the last digit of a rounded number.

    Another version of NumPy may round it the other way.
    """
    if isinstance(held, dict) and isinstance(found, dict):
        return held.keys() == found.keys() and all(agree(held[k], found[k]) for k in held)
    if isinstance(held, list) and isinstance(found, list):
        return len(held) == len(found) and all(map(agree, held, found))
    if isinstance(held, float) and isinstance(found, float):
        return math.isclose(held, found, rel_tol=0, abs_tol=1.5e-4)
    return bool(held == found)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", type=Path, help="mcu_ops.csv")
    parser.add_argument("networks", type=Path, help="mcu_nets.csv")
    parser.add_argument("--write", action="store_true", help="write what the counts say")
    options = parser.parse_args(argv)
    rows = [*read(options.operators), *read(options.networks)]
    held = json.loads(FILE.read_text(encoding="utf-8"))
    texts = {
        kernels: {name: entry["formula"] for name, entry in held[kernels].items()}
        for kernels in FITTED
    }
    data = build(texts, rows)
    if options.write:
        write(data, FILE)
        held = data
    beyond, _ = print_errors(data, rows)
    print_held_out(data, rows)
    print_extrapolation(data, rows)
    if not agree(held, data):
        print(f"\n{FILE.name} does not hold what the counts say: run with --write.")
    return int(bool(beyond) or not agree(held, data))


if __name__ == "__main__":
    sys.exit(main())
