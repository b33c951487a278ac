"""The command line: exit codes, one line for each error, JSON alone on stdout, clean interrupts."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.cli import main
from edgecompress.targets.profile import target_names

pytestmark = pytest.mark.slow

_SCRIPT = Path(sys.executable).with_name("edgecompress")
_SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text())
_PROGRESS = re.compile(r"\[ *\d+\.\d s\] ")
_BOARD = """
name = "{name}"
title = "Own board"
kind = "core"
engine = "tflm"
core = "cortex-m4"
kernels = "cmsis-nn"
sources = ["measured"]
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended; `err` is without the lines of progress."""

    code: int
    out: str
    err: list[str]

    def is_error(self, code: int, text: str) -> None:
        """Asserts the one-line form of every error."""
        assert self.code == code, (self.out, self.err)
        assert self.out == ""
        assert len(self.err) == 1, self.err
        assert self.err[0].startswith("edgecompress: ")
        assert text in self.err[0]
        assert "Traceback" not in self.err[0]
        assert "internal error" not in self.err[0]

    def report(self) -> dict[str, Any]:
        """Returns the JSON report, which must be all of standard output."""
        found: dict[str, Any] = json.loads(self.out)
        jsonschema.validate(found, _SCHEMA)
        return found

    def check(self, rule: str, target: int = 0) -> dict[str, Any]:
        checks = self.report()["targets"][target]["checks"]
        return next(c for c in checks if c["rule"] == rule)


def _lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if not _PROGRESS.match(line)]


def _model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            layers.Conv2D(6, 1, activation="relu", name="mix"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="head"),
        ]
    )
    kernel, bias = model.get_layer("head").get_weights()
    # Wide margins between the classes, so that rounding changes none.
    model.get_layer("head").set_weights([kernel * 10, bias])
    return model


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files; `out/tiny_int8.tflite` was exported through the command."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(1)
    model = _model()
    model.save(folder / "tiny.keras")
    model.export(folder / "saved", verbose=False)
    # Written as a file with a Lambda layer would be; Keras itself warns of such models.
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="code")])
    plain.save(folder / "plain.keras")
    with zipfile.ZipFile(folder / "plain.keras") as source:
        content = {name: source.read(name) for name in source.namelist()}
    content["config.json"] = content["config.json"].replace(b'"Dense"', b'"Lambda"')
    with zipfile.ZipFile(folder / "lambda.keras", "w") as copy:
        for name, data in content.items():
            copy.writestr(name, data)
    wide = keras.Sequential(
        [keras.Input((3, 4, 4, 1)), layers.Conv3D(2, 2), layers.Flatten(), layers.Dense(3)]
    )
    wide.save(folder / "conv3d.keras")

    random = np.random.default_rng(0)
    x = random.normal(size=(60, 8, 8, 1)).astype(np.float32)
    y = model.predict(x, verbose=0).argmax(1)
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "labels.npz", x=x, y=y)
    np.savez(folder / "wrong_labels.npz", x=x, y=(y + 1) % 4)
    np.savez(folder / "text_labels.npz", x=x, y=np.array(["a"] * 60))
    np.savez(folder / "big_labels.npz", x=x, y=y + 10)
    np.savez(folder / "few_labels.npz", x=x, y=y[:3])
    np.savez(folder / "shape.npz", x=x[:, :7])
    np.savez(folder / "uint8.npz", x=(x * 10).astype(np.uint8))
    np.savez(folder / "nan.npz", x=np.where(x > 2, np.nan, x))
    np.savez(folder / "empty.npz", x=x[:0])
    np.savez(folder / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez(folder / "no_x.npz", y=y)
    np.savez(folder / "3d.npz", x=random.normal(size=(20, 3, 4, 4, 1)).astype(np.float32))
    (folder / "text.npz").write_text("hello")
    for name in ("text.keras", "text.h5", "text.tflite"):
        (folder / name).write_text("this is text")
    for name in ("empty.keras", "empty.h5", "empty.tflite"):
        (folder / name).write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "own.toml").write_text(_BOARD.format(name="own"))
    (folder / "same.toml").write_text(_BOARD.format(name="cortex-m4"))
    (folder / "typo.toml").write_text(_BOARD.format(name="own").replace("kernels", "kernel"))
    (folder / "broken.toml").write_text("name = ")

    arguments = ["--calibration", str(folder / "x.npz"), "-o", str(folder / "out")]
    assert main(["export", str(folder / "tiny.keras"), "-t", "cortex-m4", "-q", *arguments]) == 0
    data = (folder / "out" / "tiny_int8.tflite").read_bytes()
    (folder / "int8.tflite").write_bytes(data)
    (folder / "cut.tflite").write_bytes(data[:1000])
    data = (folder / "tiny.keras").read_bytes()
    (folder / "cut.keras").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture
def run(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    in_process: None,
) -> Callable[[str], Ended]:
    """Runs a command line in this process, model files included, in the folder `place`."""
    monkeypatch.chdir(place)

    def call(command: str) -> Ended:
        capfd.readouterr()
        code = main(shlex.split(command))
        out, err = capfd.readouterr()
        return Ended(code, out, _lines(err))

    return call


# --- what goes wrong ----------------------------------------------------------------------------

_EXPORT = "export tiny.keras -t host -o never"
_CHECK = "check int8.tflite -t cortex-m4"
_BAD = [
    # Model files.
    ("export nope.keras -t host", 1, "nope.keras does not exist"),
    ("export text.keras -t host", 1, "text.keras is not a Keras model"),
    ("export text.h5 -t host", 1, "text.h5 is not a Keras model"),
    ("export empty.keras -t host", 1, "empty.keras is not a Keras model"),
    ("export empty.h5 -t host", 1, "empty.h5 is not a Keras model"),
    ("export cut.keras -t host", 1, "cut.keras is truncated or damaged"),
    ("export folder -t host", 1, "folder without saved_model.pb"),
    ("export lambda.keras -t host", 1, "Layer 'code' of lambda.keras is a Lambda layer"),
    ("export int8.tflite -t host", 2, "must be a Keras model for --format int8"),
    ("check nope.tflite -t cortex-m4", 1, "nope.tflite does not exist"),
    ("check text.tflite -t cortex-m4", 1, "text.tflite is not a .tflite file"),
    ("check empty.tflite -t cortex-m4", 1, "empty.tflite is not a .tflite file"),
    ("check cut.tflite -t cortex-m4", 1, "cut.tflite is damaged or truncated"),
    ("check folder -t cortex-m4", 1, "folder is a folder, not a regular file"),
    ("check tiny.keras -t cortex-m4", 2, "edgecompress export"),
    ("inspect nope.tflite", 1, "nope.tflite does not exist"),
    ("inspect cut.tflite", 1, "cut.tflite is damaged"),
    ("inspect text.keras", 1, "text.keras is not a Keras model"),
    ("inspect lambda.keras", 1, "Lambda layer"),
    ("inspect folder", 1, "folder"),
    # Data.
    (_EXPORT, 2, "--calibration"),
    (f"{_EXPORT} --calibration nope.npz", 2, "It does not exist"),
    (f"{_EXPORT} --calibration folder", 2, "`--calibration` must be a readable"),
    (f"{_EXPORT} --calibration text.npz", 2, "neither .npy nor .npz"),
    (f"{_EXPORT} --calibration pickled.npz", 2, "`--calibration` must be a readable"),
    (f"{_EXPORT} --calibration shape.npz", 2, "hold samples of shape (8, 8, 1)"),
    (f"{_EXPORT} --calibration uint8.npz", 2, "hold floating-point numbers"),
    (f"{_EXPORT} --calibration nan.npz", 2, "hold finite numbers only"),
    (f"{_EXPORT} --calibration empty.npz", 2, "hold at least one sample"),
    (f"{_EXPORT} --calibration no_x.npz", 2, "hold samples under the key x"),
    (f"{_EXPORT} --calibration few_labels.npz", 2, "as many samples in each array"),
    (f"{_EXPORT} --calibration x.npz --evaluate x.npz", 2, "`--evaluate` must hold labels"),
    (
        f"{_EXPORT} --calibration x.npz --evaluate text_labels.npz",
        2,
        "hold finite numbers as labels",
    ),
    (f"{_CHECK} --evaluate text_labels.npz", 2, "`--evaluate` must hold finite numbers"),
    (f"{_CHECK} --evaluate big_labels.npz", 2, "hold class numbers from 0 to 3"),
    (f"{_CHECK} --evaluate shape.npz", 2, "`--evaluate` must hold samples of shape"),
    # Targets.
    ("export tiny.keras", 2, "`--target` must name at least one target"),
    ("check int8.tflite -t nucleo-l4r5", 2, "Did you mean nucleo-l4r5zi"),
    ("check int8.tflite -t nope.toml", 2, "It does not exist"),
    ("check int8.tflite -t broken.toml", 2, "It is not valid TOML"),
    ("check int8.tflite -t typo.toml", 2, "Did you mean kernels"),
    ("check int8.tflite -t folder", 2, "a path ending in .toml"),
    (f"{_CHECK} -t same.toml", 2, "name different targets differently"),
    ("targets nope", 2, "`target` must be a known name"),
    # Budgets.
    (f'{_CHECK} --max-ram "12 apples"', 2, "`--max-ram` must be a positive size"),
    (f"{_CHECK} --max-ram=-3KiB", 2, "`--max-ram` must be a positive size"),
    (
        "check int8.tflite -t pixel-8 --max-flash 1MiB",
        2,
        "`--max-flash` must go with a microcontroller among the targets. Got ['pixel-8']",
    ),
    (f"{_CHECK} --max-flash 0", 2, "`--max-flash` must be a positive size"),
    (f"{_CHECK} --max-file-size nan", 2, "`--max-file-size` must be a positive size"),
    (f"{_CHECK} --max-latency 60", 2, "`--max-latency` must be a positive time with a unit"),
    (f"{_CHECK} --min-accuracy 1.5", 2, "`--min-accuracy` must be a share"),
    (f"{_CHECK} --min-accuracy nan", 2, "`--min-accuracy` must be a share"),
    (f"{_CHECK} --min-accuracy high", 2, "--min-accuracy"),
    (f"{_EXPORT} --min-agreement -1", 2, "`--min-agreement` must be a share"),
    (f"{_CHECK} --kernels nonsense", 2, "Known: cmsis-nn, reference"),
    (f"{_EXPORT} --kernels nonsense", 2, "Known: cmsis-nn, reference"),
    # Formats.
    (f"{_EXPORT} --format compresed", 2, "Did you mean compressed"),
    (f"{_EXPORT} --c-sources", 2, "`--c-sources` must go with a microcontroller"),
    ("export tiny.keras -t cortex-m4 --coding lut", 2, "`--coding` must go with --format comp"),
    ("export int8.tflite -t cortex-m4 --format compressed --coding zip", 2, "Known: huffman, lut"),
    ("export int8.tflite -t pixel-8 --format compressed", 2, "be a microcontroller"),
    ("export nope.tflite -t cortex-m4 --format compressed", 1, "nope.tflite does not exist"),
    ("export cut.tflite -t cortex-m4 --format compressed", 1, "cut.tflite is damaged"),
    (
        "export int8.tflite -t cortex-m4 --format compressed --calibration x.npz",
        2,
        "be left out with a .tflite file",
    ),
    # Output.
    ("export tiny.keras -t host -o own.toml", 2, "`--output` must be a folder"),
    ("export tiny.keras -t host -o own.toml/a/b", 2, "`--output` must be a folder"),
    # Usage.
    ("bogus", 2, "No such command 'bogus'"),
    ("export", 2, "Missing argument 'MODEL'"),
    (f"{_CHECK} --max-rom 3", 2, "--max-r"),
]


@pytest.mark.parametrize(("command", "code", "text"), _BAD, ids=[row[0] for row in _BAD])
@pytest.mark.parametrize("form", ["", " --json"])
def test_an_error_is_one_line(
    run: Callable[[str], Ended], place: Path, command: str, code: int, text: str, form: str
) -> None:
    before = sorted(place.iterdir())
    run(command + form).is_error(code, text)
    assert sorted(place.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place that refuses files")
def test_a_place_that_refuses_even_root_is_found_before_the_work(
    run: Callable[[str], Ended],
) -> None:
    ended = run("export nope.keras -t host -o /proc/build")
    ended.is_error(2, "`--output` must be a writable folder")


@pytest.mark.parametrize(
    "command",
    [
        "export lambda.keras -t host -o never",
        "check int8.tflite -t nucleo-l4r5",
        "check cut.tflite -t cortex-m4 --json",
    ],
)
def test_errors_of_the_installed_script(place: Path, command: str) -> None:
    done = subprocess.run(
        [_SCRIPT, *shlex.split(command)], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert len(_lines(done.stderr)) == 1
    assert not (place / "never").exists()


def test_a_defect_is_one_line_and_verbose_shows_where(
    run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("edgecompress.pipeline.check", broken)
    ended = run(_CHECK)
    assert ended.code == 1
    assert ended.err == [
        "edgecompress: internal error: RuntimeError: two lines. This is a defect; run again with "
        "--verbose and report the traceback."
    ]
    verbose = run(f"{_CHECK} --verbose")
    assert verbose.code == 1
    assert verbose.err[0].startswith("| Traceback")


def test_a_full_disk_is_no_defect(
    run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgecompress.pipeline.check", full)
    run(_CHECK).is_error(1, "No space left on device")


@pytest.mark.parametrize("raised", [SystemExit(0), BrokenPipeError(32, "Broken pipe")])
def test_code_that_ends_a_command_is_no_pass(
    run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def ends(*args: Any, **kwargs: Any) -> None:
        raise raised

    monkeypatch.setattr("edgecompress.pipeline.check", ends)
    run(_CHECK).is_error(1, f"ended it ({type(raised).__name__}")


# --- exit codes and JSON ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        ("", 0, "pass"),
        ("--max-ram 64KiB --max-flash 1MiB --max-file-size 8KiB", 0, "pass"),
        ("--max-ram 1KiB", 3, "fail"),
        ("--max-flash 1KiB", 3, "fail"),
        ("--max-file-size 1KiB", 3, "fail"),
        ("--evaluate labels.npz --min-accuracy 0.9", 0, "pass"),
        ("--evaluate wrong_labels.npz --min-accuracy 0.5", 4, "fail"),
        ("--evaluate wrong_labels.npz --min-accuracy 0.5 --max-ram 1KiB", 3, "fail"),
        ("--min-accuracy 0.5", 6, "not_measured"),
        ("--min-accuracy 0.5 --allow-undecided", 0, "not_measured"),
        ("--min-accuracy 0.5 --max-ram 1KiB", 3, "fail"),
        ("--min-accuracy 0.5 --max-ram 1KiB --allow-undecided", 3, "fail"),
        ("--max-latency 1ms", 6, "not_measured"),
        ("--max-latency 1ms --allow-undecided", 0, "not_measured"),
        ("--max-flash 64KiB", 6, "uncertain"),
    ],
)
def test_exit_code_of_a_check(
    run: Callable[[str], Ended], arguments: str, code: int, verdict: str
) -> None:
    ended = run(f"{_CHECK} {arguments} --json")
    report = ended.report()
    assert (ended.code, report["verdict"]) == (code, verdict)
    named = [f"{item['rule']} on {item['target']}" for item in report["undecided"]]
    assert (verdict in ("uncertain", "not_measured")) <= bool(named)
    if code == 6:
        said = [f"Undecided: {named[0]}. Exit code 6; --allow-undecided makes it 0."]
    else:
        said = [f"Accepted though undecided: {named[0]}."] if named and not code else []
    assert ended.err == said
    text = run(f"{_CHECK} {arguments}")
    assert text.code == code
    words = {"pass": "PASS", "fail": "FAIL", "not_measured": "NOT MEASURED",
             "uncertain": "UNCERTAIN"}  # fmt: skip
    assert text.out.rstrip().endswith(f"Verdict: {words[verdict]}")


def test_a_wake_word_whose_arena_is_unknown_is_undecided(
    run: Callable[[str], Ended], shared: Path
) -> None:
    file = shared / "models" / "real" / "okay_nabu.tflite"
    core = run(f"check {file} -t cortex-m4")
    assert (core.code, core.out.rstrip().splitlines()[-1]) == (0, "Verdict: NOT MEASURED")
    assert any("2 subgraphs" in line for line in core.out.splitlines() if "Note:" in line)
    command = f"check {file} -t cortex-m4 --max-ram 4KiB"
    assert (run(command).code, run(f"{command} --allow-undecided").code) == (6, 0)


def test_export_with_an_operator_the_target_cannot_run_ends_with_5(
    run: Callable[[str], Ended], tmp_path: Path
) -> None:
    ended = run(
        f"export conv3d.keras -t nucleo-l4r5zi -t pixel-4 --calibration 3d.npz -o {tmp_path} --json"
    )
    assert ended.code == 5
    assert "CONV_3D" in ended.check("operators")["reason"]
    # No engine of the target has run the file, which is not silently a pass.
    parity = ended.check("parity")
    assert parity["verdict"] == "not_measured"
    assert "CONV_3D" in parity["reason"]
    # The phone runs it.
    assert ended.check("operators", 1)["verdict"] == "pass"
    assert ended.check("parity", 1)["verdict"] == "pass"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "fail"
    again = run(f"check {tmp_path / 'conv3d_int8.tflite'} -t nucleo-l4r5zi --json")
    assert again.code == 5


def test_export_prints_the_report_that_it_writes(
    run: Callable[[str], Ended], tmp_path: Path
) -> None:
    folder = tmp_path / "levels" / "that are" / "miss\u00efng"
    ended = run(f"export tiny.keras -t cortex-m4 --calibration x.npz -o {shlex.quote(str(folder))} "
                "--json")  # fmt: skip
    assert ended.code == 0
    assert ended.err == [f"Wrote {folder / 'report.json'} and report.html"]
    assert json.loads((folder / "report.json").read_text()) == ended.report()
    assert sorted(p.name for p in folder.iterdir()) == [
        "report.html", "report.json", "tiny_float32.tflite", "tiny_int8.tflite",
        "tiny_int8.tflite.edgecompress.json",
    ]  # fmt: skip


def test_quiet_says_nothing_on_stderr(
    run: Callable[[str], Ended], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = f"export tiny.keras -t cortex-m4 --calibration x.npz -o {tmp_path} -q"
    assert main(shlex.split(command)) == 0
    out, err = capfd.readouterr()
    assert out.endswith("Verdict: PASS\n")
    assert err == ""


def test_a_target_named_twice_is_checked_once(run: Callable[[str], Ended]) -> None:
    ended = run("check int8.tflite -t cortex-m4 -t own.toml -t cortex-m4 --json")
    assert [t["name"] for t in ended.report()["targets"]] == ["cortex-m4", "own"]


def test_a_report_names_the_command_not_where_it_is_installed(run: Callable[[str], Ended]) -> None:
    command = "check int8.tflite -t cortex-m4 --json"
    assert run(command).report()["tool"]["argv"] == ["edgecompress", *command.split()]


def test_names_with_spaces_dots_brackets_and_accents(
    run: Callable[[str], Ended], place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "aus gabe [b]\u00df"
    model = folder / "mein [mod]ell.v1.2 \u00fc.keras"
    folder.mkdir()
    model.write_bytes((place / "tiny.keras").read_bytes())
    model.chmod(0o444)
    quoted = [shlex.quote(str(p)) for p in (model, folder)]
    ended = run(f"export {quoted[0]} -t cortex-m4 --calibration x.npz -o {quoted[1]}")
    assert ended.code == 0
    file = folder / "mein [mod]ell.v1.2 \u00fc_int8.tflite"
    assert ended.out.startswith(f"{file}\n")
    again = run(f"check {shlex.quote(str(file))} -t cortex-m4 --json")
    assert again.report()["model"]["path"] == str(file)


def test_inspect_and_targets_print_json_alone(run: Callable[[str], Ended]) -> None:
    for command in ("inspect int8.tflite --json", "inspect tiny.keras --json"):
        ended = run(command)
        assert ended.code == 0
        assert isinstance(json.loads(ended.out), dict)
        assert ended.err == []
    assert [t["name"] for t in json.loads(run("targets --json").out)] == list(target_names())
    assert json.loads(run("targets cortex-m4 --json").out)["core"] == "cortex-m4"
    assert "cortex-m4" in run("targets cortex-m4").out


def test_help_and_version(run: Callable[[str], Ended]) -> None:
    for command in ("", "--help", "export --help", "check --help", "inspect --help"):
        ended = run(command)
        assert ended.code == 0
        assert ended.out.startswith("Usage: edgecompress")
    assert re.fullmatch(r"edgecompress \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_the_guide_names_every_option(run: Callable[[str], Ended]) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    table = guide[guide.index("## Options") : guide.index("## Configuration file")]
    first = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    flag = r"(?:^|[ ,`])(--[a-z][a-z0-9-]*)"
    documented = {option for cell in first for option in re.findall(flag, cell)}
    pages = "".join(run(f"{c} --help").out for c in ("export", "check", "inspect", "targets"))
    offered = set(re.findall(r"(?:^|[ ,])(--[a-z0-9-]+)", pages)) - {"--help"}
    assert documented == offered


def test_the_guides_configuration_is_accepted(run: Callable[[str], Ended], tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    example = guide.split("```toml\n")[1].split("```")[0]
    (tmp_path / "edge.toml").write_text(example)
    # The example is read to its end: what is missing is the board it names.
    ended = run(f"export tiny.keras --config {tmp_path / 'edge.toml'}")
    ended.is_error(2, str(tmp_path / "boards" / "own.toml"))


# --- configuration files ------------------------------------------------------------------------


def test_keys_are_options_and_flags_win(run: Callable[[str], Ended], place: Path) -> None:
    (place / "small.toml").write_text('max_ram = "1KiB"\ntarget = "cortex-m4"\njson = true\n')
    ended = run("check int8.tflite --config small.toml")
    assert ended.code == 3
    assert ended.check("arena")["limit"] == 1024
    assert run("check int8.tflite --config small.toml --max-ram 64KiB").code == 0
    other = run("check int8.tflite --config small.toml --target cortex-m7")
    assert [t["name"] for t in other.report()["targets"]] == ["cortex-m7"]


def test_all_kinds_of_values(run: Callable[[str], Ended], place: Path) -> None:
    (place / "all.toml").write_text(
        'target = ["cortex-m4", "cortex-m7"]\nmax-ram = 65536\nmin_accuracy = 1\n'
        'max_latency = "60ms"\nkernels = "reference"\nquiet = true\njson = true\n'
        "allow_undecided = true\n"
    )
    ended = run("check int8.tflite --config all.toml")
    # Neither accuracy nor latency can be known here.
    assert (ended.code, ended.report()["verdict"]) == (0, "not_measured")
    assert ended.err == [
        f"Accepted though undecided: {rest}."
        for rest in ["; ".join(f"{rule} on {core}" for core in ("cortex-m4", "cortex-m7")
                               for rule in ("latency", "accuracy"))]
    ]  # fmt: skip
    assert ended.check("arena", 1)["detail"]["kernels"] == "reference"
    assert ended.check("arena")["limit"] == 65536
    assert ended.check("latency")["limit"] == 60000.0
    assert ended.check("accuracy")["limit"] == 1.0


def test_paths_count_from_the_folder_of_the_file(
    run: Callable[[str], Ended], place: Path, tmp_path: Path
) -> None:
    for name in ("x.npz", "own.toml"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    (tmp_path / "config.toml").write_text(
        'calibration = "x.npz"\noutput = "build"\ntarget = ["own.toml"]\nquiet = true\n'
    )
    ended = run(f"export tiny.keras --config {tmp_path / 'config.toml'}")
    assert ended.code == 0
    assert "own PASS" in ended.out
    assert (tmp_path / "build" / "report.json").exists()
    assert not (place / "build").exists()


_SHARED_FILE = """
target = "cortex-m4"
calibration = "x.npz"      # export has it, check does not
max_ram = "64KiB"
quiet = true
threads = [1, 2]           # bench alone
sparsity = {"*" = 0.9, head = 0.5}
output = "out"             # a folder; to bench a file, so only from its own table

