"""Loading models: every kind of file; none runs code or ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.converters import int8, loaders
from edgecompress.converters.float32 import convert
from edgecompress.converters.loaders import InputSpec, example_inputs, load_model, wrap
from edgecompress.converters.quantization_wrappers import record_for
from edgecompress.core.errors import EdgeCompressError, ModelFileError, UnsupportedModelError
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.record import CompressionRecord, attach_record
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.precisions.int4 import Int4
from edgecompress.precisions.mixed import trained_kernels

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow


def tiny(name: str = "tiny") -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(2, activation="softmax", name="head"),
        ],
        name=name,
    )


def run(code: str, *arguments: Path | str) -> None:
    """Runs code in a fresh process: tf_keras models are built and saved outside this one."""
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment,
        capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Keras 2 files, with their predictions on ones."""
    folder = tmp_path_factory.mktemp("legacy")
    run(
        """
import sys, numpy as np, tf_keras as k, tensorflow as tf, tensorflow_model_optimization as tfmot
folder, L = sys.argv[1], k.layers
k.utils.set_random_seed(1)
plain = k.Sequential([L.Input((8, 8, 3)), L.DepthwiseConv2D(3), L.BatchNormalization(), L.ReLU(),
    L.SeparableConv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(2, activation="softmax")])
plain.compile("adam", "mse")
plain.fit(np.random.rand(8, 8, 8, 3), np.random.rand(8, 2), verbose=0)
plain.save(folder + "/plain.h5"); plain.save(folder + "/plain.keras")
plain.save(folder + "/saved", save_format="tf")
np.save(folder + "/plain.npy", plain(np.ones((1, 8, 8, 3), "float32")))
plain.save_weights(folder + "/weights.h5")
i = L.Input((4,), name="vector")
ops = k.Model(i, tf.nn.relu(L.Dense(3)(i) * 2.0 - 1.0)); ops.save(folder + "/ops.h5")
np.save(folder + "/ops.npy", ops(np.ones((1, 4), "float32")))
k.Sequential([L.Input((4,)), L.Lambda(lambda x: x + 1, name="plus_one")]).save(folder + "/lam.h5")
base = k.Sequential([L.Input((4,)), L.Dense(8, name="first"), L.ReLU(), L.Dense(2, name="last")])
pruned = tfmot.sparsity.keras.prune_low_magnitude(base,
    tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1))
pruned.compile("sgd", "mse")
pruned.fit(np.random.rand(8, 4), np.random.rand(8, 2), verbose=0, epochs=3,
    callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
pruned.save(folder + "/pruned.h5")
np.save(folder + "/pruned.npy", tfmot.sparsity.keras.strip_pruning(pruned)(np.ones((1, 4))))
pruned.save(folder + "/pruned.keras"); pruned.save(folder + "/pruned_saved", save_format="tf")
pruned.export(folder + "/pruned_exported")
qat = tfmot.quantization.keras.quantize_model(base)
qat.save(folder + "/untrained.h5"); qat.save(folder + "/qat_saved", save_format="tf")
qat.compile("sgd", "mse"); x = np.random.rand(64, 4).astype("float32") * 3
qat.fit(x, np.random.rand(64, 2), verbose=0, epochs=5, batch_size=4)
qat.save(folder + "/qat.h5"); qat.save(folder + "/qat.keras")
np.savez(folder + "/qat.npz", x=x, y=qat.predict(x, verbose=0),
    **{w.name.replace("/", "."): w.numpy() for w in qat.weights})
clustered = tfmot.clustering.keras.cluster_weights(base, number_of_clusters=3,
    cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.LINEAR)
clustered.export(folder + "/clustered_exported")
from edgecompress.converters.loaders import wrap
for name, model in (("qat", qat), ("pruned", pruned), ("clustered", clustered)):
    try:
        wrap(model)
    except Exception as error:
        with open(folder + "/" + name + ".txt", "w") as file:
            file.write(type(error).__name__ + ": " + str(error))
""",
        folder,
    )
    return folder


