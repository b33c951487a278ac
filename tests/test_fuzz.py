"""Damaged .tflite files end in one line or a verdict, whatever the damage is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_CASES = 16


def _load_fuzzer() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "fuzz_flatbuffers.py"
    spec = importlib.util.spec_from_file_location("fuzz_flatbuffers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_flatbuffers"] = module
    spec.loader.exec_module(module)
    return module


fuzzer = _load_fuzzer()
_MODELS = [f"{name}{kind}" for name in ("classifier", "autoencoder", "sigmoid", "two")
           for kind in ("", "_int8")] + ["recurrent"]  # fmt: skip


@pytest.mark.parametrize("name", _MODELS)
def test_commands_survive_damage(tiny: Path, tmp_path: Path, name: str) -> None:
    """Every damage is one of a kind: bytes, cuts, numbers, swaps, fields of well-formed files."""
    data = (tiny / f"{name}.tflite").read_bytes()
    path = tmp_path / "damaged.tflite"
    codes = set()
    first = 1000 * _MODELS.index(name)
    for seed in range(first, first + _CASES):
        path.write_bytes(fuzzer.mutate(data, seed))
        for arguments in fuzzer.commands(path, seed):
            code, wrong = fuzzer.problem(arguments)
            assert wrong is None, f"seed {seed}: {' '.join(arguments)}: {wrong}"
            codes.add(code)
    # The damage is neither harmless everywhere nor fatal everywhere.
    assert 1 in codes
    assert codes & {0, 3, 5}


def test_every_damage_changes_the_file_and_repeats(tiny: Path) -> None:
    data = (tiny / "classifier_int8.tflite").read_bytes()
    changed = [fuzzer.mutate(data, seed) for seed in range(40)]
    assert changed == [fuzzer.mutate(data, seed) for seed in range(40)]
    assert len(set(changed) - {data}) > 30


@pytest.mark.parametrize(
    "body, wrong",
    [
        ("raise ValueError('boom')", "ValueError left the command"),
        ("return 9", "exit code 9"),
        ("print('internal error: boom', file=sys.stderr); return 1", "internal error"),
        ("time.sleep(5)", "took more than 0.2 s"),
        ("print('{'); return 0", "no JSON"),
        ("return 1", "takes one line"),
    ],
)
def test_the_fuzzer_sees_failures(monkeypatch: pytest.MonkeyPatch, body: str, wrong: str) -> None:
    space: dict[str, object] = {}
    exec(f"import sys, time\ndef command(arguments):\n    {body}", space)
    monkeypatch.setattr(fuzzer, "command", space["command"])
    arguments = ["inspect", "x"] + (["--json"] if "JSON" in wrong else [])
    assert wrong in fuzzer.problem(arguments, 0.2)[1]
