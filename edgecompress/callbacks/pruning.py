"""Pruning: the least important weights become zero during training."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks import backends
from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.fused import apart, fused, on_one_device
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.layer_choice import (
    ChosenKernel,
    LayerChoice,
    choose_kernels,
    layer_choice,
)
from edgecompress.callbacks.layer_shares import check_shares, factors, final_sparsity
from edgecompress.callbacks.masked import mask_weights
from edgecompress.callbacks.observation import Observation, Observed, views_of, why_not
from edgecompress.callbacks.views import View
from edgecompress.core.errors import ArgumentError, one_line
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.options import named, named_config
from edgecompress.core.registry import Registry
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion
from edgecompress.patterns import PATTERNS
from edgecompress.patterns.base import Pattern
from edgecompress.schedules.base import Schedule, serialize

# Scope -> function that splits the number of kernels into groups sharing one threshold.
SCOPES: Registry[Callable[[int], list[list[int]]]] = Registry("scope")


@SCOPES.register("layer")
def _one_by_one(count: int) -> list[list[int]]:
    return [[index] for index in range(count)]


@SCOPES.register("global")
def _all_together(count: int) -> list[list[int]]:
    return [list(range(count))]


@dataclass(frozen=True)
class _Pruned:
    """A layer's pruned weights and their mask (True stays).

    Attributes:
        factor: By how much its sparsity differs from the schedule's; None for not at all.
    """

    layer: str
    kernel: keras.Variable
    mask: keras.Variable
    shape: KernelShape
    factor: float | None = None

    def apply(self, mask: Any) -> None:
        mask_weights(self.kernel, mask)

    def zeros(self) -> int:
        kernel = ops.convert_to_numpy(self.kernel)
        return int(kernel.size - np.count_nonzero(kernel))

    @property
    def size(self) -> int:
        return int(np.prod(self.kernel.shape))


class Pruning(CompressionCallback):
    """Sets the least important weights to zero during `fit`: criterion x pattern x schedule.

    At every update step of the schedule the criterion scores the weights, and the pattern decides
    which of them stay at the schedule's sparsity; after every optimizer step, weights outside the
    mask are set to 0. It runs inside the compiled train step, so `steps_per_execution` and
    `jit_compile` do not change the result. The layers stay plain Keras layers; there is nothing to
    strip after training.

    Steps are the optimizer's updates since the model was compiled: a second `fit`, or one after
    `load_model`, continues the schedule. Keep the callback in every later `fit`, or use
    `KeepSparsity`; without either, the zeros grow back. `fit` adds `sparsity` to its history, and
    `sparsity/<layer>` for each layer.

    Args:
        schedule: Target sparsity over the steps, e.g. `PolynomialDecay`.
        criterion: How the weights are scored: a name in `CRITERIA`, `NAME:OPTION=VALUE`, or a
            criterion. Defaults to `"magnitude"`.
        pattern: Which weights are pruned as a unit: a name in `PATTERNS`, `NAME:OPTION=VALUE`, or a
            pattern. Layers whose kernel does not fit the pattern are skipped. Defaults to
            `"weights"`.
        layers: Names of the layers to prune, or a predicate `layer -> bool`. Defaults to None:
            all Dense, EinsumDense, Conv, Conv transpose, SeparableConv (pointwise part) and
            Embedding layers; depthwise layers only if named.
        per_layer: Regular expression -> share of zeros at the end, for the layers whose whole name
            it matches; the first that does counts. They follow the schedule in proportion and are
            not compared with other layers. 0 protects a layer. Defaults to none.
        scope: "layer" gives every layer the same sparsity; "global" compares the weights of all
            layers, so that robust layers lose more, which is usually more accurate at the same
            total (Gupta et al., "Is complexity required for neural network pruning?", 2022,
            https://arxiv.org/abs/2209.14624). Defaults to "layer".

    Raises:
        ArgumentError: an argument breaks its rule; at the start of `fit` also if no layer is
            left to prune or the schedule was over before training began.
        UnknownNameError: a name is not registered.
        UnsupportedModelError: at the start of `fit`, the model is subclassed.

    Example:
        >>> pruning = Pruning(PolynomialDecay(0.8, begin_step=0, end_step=3000),
        ...                   pattern="blocks:rows=4,columns=1")  # doctest: +SKIP
        >>> model.fit(x, y, epochs=10, callbacks=[pruning])  # doctest: +SKIP
    """

    technique = "pruning"

    def __init__(
        self,
        schedule: Schedule,
        criterion: str | Criterion = "magnitude",
        pattern: str | Pattern = "weights",
        layers: LayerChoice = None,
        scope: str = "layer",
        per_layer: Mapping[str, float] | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise ArgumentError(
                "schedule",
                "be a Schedule",
                schedule,
                "Use PolynomialDecay(final_sparsity=..., begin_step=..., end_step=...).",
            )
        self.schedule = schedule
        self.criterion: Criterion = named(CRITERIA, criterion, "criterion")
        self.pattern: Pattern = named(PATTERNS, pattern, "pattern")
        self.per_layer = check_shares(per_layer, schedule)
        self._check_reach()
        self.layers = layer_choice(layers)
        self.scope = scope
        self._groups = SCOPES[scope]
        if self.pattern.compares_layers:
            self._check_comparison()
        self._pruned: list[_Pruned] = []
        self._apply: Callable[[], Any] = bool
        self._renewed: Callable[[], Any] = bool
        self._hook: UpdateHook | None = None
        self._seen: Observation | None = None
        self._views: Mapping[str, View] = {}
        self._started = False

    def settings(self) -> Mapping[str, Any]:
        """Returns schedule, criterion, pattern, scope and the names of the pruned layers."""
        return {
            "schedule": serialize(self.schedule),
            "criterion": named_config(CRITERIA, self.criterion),
            "pattern": named_config(PATTERNS, self.pattern),
            "scope": self.scope,
            **self._per_layer_setting(),
            "layers": [pruned.layer for pruned in self._pruned],
        }

    def _per_layer_setting(self) -> dict[str, Any]:
        return {"per_layer": self.per_layer} if self.per_layer else {}

    def attach(self) -> None:
        """Hooks the masks into the optimizer."""
        self._check_trace()
        kernels = self._fitting(choose_kernels(self.model, self.layers, "pruned", self.note))
        taken = {
            id(variable)
            for other in self.session.updates()
            if isinstance(other.owner, Pruning)
            for variable in other.assigns
        }
        for kernel in kernels:
            if id(kernel.variable) in taken:
                raise ArgumentError(
                    "layers",
                    "not name a layer that another callback of this fit prunes",
                    kernel.name,
                )
        hook = self.hook(UpdateHook(self._prune, assigns=[kernel.variable for kernel in kernels]))
        self._pruned = [
            _Pruned(
                kernel.name,
                kernel.variable,
                hook.add_variable(
                    kernel.variable.shape, "bool", f"{kernel.layer.name}_pruning_mask"
                ),
                _shape_of(kernel),
                factor,
            )
            for kernel, factor in zip(
                kernels,
                factors([kernel.name for kernel in kernels], self.per_layer, self.schedule),
                strict=True,
            )
        ]
        self._hook = hook
        observed = [
            Observed(kernel.layer.name, kernel.layer, kernel.variable, _shape_of(kernel))
            for kernel in kernels
        ]
        self._seen = Observation(self.criterion, observed, hook, self.hook, self._views)
        apply = functools.partial(self._apply_unless_due, self._seen, hook.optimizer)
        self._apply = fused(apply, self.model, [pruned.kernel for pruned in self._pruned])
        renew = functools.partial(self._renew, self._seen, hook.optimizer)
        self._renewed = apart(renew, self.model)
        if self._seen.needed:
            hook.before = self._seen.observe
        self._started = False
        self._refuse_early_end()
        self._warn_of_no_update()

    def start_epoch(self, epoch: int) -> None:
        """Finds the masks to start from, once every callback has restored its state."""
        if not self._started:
            self._resume()
            self._prune()
            self._started = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the sparsity into the history."""
        total, by_layer = self._sparsity()
        details = {f"sparsity/{name}": value for name, value in by_layer.items()}
        self.log(epoch, logs, {"sparsity": total}, details)

    def settle(self) -> None:
        """Masks the weights once more: with weight averaging, `fit` has just replaced them."""
        for pruned in self._pruned:
            pruned.apply(ops.convert_to_tensor(pruned.mask))

    def results(self) -> Mapping[str, Any]:
        """Returns the sparsity, overall and per layer, and the optimizer's steps."""
        total, by_layer = self._sparsity()
        step = self._step()
        self._note_shortfall(total, step)
        return {"sparsity": total, "layer_sparsity": by_layer, "optimizer_steps": step}

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._pruned = []
        self._apply = self._renewed = bool

    def _check_trace(self) -> None:
        """Refuses a schedule that cannot be followed inside a compiled step."""
        try:
            backends.current().trace(lambda step: self.schedule.value(step, ops))
        except Exception as error:
            text = one_line(error).partition(". ")[0].rstrip(".")
            raise ArgumentError(
                "schedule",
                "follow a step that is a tensor, inside the compiled train step",
                self.schedule,
                f"{text}. Use operators and keras.ops, no `if` on the step.",
            ) from error

    def _check_reach(self) -> None:
        """Refuses a schedule with a higher sparsity than the pattern allows."""
        highest = self.pattern.highest_sparsity
        if final_sparsity(self.schedule) > highest + 1e-6:
            raise ArgumentError(
                "schedule",
                f"end at a sparsity of at most {highest:.4g}, which is what {self.pattern} leaves",
                self.schedule,
            )
        for layer, share in self.per_layer.items():
            if share > highest + 1e-6:
                raise ArgumentError(
                    "per_layer",
                    f"map to at most {highest:.4g}, which is what {self.pattern} leaves",
                    f"{layer}: {share}",
                )

    def _check_comparison(self) -> None:
        """Refuses to compare layers where each is on its own."""
        if all(len(group) == 1 for group in self._groups(2)):
            raise ArgumentError(
                "scope",
                f"compare layers with each other, because {self.pattern} prunes whole layers",
                self.scope,
                'Use scope="global".',
            )
        shares = {layer: share for layer, share in self.per_layer.items() if share}
        if shares:
            raise ArgumentError(
                "per_layer",
                f"map to 0, which protects a layer, because {self.pattern} prunes whole layers",
                shares,
            )

    def _fitting(self, kernels: list[ChosenKernel]) -> list[ChosenKernel]:
        """Skips kernels that do not fit the pattern or the criterion."""
        chosen = []
        self._views = views_of(self.criterion, self.model)
        spared = self.pattern.spared(
            self.model,
            # What another callback may take counts as gone.
            dict.fromkeys(self._whole_layers_of_others(), math.inf)
            | {kernel.layer.name: float(np.prod(kernel.variable.shape)) for kernel in kernels},
        )
        for kernel in kernels:
            shape = _shape_of(kernel)
            reason = why_not(self.criterion, kernel.layer, shape, self._views)
            if not self.pattern.fits(shape):
                self.note(
                    f"{kernel.name} is not pruned: its kernel of shape {shape.shape} has no "
                    f"{self.pattern.title}. Prune it with a separate {type(self).__name__}."
                )
            elif reason is not None:
                self.note(
                    f"{kernel.name} is not pruned: {reason}, so the criterion {self.criterion} "
                    f"cannot score it. Prune it with a separate {type(self).__name__}."
                )
            elif kernel.layer.name in spared:
                self.note(f"{kernel.name} is not pruned: {spared[kernel.layer.name]}.")
            else:
                chosen.append(kernel)
        if not chosen:
            raise ArgumentError(*self._pattern_argument(), " ".join(self.notes))
        return chosen

    def _whole_layers_of_others(self) -> list[str]:
        """Returns the layers that other callbacks of this fit prune as a whole."""
        owners = {id(hook.owner): hook.owner for hook in self.session.updates()}
        others = [
            owner
            for owner in owners.values()
            if isinstance(owner, Pruning) and owner.pattern.compares_layers
        ]
        return [pruned.layer for other in others for pruned in other._pruned]

    def _pattern_argument(self) -> tuple[str, str, Any]:
        """Returns what an error says of a pattern that fits no kernel: argument, rule, value."""
        return "pattern", "fit at least one kernel", self.pattern

    def _step(self) -> int:
        """Returns how many updates the optimizer has made."""
        if self._hook is None:
            return 0
        return int(ops.convert_to_numpy(self._hook.optimizer.iterations))

    def _prune(self) -> None:
        """Recomputes the masks where due and applies them; part of the compiled step."""
        if self._hook is None or self._seen is None:
            return
        seen, optimizer = self._seen, self._hook.optimizer
        if on_one_device(self.model):
            # Masks are assigned in the branch: other steps pass over the weights once.
            ops.cond(self._apply(), self._renewed, lambda: False)
            return
        known = [ops.convert_to_tensor(pruned.mask) for pruned in self._pruned]
        due = self._due(seen, optimizer)
        masks = ops.cond(due, lambda: self._new_masks(seen, optimizer), lambda: known)
        for pruned, mask in zip(self._pruned, masks, strict=True):
            pruned.mask.assign(mask)
            pruned.apply(mask)

    def _due(self, seen: Observation, optimizer: keras.optimizers.Optimizer) -> Any:
        # At the start of a fit, an observing criterion has no data yet: the masks stay as they are.
        return ops.logical_and(self.schedule.due(_coming_step(optimizer)), seen.ready)

    def _apply_unless_due(self, seen: Observation, optimizer: keras.optimizers.Optimizer) -> Any:
        """Applies the masks, unless new ones are due; returns whether they are."""
        due = self._due(seen, optimizer)
        for pruned in self._pruned:
            pruned.apply(ops.logical_or(ops.convert_to_tensor(pruned.mask), due))
        return due

    def _renew(self, seen: Observation, optimizer: keras.optimizers.Optimizer) -> bool:
        for pruned, mask in zip(self._pruned, self._new_masks(seen, optimizer), strict=True):
            pruned.mask.assign(mask)
            pruned.apply(mask)
        return True

    def _new_masks(self, seen: Observation, optimizer: keras.optimizers.Optimizer) -> list[Any]:
        sparsity = self.schedule.value(_coming_step(optimizer), ops)
        masks: dict[int, Any] = {}
        highest = self.pattern.highest_sparsity
        alike = [index for index, pruned in enumerate(self._pruned) if pruned.factor is None]
        groups = []
        if alike:
            groups = [[alike[place] for place in group] for group in self._groups(len(alike))]
        groups += [[index] for index in range(len(self._pruned)) if index not in alike]
        for group in groups:
            members = [self._pruned[index] for index in group]
            factor = members[0].factor
            scores = [seen.scores(pruned.kernel, pruned.shape) for pruned in members]
            found = self.pattern.masks(
                scores,
                sparsity if factor is None else ops.clip(sparsity * factor, 0.0, highest),
                [pruned.shape for pruned in members],
            )
            masks.update(zip(group, found, strict=True))
        return [masks[index] for index in range(len(self._pruned))]

    def _target(self, step: int) -> float:
        """Returns the sparsity of all pruned weights that the schedule asks for at a step."""
        factors = [1.0 if pruned.factor is None else pruned.factor for pruned in self._pruned]
        size = sum(pruned.size for pruned in self._pruned)
        shares = zip(self._pruned, factors, strict=True)
        return self.schedule(step) * sum(pruned.size * factor for pruned, factor in shares) / size

    def _resume(self) -> None:
        """Takes the masks from the zeros of a model that was pruned before."""
        step = self._step()
        last = self.schedule.last_update(step)
        if not last:  # Step 0 comes before the first update.
            return
        for pruned in self._pruned:
            pruned.mask.assign(ops.not_equal(ops.convert_to_tensor(pruned.kernel), 0.0))
        zeros = sum(pruned.zeros() for pruned in self._pruned)
        size = sum(pruned.size for pruned in self._pruned)
        missing = self._target(last) - zeros / size
        if missing <= 0.01:
            return
        shift = f"Compile the model again, or add {step} to begin_step and end_step."
        if self.schedule.last_update(step + self.schedule.frequency) == last:
            raise ArgumentError(
                "schedule",
                f"not be over when training begins (the optimizer is at step {step} and the "
                f"weights at sparsity {zeros / size:.2f})",
                self.schedule,
                shift,
            )
        if self._target(last) - self._target(self.schedule.begin_step) > 0.01:
            text = (
                f"Pruning starts in the middle of its schedule: the optimizer is at step {step}, "
                f"where the schedule is at sparsity {self._target(last):.2f} and the weights at "
                f"{zeros / size:.2f}."
            )
            self.note(text)
            warnings.warn(f"{text} {shift}", stacklevel=2)

    def _sparsity(self) -> tuple[float, dict[str, float]]:
        """Returns the share of zeros in all pruned weights, and in each layer's."""
        zeros = [pruned.zeros() for pruned in self._pruned]
        total = sum(zeros) / sum(pruned.size for pruned in self._pruned)
        return total, {p.layer: z / p.size for p, z in zip(self._pruned, zeros, strict=True)}

    def _note_shortfall(self, total: float, step: int) -> None:
        end = self.schedule.end_step if self.schedule.end_step >= 0 else step
        last = self.schedule.last_update(end)
        target = self._target(end)
        if total >= target - 0.01:
            return
        if last and step >= last and self._target(last) >= target - 0.01:
            self.note(
                f"Sparsity is {total:.3f} of the weights; the schedule's {target:.3f} counts "
                f"{self.pattern.title}, which are not of one size."
            )
            return
        reason = f"frequency {self.schedule.frequency} puts the last mask update at step {last}"
        if step < self.schedule.first_update:
            reason = (
                f"training ended at step {step}, before the first mask update at step "
                f"{self.schedule.first_update} (frequency {self.schedule.frequency})"
            )
        elif not last or step < last:
            reason = f"training ended at step {step}, before the last mask update of the schedule"
        self.note(f"Sparsity is {total:.3f}, below the schedule's {target:.3f}: {reason}.")

    def _refuse_early_end(self) -> None:
        """Refuses a schedule that is over before an observing criterion has seen a step."""
        schedule, first = self.schedule, self._step() + 1
        if not self.criterion.waits or schedule.end_step != first:
            return
        if schedule.due(first):
            raise ArgumentError(
                "schedule",
                f"end after step {first}, because the criterion {self.criterion} ranks weights by "
                "the steps before",
                schedule,
            )

    def _warn_of_no_update(self) -> None:
        """Warns if the fit is too short for the first update of the masks."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        step = self._step()
        if not steps or not epochs or self.schedule.last_update(step):
            return
        first = self.schedule.first_update
        if step + steps * epochs < first:
            # At the end of training, the record gets a note on the outcome.
            warnings.warn(
                f"Nothing will be pruned: the fit has {steps * epochs} steps, and the masks are "
                f"first computed at step {first} (begin_step={self.schedule.begin_step}, "
                f"frequency={self.schedule.frequency}). Set a smaller frequency.",
                stacklevel=2,
            )


def observed_kernels(
    model: keras.Model, layers: LayerChoice, pattern: Pattern, criterion: Criterion
) -> list[Observed]:
    """Returns the kernels that a pattern and a criterion which reads only weights can prune.

    Raises:
        As `Pruning` at the start of `fit`.
    """
    found = [
        Observed(kernel.name, kernel.layer, kernel.variable, _shape_of(kernel))
        for kernel in choose_kernels(model, layers, "pruned", lambda text: None)
    ]
    fitting = [x for x in found if pattern.fits(x.shape) and criterion.fits(x.shape)]
    if not fitting:
        raise ArgumentError("pattern", "fit at least one kernel", pattern)
    return fitting


def _coming_step(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the number of the step whose weights these are; the update before it is counted."""
    return ops.convert_to_tensor(optimizer.iterations) + 1


def _shape_of(kernel: ChosenKernel) -> KernelShape:
    """Returns what a pattern knows of a kernel."""
    kind = exact_kind_of(kernel.layer)
    return KernelShape(tuple(kernel.variable.shape), None if kind is None else kind.filter_axis)
