"""What every loss of layers keeps: 0 where both agree, slopes, its config, and use in `fit`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import named, named_config, options_of
from edgecompress.training import LAYER_LOSSES
from edgecompress.training.base import LayerLoss

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

_RNG = np.random.default_rng(5)
SHAPE = (6, 4, 4, 3)
TEACHER, STUDENT = (_RNG.normal(size=SHAPE).astype("f4") for _ in range(2))
X = _RNG.normal(size=(64, 6, 6, 2)).astype("f4")
Y = _RNG.normal(size=(64, 1)).astype("f4")


@pytest.fixture(params=sorted(LAYER_LOSSES))
def loss(request: pytest.FixtureRequest) -> LayerLoss:
    return named(LAYER_LOSSES, request.param, "layer_loss")


@pytest.mark.parametrize("axis", [-1, 1])
def test_it_is_zero_where_both_agree_and_only_there(loss: LayerLoss, axis: int) -> None:
    same, apart = (
        np.asarray(loss.compare(TEACHER, each, (axis, axis))) for each in (TEACHER, STUDENT)
    )
    assert same.shape == apart.shape == (6,)
    np.testing.assert_allclose(same, 0, atol=1e-5)
    assert np.isfinite(apart).all() and (apart > 1e-3).all()


def test_each_sample_counts_for_itself(loss: LayerLoss) -> None:
    whole = np.asarray(loss.compare(TEACHER, STUDENT, (-1, -1)))
    for i in range(6):
        alone = loss.compare(TEACHER[i : i + 1], STUDENT[i : i + 1], (-1, -1))
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=1e-5)


def test_the_axis_of_channels_is_that_of_the_layer(loss: LayerLoss) -> None:
    last = loss.compare(TEACHER, STUDENT, (-1, -1))
    first = loss.compare(np.moveaxis(TEACHER, -1, 1), np.moveaxis(STUDENT, -1, 1), (1, 1))
    np.testing.assert_allclose(first, last, rtol=1e-5)


def test_gradients_reach_the_student_alone(loss: LayerLoss) -> None:
    teacher, student = tf.Variable(TEACHER), tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss.compare(teacher, student, (-1, -1)))
    to_teacher, to_student = tape.gradient(total, [teacher, student])
    assert to_teacher is None
    assert np.isfinite(to_student).all() and np.abs(to_student).max() > 0
    closer = loss.compare(TEACHER, STUDENT - 1e-2 * np.asarray(to_student), (-1, -1))
    assert float(tf.reduce_sum(closer)) < float(total)


def test_layers_of_one_shape_can_be_compared_and_other_places_cannot(loss: LayerLoss) -> None:
    assert loss.why_not((None, 4, 4, 3), (None, 4, 4, 3), (-1, -1)) is None
    why = loss.why_not((None, 4, 4, 3), (None, 2, 2, 3), (-1, -1))
    # A clause that ends a sentence of the caller.
    assert why and not why.endswith(".") and why[0].islower()


def _network(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(3, 3, name="conv"), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    return model


def test_a_layer_learns_from_it_in_fit(loss: LayerLoss) -> None:
    """The labels' loss says nothing of the layer: with the teacher's weight, the layer follows."""
    teacher, student = _network(1), _network(2)
    config = {**named_config(LAYER_LOSSES, loss)["config"], "weight": 100.0}
    strong = type(loss)(**config)
    callback = ec.Distillation(teacher, "logits:weight=0", {"conv": "conv"}, strong)

    def apart() -> float:
        maps = [np.array(model.layers[0](X)) for model in (teacher, student)]
        return float(np.mean(strong.compare(*maps, (-1, -1))))

    before = apart()
    history = student.fit(X, Y, batch_size=16, epochs=6, verbose=0, callbacks=[callback]).history
    assert apart() < 0.8 * before
    assert history["teacher_loss"][-1] < history["teacher_loss"][0]


def test_it_comes_back_from_its_config(loss: LayerLoss) -> None:
    assert named(LAYER_LOSSES, named_config(LAYER_LOSSES, loss), "layer_loss") == loss
    assert all(item.help.endswith(".") for item in options_of(type(loss)))
    assert loss.weight >= 0


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="layer loss") as error:
        LAYER_LOSSES["zzz"]
    assert all(name in str(error.value) for name in LAYER_LOSSES)
