"""Runs one flatbuffer in one inference engine; started by `engines.run` as a separate program.

Usage: `python -I worker.py JOB`, where JOB is a JSON file; a fork of `server.py` calls `main`. The
answers are JSON lines on standard output: `{"done": n}` every now and then, at the end
`{"result": ...}` or `{"error": ..., "kind": ...}`. Everything that the engine itself prints goes to
the log file.

Nothing of edgecompress is imported here: the process holds one TFLite build and numpy, because two
builds in one process corrupt each other's memory.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Job = dict[str, Any]
Tell = Callable[..., None]

# TFLM needs the size of its arena in advance; untouched memory costs nothing, so the first try is
# generous.
_ARENA_BYTES = (16 << 20, 128 << 20, 1 << 30)
_ARENA_TOO_SMALL = re.compile(r"Requested: \d+.*missing: \d+|Arena size is too small")

# Seconds between two progress reports.
_HEARTBEAT = 0.25
# Values that are compared at once.
_PART = 1 << 15
# A timed sample lasts at least this long, so that reading the clocks (about 1 us) is negligible.
_SAMPLE_NS = 200_000


class InputError(Exception):
    """The inputs do not fit the model."""


class LiteInterpreter:
    """LiteRT or tflite-runtime: the same Python interface, each from its own package."""

    def __init__(self, job: Job, data: bytes) -> None:
        """Loads the model."""
        module = importlib.import_module(f"{job['module']}.interpreter")
        plain = bool(job["tensors"])
        resolver = module.OpResolverType
        # Intermediate results exist only if no delegate has absorbed the operators. Requesting them
        # prints a memory warning on every start.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine = module.Interpreter(
                model_content=data,
                num_threads=job["threads"],
                experimental_op_resolver_type=(
                    resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else resolver.AUTO
                ),
                experimental_preserve_all_tensors=plain,
            )
        self._engine.allocate_tensors()
        self._inputs = self._engine.get_input_details()
        self._outputs = self._engine.get_output_details()
        self.inputs = [(tuple(d["shape"]), np.dtype(d["dtype"])) for d in self._inputs]
        self.output_count = len(self._outputs)

    def kernels(self) -> str:
        """Names the kernels that run."""
        # Only the list of operators reveals a delegate to Python.
        details: list[dict[str, Any]] = getattr(self._engine, "_get_ops_details", list)()
        delegated = any(entry.get("op_name") == "DELEGATE" for entry in details)
        return "XNNPACK" if delegated else "built-in"

    def set_input(self, position: int, value: np.ndarray) -> None:
        """Sets an input by position."""
        self._engine.set_tensor(self._inputs[position]["index"], value)

    def invoke(self) -> None:
        """Runs one inference."""
        self._engine.invoke()

    def output(self, position: int) -> np.ndarray:
        """Returns an output by position."""
        return self._engine.get_tensor(self._outputs[position]["index"])

    def tensor(self, index: int) -> np.ndarray:
        """Returns an intermediate tensor."""
        return self._engine.get_tensor(index)

    def view(self, index: int) -> np.ndarray:
        """Returns the same without a copy; it must be gone before the next inference."""
        return self._engine.tensor(index)()

    def reset(self) -> None:
        """Resets the state of recurrent models."""
        self._engine.reset_all_variables()


class MicroInterpreter:
    """TensorFlow Lite Micro; its arena grows until the model fits."""

    def __init__(self, job: Job, data: bytes) -> None:
        """Loads the model."""
        runtime = importlib.import_module(job["module"]).runtime
        config = runtime.InterpreterConfig
        for size in _ARENA_BYTES:
            start = os.path.getsize(job["log"])
            try:
                self._engine = runtime.Interpreter.from_bytes(
                    data,
                    arena_size=size,
                    intrepreter_config=(
                        config.kPreserveAllTensors
                        if job["tensors"]
                        else config.kAllocationRecording
                    ),
                )
                break
            except RuntimeError:
                if size == _ARENA_BYTES[-1] or not _ARENA_TOO_SMALL.search(_log(job, start)):
                    raise
                os.truncate(job["log"], start)
        self.inputs: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        self.output_count = 0
        # The interface has no count of inputs or outputs, only an error after the last one, which
        # is also printed and means nothing to the user.
        start = os.path.getsize(job["log"])
        with contextlib.suppress(Exception):
            while True:
                details = self._engine.get_input_details(len(self.inputs))
                self.inputs.append((tuple(details["shape"]), np.dtype(details["dtype"])))
        with contextlib.suppress(Exception):
            while True:
                self._engine.get_output_details(self.output_count)
                self.output_count += 1
        os.truncate(job["log"], start)

    def kernels(self) -> str:
        """Names the kernels that run."""
        return "TFLM reference"

    def set_input(self, position: int, value: np.ndarray) -> None:
        """Sets an input by position."""
        self._engine.set_input(value, position)

    def invoke(self) -> None:
        """Runs one inference."""
        self._engine.invoke()

    def output(self, position: int) -> np.ndarray:
        """Returns an output by position."""
        return self._engine.get_output(position)

    def tensor(self, index: int) -> np.ndarray:
        """Returns an intermediate tensor."""
        return self._engine.GetTensor(index, 0)["tensor_data"]

    def reset(self) -> None:
        """Resets the state of recurrent models."""
        self._engine.reset()


class LarqInterpreter:
    """Larq Compute Engine: TensorFlow Lite with operators for binary networks."""

    def __init__(self, job: Job, data: bytes) -> None:
        """Loads the model."""
        self._load = lambda: _larq_wrapper(job["module"]).LiteInterpreter(
            data,
            job["threads"],
            # The engine's defaults: no reference kernels, no indirect ones, no delegate.
            False,
            False,
            False,
        )
        self._engine = self._load()
        self._stateful = bool(job["stateful"])
        self.inputs = [
            (tuple(shape), np.dtype(dtype))
            for shape, dtype in zip(
                self._engine.input_shapes, self._engine.input_types, strict=True
            )
        ]
        self.output_count = len(self._engine.output_shapes)
        self._given: dict[int, np.ndarray] = {}
        self._results: list[np.ndarray] = []

    def kernels(self) -> str:
        """Names the kernels that run."""
        return "LCE"

    def set_input(self, position: int, value: np.ndarray) -> None:
        """Sets an input by position."""
        self._given[position] = value

    def invoke(self) -> None:
        """Runs one inference."""
        self._results = self._engine.predict([self._given[i] for i in range(len(self.inputs))])

    def output(self, position: int) -> np.ndarray:
        """Returns an output by position."""
        return self._results[position]

    def reset(self) -> None:
        """Resets the state of recurrent models; the interface only offers a restart."""
        if self._stateful:
            self._engine = self._load()


INTERPRETERS: dict[str, Callable[[Job, bytes], Any]] = {
    "lite": LiteInterpreter,
    "micro": MicroInterpreter,
    "larq": LarqInterpreter,
}


def _larq_wrapper(package: str) -> Any:
    """Returns Larq Compute Engine's interpreter.

    It is loaded directly: the package's own import would load TensorFlow, another TFLite build.
    """
    if int(np.__version__.split(".")[0]) > 1:
        # Built with NumPy 1, it treats every array of a later version as empty.
        raise ImportError(f"it needs NumPy 1, and NumPy {np.__version__} is installed")
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    name = "interpreter_wrapper_lite"
    inner = [os.path.join(folder, "tflite", "python") for folder in folders]
    found = importlib.machinery.PathFinder.find_spec(name, inner)
    if found is None or found.loader is None:
        raise ImportError(f"{package} holds no tflite/python/{name}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _larq_version(package: str) -> str:
    _larq_wrapper(package)
    return importlib.metadata.version(package)


def _imported_version(package: str) -> str:
    return str(getattr(importlib.import_module(package), "__version__", "unknown"))


# How a package is imported and its version read, where it differs from the others.
VERSIONS: dict[str, Callable[[str], str]] = {"larq": _larq_version}
# The module of a package that its interpreter is in, where the package itself does not import it.
INNER = {"lite": "interpreter"}


def _log(job: Job, start: int = 0) -> str:
    with open(job["log"], "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def _samples(job: Job, interpreter: Any) -> list[np.ndarray]:
    """Returns each input as an array (samples, *shape of the model's input)."""
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in job["inputs"]]
    wanted = interpreter.inputs
    if len(arrays) != len(wanted):
        raise InputError(
            f"hold one array for each of the model's {len(wanted)} inputs||{len(arrays)} arrays"
        )
    fitted = []
    for position, (array, (shape, dtype)) in enumerate(zip(arrays, wanted, strict=True)):
        label = f"input {position}" if len(wanted) > 1 else "the input"
        if array.dtype != dtype:
            raise InputError(f"have the type of {label}, {dtype}||{array.dtype}")
        # NumPy 2 would print `np.int32(8)`.
        sample, shape = array.shape[1:], tuple(map(int, shape))
        # A leading 1 is the batch, which a single sample does not have.
        if sample != shape and (1, *sample) != shape:
            raise InputError(
                f"hold samples of the shape of {label}, "
                f"{shape[1:] if shape[:1] == (1,) else shape}, after a first axis for the samples"
                f"||{array.shape}"
            )
        fitted.append(array.reshape(len(array), *shape))
    if len({len(array) for array in fitted}) > 1:
        raise InputError(
            f"hold equally many samples for every input||{[len(array) for array in fitted]}"
        )
    return fitted


