"""Writes the JSON schemas of docs/ from the forms that files are read with.

    make schemas

A description comes from the docstring of its class: the text before `Attributes:` describes the
object, the lines after it the fields.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from edgecompress.comparison.results import COMPARISON_SCHEMA, Made, Subject
from edgecompress.core.bundle import BUNDLE_SCHEMA, BundleFile
from edgecompress.searching.choice import Choice
from edgecompress.searching.outcome import SEARCH_SCHEMA
from edgecompress.searching.results import Described, Judged, Outcome
from edgecompress.targets.measurement_form import MEASUREMENT_SCHEMA, MeasurementForm
from edgecompress.targets.profile import TargetProfile


@dataclass(frozen=True)
class Tool:
    """What has written the file.

    Attributes:
        name: edgecompress.
        version: Its version.
        argv: The command.
    """

    name: str
    version: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """A row of a comparison that could not be made.

    Attributes:
        label: Its name.
        seed: Of everything random in it.
        reason: Why.
    """

    label: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What `edgecompress compare --json` prints and stores as compare.json.

    Fields may be added; those listed here stay as they are while the schema's number stays. Shares
    are numbers, not percent; bytes and microseconds are not rounded.

    Attributes:
        schema: edgecompress.comparison/1.
        tool: What has written it.
        subject: What is compared; null if the model was never read.
        targets: Their names.
        rows: One for each row of the plan and seed that was made or tried, by row and seed.
        missing: Those that could not be made.
        exit_code: 0 if every row was made with every seed, else 1.
    """

    schema: str
    tool: Tool
    subject: Subject | None
    targets: tuple[str, ...]
    rows: tuple[Made, ...]
    missing: tuple[Missing, ...]
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Candidate(Outcome):
    """A candidate of a search: what was made of it, or why nothing was.

    Attributes:
        number: That `--apply` takes.
        values: Knob -> value; empty for a baseline.
        fits: Whether there is a file that meets every limit.
    """

    number: int
    values: Mapping[str, bool | int | float | str]
    # Not the property of what it stems from.
    fits: bool = dataclasses.field()


@dataclass(frozen=True)
class Search:
    """What `edgecompress search --json` prints and stores as search.json.

    Fields may be added; those listed here stay as they are while the schema's number stays. Shares
    are numbers, not percent; bytes and microseconds are not rounded.

    Attributes:
        schema: edgecompress.search/1.
        tool: What has written it.
        study: Name of the study.
        space: What could be chosen, and how much of it fits.
        candidates: All that were tried, by number.
        best: Number of the one that was chosen of those that meet every limit; null if none does.
        front: Numbers of those that no other one is better than in everything.
        hypervolume: Of the front, 0 to 1.
        importance: Knob -> share of the metric's variance that it explains.
        choice: Why it was chosen; null without one.
        tested: The exported candidate on the test data; null without any.
        exported: The report of the exported candidate (report.schema.json); null without one.
        exit_code: 0 if the best candidate meets every limit, else what `export` of the nearest one
            would end with.
    """

    schema: str
    tool: Tool
    study: str
    space: Described
    candidates: tuple[Candidate, ...]
    best: int | None
    front: tuple[int, ...]
    hypervolume: float
    importance: Mapping[str, float]
    choice: Choice | None
    tested: Judged | None
    exported: Mapping[str, Any] | None
    exit_code: int


DOCS = Path(__file__).resolve().parents[1] / "docs"
FORMS: dict[str, type] = {
    BUNDLE_SCHEMA: BundleFile,
    MEASUREMENT_SCHEMA: MeasurementForm,
    "edgecompress.target/1": TargetProfile,
    COMPARISON_SCHEMA: Comparison,
    SEARCH_SCHEMA: Search,
}

# Those whose files are TOML.
TOML = (TargetProfile,)
# Those that are written, not read: all their fields are always there.
WRITTEN = (Comparison, Search)

_WIDTH = 100
# In this order, then the others.
_FIRST = ("description", "type", "required", "properties")
_FIELD = re.compile(r"^(\w+): (.*)$")
_SECTION = re.compile(r"^(Attributes|Args|Raises|Example):\n", re.MULTILINE)


