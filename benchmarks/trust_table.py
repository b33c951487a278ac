"""Healthy and destroyed models of thirteen kinds, and the verdict of `export` on each.

Every model is trained for a few seconds on made-up data, exported as int8 and judged by the
defaults. Then it is destroyed in five ways and judged again. What is right is found by other means:
the file's outputs are compared with the plain Keras model's by the formulas of this script. A cell
is wrong where a sound file does not pass or a destroyed one does; the script then ends with 1.

    python benchmarks/trust_table.py                  # all kinds, prints the table of docs/trust.md
    python benchmarks/trust_table.py --kind "one logit"
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers

import edgecompress as ec
from edgecompress.converters.formats import FORMATS, FormatRequest, FormatResult
from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.record import attach_record, record_of
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite

TARGET = "pixel-4"  # Sets no limit, so agreement alone decides.
SAMPLES = 200
# By this script's own measure a file is sound at or above the first, destroyed at or below the
# second. A cell in between proves nothing and counts as wrong.
SOUND, DESTROYED = 0.95, 0.85

Arrays = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained model with data.

    Attributes:
        model: The model; one of its layers is called `hidden`.
        x: Inputs, one array for each.
        kinds: What each output is: `classes`, `signs` (of a logit), `labels` or `values`.
        erased: The same kind of model with a column that int8 cannot hold; None where a filter of
            the file is erased instead.
    """

    model: keras.Model
    x: Arrays
    kinds: tuple[str, ...]
    erased: Callable[[], Case] | None = None


CASES: dict[str, Callable[[], Case]] = {}


def kind(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Registers a kind of model."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[name] = make
        return make

    return register


# --- the models -----------------------------------------------------------------------------------


def _random() -> np.random.Generator:
    keras.utils.set_random_seed(0)
    return np.random.default_rng(0)


def _table(features: int = 8, samples: int = 2000) -> np.ndarray:
    return _random().normal(size=(samples, features)).astype("float32")


def _fitted(model: keras.Model, x: Any, y: Any, loss: Any, epochs: int = 25) -> keras.Model:
    model.compile(keras.optimizers.Adam(0.005), loss)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


def _dense(features: int, outputs: Any, activation: str | None = None) -> keras.Model:
    source = keras.Input((features,), name="features")
    h = layers.Dense(24, activation="relu", name="hidden")(source)
    h = layers.Dense(16, activation="relu", name="second")(h)
    return keras.Model(source, layers.Dense(outputs, activation, name="out")(h), name="table")


def _classes(x: np.ndarray) -> np.ndarray:
    return (2 * (x[:, 0] + x[:, 1] > 0) + (x[:, 2] - x[:, 3] > 0)).astype("int32")


@kind("softmax classifier")
def softmax() -> Case:
    x = _table()
    model = _dense(8, 4, "softmax")
    fitted = _fitted(model, x, _classes(x), "sparse_categorical_crossentropy")
    return Case(fitted, [x], ("classes",))


@kind("logits")
def logits() -> Case:
    x = _table()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(_fitted(_dense(8, 4), x, _classes(x), loss), [x], ("classes",))


@kind("one logit")
def one_logit() -> Case:
    x = _table()
    y = (x[:, 0] + x[:, 1] - x[:, 2] > 0.4).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Case(_fitted(_dense(8, 1), x, y, loss), [x], ("signs",))


@kind("multi-label")
def multi_label() -> Case:
    x = _table()
    y = np.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0, x[:, 3] - x[:, 0] > 0], 1).astype("float32")
    model = _dense(8, 3, "sigmoid")
    return Case(_fitted(model, x, y, "binary_crossentropy"), [x], ("labels",))


@kind("regression, one unit")
def regression() -> Case:
    x = _table()
    y = np.abs(x[:, :1]) + x[:, 1:2] - x[:, 2:3]
    return Case(_fitted(_dense(8, 1), x, y, "mse"), [x], ("values",))


@kind("regression, several units")
def regressions() -> Case:
    x = _table()
    y = np.stack([x[:, 0] + x[:, 1], np.abs(x[:, 2]), x[:, 3] - x[:, 4]], 1)

    def unlike() -> Case:
        # One tensor with columns of 0 to 1 and of 0 to 1,000.
        wide = _fitted(_dense(8, 3), x, y, "mse")
        last = wide.get_layer("out")
        kernel, bias = last.get_weights()
        last.set_weights([kernel * [1, 1000, 1], bias * [1, 1000, 1]])
        return Case(wide, [x], ("values",))

    return Case(_fitted(_dense(8, 3), x, y, "mse"), [x], ("values",), unlike)


