"""What every compression callback keeps: plain models, records, mistakes that are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.record import read_record, record_of

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

# A new callback: one line here.
CALLBACKS: dict[str, Callable[..., Any]] = {
    "magnitude_pruning": lambda **more: ec.MagnitudePruning(
        ec.ConstantSparsity(0.5, frequency=1), **more
    ),
    "group_lasso": lambda **more: ec.GroupLasso(1e-3, **more),
    "quantization_aware_training": lambda **more: ec.QuantizationAwareTraining(**more),
    "weight_clustering": lambda **more: ec.WeightClustering(4, **more),
    "binary_weights": lambda **more: ec.Binarize(first_and_last=True, **more),
    "ternary_weights": lambda **more: ec.Ternarize(first_and_last=True, **more),
    "pattern_binarization": lambda **more: ec.PatternBinarization(**more),
}
# These want their kernels for themselves: each its layer where all are in one fit.
EXCLUSIVE = {
    "pattern_binarization": "pattern",
    "binary_weights": "hidden",
    "ternary_weights": "classes",
}
X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def tiny() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Reshape((3, 2, 1)),
            keras.layers.Conv2D(4, 2, name="pattern"),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(2, name="classes"),
        ]
    )
    return compiled(model)


def compiled(model: Any) -> Any:
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def fit(model: Any, *callbacks: Any) -> Any:
    return model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=list(callbacks))


@pytest.fixture(params=sorted(CALLBACKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_training_leaves_a_plain_model(
    name: str, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    model = tiny()
    shapes = [w.shape for w in model.weights]
    config = model.get_config()
    fit(model, CALLBACKS[name]())
    assert [w.shape for w in model.weights] == shapes
    assert model.get_config() == config
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.saving.load_model('model.keras')\n"
        "np.save('y.npy', model.predict(np.load('x.npy'), verbose=0))\n"
        "assert 'edgecompress' not in sys.modules"
    )
    done = run_python(["-P", "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_what_was_done_is_recorded_beside_the_file(name: str, tmp_path: Path) -> None:
    model = tiny()
    fit(model, CALLBACKS[name]())
    assert [step["technique"] for step in record_of(model).steps] == [name]
    model.save(tmp_path / "model.keras")
    record, reason = read_record(tmp_path / "model.keras")
    assert reason is None
    assert record is not None
    assert [step["technique"] for step in record.steps] == [name]


def test_a_second_fit_works_and_an_interrupted_one_can_be_repeated(name: str) -> None:
    model = tiny()
    fit(model, CALLBACKS[name]())

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, CALLBACKS[name](), Stop())
    history = fit(model, CALLBACKS[name]()).history
    assert np.isfinite(history["loss"]).all()


def test_subclassed_models_are_refused_by_name(name: str) -> None:
    class Hidden(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="hidden_graph")
            self.dense = keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    model = compiled(Hidden())
    model(X[:1])
    with pytest.raises(EdgeCompressError, match="hidden_graph"):
        fit(model, CALLBACKS[name]())


def test_unknown_layers_are_refused_with_the_nearest_name(name: str) -> None:
    with pytest.raises(EdgeCompressError, match="hiden.*hidden"):
        fit(tiny(), CALLBACKS[name](layers=["hiden"]))


@pytest.mark.parametrize("exclusive", [False, True])
def test_all_in_one_fit_in_any_order(exclusive: bool) -> None:
    names = {*EXCLUSIVE, "group_lasso", "quantization_aware_training"}
    if not exclusive:
        names = set(CALLBACKS) - set(EXCLUSIVE)
    for order in (sorted(names), sorted(names, reverse=True)):
        model = tiny()
        layers = [{"layers": [EXCLUSIVE[name]]} if name in EXCLUSIVE else {} for name in order]
        fit(model, *(CALLBACKS[name](**more) for name, more in zip(order, layers, strict=True)))
        small = ec.finalize(model)
        np.testing.assert_allclose(
            small.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-5
        )
        assert {s["technique"] for s in record_of(small).steps} >= names


def test_a_model_of_keras_2_is_refused_by_name(name: str) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((6,)), tf_keras.layers.Dense(2, name="hidden")])
    model.compile("sgd", "mse")
    with pytest.raises(EdgeCompressError, match="Keras 3 models, and this fit trains a tf_keras"):
        model.fit(X, Y, verbose=0, callbacks=[CALLBACKS[name]()])
