"""Prints the sizes of binary networks as float, int8 and XNOR files.

    python benchmarks/xnor_sizes.py

Residual networks as in Bi-Real Net with random weights: sizes depend on the layers alone. Each XNOR
file is run in Larq Compute Engine on random images and compared with Keras.
"""

from __future__ import annotations

import sys
from typing import Any

# Name -> (input shape, channels of each stage); every stage has two binary convolutions.
NETWORKS = {
    "28x28x1, 32-64": ((28, 28, 1), (32, 64)),
    "32x32x3, 64-128-256": ((32, 32, 3), (64, 128, 256)),
}
SAMPLES = 64


def build(shape: tuple[int, int, int], stages: tuple[int, ...], name: str) -> Any:
    import keras
    from keras import layers

    import edgecompress as ec

    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    z = layers.Conv2D(stages[0], 3, strides=2, padding="same", use_bias=False)(inputs)
    z = layers.BatchNormalization()(z)
    for stage, channels in enumerate(stages):
        for block in range(2):
            stride = 2 if stage and not block else 1
            short = z
            if stride == 2:
                short = layers.Conv2D(channels, 1, use_bias=False)(layers.AveragePooling2D(2)(z))
                short = layers.BatchNormalization()(short)
            z = ec.BinaryConv2D(channels, 3, strides=stride, input_quantizer="approx_sign")(z)
            z = layers.Add()([layers.BatchNormalization()(z), short])
    z = layers.GlobalAveragePooling2D()(layers.ReLU()(z))
    return keras.Model(inputs, layers.Dense(10)(z), name=name)


def main() -> int:
    import numpy as np

    from edgecompress.converters import float32, int8, xnor

    print("| network | float32 | int8 | XNOR | binary MACs | other MACs | same class |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for position, (name, (shape, stages)) in enumerate(NETWORKS.items()):
        model = build(shape, stages, f"net_{position}")
        x = np.random.default_rng(1).normal(size=(SAMPLES, *shape)).astype(np.float32)
        floats = float32.convert(model)
        small = int8.strip_names(int8.convert(floats, calibration=[x]))
        result = xnor.convert(model, [x])
        sizes = " | ".join(
            f"{len(file.data):,} B ({file.compressed_bytes:,})"
            for file in (floats.artifact, small, result.artifact)
        )
        agreement = xnor.check(result, model, [x]).parity.agreement
        print(
            f"| {name} | {sizes} | {result.flat.binary_macs():,} | {result.flat.macs():,} "
            f"| {agreement:.0%} |"
        )
    print("\nIn brackets: after zlib, what a download holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
