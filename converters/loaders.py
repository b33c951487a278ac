"""Loading trained models: Keras 3 and Keras 2 files, SavedModels, in-memory Keras models.

A model file is untrusted data. Its content is compared with lists of what is known to compute only
on tensors (`configurations`, `hdf5_files`, `saved_models`) before any framework sees it, and
anything else is refused by name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from edgecompress.converters import configurations, hdf5_files, keras2_files, saved_models
from edgecompress.converters.quantization_wrappers import use_ranges
from edgecompress.core.blank_weights import blank_weights
from edgecompress.core.errors import (
    ModelFileError,
    UnsupportedModelError,
    one_line,
)
from edgecompress.core.finite import check_weights
from edgecompress.core.freed_memory import keep_imported, kept_freed
from edgecompress.core.handover import leave_unread
from edgecompress.core.keras_graph import walk_layers
from edgecompress.core.learnt_ranges import settled_record, valid_record
from edgecompress.core.model_copy import in_float32
from edgecompress.core.reading import (
    check_keras_archive,
    open_archive,
    open_file,
    read_bytes,
    sha256_of,
)
from edgecompress.core.record import CompressionRecord, read_record, record_of
from edgecompress.core.structured import parse_json
from edgecompress.core.suppress_output import suppress_output

Flavour = Literal["keras3", "tf_keras", "saved_model"]

_BATCH = 32
# Elements of a batch's inputs; intermediate results take a multiple of them.
_BATCH_ELEMENTS = 1 << 19
_WEIGHTS = "model.weights.h5"
_MEMBERS = frozenset({"config.json", "metadata.json", _WEIGHTS})
_DAMAGED = "Export the weights of an epoch before training diverged."


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: The input layer's name.
        shape: Dimensions without the batch; None for one that is not fixed.
        dtype: `float32`, `int32`, ...
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready to convert.

    Attributes:
        model: The Keras 3 model, the tf_keras model, or the SavedModel's signature.
        flavour: Which of these: `keras3`, `tf_keras` or `saved_model`.
        name: Name for files made from it: the file's stem, or the model's own name.
        inputs: Its inputs by position.
        path: The file it was read from; None for a model in memory.
        sha256: Of the file's bytes (for a folder, of its files in order); "" for one in memory.
        record: What training did to it; None if nothing is known.
        notes: Deviations from a plain load, one sentence each.
    """

    model: Any = field(repr=False)
    flavour: Flavour
    name: str
    inputs: tuple[InputSpec, ...]
    path: Path | None = None
    sha256: str = ""
    record: CompressionRecord | None = None
    notes: tuple[str, ...] = ()

    def call(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns the outputs, by position, of one inference-mode call on tensors."""
        import tensorflow as tf

        if self.flavour == "saved_model":
            names = [spec.name for spec in self.inputs]
            outputs = self.model(**dict(zip(names, tensors, strict=True)))
        else:
            # Inputs may be one tensor, a list or a dict, as in `model.input`. A Sequential has none
            # before it is called, and always takes one tensor.
            structure = getattr(self.model, "input", None)
            argument = (
                tensors[0]
                if structure is None
                else tf.nest.pack_sequence_as(structure, list(tensors))
            )
            outputs = self.model(argument, training=False)
        return list(tf.nest.flatten(outputs))

    def predict(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs, by position, for arrays whose first axis is the sample.

        Much data runs through a compiled graph in batches of bounded size: layer by layer, every
        intermediate result would be kept until a batch ends.

        Args:
            inputs: One array for each input, `(samples, ...)`, in the input's dtype.

        Raises:
            UnsupportedModelError: the model itself fails on such data.
        """
        import tensorflow as tf

        parts: list[list[np.ndarray]] = []
        per_sample = max(1, sum(int(np.prod(x.shape[1:])) for x in inputs))
        batch = min(max(_BATCH_ELEMENTS // per_sample, 1), _BATCH)
        try:
            # Tracing the model costs as much as some layer-by-layer calls.
            much = len(inputs[0]) * per_sample > 2 * _BATCH_ELEMENTS
            with suppress_output(), kept_freed() if much else contextlib.nullcontext():
                compute = self._graph if much and self._graph is not None else self.call
                for start in range(0, len(inputs[0]), batch):
                    given = [tf.convert_to_tensor(x[start : start + batch]) for x in inputs]
                    parts.append([np.asarray(y) for y in compute(given)])
                    if much:
                        leave_unread()
        except Exception as error:
            raise UnsupportedModelError(
                f"Model {self.name!r} fails on the given data: {one_line(error)}"
            ) from error
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    @functools.cached_property
    def _graph(self) -> Callable[[Sequence[Any]], list[Any]] | None:
        """`call` as a graph for any batch size; None for a model that cannot be traced so."""
        import tensorflow as tf

        signature = [[tf.TensorSpec((None, *spec.shape), spec.dtype) for spec in self.inputs]]
        function = tf.function(self.call, input_signature=signature)
        # A layer of the user's own may raise anything, and may do so only for an open batch.
        try:
            function.get_concrete_function()
        except Exception:
            return None
        return cast("Callable[[Sequence[Any]], list[Any]]", function)


def wrap(model: Any) -> LoadedModel:
    """Returns a Keras model in memory as a LoadedModel.

    Args:
        model: A Keras 3 or tf_keras model with known input shapes; a LoadedModel is passed on.

    Raises:
        UnsupportedModelError: it is not a Keras model, has no known inputs, or Keras does not run
            on the TensorFlow backend.
        NotFiniteError: a weight is NaN or infinite.
    """
    if isinstance(model, LoadedModel):
        return model
    module = sys.modules.get("tf_keras")
    if module is not None and isinstance(model, module.Model):
        _refuse_wrappers(model)
        inputs = _keras_inputs(model)
        check_weights(model, _DAMAGED)
        return LoadedModel(model, "tf_keras", model.name, inputs)
    import keras

    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            f"Expected a Keras model, got {type(model).__module__}.{type(model).__name__}."
        )
    if keras.backend.backend() != "tensorflow":
        raise UnsupportedModelError(
            f"Model {model.name!r} runs on Keras's {keras.backend.backend()} backend. Save it and "
            "export the file with KERAS_BACKEND=tensorflow."
        )
    record = valid_record(model, settled_record(model))
    inputs = _keras_inputs(model)
    check_weights(model, _DAMAGED)
    model, notes = _full_precision(model)
    return LoadedModel(model, "keras3", model.name, inputs, record=record, notes=notes)


def refuse_unconvertible(loaded: LoadedModel) -> None:
    """Refuses Keras models that no converter can handle, naming the offending layer.

    Raises:
        UnsupportedModelError: a layer is a Lambda, keeps its state between calls, or was quantized
            by Keras itself.
    """
    if loaded.flavour != "keras3":
        return
    import keras

    for layer in _with_wrapped(walk_layers(loaded.model)):
        named = f"Layer {layer.name!r} of model {loaded.model.name!r}"
        if isinstance(layer, keras.layers.Lambda):
            raise UnsupportedModelError(
                f"{named} is a Lambda layer, whose Python code is not converted. Use keras.ops in "
                "a functional model, or ordinary layers."
            )
        if getattr(layer, "stateful", False):
            raise UnsupportedModelError(
                f"{named} is stateful: it keeps its state between calls, which the converter "
                "cannot write. Build it with stateful=False, or make the state an input and "
                "an output."
            )
        if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
            raise UnsupportedModelError(
                f"{named} was quantized by Keras ({layer.dtype_policy.name}). Export the float "
                "model from before model.quantize(); the export quantizes it."
            )


def _with_wrapped(layers: Iterator[Any]) -> Iterator[Any]:
    """Yields layers, and the layers that they wrap (TimeDistributed, Bidirectional)."""
    for layer in layers:
        while layer is not None:
            yield layer
            layer = getattr(layer, "layer", None)


def _refuse_wrappers(model: Any) -> None:
    """Refuses a Keras 2 model in memory that still has its training wrappers."""
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer).__name__
        if kind in configurations.QAT_WRAPPERS:
            raise UnsupportedModelError(
                f"Layer {layer.name!r} of model {model.name!r} is a quantization wrapper ({kind}) "
                f"of tensorflow-model-optimization. {configurations.UNDO_QAT}"
            )
        if kind in configurations.PRUNING_WRAPPERS:
            strip = "sparsity.keras.strip_pruning"
            if kind != "PruneLowMagnitude":
                strip = "clustering.keras.strip_clustering"
            raise UnsupportedModelError(
                f"Layer {layer.name!r} of model {model.name!r} is a {kind} wrapper of "
                f"tensorflow-model-optimization. Pass tfmot.{strip}(model)."
            )


def _full_precision(model: Any) -> tuple[Any, tuple[str, ...]]:
    """Returns a Keras 3 model in float32: the converter has no half-precision operators."""
    full = in_float32(model)
    if full is model:
        return model, ()
    return full, (
        f"Model {model.name!r} computes in half precision; it is exported, and compared, with the "
        "same weights in float32.",
    )


def _keras_inputs(model: Any) -> tuple[InputSpec, ...]:
    # Subclassed models have no `inputs`; an unbuilt Sequential raises on access.
    try:
        tensors = model.inputs
    except (AttributeError, ValueError):
        tensors = None
    if not tensors:
        raise UnsupportedModelError(
            f"Model {model.name!r} ({type(model).__name__}) has no known inputs: it is subclassed "
            "or not built. Build it with keras.Sequential or the functional API, starting from "
            "keras.Input(shape)."
        )
    return tuple(
        InputSpec(_input_name(tensor.name, position), tuple(tensor.shape[1:]), _dtype(tensor.dtype))
        for position, tensor in enumerate(tensors)
    )


def _input_name(name: str, position: int) -> str:
    # Keras numbers unnamed inputs process-wide; such a name is meaningless and varies.
    return f"input_{position}" if name.startswith("keras_tensor") else name.split(":")[0]


def _dtype(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype))


