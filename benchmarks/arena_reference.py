"""Compares the computed tensor arena with single-operator models measured on 32-bit Arm builds.

    python benchmarks/arena_reference.py mcu_ops.csv [mcu_decode.csv]

`mcu_ops.csv` has one row per model, core and kernel set: the operator's geometry and the head,
the tail and the sum that the interpreter reported. Each row is rebuilt as a `FlatModel` and
computed; the table counts, per operator, how many agree to the byte. Chains of operators cannot be
rebuilt from one row and are left out; where the sizes of a concatenation's inputs are not in the
row, the tail alone is compared. `mcu_decode.csv` has one row per core and encoding of a layer's
weights that are decoded at run time. Exits with 1 when any row differs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.tflm.arena import Arena, compute_arena

TYPES = {0: "FLOAT32", 2: "INT32", 3: "UINT8", 4: "INT64", 7: "INT16", 9: "INT8", 17: "INT4"}
Row = Mapping[str, str]


@dataclass
class Builder:
    """Collects the tensors of a model with one operator."""

    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    def add(
        self,
        shape: Sequence[int],
        kind: str = "INT8",
        scales: int = 1,
        raw: bytes | None = None,
        variable: bool = False,
        model_input: bool = False,
    ) -> int:
        index = len(self.tensors)
        scales = 0 if kind == "FLOAT32" else scales
        self.tensors.append(
            Tensor(
                index, f"t{index}", tuple(shape), kind, raw,
                (0.5,) * scales, (0,) * scales, is_variable=variable,
            )
        )  # fmt: skip
        if model_input:
            self.inputs.append(index)
        return index

    def constant(self, shape: Sequence[int], kind: str = "INT32", scales: int = 0) -> int:
        return self.add(shape, kind, scales, raw=b"\0")

    def source(self, shape: Sequence[int], kind: str = "INT8") -> int:
        return self.add(shape, kind, model_input=True)

    def model(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, int] | None = None,
        intermediates: Sequence[int] = (),
    ) -> FlatModel:
        operator = Operator(
            0, code, "", 1, tuple(inputs), tuple(outputs), options or {}, tuple(intermediates)
        )
        return FlatModel(b"", tuple(self.tensors), (operator,), tuple(self.inputs), tuple(outputs))


BUILDERS: dict[str, Callable[[Row, Builder], FlatModel]] = {}


def builds(*names: str) -> Callable:
    def store(function: Callable[[Row, Builder], FlatModel]) -> Callable:
        BUILDERS.update(dict.fromkeys(names, function))
        return function

    return store


def number(row: Row, name: str) -> int:
    return int(float(row[name] or 0))


def shape(row: Row, *names: str) -> tuple[int, ...]:
    return tuple(number(row, name) for name in names)


def kind(row: Row, name: str = "in_type") -> str:
    return TYPES[number(row, name)]


@builds("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
def convolution(row: Row, build: Builder) -> FlatModel:
    out_channels = number(row, "co")
    source = build.source(shape(row, "n", "h", "w", "ci"), kind(row))
    if row["op"] == "DEPTHWISE_CONV_2D":
        weights_shape = (1, *shape(row, "kh", "kw", "co"))
    else:
        weights_shape = shape(row, "co", "kh", "kw", "ci")
    weights = build.constant(weights_shape, kind(row, "w_type"), out_channels)
    inputs = [source, weights]
    if row["op"] == "TRANSPOSE_CONV":
        inputs = [build.constant((4,)), weights, source]
    if number(row, "bias"):
        wide = "INT64" if kind(row) == "INT16" else "INT32"
        inputs.append(build.constant((out_channels,), wide, out_channels))
    out = build.add((number(row, "n"), *shape(row, "oh", "ow", "co")), kind(row))
    options = {
        "stride_h": number(row, "sh"),
        "stride_w": number(row, "sw"),
        "dilation_h_factor": number(row, "dh") or 1,
        "dilation_w_factor": number(row, "dw") or 1,
    }
    return build.model(row["op"], inputs, [out], options)


@builds("FULLY_CONNECTED")
def fully_connected(row: Row, build: Builder) -> FlatModel:
    units, depth = shape(row, "no", "ni")
    lead = (1,) * (number(row, "ndim_out") - 2) + (number(row, "batch"),)
    scales = units if number(row, "perch") else 1
    inputs = [
        build.source((*lead, depth), kind(row)),
        build.constant((units, depth), kind(row, "w_type"), scales),
    ]
    if number(row, "bias"):
        wide = "INT64" if kind(row) == "INT16" else "INT32"
        inputs.append(build.constant((units,), wide, scales))
    return build.model(row["op"], inputs, [build.add((*lead, units), kind(row))])


@builds("AVERAGE_POOL_2D", "MAX_POOL_2D", "SOFTMAX", "LOGISTIC", "TANH", "RELU", "RELU6",
        "LEAKY_RELU", "HARD_SWISH", "RESHAPE", "QUANTIZE", "DEQUANTIZE")  # fmt: skip
def one_input(row: Row, build: Builder) -> FlatModel:
    source = build.source(shape(row, "n", "h", "w", "ci"), kind(row))
    results = {"QUANTIZE": "INT8", "DEQUANTIZE": "FLOAT32"}
    out = build.add((number(row, "out_elems"),), results.get(row["op"], kind(row)))
    return build.model(row["op"], [source], [out])


@builds("MEAN", "SUM", "REDUCE_MAX", "PAD", "TRANSPOSE", "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR", "PRELU", "SLICE", "STRIDED_SLICE")  # fmt: skip
def constant_inputs(row: Row, build: Builder) -> FlatModel:
    inputs = [build.source(shape(row, "n", "h", "w", "ci"), kind(row))]
    axes = len(str(row["reduce_axes"] or "1"))
    for _ in range(number(row, "n_inputs") - 1):
        if row["op"] == "PRELU":
            inputs.append(build.constant((number(row, "ci"),), "INT8", 1))
        else:
            inputs.append(build.constant((axes,)))
    return build.model(row["op"], inputs, [build.add((number(row, "out_elems"),), kind(row))])


@builds("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM")
def two_inputs(row: Row, build: Builder) -> FlatModel:
    dims = shape(row, "n", "h", "w", "ci")
    inputs = [build.source(dims, kind(row))]
    if number(row, "const_bytes"):
        width = 2 if kind(row) == "INT16" else 1
        inputs.append(build.constant((number(row, "const_bytes") // width,), kind(row), 1))
    else:
        inputs.append(build.source(dims, kind(row)))
    out = build.add((number(row, "out_elems"),), kind(row))
    return build.model(row["op"], inputs, [out])


@builds("CONCATENATION")
def concatenation(row: Row, build: Builder) -> FlatModel:
    first = number(row, "h") * number(row, "w") * number(row, "ci")
    rest = number(row, "n_inputs") - 1
    other = (number(row, "out_elems") - first) // rest
    inputs = [build.source((size,)) for size in (first, *[other] * rest)]
    return build.model(row["op"], inputs, [build.add((number(row, "out_elems"),))])


@builds("SPLIT")
def split(row: Row, build: Builder) -> FlatModel:
    axis = build.constant(())
    source = build.source(shape(row, "n", "h", "w", "ci"), kind(row))
    parts = number(row, "n_outputs")
    size = number(row, "out_elems") // parts
    return build.model(row["op"], [axis, source], [build.add((size,)) for _ in range(parts)])


@builds("SVDF")
def svdf(row: Row, build: Builder) -> FlatModel:
    filters, depth, memory, units = shape(row, "nf", "ni", "mem", "no")
    state = kind(row, "state_type")
    inputs = [
        build.source((1, depth)),
        build.constant((filters, depth), "INT8", 1),
        build.constant((filters, memory), state, 1),
        build.constant((units,), "INT32", 1),
        build.add((1, filters * memory), state, variable=True),
    ]
    return build.model(row["op"], inputs, [build.add((1, units))])


@builds("UNIDIRECTIONAL_SEQUENCE_LSTM")
def lstm(row: Row, build: Builder) -> FlatModel:
    steps, depth, units = shape(row, "T", "ni", "no")
    inputs = [build.source((1, steps, depth))]
    inputs += [build.constant((units, depth), "INT8", 1) for _ in range(4)]
    inputs += [build.constant((units, units), "INT8", 1) for _ in range(4)]
    inputs += [-1] * 3 + [build.constant((units,), "INT32", 1) for _ in range(4)] + [-1] * 2
    inputs.append(build.add((1, units), variable=True))
    inputs.append(build.add((1, units), "INT16", variable=True))
    inputs += [-1] * 4
    intermediates = [build.add((0,)) for _ in range(5)]
    out = build.add((1, steps, units))
    return build.model(row["op"], inputs, [out], intermediates=intermediates)


def build_model(row: Row) -> FlatModel:
    """Returns the row's model; constants no operator reads fill up its number of tensors."""
    build = Builder()
    model = BUILDERS[row["op"]](row, build)
    for _ in range(number(row, "n_tensors") - len(build.tensors)):
        build.constant((1,))
    return FlatModel(b"", tuple(build.tensors), model.operators, model.inputs, model.outputs)


