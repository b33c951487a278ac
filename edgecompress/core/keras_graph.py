"""The one module that touches Keras internals; everything else uses the functions here.

Private names used: `Sequential._functional` (the Functional model inside a built Sequential),
`Functional._nodes_by_depth` (the calls that make up a model's graph),
`Functional._run_through_graph`, `Layer._flatten_layers` (the layers inside a layer),
`Layer._seed_generators` (state that is none of a layer's weights),
`MultiHeadAttention._dropout_layer`, `GroupedQueryAttention._query_dense` and the other projections,
`KerasTensor._keras_mask` (the mask that comes with a tensor),
`KerasTensor._keras_history` (the layer that made it), `Optimizer._track_variable` and
`Optimizer._untrack_variable` (the counterpart of the public `add_variable`),
`Optimizer._model_variables_moving_average` and `Optimizer._trainable_variables` (what `use_ema`
keeps of which variable), `Model._compile_config` (the public method serializes losses, which not
all allow), `global_state` (the open name scopes), and the modules of layers that networks of
`keras.applications` define for themselves (`APPLICATION_LAYERS`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from edgecompress.core.errors import UnsupportedModelError

T = TypeVar("T")

# Layers that Keras does not export: class -> its module.
APPLICATION_LAYERS = MappingProxyType(
    {
        "LayerScale": "keras.src.applications.convnext",
        "CustomScaleLayer": "keras.src.applications.inception_resnet_v2",
    }
)


def functional_of(model: Any) -> Any:
    """Returns the Functional model behind a Sequential or Functional Keras model.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or not a Keras 3 model.
    """
    import keras

    if isinstance(model, keras.Sequential):
        if not model.built or getattr(model, "_functional", None) is None:
            raise UnsupportedModelError(
                f"Model {model.name!r} has no input shape yet. Start it with keras.Input(shape) or "
                "call it once on data."
            )
        return model._functional
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            f"Expected a Keras 3 model, got {type(model).__module__}.{type(model).__name__}. Load "
            "Keras 2 files with edgecompress export."
        )
    if type(model) is not keras.Model and not hasattr(model, "operations"):
        raise UnsupportedModelError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): its graph is hidden in "
            "call(). Build it with keras.Sequential or the functional API."
        )
    if not hasattr(model, "operations"):
        raise UnsupportedModelError(f"Model {model.name!r} has no graph of layers.")
    return model


def output_names(model: Any) -> list[str]:
    """Returns the names of a Keras 3 or tf-keras model's outputs by position: those of the layers.

    For a model with a hidden graph, these are the indices of its outputs.
    """
    graph = getattr(model, "_functional", None) or model
    names = list(getattr(graph, "output_names", None) or ())
    count = len(model.outputs)
    return names if len(names) == count else [str(position) for position in range(count)]


def walk_layers(model: Any) -> Iterator[Any]:
    """Yields the leaf layers of a model in order, entering nested models, each layer once."""
    seen: set[int] = set()

    def walk(layers: list[Any]) -> Iterator[Any]:
        for layer in layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            inner = getattr(layer, "layers", None)
            if inner:
                yield from walk(inner)
            else:
                yield layer

    yield from walk(model.layers)


def every_layer(model: Any) -> list[Any]:
    """Returns all layers of a Keras 3 model, each once, including those inside other layers."""
    return list({id(layer): layer for layer in model._flatten_layers(include_self=False)}.values())


def inner_layer(layer: Any, name: str) -> Any:
    """Returns a layer inside an attention layer; None if it has none of this name.

    GroupQueryAttention keeps to itself what MultiHeadAttention shows, e.g. `query_dense`.
    """
    return getattr(layer, name, None) or getattr(layer, f"_{name}", None)


def dropout_of(attention: Any) -> Any:
    """Returns the Dropout layer of a MultiHeadAttention layer."""
    return attention._dropout_layer


def masks_of(layer: Any, arguments: Any) -> bool:
    """Returns whether a call of a layer reads a mask that comes with its tensors.

    Args:
        layer: A layer or operation.
        arguments: Those of the call, in any structure.
    """
    import keras

    leaves = keras.tree.flatten(arguments)
    if not any(map(carries_mask, leaves)):
        return False
    call = getattr(layer, "call", None)
    names = [] if call is None else list(inspect.signature(call).parameters)
    return any(name == "mask" or name.endswith("_mask") for name in names)


class LayerCall(NamedTuple):
    """One use of a layer in a model's graph; a shared layer has several.

    Attributes:
        layer: The layer, or the operation where `keras.ops` was called on a graph tensor.
        inputs: Shapes of its inputs with the batch axis, None for unknown sizes.
        outputs: Shapes of its outputs.
    """

    layer: Any
    inputs: tuple[tuple[int | None, ...], ...]
    outputs: tuple[tuple[int | None, ...], ...]


def layer_calls(model: Any) -> list[LayerCall]:
    """Returns every use of a layer in a Keras 3 or tf-keras model, in the order of the graph.

    Nested models are entered as often as they are called; one whose graph is hidden (subclassed)
    counts as a layer. The list is empty if the model itself has no graph.
    """
    graph = getattr(model, "_functional", None) or model
    calls: list[LayerCall] = []
    depths = getattr(graph, "_nodes_by_depth", None) or {}
    for depth in sorted(depths, reverse=True):
        for node in depths[depth]:
            if node.is_input:
                continue
            layer = node.operation if hasattr(node, "operation") else node.layer
            inner = layer_calls(layer) if hasattr(layer, "layers") else []
            calls += inner or [LayerCall(layer, _shapes(node, "input"), _shapes(node, "output"))]
    return calls


def _shapes(node: Any, side: str) -> tuple[tuple[int | None, ...], ...]:
    tensors = getattr(node, f"{side}_tensors", None)
    if side == "output" and hasattr(node, "outputs"):
        tensors = node.outputs  # tf-keras nodes keep whatever the layer returned.
    if not isinstance(tensors, (list, tuple)):
        tensors = [tensors]
    return tuple(tuple(t.shape) for t in tensors if getattr(t, "shape", None) is not None)


class GraphNode(NamedTuple):
    """One use of a layer with the graph tensors it reads and writes.

    Attributes:
        operation: The layer, nested model or `keras.ops` operation.
        inputs: The graph tensors it reads; compare them by identity.
        outputs: The graph tensors it writes.
        plain: Whether it was called with tensors only, without further arguments such as
            `training=True` or arrays.
        args: Positional arguments of the call, graph tensors among them.
        kwargs: The other arguments.
    """

    operation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    plain: bool
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


def graph_nodes(model: Any) -> list[GraphNode]:
    """Returns the nodes of a built Sequential or Functional model from its inputs to its outputs.

    Nested models are not entered.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or not a Keras 3 model.
    """
    import keras

    depths = functional_of(model)._nodes_by_depth
    nodes: list[GraphNode] = []
    for depth in sorted(depths, reverse=True):
        for node in depths[depth]:
            if node.is_input:
                continue
            leaves = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            plain = all(
                leaf is None or leaf is False or isinstance(leaf, keras.KerasTensor)
                for leaf in leaves
            )
            nodes.append(
                GraphNode(
                    node.operation,
                    tuple(node.input_tensors),
                    tuple(node.output_tensors),
                    plain,
                    node.arguments.args,
                    node.arguments.kwargs,
                )  # fmt: skip
            )
    return nodes


def input_layers(model: Any) -> list[Any]:
    """Returns the InputLayers of a built Sequential or Functional model, one for each input."""
    return [tensor._keras_history.operation for tensor in functional_of(model).inputs]


def is_nested(layer: Any) -> bool:
    """Returns whether a layer is a model whose graph can be entered."""
    import keras

    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "operations")
    )


def is_plain_model(layer: Any) -> bool:
    """Returns whether a layer is a built Sequential or Functional model of Keras's own classes."""
    return bool(is_nested(layer) and type(layer).__module__.startswith("keras.") and layer.built)


