"""What has to be run: accuracy, host latency, agreement with the reference, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    EngineNotRunError,
    UnsupportedModelError,
)
from edgecompress.core.finite import check_outputs
from edgecompress.core.labelled import Labelled
from edgecompress.core.results import CheckResult, worst_verdict
from edgecompress.engines.run import engine_available, load_failure
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline import scoring

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.converters.agreement import Kind, Meaning
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.tasks import Output
    from edgecompress.converters.verify import Parity
    from edgecompress.targets.profile import TargetProfile

# How many of the given samples the engines run for parity, and for the per-layer comparison.
PARITY_SAMPLES = 200
LAYER_SAMPLES = 16

# The runtime of devices in the field: not run for numbers, but asked whether it loads the file.
FIELD_RUNTIME = "tflite-runtime"


class Measurements:
    """What has to be run, each at most once however many targets ask for it.

    Attributes:
        refusals: Engine -> why it cannot run the file, for those found not to.
        not_run: Engine -> why nobody knows whether it can.
        ran: Engines that loaded the file and ran zeros.
    """

    def __init__(
        self,
        data: bytes,
        progress: Callable[[str], None],
        labelled: Labelled | None,
        asked: scoring.Scoring,
        outputs: Sequence[Output] = (),
        loaded: LoadedModel | None = None,
    ) -> None:
        """Takes what there is to run and what is asked.

        Args:
            data: The file.
            progress: Called with a short text as each stage begins.
            labelled: Data for the accuracy; None for none.
            asked: What is asked about accuracy.
            outputs: The outputs of the model that the file was made from, in the file's order.
                Defaults to those that the file names.
            loaded: That model, where it is one of Keras: its accuracy stands beside the file's.
        """
        self._data = data
        self._progress = progress
        self._labelled = labelled
        self._scoring = asked
        self._outputs = tuple(outputs)
        self._loaded = loaded
        self._runs: dict[str, scoring.Run] = {}
        self._keras: scoring.Reference | None = None
        self._accuracy: dict[tuple[str, float | None], tuple[CheckResult, ...]] = {}
        self._latency: Any = None
        self.refusals: dict[str, str] = {}
        self.not_run: dict[str, str] = {}
        self.ran: set[str] = set()

    def try_loading(self, engine: str) -> None:
        """Lets an engine load the file and run zeros; remembers why it cannot."""
        try:
            problem = load_failure(engine, self._data)
        except EngineNotRunError as error:
            self.not_run[engine] = str(error)
            return
        if problem is None:
            self.ran.add(engine)
        else:
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

    def accuracy(self, engine: str, floor: float | None = None) -> tuple[CheckResult, ...]:
        """Returns what each output is worth in an engine, against its limits.

        Args:
            engine: The engine's name.
            floor: The target's own floor for accuracy; one that the user gave goes before it.
        """
        key = (engine, floor)
        if key not in self._accuracy:
            self._accuracy[key] = self._judge_accuracy(engine, floor)
        return self._accuracy[key]

    def _judge_accuracy(self, engine: str, floor: float | None) -> tuple[CheckResult, ...]:
        labelled = self._labelled
        if labelled is None:
            return scoring.unmeasured(
                self._scoring, "{} needs labels: give --evaluate FILE.npz with x and y."
            )
        from edgecompress.converters.tasks import outputs_of_file

        flat = read_tflite(self._data)
        outputs = self._outputs or outputs_of_file(flat)
        try:
            items = scoring.plan(self._scoring, outputs, flat, labelled, floor)
        except ArgumentError as error:
            if labelled.argument == "--evaluate" or self._scoring != scoring.Scoring():
                raise
            # They came along with the samples; nobody asked for anything that needs them.
            note = f"The y beside the calibration data is not used: {error}"
            return scoring.unmeasured(scoring.Scoring(floor), note)
        run = self._run(engine, labelled)
        if isinstance(run, str):
            return tuple(scoring.missing(item, run) for item in items)
        return tuple(scoring.result(item, run, self._keras_outputs()) for item in items)

    def _run(self, engine: str, labelled: Labelled) -> scoring.Run | str:
        """Returns what an engine gives for the labelled samples, or why it gives nothing."""
        if engine not in self._runs:
            why = self.why_not(engine) or engine_available(engine)
            if why is None:
                self._progress(f"Measuring accuracy in {engine} on {len(labelled.x[0])} samples")
                try:
                    self._runs[engine] = scoring.run_file(self._data, labelled.x, engine)
                except EngineError as error:
                    self.note_refusal(engine, error)
                    why = self.why_not(engine)
            if why is not None:
                return why
        return self._runs[engine]

    def _keras_outputs(self) -> scoring.Reference:
        """Returns what the Keras model says to the labelled samples."""
        if self._keras is None:
            self._keras = scoring.Reference(reason="There is no Keras model to compare with.")
            if self._loaded is not None and self._labelled is not None:
                self._progress("Measuring accuracy in Keras")
                outputs = self._loaded.predict(self._labelled.x)
                self._keras = scoring.Reference(tuple(outputs))
        return self._keras


REFERENCE = "Keras model"
# Calibration may leave single values out; more change what the model sees.
MUCH_CLIPPED = 0.001


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
    from edgecompress.precisions.simulation import simulate

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
    kind: Kind | Sequence[Meaning] = "auto",
    min_r2: float | None = None,
) -> Parity:
    """Runs a file in an engine and compares it with its reference.

    Args:
        data: The file.
        floats: The float file that it was made from, to compare layer by layer; None for none.
        reference: The right outputs.
        samples: The inputs.
        engine: The engine's name.
        simulated: The reference's outputs under simulated rounding; None for none.
        kind: What the outputs mean, as `verify` takes it.
        min_r2: Floor of R2 of each column of values; None for the default one.
    """
    from edgecompress.converters.agreement import MIN_R2
    from edgecompress.converters.verify import verify

    return verify(
        data,
        reference=reference,
        samples=samples,
        engine=engine,
        float_model=None if floats is None else floats.data,
        layer_samples=LAYER_SAMPLES,
        simulated=simulated,
        kind=kind,
        min_r2=MIN_R2 if min_r2 is None else min_r2,
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

    Every output is judged by itself; the worst verdict is the check's. The value shown is the
    lowest agreement of the outputs that answer, and the lowest R2 where all are values.

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
        # A model of values: its worst column, 0 where that is worse than its mean.
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
        # Errors add up on the way; where they arise is what has to be mended.
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
    """Returns a sentence on each input of which the file's codes lose columns or clip values."""
    from edgecompress.converters.agreement import listed

    found = []
    for loss in parity.inputs:
        if loss.erased:
            found.append(
                f"Input {loss.name}: column {listed(loss.erased)} varies by about a step of the "
                f"input's scale ({loss.step:.3g}) or less: int8 erases it. Ways round: scale the "
                "features in the application to like ranges, with Normalization folded into the "
                "first layer; an input of its own for each scale; or the float32 file."
            )
        if loss.clipped > MUCH_CLIPPED:
            found.append(
                f"Input {loss.name}: {loss.clipped:.1%} of the values lie beyond its range and are "
                "clipped."
            )
    return found


def field_runtime_note(data: bytes) -> list[str]:
    """Returns a note where the runtime of devices in the field cannot load the file."""
    from edgecompress.converters.verify import field_runtime_problem

    missing = engine_available(FIELD_RUNTIME)
    if missing:
        return [f"Not tried in {FIELD_RUNTIME}: {missing}"]
    problem = field_runtime_problem(data)
    return [] if problem is None else [f"Devices in the field: {problem}"]
