"""Screening against conversion: what is said of a candidate is what its file takes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pytest

from edgecompress.searching.file_model import FileModel, NoFileModel, matched
from edgecompress.searching.forms import FileForm
from edgecompress.searching.screening import Screen, Targets, refuse_unknown
from edgecompress.searching.structures import removable_filters
from edgecompress.surgery.finalize import finalize
from edgecompress.targets.profile import Budgets, load_target

from .conftest import make_data, make_model

pytestmark = pytest.mark.slow

INT4 = FileForm(options={"precision": "int4"})


def _branches() -> Any:
    """A concatenation, whose width is a sum, a flattened map, and a Dense layer."""
    import keras

    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    parts = [layers.Conv2D(n, 3, padding="same", activation="relu")(inputs) for n in (8, 12)]
    x = layers.Conv2D(8, 3, strides=4, activation="relu")(layers.Concatenate()(parts))
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.fixture(scope="module", params=["residual", "branches"])
def screen(request: pytest.FixtureRequest) -> Screen:
    model = make_model() if request.param == "residual" else _branches()
    board = load_target("nucleo-l4r5zi")
    return Screen(model, removable_filters(model)[0], Targets((board,), Budgets(max_ram=9000)))


def test_costs_are_those_of_the_converted_file(screen: Screen) -> None:
    assert screen.exact, screen.reason
    random = np.random.default_rng(1)
    targets = screen._targets
    for _ in range(3):
        widths = random.integers(1, screen.totals + 1)
        found = screen.costs(widths)
        importance = random.uniform(size=len(screen.groups.groups))
        model = screen.built(screen.chosen(widths, importance))
        real = targets.judge(targets.file(model))
        assert found.values["arena"] == real.values["arena"]
        # Where a width is outside of what was counted, both do not know.
        assert found.unknown == real.unknown
        latency = real.values.get("latency", -1.0)
        assert found.values.get("latency", -1.0) == pytest.approx(latency, rel=1e-6)
        # As near as the alignment of a few tensors allows.
        over = found.values["file_size"] - real.values["file_size"]
        assert -100 <= over <= 600


def test_a_proof_that_fails_leaves_no_model(screen: Screen) -> None:
    rows = np.array(
        [screen.totals, *np.random.default_rng(0).integers(2, 8, (6, len(screen.totals)))]
    )
    rows = np.minimum(rows, screen.totals)
    files = [screen._convert(row) for row in rows]
    FileModel(files, rows)
    wrong = rows.copy()
    wrong[-1] = np.maximum(1, rows[-1] - 1)
    with pytest.raises(NoFileModel, match="follows no formula"):
        FileModel(files, wrong)
    with pytest.raises(NoFileModel, match="other operators"):
        FileModel([*files[:-1], _other_file(screen)], rows)


def _other_file(screen: Screen) -> Any:
    import keras

    layers = [keras.Input((4,)), keras.layers.Dense(3)]
    return screen._targets.file(keras.Sequential(layers))


def test_uniform_widths_are_the_widest_that_fit(screen: Screen) -> None:
    goal = 0.7 * screen.costs(screen.totals).values["arena"]
    kept = screen.uniform(lambda costs: costs.values["arena"] <= goal)
    assert screen.costs(kept).values["arena"] <= goal
    wider = np.minimum(kept + 1, screen.totals)
    assert screen.costs(wider).values["arena"] > goal


def test_unimportant_channels_are_chosen(screen: Screen) -> None:
    importance = np.arange(len(screen.groups.groups), dtype=float)
    widths = screen.totals - 1
    chosen = screen.chosen(widths, importance)
    assert sorted(chosen) == sorted(min(members) for members in screen.members)
    assert len(set(itertools.chain(*screen.members))) == len(importance)


def test_limits_that_nobody_can_judge_are_refused() -> None:
    from edgecompress.core.errors import ArgumentError

    model = make_model()
    phone = Targets((load_target("pixel-8"),), Budgets(max_latency=5000.0))
    costs = phone.judge(phone.file(model))
    with pytest.raises(
        ArgumentError, match=r"--max-latency` must limit what is known before a model is trained"
    ):
        refuse_unknown(costs, phone)
    free = Targets(phone.profiles, Budgets())
    refuse_unknown(free.judge(free.file(model)), free)


def test_energy_is_a_limit_like_others() -> None:
    from edgecompress.core.errors import ArgumentError

    model = make_model()
    board = load_target("nucleo-l4r5zi")
    targets = Targets((board,), Budgets(), {"max_energy": 100.0})
    assert targets.limited == ("energy",)
    costs = targets.judge(targets.file(model))
    # The largest energy: the upper ends of latency and power.
    most = costs.values["latency"] * board.power.milliwatts[1] / 1e3
    assert costs.values["energy"] == pytest.approx(most)
    assert costs.excess()["energy"] == pytest.approx(most / 100 - 1)
    refuse_unknown(costs, targets)
    # Nobody has published what this board draws.
    other = Targets((load_target("nrf5340-dk"),), Budgets(), {"max_energy": 100.0})
    with pytest.raises(ArgumentError, match=r"--max-energy` must limit what is known.*--power"):
        refuse_unknown(other.judge(other.file(model)), other)


def test_what_is_left_between_rounds_costs_what_its_file_takes() -> None:
    import keras

    from edgecompress.searching.structures import Structure

    from .conftest import make_data

    targets = Targets((load_target("nucleo-l4r5zi"),), Budgets(max_ram=4600), multiple=4)
    x, y = make_data(samples=32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    whole = Structure(make_model(), targets, loss, [(x, y[:, None])])
    importance, _ = whole.importance("magnitude")
    widths = np.maximum(4, whole.screen.totals - 4)
    left = whole.of(whole.narrowed(whole.screen.chosen(widths, importance)))
    assert left is not None
    assert left.screen.totals.tolist() == widths.tolist()
    real = targets.judge(targets.file(left.model))
    assert left.screen.costs(left.screen.totals).values["arena"] == real.values["arena"]
    # Halfway, in ratios, lies between the whole and the limits.
    goal = (whole.whole.values["arena"] * 4600) ** 0.5
    costs = whole.screen.costs(widths)
    assert whole.excess(costs, 1.0, 0.5)["arena"] == pytest.approx(
        costs.values["arena"] / goal - 1, abs=1e-6
    )
    # A model of other layers has other classes.
    assert whole.of(_branches()) is None


def test_another_format_is_screened_in_proportion_until_it_fits() -> None:
    from edgecompress.searching.structures import Structure

    board = load_target("nucleo-l4r5zi")
    free = Targets((board,), Budgets(), multiple=4)
    model = make_model()
    int8 = Screen(model, removable_filters(model)[0], free)
    # A limit between what the whole takes and half of it.
    whole = free.judge(free.file(model, INT4))
    limit = round(0.7 * whole.values["arena"])
    targets = Targets((board,), Budgets(max_ram=limit), multiple=4)
    tight = Screen(model, removable_filters(model)[0], targets)
    structure = Structure(model, targets, None, [], INT4, tight)
    assert structure.whole.values == pytest.approx(whole.values)
    assert whole.values["file_size"] < int8.costs(int8.totals).values["file_size"]
    importance = np.random.default_rng(0).uniform(size=len(tight.groups.groups))
    made, costs = structure.confirmed(
        lambda fill: tight.uniform(
            lambda c: all(v <= 0 for v in structure.excess(structure.scaled(c), fill).values())
        ),
        importance,
        1.0,
    )
    assert costs.fits()
    assert costs.values == targets.judge(targets.file(made, INT4)).values


def test_the_least_that_a_structure_takes_is_known_before_it_is_cut() -> None:
    from edgecompress.searching.space import Space

    def space(ram: int) -> Space:
        targets = Targets((load_target("nucleo-l4r5zi"),), Budgets(max_ram=ram), multiple=4)
        return Space(make_model(), targets, None, list, {})

    assert space(4600).least({}).fits()
    small = space(1500)
    assert small.least({}).excess()["arena"] > 0
    # Nothing was probed for it.
    assert not small.screened


def test_only_the_structures_asked_for_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from edgecompress.searching import space as module
    from edgecompress.searching.space import Space
    from edgecompress.searching.techniques import Subject, Technique

    class Copies(Technique):
        """Makes a model of each number; none has filters that can be removed."""

        reshapes = True

        def reshape(self, model: Any, values: Any) -> Any:
            layers = [keras.Input((4,)), keras.layers.Dense(2 + int(values["number"]))]
            return keras.Sequential(layers)

    monkeypatch.setattr(module, "_KEPT", 2)
    targets = Targets((load_target("nucleo-l4r5zi"),), Budgets(max_ram=16384))
    copies = Copies(Subject(make_model(), None, None, targets, lambda model: 0.0))
    space = Space(make_model(), targets, None, list, {"copies": copies})
    found = [space.structure({"copies.number": number}) for number in range(3)]
    assert space.structure({"copies.number": 2}) is found[2]
    assert space.structure({"copies.number": 1}) is found[1]
    again = space.structure({"copies.number": 0})
    assert again is not found[0]
    assert again.whole.values == found[0].whole.values


def test_batches_are_made_when_they_are_asked_for() -> None:
    import keras

    from edgecompress.recipes.samples import Samples
    from edgecompress.searching.fitting import Batches

    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    labels = np.arange(11)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    found = Batches(model, Samples((x,), labels), labels, 4, 5)
    assert len(found) == 2
    np.testing.assert_array_equal(found[1][1], [4, 5, 6, 7])
    np.testing.assert_array_equal(np.asarray(found[1][0]).reshape(4, 2), x[4:8])
    assert [list(y) for _, y in found[:1]] == [[0, 1, 2, 3]]
    with pytest.raises(IndexError):
        found[2]


def test_a_half_of_the_layers_has_four_bits() -> None:
    from edgecompress.searching.structures import Structure
    from edgecompress.searching.techniques import TECHNIQUES, Subject

    board = load_target("nucleo-l4r5zi")
    targets = Targets((board,), Budgets(), multiple=4)
    model = make_model()
    technique = TECHNIQUES["quantization"](Subject(model, None, None, targets, lambda m: 0.0))
    assert "layers" in {knob.name for knob in technique.knobs()}

    def narrow(layers: str, of: Any) -> list[int]:
        """Returns which kernels have 4 bits, in the order of operators."""
        values = {"precision": "int4", "aware": True, "layers": layers}
        flat = targets.file(of, FileForm(options=technique.file(values, of)))
        kernels = [flat.tensors[operator.inputs[1]] for operator in flat.operators
                   if operator.name in ("CONV_2D", "FULLY_CONNECTED")]  # fmt: skip
        return [place for place, kernel in enumerate(kernels) if kernel.type == "INT4"]

    every, early, late = (narrow(layers, model) for layers in ("all", "early", "late"))
    assert (early, late) == (every[: len(early)], every[len(early) :])
    assert early
    assert late
    # The same layers, however narrow they are.
    options = technique.file({"precision": "int4", "layers": "late"}, model)
    structure = Structure(model, targets, None, [], FileForm(options=options))
    importance = np.arange(len(structure.screen.groups.groups))
    thin = structure.narrowed(structure.screen.chosen(structure.screen.totals // 2, importance))
    assert technique.file({"precision": "int4", "layers": "late"}, thin) == options
    assert narrow("late", thin) == late
    assert technique.file({"precision": "int8", "layers": "late"}, model) == {}


def test_coded_weights_are_screened_by_weights_like_theirs() -> None:
    import keras

    from edgecompress.searching.space import Space
    from edgecompress.searching.techniques import TECHNIQUES, Fit, Subject

    targets = Targets((load_target("nucleo-l4r5zi"),), Budgets(), multiple=4)
    model = make_model()
    subject = Subject(model, None, None, targets, lambda candidate: 0.0)
    techniques = {name: TECHNIQUES[name](subject) for name in ("coding", "quantization")}
    space = Space(model, targets, None, list, techniques)
    plain = {"coding.sparsity": 0.0, "coding.clusters": 0, "quantization.precision": "int8"}
    coded = {**plain, "coding.sparsity": 0.75, "coding.clusters": 8}
    before, after = space.structure(plain), space.structure(coded)
    assert after.whole.values["file_size"] < 0.8 * before.whole.values["file_size"]
    # Decoding takes time.
    assert after.whole.values["latency"] > before.whole.values["latency"]
    assert space.form(plain, model).is_plain

    # What training really leaves takes about as much.
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    x, _ = make_data(samples=64)
    epochs, batch = 4, 8
    fit = Fit(model, epochs, 0, len(x) // batch, last=True)
    callbacks = techniques["coding"].callbacks({"sparsity": 0.75, "clusters": 8}, fit)
    model.fit(x, np.zeros((64, 4)), batch, epochs, verbose=0, callbacks=callbacks)
    zeros = np.mean([np.mean(np.array(layer.kernel) == 0) for layer in model.layers
                     if hasattr(layer, "kernel")])  # fmt: skip
    assert zeros == pytest.approx(0.75, abs=0.01)
    real = targets.judge(targets.file(finalize(model), FileForm("compressed", weights="trained")))
    for rule in ("file_size", "arena"):
        assert after.whole.values[rule] == pytest.approx(real.values[rule], rel=0.15)


def test_weights_of_four_bits_are_not_coded() -> None:
    from edgecompress.searching.space import Space
    from edgecompress.searching.techniques import TECHNIQUES, Subject

    targets = Targets((load_target("nucleo-l4r5zi"),), Budgets())
    model = make_model()
    subject = Subject(model, None, None, targets, lambda candidate: 0.0)
    techniques = {name: TECHNIQUES[name](subject) for name in ("coding", "quantization")}
    space = Space(model, targets, None, list, techniques)
    coded = {"coding.sparsity": 0.5, "coding.clusters": 0, "quantization.precision": "int8"}
    assert space.resting(coded, model) is None
    assert space.form(coded, model).format == "compressed"
    narrow = {**coded, "quantization.precision": "int4"}
    assert space.resting(narrow, model) == "coding"
    assert space.form(narrow, model) == INT4
    plain = {**narrow, "coding.sparsity": 0.0}
    assert space.resting(plain, model) is None


def test_a_phone_runs_no_coded_weights() -> None:
    from edgecompress.searching.techniques import TECHNIQUES, Subject

    targets = Targets((load_target("pixel-8"),), Budgets())
    coding = TECHNIQUES["coding"](Subject(make_model(), None, None, targets, lambda m: 0.0))
    assert coding.knobs() == ()
    assert coding.reason == "pixel-8 runs no file with coded weights"


def test_files_whose_equal_biases_are_shared_are_matched_by_use() -> None:
    """The converter stores zeros once where two layers are equally wide."""
    import keras

    targets = Targets((load_target("nucleo-l4r5zi"),), Budgets())

    def file(first: int, second: int) -> Any:
        keras.utils.set_random_seed(0)
        conv = functools.partial(keras.layers.Conv2D, kernel_size=3, use_bias=False)
        layers = [keras.Input((12, 12, 3)), conv(first), conv(7), conv(second), conv(5)]
        return targets.file(keras.Sequential(layers))

    apart, equal = file(8, 6), file(8, 8)
    shapes = [[tensor.shape for tensor in flat.tensors] for flat in (apart, equal)]
    assert [len(shape) for shape in shapes[0]] != [len(shape) for shape in shapes[1]]
    found = matched(apart, equal)
    assert found is not None
    assert [len(tensor.shape) for tensor in found] == [len(shape) for shape in shapes[0]]
    assert matched(apart, file(5, 9)) is not None
    # Another operator reads the same tensor.
    swapped = dataclasses.replace(apart, operators=apart.operators[:1] + apart.operators[2:])
    assert matched(apart, swapped) is None


def test_a_limit_whose_cost_is_unknown_is_named() -> None:
    from edgecompress.searching.measured import unfit
    from edgecompress.searching.results import Job
    from edgecompress.searching.screening import Costs

    costs = Costs({"arena": 120.0}, {"arena": 100.0, "latency": 5.0}, {"latency": "b: Stride 4."})
    assert unfit("k", Job({}), costs).reason == (
        "Not trained: arena is 20.0% above its limit and latency is not known (b: Stride 4)."
    )
    foreign = Costs({"arena": 9.0}, {"arena": 100.0}, unsupported="b: It has no CAST of UINT8.")
    assert unfit("k", Job({}), foreign).reason == (
        "Not trained: a target cannot run it (b: It has no CAST of UINT8)."
    )
