"""What every compression callback builds on: layer choice, tracing, history, record, step hook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgecompress.callbacks import hooks as hooks_module
from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.hooks import (
    HookSession,
    UpdateHook,
    Wrapping,
    rebuild_train_function,
)
from edgecompress.callbacks.layer_choice import select_layers
from edgecompress.core.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from edgecompress.core.record import CompressionRecord, attach_record, record_of

pytestmark = pytest.mark.slow

KINDS = (keras.layers.Dense, keras.layers.Conv2D)
X, Y = np.ones((8, 4), "f4"), np.ones((8, 2), "f4")


def _model(**compile_args: Any) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="second"),
        ]
    )
    model.compile(compile_args.pop("optimizer", "sgd"), "mse", **compile_args)
    return model


def _names(layers: list[keras.layers.Layer]) -> list[str]:
    return [layer.name for layer in layers]


class Marker(CompressionCallback):
    """A technique that does nothing but report."""

    technique = "marker"

    def __init__(self, limit: Any = (1, 2), note: str = "") -> None:
        super().__init__()
        self.limit, self.text, self.fits = limit, note, 0

    def settings(self) -> Mapping[str, Any]:
        return {"limit": self.limit}

    def attach(self) -> None:
        if self.text:
            self.note(self.text)
            self.note(self.text)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.log(epoch, logs, {"marked": epoch + 0.5}, {"marked/layer": epoch + 0.25})

    def settle(self) -> None:
        self.fits += 1

    def results(self) -> Mapping[str, Any]:
        return {"fits": self.fits}

    def learnt_ranges(self) -> Mapping[str, tuple[float, float]]:
        return {"first": (0.0, self.fits)}


class TestSelectLayers:
    def test_none_takes_every_layer_of_the_kinds(self) -> None:
        assert _names(select_layers(_model(), None, KINDS)) == ["first", "second"]

    def test_names_come_in_model_order(self) -> None:
        assert _names(select_layers(_model(), ["second", "first"], KINDS)) == ["first", "second"]
        assert _names(select_layers(_model(), "second", KINDS)) == ["second"]

    def test_predicate_sees_only_the_kinds(self) -> None:
        seen: list[str] = []

        def predicate(layer: keras.layers.Layer) -> bool:
            seen.append(layer.name)
            return layer.units == 2

        assert _names(select_layers(_model(), predicate, KINDS)) == ["second"]
        assert seen == ["first", "second"]

    def test_nested_models_are_entered(self) -> None:
        inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="inside")])
        inputs = keras.Input((4,))
        outer = keras.Model(inputs, keras.layers.Dense(2, name="outside")(inner(inputs)))
        assert _names(select_layers(outer, None, KINDS)) == ["inside", "outside"]
        assert _names(select_layers(outer, ["inside"], KINDS)) == ["inside"]

    def test_unknown_name_offers_the_nearest(self) -> None:
        with pytest.raises(UnknownNameError, match="'frist'. Did you mean first"):
            select_layers(_model(), ["frist"], KINDS)

    def test_wrong_kind_is_named(self) -> None:
        with pytest.raises(ArgumentError, match="norm .BatchNormalization"):
            select_layers(_model(), ["norm"], KINDS)

    def test_nothing_chosen_lists_the_layers(self) -> None:
        with pytest.raises(ArgumentError, match=r"at least one layer.*first \(Dense\)"):
            select_layers(_model(), lambda layer: False, KINDS)

    def test_subclassed_model_is_refused_by_name(self) -> None:
        class Mine(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.dense = keras.layers.Dense(2)

            def call(self, x: Any) -> Any:
                return self.dense(x)

        with pytest.raises(UnsupportedModelError, match="subclassed .Mine"):
            select_layers(Mine(), None, KINDS)

    def test_unbuilt_model_says_what_to_do(self) -> None:
        with pytest.raises(UnsupportedModelError, match="no input shape yet"):
            select_layers(keras.Sequential([keras.layers.Dense(2)]), None, KINDS)


class TestRebuild:
    @pytest.mark.parametrize(
        "compile_args", [{}, {"steps_per_execution": 2}, {"jit_compile": True}], ids=str
    )
    def test_a_traced_step_sees_what_was_hooked_later(self, compile_args: dict[str, Any]) -> None:
        model = _model(**compile_args)
        model.fit(X, Y, batch_size=2, epochs=1, shuffle=False, verbose=0)
        call, traced = model.call, []

        def hooked(*args: Any, **kwargs: Any) -> Any:
            traced.append(1)
            return call(*args, **kwargs)

        model.call = hooked
        model.fit(X, Y, batch_size=2, epochs=1, shuffle=False, verbose=0)
        assert not traced  # Keras alone keeps its traced function ...
        rebuild_train_function(model)
        rebuild_train_function(model)
        model.fit(X, Y, batch_size=2, epochs=1, shuffle=False, verbose=0)
        assert traced  # ... until it is rebuilt.

    def test_evaluate_and_predict_are_traced_anew(self) -> None:
        model = _model()
        model.evaluate(X, Y, verbose=0)
        model.predict(X, verbose=0)
        rebuild_train_function(model)
        assert model.test_function is None
        assert model.predict_function is None
        assert model.predict(X, verbose=0).shape == (8, 2)


class TestHistory:
    def test_values_reach_every_history_once_and_details_no_other_callback(self) -> None:
        first = keras.callbacks.History()  # It copies the logs before Marker fills them.
        seen: list[dict[str, Any]] = []
        spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
        found = _model().fit(
            X, Y, epochs=2, shuffle=False, verbose=0, callbacks=[first, Marker(), spy]
        )
        for history in (found.history, first.history):
            assert history["marked"] == [0.5, 1.5]
            assert history["marked/layer"] == [0.25, 1.25]
        assert [logs["marked"] for logs in seen] == [0.5, 1.5]
        assert not any("marked/layer" in logs for logs in seen)

    def test_empty_logs_are_filled_in_place(self) -> None:
        marker, logs = Marker(), {}
        marker.set_model(_model())
        marker.on_epoch_end(0, logs)
        assert logs == {"marked": 0.5}
        marker.on_epoch_end(0, None)

    def test_an_old_history_is_left_alone(self) -> None:
        model = _model()
        old = model.fit(X, Y, shuffle=False, verbose=0).history
        before = {name: list(values) for name, values in old.items()}
        marker = Marker()
        marker.set_model(model)
        marker.set_params({})
        marker.on_epoch_end(0, {})
        assert old == before


@pytest.fixture(scope="class")
def trained() -> keras.Model:
    """A model whose step is traced: with a callback that hooks nothing, a fit costs little."""
    model = _model()
    model.fit(X, Y, shuffle=False, verbose=0)
    return model


class TestRecord:
    @pytest.fixture
    def model(self, trained: keras.Model) -> keras.Model:
        attach_record(trained, CompressionRecord())
        return trained

    def test_second_fit_replaces_its_step(self, model: keras.Model) -> None:
        marker = Marker()
        for _ in range(2):
            model.fit(X, Y, shuffle=False, verbose=0, callbacks=[marker])
        record = record_of(model)
        assert record.steps == ({"technique": "marker", "limit": [1, 2], "fits": 2},)
        assert record.ranges == {"first": (0.0, 2)}

    def test_other_settings_append_a_step(self, model: keras.Model) -> None:
        model.fit(X, Y, shuffle=False, verbose=0, callbacks=[Marker(1)])
        model.fit(X, Y, shuffle=False, verbose=0, callbacks=[Marker(2)])
        assert [step["limit"] for step in record_of(model).steps] == [1, 2]

    def test_what_others_recorded_stays(self, model: keras.Model) -> None:
        attach_record(model, CompressionRecord(steps=({"technique": "other"},), notes=("kept",)))
        model.fit(X, Y, shuffle=False, verbose=0, callbacks=[Marker(note="new")])
        record = record_of(model)
        assert [step["technique"] for step in record.steps] == ["other", "marker"]
        assert record.notes == ("kept", "new")

    def test_a_later_fit_drops_notes_that_no_longer_hold(self, model: keras.Model) -> None:
        marker = Marker(note="too short")
        model.fit(X, Y, shuffle=False, verbose=0, callbacks=[marker])
        assert record_of(model).notes == ("too short",)
        marker.text = ""
        model.fit(X, Y, shuffle=False, verbose=0, callbacks=[marker])
        assert record_of(model).notes == ()

    def test_results_that_are_no_json_fail_at_once(self, model: keras.Model) -> None:
        marker = Marker(limit=object())
        with pytest.raises(TypeError, match="JSON"):
            model.fit(X, Y, shuffle=False, verbose=0, callbacks=[marker])


class _Counting(CompressionCallback):
    """Counts the optimizer's updates in a variable of an UpdateHook."""

    technique = "counting"

    def settings(self) -> Mapping[str, Any]:
        return {}

    def attach(self) -> None:
        hook = self.hook(UpdateHook(lambda: self.count.assign(self.count + 1)))
        self.count = hook.add_variable((), "int32", "count")


