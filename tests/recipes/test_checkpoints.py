"""Finished stages on the disk: found where all fits, done again where anything differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import CompressionRecord, attach_record, read_record
from edgecompress.recipes.checkpoints import Checkpoints, Finished, chain_key


def _model(value: float) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="unit")])
    model.get_layer("unit").kernel.assign(np.full((2, 1), value))
    return model


def _stage(name: str, key: str) -> Finished:
    return Finished(name, key, "", 0.5, 3, 1.5, {"loss": [1.0, None]}, ("a note",))


def _stored(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for number, name in enumerate(("first", "second")):
        assert checkpoints.find(name, f"key {name}") is None
        checkpoints.store(_stage(name, f"key {name}"), _model(number))
    return checkpoints


def test_stages_are_read_back(tmp_path: Path) -> None:
    _stored(tmp_path)
    again = Checkpoints(tmp_path)
    found = again.find("first", "key first")
    assert found is not None
    assert (found.metric, found.epochs, found.seconds) == (0.5, 3, 1.5)
    assert found.history == {"loss": [1.0, None]} and found.notes == ("a note",)
    second = keras.saving.load_model(again.path("second"))
    assert float(second.get_layer("unit").kernel[0, 0]) == 1.0
    assert again.find("second", "key second") is not None


def test_with_the_first_that_differs_all_later_ones_are_done_again(tmp_path: Path) -> None:
    _stored(tmp_path)
    again = Checkpoints(tmp_path)
    assert again.find("first", "another key") is None
    assert again.find("second", "key second") is None
    # The stage that holds stays when a later one is stored anew.
    again = Checkpoints(tmp_path)
    assert again.find("first", "key first") is not None
    assert again.find("second", "new key") is None
    again.store(_stage("second", "new key"), _model(7))
    last = Checkpoints(tmp_path)
    assert last.find("first", "key first") is not None
    assert last.find("second", "new key") is not None


def test_another_file_in_the_place_is_named(tmp_path: Path) -> None:
    _stored(tmp_path)
    (tmp_path / "stages" / "first.keras").write_bytes(b"other")
    again = Checkpoints(tmp_path)
    assert again.find("first", "key first") is None
    assert "first.keras is not what this recipe wrote there" in again.notes[0]
    (tmp_path / "stages" / "first.keras").unlink()
    assert Checkpoints(tmp_path).find("first", "key first") is None


def test_fresh_takes_nothing(tmp_path: Path) -> None:
    _stored(tmp_path)
    assert Checkpoints(tmp_path, fresh=True).find("first", "key first") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/1"}', '{"stages": [1]}'])
def test_a_damaged_state_is_no_state(tmp_path: Path, text: str) -> None:
    _stored(tmp_path)
    (tmp_path / "stages" / "state.json").write_text(text)
    assert Checkpoints(tmp_path).find("first", "key first") is None


@pytest.mark.parametrize(
    "changed", [{"metric": "high"}, {"epochs": None}, {"history": [1]}, {"notes": 5}, {}]
)
def test_a_stage_of_other_types_is_no_stage(tmp_path: Path, changed: dict[str, Any]) -> None:
    _stored(tmp_path)
    place = tmp_path / "stages" / "state.json"
    state = json.loads(place.read_text())
    state["stages"][0].update(changed)
    place.write_text(json.dumps(state))
    assert (Checkpoints(tmp_path).find("first", "key first") is None) is bool(changed)


def test_what_fails_while_storing_leaves_the_stage_before(tmp_path: Path) -> None:
    checkpoints = _stored(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "stages").iterdir()}

    class Broken:
        def save(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.store(_stage("first", "new"), Broken())
    assert {p: p.read_bytes() for p in (tmp_path / "stages").iterdir()} == before


def test_the_record_lies_beside_the_model(tmp_path: Path) -> None:
    model = _model(1)
    attach_record(model, CompressionRecord(notes=("pruned",)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.store(_stage("first", "key"), model)
    record, reason = read_record(checkpoints.path("first"))
    assert reason is None and record is not None and record.notes == ("pruned",)
    state = json.loads((tmp_path / "stages" / "state.json").read_text())
    assert state["schema"] == "edgecompress.compression-state/1"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="`output` must be a folder that can be made"):
        Checkpoints(tmp_path / "file").store(_stage("first", "key"), _model(0))


def test_keys_depend_on_all_that_came_before() -> None:
    keys = {
        chain_key(chain_key(start, {"sparsity": share}), {"clusters": {"*": count}})
        for start in ("a", "b")
        for share in (0.8, 0.9)
        for count in (7, 15)
    }
    assert len(keys) == 8
    assert chain_key("a", {"x": 1, "y": 2}) == chain_key("a", {"y": 2, "x": 1})
