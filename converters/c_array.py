"""C++ sources for TensorFlow Lite Micro: the model as an array, its operators, its interface.

A hand-written resolver that lacks an operator fails on the device at start-up; a guessed tensor
arena fails there too, or wastes SRAM. Here both come from the file. The method names are those of
tflite-micro's `micro_mutable_op_resolver.h` (https://github.com/tensorflow/tflite-micro), 2025 or
later.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np

from edgecompress.core.errors import (
    ArgumentError,
    UnknownNameError,
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from edgecompress.core.units import format_size
from edgecompress.engines.registry import TFLM_KERNELS
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor

_ALIGNMENT = 16
_BYTES_IN_A_LINE = 12


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Builtin operators with an Add... method; the method is the code in CamelCase.
_BUILTINS = _words("""
    ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS
    BROADCAST_TO CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D
    DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR
    FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH
    L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOG_SOFTMAX LOGICAL_AND LOGICAL_NOT
    LOGICAL_OR LOGISTIC MAX_POOL_2D MAXIMUM MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2
    PRELU QUANTIZE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX
    SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE
    STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK
    ZEROS_LIKE
""")
# Those that are spelled differently.
_IRREGULAR = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
_CUSTOM = {
    DECODE: "AddDecode",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "CIRCULAR_BUFFER": "AddCircularBuffer",
    "BasicClassifier": "AddBasicClassifier",
    "ethos-u": "AddEthosU",
    "SignalDelay": "AddDelay",
    "SignalEnergy": "AddEnergy",
    "SignalFftAutoScale": "AddFftAutoScale",
    "SignalFilterBank": "AddFilterBank",
    "SignalFilterBankLog": "AddFilterBankLog",
    "SignalFilterBankSpectralSubtraction": "AddFilterBankSpectralSubtraction",
    "SignalFilterBankSquareRoot": "AddFilterBankSquareRoot",
    "SignalFramer": "AddFramer",
    "SignalIrfft": "AddIrfft",
    "SignalOverlapAdd": "AddOverlapAdd",
    "SignalPCAN": "AddPCAN",
    "SignalRfft": "AddRfft",
    "SignalStacker": "AddStacker",
    "SignalWindow": "AddWindow",
}
# Operators that the runtime supports, but that need more than a resolver and an arena.
_SUBGRAPHS = "it runs another subgraph, and these sources are made for one"
_VARIABLES = "it needs resource variables, which the generated program does not set up"
_LEFT_OUT = {
    "CALL_ONCE": _SUBGRAPHS,
    "IF": _SUBGRAPHS,
    "WHILE": _SUBGRAPHS,
    "ASSIGN_VARIABLE": _VARIABLES,
    "READ_VARIABLE": _VARIABLES,
    "VAR_HANDLE": _VARIABLES,
}
# CMSIS-NN kernels with an int8-only variant: the inputs that must be INT8, and the header that
# declares the registration. Other kernel libraries map the same names to their general kernels.
_INT8_ONLY = {
    "ADD": ((0, 1), "add.h"),
    "AVERAGE_POOL_2D": ((0,), "pooling.h"),
    "CONV_2D": ((0, 1), "conv.h"),
    "DEPTHWISE_CONV_2D": ((0, 1), "depthwise_conv.h"),
    "FULLY_CONNECTED": ((0, 1), "fully_connected.h"),
    "MAX_POOL_2D": ((0,), "pooling.h"),
    "MUL": ((0, 1), "mul.h"),
    "SOFTMAX": ((0,), "softmax.h"),
    "TRANSPOSE_CONV": ((1, 2), "transpose_conv.h"),
}
# Type of a tensor -> its C type, its TfLiteType, its member of TfLitePtrUnion.
_C_TYPES = {
    "BOOL": ("bool", "kTfLiteBool", "b"),
    "FLOAT32": ("float", "kTfLiteFloat32", "f"),
    "INT8": ("int8_t", "kTfLiteInt8", "int8"),
    "INT16": ("int16_t", "kTfLiteInt16", "i16"),
    "INT32": ("int32_t", "kTfLiteInt32", "i32"),
    "INT64": ("int64_t", "kTfLiteInt64", "i64"),
    "UINT8": ("uint8_t", "kTfLiteUInt8", "uint8"),
}
_RANGES = {"INT8": (-128, 127), "INT16": (-32768, 32767), "UINT8": (0, 255)}
_KEYWORDS = _words("""
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept
    const consteval constexpr constinit const_cast continue co_await co_return co_yield decltype
    default delete do double dynamic_cast else enum explicit export extern false float for friend
    goto if inline int long main mutable namespace new noexcept not not_eq nullptr operator or or_eq
    private protected public register reinterpret_cast requires restrict return short signed sizeof
    static static_assert static_cast struct switch template this thread_local throw true try typedef
    typeid typename typeof union unsigned using virtual void volatile wchar_t while xor xor_eq
