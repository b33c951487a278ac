"""Where training data come from; `SOURCES` lists the kinds.

To add one: a `Source` registered here. The first one that takes a value reads it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters.calibration import read_file
from edgecompress.converters.loaders import InputSpec, LoadedModel
from edgecompress.converters.streams import is_stream
from edgecompress.core.datasets import batch_count, is_dataset, one_epoch
from edgecompress.core.errors import ArgumentError, UnknownNameError, few, one_line
from edgecompress.core.options import whole
from edgecompress.core.registry import Registry
from edgecompress.core.user_functions import is_function
from edgecompress.recipes.groups import check_length, take_groups
from edgecompress.recipes.samples import (
    MOST_BYTES,
    MOST_VALIDATION,
    SAMPLED,
    Samples,
    Stream,
    checked,
    first_samples,
    joined,
    read_batches,
)

# What a pixel of 0 and of 255 becomes.
PIXELS = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
_CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
_WEIGHTS = ("sample_weight", "sample_weights", "class_weight")
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
_BATCH = 64


@dataclass(frozen=True)
class Ask:
    """What a source is asked for.

    Attributes:
        loaded: The model that the data are for.
        argument: Name of the argument for errors.
        seed: Of whatever is drawn.
        pixels: A name in `PIXELS`: the range of the values of images; None if it was not given.
        steps: Batches of an epoch; None: as many as the dataset says.
        whole: Whether all of the data are held in memory, so that a dataset only has to end.
        batch_size: Samples of a batch, where the source makes the batches.
        groups: Name of the array that says what each sample is of; None if none does.
    """

    loaded: LoadedModel
    argument: str
    seed: int = 0
    pixels: str | None = None
    steps: int | None = None
    whole: bool = False
    batch_size: int = _BATCH
    groups: str | None = None

    def __post_init__(self) -> None:
        """Refuses values that break their rule."""
        if self.pixels is not None and self.pixels not in PIXELS:
            raise UnknownNameError("--pixels", self.pixels, PIXELS)
        if self.steps is not None:
            whole(1).parse(self.steps, "--steps-per-epoch")


@dataclass(frozen=True)
class Source:
    """A kind of training data.

    Attributes:
        name: The kind.
        summary: How it is given, in a few words.
        takes: Whether a value is of this kind.
        read: Returns samples in memory, or a stream of batches.
        split: (value, ask, share) -> training and validation data, for a kind that divides itself.
            None: samples in memory are divided at random, and a stream is not.
    """

    name: str
    summary: str
    takes: Callable[[Any], bool] = field(repr=False)
    read: Callable[[Any, Ask], Samples | Stream] = field(repr=False)
    split: Callable[[Any, Ask, float], tuple[Stream, Samples, str]] | None = None


SOURCES: Registry[Source] = Registry("kind of data")


def source_of(given: Any) -> Source:
    """Returns the kind of some training data; what no kind takes are arrays."""
    return next((kind for kind in SOURCES.values() if kind.takes(given)), SOURCES["arrays"])


# --- A folder of images ---------------------------------------------------------------------------


def _is_folder(given: Any) -> bool:
    return isinstance(given, (str, Path)) and Path(given).is_dir()


@dataclass(frozen=True)
class _Images:
    """How the images of a folder are read."""

    folder: Path
    classes: tuple[str, ...]
    size: tuple[int, int]
    colours: str
    kind: str
    pixels: str | None

    def files(self, ask: Ask) -> list[tuple[str, int]]:
        """Returns the images, each with the number of its class, in the order of their names."""
        found: list[tuple[str, int]] = []
        for number, name in enumerate(self.classes):
            places = sorted((self.folder / name).rglob("*"))
            images = [str(path) for path in places if path.suffix.lower() in _IMAGES]
            if not images:
                raise ArgumentError(
                    ask.argument, "hold images in each subfolder", f"none in {self.folder / name}",
                    f"Images are files named {', '.join(_IMAGES)}.",
                )  # fmt: skip
            found += [(path, number) for path in images]
        return found

    def stream(self, files: list[tuple[str, int]], ask: Ask) -> Stream:
        """Returns batches of images, in another order in each epoch.

        `keras.utils.image_dataset_from_directory` would do the same, but makes semaphores, which a
        confined process cannot.
        """
        import tensorflow as tf

        paths, numbers = zip(*files, strict=True)

        def decoded(path: Any) -> Any:
            return tf.io.decode_image(
                tf.io.read_file(path), channels=_CHANNELS[self.colours], expand_animations=False
            )

        def read(path: Any, number: Any) -> tuple[Any, Any]:
            return tf.image.resize(decoded(path), self.size), number

        def read_as(order: Callable[[Any], Any]) -> Callable[[], Iterator[Any]]:
            dataset = (
                order(tf.data.Dataset.from_tensor_slices((list(paths), list(numbers))))
                .map(read, num_parallel_calls=tf.data.AUTOTUNE)
                .batch(ask.batch_size)
                .prefetch(2)
            )

            def batches() -> Iterator[Any]:
                try:
                    for images, labels in dataset:
                        yield self._scaled(np.asarray(images)), np.asarray(labels)
                except tf.errors.OpError as error:
                    # It does not say which image.
                    _refuse_damaged(paths, decoded, ask.argument)
                    raise error

            return batches

        epoch = read_as(lambda images: images.shuffle(len(files), seed=ask.seed))
        digest = hashlib.sha256()
        for path in paths:
            name = os.path.relpath(path, self.folder)
            digest.update(f"{name} {os.path.getsize(path)}\n".encode())
        sample = first_samples(
            read_batches(epoch, ask.loaded, ask.argument, once=True), _fitting(SAMPLED, ask.loaded)
        )
        named = ", ".join(f"{name} = {number}" for number, name in enumerate(self.classes))
        scaled = (
            "" if self.pixels is None else f" and pixels from {self.pixels.replace('..', ' to ')}"
        )
        notes = (
            f"{ask.argument}: {len(files):,} images of {self.folder}, resized to "
            f"{self.size[0]} x {self.size[1]}, {self.colours}{scaled}. Classes: {named}.",
        )
        return Stream(
            epoch, -(-len(files) // ask.batch_size), ask.loaded, ask.argument, sample,
            [digest.hexdigest(), sample.sha256(), self.classes], len(files), notes, self.classes,
            read_as(lambda images: images),
        )  # fmt: skip

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        if self.pixels is None:
            return np.clip(np.rint(images), 0, 255).astype(self.kind)
        low, high = PIXELS[self.pixels]
        return (low + images * ((high - low) / 255)).astype(np.float32)


def _images(given: Any, ask: Ask) -> _Images:
    """Returns how a folder is read: sizes and channels are those of the model's input."""
    folder = Path(given)
    if len(ask.loaded.inputs) != 1:
        raise ArgumentError(
            ask.argument, "be arrays or a function for a model with several inputs", str(folder)
        )
    spec = ask.loaded.inputs[0]
    colours = {channels: name for name, channels in _CHANNELS.items()}
    if len(spec.shape) != 3 or None in spec.shape or spec.shape[2] not in colours:
        raise ArgumentError(
            ask.argument,
            "be a folder of images only for a model that takes images of a fixed size",
            f"input {spec.name!r} of shape {spec.shape}", "Give arrays or module:function.",
        )  # fmt: skip
    classes = _classes(folder, ask)
    floating = spec.dtype.startswith(("float", "bfloat"))
    if floating and ask.pixels is None:
        raise ArgumentError(
            "--pixels", f"be given with a folder of images: {', '.join(PIXELS)}, as in training",
            None, "Models that begin with a Rescaling layer usually take 0..255.",
        )  # fmt: skip
    height, width, channels = (int(size or 0) for size in spec.shape)
    return _Images(
        folder, classes, (height, width), colours[channels], spec.dtype,
        ask.pixels if floating else None,
    )  # fmt: skip


