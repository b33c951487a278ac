"""Regressors of hints: 1 x 1 convolutions that are trained beside a student, and dropped.

Romero et al., FitNets: Hints for Thin Deep Nets, 2015, https://arxiv.org/abs/1412.6550, equation
(3): a layer of the student learns from one of the teacher with another number of channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.learnt_bounds import LearntBounds


class Regressors:
    """A matrix and a bias for each pair of layers with different numbers of channels.

    They start as Glorot and Bengio (2010) do, from the same numbers in each fit.

    Args:
        model: The student.
        shapes: Name of the pair -> channels of student and teacher.
    """

    def __init__(self, model: keras.Model, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Makes the variables."""
        self._bounds = LearntBounds(
            model,
            "A regressor of hints",
            ("layers", "have the same numbers of channels on several devices", "Use one device."),
        )
        self._variables: dict[str, tuple[keras.Variable, keras.Variable]] = {}
        for number, (name, (inputs, outputs)) in enumerate(shapes.items()):
            most = np.sqrt(6 / (inputs + outputs))
            start = np.random.default_rng(number).uniform(-most, most, (inputs, outputs))
            made = [
                keras.Variable(value, dtype="float32", trainable=False, autocast=False, name=kind)
                for kind, value in (("kernel", start), ("bias", np.zeros(outputs)))
            ]
            self._variables[name] = made[0], made[1]
            for kind, variable in zip(("kernel", "bias"), made, strict=True):
                self._bounds.add(f"{name}:{kind}", variable, lambda value: value)

    def hook(self) -> UpdateHook | None:
        """Returns what trains them; see `LearntBounds.hook`."""
        return self._bounds.hook()

    def prepare(self) -> None:
        """Makes their optimizer, once the hook is attached."""
        self._bounds.prepare()

    def __call__(self, name: str, values: Any, channels: int) -> Any:
        """Returns a student's layer as its teacher's channels; part of the compiled step.

        Args:
            name: Of the pair.
            values: What the layer computes.
            channels: Its axis of channels.
        """
        if name not in self._variables:
            return values
        kernel, bias = (ops.stop_gradient(each.value) for each in self._variables[name])

        # The values pass through, so that the gradients of kernel and bias come along.
        def forward(given: Any) -> Any:
            def backward(*gradients: Any, upstream: Any = None) -> Any:
                found = gradients if upstream is None else upstream
                for kind, gradient in zip(("kernel", "bias"), found[1:], strict=True):
                    self._bounds.found(f"{name}:{kind}", gradient)
                return found[0]

            return (ops.stop_gradient(given), kernel, bias), backward

        values, kernel, bias = ops.custom_gradient(forward)(values)
        last = ops.moveaxis(values, channels, -1)
        return ops.moveaxis(ops.matmul(last, kernel) + bias, -1, channels)
