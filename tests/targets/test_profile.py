"""Target profiles: the built-in files, and what is refused in a user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.targets.profile import (
    Budgets,
    Calibration,
    TargetProfile,
    load_target,
    target_names,
)
from edgecompress.targets.rule import RULES

BOARDS = {
    # Flash and the largest block of SRAM, from the makers' data sheets.
    "nucleo-l4r5zi": ("cortex-m4", 120, 2 * 1024**2, 640 * 1024),
    "nrf5340-dk": ("cortex-m33", 128, 1024**2, 512 * 1024),
    "ek-ra6m4": ("cortex-m33", 200, 1024**2, 256 * 1024),
    "ek-ra8d1": ("cortex-m85", 480, 2 * 1024**2, 896 * 1024),
    "disco-f746ng": ("cortex-m7", 216, 1024**2, 320 * 1024),
    "nucleo-u575zi-q": ("cortex-m33", 160, 2 * 1024**2, 768 * 1024),
    "nucleo-h7a3zi-q": ("cortex-m7", 280, 2 * 1024**2, 1024**2),
    "nucleo-g0b1re": ("cortex-m0plus", 64, 512 * 1024, 144 * 1024),
}

OWN = """
name = "my-board"
title = "My board"
kind = "board"
engine = "tflm"
core = "cortex-m4"
clock_mhz = 80
kernels = "cmsis-nn"
flash = "512KiB"
sram = "128KiB"
sources = ["The data sheet."]

[budgets]
max_ram = "96KiB"
max_latency = "60ms"
min_accuracy = 0.9

[latency]
class = "B"
cycles_per_instruction = 1.5

[calibration]
instructions = 1000000
weight_bytes = 20000
milliseconds = 15.0
"""


def own(tmp_path: Path, text: str) -> TargetProfile:
    path = tmp_path / "my-board.toml"
    path.write_text(text)
    return load_target(path)


@pytest.mark.parametrize("name", target_names())
def test_every_built_in_profile_loads_and_names_its_sources(name: str) -> None:
    profile = load_target(name)
    assert profile.name == name
    assert all(source.startswith("https://") for source in profile.sources) or name == "host"
    assert TargetProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.parametrize("name", BOARDS)
def test_boards_have_their_memory(name: str) -> None:
    profile = load_target(name)
    assert (profile.core, profile.clock_mhz, profile.flash, profile.sram) == BOARDS[name]
    assert profile.limits == Budgets(max_flash=profile.flash, max_ram=profile.sram)


def test_bare_cores_phones_and_host_have_no_limits() -> None:
    free = [load_target(name) for name in target_names() if name not in BOARDS]
    assert {p.kind for p in free} == {"core", "phone", "host"}
    assert all(profile.limits == Budgets() for profile in free)
    assert {p.name for p in free if p.kind == "core"} == {
        "cortex-m0plus",
        "cortex-m4",
        "cortex-m7",
        "cortex-m33",
        "cortex-m55",
    }


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    profile = own(tmp_path, OWN)
    assert profile.limits == Budgets(512 * 1024, 96 * 1024, 60e3, 0.9)
    assert profile.calibration == Calibration(1e6, 20000, 15.0)
    assert TargetProfile.from_dict(profile.to_dict()) == profile
    assert load_target(str(tmp_path / "my-board.toml")) == profile


def test_an_unknown_target_names_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean nucleo-l4r5zi"):
        load_target("nucleo-l4r5")
    with pytest.raises(ArgumentError, match=r"path ending in \.toml"):
        load_target("boards/mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock_mhz", "clock_mh", "my-board.toml: key.*Did you mean clock_mhz"),
        ("max_ram", "max_rma", r"\[budgets\]: key.*Did you mean max_ram"),
        ("cycles_per_instruction", "cpi", r"\[latency\]: key"),
        ('engine = "tflm"', 'engine = "tflmm"', "Did you mean tflm"),
        ('engine = "tflm"', 'engine = "litert"', "be tflm for a microcontroller"),
        ('core = "cortex-m4"', 'core = "cortex-m44"', "Did you mean .*cortex-m4"),
        ('core = "cortex-m4"\n', "", "core.*be given for a microcontroller"),
        ("clock_mhz = 80", "clock_mhz = -80", "positive number of MHz"),
        ("clock_mhz = 80", 'clock_mhz = "80"', "clock_mhz.*be a number"),
        ("clock_mhz = 80\n", "", "clock_mhz.*be given for a board"),
        ('sram = "128KiB"\n', "", "sram.*be given for a board"),
        ('flash = "512KiB"', 'flash = "lots"', "flash.*positive size"),
        ('title = "My board"\n', "", "title.*be given"),
        ('title = "My board"', "title = 7", "title.*be text"),
        ('sources = ["The data sheet."]', "sources = []", "at least one source"),
        ('sources = ["The data sheet."]', 'sources = "x"', "list of texts"),
        ('class = "B"', 'class = "A"', "B, B- or C where no published rows are named"),
        ('class = "B"', 'class = "D"', "class.*be a known name"),
        ("cycles_per_instruction = 1.5", "cycles_per_instruction = 0", "between 0.1 and 20"),
        ("cycles_per_instruction = 1.5", "cycles_per_instruction = nan", "not finite"),
        ("min_accuracy = 0.9", "min_accuracy = 90", "between 0 and 1"),
        ('max_latency = "60ms"', "max_latency = 60", "time with a unit"),
        ("milliseconds = 15.0", "milliseconds = 0.0", "calibration milliseconds.*positive"),
        ('kind = "board"', 'kind = "phone"', "my-board.toml.*engine.*litert or lce for a phone"),
        ("[budgets]", "[budgets", "valid TOML"),
        ("[budgets]\n", "budgets = 3\n[other]\n", "key"),
    ],
)
def test_what_a_profile_may_not_say(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    with pytest.raises(ArgumentError, match=message) as caught:
        own(tmp_path, OWN.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="does not exist"):
        load_target(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentError, match="not UTF-8"):
        load_target(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    "values",
    [{"max_ram": 0}, {"max_flash": -1}, {"max_file_size": 1.5}, {"max_latency": float("inf")},
     {"min_accuracy": 1.1}, {"max_ram": True}, {"max_ram": "96KiB"}],
)  # fmt: skip
def test_impossible_budgets_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(values))):
        Budgets(**values)


def test_budgets_of_the_user_come_first() -> None:
    own_limits = Budgets(max_ram=10, min_accuracy=0.0)
    assert own_limits.over(Budgets(max_ram=20, max_flash=30, min_accuracy=0.5)) == Budgets(
        max_ram=10, max_flash=30, min_accuracy=0.0
    )


def test_the_example_of_the_documentation_is_a_target(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text()
    board, calibration = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    plain = own(tmp_path, board)
    assert plain.limits == Budgets(1024**2, 96 * 1024, 100e3)
    assert own(tmp_path, board + calibration).calibration is not None


def test_the_documentation_states_every_rule() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text()
    for name, rule in RULES.items():
        assert f"| `{name}` | {rule.judge.__doc__} |" in page
