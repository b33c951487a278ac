"""What all tests share: a quiet TensorFlow, the reference models, fixed seeds."""

from __future__ import annotations

import compileall
import fcntl
import gc
import hashlib
import importlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgecompress.core import isolation
from edgecompress.engines.run import engine_available

from . import short_fits
from .programs import Programs

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

_SHARED = Path(__file__).resolve().parents[2] / "shared"
_CORE = Path(__file__).parents[1] / "android_demo/app/src/main/java/io/edgecompress/demo/core"
# The runtime, its library, and org.json as Android has it.
_JARS = (
    "ai/djl/tflite/tflite-engine/0.27.0/tflite-engine-0.27.0.jar",
    "ai/djl/tflite/tflite-native-cpu/2.6.2/tflite-native-cpu-2.6.2-linux-x86_64.jar",
    "org/robolectric/android-all/14-robolectric-10818077/"
    "android-all-14-robolectric-10818077.jar",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the package once, for the hundreds of processes that start it and may not write."""
    if not hasattr(config, "workerinput"):
        for folder in ("edgecompress", "converters", "targets"):
            compileall.compile_dir(Path(__file__).parents[1] / folder, quiet=2)


def pytest_collection_finish() -> None:
    """Makes fits short, and spares the garbage collector the million objects of TensorFlow."""
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() == "tensorflow":
        short_fits.install()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the files that take long, so that the workers end at about the same time."""
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("slow", "docs"))))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and measurements beside the checkout; skips without it."""
    if not _SHARED.is_dir():
        pytest.skip(f"the reference models and measurements are not here ({_SHARED})")
    return _SHARED


_isolated = isolation.call


def _called_here(
    function: str,
    arguments: Mapping[str, Any],
    *,
    progress: Callable[[str], None] | None = None,
    on_event: Callable[[Any], None] | None = None,
    **more: Any,
) -> isolation.Answer:
    """Runs the function in this process; what crosses is copied as it is on the real way."""
    if function.endswith(":strip_wrappers"):
        # Its libraries change the process that imports them.
        return _isolated(function, arguments, **more)
    told = {"progress": progress, "event": on_event}

    def tell(kind: str, value: Any) -> None:
        listener = told[kind]
        if listener is not None:
            listener(_json(value))

    module, _, name = function.partition(":")
    copies = pickle.loads(pickle.dumps(dict(arguments)))
    value, files = getattr(importlib.import_module(module), name)(**copies, tell=tell, gaps=())
    contents = {
        key: content.encode() if isinstance(content, str) else bytes(content)
        for key, content in files.items()
    }
    return isolation.Answer(_json(value), contents)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.tolist()))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads model files in this process, which has TensorFlow already; for tests of other things.

    What crosses to the process and back is pickled and made JSON all the same.
    """
    monkeypatch.setattr(isolation, "call", _called_here)


@pytest.fixture(scope="session", autouse=True)
def _short_latencies() -> Iterator[None]:
    """Has exports and checks time inferences for milliseconds; most tests look at no latency."""
    from edgecompress.targets.bench import bench_host

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench_host.__kwdefaults__, "min_seconds", 0.02)
        yield


