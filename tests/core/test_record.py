"""The record travels beside the model's file and is never applied to another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.core.errors import ModelFileError
from edgecompress.core.record import (
    CompressionRecord,
    attach_record,
    load_model,
    read_record,
    record_of,
    sidecar_path,
    write_record,
)

_FULL = CompressionRecord(
    steps=({"technique": "magnitude_pruning", "final_sparsity": 0.8, "layers": ["conv"]},),
    ranges={"conv": (0.0, 6.0), "input:0": (-1.5, 1.5)},
    removed_channels={"conv": (16, 9)},
    notes=("Layer 'head' was skipped: it is the output layer.",),
    weights={"conv": "5bf1d46a3d6a5c8e"},
    outdated=("head",),
    weight_scales={"conv/kernel": (0.25, 0.5)},
)


def _model() -> Any:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])


def test_every_field_survives_json() -> None:
    assert all(getattr(_FULL, name) for name in CompressionRecord.__dataclass_fields__)
    assert CompressionRecord.from_dict(json.loads(json.dumps(_FULL.to_dict()))) == _FULL


def test_numpy_values_become_plain_ones() -> None:
    record = CompressionRecord(
        steps=({"technique": "group_lasso", "lambda": np.float32(0.5), "norms": np.arange(2)},),
        ranges={"conv": (np.float32(-1), np.float32(1))},
    )
    assert json.loads(json.dumps(record.to_dict()))["steps"][0] == {
        "technique": "group_lasso",
        "lambda": 0.5,
        "norms": [0, 1],
    }


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_ranges_that_no_quantizer_could_use(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="range of 'conv' must be finite and ordered"):
        CompressionRecord(ranges={"conv": bounds})


def test_merging() -> None:
    later = CompressionRecord(
        steps=({"technique": "quantization_aware_training"},),
        ranges={"conv": (0.0, 5.0), "head": (-3.0, 3.0)},
        notes=(*_FULL.notes, "new"),
    )
    merged = _FULL.merged(later)
    techniques = [step["technique"] for step in merged.steps]
    assert techniques == ["magnitude_pruning", "quantization_aware_training"]
    assert merged.ranges == {"conv": (0.0, 5.0), "input:0": (-1.5, 1.5), "head": (-3.0, 3.0)}
    assert merged.removed_channels == {"conv": (16, 9)}
    assert merged.notes == (_FULL.notes[0], "new")
    assert CompressionRecord().merged(_FULL) == _FULL.merged(CompressionRecord()) == _FULL


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_saving_a_model_writes_the_sidecar(tmp_path: Path, name: str) -> None:
    model = _model()
    attach_record(model, _FULL)
    model.save(tmp_path / name)
    assert sidecar_path(tmp_path / name).name == f"{name}.edgecompress.json"
    assert read_record(tmp_path / name) == (_FULL, None)
    # The file itself stays plain Keras.
    loaded = keras.saving.load_model(tmp_path / name, compile=False)
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(model(x), loaded(x))
    assert record_of(loaded) == CompressionRecord()
    # Loaded with its record, it writes it again.
    kept = load_model(tmp_path / name, compile=False)
    assert record_of(kept) == _FULL
    kept.save(tmp_path / f"again_{name}")
    assert read_record(tmp_path / f"again_{name}") == (_FULL, None)


def test_the_latest_record_is_saved(tmp_path: Path) -> None:
    model = _model()
    attach_record(model, CompressionRecord(notes=("first",)))
    attach_record(model, record_of(model).merged(CompressionRecord(notes=("second",))))
    model.save(tmp_path / "m.keras")
    record, reason = read_record(tmp_path / "m.keras")
    assert reason is None and record is not None
    assert record.notes == record_of(model).notes == ("first", "second")


def test_model_without_record_writes_none(tmp_path: Path) -> None:
    _model().save(tmp_path / "m.keras")
    assert read_record(tmp_path / "m.keras") == (None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]


def test_a_record_of_other_weights_is_not_used(tmp_path: Path) -> None:
    model = _model()
    attach_record(model, _FULL)
    model.save(tmp_path / "m.keras")
    _model().save(tmp_path / "m.keras")  # the sidecar of the first one still lies there
    record, reason = read_record(tmp_path / "m.keras")
    # What was dropped is known by name, so that it can be asked for.
    assert record == CompressionRecord(outdated=("conv", "input:0"))
    assert reason is not None and "another version of m.keras" in reason and "not used" in reason
    loaded = record_of(load_model(tmp_path / "m.keras"))
    assert not loaded.ranges and loaded.outdated == record.outdated and loaded.notes == (reason,)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": "edgecompress.record/1"}',
        '{"schema": "edgecompress.record/9", "model_sha256": "", "record": {}}',
        '{"schema": "edgecompress.record/1", "model_sha256": "", "record": {"steps": 3}}',
        '{"schema": "edgecompress.record/1", "model_sha256": "", "record": {"steps": [],'
        ' "ranges": {"a": [1, 0]}, "removed_channels": {}, "notes": []}}',
    ],
)
def test_damaged_sidecar(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.keras").write_bytes(b"model")
    sidecar_path(tmp_path / "m.keras").write_text(content)
    with pytest.raises(ModelFileError, match="is not a compression record .* Delete it or save"):
        read_record(tmp_path / "m.keras")


def test_sidecar_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"model")
    sidecar_path(tmp_path / "m.keras").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError, match="is not a compression record"):
        read_record(tmp_path / "m.keras")


def test_sidecar_whose_model_is_gone(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"model")
    write_record(_FULL, tmp_path / "m.keras")
    (tmp_path / "m.keras").unlink()
    with pytest.raises(ModelFileError, match="m.keras does not exist"):
        read_record(tmp_path / "m.keras")
