"""Bayesian compression of LeNet-300-100 and LeNet-5 on MNIST: how sparse, how narrow, how few bits.

    python benchmarks/variational.py --data mnist.npz --results results.json --models FOLDER
        [--only NAME ...] [--docs docs/variational.md]

The published tables: 68-fold and 280-fold pruning (Molchanov, Ashukha and Vetrov, 2017,
https://arxiv.org/abs/1701.05369, table 1), widths (Louizos, Ullrich and Welling, 2017,
https://arxiv.org/abs/1705.08665, table 1), LeNet-5 with three levels (Achterhold et al., 2018,
https://openreview.net/forum?id=ry-TW-WAb, table 1). Here each method starts from the same trained
network, with the epochs given below; published runs take 200 epochs and more. The last 10,000
training images are for validation: settings were chosen on them. Errors are of all 10,000 test
images, after the last epoch. One seed. Compression counts the weights of kernels that are not zero.
Files are int8 files with coded weights, run in their engines.

`--results` keeps every finished run and `--models` what has been trained: an interrupted benchmark
continues with the epoch in which it was killed. A run takes minutes on two cores, variational
dropout about an hour; `--only` chooses some.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from mnist_networks import lenet_5, lenet_300_100
from precision_engines import replaced

import edgecompress as ec
from edgecompress.core.files import write_atomic
from edgecompress.core.record import record_of

SECTION = """\
## On MNIST

