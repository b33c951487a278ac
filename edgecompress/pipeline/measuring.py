"""Runs of the file, each done at most once however many targets need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError, EngineError, EngineNotRunError
from edgecompress.core.labelled import Labelled
from edgecompress.core.results import CheckResult
from edgecompress.engines.registry import LITERT
from edgecompress.engines.run import engine_available, load_failure
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.pipeline import score_plan, scores
from edgecompress.pipeline.scoring import Scoring

if TYPE_CHECKING:
    from edgecompress.converters.loaders import LoadedModel
    from edgecompress.converters.tasks import Output


class Measurements:
    """Runs of the file, each done at most once however many targets need it.

    Attributes:
        refusals: Engine -> why it cannot run the file, for those found not to.
        not_run: Engine -> why it is unknown whether it can.
        ran: Engines that loaded the file and ran zeros.
    """

    def __init__(
        self,
        file: Artifact,
        progress: Callable[[str], None],
        labelled: Labelled | None,
        asked: Scoring,
        outputs: Sequence[Output] = (),
        loaded: LoadedModel | None = None,
        each: bool = False,
    ) -> None:
        """Stores what there is to run and what is requested.

        Args:
            file: The file.
            progress: Called with a short text as each stage begins.
            labelled: Data for the accuracy; None for none.
            asked: What is requested about accuracy.
            outputs: The outputs of the model that the file was made from, in the file's order.
                Defaults to those named in the file.
            loaded: That model, if it is a Keras model: its accuracy is reported next to the file's.
            each: Whether to keep the metric of each sample.
        """
        self._file = file
        self._progress = progress
        self._labelled = labelled
        self._scoring = asked
        self._outputs = tuple(outputs)
        self._loaded = loaded
        self._each = each
        self._runs: dict[str, scores.Run] = {}
        self._keras: scores.Reference | None = None
        self._accuracy: dict[tuple[str, float | None], tuple[CheckResult, ...]] = {}
        self._samples: dict[str, tuple[float, ...]] = {}
        self._latency: Any = None
        self.refusals: dict[str, str] = {}
        self.not_run: dict[str, str] = {}
        self.ran: set[str] = set()

    def try_loading(self, engine: str) -> None:
        """Lets an engine load the file and run zeros; remembers why it cannot."""
        try:
            problem = load_failure(engine, self._file.data)
        except EngineNotRunError as error:
            self.not_run[engine] = str(error)
            return
        if problem is None:
            self.ran.add(engine)
        else:
            self.refusals[engine] = problem

    def note_refusal(self, engine: str, error: EngineError) -> None:
        """Attributes an engine's error to the file if it cannot even run zeros."""
        if self.why_not(engine) is None:
            self.try_loading(engine)
        if self.why_not(engine) is None:
            raise error

    def why_not(self, engine: str) -> str | None:
        """Returns why an engine gives no results for the file; None if it does, or may."""
        return self.refusals.get(engine) or self.not_run.get(engine)

    def host_latency(self, engine: str = LITERT) -> Any:
        """Returns the latency measured on this machine; None if its engine refuses the file."""
        if self._latency is None and self.why_not(engine) is None:
            from edgecompress.targets.bench import bench_host

            self._progress("Measuring latency on this machine")
            try:
                self._latency = bench_host(self._file.data, engine=engine)
            except EngineError as error:
                self.note_refusal(engine, error)
        return self._latency

    def accuracy(self, engine: str, floor: float | None = None) -> tuple[CheckResult, ...]:
        """Returns the score of each output in an engine, judged against its limits.

        Args:
            engine: The engine's name.
            floor: The target's own floor for accuracy; one that the user gave takes precedence.
        """
        key = (engine, floor)
        if key not in self._accuracy:
            self._accuracy[key] = self._judge_accuracy(engine, floor)
        return self._accuracy[key]

    @property
    def by_sample(self) -> dict[str, tuple[float, ...]]:
        """Engine -> the first metric of each sample, as far as it was measured and kept."""
        return dict(self._samples)

    def _judge_accuracy(self, engine: str, floor: float | None) -> tuple[CheckResult, ...]:
        labelled = self._labelled
        if labelled is None:
            return scores.unmeasured(
                self._scoring, "{} needs labels: give --evaluate FILE.npz with x and y."
            )
        from edgecompress.converters.tasks import outputs_of_file

        flat = self._file.flat
        outputs = self._outputs or outputs_of_file(flat)
        try:
            items = score_plan.plan(self._scoring, outputs, flat, labelled, floor)
        except ArgumentError as error:
            if labelled.argument == "--evaluate" or self._scoring != Scoring():
                raise
            # The labels came with the samples, and nothing that was requested needs them.
            note = f"The labels (y) of the calibration data are not used: {error}"
            return scores.unmeasured(Scoring(floor), note)
        run = self._run(engine, labelled)
        if isinstance(run, str):
            return tuple(scores.missing(item, run) for item in items)
        if self._each:
            found = scores.by_sample(items[0], run)
            if found is not None:
                self._samples[engine] = tuple(found.tolist())
        return tuple(scores.result(item, run, self._keras_outputs()) for item in items)

    def _run(self, engine: str, labelled: Labelled) -> scores.Run | str:
        """Returns an engine's outputs for the labelled samples, or why there are none."""
        if engine not in self._runs:
            why = self.why_not(engine) or engine_available(engine)
            if why is None:
                self._progress(f"Measuring accuracy in {engine} on {len(labelled.x[0])} samples")
                try:
                    self._runs[engine] = scores.run_file(self._file, labelled.x, engine)
                except EngineError as error:
                    self.note_refusal(engine, error)
                    why = self.why_not(engine)
            if why is not None:
                return why
        return self._runs[engine]

    def _keras_outputs(self) -> scores.Reference:
        """Returns the outputs of the Keras model on the labelled samples."""
        if self._keras is None:
            self._keras = scores.Reference(reason="There is no Keras model to compare with.")
            if self._loaded is not None and self._labelled is not None:
                self._progress("Measuring accuracy in Keras")
                outputs = self._loaded.predict(self._labelled.x)
                self._keras = scores.Reference(tuple(outputs))
        return self._keras
