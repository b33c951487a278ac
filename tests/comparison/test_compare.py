"""Whole comparisons of tiny models, against what numpy and the files themselves say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress import comparison
from edgecompress.cli import main
from edgecompress.comparison.results import ComparisonResult, Made
from edgecompress.core.errors import ArgumentError, ConversionError, UnknownNameError

pytestmark = pytest.mark.slow

_ROWS: list[dict[str, Any]] = [
    {"label": "untouched"},
    {
        "label": "pruned",
        "stages": [{"callback": "MagnitudePruning", "final_sparsity": 0.5, "epochs": 2}],
    },
]
_PLAN = {"targets": ["nucleo-l4r5zi"], "epochs": 1, "batch_size": 32, "rows": _ROWS}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model in memory, its data, and a comparison of two rows."""

    model: Any
    data: tuple[np.ndarray, np.ndarray]
    held: tuple[np.ndarray, np.ndarray]
    result: ComparisonResult
    folder: Path

    def again(self, plan: dict[str, Any], **others: Any) -> ComparisonResult:
        return ec.compare(plan, model=self.model, data=self.data, validation=self.held,
                          output=self.folder, **others)  # fmt: skip


def _samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, 8)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0.5)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(3, activation="softmax", name="classes"),
        ],
        name="tiny",
    )
    data, held = _samples(256, 0), _samples(100, 1)
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*data, epochs=4, verbose=0)
    folder = tmp_path_factory.mktemp("compare") / "build"
    result = ec.compare(_PLAN, model=model, data=data, validation=held, output=folder)
    return Case(model, data, held, result, folder)


def _value(made: Made, column: str) -> Any:
    return made.cells[column].value


class TestNumbers:
    def test_of_the_untouched_model(self, case: Case) -> None:
        made = case.result.made[0]
        x, y = case.held
        # 8 x 16 + 16 and 16 x 3 + 3.
        assert _value(made, "parameters") == 195
        assert _value(made, "kept") == 8 * 16 + 16 * 3
        assert _value(made, "macs") == 8 * 16 + 16 * 3
        outputs = case.model.predict(x, verbose=0)
        assert _value(made, "metric_keras") == pytest.approx(np.mean(outputs.argmax(1) == y))
        assert made.epochs == 0

    def test_of_the_file(self, case: Case) -> None:
        for made in case.result.made:
            path = case.folder / made.file
            assert _value(made, "file_bytes") == path.stat().st_size
            report = ec.check(path, ["nucleo-l4r5zi"], evaluate=case.held)
            (target,) = report.targets
            found = {check.rule: check for check in target.checks}
            assert _value(made, "metric") == pytest.approx(found["accuracy"].measured)
            assert made.cells["metric"].where == "tflm"
            for rule in ("flash", "arena", "latency"):
                cell = made.cells[f"{rule}@nucleo-l4r5zi"]
                check = found[rule]
                assert (cell.value, cell.low, cell.high) == (
                    check.measured, check.low, check.high,
                )  # fmt: skip
                assert cell.how_known == check.how_known

    def test_of_the_pruned_row(self, case: Case) -> None:
        made = case.result.made[1]
        model = keras.models.load_model((case.folder / made.file).with_name("tiny.keras"))
        zeros = [1 - np.mean(layer.kernel.numpy() != 0) for layer in model.layers]
        assert np.allclose(zeros, 0.5, atol=0.05)
        assert _value(made, "kept") == sum(
            int(np.count_nonzero(layer.kernel.numpy())) for layer in model.layers
        )
        assert made.epochs == 2

    def test_model_is_left_alone(self, case: Case) -> None:
        assert np.count_nonzero(case.model.get_layer("hidden").kernel.numpy()) == 128


class TestFiles:
    def test_all_forms_say_the_same(self, case: Case) -> None:
        told = json.loads((case.folder / "compare.json").read_text())
        assert told["schema"] == "edgecompress.comparison/1"
        assert [row["label"] for row in told["rows"]] == ["untouched", "pruned"]
        assert told["exit_code"] == case.result.exit_code == 0
        page = (case.folder / "compare.html").read_text()
        text = (case.folder / "compare.md").read_text()
        error = f"{100 * (1 - _value(case.result.made[1], 'metric')):.2f} %"
        assert error in page
        assert error in text
        assert "<script" not in page


