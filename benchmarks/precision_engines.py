"""Finds which engine runs which operator in which precision, by models of one operator.

    python benchmarks/precision_engines.py [--docs docs/quantization.md]

Each model is converted in each precision and run in every engine on this computer. An engine `runs`
it if its outputs are within 3 % of the output's range of LiteRT's, which must be within 25 % of the
Keras model's; else it is `wrong`; `refuses` means an error while loading or running. The kernels of
CMSIS-NN are looked up in the table of measured operators (`targets/tflm/operator_support.csv`).
`float`: the operator or its weights stay in float; `int8`: its weights keep 8 bits. With `--docs`,
the table replaces what is between the page's markers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.errors import ConversionError, EngineError
from edgecompress.core.options import named
from edgecompress.engines.registry import ENGINES, LITERT
from edgecompress.engines.run import engine_available, run_engine
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import pack_codes
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.base import Precision
from edgecompress.targets.operators import unmeasured, unsupported
from edgecompress.targets.profile import load_target

layers = keras.layers
Layer = Callable[[Any], Any]

# Of int4 and int2, every filter that can have so few bits.
PRECISION_NAMES = (
    "int8",
    "int16x8",
    "int4:edge-bits=4,depthwise-bits=4",
    "int4:edge-bits=4,scale-per-unit=true",
    "int2:edge-bits=2",
    "dynamic-range",
    "float16",
)
_MAP, _VECTOR, _TOKENS = (8, 8, 4), (12,), (6,)
OPERATORS: dict[str, tuple[tuple[int, ...], Layer]] = {
    "Dense": (_VECTOR, layers.Dense(6)),
    "Conv2D": (_MAP, layers.Conv2D(6, 3, activation="relu")),
    "Conv2D, grouped": (_MAP, layers.Conv2D(6, 3, groups=2)),
    "DepthwiseConv2D": (_MAP, layers.DepthwiseConv2D(3, activation="relu6")),
    "Conv2DTranspose": (_MAP, layers.Conv2DTranspose(3, 2, strides=2)),
    "Add": (_MAP, lambda x: layers.Add()([x, layers.ReLU()(x)])),
    "Multiply": (_MAP, lambda x: layers.Multiply()([x, layers.ReLU()(x)])),
    "Concatenate": (_MAP, lambda x: layers.Concatenate()([x, layers.ReLU()(x)])),
    "MaxPooling2D": (_MAP, layers.MaxPooling2D(2)),
    "AveragePooling2D": (_MAP, layers.AveragePooling2D(2)),
    "GlobalAveragePooling2D": (_MAP, layers.GlobalAveragePooling2D()),
    "GlobalMaxPooling2D": (_MAP, layers.GlobalMaxPooling2D()),
    "ZeroPadding2D": (_MAP, layers.ZeroPadding2D(1)),
    "ReLU": (_MAP, layers.ReLU()),
    "LeakyReLU": (_MAP, layers.LeakyReLU()),
    "hard swish": (_MAP, layers.Activation("hard_silu")),
    "sigmoid": (_VECTOR, layers.Activation("sigmoid")),
    "tanh": (_VECTOR, layers.Activation("tanh")),
    "softmax": (_VECTOR, layers.Softmax()),
    "GELU": (_VECTOR, layers.Activation("gelu")),
    "Embedding": (_TOKENS, layers.Embedding(30, 8)),
}
_WEIGHTED = ("Dense", "Conv", "Depthwise", "Embedding")
_NEAR, _LIKE = 0.03, 0.25
# Engines as columns; the last one is looked up.
_CMSIS = "TFLM, CMSIS-NN"
COLUMNS = {"litert": "LiteRT", "tflite-runtime": "tflite-runtime", "lce": "LCE",
           "tflm": "TFLM, reference"}  # fmt: skip


def _model(operator: str) -> tuple[keras.Model, np.ndarray]:
    shape, layer = OPERATORS[operator]
    keras.utils.set_random_seed(4)
    random = np.random.default_rng(4)
    if shape == _TOKENS:
        source = keras.Input(shape, dtype="int32")
        return keras.Model(source, layer(source)), random.integers(0, 30, (16, *shape), np.int32)
    source = keras.Input(shape)
    x = random.normal(size=(16, *shape)).astype("f4")
    return keras.Model(source, layer(source)), x


def _range_of(values: np.ndarray) -> float:
    return float(np.ptp(values)) or 1.0


def _wider(flat: FlatModel, precision: Precision) -> str:
    """Returns in what an operator or its weights stay, if not in the precision."""
    inner = [o for o in flat.operators if o.code not in ("QUANTIZE", "DEQUANTIZE")]
    types = {flat.tensors[i].type for o in inner for i in (*o.inputs, *o.outputs) if i >= 0}
    if precision.activation_bits < 32:
        if "FLOAT32" in types:
            return "float"
        few = precision.stored_bits < 8
        return "int8" if few and f"INT{precision.stored_bits}" not in types else ""
    large = {t.type for t in flat.tensors if t.is_constant and t.elements > 32}
    return "float" if large == {"FLOAT32"} else ""


def _cmsis(flat: FlatModel) -> str:
    board = load_target("cortex-m4")
    if unsupported(flat, board, "cmsis-nn"):
        return "refuses"
    return "not measured" if unmeasured(flat, board, "cmsis-nn") else "runs"


def row(operator: str, text: str) -> dict[str, str]:
    """Returns what each engine does with one operator in one precision."""
    precision = named(PRECISIONS, text, "precision")
    model, x = _model(operator)
    expected = model.predict(x, verbose=0)
    try:
        made = int8.convert(float32.convert(model), calibration=[x], precision=precision)
    except ConversionError as error:
        return dict.fromkeys((*COLUMNS.values(), _CMSIS), f"no file: {error}"[:60])
    flat = made.flat
    inputs = quantized_inputs(flat, [x])
    outputs: dict[str, np.ndarray] = {}
    found: dict[str, str] = {}
    for engine, title in COLUMNS.items():
        if engine_available(engine) is not None:
            found[title] = "not installed"
            continue
        try:
            codes = run_engine(engine, flat.data, inputs).outputs[0]
        except EngineError:
            found[title] = "refuses"
            continue
        outputs[engine] = dequantize(codes, flat.tensors[flat.outputs[0]])
        reference, limit = (expected, _LIKE) if engine == LITERT else (outputs[LITERT], _NEAR)
        error = np.abs(outputs[engine] - reference).max() / _range_of(expected)
        found[title] = "runs" if error <= limit else "wrong"
    found[_CMSIS] = _cmsis(flat)
    if wider := _wider(flat, precision):
        found = {title: f"{what} ({wider})" for title, what in found.items()}
    return found


def _narrow_lookup(form: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Returns a file that looks rows up in a table of 4 bits, token numbers, and its outputs."""
    model, _ = _model("Embedding")
    flat = float32.convert(model).artifact.flat
    (operator,) = flat.operators
    table, tokens, output = operator.inputs[0], operator.inputs[1], operator.outputs[0]
    codes = np.random.default_rng(4).integers(-7, 8, flat.tensors[table].shape)
    scale, editor = np.array([0.125], np.float32), ModelEditor(flat)
    editor.retype(table, "INT4")
    editor.replace(table, pack_codes(codes, 4))
    editor.quantize(table, scale)
    editor.retype(output, "INT8")
    editor.quantize(output, scale)
    real = editor.add(flat.tensors[output].shape, "FLOAT32")
    if form == "GATHER":
        rows = editor.add(flat.tensors[output].shape, "INT4")
        editor.quantize(rows, scale)
        found = editor.new_operator(editor.operator_code(form, 4), [table, tokens], [rows])
        editor.set_options(found, "GatherOptions", axis=0)
        widened = editor.new_operator(editor.operator_code("DEQUANTIZE", 5), [rows], [real])
    else:
        count = editor.add((1,), "INT32", np.array([_TOKENS[0]], np.int32))
        flattened = editor.add(_TOKENS, "INT32")
        found = editor.new_operator(editor.operator_code("RESHAPE"), [tokens, count], [flattened])
        widened = editor.new_operator(editor.operator_code(form, 4), [flattened, table], [real])
        editor.retype(real, "FLOAT32", np.array(flat.tensors[output].shape[1:], np.int32))
        editor.retype(output, "INT8", np.array(flat.tensors[output].shape[1:], np.int32))
    rounded = editor.new_operator(editor.operator_code("QUANTIZE"), [real], [output])
    editor.place_instead(editor.operators[0], [found, widened, rounded])
    x = np.random.default_rng(4).integers(0, 30, (4, *_TOKENS), np.int32)
    return editor.pack(), x, codes[x]