def first_output(path: Path) -> np.ndarray:
    loaded = load_model(path)
    return loaded.predict([np.ones((1, *loaded.inputs[0].shape), np.float32)])[0]


def test_keras_3_files(tmp_path: Path) -> None:
    model = tiny()
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        loaded = load_model(str(tmp_path / name))
        assert (loaded.flavour, loaded.name, loaded.notes) == ("keras3", "model", ())
        assert loaded.inputs == (InputSpec("image", (8, 8, 3), "float32"),)
        assert len(loaded.sha256) == 64
        np.testing.assert_allclose(loaded.predict([x])[0], model.predict(x, verbose=0), atol=1e-6)


def test_saved_model(tmp_path: Path) -> None:
    model = tiny()
    model.export(tmp_path / "exported", verbose=False)
    loaded = load_model(tmp_path / "exported")
    assert (loaded.flavour, loaded.name) == ("saved_model", "exported")
    assert "SavedModel" in loaded.notes[0]
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded.predict([x])[0], model.predict(x, verbose=0), atol=1e-5)


def test_record_is_found_or_its_absence_explained(tmp_path: Path) -> None:
    model = tiny()
    attach_record(model, tied(CompressionRecord(ranges={"relu": (0.0, 6.0)}), model))
    model.save(tmp_path / "model.keras")
    record = load_model(tmp_path / "model.keras").record
    assert record is not None and record.ranges == {"relu": (0.0, 6.0)}
    tiny("other").save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.record == CompressionRecord(outdated=("relu",))
    assert "another version" in loaded.notes[0]


def test_models_in_memory() -> None:
    model = tiny()
    attach_record(model, tied(CompressionRecord(ranges={"relu": (0.0, 6.0)}), model))
    loaded = wrap(model)
    assert (loaded.name, loaded.path, loaded.flavour) == ("tiny", None, "keras3")
    assert loaded.record is not None and loaded.record.ranges
    assert wrap(loaded) is loaded


def test_half_precision_models_are_taken_in_float32(tmp_path: Path) -> None:
    """Mixed precision has no form in a flatbuffer; nested and wrapped layers count too."""
    half = "mixed_float16"
    inner = keras.Sequential(
        [keras.Input((6, 4)), keras.layers.TimeDistributed(keras.layers.Dense(3, dtype=half))]
    )
    image = keras.Input((6, 4))
    x = keras.layers.Flatten(dtype=half)(inner(image))
    x = keras.layers.Dense(5, activation="relu", dtype=half, name="wide")(x)
    model = keras.Model(image, keras.layers.Dense(2, dtype="float32", name="head")(x))
    model.save(tmp_path / "half.keras")
    x = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    expected = np.asarray(model(x))
    for loaded in (wrap(model), load_model(tmp_path / "half.keras")):
        assert "half precision" in loaded.notes[0]
        (output,) = loaded.predict([x])
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected, rtol=2e-2, atol=2e-2)
        for have, want in zip(loaded.model.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(have, want)
        assert "FULLY_CONNECTED" in read_tflite(convert(loaded).artifact.data).histogram()
    assert model.get_layer("wide").compute_dtype == "float16"  # the given model stays as it is
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert wrap(plain).model is plain


def test_inputs_of_every_structure() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    arrays = [np.float32([[1, 2, 3]]), np.float32([[4, 5]])]
    for inputs in ([a, b], {"a": a, "b": b}):
        outputs = wrap(keras.Model(inputs, {"one": joined, "two": b})).predict(arrays)
        assert [o.tolist() for o in outputs] == [[[1, 2, 3, 4, 5]], [[4, 5]]]
    unnamed = keras.Sequential([keras.Input((3,)), keras.layers.Flatten()])
    assert wrap(unnamed).inputs == (InputSpec("input_0", (3,), "float32"),)


def test_example_inputs() -> None:
    specs = (InputSpec("x", (2, None), "float32"), InputSpec("t", (5,), "int32"))
    first, again = example_inputs(specs, 3), example_inputs(specs, 3)
    assert [(x.shape, x.dtype.name) for x in first] == [((3, 2, 1), "float32"), ((3, 5), "int32")]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["plain.h5", "plain.keras"])
