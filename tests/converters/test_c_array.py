"""C++ sources from a .tflite: they compile, they run, and the resolver names what the model uses.

The compiler is the judge of the text. Small headers written here stand in for TensorFlow Lite
Micro; their names were taken from its public headers, not from the module under test.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters import c_array
from edgecompress.converters.c_array import generate, identifier
from edgecompress.core.errors import (
    ArgumentError,
    ModelFileError,
    UnknownNameError,
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from edgecompress.engines.registry import TFLM_KERNELS
from edgecompress.flatbuffers.packing import pack
from edgecompress.flatbuffers.reading import read_tflite

pytestmark = pytest.mark.slow

_FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
# Methods of MicroMutableOpResolver that take no name, as tflite-micro's all-operators programs call
# them.
_METHODS = """
    Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BasicClassifier BatchMatMul
    BatchToSpaceNd BroadcastArgs BroadcastTo CallOnce Cast Ceil CircularBuffer Concatenation Conv2D
    Cos CumSum Decode Delay DepthToSpace DepthwiseConv2D Dequantize DetectionPostprocess Div
    DynamicUpdateSlice EmbeddingLookup Energy Elu Equal EthosU Exp ExpandDims FftAutoScale Fill
    FilterBank FilterBankLog FilterBankSquareRoot FilterBankSpectralSubtraction Floor FloorDiv
    FloorMod Framer FullyConnected Gather GatherNd Greater GreaterEqual HardSwish If Irfft
    L2Normalization L2Pool2D LeakyRelu Less LessEqual Log LogicalAnd LogicalNot LogicalOr Logistic
    LogSoftmax Maximum MaxPool2D MirrorPad Mean Minimum Mul Neg NotEqual OverlapAdd Pack Pad PadV2
    PCAN Prelu Quantize ReadVariable ReduceAll ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear
    ResizeNearestNeighbor ReverseV2 Rfft Round Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd
    SpaceToDepth Split SplitV Squeeze Sqrt Square SquaredDifference StridedSlice Stacker Sub Sum
    Svdf Tanh TransposeConv Transpose Unpack UnidirectionalSequenceLSTM VarHandle While Window
    ZerosLike
""".split()  # noqa: SIM905 - a list of this length is read more easily as words
_INT8_HEADERS = {
    "add.h": ["ADD"],
    "conv.h": ["CONV_2D"],
    "depthwise_conv.h": ["DEPTHWISE_CONV_2D"],
    "fully_connected.h": ["FULLY_CONNECTED"],
    "mul.h": ["MUL"],
    "pooling.h": ["AVERAGE_POOL_2D", "MAX_POOL_2D"],
    "softmax.h": ["SOFTMAX"],
    "transpose_conv.h": ["TRANSPOSE_CONV"],
}
_COMMON = """
#pragma once
#include <cstddef>
#include <cstdint>
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
enum TfLiteType { kTfLiteNoType, kTfLiteFloat32, kTfLiteInt32, kTfLiteUInt8, kTfLiteInt64,
                  kTfLiteBool, kTfLiteInt16, kTfLiteInt8 };
union TfLitePtrUnion { int32_t* i32; int64_t* i64; float* f; uint8_t* uint8; bool* b; int16_t* i16;
                       int8_t* int8; void* data; };
