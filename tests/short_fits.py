"""Makes `fit` of the tests' tiny models start in half the time; what is computed stays the same.

A first `fit` traces the training step twice if the optimizer or the metrics make their variables
in it: here they are made before. Keras feeds arrays through functions that it traces for each
`fit`, `evaluate` and `predict`: here TensorFlow slices those that are not shuffled. Programs that
the tests start (examples of the docs, the demo) train as they are.
"""

from __future__ import annotations

import functools
from typing import Any

_CHANGED = "_edgecompress_short_fits"


def install() -> None:
    """Changes this process's Keras and TensorFlow; again is the same as once."""
    import keras
    import tensorflow as tf

    if hasattr(keras.Model, _CHANGED):
        return
    setattr(keras.Model, _CHANGED, True)
    _stop_tuning(tf)
    _feed_slices(keras, tf)
    fit = keras.Model.fit

    @functools.wraps(fit)
    def fit_prepared(self: Any, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        _make_variables(self, x, y)
        return fit(self, x, y, *args, **kwargs)

    keras.Model.fit = fit_prepared


def _stop_tuning(tf: Any) -> None:
    """Leaves the buffers of datasets as they are.

    The thread that tunes them may miss that its dataset has gone, and sleeps for up to a minute,
    for which the process waits: seen after fits that were interrupted.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    iterate = tf.data.Dataset.__iter__
    tf.data.Dataset.__iter__ = lambda self: iterate(self.with_options(options))


def _feed_slices(keras: Any, tf: Any) -> None:
    """Feeds arrays that are not shuffled in the batches that Keras makes, without its functions."""
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    keras_dataset = ArrayDataAdapter.get_tf_dataset

    def dataset(self: Any) -> Any:
        if self._shuffle or not all(map(_is_numeric, keras.tree.flatten(self._inputs))):
            return keras_dataset(self)
        arrays = keras.tree.map_structure(
            lambda a: a.astype(keras.config.floatx()) if a.dtype.kind == "f" else a, self._inputs
        )
        samples = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(arrays))
        return samples.batch(self._batch_size, drop_remainder=not self._partial_batch_size)

    ArrayDataAdapter.get_tf_dataset = dataset


def _is_numeric(value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _make_variables(model: Any, x: Any, y: Any) -> None:
    import numpy as np

    if not (model.built and model.compiled and isinstance(x, np.ndarray)) or model.run_eagerly:
        return
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    if isinstance(y, np.ndarray) and len(getattr(model, "outputs", ())) == 1:
        outputs = np.zeros([1, *model.outputs[0].shape[1:]], model.outputs[0].dtype)
        model.compute_metrics(x[:1], y[:1], outputs)
        model.reset_metrics()