def narrow_lookups() -> list[str]:
    """Returns a table of what engines do with tables of 4 bits, in Markdown."""
    lines = ["Lookups in a table of 4 bits:", "", f"| operator | {' | '.join(COLUMNS.values())} |",
             f"| --- |{' --- |' * len(COLUMNS)}"]  # fmt: skip
    for form in ("GATHER", "EMBEDDING_LOOKUP"):
        data, x, expected = _narrow_lookup(form)
        cells = []
        for engine in COLUMNS:
            if engine_available(engine) is not None:
                cells.append("not installed")
                continue
            try:
                found = run_engine(engine, data, [x]).outputs[0]
            except EngineError:
                cells.append("refuses")
                continue
            same = np.array_equal(found.reshape(expected.shape), expected)
            cells.append("runs" if same else "wrong")
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return lines


def tables() -> str:
    """Returns a table for each precision, in Markdown."""
    versions = ", ".join(
        f"{ENGINES[name].title} {importlib.metadata.version(ENGINES[name].package)}"
        for name in COLUMNS
        if engine_available(name) is None
    )
    lines = [f"Measured with {versions}; CMSIS-NN on a Cortex-M4.", ""]
    titles = (*COLUMNS.values(), _CMSIS)
    for text in PRECISION_NAMES:
        precision = named(PRECISIONS, text, "precision")
        narrow = precision.activation_bits == 32 or precision.stored_bits < 8
        names = [n for n in OPERATORS if not narrow or n.startswith(_WEIGHTED)]
        rows = {name: row(name, text) for name in names}
        lines += [f"`{text}`" + (", layers with weights:" if narrow else ":"), ""]
        lines += [f"| operator | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
        same = [n for n, r in rows.items() if set(r.values()) == {"runs"}]
        if same:
            lines.append(f"| {', '.join(same)} | {' | '.join('runs' for _ in titles)} |")
        lines += [
            f"| {name} | {' | '.join(found[title] for title in titles)} |"
            for name, found in rows.items()
            if name not in same
        ]
        lines.append("")
    return "\n".join([*lines, *narrow_lookups()])


def replaced(page: str, marker: str, text: str) -> str:
    """Returns a page with other text between `<!-- MARKER -->` and `<!-- end -->`."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- end -->)"
    made, count = re.subn(pattern, lambda m: f"{m[1]}{text.strip()}\n{m[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"The page has no section <!-- {marker} --> ... <!-- end -->.")
    return made


def main() -> None:
    """Prints the tables, and writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    text = tables()
    print(text)
    if arguments.docs is not None:
        page = arguments.docs.read_text(encoding="utf-8")
        arguments.docs.write_text(replaced(page, "precision engines", text), encoding="utf-8")


if __name__ == "__main__":
    main()
