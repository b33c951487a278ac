"""Base class of blocks: several cheap convolutions that take the place of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompress.core.registry import Registry
from edgecompress.surgery.factors.base import Part, composed

BLOCKS: Registry[type[Block]] = Registry("block")


@dataclass(frozen=True, eq=False)
class Site:
    """The convolution whose place a block takes.

    Attributes:
        kernel: Shape (*spatial, inputs, outputs).
        tap: Position in the kernel of the input that a 1x1 convolution of the same strides, without
            padding, reads; None if there is none, or if the two have outputs of different sizes.
    """

    kernel: np.ndarray
    tap: tuple[int, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return self.kernel.shape

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self.kernel.shape[-2]

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.kernel.shape[-1]


@dataclass(frozen=True, eq=False)
class Step:
    """One convolution of a block and what follows it.

    Attributes:
        part: The convolution.
        kernel: Its kernel at the start, of shape `part.shape`; None: random.
        relu: Whether a ReLU belongs after it in a nonlinear block.
        shuffle: Groups whose channels are mixed after it: channel i of group g goes to position
            `i * shuffle + g`. 1 moves nothing.
    """

    part: Part
    kernel: np.ndarray | None = None
    relu: bool = True
    shuffle: int = 1


# Steps applied one after the other.
Chain = tuple[Step, ...]


class Block(ABC):
    """Several convolutions that take the place of one, with fewer multiply-accumulates.

    A block is a frozen dataclass; its fields are its options (`core.options.option`), each of which
    is an option of the rewrite `cheaper-blocks`, too.
    """

    # Whether it starts as an approximation of the kernel; otherwise it starts from random values.
    from_kernel: ClassVar[bool] = True
    # Whether one of its parts is a depthwise convolution.
    depthwise: ClassVar[bool] = False

    @abstractmethod
    def why_not(self, site: Site) -> str | None:
        """Returns why it cannot take a convolution's place, a clause; None if it can."""

    @abstractmethod
    def chains(self, site: Site) -> tuple[Chain, ...]:
        """Returns the chains of steps whose outputs are added; for most blocks there is one.

        The one part of a chain that extends along the axes takes over the convolution's strides,
        padding and dilation. It may be a 1x1 convolution where `Site.tap` is known.
        """

    def product(self, site: Site) -> np.ndarray | None:
        """Returns the kernel that the block amounts to at the start; None if it starts randomly."""
        if not self.from_kernel:
            return None
        total = np.zeros(site.shape)
        for chain in self.chains(site):
            parts = tuple(step.part for step in chain)
            kernels = tuple(step.kernel for step in chain if step.kernel is not None)
            if any(max(part.shape[:-2]) > 1 for part in parts):
                total += composed(parts, kernels, site.shape)
            elif site.tap is not None:
                total[site.tap] += composed(parts, kernels, (*ones_of(site), *site.shape[-2:]))[
                    (0,) * len(site.tap)
                ]
        return total


def axes_of(site: Site) -> tuple[int, ...]:
    """Returns the spatial axes of a convolution."""
    return tuple(range(len(site.shape) - 2))


def ones_of(site: Site) -> tuple[int, ...]:
    """Returns the size of a 1x1 kernel with as many spatial axes."""
    return (1,) * (len(site.shape) - 2)


def not_in_groups(count: int, groups: int, what: str) -> str | None:
    """Returns why channels cannot be split into groups; None if they can."""
    return f"its {count} {what} are not a multiple of groups={groups}" if count % groups else None
