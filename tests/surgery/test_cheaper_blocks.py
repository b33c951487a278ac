"""Blocks in place of convolutions: their start, their settings, the networks around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, EdgeCompressError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.inspection.keras_models import inspect_keras
from edgecompress.surgery.blocks import BLOCKS
from edgecompress.surgery.blocks.base import Site
from edgecompress.surgery.cheaper_blocks import CheaperBlocks
from edgecompress.surgery.finalize import finalize

keras = pytest.importorskip("keras")
kl = keras.layers

_RNG = np.random.default_rng(5)


def _image(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


def _set(layer: Any, kernel: np.ndarray) -> None:
    layer.kernel.assign(kernel.reshape(layer.kernel.shape))


def _separable(inputs: int, outputs: int, groups: int) -> np.ndarray:
    """A kernel that is exactly a grouped convolution followed by a 1x1 convolution."""
    each = inputs // groups
    whole = np.zeros((3, 3, inputs, outputs))
    for group in range(groups):
        own = slice(group * each, (group + 1) * each)
        whole[:, :, own] = np.einsum(
            "hwim,mo->hwio", _RNG.normal(size=(3, 3, each, each)), _RNG.normal(size=(each, outputs))
        )
    return whole


def _bottleneck(inputs: int, outputs: int, groups: int) -> np.ndarray:
    core = np.zeros((3, 3, inputs // 2, outputs // 2))
    step_in, step_out = inputs // 2 // groups, outputs // 2 // groups
    for g in range(groups):
        own = (3, 3, step_in, step_out)
        core[:, :, g * step_in : (g + 1) * step_in, g * step_out : (g + 1) * step_out] = (
            _RNG.normal(size=own)
        )
    into, out = _RNG.normal(size=(inputs, inputs // 2)), _RNG.normal(size=(outputs // 2, outputs))
    return np.einsum("ia,hwab,bo->hwio", into, core, out)


def _patterns(inputs: int, outputs: int, tap: tuple[int, int]) -> np.ndarray:
    kernel = np.zeros((3, 3, inputs, outputs))
    kernel[tap] = _RNG.normal(size=(inputs, outputs))
    rows, columns = inputs // 4, outputs // 4
    for g in range(4):
        kernel[:, :, g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = _RNG.normal(
            size=(3, 3, rows, columns)
        )
    return kernel


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"padding": "same", "activation": "relu"},
    "no bias": {"padding": "same", "use_bias": False},
    "strides": {"padding": "same", "strides": 2, "activation": "gelu"},
    "dilation": {"padding": "same", "dilation_rate": 2},
    "valid": {"padding": "valid", "strides": 2},
}
# What each block can represent exactly.
PLANTED = {
    "grouped": lambda tap: _separable(8, 12, 4),
    "depthwise-separable": lambda tap: _separable(8, 12, 8),
    "bottleneck": lambda tap: _bottleneck(8, 12, 1),
    "pattern-residual": lambda tap: _patterns(8, 12, tap),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", PLANTED)
def test_a_kernel_that_is_such_a_block_is_kept(kind: str, settings: str) -> None:
    """The truth is the model itself: with a planted kernel the block has to compute the same."""
    options = SETTINGS[settings]
    if (kind, settings) == ("pattern-residual", "valid"):
        pytest.skip("has no 1x1 convolution of the same size")
    # Of 12 rows with strides 2, `same` pads one row, behind: a 1x1 convolution reads row 0.
    tap = (0, 0) if options.get("strides") == 2 else (1, 1)
    model = keras.Sequential(
        [keras.Input((12, 12, 8)), kl.Conv2D(12, 3, name="c", **options), kl.Flatten()]
    )
    _set(model.layers[0], PLANTED[kind](tap))
    if options.get("use_bias", True):
        model.layers[0].bias.assign(_RNG.normal(size=12))
    small = finalize(model, rewrites=f"cheaper-blocks:kind={kind}")
    x = _image(3, 12, 12, 8)
    wanted = np.array(model(x))
    np.testing.assert_allclose(small(x), wanted, atol=1e-4 * np.abs(wanted).max())
    found = record_of(small).steps[0]["replaced"]["c"]
    assert found["start"] == "kernel" and found["energy"] == pytest.approx(1, abs=1e-6)
    assert inspect_keras(small).macs == found["macs"][1] < found["macs"][0]
    assert found["macs"][0] == inspect_keras(model).macs
    # Any other tap is not what the 1x1 convolution reads.
    if kind == "pattern-residual":
        _set(model.layers[0], PLANTED[kind]((2, 1)))
        other = finalize(model, rewrites=f"cheaper-blocks:kind={kind}")
        assert record_of(other).steps[0]["replaced"]["c"]["energy"] < 0.9


@pytest.mark.parametrize("kind", [name for name, block in BLOCKS.items() if block.from_kernel])
def test_no_step_away_from_the_start_is_nearer(kind: str) -> None:
    """A minimum of squares: moving any of the block's weights a little makes the error grow."""
    kernel = _image(3, 3, 8, 12).astype(np.float64)
    block = BLOCKS[kind]()
    site = Site(kernel, (1, 1))
    chains = block.chains(site)

    class Moved(type(block)):  # type: ignore[misc]
        def chains(self, site: Site) -> Any:
            return moved

    moved = chains
    nearest = np.square(kernel - Moved().product(site)).sum()
    assert 0 < nearest < np.square(kernel).sum()
    for branch, chain in enumerate(chains):
        for index, step in enumerate(chain):
            for scale in (0.1, -0.1):
                bent = type(step)(
                    step.part, step.kernel + scale * _RNG.normal(size=step.part.shape)
                )
                own = (*chain[:index], bent, *chain[index + 1 :])
                moved = (*chains[:branch], own, *chains[branch + 1 :])
                assert np.square(kernel - Moved().product(site)).sum() > nearest


