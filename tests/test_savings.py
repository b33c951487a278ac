"""What compression bought, against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import ArgumentError
from edgecompress.pipeline import trial_file

keras = pytest.importorskip("keras")
kl = keras.layers


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kl.Conv2D(8, 3, activation="relu", name="conv"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(4, name="head"),
        ]
    )


def test_removed_channels_save_everything() -> None:
    model = _model()
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.where(np.arange(8) < 4, 0.0, kernel))
    found = ec.savings(model, ec.finalize(model))
    conv, head = found.layers[0], found.layers[-1]
    assert (conv.name, conv.type) == ("conv", "Conv2D")
    assert (conv.channels.before, conv.channels.after) == (8, 4)
    assert (conv.parameters.before, conv.parameters.after) == (8 * 18 + 8, 4 * 18 + 4)
    # Silent filters were zeros before they went.
    assert (conv.nonzeros.before, conv.nonzeros.after) == (4 * 18, 4 * 18)
    assert (conv.macs.before, conv.macs.after) == (16 * 8 * 18, 16 * 4 * 18)
    assert (head.parameters.before, head.parameters.after) == (36, 20)
    assert found.alpha == pytest.approx((152 + 36) / (76 + 20))
    assert found.delta == pytest.approx((16 * 8 * 18 + 32) / (16 * 4 * 18 + 16))
    text = str(found)
    assert "8 > 4" in text and "alpha (parameters) 1.96" in text and "delta (MACs) 2.00" in text
    assert json.loads(json.dumps(found.to_dict()))["alpha"] == found.alpha


def test_single_zeros_are_no_speed() -> None:
    """The destroyed case: half of the weights are zero, and no channel can go."""
    dense, sparse = _model(), _model()
    kernel = sparse.get_layer("conv").kernel
    kernel.assign(np.where(np.arange(18).reshape(3, 3, 2, 1) % 2, 0.0, kernel))
    found = ec.savings(dense, sparse)
    assert (found.alpha, found.delta) == (1, 1)
    assert (found.nonzeros.before, found.nonzeros.after) == (144 + 32, 72 + 32)
    assert "144 > 72" in str(found)


def test_layers_that_only_one_model_has_are_shown() -> None:
    other = keras.Sequential([keras.Input((6, 6, 2)), kl.Flatten(), kl.Dense(4, name="other")])
    found = {layer.name: layer for layer in ec.savings(_model(), other).layers}
    assert found["conv"].parameters.after is None and found["other"].parameters.before is None
    assert found["conv"].parameters.ratio is None
    assert "152 > -" in str(ec.savings(_model(), other))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`after` must be a Keras model. Got 'small.keras'"):
        ec.savings(_model(), "small.keras")


def test_what_files_cost_on_a_target(tmp_path: Path) -> None:
    model, target = _model(), "nucleo-l4r5zi"
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.where(np.arange(8) < 4, 0.0, kernel))
    small = ec.finalize(model)
    for layer in small.layers:  # Equal constants would be stored once.
        for weight in layer.weights:
            weight.assign(
                weight + np.linspace(0.01, 0.02, int(np.prod(weight.shape))).reshape(weight.shape)
            )
    found = ec.savings(model, small, target)
    calibration = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype("float32")
    for made, side in ((model, "before"), (small, "after")):
        report = ec.export(made, targets=[target], calibration=calibration, output=tmp_path / side)
        checks = {x.rule: x for x in report.targets[0].checks}
        costs = {name: getattr(count, side) for name, count in found.costs.items()}
        # At the start all biases are zero, and stored once.
        spare = costs["file_bytes"] - report.model.file_bytes
        assert 0 <= spare <= (128 if side == "before" else 16)
        assert costs["compressed_bytes"] == pytest.approx(report.model.compressed_bytes, rel=0.1)
        arena = max(checks["arena"].high, checks["arena"].detail["smallest"])
        assert 0 <= costs["arena"] - arena <= (32 if side == "before" else 0)
        assert costs["latency"] == pytest.approx(checks["latency"].high, rel=0.005)
        conv = {name: getattr(count, side) for name, count in found.layers[0].costs.items()}
        filters = 8 if side == "before" else 4
        # int8 weights and int32 biases, and 4 x 4 outputs of each filter.
        assert (conv["file_bytes"], conv["arena"]) == (filters * (18 + 4), filters * 16)
        times = sum(getattr(x.costs["latency"], side) for x in found.layers if "latency" in x.costs)
        assert 0.5 * checks["latency"].measured < times <= checks["latency"].measured + 2
    text = str(found)
    assert "latency (microseconds)" in text and "arena (bytes)" in text
    assert json.loads(json.dumps(found.to_dict()))["costs"]["arena"]["before"] > 0


def test_what_is_not_known_of_a_target_is_said() -> None:
    model = _model()
    found = ec.savings(model, model, "pixel-4")
    assert set(found.costs) == {"file_bytes", "compressed_bytes"}
    assert "microcontrollers; Google Pixel 4 is a phone" in found.unknown["latency"]
    assert "arena is not known" in str(found)
    with pytest.raises(ArgumentError, match="Did you mean pixel-8 or pixel-4"):
        ec.savings(model, model, "pixel")


def test_layers_of_nested_models_may_share_a_name() -> None:
    keras.utils.set_random_seed(0)
    blocks = [
        keras.Sequential([keras.Input((n,)), kl.Dense(m, "relu", name="same")], name=name)
        for name, n, m in (("first", 6, 10), ("second", 10, 8))
    ]
    model = keras.Sequential([keras.Input((6,)), *blocks, kl.Dense(2, name="head")])
    kernel = blocks[1].get_layer("same").kernel
    kernel.assign(np.where(np.arange(8) < 3, 0.0, kernel))
    small = ec.finalize(model)
    found = ec.savings(model, small)
    assert found.parameters.before == model.count_params() == 70 + 88 + 18
    assert found.parameters.after == small.count_params() == 70 + 55 + 12
    assert (found.macs.before, found.macs.after) == (60 + 80 + 16, 60 + 50 + 10)
    named = {layer.name: layer.channels.after for layer in found.layers}
    assert named == {"first/same": 10, "second/same": 5, "head": 2}


def test_the_kernel_of_a_shared_layer_counts_once() -> None:
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((6,)), keras.Input((6,))]
    shared = kl.Dense(6, activation="relu", name="shared")
    x = kl.Concatenate()([shared(inputs[0]), shared(shared(inputs[1]))])
    model = keras.Model(inputs, kl.Dense(3, name="head")(x))
    found = ec.savings(model, model, "nucleo-l4r5zi")
    costs = {layer.name: layer.costs["file_bytes"].before for layer in found.layers}
    # Each of its three uses has a bias in a scale of its own.
    assert costs == {"shared": 36 + 3 * 24, "head": 36 + 12}


def _branch(name: str, filters: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            kl.Conv2D(filters, 3, padding="same", activation="relu", name="conv"),
            kl.Conv2D(4, 1, name="last"),
        ],
        name=name,
    )


def test_operators_belong_to_layers_of_nested_models() -> None:
    """Three layers are called `conv`; a product lies between a convolution and its normalization.

    The layer `mul` is none of the products of `norm`.
    """
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 4))
    x = _branch("right", 16)(_branch("left", 8)(image))
    x = kl.BatchNormalization(name="norm")(keras.ops.multiply(kl.Conv2D(5, 3, name="conv")(x), 2.0))
    x = kl.Conv2D(6, 3, activation="relu", name="mul")(x)
    x = kl.GlobalAveragePooling2D(name="mean")(kl.BatchNormalization(name="alone")(x))
    model = keras.Model(image, kl.Reshape((6, 1), name="reshape")(x))
    trial = trial_file.trial_file(model)
    found = list(zip((o.name for o in trial.artifact.flat.operators), trial.layers, strict=True))
    assert found == [
        ("CONV_2D", "left/conv"), ("CONV_2D", "left/last"),
        ("CONV_2D", "right/conv"), ("CONV_2D", "right/last"),
        ("CONV_2D", "conv"), ("CONV_2D", "mul"), ("MUL", "alone"), ("ADD", "alone"),
        ("MEAN", "mean"), ("RESHAPE", "reshape"),
    ]  # fmt: skip


def test_a_file_is_made_once_for_all_its_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with and one without its zeros, of each model; another one once weights change."""
    made = []

    def counted(model: object) -> object:
        made.append(model)
        return wrap(model)

    wrap = trial_file.wrap
    monkeypatch.setattr(trial_file, "wrap", counted)
    model, other = _model(), _model()
    costs = ec.savings(model, other, "nucleo-l4r5zi").costs
    assert len(made) == 4 and len(costs) == 4
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.zeros(kernel.shape))
    found = ec.savings(model, other, "nucleo-l4r5zi").costs
    assert len(made) == 6
    assert found["compressed_bytes"].before < costs["compressed_bytes"].before
    assert found["compressed_bytes"].after == costs["compressed_bytes"].after
