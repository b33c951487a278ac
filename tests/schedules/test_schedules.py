"""Schedules against their published formula, inside and outside a graph."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.schedules import (
    ConstantSparsity,
    CustomSchedule,
    IterativeSparsity,
    OneShotSparsity,
    PolynomialDecay,
)


@pytest.mark.parametrize("step", [0, 9, 10, 11, 300, 500, 509, 510, 511, 10_000])
def test_polynomial_is_equation_1_of_zhu_and_gupta(step: int) -> None:
    schedule = PolynomialDecay(0.9, begin_step=10, end_step=510, initial_sparsity=0.2)
    inside = min(max(step, 10), 510)
    expected = 0.9 + (0.2 - 0.9) * (1 - (inside - 10) / 500) ** 3
    assert schedule(step) == pytest.approx(expected, abs=1e-12)


def test_polynomial_power_1_is_a_line() -> None:
    schedule = PolynomialDecay(0.8, begin_step=0, end_step=100, power=1)
    np.testing.assert_allclose([schedule(s) for s in range(101)], np.linspace(0, 0.8, 101))


def test_polynomial_ends_are_exact() -> None:
    schedule = PolynomialDecay(0.85, begin_step=3, end_step=77, initial_sparsity=0.15)
    assert schedule(3) == pytest.approx(0.15, abs=1e-15)
    assert schedule(77) == 0.85
    assert schedule(10**9) == 0.85


def test_updates_come_every_frequency_steps_between_both_ends() -> None:
    schedule = PolynomialDecay(0.5, begin_step=5, end_step=25, frequency=10)
    assert [s for s in range(60) if schedule.should_update(s)] == [5, 15, 25]


def test_constant_without_end_never_ends() -> None:
    schedule = ConstantSparsity(0.5, begin_step=200, frequency=100)
    assert schedule.end_step == -1
    assert schedule(0) == schedule(10**6) == 0.5
    assert not schedule.should_update(100)
    assert schedule.should_update(200)
    assert schedule.should_update(10**6)


def test_constant_with_end_stops_updating() -> None:
    schedule = ConstantSparsity(0.5, begin_step=0, end_step=250)
    assert [s for s in range(1000) if schedule.should_update(s)] == [0, 100, 200]


@pytest.mark.parametrize(
    "schedule",
    [
        PolynomialDecay(0.5, begin_step=7, end_step=31, frequency=5),
        ConstantSparsity(0.5, begin_step=3, frequency=4),
        ConstantSparsity(0.5, begin_step=3, end_step=9, frequency=4),
    ],
    ids=repr,
)
def test_last_update_is_the_last_due_step(schedule: Any) -> None:
    for step in range(60):
        due = [s for s in range(step + 1) if schedule.should_update(s)]
        assert schedule.last_update(step) == (due[-1] if due else None)


def test_numpy_numbers_become_plain() -> None:
    schedule = PolynomialDecay(
        np.float32(0.5),  # type: ignore[arg-type]
        begin_step=np.int64(0),  # type: ignore[arg-type]
        end_step=np.ceil(99.5).astype(np.int32),
    )
    assert schedule.get_config() == {
        "final_sparsity": 0.5,
        "begin_step": 0,
        "end_step": 100,
        "initial_sparsity": 0.0,
        "power": 3,
        "frequency": 100,
    }
    assert {type(v) for v in schedule.get_config().values()} == {int, float}


_POLYNOMIAL: dict[str, Any] = {"final_sparsity": 0.5, "begin_step": 0, "end_step": 100}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"begin_step": 10, "end_step": 10}, r"`end_step` must be greater than begin_step \(10\)"),
        ({"begin_step": 10, "end_step": 9}, "`end_step` must be greater"),
        ({"end_step": -1}, "`end_step` must be greater"),
        ({"begin_step": -1}, "`begin_step` must be at least 0"),
        ({"begin_step": 1.5}, "`begin_step` must be a whole number"),
        ({"end_step": True}, "`end_step` must be a whole number"),
        ({"frequency": 0}, "`frequency` must be at least 1"),
        ({"final_sparsity": math.nan}, "`final_sparsity` must be at least 0 and below 1"),
        ({"final_sparsity": 1.0}, "`final_sparsity` must be at least 0 and below 1"),
        ({"final_sparsity": -0.1}, "`final_sparsity` must be at least 0"),
        ({"final_sparsity": 80}, "`final_sparsity` must be at least 0 and below 1"),
        ({"final_sparsity": "0.8"}, "`final_sparsity` must be a number"),
        ({"initial_sparsity": math.nan}, "`initial_sparsity` must be at least 0"),
        ({"power": 0}, "`power` must be finite and greater than 0"),
        ({"power": math.nan}, "`power` must be finite"),
        ({"power": "3"}, "`power` must be a number"),
    ],
    ids=str,
)
def test_polynomial_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PolynomialDecay(**{**_POLYNOMIAL, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_sparsity": 1.0}, "`target_sparsity` must be at least 0 and below 1"),
        ({"target_sparsity": math.nan}, "`target_sparsity` must be at least 0"),
        ({"target_sparsity": 0.5, "end_step": -2}, r"`end_step` must be -1 \(never ends\)"),
        ({"target_sparsity": 0.5, "begin_step": 5, "end_step": 4}, "`end_step` must be -1"),
        ({"target_sparsity": 0.5, "frequency": -1}, "`frequency` must be at least 1"),
    ],
    ids=str,
)
def test_constant_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ConstantSparsity(**arguments)


def test_constant_may_end_where_it_begins() -> None:
    schedule = ConstantSparsity(0.5, begin_step=4, end_step=4)
    assert [s for s in range(500) if schedule.should_update(s)] == [4]


def test_schedules_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConstantSparsity(0.5).target_sparsity = 0.6  # type: ignore[misc]


def test_schedules_need_no_keras() -> None:
    code = (
        "import sys, edgecompress.schedules; "
        "print([m for m in ('keras', 'tensorflow', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_iterative_rounds_leave_equal_shares(rounds: int) -> None:
    schedule = IterativeSparsity(0.9, begin_step=7, rounds=rounds, frequency=10)
    steps = [step for step in range(1, 200) if schedule.should_update(step)]
    assert steps == [7 + 10 * k for k in range(rounds)]
    left = [1.0, *(1 - schedule(step) for step in steps)]
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), 0.1 ** (1 / rounds))
    assert (
        schedule(6) == 0 and schedule(16) == schedule(7) and schedule(10**6) == schedule(steps[-1])
    )


def test_one_shot_prunes_once() -> None:
    schedule = OneShotSparsity(0.5, step=20)
    assert [step for step in range(100) if schedule.should_update(step)] == [20]
    assert schedule.last_update(19) is None and schedule.last_update(10**6) == 20


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda: IterativeSparsity(1.0, 1, 3), "final_sparsity"),
        (lambda: IterativeSparsity(0.5, 0, 3), "be at least 1"),
        (lambda: IterativeSparsity(0.5, 1, 0), "rounds"),
        (lambda: OneShotSparsity(0.5, 0), "step"),
        (lambda: OneShotSparsity(-0.1, 5), "target_sparsity"),
        (lambda: CustomSchedule(0.5), "function"),
        (lambda: CustomSchedule(lambda step: step / 1000), "at step 31.. it returned"),
        (lambda: CustomSchedule(lambda step: math.nan), "below 1"),
        (lambda: CustomSchedule(lambda step: "x"), "it failed"),
    ],
)
def test_a_broken_schedule_is_refused(make: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_function_that_is_not_registered_is_named() -> None:
    config = CustomSchedule(lambda step: 0.5).get_config()
    with pytest.raises(UnknownNameError, match="lambda"):
        CustomSchedule.from_config(config)
