"""Kernels as products of smaller ones, against singular values, einsum and the layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, EdgeCompressError, NotFiniteError
from edgecompress.core.record import record_of
from edgecompress.inspection.keras_models import inspect_keras
from edgecompress.surgery.factors import FACTORIZATIONS
from edgecompress.surgery.factors.base import composed, multiply_accumulates, rank_of
from edgecompress.surgery.finalize import finalize
from edgecompress.surgery.low_rank import LowRank

keras = pytest.importorskip("keras")
kl = keras.layers

_RNG = np.random.default_rng(5)
SHAPES = ((20, 12), (3, 8, 6), (3, 3, 8, 10), (1, 1, 8, 10), (5, 3, 4, 6), (2, 2, 2, 40))
PAIRS = [
    (name, shape) for name, make in FACTORIZATIONS.items() for shape in SHAPES if make().fits(shape)
]


def _kernel(shape: tuple[int, ...]) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


def _lost(name: str, kernel: np.ndarray, ranks: tuple[int, ...]) -> float:
    method = FACTORIZATIONS[name]()
    parts, kernels = method.parts(kernel.shape, ranks), method.kernels(kernel, ranks)
    assert [k.shape for k in kernels] == [part.shape for part in parts]
    return float(
        np.square(kernel - composed(parts, kernels, kernel.shape)).sum() / np.square(kernel).sum()
    )


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_the_highest_ranks_lose_nothing_and_lower_ones_keep_the_share(
    name: str, shape: tuple[int, ...]
) -> None:
    kernel, method = _kernel(shape), FACTORIZATIONS[name]()
    # Alternating least squares comes near, the others are exact.
    assert _lost(name, kernel, method.highest(shape)) < (1e-6 if name == "cp" else 1e-12)
    before = tuple(0 for _ in method.highest(shape))
    for energy in (0.3, 0.6, 0.9):
        ranks = method.ranks(kernel)(energy)
        assert _lost(name, kernel, ranks) <= 1 - energy + 1e-9
        assert all(a <= b for a, b in zip(before, ranks, strict=True))
        before = ranks
    assert sum(method.ranks(kernel)(0.3)) < sum(method.highest(shape))


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_one_rank_less_loses_more_than_allowed(name: str, shape: tuple[int, ...]) -> None:
    kernel, method = _kernel(shape), FACTORIZATIONS[name]()
    if name == "tucker":  # Its two bases may lose half each, which is more careful than needed.
        return
    (rank,) = method.ranks(kernel)(0.7)
    assert rank == 1 or _lost(name, kernel, (rank - 1,)) > 0.3


def test_no_matrix_of_the_rank_is_nearer() -> None:
    kernel = _kernel((30, 20))
    singular = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)
    expected = np.square(singular[7:]).sum() / np.square(singular).sum()
    assert _lost("channels", kernel, (7,)) == pytest.approx(expected, rel=1e-6)


def test_kernels_that_are_products_are_found() -> None:
    """The factors are planted; their product has exactly these ranks."""
    first, last = _RNG.normal(size=(8, 2)), _RNG.normal(size=(10, 3))
    core = _RNG.normal(size=(3, 3, 2, 3))
    tucker = np.einsum("hwab,ia,ob->hwio", core, first, last).astype(np.float32)
    assert FACTORIZATIONS["tucker"]().ranks(tucker)(1.0) == (2, 3)
    rows, columns = _RNG.normal(size=(3, 8, 4)), _RNG.normal(size=(3, 4, 10))
    spatial = np.einsum("hir,wro->hwio", rows, columns).astype(np.float32)
    assert FACTORIZATIONS["spatial"]().ranks(spatial)(1.0) == (4,)
    space, into = _RNG.normal(size=(9, 2)), _RNG.normal(size=(8, 2))
    cp = np.einsum("sr,ir,or->sio", space, into, last[:, :2]).reshape(3, 3, 8, 10)
    assert _lost("cp", cp.astype(np.float32), (2,)) < 1e-6
    assert _lost("cp", cp.astype(np.float32), (1,)) > 1e-2


def test_ranks_of_a_known_spectrum() -> None:
    assert [rank_of(np.array([2.0, 1, 1, 0]), e) for e in (0, 0.5, 0.7, 0.9, 1)] == [1, 1, 2, 3, 3]
    assert rank_of(np.zeros(4), 0.9) == 1


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_the_largest_affordable_ranks(name: str, shape: tuple[int, ...]) -> None:
    kernel, method = _kernel(shape), FACTORIZATIONS[name]()
    space = (4,) * (len(shape) - 2)
    limit = 0.6 * math.prod(shape) * math.prod(space)

    def cost(ranks: tuple[int, ...]) -> int:
        return multiply_accumulates(method.parts(shape, ranks), space, space)

    found = method.largest(kernel, lambda ranks: cost(ranks) <= limit)
    assert found is not None and cost(found) <= limit
    assert cost(tuple(rank + 1 for rank in found)) > limit
    assert method.largest(kernel, lambda ranks: False) is None


LAYERS: dict[str, tuple[tuple[int, ...], Any]] = {
    "dense": ((12,), lambda: kl.Dense(10, "relu")),
    "dense on a sequence": ((5, 12), lambda: kl.Dense(10, use_bias=False)),
    "conv1d": ((12, 6), lambda: kl.Conv1D(8, 3, strides=2, padding="causal")),
    "strides": ((13, 12, 6), lambda: kl.Conv2D(8, 3, strides=2, padding="same", activation="relu")),
    "uneven": ((13, 12, 6), lambda: kl.Conv2D(8, (3, 5), strides=(2, 1), padding="same")),
    "dilation": ((13, 12, 6), lambda: kl.Conv2D(8, 3, dilation_rate=2, activation="gelu")),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ["best", *FACTORIZATIONS])
def test_at_full_rank_the_model_computes_the_same(name: str, method: str) -> None:
    shape, make = LAYERS[name]
    model = keras.Sequential([keras.Input(shape), make(), kl.Flatten(), kl.Dense(3, "softmax")])
    for weight in model.weights:
        weight.assign(_RNG.normal(size=weight.shape))
    small = finalize(model, rewrites=f"low-rank:method={method},energy=1,slower=true")
    x = _RNG.normal(size=(4, *shape)).astype(np.float32)
    wanted = np.array(model(x))
    # Least squares at full rank: 1e-6 of the squares.
    np.testing.assert_allclose(small(x), wanted, atol=5e-3 if method == "cp" else 1e-5)
    details = record_of(small).steps[0].get("factorized", {})
    left = [note for note in record_of(small).notes if "no depthwise convolution" in note]
    assert len(details) == 2 or (len(details) == 1 and method == "cp" and left)


def _network() -> Any:
    keras.utils.set_random_seed(2)
    x = inputs = keras.Input((12, 12, 3))
    x = kl.BatchNormalization()(kl.Conv2D(16, 3, use_bias=False, name="first")(x))
    shared = kl.Conv2D(16, 3, padding="same", activation="relu", name="shared")
    x = kl.Add()([x, shared(shared(x))])
    x = kl.Conv2D(16, 3, groups=4, name="grouped")(x)
    inner = keras.Sequential([keras.Input((16,)), kl.Dense(40, "relu", name="wide")], name="inner")
    x = kl.Dense(5, name="head")(inner(kl.GlobalAveragePooling2D()(x)))
    return keras.Model(inputs, x)


def test_the_record_counts_what_the_model_computes() -> None:
    model = _network()
    small = finalize(model, rewrites="low-rank:macs=0.5")
    done = record_of(small).steps[0]["factorized"]
    assert set(done) == {"first", "shared", "inner/wide", "head"}
    for path, found in done.items():
        before, after = found["macs"]
        assert after <= before / 2, path
        assert 0 < found["energy"] < 1
    calls = {"shared": 2}
    saved = sum((d["macs"][0] - d["macs"][1]) * calls.get(path, 1) for path, d in done.items())
    assert inspect_keras(model).macs - inspect_keras(small).macs == saved
    assert any("grouped: it is a grouped" in note for note in record_of(small).notes)
    # Applied again it leaves its own parts alone.
    again = finalize(small, rewrites="low-rank:macs=0.5")
    assert again.count_params() == small.count_params()


def test_layers_that_would_cost_more_stay_and_are_named() -> None:
    model = keras.Sequential([keras.Input((8,)), kl.Dense(8, name="square")])
    model.layers[0].kernel.assign(np.eye(8))
    small = finalize(model, rewrites="low-rank:energy=0.95")
    assert small.count_params() == model.count_params()
    (note,) = record_of(small).notes
    assert note == (
        "low-rank leaves square: a factorization that keeps 0.95 of its squares takes 2.00 times "
        "its multiply-accumulates."
    )
    forced = finalize(model, rewrites="low-rank:energy=0.95,slower=true")
    assert record_of(forced).steps[0]["factorized"]["square"]["macs"] == [64, 128]


def test_layers_of_other_classes_are_named() -> None:
    class Own(kl.Dense):  # type: ignore[misc]
        pass

    inputs = keras.Input((4, 8))
    x = kl.Conv1DTranspose(8, 3, padding="same", name="up")(inputs)
    x = kl.TimeDistributed(kl.Dense(8), name="steps")(
        kl.LSTM(8, return_sequences=True, name="rnn")(x)
    )
    x = kl.LayerNormalization(name="norm")(Own(8, name="own")(x))
    model = keras.Model(inputs, kl.Dense(8, name="fc")(x))
    notes = record_of(finalize(model, rewrites="low-rank:rank=1")).notes
    assert [note.split(":")[0] for note in notes] == [
        f"low-rank leaves {name}" for name in ("up", "rnn", "steps", "own")
    ]
    assert "LSTM layers stay, Dense, Conv1D and Conv2D are factorized" in notes[1]
    assert not record_of(finalize(model, rewrites="low-rank:rank=1,layers=fc")).notes


def test_quantized_and_diverged_kernels_are_not_factorized() -> None:
    model = keras.Sequential([keras.Input((64,)), kl.Dense(32, name="fc")])
    model.layers[0].quantize("int8")
    (note,) = record_of(finalize(model, rewrites="low-rank:rank=1")).notes
    assert note == "low-rank leaves fc: its weights are quantized (int8)."
    model = keras.Sequential([keras.Input((64,)), kl.Dense(32, name="fc")])
    model.layers[0].kernel.assign(np.full((64, 32), np.nan))
    with pytest.raises(NotFiniteError, match="'fc'.*NaN"):
        finalize(model, rewrites="low-rank:rank=1")


def test_a_share_that_rank_1_exceeds_leaves_the_layer_alone() -> None:
    """4 x 4: a product of rank 1 takes 8 of 16."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="square")])
    small = finalize(model, rewrites="low-rank:macs=0.4")
    assert small.count_params() == model.count_params()
    (note,) = record_of(small).notes
    assert "square: a factorization within 0.4 of its cost takes 0.50 times" in note
    done = record_of(finalize(model, rewrites="low-rank:macs=0.5")).steps[0]["factorized"]
    assert done["square"]["macs"] == [16, 8]


