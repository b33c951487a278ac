"""Reads an untrusted file for `core.isolation`; started as a separate program.

Usage: `python -I isolation_child.py JOB`, where JOB is a JSON file in the one folder that this
process may write into. It drops its privileges first, and only then imports everything else.
Answers are JSON lines on standard output; the result goes to `result.json` and `file_0`, `file_1`,
...
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import pickle
import sys
import traceback
from typing import Any

# Importing TensorFlow makes a million objects that stay: collecting garbage among them as often as
# Python does by default takes a sixth of the time.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def _sandbox() -> Any:
    """Returns the module next to this one, without importing the whole package."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox.py")
    spec = importlib.util.spec_from_file_location("sandbox", place)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{place} is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sandbox"] = module
    spec.loader.exec_module(module)
    return module


class _NotInstalled:
    """Finds some modules missing; unlike None in `sys.modules`, without a trace of them there."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _places_of(modules: list[tuple[str, str]], here: str) -> list[str]:
    """Returns the folders of the modules that the user has named."""
    folders = [here, *sys.path]
    found = []
    for _, name in modules:
        spec = importlib.machinery.PathFinder.find_spec(name.split(".")[0], folders)
        if spec is None:
            continue
        if spec.origin is not None:
            found.append(os.path.dirname(spec.origin))
        found += spec.submodule_search_locations or ()
    return found


def _import(modules: list[tuple[str, str]], here: str) -> None:
    """Imports the modules that the user has named, from the current folder, too."""
    from edgecompress.core.errors import ArgumentError

    sys.path.insert(0, here)
    try:
        for argument, name in modules:
            try:
                importlib.import_module(name)
            # A module may raise anything while it is imported, and end the program.
            except (Exception, SystemExit) as error:
                raise ArgumentError(
                    argument, "be a module that can be imported", name,
                    f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                ) from error  # fmt: skip
    finally:
        # Nothing else is imported from there.
        sys.path.remove(here)


def main(path: str) -> int:
    """Does the job described in the file `path`; returns the exit code."""
    with open(path, encoding="utf-8") as text:
        job = json.load(text)
    folder = job["folder"]
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    sys.meta_path.insert(0, _NotInstalled(job["unused"]))
    # Answers use standard output; whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # After the interpreter's own folders: where the caller found the packages.
    sys.path.extend(place for place in job["paths"] if place not in sys.path)
    sandbox = _sandbox()
    sandbox.die_with(job["parent"])
    limits = sandbox.Limits(**job["limits"])
    readable = [*job["paths"], *_places_of(job["modules"], job["here"]), *job["readable"]]
    confinement = sandbox.confine(limits, readable, [folder, *job["writable"]])

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=answers, flush=True)

    try:
        # Paths are as the user wrote them. Nothing is imported from there, nor read unasked.
        os.chdir(job["here"])
        _import(job["modules"], job["here"])
        with open(os.path.join(folder, "arguments.pickle"), "rb") as file:
            arguments = pickle.load(file)
        # This process exists for that function alone.
        handover = importlib.import_module("edgecompress.core.handover")
        handover.allow(folder)
        module, _, name = job["function"].partition(":")
        value, files = getattr(importlib.import_module(module), name)(
            **arguments, tell=tell, gaps=confinement.gaps
        )
        for at, content in enumerate(files.values()):
            data = (
                content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
            )
            place = os.path.join(folder, f"file_{at}")
            if stored := handover.stored(data):
                os.link(stored, place)
                continue
            with open(place, "wb") as out:
                out.write(data)
        with open(os.path.join(folder, "result.json"), "w", encoding="utf-8") as result:
            # Accept numpy numbers as numbers.
            json.dump({"value": value, "files": list(files)}, result, default=lambda v: v.tolist())
    # Everything is reported to the caller, which raises it there.
    except BaseException as error:
        if job["verbose"]:
            traceback.print_exc()
        kind = "OSError" if isinstance(error, OSError) else type(error).__name__
        told = {"type": kind, "text": str(error)}
        for attribute in ("argument", "label", "problem"):
            if isinstance(getattr(error, attribute, None), str):
                told[attribute] = getattr(error, attribute)
        tell("error", told)
        return 1
    tell("done", True)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    # Skips the destructors: libraries not made for each other crash in them.
    os._exit(code)
