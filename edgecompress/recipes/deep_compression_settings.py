"""The settings of Deep Compression."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.options import (
    ALL_OTHERS,
    Choice,
    Flag,
    Named,
    Number,
    Text,
    by_name,
    many,
    named,
    named_config,
    option,
    whole,
)
from edgecompress.core.registry import Registry
from edgecompress.criteria import CRITERIA
from edgecompress.patterns import PATTERNS
from edgecompress.precisions.kmeans import INITIALIZATIONS
from edgecompress.recipes.storage import MAX_RELATIVE_BITS
from edgecompress.surgery.rewrites import REWRITES, chosen_rewrites
from edgecompress.training import LOSSES

if TYPE_CHECKING:
    from edgecompress.training.base import TeacherLoss

NAME = "deep-compression"
# Stage -> default epochs.
EPOCHS = {"remove": 10, "prune": 10, "cluster": 5}
# Number of values that a layer's weights share, not counting zero: with zero, 4 bits for matrices
# and 5 for convolutions, which tolerate less (figure 7 of the paper; there 5 and 8 bits for
# ImageNet).
CLUSTERS = 15
CONVOLUTION_CLUSTERS = 31

# Policy -> sparsity of the first and the last layer, from that of the others.
FIRST_LAST: Registry[Callable[[float], float]] = Registry("--first-last")


@FIRST_LAST.register("prune")
def _like_all(sparsity: float) -> float:
    return sparsity


@FIRST_LAST.register("half")
def _half(sparsity: float) -> float:
    return sparsity / 2


@FIRST_LAST.register("keep")
def _untouched(sparsity: float) -> float:
    return 0.0


@dataclass(frozen=True)
class DeepCompression:
    """Settings of the recipe.

    Attributes:
        sparsity: Share of weights to prune, or a mapping layer -> share, in which `"*"` stands for
            all layers not named (without it they are not pruned). 0 prunes nothing.
        scope: `global`: the smallest weights of all layers are pruned, so that robust layers lose
            more; `layer`: every layer loses the same share. Layers named in a mapping have their
            own.
        first_last: What happens to the first and last layers: `prune` like the others, `half` their
            sparsity, or `keep`. For layers named in `sparsity`, that value applies.
        clusters: Number of values that the weights of a layer share, not counting zero, or a
            mapping layer -> number with `"*"`; 0 clusters nothing. None: 15 for matrices and 31 for
            convolutions.
        cluster_start: Where k-means starts: a name in `precisions.kmeans.INITIALIZATIONS`.
        cluster_rounded: Whether the shared values are trained as the int8 file rounds them.
        remove_channels: Share of every layer's filters to remove physically before anything else,
            or a mapping layer -> share; layers not named keep theirs.
        epochs: Of every stage, or a mapping stage (`remove`, `prune`, `cluster`) -> epochs with
            `"*"`. None: 10, 10 and 5.
        batch_size: Samples per batch.
        learning_rate: Initial Adam learning rate of each stage, or a mapping stage -> rate with
            `"*"`; cosine decay to 0.
        distill: Whether the original model teaches with soft labels. None: classifiers do.
        temperature: Of the soft labels.
        soft_weight: Share of the soft labels in the loss.
        index_bits: Bits of a relative index in the paper's tables.
        validation_split: Share of the data for validation, if no validation data are given.
        seed: Of the split, the order of the batches and dropout.
        max_drop: How far the metric of the file may fall below that of the original model.
            None: as far as it does.
        metric: The metric by which stages are judged: a Keras metric, its name, its serialized form
            or that as JSON. None: accuracy, or the mean squared error of values.
        metric_goal: `max` or `min`: its direction. None: as it is known of Keras's own.
        surgery: Rewrites of the model before anything is trained, in this order: names of
            `surgery.REWRITES`, or `NAME:OPTION=VALUE`.
        criterion: The pruning criterion: a name in `criteria.CRITERIA`, `NAME:OPTION=VALUE`,
            or a criterion.
        pattern: Which weights are pruned as a unit: a name in `patterns.PATTERNS`, and so on.
        distillation: How the original model teaches: a name in `training.LOSSES`, and so on. None:
            soft labels at `temperature`, with `soft_weight`.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> DeepCompression(sparsity={"*": 0.9, "head": 0.5}).sparsity["head"]
        0.5
    """

    sparsity: float | Mapping[str, float] = option(
        0.8,
        "Share of weights to prune, in all layers or in one: `--sparsity 0.9 --sparsity head=0.5`. "
        "0 prunes nothing.",
        by_name(Number("SHARE"), "LAYER"),
    )
    scope: str = option(
        "global",
        "global: prune the smallest weights of all layers; layer: the same share in every layer.",
        Text("SCOPE"),
    )
    first_last: str = option(
        "prune",
        "First and last layer: prune like the others, half as much (half), or keep.",
        Text("POLICY"),
    )
    clusters: int | Mapping[str, int] | None = option(
        None,
        "Number of values that a layer's weights share, not counting zero. 0 clusters nothing.",
        by_name(whole(), "LAYER"),
        unset="15, for convolutions 31",
    )
    cluster_start: str = option(
        "linear",
        "Where k-means starts: linear codes best, density is nearest to the weights.",
        Choice(names=INITIALIZATIONS),
    )
    cluster_rounded: bool = option(
        False, "Train the shared values as the int8 file rounds them.", Flag()
    )
    remove_channels: float | Mapping[str, float] = option(
        0.0,
        "First remove this share of every layer's filters, or of one layer's: "
        "`--remove-channels fc1=0.7`. This saves the most time and space (try 0.5).",
        by_name(Number("SHARE"), "LAYER"),
    )
    epochs: int | Mapping[str, int] | None = option(
        None,
        "Epochs of the stages remove, prune and cluster.",
        by_name(whole(), "STAGE"),
        unset="10, 10 and 5",
    )
    batch_size: int = option(64, "Samples per batch.", whole())
    learning_rate: float | Mapping[str, float] = option(
        1e-3, "Initial Adam learning rate of each stage.", by_name(Number(), "STAGE")
    )
    distill: bool | None = option(
        None,
        "Train with soft labels from the original model.",
        Flag(),
        off="--no-distill",
        unset="for classifiers",
    )
    temperature: float = option(4.0, "Temperature of the soft labels.", Number())
    soft_weight: float = option(0.9, "Share of the soft labels in the loss.", Number("SHARE"))
    index_bits: int = option(5, "Bits of a relative index in the paper's tables.", whole())
    validation_split: float = option(
        0.1, "Share of the data held out for validation.", Number("SHARE")
    )
    seed: int = option(0, "Seed of the split and of training.", whole())
    max_drop: float | None = option(
        None,
        "How much worse than the original model's the file's metric may be, e.g. 0.01 for one "
        "point of accuracy; otherwise exit 4.",
        Number(),
    )
    metric: Any = option(
        None,
        "Metric of Keras by which stages are judged and --max-drop is measured: a name, or JSON as "
        "keras.metrics.serialize gives it.",
        Text("METRIC"),
        unset="accuracy, for values the mean squared error",
    )
    metric_goal: str | None = option(
        None,
        "Whether more (max) or less (min) of it is better.",
        Choice("GOAL", names=("max", "min")),
        unset="as known of Keras's own",
    )
    surgery: tuple[Any, ...] = option(
        (),
        "Rewrite of the model before training.",
        many(Named(names=REWRITES)),
    )
    criterion: Any = option(
        "magnitude",
        "Criterion by which weights are pruned.",
        Named(names=CRITERIA),
    )
    pattern: Any = option(
        "weights",
        "Which weights are pruned as a unit; weights: each one individually.",
        Named(names=PATTERNS),
    )
    distillation: Any = option(
        None,
        "How the original model teaches.",
        Named(names=LOSSES),
        unset="distillation, with `--temperature` and `--soft-weight`",
    )

    def __post_init__(self) -> None:
        """Refuses values that break their rule."""
        # As JSON values, which cross processes and appear in the report.
        rewrites = chosen_rewrites(self.surgery, "--surgery")
        configs = tuple(named_config(REWRITES, rewrite) for rewrite in rewrites)
        object.__setattr__(self, "surgery", configs)
        if hasattr(self.metric, "get_config"):
            import keras

            object.__setattr__(self, "metric", keras.metrics.serialize(self.metric))
        for name, registry in (
            ("criterion", CRITERIA), ("pattern", PATTERNS), ("distillation", LOSSES),
        ):  # fmt: skip
            given = getattr(self, name)
            if given is not None:
                chosen = named(registry, given, f"--{name}")
                object.__setattr__(self, name, named_config(registry, chosen))
        for layer, share in by_layer(self.sparsity).items():
            check_rule(
                _named("--sparsity", layer), "be a share, at least 0 and below 1", share,
                _is_number(share) and 0 <= share < 1,
            )  # fmt: skip
        check_rule("--scope", "be global or layer", self.scope, self.scope in ("global", "layer"))
        whole_layers = named(PATTERNS, self.pattern, "--pattern").compares_layers
        check_rule(
            "--scope", f"be global with --pattern {self.pattern['name']}, whose units are layers",
            self.scope, self.scope == "global" or not whole_layers,
        )  # fmt: skip
        _ = FIRST_LAST[self.first_last]
        for layer, count in by_layer(self.clusters).items():
            check_rule(
                _named("--clusters", layer), "be a whole number, 2 or more, or 0 for none", count,
                count is None or (_is_whole(count) and (count == 0 or count >= 2)),
            )  # fmt: skip
        removed = by_layer(self.remove_channels)
        for layer, share in removed.items():
            check_rule(
                _named("--remove-channels", layer), "be a share, at least 0 and below 1", share,
                _is_number(share) and 0 <= share < 1,
            )  # fmt: skip
        check_rule(
            "--remove-channels",
            "be one share for all layers, or name layers",
            self.remove_channels,
            len(removed) == 1 or ALL_OTHERS not in removed,
        )  # fmt: skip
        _ = INITIALIZATIONS[self.cluster_start]
        for stage, epochs in by_layer(self.epochs).items():
            if stage not in (ALL_OTHERS, *EPOCHS):
                raise UnknownNameError("--epochs", stage, EPOCHS)
            check_rule(
                _named("--epochs", stage), "be a whole number, 1 or more", epochs,
                epochs is None or (_is_whole(epochs) and epochs >= 1),
            )  # fmt: skip
        least = 2
        check_rule(
            "--epochs", f"give the stage remove {least} or more: with the penalty, and without it",
            self.epochs_of("remove"), not self.removes or self.epochs_of("remove") >= least,
        )  # fmt: skip
        whole = {"--batch-size": (self.batch_size, 1), "--seed": (self.seed, 0)}
        for argument, (number, smallest) in whole.items():
            rule = f"be a whole number, {smallest} or more"
            check_rule(argument, rule, number, _is_whole(number) and smallest <= number < 2**32)
        positive = {"--temperature": self.temperature}
        for stage, rate in by_layer(self.learning_rate).items():
            if stage not in (ALL_OTHERS, *EPOCHS):
                raise UnknownNameError("--learning-rate", stage, EPOCHS)
            positive[_named("--learning-rate", stage)] = rate
        for argument, value in positive.items():
            check_rule(
                argument, "be a number greater than 0", value, _is_number(value) and value > 0
            )
        for argument, value in (
            ("--soft-weight", self.soft_weight),
            ("--validation-split", self.validation_split),
        ):
            inside = _is_number(value) and 0 < value < 1
            check_rule(argument, "lie between 0 and 1", value, inside)
        check_rule(
            "--index-bits", f"be a whole number, 1 to {MAX_RELATIVE_BITS}", self.index_bits,
            _is_whole(self.index_bits) and 1 <= self.index_bits <= MAX_RELATIVE_BITS,
        )  # fmt: skip
        check_rule(
            "--max-drop", "be a number, 0 or more", self.max_drop,
            self.max_drop is None or (_is_number(self.max_drop) and self.max_drop >= 0),
        )  # fmt: skip

    @property
    def removes(self) -> bool:
        """Whether filters are removed."""
        return any(share > 0 for share in by_layer(self.remove_channels).values())

    def rate_of(self, stage: str) -> float:
        """Returns the initial learning rate of a stage."""
        given = by_layer(self.learning_rate)
        rate: float = given.get(stage, given.get(ALL_OTHERS, 1e-3))
        return rate

    @property
    def prunes_by_magnitude(self) -> bool:
        """Whether individual weights are pruned by magnitude, as in the paper."""
        return (self.criterion["name"], self.pattern["name"]) == ("magnitude", "weights")

    @property
    def teaching(self) -> TeacherLoss:
        """The loss by which the original model teaches."""
        from edgecompress.training.distillation import Distillation

        if self.distillation is None:
            return Distillation(self.temperature, self.soft_weight)
        chosen: TeacherLoss = named(LOSSES, self.distillation, "--distillation")
        return chosen

    def epochs_of(self, stage: str) -> int:
        """Returns the epochs of a stage; 0 if it does not train."""
        if stage not in EPOCHS:
            return 0
        given = by_layer(self.epochs)
        return given.get(stage) or given.get(ALL_OTHERS) or EPOCHS[stage]


def by_layer(value: Any) -> dict[str, Any]:
    """Returns a value for all, or values by layer, as a mapping with `"*"` for all others."""
    return dict(value) if isinstance(value, Mapping) else {ALL_OTHERS: value}


def _named(argument: str, key: str) -> str:
    return argument if key == ALL_OTHERS else f"{argument} {key}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def check_rule(argument: str, rule: str, value: Any, holds: bool) -> None:
    """Refuses a value that breaks a rule."""
    if not holds:
        raise ArgumentError(argument, rule, value)
