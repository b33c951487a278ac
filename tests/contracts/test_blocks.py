"""What every block keeps: it learns from the original, is saved, and runs in int8 as computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.options import options_of
from edgecompress.core.record import record_of
from edgecompress.surgery.blocks import BLOCKS
from edgecompress.surgery.cheaper_blocks import CheaperBlocks

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(3)
# Classes that lie far apart.
Y = _RNG.integers(0, 3, 128)
X = (_RNG.normal(size=(128, 8, 8, 4)) + np.eye(3, 4)[Y][:, None, None]).astype("f4")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _original() -> Any:
    """Trained, so that the kernels hold something."""
    keras.utils.set_random_seed(1)
    layers = [kl.Conv2D(8, 3, padding="same", name="a"), kl.ReLU(name="relu")]
    last = [kl.Conv2D(8, 3, padding="same", strides=2, activation="relu", name="b"), kl.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers, *last, kl.Dense(3, name="head")])
    model.compile(keras.optimizers.Adam(5e-3), LOSS)
    model.fit(X, Y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def original() -> Any:
    return _original()


@pytest.fixture(scope="module", params=sorted(BLOCKS))
def trained(request: pytest.FixtureRequest, original: Any) -> tuple[str, Any, list[float]]:
    """A block's name, the network with it, trained from the original under int8, and its losses."""
    small = ec.finalize(original, rewrites=CheaperBlocks(request.param))
    # One place of attention inside the network, one of a replaced layer.
    layers = {"relu": "relu", "b": "b"}
    small.compile(
        keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    taught = [
        ec.Distillation(original, "distillation:weight=0", layers),
        ec.FastGroupedConvolutions(),
        ec.Pruning(ec.PolynomialDecay(0.3, begin_step=0, end_step=16, frequency=4)),
        ec.WeightClustering(31, begin_epoch=3),
        ec.QuantizationAwareTraining(begin_epoch=2),
    ]
    history = small.fit(X, Y, epochs=4, batch_size=16, shuffle=False, verbose=0, callbacks=taught)
    return request.param, small, history.history["loss"]


def test_it_learns_from_the_original(trained: tuple[str, Any, list[float]]) -> None:
    losses = trained[2]
    assert losses[0] > losses[-1] > 0


def test_it_comes_back_from_its_file(trained: tuple[str, Any, list[float]], tmp_path: Path) -> None:
    _, small, _ = trained
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(loaded(X), small(X), atol=1e-6)


def test_the_int8_file_runs_as_computed(
    trained: tuple[str, Any, list[float]], tmp_path: Path
) -> None:
    kind, small, _ = trained
    final = ec.finalize(small)
    assert set(record_of(final).steps[0]["replaced"]) == {"a", "b"}, kind
    # A phone's engine and a microcontroller's.
    targets = ["pixel-4", "cortex-m4"]
    report = ec.export(final, targets=targets, calibration=X, output=tmp_path)
    for target in report.targets:
        found = {check.rule: check for check in target.checks}
        parity = found["parity"]
        # So short a training leaves its ranges behind, which the verdict would count.
        assert parity.measured > 0.9 and parity.detail["rounding"]["file"] > 0.9, kind
        assert found["operators"].verdict == "pass"
    assert not set(report.model.operators) - {
        "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "RESHAPE", "TRANSPOSE", "ADD",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_its_options_are_those_of_the_rewrite(kind: str) -> None:
    own = {item.name for item in options_of(BLOCKS[kind])}
    assert own <= {item.name for item in options_of(CheaperBlocks)}
    assert CheaperBlocks(kind).block == BLOCKS[kind]()
