"""Hooks: how compression reaches into a running `fit`, and how it leaves.

Whatever changes how a model trains is a `Hook`: one on an attribute of an object (the `call` of a
layer, the regularizer of a variable), or one on the updates of the optimizer. All hooks of a fit
belong to one `HookSession`, whichever callbacks attach them. It retraces the train step when hooks
come or go, and restores every object's own attributes, in whatever order hooks leave. An
interrupted fit leaves its session on the model; the session of the next fit ends it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from edgecompress.callbacks import backends
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import (
    add_optimizer_variables,
    optimizers_of,
    remove_optimizer_variables,
    walk_layers,
)

# Where a session is found again: an attribute of every object it has changed.
_SESSION = "_edgecompress_hooks"
_ABSENT = object()

Gradients = list[Any]
Before = Callable[[Gradients, list[keras.Variable]], Gradients]


def rebuild_train_function(model: keras.Model) -> None:
    """Makes the next train, test and predict step retrace the model.

    `fit` builds its train function before `on_train_begin`, and a second `fit` reuses the traced
    one: hooks that a callback adds to the model or its optimizer would go unnoticed. Nothing is
    traced here, so repeated calls are free.
    """
    backends.current().retrace(model)


def own_training(model: keras.Model) -> str | None:
    """Returns which of Keras's training methods a model overrides; None for Keras's own.

    Such a method may not add `model.losses`, which holds the layers' penalties, to its loss.
    """
    for name in ("train_step", "compute_loss"):
        # Hooks wrap these, too.
        found = inspect.unwrap(getattr(model, name))
        if getattr(found, "__func__", found) is not getattr(keras.Model, name):
            return name
    return None


class Hook(ABC):
    """Changes how a model trains, from `attach` to `detach`; a `HookSession` calls both.

    Attributes:
        owner: The callback that attached it; None before.
        session: The session it is attached to; None before and after.
    """

    owner: Any = None
    session: HookSession | None = None

    @property
    def attached(self) -> bool:
        """Whether it is in effect."""
        return self.session is not None

    @abstractmethod
    def attach(self, session: HookSession) -> None:
        """Takes effect; raises ArgumentError if another hook of the fit conflicts with it."""

    @abstractmethod
    def detach(self, session: HookSession) -> None:
        """Leaves everything as it would be without this hook."""


class Wrapping(Hook):
    """Wraps an attribute of one object: the `call` of a layer, the constraint of a variable.

    Args:
        target: The object.
        attribute: Name of the attribute.
        wrap: Called with the attribute as it is without this hook; returns its replacement.
        innermost: Whether all other wrappers go around it, also those that are there already.
            Defaults to False.

    Example:
        >>> Wrapping(layer, "call", lambda call: lambda x: 2 * call(x))  # doctest: +SKIP
    """

    def __init__(
        self,
        target: Any,
        attribute: str,
        wrap: Callable[[Any], Any],
        innermost: bool = False,
    ) -> None:
        self.target, self.attribute, self.wrap = target, attribute, wrap
        self.innermost = innermost

    def attach(self, session: HookSession) -> None:
        """Installs the wrapper around the existing ones, or inside them."""
        session.patch(self.target, self.attribute).add(self)

    def detach(self, session: HookSession) -> None:
        """Removes the wrapper, even from between others."""
        session.patch(self.target, self.attribute).remove(self)


class UpdateHook(Hook):
    """Runs functions around every update of the model's optimizer, inside the compiled step.

    What `after` assigns takes effect before the next step even if several steps run in one call
    (`steps_per_execution`) and under XLA; a callback's `on_train_batch_end` would be too late for
    that. `optimizer.apply` is replaced on this one instance, below loss scaling. Variables of the
    hook belong to the optimizer, because backends without mutable state thread only those through
    the step, but they are left out of what it saves: a file written during training loads into a
    plain optimizer.

    Args:
        after: Called after each update, while the step is traced. Defaults to nothing.
        before: Called before each update with the gradients (None if a variable has none) and
            their variables; returns the gradients to apply. Defaults to None.
        assigns: The model's variables that `after` assigns.
        exclusive: Whether no other hook may assign any of these variables, because only this one
            can preserve their values. Defaults to False.

    Attributes:
        updates: Variables that `before` updates itself; the optimizer leaves them alone.
        sync: Called before the optimizer's variables are saved, to bring them up to date, or None.

    Raises:
        ArgumentError: when attached, another hook assigns one of the variables, and one of the two
            is exclusive.
    """

    def __init__(
        self,
        after: Callable[[], None] | None = None,
        before: Before | None = None,
        assigns: Iterable[keras.Variable] = (),
        exclusive: bool = False,
    ) -> None:
        self.after, self.before = after, before
        self.assigns, self.exclusive = tuple(assigns), exclusive
        self.updates: tuple[keras.Variable, ...] = ()
        self.sync: Callable[[], None] | None = None
        self.variables: list[keras.Variable] = []
        self._optimizer: keras.optimizers.Optimizer | None = None

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer that updates the weights; its `iterations` count the updates."""
        if self._optimizer is None:
            raise RuntimeError("The hook is not attached.")
        return self._optimizer

    def attach(self, session: HookSession) -> None:
        """Joins the updates; refuses variables that another hook needs exclusively."""
        own = {id(variable) for variable in self.assigns}
        for other in session.updates(self):
            taken = [variable.path for variable in other.assigns if id(variable) in own]
            if taken and (self.exclusive or other.exclusive):
                raise ArgumentError(
                    "layers",
                    "not name a layer whose weights another callback of this fit sets, too",
                    taken[0],
                    "Give each its own layers, or a separate fit.",
                )
        self._optimizer = session.watch_optimizer().add(self)

    def detach(self, session: HookSession) -> None:
        """Removes the functions and the variables from the optimizer."""
        session.watch_optimizer().remove(self)
        remove_optimizer_variables(self.optimizer, self.variables)
        self.variables = []

    def add_variable(self, shape: tuple[int, ...], dtype: str, name: str) -> keras.Variable:
        """Returns a new variable of ones that the hook's functions may assign.

        Args:
            shape: Its shape.
            dtype: Its type.
            name: Its name; a slash, which Keras does not allow, becomes an underscore.
        """
        model = self.session.model if self.session is not None else None
        strategy = getattr(model, "distribute_strategy", None)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            variable = self.optimizer.add_variable(
                shape,
                initializer="ones",
                dtype=dtype,
                aggregation="only_first_replica",
                name=name.replace("/", "_"),
            )
        self.variables.append(variable)
        return variable

    def adopt(self, variables: Iterable[keras.Variable]) -> None:
        """Lets the hook's functions assign the variables of another optimizer, on any backend."""
        if backends.current().pure:
            taken = list(variables)
            add_optimizer_variables(self.optimizer, taken)
            self.variables += taken


