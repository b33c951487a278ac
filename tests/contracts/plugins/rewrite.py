"""A toy plugin: a rewrite that removes zero biases of Dense layers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.model_copy import copy_model
from edgecompress.core.options import Number, option
from edgecompress.surgery.rewrites import REWRITES, Rewrite, Rewritten


@REWRITES.register("drop-zero-biases")
@dataclass(frozen=True)
class DropZeroBiases(Rewrite):
    """Removes zero biases of Dense layers."""

    tolerance: float = option(0.0, "Largest magnitude that counts as zero.", Number(low=0.0))

    def apply(self, model: Any) -> Rewritten:
        """Returns a copy in which these layers have only a kernel."""
        import keras

        kernels, dropped = {}, 0
        for layer in model.layers:
            biased = isinstance(layer, keras.layers.Dense) and layer.use_bias
            if biased and np.abs(layer.bias).max() <= self.tolerance:
                kernels[layer.name] = {"kernel": np.array(layer.kernel)}
                dropped += layer.units
        if not kernels:
            return Rewritten(model)

        def edit(path: str, config: dict[str, Any]) -> dict[str, Any]:
            return {**config, "use_bias": False} if path in kernels else config

        return Rewritten(copy_model(model, edit, kernels), details={"biases": dropped})
