"""A Keras backend as callbacks see it; this one is TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from edgecompress.callbacks.hooks import Hook


class Backend:
    """A backend whose variables change in place, wherever the step assigns them: TensorFlow.

    Attributes:
        pure: Whether a step is a pure function: only variables of the model and of its optimizer
            enter it, and their new values leave it.
    """

    pure = False

    def lend(self, model: keras.Model, variables: Sequence[keras.Variable]) -> None:
        """Lets a call of the model read and assign variables, without making them its weights."""

    def take_back(self, model: keras.Model, variables: Sequence[keras.Variable]) -> None:
        """Undoes `lend`."""

    def sync(self, model: keras.Model) -> None:
        """Gives the variables the values of the step that `fit` has last run."""

    def retrace(self, model: keras.Model) -> None:
        """Makes the next train, test and predict step trace the model anew."""
        model.make_train_function(force=True)
        self.retrace_inference(model)

    def retrace_inference(self, model: keras.Model) -> None:
        """Makes the next test and predict step trace the model anew."""
        model.test_function = model.predict_function = None

    def trace(self, function: Callable[[Any], Any]) -> None:
        """Traces a function of a step's number, as the train step does; raises what it raises."""
        import tensorflow as tf

        tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec((), "int32"))

    def precise_inference(self, model: keras.Model) -> list[Hook]:
        """Returns hooks under which test and predict steps compute with 64 bits where told to."""
        return []

    def uniform(self, shape: Sequence[int], seed: int, index: int, count: Any) -> Any:
        """Returns numbers from 0 to 1 that follow from the other arguments alone.

        Args:
            shape: Of the result.
            seed: The user's.
            index: Which of several results it is.
            count: Which step it is, a whole number or a tensor of one.
        """
        import tensorflow as tf

        key = tf.random.experimental.stateless_fold_in([seed, index], count)
        return tf.random.stateless_uniform(shape, key)
