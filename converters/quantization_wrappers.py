"""Quantization-aware training of tensorflow-model-optimization: taken off, its ranges read.

`tfmot.quantization.keras.quantize_model` puts each layer into a QuantizeWrapper, whose variables
hold the ranges, and each input in front of a QuantizeLayer. The names of the ranges say where they
apply, which is where this package has its taps (`core.fusion`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.core.errors import (
    ArgumentError,
    ModelFileError,
    UnsupportedModelError,
    few,
    one_line,
)
from edgecompress.core.record import CompressionRecord, attach_record
from edgecompress.precisions.base import QAT, Precision
from edgecompress.precisions.int4 import Int4
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.mixed import kernels_step, places_of

# The start of a range's name in a wrapper -> how the tap's name goes on after the layer's.
_TAPS = {"output": "", "post_activation": "", "pre_activation": "/pre_activation"}
_INPUT_LAYER = "QuantizeLayer"
# Share of the largest output: a rounding may fall on the other side.
_MOST_DIFFERENCE = 0.2
# What ranges hold before the first training step.
_UNTRAINED = ([-6.0, 6.0], [0.0, 0.0])
# Settings of a QuantizeConfig of an n-bit scheme.
_WEIGHT_BITS, _ACTIVATION_BITS = "num_bits_weight", "num_bits_activation"


@dataclass(frozen=True)
class Learnt:
    """What the quantization wrappers of a Keras 2 file held; all empty if there were none.

    Attributes:
        ranges: Range of each tap that the wrappers have learnt: tap -> (minimum, maximum).
        kernels: Quantized kernel -> its bits, and whether each channel has a scale of its own.
        inputs: A random batch of one sample, one array for each input; () without quantization
            wrappers.
        outputs: What the quantized model computes from it.
    """

    ranges: Mapping[str, tuple[float, float]]
    kernels: Mapping[str, tuple[int, bool]]
    inputs: tuple[np.ndarray, ...] = ()
    outputs: tuple[np.ndarray, ...] = ()


def repair_loading() -> None:
    """Makes the wrappers of this process load from .keras files.

    tensorflow-model-optimization writes such files and cannot read them: loading builds a wrapper
    twice, and the kernels that a wrapper rounds are in the file once more than it expects.
    """
    from tensorflow_model_optimization.python.core.quantization.keras import (  # type: ignore[import-untyped]
        quantize_layer,
        quantize_wrapper,
    )

    for kind in (quantize_layer.QuantizeLayer, quantize_wrapper.QuantizeWrapperV2):
        kind.build = _once(kind.build)
        kind.load_own_variables = _load_variables


def _once(build: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(build)
    def build_unless_built(self: Any, input_shape: Any) -> None:
        if not self.weights:
            build(self, input_shape)

    return build_unless_built


def _load_variables(self: Any, store: Mapping[str, Any]) -> None:
    variables = self._trainable_weights + self._non_trainable_weights
    # The wrapper's own kernels come after those of the layer inside, which loads its own.
    values = [store[str(i)] for i in range(len(store))][-len(variables) :]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def taken_off(model: Any, keras: Any) -> tuple[Any, dict[str, Any]]:
    """Returns a Keras 2 model without quantization wrappers, and what they held.

    Args:
        model: A functional or sequential model.
        keras: The module tf_keras.

    Returns:
        The float model with kernels rounded as in inference, layers under their own names;
        `ranges`: tap -> [minimum, maximum], {} if nothing was trained; `kernels`: kernel -> [bits,
        whether each channel has a scale of its own].

    Raises:
        ModelFileError: activations do not have 8 bits, or a weight has no equal name inside.
    """
    plain = keras.models.clone_model(model, clone_function=lambda layer: _unwrapped(layer, keras))
    ranges: dict[str, list[float]] = {}
    kernels: dict[str, list[Any]] = {}
    rounding: list[Callable[[], None]] = []
    for wrapper in model.layers:
        variables = _by_name(wrapper)
        if type(wrapper).__name__ == _INPUT_LAYER:
            position = _input_of(wrapper, model)
            ranges[f"input:{position}"] = _range(variables, wrapper.name)
            continue
        layer = plain.get_layer(_inner(wrapper).name)
        _copy_weights(layer, variables)
        if not _is_wrapper(wrapper):
            continue
        settings = wrapper.quantize_config.get_config()
        if settings.get(_ACTIVATION_BITS, 8) != 8:
            raise ModelFileError(
                f"layer {layer.name!r} was trained with activations of "
                f"{settings[_ACTIVATION_BITS]} bits; only 8 have a form in the file."
            )
        for start in [n.removesuffix("_min") for n in variables if n.endswith("kernel_min")]:
            bits = settings.get(_WEIGHT_BITS, 8)
            # Keras 3 calls the kernel of a depthwise layer as any other.
            kernel = f"{layer.name}/{start.removeprefix('depthwise_')}"
            kernels[kernel] = [bits, np.size(variables[f"{start}_min"][0]) > 1]
            rounding.append(functools.partial(_round, layer, start, variables, bits))
        for start, end in _TAPS.items():
            if f"{start}_min" in variables:
                ranges[layer.name + end] = _range(variables, start)
    if all(bounds in _UNTRAINED for bounds in ranges.values()):
        return plain, {"ranges": {}, "kernels": {}}
    for apply in rounding:
        apply()
    return plain, {"ranges": ranges, "kernels": kernels}


def _is_wrapper(layer: Any) -> bool:
    return hasattr(layer, "quantize_config")


def _inner(layer: Any) -> Any:
    """Returns the layer in a wrapper; any other layer itself."""
    return layer.layer if _is_wrapper(layer) else layer


def _unwrapped(layer: Any, keras: Any) -> Any:
    """Returns a float layer for a wrapper; an equal one for any other layer."""
    if type(layer).__name__ == _INPUT_LAYER:
        return keras.layers.Activation("linear", name=layer.name)
    inner = _inner(layer)
    config = inner.get_config()
    activation: Any = getattr(inner, "activation", None)
    while hasattr(activation, "activation"):
        activation = activation.activation
    if activation is not None:
        # NoOpActivation stands for an activation that a later layer computes.
        plain = type(activation).__name__ != "NoOpActivation"
        config["activation"] = keras.activations.serialize(activation) if plain else "linear"
    return type(inner).from_config(config)


def _by_name(layer: Any) -> dict[str, list[Any]]:
    """Returns the values of a layer's weights by the last part of their names."""
    found: dict[str, list[Any]] = {}
    for weight in layer.weights:
        found.setdefault(_name(weight), []).append(weight.numpy())
    return found


