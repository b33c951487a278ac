"""Which operators a target's runtime runs, and which it is known to compute wrongly.

The tables are the runtimes' own lists: what is not in them cannot be loaded. Types are checked for
the operators that carry weights and for those whose kernels refuse a type; the real engine, which
runs every exported file, has the last word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgecompress.core.flatbuffer import WEIGHTED, FlatModel, Operator
from edgecompress.core.registry import Registry
from edgecompress.targets.arena import CORES
from edgecompress.targets.instructions import Unmodelled, geometry
from edgecompress.targets.profile import TargetProfile


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Builtin operators that the tflite-micro wheel 0.dev20261023182759 loads, found by asking for each.
# It takes every version.
TFLM_BUILTINS = _names("""
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE
    DEPTHWISE_CONV_2D DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP
    EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
    GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOG_SOFTMAX LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAX_POOL_2D MAXIMUM MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX
    REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT
    SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
    SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
""")
TFLM_CUSTOM = _names("""
    TFLM_DECODE TFLite_Detection_PostProcess CIRCULAR_BUFFER BasicClassifier SignalDelay
    SignalEnergy SignalFftAutoScale SignalFilterBank SignalFilterBankLog
    SignalFilterBankSpectralSubtraction SignalFilterBankSquareRoot SignalFramer SignalIrfft
    SignalOverlapAdd SignalPCAN SignalRfft SignalStacker SignalWindow
""")
# Builtin operators of ai-edge-litert 2.3.0 with the newest version that it loads (1 where none is
# given), found by asking it for one operator and version at a time.
_LITERT = """
    ABS:5 ADD:6 ADD_N ARG_MAX:3 ARG_MIN:3 ASSIGN_VARIABLE ATAN2 AVERAGE_POOL_2D:3 BATCH_MATMUL:4
    BATCH_TO_SPACE_ND:4 BIDIRECTIONAL_SEQUENCE_LSTM:3 BIDIRECTIONAL_SEQUENCE_RNN:3 BITCAST
    BITWISE_XOR BROADCAST_ARGS BROADCAST_TO:4 BUCKETIZE CALL_ONCE CAST:9 CEIL COMPLEX_ABS
    CONCATENATION:7 CONV_2D:8 CONV_3D CONV_3D_TRANSPOSE COS:2 CUMSUM DENSIFY DEPTHWISE_CONV_2D:7
    DEPTH_TO_SPACE:2 DEQUANTIZE:9 DILATE DIV:2 DYNAMIC_UPDATE_SLICE:6 ELU EMBEDDING_LOOKUP:5
    EMBEDDING_LOOKUP_SPARSE EQUAL:5 EXP:2 EXPAND_DIMS FAKE_QUANT:2 FILL:5 FLOOR FLOOR_DIV:3
    FLOOR_MOD:2 FULLY_CONNECTED:14 GATHER:8 GATHER_ND:6 GELU:3 GREATER:2 GREATER_EQUAL:3 HARD_SWISH
    HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP HASHTABLE_SIZE IF IMAG
    L2_NORMALIZATION:2 L2_POOL_2D LEAKY_RELU:2 LESS:3 LESS_EQUAL:2 LOCAL_RESPONSE_NORMALIZATION
    LOG:2 LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC:3 LOG_SOFTMAX:2 LSH_PROJECTION LSTM:4
    MATRIX_DIAG MATRIX_SET_DIAG MAXIMUM:4 MAX_POOL_2D:3 MEAN:3 MINIMUM:4 MIRROR_PAD:3 MUL:8
    MULTINOMIAL NEG NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 NOT_EQUAL:4 ONE_HOT PACK:5 PAD:6
    PADV2:6 POW PRELU QUANTIZE:6 RANDOM_STANDARD_NORMAL RANDOM_UNIFORM RANGE:2 RANK READ_VARIABLE
    REAL REDUCE_ALL REDUCE_ANY REDUCE_MAX:3 REDUCE_MIN:3 REDUCE_PROD:2 REDUCE_WINDOW RELU:3 RELU6:3
    RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR:4 RESIZE_NEAREST_NEIGHBOR:4 REVERSE_SEQUENCE
    REVERSE_V2:4 RFFT2D RIGHT_SHIFT RNN:3 ROUND RSQRT:3 SCATTER_ND SEGMENT_SUM SELECT:4 SELECT_V2:2
    SHAPE SIGN:2 SIN:2 SKIP_GRAM SLICE:8 SOFTMAX:4 SPACE_TO_BATCH_ND:4 SPACE_TO_DEPTH:2
    SPARSE_TO_DENSE:3 SPLIT:5 SPLIT_V:3 SQRT:2 SQUARE SQUARED_DIFFERENCE:2 SQUEEZE:2 STABLEHLO_ADD
    STABLEHLO_AND STABLEHLO_CASE STABLEHLO_COMPOSITE STABLEHLO_GATHER STABLEHLO_MAXIMUM
    STABLEHLO_MINIMUM STABLEHLO_MULTIPLY STABLEHLO_PAD STABLEHLO_REDUCE_WINDOW
    STABLEHLO_RNG_BIT_GENERATOR STABLEHLO_SCATTER STABLEHLO_SHIFT_LEFT STRIDED_SLICE:8 SUB:5 SUM:2
    SVDF:4 TANH:3 TILE:3 TOPK_V2:3 TRANSPOSE:9 TRANSPOSE_CONV:5 UNIDIRECTIONAL_SEQUENCE_LSTM:4
    UNIDIRECTIONAL_SEQUENCE_RNN:3 UNIQUE UNPACK:6 UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN
    UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHERE:2 WHILE ZEROS_LIKE