struct TfLiteTensor { TfLitePtrUnion data; size_t bytes; TfLiteType type; };
struct TFLMRegistration { const char* name; };
"""
_INTERPRETER = """
#pragma once
#include <cstdlib>
#include <cstring>
#include "tensorflow/lite/micro/micro_common.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#define TFLITE_SCHEMA_VERSION (3)
#include <initializer_list>
namespace tflite {
struct MicroContext {
  struct AlternateMemoryRegion {
    void* address;
    size_t bytes;
  };
};
// Answers every output with the first input's bytes, one after the other.
class MicroInterpreter {
 public:
  MicroInterpreter(const Model*, const MicroOpResolver&, uint8_t* arena, size_t size)
      : arena_(arena), size_(size) {}
  TfLiteStatus AllocateTensors() {
    allocated_ = true;
    if (reinterpret_cast<uintptr_t>(arena_) % 16 != 0) return kTfLiteError;
    const char* needed = getenv("ARENA_NEEDED");
    return needed != nullptr && size_ < strtoul(needed, nullptr, 10) ? kTfLiteError : kTfLiteOk;
  }
  // Only before AllocateTensors(), and the list must outlive the interpreter.
  TfLiteStatus SetDecompressionMemory(
      const std::initializer_list<MicroContext::AlternateMemoryRegion>& regions) {
    const char* wanted = getenv("DECOMPRESSION_BYTES");
    if (allocated_ || regions.size() != 1 || wanted == nullptr) return kTfLiteError;
    const MicroContext::AlternateMemoryRegion& region = *regions.begin();
    if (reinterpret_cast<uintptr_t>(region.address) % 16 != 0) return kTfLiteError;
    return region.bytes == strtoul(wanted, nullptr, 10) ? kTfLiteOk : kTfLiteError;
  }
  TfLiteStatus Invoke() { return getenv("INVOKE_FAILS") ? kTfLiteError : kTfLiteOk; }
  TfLiteTensor* input(size_t index) { return tensor(getenv("INPUT_TYPE"), index, 0); }
  TfLiteTensor* output(size_t index) { return tensor(getenv("OUTPUT_TYPE"), index, 4); }

