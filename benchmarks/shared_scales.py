"""Prints what one int8 scale does for kernels of 16 values: codes, sizes, error.

    python benchmarks/shared_scales.py --models FOLDER

FOLDER holds ad01.h5 and pretrainedResnet.h5 of MLPerf Tiny (https://github.com/mlcommons/tiny). The
float kernels are clustered without training. Errors are sqrt(sum of squared changes / sum of
squared weights) over all filters of the file, BatchNormalization folded in: what clustering
changed, and what rounding to int8 changes on top.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

MODELS = {"ad01.h5": "anomaly detection", "pretrainedResnet.h5": "image classification"}
CLUSTERS = 16


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    arguments = parser.parse_args()

    from edgecompress.converters import float32, int8
    from edgecompress.converters.compressed import (
        compress,
    )
    from edgecompress.converters.loaders import example_inputs, load_model
    from edgecompress.core.keras_graph import walk_layers
    from edgecompress.core.layer_kinds import int8_kernels
    from edgecompress.flatbuffers.artifact import Artifact
    from edgecompress.flatbuffers.operators import FILTER_READERS
    from edgecompress.flatbuffers.reading import read_tflite
    from edgecompress.precisions.kmeans import cluster

    def filters(artifact: Artifact) -> list[np.ndarray]:
        flat = read_tflite(artifact.data)
        found = []
        for operator in flat.operators:
            weights = flat.tensor(operator, 1) if operator.code in FILTER_READERS else None
            if weights is not None:
                shape = [1] * len(weights.shape)
                shape[weights.quantized_dimension] = -1
                scales = np.array(weights.scales or (1.0,)).reshape(shape)
                found.append(weights.values() * scales)
        return found

    def error(want: list[np.ndarray], have: list[np.ndarray]) -> float:
        change = sum(np.sum((a - b) ** 2) for a, b in zip(want, have, strict=True))
        return float((change / sum(np.sum(a**2) for a in want)) ** 0.5)

    print("| model | clustering error | `weight_scales` | rounding error | codes in a kernel |"
          " int8 file | compressed |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, title in MODELS.items():
        loaded = load_model(arguments.models / name)
        before = filters(float32.convert(loaded).artifact)
        for layer in walk_layers(loaded.model):
            for axes in int8_kernels(layer):
                kernel = axes.of(layer)
                found = cluster(np.asarray(kernel), CLUSTERS, preserve_zeros=False)
                kernel.assign(found.centroids.astype(np.float32)[found.labels])
        source = float32.convert(loaded)
        shared = filters(source.artifact)
        x = example_inputs(loaded.inputs, 100)
        for form in ("channel", "auto"):
            file = int8.strip_names(int8.convert(source, calibration=x, weight_scales=form))
            flat = read_tflite(file.data)
            counts = [
                len(np.unique(flat.tensors[o.inputs[1]].values()))
                for o in flat.operators
                if o.code in FILTER_READERS
            ]
            print(
                f"| {title} | {error(before, shared):.1%} | `{form}` "
                f"| {error(shared, filters(file)):.2%} | {min(counts)} to {max(counts)} "
                f"| {len(file.data):,} B | {len(compress(file).artifact.data):,} B |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
