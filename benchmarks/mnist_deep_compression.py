"""Trains LeNet-300-100 and LeNet-5 on MNIST and compresses them to files for microcontrollers.

    python benchmarks/mnist_deep_compression.py --data mnist.npz [--seeds 0 1 2] [--cache DIR]

The networks of the Deep Compression paper (Han et al. 2016, https://arxiv.org/abs/1510.00149,
tables 2 and 3), with their error as the bar: distilled from four teachers on distorted training
images, filters removed (GroupLasso, finalize), pruned (MagnitudePruning), clustered
(WeightClustering, for the smallest file together with QuantizationAwareTraining), int8, coded for
TensorFlow Lite Micro. The error is that of the .tflite file, run in TensorFlow Lite Micro on all
10,000 test images.

5,000 training images are kept for validation; widths, sparsities, clusters and rates below were
chosen on them. The teachers are the same for all seeds. About an hour and a half on two cores; with
--cache, each teacher and each stage that has been trained is not trained again. `mnist.npz` is the
file that keras.datasets.mnist loads.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl

import edgecompress as ec
from edgecompress.converters.loaders import load_model
from edgecompress.core.record import attach_record

VALIDATION = 5_000
# Distorted copies of each training image beside the image itself.
COPIES = 10
TEACHERS = 4
TEACHER_PASSES = 3
TEACHER_BATCH = 128
TEMPERATURE = 3.0
# Share of images without distortion in the last stage: what is left of a small network is to serve
# the images that it will see.
UNDISTORTED = 0.5
BATCH = 256
# Largest error in percent, largest file, and the file that was the goal.
BARS = {"lenet-300-100": (1.58, 25_000, 12_000), "lenet-5": (0.80, 23_000, 6_000)}
BOARD = "nucleo-l4r5zi"
STAGES = ("dense", "removed", "pruned", "clustered")


@dataclass(frozen=True)
class Recipe:
    """How a network is made small.

    Attributes:
        network: Which network.
        kept: Layer -> filters or neurons that stay.
        sparsity: Layer -> share of its weights that become zero.
        clusters: Layer -> different values of its weights beside zero; others keep their own.
        passes: Passes over the distorted training set: dense, removing, after removal, pruning,
            clustered.
        shared_rate: Learning rate of the shared values.
        initialization: Where k-means starts: `linear` gives outer values few members, which codes
            better, `density` is nearer to the weights where values are few.
        rounded: Whether the shared values are trained under the rounding of the int8 file.
    """

    network: str
    kept: dict[str, int]
    sparsity: dict[str, float]
    clusters: dict[str, int]
    passes: tuple[float, float, float, float, float]
    shared_rate: float
    initialization: str = "linear"
    rounded: bool = False


RECIPES = {
    "lenet-300-100": Recipe(
        network="lenet-300-100",
        kept={"fc1": 96, "fc2": 40},
        sparsity={"fc1": 0.8, "fc2": 0.65},
        clusters={"fc1": 15, "fc2": 15, "fc3": 15},
        passes=(4, 2, 4, 8, 3),
        shared_rate=3e-4,
    ),
    "lenet-5": Recipe(
        network="lenet-5",
        kept={"conv1": 14, "conv2": 28, "fc1": 64},
        sparsity={"conv2": 0.5, "fc1": 0.7},
        clusters={"conv1": 31, "conv2": 31, "fc1": 31, "fc2": 31},
        passes=(1, 0.25, 2, 3, 1),
        shared_rate=5e-4,
    ),
    "lenet-5, smallest": Recipe(
        network="lenet-5",
        kept={"conv1": 10, "conv2": 16, "fc1": 32},
        sparsity={"conv2": 0.56, "fc1": 0.695},
        # The first and the last layer are too small for a code to pay.
        clusters={"conv2": 11, "fc1": 7},
        passes=(1, 0.5, 8, 8, 4),
        shared_rate=5e-4,
        initialization="density",
        rounded=True,
    ),
}


def lenet_300_100() -> keras.Sequential:
    """Returns the fully connected network; of each image the middle 20 x 20 pixels are read."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            # The four rows and columns at each side are empty in nearly all images.
            kl.Cropping2D(4),
            kl.Flatten(),
            kl.Dense(300, activation="relu", name="fc1"),
            kl.Dense(100, activation="relu", name="fc2"),
            kl.Dense(10, name="fc3"),
        ],
        name="lenet_300_100",
    )


