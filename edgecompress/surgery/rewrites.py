"""Base class of surgery: named rewrites of a trained model into a smaller or cheaper one.

A rewrite is a frozen dataclass; its fields are its options (`core.options.option`). `finalize`
applies it, compares the outputs if the rewrite claims to preserve them, and records what it did.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgecompress.core.options import named, named_config
from edgecompress.core.record import CompressionRecord
from edgecompress.core.registry import Registry


@dataclass(frozen=True)
class Rewritten:
    """The result of a rewrite.

    Attributes:
        model: The new model, or the given one if there was nothing to do.
        removed_channels: Layer -> (channels before, after) of layers that lost some.
        details: What the record's step says besides the rewrite's name and options; None if it
            needs no separate step.
        notes: What was left unchanged although it could be cheaper, with the reason.
    """

    model: Any
    removed_channels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    details: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


class Rewrite(ABC):
    """Makes a smaller or cheaper Keras model from a trained one; see the module.

    Attributes:
        exact: Whether the new model computes the same up to rounding. `finalize` checks this on
            random inputs, and skips a rewrite that fails.
        left_out: How the note about that begins.
    """

    exact: ClassVar[bool] = True
    left_out: ClassVar[str] = ""

    @abstractmethod
    def apply(self, model: Any) -> Rewritten:
        """Returns the new model; the given one is not modified.

        Args:
            model: A built, plain Sequential or Functional model of Keras 3.

        Raises:
            UnsupportedModelError: the rewrite cannot follow the model.
        """

    def missed(self, model: Any, record: CompressionRecord) -> tuple[str, ...]:
        """Returns notes on work of training for this rewrite that has since been undone."""
        return ()


REWRITES: Registry[type[Rewrite]] = Registry("surgery")


def chosen_rewrites(
    rewrites: str | Rewrite | Iterable[Any], argument: str = "surgery"
) -> tuple[Rewrite, ...]:
    """Returns rewrites from names, `NAME:OPTION=VALUE`, configurations, or rewrites.

    Args:
        rewrites: One, or several.
        argument: The user's name for them.

    Raises:
        UnknownNameError: a name is unknown.
        ArgumentError: an option breaks its rule.

    Example:
        >>> chosen_rewrites(["remove-channels"])  # doctest: +SKIP
        (RemoveChannels(),)
    """
    # What is neither is refused under its name.
    given: Iterable[Any] = [rewrites]
    if isinstance(rewrites, Iterable) and not isinstance(rewrites, (str, Rewrite)):
        given = rewrites
    return tuple(named(REWRITES, rewrite, argument) for rewrite in given)


def step_of(rewrite: Rewrite, details: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a rewrite's step for the record: its name, its options and what it did."""
    config = named_config(REWRITES, rewrite)
    return {"technique": config["name"], **config["config"], **details}
