"""Deep Compression's format in bytes: by hand, by a plain loop, and by the published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.recipes.storage import RelativeIndex, relative_index, storage

_RNG = np.random.default_rng(0)


def _by_loop(values: list[float], bits: int) -> list[tuple[int, float]]:
    """Returns (distance, value), one step after the other: an independent encoder."""
    entries, gap = [], 0
    for value in values:
        gap += 1
        if value != 0:
            entries.append((gap, value))
            gap = 0
        elif gap == 2**bits:
            entries.append((gap, 0.0))
            gap = 0
    # Zeros at the end need no filler.
    while entries and entries[-1][1] == 0:
        entries.pop()
    return entries


def _pruned(size: int, kept: float, values: int) -> np.ndarray:
    """Returns random weights of which a share is kept and all of the values occur."""
    weights = np.zeros(size)
    places = _RNG.choice(size, round(kept * size), replace=False)
    # One of the values is the zero.
    weights[places] = 1 + np.arange(len(places)) % (values - 1)
    return weights


class TestRelativeIndex:
    def test_figure_2(self) -> None:
        """The paper's example: 3 bits, and a zero where the distance exceeds 8."""
        values = np.zeros(16)
        values[[1, 4, 15]] = 3.4, 0.9, 1.7
        found = relative_index(values, 3)
        # The paper counts the first distance from position 0, we from before it.
        assert found.gaps.tolist() == [2, 3, 8, 3]
        assert found.values.tolist() == [3.4, 0.9, 0.0, 1.7]
        assert found.fillers == 1

    @pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
    @pytest.mark.parametrize("kept", [0.01, 0.1, 0.5, 1.0])
    def test_as_a_plain_loop_does_it(self, bits: int, kept: float) -> None:
        values = _pruned(1000, kept, 7)
        found = relative_index(values, bits)
        pairs = list(zip(found.gaps.tolist(), found.values.tolist(), strict=True))
        assert pairs == _by_loop(values.tolist(), bits)
        assert found.gaps.min() >= 1 and found.gaps.max() <= 2**bits
        np.testing.assert_array_equal(found.dense(), values)

    def test_a_wrong_gap_would_be_seen(self) -> None:
        found = relative_index(np.array([0, 1.0, 0, 2.0]), 2)
        moved = RelativeIndex(found.gaps[::-1] - [1, 0], found.values, 2, 4)
        assert not np.array_equal(moved.dense(), found.dense())

    def test_ends(self) -> None:
        assert relative_index(np.array([5.0, 0, 0]), 2).gaps.tolist() == [1]
        assert relative_index(np.zeros(100), 2).gaps.tolist() == []
        # A distance of exactly 4 fits 2 bits; one of 5 does not.
        assert relative_index(np.array([0, 0, 0, 1.0]), 2).fillers == 0
        assert relative_index(np.array([0, 0, 0, 0, 1.0]), 2).gaps.tolist() == [4, 1]

    @pytest.mark.parametrize("bits", [0, 17, 2.0, True])
    def test_bits_have_a_range(self, bits: int) -> None:
        with pytest.raises(ArgumentError, match="1 to 16"):
            relative_index(np.ones(3), bits)


class TestStorage:
    def test_by_hand(self) -> None:
        """20 weights, 2 bits of distance: 5 entries of 3 values, one of them a filler.

        Values a, b, a, a at 0, 3, 9, 12: distances 1, 3, then 6 = 4 + 2 with a zero, then 3.
        """
        kernel = np.zeros((4, 5))
        kernel.flat[[0, 3, 9, 12]] = 0.5, -0.25, 0.5, 0.5
        found = storage(kernel, index_bits=2)
        assert (found.weights, found.kept, found.entries, found.fillers) == (20, 4, 5, 1)
        assert (found.values, found.index_bits) == (3, 2)
        # 3 values of 32 bits and 5 * 2 bits are 106, less than 5 floats.
        assert (found.weight_bits, found.codebook_bits) == (2, 96)
        assert found.original_bytes == 80
        assert found.quantized_bytes == math.ceil((5 * (2 + 2) + 96) / 8) == 15
        # Weights a a a b 0: codes of 1, 2, 2 bits. Distances 1 3 4 2 3: 3 twice, four symbols.
        assert found.huffman_weight_bits == 3 * 1 + 2 + 2
        assert found.huffman_index_bits == 2 * 5
        assert found.huffman_bytes == math.ceil((7 + 10 + 96) / 8)

    def test_nothing_pruned_needs_no_distances(self) -> None:
        found = storage(np.tile([1.0, 2.0, 3.0, 4.0], 25))
        assert (found.entries, found.index_bits, found.fillers) == (100, 0, 0)
        # Equation 1 of the paper: n * log2(k) + k * b bits.
        assert found.quantized_bytes == (100 * 2 + 4 * 32) / 8

    def test_weights_that_share_nothing_stay_floats(self) -> None:
        kernel = np.where(np.arange(1000) % 4 == 0, _RNG.normal(size=1000), 0)
        found = storage(kernel, 4)
        assert (found.weight_bits, found.codebook_bits) == (32, 0)
        assert found.quantized_bytes == 250 * (32 + 4) / 8
        assert found.huffman_weight_bits == 250 * 32

    def test_a_codebook_that_does_not_pay_is_left_out(self) -> None:
        kernel = np.arange(1.0, 9.0)
        assert storage(kernel).quantized_bytes == 32
        with_one = storage(kernel, codebook=True)
        assert (with_one.weight_bits, with_one.quantized_bytes) == (3, 3 + 32)

    def test_a_layer_of_zeros_takes_nothing(self) -> None:
        found = storage(np.zeros((3, 3)))
        assert found.kept == found.entries == found.quantized_bytes == found.huffman_bytes == 0

    def test_huffman_lies_within_a_bit_of_the_entropy(self) -> None:
        kernel = np.round(_RNG.normal(size=5000) * 3) * (_RNG.random(5000) < 0.1)
        found = storage(kernel, 5)
        index = relative_index(kernel, 5)
        for bits, symbols in (
            (found.huffman_weight_bits, index.values),
            (found.huffman_index_bits, index.gaps),
        ):
            shares = np.unique(symbols, return_counts=True)[1] / found.entries
            entropy = -(shares * np.log2(shares)).sum()
            assert entropy <= bits / found.entries < entropy + 1
        assert found.huffman_bytes < found.quantized_bytes

    def test_an_empty_kernel_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match="elements"):
            storage(np.zeros((0, 3)))


