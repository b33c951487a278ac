"""The one way to rebuild a Keras model with other settings or other weights in some layers.

It goes through Keras's public serialization, so that the result is a plain model. (`operator_copy`
instead splits a model into operators; its result has different layers.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgecompress.core.errors import ConversionError
from edgecompress.core.keras_graph import (
    functional_of,
    is_nested,
    is_plain_model,
    named_layers,
    walk_layers,
)
from edgecompress.core.record import attach_record, record_of

# Layer -> attribute -> array.
Weights = dict[str, dict[str, np.ndarray]]
Edit = Callable[[str, dict[str, Any]], dict[str, Any]]


def variable_of(layer: Any, name: str) -> Any:
    """Returns a layer's variable by its attribute, `layer.attribute` for one of an inner layer.

    None if there is none.
    """
    for part in name.split("."):
        layer = getattr(layer, part, None)
    return layer


def copy_model(
    model: Any,
    edit: Edit | None = None,
    weights: Weights | None = None,
    replaced: Mapping[str, Any] | None = None,
) -> Any:
    """Returns a new model of the same class, layer names, dtype policies and trainable flags.

    The copy has its own weights and is not compiled.

    Args:
        model: A built Sequential or Functional model of Keras 3.
        edit: `(path, config) -> config` for the model itself (path "", its layers left out) and
            each of its layers, `<nested model>/<layer>` inside nested models. Defaults to no
            change.
        weights: Weights of layers whose shapes or values change: path -> attribute -> array. All
            others keep their values. Defaults to none.
        replaced: Models that take the place of layers, with the same name, inputs and outputs:
            path -> model. Defaults to none.

    Raises:
        ConversionError: Keras cannot make the model from its own config, or the weights do not fit.

    Example:
        >>> same = copy_model(model)  # doctest: +SKIP
        >>> half = copy_model(model, lambda path, config: {**config, "trainable": False})
        ...  # doctest: +SKIP
    """
    import keras

    config = copy.deepcopy(keras.saving.serialize_keras_object(model))
    for key in ("build_config", "compile_config"):
        config.pop(key, None)
    custom_objects = _custom_objects(model)
    replaced = replaced or {}
    config["config"] = _edited(config["config"], edit, custom_objects, replaced, "")
    try:
        # Lambda layers come from the live model, not from a file, so they are as safe as the model.
        result = keras.saving.deserialize_keras_object(
            config, custom_objects=custom_objects, safe_mode=False
        )
    except (TypeError, ValueError) as error:
        raise ConversionError(
            f"Model {model.name!r} cannot be rebuilt from its config: {str(error).splitlines()[0]}"
        ) from error
    _copy_names(model, result)
    _copy_weights(model, result, weights or {}, replaced)
    _copy_trainable(model, result)
    return result


def plain_model(model: Any) -> Any:
    """Returns a model of Keras's own class with the same layers, graph and record.

    A Sequential or Functional model of another class, which has its own `train_step`, for instance,
    computes the same unless the class has its own `call`. Any other model is returned as it is.
    """
    import keras

    if is_plain_model(model) or not is_nested(model) or not model.built:
        return model
    graph = functional_of(model)
    plain = keras.Model(graph.input, graph.output, name=model.name)
    kept = keras.Sequential if isinstance(model, keras.Sequential) else type(plain)
    if type(model).call is not kept.call:
        return model
    attach_record(plain, record_of(model))
    return plain


def _edited(
    config: dict[str, Any],
    edit: Edit | None,
    custom_objects: Mapping[str, Any],
    replaced: Mapping[str, Any],
    path: str,
) -> dict[str, Any]:
    import keras

    layers = config.get("layers")
    if not isinstance(layers, list):
        config = config if edit is None else edit(path, config)
    else:
        own = {key: value for key, value in config.items() if key != "layers"}
        config = {**(own if edit is None else edit(path, own)), "layers": layers}
        for entry in layers:
            # The input shape that the layer was built with; Keras would build it with that again.
            entry.pop("build_config", None)
            inner = entry["config"]
            inside = f"{path}/{inner.get('name')}" if path else str(inner.get("name"))
            if inside in replaced:
                made = keras.saving.serialize_keras_object(replaced[inside])
                for key in ("module", "class_name", "registered_name", "config"):
                    entry[key] = made[key]
            else:
                entry["config"] = _edited(inner, edit, custom_objects, replaced, inside)
    function = f"{path}:function"
    if function in custom_objects:
        config["function"] = {
            "module": None,
            "class_name": "function",
            "config": function,
            "registered_name": function,
        }
    return config


def _custom_objects(model: Any) -> dict[str, Any]:
    """Returns what the config names and Keras does not know: classes and Lambda functions.

    A Lambda's serialized code has lost its global names, so the live function is used.
    """
    import keras

    objects: dict[str, Any] = {}
    for path, layer in [("", model), *named_layers(model)]:
        if not type(layer).__module__.startswith("keras."):
            objects[type(layer).__name__] = type(layer)
        elif isinstance(layer, keras.layers.Lambda):
            objects[f"{path}:function"] = layer.function
    return objects


def _copy_names(source: Any, result: Any) -> None:
    """Gives layers their names back: a class without its own `get_config` may lose them."""
    for old, new in zip(source.layers, result.layers, strict=True):
        if new.name != old.name:
            new.name = old.name
        if is_plain_model(old) and is_plain_model(new):
            _copy_names(old, new)


def _copy_weights(source: Any, result: Any, weights: Weights, replaced: Mapping[str, Any]) -> None:
    copies = dict(named_layers(result))
    for path, model in replaced.items():
        for inside, layer in named_layers(model, f"{path}/"):
            copies[inside].set_weights(layer.get_weights())
    for path, old in named_layers(source):
        if path in replaced:
            continue
        new = copies[path]
        if path not in weights:
            try:
                new.set_weights(old.get_weights())
            except ValueError as error:
                raise ConversionError(str(error).splitlines()[0]) from error
            continue
        names = [name for name, value in weights[path].items() if value is not None]
        if len(names) != len(new.weights):
            raise ConversionError(
                f"Layer {path!r} has {len(new.weights)} weights, not {', '.join(names)}."
            )
        for name in names:
            variable_of(new, name).assign(weights[path][name])


def _copy_trainable(source: Any, result: Any) -> None:
    """Sets the flags from the outside in, as a model's flag overwrites those of its layers."""
    flags = [layer.trainable for layer in source.layers]
    result.trainable = source.trainable
    for old, new, flag in zip(source.layers, result.layers, flags, strict=True):
        new.trainable = flag
        if is_plain_model(old):
            _copy_trainable(old, new)


def in_float32(model: Any) -> Any:
    """Returns a float32 copy of a Keras 3 model, or the model itself if it is float32.

    Mixed precision keeps its variables in float32, so nothing is lost. A subclassed model is
    returned unchanged.
    """
    half = any(
        "float16" in str(getattr(layer, "compute_dtype", "")) for layer in walk_layers(model)
    )
    if not half or type(model).__name__ not in ("Sequential", "Functional"):
        return model
    # Inputs keep their types: only they have a batch shape.
    return copy_model(
        model, lambda _, config: config if "batch_shape" in config else _float32_config(config)
    )


def _float32_config(config: Any) -> Any:
    """Replaces the dtype policies of a layer's configuration, including inner layers."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and "16" in str(value) else _float32_config(value)
            for key, value in config.items()
        }
    return [_float32_config(item) for item in config] if isinstance(config, list) else config
