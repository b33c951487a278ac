"""Prints what the recipe deep-compression does to two networks, in the tables of the papers.

    python benchmarks/deep_compression_recipe.py [--mnist mnist.npz]

LeNet-300-100 (fully connected) and the demonstration's convolution network are trained on the
5,000 training images of the Fashion-MNIST sample in `edgecompress.demo` and compressed with
`edgecompress.compress`; its 2,000 test images are the validation data. An accuracy on 2,000 images
is known to about 0.75 points (one standard error), and the recipe's defaults (soft labels, scope)
were chosen among 14 configurations seen on these same images: these rows flatter a little.

With the file of keras.datasets.mnist, LeNet-300-100 is also trained and compressed on all of MNIST,
the task of the published tables; 10,000 test images, 0.13 points. No setting was chosen on them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGET = "nucleo-l4r5zi"
EPOCHS = 20
REMOVED = {"remove_channels": 0.6, "sparsity": 0.8, "learning_rate": 2e-3}
# Title, network, settings beside the defaults.
RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("LeNet-300-100, 90 % pruned", "lenet", {"sparsity": 0.9}),
    (
        "LeNet-300-100, 90 % pruned, without distillation",
        "lenet",
        {"sparsity": 0.9, "distill": False},
    ),
    ("LeNet-300-100, 60 % of the channels removed, 80 % pruned", "lenet", REMOVED),
    (
        "LeNet-300-100, 60 % of the channels removed, 80 % pruned, without distillation",
        "lenet",
        {**REMOVED, "distill": False},
    ),
    ("Convolution network, 80 % pruned", "convolutions", {"sparsity": 0.8}),
    (
        "Convolution network, 80 % pruned in every layer",
        "convolutions",
        {"sparsity": 0.8, "scope": "layer"},
    ),
    (
        "Convolution network, 50 % of the channels removed, 60 % pruned",
        "convolutions",
        {"remove_channels": 0.5, "sparsity": 0.6},
    ),
)
MNIST_RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("MNIST, LeNet-300-100, 91.7 % pruned as published", {"sparsity": 0.917}),
    ("MNIST, LeNet-300-100, 60 % of the channels removed, 80 % pruned", REMOVED),
)


def lenet() -> Any:
    """Returns LeNet-300-100."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(300, activation="relu", name="fc1"),
            layers.Dense(100, activation="relu", name="fc2"),
            layers.Dense(10, name="fc3"),
        ],
        name="lenet",
    )


def convolutions() -> Any:
    """Returns the demonstration's network."""
    from edgecompress.demo import build_model

    return build_model()


# Network -> how it is built, learning rate of its training.
NETWORKS: dict[str, tuple[Callable[[], Any], float]] = {
    "lenet": (lenet, 2e-3),
    "convolutions": (convolutions, 5e-3),
}


def trained(name: str, path: Path, x: Any, y: Any, batch: int = 64) -> Path:
    """Trains a network and saves it."""
    import keras

    build, rate = NETWORKS[name]
    keras.utils.set_random_seed(1)
    model = build()
    steps = -(-len(x) // batch) * EPOCHS
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, batch, EPOCHS, verbose=0)
    model.save(path)
    return path


def markdown(header: list[str], rows: list[list[str]]) -> None:
    """Prints a table."""
    print(f"| {' | '.join(header)} |")
    print(f"|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def show(title: str, result: Any) -> None:
    """Prints a result as the docs show it."""
    from edgecompress.core.units import format_size
    from edgecompress.recipes.rendering import LAYER_COLUMNS, metric_text, summary

    print(f"### {title}\n")
    metric = result.drop.metric
    markdown(
        ["stage", metric, "weights left", "other than zero", "weights, paper", "file"],
        [
            [
                stage.title,
                metric_text(metric, stage.metric),
                f"{stage.weights:,}",
                f"{stage.kept:,}",
                *(
                    "" if size is None else format_size(size)
                    for size in (stage.stored_bytes, stage.file_bytes)
                ),
            ]
            for stage in result.stages
        ],
    )
    markdown(
        [column.column.title for column in LAYER_COLUMNS],
        [
            *([column.cell(layer) for column in LAYER_COLUMNS] for layer in result.layers),
            [column.total(result.totals) for column in LAYER_COLUMNS],
        ],
    )
    markdown(["", ""], [[name, text] for name, text in summary(result)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="keep the files of all runs here")
    parser.add_argument("--mnist", type=Path, help="mnist.npz of keras.datasets.mnist")
    arguments = parser.parse_args()

    import edgecompress as ec
    from edgecompress.demo import load_sample

    def run(title: str, model: Path, data: Any, validation: Any, settings: dict[str, Any]) -> None:
        result = ec.compress(
            model,
            data,
            validation=validation,
            output=model.with_name(title.replace(" ", "_")),
            targets=[TARGET],
            progress=lambda text: print(f"... {text}", file=sys.stderr),
            **settings,
        )
        show(title, result)

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        x, y, x_test, y_test = load_sample()
        models = {name: trained(name, folder / f"{name}.keras", x, y) for name in NETWORKS}
        for title, name, settings in RUNS:
            run(title, models[name], (x, y), (x_test, y_test), settings)
        if arguments.mnist:
            import numpy as np

            with np.load(arguments.mnist) as stored:
                x, x_test = (stored[k][..., None].astype("float32") / 255
                             for k in ("x_train", "x_test"))  # fmt: skip
                y, y_test = stored["y_train"], stored["y_test"]
            model = trained("lenet", folder / "mnist.keras", x, y, batch=128)
            for title, settings in MNIST_RUNS:
                run(title, model, (x, y), (x_test, y_test), {"batch_size": 128, **settings})
    return 0


if __name__ == "__main__":
    sys.exit(main())
