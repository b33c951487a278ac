"""Turns a SavedModel into a Larq flatbuffer; started by `converters.xnor` as a program of its own.

Usage: `python -I xnor_worker.py JOB`, where JOB is a JSON file. Larq Compute Engine's converter
carries a TensorFlow Lite build, and two builds in one process corrupt each other's memory. Nothing
of edgecompress is imported here. The file is written to the job's `output`; where that fails, the
reason goes to its `reason`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main(path: str) -> int:
    """Does the job described in the file `path`; returns the exit code."""
    with open(path, encoding="utf-8") as text:
        job = json.load(text)
    # Behind the interpreter's own folders: where the caller found the packages.
    sys.path.extend(folder for folder in job["paths"] if folder not in sys.path)
    # Converters raise anything; the caller makes one line of it.
    try:
        engine = importlib.import_module("larq_compute_engine")
        data = engine.convert_saved_model(job["saved_model"])
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