def lenet_5() -> keras.Sequential:
    """Returns the convolution network in the form that the paper used."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            kl.Conv2D(20, 5, activation="relu", name="conv1"),
            kl.MaxPooling2D(),
            kl.Conv2D(50, 5, activation="relu", name="conv2"),
            kl.MaxPooling2D(),
            kl.Flatten(),
            kl.Dense(500, activation="relu", name="fc1"),
            kl.Dense(10, name="fc2"),
        ],
        name="lenet_5",
    )


def teacher() -> keras.Sequential:
    """Returns a convolution network with BatchNormalization and dropout."""
    net = keras.Sequential([keras.Input((28, 28, 1))])
    for filters in (24, 48):
        net.add(kl.Conv2D(filters, 5, use_bias=False))
        net.add(kl.BatchNormalization())
        net.add(kl.ReLU())
        net.add(kl.MaxPooling2D())
    for layer in (
        kl.Flatten(),
        kl.Dropout(0.3),
        kl.Dense(256, activation="relu"),
        kl.Dropout(0.3),
        kl.Dense(10),
    ):
        net.add(layer)
    return net


NETWORKS = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


# --- Data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Images as uint8 (n, 28, 28, 1) and their digits; `x` holds the distorted copies, too."""

    x: np.ndarray
    y: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def distort(images: np.ndarray, seed: int) -> np.ndarray:
    """Returns images turned, scaled, sheared, shifted and warped at random.

    Simard, Steinkraus and Platt, Best Practices for Convolutional Neural Networks Applied to Visual
    Document Analysis, 2003: an affine map, and displacements smoothed by a Gaussian.
    """
    import tensorflow as tf

    count, size = len(images), images.shape[1]
    draws = iter(range(100))

    def draw(shape: list[int], bound: float) -> Any:
        return tf.random.stateless_uniform(shape, [seed, next(draws)], -bound, bound)

    def column() -> Any:
        return [count, 1, 1]

    angle, shear = draw(column(), 0.20), draw(column(), 0.15)
    wide, high = 1 + draw(column(), 0.12), 1 + draw(column(), 0.12)
    axis = tf.range(size, dtype=tf.float32) - (size - 1) / 2
    v, u = tf.meshgrid(axis, axis, indexing="ij")
    cos, sin = tf.cos(angle), tf.sin(angle)
    column_at = (cos * u + (shear - sin) * v) / wide + draw(column(), 1.5)
    row_at = (sin * u + cos * v) / high + draw(column(), 1.5)
    bell = np.exp(-(np.arange(-10, 11) ** 2) / (2 * 4.0**2))
    smooth = np.outer(bell, bell) / bell.sum() ** 2
    kernel = np.repeat(smooth[:, :, None, None], 2, axis=2).astype(np.float32)
    warp = tf.nn.depthwise_conv2d(draw([count, size, size, 2], 1.0), kernel, [1] * 4, "SAME") * 32
    column_at += warp[..., 0] + (size - 1) / 2
    row_at += warp[..., 1] + (size - 1) / 2

    pixels = tf.reshape(tf.cast(images, tf.float32), [count, size * size])

    def at(row: Any, col: Any) -> Any:
        inside = (row >= 0) & (row < size) & (col >= 0) & (col < size)
        place = tf.clip_by_value(row, 0, size - 1) * size + tf.clip_by_value(col, 0, size - 1)
        place = tf.reshape(tf.cast(place, tf.int32), [count, size * size])
        values = tf.reshape(tf.gather(pixels, place, batch_dims=1), tf.shape(row))
        return tf.where(inside, values, 0.0)

    top, left = tf.floor(row_at), tf.floor(column_at)
    down, right = row_at - top, column_at - left
    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    values = tf.round((1 - down) * upper + down * lower)
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8).numpy()[..., None]


