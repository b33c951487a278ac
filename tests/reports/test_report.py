"""The report as text and as HTML: what it says, for whom, and that nobody's names break it."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from rich.console import Console

from edgecompress.core.results import (
    ArtifactInfo,
    CheckResult,
    ModelInfo,
    Report,
    TargetResult,
    Verdict,
)
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.reports import plots
from edgecompress.reports.figures import Comparison, MemoryMap, Rectangle, compare, memory_map
from edgecompress.reports.html import render_html
from edgecompress.reports.text import render, render_target, render_targets
from edgecompress.reports.words import VERDICT_WORDS, format_value, used_share
from edgecompress.targets.checks import Budgets, check
from edgecompress.targets.profile import load_target, target_names

_MODEL = ModelInfo("build/m_int8.tflite", "a" * 64, 98496, 61234, 12501632, 77000, {"CONV_2D": 9})
_CHECKS = (
    CheckResult("arena", "pass", 54996, 54996, 54996, 98304, how_known="computed",
                detail={"head": 49728, "peak_tensors": [{"name": "relu", "bytes": 16384}],
                        "verified": True, "notes": []}),
    CheckResult("latency", "uncertain", 281000.0, 210750.0, 351250.0, 300000.0, "microseconds",
                "predicted", reason="The limit lies inside the band."),
    CheckResult("operators", "pass", 0, 0, 0, 0, "operators", "computed"),
    CheckResult("accuracy", "fail", 0.853, 0.853, 0.853, 0.87, "share", "measured_host",
                reason="Accuracy is below its floor."),
    CheckResult("energy", "not_measured", unit="microjoules", reason="No energy model."),
    CheckResult("file_size", "not_applicable", 98496, 98496, 98496, how_known="computed"),
)  # fmt: skip


def _report(*targets: TargetResult, **rest: Any) -> Report:
    targets = targets or (TargetResult("nucleo-l4r5zi", _CHECKS),)
    return Report(_MODEL, targets, ("edgecompress", "check", "m"), "1.2.3", **rest)


def _text(report: Report, **options: Any) -> str:
    out = io.StringIO()
    render(report, Console(file=out, **options))
    return out.getvalue()


def _inspection(**row: Any) -> Any:
    fields = {
        "index": 0, "name": "conv", "type": "CONV_2D", "output_shape": (1, 4, None),
        "parameters": 10, "weights": 8, "zeros": 2, "filters": 4, "zero_filters": 1, "bits": 8.0,
        "macs": 100, "weight_bytes": 16, "dense_bytes": 16, "sparsity": 0.25,
    }  # fmt: skip
    rows = (SimpleNamespace(**(fields | row)),)
    return SimpleNamespace(
        format="tflite", rows=rows, sparsity=0.25, weight_bytes=16, macs=100, zero_filters=1,
        filters=4, notes=("1 of 4 filters are zero.",), weights=20, readable_weights=8,
    )  # fmt: skip


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (54996, "bytes", "53.7 KiB"),
        (60000.0, "microseconds", "60.0 ms"),
        (0.985, "share", "98.50 %"),
        (3, "operators", "3"),
        (12501632, "count", "12,501,632"),
        (12.34, "microjoules", "12.3 uJ"),
        (12340.0, "microjoules", "12.34 mJ"),
        (None, "bytes", ""),
    ],
)
def test_values(value: float | None, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_used_share_is_of_ceilings_alone() -> None:
    shares = {check.rule: used_share(check) for check in _CHECKS}
    assert shares.pop("arena") == pytest.approx(54996 / 98304)
    assert shares.pop("latency") == pytest.approx(281 / 300)
    assert set(shares.values()) == {None}


@pytest.mark.parametrize(("verdict", "limit"), [("fail", 500), ("pass", 800)])
def test_an_arena_is_used_as_far_as_it_must_be_allocated(verdict: Verdict, limit: int) -> None:
    reason = "640 B are needed to allocate it." if verdict == "fail" else None
    check = CheckResult("arena", verdict, 432, 432, 432, limit, how_known="computed",
                        detail={"smallest": 640}, reason=reason)  # fmt: skip
    assert used_share(check) == 640 / limit
    report = _report(TargetResult("t", (check,)))
    text = " ".join(_text(report, width=120).split())
    assert ("128%" if verdict == "fail" else "80%") in text
    # Said once: by the reason, if there is one.
    assert text.count("640 B are needed to allocate it") == 1
    assert ("once allocated, 432 B are used" in text) == (verdict == "pass")
    same = dataclasses.replace(check, detail={"smallest": 432}, reason=reason)
    assert used_share(same) == 432 / limit
    assert "once allocated" not in _text(_report(TargetResult("t", (same,))), width=120)


def test_every_verdict_has_a_word() -> None:
    assert set(VERDICT_WORDS) == set(get_args(Verdict))


def test_text_in_a_pipe() -> None:
    text = _text(_report(notes=("Layer 'dense' was skipped.",)), width=40)
    assert "\x1b" not in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert lines["arena"] == ["arena", "PASS", "53.7", "KiB", "96.0", "KiB", "56%", "computed"]
    assert "281.0 ms  210.8 to 351.2 ms" in text
    assert "min 87.00 %" in text and "on host" in text
    # Reasons stand below the table of their target, the verdict last.
    assert text.index("latency: The limit lies inside") > text.index("file_size  n/a")
    assert "Note: Layer 'dense' was skipped." in text
    assert text.rstrip().endswith("Verdict: FAIL")


def test_text_shows_files_and_every_target() -> None:
    report = _report(
        TargetResult("one", _CHECKS[:1]),
        TargetResult("two", _CHECKS[4:5]),
        artifacts=(ArtifactInfo("m_float32.tflite", "float32", 312000, "b" * 64),),
    )
    text = _text(report, width=100)
    assert "m_float32.tflite: float32, 304.7 KiB" in text
    assert text.index("one PASS") < text.index("two NOT MEASURED")
    assert text.rstrip().endswith("Verdict: NOT MEASURED")


def _checked(name: str, model: Any, **budgets: Any) -> Report:
    return _report(check(model, load_target(name), Budgets(**budgets)))


def _convolution() -> Any:
    tensors = (
        Tensor(0, "input", (1, 8, 8, 4), "INT8", None, (0.1,), (0,)),
        Tensor(1, "kernel", (8, 3, 3, 4), "INT8", bytes(288), (0.1,) * 8, (0,) * 8),
        Tensor(2, "bias", (8,), "INT32", bytes(32), (0.01,) * 8, (0,) * 8),
        Tensor(3, "out", (1, 8, 8, 8), "INT8", None, (0.1,), (0,)),
    )
    options = {"stride_w": 1, "stride_h": 1, "padding": 0, "dilation_w_factor": 1,
               "dilation_h_factor": 1, "fused_activation_function": 1}  # fmt: skip
    operator = Operator(0, "CONV_2D", "", 1, (0, 1, 2), (3,), options)
    return FlatModel(bytes(4000), tensors, (operator,), (0,), (3,))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nucleo-l4r5zi", ["latency: Predicted for cmsis-nn kernels, class A: published results "
                           "of this board, with microTVM + CMSIS-NN."]),
        ("nucleo-u575zi-q", ["latency: Predicted for cmsis-nn kernels, class B: published results "
                             "of other boards"]),
        ("nucleo-g0b1re", ["arena: CMSIS-NN's scratch on cortex-m0plus follows its sources for "
                           "cores without DSP instructions; it was not compared with a run.",
                           "flash: Code as linked for cortex-m4: from the interpreter",
                           "Not a bound here: nothing was linked for cortex-m0plus."]),
        ("ek-ra8d1", ["arena: cortex-m85 runs the same MVE kernels as cortex-m55",
                      "latency: Predicted for cmsis-nn kernels, class A-"]),
    ],
)  # fmt: skip
def test_what_a_value_stands_on_is_said(name: str, said: list[str]) -> None:
    report = _checked(name, _convolution())
    text = " ".join(_text(report, width=200).split())
    # A prediction is not a measurement.
    assert "Measured" not in text and "Verdict Value Band" in text
    page = re.sub(r"<[^>]+>", " ", html.unescape(render_html(report)))
    assert "Measured" not in page
    for line in said:
        assert line in text
        assert line.partition(": ")[2] in " ".join(page.split()) or line in " ".join(page.split())
    assert ("not compared" in text) is (name in ("nucleo-g0b1re", "ek-ra8d1"))
    assert ("Not a bound here" in text) is (name != "nucleo-l4r5zi")


def test_kernels_that_were_compared_on_one_core_alone_are_said_so() -> None:
    def said(name: str) -> str:
        found = check(_convolution(), load_target(name), options={"kernels": "reference"})
        return _text(_report(found), width=300)

    assert "arena: The reference kernels are the same code on cortex-m7" in said("disco-f746ng")
    assert "arena:" not in said("nucleo-l4r5zi")


def test_what_a_value_stands_on_is_said_at_80_columns_too() -> None:
    report = _checked("nucleo-g0b1re", _convolution(), max_latency=4e5)
    text = _text(report, width=80, force_terminal=True, color_system=None)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "How known" in text and "Left out at this width: Used." in text
    narrow = _text(report, width=60, force_terminal=True, color_system=None)
    assert "How known" in narrow and "predicted" in narrow
    assert "it was not compared with a run" in " ".join(narrow.split())


def test_the_page_names_what_is_undecided() -> None:
    page = render_html(_checked("nucleo-g0b1re", _convolution(), max_latency=4e5))
    assert "Limits that could not be decided: latency on nucleo-g0b1re." in page
    assert "could not be decided" not in render_html(_checked("cortex-m4", _convolution()))


def test_colours_on_a_terminal_only() -> None:
    text = _text(_report(), width=120, force_terminal=True, color_system="standard")
    assert "\x1b[1;31mFAIL" in text and "\x1b[1;32mPASS" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_narrow_terminal_keeps_rule_verdict_value_and_limit(width: int) -> None:
    text = _text(_report(), width=width, force_terminal=True, no_color=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    if width < 80:
        assert "Left out at this width: " in plain
    if width >= 60:
        assert max(len(line.rstrip()) for line in plain.splitlines()) <= width
        assert re.search(r"arena +PASS +53\.7 KiB.* 96\.0 KiB", plain)


def test_markup_in_names_is_text() -> None:
    checks = (CheckResult("arena", "fail", reason="[red]tensor[/red] [/] :boom:"),)
    text = _text(_report(TargetResult("[bold]b", checks)), width=100)
    assert "[red]tensor[/red] [/] :boom:" in text and "[bold]b FAIL" in text


def test_targets_as_text() -> None:
    out = io.StringIO()
    profiles = [load_target(name) for name in target_names()]
    render_targets(profiles, Console(file=out))
    for profile in profiles:
        line = next(ln for ln in out.getvalue().splitlines() if ln.startswith(profile.name + " "))
        assert profile.kind in line
    out = io.StringIO()
    render_target(load_target("nucleo-l4r5zi"), Console(file=out, width=40))
    assert "120 MHz" in out.getvalue() and "640.0 KiB" in out.getvalue()
    for source in load_target("nucleo-l4r5zi").sources:
        assert source in out.getvalue()


# --- comparison ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "unit", "change"),
    [
        (200, 100, "bytes", "2.00x smaller"),
        (100, 150, "bytes", "1.50x larger"),
        (100, 100, "bytes", "same"),
        (300.0, 100.0, "microseconds", "3.00x faster"),
        (100.0, 300.0, "microseconds", "3.00x slower"),
        (0.9, 0.875, "share", "-2.50 points"),
        (0, 5, "operators", "+5"),
        (5, 0, "operators", "-5"),
        (None, 5, "bytes", ""),
        (5, None, "bytes", ""),
    ],
)
def test_change(before: float | None, after: float | None, unit: str, change: str) -> None:
    assert Comparison("x", before, after, unit).change == change


def test_compare_pairs_checks_of_the_same_target() -> None:
    old = dataclasses.replace(
        _report(TargetResult("nucleo-l4r5zi", (dataclasses.replace(_CHECKS[0], measured=109992),))),
        model=dataclasses.replace(_MODEL, file_bytes=196992),
    )
    new = _report(TargetResult("nucleo-l4r5zi", _CHECKS), TargetResult("other", _CHECKS))
    rows = {row.name: row for row in compare(old, new)}
    assert rows["File size"].change == "2.00x smaller"
    assert rows["arena on nucleo-l4r5zi"].change == "2.00x smaller"
    assert rows["MACs"].change == "same"
    assert set(rows) == {"File size", "Compressed", "Parameters", "MACs", "arena on nucleo-l4r5zi"}


# --- HTML ---------------------------------------------------------------------------------------

_VOID = {"meta", "br", "link", "img", "hr", "input"}


class _Page(HTMLParser):
    """Checks that tags close in order; collects text, ids, references, tables and figures."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(text for text in self.texts if text)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attrs for name, attrs in self.tags if name == tag)

    def attribute(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


_MAP = MemoryMap(
    "cortex-m4, cmsis-nn",
    (
        Rectangle("input", -1, 0, 0, 3072, "input"),
        Rectangle("conv/Relu", 0, 1, 3072, 16384, "CONV_2D"),
        Rectangle("scratch", 1, 1, 19456, 500, "scratch"),
    ),
    ("CONV_2D", "SOFTMAX"),
    used=30000,
    peak_operator=1,
)
_EVERYTHING: dict[str, Any] = {
    "inspection": _inspection(),
    "comparison": (Comparison("accuracy of float32", 0.9, 0.89, "share"),),
    "history": {"loss": [1.0, 0.5], "val_loss": [1.1, None], "sparsity": [0.0, 0.8], "empty": []},
    "memory": (_MAP, dataclasses.replace(_MAP, title="cortex-m55, cmsis-nn")),
    "latency": {"nucleo-l4r5zi": [("0 CONV_2D", 900.0), ("1 SOFTMAX", 100.0)]},
    "layers": [("conv", 32.1), ("exact", math.inf), ("dense", 18.3), ("unknown", None)],
}


def _full() -> str:
    report = _report(
        artifacts=(
            ArtifactInfo("m_float32.tflite", "float32", 312000, "b" * 64),
            ArtifactInfo("m_int8.tflite", "int8", 98496, _MODEL.sha256, ("Softmax is fixed.",)),
        ),
        notes=("Layer 'dense' was skipped.",),
    )
    baseline = dataclasses.replace(_report(), model=dataclasses.replace(_MODEL, file_bytes=999999))
    return render_html(report, baseline=baseline, **_EVERYTHING)


def test_page_with_nothing_but_the_report() -> None:
    page = _Page(render_html(_report()))
    assert "m_int8.tflite" in page.text and "53.7 KiB" in page.text
    assert "The limit lies inside the band." in page.text
    assert not list(page.all("svg"))
    headings = {attrs["id"] for attrs in page.all("h2")}
    assert headings == {"targets"}


def test_page_with_everything() -> None:
    page = _Page(_full())
    assert {attrs["id"] for attrs in page.all("h2")} == {
        "targets", "notes", "before-after", "training", "layers", "sqnr", "map-1", "map-2",
        "latency-1", "files",
    }  # fmt: skip
    for text in (
        "FAIL", "min 87.00 %", "56% of the limit", "accuracy of float32", "-1.00 points",
        "Layer 'dense' was skipped.", "Softmax is fixed.", "1 of 4 filters are zero.", "4x?",
        "900.0 us", "18.3 dB", "exact", "edgecompress 1.2.3", "name relu, bytes 16,384",
    ):  # fmt: skip
        assert text in page.text, text
    # Worst layer first.
    assert page.text.index("18.3 dB") < page.text.index("32.1 dB") < page.text.index("exact")


def test_page_needs_no_network_and_runs_nothing() -> None:
    html = _full()
    page = _Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "img", "object")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    for reference in (*page.attribute("href"), *page.attribute("xlink:href")):
        assert reference.startswith("#")
    # Outside of namespaces no address occurs at all.
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/)", html)
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_page_is_the_same_every_time() -> None:
    assert _full() == _full()


