"""Which operators a target's runtime runs, and which it is known to compute incorrectly.

The lists here are the runtimes' own: anything not listed cannot be loaded. Which types, ranks and
forms of an operator the kernels of TensorFlow Lite Micro support is measured (`operator_support`);
an unmeasured combination is not a pass. The real engine, which runs the file itself if this
computer has it, has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgecompress.core.registry import Registry
from edgecompress.core.results import CheckResult, Verdict
from edgecompress.engines.registry import LCE, LITERT, TFLM
from edgecompress.flatbuffers.coding import DECODE
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import WEIGHTED, Operator
from edgecompress.targets.profile import TargetProfile
from edgecompress.targets.tflm.arena import CORES
from edgecompress.targets.tflm.geometry import Unmodelled, geometry
from edgecompress.targets.tflm.operator_support import (
    CMSIS_NN,
    RUNS,
    Signature,
    runs_with,
    signature,
    support,
)

if TYPE_CHECKING:
    from edgecompress.targets.family import Subject

# How many operators a check names; the rest is counted.
_NAMED = 3
_KERNELS = {"cmsis-nn": "CMSIS-NN's kernels", "reference": "the reference kernels"}


def _title(code: str, kernels: str) -> str:
    """Names the kernels that run an operator; CMSIS-NN has some, and borrows the rest."""
    return _KERNELS[kernels if code in CMSIS_NN else "reference"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Builtin operators that the tflite-micro wheel 0.dev20261023182759 loads, found by trying each. It
# accepts every version.
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
TFLM_CUSTOM = _names(f"""
    {DECODE} TFLite_Detection_PostProcess CIRCULAR_BUFFER BasicClassifier SignalDelay
    SignalEnergy SignalFftAutoScale SignalFilterBank SignalFilterBankLog
    SignalFilterBankSpectralSubtraction SignalFilterBankSquareRoot SignalFramer SignalIrfft
    SignalOverlapAdd SignalPCAN SignalRfft SignalStacker SignalWindow