class StateHook(Hook):
    """Lets calls of the model assign variables from outside the model, on any backend.

    Args:
        variables: They; none of the model's weights.
    """

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        self.variables = list(variables)

    def attach(self, session: HookSession) -> None:
        """Adds them to what enters and leaves a step."""
        backends.current().lend(session.model, self.variables)

    def detach(self, session: HookSession) -> None:
        """Removes them."""
        backends.current().take_back(session.model, self.variables)


class HookSession:
    """All hooks of one fit.

    Args:
        model: The compiled model being trained.
        fit: What identifies the fit: the `params` that all its callbacks share.
    """

    def __init__(self, model: keras.Model, fit: object) -> None:
        self.model, self.fit = model, fit
        self.hooks: list[Hook] = []
        self._patches: list[_Patch] = []
        self._updates: _Updates | None = None
        self._changed = False

    @classmethod
    def of(cls, model: keras.Model, fit: object) -> HookSession:
        """Returns the session of a running fit, and ends any that were left behind.

        Args:
            model: The model being trained.
            fit: What identifies the fit.
        """
        for left in _sessions_on(model):
            if left.fit is not fit:
                left.close()
        session = vars(model).get(_SESSION)
        if session is None:
            session = cls(model, fit)
            object.__setattr__(model, _SESSION, session)
        return session

    def attach(self, hook: Hook, owner: object = None) -> None:
        """Attaches a hook; the train step uses it after `trace`.

        Raises:
            ArgumentError: it conflicts with another hook of the fit.
        """
        hook.session, hook.owner = self, owner
        try:
            hook.attach(self)
        except BaseException:
            hook.session = None
            raise
        self.hooks.append(hook)
        self._changed = True

    def detach(self, hook: Hook) -> None:
        """Detaches a hook; one that is not attached is left alone."""
        if hook not in self.hooks:
            return
        self.hooks.remove(hook)
        # A state that goes around belongs to the variables that were there.
        backends.current().sync(self.model)
        hook.detach(self)
        hook.session = None
        self._changed = True

    def updates(self, hook: Hook | None = None) -> list[UpdateHook]:
        """Returns the hooks on the optimizer's updates, in the order in which they run.

        Args:
            hook: One to leave out. Defaults to none.
        """
        return [h for h in self.hooks if isinstance(h, UpdateHook) and h is not hook]

    def trace(self, always: bool = False) -> None:
        """Retraces the next step if hooks have come or gone.

        Args:
            always: Even if they have not: a hook now does something else. Defaults to False.
        """
        if self._changed or always:
            self._changed = False
            rebuild_train_function(self.model)

    def close(self) -> None:
        """Detaches all hooks: the model is as if there had been no session."""
        for hook in reversed(list(self.hooks)):
            self.detach(hook)
        self._unmark(self.model)
        self.trace()

    def leave(self, owner: object) -> None:
        """Detaches the hooks of a callback; the last of them ends the session."""
        for hook in reversed(list(self.hooks)):
            if hook.owner is owner:
                self.detach(hook)
        if not self.hooks:
            self._unmark(self.model)
        self.trace()

    def patch(self, target: Any, attribute: str) -> _Patch:
        """Returns the patch that holds the wrappers of an attribute."""
        for patch in self._patches:
            if patch.target is target and patch.attribute == attribute:
                return patch
        self._patches.append(_Patch(self, target, attribute))
        return self._patches[-1]

    def forget(self, patch: _Patch) -> None:
        """Drops a patch without wrappers, and the mark of its target with the last one."""
        self._patches.remove(patch)
        if patch.target is not self.model and all(
            other.target is not patch.target for other in self._patches
        ):
            self._unmark(patch.target)

    def _unmark(self, target: Any) -> None:
        if vars(target).get(_SESSION) is self:
            object.__delattr__(target, _SESSION)

    def watch_optimizer(self) -> _Updates:
        """Returns what runs the hooks on the updates of the model's optimizer."""
        if self._updates is None:
            self._updates = _Updates(self)
        return self._updates


