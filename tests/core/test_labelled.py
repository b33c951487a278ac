"""Samples and labels are taken together, whatever form the labels have."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgecompress.core.labelled import Labelled

_X = (np.arange(12.0).reshape(6, 2), np.arange(6))
_FORMS = {
    "array": np.arange(6) * 10,
    "mapping": {"y0": np.arange(6) * 10, "y1": np.eye(6)},
    "none": None,
}


@pytest.mark.parametrize("form", _FORMS)
def test_at(form: str) -> None:
    data = Labelled(_X, _FORMS[form], "--data")
    assert len(data) == 6
    few = data.at(np.array([4, 1]))
    assert few.argument == "--data" and len(few) == 2
    np.testing.assert_array_equal(few.x[0], [[8, 9], [2, 3]])
    np.testing.assert_array_equal(few.x[1], [4, 1])
    if form == "none":
        assert few.y is None
    else:
        labels = few.y["y0"] if isinstance(few.y, dict) else few.y
        np.testing.assert_array_equal(labels, [40, 10])


@pytest.mark.parametrize("form", _FORMS)
def test_the_hash_is_that_of_the_content(form: str) -> None:
    data = Labelled(_X, _FORMS[form])
    same = Labelled(tuple(array.copy() for array in _X), _FORMS[form], "--data")
    assert data.sha256() == same.sha256()
    # Other values, another type, another order.
    others = (
        dataclasses.replace(data, x=(_X[0] + 1, _X[1])),
        dataclasses.replace(data, x=(_X[0].astype(np.float32), _X[1])),
        dataclasses.replace(data, x=(_X[0].reshape(2, 6), _X[1])),
        dataclasses.replace(data, y=np.arange(6)),
    )
    assert data.sha256() not in {other.sha256() for other in others}