def test_keras_2_files_become_keras_3_models(legacy: Path, name: str) -> None:
    loaded = load_model(legacy / name)
    assert (loaded.flavour, loaded.notes) == ("keras3", ())
    assert isinstance(loaded.model, keras.Model)
    expected = np.load(legacy / "plain.npy")
    np.testing.assert_allclose(first_output(legacy / name), expected, atol=1e-5)
    # Keras 2 was loaded beside Keras 3, not instead of it.
    import tensorflow as tf

    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.Model is keras.Model


def test_keras_2_saved_model(legacy: Path) -> None:
    loaded = load_model(legacy / "saved")
    assert loaded.flavour == "saved_model"
    expected = np.load(legacy / "plain.npy")
    np.testing.assert_allclose(first_output(legacy / "saved"), expected, atol=1e-5)


def test_keras_2_models_without_a_keras_3_form_stay(legacy: Path) -> None:
    loaded = load_model(legacy / "ops.h5")
    assert loaded.flavour == "tf_keras"
    assert "stays a Keras 2 model" in loaded.notes[0] and "TFOpLambda" in loaded.notes[0]
    expected = np.load(legacy / "ops.npy")
    np.testing.assert_allclose(first_output(legacy / "ops.h5"), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["pruned.h5", "pruned.keras"])
def test_pruning_wrappers_are_stripped(legacy: Path, name: str) -> None:
    loaded = load_model(legacy / name)
    assert loaded.flavour == "keras3"
    assert "stripped" in loaded.notes[0]
    kernel = loaded.model.get_layer("first").kernel.numpy()
    assert np.count_nonzero(kernel == 0) == kernel.size // 2
    outputs = loaded.predict([np.ones((1, 4), np.float32)])[0]
    np.testing.assert_allclose(outputs, np.load(legacy / "pruned.npy"), atol=1e-5)


def test_wrappers_that_cannot_be_stripped_are_named_with_the_way_round(legacy: Path) -> None:
    """In SavedModels, and in memory, where importing what strips them changes the process."""
    for name, text in (
        ("pruned_saved", "strip_pruning(model)"),
        ("pruned_exported", "strip_pruning(model)"),
        ("clustered_exported", "strip_clustering(model)"),
        ("qat_saved", "model.save('model.h5')"),
    ):
        assert text in refusal(legacy / name, UnsupportedModelError)
    for name, text in (
        ("qat", "is a quantization wrapper (QuantizeLayer)"),
        ("pruned", "strip_pruning(model)"),
        ("clustered", "strip_clustering(model)"),
    ):
        found = (legacy / f"{name}.txt").read_text()
        assert found.startswith("UnsupportedModelError: Layer ") and text in found


@pytest.mark.parametrize("name", ["pruned.h5", "pruned.keras"])
def test_modules_of_the_current_folder_are_not_imported(
    legacy: Path, tmp_path: Path, name: str
) -> None:
    for module in (
        "tensorflow_model_optimization",
        "tf_keras",
        "h5py",
        "json",
        "jax",
        "sitecustomize",
    ):
        (tmp_path / f"{module}.py").write_text("open('imported', 'w')")
    done = subprocess.run(
        [Path(sys.executable).with_name("edgecompress"), "inspect", legacy / name, "-q"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "first" in done.stdout and not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["ad01", "pretrainedResnet"])
def test_published_keras_2_models(shared: Path, name: str) -> None:
    loaded = load_model(shared / "models" / "mlperf_tiny" / f"{name}.h5")
    assert (loaded.flavour, loaded.notes) == ("keras3", ())


def refusal(path: Path, kind: type[EdgeCompressError]) -> str:
    with pytest.raises(kind) as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert caught.value.exit_code == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["qat.h5", "qat.keras"])
