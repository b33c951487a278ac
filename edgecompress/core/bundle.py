"""bundle.json: what an export writes beside its files, so that others can run and check them.

docs/bundle.schema.json describes the file. Whoever reads one trusts nothing in it: paths stay
inside the bundle's folder, and every file is compared with its SHA-256.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.errors import ModelFileError, UnreadableFileError
from edgecompress.core.files import sha256
from edgecompress.core.reading import JSON_LIMIT, file_size, inside, is_inside, read_bytes
from edgecompress.core.structured import parse_json

BUNDLE_SCHEMA = "edgecompress.bundle/1"
BUNDLE_FILE = "bundle.json"
RUNTIMES = ("litert", "lce", "tflm")
_DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BundleTensor:
    """An input or an output of a model.

    Attributes:
        name: As the file has it.
        shape: With the leading 1 of the batch.
        dtype: numpy's name of the type.
        scale: real = scale * (stored - zero_point); None for a tensor that is not quantized.
        zero_point: None for a tensor that is not quantized.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


@dataclass(frozen=True)
class Golden:
    """Inputs of a model, and the outputs that an engine gave for them.

    The files are flat little-endian arrays in the tensors' own types, sample after sample.

    Attributes:
        samples: How many.
        inputs: One path for each input.
        outputs: One path for each output.
        sha256: Path -> SHA-256, for all of them.
        engine: Which engine computed.
        engine_version: Version of its package.
        kernels: Its kernel set.
        tolerance_steps: How many steps quantized outputs of other kernels may differ.
        tolerance: |got - want| <= tolerance * max(1, |want|) of float outputs; None without one.
    """

    samples: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: Mapping[str, str] = field(repr=False)
    engine: str
    engine_version: str
    kernels: str
    tolerance_steps: int
    tolerance: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "samples": self.samples,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "sha256": dict(self.sha256),
            "engine": self.engine,
            "engine_version": self.engine_version,
            "kernels": self.kernels,
            "tolerance_steps": self.tolerance_steps,
            "tolerance": self.tolerance,
        }


@dataclass(frozen=True)
class BundleModel:
    """A model of a bundle.

    Attributes:
        file: Path in the bundle's folder.
        kind: The artifact's kind.
        sha256: Of the file.
        bytes: Its size.
        runtime: `litert`, `lce` or `tflm`.
        inputs: The model's inputs.
        outputs: The model's outputs.
        golden: None if there are no samples, or the engine is missing.
    """

    file: str
    kind: str
    sha256: str
    bytes: int
    runtime: str
    inputs: tuple[BundleTensor, ...]
    outputs: tuple[BundleTensor, ...]
    golden: Golden | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "file": self.file,
            "kind": self.kind,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "runtime": self.runtime,
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "golden": None if self.golden is None else self.golden.to_dict(),
        }


@dataclass(frozen=True)
class Bundle:
    """What an export hands to who runs it.

    Attributes:
        name: For people.
        target: Name of the target profile; None if the export had none.
        models: The file that ships first, then the others.
        budgets: `max_latency_us`, `max_file_size`, `max_ram`, `min_accuracy`; None for no limit.
        version: Version of edgecompress.
        labels: Names of the classes; None if they are not known.
        record: The compression record's JSON form; None without one.
        folder: Where it lies; None for one that is not written yet.
        sha256: Of bundle.json; "" for one that is not written yet.
    """

    name: str
    target: str | None
    models: tuple[BundleModel, ...]
    budgets: Mapping[str, float | None]
    version: str
    labels: tuple[str, ...] | None = None
    record: Mapping[str, Any] | None = field(default=None, repr=False)
    folder: Path | None = field(default=None, compare=False)
    sha256: str = field(default="", compare=False)

    def to_json(self) -> str:
        """Returns the text of bundle.json."""
        content = {
            "schema": BUNDLE_SCHEMA,
            "name": self.name,
            "target": self.target,
            "tool": {"name": "edgecompress", "version": self.version},
            "models": [model.to_dict() for model in self.models],
            "labels": None if self.labels is None else list(self.labels),
            "budgets": dict(self.budgets),
            "record": self.record,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def files(self) -> tuple[str, ...]:
        """Returns the paths of all files of the bundle, bundle.json last."""
        found: list[str] = []
        for model in self.models:
            found.append(model.file)
            if model.golden is not None:
                found += [*model.golden.inputs, *model.golden.outputs]
        return (*dict.fromkeys(found), BUNDLE_FILE)

    def content(self, path: str) -> bytes:
        """Returns the content of a file of the bundle."""
        return _content(self.folder or Path(), path)

    def samples(
        self, model: BundleModel
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]] | None:
        """Returns golden inputs and outputs, each (samples, ...); None if there are none."""
        golden = model.golden
        if golden is None:
            return None

        def arrays(
            paths: tuple[str, ...], tensors: tuple[BundleTensor, ...]
        ) -> tuple[np.ndarray, ...]:
            return tuple(
                np.frombuffer(self.content(path), np.dtype(tensor.dtype).newbyteorder("<")).reshape(
                    (golden.samples, *tensor.shape[1:])
                )
                for path, tensor in zip(paths, tensors, strict=True)
            )

        return arrays(golden.inputs, model.inputs), arrays(golden.outputs, model.outputs)


