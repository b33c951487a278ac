"""TensorFlow's strategies train the same weights as one device on the same batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


_TWO_DEVICES = """
import contextlib
import keras, numpy as np, tensorflow as tf
import edgecompress as ec

class Own(keras.Model):
    def train_step(self, data):
        return super().train_step(data)

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
to_80 = ec.PolynomialDecay(0.8, begin_step=0, end_step=6, frequency=2)
callbacks = {
    "taylor": lambda: ec.Pruning(to_80, "taylor"),
    "activation": lambda: ec.Pruning(to_80, "activation:measure=mean", "filters"),
    "lasso": lambda: ec.GroupLasso(0.05, end_epoch=1),
}
x = np.random.default_rng(0).normal(size=(32, 10)).astype("f4")
for kind, callback in callbacks.items():
    trained = []
    for strategy in (mirrored, None):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs = keras.Input((10,))
            hidden = keras.layers.Dense(12, "relu")(inputs)
            model = Own(inputs, keras.layers.Dense(10)(hidden))
            model.compile(keras.optimizers.SGD(0.05), "mse")
        model.fit(x, x**2, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=[callback()])
        trained.append([np.array(weight) for weight in model.get_weights()])
    for two, one in zip(*trained, strict=True):
        np.testing.assert_array_equal(two == 0, one == 0, kind)
        np.testing.assert_allclose(two, one, atol=1e-6, err_msg=kind)
print("the same")
"""


def test_what_is_seen_and_added_on_two_devices_is_that_of_one(
    run_python: Callable[..., Any],
) -> None:
    done = run_python(["-c", _TWO_DEVICES])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "the same"


def _free_ports(count: int) -> list[str]:
    """Returns ports of this computer that nothing listens on; skips where none can be opened."""
    try:
        sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    except OSError as error:
        pytest.skip(f"no ports on localhost: {error}")
    ports = [str(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What each of two workers printed, and the folder of their weights."""
    folder = tmp_path_factory.mktemp("workers")
    program, ports = Path(__file__).with_name("two_workers.py"), _free_ports(2)
    outputs = [(folder / f"{index}.out", folder / f"{index}.err") for index in range(2)]
    workers = []
    try:
        for index, (out, err) in enumerate(outputs):
            with out.open("w") as stdout, err.open("w") as stderr:
                command = [sys.executable, "-P", program, str(index), *ports, folder]
                environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
                workers.append(
                    subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
                )
        codes = [worker.wait(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert codes == [0, 0], "\n".join(err.read_text()[-2000:] for _, err in outputs)
    return [out.read_text() for out, _ in outputs], folder


def test_keras_stops_two_workers_before_the_first_step(
    two_workers: tuple[list[str], Path],
) -> None:
    # As docs/backends.md says. Once Keras is mended, so are the page and `mend_keras`.
    for printed in two_workers[0]:
        assert printed.startswith("Attempt to convert a value (PerReplica:{")


@pytest.mark.parametrize(
    "kind", ["magnitude", "hessian", "activation", "random", "channels", "lasso", "clustering"]
)
def test_two_workers_train_the_same_weights_as_one(
    two_workers: tuple[list[str], Path], kind: str
) -> None:
    first, second, one = (
        {k: array for k, array in np.load(two_workers[1] / f"{name}.npz").items() if kind in k}
        for name in ("0", "1", "one")
    )
    assert set(first) == set(second) == set(one) and len(one) == 6
    for name, weights in one.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name] == 0, weights == 0)
        np.testing.assert_allclose(first[name], weights, atol=1e-6)
    kernels = [one[f"{kind}/{index}"] for index in (0, 2, 4)]
    if kind == "clustering":
        assert [len(np.unique(kernel)) for kernel in kernels] == [4, 4, 4]
    else:
        assert sum(int((kernel == 0).sum()) for kernel in kernels) > 80