def test_the_shuffle_mixes_groups() -> None:
    """Channel i of group g goes to i * groups + g, as numpy says; every input reaches an output."""
    model = keras.Sequential([keras.Input((4, 4, 8)), kl.Conv2D(8, 3, padding="same", name="c")])
    small = finalize(model, rewrites="cheaper-blocks:kind=shuffle,groups=2")
    block = small.get_layer("c")
    names = [layer.name for layer in block.layers]
    first = block.get_layer("c_1_block")
    join = block.get_layer("c_1_join_block")
    x = _image(2, 4, 4, 8)
    before = np.array(keras.Model(block.input, first.output)(x))
    after = np.array(keras.Model(block.input, join.output)(x))
    expected = before.reshape(2, 4, 4, 2, 4).swapaxes(3, 4).reshape(2, 4, 4, 8)
    np.testing.assert_array_equal(after, expected)
    assert names[1:5] == ["c_1_block", "c_1_split_block", "c_1_shuffle_block", "c_1_join_block"]
    for channel in range(8):
        y = x.copy()
        y[..., channel] += 1
        assert (np.abs(np.array(small(y)) - np.array(small(x))).max((0, 1, 2)) > 0).all()


def test_nonlinear_blocks_have_the_papers_layers() -> None:
    model = keras.Sequential([keras.Input((8, 8, 8)), kl.Conv2D(8, 3, name="c")])

    def inside(kind: str) -> list[str]:
        small = finalize(model, rewrites=f"cheaper-blocks:kind={kind},nonlinear=true")
        return [type(layer).__name__ for layer in small.get_layer("c").layers[1:]]

    norm, relu = "BatchNormalization", "ReLU"
    assert inside("depthwise-separable") == ["DepthwiseConv2D", norm, relu, "Conv2D"]
    assert inside("bottleneck") == ["Conv2D", norm, relu, "Conv2D", norm, relu, "Conv2D"]
    shuffle = ["Reshape", "Permute", "Reshape"]
    expected = ["Conv2D", norm, relu, *shuffle, "DepthwiseConv2D", norm, "Conv2D"]
    assert inside("shuffle") == expected


def _plain() -> Any:
    layers = [kl.Conv2D(12, 3, padding="same", name="a"), kl.BatchNormalization(), kl.ReLU()]
    more = [kl.MaxPooling2D(), kl.Conv2D(16, 3, name="b"), kl.Flatten(), kl.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 4)), *layers, *more])


def _residual() -> Any:
    inputs = keras.Input((8, 8, 4))
    x = y = kl.Conv2D(12, 3, padding="same", activation="relu", name="a")(inputs)
    shared = kl.Conv2D(12, 3, padding="same", name="shared")
    y = shared(kl.ReLU()(kl.BatchNormalization()(shared(y))))
    x = kl.ReLU()(kl.Add()([x, y]))
    return keras.Model(inputs, kl.Dense(4)(kl.GlobalAveragePooling2D()(x)))


