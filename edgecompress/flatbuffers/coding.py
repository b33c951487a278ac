"""Codes for weights that TensorFlow Lite Micro's DECODE operator expands: tables, bitmaps, Huffman.

An encoded tensor is two byte strings: the code, and ancillary data that begin with a header of 16
bytes (byte 0: kind, byte 1: version 1, byte 4: version 1 of the kind). Every code is lossless.

The formats are those of
https://github.com/tensorflow/tflite-micro/tree/main/tensorflow/lite/micro/kernels (decode_state*).
Huffman tables follow Deep Compression (Han et al. 2016, section 4) in purpose, not in layout.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgecompress.core.errors import ArgumentError, ConversionError
from edgecompress.core.options import Size, option
from edgecompress.core.registry import Registry

# The operator that expands encoded tensors, a custom one.
DECODE = "TFLM_DECODE"
HEADER_BYTES = 16
LUT, HUFFMAN, PRUNE = 0, 1, 2
MAX_INDEX_BITS = 7
MAX_ROOT_BITS = 15
# Byte 5 of a LUT header: the axis of the channels; 15 stands for one table for all channels.
_ONE_TABLE = 15
# Weights whose bits are unpacked at a time: bounds the memory for large models.
_CHUNK = 1 << 16
# Bits of a table's value field and of its count field, by width of an entry.
_VALUE_BITS = {16: 11, 32: 27}


@dataclass(frozen=True)
class DecodingOptions:
    """What the firmware provides for decoding, for making and checking coded files."""

    decompression_memory: int | None = option(
        None,
        "Memory outside the tensor arena that the firmware provides for decoded weights: they then "
        "take no arena.",
        Size(),
    )


@dataclass(frozen=True)
class Encoded:
    """An encoded tensor.

    Attributes:
        coding: `lut`, `prune` or `huffman`.
        data: The code.
        ancillary: Header and tables.
    """

    coding: str
    data: bytes = field(repr=False)
    ancillary: bytes = field(repr=False)

    @property
    def bytes(self) -> int:
        """Bytes of code, header and tables."""
        return len(self.data) + len(self.ancillary)


@dataclass(frozen=True)
class Layout:
    """What a decoder takes over from the tensor that it writes.

    Attributes:
        zero_points: None, one, or one for each channel.
        axis: The axis of the channels.
    """

    zero_points: tuple[int, ...] = ()
    axis: int = 0

    def zeros(self, shape: Sequence[int]) -> np.ndarray:
        """Returns the zero point of each element, flat."""
        points = np.asarray(self.zero_points or (0,), np.int64)
        if points.size == 1:
            return np.broadcast_to(points, int(np.prod(shape)))
        spread = [1] * len(shape)
        spread[self.axis] = -1
        return np.broadcast_to(points.reshape(spread), tuple(shape)).reshape(-1)

    def has_readable_channels(self, shape: Sequence[int]) -> bool:
        """Whether the table and bitmap decoders accept the axis: the first or the last."""
        channels = len(self.zero_points)
        if channels <= 1:
            return self.axis == 0
        return self.axis in (0, len(shape) - 1) and shape[self.axis] == channels


# --- Bits ---------------------------------------------------------------------------------------


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """Returns numbers as fields of 1 to 8 bits, most significant bit first, padded to bytes."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint8)
    return np.packbits((np.asarray(values, np.uint8).reshape(-1, 1) >> shifts) & 1).tobytes()