def test_ids_are_unique_and_references_lead_somewhere() -> None:
    html = _full()
    page = _Page(html)
    ids = page.attribute("id")
    assert len(ids) == len(set(ids))
    references = [r[1:] for r in (*page.attribute("href"), *page.attribute("xlink:href"))]
    references += re.findall(r"url\(#([^)]+)\)", html) + page.attribute("aria-labelledby")
    assert references
    assert set(references) <= set(ids)


def test_a_share_of_zeros_says_of_what() -> None:
    assert "25.0 % of the 8 that can be read" in _full()


def test_page_can_be_heard() -> None:
    page = _Page(_full())
    assert next(page.all("html"))["lang"] == "en"
    figures = list(page.all("figure"))
    assert len(figures) == 4  # sizes, curves, two maps
    assert all(f["role"] == "img" and len(f["aria-label"] or "") > 20 for f in figures)
    assert all(attrs["aria-hidden"] == "true" for attrs in page.all("svg"))
    heads = list(page.all("th"))
    assert heads and all(attrs.get("scope") in ("col", "row") for attrs in heads)
    # What scrolls can be reached by keyboard.
    scrolls = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert scrolls and all(a["tabindex"] == "0" and a["role"] == "region" for a in scrolls)
    gauges = [a for a in page.all("span") if a.get("class") == "gauge"]
    assert "281.0 ms against a limit of 300.0 ms" in {a["aria-label"] for a in gauges}


