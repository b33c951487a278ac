"""How a streaming file runs over a sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stepping:
    """How a file that takes a few time steps at once computes what a model does with a sequence.

    The first inputs take time steps; each of the others is a state, which starts at zero and then
    takes what an output held after the inference before. Variables of the file are reset before a
    sequence.

    Attributes:
        hop: Time steps of one inference.
        states: For each state input, in order: the position of the output that it takes.
        rows: For each other output, in order: 0 if the model's output is that of the last
            inference; else its number of time steps, the last ones of all inferences.
    """

    hop: int
    states: tuple[int, ...]
    rows: tuple[int, ...]
