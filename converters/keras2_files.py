"""Keras 2 files: read as they are, adapted to Keras 3, and stripped of training wrappers."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters import configurations, quantization_wrappers
from edgecompress.core import isolation
from edgecompress.core.errors import EdgeCompressError, ModelFileError, one_line
from edgecompress.core.reading import read_bytes
from edgecompress.core.suppress_output import suppress_output

# Arguments that Keras 2 wrote and Keras 3 refuses, with the value at which they have no effect on
# inference (None: never any). Layer class -> argument -> value.
_GROUPS = {"groups": 1}
_SEPARABLE: dict[str, Any] = {
    **_GROUPS, "kernel_initializer": None, "kernel_regularizer": None, "kernel_constraint": None,
}  # fmt: skip
_TIME_MAJOR = {"time_major": False}
_DROPPED: dict[str, dict[str, Any]] = {
    "DepthwiseConv1D": _GROUPS, "DepthwiseConv2D": _GROUPS, "Conv1DTranspose": _GROUPS,
    "Conv2DTranspose": _GROUPS, "Conv3DTranspose": _GROUPS, "SeparableConv1D": _SEPARABLE,
    "SeparableConv2D": _SEPARABLE, "LSTM": _TIME_MAJOR, "GRU": _TIME_MAJOR,
    "SimpleRNN": _TIME_MAJOR, "RNN": _TIME_MAJOR, "ConvLSTM2D": _TIME_MAJOR,
}  # fmt: skip


@functools.cache
def tf_keras() -> Any:
    """Imports tf_keras alongside Keras 3; nothing process-wide changes."""
    with suppress_output():
        import tf_keras as module

    return module


def adapt(path: Path, target: Path) -> Path:
    """Copies a Keras 2 HDF5 file, without arguments that Keras 3 no longer has."""
    import h5py

    target.write_bytes(read_bytes(path))
    try:
        with h5py.File(target, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            for node, name in configurations.classes(config):
                arguments = node.get("config")
                if not isinstance(arguments, dict):
                    continue
                for key, neutral in _DROPPED.get(name, {}).items():
                    if key in arguments and (neutral is None or arguments[key] == neutral):
                        del arguments[key]
            file.attrs["model_config"] = json.dumps(config)
    # A file may be sound enough to read but too damaged to write.
    except (OSError, RuntimeError, KeyError) as error:
        raise ModelFileError(f"it cannot be adapted: {one_line(error)}") from error
    return target


def strip(path: Path, target: Path, shown: Path) -> quantization_wrappers.Learnt:
    """Writes a Keras 2 file without its pruning, clustering and quantization wrappers.

    Args:
        path: The file.
        target: Where to write.
        shown: The file's name in messages.

    Raises:
        ModelFileError: it cannot be loaded.
    """
    # Importing tensorflow-model-optimization switches tf.keras to Keras 2 for its whole process.
    try:
        answer = isolation.call(
            f"{__name__}:strip_wrappers", {"source": str(path)}, readable=[path]
        )
    except EdgeCompressError as error:
        raise ModelFileError(
            f"{shown} could not be stripped of its training wrappers: {one_line(error)} Save the "
            "model without them: tfmot.sparsity.keras.strip_pruning(model) and "
            "tfmot.clustering.keras.strip_clustering(model)."
        ) from error
    target.write_bytes(answer.files["model.h5"])
    arrays: dict[str, np.ndarray] = {}
    if "example.npz" in answer.files:
        with np.load(io.BytesIO(answer.files["example.npz"]), allow_pickle=False) as file:
            arrays = dict(file)
    return quantization_wrappers.Learnt(
        {tap: (float(low), float(high)) for tap, (low, high) in answer.value["ranges"].items()},
        {name: (int(bits), bool(own)) for name, (bits, own) in answer.value["kernels"].items()},
        *(tuple(v for k, v in arrays.items() if k.startswith(p)) for p in ("x", "y")),
    )


def strip_wrappers(
    source: str, tell: Any = None, gaps: Any = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Strips the training wrappers of a Keras 2 file; to be run in a separate process.

    Args:
        source: File to read.
        tell: Not used, nor is `gaps`.

    Returns:
        `ranges` and `kernels` as in `quantization_wrappers.Learnt`; the stripped model as
        `model.h5` and, if it was quantized, its inputs x0, x1, ... and outputs y0, y1, ... as
        `example.npz`.

    Raises:
        ModelFileError: it cannot be loaded, or its activations do not have 8 bits.
    """
    try:
        with suppress_output():
            import tensorflow_model_optimization as tfmot  # type: ignore[import-untyped]

            pruning, clustering = tfmot.sparsity.keras, tfmot.clustering.keras
            quantization = tfmot.quantization.keras
            quantization_wrappers.repair_loading()
            with (
                pruning.prune_scope(),
                clustering.cluster_scope(),
                quantization.quantize_scope(),
            ):
                model = tf_keras().models.load_model(source, compile=False)
            facts: dict[str, Any] = {"ranges": {}, "kernels": {}}
            files = {}
            if any(map(_is_quantized, model.layers)):
                files["example.npz"] = _example(model)
                model, facts = quantization_wrappers.taken_off(model, tf_keras())
            else:
                model = clustering.strip_clustering(pruning.strip_pruning(model))
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / "model.h5"
                model.save(target, include_optimizer=False)
                return facts, {"model.h5": target.read_bytes(), **files}
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"it does not load ({one_line(error)}).") from error


def _is_quantized(layer: Any) -> bool:
    return type(layer).__name__ in configurations.QAT_WRAPPERS


def _example(model: Any) -> bytes:
    """Returns a random sample and the model's outputs for it as a .npz file."""
    random = np.random.default_rng(0)
    inputs = [
        random.standard_normal([1, *(size or 1 for size in tensor.shape[1:])]).astype("f4")
        for tensor in model.inputs
    ]
    outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        **{f"x{i}": value for i, value in enumerate(inputs)},
        **{f"y{i}": np.asarray(value) for i, value in enumerate(outputs)},
    )
    return buffer.getvalue()
