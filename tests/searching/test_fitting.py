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
from edgecompress.searching.screening import Targets
from edgecompress.searching.techniques import Subject
from edgecompress.searching.techniques.mixup import Mixup
from edgecompress.targets.profile import Budgets, load_target
from edgecompress.training.distillation import Distillation

pytestmark = pytest.mark.slow

_X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
_Y = np.arange(48) % 3


def _data(model: Any, y: np.ndarray, stream: bool, fixed: bool = False) -> tuple[Any, Data]:
    """Returns a loaded model, and its data as arrays or as batches."""

    def batches() -> Iterator[Any]:
        for start in range(0, 48, 16):
            yield _X[start : start + 16], y[start : start + 16]

    samples, loaded = Samples((_X,), y), wrap(model)
    given = Stream(
        batches, 3, loaded, "--data", samples, "these", 48, fixed=batches if fixed else None
    )
    return loaded, Data(samples, samples, "", given if stream else None)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_teacher_runs_only_where_samples_may_change(fixed: bool, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loaded, data = _data(model, _Y, True, fixed)
    task = find_task(loaded, data, first_outputs(loaded, data.train), None)
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


def _mixed(tmp_path: Path, stream: bool, taught: bool) -> tuple[list[float], np.ndarray]:
    """Returns losses and answers of a training on mixtures."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loaded, data = _data(model, _Y, stream)
    task = find_task(loaded, data, first_outputs(loaded, data.train), None)
    fitting = Fitting(model, data, task, tmp_path, batch_size=16)
    losses: list[float] = []
    student = copy_model(model)
    teacher = Distillation(weight=1.0) if taught else None
    fitting.fit(
        student, 40, 0.03, teacher, (), lambda epoch, loss: losses.append(loss), 0, alpha=0.4
    )
    return losses, student.predict(_X, verbose=0) - model.predict(_X, verbose=0)


@pytest.mark.parametrize("stream", [False, True])
def test_mixtures_teach_labels(stream: bool, tmp_path: Path) -> None:
    losses, _ = _mixed(tmp_path, stream, taught=False)
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert _mixed(tmp_path, stream, taught=False)[0] == losses


@pytest.mark.parametrize("stream", [False, True])
def test_mixtures_of_a_teachers_answers_teach_them(stream: bool, tmp_path: Path) -> None:
    # The student begins as its teacher: what they are asked on mixtures is linear in logits only
    # up to softmax, so that it moves, but not far.
    losses, moved = _mixed(tmp_path, stream, taught=True)
    assert np.isfinite(losses).all() and 0 < np.abs(moved).max() < 1.5


@pytest.mark.parametrize("name", ["alike", "embedding", "overfitted", "values"])
def test_the_gap_decides_where_mixing_begins(name: str) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(1)
    x, held = (random.normal(size=(60, 6)).astype("float32") for _ in range(2))
    y, held_y = (random.integers(0, 3, 60) for _ in range(2))
    body = [layers.Dense(64, activation="relu"), layers.Dense(3)]
    if name == "embedding":
        x, held = (np.abs(part).astype("int32") for part in (x, held))
        body = [layers.Embedding(9, 2), layers.Flatten(), layers.Dense(3)]
    if name == "values":
        y, held_y = (random.normal(size=(60, 3)) for _ in range(2))
    model = keras.Sequential([keras.Input((6,), dtype=x.dtype), *body])
    loss = "mse" if name == "values" else keras.losses.SparseCategoricalCrossentropy(True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, epochs=1 if name == "alike" else 150, verbose=0)
    if name == "alike":
        held, held_y = x, y  # As good there as here.
    data, loaded = Data(Samples((x,), y), Samples((held,), held_y), ""), wrap(model)
    task = find_task(loaded, data, first_outputs(loaded, data.train), None)
    subject = Subject(model, data, task, Targets((load_target("host"),), Budgets()), lambda m: 0.0)
    technique = Mixup(subject)
    knobs = technique.knobs()
    if name == "embedding":
        assert not knobs and "mixed" in str(technique.reason)
        return
    assert ("mixtures" in str(technique.note)) is (name == "overfitted")
    (knob,) = knobs
    assert (knob.default, 0.0 in knob.choices) == (
        (0.4, False) if name == "overfitted" else (0.0, True)
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_teacher_that_is_wrong_is_set_right(stream: bool, sparse: bool, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.layers[0].set_weights([np.zeros((6, 3), "float32"), np.array([4.0, 0.0, 0.0])])
    y = _Y if sparse else np.eye(3, dtype="float32")[_Y]
    loaded, data = _data(model, y, stream)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    task = find_task(loaded, data, first_outputs(loaded, data.train), loss if sparse else None)
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(64, "relu")])
    student.add(keras.layers.Dense(3))
    found = {}
    for adjust in (False, True):
        fitting = Fitting(model, data, task, tmp_path, 16, adjust=adjust)
        taught = copy_model(student)
        fitting.fit(
            taught, 60, 0.02, Distillation(weight=1.0, temperature=1.0), (), lambda *_: None, 0
        )
        found[adjust] = float(np.mean(taught.predict(_X, verbose=0).argmax(-1) == _Y))
    # It always says the first class, as a third of the labels do.
    assert found[False] == pytest.approx(1 / 3) and found[True] > 0.9
