"""Groups of weights that can be removed together, their norms and the group lasso penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.core.layer_kinds import exact_kind_of

# Valid values of `groups=`: all weights of one output channel or unit.
GROUPS = ("filters",)


@dataclass(frozen=True)
class FilterAxis:
    """The weight that contains a layer's filters.

    Attributes:
        attribute: Its name.
        axis: The axis of it that counts the filters.
    """

    attribute: str
    axis: int


def filter_axis(layer: Any) -> FilterAxis | None:
    """Returns which weight holds a layer's filters; None if it has no separate filters."""
    kind = exact_kind_of(layer)
    if kind is None or kind.kernel is None or kind.filter_axis is None:
        return None
    return FilterAxis(kind.kernel.attribute, kind.filter_axis)


def _others(rank: int, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis % rank)


def group_squares(kernel: Any, axis: int, gamma: Any = None) -> Any:
    """Returns the squared norm of each filter's group of weights.

    If BatchNormalization follows, its gamma belongs to the group: normalization cancels the
    kernel's own length, so a penalty on the kernel alone would shrink numbers without weakening any
    channel.

    Args:
        kernel: Weights, any shape; tensor or array.
        axis: The axis that counts the filters.
        gamma: Scale of the following BatchNormalization, (filters,). Defaults to none.

    Returns:
        A tensor of shape (filters,), in float32.
    """
    kernel = ops.convert_to_tensor(kernel, dtype="float32")
    squares = ops.sum(ops.square(kernel), axis=_others(len(kernel.shape), axis))
    if gamma is not None:
        squares = squares + ops.square(ops.convert_to_tensor(gamma, dtype="float32"))
    return squares


def group_lasso_penalty(squares: Any, size: int, strength: float) -> Any:
    """Returns the group lasso penalty: strength * sum over groups of sqrt(size) * ||w_g||_2.

    This is the penalty of Yuan and Lin, "Model selection and estimation in regression with
    grouped variables" (2006), equation (2.1) with K_j = size I. Its gradient at a group of zeros
    is taken as 0, one of its subgradients.

    Args:
        squares: Squared norms ||w_g||^2, (groups,).
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


def group_lasso_gradient(weights: Any, squares: Any, axis: int, size: int, strength: float) -> Any:
    """Returns the gradient of `group_lasso_penalty` for a tensor of the groups' weights.

    d/dw = strength * sqrt(size) * w / ||w_g||_2, and 0 at a group of zeros.

    Args:
        weights: Weights, any shape.
        squares: Squared norms ||w_g||^2 of the whole groups, (groups,).
        axis: The axis of `weights` that counts the groups.
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
    shape = [1] * len(weights.shape)
    shape[axis] = -1
    return strength * size**0.5 * weights * ops.reshape(inverse, shape)


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

    Example:
        >>> smallest(np.array([3.0, 1.0, 2.0, 4.0]), 0.5)
        array([False,  True,  True, False])
    """
    # Round first: 0.29 * 100 is 28.999999999999996 in floating point.
    count = min(int(np.floor(round(share * len(scores), 6))), len(scores) - 1)
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(scores, kind="stable")[:count]] = True
    return chosen
