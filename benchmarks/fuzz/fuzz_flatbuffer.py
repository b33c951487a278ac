"""Fuzzes .tflite files: the reader, inspection, the checks of all kinds of target."""

from __future__ import annotations

import atheris
import driver
import mutations

with atheris.instrument_imports(include=["edgecompress"]):
    from edgecompress.flatbuffers.reading import read_tflite
    from edgecompress.inspection.tflite import inspect_tflite
    from edgecompress.targets.checks import check
    from edgecompress.targets.profile import Budgets, load_target


_TARGETS = [load_target(name) for name in ("cortex-m4", "cortex-m55", "nucleo-l4r5zi", "pixel-8")]
_BUDGETS = Budgets(max_file_size=1 << 20)


def run(data: bytes) -> None:
    """Reads, inspects, and checks against a target of each kind."""
    model = read_tflite(data)
    inspect_tflite(model).to_dict()
    for target in _TARGETS:
        check(model, target, _BUDGETS).to_dict()


if __name__ == "__main__":
    driver.main("flatbuffer", run, mutations.flatbuffer)
