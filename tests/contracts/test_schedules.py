"""What every registered schedule promises; a new one only adds a line to EXAMPLES."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.core.errors import UnknownNameError
from edgecompress.schedules import (
    SCHEDULES,
    ConstantSparsity,
    CustomSchedule,
    IterativeSparsity,
    OneShotSparsity,
    PolynomialDecay,
    Schedule,
    deserialize,
    serialize,
)


@keras.saving.register_keras_serializable("edgecompress_tests")
def half_way(step: Any) -> Any:
    """Approaches 0.9, and is halfway there at step 40."""
    return 0.9 * step / (step + 40)


# Every field away from its default.
EXAMPLES: dict[str, Schedule] = {
    "constant_sparsity": ConstantSparsity(0.6, begin_step=3, end_step=47, frequency=11),
    "custom": CustomSchedule(half_way, begin_step=2, end_step=50, frequency=12),
    "iterative": IterativeSparsity(0.9, begin_step=5, rounds=4, frequency=9),
    "one-shot": OneShotSparsity(0.7, step=13),
    "polynomial_decay": PolynomialDecay(
        0.9, begin_step=4, end_step=44, initial_sparsity=0.3, power=2.5, frequency=8
    ),
}

# As imported: an example in a docstring, run as a test, registers one more.
REGISTERED = sorted(SCHEDULES)
every_schedule = pytest.mark.parametrize("name", REGISTERED)


def test_every_registered_schedule_has_an_example() -> None:
    assert sorted(EXAMPLES) == REGISTERED


@every_schedule
def test_example_leaves_no_field_at_its_default(name: str) -> None:
    for field in dataclasses.fields(EXAMPLES[name]):  # type: ignore[arg-type]
        assert getattr(EXAMPLES[name], field.name) != field.default


@every_schedule
def test_config_round_trip_through_json(name: str) -> None:
    schedule = EXAMPLES[name]
    assert type(schedule).from_config(json.loads(json.dumps(schedule.get_config()))) == schedule
    data = json.loads(json.dumps(serialize(schedule)))
    assert data["name"] == name
    assert deserialize(data) == schedule


@every_schedule
def test_sparsity_is_a_share_at_every_step(name: str) -> None:
    values = [EXAMPLES[name](step) for step in range(200)]
    assert all(type(v) is float and 0 <= v < 1 for v in values)


@every_schedule
def test_updates_start_at_begin_step_and_stay_inside(name: str) -> None:
    schedule = EXAMPLES[name]
    due = [step for step in range(200) if schedule.should_update(step)]
    assert due == list(range(schedule.begin_step, schedule.end_step + 1, schedule.frequency))
    assert all(type(schedule.should_update(step)) is bool for step in range(5))


@every_schedule
@pytest.mark.parametrize("jit_compile", [False, True])
def test_formula_is_the_same_inside_a_graph(name: str, jit_compile: bool) -> None:
    import tensorflow as tf
    from keras import ops

    schedule = EXAMPLES[name]

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec((), tf.int64)])
    def in_graph(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return schedule.value(step, ops), tf.convert_to_tensor(schedule.due(step))

    for step in range(60):
        sparsity, due = in_graph(tf.constant(step, tf.int64))
        assert sparsity.dtype == tf.float32
        np.testing.assert_allclose(float(sparsity), schedule(step), rtol=0, atol=1e-6)
        assert bool(due) == schedule.should_update(step)


def test_unknown_schedule_names_its_neighbour() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean polynomial_decay"):
        deserialize({"name": "polynomial_decey", "config": {}})


def test_unregistered_schedule_is_not_serialized_silently() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(ConstantSparsity):
        pass

    with pytest.raises(ValueError, match="`schedule` must be registered"):
        serialize(Mine(0.5))
