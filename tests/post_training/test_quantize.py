"""`quantize` on a small model: what each technique may change, and that the file follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.formats import Costs, FormatRequest
from edgecompress.converters.int8 import Int8Options
from edgecompress.converters.loaders import wrap
from edgecompress.core.errors import ArgumentError, NotFiniteError, UnknownNameError
from edgecompress.core.record import record_of
from edgecompress.post_training import pairs
from edgecompress.post_training.bias_correction import BiasCorrection
from edgecompress.post_training.folding import fold_batch_norms
from edgecompress.post_training.techniques import TECHNIQUES, chosen_techniques
from edgecompress.simulation import EngineSimulation

pytestmark = pytest.mark.slow

ALL = ("cross-layer-equalization", "gptq", "bias-correction")
FEW_BITS = ec.Int4(edge_bits=4, depthwise_bits=4)


def norm(x, name):
    return layers.BatchNormalization(name=name)(x)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Convolutions, depthwise and separable, with and without normalization, ReLU6 and biases."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10, 10, 2))
    x = norm(layers.Conv2D(8, 3, use_bias=False, name="stem")(inputs), "stem_norm")
    x = layers.ReLU(name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.MaxPooling2D(2)(layers.ReLU(name="depthwise_relu")(norm(x, "depthwise_norm")))
    x = layers.SeparableConv2D(12, 3, padding="same", activation="relu6", name="separable")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="mix")(x)
    x = layers.Dense(9, activation="relu", use_bias=False, name="hidden")(layers.Flatten()(x))
    made = keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))
    rng = np.random.default_rng(0)
    for name in ("stem_norm", "depthwise_norm"):
        gamma, beta, mean, variance = made.get_layer(name).get_weights()
        # Channels of unlike size: what equalization is for.
        spread = np.geomspace(0.05, 3, 8).astype("float32")
        made.get_layer(name).set_weights(
            [spread, beta + rng.normal(size=8) * 0.1, mean + 0.1, variance * 0.5]
        )
    return made


@pytest.fixture(scope="module")
def simple() -> keras.Model:
    """Three Dense layers."""
    keras.utils.set_random_seed(2)
    sizes = [layers.Dense(n, activation="relu", name=f"dense_{n}") for n in (16, 12)]
    return keras.Sequential([keras.Input((10,)), *sizes, layers.Dense(4, name="out")])


@pytest.fixture(scope="module")
def rows(x) -> np.ndarray:
    return x[:, :, 0, 0]


def images(seed: int, count: int) -> np.ndarray:
    """Images whose neighbouring pixels are alike, as in photographs."""
    noise = np.random.default_rng(seed).normal(size=(count, 10, 10, 2))
    return (noise.cumsum(1).cumsum(2) / 5 + 1).astype("float32")


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return images(1, 60)


@pytest.fixture(scope="module")
def small(model, x) -> keras.Model:
    return ec.quantize(model, FEW_BITS, x, techniques=ALL)


@pytest.fixture(scope="module")
def plain(model, x) -> keras.Model:
    return ec.quantize(model, FEW_BITS, x)


def test_float_weights_are_left_alone_without_a_technique(model, plain) -> None:
    same = plain
    for old, new in zip(model.weights, same.weights, strict=True):
        assert np.array_equal(old, new)
    record = record_of(same)
    assert record.ranges["stem_relu"][0] == 0 and record.ranges["head"] == (0, 255 / 256)
    assert record.steps[-1]["techniques"] == []
    assert record_of(model).steps == ()


def test_what_each_technique_brought_is_in_the_record(model, small) -> None:
    record = record_of(small)
    tried = {step["name"]: step for step in record.steps[-1]["techniques"]}
    assert list(tried) == list(ALL)
    for name, step in tried.items():
        verdict = "kept." if step["kept"] else "not kept."
        assert any(
            n.startswith(f"{name}: outputs at") and n.endswith(verdict) for n in record.notes
        )
    ratios = [step["sqnr_db"] for step in tried.values() if step["kept"]]
    assert ratios == sorted(ratios) and record.steps[-1]["sqnr_db"] == ratios[-1]
    assert tried["cross-layer-equalization"]["kept"] and tried["gptq"]["kept"]
    assert not any("head" in note for note in record.notes if note.startswith("Not equalized"))


def test_the_file_holds_the_codes_that_were_chosen(small, x) -> None:
    """Ranges, widths and weights all come from the record and the model: no calibration."""
    floats = float32.convert(small)
    artifact = int8.convert(floats, record=record_of(small), precision=FEW_BITS)
    flat = artifact.flat
    filters = {flat.output(o).name: flat.tensor(o, 1) for o in flat.operators if len(o.inputs) > 2}
    for name, axis in (("mix", (0, 1, 2)), ("hidden", None)):
        kernel = small.get_layer(name).kernel.numpy()
        chosen = kernel / np.abs(kernel).max(axis) * 7
        # On the grid: rounding it again changes nothing.
        assert np.abs(chosen - np.rint(chosen)).max() < 1e-4
        stored = filters[name].values().reshape(chosen.shape[-1], -1)
        assert filters[name].type == "INT4"
        assert np.array_equal(np.rint(chosen).reshape(-1, chosen.shape[-1]).T, stored)
    found = EngineSimulation(artifact, "tflm").predict(x)
    simulated = ec.simulate(small)(x)
    assert np.abs(found - simulated).max() <= 1.01 / 256


def test_techniques_come_closer_to_float_than_nearest_on_unseen_data(model, small, plain) -> None:
    fresh = images(5, 60)
    exact = model(fresh)

    def error(simulated):
        return float(np.mean((simulated(fresh) - exact) ** 2))

    assert error(ec.simulate(small)) < 0.7 * error(ec.simulate(plain))


def test_clipped_ranges_and_scales_reach_the_record(simple, rows) -> None:
    """Rounded weights have the scales of their largest ones: exporting must not clip again."""
    precision = ec.Int4(activation_ranges="percentile", percentile=99, weight_ranges="mse")
    record = record_of(ec.quantize(simple, precision, rows, techniques="gptq"))
    step = record.steps[-1]
    assert step["techniques"][0]["kept"] and step["weight_ranges"] == "minmax"
    assert {own["config"]["weight_ranges"] for own in step["kernels"].values()} == {"minmax"}
    wide = record_of(ec.quantize(simple, "int8", rows)).ranges
    assert record.ranges["dense_12"][1] < 0.95 * wide["dense_12"][1]
    plain = record_of(ec.quantize(simple, precision, rows)).steps[-1]
    assert plain["weight_ranges"] == "mse"


def test_pairs_are_named_or_left_out_with_the_reason(model) -> None:
    _, folded = fold_batch_norms(model)
    found, skipped = pairs.find_pairs(model, folded)
    assert [(p.first, p.second) for p in found] == [("stem", "depthwise"), ("mix", "hidden"),
                                                    ("hidden", "head")]  # fmt: skip
    assert skipped["depthwise"] == "separable has two kernels"
    assert skipped["separable"] == "it has two kernels"


def test_folding_and_equalizing_change_nothing(model, x) -> None:
    exact = model(x[:8]).numpy()
    folded, names = fold_batch_norms(model)
    assert names == {"stem_norm", "depthwise_norm"}
    norms = np.ones((1, 8, 8, 8), "float32")
    assert np.abs(folded.get_layer("stem_norm")(norms) - norms).max() < 3e-7
    equalized, _, _ = pairs.equalized(model, 20)
    for other in (folded, equalized):
        assert np.abs(other(x[:8]).numpy() - exact).max() < 1e-5
    kernel = equalized.get_layer("stem").kernel.numpy()
    after = equalized.get_layer("depthwise").kernel.numpy()
    assert np.abs(kernel).max((0, 1, 2)) == pytest.approx(np.abs(after).max((0, 1, 3)), rel=1e-2)


def test_equalization_that_changes_the_model_is_refused(x, monkeypatch) -> None:
    """ReLU6 does not scale with its input; told that it does, the outputs give it away."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    wide = layers.Dense(8, kernel_initializer=keras.initializers.RandomNormal(stddev=5.0))(inputs)
    made = keras.Model(inputs, layers.Dense(3)(layers.ReLU(6.0, name="six")(wide)))
    data = x[:40, :3, 0].reshape(40, 6)
    left = record_of(ec.quantize(made, "int8", data, techniques="cross-layer-equalization")).notes
    assert any("six (ReLU) does not scale with its input" in note for note in left)
    monkeypatch.setattr(pairs, "_passes", lambda layer, folded: True)
    wrong = record_of(ec.quantize(made, "int8", data, techniques="cross-layer-equalization"))
    assert any("not kept, because the float outputs change by" in note for note in wrong.notes)


