"""A rewrite from a package outside, found by entry point: no file of the product knows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("keras")

pytestmark = pytest.mark.slow

_PROGRAM = """
import json
import keras, numpy as np
import edgecompress as ec
from edgecompress.core.record import record_of

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, name="hidden", activation="relu"),
     keras.layers.Dense(2, name="head", activation="softmax")]
)
small = ec.finalize(model, rewrites=["drop-zero-biases:tolerance=0.5"])
said = {"steps": record_of(small).steps, "parameters": small.count_params()}
x = np.random.default_rng(0).normal(size=(80, 6)).astype("f4")
given = dict(targets=["cortex-m4"], sparsity=0, clusters=0, output="out")
try:
    ec.compress(model, (x, (x[:, 0] > 0).astype("i4")), surgery=["no-such"], **given)
except Exception as error:
    said["refused"] = f"{type(error).__name__}: {error}"
result = ec.compress(model, (x, (x[:, 0] > 0).astype("i4")), surgery="drop-zero-biases", **given)
said["stages"] = [(stage.name, stage.epochs) for stage in result.stages]
print(json.dumps(said))
"""


def test_it_is_used_by_name_and_recorded(installed: Callable[..., Any]) -> None:
    toy = installed("rewrite")
    said = toy.python(_PROGRAM)
    assert said["steps"][0] == {"technique": "drop-zero-biases", "tolerance": 0.5, "biases": 10}
    assert said["parameters"] == 6 * 8 + 8 * 2
    assert "no-such" in said["refused"] and "drop-zero-biases" in said["refused"]
    assert ["surgery", 0] in said["stages"]
    output = toy.folder / "out"
    report = json.loads((output / "compression.json").read_text())
    config = {"name": "drop-zero-biases", "config": {"tolerance": 0.0}}
    assert report["settings"]["surgery"] == [config]
    record = json.loads(next(output.glob("*.keras.edgecompress.json")).read_text())
    assert "drop-zero-biases" in [step["technique"] for step in record["record"]["steps"]]


_BLOCK = """
import json
import keras
import edgecompress as ec
from edgecompress.core.record import record_of

layers = [keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(6, 3, name="b")]
model = keras.Sequential([keras.Input((9, 9, 3)), *layers, keras.layers.Flatten()])
small = ec.finalize(model, rewrites="cheaper-blocks:kind=narrow,factor=4")
print(json.dumps([small.count_params(), small.output_shape, str(record_of(small))]))
"""


def test_a_block_is_a_kind_of_cheaper_blocks(installed: Callable[..., Any]) -> None:
    toy = installed("block")
    parameters, shape, record = toy.python(_BLOCK)
    # 9 * 3 * 2 weights and 2 * 8 with 8 biases in place of `a`; `b` is as it was.
    assert parameters == 9 * 3 * 2 + 2 * 8 + 8 + 9 * 8 * 6 + 6
    assert shape == [None, 5 * 5 * 6]
    assert "narrow" in record and "it has 6 filters" in record
