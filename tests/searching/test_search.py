"""A whole search, in memory: baselines, files, resumption, what is refused."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import edgecompress as ec
from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.files import sha256
from edgecompress.searching.outcome import volume
from edgecompress.searching.packing import unpack
from edgecompress.searching.rendering import render
from edgecompress.searching.report import page
from edgecompress.searching.results import FROM_SCRATCH, UNTOUCHED
from edgecompress.searching.study import Study
from edgecompress.targets import profile as target_profile

from .conftest import LIMITS, make_data

pytestmark = pytest.mark.slow

Found = tuple[Any, Path]


def test_baselines_are_always_there(found: Found) -> None:
    result, _ = found
    starts = [point.job.start for point in result.points]
    assert starts.count(UNTOUCHED) == 1
    assert starts.count(FROM_SCRATCH) == 1
    assert len(starts) == 5
    # The untouched model exceeds the limits, or there would be nothing to search.
    assert not result.untouched.outcome.fits


def test_a_model_with_another_loss_is_another_search(
    trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    import keras

    told = {**asked, "trials": 1, "techniques": ("channels",), "output": tmp_path / "out"}
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    studies = []
    for sort in (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalHinge):
        model.compile("adam", sort())
        model.save(tmp_path / "model.keras")
        studies.append(ec.search(tmp_path / "model.keras", **told).study)
    assert studies[0] != studies[1]


def test_a_share_of_random_widths_is_at_most_one(tmp_path: Path) -> None:
    import keras

    # Four widths, of which hundreds of samples are drawn.
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(4)]
    )
    random = np.random.default_rng(0)
    data = (random.normal(size=(60, 8)).astype("float32"), random.integers(0, 4, 60))
    result = ec.search(
        model, data, ["cortex-m4"], max_ram="64KiB", trials=1, epochs=1, output=tmp_path,
        techniques=("channels",),
    )  # fmt: skip
    assert result.described.reachable == 1.0
    assert "; 100.0 % of random widths meet every limit." in (tmp_path / "search.html").read_text()
    whole = dataclasses.replace(result.described, exact=False, reachable=None)
    assert "of random widths" not in page(dataclasses.replace(result, described=whole))


def test_every_candidate_is_a_file_that_meets_what_is_said_of_it(found: Found) -> None:
    result, folder = found
    made = [point for point in result.points if point.outcome.made]
    assert len(made) >= 3
    for point in made:
        place = folder / "candidates" / point.outcome.key / f"{point.job.epochs}"
        data = (place / "model.tflite").read_bytes()
        assert sha256(data) == point.outcome.sha256
        report = ec.check(place / "model.tflite", ["nucleo-l4r5zi"], **LIMITS)
        (target,) = report.targets
        real = {check.rule: check for check in target.checks}
        assert point.outcome.costs["file_size"] == len(data)
        assert point.outcome.costs["arena"] == max(
            real["arena"].high, real["arena"].detail["smallest"]
        )
        assert point.outcome.fits == (report.exit_code == 0)


def test_the_best_is_exported_and_decides_the_exit_code(found: Found) -> None:
    result, folder = found
    assert result.best is not None
    assert result.exit_code == 0
    report = json.loads((folder / "best" / "report.json").read_text())
    assert report["verdict"] == "pass"
    (file,) = [a for a in report["artifacts"] if a["kind"] == "int8"]
    assert file["sha256"] == result.best.outcome.sha256
    choice = result.choice
    fitting = {p.number: p.outcome for p in result.points if p.outcome.fits}
    assert fitting[choice.leader].metric == max(o.metric for o in fitting.values())
    assert {choice.candidate, choice.leader} <= set(choice.equal) <= set(fitting)
    assert (choice.candidate, choice.compared) == (result.best.number, len(fitting))
    nearest = max(fitting[n].macs for n in choice.equal if fitting[n].start != FROM_SCRATCH)
    assert result.best.outcome.macs == nearest
    assert result.best.outcome.fits


def test_every_candidate_keeps_its_metric_by_sample(found: Found) -> None:
    for outcome in (p.outcome for p in found[0].points if p.outcome.made):
        values = unpack(outcome.by_sample)
        assert len(values) == outcome.samples == 120
        assert values.mean() == pytest.approx(outcome.metric, abs=1e-12)


def test_pages_and_json_say_the_same(found: Found) -> None:
    result, folder = found
    told = json.loads((folder / "search.json").read_text())
    assert [entry["number"] for entry in told["candidates"]] == [p.number for p in result.points]
    assert told["best"] == result.best.number
    text = (folder / "search.html").read_text()
    assert f"candidate {result.best.number}" in text
    assert told["choice"]["reason"] == result.choice.reason
    assert html.escape(result.choice.reason) in text
    assert told["tested"] is None
    assert "https://" not in text.split("<body>")[0]
    assert "<iframe" in result._repr_html_()


def test_a_page_without_plotly_has_its_tables(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    text = page(found[0])
    assert "pip install" in text
    assert "<td>the untouched model</td>" in text


def test_hypervolume_grows_with_candidates(found: Found) -> None:
    result, _ = found
    grown = [volume(result.described, result.points, until=n) for n in range(6)]
    assert grown[0] == 0
    assert grown == sorted(grown)
    assert 0 < grown[-1] < 1
    assert grown[-1] == result.volume


def test_the_same_call_continues(found: Found, trained: Any, asked: dict[str, Any]) -> None:
    before, folder = found
    after = ec.search(trained, **asked, trials=6, output=folder)
    assert len(after.points) == 6
    for old, new in zip(before.points, after.points, strict=False):
        assert old.outcome == new.outcome


def test_a_killed_candidate_is_made_again(
    found: Found, trained: Any, asked: dict[str, Any]
) -> None:
    result, folder = found
    study = Study(None, folder, None, result.described, "tpe", 0, 2)
    number, job = study.propose(closing=False, beyond=False)
    # Its worker is a process that is no more.
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    study._asked[number].set_user_attr("worker", f"{os.uname().nodename}:{child}")
    assert study.recover() == 1
    again, same = study.propose(closing=False, beyond=False)
    assert (again > number, same.values) == (True, job.values)
    # That of a living process is left alone.
    assert study.recover() == 0
    study.give_up(again, begun=False)


def test_any_candidate_can_be_exported(
    found: Found, trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    result, folder = found
    scratch = next(p for p in result.points if p.job.start == FROM_SCRATCH)
    again = ec.search(trained, **asked, output=folder, apply=scratch.number, into=tmp_path / "out")
    assert again.exit_code == scratch.outcome.exit_code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["artifacts"][-1]["sha256"] == scratch.outcome.sha256
    with pytest.raises(ArgumentError, match="--apply` must be a candidate of the study"):
        ec.search(trained, **asked, output=folder, apply=999, into=tmp_path / "out2")


def test_limits_out_of_reach_are_a_verdict_not_a_pass(
    trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    result = ec.search(
        trained,
        **{**asked, "max_ram": 2000, "techniques": ("channels",)},
        trials=3,
        output=tmp_path / "none",
    )
    assert result.best is None
    assert result.exit_code == 3
    parents = [p.outcome for p in result.points if p.job.start == "parent"]
    assert parents
    assert all(o.reason and "arena is" in o.reason and not o.made for o in parents)
    assert not (tmp_path / "none" / "best").exists()


def test_an_accuracy_out_of_reach_ends_with_4(
    trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    free = {**asked, "max_ram": None, "max_file_size": None, "techniques": ("training",)}
    result = ec.search(trained, **free, min_accuracy=1.0, trials=2, output=tmp_path / "none")
    assert (result.best, result.exit_code) == (None, 4)


def test_what_is_wrong_is_one_line(trained: Any, asked: dict[str, Any], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"sampler": "best"}, UnknownNameError, "sampler"),
        ({"techniques": ("magic",)}, UnknownNameError, "technique"),
        ({"targets": ["pixel-8"], "max_latency": "1ms", "max_ram": None}, ArgumentError, "latency"),
        ({"storage": "mysql+nothing://x"}, ArgumentError, "--storage"),
        ({"jobs": 2}, ArgumentError, "jobs"),
        ({"max_rma": "4KiB"}, UnknownNameError, "max_rma"),
        ({"log": ("paper",)}, UnknownNameError, "log"),
        ({"minutes": float("nan")}, ArgumentError, "minutes"),
        ({"epochs": 0}, ArgumentError, "epochs"),
    ]
    for number, (changed, kind, text) in enumerate(cases):
        with pytest.raises(kind, match=text) as raised:
            ec.search(trained, **{**asked, **changed}, trials=1, output=tmp_path / f"{number}")
        assert "\n" not in str(raised.value)


def test_a_floor_for_the_accuracy_of_values_is_refused(tmp_path: Path) -> None:
    import keras
    import numpy as np

    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ArgumentError, match="--min-accuracy` must go with a classifier.*mse"):
        ec.search(model, (x, x[:, :1]), ["cortex-m4"], min_accuracy=0.9, output=tmp_path)


def test_candidates_are_compared_by_the_metric_that_was_asked_for(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(3)
    x = np.random.default_rng(0).normal(size=(120, 6)).astype("float32")
    y = (x[:, 0] > 1.2).astype("int64")
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")]
    )
    asked = {
        "targets": ["cortex-m4"], "validation": (x[80:], y[80:]), "trials": 1, "epochs": 1,
        "techniques": ("training",),
    }  # fmt: skip
    found = ec.search(model, (x[:80], y[:80]), **asked, metric="auc", output=tmp_path)
    outputs = np.asarray(model(x[80:]))[:, 0]
    pairs = outputs[y[80:] == 1][:, None] - outputs[y[80:] == 0][None]
    truth = (np.sign(pairs).mean() + 1) / 2
    outcome = found.untouched.outcome
    assert (found.described.metric, found.described.higher_is_better) == ("auc", True)
    assert outcome.keras_metric == pytest.approx(truth)
    assert abs(outcome.metric - truth) < 0.05
    assert truth != pytest.approx(((outputs >= 0.5) == y[80:]).mean(), abs=0.01)
    for wrong, text in (
        ({"metric": "mae"}, "--metric` must suit the labels"),
        ({"metric": "acu"}, "Did you mean.*auc"),
        ({"metric": "auc", "min_accuracy": 0.5}, "--min-accuracy.*measured by auc"),
    ):
        with pytest.raises(ArgumentError, match=text):
            ec.search(model, (x[:80], y[:80]), **{**asked, **wrong}, output=tmp_path / "wrong")
    # Where no metric can be measured, that is said.
    alone = {**asked, "validation": (x[80:90], np.zeros(10, int))}
    nothing = ec.search(model, (x[:80], y[:80]), **alone, metric="auc", output=tmp_path / "alone")
    assert nothing.exit_code == 1
    assert nothing.points[0].outcome.reason.startswith("Not measured: ")


def test_what_was_exported_is_what_is_said(found: Found) -> None:
    result, _ = found
    check = {"rule": "accuracy", "verdict": "fail", "limit": 0.9, "reason": "Accuracy is 80 %."}
    exported = {"exit_code": 4, "targets": [{"name": "board", "checks": [check]}]}
    for applied, number in ((None, result.best.number), (1, 1)):
        with StringIO() as text:
            told = dataclasses.replace(result, exported=exported, applied=applied)
            render(told, Console(file=text, width=200))
            printed = text.getvalue()
        assert f"Candidate {number}, exported" in printed
        assert "does not meet every limit" in printed
        assert "board: accuracy fail: Accuracy is 80 %." in printed
        assert "meets every limit:" not in printed


def test_passwords_of_storages_are_on_no_page(
    trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'kept.db'}?x=postgresql://me:secret@host/x"
    told = ["edgecompress", "search", "--storage", "postgresql://me:secret@host/x"]
    result = ec.search(trained, **asked, trials=1, output=tmp_path, argv=told)
    assert "secret" not in result.to_json()
    assert "postgresql://me:***@host/x" in (tmp_path / "search.html").read_text()
    with pytest.raises(ArgumentError) as raised:
        ec.search(trained, **asked, trials=1, output=tmp_path, storage=url.replace("sqlite", "odd"))
    assert "secret" not in str(raised.value)


def test_what_training_has_learnt_is_kept_with_a_candidate(
    trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    from edgecompress.pipeline.request import load_profiles
    from edgecompress.searching.evaluator import Evaluator
    from edgecompress.searching.results import Job

    evaluator = Evaluator(
        trained, asked["data"], asked["validation"], load_profiles(asked["targets"]), {},
        tmp_path / "candidates", ("quantization",),
    )  # fmt: skip
    values = {"quantization.precision": "int4", "quantization.aware": True}
    made = evaluator.evaluate(Job(values, epochs=1))
    report = evaluator.export(Job(values, epochs=1), tmp_path / "out").report
    # The file that was measured: its ranges are those that training has learnt.
    assert [a["sha256"] for a in report["artifacts"] if a["kind"] == "int4"] == [made.sha256]
    model = tmp_path / "candidates" / made.key / "1" / "model.keras"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ArgumentError, match="--apply` must be a candidate whose file is in the"):
        evaluator.export(Job(values, epochs=1), tmp_path / "out2")
    told: list[int] = []
    again = evaluator.evaluate(Job(values, epochs=2), lambda epoch, loss: told.append(epoch))
    # Nothing is left to be continued.
    assert again.made and told == [1, 2]


@pytest.mark.parametrize(
    "attributes",
    [
        {"job": {"values": {}, "epochs": "../../x"}},
        {"job": {"valeus": {}}},
        {"outcome": {"key": "k", "start": "parent", "metric": "high"}},
        {"job": None},
    ],
)
def test_a_storage_that_somebody_else_wrote_is_one_line(
    attributes: dict[str, Any], found: Found, tmp_path: Path
) -> None:
    import optuna

    described = found[0].described
    study = Study(None, tmp_path, None, described, "tpe", 0, 2)
    whole = {
        "job": {"values": {}, "start": "parent", "epochs": 1, "last": False},
        "outcome": {"key": "k", "start": "parent", "metric": 0.5},
    }
    for number, own in enumerate((whole, {**whole, **attributes}), 1):
        study.optuna_study.add_trial(
            optuna.trial.create_trial(values=[0.5] * (1 + len(described.rules)), user_attrs=own)
        )
        if number == 1:
            assert study.outcomes()[1][1].metric == 0.5
    with pytest.raises(ArgumentError, match="--study` must be as this program wrote it"):
        study.outcomes()


@pytest.mark.parametrize("changed", ["max_ram", "techniques", "targets"])
def test_a_study_about_something_else_is_not_continued(
    found: Found, trained: Any, asked: dict[str, Any], tmp_path: Path, changed: str
) -> None:
    result, folder = found
    board = (Path(target_profile.__file__).parent / "nucleo-l4r5zi.toml").read_text()
    smaller = tmp_path / "smaller.toml"
    smaller.write_text(board.replace('sram = "640KiB"', 'sram = "4KiB"'))
    others = {"max_ram": 5000, "techniques": ("channels",), "targets": [smaller]}
    other = {**asked, changed: others[changed]}
    with pytest.raises(ArgumentError, match="--study` must be about the same model"):
        ec.search(trained, **other, trials=1, output=folder, study=result.study)
    with pytest.raises(ArgumentError, match="--apply` must go with the options of the search"):
        ec.search(trained, **other, output=folder, apply=0, into=tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.fixture(scope="module")
def judged(
    trained: Any, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, dict[str, Any]]:
    """A search whose data name groups, and whose labels of the test data are all wrong."""
    x, y = make_data(2, 60)
    train, held = asked["data"], asked["validation"]
    told = {
        **asked,
        "data": {"x": train[0], "y": train[1], "who": np.arange(240) % 5},
        "validation": {"x": held[0], "y": held[1], "who": 5 + np.arange(120) % 3},
        "test": {"x": x, "y": (y + 1) % 4, "who": 8 + np.arange(60) % 2},
        "groups": "who",
        "min_accuracy": 0.3,
        "techniques": ("channels",),
        "trials": 2,
    }
    folder = tmp_path_factory.mktemp("judged")
    return ec.search(trained, **told, output=folder), folder, told


def test_the_verdict_is_that_of_the_test_data(judged: tuple[Any, Path, dict[str, Any]]) -> None:
    result, folder, _ = judged
    assert result.best.outcome.exit_code == 0
    assert result.best.outcome.metric > 0.5
    # No answer is right there.
    assert (result.exit_code, result.exported["exit_code"]) == (4, 4)
    tested = result.tested
    assert (tested.candidate, tested.samples, tested.groups) == (result.best.number, 60, 2)
    file = next((folder / "best").glob("*_int8.tflite"))
    x, y = make_data(2, 60)
    for path, told in ((file, tested.metric), (_untouched(result, folder), tested.untouched)):
        report = ec.check(path, ["nucleo-l4r5zi"], evaluate=(x, (y + 1) % 4))
        checks = {check.rule: check for check in report.targets[0].checks}
        assert told == checks["accuracy"].measured < 0.3
    assert tested.difference == pytest.approx(tested.metric - tested.untouched)
    assert tested.error >= 0
    assert result.choice.groups == 3
    assert "of 3 groups" in " ".join([result.choice.reason, *result.described.notes])
    with StringIO() as text:
        render(result, Console(file=text, width=300))
        printed = text.getvalue()
    assert "exported and measured on all test data, does not meet every limit." in printed
    assert "On the 60 test samples of 2 groups, candidate" in printed
    assert f"{tested.metric:.4f}, untouched {tested.untouched:.4f}" in page(result)


def _untouched(result: Any, folder: Path) -> Path:
    return folder / "candidates" / result.untouched.outcome.key / "0" / "model.tflite"


def test_applying_another_candidate_is_another_look_at_the_test_data(
    judged: tuple[Any, Path, dict[str, Any]], trained: Any, tmp_path: Path
) -> None:
    result, folder, told = judged
    again = ec.search(trained, **told, output=folder, apply=0, into=tmp_path / "out")
    # The untouched model is over its limits, and wrong there, too.
    assert again.exit_code in (3, 4)
    assert again.tested.metric == again.tested.untouched == result.tested.untouched
    assert (again.tested.difference, again.tested.error) == (0.0, 0.0)
    assert again.tested.looked == tuple(sorted({0, result.best.number}))
    assert "were measured on test data" in again.described.notes[-1]


def test_without_test_data_the_floor_is_said_to_be_judged_by_what_chose(
    judged: tuple[Any, Path, dict[str, Any]], trained: Any, tmp_path: Path
) -> None:
    _, folder, told = judged
    # Neither the groups nor the test data change what candidates are.
    plain = {**told, "test": None, "groups": None, "data": make_data()}
    x, y = make_data(1, 120)
    after = ec.search(trained, **{**plain, "validation": (x, y)}, output=folder)
    assert (after.exit_code, after.tested, after.choice.groups) == (0, None, 0)
    assert any("was judged on the 120 validation samples" in n for n in after.described.notes)


def test_models_with_several_inputs_are_searched(tmp_path: Path) -> None:
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(96, 6, 6, 1)).astype("float32")
    z = random.normal(size=(96, 4)).astype("float32")
    y = (x.mean((1, 2, 3)) + z[:, 0] > 0).astype("int64")
    image, numbers = keras.Input((6, 6, 1)), keras.Input((4,))
    layers = keras.layers
    maps = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(image))
    both = layers.Concatenate()([maps, layers.Dense(8, activation="relu")(numbers)])
    model = keras.Model([image, numbers], layers.Dense(2)(both), name="two")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = ec.search(
        model, ([x, z], y), ["nucleo-l4r5zi"], trials=2, epochs=1, minutes=None,
        max_file_size="6KiB", techniques=("channels",), output=tmp_path,
    )  # fmt: skip
    assert [point.outcome.made for point in result.points] == [True, True]
    assert result.described.exact


def test_the_chosen_candidate_learns_from_the_validation_data(
    trained: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    """Their labels are others than the training data's, and the test data's are like them."""
    (x, y), (x_test, y_test) = make_data(1, 4000), make_data(2, 60)
    told = {
        **asked,
        "validation": (x, (y + 1) % 4),
        "test": (x_test, (y_test + 1) % 4),
        "techniques": ("channels",),
    }
    plain = ec.search(trained, **told, trials=2, output=tmp_path / "search")
    number = next(p.number for p in plain.points if p.outcome.made and p.outcome.epochs)
    told |= {"output": tmp_path / "search", "apply": number}
    before, after = (
        ec.search(trained, **told, refit=refit, into=tmp_path / str(refit)).tested
        for refit in (False, True)
    )
    assert before.refit == ""
    assert before.metric < 0.1 < 0.4 < after.metric
    assert "on training and validation data together, 4,240 samples" in after.refit
    # What is kept of the candidate is what was chosen.
    again = ec.search(trained, **told, into=tmp_path / "again").tested
    assert again.metric == before.metric
    with pytest.raises(ArgumentError, match="--refit` must go with --test"):
        ec.search(trained, **{**told, "test": None}, refit=True, into=tmp_path / "none")
