"""Rewrites into portable operators: what they find, and that LiteRT computes the same after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters import float32, int8
from edgecompress.converters.loaders import wrap
from edgecompress.converters.portable import repeats
from edgecompress.converters.portable.base import PORTABLE, Rewritten, rewritten
from edgecompress.converters.real_values import dequantize
from edgecompress.core.errors import EngineError
from edgecompress.core.fusion import analyse
from edgecompress.core.learnt_ranges import TRAINED_BY, own_means, tied
from edgecompress.core.options import named
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import pack_codes
from edgecompress.pipeline.costs import costs_on
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.base import QAT
from edgecompress.targets.profile import Budgets, load_target
from edgecompress.targets.tflm.latency import predict

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
kl = keras.layers
ops = keras.ops


def _model(shape: tuple[int, ...], build: Any, dtype: str = "float32") -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="inputs", dtype=dtype)
    return keras.Model(inputs, build(inputs), name="net")


def _norm(x: Any) -> Any:
    """LayerNormalization as Keras writes it, and a lone negative square."""
    normal = kl.LayerNormalization(beta_initializer="ones", name="norm")(x)
    return ops.multiply(ops.negative(ops.square(normal)), normal)


# Rewrite -> a model in which it applies.
MODELS: dict[str, tuple[tuple[int, ...], Any]] = {
    "broadcasts": ((16,), lambda x: ops.add(x, x)),
    "indices": ((6,), lambda x: kl.Embedding(5, 3)(x)),
    "wrapped_indices": ((6,), lambda x: kl.Embedding(5, 3)(ops.subtract(x, 2))),
    "selects": ((6,), lambda x: ops.where(ops.greater(x, 0.5), x, ops.multiply(x, 2.0))),
    "means": ((4, 8, 2), lambda x: kl.GlobalAveragePooling2D()(kl.ReLU()(x))),
    "negations": ((5, 6), _norm),
    "flips": ((5, 6), lambda x: ops.flip(x, axis=1)),
    "squares": ((5, 6), _norm),
    "repeats": (
        (3, 5, 2),
        lambda x: ops.tile(kl.RepeatVector(3)(kl.Flatten()(kl.UpSampling2D((2, 3))(x))), (1, 2, 2)),
    ),
    "reshapes": ((4, 3, 2), lambda x: kl.Dense(3)(kl.Flatten()(kl.MaxPooling2D()(x)))),
    "resizes": ((3, 5, 2), lambda x: kl.UpSampling2D((2, 7), name="larger")(x)),
}


TOKENS = ("indices", "wrapped_indices")


def _raw(name: str) -> FlatModel:
    shape, build = MODELS[name]
    dtype = "int32" if name in TOKENS else "float32"
    return read_tflite(float32.to_flatbuffer(wrap(_model(shape, build, dtype))))


def _outputs(flat: FlatModel, x: np.ndarray) -> np.ndarray:
    return run_engine("litert", flat.data, [x]).outputs[0]


@pytest.mark.parametrize("name", PORTABLE)
def test_a_rewrite_computes_the_same_bit_for_bit(name: str) -> None:
    raw = _raw(name)
    # Those that come before may be what makes its operators.
    before: Rewritten = rewritten(raw, {k: v for k, v in PORTABLE.items() if k != name})
    after = rewritten(before.flat, {name: PORTABLE[name]})
    assert after.places[name] and after.flat.data != before.flat.data
    assert not rewritten(after.flat, {name: PORTABLE[name]}).places, "it applies once"
    # Whole numbers: the order of a sum does not matter.
    x = np.random.default_rng(0).integers(-8, 9, (4, *MODELS[name][0])).astype(np.float32)
    if name in TOKENS:
        x = np.random.default_rng(0).integers(0, 5, (4, *MODELS[name][0])).astype(np.int32)
    np.testing.assert_array_equal(_outputs(after.flat, x), _outputs(before.flat, x))
    np.testing.assert_array_equal(_outputs(after.flat, x), _outputs(raw, x))


def test_what_has_no_place_stays_byte_for_byte() -> None:
    raw = read_tflite(float32.to_flatbuffer(wrap(_model((4,), kl.Dense(3)))))
    assert rewritten(raw) == Rewritten(raw, {})


def test_a_negative_that_two_operators_read_is_subtracted_from_zero() -> None:
    def build(x: Any) -> Any:
        y = ops.negative(x)
        return ops.add(ops.multiply(y, x), ops.exp(y))

    raw = read_tflite(float32.to_flatbuffer(wrap(_model((4,), build))))
    after = rewritten(raw).flat
    assert raw.histogram()["NEG"] == 1 and "SUB" not in raw.histogram()
    assert after.histogram()["SUB"] == 1 and "NEG" not in after.histogram()
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    np.testing.assert_array_equal(_outputs(after, x), _outputs(raw, x))


def test_layer_normalization_is_integer_throughout_and_the_note_names_it() -> None:
    model = _model((5, 6), lambda x: kl.LayerNormalization(beta_initializer="ones", name="norm")(x))
    result = float32.convert(model)
    assert result.artifact.notes == ("NEG became SUB, which computes the same, in norm.",)
    x = np.random.default_rng(0).normal(size=(64, 5, 6)).astype(np.float32)
    flat = int8.convert(result, calibration=[x]).flat
    assert {t.type for t in flat.tensors} == {"INT8", "INT32"}
    assert flat.histogram() == {
        "MEAN": 2, "SQUARED_DIFFERENCE": 1, "ADD": 2, "RSQRT": 1, "MUL": 3, "SUB": 1,
    }  # fmt: skip


def test_upsampling_is_one_enlargement_in_int8() -> None:
    result = float32.convert(_model((3, 5, 2), kl.UpSampling2D((2, 3), name="larger")))
    assert result.artifact.flat.histogram() == {"RESIZE_NEAREST_NEIGHBOR": 1}
    x = np.random.default_rng(0).normal(size=(8, 3, 5, 2)).astype(np.float32)
    flat = int8.convert(result, calibration=[x]).flat
    codes = np.random.default_rng(1).integers(-128, 128, (4, 3, 5, 2)).astype(np.int8)
    wanted = codes.repeat(2, 1).repeat(3, 2)
    for engine in ("litert", "tflm"):
        output = run_engine(engine, flat.data, [codes]).outputs[0]
        np.testing.assert_array_equal(output, wanted)


def test_a_mean_stays_one_where_another_tool_has_learnt_its_range() -> None:
    step, ranges = (
        {"technique": QAT, TRAINED_BY: "other"},
        {"re_lu": (0.0, 4.0), "pool": (0.0, 1.0)},
    )
    pool, relu = kl.GlobalAveragePooling2D(name="pool"), kl.ReLU(name="re_lu")
    model = _model((4, 4, 2), lambda x: kl.Dense(2)(pool(relu(x))))
    attach_record(model, tied(CompressionRecord((step,), ranges), model))
    taps = {tap.name: tap.same_as for tap in analyse(model, own_means(record_of(model))).taps}
    assert taps["pool"] is None
    assert float32.convert(model).artifact.flat.histogram()["MEAN"] == 1
    # Training in this package rounds as the pooling does.
    del step[TRAINED_BY]
    assert not own_means(CompressionRecord((step,), ranges))
    assert {tap.name: tap.same_as for tap in analyse(model).taps}["pool"] == "re_lu"


def test_means_are_poolings_that_round_codes_and_cost_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(x: Any) -> Any:
        along = kl.GlobalAveragePooling1D(name="time")(kl.Conv1D(2, 1, activation="relu")(x))
        above = kl.Reshape((5, 4, 3))(ops.sigmoid(x))
        # The last two stay: not over a map, and of a map around zero.
        return [along, ops.mean(above, axis=(1, 2)), ops.mean(above, axis=3), ops.mean(x, axis=1)]

    result = float32.convert(_model((20, 3), build))
    counts = result.artifact.flat.histogram()
    assert (counts["AVERAGE_POOL_2D"], counts["MEAN"]) == (2, 2)
    # The reshapes around a convolution of one dimension are gone.
    flat = float32.convert(_model((20, 3), lambda x: build(x)[0])).artifact.flat
    assert [o.name for o in flat.operators] == [
        "RESHAPE", "CONV_2D", "AVERAGE_POOL_2D", "RESHAPE",
    ]  # fmt: skip

    x = np.random.default_rng(0).normal(size=(8, 20, 3)).astype(np.float32)
    alone = float32.convert(
        _model((20, 3), lambda x: kl.GlobalAveragePooling1D()(kl.Activation("gelu")(x)))
    )
    flat = int8.convert(alone, calibration=[x]).flat
    (curve,) = (flat.output(o) for o in flat.operators if o.code == "GELU")
    codes = np.random.default_rng(1).integers(-128, 128, (50, 20, 3)).astype(np.int8)
    seen = run_engine("litert", flat.data, [codes], tensors=[curve.index])
    total = np.stack(seen.tensors[curve.index]).reshape(50, 20, 3).astype(int).sum(1)
    wanted = np.sign(total) * ((np.abs(total) + 10) // 20)
    np.testing.assert_array_equal(seen.outputs[0], wanted)

    def instructions(model: FlatModel) -> float:
        costs = predict(model, load_target("nucleo-l4r5zi")).operators
        return sum(c.instructions or 0 for c in costs if c.name != "RELU")

    pooled = _model((8, 8, 16), lambda x: kl.GlobalAveragePooling2D()(kl.ReLU()(x)))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 16)).astype(np.float32)
    costs = [instructions(int8.convert(float32.convert(pooled), calibration=[x]).flat)]
    others = {name: rewrite for name, rewrite in PORTABLE.items() if name != "means"}
    monkeypatch.setattr(PORTABLE, "_entries", others)
    costs.insert(0, instructions(int8.convert(float32.convert(pooled), calibration=[x]).flat))
    assert costs[0] > 10 * costs[1] > 0


def test_embedding_is_one_gather_in_int8_that_microcontrollers_run() -> None:
    def build(x: Any) -> Any:
        return kl.Dense(4)(kl.Flatten()(kl.Embedding(9, 8, name="words")(x)))

    model = _model((6,), build, "int32")
    result = float32.convert(model)
    assert "negative" in result.artifact.notes[0] and "words" in result.artifact.notes[0]
    x = np.random.default_rng(0).integers(0, 9, (64, 6)).astype(np.int32)
    artifact = int8.convert(result, calibration=[x])
    flat = artifact.flat
    assert flat.histogram() == {"GATHER": 1, "FULLY_CONNECTED": 1}
    wanted, output = wrap(model).predict([x])[0], flat.tensors[flat.outputs[0]]
    for engine in ("litert", "tflm"):
        found = run_engine(engine, artifact.data, [x]).outputs[0]
        assert np.abs(dequantize(found, output) - wanted).max() < 5 * output.scales[0]


def _looking_up(bits: int) -> tuple[bytes, np.ndarray]:
    """Returns a file that looks rows up in a table of so many bits, and the table's codes."""
    flat = float32.convert(_model((6,), kl.Embedding(9, 8), "int32")).artifact.flat
    (gather,) = flat.operators
    codes = np.random.default_rng(0).integers(-7, 8, (9, 8)).astype(np.int8)
    editor = ModelEditor(flat)
    editor.replace(gather.inputs[0], pack_codes(codes, bits))
    for tensor in (gather.inputs[0], gather.outputs[0]):
        editor.retype(tensor, f"INT{bits}")
        editor.quantize(tensor, np.array([0.1], np.float32))
    return editor.pack(), codes