def test_page_knows_dark_phone_and_print() -> None:
    html = _full()
    for query in ("prefers-color-scheme: dark", "max-width: 40rem", "@media print"):
        assert query in html
    # Charts take their colours from the page: no stand-in of the drawing is left.
    assert "var(--c1)" in html
    for stand_in in plots.COLOURS.values():
        assert stand_in not in html
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert svgs and not [s for s in svgs if re.search(r"(?:fill|stroke): #", s)]


_NASTY = "<script>alert(1)</script>\"'&amp; $x_1$ {{ 7*7 }} \u6f22\u5b57"


def test_names_from_a_model_are_text() -> None:
    check = CheckResult("arena", "fail", 1, 1, 1, 1, how_known="computed", reason=_NASTY,
                        detail={_NASTY: _NASTY})  # fmt: skip
    report = dataclasses.replace(
        _report(TargetResult(_NASTY, (check,)), notes=(_NASTY,)),
        model=dataclasses.replace(_MODEL, path=_NASTY, operators={_NASTY: 1}),
        artifacts=(ArtifactInfo(_NASTY, _NASTY, 10, "c" * 64),),
    )
    html = render_html(
        report,
        inspection=_inspection(name=_NASTY, type=_NASTY),
        history={_NASTY: [1.0, 2.0]},
        memory=[MemoryMap(_NASTY, (Rectangle(_NASTY, 0, 0, 0, 64),))],
        latency={_NASTY: [(_NASTY, 1.0)]},
        layers=[(_NASTY, 1.0)],
    )
    page = _Page(html)
    assert not list(page.all("script"))
    assert "<script>alert(1)</script>\"'&amp; $x_1$ {{ 7*7 }}" in page.text


