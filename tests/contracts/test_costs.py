"""What every cost that a budget can limit keeps."""

from __future__ import annotations

from typing import Any

import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.costs import COSTS
from edgecompress.surgery.channel_groups import ChannelGroups
from edgecompress.surgery.rebuild import rebuild

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

TARGET = "nucleo-l4r5zi"
every_cost = pytest.mark.parametrize("name", sorted(COSTS))


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(8, 3, padding="same", name="first")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu", name="apart")(x)
    x = keras.layers.Conv2D(8, 1, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(3, name="out")(x))


@pytest.fixture(scope="module")
def groups(model: Any) -> ChannelGroups:
    return ChannelGroups(model, {"first": 8, "second": 8})


@every_cost
def test_a_thinner_model_costs_less(name: str, model: Any, groups: ChannelGroups) -> None:
    cost, target = COSTS[name], TARGET if COSTS[name].needs_target else None
    thinner = rebuild(model, groups.without(range(4)))
    assert thinner.get_layer("first").filters == 4
    whole, part = cost.measure(model, target), cost.measure(thinner, target)
    assert 0 < part < whole
    by_layer = cost.by_layer(model, target)
    assert set(by_layer) <= {layer.name for layer in model.layers}
    assert by_layer["first"] > 0
    assert by_layer["first"] > cost.by_layer(thinner, target)["first"]
    if cost.exact_shares:
        assert sum(by_layer.values()) == pytest.approx(whole)
        kept = groups.left_over(range(4))
        left = sum(
            value * (cost.left_over(*kept[path]) if path in kept else 1)
            for path, value in by_layer.items()
        )
        assert left == pytest.approx(part)


@every_cost
def test_limits_are_shares_or_absolute(name: str) -> None:
    cost, target = COSTS[name], TARGET if COSTS[name].needs_target else None
    if cost.of_values:
        with pytest.raises(ArgumentError, match="depends on the values of weights"):
            ec.Budget(**{name: 0.5})
        return
    (half,) = ec.Budget(target=target, **{name: 0.5}).limits
    assert half.share and half.of(1000) == 500
    (absolute,) = ec.Budget(target=target, **{name: 100}).limits
    assert not absolute.share and absolute.of(1000) == 100
    for bad in (0, -1, 0.0, 1.5, float("nan"), True, "none", None, [1]):
        with pytest.raises(ArgumentError, match=name):
            ec.Budget(target=target, **{name: bad})
    budget = ec.Budget(target=target, **{name: 100})
    assert budget.exceeded({name: 100}, {name: 1000}) == []
    (text,) = budget.exceeded({name: 103}, {name: 1000})
    assert cost.show(3) in text and cost.show(100) in text
    if cost.needs_target:
        with pytest.raises(ArgumentError, match=f"name a target, because {name}"):
            ec.Budget(**{name: 0.5})


def test_weights_count_for_the_layer_that_holds_them() -> None:
    """Those of an LSTM do not for the table before it, which could then not be made smaller."""
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(30, 12, name="table")(words)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.LSTM(16, name="units")(x)
    x = keras.layers.Dense(8, use_bias=False, name="hidden")(x)
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(x))
    model = keras.Model(words, keras.layers.Dense(3, name="out")(x))
    found = COSTS["file_bytes"].by_layer(model)
    assert found["table"] == 30 * 12
    # Each gate reads 12 inputs and 16 units; a bias takes four bytes.
    assert found["units"] >= 4 * 16 * (12 + 16) and found["norm"] <= 12 * 4 * 4
    # BatchNormalization and ReLU are in the operator of the layer before them.
    assert found["hidden"] == 16 * 8 + 4 * 8 and "bn" not in found and "relu" not in found
    assert found["out"] == 8 * 3 + 4 * 3