def test_only_litert_looks_up_tables_of_4_bits_and_the_note_says_so() -> None:
    x = np.random.default_rng(1).integers(0, 9, (3, 6)).astype(np.int32)
    for bits, engines in ((8, ("litert", "tflm")), (4, ("litert",))):
        data, codes = _looking_up(bits)
        for engine in engines:
            np.testing.assert_array_equal(run_engine(engine, data, [x]).outputs[0], codes[x])
    with pytest.raises(EngineError, match="INT4"):
        run_engine("tflm", data, [x])
    model = _model((6,), lambda x: kl.Dense(4)(kl.Embedding(9, 8, name="words")(x)), "int32")
    notes = {
        name: [
            note
            for note in int8.convert(
                float32.convert(model), calibration=[x], precision=named(PRECISIONS, name, "p")
            ).notes
            if "Tables" in note
        ]
        for name in ("int8", "int4", "int2")
    }
    assert notes["int8"] == []
    for name in ("int4", "int2"):
        assert notes[name] == [
            f"Tables in int8 instead of {name}: words. Of all engines, only LiteRT looks up "
            "narrower ones."
        ]


def test_phones_keep_means_that_training_has_not_replaced() -> None:
    model = _model(*MODELS["means"])
    for targets, unwanted in (
        (["pixel-8"], {"means"}),
        (["pixel-8", "host"], {"means"}),
        (["cortex-m4"], set()),
        (["pixel-8", "cortex-m4"], set()),
        ([], set()),
    ):
        profiles = [load_target(name) for name in targets]
        assert costs_on(profiles, Budgets(), {}, print).unwanted == unwanted
    kept = float32.convert(model, unwanted={"means"}).artifact
    assert kept.flat.histogram()["MEAN"] == 1 and not kept.notes
    assert "MEAN" not in float32.convert(model).artifact.flat.histogram()
    attach_record(model, CompressionRecord(ranges={"re_lu": (0.0, 1.0)}))
    trained = float32.convert(model, unwanted={"means"}).artifact
    assert trained.flat.histogram()["AVERAGE_POOL_2D"] == 1


def test_half_pixels_are_used_where_a_product_would_fall_below_a_whole_number() -> None:
    used = set()
    for old in (1, 3, 7, 41, 250):
        for times in (1, 2, 3, 5, 7, 41, 47, 55, 61):
            half_pixels = repeats.half_pixels_for([old], [old * times])
            assert half_pixels is not None
            used.add(half_pixels)
            found = repeats.nearest_places(old, old * times, half_pixels)
            np.testing.assert_array_equal(found, np.arange(old * times) // times)
    assert used == {False, True}
    assert repeats.half_pixels_for([3], [7]) is None


def test_the_order_of_registration_does_not_matter() -> None:
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(3, 2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    raw = read_tflite(float32.to_flatbuffer(wrap(model)))
    for names in (list(PORTABLE), list(PORTABLE)[::-1]):
        after = rewritten(raw, {name: PORTABLE[name] for name in names})
        assert after.flat.histogram() == {
            "CONV_2D": 1, "AVERAGE_POOL_2D": 1, "FULLY_CONNECTED": 1,
        }  # fmt: skip
