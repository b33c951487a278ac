"""A uniformly thinner network: the baseline for pruning at equal cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgecompress.baselines.fresh_copy import fresh_copy
from edgecompress.core.arguments import check_between, check_seed
from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.core.keras_graph import is_plain_model, named_layers
from edgecompress.core.model_copy import copy_model, plain_model, variable_of
from edgecompress.inspection.keras_models import inspect_keras
from edgecompress.surgery.carriers import carriers
from edgecompress.surgery.channels import analyse
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.groups import FilterAxis
from edgecompress.surgery.rules import filters_of

# Halvings of the interval of shares; channels are whole numbers, so few tell shares apart.
_TRIES = 7


def thinner_copy(model: Any, macs: float, seed: int | None = None) -> Any:
    """Returns an untrained copy with the same share of channels left out of every layer.

    What a pruned network has to beat: training a smaller network from scratch costs less than
    pruning a large one. The share is the smallest one that meets the cost.

    Args:
        model: A built Sequential or Functional model.
        macs: Largest share of the model's multiply-accumulates, between 0 and 1.
        seed: As in `fresh_copy`.

    Returns:
        The copy, not compiled.

    Raises:
        ArgumentError: `macs` is not between 0 and 1, or a single channel in each layer costs more;
            `seed` as in `fresh_copy`.
        UnsupportedModelError: the model is subclassed or not built.

    Example:
        >>> baseline = edgecompress.thinner_copy(model, macs=0.5, seed=1)  # doctest: +SKIP
    """
    macs = check_between("macs", macs)
    check_seed(seed)
    model = plain_model(model)
    if not is_plain_model(model):
        raise UnsupportedModelError(
            f"Model {getattr(model, 'name', '')!r} ({type(model).__name__}) is not a built "
            "Sequential or Functional model, so its layers cannot be made thinner."
        )
    whole = inspect_keras(model).macs
    low, high = 0.0, 1.0
    found = _without(model, high)
    reached = inspect_keras(found).macs / whole
    if reached > macs:
        raise ArgumentError(
            "macs", f"be at least {reached:.3g}, what the thinnest copy of this model takes", macs
        )
    for _ in range(_TRIES):
        share = (low + high) / 2
        small = _without(model, share)
        if inspect_keras(small).macs <= macs * whole:
            found, high = small, share
        else:
            low = share
    return fresh_copy(found, seed)


def _without(model: Any, share: float) -> Any:
    """Returns a copy without the last channels of every layer whose channels can go."""
    activations: dict[str, Any] = {}

    def linear(path: str, config: dict[str, Any]) -> dict[str, Any]:
        # A channel that is 0 before a sigmoid is not 0 after it, and could not go.
        if "activation" not in config:
            return config
        activations[path] = config["activation"]
        return {**config, "activation": "linear"}

    def restored(path: str, config: dict[str, Any]) -> dict[str, Any]:
        found = {"activation": activations[path]} if path in activations else {}
        return {**config, **found}

    copied = copy_model(model, linear)
    for _, layer in named_layers(copied):
        for name in ("bias", "beta", "moving_mean"):
            if (variable := getattr(layer, name, None)) is not None:
                variable.assign(np.zeros(variable.shape))
        _thin(layer, share)
    silent = carriers(analyse(copied), {})
    for path, layer in named_layers(copied):
        gamma = getattr(layer, "gamma", None)
        if path in silent and gamma is not None:
            # A LayerNormalization makes something of channels of zeros.
            gamma.assign(np.where(silent[path], 0, np.array(gamma)))
    return copy_model(finalize(copied), restored)


def _thin(layer: Any, share: float) -> None:
    """Sets the last filters of a layer to zero, those of each kind alike, and its biases."""
    kernels: dict[str, Any] = {}
    for where in filters_of(layer):
        for part in where.kernels:
            shape = tuple(variable_of(layer, part.attribute).shape)
            kernels[part.attribute] = kernels.get(part.attribute, 1) * _kept(shape, part, share)
        for name in (where.bias, *(part.attribute for part in where.biases)):
            if (bias := variable_of(layer, name)) is not None:
                bias.assign(np.zeros(bias.shape))
    for name, kept in kernels.items():
        kernel = variable_of(layer, name)
        # No two alike: a table of equal rows would put out constants.
        values = np.linspace(1e-3, 2e-3, math.prod(kernel.shape), dtype="float32")
        kernel.assign(values.reshape(kernel.shape) * kept)


def _kept(shape: tuple[int, ...], where: FilterAxis, share: float) -> np.ndarray:
    """Returns 0 for the last filters and 1 for all others, as it broadcasts to a kernel."""
    filters = where.count(shape)
    count = min(round(share * filters), filters - 1)
    return where.spread(np.arange(filters) < filters - count).astype("float32")