@pytest.mark.parametrize(
    ("check", "widths"),
    [
        # A bar may end behind its limit; the longest end stands before the right edge.
        (CheckResult("arena", "fail", 200, 200, 200, 100, how_known="computed", reason="r"),
         ("width:96.15%", "left:48.08%")),
        # What allocating takes is behind the limit, though what is used later is not.
        (CheckResult("arena", "fail", 80, 80, 80, 100, how_known="computed", reason="r",
                     detail={"smallest": 200}), ("width:38.46%", "left:38.46%;width:57.69%")),
        (CheckResult("accuracy", "pass", 0.9, 0.9, 0.9, 0.8, "share", "measured_host"),
         ("width:90.0%", "left:80.0%")),
    ],
)  # fmt: skip
def test_gauges(check: CheckResult, widths: tuple[str, str]) -> None:
    html = render_html(_report(TargetResult("t", (check,))))
    for width in widths:
        assert width in html


def test_one_sided_band() -> None:
    check = CheckResult("latency", "fail", None, 5000.0, None, 4000.0, "microseconds", "predicted",
                        reason="It takes longer.")  # fmt: skip
    report = _report(TargetResult("t", (check,)))
    assert "at least 5.0 ms" in _text(report, width=100)
    assert "at least 5.0 ms" in _Page(render_html(report)).text


