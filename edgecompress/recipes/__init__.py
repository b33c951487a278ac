"""Recipes: from a trained model to a small file in one call.

`compress` is the entry point; `RECIPES` lists the recipes. To add one: a module that registers it,
its test, and one import line here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgecompress.core import isolation
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.options import Path as OptionPath
from edgecompress.core.options import many, options_of
from edgecompress.core.record import sidecar_path
from edgecompress.core.user_functions import is_function
from edgecompress.engines.run import session
from edgecompress.pipeline.options import CompressOptions, RecipeTargetOptions
from edgecompress.pipeline.request import load_profiles, usable_folder

# Importing a recipe registers it.
from edgecompress.recipes import deep_compression
from edgecompress.recipes.registry import RECIPES, Epoch, Recipe, RecipeOptions, Request
from edgecompress.recipes.results import CompressionResult

__all__ = ["RECIPES", "Epoch", "Recipe", "Request", "compress", "deep_compression"]


def _silent(_: object) -> None:
    pass


def compress(
    model: Any,
    data: Any,
    recipe: str = RecipeOptions.recipe,
    *,
    validation: Any = None,
    data_files: Sequence[Path | str] = (),
    pixels: str | None = None,
    steps_per_epoch: int | None = None,
    teachers: Sequence[Any] = (),
    output: Path | str = CompressOptions.output,
    targets: Sequence[Any] = RecipeTargetOptions.targets,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    min_agreement: float | None = None,
    kernels: str | None = None,
    operators: Any = None,
    max_energy: str | float | None = None,
    power: str | float | None = None,
    fresh: bool = False,
    import_modules: Sequence[str] = (),
    progress: Callable[[str], None] = _silent,
    on_epoch: Callable[[Epoch], None] = _silent,
    verbose: bool = False,
    argv: Sequence[str] = (),
    **settings: Any,
) -> CompressionResult:
    """Shrinks a trained model, and writes the file that ships with the tables of the paper.

    `deep-compression` removes channels (if `remove_channels` is set), prunes, clusters, converts to
    int8 and codes the weights for TensorFlow Lite Micro: see
    `edgecompress.recipes.deep_compression.DeepCompression` for its settings. Every finished stage
    is stored in `<output>/stages`, and the same call resumes after the last one.

    Writes what `export` writes for `file_format="compressed"`, `<model>_compressed.keras`,
    `compression.json` and `compression.html` into `output`.

    Args:
        model: A trained Keras model, which is not changed, or the path of a .keras or .h5 file.
        data: Training data: (x, y), the path of an .npz file with `x` and `y`, or only `x` for a
            model that reconstructs its input; a folder of images, one subfolder for each class; a
            tf.data.Dataset of batches or a keras.utils.PyDataset; or `"module:function"`, which
            returns arrays or a dataset. Labels are class numbers, one-hot rows or values.
        recipe: Its name. Defaults to `"deep-compression"`.
        validation: Data like `data`, but not trained on. Defaults to None: a share of `data`.
        data_files: Files and folders that a function reads, if the model is a file.
        pixels: Range of pixels that the model takes from a folder of images: `"0..255"`, `"0..1"`
            or `"-1..1"`.
        steps_per_epoch: Batches of an epoch, for a dataset without an end.
        teachers: Larger trained models of the same inputs and outputs, or the paths of their files,
            that teach instead of the original one; several count as one, the mean of their logits.
        output: Folder of the files; created if it is missing.
        targets: Microcontrollers: names, paths of .toml profiles, or profiles.
        max_flash: Budget for the model and the runtime's code, as in `export`.
        max_ram: Budget for the tensor arena, decoded weights included.
        max_latency: Budget for one inference, decoding included.
        max_file_size: Budget for the file that ships.
        min_accuracy: Floor for its accuracy on the validation data, 0 to 1.
        min_agreement: Floor for its agreement with the final Keras model, 0 to 1.
        kernels: Kernel set instead of the profiles'.
        operators: As in `export`.
        max_energy: As in `export`, as is the next.
        power: What the board draws.
        fresh: Start over instead of resuming after the last finished stage.
        import_modules: As in `export`.
        progress: Called with a short text as each stage begins.
        on_epoch: Called with an `Epoch` after each epoch.
        verbose: Let libraries' logs through.
        argv: The command for the report.
        settings: The recipe's settings, e.g. `sparsity=0.9` or `clusters={"*": 15, "conv": 31}`.

    Returns:
        Stages, tables, totals and the report; `result.exit_code` is 0 if every limit is met.

    Raises:
        UnknownNameError: the recipe or a setting is unknown.
        EdgeCompressError: an argument, a file, a training or a conversion is wrong.

    Example:
        >>> result = ec.compress("model.keras", "train.npz", sparsity=0.9)  # doctest: +SKIP
        >>> result.totals.paper_rate, result.totals.file_rate  # doctest: +SKIP
        (31.2, 14.8)
    """
    from edgecompress.targets.rule import target_options

    chosen = RECIPES[recipe]
    teachers = many(OptionPath()).parse(teachers, "teachers")
    known = {field.name for field in dataclasses.fields(chosen.settings)}
    owned = target_options()
    for name in settings:
        if name not in known and name not in owned:
            _refuse(name, recipe, known)
    export = {
        "max_flash": max_flash,
        "max_ram": max_ram,
        "max_latency": max_latency,
        "max_file_size": max_file_size,
        "min_accuracy": min_accuracy,
        "min_agreement": min_agreement,
        "options": {
            "kernels": kernels,
            "operators": operators,
            "max_energy": max_energy,
            "power": power,
            **{n: v for n, v in settings.items() if n in owned},
        },
    }
    asked = {
        "recipe": recipe,
        "model": model,
        "data": data,
        "validation": validation,
        "pixels": pixels,
        "steps_per_epoch": steps_per_epoch,
        "teachers": teachers,
        "settings": chosen.settings(**{n: v for n, v in settings.items() if n in known}),
        "output": Path(output),
        "targets": tuple(targets),
        "export": export,
        "fresh": fresh,
        "verbose": verbose,
        "argv": tuple(argv) or tuple(sys.argv),
    }
    if not isinstance(model, (str, Path)):
        return chosen.run(Request(**asked, progress=progress, on_epoch=on_epoch))
    sources = {"--data": data, "--validation": validation}
    # This process reads profiles and writes the output, but does not read the model file.
    asked["targets"] = tuple(load_profiles(asked["targets"]))
    with _made(usable_folder(output)) as folder:
        answer = isolation.call(
            f"{__name__}:compress_isolated",
            {"asked": asked},
            readable=[
                model,
                sidecar_path(Path(model)),
                *data_files,
                *(x for x in teachers if isinstance(x, (str, Path))),
                *(x for x in sources.values() if isinstance(x, (str, Path))),
            ],
            writable=[folder],
            modules=import_modules,
            functions={name: x for name, x in sources.items() if is_function(x)},
            training=True,
            progress=progress,
            on_event=lambda event: on_epoch(isolation.decode(Epoch, event)),
            verbose=verbose,
        )
    return isolation.decode(CompressionResult, answer.value)


def _refuse(name: str, recipe: str, known: Iterable[str]) -> None:
    """Refuses a setting that the recipe does not have, naming the recipe that has it."""
    for other in RECIPES:
        for option in options_of(RECIPES[other].settings):
            if option.name == name:
                raise ArgumentError(option.flag, f"go with --recipe {other}", f"--recipe {recipe}")
    raise UnknownNameError(f"setting of {recipe}", name, known)


def compress_isolated(
    asked: dict[str, Any],
    tell: Callable[[str, Any], None],
    gaps: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Compresses in the process that was started for it; returns the result."""
    with session() as shared:
        shared.gaps.update(dict.fromkeys(gaps))
        result = RECIPES[asked["recipe"]].run(
            Request(
                **asked,
                progress=lambda text: tell("progress", text),
                on_epoch=lambda epoch: tell("event", isolation.encode(epoch)),
            )
        )
    return isolation.encode(result), {}


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Makes a folder, and removes it again if the block fails and leaves it empty."""
    missing = []
    place = folder
    while not place.exists():
        missing.append(place)
        place = place.parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