[check]
max_ram = "1KiB"

[export]
max_file_size = "1MiB"

[bench]
output = "m.json"
"""


def test_one_file_serves_every_command(
    run: Callable[[str], Ended], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "edge.toml").write_text(_SHARED_FILE)
    (tmp_path / "x.npz").write_bytes((place / "x.npz").read_bytes())
    config = f"--config {tmp_path / 'edge.toml'}"
    exported = run(f"export tiny.keras {config} --json")
    assert exported.code == 0
    assert (exported.check("arena")["limit"], exported.check("file_size")["limit"]) == (
        65536, 1048576,
    )  # fmt: skip
    assert (tmp_path / "out" / "report.json").exists()
    checked = run(f"check int8.tflite {config} --json")
    # Its own table goes before the common keys, a flag before both; [export] is not its business.
    assert (checked.code, checked.check("arena")["limit"]) == (3, 1024)
    assert checked.check("file_size")["limit"] is None
    flag = run(f"check int8.tflite {config} --max-ram 32KiB --json")
    assert flag.check("arena")["limit"] == 32768


def test_a_file_may_set_what_bench_measures(
    run: Callable[[str], Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def measure(bundle: Path, **options: Any) -> None:
        given.update(options)
        raise OSError(28, "enough")

    monkeypatch.setattr("edgecompress.pipeline.bench", measure)
    (tmp_path / "edge.toml").write_text(_SHARED_FILE + "host = true\nmin_seconds = 2\n")
    run(f"bench . --config {tmp_path / 'edge.toml'}").is_error(1, "enough")
    assert list(given["threads"]) == [1, 2]
    assert (given["host"], given["min_seconds"]) == (True, 2.0)
    assert given["output"] == tmp_path / "m.json"
    (tmp_path / "edge.toml").write_text(_SHARED_FILE.partition("[bench]")[0])
    given.clear()
    run(f"bench . --host --config {tmp_path / 'edge.toml'}")
    # Left to the library: the file of `bench` is not a folder of `export`.
    assert given["host"] is True and given.get("output") is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("maxram = 1", "Did you mean max-ram"),
        ('config = "x"', "must be a known name"),
        ('name = "x"', "must be a known name"),
        (
            "[check]\nmaxram = 1",
            "key in [check] of bad.toml` must be a known name. Got 'maxram'. Did you mean max-ram",
        ),
        ('[check]\ncalibration = "x"', "[check] of bad.toml` must be a known name"),
        ('[export]\ncalibraton = "x"', "Did you mean calibration"),
        ("[chek]\nmax_ram = 1", "Did you mean check"),
        ("check = 1", "bad.toml: check` must be a table, [check]. Got 1"),
        ("min_agreement = true", "must be a number between 0 and 1"),
        ('[bench]\nthreads = "1"', "must be a whole number or a list of them"),
        ("[check.max_ram]\na = 1", 'must be a size such as "96KiB"'),
        ("max_ram = 1.5", 'must be a size such as "96KiB"'),
        ("max_ram = true", 'must be a size such as "96KiB"'),
        ('max_ram = ["1KiB"]', 'must be a size such as "96KiB"'),
        ('max_ram = "12 apples"\ntarget = "host"', "`--max-ram` must be a positive size"),
        ('min_accuracy = "high"', "must be a number between 0 and 1"),
        ('min_accuracy = 1.5\ntarget = "host"', "`--min-accuracy` must be a share"),
        ("max_latency = 60", "must be text in quotation marks"),
        ("kernels = 3", "must be text in quotation marks"),
        ('allow_undecided = "yes"', "must be true or false"),
        ("target = 3", "must be a name or a list of names"),
        ("target = [1, 2]", "must be a name or a list of names"),
        ("max_ram = ", "be a readable TOML file"),
        ("\xff", "be a readable TOML file"),
    ],
)
def test_bad_configuration(
    run: Callable[[str], Ended], tmp_path: Path, content: str, text: str
) -> None:
    (tmp_path / "bad.toml").write_bytes(content.encode("latin-1"))
    run(f"check int8.tflite --config {tmp_path / 'bad.toml'}").is_error(2, text)


def test_a_configuration_that_is_not_there(run: Callable[[str], Ended]) -> None:
    run("check int8.tflite --config nope.toml").is_error(2, "It does not exist")
    run("check int8.tflite --config folder").is_error(2, "`--config` must be a readable TOML file")


# --- the process --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "check int8.tflite -t cortex-m4 --max-ram 1KiB",
        "check int8.tflite -t cortex-m4 --max-ram 1KiB --json",
    ],
)
def test_a_closed_pipe_does_not_change_the_verdict(place: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [_SCRIPT, *shlex.split(command)], cwd=place, stdout=pipe, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert _lines(done.stderr) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shell")
def test_closed_streams_do_not_change_the_verdict(place: Path) -> None:
    command = f"{shlex.quote(str(_SCRIPT))} check int8.tflite -t cortex-m4 --max-ram 1KiB"
    for streams in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            f"{command} {streams}", shell=True, cwd=place, capture_output=True, check=False
        )
        assert done.returncode == 3, (streams, done)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "stage"),
    [(signal.SIGINT, "Loading the model"), (signal.SIGTERM, "Running the int8 file")],
)
def test_a_signal_ends_an_export_without_a_trace(
    place: Path, tmp_path: Path, number: signal.Signals, stage: str
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [_SCRIPT, "export", "tiny.keras", "-t", "cortex-m4", "--calibration", "x.npz",
         "-o", tmp_path / "a" / "b"],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    if process.stderr is None:
        raise AssertionError("no pipe")
    for line in process.stderr:
        if stage in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert out == ""
    # On a busy machine it may have come to its next stage before the signal did.
    assert "Traceback" not in err
    assert _lines(err)[-1] == "edgecompress: interrupted; no file was left half-written."
    assert not (tmp_path / "a").exists()
    # Engines work in folders there; one that still ran would hold its own.
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_signal_that_a_library_swallows_ends_the_next_stage(
    place: Path, tmp_path: Path, quiet: list[str]
) -> None:
    program = """
