"""Group lasso: training that weakens whole filters, so that they can be removed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.budget_search import BudgetSearch
from edgecompress.callbacks.channel_targets import (
    ChannelTarget,
    ChannelTargets,
    find_targets,
    keep_zeros,
)
from edgecompress.callbacks.fused import on_one_device
from edgecompress.callbacks.fused_penalty import FusedPenalty, PenalizedGroups
from edgecompress.callbacks.hooks import Hook, UpdateHook, Wrapping, own_training
from edgecompress.callbacks.layer_choice import LayerChoice, layer_choice
from edgecompress.callbacks.observation import Observation
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.importance import Importance
from edgecompress.core.options import named, named_config
from edgecompress.costs.budget import Budget, check_budget
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.groups import GROUPS, smallest
from edgecompress.surgery.zero_filters import FrozenZeros, zero_filters


class GroupLasso(CompressionCallback):
    """Adds a group lasso penalty to training, then sets the weakened filters to zero.

    The loss grows by `strength * sum over filters of sqrt(n) * ||w_c||_2`, with w_c the n weights
    of filter c (and gamma of the BatchNormalization that follows it): Yuan and Lin, "Model
    selection and estimation in regression with grouped variables" (2006), equation (2.1). Unlike
    weight decay it pushes whole filters towards zero, but as a loss term it never reaches zero.
    So at `end_epoch`, or at the end of training, filters whose norm is below `threshold` times the
    largest norm of their layer are set to zero, and their mean output is folded into the biases of
    the layers that read them. From then on they stay zero, and `edgecompress.finalize` removes them
    physically.

    The penalty also shrinks the filters that stay, which costs accuracy while it is active:
    continue training without it, either with `end_epoch` or in a second `fit` of the finalized
    model.

    Only filters that can be removed are penalized: layers whose outputs are outputs of the model,
    or that feed a layer which mixes channels in unknown ways, are skipped and listed in the notes.
    A layer's own regularizer and constraint stay in force. If the model has its own `train_step` or
    `compute_loss`, which may leave layer penalties out of its loss, the gradient of the penalty is
    added as the optimizer applies the others. The history gains `group_lasso_penalty`,
    `group_lasso_zero_filters` and `group_lasso_zero_share` (filters below the threshold, or already
    zero) for each epoch.

    Args:
        strength: Weight of the penalty, greater than 0. 1e-5 to 1e-3 is typical with Adam.
        groups: What is removed together. `"filters"`: all weights of one output channel or unit.
            Defaults to `"filters"`.
        threshold: Filters below this share of their layer's largest norm become zero; 0 < t < 1.
            Norms have BatchNormalization folded in. Defaults to 1e-2.
        final_sparsity: Share of each layer's filters to set to zero, 0 < s < 1; the weakest are
            taken and `threshold` is not used. Defaults to None.
        layers: Names of layers, or a predicate `layer -> bool`. Defaults to None: every Dense,
            convolution, transposed and separable convolution whose filters can be removed.
        begin_epoch: First epoch with the penalty, from 0. Defaults to 0.
        end_epoch: First epoch without the penalty: filters become zero as it begins, and training
            continues without them. Defaults to None, the end of training; the last epoch's metrics
            then describe the model before any filter became zero.
        until: Instead of `threshold`: filters become zero until the finalized model would meet this
            budget, the least important for what they save first, as `ChannelPruning` ranks them.
            Defaults to None.
        criterion: How filters are compared: a name in `CRITERIA`, `NAME:OPTION=VALUE`, or a
            criterion; a filter's score is the L2 norm of its weights' scores. Defaults to
            `"magnitude"`, the norm of the weights.

    Raises:
        ArgumentError: an argument breaks its rule; at the start of `fit` also if `until` cannot be
            met, with by how much not.
        UnknownNameError: `groups` or a layer is unknown.
        UnsupportedModelError: the model is subclassed or not built (when training begins), or
            its own `train_step` updates no weight through `model.optimizer`.

    Example:
        >>> model.fit(x, y, epochs=10, callbacks=[GroupLasso(1e-4, end_epoch=6)])  # doctest: +SKIP
        >>> small = edgecompress.finalize(model)  # doctest: +SKIP
    """

    technique = "group_lasso"

    def __init__(
        self,
        strength: float,
        groups: str = "filters",
        threshold: float = 1e-2,
        final_sparsity: float | None = None,
        layers: LayerChoice = None,
        begin_epoch: int = 0,
        end_epoch: int | None = None,
        criterion: str | Criterion = "magnitude",
        until: Budget | None = None,
    ) -> None:
        """Checks the arguments; see the class."""
        super().__init__()
        if not 0 < strength < float("inf"):
            raise ArgumentError("strength", "be a number greater than 0", strength)
        if groups not in GROUPS:
            raise UnknownNameError("groups", groups, GROUPS)
        if not 0 < threshold < 1:
            raise ArgumentError("threshold", "lie between 0 and 1", threshold)
        if final_sparsity is not None and not 0 < final_sparsity < 1:
            raise ArgumentError("final_sparsity", "lie between 0 and 1", final_sparsity)
        if until is not None and final_sparsity is not None:
            raise ArgumentError("until", "be left out with final_sparsity", until)
        if begin_epoch < 0:
            raise ArgumentError("begin_epoch", "be 0 or more", begin_epoch)
        if end_epoch is not None and end_epoch <= begin_epoch:
            raise ArgumentError(
                "end_epoch", f"be greater than begin_epoch={begin_epoch}", end_epoch
            )
        self.strength = float(strength)
        self.groups = groups
        self.threshold = float(threshold)
        self.final_sparsity = final_sparsity
        self.until = None if until is None else check_budget(until)
        self.layers = layer_choice(layers)
        self.begin_epoch = begin_epoch
        self.end_epoch = end_epoch
        self.criterion: Criterion = named(CRITERIA, criterion, "criterion")
        self._seen: Observation | None = None
        self._found: ChannelTargets
        self._search: BudgetSearch | None = None
        self._groups: list[PenalizedGroups] = []
        self._frozen: list[FrozenZeros] = []
        self._state = "waiting"  # then "penalized", then "frozen" if training continues
        self._penalties: list[Hook] = []
        self._adds_gradient = False
        self._reached: set[str] = set()

    @property
    def importance(self) -> Importance | None:
        """What filters were worth, and where the budget cut; None before a fit or without one."""
        return None if self._search is None else self._search.importance()

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values."""
        chosen = "predicate" if callable(self.layers) else self.layers
        return {
            "strength": self.strength,
            "groups": self.groups,
            "threshold": self.threshold,
            "final_sparsity": self.final_sparsity,
            "layers": chosen,
            "begin_epoch": self.begin_epoch,
            "end_epoch": self.end_epoch,
            **({} if self.until is None else {"until": self.until.to_dict()}),
            # Omitted if it is the default, so that a second fit continues the record's step.
            **(
                {}
                if isinstance(self.criterion, Magnitude)
                else {"criterion": named_config(CRITERIA, self.criterion)}
            ),
        }

    def attach(self) -> None:
        """Finds the filters; the penalty starts with its first epoch."""
        self._seen, self._penalties, self._adds_gradient = None, [], False
        self._found = self._find_targets()
        self._groups = [_groups(target) for target in self._targets]
        self._search = None
        if self.until is not None:
            self._search = BudgetSearch(self.model, self.until, self._found)
        self._state = "waiting"

    def start_epoch(self, epoch: int) -> None:
        """Switches the penalty on or off as the epoch requires."""
        over = self.end_epoch is not None and epoch >= self.end_epoch
        if over and self._state != "frozen":
            # Training that resumes after `end_epoch` already has its zeros; weights that happen to
            # have become small since then must not join them.
            if self._state == "penalized" or epoch == self.end_epoch:
                self._lift_penalty()
                self._zero_weak_filters()
            self._freeze()
            self._state = "frozen"
            self.session.trace(always=True)
        elif not over and self._state == "waiting" and epoch >= self.begin_epoch:
            self._penalize()
            self._state = "penalized"

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the penalty and the number of weak or zero filters into the history."""
        self._refuse_unreached()
        penalty = sum(float(groups.penalty(self.strength)) for groups in self._groups)
        weak = [t.zeros() for t in self._targets]
        if self._state != "frozen":
            scores = self._scores()
            weak = [
                zero | (scores[t.path] < self.threshold)
                for t, zero in zip(self._targets, weak, strict=True)
            ]
        count = sum(int(mask.sum()) for mask in weak)
        self.log(
            epoch,
            logs,
            {
                "group_lasso_penalty": penalty if self._state == "penalized" else 0.0,
                "group_lasso_zero_filters": float(count),
                "group_lasso_zero_share": count / sum(len(mask) for mask in weak),
            },
        )

    def settle(self) -> None:
        """Sets the weak filters to zero if that has not been done yet."""
        if self._state == "frozen":
            # A weight-averaging optimizer has just replaced them.
            for frozen in self._frozen:
                frozen.variable.assign(frozen.variable * frozen.mask)
        elif self._state == "penalized":
            self._lift_penalty()
            self._zero_weak_filters()
        else:
            self.note(
                f"group lasso never began: begin_epoch={self.begin_epoch} was not reached, so no "
                "filter was set to zero."
            )
        self._state = "waiting"

    def results(self) -> Mapping[str, Any]:
        """Returns how many filters of each layer are zero, of how many."""
        zero = {t.path: [int(t.zeros().sum()), len(t.zeros())] for t in self._targets}
        return {"zero_filters": zero, **({} if self._search is None else self._search.results())}

    @property
    def _targets(self) -> tuple[ChannelTarget, ...]:
        return self._found.layers

    def _find_targets(self) -> ChannelTargets:
        """Returns the layers to penalize; notes the others, and where it has no effect."""
        found = find_targets(self.model, self.layers, self.criterion, "group lasso", self.note)
        for target in found.layers:
            if target.norm is not None and target.gamma is None:
                self.note(
                    f"group lasso on {target.path} shrinks numbers only: its BatchNormalization "
                    f"{target.norm_path} has no gamma (scale=False), which undoes it."
                )
        return found

    def _penalize(self) -> None:
        """Adds the penalty to the train step."""
        own = own_training(self.model)
        if own is None and not self.criterion.looks and on_one_device(self.model):
            for part in FusedPenalty(self.model, self._groups, self.strength).hooks():
                self._penalties.append(self.hook(part))
            return
        if own is None:
            for groups in self._groups:
                # The train step sums the regularizers.
                add = functools.partial(_Penalty, groups=groups, strength=self.strength)
                self._penalties.append(self.hook(Wrapping(groups.kernel, "regularizer", add)))
            if not self.criterion.looks:
                return
        else:
            self.note(
                f"group lasso adds its gradient to the optimizer's, because the model has its own "
                f"{own}: the penalty is not part of the reported loss."
            )
        self._reached = set()
        hook = self.hook(UpdateHook(before=self._with_gradients))
        self._penalties.append(hook)
        self._seen = self._found.observe(hook, self._hook_penalty)
        self._adds_gradient = own is not None

    def _hook_penalty(self, hook: Hook) -> None:
        self._penalties.append(self.hook(hook))

    def _with_gradients(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """Shows the gradients to the criterion, then adds the penalty's; part of the step."""
        if self._seen is not None:
            gradients = self._seen.observe(gradients, variables)
        if not self._adds_gradient:
            return gradients
        own: dict[int, Any] = {}
        for target, groups in zip(self._targets, self._groups, strict=True):
            own |= groups.gradients(self.strength)
            if any(variable is target.kernel for variable in variables):
                self._reached.add(target.path)
        summed = []
        for gradient, variable in zip(gradients, variables, strict=True):
            penalty = own.get(id(variable))
            if penalty is not None:
                penalty = ops.cast(penalty, variable.dtype)
                gradient = penalty if gradient is None else gradient + penalty
            summed.append(gradient)
        return summed

    def _refuse_unreached(self) -> None:
        """Refuses a train step that leaves penalized layers out."""
        if self._state != "penalized" or not self._adds_gradient:
            return
        missing = [target.path for target in self._targets if target.path not in self._reached]
        if missing:
            raise UnsupportedModelError(
                f"Model {self.model.name!r} has its own {own_training(self.model)}, which does not "
                f"update {missing[0]} through model.optimizer, so group lasso has no effect there. "
                "Update the weights with self.optimizer.apply(...), or leave the layer out with "
                "layers=."
            )

    def _scores(self) -> dict[str, np.ndarray]:
        """Returns each filter's norm divided by the largest norm of its layer.

        Filters whose channels are added together can only be removed together: each gets the
        largest score among them.
        """
        tiny = np.finfo(np.float64).tiny
        scores = self._found.scores(self._seen).items()
        return self._found.strongest({p: s / max(float(s.max()), tiny) for p, s in scores})

    def _zero_weak_filters(self) -> None:
        if self.criterion.looks and self._seen is None:
            self.note(
                f"group lasso set no filter to zero: its criterion {self.criterion} has seen no "
                "step of training. Begin before end_epoch."
            )
            return
        if self._search is not None:
            self._search.prune(self._found.scores(self._seen), 1.0, "group lasso", self.note)
            return
        scores = self._scores()
        if self.final_sparsity is None:
            weak = {path: score < self.threshold for path, score in scores.items()}
        else:
            weak = {path: smallest(score, self.final_sparsity) for path, score in scores.items()}
        if not any(mask.any() for mask in weak.values()):
            self.note(
                f"group lasso set no filter to zero: none is below {self.threshold} times the "
                "largest norm of its layer. Train longer with it, or use final_sparsity."
            )
        for text in zero_filters(self.model, weak).notes:
            self.note(f"group lasso: {text}")

    def _freeze(self) -> None:
        """Keeps the zero filters at zero while training continues."""
        self._frozen = self._found.frozen(self.model)
        for frozen in self._frozen:
            self.hook(keep_zeros(frozen))

    def _lift_penalty(self) -> None:
        for hook in self._penalties:
            self.session.detach(hook)
        self._penalties = []


def _groups(target: ChannelTarget) -> PenalizedGroups:
    """Returns a layer's filters as groups of weights."""
    kernel, axis = target.kernel, target.where.axis
    # The group's size includes gamma if it belongs to the group.
    size = int(np.prod(kernel.shape)) // target.filters + (target.gamma is not None)
    return PenalizedGroups(kernel, axis, target.gamma, size)


@dataclass(frozen=True, eq=False)
class _Penalty:
    """A variable's regularizer: its own, if any, plus the group lasso."""

    inner: Callable[[Any], Any] | None
    groups: PenalizedGroups
    strength: float

    def __call__(self, value: Any) -> Any:
        penalty = self.groups.penalty(self.strength, value)
        return penalty if self.inner is None else penalty + self.inner(value)
