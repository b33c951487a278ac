"""What a teacher's outputs are, how several teachers become one, and means over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import functional_of, graph_nodes, is_nested, output_names
from edgecompress.training.base import Outputs
from edgecompress.training.specialists import Specialist, combined

# Names of Keras's losses on values, without underscores.
_OF_VALUES = {
    "mse", "mae", "mape", "msle", "meansquarederror", "meanabsoluteerror",
    "meanabsolutepercentageerror", "meansquaredlogarithmicerror", "huber", "logcosh",
}  # fmt: skip
# What leaves probabilities as they are.
_PASSING = {"Reshape", "Flatten", "Dropout", "Identity", "Permute"}


Teacher = Any  # A Keras model or a `Specialist`.


def checked_teachers(teacher: Any) -> tuple[Teacher, ...]:
    """Returns one or several teachers, the specialists last.

    Raises:
        ArgumentError: one is none, or there are specialists alone.
    """
    import keras

    given = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    models = [each for each in given if isinstance(each, keras.Model)]
    specialists = [each for each in given if isinstance(each, Specialist)]
    if not given or len(models) + len(specialists) < len(given):
        raise ArgumentError("teacher", "be a Keras 3 model, or several", teacher)
    if not models:
        raise ArgumentError("teacher", "hold a model of all classes beside specialists", teacher)
    return (*models, *specialists)


def model_of(teacher: Teacher) -> Any:
    """Returns the Keras model of a teacher."""
    return teacher.model if isinstance(teacher, Specialist) else teacher


@dataclass(frozen=True)
class OutputKind:
    """What one output of a model stands for.

    Attributes:
        kind: As losses are told.
        values: Whether the model was compiled with a loss on values, not on classes.
    """

    kind: Outputs
    values: bool


def output_kinds(model: Any) -> list[OutputKind]:
    """Returns what each output stands for: by the activation that it ends in and by the loss.

    Args:
        model: A built Sequential or Functional model, compiled or not.
    """
    found = []
    for tensor, loss in zip(functional_of(model).outputs, _losses(model), strict=True):
        activation, name = _last_activation(model, tensor), _name_of(loss)
        # Such a loss reads probabilities unless told otherwise.
        read = name.endswith("crossentropy") and not getattr(loss, "from_logits", False)
        probabilities = activation in ("softmax", "sigmoid") or read
        binary = activation != "softmax" and (
            activation == "sigmoid" or name.startswith("binary") or tensor.shape[-1] == 1
        )
        found.append(OutputKind(Outputs(binary, not probabilities), name in _OF_VALUES))
    return found


def _losses(model: Any) -> list[Any]:
    """Returns the loss that a model was compiled with for each output; None where there is none."""
    names = output_names(model)
    loss = getattr(model, "loss", None)
    if isinstance(loss, Mapping):
        return [loss.get(name) for name in names]
    if isinstance(loss, (list, tuple)) and len(loss) == len(names):
        return list(loss)
    return [loss] * len(names)


def _name_of(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.replace("_", "").lower()


def _last_activation(model: Any, tensor: Any) -> str:
    """Returns the name of the activation function that a tensor of a model's graph comes from."""
    nodes = {id(output): node for node in graph_nodes(model) for output in node.outputs}
    while id(tensor) in nodes:
        node = nodes[id(tensor)]
        operation, kind = node.operation, type(node.operation).__name__
        if is_nested(operation):
            index = next(i for i, output in enumerate(node.outputs) if output is tensor)
            return _last_activation(operation, functional_of(operation).outputs[index])
        name = getattr(getattr(operation, "activation", None), "__name__", kind).lower()
        if kind not in _PASSING and not (kind == "Activation" and name == "linear"):
            return str(name)
        tensor = node.inputs[0]
    return ""


def joined(outputs: Sequence[Any], kinds: Sequence[Outputs]) -> Any:
    """Returns the mean of several teachers' logits: their geometric mean, before it is normalized.

    Args:
        outputs: Of each teacher, (samples, ..., classes).
        kinds: Of each teacher's outputs.
    """
    from keras import ops

    logits = [
        kind.to_logits(ops.cast(output, "float32"))
        for output, kind in zip(outputs, kinds, strict=True)
    ]
    if len(logits) == 1:
        return logits[0]
    if normalized([*kinds]):
        logits = [ops.log_softmax(value, axis=-1) for value in logits]
    return sum(logits[1:], logits[0]) / len(logits)


def with_specialists(logits: Any, specialists: Sequence[tuple[Specialist, Any, Outputs]]) -> Any:
    """Returns the logarithms of what a generalist and specialists say together; see `combined`.

    Args:
        logits: Of the generalist, (samples, classes).
        specialists: Each with its outputs and their kind.
    """
    from keras import ops

    found = []
    for each, outputs, kind in specialists:
        own = kind.to_logits(ops.cast(outputs, "float32"))
        # Others were rarer in its training than its classes.
        others = own[:, -1:] + math.log(each.oversampled)
        own = ops.concatenate([own[:, :-1], others], axis=-1)
        found.append((each.classes, ops.softmax(own, axis=-1)))
    return combined(ops.softmax(logits, axis=-1), found)


def normalized(kinds: Sequence[Outputs]) -> bool:
    """Returns whether some logits of classes are logarithms of probabilities, the others any."""
    return any(not kind.binary and not kind.logits for kind in kinds)


def mean_of_samples(losses: Any, weights: Any) -> Any:
    """Returns the mean as Keras takes it of a loss: of `weight * loss`, by the number of losses.

    Args:
        losses: Shape (samples, ...).
        weights: Sample weights, (samples,) or of more axes of the losses, or None.
    """
    from keras import ops

    losses = ops.cast(losses, "float32")
    if weights is not None:
        weights = ops.cast(ops.convert_to_tensor(weights), "float32")
        while len(weights.shape) > len(losses.shape):
            weights = ops.mean(weights, axis=-1)
        while len(weights.shape) < len(losses.shape):
            weights = ops.expand_dims(weights, -1)
        losses = losses * weights
    return ops.mean(losses)