def load_model(path: Path | str) -> LoadedModel:
    """Loads a trained model from a file or folder, without running code from it.

    Keras 2 files are rebuilt as plain Keras 3 models if every layer exists there, checked against
    tf_keras on one random input; otherwise they stay tf_keras models. Pruning, clustering and
    quantization wrappers of tensorflow-model-optimization are stripped in a separate process; what
    quantization wrappers have learnt becomes the model's record.

    Args:
        path: A `.keras` file, an HDF5 file (`.h5`, `.hdf5`) holding a whole model, or a SavedModel
            folder.

    Returns:
        The model with its compression record, if there is one next to the file.

    Raises:
        ModelFileError: the path is missing, or the file is damaged, not a model, or only weights.
        UnsupportedModelError: the model holds code (Lambda, ...), a class that is not registered,
            or quantization wrappers.
        NotFiniteError: a weight is NaN or infinite.

    Example:
        >>> load_model("model.keras").inputs  # doctest: +SKIP
        (InputSpec(name='image', shape=(96, 96, 3), dtype='float32'),)
    """
    path = Path(path)
    if path.is_dir():
        return _load_saved_model(path)
    with open_file(path) as file:
        head = file.read(8)
    if head[4:8] == b"TFL3":
        raise ModelFileError(
            f"{path} is a .tflite file, already converted. Give the Keras model it was made from."
        )
    if head.startswith(b"PK\x03\x04"):
        read, suffixes = _load_archive, [".keras"]
    elif head == b"\x89HDF\r\n\x1a\n":
        read, suffixes = _load_hdf5, [".h5", ".hdf5"]
    else:
        raise ModelFileError(
            f"{path} is not a Keras model: a .keras file is a zip archive and a .h5 file is HDF5, "
            f"but this one starts with {head!r}."
        )
    if path.suffix not in suffixes:
        if read is _load_archive:
            # Samples in an .npz file are an archive, too.
            check_keras_archive(path)
        raise ModelFileError(
            f"{path} holds a {suffixes[0]} model under another suffix. Rename it to "
            f"{path.with_suffix(suffixes[0]).name}."
        )
    record, reason = read_record(path)
    model, flavour, notes = read(path)
    if flavour == "keras3":
        model, more = _full_precision(model)
        notes = (*notes, *more)
    if reason is not None:
        notes = (*notes, reason)
    inputs = _keras_inputs(model)
    check_weights(model, _DAMAGED)
    if record is None and flavour == "keras3" and record_of(model).steps:
        record = record_of(model)
    if record is not None:
        record = valid_record(model, record)
    return LoadedModel(
        model, flavour, path.stem, inputs, path, sha256_of(path), record,
        notes,
    )  # fmt: skip


