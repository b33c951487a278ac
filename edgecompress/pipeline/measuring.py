"""What has to be run: accuracy, host latency, agreement with the reference, layer by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.core.engines import engine_available, load_failure
from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    EngineNotRunError,
    UnsupportedModelError,
)
from edgecompress.core.finite import check_outputs
from edgecompress.core.results import Artifact, CheckResult, judge
from edgecompress.pipeline.request import Labelled

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.verify import Parity
    from edgecompress.targets.profile import TargetProfile

# How many of the given samples the engines run for parity, and for the per-layer comparison.
PARITY_SAMPLES = 200
LAYER_SAMPLES = 16

# A classifier that agrees with its own reference on fewer samples is broken, not merely rounded.
# Models without classes have no such floor: what error they bear depends on their use.
MIN_AGREEMENT = 0.9

# The runtime of devices in the field: not run for numbers, but asked whether it loads the file.
FIELD_RUNTIME = "tflite-runtime"


class Measurements:
    """What has to be run, each at most once however many targets ask for it.

    Attributes:
        refusals: Engine -> why it cannot run the file, for those found not to.
        not_run: Engine -> why nobody knows whether it can.
    """

    def __init__(
        self,
        data: bytes,
        progress: Callable[[str], None],
        labelled: Labelled | None,
        min_accuracy: float | None,
    ) -> None:
        self._data = data
        self._progress = progress
        self._labelled = labelled
        self._floor = min_accuracy
        self._accuracy: dict[str, CheckResult] = {}
        self._latency: Any = None
        self.refusals: dict[str, str] = {}
        self.not_run: dict[str, str] = {}

    def try_loading(self, engine: str) -> None:
        """Lets an engine load the file and run zeros; remembers why it cannot."""
        try:
            problem = load_failure(engine, self._data)
        except EngineNotRunError as error:
            self.not_run[engine] = str(error)
            return
        if problem is not None:
            self.refusals[engine] = problem

    def note_refusal(self, engine: str, error: EngineError) -> None:
        """Takes an engine's error as a property of the file, where it cannot even run zeros."""
        if self.why_not(engine) is None:
            self.try_loading(engine)
        if self.why_not(engine) is None:
            raise error

    def why_not(self, engine: str) -> str | None:
        """Returns why an engine gives no results for the file; None where it does, or may."""
        return self.refusals.get(engine) or self.not_run.get(engine)

    def host_latency(self, engine: str = "litert") -> Any:
        """Returns the latency measured on this machine; None where its engine refuses the file."""
        if self._latency is None and self.why_not(engine) is None:
            from edgecompress.targets.bench import bench_host

            self._progress("Measuring latency on this machine")
            try:
                self._latency = bench_host(self._data, engine=engine)
            except EngineError as error:
                self.note_refusal(engine, error)
        return self._latency

    def accuracy(self, engine: str) -> CheckResult:
        """Returns top-1 accuracy in an engine against its floor."""
        if engine not in self._accuracy:
            self._accuracy[engine] = self._measure_accuracy(engine)
        return self._accuracy[engine]

    def _measure_accuracy(self, engine: str) -> CheckResult:
        if self._labelled is None:
            if self._floor is None:
                return CheckResult("accuracy", "not_applicable", unit="share")
            return CheckResult(
                "accuracy",
                "not_measured",
                limit=self._floor,
                unit="share",
                reason="--min-accuracy needs labels: give --evaluate FILE.npz with x and y.",
            )
        why = self.why_not(engine) or engine_available(engine)
        if why is None:
            from edgecompress.converters.verify import accuracy

            self._progress(f"Measuring accuracy in {engine} on {len(self._labelled.y)} samples")
            try:
                run = accuracy(self._data, self._labelled.x, self._labelled.y, engine=engine)
            except EngineError as error:
                self.note_refusal(engine, error)
                why = self.why_not(engine)
        if why is not None:
            return CheckResult(
                "accuracy", "not_measured", limit=self._floor, unit="share", reason=why
            )
        verdict = judge(run.top1, run.top1, self._floor, at_least=True)
        reason = None
        if verdict == "fail":
            reason = f"top-1 accuracy {run.top1:.4f} in {engine} is below {self._floor}."
        return CheckResult(
            "accuracy",
            verdict,
            run.top1,
            run.top1,
            run.top1,
            self._floor,
            "share",
            "measured_host",
            {"engine": engine, "version": run.version, "samples": run.samples},
            reason,
        )


REFERENCE = "Keras model"


