"""Names from files reach no terminal and no page as anything but text on one line."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.text import Text

from edgecompress import cli
from edgecompress.cli import console
from edgecompress.core.tables import Column, print_table
from edgecompress.core.terminal import SafeConsole, safe_text, shown
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite

# Clears the screen, forges a line, sets the window's title, C1, turns text round, hides, markup.
_EVIL = (
    "a\x1b[2J\nVerdict: FORGED\r\x1b]0;title\x07\x9b31m\u202egnp\u2066\u200f\u061c\x85"
    "\u2028\x00\x7f\u200b\ufeff\t[bold red]x[/red][/] :skull: \\"
)
_OWN = """
name = "my-board"
title = %s
kind = "board"
engine = "tflm"
sources = [%s]
core = "cortex-m4"
kernels = "cmsis-nn"
clock_mhz = 80
flash = "512KiB"
sram = "128KiB"
"""


def _check(text: str) -> None:
    """Every character is printable or ends a line, and no line is forged."""
    bad = sorted({c for c in text if not c.isprintable() and c != "\n"})
    assert not bad, bad
    assert not [line for line in text.splitlines() if line.strip().startswith("Verdict: FORGED")]
    assert "FORGED" in text


def test_what_is_escaped() -> None:
    assert shown("plain \u00e9 \u65e5\u672c [x] \\n") == "plain \u00e9 \u65e5\u672c [x] \\n"
    assert shown("\x1b\n\x9b\u202e\ud800\udc80\U000e0041") == (
        "\\x1b\\n\\x9b\\u202e\\ud800\\udc80\\U000e0041"
    )
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F),
                 *range(0x2066, 0x206A), 0x2028, 0x2029, 0xFEFF, 0xDC80):  # fmt: skip
        assert shown(chr(code)).isascii() and shown(chr(code)).startswith("\\"), hex(code)


def test_styles_stay_with_their_text() -> None:
    text = Text.assemble(("a\nb", "bold"), "\x1b", ("c\u202e", "red"), style="dim")
    safe = safe_text(text)
    assert safe.plain == "a\\nb\\x1bc\\u202e" and safe.style == "dim"
    spans = [(safe.plain[s.start : s.end], s.style) for s in safe.spans]
    assert spans == [("a\\nb", "bold"), ("c\\u202e", "red")]


@pytest.mark.parametrize("terminal", [False, True])
def test_consoles(terminal: bool) -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=terminal, color_system=None, width=300)
    console.print(_EVIL)
    console.print(Text(_EVIL))
    console.print(Text.assemble("x ", (_EVIL, "none")))
    print_table(console, [Column(""), Column("", left=True)], [[_EVIL, Text(_EVIL)]], [_EVIL, ""])
    _check(file.getvalue())
    assert "[bold red]x[/red]" in file.getvalue() and ":skull:" in file.getvalue()


def test_texts_inside_of_other_things() -> None:
    from rich.panel import Panel

    file = io.StringIO()
    SafeConsole(file=file, width=300).print(Panel(Text(_EVIL.replace("\n", ""))))
    _check(file.getvalue())


@pytest.fixture
def evil(tiny: Path, tmp_path: Path) -> Path:
    """A folder with an evil name, a model whose every name is evil, and a board with evil texts."""
    model = unpack((tiny / "classifier_int8.tflite").read_bytes())
    for tensor in model.subgraphs[0].tensors:
        tensor.name = _EVIL
    model.description = _EVIL
    model.subgraphs[0].name = _EVIL
    # One operator that nobody has: reasons name it.
    operator = model.subgraphs[0].operators[-1]
    code = model.operatorCodes[operator.opcodeIndex]
    code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, _EVIL
    folder = tmp_path / _EVIL.replace("\0", "").replace("/", "")
    folder.mkdir()
    (folder / "m\n.tflite").write_bytes(pack(model))
    assert read_tflite(folder / "m\n.tflite").operators[-1].name == _EVIL
    text = json.dumps(_EVIL)
    (folder / "own\x1b.toml").write_text(_OWN % (text, text))
    return folder


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    found = capsys.readouterr()
    return code, found.out, found.err


def test_commands(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, board = str(evil / "m\n.tflite"), str(evil / "own\x1b.toml")
    code, out, err = _run(capsys, "inspect", model)
    assert code == 0
    _check(out)
    _check(err.replace("Reading m\\n.tflite", "Reading FORGED"))
    code, out, err = _run(capsys, "check", model, "-t", board, "-t", "pixel-8", "-t", "cortex-m4")
    assert code == 5
    _check(out)
    code, out, _ = _run(capsys, "targets", board)
    assert code == 0
    _check(out)
    for command in (["inspect", model], ["check", model, "-t", board], ["targets", board]):
        _, out, _ = _run(capsys, *command, "--json")
        assert out.isascii() and out.replace("\n", "").isprintable()
        assert "FORGED" in json.dumps(json.loads(out))


def test_errors_and_tracebacks(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["inspect", str(evil / "none.tflite")],
        ["check", str(evil / "m\n.tflite"), "-t", _EVIL],
        [_EVIL],
        ["check", str(evil / "m\n.tflite"), "-t", "host", f"--{_EVIL}"],
        ["bench", str(evil), "--host"],
    ):
        code, out, err = _run(capsys, *arguments)
        assert code in (1, 2) and not out
        _check(err)
        errors = [line for line in err.splitlines() if not line.startswith("[")]
        assert len(errors) == 1 and errors[0].startswith("edgecompress: ")
    _, _, err = _run(capsys, "inspect", str(evil / "none.tflite"), "--verbose")
    _check(err)


def test_pages(evil: Path, tmp_path: Path) -> None:
    from edgecompress.pipeline import check
    from edgecompress.reports.html import page_environment, render_html

    report = check(evil / "m\n.tflite", ["cortex-m4", str(evil / "own\x1b.toml")])
    page = render_html(report)
    assert "FORGED" in page
    assert not [c for c in page if not c.isprintable() and c != "\n"]
    assert "<b>" not in page_environment().from_string("{{ x }}").render(x="<b>\x1b")
    assert page_environment().from_string("{{ x }}").render(x="<b>\x1b") == "&lt;b&gt;\\x1b"


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spinner and the bar write through a descriptor of their own."""
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with console.progress_of(False) as tell:
            tell(_EVIL)
        with console.training_progress(False) as (tell, on_epoch):
            tell(_EVIL)
            on_epoch(type("Epoch", (), {"text": _EVIL, "epoch": 1, "epochs": 2})())
        terminal.flush()
        text = os.read(leader, 1 << 20).decode()
    os.close(leader)
    for wrong in ("\x1b[2J", "\x1b]0", "\x9b", "\u202e", "\u2066", "\x07", "\nVerdict"):
        assert wrong not in text, repr(wrong)


def test_c_sources(evil: Path) -> None:
    """A name can end no comment and continue none."""
    from edgecompress.converters.c_array import generate

    model = unpack((evil / "m\n.tflite").read_bytes())
    code = model.operatorCodes[model.subgraphs[0].operators[-1].opcodeIndex]
    code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 0, 0, None
    names = ["*/ int x; /*", "\\\nint x;", "??/\nint x;", "\rint x;", "\u2028int x;", '"; int x;']
    for tensor, name in zip(model.subgraphs[0].tensors, names * 20, strict=False):
        tensor.name = name
    for name in names:
        for source in generate(pack(model), name=name, arena_bytes=1024).values():
            for line in source.splitlines():
                before, _, comment = line.partition("//")
                assert "int x" not in before or "int x;" not in line, line
                assert not comment.endswith(("\\", "??/"))
            assert "*/" not in source and source.replace("\n", "").isprintable()
