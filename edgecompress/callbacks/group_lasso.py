"""Group lasso: training that weakens whole groups of weights, so that they can be removed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.budget_search import BudgetSearch
from edgecompress.callbacks.channel_targets import keep_zeros
from edgecompress.callbacks.fused import on_one_device
from edgecompress.callbacks.fused_penalty import (
    FusedPenalty,
    PenalizedGroups,
    Strength,
    strength_at,
)
from edgecompress.callbacks.hooks import Hook, UpdateHook, Wrapping, own_training
from edgecompress.callbacks.lasso_groups import (
    FILTERS,
    FilterGroups,
    LassoGroups,
    find_groups,
    kinds,
)
from edgecompress.callbacks.layer_choice import LayerChoice, layer_choice
from edgecompress.callbacks.observation import Observation
from edgecompress.callbacks.replicas import dense, replicas
from edgecompress.core.arguments import check_between, check_whole, is_number
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.importance import Importance
from edgecompress.core.options import named, named_config
from edgecompress.costs.budget import Budget, check_budget
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.zero_filters import FrozenZeros

PENALTY, PROXIMAL = "penalty", "proximal"
# How the groups are weakened.
METHODS = (PENALTY, PROXIMAL)


class GroupLasso(CompressionCallback):
    """Weakens groups of weights by a group lasso penalty, then sets the weakest to zero.

    The loss grows by `strength * sum over groups of sqrt(n) * ||w_g||_2`, with w_g the n weights of
    a group: Yuan and Lin, "Model selection and estimation in regression with grouped variables"
    (2006), equation (2.1). Unlike weight decay it pushes whole groups towards zero, but as a loss
    term it never reaches zero. So at `end_epoch`, or at the end of training, groups whose norm is
    below `threshold` times the largest norm of their layer are set to zero. From then on they stay
    zero.

    With the groups `filters`, gamma of the BatchNormalization that follows belongs to a filter, the
    mean output of a filter that becomes zero is folded into the biases of the layers that read it,
    and `edgecompress.finalize` removes it physically. Only filters that can be removed are
    penalized: layers whose outputs are outputs of the model, or that feed a layer which mixes
    channels in unknown ways, are skipped and listed in the notes. Other groups are the slices of a
    pattern of `Pruning` (Wen et al., "Learning structured sparsity in deep neural networks", 2016,
    https://arxiv.org/abs/1608.03665, equation (3)): input channels that no other layer reads go,
    too; zeros of the others stay in dense kernels, which compress better and run as slowly.

    The penalty also shrinks the groups that stay, which costs accuracy while it is active: continue
    training without it, either with `end_epoch` or in a second `fit` of the finalized model.

    A layer's own regularizer and constraint stay in force. If the model has its own `train_step` or
    `compute_loss`, which may leave layer penalties out of its loss, the gradient of the penalty is
    added as the optimizer applies the others. The history gains `group_lasso_penalty`,
    `group_lasso_zero_filters` and `group_lasso_zero_share` (groups below the threshold, or already
    zero) for each epoch.

    Args:
        strength: Weight of the penalty, greater than 0; 1e-5 to 1e-3 is typical with Adam. Or a
            schedule of `keras.optimizers.schedules`, from the optimizer's steps to weights: a
            penalty that grows (Wang et al., "Neural pruning via growing regularization", 2021,
            https://arxiv.org/abs/2012.09243), for instance.
        groups: What becomes zero together: `"filters"`, all weights of one output channel or unit,
            or a pattern of slices: `"input-channels"`, `"kernel-shapes"`, `"kernels"`; or
            `"layers"` that a shortcut passes by, compared with each other. Defaults to `"filters"`.
        threshold: Groups below this share of their layer's largest norm become zero; 0 < t < 1.
            Norms of filters have BatchNormalization folded in. Defaults to 1e-2.
        final_sparsity: Share of each layer's groups to set to zero, 0 < s < 1; the weakest are
            taken and `threshold` is not used. Defaults to None.
        layers: Names of layers, or a predicate `layer -> bool`. Defaults to None: every Dense,
            EinsumDense, convolution, transposed, separable and recurrent layer whose filters can be
            removed; for other groups every layer that `Pruning` prunes.
        begin_epoch: First epoch with the penalty, from 0. Defaults to 0.
        end_epoch: First epoch without the penalty: groups become zero as it begins, and training
            continues without them. Defaults to None, the end of training; the last epoch's metrics
            then describe the model before any group became zero.
        criterion: How groups are compared: a name in `CRITERIA`, `NAME:OPTION=VALUE`, or a
            criterion; a group's score is the L2 norm of its weights' scores. Defaults to
            `"magnitude"`, the norm of the weights.
        until: Instead of `threshold`: filters become zero until the finalized model would meet this
            budget, the least important for what they save first, as `ChannelPruning` ranks them.
            Defaults to None.
        method: `"penalty"` adds the penalty to the loss. `"proximal"` takes its proximal step after
            each update instead, `w_g <- w_g * max(0, 1 - learning rate * strength * sqrt(n) /
            ||w_g||_2)` (Parikh and Boyd, "Proximal algorithms", 2014, section 6.5.1): groups become
            exactly zero during training. It is meant for SGD: with momentum or an adaptive
            optimizer the gradient moves weights further than this step. Defaults to `"penalty"`.

    Raises:
        ArgumentError: an argument breaks its rule; at the start of `fit` also if `until` cannot be
            met, with by how much not.
        UnknownNameError: `groups`, `method` or a layer is unknown.
        UnsupportedModelError: the model is subclassed or not built (when training begins), or
            its own `train_step` updates no weight through `model.optimizer`.

    Example:
        >>> model.fit(x, y, epochs=10, callbacks=[GroupLasso(1e-4, end_epoch=6)])  # doctest: +SKIP
        >>> small = edgecompress.finalize(model)  # doctest: +SKIP
    """

    technique = "group_lasso"

    def __init__(
        self,
        strength: Strength,
        groups: str = FILTERS,
        threshold: float = 1e-2,
        final_sparsity: float | None = None,
        layers: LayerChoice = None,
        begin_epoch: int = 0,
        end_epoch: int | None = None,
        criterion: str | Criterion = "magnitude",
        until: Budget | None = None,
        method: str = PENALTY,
    ) -> None:
        """Checks the arguments; see the class."""
        super().__init__()
        _check_strength(strength)
        if groups not in kinds():
            raise UnknownNameError("groups", groups, kinds())
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
        self.threshold = check_between("threshold", threshold)
        self.final_sparsity = (
            None if final_sparsity is None else check_between("final_sparsity", final_sparsity)
        )
        if until is not None and final_sparsity is not None:
            raise ArgumentError("until", "be left out with final_sparsity", until)
        if until is not None and groups != FILTERS:
            raise ArgumentError("until", f"be left out with groups={groups!r}", until)
        begin_epoch = check_whole("begin_epoch", begin_epoch)
        if end_epoch is not None and check_whole("end_epoch", end_epoch) <= begin_epoch:
            raise ArgumentError(
                "end_epoch", f"be greater than begin_epoch={begin_epoch}", end_epoch
            )
        self.strength: Strength = strength if callable(strength) else float(strength)
        self.groups = groups
        self.until = None if until is None else check_budget(until)
        self.layers = layer_choice(layers)
        self.begin_epoch = begin_epoch
        self.end_epoch = None if end_epoch is None else int(end_epoch)
        self.criterion: Criterion = named(CRITERIA, criterion, "criterion")
        self.method = method
        self._seen: Observation | None = None
        self._groups: LassoGroups
        self._search: BudgetSearch | None = None
        self._frozen: list[FrozenZeros] = []
        self._state = "waiting"  # then "penalized", then "frozen" if training continues
        self._penalties: list[Hook] = []
        self._adds_gradient = False
        self._reached: set[str] = set()
        self._update: UpdateHook
        self._counted: keras.Variable | None = None

    @property
    def importance(self) -> Importance | None:
        """What filters were worth, and where the budget cut; None before a fit or without one."""
        return None if self._search is None else self._search.importance()

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values."""
        chosen = "predicate" if callable(self.layers) else self.layers
        return {
            "strength": _config_of(self.strength),
            "groups": self.groups,
            "threshold": self.threshold,
            "final_sparsity": self.final_sparsity,
            "layers": chosen,
            "begin_epoch": self.begin_epoch,
            "end_epoch": self.end_epoch,
            **({} if self.until is None else {"until": self.until.to_dict()}),
            **({} if self.method == PENALTY else {"method": self.method}),
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
        self._groups = find_groups(self.groups, self.model, self.layers, self.criterion, self.note)
        self._search = None
        if self.until is not None and isinstance(self._groups, FilterGroups):
            self._search = BudgetSearch(self.model, self.until, self._groups.found)
        self._state = "waiting"
        epochs = self.params.get("epochs")
        if epochs and self.begin_epoch >= epochs:
            # At the end of training, the record gets a note on the outcome.
            warnings.warn(
                f"Group lasso will not begin: begin_epoch is {self.begin_epoch}, and the last "
                f"epoch is {epochs - 1}, counted from 0.",
                stacklevel=2,
            )

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
        strength = strength_at(self.strength, self.model.optimizer.iterations)
        penalty = sum(float(groups.penalty(strength)) for groups in self._groups.penalized)
        weak = self._groups.zeros()
        if self._state != "frozen":
            scores = self._groups.scores(self._seen)
            weak = [
                zero | (scores[path] < self.threshold)
                for path, zero in zip(self._groups.paths, weak, strict=True)
            ]
        count = sum(int(mask.sum()) for mask in weak)
        self.log(
            epoch,
            logs,
            {
                "group_lasso_penalty": penalty if self._state == "penalized" else 0.0,
                "group_lasso_zero_filters": float(count),
                "group_lasso_zero_share": count / sum(mask.size for mask in weak),
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
        found = zip(self._groups.paths, self._groups.zeros(), strict=True)
        zero = {path: [int(mask.sum()), mask.size] for path, mask in found}
        return {"zero_filters": zero, **({} if self._search is None else self._search.results())}

    @property
    def _unit(self) -> str:
        return "filter" if self.groups == FILTERS else "group"

    def _penalize(self) -> None:
        """Adds the penalty, or its proximal step, to the train step."""
        own = own_training(self.model)
        if self.method == PROXIMAL:
            self._shrink_after_updates()
            return
        if callable(self.strength) and keras.backend.backend() != "tensorflow":
            raise ArgumentError(
                "strength",
                f"be a number with method={PENALTY!r} on the {keras.backend.backend()} backend",
                self.strength,
                f"method={PROXIMAL!r} takes a schedule there.",
            )
        if own is None and not self.criterion.looks and on_one_device(self.model):
            for part in FusedPenalty(self.model, self._groups.penalized, self.strength).hooks():
                self._penalties.append(self.hook(part))
            return
        if own is None:
            for groups in self._groups.penalized:
                # The train step sums the regularizers.
                add = functools.partial(_Penalty, groups=groups, strength=self._strength_now)
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
        self._seen = self._groups.observe(hook, self._hook_penalty)
        self._adds_gradient = own is not None

    def _shrink_after_updates(self) -> None:
        """Adds the proximal step, which follows each update of the optimizer."""
        parts = [part for groups in self._groups.penalized for part in groups.parts()]
        hook = UpdateHook(
            after=self._shrink,
            before=self._with_gradients if self.criterion.looks else None,
            assigns=[variable for variable, _ in parts],
        )
        self._penalties.append(self.hook(hook))
        self._seen = None
        if self.criterion.looks:
            self._seen = self._groups.observe(hook, self._hook_penalty)
        self._update, self._counted = hook, None
        if hook.optimizer.gradient_accumulation_steps:
            self._counted = hook.add_variable((), "int32", "group_lasso_updates")
            self._counted.assign(ops.cast(hook.optimizer.iterations, "int32"))
        if not isinstance(hook.optimizer, keras.optimizers.SGD):
            self.note(
                f"The proximal step is the learning rate times the strength, as for SGD; the steps "
                f"of {type(hook.optimizer).__name__} differ from weight to weight, and it takes a "
                "larger strength for as many zeros."
            )

    def _shrink(self) -> None:
        """Takes the proximal step; part of the compiled step."""
        optimizer = self._update.optimizer
        amount = ops.cast(optimizer.learning_rate, "float32") * self._strength_now()
        if self._counted is not None:
            # Gradients that are only added up update no weight.
            count = ops.cast(optimizer.iterations, "int32")
            amount = ops.where(ops.equal(count, ops.convert_to_tensor(self._counted)), 0.0, amount)
            self._counted.assign(count)
        for groups in self._groups.penalized:
            groups.shrink(amount)

    def _strength_now(self) -> Any:
        return strength_at(self.strength, self.model.optimizer.iterations)

    def _hook_penalty(self, hook: Hook) -> None:
        self._penalties.append(self.hook(hook))

    def _with_gradients(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """Shows the gradients to the criterion, then adds the penalty's; part of the step."""
        if self._seen is not None:
            gradients = self._seen.observe(gradients, variables)
        if not self._adds_gradient:
            return gradients
        own: dict[int, Any] = {}
        strength = self._strength_now()
        for path, groups in zip(self._groups.paths, self._groups.penalized, strict=True):
            for key, slope in groups.gradients(strength).items():
                # A kernel can hold groups along several axes.
                own[key] = own[key] + slope if key in own else slope
            if any(variable is groups.kernel for variable in variables):
                self._reached.add(path)
        summed = []
        for gradient, variable in zip(gradients, variables, strict=True):
            penalty = own.get(id(variable))
            if penalty is not None:
                # The optimizer adds up the gradients of all replicas.
                penalty = ops.cast(penalty / replicas(self.model), variable.dtype)
                gradient = penalty if gradient is None else dense(gradient) + penalty
            summed.append(gradient)
        return summed

    def _refuse_unreached(self) -> None:
        """Refuses a train step that leaves penalized layers out."""
        if self._state != "penalized" or not self._adds_gradient:
            return
        missing = [path for path in self._groups.paths if path not in self._reached]
        if missing:
            raise UnsupportedModelError(
                f"Model {self.model.name!r} has its own {own_training(self.model)}, which does not "
                f"update {missing[0]} through model.optimizer, so group lasso has no effect there. "
                "Update the weights with self.optimizer.apply(...), or leave the layer out with "
                "layers=."
            )

    def _zero_weak_filters(self) -> None:
        if self.criterion.looks and self._seen is None:
            self.note(
                f"group lasso set no {self._unit} to zero: its criterion {self.criterion} has seen "
                "no step of training. Begin before end_epoch."
            )
            return
        if self._search is not None and isinstance(self._groups, FilterGroups):
            found = self._groups.found.scores(self._seen)
            self._search.prune(found, 1.0, "group lasso", self.note)
            return
        scores = self._groups.scores(self._seen)
        if self.final_sparsity is None:
            weak = {path: score < self.threshold for path, score in scores.items()}
        else:
            weak = self._groups.weakest(scores, self.final_sparsity)
        if not any(mask.any() for mask in weak.values()):
            self.note(
                f"group lasso set no {self._unit} to zero: none is below {self.threshold} times "
                "the largest norm of its layer. Train longer with it, or use final_sparsity."
            )
        for text in self._groups.silence(weak):
            self.note(f"group lasso: {text}")

    def _freeze(self) -> None:
        """Keeps the zero filters at zero while training continues."""
        self._frozen = self._groups.frozen()
        for frozen in self._frozen:
            self.hook(keep_zeros(frozen))

    def _lift_penalty(self) -> None:
        for hook in self._penalties:
            self.session.detach(hook)
        self._penalties = []


def _check_strength(strength: Any) -> None:
    if isinstance(strength, keras.optimizers.schedules.LearningRateSchedule):
        return
    if not is_number(strength) or not 0 < strength < float("inf"):
        raise ArgumentError(
            "strength", "be a number greater than 0, or a keras.optimizers.schedules schedule",
            strength,
        )  # fmt: skip


def _config_of(strength: Strength) -> Any:
    """Returns a strength as JSON values."""
    if not callable(strength):
        return strength
    return {"schedule": type(strength).__name__, **strength.get_config()}


@dataclass(frozen=True, eq=False)
class _Penalty:
    """A variable's regularizer: its own, if any, plus the group lasso."""

    inner: Callable[[Any], Any] | None
    groups: PenalizedGroups
    strength: Callable[[], Any]

    def __call__(self, value: Any) -> Any:
        penalty = self.groups.penalty(self.strength(), value)
        return penalty if self.inner is None else penalty + self.inner(value)
