"""The pattern of whole layers: which go, which stay, and what `finalize` makes of the branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgecompress as ec
from edgecompress.core.bypass import cheapest_path
from edgecompress.core.errors import ArgumentError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.layers import Layers

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_SETTINGS = settings(max_examples=25, deadline=None, database=None, derandomize=True)
# Each mean, once more in numpy.
_MEANS = {
    "rms": lambda scores: float(np.sqrt(np.mean(scores.astype("f8") ** 2))),
    "mean": lambda scores: float(np.mean(scores.astype("f8"))),
    "max": lambda scores: float(scores.max()),
}


@st.composite
def _kernels(draw: st.DrawFn) -> list[np.ndarray]:
    """Draws scores of kernels of different ranks and sizes, whose means all differ."""
    shapes = draw(st.lists(st.sampled_from([(3, 5), (8, 2), (3, 3, 2, 4), (64,)]), min_size=1))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = 1.5 ** random.permutation(len(shapes))
    return [
        (level * random.uniform(0.9, 1.0, shape)).astype("f4")
        for shape, level in zip(shapes, levels, strict=True)
    ]


@pytest.mark.parametrize("mean", sorted(_MEANS))
@given(_kernels(), st.floats(0, 1))
@_SETTINGS
def test_the_weakest_layers_go_whole(mean: str, scores: list[np.ndarray], asked: float) -> None:
    shapes = [KernelShape(kernel.shape) for kernel in scores]
    masks = [np.array(mask) for mask in Layers(mean).masks(scores, np.float32(asked), shapes)]
    assert [mask.shape for mask in masks] == [kernel.shape for kernel in scores]
    gone = [not mask.any() for mask in masks]
    assert all(mask.all() for mask, lost in zip(masks, gone, strict=True) if not lost)
    count = sum(gone)
    assert count < len(scores)
    wanted = min(asked * len(scores), len(scores) - 1)
    assert abs(count - wanted) <= 0.5 + 1e-5
    order = np.argsort([_MEANS[mean](kernel) for kernel in scores])
    assert sorted(np.flatnonzero(gone)) == sorted(order[:count])


def test_a_large_layer_counts_no_more_than_a_small_one() -> None:
    scores = [np.full((50, 50), 0.1, "f4"), np.full((2, 2), 0.2, "f4")]
    shapes = [KernelShape(kernel.shape) for kernel in scores]
    large, small = Layers().masks(scores, 0.5, shapes)
    assert not np.any(large) and np.all(small)  # By the L2 norm, 5 > 0.4, the large one stays.


# --- Which may go -------------------------------------------------------------------------------


def _conv(filters: int, size: int, name: str) -> Any:
    return kl.Conv2D(filters, size, padding="same", name=name)


def _residual() -> Any:
    """A block around a shortcut, and one with a projection, cheaper than the branch."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = _conv(4, 3, "stem")(inputs)
    branch = _conv(4, 3, "a2")(kl.ReLU()(kl.BatchNormalization()(_conv(4, 3, "a1")(x))))
    x = kl.ReLU()(kl.Add(name="a")([x, branch]))
    branch = _conv(6, 3, "b2")(kl.ReLU()(_conv(6, 3, "b1")(x)))
    x = kl.ReLU()(kl.Add(name="b")([_conv(6, 1, "b_short")(x), branch]))
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(x)))


def test_the_cheapest_path_sees_the_inputs() -> None:
    model = _residual()
    costs = {layer.name: layer.count_params() for layer in model.layers}
    assert {"stem", "b_short", "head"} == set(
        cheapest_path(model, {k: v for k, v in costs.items() if v and "batch" not in k})
    )
    assert cheapest_path(model, {"a1": 1.0, "a2": 1.0}) == frozenset()
    # With the projection dearer than the branch, the branch is the path.
    assert cheapest_path(model, {"b1": 1, "b2": 1, "b_short": 3}) == {"b1", "b2"}


def test_a_gate_needs_both_its_inputs() -> None:
    inputs = keras.Input((4,))
    gate = kl.Dense(4, activation="sigmoid", name="gate")(inputs)
    model = keras.Model(inputs, kl.Multiply()([inputs, gate]))
    assert cheapest_path(model, {"gate": 1.0}) == {"gate"}
    summed = keras.Model(inputs, kl.Add()([inputs, gate]))
    assert cheapest_path(summed, {"gate": 1.0}) == frozenset()


# --- In a fit -----------------------------------------------------------------------------------


def _fit(model: Any, *callbacks: Any) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 6, 6, 2)), random.normal(size=(32, 3))
    model.compile(keras.optimizers.SGD(1e-2), "mse")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))


def _half(**more: Any) -> Any:
    schedule = ec.ConstantSparsity(0.5, begin_step=2, frequency=1)
    return ec.Pruning(schedule, pattern="layers", scope="global", **more)


@pytest.fixture(scope="module")
def pruned() -> tuple[Any, Any]:
    model, pruning = _residual(), _half()
    _fit(model, pruning)
    return model, pruning


def _zero(model: Any) -> set[str]:
    kernels = {x.name: x.kernel for x in model.layers if hasattr(x, "kernel")}
    return {name for name, kernel in kernels.items() if not np.any(kernel.numpy())}


def test_half_of_the_layers_off_the_path_go(pruned: tuple[Any, Any]) -> None:
    model, pruning = pruned
    assert len(_zero(model)) == 2 and _zero(model) <= {"a1", "a2", "b1", "b2"}
    for name in ("stem", "b_short", "head"):
        assert any(f"{name} is not pruned: the outputs have to see" in n for n in pruning.notes)


def test_one_layer_stays() -> None:
    model = _residual()
    schedule = ec.ConstantSparsity(0.99, begin_step=1, frequency=1)
    pruning = ec.Pruning(schedule, pattern="layers", scope="global")
    _fit(model, pruning)
    assert len(_zero(model)) == 3 and _zero(model) < {"a1", "a2", "b1", "b2"}
    assert any("of the weights; the schedule's 0.990 counts layers" in n for n in pruning.notes)


def test_two_callbacks_together_leave_a_path() -> None:
    model = _residual()
    schedule = ec.ConstantSparsity(0.99, begin_step=1, frequency=1)
    more = {"pattern": "layers", "scope": "global"}
    first = ec.Pruning(schedule, layers=["b1", "b2"], **more)
    second = ec.Pruning(schedule, layers=["b_short", "a1", "a2"], **more)
    _fit(model, first, second)
    assert "b_short" not in _zero(model)
    assert any("b_short is not pruned" in note for note in second.notes)


def test_a_network_without_shortcuts_is_refused() -> None:
    model = keras.Sequential([keras.Input((6, 6, 2)), _conv(3, 3, "a"), kl.Flatten(), kl.Dense(3)])
    with pytest.raises(ArgumentError, match="pattern.*fit at least one kernel.*have to see"):
        _fit(model, _half())


def test_what_cannot_compare_layers_is_refused() -> None:
    schedule = ec.ConstantSparsity(0.5, begin_step=1)
    with pytest.raises(ArgumentError, match='`scope` must compare layers.*scope="global"'):
        ec.Pruning(schedule, pattern="layers")
    with pytest.raises(ArgumentError, match="`per_layer` must map to 0"):
        _half(per_layer={"a1": 0.5})
    _half(per_layer={"a1": 0.0})
