"""The stages of Deep Compression: what is trained, and which layers it touches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.options import (
    named,
)
from edgecompress.criteria import CRITERIA
from edgecompress.patterns import PATTERNS
from edgecompress.recipes.deep_compression_settings import (
    ALL_OTHERS,
    CLUSTERS,
    CONVOLUTION_CLUSTERS,
    FIRST_LAST,
    DeepCompression,
    by_layer,
)

if TYPE_CHECKING:
    from edgecompress.recipes.training import Trainer
# The share of a pruning stage during which masks change; the rest is fine-tuning.
_PRUNING_SHARE = 0.6
_MASK_UPDATES = 50
_LASSO_STRENGTH = 1e-4


# --- the stages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stage that trains.

    Attributes:
        name: Its name.
        title: What the model is after it.
        active: Whether the settings enable it.
        identity: Its own settings, as JSON values: if they change, it is repeated.
        run: (settings, trainer, model) -> the model after it, its curves, and notes.
    """

    name: str
    title: str
    active: Callable[[DeepCompression], bool]
    identity: Callable[[DeepCompression], Mapping[str, Any]]
    run: Callable[
        [DeepCompression, Trainer, Any],
        tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]],
    ]


def _rewrite(
    settings: DeepCompression, trainer: Trainer, model: Any
) -> tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]]:
    """The rewrites that the user named, without training."""
    from edgecompress.surgery.finalize import finalize

    return finalize(model, rewrites=settings.surgery), [], ()


def _remove_channels(
    settings: DeepCompression, trainer: Trainer, model: Any
) -> tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]]:
    """Group lasso, then physical removal of the weakest filters, then training without them."""
    from edgecompress.callbacks.group_lasso import GroupLasso
    from edgecompress.surgery.finalize import finalize

    epochs = settings.epochs_of("remove")
    first = epochs // 2
    shares = by_layer(settings.remove_channels)
    lasso = [
        GroupLasso(
            _LASSO_STRENGTH,
            final_sparsity=share,
            layers=None if ALL_OTHERS in shares else [n for n in shares if shares[n] == share],
        )
        for share in sorted({share for share in shares.values() if share > 0})
    ]
    rate = settings.rate_of("remove")
    try:
        curves = [trainer.fit(model, "remove", first, lasso, rate, of=epochs)]
    except ArgumentError as error:
        raise ArgumentError(
            "--remove-channels", "be left out for a model whose filters cannot be removed",
            settings.remove_channels, str(error),
        ) from error  # fmt: skip
    small = finalize(model)
    curves.append(trainer.fit(small, "remove", epochs - first, [], rate, done=first, of=epochs))
    return small, curves, ()


def _prune(
    settings: DeepCompression, trainer: Trainer, model: Any
) -> tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]]:
    """Masks grow over the first part of the stage, then the remaining weights are fine-tuned."""
    from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
    from edgecompress.callbacks.pruning import Pruning
    from edgecompress.schedules.polynomial import PolynomialDecay
    from edgecompress.surgery.finalize import finalize

    groups, notes = pruning_groups(model, settings)
    epochs = settings.epochs_of("prune")
    last = max(1, round(_PRUNING_SHARE * epochs * trainer.steps_per_epoch))
    frequency = max(1, last // _MASK_UPDATES)
    pruning: Any = MagnitudePruning
    if not settings.prunes_by_magnitude:
        pruning = functools.partial(
            Pruning,
            criterion=named(CRITERIA, settings.criterion, "--criterion"),
            pattern=named(PATTERNS, settings.pattern, "--pattern"),
        )
    callbacks = [
        pruning(
            PolynomialDecay(
                group.sparsity,
                begin_step=0,
                # The last update must fall on the end, or the target would be missed.
                end_step=last // frequency * frequency,
                frequency=frequency,
            ),
            layers=_one_of(group.layers),
            scope=group.scope,
        )
        for group in groups
    ]
    curves = trainer.fit(model, "prune", epochs, callbacks, settings.rate_of("prune"))
    if not settings.prunes_by_magnitude:
        # A pattern notes what it skips.
        notes = (*notes, *(note for callback in callbacks for note in callback.notes))
    return finalize(model), [curves], notes


def _cluster(
    settings: DeepCompression, trainer: Trainer, model: Any
) -> tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]]:
    """k-means, then the shared values are trained."""
    from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
    from edgecompress.callbacks.weight_clustering import WeightClustering
    from edgecompress.surgery.finalize import finalize

    counts, notes = cluster_counts(model, settings)
    callbacks: list[Any] = [
        WeightClustering(
            number,
            settings.cluster_start,
            layers=_one_of([layer for layer, k in counts if k == number]),
        )
        for number in sorted({number for _, number in counts})
    ]
    if settings.cluster_rounded:
        callbacks.append(QuantizationAwareTraining())
    curves = trainer.fit(
        model, "cluster", settings.epochs_of("cluster"), callbacks, settings.rate_of("cluster")
    )
    return finalize(model), [curves], notes


