"""What every compression callback shares: layer choice, graph rebuilding, history, record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.finite import check_weights
from edgecompress.core.keras_graph import (
    functional_of,
    remove_optimizer_variables,
    walk_layers,
)
from edgecompress.core.layer_kinds import LayerKind, Use, layer_classes
from edgecompress.core.learnt_ranges import tied
from edgecompress.core.record import CompressionRecord, attach_record, record_of

# What to do where training left the finite numbers.
DIVERGED = "Training diverged: lower the learning rate, and begin from finite weights."

LayerChoice = Iterable[str] | Callable[[Any], bool] | None


@dataclasses.dataclass(frozen=True)
class ChosenKernel:
    """Weights that a callback works on.

    Attributes:
        name: The layer's name, or its path where layers of nested models share the name.
        layer: The layer.
        variable: The weights.
        attribute: Name of the layer's attribute that holds them.
    """

    name: str
    layer: keras.layers.Layer
    variable: keras.Variable
    attribute: str


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
        >>> select_layers(model, ["dense_1"], (keras.layers.Dense,))  # doctest: +SKIP
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


def own_training(model: keras.Model) -> str | None:
    """Returns which of Keras's training methods a model replaces; None where it has Keras's own.

    Such a method need not add `model.losses`, where the penalties of layers are, to its loss.
    """
    for name in ("train_step", "compute_loss"):
        found = getattr(model, name)
        if getattr(found, "__func__", found) is not getattr(keras.Model, name):
            return name
    return None


class StepHook:
    """Runs a function after every update of the model's optimizer, inside the compiled step.

    What the function assigns takes effect before the next step also where several steps run in
    one call (`steps_per_execution`) and under XLA; a callback's `on_train_batch_end` would come
    too late there. `optimizer.apply` is replaced on this one instance, below loss scaling.
    Variables of the hook belong to the optimizer, because backends without mutable state thread
    only those through the step, but they are left out of what it saves: a file written during
    training loads into a plain optimizer.

    Args:
        model: A compiled model.
        fit: What identifies the running fit: the callback's `params`. Hooks of an earlier fit,
            left behind by an interruption, are removed.
    """

    def __init__(self, model: keras.Model, fit: object) -> None:
        """Prepares the optimizer; nothing is hooked before `install`."""
        self._model = model
        self._optimizers = [model.optimizer]
        while hasattr(self._optimizers[-1], "inner_optimizer"):
            self._optimizers.append(self._optimizers[-1].inner_optimizer)
        if not model.optimizer.built:
            # The hook's variables must come after the optimizer's own.
            model.optimizer.build(model.trainable_variables)
        self.fit = fit
        self.variables: list[keras.Variable] = []
        self.assigns: tuple[keras.Variable, ...] = ()
        self.exclusive = False
        self._after: Callable[[], None] | None = None
        self._before: Callable[[list[Any], list[keras.Variable]], list[Any]] | None = None
        for hook in self.others():
            if hook.fit is not fit:
                hook.remove()

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer that updates the weights; its `iterations` count the updates."""
        return self._optimizers[-1]

    def others(self) -> list[StepHook]:
        """Returns the hooks already installed on the optimizer."""
        return list(getattr(self.optimizer.apply, "hooks", []))

    def add_variable(self, shape: tuple[int, ...], dtype: str, name: str) -> keras.Variable:
        """Returns a new variable of ones that the hook's function may assign."""
        strategy = getattr(self._model, "distribute_strategy", None)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            variable = self.optimizer.add_variable(
                shape, initializer="ones", dtype=dtype, aggregation="only_first_replica", name=name
            )
        self.variables.append(variable)
        return variable

    def install(
        self,
        after: Callable[[], None],
        assigns: Iterable[keras.Variable],
        before: Callable[[list[Any], list[keras.Variable]], list[Any]] | None = None,
        exclusive: bool = False,
    ) -> None:
        """Starts running `after`; the train function must be rebuilt to see it.

        Args:
            after: Called after each update, while the step is traced.
            assigns: The model's variables that it assigns, for other hooks to look at.
            before: Called before each update with the gradients (None where a variable has none)
                and their variables; returns the gradients to apply. Defaults to None.
            exclusive: Whether no other hook may assign any of these variables: they hold values
                that only this one can keep. Defaults to False.

        Raises:
            ArgumentError: another hook assigns one of the variables, and one of both is exclusive.
        """
        self.assigns, self.exclusive = tuple(assigns), exclusive
        own = {id(variable) for variable in self.assigns}
        for other in self.others():
            taken = [variable.path for variable in other.assigns if id(variable) in own]
            if taken and (exclusive or other.exclusive):
                raise ArgumentError(
                    "layers",
                    "name no layer whose weights another callback of this fit sets, too",
                    taken[0],
                    "Give each its own layers, or a fit of its own.",
                )
        self._after, self._before = after, before
        if not hasattr(self.optimizer.apply, "hooks"):
            _hook_apply(self.optimizer)
            for optimizer in self._optimizers:
                _hide_variables(optimizer, self.optimizer.apply.hooks)
        self.optimizer.apply.hooks.append(self)

    def remove(self) -> None:
        """Takes the hook and its variables out of the optimizer again."""
        hooks = getattr(self.optimizer.apply, "hooks", [])
        if self in hooks:
            hooks.remove(self)
            if not hooks:
                object.__delattr__(self.optimizer, "apply")
                for optimizer in self._optimizers:
                    object.__delattr__(optimizer, "save_own_variables")
                    object.__delattr__(optimizer, "load_own_variables")
        remove_optimizer_variables(self.optimizer, self.variables)
        self.variables = []

    def gradients(self, gradients: Any, variables: Iterable[keras.Variable] | None) -> Any:
        """Returns the gradients that the optimizer is to apply."""
        if self._before is None:
            return gradients
        # Without variables they are those the optimizer was built with.
        known = self._model.trainable_variables if variables is None else variables
        return self._before(list(gradients), list(known))

    def run(self) -> None:
        """Runs the hook's function once."""
        if self._after is not None:
            self._after()


