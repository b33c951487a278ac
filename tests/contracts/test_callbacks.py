"""What every compression callback keeps: plain models, records, mistakes that are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.record import CompressionRecord, read_record, record_of

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

# A new callback: one line here.
CALLBACKS: dict[str, Callable[..., Any]] = {
    "magnitude_pruning": lambda **more: ec.MagnitudePruning(
        ec.ConstantSparsity(0.5, frequency=1), **more
    ),
    "channel_pruning": lambda **more: ec.ChannelPruning(ec.Budget(macs=0.9), "magnitude", **more),
    "group_lasso": lambda **more: ec.GroupLasso(1e-3, **more),
    "keep_sparsity": lambda **more: ec.KeepSparsity(**{"layers": lambda layer: True} | more),
    "distillation": lambda layers=(), **more: ec.Distillation(
        tiny(), layers=dict.fromkeys(layers, "hidden"), **more
    ),
    "quantization_aware_training": lambda **more: ec.QuantizationAwareTraining(**more),
    "weight_clustering": lambda **more: ec.WeightClustering(4, **more),
    "binary_weights": lambda **more: ec.Binarize(first_and_last=True, **more),
    "ternary_weights": lambda **more: ec.Ternarize(first_and_last=True, **more),
    "fixed_point_training": lambda **more: ec.FixedPointTraining(8, 5, **more),
    "variational_dropout": lambda **more: ec.VariationalDropout(64, **more),
    "bayesian_group_sparsity": lambda **more: ec.BayesianGroupSparsity(64, **more),
    "variational_quantization": lambda **more: ec.VariationalQuantization(64, **more),
    "soft_weight_sharing": lambda **more: ec.SoftWeightSharing(64, 3, **more),
    "pattern_binarization": lambda **more: ec.PatternBinarization(**more),
}
# These want their kernels for themselves: each its layer where all are in one fit.
EXCLUSIVE = {
    "pattern_binarization": "pattern",
    "binary_weights": "hidden",
    "ternary_weights": "classes",
    "fixed_point_training": "other",
    "variational_dropout": "dropped",
    "bayesian_group_sparsity": "groups",
    "variational_quantization": "levels",
    "soft_weight_sharing": "mixture",
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
            keras.layers.Dense(8, activation="relu", name="other"),
            keras.layers.Dense(8, activation="relu", name="dropped"),
            keras.layers.Dense(8, activation="relu", name="groups"),
            keras.layers.Dense(8, activation="relu", name="levels"),
            keras.layers.Dense(8, activation="relu", name="mixture"),
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
    return model.fit(
        X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks)
    )


class _Stop(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Trained:
    """What a fit with one callback left, and what fits after it made of the model."""

    path: Path
    plain: bool
    outputs: np.ndarray
    record: CompressionRecord
    later: list[float]

    @property
    def loaded_alone(self) -> Path:
        """The outputs where Keras alone loaded the file."""
        return self.path.with_suffix(".npy")


def _trained(name: str, folder: Path) -> Trained:
    model = tiny()
    shapes = [w.shape for w in model.weights]
    config = model.get_config()
    fit(model, CALLBACKS[name]())
    plain = [w.shape for w in model.weights] == shapes and model.get_config() == config
    path = folder / f"{name}.keras"
    model.save(path)
    outputs, record = np.array(model(X)), record_of(model)
    with pytest.raises(KeyboardInterrupt):
        fit(model, CALLBACKS[name](), _Stop())
    return Trained(path, plain, outputs, record, fit(model, CALLBACKS[name]()).history["loss"])


@pytest.fixture(scope="module")
def all_trained(
    tmp_path_factory: pytest.TempPathFactory, run_python: Callable[..., Any]
) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("trained")
    found = {name: _trained(name, folder) for name in CALLBACKS}
    np.save(folder / "x.npy", X)
    code = (
        "import pathlib, sys, keras, numpy as np\n"
        "x = np.load('x.npy')\n"
        "for path in pathlib.Path().glob('*.keras'):\n"
        "    model = keras.saving.load_model(path)\n"
        "    np.save(path.with_suffix('.npy'), model(x))\n"
        "assert 'edgecompress' not in sys.modules"
    )
    done = run_python(["-P", "-c", code], cwd=folder)
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(params=sorted(CALLBACKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trained(name: str, all_trained: dict[str, Trained]) -> Trained:
    return all_trained[name]


def test_training_leaves_a_plain_model(trained: Trained) -> None:
    assert trained.plain
    np.testing.assert_allclose(np.load(trained.loaded_alone), trained.outputs, rtol=1e-5, atol=1e-6)


def test_what_was_done_is_recorded_beside_the_file(name: str, trained: Trained) -> None:
    assert [step["technique"] for step in trained.record.steps] == [name]
    record, reason = read_record(trained.path)
    assert reason is None
    assert record is not None
    assert [step["technique"] for step in record.steps] == [name]


def test_a_second_fit_works_after_an_interrupted_one(trained: Trained) -> None:
    assert len(trained.later) == 2
    assert np.isfinite(trained.later).all()


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
        np.testing.assert_allclose(small(X), model(X), rtol=1e-5, atol=1e-5)
        assert {s["technique"] for s in record_of(small).steps} >= names


def test_other_backends_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = CALLBACKS[name]()
    callback.set_model(tiny())
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    text = f"be tensorflow or jax for {type(callback).__name__}. Got 'torch'. Set it before"
    with pytest.raises(EdgeCompressError, match=text):
        callback.on_train_begin()


def test_a_model_of_keras_2_is_refused_by_name(name: str) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((6,)), tf_keras.layers.Dense(2, name="hidden")])
    model.compile("sgd", "mse")
    with pytest.raises(EdgeCompressError, match="Keras 3 models, and this fit trains a tf_keras"):
        model.fit(X, Y, verbose=0, callbacks=[CALLBACKS[name]()])
