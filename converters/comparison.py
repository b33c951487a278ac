"""Inputs on which a new file is compared with the one it was made from."""

from __future__ import annotations

import numpy as np

from edgecompress.flatbuffers.model import FlatModel


def random_inputs(flat: FlatModel, samples: int, seed: int = 0) -> list[np.ndarray]:
    """Returns an array (samples, *shape) for each input: the whole integer range, normal floats."""
    rng = np.random.default_rng(seed)
    arrays = []
    for index in flat.inputs:
        tensor = flat.tensors[index]
        shape = (samples, *tensor.shape)
        dtype = np.dtype(tensor.type.lower())
        if dtype.kind == "f":
            arrays.append(rng.normal(size=shape).astype(dtype))
        elif dtype.kind == "b":
            arrays.append(rng.random(shape) < 0.5)
        else:
            span = np.iinfo(dtype)
            arrays.append(rng.integers(span.min, span.max, shape, dtype, endpoint=True))
    return arrays