def _sessions_on(model: keras.Model) -> Iterator[HookSession]:
    """Yields the sessions that have changed a model, one of its parts, or its optimizer."""
    found: dict[int, HookSession] = {}
    layers = list(walk_layers(model)) if hasattr(model, "layers") else []
    weights = [weight for layer in layers for weight in layer.weights]
    for part in (model, *layers, *weights, *optimizers_of(model)):
        session = getattr(part, "__dict__", {}).get(_SESSION)
        if session is not None:
            found[id(session)] = session
    yield from found.values()


class _Patch:
    """An attribute of one object, and its wrappers in the order they were added."""

    def __init__(self, session: HookSession, target: Any, attribute: str) -> None:
        self.target, self.attribute = target, attribute
        self._session = session
        self._wrappings: list[Wrapping] = []
        # A property keeps its value elsewhere.
        self._property = isinstance(getattr(type(target), attribute, None), property)
        own = getattr(target, attribute) if self._property else None
        self._own = own if self._property else vars(target).get(attribute, _ABSENT)
        object.__setattr__(target, _SESSION, session)

    def add(self, wrapping: Wrapping) -> None:
        self._wrappings.insert(0 if wrapping.innermost else len(self._wrappings), wrapping)
        self._put()

    def remove(self, wrapping: Wrapping) -> None:
        self._wrappings.remove(wrapping)
        self._put()
        if not self._wrappings:
            self._session.forget(self)

    def _put(self) -> None:
        """Restores the object's own attribute, then wraps it again."""
        if self._property:
            setattr(self.target, self.attribute, self._own)
        elif self._own is not _ABSENT:
            object.__setattr__(self.target, self.attribute, self._own)
        elif self.attribute in vars(self.target):
            object.__delattr__(self.target, self.attribute)
        if not self._wrappings:
            return
        value = getattr(self.target, self.attribute)
        for wrapping in self._wrappings:
            value = wrapping.wrap(value)
        if self._property:
            setattr(self.target, self.attribute, value)
        else:
            # Past Keras's attribute tracking: the object must not own anything of this.
            object.__setattr__(self.target, self.attribute, value)


