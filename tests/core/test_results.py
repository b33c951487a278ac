"""Verdicts, exit codes, and the JSON form that scripts rely on."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest

from edgecompress.core import results
from edgecompress.core.results import (
    ArtifactInfo,
    CheckResult,
    ModelInfo,
    Report,
    TargetResult,
    judge,
    worst_verdict,
)
from edgecompress.core.sensitivity import KeptLayers, LayerDamage, Sensitivity

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_SCHEMA = json.loads((_DOCS / "report.schema.json").read_text())
_MODEL = ModelInfo("m_int8.tflite", "a" * 64, 98496, 61234, 12501632, 77000, {"CONV_2D": 9})

# One check with every field away from its default.
_FULL = CheckResult(
    rule="latency",
    verdict="uncertain",
    measured=281000.0,
    low=210750.0,
    high=351250.0,
    limit=300000.0,
    unit="microseconds",
    how_known="predicted",
    detail={"class": "A", "operators": [1, 2]},
    reason="The limit lies inside the band.",
)


def _check(rule: Any, verdict: Any) -> CheckResult:
    return CheckResult(rule, verdict, reason="because" if verdict != "pass" else None)


def _report(*checks: CheckResult, **rest: Any) -> Report:
    return Report(
        _MODEL, (TargetResult("board", checks),), ("edgecompress", "check"), "1.2", **rest
    )


def _valid(data: Any) -> bool:
    return jsonschema.Draft202012Validator(_SCHEMA).is_valid(data)


@pytest.mark.parametrize(
    ("low", "high", "limit", "verdict"),
    [
        (90, 110, 100, "uncertain"),
        (90, 100, 100, "pass"),
        (100, 110, 100, "uncertain"),
        (101, 110, 100, "fail"),
        (100, 100, 100, "pass"),
        (5, 5, None, "not_applicable"),
        (0, 0, 0, "pass"),
        (1, 1, 0, "fail"),
        (float("nan"), float("nan"), 100, "uncertain"),
    ],
)
def test_judge_a_ceiling(low: float, high: float, limit: float | None, verdict: str) -> None:
    assert judge(low, high, limit) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.8, 0.94, "fail"), (0.94, 0.96, "uncertain"), (0.95, 0.95, "pass"), (0.96, 1.0, "pass")],
)
def test_judge_a_floor(low: float, high: float, verdict: str) -> None:
    assert judge(low, high, 0.95, at_least=True) == verdict


def test_worst_verdict_is_the_first_of_this_order() -> None:
    order = ["fail", "uncertain", "not_measured", "pass", "not_applicable"]
    assert set(order) == set(get_args(results.Verdict))
    for better, worse in itertools.combinations(reversed(order), 2):
        assert worst_verdict([better, worse]) == worst_verdict([worse, better]) == worse  # type: ignore[list-item]
    assert worst_verdict([]) == "not_applicable"


def test_verdicts_rise_from_check_to_report() -> None:
    good = TargetResult("good", (_check("arena", "pass"), _check("energy", "not_applicable")))
    open_ = TargetResult("open", (_check("arena", "pass"), _check("latency", "not_measured")))
    assert (good.verdict, open_.verdict) == ("pass", "not_measured")
    assert Report(_MODEL, (good, open_), (), "").verdict == "not_measured"
    assert Report(_MODEL, (), (), "").verdict == "not_applicable"


# Written out again on purpose: users' scripts know these numbers.
_CODES = {"operators": 5, "accuracy": 4, "parity": 4, "file_size": 3, "flash": 3, "arena": 3,
          "latency": 3, "energy": 3}  # fmt: skip


def test_a_failed_rule_of_a_plugin_is_over_budget() -> None:
    mine = CheckResult("my_rule", "fail", 2, 2, 2, 1, "number", "computed", reason="2 are too many")
    assert results.exit_code([mine]) == 3
    assert results.exit_code([mine, _check("accuracy", "fail")]) == 3
    assert results.exit_code([mine, _check("operators", "fail")]) == 5


@pytest.mark.parametrize("rule", get_args(results.Rule))
def test_exit_code_of_every_rule(rule: Any) -> None:
    assert _report(_check(rule, "fail")).exit_code == _CODES[rule]
    for verdict in set(get_args(results.Verdict)) - {"fail"}:
        # Nobody set a limit.
        assert _report(_check(rule, verdict)).exit_code == 0


@pytest.mark.parametrize(
    "pair", list(itertools.combinations(get_args(results.Rule), 2)), ids="-".join
)
def test_exit_code_of_several_failures_goes_5_then_3_then_4(pair: tuple[Any, Any]) -> None:
    codes = {_CODES[rule] for rule in pair}
    expected = 5 if 5 in codes else 3 if 3 in codes else 4
    first, second = (_check(rule, "fail") for rule in pair)
    assert _report(first, second).exit_code == expected
    # Also over two targets, in the other order.
    targets = (TargetResult("a", (second,)), TargetResult("b", (first,)))
    assert Report(_MODEL, targets, (), "").exit_code == expected


@pytest.mark.parametrize("rule", get_args(results.Rule))
@pytest.mark.parametrize(
    ("verdict", "code"),
    [("pass", 0), ("not_applicable", 0), ("uncertain", 6), ("not_measured", 6)],
)
def test_a_limit_that_cannot_be_decided_ends_with_6(rule: Any, verdict: Any, code: int) -> None:
    check = CheckResult(rule, verdict, limit=1, reason="because")
    report = _report(_check("file_size", "pass"), check)
    assert (report.exit_code, report.exit_code_for(False), report.exit_code_for(True)) == (
        code, code, 0,
    )  # fmt: skip
    names = [f"{rule} on board"] if code else []
    assert list(report.undecided_limits) == names
    assert len(report.to_dict()["undecided"]) == len(names)
    assert report.verdict == (verdict if code else "pass")
    # On any target, in any place.
    both = Report(_MODEL, (TargetResult("a", (_check(rule, "pass"),)), *report.targets), (), "")
    assert both.exit_code == code


@pytest.mark.parametrize("failed", get_args(results.Rule))
@pytest.mark.parametrize("verdict", ["uncertain", "not_measured"])
def test_what_failed_decides_before_what_is_undecided(failed: Any, verdict: Any) -> None:
    open_ = CheckResult("operators", verdict, limit=0, unit="operators", reason="because")
    for checks in ((open_, _check(failed, "fail")), (_check(failed, "fail"), open_)):
        report = _report(*checks)
        assert report.exit_code == _CODES[failed]
        assert report.exit_code_for(allow_undecided=True) == _CODES[failed]
        assert report.undecided_limits == ("operators on board",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "Top speed"}, "rule must be a name"),
        ({"verdict": "maybe"}, "verdict must be one of"),
        ({"unit": "ms"}, "unit must be one of"),
        ({"how_known": "guessed"}, "how_known must be one of"),
        ({"reason": None}, "needs a reason"),
        ({"reason": ""}, "needs a reason"),
        ({"how_known": None}, "must say how it is known"),
    ],
)
def test_checks_that_contradict_themselves(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_FULL, **change)


def test_check_survives_json_with_every_field() -> None:
    for item in dataclasses.fields(CheckResult):
        if item.default is not dataclasses.MISSING:
            assert getattr(_FULL, item.name) != item.default, item.name
        elif item.default_factory is not dataclasses.MISSING:
            assert getattr(_FULL, item.name) != item.default_factory(), item.name
    data = json.loads(json.dumps(_FULL.to_dict()))
    assert set(data) == {item.name for item in dataclasses.fields(CheckResult)}
    assert CheckResult.from_dict(data) == _FULL


def test_target_survives_json() -> None:
    target = TargetResult("board", (_FULL, _check("arena", "pass")))
    data = json.loads(json.dumps(target.to_dict()))
    assert data["verdict"] == "uncertain"
    assert TargetResult.from_dict(data) == target


def test_fields_of_a_later_version_are_left_out() -> None:
    assert CheckResult.from_dict({**_FULL.to_dict(), "added_later": 1}) == _FULL


# --- the published schema -----------------------------------------------------------------------


def _full_report() -> Report:
    return _report(
        _FULL,
        _check("energy", "not_measured"),
        CheckResult("arena", "pass", np.int64(54996), 54996, 54996, 655360, how_known="computed",
                    detail={"shape": (1, 2), "worst": np.float32(0.5), "db": float("inf")}),
        artifacts=(ArtifactInfo("m_int8.tflite", "int8", 98496, "b" * 64, ("a note",)),),
        notes=("Layer 'head' was skipped.",),
        sensitivity=Sensitivity(
            (LayerDamage("head", ("FULLY_CONNECTED",), np.float64(31.5), 0.8, None),),
            100,
            KeptLayers("", (), 0.8, False, 4096),
        ),
    )  # fmt: skip


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(_SCHEMA)


def test_schema_names_what_the_types_name() -> None:
    check = _SCHEMA["$defs"]["check"]["properties"]
    assert tuple(check["rule"]["examples"]) == get_args(results.Rule)
    assert tuple(_SCHEMA["$defs"]["verdict"]["enum"]) == get_args(results.Verdict)
    assert tuple(check["unit"]["enum"]) == get_args(results.Unit)
    assert tuple(check["how_known"]["enum"]) == (*get_args(results.HowKnown), None)
    assert _SCHEMA["properties"]["schema"]["const"] == results.REPORT_SCHEMA
    for described, cls in (
        (_SCHEMA["$defs"]["check"], CheckResult),
        (_SCHEMA["properties"]["model"], ModelInfo),
        (_SCHEMA["properties"]["artifacts"]["items"], ArtifactInfo),
    ):
        assert set(described["properties"]) == {f.name for f in dataclasses.fields(cls)}


def test_schema_describes_every_key_of_a_report() -> None:
    assert set(_full_report().to_dict()) == set(_SCHEMA["properties"])


def test_reports_are_valid() -> None:
    full = json.loads(_full_report().to_json())
    jsonschema.validate(full, _SCHEMA)
    assert full["targets"][0]["checks"][2]["detail"] == {"shape": [1, 2], "worst": 0.5, "db": None}
    plain = json.loads(_report(_check("arena", "pass")).to_json())
    jsonschema.validate(plain, _SCHEMA)
    assert "artifacts" not in plain and "notes" not in plain


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("verdict"),
        lambda d: d.pop("model"),
        lambda d: d.update(schema="edgecompress.report/2"),
        lambda d: d.update(verdict="maybe"),
        lambda d: d.update(targets={}),
        lambda d: d["tool"].update(argv="edgecompress check"),
        lambda d: d["model"].update(sha256="abc"),
        lambda d: d["model"].update(file_bytes=98.5),
        lambda d: d["model"].update(macs=-1),
        lambda d: d["model"].update(operators={"CONV_2D": 0}),
        lambda d: d["targets"][0].pop("checks"),
        lambda d: d["targets"][0]["checks"][0].pop("limit"),
        lambda d: d["targets"][0]["checks"][0].update(rule="Top speed"),
        lambda d: d["targets"][0]["checks"][0].update(unit="ms"),
        lambda d: d["targets"][0]["checks"][0].update(measured="281 ms"),
        lambda d: d["targets"][0]["checks"][0].update(how_known="guessed"),
        lambda d: d["targets"][0]["checks"][0].update(how_known=None),
        lambda d: d["targets"][0]["checks"][0].update(reason=None),
        lambda d: d["artifacts"][0].pop("bytes"),
        lambda d: d.update(notes="one"),
        lambda d: d["sensitivity"]["layers"][0].pop("operators"),
        lambda d: d["sensitivity"]["base"].update(how="bfloat16"),
    ],
)
def test_broken_reports_are_not(spoil: Any) -> None:
    data = json.loads(_full_report().to_json())
    assert _valid(data)
    broken = copy.deepcopy(data)
    spoil(broken)
    assert not _valid(broken)


def test_json_text_has_no_nan_and_ends_in_a_newline() -> None:
    text = _full_report().to_json()
    assert text.endswith("}\n") and "NaN" not in text and "Infinity" not in text


def _example() -> dict[str, Any]:
    text = (_DOCS / "reading_the_report.md").read_text()
    return json.loads(text.split("```json\n")[1].split("```")[0])


def test_example_in_the_documentation_is_a_report() -> None:
    data = _example()
    jsonschema.validate(data, _SCHEMA)
    targets = tuple(TargetResult.from_dict(target) for target in data["targets"])
    report = Report(
        ModelInfo(**data["model"]),
        targets,
        tuple(data["tool"]["argv"]),
        data["tool"]["version"],
        tuple(ArtifactInfo(**{**a, "notes": tuple(a["notes"])}) for a in data["artifacts"]),
        tuple(data["notes"]),
    )
    # Verdicts are derived, so this also tells whether the example judges right.
    assert report.to_dict() == data
    assert report.exit_code == 3
    for check in targets[0].checks:
        if check.low is not None and check.high is not None:
            assert (
                judge(check.low, check.high, check.limit, at_least=check.is_floor) == check.verdict
            )


def test_documentation_names_every_rule_verdict_and_origin() -> None:
    text = (_DOCS / "reading_the_report.md").read_text()
    for literal in (results.Rule, results.Verdict, results.HowKnown):
        for name in get_args(literal):
            assert f"| `{name}` |" in text, name
    for unit in get_args(results.Unit):
        assert re.search(rf"\| [^|]*\b{unit}\b", text), unit
