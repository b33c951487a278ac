"""An export does each piece of work once: it is counted how often a flatbuffer is parsed.

What is counted is the parser itself and the object API of the schema, whoever calls them, so that
the count cannot be evaded by another way in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from edgecompress.core.isolation import Answer
from edgecompress.flatbuffers import reading
from edgecompress.pipeline import BuildRequest, build, build_request, builder, write

pytestmark = pytest.mark.slow

_X = np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype(np.float32)


def _model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            layers.Flatten(name="flat"),
            layers.Dense(4, activation="softmax", name="head"),
        ],
        name="tiny",
    )


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts `parse`, `unpack` and `pack`."""
    count: Counter[str] = Counter()
    parse, unpack, pack = reading._read, schema.ModelT.InitFromPackedBuf, schema.ModelT.Pack

    def counted_parse(data: bytes) -> Any:
        count["parse"] += 1
        return parse(data)

    def counted_unpack(cls: Any, *args: Any) -> Any:
        count["unpack"] += 1
        return unpack(*args)

    def counted_pack(self: Any, builder: Any) -> int:
        count["pack"] += 1
        return pack(self, builder)

    monkeypatch.setattr(reading, "_read", counted_parse)
    monkeypatch.setattr(schema.ModelT, "InitFromPackedBuf", classmethod(counted_unpack))
    monkeypatch.setattr(schema.ModelT, "Pack", counted_pack)
    yield count


def _request(**keywords: Any) -> BuildRequest:
    return build_request(
        _model(),
        ["nucleo-l4r5zi", "pixel-4", "host"],
        calibration=_X,
        evaluate=(_X, np.arange(40) % 4),
        max_ram="1MiB",
        **keywords,
    )


def test_the_count_sees_a_parse(work: Counter[str]) -> None:
    made = build(_request())
    before = work["parse"]
    reading.read_tflite(made.main.data)
    assert work["parse"] == before + 1


def test_an_int8_export_parses_the_flatbuffer_at_most_five_times(
    work: Counter[str], tmp_path: Path
) -> None:
    made = build(_request())
    assert 0 < work["parse"] <= 5
    # Once for a rewrite of the float file.
    assert work["unpack"] <= 5 and work["pack"] <= 6
    before = Counter(work)
    # The page, the C++ sources and the list of files are made from what was read already.
    write(made, tmp_path, c_sources=True)
    assert work == before


def test_a_check_parses_its_file_once(work: Counter[str]) -> None:
    data = build(_request()).main.data
    work.clear()
    checked = build(build_request(data, ["nucleo-l4r5zi", "host"], file_format=None))
    assert checked.targets and work == Counter(parse=1)


def test_a_build_of_another_process_is_read_once(work: Counter[str], tmp_path: Path) -> None:
    request = _request()
    value, files = builder.build_isolated(request, lambda kind, told: None)
    work.clear()
    raw = {k: v if isinstance(v, bytes) else v.encode() for k, v in files.items()}
    text = json.dumps(value, default=lambda v: v.tolist())
    made = builder._received(Answer(json.loads(text), raw), request)
    write(made, tmp_path, c_sources=True)
    assert work == Counter(parse=1)