"""
LITERT_BUILTINS = {
    name: int(version or 1) for name, _, version in (e.partition(":") for e in _LITERT.split())
}
LITERT_CUSTOM = _names(
    "NumericVerify Mfcc AudioSpectrogram TFLite_Detection_PostProcess aeq.hadamard_rotation"
)
# What Larq Compute Engine 0.16 adds to the operators of TensorFlow Lite 2.16.
LCE_CUSTOM = _names("LceQuantize LceDequantize LceBconv2d LceBMaxPool2d")

_FLOAT_INT8 = frozenset({"FLOAT32", "INT8"})
_FLOAT_INT8_INT16 = _FLOAT_INT8 | {"INT16"}
# Types of the first input that the kernels of TensorFlow Lite Micro take, where they refuse others.
_TFLM_TYPES = {
    "ADD_N": _FLOAT_INT8,
    "AVERAGE_POOL_2D": _FLOAT_INT8_INT16,
    # Not UINT8, from which files for phones unpack 1-bit weights.
    "CAST": _FLOAT_INT8_INT16 | {"BOOL", "INT32", "UINT16", "UINT32"},
    "CUMSUM": _FLOAT_INT8,
    "DEPTH_TO_SPACE": _FLOAT_INT8,
    # float16 weights are expanded by this operator on phones, but not here.
    "DEQUANTIZE": frozenset({"INT8", "INT16", "UINT8"}),
    "DIV": _FLOAT_INT8 | {"INT32"},
    "ELU": _FLOAT_INT8,
    "EMBEDDING_LOOKUP": _FLOAT_INT8,
    "L2_POOL_2D": frozenset({"FLOAT32"}),
    "LOG_SOFTMAX": _FLOAT_INT8,
    "MAX_POOL_2D": _FLOAT_INT8_INT16,
    "SOFTMAX": _FLOAT_INT8_INT16,
    "SPACE_TO_DEPTH": _FLOAT_INT8,
    "SQUARED_DIFFERENCE": _FLOAT_INT8_INT16 | {"INT32"},
    "TRANSPOSE": _FLOAT_INT8_INT16,
}
# Types of input and filter that its weighted kernels take.
_TFLM_WEIGHTED = frozenset(
    {("FLOAT32", "FLOAT32"), ("INT8", "INT8"), ("INT8", "INT4"), ("INT16", "INT8")}
)


@dataclass(frozen=True)
class OperatorProblem:
    """An operator that a target cannot run, or computes wrongly.

    Attributes:
        index: Position in the order of execution.
        name: The operator's name.
        output: Name of its first output tensor.
        reason: What is wrong and, where there is a way, what to do.
    """

    index: int
    name: str
    output: str
    reason: str

    def __str__(self) -> str:
        """One line for reports."""
        # A fused operator carries the names of all it was made from, separated by semicolons.
        output = self.output.split(";")[0]
        return f"operator {self.index} {self.name} ({output!r}): {self.reason}"


_Check = Callable[[FlatModel, Operator], "str | None"]
_ENGINES: Registry[_Check] = Registry("engine")


def _custom(operator: Operator, runtime: str) -> str:
    name = operator.custom_name
    if name.startswith("Flex"):
        return (
            f"it is TensorFlow's own {name[4:]}, which {runtime} lacks; build the layer from "
            "operators of the Keras core or convert without SELECT_TF_OPS"
        )
    if name == "ethos-u":
        return "it is compiled for an Ethos-U, which this target has not"
    if name.startswith("Lce"):
        return (
            f"{runtime} does not know it: only Larq Compute Engine runs it, for phones whose app "
            "carries a build of that engine"
        )
    return f"{runtime} has no custom operator {name!r}"


@_ENGINES.register("tflm")
def _tflm(model: FlatModel, operator: Operator) -> str | None:
    runtime = "TensorFlow Lite Micro"
    if operator.code == "CUSTOM":
        return None if operator.custom_name in TFLM_CUSTOM else _custom(operator, runtime)
    if operator.code not in TFLM_BUILTINS:
        return f"{runtime} has no such operator"
    position = 2 if operator.code == "TRANSPOSE_CONV" else 0
    source, weights = model.tensor(operator, position), model.tensor(operator, 1)
    if source is None:
        return None
    allowed = _TFLM_TYPES.get(operator.code)
    if allowed is not None and source.type not in allowed:
        return f"its kernel takes {', '.join(sorted(allowed))}, not {source.type}"
    if any(i >= 0 and model.tensors[i].sparsity is not None for i in operator.inputs):
        return (
            f"its weights are stored sparse, which {runtime} reads as if they were dense: wrong "
            "results or a crash; convert without --format sparse"
        )
    if operator.code in WEIGHTED - {"BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM"} and weights:
        if source.type == "FLOAT32" and weights.type.startswith("INT"):
            return (
                f"{runtime} runs no hybrid models (FLOAT32 activations, {weights.type} weights); "
                "convert to int8 with calibration data"
            )
        if (source.type, weights.type) not in _TFLM_WEIGHTED:
            return f"its kernel takes no {source.type} input with {weights.type} weights"
        if (
            operator.code == "FULLY_CONNECTED"
            and weights.type == "INT4"
            and len(weights.scales) > 1
        ):
            return "its int4 kernel takes one scale for all weights, not one for each channel"
    return None


@_ENGINES.register("litert")
def _litert(model: FlatModel, operator: Operator) -> str | None:
    if operator.code == "CUSTOM":
        return None if operator.custom_name in LITERT_CUSTOM else _custom(operator, "LiteRT")
    newest = LITERT_BUILTINS.get(operator.code)
    if newest is None:
        return "LiteRT has no such operator"
    if any(i >= 0 and model.tensors[i].shared_zero_point for i in operator.inputs):
        return (
            "its filter has one zero point for all channels, which only TensorFlow Lite Micro "
            "reads; convert without --format compressed"
        )
    if any(i >= 0 and model.tensors[i].stray_axis for i in operator.inputs):
        return (
            "its bias names a channel axis beyond its one dimension, which only TensorFlow Lite "
            "Micro ignores; convert the model anew"
        )
    if operator.version > newest:
        return f"LiteRT knows it up to version {newest}, the file asks for {operator.version}"
    return None


@_ENGINES.register("lce")
def _lce(model: FlatModel, operator: Operator) -> str | None:
    if operator.code == "CUSTOM" and operator.custom_name in LCE_CUSTOM:
        return None
    problem = _litert(model, operator)
    return None if problem is None else problem.replace("LiteRT", "Larq Compute Engine")


def _problem(model: FlatModel, operator: Operator, reason: str) -> OperatorProblem:
    output = model.output(operator).name if operator.outputs else ""
    return OperatorProblem(operator.index, operator.name, output, reason)


def unsupported(model: FlatModel, profile: TargetProfile) -> tuple[OperatorProblem, ...]:
    """Returns the operators that the target's runtime cannot run.

    Args:
        model: The file.
        profile: The target; its engine decides.

    Example:
        >>> unsupported(read_tflite("yolo.tflite"), load_target("cortex-m4"))  # doctest: +SKIP
        (OperatorProblem(index=7, name='GELU', output='gelu/out', reason='TensorFlow Lite Micro ...
    """
    check = _ENGINES[profile.engine]
    found = ((operator, check(model, operator)) for operator in model.operators)
    return tuple(_problem(model, operator, reason) for operator, reason in found if reason)


def _transposed_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """CMSIS-NN's column path of TRANSPOSE_CONV is wrong where it strides into padding.

    Found by comparing with two other implementations: 20 of 20 models wrong, 155 others right.
    """
    if operator.code != "TRANSPOSE_CONV":
        return None
    g = geometry(model, operator)
    column_path = g.ci <= 16 or g.sh > 2 or g.sw > 2
    strided = g.sh >= 2 or g.sw >= 2
    if g.in_type == "INT8" and column_path and strided and (g.pad_h > 0 or g.pad_w > 0):
        return (
            "CMSIS-NN computes wrong values for a strided TRANSPOSE_CONV with SAME padding and at "
            "most 16 input channels or a stride of 3; use padding=\"valid\", or UpSampling2D and "
            "Conv2D"
        )  # fmt: skip
    return None


def _one_row_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """CMSIS-NN's vector path for one-row convolutions is wrong for some strided shapes.

    Found by comparing with two other implementations: 9 of 10 models wrong with an odd remainder,
    3 of 3 right with an even one.
    """
    if operator.code != "CONV_2D" or family != "mve":
        return None
    g = geometry(model, operator)
    one_row = g.h == 1 and g.kh == 1 and g.dw == 1 and g.sw * g.ci % 4 == 0
    odd = ((g.ow - 1) * g.sw + g.kw - g.w) % 2 == 1
    if g.in_type == "INT8" and one_row and g.sw == 2 and g.kw >= 5 and odd:
        return (
            "CMSIS-NN computes a few wrong values on this core for a one-row convolution with "
            "stride 2, a kernel of 5 or more and this input length; use an input longer by one, "
            "kernel_size=3 or strides=1"
        )
    return None


_WRONG = (_transposed_wrong, _one_row_wrong)


def wrong_results(
    model: FlatModel, profile: TargetProfile, kernels: str | None = None
) -> tuple[OperatorProblem, ...]:
    """Returns the operators that CMSIS-NN 4ab83cc3 is known to compute wrongly on the target.

    Args:
        model: The file.
        profile: The target.
        kernels: `cmsis-nn` or `reference`. Defaults to the profile's.
    """
    if (kernels or profile.kernels) != "cmsis-nn" or profile.core is None:
        return ()
    family = CORES[profile.core]
    found = []
    for operator in model.operators:
        for rule in _WRONG:
            try:
                reason = rule(model, operator, family)
            except Unmodelled:
                continue  # Grouped convolutions: neither pattern has been seen in them.
            if reason:
                found.append(_problem(model, operator, reason))
    return tuple(found)