class _Updates:
    """The hooks on the updates of one optimizer; they run in the order they were added."""

    def __init__(self, session: HookSession) -> None:
        model = session.model
        self._session = session
        self._model = model
        self._optimizers = optimizers_of(model)
        self._hooks: list[UpdateHook] = []
        self._wrappings = [Wrapping(self._optimizers[-1], "apply", self._running_hooks)]
        for optimizer in self._optimizers:
            saved = functools.partial(self._saving, optimizer)
            loaded = functools.partial(self._loading, optimizer)
            self._wrappings.append(Wrapping(optimizer, "save_own_variables", saved))
            self._wrappings.append(Wrapping(optimizer, "load_own_variables", loaded))

    def add(self, hook: UpdateHook) -> keras.optimizers.Optimizer:
        """Joins a hook; returns the optimizer that updates the weights."""
        if not self._model.optimizer.built:
            # The hook's variables must come after the optimizer's own.
            self._model.optimizer.build(self._model.trainable_variables)
        if not self._hooks:
            for wrapping in self._wrappings:
                wrapping.attach(self._session)
        self._hooks.append(hook)
        return self._optimizers[-1]

    def remove(self, hook: UpdateHook) -> None:
        """Releases a hook."""
        self._hooks.remove(hook)
        if not self._hooks:
            for wrapping in self._wrappings:
                wrapping.detach(self._session)

    def _running_hooks(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(apply)
        def apply_and_run_hooks(grads: Any, trainable_variables: Any = None) -> Any:
            # Without its variables, these are the ones the optimizer was built with.
            known = list(
                self._model.trainable_variables
                if trainable_variables is None
                else trainable_variables
            )
            for hook in self._hooks:
                if hook.before is not None:
                    grads = hook.before(list(grads), list(known))
            if updated := {id(variable) for hook in self._hooks for variable in hook.updates}:
                left = [
                    pair for pair in zip(grads, known, strict=True) if id(pair[1]) not in updated
                ]
                grads, trainable_variables = map(list, zip(*left, strict=True))
            result = apply(grads, trainable_variables)
            for hook in self._hooks:
                if hook.after is not None:
                    hook.after()
            return result

        return apply_and_run_hooks

    def _own_variables(self, optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
        hidden = {id(variable) for hook in self._hooks for variable in hook.variables}
        return [variable for variable in optimizer.variables if id(variable) not in hidden]

    def _saving(
        self, optimizer: keras.optimizers.Optimizer, save: Callable[..., Any]
    ) -> Callable[..., Any]:
        @functools.wraps(save)
        def save_own_variables(store: Any) -> None:
            for hook in self._hooks:
                if hook.sync is not None:
                    hook.sync()
            for index, variable in enumerate(self._own_variables(optimizer)):
                store[str(index)] = keras.ops.convert_to_numpy(variable)

        return save_own_variables

    def _loading(
        self, optimizer: keras.optimizers.Optimizer, load: Callable[..., Any]
    ) -> Callable[..., Any]:
        @functools.wraps(load)
        def load_own_variables(store: Any) -> None:
            variables = self._own_variables(optimizer)
            if len(store.keys()) != len(variables):
                load(store)  # Keras's own warning.
                return
            for index, variable in enumerate(variables):
                variable.assign(store[str(index)])

        return load_own_variables
