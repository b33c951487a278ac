"""What every rewrite keeps: the outputs where it says so, the inputs, the given model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import UnknownNameError
from edgecompress.core.options import named, named_config, option, options_of, whole
from edgecompress.core.record import record_of
from edgecompress.surgery import REWRITES
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.rewrites import Rewrite, Rewritten, chosen_rewrites

keras = pytest.importorskip("keras")
kl = keras.layers

_RNG = np.random.default_rng(11)


def _with_zero_filters(model: Any, zeros: dict[str, list[int]]) -> Any:
    for weight in model.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-1.0, 1.0)
        weight.assign(_RNG.uniform(low, high, weight.shape))
    for name, filters in zeros.items():
        kernel = np.array(model.get_layer(name).kernel)
        kernel[..., filters] = 0
        model.get_layer(name).kernel.assign(kernel)
    return model


def _sequential() -> Any:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            kl.Conv2D(6, 3, name="a"),
            kl.BatchNormalization(),
            kl.ReLU(),
            kl.Conv2D(5, 3, name="b"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(3),
        ]
    )
    return _with_zero_filters(model, {"a": [1, 4], "b": [0]})


def _residual() -> Any:
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(4, 1, name="stem")(inputs)
    x = kl.Add()([x, kl.Conv2D(4, 1, name="branch", activation="relu")(x)])
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(x)))
    return _with_zero_filters(model, {"stem": [2], "branch": [2]})


MODELS = {"sequential": _sequential, "residual": _residual}
X = _RNG.normal(size=(5, 8, 8, 2)).astype("f4")


@pytest.fixture(params=sorted(REWRITES))
def rewrite(request: pytest.FixtureRequest) -> Rewrite:
    return named(REWRITES, request.param, "surgery")


@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_stay_and_the_model_is_smaller(rewrite: Rewrite, name: str) -> None:
    model = MODELS[name]()
    before, weights = np.array(model(X)), model.get_weights()
    done = rewrite.apply(model)
    if done.model is model:  # Nothing to do here; the models with something to do are below.
        assert not done.removed_channels and done.details is None
        return
    assert done.model.count_params() < model.count_params()
    assert done.model.input_shape == model.input_shape
    if rewrite.exact:
        np.testing.assert_allclose(done.model(X), before, atol=1e-5 * np.abs(before).max())
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # The given model is left alone.


def test_it_finds_nothing_to_do_twice(rewrite: Rewrite) -> None:
    once = rewrite.apply(_sequential()).model
    again = rewrite.apply(once).model
    assert again is once or again.count_params() == once.count_params()


def test_finalize_applies_it_by_name(rewrite: Rewrite) -> None:
    name = named_config(REWRITES, rewrite)["name"]
    model = _sequential()
    done = rewrite.apply(model)
    small = finalize(model, rewrites=[name])
    assert small.count_params() == done.model.count_params()
    record = record_of(small)
    assert record.steps[-1]["technique"] == "finalize"
    named_in_steps = name in [step["technique"] for step in record.steps]
    assert named_in_steps == (done.details is not None)
    assert record.removed_channels == done.removed_channels


def test_the_models_give_the_built_in_rewrite_something_to_do() -> None:
    """The contract above says little where nothing is done."""
    for model in (make() for make in MODELS.values()):
        done = named(REWRITES, "remove-channels", "surgery").apply(model)
        assert done.model.count_params() < model.count_params() and done.removed_channels
        assert finalize(model).count_params() < model.count_params()


def test_it_comes_back_from_its_config(rewrite: Rewrite) -> None:
    assert named(REWRITES, named_config(REWRITES, rewrite), "surgery") == rewrite


def test_it_says_what_it_is(rewrite: Rewrite) -> None:
    assert str(type(rewrite).__doc__).splitlines()[0].endswith(".")
    assert all(item.help and item.kind for item in options_of(type(rewrite)))


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="remove-channels"):
        finalize(_sequential(), rewrites=["remove-chanels"])
    with pytest.raises(UnknownNameError, match="share"):
        chosen_rewrites(["remove-channels:share=0.5"])


def test_without_rewrites_a_plain_copy_comes_back() -> None:
    model = _sequential()
    copied = finalize(model, rewrites=())
    assert copied is not model and copied.count_params() == model.count_params()
    np.testing.assert_allclose(copied(X), model(X), atol=1e-6)


@dataclass(frozen=True)
class _Broken(Rewrite):
    """Claims to keep the outputs and does not."""

    bias: int = option(1, "What is added.", whole())

    def apply(self, model: Any) -> Rewritten:
        copied = keras.models.clone_model(model)
        copied.set_weights([value + self.bias for value in model.get_weights()])
        return Rewritten(copied, {"a": (6, 5)}, details={"added": self.bias}, notes=("Broken.",))


@dataclass(frozen=True)
class _Lossy(_Broken):
    """Does not claim it."""

    exact = False


def test_a_rewrite_that_breaks_its_word_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWRITES._entries, "broken", _Broken)
    monkeypatch.setitem(REWRITES._entries, "lossy", _Lossy)
    model = _sequential()
    kept = finalize(model, rewrites=["broken:bias=2"])
    np.testing.assert_allclose(kept(X), model(X), atol=1e-6)
    record = record_of(kept)
    assert record.notes[0].startswith("left out: _Broken, because with it the outputs differ by")
    assert not record.removed_channels and len(record.steps) == len(record.notes) == 1
    changed = finalize(model, rewrites=["lossy:bias=2", "remove-channels"])
    assert np.abs(np.array(changed(X)) - np.array(model(X))).max() > 1
    assert record_of(changed).steps[0] == {"technique": "lossy", "bias": 2, "added": 2}
    assert "Broken." in record_of(changed).notes
