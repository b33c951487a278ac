"""What every loss against a teacher keeps: 0 where both agree, gradients, and use in `fit`."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import named, named_config, options_of
from edgecompress.training import LOSSES
from edgecompress.training.base import Outputs, TaughtLabels, TeacherLoss

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

_RNG = np.random.default_rng(5)
TEACHER, STUDENT = (_RNG.normal(size=(6, 3)).astype("f4") for _ in range(2))


@pytest.fixture(params=sorted(LOSSES))
def loss(request: pytest.FixtureRequest) -> TeacherLoss:
    return named(LOSSES, request.param, "loss")


@pytest.mark.parametrize("binary", [False, True])
def test_it_is_zero_where_both_agree_and_only_there(loss: TeacherLoss, binary: bool) -> None:
    columns = 1 if binary else 3
    teacher, student = TEACHER[:, :columns], STUDENT[:, :columns]
    same = np.asarray(loss.compare(teacher, teacher, Outputs(binary)))
    apart = np.asarray(loss.compare(teacher, student, Outputs(binary)))
    assert same.shape == apart.shape == (6,)
    np.testing.assert_allclose(same, 0, atol=1e-5)
    assert np.isfinite(apart).all() and (apart > 1e-4).all()


def test_gradients_reach_the_student_alone(loss: TeacherLoss) -> None:
    teacher, student = tf.Variable(TEACHER), tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss.compare(teacher, student, Outputs()))
    to_teacher, to_student = tape.gradient(total, [teacher, student])
    assert to_teacher is None
    assert np.isfinite(to_student).all() and np.abs(to_student).max() > 0
    # A step against the gradient brings the student closer.
    closer = loss.compare(TEACHER, STUDENT - 1e-3 * np.asarray(to_student), Outputs())
    assert float(tf.reduce_sum(closer)) < float(total)


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_a_student_learns_from_it_in_fit(loss: TeacherLoss, compiled: dict[str, object]) -> None:
    keras.utils.set_random_seed(0)
    x = _RNG.normal(size=(64, 4)).astype("f4")
    logits = 3 * x[:, :3]
    labels = np.zeros((64, 1), "f4")
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    taught = TaughtLabels(loss, crossentropy, 1, Outputs())
    rows = taught.pack(labels, logits)
    assert rows.shape == (64, 4)
    np.testing.assert_array_equal(taught.labels(rows), labels)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.05), lambda y, outputs: taught(y, outputs), **compiled)
    before = np.mean(loss.compare(logits, model.predict(x, verbose=0), Outputs()))
    model.fit(x, rows, batch_size=16, epochs=8, verbose=0)
    after = np.mean(loss.compare(logits, model.predict(x, verbose=0), Outputs()))
    assert after < before


def test_it_comes_back_from_its_config(loss: TeacherLoss) -> None:
    assert named(LOSSES, named_config(LOSSES, loss), "loss") == loss
    assert all(item.help.endswith(".") for item in options_of(type(loss)))
    assert 0 <= loss.weight <= 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="loss") as error:
        named(LOSSES, "zzz", "loss")
    assert all(name in str(error.value) for name in LOSSES)