def _hook_apply(optimizer: keras.optimizers.Optimizer) -> None:
    hooks: list[StepHook] = []
    apply = optimizer.apply

    @functools.wraps(apply)
    def apply_and_run_hooks(grads: Any, trainable_variables: Any = None) -> Any:
        for hook in hooks:
            grads = hook.gradients(grads, trainable_variables)
        result = apply(grads, trainable_variables)
        for hook in hooks:
            hook.run()
        return result

    apply_and_run_hooks.hooks = hooks  # type: ignore[attr-defined]
    # Past the optimizer's own __setattr__, which tracks what it is given.
    object.__setattr__(optimizer, "apply", apply_and_run_hooks)


def _hide_variables(optimizer: keras.optimizers.Optimizer, hooks: list[StepHook]) -> None:
    load = optimizer.load_own_variables

    def own_variables() -> list[keras.Variable]:
        hidden = {id(variable) for hook in hooks for variable in hook.variables}
        return [variable for variable in optimizer.variables if id(variable) not in hidden]

    def save_own_variables(store: Any) -> None:
        for index, variable in enumerate(own_variables()):
            store[str(index)] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(store: Any) -> None:
        variables = own_variables()
        if len(store.keys()) != len(variables):
            load(store)  # Keras's own warning.
            return
        for index, variable in enumerate(variables):
            variable.assign(store[str(index)])

    object.__setattr__(optimizer, "save_own_variables", save_own_variables)
    object.__setattr__(optimizer, "load_own_variables", load_own_variables)


class Keras3Callback(keras.callbacks.Callback):
    """A callback that works on Keras 3 models alone."""

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


class CompressionCallback(Keras3Callback):
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

    def choose_kernels(
        self,
        layers: LayerChoice,
        done: str,
        suits: Callable[[LayerKind], bool] = lambda kind: True,
    ) -> list[ChosenKernel]:
        """Returns the weights that a technique works on, and names in notes what it leaves out.

        Args:
            layers: The user's choice.
            done: What is done to them, for the notes, e.g. "pruned".
            suits: Tells whether the technique can work on a kind of layer. Defaults to all kinds
                whose kernels callbacks change.

        Raises:
            UnknownNameError: a name is no layer of the model.
            ArgumentError: a layer is of a class the technique cannot handle, or none is left.
            UnsupportedModelError: the model is subclassed or has no input shape yet.
        """
        by_default = layer_classes(Use.BY_DEFAULT, suits)
        supported = {**by_default, **layer_classes(Use.ON_REQUEST, suits)}
        kinds = by_default if layers is None else supported
        selected = select_layers(self.model, layers, tuple(kinds))
        chosen: list[tuple[keras.layers.Layer, keras.Variable, str]] = []
        for layer in selected:
            attribute = next(name for kind, name in kinds.items() if isinstance(layer, kind))
            kernel = getattr(layer, attribute)
            reason = None
            if not isinstance(kernel, keras.Variable):
                reason = f"its {attribute} is computed (LoRA?)"
            elif not layer.trainable or not kernel.trainable:
                reason = "it is frozen (trainable=False)"
            elif any(kernel is other for _, other, _ in chosen):
                reason = f"it shares its weights with another {done} layer"
            elif not keras.backend.is_float_dtype(kernel.dtype):
                reason = f"its weights are {kernel.dtype}"
            if reason is None:
                chosen.append((layer, kernel, attribute))
            else:
                self.note(f"{layer.name} is not {done}: {reason}.")
        if layers is None:
            for layer in walk_layers(self.model):
                has_kernel = any(len(w.shape) > 1 for w in layer.trainable_weights)
                if layer not in selected and has_kernel:
                    known = isinstance(layer, tuple(supported))
                    rule = f"are {done} only where named" if known else f"cannot be {done}"
                    self.note(f"{layer.name} is not {done}: {type(layer).__name__} layers {rule}.")
        if not chosen:
            raise ArgumentError(
                "layers", f"leave at least one layer to be {done}", layers, " ".join(self.notes)
            )
        names = [layer.name for layer, _, _ in chosen]
        return [
            ChosenKernel(layer.name if names.count(layer.name) == 1 else layer.path, layer, *found)
            for layer, *found in chosen
        ]

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
            details: Name -> value for the history alone, e.g. one value a layer.

        Raises:
            NotFiniteError: a weight became NaN or infinite in this epoch.
        """
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
    ) -> None:
        """Puts what was done into the model's CompressionRecord, beside what others put there.

        A step of the same technique with the same settings is replaced: a second fit continues
        it. Other settings append a new step.

        Args:
            results: What came out, as JSON values, e.g. `{"sparsity": 0.8}`.
            ranges: Learnt activation ranges, tap -> (minimum, maximum); they take the place of the
                record's and belong to the weights of now. Defaults to none.
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
            record = tied(dataclasses.replace(record, ranges=dict(ranges)), self.model)
        attach_record(self.model, record.merged(CompressionRecord(notes=self.notes)))
        self._attached_notes = self.notes
