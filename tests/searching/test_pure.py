"""The maths of the search, against brute force and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.core.errors import ArgumentError
from edgecompress.searching.descent import Widths, cut_at_once, descend
from edgecompress.searching.file_model import Affine, solve
from edgecompress.searching.front import dominated, hypervolume, objectives
from edgecompress.searching.knobs import Knob
from edgecompress.searching.outcome import Point, SearchResult
from edgecompress.searching.results import Described, Job, Outcome
from edgecompress.searching.runner import disturbed
from edgecompress.searching.schedule import Entry, lengths, promotion
from edgecompress.searching.screening import Costs
from edgecompress.targets.profile import load_target

# --- formulas of sizes ---------------------------------------------------------------------------


@given(
    constant=st.integers(0, 40),
    terms=st.dictionaries(st.integers(0, 5), st.integers(1, 60), max_size=3),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_formulas_are_found_from_their_values(
    constant: int, terms: dict[int, int], seed: int
) -> None:
    truth = Affine(constant, tuple(terms.items()))
    random = np.random.default_rng(seed)
    widths = random.integers(1, 128, (10, 6))
    found = solve([truth(row) for row in widths], widths)
    assert found is not None
    for row in random.integers(1, 128, (20, 6)):
        assert found(row) == truth(row)


def test_what_follows_no_formula_has_none() -> None:
    widths = np.random.default_rng(0).integers(1, 40, (8, 2))
    assert solve([int(a * b) for a, b in widths], widths) is None
    values = [int(a) for a, _ in widths]
    values[-1] += 1
    assert solve(values, widths) is None


# --- widths --------------------------------------------------------------------------------------


def _classes(sizes: list[int], seed: int, step: int = 1) -> Widths:
    random = np.random.default_rng(seed)
    return Widths(
        [np.sort(random.uniform(0.1, 5, size)) for size in sizes], np.ones(len(sizes)), step
    )


def _excess(limit: float, peak: float, widths: np.ndarray) -> dict[str, float]:
    """Costs like those of a file: a sum of products, and a peak."""
    macs = sum(float(a * b) for a, b in itertools.pairwise([3, *widths]))
    memory = max(float(a + b) for a, b in itertools.pairwise([3, *widths]))
    return {"macs": macs / limit - 1, "arena": memory / peak - 1}


@given(
    sizes=st.lists(st.integers(2, 7), min_size=2, max_size=3),
    limit=st.integers(6, 120),
    peak=st.integers(4, 14),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_limits_are_met_wherever_any_widths_meet_them(
    sizes: list[int], limit: int, peak: int, seed: int
) -> None:
    classes = _classes(sizes, seed)
    kept = descend(classes, lambda widths: _excess(limit, peak, widths))
    possible = all(v <= 0 for v in _excess(limit, peak, np.ones(len(sizes), int)).values())
    assert all(v <= 0 for v in _excess(limit, peak, kept).values()) == possible
    assert ((kept >= 1) & (kept <= sizes)).all()
    if not possible:
        assert (kept == 1).all()
        return
    # Nothing that still fits was left out.
    for at in range(len(sizes)):
        if kept[at] < sizes[at]:
            wider = kept.copy()
            wider[at] += 1
            assert any(v > 0 for v in _excess(limit, peak, wider).values())


def test_descent_keeps_nearly_the_most_important_widths() -> None:
    shares = []
    for seed in range(20):
        classes = _classes([6, 6, 6], seed)
        kept = descend(classes, lambda widths: _excess(40, 9, widths))
        worth = {
            widths: sum(classes.lost(at, 0, width) for at, width in enumerate(widths))
            for widths in itertools.product(range(1, 7), repeat=3)
            if all(v <= 0 for v in _excess(40, 9, np.array(widths)).values())
        }
        shares.append(worth[tuple(int(x) for x in kept)] / max(worth.values()))
    assert np.mean(shares) > 0.95


def test_widths_stay_multiples_or_whole() -> None:
    classes = _classes([16, 6], 0, step=4)
    kept = descend(classes, lambda widths: {"macs": float(widths.sum()) / 13 - 1})
    assert kept[0] % 4 == 0
    assert kept[1] in (4, 6)
    whole = descend(classes, lambda widths: {"macs": -1.0})
    assert whole.tolist() == [16, 6]


# --- fronts --------------------------------------------------------------------------------------


def test_dominated_points_by_hand() -> None:
    points = np.array([[1, 5], [2, 2], [5, 1], [3, 3], [2, 2]], float)
    assert dominated(points).tolist() == [False, False, False, True, False]
    assert dominated(np.zeros((0, 2))).tolist() == []


@pytest.mark.parametrize("objectives_count", [1, 2, 3, 4])
def test_hypervolume_against_counted_samples(objectives_count: int) -> None:
    random = np.random.default_rng(objectives_count)
    points = random.uniform(0, 1.1, (6, objectives_count))
    samples = random.uniform(0, 1, (200_000, objectives_count))
    inside = points[(points < 1).all(1)]
    covered = (inside[None] <= samples[:, None]).all(-1).any(1).mean()
    assert hypervolume(points, [1.0] * objectives_count) == pytest.approx(covered, abs=5e-3)


def test_a_file_that_is_missing_is_worse_than_any() -> None:
    assert objectives(0.9, True, {"arena": 5.0}, ["arena"]) == [-0.9, 5.0]
    assert objectives(0.2, False, {}, ["arena"]) == [0.2, float("inf")]
    assert objectives(None, True, {}, [])[0] == float("inf")


# --- short before long ---------------------------------------------------------------------------


def test_one_of_three_goes_on() -> None:
    tried = [Entry(0, "a", 2, 0.8), Entry(1, "b", 2, 0.9)]
    assert promotion(tried, (2, 6, 18), closing=False) is None
    tried.append(Entry(2, "c", 2, None))
    # One without a file does not count.
    assert promotion(tried, (2, 6, 18), closing=False) is None
    tried.append(Entry(3, "d", 2, 0.7))
    assert promotion(tried, (2, 6, 18), closing=False) == (tried[1], 6)
    # Being trained longer already, it is not promoted again.
    tried.append(Entry(4, "b", 6, None))
    assert promotion(tried, (2, 6, 18), closing=False) is None


def test_the_caller_says_which_is_the_best_of_those_that_wait() -> None:
    tried = [Entry(0, "a", 2, 0.8), Entry(1, "b", 2, 0.9), Entry(2, "c", 2, 0.7)]
    asked: list[list[Entry]] = []

    def last(entries: Sequence[Entry]) -> Entry:
        asked.append(list(entries))
        return entries[-1]

    assert promotion(tried, (2, 6), closing=False, prefer=last) == (tried[2], 6)
    assert asked == [tried]
    tried += [Entry(3, "c", 6, 0.95), Entry(4, "a", 6, 0.9)]
    assert promotion(tried, (2, 6), closing=True, beyond=True, prefer=last) == (tried[4], 12)
    assert asked[-1] == tried[3:]


def test_what_another_worker_has_is_left_to_it() -> None:
    tried = [Entry(0, "a", 2, 0.8), Entry(1, "b", 2, 0.9, here=False), Entry(2, "c", 2, 0.7)]
    # The best of three is due, but not here; the second best is not.
    assert promotion(tried, (2, 6), closing=False) is None
    assert promotion(tried, (2, 6), closing=True) == (tried[0], 6)
    assert promotion(tried[1:2], (2, 6), closing=True) is None
    longest = [Entry(3, "d", 6, 0.9, here=False), Entry(4, "e", 6, 0.8)]
    assert promotion(longest, (2, 6), closing=True, beyond=True) == (longest[1], 12)
    assert promotion(longest[:1], (2, 6), closing=True, beyond=True) is None


def test_near_the_end_the_best_goes_all_the_way() -> None:
    tried = [Entry(0, "a", 2, 0.8)]
    assert promotion(tried, (2, 6), closing=True) == (tried[0], 6)
    tried.append(Entry(1, "a", 6, 0.85))
    assert promotion(tried, (2, 6), closing=True) is None
    assert promotion(tried, (2, 6), closing=True, beyond=True) == (tried[1], 12)
    tried.append(Entry(2, "a", 12, None))
    assert promotion(tried, (2, 6), closing=True, beyond=True) is None


@given(seed=st.integers(0, 99), step=st.sampled_from([1, 4]))
@settings(max_examples=30, deadline=None)
def test_cutting_at_once_meets_the_limit_with_few_questions(seed: int, step: int) -> None:
    random = np.random.default_rng(seed)
    totals = random.integers(4, 64, 6)
    classes = Widths([np.sort(random.uniform(size=n)) for n in totals], np.ones(6), step)
    asked: list[int] = []

    def excess(kept: np.ndarray) -> dict[str, float]:
        asked.append(1)
        return {
            "macs": float((kept[1:] * kept[:-1]).sum() / (totals[1:] * totals[:-1]).sum()) - 0.5
        }

    kept = cut_at_once(classes, excess)
    assert len(asked) <= 10
    assert excess(kept)["macs"] <= 0
    assert ((kept % step == 0) | (kept == totals)).all()
    # One step less would not have been enough: it fits tightly.
    assert excess(kept)["macs"] > -0.25


def test_cutting_at_once_leaves_what_fits_and_takes_all_it_can() -> None:
    classes = Widths([np.arange(1.0, 9.0)], np.ones(1))
    assert list(cut_at_once(classes, lambda kept: {"a": -1.0})) == [8]
    assert list(cut_at_once(classes, lambda kept: {"a": 1.0})) == [1]


def test_what_longer_training_does_not_improve_is_trained_no_longer() -> None:
    tried = [Entry(0, "a", 2, 0.9), Entry(1, "a", 6, 0.88), Entry(2, "b", 2, 0.7)]
    tried.append(Entry(3, "b", 6, 0.8))
    assert promotion(tried, (2, 6), closing=True, beyond=True) == (tried[3], 12)
    tried.append(Entry(4, "b", 12, 0.8))
    # Time for new candidates.
    assert promotion(tried, (2, 6), closing=True, beyond=True) is None


def test_lengths_are_each_three_times_the_one_before() -> None:
    assert lengths(27) == (3, 9, 27)
    assert lengths(1) == (1,)


# --- small types ---------------------------------------------------------------------------------


def test_a_limit_whose_cost_is_unknown_is_not_met() -> None:
    assert not Costs({}, {"latency": 5.0}).fits()
    assert not Costs({"arena": 1.0}, {}, unsupported="no kernel").fits()
    assert Costs({"arena": 5.0}, {"arena": 5.0}).fits()
    assert not Costs({"arena": 5.001}, {"arena": 5.0}).fits()
    assert not Costs({"arena": 4.9}, {"arena": 5.0}).fits(fill=0.9)


def test_an_outcome_without_a_file_never_fits() -> None:
    assert not Outcome("k", "parent").fits
    assert Outcome("k", "parent", metric=0.5, excess={"arena": 0.0}).fits
    assert not Outcome("k", "parent", metric=0.5, excess={"arena": 1e-9}).fits


DESCRIBED = Described((), {}, "accuracy", True, "x", ("arena",), {}, True, 0.0, 1.0)
LARGE = Outcome("k", "parent", excess={"arena": 0.2}, reason="Not trained.")
BROKEN = Outcome("k", "parent", excess={"candidate": 1.0}, reason="It failed.")
FOREIGN = Outcome("k", "parent", excess={"operators": 1.0}, reason="No kernel.")


def file_of(code: int, **excess: float) -> Outcome:
    return Outcome("k", "parent", metric=0.5, excess=excess, exit_code=code)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 1),
        ([BROKEN], 1),
        ([FOREIGN, BROKEN], 5),
        ([LARGE, FOREIGN], 3),
        ([LARGE, file_of(5, operators=1.0)], 3),
        ([LARGE, file_of(4, parity=1.0)], 4),
        ([file_of(3, arena=0.1), file_of(4, metric_accuracy=0.1)], 4),
        ([file_of(4, metric_accuracy=0.1), file_of(6, latency=0.1)], 6),
    ],
)
def test_without_a_candidate_that_fits_the_nearest_decides(
    outcomes: list[Outcome], code: int
) -> None:
    points = tuple(Point(n, Job({}), outcome) for n, outcome in enumerate(outcomes))
    found = SearchResult("study", DESCRIBED, points, None, (), 0.0)
    assert found.exit_code == code
    # There is no file: nothing that could be accepted.
    assert found.exit_code_for(allow_undecided=True) == code
    assert found.undecided_limits == (("latency",) if code == 6 else ())


def test_a_limit_of_the_metric_is_undecided_where_the_best_was_not_tested() -> None:
    floor = Outcome("a", "parent", metric=0.9, excess={"metric_accuracy": -0.1})
    free = Outcome("a", "parent", metric=0.9, excess={"arena": -0.1})
    for outcome, untested, code in ((floor, True, 6), (floor, False, 0), (free, True, 0)):
        point = Point(0, Job({}), outcome)
        found = SearchResult("study", DESCRIBED, (point,), point, (), 0.0, untested=untested)
        assert found.exit_code == code
        assert found.exit_code_for(allow_undecided=True) == 0
    assert SearchResult(
        "study", DESCRIBED, (Point(0, Job({}), floor),), Point(0, Job({}), floor), (), 0.0,
        untested=True,
    ).undecided_limits == ("accuracy on the test data",)  # fmt: skip


@pytest.mark.parametrize(
    "asked",
    [
        {"techniques": 5},
        {"techniques": "magic"},
        {"log": "paper"},
        {"callbacks": [5]},
        {"callbacks": 5},
        {"storage": 5},
        {"study": 5},
        {"apply": 1.5},
        {"apply": -1},
        {"groups": 5},
        {"min_accuracy": "0.5"},
        {"output": 5},
        {"into": 5, "apply": 0},
    ],
)
def test_python_is_told_what_the_command_line_is_told(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    from edgecompress.searching import search

    with pytest.raises(ArgumentError) as raised:
        search(None, None, ["cortex-m4"], **{"output": tmp_path, **asked})
    named = str(raised.value).partition("` must ")[0].strip("`-").replace("-", "_")
    assert named in (*asked, "output")


def test_keys_tell_candidates_apart() -> None:
    keys = {
        Job({"a": 1}).key("x"),
        Job({"a": 2}).key("x"),
        Job({"a": 1}, "scratch").key("x"),
        Job({"a": 1}).key("y"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("value", [0.5, 5.1, True, "2", None])
def test_knobs_refuse_what_they_may_not_be(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"tech\.knob"):
        Knob("tech.knob", 1, low=1, high=5).check(value)
    with pytest.raises(ArgumentError, match="one of"):
        Knob("tech.knob", "a", ("a", "b")).check(value)


def test_latency_measured_beside_other_trainings_is_named() -> None:
    host, board = load_target("host"), load_target("nucleo-l4r5zi")
    (note,) = disturbed([board, host], 2)
    assert note.startswith("Latency on host was measured while other candidates were trained")
    assert disturbed([board, host], 1) == disturbed([board], 2) == ()
