"""What the table of layer kinds says of a class holds for a layer of that class."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core import fusion_rules
from edgecompress.core.composites import COMPOSITES
from edgecompress.core.fusion import analyse
from edgecompress.core.fusion_rules import LOWERINGS, lower
from edgecompress.core.layer_kinds import (
    LAYER_KINDS,
    Channels,
    KernelAxes,
    LayerKind,
    Use,
    exact_kind_of,
    kind_of,
    layer_classes,
)
from edgecompress.core.operator_copy import rebuild
from edgecompress.inspection.keras_models import MACS, inspect_keras
from edgecompress.surgery.rules import RULES

keras = pytest.importorskip("keras")

# Arguments that a class cannot be built without, and the shape of one sample.
_UNITS = {"units": 5}
_SETTINGS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "Dense": (_UNITS, (4,)),
    "EinsumDense": ({"equation": "ab,bc->ac", "output_shape": 5, "bias_axes": "c"}, (4,)),
    "Embedding": ({"input_dim": 7, "output_dim": 5}, (3,)),
    "BinaryDense": (_UNITS, (4,)),
    "BinaryConv2D": ({"filters": 5, "kernel_size": 3}, (7, 7, 4)),
    "Activation": ({"activation": "tanh"}, (6, 4)),
    "Rescaling": ({"scale": 0.5, "offset": 1.0}, (6, 4)),
    "Reshape": ({"target_shape": (-1, 4)}, (6, 4)),
    "Permute": ({"dims": (2, 1)}, (6, 4)),
    "ActivityRegularization": ({"l2": 0.1}, (6, 4)),
    **{n: ({"rate": 0.5}, (6, 4)) for n in ("Dropout", "GaussianDropout", "AlphaDropout")},
    "GaussianNoise": ({"stddev": 0.5}, (6, 4)),
    **{f"SpatialDropout{n}D": ({"rate": 0.5}, (6,) * n + (4,)) for n in (1, 2, 3)},
    "Dot": ({"axes": -1}, (6, 4)),
    "GroupNormalization": ({"groups": 1}, (6, 4)),
    **{f"AveragePooling{n}D": ({"pool_size": 2}, (6,) * n + (4,)) for n in (1, 2, 3)},
    "RepeatVector": ({"n": 3}, (4,)),
    "Resizing": ({"height": 4, "width": 8}, (6, 6, 4)),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), (_UNITS, (6, 4))),
    "LayerScale": ({"init_values": 0.5, "projection_dim": 4}, (6, 4)),
    "CustomScaleLayer": ({"scale": 0.5}, (6, 4)),
}
_OPERATIONS = [name for name, kind in LAYER_KINDS.items() if kind.module == "keras.ops"]
_LAYERS = [name for name in LAYER_KINDS if name not in (*_OPERATIONS, "Bidirectional")]
_TWO_INPUTS = ("merge", "concatenate", "product", "scaled sum")


def _built(name: str) -> tuple[Any, tuple[int, ...]]:
    """Returns a small layer with random weights, and the shape of one sample."""
    kind = LAYER_KINDS[name]
    settings, shape = _SETTINGS.get(name, ({}, (6, 4)))
    if name not in _SETTINGS and name[-2:] in ("1D", "2D", "3D") or name.endswith("Transpose"):
        rank = next(int(c) for c in reversed(name) if c.isdigit())
        shape = (6,) * rank + (4,)
        if kind.family in ("convolution", "transposed", "separable"):
            settings = {"filters": 5, "kernel_size": 3}
        elif kind.family == "depthwise":
            settings = {"kernel_size": 3, "depth_multiplier": 2}
    layer = getattr(importlib.import_module(kind.module), name)(**settings)
    if kind.family not in _TWO_INPUTS:
        layer.build((2, *shape))
        random = np.random.default_rng(0)
        for weight in layer.weights:
            if "float" in str(weight.dtype):
                # Small enough not to saturate what is fed back.
                scale = 0.1 if kind.family == "recurrent" else 1.0
                weight.assign(scale * random.uniform(0.5, 1.5, weight.shape))
    return layer, shape


def _run(layer: Any, *inputs: Any) -> np.ndarray:
    given = list(inputs) if len(inputs) > 1 else inputs[0]
    return np.asarray(keras.ops.convert_to_numpy(layer(given)))


def _kinds(*channels: Channels, family: bool = True) -> list[str]:
    return [
        name
        for name in _LAYERS
        if LAYER_KINDS[name].channels in channels
        and (LAYER_KINDS[name].family != "product") is family
    ]


@pytest.mark.parametrize("name", _LAYERS)
def test_the_class_exists_and_is_found_by_its_layers(name: str) -> None:
    kind = LAYER_KINDS[name]
    if name == "GroupedQueryAttention":
        # Keras exports it under another name than the class has.
        layer: Any = keras.layers.GroupQueryAttention(2, 1, 1)
    elif name == "MultiHeadAttention":
        layer = keras.layers.MultiHeadAttention(1, 2)
    else:
        layer, _ = _built(name)
    owner = type(layer)
    assert kind_of(layer) is exact_kind_of(layer) is kind
    derived = type("Mine", (owner,), {})
    assert kind_of(derived.__new__(derived)) is kind
    assert exact_kind_of(derived.__new__(derived)) is None


def test_a_class_of_the_same_name_from_elsewhere_is_another() -> None:
    stranger = type("Dense", (), {"__module__": "mine.layers"})
    assert kind_of(stranger()) is exact_kind_of(stranger()) is None


@pytest.mark.parametrize("name", _LAYERS)
def test_every_weight_of_the_layer_is_in_the_table(name: str) -> None:
    kind = LAYER_KINDS[name]
    if kind.family in ("product", "recurrent", "statistics"):
        pytest.skip("only their multiply-accumulates are known")
    layer, _ = _built(name)
    found = {id(getattr(layer, attribute, None)) for attribute in kind.weights}
    assert {id(weight) for weight in layer.weights if "seed" not in weight.path} <= found


@pytest.mark.parametrize("name", [n for n in _LAYERS if LAYER_KINDS[n].operator])
def test_every_operator_has_a_rule(name: str) -> None:
    assert LAYER_KINDS[name].operator in {**LOWERINGS, **COMPOSITES}


# Functions with other names or with arguments that they need.
_FUNCTIONS: dict[str, Any] = {
    "HardSilu": lambda x: keras.ops.hard_silu(x),
    "Squeeze": lambda x: keras.ops.squeeze(x[..., :1], -1),
    "ExpandDims": lambda x: keras.ops.expand_dims(x, 1),
    "Stack": lambda x: keras.ops.stack([x, x]),
    "Repeat": lambda x: keras.ops.repeat(x, 2, axis=1),
    "Split": lambda x: keras.ops.split(x, 2, axis=1),
    "Roll": lambda x: keras.ops.roll(x, 1, axis=1),
    "Tile": lambda x: keras.ops.tile(x, (1, 2, 1)),
}


def _operation(name: str) -> Any:
    """Returns an operation of keras.ops on one tensor, as a graph holds it."""
    x = keras.Input((6, 4))
    function = _FUNCTIONS.get(name) or getattr(keras.ops, name.lower())
    return keras.Model(x, function(x)).operations[-1]


def _composites() -> dict[str, Any]:
    """Operator -> a model of one layer that is computed part by part."""
    row, other, tall = keras.Input((6, 4)), keras.Input((5, 4)), keras.Input((4, 4, 6))
    ops, kl = keras.ops, keras.layers
    uniform = keras.initializers.RandomUniform(0.5, 1.5, seed=1)
    both = {"beta_initializer": uniform, "gamma_initializer": uniform}
    normalized = kl.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 1.0, 2.0])
    return {
        "layer_normalization": (tall, kl.LayerNormalization(axis=(1, 3), **both)(tall)),
        "group_normalization": (tall, kl.GroupNormalization(3, **both)(tall)),
        "rms_normalization": (row, kl.RMSNormalization()(row)),
        "unit_normalization": (row, kl.UnitNormalization(axis=1)(row)),
        "einsum": (row, kl.EinsumDense("abc,cde->abde", (6, 2, 3), "tanh", "de")(row)),
        "heads": ([row, other], kl.MultiHeadAttention(2, 3)(row, other, use_causal_mask=True)),
        "attention": ([row, other], kl.Attention(use_scale=True)([row, other])),
        "dot": ([row, other], kl.Dot(axes=(2, 2))([row, other])),
        "matmul": ([row, other], ops.matmul(row, ops.transpose(other, (0, 2, 1)))),
        "einsum of tensors": ([row, other], ops.einsum("bij,bkj->bik", row, other)),
        "add": (row, row + np.arange(4, dtype="f4")),
        "subtract": (row, 2.0 - row),
        "multiply": (row, row * 3),
        "divide": (row, row / 8**0.5),
        "curve": (row, ops.log(1.0 + ops.exp(row))),
        "inside a curve": (row, ops.exp(-row)),
        "power": (row, ops.power(ops.abs(row), 1.5)),
        "square": (row, ops.square(row)),
        "reciprocal": (row, ops.reciprocal(2.0 + ops.square(row))),
        "limit": (row, ops.maximum(row, 0.3)),
        "clip": (row, ops.clip(row, -0.3, 0.4)),
        "grouped heads": ([row, other], kl.GroupQueryAttention(3, 4, 2)(row, other)),
        "resizing": (tall, kl.Resizing(7, 9, "nearest")(kl.Resizing(5, 3)(tall))),
        "sum of all": (row, kl.Average()([row, row * 2.0, kl.Add()([row, row, row])])),
        "sum over axes": (row, ops.sum(row, axis=(0 - 1), keepdims=True)),
        "slice": (row, row[:, 1:4]),
        "silu": (row, ops.silu(row)),
        "hard_sigmoid": (row, ops.hard_sigmoid(row)),
        "rectifier with maximum": (row, kl.ReLU(1.0)(row)),
        "leaky_relu": (row, kl.ReLU(negative_slope=0.3)(row)),
        "prelu": (tall, kl.PReLU(uniform, shared_axes=(1, 2))(tall)),
        "normalization": (row, normalized(row)),
        "affine": (
            tall,
            kl.BatchNormalization(moving_mean_initializer=uniform, **both)(
                kl.Rescaling(0.5, 0.1)(tall)
            ),
        ),
    }


def test_every_layer_of_several_operators_computes_the_same_part_by_part() -> None:
    made = _composites()
    random = np.random.default_rng(0)
    for operator in sorted(COMPOSITES):
        inputs, outputs = made[operator]
        model = keras.Model(inputs, outputs)
        graph = analyse(model)
        assert graph.notes == (), operator
        assert graph.composites, operator
        given = [random.normal(size=(3, *x.shape[1:])).astype("f4") for x in model.inputs]
        seen = []
        copy = rebuild(model, lambda name, tensor, seen=seen: seen.append(name) or tensor)
        given = given if isinstance(inputs, list) else given[0]
        np.testing.assert_allclose(copy(given), model(given), atol=2e-6, err_msg=operator)
        assert {tap.name for tap in graph.taps} <= set(seen), operator


_STEPS = {
    getattr(fusion_rules, name)
    for name in (
        "WEIGHTED", "AFFINE", "RELU", "RELU6", "BINARY", "FREE", "FIXED", "JOIN", "AVERAGE",
        "MAXPOOL", "MEAN", "VIEW", "MOVE", "IDENTITY",
    )
}  # fmt: skip


@pytest.mark.parametrize("operator", sorted(LOWERINGS))
def test_every_rule_of_an_operator_lowers_a_layer(operator: str) -> None:
    """To steps that are simulated, but for what the rule refuses with a reason."""
    names = [name for name, kind in LAYER_KINDS.items() if kind.operator == operator]
    assert names, "no class of layers names it"
    lowered = 0
    for name in names:
        layer = _built(name)[0] if name in _LAYERS else _operation(name)
        inputs = 2 if LAYER_KINDS[name].family in _TWO_INPUTS else 1
        steps = lower(layer, inputs, plain=True)
        assert steps
        refused = [step for step in steps if step.kind == fusion_rules.UNSUPPORTED]
        assert all(step.reason for step in refused)
        assert refused or {step.kind for step in steps} <= _STEPS
        lowered += not refused
    assert lowered


# --- families -------------------------------------------------------------------------------------


def _of(family: str) -> list[str]:
    names = [n for n, kind in LAYER_KINDS.items() if kind.family == family]
    assert names, "no class of layers is of this family"
    return [name for name in names if name in _LAYERS]


@pytest.mark.parametrize("family", sorted(MACS))
def test_multiply_accumulates_are_what_ones_sum_to(family: str) -> None:
    """Of weights and inputs that are all 1, every multiply-accumulate adds 1 to the outputs."""
    if family == "bidirectional":
        one, both = (
            inspect_keras(keras.Sequential([keras.Input((6, 4)), layer])).macs
            for layer in (keras.layers.LSTM(5), keras.layers.Bidirectional(keras.layers.LSTM(5)))
        )
        assert 0 < both == 2 * one  # type: ignore[operator]
        return
    if family == "heads":
        # Its softmax divides the ones: four matrices and two products of 3 x 3 positions, by hand.
        x = keras.Input((3, 4))
        model = keras.Model(x, keras.layers.MultiHeadAttention(2, 5)(x, x))
        assert inspect_keras(model).macs == 4 * (3 * 4 * 2 * 5) + 2 * (2 * 3 * 3 * 5)
        return
    for name in _of(family):
        layer, shape = _built(name)
        found = inspect_keras(keras.Sequential([keras.Input(shape), layer]))
        if family == "recurrent":
            assert found.macs == shape[0] * sum(w.numpy().size for w in layer.weights[:2])
            continue
        for weight in layer.weights:
            weight.assign(
                np.zeros(weight.shape) if weight.name == "bias" else np.ones(weight.shape)
            )
        outputs = _run(layer, np.ones((1, *shape), "float32"))
        macs = float(outputs.sum())
        if family == "separable":
            # The 1x1 convolution sums what the other one has summed: each of its own is that often.
            taps = int(np.prod(layer.kernel_size))
            macs = macs / taps + macs / outputs.shape[-1]
        assert found.macs + found.binary_macs == macs


# Classes that are called, or built, in another way than on one or two tensors of their own shape.
_CALLS: dict[str, Any] = {
    "MultiHeadAttention": lambda x: keras.layers.MultiHeadAttention(2, 3)(x, x),
    # Of one group, all channels leave together.
    "GroupNormalization": keras.layers.GroupNormalization(groups=-1),
    "TrueDivide": lambda x: x / 2.0,
    "GetItem": lambda x: x[:, 1:3],
    "Transpose": lambda x: keras.ops.transpose(x, (0, 1, 2)),
    "ExpandDims": lambda x: keras.ops.expand_dims(x, 1),
    "Mean": lambda x: keras.ops.mean(x, axis=1),
    "Sum": lambda x: keras.ops.sum(x, axis=1),
    "Max": lambda x: keras.ops.max(x, axis=1),
    "Permute": keras.layers.Permute((1, 2)),
    "Bidirectional": keras.layers.Bidirectional(keras.layers.LSTM(3)),
}


def _calls(family: str) -> list[tuple[Any, tuple[int, ...]]]:
    """Returns what calls each class of a family, and the shape of one sample."""
    names = [n for n, kind in LAYER_KINDS.items() if kind.family == family]
    found = [(_CALLS[name], (6, 4)) for name in names if name in _CALLS]
    if family in ("product", "permute", "quotient"):
        return found
    return found + [_built(name) for name in names if name in _LAYERS and name not in _CALLS]


def _a_zero_column_leaves_a_table() -> None:
    table = keras.layers.Embedding(7, 4)
    tokens = keras.Input((3,), dtype="int32")
    model = keras.Model(tokens, keras.layers.Dense(3)(keras.layers.Flatten()(table(tokens))))
    table.embeddings.assign(np.where(np.arange(4) == 1, 0.0, table.embeddings))
    samples = np.random.default_rng(2).integers(0, 7, (5, 3))
    small = ec.finalize(model)
    np.testing.assert_allclose(small(samples), model(samples), atol=1e-6)
    assert small.layers[1].output_dim == 3


@pytest.mark.parametrize("family", sorted(RULES))
def test_a_zero_channel_leaves_with_the_layers_that_pass_it_on(family: str) -> None:
    """A channel that is always 0 goes in front of every class; the outputs stay what they were."""
    if family == "lookup":
        _a_zero_column_leaves_a_table()  # It reads no channels.
        return
    removed = 0
    for layer, shape in _calls(family):
        two = family in _TWO_INPUTS and family != "product"
        if family == "rescaling":
            layer = type(layer)(scale=0.5)
        inputs = keras.Input(shape)
        before = [keras.layers.Dense(4, name=f"before_{n}") for n in range(2 if two else 1)]
        made = [dense(inputs) for dense in before]
        x = layer(made if two else made[0])
        x = keras.layers.Flatten()(x) if len(x.shape) > 2 else x
        model = keras.Model(inputs, keras.layers.Dense(3, name="after")(x))
        for dense in before:
            kernel = dense.kernel.numpy()
            kernel[:, 1] = 0
            dense.kernel.assign(kernel)
        if family == "layer_normalization":  # Its statistics make something of a zero.
            for weight in layer.weights:
                weight.assign(np.where(np.arange(4) == 1, 0.0, weight))
        samples = np.random.default_rng(2).normal(size=(3, *shape)).astype("float32")
        wanted = np.asarray(model(samples))
        small = ec.finalize(model)
        np.testing.assert_allclose(small(samples), wanted, atol=1e-4 * np.abs(wanted).max())
        removed += small.count_params() < model.count_params()
    assert removed, f"nothing was removed through any layer of {family}"


def _with_axes() -> list[tuple[str, KernelAxes]]:
    return [(name, axes) for name in _LAYERS for axes in LAYER_KINDS[name].kernels if axes.outputs]


@pytest.mark.parametrize(("name", "axes"), _with_axes(), ids=lambda v: getattr(v, "attribute", v))
def test_an_output_channel_depends_on_its_own_weights_alone(name: str, axes: KernelAxes) -> None:
    """Weights of one index along the output axes change the output channel of that index."""
    layer, shape = _built(name)
    random = np.random.default_rng(1)
    x = random.integers(0, 7, (2, *shape)) if name == "Embedding" else random.uniform(
        0.1, 1.0, (2, *shape)
    )  # fmt: skip
    kernel, before = axes.of(layer), _run(layer, x.astype("float32"))
    values = np.array(kernel)
    sizes = [values.shape[axis] for axis in axes.outputs]
    for number in range(int(np.prod(sizes))):
        place: list[Any] = [slice(None)] * values.ndim
        for axis, position in zip(axes.outputs, np.unravel_index(number, sizes), strict=True):
            place[values.ndim + axis] = position
        changed = values.copy()
        changed[tuple(place)] *= -2.0
        kernel.assign(changed)
        moved = np.abs(_run(layer, x.astype("float32")) - before).reshape(-1, before.shape[-1])
        if len(LAYER_KINDS[name].kernels) == 2 and axes is LAYER_KINDS[name].kernels[0]:
            assert moved.max() > 0  # The pointwise half mixes what the depthwise half makes.
        else:
            assert list(np.flatnonzero(moved.max(axis=0) > 1e-6)) == [number]


@pytest.mark.parametrize("name", [n for n, a in _with_axes() if a.inputs is not None])
def test_an_input_channel_is_read_by_its_own_weights_alone(name: str) -> None:
    """Without the weights of one index along the input axis, that input channel is not seen."""
    layer, shape = _built(name)
    kind = LAYER_KINDS[name]
    axes = kind.kernels[0]
    x = np.random.default_rng(1).uniform(0.1, 1.0, (2, *shape)).astype("float32")
    values = np.array(axes.of(layer))
    for channel in range(shape[-1]):
        other = x.copy()
        other[..., channel] = -other[..., channel]
        axes.of(layer).assign(values)
        assert np.abs(_run(layer, x) - _run(layer, other)).max() > 1e-4
        if kind.one_bit:
            continue  # A weight of zero is a +1: nothing switches an input off.
        cut = values.copy()
        np.moveaxis(cut, axes.inputs, 0)[channel] = 0
        axes.of(layer).assign(cut)
        np.testing.assert_allclose(_run(layer, x), _run(layer, other), atol=1e-6)


@pytest.mark.parametrize("name", _kinds(Channels.KEPT))
def test_channels_that_are_kept_stay_apart(name: str) -> None:
    """What one channel of the inputs holds changes its own output channels, and no other."""
    layer, shape = _built(name)
    random = np.random.default_rng(1)
    count = 2 if LAYER_KINDS[name].family in _TWO_INPUTS else 1
    inputs = [random.uniform(0.1, 1.0, (2, *shape)).astype("float32") for _ in range(count)]
    before = _run(layer, *inputs)
    each = before.shape[-1] // shape[-1]
    for channel in range(shape[-1]):
        others = [x.copy() for x in inputs]
        for x in others:
            x[..., channel] = 1.5 + x[..., channel]
        moved = np.abs(_run(layer, *others) - before).reshape(-1, before.shape[-1]).max(axis=0)
        own = range(channel * each, (channel + 1) * each)
        assert list(np.flatnonzero(moved)) in (list(own), [])  # [] where both inputs grow alike
    if LAYER_KINDS[name].family not in _TWO_INPUTS:
        assert moved.max() > 0


@pytest.mark.parametrize("name", _kinds(Channels.MOVED))
def test_channels_that_are_moved_keep_their_values(name: str) -> None:
    layer, shape = _built(name)
    x = np.random.default_rng(1).uniform(0.1, 1.0, (2, *shape)).astype("float32")
    inputs = [x, x + 1] if LAYER_KINDS[name].family in _TWO_INPUTS else [x]
    result = _run(layer, *inputs)
    np.testing.assert_array_equal(np.sort(result.ravel()), np.sort(np.ravel(inputs)))


@pytest.mark.parametrize("name", [n for n in _kinds(Channels.MIXED) if n != "BinaryDense"])
def test_channels_that_are_mixed_all_depend_on_each(name: str) -> None:
    layer, shape = _built(name)
    x = np.random.default_rng(1).uniform(0.1, 1.0, (2, *shape)).astype("float32")
    other = x.copy()
    other[..., 0] = -1.5 * x[..., 0]
    moved = np.abs(_run(layer, x) - _run(layer, other))
    assert (moved.reshape(-1, moved.shape[-1]).max(axis=0) > 0).all()


def test_classes_that_callbacks_change() -> None:
    layers = keras.layers
    default, named = layer_classes(Use.BY_DEFAULT), layer_classes(Use.ON_REQUEST)
    assert default[layers.Conv2D] == "kernel" and default[layers.Embedding] == "embeddings"
    assert default[layers.SeparableConv2D] == "pointwise_kernel"
    assert named == {layers.DepthwiseConv1D: "kernel", layers.DepthwiseConv2D: "kernel"}
    assert not {*default} & {*named} and layers.LSTM not in default
    assert layer_classes(Use.BY_DEFAULT, lambda kind: kind.sign_patterns) == {
        layers.Conv2D: "kernel"
    }


def test_filters_that_stand_alone() -> None:
    axes = {name: kind.filter_axis for name, kind in LAYER_KINDS.items() if kind.kernels}
    assert axes["Dense"] == axes["Conv3D"] == axes["SeparableConv1D"] == -1
    assert axes["Conv2DTranspose"] == -2
    assert axes["DepthwiseConv2D"] is axes["Embedding"] is axes["EinsumDense"] is None


def test_a_class_registered_from_outside_is_known() -> None:
    kind = LayerKind("dense", Channels.MIXED, (KernelAxes("kernel", (-1,), -2),), module="mine")
    owner = type("MyDense", (), {"__module__": "mine.layers"})
    LAYER_KINDS.register("MyDense")(kind)
    try:
        assert kind_of(owner()) is kind
    finally:
        del LAYER_KINDS._entries["MyDense"]