def load(path: Path) -> Data:
    """Reads MNIST, keeps the validation images apart and adds the distorted copies."""
    with np.load(path) as file:
        images, labels = file["x_train"], file["y_train"].astype(np.int64)
        test, test_labels = file["x_test"][..., None], file["y_test"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    held, used = order[-VALIDATION:], order[:-VALIDATION]
    copies = [images[used][..., None]]
    for copy in range(COPIES):
        parts = np.array_split(images[used], 8)
        copies += [distort(part, 1000 * copy + number) for number, part in enumerate(parts)]
    return Data(
        np.concatenate(copies),
        np.tile(labels[used], COPIES + 1),
        images[held][..., None],
        labels[held],
        test,
        test_labels,
    )


def scaled(images: np.ndarray) -> np.ndarray:
    """Returns images as the networks take them, 0 to 1."""
    return images.astype(np.float32) / 255


# --- Training ------------------------------------------------------------------------------------


def batches(
    images: Any, labels: Any, seed: int, batch: int = BATCH, undistorted: float = 0.0
) -> Any:
    """Returns an endless tf.data.Dataset of batches of two tensors, mixed anew in each pass.

    Args:
        images: The undistorted ones first, then as many for each copy.
        labels: One for each image.
        seed: Of the order.
        batch: Images of a batch.
        undistorted: Share of images whose undistorted form takes their place.
    """
    import tensorflow as tf

    count, steps = len(images), len(images) // batch

    def order(number: Any) -> Any:
        key = [seed, tf.cast(number, tf.int32)]
        mixed = tf.random.experimental.stateless_shuffle(tf.range(count), seed=key)
        replaced = tf.random.stateless_uniform((count,), seed=key) < undistorted
        mixed = tf.where(replaced, mixed % (count // (COPIES + 1)), mixed)
        return tf.data.Dataset.from_tensor_slices(tf.reshape(mixed[: steps * batch], (-1, batch)))

    def pick(index: Any) -> Any:
        return tf.cast(tf.gather(images, index), tf.float32) / 255, tf.gather(labels, index)

    return tf.data.Dataset.range(1_000_000).flat_map(order).map(pick).prefetch(8)


def tensors(*arrays: np.ndarray) -> Any:
    """Returns arrays as tensors, which every fit then shares."""
    import tensorflow as tf

    return [tf.constant(array) for array in arrays]


def soft_loss(targets: Any, outputs: Any) -> Any:
    """Returns the distillation loss, `T**2 * CE(softmax(t / T), softmax(z / T))`.

    Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531, section 2; the targets are the
    softened outputs of the teachers.
    """
    scaled_outputs = outputs / TEMPERATURE
    loss = keras.ops.categorical_crossentropy(targets, scaled_outputs, from_logits=True)
    return loss * TEMPERATURE**2


def error(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of wrong answers in percent."""
    outputs = np.concatenate(
        [np.asarray(model.predict_on_batch(scaled(part))) for part in np.array_split(x, 10)]
    )
    return 100 * float((outputs.argmax(1) != y).mean())


def teacher_outputs(number: int, data: Data, order: Any, cache: Path | None) -> np.ndarray:
    """Trains a teacher on the digits and returns its outputs for the training images."""
    path = None if cache is None else cache / f"teacher_{number}.npy"
    if path is not None and path.exists():
        return np.load(path)
    start = time.monotonic()
    keras.utils.set_random_seed(100 + number)
    model = teacher()
    steps = int(TEACHER_PASSES * len(data.y) // TEACHER_BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=20,
    )
    model.fit(order, steps_per_epoch=steps, epochs=1, verbose=0)
    wrong = error(model, data.x_validation, data.y_validation)
    say(f"teacher {number}: {wrong:.2f} % on validation, {time.monotonic() - start:.0f} s")
    starts = range(0, len(data.x), 5_000)
    parts = [model.predict_on_batch(scaled(data.x[at : at + 5_000])) for at in starts]
    outputs = np.concatenate(parts)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, outputs)
    return outputs


def soft_targets(data: Data, cache: Path | None) -> np.ndarray:
    """Returns the teachers' softened outputs for the training images."""
    images, labels = tensors(data.x, data.y)
    total = np.zeros((len(data.x), 10), np.float32)
    for number in range(TEACHERS):
        order = batches(images, labels, number, TEACHER_BATCH)
        total += teacher_outputs(number, data, order, cache) / TEACHERS
    total = np.exp((total - total.max(1, keepdims=True)) / TEMPERATURE)
    return total / total.sum(1, keepdims=True)


class Trainer:
    """Trains one network through the stages, each fit with a rate that falls to zero."""

    def __init__(self, data: Data, images: Any, soft: Any, seed: int) -> None:
        """Takes the images and what the teachers say to them, as tensors."""
        self._data, self._images, self._soft = data, images, soft
        self._order = self._seed = seed

    def begin(self, stage: str) -> None:
        """Gives a stage its own order of the images."""
        self._order = 100 * self._seed + 10 * STAGES.index(stage)

    def steps(self, passes: float) -> int:
        """Returns how many batches so many passes over the training images are."""
        return int(passes * len(self._images) // BATCH)

    def fit(
        self,
        model: keras.Model,
        passes: float,
        rate: float,
        *callbacks: Any,
        undistorted: float = 0.0,
    ) -> None:
        """Trains on the teachers' outputs."""
        self._order += 1
        steps = self.steps(passes)
        epochs = max(round(passes), 2)
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        model.compile(keras.optimizers.Adam(schedule), soft_loss, steps_per_execution=20)
        model.fit(
            batches(self._images, self._soft, self._order, undistorted=undistorted),
            steps_per_epoch=steps // epochs,
            epochs=epochs,
            callbacks=list(callbacks),
            verbose=0,
        )

    def report(self, stage: str, model: keras.Model, start: float) -> None:
        """Prints the error on the validation images."""
        wrong = error(model, self._data.x_validation, self._data.y_validation)
        say(f"  {stage}: {wrong:.2f} % on validation, {time.monotonic() - start:.0f} s")


class Stages:
    """Runs the stages of a recipe, each only where the cache does not hold its network."""

    def __init__(self, trainer: Trainer, cache: Path | None, seed: int) -> None:
        """Takes the trainer, the folder for trained networks and the seed."""
        self._trainer, self._cache, self._seed = trainer, cache, seed
        self._start = time.monotonic()

    def run(self, name: str, stage: str, train: Callable[[], keras.Model]) -> keras.Model:
        """Returns the network of a stage, trained or read."""
        path = None if self._cache is None else self._cache / f"{name}_{stage}_{self._seed}.keras"
        if path is not None and path.exists():
            loaded = load_model(path)
            model = loaded.model
            if loaded.record is not None:  # With the ranges that training learnt.
                attach_record(model, loaded.record)
        else:
            # Every stage has draws of its own, whether those before it were trained or read.
            keras.utils.set_random_seed(self._seed)
            self._trainer.begin(stage)
            model = train()
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                model.save(path)
        self._trainer.report(stage, model, self._start)
        return model


def small_network(name: str, trainer: Trainer, cache: Path | None, seed: int) -> keras.Model:
    """Returns a network that has gone through all stages of its recipe."""
    recipe = RECIPES[name]
    stages = Stages(trainer, cache, seed)
    dense, removing, removed, pruning, clustered = recipe.passes

    def train() -> keras.Model:
        model = NETWORKS[recipe.network]()
        trainer.fit(model, dense, 2e-3)
        return model

    model = stages.run(recipe.network, "dense", train)

    def remove() -> keras.Model:
        lasso = [
            ec.GroupLasso(
                2e-5,
                final_sparsity=1 - kept / model.get_layer(layer).get_weights()[0].shape[-1],
                layers=[layer],
                end_epoch=1,
            )
            for layer, kept in recipe.kept.items()
        ]
        trainer.fit(model, removing, 1e-3, *lasso)
        small = ec.finalize(model)
        trainer.fit(small, removed, 2e-3)
        return small

    model = stages.run(name, "removed", remove)

    def prune() -> keras.Model:
        end = trainer.steps(pruning) // 2
        pruners = [
            ec.MagnitudePruning(
                ec.PolynomialDecay(final_sparsity=share, begin_step=0, end_step=end, frequency=100),
                layers=[layer],
            )
            for layer, share in recipe.sparsity.items()
        ]
        trainer.fit(model, pruning, 2e-3, *pruners)
        return model

    model = stages.run(name, "pruned", prune)

    def cluster() -> keras.Model:
        callbacks = [ec.WeightClustering(recipe.clusters, recipe.initialization)]
        if recipe.rounded:
            callbacks.append(ec.QuantizationAwareTraining(ec.Int8()))
        trainer.fit(model, clustered, recipe.shared_rate, *callbacks, undistorted=UNDISTORTED)
        return ec.finalize(model)

    return stages.run(name, "clustered", cluster)


# --- The file -----------------------------------------------------------------------------------


def row(name: str, seed: int, model: keras.Model, data: Data) -> str:
    """Exports a network and returns its row of the table."""
    from edgecompress.converters import float32, int8
    from edgecompress.converters.accuracy import accuracy
    from edgecompress.converters.compressed import compress
    from edgecompress.flatbuffers.reading import read_tflite
    from edgecompress.targets.profile import load_target
    from edgecompress.targets.tflm.arena import compute_arena
    from edgecompress.targets.tflm.latency import predict

    calibration = [scaled(data.x_validation[:500])]
    plain = int8.strip_names(int8.convert(float32.convert(model), calibration=calibration))
    result = compress(plain, samples=100)
    file = result.artifact.data
    test = (scaled(data.x_test),)
    top1 = accuracy(file, test, data.y_test, engine="tflm").top1
    board = load_target(BOARD)
    flats = read_tflite(plain.data), read_tflite(file)
    arenas = [compute_arena(flat, str(board.core), str(board.kernels)).used for flat in flats]
    times = [predict(flat, board).microseconds or 0.0 for flat in flats]
    network = RECIPES[name].network
    dense = NETWORKS[network]().count_params()
    kept = sum(int(np.count_nonzero(w)) for w in model.get_weights())
    bar, size, goal = BARS[network]
    # In hundredths: 1 - 0.992 is more than 0.008.
    wrong = round(100 * (1 - top1), 2)
    met = "goal" if wrong <= bar and len(file) <= goal else (
        "bar" if wrong <= bar and len(file) <= size else "no"
    )  # fmt: skip
    return (
        f"| {name} | {seed} | {dense:,} | {kept:,} | "
        f"{error(model, data.x_test, data.y_test):.2f} | {len(plain.data):,} | {len(file):,} | "
        f"{wrong:.2f} | {arenas[0]:,} | {arenas[1]:,} | {times[0] / 1000:.1f} | "
        f"{(times[1] - times[0]) / 1000:.1f} | {met} |"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--cache", type=Path, help="folder for what has been trained")
    arguments = parser.parse_args()
    data = load(arguments.data)
    images, soft = tensors(data.x, soft_targets(data, arguments.cache))
    print(
        "| recipe | seed | parameters | kept | Keras error % | int8 B | coded B | "
        f"error % in TFLM | arena int8 B | arena coded B | int8 ms, {BOARD} | decoding ms | met |\n"
        "| --- |" + " ---: |" * 11 + " --- |",
        flush=True,
    )
    for name in arguments.recipes:
        for seed in arguments.seeds:
            say(f"{name}, seed {seed}")
            trainer = Trainer(data, images, soft, seed)
            model = small_network(name, trainer, arguments.cache, seed)
            print(row(name, seed, model, data), flush=True)


if __name__ == "__main__":
    main()
