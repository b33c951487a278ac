"""The same training in tensorflow-model-optimization on Keras 2: schedules and final weights.

It runs in a process of its own: importing it turns tf.keras into Keras 2 for the whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.callbacks.magnitude_pruning import MagnitudePruning
from edgecompress.schedules import ConstantSparsity, PolynomialDecay, Schedule

pytestmark = pytest.mark.slow

STEPS = 1000
SCHEDULES: list[Schedule] = [
    PolynomialDecay(0.8, begin_step=0, end_step=STEPS, frequency=100),
    PolynomialDecay(0.95, begin_step=37, end_step=911, initial_sparsity=0.1, frequency=7),
    PolynomialDecay(0.5, begin_step=0, end_step=999, initial_sparsity=0.25, power=1, frequency=1),
    PolynomialDecay(0.3, begin_step=100, end_step=500, initial_sparsity=0.9, power=2.5),
    PolynomialDecay(0.9, begin_step=5, end_step=5000, power=4, frequency=250),
    ConstantSparsity(0.5),
    ConstantSparsity(0.75, begin_step=13, end_step=777, frequency=9),
]
# 2 inputs of one unit: 2 divides the inputs of all layers.
BLOCKS = [(1, 1), (2, 1)]
PRUNING = PolynomialDecay(0.8, begin_step=0, end_step=60, frequency=15)

_PEER = """
import json, sys
import numpy as np, tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import (
    pruning_schedule, prune, pruning_callbacks)

job = json.load(open(sys.argv[1]))
table = []
for name, config in job["schedules"]:
    schedule = getattr(pruning_schedule, name)(**config)
    call = tf.function(lambda step, schedule=schedule: schedule(step))
    values = [call(tf.constant(step)) for step in range(1, job["steps"] + 1)]
    table.append([[bool(due), float(sparsity)] for due, sparsity in values])

data = np.load(sys.argv[2])
weights = []
for block in job["blocks"]:
    model = tf_keras.Sequential([
        tf_keras.layers.Dense(24, activation="relu", input_shape=(30,)),
        tf_keras.layers.Dense(16, activation="relu"),
        tf_keras.layers.Dense(5),
    ])
    model.set_weights([data[f"w{i}"] for i in range(6)])
    model = prune.prune_low_magnitude(
        model, pruning_schedule=pruning_schedule.PolynomialDecay(**job["pruning"]),
        block_size=tuple(block))
    model.compile(tf_keras.optimizers.Adam(1e-3),
                  tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data["x"], data["y"], batch_size=16, epochs=3, shuffle=False, verbose=0,
              callbacks=[pruning_callbacks.UpdatePruningStep()])
    weights += prune.strip_pruning(model).get_weights()
np.savez(sys.argv[3], *weights)
json.dump(table, open(sys.argv[4], "w"))
"""


def _mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Dense(24, activation="relu"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(5),
        ]
    )


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("tfmot")
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    data = {"x": rng.normal(size=(320, 30)).astype("f4"), "y": rng.integers(0, 5, 320)}
    weights = _mlp().get_weights()
    np.savez(folder / "in.npz", **data, **{f"w{i}": w for i, w in enumerate(weights)})
    job = {
        "steps": STEPS,
        "schedules": [[type(s).__name__, s.get_config()] for s in SCHEDULES],
        "pruning": PRUNING.get_config(),
        "blocks": BLOCKS,
    }
    (folder / "job.json").write_text(json.dumps(job))
    paths = [str(folder / n) for n in ("job.json", "in.npz", "out.npz", "table.json")]
    done = subprocess.run(
        [sys.executable, "-c", _PEER, *paths], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = np.load(folder / "out.npz")
    return {
        "table": json.loads((folder / "table.json").read_text()),
        "data": data,
        "start": weights,
        "end": {
            block: [out[name] for name in out.files[6 * i : 6 * i + 6]]
            for i, block in enumerate(BLOCKS)
        },
    }


@pytest.mark.parametrize("index", range(len(SCHEDULES)), ids=[repr(s) for s in SCHEDULES])
def test_schedule_equals_tfmot_at_every_step(peer: dict[str, Any], index: int) -> None:
    schedule, rows = SCHEDULES[index], peer["table"][index]
    assert len(rows) == STEPS
    due = [schedule.should_update(step) for step in range(1, STEPS + 1)]
    assert due == [row[0] for row in rows]
    ours = np.array([schedule(step) for step in range(1, STEPS + 1)])
    np.testing.assert_allclose(ours, [row[1] for row in rows], rtol=0, atol=1e-6)


def _train(
    peer: dict[str, Any],
    schedule: Schedule,
    block_size: tuple[int, int] = (1, 1),
    **compile_args: Any,
) -> list[np.ndarray]:
    model = _mlp()
    model.set_weights(peer["start"])
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **compile_args,
    )
    model.fit(
        peer["data"]["x"],
        peer["data"]["y"],
        batch_size=16,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[MagnitudePruning(schedule, block_size=block_size)],
    )
    assert int(model.optimizer.iterations) == 60
    return model.get_weights()


@pytest.mark.parametrize("compile_args", [{}, {"steps_per_execution": 7}], ids=str)
@pytest.mark.parametrize("block_size", BLOCKS, ids=str)
def test_final_weights_equal_tfmot_bit_for_bit(
    peer: dict[str, Any], block_size: tuple[int, int], compile_args: dict[str, Any]
) -> None:
    ours = _train(peer, PRUNING, block_size, **compile_args)
    for mine, theirs in zip(ours, peer["end"][block_size], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    zeros = [float(np.mean(w == 0)) for w in ours[::2]]
    np.testing.assert_allclose(zeros, 0.8, atol=0.01)


def test_another_schedule_does_not_equal_tfmot(peer: dict[str, Any]) -> None:
    ours = _train(peer, PolynomialDecay(0.8, begin_step=0, end_step=60, frequency=20))
    assert any(not np.array_equal(a, b) for a, b in zip(ours, peer["end"][1, 1], strict=True))


def test_blocks_of_another_size_do_not_equal_tfmot(peer: dict[str, Any]) -> None:
    ours = _train(peer, PRUNING)
    assert any(not np.array_equal(a, b) for a, b in zip(ours, peer["end"][2, 1], strict=True))
