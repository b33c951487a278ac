"""Prints how each callback's losses on Keras's JAX backend differ from those on TensorFlow.

Three small networks train for two epochs of eight steps from the same weights, with each callback.
The table has the largest difference between the two backends in the losses of an epoch, and whether
the same weights are zero. The first row is training without a callback, the second TensorFlow
against itself with `jit_compile=True`: XLA adds in another order. The row `rounded updates` is
TensorFlow against itself, where each step's change of the weights is off by a millionth, which is
what sums of gradients differ by.

Run: python benchmarks/backends.py [--callbacks Pruning ...] [--json FILE]
     python benchmarks/backends.py --operators

With `--operators`, it prints what share of the values of single operators XLA computes otherwise,
on the same inputs: values on a grid of 8 bits, as in quantization-aware training, and their codes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

BATCH, SAMPLES, EPOCHS = 32, 256, 2
NETWORKS = ("MLP", "CNN", "residual")


def network(name: str) -> Any:
    """Returns a network with the same weights on every backend."""
    import keras
    import numpy as np
    from keras import layers

    x = inputs = keras.Input((8, 8, 3), name="image")
    if name == "MLP":
        x = layers.Dense(32, activation="relu", name="first")(layers.Flatten(name="flat")(x))
        x = layers.LayerNormalization(name="norm")(x)
        x = layers.Dense(16, activation="relu", name="second")(x)
    else:
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name="norm")(x)
        first = x = layers.ReLU(name="relu")(x)
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
        x = layers.Conv2D(8, 3, padding="same", name="second")(x)
        x = layers.Add(name="sum")([x, first]) if name == "residual" else x
        x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="last_relu")(x))
        x = layers.Flatten(name="flat")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            limit = np.sqrt(6 / np.prod(variable.shape[:-1]))
            variable.assign(random.uniform(-limit, limit, variable.shape).astype("f4"))
    return model


def _off(seed: int) -> Any:
    """Returns a callback that changes each step's updates by up to a millionth of the largest."""
    import keras
    import numpy as np

    class Off(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.random = np.random.default_rng(seed)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.old = [np.array(v, np.float64) for v in self.model.trainable_variables]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for variable, old in zip(self.model.trainable_variables, self.old, strict=True):
                new = np.array(variable, np.float64)
                error = 1e-6 * np.abs(new - old).max()
                new += self.random.uniform(-error, error, new.shape)
                variable.assign(new.astype("f4"))

    return Off()


def callbacks() -> dict[str, Callable[[], list[Any]]]:
    """Returns what each row of the table trains with."""
    import edgecompress as ec

    schedule = ec.PolynomialDecay(0.5, begin_step=0, end_step=12, frequency=2)
    quantized = ec.QuantizationAwareTraining
    return {
        "none": list,
        "none, jit_compile": list,
        "Pruning": lambda: [ec.Pruning(schedule)],
        "Pruning, taylor, filters": lambda: [ec.Pruning(schedule, "taylor", "filters")],
        "GroupLasso": lambda: [ec.GroupLasso(1e-3, final_sparsity=0.5, end_epoch=1)],
        "WeightClustering": lambda: [ec.WeightClustering(8)],
        "Binarize": lambda: [ec.Binarize(first_and_last=True)],
        "Ternarize, twn": lambda: [ec.Ternarize(first_and_last=True)],
        "Ternarize, ttq": lambda: [ec.Ternarize("ttq", first_and_last=True)],
        "FixedPointTraining, nearest": lambda: [ec.FixedPointTraining(8, 6, "nearest")],
        "QAT, int16x8": lambda: [quantized(ec.Int16x8())],
        "QAT, int8": lambda: [quantized()],
        "QAT, int8, jit_compile": lambda: [quantized()],
        "QAT, int8, rounded updates": lambda: [quantized(), _off(0)],
        "QAT, int8, rounded updates, 2": lambda: [quantized(), _off(2)],
        "Pruning and QAT": lambda: [ec.Pruning(schedule), quantized()],
    }


def train(chosen: list[str], output: Path) -> None:
    """Trains on this process's backend; writes losses and zeros."""
    import keras
    import numpy as np

    random = np.random.default_rng(0)
    y = random.integers(0, 4, SAMPLES)
    x = random.normal(size=(SAMPLES, 8, 8, 3)).astype("f4")
    x[..., 0] += 0.6 * (y % 2)[:, None, None]
    x[..., 1] += 0.6 * (y // 2)[:, None, None]
    found: dict[str, Any] = {}
    for row in chosen:
        for name in NETWORKS:
            model = network(name)
            model.compile(
                keras.optimizers.SGD(0.02, momentum=0.9),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile="jit_compile" in row or keras.backend.backend() == "jax",
            )
            done = model.fit(
                x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0,
                callbacks=callbacks()[row](),
            )  # fmt: skip
            weights = [keras.ops.convert_to_numpy(v) for v in model.weights]
            zeros = [np.flatnonzero(w == 0).tolist() for w in weights]
            found[f"{row}/{name}"] = {"loss": done.history["loss"], "zeros": zeros}
    output.write_text(json.dumps(found, default=float))


def operators() -> None:
    """Prints the share of values that differ between TensorFlow and XLA, operator by operator."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    scale = np.float32(0.0173)
    codes = random.integers(-128, 128, (BATCH, 8, 8, 8)).astype("f4")
    kernel = random.integers(-127, 128, (3, 3, 8, 8)).astype("f4")
    dense = random.integers(-127, 128, (512, 32)).astype("f4")
    gradient = random.normal(size=codes.shape).astype("f4")
    flat = codes.reshape(BATCH, -1)

    def convolution(x: Any, w: Any) -> Any:
        return tf.nn.conv2d(x, w, 1, "SAME")

    def normalization(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3)

    def of_kernel(x: Any, w: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(w)
            product = tf.reduce_sum(convolution(x, w) * dy)
        return tape.gradient(product, w)

    rows: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "convolution": (convolution, (scale * codes, scale * kernel)),
        "convolution of codes": (convolution, (codes, kernel)),
        "codes, times scale, plus bias": (
            lambda x, s, b: x * s + b,
            (convolution(codes, kernel), scale * scale * random.random(8), random.random(8)),
        ),
        "Dense": (tf.matmul, (scale * flat, scale * dense)),
        "Dense of codes": (tf.matmul, (flat, dense)),
        "BatchNormalization": (normalization, (scale * codes,)),
        "gradient of a kernel": (of_kernel, (scale * codes, scale * kernel, gradient)),
    }
    print("| operator | values that differ | by, of the largest |\n| --- | ---: | ---: |")
    for name, (function, values) in rows.items():
        tensors = [tf.constant(value, tf.float32) for value in values]
        plain, compiled = (
            tf.function(function, jit_compile=jit, autograph=False)(*tensors).numpy()
            for jit in (False, True)
        )
        error = np.abs(plain - compiled).max() / np.abs(plain).max()
        print(f"| {name} | {100 * np.mean(plain != compiled):.0f} % | {error:.0e} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--callbacks", nargs="+", help="rows, by their beginnings; default all")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--operators", action="store_true", help="compare single operators instead")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.operators:
        operators()
        return
    begins = tuple(arguments.callbacks or [""])
    chosen = [row for row in callbacks() if row == "none" or row.startswith(begins)]
    if arguments.train:
        train(chosen, arguments.train)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("tensorflow", "jax"):
            path = Path(folder) / backend
            subprocess.run(
                [sys.executable, __file__, "--train", str(path), "--callbacks", *begins],
                env={**os.environ, "KERAS_BACKEND": backend},
                check=True,
            )
            results[backend] = json.loads(path.read_text())
    print(f"| callback | {' | '.join(NETWORKS)} | same zeros |")
    print("| --- | --- | --- | --- | --- |")
    table: dict[str, Any] = {}
    for row in chosen:
        apart, zeros = [], True
        for name in NETWORKS:
            itself = next((k for k in (", jit_compile", ", rounded updates") if k in row), None)
            want = results["tensorflow"][f"{row.partition(itself)[0] if itself else row}/{name}"]
            other = "tensorflow" if itself else "jax"
            have = results[other][f"{row}/{name}"]
            apart.append(max(abs(a - b) for a, b in zip(have["loss"], want["loss"], strict=True)))
            zeros &= have["zeros"] == want["zeros"]
        table[row] = {"apart": dict(zip(NETWORKS, apart, strict=True)), "zeros": zeros}
        title = row.replace(", jit_compile", " on TensorFlow with and without `jit_compile`")
        cells = " | ".join(f"{value:.0e}" for value in apart)
        print(f"| {title} | {cells} | {'yes' if zeros else 'no'} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
