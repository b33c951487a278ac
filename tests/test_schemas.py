"""The schemas of docs/ are those of the forms that files are read with, and say what these say."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import jsonschema
import pytest

from edgecompress.comparison.results import Cell, ComparisonResult, Made, Subject
from edgecompress.core import results
from edgecompress.core.forms import Fault, read
from edgecompress.recipes.results import Cost, Drop, StageResult
from edgecompress.searching.knobs import Knob
from edgecompress.searching.outcome import Point, SearchResult
from edgecompress.searching.results import Described, Job, Outcome
from edgecompress.targets.profile import TargetProfile

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[1]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas", _ROOT / "scripts" / "schemas.py")
    if spec is None or spec.loader is None:
        raise AssertionError("scripts/schemas.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["schemas"] = module
    spec.loader.exec_module(module)
    return module


_SCRIPT = _script()
_FORMS: dict[str, type] = _SCRIPT.FORMS


def test_the_files_are_what_make_schemas_writes() -> None:
    written = _SCRIPT.files()
    assert set(written) <= set((_ROOT / "docs").glob("*.schema.json"))
    for path, text in written.items():
        assert path.read_text() == text, f"{path.name} is old: run `make schemas`"


def test_fields_without_a_meaning_are_refused() -> None:
    class Other:
        """Something.

        Attributes:
            none: There is no such field.
        """

    Other.__dataclass_fields__ = {}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="describes fields that it does not have"):
        _SCRIPT.described(Other)


def _sample(node: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Returns a value with every field that a schema names."""
    if "$ref" in node:
        return _sample(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        return _sample(node["anyOf"][0], definitions)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return node["enum"][0]
    kind = node.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {k: _sample(v, definitions) for k, v in node.get("properties", {}).items()}
    if kind == "array":
        return [_sample(node["items"], definitions) for _ in range(node.get("minItems", 1))]
    if kind == "string":
        return "a" * 64
    return {"integer": 1, "number": 0.5, "boolean": True}[kind]


def _places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _places(value, (*place, key))


_GONE = object()
_VALUES: tuple[Any, ...] = (
    _GONE, None, True, 0, 1, -1, 7, 0.5, -0.5, 1.5, (1 << 64) - 1, "", "a", "b" * 64, "B" * 64,
    "../a", "/a", "a/b", "C:/a", "a\\b", "a/./b", "a//b", "a\n", "line\nline", [], ["a"], [1],
    [0.5], [-1.0, 2], [None], [[]], {}, {"a": 1}, [1] * 33, "int8", "litert",
    "measured_host",
)  # fmt: skip


def _mutants(whole: Any) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    for place in _places(whole):
        for value in _VALUES:
            mutant = copy.deepcopy(whole)
            node = mutant
            for key in place[:-1]:
                node = node[key]
            if value is not _GONE:
                node[place[-1]] = value
            else:
                del node[place[-1]]
            yield place, value, mutant


def _accepts(form: type, content: Any) -> bool:
    try:
        read(form, content, lambda fault: ValueError(fault))
    except ValueError as error:
        assert isinstance(error.args[0], Fault)
        return False
    return True


@pytest.mark.parametrize("name", ["edgecompress.bundle/1", "edgecompress.measurement/1"])
def test_the_schema_refuses_what_the_reader_refuses_and_nothing_else(name: str) -> None:
    schema = _SCRIPT.schema(name, _FORMS[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    whole = _sample(schema, schema.get("$defs", {}))
    validator = jsonschema.Draft202012Validator(schema)
    assert _accepts(_FORMS[name], whole)
    assert validator.is_valid(whole)
    # Other fields may be there.
    assert _accepts(_FORMS[name], {**whole, "more": 1})
    assert validator.is_valid({**whole, "more": 1})
    refused = 0
    for place, value, mutant in _mutants(whole):
        accepted = _accepts(_FORMS[name], mutant)
        refused += not accepted
        assert validator.is_valid(mutant) == accepted, (place, value)
    assert refused > 100


@pytest.mark.parametrize("name", ["bundle", "measurement"])
def test_files_that_are_read_keep_to_the_schema(name: str) -> None:
    path = _ROOT / "benchmarks" / "fuzz" / "corpus" / "json" / f"{name}.json"
    content = json.loads(path.read_text())
    schema = json.loads((_ROOT / "docs" / f"{name}.schema.json").read_text())
    jsonschema.validate(content, schema)
    assert _accepts(_FORMS[schema["title"]], content)


_OWN_TARGET = {
    "name": "mine", "title": "Mine", "kind": "board", "engine": "tflm", "core": "cortex-m4",
    "clock_mhz": 80, "kernels": "cmsis-nn", "flash": "512KiB", "sram": 131072,
    "external_ram": False, "soc": "x", "cpu": "y", "ram": "1MiB", "device": "z", "sources": ["s"],
    "budgets": {"max_flash": "1MiB", "max_ram": "96 kB", "max_latency": "60ms", "min_accuracy": 0.5,
                "max_file_size": "1.5k"},
    "latency": {"class": "B", "cycles_per_instruction": 1.5, "runtime": "r", "published": [
        {"round": "v1.1", "benchmark": "ad", "milliseconds": 3.5, "file": "f"}]},
    "calibration": {"instructions": 1e6, "weight_bytes": 20000, "milliseconds": 15.0},
}  # fmt: skip
# Rules on several values, on names of registries and on text, which JSON schema cannot tell.
_NOT_TOLD = {("name",), ("kind",), ("engine",), ("core",), ("kernels",), ("clock_mhz",),
             ("flash",), ("sram",)}  # fmt: skip


def test_the_schema_of_targets_refuses_what_it_can() -> None:
    schema = _SCRIPT.schema("edgecompress.target/1", TargetProfile)
    validator = jsonschema.Draft202012Validator(schema)
    for file in (_ROOT / "targets").glob("*.toml"):
        assert validator.is_valid(tomllib.loads(file.read_text())), file.name
    assert _accepts(TargetProfile, _OWN_TARGET)
    assert validator.is_valid(_OWN_TARGET)
    refused = 0
    for place, value, mutant in _mutants(_OWN_TARGET):
        if value is None:  # TOML has no such value.
            continue
        accepted = _accepts(TargetProfile, mutant)
        refused += not accepted
        if accepted or place not in _NOT_TOLD:
            assert validator.is_valid(mutant) == accepted, (place, value)
    assert refused > 100
    assert not validator.is_valid({**_OWN_TARGET, "more": 1})


def test_the_schema_of_reports_has_the_fields_and_the_names_of_the_results() -> None:
    schema = json.loads((_ROOT / "docs" / "report.schema.json").read_text())
    inner = schema["$defs"]
    for form, node, more in (
        (results.CheckResult, inner["check"], set()),
        (results.TargetResult, inner["target"], {"verdict"}),
        (results.ModelInfo, schema["properties"]["model"], set()),
        (results.ArtifactInfo, schema["properties"]["artifacts"]["items"], set()),
    ):
        names = {field.name for field in dataclasses.fields(form)}
        assert set(node["properties"]) == names | more, form
    check = inner["check"]["properties"]
    assert check["rule"]["examples"] == [*get_args(results.Rule)]
    assert check["unit"]["enum"] == [*get_args(results.Unit)]
    assert check["how_known"]["enum"] == [*get_args(results.HowKnown), None]
    assert inner["verdict"]["enum"] == [*get_args(results.Verdict)]


def test_what_compare_writes_keeps_to_its_schema() -> None:
    """Two rows: one that was made, with a number that is missing, and one that was not."""
    cells = {
        "macs": Cell(1200, "count", "computed"),
        "latency@x": Cell(None, "microseconds", reason="no clock"),
        "metric": Cell(0.5, "share", "measured_host", "tflm", 0.25, 0.75),
    }
    made = (Made(0, "a", 0, "k", cells, stages=("s",), epochs=2, file="rows/k/a.tflite"),
            Made(1, "b", 0, "", reason="no layers"))  # fmt: skip
    subject = Subject("net", "accuracy", True, 8, "a share", 2, ("note",))
    _written("comparison", ComparisonResult(subject, made, ("x",), 2, "1.0", ("argv",)).to_dict())
    _written("comparison", ComparisonResult(None, (), (), 2, "1.0").to_dict())


def test_what_search_writes_keeps_to_its_schema() -> None:
    knob = Knob("channels.share", 1.0, low=0.1)
    described = Described(
        (knob, Knob("d.kind", "a", choices=("a", "b"))), {"blocks": "no convolution"}, "accuracy",
        True, "basis", ("flash",), {"flash": 100.0}, True, 10.0, 0.5,
    )  # fmt: skip
    good = Outcome("k", "parent", 3, 0.5, 0.5, 10, {"flash": 90.0}, {"flash": -0.1}, "pass")
    points = (Point(0, Job({"channels.share": 0.5}), good),
              Point(1, Job({}), Outcome("l", "untouched", reason="no file")))  # fmt: skip
    result = SearchResult("s", described, points, points[0], points[:1], 0.5, {"d.kind": 0.1})
    _written("search", result.to_dict())
    empty = SearchResult("s", described, (), None, (), 0.0, exported={"exit_code": 3})
    _written("search", empty.to_dict())


def _written(name: str, found: dict[str, Any]) -> None:
    schema = json.loads((_ROOT / "docs" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    content = json.loads(json.dumps(found, allow_nan=False))
    validator.validate(content)
    assert content["schema"] == schema["title"]
    # Whatever it holds is described, and has to be there.
    assert set(content) == set(schema["properties"])
    for key in content:
        assert not validator.is_valid({k: v for k, v in content.items() if k != key}), key
    rows = "rows" if "rows" in content else "candidates"
    for number, row in enumerate(content[rows]):
        for key in row:
            short = copy.deepcopy(content)
            del short[rows][number][key]
            assert not validator.is_valid(short), key
            short[rows][number][key] = [[]]
            assert not validator.is_valid(short), key


def test_the_schema_of_compressions_has_the_fields_of_the_results() -> None:
    schema = json.loads((_ROOT / "docs" / "compression.schema.json").read_text())
    fields = schema["properties"]
    for form, node, more in (
        (StageResult, fields["stages"]["items"], set()),
        (Drop, fields["drop"], {"verdict"}),
        (Cost, schema["$defs"]["cost"], {"uncoded_rate", "rate"}),
    ):
        names = {field.name for field in dataclasses.fields(form)}
        assert set(node["required"]) == names | more, form
