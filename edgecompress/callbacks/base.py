"""What every compression callback shares: layer choice, graph rebuilding, history, record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.keras_graph import functional_of, walk_layers
from edgecompress.core.record import CompressionRecord, attach_record, record_of

LayerChoice = Iterable[str] | Callable[[Any], bool] | None


def select_layers(
    model: keras.Model, layers: LayerChoice, kinds: tuple[type, ...]
) -> list[keras.layers.Layer]:
    """Returns the layers a technique works on, in the model's order, nested models included.

    Args:
        model: A built Sequential or Functional model.
        layers: Names of the layers, or a predicate `layer -> bool`, or None for every layer of
            `kinds`. A predicate only sees layers of `kinds`.
        kinds: Layer classes the technique can handle.

    Raises:
        UnsupportedModelError: the model is subclassed or has no input shape yet.
        UnknownNameError: a name is no layer of the model; the nearest names are offered.
        ArgumentError: a named layer is of another kind, or nothing is chosen.

    Example:
        >>> select_layers(model, ["dense_1"], (keras.layers.Dense,))
        [<Dense name=dense_1, built=True>]
    """
    functional_of(model)  # Refuses models whose graph cannot be read.
    known = list(walk_layers(model))
    if layers is None or callable(layers):
        chosen = [
            layer
            for layer in known
            if isinstance(layer, kinds) and (layers is None or layers(layer))
        ]
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
        for name in names:
            named = [layer for layer in known if layer.name == name]
            if not named:
                raise UnknownNameError("layers", name, {layer.name for layer in known})
            for layer in named:
                if not isinstance(layer, kinds):
                    raise ArgumentError(
                        "layers",
                        f"name layers of {', '.join(sorted(k.__name__ for k in kinds))}",
                        f"{name} ({type(layer).__name__})",
                    )
        chosen = [layer for layer in known if layer.name in names]
    if not chosen:
        raise ArgumentError(
            "layers",
            "choose at least one layer",
            layers,
            f"Model {model.name!r} has: "
            + ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in known)
            + ".",
        )
    return chosen


def rebuild_train_function(model: keras.Model) -> None:
    """Makes the next train, test and predict step trace the model anew.

    `fit` builds its train function before `on_train_begin`, and a second `fit` reuses the traced
    one: whatever a callback hooks into the model or its optimizer would not be seen. Nothing is
    traced here, so any number of calls costs nothing.
    """
    model.make_train_function(force=True)
    model.test_function = None
    model.predict_function = None


class CompressionCallback(keras.callbacks.Callback):
    """Base of the compression callbacks.

    A subclass sets `technique`, returns its arguments from `settings`, names what it skips with
    `note`, writes per-epoch values with `log` and ends `on_train_end` with `attach_step`.

    Example:
        >>> class Clip(CompressionCallback):
        ...     technique = "clip"
        ...     def settings(self): return {"limit": 1.0}
        ...     def on_train_end(self, logs=None): self.attach_step({"clipped": 3})
    """

    technique: str = ""

    def __init__(self) -> None:
        """Starts without notes."""
        super().__init__()
        self._notes: list[str] = []
        self._attached_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What this training skipped or did otherwise than asked, one sentence each."""
        return tuple(self._notes)

    def note(self, text: str) -> None:
        """Adds a note once; it goes into the record at the end of training."""
        if text not in self._notes:
            self._notes.append(text)

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values; with `technique` they identify the step."""
        raise NotImplementedError(f"{type(self).__name__} must define settings().")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets the notes of an earlier fit; subclasses call this first."""
        self._notes.clear()

    def log(self, epoch: int, logs: dict[str, Any] | None, values: Mapping[str, float]) -> None:
        """Writes values of an epoch into the history and the progress bar.

        `logs` itself is changed (`logs or {}` would drop the values where it is empty). A History
        that the user listed before this callback has already copied the logs, so it is given the
        values directly.
        """
        if logs is not None:
            logs.update(values)
        history = getattr(self.model, "history", None)
        if isinstance(history, keras.callbacks.History) and history.epoch[-1:] == [epoch]:
            for name, value in values.items():
                history.history.setdefault(name, []).append(value)

    def attach_step(
        self,
        results: Mapping[str, Any],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Puts what was done into the model's CompressionRecord, beside what others put there.

        A step of the same technique with the same settings is replaced: a second fit continues
        it. Other settings append a new step.

        Args:
            results: What came out, as JSON values, e.g. `{"sparsity": 0.8}`.
            ranges: Learnt activation ranges, tap -> (minimum, maximum). Defaults to none.
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
        attach_record(
            self.model, record.merged(CompressionRecord(ranges=ranges or {}, notes=self.notes))
        )
        self._attached_notes = self.notes
