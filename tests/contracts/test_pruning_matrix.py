"""Every criterion with every pattern and schedule, from `fit` to an int8 file, on all kinds of net.

Pairs are drawn from the registries; each is one layer of one of the nets, which take turns.
Patterns of whole layers get two, of which one goes: on a branch, so that the outputs still see the
inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.bypass import cheapest_path
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import named
from edgecompress.criteria import CRITERIA
from edgecompress.engines.run import run_engine
from edgecompress.patterns import PATTERNS
from edgecompress.schedules import SCHEDULES, Schedule

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_STEPS = 5
_SPARSITY = 0.5

# How each schedule reaches the same sparsity within the steps of the fit.
_SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "constant_sparsity": lambda: ec.ConstantSparsity(_SPARSITY, begin_step=2, frequency=1),
    "custom": lambda: ec.CustomSchedule(
        lambda step: _SPARSITY * keras.ops.minimum(step / 4, 1.0), begin_step=2, frequency=1
    ),
    "iterative": lambda: ec.IterativeSparsity(_SPARSITY, begin_step=2, rounds=2, frequency=2),
    "one-shot": lambda: ec.OneShotSparsity(_SPARSITY, step=3),
    "polynomial_decay": lambda: ec.PolynomialDecay(_SPARSITY, 1, 4, frequency=1),
}


# --- Nets ---------------------------------------------------------------------------------------


class _Net:
    """Builds a net and remembers the layers that a pair may prune."""

    def __init__(self) -> None:
        self.slots: list[Any] = []

    def _unit(self, x: Any, layer: Any) -> Any:
        self.slots.append(layer)
        return kl.ReLU()(kl.BatchNormalization()(layer(x)))

    def conv(self, x: Any, filters: int, size: int = 3) -> Any:
        return self._unit(x, kl.Conv2D(filters, size, padding="same"))

    def dense(self, x: Any, units: int) -> Any:
        return self._unit(x, kl.Dense(units))


def _plain(net: _Net, x: Any) -> Any:
    x = kl.MaxPooling2D()(net.conv(net.conv(x, 8), 8))
    return net.dense(net.dense(kl.Flatten()(x), 16), 12)


def _residual(net: _Net, x: Any) -> Any:
    x = net.conv(x, 8)
    x = kl.Add()([x, net.conv(net.conv(x, 8), 8)])
    return net.dense(net.dense(kl.GlobalAveragePooling2D()(x), 16), 12)


def _inverted(net: _Net, x: Any) -> Any:
    x = net.conv(x, 8)
    wide = kl.DepthwiseConv2D(3, padding="same")(net.conv(x, 16, 1))
    x = kl.Add()([x, net.conv(kl.ReLU(6.0)(wide), 8, 1)])
    return net.dense(net.dense(kl.GlobalAveragePooling2D()(x), 16), 12)


def _inception(net: _Net, x: Any) -> Any:
    x = kl.Concatenate()([net.conv(x, 8, 1), net.conv(x, 8), kl.MaxPooling2D(3, 1, "same")(x)])
    return net.dense(net.dense(kl.GlobalAveragePooling2D()(x), 16), 12)


def _u_net(net: _Net, x: Any) -> Any:
    down = net.conv(x, 8)
    low = net.conv(kl.MaxPooling2D()(down), 8)
    x = kl.Concatenate()([kl.UpSampling2D()(low), down])
    return net.dense(net.dense(kl.GlobalMaxPooling2D()(net.conv(x, 8)), 16), 12)


def _squeeze(net: _Net, x: Any) -> Any:
    x = net.conv(net.conv(x, 8), 8)
    gate = kl.GlobalAveragePooling2D(keepdims=True)(x)
    gate = kl.Conv2D(8, 1, activation="sigmoid")(kl.Conv2D(4, 1, activation="relu")(gate))
    x = kl.GlobalAveragePooling2D()(kl.Multiply()([x, gate]))
    return net.dense(net.dense(x, 16), 12)


def _two_inputs(net: _Net, x: Any, other: Any) -> Any:
    x = kl.GlobalAveragePooling2D()(net.conv(net.conv(x, 8), 8))
    return net.dense(kl.Concatenate()([x, net.dense(other, 16), net.dense(other, 4)]), 12)


def _recurrent(net: _Net, x: Any) -> Any:
    x = net.conv(net.conv(x, 8), 4)
    x = kl.LSTM(8)(kl.Reshape((8, 32))(x))
    return net.dense(net.dense(x, 16), 12)


def _attention(net: _Net, x: Any) -> Any:
    x = kl.Reshape((16, 32))(kl.MaxPooling2D(2)(net.conv(net.conv(x, 8), 32)))
    x = kl.Add()([x, kl.MultiHeadAttention(2, 4)(x, x)])
    x = kl.GlobalAveragePooling1D()(kl.LayerNormalization()(x))
    return net.dense(net.dense(x, 16), 12)


_NETS: dict[str, Callable[..., Any]] = {
    "plain": _plain,
    "residual": _residual,
    "inverted residual": _inverted,
    "inception": _inception,
    "U-Net": _u_net,
    "squeeze-excite": _squeeze,
    "two inputs": _two_inputs,
    "recurrent": _recurrent,
    "attention": _attention,
}
_SHAPES = {"two inputs": ((8, 8, 4), (12,))}


def _built(name: str) -> tuple[Any, list[Any]]:
    keras.utils.set_random_seed(len(name))
    inputs = [keras.Input(shape) for shape in _SHAPES.get(name, ((8, 8, 4),))]
    net = _Net()
    outputs = kl.Dense(3)(_NETS[name](net, *inputs))
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs), net.slots


# --- Pairs --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Pair:
    criterion: str
    pattern: str
    schedule: str


def _pairs() -> list[_Pair]:
    schedules = sorted(SCHEDULES)
    return [
        _Pair(criterion, pattern, schedules[(i + j) % len(schedules)])
        for i, criterion in enumerate(sorted(CRITERIA))
        for j, pattern in enumerate(sorted(PATTERNS))
    ]


_Places = tuple[int, ...]


def _whole(pair: _Pair) -> bool:
    return PATTERNS[pair.pattern].compares_layers


def _places(name: str) -> tuple[list[_Places], list[_Places]]:
    """Returns the neighbouring layers without which the outputs see the inputs, and all layers."""
    model, slots = _built(name)
    two = [(i, i + 1) for i in range(len(slots) - 1)]
    branches = [p for p in two if not cheapest_path(model, {slots[i].name: 1 for i in p})]
    return branches, [(i,) for i in range(len(slots))]


def _taken(name: str, left: list[_Pair]) -> list[tuple[_Places, _Pair]]:
    """Takes the pairs of a net, one of them for whole layers, out of those that are left."""
    slots, (branches, layers) = _built(name)[1], _places(name)
    used: set[int] = set()
    taken = []
    for places in [*branches, *layers]:
        kernel = KernelShape(tuple(slots[places[0]].kernel.shape))
        fitting = [
            pair
            for pair in left
            if _whole(pair) == (len(places) > 1)
            and named(PATTERNS, pair.pattern, "pattern").fits(kernel)
        ]
        if fitting and not (used if len(places) > 1 else used & set(places)):
            left.remove(fitting[0])
            used |= set(places)
            taken.append((places, fitting[0]))
    return taken


@pytest.fixture(scope="module")
def rounds() -> list[tuple[str, list[tuple[_Places, _Pair]]]]:
    """Nets by turns, each with the pairs that its layers take: (positions of layers, pair)."""
    left, found = _pairs(), []
    while left:
        before = len(left)
        for name in _NETS:
            taken = _taken(name, left)
            found += [(name, taken)] if taken else []
        assert len(left) < before, f"no net takes one of {left}"
    return found


def test_every_pair_has_its_turn(rounds: Any) -> None:
    pairs = [pair for _, taken in rounds for _, pair in taken]
    names = [[getattr(p, f.name) for p in pairs] for f in dataclasses.fields(_Pair)]
    known = [list(CRITERIA), list(PATTERNS), list(SCHEDULES)]
    for first, second in itertools.combinations(range(3), 2):
        met = set(zip(names[first], names[second], strict=True))
        assert met == set(itertools.product(known[first], known[second]))
    assert {name for name, _ in rounds} == set(_NETS)


# --- From fit to the file -----------------------------------------------------------------------


def _data(model: Any, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=(count, *x.shape[1:])).astype("f4") for x in model.inputs]


def _close(found: np.ndarray, expected: np.ndarray, share: float) -> None:
    assert np.abs(found - expected).max() <= share * np.abs(expected).max()


def _given(arrays: list[np.ndarray]) -> Any:
    return arrays[0] if len(arrays) == 1 else arrays


@pytest.mark.parametrize("name", _NETS)
def test_from_fit_to_an_int8_file(name: str, rounds: Any, tmp_path: Path) -> None:
    for net, taken in rounds:
        if net == name:
            _run(name, taken, tmp_path / "model.keras")


def _run(name: str, taken: list[tuple[_Places, _Pair]], path: Path) -> None:
    model, slots = _built(name)
    x = _data(model, 4 * _STEPS)
    pruning = [
        ec.Pruning(
            _SCHEDULES[pair.schedule](), pair.criterion, pair.pattern,
            [slots[i].name for i in places], "global" if _whole(pair) else "layer",
        )
        for places, pair in taken
    ]  # fmt: skip
    model.compile(keras.optimizers.SGD(1e-2), "mse")
    y = np.random.default_rng(1).normal(size=(len(x[0]), 3))
    model.fit(_given(x), y, batch_size=4, verbose=0, callbacks=pruning)
    for (places, pair), callback in zip(taken, pruning, strict=True):
        zeros = [np.mean(slots[i].kernel.numpy() == 0) for i in places]
        if _whole(pair):
            # The one that stays may have been out in between, and learns anew from zeros.
            assert min(zeros) < max(zeros) == 1, pair
            continue
        # A unit is at most a fourth of these kernels, a kept unit of Dense blocks at most an input.
        assert zeros == pytest.approx([_SPARSITY], abs=0.13), pair
        assert not any("below the schedule" in note for note in callback.notes), callback.notes

    inputs = _data(model, 32)
    masked = model.predict(_given(inputs), verbose=0)
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.predict(_given(inputs), verbose=0), masked)
    small = ec.finalize(loaded)
    assert small.count_params() <= model.count_params()
    _close(small.predict(_given(inputs), verbose=0), masked, 1e-5)
    artifact = int8.convert(float32.convert(small), calibration=inputs)
    file = int8.strip_names(artifact)
    codes = run_engine("litert", file.data, quantized_inputs(file.flat, inputs)).outputs[0]
    found = dequantize(codes, file.flat.tensors[file.flat.outputs[0]])
    assert np.corrcoef(found.ravel(), masked.ravel())[0, 1] > 0.98
    _close(found, masked, 0.2)