@kind("autoencoder")
def autoencoder() -> Case:
    random = _random()
    x = (random.normal(size=(2000, 4)) @ random.normal(size=(4, 12))).astype("float32")
    source = keras.Input((12,))
    h = layers.Dense(24, activation="relu", name="hidden")(source)
    h = layers.Dense(24, activation="relu")(layers.Dense(6, name="code")(h))
    model = keras.Model(source, layers.Dense(12)(h), name="autoencoder")
    return Case(_fitted(model, x, x, "mse", 40), [x], ("values",))


@kind("two heads")
def two_heads() -> Case:
    x = _table()
    y = [_classes(x), x[:, 4:5] - np.abs(x[:, 5:6])]
    source = keras.Input((8,))
    h = layers.Dense(32, activation="relu", name="hidden")(source)
    h = layers.Dense(24, activation="relu")(h)
    outputs = [
        layers.Dense(4, "softmax", name="class")(h),
        layers.Dense(1, name="size")(layers.Dense(12, activation="relu")(h)),
    ]
    model = keras.Model(source, outputs, name="heads")
    losses = ["sparse_categorical_crossentropy", "mse"]
    return Case(_fitted(model, x, y, losses, 40), [x], ("classes", "values"))


def _images(samples: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Bright squares on noise; a mask of 1 for the square and 2 for its right neighbour."""
    random = _random()
    x = random.normal(0, 0.3, size=(samples, 12, 12, 1)).astype("float32")
    mask = np.zeros((samples, 12, 12), "int32")
    for image, label in zip(x, mask, strict=True):
        row, column = random.integers(1, 7, 2)
        image[row : row + 4, column : column + 4] += 2
        label[row : row + 4, column : column + 4] = 1
        image[row : row + 4, column + 4 : column + 6] -= 2
        label[row : row + 4, column + 4 : column + 6] = 2
    return x, mask


@kind("segmentation")
def segmentation() -> Case:
    x, mask = _images()
    source = keras.Input((12, 12, 1))
    h = layers.Conv2D(8, 3, padding="same", activation="relu", name="hidden")(source)
    h = layers.Conv2D(8, 3, padding="same", activation="relu")(h)
    model = keras.Model(source, layers.Conv2D(3, 1, activation="softmax")(h), name="segmentation")
    fitted = _fitted(model, x, mask, "sparse_categorical_crossentropy", 8)
    return Case(fitted, [x], ("classes",))


@kind("embedding")
def embedding() -> Case:
    x, mask = _images()
    place = np.stack([(mask > 0).sum(2).argmax(1), (mask > 0).sum(1).argmax(1)], 1) / 6 - 1.0
    source = keras.Input((12, 12, 1))
    h = layers.Conv2D(8, 3, strides=2, activation="relu", name="hidden")(source)
    h = layers.Dense(32, activation="relu")(layers.Flatten()(h))
    model = keras.Model(source, layers.Dense(6, name="embedding")(h), name="embedding")
    directions = _random().normal(size=(2, 6))
    return Case(_fitted(model, x, place @ directions, "mse", 25), [x], ("values",))


@kind("normalization inside")
def normalization() -> Case:
    def made(scales: Sequence[float]) -> Case:
        raw = _table(4)
        x = raw * np.asarray(scales, "float32")
        y = raw[:, :1] + np.abs(raw[:, 1:2]) - raw[:, 2:3]
        norm = layers.Normalization(name="norm")
        norm.adapt(x)
        source = keras.Input((4,))
        h = layers.Dense(24, activation="relu", name="hidden")(norm(source))
        h = layers.Dense(16, activation="relu")(h)
        model = keras.Model(source, layers.Dense(1)(h), name="normalized")
        return Case(_fitted(model, x, y, "mse"), [x], ("values",))

    return dataclasses.replace(made((1, 2, 0.8, 1.5)), erased=lambda: made((1, 1000, 2, 1000)))


@kind("streaming, state in and out")
def streaming() -> Case:
    random = _random()
    frame = random.normal(size=(2000, 6)).astype("float32")
    state = random.normal(size=(2000, 8)).astype("float32")
    sources = [keras.Input((6,), name="frame"), keras.Input((8,), name="state")]
    h = layers.Dense(24, activation="relu", name="hidden")(layers.Concatenate()(sources))
    outputs = [
        layers.Dense(1, "sigmoid", name="wake")(layers.Dense(12, activation="relu")(h)),
        layers.Dense(8, name="next_state")(h),
    ]
    model = keras.Model(sources, outputs, name="streaming")
    wake = (frame[:, 0] + state[:, 0] > 0).astype("float32")
    after = np.concatenate([0.5 * state[:, 2:], frame[:, :2]], 1)
    fitted = _fitted(model, [frame, state], [wake, after], ["binary_crossentropy", "mse"], 40)
    return Case(fitted, [frame, state], ("labels", "values"))


@kind("detection heads")
def detection() -> Case:
    x, mask = _images()
    place = np.stack([(mask > 0).sum(2).argmax(1), (mask > 0).sum(1).argmax(1)], 1) / 11
    boxes = np.stack([place, place + 0.3], 1).reshape(-1, 1, 4).repeat(2, 1)
    boxes += np.array([[0.0], [0.05]])
    source = keras.Input((12, 12, 1))
    h = layers.Conv2D(8, 3, strides=2, activation="relu", name="hidden")(source)
    h = layers.Dense(32, activation="relu")(layers.Flatten()(h))
    outputs = [
        layers.Reshape((2, 4), name="boxes")(layers.Dense(8)(h)),
        layers.Reshape((2, 1), name="scores")(layers.Dense(2, "sigmoid")(h)),
    ]
    model = keras.Model(source, outputs, name="detection")
    near = (place.sum(1) > 0.7).astype("float32")
    scores = np.stack([near, 1 - near], 1)[:, :, None]
    fitted = _fitted(model, x, [boxes, scores], ["mse", "binary_crossentropy"], 30)
    return Case(fitted, [x], ("values", "labels"))


# --- ways to destroy a file -----------------------------------------------------------------------

_WEIGHTED = ("FULLY_CONNECTED", "CONV_2D")


def _weighted(data: bytes) -> list[tuple[int, int]]:
    """Returns (weights, bias) of each weighted operator of a file, as indices of tensors."""
    flat = read_tflite(data)
    return [(o.inputs[1], o.inputs[2]) for o in flat.operators if o.code in _WEIGHTED]


def _numbers(model: Any, tensor: int, dtype: str) -> np.ndarray:
    buffer = model.buffers[model.subgraphs[0].tensors[tensor].buffer]
    return np.frombuffer(bytes(bytearray(buffer.data)), dtype).copy()


def _store(model: Any, tensor: int, values: np.ndarray) -> None:
    index = model.subgraphs[0].tensors[tensor].buffer
    model.buffers[index].data = np.frombuffer(values.tobytes(), np.uint8)


def _channels(model: Any, tensor: int) -> np.ndarray:
    shape = list(model.subgraphs[0].tensors[tensor].shape)
    return _numbers(model, tensor, "i1").reshape(shape[0], -1)


def erased_filter(data: bytes) -> bytes:
    """The strongest column of each last layer becomes its bias."""
    model = unpack(data)
    for weights, _ in _last(data):
        values = _channels(model, weights)
        values[np.square(values.astype(int)).sum(1).argmax()] = 0
        _store(model, weights, values)
    return pack(model)


def _last(data: bytes) -> list[tuple[int, int]]:
    """Returns the weighted operators that no other weighted operator follows."""
    flat = read_tflite(data)
    reach: dict[int, set[int]] = {}
    final: dict[int, tuple[int, int]] = {}
    for operator in flat.operators:
        before = set().union(*(reach.get(i, set()) for i in operator.inputs if i >= 0))
        if operator.code in _WEIGHTED:
            for index in before:
                final.pop(index, None)
            final[operator.index] = (operator.inputs[1], operator.inputs[2])
            before = {operator.index}
        for output in operator.outputs:
            reach[output] = before
    return list(final.values())


def swapped_channels(data: bytes) -> bytes:
    """The filters of the first layer change places, each with the one half a layer on."""
    model = unpack(data)
    weights, bias = _weighted(data)[0]
    tensors = model.subgraphs[0].tensors
    values = _channels(model, weights)
    order = np.roll(np.arange(len(values)), len(values) // 2)
    _store(model, weights, values[order])
    _store(model, bias, _numbers(model, bias, "<i4")[order])
    for index in (weights, bias):
        scales = np.asarray(tensors[index].quantization.scale, np.float32)
        if scales.size == len(order):
            tensors[index].quantization.scale = scales[order]
    return pack(model)


def wrong_scale(data: bytes) -> bytes:
    """The scales of the first layer's weights are a thirtieth of what they were."""
    model = unpack(data)
    for index in _weighted(data)[0]:
        quantization = model.subgraphs[0].tensors[index].quantization
        quantization.scale = np.asarray(quantization.scale, np.float32) / np.float32(30)
    return pack(model)


def clipped_input(data: bytes) -> bytes:
    """The inputs' range ends at zero: what is larger is clipped."""
    model = unpack(data)
    for index in model.subgraphs[0].inputs:
        quantization = model.subgraphs[0].tensors[index].quantization
        quantization.zeroPoint = np.full_like(np.asarray(quantization.zeroPoint), 127)
    return pack(model)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "erased column": erased_filter,
    "swapped channels": swapped_channels,
    "wrong scale": wrong_scale,
    "clipped input": clipped_input,
}


