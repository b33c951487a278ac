"""The losses against a teacher and their formulas in numpy; what a teacher's outputs are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.core.options import named
from edgecompress.training import LAYER_LOSSES, LOSSES
from edgecompress.training.base import Outputs
from edgecompress.training.teachers import joined, mean_of_samples, of_outputs, output_kinds

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

_RNG = np.random.default_rng(3)
T, S = (_RNG.normal(size=(5, 4)).astype("f4") for _ in range(2))


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def test_distillation_is_the_divergence_of_softened_probabilities() -> None:
    loss = named(LOSSES, "distillation:temperature=3", "loss")
    p, q = _softmax(T / 3), _softmax(S / 3)
    want = 9 * (p * (np.log(p) - np.log(q))).sum(-1)
    np.testing.assert_allclose(loss.compare(T, S, Outputs()), want, rtol=1e-4, atol=1e-5)


def test_logits_are_compared_by_half_the_squared_distance() -> None:
    loss = named(LOSSES, "logits", "loss")
    want = [
        sum((a - b) ** 2 for a, b in zip(t, s, strict=True)) / 2 for t, s in zip(T, S, strict=True)
    ]
    np.testing.assert_allclose(loss.compare(T, S, Outputs()), want, rtol=1e-5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_attention_transfer_is_the_distance_of_normalized_maps(first: bool, power: int) -> None:
    teacher = _RNG.normal(size=(2, 3, 3, 6)).astype("f4")
    student = _RNG.normal(size=(2, 3, 3, 4)).astype("f4")
    want = []
    for t, s in zip(teacher, student, strict=True):
        maps = [np.array([sum(abs(v) ** power for v in place) for place in m.reshape(9, -1)])
                for m in (t, s)]  # fmt: skip
        t_map, s_map = (m / np.linalg.norm(m) for m in maps)
        want.append(np.linalg.norm(s_map - t_map) / 2)
    loss = named(LAYER_LOSSES, f"attention-transfer:power={power}", "layer_loss")
    if first:
        teacher, student = (np.moveaxis(values, -1, 1) for values in (teacher, student))
    axis = 1 if first else -1
    np.testing.assert_allclose(loss.compare(teacher, student, (axis, axis)), want, rtol=1e-4)


def test_attention_transfer_has_finite_slopes_at_dead_and_at_equal_maps() -> None:
    loss = named(LAYER_LOSSES, "attention-transfer", "layer_loss")
    teacher = np.abs(_RNG.normal(size=(1, 2, 2, 3))).astype("f4")
    for start in (np.zeros_like(teacher), teacher):
        student = tf.Variable(start)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(loss.compare(teacher, student, (-1, -1)))
        assert np.isfinite(tape.gradient(total, student)).all()
    assert total == 0


def test_hints_are_half_the_mean_square() -> None:
    teacher, student = _RNG.normal(size=(2, 3, 2, 2, 4)).astype("f4")
    want = [np.mean((s - t) ** 2) / 2 for s, t in zip(student, teacher, strict=True)]
    loss = named(LAYER_LOSSES, "hints", "layer_loss")
    np.testing.assert_allclose(loss.compare(teacher, student, (-1, -1)), want, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(LAYER_LOSSES))
def test_slopes_of_layer_losses_reach_the_student_alone(name: str) -> None:
    loss = named(LAYER_LOSSES, name, "layer_loss")
    teacher, student = (tf.Variable(v) for v in _RNG.normal(size=(2, 2, 3, 3, 4)).astype("f4"))
    with tf.GradientTape() as tape:
        found = loss.compare(teacher, student, (-1, -1))
        total = tf.reduce_sum(found)
    assert found.shape == (2,)
    to_teacher, to_student = tape.gradient(total, [teacher, student])
    assert to_teacher is None and np.abs(to_student).max() > 0
    np.testing.assert_allclose(loss.compare(teacher, teacher, (-1, -1)), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "teacher", "student", "why"),
    [
        ("attention-transfer", (None, 4), (None, 4), "places"),
        ("attention-transfer", (None, 4, 4, 8), (None, 2, 2, 8), "sizes"),
        ("attention-transfer", (None, 4, 4, 8), (None, 4, 4, 3), None),
        ("hints", (None, 4, 4, 8), (None, 4, 4, 3), None),
        ("hints", (None, 4, 4, None), (None, 4, 4, 3), "unknown"),
        ("hints", (None, 8), (None, 8), None),
    ],
)
def test_which_layers_can_be_compared(name: str, teacher: Any, student: Any, why: Any) -> None:
    found = named(LAYER_LOSSES, name, "layer_loss").why_not(teacher, student, (-1, -1))
    assert (found is None) if why is None else (found is not None and why in found)


def test_several_teachers_are_the_geometric_mean_of_their_probabilities() -> None:
    one, two = _softmax(T), S
    mean = np.exp((np.log(_softmax(T)) + np.log(_softmax(S))) / 2)
    found = joined([one, two], [Outputs(logits=False), Outputs()])
    np.testing.assert_allclose(
        _softmax(np.asarray(found)), mean / mean.sum(-1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_allclose(joined([T, S], [Outputs(), Outputs()]), (T + S) / 2, rtol=1e-5)


def test_sample_weights_apply_as_keras_applies_them() -> None:
    losses, weights = _RNG.random((4, 3)).astype("f4"), np.array([0.0, 1.0, 2.0, 5.0], "f4")
    np.testing.assert_allclose(mean_of_samples(losses, None), losses.mean(), rtol=1e-6)
    for given in (weights, weights[:, None]):
        want = (losses * weights[:, None]).sum() / losses.size
        np.testing.assert_allclose(mean_of_samples(losses, given), want, rtol=1e-6)
    want = (losses[:, 0] * weights).sum() / 4
    np.testing.assert_allclose(mean_of_samples(losses[:, 0], weights[:, None]), want, rtol=1e-6)


_LOGITS, _PROBABILITIES = Outputs(), Outputs(logits=False)
_ONE, _ONE_PROBABILITY = Outputs(binary=True), Outputs(binary=True, logits=False)


@pytest.mark.parametrize(
    ("tail", "loss", "kind", "values"),
    [
        ([("Dense", (4,), {})], None, _LOGITS, False),
        ([("Dense", (4, "softmax"), {})], None, _PROBABILITIES, False),
        ([("Dense", (4,), {}), ("Softmax", (), {})], None, _PROBABILITIES, False),
        ([("Dense", (4, "softmax"), {}), ("Reshape", ((2, 2),), {})], None, _PROBABILITIES, False),
        ([("Dense", (4, "softmax"), {}), ("Activation", ("linear",), {})],
         None, _PROBABILITIES, False),
        ([("Dense", (4,), {})], "sparse_categorical_crossentropy", _PROBABILITIES, False),
        ([("Dense", (4, "sigmoid"), {})], None, _ONE_PROBABILITY, False),
        ([("Dense", (1,), {})], None, _ONE, False),
        ([("Dense", (4,), {})], "from_logits", _ONE, False),
        ([("Dense", (4,), {})], "mse", _LOGITS, True),
        ([("Dense", (4,), {})], "poisson", _LOGITS, True),
        ([("Dense", (4,), {})], "kl_divergence", _PROBABILITIES, False),
        ([("Reshape", ((3, 1),), {}), ("TimeDistributed", (keras.layers.Dense(4, "softmax"),), {})],
         None, _PROBABILITIES, False),
        ([("Reshape", ((3, 1),), {}), ("Dense", (4, "softmax"), {}),
          ("GlobalAveragePooling1D", (), {})], None, _PROBABILITIES, False),
        ([("Dense", (1, "sigmoid"), {}), ("Reshape", ((),), {})], None, _ONE_PROBABILITY, False),
    ],
)  # fmt: skip
def test_what_outputs_stand_for(tail: Any, loss: Any, kind: Outputs, values: bool) -> None:
    layers = [getattr(keras.layers, name)(*args, **more) for name, args, more in tail]
    model = keras.Sequential([keras.Input((3,)), *layers])
    if loss is not None:
        if loss == "from_logits":
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    (found,) = output_kinds(model)
    assert (found.kind, found.values) == (kind, values)


def _with_outputs(outputs: Any) -> Any:
    inputs = keras.Input((3,))
    made = keras.tree.map_structure(lambda name: keras.layers.Dense(2, name=name)(inputs), outputs)
    return keras.Model(inputs, made)


@pytest.mark.parametrize(
    ("outputs", "given", "want"),
    [
        ({"b": "one", "a": "two"}, {"a": 1, "b": 2}, [1, 2]),
        ({"b": "one", "a": "two"}, {"b": 2}, [None, 2]),
        ({"b": "one", "a": "two"}, [1, 2], [1, 2]),
        ({"b": "one", "a": ["two", "three"]}, {"a": [1, None], "b": 2}, [1, None, 2]),
        ({"b": "one", "a": ["two", "three"]}, {"a": 1, "b": 2}, [1, 1, 2]),
        (["one", "two"], {"two": 2, "one": 1}, [1, 2]),
        (["one", "two"], (1, 2), [1, 2]),
        (["one", "two"], 1, [1, 1]),
        (["one", "two"], None, [None, None]),
    ],
)
def test_what_compile_is_given_for_each_output(outputs: Any, given: Any, want: list[Any]) -> None:
    assert of_outputs(_with_outputs(outputs), given) == want


def test_outputs_that_nothing_describes_say_so() -> None:
    def halves(y: Any, outputs: Any) -> Any:
        return keras.losses.mean_squared_error(y, outputs) / 2

    for loss, want in ((halves, "halves"), ("hinge", "hinge"), ("mse", None), (None, None)):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        if loss is not None:
            model.compile("sgd", loss)
        assert output_kinds(model)[0].unknown == want
    relu = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu")])
    assert output_kinds(relu)[0].unknown == "none"
