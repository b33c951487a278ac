"""Compresses LeNet-300-100 and LeNet-5 on MNIST with `edgecompress.compress` alone.

    python benchmarks/mnist_compress.py --data mnist.npz --work FOLDER [--seeds 0 1 2]
        [--networks lenet-300-100]

Two larger networks teach on distorted images; `labels` is the same without them. 5,000 training
images are for validation. The error is that of the file in TensorFlow Lite Micro on all test
images. FOLDER keeps what is finished.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers as kl

import edgecompress as ec
from edgecompress.converters.accuracy import accuracy

COPIES, TEACHERS, BATCH = 4, 2, 256
COMMON = {"batch_size": BATCH, "targets": ["nucleo-l4r5zi"]}
VARIANTS = {"taught": {"distillation": "distillation:temperature=3,weight=1"},
            "labels": {"distill": False}}  # fmt: skip
RUNS = {
    "lenet-300-100": {
        "remove_channels": {"fc1": 0.68, "fc2": 0.6}, "sparsity": {"fc1": 0.8, "fc2": 0.65},
        "clusters": 15, "epochs": {"remove": 8, "prune": 10, "cluster": 4},
        "learning_rate": {"*": 2e-3, "cluster": 3e-4},
    },
    "lenet-5": {
        "remove_channels": {"conv1": 0.5, "conv2": 0.68, "fc1": 0.936},
        "sparsity": {"conv2": 0.56, "fc1": 0.695}, "clusters": {"conv2": 11, "fc1": 7},
        "cluster_start": "density", "cluster_rounded": True,
        "epochs": {"remove": 8, "prune": 10, "cluster": 5},
        "learning_rate": {"*": 2e-3, "cluster": 5e-4},
    },
}  # fmt: skip


def network(name: str) -> keras.Sequential:
    """Returns a network by name; a teacher is a larger LeNet-5."""
    if name == "lenet-300-100":  # Of each image the middle 20 x 20 pixels are read.
        body = [kl.Cropping2D(4), kl.Flatten(), kl.Dense(300, "relu", name="fc1"),
                kl.Dense(100, "relu", name="fc2"), kl.Dense(10, name="fc3")]  # fmt: skip
    else:
        first, second, units, rate = (20, 50, 500, 0.0) if name == "lenet-5" else (24, 48, 256, 0.3)
        body = [kl.Conv2D(first, 5, activation="relu", name="conv1"), kl.MaxPooling2D(),
                kl.Conv2D(second, 5, activation="relu", name="conv2"), kl.MaxPooling2D(),
                kl.Flatten(), *([kl.Dropout(rate)] if rate else []),
                kl.Dense(units, "relu", name="fc1"), kl.Dense(10, name="fc2")]  # fmt: skip
    return keras.Sequential([keras.Input((28, 28, 1)), *body], name=name.replace("-", "_"))


def images(path: Path, cache: Path) -> tuple[np.ndarray, ...]:
    """Returns training images with distorted copies, validation and test images, and labels."""
    with np.load(path) as file:
        x, test = (file[k][..., None].astype("float32") / 255 for k in ("x_train", "x_test"))
        y, y_test = (file[k].astype(int) for k in ("y_train", "y_test"))
    order = np.random.default_rng(0).permutation(len(x))
    held, used = order[-5_000:], order[:-5_000]
    if not cache.exists():
        keras.utils.set_random_seed(0)
        fill = {"fill_mode": "constant", "fill_value": 0.0}
        distort = keras.Sequential([kl.RandomRotation(0.03, **fill), kl.RandomZoom(0.12, **fill),
                                    kl.RandomTranslation(0.06, 0.06, **fill)])  # fmt: skip
        parts = np.array_split(np.tile(x[used], (COPIES, 1, 1, 1)), 200)
        made = np.concatenate([np.asarray(distort(part, training=True)) for part in parts])
        np.save(cache, np.rint(255 * np.clip(made, 0, 1)).astype("uint8"))
    copies, labels = np.load(cache).astype("float32") / 255, np.tile(y[used], COPIES + 1)
    return np.concatenate([x[used], copies]), labels, x[held], y[held], test, y_test


def trained(name: str, seed: int, x: np.ndarray, y: np.ndarray, work: Path) -> Path:
    """Trains a network on the labels, unless its file exists."""
    path = work / f"{name}_{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = network(name)
        rate = keras.optimizers.schedules.CosineDecay(2e-3, 2 * len(x) // BATCH)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss, steps_per_execution=20)
        model.fit(x, y, BATCH, epochs=2, verbose=0)
        model.save(path)
    return path


def main() -> None:
    """Makes what is missing, and prints bytes and errors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", choices=list(RUNS), default=list(RUNS))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = asked.work / "results.json"
    done = json.loads(rows.read_text()) if rows.exists() else {}
    x, y, x_held, y_held, x_test, y_test = images(asked.data, asked.work / "copies.npy")
    teachers = [trained("teacher", number, x, y, asked.work) for number in range(TEACHERS)]
    for key in [f"{n}, {s}, {v}" for n in asked.networks for s in asked.seeds for v in VARIANTS]:
        name, seed, variant = key.split(", ")
        if key not in done:
            model = keras.models.load_model(trained(name, int(seed), x, y, asked.work))
            out = asked.work / key.replace(", ", "_")
            taught = {"teachers": teachers} if variant == "taught" else {}
            result = ec.compress(
                model, (x, y), validation=(x_held, y_held), output=out, seed=int(seed),
                **RUNS[name], **COMMON, **VARIANTS[variant], **taught,
            )  # fmt: skip
            file = (out / f"{result.name}_compressed.tflite").read_bytes()
            error = 100 * (1 - accuracy(file, (x_test,), y_test, engine="tflm").top1)
            held = 100 * (1 - result.drop.after)
            done[key] = {"bytes": len(file), "test error, %": round(error, 2),
                         "validation error, %": round(held, 2)}  # fmt: skip
            rows.write_text(json.dumps(done, indent=1))
        print(key, done[key], flush=True)


if __name__ == "__main__":
    main()
