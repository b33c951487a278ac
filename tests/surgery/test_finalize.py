"""finalize against the masked model itself, on architectures with random statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.core.record import CompressionRecord, attach_record, read_record, record_of
from edgecompress.surgery import rebuild as module
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.rebuild import Plan, plan_removal

pytestmark = pytest.mark.slow


def randomize(model: keras.Model) -> keras.Model:
    """Gives biases and BatchNormalization values that hide nothing."""
    random = np.random.default_rng(3)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.BatchNormalization):
            for name, low, high in (
                ("gamma", 0.5, 1.5),
                ("beta", -1.0, 1.0),
                ("moving_mean", -1.0, 1.0),
                ("moving_variance", 0.5, 2.0),
            ):
                variable = getattr(layer, name)
                if variable is not None:
                    variable.assign(random.uniform(low, high, variable.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(size=layer.bias.shape))
    return model


def kill(model: keras.Model, filters: Mapping[str, list[int]]) -> keras.Model:
    """Sets filters to zero: the kernel only, as pruning does."""
    for name, which in filters.items():
        layer = model.get_layer(name)
        variable = getattr(layer, "pointwise_kernel", None)
        variable = layer.kernel if variable is None else variable
        value = variable.numpy()
        if isinstance(layer, (layers.DepthwiseConv2D, layers.Conv2DTranspose)):
            value[..., which, :] = 0
        else:
            value[..., which] = 0
        variable.assign(value)
    return model


def outputs(model: keras.Model, seed: int = 7) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    values = [
        random.normal(size=(3, *(9 if n is None else n for n in t.shape[1:]))).astype("float32")
        for t in model.inputs
    ]
    result = model(values if len(values) > 1 else values[0], training=False)
    return [np.asarray(y) for y in keras.tree.flatten(result)]


def assert_same(model: keras.Model, small: keras.Model) -> None:
    for a, b in zip(outputs(model), outputs(small), strict=True):
        assert a.shape == b.shape
        assert a.std() > 1e-3  # Equal constants would prove nothing.
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(a).max()), rtol=0)


def lenet(activation: str = "relu") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12, 12, 1), name="image"),
            layers.Conv2D(6, 3, activation=activation, name="c1"),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3, name="c2"),
            layers.Activation(activation),
            layers.Flatten(),
            layers.Dense(10, activation=activation, name="d1"),
            layers.Dropout(0.5),
            layers.Dense(4, activation="softmax", name="d2"),
        ]
    )


def mobile(padding: str = "valid") -> keras.Model:
    x = inputs = keras.Input((11, 11, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="c1")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="b1")(x))
    x = layers.DepthwiseConv2D(3, padding=padding, use_bias=False, name="dw")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(name="b2")(x))
    x = layers.Conv2D(12, 1, use_bias=False, name="pw")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="b3")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="out")(x))


def residual() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    x = a = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    x = layers.Conv2D(7, 1, activation="relu", name="inner")(x)
    x = layers.Conv2D(6, 1, name="outer")(x)
    x = layers.Add()([a, x])
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def squeeze_excite() -> keras.Model:
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", name="c1")(x)
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((1, 1, 8))(s)
    s = layers.Conv2D(4, 1, activation="relu", name="squeeze")(s)
    s = layers.Conv2D(8, 1, activation="hard_sigmoid", name="excite")(s)
    x = layers.Multiply()([x, s])
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def concat() -> keras.Model:
    x = inputs = keras.Input((6, 6, 2))
    a = layers.Conv2D(5, 3, name="a")(x)
    b = layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu", name="b")(x)
    x = layers.Concatenate()([a, b])
    x = layers.PReLU(alpha_initializer="random_uniform", shared_axes=[1, 2])(x)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="dw")(x)
    x = layers.Reshape((3 * 3 * 22,))(x)
    return keras.Model(inputs, [layers.Dense(3, name="one")(x), layers.Dense(2, name="two")(x)])


def upsampling() -> keras.Model:
    x = inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="down")(x)
    x = layers.UpSampling2D()(x)
    x = layers.Conv2DTranspose(6, 2, strides=2, activation="relu", name="up")(x)
    x = layers.Conv2D(7, 1, name="mix")(x)
    x = layers.AveragePooling2D(2, padding="same")(x)
    return keras.Model(inputs, layers.Conv2D(2, 3, name="out")(x))


def sequence() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((10, 3)),
            layers.Conv1D(6, 3, padding="causal", activation="relu", name="c1"),
            layers.ZeroPadding1D(1),
            layers.Conv1D(7, 2, use_bias=False, activation="tanh", name="c2"),
            layers.Dense(6, use_bias=False, name="dense"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, use_bias=False, name="out"),
        ]
    )


def shared() -> keras.Model:
    first, second = keras.Input((5,)), keras.Input((5,))
    hidden = layers.Dense(8, activation="relu", name="hidden")
    again = layers.Dense(6, activation="sigmoid", name="again")
    x = layers.Concatenate()([again(hidden(first)), again(hidden(second))])
    return keras.Model([first, second], layers.Dense(3, name="out")(x))


# (builder, killed filters, channels left)
CASES: dict[str, tuple[Callable[[], keras.Model], dict, dict]] = {
    "lenet": (
        lenet,
        {"c1": [0, 3], "c2": [1, 2], "d1": [0, 9]},
        {"c1": 4, "c2": 6, "d1": 8},
    ),
    "lenet_sigmoid": (lambda: lenet("sigmoid"), {"c1": [2], "c2": [0, 7]}, {"c1": 5, "c2": 6}),
    "mobile_valid": (
        lambda: mobile("valid"),
        {"c1": [1, 2], "dw": [5], "pw": [0, 11]},
        {"c1": 5, "dw": 5, "pw": 10},
    ),
    # A padded depthwise kernel turns c1's constants into a pattern; dw's own zero is one still.
    "mobile_same": (
        lambda: mobile("same"),
        {"dw": [5], "pw": [0, 11]},
        {"c1": 7, "dw": 7, "pw": 10},
    ),
    "residual_inner": (residual, {"inner": [0, 6], "stem": [1], "outer": [2]}, {"inner": 5}),
    "residual_both": (
        residual,
        {"stem": [1, 4], "outer": [1, 4, 5]},
        {"stem": 4, "outer": 4},
    ),
    "squeeze_excite": (
        squeeze_excite,
        {"c1": [0, 5], "squeeze": [1]},
        {"squeeze": 3},
    ),
    "squeeze_excite_both": (
        squeeze_excite,
        {"c1": [0, 5], "excite": [0, 5]},
        {"c1": 6, "excite": 6},
    ),
    "concat": (concat, {"a": [0, 4], "b": [1], "dw": [10]}, {"a": 3, "b": 4, "dw": 14}),
    "upsampling": (upsampling, {"down": [], "up": [0, 3], "mix": [2]}, {"up": 4, "mix": 6}),
    "sequence": (sequence, {"c2": [3], "dense": [0, 1]}, {"c2": 6, "dense": 4}),
    "shared": (shared, {"hidden": [2, 3], "again": [1]}, {"hidden": 6, "again": 5}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_outputs_with_fewer_channels(name: str) -> None:
    build, killed, left = CASES[name]
    model = kill(randomize(build()), killed)
    before = [w.copy() for w in model.get_weights()]
    small = finalize(model)

    removed = record_of(small).removed_channels
    assert {layer: after for layer, (_, after) in removed.items()} == left
    assert small.count_params() < model.count_params()
    assert_same(model, small)
    assert type(small) is type(model)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)  # The input model is not changed.


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_remove_is_a_plain_copy(name: str) -> None:
    model = randomize(CASES[name][0]())
    small = finalize(model)
    assert record_of(small).removed_channels == {}
    for a, b in zip(model.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_leaving_the_constant_out_would_show() -> None:
    """The comparison of these tests fails where the folded constants are dropped."""
    model = kill(randomize(lenet()), {"d1": [0, 9]})
    model.get_layer("d1").bias.assign(np.ones(10))
    small = finalize(model)
    assert_same(model, small)
    small.get_layer("d2").bias.assign(model.get_layer("d2").bias)
    with pytest.raises(AssertionError):
        assert_same(model, small)


def test_notes_name_what_stays_and_why() -> None:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="before_same", bias_initializer="ones")(x)
    x = layers.Conv2D(5, 3, padding="same", name="joined")(x)
    y = layers.Conv2D(5, 1, name="live")(x)
    x = layers.Add()([x, y])
    x = layers.Conv2D(4, 1, name="into_norm")(x)
    x = layers.LayerNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(layers.Flatten()(x)))
    kill(model, {"before_same": [0, 1], "joined": [2], "into_norm": [0], "out": [1]})
    small = finalize(model)
    notes = record_of(small).notes
    assert record_of(small).removed_channels == {}
    assert (
        "left masked: before_same: 2 zero filters stay because they hold a constant that 'joined' "
        "cannot take over exactly, as its border is padded with zeros." in notes
    )
    assert (
        "left masked: joined: 1 zero filter stays because 'into_norm' reads them joined with "
        "channels that are not zero." in notes
    )
    assert (
        "left masked: into_norm: 1 zero filter stays because 'out' reads them joined with channels "
        "that are not zero." in notes
    )
    assert "left masked: out: 1 zero filter stays because they are an output of the model." in notes
    assert_same(model, small)


def test_a_layer_keeps_one_channel() -> None:
    model = kill(randomize(lenet()), {"c1": [*range(6)], "d1": [*range(9)]})
    small = finalize(model)
    # Everything after c1 is constant, so its readers' filters are constants too.
    assert small.get_layer("c1").filters == 1
    np.testing.assert_allclose(outputs(model)[0], outputs(small)[0], atol=1e-5)


def test_unread_filters_go() -> None:
    model = randomize(lenet())
    kernel = model.get_layer("c2").kernel.numpy()
    kernel[:, :, 4, :] = 0
    model.get_layer("c2").kernel.assign(kernel)
    small = finalize(model)
    assert dict(record_of(small).removed_channels) == {"c1": (6, 5)}
    assert_same(model, small)


def test_constant_without_a_bias_turns_one_on() -> None:
    x = inputs = keras.Input((6,))
    x = layers.Dense(5, name="hidden", bias_initializer="ones")(x)
    model = keras.Model(inputs, layers.Dense(3, use_bias=False, name="out")(x))
    kill(model, {"hidden": [1, 2]})
    small = finalize(model)
    assert small.get_layer("out").use_bias
    assert_same(model, small)


def test_sequential_without_input_layer() -> None:
    model = keras.Sequential([layers.Dense(6, name="a"), layers.Dense(2, name="b")])
    with pytest.raises(UnsupportedModelError, match="no input shape"):
        finalize(model)
    model.build((None, 4))
    kill(randomize(model), {"a": [0]})
    small = finalize(model)
    assert small.get_layer("a").units == 5
    assert_same(model, small)


@pytest.mark.parametrize("calls", [1, 2])
def test_nested_models_are_entered_and_a_shared_one_keeps_its_boundary(calls: int) -> None:
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(5, 1, activation="relu", name="c1"),
            layers.Conv2D(6, 3, name="c2"),
        ],
        name="backbone",
    )
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(3, 1, name="first")(x)
    x = layers.Concatenate()([inner(x) for _ in range(calls)]) if calls > 1 else inner(x)
    x = layers.Dense(4, name="d")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2, name="o")(x))
    randomize(model)
    kill(inner, {"c1": [0], "c2": [1]})
    kill(model, {"first": [0], "d": [3]})
    small = finalize(model)
    removed = dict(record_of(small).removed_channels)
    if calls == 1:
        assert removed == {
            "first": (3, 2), "backbone/c1": (5, 4), "backbone/c2": (6, 5), "d": (4, 3)
        }  # fmt: skip
        assert small.get_layer("backbone").input_shape == (None, 4, 4, 2)
    else:
        assert removed == {"backbone/c1": (5, 4), "d": (4, 3)}
        assert any("backbone/c2: 1 zero filter stays" in note for note in record_of(small).notes)
    assert_same(model, small)


def test_flags_policies_and_names_stay() -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="in1")], name="inner")
    x = inputs = keras.Input((6,), name="signal")
    x = inner(x)
    x = layers.Dense(7, name="frozen", dtype="mixed_float16")(x)
    model = keras.Model(inputs, layers.Dense(2, name="free", dtype="float32")(x), name="net")
    model.get_layer("frozen").trainable = False
    inner.trainable = False
    kill(randomize(model), {"frozen": [0]})
    small = finalize(model)
    assert small.name == "net"
    assert [t.name for t in small.inputs] == ["signal"]
    assert small.get_layer("frozen").units == 6
    assert small.get_layer("frozen").dtype_policy.name == "mixed_float16"
    assert not small.get_layer("frozen").trainable
    assert not small.get_layer("inner").layers[0].trainable
    assert small.get_layer("free").trainable
    assert [v.path for v in small.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


def test_structured_inputs_and_outputs_stay() -> None:
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    x = layers.Dense(6, activation="relu", name="h")(x)
    model = keras.Model(inputs, {"y": layers.Dense(2, name="o")(x)})
    kill(randomize(model), {"h": [0]})
    small = finalize(model)
    data = {"a": np.ones((2, 4), "float32"), "b": np.zeros((2, 4), "float32")}
    np.testing.assert_allclose(small(data)["y"], model(data)["y"], atol=1e-5)
    assert small.get_layer("h").units == 5


def test_lambda_and_custom_layers_are_carried_along() -> None:
    class Twice(layers.Layer):
        def call(self, x: object) -> object:
            return x * 2

    x = inputs = keras.Input((4,))
    x = layers.Dense(6, name="a")(x)
    x = layers.Dense(5, name="b")(x)
    x = Twice(name="twice")(x)
    x = layers.Lambda(lambda v: v + 1, output_shape=(5,), name="plus")(x)
    model = keras.Model(inputs, layers.Dense(2, name="o")(x))
    kill(randomize(model), {"a": [0], "b": [0]})
    small = finalize(model)
    assert dict(record_of(small).removed_channels) == {"a": (6, 5)}
    assert any("'twice' (Twice) is not understood" in note for note in record_of(small).notes)
    assert_same(model, small)


def test_training_argument_and_channels_first_freeze() -> None:
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, name="a")(x)
    x = layers.Identity(name="same")(x, training=True)
    model = keras.Model(inputs, layers.Dense(2, name="o")(x))
    kill(randomize(model), {"a": [0]})
    assert record_of(finalize(model)).removed_channels == {}


def test_record_of_the_input_model_is_kept(tmp_path: Path) -> None:
    model = kill(randomize(lenet()), {"c1": [0]})
    attach_record(
        model,
        CompressionRecord(
            steps=({"technique": "group_lasso"},),
            ranges={"c1": (0.0, 1.0)},
            removed_channels={"c1": (9, 6)},
            notes=("first",),
        ),
    )
    small = finalize(model)
    small.save(tmp_path / "small.keras")
    record, reason = read_record(tmp_path / "small.keras")
    assert reason is None
    assert record == record_of(small)
    assert [step["technique"] for step in record.steps] == ["group_lasso", "finalize"]
    assert record.steps[1]["parameters_before"] == model.count_params()
    assert record.steps[1]["parameters_after"] == small.count_params()
    assert record.ranges == {"c1": (0.0, 1.0)}
    assert record.removed_channels == {"c1": (9, 5)}
    assert record.notes[0] == "first"


@pytest.mark.parametrize("name", ["lenet", "mobile_valid"])
def test_saved_file_loads_without_this_package(
    name: str, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    build, killed, _ = CASES[name]
    small = finalize(kill(randomize(build()), killed))
    small.save(tmp_path / "m.keras")
    x = np.random.default_rng(1).normal(size=(2, *small.input_shape[1:])).astype("float32")
    np.savez(tmp_path / "io.npz", x=x, y=np.asarray(small(x)))
    code = (
        "import sys; sys.modules['edgecompress'] = None\n"
        "import keras, numpy as np\n"
        "m = keras.saving.load_model('m.keras'); io = np.load('io.npz')\n"
        "np.testing.assert_allclose(m(io['x']), io['y'], atol=1e-6)\n"
        "print('loaded', type(m).__name__)\n"
    )
    run = run_python(["-c", code], cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert f"loaded {type(small).__name__}" in run.stdout


def test_falls_back_to_masked_when_outputs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: keras.Model) -> Plan:
        plan = plan_removal(model)
        plan.weights["d2"]["bias"] = plan.weights["d2"]["bias"] + np.arange(4, dtype="float32")
        return plan

    monkeypatch.setattr(module, "plan_removal", wrong)
    model = kill(randomize(lenet()), {"d1": [0]})
    small = finalize(model)
    assert small.get_layer("d1").units == 10
    assert record_of(small).removed_channels == {}
    assert "left masked: all layers" in record_of(small).notes[0]
    assert_same(model, small)


def test_refuses_a_model_whose_copy_differs() -> None:
    x = inputs = keras.Input((4,))
    x = layers.Lambda(lambda v: v + keras.random.normal((4,)), output_shape=(4,))(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ConversionError, match="plain copy"):
        finalize(model)


def test_refuses_subclassed_models_and_bad_tolerance() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="net")
            self.dense = layers.Dense(2)

        def call(self, x: object) -> object:
            return self.dense(x)

    model = Net()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(UnsupportedModelError, match="subclassed"):
        finalize(model)

    class Functional(keras.Model):
        def call(self, x: object, training: bool = False, mask: object = None) -> object:
            return 2 * super().call(x, training=training, mask=mask)

    inputs = keras.Input((3,))
    with pytest.raises(UnsupportedModelError, match=r"with its own call\(\)"):
        finalize(Functional(inputs, layers.Dense(2)(inputs)))
    with pytest.raises(ArgumentError, match="tolerance"):
        finalize(lenet(), tolerance=0)


@pytest.mark.parametrize("base", [keras.Model, keras.Sequential])
def test_a_class_that_only_trains_differently_becomes_plain(base: type) -> None:
    class Own(base):  # type: ignore[misc]
        def train_step(self, data: object) -> object:
            return {}

    keras.utils.set_random_seed(0)
    parts = [layers.Dense(6, "relu", name="h"), layers.Dense(2, name="out")]
    if base is keras.Sequential:
        model = Own([keras.Input((3,)), *parts])
    else:
        inputs = keras.Input((3,))
        model = Own(inputs, parts[1](parts[0](inputs)))
    attach_record(model, CompressionRecord(notes=("pruned",)))
    parts[0].kernel.assign(np.where(np.arange(6) < 2, 0, parts[0].kernel))
    small = finalize(model)
    assert type(small).__module__.startswith("keras.")
    assert small.get_layer("h").units == 4 and record_of(small).notes == ("pruned",)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)
    assert type(model) is Own and model.get_layer("h").units == 6


@keras.saving.register_keras_serializable("tests")
class _Residual(layers.Layer):
    """Has layers of its own and no `get_config`, so that Keras's configuration loses its name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = layers.Dense(4)

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return x + self.inner(x)