@pytest.mark.parametrize(
    "history",
    [
        {"loss": [1.0]},
        {"loss": [math.nan, math.inf, 1.0]},
        {"loss": [None, None]},
        {f"sparsity/layer_{i}": [0.1, 0.2] for i in range(30)},
        {"learning_rate": [1e-3, 1e-4], "val_acc": [0.1, 0.2], "x" * 200: [1, 2]},
    ],
)
def test_odd_histories(history: Any) -> None:
    page = _Page(render_html(_report(), history=history))
    assert len(list(page.all("svg"))) == 1
    if len(history) == 30:
        assert "sparsity (22 more not drawn)" in page.text


def test_curves_of_one_kind_share_a_chart() -> None:
    names = ("val_loss", "sparsity", "loss", "lr", "accuracy", "val_accuracy", "conv/sparsity")
    groups = plots._curve_groups({name: [0.0] for name in names})
    assert groups == {
        "loss": ["val_loss", "loss"],
        "sparsity": ["sparsity", "conv/sparsity"],
        "lr": ["lr"],
        "accuracy": ["accuracy", "val_accuracy"],
    }


def test_memory_map_numbers() -> None:
    assert (_MAP.height, _MAP.length) == (19956, 2)
    empty = MemoryMap("t", ())
    assert (empty.height, empty.length) == (0, 0)
    assert "<svg" not in render_html(_report(), memory=[empty])