 private:
  TfLiteTensor* tensor(const char* types, size_t index, size_t base) {
    TfLiteTensor& found = tensors_[base + index];
    static char memory[8][1 << 18];
    found.data.data = memory[base + index];
    for (; index > 0; --index) types = strchr(types, ';') + 1;
    found.type = static_cast<TfLiteType>(strtoul(types, nullptr, 10));
    found.bytes = strtoul(strchr(types, ',') + 1, nullptr, 10);
    return &found;
  }
  bool allocated_ = false;
  uint8_t* arena_;
  size_t size_;
  TfLiteTensor tensors_[8];
};
}  // namespace tflite
"""
_RESOLVER = """
#pragma once
#include <cstdio>
#include <cstring>
#include "tensorflow/lite/micro/micro_common.h"
namespace tflite {
class MicroOpResolver {};
template <unsigned int N>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
%s
 private:
  TfLiteStatus add(const char* name, const TFLMRegistration& registration) {
    if (count_ >= N) return kTfLiteError;
    for (unsigned int i = 0; i < count_; ++i)
      if (strcmp(names_[i], name) == 0) return kTfLiteError;
    names_[count_++] = name;
    printf("%%s(%%s)/%%u\\n", name, registration.name, N);
    return kTfLiteOk;
  }
  const char* names_[N];
  unsigned int count_ = 0;
};
}  // namespace tflite
"""
_LOG = """
#pragma once
#include <cstdio>
#define MicroPrintf(...) (printf(__VA_ARGS__), printf("\\n"))
"""
_SCHEMA = """
#pragma once
#include <cstdint>
#include <cstring>
namespace tflite {
struct Model {
  const unsigned char* data;
  uint32_t version() const { return memcmp(data + 4, "TFL3", 4) == 0 ? 3 : 0; }
};
inline const Model* GetModel(const void* data) {
  static Model model;
  model.data = static_cast<const unsigned char*>(data);
  return &model;
}
}  // namespace tflite
"""
_TFLITE_TYPES = {
    "FLOAT32": 1, "INT32": 2, "UINT8": 3, "INT64": 4, "BOOL": 5, "INT16": 6, "INT8": 7,
}  # fmt: skip


_FLAT = ("FULLY_CONNECTED", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM")


def _compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _stubs(folder: Path) -> Path:
    """Writes the stand-in for TensorFlow Lite Micro; returns the folder to include."""
    micro = folder / "tensorflow" / "lite" / "micro"
    (micro / "kernels").mkdir(parents=True)
    (folder / "tensorflow" / "lite" / "schema").mkdir()
    methods = "\n".join(
        f'  TfLiteStatus Add{m}(const TFLMRegistration& r = {{"general"}}) '
        f'{{ return add("Add{m}", r); }}'
        for m in _METHODS
    )
    (micro / "micro_common.h").write_text(_COMMON)
    (micro / "micro_mutable_op_resolver.h").write_text(_RESOLVER % methods)
    (micro / "micro_interpreter.h").write_text(_INTERPRETER)
    (micro / "micro_log.h").write_text(_LOG)
    (micro / "system_setup.h").write_text("namespace tflite { inline void InitializeTarget() {} }")
    (folder / "tensorflow" / "lite" / "schema" / "schema_generated.h").write_text(_SCHEMA)
    for header, operators in _INT8_HEADERS.items():
        registrations = "".join(
            f'inline TFLMRegistration Register_{o}_INT8() {{ return {{"{o}_INT8"}}; }}\n'
            for o in operators
        )
        (micro / "kernels" / header).write_text(
            '#pragma once\n#include "tensorflow/lite/micro/micro_common.h"\n'
            f"namespace tflite {{\n{registrations}}}\n"
        )
    return folder


def _write(sources: Mapping[str, str], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in sources.items():
        (folder / name).write_text(text)
    return folder


def _run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment or None
    )


def _build(sources: Mapping[str, str], tmp_path: Path, *flags: str) -> Path:
    """Compiles all sources with the stand-in; returns the program."""
    compiler = _compiler("g++")
    include, folder = _stubs(tmp_path / "include"), _write(sources, tmp_path / "sources")
    program = tmp_path / "program"
    done = _run(
        [compiler, *_FLAGS, *flags, "-I", include, *sorted(folder.glob("*.cc")), "-o", program]
    )
    assert done.returncode == 0, done.stderr
    return program


def _interface(model: bytes) -> dict[str, str]:
    """What the stand-in interpreter answers when it is asked for inputs and outputs."""
    flat = read_tflite(model)

    def described(indices: Sequence[int]) -> str:
        tensors = [flat.tensors[i] for i in indices]
        return ";".join(f"{_TFLITE_TYPES[t.type]},{t.bytes}" for t in tensors)

    return {"INPUT_TYPE": described(flat.inputs), "OUTPUT_TYPE": described(flat.outputs)}


def _model(
    *codes: str | bytes,
    types: tuple[str, str, str] = ("INT8", "INT8", "INT8"),
    scale: float = 0.1,
    zero_point: int = 3,
    label: str = "in",
    subgraphs: int = 1,
) -> bytes:
    """Operators with weights, made by hand from the schema; bytes are the names of custom ones."""
    from ai_edge_litert import schema_py_generated as s

    def quantization() -> Any:
        return s.QuantizationParametersT(
            scale=np.float32([scale]), zeroPoint=np.int64([zero_point])
        )

    # Some operators take weights of four dimensions, others (_FLAT) of two.
    rows = [(types[0], label, [1, 1, 1, 4]), (types[1], "weights", [1, 1, 1, 4])]
    rows += [(types[2], "out", [1, 1, 1, 4]), (types[1], "weights", [1, 4])]
    tensors = [
        s.TensorT(
            shape=np.int32(shape), type=getattr(s.TensorType, kind), name=name,
            buffer=2 if name == "weights" else 1, quantization=quantization(),
        )
        for kind, name, shape in rows
    ]  # fmt: skip
    operator_codes = []
    for code in codes:
        number = 32 if isinstance(code, bytes) else getattr(s.BuiltinOperator, code)
        operator_codes.append(
            s.OperatorCodeT(
                builtinCode=number, deprecatedBuiltinCode=min(number, 127),
                customCode=code if isinstance(code, bytes) else None,
            )
        )  # fmt: skip
    graph = s.SubGraphT(
        tensors=tensors, inputs=np.int32([0]), outputs=np.int32([2]),
        operators=[
            s.OperatorT(
                # The third is what TRANSPOSE_CONV reads; the first is then the result's shape.
                opcodeIndex=i, inputs=np.int32([0, 3 if code in _FLAT else 1, 0]),
                outputs=np.int32([2]),
            )
            for i, code in enumerate(codes)
        ],
    )  # fmt: skip
    weights = s.BufferT(data=np.arange(16, dtype=np.uint8))
    model = s.ModelT(
        version=3, operatorCodes=operator_codes, subgraphs=[graph] * subgraphs,
        buffers=[s.BufferT(), s.BufferT(), weights],
    )  # fmt: skip
    return pack(model)


def _calls(sources: Mapping[str, str]) -> list[tuple[str, str]]:
    """Methods and arguments of the resolver header."""
    text = next(text for name, text in sources.items() if name.endswith("_resolver.h"))
    return re.findall(r"resolver\.(\w+)\((.*?)\) == kTfLiteOk", text)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kws", "kws"),
        ("3d model-v1.2", "model_3d_model_v1_2"),
        ("int", "model_int"),
        ("class", "model_class"),
        ("main", "model_main"),
        ("__init__", "init"),
        ("Größe", "Gr_e"),
        ("", "model"),
        ("---", "model"),
        ('x"; system("rm', "x_system_rm"),
    ],
)
def test_identifiers(name: str, expected: str) -> None:
    assert identifier(name) == expected
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", identifier(name))


@pytest.mark.parametrize("name", ["3d model-v1.2", "while", "Größe", "??/\n#error", "a\\"])
def test_odd_names_compile(name: str, tmp_path: Path) -> None:
    sources = generate(_model("ADD", label='in */ \\\n"\u2028??/'), name=name, arena_bytes=1000)
    _build(sources, tmp_path)


def test_the_same_arguments_give_the_same_text() -> None:
    model = _model("ADD")
    first = generate(model, name="kws", arena_bytes=1000)
    assert dict(first) == dict(generate(model, name="kws", arena_bytes=1000))
    assert list(first) == [
        "kws_data.h", "kws_data.cc", "kws_resolver.h", "kws_config.h", "main.cc",
    ]  # fmt: skip
    digest = hashlib.sha256(model).hexdigest()
    assert all(digest in text for text in first.values())


# --- data ---------------------------------------------------------------------------------------

_READ_BACK = """
#include <cstdint>
#include <cstdio>
#include "m_data.h"
static_assert(sizeof(m_data) == M_DATA_BYTES, "length");
int main() {
  if (reinterpret_cast<uintptr_t>(m_data) % 16 != 0) return 3;
  return fwrite(m_data, 1, sizeof(m_data), stdout) == sizeof(m_data) ? 0 : 4;
}
"""


def _read_back(sources: Mapping[str, str], folder: Path) -> bytes:
    compiler = _compiler("g++")
    folder = _write({n: t for n, t in sources.items() if "_data." in n}, folder)
    (folder / "read.cc").write_text(_READ_BACK)
    files = [str(f) for f in folder.glob("*.cc")]
    done = _run([compiler, *_FLAGS, *files, "-o", folder / "read"])
    assert done.returncode == 0, done.stderr
    return subprocess.run([folder / "read"], capture_output=True, check=True).stdout


def test_the_array_holds_the_file(tmp_path: Path) -> None:
    model = _model("ADD")
    sources = dict(generate(model, name="m", arena_bytes=1000))
    assert _read_back(sources, tmp_path / "right") == model
    # The comparison sees one changed byte.
    sources["m_data.cc"] = sources["m_data.cc"].replace("0x54, 0x46", "0x54, 0x47", 1)
    assert _read_back(sources, tmp_path / "wrong") != model


def test_data_and_config_are_readable_from_c(tmp_path: Path) -> None:
    compiler = _compiler("gcc")
    folder = _write(generate(_model("ADD"), name="m", arena_bytes=1000), tmp_path)
    (folder / "user.c").write_text(
        '#include "m_config.h"\n#include "m_data.h"\n'
        "int shape[] = M_INPUT_0_SHAPE;\nunsigned arena = M_ARENA_BYTES;\n"
        "float f(void) { return m_dequantize_output_0(m_quantize_input_0(m_data[0])); }\n"
    )
    done = _run(
        [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", folder / "user.c"]
    )
    assert done.returncode == 0, done.stderr


# --- resolver -----------------------------------------------------------------------------------


def test_every_method_is_one_of_the_runtime() -> None:
    from edgecompress.targets.operators import TFLM_BUILTINS, TFLM_CUSTOM

    left_out = set(c_array._LEFT_OUT)
    assert c_array._BUILTINS | left_out == TFLM_BUILTINS
    assert set(c_array._CUSTOM) - {"ethos-u"} == TFLM_CUSTOM
    codes = [*sorted(c_array._BUILTINS), *(name.encode() for name in c_array._CUSTOM)]
    calls = _calls(generate(_model(*codes), name="m", arena_bytes=None, kernels="reference"))
    expected = {f"Add{m}" for m in _METHODS} - {
        "AddAssignVariable", "AddCallOnce", "AddIf", "AddReadVariable", "AddVarHandle", "AddWhile",
    }  # fmt: skip
    # As many as operators, so no two share a method.
    assert len(calls) == len(codes)
    assert {method for method, _ in calls} == expected


@pytest.mark.parametrize(
    ("code", "method"),
    [
        ("CONV_2D", "AddConv2D"),
        ("L2_POOL_2D", "AddL2Pool2D"),
        ("PADV2", "AddPadV2"),
        ("CUMSUM", "AddCumSum"),
        ("BATCH_MATMUL", "AddBatchMatMul"),
        ("BATCH_TO_SPACE_ND", "AddBatchToSpaceNd"),
        ("ADD_N", "AddAddN"),
        ("REVERSE_V2", "AddReverseV2"),
        ("RELU6", "AddRelu6"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"),
        (b"TFLM_DECODE", "AddDecode"),
        (b"ethos-u", "AddEthosU"),
        (b"TFLite_Detection_PostProcess", "AddDetectionPostprocess"),
        (b"SignalPCAN", "AddPCAN"),
    ],
)
def test_methods_of_single_operators(code: str | bytes, method: str) -> None:
    sources = generate(_model(code), name="m", arena_bytes=None, kernels="reference")
    assert _calls(sources) == [(method, "")]


def test_int8_only_kernels_where_every_use_is_int8() -> None:
    for operators in _INT8_HEADERS.values():
        for code in operators:
            small = _calls(generate(_model(code), name="m", arena_bytes=None))
            assert small == [(small[0][0], f"tflite::Register_{code}_INT8()")]
            for types in (("FLOAT32",) * 3, ("INT16", "INT8", "INT16"), ("INT8", "INT8", "INT16")):
                sources = generate(_model(code, types=types), name="m", arena_bytes=None)
                assert _calls(sources) == [(small[0][0], "")], (code, types)
    # int4 weights have kernels of their own.
    mixed = generate(_model("CONV_2D", types=("INT8", "INT4", "INT8")), name="m", arena_bytes=None)
    assert _calls(mixed) == [("AddConv2D", "")]


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (["ADD", "GELU"], r"operator 1 GELU: .*no method"),
        ([b"FlexErf"], r"operator 0 FlexErf: "),
        (["LSTM", "GELU"], r"operator 0 LSTM: .*; operator 1 GELU: "),
        (["WHILE"], r"operator 0 WHILE: it runs another subgraph"),
        (["VAR_HANDLE"], r"operator 0 VAR_HANDLE: it needs resource variables"),
    ],
)
def test_operators_without_a_method_are_refused_by_name(
    codes: list[str | bytes], named: str
) -> None:
    with pytest.raises(UnsupportedOperatorError, match=named):
        generate(_model(*codes), name="m", arena_bytes=1000)


def test_refused_arguments_and_models() -> None:
    with pytest.raises(UnknownNameError, match="cmsis-nn"):
        generate(_model("ADD"), name="m", arena_bytes=1000, kernels="cmsis")
    with pytest.raises(ArgumentError, match="arena_bytes"):
        generate(_model("ADD"), name="m", arena_bytes=0)
    with pytest.raises(ModelFileError):
        generate(b"no model", name="m", arena_bytes=1000)
    with pytest.raises(UnsupportedModelError, match="no operators"):
        generate(_model(), name="m", arena_bytes=1000)
    with pytest.raises(UnsupportedModelError, match="2 subgraphs"):
        generate(_model("ADD", subgraphs=2), name="m", arena_bytes=1000)
    with pytest.raises(UnsupportedModelError, match=r"input 0 \('in'\) is STRING"):
        generate(_model("ADD", types=("STRING", "INT8", "INT8")), name="m", arena_bytes=1000)
    with pytest.raises(UnsupportedModelError, match="scale 0.0"):
        generate(_model("ADD", scale=0.0), name="m", arena_bytes=1000)


# --- config -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "rounded"), [(1, 16), (4096, 4096), (4097, 4112)])
def test_the_arena_is_rounded_up(given: int, rounded: int) -> None:
    config = generate(_model("ADD"), name="m", arena_bytes=given, core="cortex-m4")["m_config.h"]
    assert f"#define M_ARENA_BYTES {rounded}u" in config
    assert f"{given} bytes for cortex-m4 with cmsis-nn kernels" in config


def test_an_unknown_arena_must_be_defined(tmp_path: Path) -> None:
    compiler = _compiler("g++")
    include = _stubs(tmp_path / "include")
    folder = _write(generate(_model("ADD"), name="m", arena_bytes=None), tmp_path / "sources")
    command = [compiler, *_FLAGS, "-fsyntax-only", "-I", include, folder / "main.cc"]
    refused = _run(command)
    assert refused.returncode != 0 and "define M_ARENA_BYTES" in refused.stderr
    assert _run([*command, "-DM_ARENA_BYTES=2048"]).returncode == 0


@pytest.mark.parametrize(
    ("kind", "scale", "zero_point"),
    [("INT8", 0.0235294122248888, -128), ("INT8", 1.0, 7), ("UINT8", 1 / 255, 0),
     ("INT16", 3.0518509475997192e-05, 0)],
)  # fmt: skip
def test_conversion_is_the_quantization_formula(
    kind: str, scale: float, zero_point: int, tmp_path: Path
) -> None:
    compiler = _compiler("g++")
    model = _model("ADD", types=(kind, kind, kind), scale=scale, zero_point=zero_point)
    folder = _write(generate(model, name="m", arena_bytes=1000), tmp_path)
    (folder / "convert.cc").write_text(
        '#include <cstdio>\n#include "m_config.h"\n'
        'int main() { float x; while (scanf("%f", &x) == 1)\n'
        '  printf("%d %.9g\\n", m_quantize_input_0(x),\n'
        "         static_cast<double>(m_dequantize_input_0(m_quantize_input_0(x)))); }\n"
    )
    done = _run([compiler, *_FLAGS, folder / "convert.cc", "-o", folder / "convert"])
    assert done.returncode == 0, done.stderr
    step, info = np.float32(scale), np.iinfo(kind.lower())
    steps = np.concatenate([np.linspace(info.min - 9, info.max + 9, 400), [0.5, -0.5, 1.5, 2.5]])
    values = np.concatenate([np.float32(steps) * step, np.float32([1e30, -1e30, np.inf, -np.inf])])
    values = values.astype(np.float32)
    ratio = values / step
    whole = np.where(np.isfinite(ratio), np.trunc(ratio + np.copysign(np.float32(0.5), ratio)), 0)
    # Half away from zero, which numpy does not offer; the ratios are not so near to a half that
    # adding one rounds.
    expected = np.clip(np.where(np.isfinite(ratio), whole, ratio) + zero_point, info.min, info.max)
    real = step * (expected - zero_point).astype(np.float32)
    answer = subprocess.run(
        [folder / "convert"], input=" ".join(f"{v:.9g}" for v in values) + " nan",
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    np.testing.assert_array_equal(np.float64(answer[:-2:2]), expected)
    np.testing.assert_array_equal(np.float32(answer[1:-2:2]), real)
    assert int(answer[-2]) == info.min


# --- the whole program --------------------------------------------------------------------------


def _check_program(model: bytes, tmp_path: Path, kernels: str) -> list[str]:
    """Builds and runs it; returns what was printed by the resolver and the program."""
    program = _build(generate(model, name="m", arena_bytes=4096, kernels=kernels), tmp_path)
    done = _run([program], **_interface(model))
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name",
    [
        "classifier", "classifier_int8", "autoencoder_int8", "sigmoid_int8", "two", "two_int8",
        "recurrent",
    ],
)  # fmt: skip
def test_programs_of_small_models(name: str, tiny: Path, tmp_path: Path) -> None:
    model = (tiny / f"{name}.tflite").read_bytes()
    flat = read_tflite(model)
    lines = _check_program(model, tmp_path, "cmsis-nn")
    registered = [line for line in lines if line.endswith(f"/{len(flat.histogram())}")]
    assert len(registered) == len(flat.histogram())
    assert any("_INT8" in line for line in registered) == name.endswith("_int8")
    outputs = [line for line in lines if line.startswith("output")]
    assert len(outputs) == sum(flat.tensors[i].elements for i in flat.outputs)


def test_failures_end_the_program(tmp_path: Path) -> None:
    model = _model("ADD")
    program = _build(generate(model, name="m", arena_bytes=4096), tmp_path)
    right = _interface(model)
    assert _run([program], **right).returncode == 0
    for wrong, message in (
        ({"ARENA_NEEDED": "4097"}, "arena of 4096 bytes"),
        ({"INPUT_TYPE": "1,16"}, "Input 0 is not as"),
        ({"OUTPUT_TYPE": "7,5"}, "Output 0 is not as"),
        ({"INVOKE_FAILS": "1"}, "did not run"),
    ):
        done = _run([program], **{**right, **wrong})
        assert done.returncode == 1 and message in done.stdout, wrong


def test_memory_for_decoded_weights_reaches_the_interpreter(tmp_path: Path) -> None:
    model = _model("ADD")
    sources = generate(model, name="m", arena_bytes=4096, decompression_memory=100)
    program = _build(sources, tmp_path)
    right = {**_interface(model), "DECOMPRESSION_BYTES": "100"}
    assert _run([program], **right).returncode == 0
    done = _run([program], **{**right, "DECOMPRESSION_BYTES": "64"})
    assert done.returncode == 1 and "memory for decoded weights" in done.stdout
    # The interpreter keeps the list's address, so the list must not end before it.
    main = sources["main.cc"]
    assert main.index("regions = {") < main.index("MicroInterpreter interpreter(")
    assert "DECOMPRESSION" not in "".join(generate(model, name="m", arena_bytes=16).values())
    with pytest.raises(ArgumentError, match="decompression_memory"):
        generate(model, name="m", arena_bytes=16, decompression_memory=0)


def test_a_resolver_that_is_too_small_is_seen(tmp_path: Path) -> None:
    model = _model("ADD", "MUL")
    sources = dict(generate(model, name="m", arena_bytes=4096))
    sources["m_resolver.h"] = sources["m_resolver.h"].replace("Resolver<2>", "Resolver<1>")
    done = _run([_build(sources, tmp_path)], **_interface(model))
    assert done.returncode == 1 and "could not be registered" in done.stdout


_PUBLISHED = {
    "ad01_int8": {"FullyConnected"},
    "kws_ref_model": {
        "AveragePool2D", "Conv2D", "DepthwiseConv2D", "FullyConnected", "Reshape", "Softmax",
    },
    "kws_ref_model_float32": None,
    "pretrainedResnet_quant": {
        "Add", "AveragePool2D", "Conv2D", "FullyConnected", "Reshape", "Softmax",
    },
    "vww_96_int8": {
        "AveragePool2D", "Conv2D", "DepthwiseConv2D", "FullyConnected", "Reshape", "Softmax",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_PUBLISHED))
@pytest.mark.parametrize("kernels", TFLM_KERNELS)
def test_mlperf_tiny(shared: Path, name: str, kernels: str, tmp_path: Path) -> None:
    model = (shared / "models" / "mlperf_tiny" / f"{name}.tflite").read_bytes()
    lines = _check_program(model, tmp_path, kernels)
    registered = dict(re.findall(r"^Add(\w+)\((\w+)\)/\d+$", "\n".join(lines), re.MULTILINE))
    if _PUBLISHED[name] is not None:
        assert set(registered) == _PUBLISHED[name]
    small = {method for method, kernel in registered.items() if kernel.endswith("_INT8")}
    is_small = kernels == "cmsis-nn" and not name.endswith("float32")
    assert small == (set(registered) - {"Reshape"} if is_small else set())


@pytest.mark.parametrize("compiler", ["arm-none-eabi-gcc", "arm-none-eabi-g++"])
def test_cross_compilers_take_it(compiler: str, tmp_path: Path) -> None:
    found = _compiler(compiler)
    include = _stubs(tmp_path / "include")
    folder = _write(generate(_model("ADD"), name="m", arena_bytes=4096), tmp_path / "sources")
    for source in ("m_data.cc", "main.cc"):
        done = _run(
            [found, *_FLAGS, "-mcpu=cortex-m4", "-mthumb", "-fsyntax-only", "-I", include,
             folder / source]
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
