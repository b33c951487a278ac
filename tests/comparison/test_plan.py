"""The TOML file of a comparison: read, checked, its paths beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.comparison.plan import Plan, Row, read_plan, wanted
from edgecompress.comparison.rows import export_keys
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnreadableFileError

_ROWS = [{"label": "a", "stages": [{"rewrite": "low-rank"}], "export": {"format": "int8"}}]


def test_file_is_read_with_paths_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        'model = "m.keras"\ndata = "sub/d.npz"\ntargets = ["cortex-m4", "own.toml"]\n'
        'seeds = [3, 1]\n[[rows]]\nlabel = "a"\n[[rows]]\nlabel = "b"\n'
        'stages = [{ callback = "KeepSparsity", epochs = 2 }]\n'
    )
    plan = read_plan(path)
    assert plan.model == str(tmp_path / "m.keras")
    assert plan.data == str(tmp_path / "sub" / "d.npz")
    assert plan.validation is None
    assert plan.targets == ("cortex-m4", str(tmp_path / "own.toml"))
    assert plan.seeds == (3, 1)
    assert [row.label for row in plan.rows] == ["a", "b"]
    assert plan.rows[1].stages == ({"callback": "KeepSparsity", "epochs": 2},)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": []}, "at least one table"),
        ({"rows": [{"label": ""}]}, "1 to 60 printable characters"),
        ({"rows": [{"label": "a\nb"}]}, "1 to 60 printable characters"),
        ({"rows": [{"label": "a"}, {"label": "a"}]}, "different from the other rows"),
        ({"rows": [{"label": "a", "stages": ["x"]}]}, "rows[0].stages[0]` must be a table"),
        ({"seeds": [1, 1]}, "differ from one another"),
        ({"seeds": [-1]}, "seeds[0]` must be at least 0"),
        ({"seeds": ["1"]}, "seeds[0]` must be a whole number"),
        ({"epochs": 0}, "epochs` must be at least 1"),
        ({"epochs": True}, "epochs` must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate` must be above 0"),
        ({"validation_split": 1.0}, "above 0 and below 1"),
        ({"targets": []}, "at least one target"),
        ({"metric": '{"class_name": "Popen", "module": "subprocess"}'}, "name of a Keras metric"),
        ({"metric": "os:system"}, "name of a Keras metric"),
        ({"model": 3}, "model` must be text"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_plan({"rows": _ROWS, **change})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": 3}, "Did you mean epochs"),
        ({"rows": [{"label": "a", "exprt": {}}]}, "key in rows[0]` must be a known name"),
    ],
)
def test_unknown_keys_have_near_names(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        read_plan({"rows": _ROWS, **change})
    assert words in str(caught.value)


def test_file_names_no_code_and_no_other_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('data = "os:system"\n[[rows]]\nlabel = "a"\n')
    with pytest.raises(ArgumentError, match="a function is code"):
        read_plan(path)
    with pytest.raises(ArgumentError, match=r"a \.toml file"):
        read_plan(tmp_path / "plan.py")
    path.write_text("rows = [\n")
    with pytest.raises(UnreadableFileError, match="not valid TOML"):
        read_plan(path)


def test_every_row_once_before_any_a_second_time() -> None:
    plan = Plan((Row("a"), Row("b")), seeds=(4, 2))
    assert list(wanted(plan)) == [(0, 4), (1, 4), (0, 2), (1, 2)]


class TestExport:
    def test_keys_as_flags_and_as_keywords(self) -> None:
        given = {"format": "int8", "precision": "int4", "keep-float": ["head"]}
        assert export_keys(given, "export") == {
            "format": "int8", "precision": "int4", "keep_float": ["head"],
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"format": "int9"}, "Did you mean int8"),
            ({"format": 8}, "must be a known name"),
            ({"precison": "int4"}, "Did you mean precision"),
            ({"precision": 4}, "be text in quotation marks"),
            ({"output": "x"}, "must be a known name"),
            ({"import_modules": ["os"]}, "must be a known name"),
            ({"format": "compressed", "precision": "int4"}, "option of --format compressed"),
        ],
    )
    def test_wrong_ones_are_refused(self, given: dict[str, Any], words: str) -> None:
        with pytest.raises(ArgumentError) as caught:
            export_keys(given, "export")
        assert words in str(caught.value)
