"""Prints what coding the weights costs and saves, for each model, treatment and coding.

    python benchmarks/compressed_sizes.py --models FOLDER

FOLDER holds the published int8 files of the MLPerf Tiny reference models
(https://github.com/mlcommons/tiny). Pruning, clustering, ternary and binary rounding are done on
the int8 weights of filters with at least 512 weights, without training: the table is about sizes,
not about accuracy.

- Reference: what another encoder of the same codes reached on the same files and treatments, names
  and metadata removed there too. Ends with 1 where a file of ours is larger.
- Payload: bytes of codes, headers and tables.
- Bound: bytes below which a code cannot go with these weights, headers and tables left out. Table:
  an index for every weight. Bitmap: a bit for every weight and a byte for each that is not zero.
  Huffman: the zero-order entropy, and no less than a bit for every weight.
- Arena and instructions: of a Cortex-M4 with CMSIS-NN; "outside" where the decoded weights have
  memory of their own.
- Exact: all outputs in TensorFlow Lite Micro, on random inputs, are those of the original file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.precisions.kmeans import cluster as k_means

MODELS = {
    "ad01_int8.tflite": "anomaly detection",
    "pretrainedResnet_quant.tflite": "image classification",
    "kws_ref_model.tflite": "keyword spotting",
    "vww_96_int8.tflite": "visual wake words",
}
ALL = ("lut", "prune", "huffman")
CORE = "cortex-m4"
SMALLEST = 512


def cluster(values: np.ndarray, count: int, zeros: bool = False) -> np.ndarray:
    """Returns the values moved to `count` centroids, a zero that stays zero not counted."""
    found = k_means(values.astype(float), count, preserve_zeros=zeros)
    centroids = found.centroids.round()
    return np.where(found.labels >= 0, centroids[np.maximum(found.labels, 0)], 0)


def prune(values: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns the values with zero in the place of all up to the quantile of the magnitudes."""
    magnitudes = np.abs(values.astype(int))
    return np.where(magnitudes <= np.quantile(magnitudes, sparsity), 0, values)


def ternary(values: np.ndarray) -> np.ndarray:
    """Returns -127, 0 and 127: zero up to 0.7 times the mean magnitude (Li et al. 2016)."""
    magnitudes = np.abs(values.astype(int))
    return 127 * np.sign(values.astype(int)) * (magnitudes > 0.7 * magnitudes.mean())


def binary(values: np.ndarray) -> np.ndarray:
    """Returns -127 and 127."""
    return np.where(values >= 0, 127, -127)


