"""`bench --runner benchmark_model` and `litert`: Google's programs on a phone behind a fake adb."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from keras import layers

import edgecompress as ec
from edgecompress.cli import main
from edgecompress.core.bundle import read_bundle
from edgecompress.core.errors import (
    ArgumentError,
    DeviceError,
    EdgeCompressError,
    ModelFileError,
)
from edgecompress.pipeline.bench_runner import BenchResult, bench
from edgecompress.targets.phones.adb import Phone
from edgecompress.targets.phones.benchmark_model import read_log
from edgecompress.targets.phones.elf import read_program
from edgecompress.targets.phones.litert import run_litert
from edgecompress.targets.phones.program import decode_result
from edgecompress.targets.phones.runners import PhonePlan
from edgecompress.targets.phones.state import read_device, read_state

pytestmark = pytest.mark.slow

_HERE = Path(__file__).parent
_LINKER = b"/system/bin/linker64\0"
Bench = Callable[..., BenchResult]


def elf(machine: int, interpreter: bytes = _LINKER, kind: int = 3, wide: bool = True) -> bytes:
    """Returns the smallest ELF program with an interpreter."""
    head, segment = (64, 56) if wide else (52, 32)
    start = head + segment
    if wide:
        body = struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, head, 0, 0, head, segment, 1,
                           0, 0, 0)  # fmt: skip
        part = struct.pack("<IIQQQQQQ", 3, 4, start, 0, 0, len(interpreter), len(interpreter), 1)
    else:
        body = struct.pack("<HHIIIIIHHHHHH", kind, machine, 1, 0, head, 0, 0, head, segment, 1,
                           0, 0, 0)  # fmt: skip
        part = struct.pack("<IIIIIIII", 3, start, 0, 0, len(interpreter), len(interpreter), 4, 1)
    mark = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    return mark + body + part + interpreter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(3)]
    )
    folder = tmp_path_factory.mktemp("export")
    model.save(folder / "tiny.keras")
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 1)).astype(np.float32)
    ec.export(folder / "tiny.keras", ["pixel-8"], calibration=x, output=folder / "build",
              max_latency="102us", max_ram="1MiB")  # fmt: skip
    return folder / "build"


@pytest.fixture
def run(
    phone: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_whole: Callable[[Any, str], None],
) -> Bench:
    """Runs `bench --adb` with a benchmark program; capitals are the fake phone's environment."""
    binary = tmp_path / "android_aarch64_benchmark_model"
    binary.write_bytes(elf(183))
    monkeypatch.setenv("FAKE_BENCHMARK", str(_HERE / "fake_benchmark.py"))

    def call(**options: Any) -> BenchResult:
        for name in [name for name in options if name.isupper()]:
            monkeypatch.setenv(f"FAKE_{name}", options.pop(name))
        options = {"processes": 2, "poll_s": 0.01, "adb": True, "binary": binary,
                   "runner": "benchmark_model", "min_seconds": 0.1, **options}  # fmt: skip
        result = bench(bundle, output=tmp_path / "result.json", **options)
        assert json.loads((tmp_path / "result.json").read_text()) == json.loads(result.to_json())
        check_whole(json.loads(result.to_json()), "measurement")
        return result

    return call


# --- a run --------------------------------------------------------------------------------------


def _left(phone: Path) -> list[str]:
    """Names of the files that a run left on the phone."""
    return sorted(p.name for p in (phone / "data/local/tmp/edgecompress").rglob("*") if p.is_file())