def read_bundle(path: Path | str) -> Bundle:
    """Reads a bundle and compares all of its files with what it says of them.

    Args:
        path: The folder of bundle.json, or bundle.json itself.

    Raises:
        ModelFileError: it is missing or damaged, a path leads outside its folder, or a file is
            missing or another one.

    Example:
        >>> read_bundle("build/").models[0].kind  # doctest: +SKIP
        'int8'
    """
    file = Path(path)
    if file.is_dir():
        file = file / BUNDLE_FILE
    try:
        data = read_bytes(file, JSON_LIMIT, links=False)
    except UnreadableFileError as error:
        raise ModelFileError(
            f"{error} Give the folder of an export with a phone or the host among its targets."
        ) from error
    root = parse_json(data, file)
    reader = _Reader(file)
    bundle = reader.bundle(root, sha256(data))
    for model in bundle.models:
        reader.check_file(model.file, model.sha256, model.bytes)
        golden = model.golden
        if golden is not None:
            pairs = [*zip(golden.inputs, model.inputs, strict=True),
                     *zip(golden.outputs, model.outputs, strict=True)]  # fmt: skip
            for name, tensor in pairs:
                reader.check_file(name, golden.sha256[name], tensor.bytes * golden.samples)
    return bundle


def _content(folder: Path, path: str, size: int | None = None) -> bytes:
    """Returns the content of a file, read only where it has the size that it should have."""
    try:
        place = inside(folder, path)
        found = file_size(place, links=False)
        if size is not None and found != size:
            raise UnreadableFileError(place, f"has {found} bytes, but {BUNDLE_FILE} says {size}")
        return read_bytes(place, links=False)
    except UnreadableFileError as error:
        raise ModelFileError(f"{error} Export again.") from error


