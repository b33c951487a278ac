"""Coding: zeros and clusters in the weights, which take less flash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Fit, Subject, Technique, Values

_FORMAT = "compressed"
# How often weights go in the first half of a training.
_PRUNINGS = 20


@TECHNIQUES.register("coding")
class Coding(Technique):
    """Prunes and clusters weights, and writes them coded.

    Han, Mao and Dally, "Deep Compression" (2016, https://arxiv.org/abs/1510.00149): pruning, then
    weight sharing, then Huffman codes. The format `compressed` decodes before each layer, which
    costs arena and time; what would exceed a limit stays uncoded.
    """

    def __init__(self, subject: Subject) -> None:
        """Looks at the targets."""
        from edgecompress.converters.formats import FORMATS
        from edgecompress.targets.family import family_of

        super().__init__(subject)
        families = FORMATS[_FORMAT].families
        others = [p.name for p in subject.targets.profiles if family_of(p).name not in families]
        if others:
            self.reason = f"{', '.join(others)} runs no file with coded weights"
        elif not any(True for _ in _kernels(subject.model)):
            self.reason = "no layer has weights that are coded"

    def knobs(self) -> Sequence[Knob]:
        """Returns the share of weights that become zero, and how many values the others share."""
        if self.reason is not None:
            return ()
        return (Knob("sparsity", 0.0, (0.0, 0.5, 0.75)), Knob("clusters", 0, (0, 8, 16)))

    def callbacks(self, values: Values, fit: Fit) -> Sequence[Any]:
        """Returns pruning in the first half of the training, and clustering in its last quarter.

        A candidate that has been trained before keeps its zeros; its clusters are found anew.
        """
        from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
        from edgecompress.callbacks.weight_clustering import WeightClustering
        from edgecompress.schedules import ConstantSparsity, PolynomialDecay

        found: list[Any] = []
        sparsity, clusters = float(values["sparsity"]), int(values["clusters"])
        if sparsity:
            every = max(1, fit.steps * fit.epochs // (2 * _PRUNINGS))
            schedule: Any = PolynomialDecay(sparsity, 0, every * _PRUNINGS, frequency=every)
            if fit.done:
                schedule = ConstantSparsity(sparsity, 0)
            found.append(MagnitudePruning(schedule))
        if clusters:
            found.append(WeightClustering(clusters, begin_epoch=fit.epochs * 3 // 4))
        return found

    def file_format(self, values: Values) -> str | None:
        """Returns the format of coded weights, if there is anything to code."""
        return _FORMAT if values["sparsity"] or values["clusters"] else None

    def stand_in(self, values: Values, model: Any) -> Any:
        """Returns a copy with as many zeros, the smallest weights, and as many distinct values."""
        from edgecompress.core.model_copy import copy_model

        copied = copy_model(model)
        sparsity, clusters = float(values["sparsity"]), int(values["clusters"])
        random = np.random.default_rng(0)
        for kernel in _kernels(copied):
            weights = np.array(kernel, dtype="float32")
            # A channel that is zero would not be there any more.
            weights = np.where(weights == 0, 1e-3 * random.standard_normal(weights.shape), weights)
            if clusters:
                centers = np.linspace(weights.min(), weights.max(), clusters)
                weights = centers[np.abs(weights[..., None] - centers).argmin(-1)]
            gone = int(sparsity * weights.size)
            smallest = np.argpartition(np.abs(weights).reshape(-1), gone)[:gone]
            np.put(weights, smallest, 0)
            kernel.assign(weights)
        return copied


def _kernels(model: Any) -> Iterator[Any]:
    """Gives the kernels that are pruned and clustered: all but depthwise ones."""
    from edgecompress.core.keras_graph import named_layers
    from edgecompress.core.layer_kinds import kind_of

    for _, layer in named_layers(model):
        kind = kind_of(layer)
        if kind is not None and kind.kernel is not None and kind.family != "depthwise":
            yield kind.kernel.of(layer)
