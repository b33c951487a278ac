"""Makes the bundle that the APK ships: three small digit classifiers and their golden outputs.

Usage: `python -P android_demo/scripts/make_demo_bundle.py mnist.npz`, where the file holds
`x_train`, `y_train`, `x_test`, `y_test` of MNIST. Writes android_demo/app/src/main/assets/demo.
The golden inputs are digits drawn by this script, so no image of MNIST is in the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import edgecompress as ec
from edgecompress.converters import float32, int8, loaders
from edgecompress.core.files import sha256, write_atomic
from edgecompress.core.record import record_of
from edgecompress.core.suppress_output import suppress_output
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite

ASSETS = Path(__file__).resolve().parents[1] / "app" / "src" / "main" / "assets" / "demo"
# Polylines in a square of side 1, x to the right, y down.
DIGITS = {
    0: [[(0.5, 0.1), (0.25, 0.3), (0.22, 0.65), (0.45, 0.9), (0.7, 0.75), (0.76, 0.4), (0.5, 0.1)]],
    1: [[(0.38, 0.25), (0.55, 0.1), (0.5, 0.9)]],
    2: [[(0.25, 0.3), (0.45, 0.12), (0.7, 0.25), (0.6, 0.5), (0.25, 0.88), (0.75, 0.85)]],
    3: [[(0.25, 0.15), (0.65, 0.15), (0.45, 0.45), (0.7, 0.65), (0.5, 0.9), (0.25, 0.82)]],
    4: [[(0.35, 0.1), (0.25, 0.5), (0.7, 0.5)], [(0.68, 0.15), (0.6, 0.92)]],
    5: [[(0.7, 0.12), (0.35, 0.12), (0.3, 0.45), (0.6, 0.48),
         (0.68, 0.72), (0.45, 0.9), (0.25, 0.82)]],
    6: [[(0.6, 0.1), (0.35, 0.4), (0.28, 0.75), (0.5, 0.9),
         (0.68, 0.75), (0.5, 0.55), (0.3, 0.68)]],
    7: [[(0.22, 0.15), (0.72, 0.15), (0.45, 0.9)]],
}  # fmt: skip


def draw(strokes: list[list[tuple[float, float]]], width: float = 0.045) -> np.ndarray:
    """Returns a (28, 28, 1) image in [0, 1] of strokes in the middle 20 pixels."""
    pixels = (np.arange(28) + 0.5 - 4) / 20
    x, y = np.meshgrid(pixels, pixels)
    distance = np.full((28, 28), np.inf)
    for stroke in strokes:
        for (x0, y0), (x1, y1) in zip(stroke, stroke[1:], strict=False):
            dx, dy = x1 - x0, y1 - y0
            t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            distance = np.minimum(distance, np.hypot(x - x0 - t * dx, y - y0 - t * dy))
    return np.clip(0.5 + (width - distance) * 20, 0, 1).astype(np.float32)[..., None]


def build_model() -> Any:
    """Returns the model: three convolutions, 6,000 parameters."""
    import keras
    from keras import layers

    def block(filters: int, strides: int) -> list[Any]:
        convolution = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
        return [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU()]

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *block(8, 2),
            *block(16, 2),
            *block(24, 1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ],
        name="digits",
    )


def shifted(x: np.ndarray, seed: int) -> np.ndarray:
    """Returns the images, each moved by up to two pixels."""
    moves = np.random.default_rng(seed).integers(-2, 3, (len(x), 2))
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    rows = moves[:, 0, None] + 2 + np.arange(28)
    columns = moves[:, 1, None] + 2 + np.arange(28)
    return padded[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]


def tensors(flat: Any, indices: Any) -> list[dict[str, Any]]:
    """Returns the bundle's description of a model's inputs or outputs."""
    found = []
    for index in indices:
        tensor = flat.tensors[index]
        quantized = len(tensor.scales) == 1
        found.append(
            {
                "name": tensor.name,
                "shape": [int(n) for n in tensor.shape],
                "dtype": tensor.type.lower(),
                "scale": float(tensor.scales[0]) if quantized else None,
                "zero_point": int(tensor.zero_points[0]) if quantized else None,
            }
        )
    return found


def describe(kind: str, data: bytes, images: np.ndarray, files: dict[str, bytes]) -> dict[str, Any]:
    """Adds a model and its golden files to `files`; returns its entry in bundle.json."""
    flat = read_tflite(data)
    inputs = tensors(flat, flat.inputs)
    stored = images
    if inputs[0]["scale"] is not None:
        stored = np.round(images / inputs[0]["scale"]) + inputs[0]["zero_point"]
        stored = np.clip(stored, -128, 127).astype(np.int8)
    run = run_engine("litert", data, [stored])
    name = f"digits_{kind}.tflite"
    golden = {
        f"golden/{kind}_input_0.bin": stored.tobytes(),
        f"golden/{kind}_output_0.bin": run.outputs[0].tobytes(),
    }
    files |= {name: data, **golden}
    return {
        "file": name,
        "kind": kind,
        "sha256": sha256(data),
        "bytes": len(data),
        "runtime": "litert",
        "inputs": inputs,
        "outputs": tensors(flat, flat.outputs),
        "golden": {
            "samples": len(images),
            "inputs": [f"golden/{kind}_input_0.bin"],
            "outputs": [f"golden/{kind}_output_0.bin"],
            "sha256": {path: sha256(content) for path, content in golden.items()},
            "engine": run.engine,
            "engine_version": run.version,
            "kernels": run.kernels,
            "tolerance_steps": 1,
            "tolerance": 1e-5 if kind == "float32" else None,
        },
    }


def main() -> int:
    """Trains, converts and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    with suppress_output():
        import keras

    keras.utils.set_random_seed(1)
    with np.load(options.mnist, allow_pickle=False) as data:
        x, x_test = (data[key][..., None].astype("float32") / 255 for key in ("x_train", "x_test"))
        y, y_test = data["y_train"].astype("int32"), data["y_test"].astype("int32")

    def fit(model: Any, rate: float, epochs: int, callbacks: list[Any]) -> None:
        moved = np.concatenate([x, shifted(x, seed=1)])
        steps = -(-len(moved) // 128) * epochs
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        labels = np.concatenate([y, y])
        model.fit(moved, labels, 128, epochs, verbose=2, callbacks=callbacks)
        print(f"test accuracy {model.evaluate(x_test, y_test, verbose=0)[1]:.4f}")

    dense = build_model()
    fit(dense, 5e-3, options.epochs, [])
    converted = float32.convert(loaders.wrap(dense))
    small = keras.models.clone_model(dense)
    small.set_weights(dense.get_weights())
    fit(small, 2e-3, 2, [ec.GroupLasso(1e-4, groups="filters", final_sparsity=0.3)])
    small = ec.finalize(small)
    print({name: list(pair) for name, pair in record_of(small).removed_channels.items()})
    fit(small, 4e-3, 4, [ec.QuantizationAwareTraining(ec.Int8(), begin_epoch=2)])
    small = ec.finalize(small)

    pruned = float32.convert(loaders.wrap(small))
    images = np.stack([draw(strokes) for strokes in DIGITS.values()])
    print("drawn digits:", dense.predict(images, verbose=0).argmax(1).tolist())
    files: dict[str, bytes] = {}
    calibration = [np.concatenate([x[:400], images])]
    models = [
        # One scale for the Dense layer: old runtimes take the first of several for all.
        ("int8-pruned", int8.convert(pruned, dense_per_channel=False).data),
        ("int8", int8.convert(converted, calibration=calibration).data),
        ("float32", converted.artifact.data),
    ]
    bundle = {
        "schema": "edgecompress.bundle/1",
        "name": "Digits",
        "target": None,
        "tool": {"name": "edgecompress", "version": ec.__version__},
        "models": [describe(kind, data, images, files) for kind, data in models],
        "labels": [str(digit) for digit in range(10)],
        "budgets": {
            "max_latency_us": 1000,
            "max_file_size": 16384,
            "max_ram": None,
            "min_accuracy": None,
        },
        "record": None,
    }
    for path, content in files.items():
        (options.output / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output / path, content)
        print(f"{len(content):7,} {path}")
    write_atomic(options.output / "bundle.json", json.dumps(bundle, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
