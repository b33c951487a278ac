"""What low rank costs: LeNet-300-100 on MNIST, and networks at full rank against themselves.

    python benchmarks/low_rank.py --data mnist.npz --results results.json [--docs docs/low_rank.md]
    python benchmarks/low_rank.py --budget --data fashion_mnist.npz --results results.json
        [--seeds 1] [--docs docs/low_rank.md]

The first layer of LeNet-300-100 (784 x 300) is factorized after the epochs of the dense network;
two more epochs train the factors, and beside them the dense network. Errors are of all 10,000 test
images, of the last epoch. Networks of keras.applications have random weights (nothing is
downloaded) and statistics of BatchNormalization that are not those of its start; differences are
relative to the largest output. About six minutes of a core.

With `--budget`, a convolutional network of Fashion-MNIST, trained on 6,000 images, is factorized
until half of its multiply-accumulates are left, and until half of its predicted time on a target
is; then it is trained for two more epochs. Each choice of ranks is converted to int8 to predict
its time.

`--results` keeps every finished run.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from precision_engines import replaced

import edgecompress as ec
from edgecompress.core.files import write_atomic
from edgecompress.core.record import record_of
from edgecompress.costs import COSTS
from edgecompress.inspection.keras_models import inspect_keras

EPOCHS, FURTHER, SEEDS, RATE = 10, 2, 3, 1e-3
RANKS = (100, 60, 40, 20)
APPLICATIONS = ("MobileNetV2", "ResNet50")
# Of `--budget`.
IMAGES, TARGET = 6_000, "nucleo-l4r5zi"
BUDGETS = {
    "macs": (ec.Budget(macs=0.5), "half of the multiply-accumulates"),
    "latency": (ec.Budget(latency=0.5, target=TARGET), "half of the time"),
}
FULL = {
    "channels": "low-rank:method=channels,energy=1,slower=true",
    "spatial": "low-rank:method=spatial,energy=1,slower=true",
    "tucker": "low-rank:method=tucker,energy=1,slower=true",
}


def fit(model: keras.Model, data: Any, epochs: int, rate: float) -> float:
    """Trains, the rate falling to 0 as half a cosine; returns the test error in percent."""
    x, y, x_test, y_test = data
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // 128))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return 100 * (1 - float(model.evaluate(x_test, y_test, batch_size=1000, verbose=0)[1]))


def lenet(seed: int, data: Any) -> dict[str, Any]:
    """Returns the errors of the dense network and at each rank, and the parameters."""
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(300, "relu", name="fc1"), keras.layers.Dense(100, "relu")]
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), *hidden, keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    row = {"start": fit(model, data, EPOCHS, RATE), "macs": inspect_keras(model).macs}
    for rank in RANKS:
        small = ec.finalize(model, rewrites=f"low-rank:rank={rank},layers=fc1")
        row[f"at once {rank}"] = _error(small, data)
        row[f"macs {rank}"] = inspect_keras(small).macs
        keras.utils.set_random_seed(seed)
        row[f"error {rank}"] = fit(small, data, FURTHER, RATE)
    keras.utils.set_random_seed(seed)
    return {**row, "dense": fit(model, data, FURTHER, RATE)}


def _error(model: keras.Model, data: Any) -> float:
    found = model.predict(data[2], batch_size=1000, verbose=0).argmax(-1)
    return 100 * float((found != data[3]).mean())


def application(name: str) -> dict[str, float]:
    """Returns the largest difference of the outputs at full rank, by method."""
    keras.utils.set_random_seed(0)
    arguments = {"weights": None, "classes": 10, "classifier_activation": None}
    model = getattr(keras.applications, name)(input_shape=(96, 96, 3), **arguments)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(rng.normal(scale=0.1, size=layer.beta.shape))
            layer.moving_mean.assign(rng.normal(scale=0.1, size=layer.beta.shape))
    x = rng.uniform(-1, 1, (2, 96, 96, 3)).astype(np.float32)
    wanted = np.array(model(x))
    row = {}
    for method, rewrite in FULL.items():
        small = ec.finalize(model, rewrites=rewrite)
        row[method] = float(np.abs(np.array(small(x)) - wanted).max() / np.abs(wanted).max())
        row["layers"] = len(record_of(small).steps[0]["factorized"])
    return row


def budgets(seed: int, data: Any) -> dict[str, Any]:
    """Returns errors, multiply-accumulates and predicted times before and within each budget."""
    chosen = np.random.default_rng(seed).permutation(len(data[0]))[:IMAGES]
    data = (data[0][chosen], data[1][chosen], *data[2:])
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Conv2D(16, 3, 2, "same", activation="relu", name="first"),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="second"),
        keras.layers.Conv2D(32, 3, 2, "same", activation="relu", name="third"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    row: dict[str, Any] = {
        "at once dense": fit(model, data, EPOCHS, RATE),
        **_costs(model, "dense"),
    }
    for name, (budget, _) in BUDGETS.items():
        small = ec.low_rank(model, until=budget, layers="second|third")
        (step,) = [s for s in record_of(small).steps if s["technique"] == "low-rank"]
        row[f"ranks {name}"] = {
            path: (found["method"], found["ranks"]) for path, found in step["factorized"].items()
        }
        row |= {f"at once {name}": _error(small, data), **_costs(small, name)}
        keras.utils.set_random_seed(seed)
        row[f"error {name}"] = fit(small, data, FURTHER, RATE)
    keras.utils.set_random_seed(seed)
    return {**row, "error dense": fit(model, data, FURTHER, RATE)}


def _costs(model: keras.Model, name: str) -> dict[str, float]:
    return {
        f"macs {name}": inspect_keras(model).macs,
        f"time {name}": COSTS["latency"].measure(model, TARGET),
    }


def table_of_budgets(results: dict[str, Any]) -> str:
    """Returns the Markdown table: a row for each budget."""
    rows = [row for key, row in results.items() if key.startswith("budget/")]
    lines = [
        f"| mean, seeds: {len(rows)} | multiply-accumulates | time on {TARGET}, ms "
        "| error at once, % | after 2 epochs, % | ranks (seed 0) |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, text in (("dense", "dense"), *((key, text) for key, (_, text) in BUDGETS.items())):
        macs, time, once, error = (
            fmean(row[f"{kind} {name}"] for row in rows)
            for kind in ("macs", "time", "at once", "error")
        )
        ranks = "; ".join(
            f"{path}: {method} {', '.join(map(str, found))}"
            for path, (method, found) in rows[0].get(f"ranks {name}", {}).items()
        )
        lines.append(
            f"| {text} | {macs:,.0f} | {time / 1000:.1f} | {once:.2f} | {error:.2f} | {ranks} |"
        )
    return "\n".join(lines)


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown tables."""
    runs = [row for key, row in results.items() if key.startswith("lenet/")]
    lines = [
        f"| LeNet-300-100, {len(runs)} seeds | multiply-accumulates | error at once, % | after "
        "2 epochs, % | minus dense |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    if runs:
        dense = fmean(row["dense"] for row in runs)
        start = fmean(row["start"] for row in runs)
        lines.append(f"| dense | {runs[0]['macs']:,} | {start:.2f} | {dense:.2f} | |")
    for rank in RANKS if runs else ():
        once, error = (
            fmean(row[f"{kind} {rank}"] for row in runs) for kind in ("at once", "error")
        )
        macs = runs[0][f"macs {rank}"]
        lines.append(
            f"| rank {rank} | {macs:,} | {once:.2f} | {error:.2f} | {error - dense:+.2f} |"
        )
    lines += [
        "",
        f"| at full rank | layers | {' | '.join(FULL)} |",
        "| --- | ---: |" + " ---: |" * 3,
    ]
    for name in APPLICATIONS:
        row = results.get(f"application/{name}")
        if row is not None:
            cells = " | ".join(f"{row[method]:.1e}" for method in FULL)
            lines.append(f"| {name} | {row['layers']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz of keras.datasets")
    parser.add_argument("--results", type=Path, required=True, help="JSON file of finished runs")
    parser.add_argument("--budget", action="store_true", help="ranks by budgets instead")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with np.load(options.data) as file:
        x, y, x_test, y_test = (
            file[f"{name}_{part}"] for part in ("train", "test") for name in ("x", "y")
        )
    data = (x[..., None].astype("f4") / 255, y, x_test[..., None].astype("f4") / 255, y_test)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    runs: dict[str, Any] = {
        **{f"lenet/{seed}": lambda seed=seed: lenet(seed, data) for seed in range(options.seeds)},
        **{f"application/{name}": lambda name=name: application(name) for name in APPLICATIONS},
    }
    if options.budget:
        runs = {f"budget/{n}": lambda n=n: budgets(n, data) for n in range(options.seeds)}
    for key, run in runs.items():
        if key not in results:
            results[key] = run()
            print(key, results[key], flush=True)
            write_atomic(options.results, json.dumps(results, indent=1).encode())
    text = table_of_budgets(results) if options.budget else table(results)
    print(text)
    if options.docs is not None:
        place = "low rank budget" if options.budget else "low rank"
        page = replaced(options.docs.read_text(encoding="utf-8"), place, text)
        options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
