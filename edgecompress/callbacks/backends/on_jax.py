"""JAX: a step is a pure function, compiled by what the function is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

from edgecompress.callbacks.backends.base import Backend
from edgecompress.core.keras_graph import lend_variables, take_back_variables

if TYPE_CHECKING:
    from edgecompress.callbacks.hooks import Hook

_ABSENT = object()


class OnJax(Backend):
    """JAX."""

    pure = True

    def lend(self, model: keras.Model, variables: Sequence[keras.Variable]) -> None:
        """As `Backend.lend`."""
        lend_variables(model, variables)

    def take_back(self, model: keras.Model, variables: Sequence[keras.Variable]) -> None:
        """As `Backend.take_back`."""
        take_back_variables(model, variables)

    def sync(self, model: keras.Model) -> None:
        """As `Backend.sync`: during an epoch, the values are in the state that goes around."""
        model.jax_state_sync()

    def retrace(self, model: keras.Model) -> None:
        """As `Backend.retrace`.

        JAX knows a function that it has compiled, and `model.train_step` is always the same one:
        while anything still refers to the old train function, a new one would not be traced.
        """
        with _another(model, "train_step"):
            model.make_train_function(force=True)
        self.retrace_inference(model)

    def retrace_inference(self, model: keras.Model) -> None:
        """As `Backend.retrace_inference`; see `retrace`."""
        with _another(model, "test_step"):
            model.make_test_function(force=True)
        model.predict_function = None

    def trace(self, function: Callable[[Any], Any]) -> None:
        """As `Backend.trace`."""
        import jax

        jax.eval_shape(function, jax.ShapeDtypeStruct((), "int32"))

    def precise_inference(self, model: keras.Model) -> list[Hook]:
        """As `Backend.precise_inference`; JAX knows no types of 64 bits unless told to."""
        from edgecompress.callbacks.hooks import Wrapping

        return [
            Wrapping(model, f"make_{name}", functools.partial(_precise, model, name))
            for name in ("test_function", "predict_function")
        ]

    def uniform(self, shape: Sequence[int], seed: int, index: int, count: Any) -> Any:
        """As `Backend.uniform`; other numbers than TensorFlow's."""
        import jax

        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), count)
        return jax.random.uniform(key, tuple(shape))


@contextlib.contextmanager
def _another(model: keras.Model, name: str) -> Iterator[None]:
    """Gives a model a step that does the same but is another function."""
    own = vars(model).get(name, _ABSENT)
    step = getattr(model, name)
    # Past Keras's attribute tracking.
    object.__setattr__(model, name, lambda *args: step(*args))
    try:
        yield
    finally:
        object.__delattr__(model, name)
        if own is not _ABSENT:
            object.__setattr__(model, name, own)


def _precise(model: keras.Model, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `make_test_function` whose function runs with types of 64 bits."""

    @functools.wraps(make)
    def make_precise(force: bool = False) -> Any:
        before = getattr(model, name)
        make(force=force)
        function = getattr(model, name)
        if function is before:
            return function

        @functools.wraps(function)
        def precise(state: Any, iterator: Any) -> Any:
            from jax.experimental import enable_x64

            with enable_x64():
                return function(state, iterator)

        object.__setattr__(model, name, precise)
        return precise

    return make_precise
