"""Engines: equal results to Keras, one-line errors, and failures that never reach the caller."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.core.errors import (
    ArgumentError,
    EngineError,
    MissingDependencyError,
    UnknownNameError,
)
from edgecompress.core.registry import Registry
from edgecompress.engines import run as engines
from edgecompress.engines import worker
from edgecompress.engines.registry import ENGINES, Engine
from edgecompress.engines.run import engine_available, load_failure, run_engine, time_engine
from edgecompress.flatbuffers.reading import read_tflite

pytestmark = pytest.mark.slow

NAMES = list(ENGINES)
OTHER = np.random.default_rng(3)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    missing = engine_available(request.param)
    if missing:
        pytest.skip(missing)
    return str(request.param)


def available() -> list[str]:
    return [name for name in NAMES if engine_available(name) is None]


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_code(data: bytes, old: str, new: str, version: int = 1, custom: str = "") -> bytes:
    """Returns the model with one operator code replaced."""

    def change(model: Any) -> None:
        for code in model.operatorCodes:
            if code.builtinCode == getattr(schema.BuiltinOperator, old):
                number = getattr(schema.BuiltinOperator, new)
                code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
                code.version, code.customCode = version, custom or None
                for operator in model.subgraphs[0].operators:
                    if custom and model.operatorCodes[operator.opcodeIndex] is code:
                        operator.builtinOptionsType, operator.builtinOptions = 0, None

    return edited(data, change)


def random_int8(tiny: Path, model: str, count: int) -> list[np.ndarray]:
    flat = read_tflite(tiny / f"{model}_int8.tflite")
    return [
        OTHER.integers(-128, 128, (count, *flat.tensors[i].shape[1:]), np.int8) for i in flat.inputs
    ]


# ---- results


@pytest.mark.parametrize("model", ["classifier", "autoencoder", "sigmoid"])
def test_float_models_give_the_outputs_of_keras(tiny: Path, name: str, model: str) -> None:
    data = np.load(tiny / f"{model}.npz")
    run = run_engine(name, (tiny / f"{model}.tflite").read_bytes(), [data["x0"]])
    assert run.outputs[0].shape == data["y0"].shape
    np.testing.assert_allclose(run.outputs[0], data["y0"], atol=1e-5)
    assert (run.engine, bool(run.version), bool(run.kernels)) == (name, True, True)


def test_several_inputs_and_outputs_by_position(tiny: Path, name: str) -> None:
    data = np.load(tiny / "two.npz")
    run = run_engine(name, (tiny / "two.tflite").read_bytes(), [data["x0"], data["x1"]])
    found = {output.shape[1]: output for output in run.outputs}
    assert sorted(found) == [2, 7]
    for expected in (data["y0"], data["y1"]):
        np.testing.assert_allclose(found[expected.shape[1]], expected, atol=1e-5)


def test_int8_engines_agree_within_few_steps(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    inputs = random_int8(tiny, "classifier", 50)
    runs = {name: run_engine(name, model, inputs).outputs[0] for name in available()}
    assert len(runs) > 1
    assert all(output.dtype == np.int8 for output in runs.values())
    first = runs["litert"].astype(int)
    assert np.ptp(first) > 100
    for output in runs.values():
        assert np.abs(output.astype(int) - first).max() <= 3


def test_samples_do_not_see_each_other(tiny: Path, name: str) -> None:
    model = (tiny / "recurrent.tflite").read_bytes()
    assert any(tensor.is_variable for tensor in read_tflite(model).tensors)
    x = OTHER.normal(size=(3, 4, 3)).astype(np.float32)
    together = run_engine(name, model, [x]).outputs[0]
    alone = [run_engine(name, model, [x[i : i + 1]]).outputs[0] for i in range(3)]
    assert np.abs(together).max() > 0.01
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_the_batch_axis_of_one_may_be_given_or_left_out(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    (x,) = random_int8(tiny, "classifier", 4)
    short, long = (run_engine("litert", model, [a]).outputs[0] for a in (x, x[:, None]))
    np.testing.assert_array_equal(short, long)


def test_intermediate_tensors_equal_numpy(tiny: Path, name: str) -> None:
    model = (tiny / "autoencoder.tflite").read_bytes()
    if not ENGINES[name].intermediates:
        with pytest.raises(ArgumentError, match=r"`tensors` must be left out: .* Got \(3,\)"):
            run_engine(name, model, [np.load(tiny / "autoencoder.npz")["x0"]], tensors=(3,))
        return
    flat = read_tflite(model)
    encode = flat.operators[0]
    data = np.load(tiny / "autoencoder.npz")
    # The biases of an untrained layer are zero, and the converter leaves them out.
    expected = np.maximum(data["x0"] @ flat.tensors[encode.inputs[1]].values().T, 0)
    wanted = (encode.outputs[0], flat.inputs[0], encode.outputs[0])
    run = run_engine(name, model, [data["x0"]], tensors=wanted)
    assert list(run.tensors) == [encode.outputs[0], flat.inputs[0]]
    np.testing.assert_allclose(run.tensors[encode.outputs[0]], expected, atol=1e-5)
    np.testing.assert_array_equal(run.tensors[flat.inputs[0]], data["x0"])
    assert run.kernels != "XNNPACK"


def test_kernels_are_named(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    inputs = random_int8(tiny, "classifier", 1)
    assert run_engine("litert", model, inputs).kernels == "XNNPACK"
    assert run_engine("tflm", model, inputs).kernels == "TFLM reference"


def test_progress_counts_up_to_the_samples(tiny: Path, fake: Fake) -> None:
    fake("for n in (3, 7): tell(done=n)\ntell(error='stop', kind='engine')")
    seen: list[tuple[int, int]] = []
    with pytest.raises(EngineError, match="stop"):
        run_engine(
            "fake", b"", [np.zeros((9, 1))], progress=lambda done, total: seen.append((done, total))
        )
    assert seen == [(3, 9), (7, 9)]


@pytest.mark.parametrize("file", ["ad01_int8", "kws_ref_model", "vww_96_int8"])
def test_reference_models_load_everywhere(shared: Path, name: str, file: str) -> None:
    model = (shared / "models" / "mlperf_tiny" / f"{file}.tflite").read_bytes()
    assert load_failure(name, model) is None


# ---- arguments


def test_wrong_inputs_are_named(tiny: Path, name: str) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    (x,) = random_int8(tiny, "classifier", 3)
    for inputs, text in (
        ([x.astype(np.float32)], r"have the type of the input, int8\. Got float32\."),
        ([x, x], r"one array for each of the model's 1 inputs\. Got 2 arrays\."),
        ([x[:, :5]], r"shape of the input, \(8, 8, 1\), .* Got \(3, 5, 8, 1\)\."),
        ([x[:0]], "at least one sample"),
        ([np.int8(3)], "first axis is samples"),
    ):
        with pytest.raises(ArgumentError, match=text):
            run_engine(name, model, inputs)


def test_unequal_sample_counts_are_refused(tiny: Path) -> None:
    a, b = random_int8(tiny, "two", 4)
    with pytest.raises(ArgumentError, match=r"equally many samples .* Got \[4, 3\]"):
        run_engine("litert", (tiny / "two_int8.tflite").read_bytes(), [a, b[:3]])


def test_a_tensor_out_of_range_is_refused(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    inputs = random_int8(tiny, "classifier", 1)
    with pytest.raises(EngineError, match="5000"):
        run_engine("litert", model, inputs, tensors=(5000,))
    with pytest.raises(ArgumentError, match="tensors"):
        run_engine("litert", model, inputs, tensors=(-1,))


def test_an_unknown_engine_offers_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="litert"):
        run_engine("litrt", b"", [])


def test_timeout_must_be_positive(tiny: Path) -> None:
    with pytest.raises(ArgumentError, match="timeout_s"):
        load_failure("litert", (tiny / "two.tflite").read_bytes(), timeout_s=0)


# ---- refusals keep the engine's reason


def test_an_operator_version_too_new_is_named(tiny: Path) -> None:
    model = with_code((tiny / "classifier_int8.tflite").read_bytes(), "CONV_2D", "CONV_2D", 99)
    names = {"litert", "tflite-runtime"} & {*available()}
    assert names
    for name in names:
        reason = load_failure(name, model)
        assert reason and "builtin opcode 'CONV_2D' version '99'" in reason
        assert "\n" not in reason and "Traceback" not in reason and "INFO" not in reason


def test_an_operator_the_engine_lacks_is_named(tiny: Path, name: str) -> None:
    data = (tiny / "classifier_int8.tflite").read_bytes()
    model = with_code(data, "SOFTMAX", "STABLEHLO_CBRT", custom="x")
    assert "STABLEHLO_CBRT" in (load_failure(name, model) or "")
    model = with_code(data, "SOFTMAX", "CUSTOM", custom="Nonesuch")
    assert "Nonesuch" in (load_failure(name, model) or "")


@pytest.mark.parametrize("stock", ["litert", "tflm", "tflite-runtime"])
def test_stock_engines_do_not_know_binary_operators(tiny: Path, stock: str) -> None:
    if missing := engine_available(stock):
        pytest.skip(missing)
    data = (tiny / "classifier_int8.tflite").read_bytes()
    model = with_code(data, "SOFTMAX", "CUSTOM", custom="LceQuantize")
    assert "LceQuantize" in (load_failure(stock, model) or "")


def test_tflm_says_which_kernel_refused(tiny: Path) -> None:
    def int16_output(model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.outputs[0]].type = schema.TensorType.INT16

    reason = load_failure(
        "tflm", edited((tiny / "classifier_int8.tflite").read_bytes(), int16_output)
    )
    assert reason and "softmax" in reason and "Node SOFTMAX" in reason


def test_tflm_gets_an_arena_as_large_as_it_needs(tiny: Path, tmp_path: Path) -> None:
    # A worker that begins with 1 KiB must end where the one with 16 MiB does.
    text = Path(engines.__file__).with_name("worker.py").read_text()
    small = text.replace(
        "_ARENA_BYTES = (16 << 20, ", "_ARENA_BYTES = (1 << 10, 2 << 10, 1 << 16, "
    )
    assert small != text
    (tmp_path / "worker.py").write_text(small)
    engine = dataclasses.replace(ENGINES["tflm"], worker=tmp_path / "worker.py")
    registry: Registry[Engine] = Registry("engine")
    registry.register("tflm")(engine)
    model = (tiny / "classifier_int8.tflite").read_bytes()
    inputs = random_int8(tiny, "classifier", 2)
    expected = run_engine("tflm", model, inputs).outputs[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "ENGINES", registry)
        np.testing.assert_array_equal(run_engine("tflm", model, inputs).outputs[0], expected)


def test_a_model_too_large_for_any_arena_says_what_it_asked_for(tiny: Path) -> None:
    def wide(model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].shape = [1, 60000, 60000, 1]

    reason = load_failure("tflm", edited((tiny / "classifier_int8.tflite").read_bytes(), wide))
    assert reason and "Requested: 3600000000" in reason


@pytest.mark.parametrize("length", [0, 7, 40, 1500, -200])
def test_a_truncated_file_never_takes_the_caller_down(tiny: Path, name: str, length: int) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()[:length]
    reason = load_failure(name, model)
    assert reason and "\n" not in reason
    assert "damaged" in reason or "not a .tflite file" in reason


# ---- engines that crash, hang or cannot be started


Fake = Callable[[str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Returns a function that registers an engine whose worker runs the given code."""

    def make(code: str) -> None:
        worker = tmp_path / "fake_worker.py"
        worker.write_text(
            "import json, os, sys, time\n"
            "def tell(**answer): print(json.dumps(answer), flush=True)\n" + code
        )
        registry: Registry[Engine] = Registry("engine")
        engine = Engine("fake", "Fake", "fake", "fake_engine", "lite", "Nowhere.", worker)
        registry.register("fake")(engine)
        monkeypatch.setattr(engines, "ENGINES", registry)

    return make


