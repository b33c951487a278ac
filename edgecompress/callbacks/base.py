"""What every compression callback shares: its life cycle in a fit, history, notes and record."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras

from edgecompress.callbacks.backends import check_backend
from edgecompress.callbacks.fused_updates import fused_updates
from edgecompress.callbacks.hooks import Hook, HookSession
from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.finite import check_weights
from edgecompress.core.learnt_ranges import keeping_ranges, tied, with_learnt
from edgecompress.core.record import CompressionRecord, attach_record, record_of

H = TypeVar("H", bound=Hook)

# What to do if training produced NaN or infinity.
DIVERGED = "Training diverged: lower the learning rate, and begin from finite weights."


class Keras3Callback(keras.callbacks.Callback):
    """A callback that works only on Keras 3 models."""

    _fit_model: keras.Model | None = None

    @property
    def model(self) -> Any:
        """The model of the fit.

        On JAX, its variables hold no values in the middle of an epoch (`backends.Backend.sync`).
        Keras's own property brings them up to date, which the functions of hooks must not do: they
        run while a step is traced, and would put the values of an earlier step into it.
        """
        return self._fit_model

    def set_model(self, model: Any) -> None:
        """Takes the model of the fit.

        Raises:
            UnsupportedModelError: it is a model of tf_keras (Keras 2).
        """
        if not isinstance(model, keras.Model):
            raise UnsupportedModelError(
                f"{type(self).__name__} works on Keras 3 models, and this fit trains a "
                f"{type(model).__module__.partition('.')[0]} model. Build the model with `import "
                "keras`; keras.models.load_model reads most files of Keras 2."
            )
        super().set_model(model)
        self._fit_model = model


class HookedCallback(Keras3Callback):
    """A callback that reaches into training through hooks.

    A subclass defines the stages it needs; Keras drives them:

        attach        training begins: attach hooks with `hook`
        start_epoch   an epoch begins: switch them on or off, attach others
        settle        training has ended: bring the final weights into their final form
        detach        every object gets its own attributes back; nothing to define

    The train step is retraced whenever hooks come or go. An error in a stage detaches the hooks
    of all callbacks of the fit. A fit that is interrupted elsewhere (Ctrl-C) leaves them on the
    model until the next fit with such a callback, or until `detach()`.
    """

    _session: HookSession | None = None

    def attach(self) -> None:
        """Attaches the hooks that are there from the first step on."""

    def start_epoch(self, epoch: int) -> None:
        """Switches hooks on or off as the epoch requires.

        Args:
            epoch: Epoch, as Keras numbers them.
        """

    def settle(self) -> None:
        """Brings the weights that `fit` leaves, restored or averaged ones too, into final form."""

    def detach(self) -> None:
        """Undoes everything this callback did; `fit` does so unless interrupted."""
        if self._session is not None:
            self._session.leave(self)
            self._session = None

    @property
    def session(self) -> HookSession:
        """The hooks of the running fit, those of other callbacks too."""
        if self._session is None:
            raise RuntimeError(f"{type(self).__name__} has hooks only during a fit.")
        return self._session

    def hook(self, hook: H) -> H:
        """Attaches a hook and returns it.

        Raises:
            ArgumentError: another hook of the fit rules it out.
        """
        self.session.attach(hook, self)
        return hook

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Attaches the hooks; those that an interrupted fit left behind go first.

        Raises:
            ArgumentError: Keras runs on a backend other than TensorFlow and JAX.
        """
        check_backend(type(self).__name__)
        self.detach()
        self._session = HookSession.of(self.model, self.params)
        with self._stage():
            self.attach()
            for hook in fused_updates(self.session):
                self.hook(hook)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Lets the technique begin, change or end its work."""
        with self._stage():
            self.start_epoch(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Settles the weights and detaches the hooks."""
        with self._stage():
            self.settle()
        self.detach()

    @contextlib.contextmanager
    def _stage(self) -> Iterator[None]:
        """Retraces the step if hooks changed; detaches all hooks if a stage fails."""
        try:
            yield
        except BaseException:
            if self._session is not None:
                self._session.close()
            self.detach()
            raise
        if self._session is not None:
            self._session.trace()


