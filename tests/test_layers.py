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
    "precisions": {"core", "engines"},
    "layers": {"core", "precisions"},
    "surgery": {"core", "costs", "precisions", "layers"},
    "post_training": {"core", "precisions"},
    "training": {"core"},
    "variational": {"core"},
    "costs": {"core"},
    "criteria": {"core"},
    "patterns": {"core"},
    "callbacks": {"core", "schedules", "costs", "criteria", "patterns", "precisions", "layers",
                  "surgery", "training", "variational"},
    "baselines": {"core", "criteria", "patterns", "surgery", "callbacks", "inspection"},
    "converters": {"core", "flatbuffers", "engines", "precisions", "post_training", "layers"},
    "simulation": {"core", "flatbuffers", "precisions", "converters"},
    "targets": {"core", "flatbuffers", "engines"},
    "reports": {"core", "flatbuffers", "targets"},
    "inspection": {"core", "flatbuffers", "costs", "converters"},
    "pipeline": {"core", "flatbuffers", "engines", "precisions", "costs", "callbacks", "converters",
                 "targets", "reports", "inspection"},
    "recipes": {"core", "flatbuffers", "engines", "schedules", "criteria", "patterns",
                "precisions", "callbacks", "surgery",
                "training", "converters", "inspection", "pipeline", "targets", "reports"},
    "comparison": {"core", "engines", "schedules", "costs", "precisions", "surgery", "baselines",
                   "training", "converters", "pipeline", "recipes", "targets", "reports"},
    "searching": {"core", "flatbuffers", "engines", "schedules", "precisions", "costs", "criteria",
                  "callbacks", "surgery", "training", "baselines", "converters", "pipeline",
                  "targets", "reports", "recipes"},
    "cli": {"core", "flatbuffers", "pipeline", "inspection", "converters", "targets", "recipes",
            "comparison", "searching", "reports"},
    "demo": {"core", "engines", "schedules", "callbacks", "surgery", "pipeline", "targets",
             "converters", "inspection", "precisions", "reports"},
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


def test_every_part_is_known_and_has_files() -> None:
    """The tests below say nothing of a folder that they do not find."""
    assert set(_parts()) == set(_MAY_IMPORT)
    assert all(_parts().values())


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


def _limit(path: Path) -> int:
    return 300 if path.is_relative_to(_ROOT / "edgecompress" / "cli") else 600


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(_ROOT))
        for paths in _parts().values()
        for path in paths
        if len(path.read_text().splitlines()) > _limit(path)
    }
    assert not long, "split along a seam"


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    parts = parts if parts[0] == "edgecompress" else ("edgecompress", *parts)
    return ".".join(parts).removesuffix(".__init__")


def _imported_at_once(source: str, known: set[str]) -> set[str]:
    """Returns the known modules that importing a file imports; those in functions come later."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
                # A package whose submodule is named is imported as well, but asked for nothing.
                found.update(inner if len(inner) == len(node.names) else {node.module, *inner})
            for part in ("body", "orelse", "finalbody"):
                walk(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                walk(handler.body)

    walk(ast.parse(source).body)
    return found & known


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the modules of one circle of imports; none where there is none."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph[name]):
            found = follow(other, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := follow(name, []))), [])


def test_the_search_finds_circles_and_what_makes_them() -> None:
    known = {"a", "b", "a.c"}
    assert _imported_at_once("import a\ndef f():\n    import b\n", known) == {"a"}
    assert _imported_at_once("from a import c\nfrom b import x\n", known) == {"a.c", "b"}
    assert (
        _imported_at_once("if TYPE_CHECKING:\n    import a\nelse:\n    import b\n", known) == set()
    )
    assert _circle({"a": {"b"}, "b": {"a.c"}, "a.c": set()}) == []
    assert _circle({"a": {"b"}, "b": {"a.c"}, "a.c": {"b"}}) == ["b", "a.c"]


def test_no_circles_of_files() -> None:
    files = {_module(path): path for paths in _parts().values() for path in paths}
    graph = {
        name: _imported_at_once(path.read_text(), {*files}) - {name} for name, path in files.items()
    }
    circle = _circle(graph)
    assert not circle, " imports ".join([*circle, *circle[:1]])
