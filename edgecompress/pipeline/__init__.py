"""The pipeline: `export` a model, `check` a .tflite file, `bench` what an export wrote.

`build` is `export` without a folder: a `BuildRequest` to a `Build` in memory, which `write` puts on
disk. `build_app` and `install_app` bring the demo app to a phone.
"""

from edgecompress.pipeline.android import build_app, install_app
from edgecompress.pipeline.bench_runner import bench
from edgecompress.pipeline.builder import Build, build
from edgecompress.pipeline.check_runner import check
from edgecompress.pipeline.export_runner import export
from edgecompress.pipeline.request import BuildRequest, build_request
from edgecompress.pipeline.writer import write

__all__ = [
    "Build",
    "BuildRequest",
    "bench",
    "build",
    "build_app",
    "build_request",
    "check",
    "export",
    "install_app",
    "write",
]
