"""The inference engines: their names, and the packages that provide them."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from edgecompress.core.registry import Registry

# Names of the engines, for code that needs a certain one.
LITERT = "litert"
TFLM = "tflm"
LEGACY = "tflite-runtime"
LCE = "lce"
# The kernel sets that firmware with TensorFlow Lite Micro is built with.
TFLM_KERNELS = ("cmsis-nn", "reference")

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Engine:
    """An inference engine that can run flatbuffers.

    Attributes:
        name: Name in the registry.
        title: Name in messages.
        package: What pip installs.
        module: The importable package.
        interpreter: Which interface of the worker drives it: `lite`, `micro` or `larq`.
        wheels: Where the package is available, one sentence for users without it.
        worker: The program that is started for it.
        extra: The extra of this package that installs it; "" if every installation has it.
        intermediates: Whether it can return tensors that are not outputs.
    """

    name: str
    title: str
    package: str
    module: str
    interpreter: str
    wheels: str
    worker: Path = WORKER
    extra: str = ""
    intermediates: bool = True

    @property
    def install(self) -> str:
        """The command that installs it."""
        what = f"'edgecompress[{self.extra}]'" if self.extra else self.package
        return f"pip install {what}"


ENGINES: Registry[Engine] = Registry("engine")
ENGINES.register(LITERT)(
    Engine(
        LITERT,
        "LiteRT",
        "ai-edge-litert",
        "ai_edge_litert",
        "lite",
        "It has wheels for Linux, macOS and Windows.",
    )
)
ENGINES.register(TFLM)(
    Engine(
        TFLM,
        "TensorFlow Lite Micro",
        "tflite-micro",
        "tflite_micro",
        "micro",
        "It has wheels for Linux on x86-64 only, as pre-releases.",
    )
)
ENGINES.register(LEGACY)(
    Engine(
        LEGACY,
        "tflite-runtime",
        "tflite-runtime",
        "tflite_runtime",
        "lite",
        "It has wheels for Linux and Python up to 3.11 only.",
    )
)
ENGINES.register(LCE)(
    Engine(
        LCE,
        "Larq Compute Engine",
        "larq-compute-engine",
        "larq_compute_engine",
        "larq",
        "It needs Linux on x86-64, Python 3.11 and NumPy 1.",
        extra="binary",
        intermediates=False,
    )
)


def folder_of(module: str) -> str | None:
    """Returns the folder a package is imported from, ignoring the current folder."""
    here = os.path.realpath(os.getcwd())
    folders = [path for path in sys.path if path and os.path.realpath(path) != here]
    spec = importlib.machinery.PathFinder.find_spec(module, folders)
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parents[1 if spec.submodule_search_locations else 0])
