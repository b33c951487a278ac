"""Techniques of post-training quantization, and the kernels they round.

A technique is a frozen dataclass; its fields are its options (`core.options.option`). It may
rewrite the model before anything is rounded, choose the codes of a kernel, or correct a bias.
`quantize` measures what it brings, and leaves it out if that is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from edgecompress.core.options import named
from edgecompress.core.registry import Registry


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel to round, as matrix products: `outputs[g] = inputs[g] @ weights[g]`.

    A convolution or Dense layer is one product; a depthwise convolution has one for each channel.

    Attributes:
        name: `<layer>/<attribute>`.
        weights: Real weights, (groups, inputs, outputs).
        scales: The scale of each output, (groups, 1, outputs).
        limit: The largest code, e.g. 7 for 4 bits.
        moments: Mean of `x x^T` over the inputs `x` in the quantized model, (groups, inputs,
            inputs).
    """

    name: str
    weights: np.ndarray
    scales: np.ndarray
    limit: int
    moments: np.ndarray

    @property
    def pinned(self) -> np.ndarray:
        """Which weights define their scale: their codes must stay at the limit.

        Exporting derives the scales from the rounded weights; they would shrink otherwise.
        """
        return np.asarray(np.abs(self.weights) >= self.scales * self.limit * (1 - 1e-6))

    def nearest(self) -> np.ndarray:
        """Returns the codes of rounding to the nearest, (groups, inputs, outputs)."""
        return self.clipped(np.round(self.weights / self.scales))

    def clipped(self, codes: np.ndarray) -> np.ndarray:
        """Returns codes within the limit."""
        return np.clip(codes, -self.limit, self.limit)

    def error(self, codes: np.ndarray) -> float:
        """Returns the mean squared error of the outputs, summed over them: `tr(D^T E[x x^T] D)`.

        Args:
            codes: (groups, inputs, outputs).
        """
        change = codes * self.scales - self.weights
        return float(np.sum(change * (self.moments @ change)))


@dataclass(frozen=True)
class Prepared:
    """A model that a technique rewrote.

    Attributes:
        model: The new model, which computes the same; or the given one.
        notes: What was left out, with the reason, one sentence each.
    """

    model: Any
    notes: tuple[str, ...] = field(default=())


class Technique:
    """One technique of post-training quantization; see the module.

    Attributes:
        corrects: Whether it corrects biases.
        summary: What it does, in a few words for `--help`.
    """

    corrects: ClassVar[bool] = False
    summary: ClassVar[str] = ""

    def prepare(self, model: Any) -> Prepared:
        """Returns a model that computes the same and rounds better; the given one is not changed.

        Args:
            model: A built Sequential or Functional model.
        """
        return Prepared(model)

    def round(self, kernel: Kernel, codes: np.ndarray) -> np.ndarray:
        """Returns better codes of a kernel.

        Args:
            kernel: The kernel.
            codes: Those chosen so far, (groups, inputs, outputs).
        """
        return codes

    def correction(self, errors: np.ndarray) -> np.ndarray | None:
        """Returns what to add to a layer's bias, (channels,); None for nothing.

        Args:
            errors: Float outputs minus those of the quantized model, (positions, channels).
        """
        return None


TECHNIQUES: Registry[type[Technique]] = Registry("technique", home="edgecompress.post_training")


def chosen_techniques(
    given: str | Technique | Iterable[str | Technique], argument: str = "techniques"
) -> tuple[Technique, ...]:
    """Returns techniques from names, `NAME:OPTION=VALUE`, or techniques.

    Args:
        given: One, or several.
        argument: The user's name for them.

    Raises:
        UnknownNameError: a name is unknown.
        ArgumentError: an option breaks its rule.

    Example:
        >>> chosen_techniques("gptq:damping=0.1")
        (GPTQ(damping=0.1),)
    """
    listed = [given] if isinstance(given, (str, Technique)) else list(given)
    return tuple(named(TECHNIQUES, technique, argument) for technique in listed)
