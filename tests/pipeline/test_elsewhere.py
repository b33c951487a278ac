"""Models on other Keras backends are saved, and built from the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.pipeline import builder
from edgecompress.pipeline.request import BuildRequest, build_request


class _Tensor:
    """Of another backend: numpy reads it, and no other process does."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.ones((4, 3), "f4")

    def __reduce__(self) -> Any:
        raise TypeError("not here")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="small")
    attach_record(made, CompressionRecord(notes=("trained elsewhere",)))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    return made


def test_the_file_holds_the_model_and_its_record(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def built(request: BuildRequest, progress: Callable[[str], None]) -> Any:
        loaded = ec.load_model(request.model)
        np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
        assert record_of(loaded).notes == ("trained elsewhere",)
        assert request.name == "small"
        assert type(request.calibration) is np.ndarray
        assert [type(part) for part in request.evaluate] == [np.ndarray, np.ndarray]
        seen.append(request.model)

    monkeypatch.setattr(builder, "_build_apart", built)
    request = build_request(
        model, ["host"], calibration=_Tensor(), evaluate=(_Tensor(), [0, 1, 1, 0])
    )
    builder.build(request)
    (path,) = seen
    assert not path.exists()


def test_data_that_cannot_be_sent_are_refused(model: Any) -> None:
    request = build_request(model, ["host"], calibration=(row for row in np.ones((4, 1, 3))))
    with pytest.raises(ArgumentError, match="calibration` must be arrays or .* on Keras's jax"):
        builder.build(request)
