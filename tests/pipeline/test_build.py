"""A build is a value: nothing is written or printed, equal requests give equal builds."""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.core import handover, isolation
from edgecompress.core.errors import ArgumentError, ProcessError
from edgecompress.core.isolation import Answer
from edgecompress.core.record import CompressionRecord, attach_record
from edgecompress.pipeline import Build, build, build_request, builder, write, writer
from edgecompress.pipeline.inputs import Inputs
from edgecompress.pipeline.writer import report_of

pytestmark = pytest.mark.slow

_X = np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype(np.float32)
_Y = np.arange(40) % 4


def _model(name: str = "tiny", seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            layers.Flatten(name="flat"),
            layers.Dense(4, activation="softmax", name="head"),
        ],
        name=name,
    )


@pytest.fixture(scope="module")
def made() -> Build:
    request = build_request(
        _model(), ["nucleo-l4r5zi", "host"], calibration=_X, evaluate=(_X, _Y), max_ram="1MiB"
    )
    return build(request)


# --- what a build knows -------------------------------------------------------------------------


def test_a_build_holds_files_checks_and_agreement(made: Build) -> None:
    assert [artifact.kind for artifact in made.artifacts] == ["float32", "int8"]
    assert made.main is made.artifact("int8") is made.artifacts[1]
    assert (made.name, made.model.path, made.model.sha256) == (
        "tiny", "tiny_int8.tflite", made.main.sha256,
    )  # fmt: skip
    assert [target.name for target in made.targets] == ["nucleo-l4r5zi", "host"]
    assert set(made.parities) == {"tflm", "litert"}
    assert made.layered is not None and {e.name for e in made.layered.layers} > {"image"}
    rules = {check.rule: check for check in made.targets[0].checks}
    assert rules["arena"].verdict == "pass"
    assert rules["accuracy"].measured is not None
    assert made.bundled is not None and "bundle.json" in made.bundled.files
    with pytest.raises(KeyError):
        made.artifact("compressed")


def test_inner_tensors_have_names_that_the_file_does_not_store(made: Build) -> None:
    from edgecompress.flatbuffers.reading import read_tflite

    stored = {tensor.name for tensor in read_tflite(made.main.data).tensors}
    known = {tensor.name for tensor in made.main.flat.tensors}
    assert any("stem" in name for name in known - stored)
    assert made.main.flat.data == made.main.data


def test_what_is_written_is_what_was_built(made: Build, tmp_path: Path) -> None:
    report = write(made, tmp_path, argv=["edgecompress", "test"], c_sources=True)
    assert (tmp_path / "tiny_int8.tflite").read_bytes() == made.main.data
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(report.to_json())
    assert report.targets == made.targets and report.verdict == made.verdict
    assert report.model.path == str(tmp_path / "tiny_int8.tflite")
    assert (tmp_path / "c" / "main.cc").is_file() and (tmp_path / "golden.npz").is_file()
    # The report of the value alone lists no files.
    assert report_of(made).artifacts is None


