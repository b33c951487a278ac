"""The numbers that describe an operator (pixels, channels, strides, ...), from the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.tensors import Tensor

TYPE_BYTES = {"INT8": 1, "UINT8": 1, "INT16": 2, "INT32": 4, "FLOAT32": 4, "BOOL": 1}


class Unmodelled(EdgeCompressError):
    """An operator has no instruction formula; the text says which part of it."""


@dataclass(frozen=True)
class Geometry:
    """One operator in numbers; everything a formula may depend on.

    Shapes are padded with ones on the left to (n, h, w, c); attributes that do not apply keep their
    default.

    Attributes:
        code: The operator's code, e.g. `CONV_2D`.
        in_type: Type of the first input, e.g. `INT8`.
        weight_type: Type of the filter; `INT8` if there is none.
        n: Batch, h: input rows, w: input columns, ci: input channels.
        oh: Output rows, ow: output columns, co: output channels.
        in_elements: Elements of all data inputs.
        out_elements: Elements of all outputs.
        kh: Filter rows, kw: filter columns, sh and sw: strides, dh and dw: dilations.
        pad_h: Padding above, pad_w: padding on the left.
        same: Whether the padding is SAME.
        multiplier: Outputs of one input channel in a depthwise convolution.
        bias: Whether there is a bias.
        per_channel: Whether the filter has a scale for each channel.
        constant_weights: Whether the filter is stored plainly in the file, not decoded at run time.
        batch: Rows of a fully connected operator, ni: its inputs, no: its outputs.
        rank: Dimensions of the output.
        broadcast: `""`, `"channel"` or `"scalar"`.
        copies: Blocks of memory that a concatenation or split copies.
        n_inputs: Number of data inputs.
        axes: Axes of a reduction or the order of a transpose, on the padded shape.
        in_scale: Scale of the input.
        pad_c: Padding along the channels.
        stride_c: Stride along the channels.
        steps: Time steps of a recurrent operator.
        filters: Filters of an SVDF, memory: its memory, state_type: type of its state.
        out_type: Type of the first output.
        same_scale: Whether input and output share one scale and equivalent zero points.
    """

    code: str
    in_type: str = "INT8"
    weight_type: str = "INT8"
    n: int = 1
    h: int = 1
    w: int = 1
    ci: int = 1
    oh: int = 1
    ow: int = 1
    co: int = 1
    in_elements: int = 1
    out_elements: int = 1
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    dh: int = 1
    dw: int = 1
    pad_h: int = 0
    pad_w: int = 0
    same: bool = False
    multiplier: int = 1
    bias: bool = True
    per_channel: bool = False
    constant_weights: bool = True
    batch: int = 1
    ni: int = 1
    no: int = 1
    rank: int = 4
    broadcast: str = ""
    copies: int = 1
    n_inputs: int = 1
    axes: tuple[int, ...] = ()
    in_scale: float = 0.0
    pad_c: int = 0
    stride_c: int = 1
    steps: int = 1
    filters: int = 1
    memory: int = 1
    state_type: str = "INT8"
    out_type: str = "INT8"
    same_scale: bool = False


# ---------------------------------------------------------------------------------------------
# Names available in formulas. `pix` is output pixels, `out` output elements, `K` taps times input
# channels, `mac4` multiply-accumulates with K rounded down to whole groups of 4, `kr` the rest of
# K, `taps` pairs of an output pixel and a filter tap inside the input, `g4` whole groups of 4
# pixels and `r` the rest.
# ---------------------------------------------------------------------------------------------


def round_up(value: int, group: int) -> int:
    """Returns how many groups hold a number of items."""
    return -(-value // group)


# Per dimension; bounds what a damaged file may state.
_MOST_TAPS = 1 << 14


def taps_inside(outputs: int, inputs: int, taps: int, stride: int, dilation: int, pad: int) -> int:
    """Counts the pairs of an output position and a filter tap that are inside the input.

    For tap t, the positions p with `0 <= p * stride - pad + t * dilation < inputs` are inside.
    """
    if stride < 1 or taps > _MOST_TAPS:
        raise Unmodelled(f"A window of {taps} taps, stride {stride}, has no instruction formula")
    count = 0
    for tap in range(taps):
        offset = pad - tap * dilation
        first, end = round_up(offset, stride), round_up(inputs + offset, stride)
        count += max(0, min(end, outputs) - max(first, 0))
    return count


# ---------------------------------------------------------------------------------------------
# From the flatbuffer to the numbers.
# ---------------------------------------------------------------------------------------------

_READERS: Registry[Callable[[FlatModel, Operator], dict[str, Any]]] = Registry("operator")


def _shape4(tensor: Tensor) -> tuple[int, int, int, int]:
    """Returns a shape as (n, h, w, c); more than four dimensions are joined into n."""
    h, w, c = (1, 1, 1, *tensor.shape)[-3:]
    return math.prod(tensor.shape[:-3]), h, w, c


def _needed(model: FlatModel, operator: Operator, position: int) -> Tensor:
    tensor = model.tensor(operator, position)
    if tensor is None:
        raise Unmodelled(f"{operator.name} lacks its input {position}")
    return tensor


def _constant(model: FlatModel, operator: Operator, position: int) -> list[int]:
    tensor = _needed(model, operator, position)
    if not tensor.is_constant:
        raise Unmodelled(f"{operator.name} computes its input {position} while the model runs")
    if not tensor.elements:
        raise Unmodelled(f"{operator.name} has an empty input {position}")
    return [int(value) for value in tensor.values().reshape(-1)]


def _padding(same: bool, outputs: int, inputs: int, taps: int, stride: int, dilation: int) -> int:
    """Returns the padding before the first element, as the kernels compute it."""
    if not same:
        return 0
    return max((outputs - 1) * stride + (taps - 1) * dilation + 1 - inputs, 0) // 2


def _spatial(operator: Operator, found: dict[str, Any]) -> dict[str, Any]:
    """Adds strides, dilations and paddings to a window's size."""
    options = operator.options
    found["same"] = options.get("padding", 0) == 0
    found["sh"], found["sw"] = int(options.get("stride_h", 1)), int(options.get("stride_w", 1))
    found["dh"] = int(options.get("dilation_h_factor", 1))
    found["dw"] = int(options.get("dilation_w_factor", 1))
    return found


