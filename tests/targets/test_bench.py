"""The host benchmark: statistics against numpy, bands, refusals; no test asserts a speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, EngineError
from edgecompress.core.files import sha256
from edgecompress.targets import bench
from edgecompress.targets.bench import HostLatency, bench_host, summarize


def timing(wall: list[float], cpu: list[float], **more: Any) -> dict[str, Any]:
    """Returns one process's timings, given in microseconds."""
    return {
        "wall": [1e3 * value for value in wall],
        "cpu": [1e3 * value for value in cpu],
        "first": 9e3,
        "warmup": 8e3,
        "init": 7e6,
        "group": 1,
        "version": "1.0",
        "kernels": "XNNPACK",
        **more,
    }


def summary(*runs: dict[str, Any], threads: int = 1) -> HostLatency:
    return summarize(
        list(runs),
        engine="litert",
        threads=threads,
        config={"processes": len(runs), "seed": 0},
        state={"load_before": 1.0, "load_after": 5.5, "steal": 0.0, "governor": None},
        model=b"model",
    )


CALM = (timing([10, 11, 12], [10, 10, 11]), timing([10, 10, 14], [9, 9.5, 10]))


def test_the_measured_value_is_the_median_of_the_processes_cpu_medians() -> None:
    result = summary(*CALM, timing([30, 40, 50], [10.5, 12, 13]))
    assert result.cpu_medians == (10, 9.5, 12)
    assert (result.measured, result.low, result.high) == (10, 9.5, 12)
    assert result.spread_pct == pytest.approx((12 / 9.5 - 1) * 100)
    assert result.latency_us["cpu_median"] == 10


def test_wall_statistics_are_over_all_samples() -> None:
    result = summary(*CALM)
    wall = np.array([10, 11, 12, 10, 10, 14])
    for key, value in (
        ("min", wall.min()),
        ("max", wall.max()),
        ("median", np.median(wall)),
        ("mean", wall.mean()),
        ("std", wall.std()),
        ("p5", np.percentile(wall, 5)),
        ("p90", np.percentile(wall, 90)),
        ("p95", np.percentile(wall, 95)),
        ("first", 9),
        ("warmup", 8),
        ("init", 7000),
    ):
        assert result.latency_us[key] == pytest.approx(value), key
    assert result.samples == 6


def test_a_busy_computer_gets_no_verdict_from_the_wall_clock() -> None:
    assert summary(*CALM).wall_refused is None
    busy = summary(timing([19, 20, 21], [10, 10, 10]))
    assert busy.wall_refused is not None
    assert "2.00 times the CPU time" in busy.wall_refused and "load 5.5" in busy.wall_refused
    # What other programs do leaves the measured value alone.
    assert (busy.measured, busy.low, busy.high) == (10, 10, 10)
    assert summary(timing([12.0], [10.0])).wall_refused is None
    assert summary(timing([12.1], [10.0])).wall_refused is not None


def test_several_threads_are_measured_by_the_wall_clock() -> None:
    calm = summary(*CALM, threads=2)
    assert (calm.measured, calm.low, calm.high) == (10.5, 10, 11)
    busy = summary(timing([20], [10]), timing([30], [11]), threads=2)
    assert busy.wall_refused is not None
    # The band then reaches down to the CPU time, so that no verdict rests on the wall clock.
    assert (busy.low, busy.measured, busy.high) == (10, 25, 30)


def test_memory_is_unknown_where_a_process_does_not_tell() -> None:
    told = timing([1], [1], init_kib=100, overall_kib=300)
    assert summary(told, told).memory_kib == {"init": 100, "overall": 300}
    assert summary(told, timing([1], [1])).memory_kib == {"init": None, "overall": None}


def test_the_json_form_holds_every_number_unrounded() -> None:
    result = summary(*CALM)
    data = json.loads(json.dumps(result.to_dict()))
    assert data["schema"] == "edgecompress.latency/1" and data["tier"] == "measured_host"
    assert data["model"] == {"sha256": sha256(b"model"), "bytes": 5}
    assert data["runtime"] == {"name": "litert", "version": "1.0", "kernels": "XNNPACK"}
    assert data["config"] == {"threads": 1, "processes": 2, "seed": 0}
    assert data["state"]["load_after"] == 5.5
    for key in ("init", "first", "min", "p5", "median", "p90", "p95", "max", "mean", "std"):
        assert data["latency_us"][key] == result.latency_us[key]
    assert data["latency_us"]["measured"] == result.measured
    assert data["latency_us"]["cpu_medians"] == [10, 9.5]
    assert data["device"]["cpu"] and data["device"]["cores"] >= 1


def test_steal_is_the_share_of_the_counters() -> None:
    before, after = (0,) * 8, (50, 0, 20, 20, 0, 0, 0, 10)
    assert bench._steal(before, after) == 0.1
    assert bench._steal(before, before) is None and bench._steal((), after) is None


def test_a_model_is_timed_in_fresh_processes(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    seen: list[tuple[int, int]] = []
    result = bench_host(
        model,
        processes=3,
        min_seconds=0.05,
        warmup=3,
        min_samples=7,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(result.cpu_medians) == len(result.wall_medians) == 3
    assert 0 < result.low <= result.measured <= result.high
    order = ("min", "p5", "median", "p90", "p95", "max")
    assert list(order) == sorted(order, key=lambda key: result.latency_us[key])
    assert result.samples >= 21 and result.kernels == "XNNPACK"
    assert result.model_bytes == len(model) and result.model_sha256 == sha256(model)
    # A small model is timed in groups, so that the clock's own time does not count.
    assert result.inferences_per_sample > 1
    # The inferences of a sample follow each other in one thread: it cannot compute for longer
    # than the clock on the wall has run.
    assert result.latency_us["cpu_median"] <= result.latency_us["p95"] * 1.05


def test_a_file_that_does_not_run_gets_no_number(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    with pytest.raises(EngineError, match="damaged"):
        bench_host(model[:900], processes=1)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"processes": 0}, "processes"),
        ({"processes": 1.5}, "processes"),
        ({"threads": 0}, "threads"),
        ({"warmup": -1}, "warmup"),
        ({"min_samples": 0}, "min_samples"),
        ({"min_seconds": 0}, "min_seconds"),
        ({"min_seconds": 500}, "min_seconds"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        bench_host(b"", **options)
