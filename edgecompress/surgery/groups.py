"""Groups of weights that can be removed together, their norms and the group lasso penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

Axes = int | tuple[int, ...]


@dataclass(frozen=True)
class FilterAxis:
    """A weight that contains a layer's filters, or a part of each.

    Attributes:
        attribute: Its name, `cell.kernel` for one of an inner layer.
        axis: The axis of it that counts the filters, negative.
        gates: How often the axis counts them, one gate after the other: filter c of n has the
            indices c, n + c, 2 n + c and so on.
    """

    attribute: str
    axis: int
    gates: int = 1

    def count(self, shape: Sequence[int]) -> int:
        """Returns the number of filters in a weight of a shape."""
        return int(shape[self.axis]) // self.gates

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Returns one number for each filter, (filters,), in a shape that broadcasts to the weight.

        Example:
            >>> FilterAxis("kernel", -2, gates=2).spread(np.array([1, 0]))[:, 0]
            array([1, 0, 1, 0])
        """
        return np.tile(values, self.gates).reshape((-1, *(1,) * (-self.axis - 1)))


@dataclass(frozen=True)
class Filters:
    """Where the filters of a layer are.

    Attributes:
        kernels: The weights that are a filter's.
        biases: Those that have to be zero with them: a unit with a memory, or a head, holds no
            constant that its readers could take over.
        part: What they are, where they are not the layer's output channels: `heads`.
        bias: The weight that holds the constant that a filter of zeros puts out, if there is one.
    """

    kernels: tuple[FilterAxis, ...]
    biases: tuple[FilterAxis, ...] = ()
    part: str = ""
    bias: str = "bias"


