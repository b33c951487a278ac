"""bundle.json: what an export writes next to its files, so that others can run and check them.

docs/bundle.schema.json describes the file. Whoever reads one trusts nothing in it: paths stay
inside the bundle's folder, and every file is compared with its SHA-256.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from edgecompress.core.errors import ModelFileError, UnreadableFileError
from edgecompress.core.files import sha256
from edgecompress.core.forms import (
    AboveZero,
    Count,
    Fault,
    Items,
    NotNegative,
    Number,
    Object,
    Positive,
    Rule,
    Sha256,
    Share,
    Text,
    Whole,
    filled,
    is_sha256,
    one_of,
    read,
    this_schema,
)
from edgecompress.core.reading import JSON_LIMIT, file_size, inside, is_inside, read_bytes
from edgecompress.core.structured import parse_json

BUNDLE_SCHEMA = "edgecompress.bundle/1"
BUNDLE_FILE = "bundle.json"
RUNTIMES = ("litert", "lce", "tflm")
_DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")

# NumPy's arrays have 32 dimensions at most.
_SHAPE = Rule("a list of sizes", lambda shape: len(shape) <= 32, {"maxItems": 32}, whole=True)
# Relative, with /, inside the folder: no leading /, no drive, no backslash, no empty, . or .. part.
_PART = r"(?!\.{1,2}(?:/|(?![\s\S])))[^/\\\u0000]+"
Inside = Annotated[
    Text,
    Rule(
        "a path inside the bundle's folder",
        is_inside,
        {"pattern": rf"^(?![A-Za-z]:){_PART}(?:/{_PART})*(?![\s\S])"},
        whole=True,
    ),
]
Digests = Annotated[
    Object,
    Rule(
        "the SHA-256 of each file",
        lambda digests: all(map(is_sha256, digests.values())),
        {"additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    ),
]


@dataclass(frozen=True)
class BundleTensor:
    """An input or an output of a model.

    Attributes:
        name: As the file has it.
        shape: With the leading 1 of the batch.
        dtype: numpy's name of the type.
        scale: real = scale * (stored - zero_point); null for a tensor that is not quantized.
        zero_point: Null for a tensor that is not quantized.
    """

    name: Text
    shape: Annotated[Items[Positive], _SHAPE]
    dtype: Annotated[Text, one_of(*_DTYPES)]
    scale: Number | None = None
    zero_point: Whole | None = None

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Golden:
    """Inputs of a model, and the outputs that an engine gave for them.

    The files are flat little-endian arrays in the tensors' own dtype, sample after sample.

    Attributes:
        samples: How many samples.
        inputs: One file for each input of the model, in its order.
        outputs: One file for each output of the model, in its order.
        sha256: File -> its SHA-256, for all of them.
        engine: Which engine computed.
        engine_version: Version of its package.
        kernels: Its kernel set: XNNPACK, built-in, LCE, TFLM reference. Quantized outputs are equal
            to the bit only between equal kernels.
        tolerance_steps: How many steps quantized outputs of other kernels may differ.
        tolerance: |got - want| <= tolerance * max(1, |want|) of float outputs; null if no output
            is float.
    """

    samples: Positive
    inputs: Items[Inside]
    outputs: Items[Inside]
    sha256: Digests = field(repr=False)
    engine: Text
    engine_version: Text
    kernels: Text
    tolerance_steps: Count
    tolerance: NotNegative | None = None


@dataclass(frozen=True)
class BundleModel:
    """A model of a bundle.

    Attributes:
        file: Path in the bundle's folder.
        kind: The artifact's kind: float32, int8, binary-weights, xnor, compressed, ...
        sha256: Of the file.
        bytes: Size of the file.
        runtime: The runtime that the file needs: LiteRT, Larq Compute Engine or TensorFlow Lite
            Micro.
        inputs: The model's inputs.
        outputs: The model's outputs.
        golden: Null if there are no samples, or the engine is missing.
    """

    file: Inside
    kind: Text
    sha256: Sha256
    bytes: Count
    runtime: Annotated[Text, one_of(*RUNTIMES)]
    inputs: Items[BundleTensor]
    outputs: Items[BundleTensor]
    golden: Golden | None = None


@dataclass(frozen=True)
class BundleTool:
    """What made the bundle.

    Attributes:
        name: Its name: edgecompress.
        version: Its version.
    """

    name: Text = "edgecompress"
    version: Text = field(kw_only=True)


@dataclass(frozen=True)
class BundleBudgets:
    """The limits that the export was asked to keep; null if there is none.

    Attributes:
        max_latency_us: Microseconds of one inference.
        max_file_size: Bytes of the file.
        max_ram: Bytes that loading and running the model may add to the process.
        min_accuracy: Share, 0 to 1.
    """

    max_latency_us: AboveZero | None = None
    max_file_size: AboveZero | None = None
    max_ram: AboveZero | None = None
    min_accuracy: Share | None = None


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """What `edgecompress export` writes next to its files: bundle.json.

    The demo app and `edgecompress bench` run and check the files by it. Every path is relative to
    the folder of bundle.json and stays inside it. Fields may be added; those listed here stay as
    they are while the schema's number stays. What may be null may also be left out.

    Attributes:
        schema: Name and number of this schema.
        name: What a person calls it; any text in one line.
        target: Name of the target profile, e.g. pixel-8; null if the export had none.
        tool: What made the bundle.
        models: The file that ships first, then those to compare it with.
        labels: Names of the classes, in the order of the first output.
        budgets: The limits that the export was asked to keep.
        record: The compression record, as export stores it.
    """

    schema: Annotated[Text, this_schema(BUNDLE_SCHEMA)]
    name: Text
    target: Text | None = None
    tool: BundleTool
    models: Annotated[Items[BundleModel], filled("a list of at least one model")]
    labels: Items[Text] | None = None
    budgets: BundleBudgets
    record: Object | None = field(default=None, repr=False)


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
        folder: Its location; None if it is not written yet.
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
        content = BundleFile(
            schema=BUNDLE_SCHEMA,
            name=self.name,
            target=self.target,
            tool=BundleTool(version=self.version),
            models=self.models,
            labels=self.labels,
            budgets=BundleBudgets(**self.budgets),
            record=None if self.record is None else dict(self.record),
        )
        return json.dumps(dataclasses.asdict(content), indent=1, allow_nan=False) + "\n"

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
    found = read(
        BundleFile, root if isinstance(root, dict) else {}, functools.partial(_wrong, file)
    )
    for position, model in enumerate(found.models):
        _check_golden(file, model, f"models[{position}].golden")
        _check_file(file.parent, model.file, model.sha256, model.bytes)
        golden = model.golden
        if golden is not None:
            pairs = [*zip(golden.inputs, model.inputs, strict=True),
                     *zip(golden.outputs, model.outputs, strict=True)]  # fmt: skip
            for name, tensor in pairs:
                size = tensor.bytes * golden.samples
                _check_file(file.parent, name, golden.sha256[name], size)
    return Bundle(
        name=found.name,
        target=found.target,
        models=found.models,
        budgets=dataclasses.asdict(found.budgets),
        version=found.tool.version,
        labels=found.labels,
        record=found.record,
        folder=file.parent,
        sha256=sha256(data),
    )


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


def _wrong(file: Path, fault: Fault) -> ModelFileError:
    shown = repr(fault.got)
    return ModelFileError(
        f"{file}: {fault.place} must be {fault.rule}. Got {shown[:80]}. Export again."
    )


def _check_golden(file: Path, model: BundleModel, place: str) -> None:
    """Refuses golden files that are not one for each tensor, or that have no SHA-256."""
    golden = model.golden
    if golden is None:
        return
    for key, paths, tensors in (
        ("inputs", golden.inputs, model.inputs),
        ("outputs", golden.outputs, model.outputs),
    ):
        if len(paths) != len(tensors):
            rule = f"{len(tensors)} files, one a tensor"
            raise _wrong(file, Fault(f"{place}.{key}", rule, list(paths)))
        for path in paths:
            if path not in golden.sha256:
                rule = f"one of each file; {path} has none"
                raise _wrong(file, Fault(f"{place}.sha256", rule, None))


def _check_file(folder: Path, path: str, digest: str, size: int) -> None:
    """Refuses a file that is not the one the bundle names."""
    if sha256(_content(folder, path, size)) != digest:
        raise ModelFileError(
            f"{folder / path} is another file than {BUNDLE_FILE} names (SHA-256): export again."
        )
