"""Every technique, sampler and logger of a search keeps its promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters.formats import FORMATS
from edgecompress.core.errors import ArgumentError
from edgecompress.recipes.data import Data, Samples
from edgecompress.recipes.task import LOSSES, Metric, Task
from edgecompress.searching.knobs import Knob
from edgecompress.searching.loggers import LOGGERS
from edgecompress.searching.results import FROM_PARENT, Beginning, Described
from edgecompress.searching.samplers import SAMPLERS
from edgecompress.searching.screening import Targets
from edgecompress.searching.study import Study
from edgecompress.searching.techniques import TECHNIQUES, Fit, Subject
from edgecompress.targets.profile import Budgets, load_target

from ..searching.conftest import make_data, make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject() -> Subject:
    x, y = make_data(samples=64)
    samples = Samples((x,), y)
    loss, text = LOSSES["classes"]("logits")
    task = Task("classes", "logits", Metric("accuracy", True, lambda a, b: 0.0), loss, text, True)
    model = make_model()

    def loss_of(candidate: Any) -> float:
        return float(np.mean(loss(y[:, None], candidate.predict(x, verbose=0))))

    targets = Targets((load_target("nucleo-l4r5zi"),), Budgets(max_ram=6000), multiple=4)
    return Subject(model, Data(samples, samples, ""), task, targets, loss_of)


def _extremes(knob: Knob) -> list[Any]:
    return list(knob.choices) if knob.choices else [knob.low, knob.high]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_value_of_a_technique_can_be_used(name: str, subject: Subject) -> None:
    technique = TECHNIQUES[name](subject)
    knobs = technique.knobs()
    assert knobs or technique.reason
    x = make_data(samples=2)[0]
    before = subject.model.predict(x, verbose=0)
    defaults = {knob.name: knob.default for knob in knobs}
    for knob in knobs:
        assert knob.check(knob.default) == knob.default
        for value in _extremes(knob):
            values = {**defaults, knob.name: knob.check(value)}
            model = technique.reshape(subject.model, values)
            assert (model is subject.model) or technique.reshapes
            assert model.count_params() <= subject.model.count_params()
            assert isinstance(technique.file(values, model), dict)
            assert technique.file_format(values) in (None, *FORMATS)
            stand_in = technique.stand_in(values, model)
            assert stand_in.count_params() == model.count_params()
            for callback in technique.callbacks(values, Fit(model, 2, 0, 4, True)):
                assert hasattr(callback, "on_epoch_begin")
            teacher = technique.teacher(values)
            assert teacher is None or 0 < teacher.weight <= 1
            rate = technique.rate(values)
            assert rate is None or 0 < rate < 1
            assert 0 <= technique.mixup(values) <= 1
    # The model that is searched stays as it was.
    np.testing.assert_array_equal(subject.model.predict(x, verbose=0), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_propose_what_knobs_may_be(name: str, tmp_path: Path) -> None:
    knobs = (
        Knob("a.choice", "x", ("x", "y", True)),
        Knob("b.whole", 2, low=1, high=5, whole=True),
        Knob("c.share", 0.5, low=0.1, high=1.0, log=True),
    )
    first = {"a.choice": "y", "b.whole": 5, "c.share": 0.2}
    described = Described(knobs, {}, "accuracy", True, "basis", ("arena",), {}, True, 1.0, 1.0)
    study = Study(None, tmp_path, None, described, name, 0, 9)
    assert study.claim_beginning()
    study.begin(Beginning((first, first), ("Two.",)))
    study.begin(Beginning((first,)))  # As another worker would, a moment later.
    assert study.notes == ("Two.",)
    starts = []
    for _ in range(14):
        number, job = study.propose(closing=False, beyond=False)
        starts.append(job.start)
        assert number not in (1, 3) or job.values == first
        for knob in knobs if job.start == FROM_PARENT else ():
            knob.check(job.values[knob.name])
        study.finish(number, _outcome(job, number))
    assert starts[:3] == ["untouched", "parent", "scratch"]
    # Resumed, it does not propose the same again.
    again = Study(None, tmp_path, None, described, name, 0, 9)
    assert not again.claim_beginning()
    before = {str(sorted(job.values.items())) for job, _ in study.outcomes().values()}
    fresh = [again.propose(closing=False, beyond=False)[1] for _ in range(6)]
    new = [job for job in fresh if job.epochs == 1]
    assert new
    assert not before & {str(sorted(job.values.items())) for job in new}
    # The best third goes on: the candidates are told apart by what they reach.
    assert {job.epochs for job, _ in study.outcomes().values()} > {0, 1, 3}


def _outcome(job: Any, number: int) -> Any:
    from edgecompress.searching.results import Outcome

    return Outcome(
        job.key("basis"), job.start, job.epochs, 0.5 + number / 100, costs={"arena": 10.0},
        excess={"arena": -0.1},
    )  # fmt: skip


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_is_there_or_says_what_to_install(name: str, tmp_path: Path) -> None:
    try:
        logger = LOGGERS[name](tmp_path)
    except ArgumentError as error:
        assert f"pip install {name}" in str(error)
    else:
        assert callable(logger)


def test_described_spaces_survive_the_way_between_processes() -> None:
    from edgecompress.core import isolation

    described = Described(
        (Knob("a.b", True, (True, False)), Knob("c.d", 2, low=1, high=3, whole=True)),
        {"depth": "none"}, "accuracy", True, "x", ("arena",), {"arena": 5.0}, True, 2.0, 0.5,
    )  # fmt: skip
    assert isolation.decode(Described, isolation.encode(described)) == described
    assert dataclasses.is_dataclass(described)
