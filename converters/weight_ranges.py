"""Integer flatbuffer -> the same with the scales of weights that a precision chooses.

The quantizer gives every channel the scale of its largest weight. Where the precision clips instead
(`precisions.ranges`), or training learnt the scales, this replaces the filter's codes and scales
and the bias. As in training, the scales belong to the kernel before folding: channel c of a filter
g_c * w_c has the scale |g_c| * s_c and the codes sign(g_c) * round(w_c / s_c).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecompress.converters.shared_scales import bias_type, biases_of
from edgecompress.core.errors import ConversionError
from edgecompress.core.shared_values import channels_first, fold_factors
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator, channel_axis
from edgecompress.flatbuffers.tensors import PACKED, pack_codes
from edgecompress.precisions.base import Place, Precision


def choose_scales(
    editor: ModelEditor,
    floats: FlatModel,
    kernels: Mapping[str, np.ndarray],
    precision: Precision,
    exceptions: Mapping[str, tuple[Place, Precision]],
    learnt: Mapping[str, Sequence[float]],
) -> frozenset[str]:
    """Gives filters the scales that their precision chooses.

    Args:
        editor: Changes a file that litert-quantizer made.
        floats: The float file that it was made from.
        kernels: `Float32Result.kernels`: filters before folding, by name.
        precision: Of filters without an exception.
        exceptions: What `filter_precisions` returned.
        learnt: Name of a filter -> scales that training learnt.

    Returns:
        Names of the outputs of the operators whose filters have such scales.
    """
    own = {output: found for output, (_, found) in exceptions.items()}
    writer, chosen = _Writer(editor, floats), set()
    before, after = _readers(floats), _readers(editor.original)
    for source, target in zip(before, after, strict=True):
        output = floats.output(source).name
        weights, present = floats.tensor(source, 1), editor.original.tensor(target, 1)
        if weights is None or present is None or not present.is_constant or not present.scales:
            continue
        axis, folded = channel_axis(target), weights.values()
        # The single scale of a folded Dense layer covers the folded weights.
        single = len(present.scales) == 1 and folded.shape[axis] > 1
        kernel = folded if single else kernels.get(weights.name, folded)
        scales = own.get(output, precision).weight_scales(kernel, () if single else (axis,))
        if scales is None:
            continue
        if len(given := learnt.get(weights.name, ())) == np.size(scales):
            scales = given
        chosen.add(output)
        if kernel.any():
            writer.set(source, target, kernel, np.asarray(scales, np.float32).ravel())
    if chosen:
        editor.drop_unused_buffers()
    return frozenset(chosen)


def _readers(flat: FlatModel) -> list[Operator]:
    return [operator for operator in flat.operators if operator.code in FILTER_READERS]


class _Writer:
    """Replaces filters and biases; those of an unrolled recurrent layer have several readers."""

    def __init__(self, editor: ModelEditor, floats: FlatModel) -> None:
        self._editor, self._floats = editor, floats
        self._filters: dict[int, np.ndarray] = {}
        self._biases: dict[tuple[int, bytes], int] = {}

    def set(
        self, source: Operator, target: Operator, kernel: np.ndarray, scales: np.ndarray
    ) -> None:
        """Gives an operator a filter with other scales, and the bias that belongs to it.

        Args:
            source: The operator in the float file.
            target: The same in the quantized file.
            kernel: The filter before folding.
            scales: Of its channels, or one.
        """
        index = target.inputs[1]
        if index not in self._filters:
            folded = self._floats.tensors[source.inputs[1]].values()
            self._filters[index] = self._replace(target, kernel, folded, scales)
        scales = self._filters[index]
        position, reads = (3, 2) if target.code == "TRANSPOSE_CONV" else (2, 0)
        quantized = self._editor.original
        bias, into = self._floats.tensor(source, position), quantized.tensor(target, reads)
        if bias is None or into is None:
            return
        steps = np.float32(into.scales[0]) * scales
        key = target.inputs[position], steps.tobytes()
        entry = self._editor.operators[target.index]
        if key in self._biases:
            self._editor.set_input(entry, position, self._biases[key])
            return
        tensor = self._biases[key] = self._editor.own_input(entry, position)
        kind = bias_type(quantized, target, position)
        self._editor.replace(tensor, biases_of(bias.values(), steps, kind))
        self._editor.quantize(tensor, steps, 0)

    def _replace(
        self, target: Operator, kernel: np.ndarray, folded: np.ndarray, scales: np.ndarray
    ) -> np.ndarray:
        """Replaces a filter's codes and scales; returns the scales of the folded channels."""
        index, axis = target.inputs[1], channel_axis(target)
        present = self._editor.original.tensors[index]
        bits = PACKED.get(present.type, 8)
        largest = 2 ** (bits - 1) - 1
        shape = [1] * kernel.ndim
        shape[axis] = -1
        codes = np.clip(np.rint(kernel / scales.reshape(shape)), -largest, largest)
        if kernel is not folded:
            rows = [channels_first(values, (axis,)) for values in (kernel, folded)]
            factors = fold_factors(*rows)
            if factors is None:
                raise ConversionError("A folded kernel is not a multiple of its layer's kernel.")
            codes = codes * np.sign(factors).reshape(shape)
            # An all-zero channel keeps its scale; `fitting_biases` sees to its bias.
            scales = np.where(factors != 0, np.abs(factors) * scales, present.scales)
        codes, scales = codes.astype(np.int8), scales.astype(np.float32)
        self._editor.replace(index, codes if bits == 8 else pack_codes(codes, bits))
        self._editor.quantize(index, scales, axis)
        return scales
