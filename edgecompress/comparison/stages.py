"""What a row may do to a model: `STAGES`, and the callbacks that a training takes.

A file names only what is here: public callbacks by class name, rewrites of `REWRITES` and the
networks to compare with. To add a kind of stage: a subclass of `Stage`, registered.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import edgecompress
from edgecompress.core.errors import ArgumentError, EdgeCompressError, UnknownNameError
from edgecompress.core.options import named
from edgecompress.core.registry import Registry

# Share of a stage after which sparsity no longer rises, and how often it rises before.
_RISING = 2 / 3
# Of a lottery ticket, as its function has them.
_ROUNDS = 5
_MASKS = 20


@dataclass(frozen=True)
class Work:
    """What the stages of a row work with.

    Attributes:
        original: The untouched model.
        steps_per_epoch: Updates of an epoch.
        examples: Training samples.
        seed: Of everything random.
        fit: (model, stage's title, epochs, learning rate, callbacks): trains in place.
        taught: Returns what teaches outputs in place of `original`; None for `original`.
    """

    original: Any
    steps_per_epoch: int
    examples: int
    seed: int
    fit: Callable[[Any, str, int, float, Sequence[Any]], Any] = field(repr=False)
    taught: Callable[[], Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Defaults:
    """What a stage has unless it says otherwise: epochs and learning rate."""

    epochs: int
    learning_rate: float


class Stage(ABC):
    """A step from one Keras model to the next; frozen dataclasses.

    Attributes:
        options: Keys beside the one that names the kind.
    """

    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def parse(cls, given: Mapping[str, Any], defaults: Defaults, where: str) -> Stage:
        """Returns a stage from its table.

        Raises:
            ArgumentError: a key is unknown, or a value breaks its rule.
        """

    @property
    @abstractmethod
    def title(self) -> str:
        """What it does, in a few words."""

    @property
    def epochs(self) -> int:
        """Epochs that it trains."""
        return 0

    def check(self, work: Work) -> None:  # noqa: B027
        """Refuses, before anything is trained, what `run` would refuse."""

    @abstractmethod
    def run(self, model: Any, work: Work) -> Any:
        """Returns the next model; the given one may change."""


STAGES: Registry[type[Stage]] = Registry("stage")


def parse_stage(given: Mapping[str, Any], defaults: Defaults, where: str) -> Stage:
    """Returns a stage from its table in a file.

    Args:
        given: The table.
        defaults: What it has unless it says otherwise.
        where: Its place, for errors: `rows[0].stages[1]`.

    Raises:
        ArgumentError: no kind, or several; a key is unknown, or a value breaks its rule.

    Example:
        >>> stage = {"callback": "MagnitudePruning", "final_sparsity": 0.9}
        >>> parse_stage(stage, Defaults(3, 1e-3), "stage").title
        'MagnitudePruning final_sparsity=0.9, 3 epochs'
    """
    kinds = [key for key in given if key in STAGES]
    if not kinds:
        known = {*STAGES, "epochs", "learning_rate"}
        unknown = next((key for key in given if key not in known), None)
        if unknown is not None and len(given) == 1:
            raise UnknownNameError(f"{where}: kind of stage", unknown, STAGES)
    if len(kinds) != 1:
        raise ArgumentError(where, f"have one of the keys {', '.join(STAGES)}", dict(given))
    return STAGES[kinds[0]].parse(given, defaults, where)


def _refuse_others(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise UnknownNameError(f"{where}: key", key, known)


def _named_value(given: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(given[key], str):
        raise ArgumentError(f"{where}: {key}", "be a name in quotation marks", given[key])
    return given[key]


# --- training -------------------------------------------------------------------------------------


def callback_names() -> tuple[str, ...]:
    """Returns the class names of the public callbacks."""
    names = edgecompress.__all__
    return tuple(name for name in names if _module(name).startswith("edgecompress.callbacks."))


def _module(name: str) -> str:
    return edgecompress.module_of(name)


# Parameters that the data, not the file, decide; a file names no further file.
_GIVEN: Mapping[str, Callable[[Work, Mapping[str, Any]], Any]] = {
    "examples": lambda work, options: work.examples,
    # What its layers compute is not kept.
    "teacher": lambda work, options: (
        work.original if work.taught is None or options.get("layers") else work.taught()
    ),
}
_NEVER = "_file"


@dataclass(frozen=True)
class _Key:
    """A key in a file that stands for a parameter of another form.

    Attributes:
        parameter: The parameter.
        read: (value, argument) -> its value.
    """

    parameter: str
    read: Callable[[Any, str], Any]


def _budget(value: Any, argument: str) -> Any:
    from edgecompress.costs.budget import Budget

    if not isinstance(value, Mapping):
        raise ArgumentError(argument, "be a table of limits, e.g. { macs = 0.5 }", value)
    return Budget(**value)


def _precision(value: Any, argument: str) -> Any:
    from edgecompress.precisions import PRECISIONS

    if not isinstance(value, str):
        raise ArgumentError(argument, f"be one of {', '.join(PRECISIONS)}", value)
    return named(PRECISIONS, value, argument)


def _precisions(value: Any, argument: str) -> Any:
    if not isinstance(value, Mapping):
        raise ArgumentError(argument, "be a table, layer = precision", value)
    return {name: _precision(item, f"{argument}.{name}") for name, item in value.items()}


# (class name, key in a file); "*" stands for every class with such a parameter.
_KEYS: Mapping[tuple[str, str], _Key] = {
    ("*", "until"): _Key("until", _budget),
    ("QuantizationAwareTraining", "precision"): _Key("settings", _precision),
    ("QuantizationAwareTraining", "per_layer"): _Key("per_layer", _precisions),
}


def _schedules() -> Mapping[str, Callable[[float, int], Any]]:
    """Returns name -> (final sparsity, updates of the stage) -> schedule."""
    from edgecompress.schedules.constant import ConstantSparsity
    from edgecompress.schedules.iterative import IterativeSparsity
    from edgecompress.schedules.one_shot import OneShotSparsity
    from edgecompress.schedules.polynomial import PolynomialDecay

    def every(steps: int) -> int:
        return max(1, steps // _MASKS)

    def end(steps: int) -> int:
        # Masks change every few steps; the last change falls on the end.
        return max(1, int(_RISING * steps) // every(steps)) * every(steps)

    return {
        "polynomial_decay": lambda share, steps: PolynomialDecay(
            share, 0, end(steps), frequency=every(steps)
        ),
        "constant_sparsity": lambda share, steps: ConstantSparsity(share, frequency=every(steps)),
        "iterative": lambda share, steps: IterativeSparsity(
            share, 1, 5, frequency=max(1, int(_RISING * steps) // 5)
        ),
        "one-shot": lambda share, steps: OneShotSparsity(share, 1),
    }


@dataclass(frozen=True)
class _Callback:
    """A callback by name, with the options of the file."""

    name: str
    options: Mapping[str, Any]
    where: str

    @property
    def title(self) -> str:
        told = ", ".join(f"{key}={_text(value)}" for key, value in self.options.items())
        return f"{self.name} {told}".strip()

    def keys(self, kind: type) -> dict[str, _Key]:
        """Returns key in a file -> what it stands for."""
        found = {}
        parameters = inspect.signature(kind).parameters
        for name in parameters:
            if name in _GIVEN or name.endswith(_NEVER):
                continue
            special = [
                (key, entry)
                for (owner, key), entry in _KEYS.items()
                if entry.parameter == name and owner in ("*", self.name)
            ]
            for key, entry in special or [(name, _Key(name, _plain))]:
                found[key] = entry
        if "schedule" in parameters:
            found["final_sparsity"] = _Key("schedule", _plain)
        return found

    def make(self, work: Work, epochs: int) -> Any:
        """Returns the callback for a training."""
        kind = getattr(importlib.import_module(_module(self.name)), self.name)
        keys, values = self.keys(kind), dict[str, Any]()
        for key in self.options:
            if key not in keys:
                raise UnknownNameError(f"{self.where}: option of {self.name}", key, keys)
        try:
            for key, value in self.options.items():
                if keys[key].parameter != "schedule":
                    values[keys[key].parameter] = keys[key].read(value, key)
            parameters = inspect.signature(kind).parameters
            if "schedule" in parameters:
                values["schedule"] = self._schedule(work.steps_per_epoch * epochs)
            for name, given in _GIVEN.items():
                if name in parameters:
                    values[name] = given(work, self.options)
            if "seed" in parameters:
                values.setdefault("seed", work.seed)
            for name, parameter in parameters.items():
                if name not in values and parameter.default is inspect.Parameter.empty:
                    rule = f"be given for {self.name}"
                    key = next(key for key, entry in keys.items() if entry.parameter == name)
                    raise ArgumentError(key, rule, None)
            return kind(**values)
        except EdgeCompressError as error:
            error.args = (f"{self.where}: {error}",)
            raise
        # A class may take a value of another type for granted.
        except (TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(
                f"{self.where}: {self.name}", "have options of the types in its documentation",
                dict(self.options), str(error),
            ) from error  # fmt: skip

    def _schedule(self, steps: int) -> Any:
        schedules = _schedules()
        name, share = self.options.get("schedule", "polynomial_decay"), None
        if name not in schedules:
            raise UnknownNameError("schedule", str(name), schedules)
        share = self.options.get("final_sparsity")
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise ArgumentError("final_sparsity", "be a share, at least 0 and below 1", share)
        return schedules[name](float(share), steps)


def _plain(value: Any, argument: str) -> Any:
    return value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_text(item)}" for key, item in value.items())
    return str(value)


@STAGES.register("callbacks")
@dataclass(frozen=True)
class Training(Stage):
    """`fit` with some callbacks, which work together; none of them: training alone.

    What the callbacks have zeroed is removed at the end, as `finalize` does.
    """

    callbacks: tuple[_Callback, ...]
    length: int
    learning_rate: float

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: Defaults, where: str) -> Training:
        """As `Stage.parse`."""
        _refuse_others(given, ("callbacks", "epochs", "learning_rate"), where)
        tables = given["callbacks"]
        if not isinstance(tables, (list, tuple)) or not all(isinstance(t, Mapping) for t in tables):
            raise ArgumentError(f"{where}: callbacks", "be a list of tables", tables)
        found = []
        for number, table in enumerate(tables):
            place = f"{where}.callbacks[{number}]"
            if "callback" not in table:
                raise ArgumentError(place, "name a callback", dict(table), 'callback = "..."')
            found.append(_callback(table, place))
        return cls(tuple(found), *_length(given, defaults, where))

    @property
    def title(self) -> str:
        """As `Stage.title`."""
        what = " + ".join(callback.title for callback in self.callbacks) or "training"
        return f"{what}, {self.length} epoch{'s' if self.length > 1 else ''}"

    @property
    def epochs(self) -> int:
        """As `Stage.epochs`."""
        return self.length

    def check(self, work: Work) -> None:
        """As `Stage.check`."""
        for callback in self.callbacks:
            callback.make(work, self.length)

    def run(self, model: Any, work: Work) -> Any:
        """As `Stage.run`."""
        from edgecompress.surgery.finalize import finalize

        callbacks = [callback.make(work, self.length) for callback in self.callbacks]
        work.fit(model, self.title, self.length, self.learning_rate, callbacks)
        return finalize(model)


@STAGES.register("callback")
class Single(Training):
    """`fit` with one callback."""

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: Defaults, where: str) -> Training:
        """As `Stage.parse`."""
        own = {k: v for k, v in given.items() if k not in ("epochs", "learning_rate")}
        return Training((_callback(own, where),), *_length(given, defaults, where))


def _callback(table: Mapping[str, Any], where: str) -> _Callback:
    name = _named_value(table, "callback", where)
    if name not in callback_names():
        raise UnknownNameError(f"{where}: callback", name, callback_names())
    return _Callback(name, {k: v for k, v in table.items() if k != "callback"}, where)


def _length(given: Mapping[str, Any], defaults: Defaults, where: str) -> tuple[int, float]:
    """Returns the epochs and the learning rate of a stage."""
    epochs = given.get("epochs", defaults.epochs)
    rate = given.get("learning_rate", defaults.learning_rate)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError(f"{where}: epochs", "be a whole number, 1 or more", epochs)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
        raise ArgumentError(f"{where}: learning_rate", "be a number above 0", rate)
    return epochs, float(rate)


# --- without training -----------------------------------------------------------------------------


@STAGES.register("rewrite")
@dataclass(frozen=True)
class Surgery(Stage):
    """A rewrite of the model, `NAME:OPTION=VALUE,...`, as `finalize` applies it."""

    text: str
    where: str

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: Defaults, where: str) -> Surgery:
        """As `Stage.parse`."""
        from edgecompress.surgery.rewrites import chosen_rewrites

        _refuse_others(given, ("rewrite",), where)
        text = _named_value(given, "rewrite", where)
        chosen_rewrites(text, f"{where}: rewrite")
        return cls(text, where)

    @property
    def title(self) -> str:
        """As `Stage.title`."""
        return self.text

    def run(self, model: Any, work: Work) -> Any:
        """As `Stage.run`."""
        from edgecompress.surgery.finalize import finalize

        return finalize(model, rewrites=self.text)


def _fresh(work: Work) -> Any:
    from edgecompress.baselines.fresh_copy import fresh_copy

    return fresh_copy(work.original, work.seed)


def _thinner(work: Work, macs: Any = None) -> Any:
    from edgecompress.baselines.thinner_copy import thinner_copy

    return thinner_copy(work.original, macs, work.seed)


# Name -> function of the work and the stage's options.
BASELINES: Registry[Callable[..., Any]] = Registry("baseline")
BASELINES.register("fresh_copy")(_fresh)
BASELINES.register("thinner_copy")(_thinner)


@STAGES.register("baseline")
@dataclass(frozen=True)
class Baseline(Stage):
    """An untrained network to compare with, in place of the model; a stage that trains follows."""

    name: str
    given: Mapping[str, Any]
    where: str

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: Defaults, where: str) -> Baseline:
        """As `Stage.parse`."""
        name = _named_value(given, "baseline", where)
        if name not in BASELINES:
            raise UnknownNameError(f"{where}: baseline", name, BASELINES)
        known = [p for p in inspect.signature(BASELINES[name]).parameters if p != "work"]
        own = {key: value for key, value in given.items() if key != "baseline"}
        _refuse_others(own, known, where)
        return cls(name, own, where)

    @property
    def title(self) -> str:
        """As `Stage.title`."""
        told = ", ".join(f"{key}={_text(value)}" for key, value in self.given.items())
        return f"{self.name} {told}".strip()

    def check(self, work: Work) -> None:
        """As `Stage.check`."""
        self.run(None, work)

    def run(self, model: Any, work: Work) -> Any:
        """As `Stage.run`."""
        try:
            return BASELINES[self.name](work, **self.given)
        except ArgumentError as error:
            error.args = (f"{self.where}: {error}",)
            raise


@STAGES.register("lottery_ticket")
@dataclass(frozen=True)
class LotteryTicket(Stage):
    """A lottery ticket of the model's architecture, found from new weights: several trainings."""

    given: Mapping[str, Any]
    length: int
    learning_rate: float
    where: str

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: Defaults, where: str) -> LotteryTicket:
        """As `Stage.parse`."""
        own = ("rounds", "rewind_step", "criterion", "pattern", "control")
        _refuse_others(given, ("lottery_ticket", *own, "epochs", "learning_rate"), where)
        options = {"sparsity": given["lottery_ticket"], **{k: given[k] for k in own if k in given}}
        if not isinstance(options.get("control", False), bool):
            raise ArgumentError(f"{where}: control", "be true or false", options["control"])
        return cls(options, *_length(given, defaults, where), where)

    @property
    def title(self) -> str:
        """As `Stage.title`."""
        told = ", ".join(f"{key}={_text(value)}" for key, value in self.given.items())
        return f"lottery_ticket {told}, {self.epochs} epochs"

    @property
    def epochs(self) -> int:
        """As `Stage.epochs`: one training for each round, and that of the ticket."""
        rounds = self.given.get("rounds", _ROUNDS)
        return self.length * (int(rounds) + 1 if isinstance(rounds, int) else 1)

    def check(self, work: Work) -> None:
        """As `Stage.check`."""
        from edgecompress.baselines.lottery_ticket import check_ticket

        options = {key: value for key, value in self.given.items() if key != "control"}
        try:
            check_ticket(**options)
        except EdgeCompressError as error:
            error.args = (f"{self.where}: {error}",)
            raise
        most = self.length * work.steps_per_epoch
        if self.given.get("rewind_step", 0) >= most:
            raise ArgumentError(
                f"{self.where}: rewind_step", f"be below the {most} updates of a training",
                self.given["rewind_step"],
            )  # fmt: skip

    def run(self, model: Any, work: Work) -> Any:
        """As `Stage.run`."""
        from edgecompress.baselines.lottery_ticket import lottery_ticket
        from edgecompress.surgery.finalize import finalize

        ticket = _fresh(work)

        def fit(model: Any, callbacks: Sequence[Any]) -> None:
            work.fit(model, self.title, self.length, self.learning_rate, callbacks)

        lottery_ticket(ticket, fit, **self.given)
        return finalize(ticket)
