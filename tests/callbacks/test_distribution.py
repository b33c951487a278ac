"""TensorFlow's strategies with one device each: the same weights as without a strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_PROGRAM = """
import contextlib, json, os, socket

with socket.socket() as free:
    free.bind(("localhost", 0))
    worker = f"localhost:{free.getsockname()[1]}"
os.environ["TF_CONFIG"] = json.dumps(
    {"cluster": {"worker": [worker]}, "task": {"type": "worker", "index": 0}})
import keras, numpy as np, tensorflow as tf
import edgecompress as ec

strategies = {
    "workers": tf.distribute.MultiWorkerMirroredStrategy(),
    "mirrored": tf.distribute.MirroredStrategy(["CPU:0"]),
    "none": None,
}
callbacks = {
    "pruning": lambda: ec.MagnitudePruning(
        ec.PolynomialDecay(0.8, begin_step=0, end_step=6, frequency=2)),
    "lasso": lambda: ec.GroupLasso(0.05),
    "clustering": lambda: ec.WeightClustering(4),
}
x = np.random.default_rng(0).normal(size=(32, 10)).astype("f4")
trained = {}
for name, strategy in strategies.items():
    for kind, callback in callbacks.items():
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            dense = keras.layers.Dense
            model = keras.Sequential([keras.Input((10,)), dense(12, "relu"), dense(10)])
            model.compile(keras.optimizers.SGD(0.05), "mse")
        model.fit(x, x, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=[callback()])
        trained[name, kind] = [np.array(weight) for weight in model.get_weights()]
for kind in callbacks:
    for name in ("workers", "mirrored"):
        for plain, other in zip(trained["none", kind], trained[name, kind], strict=True):
            np.testing.assert_array_equal(plain == 0, other == 0)
            np.testing.assert_allclose(plain, other, atol=1e-6)
zeros = np.mean([(w == 0).mean() for w in trained["workers", "pruning"][::2]])
print(round(float(zeros), 6), len(np.unique(trained["workers", "clustering"][0])))
"""


def test_strategies_of_one_device_train_the_same_weights(run_python: Callable[..., Any]) -> None:
    done = run_python(["-c", _PROGRAM])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "0.8 4"