def _damaged(change: Callable[[bytes], bytes]) -> Any:
    """Returns the int8 format with a change of the file that it makes."""
    plain = FORMATS["int8"]

    def make(request: FormatRequest) -> FormatResult:
        product = plain.make(request)
        main = dataclasses.replace(product.main, data=change(product.main.data))
        artifacts = tuple(main if a is product.main else a for a in product.artifacts)
        return dataclasses.replace(product, artifacts=artifacts, main=main, layers=None)

    return dataclasses.replace(plain, make=make)


for _name, _change in DAMAGES.items():
    FORMATS.register(_name)(_damaged(_change))


def stale_ranges(case: Case, trusted: bool) -> None:
    """Learns ranges, then changes the weights under them.

    What `hidden` gives moves far beyond its learnt range, and the layers behind it take that back.

    Args:
        case: Its model is changed.
        trusted: Forge the record, so that the ranges look as if they belonged to the weights.
    """
    model, x = case.model, case.x if len(case.x) > 1 else case.x[0]
    loss = model.get_compile_config()
    # Its own outputs are the targets: the ranges are learnt, and the weights hardly move.
    model.compile(keras.optimizers.Adam(1e-5), "mse")
    learning = ec.QuantizationAwareTraining(ec.Int8())
    model.fit(x, model.predict(x, verbose=0), epochs=1, verbose=0, callbacks=[learning])
    model.compile_from_config(loss)
    hidden = model.get_layer("hidden")
    shift = 3 * record_of(model).ranges["hidden"][1]
    kernel, bias = hidden.get_weights()
    hidden.set_weights([kernel, bias + shift])
    flat = [hidden.output]
    for layer in model.layers:
        if isinstance(layer, layers.Flatten) and layer.input is hidden.output:
            flat.append(layer.output)
    for layer in model.layers:
        if hasattr(layer, "kernel") and any(layer.input is tensor for tensor in flat):
            kernel, bias = layer.get_weights()
            moved = shift * kernel.sum(tuple(range(kernel.ndim - 1)))
            layer.set_weights([kernel, bias - moved])
    if trusted:
        attach_record(model, tied(record_of(model), model))