class TestResuming:
    def test_only_what_is_missing_is_made(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise ConversionError("trained again")

        monkeypatch.setattr("edgecompress.recipes.training.Trainer.fit", refuse)
        again = case.again({**_PLAN, "rows": [{**_ROWS[1], "label": "renamed"}, _ROWS[0]]})
        assert [made.resumed for made in again.made] == [True, True]
        assert again.labels == ("renamed", "untouched")
        assert again.made[0].cells == case.result.made[1].cells
        changes: list[dict[str, Any]] = [
            {"batch_size": 16}, {"seeds": [1]}, {"learning_rate": 1e-2},
            {"export": {"precision": "int16x8"}},
            {"rows": [{**_ROWS[1], "stages": [{**_ROWS[1]["stages"][0], "final_sparsity": 0.4}]}]},
        ]  # fmt: skip
        for change in changes:
            made = case.again({**_PLAN, "rows": [_ROWS[1]], **change}).made
            assert made[0].reason == "trained again", change
        assert case.again({**_PLAN, "rows": [_ROWS[1]]}, fresh=True).exit_code == 1

    def test_a_row_whose_file_is_gone_is_made_again(self, case: Case) -> None:
        plan = {**_PLAN, "rows": [_ROWS[0]]}
        (case.folder / case.result.made[0].file).unlink()
        again = case.again(plan)
        assert not again.made[0].resumed
        assert again.made[0].cells == case.result.made[0].cells


class TestFailures:
    def test_a_failed_row_is_named_and_the_others_are_made(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def diverge(*_: Any, **__: Any) -> Any:
            raise ConversionError("Training diverged.")

        monkeypatch.setattr("edgecompress.recipes.training.Trainer.fit", diverge)
        rows = [{"label": "broken", "stages": [{"callbacks": []}]}, _ROWS[0]]
        result = case.again({**_PLAN, "rows": rows})
        assert [made.reason for made in result.made] == ["Training diverged.", None]
        assert result.exit_code == 1
        assert "broken, seed 0, was not made" in (case.folder / "compare.md").read_text()

    def test_wrong_plans_are_refused_before_any_training(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgecompress.recipes.training.Trainer.fit", lambda *_: 1 / 0)
        wrong = {"label": "b", "stages": [{"callback": "ChannelPruning", "until": {"mac": 1}}]}
        with pytest.raises(UnknownNameError, match="Did you mean macs"):
            case.again({**_PLAN, "rows": [{"label": "a", "stages": [{"callbacks": []}]}, wrong]})
        with pytest.raises(ArgumentError, match=r"rows\[0\].export: `--precision`"):
            case.again({**_PLAN, "rows": [{"label": "a", "export": {"precision": "int9"}}]})
        with pytest.raises(ArgumentError, match="`model` must be given"):
            ec.compare(_PLAN, data=case.data)


def test_function_stays_a_function_after_its_module_was_imported() -> None:
    assert ec.compare is comparison.compare


def test_regression_with_two_inputs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(120, n)).astype("float32") for n in (3, 2))
    y = (a[:, :1] - b[:, 1:]).astype("float32")
    keras.utils.set_random_seed(1)
    inputs = [keras.Input((3,), name="a"), keras.Input((2,), name="b")]
    hidden = layers.Dense(8, activation="relu", name="hidden")(layers.Concatenate()(inputs))
    model = keras.Model(inputs, layers.Dense(1, name="out")(hidden))
    plan = {
        "epochs": 1,
        "metric": "mean_absolute_error",
        "rows": [{"label": "distilled", "stages": [{"callback": "Distillation",
                                                    "loss": "logits"}]}],
    }  # fmt: skip
    data = {"a": a, "b": b, "y": y}
    result = ec.compare(plan, model=model, data=data, validation=data, output=tmp_path)
    (made,) = result.made
    assert made.reason is None
    assert result.subject is not None
    assert result.subject.metric == "mean_absolute_error"
    assert len(list((tmp_path / "teacher_outputs").glob("*/*.npz"))) == 1
    trained = keras.models.load_model((tmp_path / made.file).with_name(f"{model.name}.keras"))
    error = np.mean(np.abs(trained.predict([a, b], verbose=0) - y))
    assert made.cells["metric_keras"].value == pytest.approx(error, rel=1e-5)
    assert "Mean absolute error, file" in (tmp_path / "compare.md").read_text()
    # A bare core has no clock; the table says so instead of a number.
    assert made.cells["latency@cortex-m4"].value is None
    assert "Latency on cortex-m4 is not known" in (tmp_path / "compare.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_command_with_two_jobs_continues_to_the_same_table(
    case: Case, tmp_path: Path
) -> None:
    """The table is that of one job in memory, but for rows that cannot be made."""
    case.model.save(tmp_path / "tiny.keras")
    for name, (x, y) in (("d", case.data), ("v", case.held)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    (tmp_path / "plan.toml").write_text(
        'model = "tiny.keras"\ndata = "d.npz"\nvalidation = "v.npz"\n'
        'targets = ["nucleo-l4r5zi"]\nepochs = 1\nbatch_size = 32\n'
        '[[rows]]\nlabel = "untouched"\n'
        '[[rows]]\nlabel = "pruned"\nstages = '
        '[{ callback = "MagnitudePruning", final_sparsity = 0.5, epochs = 2 }]\n'
        '[[rows]]\nlabel = "broken"\nstages = [{ callbacks = [], learning_rate = 1e35 }]\n'
    )
    out = tmp_path / "build"
    command = [sys.executable, "-P", "-m", "edgecompress", "compare",
               str(tmp_path / "plan.toml"), "-o", str(out), "--jobs", "2"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("1 of 3: "):
                break
        own = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [pid for path in own for pid in path.read_text().split()]
        process.kill()
    assert len(children) == 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "processes outlived the command"
        time.sleep(0.05)
    kept = len(list((out / "rows").glob("*/result.json")))
    assert kept >= 1
    result = ec.compare(tmp_path / "plan.toml", output=out, jobs=2)
    assert result.labels == ("untouched", "pruned", "broken")
    assert sum(made.resumed for made in result.made) == kept
    for made, before in zip(result.made[:2], case.result.made, strict=True):
        for column in ("parameters", "kept", "macs", "metric_keras", "metric"):
            assert made.cells[column] == before.cells[column]
    assert "iverged" in str(result.made[2].reason)
    assert result.exit_code == 1


def test_command_from_the_file_to_the_exit_code(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.model.save(tmp_path / "tiny.keras")
    np.savez(tmp_path / "d.npz", x=case.data[0], y=case.data[1])
    (tmp_path / "plan.toml").write_text(
        'model = "tiny.keras"\ndata = "d.npz"\ntargets = ["nucleo-l4r5zi"]\n'
        '[[rows]]\nlabel = "untouched"\n'
    )
    out = tmp_path / "build"
    assert main(["compare", str(tmp_path / "plan.toml"), "-o", str(out), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["rows"][0]["cells"]["parameters"]["value"] == 195
    assert "1 of 1: untouched: Parameters 195" in told.err
    assert (out / "compare.html").is_file()