@pytest.fixture(scope="session")
def run_python() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs `python ARGUMENTS` where TensorFlow is loaded already; see programs.py."""
    programs = Programs()
    yield programs.run
    programs.close()


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Returns the folder NAME that a function fills: in a parallel run, in one of the processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def _floats() -> dict[str, Any]:
    return {}


@pytest.fixture
def float_once(monkeypatch: pytest.MonkeyPatch, _floats: dict[str, Any]) -> dict[str, Any]:
    """Converts equal models to float once; for tests of what comes after that conversion.

    Returns the cache: a test that makes something twice to compare clears it in between.
    """
    from edgecompress.converters import float32

    convert = float32.convert

    def cached(
        model: Any, taps: bool = True, verbose: bool = False, unwanted: Collection[str] = ()
    ) -> Any:
        trace = float32.traced(model)
        loaded = trace.loaded
        if loaded.flavour != "keras3":
            return convert(trace, taps, verbose, unwanted)
        state = hashlib.sha256()
        for part in (
            loaded.model.to_json(),
            loaded.name,
            loaded.path,
            loaded.record,
            trace.fused,
            taps,
            verbose,
            sorted(unwanted),
        ):
            state.update(f"{part!r}\n".encode())
        for weight in loaded.model.weights:
            state.update(weight.numpy().tobytes())
        key = state.hexdigest()
        if key not in _floats:
            _floats[key] = convert(trace, taps, verbose, unwanted)
        return _floats[key]

    monkeypatch.setattr(float32, "convert", cached)
    return _floats


@pytest.fixture(scope="session")
def tiny(once: Once, run_python: Callable[..., Any]) -> Path:
    """A folder of tiny flatbuffers (NAME.tflite, NAME_int8.tflite) with inputs and outputs (.npz).

    NAME is classifier, autoencoder, sigmoid, two (inputs and outputs) or recurrent (float only);
    NAME.npz holds x0, x1, ... and the Keras model's outputs y0, y1, ... See tiny_models.py.
    """

    def fill(folder: Path) -> None:
        done = run_python(["-P", Path(__file__).with_name("tiny_models.py"), folder])
        assert done.returncode == 0, done.stderr[-2000:]

    return once("tiny", fill)


@pytest.fixture(scope="session")
def check_whole() -> Callable[[Any, str], None]:
    """Checks a file against a schema of docs/, by which readers may miss fields: writers may not.

    Only fields whose description begins with "Optional" may be missing.
    """
    docs = Path(__file__).parents[1] / "docs"

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: whole(value) for key, value in node.items()}
        if "properties" in node:
            node["required"] = [
                name
                for name, field in node["properties"].items()
                if not field.get("description", "").startswith("Optional")
            ]
        return node

    def check(data: Any, name: str) -> None:
        schema = whole(json.loads((docs / f"{name}.schema.json").read_text()))
        jsonschema.validate(data, schema)

    return check


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """The name of the engine that a test is parametrized with; skips where it is not installed."""
    if missing := engine_available(request.param):
        pytest.skip(missing)
    return str(request.param)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a phone behind an adb in PATH."""
    source = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "import fake_adb; sys.exit(fake_adb.main(sys.argv[1:]))\n"
    )
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -SE\n{source}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "phone").mkdir()
    monkeypatch.setenv("FAKE_PHONE", str(tmp_path / "phone"))
    return tmp_path / "phone"


@pytest.fixture(scope="session")
def jvm_app(once: Once) -> str:
    """The command that runs the app's core on this computer; skips without what it needs."""
    if not _CORE.is_dir():
        pytest.skip("the app's sources are not here")
    if shutil.which("javac") is None:
        pytest.skip("there is no JDK")
    jars = [Path.home() / ".m2" / "repository" / jar for jar in _JARS]
    missing = [jar.name for jar in jars if not jar.is_file()]
    if missing:
        pytest.skip(f"not in the local Maven repository, run the app's tests: {missing}")
    path = os.pathsep.join(map(str, jars))
    sources = sorted(map(str, _CORE.glob("*.java")))

    def fill(folder: Path) -> None:
        done = subprocess.run(
            ["javac", "-nowarn", "-d", str(folder), "-cp", path, *sources],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    classes = once("classes", fill)
    runner = "io.edgecompress.demo.core.Runner"
    return shlex.join(["java", "-cp", f"{classes}{os.pathsep}{path}", runner])


@pytest.fixture(autouse=True)
def _seeds(request: pytest.FixtureRequest) -> None:
    """Seeds Keras, numpy and Python where a test module imported Keras."""
    import numpy as np

    np.random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