def test_ranges_of_quantization_wrappers_are_used(legacy: Path, name: str) -> None:
    """The int8 file computes what the quantized model computes in tensorflow-model-optimization."""
    loaded = load_model(legacy / name)
    known = np.load(legacy / "qat.npz")
    assert loaded.flavour == "keras3" and loaded.record is not None
    assert "3 ranges that quantize_model() has learnt are used." in loaded.notes
    wanted = {
        tap: (float(known[f"{key}_min:0"]), float(known[f"{key}_max:0"]))
        for tap, key in (
            ("input:0", "quantize_layer.quantize_layer"),
            ("re_lu_1", "quant_re_lu_1.output"),
            ("last", "quant_last.post_activation"),
        )
    }
    assert loaded.record.ranges == wanted
    low, high = wanted["last"]
    step = (high - low) / 255
    # Both are exact up to ties; the float model is not.
    (plain,) = loaded.predict([known["x"]])
    assert np.abs(plain - known["y"]).max() > step / 3
    artifact = int8.convert(convert(loaded), record=loaded.record)
    flat = artifact.flat
    into, out = (flat.tensors[side[0]] for side in (flat.inputs, flat.outputs))
    codes = np.clip(np.rint(known["x"] / into.scales[0]) + into.zero_points[0], -128, 127)
    (got,) = run_engine("litert", artifact.data, [codes.astype(np.int8)]).outputs
    got = (got.reshape(known["y"].shape) - float(out.zero_points[0])) * out.scales[0]
    assert np.mean(np.abs(got - known["y"]) < step / 2) > 0.93
    np.testing.assert_allclose(got, known["y"], atol=1.01 * step)


def test_untrained_quantization_wrappers_have_no_ranges(legacy: Path) -> None:
    loaded = load_model(legacy / "untrained.h5")
    assert loaded.record is None and "never been trained" in loaded.notes[1]


@pytest.mark.parametrize("bits", [(3, True), (4, False)])
def test_kernels_that_no_precision_rounds_are_refused(bits: tuple[int, bool]) -> None:
    with pytest.raises(UnsupportedModelError, match=f"head/kernel was trained with {bits[0]} bits"):
        record_for(tiny(), {"input:0": (0.0, 1.0)}, {"head/kernel": bits}, "m.h5")


def test_kernels_of_four_bits_are_recorded() -> None:
    model = tiny()
    record, notes = record_for(
        model, {"input:0": (0.0, 1.0), "bogus": (0.0, 1.0)}, {"head/kernel": (4, True)}, "m.h5"
    )
    assert trained_kernels(record) == {"head/kernel": Int4()}
    assert record.ranges == {"input:0": (0.0, 1.0)} and "bogus" in notes[1]


