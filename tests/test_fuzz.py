"""Damaged .tflite files end in one line or a verdict, whatever the damage is."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.converters.decoders import (
    insert_decoders,
)
from edgecompress.core.errors import EdgeCompressError
from edgecompress.flatbuffers.coding import CODINGS, Layout
from edgecompress.flatbuffers.operators import FILTER_READERS
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.inspection.tflite import inspect_tflite
from edgecompress.targets.checks import check
from edgecompress.targets.profile import Budgets, load_target

pytestmark = pytest.mark.slow

_CASES = 16


def _load_fuzzer() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "fuzz_flatbuffers.py"
    spec = importlib.util.spec_from_file_location("fuzz_flatbuffers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_flatbuffers"] = module
    spec.loader.exec_module(module)
    return module


fuzzer = _load_fuzzer()
_MODELS = [f"{name}{kind}" for name in ("classifier", "autoencoder", "sigmoid", "two")
           for kind in ("", "_int8")] + ["recurrent", "coded", "int4"]  # fmt: skip


def _coded(data: bytes) -> bytes:
    """Returns the file with filters behind decoders: table, bitmap and Huffman in turn."""
    codes = {}
    flat = read_tflite(data)
    filters = [flat.tensors[o.inputs[1]] for o in flat.operators if o.code in FILTER_READERS]
    names = ("huffman", "prune", "lut")
    for number, tensor in enumerate(filters):
        layout = Layout(tensor.zero_points, tensor.quantized_dimension)
        code = CODINGS[names[number % 3]](tensor.values(), layout, None)
        assert code is not None
        codes[tensor.index] = code
    assert {code.coding for code in codes.values()} == {*names}
    return insert_decoders(data, codes)


def _int4(data: bytes) -> bytes:
    """Returns the file with filters of 4 bits, two in a byte."""
    model, flat = unpack(data), read_tflite(data)
    for operator in flat.operators:
        if operator.code in ("CONV_2D", "FULLY_CONNECTED"):
            values = (flat.tensors[operator.inputs[1]].values().reshape(-1) >> 4) & 15
            nibbles = np.append(values, [0] * (values.size % 2)).astype(np.uint8)
            tensor = model.subgraphs[0].tensors[operator.inputs[1]]
            tensor.type = schema.TensorType.INT4
            tensor.buffer = len(model.buffers)
            model.buffers.append(schema.BufferT(data=nibbles[::2] | nibbles[1::2] << 4))
    packed = pack(model)
    assert "INT4" in {tensor.type for tensor in read_tflite(packed).tensors}
    return packed


def _seed(tiny: Path, name: str) -> bytes:
    made = {"coded": _coded, "int4": _int4}
    data = (tiny / f"{'classifier_int8' if name in made else name}.tflite").read_bytes()
    return made[name](data) if name in made else data


_SHAPES = [(), (0,), (2,), (2, 3), (1, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3, 1)]
_TARGETS = ("cortex-m4", "cortex-m55", "nucleo-l4r5zi", "pixel-8")


def _two_inputs(
    code: int,
    first: tuple[int, ...],
    second: tuple[int, ...],
    inputs: Sequence[int] = (0, 1),
    outputs: Sequence[int] = (2,),
) -> bytes:
    """Returns an int8 model of one operator without options, its second input constant."""
    scale = schema.QuantizationParametersT(scale=np.float32([0.5]), zeroPoint=np.int64([0]))
    shapes = [first, second, first[::-1]]
    tensors = [
        schema.TensorT(shape=np.int32(shape), type=9, buffer=n + 1, name=str(n), quantization=scale)
        for n, shape in enumerate(shapes)
    ]
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=np.int32([0]),
        outputs=np.int32([2]),
        operators=[schema.OperatorT(inputs=np.int32(inputs), outputs=np.int32(outputs))],
    )
    buffers = [schema.BufferT() for _ in range(4)]
    buffers[2].data = np.zeros(np.prod(second, dtype=int), np.uint8)
    codes = [schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127))]
    return pack(schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers))


def _judged_and_refused(models: Iterable[bytes]) -> tuple[int, int]:
    """Reads, inspects and checks models; returns how many were judged and how many refused."""
    targets = [load_target(name) for name in _TARGETS]
    judged, refused = 0, 0
    for data in models:
        try:
            model = read_tflite(data)
            inspect_tflite(model).to_dict()
            for target in targets:
                check(model, target, Budgets()).to_dict()
            judged += 1
        except EdgeCompressError as error:
            assert "\n" not in str(error)
            refused += 1
    return judged, refused


_CODES = [code for name, code in vars(schema.BuiltinOperator).items() if name.isupper()]


def test_every_operator_of_any_rank_is_judged_or_refused() -> None:
    """No reader or formula takes the number of dimensions for granted."""
    pairs = [((1, 2, 3), shape) for shape in _SHAPES] + [(shape, (2, 3)) for shape in _SHAPES]
    judged, refused = _judged_and_refused(
        _two_inputs(code, *pair) for code, pair in itertools.product(_CODES, pairs)
    )
    assert judged > 2000 and refused > 50, (judged, refused)


def test_every_operator_with_tensors_left_out_is_judged_or_refused() -> None:
    """No reader or formula takes the number of inputs or outputs for granted."""
    left_out = [((), (2,)), ((0,), (2,)), ((-1,), (2,)), ((-1, 1), (2,)), ((0, -1), (2,)),
                ((0, 1), ()), ((), ())]  # fmt: skip
    judged, refused = _judged_and_refused(
        _two_inputs(code, (1, 2, 3), (2, 3), *kept)
        for code, kept in itertools.product(_CODES, left_out)
    )
    assert judged > 500 and refused > 10, (judged, refused)


@pytest.mark.parametrize("name", _MODELS)
def test_commands_survive_damage(tiny: Path, tmp_path: Path, name: str) -> None:
    """Every damage is one of a kind: bytes, cuts, numbers, swaps, fields, headers of decoders."""
    data = _seed(tiny, name)
    path = tmp_path / "damaged.tflite"
    codes = set()
    first = 1000 * _MODELS.index(name)
    for seed in range(first, first + _CASES):
        path.write_bytes(fuzzer.mutate(data, seed))
        for arguments in fuzzer.commands(path, seed):
            code, wrong = fuzzer.problem(arguments)
            assert wrong is None, f"seed {seed}: {' '.join(arguments)}: {wrong}"
            codes.add(code)
    # The damage is neither harmless everywhere nor fatal everywhere.
    assert 1 in codes
    assert codes & {0, 3, 5}


def test_every_damage_changes_the_file_and_repeats(tiny: Path) -> None:
    data = (tiny / "classifier_int8.tflite").read_bytes()
    changed = [fuzzer.mutate(data, seed) for seed in range(40)]
    assert changed == [fuzzer.mutate(data, seed) for seed in range(40)]
    assert len(set(changed) - {data}) > 30


@pytest.mark.parametrize(
    "body, wrong",
    [
        ("raise ValueError('boom')", "ValueError left the command"),
        ("return 9", "exit code 9"),
        ("print('internal error: boom', file=sys.stderr); return 1", "internal error"),
        ("time.sleep(5)", "took more than 0.2 s"),
        ("print('{'); return 0", "not valid JSON"),
        ("return 1", "takes one line"),
    ],
)
def test_the_fuzzer_sees_failures(monkeypatch: pytest.MonkeyPatch, body: str, wrong: str) -> None:
    space: dict[str, object] = {}
    exec(f"import sys, time\ndef command(arguments):\n    {body}", space)
    monkeypatch.setattr(fuzzer, "command", space["command"])
    arguments = ["inspect", "x"] + (["--json"] if "JSON" in wrong else [])
    assert wrong in fuzzer.problem(arguments, 0.2)[1]
