"""Codes of weights: round trips through decoders that read the bytes alone, and bytes by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, ConversionError, UnknownNameError
from edgecompress.flatbuffers.coding import (
    CODINGS,
    Codebook,
    Encoded,
    Layout,
    build_codebook,
    canonical_codes,
    code_lengths,
    count_symbols,
    decode,
    encode_huffman,
    encode_lut,
    encode_prune,
    pack_bits,
    unpack_bits,
)
from edgecompress.targets.tflm.instructions_decode import follow_huffman


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    dense = rng.normal(0, 30, (16, 3, 3, 5)).clip(-128, 127).astype(np.int8)
    return {
        "dense": dense,
        "all values": rng.permutation(np.arange(-128, 128).repeat(3)).astype(np.int8),
        "clustered": rng.choice(np.array([-90, -31, -5, 0, 3, 17, 44, 120], np.int8), (7, 11)),
        "pruned": np.where(rng.random(dense.shape) < 0.9, 0, dense).astype(np.int8),
        "binary": rng.choice(np.array([-127, 127], np.int8), (3, 3, 3, 3)),
        "one symbol": np.full((5, 7), -3, np.int8),
        "all zero": np.zeros((4, 4), np.int8),
        "one element": np.array([[9]], np.int8),
        "skewed": np.repeat(np.arange(20), 2 ** np.arange(20) // 16 + 1).astype(np.int8),
    }


ARRAYS = _arrays()


@pytest.mark.parametrize("root_bits", [None, 1, 8, 15])
@pytest.mark.parametrize("name", list(CODINGS))
@pytest.mark.parametrize("kind", list(ARRAYS))
def test_round_trip(kind: str, name: str, root_bits: int | None) -> None:
    values = ARRAYS[kind]
    code = CODINGS[name](values, Layout((0,)), root_bits)
    if code is None:
        assert name == "lut"
        assert np.unique(values).size > 128
        return
    assert code.coding == name
    assert np.array_equal(decode(code, values.shape, Layout((0,))), values)


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize("name", list(CODINGS))
def test_round_trip_of_per_channel_tensors_with_zero_points(name: str, axis: int) -> None:
    rng = np.random.default_rng(1)
    shape = (5, 3, 3, 7)
    layout = Layout(tuple(rng.integers(-9, 9, shape[axis]).tolist()), axis)
    points = layout.zeros(shape).reshape(shape)
    kept = rng.choice(np.arange(-40, 41), shape)
    values = np.where(rng.random(shape) < 0.7, points, kept).astype(np.int8)
    code = CODINGS[name](values, layout, None)
    assert np.array_equal(decode(code, shape, layout), values)
    if name == "prune":
        assert not np.array_equal(decode(code, shape, Layout((0,))), values)


def test_zero_points_lie_along_their_axis() -> None:
    first = Layout((1, 2), 0).zeros((2, 3))
    last = Layout((1, 2, 3), 1).zeros((2, 3))
    assert first.tolist() == [1, 1, 1, 2, 2, 2]
    assert last.tolist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("layout", "readable"),
    [
        (Layout(), True),
        (Layout((0,)), True),
        (Layout((0,), 3), False),  # One scale and the last axis: the engine refuses it.
        (Layout((0,) * 2, 0), True),
        (Layout((0,) * 5, 3), True),
        (Layout((0,) * 3, 1), False),
        (Layout((0,) * 4, 0), False),
    ],
)
def test_axes_that_the_engine_refuses_get_no_table_and_no_bitmap(
    layout: Layout, readable: bool
) -> None:
    values = np.zeros((2, 3, 4, 5), np.int8)
    for name in ("lut", "prune"):
        assert (CODINGS[name](values, layout, None) is not None) is readable
    assert CODINGS["huffman"](values, layout, None) is not None


@pytest.mark.parametrize("width", range(1, 8))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 33])
def test_bits_are_packed_most_significant_first(width: int, count: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, count)
    text = "".join(f"{v:0{width}b}" for v in values)
    text += "0" * (-len(text) % 8)
    want = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    assert pack_bits(values, width) == want
    assert np.array_equal(unpack_bits(want, width, count), values)


@pytest.mark.parametrize("values", [2, 3, 4, 5, 16, 17, 128, 129])
def test_table_widths(values: int) -> None:
    code = encode_lut(np.arange(values) - 60)
    if values > 128:
        assert code is None
        return
    width = max(1, (values - 1).bit_length())
    # One table for all channels: axis 15, stride 0.
    assert code.ancillary[:16] == bytes([0, 1, 0, 0, 1, 0xF0 | width, 0]).ljust(16, b"\0")
    assert code.ancillary[16:] == (np.arange(values) - 60).astype(np.int8).tobytes()
    assert len(code.data) == -(-values * width // 8)


def test_bitmap_by_hand() -> None:
    code = encode_prune(np.array([0, 5, 0, 0, -1, 0, 0, 0, 7], np.int8), Layout((0,)))
    assert code.data == bytes([0b01001000, 0b10000000])
    assert code.ancillary == bytes([2, 1, 0, 0, 1]).ljust(16, b"\0") + bytes([5, 255, 7])


def test_huffman_by_hand() -> None:
    # 0 -> 0, -1 -> 10, 1 -> 11, in one table of two bits.
    values = np.array([0, 0, 1, -1, 0, 0, 0, 0], np.int8)
    book = build_codebook(count_symbols(values), root_bits=2)
    assert book.codes == {0: (1, 0b0), -1: (2, 0b10), 1: (2, 0b11)}
    assert book.entries == (0x8800, 0x8800, 0x8000 | 2 << 11 | 0xFF | 0x700, 0x8000 | 2 << 11 | 1)
    code = encode_huffman(values, book)
    assert code.ancillary[:16] == bytes([1, 1, 0, 0, 1, 1 << 4]).ljust(16, b"\0")
    # 0 0 11 10 0000, padded to a word, and one word more.
    assert code.data == bytes([0b00111000, 0, 0, 0, 0, 0, 0, 0])


def test_code_lengths_are_optimal() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        counts = {i: int(c) for i, c in enumerate(rng.integers(1, 1000, rng.integers(2, 40)))}
        lengths = code_lengths(counts)
        assert sum(2.0**-bits for bits in lengths.values()) == 1
        # The cost of an optimal code is the sum of all merged weights (two smallest each time).
        weights, want = sorted(counts.values()), 0
        while len(weights) > 1:
            low, high, *rest = weights
            want += low + high
            weights = sorted([*rest, low + high])
        assert sum(counts[s] * bits for s, bits in lengths.items()) == want


def test_canonical_codes_are_prefix_free() -> None:
    codes = canonical_codes(code_lengths(count_symbols(ARRAYS["dense"])))
    texts = sorted(f"{code:0{bits}b}" for bits, code in codes.values())
    assert not [a for a, b in zip(texts, texts[1:], strict=False) if b.startswith(a)]


def _entries(book: Codebook) -> int:
    return len(book.entries)


def test_root_bits_trade_table_bytes_for_lookups() -> None:
    values = ARRAYS["dense"]
    counts = count_symbols(values)
    smallest, wide = build_codebook(counts), build_codebook(counts, 8)
    assert wide.root_bits == 8
    assert all(_entries(smallest) <= _entries(build_codebook(counts, b)) for b in range(1, 10))

    def lookups(book: Codebook) -> int:
        code = encode_huffman(values, book)
        return follow_huffman(code.data, list(book.entries), book.root_bits, values.size).lookups

    assert lookups(wide) < lookups(smallest)
    assert len(encode_huffman(values, wide).data) == len(encode_huffman(values, smallest).data)


def test_root_bits_end_at_the_longest_code() -> None:
    assert build_codebook({0: 4, 1: 2, 2: 1, 3: 1}, root_bits=15).root_bits == 3


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_tables_of_32_bits(dtype: type) -> None:
    rng = np.random.default_rng(4)
    span = np.iinfo(dtype)
    values = rng.normal(0, span.max / 5, 3000).clip(span.min, span.max).astype(dtype)
    book = build_codebook(count_symbols(values), entry_bits=32)
    code = encode_huffman(values, book)
    assert code.ancillary[5] & 1
    assert np.array_equal(decode(code, values.shape, dtype=dtype), values)


def test_symbols_beyond_int8_need_32_bits() -> None:
    assert build_codebook({300: 1, 0: 2}).entry_bits == 32
    with pytest.raises(ArgumentError, match="entry_bits"):
        build_codebook({300: 1, 0: 2}, entry_bits=16)


def test_payload_bits() -> None:
    values = ARRAYS["clustered"]
    counts = count_symbols(values)
    book = build_codebook(counts)
    words = -(-book.payload_bits(counts) // 32) + 1
    assert len(encode_huffman(values, book).data) == 4 * words


@pytest.mark.parametrize("bits", [0, 16, -1])
def test_root_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ArgumentError, match="root_bits"):
        build_codebook({0: 1}, bits)


def test_entry_bits_out_of_range() -> None:
    with pytest.raises(ArgumentError, match="entry_bits"):
        build_codebook({0: 1}, entry_bits=8)


def test_damaged_codes_are_refused() -> None:
    values = ARRAYS["clustered"]
    for name in CODINGS:
        code = CODINGS[name](values, Layout((0,)), None)
        with pytest.raises(ConversionError):
            decode(Encoded(name, code.data[:3], code.ancillary), values.shape)
        with pytest.raises(ConversionError, match="header"):
            decode(Encoded(name, code.data, b"\x07" + code.ancillary[1:]), values.shape)
        with pytest.raises(ConversionError, match="header"):
            decode(Encoded(name, code.data, code.ancillary[:9]), values.shape)
    lut = encode_lut(values)
    with pytest.raises(ConversionError, match="outside"):
        decode(Encoded("lut", lut.data, lut.ancillary[:18]), values.shape)
    pruned = encode_prune(values, Layout((0,)))
    with pytest.raises(ConversionError, match="bitmap"):
        decode(Encoded("prune", pruned.data, pruned.ancillary[:18]), values.shape)


def test_unknown_coding_is_named() -> None:
    with pytest.raises(UnknownNameError, match="huffman"):
        CODINGS["hufman"]


def test_streams_longer_than_one_chunk() -> None:
    values = np.random.default_rng(6).normal(0, 9, 70_001).round().astype(np.int8)
    for name in CODINGS:
        code = CODINGS[name](values, Layout((0,)), 8)
        assert np.array_equal(decode(code, values.shape, Layout((0,))), values)