def test_memory_map_of_an_arena() -> None:
    def buffer(index: int | None, first: int, last: int) -> SimpleNamespace:
        return SimpleNamespace(index=index, name="a;b", bytes=10, offset=0, first=first, last=last)

    arena: Any = SimpleNamespace(
        core="cortex-m4", kernels="reference", used=99, peak_operator=1,
        buffers=(buffer(0, -1, 0), buffer(1, 0, 1), buffer(None, 1, 1), buffer(2, -2, -2)),
    )  # fmt: skip
    found = memory_map(arena, ("CONV_2D", "SOFTMAX"))
    assert found.title == "cortex-m4, reference"
    assert [(r.name, r.label) for r in found.rectangles] == [
        ("a", "input"),
        ("a", "CONV_2D"),
        ("a", "scratch"),
    ]


def test_page_from_the_file_itself(shared: Path) -> None:
    flat = read_tflite(shared / "models" / "mlperf_tiny" / "pretrainedResnet_quant.tflite")
    names = ("nucleo-l4r5zi", "nrf5340-dk", "pixel-4", "cortex-m0plus")
    page = _Page(render_html(_report(), flat=flat, profiles=[load_target(n) for n in names]))
    ids = [attrs["id"] for attrs in page.all("h2")]
    # Cortex-M4 and M33 share one plan; M0+ has other kernels; the phone has no arena.
    assert [i for i in ids if (i or "").startswith("map")] == ["map-1", "map-2"]
    # A bare core has no clock.
    assert [i for i in ids if (i or "").startswith("latency")] == ["latency-1", "latency-2"]
    assert "48.6 KiB of 53.7 KiB in all" in page.text


def test_bars_of_sizes_are_to_scale() -> None:
    svg = plots.size_chart([("float32", 4096, None), ("<b>&\x1b", 1024, 512)])
    root = ElementTree.fromstring(svg)
    bars = [item for item in root if item.tag.endswith("rect")]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == pytest.approx([8 * widths[2], 2 * widths[2], widths[2]], abs=0.2)
    fills = [bar.attrib["style"] for bar in bars]
    assert fills == ["fill: var(--c1)", "fill: var(--c1)", "fill: var(--c2)"]
    texts = [item.text for item in root if item.tag.endswith("text")]
    assert texts == ["float32", "4.0 KiB", "<b>&\\x1b", "1.0 KiB", "512 B compressed"]
    # Text next to the longest bar fits.
    _, _, wide, high = map(float, root.attrib["viewBox"].split())
    assert float(bars[0].attrib["x"]) + widths[0] + 80 < wide
    assert all(float(bar.attrib["y"]) + float(bar.attrib["height"]) <= high for bar in bars)


def test_module_loads_without_the_libraries_that_draw() -> None:
    import subprocess
    import sys

    code = (
        "import sys, edgecompress.reports.html, edgecompress.reports.plots\n"
        "edgecompress.reports.plots.size_chart([('int8', 10, None)])\n"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'jinja2')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0
