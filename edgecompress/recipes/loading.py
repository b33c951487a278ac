"""What every training of this package begins with: a model, its data, what it is trained for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.recipes.data import Data
    from edgecompress.recipes.task import Task


@dataclass(frozen=True, eq=False)
class Trainable:
    """A model that can be trained on, and be measured by, some data.

    Attributes:
        loaded: The model.
        data: Training and validation data.
        task: What it is trained for.
        notes: How that was found, one sentence each.
    """

    loaded: LoadedModel
    data: Data
    task: Task
    notes: tuple[str, ...]


def load_trainable(
    model: Any,
    data: Any,
    validation: Any,
    share: float,
    seed: int,
    pixels: str | None = None,
    steps_per_epoch: int | None = None,
    metric: Any = None,
    goal: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
    verbose: bool = False,
    groups: str | None = None,
    test: Any = None,
) -> Trainable:
    """Loads model and data, and infers what the model is trained for.

    Args:
        model: A Keras model, or the path of its file.
        data: Training data, as `data.load` takes them.
        validation: Validation data; None for a share of the training data.
        share: That share.
        seed: Of its drawing.
        pixels: Range of pixels of a folder of images.
        steps_per_epoch: Batches of an epoch, for a dataset without an end.
        metric: As in `find_task`.
        goal: As in `find_task`.
        progress: Called with a short text as each step begins.
        verbose: Let libraries' logs through.
        groups: As in `data.load`.
        test: As in `data.load`.

    Raises:
        EdgeCompressError: a file, the model, the data or the metric is wrong.
    """
    from edgecompress.converters import loaders
    from edgecompress.core.suppress_output import suppress_output
    from edgecompress.recipes import data as datasets
    from edgecompress.recipes import task as tasks

    progress("Loading the model")
    from_file = isinstance(model, (str, Path))
    # The first import of TensorFlow writes to standard error.
    with suppress_output(verbose):
        loaded = loaders.load_model(model) if from_file else loaders.wrap(model)
    loaders.refuse_unconvertible(loaded)
    tasks.check_model(loaded)
    loss, notes = tasks.own_loss(model, loaded.path)
    progress("Loading the data")
    found = datasets.load(
        data, validation, loaded, share, seed, pixels, steps_per_epoch, groups, test
    )
    outputs = tasks.first_outputs(loaded, found.train)
    task = tasks.find_task(loaded, found, outputs, loss, metric, goal)
    told = [*loaded.notes, *notes, f"Loss: {task.loss_text}.", f"Validation: {found.split}."]
    return Trainable(loaded, found, task, (*told, *found.notes))
