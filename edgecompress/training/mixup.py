"""Mixup: training on convex combinations of samples and of what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Share of a training, at its end, that sees samples as they are.
PLAIN = 0.1


class Mixup:
    """Mixes the samples of each batch with those of the same batch in another order.

        x = s * x_i + (1 - s) * x_j,    loss = s * L(y_i) + (1 - s) * L(y_j),    s ~ Beta(a, a)

    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization" (2018,
    https://arxiv.org/abs/1710.09412), section 2; one share for a batch, as in section 3.1. Mixing
    the losses is the same as mixing one-hot labels in the cross-entropy (section 2), and takes any
    other loss as well.

    The last tenth of the batches stays as it is: moving averages of BatchNormalization and ranges
    of activations are then those of real samples.

    Keras passes a loss only labels and outputs, so labels travel in rows: those of a sample, those
    of its partner, and the share of the first. `pack` makes them, `loss` reads them.

    Args:
        alpha: `a`, above 0: the smaller, the more often one of the two prevails.
        form: Shape of what a loss takes as the labels of a sample.
        batches: Of the whole training.
        seed: Of shares and orders.

    Example:
        >>> mix = Mixup(0.4, (1,), batches=10, seed=0)
        >>> x, rows = mix(np.eye(2, dtype="float32"), np.array([[0.0], [1.0]]))
        >>> x.shape, rows.shape
        ((2, 2), (2, 3))
    """

    def __init__(self, alpha: float, form: Sequence[int], batches: int, seed: int) -> None:
        self._alpha, self._form, self._columns = alpha, tuple(form), math.prod(form)
        self._until = math.ceil((1 - PLAIN) * batches)
        self._done = 0
        self.random = np.random.default_rng(seed)

    def __call__(self, inputs: Any, labels: np.ndarray) -> tuple[Any, np.ndarray]:
        """Returns a batch, mixed, and its rows.

        Args:
            inputs: An array (samples, ...), or several in a structure.
            labels: Of each sample, (samples, ...).
        """
        import keras

        share = self.random.beta(self._alpha, self._alpha) if self._done < self._until else 1.0
        self._done += 1
        order = self.random.permutation(len(labels))

        def mixed(array: np.ndarray) -> np.ndarray:
            return (share * array + (1 - share) * array[order]).astype(array.dtype)

        if share < 1:
            inputs = keras.tree.map_structure(mixed, inputs)
        rows = labels.reshape(len(labels), -1).astype(np.float32)
        shares = np.full((len(rows), 1), share, np.float32)
        return inputs, np.concatenate([rows, rows[order], shares], axis=1)

    def loss(self, of_labels: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Returns the loss of rows: that of the two samples, each by its share.

        Args:
            of_labels: (labels, outputs) -> loss, as a Keras loss.
        """
        from keras import ops

        columns, form = self._columns, (-1, *self._form)

        def loss(packed: Any, outputs: Any) -> Any:
            share = packed[0, -1]
            first, second = (
                of_labels(ops.reshape(part, form), outputs)
                for part in (packed[:, :columns], packed[:, columns:-1])
            )
            return share * first + (1 - share) * second

        return loss