def _pads(found: dict[str, Any]) -> dict[str, Any]:
    same = found["same"]
    for axis, size, out, taps in (("h", "h", "oh", "kh"), ("w", "w", "ow", "kw")):
        found[f"pad_{axis}"] = _padding(
            same, found[out], found[size], found[taps], found[f"s{axis}"], found[f"d{axis}"]
        )
    return found


def _images(source: Tensor, output: Tensor) -> dict[str, Any]:
    return {
        "in_type": source.type,
        **dict(zip(("n", "h", "w", "ci"), _shape4(source), strict=True)),
        **dict(zip(("oh", "ow", "co"), _shape4(output)[1:], strict=True)),
        "in_elements": source.elements,
        "out_elements": output.elements,
        "rank": len(output.shape),
        "in_scale": source.scales[0] if source.scales else 0.0,
        "out_type": output.type,
        "same_scale": _same_scale(source, output),
    }


def _same_scale(source: Tensor, output: Tensor) -> bool:
    """Whether a number has the same bits in both, ignoring the top bit between int8 and uint8."""
    offset = {"INT8": 128}
    zeros = [
        t.zero_points[0] + offset.get(t.type, 0) if t.zero_points else 0 for t in (source, output)
    ]
    return source.scales == output.scales and zeros[0] == zeros[1]


def _plain(model: FlatModel, operator: Operator) -> dict[str, Any]:
    return _images(_needed(model, operator, 0), model.output(operator))


