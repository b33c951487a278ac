"""Prints what the training callbacks cost: CPU time of a training step, relative to plain fit.

Every variant trains a model of its own with a real `model.fit`, each in a thread, and they take
turns: one epoch of 100 steps each, so that a pruning schedule with `frequency=100` recomputes its
masks once in every turn. Only one thread runs at a time, so the CPU time of the process is the
variant's. A ratio compares turns of the same round, which saw the same load of the machine; the
table shows the median over all rounds. Tracing, the first epochs and the last ones are left out.

Run: python benchmarks/step_overhead.py [--models mlp conv] [--variants plain pruning qat both]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

STEPS = 100
WARM_UP, COOL_DOWN = 3, 2
LIMITS = {"pruning": 1.15, "qat": 1.30}


def mlp() -> tuple[keras.Model, int]:
    """LeNet-300-100, 266,610 parameters, batch 128."""
    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(300, activation="relu"),
        keras.layers.Dense(100, activation="relu"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers), 128


def conv() -> tuple[keras.Model, int]:
    """Depthwise-separable residual net for microcontrollers, 14,000 parameters, batch 64."""

    def unit(x: Any, layer: keras.layers.Layer, relu: bool = True) -> Any:
        x = keras.layers.BatchNormalization()(layer(x))
        return keras.layers.ReLU()(x) if relu else x

    inputs = keras.Input((28, 28, 1))
    same = {"padding": "same", "use_bias": False}
    x = unit(inputs, keras.layers.Conv2D(16, 3, strides=2, **same))
    x = unit(x, keras.layers.DepthwiseConv2D(3, **same))
    x = unit(x, keras.layers.Conv2D(32, 1, **same))
    x = keras.layers.ReLU()(
        keras.layers.Add()([x, unit(x, keras.layers.Conv2D(32, 3, **same), relu=False)])
    )
    x = unit(x, keras.layers.DepthwiseConv2D(3, strides=2, **same))
    x = unit(x, keras.layers.Conv2D(64, 1, **same))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x)), 64


MODELS: dict[str, Callable[[], tuple[keras.Model, int]]] = {"mlp": mlp, "conv": conv}


def pruning(epochs: int) -> list[keras.callbacks.Callback]:
    """Masks recomputed once in every epoch up to the end."""
    from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
    from edgecompress.schedules import PolynomialDecay

    schedule = PolynomialDecay(0.8, begin_step=0, end_step=epochs * STEPS, frequency=STEPS)
    return [MagnitudePruning(schedule)]


def qat(epochs: int) -> list[keras.callbacks.Callback]:
    """int8 simulated from the first step."""
    from edgecompress.callbacks.quantization_aware_training import QuantizationAwareTraining
    from edgecompress.precisions.int8 import Int8

    return [QuantizationAwareTraining(Int8())]


VARIANTS: dict[str, Callable[[int], list[keras.callbacks.Callback]]] = {
    "plain": lambda epochs: [],
    "pruning": pruning,
    "qat": qat,
    "both": lambda epochs: [*pruning(epochs), *qat(epochs)],
}


class Turns:
    """Lets the variants run one epoch at a time, round after round."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.next, self.changed = list(names), 0, threading.Condition()

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.next] == name)

    def pass_on(self) -> None:
        with self.changed:
            self.next = (self.next + 1) % len(self.names)
            self.changed.notify_all()

    def leave(self, name: str) -> None:
        with self.changed:
            self.names.remove(name)
            self.next %= max(len(self.names), 1)
            self.changed.notify_all()


class Gate(keras.callbacks.Callback):
    """Waits for the variant's turn at every epoch and measures the turn's CPU seconds."""

    def __init__(self, name: str, turns: Turns) -> None:
        super().__init__()
        self.name, self.turns, self.seconds = name, turns, []
        self.started: float | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.started is not None:
            self.seconds.append(time.process_time() - self.started)
            self.turns.pass_on()
            self.turns.wait(self.name)
        self.started = time.process_time()


def measure(model_name: str, variants: list[str], rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of every measured epoch of each variant."""
    epochs = WARM_UP + rounds + COOL_DOWN
    turns, gates, failures = Turns(variants), {}, []

    def train(name: str) -> None:
        gates[name] = Gate(name, turns)
        turns.wait(name)
        try:
            keras.utils.set_random_seed(0)
            rng = np.random.default_rng(0)
            model, batch = MODELS[model_name]()
            x = rng.random((STEPS * batch, 28, 28, 1), dtype="f4")
            y = rng.integers(0, 10, STEPS * batch)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, metrics=["accuracy"])
            callbacks = [gates[name], *VARIANTS[name](epochs)]
            model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=callbacks)
        except Exception as error:
            failures.append((name, error))
        turns.leave(name)

    threads = [threading.Thread(target=train, args=(name,)) for name in variants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, error in failures:
        raise RuntimeError(f"variant {name} failed on {model_name}") from error
    return {name: gates[name].seconds[WARM_UP : WARM_UP + rounds] for name in variants}


def available(names: list[str]) -> list[str]:
    """Returns the variants that can run here and says which cannot."""
    result = []
    for name in names:
        try:
            VARIANTS[name](1)
        except ModuleNotFoundError as error:
            print(f"{name}: skipped, {error}")
        else:
            result.append(name)
    return result


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=15, help="measured epochs (default 15)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    variants = available(["plain", *(v for v in arguments.variants if v != "plain")])
    rows = []
    for model_name in arguments.models:
        seconds = measure(model_name, variants, arguments.rounds)
        for name in variants:
            ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            row = {
                "model": model_name,
                "variant": name,
                "cpu_us_per_step": statistics.median(seconds[name]) / STEPS * 1e6,
                "ratio": statistics.median(ratios),
                "ratio_low": quartiles[0],
                "ratio_high": quartiles[2],
                "ratio_of_minima": min(seconds[name]) / min(seconds["plain"]),
                "limit": LIMITS.get(name),
            }
            rows.append(row)
    if arguments.json:
        print(json.dumps({"steps_per_turn": STEPS, "rounds": arguments.rounds, "rows": rows}))
        return
    print(
        f"{arguments.rounds} rounds of {STEPS} steps, {os.cpu_count()} cores, {keras.__version__=}"
    )
    print("| model | variant | CPU us per step | ratio to plain | quartiles | of minima | limit |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        limit = f"{row['limit']:.2f}" if row["limit"] else ""
        print(
            f"| {row['model']} | {row['variant']} | {row['cpu_us_per_step']:,.0f} "
            f"| {row['ratio']:.3f} | {row['ratio_low']:.3f} to {row['ratio_high']:.3f} "
            f"| {row['ratio_of_minima']:.3f} | {limit} |"
        )


if __name__ == "__main__":
    main()
