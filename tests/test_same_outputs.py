"""The comparison of two trees' outputs sees every difference, and no more."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parents[1] / "benchmarks"


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# A script's folder is where it finds its parts; here they are loaded one by one.
values = _script("same_outputs_values")
same = _script("same_outputs")
_PLACES = values.Places("/scratch/w", "/tree/edgecompress")


def _cell(**changes: Any) -> dict[str, Any]:
    report = {"targets": [{"name": "a", "measured": 1.5}], "notes": []}
    files = {"m.tflite": "12ab", "report.json": report}
    return {"exit_code": 0, "stderr": ["Wrote"], "stdout": report, "files": files} | changes


def _refused() -> dict[str, Any]:
    return _cell(exit_code=1, stderr=["edgecompress: no."], stdout="", files={})


def _record() -> dict[str, Any]:
    return {
        "inputs": {"small.keras": "34cd"},
        "models": {"small": {"int8": _cell(), "xnor": _refused()}},
    }


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(change: Callable[[dict[str, Any]], Any] = lambda record: None) -> tuple[int, str]:
        before, after = _record(), _record()
        change(after)
        for name, record in (("before", before), ("after", after)):
            (tmp_path / name).write_text(json.dumps(record))
        paths = [str(tmp_path / name) for name in ("before", "after")]
        code = same.main(["compare", *paths, "--width", "200"])
        return code, capsys.readouterr().out

    return run


def _int8(record: dict[str, Any]) -> dict[str, Any]:
    cell: dict[str, Any] = record["models"]["small"]["int8"]
    return cell


def test_equal_records(compare: Callable[..., tuple[int, str]]) -> None:
    code, text = compare()
    assert code == 0
    assert "1 same, 1 refused alike" in text


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda c: c["files"].update({"m.tflite": "12ac"}), "differs files.m.tflite"),
        (lambda c: c["files"].pop("m.tflite"), "missing files.m.tflite"),
        (lambda c: c["files"].update({"n.tflite": "1"}), "added files.n.tflite"),
        (lambda c: c["stdout"]["targets"][0].update(measured=1.25), "stdout.targets[0].measured"),
        (lambda c: c["stdout"].pop("notes"), "missing stdout.notes"),
        (lambda c: c["stdout"]["notes"].append("x"), "differs stdout.notes"),
        (lambda c: c["files"]["report.json"].pop("notes"), "missing files.report.json.notes"),
        (lambda c: c.update(exit_code=True), "differs exit_code"),
        (lambda c: c["stderr"].append("more"), "differs stderr"),
    ],
)
def test_what_differs_is_named(
    compare: Callable[..., tuple[int, str]], change: Callable[[Any], Any], place: str
) -> None:
    code, text = compare(lambda record: change(_int8(record)))
    assert code == 1
    assert place in text
    assert "1 differs, 1 refused alike" in text


def test_an_added_key_is_listed_and_no_difference(
    compare: Callable[..., tuple[int, str]],
) -> None:
    code, text = compare(lambda record: _int8(record)["stdout"]["targets"][0].update(new=1))
    assert code == 0
    assert "Added, no difference:\n  small, int8: stdout.targets[0].new\n" in text


def test_other_refusals_and_missing_commands_differ(
    compare: Callable[..., tuple[int, str]],
) -> None:
    code, text = compare(lambda r: r["models"]["small"]["xnor"].update(stderr=["edgecompress: 2."]))
    assert (code, "small, xnor: differs stderr[0]" in text) == (1, True)
    code, text = compare(lambda r: r["models"]["small"].pop("int8"))
    assert (code, "small, int8: the command was not run" in text) == (1, True)
    code, text = compare(lambda r: r["models"]["small"].update(new=_cell()))
    assert (code, "small, new: only in the second record" in text) == (1, True)


def test_nothing_exported_is_not_the_same() -> None:
    assert same.judge(_refused(), _refused()).word == "refused alike"
    assert same.judge(_cell(files={}), _cell(files={})).word == "same"


def test_the_form_of_a_number_is_a_difference_unless_told_otherwise() -> None:
    before, after = {"a": 1, "b": 2.5}, {"a": 1.0, "b": 2.5}
    assert list(same.differences(before, after)) == [("differs", "a", ": 1 -> 1.0")]
    assert not list(same.differences(before, after, equal_numbers=True))
    assert list(same.differences({"a": 1}, {"a": True}, equal_numbers=True))
    assert list(same.differences({"a": 1}, {"a": 1.5}, equal_numbers=True))


def test_other_words_count_as_reworded_where_that_is_asked_for() -> None:
    before = _cell(stdout={"reason": "It has 2 KiB.", "measured": 2048, "notes": ["a"]})
    after = _cell(stdout={"reason": "It is 2 KiB.", "measured": 2048, "notes": ["b"]})
    assert same.judge(before, after).word == "differs"
    assert same.judge(before, after, reworded=True).word == "reworded"
    # A value, a verdict, a file or another number of notes is more than a word.
    for change in ({"measured": 2049}, {"notes": ["b", "c"]}, {"reason": None, "measured": None}):
        other = _cell(stdout={**after["stdout"], **change})
        assert same.judge(before, other, reworded=True).word == "differs"
    other = _cell(files={"m.tflite": "other"}, stdout=after["stdout"])
    assert same.judge(before, other, reworded=True).word == "differs"


def test_other_inputs_or_no_common_model_are_no_comparison(
    compare: Callable[..., tuple[int, str]],
) -> None:
    assert compare(lambda r: r["inputs"].update({"small.keras": "56"}))[0] == 2
    assert compare(lambda r: r["models"].update(other=r["models"].pop("small")))[0] == 2


def test_only_what_varies_is_removed() -> None:
    report = {
        "tool": {"argv": ["/a", "export"], "version": "1", "name": "n"},
        "checks": [
            {"how_known": "measured_host", "rule": "latency", "measured": 1.0, "detail": {"p5": 2}},
            {"how_known": "computed", "measured": 1.0, "limit": None},
        ],
        "artifacts": [{"host_latency_us": 3.5, "bytes": 4}, {"host_latency_us": None}],
        "notes": ["int8: 3.7 KiB, 1,012.2 us on this computer (XNNPACK)", "2 ms elsewhere"],
    }
    kept = copy.deepcopy(report)
    left = values.normalise(report)
    assert report == kept
    mark = values.MARK
    assert left == {
        "tool": {"argv": mark, "version": mark, "name": "n"},
        "checks": [
            {"how_known": "measured_host", "rule": "latency", "measured": mark,
             "detail": {"p5": mark}},
            {"how_known": "computed", "measured": 1.0, "limit": None},
        ],
        "artifacts": [{"host_latency_us": mark, "bytes": 4}, {"host_latency_us": None}],
        "notes": [f"int8: 3.7 KiB, {mark} s on this computer (XNNPACK)", "2 ms elsewhere"],
    }  # fmt: skip


def test_pages_are_compared_without_paths_and_measured_times(tmp_path: Path) -> None:
    def page(text: str, measured: bool) -> Any:
        (tmp_path / "report.html").write_text(text)
        return values.digest(tmp_path / "report.html", _PLACES, measured)

    mine = page("<p>/tree/edgecompress/__main__.py export m -o /scratch/w/o</p>", False)
    assert mine == page("<p>PROGRAM export m -o WORK/o</p>", False)
    assert mine != page("<p>PROGRAM export n -o WORK/o</p>", False)
    assert page("1.5 us<svg>1</svg>", True) == page("12 ms<svg>2</svg>", True)
    assert page("1.5 us<svg>1</svg>", False) != page("1.5 us<svg>2</svg>", False)


def test_hashes_of_dated_files_are_compared_by_their_parts(tmp_path: Path) -> None:
    left = []
    for date in ("1", "2"):
        with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
            archive.writestr("metadata.json", json.dumps({"date_saved": date, "version": "3"}))
            archive.writestr("model.weights.h5", "weights")
        sha = hashlib.sha256((tmp_path / "m.keras").read_bytes()).hexdigest()
        (tmp_path / "state.json").write_text(json.dumps({"sha256": sha}))
        files = [tmp_path / "m.keras", tmp_path / "state.json"]
        places = _PLACES.with_files(files)
        left.append([values.digest(path, places, False) for path in files])
    assert left[0] == left[1]
    assert left[0][1]["sha256"].startswith("SHA-256 of parts ")
    (tmp_path / "state.json").write_text(json.dumps({"sha256": "0" * 64}))
    assert values.digest(tmp_path / "state.json", places, False) != left[0][1]
