"""`edgecompress compress`: options, configuration file, exit codes, one line for each error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

from edgecompress import recipes
from edgecompress.cli import main
from edgecompress.recipes.results import CompressionResult

from .conftest import Case, Run, labelled

pytestmark = pytest.mark.slow

_SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "compression.schema.json").read_text())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, whole: Run) -> list[dict[str, Any]]:
    """What the command asked of the library, which answers with a finished run."""
    calls: list[dict[str, Any]] = []

    def compress(model: Any, data: Any, recipe: str, **options: Any) -> CompressionResult:
        calls.append({"model": model, "data": data, "recipe": recipe, **options})
        return whole.result

    monkeypatch.setattr(recipes, "compress", compress)
    return calls


class TestOptions:
    def test_what_is_not_given_is_left_to_the_library(self, asked: list[dict[str, Any]]) -> None:
        assert main(["compress", "m.keras", "--data", "d.npz", "-q"]) == 0
        (call,) = asked
        assert (call["model"], call["data"]) == (Path("m.keras"), Path("d.npz"))
        assert call["recipe"] == "deep-compression" and call["targets"] == ["cortex-m4"]
        given = {"sparsity", "clusters", "epochs", "distill", "seed", "max_drop", "scope"}
        assert not given & set(call)

    def test_values_for_all_and_by_name(self, asked: list[dict[str, Any]]) -> None:
        arguments = [
            "compress", "m.keras", "--data", "d.npz", "-q", "--sparsity", "0.9", "--sparsity",
            "head=0.5", "--clusters", "7", "--epochs", "prune=3", "--no-distill", "--max-drop",
            "0.01", "--remove-channels", "0.5", "--batch-size", "32", "--seed", "4",
        ]  # fmt: skip
        assert main(arguments) == 0
        (call,) = asked
        assert call["sparsity"] == {"*": 0.9, "head": 0.5}
        assert call["clusters"] == 7 and call["epochs"] == {"prune": 3}
        assert call["distill"] is False and call["max_drop"] == 0.01
        assert (call["remove_channels"], call["batch_size"], call["seed"]) == (0.5, 32, 4)

    def test_configuration_file(self, asked: list[dict[str, Any]], tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text(
            'data = "d.npz"\noutput = "out"\nsparsity = {"*" = 0.9, head = 0.5}\nclusters = 15\n'
            'epochs = ["4", "cluster=2"]\nlearning-rate = 0.002\nbatch_size = 16\n'
            "max_drop = 0.02\ndistill = false\nremove_channels = 0.5\ntarget = ['cortex-m7']\n"
        )
        config = ["--config", str(tmp_path / "c.toml")]
        assert main(["compress", "m.keras", "-q", *config, "--clusters", "31"]) == 0
        (call,) = asked
        assert call["data"] == tmp_path / "d.npz" and call["output"] == tmp_path / "out"
        assert call["sparsity"] == {"*": 0.9, "head": 0.5}
        # Flags win.
        assert call["clusters"] == 31
        assert call["epochs"] == {"*": 4, "cluster": 2}
        assert (call["learning_rate"], call["batch_size"]) == (0.002, 16)
        assert call["distill"] is False and call["targets"] == ["cortex-m7"]

    @pytest.mark.parametrize(
        "line", ['sparsity = "much"', 'batch_size = "16"', "distill = 1", "sparsity = {a = true}",
                 "batch_size = 1.5", "epoch = 3", "max_drop = '0.1'"],
    )  # fmt: skip
    def test_wrong_configurations(
        self, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "c.toml").write_text(f"{line}\ndata = 'd.npz'\n")
        assert main(["compress", "m.keras", "--config", str(tmp_path / "c.toml")]) == 2
        _one_line(capfd)

    def test_json_alone_on_standard_output(
        self, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["compress", "m.keras", "--data", "d.npz", "--json"]) == 0
        shown = json.loads(capfd.readouterr().out)
        jsonschema.validate(shown, _SCHEMA)
        assert shown["recipe"] == "deep-compression"


def _one_line(capfd: pytest.CaptureFixture[str], text: str = "") -> None:
    """Asserts that an error was told in one line, and nothing on standard output."""
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert out == "" and len(lines) == 1, (out, err)
    assert lines[0].startswith("edgecompress: ") and text in lines[0]
    assert "Traceback" not in err and "internal error" not in err


@pytest.mark.usefixtures("in_process")
class TestErrors:
    @pytest.fixture
    def place(self, case: Case, tmp_path: Path) -> Path:
        np.savez(tmp_path / "no_y.npz", x=case.x)
        np.savez(tmp_path / "short.npz", x=case.x, y=case.y[:-1])
        np.savez(tmp_path / "shape.npz", x=case.x[:, :7], y=case.y)
        np.savez(tmp_path / "nan.npz", x=np.where(case.x > 1, np.nan, case.x), y=case.y)
        np.savez(tmp_path / "classes.npz", x=case.x, y=case.y + 1)
        np.savez(tmp_path / "text.npz", x=case.x, y=np.array(["a"] * len(case.x)))
        frozen = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(4)])
        frozen.trainable = False
        frozen.save(tmp_path / "frozen.keras")
        (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(20))
        (tmp_path / "file").write_text("")
        return tmp_path

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            (["{model}"], 2, "`--data` must be given"),
            (["{model}", "--data", "no.npz"], 2, "does not exist"),
            (["{model}", "--data", "no_y.npz"], 2, "labels under the key y"),
            (["{model}", "--data", "short.npz"], 2, "as many samples"),
            (["{model}", "--data", "shape.npz"], 2, "shape (8, 8, 1)"),
            (["{model}", "--data", "nan.npz"], 2, "finite numbers"),
            (["{model}", "--data", "classes.npz"], 2, "class numbers from 0 to 3"),
            (["{model}", "--data", "text.npz"], 2, "numbers under the key y"),
            (["frozen.keras", "--data", "{data}"], 1, "no trainable weights"),
            (["m.tflite", "--data", "{data}"], 1, "already converted"),
            (["no.keras", "--data", "{data}"], 1, "does not exist"),
            (["{model}", "--data", "{data}", "-o", "file"], 2, "be a folder"),
            (["{model}", "--data", "{data}", "-t", "pixel-8"], 2, "microcontroller"),
            (["{model}", "--data", "{data}", "--sparsity", "much"], 2, "NAME= and a number"),
            (["{model}", "--data", "{data}", "--sparsity", "hiden=0.5"], 2, "hidden"),
            (["{model}", "--data", "{data}", "--clusters", "2.5"], 2, "a whole number"),
            (["{model}", "--data", "{data}", "--epochs", "first=2"], 2, "prune"),
            (["{model}", "--data", "{data}", "--recipe", "deep"], 2, "deep-compression"),
            (["{model}", "--data", "{data}", "--no-such"], 2, "--no-such"),
        ],
    )
    def test_one_line(
        self, arguments: list[str], code: int, text: str, place: Path, case: Case,
        capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(place)
        before = sorted(place.iterdir())
        filled = [a.format(model=case.path, data=case.npz) for a in arguments]
        assert main(["compress", *filled]) == code
        _one_line(capfd, text)
        assert sorted(place.iterdir()) == before


@pytest.mark.usefixtures("in_process")
def test_a_drop_over_its_limit_ends_with_4(
    whole: Run, case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stages are those of another run: only the file is made and judged."""
    shutil.copytree(whole.folder, tmp_path / "out")
    x, y = labelled(120, seed=1)
    np.savez(tmp_path / "v.npz", x=x, y=y)
    arguments = [
        "compress", str(case.path), "--data", str(case.npz), "--validation",
        str(tmp_path / "v.npz"), "-o", str(tmp_path / "out"), "-t", "nucleo-l4r5zi",
        "--remove-channels", "0.5", "--sparsity", "0.7", "--epochs", "2", "--learning-rate",
        "0.005",
    ]  # fmt: skip
    # Labels that are wrong for everybody, so that not even the best file keeps its accuracy.
    assert main([*arguments, "--max-drop", "0", "--min-accuracy", "1.0"]) == 4
    out, err = capfd.readouterr()
    assert "Verdict with it:" in out
    assert "accuracy: Accuracy is 96.67 % in tflm, below 100.00 %" in out
    assert err.count("was finished by an earlier run") == 3
    assert "Wrote" in err