# --- what is right --------------------------------------------------------------------------------


def soundness(case: Case, x: Arrays, data: bytes) -> float:
    """Returns how sound a file is, from 1 down: the worst of all outputs and columns.

    The share of equal answers where the Keras model says a class (of signs and labels: in a
    column), and the R2 of a column of values.
    """
    flat = read_tflite(data)
    fed = []
    for array, tensor in zip(x, (flat.tensors[i] for i in flat.inputs), strict=True):
        if tensor.scales:
            codes = np.rint(array / np.float32(tensor.scales[0])) + tensor.zero_points[0]
            array = np.clip(codes, -128, 127).astype("i1")
        fed.append(array)
    run = run_engine("litert", data, fed)
    wanted = case.model.predict(x if len(x) > 1 else x[0], verbose=0)
    wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    worst = 1.0
    for what, expected, raw, index in zip(
        case.kinds, wanted, run.outputs, flat.outputs, strict=True
    ):
        tensor = flat.tensors[index]
        got = raw.astype(np.float64)
        if tensor.scales:
            got = (got - tensor.zero_points[0]) * tensor.scales[0]
        got = got.reshape(expected.shape)
        if what == "classes":
            equal, classes = got.argmax(-1) == expected.argmax(-1), expected.argmax(-1)
            worst = min(worst, *(float(equal[classes == c].mean()) for c in np.unique(classes)))
        elif what in ("signs", "labels"):
            cut = 0.0 if what == "signs" else 0.5
            equal = ((got >= cut) == (expected >= cut)).reshape(-1, expected.shape[-1])
            worst = min(worst, float(equal.mean(0).min()))
        else:
            columns = expected.reshape(-1, expected.shape[-1])
            errors = ((got.reshape(columns.shape) - columns) ** 2).sum(0)
            spread = ((columns - columns.mean(0)) ** 2).sum(0)
            worst = min(worst, float((1 - errors / spread).min()))
    return worst