def test_files_that_are_no_models(tmp_path: Path, legacy: Path) -> None:
    tiny().save(tmp_path / "good.keras")
    tiny().save(tmp_path / "good.h5")
    whole = (tmp_path / "good.keras").read_bytes()
    hdf5 = (tmp_path / "good.h5").read_bytes()
    files: dict[str, tuple[bytes, str]] = {
        "text.keras": (b"hello, I am a text file", "not a Keras model"),
        "text.h5": (b"hello, I am a text file", "not a Keras model"),
        "empty.keras": (b"", "not a Keras model"),
        "cut.keras": (whole[: len(whole) // 2], "truncated or damaged"),
        "cut.h5": (hdf5[: len(hdf5) // 2], "truncated or damaged"),
        "zip.h5": (whole, "Rename it to zip.keras"),
        "hdf.keras": (hdf5, "Rename it to hdf.h5"),
        "done.keras": (b"\x1c\0\0\0TFL3" + bytes(20), "already converted"),
    }
    for name, (content, text) in files.items():
        (tmp_path / name).write_bytes(content)
        assert text in refusal(tmp_path / name, ModelFileError), name
    assert "does not exist" in refusal(tmp_path / "missing.keras", ModelFileError)
    assert "saved_model.pb" in refusal(tmp_path, ModelFileError)
    assert "weights but no layers" in refusal(legacy / "weights.h5", ModelFileError)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    assert "config.json" in refusal(tmp_path / "other.keras", ModelFileError)
    np.savez(tmp_path / "samples.npz", x=np.zeros(3))
    assert "so no Keras model" in refusal(tmp_path / "samples.npz", ModelFileError)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"\xff" * 50)
    assert "damaged" in refusal(tmp_path / "folder", ModelFileError)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_archives_end_in_one_error_at_most(tmp_path: Path, seed: int) -> None:
    tiny().save(tmp_path / "good.keras")
    whole = np.frombuffer((tmp_path / "good.keras").read_bytes(), np.uint8)
    random = np.random.default_rng(seed)
    refused = 0
    for number in range(10):
        data = whole.copy()
        where = random.integers(0, len(data), 20)
        data[where] = random.integers(0, 256, 20)
        path = tmp_path / f"mutated_{number}.keras"
        path.write_bytes(data.tobytes())
        try:
            load_model(path)
        except EdgeCompressError as error:
            assert "\n" not in str(error)
            refused += 1
    # What was refused nowhere was looked at nowhere.
    assert refused


def edited(path: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    """Copies a .keras file with another configuration."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit(config)
                content = json.dumps(config).encode()
            archive.writestr(name, content)
    return target


def test_lambda_layers_are_refused_by_name(tmp_path: Path, legacy: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1, name="plus")])
    model.save(tmp_path / "lambda.keras")
    assert "Layer 'plus'" in refusal(tmp_path / "lambda.keras", UnsupportedModelError)
    model.save(tmp_path / "lambda.h5")
    assert "Layer 'plus'" in refusal(tmp_path / "lambda.h5", UnsupportedModelError)
    assert "Layer 'plus_one'" in refusal(legacy / "lam.h5", UnsupportedModelError)


def test_code_in_a_configuration_never_runs(tmp_path: Path) -> None:
    tiny().save(tmp_path / "good.keras")
    marker = tmp_path / "executed"

    def dense(config: Any) -> Any:
        return config["config"]["layers"][-1]

    def python_lambda(config: Any) -> None:
        dense(config)["config"]["activation"] = {
            "class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]},
        }  # fmt: skip

    def system_call(config: Any) -> None:
        dense(config)["config"]["activation"] = {
            "class_name": "function", "module": "os", "config": "system",
            "registered_name": "system",
        }  # fmt: skip

    def process(config: Any) -> None:
        dense(config).update(
            module="subprocess", class_name="Popen", registered_name=None,
            config={"args": ["touch", str(marker)]},
        )  # fmt: skip

    def torch_module(config: Any) -> None:
        dense(config).update(class_name="TorchModuleWrapper", module="keras.layers")

    for edit, text in (
        (python_lambda, "Layer 'head' .* lambda"),
        (system_call, "Layer 'head' .* 'os'"),
        (process, "'Popen' of 'subprocess'"),
        (torch_module, "Layer 'head' .* TorchModuleWrapper"),
    ):
        path = edited(tmp_path / "good.keras", tmp_path / f"{edit.__name__}.keras", edit)
        with pytest.raises(UnsupportedModelError, match=text):
            load_model(path)
    assert not marker.exists()


def test_unknown_layers_are_named_and_registered_ones_load(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    @keras.saving.register_keras_serializable("loader_tests")
    class Doubling(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    model = keras.Sequential([keras.Input((4,)), Doubling(name="twice")])
    model.save(tmp_path / "custom.keras")
    assert first_output(tmp_path / "custom.keras").tolist() == [[2, 2, 2, 2]]
    code = f"""
from edgecompress.converters.loaders import load_model
from edgecompress.core.errors import UnsupportedModelError
try:
    load_model({str(tmp_path / "custom.keras")!r})
except UnsupportedModelError as error:
    assert "'twice'" in str(error) and "Doubling" in str(error), error
else:
    raise SystemExit("loaded")
"""
    done = run_python(["-c", code])
    assert done.returncode == 0, done.stderr


def test_saved_models_that_reach_outside_are_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 2), tf.float32)])
        def __call__(self, x: Any) -> Any:
            tf.io.write_file(str(tmp_path / "executed"), "x")
            return {"y": x}

    writer = Writer()
    tf.saved_model.save(writer, str(tmp_path / "writer"), signatures=writer.__call__)
    assert "WriteFile" in refusal(tmp_path / "writer", UnsupportedModelError)
    tf.saved_model.save(tf.Module(), str(tmp_path / "nothing"))
    assert "no signature" in refusal(tmp_path / "nothing", UnsupportedModelError)
    assert not (tmp_path / "executed").exists()


def test_models_without_inputs_are_refused() -> None:
    class Hidden(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    for model in (Hidden(name="hidden"), keras.Sequential([keras.layers.Dense(2)], name="unbuilt")):
        with pytest.raises(UnsupportedModelError, match="no known inputs"):
            wrap(model)
    with pytest.raises(UnsupportedModelError, match="builtins.int"):
        wrap(3)


def test_data_that_do_not_fit_are_one_error() -> None:
    with pytest.raises(UnsupportedModelError, match="'tiny' fails on the given data"):
        wrap(tiny()).predict([np.ones((1, 8, 8, 5), np.float32)])


def _stateful() -> keras.Model:
    source = keras.Input(batch_shape=(1, 5, 6))
    return keras.Model(source, keras.layers.LSTM(4, stateful=True, name="memory")(source))


def _quantized() -> keras.Model:
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of layers that it leaves alone.
        model.quantize("int8")
    return model


def _with_code() -> keras.Model:
    source = keras.Input((6,))
    return keras.Model(source, keras.layers.Lambda(lambda x: x * 2, name="twice")(source))


def _with_wrapped_code() -> keras.Model:
    source = keras.Input((4, 6))
    wrapped = keras.layers.TimeDistributed(keras.layers.Lambda(lambda x: x * 2))
    return keras.Model(source, wrapped(source))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_with_code, "'twice'.* is a Lambda layer, whose Python code is not converted"),
        (_with_wrapped_code, "is a Lambda layer"),
        (_stateful, "'memory'.* is stateful: .*Build it with stateful=False"),
        (_quantized, "was quantized by Keras .*Export the float model"),
    ],
)
def test_layers_that_cannot_be_converted_are_named(
    make: Callable[[], keras.Model], text: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        ec.export(make(), ["pixel-4"], output=tmp_path / "build")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "build").exists()


class TestPredict:
    """Much data runs through a graph in small batches, little data layer by layer."""

    def test_the_graph_computes_what_the_layers_compute(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = wrap(tiny())
        shape = (7, *loaded.inputs[0].shape)
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        (layered,) = loaded.predict([x])
        monkeypatch.setattr(loaders, "_BATCH_ELEMENTS", 2 * x[0].size)
        batches = []
        traced = loaded._graph
        assert traced is not None

        def counted(tensors: Any) -> Any:
            batches.append(len(tensors[0]))
            return traced(tensors)

        loaded.__dict__["_graph"] = counted
        (outputs,) = loaded.predict([x])
        assert batches == [2, 2, 2, 1]
        np.testing.assert_allclose(outputs, layered, rtol=1e-5, atol=1e-6)

    def test_a_model_that_cannot_be_traced_runs_layer_by_layer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Eager(keras.layers.Layer):
            def compute_output_shape(self, shape: Any) -> Any:
                return shape

            def call(self, x: Any) -> Any:
                return x * float(np.asarray(x).max())

        inputs = keras.Input((4,))
        loaded = wrap(keras.Model(inputs, Eager()(inputs)))
        x = np.arange(12, dtype="float32").reshape(3, 4)
        monkeypatch.setattr(loaders, "_BATCH_ELEMENTS", 4)
        assert loaded._graph is None
        np.testing.assert_allclose(loaded.predict([x])[0], x * x.max(axis=1, keepdims=True))
