"""The registry of recipes, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.options import Choice, option
from edgecompress.core.registry import Registry

if TYPE_CHECKING:
    from edgecompress.recipes.results import CompressionResult


# What a progress line shows of the values that `fit` logs.
_TOLD = ("loss", "val_accuracy", "val_mean_squared_error", "sparsity", "clusters",
         "group_lasso_zero_share")  # fmt: skip


@dataclass(frozen=True)
class Epoch:
    """The progress of a stage.

    Attributes:
        stage: The stage's name.
        epoch: Finished epochs, from 1.
        epochs: Epochs of the stage.
        values: What `fit` logged: losses, metrics, sparsity.
    """

    stage: str
    epoch: int
    epochs: int
    values: Mapping[str, float]

    @property
    def text(self) -> str:
        """The epoch in one line.

        Example:
            >>> Epoch("prune", 2, 10, {"loss": 0.25, "val_accuracy": 0.9, "sparsity": 0.5}).text
            'prune: epoch 2 of 10, loss 0.25, val_accuracy 0.9, sparsity 0.5'
        """
        told = [f"{name} {self.values[name]:.4g}" for name in _TOLD if name in self.values]
        return ", ".join([f"{self.stage}: epoch {self.epoch} of {self.epochs}", *told])


@dataclass(frozen=True)
class Request:
    """The input of a recipe.

    Attributes:
        recipe: The recipe's name, as it was asked for.
        model: A Keras model, or the path of its file.
        data: Training data of a kind in `sources.SOURCES`.
        validation: Validation data; None: a part of `data`.
        pixels: Range of the values of images in a folder; None if there is none.
        steps_per_epoch: Batches of an epoch, for a dataset without an end.
        teachers: Models or their files, which teach instead of the original; () for none.
        settings: The recipe's own settings.
        output: Folder of all files.
        targets: Names, paths or profiles.
        export: Budgets and further arguments of `edgecompress.export`, by name.
        fresh: Start over, whatever an earlier run has finished.
        progress: Called with a short text as each stage begins.
        on_epoch: Called after each epoch.
        verbose: Let libraries' logs through.
        argv: The command for the report.
    """

    recipe: str
    model: Any
    data: Any
    validation: Any
    settings: Any
    output: Path
    targets: Sequence[Any]
    export: Mapping[str, Any]
    fresh: bool
    progress: Callable[[str], None] = field(repr=False)
    on_epoch: Callable[[Epoch], None] = field(repr=False)
    pixels: str | None = None
    steps_per_epoch: int | None = None
    teachers: Sequence[Any] = ()
    verbose: bool = False
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A procedure from a trained model to a small file.

    Attributes:
        name: What `--recipe` takes.
        settings: Frozen dataclass of its settings; every field has a default.
        run: Does it.
    """

    name: str
    settings: type
    run: Callable[[Request], CompressionResult] = field(repr=False)


RECIPES: Registry[Recipe] = Registry("--recipe")


@dataclass(frozen=True)
class RecipeOptions:
    """Which recipe `compress` follows."""

    recipe: str = option("deep-compression", "How the model is compressed.", Choice(names=RECIPES))