def test_a_run_ends_in_a_verdict_that_check_takes(
    run: Bench, phone: Path, bundle: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    result = run(MEDIANS="100,101,102", processes=3, progress=said.append)
    assert (result.verdict, result.exit_code) == ("pass", 0)
    (entry,) = result.data["measurements"]
    latency = entry["latency_us"]
    assert latency["repeat_medians"] == [100.0, 101.0, 102.0]
    assert (latency["min"], latency["median"], latency["max"]) == (95.0, 101.0, 152.0)
    assert (latency["init"], latency["first"], latency["warmup"]) == (900.0, 200.0, 120.0)
    assert (latency["p5"], latency["p95"]) == (100.0, 103.0)
    assert latency["samples"] == 150
    # What the program does not tell is null.
    assert (latency["p90"], latency["histogram"], entry["golden"]) == (None, None, None)
    assert entry["output_sha256"] is None
    assert entry["memory_kb"] == {"init": 100, "overall": 200, "peak": None}
    assert entry["config"]["processes"] == 3
    assert entry["runtime"]["kernels"] == "XNNPACK"
    program = entry["runtime"]["program"]
    assert (program["name"], program["bytes"]) == ("android_aarch64_benchmark_model", len(elf(183)))
    # It never passes for outputs that nobody looked at.
    golden = next(check for check in entry["checks"] if check["rule"] == "golden")
    assert golden["verdict"] == "not_applicable"
    assert "its outputs were not checked" in golden["reason"]
    assert "its outputs were not checked" in result.text()
    assert any(text.startswith("Process 2 of 3: int8, threads: 1") for text in said)
    # The program and the model stay for the next run.
    assert _left(phone) == ["benchmark_model", "model.tflite"]
    pushed = next((phone / "data/local/tmp/edgecompress").rglob("benchmark_model"))
    assert pushed.stat().st_mode & 0o777 == 0o755
    run(processes=1)
    assert len((phone / ".pushes").read_text()) == 2

    options = (phone / "command.txt").read_text()
    for option in ("--num_threads=1 ", "--use_xnnpack=true ", "--enable_op_profiling=false ",
                   "--num_runs=50 ", "--warmup_runs=10 ", "--min_secs=0.1 ", "--max_secs=600 ",
                   "/model.tflite ", "/result.pb "):  # fmt: skip
        assert option in options

    run(MEDIANS="100", processes=1)
    file = next(bundle.glob("*_int8.tflite"))
    for limit, verdict in (("100us", "pass"), ("99us", "fail")):
        report = ec.check(file, ["pixel-8"], max_latency=limit, measured=tmp_path / "result.json")
        found = next(c for c in report.targets[0].checks if c.rule == "latency")
        assert (found.verdict, found.how_known) == (verdict, "measured_device")


def test_what_the_phone_is_and_what_state_it_is_in(run: Bench) -> None:
    data = run(processes=1).data
    assert data["device"] == {
        "manufacturer": "Google", "model": "Pixel 8", "soc": "Tensor G3", "abi": "arm64-v8a",
        "android": "14", "sdk": 34,
        "build_fingerprint": "google/shiba/shiba:14/x:user/release-keys",
        "cpu_features": ["fp", "asimd", "asimddp"], "cores": 3,
        "max_freq_khz": [1700000, 1700002, 1700010], "ram_kb": 7800000,
    }  # fmt: skip
    assert data["state"] == {
        "thermal_before": 0, "thermal_after": 0, "thermal_headroom_before": None,
        "thermal_headroom_after": None, "battery_before": 0.85, "battery_after": 0.85,
        "battery_temperature_c": 30.1, "charging": True, "power_save": False, "governor": "walt",
        "load_before": 1.5, "load_after": 1.5, "available_kb": 4000000,
    }  # fmt: skip


def test_what_a_phone_denies_is_null(run: Bench) -> None:
    data = run(processes=1, FAULTS="denied").data
    assert {k for k, v in data["device"].items() if v is not None} == {"abi"}
    known = {k for k, v in data["state"].items() if v is not None}
    assert known == {"thermal_before", "thermal_after"}


def test_a_phone_that_is_gone_is_no_phone_without_facts() -> None:
    nobody = Phone("false", "PHONE1")
    for read in (read_device, read_state):
        with pytest.raises(DeviceError, match="no longer answers"):
            read(nobody)


def test_every_setting_is_an_entry(run: Bench) -> None:
    result = run(models=("int8", "float32"), threads=(1, 4))
    found = [(m["model"]["kind"], m["config"]["threads"]) for m in result.data["measurements"]]
    assert found == [("int8", 1), ("int8", 4), ("float32", 1), ("float32", 4)]
    assert all(m["config"]["processes"] == 2 for m in result.data["measurements"])


def test_litert(run: Bench, phone: Path) -> None:
    (entry,) = run(runner="litert", MEDIANS="100,101").data["measurements"]
    assert entry["latency_us"]["repeat_medians"] == [100.0, 101.0]
    assert (entry["runtime"]["api"], entry["runtime"]["kernels"]) == ("CompiledModel", None)
    assert "benchmark_litert_model feeds random values" in entry["golden_reason"]
    options = (phone / "command.txt").read_text()
    assert "--use_cpu=true --use_gpu=false --use_npu=false" in options
    assert "xnnpack" not in options


def test_litert_has_no_run_without_xnnpack(bundle: Path) -> None:
    with pytest.raises(ArgumentError, match="must be on"):
        run_litert(Phone("false", "A"), read_bundle(bundle), PhonePlan(("int8",), xnnpack="off"),
                   lambda text: None)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "verdict", "code", "allowed", "reason"),
    [
        ({"max_latency": "99us"}, "fail", 3, 3, "is above the limit of 99.0 us"),
        ({"MEDIANS": "100,105"}, "uncertain", 6, 0, "straddles the limit"),
        ({"MEDIANS": "80,85"}, "uncertain", 6, 0, "The repeats lie 6.2 % apart, more than 5 %."),
        ({"STATUS": "0,1,1", "cooldown_s": 0.1}, "uncertain", 6, 0, "(thermal status 0 to 1)"),
        ({"FAULTS": "old_build"}, "pass", 0, 0, "100.0 us"),
        ({"FAULTS": "operator"}, "fail", 5, 5, "has no operator LceQuantize."),
        ({"FAULTS": "operator", "runner": "litert"}, "fail", 5, 5, "no operator LceQuantize."),
        ({"FAULTS": "new_operator"}, "fail", 5, 5, "has no operator CONV_2D."),
        ({"FAULTS": "model"}, "fail", 1, 1, "does not run the file: ERROR: Failed to load model"),
    ],
)  # fmt: skip
def test_verdicts(
    run: Bench, settings: dict[str, Any], verdict: str, code: int, allowed: int, reason: str
) -> None:
    result = run(**settings)
    assert (result.verdict, result.exit_code) == (verdict, code)
    assert (result.exit_code_for(False), result.exit_code_for(True)) == (code, allowed)
    assert reason in result.text()


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"ABIS": "x86_64,x86"}, ArgumentError,
         "`--binary` must be built for x86_64 or x86, which the phone PHONE1 runs. Got 'arm64"),
        ({"FAULTS": "crash"}, DeviceError,
         "benchmark_model crashed on the phone PHONE1 (signal 11, SIGSEGV). Its output ends: INFO"),
        ({"FAULTS": "out_of_memory"}, DeviceError, "was killed on the phone PHONE1 (signal 9"),
        ({"FAULTS": "no_library"}, DeviceError, "(exit status 1). Its output ends: INFO: STARTING! "
         'CANNOT LINK EXECUTABLE "x": library "libLiteRt.so" not found'),
        ({"FAULTS": "mute"}, ModelFileError, "gave no result that can be read: there is no line"),
        ({"FAULTS": "mute", "runner": "litert"}, ModelFileError, "it wrote no result file, use a"),
        ({"FAULTS": "garbage"}, ModelFileError, "gave no result that can be read"),
        ({"FAULTS": "garbage,old_build"}, ModelFileError, "there is no line of inference timings"),
        ({"FAULTS": "cut_result"}, ModelFileError, "it is cut off."),
        ({"FAULTS": "no_median,old_build"}, ModelFileError, "prints no median, use a newer build"),
        ({"FAULTS": "no_runs"}, ModelFileError, "is invalid: it timed no inference."),
        ({"FAULTS": "other_size"}, ModelFileError, "7.7e-05 MB, and not of the one that was"),
        ({"FAULTS": "strange_build"}, DeviceError, "does not support num_threads, so it did not"),
        ({"FAULTS": "unplugged"}, DeviceError, "was it unplugged? adb: device 'PHONE1' not found"),
        ({"FAULTS": "push"}, DeviceError, "No space left on device."),
        ({"FAULTS": "pull"}, DeviceError, "Permission denied."),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_writes_nothing(
    run: Bench,
    settings: dict[str, Any],
    error: type[EdgeCompressError],
    text: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        run(processes=1, **settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "result.json").exists()


def test_a_program_that_does_not_end_is_stopped(run: Bench, phone: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=r"No result came within 1 s \(--timeout\); benchmark_mo"):
        run(FAULTS="forever", timeout_s=1.0)
    assert time.monotonic() - begin < 60

    # Nothing goes on, and nothing but the pushed files is left.
    def alive() -> list[Path]:
        return [p for p in Path("/proc").glob("[0-9]*/cmdline") if _says(p, str(phone))]

    # A killed process goes when the system gets to it.
    deadline = time.monotonic() + 20
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive()
    assert _left(phone) == ["benchmark_model", "model.tflite"]


def _says(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False


# --- what the programs write --------------------------------------------------------------------

# Names and numbers as in benchmark_result.proto of LiteRT.
_PROTO = {
    "LatencyMetrics": ["avg_ms", "min_ms", "max_ms", "stddev_ms", "median_ms", "p5_ms", "p95_ms",
                       "init_ms", "first_inference_ms", "average_warm_up_ms"],
    "MemoryMetrics": ["init_footprint_kb", "overall_footprint_kb", "peak_mem_mb"],
    "MiscMetrics": ["model_size_mb", "num_runs", "num_warmup_runs",
                    "model_throughput_in_mb_per_sec", "throughput_fps"],
}  # fmt: skip


def _proto() -> Any:
    """Returns the message class BenchmarkResult of the protobuf library."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="result.proto", package="t", syntax="proto2")
    for name, fields in _PROTO.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields, 1):
            kind = (kinds.TYPE_INT64 if field.endswith("_kb") else
                    kinds.TYPE_INT32 if field.startswith("num_") else kinds.TYPE_FLOAT)  # fmt: skip
            message.field.add(name=field, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    result = file.message_type.add(name="BenchmarkResult")
    result.field.add(name="name", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    for number, name in enumerate(_PROTO, 2):
        result.field.add(name=name.lower(), number=number, type=kinds.TYPE_MESSAGE,
                         label=kinds.LABEL_OPTIONAL, type_name=f".t.{name}")  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BenchmarkResult"))


def _result(**changes: Any) -> Any:
    result = _proto()(name="x")
    for number, field in enumerate(_PROTO["LatencyMetrics"], 1):
        setattr(result.latencymetrics, field, number * 1.001)
    result.memorymetrics.init_footprint_kb = 300
    result.memorymetrics.overall_footprint_kb = 70000
    result.miscmetrics.model_size_mb = 3.25
    result.miscmetrics.num_runs = 1234
    result.miscmetrics.num_warmup_runs = 99
    result.miscmetrics.throughput_fps = 1.5
    for name, value in changes.items():
        setattr(result.memorymetrics, name, value)
    return result


def test_the_result_is_read_as_protobuf_wrote_it() -> None:
    figures = decode_result(_result().SerializeToString())
    assert (figures.mean, figures.min, figures.max, figures.std, figures.median) == (
        1001.0, 2002.0, 3003.0, 4004.0, 5005.0,
    )  # fmt: skip
    assert (figures.p5, figures.p95, figures.init, figures.first, figures.warmup) == (
        6006.0, 7007.0, 8008.0, 9009.0, 10010.0,
    )  # fmt: skip
    assert (figures.samples, figures.model_mb) == (1234, 3.25)
    assert (figures.memory_init, figures.memory_overall) == (300, 70000)


def test_a_process_that_shrank_has_no_memory_figure() -> None:
    figures = decode_result(_result(init_footprint_kb=-1).SerializeToString())
    assert (figures.memory_init, figures.memory_overall) == (None, 70000)


def test_no_part_of_a_result_is_taken_for_the_whole() -> None:
    content = _result().SerializeToString()
    for end in range(len(content)):
        try:
            figures = decode_result(content[:end])
        except ValueError:
            continue
        # Whole times, but without the number of runs: refused by what reads it.
        assert figures.problem(3250000) == "it timed no inference"


def test_damaged_results_are_refused_without_a_traceback() -> None:
    content = bytearray(_result().SerializeToString())
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(0, 256)
        try:
            decode_result(bytes(damaged)).problem(3250000)
        except ValueError:
            refused += 1
    # A different time is not damage that the schema can show.
    assert 200 < refused < 2000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"samples": 0}, "it timed no inference"),
        ({"median": float("nan")}, "its times are not times"),
        ({"init": -1.0}, "its times are not times"),
        ({"median": 9e9}, "its percentiles are out of order"),
        ({"model_mb": 3.26}, "it is of a file of 3.26 MB, and not of the one that was pushed"),
        ({"model_mb": None}, None),
        ({}, None),
    ],
)
def test_figures_that_are_worthless(change: dict[str, Any], problem: str | None) -> None:
    good = decode_result(_result().SerializeToString())
    good = dataclasses.replace(good, min=1.0, p5=2.0, median=3.0, p95=4.0, max=5.0)
    assert dataclasses.replace(good, **change).problem(3250123) == problem


_LOG = """I tflite  : The input model file size (MB): 3.06409
I tflite  : Initialized session in 92.318ms.
I tflite  : count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 \
median=200386 p95=235158
I tflite  : count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 \
median=141253 p95=187533
I tflite  : Inference timings in us: Init: 92318, First inference: 235158, Warmup (avg): \
2.11669e+05, Inference (avg): 145528
I tflite  : Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""


def test_the_log_of_a_real_phone() -> None:
    figures = read_log(_LOG)
    assert (figures.samples, figures.median, figures.p5, figures.p95) == (
        25,
        141253,
        140545,
        187533,
    )
    assert (figures.min, figures.max, figures.mean, figures.std) == (140071, 195121, 145528, 13583)
    assert (figures.init, figures.first, figures.warmup) == (92318, 235158, 211669)
    assert figures.memory_overall == pytest.approx(73.4102 * 1024)
    assert figures.problem(3064090) is None
    assert figures.problem(3100000) is not None


def test_a_log_where_all_runs_took_the_same() -> None:
    text = _LOG.replace(
        "count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 "
        "median=141253 p95=187533", "count=50 curr=33(all same) p5=33 median=33 p95=33",
    ).replace("Inference (avg): 145528", "Inference (avg): 33")  # fmt: skip
    figures = read_log(text)
    assert (figures.min, figures.median, figures.max, figures.mean, figures.std) == (33,) * 4 + (0,)


def test_a_median_of_nothing_is_no_measurement(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompress.targets.phones import program as phone_program

    real = phone_program.decode_result

    def zero(content: bytes) -> Any:
        return dataclasses.replace(real(content), min=0.0, p5=0.0, median=0.0)

    monkeypatch.setattr(phone_program, "decode_result", zero)
    result = run()
    assert (result.verdict, result.exit_code_for(False)) == ("fail", 1)
    assert "An inference takes less than 1 us" in result.text()


@pytest.mark.parametrize("faults", ["", "partial"])
def test_kernels_are_what_the_program_tells(run: Bench, faults: str) -> None:
    (entry,) = run(FAULTS=faults, processes=1).data["measurements"]
    wanted = "XNNPACK and built-in" if faults else "XNNPACK"
    assert entry["runtime"]["kernels"] == wanted


# --- the program --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "abi"),
    [
        (elf(183), "arm64-v8a"),
        (elf(62), "x86_64"),
        (elf(40, b"/system/bin/linker\0", wide=False), "armeabi-v7a"),
        (elf(3, b"/system/bin/linker\0", wide=False), "x86"),
        (elf(183, b"/apex/com.android.runtime/bin/linker64\0"), "arm64-v8a"),
    ],
)
def test_the_abi_of_a_program(content: bytes, abi: str, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(content)
    assert read_program(tmp_path / "program", "--binary").abi == abi


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "a program for Android (ELF)"),
        (b"#!/bin/sh\n", "a program for Android (ELF)"),
        (elf(183)[:30], "a program for Android (ELF)"),
        (elf(183)[:70], "a program for Android (ELF)"),
        (elf(183, kind=1), "a program for Android (ELF)"),
        (elf(20), "be built for one of x86, armeabi-v7a"),
        (
            elf(183, b"/lib/ld-linux-aarch64.so.1\0"),
            "It is for Linux: it needs /lib/ld-linux-aa",
        ),
    ],
)
def test_what_is_no_program_for_a_phone(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(content)
    with pytest.raises(ArgumentError) as caught:
        read_program(tmp_path / "program", "--binary")
    assert text in str(caught.value)


def test_this_computers_own_program_is_for_linux() -> None:
    with pytest.raises(ArgumentError, match="It is for Linux: it needs /lib"):
        read_program(sys.executable, "--binary")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--adb --runner benchmark_model", "`--binary` must name the program benchmark_model for"),
        ("--adb --runner litert", "`--binary` must name the program benchmark_litert_model"),
        (
            "--adb --runner litert --binary nowhere",
            "must be a readable file. Got 'nowhere'. It does",
        ),
        ("--adb --binary x", "`--binary` must go with --runner benchmark_model or --runner litert"),
        ("--host --runner litert --binary x", "`--runner` must go with --adb. Got 'litert'."),
        ("--adb --runner benchmark-model", "Did you mean benchmark_model"),
    ],
)
def test_wrong_options(
    options: str, text: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(bundle), *options.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert text in err
