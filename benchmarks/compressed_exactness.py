"""Passes the MLPerf Tiny models through every code of weights and compares the outputs bit by bit.

    python benchmarks/compressed_exactness.py --models FOLDER

FOLDER holds the published int8 files (https://github.com/mlcommons/tiny). All filters of a model
are rounded so that the code applies, coded whether it pays or not, and the rounded and the coded
file run in TensorFlow Lite Micro on random inputs over the whole int8 range. Ends with 1 where an
output differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.flatbuffers.coding import (
    CODINGS,
    Encoded,
    Layout,
    build_codebook,
    count_symbols,
    encode_huffman,
)
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

sys.path.append(str(Path(__file__).parent))  # Python leaves it out where asked to (-P).
from compressed_sizes import MODELS, Treatment, binary, cluster, prune, ternary

Codes = dict[int, Encoded]
Encode = Callable[[Mapping[int, Tensor]], Codes]


def each(coding: str) -> Encode:
    """Codes every tensor by itself."""
    return lambda tensors: {
        index: CODINGS[coding](t.values(), Layout(t.zero_points, t.quantized_dimension), None)
        for index, t in tensors.items()
    }


def own_book(entry_bits: int, root_bits: int | None = None) -> Encode:
    """Gives every tensor a Huffman book of its own."""

    def encode(tensors: Mapping[int, Tensor]) -> Codes:
        codes = {}
        for index, tensor in tensors.items():
            book = build_codebook(count_symbols(tensor.values()), root_bits, entry_bits)
            codes[index] = encode_huffman(tensor.values(), book)
        return codes

    return encode


def one_book(entry_bits: int) -> Encode:
    """Gives all tensors one Huffman book."""

    def encode(tensors: Mapping[int, Tensor]) -> Codes:
        values = np.concatenate([t.values().reshape(-1) for t in tensors.values()])
        book = build_codebook(count_symbols(values), None, entry_bits)
        return {index: encode_huffman(t.values(), book) for index, t in tensors.items()}

    return encode


@dataclass(frozen=True)
class Encoder:
    """One code: what makes weights fit for it, and the function from tensors to codes."""

    change: Treatment | None
    encode: Encode


def _clustered(count: int) -> Treatment:
    return lambda w: cluster(w, min(count, len(np.unique(w))))


ENCODERS: dict[str, Encoder] = {
    "table, 1 bit": Encoder(binary, each("lut")),
    "table, 2 bits": Encoder(ternary, each("lut")),
    **{f"table, {n} bits": Encoder(_clustered(1 << n), each("lut")) for n in range(3, 8)},
    "bitmap": Encoder(lambda w: prune(w, 0.8), each("prune")),
    "Huffman, own book, 16-bit tables": Encoder(None, own_book(16)),
    "Huffman, own book, 16-bit tables, 8 root bits": Encoder(None, own_book(16, 8)),
    "Huffman, own book, 32-bit tables": Encoder(None, own_book(32)),
    "Huffman, shared book, 16-bit tables": Encoder(None, one_book(16)),
    "Huffman, shared book, 32-bit tables": Encoder(None, one_book(32)),
}


def filters(flat: FlatModel) -> dict[int, Tensor]:
    """Returns the filters of a model by index."""
    found = (flat.tensor(o, 1) for o in flat.operators if o.code in FILTER_READERS)
    return {tensor.index: tensor for tensor in found if tensor is not None}


def rounded(data: bytes, changes: Mapping[int, Treatment | None]) -> bytes:
    """Returns the file with filters changed: tensor index -> what is done to it."""
    model, tensors = unpack(data), filters(read_tflite(data))
    for index, change in changes.items():
        if change is not None:
            values = change(tensors[index].values()).astype(np.int8)
            buffer = model.buffers[model.subgraphs[0].tensors[index].buffer]
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    return pack(model)


def main() -> int:
    """Prints a table of models and codes; 1 where an output differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    parser.add_argument("--samples", type=int, default=100, help="random inputs")
    arguments = parser.parse_args()
    missing = [name for name in MODELS if not (arguments.models / name).is_file()]
    if missing:
        print(f"{arguments.models} lacks {', '.join(missing)}.", file=sys.stderr)
        return 2

    from edgecompress.converters.compressed import (
        verify_exact,
    )
    from edgecompress.converters.decoders import (
        insert_decoders,
    )
    from edgecompress.core.errors import ConversionError

    print(f"Exact on {arguments.samples} random inputs:\n")
    print("| code |" + "".join(f" {title} |" for title in MODELS.values()))
    print("| --- |" + " --- |" * len(MODELS))
    different = 0
    for name, encoder in ENCODERS.items():
        cells = []
        for file in MODELS:
            data = (arguments.models / file).read_bytes()
            data = rounded(data, dict.fromkeys(filters(read_tflite(data)), encoder.change))
            codes = encoder.encode(filters(read_tflite(data)))
            try:
                verify_exact(data, insert_decoders(data, codes), arguments.samples)
                cells.append(f"yes, {len(codes)} tensors")
            except ConversionError as error:
                cells.append(f"NO: {error}")
                different += 1
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
