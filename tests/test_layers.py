"""Imports go one way; this reads them from the source and says where one goes back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]

# Part -> the parts it may import. `core` is the bottom, `cli` the top.
_MAY_IMPORT = {
    "core": set(),
    "flatbuffers": {"core"},
    "engines": {"core", "flatbuffers"},
    "schedules": {"core"},
    "precisions": {"core"},
    "layers": {"core", "precisions"},
    "surgery": {"core", "precisions", "layers"},
    "criteria": {"core"},
    "patterns": {"core"},
    "callbacks": {"core", "schedules", "criteria", "patterns", "precisions", "layers", "surgery"},
    "converters": {"core", "flatbuffers", "engines", "layers"},
    "targets": {"core", "flatbuffers", "engines"},
    "reports": {"core", "flatbuffers", "targets"},
    "inspection": {"core", "flatbuffers", "converters"},
    "pipeline": {"core", "flatbuffers", "engines", "precisions", "callbacks", "converters",
                 "targets", "reports", "inspection"},
    "recipes": {"core", "flatbuffers", "engines", "schedules", "callbacks", "surgery",
                "converters", "inspection", "pipeline", "targets", "reports"},
    "cli": {"core", "pipeline", "inspection", "converters", "targets", "recipes", "reports"},
    "demo": {"core", "schedules", "callbacks", "surgery", "pipeline", "targets", "converters",
             "inspection", "precisions", "reports"},
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip


def _parts() -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for path in sorted((_ROOT / "edgecompress").rglob("*.py")):
        name = path.relative_to(_ROOT / "edgecompress").parts[0].removesuffix(".py")
        parts.setdefault(name, []).append(path)
    for folder in ("converters", "targets"):
        parts[folder] = sorted((_ROOT / folder).rglob("*.py"))
    return parts


def _imports(source: str) -> set[str]:
    """Returns the parts that a module imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from edgecompress import x` may name a part itself.
            names = [node.module]
            if node.module == "edgecompress":
                names = [f"edgecompress.{alias.name}" for alias in node.names]
        for name in names:
            if name in ("converters", "targets") or name.startswith(("converters.", "targets.")):
                found.add("top-level " + name)
            if name.startswith("edgecompress."):
                found.add(name.split(".")[1])
    return found


def test_reader_sees_every_form_of_import() -> None:
    source = (
        "import edgecompress.targets.tflm.arena\nfrom edgecompress.core import errors\n"
        "def f():\n    from edgecompress import surgery\n    import converters.int8\n"
    )
    assert _imports(source) == {"targets", "core", "surgery", "top-level converters.int8"}


def test_every_part_is_known() -> None:
    assert set(_parts()) <= set(_MAY_IMPORT)


@pytest.mark.parametrize("part", sorted(_parts()))
def test_imports_go_one_way(part: str) -> None:
    for path in _parts()[part]:
        wrong = _imports(path.read_text()) - _MAY_IMPORT[part] - {part}
        assert not wrong, f"{path.relative_to(_ROOT)} must not import {sorted(wrong)}"


def test_private_keras_names_stay_in_one_module() -> None:
    allowed = _ROOT / "edgecompress" / "core" / "keras_graph.py"
    private = ("keras.src", "._functional", "._keras_history", "._nodes", "._inbound_nodes")
    for paths in _parts().values():
        for path in paths:
            if path != allowed:
                code = path.read_text()
                assert not [p for p in private if p in code], path


def test_no_assert_statements_in_source() -> None:
    for paths in _parts().values():
        for path in paths:
            asserts = [
                n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)
            ]
            assert not asserts, f"{path}:{asserts[0].lineno if asserts else ''}"
