"""Group lasso: training that weakens whole filters, so that they can be removed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.fused import on_one_device
from edgecompress.callbacks.fused_penalty import FusedPenalty, PenalizedGroups
from edgecompress.callbacks.hooks import Hook, UpdateHook, Wrapping, own_training
from edgecompress.callbacks.layer_choice import LayerChoice, layer_choice, select_layers
from edgecompress.callbacks.observation import Observation, Observed, views_of, why_not
from edgecompress.callbacks.views import View
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.keras_graph import named_layers
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import named, named_config
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.channels import Analysis, analyse
from edgecompress.surgery.groups import (
    GROUPS,
    FilterAxis,
    filter_axis,
    find_zero_filters,
    group_lasso_gradient,
    group_lasso_penalty,
    group_squares,
    norm_scale,
    smallest,
)
from edgecompress.surgery.rules import rule_of
from edgecompress.surgery.zero_filters import FrozenZeros, frozen_zeros, zero_filters


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
        criterion: How filters are compared: a name in `CRITERIA`, `NAME:OPTION=VALUE`, or a
            criterion; a filter's score is the L2 norm of its weights' scores. Defaults to
            `"magnitude"`, the norm of the weights.

    Raises:
        ArgumentError: an argument breaks its rule.
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
        self.layers = layer_choice(layers)
        self.begin_epoch = begin_epoch
        self.end_epoch = end_epoch
        self.criterion: Criterion = named(CRITERIA, criterion, "criterion")
        self._seen: Observation | None = None
        self._views: Mapping[str, View] = {}
        self._targets: list[_Target] = []
        self._analyses: list[Analysis] = []
        self._frozen: list[FrozenZeros] = []
        self._state = "waiting"  # then "penalized", then "frozen" if training continues
        self._penalties: list[Hook] = []
        self._adds_gradient = False
        self._reached: set[str] = set()

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
        self._targets = self._find_targets()
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
        penalty = sum(float(target.penalty(self.strength)) for target in self._targets)
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
        return {"zero_filters": zero}

    def _find_targets(self) -> list[_Target]:
        """Returns the chosen layers whose filters `finalize` can remove; notes the others."""
        self._analyses = analyse(self.model)  # Refuses subclassed models.
        self._views = views_of(self.criterion, self.model)
        kinds = tuple({type(x) for _, x in named_layers(self.model) if _has_filters(x)})
        chosen = {id(layer) for layer in select_layers(self.model, self.layers, kinds)}
        named = self.layers is not None and not callable(self.layers)
        live = dict(named_layers(self.model))
        targets = []
        for path, layer in live.items():
            where = filter_axis(layer)
            if id(layer) not in chosen or where is None:
                continue
            shape = KernelShape(tuple(getattr(layer, where.attribute).shape), where.axis)
            reason = _why_not(path, layer, self._analyses)
            unseen = why_not(self.criterion, layer, shape, self._views)
            if reason is None and unseen is not None:
                reason = f"{unseen}, so the criterion {self.criterion} cannot score it"
            if reason is None:
                norm = next(
                    (a.following_norm[path] for a in self._analyses if path in a.following_norm),
                    None,
                )
                targets.append(_Target(path, layer, where, norm, live.get(norm or "")))
            elif named:
                raise ArgumentError(
                    "layers", "name layers whose filters can be removed", path, f"Here {reason}."
                )
            else:
                self.note(f"group lasso skips {path}: {reason}.")
        if not targets:
            raise ArgumentError(
                "layers", "leave a layer whose filters can be removed", self.layers,
                " ".join(self.notes),
            )  # fmt: skip
        for target in targets:
            if target.norm is not None and target.gamma is None:
                self.note(
                    f"group lasso on {target.path} shrinks numbers only: its BatchNormalization "
                    f"{target.norm_path} has no gamma (scale=False), which undoes it."
                )
        return targets

    def _penalize(self) -> None:
        """Adds the penalty to the train step."""
        own = own_training(self.model)
        if own is None and not self.criterion.looks and on_one_device(self.model):
            groups = [target.groups() for target in self._targets]
            for part in FusedPenalty(self.model, groups, self.strength).hooks():
                self._penalties.append(self.hook(part))
            return
        if own is None:
            for target in self._targets:
                self._penalties.append(self.hook(target.penalty_hook(self.strength)))
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
        kernels = [
            Observed(target.path.replace("/", "_"), target.layer, target.kernel, target.shape)
            for target in self._targets
        ]
        self._seen = Observation(self.criterion, kernels, hook, self._hook_penalty, self._views)
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
        for target in self._targets:
            own |= target.gradients(self.strength)
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
        own = {}
        for target in self._targets:
            norms = target.scores(self.criterion, self._seen)
            own[target.path] = norms / max(float(norms.max()), np.finfo(np.float64).tiny)
        scores = {path: score.copy() for path, score in own.items()}
        for analysis in self._analyses:
            best: dict[int, float] = {}
            roots = {
                path: analysis.roots(analysis.producers[path])
                for path in own
                if path in analysis.producers
            }
            for path, labels in roots.items():
                for root, score in zip(labels, own[path], strict=True):
                    best[int(root)] = max(best.get(int(root), 0.0), float(score))
            for path, labels in roots.items():
                scores[path] = np.array([best[int(root)] for root in labels])
        return scores

    def _zero_weak_filters(self) -> None:
        if self.criterion.looks and self._seen is None:
            self.note(
                f"group lasso set no filter to zero: its criterion {self.criterion} has seen no "
                "step of training. Begin before end_epoch."
            )
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
        self._frozen = frozen_zeros(self.model, [target.path for target in self._targets])
        for frozen in self._frozen:
            keep = functools.partial(_KeepZeros, mask=frozen.mask)
            self.hook(Wrapping(frozen.variable, "constraint", keep))

    def _lift_penalty(self) -> None:
        for hook in self._penalties:
            self.session.detach(hook)
        self._penalties = []


def _has_filters(layer: Any) -> bool:
    return filter_axis(layer) is not None and rule_of(layer) is not None


def _why_not(path: str, layer: Any, analyses: list[Analysis]) -> str | None:
    """Returns why none of a layer's filters can be removed; None if some can."""
    if not layer.trainable:
        return "it is not trainable"
    for analysis in analyses:
        if path not in analysis.producers:
            continue
        reasons = {analysis.root(label): why for label, why in analysis.frozen.items()}
        roots = analysis.roots(analysis.producers[path])
        if all(int(root) in reasons for root in roots):
            return f"its filters have to stay because {reasons[int(roots[0])]}"
        return None
    return "it is not understood in this model"


