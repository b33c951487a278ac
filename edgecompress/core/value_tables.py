"""Chains of functions of one number, which an int8 file holds as one table of 256 codes.

`log(1 + exp(x))` written with keras.ops is three operations, but one function of x: the file looks
its values up (`converters.tables`), and rounds once. Training must round where the file does, so
this module finds the chains in a model's graph: what lies inside a chain has no tap.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from edgecompress.core.fusion_rules import (
    CURVE,
    INSIDE,
    RELU,
    RELU6,
    TABLE,
    UNSUPPORTED,
    Step,
)


@dataclass(frozen=True)
class Function:
    """An operator of a graph.

    Attributes:
        inputs: The values it reads, by number.
        output: The value it computes.
        elementwise: Whether each element of its output depends on the same element of its inputs
            and on constants of one number alone.
        tabled: Whether int8 has no operator for it, so that it needs a table.
        storable: Whether its output may be what a table holds: floats.
    """

    inputs: tuple[int, ...]
    output: int
    elementwise: bool = False
    tabled: bool = False
    storable: bool = True


@dataclass(frozen=True)
class Tables:
    """The values that tables compute.

    Attributes:
        ends: What tables hold, by number.
        inside: What is computed on the way and exists nowhere in the file.
    """

    ends: frozenset[int]
    inside: frozenset[int]


def tables_of(functions: Sequence[Function], outputs: Collection[int] = ()) -> Tables:
    """Returns the values that tables compute.

    Args:
        functions: The operators of a graph in order of execution.
        outputs: The values that the graph returns. Defaults to none.

    Example:
        >>> exp = Function((0,), 1, True, True)
        >>> tables_of([exp, Function((1,), 2, True), Function((2,), 3)])  # exp(x) + 1, Dense
        Tables(ends=frozenset({2}), inside=frozenset({1}))
    """
    by_output = {function.output: function for function in functions}
    # Values that exist in the file whatever reads them: chains start and end there.
    kept = {*outputs} | {v for f in functions if not f.elementwise for v in f.inputs}
    while True:
        roots: dict[int, int] = {}
        for function in functions:
            sources = {v if v in kept else roots.get(v, v) for v in function.inputs}
            if function.elementwise and len(sources) == 1:
                roots[function.output] = sources.pop()
        chains = {
            end: _between(by_output, root, end)
            for end, root in roots.items()
            if end in kept or not _read(functions, end)
        }
        tables = {
            end: inside
            for end, inside in chains.items()
            if by_output[end].storable and any(by_output[value].tabled for value in (*inside, end))
        }
        apart = {v for f in functions if f.output not in roots for v in f.inputs}
        plain = {v for end, inside in chains.items() if end not in tables for v in inside}
        more = ((apart & set(roots)) | plain) - kept
        if not more:
            inside = frozenset(v for found in tables.values() for v in found)
            return Tables(frozenset(tables), inside)
        kept |= more


def _read(functions: Sequence[Function], value: int) -> bool:
    return any(value in function.inputs for function in functions)


def _between(by_output: dict[int, Function], root: int, end: int) -> set[int]:
    """Returns the values that are computed on the way from one value to another."""
    found: set[int] = set()
    wanted = [*by_output[end].inputs]
    while wanted:
        value = wanted.pop()
        if value != root and value not in found:
            found.add(value)
            wanted += by_output[value].inputs
    return found


class Operator(Protocol):
    """What `tabulate` reads of an operator of a model's graph."""

    step: Step
    inputs: tuple[int, ...]
    output: int
    dtype: str
    same_shape: bool


_O = TypeVar("_O", bound=Operator)


def tabulate(operators: Sequence[_O], outputs: Collection[int]) -> list[_O]:
    """Gives the operators of chains their kinds: the last one holds a table, the others are inside.

    Args:
        operators: Those of a graph in order of execution; changed in place.
        outputs: The values that the graph returns.

    Returns:
        Operators that only a table computes, but outside of one: they are not simulated now.
    """
    found: dict[int, Function] = {}
    for operator in operators:
        step, before = operator.step, found.get(operator.inputs[0])
        # A ReLU behind another operator is fused into that.
        rectifies = step.kind in (RELU, RELU6) and before is not None and before.elementwise
        found[operator.output] = Function(
            operator.inputs,
            operator.output,
            rectifies or (step.elementwise and operator.same_shape),
            step.tabled and operator.same_shape,
            "float" in operator.dtype,
        )
    tables, refused = tables_of(list(found.values()), outputs), []
    for operator in operators:
        if operator.output in tables.ends or operator.output in tables.inside:
            kind = TABLE if operator.output in tables.ends else INSIDE
            operator.step = replace(operator.step, kind=kind)
        elif operator.step.kind == CURVE:
            reason = "int8 has no operator for it, and it is not a function of one tensor"
            operator.step = Step(UNSUPPORTED, operator.step.suffix, reason=reason)
            refused.append(operator)
    return refused
