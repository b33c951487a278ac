"""Base class of costs, which say what a Keras model takes of something that is limited."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.errors import ArgumentError
from edgecompress.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np

# A target's own costs need the exporter, which callbacks stand below: it registers them.
COSTS: Registry[Cost] = Registry("cost", home="edgecompress.pipeline.model_costs")


class Cost(ABC):
    """Something that a model takes: how it is measured, and which layers it comes from.

    Example:
        >>> class Layers(Cost):  # registered with @cost("layers")
        ...     unit = "layers"
        ...     def measure(self, model, target=None): return len(model.layers)
        ...     def by_layer(self, model, target=None): return {x.name: 1 for x in model.layers}
        >>> Layers().parse(12, "layers")
        12
    """

    # What a value counts, e.g. "bytes".
    unit: ClassVar[str] = ""
    # Whether it is that of a target.
    needs_target: ClassVar[bool] = False
    # Whether it depends on the values of the weights, so that training changes it: no limit holds.
    of_values: ClassVar[bool] = False
    # Whether `left_over` is exact, so that a candidate need not be built to be measured.
    exact_shares: ClassVar[bool] = False

    @abstractmethod
    def measure(self, model: Any, target: str | None = None) -> float:
        """Returns what a built Keras model takes: the largest value it may have, if uncertain.

        Args:
            model: A Sequential or Functional model.
            target: Name of the target; None for costs that need none.

        Raises:
            EdgeCompressError: it cannot be determined; the text says why.
        """

    @abstractmethod
    def by_layer(self, model: Any, target: str | None = None) -> Mapping[str, float]:
        """Returns where it comes from: the layers' paths and their parts of the cost."""

    def left_over(
        self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], outputs: float
    ) -> float:
        """Returns the share of a layer's part that is left when it is cut.

        Args:
            before: Its weights by attribute.
            after: Those that it keeps.
            outputs: Share of its output channels that stay.
        """
        sizes = [sum(v.size for v in x.values() if v.ndim > 1) for x in (before, after)]
        return sizes[1] / sizes[0] if sizes[0] else outputs

    def check_target(self, target: str) -> str | None:
        """Returns why the cost is not known for a target; None if it is."""
        return None

    def multiple(self, target: str) -> int:
        """Returns how many channels the kernels of a target compute together."""
        return 1

    def parse(self, value: Any, argument: str) -> float:
        """Returns an absolute limit as a number.

        Args:
            value: What the user gave.
            argument: Its name, for the error.

        Raises:
            ArgumentError: it is no limit of this cost.
        """
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            rule = f"be a share of the model's as a float up to 1.0, or a number of {self.unit}"
            raise ArgumentError(argument, rule, value)
        return value

    def show(self, value: float) -> str:
        """Returns a value as text, with its unit."""
        return f"{value:,.0f} {self.unit}"


def cost(name: str) -> Callable[[type[Cost]], type[Cost]]:
    """Returns a decorator that registers a class of costs under a name."""

    def store(found: type[Cost]) -> type[Cost]:
        COSTS.register(name)(found())
        return found

    return store