def zero_filters_of(filters: Filters, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which filters are entirely zero, (filters,) booleans.

    Args:
        filters: Where the filters are.
        weights: The layer's weights, attribute -> array.
    """
    found = [
        find_zero_filters(weights[part.attribute], part.axis).reshape(part.gates, -1)
        for part in filters.kernels
    ]
    return np.concatenate(found).all(axis=0)


def _own(rank: int, axes: Axes) -> tuple[int, ...]:
    """Returns the axes that count the groups, none negative."""
    return tuple(axis % rank for axis in ((axes,) if isinstance(axes, int) else axes))


def group_squares(kernel: Any, axes: Axes, gamma: Any = None) -> Any:
    """Returns the squared norm of each group of weights.

    If BatchNormalization follows, its gamma belongs to the group: normalization cancels the
    kernel's own length, so a penalty on the kernel alone would shrink numbers without weakening any
    channel.

    Args:
        kernel: Weights, any shape; tensor or array.
        axes: The axis, or axes, that count the groups.
        gamma: Scale of the following BatchNormalization, (filters,). Defaults to none.

    Returns:
        A tensor of the shape of the axes, in float32.
    """
    kernel = ops.convert_to_tensor(kernel, dtype="float32")
    rank = len(kernel.shape)
    others = tuple(axis for axis in range(rank) if axis not in _own(rank, axes))
    squares = ops.sum(ops.square(kernel), axis=others)
    if gamma is not None:
        gammas = ops.square(ops.convert_to_tensor(gamma, dtype="float32"))
        # One group alone has all of them.
        squares = squares + (gammas if _own(rank, axes) else ops.sum(gammas))
    return squares


def group_lasso_penalty(squares: Any, size: int, strength: Any) -> Any:
    """Returns the group lasso penalty: strength * sum over groups of sqrt(size) * ||w_g||_2.

    This is the penalty of Yuan and Lin, "Model selection and estimation in regression with
    grouped variables" (2006), equation (2.1) with K_j = size I. Its gradient at a group of zeros
    is taken as 0, one of its subgradients.

    Args:
        squares: Squared norms ||w_g||^2, any shape.
        size: Number of weights in each group.
        strength: Lambda, 0 or more.

    Example:
        >>> float(group_lasso_penalty(ops.array([4.0, 9.0]), 4, 0.1))
        1.0
    """
    zero = squares <= 0
    # The square root's slope at 0 is infinite and would become NaN after `where`.
    norms = ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squares)))
    return strength * size**0.5 * ops.sum(norms)


def group_lasso_gradient(weights: Any, squares: Any, axes: Axes, size: int, strength: Any) -> Any:
    """Returns the gradient of `group_lasso_penalty` for a tensor of the groups' weights.

    d/dw = strength * sqrt(size) * w / ||w_g||_2, and 0 at a group of zeros.

    Args:
        weights: Weights, any shape.
        squares: Squared norms ||w_g||^2 of the whole groups, of the shape of the axes.
        axes: The axis, or axes, of `weights` that count the groups.
        size: Number of weights in each group.
        strength: Lambda, 0 or more.

    Returns:
        A tensor of the shape of `weights`, in float32.

    Example:
        >>> slope = group_lasso_gradient(ops.array([[3.0], [4.0]]), ops.array([25.0]), 1, 4, 0.5)
        >>> [round(float(value), 3) for value in slope[:, 0]]
        [0.6, 0.8]
    """
    weights = ops.convert_to_tensor(weights, dtype="float32")
    zero = squares <= 0
    inverse = ops.where(zero, 0.0, 1.0 / ops.sqrt(ops.where(zero, 1.0, squares)))
    return strength * size**0.5 * weights * _along(inverse, weights, axes)


def group_lasso_step(weights: Any, squares: Any, axes: Axes, size: int, amount: Any) -> Any:
    """Returns the proximal step of the group lasso: groups shrink, and weak ones become zero.

    w_g <- w_g * max(0, 1 - amount * sqrt(size) / ||w_g||_2): the proximal operator of
    `amount * sqrt(size) * ||w_g||_2` (Parikh and Boyd, "Proximal algorithms", 2014, section 6.5.1,
    block soft thresholding).

    Args:
        weights: Weights, any shape.
        squares: As in `group_lasso_gradient`.
        axes: As in `group_lasso_gradient`.
        size: Number of weights in each group.
        amount: Learning rate times strength, 0 or more.

    Returns:
        A tensor of the shape of `weights`, in float32.

    Example:
        >>> small = group_lasso_step(ops.array([[3.0], [4.0]]), ops.array([25.0]), 1, 4, 0.5)
        >>> [round(float(value), 3) for value in small[:, 0]]
        [2.4, 3.2]
    """
    weights = ops.convert_to_tensor(weights, dtype="float32")
    zero = squares <= 0
    norms = ops.sqrt(ops.where(zero, 1.0, squares))
    kept = ops.where(zero, 0.0, ops.maximum(1.0 - amount * size**0.5 / norms, 0.0))
    return weights * _along(kept, weights, axes)


def _along(values: Any, weights: Any, axes: Axes) -> Any:
    """Returns one number for each group in a shape that broadcasts to the weights."""
    own = _own(len(weights.shape), axes)
    return ops.reshape(values, [n if axis in own else 1 for axis, n in enumerate(weights.shape)])


def norm_scale(norm: Mapping[str, np.ndarray], epsilon: float) -> np.ndarray:
    """Returns the factor by which a BatchNormalization multiplies each channel at inference.

    |gamma_c| / sqrt(variance_c + epsilon)

    Args:
        norm: Its weights, `gamma` (if any) and `moving_variance`.
        epsilon: Its epsilon.

    Returns:
        Factors, (channels,).
    """
    scale: np.ndarray = np.abs(norm.get("gamma", 1.0)) / np.sqrt(norm["moving_variance"] + epsilon)
    return scale


def find_zero_filters(kernel: np.ndarray, axis: int) -> np.ndarray:
    """Returns which filters of a kernel are entirely zero, (filters,) booleans."""
    return ~np.moveaxis(kernel != 0, axis, -1).reshape(-1, kernel.shape[axis]).any(axis=0)


def smallest(scores: np.ndarray, share: float) -> np.ndarray:
    """Returns which floor(share * count) groups have the smallest scores, always leaving one.

    Args:
        scores: Scores, any shape.
        share: Share of them, 0 to 1.

    Example:
        >>> smallest(np.array([3.0, 1.0, 2.0, 4.0]), 0.5)
        array([False,  True,  True, False])
    """
    # Round first: 0.29 * 100 is 28.999999999999996 in floating point.
    count = min(int(np.floor(round(share * scores.size, 6))), scores.size - 1)
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[np.argsort(scores, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(scores.shape)
