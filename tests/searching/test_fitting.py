"""Training of candidates, and what it asks of the untouched model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.converters.loaders import wrap
from edgecompress.core.model_copy import copy_model
from edgecompress.recipes.data import Data, Samples, Stream
from edgecompress.recipes.task import find_task, first_outputs
from edgecompress.searching.fitting import Fitting
from edgecompress.training.distillation import Distillation

pytestmark = pytest.mark.slow

_X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
_Y = np.arange(48) % 3


@pytest.mark.parametrize("fixed", [False, True])
def test_the_teacher_runs_only_where_samples_may_change(fixed: bool, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])

    def batches() -> Iterator[Any]:
        for start in range(0, 48, 16):
            yield _X[start : start + 16], _Y[start : start + 16]

    samples, loaded = Samples((_X,), _Y), wrap(model)
    stream = Stream(
        batches, 3, loaded, "--data", samples, "these", 48, fixed=batches if fixed else None
    )
    data = Data(samples, samples, "", stream)
    task = find_task(loaded, data, first_outputs(loaded, samples), None)
    fitting = Fitting(model, data, task, tmp_path)
    call, calls = model.call, []
    model.call = lambda *a, **k: calls.append(1) or call(*a, **k)
    told: list[float] = []
    for _ in range(2):
        student = copy_model(model)
        fitting.fit(student, 2, 0.01, Distillation(), (), lambda epoch, loss: told.append(loss), 0)
    assert len(told) == 4 and told[1] < told[0] and told[2:] == told[:2]
    # Traced once to compute what is kept, or for each training.
    assert (len(calls) == 1) is fixed
    assert len(list(tmp_path.glob("*/*.npz"))) == fixed
