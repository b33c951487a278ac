"""What every runner on phones keeps; new ones are found in the registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.options import options_of
from edgecompress.targets.phones.runners import RUNNERS

keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.parametrize("name", RUNNERS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="tiny")
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    ec.export(model, ["pixel-8"], calibration=x, output=folder)
    return folder


def test_it_is_described(name: str) -> None:
    runner = RUNNERS[name]
    assert runner.summary and runner.options() == runner.options()
    assert str(runner.run.__doc__).splitlines()[0].endswith(".")
    assert dataclasses.is_dataclass(runner.options)
    # What the user brings has an option to name it.
    named = {option.name for option in options_of(runner.options)}
    assert ("binary" in named) == (runner.program is not None)


def test_the_command_shows_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert name in capsys.readouterr().out


def test_it_runs_on_a_phone_alone(name: str, bundle: Path) -> None:
    with pytest.raises(ArgumentError, match=r"--adb"):
        ec.bench(bundle, host=name != "app", runner=name)


def test_options_of_others_are_refused_by_name(name: str, bundle: Path, phone: Path) -> None:
    own = {option.name for option in options_of(RUNNERS[name].options)}
    foreign = [
        (other, option)
        for other in RUNNERS
        for option in options_of(RUNNERS[other].options)
        if option.name not in own
    ]
    for other, option in foreign:
        with pytest.raises(ArgumentError, match=f"--runner {other}"):
            ec.bench(bundle, adb=True, runner=name, **{option.name: "x"})


@pytest.mark.parametrize("faults", ["offline", "unauthorized", "gone"])
def test_a_phone_that_is_not_there_is_one_line(
    name: str, faults: str, bundle: Path, phone: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_DEVICES", "" if faults == "gone" else f"PHONE1\t{faults}")
    options = {}
    if RUNNERS[name].program is not None:
        (tmp_path / "program").write_bytes(b"\x7fELF")
        options["binary"] = tmp_path / "program"
    with pytest.raises(EdgeCompressError) as caught:
        ec.bench(bundle, adb=True, runner=name, output=tmp_path / "result.json", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "result.json").exists()
