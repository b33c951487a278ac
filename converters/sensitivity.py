"""`--sensitivity`: the damage of each layer alone, and the cheapest layers to keep more exact.

A layer's damage is measured on a file in which it alone is rounded, in LiteRT. The search keeps
the most damaging layers first; it assumes that more kept layers are not worse, then takes out those
that are not needed. Every file of the search is run in the target's engine.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgecompress.converters import int8
from edgecompress.converters.agreement import sqnr_db
from edgecompress.converters.calibration import spread
from edgecompress.converters.float32 import Float32Result
from edgecompress.converters.formats import Costs, FormatRequest
from edgecompress.converters.kept_layers import Kept, layers_of
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.converters.tables import inner_tensors
from edgecompress.converters.tensor_ranges import SAME_RANGE, tensor_ranges
from edgecompress.core.errors import ArgumentError, EdgeCompressError, one_line
from edgecompress.core.record import CompressionRecord
from edgecompress.core.results import CheckResult
from edgecompress.core.sensitivity import KeptLayers, LayerDamage, Sensitivity
from edgecompress.engines.registry import LITERT
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.precisions.base import POST_TRAINING, Precision
from edgecompress.precisions.int8 import Int8

# Samples that the ratios are measured on.
_MOST_SAMPLES = 100
_WAYS = {"int16": "int16", "float": "floating"}

Convert = Callable[[Kept], Artifact]


def converter(
    request: FormatRequest,
    source: Float32Result,
    precision: Precision,
    per_layer: Mapping[str, Precision] | None,
) -> Convert:
    """Returns what converts a float file with layers kept; its ranges are measured once."""
    flat = source.artifact.flat
    record = (request.loaded.record if request.loaded else None) or CompressionRecord()
    inner = inner_tensors(flat) if precision.activation_bits == 8 else set()
    ranges = tensor_ranges(
        flat, source, record.ranges, request.samples, [], record.outdated, precision, inner
    )
    # Every tensor counts as a tap.
    known = dataclasses.replace(source, tap_tensors={name: name for name in ranges})
    return lambda keep: int8.convert(
        known, ranges, request.samples, record, precision=precision, per_layer=per_layer, keep=keep
    )


def measure(
    request: FormatRequest,
    source: Float32Result,
    precision: Precision | None,
    per_layer: Mapping[str, Precision] | None,
    keep: Kept,
) -> Sensitivity:
    """Returns the damage of each layer, and what reaches the limit of the request's score.

    Args:
        request: What is exported.
        source: The float file.
        precision: The number format. Defaults to int8.
        per_layer: As in `int8.convert`.
        keep: The layers that the user keeps already.

    Raises:
        ArgumentError: there are no samples, or activations are not int8.
    """
    precision = Int8() if precision is None else precision
    if precision.activation_bits != 8:
        raise ArgumentError(
            "--sensitivity", "go with int8 activations", precision.name,
            "It finds the layers of int8 and int4 files to keep more exact.",
        )  # fmt: skip
    if request.samples is None:
        raise ArgumentError(
            "--sensitivity", "go with --calibration", None, "Give real inputs to measure it on."
        )
    study = _Study(request, source, converter(request, source, precision, per_layer), keep)
    return study.run()


class _Study:
    """Makes and runs the files."""

    def __init__(
        self, request: FormatRequest, source: Float32Result, convert: Convert, keep: Kept
    ) -> None:
        self._request, self._source, self._convert, self._keep = request, source, convert, keep
        self._samples = [spread(array, _MOST_SAMPLES) for array in request.samples or ()]
        self._layers = self._listed()
        self._made: dict[tuple[str, tuple[str, ...]], KeptLayers] = {}

    def _listed(self) -> dict[str, tuple[str, ...]]:
        """Returns the operators of each layer."""
        found: dict[str, list[str]] = {}
        for operator in self._source.artifact.flat.operators:
            found.setdefault(layers_of(self._source, operator)[0], []).append(operator.code)
        return {layer: tuple(codes) for layer, codes in found.items()}

    def run(self) -> Sensitivity:
        """Returns everything."""
        exact = _outputs(self._source.artifact, self._samples)
        rounding = [
            layer for layer, codes in self._layers.items() if not SAME_RANGE.issuperset(codes)
        ]
        damages = []
        for position, layer in enumerate(rounding):
            self._request.progress(f"Sensitivity: {layer} ({position + 1} of {len(rounding)})")
            damages.append(self._damage(layer, exact))
        damages.sort(key=lambda d: math.inf if d.sqnr_db is None else d.sqnr_db)
        base = self._priced("", ())
        result = self._searched(Sensitivity(tuple(damages), len(self._samples[0]), base))
        loaded = self._request.loaded
        steps = loaded.record.steps if loaded and loaded.record else ()
        if any(step.get("technique") == POST_TRAINING for step in steps):
            note = (
                "The model was quantized after training: weights that were rounded then cost "
                "nothing here, and keeping their layers does not bring them back."
            )
            result = dataclasses.replace(result, notes=(*result.notes, note))
        return result

    def _damage(self, layer: str, exact: Sequence[np.ndarray]) -> LayerDamage:
        others = tuple(re.escape(name) for name in self._layers if name != layer)
        try:
            alone = self._convert(Kept(floating=others))
            found = _outputs(alone, self._samples)
            check = self._score(alone)
        # One layer that cannot be measured must not cost the others.
        except EdgeCompressError as error:
            return LayerDamage(layer, self._layers[layer], problem=one_line(error))
        signal = sum(float(np.sum(np.square(a, dtype=np.float64))) for a in exact)
        noise = sum(
            float(np.sum(np.square(a - b, dtype=np.float64)))
            for a, b in zip(exact, found, strict=True)
        )
        ratio = sqnr_db(signal, noise)
        return LayerDamage(
            layer,
            self._layers[layer],
            ratio if math.isfinite(ratio) else None,
            None if check is None else check.measured,
        )

    def _score(self, artifact: Artifact, as_target: bool = False) -> CheckResult | None:
        if self._request.score is None:
            return None
        return self._request.score(artifact, as_target)

    def _priced(self, how: str, layers: tuple[str, ...]) -> KeptLayers:
        """Returns a file with layers kept, measured and priced; each is made once."""
        key = (how, tuple(sorted(layers)))
        if key not in self._made:
            kept = {"floating": self._keep.floating, "int16": self._keep.int16}
            if how:
                more = tuple(re.escape(layer) for layer in layers)
                kept[_WAYS[how]] = (*kept[_WAYS[how]], *more)
            artifact = int8.strip_names(self._convert(Kept(**kept)))
            self._request.progress(f"Sensitivity: {_words(how, layers)}")
            check = self._score(artifact, as_target=True)
            arena, latency = _prices(artifact, self._request.costs)
            self._made[key] = KeptLayers(
                how,
                layers,
                None if check is None else check.measured,
                None if check is None or check.limit is None else check.verdict == "pass",
                len(artifact.data),
                arena,
                latency,
            )
        return self._made[key]

    def _searched(self, result: Sensitivity) -> Sensitivity:
        """Returns the result with the layers to keep."""
        check = self._score(self._source.artifact)
        if check is None:
            note = "Give labelled data (--evaluate) to see what each layer costs in accuracy."
            return dataclasses.replace(result, notes=(note,))
        metric = check.title if check.detail.get("metric") else "accuracy"
        result = dataclasses.replace(result, metric=metric, unit=check.unit, limit=check.limit)
        if check.limit is None:
            note = "Give a limit, e.g. --min-accuracy 0.9, to search the layers to keep for it."
            return dataclasses.replace(result, notes=(note,))
        if result.base.reached:
            note = "The file reaches the limit as it is: no layer needs to be kept."
            return dataclasses.replace(result, notes=(note,))
        if check.verdict != "pass":
            note = "The float file misses the limit, too: no choice of layers can reach it."
            return dataclasses.replace(result, notes=(note,))
        order = [damage.layer for damage in result.layers if damage.problem is None]
        taken = {name for kept in (self._keep.floating, self._keep.int16) for name in kept}
        order = [layer for layer in order if not any(re.fullmatch(t, layer) for t in taken)]
        choices, notes = [], []
        for how in _WAYS:
            try:
                found = self._fewest(how, order)
            except EdgeCompressError as error:
                notes.append(f"No layers were kept in {how}: {one_line(error)}")
                continue
            choices.append(found)
            if not found.reached:
                notes.append(f"Keeping all layers in {how} does not reach the limit.")
        return dataclasses.replace(result, choices=_with_cheapest(choices), notes=tuple(notes))

    def _fewest(self, how: str, order: Sequence[str]) -> KeptLayers:
        """Returns the fewest layers found that reach the limit; all if they do not."""
        low, high = 0, len(order)
        best = self._priced(how, tuple(order))
        if not best.reached:
            return best
        while high - low > 1:
            middle = (low + high) // 2
            found = self._priced(how, tuple(order[:middle]))
            if found.reached:
                high, best = middle, found
            else:
                low = middle
        for layer in reversed(best.layers):
            fewer = tuple(name for name in best.layers if name != layer)
            if fewer and (found := self._priced(how, fewer)).reached:
                best = found
        return best


def _words(how: str, layers: Sequence[str]) -> str:
    return f"{len(layers)} layers kept in {how}" if how else "the file as it is"


def _with_cheapest(choices: Sequence[KeptLayers]) -> tuple[KeptLayers, ...]:
    """Marks the cheapest choice that reaches the limit."""
    reached = [choice for choice in choices if choice.reached]
    if not reached:
        return tuple(choices)
    times = [choice.microseconds for choice in reached if choice.microseconds is not None]
    if len(times) == len(reached):
        best = reached[times.index(min(times))]
    else:
        best = min(reached, key=lambda choice: choice.file_bytes)
    return tuple(dataclasses.replace(choice, cheapest=choice is best) for choice in choices)


def _prices(artifact: Artifact, costs: Costs) -> tuple[float | None, float | None]:
    """Returns a file's arena and latency on the targets; None where unknown."""
    found = []
    for measure in (costs.arena(artifact.flat, None), costs.latency(artifact.flat)):
        found.append(None if measure is None else measure(artifact.flat))
    return found[0], found[1]


def _outputs(artifact: Artifact, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the real outputs of a file in LiteRT."""
    flat = artifact.flat
    run = run_engine(LITERT, artifact.data, quantized_inputs(flat, samples))
    return [
        dequantize(values, flat.tensors[index])
        for values, index in zip(run.outputs, flat.outputs, strict=True)
    ]