@dataclasses.dataclass(frozen=True)
class Cell:
    """What `export` said of one file, and what is right."""

    verdict: str
    exit_code: int
    sound: float
    reason: str

    @property
    def right(self) -> bool | None:
        """Whether the verdict is right; None where the file is neither sound nor destroyed."""
        if self.sound >= SOUND:
            return self.exit_code == 0 and self.verdict == "pass"
        if self.sound <= DESTROYED:
            return self.exit_code != 0 and self.verdict != "pass"
        return None

    def __str__(self) -> str:
        sound = f"{self.sound:.2f}" if self.sound >= -9.995 else "< -10"
        mark = {True: "", False: " WRONG", None: " PROVES NOTHING"}[self.right]
        return f"{self.verdict.upper()} ({sound}){mark}"


def judged(case: Case, file_format: str = "int8") -> Cell:
    """Exports a model and compares the verdict with the file."""
    x = [array[:SAMPLES] for array in case.x]
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = ec.export(
                case.model, [TARGET], file_format=file_format, calibration=x, output=folder
            )
        except EdgeCompressError as error:
            return Cell("refused", error.exit_code, -np.inf, str(error))
        shipped = next(a for a in report.artifacts or () if a.kind == "int8")
        data = (Path(folder) / shipped.path).read_bytes()
    (result,) = report.targets
    reason = " ".join(check.reason for check in result.checks if check.verdict == "fail")
    return Cell(report.verdict, report.exit_code, soundness(case, x, data), reason)


SOUND_COLUMNS = ("healthy", "ranges measured again")
COLUMNS = (*SOUND_COLUMNS, "stale ranges", *DAMAGES)


def row(make: Callable[[], Case]) -> dict[str, Cell]:
    """Judges one kind of model in all states."""
    case = make()
    cells = {"healthy": judged(case)}
    for name in DAMAGES:
        if name == "erased column" and case.erased is not None:
            cells[name] = judged(case.erased())
        else:
            cells[name] = judged(case, name)
    # The last two change the model.
    stale_ranges(case, trusted=True)
    cells["stale ranges"] = judged(case)
    attach_record(case.model, dataclasses.replace(record_of(case.model), weights={"hidden": "0"}))
    cells["ranges measured again"] = judged(case)
    return cells


def _text(column: str, cell: Cell) -> str:
    """Returns a cell, and says where a destruction did not reach the file."""
    missed = column not in SOUND_COLUMNS and cell.sound >= SOUND
    return f"{cell}, not reached" if missed else str(cell)


def main() -> int:
    """Prints the table; returns 1 where a cell is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=list(CASES), action="append", help="only these kinds")
    parser.add_argument("--reasons", action="store_true", help="print the reason of every failure")
    options = parser.parse_args()
    start = time.monotonic()
    table = {}
    for name in options.kind or CASES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        table[name] = row(CASES[name])
        if options.reasons:
            for column, cell in table[name].items():
                print(f"  {column}: {cell} {cell.reason}", file=sys.stderr, flush=True)
    print("| kind | " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name, cells in table.items():
        texts = [_text(column, cells[column]) for column in COLUMNS]
        print(f"| {name} | " + " | ".join(texts) + " |")
    every = [cell for cells in table.values() for cell in cells.values()]
    passed = sum(c.right is False and c.sound <= DESTROYED for c in every)
    failed = sum(c.right is False and c.sound >= SOUND for c in every)
    open_ = sum(c.right is None for c in every)
    print(
        f"\n{len(every)} cells: {passed} wrong PASS, {failed} wrong FAIL, {open_} that prove "
        f"nothing; {time.monotonic() - start:.0f} s"
    )
    return 1 if passed or failed or open_ else 0


if __name__ == "__main__":
    sys.exit(main())