def _classes(folder: Path, ask: Ask) -> tuple[str, ...]:
    """Returns the names of the classes, which are those of the subfolders."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    shape = ask.loaded.model.outputs[0].shape[1:]
    units = int(shape[-1]) if len(shape) == 1 and shape[-1] else 0
    wanted = 2 if units == 1 else units
    if not units:
        raise ArgumentError(
            ask.argument, "be a folder of images only for a classifier",
            f"outputs of shape {tuple(shape)}",
        )  # fmt: skip
    if len(classes) != wanted:
        raise ArgumentError(
            ask.argument, f"hold {wanted} subfolders of images, one for each class of the model",
            f"{len(classes)} in {folder}" + (f" ({few(classes, 12)})" if classes else ""),
        )  # fmt: skip
    return classes


def _refuse_damaged(paths: Sequence[str], decoded: Callable[[str], Any], argument: str) -> None:
    """Names the first image that cannot be decoded."""
    import tensorflow as tf

    for path in paths:
        try:
            decoded(path)
        except tf.errors.OpError as error:
            why = one_line(error).rpartition("}} ")[2].partition(" [")[0]
            raise ArgumentError(
                argument, "hold images that can be decoded", path, f"{why.rstrip('.')}."
            ) from error


def _read_folder(given: Any, ask: Ask) -> Stream:
    images = _images(given, ask)
    return images.stream(images.files(ask), ask)


def _split_folder(given: Any, ask: Ask, share: float) -> tuple[Stream, Samples, str]:
    images = _images(given, ask)
    files = images.files(ask)
    count = round(share * len(files))
    if not 0 < count < len(files):
        raise ArgumentError(
            "--validation-split", "leave images on both sides", f"{share:g} of {len(files)} images",
            "Give more data, or --validation.",
        )  # fmt: skip
    order = np.random.default_rng(ask.seed).permutation(len(files))
    held = images.stream(
        [files[at] for at in sorted(order[:count])],
        replace(ask, argument=f"{ask.argument} (held out)"),
    )
    taken = in_memory(held)
    return images.stream([files[at] for at in sorted(order[count:])], ask), taken, (
        f"{len(taken):,} of {len(files):,} images, drawn with seed {ask.seed}"
    )  # fmt: skip


SOURCES.register("folder")(
    Source("folder", "a folder of images, one subfolder for each class", _is_folder, _read_folder,
           _split_folder)
)  # fmt: skip


# --- A function of the user's own -----------------------------------------------------------------


def _read_function(given: Any, ask: Ask) -> Samples | Stream:
    made = call_function(str(given), ask)
    kind = source_of(made)
    if made is None or isinstance(made, (str, Path)) or (kind.name == "arrays" and is_stream(made)):
        raise ArgumentError(
            ask.argument,
            "name a function that returns (x, y), a tf.data.Dataset of batches or a "
            "keras.utils.PyDataset",
            f"{given} returning {type(made).__name__}",
        )
    if kind.name == "arrays":
        return kind.read(made, ask)
    return _read_dataset(made, ask, lambda: call_function(str(given), ask), str(given))


def call_function(name: str, ask: Ask) -> Any:
    """Returns what `module:function` returns, with all random numbers seeded.

    Raises:
        ArgumentError: it cannot be imported, is no function, or fails.
    """
    import keras

    place, _, attribute = name.partition(":")
    # As --import does it: the current folder comes first, and only meanwhile.
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(place)
        function = getattr(module, attribute, None)
        if not callable(function):
            raise ArgumentError(
                ask.argument, "name a function, as module:function", name,
                f"{place} has no function {attribute!r}.",
            )  # fmt: skip
        keras.utils.set_random_seed(ask.seed)
        return function()
    except ArgumentError:
        raise
    # It is the user's code and may raise anything, and end the program.
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            ask.argument, "name a function that can be called without arguments", name,
            f"{type(error).__name__}: {one_line(error)}",
        ) from error  # fmt: skip
    finally:
        sys.path.remove(os.getcwd())


SOURCES.register("function")(Source("function", "module:function", is_function, _read_function))


# --- Datasets -------------------------------------------------------------------------------------


def _read_dataset(
    given: Any, ask: Ask, again: Callable[[], Any] | None = None, name: str = ""
) -> Stream:
    """Returns the batches of a tf.data.Dataset or a keras.utils.PyDataset.

    Args:
        given: The dataset.
        ask: What is asked for.
        again: Makes the dataset once more, seeded alike; None: it is read once more.
        name: Of the function that made it.
    """
    most = _fitting(SAMPLED, ask.loaded)

    def sample_of(dataset: Any) -> Samples:
        read = read_batches(lambda: one_epoch(dataset), ask.loaded, ask.argument, once=True)
        return first_samples(read, most)

    sample = sample_of(given)
    cardinality = batch_count(given)
    steps = ask.steps if ask.steps is not None else cardinality
    if steps is None and ask.whole:
        # Whoever reads it stops in time.
        steps = sys.maxsize
    if steps is None:
        raise ArgumentError(
            "--steps-per-epoch", f"be given with {ask.argument}, whose length is not known", None,
            "Or end the dataset with .apply(tf.data.experimental.assert_cardinality(N)).",
        )  # fmt: skip
    if ask.whole:
        return Stream(
            lambda: one_epoch(given), steps, ask.loaded, ask.argument, sample, sample.sha256()
        )
    notes = [f"{ask.argument}: batches of a dataset, {steps:,} an epoch, in its own order."]
    content = sample.sha256()
    identity: Any = content
    if sample_of(again() if again else given).sha256() != content:
        source = _source_of(name)
        notes.append(
            f"{ask.argument} yields other samples each time it is read, so that a change of the "
            f"data is noticed only if its {'file of code, ' if source else ''}shapes or length "
            "change."
        )
        code = hashlib.sha256(source).hexdigest()
        identity = [code, [(a.shape[1:], a.dtype.str) for a in sample.x]]
    full = len(sample) >= most and cardinality != 1
    if full and sample.y is not None and sample.y.ndim == 1 and len(np.unique(sample.y)) == 1:
        notes.append(
            f"{ask.argument}: the first {len(sample):,} labels are all {sample.y[0]}. If the "
            "dataset is sorted, shuffle it."
        )
    given_steps = steps if ask.steps is not None else None

    return Stream(
        lambda: one_epoch(given),
        steps,
        ask.loaded,
        ask.argument,
        sample,
        [identity, given_steps],
        None,
        tuple(notes),
    )


def _source_of(name: str) -> bytes:
    """Returns the code of the file that a function is in; nothing if there is none."""
    module = sys.modules.get(name.partition(":")[0])
    path = getattr(module, "__file__", None)
    try:
        return Path(path).read_bytes() if path else b""
    except OSError:
        return b""


SOURCES.register("dataset")(
    Source("dataset", "a tf.data.Dataset of batches or a keras.utils.PyDataset", is_dataset,
           _read_dataset)
)  # fmt: skip


# --- Arrays ---------------------------------------------------------------------------------------


def _read_arrays(given: Any, ask: Ask) -> Samples:
    if ask.steps is not None:
        raise ArgumentError(
            "--steps-per-epoch", "go with a dataset", ask.steps,
            f"{ask.argument} holds arrays, whose length is known.",
        )  # fmt: skip
    if is_stream(given):
        raise ArgumentError(
            ask.argument, "hold arrays, or be a dataset", type(given).__name__,
            "Wrap a generator: tf.data.Dataset.from_generator.",
        )  # fmt: skip
    given = _without_weights(given, ask)
    if ask.groups is None:
        return checked(given, ask.loaded, ask.argument)
    given, groups = take_groups(given, ask.groups, ask.argument)
    samples = checked(given, ask.loaded, ask.argument)
    return replace(samples, groups=check_length(groups, len(samples), ask.argument))


def _without_weights(given: Any, ask: Ask) -> Any:
    """Returns arrays, those of a file read; refuses weights of samples, which nothing would use."""
    inputs = len(ask.loaded.inputs)
    if isinstance(given, (str, Path)) and Path(given).suffix == ".npz":
        given = read_file(Path(given), ask.argument)
    got = None
    if isinstance(given, Mapping):
        names = {spec.name for spec in ask.loaded.inputs}
        got = next((name for name in _WEIGHTS if name in given and name not in names), None)
    elif isinstance(given, tuple) and len(given) == 3:
        # With two inputs, three arrays are those and the labels.
        weighted = inputs == 1 or isinstance(given[0], (list, tuple, Mapping))
        got = "(x, y, weights)" if weighted else None
    if got is not None:
        raise ArgumentError(
            ask.argument, "hold x and y", got, "Sample weights are not supported: leave them out."
        )
    return given


SOURCES.register("arrays")(
    Source("arrays", "an .npz file or arrays, x and y", lambda given: False, _read_arrays)
)


# --- Bounds ---------------------------------------------------------------------------------------


def _fitting(most: int, loaded: LoadedModel) -> int:
    """Returns how many samples, `most` at most, stay within `MOST_BYTES`."""
    size = sum(_bytes(spec) for spec in loaded.inputs)
    return max(2, min(most, MOST_BYTES // max(size, 1)))


def _bytes(spec: InputSpec) -> int:
    return 4 * int(np.prod([size or 1 for size in spec.shape]))


def in_memory(data: Samples | Stream) -> Samples:
    """Returns validation data as arrays.

    Raises:
        ArgumentError: a dataset holds more than fits.
    """
    if isinstance(data, Samples):
        return data
    most = _fitting(MOST_VALIDATION, data.loaded)
    parts: list[Samples] = []
    count = 0
    read = read_batches(data.epoch, data.loaded, data.argument, once=True)
    for _, batch in zip(range(data.steps), read, strict=False):
        parts.append(batch)
        count += len(batch)
        if count > most and data.count is None:
            raise ArgumentError(
                data.argument, f"end after {most:,} samples at most, which are held in memory",
                "more", "Shuffle it once and use .take(N).",
            )  # fmt: skip
        # Whether a dataset goes on is known when it has.
        if count >= most and data.count is not None:
            break
    return joined(parts).at(slice(most))
