"""Groups: samples of one source, such as a person, a speaker, a recording or a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.converters.calibration import read_file
from edgecompress.core.errors import ArgumentError, few

_ARGUMENT = "--groups"
_NAMED = 8
# From so many groups on, at least two are on either side: one says nothing about how they differ.
_FOR_TWO = 4


def take_groups(given: Any, name: str, argument: str) -> tuple[Any, np.ndarray]:
    """Returns arrays without that of the groups, and the groups.

    Args:
        given: An .npz file or a mapping.
        name: Of the array.
        argument: Whose data they are, for errors.

    Raises:
        ArgumentError: there is no such array, or it does not say a group for each sample.
    """
    if name in ("x", "y"):
        raise ArgumentError(_ARGUMENT, "name another array than the inputs and the labels", name)
    source = read_file(Path(given), argument) if isinstance(given, (str, Path)) else given
    rule = f"name an array of {argument}"
    if not isinstance(source, Mapping):
        raise ArgumentError(
            _ARGUMENT, rule, name,
            f"{argument} has no named arrays: give an .npz file, or a mapping with the keys x, y "
            f"and {name}.",
        )  # fmt: skip
    if name not in source:
        raise ArgumentError(_ARGUMENT, rule, name, f"It holds {few(sorted(source), _NAMED)}.")
    groups = np.asarray(source[name])
    got = f"array of shape {groups.shape} and dtype {groups.dtype}"
    if groups.ndim != 1 or groups.dtype.kind not in "biufSU":
        rule = f"name one number or text for each sample of {argument}"
        raise ArgumentError(_ARGUMENT, rule, got)
    if groups.dtype.kind == "f" and not np.isfinite(groups).all():
        raise ArgumentError(_ARGUMENT, f"name groups of {argument} that are known", "NaN")
    return {key: value for key, value in source.items() if key != name}, groups


def check_length(groups: np.ndarray, samples: int, argument: str) -> np.ndarray:
    """Returns the groups of some samples.

    Raises:
        ArgumentError: there are more, or fewer.
    """
    if len(groups) != samples:
        raise ArgumentError(
            _ARGUMENT, f"name as many groups as {argument} has samples, {samples:,}", len(groups)
        )
    return groups


def check_several(groups: np.ndarray | None, argument: str) -> None:
    """Refuses groups that are all the same."""
    if groups is not None and len(np.unique(groups)) < 2:
        raise ArgumentError(
            _ARGUMENT, f"tell at least 2 groups of {argument} apart", named(groups),
            "Leave it out, or give data of more sources.",
        )  # fmt: skip


def held_out(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns which samples are held out: whole groups, as near to a share as they come.

    Args:
        groups: Of each sample.
        share: Of the samples.
        seed: Of the order in which groups are drawn.

    Returns:
        At least two groups on either side if there are four, else at least one.

    Example:
        >>> held_out(np.array([7, 7, 8, 8, 9]), 0.4, seed=0).tolist()
        [False, False, False, False, True]
    """
    names, counts = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    least = 2 if len(names) >= _FOR_TWO else 1
    sizes = np.cumsum(counts[order])
    possible = np.arange(least, len(names) - least + 1)
    count = possible[np.abs(sizes[possible - 1] - share * len(groups)).argmin()]
    return np.isin(groups, names[order[:count]])


def shared_note(one: np.ndarray, of_one: str, other: np.ndarray, of_other: str) -> tuple[str, ...]:
    """Returns a note if groups of some data are among those of others, too."""
    both = np.intersect1d(one.astype(str), other.astype(str))
    if not len(both):
        return ()
    return (
        f"{len(both)} of {len(np.unique(one))} groups of {of_one} are in {of_other}, too "
        f"({few(both.tolist(), _NAMED)}): {of_one} is not independent of it, and says little about "
        "groups that are in neither.",
    )


def named(groups: np.ndarray) -> str:
    """Returns the names of groups, for people."""
    return few([str(name) for name in np.unique(groups)], _NAMED)
