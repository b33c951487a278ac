"""Soft labels by numpy, and that training sees what it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters.loaders import wrap
from edgecompress.core.model_copy import copy_model
from edgecompress.recipes.data import Data, Samples, Stream
from edgecompress.recipes.task import Task, find_task, first_outputs
from edgecompress.recipes.training import (
    Trainer,
    measure,
)
from edgecompress.training.base import Outputs
from edgecompress.training.distillation import Distillation

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(48, 6)).astype("float32")
_Y = np.arange(48) % 3


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _model(units: int = 3, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(units)
    return keras.Sequential([keras.Input((6,)), layers.Dense(units, activation=activation)])


def _task(model: keras.Model, y: np.ndarray | None, loss: Any = None) -> tuple[Task, Data]:
    samples = Samples((_X,), y)
    data = Data(samples, samples, "")
    loaded = wrap(model)
    return find_task(loaded, data, first_outputs(loaded, samples), loss), data


class TestSoftLoss:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_classes_by_numpy(self, temperature: float) -> None:
        """T**2 * sum p * (log p - log q), Hinton et al. 2015."""
        teacher, student = (_RNG.normal(size=(5, 3)).astype("float32") for _ in range(2))
        p, q = (_softmax(logits / temperature) for logits in (teacher, student))
        want = temperature**2 * (p * np.log(p / q)).sum(1)
        np.testing.assert_allclose(
            Distillation(temperature).compare(teacher, student, Outputs()), want, rtol=1e-4
        )
        same = Distillation(temperature).compare(teacher, teacher, Outputs())
        np.testing.assert_allclose(same, np.zeros(5), atol=1e-5)

    def test_binary_by_numpy(self) -> None:
        teacher, student = (_RNG.normal(size=(5, 1)).astype("float32") for _ in range(2))
        p, q = (1 / (1 + np.exp(-logits / 2)) for logits in (teacher, student))
        want = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))[:, 0]
        np.testing.assert_allclose(
            Distillation(2.0).compare(teacher, student, Outputs(binary=True)), want, rtol=1e-4
        )

    def test_probabilities_give_their_logits_back(self) -> None:
        logits = _RNG.normal(size=(5, 3)).astype("float32")
        found = np.asarray(Outputs(logits=False).to_logits(_softmax(logits)))
        # Up to a constant, which a softmax does not see at any temperature.
        np.testing.assert_allclose(_softmax(found / 4), _softmax(logits / 4), rtol=1e-4)
        probabilities = 1 / (1 + np.exp(-logits[:, :1]))
        np.testing.assert_allclose(
            Outputs(True, False).to_logits(probabilities), logits[:, :1], rtol=1e-3
        )
        assert Outputs().to_logits(logits) is logits


class TestTrainer:
    def _first_loss(
        self, model: keras.Model, y: np.ndarray | None, distillation: Distillation | None,
        teacher: keras.Model | list[keras.Model] | None = None, loss: Any = None,
    ) -> float:  # fmt: skip
        task, data = _task(model, y, loss)
        told: list[Any] = []
        # One batch and no step to speak of: the loss is that of the model as it is.
        trainer = Trainer(task, data, teacher or model, distillation, 48, 1e-30, told.append)
        history = trainer.fit(copy_model(model), "stage", 1, [])
        if task.is_classifier:
            assert history["accuracy"][0] == pytest.approx(measure(model, task, data.train))
        assert told[0].values["loss"] == history["loss"][0]
        return history["loss"][0]

    @pytest.mark.parametrize("one_hot", [False, True])
    def test_true_and_soft_labels_are_mixed(self, one_hot: bool) -> None:
        model, teacher = _model(), _model()
        teacher.layers[-1].kernel.assign(np.linspace(-4, 4, 18).reshape(6, 3))
        logits, taught = (m.predict(_X, verbose=0) for m in (model, teacher))
        hard = -np.log(_softmax(logits)[np.arange(48), _Y]).mean()
        p, q = _softmax(taught / 4), _softmax(logits / 4)
        soft = 16 * (p * np.log(p / q)).sum(1).mean()
        assert abs(hard - soft) > 0.1
        y = np.eye(3)[_Y] if one_hot else _Y
        found = self._first_loss(model, y, Distillation(4.0, 0.7), teacher)
        assert found == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-4)
        assert self._first_loss(model, y, None) == pytest.approx(hard, rel=1e-4)

    @pytest.mark.parametrize(
        "loss", ["categorical_crossentropy", keras.losses.MeanSquaredError(), "sparse"]
    )
    def test_own_losses_get_labels_in_their_form(self, loss: Any) -> None:
        model = _model(activation="softmax")
        probabilities = model.predict(_X, verbose=0)
        want = -np.log(probabilities[np.arange(48), _Y]).mean()
        if loss == "sparse":
            loss = keras.losses.SparseCategoricalCrossentropy()
        if isinstance(loss, keras.losses.MeanSquaredError):
            want = ((probabilities - np.eye(3)[_Y]) ** 2).mean()
        given = keras.losses.get(loss)
        assert self._first_loss(model, _Y, None, loss=given) == pytest.approx(want, rel=1e-4)
        alone = Distillation(4.0, 1e-9)
        assert self._first_loss(model, _Y, alone, loss=given) == pytest.approx(want, rel=1e-4)

    @pytest.mark.parametrize("activation", [None, "softmax"])
    def test_several_teachers_count_as_the_mean_of_their_logits(
        self, activation: str | None
    ) -> None:
        model, first, second = (_model(activation=a) for a in (activation, None, "softmax"))
        first.layers[-1].kernel.assign(np.linspace(-4, 4, 18).reshape(6, 3))
        second.layers[-1].kernel.assign(np.linspace(2, -1, 18).reshape(6, 3))
        student, logits, probabilities = (m.predict(_X, verbose=0) for m in (model, first, second))
        # The geometric mean of the probabilities, softened.
        mean = (np.log(_softmax(logits)) + np.log(probabilities)) / 2
        own = np.log(student) if activation else student
        p, q = _softmax(mean / 4), _softmax(own / 4)
        want = 16 * (p * np.log(p / q)).sum(1).mean()
        found = self._first_loss(model, _Y, Distillation(4.0, 1.0), [first, second])
        assert found == pytest.approx(want, rel=1e-3)

    def test_kept_outputs_train_the_same_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bit for bit; what is kept is not computed again, and another teacher's is not taken."""
        rng = np.random.default_rng(3)
        x, y = rng.normal(size=(1500, 6)).astype("float32"), np.arange(1500) % 3
        student, teacher, other = _model(), _model(), _model()
        for model, least in ((teacher, -4), (other, -1)):
            model.layers[-1].kernel.assign(np.linspace(least, 4, 18).reshape(6, 3))
        loaded, samples = wrap(student), Samples((x,), y)
        data = Data(samples, samples.at(slice(0, 300)), "")
        task = find_task(loaded, data, first_outputs(loaded, samples), None)
        asked: list[int] = []
        predict = keras.Model.predict

        def counted(model: keras.Model, x: Any, **others: Any) -> Any:
            asked.append(len(x))
            return predict(model, x, **others)

        monkeypatch.setattr(keras.Model, "predict", counted)

        def trained(teacher: keras.Model, kept: Path | None) -> np.ndarray:
            model = copy_model(student)
            loss = Distillation(4.0, 0.7)
            trainer = Trainer(task, data, teacher, loss, 48, 0.01, lambda epoch: None, kept)
            keras.utils.set_random_seed(1)
            trainer.fit(model, "stage", 2, [])
            return np.asarray(model.layers[-1].kernel)

        want = trained(teacher, None)
        assert asked == [1500, 300]
        for seen in ([1024, 476, 300], []):
            asked.clear()
            np.testing.assert_array_equal(trained(teacher, tmp_path), want)
            assert asked == seen
        found = trained(other, tmp_path)
        assert asked == [1024, 476, 300]
        assert not np.array_equal(found, want)
        np.testing.assert_array_equal(found, trained(other, None))

    @pytest.mark.parametrize("several", [False, True])
    def test_outputs_for_batches_that_never_change_are_kept(
        self, several: bool, tmp_path: Path
    ) -> None:
        """The weights are those of teachers in each step, which run no more."""

        def batches() -> Iterator[Any]:
            for start in range(0, 48, 16):
                yield _X[start : start + 16], _Y[start : start + 16]

        student = _model()
        teachers = [_model(), _model(activation="softmax")][: 1 + several]
        for model in teachers:
            model.layers[-1].kernel.assign(np.linspace(-4, 4, 18).reshape(6, 3))
        loaded, samples = wrap(student), Samples((_X,), _Y)
        calls: list[int] = []
        call = teachers[0].call
        found = []
        for fixed in (None, batches, batches):
            stream = Stream(batches, 3, loaded, "--data", samples, "these", 48, (), (), fixed)
            data = Data(samples, samples, "", stream)
            task = find_task(loaded, data, first_outputs(loaded, samples), None)
            model = copy_model(student)
            trainer = Trainer(
                task, data, teachers, Distillation(4.0, 0.7), 16, 0.01, lambda epoch: None, tmp_path
            )
            teachers[0].call = lambda *a, **k: calls.append(1) or call(*a, **k)
            trainer.fit(model, "stage", 2, [])
            teachers[0].call = call
            found.append(np.asarray(model.layers[-1].kernel))
            assert bool(calls) == (fixed is None)
            calls.clear()
        assert len(list(tmp_path.glob("*/*.npz"))) == 1
        np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[2], found[1])

    def test_binary(self) -> None:
        model = _model(1, "sigmoid")
        p = model.predict(_X, verbose=0)[:, 0]
        y = _Y % 2
        want = -np.log(np.where(y, p, 1 - p)).mean()
        assert self._first_loss(model, y, Distillation(2.0, 1e-9)) == pytest.approx(want, rel=1e-4)

    def test_values_and_own_inputs(self) -> None:
        y = _RNG.normal(size=(48, 3)).astype("float32")
        model = _model()
        want = ((model.predict(_X, verbose=0) - y) ** 2).mean()
        assert self._first_loss(model, y, None) == pytest.approx(want, rel=1e-4)
        model = _model(6)
        want = ((model.predict(_X, verbose=0) - _X) ** 2).mean()
        assert self._first_loss(model, None, None) == pytest.approx(want, rel=1e-4)

    def test_several_inputs_by_name(self) -> None:
        inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((4,), name="b")}
        joined = layers.Concatenate()([inputs["b"], inputs["a"]])
        model = keras.Model(inputs, layers.Dense(3)(joined))
        x = tuple(_X[:, :2] if spec.name == "a" else _X[:, 2:] for spec in wrap(model).inputs)
        samples = Samples(x, _Y)
        loaded = wrap(model)
        task = find_task(loaded, Data(samples, samples, ""), first_outputs(loaded, samples), None)
        trainer = Trainer(
            task, Data(samples, samples, ""), model, None, 16, 0.01, lambda epoch: None
        )
        assert trainer.steps_per_epoch == 3
        losses = trainer.fit(model, "stage", 3, [])["loss"]
        assert losses[-1] < losses[0]


def test_a_student_has_weights_of_its_own() -> None:
    model = _model()
    student = copy_model(model)
    student.layers[-1].kernel.assign(np.zeros((6, 3)))
    assert np.asarray(model.layers[-1].kernel).any()
    assert [layer.name for layer in student.layers] == [layer.name for layer in model.layers]