`python benchmarks/variational.py --data mnist.npz --results results.json --models FOLDER` trains
each network once on 50,000 images, and every method from there: Adam, a learning rate that falls
to 0 along half a cosine, one seed. Settings were chosen on 10,000 other training images; errors are
of all 10,000 test images. "After training on" is with the zeros kept or the filters removed,
for as many epochs as in parentheses; with three levels biases alone are trained. For LeNet-5 with
dropout and with three levels that last step was added, by validation images, after a test error had
been seen; and the threshold of its dropout was lowered during the run, from 3 to 0.4.
"""
RATE = 1e-3
EXAMPLES = 50_000


NETWORKS: dict[str, Callable[[], keras.Sequential]] = {
    "LeNet-300-100": lenet_300_100,
    "LeNet-5": lenet_5,
}


@dataclass(frozen=True)
class Run:
    """How a network is trained.

    Attributes:
        network: Which.
        method: What it shows.
        callback: Returns the callback; None for the network that all others start from.
        epochs: Epochs with it.
        tuned: Epochs after it, with the zeros kept or the filters removed.
        biases: Whether the biases alone are trained then.
        batch: Size of a batch.
        files: Whether files with coded weights are made.
        rate: Learning rate of Adam at the start.
    """

    network: str
    method: str
    callback: Callable[[], Any] | None
    epochs: int
    tuned: int = 0
    biases: bool = False
    batch: int = 128
    files: bool = False
    rate: float = RATE


RUNS = {
    "dense-300": Run("LeNet-300-100", "trained", None, 12),
    "dropout-300": Run(
        "LeNet-300-100",
        "`VariationalDropout`",
        lambda: ec.VariationalDropout(EXAMPLES, warm_up_epochs=20, rate=10, strength=2.5),
        90,
        tuned=5,
        rate=2e-3,
    ),
    "groups-300": Run(
        "LeNet-300-100",
        "`BayesianGroupSparsity`, normal-Jeffreys",
        lambda: ec.BayesianGroupSparsity(EXAMPLES, warm_up_epochs=5, rate=10),
        25,
        tuned=5,
    ),
    "horseshoe-300": Run(
        "LeNet-300-100",
        "`BayesianGroupSparsity`, horseshoe",
        lambda: ec.BayesianGroupSparsity(
            EXAMPLES, warm_up_epochs=5, rate=10, prior="group-horseshoe"
        ),
        25,
        tuned=5,
    ),
    "lasso-300": Run("LeNet-300-100", "`GroupLasso`", lambda: ec.GroupLasso(1e-4), 25, tuned=5),
    "dense-5": Run("LeNet-5", "trained", None, 5),
    "dropout-5": Run(
        "LeNet-5",
        "`VariationalDropout`",
        lambda: ec.VariationalDropout(
            EXAMPLES, threshold=0.4, warm_up_epochs=5, rate=10, strength=2
        ),
        25,
        tuned=10,
    ),
    "groups-5": Run(
        "LeNet-5",
        "`BayesianGroupSparsity`, normal-Jeffreys",
        lambda: ec.BayesianGroupSparsity(EXAMPLES, warm_up_epochs=3, rate=10),
        10,
        tuned=2,
    ),
    "lasso-5": Run("LeNet-5", "`GroupLasso`", lambda: ec.GroupLasso(1e-4), 10, tuned=2),
    "ternary-5": Run(
        "LeNet-5",
        "`VariationalQuantization`",
        lambda: ec.VariationalQuantization(EXAMPLES, warm_up_epochs=4, rate=5),
        10,
        tuned=3,
        biases=True,
        files=True,
    ),
}


def compiled(model: keras.Model, steps: int, rate: float) -> keras.Model:
    """Compiles a network; the learning rate falls to 0 along half a cosine."""
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"], steps_per_execution=10)
    return model


def fit(model: keras.Model, data: Any, run: Run, epochs: int, callbacks: list[Any]) -> None:
    """Trains a network."""
    steps = epochs * -(-EXAMPLES // run.batch)
    compiled(model, steps, run.rate)
    model.fit(*data[0], batch_size=run.batch, epochs=epochs, verbose=0, callbacks=callbacks)


def errors(model: keras.Model, data: Any) -> list[float]:
    """Returns the errors on the test and the validation images in percent."""
    return [100 * (1 - model.evaluate(*x, batch_size=1000, verbose=0)[1]) for x in data[1:]]


def trained(name: str, data: Any, models: Path) -> dict[str, Any]:
    """Trains a run; returns its numbers."""
    run = RUNS[name]
    keras.utils.set_random_seed(0)
    began = time.monotonic()
    if run.callback is None:
        model = NETWORKS[run.network]()
        fit(model, data, run, run.epochs, [])
        model.save(models / f"{name}.keras")
        return {"error": errors(model, data), "seconds": round(time.monotonic() - began)}
    ended = models / f"{name}.keras"
    if not ended.exists():
        start = next(k for k, r in RUNS.items() if r.network == run.network and r.callback is None)
        model = ec.load_model(models / f"{start}.keras")
        callback = run.callback()
        if hasattr(callback, "posterior_file"):
            callback.posterior_file = models / f"{name}-posterior.npz"
        # What was killed goes on with the epoch that it was in.
        backup = keras.callbacks.BackupAndRestore(models / f"{name}-backup")
        fit(model, data, run, run.epochs, [backup, callback])
        model.save(ended)
    # Read again: after an interruption Keras would begin the next fit with the epoch of this one.
    model = ec.load_model(ended)
    found: dict[str, Any] = {"error": errors(model, data), **counts(model)}
    results = record_of(model).steps[-1]
    found |= {key: results[key] for key in ("zero_filters", "allowed_bits") if key in results}
    if "zero_filters" in found:
        model = ec.finalize(model)
        found["parameters"] = model.count_params()
    for layer in model.layers:
        if run.biases and hasattr(layer, "kernel"):
            layer.kernel.trainable = False
    if run.tuned:
        keep = [] if run.biases or "zero_filters" in found else [ec.KeepSparsity()]
        fit(model, data, run, run.tuned, keep)
        found["tuned_error"] = errors(model, data)
        model.save(models / f"{name}-tuned.keras")
    if run.files:
        found["files"] = files(model, data)
    return {**found, "seconds": round(time.monotonic() - began)}


def files(model: keras.Model, data: Any) -> dict[str, list[float]]:
    """Returns size and error of the files with weights in few bits, by engine."""
    from edgecompress.converters import binary_weights, float32, int8
    from edgecompress.converters.accuracy import accuracy
    from edgecompress.converters.compressed import compress

    plain = int8.strip_names(int8.convert(float32.convert(model), calibration=[data[0][0][:500]]))
    made = {
        "tflm": compress(plain, samples=100).artifact.data,
        "litert": binary_weights.convert(plain, "smallest").artifact.data,
    }
    found = {"int8": [len(plain.data), 100 - 100 * _top1(accuracy, plain.data, data, "litert")]}
    for engine, file in made.items():
        found[engine] = [len(file), 100 - 100 * _top1(accuracy, file, data, engine)]
    return found


def _top1(accuracy: Callable[..., Any], file: bytes, data: Any, engine: str) -> float:
    return float(accuracy(file, (data[1][0],), data[1][1], engine=engine).top1)


def counts(model: keras.Model) -> dict[str, Any]:
    """Returns how many weights of all kernels are not zero, and the widths of layers."""
    kernels = {x.name: np.array(x.kernel) for x in model.layers if hasattr(x, "kernel")}
    size = sum(kernel.size for kernel in kernels.values())
    left = sum(int(np.count_nonzero(kernel)) for kernel in kernels.values())
    widths = [int(k.any(tuple(range(k.ndim - 1))).sum()) for k in kernels.values()]
    return {"compression": size / max(left, 1), "widths": widths[:-1]}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown table of the finished runs."""
    lines = [
        "| network | method | epochs | error, % | after training on, % "
        "| weights / weights that are not zero | widths | bits that the posterior allows |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for name, run in RUNS.items():
        if name not in results:
            continue
        found = results[name]
        tuned = f"{found['tuned_error'][0]:.2f} ({run.tuned})" if "tuned_error" in found else ""
        cells = (
            run.network,
            run.method,
            run.epochs,
            f"{found['error'][0]:.2f}",
            tuned,
            f"{found['compression']:.0f}x" if "compression" in found else "",
            "-".join(map(str, found.get("widths", []))),
            ", ".join(f"{layer} {bits}" for layer, bits in found.get("allowed_bits", {}).items()),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def sentences(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns what the files of finished runs hold, a sentence each."""
    engines = {"int8": "int8 in LiteRT", "tflm": "coded in TensorFlow Lite Micro"}
    engines["litert"] = "in 2 bits in LiteRT"
    found = []
    for name, run in RUNS.items():
        if "files" in results.get(name, {}):
            files = results[name]["files"]
            parts = [
                f"{title} {files[key][0]:,.0f} B at {files[key][1]:.2f} %"
                for key, title in engines.items()
            ]
            found.append(f"Files of {run.network} with {run.method}: {'; '.join(parts)}.")
    return found


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz of keras.datasets")
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--models", type=Path, required=True, help="folder of trained networks")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with np.load(options.data) as file:
        x, y = file["x_train"][..., None].astype("f4") / 255, file["y_train"]
        test = file["x_test"][..., None].astype("f4") / 255, file["y_test"]
    parts = slice(EXAMPLES), slice(EXAMPLES, None)
    train, held = ((x[part], y[part]) for part in parts)
    data = [train, test, held]
    options.models.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in options.only:
        if name in results:
            continue
        results[name] = trained(name, data, options.models)
        print(name, {k: v for k, v in results[name].items() if k != "file"}, flush=True)
        write_atomic(options.results, json.dumps(results, indent=1).encode())
    text = "\n".join([table(results), "", *sentences(results)])
    print(text)
    if options.docs is not None:
        section = f"\n{SECTION}\n{text}\n"
        page = replaced(options.docs.read_text(encoding="utf-8"), "variational mnist", section)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
