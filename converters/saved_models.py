"""What a SavedModel may contain, before TensorFlow loads it and runs its initializers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgecompress.converters.configurations import UNDO_QAT
from edgecompress.converters.saved_model_operators import OPERATORS, SAVERS
from edgecompress.core.errors import ModelFileError, UnsupportedModelError
from edgecompress.core.reading import read_bytes

# Variable names of tensorflow-model-optimization's wrappers.
_PRUNED = re.compile(rb"prune_low_magnitude_|PruneLowMagnitude")
_CLUSTERED = re.compile(rb"ClusterWeights|cluster_centroids_")
_QUANTIZED = re.compile(rb"QuantizeWrapper|quantize_layer/quantize_layer_min")


def check(folder: Path) -> None:
    """Refuses a SavedModel that does more than compute on its own tensors and variables.

    Args:
        folder: The SavedModel.

    Raises:
        ModelFileError: it has no graph, a damaged one, or a link in it.
        UnsupportedModelError: an operator is not on the list, or it was written by TensorFlow 1, or
            with wrappers of tensorflow-model-optimization.
    """
    graph = folder / "saved_model.pb"
    if not graph.is_file():
        raise ModelFileError(
            f"{folder} is a folder without saved_model.pb, so not a SavedModel. Write one with "
            "model.export(), or give a .keras or .h5 file."
        )
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ModelFileError(
                f"{folder} is refused: {path.relative_to(folder)} is not a regular file. Copy the "
                "SavedModel with its files."
            )
    data = read_bytes(graph)
    meta = _meta_graph(data, graph)
    _refuse_wrappers(folder, data)
    library = {function.signature.name: function for function in meta.graph_def.library.function}
    _refuse_operators(folder, meta.graph_def.node, OPERATORS | SAVERS)
    for name in sorted(_run(meta, library)):
        _refuse_operators(folder, library[name].node_def, OPERATORS)


def _meta_graph(data: bytes, graph: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(data)
    # Parsers of different protobuf versions raise different types.
    except Exception as error:
        text = " ".join(str(error).split())[:240]
        raise ModelFileError(f"{graph} is truncated or damaged ({text}).") from error
    # TensorFlow runs the restoring operators of such graphs, with file names from the graph.
    if len(message.meta_graphs) != 1 or not message.meta_graphs[0].HasField("object_graph_def"):
        raise UnsupportedModelError(
            f"{graph.parent} is a SavedModel of TensorFlow 1, or a damaged one. Load it in "
            "TensorFlow 2 and write it with tf.saved_model.save(model, path, signatures=...)."
        )
    return message.meta_graphs[0]


def _run(meta: Any, library: dict[str, Any]) -> set[str]:
    """Returns the functions that loading and calling the model can run.

    The others save and restore variables in the manner of TensorFlow 1, which writes files, or
    compute gradients; none of the model's objects refers to them.
    """
    saver = meta.saver_def
    ends = {name.split(":")[0] for name in (saver.save_tensor_name, saver.restore_op_name)}
    nodes = [node for node in meta.graph_def.node if node.name not in ends]
    return _reached(
        _called(nodes, library) | set(meta.object_graph_def.concrete_functions), library
    )


def _reached(start: Iterable[str], library: dict[str, Any]) -> set[str]:
    """Returns functions together with everything they may call."""
    # Grappler substitutes functions that implement the same interface for each other.
    alike: dict[bytes, set[str]] = {}
    for name, function in library.items():
        if "api_implements" in function.attr:
            alike.setdefault(function.attr["api_implements"].s, set()).add(name)
    reached: set[str] = set()
    waiting = [name for name in start if name in library]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        function = library[name]
        waiting += _called(function.node_def, library)
        if "api_implements" in function.attr:
            waiting += alike[function.attr["api_implements"].s]
    return reached


def _called(nodes: Iterable[Any], library: dict[str, Any]) -> set[str]:
    """Returns the functions that nodes name in any of their attributes."""
    found: set[str] = set()
    for node in nodes:
        if node.op in library:
            found.add(node.op)
        for value in node.attr.values():
            found.add(value.func.name)
            found.update(function.name for function in value.list.func)
    return found & set(library)


def _refuse_operators(folder: Path, nodes: Iterable[Any], allowed: frozenset[str]) -> None:
    for node in nodes:
        if node.op not in allowed:
            raise UnsupportedModelError(
                f"{folder} has the operator {node.op} ({node.name}), which is none of those that "
                "compute on the model's own tensors. It is never run from a file; export the model "
                "without it."
            )


def _refuse_wrappers(folder: Path, data: bytes) -> None:
    """Refuses models with training wrappers, which can no longer be stripped."""
    metadata = folder / "keras_metadata.pb"
    content = data + (read_bytes(metadata) if metadata.is_file() else b"")
    if _QUANTIZED.search(content):
        raise UnsupportedModelError(
            f"{folder} holds quantization wrappers of tensorflow-model-optimization. {UNDO_QAT}"
        )
    for pattern, what, how in (
        (_PRUNED, "pruning", "tfmot.sparsity.keras.strip_pruning(model)"),
        (_CLUSTERED, "clustering", "tfmot.clustering.keras.strip_clustering(model)"),
    ):
        if pattern.search(content):
            raise UnsupportedModelError(
                f"{folder} holds {what} wrappers of tensorflow-model-optimization. Save {how} "
                "instead, or save the wrapped model as .h5 or .keras."
            )
