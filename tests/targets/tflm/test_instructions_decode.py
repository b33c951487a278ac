"""Cost of decoding compressed weights: against counted instructions and by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.targets.profile import load_target
from edgecompress.targets.tflm.geometry import Unmodelled
from edgecompress.targets.tflm.instructions import operator_instructions
from edgecompress.targets.tflm.instructions_decode import (
    HuffmanSteps,
    UnknownCode,
    follow_huffman,
    lut_instructions,
)
from edgecompress.targets.tflm.latency import predict

FOUND = 0x8000


def entry(used: int, symbol: int) -> int:
    return FOUND | used << 11 | symbol


# A is 0, B is 10, C is 11.
ONE_TABLE = [entry(1, 65), entry(1, 65), entry(2, 66), entry(2, 67)]
# The same code in two tables: after a 1 bit, one more bit, one entry further.
TWO_TABLES = [entry(1, 65), 0 << 11 | 1, entry(1, 66), entry(1, 67)]


def test_huffman_codes_are_followed_through_one_table() -> None:
    # A B C A = 0 10 11 0; each A gives one of the two bits read back.
    assert follow_huffman(bytes([0b01011000]), ONE_TABLE, 2, 4) == HuffmanSteps(4, 2, 1)


def test_huffman_codes_are_followed_through_nested_tables() -> None:
    # B and C take two look-ups, and nothing is put back.
    assert follow_huffman(bytes([0b01011000]), TWO_TABLES, 1, 4) == HuffmanSteps(6, 0, 1)


def test_long_codes_cross_words() -> None:
    assert follow_huffman(bytes([0b10101010] * 12), ONE_TABLE, 2, 40) == HuffmanSteps(40, 0, 3)


def test_damaged_codes_are_refused() -> None:
    with pytest.raises(UnknownCode, match="ends too early"):
        follow_huffman(b"\0", ONE_TABLE, 2, 100)
    with pytest.raises(UnknownCode, match="leaves its tables"):
        follow_huffman(bytes([0b11000000]), ONE_TABLE[:3], 2, 1)


@pytest.mark.parametrize(
    ("code", "tables", "symbols"),
    [
        (bytes(8), [0, 0], 1),  # a table that leads back to itself
        (bytes(8), [1 << 15, 1 << 15], 1 << 40),  # symbols without a bit, in a damaged shape
        (bytes(8), ONE_TABLE, 65),
    ],
)
def test_damaged_codes_end(code: bytes, tables: list[int], symbols: int) -> None:
    with pytest.raises(UnknownCode, match="ends too early"):
        follow_huffman(code, tables, 1, symbols)


def decoding(header: list[int], code: bytes, elements: int, **more: Any) -> FlatModel:
    """A model that decodes one tensor."""
    tensors = (
        Tensor(0, "code", (len(code),), "UINT8", code),
        Tensor(1, "ancillary", (len(header),), "UINT8", bytes(header)),
        Tensor(2, "kernel", (elements,), **{"type": "INT8", "scales": (0.1,), **more}),
    )
    operator = Operator(0, "CUSTOM", "TFLM_DECODE", 1, (0, 1), (2,))
    return FlatModel(bytes(400), tensors, (operator,), (), (2,))


def header(kind: int, parameters: int, tail: list[int] | None = None) -> list[int]:
    return [kind, 1, 0, 0, 1, parameters, *[0] * 10, *(tail or [])]


def cost(model: FlatModel, kernels: str = "dsp") -> float:
    return operator_instructions(model, model.operators[0], kernels).instructions


def test_each_encoding_is_read_from_its_header() -> None:
    # 100 weights of 4 bits: 6 groups of 16 and 4 more.
    table = decoding(header(0, 4), bytes(50), 100)
    assert cost(table) == pytest.approx(3.38 * 96 + 13.8 * 4 + 31 + 148)
    assert cost(table, "reference") == cost(table)
    assert cost(table, "mve") == pytest.approx(8.32 * 96 + 13.7 * 4 + 42 + 106)
    assert cost(decoding(header(2, 0), bytes(50), 100)) == pytest.approx(17.0 * 100 + 186)
    entries = [byte for e in ONE_TABLE for byte in (e & 255, e >> 8)]
    huffman = decoding(header(1, 1 << 4, entries), bytes([0b01011000]), 4)
    assert cost(huffman) == pytest.approx(23.2 * 4 + 4.7 * 2 + 3.4 + 154)


@pytest.mark.parametrize(
    "model",
    [
        decoding(header(127, 0), bytes(8), 8),
        decoding(header(0, 7), bytes(8), 8),
        decoding(header(0, 4), bytes(8), 8, type="INT32"),
        decoding(header(2, 0), bytes(8), 8, type="INT16"),
        decoding(header(1, 1), bytes(8), 8),  # 32-bit tables
        decoding([0, 1], bytes(8), 8),
    ],
)
def test_what_was_not_counted_is_not_guessed(model: FlatModel) -> None:
    with pytest.raises(Unmodelled, match="TFLM_DECODE"):
        cost(model)


def test_encoded_weights_count_as_flash_traffic() -> None:
    estimate = predict(decoding(header(0, 4), bytes(50), 100), load_target("nucleo-l4r5zi"))
    assert estimate.weight_bytes == 50


def test_costs_against_counted_instructions(shared: Path) -> None:
    path = shared / "facts" / "mcu_decode.csv"
    if not path.is_file():
        pytest.skip(f"the measurements are not here ({path})")
    seen = 0
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            kernels = "mve" if row["core"] == "m55" else "dsp"
            weights, channels = int(row["weights"]), int(row["channels"])
            if row["enc"].startswith("lut"):
                bits = int(row["enc"][3])
                found = lut_instructions(bits, weights, channels, row["op"] == "dw", kernels)
            elif row["enc"] == "prune":
                found = cost(decoding(header(2, 0), b"\0", weights), kernels)
            else:
                continue
            assert found == pytest.approx(float(row["decode_instr"]), rel=0.005), row
            seen += 1
    assert seen > 150
