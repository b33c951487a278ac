"""Prints what each technique of `quantize` brings: accuracy and agreement of files in LiteRT.

Usage:
    python benchmarks/post_training.py --fashion-mnist fashion_mnist.npz [--resnet FILE.h5]

A depthwise-separable network is trained in float for four epochs, then quantized with 200 images
and each combination of techniques. MLPerf Tiny's ResNet is run on the same images, enlarged to
32 x 32 pixels and grey: for want of its own data, only its agreement with float says something.
Agreement is the share of test images on which file and float model predict the same class;
`outputs` is the signal-to-noise ratio of the logits in the simulation, on calibration images that
the techniques did not use.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TECHNIQUES = (
    (),
    ("cross-layer-equalization",),
    ("bias-correction",),
    ("adaround",),
    ("gptq",),
    ("gptq", "bias-correction"),
    ("cross-layer-equalization", "gptq", "bias-correction"),
)
CALIBRATION = 200


def precisions() -> dict[str, Any]:
    """Returns the precisions by the name of the table."""
    import edgecompress as ec

    return {
        "int8, one scale": ec.Int8(per_channel=False),
        "int4": ec.Int4(),
        "int4, every layer": ec.Int4(edge_bits=4, depthwise_bits=4),
    }


def separable(x: np.ndarray, y: np.ndarray) -> Any:
    """Returns a trained network of inverted bottlenecks with residuals, as MobileNetV2's."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)

    def unit(x: Any, layer: Any, rectified: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=0.9)(layer(x))
        return layers.ReLU()(x) if rectified else x

    def block(x: Any, factor: int, channels: int, stride: int) -> Any:
        before = x.shape[-1]
        h = unit(x, layers.Conv2D(factor * before, 1, use_bias=False))
        depthwise = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)
        h = unit(unit(h, depthwise), layers.Conv2D(channels, 1, use_bias=False), False)
        return layers.Add()([x, h]) if stride == 1 and before == channels else h

    inputs = keras.Input((28, 28, 1))
    h = unit(inputs, layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False))
    for settings in ((1, 8, 1), (4, 12, 2), (4, 12, 1), (4, 16, 2), (4, 16, 1)):
        h = block(h, *settings)
    h = unit(h, layers.Conv2D(48, 1, use_bias=False))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, epochs=4, batch_size=64, verbose=0)
    return model


def rows(model: Any, calibration: np.ndarray, x: np.ndarray, y: np.ndarray | None) -> None:
    """Prints the rows of a network."""
    import edgecompress as ec
    from edgecompress.converters import float32, int8
    from edgecompress.converters.real_values import dequantize, quantized_inputs
    from edgecompress.core.record import record_of
    from edgecompress.engines.registry import LITERT
    from edgecompress.engines.run import run_engine

    exact = model.predict(x, verbose=0).argmax(-1)
    if y is not None:
        print(f"| float32 | | {100 * (exact == y).mean():.2f} | | | |")
    for name, precision in precisions().items():
        for techniques in TECHNIQUES:
            start = time.process_time()
            small = ec.quantize(model, precision, calibration, techniques=techniques)
            seconds = time.process_time() - start
            step = record_of(small).steps[-1]
            kept = [found["name"] for found in step["techniques"] if found["kept"]]
            file = int8.convert(
                float32.convert(small), record=record_of(small), precision=precision
            )
            run = run_engine(LITERT, file.data, quantized_inputs(file.flat, [x]))
            found = dequantize(run.outputs[0], file.flat.tensors[file.flat.outputs[0]]).argmax(-1)
            accuracy = "" if y is None else f"{100 * (found == y).mean():.2f}"
            told = [technique if technique in kept else f"{technique} (not kept)"
                    for technique in techniques]  # fmt: skip
            agreement = 100 * (found == exact).mean()
            cells = [name, ", ".join(told) or "nearest", accuracy, f"{agreement:.2f}",
                     f"{step['sqnr_db']:.1f} dB", f"{seconds:.0f} s"]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--resnet", type=Path)
    parser.add_argument("--test-images", type=int, default=4000)
    arguments = parser.parse_args()
    data = np.load(arguments.fashion_mnist)
    x = (data["x_train"][:12000] / 255).astype("float32")[..., None]
    x_test = (data["x_test"][: arguments.test_images] / 255).astype("float32")[..., None]
    head = "| precision | techniques | accuracy | agreement | outputs | CPU time |\n" + "| --- " * 6
    print(f"Depthwise-separable network, Fashion-MNIST.\n\n{head}|", flush=True)
    model = separable(x, data["y_train"][:12000])
    rows(model, x[:CALIBRATION], x_test, data["y_test"][: arguments.test_images])
    if arguments.resnet is not None:
        import keras

        print(f"\nMLPerf Tiny's ResNet, enlarged Fashion-MNIST.\n\n{head}|", flush=True)
        resnet = keras.models.load_model(arguments.resnet, compile=False)

        def enlarged(images: np.ndarray) -> np.ndarray:
            padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
            return np.repeat(padded, 3, axis=-1) * np.float32(255)

        rows(resnet, enlarged(x[:CALIBRATION]), enlarged(x_test[:1000]), None)


if __name__ == "__main__":
    main()
