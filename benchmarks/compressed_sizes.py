"""Prints what coding the weights costs and saves, for each model, treatment and coding.

    python benchmarks/compressed_sizes.py --models FOLDER

FOLDER holds the published int8 files of the MLPerf Tiny reference models
(https://github.com/mlcommons/tiny). Pruning and clustering are done on the int8 weights, without
training: the table is about sizes, not about accuracy. Arena and instructions are those of a
Cortex-M4 with CMSIS-NN; exact is the comparison of all outputs in TensorFlow Lite Micro.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODELS = (
    "ad01_int8.tflite",
    "pretrainedResnet_quant.tflite",
    "kws_ref_model.tflite",
    "vww_96_int8.tflite",
)
ALL = ("lut", "prune", "huffman")
CORE = "cortex-m4"


def cluster(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the values moved to `count` centres of their own (Lloyd's k-means)."""
    flat = values.reshape(-1).astype(float)
    centres = np.linspace(flat.min(), flat.max(), count)
    for _ in range(20):
        nearest = np.abs(flat[:, None] - centres).argmin(1)
        sums = np.bincount(nearest, flat, count)
        sizes = np.bincount(nearest, minlength=count)
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
    centres = centres.round()
    return centres[np.abs(flat[:, None] - centres).argmin(1)].reshape(values.shape)


def prune(values: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns the values with the smallest magnitudes set to zero."""
    magnitudes = np.abs(values.astype(int))
    order = np.argsort(magnitudes.reshape(-1), kind="stable")
    kept = np.ones(values.size, bool)
    kept[order[: round(sparsity * values.size)]] = False
    return np.where(kept.reshape(values.shape), values, 0)


Treatment = Callable[[np.ndarray], np.ndarray]
# Name -> what is done to a filter, the codings, bits of the first Huffman look-up.
ROWS: dict[str, tuple[Treatment | None, tuple[str, ...], int | None]] = {
    "as published": (None, ALL, None),
    "as published, 8 root bits": (None, ALL, 8),
    "16 clusters": (lambda w: cluster(w, 16), ("lut",), None),
    "16 clusters, all codings": (lambda w: cluster(w, 16), ALL, None),
    "80 % pruned": (lambda w: prune(w, 0.8), ("prune",), None),
    "80 % pruned, all codings": (lambda w: prune(w, 0.8), ALL, None),
    "90 % pruned": (lambda w: prune(w, 0.9), ("prune",), None),
    "90 % pruned, all codings": (lambda w: prune(w, 0.9), ALL, None),
    "80 % pruned, 16 clusters, all": (lambda w: prune(cluster(w, 16), 0.8), ALL, None),
}


def treated(data: bytes, change: Treatment) -> bytes:
    """Returns the file with its filters of at least 512 weights changed."""
    from edgecompress.core.flatbuffer import FILTER_READERS
    from edgecompress.core.flatbuffer import read_tflite
    from edgecompress.core.flatbuffer_edit import pack, unpack

    flat, model = read_tflite(data), unpack(data)
    for operator in flat.operators:
        weights = flat.tensor(operator, 1)
        if operator.code in FILTER_READERS and weights is not None and weights.elements >= 512:
            values = change(weights.values()).astype(np.int8)
            buffer = model.buffers[model.subgraphs[0].tensors[weights.index].buffer]
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    return pack(model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    parser.add_argument("--samples", type=int, default=100, help="random inputs to compare on")
    arguments = parser.parse_args()
    missing = [name for name in MODELS if not (arguments.models / name).is_file()]
    if missing:
        print(f"{arguments.models} lacks {', '.join(missing)}.", file=sys.stderr)
        return 2

    from edgecompress.converters.compressed import compress
    from edgecompress.core.flatbuffer import FlatModel, read_tflite
    from edgecompress.targets.arena import compute_arena
    from edgecompress.targets.instructions_decode import UnknownCode, decode_instructions

    def arena(flat: FlatModel) -> float:
        return compute_arena(flat, CORE).used or float("nan")

    print("| model | weights | stripped | coded | arena | coded | tensors | decode instructions |"
          f" exact on {arguments.samples} |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in MODELS:
        published = (arguments.models / name).read_bytes()
        for label, (change, codings, root_bits) in ROWS.items():
            data = published if change is None else treated(published, change)
            result = compress(
                data, codings=codings, root_bits=root_bits, arena=arena, samples=arguments.samples
            )
            flat = read_tflite(result.artifact.data)
            decoders = [o for o in flat.operators if o.name == "TFLM_DECODE"]
            try:
                steps = f"{sum(decode_instructions(flat, o, 'dsp') for o in decoders):,.0f}"
            except UnknownCode as reason:
                steps = f"unknown: {reason}"
            used = [t.coding for t in result.tensors if t.coding != "raw"]
            mix = ", ".join(f"{used.count(c)} {c}" for c in ALL if c in used) or "none"
            print(
                f"| {name} | {label} | {result.bytes_stripped:,} B "
                f"| {len(result.artifact.data):,} B | {result.arena_before:,.0f} B "
                f"| {result.arena_after:,.0f} B | {mix} | {steps} | yes |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