def test_pruned_kernels_lose_their_zeros_and_it_is_said() -> None:
    model = keras.Sequential([keras.Input((64,)), kl.Dense(64, name="fc")])
    kernel = np.outer(_RNG.normal(size=64), _RNG.normal(size=64))
    kernel[:, ::2] = 0
    model.layers[0].kernel.assign(kernel)
    small = finalize(model, rewrites="low-rank")
    assert small.count_params() < model.count_params()
    assert any("50% of its kernel is zero" in note for note in record_of(small).notes)


def test_it_trains_and_is_saved(tmp_path: Any) -> None:
    x = _RNG.normal(size=(256, 12, 12, 3)).astype(np.float32)
    y = (x.mean((1, 2)) @ _RNG.normal(size=(3, 5))).argmax(1)
    small = finalize(_network(), rewrites="low-rank:macs=0.6")
    small.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = small.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(loaded(x[:4]), small(x[:4]), atol=1e-6)


def test_with_pruning_clustering_and_qat_to_a_file_that_runs(tmp_path: Any) -> None:
    import edgecompress as ec

    keras.utils.set_random_seed(3)
    random = np.random.default_rng(7)
    y = random.integers(0, 2, 512)
    # Far apart, so that every training finds them.
    x = random.normal(size=(512, 8, 8, 2)) + (2 * y - 1)[:, None, None, None]
    x = x.astype(np.float32)
    layers = [
        kl.Conv2D(12, 3, padding="same", activation="relu"),
        kl.Flatten(),
        kl.Dense(24, "relu"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 2)), *layers, kl.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=4, verbose=0)
    small = finalize(model, rewrites="low-rank:macs=0.5")
    small.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    pruning = ec.Pruning(ec.PolynomialDecay(0.5, begin_step=0, end_step=40, frequency=10))
    training = [pruning, ec.WeightClustering(15), ec.QuantizationAwareTraining(begin_epoch=3)]
    history = small.fit(x, y, epochs=6, verbose=0, callbacks=training).history
    assert history["accuracy"][-1] > 0.9
    report = ec.export(finalize(small), targets=["pixel-4"], calibration=x[:40], output=tmp_path)
    parity = next(c for c in report.targets[0].checks if c.rule == "parity")
    assert parity.verdict == "pass" and parity.measured > 0.95
    # The last layer has two units: rank 1 takes more than half of it, so it stays.
    assert report.model.operators["FULLY_CONNECTED"] == 3
    assert report.model.macs < 0.5 * inspect_keras(model).macs + 24