Treatment = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One row of each model: what is done to its filters, the codings, bits of the first look-up.

    `reference` holds the reference's bytes for the models in the order of MODELS.
    """

    label: str
    change: Treatment | None
    codings: tuple[str, ...]
    reference: tuple[int, ...] | None = None
    root_bits: int | None = None


ROWS = (
    Row("as published, not coded", None, (), (274_208, 91_168, 42_240, 294_336)),
    Row("as published", None, ALL, (185_920, 86_544, 42_784, 146_496)),
    Row("as published, 8 root bits", None, ALL, root_bits=8),
    Row("16 clusters, 4-bit table", lambda w: cluster(w, 16), ("lut",),
        (143_664, 54_032, 32_656, 193_984)),
    Row("16 clusters, all codings", lambda w: cluster(w, 16), ALL,
        (109_072, 53_680, 32_656, 129_760)),
    Row("ternary, 2-bit table", ternary, ("lut",), (76_896, 34_192, 26_480, 140_608)),
    Row("ternary, all codings", ternary, ALL, (59_776, 29_968, 25_408, 117_712)),
    Row("binary, 1-bit table", binary, ("lut",), (43_872, 24_576, 23_760, 114_752)),
    Row("80 % pruned, bitmap", lambda w: prune(w, 0.8), ("prune",),
        (92_928, 40_176, 28_608, 128_960)),
    Row("80 % pruned, all codings", lambda w: prune(w, 0.8), ALL,
        (77_808, 37_872, 27_648, 127_472)),
    Row("90 % pruned, bitmap", lambda w: prune(w, 0.9), ("prune",),
        (69_616, 32_624, 25_760, 122_240)),
    Row("90 % pruned, all codings", lambda w: prune(w, 0.9), ALL,
        (63_040, 31_248, 25_184, 121_792)),
    Row("80 % pruned, 15 clusters and zero, all codings",
        lambda w: cluster(prune(w, 0.8), 15, zeros=True), ALL,
        (63_424, 32_928, 26_704, 122_624)),
)  # fmt: skip


def treated(data: bytes, change: Treatment) -> bytes:
    """Returns the file with its filters of at least 512 weights changed."""
    from edgecompress.flatbuffers.operators import FILTER_READERS
    from edgecompress.flatbuffers.packing import pack, unpack
    from edgecompress.flatbuffers.reading import read_tflite

    flat, model = read_tflite(data), unpack(data)
    for operator in flat.operators:
        weights = flat.tensor(operator, 1)
        if operator.code in FILTER_READERS and weights is not None and weights.elements >= SMALLEST:
            values = change(weights.values()).astype(np.int8)
            buffer = model.buffers[model.subgraphs[0].tensors[weights.index].buffer]
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    return pack(model)


def bound(values: np.ndarray, coding: str) -> float:
    """Returns the bytes below which a code of these values cannot go, headers and tables apart."""
    _, counts = np.unique(values, return_counts=True)
    shares = counts / values.size
    bits = {
        "lut": values.size * max(1, int(len(counts) - 1).bit_length()),
        "prune": values.size + 8 * int(np.count_nonzero(values)),
        "huffman": values.size * max(1.0, float(-(shares * np.log2(shares)).sum())),
    }
    return bits[coding] / 8


def main() -> int:
    """Prints the table; 1 where a file is larger than the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    parser.add_argument("--samples", type=int, default=100, help="random inputs to compare on")
    arguments = parser.parse_args()
    missing = [name for name in MODELS if not (arguments.models / name).is_file()]
    if missing:
        print(f"{arguments.models} lacks {', '.join(missing)}.", file=sys.stderr)
        return 2

    from edgecompress.converters.compressed import (
        compress,
    )
    from edgecompress.flatbuffers.model import FlatModel
    from edgecompress.flatbuffers.reading import read_tflite
    from edgecompress.targets.tflm.arena import compute_arena
    from edgecompress.targets.tflm.instructions_decode import UnknownCode, decode_instructions

    def arena(flat: FlatModel) -> float:
        return compute_arena(flat, CORE).used or float("nan")

    print("| model | weights | reference | file | payload | bound | arena | coded | outside |"
          f" tensors | decode instructions | exact on {arguments.samples} |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    larger = []
    for number, (name, title) in enumerate(MODELS.items()):
        published = (arguments.models / name).read_bytes()
        for row in ROWS:
            data = published if row.change is None else treated(published, row.change)
            result = compress(
                data, codings=row.codings, root_bits=row.root_bits, arena=arena,
                samples=arguments.samples,
            )  # fmt: skip
            coded = result.artifact.data
            flat = read_tflite(coded)
            decoders = [o for o in flat.operators if o.name == "TFLM_DECODE"]
            try:
                steps = f"{sum(decode_instructions(flat, o, 'dsp') for o in decoders):,.0f}"
            except UnknownCode as reason:
                steps = f"unknown: {reason}"
            outside = compute_arena(flat, CORE, decompression_memory=1 << 20).used
            used = [t for t in result.tensors if t.coding != "raw"]
            mix = ", ".join(
                f"{count} {c}" for c in ALL if (count := sum(t.coding == c for t in used))
            )
            weights = {t.name: t for t in read_tflite(data).tensors}
            least = sum(bound(weights[t.name].values(), t.coding) for t in used)
            reference = row.reference[number] if row.reference else None
            if reference is not None and len(coded) > reference:
                larger.append(f"{title}, {row.label}: {len(coded):,} B > {reference:,} B")
            print(
                f"| {title} | {row.label} | {'-' if reference is None else f'{reference:,} B'} "
                f"| {len(coded):,} B | {sum(t.bytes_after for t in used):,} B | {least:,.0f} B "
                f"| {result.arena_before:,.0f} B | {result.arena_after:,.0f} B | {outside:,} B "
                f"| {mix or 'none'} | {steps} | yes |",
                flush=True,
            )
    for line in larger:
        print(f"Larger than the reference: {line}", file=sys.stderr)
    return 1 if larger else 0


if __name__ == "__main__":
    sys.exit(main())
