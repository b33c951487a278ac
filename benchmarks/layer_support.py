"""What becomes of each Keras layer in an int8 file: a table of tiny models, one layer each.

    python benchmarks/layer_support.py [--only PART] [--precision int8]
    python benchmarks/layer_support.py --train [--only PART]

Each model is converted with 64 random calibration samples and runs in LiteRT and in TensorFlow Lite
Micro (reference kernels). A row gives the operators, the tensors left in float ("none": all
integer), the signal-to-noise ratio of the outputs against Keras in both engines (SQNR, in dB, above
20 is usual for int8), whether a Cortex-M4 with CMSIS-NN runs all its operators, and whether
quantization-aware training simulates the layer, else why not.

With `--train`, the layer is followed by a Dense layer or a convolution and trained for eight steps;
the file is made without calibration data. A row gives how many steps of the output the model as
`fit` validates it, `simulate`, and `simulate(engine=...)` are from the file in LiteRT, or in
TensorFlow Lite Micro, at most.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl
from keras import ops

import edgecompress as ec
from edgecompress.converters import float32, int8, tables
from edgecompress.converters.loaders import wrap
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.fusion import analyse
from edgecompress.core.record import record_of
from edgecompress.engines.run import run_engine
from edgecompress.precisions import PRECISIONS
from edgecompress.simulation import EngineSimulation
from edgecompress.targets.checks import check
from edgecompress.targets.operators import unsupported
from edgecompress.targets.profile import load_target

Made = tuple[Any, Any]
MODELS: dict[str, Callable[[], Made]] = {}
SAMPLES = 64


def shaped(*shape: int, dtype: str = "float32") -> Any:
    """Returns an input."""
    return keras.Input(shape, dtype=dtype)


def add(name: str, shape: tuple[int, ...], build: Callable[[Any], Any]) -> None:
    """Adds a model of one input."""

    def made() -> Made:
        inputs = shaped(*shape)
        return inputs, build(inputs)

    MODELS[name] = made


def attention(x: Any) -> Any:
    """Attention as written by hand, with keras.ops."""
    query, key, value = (kl.Dense(8)(x) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 8**0.5
    return ops.matmul(ops.softmax(scores, axis=-1), value)


def masked(x: Any) -> Any:
    """Attention that may not look ahead."""
    return kl.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)


def added_mask(x: Any) -> Any:
    """Attention with a causal mask that is added to the scores."""
    query, key, value = (kl.Dense(8)(x) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 8**0.5
    scores = scores + np.triu(np.full((12, 12), -1e9, np.float32), 1)
    return ops.matmul(ops.softmax(scores, axis=-1), value)


def shared(x: Any) -> Any:
    """One Dense layer, used twice."""
    dense = kl.Dense(8, activation="relu")
    return dense(dense(x))


def twins(x: Any) -> Any:
    """One convolution on two inputs."""
    conv = kl.Conv2D(4, 3, padding="same")
    return kl.Add()([conv(x), conv(kl.AveragePooling2D(1)(kl.ReLU()(x)))])


def normalization(x: Any) -> Any:
    """Normalization of columns of very different ranges, then a Dense layer."""
    scales = np.array([1e-3, 1.0, 1e3, 1e5])
    return kl.Dense(8)(kl.Normalization(mean=scales, variance=scales**2)(x))


def blocked_norm(x: Any) -> Any:
    """A pre-activation block: normalization that has no convolution before it."""
    return kl.Conv2D(4, 3)(kl.ReLU()(norm()(x)))


def norm() -> Any:
    """Returns BatchNormalization with random statistics."""
    uniform = keras.initializers.RandomUniform
    return kl.BatchNormalization(
        gamma_initializer=uniform(0.5, 2), beta_initializer=uniform(-1, 1),
        moving_mean_initializer=uniform(-1, 1), moving_variance_initializer=uniform(0.5, 2),
    )  # fmt: skip


_MAP, _ROW, _VECTOR = (8, 8, 4), (12, 8), (16,)
for _name, _shape, _build in (
    ("Dense", _VECTOR, lambda x: kl.Dense(8)(x)),
    ("Dense, 3 dimensions", _ROW, lambda x: kl.Dense(8)(x)),
    ("Conv2D", _MAP, lambda x: kl.Conv2D(4, 3)(x)),
    ("Conv2D, padding and ReLU", _MAP,
     lambda x: kl.ReLU()(kl.Conv2D(4, 3, strides=2)(kl.ZeroPadding2D(1)(x)))),
    ("Conv2D, grouped", _MAP, lambda x: kl.Conv2D(8, 3, groups=2)(x)),
    ("Conv2D, dilated", _MAP, lambda x: kl.Conv2D(4, 3, dilation_rate=2, padding="same")(x)),
    ("DepthwiseConv2D", _MAP, lambda x: kl.DepthwiseConv2D(3)(x)),
    ("SeparableConv2D", _MAP, lambda x: kl.SeparableConv2D(8, 3)(x)),
    ("Conv2DTranspose", _MAP, lambda x: kl.Conv2DTranspose(4, 3, strides=2, padding="same")(x)),
    ("Conv1D", _ROW, lambda x: kl.Conv1D(4, 3)(x)),
    ("Conv1D, causal, dilated", _ROW,
     lambda x: kl.Conv1D(4, 3, padding="causal", dilation_rate=2)(x)),
    ("DepthwiseConv1D", _ROW, lambda x: kl.DepthwiseConv1D(3)(x)),
    ("SeparableConv1D", _ROW, lambda x: kl.SeparableConv1D(4, 3)(x)),
    ("Conv1DTranspose", _ROW, lambda x: kl.Conv1DTranspose(4, 3, strides=2)(x)),
    ("Conv3D", (6, 6, 6, 2), lambda x: kl.Conv3D(4, 3)(x)),
    ("Conv3DTranspose", (4, 4, 4, 2), lambda x: kl.Conv3DTranspose(4, 3, strides=2)(x)),
    ("EinsumDense", _ROW, lambda x: kl.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d")(x)),
    ("EinsumDense, two axes", _ROW, lambda x: kl.EinsumDense("abc,cde->abde", (None, 3, 4))(x)),
    ("BatchNormalization that folds", _MAP, lambda x: norm()(kl.Conv2D(4, 3)(x))),
    ("BatchNormalization that cannot fold", _MAP, blocked_norm),
    ("LayerNormalization", _ROW, lambda x: kl.LayerNormalization()(x)),
    ("LayerNormalization of a map", _MAP, lambda x: kl.LayerNormalization(axis=(1, 2, 3))(x)),
    ("RMSNormalization", _ROW, lambda x: kl.RMSNormalization()(x)),
    ("GroupNormalization", _MAP, lambda x: kl.GroupNormalization(2)(x)),
    ("UnitNormalization", _ROW, lambda x: kl.UnitNormalization()(x)),
    ("Normalization, columns of very different ranges", (4,), normalization),
    ("Normalization", _MAP,
     lambda x: kl.Conv2D(4, 3)(kl.Normalization(mean=[0.1] * 4, variance=[2.0] * 4)(x))),
    ("Rescaling", _MAP, lambda x: kl.Conv2D(4, 3)(kl.Rescaling(0.5)(x))),
    ("Rescaling with an offset", _MAP, lambda x: kl.Conv2D(4, 3)(kl.Rescaling(0.5, 0.1)(x))),
    ("Rescaling with an offset, padded", _MAP,
     lambda x: kl.Conv2D(4, 3, padding="same")(kl.Rescaling(0.5, 0.1)(x))),
    ("MultiHeadAttention", _ROW, lambda x: kl.MultiHeadAttention(2, 4)(x, x)),
    ("MultiHeadAttention, causal", _ROW, masked),
    ("GroupQueryAttention", _ROW, lambda x: kl.GroupQueryAttention(4, 4, 2)(x, x)),
    ("Attention", _ROW, lambda x: kl.Attention()([x, x])),
    ("attention of keras.ops", _ROW, attention),
    ("attention of keras.ops, causal", _ROW, added_mask),
    ("Dot", _ROW, lambda x: kl.Dot(axes=(2, 2))([x, kl.Dense(8)(x)])),
    ("ReLU", _ROW, lambda x: kl.ReLU()(x)),
    ("ReLU6", _ROW, lambda x: kl.ReLU(6.0)(x)),
    ("ReLU, maximum 1", _ROW, lambda x: kl.ReLU(1.0)(x)),
    ("LeakyReLU", _ROW, lambda x: kl.LeakyReLU()(x)),
    ("PReLU", _MAP, lambda x: kl.PReLU(shared_axes=(1, 2), alpha_initializer="ones")(x)),
    ("ELU", _ROW, lambda x: kl.ELU()(x)),
    ("GELU", _ROW, lambda x: kl.Activation("gelu")(x)),
    ("GELU, approximate", _ROW, lambda x: ops.gelu(x, approximate=True)),
    ("SiLU", _ROW, lambda x: kl.Activation("silu")(x)),
    ("SELU", _ROW, lambda x: kl.Activation("selu")(x)),
    ("softplus", _ROW, lambda x: kl.Activation("softplus")(x)),
    ("mish", _ROW, lambda x: kl.Activation("mish")(x)),
    ("hard sigmoid", _ROW, lambda x: kl.Activation("hard_sigmoid")(x)),
    ("hard swish", _ROW, lambda x: kl.Activation("hard_swish")(x)),
    ("sigmoid", _ROW, lambda x: kl.Activation("sigmoid")(x)),
    ("tanh", _ROW, lambda x: kl.Activation("tanh")(x)),
    ("exponential", _ROW, lambda x: kl.Activation("exponential")(x)),
    ("Softmax", _ROW, lambda x: kl.Softmax()(x)),
    ("Softmax over another axis", _ROW, lambda x: kl.Softmax(axis=1)(x)),
    ("MaxPooling2D", _MAP, lambda x: kl.MaxPooling2D()(x)),
    ("AveragePooling2D", _MAP, lambda x: kl.AveragePooling2D(padding="same", pool_size=3)(x)),
    ("GlobalAveragePooling2D", _MAP, lambda x: kl.GlobalAveragePooling2D()(x)),
    ("GlobalMaxPooling2D", _MAP, lambda x: kl.GlobalMaxPooling2D()(x)),
    ("MaxPooling1D", _ROW, lambda x: kl.MaxPooling1D()(x)),
    ("AveragePooling1D", _ROW, lambda x: kl.AveragePooling1D(2)(x)),
    ("GlobalAveragePooling1D", _ROW, lambda x: kl.GlobalAveragePooling1D()(x)),
    ("GlobalMaxPooling1D", _ROW, lambda x: kl.GlobalMaxPooling1D()(x)),
    ("MaxPooling3D", (4, 4, 4, 2), lambda x: kl.MaxPooling3D()(x)),
    ("AveragePooling3D", (4, 4, 4, 2), lambda x: kl.AveragePooling3D(2)(x)),
    ("GlobalAveragePooling3D", (4, 4, 4, 2), lambda x: kl.GlobalAveragePooling3D()(x)),
    ("UpSampling1D", _ROW, lambda x: kl.UpSampling1D(3)(x)),
    ("UpSampling2D, nearest", _MAP, lambda x: kl.UpSampling2D((2, 3))(x)),
    ("UpSampling2D, bilinear", _MAP, lambda x: kl.UpSampling2D(interpolation="bilinear")(x)),
    ("UpSampling3D", (4, 4, 4, 2), lambda x: kl.UpSampling3D()(x)),
    ("Resizing, bilinear", _MAP, lambda x: kl.Resizing(12, 12)(x)),
    ("Resizing, nearest", _MAP, lambda x: kl.Resizing(12, 12, interpolation="nearest")(x)),
    ("RepeatVector", _VECTOR, lambda x: kl.RepeatVector(5)(x)),
    ("ZeroPadding1D", _ROW, lambda x: kl.ZeroPadding1D(2)(x)),
    ("Cropping2D", _MAP, lambda x: kl.Cropping2D(1)(x)),
    ("slicing", _MAP, lambda x: x[:, 1:-1, ::2, 1]),
    ("Permute", _MAP, lambda x: kl.Permute((3, 1, 2))(x)),
    ("Reshape and Flatten", _MAP, lambda x: kl.Flatten()(kl.Reshape((16, 16))(x))),
    ("Add, Subtract, Multiply", _ROW,
     lambda x: kl.Multiply()([kl.Subtract()([kl.Add()([x, kl.Dense(8)(x)]), x]), x])),
    ("Average", _ROW, lambda x: kl.Average()([x, kl.Dense(8)(x)])),
    ("Maximum, Minimum", _ROW, lambda x: kl.Minimum()([kl.Maximum()([x, kl.Dense(8)(x)]), x])),
    ("Concatenate", _ROW, lambda x: kl.Concatenate()([x, kl.Dense(8)(x)])),
    ("shared layer", (8,), shared),
    ("shared convolution", _MAP, twins),
    ("TimeDistributed", (3, *_MAP), lambda x: kl.TimeDistributed(kl.Conv2D(4, 3))(x)),
    ("Masking", _ROW, lambda x: kl.Dense(4)(kl.Masking()(x))),
    ("ops: mean, sqrt, square", _ROW,
     lambda x: ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3)),
    ("ops: exp, log", _ROW, lambda x: ops.log(ops.exp(x) + 1.0)),
    ("ops: abs, sign of a difference", _ROW, lambda x: ops.abs(x - 0.5)),
    ("ops: where", _ROW, lambda x: ops.where(x > 0, x, 0.1 * x)),
    ("ops: sum, max, min", _ROW,
     lambda x: ops.concatenate([ops.sum(x, 1), ops.max(x, 1), ops.min(x, 1)], -1)),
    ("ops: stack, split, tile", _ROW,
     lambda x: ops.tile(ops.stack(ops.split(x, 2, axis=-1), axis=1), (1, 1, 2, 1))),
    ("ops: power, division", _ROW, lambda x: x / (1.0 + ops.power(x, 2))),
    ("ops: normalize", _ROW, lambda x: ops.normalize(x, axis=-1)),
    ("ops: einsum", _ROW, lambda x: ops.einsum("bij,bkj->bik", x, x)),
    ("ops: clip, roll, flip", _ROW,
     lambda x: ops.flip(ops.roll(ops.clip(x, -1.0, 1.0), 1, axis=1), axis=1)),
):  # fmt: skip
    add(_name, _shape, _build)


def embedding(build: Callable[[Any], Any]) -> Callable[[], Made]:
    """Returns a model of token numbers."""

    def made() -> Made:
        tokens = shaped(12, dtype="int32")
        return tokens, build(tokens)

    return made


MODELS["Embedding"] = embedding(lambda x: kl.Dense(4)(kl.Flatten()(kl.Embedding(30, 8)(x))))
MODELS["Embedding, mean, classifier"] = embedding(
    lambda x: kl.Dense(4)(kl.GlobalAveragePooling1D()(kl.Embedding(30, 8)(x)))
)
MODELS["Embedding, mask"] = embedding(
    lambda x: kl.Dense(4)(kl.GlobalAveragePooling1D()(kl.Embedding(30, 8, mask_zero=True)(x)))
)


def samples_for(model: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns calibration samples; those of Normalization have its columns' ranges."""
    found = []
    for spec in wrap(model).inputs:
        shape = (SAMPLES, *spec.shape)
        if spec.dtype.startswith("int"):
            found.append(rng.integers(0, 30, shape).astype(spec.dtype))
            continue
        values = rng.normal(size=shape).astype(np.float32)
        for layer in model.layers:
            if isinstance(layer, kl.Normalization):
                mean, spread = np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))
                values = (values * spread + mean).astype(np.float32)
        found.append(values)
    return found