def test_interrupted_by_ctrl_c(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [
        str(Path(sys.executable).with_name("edgecompress")), "compress", str(case.path), "--data",
        str(case.npz), "-o", str(folder), "--epochs", "1", "--epochs", "cluster=100000",
    ]  # fmt: skip
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        if process.stderr is None:
            raise AssertionError("no standard error")
        for line in process.stderr:
            lines.append(line)
            if "cluster: epoch 2" in line:
                process.send_signal(signal.SIGINT)
                break
        last = process.stderr.read().strip().splitlines()[-1]
    assert process.returncode == 130, lines
    assert last == "edgecompress: interrupted; no file was left half-written."
    assert sorted(p.name for p in folder.iterdir()) == ["stages", "teacher_outputs"]
    names = sorted(p.name for p in (folder / "stages").rglob("*") if p.is_file())
    assert names == ["prune.keras", "prune.keras.edgecompress.json", "state.json"]
    # Of training and validation data.
    names = sorted(p.name for p in (folder / "teacher_outputs").rglob("*") if p.is_file())
    assert names == ["000000000.npz"] * 2 + ["teacher_outputs.json"] * 2
    keras.saving.load_model(folder / "stages" / "prune.keras")


def test_a_function_reads_its_folder_and_what_it_was_given(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model's process may be taken over; it reads no more for the sake of the function."""
    here, given, other = (tmp_path / name for name in ("here", "given", "other"))
    for folder in (here, given, other):
        folder.mkdir()
        (folder / "text").write_text("read")
    (here / "my_data.py").write_text(
        "from pathlib import Path\n"
        "def attempt(folder):\n"
        "    try:\n"
        "        return (Path(folder) / 'text').read_text()\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "def train():\n"
        f"    raise ValueError([attempt(x) for x in {[str(here), str(given), str(other)]}])\n"
    )
    monkeypatch.chdir(here)
    arguments = ["--data", "my_data:train", "--data-files", str(given), "-o", str(tmp_path / "out")]
    assert main(["compress", str(case.path), *arguments]) == 2
    _one_line(capfd, "ValueError: ['read', 'read', 'PermissionError']")
    # Nor can a function be named in a file, which is no code.
    (here / "c.toml").write_text("data = 'my_data:train'\n")
    assert main(["compress", str(case.path), "--config", str(here / "c.toml")]) == 2
    _one_line(capfd, "a function is code")
    assert main(["compress", str(case.path), "--data", "no_data:train"]) == 2
    _one_line(capfd, "`--data` must be a module that can be imported")


def test_the_command_leaves_the_accelerator_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # As in a fresh process.
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert main(["targets", "no-such-board"]) == 2
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_folder_is_read_where_the_model_is(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That process makes no semaphores, which Keras's own reader of folders needs."""
    for name in "abcd":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            image = np.full((9, 9, 3), 40 * number, "uint8")
            keras.utils.save_img(tmp_path / "images" / name / f"{number}.png", image, scale=False)
    arguments = ["--data", str(tmp_path / "images"), "--pixels", "0..1", "-o", str(tmp_path / "o")]
    # What is refused after the data have been read.
    wrong = ["--remove-channels", "no_such=0.5", "--validation-split", "0.25"]
    assert main(["compress", str(case.path), *arguments, *wrong]) == 2
    _one_line(capfd, "no_such")
