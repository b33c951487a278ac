"""How well the file that ships agrees with the model it was made from, in each engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgecompress.core.errors import ArgumentError, EngineError, UnsupportedModelError
from edgecompress.core.finite import check_outputs
from edgecompress.core.results import CheckResult, worst_verdict
from edgecompress.engines.registry import LEGACY, LITERT
from edgecompress.engines.run import engine_available, load_failure
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.pipeline.measuring import Measurements
from edgecompress.precisions.base import trained_precision

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.agreement import Kind, Meaning
    from edgecompress.converters.formats import FormatResult
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.tasks import Output
    from edgecompress.converters.verify import Parity
    from edgecompress.targets.profile import TargetProfile

# Maximum number of samples for parity and for the per-layer comparison.
PARITY_SAMPLES = 200
LAYER_SAMPLES = 16
REFERENCE = "Keras model"
# Calibration may miss single values; more of them change what the model sees.
MUCH_CLIPPED = 0.001


def parity_samples(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns the samples on which files are compared with the Keras model."""
    from edgecompress.converters.calibration import spread

    return tuple(spread(array, PARITY_SAMPLES) for array in samples)


def reference_outputs(
    loaded: LoadedModel, samples: tuple[np.ndarray, ...], kind: str = ""
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Returns the outputs of the Keras model on the samples, plain and with simulated rounding.

    The file is judged only by the plain model. The simulation, which needs learnt ranges, separates
    the error of rounding from that of converting; None if there is none.

    Args:
        loaded: The model.
        samples: Its inputs, one array for each.
        kind: The kind of file. If it names a precision, that one is simulated, else the one that
            the model was trained in.

    Raises:
        NotFiniteError: an output is NaN or infinite.
    """
    from edgecompress.converters.recalled import RecalledModel

    plain = loaded.predict(samples)
    if isinstance(loaded, RecalledModel):
        return plain, None if loaded.simulated is None else list(loaded.simulated)
    check_outputs(loaded.model, plain, samples)
    if loaded.record is None or not loaded.record.ranges:
        return plain, None
    from edgecompress.precisions import PRECISIONS
    from edgecompress.precisions.simulation import simulate

    trained = trained_precision(loaded.record)
    if kind in PRECISIONS and (trained is None or trained.name != kind):
        trained = PRECISIONS[kind]()
    try:
        model = simulate(loaded.model, loaded.record, trained)
    except (ArgumentError, UnsupportedModelError):
        # A range was not learnt, or the graph cannot be rebuilt.
        return plain, None
    return plain, dataclasses.replace(loaded, model=model).predict(samples)


def verify_in(
    file: Artifact,
    floats: Artifact | None,
    reference: Sequence[np.ndarray],
    samples: tuple[np.ndarray, ...],
    engine: str,
    simulated: Sequence[np.ndarray] | None = None,
    kind: Kind | Sequence[Meaning] = "auto",
    min_r2: float | None = None,
) -> Parity:
    """Runs a file in an engine and compares it with its reference.

    Args:
        file: The file.
        floats: The float file that it was made from, to compare layer by layer; None for none.
        reference: The correct outputs.
        samples: The inputs.
        engine: The engine's name.
        simulated: The reference's outputs under simulated rounding; None for none.
        kind: The kind of the outputs, as in `verify`.
        min_r2: Floor of R2 of each column of values; None for the default one.
    """
    from edgecompress.converters.agreement import MIN_R2
    from edgecompress.converters.verify import verify

    return verify(
        file.flat,
        reference=reference,
        samples=samples,
        engine=engine,
        float_model=None if floats is None else floats.flat,
        layer_samples=LAYER_SAMPLES,
        simulated=simulated,
        kind=kind,
        min_r2=MIN_R2 if min_r2 is None else min_r2,
        stepping=file.stepping,
    )


def parity_check(
    profile: TargetProfile,
    parities: Mapping[str, Parity],
    refusals: Mapping[str, str],
    floor: float | None,
    kind: str = "int8",
    layered: Parity | None = None,
    min_r2: float | None = None,
) -> CheckResult:
    """Returns how well the file agrees with its reference in the target's engine.

    Every output is judged separately; the worst verdict is the check's. The value shown is the
    lowest agreement of the classifying outputs, or the lowest R2 if all are values.

    Args:
        profile: The target.
        parities: What was found, by engine.
        refusals: Why engines did not run.
        floor: The user's floor for the agreement.
        kind: The kind of file.
        layered: The run that compared layer by layer.
        min_r2: The floor of R2, for the report.
    """
    from edgecompress.converters.agreement import MIN_AGREEMENT, MIN_R2, judge_output

    parity = parities.get(profile.engine)
    if parity is None:
        why = refusals.get(profile.engine) or engine_available(profile.engine)
        why = why or "No calibration or evaluation data was given."
        return CheckResult("parity", "not_measured", limit=floor, unit="share", reason=why)
    judged = [judge_output(output, floor) for output in parity.outputs]
    verdict = worst_verdict([found for found, _ in judged])
    answers = [o.agreement for o in parity.outputs if o.kind != "values"]
    if floor is not None or answers:
        shown = min(answers or [o.agreement for o in parity.outputs])
        limit = MIN_AGREEMENT if floor is None else floor
    else:
        # A model of values: its worst column, 0 if that is worse than its mean.
        shown = max(0.0, min((o.r2 for o in parity.outputs if o.r2 is not None), default=1.0))
        limit = MIN_R2 if min_r2 is None else min_r2
    layers = layered.layers if layered else ()
    reason = None
    if verdict in ("fail", "uncertain"):
        reason = f"The {kind} file against the {REFERENCE}: " + " ".join(
            text for found, text in judged if found == verdict
        )
        reason += "".join(f" {text}" for text in input_losses(parity))
        worst = ", ".join(f"{layer.name} {layer.sqnr_db:.1f} dB" for layer in layers[:3])
        # Errors accumulate on the way; what needs fixing is where they arise.
        suspect = layered.suspect if layered else None
        reason += f" Lowest signal-to-noise: {worst or 'not known'}."
        reason += f" The largest error arises in {suspect.name}." if suspect else ""
        if parity.rounding is not None:
            reason += (
                f" Rounding alone, simulated in Keras, agrees with the {REFERENCE} on "
                f"{parity.rounding.simulated:.1%}; the file agrees with that simulation on "
                f"{parity.rounding.file:.1%}."
            )
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
        "outputs": [
            {**output.to_dict(), "verdict": found}
            for output, (found, _) in zip(parity.outputs, judged, strict=True)
        ],
        "inputs": [loss.to_dict() for loss in parity.inputs],
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
        "parity", verdict, shown, shown, shown, limit, "share", "measured_host", detail, reason
    )


def input_losses(parity: Parity) -> list[str]:
    """Returns a sentence for each input whose codes lose columns or clip values."""
    from edgecompress.converters.agreement import listed

    found = []
    for loss in parity.inputs:
        if loss.erased:
            found.append(
                f"Input {loss.name}: column {listed(loss.erased)} varies by about a step of the "
                f"input's scale ({loss.step:.3g}) or less: int8 erases it. Workarounds: scale "
                "the features to similar ranges in the application, with Normalization folded into "
                "the first layer; use a separate input for each scale; or ship the float32 file."
            )
        if loss.clipped > MUCH_CLIPPED:
            found.append(
                f"Input {loss.name}: {loss.clipped:.1%} of the values are outside its range and "
                "saturate."
            )
    return found


class Agreement:
    """How well the file agrees with the model it was made from, in each engine.

    Attributes:
        parities: Engine -> what was found there.
        layered: The comparison layer by layer; None if there was none.
    """

    def __init__(
        self,
        product: FormatResult,
        measurements: Measurements,
        floor: float | None,
        min_r2: float | None,
        outputs: Sequence[Output] = (),
    ) -> None:
        from edgecompress.converters.agreement import meaning_of

        self._meanings = [
            meaning_of(None if output.loss is None else output.loss.kind) for output in outputs
        ]
        self._min_r2 = min_r2
        self._product = product
        self._measurements = measurements
        self._floor = floor
        self.parities: dict[str, Parity] = {}
        self.layered: Parity | None = None

    def load(self, engines: Sequence[str], progress: Callable[[str], None]) -> None:
        """Lets the engines load the file."""
        for engine in sorted(set(engines)):
            if engine_available(engine) is None:
                progress(f"Loading the file in {engine}")
                self._measurements.try_loading(engine)

    def measure(
        self,
        loaded: LoadedModel,
        samples: tuple[np.ndarray, ...] | None,
        engines: Sequence[str],
        progress: Callable[[str], None],
    ) -> list[str]:
        """Runs the file, and the file with the inner tensors' names; returns notes.

        Args:
            loaded: The reference.
            samples: Its inputs. With None, the engines only load the file.
            engines: Where it runs.
            progress: Called with a short text as each run begins.
        """
        notes: list[str] = []
        few = reference = simulated = None
        if samples is not None:
            few = parity_samples(samples)
            kind = self._product.main.kind
            reference, simulated = reference_outputs(loaded, few, kind)
        for engine, file, floats in self._runs(engines):
            if engine_available(engine) is not None:
                continue
            progress(f"Running the {file.kind} file in {engine}")
            if few is None or reference is None:
                self._measurements.try_loading(engine)
                continue
            try:
                parity = verify_in(
                    file,
                    floats,
                    reference,
                    few,
                    engine,
                    simulated,
                    kind=self._meanings,
                    min_r2=self._min_r2,
                )
            except EngineError as error:
                self._measurements.note_refusal(engine, error)
                continue
            notes += parity.notes
            if file.kind == self._product.main.kind:
                notes += input_losses(parity)
            if floats is not None:
                self.layered = parity
            if file.kind == self._product.main.kind:
                self.parities[engine] = parity
        return notes

    def _runs(self, engines: Sequence[str]) -> list[tuple[str, Artifact, Artifact | None]]:
        """Returns what runs where: engine, file, and the float file to compare its layers with."""
        product, shown = self._product, None
        runs: list[tuple[str, Artifact, Artifact | None]] = []
        if product.layers is not None:
            # Only LiteRT exposes the inner tensors of an int8 file.
            shown = (LITERT, product.layers[0].kind)
            runs.append((LITERT, *product.layers))
        for engine in dict.fromkeys(engines):
            if (engine, product.main.kind) != shown:
                runs.append((engine, product.main, None))
        return runs

    def check(self, profile: TargetProfile) -> CheckResult:
        """Returns the parity check of a target."""
        if self._product.parity is not None:
            return self._product.parity
        return parity_check(
            profile,
            self.parities,
            {**self._measurements.not_run, **self._measurements.refusals},
            self._floor,
            self._product.main.kind,
            self.layered,
            self._min_r2,
        )


def legacy_runtime_note(data: bytes) -> list[str]:
    """Returns a note if the legacy runtime cannot load the file."""
    missing = engine_available(LEGACY)
    if missing:
        return [f"Not tried in {LEGACY}: {missing}"]
    problem = load_failure(LEGACY, data)
    return [] if problem is None else [f"Deployed devices: {problem}"]
