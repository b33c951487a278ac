"""The pipeline: `export` a model, `check` a .tflite file, `bench` what an export wrote.

`build_app` and `install_app` bring the demo app to a phone.
"""

from edgecompress.pipeline.android import build_app, install_app
from edgecompress.pipeline.benching import bench
from edgecompress.pipeline.checking import check
from edgecompress.pipeline.exporting import export

__all__ = ["bench", "build_app", "check", "export", "install_app"]
