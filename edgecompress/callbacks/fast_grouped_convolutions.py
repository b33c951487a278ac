"""Training of grouped convolutions on CPUs: computed group by group while `fit` runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import layers as kl
from keras import ops

from edgecompress.callbacks.base import HookedCallback
from edgecompress.callbacks.hooks import Wrapping
from edgecompress.core.keras_graph import walk_layers


class FastGroupedConvolutions(HookedCallback):
    """Makes `Conv2D(groups=...)` train at the speed of other convolutions on CPUs.

    There, Keras computes grouped convolutions through a part of XLA that takes many times as long
    as an ordinary convolution. While `fit` runs, this callback computes each group of such a layer
    as a separate convolution, with the same results up to rounding. Layers, weights and files do
    not change, and the int8 file has one operator per layer. GPUs have kernels for grouped
    convolutions and do not need this. A model without such layers is left alone.

    Example:
        >>> model.fit(x, y, callbacks=[FastGroupedConvolutions()])  # doctest: +SKIP
    """

    def attach(self) -> None:
        """Replaces the convolution of the grouped layers."""
        for layer in self._grouped():
            self.hook(Wrapping(layer, "convolution_op", functools.partial(_by_group, layer)))

    def _grouped(self) -> list[kl.Conv2D]:
        return [
            layer
            for layer in walk_layers(self.model)
            # Subclasses may compute something else.
            if type(layer) is kl.Conv2D
            and layer.groups > 1
            and layer.data_format == "channels_last"
        ]


def _by_group(layer: kl.Conv2D, plain: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(plain)
    def convolution_op(inputs: Any, kernel: Any) -> Any:
        pairs = zip(
            ops.split(inputs, layer.groups, axis=-1),
            ops.split(ops.convert_to_tensor(kernel), layer.groups, axis=-1),
            strict=True,
        )
        return ops.concatenate(
            [
                ops.conv(
                    x,
                    filters,
                    strides=list(layer.strides),
                    padding=layer.padding,
                    dilation_rate=layer.dilation_rate,
                    data_format=layer.data_format,
                )
                for x, filters in pairs
            ],
            axis=-1,
        )

    return convolution_op