class _Target:
    """A layer under the penalty, with the BatchNormalization that reads it."""

    def __init__(
        self, path: str, layer: Any, where: FilterAxis, norm_path: str | None, norm: Any
    ) -> None:
        self.path, self.where, self.norm_path, self.norm = path, where, norm_path, norm
        self.layer = layer
        self.kernel = getattr(layer, self.where.attribute)
        self.shape = KernelShape(tuple(self.kernel.shape), where.axis)
        self.gamma = getattr(norm, "gamma", None)
        count = self.kernel.shape[self.where.axis]
        # The group's size includes gamma if it belongs to the group.
        self.size = int(np.prod(self.kernel.shape)) // count + (self.gamma is not None)

    def groups(self) -> PenalizedGroups:
        """Returns the filters as groups of weights."""
        return PenalizedGroups(self.kernel, self.where.axis, self.gamma, self.size)

    def penalty_hook(self, strength: float) -> Wrapping:
        """Returns what adds the penalty to the kernel's regularizer, which the train step sums."""
        add = functools.partial(_Penalty, target=self, strength=strength)
        return Wrapping(self.kernel, "regularizer", add)

    def penalty(self, strength: float, kernel: Any = None) -> Any:
        """Returns the penalty as a tensor, for the kernel's value inside a train step."""
        kernel = self.kernel if kernel is None else kernel
        squares = group_squares(kernel, self.where.axis, self.gamma)
        return group_lasso_penalty(squares, self.size, strength)

    def gradients(self, strength: float) -> dict[int, Any]:
        """Returns the penalty's gradients inside a train step, by the variable's identity."""
        groups = self.groups()
        squares = groups.squares()
        return {
            id(variable): group_lasso_gradient(variable, squares, axis, self.size, strength)
            for variable, axis in groups.parts()
        }

    def scores(self, criterion: Criterion, seen: Observation | None) -> np.ndarray:
        """Returns each filter's score, with BatchNormalization folded in where it counts."""
        statistics = None if seen is None else seen.statistics(self.kernel)
        kernel = ops.convert_to_numpy(self.kernel)
        scores = criterion.group_scores(kernel, self.where.axis, statistics)
        if self.norm is None or not criterion.grows_with_weights:
            return scores
        names = ("gamma", "moving_variance")
        found = {name: getattr(self.norm, name) for name in names}
        weights = {k: ops.convert_to_numpy(v) for k, v in found.items() if v is not None}
        return scores * norm_scale(weights, self.norm.epsilon)

    def zeros(self) -> np.ndarray:
        """Returns which filters are entirely zero."""
        return find_zero_filters(ops.convert_to_numpy(self.kernel), self.where.axis)


@dataclass(frozen=True, eq=False)
class _Penalty:
    """A variable's regularizer: its own, if any, plus the group lasso."""

    inner: Callable[[Any], Any] | None
    target: _Target
    strength: float

    def __call__(self, value: Any) -> Any:
        penalty = self.target.penalty(self.strength, value)
        return penalty if self.inner is None else penalty + self.inner(value)


@dataclass(frozen=True, eq=False)
class _KeepZeros:
    """A variable's constraint: its own, if any, then zeros for zero filters."""

    inner: Callable[[Any], Any] | None
    mask: np.ndarray

    def __call__(self, value: Any) -> Any:
        value = value if self.inner is None else self.inner(value)
        return value * ops.cast(self.mask, value.dtype)
