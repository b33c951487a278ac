"""The compression record: what training did to a model, stored next to its file.

A `.keras` file stores weights and layers, but not the ranges that training simulated or what was
pruned. Callbacks and `finalize` attach a record to the model; `model.save` then writes it into a
sidecar, `<model file>.edgecompress.json`, and `export` reads it back. The sidecar names the SHA-256
of the model file it belongs to, so that a record is never applied to other weights.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ModelFileError, UnreadableFileError
from edgecompress.core.files import jsonable, sha256, write_atomic
from edgecompress.core.reading import read_json, sha256_of

RECORD_SCHEMA = "edgecompress.record/1"
_ATTRIBUTE = "_edgecompress_record"
_BEFORE_SAVE = "_edgecompress_before_save"


@dataclass(frozen=True)
class CompressionRecord:
    """What was done to a model.

    Attributes:
        steps: One mapping for each technique in the order of training; its key `technique` names
            it (`magnitude_pruning`, `group_lasso`, `quantization_aware_training`, ...), the others
            are its settings and results.
        ranges: Activation ranges that training simulated: tap -> (minimum, maximum). A tap is a
            layer's name for the layer's output, `<layer>/pre_activation` for the linear output of
            a layer whose own activation cannot be fused (softmax, sigmoid, ...), and `input:0`,
            `input:1`, ... for the model's inputs by position.
        removed_channels: Layer -> (channels before, channels after) of physically removed ones.
        notes: What was skipped or left masked, with the reason, one sentence each.
        weights: Layer -> hash of its weights when the ranges were learnt
            (`core.learnt_ranges`); empty in records of earlier versions.
        weight_scales: Learnt scales of kernels, `<layer>/<attribute>` -> one for each channel, or
            one. They belong to the weights, as the ranges do.
        outdated: Taps whose learnt ranges were dropped because weights changed afterwards.

    Example:
        >>> record_of(model).ranges  # doctest: +SKIP
        {'input:0': (0.0, 1.0), 'relu': (0.0, 5.2)}
    """

    steps: tuple[Mapping[str, Any], ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    removed_channels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    outdated: tuple[str, ...] = ()
    weight_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses unusable ranges."""
        for tap, (low, high) in self.ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"range of {tap!r} must be finite and ordered. Got {(low, high)}.")
        for kernel, scales in self.weight_scales.items():
            if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
                raise ValueError(f"scales of {kernel!r} must be finite and positive.")

    def merged(self, other: CompressionRecord) -> CompressionRecord:
        """Merges two records; if both have a range or a layer, `other` wins."""
        return CompressionRecord(
            steps=(*self.steps, *other.steps),
            ranges={**self.ranges, **other.ranges},
            removed_channels={**self.removed_channels, **other.removed_channels},
            notes=(*self.notes, *(n for n in other.notes if n not in self.notes)),
            weights={**self.weights, **other.weights},
            outdated=tuple(
                dict.fromkeys(t for t in (*self.outdated, *other.outdated) if t not in other.ranges)
            ),
            weight_scales={**self.weight_scales, **other.weight_scales},
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "steps": jsonable(self.steps),
            "ranges": jsonable(self.ranges),
            "removed_channels": jsonable(self.removed_channels),
            "notes": list(self.notes),
            "weights": dict(self.weights),
            "outdated": list(self.outdated),
            **({"weight_scales": jsonable(self.weight_scales)} if self.weight_scales else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionRecord:
        """Returns the record that `to_dict` described."""
        return cls(
            steps=tuple(dict(step) for step in data["steps"]),
            ranges={tap: (float(low), float(high)) for tap, (low, high) in data["ranges"].items()},
            removed_channels={
                k: (int(a), int(b)) for k, (a, b) in data["removed_channels"].items()
            },
            notes=tuple(data["notes"]),
            weights={str(k): str(v) for k, v in data.get("weights", {}).items()},
            outdated=tuple(map(str, data.get("outdated", ()))),
            weight_scales={
                str(kernel): tuple(map(float, scales))
                for kernel, scales in data.get("weight_scales", {}).items()
            },
        )


def sidecar_path(model_path: Path | str) -> Path:
    """Returns the path of a model file's record: `<model file>.edgecompress.json`."""
    return Path(f"{model_path}.edgecompress.json")


def write_record(record: CompressionRecord, model_path: Path | str) -> Path:
    """Writes the sidecar of an existing model file."""
    text = sidecar_text(record, Path(model_path).read_bytes())
    return write_atomic(sidecar_path(model_path), text)


def sidecar_text(record: CompressionRecord, model: bytes) -> str:
    """Returns the content of the sidecar of a model file with the bytes `model`."""
    content = {
        "schema": RECORD_SCHEMA,
        "model_sha256": sha256(model),
        "record": record.to_dict(),
    }
    return json.dumps(content, indent=1) + "\n"


def read_record(model_path: Path | str) -> tuple[CompressionRecord | None, str | None]:
    """Returns the record next to a model file and, if it cannot be used, why.

    Returns:
        (record, None) if a sidecar belongs to the file, (None, None) if there is none. If a sidecar
        was written for different bytes: a record that contains only the taps of the unused ranges,
        in `outdated`, and the reason.

    Raises:
        ModelFileError: the sidecar is damaged, or the model file cannot be read.
    """
    path = sidecar_path(model_path)
    if not path.exists():
        return None, None
    try:
        content = read_json(path)
        if content["schema"] != RECORD_SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, not {RECORD_SCHEMA!r}")
        record = CompressionRecord.from_dict(content["record"])
        expected = content["model_sha256"]
    except UnreadableFileError as error:
        raise ModelFileError(
            f"{path} is not a compression record (it {error.problem}). Delete it or save the model "
            "again."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is not a compression record ({error}). Delete it or save the model again."
        ) from error
    found = sha256_of(model_path)
    if found != expected:
        return CompressionRecord(outdated=tuple(record.ranges)), (
            f"{path.name} was written for another version of {Path(model_path).name} and is not "
            "used: learnt ranges are ignored. Save the finalized model again with model.save()."
        )
    return record, None


def record_of(model: Any) -> CompressionRecord:
    """Returns the record attached to a Keras model; an empty one if there is none."""
    return getattr(model, _ATTRIBUTE, None) or CompressionRecord()


def attach_record(model: Any, record: CompressionRecord) -> None:
    """Replaces the model's record and makes `model.save` write it next to the file.

    `save` is overridden on this instance only: the class, its config and the saved file stay plain
    Keras.
    """
    first = getattr(model, _ATTRIBUTE, None) is None
    # Keras tracks attributes, but ignores a plain dataclass.
    object.__setattr__(model, _ATTRIBUTE, record)
    if not first:
        return
    save = model.save

    @functools.wraps(save)
    def save_with_record(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        update = getattr(model, _BEFORE_SAVE, None)
        if update is not None:
            update()
        result = save(filepath, *args, **kwargs)
        if Path(filepath).is_file():
            write_record(record_of(model), filepath)
        return result

    object.__setattr__(model, "save", save_with_record)


def load_model(path: Path | str, **options: Any) -> Any:
    """Loads a Keras model with its record, for more training or for `export`.

    `keras.saving.load_model` returns a plain model: Keras refuses marks of other packages on its
    own classes, so the record stays in its sidecar. For your own files: an untrusted one is opened
    in a limited process by `export` and `inspect`.

    Args:
        path: A file that `model.save` wrote.
        options: Passed to `keras.saving.load_model`, e.g. `custom_objects` and `compile`.

    Returns:
        The model. It has no ranges if the sidecar was written for another file: its record's notes
        say so.

    Raises:
        ModelFileError: the sidecar is damaged.
        ValueError: Keras cannot read the file.

    Example:
        >>> model = ec.load_model("model.keras")  # doctest: +SKIP
        >>> record_of(model).ranges  # doctest: +SKIP
        {'input:0': (0.0, 1.0), 'relu': (0.0, 5.2)}
    """
    import keras

    model = keras.saving.load_model(path, **options)
    record, reason = read_record(path)
    if record is not None:
        attach_record(model, record.merged(CompressionRecord(notes=(reason,) if reason else ())))
    return model


def before_save(model: Any, update: Callable[[], None] | None) -> None:
    """Sets a function that updates the record before `model.save` writes it; None for none."""
    object.__setattr__(model, _BEFORE_SAVE, update)
