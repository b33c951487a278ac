"""How far LeNet-300-100 and LeNet-5 can be pruned on MNIST at the error of the dense networks.

    python benchmarks/mnist_pruning.py --data mnist.npz --results results.json
        [--docs docs/pruning.md] [--networks lenet-300-100 lenet-5] [--criteria magnitude]
        [--teacher] [--distorted]

Each network is trained from the same initial weights for as many epochs, dense and once for each
rate of pruning: one threshold for all layers, and sparsity rises between 5 and 60 % of the steps. A
rate is all weights by those that are left, biases not counted. Han et al. (2015,
https://arxiv.org/abs/1506.02626, table 1) reach 12x with both networks.
The learning rate falls to 0 as half a cosine. With `--teacher`, the networks are also pruned while
they learn from the soft targets of the dense LeNet-5, with the settings of `distillation.py`: the
small network is then compared with a dense one that had no teacher, as in Hinton et al. (2015,
https://arxiv.org/abs/1503.02531). With `--distorted` they learn from that network on distorted
copies of 55,000 training images, too, and so does a dense network, for comparison. Errors are of
all 10,000 test images, of the last epoch: nothing is chosen on them. `--results` keeps every
finished run: an interrupted benchmark continues. About half an hour of one core for a seed, and as
much again with `--teacher` and with `--distorted`. The last lines say the largest rate at no more
than 0.10 points above dense.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from distillation import LOSS
from keras import layers as kl
from mnist_networks import images
from precision_engines import replaced

import edgecompress as ec
from edgecompress.core.files import write_atomic
from edgecompress.core.options import named
from edgecompress.training import LOSSES
from edgecompress.training.base import Outputs, TaughtLabels

BATCH, RATE = 128, 1e-3
EPOCHS = {"lenet-300-100": 40, "lenet-5": 15}
# The rates of the paper first.
RATES = {"lenet-300-100": (12.2, 20, 30, 40), "lenet-5": (11.9, 40, 70, 100)}
# The dense network that teaches, and at which rates.
TEACHER = "lenet-5"
TAUGHT_RATES = {"lenet-300-100": (40, 30, 20), "lenet-5": (100,)}
# On distorted copies, of which there are five times as many images.
DISTORTED_RATES = {"lenet-300-100": (40, 60, 80), "lenet-5": (100, 150)}
DISTORTED_EPOCHS = {"lenet-300-100": 20, "lenet-5": 8}
DISTORTED_BATCH, DISTORTED_RATE = 256, 2e-3
# Points above dense that still count as its error.
ALLOWED = 0.10


def lenet_300_100() -> keras.Model:
    """Returns the fully connected network, 266,200 weights."""
    hidden = [kl.Dense(300, "relu"), kl.Dense(100, "relu")]
    return keras.Sequential([keras.Input((28, 28, 1)), kl.Flatten(), *hidden, kl.Dense(10)])


def lenet_5() -> keras.Model:
    """Returns the convolutional network as in Caffe, 430,500 weights."""
    first = [kl.Conv2D(20, 5), kl.MaxPooling2D(), kl.Conv2D(50, 5), kl.MaxPooling2D()]
    last = [kl.Flatten(), kl.Dense(500, "relu"), kl.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *first, *last])


NETWORKS = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


def fit(
    model: keras.Model,
    data: Any,
    epochs: int,
    callbacks: Sequence[Any] = (),
    taught: bool = False,
) -> float:
    """Trains; returns the error on the test images in percent.

    Args:
        model: The network.
        data: Images, labels, test images, test labels.
        epochs: How often it sees the images.
        callbacks: Those of the fit.
        taught: Whether the labels are packed with a teacher's outputs.
    """
    x, y, x_test, y_test = data
    batch, rate = (DISTORTED_BATCH, DISTORTED_RATE) if taught else (BATCH, RATE)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // batch))
    loss = (lambda packed, outputs: PACKED(packed, outputs)) if taught else CROSS_ENTROPY
    model.compile(keras.optimizers.Adam(decay), loss)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))
    predicted = model.predict(x_test, batch_size=1000, verbose=0).argmax(axis=1)
    return 100 * float((predicted != y_test).mean())


CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Labels followed by what the teacher says, which is computed once.
PACKED = TaughtLabels(named(LOSSES, LOSS, "loss"), CROSS_ENTROPY, 1, Outputs())


@functools.cache
def distorted(path: Path, folder: Path, seed: int) -> Any:
    """Returns images with distorted copies, labels packed with the teacher's outputs, and tests."""
    (x, y), _, test = images(path, folder / "copies.npy")
    teacher = NETWORKS[TEACHER]()
    teacher.load_weights(weights(folder, TEACHER, seed))
    return x, PACKED.pack(y, teacher.predict(x, batch_size=1000, verbose=0)), *test