def named_layers(model: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns (path, layer) of all leaf layers, plain nested models entered, each layer once."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if is_plain_model(layer):
            found.update(named_layers(layer, f"{path}/"))
        else:
            found[path] = layer
    return list(found.items())


def layers_by_name(model: Any) -> dict[str, Any]:
    """Returns the layers and operations of a model's graph by name, nested models entered."""
    found: dict[str, Any] = {}
    for node in graph_nodes(model):
        if is_nested(node.operation):
            found.update(layers_by_name(node.operation))
        else:
            found[node.operation.name] = node.operation
    return found


def follow_graph(
    model: Any, values: Iterable[T], visit: Callable[[GraphNode, list[T]], Iterable[T]]
) -> list[T]:
    """Follows values of any kind from a model's inputs to its outputs, nested models entered.

    Args:
        model: A built Sequential or Functional model.
        values: A value for each input.
        visit: `(node, values of its inputs) -> values of its outputs`, called for every layer and
            operation in the order of the graph.

    Returns:
        The value of each output.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or not a Keras 3 model.
    """
    functional = functional_of(model)
    known = {id(tensor): value for tensor, value in zip(functional.inputs, values, strict=True)}
    for node in graph_nodes(model):
        read = [known[id(tensor)] for tensor in node.inputs]
        nested = is_nested(node.operation)
        written = follow_graph(node.operation, read, visit) if nested else visit(node, read)
        known.update((id(t), value) for t, value in zip(node.outputs, written, strict=True))
    return [known[id(tensor)] for tensor in functional.outputs]


def are_sequences(node: GraphNode) -> bool:
    """Returns whether a node reads a fixed number of time steps, all of them valid."""
    shape = node.inputs[0].shape
    return len(shape) == 3 and shape[1] is not None and not carries_mask(node.inputs[0])


def carries_mask(tensor: Any) -> bool:
    """Returns whether a tensor of a model's graph has a mask (Masking, `mask_zero`)."""
    return getattr(tensor, "_keras_mask", None) is not None


def layers_before(model: Any) -> dict[str, frozenset[str]]:
    """Returns the layers that each layer's output depends on, itself among them, by name.

    Nested models are entered.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or not a Keras 3 model.
    """
    found: dict[str, frozenset[str]] = {}

    def visit(node: GraphNode, read: list[frozenset[str]]) -> list[frozenset[str]]:
        name = node.operation.name
        found[name] = frozenset([name]).union(*read, found.get(name, frozenset()))
        return [found[name]] * len(node.outputs)

    nothing: list[frozenset[str]] = [frozenset()] * len(functional_of(model).inputs)
    follow_graph(model, nothing, visit)
    return found


@dataclass(frozen=True, eq=False)
class _Lent:
    """A variable in the place of a random generator's."""

    state: Any


def lend_variables(model: Any, variables: Sequence[Any]) -> None:
    """Makes variables part of a model's state, which JAX passes to each call, but not its weights.

    They are not saved, and neither `get_weights` nor `summary` knows them.
    """
    model._seed_generators.extend(_Lent(variable) for variable in variables)


def take_back_variables(model: Any, variables: Sequence[Any]) -> None:
    """Undoes `lend_variables`."""
    lent = {id(variable) for variable in variables}
    model._seed_generators[:] = [
        generator for generator in model._seed_generators if id(generator.state) not in lent
    ]


def reading(layer: Any, values: Iterable[tuple[Any, Any]]) -> Any:
    """Returns a `keras.StatelessScope` in which a layer reads other values of some variables.

    Args:
        layer: The layer, of which only its call runs inside.
        values: Variables and their values.
    """
    import keras

    values = list(values)
    if keras.backend.backend() != "tensorflow":
        # A scope hides the one around it, in which JAX has put the values of all variables.
        known = {id(variable) for variable, _ in values}
        values += [(v, v.value) for v in layer.variables if id(v) not in known]
    return keras.StatelessScope(values)


@contextlib.contextmanager
def name_scopes_kept() -> Iterator[None]:
    """Leaves Keras's open name scopes as they were.

    On TensorFlow, Keras keeps a scope whose name TensorFlow refuses: all that is built later in the
    process would be inside it, and refused.
    """
    from keras.src.backend.common import global_state

    scopes = global_state.get_global_attribute("name_scope_stack", [], set_to_default=True)
    before = list(scopes)
    try:
        yield
    finally:
        scopes[:] = before


def loss_weights_of(model: Any) -> Any:
    """Returns the `loss_weights` that a model was compiled with; None if there are none."""
    config = getattr(model, "_compile_config", None)
    return None if config is None else config.config.get("loss_weights")


def optimizers_of(model: Any) -> list[Any]:
    """Returns the model's optimizer and those that it wraps, the innermost last; none if none."""
    optimizers = [model.optimizer] if getattr(model, "optimizer", None) is not None else []
    while optimizers and hasattr(optimizers[-1], "inner_optimizer"):
        optimizers.append(optimizers[-1].inner_optimizer)
    return optimizers


def moving_averages(model: Any) -> dict[int, Any]:
    """Returns the averages that `use_ema` keeps of trained variables, by the variables' id."""
    found: dict[int, Any] = {}
    for optimizer in optimizers_of(model):
        if averages := getattr(optimizer, "_model_variables_moving_average", None):
            pairs = zip(optimizer._trainable_variables, averages, strict=True)
            found |= {id(variable): x for variable, x in pairs if x is not None}
    return found


def add_optimizer_variables(optimizer: Any, variables: Sequence[Any]) -> None:
    """Makes variables that exist already an optimizer's own."""
    for variable in variables:
        optimizer._track_variable(variable)


def remove_optimizer_variables(optimizer: Any, variables: list[Any]) -> None:
    """Removes variables created by `optimizer.add_variable` from the optimizer."""
    for variable in variables:
        optimizer._untrack_variable(variable)


def run_graph(model: Any, inputs: Any, call: Callable[..., Any]) -> Any:
    """Runs a built model's graph on other tensors, calling `call(layer, *args, **kwargs)`.

    Args:
        model: A built Sequential or Functional model.
        inputs: One tensor, or a list of them, for the model's inputs; symbolic ones build a graph.
        call: Called for every layer, nested model or operation in order; returns its outputs.

    Returns:
        The new outputs, in the structure of the model's outputs.
    """
    run = functional_of(model)._run_through_graph
    operation_fn = inspect.signature(run).parameters.get("operation_fn")
    if operation_fn is not None and operation_fn.default is inspect.Parameter.empty:
        # Keras 3.12 asks which operation to run in place of each.
        return run(inputs, operation_fn=lambda operation: operation, call_fn=call)
    return run(inputs, call_fn=call)


def outer_layers(model: Any, weighted: Callable[[Any], bool]) -> tuple[list[Any], list[Any]]:
    """Returns the weighted layers closest to the model's inputs, and those closest to its outputs.

    Parallel branches have several; nested models are entered.

    Args:
        model: A built Sequential or Functional model.
        weighted: Returns whether a layer counts.

    Returns:
        (layers not preceded by another weighted layer, layers not followed by one), in the order of
        the graph.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or not a Keras 3 model.
    """
    first: dict[int, Any] = {}
    found: dict[int, Any] = {}
    followed: set[int] = set()

    # Values: the weighted layers whose output reaches a tensor through unweighted layers only.
    def visit(node: GraphNode, read: list[frozenset[int]]) -> list[frozenset[int]]:
        layer, before = node.operation, frozenset[int]().union(*read)
        if weighted(layer):
            if not before:
                first[id(layer)] = layer
            found[id(layer)] = layer
            followed.update(before)
            before = frozenset([id(layer)])
        return [before] * len(node.outputs)

    nothing: list[frozenset[int]] = [frozenset()] * len(functional_of(model).inputs)
    follow_graph(model, nothing, visit)
    return list(first.values()), [layer for key, layer in found.items() if key not in followed]
