"""The pages of docs/ say what is so: their code runs, their links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PAGES = sorted([*(_ROOT / "docs").glob("*.md"), *_ROOT.glob("*.md")])
# Pages whose Python blocks, run one after the other, make a whole program.
_PROGRAMS = (
    "binary_and_ternary",
    "budgets",
    "cheaper_blocks",
    "compare",
    "deep_compression",
    "distillation",
    "finalize",
    "getting_started",
    "group_lasso",
    "low_rank",
    "pruning",
    "qat",
    "search",
    "quantization",
    "sepnet",
    "variational",
    "weight_clustering",
)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.docs
@pytest.mark.parametrize("name", [n for n in _PROGRAMS if n != "getting_started"])
def test_program_runs(name: str, tmp_path: Path, run_python: Run) -> None:
    blocks = _blocks(_ROOT / "docs" / f"{name}.md", "python")
    assert blocks
    result = run_python(["-P", "-c", "\n".join(blocks)], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.docs
def test_getting_started_runs_to_the_verdict(tmp_path: Path, run_python: Run) -> None:
    page = _ROOT / "docs" / "getting_started.md"
    result = run_python(["-P", "-c", "\n".join(_blocks(page, "python"))], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    shrunk, verdict = result.stdout.strip().splitlines()
    before, after = map(int, re.findall(r"\d+", shrunk))
    assert after < before
    # The phone is not attached, but nobody has set a limit to its latency.
    assert verdict == "pass 0"

    # Who exports from Python alone finds the file that the commands below name.
    checked = re.findall(r"edgecompress (?:check|inspect) (\S+)", page.read_text())
    assert len(checked) == 3
    assert all((tmp_path / path).is_file() for path in checked)

    (tmp_path / "my-board.toml").write_text(_blocks(page, "toml")[0])
    shell = "\n".join(_blocks(page, "sh")).replace("\\\n", " ")
    commands = [line for line in shell.splitlines() if line.startswith("edgecompress ")]
    assert len(commands) == 5
    program = Path(sys.executable).with_name("edgecompress")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    for command in commands:
        words = [program, *command.split()[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


# --- how small it gets --------------------------------------------------------------------------


def _row(text: str, name: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(name)} \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in row.strip("| ").split("|")]


def _span(values: list[float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _whole_span(values: list[float]) -> str:
    low, high = (f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


@pytest.mark.parametrize(
    ("name", "variant", "title"),
    [
        ("lenet-300-100", "taught", "LeNet-300-100 on 20 x 20 pixels"),
        ("lenet-300-100", "labels", "LeNet-300-100 on 20 x 20 pixels, no teachers"),
        ("lenet-5", "taught", "LeNet-5"),
        ("lenet-5", "labels", "LeNet-5, no teachers"),
    ],
)
def test_the_readme_has_the_measured_table_and_what_it_costs(
    name: str, variant: str, title: str
) -> None:
    page = (_ROOT / "docs" / "deep_compression.md").read_text()
    starts = [f"| {name}, {seed}, {variant} |" for seed in range(3)]
    rows = [re.findall(rf"^{re.escape(s)}(.*)\|$", page, re.M)[0].split("|") for s in starts]
    numbers = [[float(re.sub(r"[^\d.]", "", cell)) for cell in row] for row in rows]
    size, wrong, _, arena, decoded, plain, decoding = map(list, zip(*numbers, strict=True))
    cells = _row((_ROOT / "README.md").read_text(), title)
    assert cells[2] == f"{_span([c / 1000 for c in size], 2)} KB"
    assert cells[4] == f"{_span(wrong, 2)} %"
    assert cells[5] == f"{_whole_span(arena)} B, {_whole_span(decoded)} B"
    assert cells[6] == f"{_span(plain, 1)} ms, {_span(decoding, 1)} ms"


def test_the_readme_says_what_network_was_measured() -> None:
    module = runpy.run_path(str(_ROOT / "benchmarks" / "mnist_networks.py"))
    network = module["NETWORKS"]["lenet-300-100"]()
    _, height, width, _ = network.layers[0].output.shape
    # What the paper's network has: it reads the whole image.
    whole = sum(inputs * units + units for inputs, units in ((784, 300), (300, 100), (100, 10)))
    told = f"{height} x {width}", f"{network.count_params():,}", f"{whole:,}"
    assert told == ("20 x 20", "151,410", "266,610")
    for page in ("README.md", "docs/deep_compression.md"):
        text = (_ROOT / page).read_text()
        assert all(fact in text for fact in told), page
        # Settings that were tried on the test images.
        assert re.search(r"some ten\s+(settings|of them)", text), page


def test_the_readme_shows_a_report_and_the_two_commands() -> None:
    text = (_ROOT / "README.md").read_text()
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    script = runpy.run_path(str(_ROOT / "scripts" / "report_picture.py"))
    assert _ROOT / picture == script["PICTURE"]
    assert _size(_ROOT / picture) == tuple(round(script["SCALE"] * side) for side in script["SIZE"])
    assert re.findall(r"^make \w+", text, re.MULTILINE) == ["make demo", "make test"]
    rules = set(re.findall(r"^([a-z][\w-]*)(?: [a-z-]+)*:", (_ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test"} <= rules


def test_the_readme_has_every_format() -> None:
    from edgecompress import converters  # noqa: F401  Formats register as they are imported.
    from edgecompress.converters.formats import FORMATS

    text = (_ROOT / "README.md").read_text()
    table = text[text.index("| `--format` |") : text.index("## How small")]
    named = re.findall(r"^\| \[?`([a-z][a-z0-9-]*)`", table, re.MULTILINE)
    assert sorted(named) == sorted(FORMATS)


def _size(picture: Path) -> tuple[int, ...]:
    """Returns width and height of a PNG in pixels."""
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


def test_the_picture_is_what_a_browser_draws(tmp_path: Path) -> None:
    script = runpy.run_path(str(_ROOT / "scripts" / "report_picture.py"))
    if (program := script["browser"]()) is None:
        pytest.skip(f"none of {', '.join(script['BROWSERS'])} is installed")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text("<body style='margin:0;background:#0000ff'>")
    script["draw"](program, page, picture, (200, 100))
    assert _size(picture) == (300, 150)
    from PIL import Image

    with Image.open(picture) as image:
        assert set(image.convert("RGB").get_flattened_data()) == {(0, 0, 255)}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_dead_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[there](nowhere.md)")
    with pytest.raises(AssertionError, match=r"nowhere\.md"):
        test_links_lead_somewhere(page)


# --- names of the code ---------------------------------------------------------------------------

_PACKAGES = {path.name: path for path in (_ROOT / "edgecompress").iterdir() if path.is_dir()}
_PACKAGES |= {name: _ROOT / name for name in ("converters", "targets")}


def _unknown_names(text: str) -> set[str]:
    """Returns the dotted names, paths and registries that a page mentions and the code lacks."""
    unknown = set()
    for name in re.findall(r"`([a-z_0-9]+(?:\.\w+)+)`", text):
        package, *rest = name.split(".")
        if package == "edgecompress":
            package, *rest = rest or [""]
        if package not in _PACKAGES:
            continue
        path = _PACKAGES[package]
        while rest and (path / rest[0]).is_dir():
            path /= rest.pop(0)
        source = path / (f"{rest.pop(0)}.py" if rest and (path / f"{rest[0]}.py").is_file()
                         else "__init__.py")  # fmt: skip
        if rest and not re.search(rf"\b{rest[0]}\b", source.read_text()):
            unknown.add(name)
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text):
        if name.split("/")[0] in ("edgecompress", "converters", "targets", "tests", "benchmarks",
                                  "scripts") and not (_ROOT / name).exists():  # fmt: skip
            unknown.add(name)
    code = "".join(p.read_text() for folder in _PACKAGES.values() for p in folder.rglob("*.py"))
    registries = set(re.findall(r"^([A-Z_]+): Registry\[", code, re.MULTILINE))
    words = set(re.findall(r"\b[A-Z]{4,}S\b|\bCRITERIA\b", text))
    return unknown | {word for word in words - registries if word.title() not in ("Macs",)}


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_pages_about_the_code_name_what_is_there(page: str) -> None:
    assert _unknown_names((_ROOT / page).read_text()) == set()


def test_a_name_that_is_gone_would_be_seen() -> None:
    text = "`core.nowhere`, `targets/nowhere.py`, `pipeline.build`, `FORMATS`, NOWHERES"
    assert _unknown_names(text) == {"core.nowhere", "targets/nowhere.py", "NOWHERES"}


# --- tables of options ----------------------------------------------------------------------------

_TABLES = runpy.run_path(str(_ROOT / "scripts" / "option_tables.py"))


@pytest.mark.parametrize("page", _TABLES["pages"](), ids=lambda page: page.name)
def test_tables_of_options_are_what_the_commands_have(page: Path) -> None:
    text = page.read_text()
    assert _TABLES["page"](text) == text, "run scripts/option_tables.py"


def test_every_option_of_every_command_stands_in_one_table_of_the_guide() -> None:
    text = (_ROOT / "docs" / "command_line.md").read_text()
    names = re.findall(r"<!-- options: ([a-z, ]+) -->", text)
    tables = {name: _TABLES["table"](name.split(", ")) for name in names}
    of = {command: tables[group] for group in names for command in group.split(", ")}
    shared = tables[", ".join(_TABLES["SHARED"])]
    for name, command in _TABLES["commands"]():
        for row in _TABLES["rows"](command):
            cell = f"| `{row.flags}` |"
            lines = [line for line in of[name].splitlines() if line.startswith(cell)]
            lines += [line for line in shared.splitlines() if line.startswith(cell)]
            assert any(row.text in line for line in lines), f"{name} {row.flags}"


def test_a_changed_option_and_an_unknown_one_would_be_seen() -> None:
    text = (_ROOT / "docs" / "command_line.md").read_text()
    stale = text.replace("| `--max-ram SIZE` |", "| `--max-memory SIZE` |")
    assert stale != text
    assert _TABLES["page"](stale) == text
    with pytest.raises(ValueError, match="no --no-such of export"):
        _TABLES["page"]("<!-- options: export; --no-such -->\n<!-- end -->")
