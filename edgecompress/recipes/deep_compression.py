"""Deep Compression as one recipe: remove channels, prune, cluster, int8, encode.

Han, Mao and Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding, 2016, https://arxiv.org/abs/1510.00149. We differ: magnitudes are
compared over all layers, masks follow a schedule instead of one cut, centroids are trained with
Adam, weights end as int8 codes, the code that runs is TensorFlow Lite Micro's, and the model that
came in teaches the one that shrinks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.files import jsonable, write_together
from edgecompress.core.options import (
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
from edgecompress.recipes.registry import RECIPES, Recipe, Request
from edgecompress.recipes.storage import MAX_RELATIVE_BITS
from edgecompress.surgery.rewrites import REWRITES, chosen_rewrites
from edgecompress.training import LOSSES

if TYPE_CHECKING:
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.core.results import Report
    from edgecompress.flatbuffers.model import FlatModel
    from edgecompress.pipeline import Build
    from edgecompress.recipes.checkpoints import Checkpoints, Finished
    from edgecompress.recipes.data import Data
    from edgecompress.recipes.layer_table import TableKernel
    from edgecompress.recipes.results import (
        CompressionResult,
        Drop,
        LayerResult,
        StageResult,
        Totals,
    )
    from edgecompress.recipes.task import Task
    from edgecompress.recipes.training import Trainer
    from edgecompress.training.base import TeacherLoss

NAME = "deep-compression"
# The key of a mapping that stands for all layers it does not name.
ALL_OTHERS = "*"
# Stage -> epochs where the user gives none.
EPOCHS = {"remove": 10, "prune": 10, "cluster": 5}
# Values that weights of a layer share, zero not counted: with it 4 bits for matrices and 5 for
# convolutions, which bear less (figure 7 of the paper; there 5 and 8 bits for ImageNet).
CLUSTERS = 15
CONVOLUTION_CLUSTERS = 31
# The share of a pruning stage during which masks change; the rest tunes what is left.
_PRUNING_SHARE = 0.6
_MASK_UPDATES = 50
_LASSO_STRENGTH = 1e-4
CALIBRATION_SAMPLES = 500
_DENSITY_SAMPLES = 200

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
        scope: `global`: the smallest of all layers' weights go, so that robust layers lose more;
            `layer`: every layer loses the same share. Layers that a mapping names have their own.
        first_last: What becomes of the first and the last layer: `prune` like the others, `half`
            their sparsity, or `keep`. Layers that `sparsity` names go by what it says.
        clusters: Values that the weights of a layer share, a zero not counted, or a mapping layer
            -> number with `"*"`; 0 clusters nothing. None: 15 for matrices and 31 for convolutions.
        remove_channels: Share of every layer's filters to remove physically before all else.
        epochs: Of every stage, or a mapping stage (`remove`, `prune`, `cluster`) -> epochs with
            `"*"`. None: 10, 10 and 5.
        batch_size: Samples of a batch.
        learning_rate: Of Adam at the start of each stage; it falls to 0 along a cosine.
        distill: Whether the model that came in teaches with soft labels. None: classifiers do.
        temperature: Of the soft labels.
        soft_weight: Share of the soft labels in the loss.
        index_bits: Bits of a relative index in the paper's tables.
        validation_split: Share of the data for validation, where no other data are given for it.
        seed: Of the split, the order of the batches and dropout.
        max_drop: How far the metric of the file may fall below that of the model that came in.
            None: as far as it does.
        surgery: Rewrites of the model before anything is trained, in this order: names of
            `surgery.REWRITES`, or `NAME:OPTION=VALUE`.
        criterion: What weights are pruned by: a name of `criteria.CRITERIA`, `NAME:OPTION=VALUE`,
            or a criterion.
        pattern: Which weights are pruned together: a name of `patterns.PATTERNS`, and so on.
        distillation: How the original model teaches: a name of `training.LOSSES`, and so on. None:
            soft labels at `temperature`, with `soft_weight`.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> DeepCompression(sparsity={"*": 0.9, "head": 0.5}).sparsity["head"]
        0.5
    """

    sparsity: float | Mapping[str, float] = option(
        0.8,
        "Share of weights to prune; default 0.8. May be repeated to give layers their own: "
        "--sparsity 0.9 --sparsity head=0.5. 0 prunes nothing.",
        by_name(Number("SHARE"), "LAYER"),
    )
    scope: str = option(
        "global",
        "global: the smallest weights of all layers go (default); layer: the same share in every "
        "layer.",
        Text("SCOPE"),
    )
    first_last: str = option(
        "prune",
        "First and last layer: prune like the others (default), half, or keep.",
        Text("POLICY"),
    )
    clusters: int | Mapping[str, int] | None = option(
        None,
        "Values that the weights of a layer share, beside zero; default 15, for convolutions 31. "
        "0 clusters nothing.",
        by_name(whole(), "LAYER"),
    )
    remove_channels: float = option(
        0.0,
        "First remove this share of every layer's filters. Off by default; it is what makes a "
        "model fast and its file smallest (0.5 is a start).",
        Number("SHARE"),
    )
    epochs: int | Mapping[str, int] | None = option(
        None,
        "Epochs of the stages remove, prune and cluster; default 10, 10 and 5.",
        by_name(whole(), "STAGE"),
    )
    batch_size: int = option(64, "Samples of a batch; default 64.", whole())
    learning_rate: float = option(
        1e-3, "Initial Adam learning rate of each stage; default 0.001.", Number()
    )
    distill: bool | None = option(
        None,
        "Let the original model teach with soft labels; default for classifiers.",
        Flag(),
        off="--no-distill",
    )
    temperature: float = option(4.0, "Temperature of the soft labels; default 4.", Number())
    soft_weight: float = option(
        0.9, "Share of the soft labels in the loss; default 0.9.", Number("SHARE")
    )
    index_bits: int = option(
        5, "Bits of a relative index in the paper's tables; default 5.", whole()
    )
    validation_split: float = option(
        0.1, "Part of the data for validation; default 0.1.", Number("SHARE")
    )
    seed: int = option(0, "Seed of split and training; default 0.", whole())
    max_drop: float | None = option(
        None,
        "How far the file's metric may fall below the original model's, e.g. 0.01 for one point of "
        "accuracy; else exit 4.",
        Number(),
    )
    surgery: tuple[Any, ...] = option(
        (),
        "Rewrite of the model before anything is trained, e.g. remove-channels; may be repeated.",
        many(Named(names=REWRITES)),
    )
    criterion: Any = option(
        "magnitude",
        "What weights are pruned by: magnitude (default), taylor, or a criterion that a plugin "
        "brings.",
        Named(names=CRITERIA),
    )
    pattern: Any = option(
        "weights",
        "Which weights are pruned together: weights (each for itself; default), blocks, filters, "
        "n-of-m, or a pattern that a plugin brings.",
        Named(names=PATTERNS),
    )
    distillation: Any = option(
        None,
        "How the original model teaches: distillation (soft labels, with --temperature and "
        "--soft-weight; default), or a loss that a plugin brings.",
        Named(names=LOSSES),
    )

    def __post_init__(self) -> None:
        """Refuses values that break their rule."""
        # As JSON values, which cross processes and stand in the report.
        rewrites = chosen_rewrites(self.surgery, "--surgery")
        configs = tuple(named_config(REWRITES, rewrite) for rewrite in rewrites)
        object.__setattr__(self, "surgery", configs)
        for name, registry in (
            ("criterion", CRITERIA), ("pattern", PATTERNS), ("distillation", LOSSES),
        ):  # fmt: skip
            given = getattr(self, name)
            if given is not None:
                chosen = named(registry, given, f"--{name}")
                object.__setattr__(self, name, named_config(registry, chosen))
        for layer, share in _entries(self.sparsity).items():
            _check(
                _named("--sparsity", layer), "be a share, at least 0 and below 1", share,
                _is_number(share) and 0 <= share < 1,
            )  # fmt: skip
        _check("--scope", "be global or layer", self.scope, self.scope in ("global", "layer"))
        _ = FIRST_LAST[self.first_last]
        for layer, count in _entries(self.clusters).items():
            _check(
                _named("--clusters", layer), "be a whole number, 2 or more, or 0 for none", count,
                count is None or (_is_whole(count) and (count == 0 or count >= 2)),
            )  # fmt: skip
        _check(
            "--remove-channels", "be a share, at least 0 and below 1", self.remove_channels,
            _is_number(self.remove_channels) and 0 <= self.remove_channels < 1,
        )  # fmt: skip
        for stage, epochs in _entries(self.epochs).items():
            if stage not in (ALL_OTHERS, *EPOCHS):
                raise UnknownNameError("--epochs", stage, EPOCHS)
            _check(
                _named("--epochs", stage), "be a whole number, 1 or more", epochs,
                epochs is None or (_is_whole(epochs) and epochs >= 1),
            )  # fmt: skip
        least = 2
        _check(
            "--epochs", f"give the stage remove {least} or more: with the penalty, and without it",
            self.epochs_of("remove"), not self.remove_channels or self.epochs_of("remove") >= least,
        )  # fmt: skip
        whole = {"--batch-size": (self.batch_size, 1), "--seed": (self.seed, 0)}
        for argument, (number, smallest) in whole.items():
            rule = f"be a whole number, {smallest} or more"
            _check(argument, rule, number, _is_whole(number) and smallest <= number < 2**32)
        positive = {"--learning-rate": self.learning_rate, "--temperature": self.temperature}
        for argument, value in positive.items():
            _check(argument, "be a number greater than 0", value, _is_number(value) and value > 0)
        for argument, value in (
            ("--soft-weight", self.soft_weight),
            ("--validation-split", self.validation_split),
        ):
            inside = _is_number(value) and 0 < value < 1
            _check(argument, "lie between 0 and 1", value, inside)
        _check(
            "--index-bits", f"be a whole number, 1 to {MAX_RELATIVE_BITS}", self.index_bits,
            _is_whole(self.index_bits) and 1 <= self.index_bits <= MAX_RELATIVE_BITS,
        )  # fmt: skip
        _check(
            "--max-drop", "be a number, 0 or more", self.max_drop,
            self.max_drop is None or (_is_number(self.max_drop) and self.max_drop >= 0),
        )  # fmt: skip

    @property
    def prunes_by_magnitude(self) -> bool:
        """Whether single weights are pruned by their magnitude, as in the paper."""
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
        """Returns the epochs of a stage; 0 for one that does not train."""
        if stage not in EPOCHS:
            return 0
        given = _entries(self.epochs)
        return given.get(stage) or given.get(ALL_OTHERS) or EPOCHS[stage]


