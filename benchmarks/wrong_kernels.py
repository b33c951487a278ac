"""Counts where CMSIS-NN computes other values than the reference kernels, against our warnings.

Runs small models of the operators with known faults, of many shapes, with random weights and inputs
in a program of your own (see `operator_support.py`) and in the tflite-micro wheel, and prints for
each operator how many models differ and how many of those `wrong_results` names.

Usage: python benchmarks/wrong_kernels.py cortex-m4 --program "qemu-system-arm ..."
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
from operator_models import Case, T
from operator_support import apart, deviates, run_program

from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.targets.operators import wrong_results
from edgecompress.targets.profile import load_target


def _random(random: np.random.Generator, shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    most = 2 ** (bits - 1) - 1
    return random.integers(-most, most + 1, shape)


def _weights(random: np.random.Generator, shape: tuple[int, ...], axis: int, kind: str) -> T:
    bits = int(kind[3:])
    return T(kind, shape, _random(random, shape, bits), (0.01,) * shape[axis], 0, axis)


def _bias(random: np.random.Generator, channels: int) -> T:
    values = random.integers(-500, 500, channels)
    return T("INT32", (channels,), values, (0.01 / 16,) * channels, 0)


def transposed(random: np.random.Generator) -> Iterator[Case]:
    """TRANSPOSE_CONV: channels, kernel, stride, padding."""
    for channels, kh, kw, sh, sw, same in itertools.product(
        (4, 8, 16, 17, 32), (2, 3, 4, 5), (3, 4), (1, 2, 3), (1, 2), (True, False)
    ):
        rows, columns = (4 * sh, 5 * sw) if same else (3 * sh + kh, 4 * sw + kw)
        yield Case(
            "TRANSPOSE_CONV",
            (T("INT32", (4,), np.array([1, rows, columns, 4])),
             _weights(random, (4, kh, kw, channels), 0, "INT8"), T("INT8", (1, 4, 5, channels)),
             _bias(random, 4)),
            (T("INT8", (1, rows, columns, 4), None, (0.3,), -5),),
            {"strideW": sw, "strideH": sh, "padding": 0 if same else 1},
        )  # fmt: skip


def depthwise(random: np.random.Generator, kind: str) -> Iterator[Case]:
    """DEPTHWISE_CONV_2D: channels, multiplier, kernel, stride, padding."""
    for channels, multiplier, size, stride, same in itertools.product(
        (1, 3, 4, 8), (1, 2, 4), (1, 3, 5), (1, 2), (True, False)
    ):
        out = channels * multiplier
        side = -(-7 // stride) if same else (7 - size) // stride + 1
        yield Case(
            "DEPTHWISE_CONV_2D",
            (T("INT8", (1, 7, 7, channels)), _weights(random, (1, size, size, out), 3, kind),
             _bias(random, out)),
            (T("INT8", (1, side, side, out), None, (0.1,), -5),),
            {"strideW": stride, "strideH": stride, "padding": 0 if same else 1,
             "depthMultiplier": multiplier, "dilationWFactor": 1, "dilationHFactor": 1},
        )  # fmt: skip


def svdf(random: np.random.Generator, state: str) -> Iterator[Case]:
    """SVDF: units, rank, memory, inputs."""
    for units, rank, memory, inputs in itertools.product((2, 4, 8), (1, 2), (2, 4, 8), (4, 8)):
        filters = units * rank
        yield Case(
            "SVDF",
            (T("INT8", (1, inputs)),
             T("INT8", (filters, inputs), _random(random, (filters, inputs)), (0.01,), 0),
             T(state, (filters, memory), _random(random, (filters, memory)), (0.01,), 0),
             T("INT32", (units,), random.integers(-50, 50, units), (0.01 * 0.002,), 0),
             T(state, (1, memory * filters), None, (0.002,), 0, variable=True)),
            (T("INT8", (1, units), None, (0.02,), -3),),
            {"rank": rank, "fusedActivationFunction": 0},
        )  # fmt: skip


def one_row(random: np.random.Generator) -> Iterator[Case]:
    """CONV_2D of one row: length, kernel, stride, padding."""
    for length, kernel, stride, channels, same in itertools.product(
        (19, 20, 21), (3, 5, 7), (1, 2), (4, 8), (True, False)
    ):
        out = -(-length // stride) if same else (length - kernel) // stride + 1
        yield Case(
            "CONV_2D",
            (T("INT8", (1, 1, length, channels)),
             _weights(random, (8, 1, kernel, channels), 0, "INT8"), _bias(random, 8)),
            (T("INT8", (1, 1, out, 8), None, (0.3,), -5),),
            {"strideW": stride, "strideH": stride, "padding": 0 if same else 1,
             "dilationWFactor": 1, "dilationHFactor": 1},
        )  # fmt: skip


def main() -> None:
    """Prints one line for each operator."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("core", choices=["cortex-m4", "cortex-m55"])
    parser.add_argument("--program", required=True)
    options = parser.parse_args()
    target = load_target(options.core)
    random = np.random.default_rng(0)
    groups = {
        "TRANSPOSE_CONV": list(transposed(random)),
        "DEPTHWISE_CONV_2D, INT8 weights": list(depthwise(random, "INT8")),
        "DEPTHWISE_CONV_2D, INT4 weights": list(depthwise(random, "INT4")),
        "SVDF, INT8 state": list(svdf(random, "INT8")),
        "SVDF, INT16 state": list(svdf(random, "INT16")),
        "CONV_2D of one row": list(one_row(random)),
    }
    print(f"{'operator':34} models  differ: warned  silent   equal: warned  silent")
    for name, cases in groups.items():
        files = [case.data() for case in cases]
        models = [read_tflite(data) for data in files]
        mine, theirs = list(run_program(files, options.program)), apart("tflm", files)
        counts: Counter[tuple[bool, bool]] = Counter()
        for case, model, a, b in zip(cases, models, mine, theirs, strict=True):
            if not (a.runs and b.runs):
                print(f"  did not run: {a.text} | {b.text}")
                continue
            wrong = deviates(model, a.outputs, b.outputs, steps=0)
            warned = bool(wrong_results(model, target))
            counts[wrong, warned] += 1
            if wrong and not warned:
                shapes = [tensor.shape for tensor in case.inputs if tensor is not None]
                print(f"  silent: {shapes} {case.options}")
        print(
            f"{name:34} {len(files):6} {counts[True, True]:15} {counts[True, False]:7} "
            f"{counts[False, True]:15} {counts[False, False]:7}"
        )


if __name__ == "__main__":
    main()
