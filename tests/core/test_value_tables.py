"""Chains of functions of one number, on graphs small enough to follow by hand."""

from __future__ import annotations

from edgecompress.core.value_tables import Function, tables_of


def curve(inputs: tuple[int, ...], output: int, storable: bool = True) -> Function:
    return Function(inputs, output, True, True, storable)


def arithmetic(inputs: tuple[int, ...], output: int) -> Function:
    return Function(inputs, output, True)


def other(inputs: tuple[int, ...], output: int) -> Function:
    return Function(inputs, output)


def found(*functions: Function, outputs: tuple[int, ...] = ()) -> tuple[set[int], set[int]]:
    tables = tables_of(functions, outputs)
    return set(tables.ends), set(tables.inside)


def test_a_chain_is_one_table() -> None:
    # log(1 + exp(x)), then a Dense layer.
    chain = (curve((0,), 1), arithmetic((1,), 2), curve((2,), 3))
    assert found(*chain, other((3,), 4)) == ({3}, {1, 2})
    assert found(*chain, outputs=(3,)) == ({3}, {1, 2})


def test_operators_that_int8_has_are_no_table() -> None:
    assert found(arithmetic((0,), 1), arithmetic((1,), 2), outputs=(2,)) == (set(), set())


def test_what_is_read_elsewhere_ends_a_chain() -> None:
    # x + 1 is read by abs and by a Dense layer: it exists in the file, and the table begins there.
    assert found(arithmetic((0,), 1), curve((1,), 2), other((1,), 3), other((2,), 4)) == (
        {2},
        set(),
    )
    # exp(x) is an output, and exp(x) + 1 is computed from it.
    assert found(curve((0,), 1), arithmetic((1,), 2), outputs=(1, 2)) == ({1}, set())


def test_branches_of_one_tensor_meet_in_one_table() -> None:
    # where(x > 0, x, 0.1 x)
    graph = (curve((0,), 1, storable=False), arithmetic((0,), 2), curve((1, 0, 2), 3))
    assert found(*graph, outputs=(3,)) == ({3}, {1, 2})


def test_two_tables_may_share_their_beginning() -> None:
    graph = (arithmetic((0,), 1), curve((1,), 2), curve((1,), 3))
    assert found(*graph, outputs=(2, 3)) == ({2, 3}, {1})
    # But not with an operator that int8 has.
    graph = (arithmetic((0,), 1), curve((1,), 2), arithmetic((1,), 3))
    assert found(*graph, outputs=(2, 3)) == ({2}, set())


def test_functions_of_two_tensors_are_no_table() -> None:
    # where(a > 0, a, b): neither the comparison nor the choice is one.
    graph = (other((), 0), other((), 9), curve((0,), 1, storable=False), curve((1, 0, 9), 2))
    assert found(*graph, outputs=(2,)) == (set(), set())
    # exp(a) * b: the product reads what a table holds.
    assert found(curve((0,), 1), arithmetic((1, 9), 2), outputs=(2,)) == ({1}, set())
