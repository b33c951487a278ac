"""Operators that move codes without changing them; the same in all engines."""

from __future__ import annotations

import numpy as np

from edgecompress.simulation.kernels import Call, NotSimulated, kernel, numpy_type, zero_point


@kernel("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def reshape(call: Call) -> np.ndarray:
    """The same codes in another shape."""
    call.require_same_scale(call.tensor(0))
    values = call.value(0)
    return values.reshape(len(values), *call.output.shape)


@kernel("TRANSPOSE")
def transpose(call: Call) -> np.ndarray:
    """The axes in another order."""
    call.require_same_scale(call.tensor(0))
    order = (int(axis) + 1 for axis in call.constant(1))
    return call.value(0).transpose(0, *order)


def _all_inputs(call: Call) -> list[np.ndarray]:
    """Returns the codes of inputs of one scale; constants are repeated for every sample."""
    positions = range(len(call.operator.inputs))
    call.require_same_scale(*map(call.tensor, positions))
    values = [call.value(position) for position in positions]
    samples = max(map(len, values))
    return [np.broadcast_to(v, (samples, *v.shape[1:])) for v in values]


@kernel("CONCATENATION")
def concatenate(call: Call) -> np.ndarray:
    """Tensors of one scale, one after the other."""
    axis = call.option("axis") % len(call.output.shape) + 1
    joined = np.concatenate(_all_inputs(call), axis)
    return call.clamp(joined) if call.option("fused_activation_function") else joined


@kernel("PACK")
def stack(call: Call) -> np.ndarray:
    """Tensors of one scale, along a new axis."""
    return np.stack(_all_inputs(call), call.option("axis") % len(call.output.shape) + 1)


@kernel("UNPACK")
def unstack(call: Call) -> list[np.ndarray]:
    """The parts of a tensor along an axis, which disappears."""
    call.require_same_scale(call.tensor(0), *call.outputs)
    axis = call.option("axis") % len(call.tensor(0).shape) + 1
    return list(np.moveaxis(call.value(0), axis, 0))


@kernel("SPLIT")
def split(call: Call) -> list[np.ndarray]:
    """Equal parts of a tensor along an axis."""
    call.require_same_scale(call.tensor(1), *call.outputs)
    axis = int(call.constant(0).reshape(-1)[0]) % len(call.tensor(1).shape) + 1
    return np.split(call.value(1), len(call.outputs), axis)


@kernel("GATHER")
def gather(call: Call) -> np.ndarray:
    """Rows of a constant by index, or elements along an axis by constant indices."""
    call.require_same_scale(call.tensor(0))
    if call.option("batch_dims"):
        raise NotSimulated("it gathers in batches")
    if not call.tensor(0).is_constant:
        axis = call.option("axis") % len(call.tensor(0).shape)
        return call.value(0).take(call.constant(1), axis + 1, mode="raise")
    if call.option("axis"):
        raise NotSimulated("it does not gather rows")
    rows, indices = call.constant(0), call.value(1)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(rows):
        raise NotSimulated(f"an index is outside its {len(rows)} rows")
    return rows[indices]


@kernel("SELECT_V2")
def select(call: Call) -> np.ndarray:
    """Codes of one tensor where a condition holds, else those of another."""
    call.require_same_scale(call.tensor(1), call.tensor(2))
    rank = len(call.output.shape)
    values = [call.value(position) for position in range(3)]
    condition, yes, no = (
        v.reshape(len(v), *(1,) * (rank + 1 - v.ndim), *v.shape[1:]) for v in values
    )
    return np.where(condition, yes, no)


@kernel("CAST")
def cast(call: Call) -> np.ndarray:
    """Codes as integers of another type."""
    kinds = ("INT8", "INT32")
    if call.tensor(0).type not in kinds or call.output.type not in kinds:
        raise NotSimulated(f"it converts {call.tensor(0).type} to {call.output.type}")
    return call.value(0).astype(numpy_type(call.output))


@kernel("RESIZE_NEAREST_NEIGHBOR")
def resize_nearest(call: Call) -> np.ndarray:
    """Every element of a map repeated, or some left out."""
    call.require_same_scale(call.tensor(0))
    corners = bool(call.option("align_corners"))
    shift = np.float32(0.5 if call.option("half_pixel_centers") else 0)
    found = call.value(0)
    for axis in (1, 2):
        old, new = call.tensor(0).shape[axis], call.output.shape[axis]
        ratio = (old - 1, new - 1) if corners and new > 1 else (old, new)
        places = (np.arange(new, dtype=np.float32) + shift) * (
            np.float32(ratio[0]) / np.float32(ratio[1])
        )
        nearest = np.floor(places.astype(np.float64) + 0.5) if corners else np.floor(places)
        found = found.take(np.clip(nearest.astype(np.int64), 0, old - 1), axis + 1)
    return found


@kernel("PAD", "PADV2")
def pad(call: Call) -> np.ndarray:
    """A border of zeros, or of a constant."""
    call.require_same_scale(call.tensor(0))
    fill = zero_point(call.output)
    if call.operator.code == "PADV2":
        call.require_same_scale(call.tensor(2))
        fill = call.constant(2).reshape(-1)[0]
    widths = [(0, 0), *(tuple(map(int, pair)) for pair in call.constant(1))]
    return np.pad(call.value(0), widths, constant_values=fill)


@kernel("STRIDED_SLICE", "SLICE")
def cut(call: Call) -> np.ndarray:
    """A part of a tensor, with constant bounds."""
    call.require_same_scale(call.tensor(0))
    shape = call.tensor(0).shape
    begin = [int(value) for value in call.constant(1)]
    if call.operator.code == "SLICE":
        sizes = [int(value) for value in call.constant(2)]
        parts = [
            slice(b, n if size < 0 else b + size)
            for b, size, n in zip(begin, sizes, shape, strict=True)
        ]
    else:
        if call.option("ellipsis_mask") or call.option("new_axis_mask") or call.option("offset"):
            raise NotSimulated("it uses an ellipsis, a new axis or an offset")
        end, strides = call.constant(2), call.constant(3)
        masks = [call.option(f"{name}_mask") for name in ("begin", "end", "shrink_axis")]
        parts = []
        for axis, (b, e, step) in enumerate(zip(begin, end, strides, strict=True)):
            if masks[2] >> axis & 1:
                b = b % shape[axis]
                parts.append(slice(b, b + 1))
                continue
            start = None if masks[0] >> axis & 1 else b
            parts.append(slice(start, None if masks[1] >> axis & 1 else int(e), int(step)))
    taken = call.value(0)[(slice(None), *parts)]
    return taken.reshape(len(taken), *call.output.shape).astype(numpy_type(call.output))