def unpack_bits(data: bytes, width: int, count: int) -> np.ndarray:
    """Returns `count` fields of `width` bits.

    Raises:
        ConversionError: the data end too early.
    """
    if 8 * len(data) < width * count:
        raise ConversionError(f"{len(data)} bytes of code are too few for {count} values.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=width * count)
    values = np.zeros(count, np.int64)
    for column in bits.reshape(count, width).T:
        values = values << 1 | column
    return values


def _header(kind: int, byte5: int = 0) -> bytes:
    return bytes([kind, 1, 0, 0, 1, byte5]).ljust(HEADER_BYTES, b"\0")


# --- Look-up table: one index for each weight ----------------------------------------------------


def encode_lut(values: np.ndarray) -> Encoded | None:
    """Encodes int8 values as indices of 1 to 7 bits into one table of the values that occur.

    The channel stride is 0 and the axis 15: the decoder takes the number of channels from the
    tensor's scales and advances to the next table after each, whatever axis the header states. Only
    a stride of 0 gives all channels the same table.

    Returns:
        The code; None for more than 128 distinct values.
    """
    table, indices = np.unique(np.asarray(values, np.int8), return_inverse=True)
    if table.size > 1 << MAX_INDEX_BITS:
        return None
    width = max(1, int(table.size - 1).bit_length())
    data = pack_bits(indices.reshape(-1), width)
    header = _header(LUT, _ONE_TABLE << 4 | width)
    return Encoded("lut", data, header + table.tobytes())


def _decode_lut(code: Encoded, shape: Sequence[int], layout: Layout, dtype: np.dtype) -> np.ndarray:
    width, stride = code.ancillary[5] & 7, code.ancillary[6]
    count = int(np.prod(shape))
    indices = unpack_bits(code.data, width, count)
    channels = max(1, len(layout.zero_points))
    if count % channels:
        raise ConversionError(f"{count} weights are not a multiple of {channels} channels.")
    # As in the engine, the channel comes from the scales, not from the header.
    if channels > 1 and layout.axis == len(shape) - 1:
        channel = np.arange(count) % channels
    else:
        channel = np.arange(count) // (count // channels)
    table = np.frombuffer(code.ancillary[HEADER_BYTES:], dtype)
    places = indices + stride * channel
    if places.size and places.max() >= table.size:
        raise ConversionError("An index is outside the table of values.")
    return table[places]


# --- Pruned: one bit for each weight, and the weights that are not zero ---------------------------


def encode_prune(values: np.ndarray, layout: Layout) -> Encoded:
    """Encodes values as one bit each (does it differ from the zero point?) plus those that differ.

    Args:
        values: int8 array.
        layout: Its zero points; the decoder writes them where the bit is 0.
    """
    flat = np.asarray(values, np.int8).reshape(-1)
    kept = flat != layout.zeros(values.shape)
    return Encoded("prune", pack_bits(kept, 1), _header(PRUNE) + flat[kept].tobytes())


def _decode_prune(
    code: Encoded, shape: Sequence[int], layout: Layout, dtype: np.dtype
) -> np.ndarray:
    kept = unpack_bits(code.data, 1, int(np.prod(shape))).astype(bool)
    stored = np.frombuffer(code.ancillary[HEADER_BYTES:], dtype)
    if stored.size < kept.sum():
        raise ConversionError("The bitmap names more values than are stored.")
    flat = layout.zeros(shape).astype(dtype)
    flat[kept] = stored[: kept.sum()]
    return flat


# --- Huffman ------------------------------------------------------------------------------------

# A node of the code tree: a symbol, or the nodes behind bit 0 and bit 1.
_Node = int | tuple["_Node", "_Node"]


@dataclass(frozen=True)
class Codebook:
    """A canonical Huffman code and the tables that decode it.

    Attributes:
        codes: Symbol -> (bits of its code, code).
        root_bits: Bits of the first look-up.
        entry_bits: Width of a table entry, 16 or 32.
        entries: The tables, one after another, starting with the first look-up's.
    """

    codes: Mapping[int, tuple[int, int]]
    root_bits: int
    entry_bits: int
    entries: tuple[int, ...] = field(repr=False)

    def ancillary(self) -> bytes:
        """Returns header and tables."""
        dtype = "<u2" if self.entry_bits == 16 else "<u4"
        wide = int(self.entry_bits == 32)
        header = _header(HUFFMAN, (self.root_bits - 1) << 4 | wide)
        return header + np.array(self.entries, dtype).tobytes()

    def payload_bits(self, counts: Mapping[int, int]) -> int:
        """Returns the total bits of a code, given how often each symbol occurs."""
        return sum(count * self.codes[symbol][0] for symbol, count in counts.items())


def count_symbols(values: np.ndarray) -> dict[int, int]:
    """Returns how often each value occurs."""
    symbols, counts = np.unique(values, return_counts=True)
    return {int(s): int(c) for s, c in zip(symbols, counts, strict=True)}


def code_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Returns the bits of each symbol's Huffman code (Huffman 1952); a single symbol gets 1 bit.

    Args:
        counts: Symbol -> how often it occurs; at least one symbol.
    """
    if len(counts) == 1:
        return dict.fromkeys(counts, 1)
    # The running number breaks ties, so that equal input gives equal code.
    heap = [(count, i, [symbol]) for i, (symbol, count) in enumerate(sorted(counts.items()))]
    heapq.heapify(heap)
    lengths = dict.fromkeys(counts, 0)
    number = len(heap)
    while len(heap) > 1:
        (low, _, left), (high, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(heap, (low + high, number, left + right))
        number += 1
    return lengths


def canonical_codes(lengths: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """Returns the canonical code of each symbol, (bits, code): shorter first, then by symbol."""
    codes, code, last = {}, 0, 0
    for bits, symbol in sorted((bits, symbol) for symbol, bits in lengths.items()):
        code <<= bits - last
        codes[symbol] = (bits, code)
        code, last = code + 1, bits
    return codes


def build_codebook(
    counts: Mapping[int, int], root_bits: int | None = None, entry_bits: int | None = None
) -> Codebook:
    """Builds a Huffman code and its decoding tables.

    Args:
        counts: Symbol -> how often it occurs; at least one symbol.
        root_bits: Bits of the first look-up, 1 to 15, or the longest code's if that is shorter.
            More bits mean fewer decoding steps but larger tables. Defaults to None: the smallest
            tables.
        entry_bits: 16 (int8 only) or 32. Defaults to None: 16 if the tables' offsets fit.

    Raises:
        ArgumentError: `root_bits` or `entry_bits` is out of range, or 16 bits are too few.

    Example:
        >>> build_codebook({0: 6, 1: 1, -1: 1}).codes
        {0: (1, 0), -1: (2, 2), 1: (2, 3)}
    """
    if root_bits is not None and not 1 <= root_bits <= MAX_ROOT_BITS:
        raise ArgumentError("root_bits", f"be 1 to {MAX_ROOT_BITS}, or None", root_bits)
    if entry_bits not in (None, *_VALUE_BITS):
        raise ArgumentError("entry_bits", "be 16, 32 or None", entry_bits)
    codes = canonical_codes(code_lengths(counts))
    tree = _tree(codes)
    sizes: dict[int, tuple[int, int]] = {}
    _smallest(tree, sizes)
    longest = max(bits for bits, _ in codes.values())
    root = sizes[id(tree)][0] if root_bits is None else min(root_bits, longest)
    narrow = all(-128 <= symbol <= 127 for symbol in codes)
    for width in _VALUE_BITS if entry_bits is None else (entry_bits,):
        entries = _tables(tree, root, sizes, width) if narrow or width == 32 else None
        if entries is not None:
            return Codebook(codes, root, width, entries)
    raise ArgumentError(
        "entry_bits", "be 32 for tables or symbols of this size", entry_bits, "Or leave it out."
    )


def _tree(codes: Mapping[int, tuple[int, int]]) -> _Node:
    by_code = {code: symbol for symbol, code in codes.items()}

    def node(bits: int, prefix: int) -> _Node:
        found = by_code.get((bits, prefix))
        if found is not None:
            return found
        # A single symbol has the code 0; the code 1 never occurs and may decode to anything.
        if len(codes) == 1 and bits:
            return next(iter(codes))
        return node(bits + 1, prefix << 1), node(bits + 1, prefix << 1 | 1)

    return node(0, 0)


def _level(nodes: Sequence[_Node]) -> list[_Node]:
    return [child for node in nodes if isinstance(node, tuple) for child in node]


def _smallest(tree: _Node, sizes: dict[int, tuple[int, int]]) -> int:
    """Computes, for each inner node, the table bits that minimize the total table size."""
    if not isinstance(tree, tuple):
        return 0
    best: tuple[int, int] | None = None
    nodes: list[_Node] = [tree]
    for bits in range(1, MAX_ROOT_BITS + 1):
        nodes = _level(nodes)
        if not nodes:
            break
        size = (1 << bits) + sum(_known(node, sizes) for node in nodes)
        if best is None or size <= best[1]:
            best = bits, size
    if best is None:
        raise ConversionError("The code tree has an inner node without branches.")
    sizes[id(tree)] = best
    return best[1]


def _known(node: _Node, sizes: dict[int, tuple[int, int]]) -> int:
    return sizes[id(node)][1] if id(node) in sizes else _smallest(node, sizes)


def _spread(node: _Node, bits: int, used: int = 0) -> list[tuple[_Node, int]]:
    """Returns a table of `bits` bits: for each index, the node it leads to and the bits used."""
    if bits == 0 or not isinstance(node, tuple):
        return [(node, used)] * (1 << bits)
    return _spread(node[0], bits - 1, used + 1) + _spread(node[1], bits - 1, used + 1)


def _tables(
    tree: _Node, root_bits: int, sizes: Mapping[int, tuple[int, int]], width: int
) -> tuple[int, ...] | None:
    """Lays the tables out; None if an offset does not fit an entry.

    An entry has its top bit set if a symbol is found; the next four bits are the bits that its
    code has in this table. Otherwise they are one less than the bits of the next look-up, and the
    rest is the distance from this entry to the next table.
    """
    shift = _VALUE_BITS[width]
    mask = (1 << shift) - 1
    rows = _spread(tree, root_bits)
    entries: list[int] = []
    position = 0
    while position < len(rows):
        node, used = rows[position]
        if isinstance(node, tuple):
            bits = sizes[id(node)][0]
            distance = len(rows) - position
            if distance > mask:
                return None
            entries.append((bits - 1) << shift | distance)
            rows += _spread(node, bits)
        else:
            entries.append(1 << (width - 1) | used << shift | node & min(mask, 0xFFFF))
        position += 1
    return tuple(entries)


def encode_huffman(values: np.ndarray, book: Codebook) -> Encoded:
    """Encodes values with a code book that covers all of them.

    The bits fill 32-bit words from the top, stored with the most significant byte first, and one
    more word follows: the decoder's last look-up may read beyond the last code.
    """
    symbols, indices = np.unique(np.asarray(values).reshape(-1), return_inverse=True)
    pairs = np.array([book.codes[int(s)] for s in symbols], np.int64)
    lengths, codes = pairs[indices.reshape(-1)].T
    parts = []
    for start in range(0, lengths.size, _CHUNK):
        length, code = lengths[start : start + _CHUNK], codes[start : start + _CHUNK]
        ends = np.cumsum(length)
        # For every bit: how many bits of its code follow it.
        behind = np.repeat(ends, length) - np.arange(ends[-1]) - 1
        parts.append(((np.repeat(code, length) >> behind) & 1).astype(np.uint8))
    stream = np.packbits(np.concatenate(parts)).tobytes()
    data = stream + bytes(-len(stream) % 4 + 4)
    return Encoded("huffman", data, book.ancillary())


def _decode_huffman(
    code: Encoded, shape: Sequence[int], layout: Layout, dtype: np.dtype
) -> np.ndarray:
    width = 32 if code.ancillary[5] & 1 else 16
    root = (code.ancillary[5] >> 4) + 1
    shift = _VALUE_BITS[width]
    found, mask = 1 << (width - 1), (1 << shift) - 1
    tables = np.frombuffer(code.ancillary[HEADER_BYTES:], f"<u{width // 8}").tolist()
    data = code.data + bytes(4)
    position, decoded = 0, []
    for _ in range(int(np.prod(shape))):
        bits, offset = root, 0
        while True:
            start = position >> 3
            window = int.from_bytes(data[start : start + 4], "big")
            offset += window >> (32 - (position & 7) - bits) & ((1 << bits) - 1)
            if offset >= len(tables) or position + bits > 8 * len(code.data):
                raise ConversionError("The Huffman code leaves its tables or ends too early.")
            entry = tables[offset]
            position += bits
            if entry & found:
                break
            bits, offset = (entry >> shift & 15) + 1, offset + (entry & mask)
        position -= max(0, bits - (entry >> shift & 15))
        decoded.append(entry & 0xFFFF if dtype.itemsize > 1 else entry & 0xFF)
    return np.array(decoded, np.uint16).astype(f"u{dtype.itemsize}").view(dtype)


# --- Choosing by name, and back ------------------------------------------------------------------

Encoder = Callable[[np.ndarray, Layout, "int | None"], "Encoded | None"]
CODINGS: Registry[Encoder] = Registry("codings")


@CODINGS.register("lut")
def _lut(values: np.ndarray, layout: Layout, root_bits: int | None) -> Encoded | None:
    return encode_lut(values) if layout.has_readable_channels(values.shape) else None


@CODINGS.register("prune")
def _prune(values: np.ndarray, layout: Layout, root_bits: int | None) -> Encoded | None:
    return encode_prune(values, layout) if layout.has_readable_channels(values.shape) else None


@CODINGS.register("huffman")
def _huffman(values: np.ndarray, layout: Layout, root_bits: int | None) -> Encoded | None:
    return encode_huffman(values, build_codebook(count_symbols(values), root_bits))


_DECODERS = {LUT: _decode_lut, HUFFMAN: _decode_huffman, PRUNE: _decode_prune}


def decode(
    code: Encoded,
    shape: Sequence[int],
    layout: Layout | None = None,
    dtype: np.dtype | type = np.int8,
) -> np.ndarray:
    """Decodes a tensor from its bytes alone, as the engine does.

    Args:
        code: Code and ancillary data.
        shape: Of the tensor.
        layout: Its zero points and channel axis. Defaults to none.
        dtype: int8, or int16 for Huffman codes with 32-bit tables. Defaults to int8.

    Raises:
        ConversionError: the header is unknown, or code and tables do not belong together.
    """
    header = code.ancillary[:HEADER_BYTES]
    if len(header) < HEADER_BYTES or header[0] not in _DECODERS or header[1] != 1 or header[4] != 1:
        raise ConversionError(f"The header {header.hex()} names no known code.")
    flat = _DECODERS[header[0]](code, shape, layout or Layout(), np.dtype(dtype))
    return flat.reshape(tuple(shape))
