"""Several rows at a time: the table does not depend on how many, nor on which ends first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import edgecompress as ec
from edgecompress.comparison.results import Beginning, Cell, ComparisonResult, Made, Subject
from edgecompress.comparison.workers import RowWorker
from edgecompress.core import isolation
from edgecompress.core.errors import ArgumentError, ConversionError, IsolatedDefect, ProcessError
from edgecompress.core.workers import serve, threads_each

_WAIT_S = 30


class Rows:
    """Stands for the confined processes; each is a thread with the real mailbox.

    Attributes:
        keys: Row -> key, if not its number.
        stored: Rows that an earlier run has made.
        hooks: (what, row) -> called at that point.
        began: What was asked, in order: (what, row).
        threads: Of each process.
        loads: Called as each process loads.
        returned: The row that is returned for the first one.
        listed: Rows that a process says there are; None for those of the plan.
    """

    def __init__(self) -> None:
        self.keys: dict[int, str] = {}
        self.stored: set[int] = set()
        self.hooks: dict[tuple[str, int], Callable[[], object]] = {}
        self.began: list[tuple[str, int]] = []
        self.threads: list[int | None] = []
        self.loads: Callable[[int], object] = lambda number: None
        self.returned = 0
        self.listed: int | None = None
        self._made: set[str] = set()

    def call(
        self, function: str, arguments: Mapping[str, Any], *, on_event: Callable[[Any], None],
        progress: Callable[[str], None], **_: Any,
    ) -> None:  # fmt: skip
        plan, current = arguments["plan"], [-1]
        self.threads.append(arguments["threads"])
        self.loads(len(self.threads))
        items = [(row, seed) for seed in plan.seeds for row in range(len(plan.rows))]

        def key(row: int, seed: int) -> str:
            return f"{self.keys.get(row, row)} {seed}"

        def made(row: int, seed: int, resumed: bool) -> Made:
            cells = {"file_bytes": Cell(row, "bytes", "computed")}
            return Made(row, "", seed, key(row, seed), cells, resumed=resumed)

        def answer(what: str, asked: Mapping[str, Any], told: Callable[[Any], None]) -> Any:
            if what == "begin":
                subject = Subject("m", "accuracy", True, 10, "", 5)
                keys = tuple((*item, key(*item)) for item in items)[: self.listed]
                stored = tuple(made(*item, True) for item in items if item[0] in self.stored)
                return isolation.encode(Beginning(subject, keys, stored))
            if what == "train":
                current[:] = asked["row"], asked["seed"]
            row, seed = current
            self.began.append((what, row))
            progress(f"{plan.rows[row].label}: {what}")
            self.hooks.get((what, row), lambda: None)()
            if what == "train" and key(row, seed) not in self._made:
                return None
            resumed = what == "train"
            self._made.add(key(row, seed))
            return isolation.encode(made(row or self.returned, seed, resumed))

        def tell(kind: str, value: Any) -> None:
            on_event(value)

        serve(arguments["mailbox"], None, tell, lambda: answer)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    made = Rows()
    monkeypatch.setattr(isolation, "call", made.call)
    return made


def _compare(folder: Path, labels: str, jobs: int, **others: Any) -> ComparisonResult:
    plan = {"rows": [{"label": label} for label in labels], **others.pop("plan", {})}
    return ec.compare(
        plan, model="m.keras", data="d.npz", output=folder, jobs=jobs, argv=["compare"], **others
    )


def _raises(error: BaseException) -> Callable[[], object]:
    def hook() -> object:
        raise error

    return hook


def test_table_is_in_the_order_of_the_plan(rows: Rows, tmp_path: Path) -> None:
    plan = {"seeds": [0, 1]}
    one = _compare(tmp_path / "one", "abc", 1, plan=plan)
    assert rows.began == [(what, row) for row in [0, 1, 2] * 2 for what in ("train", "finish")]
    rows.began.clear()
    rows._made.clear()
    ended, order = threading.Event(), list[str]()
    # The first row ends after the second one.
    rows.hooks["finish", 0] = lambda: ended.wait(_WAIT_S)

    def on_row(made: Made, result: ComparisonResult) -> None:
        order.append(made.label)
        if made.label == "b":
            ended.set()

    two = _compare(tmp_path / "two", "abc", 2, plan=plan, on_row=on_row)
    assert order.index("b") < order.index("a")
    assert two == one
    for name in ("compare.json", "compare.md", "compare.html"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_processes_share_the_threads(rows: Rows, tmp_path: Path) -> None:
    _compare(tmp_path, "ab", 1)
    assert rows.threads == [None]
    meet = threading.Barrier(3, timeout=_WAIT_S)
    for row in range(3):
        rows.hooks["train", row] = meet.wait
    rows.threads.clear()
    rows._made.clear()
    _compare(tmp_path, "abc", 3)
    assert rows.threads == [threads_each(3)] * 3


def test_no_process_is_started_for_rows_that_are_stored(rows: Rows, tmp_path: Path) -> None:
    rows.stored = {0, 2}
    result = _compare(tmp_path, "abc", 3)
    assert rows.threads == [threads_each(3)]
    assert rows.began == [("train", 1), ("finish", 1)]
    assert [made.resumed for made in result.made] == [True, False, True]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("what", ["train", "finish"])
def test_a_row_that_ends_its_process_is_named_and_the_others_are_made(
    rows: Rows, tmp_path: Path, jobs: int, what: str
) -> None:
    rows.hooks[what, 1] = _raises(ProcessError("The process crashed."))
    defect = type("KeyError", (IsolatedDefect,), {})("'x'")
    rows.hooks[what, 3] = _raises(defect)
    result = _compare(tmp_path, "abcde", jobs)
    reasons = [made.reason for made in result.made]
    assert reasons == [None, "The process crashed.", None, "It raised KeyError: 'x'", None]
    assert [made.label for made in result.made] == list("abcde")
    if jobs == 1:
        assert len(rows.threads) == 3
    assert result.exit_code == 1


def test_a_machine_that_is_full_ends_the_comparison(rows: Rows, tmp_path: Path) -> None:
    rows.hooks["finish", 0] = _raises(ConversionError("No space left."))
    with pytest.raises(ConversionError, match="No space"):
        _compare(tmp_path, "ab", 2)


def test_a_process_that_cannot_load_is_no_failure_of_a_row(rows: Rows, tmp_path: Path) -> None:
    def load(number: int) -> None:
        if number == 2:
            raise ProcessError("It ran out of memory.")

    rows.loads = load
    release = threading.Event()
    rows.hooks["train", 0] = lambda: release.wait(1)
    with pytest.raises(ProcessError, match="out of memory"):
        _compare(tmp_path, "ab", 2)


def test_a_process_cannot_name_other_rows(rows: Rows, tmp_path: Path) -> None:
    rows.returned = 1
    with pytest.raises(ProcessError, match="a row of no plan"):
        _compare(tmp_path, "ab", 1)
    rows.listed = 1
    with pytest.raises(ProcessError, match="other rows than asked"):
        _compare(tmp_path, "ab", 1)


def test_equal_rows_are_made_once(rows: Rows, tmp_path: Path) -> None:
    """The second takes what the first has made, as it does where one follows the other."""
    rows.keys = {1: "0"}
    third = threading.Event()
    rows.hooks["train", 2] = third.set
    # If the second did not wait, it would be trained meanwhile.
    rows.hooks["train", 0] = lambda: third.wait(_WAIT_S) and time.sleep(0.1)
    result = _compare(tmp_path, "abc", 3)
    assert [made.resumed for made in result.made] == [False, True, False]
    assert ("finish", 1) not in rows.began
    assert rows.began.index(("train", 1)) > rows.began.index(("finish", 0))


class TestMeasuredLatency:
    """The host's latency is measured: no other row may run meanwhile."""

    def _overlaps(self, rows: Rows, folder: Path, target: str) -> list[int]:
        lock, running, seen = threading.Lock(), [0], list[int]()

        def begin(row: int, what: str) -> Callable[[], object]:
            def hook() -> None:
                with lock:
                    running[0] += 1
                    if what == "finish":
                        seen.append(running[0])
                time.sleep(0.05)
                with lock:
                    if what == "finish":
                        seen.append(running[0])
                    running[0] -= 1

            return hook

        for row in range(6):
            for what in ("train", "finish"):
                rows.hooks[what, row] = begin(row, what)
        assert _compare(folder, "abcdef", 3, plan={"targets": [target]}).exit_code == 0
        return seen

    def test_is_measured_alone(self, rows: Rows, tmp_path: Path) -> None:
        assert self._overlaps(rows, tmp_path, "host") == [1] * 12

    def test_predicted_ones_wait_for_nobody(self, rows: Rows, tmp_path: Path) -> None:
        assert max(self._overlaps(rows, tmp_path, "cortex-m4")) > 1

    def test_a_failed_row_keeps_no_other_from_it(self, rows: Rows, tmp_path: Path) -> None:
        rows.hooks["train", 0] = _raises(ProcessError("The process crashed."))
        rows.hooks["finish", 1] = _raises(ProcessError("The process crashed."))
        result = _compare(tmp_path, "abcd", 2, plan={"targets": ["host"]})
        assert [made.reason is None for made in result.made] == [False, False, True, True]


