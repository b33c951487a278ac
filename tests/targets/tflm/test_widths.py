"""Widths that pruning may leave: no narrower layer is slower, as the instruction formulas say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest

from edgecompress.targets.family import family_of
from edgecompress.targets.profile import load_target
from edgecompress.targets.tflm.geometry import Geometry
from edgecompress.targets.tflm.instructions import count

WIDTHS = range(1, 41)


def _conv(taps: int, size: int) -> Callable[[int, int], Geometry]:
    def of(inputs: int, outputs: int) -> Geometry:
        return Geometry(
            "CONV_2D", h=size, w=size, ci=inputs, oh=size, ow=size, co=outputs, kh=taps, kw=taps,
            pad_h=taps // 2, pad_w=taps // 2, same=True, per_channel=True,
            in_elements=size * size * inputs, out_elements=size * size * outputs,
        )  # fmt: skip

    return of


def _depthwise(inputs: int, outputs: int) -> Geometry:
    return Geometry(
        "DEPTHWISE_CONV_2D", h=7, w=7, ci=outputs, oh=7, ow=7, co=outputs, kh=3, kw=3, pad_h=1,
        pad_w=1, same=True, per_channel=True, in_elements=49 * outputs, out_elements=49 * outputs,
    )  # fmt: skip


def _dense(inputs: int, outputs: int) -> Geometry:
    return Geometry(
        "FULLY_CONNECTED", ni=inputs, no=outputs, rank=2, in_elements=inputs, out_elements=outputs
    )


LAYERS = [_conv(1, 8), _conv(1, 7), _conv(3, 8), _conv(3, 7), _depthwise, _dense]


def _slower(kernels: str, core: str, narrow: Iterable[int]) -> list[tuple[int, int]]:
    """Returns pairs of widths of which the narrower one, a value of `narrow`, takes longer."""
    found = []
    for layer, fixed in itertools.product(LAYERS, (4, 16)):
        for channels in (lambda n: (n, fixed), lambda n: (fixed, n)):  # noqa: B023
            times = {n: count(layer(*channels(n)), kernels, core).instructions for n in WIDTHS}
            found += [
                (small, wide)
                for small in narrow
                for wide in WIDTHS
                if small < wide and times[small] > times[wide]
            ]
    return found


@pytest.mark.parametrize("kernels", ["dsp", "mve", "reference"])
def test_no_narrower_layer_is_slower(kernels: str) -> None:
    target = "ek-ra8d1" if kernels == "mve" else "nucleo-l4r5zi"
    profile = load_target(target)
    given = {"kernels": "reference"} if kernels == "reference" else {}
    family = family_of(profile)
    multiple = family.width_multiple(profile, family.settle(profile, given))
    core = "cortex-m55" if kernels == "mve" else str(profile.core)
    assert not _slower(kernels, core, [n for n in WIDTHS if n % multiple == 0])
    # Any width would not do, except with the reference kernels.
    assert bool(_slower(kernels, core, WIDTHS)) == (multiple > 1)