def test_a_large_file_that_does_not_ship_is_not_compressed(
    made: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes() -> dict[str, int | None]:
        return {file.kind: file.compressed_bytes for file in writer.listing(made, {})}

    known = {artifact.kind: artifact.compressed_bytes for artifact in made.artifacts}
    assert sizes() == known
    monkeypatch.setattr(writer, "_LARGE", 1)
    assert sizes() == known | {"float32": None}


def test_export_is_request_build_and_write(made: Build, tmp_path: Path) -> None:
    report = ec.export(
        _model(), ["nucleo-l4r5zi", "host"], calibration=_X, evaluate=(_X, _Y), max_ram="1MiB",
        output=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "tiny_int8.tflite").read_bytes() == made.main.data
    assert {t.name: t.verdict for t in report.targets} == {t.name: t.verdict for t in made.targets}


def test_check_gives_the_same_type(made: Build) -> None:
    checked = build(
        build_request(made.main.data, ["nucleo-l4r5zi"], file_format=None, max_ram="1MiB")
    )
    assert isinstance(checked, Build)
    assert (checked.artifacts, checked.file_format, checked.bundled) == ((), None, None)
    assert checked.main.data == made.main.data
    found, expected = ({c.rule: c for c in b.targets[0].checks} for b in (checked, made))
    assert found["arena"].measured == expected["arena"].measured
    # Without the model there is nothing to agree with.
    assert "parity" not in found


def test_the_bundle_can_be_left_out() -> None:
    request = build_request(_model(), ["host"], calibration=_X)
    assert request.bundle
    assert build(dataclasses.replace(request, bundle=False)).bundled is None


# --- purity -------------------------------------------------------------------------------------


def test_equal_requests_give_equal_builds(made: Build) -> None:
    request = build_request(
        _model(), ["nucleo-l4r5zi", "host"], calibration=_X, evaluate=(_X, _Y), max_ram="1MiB"
    )
    first, second = build(request), build(request)
    for other in (first, second):
        assert other.artifacts == made.artifacts
        assert other.parities == made.parities
        assert other.model == made.model and other.notes == made.notes
        # The host's latency is measured anew.
        assert other.targets[0] == made.targets[0]


def test_a_search_over_formats_needs_no_disk() -> None:
    """Several formats and models after another; each build stays what it was."""
    found = {}
    for seed in (1, 2):
        for file_format in ("int8", "compressed"):
            request = build_request(
                _model(seed=seed), ["cortex-m4"], file_format=file_format, calibration=_X
            )
            found[seed, file_format] = build(request)
    sizes = {key: (b.main.kind, len(b.main.data)) for key, b in found.items()}
    assert {kind for kind, _ in sizes.values()} == {"int8", "compressed"}
    # A compressed build holds the int8 file that it starts from.
    for seed in (1, 2):
        assert found[seed, "compressed"].artifact("int8").data == found[seed, "int8"].main.data
    assert found[1, "int8"].main.data != found[2, "int8"].main.data


_PURE = """
    import os, sys, tempfile
    from pathlib import Path

    import numpy as np
    import keras

    scratch = Path(tempfile.gettempdir()).resolve()
    wrong = []

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            # Of folders that are removed with all their content, names come beside a descriptor.
            path, writes = arguments[0] if arguments else None, arguments[-1:] == (-1,)
            if event not in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink"):
                return
        if writes and isinstance(path, (str, bytes, os.PathLike)):
            place = Path(os.fsdecode(path)).resolve()
            if place != Path(os.devnull) and scratch not in (place, *place.parents):
                wrong.append(f"{event} {place}")

    from edgecompress.pipeline import build, build_request, write

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    sys.dont_write_bytecode = True
    model(x[:1])
    print("BEFORE", file=sys.stderr, flush=True)
    sys.addaudithook(watch)
    made = build(build_request(model, ["cortex-m4", "host"], calibration=x, evaluate=(x, [0] * 20)))
    print("WRONG", wrong, file=sys.stderr)
    if len(sys.argv) > 1:
        write(made, sys.argv[1])
        print("WRITTEN", bool(wrong), file=sys.stderr)
"""


def _pure(run_python: Callable[..., Any], tmp_path: Path, *arguments: str) -> Any:
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    here.chmod(0o555)
    return run_python(
        ["-P", "-c", textwrap.dedent(_PURE), *arguments],
        cwd=here,
        env={**os.environ, "TMPDIR": str(scratch)},
    )


def test_a_build_writes_nothing_and_prints_nothing(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    outside = tmp_path / "outside"
    done = _pure(run_python, tmp_path, str(outside))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    # What comes before is TensorFlow's, and the model's.
    assert lines[lines.index("BEFORE") + 1] == "WRONG []"
    # The watch sees what `write` writes, so it would have seen what a build wrote.
    assert "WRITTEN True" in lines
    # Nothing is left of the temporary folders either.
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_file_has_a_reshape_before_a_dense_layer(made: Build) -> None:
    assert all("RESHAPE" not in artifact.flat.histogram() for artifact in made.artifacts)
    (note,) = (note for note in made.notes if "RESHAPE" in note)
    assert note.startswith("RESHAPE before FULLY_CONNECTED was left out")
    assert made.layered is not None and "flat" not in str(made.notes).replace(note, "")


# --- a build whose Keras model ends before its file is quantized ----------------------------------


@pytest.mark.parametrize("file_format", ["int8", "compressed"])
def test_a_build_without_its_keras_model_is_the_same(
    file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["nucleo-l4r5zi", *(["pixel-8"] if file_format == "int8" else [])]
    request = build_request(
        _model(), targets, file_format=file_format, calibration=_X, evaluate=(_X, _Y),
        max_drop=0.5,
    )  # fmt: skip
    expected = _numbers(build(request))
    loaded: list[Any] = []

    def apart(work: Callable[[], Inputs | None]) -> Inputs | None:
        assert handover._leave(tmp_path, work())
        found: Inputs = handover._taken(tmp_path)
        loaded.append(found.loaded)
        return found

    monkeypatch.setattr(handover, "apart", apart)
    assert _numbers(build(request)) == expected
    (model,) = loaded
    assert model.model is None
    with pytest.raises(LookupError, match="did not run on these inputs"):
        model.predict([_X[:3]])


def _numbers(made: Build) -> dict[str, Any]:
    """Returns what a build holds, without the times of this computer."""
    return isolation.encode(dataclasses.replace(made, profiles=(), bundled=None))


# --- a build that comes out of another process --------------------------------------------------


def _crossing(request: Any) -> tuple[Build, dict[str, Any], dict[str, bytes]]:
    """Returns a build, and its form between the processes."""
    value, files = builder.build_isolated(request, lambda kind, told: None)
    text = json.dumps(value, default=lambda v: v.tolist())
    raw = {k: v if isinstance(v, bytes) else v.encode() for k, v in files.items()}
    return builder._received(Answer(json.loads(text), raw), request), json.loads(text), raw


@pytest.fixture(scope="module")
def crossed() -> tuple[Any, Build, dict[str, Any], dict[str, bytes]]:
    model = _model()
    attach_record(model, CompressionRecord(steps=({"technique": "test", "share": 0.5},)))
    request = build_request(model, ["nucleo-l4r5zi", "host"], calibration=_X, evaluate=(_X, _Y))
    return request, *_crossing(request)


def test_a_build_crosses_the_processes_whole(
    crossed: tuple[Any, Build, dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    request, got, _, _ = crossed
    here = build(request)
    for name in ("name", "file_format", "artifacts", "main", "model", "profiles", "target_options",
                 "parities", "layered", "decompression_memory", "notes"):  # fmt: skip
        assert getattr(got, name) == getattr(here, name), name
    assert got.targets[0].to_dict() == here.targets[0].to_dict()
    # As text, too: bytes are whole numbers.
    first, second = (json.dumps(b.targets[0].to_dict()) for b in (got, here))
    assert first == second and '"measured": 1280,' in first
    assert got.main.flat == here.main.flat
    assert got.main is got.artifact("int8")
    # Both write the same files; the host's latency alone is measured anew.
    write(got, tmp_path / "got", argv=["x"])
    write(here, tmp_path / "here", argv=["x"])
    names = sorted(p.relative_to(tmp_path / "here").as_posix() for p in
                   (tmp_path / "here").rglob("*") if p.is_file())  # fmt: skip
    assert "tiny_int8.tflite.edgecompress.json" in names and "golden.npz" in names
    for name in names:
        if not name.startswith("report."):
            assert (tmp_path / "got" / name).read_bytes() == (
                tmp_path / "here" / name
            ).read_bytes(), name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value, files: value.update(name="../escaped"),
        lambda value, files: value["artifacts"][0].update(kind="../../x"),
        lambda value, files: value["main"].update(kind="other"),
        lambda value, files: value["main"].update(tensors=["one"]),
        lambda value, files: value.update(engines=["litert"]),
        lambda value, files: value["bundled"].update(files=["not/there.bin"]),
        lambda value, files: value.update(targets="all pass"),
        lambda value, files: value.update(model=None),
        lambda value, files: value.pop("model"),
        lambda value, files: files.update({"tiny_int8.tflite": b"no file"}),
        lambda value, files: files.pop("tiny_int8.tflite"),
    ],
)
def test_what_the_process_gives_back_is_checked(
    crossed: tuple[Any, Build, dict[str, Any], dict[str, bytes]],
    spoil: Callable[[dict[str, Any], dict[str, bytes]], Any],
) -> None:
    request, _, value, files = crossed
    value, files = json.loads(json.dumps(value)), dict(files)
    spoil(value, files)
    with pytest.raises(ProcessError, match="the model returned"):
        builder._received(Answer(value, files), request)


# --- requests -----------------------------------------------------------------------------------


def test_a_wrong_request_is_refused_before_any_work() -> None:
    with pytest.raises(ArgumentError, match="--min-agreement"):
        build_request(object(), ["host"], min_agreement=2.0)
    with pytest.raises(ArgumentError, match="--target"):
        build_request(object(), ["cortex-m4"], file_format="sparse")