_Loaded = tuple[Any, Flavour, tuple[str, ...]]


def check_archive(path: Path) -> tuple[Any, bool]:
    """Returns the configuration of a .keras file, fully checked before a framework sees it.

    Args:
        path: The file.

    Returns:
        The configuration as JSON, and whether Keras 2 made the file.

    Raises:
        ModelFileError: the file is damaged or hostile.
        UnsupportedModelError: it names something not known to compute only on tensors.
    """
    config, meta = check_keras_archive(path)
    with tempfile.TemporaryDirectory() as folder:
        _check_members(path, Path(folder))
    version = meta.get("keras_version", "3") if isinstance(meta, dict) else "3"
    legacy = str(version).startswith("2")
    configurations.check(config, path, legacy)
    return config, legacy


def _load_archive(path: Path) -> _Loaded:
    config, legacy = check_archive(path)
    if not legacy:
        return _load_keras3(path, path), "keras3", ()
    with tempfile.TemporaryDirectory() as folder:
        # All Keras 2 files go through HDF5, whose configuration can be adapted.
        converted = Path(folder) / "model.h5"
        if _is_wrapped(config):
            return _load_wrapped(path, converted)
        try:
            with suppress_output():
                keras2_files.tf_keras().models.load_model(path, compile=False).save(converted)
        except Exception as error:
            raise _load_error(path, error) from error
        return _load_legacy(converted, path)