class _Reader:
    """Checks the parts of a bundle; whatever is wrong is one line that names the place."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _wrong(self, place: str, rule: str, got: object) -> ModelFileError:
        shown = repr(got)
        return ModelFileError(
            f"{self._file}: {place} must be {rule}. Got {shown[:80]}. Export again."
        )

    def _get(self, value: Any, key: str, kinds: type | tuple[type, ...], place: str) -> Any:
        found = value.get(key) if isinstance(value, Mapping) else None
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            names = " or ".join(_KINDS[kind] for kind in kinds)
            raise self._wrong(f"{place}{key}", names, found)
        return found

    def _path(self, value: Any, place: str) -> str:
        if not isinstance(value, str) or not is_inside(value):
            raise self._wrong(place, "a path inside the bundle's folder", value)
        return value

    def bundle(self, root: Any, digest: str) -> Bundle:
        schema = root.get("schema") if isinstance(root, Mapping) else None
        if schema != BUNDLE_SCHEMA:
            raise self._wrong("schema", f"{BUNDLE_SCHEMA}, which this version reads", schema)
        models = self._get(root, "models", list, "")
        if not models:
            raise self._wrong("models", "a list of at least one model", models)
        budgets = self._get(root, "budgets", Mapping, "")
        numbers = (int, float, type(None))
        labels = self._get(root, "labels", (list, type(None)), "")
        return Bundle(
            name=self._get(root, "name", str, ""),
            target=self._get(root, "target", (str, type(None)), ""),
            models=tuple(self._model(m, f"models[{i}].") for i, m in enumerate(models)),
            budgets={name: self._get(budgets, name, numbers, "budgets.") for name in BUDGETS},
            version=str(self._get(self._get(root, "tool", Mapping, ""), "version", str, "tool.")),
            labels=None if labels is None else tuple(map(str, labels)),
            record=self._get(root, "record", (Mapping, type(None)), ""),
            folder=self._file.parent,
            sha256=digest,
        )

    def _model(self, entry: Any, place: str) -> BundleModel:
        runtime = self._get(entry, "runtime", str, place)
        if runtime not in RUNTIMES:
            raise self._wrong(f"{place}runtime", f"one of {', '.join(RUNTIMES)}", runtime)
        digest = self._get(entry, "sha256", str, place)
        if not _SHA256.fullmatch(digest):
            raise self._wrong(f"{place}sha256", "64 hexadecimal digits", digest)
        inputs, outputs = (
            tuple(
                self._tensor(t, f"{place}{key}[{i}].")
                for i, t in enumerate(self._get(entry, key, list, place))
            )
            for key in ("inputs", "outputs")
        )
        golden = self._get(entry, "golden", (Mapping, type(None)), place)
        return BundleModel(
            self._path(entry.get("file"), f"{place}file"),
            self._get(entry, "kind", str, place),
            digest,
            self._get(entry, "bytes", int, place),
            runtime,
            inputs,
            outputs,
            None if golden is None else self._golden(golden, inputs, outputs, f"{place}golden."),
        )

    def _tensor(self, entry: Any, place: str) -> BundleTensor:
        shape = self._get(entry, "shape", list, place)
        if not all(type(size) is int and size > 0 for size in shape):
            raise self._wrong(f"{place}shape", "a list of sizes", shape)
        dtype = self._get(entry, "dtype", str, place)
        if dtype not in _DTYPES:
            raise self._wrong(f"{place}dtype", f"one of {', '.join(_DTYPES)}", dtype)
        return BundleTensor(
            self._get(entry, "name", str, place),
            tuple(shape),
            dtype,
            self._get(entry, "scale", (int, float, type(None)), place),
            self._get(entry, "zero_point", (int, type(None)), place),
        )

    def _golden(
        self,
        entry: Mapping[str, Any],
        inputs: tuple[BundleTensor, ...],
        outputs: tuple[BundleTensor, ...],
        place: str,
    ) -> Golden:
        digests = self._get(entry, "sha256", Mapping, place)
        files = []
        for key, tensors in (("inputs", inputs), ("outputs", outputs)):
            paths = self._get(entry, key, list, place)
            if len(paths) != len(tensors):
                raise self._wrong(f"{place}{key}", f"{len(tensors)} files, one a tensor", paths)
            for path in paths:
                self._path(path, f"{place}{key}")
                if not _SHA256.fullmatch(str(digests.get(path))):
                    raise self._wrong(f"{place}sha256", f"one of each file; {path} has none", None)
            files.append(tuple(paths))
        samples = self._get(entry, "samples", int, place)
        if samples < 1:
            raise self._wrong(f"{place}samples", "at least 1", samples)
        return Golden(
            samples,
            files[0],
            files[1],
            dict(digests),
            self._get(entry, "engine", str, place),
            self._get(entry, "engine_version", str, place),
            self._get(entry, "kernels", str, place),
            self._get(entry, "tolerance_steps", int, place),
            self._get(entry, "tolerance", (int, float, type(None)), place),
        )

    def check_file(self, path: str, digest: str, size: int) -> None:
        """Refuses a file that is not the one the bundle names."""
        folder = self._file.parent
        data = _content(folder, path, size)
        if sha256(data) != digest:
            raise ModelFileError(
                f"{folder / path} is another file than {BUNDLE_FILE} names (SHA-256): export again."
            )


BUDGETS = ("max_latency_us", "max_file_size", "max_ram", "min_accuracy")
_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    Mapping: "an object",
    type(None): "null",
}