def _entries(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {ALL_OTHERS: value}


def _named(argument: str, key: str) -> str:
    return argument if key == ALL_OTHERS else f"{argument} {key}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _check(argument: str, rule: str, value: Any, holds: bool) -> None:
    if not holds:
        raise ArgumentError(argument, rule, value)


# --- the stages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stage that trains.

    Attributes:
        name: Its name.
        title: What the model is after it.
        active: Whether the settings ask for it.
        identity: Its own settings, as JSON values: with other ones it is done again.
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
    """Group lasso, then the weakest filters go physically, then training without them."""
    from edgecompress.callbacks.group_lasso import GroupLasso
    from edgecompress.surgery.finalize import finalize

    epochs = settings.epochs_of("remove")
    first = epochs // 2
    lasso = GroupLasso(_LASSO_STRENGTH, final_sparsity=settings.remove_channels)
    try:
        curves = [trainer.fit(model, "remove", first, [lasso], of=epochs)]
    except ArgumentError as error:
        raise ArgumentError(
            "--remove-channels", "be left out for a model whose filters cannot be removed",
            settings.remove_channels, str(error),
        ) from error  # fmt: skip
    small = finalize(model)
    curves.append(trainer.fit(small, "remove", epochs - first, [], done=first, of=epochs))
    return small, curves, ()


def _prune(
    settings: DeepCompression, trainer: Trainer, model: Any
) -> tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]]:
    """Masks grow over the first part of the stage, then the weights that are left are tuned."""
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
                # The last update has to fall on the end, or the target would be missed.
                end_step=last // frequency * frequency,
                frequency=frequency,
            ),
            layers=_one_of(group.layers),
            scope=group.scope,
        )
        for group in groups
    ]
    curves = trainer.fit(model, "prune", epochs, callbacks)
    if not settings.prunes_by_magnitude:
        # What a pattern leaves out, it names.
        notes = (*notes, *(note for callback in callbacks for note in callback.notes))
    return finalize(model), [curves], notes