def _check_members(path: Path, folder: Path) -> None:
    """Refuses members that Keras does not write, and weights stored elsewhere."""
    with open_archive(path) as archive:
        for name in archive.names:
            if name not in _MEMBERS and not name.startswith("assets/"):
                raise ModelFileError(
                    f"{path} is refused: {name} is not part of a Keras model. Save it with "
                    "model.save()."
                )
        if _WEIGHTS in archive.names:
            weights = folder / _WEIGHTS
            archive.extract(_WEIGHTS, weights)
            hdf5_files.check(weights, path)
            weights.unlink()


def check_hdf5(path: Path) -> tuple[Any, bool]:
    """Returns the configuration of an .h5 file, fully checked, like `check_archive`."""
    import h5py

    hdf5_files.check(path, path)
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            version = file.attrs.get("keras_version", "2")
    # Damage surfaces as any of many exceptions of HDF5.
    except Exception as error:
        raise ModelFileError(
            f"{path} is truncated or damaged ({one_line(error)}). Save or download it again."
        ) from error
    if not isinstance(text, (str, bytes)):
        raise ModelFileError(
            f"{path} holds weights but no layers. Save the whole model with "
            "model.save('model.keras')."
        )
    config = parse_json(text, f"{path}: model_config")
    version = version.decode() if isinstance(version, bytes) else str(version)
    legacy = version.startswith("2")
    configurations.check(config, path, legacy)
    return config, legacy


def _load_hdf5(path: Path) -> _Loaded:
    config, legacy = check_hdf5(path)
    if not legacy:
        return _load_keras3(path, path), "keras3", ()
    if not _is_wrapped(config):
        return _load_legacy(path, path)
    with tempfile.TemporaryDirectory() as folder:
        return _load_wrapped(path, Path(folder) / "model.h5")


def _load_wrapped(path: Path, target: Path) -> _Loaded:
    """Loads a Keras 2 file with training wrappers by way of a file without them."""
    learnt = keras2_files.strip(path, target, path)
    model, flavour, notes = _load_legacy(target, path, _stripped(path))
    if flavour == "keras3" and learnt.outputs:
        notes += use_ranges(
            model,
            learnt,
            path,
            lambda rounded: wrap(rounded).predict(learnt.inputs),
        )
    return model, flavour, notes


def _is_wrapped(config: Any) -> bool:
    names = {name.split(">")[-1] for _, name in configurations.classes(config)}
    return bool(names & (configurations.PRUNING_WRAPPERS | configurations.QAT_WRAPPERS))


