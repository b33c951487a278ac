"""Channel pruning: the least important channels become zero until a budget would be met."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks import backends
from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.budget_search import BudgetSearch
from edgecompress.callbacks.channel_targets import ChannelTargets, find_targets
from edgecompress.callbacks.fused import fused
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.layer_choice import LayerChoice, layer_choice
from edgecompress.callbacks.layer_shares import check_table
from edgecompress.callbacks.masked import mask_weights
from edgecompress.callbacks.observation import Observation
from edgecompress.core.arguments import check_whole
from edgecompress.core.errors import ArgumentError
from edgecompress.core.importance import Importance
from edgecompress.core.options import named, named_config
from edgecompress.costs.budget import Budget, check_budget
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion


@dataclass(frozen=True)
class _Kept:
    """A variable with entries that stay zero.

    Attributes:
        variable: It.
        mask: 1 where entries are free, 0 where they stay zero; broadcasts to it.
    """

    variable: keras.Variable
    mask: keras.Variable

    def apply(self) -> None:
        mask_weights(self.variable, ops.convert_to_tensor(self.mask) > 0)


class ChannelPruning(CompressionCallback):
    """Sets whole channels to zero during `fit` until the finalized model would meet a budget.

    At the beginning of each epoch from `begin_epoch` to `end_epoch`, the criterion scores every
    filter and an equal part of what has to be saved goes; training in between lets the rest
    recover and the scores adapt (Molchanov et al., 2017, https://arxiv.org/abs/1611.06440). What
    goes together, such as filters whose channels are added, is one decision, with the sum of the
    importances. All groups of all layers are ranked together, by importance divided by what the
    group saves of the limited costs. After the last round the model, as `finalize` would leave
    it, has been measured and meets the budget; training continues with the zeros in place.

    Scores that estimate the loss, as the default's do, are compared over layers as they are; of
    other scores a filter's part of what is left of its layer once the weaker filters are gone (Lee
    et al., 2021, https://arxiv.org/abs/2010.07611, equation (4)). A filter is replaced by
    its mean output before it becomes zero, as in `GroupLasso`.

    Args:
        until: The budget.
        criterion: How filters are scored: a name in `CRITERIA`, `NAME:OPTION=VALUE`, or a
            criterion; a filter's score is the L2 norm of its weights' scores. Defaults to
            `"taylor"`.
        layers: Names of layers, or a predicate `layer -> bool`. Defaults to None: every layer
            whose filters can be removed.
        per_layer: Regular expression -> the largest share of a layer's filters that may go, for the
            layers whose whole name it matches; the first that does counts. 0 protects a layer.
            Defaults to none: every layer keeps at least one filter.
        begin_epoch: Epoch, from 0, at whose beginning the first channels go. Defaults to 1, once
            the criterion has seen training.
        end_epoch: Epoch at whose beginning the last ones go. Defaults to None: halfway through the
            fit.
        multiple: Layers keep a multiple of this many filters, or all. Defaults to None: what the
            kernels of the budget's target compute together, 1 without a target.

    Raises:
        ArgumentError: an argument breaks its rule; at the start of `fit` also if the budget cannot
            be met, with by how much not.
        UnknownNameError: a criterion or a layer is unknown.
        UnsupportedModelError: at the start of `fit`, the model is subclassed or not built.

    Example:
        >>> pruning = ChannelPruning(until=Budget(macs=0.5))  # doctest: +SKIP
        >>> model.fit(x, y, epochs=10, callbacks=[pruning])  # doctest: +SKIP
        >>> small = edgecompress.finalize(model)  # doctest: +SKIP
    """

    technique = "channel_pruning"

    def __init__(
        self,
        until: Budget,
        criterion: str | Criterion = "taylor",
        layers: LayerChoice = None,
        per_layer: Mapping[str, float] | None = None,
        begin_epoch: int = 1,
        end_epoch: int | None = None,
        multiple: int | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__()
        self.until = check_budget(until)
        self.criterion: Criterion = named(CRITERIA, criterion, "criterion")
        self.layers = layer_choice(layers)
        self.per_layer = check_table(per_layer)
        begin_epoch = check_whole("begin_epoch", begin_epoch)
        if begin_epoch == 0 and self.criterion.looks:
            raise ArgumentError(
                "begin_epoch",
                f"be 1 or more, because the criterion {self.criterion} has to see training first",
                begin_epoch,
            )
        if end_epoch is not None and check_whole("end_epoch", end_epoch) < begin_epoch:
            raise ArgumentError("end_epoch", f"be at least begin_epoch={begin_epoch}", end_epoch)
        self.begin_epoch = begin_epoch
        self.end_epoch = None if end_epoch is None else int(end_epoch)
        self.multiple = None if multiple is None else check_whole("multiple", multiple, 1)
        self._found: ChannelTargets
        self._search: BudgetSearch | None = None
        self._seen: Observation | None = None
        self._kept: list[_Kept] = []
        self._apply: Callable[[], Any] = bool
        self._hook: UpdateHook | None = None
        self._last = begin_epoch
        self._started = self._done = False

    @property
    def importance(self) -> Importance | None:
        """What each filter was worth, and where the budget cut; None before a fit."""
        return None if self._search is None else self._search.importance()

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values."""
        return {
            "until": self.until.to_dict(),
            "criterion": named_config(CRITERIA, self.criterion),
            "layers": "predicate" if callable(self.layers) else self.layers,
            "per_layer": self.per_layer,
            "begin_epoch": self.begin_epoch,
            "end_epoch": self.end_epoch,
            "multiple": self.multiple,
        }

    def attach(self) -> None:
        """Finds the filters, refuses a budget out of reach, and hooks the zeros in."""
        self._found = find_targets(
            self.model, self.layers, self.criterion, "channel pruning", self.note
        )
        self._search = BudgetSearch(
            self.model, self.until, self._found, self.per_layer, self.multiple
        )
        epochs = self.params.get("epochs") or 1
        halfway = max(self.begin_epoch, epochs // 2)
        self._last = halfway if self.end_epoch is None else self.end_epoch
        masks = self._masks()
        variables = [variable for variable, _, _ in masks]
        hook = self._hook = self.hook(UpdateHook(self._zero, assigns=variables))
        self._kept = [
            _Kept(variable, hook.add_variable(shape, "float32", f"{name}_kept"))
            for variable, shape, name in masks
        ]
        kernels = [kernel.variable for layer in self._found.layers for kernel in layer.kernels]
        self._apply = fused(self._apply_all, self.model, kernels)
        if not self._search.budget.exceeded(self._search.whole, self._search.whole):
            self.note(
                f"channel pruning has nothing to do: the model meets {self.until!r} as it is."
            )
        self._seen = self._found.observe(hook, self.hook)
        if self._seen.needed:
            hook.before = self._seen.observe
        self._started = self._done = False

    def start_epoch(self, epoch: int) -> None:
        """Prunes the part that is due."""
        if not self._started:
            # Once every callback has restored its state.
            self._started = True
            self._freeze()
        rounds = self._last - self.begin_epoch + 1
        due = min(epoch, self._last) - self.begin_epoch + 1
        if not self._done and due > 0:
            self._prune(due / rounds)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the share of filters that are zero into the history."""
        zeros = [target.zeros() for target in self._found.layers]
        share = sum(int(x.sum()) for x in zeros) / sum(len(x) for x in zeros)
        self.log(epoch, logs, {"channel_pruning_zero_share": share})

    def settle(self) -> None:
        """Prunes what is left to do; with weight averaging, `fit` has just replaced the zeros."""
        self._apply_all()
        if not self._done:
            self.note(
                f"channel pruning was not over when training ended (end_epoch={self._last}): the "
                "rest went at once, and nothing was trained after it."
            )
            self._prune(1.0)
        if not self._done:
            self.note(
                f"channel pruning removed nothing: its criterion {self.criterion} has seen no step "
                "of training."
            )

    def results(self) -> Mapping[str, Any]:
        """Returns zero filters by layer, and what the finalized model will take, of how much."""
        zeros = {t.path: [int(t.zeros().sum()), len(t.zeros())] for t in self._found.layers}
        return {"zero_filters": zeros, **({} if self._search is None else self._search.results())}

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._kept = []
        self._apply = bool

    def _masks(self) -> list[tuple[keras.Variable, tuple[int, ...], str]]:
        """Returns the variables that may get zeros, the shapes of their masks, and names."""
        return [
            (found.variable, found.mask.shape, re.sub(r"\W", "_", found.name))
            for found in self._found.possible_zeros(self.model)
            if found.variable.trainable
        ]

    def _zero(self) -> None:
        self._apply()

    def _apply_all(self) -> None:
        for kept in self._kept:
            kept.apply()

    def _freeze(self) -> None:
        """Lets all zero filters stay zero from now on."""
        masks = {id(frozen.variable): frozen.mask for frozen in self._found.frozen(self.model)}
        for kept in self._kept:
            free = np.ones(kept.mask.shape, np.float32)
            kept.mask.assign(masks.get(id(kept.variable), free))

    def _prune(self, progress: float) -> None:
        """Sets filters to zero, so that a share of the way to the budget is done."""
        search, seen = self._search, self._seen
        backends.current().sync(self.model)
        if search is None or seen is None or not bool(seen.ready):
            return
        search.prune(self._found.scores(seen), progress, "channel pruning", self.note)
        self._freeze()
        self._done = progress >= 1