""")
# Builtin operators of ai-edge-litert 2.3.0 with the newest version that it loads (1 if none is
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
# Operators that Larq Compute Engine 0.16 adds to those of TensorFlow Lite 2.16.
LCE_CUSTOM = _names("LceQuantize LceDequantize LceBconv2d LceBMaxPool2d")


@dataclass(frozen=True)
class OperatorProblem:
    """An operator that a target cannot run, or computes incorrectly.

    Attributes:
        index: Position in the order of execution.
        name: The operator's name.
        output: Name of its first output tensor.
        reason: What is wrong and, if possible, what to do.
    """

    index: int
    name: str
    output: str
    reason: str

    def __str__(self) -> str:
        """One line for reports."""
        # A fused operator has the names of all its parts, separated by semicolons.
        output = self.output.split(";")[0]
        return f"operator {self.index} {self.name} ({output!r}): {self.reason}"


_Check = Callable[[FlatModel, Operator, str, str], "str | None"]
# Engine -> says why it cannot run an operator; None if it can.
OPERATOR_RULES: Registry[_Check] = Registry("engine")


def _custom(operator: Operator, runtime: str) -> str:
    name = operator.custom_name
    if name.startswith("Flex"):
        return (
            f"it is TensorFlow's own {name[4:]}, which {runtime} lacks; build the layer from "
            "operators of the Keras core or convert without SELECT_TF_OPS"
        )
    if name == "ethos-u":
        return "it is compiled for an Ethos-U, which this target does not have"
    if name.startswith("Lce"):
        return (
            f"{runtime} does not support it: only Larq Compute Engine runs it, for phones whose "
            "app carries a build of that engine"
        )
    return f"{runtime} has no custom operator {name!r}"


@OPERATOR_RULES.register(TFLM)
def _tflm(model: FlatModel, operator: Operator, kernels: str, family: str) -> str | None:
    runtime = "TensorFlow Lite Micro"
    if operator.code == "CUSTOM":
        return None if operator.custom_name in TFLM_CUSTOM else _custom(operator, runtime)
    if operator.code not in TFLM_BUILTINS:
        return f"{runtime} has no such operator"
    if any(i >= 0 and model.tensors[i].sparsity is not None for i in operator.inputs):
        return (
            f"its weights are stored sparse, which {runtime} reads as if they were dense: wrong "
            "results or a crash; convert without --format sparse"
        )
    return _refused(model, operator, kernels, family)


def _refused(model: FlatModel, operator: Operator, kernels: str, family: str) -> str | None:
    """Says what a kernel refuses, if a model of only this operator was refused."""
    wanted = signature(model, operator)
    found = support(wanted, kernels, family)
    if found is None or found.outcome != "refused":
        return None
    runtime = found.how.partition(",")[0]
    why = f"{_title(operator.code, kernels)} ({runtime}) refuse {wanted}: {found.message}"
    source, weights = model.tensor(operator, 0), model.tensor(operator, 1)
    if operator.code == "TRANSPOSE_CONV":
        source = model.tensor(operator, 2)
    types = ("", "")
    if operator.code in WEIGHTED - {"BATCH_MATMUL"} and source and weights:
        types = (source.type, weights.type)
    if types[0] == "FLOAT32" and types[1].startswith("INT"):
        return (
            f"TensorFlow Lite Micro does not run hybrid models (FLOAT32 activations, {types[1]} "
            "weights); convert to int8 with calibration data"
        )
    advice = _other_ways(wanted, kernels, family)
    return f"{why}; {advice}" if advice else why


def _other_ways(wanted: Signature, kernels: str, family: str) -> str:
    """Suggests what was measured to run instead: another kernel set, or fewer dimensions."""
    other = "reference" if kernels == "cmsis-nn" else "cmsis-nn"
    found = support(wanted, other, family)
    if found is not None and found.outcome == RUNS:
        return f"{_KERNELS[other]} run it (--kernels {other})"
    form = wanted.form.replace("per-channel", "").strip()
    plain = support(replace(wanted, form=form), kernels, family)
    if form != wanted.form and plain is not None and plain.outcome == RUNS:
        return "it runs with one scale for all its weights, not one for each channel"
    for rank in range(wanted.rank - 1, 0, -1):
        smaller = support(replace(wanted, rank=rank), kernels, family)
        if smaller is not None and smaller.outcome == RUNS:
            return f"it runs with up to {rank} dimensions"
    types = runs_with(wanted, kernels, family)
    return f"it runs with {' or '.join(types)}" if types else ""


@OPERATOR_RULES.register(LITERT)
def _litert(model: FlatModel, operator: Operator, kernels: str, family: str) -> str | None:
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
            "Micro ignores; convert the model again"
        )
    if operator.version > newest:
        return f"LiteRT supports it up to version {newest}, the file requires {operator.version}"
    return None


@OPERATOR_RULES.register(LCE)
def _lce(model: FlatModel, operator: Operator, kernels: str, family: str) -> str | None:
    if operator.code == "CUSTOM" and operator.custom_name in LCE_CUSTOM:
        return None
    problem = _litert(model, operator, kernels, family)
    return None if problem is None else problem.replace("LiteRT", "Larq Compute Engine")


def _problem(model: FlatModel, operator: Operator, reason: str) -> OperatorProblem:
    output = model.output(operator).name if operator.outputs else ""
    return OperatorProblem(operator.index, operator.name, output, reason)


def _kernels(profile: TargetProfile, kernels: str | None) -> tuple[str, str]:
    """Returns the kernel set and the family of the core."""
    family = CORES.get(profile.core or "", "scalar")
    return kernels or profile.kernels or "reference", family


def unsupported(
    model: FlatModel, profile: TargetProfile, kernels: str | None = None
) -> tuple[OperatorProblem, ...]:
    """Returns the operators that the target's runtime cannot run.

    Args:
        model: The file.
        profile: The target; its engine decides.
        kernels: `cmsis-nn` or `reference`. Defaults to the profile's.

    Example:
        >>> unsupported(read_tflite("yolo.tflite"), load_target("cortex-m4"))  # doctest: +SKIP
        (OperatorProblem(index=7, name='GELU', output='gelu/out', reason='TensorFlow Lite Micro ...
    """
    check = OPERATOR_RULES[profile.engine]
    chosen = _kernels(profile, kernels)
    found = ((operator, check(model, operator, *chosen)) for operator in model.operators)
    return tuple(_problem(model, operator, reason) for operator, reason in found if reason)


def unmeasured(
    model: FlatModel,
    profile: TargetProfile,
    kernels: str | None = None,
    *,
    ran: bool = False,
) -> tuple[OperatorProblem, ...]:
    """Returns the operators for which it is unknown whether the target's kernels run them.

    Args:
        model: The file.
        profile: The target. Only for TensorFlow Lite Micro is there a table of what its kernels
            run.
        kernels: `cmsis-nn` or `reference`. Defaults to the profile's.
        ran: Whether TensorFlow Lite Micro has run this file here. It has the reference kernels, so
            only operators with their own CMSIS-NN kernel stay unknown.
    """
    if profile.engine != TFLM:
        return ()
    chosen, family = _kernels(profile, kernels)
    found = []
    for operator in model.operators:
        if operator.code == "CUSTOM" or operator.code not in TFLM_BUILTINS:
            continue
        if ran and (chosen == "reference" or operator.code not in CMSIS_NN):
            continue
        wanted = signature(model, operator)
        known = support(wanted, chosen, family)
        if known is None or known.outcome == "depends":
            reason = (
                f"whether {_title(operator.code, chosen)} run {wanted} was not measured; "
                "run it on the device to know"
            )
            found.append(_problem(model, operator, reason))
    return tuple(found)


def _transposed_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """CMSIS-NN's column path of TRANSPOSE_CONV is wrong if its rows start inside the padding.

    It walks the rows from -pad in steps of the stride, and goes wrong if the padding is not a
    multiple of the stride. `benchmarks/wrong_kernels.py` counts the cases.
    """
    if operator.code != "TRANSPOSE_CONV":
        return None
    g = geometry(model, operator)
    column_path = g.ci <= 16 or g.sh > 2 or g.sw > 2
    if g.in_type == "INT8" and column_path and g.pad_h % g.sh != 0:
        return (
            f"CMSIS-NN computes wrong values for this TRANSPOSE_CONV: its top padding "
            f'({g.pad_h}) is not a multiple of its stride ({g.sh}); use padding="valid", a kernel '
            "whose padding is a multiple, or UpSampling2D and Conv2D"
        )
    return None


def _one_row_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """CMSIS-NN's vector path for one-row convolutions reads outside the row for some shapes.

    It copies the last `kernel - 1` columns before its padding for all outputs at the right edge.
    That is correct only if those columns end where the row does.
    """
    if operator.code != "CONV_2D" or family != "mve":
        return None
    g = geometry(model, operator)
    one_row = g.h == 1 and g.kh == 1 and g.dw == 1 and g.sw * g.ci % 4 == 0
    if g.in_type != "INT8" or not one_row or g.kw == 1:
        return None
    total = (g.ow - 1) * g.sw + g.kw - g.w
    odd = int(math.fmod(total, 2))  # As in C: -1 for -1.
    right = max(1, (g.pad_w + odd + g.sw - 1) // g.sw) if g.pad_w + odd else 0
    left = max(1, (g.pad_w + g.sw - 1) // g.sw) if g.pad_w else 0
    start = (g.ow - right) * g.sw - g.pad_w
    filled = g.kw - 1 + (right if odd else g.pad_w)
    columns = range((right - 1) * g.sw + g.kw if right else 0)
    misplaced = any((c < g.kw - 1) != (start + c < g.w) or c >= filled for c in columns)
    # If there are too few outputs, it takes the general path.
    if right + left <= g.ow and (misplaced or 2 * g.pad_w + odd != total):
        return (
            "CMSIS-NN computes a few wrong values on this core for a one-row convolution of this "
            "length, kernel and stride; use an input longer or shorter by one, another kernel_size "
            "or strides=1"
        )
    return None


def _narrow_depthwise_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """CMSIS-NN's depthwise convolution with 4-bit filters is wrong for some shapes.

    `benchmarks/wrong_kernels.py` counts the cases.
    """
    weights = model.tensor(operator, 1)
    if operator.code != "DEPTHWISE_CONV_2D" or weights is None or weights.type != "INT4":
        return None
    g = geometry(model, operator)
    several = g.multiplier > 1 and g.ci % 2 == 1 and g.kh * g.kw > 1
    vectors = family == "mve" and g.multiplier == 1 and g.ci > 1
    if several or vectors:
        return (
            "CMSIS-NN computes wrong values on this core for a depthwise convolution with INT4 "
            "weights of this shape; convert its weights to int8"
        )
    return None


def _narrow_state_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """CMSIS-NN's SVDF with an 8-bit state differs from the reference kernel."""
    state = model.tensor(operator, 4)
    if operator.code == "SVDF" and state is not None and state.type == "INT8":
        return (
            "CMSIS-NN computes different values from the reference kernels for an SVDF with an "
            "INT8 state; convert it with an INT16 state"
        )
    return None


def _differs(model: FlatModel, operator: Operator, kernels: str, family: str) -> str | None:
    """Operators whose single-operator models gave different values from another engine."""
    wanted = signature(model, operator)
    found = support(wanted, kernels, family)
    if found is None or found.outcome != "differs":
        return None
    # If it depends on shapes, the rules below decide.
    if kernels == "cmsis-nn" and operator.code == "DEPTHWISE_CONV_2D" and "INT4" in wanted.types:
        return None
    title = _title(operator.code, kernels)
    return f"{title} compute different values for {wanted}: a model of only it {found.message}"


def _copied_relu6(model: FlatModel, operator: Operator) -> str | None:
    """TensorFlow Lite Micro's RELU6 clamps codes without converting them from scale to scale."""
    source = model.tensor(operator, 0)
    if operator.code != "RELU6" or not operator.outputs:
        return None
    if source is None or not source.is_quantized:
        return None
    output = model.output(operator)
    if (source.scales, source.zero_points) == (output.scales, output.zero_points):
        return None
    return (
        "TensorFlow Lite Micro computes wrong values for a RELU6 whose input and output differ in "
        "scale; fuse it into the operator before it, or use a ReLU whose output ends at 6"
    )


_WRONG = (_transposed_wrong, _one_row_wrong, _narrow_depthwise_wrong, _narrow_state_wrong)


def wrong_results(
    model: FlatModel, profile: TargetProfile, kernels: str | None = None
) -> tuple[OperatorProblem, ...]:
    """Returns the operators that the target's kernels are known to compute incorrectly.

    Args:
        model: The file.
        profile: The target; phones have no such list.
        kernels: `cmsis-nn` or `reference`. Defaults to the profile's.
    """
    if profile.engine != TFLM:
        return ()
    chosen, family = _kernels(profile, kernels)
    found = []
    for operator in model.operators:
        reason = _differs(model, operator, chosen, family) or _copied_relu6(model, operator)
        if reason is None and chosen == "cmsis-nn":
            reason = _known_wrong(model, operator, family)
        if reason:
            found.append(_problem(model, operator, reason))
    return tuple(found)


def _known_wrong(model: FlatModel, operator: Operator, family: str) -> str | None:
    """Returns what is wrong with an operator of CMSIS-NN 4ab83cc3, by its shape."""
    for rule in _WRONG:
        try:
            reason = rule(model, operator, family)
        except Unmodelled:
            continue  # The patterns are those of shapes that have a name.
        if reason:
            return reason
    return None


def judged(subject: Subject, kernels: str | None = None) -> CheckResult:
    """Returns whether the target's runtime has every operator of a file, and none is wrong.

    Args:
        subject: The file and the target.
        kernels: `cmsis-nn` or `reference`, for TensorFlow Lite Micro. Defaults to the profile's.
    """
    model, profile = subject.model, subject.profile
    if profile.engine not in OPERATOR_RULES:
        return CheckResult(
            "operators",
            "not_measured",
            unit="operators",
            reason=f"No table says which operators {profile.engine} runs: try it on the device.",
        )
    graphs = (model, *model.others)
    missing = _in_all(graphs, lambda graph: unsupported(graph, profile, kernels))
    wrong = _in_all(graphs, lambda graph: wrong_results(graph, profile, kernels))
    unknown = _in_all(graphs, lambda graph: unmeasured(graph, profile, kernels, ran=subject.ran))
    unread = model.subgraphs - len(graphs)
    verdict: Verdict = "fail" if missing else "uncertain" if wrong or unknown or unread else "pass"
    shown = missing or [*wrong, *unknown]
    named = shown[:_NAMED]
    more = len(shown) - len(named)
    reason = None
    if named:
        texts = (f"subgraph {n}, {problem}" if n else str(problem) for n, problem in named)
        also = f"; and {more} more" if more else ""
        reason = f"{'; '.join(texts)}{also}."
    elif unread:
        reason = f"{unread} of {model.subgraphs} subgraphs could not be analysed."
    detail = {
        "engine": profile.engine,
        "kernels": kernels,
        "ran_here": subject.ran,
        "unsupported": [{"subgraph": n, **vars(problem)} for n, problem in missing],
        "wrong_results": [{"subgraph": n, **vars(problem)} for n, problem in wrong],
        "not_measured": [{"subgraph": n, **vars(problem)} for n, problem in unknown],
        "subgraphs": model.subgraphs,
    }
    count = len(missing)
    return CheckResult(
        "operators", verdict, count, count, count, 0, "operators", "computed", detail, reason
    )


def _in_all(
    graphs: Sequence[FlatModel], find: Callable[[FlatModel], Sequence[OperatorProblem]]
) -> list[tuple[int, OperatorProblem]]:
    """Returns what a search finds in each subgraph, with the subgraph's number."""
    return [(number, problem) for number, graph in enumerate(graphs) for problem in find(graph)]
