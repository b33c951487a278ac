"""Compares the ways of choosing ranges, after training and on calibration data alone.

    python benchmarks/range_methods.py --fashion-mnist fashion_mnist.npz [--docs PAGE]

Networks of `qat_agreement.py`, one seed. From one float model: one more epoch in float, and its
file with ranges from 200 samples of calibration data; the same epoch quantization-aware. Accuracy
is that of the file in LiteRT on 10,000 test images; the time is that of the epoch, tracing
included. Expect differences of a few tenths of a point from another seed. About 6 minutes on two
cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from precision_engines import replaced
from qat_agreement import DATA, accuracy, file_accuracy, file_of, further, trained

import edgecompress as ec
from edgecompress.core.files import write_atomic
from edgecompress.precisions.base import Precision

NETWORKS = ("depthwise-separable", "residual", "attention")
# Precision -> whether calibration data can do without training.
METHODS: dict[str, list[tuple[str, Precision, bool]]] = {
    "int4": [
        ("minmax, moving-average", ec.Int4(), True),
        ("mse, moving-average", ec.Int4(weight_ranges="mse"), True),
        ("lsq, moving-average", ec.Int4(weight_ranges="lsq"), False),
        ("lsq, lsq", ec.Int4(weight_ranges="lsq", activation_ranges="lsq"), False),
    ],
    "int8": [
        ("minmax, moving-average", ec.Int8(), True),
        ("minmax, percentile", ec.Int8(activation_ranges="percentile"), True),
        ("minmax, mse", ec.Int8(activation_ranges="mse"), True),
        ("minmax, pact", ec.Int8(activation_ranges="pact"), False),
        ("lsq, lsq", ec.Int8(weight_ranges="lsq", activation_ranges="lsq"), False),
    ],
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    data = DATA["Fashion-MNIST"](options.fashion_mnist, 10_000)
    lines = [
        "| network | weights in | ranges of weights, activations | calibrated | trained | epoch |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print(*lines, sep="\n", flush=True)
    for network in NETWORKS:
        start = trained(network, data, 0)
        started = time.process_time()
        longer = further(start, data, ())
        cost = time.process_time() - started
        floats = 100 * accuracy(longer.predict(data.x_test, verbose=0), data.y_test)
        rows = [f"| {network} | float32 | | | {floats:.2f} | {cost:.0f} s |"]
        print(rows[0], flush=True)
        for precision, methods in METHODS.items():
            for name, settings, calibrates in methods:
                plain = ""
                if calibrates:
                    file = file_of(longer, data, settings, trained=False)
                    plain = f"{100 * file_accuracy(file, data):.2f}"
                started = time.process_time()
                model = further(start, data, [ec.QuantizationAwareTraining(settings)])
                cost = time.process_time() - started
                found = 100 * file_accuracy(file_of(model, data, settings, trained=True), data)
                rows.append(
                    f"| {network} | {precision} | {name} | {plain} | {found:.2f} | {cost:.0f} s |"
                )
                print(rows[-1], flush=True)
        lines += rows
    if options.docs:
        text = options.docs.read_text()
        write_atomic(options.docs, replaced(text, "range methods", "\n".join(lines)))


if __name__ == "__main__":
    main()