def _store(stacks: dict[int, np.ndarray], key: int, value: np.ndarray, at: int, total: int) -> None:
    """Puts one sample's result into the stack of all; a leading axis of 1 becomes the samples."""
    value = np.asarray(value)
    if key not in stacks:
        shape = value.shape[1:] if value.shape[:1] == (1,) else value.shape
        stacks[key] = np.empty((total, *shape), value.dtype)
    stack = stacks[key]
    if value.size != stack[0].size:
        raise ValueError(
            f"the size of result {key} changes from sample to sample "
            f"({stack.shape[1:]}, then {value.shape})"
        )
    stack[at] = value.reshape(stack.shape[1:])


def run(job: Job, interpreter: Any, tell: Tell) -> dict[str, Any]:
    """Runs every sample and leaves outputs and tensors as .npy files in the job's folder."""
    samples = _samples(job, interpreter)
    total = len(samples[0]) if samples else 1
    outputs: dict[int, np.ndarray] = {}
    tensors: dict[int, np.ndarray] = {}
    last = time.monotonic()
    for at in range(total):
        for position, array in enumerate(samples):
            interpreter.set_input(position, np.ascontiguousarray(array[at]))
        interpreter.invoke()
        for position in range(interpreter.output_count):
            _store(outputs, position, interpreter.output(position), at, total)
        for index in job["tensors"]:
            _store(tensors, index, interpreter.tensor(index), at, total)
        # Samples are independent: a recurrent model's state ends here.
        interpreter.reset()
        if time.monotonic() - last > _HEARTBEAT:
            last = time.monotonic()
            tell(done=at + 1)
    return {
        "outputs": _saved(job, "outputs", outputs),
        "tensors": _saved(job, "tensors", tensors),
    }