# Tables 2 and 3 of Han, Mao and Dally, Deep Compression, https://arxiv.org/abs/1510.00149: weights,
# Weights% (P), weight bits (P+Q), index bits (P+Q), compress rate (P+Q) in percent, and by how much
# the published rate may differ. Weights% is printed as a whole number: the true share lies within
# half a percent of it. Small layers are published 0.1 to 0.3 points higher than their columns
# account for.
_PUBLISHED = {
    "LeNet-300-100 ip1": (784 * 300, 8, 6, 5, 3.1, 0.05),
    "LeNet-300-100 ip2": (30_000, 9, 6, 5, 3.8, 0.2),
    "LeNet-300-100 ip3": (1_000, 26, 6, 5, 15.7, 0.2),
    "LeNet-5 conv1": (500, 66, 8, 5, 78.5, 0.35),
    "LeNet-5 conv2": (25_000, 12, 8, 5, 6.0, 0.05),
    "LeNet-5 ip1": (400_000, 8, 5, 5, 2.7, 0.05),
    "LeNet-5 ip2": (5_000, 19, 5, 5, 6.9, 0.2),
}


@pytest.mark.parametrize("row", _PUBLISHED)
def test_published_rates(row: str) -> None:
    """The rates follow from the published bits: codebooks of 32 bits a value, and fillers, count.

    Where zeros lie is not published; here they are spread at random.
    """
    weights, percent, weight_bits, index_bits, rate, tolerance = _PUBLISHED[row]
    rates = []
    for kept in (percent - 0.49, percent + 0.49):
        found = storage(_pruned(weights, kept / 100, 2**weight_bits + 1), index_bits, True)
        if found.fillers:  # Their zero takes one of the values.
            found = storage(_pruned(weights, kept / 100, 2**weight_bits), index_bits, True)
        assert (found.weight_bits, found.values) == (weight_bits, 2**weight_bits)
        rates.append(100 * found.quantized_bytes / found.original_bytes)
    assert rates[0] - tolerance <= rate <= rates[1] + tolerance
    # Without the codebook the small layer is far off.
    if row == "LeNet-5 conv1":
        assert 100 * (found.quantized_bytes - 1024) / found.original_bytes < rate / 2


def test_published_rate_needs_the_fillers() -> None:
    """ip1 of LeNet-300-100: 11 bits for 8 % of the weights alone would be 2.75 %, not 3.1 %."""
    found = storage(_pruned(784 * 300, 22 / 266.2, 64), 5)
    bare = found.kept * 11 / 8 / found.original_bytes
    assert round(100 * bare, 1) == 2.8
    assert round(100 * found.quantized_bytes / found.original_bytes, 1) == 3.1


def test_published_huffman_rate() -> None:
    """ip1 with its published averages, 4.4 and 3.7 bits after Huffman coding, takes 2.32 %."""
    rates = []
    for percent, rounding in ((7.5, -0.05), (8.5, 0.05)):
        entries = storage(_pruned(784 * 300, percent / 100, 64), 5).entries
        bits = 4.4 + 3.7 + 2 * rounding
        rates.append(100 * (entries * bits + 64 * 32) / (784 * 300 * 32))
    assert rates[0] <= 2.32 <= rates[1]
