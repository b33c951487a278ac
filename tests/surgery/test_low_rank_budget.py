"""Low rank until the whole model meets a budget, against all choices of ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.costs import COSTS
from edgecompress.surgery.low_rank_budget import low_rank

keras = pytest.importorskip("keras")
kl = keras.layers

_RNG = np.random.default_rng(4)


def _falling(inputs: int, outputs: int, rate: float) -> np.ndarray:
    """A matrix whose singular values fall by a rate."""
    left, _ = np.linalg.qr(_RNG.normal(size=(inputs, inputs)))
    right, _ = np.linalg.qr(_RNG.normal(size=(outputs, outputs)))
    count = min(inputs, outputs)
    return (left[:, :count] * rate ** np.arange(count)) @ right[:count]


def _dense() -> Any:
    layers = [kl.Dense(24, "relu", name="a"), kl.Dense(20, name="b"), kl.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((30,)), *layers])
    for layer, rate in zip(layers[:2], (0.75, 0.9), strict=True):
        layer.kernel.assign(_falling(*layer.kernel.shape, rate))
    return model


def _convolutions() -> Any:
    keras.utils.set_random_seed(0)
    layers = [
        kl.Conv2D(12, 3, padding="same", activation="relu", name="first"),
        kl.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="second"),
        kl.Flatten(),
        kl.Dense(24, "relu", name="dense"),
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, kl.Dense(3, name="head")])


def _step(model: Any) -> dict[str, Any]:
    (step,) = [s for s in record_of(model).steps if s["technique"] == "low-rank"]
    return dict(step)


def _macs(model: Any) -> int:
    """Of Dense layers, by their kernels alone."""
    return sum(math.prod(w.shape) for w in model.weights if len(w.shape) == 2)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_ranks_are_nearly_the_best_of_all(share: float) -> None:
    """The best product of what the kernels keep, of all pairs of ranks within the budget."""
    model = _dense()
    limit = share * _macs(model)
    small = low_rank(model, ec.Budget(macs=share))
    assert _macs(small) <= limit
    kept = math.prod(found["energy"] for found in _step(small)["factorized"].values())
    shapes = {"a": (30, 24), "b": (24, 20)}
    keeping: dict[str, list[tuple[int, float]]] = {}
    for name, shape in shapes.items():
        kernel = np.array(model.get_layer(name).kernel, "f8")
        squares = np.square(np.linalg.svd(kernel, compute_uv=False))
        ranks = range(1, len(squares) + 1)
        keeping[name] = [(math.prod(shape), 1.0)] + [
            (rank * sum(shape), squares[:rank].sum() / squares.sum())
            for rank in ranks
            if rank * sum(shape) < math.prod(shape)
        ]
    head = 20
    best = max(
        a[1] * b[1]
        for a, b in itertools.product(keeping["a"], keeping["b"])
        if a[0] + b[0] + head <= limit
    )
    assert best - 0.03 <= kept <= best + 1e-6


@pytest.mark.parametrize(
    "budget",
    [{"macs": 0.5}, {"parameters": 0.5}, {"file_bytes": 0.6}, {"macs": 0.7, "parameters": 0.4}],
    ids=str,
)
def test_what_comes_back_meets_the_budget(budget: dict[str, float]) -> None:
    model = _convolutions()
    before = [np.array(w) for w in model.get_weights()]
    small = low_rank(model, ec.Budget(**budget))
    for name, share in budget.items():
        whole, found = COSTS[name].measure(model), COSTS[name].measure(small)
        assert found <= share * whole
        assert _step(small)["costs"][name] == [whole, found]
    # The model that was given is as it was, the new one computes nearly what the record says.
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for found in _step(small)["factorized"].values():
        assert found["macs"][1] < found["macs"][0]
    assert small.output_shape == model.output_shape
    assert np.isfinite(small(_RNG.normal(size=(2, 8, 8, 3)).astype("f4"))).all()


def test_a_larger_budget_keeps_more() -> None:
    model = _convolutions()
    kept = [
        math.prod(f["energy"] for f in _step(low_rank(model, ec.Budget(macs=m)))[
            "factorized"].values())
        for m in (0.9, 0.7, 0.5, 0.3)
    ]  # fmt: skip
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


def test_a_budget_that_holds_already_changes_nothing() -> None:
    model = _dense()
    same = low_rank(model, ec.Budget(macs=1.0))
    assert _step(same)["factorized"] == {}
    for one, other in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_budget_out_of_reach_says_by_how_much() -> None:
    # Rank 1 of both layers, and the head: 54 + 44 + 20.
    with pytest.raises(ArgumentError, match="within reach.*118 MACs, 18 MACs above the limit of"):
        low_rank(_dense(), ec.Budget(macs=100))
    assert _macs(low_rank(_dense(), ec.Budget(macs=118))) == 118
    with pytest.raises(ArgumentError, match="leaves head: .* takes 1.05 times"):
        low_rank(_dense(), ec.Budget(macs=0.5), layers="head")


def test_layers_that_stay_are_named() -> None:
    small = low_rank(_dense(), ec.Budget(macs=0.8))
    (note,) = [n for n in record_of(small).notes if "head" in n]
    assert note.startswith("low-rank leaves head: at its lowest ranks it takes 1.05 times its mult")


@pytest.mark.slow
def test_no_layer_becomes_slower_on_the_target() -> None:
    model = _convolutions()
    target = "nucleo-l4r5zi"
    small = low_rank(model, ec.Budget(latency=0.9, target=target))
    before, after = (COSTS["latency"].measure(m, target) for m in (model, small))
    assert after <= 0.9 * before
    parts = COSTS["latency"].by_layer(small, target)
    whole = COSTS["latency"].by_layer(model, target)
    for name in _step(small)["factorized"]:
        assert sum(t for path, t in parts.items() if path.startswith(name)) < whole[name]


def test_bad_arguments_are_named() -> None:
    model = _dense()
    budget = ec.Budget(macs=0.5)
    with pytest.raises(ArgumentError, match="`until` must be a Budget"):
        low_rank(model, 0.5)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="tuckr.*tucker"):
        low_rank(model, budget, method="tuckr")
    with pytest.raises(ArgumentError, match="regular expression"):
        low_rank(model, budget, layers="(")
    with pytest.raises(ArgumentError, match="match the name"):
        low_rank(model, budget, layers="none")