def compare(job: Job, interpreter: Any, tell: Tell) -> dict[str, Any]:
    """Runs every sample in two models; returns sums over the values of pairs of tensors.

    `signal` sums the squares of the first model's values, `noise` those of the differences. A pair
    is a tensor of each, and the scale and zero point of the second one, a scale of 0 for a float.
    """
    with open(job["partner"], "rb") as file:
        other = INTERPRETERS[job["interpreter"]](job, file.read())
    models = [
        (interpreter, _samples(job, interpreter)),
        (other, _samples({**job, "inputs": job["partner_inputs"]}, other)),
    ]
    signal, noise = ([0.0] * len(job["pairs"]) for _ in range(2))
    last = time.monotonic()
    for at in range(len(models[0][1][0])):
        for engine, samples in models:
            for position, array in enumerate(samples):
                engine.set_input(position, np.ascontiguousarray(array[at]))
            engine.invoke()
        for number, (first, second, scale, zero_point) in enumerate(job["pairs"]):
            s, n = _sums(interpreter.view(first), other.view(second), scale, zero_point)
            signal[number], noise[number] = signal[number] + s, noise[number] + n
        for engine, _ in models:
            engine.reset()
        if time.monotonic() - last > _HEARTBEAT:
            last = time.monotonic()
            tell(done=at + 1)
    return {"signal": signal, "noise": noise}


