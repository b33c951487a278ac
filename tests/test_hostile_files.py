"""Model files that attack whoever reads them; each attack is built here, and leaves no trace.

A canary is a file that the attack would change, or whose content it would take away.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgecompress.converters import configurations, hdf5_files, keras_names
from edgecompress.converters.loaders import load_model
from edgecompress.core import reading
from edgecompress.core.errors import EdgeCompressError, ModelFileError, UnsupportedModelError
from edgecompress.core.sandbox import Confinement
from edgecompress.inspection import inspect_isolated

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow

_SECRET = b"the secret of another file, 40 bytes long"[:40]


def refused(path: Path, kind: type[EdgeCompressError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        load_model(path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700
    for part in (str(path.name), *parts):
        assert part in text, text


# --- Keras 2 files ------------------------------------------------------------------------------


def legacy_file(path: Path, *layers: dict[str, Any], outputs: str = "x") -> Path:
    """Writes a Keras 2 file by hand: an input `x` of four numbers, then these layers."""
    config = {
        "class_name": "Functional",
        "config": {
            "name": "attack",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"batch_input_shape": [None, 4], "dtype": "float32", "name": "x"},
                    "name": "x",
                    "inbound_nodes": [],
                },
                *({"name": layer["config"]["name"], **layer} for layer in layers),
            ],
            "input_layers": [["x", 0, 0]],
            "output_layers": [[outputs, 0, 0]],
        },
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps(config)
        weights = file.create_group("model_weights")
        names = ["x", *(layer["config"]["name"] for layer in layers)]
        weights.attrs["layer_names"] = [name.encode() for name in names]
        weights.attrs["keras_version"] = b"2.15.0"
        weights.attrs["backend"] = b"tensorflow"
        for name in names:
            weights.create_group(name).attrs["weight_names"] = []
    return path


def call(function: str, *constants: Any, **more: Any) -> dict[str, Any]:
    """Returns a layer that calls a function of TensorFlow with constants, while it is loaded."""
    first, *rest = constants
    names = {f"argument_{at}": value for at, value in enumerate(rest)}
    return {
        "class_name": "TFOpLambda",
        "config": {"name": "attack", "function": function},
        "inbound_nodes": [["_CONSTANT_VALUE", -1, first, {**names, **more}]],
    }


def test_a_hand_made_keras_2_file_loads(tmp_path: Path) -> None:
    """The way that the attacks take is open."""
    double = {
        "class_name": "TFOpLambda",
        "config": {"name": "double", "function": "math.multiply"},
        "inbound_nodes": [["x", 0, 0, {"y": 2.0}]],
    }
    loaded = load_model(legacy_file(tmp_path / "good.h5", double, outputs="double"))
    assert loaded.predict([np.ones((1, 4), np.float32)])[0].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize(
    "function",
    ["io.write_file", "io.gfile.rmtree", "compat.v1.gfile.DeleteRecursively", "io.read_file",
     "keras.models.model_from_json", "py_function", "raw_ops.WriteFile", "print",
     "keras.utils.get_file", "saved_model.load", "load_op_library", "math.__dict__", "while_loop"],
)  # fmt: skip
def test_functions_that_are_no_arithmetic_are_never_called(tmp_path: Path, function: str) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    more = {"contents": "written"} if "write" in function.lower() else {}
    target = canary / "file" if more else canary
    path = legacy_file(tmp_path / "call.h5", call(function, str(target), **more))
    refused(path, UnsupportedModelError, repr(function), "'attack'")
    assert canary.is_dir() and not any(canary.iterdir())


def test_marshalled_code_behind_model_from_json_is_never_run(tmp_path: Path) -> None:
    """CVE-2024-3660, on the way round safe mode that TFOpLambda opens."""
    canary = tmp_path / "canary"
    layer = keras.layers.Lambda(eval(f"lambda x: open({str(canary)!r}, 'w')"), name="code")
    inner = {
        "class_name": "Sequential",
        "config": {"name": "s", "layers": [{"class_name": "Lambda", "config": layer.get_config()}]},
    }
    path = legacy_file(
        tmp_path / "json.h5", call("keras.models.model_from_json", json.dumps(inner))
    )
    refused(path, UnsupportedModelError, "model_from_json")
    assert not canary.exists()


@pytest.mark.parametrize(
    "spoof",
    [
        {"class_name": "Lambda"},
        {"class_name": "Lambda", "registered_name": "edgecompress>BinaryDense"},
        {"class_name": "Lambda", "module": "keras.layers",
         "registered_name": "edgecompress>BinaryDense"},
        {"class_name": "Custom>Lambda"},
        {"class_name": "ClassMethod"},
        {"class_name": "InstanceMethod"},
        {"class_name": "TensorFlowOpLayer"},
        {"class_name": "TFSMLayer"},
        {"class_name": "PruneLowMagnitude", "module": "antigravity"},
        {"class_name": "Dense", "module": "os"},
        {"class_name": "Dense", "module": "keras.utils"},
        {"class_name": "TypeSpec"},
        {"class_name": "__typespec__"},
        {"class_name": "__lambda__"},
        {"class_name": "__wrapped__"},
        {"class_name": ["Dense"]},
        {"class_name": "function", "module": "builtins", "config": "eval"},
        {"class_name": "function", "module": "keras.utils", "config": "get_file"},
        {"class_name": "function", "module": "os", "config": "relu"},
        {"class_name": "function", "module": "keras.activations", "config": "relu",
         "registered_name": "get_file"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_names_that_stand_for_something_else(
    tmp_path: Path, spoof: dict[str, Any], kind: str
) -> None:
    """CVE-2025-1550, CVE-2025-8747, CVE-2025-9905, CVE-2025-9906 and their neighbours."""
    node = {"config": {"name": "attack"}, **spoof}
    wrapper = {"class_name": "Activation", "config": {"name": "attack", "activation": node}}
    if kind == "h5":
        path = legacy_file(tmp_path / "spoof.h5", wrapper)
    else:
        path = keras_file(tmp_path / "spoof.keras", wrapper)
    with pytest.raises((UnsupportedModelError, ModelFileError), match="'attack'"):
        load_model(path)


# --- Keras 3 files ------------------------------------------------------------------------------


def keras_file(path: Path, *layers: dict[str, Any], version: str = "3.12.0") -> Path:
    """Writes a Keras 3 file by hand: a Sequential of four inputs with these layers."""
    first = {
        "module": "keras.layers", "class_name": "InputLayer", "registered_name": None,
        "config": {"batch_shape": [None, 4], "dtype": "float32", "name": "x"},
    }  # fmt: skip
    config = {
        "module": "keras", "class_name": "Sequential", "registered_name": None,
        "config": {"name": "attack", "trainable": True, "layers": [first, *layers]},
    }  # fmt: skip
    plain = keras.Sequential([keras.Input((4,), name="x"), keras.layers.ReLU()])
    plain.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps(config).encode()
    members["metadata.json"] = json.dumps({"keras_version": version}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "key"),
    [("StringLookup", "vocabulary"), ("IntegerLookup", "vocabulary"),
     ("TextVectorization", "vocabulary"), ("TextVectorization", "idf_weights")],
)  # fmt: skip
def test_tables_in_other_files_are_never_read(tmp_path: Path, name: str, key: str) -> None:
    """CVE-2025-12058: a vocabulary that is the path or the address of another file."""
    (tmp_path / "secret.txt").write_bytes(_SECRET)
    for place in (str(tmp_path / "secret.txt"), "https://127.0.0.1:9/secret"):
        layer = {
            "module": "keras.layers", "class_name": name, "registered_name": None,
            "config": {"name": "table", key: place},
        }  # fmt: skip
        refused(keras_file(tmp_path / "a.keras", layer), UnsupportedModelError, "'table'", key)
        refused(legacy_file(tmp_path / "a.h5", layer), UnsupportedModelError, "'table'", key)


def test_members_that_keras_does_not_write_are_refused(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "more.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model.weights.npz", b"")
    refused(path, ModelFileError, "model.weights.npz")


def _instance(kind: type, name: str) -> Any:
    """Returns a layer with as few arguments as it takes."""
    layers = keras.layers
    inner = layers.Dense(2)
    special: dict[str, Callable[[], Any]] = {
        "Bidirectional": lambda: kind(layers.LSTM(2)),
        "TimeDistributed": lambda: kind(inner),
        "SpectralNormalization": lambda: kind(inner),
        "RNN": lambda: kind(layers.LSTMCell(2)),
        "StackedRNNCells": lambda: kind([layers.LSTMCell(2)]),
        "Activation": lambda: kind("relu"),
        "InputLayer": lambda: kind((4,)),
        "Reshape": lambda: kind((4,)),
        "Permute": lambda: kind((1,)),
        "Dot": lambda: kind(axes=1),
        "EinsumDense": lambda: kind("ab,bc->ac", output_shape=2),
        "Pipeline": lambda: kind([layers.Rescaling(0.5)]),
        "CategoryEncoding": lambda: kind(3),
        "RandomTranslation": lambda: kind(0.2, 0.2),
        "RandomPosterization": lambda: kind(4),
        "Discretization": lambda: kind(bin_boundaries=[0.0]),
        "Hashing": lambda: kind(3),
        "HashedCrossing": lambda: kind(3),
        "StringLookup": lambda: kind(vocabulary=["a", "b"]),
        "IntegerLookup": lambda: kind(vocabulary=[1, 2]),
        "TextVectorization": lambda: kind(vocabulary=["a", "b"]),
    }
    if name in special:
        return special[name]()
    needed = [
        parameter
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name != "self"
    ]
    values = {"factor": 0.2, "rate": 0.1, "stddev": 0.1, "scale": 0.5, "value_range": (0, 1),
              "pool_size": 2, "size": 2, "output_size": 2, "value": 2, "height_factor": 0.2,
              "padding": 1, "x_factor": 0.1, "radius": 1}  # fmt: skip
    return kind(*(values.get(parameter.name, 2) for parameter in needed))


def _layer_names() -> list[str]:
    found = vars(keras.layers).items()
    return [n for n, o in found if inspect.isclass(o) and issubclass(o, keras.layers.Layer)]


def test_every_layer_of_keras_is_known_or_refused_for_a_reason() -> None:
    """A version of Keras with more layers fails here, until somebody has decided on them."""
    names = set(_layer_names())
    assert names <= keras_names.LAYERS | set(keras_names.REFUSED_LAYERS)
    assert not keras_names.LAYERS & set(keras_names.REFUSED_LAYERS)


@pytest.mark.parametrize("group", range(8))
def test_every_layer_of_keras_is_accepted_as_it_is_saved(group: int) -> None:
    accepted = 0
    for name in sorted(set(_layer_names()) - set(keras_names.REFUSED_LAYERS))[group::8]:
        layer = _instance(getattr(keras.layers, name), name)
        node = keras.saving.serialize_keras_object(layer)
        # Names of the layer and of its class may differ: AvgPool1D is AveragePooling1D.
        configurations.check(json.loads(json.dumps(node)), Path("layer.keras"))
        accepted += 1
    assert accepted > 10


def _own_loss(labels: Any, outputs: Any) -> Any:
    return keras.ops.mean(labels - outputs)


def test_operations_initializers_and_the_like_are_accepted(tmp_path: Path) -> None:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="gelu")], name="in")
    inner.compile("adam", keras.losses.MeanSquaredError(), metrics=["mae"])
    x = keras.Input((4,))
    y = layers.Dense(
        4, kernel_initializer=keras.initializers.HeNormal(seed=1),
        kernel_regularizer=keras.regularizers.L1L2(0.1),
        bias_constraint="non_neg", activation=keras.activations.swish, dtype="mixed_float16",
    )(inner(x))  # fmt: skip
    y = keras.ops.concatenate([keras.ops.relu(y) * 2 + 1, keras.ops.mean(y, -1, True)], -1)
    y = keras.ops.reshape(y[:, 1:], (-1, 2, 2))
    model = keras.Model(x, layers.Flatten()(y))
    model.compile("sgd", _own_loss)  # The code of the training is not loaded.
    model.save(tmp_path / "rich.keras")
    # Keras itself loads no operations from an HDF5 file.
    inner.save(tmp_path / "rich.h5")
    data = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for saved, name in ((model, "rich.keras"), (inner, "rich.h5")):
        found = load_model(tmp_path / name).predict([data])[0]
        np.testing.assert_allclose(found, np.asarray(saved(data)), rtol=2e-2, atol=2e-2)


# --- HDF5 ---------------------------------------------------------------------------------------


def _external_storage(group: h5py.Group, secret: Path) -> None:
    group.create_dataset("kernel", (10,), "f4", external=[(str(secret), 0, 40)])


def _external_link(group: h5py.Group, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["kernel"] = np.frombuffer(_SECRET, "f4")
    group["kernel"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/kernel")


def _soft_link(group: h5py.Group, secret: Path) -> None:
    group["kernel"] = h5py.SoftLink("/elsewhere")


def _virtual(group: h5py.Group, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["kernel"] = np.frombuffer(_SECRET, "f4")
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "kernel", (10,))
    group.create_virtual_dataset("kernel", layout)


def _never_written(group: h5py.Group, secret: Path) -> None:
    group.create_dataset("kernel", (1 << 40,), "f4")


def _zeros_without_end(group: h5py.Group, secret: Path) -> None:
    group.create_dataset("kernel", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


def _plugin(group: h5py.Group, secret: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((10,))
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((10,))
    h5py.h5d.create(group.id, b"kernel", h5py.h5t.IEEE_F32LE, space, plan)


def _many_zeros(group: h5py.Group, secret: Path) -> None:
    """Each dataset inflates no more than gzip can make of zeros, all together 560 MiB."""
    group = group.create_group("kernels")
    for number in range(7):
        made = group.create_dataset(
            f"kernel{number}", (80 << 20,), "i1", chunks=(16 << 20,), compression="gzip"
        )
        made[:] = 0


def _shared_text(group: h5py.Group, secret: Path) -> None:
    group.create_dataset("kernel", (4,), h5py.string_dtype())[:] = "x" * 100


def _records(group: h5py.Group, secret: Path) -> None:
    group["kernel"] = np.zeros(4, [("a", "f4"), ("b", "i2")])


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (_external_storage, "in another file"),
        (_external_link, "link to another place"),
        (_soft_link, "link to another place"),
        (_virtual, "from other datasets"),
        (_never_written, "claims"),
        (_zeros_without_end, "claims"),
        (_plugin, "plugin"),
        (_shared_text, "references or records"),
        (_records, "references or records"),
    ],
)
def test_weights_that_lie_elsewhere_are_refused(
    tmp_path: Path, attack: Callable[[h5py.Group, Path], None], text: str
) -> None:
    _attacked(tmp_path, attack)
    for name in ("a.h5", "a.keras"):
        refused(tmp_path / name, ModelFileError, text, "kernel")


def _attacked(tmp_path: Path, attack: Callable[[h5py.Group, Path], None]) -> None:
    """Writes a.h5 and a.keras, and the attack into both."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(_SECRET)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5, use_bias=False, name="d")])
    model.save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        group = file["model_weights/d"]
        del group[next(iter(group))]
        attack(group.create_group("inside"), secret)

    model.save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "weights.h5").write_bytes(members["model.weights.h5"])
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        attack(file.create_group("inside"), secret)
    members["model.weights.h5"] = (tmp_path / "weights.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_weights_that_inflate_to_gigabytes_together_are_refused(tmp_path: Path) -> None:
    _attacked(tmp_path, _many_zeros)
    for name in ("a.h5", "a.keras"):
        path = tmp_path / name
        assert path.stat().st_size < 2 << 20
        refused(path, ModelFileError, "inflates from", "to 560", "16 times its size")


def test_weights_may_inflate_to_sixteen_times_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second bound, at one that a small file reaches: the bytes of the file itself count."""
    monkeypatch.setattr(reading, "INFLATED_LIMIT", 1 << 10)
    path = tmp_path / "a.h5"
    for times, accepted in ((14, True), (18, False)):
        with h5py.File(path, "w") as file:
            file["noise"] = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
            zeros = np.zeros(times << 20, np.uint8)
            file.create_dataset("zeros", data=zeros, chunks=(1 << 20,), compression="gzip")
        if accepted:
            hdf5_files.check(path, path)
        else:
            with pytest.raises(ModelFileError, match="16 times its size"):
                hdf5_files.check(path, path)


def test_bfloat16_weights_are_no_attack(tmp_path: Path) -> None:
    """HDF5 has no such type: Keras stores opaque bytes."""
    layer = keras.layers.Dense(3, name="d", dtype="bfloat16")
    keras.Sequential([keras.Input((2,)), layer]).save(tmp_path / "half.keras")
    loaded = load_model(tmp_path / "half.keras")
    kept = np.asarray(layer.kernel).astype(np.float32)
    np.testing.assert_array_equal(loaded.model.get_layer("d").kernel.numpy(), kept)


@pytest.mark.parametrize(
    "name", ["mlperf_tiny/ad01.h5", "mlperf_tiny/pretrainedResnet.h5", "real/emotion_model.hdf5"]
)
def test_published_files_are_no_attack(shared: Path, tmp_path: Path, name: str) -> None:
    """Such files pass as they are, and with all of their weights compressed."""
    path = shared / "models" / name
    hdf5_files.check(path, path)
    small = tmp_path / "small.h5"
    with h5py.File(path) as source, h5py.File(small, "w") as target:

        def copy(name: str, found: Any) -> None:
            if isinstance(found, h5py.Dataset):
                more = {"compression": "gzip", "shuffle": True} if found.shape else {}
                target.create_dataset(name, data=found[()], **more)

        source.visititems(copy)
    hdf5_files.check(small, small)


def test_compressed_weights_are_no_attack(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="d")])
    model.save(tmp_path / "plain.h5")
    with (
        h5py.File(tmp_path / "plain.h5") as source,
        h5py.File(tmp_path / "small.h5", "w") as target,
    ):
        target.attrs.update(source.attrs)
        for key in source:
            source.copy(key, target)
        place = "model_weights/d"
        names: list[str] = []
        target[place].visit(names.append)
        for name in names:
            found = target[f"{place}/{name}"]
            if isinstance(found, h5py.Dataset) and found.ndim:
                values = np.zeros(found.shape, found.dtype)
                del target[f"{place}/{name}"]
                target[place].create_dataset(
                    name, data=values, compression="gzip", shuffle=True, fletcher32=True
                )
    loaded = load_model(tmp_path / "small.h5")
    assert not np.any(loaded.model.get_layer("d").kernel.numpy())


# --- SavedModels --------------------------------------------------------------------------------


def _initializer(folder: Path, run: Callable[[], Any]) -> Path:
    """Writes a SavedModel that calls a function while it is loaded."""
    import tensorflow as tf

    # Resources with an initializer are what TensorFlow calls first.
    base = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [2]), -1)

    class Attack(type(base)):  # type: ignore[misc]
        def _initialize(self) -> Any:
            # The table of the model that is saved is initialized, too.
            if tf.inside_function():
                run()
            return super()._initialize()

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = Attack(tf.lookup.KeyValueTensorInitializer([1], [2]), -1)

        @tf.function(input_signature=[tf.TensorSpec((1, 2), tf.int32)])
        def __call__(self, x: Any) -> Any:
            return {"y": self.table.lookup(x)}

    model = Model()
    tf.saved_model.save(model, str(folder), signatures=model.__call__)
    return folder


def test_saved_models_that_act_while_they_are_loaded(tmp_path: Path) -> None:
    import tensorflow as tf

    canary = tmp_path / "canary"
    attacks: dict[str, Callable[[], Any]] = {
        "PrintV2": lambda: tf.raw_ops.PrintV2(
            input=tf.constant("x"), output_stream=f"file://{canary}"
        ),
        "WriteFile": lambda: tf.io.write_file(str(canary), "x"),
        "ReadFile": lambda: tf.io.read_file("/etc/hostname"),
        "SaveV2": lambda: tf.raw_ops.SaveV2(
            prefix=str(canary), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.ones(2)]
        ),
        "RestoreV2": lambda: tf.raw_ops.RestoreV2(
            prefix=str(canary), tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
        ),
        "EagerPyFunc": lambda: tf.py_function(lambda: None, [], []),
        "MatchingFiles": lambda: tf.io.matching_files("/*"),
    }
    for number, (operator, run) in enumerate(attacks.items()):
        folder = _initializer(tmp_path / f"saved{number}", run)
        refused(folder, UnsupportedModelError, operator)
        assert not list(tmp_path.glob("canary*")), operator


def test_a_saved_model_with_a_table_in_it_loads(tmp_path: Path) -> None:
    loaded = load_model(_initializer(tmp_path / "table", lambda: None))
    assert loaded.predict([np.array([[1, 7]], np.int32)])[0].tolist() == [[2, -1]]


def test_links_in_a_saved_model_are_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
    model.export(tmp_path / "saved", verbose=False)
    (data,) = (tmp_path / "saved" / "variables").glob("*.data-*")
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    refused(tmp_path / "saved", ModelFileError, f"variables/{data.name}")


def test_saved_models_of_tensorflow_1_are_refused(tmp_path: Path) -> None:
    """Loading one runs operators of its graph with file names from its graph."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
    model.export(tmp_path / "saved", verbose=False)
    graph = tmp_path / "saved" / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    message.meta_graphs[0].ClearField("object_graph_def")
    graph.write_bytes(message.SerializeToString())
    refused(tmp_path / "saved", UnsupportedModelError, "TensorFlow 1")


# --- through the command line -------------------------------------------------------------------


def _run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs the installed command in a folder, with all its processes."""
    program = Path(sys.executable).with_name("edgecompress")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_an_attack_on_the_command_is_one_line(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    legacy_file(tmp_path / "call.h5", call("io.write_file", str(canary), contents="written"))
    code, out, err = _run(tmp_path, "export", "call.h5", "-t", "host", "-o", "out", "-q")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("edgecompress: Layer 'attack' of call.h5 calls the TensorFlow function")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.h5"]


def test_layers_of_ones_own_need_their_module_by_name(tmp_path: Path) -> None:
    (tmp_path / "own_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('hostile_tests')\n"
        "class Doubling(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return x * 2\n"
    )
    layer = {
        "module": "own_layers", "class_name": "Doubling", "config": {"name": "twice"},
        "registered_name": "hostile_tests>Doubling",
    }  # fmt: skip
    keras_file(tmp_path / "custom.keras", layer)
    code, out, err = _run(tmp_path, "inspect", "custom.keras", "-q")
    assert (code, out, err.count("\n")) == (1, "", 1)
    for part in ("Layer 'twice' of custom.keras", "'Doubling' of 'own_layers'", "--import MODULE",
                 "import_modules=", "pass the loaded model"):  # fmt: skip
        assert part in err
    code, out, err = _run(tmp_path, "inspect", "custom.keras", "-q", "--import", "own_layers")
    assert (code, err) == (0, "") and "twice" in out
    code, _, err = _run(tmp_path, "inspect", "custom.keras", "-q", "--import", "own_layer")
    assert code == 2 and "`--import` must be a module that can be imported" in err
    # A configuration is data, and names no code.
    (tmp_path / "c.toml").write_text('import = ["own_layers"]')
    code, _, err = _run(tmp_path, "export", "custom.keras", "-t", "host", "--config", "c.toml")
    assert code == 2 and "--config key in c.toml" in err


def test_what_protects_is_said_where_it_is_missing(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]).save(tmp_path / "a.keras")
    (gap,) = Confinement(files="this Linux kernel has no Landlock").gaps
    value, files = inspect_isolated(str(tmp_path / "a.keras"), False, gaps=(gap,))
    assert gap in value["notes"] and files == {}
