"""Float flatbuffer -> the same with its binary convolutions as Larq Compute Engine operators.

The fallback route to a file for Larq Compute Engine, used if the engine's own converter fails or
misses a layer. By then, TensorFlow's converter has folded BatchNormalization into the filters: a
negative factor has flipped the signs of a filter, and its size is the magnitude of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.core.errors import ConversionError
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import BINARY_CONV, WORD_BITS, Operator, words
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

QUANTIZE = "LceQuantize"
# The engine's own tolerance for weights of one magnitude.
_MAGNITUDE_TOLERANCE = 0.005
_SAME, _VALID = 0, 1
# Fused activation -> the operator that computes it; the binary convolution applies its own before
# scale and bias.
_ACTIVATIONS = {1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}


@dataclass(frozen=True)
class _Match:
    """A CONV_2D that can be binary.

    Attributes:
        conv: Index of the operator.
        source: Index of the tensor whose signs it reads.
        shape: Dimensions of these signs, as there may be a reshape in between.
        pad_values: 1 if the signs are padded with ones, else 0.
        padding: Of the binary convolution.
        magnitudes: |w| of each output.
    """

    conv: int
    source: int
    shape: tuple[int, ...]
    pad_values: int
    padding: int
    magnitudes: np.ndarray = field(repr=False)


def rewrite(data: bytes) -> bytes:
    """Returns a float flatbuffer with every convolution of signs as LceBconv2d.

    A CONV_2D qualifies if its input is `where(x >= 0, 1, -1)`, possibly padded with ones, and the
    weights of each output have one magnitude. Signs are packed by LceQuantize, once for each
    tensor; the magnitude becomes the scale, a fused activation an operator of its own.

    Args:
        data: A float flatbuffer.

    Raises:
        ConversionError: it has several subgraphs.
    """
    flat = read_tflite(data)
    if flat.subgraphs > 1:
        raise ConversionError(
            f"A file with {flat.subgraphs} subgraphs (control flow) cannot be rewritten. Build "
            "recurrent layers with unroll=True."
        )
    makers = {index: o for o in flat.operators for index in o.outputs}
    matches = {m.conv: m for o in flat.operators if (m := _match(flat, makers, o)) is not None}
    editor = ModelEditor(flat)
    writer = _Writer(editor)
    for number, match in matches.items():
        new = writer.binary(flat.operators[number], match)
        editor.place_instead(editor.operators[number], new)
    editor.drop_unused()
    return editor.pack()


def _match(flat: FlatModel, makers: Mapping[int, Operator], conv: Operator) -> _Match | None:
    weights = flat.tensor(conv, 1)
    if conv.code != "CONV_2D" or weights is None or not weights.is_constant:
        return None
    if weights.type != "FLOAT32" or (magnitudes := _magnitudes(weights.values())) is None:
        return None
    padding, pad_values = conv.options["padding"], 0
    index = conv.inputs[0]
    maker = makers.get(index)
    if maker is not None and maker.code == "PADV2" and _is(flat.tensor(maker, 2), 1):
        if padding != _VALID or not _pads_same(flat, maker, conv, weights):
            return None
        padding, pad_values, index = _SAME, 1, maker.inputs[0]
    source = _signs_of(flat, makers, index)
    if source is None:
        return None
    return _Match(conv.index, source, flat.tensors[index].shape, pad_values, padding, magnitudes)


def _magnitudes(weights: np.ndarray) -> np.ndarray | None:
    """Returns |w| of each output, the first axis, where it is one number; else None."""
    sizes = np.abs(weights).reshape(len(weights), -1)
    mean = sizes.mean(1)
    even = np.abs(sizes - mean[:, None]) <= _MAGNITUDE_TOLERANCE * mean[:, None]
    return mean if even.all() else None


def _is(tensor: Tensor | None, value: float) -> bool:
    return bool(
        tensor is not None
        and tensor.is_constant
        and tensor.type == "FLOAT32"
        and tensor.elements
        and (tensor.values() == value).all()
    )


def _pads_same(flat: FlatModel, pad: Operator, conv: Operator, weights: Tensor) -> bool:
    """Returns whether a padding adds what the padding "same" of the convolution would."""
    from edgecompress.layers.binary import same_padding

    amounts = flat.tensor(pad, 1)
    if amounts is None or not amounts.is_constant or amounts.shape != (4, 2):
        return False
    sizes = flat.tensors[pad.inputs[0]].shape
    options = conv.options
    expected = [
        (0, 0),
        same_padding(sizes[1], weights.shape[1], options["stride_h"], options["dilation_h_factor"]),
        same_padding(sizes[2], weights.shape[2], options["stride_w"], options["dilation_w_factor"]),
        (0, 0),
    ]
    return [tuple(row) for row in amounts.values().tolist()] == expected


def _signs_of(flat: FlatModel, makers: Mapping[int, Operator], index: int) -> int | None:
    """Returns the tensor whose signs a tensor holds; None if it holds something else."""
    select = makers.get(index)
    if select is None or select.code not in ("SELECT_V2", "SELECT"):
        return None
    compare = makers.get(select.inputs[0])
    # The converter moves reshapes between comparison and selection.
    while compare is not None and compare.code == "RESHAPE":
        compare = makers.get(compare.inputs[0])
    if compare is None or not _is(flat.tensor(compare, 1), 0):
        return None
    positive = {"GREATER_EQUAL": (1, -1), "LESS": (-1, 1)}.get(compare.code)
    if positive is None or not all(
        _is(flat.tensor(select, position), value)
        for position, value in zip((1, 2), positive, strict=True)
    ):
        return None
    source = compare.inputs[0]
    return source if flat.tensors[source].type == "FLOAT32" else None


class _Writer:
    """Writes binary convolutions into one file."""

    def __init__(self, editor: ModelEditor) -> None:
        self._editor = editor
        self._codes: dict[str, int] = {}
        # (source, shape) -> packed tensor: one LceQuantize for all readers.
        self._packed: dict[tuple[int, tuple[int, ...]], int] = {}

    def binary(self, operator: Operator, match: _Match) -> list[Any]:
        """Returns the operators that take the place of a convolution."""
        flat, editor = self._editor.original, self._editor
        weights = flat.tensors[operator.inputs[1]]
        options = operator.options
        filters = _packed_bits(weights.values() < 0)
        bias = flat.tensor(operator, 2)
        values = np.zeros(len(match.magnitudes), np.float32) if bias is None else bias.values()
        new, source = self._quantized(match)
        activation = _ACTIVATIONS.get(options["fused_activation_function"])
        result = operator.outputs[0]
        if activation is not None:
            result = editor.add(flat.tensors[result].shape, "FLOAT32")
        inputs = [
            source,
            self._constant(filters),
            self._constant(match.magnitudes.astype(np.float32)),
            self._constant(values.astype(np.float32)),
            -1,
        ]
        settings = {
            "channels_in": weights.shape[3],
            "dilation_height_factor": options["dilation_h_factor"],
            "dilation_width_factor": options["dilation_w_factor"],
            "fused_activation_function": 0,
            "pad_values": match.pad_values,
            "padding": match.padding,
            "stride_height": options["stride_h"],
            "stride_width": options["stride_w"],
        }
        new.append(self._operator(BINARY_CONV, inputs, [result], settings))
        if activation is not None:
            new.append(self._operator(activation, [result], [operator.outputs[0]]))
        return new

    def _quantized(self, match: _Match) -> tuple[list[Any], int]:
        """Returns the packed signs of a tensor, and the operators that make them now."""
        key = (match.source, match.shape)
        if key in self._packed:
            return [], self._packed[key]
        new, source = [], match.source
        if self._editor.original.tensors[source].shape != match.shape:
            source = self._editor.add(match.shape, "FLOAT32")
            shape = self._constant(np.array(match.shape, np.int32))
            new.append(self._operator("RESHAPE", [match.source, shape], [source]))
        *outer, channels = match.shape
        self._packed[key] = self._editor.add((*outer, words(channels)), "INT32")
        new.append(self._operator(QUANTIZE, [source], [self._packed[key]], {}))
        return new, self._packed[key]

    def _constant(self, values: np.ndarray) -> int:
        kinds = {"f": "FLOAT32", "i": "INT32"}
        return self._editor.add(values.shape, kinds[values.dtype.kind], values)

    def _operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        settings: Mapping[str, int] | None = None,
    ) -> Any:
        """Returns a new operator; with `settings` a custom one."""
        if name not in self._codes:
            self._codes[name] = self._editor.new_operator_code(name, custom=settings is not None)
        options = _flexbuffer(settings) if settings else None
        return self._editor.new_operator(self._codes[name], inputs, outputs, options)


def _packed_bits(negative: np.ndarray) -> np.ndarray:
    """Packs the last axis into int32 words, the first channel in the lowest bit; 1 is negative."""
    spare = -negative.shape[-1] % WORD_BITS
    padded = np.pad(negative, [(0, 0)] * (negative.ndim - 1) + [(0, spare)])
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4").astype(np.int32)


def _flexbuffer(settings: Mapping[str, int]) -> bytes:
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for name, value in settings.items():
            builder.Int(name, int(value))
    return bytes(builder.Finish())
