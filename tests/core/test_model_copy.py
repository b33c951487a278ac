"""Copies of models: the same outputs, other settings or weights where asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ConversionError
from edgecompress.core.keras_graph import named_layers, walk_layers
from edgecompress.core.model_copy import copy_model, in_float32

keras = pytest.importorskip("keras")
kl = keras.layers

X = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype("f4")


class Doubled(kl.Layer):
    """A layer that Keras cannot find by its name."""

    def call(self, x: Any) -> Any:
        return 2 * x


def _nested(policy: str = "float32") -> Any:
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            kl.Conv2D(3, 3, activation="relu", dtype=policy, name="conv"),
            kl.BatchNormalization(dtype=policy, name="norm"),
        ],
        name="block",
    )
    inputs = keras.Input((6, 6, 2), name="image")
    shared = kl.Conv2D(4, 1, dtype=policy, name="shared")
    x = kl.Add(dtype=policy)([shared(inputs), shared(2 * inputs)])
    x = kl.GlobalAveragePooling2D(dtype=policy)(Doubled(dtype=policy)(inner(x)))
    x = kl.Lambda(lambda v: v + 1, dtype=policy)(x)
    outputs = kl.Dense(2, dtype="float32", name="head")(x)
    return keras.Model(inputs, {"y": outputs}, name="net")


def test_a_copy_computes_the_same_and_has_weights_of_its_own() -> None:
    model = _nested()
    model.get_layer("head").trainable = False
    model.compile("adam", "mse")
    copied = copy_model(model)
    assert (type(copied), copied.name, copied.compiled) == (type(model), "net", False)
    assert [path for path, _ in named_layers(copied)] == [path for path, _ in named_layers(model)]
    assert not copied.get_layer("head").trainable and copied.get_layer("block").trainable
    np.testing.assert_array_equal(model(X)["y"], copied(X)["y"])
    before = np.array(model(X)["y"])
    copied.get_layer("shared").kernel.assign(np.zeros((1, 1, 2, 4)))
    np.testing.assert_array_equal(model(X)["y"], before)
    assert np.abs(np.array(copied(X)["y"]) - before).max() > 1e-3


def test_the_edit_sees_every_layer_by_path() -> None:
    model, seen = _nested(), []

    def edit(path: str, config: dict[str, Any]) -> dict[str, Any]:
        seen.append(path)
        return {**config, "activation": "tanh"} if path == "block/conv" else config

    copied = copy_model(model, edit)
    assert seen[0] == "" and "block" in seen and "layers" not in seen
    assert {path for path, _ in named_layers(model)} <= set(seen)
    assert copied.get_layer("block").get_layer("conv").activation is keras.activations.tanh
    assert np.abs(np.array(copied(X)["y"]) - np.array(model(X)["y"])).max() > 1e-4


def test_weights_of_other_shapes_are_taken() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="a"), kl.Dense(2, name="b")])
    kernel, bias = (np.array(value) for value in model.get_layer("a").get_weights())
    weights = {
        "a": {"kernel": kernel[:, :2], "bias": bias[:2]},
        "b": {"kernel": np.array(model.get_layer("b").kernel)[:2], "bias": np.zeros(2)},
    }
    copied = copy_model(
        model, lambda path, config: {**config, "units": 2} if path == "a" else config, weights
    )
    assert copied.count_params() == 4 * 2 + 2 + 2 * 2 + 2
    np.testing.assert_array_equal(copied.get_layer("a").kernel, kernel[:, :2])


def test_what_does_not_fit_is_refused() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="a")])
    with pytest.raises(ConversionError, match="'a' has 2 weights, not kernel"):
        copy_model(model, weights={"a": {"kernel": np.zeros((4, 3))}})
    with pytest.raises(ConversionError, match="cannot be rebuilt from its config"):
        copy_model(model, lambda path, config: {**config, "units": -1} if path else config)


def test_half_precision_becomes_float32_but_for_inputs() -> None:
    model = _nested("mixed_float16")
    copied = in_float32(model)
    assert any(layer.compute_dtype == "float16" for layer in walk_layers(model))
    assert {layer.compute_dtype for layer in walk_layers(copied)} == {"float32"}
    np.testing.assert_allclose(copied(X)["y"], model(X)["y"], atol=1e-2)
    assert in_float32(copied) is copied
    half = keras.Sequential([keras.Input((4,), dtype="float16"), kl.Dense(2, dtype="float16")])
    assert in_float32(half).inputs[0].dtype == "float16"