def prunes_at_all(settings: DeepCompression) -> bool:
    """Returns whether any layer is pruned."""
    return any(share > 0 for share in by_layer(settings.sparsity).values())


def clusters_at_all(settings: DeepCompression) -> bool:
    """Returns whether any layer is clustered."""
    return any(count != 0 for count in by_layer(settings.clusters).values())


def _own_rate(settings: DeepCompression, stage: str) -> dict[str, float]:
    """Returns the learning rate of a stage, if it is not that of all."""
    by_stage = isinstance(settings.learning_rate, Mapping)
    return {"learning_rate": settings.rate_of(stage)} if by_stage else {}


STAGES = (
    Stage(
        "surgery",
        "rewritten",
        lambda settings: bool(settings.surgery),
        lambda s: {"rewrites": list(s.surgery)},
        _rewrite,
    ),
    Stage(
        "remove",
        "channels removed",
        lambda settings: settings.removes,
        lambda s: {
            "share": s.remove_channels,
            "epochs": s.epochs_of("remove"),
            **_own_rate(s, "remove"),
        },
        _remove_channels,
    ),
    Stage(
        "prune",
        "pruned",
        prunes_at_all,
        lambda s: {
            "sparsity": s.sparsity,
            "scope": s.scope,
            "first_last": s.first_last,
            "epochs": s.epochs_of("prune"),
            # Omitted if it is the default, so that finished stages stay valid.
            **({} if s.prunes_by_magnitude else {"criterion": s.criterion, "pattern": s.pattern}),
            **_own_rate(s, "prune"),
        },
        _prune,
    ),
    Stage(
        "cluster",
        "clustered",
        clusters_at_all,
        lambda s: {
            "clusters": s.clusters,
            "epochs": s.epochs_of("cluster"),
            "start": s.cluster_start,
            "rounded": s.cluster_rounded,
            **_own_rate(s, "cluster"),
        },
        _cluster,
    ),
)


def _one_of(layers: Sequence[Any]) -> Callable[[Any], bool]:
    """Returns a predicate for exactly these layers, regardless of names."""
    known = {id(layer) for layer in layers}
    return lambda layer: id(layer) in known


@dataclass(frozen=True, eq=False)
class PruningGroup:
    """Layers that share one pruning target.

    Attributes:
        layers: Keras layers.
        sparsity: Share of their weights.
        scope: `global` or `layer`.
    """

    layers: tuple[Any, ...]
    sparsity: float
    scope: str


