"""What every registered format promises, discovered from the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters.formats import FORMATS, format_options
from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.options import options_of
from edgecompress.engines.run import engine_available
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.layers.binary import BinaryConv2D
from edgecompress.pipeline import Build, build, build_request
from edgecompress.targets.family import FAMILIES, family_of
from edgecompress.targets.profile import load_target

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

# A target of each kind.
_TARGETS = {"tflm": "nucleo-l4r5zi", "litert": "pixel-4", "host": "host"}
_X = np.random.default_rng(0).normal(size=(40, 8, 8, 4)).astype(np.float32)


def _dense() -> keras.Model:
    """Blocks of zeros, few values: what sparse and coded formats live on."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4), name="image"),
            layers.Flatten(name="flat"),
            layers.Dense(64, activation="relu", name="wide"),
            layers.Dense(4, activation="softmax", name="head"),
        ],
        name="tiny",
    )
    kernel, bias = model.get_layer("wide").get_weights()
    kernel = np.sign(kernel).astype(np.float32) * 0.05
    kernel[12:] = 0
    model.get_layer("wide").set_weights([kernel, bias + 0.1])
    return model


def _binary() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 4), name="image"),
            layers.Conv2D(32, 3, name="stem"),
            layers.BatchNormalization(name="norm"),
            BinaryConv2D(32, 3, name="binary"),
            layers.BatchNormalization(name="norm_2"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(4, activation="softmax", name="head"),
        ],
        name="tiny",
    )


_MODELS: tuple[Callable[[], keras.Model], ...] = (_dense, _binary)


def _names() -> list[str]:
    return sorted(FORMATS)


def _target(name: str) -> str:
    return _TARGETS[next(iter(FORMATS[name].families or _TARGETS))]


@pytest.fixture(scope="module")
def builds() -> dict[str, Any]:
    """Format -> the build of the first model that it takes, or what the last one was refused by."""
    found: dict[str, Any] = {}
    for name in _names():
        for model in _MODELS:
            try:
                request = build_request(model(), [_target(name)], file_format=name, calibration=_X)
                found[name] = build(request)
                break
            except EdgeCompressError as error:
                found[name] = error
    return found


@pytest.mark.parametrize("name", _names())
def test_it_makes_a_file_or_says_in_one_line_why_not(name: str, builds: dict[str, Any]) -> None:
    made = builds[name]
    if isinstance(made, EdgeCompressError):
        assert str(made) and "\n" not in str(made)
        pytest.skip(f"{name} takes neither model: {made}")
    kinds = [artifact.kind for artifact in made.artifacts]
    assert made.main in made.artifacts and len(set(kinds)) == len(kinds)
    for artifact in made.artifacts:
        assert read_tflite(artifact.data).operators
    # The file that is checked is the one that ships, tensor by tensor.
    stored, known = read_tflite(made.main.data), made.main.flat
    assert [(t.shape, t.type) for t in stored.tensors] == [(t.shape, t.type) for t in known.tensors]
    assert known.data == made.main.data


def test_most_formats_make_one(builds: dict[str, Any]) -> None:
    """The contract above says nothing where everything is refused."""
    made = {name for name, found in builds.items() if isinstance(found, Build)}
    assert made >= {"int8", "compressed", "binary-weights", "sparse", "xnor"}


@pytest.mark.parametrize("name", _names())
def test_its_file_agrees_with_the_model_on_its_target(name: str, builds: dict[str, Any]) -> None:
    made = builds[name]
    if isinstance(made, EdgeCompressError):
        pytest.skip(str(made))
    engine = made.profiles[0].engine
    if engine_available(engine) is not None:
        pytest.skip(f"{engine} is not installed")
    rules = {check.rule: check for check in made.targets[0].checks}
    assert rules["operators"].verdict == "pass", rules["operators"].reason
    assert rules["parity"].verdict == "pass", rules["parity"].reason


@pytest.mark.parametrize("name", _names())
def test_equal_models_give_equal_bytes(name: str, builds: dict[str, Any]) -> None:
    made = builds[name]
    if isinstance(made, EdgeCompressError):
        pytest.skip(str(made))
    for model in _MODELS:
        try:
            request = build_request(
                model(), [_target(name)], file_format=name, calibration=_X, bundle=False
            )
            again = build(request)
        except EdgeCompressError:
            continue
        assert {a.kind: a.sha256 for a in again.artifacts} == {
            a.kind: a.sha256 for a in made.artifacts
        }
        return
    raise AssertionError("it was made before")


@pytest.mark.parametrize("name", [n for n in _names() if FORMATS[n].from_tflite])
def test_a_tflite_file_gives_the_file_that_the_model_gives(
    name: str, builds: dict[str, Any], tmp_path: Any
) -> None:
    made = builds[name]
    path = tmp_path / "tiny_int8.tflite"
    path.write_bytes(build(build_request(_dense(), [_target(name)], calibration=_X)).main.data)
    again = build(build_request(path, [_target(name)], file_format=name))
    assert again.main.data == made.main.data
    parity = next(check for check in again.targets[0].checks if check.rule == "parity")
    assert (parity.verdict, parity.measured) == ("pass", 1.0)


@pytest.mark.parametrize("name", [n for n in _names() if not FORMATS[n].from_tflite])
def test_others_refuse_a_tflite_file(name: str, tmp_path: Any) -> None:
    path = tmp_path / "tiny_int8.tflite"
    path.write_bytes(build(build_request(_dense(), ["cortex-m4"], calibration=_X)).main.data)
    with pytest.raises(ArgumentError, match=f"Keras model for --format {name}"):
        build(build_request(path, [_target(name)], file_format=name))


@pytest.mark.parametrize("name", _names())
def test_other_targets_are_refused(name: str) -> None:
    chosen = FORMATS[name]
    families = chosen.families or tuple(FAMILIES)
    assert set(families) <= set(FAMILIES)
    others = [target for family, target in _TARGETS.items() if family not in families]
    for target in others:
        assert chosen.why, "a format that not every target runs says why"
        with pytest.raises(ArgumentError, match=f"--format {name}"):
            build_request(object(), [target], file_format=name)
    for family in families:
        assert family_of(load_target(_TARGETS[family])).name == family


@pytest.mark.parametrize("name", _names())
def test_its_options_are_its_own(name: str) -> None:
    chosen = FORMATS[name]
    options = format_options(chosen, {})
    assert isinstance(options, chosen.options) and dataclasses.is_dataclass(options)
    own = {option.name for option in options_of(chosen.options)}
    for other in _names():
        for option in options_of(FORMATS[other].options):
            if option.name not in own:
                with pytest.raises(ArgumentError, match=f"--format {name}|--format {other}"):
                    format_options(chosen, {option.name: "given"})
