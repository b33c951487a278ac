"""The damage of each layer, and the search for layers to keep, on files that are made and run."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers
from rich.console import Console

import edgecompress as ec
from edgecompress.converters import float32, sensitivity
from edgecompress.converters.formats import Costs, FormatRequest
from edgecompress.converters.int8 import Int8Options
from edgecompress.converters.kept_layers import Kept
from edgecompress.converters.loaders import wrap
from edgecompress.core.errors import ArgumentError, ConversionError
from edgecompress.core.record import CompressionRecord
from edgecompress.core.results import CheckResult, ModelInfo, Report
from edgecompress.core.sensitivity import KeptLayers, Sensitivity
from edgecompress.post_training.techniques import chosen_techniques
from edgecompress.reports.html import render_html
from edgecompress.reports.text import render

pytestmark = pytest.mark.slow

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    made = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, activation="relu", name="good"),
            layers.Dense(8, activation="relu", name="harmed"),
            layers.Reshape((8,), name="moved"),
            layers.Dense(4, name="head"),
        ]
    )
    kernel = made.get_layer("harmed").kernel
    # One weight takes nearly all codes of its kernel.
    values = kernel.numpy()
    values[3, 3] = -60.0
    kernel.assign(values)
    return made


@pytest.fixture(scope="module")
def floats(model) -> float32.Float32Result:
    return float32.convert(model)


def request(model, score=None, samples: int = 30, told=None) -> FormatRequest:
    x = np.random.default_rng(0).uniform(0, 1, size=(samples, 8)).astype("float32")
    costs = Costs(lambda flat, memory: None, lambda flat: None, lambda flat: 0.0)
    tell = ([] if told is None else told).append
    return FormatRequest("m", wrap(model), None, (x,), Int8Options(), costs, tell, score=score)


def floating(artifact) -> set[str]:
    """The layers of a file that are float."""
    flat = artifact.flat
    found = (flat.output(o) for o in flat.operators if o.code not in ("QUANTIZE", "DEQUANTIZE"))
    return {tensor.name.partition("/")[0] for tensor in found if tensor.type == "FLOAT32"}


def verdict(reached: bool) -> CheckResult:
    detail = {"metric": "accuracy", "output": None}
    return CheckResult("accuracy", "pass" if reached else "fail", 0.9 if reached else 0.5, 0, 1,
                       0.8, "share", "measured_host", detail, "It is." )  # fmt: skip


def test_the_harmed_layer_is_found(model, floats) -> None:
    told: list[str] = []
    found = sensitivity.measure(request(model, told=told), floats, None, None, Kept())
    assert {layer.layer for layer in found.layers} == {"good", "harmed", "head"}
    assert found.layers[0].layer == "harmed"
    ratios = [layer.sqnr_db for layer in found.layers]
    assert ratios[0] < ratios[1] - 6
    assert any("harmed" in text and "of 3" in text for text in told)
    assert "labelled data" in found.notes[0] and found.base.reached is None
    # Without the outlier it is a layer like the others.
    healthy = keras.models.clone_model(model)
    weights = model.get_weights()
    weights[2] = np.clip(weights[2], -1, 1)
    healthy.set_weights(weights)
    plain = sensitivity.measure(request(healthy), float32.convert(healthy), None, None, Kept())
    assert plain.layers[0].sqnr_db > ratios[0] + 6


def test_the_search_keeps_what_is_needed_and_no_more(model, floats) -> None:
    """Told that only `head` counts, which is not the most damaging, it keeps only that."""
    calls = []

    def score(artifact, as_target):
        calls.append(as_target)
        return verdict("head" in floating(artifact))

    found = sensitivity.measure(request(model, score), floats, None, None, Kept())
    choices = {choice.how: choice for choice in found.choices}
    assert choices["float"].layers == ("head",) and choices["float"].reached
    assert choices["float"].cheapest and not choices["int16"].cheapest
    assert choices["int16"].reached is False and not found.base.reached
    assert choices["float"].file_bytes > 0 and found.limit == 0.8
    assert any("all layers in int16 does not reach" in note for note in found.notes)
    assert any(calls)


@pytest.mark.parametrize(
    ("reached", "problem"),
    [
        (lambda kept: True, "reaches the limit as it is"),
        (lambda kept: False, "float file misses the limit"),
    ],
)
def test_nothing_is_searched_in_vain(model, floats, reached, problem) -> None:
    found = sensitivity.measure(
        request(model, lambda a, target: verdict(reached(floating(a)))), floats, None, None, Kept()
    )
    assert not found.choices and problem in found.notes[0]


def test_a_layer_that_fails_is_named_and_the_others_are_measured(
    model, floats, monkeypatch
) -> None:
    convert = sensitivity.int8.convert

    def failing(source, *args, keep, **more):
        if keep.floating and "good" not in keep.floating:
            raise ConversionError("No such kernel.")
        return convert(source, *args, keep=keep, **more)

    monkeypatch.setattr(sensitivity.int8, "convert", failing)
    found = sensitivity.measure(request(model), floats, None, None, Kept())
    failed = {layer.layer: layer.problem for layer in found.layers}
    assert failed["good"] == "No such kernel." and failed["head"] is None


def test_wrong_requests_are_refused(model, floats) -> None:
    with pytest.raises(ArgumentError, match="int8 activations"):
        sensitivity.measure(request(model), floats, ec.Int16x8(), None, Kept())
    without = FormatRequest("m", wrap(model), None, None, Int8Options(), Costs(*[None] * 3), print)
    with pytest.raises(ArgumentError, match="go with --calibration"):
        sensitivity.measure(without, floats, None, None, Kept())


@pytest.mark.parametrize("option", [{"streaming": True}, {"techniques": chosen_techniques("gptq")}])
def test_it_goes_with_the_float_model_alone(model, option) -> None:
    options = Int8Options(sensitivity=True, **option)
    with pytest.raises(ArgumentError, match="be left out with --"):
        sensitivity.int8.make(dataclasses.replace(request(model), options=options))


def test_rounded_weights_are_noted(model, floats) -> None:
    record = CompressionRecord(({"technique": "post_training_quantization"},))
    loaded = dataclasses.replace(wrap(model), record=record)
    given = dataclasses.replace(request(model), loaded=loaded)
    found = sensitivity.measure(given, floats, None, None, Kept())
    assert "weights that were rounded then cost nothing" in found.notes[-1]


def test_it_is_shown_in_text_page_and_json() -> None:
    base = KeptLayers("", (), 0.5, False, 2048)
    kept = KeptLayers("int16", ("a.b", "<i>"), 0.91, True, 4096, 1024.0, 250.0, True)
    damage = (
        sensitivity.LayerDamage("a.b", ("CONV_2D",), 12.3, 0.7),
        sensitivity.LayerDamage("<i>", ("ADD",), problem="It failed."),
    )
    found = Sensitivity(damage, 30, base, "accuracy", "share", 0.9, (kept,), ("A note.",))
    info = ModelInfo("m.tflite", "0" * 64, 2048, 1024, 10, 10, {"ADD": 1})
    report = Report(info, (), (), "0.1.0", sensitivity=found)
    stream = io.StringIO()
    render(report, Console(file=stream, width=140))
    text = stream.getvalue()
    for part in ("12.3 dB", "not measured: It failed.", "4.0 KiB", "250.0 us", "91.00 %", "A note.",
                 "in int16, cheapest", r"--keep-int16 'a\.b'"):  # fmt: skip
        assert part in text, part
    page = render_html(report)
    assert "12.3 dB" in page and "&lt;i&gt;" in page and "<i>" not in page
    data = json.loads(report.to_json())
    schema = json.loads(SCHEMA.read_text())["properties"]["sensitivity"]
    whole = {**schema, "$defs": json.loads(SCHEMA.read_text())["$defs"]}
    jsonschema.validate(data["sensitivity"], whole)
    assert data["sensitivity"]["choices"][0]["layers"] == ["a.b", "<i>"]
    del data["sensitivity"]["base"]["file_bytes"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data["sensitivity"], whole)