class _Interrupt(keras.callbacks.Callback):
    """Ends a fit as Ctrl-C does, after its first epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        raise KeyboardInterrupt


def _interrupted(model: keras.Model, *callbacks: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            X, Y, batch_size=2, shuffle=False, verbose=0, callbacks=[*callbacks, _Interrupt()]
        )


class TestUpdateHook:
    @pytest.mark.parametrize(
        "compile_args",
        [
            {},
            {"steps_per_execution": 3},
            {"jit_compile": True},
            {"run_eagerly": True},
            {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
        ],
        ids=["plain", "steps_per_execution", "jit_compile", "run_eagerly", "loss_scale"],
    )
    def test_runs_after_every_update(self, compile_args: dict[str, Any]) -> None:
        model, counting = _model(**compile_args), _Counting()
        model.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=[counting])
        assert int(counting.count) == 1 + 8

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_detaching_leaves_the_optimizer_as_it_was(self, interrupted: bool) -> None:
        model = _model(optimizer="adam")
        model.optimizer.build(model.trainable_variables)
        before = [id(v) for v in model.optimizer.variables]
        attributes = set(vars(model.optimizer))
        counting = _Counting()
        if interrupted:
            _interrupted(model, counting)
            assert len(model.optimizer.variables) == len(before) + 1
            assert "apply" in vars(model.optimizer)
            counting.detach()
        else:
            model.fit(X, Y, shuffle=False, verbose=0, callbacks=[counting])
        assert [id(v) for v in model.optimizer.variables] == before
        assert set(vars(model.optimizer)) == attributes
        counting.detach()  # Twice is harmless.

    def test_two_hooks_of_one_fit_and_one_left_behind(self) -> None:
        model, first, second = _model(), _Counting(), _Counting()
        _interrupted(model, first, second)
        assert (int(first.count), int(second.count)) == (5, 5)
        third = _Counting()
        _interrupted(model, third)
        assert (int(first.count), int(second.count), int(third.count)) == (5, 5, 5)
        assert [hook.owner for hook in third.session.updates()] == [third]

    @pytest.mark.parametrize("loss_scale", [False, True])
    def test_files_saved_during_training_hold_a_plain_optimizer(
        self, tmp_path: Path, loss_scale: bool
    ) -> None:
        optimizer: keras.optimizers.Optimizer = keras.optimizers.Adam()
        if loss_scale:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model = _model(optimizer=optimizer)
        path = tmp_path / "m.keras"
        _interrupted(model, _Counting(), keras.callbacks.ModelCheckpoint(path))
        assert any(v.name == "count" for v in model.optimizer.variables)
        loaded = keras.models.load_model(path)  # A count that differs would be a warning.
        assert int(loaded.optimizer.iterations) == 4
        kept = [v for v in model.optimizer.variables if v.name != "count"]
        assert len(kept) == len(loaded.optimizer.variables)
        for mine, theirs in zip(kept, loaded.optimizer.variables, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_state_of_another_optimizer_is_still_refused_by_keras(self, tmp_path: Path) -> None:
        other = _model(optimizer="adam")
        other.fit(X, Y, shuffle=False, verbose=0)
        other.save_weights(tmp_path / "other.weights.h5")
        model = _model(optimizer="sgd")
        _interrupted(model, _Counting())
        with pytest.warns(UserWarning, match="Skipping variable loading"):
            model.load_weights(tmp_path / "other.weights.h5")


class _Doubling(CompressionCallback):
    """Doubles what a layer computes, with hooks that wrap its call."""

    technique = "doubling"

    def __init__(self, layer: str, fails: bool = False) -> None:
        super().__init__()
        self.layer, self.fails = layer, fails

    def settings(self) -> Mapping[str, Any]:
        return {}

    def attach(self) -> None:
        layer = self.model.get_layer(self.layer)
        self.hook(Wrapping(layer, "call", lambda call: lambda x, **more: 2 * call(x, **more)))

    def start_epoch(self, epoch: int) -> None:
        if self.fails:
            raise UnsupportedModelError("It cannot.")


class TestSession:
    def test_wrappers_leave_in_any_order(self) -> None:
        model = _model()
        layer, fit = model.get_layer("first"), object()
        plain = layer(X).numpy()
        hooks = [
            Wrapping(layer, "call", lambda call, n=n: lambda x: n * call(x)) for n in (2, 3, 5)
        ]
        session = HookSession.of(model, fit)
        for hook in hooks:
            session.attach(hook)
        np.testing.assert_allclose(layer(X), 30 * plain, rtol=1e-6)
        session.detach(hooks[1])
        np.testing.assert_allclose(layer(X), 10 * plain, rtol=1e-6)
        session.detach(hooks[0])
        session.detach(hooks[0])  # Twice is harmless.
        np.testing.assert_allclose(layer(X), 5 * plain, rtol=1e-6)
        session.detach(hooks[2])
        np.testing.assert_allclose(layer(X), plain)
        assert "call" not in vars(layer)

    def test_an_own_attribute_comes_back(self) -> None:
        model = _model()
        kernel = model.get_layer("first").kernel
        kernel.constraint = own = keras.constraints.NonNeg()
        session = HookSession.of(model, object())
        session.attach(Wrapping(kernel, "constraint", lambda inner: lambda w: inner(w) + 1))
        np.testing.assert_array_equal(kernel.constraint(np.array([-1.0, 2.0])), [1, 3])
        session.close()
        assert kernel.constraint is own

    def test_the_step_is_traced_anew_only_where_hooks_changed(self, monkeypatch: Any) -> None:
        model, calls = _model(), []
        monkeypatch.setattr(hooks_module, "rebuild_train_function", calls.append)
        session = HookSession.of(model, object())
        session.trace()
        assert not calls
        hook = Wrapping(model.get_layer("first"), "call", lambda call: call)
        session.attach(hook)
        session.trace()
        session.trace()
        assert len(calls) == 1
        session.detach(hook)
        session.trace()
        assert len(calls) == 2
        session.trace(always=True)
        assert len(calls) == 3

    def test_a_stage_that_fails_detaches_the_hooks_of_all(self) -> None:
        model = _model()
        plain = model(X).numpy()
        callbacks = [_Doubling("first"), _Counting(), _Doubling("second", fails=True)]
        with pytest.raises(UnsupportedModelError, match="cannot"):
            model.fit(X, Y, shuffle=False, verbose=0, callbacks=callbacks)
        assert all("call" not in vars(layer) for layer in model.layers)
        assert "apply" not in vars(model.optimizer)
        np.testing.assert_array_equal(model(X), plain)

    def test_a_fit_of_a_part_ends_what_was_left_on_it(self) -> None:
        model = _model()
        _interrupted(model, _Doubling("first"))
        part = keras.Sequential([keras.Input((4,)), model.get_layer("first")])
        part.compile("sgd", "mse")
        assert "call" in vars(model.get_layer("first"))
        part.fit(X, np.ones((8, 3), "f4"), shuffle=False, verbose=0, callbacks=[_Counting()])
        assert "call" not in vars(model.get_layer("first"))

    def test_it_traces_what_it_wraps(self) -> None:
        """A hook that the compiled step does not see would change nothing."""
        model = _model(optimizer=keras.optimizers.SGD(0.0))
        model.get_layer("second").bias.assign(np.ones(2))
        plain, again, doubled = (
            model.fit(X, 1e3 * Y, shuffle=False, verbose=0, callbacks=callbacks).history["loss"][0]
            for callbacks in ([], [], [_Doubling("second")])
        )
        assert plain == again != doubled
