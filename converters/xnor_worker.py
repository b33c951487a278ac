"""Turns a SavedModel into a Larq flatbuffer; started by `converters.xnor` as a program of its own.

Usage: `python -I xnor_worker.py JOB`, where JOB is a JSON file. Larq Compute Engine's converter
carries a TensorFlow Lite build, and two builds in one process corrupt each other's memory. Nothing
of edgecompress is imported here. The file is written to the job's `output`; where that fails, the
reason goes to its `reason`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys

_PACKAGE = "larq_compute_engine"


def convert(saved_model: str) -> bytes:
    """Converts a SavedModel that TensorFlow's `tf.saved_model.save` wrote.

    The converter's library is called directly where it is the known one: importing the package
    imports TensorFlow, 3 s for a conversion of 0.1 s.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = importlib.machinery.PathFinder.find_spec(
        "_tf_tfl_flatbuffer", [os.path.join(folder, "mlir") for folder in folders]
    )
    if found is not None and found.loader is not None:
        library = importlib.util.module_from_spec(found)
        found.loader.exec_module(library)
        try:
            # Tags, signatures, version of the format, target, range of tensors without one.
            return bytes(
                library.convert_saved_model_to_tflite_flatbuffer(
                    saved_model, ["serve"], ["serving_default"], 1, "arm", None
                )
            )
        except (AttributeError, TypeError):
            pass  # Another version, with another interface.
    return bytes(importlib.import_module(_PACKAGE).convert_saved_model(saved_model))


def main(path: str) -> int:
    """Does the job described in the file `path`; returns the exit code."""
    with open(path, encoding="utf-8") as text:
        job = json.load(text)
    # Behind the interpreter's own folders: where the caller found the packages.
    sys.path.extend(folder for folder in job["paths"] if folder not in sys.path)
    # Converters raise anything; the caller makes one line of it.
    try:
        data = convert(job["saved_model"])
    except Exception as error:
        with open(job["reason"], "w", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}: {error}")
        return 1
    with open(job["output"], "wb") as file:
        file.write(data)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    # Skips the destructors: libraries that were not made for each other crash in them.
    os._exit(code)