def _cluster(
    settings: DeepCompression, trainer: Trainer, model: Any
) -> tuple[Any, Sequence[Mapping[str, list[float]]], tuple[str, ...]]:
    """k-means, then the shared values are trained."""
    from edgecompress.callbacks.weight_clustering import WeightClustering
    from edgecompress.surgery.finalize import finalize

    counts, notes = cluster_counts(model, settings)
    callbacks = [
        WeightClustering(number, layers=_one_of([layer for layer, k in counts if k == number]))
        for number in sorted({number for _, number in counts})
    ]
    curves = trainer.fit(model, "cluster", settings.epochs_of("cluster"), callbacks)
    return finalize(model), [curves], notes


def _prunes(settings: DeepCompression) -> bool:
    return any(share > 0 for share in _entries(settings.sparsity).values())


def _clusters(settings: DeepCompression) -> bool:
    return any(count != 0 for count in _entries(settings.clusters).values())


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
        lambda settings: settings.remove_channels > 0,
        lambda s: {"share": s.remove_channels, "epochs": s.epochs_of("remove")},
        _remove_channels,
    ),
    Stage(
        "prune",
        "pruned",
        _prunes,
        lambda s: {
            "sparsity": s.sparsity,
            "scope": s.scope,
            "first_last": s.first_last,
            "epochs": s.epochs_of("prune"),
            # Left out where it is what it always was, so that finished stages stay valid.
            **({} if s.prunes_by_magnitude else {"criterion": s.criterion, "pattern": s.pattern}),
        },
        _prune,
    ),
    Stage(
        "cluster",
        "clustered",
        _clusters,
        lambda s: {"clusters": s.clusters, "epochs": s.epochs_of("cluster")},
        _cluster,
    ),
)