def _mobile() -> Any:
    inputs = keras.Input((8, 8, 4))
    x = kl.Conv2D(12, 3, strides=2, padding="same", use_bias=False, name="a")(inputs)
    x = kl.ReLU(6.0)(kl.BatchNormalization()(x))
    x = kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = kl.Conv2D(16, 1, name="point")(kl.ReLU(6.0)(kl.BatchNormalization()(x)))
    return keras.Model(inputs, kl.Dense(4)(kl.GlobalAveragePooling2D()(x)))


def _u_net() -> Any:
    inputs = keras.Input((8, 8, 4))
    x = skip = kl.Conv2D(12, 3, padding="same", activation="relu", name="a")(inputs)
    x = kl.Conv2D(16, 3, padding="same", activation="relu", name="b")(kl.MaxPooling2D()(x))
    x = kl.Concatenate()([kl.UpSampling2D()(x), skip])
    x = kl.Conv2D(12, 3, padding="same", activation="relu", name="c")(x)
    return keras.Model(inputs, kl.Conv2D(2, 1, name="point")(x))


def _two_inputs() -> Any:
    image, other = keras.Input((8, 8, 4)), keras.Input((3,))
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), kl.Conv2D(12, 3, name="a"), kl.GlobalAveragePooling2D()],
        name="inner",
    )
    x = kl.Concatenate()([inner(image), kl.Dense(6)(other)])
    return keras.Model([image, other], kl.Dense(4)(x))


