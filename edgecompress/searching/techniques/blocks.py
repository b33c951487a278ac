"""Blocks: convolutions become cheaper blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values

_OFF = "none"
# Blocks that start from the kernels they replace, so that a short training tells what they are
# worth.
_KINDS = ("depthwise-separable", "grouped")


@TECHNIQUES.register("blocks")
class Blocks(Technique):
    """The rewrite `cheaper-blocks`, one kind for all convolutions that it makes cheaper."""

    reshapes = True
    order = 2

    def __init__(self, subject: Subject) -> None:
        """Tries each kind."""
        super().__init__(subject)
        self._useful = tuple(
            kind
            for kind in _KINDS
            if self.reshape(subject.model, {"kind": kind}) is not subject.model
        )
        if not self._useful:
            self.reason = "no convolution has fewer multiply-accumulates as a block"

    def knobs(self) -> Sequence[Knob]:
        """Returns the kind of block."""
        return (Knob("kind", _OFF, (_OFF, *self._useful)),) if self._useful else ()

    def reshape(self, model: Any, values: Values) -> Any:
        """Returns the model with blocks, or itself if none is cheaper."""
        from edgecompress.surgery.finalize import finalize

        if values["kind"] == _OFF:
            return model
        made = finalize(model, rewrites=f"cheaper-blocks:kind={values['kind']}")
        return made if made.count_params() < model.count_params() else model
