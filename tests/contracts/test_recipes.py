"""What every recipe promises: it runs with its defaults, and what it makes can be shipped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.options import options_of
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.recipes import RECIPES
from edgecompress.recipes.results import CompressionResult

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

_SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "compression.schema.json"
_X = np.random.default_rng(0).normal(size=(96, 8)).astype("f4")
_Y = np.argmax(_X[:, :3], axis=1)

every_recipe = pytest.mark.parametrize("name", sorted(RECIPES))


def _classifier() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(160, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ],
        name="tiny",
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(_X, _Y, epochs=12, verbose=0)
    return model


@dataclasses.dataclass(frozen=True)
class _Run:
    """A recipe with its defaults: the result, its folder, and what the given model was."""

    result: CompressionResult
    folder: Path
    model: Any
    before: list[np.ndarray]
    epochs: list[Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, _Run]:
    made = {}
    for name in RECIPES:
        folder, model, epochs = tmp_path_factory.mktemp(name) / "out", _classifier(), []
        before = model.get_weights()
        result = ec.compress(
            model, (_X, _Y), name, output=folder, targets=["cortex-m4"], on_epoch=epochs.append
        )
        made[name] = _Run(result, folder, model, before, epochs)
    return made


@every_recipe
def test_it_compresses_with_its_defaults(name: str, runs: Mapping[str, _Run]) -> None:
    run = runs[name]
    stages = run.result.stages
    assert stages[0].name == "original" and stages[-1].name == "file"
    assert stages[-1].kept <= stages[0].weights
    assert len({(e.stage, e.epoch) for e in run.epochs}) == len(run.epochs)
    assert sum(stage.epochs for stage in stages) == len(run.epochs)
    for old, new in zip(run.before, run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@every_recipe
def test_its_file_ships_and_its_report_is_valid(name: str, runs: Mapping[str, _Run]) -> None:
    run = runs[name]
    report = json.loads((run.folder / "compression.json").read_text())
    jsonschema.validate(report, json.loads(_SCHEMA.read_text()))
    files = sorted(run.folder.glob("*.tflite"))
    assert files
    smallest = min(path.stat().st_size for path in files)
    assert smallest < sum(weight.nbytes for weight in run.before)
    assert all(read_tflite(path.read_bytes()).operators for path in files)
    settings = {option.name for option in options_of(RECIPES[name].settings)}
    assert settings and settings <= set(report["settings"])


@every_recipe
def test_the_same_call_ends_with_the_same_file(name: str, runs: Mapping[str, _Run]) -> None:
    run = runs[name]
    before = {path.name: path.read_bytes() for path in run.folder.glob("*.tflite")}
    again: list[Any] = []
    ec.compress(
        run.model, (_X, _Y), name, output=run.folder, targets=["cortex-m4"], on_epoch=again.append
    )
    assert {path.name: path.read_bytes() for path in run.folder.glob("*.tflite")} == before
    assert len(again) < len(run.epochs) or not run.epochs, "finished stages are kept"


@every_recipe
def test_settings_that_it_does_not_have_are_refused(name: str, tmp_path: Path) -> None:
    given = {"output": tmp_path / "out", "targets": ["cortex-m4"]}
    with pytest.raises(UnknownNameError, match=f"setting of {name}"):
        ec.compress(object(), (_X, _Y), name, no_such_setting=1, **given)
    own = {option.name for option in options_of(RECIPES[name].settings)}
    for other in RECIPES:
        for option in options_of(RECIPES[other].settings):
            if option.name not in own:
                with pytest.raises(ArgumentError, match=f"go with --recipe {other}"):
                    ec.compress(object(), (_X, _Y), name, **{option.name: 1}, **given)
    assert not (tmp_path / "out").exists()


@every_recipe
def test_the_command_shows_it_and_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "--help"]) == 0
    page = capsys.readouterr().out
    assert f"With --recipe {name}" in page
    assert all(option.flag in page for option in options_of(RECIPES[name].settings) if option.flag)


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as error:
        ec.compress(object(), (_X, _Y), "zzz", output=tmp_path / "out", targets=["cortex-m4"])
    assert all(name in str(error.value) for name in RECIPES)