def test_progress_names_the_rows_in_flight(rows: Rows, tmp_path: Path) -> None:
    texts: list[str] = []
    meet = threading.Barrier(2, timeout=_WAIT_S)
    for row in range(2):
        rows.hooks["train", row] = meet.wait
    _compare(tmp_path, "ab", 2, progress=texts.append)
    assert {"a: train | b: train", "b: train | a: train"} & set(texts)
    # Neither is shown when it has ended.
    rows.hooks.clear()
    rows._made.clear()
    _compare(tmp_path / "other", "cd", 1, progress=texts.append)
    assert texts[-4:] == ["c: train", "c: finish", "d: train", "d: finish"]


def test_an_interrupted_comparison_ends_its_processes(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[RowWorker] = []
    close = RowWorker.close

    def noted(worker: RowWorker) -> None:
        closed.append(worker)
        close(worker)

    monkeypatch.setattr(RowWorker, "close", noted)
    begun = threading.Event()
    rows.hooks["train", 1] = begun.set

    def interrupt(made: Made, result: ComparisonResult) -> None:
        assert begun.wait(_WAIT_S)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _compare(tmp_path, "ab", 2, on_row=interrupt)
    assert len(set(closed)) == 2


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`jobs` must be"):
        _compare(tmp_path, "a", 0)
    with pytest.raises(ArgumentError, match="`jobs` must be 1 for a model in memory"):
        ec.compare({"rows": [{"label": "a"}]}, model=object(), data="d.npz", output=tmp_path,
                   jobs=2)  # fmt: skip