# Network -> the layers that each block replaces, and those it leaves.
NETWORKS: dict[str, tuple[Any, set[str], set[str]]] = {
    "plain": (_plain, {"a", "b"}, set()),
    "residual": (_residual, {"a", "shared"}, set()),
    "mobile": (_mobile, {"a"}, {"point"}),
    "u-net": (_u_net, {"a", "b", "c"}, {"point"}),
    "two inputs": (_two_inputs, {"inner/a"}, set()),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_networks_keep_everything_else_and_load(name: str, kind: str, tmp_path: Any) -> None:
    make, replaced, left = NETWORKS[name]
    model = make()
    small = finalize(model, rewrites=f"cheaper-blocks:kind={kind}")
    record = record_of(small)
    done = record.steps[0].get("replaced", {})
    notes = {note.split(" leaves ")[1].split(":")[0] for note in record.notes if "leaves" in note}
    # `valid` padding keeps pattern-residual out.
    assert set(done) | notes == replaced | left and left <= notes
    if kind != "pattern-residual":
        assert set(done) == replaced
    ours = {layer.name: layer for layer in small.layers}
    for layer in model.layers:
        if layer.name in done or layer.name == "inner":
            continue
        for old, new in zip(layer.get_weights(), ours[layer.name].get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    assert inspect_keras(small).macs <= inspect_keras(model).macs
    again = finalize(small, rewrites=f"cheaper-blocks:kind={kind}")
    assert again.count_params() == small.count_params()
    if kind != "depthwise-separable":  # tests/contracts saves the others.
        return
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    x = [_image(2, *tensor.shape[1:]) for tensor in model.inputs]
    x = x if len(x) > 1 else x[0]
    np.testing.assert_allclose(loaded(x), small(x), atol=1e-6)


LEFT: dict[str, tuple[str, Any, str]] = {
    "grouped": ("grouped", lambda: kl.Conv2D(8, 3, groups=4, name="c"), "is a grouped convolution"),
    "1x1": ("bottleneck", lambda: kl.Conv2D(8, 1, name="c"), "low-rank makes it smaller"),
    "as many": ("grouped", lambda: kl.Conv2D(4, (1, 2), name="c"), "takes 1.00 times"),
    "channels": ("grouped", lambda: kl.Conv2D(9, 3, name="c"), ""),
    "outputs": ("shuffle", lambda: kl.Conv2D(9, 3, name="c"), "its 9 outputs are not a multiple"),
    "uneven strides": (
        "depthwise-separable",
        lambda: kl.Conv2D(8, 3, strides=(2, 1), name="c"),
        "there is no depthwise convolution",
    ),
    "valid": ("pattern-residual", lambda: kl.Conv2D(8, 3, name="c"), "no 1x1 convolution"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_does_not_suit_stays_and_is_named(case: str) -> None:
    kind, make, reason = LEFT[case]
    model = keras.Sequential([keras.Input((8, 8, 8)), make()])
    done = CheaperBlocks(kind).apply(model)
    if not reason:
        assert done.model is not model and not done.notes
        return
    assert done.model is model and done.details is None
    (note,) = done.notes
    assert note.startswith("cheaper-blocks leaves c: ") and reason in note


def test_convolutions_of_other_classes_are_named() -> None:
    class Own(kl.Conv2D):  # type: ignore[misc]
        pass

    layers = [kl.Conv2DTranspose(8, 3, name="up"), Own(8, 3, name="own"), kl.DepthwiseConv2D(3)]
    model = keras.Sequential([keras.Input((8, 8, 8)), *layers, kl.Conv2D(8, 3, name="c")])
    done = CheaperBlocks().apply(model)
    assert set(done.details["replaced"]) == {"c"}
    assert done.notes == (
        "cheaper-blocks leaves up: Conv2DTranspose layers stay, Conv1D and Conv2D are replaced.",
        "cheaper-blocks leaves own: Own layers stay, Conv1D and Conv2D are replaced.",
    )
    dense = CheaperBlocks().apply(keras.Sequential([keras.Input((8,)), kl.Dense(8)]))
    assert dense.notes == ("cheaper-blocks replaces nothing: the model has no convolution.",)


def test_unknown_sizes_and_different_shapes_are_left() -> None:
    open_ended = keras.Sequential([keras.Input((None, None, 8)), kl.Conv2D(8, 3, name="c")])
    assert "size of its input is unknown" in CheaperBlocks().apply(open_ended).notes[0]
    shared = kl.Conv2D(8, 3, name="c")
    one, two = keras.Input((8, 8, 8)), keras.Input((6, 6, 8))
    assert (
        "different shapes"
        in CheaperBlocks().apply(keras.Model([one, two], [shared(one), shared(two)])).notes[0]
    )


def test_a_target_decides_by_its_predicted_time() -> None:
    """Four channels in a bottleneck: 0.43 of the multiply-accumulates, but three operators."""
    layers = [kl.Conv2D(4, 3, name="narrow"), kl.Conv2D(24, 3, name="wide")]
    model = keras.Sequential([keras.Input((6, 6, 4)), *layers])
    target = "target=nucleo-l4r5zi"
    left = CheaperBlocks("bottleneck", layers="narrow").apply(model)
    assert left.model is not model
    left = CheaperBlocks("bottleneck", layers="narrow", target="nucleo-l4r5zi").apply(model)
    assert left.model is model and "narrow: what would take its place needs 1." in left.notes[0]
    record = record_of(finalize(model, rewrites=f"cheaper-blocks:{target}"))
    assert set(record.steps[0]["replaced"]) == {"narrow", "wide"}
    # No instruction count exists for grouped convolutions: it is not known to be faster.
    record = record_of(finalize(model, rewrites=f"cheaper-blocks:kind=grouped,groups=2,{target}"))
    assert len(record.steps) == 1 and "is not known" in record.notes[-1]
    with pytest.raises(ArgumentError, match="latency is predicted"):
        CheaperBlocks(target="pixel-4")


def test_sequences_have_blocks_too() -> None:
    model = keras.Sequential(
        [keras.Input((20, 8)), kl.Conv1D(12, 5, padding="same", name="c"), kl.Flatten()]
    )
    for kind in BLOCKS:
        small = finalize(model, rewrites=f"cheaper-blocks:kind={kind}")
        assert inspect_keras(small).macs < inspect_keras(model).macs, kind


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "depthwise-separable", "groups": 4}, UnknownNameError, "groups"),
        ({"kind": "grouped", "factor": 2}, UnknownNameError, "factor"),
        ({"layers": "("}, ArgumentError, "`layers` must be a regular expression"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        CheaperBlocks(**options)


@pytest.mark.parametrize(
    "given", ["kind=dense", "groups=0,kind=grouped", "layers=x", "kind=grouped,groups=1"]
)
def test_wrong_values_are_refused(given: str) -> None:
    with pytest.raises(EdgeCompressError):
        finalize(_plain(), rewrites=f"cheaper-blocks:{given}")