def arena(row: Row, model: FlatModel) -> Arena:
    """Returns the computed arena of the row's core and kernels."""
    kernels = "reference" if row["kernels"] == "reference" else "cmsis-nn"
    return compute_arena(model, f"cortex-{row['core']}", kernels)


def fully_described(row: Row) -> bool:
    """Whether the row gives the size of every tensor."""
    return row["op"] != "CONCATENATION" or number(row, "n_inputs") == 2


def differences(row: Row) -> list[str]:
    """Returns what differs between a row and its computed arena, in words."""
    found = arena(row, build_model(row))
    if not found.is_known:
        return [found.explain()]
    pairs = {"tail": found.tail}
    if fully_described(row):
        pairs |= {"head": found.head, "arena_used": found.used}
    pairs["scratch_bytes"] = sum(found.scratch)
    return [
        f"{name} {value} instead of {row[name]}"
        for name, value in pairs.items()
        if value != int(row[name])
    ]


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows that describe a model fully."""
    with path.open(newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["op"] in BUILDERS)


def compare(rows: Iterable[Row]) -> tuple[Counter, Counter, list[str]]:
    """Returns how many rows there are and agree, by operator and kernels, and what differs."""
    total: Counter = Counter()
    same: Counter = Counter()
    wrong = []
    for row in rows:
        key = (row["op"], f"{row['core']} {row['kernels']}")
        found = differences(row)
        total[key] += 1
        same[key] += not found
        if found:
            wrong.append(f"model {row['model']} {' '.join(key)}: {'; '.join(found)}")
    return total, same, wrong


# The layers of mcu_decode.csv by number of weights: operator and geometry.
DECODED = {
    16384: ("FULLY_CONNECTED", {"ni": 256, "no": 64}),
    6400: ("FULLY_CONNECTED", {"ni": 640, "no": 10}),
    32000: ("FULLY_CONNECTED", {"ni": 1000, "no": 32}),
    18432: ("CONV_2D", {"ci": 32, "co": 64, "kh": 3, "kw": 3}),
    432: ("CONV_2D", {"ci": 3, "co": 16, "kh": 3, "kw": 3}),
    3840: ("CONV_2D", {"ci": 40, "co": 96, "kh": 1, "kw": 1}),
    1152: ("DEPTHWISE_CONV_2D", {"ci": 128, "co": 128, "kh": 3, "kw": 3}),
}
DECODERS = {"lut": 0, "huff": 1, "prune": 2}


def build_decoded(row: Row) -> tuple[FlatModel, FlatModel]:
    """Returns a layer with plain weights, and the same layer behind a decoder."""
    code, geometry = DECODED[int(row["weights"])]
    every = {"op": code, "n": 1, "h": 4, "w": 4, "oh": 4, "ow": 4, "sh": 1, "sw": 1, "dh": 1,
             "dw": 1, "bias": 1, "in_type": 9, "w_type": 9, "ndim_out": 2, "batch": 1,
             "perch": 0}  # fmt: skip
    layer = {name: str(value) for name, value in (every | geometry).items()}
    build = Builder()
    plain = BUILDERS[code](layer, build)
    kind_of = next(v for name, v in DECODERS.items() if row["enc"].startswith(name))
    weights = plain.tensors[1]
    ancillary = build.add((16,), "UINT8", 0, raw=bytes([kind_of, 1]) + bytes(14))
    encoded = build.constant((weights.elements,), "UINT8")
    tensors = list(build.tensors)
    tensors[1] = replace(weights, raw=None)
    decode = Operator(0, "CUSTOM", "TFLM_DECODE", 1, (encoded, ancillary), (1,))
    operators = (decode, replace(plain.operators[0], index=1))
    return plain, replace(plain, tensors=tuple(tensors), operators=operators)


def compare_decoded(path: Path) -> tuple[int, list[str]]:
    """Returns the number of rows, and what differs with and without the decoder."""
    count, wrong = 0, []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            core = f"cortex-{row['core']}"
            found = [compute_arena(model, core, "cmsis-nn").used for model in build_decoded(row)]
            count += 1
            if found != [int(row["arena_plain"]), int(row["arena"])]:
                wrong.append(f"{core} {row['enc']} {row['op']} {row['weights']}: {found}")
    return count, wrong


def compare_smallest(rows: Iterable[Row]) -> Counter:
    """Returns how often the smallest arena misses the searched one by how many bytes."""
    misses: Counter = Counter()
    for row in rows:
        if row["min_arena"] and fully_described(row):
            found = arena(row, build_model(row)).smallest
            misses[(found or 0) - int(row["min_arena"])] += 1
    return misses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", type=Path, help="mcu_ops.csv")
    parser.add_argument("decoded", type=Path, nargs="?", help="mcu_decode.csv")
    options = parser.parse_args()
    rows = list(read_rows(options.operators))
    total, same, wrong = compare(rows)
    sets = sorted({key[1] for key in total})
    print("| operator | " + " | ".join(sets) + " |")
    print("|-" * (len(sets) + 1) + "|")
    for name in sorted({key[0] for key in total}):
        cells = [f"{same[name, s]}/{total[name, s]}" if total[name, s] else "-" for s in sets]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\n{sum(same.values())} of {sum(total.values())} rows agree to the byte.")
    misses = compare_smallest(rows)
    exact, searched = misses[0], sum(misses.values())
    print(f"Smallest arena: {exact} of {searched} exact; misses in bytes: {sorted(misses.items())}")
    if options.decoded:
        count, decoded = compare_decoded(options.decoded)
        print(f"Decoded weights: {count - len(decoded)} of {count} rows agree to the byte.")
        wrong += decoded
    print("\n".join(wrong[:50]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
