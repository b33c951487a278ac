"""A toy plugin: a rewrite that takes the bias of one layer away."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgecompress.core.model_copy import copy_model
from edgecompress.core.options import Text, option
from edgecompress.surgery import REWRITES
from edgecompress.surgery.rewrites import Rewrite, Rewritten


@REWRITES.register("drop-bias")
@dataclass(frozen=True)
class DropBias(Rewrite):
    """Takes the bias of one layer away."""

    exact: ClassVar[bool] = False
    layer: str = option("head", "Layer that loses its bias.", Text("LAYER"))

    def apply(self, model: Any) -> Rewritten:
        """Returns a copy with a kernel alone in the layer."""
        found = model.get_layer(self.layer)

        def edit(path: str, config: dict[str, Any]) -> dict[str, Any]:
            return {**config, "use_bias": False} if path == self.layer else config

        small = copy_model(model, edit, {self.layer: {"kernel": np.array(found.kernel)}})
        return Rewritten(small, details={"biases": int(np.size(found.bias))})
