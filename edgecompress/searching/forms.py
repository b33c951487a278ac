"""The form of a candidate's file: its format, its options, and what its weights will be like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def _as_it_is(model: Any) -> Any:
    return model


@dataclass(frozen=True)
class FileForm:
    """How a candidate is written.

    Attributes:
        format: A name in `converters.formats.FORMATS`.
        options: Of the format, as `export` takes them.
        weights: Says what the weights will be like; equal texts mean equal `stand_in`.
        stand_in: Returns a model with such weights before they are trained, as far as they decide
            what its file takes.
    """

    format: str = "int8"
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    stand_in: Callable[[Any], Any] = field(default=_as_it_is, compare=False, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether it is the int8 file that `export` makes by default."""
        return self == PLAIN


PLAIN = FileForm()
