"""What the configuration of a Keras model may contain, before any framework sees it.

Keras instantiates whatever a configuration names: classes, functions, marshalled code. Here every
name must be on an allowlist (`keras_names`), or registered by code that the user has imported;
everything else in a configuration is data.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecompress.converters import keras_names as names
from edgecompress.core.errors import ModelFileError, UnsupportedModelError

PRUNING_WRAPPERS = frozenset({"PruneLowMagnitude", "ClusterWeights", "ClusterWeightsMHA"})
QAT_WRAPPERS = frozenset({"QuantizeWrapper", "QuantizeWrapperV2", "QuantizeLayer"})
# What the wrappers of quantize_model() hold: the classes that tensorflow-model-optimization itself
# looks up in its quantize_scope().
_QAT_PARTS = frozenset(
    {
        "QuantizeAwareActivation", "NoOpActivation", "NoOpQuantizeConfig", "AllValuesQuantizer",
        "LastValueQuantizer", "MovingAverageQuantizer", "NoQuantizer",
    }
    | {
        f"Default{bits}Bit{kind}"
        for bits in ("8", "N")
        for kind in (
            "ActivationQuantizeConfig", "ConvQuantizeConfig", "ConvTransposeQuantizeConfig",
            "OutputQuantizeConfig", "QuantizeConfig",
        )
    }
)  # fmt: skip
_SCHEDULES = frozenset({"ConstantSparsity", "PolynomialDecay"})

# Where Keras exports classes -> their names. Keras 3 and Keras 2 alike.
_PUBLIC: dict[str, frozenset[str]] = {
    "keras": names.MODELS | names.DTYPE_POLICIES,
    "keras.models": names.MODELS,
    "keras.layers": names.LAYERS,
    "keras.layers.experimental.preprocessing": names.LAYERS,
    "keras.initializers": names.INITIALIZERS,
    "keras.regularizers": names.REGULARIZERS,
    "keras.constraints": names.CONSTRAINTS,
    "keras.dtype_policies": names.DTYPE_POLICIES,
    "keras.mixed_precision": names.DTYPE_POLICIES,
    "keras.quantizers": names.QUANTIZERS,
    "keras.losses": names.TRAINING,
    "keras.metrics": names.TRAINING,
    "keras.optimizers": names.TRAINING,
    "keras.optimizers.legacy": names.TRAINING,
    "keras.optimizers.schedules": names.TRAINING,
}
# First folder inside Keras's sources -> names. Classes that are not exported name their module.
_CALLS = frozenset({"TFOpLambda", "SlicingOpLambda"})
_INTERNAL: dict[str, frozenset[str]] = {
    "ops": names.OPERATIONS,
    "models": names.MODELS,
    "engine": names.MODELS | {"InputLayer"},
    "layers": names.LAYERS | _CALLS,
    "initializers": names.INITIALIZERS,
    "regularizers": names.REGULARIZERS,
    "constraints": names.CONSTRAINTS,
    "dtype_policies": names.DTYPE_POLICIES,
    "mixed_precision": names.DTYPE_POLICIES,
    "quantizers": names.QUANTIZERS,
    "losses": names.TRAINING,
    "metrics": names.TRAINING,
    "optimizers": names.TRAINING,
}
# Keras 2 files mostly omit the module.
_WITHOUT_MODULE = frozenset().union(*_PUBLIC.values(), _CALLS)
# Values, not objects.
_DATA = frozenset(
    {
        "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__",
        "__tuple__", "TensorShape",
    }
)  # fmt: skip
_FUNCTIONS = names.ACTIVATIONS | names.TRAINING_FUNCTIONS
_FUNCTION_MODULES = frozenset({"builtins", "keras.activations", "keras.losses", "keras.metrics"})
_FUNCTION_FOLDERS = frozenset({"activations", "losses", "metrics"})
# Tables of preprocessing layers: given as text, they are the path of a file to read.
_TABLES = frozenset({"vocabulary", "idf_weights"})


def classes(config: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every node of a configuration that names a class."""
    stack = [config]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("class_name"), str):
                yield node, node["class_name"]
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def check(config: Any, path: Path, legacy: bool = False) -> None:
    """Refuses a configuration that names anything not known to compute only on tensors.

    Args:
        config: The configuration, as JSON gives it. Its training settings are neither read nor
            loaded.
        path: The file, for messages.
        legacy: Whether Keras 2 will load it. Defaults to Keras 3.

    Raises:
        ModelFileError: it is not a model configuration.
        UnsupportedModelError: it names something else; the layer and the name are in the text.
    """
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ModelFileError(f"{path} holds no model configuration. Save it with model.save().")
    check_part(
        {key: value for key, value in config.items() if key != "compile_config"}, path, legacy
    )


def check_part(part: Any, path: Path, legacy: bool = False) -> None:
    """Refuses a part of a configuration that names what is not on the lists; as in `check`."""
    stack: list[tuple[Any, str]] = [(part, "")]
    while stack:
        node, layer = stack.pop()
        if isinstance(node, list):
            stack.extend((item, layer) for item in node)
        if not isinstance(node, dict):
            continue
        inner = node.get("config")
        own = inner.get("name") if isinstance(inner, dict) else None
        layer = own if isinstance(own, str) else layer
        if "class_name" in node:
            _check_class(node, layer, path, legacy)
        _check_values(node, layer, path, legacy)
        stack.extend((value, layer) for value in node.values())