@_READERS.register("CONV_2D")
def _read_conv(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _spatial(operator, _plain(model, operator))
    _, found["kh"], found["kw"], channels = _shape4(weights)
    if channels != found["ci"]:
        raise Unmodelled("CONV_2D in groups has no instruction formula")
    found["weight_type"] = weights.type
    found["bias"] = model.tensor(operator, 2) is not None
    return _pads(found)


@_READERS.register("DEPTHWISE_CONV_2D")
def _read_depthwise(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _spatial(operator, _plain(model, operator))
    _, found["kh"], found["kw"], _ = _shape4(weights)
    found["multiplier"] = max(1, found["co"] // max(1, found["ci"]))
    found["weight_type"] = weights.type
    found["bias"] = model.tensor(operator, 2) is not None
    return _pads(found)


@_READERS.register("AVERAGE_POOL_2D")
@_READERS.register("MAX_POOL_2D")
def _read_pool(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _spatial(operator, _plain(model, operator))
    found["kh"] = int(operator.options.get("filter_height", 1))
    found["kw"] = int(operator.options.get("filter_width", 1))
    # A kernel multiplies its stride with the position of an output: of one output, with 0.
    for outputs, stride in (("oh", "sh"), ("ow", "sw")):
        if found[outputs] == 1:
            found[stride] = 1
    return _pads(found)


@_READERS.register("FULLY_CONNECTED")
def _read_fully_connected(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights = _needed(model, operator, 1)
    found = _plain(model, operator)
    found["no"], found["ni"] = _shape4(weights)[2:]
    found["batch"] = found["out_elements"] // max(1, found["no"])
    found["weight_type"] = weights.type
    found["per_channel"] = len(weights.scales) > 1
    found["constant_weights"] = weights.is_constant
    found["bias"] = model.tensor(operator, 2) is not None
    return found


@_READERS.register("TRANSPOSE_CONV")
def _read_transpose_conv(model: FlatModel, operator: Operator) -> dict[str, Any]:
    weights, source = _needed(model, operator, 1), _needed(model, operator, 2)
    found = _spatial(operator, _images(source, model.output(operator)))
    _, found["kh"], found["kw"], _ = _shape4(weights)
    found["weight_type"] = weights.type
    found["bias"] = model.tensor(operator, 3) is not None
    # The padding is that of the convolution from the output back to the input.
    for axis in "hw":
        found[f"pad_{axis}"] = _padding(
            found["same"], found[axis], found[f"o{axis}"], found[f"k{axis}"], found[f"s{axis}"], 1
        )
    return found


@_READERS.register("ADD")
@_READERS.register("SUB")
@_READERS.register("MUL")
@_READERS.register("MAXIMUM")
@_READERS.register("MINIMUM")
def _read_arithmetic(model: FlatModel, operator: Operator) -> dict[str, Any]:
    first, second = _needed(model, operator, 0), _needed(model, operator, 1)
    output = model.output(operator)
    large, small = (first, second) if first.elements >= second.elements else (second, first)
    found = _images(large, output)
    if small.type != large.type:
        raise Unmodelled(
            f"{operator.name} of {first.type} and {second.type} has no instruction formula"
        )
    if small.elements == large.elements == output.elements:
        return found
    # One element over one channel is a vector of channels: the inner loop has one step.
    if small.elements == found["co"] == _shape4(small)[-1] and large.elements == output.elements:
        found["broadcast"] = "channel"
    elif small.elements == 1 and large.elements == output.elements:
        found["broadcast"] = "scalar"
    else:
        raise Unmodelled(
            f"{operator.name} of shapes {first.shape} and {second.shape} has no instruction formula"
        )
    return found


@_READERS.register("CONCATENATION")
def _read_concatenation(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    output = model.output(operator)
    axis = int(operator.options.get("axis", 0)) % max(1, len(output.shape))
    found["n_inputs"] = len(operator.inputs)
    found["copies"] = math.prod(output.shape[:axis]) * len(operator.inputs)
    return found


@_READERS.register("SPLIT")
def _read_split(model: FlatModel, operator: Operator) -> dict[str, Any]:
    axis, source = _constant(model, operator, 0)[0], _needed(model, operator, 1)
    found = _images(source, model.output(operator))
    found["out_elements"] = source.elements
    outer = math.prod(source.shape[: axis % max(1, len(source.shape))])
    found["copies"] = outer * len(operator.outputs)
    return found


@_READERS.register("PRELU")
def _read_prelu(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    slopes = _needed(model, operator, 1)
    found["broadcast"] = "channel" if slopes.elements == _shape4(slopes)[-1] == found["co"] else ""
    return found


@_READERS.register("MEAN")
@_READERS.register("SUM")
@_READERS.register("REDUCE_MAX")
def _read_mean(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    rank = len(_needed(model, operator, 0).shape)
    axes = (axis % max(1, rank) + max(0, 4 - rank) for axis in _constant(model, operator, 1))
    found["axes"] = tuple(sorted(axes))
    return found


@_READERS.register("TRANSPOSE")
def _read_transpose(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    order = _constant(model, operator, 1)
    missing = max(0, 4 - len(order))
    found["axes"] = (*range(missing), *(axis % len(order) + missing for axis in order))
    return found


@_READERS.register("PAD")
def _read_pad(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    found["pad_c"] = sum(_constant(model, operator, 1)[-2:])
    return found


@_READERS.register("STRIDED_SLICE")
def _read_strided_slice(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    strides = (1, 1, 1, *_constant(model, operator, 3))
    found["sh"], found["sw"], found["stride_c"] = strides[-3:]
    return found


@_READERS.register("SVDF")
def _read_svdf(model: FlatModel, operator: Operator) -> dict[str, Any]:
    found = _plain(model, operator)
    feature, time = _needed(model, operator, 1), _needed(model, operator, 2)
    found["filters"], found["ni"] = _shape4(feature)[2:]
    found["memory"] = _shape4(time)[-1]
    found["no"] = found["co"]
    found["state_type"] = _needed(model, operator, 4).type
    return found


# Inputs that Keras never sets.
_LSTM_EXTRAS = {
    **dict.fromkeys((9, 10, 11), "peepholes"),
    **dict.fromkeys((16, 17), "a projection"),
    **dict.fromkeys((20, 21, 22, 23), "normalized gates"),
}


@_READERS.register("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _read_lstm(model: FlatModel, operator: Operator) -> dict[str, Any]:
    source, weights = _needed(model, operator, 0), _needed(model, operator, 2)
    found = _images(source, model.output(operator))
    first, second = _shape4(source)[1:3]
    time_major = bool(operator.options.get("time_major", False))
    found["steps"], batch = (first, second) if time_major else (second, first)
    if batch != 1:
        raise Unmodelled("UNIDIRECTIONAL_SEQUENCE_LSTM of a batch has no instruction formula")
    for position, part in _LSTM_EXTRAS.items():
        if model.tensor(operator, position) is not None:
            raise Unmodelled(f"{operator.name} with {part} was not counted")
    if model.tensor(operator, 1) is None:
        raise Unmodelled(f"{operator.name} without an input gate was not counted")
    found["no"], found["ni"] = _shape4(weights)[2:]
    found["weight_type"] = weights.type
    return found


def geometry(model: FlatModel, operator: Operator) -> Geometry:
    """Returns an operator in numbers.

    Args:
        model: The file.
        operator: One of its operators.

    Raises:
        Unmodelled: its cost depends on values known only at run time.
    """
    if not operator.outputs:
        raise Unmodelled(f"{operator.name} has no output")
    reader = _READERS.get(operator.code) or _plain
    return Geometry(operator.name, **reader(model, operator))
