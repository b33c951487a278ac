"""Messages and pages name only options that a command has."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import click
import pytest

from edgecompress.cli.app import app

_ROOT = Path(__file__).resolve().parents[1]
_SOURCES = sorted(
    path
    for folder in ("edgecompress", "converters", "targets")
    for path in (_ROOT / folder).rglob("*.py")
    if "demo" not in path.parts  # Has options of its own.
)
_PAGES = sorted([*(_ROOT / "docs").glob("*.md"), _ROOT / "README.md"])
# Variables of CSS are written alike.
_OPTION = re.compile(r"(?<!var\()(?<![\w-])--[a-z][a-z0-9-]+")
# Options of pip, of the app's build, of the programs in benchmarks/ that pages tell how to run, and
# of the examples of plugins.
_OTHERS = {
    "--backend", "--budget", "--bundle", "--criteria", "--distorted", "--docs", "--fashion-mnist",
    "--folds", "--force-reinstall", "--images", "--jobs", "--kinds", "--lanes", "--max-operators",
    "--mnist", "--models", "--networks", "--pairs", "--published", "--resnet", "--results",
    "--rounds", "--samplers", "--seeds", "--tag", "--tasks", "--tflm-images", "--thinness",
    "--train", "--variants", "--warmups", "--watch", "--work", "--workers",
}  # fmt: skip


@functools.cache
def _options() -> set[str]:
    context = click.Context(app)
    waiting: list[click.Command] = [app]
    names: set[str] = set()
    while waiting:
        command = waiting.pop()
        if isinstance(command, click.Group):
            found = [command.get_command(context, name) for name in command.list_commands(context)]
            waiting += [inner for inner in found if inner is not None]
        for parameter in command.get_params(context):
            names |= {*parameter.opts, *parameter.secondary_opts}
    return {name for name in names if name.startswith("--")} | {"--help", "--version"}


def _strange(text: str) -> set[str]:
    return set(_OPTION.findall(text)) - _options() - _OTHERS


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_messages_name_options_that_exist(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not _strange(node.value), f"line {node.lineno}: {node.value!r}"


@pytest.mark.parametrize("path", _PAGES, ids=lambda path: path.name)
def test_pages_name_options_that_exist(path: Path) -> None:
    assert not _strange(path.read_text())


def test_a_strange_option_would_be_seen() -> None:
    assert _strange("convert with --no-such-thing or --max-ram") == {"--no-such-thing"}
