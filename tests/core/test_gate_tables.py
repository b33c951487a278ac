"""The functions of LSTM gates against sigmoid and tanh; `test_engine_kernels` asks the engines."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.core.gate_tables import CELL_BITS, GATE_TABLES

CODES = np.arange(-(2**15), 2**15)


@pytest.mark.parametrize("engine", GATE_TABLES)
def test_tables_hold_sigmoid_and_tanh(engine: str) -> None:
    tables = GATE_TABLES[engine]
    truth = 1 / (1 + np.exp(-CODES / 2**12))
    assert np.abs(tables.sigmoid() / 2**15 - truth).max() < 2**-12
    assert tables.sigmoid()[2**15] == 2**14
    for bits in CELL_BITS:
        found = tables.tanh(bits) / 2**15
        assert np.abs(found - np.tanh(CODES / 2.0 ** (15 - bits))).max() < 2**-11
        assert found[2**15] == 0
        # Those of other formats are something else.
        assert np.abs(found - np.tanh(CODES / 2.0 ** (14 - bits))).max() > 0.1


def test_the_engines_have_their_own() -> None:
    first, second = GATE_TABLES.values()
    steps = np.abs(first.sigmoid().astype(int) - second.sigmoid())
    assert 0 < steps.max() < 8
