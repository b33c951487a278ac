"""The int8 file that a Keras model would become, to see what it costs: its values are stand-ins."""

from __future__ import annotations

import functools
import weakref
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.converters.formats import FORMATS, Costs, FormatRequest, format_options
from edgecompress.converters.layer_paths import layer_of
from edgecompress.converters.loaders import example_inputs, wrap
from edgecompress.core.keras_graph import graph_nodes, is_plain_model, named_layers
from edgecompress.core.model_copy import copy_model
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.pipeline.costs import costs_on
from edgecompress.pipeline.request import silent
from edgecompress.targets.profile import Budgets, TargetProfile, load_target

_SAMPLES = 8
_NO_TARGET = Costs(lambda flat, memory: None, lambda flat: None, lambda flat: 0.0)

# Operators whose weights, of whatever shape, are factors and offsets of single channels.
_ELEMENTWISE = {"ADD", "SUB", "MUL", "DIV", "PRELU"}

# The last trials, as several costs of one or two models are measured one after the other.
_LAST: list[tuple[weakref.ref[Any], tuple[Any, ...], Artifact]] = []
_KEPT = 4


@dataclass(frozen=True)
class TrialFile:
    """A file with the shapes and operators of the file that `export` would make by default.

    Attributes:
        artifact: The file; inner tensors have their names.
        model: The model.
    """

    artifact: Artifact
    model: Any

    @functools.cached_property
    def layers(self) -> tuple[str | None, ...]:
        """The layer that each operator belongs to, as a path; None if it cannot be told.

        An operator belongs to the layer that its output is named after. If that has no matrices but
        the operator does (a convolution into which BatchNormalization and ReLU went), it belongs to
        the nearest layer before with some.
        """
        live = dict(named_layers(self.model))
        names = Counter(layer.name for layer in live.values())
        paths = {x.name if names[x.name] == 1 else path: path for path, x in live.items()}
        before = _readers_of_one(self.model)
        flat, found = self.artifact.flat, list[str | None]()
        matrices = {t.index for t in flat.weight_tensors() if sum(n > 1 for n in t.shape) > 1}
        for operator in flat.operators:
            name = layer_of(flat.output(operator).name, live) if operator.outputs else None
            path = None if name is None else paths[name]
            mixes = operator.name not in _ELEMENTWISE and matrices & set(operator.inputs)
            if mixes:
                while path in before and not (path in live and _has_matrices(live[path])):
                    path = before[path]
            found.append(path if path in live else None)
        return tuple(found)


def trial_file(
    model: Any,
    target: str | tuple[TargetProfile, ...] | None = None,
    filled: bool = True,
    file_format: str = "int8",
    options: Mapping[str, Any] | None = None,
    budgets: Budgets | None = None,
) -> TrialFile:
    """Returns the file of a Keras model, with ranges measured on random inputs.

    Shapes decide what a file costs, values hardly do: zeros get small numbers, as no channel of
    the finalized model is zero. Only the instructions of softmax and sigmoid depend on ranges.

    Args:
        model: A built Sequential or Functional model on the TensorFlow backend.
        target: Name of the target that it is made for, or profiles. Defaults to none.
        filled: Whether zeros in the weights get small numbers. Defaults to True.
        file_format: A name in `FORMATS`. Defaults to int8.
        options: Of the format, as `export` takes them. Defaults to none.
        budgets: Limits, for formats that choose among files by cost. Defaults to none.

    Raises:
        EdgeCompressError: the model cannot be converted.
    """
    wanted = (target, filled, file_format, dict(options or {}), budgets, _checksum(model))
    for known, made_for, artifact in _LAST:
        if known() is model and made_for == wanted:
            return TrialFile(artifact, model)
    loaded = wrap(_filled(model) if filled else model)
    samples = example_inputs(loaded.inputs, _SAMPLES)
    chosen = FORMATS[file_format]
    costs = _NO_TARGET
    if target is not None:
        profiles = (load_target(target),) if isinstance(target, str) else target
        costs = costs_on(profiles, budgets or Budgets(), {}, silent)
    made = chosen.make(
        FormatRequest(
            "trial",
            loaded,
            None,
            tuple(samples),
            format_options(chosen, options or {}),
            costs,
            silent,
        )
    )
    current = [
        x
        for x in _LAST
        if (own := x[0]()) is not None and (own is not model or x[1][-1] == wanted[-1])
    ]
    _LAST[:] = [(weakref.ref(model), wanted, made.main), *current[: _KEPT - 1]]
    return TrialFile(made.main, model)


def _checksum(model: Any) -> int:
    """Returns a number that changes with the weights."""
    found = 0
    for variable in model.weights:
        found = zlib.crc32(np.array(variable).tobytes(), found)
    return found


def _filled(model: Any) -> Any:
    """Returns a copy without zeros in its weights."""
    random = np.random.default_rng(0)
    copied = copy_model(model)
    for variable in copied.weights:
        if "float" not in str(variable.dtype):
            continue
        values = np.array(variable, dtype="float32")
        scale = 1 / np.sqrt(np.prod(values.shape[:-1])) if values.ndim > 1 else 0.1
        filling = np.abs(scale * random.standard_normal(values.shape))  # A variance is positive.
        variable.assign(np.where(values == 0, filling, values))
    return copied


def _has_matrices(layer: Any) -> bool:
    return any(len(weight.shape) > 1 for weight in layer.weights)


def _readers_of_one(model: Any, prefix: str = "") -> dict[str, str]:
    """Returns the layer or operation before each that reads one tensor, by path."""
    found: dict[str, str] = {}
    makers: dict[int, str] = {}
    for node in graph_nodes(model):
        path = f"{prefix}{node.operation.name}"
        if is_plain_model(node.operation):
            found |= _readers_of_one(node.operation, f"{path}/")
            continue
        if len(node.inputs) == 1 and id(node.inputs[0]) in makers:
            found.setdefault(path, makers[id(node.inputs[0])])
        makers |= {id(tensor): path for tensor in node.outputs}
    return found