def test_biases_are_corrected_where_the_layer_has_them(model, x) -> None:
    new = ec.quantize(model, ec.Int8(), x, techniques="bias-correction")
    assert record_of(new).steps[-1]["techniques"][0]["kept"]
    for name, attribute in (("stem_norm", "moving_mean"), ("mix", "bias")):
        old = getattr(model.get_layer(name), attribute)
        assert np.abs(getattr(new.get_layer(name), attribute) - old).max() > 1e-4
    assert not new.get_layer("stem").use_bias and new.get_layer("hidden").use_bias
    assert np.array_equal(new.get_layer("mix").kernel, model.get_layer("mix").kernel)


def test_a_technique_that_makes_it_worse_is_not_kept(simple, rows, monkeypatch) -> None:
    @dataclass(frozen=True)
    class Harmful(BiasCorrection):
        """Moves every bias."""

        def correction(self, errors):
            return np.full(errors.shape[-1], 5.0)

    monkeypatch.setitem(TECHNIQUES._entries, "harmful", Harmful)
    same = ec.quantize(simple, "int8", rows, techniques="harmful")
    assert any(n.startswith("harmful") and n.endswith("; not kept.") for n in record_of(same).notes)
    assert all(np.array_equal(a, b) for a, b in zip(simple.weights, same.weights, strict=True))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"calibration": None}, "calibration"),
        ({"calibration": np.zeros((4, 10, 10, 3), "float32")}, "calibration"),
        ({"calibration": [np.zeros((0, 10, 10, 2), "float32")]}, "calibration"),
        ({"precision": "float16"}, "--precision float16"),
        ({"precision": ec.Int8}, "precision"),
    ],
)
def test_wrong_arguments_are_refused(model, x, arguments, problem) -> None:
    with pytest.raises(ArgumentError, match=problem):
        ec.quantize(model, **{"precision": "int8", "calibration": x, **arguments})