def _name(weight: Any) -> str:
    return str(weight.name.split(":")[0].split("/")[-1])


def _copy_weights(layer: Any, variables: Mapping[str, list[Any]]) -> None:
    values = []
    for weight in layer.weights:
        found = variables.get(_name(weight), [])
        if len(found) != 1:
            raise ModelFileError(
                f"layer {layer.name!r} has {len(found)} weights called {_name(weight)!r}."
            )
        values += found
    layer.set_weights(values)


def _round(layer: Any, name: str, variables: Mapping[str, list[Any]], bits: int) -> None:
    """Replaces a kernel by what its codes stand for.

    A wrapper rounds with the scale of the last training step's weights, from which the final ones
    differ a little: their own scale would give other codes.
    """
    kernel = getattr(layer, name)
    low, high = (variables[f"{name}_{end}"][0] for end in ("min", "max"))
    codes = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(low), np.abs(high)) / codes
    scale = np.where(scale > 0, scale, 1)
    kernel.assign(np.clip(np.rint(kernel.numpy() / scale), -codes, codes) * scale)


def _range(variables: Mapping[str, list[Any]], start: str) -> list[float]:
    return [float(variables[f"{start}_{end}"][0]) for end in ("min", "max")]


def _input_of(wrapper: Any, model: Any) -> int:
    """Returns the position of the input that a QuantizeLayer reads."""
    source = wrapper.inbound_nodes[0].inbound_layers
    source = source[0] if isinstance(source, list) else source
    return [str(name) for name in model.input_names].index(source.name)


