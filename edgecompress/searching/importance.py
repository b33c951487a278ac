"""What the channels of a trained model are worth, found without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgecompress.callbacks.base import HookedCallback
from edgecompress.callbacks.channel_targets import ChannelTargets, find_targets
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.observation import Observation
from edgecompress.criteria.base import Criterion


def _endless(batches: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Gives the batches over and over; Keras takes generators, but no other iterators."""
    while True:
        yield from batches


def _nothing() -> None:
    """What is done to the weights after a step."""


class ObserveFilters(HookedCallback):
    """Scores the filters of a model by what a criterion sees of a fit.

    Args:
        criterion: What scores them.
    """

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self._criterion = criterion
        self._found: ChannelTargets | None = None
        self._seen: Observation | None = None
        self.notes: list[str] = []
        # Layer -> score of each filter; filled in when the fit ends.
        self.scores: dict[str, np.ndarray] = {}

    def attach(self) -> None:
        """Finds the filters, and lets the criterion see each step."""
        self._found = find_targets(
            self.model, None, self._criterion, "The search", self.notes.append
        )
        hook = self.hook(UpdateHook(_nothing))
        self._seen = self._found.observe(hook, self.hook)
        if self._seen.needed:
            hook.before = self._seen.observe

    def settle(self) -> None:
        """Scores the filters."""
        if self._found is not None:
            self.scores = self._found.scores(self._seen)


def filter_scores(
    model: Any, criterion: Criterion, loss: Any, batches: Sequence[tuple[Any, Any]]
) -> ObserveFilters:
    """Returns what saw a copy of the model on some batches; nothing is trained.

    Args:
        model: A built Keras model.
        criterion: What scores filters.
        loss: A Keras loss.
        batches: Inputs and labels.

    Raises:
        ArgumentError: no filter of the model can be removed.
    """
    import keras

    from edgecompress.core.model_copy import copy_model
    from edgecompress.core.suppress_output import no_warnings

    copied = copy_model(model)
    # The gradients are those of a step, and the step is 0.
    copied.compile(keras.optimizers.SGD(0.0), loss)
    observer = ObserveFilters(criterion)

    with no_warnings():
        copied.fit(_endless(batches), steps_per_epoch=len(batches), verbose=0, callbacks=[observer])
    return observer
