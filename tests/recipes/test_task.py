"""What a model is trained for is read off its outputs, its labels and its own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters.loaders import LoadedModel, load_model, wrap
from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.recipes.data import Data, Samples, load
from edgecompress.recipes.task import (
    Task,
    check_model,
    find_task,
    first_outputs,
    output_kind,
    own_loss,
)
from edgecompress.training.base import Outputs, TaughtLabels
from edgecompress.training.distillation import Distillation

_X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")


def _loaded(units: int, activation: str | None = None, **compiled: Any) -> LoadedModel:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(units, activation=activation)])
    if compiled:
        model.compile("adam", **compiled)
    return wrap(model)


def _task(loaded: LoadedModel, y: np.ndarray | None, loss: Any = None) -> Task:
    samples = Samples((_X,), y)
    data = Data(samples, samples, "the same")
    return find_task(loaded, data, first_outputs(loaded, samples), loss)


def _classes(count: int) -> np.ndarray:
    return np.arange(40) % count


# Of several answers at once, some rows with none and some with all.
_MANY = (np.arange(40)[:, None] >> np.arange(3)) % 2


class TestKind:
    @pytest.mark.parametrize(
        ("units", "activation", "y", "kind", "output", "loss"),
        [
            (3, None, _classes(3), "classes", "logits",
             "sparse_categorical_crossentropy(from_logits=True)"),
            (3, "softmax", _classes(3), "classes", "probabilities",
             "sparse_categorical_crossentropy"),
            (3, "softmax", _classes(3)[:, None].astype("float32"), "classes", "probabilities",
             "sparse_categorical_crossentropy"),
            (3, None, np.eye(3)[_classes(3)], "classes", "logits",
             "sparse_categorical_crossentropy(from_logits=True)"),
            (1, "sigmoid", _classes(2), "binary", "probabilities", "binary_crossentropy"),
            (1, None, _classes(2)[:, None], "binary", "logits",
             "binary_crossentropy(from_logits=True)"),
            (1, None, _X[:, 0], "values", "values", "mean_squared_error"),
            (3, None, _X[:, :3], "values", "values", "mean_squared_error"),
            (6, None, None, "values", "values", "mean_squared_error"),
            # Several answers at once, each of them yes or no.
            (3, "sigmoid", np.ones((40, 3)), "binary", "probabilities", "binary_crossentropy"),
            (3, None, np.ones((40, 3)), "values", "values", "mean_squared_error"),
        ],
    )  # fmt: skip
    def test_inferred(
        self, units: int, activation: str | None, y: Any, kind: str, output: str, loss: str
    ) -> None:
        task = _task(_loaded(units, activation), y)
        assert (task.kind, task.output) == (kind, output)
        assert task.loss_text.startswith(f"{loss}, as the model brings none and its ")
        assert task.metric.name == ("mean_squared_error" if kind == "values" else "accuracy")

    @pytest.mark.parametrize(
        ("units", "activation", "y", "loss", "kind", "output"),
        [
            # The loss says that outputs are numbers to be met: 0 is no threshold of theirs.
            (1, None, _classes(2), "mse", "values", "values"),
            (1, "sigmoid", _classes(2), "mse", "binary", "probabilities"),
            (2, None, np.stack([_classes(2), 1 - _classes(2)], 1), "mse", "classes", "logits"),
            (2, None, np.full((40, 2), 0.5), "mae", "values", "values"),
            (2, "softmax", np.full((40, 2), 0.5), "kl_divergence", "classes", "probabilities"),
            (3, None, _MANY, keras.losses.BinaryCrossentropy(from_logits=True), "binary", "logits"),
            (3, "sigmoid", _MANY, "mse", "values", "values"),
        ],
    )
    def test_the_own_loss_tells_values_from_answers(
        self, units: int, activation: str | None, y: Any, loss: Any, kind: str, output: str
    ) -> None:
        task = _task(_loaded(units, activation), y, keras.losses.get(loss))
        assert (task.kind, task.output) == (kind, output)

    def test_rows_with_a_single_yes_on_one_side_only(self) -> None:
        loaded, loss = _loaded(3, "sigmoid"), keras.losses.get("binary_crossentropy")
        once = Samples((_X,), np.eye(3)[_classes(3)])
        for train, held in ((once, Samples((_X,), _MANY)), (Samples((_X,), _MANY), once)):
            data = Data(train, held, "two files")
            assert find_task(loaded, data, first_outputs(loaded, train), loss).kind == "binary"
        data = Data(once, once, "two files")
        assert find_task(loaded, data, first_outputs(loaded, once), loss).kind == "classes"

    @pytest.mark.parametrize(
        ("units", "y", "text"),
        [
            (3, _classes(4), "class numbers from 0 to 2.*from 0 to 3"),
            (3, _classes(3) - 1, "class numbers from 0 to 2"),
            (3, _X[:, :2], r"class numbers, one-hot rows or values of shape \(3,\)"),
            (3, _X[:, 0], "class numbers, one-hot rows"),
            (3, None, "hold labels under the key y"),
        ],
    )
    def test_labels_that_do_not_fit(self, units: int, y: Any, text: str) -> None:
        with pytest.raises(ArgumentError, match=text):
            _task(_loaded(units), y)

    def test_validation_labels_are_of_the_same_kind(self) -> None:
        loaded = _loaded(3)
        data = Data(Samples((_X,), _classes(3)), Samples((_X,), _X[:, :3]), "another file")
        with pytest.raises(ArgumentError, match="--validation"):
            find_task(loaded, data, first_outputs(loaded, data.train), None)


class TestMaps:
    """Answers at every position: segmentation, labelled sequences."""

    _x = np.random.default_rng(0).normal(size=(12, 4, 4, 1)).astype("float32")
    _numbers = np.random.default_rng(1).integers(0, 3, (12, 4, 4))

    def _task(self, units: int, activation: str, y: np.ndarray, loss: Any = None) -> Any:
        model = keras.Sequential(
            [keras.Input((4, 4, 1)), layers.Conv2D(units, 1, activation=activation)]
        )
        loaded, samples = wrap(model), Samples((self._x,), y)
        outputs = first_outputs(loaded, samples)
        task = find_task(loaded, Data(samples, samples, ""), outputs, loss)
        return task, samples, outputs

    @pytest.mark.parametrize("form", ["numbers", "column", "one-hot"])
    def test_classes(self, form: str) -> None:
        y = {
            "numbers": self._numbers,
            "column": self._numbers[..., None],
            "one-hot": np.eye(3)[self._numbers],
        }[form]
        task, samples, outputs = self._task(3, "softmax", y)
        assert (task.kind, task.metric.name) == ("classes", "accuracy")
        labels = task.labels(samples, (4, 4, 3))
        right = (outputs.argmax(-1) == self._numbers).mean()
        assert task.metric.measure(labels, outputs) == pytest.approx(right)
        assert 0 < right < 1
        picked = np.take_along_axis(outputs, self._numbers[..., None], -1)
        assert float(np.mean(task.loss(labels, outputs))) == pytest.approx(-np.log(picked).mean())
        np.testing.assert_array_equal(task.exported_labels(samples, (4, 4, 3)), self._numbers)

    def test_labels_of_maps_travel_with_what_is_taught(self) -> None:
        task, samples, outputs = self._task(3, "softmax", self._numbers)
        labels = task.labels(samples, (4, 4, 3))
        taught = TaughtLabels(
            Distillation(weight=0.25), task.loss, (4, 4, 1), Outputs(logits=False)
        )
        packed = taught.pack(labels, outputs)
        np.testing.assert_array_equal(np.asarray(taught.labels(packed)), labels)
        hard = float(np.mean(task.loss(labels, outputs)))
        # A student that is its teacher has nothing to learn from it.
        assert float(taught(packed, outputs)) == pytest.approx(0.75 * hard, rel=1e-4)
        other = np.roll(outputs, 1, -1)
        assert float(taught(packed, other)) > 0.75 * float(np.mean(task.loss(labels, other)))

    @pytest.mark.parametrize("column", [False, True])
    def test_yes_or_no(self, column: bool) -> None:
        y = (self._numbers > 0).astype(int)
        task, samples, outputs = self._task(1, "sigmoid", y[..., None] if column else y)
        assert (task.kind, task.output) == ("binary", "probabilities")
        labels = task.labels(samples, (4, 4, 1))
        assert labels.shape == (12, 4, 4, 1)
        right = ((outputs[..., 0] >= 0.5) == y).mean()
        assert task.metric.measure(labels, outputs) == pytest.approx(right)

    def test_images_are_values(self) -> None:
        share = np.abs(self._x) / (1 + np.abs(self._x))
        y = np.concatenate([share, 1 - share], -1)
        assert self._task(2, "softmax", y)[0].kind == "values"
        loss = keras.losses.get("categorical_crossentropy")
        assert self._task(2, "softmax", y, loss)[0].kind == "classes"

    @pytest.mark.parametrize("y", [_numbers + 1, _numbers[:, :3], _numbers + 0.5])
    def test_labels_that_do_not_fit(self, y: np.ndarray) -> None:
        with pytest.raises(ArgumentError, match="class numbers (from 0 to 2|of shape .4, 4.)"):
            self._task(3, "softmax", y)


class TestOutput:
    def test_the_last_activation_tells(self) -> None:
        outputs = np.full((4, 3), 1 / 3)
        assert output_kind(_loaded(3, "softmax").model, outputs) == "probabilities"
        # Whatever the outputs look like by chance.
        assert output_kind(_loaded(3).model, outputs) == "logits"
        split = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Softmax()])
        assert output_kind(split, outputs) == "probabilities"
        nested = keras.Sequential([keras.Input((6,)), split])
        assert output_kind(nested, outputs) == "probabilities"

    def test_else_the_outputs_do(self) -> None:
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(3, activation="softmax"), layers.Reshape((3,))]
        )
        assert output_kind(model, np.full((4, 3), 1 / 3)) == "probabilities"
        assert output_kind(model, np.full((4, 3), 0.5)) == "logits"
        assert output_kind(model, np.array([[2.0, -1.0, 0.0]])) == "logits"


class TestLoss:
    @pytest.mark.parametrize("suffix", ["keras", "h5", None])
    def test_own_loss_from_file_and_memory(self, suffix: str | None, tmp_path: Path) -> None:
        given = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        loaded = _loaded(3, loss=given)
        if suffix:
            import warnings

            path = tmp_path / f"model.{suffix}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # HDF5 is old, says Keras.
                loaded.model.save(path)
            loaded = load_model(path)
        loss, notes = own_loss(loaded.model, loaded.path)
        assert loss.get_config()["label_smoothing"] == 0.1 and notes == ()
        task = _task(loaded, _classes(3), loss)
        assert task.loss_text == "categorical_crossentropy(from_logits=True), the model's own"
        # It takes one-hot rows, and gets them.
        np.testing.assert_array_equal(
            task.labels(Samples((_X,), _classes(3)), (3,)), np.eye(3)[_classes(3)]
        )

    @pytest.mark.parametrize(
        "given", ["sparse_categorical_crossentropy", ["sparse_categorical_crossentropy"]]
    )
    def test_names_and_lists(self, given: Any) -> None:
        loaded = _loaded(3, "softmax", loss=given)
        loss, _ = own_loss(loaded.model, None)
        task = _task(loaded, np.eye(3)[_classes(3)], loss)
        assert task.sparse
        numbers = task.labels(Samples((_X,), np.eye(3)[_classes(3)]), (3,))
        np.testing.assert_array_equal(numbers[:, 0], _classes(3))

    def test_none(self, tmp_path: Path) -> None:
        loaded = _loaded(3)
        assert own_loss(loaded.model, None) == (None, ())
        loaded.model.save(tmp_path / "model.keras")
        assert own_loss(loaded.model, tmp_path / "model.keras") == (None, ())

    def test_a_loss_that_cannot_be_read_is_named(self) -> None:
        loaded = _loaded(3, loss="mse")
        object.__setattr__(loaded.model, "loss", {"class_name": "NoSuchLoss", "config": {}})
        loss, notes = own_loss(loaded.model, None)
        assert loss is None and "cannot be read" in notes[0]


class TestMetric:
    def test_accuracy(self) -> None:
        task = _task(_loaded(3), _classes(3))
        outputs = np.eye(3)[(_classes(3) + (np.arange(40) < 10)) % 3]
        assert task.metric.measure(_classes(3)[:, None], outputs) == 0.75
        assert task.metric.drop(0.9, 0.8) == pytest.approx(0.1)

    def test_binary_limits(self) -> None:
        y = _classes(2)
        logits = _task(_loaded(1), y)
        assert logits.metric.measure(y[:, None], np.where(y, 0.2, -0.2)[:, None]) == 1
        assert not logits.has_classes_for_export
        probability = _task(_loaded(1, "sigmoid"), y)
        assert probability.metric.measure(y[:, None], np.where(y, 0.2, -0.2)[:, None]) == 0.5
        assert probability.has_classes_for_export

    def test_errors_get_worse_upwards(self) -> None:
        task = _task(_loaded(3), _X[:, :3])
        assert task.metric.measure(np.zeros((2, 3)), np.full((2, 3), 2.0)) == 4
        assert task.metric.drop(1.0, 1.5) == 0.5


class TestData:
    def test_split_by_seed(self) -> None:
        loaded = _loaded(3)
        one, same, other = (load((_X, _classes(3)), None, loaded, 0.25, seed) for seed in (0, 0, 1))
        assert (len(one.train), len(one.validation)) == (30, 10)
        np.testing.assert_array_equal(one.validation.x[0], same.validation.x[0])
        assert not np.array_equal(one.validation.x[0], other.validation.x[0])
        both = np.concatenate([one.train.x[0], one.validation.x[0]])
        assert {row.tobytes() for row in both} == {row.tobytes() for row in _X}
        assert one.train.sha256() == same.train.sha256() != other.train.sha256()

    def test_validation_of_its_own(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "v.npz", x=_X[:8], y=_classes(3)[:8])
        data = load((_X, _classes(3)), tmp_path / "v.npz", _loaded(3), 0.1, 0)
        assert (len(data.train), len(data.validation)) == (40, 8)

    @pytest.mark.parametrize(
        ("source", "validation", "share", "text"),
        [
            (None, None, 0.1, "--data.*be given"),
            ((_X, _classes(3)[:7]), None, 0.1, "as many samples"),
            ((_X, np.where(_X[:, 0] > 1, np.nan, 0)), None, 0.1, "--data.*finite labels"),
            ((_X, np.array(["a"] * 40)), None, 0.1, "--data.*numbers under the key y"),
            ((_X[:, :5], _classes(3)), None, 0.1, r"--data.*shape \(6\)"),
            ((_X, _classes(3)), None, 0.01, "--validation-split.*at least 2"),
            ((_X, _classes(3)), _X, 0.1, "--validation.*hold labels"),
            (_X, (_X, _classes(3)), 0.1, "--validation.*hold no labels"),
            ((_X[:1], _classes(3)[:1]), None, 0.5, "--data.*at least 2 samples"),
        ],
    )
    def test_refusals(self, source: Any, validation: Any, share: float, text: str) -> None:
        with pytest.raises(ArgumentError, match=text):
            load(source, validation, _loaded(3), share, 0)


def test_models_that_cannot_be_trained() -> None:
    check_model(_loaded(3))

    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    own = Own()
    own.build((None, 6))
    with pytest.raises(UnsupportedModelError):
        check_model(wrap(own))
    import tf_keras

    old = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(UnsupportedModelError, match="a Keras 2 model"):
        check_model(wrap(old))