def sqnr(want: np.ndarray, have: np.ndarray) -> str:
    """Returns the signal-to-noise ratio in dB."""
    noise = float(np.square(want - have.reshape(want.shape)).sum())
    power = float(np.square(want).sum())
    return "exact" if noise == 0 else f"{10 * np.log10(power / noise):.1f}"


def row(name: str, precision: str) -> str:
    """Returns the row of a model."""
    keras.utils.set_random_seed(0)
    model = keras.Model(*MODELS[name]())
    rng = np.random.default_rng(0)
    samples = samples_for(model, rng)
    notes, board = analyse_notes(model), load_target("cortex-m4")
    try:
        floats = float32.convert(model)
        artifact = int8.convert(
            floats, calibration=samples, precision=PRECISIONS[precision](), allow_float=True
        )
        # As an export for this board does.
        artifact = tables.for_targets(
            artifact, lambda flat: {problem.index for problem in unsupported(flat, board)}
        )
    except EdgeCompressError as error:
        return f"| {name} | {said(error)} | | | | | {notes} |"
    flat = artifact.flat
    left = dict.fromkeys(
        o.name
        for o in flat.operators
        if o.name not in ("QUANTIZE", "DEQUANTIZE")
        and any(flat.tensors[i].type == "FLOAT32" for i in (*o.inputs, *o.outputs) if i >= 0)
    )
    want = wrap(model).predict(samples)[0]
    ratios, ran = [], False
    for engine in ("litert", "tflm"):
        try:
            output = run_engine(engine, artifact.data, quantized_inputs(flat, samples)).outputs[0]
            ratios.append(sqnr(want, dequantize(output, flat.tensors[flat.outputs[0]])))
            ran = engine == "tflm"
        except EdgeCompressError as error:
            ratios.append(said(error))
    found = next(c for c in check(flat, board, ran=ran).checks if c.rule == "operators")
    operators = ", ".join(
        f"{count} {code}" if count > 1 else code for code, count in flat.histogram().items()
    )
    verdict = found.verdict if found.verdict == "pass" else f"{found.verdict}: {found.reason}"
    return (
        f"| {name} | {operators} | {', '.join(left) or 'none'} | {ratios[0]} | {ratios[1]} "
        f"| {verdict} | {notes} |"
    )