""")


@dataclass(frozen=True)
class _Registration:
    """One call of an Add... method; `variant` is the int8-only registration, "" for the general."""

    operator: str
    method: str
    uses: int
    variant: str = ""
    header: str = ""


@dataclass(frozen=True)
class _Port:
    """One input or output, as the templates need it."""

    kind: str
    index: int
    tensor: int
    label: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    type: str
    c_type: str
    tflite_type: str
    member: str
    scale: str
    zero_point: int
    low: int
    high: int

    @property
    def quantized(self) -> bool:
        """Whether real values are converted with a scale and a zero point."""
        return bool(self.scale)


def identifier(name: str) -> str:
    """Returns a valid identifier of C and C++ for any name.

    Characters other than ASCII letters and digits become single underscores; a name that is empty,
    starts with a digit or is a keyword is prefixed with `model_`. Two names may give the same
    identifier (`a-b`, `a b`).

    Args:
        name: Any text, e.g. a file name without its suffix.

    Example:
        >>> identifier("3d model-v1.2"), identifier("int"), identifier("kws")
        ('model_3d_model_v1_2', 'model_int', 'kws')
    """
    # Two underscores in a row and a leading one are reserved in C++.
    cleaned = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    if not cleaned:
        return "model"
    return f"model_{cleaned}" if cleaned[0].isdigit() or cleaned in _KEYWORDS else cleaned


def generate(
    model: bytes | FlatModel,
    *,
    name: str,
    arena_bytes: int | None,
    kernels: str = "cmsis-nn",
    core: str | None = None,
    decompression_memory: int | None = None,
) -> Mapping[str, str]:
    """Returns C++ sources that hold a model and run it with TensorFlow Lite Micro.

    For the name `kws` these are, in this order: `kws_data.h` and `kws_data.cc` (the file as an
    array aligned to 16 bytes), `kws_resolver.h` (registers exactly the model's operators),
    `kws_config.h` (arena size, inputs and outputs, conversion to and from real values; plain C too)
    and `main.cc`, a program that runs the model once. The same arguments give the same text.

    Args:
        model: The .tflite file, as bytes or read.
        name: The model's name; `identifier(name)` starts every file name and symbol.
        arena_bytes: Size of the tensor arena, rounded up to 16 here: the smallest that allocates
            (`Arena.smallest`), which may be more than is finally used. None if it is not known: the
            program then only compiles with `-D<NAME>_ARENA_BYTES=...`.
        kernels: `cmsis-nn` or `reference`. With CMSIS-NN, operators whose every use is int8 are
            registered with their int8-only kernels, which take less flash. Defaults to `cmsis-nn`.
        core: The core that `arena_bytes` was computed for, e.g. `cortex-m4`; stated in a comment.
            Optional.
        decompression_memory: Bytes of memory outside the arena for the decoded weights of a
            compressed file; the program passes it to the interpreter. Defaults to None: they are in
            the arena.

    Raises:
        ModelFileError: the bytes are not a .tflite file.
        ArgumentError: `arena_bytes` or `decompression_memory` is not a positive size.
        UnknownNameError: `kernels` is unknown.
        UnsupportedOperatorError: TensorFlow Lite Micro lacks an operator of the model.
        UnsupportedModelError: the model has no operators, several subgraphs, or an input or output
            without a form in C.

    Example:
        >>> sources = generate(data, name="kws", arena_bytes=23088)  # doctest: +SKIP
        >>> list(sources)  # doctest: +SKIP
        ['kws_data.h', 'kws_data.cc', 'kws_resolver.h', 'kws_config.h', 'main.cc']
    """
    if kernels not in TFLM_KERNELS:
        raise UnknownNameError("kernels", kernels, TFLM_KERNELS)
    if arena_bytes is not None and arena_bytes < 1:
        raise ArgumentError("arena_bytes", "be a positive size in bytes, or None", arena_bytes)
    if decompression_memory is not None and decompression_memory < 1:
        raise ArgumentError(
            "decompression_memory", "be a positive size in bytes, or None", decompression_memory
        )
    flat = read_tflite(model)
    data = flat.data
    prefix = identifier(name)
    registrations = _registrations(flat, kernels)
    rounded = None if arena_bytes is None else -(-arena_bytes // _ALIGNMENT) * _ALIGNMENT
    values = {
        "id": prefix,
        "ID": prefix.upper(),
        "title": _comment(name),
        "size": len(data),
        "size_text": format_size(len(data)),
        "sha256": hashlib.sha256(data).hexdigest(),
        "lines": _lines(data),
        "arena": rounded,
        "arena_bytes": arena_bytes,
        "decompression": decompression_memory,
        "arena_for": f"{_comment(core)} with {kernels} kernels" if core else f"{kernels} kernels",
        "alignment": _ALIGNMENT,
        "kernels": kernels,
        "registrations": registrations,
        "stateful": any(tensor.is_variable for tensor in flat.tensors),
        "headers": sorted({r.header for r in registrations if r.header}),
        "inputs": [_port(flat, "input", i) for i in range(len(flat.inputs))],
        "outputs": [_port(flat, "output", i) for i in range(len(flat.outputs))],
    }
    names = {
        f"{prefix}_data.h": "c_data.h.jinja",
        f"{prefix}_data.cc": "c_data.cc.jinja",
        f"{prefix}_resolver.h": "c_resolver.h.jinja",
        f"{prefix}_config.h": "c_config.h.jinja",
        "main.cc": "c_main.cc.jinja",
    }
    return {file: _render(template, values) for file, template in names.items()}


def _method(operator: Operator) -> str | None:
    if operator.code == "CUSTOM":
        return _CUSTOM.get(operator.custom_name)
    if operator.code not in _BUILTINS:
        return None
    # "2D" is already spelled as in C++.
    words = [w if w[0].isdigit() else w.capitalize() for w in operator.code.split("_")]
    return _IRREGULAR.get(operator.code, "Add" + "".join(words))


def _is_int8(model: FlatModel, operator: Operator) -> bool:
    """Whether everything an int8-only kernel reads and writes is int8."""
    tensors = [model.tensor(operator, position) for position in _INT8_ONLY[operator.code][0]]
    tensors += [model.tensors[index] for index in operator.outputs]
    return all(tensor is not None and tensor.type == "INT8" for tensor in tensors)


def _registrations(model: FlatModel, kernels: str) -> list[_Registration]:
    uses: dict[str, list[Operator]] = {}
    problems: dict[str, str] = {}
    for operator in model.operators:
        uses.setdefault(operator.name, []).append(operator)
        reason = _LEFT_OUT.get(operator.code)
        if reason is None and _method(operator) is None:
            reason = "TensorFlow Lite Micro has no method that registers it"
        if reason:
            where = f"operator {operator.index} {operator.name}"
            problems.setdefault(operator.name, f"{where}: {reason}")
    if problems:
        raise UnsupportedOperatorError(
            f"No C sources: {'; '.join(problems.values())}. Build the layer from other operators."
        )
    if model.subgraphs != 1:
        raise UnsupportedModelError(
            f"No C sources: the model has {model.subgraphs} subgraphs, and these sources are made "
            "for one. Convert one function or signature at a time."
        )
    if not uses:
        raise UnsupportedModelError("No C sources: the model has no operators.")
    found = []
    for name, operators in uses.items():
        code, method = operators[0].code, _method(operators[0]) or ""
        small = kernels == "cmsis-nn" and code in _INT8_ONLY
        if small and all(_is_int8(model, operator) for operator in operators):
            variant, header = f"tflite::Register_{code}_INT8()", _INT8_ONLY[code][1]
            found.append(_Registration(name, method, len(operators), variant, header))
        else:
            found.append(_Registration(name, method, len(operators)))
    return sorted(found, key=lambda registration: registration.method)


def _port(model: FlatModel, kind: str, index: int) -> _Port:
    number = (model.inputs if kind == "input" else model.outputs)[index]
    tensor: Tensor = model.tensors[number]
    if tensor.type not in _C_TYPES or not tensor.elements:
        raise UnsupportedModelError(
            f"No C sources: {kind} {index} ({tensor.name!r}) is {tensor.type} of shape "
            f"{tensor.shape}; known are {', '.join(_C_TYPES)} with at least one element."
        )
    c_type, tflite_type, member = _C_TYPES[tensor.type]
    quantized = len(tensor.scales) == 1 and tensor.type in _RANGES
    if quantized and not 0 < tensor.scales[0] < math.inf:
        raise UnsupportedModelError(
            f"No C sources: {kind} {index} ({tensor.name!r}) has the scale {tensor.scales[0]}, "
            "which must be positive and finite."
        )
    low, high = _RANGES.get(tensor.type, (0, 0))
    return _Port(
        kind=kind,
        index=index,
        tensor=number,
        label=_comment(tensor.name.split(";")[0]),
        shape=tensor.shape,
        elements=tensor.elements,
        bytes=tensor.bytes,
        type=tensor.type,
        c_type=c_type,
        tflite_type=tflite_type,
        member=member,
        scale=_float_literal(tensor.scales[0]) if quantized else "",
        zero_point=tensor.zero_points[0] if quantized and tensor.zero_points else 0,
        low=low,
        high=high,
    )


def _float_literal(value: float) -> str:
    """The shortest literal that a compiler reads back as the same float."""
    text = str(np.float32(value))
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _comment(text: str) -> str:
    """Text that cannot end or continue a comment."""
    return re.sub(r"[^A-Za-z0-9_.,:/ -]", "_", text)[:80]


def _lines(data: bytes) -> list[str]:
    step = _BYTES_IN_A_LINE
    return [
        ", ".join(f"0x{byte:02x}" for byte in data[start : start + step])
        for start in range(0, len(data), step)
    ]


def _render(template: str, values: Mapping[str, object]) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=False,  # C++ is not HTML; text from the file has passed through _comment.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = (resources.files("edgecompress.converters") / template).read_text("utf-8")
    return environment.from_string(source).render(values)