def _sums(
    exact: np.ndarray, rounded: np.ndarray, scale: float, zero_point: int
) -> tuple[float, float]:
    """Returns the sum of the squares of values, and that of the differences of rounded ones."""
    first, second = exact.reshape(-1), rounded.reshape(-1)
    signal = noise = 0.0
    # A part at a time stays in the cache; float64 copies of all take longer than the inference.
    for start in range(0, len(first), _PART):
        values = first[start : start + _PART].astype(np.float64)
        errors = second[start : start + _PART].astype(np.float64)
        if scale:
            errors -= zero_point
            errors *= scale
        errors -= values
        signal += float(values @ values)
        noise += float(errors @ errors)
    return signal, noise


def sequences(job: Job, interpreter: Any, tell: Tell) -> dict[str, Any]:
    """Runs a streaming file over every sequence; leaves outputs as .npy files, as `run` does."""
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in job["inputs"]]
    hop, total, length = job["hop"], len(arrays[0]), arrays[0].shape[1]
    wanted = interpreter.inputs
    for array, (shape, dtype) in zip(arrays, wanted, strict=False):
        if array.dtype != dtype or (1, hop, *array.shape[2:]) != tuple(shape) or length % hop:
            raise InputError(
                f"hold sequences of inputs {dtype} {tuple(map(int, shape))}||{array.shape}"
            )
    starts = [
        np.full(shape, start, dtype)
        for (shape, dtype), start in zip(wanted[len(arrays) :], job["starts"], strict=True)
    ]
    outputs: dict[int, np.ndarray] = {}
    last = time.monotonic()
    for at in range(total):
        states = starts
        rows: list[list[np.ndarray]] = [[] for _ in job["rows"]]
        for start in range(0, length, hop):
            given = [array[at : at + 1, start : start + hop] for array in arrays]
            for position, value in enumerate([*given, *states]):
                interpreter.set_input(position, np.ascontiguousarray(value))
            interpreter.invoke()
            states = [np.array(interpreter.output(number)) for number in job["states"]]
            for position, kept in enumerate(rows):
                if not job["rows"][position]:
                    kept.clear()
                kept.append(np.array(interpreter.output(position)))
            if time.monotonic() - last > _HEARTBEAT:
                last = time.monotonic()
                tell(done=at)
        for position, (kept, count) in enumerate(zip(rows, job["rows"], strict=True)):
            value = np.concatenate(kept, axis=1)[:, -count:] if count else kept[-1]
            _store(outputs, position, value, at, total)
        interpreter.reset()
    return {"outputs": _saved(job, "outputs", outputs), "tensors": []}


def _saved(job: Job, kind: str, stacks: dict[int, np.ndarray]) -> list[str]:
    files = []
    for key, stack in stacks.items():
        files.append(os.path.join(job["folder"], f"{kind}_{key}.npy"))
        np.save(files[-1], stack)
    return files


def load(job: Job, interpreter: Any, tell: Tell) -> dict[str, Any]:
    """Runs one sample of zeros: delegates refuse some files only at the first inference."""
    for position, (shape, dtype) in enumerate(interpreter.inputs):
        interpreter.set_input(position, np.zeros(shape, dtype))
    interpreter.invoke()
    return {}