def analyse_notes(model: Any) -> str:
    """Returns `yes`, or why training does not simulate the model."""
    try:
        notes = analyse(model).notes
    except EdgeCompressError as error:
        return said(error)
    return "yes" if not notes else said("; ".join(re.sub("^not simulated: ", "", n) for n in notes))


def said(error: object) -> str:
    """Returns a text that fits a table."""
    return " ".join(str(error).replace("|", "/").split())[:160]


class Validation(keras.callbacks.Callback):
    """Keeps the outputs of the model under the arithmetic of training."""

    def __init__(self, samples: Any) -> None:
        super().__init__()
        self._samples = samples

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Computes them in inference."""
        self.outputs = np.asarray(self.model(self._samples, training=False))


def trained_row(name: str) -> str:
    """Returns how far training and simulations of a model are from its file, in steps."""
    keras.utils.set_random_seed(0)
    inputs, found = MODELS[name]()
    if "float" in found.dtype and len(found.shape) in (2, 3):
        found = kl.Dense(5)(kl.LeakyReLU()(found))
    elif "float" in found.dtype and len(found.shape) == 4:
        found = kl.Conv2D(4, 2)(kl.LeakyReLU()(found))
    model = keras.Model(inputs, found)
    rng = np.random.default_rng(0)
    samples = samples_for(model, rng)[0]
    validation = Validation(samples)
    try:
        model.compile(keras.optimizers.SGD(0.05), "mse")
        labels = rng.normal(size=(SAMPLES, *model(samples[:1]).shape[1:])).astype(np.float32)
        callbacks = [ec.QuantizationAwareTraining(), validation]
        model.fit(samples, labels, epochs=2, batch_size=16, verbose=0, callbacks=callbacks)
        artifact = int8.convert(float32.convert(model), record=record_of(model))
        flat = artifact.flat
        output = flat.tensors[flat.outputs[0]]
        given = quantized_inputs(flat, [samples])
        real = {
            engine: dequantize(run_engine(engine, artifact.data, given).outputs[0], output)
            for engine in ("litert", "tflm")
        }
    except (EdgeCompressError, ValueError) as error:
        return f"| {name} | {said(error)} | | | |"

    def steps(values: Any, engine: str) -> str:
        error = np.abs(np.asarray(values).reshape(real[engine].shape) - real[engine])
        return f"{np.rint(error / output.scales[0]).max():.0f}"

    parts = [
        steps(validation.outputs, "litert"),
        steps(ec.simulate(model)(samples), "litert"),
    ]
    for engine in real:
        try:
            parts.append(steps(EngineSimulation(artifact, engine).predict([samples]), engine))
        except EdgeCompressError as error:
            parts.append(str(error).split(" (")[0] + " not known")
    return f"| {name} | {' | '.join(parts)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--after", default="", help="name of a model to begin after")
    parser.add_argument("--precision", default="int8", choices=list(PRECISIONS))
    parser.add_argument("--train", action="store_true", help="train, and compare with the file")
    arguments = parser.parse_args()
    names = list(MODELS)
    names = names[names.index(arguments.after) + 1 if arguments.after else 0 :]
    names = [name for name in names if arguments.only.lower() in name.lower()]
    if arguments.train:
        print("| layer | validation | simulate | LiteRT | TFLM |\n| --- | --- | --- | --- | --- |")
        for name in names:
            print(trained_row(name), flush=True)
        return
    print(
        "| layer | operators | float left | LiteRT, dB | TFLM, dB | Cortex-M4 | simulated in "
        "training |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        print(row(name, arguments.precision), flush=True)


if __name__ == "__main__":
    main()
