"""Prints what QuantizationAwareTraining works with: settings of compile and fit, other callbacks.

For each setting, in a process of its own, a small convolutional network trains for two epochs on
random images whose classes differ by a shift. The table says whether the losses are those of plain
settings on TensorFlow (where the setting should not change them), and compares the int8 file, run
in LiteRT, with `simulate` on 500 images: equal predictions, and the largest difference in steps of
the output. With `--backend jax`, Keras trains on JAX, and the saved model is exported as usual.

Run: python benchmarks/works_with.py [--backend jax] [--settings mixed_float16 ...] [--compiled]
[--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
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

EPOCHS, BATCH, SAMPLES = 2, 32, 512


def data(seed: int, samples: int = SAMPLES) -> tuple[Any, Any]:
    """Returns images (samples, 12, 12, 2) and classes 0 to 3."""
    import numpy as np

    random = np.random.default_rng(seed)
    y = random.integers(0, 4, samples)
    x = random.normal(size=(samples, 12, 12, 2)).astype("f4")
    x[..., 0] += 0.6 * (y % 2)[:, None, None]
    x[..., 1] += 0.6 * (y // 2)[:, None, None]
    return x, y


def network(kind: Any = None) -> Any:
    """Convolution, depthwise-separable block, residual sum, pooling, Dense."""
    import keras
    import numpy as np
    from keras import layers

    inputs = keras.Input((12, 12, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    first = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise", activation="relu")(first)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, first]))
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dense(4, dtype="float32", name="head")(layers.Flatten(name="flat")(x))
    model = (kind or keras.Model)(inputs, x)
    # The same on every backend.
    random = np.random.default_rng(5)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            limit = np.sqrt(6 / np.prod(variable.shape[:-1]))
            variable.assign(random.uniform(-limit, limit, variable.shape).astype("f4"))
    return model


def train(
    callbacks: list[Any] = (),  # type: ignore[assignment]
    optimizer: Any = None,
    model: Any = None,
    compiled: dict[str, Any] | None = None,
    **fit: Any,
) -> tuple[Any, list[float]]:
    """Trains; returns the model and the loss of each epoch."""
    import keras

    import edgecompress as ec

    model = model or network()
    model.compile(
        optimizer or keras.optimizers.SGD(0.02, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"jit_compile": False, **(compiled or {})},
    )
    x, y = data(0)
    quantization = ec.QuantizationAwareTraining()
    done = model.fit(
        x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0,
        callbacks=[*callbacks, quantization], **fit,
    )  # fmt: skip
    return model, done.history["loss"]


# --- settings: name -> (trains, whether the losses should be those of plain settings) -------------

_Setting = Callable[[], tuple[Any, list[float]]]
SETTINGS: dict[str, tuple[_Setting, bool]] = {}
# Those of one backend alone.
ONLY: dict[str, str] = {}


def setting(name: str, same: bool = False, only: str = "") -> Callable[[_Setting], _Setting]:
    """Adds a setting."""

    def add(function: _Setting) -> _Setting:
        SETTINGS[name] = function, same
        if only:
            ONLY[name] = only
        return function

    return add


setting("plain", True)(train)
setting("steps_per_execution=4", True)(lambda: train(compiled={"steps_per_execution": 4}))
setting("jit_compile=True", True)(lambda: train(compiled={"jit_compile": True}))
setting("run_eagerly=True", True)(lambda: train(compiled={"run_eagerly": True}))
setting("class_weight")(lambda: train(class_weight={0: 2.0, 1: 1.0, 2: 0.5, 3: 1.0}))


@setting("mixed_float16")
def _mixed() -> tuple[Any, list[float]]:
    import keras

    keras.mixed_precision.set_global_policy("mixed_float16")
    return train()


@setting("gradient accumulation")
def _accumulated() -> tuple[Any, list[float]]:
    import keras

    return train(optimizer=keras.optimizers.SGD(0.02, gradient_accumulation_steps=2))


@setting("moving average of weights")
def _averaged() -> tuple[Any, list[float]]:
    import keras

    return train(optimizer=keras.optimizers.Adam(0.003, use_ema=True, ema_momentum=0.9))


@setting("sample_weight")
def _weighted() -> tuple[Any, list[float]]:
    import numpy as np

    return train(sample_weight=np.linspace(0.5, 1.5, SAMPLES).astype("f4"))


@setting("custom train_step", True, "tensorflow")
def _own_step() -> tuple[Any, list[float]]:
    import keras
    import tensorflow as tf

    class OwnStep(keras.Model):
        def train_step(self, batch: Any) -> dict[str, Any]:
            x, y = batch
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            self._loss_tracker.update_state(loss, sample_weight=BATCH)
            return self.compute_metrics(x, y, None, None)

    return train(model=network(OwnStep))


@setting("DataParallel, 2 devices", True, "jax")
def _parallel() -> tuple[Any, list[float]]:
    import keras

    keras.distribution.set_distribution(keras.distribution.DataParallel())
    return train(model=network())


@setting("MirroredStrategy, 2 devices", only="tensorflow")
def _mirrored() -> tuple[Any, list[float]]:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, devices)
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(1)
    )
    with strategy.scope():
        return train(model=network())


@setting("BackupAndRestore, interrupted")
def _restored() -> tuple[Any, list[float]]:
    import keras

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        backup = keras.callbacks.BackupAndRestore(folder)
        with contextlib.suppress(KeyboardInterrupt):
            train([backup, Interrupt()])
        return train([keras.callbacks.BackupAndRestore(folder)])


@setting("EarlyStopping, restored weights")
def _early() -> tuple[Any, list[float]]:
    import keras

    return train([keras.callbacks.EarlyStopping("loss", restore_best_weights=True)])


def _with(*callbacks: Callable[[], Any]) -> _Setting:
    return lambda: train([make() for make in callbacks])


def _pruning(pattern: str) -> Callable[[], Any]:
    def make() -> Any:
        import edgecompress as ec
        from edgecompress.patterns.blocks import Blocks
        from edgecompress.patterns.filters import Filters
        from edgecompress.patterns.n_of_m import NOfM
        from edgecompress.patterns.weights import Weights

        patterns: dict[str, Callable[[], Any]] = {
            "single weights": Weights,
            "blocks": lambda: Blocks(1, 4),
            "2 of 4": lambda: NOfM(2, 4),
            "filters": Filters,
        }
        schedule = ec.ConstantSparsity(0.5, begin_step=1, frequency=4)
        return ec.Pruning(schedule, pattern=patterns[pattern]())

    return make


for _pattern in ("single weights", "blocks", "2 of 4", "filters"):
    setting(f"Pruning, {_pattern}")(_with(_pruning(_pattern)))


@setting("GroupLasso")
def _lasso() -> tuple[Any, list[float]]:
    import edgecompress as ec

    return train([ec.GroupLasso(0.01)])


@setting("WeightClustering")
def _clustered() -> tuple[Any, list[float]]:
    import edgecompress as ec

    return train([ec.WeightClustering(16)])


# --- measuring ------------------------------------------------------------------------------------


def train_elsewhere(name: str, backend: str) -> tuple[Any, list[float]]:
    """Trains on another backend; returns the model that it saved, and the losses."""
    import edgecompress as ec

    flags = "--xla_force_host_platform_device_count=2" if "DataParallel" in name else ""
    environment = {**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        command = [sys.executable, __file__, "--train", name, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return ec.load_model(path), json.loads(done.stdout.splitlines()[-1])


def measure(name: str, backend: str) -> dict[str, Any]:
    """Trains in one setting; returns what the table shows."""
    import numpy as np

    import edgecompress as ec
    from edgecompress.converters import float32, int8
    from edgecompress.engines.run import run_engine

    here = backend == "tensorflow"
    model, losses = SETTINGS[name][0]() if here else train_elsewhere(name, backend)
    x, _ = data(1, 500)
    artifact = int8.convert(float32.convert(model), calibration=[x[:100]])
    flat = artifact.flat
    into, out = (flat.tensors[side[0]] for side in (flat.inputs, flat.outputs))
    codes = np.clip(np.rint(x / np.float32(into.scales[0])) + into.zero_points[0], -128, 127)
    (have,) = run_engine("litert", artifact.data, [codes.astype(np.int8)]).outputs
    have = have.reshape(len(x), -1).astype(int)
    simulated = ec.simulate(model).predict(x, verbose=0)
    want = np.rint(simulated / out.scales[0]).astype(int) + int(out.zero_points[0])
    chosen = want[np.arange(len(x)), have.argmax(1)]
    kernels = [np.array(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]
    return {
        "losses": [float(loss) for loss in losses],
        "agreement": float(np.mean(chosen == want.max(1))),
        "steps": int(np.abs(want - have).max()),
        "zeros": float(np.mean(np.concatenate([k.ravel() for k in kernels]) == 0)),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument(
        "--compiled", action="store_true", help="compile operators of small kernels, too"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        name, path = arguments.train
        model, losses = SETTINGS[name][0]()
        model.save(path)
        print(json.dumps([float(loss) for loss in losses]))
        return
    if arguments.measure:
        if arguments.compiled:
            from edgecompress.callbacks import fused

            fused._WORTHWHILE = 1
        print(json.dumps(measure(*arguments.measure)))
        return
    found: dict[str, Any] = {}
    plain: list[float] = []
    print("| setting | losses | predictions equal | largest difference | zeros |")
    print("| --- | --- | --- | --- | --- |")
    backend = arguments.backend
    chosen = arguments.settings or [n for n in SETTINGS if ONLY.get(n, backend) == backend]
    rows = dict.fromkeys([("plain", "tensorflow"), *((name, backend) for name in chosen)])
    for name, trained_on in rows:
        command = [sys.executable, __file__, "--measure", name, trained_on]
        command += ["--compiled"] if arguments.compiled else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            found[name] = {"error": (done.stderr.strip().splitlines() or ["?"])[-1]}
            print(f"| {name} | fails: {found[name]['error'][:160]} | | | |", flush=True)
            continue
        row = found[name] = json.loads(done.stdout.splitlines()[-1])
        plain = plain or row["losses"]
        pairs = zip(row["losses"], plain, strict=False)
        apart = max(abs(a - b) for a, b in pairs) / plain[0]
        losses = f"plain's, within {apart:.2%} of the first" if SETTINGS[name][1] else "its own"
        title = name if trained_on == backend else f"{name}, {trained_on}"
        numbers = f"{row['agreement']:.2%} | {row['steps']} | {row['zeros']:.0%}"
        print(f"| {title} | {losses} | {numbers} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
