"""Depth and resolution: what is found in a network, and what is left of it without."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ConversionError
from edgecompress.core.keras_graph import named_layers
from edgecompress.searching.fitting import lower_dropout
from edgecompress.searching.knobs import Knob
from edgecompress.searching.layouts import FIRST, Layout, best, grid, largest
from edgecompress.searching.techniques.depth import find_blocks
from edgecompress.searching.techniques.resolution import EARLIER, HALVED, find_change
from edgecompress.surgery.bypass import bypass

from .conftest import make_model

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow


def _chain(flat: bool = False) -> Any:
    """A depthwise-separable chain over 16 steps in time, pooled once."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 1, 3), name="in")
    x = kl.ReLU(name="stem_relu")(kl.Conv2D(8, (4, 1), (2, 1), padding="same", name="stem")(inputs))
    x = kl.DepthwiseConv2D((3, 1), padding="same", name="dw")(x)
    x = kl.ReLU(name="dw_relu")(kl.BatchNormalization(name="dw_bn")(x))
    x = kl.ReLU(name="pw_relu")(kl.Conv2D(8, 1, name="pw")(x))
    x = kl.MaxPooling2D((2, 1), name="pool")(x)
    x = kl.Flatten()(x) if flat else kl.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, kl.Dense(4, name="head")(x))


def _values(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(3, *shape)).astype("float32")


def _layer(model: Any, name: str) -> Any:
    return dict(named_layers(model))[name]


# --- bypass -------------------------------------------------------------------------------------


def test_a_bypassed_branch_is_as_if_it_were_zero() -> None:
    model = make_model()
    blocks = find_blocks(model)
    assert len(blocks) == 2
    small = bypass(model, blocks[0].without)
    add = _layer(model, blocks[0].name)
    zeroed = keras.models.clone_model(model)
    zeroed.set_weights(model.get_weights())
    last = [layer for layer in zeroed.layers if type(layer).__name__ == "BatchNormalization"][2]
    last.gamma.assign(np.zeros(12))
    last.beta.assign(np.zeros(12))
    x = _values((8, 8, 1))
    np.testing.assert_allclose(small.predict(x, verbose=0), zeroed.predict(x, verbose=0), atol=1e-6)
    assert add.name not in {layer.name for layer in small.layers}


def test_without_its_shortcut_a_block_is_its_branch() -> None:
    model = make_model()
    block = find_blocks(model)[0]
    plain = bypass(model, block.alone)
    convolutions = [layer for layer in model.layers if type(layer).__name__ == "Conv2D"]
    assert {layer.name for layer in convolutions} <= {layer.name for layer in plain.layers}
    # By hand: the layers one after the other, up to the sum that is left out.
    x = _values((8, 8, 1))
    at: Any = x
    for layer in model.layers[1 : model.layers.index(_layer(model, block.name))]:
        at = layer(at)
    rest = keras.Model(_layer(model, block.name).output, model.output)
    np.testing.assert_allclose(plain.predict(x, verbose=0), np.asarray(rest(at)), atol=1e-6)


def test_an_output_keeps_its_name_and_the_model_its_weights() -> None:
    inputs = keras.Input((4,))
    outputs = kl.Dense(4, name="last")(kl.Dense(4, name="before")(inputs))
    model = keras.Model(inputs, outputs)
    before = model.get_weights()
    small = bypass(model, {"last": 0})
    assert small.output_names == ["last"]
    x = _values((4,))
    np.testing.assert_allclose(
        small.predict(x, verbose=0), x @ before[0] + before[1], rtol=1e-5, atol=1e-6
    )
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_does_not_fit_together_is_named() -> None:
    with pytest.raises(ConversionError, match="without stem"):
        bypass(_chain(), {"stem": 0})


# --- depth --------------------------------------------------------------------------------------


def test_layers_of_a_chain_go_with_what_follows_them() -> None:
    model = _chain()
    found = {block.name: tuple(block.without) for block in find_blocks(model)}
    assert found == {"dw": ("dw", "dw_bn", "dw_relu"), "pw": ("pw", "pw_relu")}
    small = bypass(model, {"dw": 0, "dw_bn": 0, "dw_relu": 0})
    assert _layer(small, "pw").input is _layer(small, "stem_relu").output
    assert small.output_shape == model.output_shape


def test_layers_that_others_read_stay() -> None:
    inputs = keras.Input((4,))
    x = kl.Dense(4, name="a")(inputs)
    x = kl.Concatenate()([x, kl.Dense(4, name="b")(x)])
    # `a` keeps the shape and has two readers: without it both read the input.
    model = keras.Model(inputs, kl.Dense(2)(x))
    assert [block.name for block in find_blocks(model)] == ["a", "b"]
    shared = kl.Dense(4, name="shared")
    twice = keras.Model(inputs, kl.Dense(2)(shared(shared(inputs))))
    assert find_blocks(twice) == []


# --- resolution ---------------------------------------------------------------------------------