class CompressionCallback(HookedCallback):
    """Base of the compression callbacks.

    A subclass sets `technique`, returns its arguments from `settings` and the outcome from
    `results`, reports what it skips with `note`, logs values of an epoch with `log`, and defines
    the stages of `HookedCallback`.

    Example:
        >>> class Clip(CompressionCallback):
        ...     technique = "clip"
        ...     def settings(self): return {"limit": 1.0}
        ...     def attach(self):
        ...         weights = self.model.trainable_variables
        ...         self.hook(UpdateHook(lambda: self.clip(weights), assigns=weights))
        ...     def clip(self, weights):
        ...         for w in weights: w.assign(ops.clip(w, -1, 1))
    """

    technique: str = ""

    def __init__(self) -> None:
        """Starts without notes."""
        super().__init__()
        self._notes: list[str] = []
        self._attached_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What this training skipped or did differently from the request, one sentence each."""
        return tuple(self._notes)

    def note(self, text: str) -> None:
        """Adds a note once; it goes into the record at the end of training."""
        if text not in self._notes:
            self._notes.append(text)

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values; with `technique` they identify the step."""
        raise NotImplementedError(f"{type(self).__name__} must define settings().")

    def results(self) -> Mapping[str, Any]:
        """Returns the outcome as JSON values, e.g. `{"sparsity": 0.8}`; called once settled."""
        return {}

    def learnt_ranges(self) -> Mapping[str, tuple[float, float]] | None:
        """Returns learnt activation ranges, tap -> (minimum, maximum); None for none."""
        return None

    def learnt_scales(self) -> Mapping[str, Sequence[float]]:
        """Returns learnt scales of kernels, `<layer>/<attribute>` -> one for each channel."""
        return {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets the notes of an earlier fit and attaches the hooks."""
        self._notes.clear()
        super().on_train_begin(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves a plain model, with what was done in its record."""
        with self._stage():
            with keeping_ranges(self.model):
                self.settle()
            self.attach_step(self.results(), self.learnt_ranges(), self.learnt_scales())
        self.detach()

    def log(
        self,
        epoch: int,
        logs: dict[str, Any] | None,
        values: Mapping[str, float],
        details: Mapping[str, float] | None = None,
    ) -> None:
        """Writes values of an epoch into the history.

        Args:
            epoch: The epoch that `on_epoch_end` was given.
            logs: The logs it was given; changed in place (`logs or {}` would drop the values
                where the logs are empty).
            values: Name -> value, shown in the progress bar and to the other callbacks, too.
            details: Name -> value for the history only, e.g. one value per layer.

        Raises:
            NotFiniteError: a weight became NaN or infinite in this epoch.
        """
        with self._stage():
            check_weights(self.model, DIVERGED)
        if logs is not None:
            logs.update(values)
        history = getattr(self.model, "history", None)
        # All callbacks of one fit share one params object: this tells an old History apart.
        if not isinstance(history, keras.callbacks.History) or history.params is not self.params:
            return
        # A History that the user listed before this callback has already copied the logs.
        late = values if history.epoch[-1:] == [epoch] or logs is None else {}
        for name, value in {**late, **(details or {})}.items():
            history.history.setdefault(name, []).append(value)

    def attach_step(
        self,
        results: Mapping[str, Any],
        ranges: Mapping[str, tuple[float, float]] | None = None,
        scales: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Adds what was done to the model's CompressionRecord.

        A step of the same technique with the same settings is replaced: a second fit continues
        it. Other settings append a new step.

        Args:
            results: The outcome as JSON values, e.g. `{"sparsity": 0.8}`.
            ranges: Learnt activation ranges, tap -> (minimum, maximum); they replace the record's
                and belong to the current weights. Defaults to none.
            scales: Learnt scales of kernels, which belong to the ranges. Defaults to none.
        """
        # Through JSON, so that tuples and lists compare equal and a bad value fails here.
        identity = json.loads(json.dumps({"technique": self.technique, **self.settings()}))
        step = {**identity, **json.loads(json.dumps(dict(results)))}
        record = record_of(self.model)
        steps = list(record.steps)
        for index, old in enumerate(steps):
            if all(old.get(key) == value for key, value in identity.items()):
                steps[index] = step
                break
        else:
            steps.append(step)
        kept = tuple(note for note in record.notes if note not in self._attached_notes)
        record = dataclasses.replace(record, steps=tuple(steps), notes=kept)
        if ranges:
            record = tied(with_learnt(record, ranges, scales or {}), self.model)
        attach_record(self.model, record.merged(CompressionRecord(notes=self.notes)))
        self._attached_notes = self.notes
