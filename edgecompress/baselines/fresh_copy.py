"""The same architecture with new initial weights."""

from __future__ import annotations

from typing import Any

from edgecompress.core.arguments import check_seed
from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.keras_graph import is_plain_model
from edgecompress.core.model_copy import plain_model


def fresh_copy(model: Any, seed: int | None = None) -> Any:
    """Returns an untrained copy of a model: same layers, weights drawn anew by their initializers.

    The baseline for channel removal: train the small architecture from scratch, for as long as the
    pruned network trained in all. Often it is as accurate, and then only the architecture was worth
    finding: Crowley et al., "A closer look at structured pruning for neural network compression"
    (2018, https://arxiv.org/abs/1810.04622), and Liu et al., "Rethinking the value of network
    pruning" (2019, https://arxiv.org/abs/1810.05270).

    Args:
        model: A built Sequential or Functional model.
        seed: Sets Keras's random seed before weights are drawn, as `keras.utils.set_random_seed`
            does. Defaults to none. Initializers with a seed of their own draw the same again.

    Returns:
        The copy, not compiled.

    Raises:
        ArgumentError: `seed` is no whole number from 0 to 2**32 - 1.
        UnsupportedModelError: the model is subclassed or not built.

    Example:
        >>> small = edgecompress.finalize(model)  # doctest: +SKIP
        >>> baseline = edgecompress.fresh_copy(small, seed=1)  # doctest: +SKIP
    """
    import keras

    model = plain_model(model)
    if not is_plain_model(model):
        name = getattr(model, "name", type(model).__name__)
        raise UnsupportedModelError(
            f"Model {name!r} ({type(model).__name__}) is not a built Sequential or Functional "
            "model, so its layers cannot be copied."
        )
    check_seed(seed)
    if seed is not None:
        keras.utils.set_random_seed(seed)
    return keras.models.clone_model(model)
