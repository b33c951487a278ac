"""Runs `inspect` and `check` on damaged .tflite files and reports what they do not survive.

Each case is a model with seeded damage: flipped bytes, cut or swapped parts, lengths, offsets and
small numbers overwritten with extremes, fields of well-formed files and headers of coded weights
changed. A command may refuse a file or print a verdict; it may not end in a traceback or an
internal error, take longer than 10 s, fill the memory or return an exit code that nobody documents.

Usage: `python benchmarks/fuzz_flatbuffers.py MODEL.tflite ... [--cases 2000] [--seed 0]`. Failing
files are kept in the folder that `--keep` names.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np

from edgecompress.cli import main as command
from edgecompress.flatbuffers.packing import pack, unpack

SECONDS = 10
MEMORY = 2 << 30
TARGETS = ("cortex-m0plus", "cortex-m4", "cortex-m7", "cortex-m55", "nucleo-l4r5zi", "pixel-8")
# Numbers that lengths, offsets, dimensions and indices are overwritten with.
EXTREMES = (0, 1, 2, 3, 127, 255, 256, 32767, 65535, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class TimeUp(BaseException):
    """A case took too long; no Exception, which the command would turn into a message."""


def _flip(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 16))):
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))


def _truncate(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(len(data))) :]


def _words(data: bytearray, random: np.random.Generator) -> list[int]:
    """Where small numbers stand: lengths, offsets, dimensions, indices, options."""
    words = np.frombuffer(bytes(data[: len(data) // 4 * 4]), "<u4")
    small = np.flatnonzero((words > 0) & (words < 4096))
    found = small if small.size else np.arange(words.size)
    count = min(int(random.integers(1, 4)), found.size)
    return [int(4 * i) for i in random.choice(found, count, replace=False)]


def _overwrite(data: bytearray, random: np.random.Generator) -> None:
    for place in _words(data, random):
        struct.pack_into("<I", data, place, int(random.choice(EXTREMES)))


def _nudge(data: bytearray, random: np.random.Generator) -> None:
    # The file stays readable more often, so that damage reaches shapes, indices and options.
    for place in _words(data, random):
        value = struct.unpack_from("<I", data, place)[0] + int(random.integers(-4, 5))
        struct.pack_into("<I", data, place, value % (1 << 32))


def _swap(data: bytearray, random: np.random.Generator) -> None:
    size = int(random.integers(1, max(2, min(64, len(data) // 4))))
    a, b = (int(i) for i in random.integers(0, max(1, len(data) - size), 2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _restructure(data: bytearray, random: np.random.Generator) -> None:
    """Changes fields of one tensor and one operator; the file stays well-formed."""
    model = unpack(bytes(data))
    graph = model.subgraphs[0]
    tensor = graph.tensors[int(random.integers(len(graph.tensors)))]
    operator = graph.operators[int(random.integers(len(graph.operators)))]
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    choice = int(random.integers(12))
    if choice == 0 and shape:
        shape[int(random.integers(len(shape)))] = int(random.choice([0, 1, 2, 1 << 20, 2**31 - 1]))
        tensor.shape = np.int32(shape)
    elif choice == 1:
        tensor.shape = np.int32(shape[1:])
    elif choice == 2:
        tensor.shape = np.int32([*shape, 2])
    elif choice == 3:
        tensor.type = int(random.integers(0, 20))
    elif choice == 4:
        tensor.buffer = int(random.integers(len(model.buffers)))
    elif choice == 5 and tensor.quantization is not None:
        tensor.quantization.scale = np.float32(
            [random.choice([0, -1, np.nan, np.inf, 1e-45, 3e38])] * int(random.integers(1, 4))
        )
    elif choice == 6:
        tensor.name = str(random.choice(["[/red]", "a\nb\x1b[0m", "", ";;", "\x00", "x" * 5000]))
    elif choice == 7:
        operator.inputs = operator.inputs[: int(random.integers(len(operator.inputs)))]
    elif choice == 8:
        operator.outputs = np.int32([])
    elif choice == 9:
        operator.inputs = np.int32(random.integers(-1, len(graph.tensors), len(operator.inputs)))
    elif choice == 10 and operator.builtinOptions is not None:
        options = vars(operator.builtinOptions)
        for name in (name for name, value in options.items() if type(value) is int):
            options[name] = int(random.choice([0, 1, 5, 100]))
    else:
        # Another operator with the same inputs, for every operator that has this code.
        code = model.operatorCodes[operator.opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = int(random.integers(0, 127))
    try:
        data[:] = pack(model)
    except Exception:  # The schema's own packer refuses it: damage of another kind instead.
        _flip(data, random)


def _header(data: bytearray, random: np.random.Generator) -> None:
    """Changes what a decoder reads first: kind, version, widths and tables of coded weights."""
    model = unpack(bytes(data))
    graph = model.subgraphs[0]
    custom = {i for i, code in enumerate(model.operatorCodes) if code.customCode}
    decoders = [operator for operator in graph.operators if operator.opcodeIndex in custom]
    found = [int(i) for operator in decoders for i in operator.inputs[1::2] if i >= 0]
    buffers = [model.buffers[graph.tensors[index].buffer] for index in found]
    buffers = [buffer for buffer in buffers if buffer.data is not None and len(buffer.data)]
    if not buffers:
        _restructure(data, random)
        return
    buffer = buffers[int(random.integers(len(buffers)))]
    values = np.array(buffer.data, np.uint8)
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(min(32, len(values))))
        values[place] = int(random.choice([0, 1, 2, 3, 7, 15, 16, 127, 128, 255]))
    buffer.data = values[: int(random.integers(len(values)))] if random.random() < 0.2 else values
    data[:] = pack(model)


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip,
    _truncate,
    _overwrite,
    _nudge,
    _swap,
    _restructure,
    _restructure,
    _header,
)


def mutate(data: bytes, seed: int) -> bytes:
    """Returns a model with one kind of damage, the same for the same seed."""
    random = np.random.default_rng(seed)
    changed = bytearray(data)
    DAMAGES[int(random.integers(len(DAMAGES)))](changed, random)
    return bytes(changed)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def problem(arguments: Sequence[str], seconds: float = SECONDS) -> tuple[int | None, str | None]:
    """Runs a command in this process; returns its exit code and what is wrong, None where fine."""
    out, err = io.StringIO(), io.StringIO()
    memory = _peak_bytes()
    code = None
    try:
        with _limited(seconds), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(arguments)
    except TimeUp:
        return None, f"it took more than {seconds:g} s"
    except BaseException as error:
        return None, f"{type(error).__name__} left the command: {error}"
    text = err.getvalue()
    if code not in range(7):
        return code, f"exit code {code}: {text.strip()}"
    if "internal error" in text or "Traceback" in text:
        return code, text.strip()
    if _peak_bytes() - memory > MEMORY:
        return code, f"it took {(_peak_bytes() - memory) >> 20} MiB"
    if out.getvalue() and "--json" in arguments:
        try:
            json.loads(out.getvalue())
        except ValueError as error:
            return code, f"standard output is not valid JSON: {error}"
    elif code == 1 and len(text.strip().splitlines()) != 1:
        return code, f"an error takes one line, got {text!r}"
    return code, None


def commands(path: Path, seed: int) -> list[list[str]]:
    """Returns the commands that one case runs; the seed decides about JSON and kernels."""
    form = ["--json"] if seed % 2 else []
    check = ["check", str(path), "--quiet", *form]
    for target in TARGETS:
        check += ["--target", target]
    if seed % 3 == 0:
        check += ["--kernels", "reference"]
    if seed % 5 == 0:
        check += ["--max-ram", "64KiB", "--max-flash", "512KiB", "--max-latency", "50ms"]
    return [["inspect", str(path), "--quiet", *form], check]


def main() -> int:
    """Runs all cases and prints one line for each distinct failure."""
    parser = argparse.ArgumentParser(description="Run the commands on damaged .tflite files.")
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    options = parser.parse_args()
    models = [path.read_bytes() for path in options.models]
    codes: Counter[str] = Counter()
    failures: dict[str, int] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.tflite"
        for seed in range(options.seed, options.seed + options.cases):
            data = mutate(models[seed % len(models)], seed)
            path.write_bytes(data)
            for arguments in commands(path, seed):
                start = time.monotonic()
                code, wrong = problem(arguments)
                slowest = max(slowest, time.monotonic() - start)
                codes[f"{arguments[0]} {code}"] += 1
                if wrong is None:
                    continue
                failures.setdefault(f"{arguments[0]}: {wrong}", seed)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{seed}.tflite").write_bytes(data)
    for wrong, seed in failures.items():
        print(f"seed {seed}: {wrong}")
    ends = ", ".join(f"{name}: {count}" for name, count in sorted(codes.items()))
    print(f"{options.cases} damaged files, {len(failures)} kinds of failure; exit codes: {ends}")
    print(f"slowest command {slowest:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
