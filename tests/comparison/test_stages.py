"""What a file may name: public callbacks, rewrites and baselines, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.comparison.stages import (
    BASELINES,
    STAGES,
    Defaults,
    Work,
    callback_names,
    parse_stage,
)
from edgecompress.core.errors import ArgumentError, ConversionError, UnknownNameError

_DEFAULTS = Defaults(epochs=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def work() -> Work:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu", name="a"), layers.Dense(2)]
    )

    def fit(*_: Any) -> None:
        raise ConversionError("trained")

    return Work(model, steps_per_epoch=30, examples=480, seed=7, fit=fit)


def _made(given: dict[str, Any], work: Work) -> Any:
    """Returns the callback that a stage would train with."""
    stage: Any = parse_stage({**given}, _DEFAULTS, "stage")
    return stage.callbacks[0].make(work, stage.epochs)


def test_every_public_callback_can_be_named_and_no_other_class() -> None:
    kinds = {name: getattr(ec, name) for name in ec.__all__}
    callback = keras.callbacks.Callback
    public = {n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, callback)}
    assert set(callback_names()) == public


class TestTraining:
    def test_final_sparsity_ends_within_the_stage(self, work: Work) -> None:
        schedule = _made({"callback": "MagnitudePruning", "final_sparsity": 0.9}, work).schedule
        # 4 epochs of 30 updates; two thirds are 80.
        assert schedule.end_step <= 80 < schedule.end_step + schedule.frequency
        assert (schedule.end_step - schedule.begin_step) % schedule.frequency == 0
        assert schedule(schedule.end_step) == pytest.approx(0.9)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("polynomial_decay", ec.PolynomialDecay),
            ("constant_sparsity", ec.ConstantSparsity),
            ("iterative", ec.IterativeSparsity),
            ("one-shot", ec.OneShotSparsity),
        ],
    )
    def test_schedules_by_name(self, work: Work, name: str, kind: type) -> None:
        made = _made({"callback": "Pruning", "final_sparsity": 0.5, "schedule": name}, work)
        assert type(made.schedule) is kind
        assert made.schedule(119) == pytest.approx(0.5)

    def test_the_situation_gives_what_a_file_cannot(self, work: Work) -> None:
        dropout = _made({"callback": "VariationalDropout"}, work)
        assert dropout.examples == 480
        assert dropout.seed == 7
        assert _made({"callback": "VariationalDropout", "seed": 3}, work).seed == 3

    def test_budget_and_precision_by_name(self, work: Work) -> None:
        lasso = _made({"callback": "GroupLasso", "strength": 1e-3, "until": {"macs": 0.5}}, work)
        assert lasso.until == ec.Budget(macs=0.5)
        given = {"callback": "QuantizationAwareTraining", "precision": "int4:edge_bits=4"}
        assert _made(given, work).quantizer == ec.Int4(edge_bits=4)

    def test_epochs_and_rate_are_the_stages_or_the_plans(self) -> None:
        own: Any = parse_stage(
            {"callbacks": [], "epochs": 2, "learning_rate": 0.5}, _DEFAULTS, "stage"
        )
        assert (own.epochs, own.learning_rate, own.title) == (2, 0.5, "training, 2 epochs")
        plans: Any = parse_stage({"callback": "KeepSparsity"}, _DEFAULTS, "stage")
        assert (plans.epochs, plans.learning_rate) == (4, 1e-3)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"callback": "ChannelPruning"}, "`until` must be given for ChannelPruning"),
            ({"callback": "ChannelPruning", "until": 0.5}, "be a table of limits"),
            ({"callback": "ChannelPruning", "until": {"mac": 0.5}}, "Did you mean macs"),
            (
                {"callback": "ChannelPruning", "until": {"macs": 0.5}, "layers": 5},
                "names of layers",
            ),
            (
                {"callback": "ChannelPruning", "until": {"macs": 0.5}, "per_layer": "x"},
                "map names of layers to shares",
            ),
            ({"callback": "MagnitudePruning"}, "final_sparsity` must be a share"),
            ({"callback": "MagnitudePruning", "final_sparsity": "0.9"}, "must be a share"),
            ({"callback": "MagnitudePruning", "final_sparsity": 1.5}, "below 1"),
            ({"callback": "QuantizationAwareTraining", "precision": 8}, "one of int8"),
            ({"callback": "QuantizationAwareTraining", "precision": "int5"}, "Did you mean int8"),
            ({"callback": "QuantizationAwareTraining", "settings": "int8"}, "known name"),
            ({"callback": "Binarize", "latent_file": "x"}, "known name"),
            ({"callback": "VariationalDropout", "posterior_file": "x"}, "known name"),
            ({"callback": "VariationalDropout", "examples": 3}, "known name"),
            ({"callback": "Distillation", "teacher": "x"}, "known name"),
        ],
    )
    def test_wrong_options_are_refused_before_training(
        self, work: Work, given: dict[str, Any], words: str
    ) -> None:
        stage = parse_stage(given, _DEFAULTS, "rows[0].stages[0]")
        with pytest.raises(ArgumentError) as caught:
            stage.check(work)
        assert words in str(caught.value)
        assert "rows[0].stages[0]" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"callback": "ChanelPruning"}, "Did you mean ChannelPruning"),
        ({"callback": "os.system"}, "must be a known name"),
        ({"callback": ["KeepSparsity"]}, "a name in quotation marks"),
        ({"callback": "export"}, "must be a known name"),
        ({"callback": "KeepSparsity", "rewrite": "low-rank"}, "one of the keys"),
        ({"callback": "KeepSparsity", "epochs": 0}, "1 or more"),
        ({"callback": "KeepSparsity", "epochs": True}, "1 or more"),
        ({"callback": "KeepSparsity", "learning_rate": 0}, "above 0"),
        ({"callbacks": "x"}, "a list of tables"),
        ({"callbacks": [{"epochs": 3}]}, "name a callback"),
        ({"call": "x"}, "Did you mean callback"),
        ({}, "one of the keys"),
        ({"rewrite": "lowrank"}, "Did you mean low-rank"),
        ({"rewrite": "low-rank:energi=1"}, "Did you mean energy"),
        ({"rewrite": 3}, "a name in quotation marks"),
        ({"rewrite": "low-rank", "epochs": 2}, "must be a known name"),
        ({"baseline": "thiner"}, "Did you mean thinner_copy"),
        ({"baseline": "thinner_copy", "mac": 0.5}, "Did you mean macs"),
    ],
)
def test_wrong_stages_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_stage(given, _DEFAULTS, "stage")
    assert words in str(caught.value)


def test_stages_without_training(work: Work) -> None:
    thin = parse_stage({"baseline": "thinner_copy", "macs": 0.6}, _DEFAULTS, "stage")
    assert thin.run(work.original, work).count_params() < work.original.count_params()
    with pytest.raises(ArgumentError, match=r"stage: `macs` must be a number between 0 and 1"):
        parse_stage({"baseline": "thinner_copy"}, _DEFAULTS, "stage").check(work)
    fresh = parse_stage({"baseline": "fresh_copy"}, _DEFAULTS, "stage").run(work.original, work)
    assert not np.array_equal(fresh.get_weights()[0], work.original.get_weights()[0])
    with pytest.raises(ConversionError, match="trained"):
        parse_stage({"callbacks": []}, _DEFAULTS, "stage").run(fresh, work)


# Kind of stage -> a table of it that needs no training.
_OF_KIND: dict[str, dict[str, Any]] = {
    "callback": {"callback": "KeepSparsity"},
    "callbacks": {"callbacks": [{"callback": "KeepSparsity"}, {"callback": "Distillation"}]},
    "rewrite": {"rewrite": "low-rank:energy=0.9"},
    "baseline": {"baseline": "fresh_copy"},
    "lottery_ticket": {"lottery_ticket": 0.5, "rounds": 2},
}
# Epochs that each trains, by defaults.
_EPOCHS = {"callback": 4, "callbacks": 4, "lottery_ticket": 12}


@pytest.mark.parametrize("kind", STAGES)
def test_every_kind_says_what_it_does_and_refuses_keys_that_it_does_not_have(
    kind: str, work: Work
) -> None:
    stage = parse_stage(_OF_KIND[kind], _DEFAULTS, "stage")
    stage.check(work)
    assert stage.title
    assert stage.epochs == _EPOCHS.get(kind, 0)
    with pytest.raises(UnknownNameError):
        parse_stage({**_OF_KIND[kind], "no_such": 1}, _DEFAULTS, "stage").check(work)


def test_a_lottery_ticket_is_found_from_new_weights(work: Work) -> None:
    trainings = []

    def fit(model: Any, title: str, epochs: int, rate: float, callbacks: Any) -> None:
        trainings.append((epochs, rate))
        model.compile(keras.optimizers.SGD(rate), "mse")
        x = np.random.default_rng(0).normal(size=(32, 6))
        model.fit(x, x[:, :2], epochs=epochs, verbose=0, callbacks=list(callbacks))

    given = {"lottery_ticket": 0.75, "rounds": 2, "epochs": 3, "learning_rate": 0.1}
    stage = parse_stage(given, _DEFAULTS, "stage")
    ticket = stage.run(None, dataclasses.replace(work, fit=fit))
    assert trainings == [(3, 0.1)] * 3 and stage.epochs == 9
    kernels = [np.array(w) for w in ticket.weights if len(w.shape) == 2]
    kept = sum(np.count_nonzero(kernel) for kernel in kernels)
    # Of 6 x 8 + 8 x 2 weights; neurons without any are gone.
    assert kept <= 16 and kept >= 12


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lottery_ticket": 1.5}, "stage: `sparsity` must be a number between 0 and 1"),
        ({"lottery_ticket": 0.5, "rounds": 0}, "stage: `rounds`"),
        ({"lottery_ticket": 0.5, "criterion": "taylor"}, "read the weights alone"),
        ({"lottery_ticket": 0.5, "criterion": "magnitud"}, "Did you mean magnitude"),
        ({"lottery_ticket": 0.5, "rewind_step": 120}, "below the 120 updates"),
        ({"lottery_ticket": 0.5, "control": 1}, "be true or false"),
        ({"lottery_ticket": 0.5, "round": 2}, "Did you mean rounds"),
    ],
)
def test_a_ticket_that_cannot_be_is_refused_before_training(
    given: dict[str, Any], words: str, work: Work
) -> None:
    with pytest.raises((ArgumentError, UnknownNameError)) as caught:
        parse_stage(given, _DEFAULTS, "stage").check(work)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_an_untrained_network_of_the_same_kind(name: str, work: Work) -> None:
    given = {"baseline": name, **({"macs": 0.6} if name == "thinner_copy" else {})}
    model = parse_stage(given, _DEFAULTS, "stage").run(work.original, work)
    assert model.input_shape == work.original.input_shape
    assert model.output_shape == work.original.output_shape
    first, second = model.get_weights()[0], work.original.get_weights()[0]
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_outputs_are_taught_from_what_is_kept_and_layers_by_the_model(work: Work) -> None:
    kept = keras.models.clone_model(work.original)
    taught = dataclasses.replace(work, taught=lambda: kept)
    for given, teacher in (({}, kept), ({"layers": {"a": "a"}}, work.original)):
        (callback,) = parse_stage({"callback": "Distillation", **given}, _DEFAULTS, "s").callbacks  # type: ignore[attr-defined]
        assert callback.make(taught, 1).teachers == (teacher,)
        assert callback.make(work, 1).teachers == (work.original,)


def test_a_callback_that_takes_types_for_granted_is_refused_in_one_line(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trusting:
        def __init__(self, layers: Any = ()) -> None:
            self.count = len(layers)

    monkeypatch.setattr("edgecompress.callbacks.keep_sparsity.KeepSparsity", Trusting)
    stage = parse_stage({"callback": "KeepSparsity", "layers": 5}, _DEFAULTS, "stage")
    with pytest.raises(ArgumentError, match=r"stage: KeepSparsity.*documentation.*has no len"):
        stage.check(work)