def _check_class(node: Mapping[str, Any], layer: str, path: Path, legacy: bool) -> None:
    name = node["class_name"]
    if not isinstance(name, str):
        raise ModelFileError(f"Layer {layer!r} of {path} has a class that is not a name: {name!r}.")
    plain = name.split(">")[-1]
    if plain in names.REFUSED_LAYERS:
        raise UnsupportedModelError(
            f"Layer {layer!r} of {path} is a {plain} layer: it {names.REFUSED_LAYERS[plain]}, "
            "which is never loaded from a file. Replace it by ordinary layers or a registered "
            "layer class."
        )
    if name == "__lambda__":
        raise UnsupportedModelError(
            f"Layer {layer!r} of {path} holds a Python lambda, which is never run from a file. "
            "Replace it by a registered function."
        )
    if plain in QAT_WRAPPERS and not legacy:
        raise UnsupportedModelError(
            f"Layer {layer!r} of {path} is a quantization wrapper ({name}) of "
            f"tensorflow-model-optimization. {UNDO_QAT}"
        )
    if _known(node, name) or _registered(node, name, legacy):
        if plain in _CALLS:
            _check_call(node, layer, path)
        return
    module = node.get("module")
    what = node.get("config") if name == "function" else name
    origin = f" of {module!r}" if module else ""
    raise UnsupportedModelError(
        f"Layer {layer!r} of {path} needs the class or function {what!r}{origin}, which is none of "
        "Keras's that files may name and not registered here. Name the module that registers it "
        "(keras.saving.register_keras_serializable): --import MODULE, or import_modules=[...] in "
        "Python; or pass the loaded model in Python."
    )


UNDO_QAT = "Save it with Keras 2 as one file, model.save('model.h5'): export reads its ranges."


def _known(node: Mapping[str, Any], name: str) -> bool:
    """Returns whether a node names something on the lists and nothing else."""
    module, registered = node.get("module"), node.get("registered_name")
    if name in _DATA:
        return True
    if name == "function":
        function = node.get("config")
        return (
            isinstance(function, str)
            and function in _FUNCTIONS
            and registered in (None, function, "function")
            and (module is None or _is_in(module, _FUNCTION_MODULES, _FUNCTION_FOLDERS))
        )
    if name.split(">")[-1] in PRUNING_WRAPPERS | QAT_WRAPPERS | _QAT_PARTS:
        return module is None or str(module).startswith("tensorflow_model_optimization.")
    if registered not in (None, name):
        return False
    if module is None:
        return name in _WITHOUT_MODULE or name in _SCHEDULES
    if not isinstance(module, str):
        return False
    parts = module.split(".")
    if parts[0] not in ("keras", "tf_keras"):
        return False
    if parts[1:2] == ["src"]:
        return name in _INTERNAL.get(".".join(parts[2:3]), ())
    return name in _PUBLIC.get(".".join(["keras", *parts[1:]]), ())


def _is_in(module: Any, public: frozenset[str], folders: frozenset[str]) -> bool:
    if not isinstance(module, str):
        return False
    parts = module.split(".")
    if parts[0] in ("keras", "tf_keras") and parts[1:2] == ["src"]:
        return parts[2:3] != [] and parts[2] in folders
    return module.removeprefix("tf_") in public


def _registered(node: Mapping[str, Any], name: str, legacy: bool) -> bool:
    """Returns whether Keras will find a node's object among those that imported code registered."""
    if name == "function":
        wanted = node.get("config")
        return isinstance(wanted, str) and registered_object(wanted, legacy) is not None
    # Files without modules are looked up by the class's name alone, others by the registered one:
    # an object with both names is what Keras creates either way.
    wanted = node.get("registered_name", name) if "module" in node else name
    found = registered_object(wanted, legacy) if isinstance(wanted, str) else None
    return found is not None and name in (wanted, getattr(found, "__name__", None))


def registered_object(name: str, legacy: bool = False) -> Any:
    """Returns what imported code has registered with Keras under a name; None for nothing."""
    if legacy:
        import tf_keras

        return tf_keras.saving.get_registered_object(name)
    import keras

    _register_own_layers()
    return keras.saving.get_registered_object(name)


@functools.cache
def _register_own_layers() -> None:
    """Makes the layers of this package known to Keras: files name them without importing them."""
    import edgecompress.layers as own

    for module in pkgutil.iter_modules(own.__path__):
        importlib.import_module(f"{own.__name__}.{module.name}")


def _check_call(node: Mapping[str, Any], layer: str, path: Path) -> None:
    """Refuses a layer that calls a TensorFlow function other than those on tensors."""
    inner = node.get("config")
    function = inner.get("function") if isinstance(inner, dict) else None
    if isinstance(function, str) and function in names.TENSORFLOW_FUNCTIONS:
        return
    raise UnsupportedModelError(
        f"Layer {layer!r} of {path} calls the TensorFlow function {function!r}, which is none of "
        "those that compute on tensors alone. Build the model without it, or pass the loaded "
        "model in Python."
    )


def _check_values(node: Mapping[str, Any], layer: str, path: Path, legacy: bool) -> None:
    """Refuses text that Keras would treat as a file to read or a function to call."""
    for key, value in node.items():
        if not isinstance(value, str):
            continue
        if key in _TABLES:
            raise UnsupportedModelError(
                f"Layer {layer!r} of {path} has the {key} in another file ({value!r}), which is "
                "never read. Give the layer the table itself before you save the model."
            )
        is_function = key == "activation" or key.endswith("_activation")
        if (
            is_function
            and value not in names.ACTIVATIONS
            and registered_object(value, legacy) is None
        ):
            raise UnsupportedModelError(
                f"Layer {layer!r} of {path} has the {key} {value!r}, which is none of Keras's and "
                "not registered here. Name the module that registers it: --import MODULE, or "
                "import_modules=[...] in Python."
            )