def test_own_layers_without_a_config_keep_their_names() -> None:
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(6, activation="relu", name="h")
    parts = [_Residual(name="first"), hidden, layers.Dense(4), _Residual(name="second")]
    model = keras.Sequential([keras.Input((4,)), *parts])
    assert "name" not in parts[0].get_config()
    hidden.kernel.assign(np.where(np.arange(6) < 2, 0, hidden.kernel))
    small = finalize(model)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert small.get_layer("h").units == 4
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)


def test_integer_inputs_are_checked() -> None:
    x = inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(10, 4)(x)
    x = layers.Dense(6, activation="relu", name="h")(x)
    model = keras.Model(inputs, layers.Dense(2, name="o")(layers.GlobalAveragePooling1D()(x)))
    kill(randomize(model), {"h": [1]})
    assert finalize(model).get_layer("h").units == 5


def test_mobilenet_v2_of_keras() -> None:
    model = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, classes=5)
    randomize(model)
    # A whole residual stage loses the same channels, an inner expansion one of its own.
    projections = [
        "block_1_project", "block_2_project", "expanded_conv_project", "block_3_expand",
    ]  # fmt: skip
    dead = dict.fromkeys(projections, [0, 3])
    kill(model, dead)
    for name in [*projections[:2], "block_3_expand"]:
        model.get_layer(f"{name}_BN").beta.assign(0 * model.get_layer(f"{name}_BN").beta)
        model.get_layer(f"{name}_BN").gamma.assign(0 * model.get_layer(f"{name}_BN").gamma)
    small = finalize(model)
    removed = record_of(small).removed_channels
    assert removed["block_1_project"][1] == removed["block_2_project"][1]
    assert removed["block_3_expand"][1] < removed["block_3_expand"][0]
    assert_same(model, small)


@pytest.mark.parametrize("name", CASES)
def test_random_zeros_in_every_weight(name: str) -> None:
    random = np.random.default_rng(len(name))
    model = randomize(CASES[name][0]())
    for layer in model.layers:
        for attribute in ("kernel", "pointwise_kernel", "depthwise_kernel", "gamma", "bias"):
            variable = getattr(layer, attribute, None)
            if variable is None:
                continue
            value = variable.numpy().copy()
            axis = int(random.integers(max(0, value.ndim - 2), value.ndim))
            np.moveaxis(value, axis, -1)[..., random.random(value.shape[axis]) < 0.4] = 0
            variable.assign(value)
    small = finalize(model)
    record = record_of(small)
    assert record.removed_channels
    assert not any("all layers" in note for note in record.notes)  # It was right at once.
    for a, b in zip(outputs(model), outputs(small), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(a).max()), rtol=0)
    again = record_of(finalize(small)).removed_channels
    assert again == record.removed_channels