def test_a_target_decides_by_its_predicted_time() -> None:
    """Against the prediction of whole models: each replaced layer makes the model faster."""
    from edgecompress.costs import COSTS

    target = "nucleo-l4r5zi"
    keras.utils.set_random_seed(0)
    layers = [kl.Conv2D(24, 3, activation="relu", name="wide"), kl.Conv2D(8, 1, name="point")]
    more = [kl.Conv2D(4, 3, name="narrow"), kl.Flatten(), kl.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((10, 10, 8)), *layers, *more])
    given = "low-rank:method=channels,rank=3,layers=wide|narrow"
    small = finalize(model, rewrites=f"{given},target={target}")
    record = record_of(small)
    assert set(record.steps[0]["factorized"]) == {"wide"}
    (note,) = record.notes
    assert note.startswith("low-rank leaves narrow: a factorization of rank 3 takes 1.")
    assert note.endswith(f"times its time on {target}.")
    by_macs = finalize(model, rewrites=given)
    assert set(record_of(by_macs).steps[0]["factorized"]) == {"wide", "narrow"}
    times = [COSTS["latency"].measure(each, target) for each in (model, small, by_macs)]
    assert times[1] < times[0] and times[1] < times[2]


def test_the_largest_rank_within_a_share_of_the_time() -> None:
    from edgecompress.core.keras_graph import layer_calls
    from edgecompress.surgery.predicted import alone, time_of

    target = "nucleo-l4r5zi"
    model = keras.Sequential([keras.Input((64,)), kl.Dense(48, name="fc")])

    def share(rank: int) -> float:
        made = finalize(model, rewrites=f"low-rank:rank={rank},slower=true")
        return time_of(made, target) / time_of(alone(model.layers[0], call), target)

    (call,) = layer_calls(model)
    small = finalize(model, rewrites=f"low-rank:latency=0.7,target={target}")
    (rank,) = record_of(small).steps[0]["factorized"]["fc"]["ranks"]
    assert share(rank) <= 0.7 < share(rank + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.5, "rank": 3}, "`rank` must be left out beside energy"),
        ({"macs": 0.0}, "`macs` must be greater than 0"),
        ({"layers": "("}, "`layers` must be a regular expression"),
        ({"latency": 0.5}, "`latency` must come with a target"),
        ({"latency": 0.0, "target": "nucleo-l4r5zi"}, "`latency` must be greater than 0"),
        ({"target": "pixel-4"}, "`target` must be one whose latency is predicted"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LowRank(**options)


@pytest.mark.parametrize("given", ["low-rank:method=svd", "low-rank:rank=0", "low-rank:layers=x"])
def test_wrong_values_are_refused(given: str) -> None:
    with pytest.raises(EdgeCompressError):
        finalize(_network(), rewrites=given)