def _stripped(path: Path) -> tuple[str, ...]:
    return (f"Wrappers of tensorflow-model-optimization in {path.name} were stripped.",)


def _load_keras3(path: Path, shown: Path) -> Any:
    import keras

    keep_imported()
    try:
        with suppress_output(), blank_weights():
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise _load_error(shown, error) from error


def _load_error(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path} could not be loaded: {one_line(error)}")


def _load_legacy(path: Path, shown: Path, notes: tuple[str, ...] = ()) -> _Loaded:
    """Loads a Keras 2 HDF5 file: as a Keras 3 model if that computes the same, else tf_keras."""
    with tempfile.TemporaryDirectory() as folder:
        legacy = None
        try:
            with suppress_output():
                legacy = keras2_files.tf_keras().models.load_model(path, compile=False)
        except Exception as error:
            reason = _load_error(shown, error)
        try:
            adapted = keras2_files.adapt(path, Path(folder) / "adapted.h5")
            model = _load_keras3(adapted, shown)
            if legacy is not None:
                _refuse_difference(model, legacy)
        except (ModelFileError, UnsupportedModelError) as error:
            if legacy is None:
                raise reason from error
            text = str(error).removeprefix(f"{shown} could not be loaded: ")
            note = (
                f"{shown.name} stays a Keras 2 model, without learnt ranges and per-layer results: "
                f"{one_line(text, 160)}"
            )
            return legacy, "tf_keras", (*notes, note)
    return model, "keras3", notes


def _refuse_difference(model: Any, legacy: Any) -> None:
    rebuilt, original = wrap(model), wrap(legacy)
    inputs = example_inputs(rebuilt.inputs)
    pairs = zip(rebuilt.predict(inputs), original.predict(inputs), strict=True)
    if not all(np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs):
        raise UnsupportedModelError("rebuilt in Keras 3 it computes different outputs.")


def example_inputs(
    inputs: Sequence[InputSpec], samples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Returns random inputs for a model: normal for floating dtypes, 0 or 1 for the others.

    Args:
        inputs: The model's inputs; an open dimension becomes 1.
        samples: Size of the first axis. Defaults to 1.
        seed: Of the generator. Defaults to 0.
    """
    random = np.random.default_rng(seed)
    arrays = []
    for spec in inputs:
        shape = (samples, *(size or 1 for size in spec.shape))
        if spec.dtype.startswith(("float", "bfloat")):
            arrays.append(random.standard_normal(shape).astype(spec.dtype))
        else:
            arrays.append(random.integers(0, 2, shape).astype(spec.dtype))
    return arrays


def _load_saved_model(path: Path) -> LoadedModel:
    # tf.saved_model.load runs initializers, so the graph is checked first.
    saved_models.check(path)
    import tensorflow as tf

    try:
        with suppress_output():
            loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise _load_error(path, error) from error
    signatures = dict(getattr(loaded, "signatures", {}))
    if not signatures:
        raise UnsupportedModelError(
            f"{path} has no signature to run. Write it with model.export() or tf.saved_model.save("
            "model, path, signatures=...)."
        )
    key = "serving_default" if "serving_default" in signatures else sorted(signatures)[0]
    signature = signatures[key]
    # The signature by itself does not keep the variables alive.
    signature._edgecompress_owner = loaded
    arguments = signature.structured_input_signature[1]
    inputs = []
    for name in sorted(arguments):
        spec = arguments[name]
        if spec.shape.rank is None or spec.shape.rank == 0:
            raise UnsupportedModelError(
                f"Input {name!r} of {path} has no known shape. Export it with an input signature."
            )
        inputs.append(InputSpec(name, tuple(spec.shape.as_list()[1:]), spec.dtype.name))
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0" + read_bytes(file))
    notes = (
        f"{path.name} is a SavedModel: its layers are not visible, so there are no learnt ranges "
        "and no per-layer results.",
    )
    return LoadedModel(
        signature, "saved_model", path.resolve().name, tuple(inputs), path, digest.hexdigest(),
        None, notes,
    )  # fmt: skip
