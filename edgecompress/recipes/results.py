"""The frozen types that a recipe returns; their JSON form is stable.

docs/compression.schema.json describes the JSON form.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecompress.core import errors
from edgecompress.core.files import jsonable
from edgecompress.core.results import Report, Verdict, accept_undecided, worst_verdict
from edgecompress.recipes.storage import Storage

COMPRESSION_SCHEMA = "edgecompress.compression/1"


@dataclass(frozen=True)
class StageResult:
    """One step from the original model to the file that ships.

    Attributes:
        name: `original`, `int8`, the recipe's stages, `file`.
        title: What it is, a few words.
        metric: On the validation data.
        engine: What measured the metric: `keras` or `tflm`.
        weights: Elements of all kernels.
        kept: Elements other than zero.
        stored_bytes: Bytes of the kernels, by the paper's accounting; for a file's stage None.
        file_bytes: Bytes of the file; None if the stage makes none.
        epochs: How many epochs it trained.
        seconds: How long it took.
        resumed: Whether an earlier run had finished it.
    """

    name: str
    title: str
    metric: float
    engine: str
    weights: int
    kept: int
    stored_bytes: int | None = None
    file_bytes: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    resumed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class LayerResult:
    """A kernel's line in the tables of Deep Compression (tables 2 to 5 of the paper).

    Attributes:
        name: The layer; `<layer>/<variable>` if a layer has several kernels.
        type: Class of the layer.
        weights: Elements of the kernel in the original model.
        storage: What the remaining kernel takes in the paper's format.
        macs: Multiply-accumulates of the kernel in the original model; None if unknown.
        macs_left: Those in the final model, including zeros: what devices compute.
        input_density: Share of non-zero inputs of the layer, 1 for inputs of the model; None if
            unknown. The paper's Act% of the preceding layer.
        coding: How the .tflite file stores it: `lut`, `prune`, `huffman`, `raw`; None if it was not
            found in the file.
        file_bytes: Bytes that it takes in the file, tables included.
    """

    name: str
    type: str
    weights: int
    storage: Storage
    macs: int | None = None
    macs_left: int | None = None
    input_density: float | None = None
    coding: str | None = None
    file_bytes: int | None = None

    @property
    def kept_share(self) -> float:
        """Non-zero weights over the original weights (the paper's Weights%)."""
        return self.storage.kept / self.weights

    @property
    def original_bytes(self) -> int:
        """Bytes of the original kernel, in 32-bit floats."""
        return 4 * self.weights

    @property
    def quantized_rate(self) -> float:
        """Bytes after pruning and quantization over original bytes (Compress rate, P+Q)."""
        return self.storage.quantized_bytes / self.original_bytes

    @property
    def huffman_rate(self) -> float:
        """Bytes after Huffman coding too over original bytes (Compress rate, P+Q+H)."""
        return self.storage.huffman_bytes / self.original_bytes

    @property
    def macs_kept(self) -> int | None:
        """Multiply-accumulates with a non-zero weight."""
        if self.macs_left is None or not self.storage.weights:
            return None
        return round(self.macs_left * self.storage.kept / self.storage.weights)

    @property
    def flop_share(self) -> float | None:
        """Share of the operations with non-zero weight and input (the paper's FLOP%).

        Han, Pool, Tran and Dally, Learning both Weights and Connections for Efficient Neural
        Networks, 2015, https://arxiv.org/abs/1506.02626, table 2: Weights% times Act% before.
        """
        if not self.macs or self.macs_kept is None or self.input_density is None:
            return None
        return self.macs_kept / self.macs * self.input_density

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        stored = self.storage
        return {
            "name": self.name,
            "type": self.type,
            "weights": self.weights,
            "weights_left": stored.weights,
            "kept": stored.kept,
            "kept_share": self.kept_share,
            "values": stored.values,
            "fillers": stored.fillers,
            "weight_bits": stored.weight_bits,
            "index_bits": stored.index_bits,
            "huffman_weight_bits": mean_bits([stored], "huffman_weight_bits"),
            "huffman_index_bits": mean_bits([stored], "huffman_index_bits"),
            "codebook_bytes": stored.codebook_bits // 8,
            "original_bytes": self.original_bytes,
            "quantized_bytes": stored.quantized_bytes,
            "quantized_rate": self.quantized_rate,
            "huffman_bytes": stored.huffman_bytes,
            "huffman_rate": self.huffman_rate,
            "macs": self.macs,
            "macs_left": self.macs_left,
            "macs_kept": self.macs_kept,
            "input_density": self.input_density,
            "flop_share": self.flop_share,
            "coding": self.coding,
            "file_bytes": self.file_bytes,
        }


def mean_bits(rows: Sequence[Storage], name: str) -> float:
    """Returns the mean bits of one stored weight over several kernels.

    Args:
        rows: The kernels.
        name: `weight_bits` or `index_bits`, or `huffman_weight_bits` or `huffman_index_bits`.
    """
    entries = sum(row.entries for row in rows)
    if not entries:
        return 0.0
    if name.startswith("huffman_"):
        return float(sum(getattr(row, name) for row in rows) / entries)
    return float(sum(row.entries * getattr(row, name) for row in rows) / entries)


@dataclass(frozen=True)
class Cost:
    """The cost of one inference on the target; None if unknown.

    Attributes:
        before: The int8 file of the original model.
        uncoded: The int8 file of the final model.
        after: The file that ships, decoding included.
    """

    before: float | None
    uncoded: float | None
    after: float | None

    @property
    def uncoded_rate(self) -> float | None:
        """Speed-up rate without decoding: the effect of removed channels."""
        return _ratio(self.before, self.uncoded)

    @property
    def rate(self) -> float | None:
        """Speed-up rate of the file that ships; below 1 if decoding costs more."""
        return _ratio(self.before, self.after)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **dataclasses.asdict(self),
            "uncoded_rate": self.uncoded_rate,
            "rate": self.rate,
        }