class _Described(GenerateJsonSchema):
    """Adds the docstrings."""

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        found = super().dataclass_schema(schema)
        what, fields = "", dict[str, str]()
        for form in reversed(schema["cls"].__mro__):
            if dataclasses.is_dataclass(form):
                what, own = described(form)
                fields |= own
        found.pop("description", None)
        if what:
            found = {"description": what, **found}
        for name, meaning in fields.items():
            found["properties"][name] = {"description": meaning, **found["properties"][name]}
        return found


def described(form: type) -> tuple[str, dict[str, str]]:
    """Returns what a docstring says of a class, and of each of its fields."""
    sections = _SECTION.split(inspect.getdoc(form) or "")
    what, attributes = sections[0], sections[2] if len(sections) > 2 else ""
    fields: dict[str, str] = {}
    for line in inspect.cleandoc(attributes).splitlines():
        match = _FIELD.match(line)
        if match:
            name, fields[name] = match[1], match[2]
        else:
            fields[name] += " " + line.strip()
    keys = {
        field.name: field.metadata.get("alias", field.name) for field in dataclasses.fields(form)
    }
    unknown = set(fields) - set(keys)
    if unknown:
        raise ValueError(f"{form.__name__} describes fields that it does not have: {unknown}")
    return " ".join(what.split()), {keys[name]: text.strip() for name, text in fields.items()}


def _tidy(node: Any) -> Any:
    """Leaves out titles and defaults, and writes a type that may be null as one line."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if key == "properties":
            found[key] = {name: _tidy(item) for name, item in value.items()}
        # An object may have any other fields unless something is said of them.
        elif key not in ("title", "default") and (key, value) != ("additionalProperties", True):
            found[key] = _tidy(value)
    match found.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}] if "enum" not in rest:
            del found["anyOf"]
            found |= {"type": [kind, "null"], **rest}
    return {**{key: found[key] for key in _FIRST if key in found}, **found}


def _without_null(node: Any) -> Any:
    """Returns the schema of a TOML file, where what is null in the program is left out."""
    if isinstance(node, list):
        return [_without_null(item) for item in node if item not in ({"type": "null"}, "null")]
    if not isinstance(node, dict):
        return node
    found = {key: _without_null(value) for key, value in node.items()}
    match found:
        case {"anyOf": [only]}:
            del found["anyOf"]
            found |= only
        case {"type": [only]}:
            found["type"] = only
    if isinstance(found.get("description"), str):
        text = re.sub(r"\bNone\b", "left out", found["description"])
        found["description"] = text.replace(". left", ". Left")
    return found


def _always(node: Any) -> Any:
    """Returns the schema of a written file: every field that it names is there."""
    if isinstance(node, list):
        return [_always(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _always(value) for key, value in node.items()}
    if isinstance(found.get("description"), str):
        found["description"] = re.sub(r"\bNone\b", "null", found["description"])
    if isinstance(found.get("properties"), dict):
        found["required"] = list(found["properties"])
    return {**{key: found[key] for key in _FIRST if key in found}, **found}


def schema(name: str, form: type) -> dict[str, Any]:
    """Returns the JSON schema of a form; its name ends in the version: `edgecompress.bundle/1`."""
    content = _tidy(TypeAdapter(form).json_schema(schema_generator=_Described))
    if form in TOML:
        content = _without_null(content)
    if form in WRITTEN:
        content = _always(content)
    inner = content.pop("$defs", {})
    root = inner.pop(content["$ref"].rpartition("/")[2]) if "$ref" in content else content
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:" + name.replace(".", ":").replace("/", ":"),
        "title": name,
        **root,
        **({"$defs": inner} if inner else {}),
    }


def text(node: Any, indent: int = 0) -> str:
    """Returns the JSON text of a schema: what fits into a line stands in one."""
    short = json.dumps(node)
    if len(short) + indent < _WIDTH or not isinstance(node, (dict, list)):
        return short
    pad = " " * (indent + 2)
    if isinstance(node, list):
        return "[\n" + ",\n".join(pad + text(n, indent + 2) for n in node) + f"\n{' ' * indent}]"
    lines = [f"{pad}{json.dumps(k)}: {text(v, indent + 2)}" for k, v in node.items()]
    return "{\n" + ",\n".join(lines) + f"\n{' ' * indent}}}"


def files() -> dict[Path, str]:
    """Returns the files of docs/ and what they must hold."""
    return {
        DOCS / f"{name.partition('.')[2].partition('/')[0]}.schema.json": text(schema(name, form))
        + "\n"
        for name, form in FORMS.items()
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