def runs(
    network: str,
    seed: int,
    data: Any,
    criteria: Iterable[str],
    folder: Path,
    taught: bool,
    path: Path | None = None,
) -> Iterable[tuple[str, Any]]:
    """Yields the name of each run and a function that trains it: `dense` comes first.

    Args:
        network: Name of the network.
        seed: Of its initial weights.
        data: As `fit` takes it.
        criteria: Of pruning.
        folder: Where weights of dense networks are kept.
        taught: Whether to train with a teacher, too.
        path: The file of images, to train on distorted ones, too; or None.
    """
    epochs = EPOCHS[network]
    steps = epochs * -(-len(data[0]) // BATCH)

    def started() -> keras.Model:
        keras.utils.set_random_seed(seed)
        return NETWORKS[network]()

    def dense() -> dict[str, float]:
        model = started()
        error = fit(model, data, epochs)
        model.save_weights(weights(folder, network, seed))
        return {"error": error}

    def callback(criterion: str, rate: float, steps: int) -> ec.Pruning:
        begin, end = (int(share * steps) // 100 * 100 for share in (0.05, 0.6))
        schedule = ec.PolynomialDecay(1 - 1 / rate, begin, end)
        return ec.Pruning(schedule, criterion, scope="global")

    def pruned(criterion: str, rate: float, callbacks: Sequence[Any] = ()) -> dict[str, float]:
        model = started()
        error = fit(model, data, epochs, [callback(criterion, rate, steps), *callbacks])
        return found(model, error)

    def found(model: keras.Model, error: float) -> dict[str, float]:
        kernels = [layer.kernel.numpy() for layer in model.layers if layer.weights]
        left = sum(np.count_nonzero(kernel) for kernel in kernels)
        return {"error": error, "reached": sum(k.size for k in kernels) / int(left)}

    def taught_by(criterion: str, rate: float) -> dict[str, float]:
        teacher = NETWORKS[TEACHER]()
        teacher.load_weights(weights(folder, TEACHER, seed))
        return pruned(criterion, rate, [ec.Distillation(teacher, LOSS)])

    def on_distorted(criterion: str, rate: float) -> dict[str, float]:
        if path is None:
            raise ValueError("Distorted copies are made of the file of images.")
        taught, model = distorted(path, folder, seed), started()
        rounds = DISTORTED_EPOCHS[network]
        count = rounds * -(-len(taught[0]) // DISTORTED_BATCH)
        pruning = [callback(criterion, rate, count)] if criterion else []
        return found(model, fit(model, taught, rounds, pruning, taught=True))

    yield "dense", dense
    if path is not None:
        yield "/1/distorted", functools.partial(on_distorted, "", 1)
    for criterion in criteria:
        for rate in TAUGHT_RATES[network] if taught else ():
            yield f"{criterion}/{rate}/taught", functools.partial(taught_by, criterion, rate)
        for rate in () if path is None else DISTORTED_RATES[network]:
            yield f"{criterion}/{rate}/distorted", functools.partial(on_distorted, criterion, rate)
        for rate in RATES[network]:
            yield f"{criterion}/{rate}", functools.partial(pruned, criterion, rate)


def weights(folder: Path, network: str, seed: int) -> Path:
    """Returns where the weights of a dense network are kept."""
    return folder / f"{network}_{seed}.weights.h5"


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown table: a row for each network and criterion."""
    lines = [
        "| network | criterion | teacher | rate | seeds | error, % | dense, % | difference |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    largest: dict[str, tuple[float, float]] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for key, found in results.items():
        network, seed, *name = key.split("/")
        rows.setdefault((network, "/".join(name)), {})[seed] = found
    for (network, name), seeds in rows.items():
        if name == "dense":
            continue
        criterion, _, *taught = name.split("/")
        teacher = {"": "", "taught": TEACHER, "distorted": f"{TEACHER}, distorted images"}
        dense = fmean(rows[network, "dense"][seed]["error"] for seed in seeds)
        error = fmean(run["error"] for run in seeds.values())
        rate = fmean(run["reached"] for run in seeds.values())
        cells = (
            network, f"`{criterion}`" if criterion else "dense", teacher["".join(taught)],
            f"{rate:.1f}", len(seeds), f"{error:.2f}", f"{dense:.2f}", f"{error - dense:+.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
        if round(error - dense, 4) <= ALLOWED:
            largest[network] = max(largest.get(network, (1.0, 0.0)), (rate, error - dense))
    for network, (rate, more) in largest.items():
        lines.append(f"\nLargest rate within +{ALLOWED:.2f}, {network}: {rate:.1f}x ({more:+.2f}).")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz of keras.datasets")
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--criteria", nargs="+", default=["magnitude"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--distorted", action="store_true")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with np.load(options.data) as file:
        parts = [file[f"{name}_{part}"] for part in ("train", "test") for name in ("x", "y")]
    x, y, x_test, y_test = parts
    data = (x[..., None].astype("f4") / 255, y, x_test[..., None].astype("f4") / 255, y_test)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    # The teacher first.
    for network in sorted(options.networks, key=lambda name: name != TEACHER):
        for seed in range(options.seeds):
            path = options.data if options.distorted else None
            given = (options.criteria, options.results.parent, options.teacher, path)
            for name, run in runs(network, seed, data, *given):
                key = f"{network}/{seed}/{name}"
                if key in results:
                    continue
                began = time.monotonic()
                results[key] = run()
                print(key, results[key], f"{time.monotonic() - began:.0f} s", flush=True)
                write_atomic(options.results, json.dumps(results, indent=1).encode())
    text = table(results)
    print(text)
    if options.docs is not None:
        page = replaced(options.docs.read_text(encoding="utf-8"), "mnist pruning", text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
