"""A toy plugin: int8 files whose weights are trained on a grid of four bits."""

from dataclasses import dataclass
from typing import ClassVar

from edgecompress.precisions.base import PRECISIONS
from edgecompress.precisions.int8 import Int8


@PRECISIONS.register("coarse")
@dataclass(frozen=True)
class Coarse(Int8):
    """Weights on 15 levels, stored in int8."""

    name: ClassVar[str] = "coarse"
    weight_bits: ClassVar[int] = 4
