"""Prints the sizes of exported files beside those of the published int8 files.

    python benchmarks/file_sizes.py --models FOLDER

FOLDER holds the MLPerf Tiny reference models (https://github.com/mlcommons/tiny): the Keras files
`pretrainedResnet.h5` and `ad01.h5`, and the published int8 files. Calibration data is random: it
sets scales, not sizes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

PAIRS = {"pretrainedResnet.h5": "pretrainedResnet_quant.tflite", "ad01.h5": "ad01_int8.tflite"}
PUBLISHED = (
    "kws_ref_model.tflite",
    "vww_96_int8.tflite",
    "pretrainedResnet_quant.tflite",
    "ad01_int8.tflite",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    folder = parser.parse_args().models
    missing = [name for name in (*PAIRS, *PUBLISHED) if not (folder / name).is_file()]
    if missing:
        print(f"{folder} lacks {', '.join(missing)}.", file=sys.stderr)
        return 2

    from edgecompress.converters import calibration, float32, int8, loaders
    from edgecompress.flatbuffers.editor import strip

    print("| model | published int8 | exported int8 | of published | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for name, reference in PAIRS.items():
        loaded = loaders.load_model(folder / name)
        start = time.monotonic()
        samples = loaders.example_inputs(loaded.inputs, samples=100)
        samples, _ = calibration.load(list(samples), loaded)
        small = int8.strip_names(int8.convert(float32.convert(loaded), calibration=samples))
        published = (folder / reference).stat().st_size
        size = len(small.data)
        print(
            f"| {name} | {published:,} B | {size:,} B | {size / published:.1%} "
            f"| {time.monotonic() - start:.1f} |"
        )
    print("\n| published file | before | after lossless packing |")
    print("| --- | --- | --- |")
    for name in PUBLISHED:
        data = (folder / name).read_bytes()
        print(f"| {name} | {len(data):,} B | {len(strip(data)):,} B |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
