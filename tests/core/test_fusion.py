"""Tap points against the real converter and against what fused operators are."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.fusion import Tap, analyse, find_taps
from edgecompress.core.operator_copy import tap_model
from edgecompress.core.suppress_output import suppress_output
from edgecompress.flatbuffers.reading import read_tflite

pytestmark = pytest.mark.slow

UNIT = (0.0, 255 / 256)


def model_of(build, shape=(8, 8, 3)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def conv(x, name, **options):
    return layers.Conv2D(4, 3, name=name, **options)(x)


# Name -> (graph, taps after input:0, notes that must appear).
CASES = {
    "conv_bn_relu": (
        lambda x: layers.ReLU(name="r")(layers.BatchNormalization()(conv(x, "c"))),
        ["r"],
    ),
    "conv_bn_relu6_dropout": (
        lambda x: layers.Dropout(0.1)(
            layers.ReLU(6.0, name="r")(layers.BatchNormalization()(conv(x, "c")))
        ),
        ["r"],
    ),
    "conv_relu_built_in": (lambda x: conv(x, "c", activation="relu"), ["c"]),
    "bn_without_relu": (lambda x: layers.BatchNormalization(name="b")(conv(x, "c")), ["b"]),
    "softmax": (
        lambda x: layers.Dense(3, activation="softmax", name="d")(layers.Flatten()(x)),
        ["d/pre_activation", "d"],
    ),
    "silu": (
        lambda x: conv(x, "c", activation="silu"),
        ["c/pre_activation", "c/sigmoid", "c"],
    ),
    "separable": (
        lambda x: layers.ReLU(name="r")(
            layers.BatchNormalization()(layers.SeparableConv2D(4, 3, name="s")(x))
        ),
        ["s/depthwise", "r"],
    ),
    "residual": (
        lambda x: layers.ReLU(name="r")(layers.Add()([conv(x, "a"), conv(x, "b")])),
        ["a", "b", "r"],
    ),
    "pooled": (
        lambda x: layers.ReLU(name="r")(layers.MaxPool2D()(conv(x, "c"))),
        ["c"],
    ),
    "average": (
        lambda x: layers.AveragePooling2D(2, name="p")(conv(x, "c")),
        ["c", "p"],
    ),
    "gap_dense": (
        lambda x: layers.Dense(2, name="d")(layers.GlobalAveragePooling2D(name="g")(conv(x, "c"))),
        ["c", "g", "d"],
    ),
    "gap_around_zero": (
        lambda x: layers.GlobalAveragePooling2D(name="g")(layers.Subtract(name="s")([x, x])),
        ["s", "g"],
    ),
    "padded": (
        lambda x: conv(layers.ZeroPadding2D()(conv(x, "a", activation="relu")), "b"),
        ["a", "b"],
    ),
    "flatten_relu": (
        lambda x: layers.ReLU(name="r")(layers.Flatten()(conv(x, "c"))),
        ["r"],
    ),
    "relu_after_concat": (
        lambda x: layers.ReLU(name="r")(layers.Concatenate(name="j")([conv(x, "a"), conv(x, "b")])),
        ["a", "b", "j", "r"],
    ),
    "rescaling": (lambda x: conv(layers.Rescaling(1 / 255)(x), "c"), ["c"]),
    "read_twice": (
        lambda x: (lambda c: layers.Add(name="s")([c, layers.ReLU(name="r")(c)]))(conv(x, "c")),
        ["c", "r", "s"],
    ),
    "merged_relus": (
        lambda x: (
            lambda c: layers.Add(name="s")([layers.ReLU(name="a")(c), layers.ReLU(name="b")(c)])
        )(conv(x, "c")),
        ["a", "b", "s"],
    ),
    "operations": (
        lambda x: keras.ops.relu(conv(x, "a") + conv(x, "b")),
        ["a", "b", "relu"],
    ),
    "conv1d": (
        lambda x: layers.ReLU(name="r")(
            layers.BatchNormalization()(layers.Conv1D(4, 3)(layers.Reshape((64, 3))(x)))
        ),
        ["r"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_taps_are_the_outputs_of_fused_operators(case):
    keras.backend.clear_session(free_memory=False)
    build, want = CASES[case]
    graph = analyse(model_of(build))
    assert [tap.name for tap in graph.taps] == ["input:0", *want]
    assert graph.notes == ()


@pytest.mark.parametrize(
    "case", ["silu", "separable", "residual", "average", "gap_dense", "relu_after_concat"]
)
def test_taps_are_tensors_of_the_converted_model(case):
    """Asking for the taps breaks no fusion: the operators stay the same."""
    keras.backend.clear_session(free_memory=False)
    model = model_of(CASES[case][0])

    def histogram(converted):
        inputs = keras.Input(batch_shape=(1, 8, 8, 3))
        fixed = keras.Model(inputs, converted(inputs))
        with suppress_output(False):
            return read_tflite(
                tf.lite.TFLiteConverter.from_keras_model(fixed).convert()
            ).histogram()

    assert histogram(tap_model(model)) == histogram(model)


def test_prescribed_and_shared_ranges():
    taps = {t.name: t for t in find_taps(model_of(CASES["silu"][0]))}
    assert taps["c/sigmoid"].fixed == UNIT
    taps = {t.name: t for t in find_taps(model_of(CASES["softmax"][0]))}
    assert taps["d"] == Tap("d", "d", fixed=UNIT, is_output=True)
    taps = {t.name: t for t in find_taps(model_of(CASES["average"][0]))}
    assert taps["p"].same_as == "c"
    taps = {t.name: t for t in find_taps(model_of(CASES["relu_after_concat"][0]))}
    assert taps["a"].same_as == taps["b"].same_as == "j"
    tanh = model_of(lambda x: conv(x, "c", activation="tanh"))
    assert find_taps(tanh)[-1].fixed == (-1.0, 127 / 128)


def mixed_model():
    """Two inputs, a nested model, every kind of splitting."""
    image, extra = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="extra")
    x = layers.BatchNormalization(name="bn")(conv(image, "c1", use_bias=False))
    x = layers.SeparableConv2D(4, 3, padding="same", name="sep", activation="silu")(x)
    x = layers.Activation("silu", name="act")(layers.Add(name="add")([x, x * 1]))
    nested = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(3, 3, activation="sigmoid", name="inner")],
        name="nested",
    )
    x = layers.Flatten()(nested(x))
    x = layers.Concatenate(name="join")([x, layers.Dense(4, activation="relu", name="d1")(extra)])
    return keras.Model([image, extra], layers.Dense(3, activation="softmax", name="d2")(x))


def test_tap_model_computes_the_same_and_leaves_the_model_alone():
    model = mixed_model()
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(np.random.uniform(0.1, 1, weight.shape))
    data = [np.random.normal(size=(4, 8, 8, 3)), np.random.normal(size=(4, 5))]
    before, config = [w.numpy() for w in model.weights], model.get_config()
    outputs = tap_model(model).predict(data, verbose=0)
    np.testing.assert_allclose(outputs["output:0"], model.predict(data, verbose=0), atol=1e-6)
    names = {tap.name for tap in find_taps(model) if tap.layer}
    assert set(outputs) == names | {"output:0"}
    assert {"inner/pre_activation", "inner", "sep/depthwise", "act/sigmoid"} <= names
    bn = keras.Model(model.inputs, model.get_layer("bn").output).predict(data, verbose=0)
    np.testing.assert_allclose(outputs["bn"], bn, atol=1e-6)
    assert model.get_config() == config
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


def test_weights_and_folded_layers_are_named():
    graph = analyse(mixed_model())
    assert [(k.attribute, k.outputs) for k in graph.weights["c1"]] == [("kernel", (-1,))]
    assert [k.attribute for k in graph.weights["sep"]] == ["depthwise_kernel", "pointwise_kernel"]
    assert set(graph.weights) == {"c1", "sep", "inner", "d1", "d2"}
    assert graph.batch_norms == ("bn",)


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda x: conv(layers.Rescaling(1 / 127, offset=-1, name="r")(x), "c"), "r"),
        (lambda x: layers.Lambda(lambda v: v * 2, name="twice")(conv(x, "c")), "twice"),
        (lambda x: layers.GRU(3, name="gru")(layers.Reshape((64, 3))(x)), "gru"),
        (lambda x: conv(x, "c", activation="softsign"), "c"),
        (
            lambda x: layers.UpSampling2D(interpolation="bicubic", name="up")(conv(x, "c")),
            "up",
        ),
        (lambda x: layers.ReLU(threshold=1.0, name="r1")(conv(x, "c")), "r1"),
        (
            lambda x: layers.GlobalAveragePooling1D(name="mean")(
                layers.Masking(name="masked")(layers.Reshape((64, 3))(x))
            ),
            ("not_equal", "masked", "any", "mean"),
        ),
        (
            lambda x: layers.Attention(name="a")(
                [layers.Reshape((64, 3))(x)] * 2, use_causal_mask=True
            ),
            "a",
        ),
    ],
)
def test_what_training_cannot_simulate_is_named(build, layer):
    notes = analyse(model_of(build)).notes
    named = (layer,) if isinstance(layer, str) else layer
    assert len(notes) == len(named)
    for note, name in zip(notes, named, strict=True):
        assert note.startswith(f"not simulated: {name}")


def test_integer_inputs_have_no_tap():
    tokens = keras.Input((4,), dtype="int32")
    model = keras.Model(tokens, layers.Dense(2)(layers.Embedding(5, 3)(tokens)))
    graph = analyse(model)
    assert "input:0" not in [tap.name for tap in graph.taps]
    assert graph.notes == ()
    spread = layers.CategoryEncoding(5, output_mode="one_hot")
    graph = analyse(keras.Model(tokens, layers.Dense(2)(spread(tokens))))
    assert any("input:0: it holds int32" in note for note in graph.notes)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_models_without_a_readable_graph_are_refused():
    with pytest.raises(UnsupportedModelError, match="'hidden' is subclassed"):
        find_taps(Subclassed(name="hidden"))
    with pytest.raises(UnsupportedModelError, match="no input shape yet"):
        find_taps(keras.Sequential([layers.Dense(2)]))


def test_each_use_of_a_shared_layer_has_taps_of_its_own():
    shared = layers.Dense(3, activation="tanh", name="twin")
    a, b = keras.Input((3,)), keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="in")])
    added = layers.Add(name="sum")([shared(a), shared(b)])
    graph = analyse(keras.Model([a, b], inner(inner(added))))
    assert [tap.name for tap in graph.taps[2:]] == [
        "twin/pre_activation", "twin", "twin/use_2/pre_activation", "twin/use_2", "sum", "in",
        "in/use_2",
    ]  # fmt: skip
    assert {tap.layer for tap in graph.taps[2:]} == {"twin", "sum", "in"}
    assert graph.notes == ()


def test_a_shared_dropout_is_no_obstacle():
    drop, inputs = layers.Dropout(0.1), keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(drop(layers.Dense(3)(drop(inputs)))))
    assert len(find_taps(model)) == 3


def test_nested_models_with_one_layer_name_are_refused():
    def block(name):
        return keras.Sequential([keras.Input((3,)), layers.Dense(3, name="fc")], name=name)

    inputs = keras.Input((3,))
    with pytest.raises(UnsupportedModelError, match="share the name 'fc'"):
        find_taps(keras.Model(inputs, block("two")(block("one")(inputs))))


def test_operators_of_a_layer_never_take_the_name_of_a_layer():
    """A file brings names that Keras has not given in this process."""
    inputs = keras.Input((4, 6))
    x = layers.LayerNormalization(name="norm")(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    for name in ("add", "add_1", "multiply", "subtract", "matmul", "softmax", "softmax_1"):
        x = layers.Identity(name=name)(x)
    model = keras.Model(inputs, layers.Add(name="add_2")([inputs, x]))
    keras.backend.clear_session(free_memory=False)
    assert len({layer.name for layer in tap_model(model).layers}) == len(tap_model(model).layers)


@pytest.mark.parametrize(
    ("before", "source"),
    [
        (lambda x: conv(x, "c", activation="relu"), "c"),
        (lambda x: layers.MaxPool2D()(layers.ReLU(6.0, name="r")(conv(x, "c"))), "r"),
        (lambda x: layers.Multiply(name="m")([conv(x, "a", activation="relu"),
                                              conv(x, "b", activation="sigmoid")]), "m"),
        (lambda x: conv(x, "c", activation="silu"), "c"),
        (lambda x: conv(x, "c"), None),
        (lambda x: layers.Subtract(name="s")([conv(x, "a", activation="relu"),
                                              conv(x, "b", activation="relu")]), None),
    ],
)  # fmt: skip
def test_a_mean_has_the_scale_of_a_map_that_is_hardly_below_zero(before, source) -> None:
    model = model_of(lambda x: layers.GlobalAveragePooling2D(name="g")(before(x)))
    taps = {tap.name: tap for tap in find_taps(model)}
    assert taps["g"].same_as == source


def test_a_value_that_is_read_again_and_again_is_looked_at_once() -> None:
    """Ways through this graph: 2 ** 60."""
    x = image = keras.Input((4, 4, 2))
    x = layers.Conv2D(2, 1, activation="relu")(x)
    for _ in range(60):
        x = layers.Add()([layers.MaxPooling2D(1)(x), x])
    model = keras.Model(image, layers.GlobalAveragePooling2D(name="mean")(x))
    assert next(t for t in find_taps(model) if t.name == "mean").same_as is not None
