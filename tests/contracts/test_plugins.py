"""Things from packages outside, by Python and by the command line; the product knows none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow


def _place(installed: Any) -> Any:
    """Puts a model and its data where the commands run."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(4, activation="softmax", name="head"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(installed.folder / "toy.keras")
    x = np.random.default_rng(0).normal(size=(80, 8)).astype("f4")
    np.savez(installed.folder / "x.npz", x=x, y=np.argmax(x[:, :4], axis=1))
    return installed


_EXPORT = ("export", "toy.keras", "-t", "host", "--calibration", "x.npz", "-o", "out")
_COMPRESS = (
    "compress", "toy.keras", "--data", "x.npz", "-o", "out", "--epochs", "1", "--clusters", "0",
    "-q", "--sparsity", "0.5", "--min-agreement", "0.01",
)  # fmt: skip


def _compression(installed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((installed.folder / "out" / "compression.json").read_text())
    return found


def test_a_criterion_and_a_pattern(installed: Callable[..., Any]) -> None:
    toys = _place(installed("criterion", "pattern"))
    said = toys.python(
        """
import json, keras, numpy as np, edgecompress as ec
from edgecompress.core.record import record_of
model = keras.saving.load_model("toy.keras")
pruning = ec.Pruning(ec.ConstantSparsity(0.5, 1), "position:scale=2", "rows")
x = np.load("x.npz")
model.fit(x["x"], x["y"], verbose=0, callbacks=[pruning])
print(json.dumps([record_of(model).steps[0], (model.layers[0].kernel.numpy() == 0).tolist()]))
"""
    )
    assert said[0]["criterion"] == {"name": "position", "config": {"scale": 2.0}}
    assert said[0]["pattern"] == {"name": "rows", "config": {}}
    assert said[1] == [[True] * 8] * 4 + [[False] * 8] * 4
    page = toys.command("compress", "--help")
    assert "--criterion" in page and "--pattern" in page
    for axis, names in (("criterion", ("magnitude", "position")), ("pattern", ("rows", "blocks"))):
        refused = toys.command(*_COMPRESS, f"--{axis}", "zzz", code=2)
        assert all(name in refused for name in names)
    toys.command(*_COMPRESS, "--criterion", "position:scale=3", "--pattern", "rows")
    found = _compression(toys)["settings"]
    assert found["criterion"] == {"name": "position", "config": {"scale": 3.0}}
    assert found["pattern"]["name"] == "rows"


def test_a_loss(installed: Callable[..., Any]) -> None:
    toys = _place(installed("loss"))
    assert "--distillation" in toys.command("compress", "--help")
    refused = toys.command(*_COMPRESS, "--distillation", "zzz", code=2)
    assert "logit-distance" in refused and "distillation" in refused
    toys.command(*_COMPRESS, "--distillation", "logit-distance:weight=0.25")
    found = _compression(toys)
    assert found["settings"]["distillation"]["config"] == {"weight": 0.25}
    assert any("LogitDistance" in note for note in found["notes"])


def test_a_rewrite(installed: Callable[..., Any]) -> None:
    toys = _place(installed("rewrite"))
    assert "--surgery" in toys.command("compress", "--help")
    refused = toys.command(*_COMPRESS, "--surgery", "zzz", code=2)
    assert "drop-zero-biases" in refused and "remove-channels" in refused
    toys.command(*_COMPRESS, "--surgery", "drop-zero-biases:tolerance=0.1")
    assert _compression(toys)["settings"]["surgery"][0]["config"] == {"tolerance": 0.1}


def test_a_precision(installed: Callable[..., Any]) -> None:
    toys = _place(installed("precision"))
    assert "--precision" in toys.command("export", "--help")
    refused = toys.command(*_EXPORT, "--precision", "zzz", code=2)
    assert "coarse" in refused and "int8" in refused
    toys.python(
        """
import json, keras, numpy as np, edgecompress as ec
from edgecompress.precisions import PRECISIONS
model = keras.saving.load_model("toy.keras")
x = np.load("x.npz")
coarse = ec.QuantizationAwareTraining(PRECISIONS["coarse"]())
model.fit(x["x"], x["y"], verbose=0, callbacks=[coarse])
model.save("toy.keras")
print(json.dumps(len(np.unique(model.layers[0].kernel))))
"""
    )
    export = [a for a in _EXPORT if a not in ("--calibration", "x.npz")]
    toys.command(*export, "--precision", "coarse")
    report = json.loads((toys.folder / "out" / "report.json").read_text())
    assert "coarse" in [artifact["kind"] for artifact in report["artifacts"]]


def test_a_format_with_an_option(installed: Callable[..., Any]) -> None:
    toys = _place(installed("format_with_option"))
    page = toys.command("export", "--help")
    assert "With --format tagged:" in page and "--tag WORD" in page
    refused = toys.command(*_EXPORT, "--format", "zzz", code=2)
    assert "tagged" in refused and "compressed" in refused
    other = toys.command(*_EXPORT, "--tag", "red", code=2)
    assert "`--tag` must go with --format tagged" in other
    assert "Note: The tag is red." in toys.command(*_EXPORT, "--format", "tagged", "--tag", "red")
    (toys.folder / "edge.toml").write_text('[export]\ntag = "blue"\nformat = "tagged"\n')
    assert "The tag is blue." in toys.command(*_EXPORT, "--config", "edge.toml")


def test_a_recipe_with_an_option(installed: Callable[..., Any]) -> None:
    toys = _place(installed("recipe_with_option"))
    page = toys.command("compress", "--help")
    assert "With --recipe thinning:" in page and "--thinness SHARE" in page
    base = ("compress", "toy.keras", "--data", "x.npz", "-o", "out", "-q",
            "--min-agreement", "0.01")  # fmt: skip
    refused = toys.command(*base, "--recipe", "zzz", code=2)
    assert "thinning" in refused and "deep-compression" in refused
    other = toys.command(*base, "--thinness", "0.5", code=2)
    assert "`--thinness` must go with --recipe thinning" in other
    toys.command(*base, "--recipe", "thinning", "--thinness", "0.25")
    found = _compression(toys)
    assert found["recipe"] == "thinning"
    assert (found["settings"]["thinness"], found["settings"]["sparsity"]) == (0.25, 0.25)


_CHIP = """name = "chip-1"
title = "Chip One"
kind = "chip"
engine = "litert"
sources = ["none"]
clock_mhz = 1.0
"""


def test_a_family_of_targets(installed: Callable[..., Any]) -> None:
    toys = _place(installed("family"))
    (toys.folder / "chip.toml").write_text(_CHIP)
    (toys.folder / "other.toml").write_text(_CHIP + 'family = "zzz"\n')
    for command in ("export", "check", "compress"):
        assert "--lanes N" in toys.command(command, "--help")
    export = [word if word != "host" else "chip.toml" for word in _EXPORT]
    said = toys.command(*export, "--max-latency", "100us")
    # 8 x 8 and 8 x 4 multiplications in 8 lanes at 1 MHz; RAM, flash without limits are open.
    assert "12.0 us" in said and "NOT MEASURED" in said.upper()
    slow = toys.command(*export, "--max-latency", "100us", "--lanes", "2", code=0)
    assert "48.0 us" in slow
    over = toys.command(*export, "--max-latency", "10us", code=3)
    assert "8 lanes take 12 us." in over
    report = json.loads((toys.folder / "out" / "report.json").read_text())
    latency = next(c for c in report["targets"][0]["checks"] if c["rule"] == "latency")
    assert latency["detail"] == {"lanes": 8}
    refused = toys.command("check", "out/toy_int8.tflite", "-t", "other.toml", code=2)
    assert all(name in refused for name in ("lanes", "tflm", "litert", "host"))
    assert toys.command(*export, "--format", "compressed", code=2).count("a microcontroller") == 1
    found = toys.python(
        """
import json, edgecompress as ec
report = ec.check("out/toy_int8.tflite", ["chip.toml"], lanes=4)
print(json.dumps(report.to_dict()["targets"][0]["checks"]))
"""
    )
    assert next(c for c in found if c["rule"] == "latency")["measured"] == 24.0
    # What the family does not say is unknown, and a limit on it is undecided.
    assert {c["rule"] for c in found if c["verdict"] == "not_measured"} == {"flash", "arena"}
    toys.command("check", "out/toy_int8.tflite", "-t", "chip.toml", "--max-ram", "1MiB", code=6)


def test_a_rule(installed: Callable[..., Any]) -> None:
    toys = _place(installed("rule"))
    assert "--max-operators N" in toys.command("check", "--help")
    toys.command(*_EXPORT)
    report = json.loads((toys.folder / "out" / "report.json").read_text())
    count = next(c for c in report["targets"][0]["checks"] if c["rule"] == "operator_count")
    assert count["measured"] >= 2 and count["limit"] is None
    check = ("check", "out/toy_int8.tflite", "-t", "host")
    # Once as a user starts it.
    done = toys.started("check", "out/toy_int8.tflite", "-t", "cortex-m4", "--max-operators", "1")
    assert done.returncode == 3 and "operators, the limit is 1." in done.stdout, done.stderr
    assert "operator_count" in toys.command(*check, "--max-operators", "99")
    over = toys.command(*check, "--max-operators", "1", code=3)
    assert "operators, the limit is 1." in over
    assert "whole number" in toys.command(*check, "--max-operators", "none", code=2)
    (toys.folder / "edge.toml").write_text("max_operatorz = 1\n")
    assert "max-operators" in toys.command(*check, "--config", "edge.toml", code=2)
    (toys.folder / "edge.toml").write_text("max_operators = 1\n")
    toys.command(*check, "--config", "edge.toml", code=3)
    code = toys.python(
        """
import json, edgecompress as ec
print(json.dumps(ec.check("out/toy_int8.tflite", ["host"], max_operators=1).exit_code))
"""
    )
    assert code == 3


def test_a_runner(installed: Callable[..., Any], phone: Any) -> None:
    toys = _place(installed("runner"))
    toys.command(*[word if word != "host" else "pixel-8" for word in _EXPORT])
    page = toys.command("bench", "--help")
    assert "With --runner warm:" in page and "--warmups N" in page
    bench = ("bench", "out", "--adb", "--processes", "1")
    refused = toys.command(*bench, "--runner", "zzz", code=2)
    assert all(name in refused for name in ("warm", "app", "benchmark_model"))
    assert "--runner warm" in toys.command(*bench, "--warmups", "2", code=2)
    said = toys.command(*bench, "--runner", "warm", "--warmups", "2")
    assert "Warm-up 2 of 2" in said and "3 of 2" not in said
    # A process of the app each, and what stops it before and at the end.
    result = json.loads((toys.folder / "out" / "measurement.json").read_text())
    assert result["measurements"][0]["config"]["processes"] == 1
    said = toys.python(
        """
import json, edgecompress as ec
said = []
ec.bench("out", adb=True, processes=1, runner="warm", warmups=3, progress=said.append)
print(json.dumps(said))
"""
    )
    assert sum(text.startswith("Warm-up") for text in said) == 3
