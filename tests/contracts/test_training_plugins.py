"""What rounds and what trains, from packages outside: no file of the product knows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("keras")

pytestmark = pytest.mark.slow

_PROGRAM = """
import json
import keras, numpy as np
import edgecompress as ec
from edgecompress.converters import float32, int8
from edgecompress.converters.formats import FORMATS, format_options
from edgecompress.core.options import named
from edgecompress.core.record import record_of
from edgecompress.post_training.techniques import TECHNIQUES
from edgecompress.precisions import PRECISIONS
from edgecompress.precisions.ranges import RANGES
from edgecompress.training import LOSSES
from edgecompress.training.base import Outputs

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
model.compile("adam", "mse")
x = np.random.default_rng(0).normal(size=(32, 6)).astype("f4")
chosen = format_options(FORMATS["int8"], {"precision": "coarse"}).precision
model.fit(x, x[:, :2], verbose=0, callbacks=[ec.QuantizationAwareTraining(chosen)])
record = record_of(model)
made = int8.convert(float32.convert(model), record=record, precision=chosen)
said = {"step": record.steps[0]["quantizer"], "bits": record.steps[0]["weight_bits"]}
said["kind"] = made.kind
said["loss"] = float(named(LOSSES, "logit-distance:weight=0.25", "loss").compare(
    np.zeros((1, 2), "f4"), np.array([[1.0, -1.0]], "f4"), Outputs())[0])
widths = {}
for name in ("moving-average", "narrower"):
    narrow = ec.quantize(model, ec.Int8(activation_ranges=name), x)
    low, high = record_of(narrow).ranges["input:0"]
    widths[name] = high - low
said["narrower"] = widths["narrower"] / widths["moving-average"]
said["corrected"] = record_of(
    ec.quantize(model, ec.Int4(), x, techniques="partial-correction:share=1")
).notes
for registry in (PRECISIONS, LOSSES, RANGES, TECHNIQUES):
    try:
        registry["no-such"]
    except Exception as error:
        said.setdefault("refused", []).append(str(error))
print(json.dumps(said))
"""


def test_they_are_used_by_name_and_recorded(installed: Callable[..., Any]) -> None:
    said = installed("precision", "loss", "range_method", "technique").python(_PROGRAM)
    assert (said["step"], said["bits"], said["kind"]) == ("coarse", 4, "coarse")
    assert said["loss"] == 1.0
    assert "coarse" in said["refused"][0] and "int8" in said["refused"][0]
    assert "logit-distance" in said["refused"][1] and "distillation" in said["refused"][1]
    assert "narrower" in said["refused"][2] and "percentile" in said["refused"][2]
    assert "partial-correction" in said["refused"][3] and "gptq" in said["refused"][3]
    assert said["narrower"] == pytest.approx(0.9, rel=0.02)  # ranges are widened to hold a zero
    assert any(note.startswith("partial-correction") for note in said["corrected"])