def test_an_abort_is_an_error_with_its_last_words(fake: Fake) -> None:
    fake("sys.stderr.write('INFO: hello\\nF0000 tensor.cc:7 Check failed: x > 0\\n')\nos.abort()")
    with pytest.raises(EngineError) as caught:
        run_engine("fake", b"", [np.zeros((1, 1))])
    text = str(caught.value)
    assert "Fake crashed (SIGABRT)" in text and "Check failed: x > 0" in text
    assert "hello" not in text and "\n" not in text


def test_a_segmentation_fault_is_an_error(fake: Fake) -> None:
    fake("import signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(EngineError, match="SIGSEGV"):
        run_engine("fake", b"", [np.zeros((1, 1))])


def test_a_silent_exit_is_an_error(fake: Fake) -> None:
    fake("print('chatter, not an answer')\nsys.exit(3)")
    with pytest.raises(EngineError, match="exit status 3"):
        run_engine("fake", b"", [np.zeros((1, 1))])


def test_a_killed_worker_points_at_memory(fake: Fake) -> None:
    fake("import signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EngineError, match="memory"):
        run_engine("fake", b"", [np.zeros((1, 1))])


def test_a_hanging_engine_is_stopped(fake: Fake, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    fake(f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntell(done=1)\ntime.sleep(600)")
    with pytest.raises(EngineError, match=r"1 s passed without a finished inference"):
        run_engine("fake", b"", [np.zeros((5, 1))], timeout_s=1)
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_signs_of_life_hold_the_timeout_off(fake: Fake) -> None:
    fake(
        "for n in range(6):\n    time.sleep(0.5)\n    tell(done=n)\n"
        "tell(error='reached the end', kind='engine')"
    )
    with pytest.raises(EngineError, match="reached the end"):
        run_engine("fake", b"", [np.zeros((9, 1))], timeout_s=2)


def test_an_engine_that_is_not_installed_names_its_package(monkeypatch: Any) -> None:
    registry: Registry[Engine] = Registry("engine")
    absent = Engine("absent", "Absent", "absent-engine", "absent_engine_module", "lite", "Nowhere.")
    registry.register("absent")(absent)
    monkeypatch.setattr(engines, "ENGINES", registry)
    reason = engine_available("absent")
    assert reason and "pip install absent-engine" in reason and "Nowhere." in reason
    with pytest.raises(MissingDependencyError, match="absent-engine"):
        run_engine("absent", b"", [])


def test_an_engine_of_an_extra_names_the_extra(monkeypatch: Any) -> None:
    registry: Registry[Engine] = Registry("engine")
    registry.register("lce")(dataclasses.replace(ENGINES["lce"], module="absent_engine_module"))
    monkeypatch.setattr(engines, "ENGINES", registry)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgecompress\[binary\]'"):
        run_engine("lce", b"", [])


def test_an_installed_engine_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine_module.py").write_text("raise ImportError('numpy.core is gone')")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[Engine] = Registry("engine")
    broken = Engine("broken", "Broken", "broken", "broken_engine_module", "lite", "Nowhere.")
    registry.register("broken")(broken)
    monkeypatch.setattr(engines, "ENGINES", registry)
    assert "numpy.core is gone" in (engine_available("broken") or "")


def test_all_engines_are_available_here_or_say_why() -> None:
    reasons = [engine_available(engine) for engine in ENGINES]
    assert all("pip install" in reason for reason in reasons if reason is not None)
    assert None in reasons


# ---- isolation


def test_nothing_is_imported_from_the_current_folder(tiny: Path, tmp_path: Path) -> None:
    for trap in ("numpy.py", "json.py", "dis.py", "ai_edge_litert.py", "tflite_runtime.py",
                 "larq_compute_engine.py", "interpreter_wrapper_lite.py"):  # fmt: skip
        (tmp_path / trap).write_text("raise SystemExit('imported from the current folder')")
    for folder in ("targets", "converters", "tflite_micro"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('imported')")
    program = (
        "import sys; from pathlib import Path; from edgecompress.engines.run import load_failure;"
        "sys.path.insert(0, '');"
        "model = Path(sys.argv[1]).read_bytes();"
        "print([load_failure(name, model) for name in sys.argv[2:]])"
    )
    names = available()
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tiny / "classifier_int8.tflite"), *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "", "PATH": ""},
        check=False,
    )
    assert done.stdout.strip() == str([None] * len(names)), done.stdout + done.stderr


def test_no_engine_comes_into_the_callers_process(tiny: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgecompress.engines.run import load_failure;"
        "model = Path(sys.argv[1]).read_bytes();"
        "reasons = [load_failure(name, model) for name in sys.argv[2:]];"
        "bad = [m for m in sys.modules if 'wrapper' in m and 'lite' in m or m in"
        "('tflite_micro', 'tflite_runtime', 'tensorflow', 'keras')]; print(reasons, bad)"
    )
    names = available()
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tiny / "classifier_int8.tflite"), *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"{[None] * len(names)} []", done.stdout + done.stderr


# ---- timing


def test_timings_have_the_form_that_the_benchmark_reads(tiny: Path) -> None:
    model = (tiny / "classifier_int8.tflite").read_bytes()
    timing = time_engine("litert", model, min_seconds=0.05, min_samples=4, warmup=2)
    assert len(timing["wall"]) == len(timing["cpu"]) >= 4
    assert min(timing["wall"]) > 0 and timing["first"] > 0 and timing["init"] > 0
    assert timing["group"] >= 1 and timing["kernels"] == "XNNPACK"


@pytest.mark.parametrize("scale", [0.0, 0.25])
def test_errors_are_summed_over_all_parts(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_PART", 7)
    exact = OTHER.normal(size=(1, 5, 4)).astype(np.float32)
    rounded = OTHER.integers(-9, 9, (1, 20)).astype(np.int8)
    real = (rounded.astype(np.float64) - 3) * scale if scale else rounded.astype(np.float64)
    expected = (exact.astype(np.float64) ** 2).sum(), ((real.ravel() - exact.ravel()) ** 2).sum()
    np.testing.assert_allclose(worker._sums(exact, rounded, scale, 3), expected, rtol=1e-12)
