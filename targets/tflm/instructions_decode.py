"""Instructions that TensorFlow Lite Micro's DECODE operator takes to expand compressed weights.

The counts come from the same simulator as those of `instructions`: 330 encoded tensors, within 0.4
percent for tables and pruned weights, within 3.2 percent for Huffman codes. The number of steps of
a Huffman decoder depends on the values, so the code is followed through its tables.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

_HEADER_BYTES = 16
_KINDS = {0: "lut", 1: "huffman", 2: "prune"}

# Index width -> instructions per weight in whole groups, per weight outside, per channel, and once;
# for cores with DSP instructions and with vector registers. Widths 2, 3 and 4 of int8 have a path
# for groups of 16 (3 bits: 32) weights.
_GROUPED = {
    "dsp": {
        2: (3.38, 16.8, 31.0, 150.0),
        3: (3.95, 18.3, 36.0, 18.0),
        4: (3.38, 13.8, 31.0, 148.0),
    },
    "mve": {
        2: (5.82, 17.2, 41.0, 127.0),
        3: (7.20, 19.1, 48.0, 0.0),
        4: (8.32, 13.7, 42.0, 106.0),
    },
}
_UNGROUPED = {1: 20.0, 5: 25.3}
_UNGROUPED_CHANNEL = {"dsp": (18.0, 205.0), "mve": (19.0, 210.0)}
# If the channels are the last axis, every weight takes the slow path.
_CHANNELS_LAST = {1: 22.2, 2: 24.2, 3: 26.7, 4: 22.2, 5: 27.5}
_PRUNE = {"dsp": (17.0, 186.0), "mve": (16.0, 191.0)}
# Instructions per weight, table look-up, look-up that read more bits than it used, and word.
_HUFFMAN = {"dsp": (0.0, 23.2, 4.7, 3.4, 154.0), "mve": (0.7, 22.4, 4.7, 3.3, 172.0)}

# Largest relative error of the following over the counted tensors.
DECODE_ERROR = 0.032


class UnknownCode(ValueError):
    """An encoding whose cost has not been counted; the text says which."""


@dataclass(frozen=True)
class HuffmanSteps:
    """What a Huffman decoder does to expand one tensor.

    Attributes:
        lookups: Table look-ups.
        putbacks: Symbols whose last look-up read more bits than their code has.
        words: 32-bit words of the code.
    """

    lookups: int
    putbacks: int
    words: int


def follow_huffman(code: bytes, tables: list[int], first_bits: int, symbols: int) -> HuffmanSteps:
    """Follows a Huffman code through its tables, as the decoder does.

    Args:
        code: The bits, most significant first.
        tables: 16-bit entries: bit 15 says that a symbol was found; bits 11 to 14 are then the bits
            of its code in this table, else one less than the bits of the next look-up; bits 0 to 10
            are the symbol, else the offset of the next table.
        first_bits: Bits of the first look-up.
        symbols: Symbols to decode.

    Raises:
        UnknownCode: the code or a table ends too early.
    """
    lookups = putbacks = position = 0
    end = 8 * len(code)
    # Every symbol takes a bit, which bounds what a damaged shape can request.
    if symbols > end:
        raise UnknownCode("its Huffman code ends too early")
    try:
        for _ in range(symbols):
            bits, offset = first_bits, 0
            while True:
                start = position >> 3
                window = int.from_bytes(code[start : start + 4].ljust(4, b"\0"), "big")
                offset += (window >> (32 - (position & 7) - bits)) & ((1 << bits) - 1)
                entry = tables[offset]
                lookups += 1
                position += bits
                if entry & 0x8000:
                    break
                # Tables that point back to themselves would read forever.
                if position > end:
                    raise UnknownCode("its Huffman code ends too early")
                bits = ((entry >> 11) & 15) + 1
                offset += entry & 0x7FF
            used = (entry >> 11) & 15
            if bits > used:
                putbacks += 1
                position -= bits - used
            if position > end:
                raise UnknownCode("its Huffman code ends too early")
    except IndexError:
        raise UnknownCode("its Huffman code leaves its tables") from None
    return HuffmanSteps(lookups, putbacks, -(-position // 32))


@functools.lru_cache(maxsize=256)
def _huffman_steps(code: bytes, ancillary: bytes, symbols: int) -> HuffmanSteps:
    # Once per tensor, whatever the number of targets.
    body = ancillary[_HEADER_BYTES:]
    tables = [body[i] | body[i + 1] << 8 for i in range(0, len(body) - 1, 2)]
    return follow_huffman(code, tables, (ancillary[5] >> 4) + 1, symbols)


def lut_instructions(
    bits: int, weights: int, channels: int, channels_last: bool, kernels: str
) -> float:
    """Returns the instructions to expand a tensor from table indices.

    Args:
        bits: Width of an index.
        weights: Elements of the tensor.
        channels: Value tables in use: 1 for a tensor with one scale.
        channels_last: Whether the channels are the last axis.
        kernels: `dsp` or `mve`.

    Raises:
        UnknownCode: the width has not been counted.
    """
    if channels_last and channels > 1 and bits in _CHANNELS_LAST:
        return _CHANNELS_LAST[bits] * weights
    if bits in _UNGROUPED:
        each, once = _UNGROUPED_CHANNEL[kernels]
        return _UNGROUPED[bits] * weights + each * channels + once
    if bits not in _GROUPED[kernels]:
        raise UnknownCode(f"tables with {bits}-bit indices have not been counted")
    group = 32 if bits == 3 else 16
    size = weights // channels
    fast = 0
    for channel in range(channels):
        # Groups start at multiples of the group size in the whole stream.
        lead = min(-(channel * size) % group, size)
        fast += (size - lead) // group * group
    quick, slow, each, once = _GROUPED[kernels][bits]
    return quick * fast + slow * (weights - fast) + each * channels + once


def _one_output(encoded: Tensor, ancillary: Tensor, output: Tensor, kernels: str) -> float:
    header, code = (None if t.raw is None else bytes(t.raw) for t in (ancillary, encoded))
    if header is None or code is None or len(header) < _HEADER_BYTES:
        raise UnknownCode("its code is not in the file")
    kind, weights = _KINDS.get(header[0]), output.elements
    if kind == "prune" and output.type == "INT8":
        each, once = _PRUNE[kernels]
        return each * weights + once
    if kind == "lut" and output.type == "INT8":
        channels = max(1, len(output.scales))
        last = output.quantized_dimension == len(output.shape) - 1
        return lut_instructions(header[5] & 7, weights, channels, last, kernels)
    if kind == "huffman" and not header[5] & 1:
        steps = _huffman_steps(code, header, weights)
        a, b, c, d, e = _HUFFMAN[kernels]
        return a * weights + b * steps.lookups + c * steps.putbacks + d * steps.words + e
    raise UnknownCode(f"decoder type {header[0]} for {output.type} has not been counted")


def decode_instructions(model: FlatModel, operator: Operator, kernels: str) -> float:
    """Returns the instructions of a DECODE operator.

    Args:
        model: The file.
        operator: A `TFLM_DECODE` operator: pairs of code and ancillary tensor in, tensors out.
        kernels: `dsp`, `mve` or `reference`; the decoder is the same in the last as in the first.

    Raises:
        UnknownCode: the encoding has not been counted, or is damaged.
    """
    kernels = "mve" if kernels == "mve" else "dsp"
    total = 0.0
    for position in range(len(operator.outputs)):
        encoded = model.tensor(operator, 2 * position)
        ancillary = model.tensor(operator, 2 * position + 1)
        if encoded is None or ancillary is None:
            raise UnknownCode("its code is not in the file")
        total += _one_output(encoded, ancillary, model.output(operator, position), kernels)
    return total
