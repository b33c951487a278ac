"""Prints what each phone format of few-bit weights costs: size, download, latency, outputs.

    python benchmarks/phone_formats.py [--processes 5]

The models are of random weights, made binary or ternary with one factor for each output channel as
in XNOR-Net, and quantized to int8: the table is about formats, not about accuracy. Latency is the
CPU time of the computing thread, the fastest of several processes (`targets.bench`); tflite-runtime
stands for runtimes without int8 kernels of XNNPACK on x86. "+-1" is what int8 would be with the
codes 1 and -1 instead of 127 and -127. The second table is about sparse fully-connected weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

ENGINES = ("litert", "tflite-runtime")


def networks() -> dict[str, Any]:
    """Returns the Keras models by what they are."""
    import keras
    from keras import layers

    def conv() -> keras.Model:
        body = [layers.Conv2D(64, 3, padding="same", activation="relu") for _ in range(4)]
        return keras.Sequential([keras.Input((32, 32, 64)), *body])

    def dense() -> keras.Model:
        body = [layers.Dense(1024, activation="relu") for _ in range(3)]
        return keras.Sequential([keras.Input((1024,)), *body])

    def pointwise() -> keras.Model:
        body = [layers.Conv2D(256, 1, activation="relu") for _ in range(3)]
        return keras.Sequential([keras.Input((14, 14, 256)), *body])

    return {
        "4 x 3x3 convolution, 64 channels, 32x32": conv(),
        "3 x fully connected, 1024": dense(),
        "3 x 1x1 convolution, 256 channels, 14x14": pointwise(),
    }


def make_few(model: Any, levels: int, rng: np.random.Generator) -> None:
    """Makes the kernels binary or ternary, with one factor for each output channel."""
    for layer in model.layers:
        kernel = rng.normal(size=layer.kernel.shape) / np.sqrt(np.prod(layer.kernel.shape[:-1]))
        factor = np.abs(kernel).mean(axis=tuple(range(kernel.ndim - 1)), keepdims=True)
        signs = np.where(kernel >= 0, 1, -1)
        if levels == 3:
            signs = np.where(np.abs(kernel) < 0.7 * factor, 0, signs)
        layer.kernel.assign(signs * factor)
        layer.bias.assign(rng.normal(size=layer.bias.shape) * 0.1)


def int8(model: Any, rng: np.random.Generator, per_channel: bool = True) -> bytes:
    from edgecompress.converters import float32
    from edgecompress.converters import int8 as converter

    x = rng.normal(size=(20, *model.inputs[0].shape[1:])).astype(np.float32)
    floats = float32.convert(model)
    return converter.convert(floats, calibration=[x], dense_per_channel=per_channel).data


def best(data: bytes, engine: str, processes: int) -> float | None:
    """Returns microseconds of the fastest process; None where the engine refuses the file."""
    from edgecompress.core.errors import EngineError
    from edgecompress.targets.bench import bench_host

    try:
        return bench_host(data, engine=engine, processes=processes, min_seconds=0.2).low
    except EngineError:
        return None


def plus_minus_one(data: bytes) -> tuple[bytes, float, float]:
    """Returns the int8 file with codes of one, and by what and how often outputs differ."""
    from edgecompress.converters.binary_weights import (
        run_reference,
        verify_stored,
    )
    from edgecompress.converters.stored_weights import (
        store_weights,
    )
    from edgecompress.converters.weight_formats import Filter, Stored

    reference = run_reference(data, max_steps=10)
    plan = {}
    for operator in reference.flat.operators:
        filter_ = Filter(operator, reference.flat.tensors[operator.inputs[1]])
        if filter_.grid is not None:
            plan[filter_.tensor.index] = Stored(filter_.grid.levels, "INT8", filter_.grid.steps)
    made = store_weights(reference.flat.data, plan)
    found = verify_stored(reference, made, plan)
    return made, found.steps, found.changed


def print_formats(processes: int) -> None:
    from edgecompress.converters.binary_weights import (
        compare,
    )
    from edgecompress.flatbuffers.artifact import Artifact

    print("| model | weights | format | file | compressed | outputs that differ | LiteRT, us "
          "| tflite-runtime, us |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, model in networks().items():
        for levels, kind in ((2, "binary"), (3, "ternary")):
            rng = np.random.default_rng(levels)
            make_few(model, levels, rng)
            data = int8(model, rng)
            found = compare(data, engines=ENGINES)
            rows = [(r.format, r.artifact.data, r.steps, r.changed) for r in found.results
                    if r.format == "int8" or r.stored]  # fmt: skip
            rows.insert(1, ("int8, +-1", *plus_minus_one(data)))
            for label, made, steps, changed in rows:
                times = [best(made, engine, processes) for engine in ENGINES]
                texts = ["does not load" if t is None else f"{t:,.0f}" for t in times]
                apart = f"{changed:.1%}, by {steps:g} at most" if changed else "none"
                small = Artifact("", made, "").compressed_bytes
                print(
                    f"| {name} | {kind} | {label} | {len(made):,} B | {small:,} B | {apart} "
                    f"| {texts[0]} | {texts[1]} |",
                    flush=True,
                )
            for label, reason in found.failures.items():
                print(f"| {name} | {kind} | {label} | {reason} | | | | |", flush=True)


def print_one_scale() -> None:
    """Prints what `int8` does where the units of a layer share one scale."""
    from edgecompress.converters.binary_weights import (
        compare,
    )

    name, rng = "3 x fully connected, 1024", np.random.default_rng(2)
    model = networks()[name]
    make_few(model, 2, rng)
    found = compare(int8(model, rng, per_channel=False), ["int8"], engines=ENGINES[:1])
    after = found["int8"]
    print(
        f"{name}, binary, one scale for a layer: compressed {found.compressed_before:,} B, with "
        f"one pair of codes {after.compressed_bytes:,} B; {after.changed:.2%} of the outputs "
        f"differ, by {after.steps:g} at most\n"
    )


def print_sparse(processes: int) -> None:
    from edgecompress.converters import float32
    from edgecompress.converters.sparse import store_sparse
    from edgecompress.flatbuffers.artifact import Artifact
    from edgecompress.flatbuffers.editor import strip
    from edgecompress.flatbuffers.reading import read_tflite

    print("| fully connected, 3 x 1024 | zero blocks | file | compressed | LiteRT, us "
          "| tflite-runtime, us |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    for share in (0.7, 0.8, 0.9, 0.95):
        model = networks()["3 x fully connected, 1024"]
        for layer in model.layers:
            kernel = layer.kernel.numpy()
            kept = rng.random((kernel.shape[0] // 4, kernel.shape[1])) >= share
            layer.kernel.assign(np.where(np.repeat(kept, 4, 0), kernel, 0))
            layer.bias.assign(rng.normal(size=layer.bias.shape) * 0.1)
        dense = strip(float32.convert(model).artifact.data)
        filters = [o.inputs[1] for o in read_tflite(dense).operators]
        for label, data in (("dense", dense), ("sparse", store_sparse(dense, filters))):
            times = [best(data, engine, processes) for engine in ENGINES]
            texts = ["does not load" if t is None else f"{t:,.0f}" for t in times]
            small = Artifact("", data, "").compressed_bytes
            print(
                f"| {label} | {share:.0%} | {len(data):,} B | {small:,} B | {texts[0]} "
                f"| {texts[1]} |",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=5, help="fresh processes to time in")
    arguments = parser.parse_args()

    from edgecompress.targets.bench import bench_host

    model = networks()["3 x fully connected, 1024"]
    make_few(model, 2, np.random.default_rng(0))
    data = int8(model, np.random.default_rng(0))
    host = bench_host(data, processes=1, min_seconds=0.05)
    print(f"{host.cpu}, {platform.machine()}, {host.cores} CPUs, 1 thread; LiteRT {host.version}\n")
    print_formats(arguments.processes)
    print()
    print_one_scale()
    print_sparse(arguments.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
