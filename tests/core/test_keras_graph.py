"""Reading a model's graph: which layers lie next to inputs and outputs."""

from __future__ import annotations

from typing import Any

import pytest

from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.keras_graph import outer_layers, run_graph

keras = pytest.importorskip("keras")
kl = keras.layers


def names(model: Any) -> tuple[list[str], list[str]]:
    first, last = outer_layers(model, lambda layer: isinstance(layer, (kl.Dense, kl.Conv2D)))
    return [layer.name for layer in first], [layer.name for layer in last]


def test_a_chain_has_one_of_each() -> None:
    chain = [keras.Input((4,)), kl.Dense(3, name="a"), kl.ReLU(), kl.Dense(2, name="b"), kl.ReLU()]
    assert names(keras.Sequential(chain)) == (["a"], ["b"])
    assert names(keras.Sequential(chain[:3])) == (["a"], ["a"])
    assert names(keras.Sequential([keras.Input((4,)), kl.ReLU()])) == ([], [])


def test_branches_and_shortcuts() -> None:
    x = keras.Input((4, 4, 2))
    a, b = kl.Conv2D(2, 3, padding="same", name="a")(x), kl.Conv2D(2, 1, name="b")(x)
    # A shortcut past every layer with weights does not make what it reaches a first layer.
    y = kl.Add()([x, a, b])
    c = kl.Conv2D(2, 1, name="c")(y)
    heads = [kl.Dense(3, name="head")(kl.Flatten()(c)), kl.Conv2D(1, 1, name="mask")(c)]
    first, last = names(keras.Model(x, heads))
    assert (sorted(first), sorted(last)) == (["a", "b"], ["head", "mask"])


def test_nested_models_are_entered() -> None:
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="a"), kl.Dense(4, name="b")])
    outer = keras.Sequential([keras.Input((4,)), inner, kl.ReLU(), kl.Dense(2, name="c")])
    assert names(outer) == (["a"], ["c"])
    assert names(keras.Sequential([keras.Input((4,)), kl.ReLU(), inner])) == (["a"], ["b"])


def test_shared_layers_count_once() -> None:
    shared = kl.Dense(4, name="shared")
    x = keras.Input((4,))
    assert names(keras.Model(x, shared(shared(x)))) == (["shared"], [])
    pair = [keras.Input((4,)), keras.Input((4,))]
    assert names(keras.Model(pair, kl.Add()([shared(x) for x in pair]))) == (
        ["shared"],
        ["shared"],
    )


def test_hidden_graphs_are_refused() -> None:
    class Hidden(keras.Model):
        pass

    with pytest.raises(UnsupportedModelError, match="Hidden"):
        outer_layers(Hidden(), bool)


def test_a_graph_runs_in_keras_3_12_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, the method must also be told which operation to run in place of each."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    run = model._run_through_graph

    def of_3_12(inputs: Any, operation_fn: Any, call_fn: Any = None) -> Any:
        return run(inputs, call_fn=lambda op, *args: call_fn(operation_fn(op), *args))

    monkeypatch.setattr(model, "_run_through_graph", of_3_12)
    x = keras.ops.ones((4, 3))
    seen = []

    def call(operation: Any, *args: Any) -> Any:
        seen.append(operation)
        return operation(*args)

    outputs = run_graph(model, x, call)
    assert seen == [model.layers[-1]]
    assert (outputs.numpy() == model.layers[-1](x).numpy()).all()