def reference_outputs(
    loaded: LoadedModel, samples: tuple[np.ndarray, ...]
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Returns what the Keras model says to the samples, plainly and under simulated rounding.

    The plain model alone judges the file. The simulation, which only a model with learnt ranges
    has, tells the error of rounding apart from that of converting; None where there is none.

    Raises:
        NotFiniteError: an output is NaN or infinite.
    """
    plain = loaded.predict(samples)
    check_outputs(loaded.model, plain, samples)
    if loaded.record is None or not loaded.record.ranges:
        return plain, None
    from edgecompress.quantizers.simulation import simulate

    try:
        model = simulate(loaded.model, loaded.record)
    except (ArgumentError, UnsupportedModelError):
        # A range is not the learnt one, or the graph cannot be rebuilt.
        return plain, None
    return plain, dataclasses.replace(loaded, model=model).predict(samples)


def verify_in(
    data: bytes,
    floats: Artifact | None,
    reference: Sequence[np.ndarray],
    samples: tuple[np.ndarray, ...],
    engine: str,
    simulated: Sequence[np.ndarray] | None = None,
) -> Parity:
    """Runs a file in an engine and compares it with its reference.

    Args:
        data: The file.
        floats: The float file that it was made from, to compare layer by layer; None for none.
        reference: The right outputs.
        samples: The inputs.
        engine: The engine's name.
        simulated: The reference's outputs under simulated rounding; None for none.
    """
    from edgecompress.converters.verify import verify

    return verify(
        data,
        reference=reference,
        samples=samples,
        engine=engine,
        float_model=None if floats is None else floats.data,
        layer_samples=LAYER_SAMPLES,
        simulated=simulated,
    )


def likely_at_most(share: float, samples: int) -> float:
    """Returns the upper end of the 95 % interval of a share seen in a sample (Wilson, 1927)."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return (share + z**2 / (2 * samples) + spread) / (1 + z**2 / samples)


def parity_check(
    profile: TargetProfile,
    parities: Mapping[str, Parity],
    refusals: Mapping[str, str],
    floor: float | None,
    kind: str = "int8",
    layered: Parity | None = None,
) -> CheckResult:
    """Returns how well the file agrees with its reference in the target's engine."""
    parity = parities.get(profile.engine)
    if parity is None:
        why = refusals.get(profile.engine) or engine_available(profile.engine)
        why = why or "No calibration or evaluation data was given."
        return CheckResult("parity", "not_measured", limit=floor, unit="share", reason=why)
    value = parity.agreement
    high = value
    if floor is None and parity.kind != "values":
        # The user asked for no floor: only a sample that is large enough to tell fails this one.
        floor, high = MIN_AGREEMENT, likely_at_most(value, parity.samples)
    verdict = judge(value, high, floor, at_least=True)
    layers = layered.layers if layered else ()
    reason = None
    if verdict in ("fail", "uncertain"):
        worst = ", ".join(f"{layer.name} {layer.sqnr_db:.1f} dB" for layer in layers[:3])
        # Errors add up on the way; where they arise is what has to be mended.
        suspect = layered.suspect if layered else None
        source = f" The largest error arises in {suspect.name}." if suspect else ""
        reason = (
            f"The {kind} file agrees with the {REFERENCE} on {value:.1%} of {parity.samples} "
            f"samples, the floor is {floor:.1%}. Lowest signal-to-noise: {worst or 'not known'}."
            f"{source}"
        )
        if parity.rounding is not None:
            reason += (
                f" Rounding alone, simulated in Keras, agrees with the {REFERENCE} on "
                f"{parity.rounding.simulated:.1%}; the file agrees with that simulation on "
                f"{parity.rounding.file:.1%}."
            )
        if verdict == "uncertain":
            reason += " So few samples cannot tell; give more, or set --min-agreement."
    detail = {
        "engine": parity.engine,
        "version": parity.version,
        "kernels": parity.kernels,
        "reference": REFERENCE,
        "rounding": None if parity.rounding is None else dataclasses.asdict(parity.rounding),
        "samples": parity.samples,
        "kind": parity.kind,
        "max_error": parity.max_error,
        "max_error_steps": parity.max_error_steps,
        "mean_error_steps": parity.mean_error_steps,
        "engines": {name: p.agreement for name, p in parities.items()},
        "layers": [
            {
                "name": layer.name,
                "operator": layer.operator,
                "sqnr_db": layer.sqnr_db,
                "drop_db": layer.drop_db,
            }
            for layer in layers
        ],
    }
    return CheckResult(
        "parity", verdict, value, value, value, floor, "share", "measured_host", detail, reason
    )


def field_runtime_note(data: bytes) -> list[str]:
    """Returns a note where the runtime of devices in the field cannot load the file."""
    from edgecompress.converters.verify import field_runtime_problem

    missing = engine_available(FIELD_RUNTIME)
    if missing:
        return [f"Not tried in {FIELD_RUNTIME}: {missing}"]
    problem = field_runtime_problem(data)
    return [] if problem is None else [f"Devices in the field: {problem}"]