def _kernel_layers(model: Any, named: Mapping[str, Any], doing: str) -> tuple[list[Any], list[str]]:
    """Returns the layers that pruning and clustering work on in the model's order, and notes.

    Raises:
        UnknownNameError: a named layer is not in the model.
        ArgumentError: a named layer has no kernel for it.
    """
    from edgecompress.core.keras_graph import walk_layers
    from edgecompress.core.layer_kinds import Use, layer_classes
    from edgecompress.inspection.keras_models import weight_variables

    argument = "--sparsity" if doing == "pruned" else "--clusters"
    layers: list[Any] = list(walk_layers(model))
    by_default = layer_classes(Use.BY_DEFAULT)
    supported = {**by_default, **layer_classes(Use.ON_REQUEST)}
    for name in named:
        if name == ALL_OTHERS:
            continue
        owners = [layer for layer in layers if layer.name == name]
        if not owners:
            raise UnknownNameError(argument, name, {layer.name for layer in layers})
        if not isinstance(owners[0], tuple(supported)):
            raise ArgumentError(
                argument, f"name layers with weights that can be {doing}",
                f"{name} ({type(owners[0]).__name__})",
            )  # fmt: skip
    chosen, notes = [], []
    for layer in layers:
        kinds = supported if layer.name in named else by_default
        trainable = layer.trainable
        if trainable and isinstance(layer, tuple(kinds)):
            chosen.append(layer)
        elif weight_variables(layer):
            why = "it is frozen (trainable=False)"
            if trainable:
                known = isinstance(layer, tuple(supported))
                rule = f"are {doing} only if named" if known else f"cannot be {doing}"
                why = f"{type(layer).__name__} layers {rule}"
            notes.append(f"{layer.name} is not {doing}: {why}.")
    return chosen, notes


def pruning_groups(
    model: Any, settings: DeepCompression
) -> tuple[list[PruningGroup], tuple[str, ...]]:
    """Returns which layers lose what share of their weights, and notes.

    Raises:
        ArgumentError: nothing is left to prune, or a named layer cannot be.
    """
    wanted = by_layer(settings.sparsity)
    layers, notes = _kernel_layers(model, wanted, "pruned")
    rest = wanted.get(ALL_OTHERS, 0.0)
    ends = [layers[0], layers[-1]] if layers else []
    end_share = FIRST_LAST[settings.first_last](rest)
    shares: dict[int, tuple[float, str]] = {}
    for layer in layers:
        if layer.name in wanted:
            shares[id(layer)] = (wanted[layer.name], "layer")
        elif end_share != rest and any(layer is end for end in ends):
            shares[id(layer)] = (end_share, "layer")
        else:
            shares[id(layer)] = (rest, settings.scope)
    spared = [layer.name for layer in ends if layer.name not in wanted]
    if rest and spared:
        what = {"prune": "pruned like the others", "half": f"pruned to {end_share:g}"}
        notes.append(
            f"First and last layer ({', '.join(dict.fromkeys(spared))}): "
            f"{what.get(settings.first_last, 'not pruned')}."
        )
    groups = [
        PruningGroup(tuple(x for x in layers if shares[id(x)] == share), *share)
        for share in sorted(set(shares.values()))
        if share[0] > 0
    ]
    if not groups:
        raise ArgumentError(
            "--sparsity", "leave at least one layer to prune", settings.sparsity, " ".join(notes)
        )
    return groups, tuple(notes)


def check_removed(model: Any, settings: DeepCompression) -> None:
    """Refuses names of layers, to remove filters from, that the model does not have."""
    from edgecompress.core.keras_graph import walk_layers

    known = [layer.name for layer in walk_layers(model)]
    for name in by_layer(settings.remove_channels):
        if name not in (ALL_OTHERS, *known):
            raise UnknownNameError("--remove-channels", name, known)


def cluster_counts(
    model: Any, settings: DeepCompression
) -> tuple[list[tuple[Any, int]], tuple[str, ...]]:
    """Returns the layers to cluster, each with its number of values, and notes.

    Raises:
        ArgumentError: nothing is left to cluster, or a named layer cannot be.
    """
    wanted = by_layer(settings.clusters)
    layers, notes = _kernel_layers(model, wanted, "clustered")
    counts = []
    for layer in layers:
        number = wanted.get(layer.name, wanted.get(ALL_OTHERS, 0))
        if number is None:
            convolution = "Conv" in type(layer).__name__
            number = CONVOLUTION_CLUSTERS if convolution else CLUSTERS
        if number:
            counts.append((layer, number))
    if not counts:
        raise ArgumentError(
            "--clusters", "leave at least one layer to cluster", settings.clusters, " ".join(notes)
        )
    return counts, tuple(notes)