# (bits of a kernel, whether each channel has its own scale) -> the precision that rounds it so.
_PRECISIONS: Mapping[tuple[int, bool], Precision] = {
    (8, True): Int8(),
    (8, False): Int8(per_channel=False),
    (4, True): Int4(),
}


def use_ranges(
    model: Any, learnt: Learnt, path: Path, predict: Callable[[Any], Sequence[np.ndarray]]
) -> tuple[str, ...]:
    """Attaches what quantization wrappers held to a Keras 3 model, as its record.

    Args:
        model: The model without wrappers.
        learnt: What the wrappers held.
        path: The file, for messages.
        predict: Keras model -> its outputs for `learnt.inputs`.

    Returns:
        Notes.

    Raises:
        UnsupportedModelError: a kernel has bits that no precision has, or the rounded model
            computes something else than the wrapped one.
    """
    from edgecompress.precisions.simulation import simulate

    record, notes = record_for(model, learnt.ranges, learnt.kernels, path.name)
    if not record.ranges:
        return tuple(notes)
    attach_record(model, record)
    try:
        rounded = predict(simulate(model, record))
    except ArgumentError as error:
        return (*notes, f"The rounding was not compared: {one_line(error)}")
    distance = max(map(_distance, rounded, learnt.outputs))
    if not distance <= _MOST_DIFFERENCE:
        raise UnsupportedModelError(
            f"{path}: with the ranges of its quantization wrappers the model computes other values "
            f"than in tensorflow-model-optimization: they differ by {distance:.1%} of the largest "
            "on a random sample. Save the model before quantize_model()."
        )
    told = (
        f"On a random sample the outputs differ by {distance:.2%} of the largest from those in "
        "tensorflow-model-optimization."
    )
    return (*notes, told)


def _distance(have: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(have - want).max() / max(float(np.abs(want).max()), 1e-6))


def record_for(
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    rounded: Mapping[str, tuple[int, bool]],
    name: str,
) -> tuple[CompressionRecord, list[str]]:
    """Returns a record of what quantization wrappers have learnt, for a Keras 3 model.

    Args:
        model: The model without wrappers.
        ranges: Tap -> (minimum, maximum).
        rounded: Kernel -> its bits, and whether each channel has a scale of its own.
        name: The file's name in notes.

    Returns:
        The record and its notes; without ranges if none was learnt.

    Raises:
        UnsupportedModelError: a kernel has bits that no precision has.
    """
    from edgecompress.core.fusion import analyse
    from edgecompress.core.learnt_ranges import TRAINED_BY, tied

    if not ranges:
        return CompressionRecord(), [
            f"The quantization wrappers in {name} have never been trained: all ranges are measured."
        ]
    for kernel, (bits, per_channel) in rounded.items():
        if (bits, per_channel) not in _PRECISIONS:
            scales = "a scale for each channel" if per_channel else "one scale"
            raise UnsupportedModelError(
                f"{name}: {kernel} was trained with {bits} bits and {scales}, which no precision "
                "has. Save the model before quantize_model()."
            )
    graph = analyse(model)
    taps = {tap.name for tap in graph.taps}
    kept = {tap: bounds for tap, bounds in ranges.items() if tap in taps}
    kernels = {
        kernel: _PRECISIONS[rounded[kernel]]
        for kernel in places_of(model, graph)
        if rounded.get(kernel, (8, True)) != (8, True)
    }
    step = {
        "technique": QAT,
        "quantizer": Int8.name,
        "per_channel": True,
        "weight_bits": 8,
        "activation_bits": 8,
        TRAINED_BY: "tensorflow-model-optimization",
        "taps": len(kept),
        **kernels_step(kernels),
    }
    notes = [f"{len(kept)} ranges that quantize_model() has learnt are used."]
    if lost := [tap for tap in ranges if tap not in kept]:
        notes.append(f"Ranges of {few(lost, 8)} are not used: the int8 file rounds nothing there.")
    return tied(CompressionRecord((step,), kept), model), notes