def _one_of(layers: Sequence[Any]) -> Callable[[Any], bool]:
    """Returns a choice of exactly these layers, whatever others are called."""
    known = {id(layer) for layer in layers}
    return lambda layer: id(layer) in known


@dataclass(frozen=True, eq=False)
class PruningGroup:
    """Layers that are pruned together.

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
                rule = f"are {doing} only where named" if known else f"cannot be {doing}"
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
    wanted = _entries(settings.sparsity)
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


def cluster_counts(
    model: Any, settings: DeepCompression
) -> tuple[list[tuple[Any, int]], tuple[str, ...]]:
    """Returns the layers to cluster, each with its number of values, and notes.

    Raises:
        ArgumentError: nothing is left to cluster, or a named layer cannot be.
    """
    wanted = _entries(settings.clusters)
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


# --- the run -------------------------------------------------------------------------------------


def run(request: Request) -> CompressionResult:
    """Compresses a model; see `DeepCompression` and `edgecompress.compress`.

    Raises:
        EdgeCompressError: an argument, a file, a training or a conversion is wrong.
    """
    from edgecompress.core.suppress_output import suppress_output
    from edgecompress.pipeline import write
    from edgecompress.reports.figures import join_curves

    settings = request.settings
    _check_request(request)
    request.progress("Loading the model")
    # The first import of TensorFlow writes to standard error.
    with suppress_output(request.verbose):
        from edgecompress.recipes import training
        from edgecompress.recipes.checkpoints import Checkpoints

    loaded, data, task, notes = _load(request)
    _check_kinds(request, task)
    # Names of layers, before hours of training.
    if _prunes(settings):
        pruning_groups(loaded.model, settings)
    if _clusters(settings):
        cluster_counts(loaded.model, settings)
    baseline = _measure_baseline(request, loaded, data, task)

    distills = task.is_classifier if settings.distill is None else settings.distill
    distillation = None
    if distills:
        distillation = settings.teaching
        notes.append(
            f"The original model teaches: soft labels at temperature {settings.temperature:g} "
            f"are {settings.soft_weight:.0%} of the loss."
            if settings.distillation is None
            else f"The original model teaches by {distillation}."
        )
    trainer = training.Trainer(
        task, data, loaded.model, distillation, settings.batch_size, settings.learning_rate,
        request.on_epoch,
    )  # fmt: skip
    checkpoints = Checkpoints(request.output, request.fresh)
    model, finished = _run_stages(request, loaded, data, task, distills, trainer, checkpoints)
    notes += checkpoints.notes
    for stage, _ in finished:
        notes += stage.notes

    made = _build(request, loaded, model, data, task)
    request.progress("Writing the files")
    # Curves of stages that others lack have gaps.
    curves: Any = join_curves([stage.history for stage, _ in finished])
    report = write(made, request.output, argv=request.argv, history=curves)
    return _finish(
        request, loaded, model, data, task, distills, baseline, finished, made, report, notes
    )


def _check_request(request: Request) -> None:
    """Refuses what the export would refuse, before hours of training."""
    from edgecompress.converters.formats import FORMATS
    from edgecompress.pipeline.request import (
        check_kernels,
        check_targets,
        load_profiles,
        parse_budgets,
        usable_folder,
    )
    from edgecompress.pipeline.scoring import check_share

    check_targets(FORMATS["compressed"], load_profiles(request.targets))
    export = request.export
    budgets = ("max_flash", "max_ram", "max_latency", "max_file_size", "min_accuracy")
    parse_budgets(*(export.get(name) for name in budgets))
    check_share("--min-agreement", export.get("min_agreement"))
    check_kernels(export.get("kernels"))
    usable_folder(request.output)


def _check_kinds(request: Request, task: Task) -> None:
    """Refuses settings that need classes where there are none."""
    if request.settings.distill and not task.is_classifier:
        raise ArgumentError(
            "--distill", "go with a classifier", "labels that are values",
            "Soft labels are probabilities of classes.",
        )  # fmt: skip
    if request.export.get("min_accuracy") is not None and not task.has_classes_for_export:
        raise ArgumentError(
            "--min-accuracy", "go with a classifier that gives an output a class, or a probability",
            request.export["min_accuracy"], "Use --max-drop.",
        )  # fmt: skip


def _load(request: Request) -> tuple[LoadedModel, Data, Task, list[str]]:
    """Loads model and data, and finds out what the model is trained for."""
    from edgecompress.converters import loaders
    from edgecompress.core.record import CompressionRecord
    from edgecompress.core.suppress_output import suppress_output
    from edgecompress.recipes import data as datasets
    from edgecompress.recipes import task as tasks

    settings = request.settings
    from_file = isinstance(request.model, (str, Path))
    with suppress_output(request.verbose):
        loaded = loaders.load_model(request.model) if from_file else loaders.wrap(request.model)
    loaders.refuse_unconvertible(loaded)
    tasks.check_model(loaded)
    own, loss_notes = tasks.own_loss(request.model, loaded.path)
    request.progress("Loading the data")
    data = datasets.load(
        request.data, request.validation, loaded, settings.validation_split, settings.seed
    )
    task = tasks.find_task(loaded, data, tasks.first_outputs(loaded, data.train), own)
    notes = [*loaded.notes, *loss_notes, f"Loss: {task.loss_text}.", f"Validation: {data.split}."]
    if request.validation is None:
        notes.append(
            "Where the model that came in was trained on these validation samples, its metric is "
            "flattered and the drop overstated: give --validation with samples that are new to it."
        )
    record = loaded.record or CompressionRecord()
    if record.ranges:
        # They describe activations that training now moves.
        record = dataclasses.replace(record, ranges={})
        notes.append("Learnt ranges of the model are not used: the weights change.")
    loaded = dataclasses.replace(loaded, record=record)
    target = _model_path(request, loaded)
    if loaded.path is not None and target.resolve() == loaded.path.resolve():
        raise ArgumentError(
            "--output", "be another folder than that of the model, which it would replace",
            str(request.output),
        )  # fmt: skip
    return loaded, data, task, notes


def _model_path(request: Request, loaded: LoadedModel) -> Path:
    return request.output / f"{loaded.name}_compressed.keras"


@dataclass(frozen=True, eq=False)
class _Baseline:
    """What the model that came in is worth, and its files without training."""

    metric: float
    int8_metric: float
    float_bytes: int
    int8: FlatModel
    kernels: tuple[TableKernel, ...]


def _calibration(data: Data) -> list[Any]:
    from edgecompress.converters.calibration import spread

    return [spread(array, CALIBRATION_SAMPLES) for array in data.train.x]


def _measure_baseline(request: Request, loaded: LoadedModel, data: Data, task: Task) -> _Baseline:
    """Converts and measures the model as it came: what cannot be converted is found out here."""
    from edgecompress.converters import float32, int8
    from edgecompress.recipes import training
    from edgecompress.recipes.layer_table import kernels

    request.progress("Measuring the model that came in")
    metric = training.measure(loaded.model, task, data.validation)
    floats = float32.convert(loaded, verbose=request.verbose)
    quantized = int8.strip_names(
        int8.convert(floats, calibration=_calibration(data), verbose=request.verbose)
    )
    return _Baseline(
        metric,
        _file_metric(quantized.flat, task, data),
        len(int8.strip_names(floats.artifact).data),
        quantized.flat,
        tuple(kernels(loaded.model)),
    )


def _file_metric(flat: FlatModel, task: Task, data: Data) -> float:
    """Returns the metric of a .tflite file in TensorFlow Lite Micro."""
    from edgecompress.converters.real_values import dequantize, quantize
    from edgecompress.engines.run import run_engine

    inputs = [
        quantize(array, flat.tensors[index])
        for array, index in zip(data.validation.x, flat.inputs, strict=True)
    ]
    output = run_engine("tflm", flat.data, inputs).outputs[0]
    values = dequantize(output, flat.tensors[flat.outputs[0]])
    values = values.reshape(len(data.validation), *flat.tensors[flat.outputs[0]].shape[1:])
    return task.metric.measure(task.labels(data.validation, values.shape[1:]), values)


# A finished stage as it is stored, and as the result lists it.
_Done = tuple["Finished", "StageResult"]


def _run_stages(
    request: Request,
    loaded: LoadedModel,
    data: Data,
    task: Task,
    distills: bool,
    trainer: Trainer,
    checkpoints: Checkpoints,
) -> tuple[Any, list[_Done]]:
    """Trains stage by stage, from the last one that an earlier run has finished."""
    import keras

    from edgecompress.converters.loaders import load_model
    from edgecompress.core.model_copy import copy_model
    from edgecompress.core.record import CompressionRecord, attach_record
    from edgecompress.recipes.checkpoints import Finished, chain_key
    from edgecompress.recipes.layer_table import kernels, stored_bytes
    from edgecompress.recipes.results import StageResult
    from edgecompress.reports.figures import join_curves

    settings = request.settings
    model = copy_model(loaded.model)
    attach_record(model, loaded.record or CompressionRecord())
    active = [stage for stage in STAGES if stage.active(settings)]
    key = _first_key(settings, loaded, data, task, distills)
    finished: list[_Done] = []
    for number, stage in enumerate(active, 1):
        key = chain_key(key, {"stage": stage.name, **stage.identity(settings)})
        done = checkpoints.find(stage.name, key)
        resumed = done is not None
        if done is not None:
            request.progress(f"Stage {stage.name} was finished by an earlier run")
            found = load_model(checkpoints.path(stage.name))
            model = found.model
            attach_record(model, found.record or CompressionRecord())
        else:
            request.progress(f"Stage {number} of {len(active)}: {stage.name}")
            # Whatever an earlier run has spared, a stage draws the same numbers.
            keras.utils.set_random_seed(settings.seed + number)
            start = time.monotonic()
            model, curves, notes = stage.run(settings, trainer, model)
            unsaved = Finished(
                stage.name,
                key,
                sha256="",
                metric=trainer.measure(model),
                epochs=settings.epochs_of(stage.name),
                seconds=time.monotonic() - start,
                history=join_curves(curves),
                notes=notes,
            )
            done = checkpoints.store(unsaved, model)
        weights, kept, size = stored_bytes(kernels(model), settings.index_bits)
        result = StageResult(
            stage.name, stage.title, done.metric, "keras", weights, kept,
            stored_bytes=size, epochs=done.epochs, seconds=done.seconds, resumed=resumed,
        )  # fmt: skip
        finished.append((done, result))
    return model, finished


def _first_key(
    settings: DeepCompression, loaded: LoadedModel, data: Data, task: Task, distills: bool
) -> str:
    """Returns the key that all stages start from: model, data, and how they are trained."""
    import hashlib

    import numpy as np

    from edgecompress.core.results import tool_version
    from edgecompress.recipes.checkpoints import chain_key

    # Keras counts unnamed inputs over the whole process; such a name says nothing and differs.
    layers = re.sub(r'"(input_layer|keras_tensor)(_\d+)?"', '"input"', loaded.model.to_json())
    model = hashlib.sha256(layers.encode())
    for weight in loaded.model.get_weights():
        model.update(np.ascontiguousarray(weight).data)
    taught = settings.distillation or [settings.temperature, settings.soft_weight]
    return chain_key(
        model.hexdigest(),
        {
            "recipe": NAME,
            "version": tool_version(),
            "train": data.train.sha256(),
            "validation": data.validation.sha256(),
            "loss": task.loss_text,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "distillation": taught if distills else None,
            "seed": settings.seed,
        },
    )


# --- the file, the tables ------------------------------------------------------------------------


def _build(
    request: Request,
    loaded: LoadedModel,
    model: Any,
    data: Data,
    task: Task,
) -> Build:
    """Converts to int8, codes the weights, and checks the targets."""
    from edgecompress.core.learnt_ranges import settled_record, valid_record
    from edgecompress.pipeline import build, build_request
    from edgecompress.recipes.task import class_numbers

    validation = data.validation
    evaluate = None
    if task.has_classes_for_export and validation.y is not None:
        evaluate = (*validation.x, class_numbers(validation.y))
    # The name is that of the original model, and so are the files'.
    record = valid_record(model, settled_record(model))
    asked = build_request(
        dataclasses.replace(loaded, model=model, record=record, notes=()),
        request.targets,
        file_format="compressed",
        calibration=_calibration(data),
        evaluate=evaluate,
        verbose=request.verbose,
        **request.export,
    )
    return build(asked, request.progress)


def _finish(
    request: Request,
    loaded: LoadedModel,
    model: Any,
    data: Data,
    task: Task,
    distills: bool,
    baseline: _Baseline,
    finished: Sequence[_Done],
    made: Build,
    report: Report,
    notes: Sequence[str],
) -> CompressionResult:
    """Makes the tables, and writes them and the Keras model."""
    import numpy as np

    from edgecompress.recipes import layer_table, rendering, training
    from edgecompress.recipes.checkpoints import saved_model
    from edgecompress.recipes.results import CompressionResult, Drop

    settings = request.settings
    request.progress("Making the tables")
    few = data.validation.at(np.arange(min(len(data.validation), _DENSITY_SAMPLES)))
    densities = layer_table.input_densities(model, training.inputs_of(model, few))
    final = layer_table.kernels(model)
    layers, table_notes = layer_table.table(
        baseline.kernels, final, settings.index_bits, densities, made.main.flat
    )
    after = _reported_accuracy(report)
    if after is None:
        request.progress("Measuring the file")
        after = _file_metric(made.main.flat, task, data)
    drop = Drop(
        task.metric.name, baseline.metric, after, task.metric.drop(baseline.metric, after),
        settings.max_drop, len(data.validation),
    )  # fmt: skip
    totals = _totals(loaded, model, baseline, layers, made)
    keras_path = _model_path(request, loaded)
    files = ("compression.json", "compression.html", keras_path.name)
    result = CompressionResult(
        recipe=NAME,
        name=loaded.name,
        path=None if loaded.path is None else str(loaded.path),
        settings=jsonable(
            {
                **dataclasses.asdict(settings),
                "epochs": {stage: settings.epochs_of(stage) for stage in EPOCHS},
                "distill": distills,
            }
        ),
        data={
            "samples": len(data.train),
            "validation_samples": len(data.validation),
            "kind": task.kind,
            "output": task.output,
            "loss": task.loss_text,
            "metric": task.metric.name,
        },
        stages=_stage_results(baseline, finished, drop, totals),
        layers=layers,
        totals=totals,
        drop=drop,
        report=report,
        files=files,
        notes=tuple(dict.fromkeys([*notes, *table_notes, *report.notes])),
        version=report.version,
        argv=report.argv,
    )
    page = rendering.render_html(result)
    tables = {"compression.html": page, "compression.json": result.to_json()}
    write_together(keras_path.parent, {**saved_model(model, keras_path.name), **tables})
    return result


def _reported_accuracy(report: Report) -> float | None:
    """Returns the accuracy that the build measured in TensorFlow Lite Micro, if it did."""
    for target in report.targets:
        for check in target.checks:
            if check.rule == "accuracy" and check.detail.get("engine") == "tflm":
                return check.measured
    return None


def _totals(
    loaded: LoadedModel,
    model: Any,
    baseline: _Baseline,
    layers: Sequence[LayerResult],
    made: Build,
) -> Totals:
    from edgecompress.recipes.results import Cost, Totals
    from edgecompress.targets.tflm.arena import compute_arena
    from edgecompress.targets.tflm.latency import predict

    profile, kernels = made.profiles[0], made.kernels
    files = (baseline.int8, made.artifact("int8").flat, made.main.flat)
    estimates = [predict(file, profile, kernels) for file in files]
    core, arena_kernels = profile.core, kernels or profile.kernels
    arenas = [
        None
        if core is None or arena_kernels is None
        else compute_arena(file, core, arena_kernels, made.decompression_memory).used
        for file in files
    ]
    return Totals(
        layers=tuple(layers),
        float_bytes=baseline.float_bytes,
        int8_bytes=len(baseline.int8.data),
        file_bytes=made.model.file_bytes,
        download_bytes=made.model.compressed_bytes,
        target=profile.name,
        latency=Cost(*(estimate.microseconds for estimate in estimates)),
        instructions=Cost(*(None if e.unknown else e.instructions for e in estimates)),
        arena=Cost(*arenas),
        parameters_before=int(loaded.model.count_params()),
        parameters_after=int(model.count_params()),
    )


def _stage_results(
    baseline: _Baseline, finished: Sequence[_Done], drop: Drop, totals: Totals
) -> tuple[StageResult, ...]:
    """Returns the way from the model that came in to the file that ships."""
    from edgecompress.recipes.results import StageResult

    kept = sum(int((kernel.values != 0).sum()) for kernel in baseline.kernels)
    return (
        StageResult(
            "original", "as it came", baseline.metric, "keras", totals.weights, kept,
            stored_bytes=totals.original_bytes, file_bytes=totals.float_bytes,
        ),
        StageResult(
            "int8", "int8 file, untrained", baseline.int8_metric, "tflm", totals.weights, kept,
            file_bytes=totals.int8_bytes,
        ),
        *(stage for _, stage in finished),
        StageResult(
            "file", "int8 file, encoded", drop.after, "tflm",
            sum(layer.storage.weights for layer in totals.layers), totals.kept,
            stored_bytes=totals.huffman_bytes, file_bytes=totals.file_bytes,
        ),
    )  # fmt: skip


RECIPES.register(NAME)(Recipe(NAME, DeepCompression, run))