def test_unknown_techniques_and_nan_are_refused(model, x) -> None:
    with pytest.raises(UnknownNameError, match="gptq"):
        ec.quantize(model, "int8", x, techniques="gptqq")
    with pytest.raises(NotFiniteError, match="input:0"):
        ec.quantize(model, "int8", np.where(x == x.max(), np.nan, x))


def test_export_takes_techniques(simple, rows) -> None:
    told: list[str] = []
    costs = Costs(lambda flat, memory: None, lambda flat: None, lambda flat: 0.0)
    options = Int8Options(precision=FEW_BITS, techniques=chosen_techniques("gptq"))
    request = FormatRequest("m", wrap(simple), None, (rows,), options, costs, told.append)
    made = int8.make(request)
    assert "Trying gptq" in told
    assert any(note.startswith("gptq: outputs at") for note in made.notes)
    assert made.main.kind == "int4" and not any("ranges were measured" in n for n in made.notes)
    assert sum("judge accuracy by --evaluate" in note for note in made.notes) == 1
    with pytest.raises(ArgumentError, match="go with --calibration"):
        int8.make(dataclasses.replace(request, samples=None))
    other = dataclasses.replace(options, precision=ec.Int8(), techniques=())
    named = wrap(ec.quantize(simple, FEW_BITS, rows))
    notes = int8.make(dataclasses.replace(request, loaded=named, options=other)).notes
    assert any("was quantized for int4, the file is int8" in note for note in notes)
    foreign = dataclasses.replace(request.loaded, flavour="saved_model")
    with pytest.raises(ArgumentError, match="go with a Keras 3 model"):
        int8.make(dataclasses.replace(request, loaded=foreign))
