"""Arguments of the callbacks for sparsity: each error is one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError, EdgeCompressError

keras = pytest.importorskip("keras")
kl = keras.layers

NAN = float("nan")
_RNG = np.random.default_rng(0)
X, Y = _RNG.normal(size=(32, 6)).astype("f4"), _RNG.normal(size=(32, 2)).astype("f4")


def _model() -> Any:
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(8, "relu", name="hidden"), kl.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile("sgd", "mse")
    return model


def _channels(**arguments: Any) -> ec.ChannelPruning:
    return ec.ChannelPruning(ec.Budget(macs=0.5), **arguments)


def _lasso(**arguments: Any) -> ec.GroupLasso:
    return ec.GroupLasso(1e-4, **arguments)


def _pruning(**arguments: Any) -> ec.Pruning:
    return ec.Pruning(ec.ConstantSparsity(0.5, begin_step=1, frequency=1), **arguments)


@pytest.mark.parametrize(
    ("make", "argument", "values"),
    [
        (_channels, "per_layer", [{"(": 0.5}, {"a": "x"}, {"a": None}, {"a": NAN}, ["a"]]),
        (_channels, "begin_epoch", [1.5, "1", None, True, -1]),
        (_channels, "end_epoch", [2.5, "2", NAN, 0]),
        (_channels, "multiple", [2.5, "8", 0, True]),
        (_channels, "layers", [3, [1, 2], []]),
        (_lasso, "groups", [3, None, "channels", ["filters"]]),
        (_lasso, "method", [None, "step"]),
        (_lasso, "threshold", ["x", None, NAN, 0, 1]),
        (_lasso, "final_sparsity", ["x", NAN, 0, 1]),
        (_lasso, "begin_epoch", ["1", 1.5, -1]),
        (_lasso, "end_epoch", ["x", NAN, 2.5, 0]),
        (_pruning, "scope", [None, 3, ["layer"], "all"]),
        (_pruning, "layers", [5, [None], []]),
        (_pruning, "per_layer", [{"a": "0.5"}, [("a", 0.5)], {"a": True}]),
        (ec.KeepSparsity, "layers", [3, [None]]),
        (ec.WeightClustering, "initialization", [None, 3]),
        (ec.WeightClustering, "clusters", [1, 2.5, True]),
    ],
)
def test_a_bad_value_is_refused_by_name(
    make: Callable[..., Any], argument: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(ArgumentError) as caught:
            make(**{argument: value})
        assert caught.value.argument == argument and "\n" not in str(caught.value), value


def test_numbers_of_numpy_are_numbers() -> None:
    assert ec.Budget(macs=np.float32(0.5)) == ec.Budget(macs=0.5)
    assert ec.Budget(macs=np.int64(500)) == ec.Budget(macs=500)
    assert _channels(end_epoch=np.int64(3)).end_epoch == 3
    for value in (np.float64(NAN), np.float32(1.5), np.int64(0), np.bool_(True)):
        with pytest.raises(ArgumentError, match="`macs`"):
            ec.Budget(macs=value)
    with pytest.raises(ArgumentError, match="`Budget` must be a known name. Got 'mac'"):
        ec.Budget(mac=0.5)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: ec.finalize(_model(), tolerance="x"), "tolerance"),
        (lambda: ec.finalize(_model(), rewrites=3), "surgery"),
        (lambda: ec.savings(_model(), _model(), 3), "target"),
        (lambda: ec.savings(_model(), keras.Sequential([kl.Dense(3)])), "after"),
        (lambda: ec.fresh_copy(_model(), seed="x"), "seed"),
        (lambda: ec.fresh_copy(_model(), seed=-1), "seed"),
        (lambda: ec.thinner_copy(_model(), 0.5, seed=2**32), "seed"),
        (lambda: ec.thinner_copy(_model(), NAN), "macs"),
        (lambda: ec.lottery_ticket(_model(), None, 0.5), "fit"),
        (lambda: ec.lottery_ticket(_model(), lambda *_: 1, 0.5, rounds=2.5), "rounds"),
        (lambda: ec.lottery_ticket(_model(), lambda *_: 1, 0.5, scope=None), "scope"),
    ],
)
def test_a_bad_call_is_refused_by_name(call: Callable[[], Any], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.argument == argument and "\n" not in str(caught.value)


def _fit(callback: Any, **arguments: Any) -> Any:
    model = _model()
    model.fit(X, Y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback], **arguments)
    return callback


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: _channels(per_layer={"hiden": 0}),
            r"`per_layer` must match .*hidden.*'hiden'",
        ),
        (
            lambda: ec.Pruning(ec.CustomSchedule(lambda step: 0.5 if step > 3 else 0.0)),
            r"`schedule` must follow a step that is a tensor.*no `if` on the step",
        ),
        (
            lambda: ec.ChannelPruning(ec.Budget(latency="1s", target="nucleo-l4r5zi")),
            r"`until` must limit what is known of the model.*Counted on any model: macs and param",
        ),
    ],
)
def test_fit_refuses_in_one_line(
    make: Callable[[], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecompress.pipeline import model_costs

    def unknown(*_: Any) -> float:
        raise EdgeCompressError("The latency is not known.")

    monkeypatch.setattr(model_costs.Latency, "measure", unknown)
    with pytest.raises(ArgumentError, match=message) as caught:
        _fit(make())
    assert "\n" not in str(caught.value)


def test_a_budget_out_of_reach_names_the_layers_that_were_left_out() -> None:
    keras.utils.set_random_seed(0)
    layers = [kl.LSTM(8, name="units"), kl.Dense(4, "relu", name="hidden"), kl.Dense(2)]
    model = keras.Sequential([keras.Input((3, 2)), *layers])
    model.compile("sgd", "mse")
    x = _RNG.normal(size=(8, 3, 2)).astype("f4")
    pruning = _channels(criterion="activation")
    with pytest.raises(
        ArgumentError, match=r"within reach.* channel pruning skips units: its unit"
    ):
        model.fit(x, Y[:8], verbose=0, callbacks=[pruning])


def test_a_layer_that_has_to_stay_may_be_protected() -> None:
    done = _fit(_channels(per_layer={"head": 0}), epochs=2)
    assert any("channel pruning skips head" in note for note in done.notes)


def test_a_budget_that_is_met_already_is_noted() -> None:
    met = "channel pruning has nothing to do: the model meets Budget(macs=1000) as it is."
    assert met in _fit(ec.ChannelPruning(ec.Budget(macs=1000)), epochs=2).notes
    assert not any("nothing to do" in note for note in _fit(_channels(), epochs=2).notes)


def test_a_lasso_that_never_begins_warns() -> None:
    with pytest.warns(UserWarning, match="begin_epoch is 2, and the last epoch is 1"):
        _fit(_lasso(begin_epoch=2), epochs=2)
    _fit(_lasso(begin_epoch=1), epochs=2)  # A warning would be an error.


@keras.saving.register_keras_serializable("tests")
class _Twice(kl.Dense):
    def call(self, x: Any) -> Any:
        return 2 * super().call(x)


def test_layers_that_are_not_understood_are_named() -> None:
    keras.utils.set_random_seed(0)
    layers = [_Twice(8, name="own"), kl.Dense(6, name="hidden"), kl.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile("sgd", "mse")
    lasso = _lasso(final_sparsity=0.5)
    model.fit(X, Y, verbose=0, shuffle=False, callbacks=[lasso])
    assert "group lasso skips own: _Twice is not understood here." in lasso.notes
    assert not any("skips hidden" in note for note in lasso.notes)


def test_layers_of_nested_models_may_share_a_name() -> None:
    keras.utils.set_random_seed(0)
    blocks = [
        keras.Sequential([keras.Input((6,)), kl.Dense(6, "relu", name="same")], name=name)
        for name in ("first", "second")
    ]
    model = keras.Sequential([keras.Input((6,)), *blocks, kl.Dense(2, name="head")])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0, shuffle=False, callbacks=[ec.WeightClustering(3)])
    for block in blocks:
        assert len(np.unique(block.get_layer("same").kernel)) <= 3
