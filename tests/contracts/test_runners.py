"""What every runner on phones keeps: it explains itself, and `bench` knows it by name."""

from __future__ import annotations

import dataclasses

import pytest

from edgecompress.cli import main
from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import options_of
from edgecompress.targets.phones.runners import RUNNERS, all_runners

NAMES = sorted(all_runners())


@pytest.mark.parametrize("name", NAMES)
def test_its_options_explain_themselves(name: str) -> None:
    runner = RUNNERS[name]
    assert runner.summary and callable(runner.run)
    assert runner.options() == runner.options()
    assert dataclasses.is_dataclass(runner.options)
    assert all(option.help.endswith(".") for option in options_of(runner.options))
    # A runner that needs a program from the user has an option that takes it.
    if runner.program is not None:
        assert options_of(runner.options)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_shows_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert name in capsys.readouterr().out


def test_an_unknown_one_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="--runner") as error:
        all_runners()["zzz"]
    assert sorted(RUNNERS) == NAMES and all(name in str(error.value) for name in NAMES)