def test_a_convolution_with_short_steps_takes_longer_ones() -> None:
    model = _chain()
    halved = find_change(model, HALVED)
    assert halved is not None
    assert halved.configs == {"dw": {"strides": (2, 1)}}
    assert halved.gone == ()
    # The pool halves what the convolution now halves before it.
    earlier = find_change(model, EARLIER)
    assert earlier is not None
    assert earlier.gone == ("pool",)


def test_a_kernel_grows_to_reach_every_position() -> None:
    model = make_model()  # Its stem has steps of 1, and is on every path.
    change = find_change(model, EARLIER)
    assert change is not None
    stem = model.layers[1].name
    assert change.configs[stem] == {"strides": (2, 2)}
    assert list(change.configs.values())[1] == {"strides": (1, 1)}
    strided = keras.Sequential([keras.Input((9, 9, 1)), kl.Conv2D(2, 3, strides=2, name="c")])
    grown = find_change(strided, HALVED)
    assert grown is not None
    assert grown.configs["c"] == {"strides": (4, 4), "kernel_size": (5, 5)}
    kernel = grown.weights["c"]["kernel"]
    np.testing.assert_array_equal(kernel[1:-1, 1:-1], np.asarray(strided.layers[0].kernel))
    assert not kernel[0].any()
    assert not kernel[:, -1].any()


@pytest.mark.parametrize("flat", [False, True])
def test_maps_are_offered_only_if_all_weights_fit(flat: bool) -> None:
    from edgecompress.searching.techniques.base import Subject
    from edgecompress.searching.techniques.resolution import Resolution

    model = _chain(flat)
    nothing: Any = None
    technique = Resolution(Subject(model, nothing, nothing, nothing, lambda candidate: 0.0))
    choices = [choice for knob in technique.knobs() for choice in knob.choices]
    # A Dense behind Flatten reads every position by its number.
    assert choices == (["whole", "earlier"] if flat else ["whole", "earlier", "halved"])
    for choice in choices[1:]:
        made = technique.reshape(model, {"maps": choice})
        assert made.count_params() == model.count_params()
        assert _layer(made, "dw").output.shape[1] == 4
        assert made.output_shape == model.output_shape


def test_networks_without_such_a_convolution_have_a_reason() -> None:
    from edgecompress.searching.techniques.base import Subject
    from edgecompress.searching.techniques.resolution import Resolution

    inputs = keras.Input((8, 8, 1))
    sides = [kl.Conv2D(2, 3, name=name)(inputs) for name in ("left", "right")]
    both = keras.Model(inputs, kl.GlobalAveragePooling2D()(kl.Concatenate()(sides)))
    dense = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    nothing: Any = None
    for model in (both, dense):
        found = Resolution(Subject(model, nothing, nothing, nothing, lambda candidate: 0.0))
        assert not found.knobs()
        assert "no convolution" in str(found.reason)


# --- layouts ------------------------------------------------------------------------------------


def test_a_grid_has_every_choice_and_both_ends() -> None:
    rows = grid([Knob("a", 0, low=1, high=9, whole=True), Knob("b", "x", ("x", "y"))])
    assert len(rows) == 10
    assert {row["a"] for row in rows} == {1, 3, 5, 7, 9}
    assert grid([]) == [{}]


def test_what_holds_most_is_trained_and_what_learns_fastest_begins() -> None:
    layouts = [Layout({"a": n}, size, 2 * size) for n, size in enumerate((5, 9, 1, 7, 3, 8))]
    assert [layout.values["a"] for layout in largest(layouts, 4)] == [1, 5, 3, 0]
    # Without losses, size decides; with them, loss.
    assert [layout.values["a"] for layout in best(layouts)] == [1, 5, 3, 0, 4]
    assert len(best(layouts)) == FIRST
    losses = (3, 2, 0, 2, 9, 1)
    learnt = [dataclasses.replace(x, loss=y) for x, y in zip(layouts, losses, strict=True)]
    assert [layout.values["a"] for layout in best(learnt)] == [2, 5, 1, 3, 0]


# --- dropout ------------------------------------------------------------------------------------


def test_dropout_falls_with_the_root_of_the_weights_that_are_left() -> None:
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4), kl.Dropout(0.5, name="inside")])
    model = keras.Sequential([keras.Input((4,)), inner, kl.GaussianDropout(0.2, name="noise")])
    lower_dropout(model, 0.25)
    assert inner.get_layer("inside").rate == pytest.approx(0.25)
    assert model.get_layer("noise").rate == pytest.approx(0.1)
    # It is in force: a quarter of the values are dropped, and it survives a file.
    ones = np.ones((4000, 4), np.float32)
    dropped = np.asarray(inner.get_layer("inside")(ones, training=True)) == 0
    assert dropped.mean() == pytest.approx(0.25, abs=0.02)
    assert keras.models.clone_model(inner).get_layer("inside").rate == pytest.approx(0.25)
