"""Learnt ranges count for the weights they were learnt with, and a file never passes on others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters.loaders import load_model, wrap
from edgecompress.core.errors import ArgumentError
from edgecompress.core.learnt_ranges import (
    changed_layers,
    settled_record,
    valid_record,
    weight_hashes,
)
from edgecompress.core.record import (
    CompressionRecord,
    attach_record,
    read_record,
    record_of,
    sidecar_path,
)
from edgecompress.core.results import Report
from edgecompress.precisions.simulation import simulate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process", "float_once")]


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,), name="x"),
            layers.Dense(16, activation="relu", name="first"),
            layers.Dense(16, activation="relu", name="second"),
            layers.Dense(1, name="out"),
        ],
        name="regression",
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(256, 6)).astype("f4")
    return x, (x @ np.arange(1, 7) / 5 + np.abs(x[:, 0]))[:, None].astype("f4")


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def trained(callbacks: tuple[keras.callbacks.Callback, ...] = (), epochs: int = 8) -> keras.Model:
    model = compiled(network())
    model.fit(
        *data(), epochs=epochs, batch_size=32, shuffle=False, verbose=0,
        callbacks=[ec.QuantizationAwareTraining(ec.Int8(momentum=0.9)), *callbacks],
    )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def sound() -> keras.Model:
    return trained()


def copy_of(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    attach_record(copy, record_of(model))
    return copy


def grown(model: keras.Model) -> keras.Model:
    """Returns the model after training without the callback: activations are many times larger."""
    model = copy_of(model)
    out = model.get_layer("out")
    kernel, bias = out.get_weights()
    out.set_weights([kernel * 8, bias * 8])
    return model


def export(model: object, folder: Path, **options: object) -> Report:
    return ec.export(model, ["host"], output=folder, **options)


def r2_of_file(report: Report, model: keras.Model, folder: Path) -> float:
    from edgecompress.converters.real_values import dequantize, quantize
    from edgecompress.engines.run import run_engine
    from edgecompress.flatbuffers.reading import read_tflite

    flat = read_tflite(next(folder.glob("*_int8.tflite")))
    codes = quantize(data()[0], flat.tensors[flat.inputs[0]])
    found = dequantize(
        run_engine("litert", flat.data, [codes]).outputs[0], flat.tensors[flat.outputs[0]]
    )
    exact = model(data()[0]).numpy().astype(float)
    return 1 - float(np.sum((found - exact) ** 2) / np.sum((exact - exact.mean()) ** 2))


def parity(report: Report) -> object:
    return next(check for check in report.targets[0].checks if check.rule == "parity")


# ---- stale ranges never pass


def test_ranges_of_other_weights_are_measured_anew_and_named(
    sound: keras.Model, tmp_path: Path
) -> None:
    model = grown(sound)
    report = export(model, tmp_path, calibration=data()[0])
    assert report.exit_code == 0
    assert r2_of_file(report, model, tmp_path) > 0.99
    note = next(n for n in report.notes if "not those with which training learnt" in n)
    assert "out" in note and "measured on 256 calibration samples" in note
    # What lies before the changed layer keeps what training learnt.
    record, _ = read_record(next(tmp_path.glob("*_int8.tflite")))
    assert record is not None and record.outdated == ("out",)
    assert record.ranges == {
        tap: bounds for tap, bounds in record_of(sound).ranges.items() if tap != "out"
    }


def test_without_calibration_stale_ranges_are_refused(sound: keras.Model, tmp_path: Path) -> None:
    assert export(sound, tmp_path / "a").exit_code == 0
    with pytest.raises(ArgumentError, match="learnt the ranges of out.*--calibration"):
        export(grown(sound), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_stale_ranges_that_are_claimed_to_fit_fail(sound: keras.Model, tmp_path: Path) -> None:
    # As the earlier versions took them: whatever the record says, the plain model judges.
    model = grown(sound)
    lie = dataclasses.replace(record_of(model), weights=weight_hashes(model))
    attach_record(model, lie)
    report = export(model, tmp_path, calibration=data()[0])
    assert r2_of_file(report, model, tmp_path) < 0.9
    assert report.exit_code == 4


def test_training_on_without_the_callback_changes_every_layer(sound: keras.Model) -> None:
    model = compiled(copy_of(sound))
    assert changed_layers(model, record_of(model)) == ()
    model.fit(*data(), epochs=1, shuffle=False, verbose=0)
    assert changed_layers(model, record_of(model)) == ("first", "second", "out")
    left = valid_record(model, record_of(model))
    # Inputs depend on no weights.
    assert (list(left.ranges), left.outdated) == (["input:0"], ("first", "second", "out"))
    with pytest.raises(ArgumentError, match="train quantization-aware again"):
        simulate(model)


def test_a_record_without_hashes_vouches_for_nothing(sound: keras.Model, tmp_path: Path) -> None:
    model = copy_of(sound)
    model.save(tmp_path / "old.keras")
    path = sidecar_path(tmp_path / "old.keras")
    content = json.loads(path.read_text())
    del content["record"]["weights"], content["record"]["outdated"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match="--calibration"):
        export(tmp_path / "old.keras", tmp_path / "build")
    report = export(tmp_path / "old.keras", tmp_path / "build", calibration=data()[0])
    assert report.exit_code == 0
    assert any("not those with which training learnt" in note for note in report.notes)


# ---- what changes nothing, or belongs to the same training


def test_saving_and_loading_keep_the_ranges(sound: keras.Model, tmp_path: Path) -> None:
    for name in ("model.keras", "model.h5"):
        model = copy_of(sound)
        model.save(tmp_path / name)
        loaded = load_model(tmp_path / name).record
        assert loaded is not None and loaded.outdated == ()
        assert loaded.ranges == record_of(sound).ranges


def test_mixed_precision_keeps_the_ranges() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = compiled(network())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model.fit(*data(), shuffle=False, verbose=0, callbacks=[ec.QuantizationAwareTraining()])
    found = wrap(model)
    assert found.model is not model
    assert found.record is not None and found.record.ranges == record_of(model).ranges


def test_finalize_ties_the_ranges_to_the_smaller_model(sound: keras.Model, tmp_path: Path) -> None:
    model = copy_of(sound)
    for layer, parts in (("first", (0, 1)), ("second", (0,))):
        weights = model.get_layer(layer).get_weights()
        weights[0][(slice(None), 3) if 1 in parts else (3, slice(None))] = 0
        if 1 in parts:
            weights[1][3] = 0
        model.get_layer(layer).set_weights(weights)
    stale = ec.finalize(model)
    assert stale.get_layer("first").units == 15
    # These weights were changed by hand, after training.
    assert set(changed_layers(stale, record_of(stale))) == {"first", "second"}
    attach_record(model, dataclasses.replace(record_of(model), weights=weight_hashes(model)))
    small = ec.finalize(model)
    assert small.get_layer("first").units == 15
    assert changed_layers(small, record_of(small)) == ()
    assert export(small, tmp_path).exit_code == 0


def test_restored_weights_have_the_ranges_of_their_epoch(tmp_path: Path) -> None:
    class Best(keras.callbacks.Callback):
        """Restores the weights of the first epoch, as early stopping does."""

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            if epoch == 0:
                self.weights = self.model.get_weights()

        def on_train_end(self, logs: object = None) -> None:
            self.model.set_weights(self.weights)

    first = trained(epochs=1)
    for before in (True, False):
        model = compiled(network())
        aware = ec.QuantizationAwareTraining(ec.Int8(momentum=0.9))
        model.fit(
            *data(), epochs=3, batch_size=32, shuffle=False, verbose=0,
            callbacks=[Best(), aware] if before else [aware, Best()],
        )  # fmt: skip
        record = settled_record(model)
        assert record.ranges == record_of(first).ranges
        assert changed_layers(model, record) == ()
        assert wrap(model).record == record
        model.save(tmp_path / "best.keras")
        saved, _ = read_record(tmp_path / "best.keras")
        assert saved is not None and saved.ranges == record.ranges


def test_a_checkpoint_has_the_ranges_of_its_own_weights(tmp_path: Path) -> None:
    path = tmp_path / "{epoch}.keras"
    for early in (True, False):
        aware = ec.QuantizationAwareTraining()
        keep = keras.callbacks.ModelCheckpoint(path)
        model = compiled(network())
        model.fit(*data(), epochs=2, shuffle=False, verbose=0,
                  callbacks=[keep, aware] if early else [aware, keep])  # fmt: skip
        for epoch in (1, 2):
            record = load_model(tmp_path / f"{epoch}.keras").record
            assert record is not None and record.outdated == ()
            assert len(record.ranges) == 4


def test_other_callbacks_of_the_same_training_keep_the_ranges() -> None:
    others = (
        ec.WeightClustering(4, layers=["second"]),
        ec.MagnitudePruning(ec.ConstantSparsity(0.5, frequency=2), layers=["out"]),
        ec.GroupLasso(1e-3, final_sparsity=0.25, layers=["first"]),
    )
    model = trained(others, epochs=2)
    record = record_of(model)
    assert len(record.steps) == 4
    assert set(record.weights) >= {"first", "second", "out"}
    assert changed_layers(model, record) == ()


def test_a_second_training_continues_only_ranges_that_fit(sound: keras.Model) -> None:
    model = compiled(grown(sound))
    model.optimizer.learning_rate = 0.0
    model.fit(*data(), batch_size=256, shuffle=False, verbose=0,
              callbacks=[ec.QuantizationAwareTraining(ec.Int8(momentum=0.999))])  # fmt: skip
    low, high = record_of(sound).ranges["out"]
    found = record_of(model).ranges["out"]
    # A moving average with this momentum would have stayed where it was.
    assert found[1] - found[0] > 4 * (high - low)
    assert record_of(model).outdated == ()


def test_the_record_keeps_hashes_and_what_was_dropped() -> None:
    record = CompressionRecord(
        ranges={"a": (0.0, 1.0)}, weights={"a": "0123"}, outdated=("b",), notes=("n",)
    )
    assert CompressionRecord.from_dict(record.to_dict()) == record
    assert record.merged(CompressionRecord(ranges={"b": (0.0, 1.0)})).outdated == ()