def _peak_kib() -> int | None:
    """Returns the peak memory of this process so far; None on systems without it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _random_inputs(job: Job, interpreter: Any) -> None:
    generator = np.random.default_rng(job["seed"])
    for position, (shape, dtype) in enumerate(interpreter.inputs):
        if dtype in (np.int8, np.uint8, np.int16):
            limits = np.iinfo(dtype)
            value = generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        elif np.issubdtype(dtype, np.floating):
            value = generator.standard_normal(shape).astype(dtype)
        else:
            # Wide integers are mostly indices, where a random number may be out of range.
            value = np.zeros(shape, dtype)
        interpreter.set_input(position, value)


def bench(job: Job, interpreter: Any, tell: Tell) -> dict[str, Any]:
    """Times inferences; returns wall and thread-CPU nanoseconds of one inference per sample.

    A sample is the mean over `group` consecutive inferences, 1 for slow models.
    """
    _random_inputs(job, interpreter)
    start = time.perf_counter_ns()
    interpreter.invoke()
    first = time.perf_counter_ns() - start
    single, warm = first, 0
    start = time.perf_counter_ns()
    while warm < job["warmup"]:
        before = time.perf_counter_ns()
        interpreter.invoke()
        single = min(single, time.perf_counter_ns() - before)
        warm += 1
        tell(done=warm)
    warmup = (time.perf_counter_ns() - start) / max(warm, 1)
    group = max(1, _SAMPLE_NS // max(single, 1))
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter_ns() + int(job["min_seconds"] * 1e9)
    while len(wall) < job["min_samples"] or time.perf_counter_ns() < end:
        wall_start, cpu_start = time.perf_counter_ns(), time.thread_time_ns()
        for _ in range(group):
            interpreter.invoke()
        cpu_end, wall_end = time.thread_time_ns(), time.perf_counter_ns()
        wall.append((wall_end - wall_start) / group)
        cpu.append((cpu_end - cpu_start) / group)
    return {"first": first, "warmup": warmup, "group": group, "wall": wall, "cpu": cpu}


MODES: dict[str, Callable[[Job, Any, Tell], dict[str, Any]]] = {
    "run": run,
    "compare": compare,
    "sequences": sequences,
    "load": load,
    "bench": bench,
}


@functools.cache
def _sandbox(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("sandbox", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} is missing")
    sandbox = importlib.util.module_from_spec(spec)
    sys.modules["sandbox"] = sandbox
    spec.loader.exec_module(sandbox)
    return sandbox


def _confine(job: Job) -> list[str]:
    """Drops the privileges that an engine does not need; returns what could not be dropped."""
    sandbox = _sandbox(job["sandbox"])
    sandbox.die_with(job["parent"])
    limits = sandbox.Limits(**job["limits"])
    readable = [*job["paths"], job["model"]]
    return list(sandbox.confine(limits, readable, [job["folder"]]).gaps)


def _reach(paths: list[str]) -> None:
    """Adds the folders where the caller found the packages, after the interpreter's own."""
    sys.path.extend(folder for folder in paths if folder not in sys.path)


def prepare(engine: Job) -> None:
    """Imports all that the jobs of an engine need, for `server.py`, which forks them."""
    _reach(engine["paths"])
    _sandbox(engine["sandbox"]).python_folders()
    VERSIONS.get(engine["interpreter"], _imported_version)(engine["module"])
    if module := INNER.get(engine["interpreter"]):
        importlib.import_module(f"{engine['module']}.{module}")


def main(path: str, parent: int | None = None) -> int:
    """Does the job described in the file `path`; returns the exit code.

    Args:
        path: A JSON file.
        parent: The process to end with, if it is not the job's.
    """
    with open(path, encoding="utf-8") as text:
        job = json.load(text)
    if parent is not None:
        job["parent"] = parent
    # Answers use standard output; whatever native code prints goes to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _reach(job["paths"])
    gaps = _confine(job)

    def tell(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    version = None
    try:
        version = VERSIONS.get(job["interpreter"], _imported_version)(job["module"])
        if job["mode"] == "import":
            tell(result={}, version=version)
            return 0
        with open(job["model"], "rb") as file:
            data = file.read()
        idle = _peak_kib()
        start = time.perf_counter_ns()
        interpreter = INTERPRETERS[job["interpreter"]](job, data)
        init = time.perf_counter_ns() - start
        loaded = _peak_kib()
        result = MODES[job["mode"]](job, interpreter, tell)
        peak = _peak_kib()
        if idle is not None and loaded is not None and peak is not None:
            result |= {"init_kib": loaded - idle, "overall_kib": peak - idle}
        tell(
            result=result | {"init": init}, version=version, kernels=interpreter.kernels(),
            gaps=gaps,
        )  # fmt: skip
    except InputError as error:
        tell(error=str(error), kind="input", version=version)
        return 1
    # Engines and damaged files may raise anything; the caller turns it into one line.
    except Exception as error:
        kind = "import" if version is None else "engine"
        tell(error=f"{type(error).__name__}: {error}", kind=kind, version=version)
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    # Skips the destructors: some engines crash during process shutdown.
    os._exit(code)