import os, signal, sys
from edgecompress.cli import main
from edgecompress.core import isolation

decode = isolation.decode

def swallow(kind, value):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10_000_000):
            pass
    except:
        pass
    return decode(kind, value)

isolation.decode = swallow
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "export", "tiny.keras", "-t", "cortex-m4",
         "--calibration", "x.npz", "-o", tmp_path / "a", *quiet],
        cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "")
    assert _lines(done.stderr)[-1] == "edgecompress: interrupted; no file was left half-written."
    assert not (tmp_path / "a").exists()


def test_two_exports_into_one_folder_at_once(place: Path, tmp_path: Path) -> None:
    command = [_SCRIPT, "export", "tiny.keras", "-t", "cortex-m4", "--calibration", "x.npz", "-q",
               "-o", tmp_path]  # fmt: skip
    running = [
        subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, b"")
    for file in (place / "out").iterdir():
        if file.suffix in (".tflite", ".edgecompress.json"):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert len(list(tmp_path.iterdir())) == 5


# --- measured truth -----------------------------------------------------------------------------


def test_arenas_measured_in_an_emulator(run: Callable[[str], Ended], shared: Path) -> None:
    with (shared / "facts" / "mcu_arena.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    for row in rows:
        model = shared / "models" / "mlperf_tiny" / row["model"]
        ended = run(f"check {model} --target {row['core']} --kernels {row['kernels']} --json")
        arena = ended.check("arena")
        assert ended.code == 0
        assert arena["measured"] == int(row["arena_used_bytes"]), row
        assert arena["how_known"] == "computed"
        assert arena["detail"]["head"] == int(row["head_bytes"]), row
        assert arena["detail"]["tail"] == int(row["tail_bytes"]), row
        if row["smallest_arena_bytes"]:
            assert arena["detail"]["smallest"] == int(row["smallest_arena_bytes"]), row
