"""The size of a layer in Deep Compression's format: weights, relative indices, codebook.

Han, Mao and Dally, Deep Compression, 2016, https://arxiv.org/abs/1510.00149. A pruned layer stores
its non-zero weights, each with the distance from the previous one (section 2, figure 2); after
clustering, a weight is an index into a codebook of shared values (section 3, equation 1); finally,
both kinds of indices are Huffman-coded separately (section 4). The numbers are those of the paper's
tables 2 to 5: codebooks count, biases and the tables of a Huffman decoder do not. No device runs
this format; the size of a TensorFlow Lite Micro file is a different number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.flatbuffers.coding import code_lengths, count_symbols

FLOAT_BITS = 32
MAX_RELATIVE_BITS = 16


@dataclass(frozen=True, eq=False)
class RelativeIndex:
    """An array as values with distances.

    Attributes:
        gaps: Distance of each stored value from the previous one, 1 to `2 ** bits`; the first
            counts from the position before the array.
        values: The stored values: non-zero ones, and filler zeros for gaps that are too long.
        bits: Width of a gap, which is stored less 1.
        size: Elements of the array; zeros after the last stored value cost nothing.
    """

    gaps: np.ndarray
    values: np.ndarray
    bits: int
    size: int

    @property
    def fillers(self) -> int:
        """Stored zeros."""
        return int(np.count_nonzero(self.values == 0))

    def dense(self) -> np.ndarray:
        """Returns the array again, flat."""
        flat = np.zeros(self.size, self.values.dtype)
        flat[np.cumsum(self.gaps) - 1] = self.values
        return flat


def relative_index(values: np.ndarray, bits: int) -> RelativeIndex:
    """Returns an array as its non-zero values with distances of `bits` bits.

    If a distance is larger than `2 ** bits`, filler zeros are stored, each at the largest distance:
    section 2 and figure 2 of the paper, whose example has 3 bits and distances up to 8.

    Args:
        values: Array of any shape, read in the order in which it is stored.
        bits: Width of a distance, 1 to 16.

    Raises:
        ArgumentError: `bits` is out of range.

    Example:
        >>> values = np.zeros(16)
        >>> values[[1, 4, 15]] = 3.4, 0.9, 1.7
        >>> found = relative_index(values, 3)
        >>> found.gaps.tolist(), found.values.tolist()
        ([2, 3, 8, 3], [3.4, 0.9, 0.0, 1.7])
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_RELATIVE_BITS:
        raise ArgumentError("bits", f"be a whole number, 1 to {MAX_RELATIVE_BITS}", bits)
    flat = np.ravel(values)
    positions = np.flatnonzero(flat)
    steps = np.diff(positions, prepend=-1)
    longest = 1 << bits
    fillers = (steps - 1) // longest
    places = np.cumsum(fillers + 1) - 1
    entries = len(positions) + int(fillers.sum())
    gaps = np.full(entries, longest, np.int64)
    gaps[places] = steps - fillers * longest
    stored = np.zeros(entries, flat.dtype)
    stored[places] = flat[positions]
    return RelativeIndex(gaps, stored, bits, flat.size)


@dataclass(frozen=True)
class Storage:
    """The size of a layer in Deep Compression's format.

    Attributes:
        weights: Elements of the layer's kernel.
        kept: Elements other than zero.
        entries: Stored weights: `kept` plus filler zeros; all elements if nothing is pruned.
        values: Number of distinct values among the entries.
        weight_bits: Bits of a weight: of its index into the codebook, or 32 without one.
        index_bits: Bits of a distance; 0 if nothing is pruned.
        codebook_bits: 32 for each value; 0 without a codebook.
        huffman_weight_bits: Bits of all Huffman-coded weights together.
        huffman_index_bits: Bits of all Huffman-coded distances together.
    """

    weights: int
    kept: int
    entries: int
    values: int
    weight_bits: int
    index_bits: int
    codebook_bits: int
    huffman_weight_bits: int
    huffman_index_bits: int

    @property
    def fillers(self) -> int:
        """Stored filler zeros; 0 if nothing is pruned."""
        return self.entries - self.kept if self.index_bits else 0

    @property
    def original_bytes(self) -> int:
        """Bytes of the kernel in 32-bit floats."""
        return self.weights * FLOAT_BITS // 8

    @property
    def quantized_bytes(self) -> int:
        """Bytes after pruning and quantization (P+Q): entries, distances, codebook."""
        bits = self.entries * (self.weight_bits + self.index_bits) + self.codebook_bits
        return -(-bits // 8)

    @property
    def huffman_bytes(self) -> int:
        """Bytes after Huffman coding as well (P+Q+H)."""
        return -(-(self.huffman_weight_bits + self.huffman_index_bits + self.codebook_bits) // 8)


def storage(kernel: np.ndarray, index_bits: int = 5, codebook: bool | None = None) -> Storage:
    """Returns the size of a kernel in Deep Compression's format.

    With n entries of k distinct values, weights take `n * ceil(log2(k))` bits and the codebook
    `k * 32` (equation 1). A kernel with zeros has n entries with a distance each, as in
    `relative_index`; one without has no distances.

    Args:
        kernel: Weights of any shape, in the order in which they are stored.
        index_bits: Bits of a distance. The paper uses 5 for LeNet and VGG-16 and 4 for AlexNet
            (tables 2 to 5), and names 8 for convolutions in section 2. Defaults to 5.
        codebook: Whether weights are indices into a codebook, else 32-bit floats. Defaults to None:
            if that is smaller. The paper has one for every layer, however small.

    Raises:
        ArgumentError: `index_bits` is out of range, or the kernel has no elements.

    Example:
        >>> found = storage(np.array([0.5, 0, 0, 0, 0.25] * 40), index_bits=4)
        >>> found.entries, found.weight_bits, found.quantized_bytes, found.huffman_bytes
        (80, 1, 58, 28)
    """
    flat = np.ravel(kernel)
    if not flat.size:
        raise ArgumentError("kernel", "have elements", kernel.shape)
    index = relative_index(flat, index_bits)
    kept = int(np.count_nonzero(flat))
    pruned = kept < flat.size
    entries = index.values if pruned else flat
    # Ranks instead of values: all that matters is how often each occurs.
    counts = dict(enumerate(np.unique(entries, return_counts=True)[1].tolist()))
    values = len(counts)
    weight_bits = max(1, (values - 1).bit_length())
    codebook_bits = values * FLOAT_BITS
    coded_bits = _huffman_bits(counts)
    if codebook is None:
        codebook = weight_bits * len(entries) + codebook_bits < FLOAT_BITS * len(entries)
    if not codebook:
        weight_bits, codebook_bits = FLOAT_BITS, 0
        coded_bits = FLOAT_BITS * len(entries)
    gaps = count_symbols(index.gaps) if pruned else {}
    return Storage(
        weights=flat.size,
        kept=kept,
        entries=len(entries),
        values=values,
        weight_bits=weight_bits,
        index_bits=index_bits if pruned else 0,
        codebook_bits=codebook_bits,
        huffman_weight_bits=coded_bits,
        huffman_index_bits=_huffman_bits(gaps),
    )


def _huffman_bits(counts: Mapping[int, int]) -> int:
    lengths = code_lengths(counts) if counts else {}
    return sum(count * lengths[symbol] for symbol, count in counts.items())
