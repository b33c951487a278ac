"""Lottery tickets: sparse networks that train well from the weights they began with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core.arguments import check_between, check_whole
from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import named
from edgecompress.criteria import CRITERIA
from edgecompress.criteria.base import Criterion
from edgecompress.patterns import PATTERNS
from edgecompress.patterns.base import Pattern

if TYPE_CHECKING:
    from edgecompress.callbacks.observation import Observed

Fit = Callable[[Any, Sequence[Any]], Any]


@dataclass(frozen=True)
class Ticket:
    """A lottery ticket and how it was found.

    Attributes:
        model: The trained ticket; the model that was given.
        masks: Layer -> which weights stay.
        sparsities: Share of zeros in the pruned layers after each round.
        rewound_to: Step of training whose weights each round began with.
        results: What `fit` returned, for each training: the dense one first, the ticket's last.
    """

    model: Any
    masks: Mapping[str, np.ndarray]
    sparsities: tuple[float, ...]
    rewound_to: int
    results: tuple[Any, ...]


def lottery_ticket(
    model: Any,
    fit: Fit,
    sparsity: float,
    *,
    rounds: int = 5,
    rewind_step: int = 0,
    criterion: str | Criterion = "magnitude",
    pattern: str | Pattern = "weights",
    layers: Any = None,
    scope: str = "global",
    control: bool = False,
) -> Ticket:
    """Finds and trains a lottery ticket: prune, rewind the rest to early weights, train again.

    Frankle and Carbin, "The lottery ticket hypothesis" (2019, https://arxiv.org/abs/1803.03635),
    section 2: after training, the weights of lowest score go, the others return to what they were
    at `rewind_step`, and training starts over. Round k of n leaves (1 - sparsity) ** (k / n) of the
    weights. One round is one-shot pruning. Large networks have tickets only after a few steps of
    training, `rewind_step` > 0: Frankle et al., "Linear mode connectivity and the lottery ticket
    hypothesis" (2020, https://arxiv.org/abs/1912.05671). It takes `rounds` + 1 trainings.

    Args:
        model: A built Sequential or Functional model, untrained; it becomes the ticket.
        fit: Called as `fit(model, callbacks)` for each training: compiles the model anew, trains it
            with these callbacks, among others if need be, and returns anything, e.g. an accuracy.
        sparsity: Share of zeros of the ticket, above 0 and below 1.
        rounds: Number of rounds, at least 1.
        rewind_step: Step whose weights the rest returns to; 0 is before training.
        criterion: How weights are scored: one that only reads the weights.
        pattern: Which weights are pruned as a unit.
        layers: As in `Pruning`.
        scope: As in `Pruning`. Defaults to "global".
        control: Trains the ticket's mask from new random weights instead of its own at the end: the
            experiment that shows whether the weights matter, or the mask alone.

    Raises:
        ArgumentError: an argument breaks its rule; the criterion observes training; `fit` did not
            compile the model anew, left its callbacks out, or trained for fewer steps than
            `rewind_step`.

    Example:
        >>> def fit(model, callbacks):  # doctest: +SKIP
        ...     model.compile("adam", "mse")
        ...     return model.fit(x, y, epochs=5, callbacks=callbacks).history["loss"][-1]
        >>> ticket = lottery_ticket(model, fit, sparsity=0.9, rounds=5)  # doctest: +SKIP
    """
    from edgecompress.baselines.fresh_copy import fresh_copy
    from edgecompress.callbacks.pruning import SCOPES, observed_kernels

    if not callable(fit):
        raise ArgumentError("fit", "be a function of the model and callbacks", fit)
    scored, chosen = check_ticket(sparsity, rounds, rewind_step, criterion, pattern)
    groups = SCOPES[scope]
    kernels = observed_kernels(model, layers, chosen, scored)
    start = _Start(rewind_step)
    results, sparsities = [], []
    masks = [np.ones(kernel.shape.shape, bool) for kernel in kernels]
    for number in range(1, rounds + 1):
        if number == 1:
            results.append(fit(model, [start.callback()]))
            start.check()
        else:
            results.append(_retrain(model, fit, start.weights, kernels, masks))
        target = 1 - (1 - sparsity) ** (number / rounds)
        masks = _pruned(kernels, masks, groups(len(kernels)), chosen, scored, target)
        sparsities.append(1 - sum(m.sum() for m in masks) / sum(m.size for m in masks))
    weights = fresh_copy(model).get_weights() if control else start.weights
    results.append(_retrain(model, fit, weights, kernels, masks))
    names = [kernel.name for kernel in kernels]
    return Ticket(
        model,
        dict(zip(names, masks, strict=True)),
        tuple(float(share) for share in sparsities),
        rewind_step,
        tuple(results),
    )


def check_ticket(
    sparsity: Any,
    rounds: Any = 5,
    rewind_step: Any = 0,
    criterion: Any = "magnitude",
    pattern: Any = "weights",
) -> tuple[Criterion, Pattern]:
    """Returns criterion and pattern of a ticket, all of whose arguments keep their rules.

    Raises:
        ArgumentError: one does not; see `lottery_ticket`.
    """
    check_between("sparsity", sparsity)
    check_whole("rounds", rounds, 1)
    check_whole("rewind_step", rewind_step)
    scored: Criterion = named(CRITERIA, criterion, "criterion")
    if scored.looks:
        rule = "read the weights alone, because rounds prune between two trainings"
        raise ArgumentError("criterion", rule, scored)
    chosen: Pattern = named(PATTERNS, pattern, "pattern")
    if chosen.compares_layers:
        raise ArgumentError("pattern", "prune parts of layers, not whole ones", chosen)
    return scored, chosen


def _pruned(
    kernels: Sequence[Observed],
    masks: Sequence[np.ndarray],
    groups: Sequence[Sequence[int]],
    pattern: Pattern,
    criterion: Criterion,
    sparsity: float,
) -> list[np.ndarray]:
    """Returns the masks of the next round; what was pruned stays pruned."""
    from keras import ops

    found: dict[int, np.ndarray] = {}
    for group in groups:
        shapes = [kernels[index].shape for index in group]
        scores = [
            criterion.score_kernel(ops.convert_to_tensor(kernels[index].variable), {}, shape)
            * ops.cast(masks[index], "float32")
            for index, shape in zip(group, shapes, strict=True)
        ]
        for index, mask in zip(group, pattern.masks(scores, sparsity, shapes), strict=True):
            found[index] = np.asarray(ops.convert_to_numpy(mask)) & masks[index]
    return [found[index] for index in range(len(kernels))]


def _retrain(
    model: Any,
    fit: Fit,
    weights: Sequence[np.ndarray],
    kernels: Sequence[Observed],
    masks: Sequence[np.ndarray],
) -> Any:
    """Sets all weights back, and those that were pruned to zero; returns what training returned.

    Raises:
        ArgumentError: pruned weights have grown back.
    """
    model.set_weights(weights)
    for kernel, mask in zip(kernels, masks, strict=True):
        kernel.variable.assign(np.where(mask, np.asarray(kernel.variable), 0.0))
    owners = {id(kernel.layer) for kernel in kernels}
    result = fit(model, [_fresh(), _keep(owners)])
    for kernel, mask in zip(kernels, masks, strict=True):
        if grown := int(np.count_nonzero(np.asarray(kernel.variable)[~mask])):
            raise ArgumentError(
                "fit",
                "train the model that it is given with the callbacks that it is given",
                f"{grown} pruned weights of {kernel.name!r} that are not zero any more",
            )
    return result


def _keep(owners: Collection[int]) -> Any:
    from edgecompress.callbacks.keep_sparsity import KeepSparsity

    return KeepSparsity(lambda layer: id(layer) in owners)


def _steps(model: Any) -> int:
    return int(np.asarray(model.optimizer.iterations))


class _Start:
    """Remembers the weights at a step of the first training."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.weights: list[np.ndarray] = []

    def callback(self) -> Any:
        """Returns what reads them."""
        import keras

        start = self

        class Remember(keras.callbacks.Callback):
            def on_train_begin(self, logs: Any = None) -> None:
                if start.step == 0 and not start.weights:
                    start.weights = self.model.get_weights()

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if not start.weights and _steps(self.model) >= start.step:
                    start.weights = self.model.get_weights()

        return Remember()

    def check(self) -> None:
        """Refuses a training that was over before the step, or that left the callback out."""
        if not self.weights:
            raise ArgumentError(
                "rewind_step",
                "be a step of the first training, and `fit` pass the callbacks on",
                self.step,
            )


def _fresh() -> Any:
    """Returns a callback that refuses an optimizer which has trained before."""
    import keras

    class Fresh(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            if _steps(self.model):
                rule = "compile the model anew before it trains"
                raise ArgumentError("fit", rule, f"an optimizer at step {_steps(self.model)}")

    return Fresh()
