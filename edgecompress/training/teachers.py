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
    "meanabsolutepercentageerror", "meansquaredlogarithmicerror", "huber", "logcosh", "poisson",
    "cosinesimilarity",
}  # fmt: skip
# Of those beside the cross-entropies that read probabilities.
_OF_PROBABILITIES = {"kldivergence", "kullbackleiblerdivergence", "dice", "tversky"}
# What leaves probabilities as they are, or takes their mean.
_PASSING = {
    "Reshape", "Flatten", "Dropout", "Identity", "Permute", "Squeeze", "ExpandDims", "GetItem",
    "Cast", "Average", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
}  # fmt: skip


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
        unknown: Name of the loss, if neither it nor the activation says what the output stands for;
            without a loss, a layer without activation stands for logits.
    """

    kind: Outputs
    values: bool
    unknown: str | None = None


def output_kinds(model: Any) -> list[OutputKind]:
    """Returns what each output stands for: by the activation that it ends in and by the loss.

    Args:
        model: A built Sequential or Functional model, compiled or not.
    """
    found = []
    losses = of_outputs(model, getattr(model, "loss", None))
    for tensor, loss in zip(functional_of(model).outputs, losses, strict=True):
        activation, name = _last_activation(model, tensor), _name_of(loss)
        # Such a loss reads probabilities unless told otherwise.
        read = (name.endswith("crossentropy") or name in _OF_PROBABILITIES) and not getattr(
            loss, "from_logits", False
        )
        probabilities = activation in ("softmax", "sigmoid") or read
        single = len(tensor.shape) == 1 or tensor.shape[-1] == 1
        binary = activation != "softmax" and (
            activation == "sigmoid" or name.startswith("binary") or single
        )
        values = name in _OF_VALUES
        linear = loss is None and activation == "linear"
        known = probabilities or values or linear or name.endswith("crossentropy")
        named = "none" if loss is None else getattr(loss, "__name__", type(loss).__name__)
        unknown = None if known else loss if isinstance(loss, str) else named
        found.append(OutputKind(Outputs(binary, not probabilities), values, unknown))
    return found


def of_outputs(model: Any, given: Any) -> list[Any]:
    """Returns what `compile` was given for each output, losses for instance; None where nothing.

    Args:
        model: A built Sequential or Functional model.
        given: One for all outputs, or several as Keras takes them: by the keys of a dictionary of
            outputs, by the names of the layers in a list of them, or by position.
    """
    outputs, structure = functional_of(model).outputs, functional_of(model).output
    if isinstance(given, Mapping) and not isinstance(structure, Mapping):
        return [given.get(name) for name in output_names(model)]
    found: dict[int, Any] = {}
    _spread(structure, given, found)
    return [found.get(id(tensor)) for tensor in outputs]


def _spread(structure: Any, given: Any, found: dict[int, Any]) -> None:
    """Finds what was given for each tensor of a structure, by the tensor's identity."""
    import keras

    nested, leaves = keras.tree.is_nested, keras.tree.flatten(structure)
    if not nested(given):
        found.update({id(leaf): given for leaf in leaves})
    elif isinstance(given, Mapping):
        for key in given if isinstance(structure, Mapping) else ():
            if key in structure:
                _spread(structure[key], given[key], found)
    elif len(given) == len(leaves) and not any(map(nested, given)):
        found.update({id(leaf): value for leaf, value in zip(leaves, given, strict=True)})
    elif isinstance(structure, (list, tuple)):
        for part, value in zip(structure, given, strict=False):
            _spread(part, value, found)


def _name_of(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.replace("_", "").lower()


def _last_activation(model: Any, tensor: Any) -> str:
    """Returns the name of the activation function that a tensor of a model's graph comes from."""
    nodes = {id(output): node for node in graph_nodes(model) for output in node.outputs}
    while id(tensor) in nodes:
        node = nodes[id(tensor)]
        index = next(i for i, output in enumerate(node.outputs) if output is tensor)
        name = _activation(node.operation, index)
        if name is not None:
            return name
        tensor = node.inputs[0]
    return ""


def _activation(operation: Any, index: int) -> str | None:
    """Returns the name of the activation that an output of a layer has; None if it passes."""
    import keras

    # TimeDistributed, for instance.
    if isinstance(operation, keras.layers.Wrapper):
        return _activation(operation.layer, index)
    if is_nested(operation):
        return _last_activation(operation, functional_of(operation).outputs[index])
    kind = type(operation).__name__
    name = getattr(getattr(operation, "activation", None), "__name__", kind).lower()
    passing = kind in _PASSING or (kind == "Activation" and name == "linear")
    return None if passing else str(name)


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