@dataclass(frozen=True)
class Totals:
    """All kernels together, and the files.

    Attributes:
        layers: The lines that are summed.
        float_bytes: Bytes of the float32 .tflite file of the original model.
        int8_bytes: Bytes of its int8 file, without training.
        file_bytes: Bytes of the file that ships.
        download_bytes: Those after zlib at level 9.
        target: The target of latency, instructions and arena.
        latency: Predicted microseconds.
        instructions: Instructions of one inference.
        arena: Bytes of the tensor arena, decoded weights included.
        parameters_before: Weights, biases and normalization of the original model.
        parameters_after: Those of the final model, including zeros.
    """

    layers: tuple[LayerResult, ...] = field(repr=False)
    float_bytes: int
    int8_bytes: int
    file_bytes: int
    download_bytes: int
    target: str
    latency: Cost
    instructions: Cost
    arena: Cost
    parameters_before: int
    parameters_after: int

    def sum(self, value: Callable[[LayerResult], int | None]) -> int:
        """Returns the sum of a value over the layers where it is known."""
        return sum(value(layer) or 0 for layer in self.layers)

    @property
    def weights(self) -> int:
        """Elements of all kernels of the original model."""
        return self.sum(lambda layer: layer.weights)

    @property
    def kept(self) -> int:
        """Non-zero elements in the final model."""
        return self.sum(lambda layer: layer.storage.kept)

    @property
    def original_bytes(self) -> int:
        """Bytes of all original kernels, in 32-bit floats."""
        return self.sum(lambda layer: layer.original_bytes)

    @property
    def quantized_bytes(self) -> int:
        """Bytes of all kernels after pruning and quantization."""
        return self.sum(lambda layer: layer.storage.quantized_bytes)

    @property
    def huffman_bytes(self) -> int:
        """Bytes of all kernels after Huffman coding too."""
        return self.sum(lambda layer: layer.storage.huffman_bytes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the original model."""
        return self.sum(lambda layer: layer.macs)

    @property
    def macs_left(self) -> int:
        """Multiply-accumulates of the final model, including zeros."""
        return self.sum(lambda layer: layer.macs_left)

    @property
    def macs_kept(self) -> int:
        """Multiply-accumulates with a non-zero weight."""
        return self.sum(lambda layer: layer.macs_kept)

    @property
    def flop_share(self) -> float | None:
        """The paper's FLOP% over all layers; None if a layer's is unknown."""
        shares = [(layer.macs or 0, layer.flop_share) for layer in self.layers]
        if not self.macs or any(share is None for macs, share in shares if macs):
            return None
        return sum(macs * share for macs, share in shares if share is not None) / self.macs

    @property
    def parameter_rate(self) -> float | None:
        """Weights before over non-zero weights after; None if none is left."""
        return _ratio(self.weights, self.kept)

    @property
    def paper_rate(self) -> float | None:
        """The paper's compression rate: float bytes over bytes after all three stages."""
        return _ratio(self.original_bytes, self.huffman_bytes)

    @property
    def file_rate(self) -> float | None:
        """Bytes of the float32 file over bytes of the file that ships."""
        return _ratio(self.float_bytes, self.file_bytes)

    @property
    def macs_rate(self) -> float | None:
        """Multiply-accumulates before over those after, including zeros."""
        return _ratio(self.macs, self.macs_left)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        rows = [layer.storage for layer in self.layers]
        return {
            "weights": self.weights,
            "kept": self.kept,
            "kept_share": self.kept / self.weights,
            "weight_bits": mean_bits(rows, "weight_bits"),
            "index_bits": mean_bits(rows, "index_bits"),
            "huffman_weight_bits": mean_bits(rows, "huffman_weight_bits"),
            "huffman_index_bits": mean_bits(rows, "huffman_index_bits"),
            "original_bytes": self.original_bytes,
            "quantized_bytes": self.quantized_bytes,
            "quantized_rate": self.quantized_bytes / self.original_bytes,
            "huffman_bytes": self.huffman_bytes,
            "huffman_rate": self.huffman_bytes / self.original_bytes,
            "macs": self.macs,
            "macs_left": self.macs_left,
            "macs_kept": self.macs_kept,
            "flop_share": self.flop_share,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "float_bytes": self.float_bytes,
            "int8_bytes": self.int8_bytes,
            "file_bytes": self.file_bytes,
            "download_bytes": self.download_bytes,
            "target": self.target,
            "latency_us": self.latency.to_dict(),
            "instructions": self.instructions.to_dict(),
            "arena_bytes": self.arena.to_dict(),
            "rates": {
                "parameters": self.parameter_rate,
                "paper": self.paper_rate,
                "file": self.file_rate,
                "macs": self.macs_rate,
            },
        }


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


@dataclass(frozen=True)
class Drop:
    """How much worse the metric is for the file that ships than for the original model.

    Attributes:
        metric: `accuracy`, `mean_squared_error`, or the name of a Keras metric.
        before: The original Keras model.
        after: The file in its engine.
        drop: How much worse; negative if better.
        limit: The maximum allowed; None for no limit.
        samples: Validation samples.
    """

    metric: str
    before: float
    after: float
    drop: float
    limit: float | None
    samples: int

    @property
    def verdict(self) -> Verdict:
        """`pass`, `fail`, or `not_applicable` without a limit."""
        if self.limit is None:
            return "not_applicable"
        # 0.90 - 0.89 is not more than 0.01, despite binary fractions.
        return "pass" if self.drop <= self.limit + 1e-9 else "fail"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class CompressionResult:
    """The result of a recipe.

    Attributes:
        recipe: The recipe's name.
        name: The model's name.
        path: The model's file; None for a model in memory.
        settings: The recipe's settings, as JSON values.
        data: The training and validation data, as JSON values.
        stages: The steps, in order.
        layers: The paper's tables.
        totals: All layers together, files, latency.
        drop: The loss in the metric.
        report: The verdict on the file that ships, as `edgecompress.export` gives it.
        files: Files of the recipe itself, relative to the output folder.
        notes: What was skipped or done differently, one sentence each, including the report's.
        version: Version of edgecompress.
        argv: The command.
    """

    recipe: str
    name: str
    path: str | None
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    stages: tuple[StageResult, ...]
    layers: tuple[LayerResult, ...]
    totals: Totals
    drop: Drop
    report: Report
    files: tuple[str, ...]
    notes: tuple[str, ...]
    version: str
    argv: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worse of the report's verdict and the verdict on the drop."""
        return worst_verdict([self.report.verdict, self.drop.verdict])

    @property
    def exit_code(self) -> int:
        """The report's; 4 if nothing else failed and the metric dropped more than allowed."""
        code = self.report.exit_code
        if accept_undecided(code) == errors.OK and self.drop.verdict == "fail":
            return errors.BELOW_ACCURACY
        return code

    @property
    def undecided_limits(self) -> tuple[str, ...]:
        """The undecided limits, by name."""
        return self.report.undecided_limits

    def exit_code_for(self, allow_undecided: bool) -> int:
        """Returns the exit code; with `allow_undecided`, 0 in place of 6."""
        return accept_undecided(self.exit_code) if allow_undecided else self.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, as docs/compression.schema.json describes it."""
        return {
            "schema": COMPRESSION_SCHEMA,
            "tool": {"name": "edgecompress", "version": self.version, "argv": list(self.argv)},
            "recipe": self.recipe,
            "model": {"name": self.name, "path": self.path},
            "settings": jsonable(self.settings),
            "data": jsonable(self.data),
            "stages": [stage.to_dict() for stage in self.stages],
            "layers": [layer.to_dict() for layer in self.layers],
            "totals": self.totals.to_dict(),
            "drop": self.drop.to_dict(),
            "verdict": self.verdict,
            "files": list(self.files),
            "notes": list(self.notes),
            "report": self.report.to_dict(),
        }

    def to_json(self) -> str:
        """Returns the JSON text, indented, ending in a newline."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
