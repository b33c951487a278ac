"""Every part beside pruning, clustering and int8 training in one fit, to a file that runs.

The parts are drawn from the registries: losses against a teacher, losses of layers, factorizations,
blocks, and the callbacks whose kernels are distributions. A new one is covered by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.posterior import Posterior
from edgecompress.comparison.stages import callback_names
from edgecompress.converters import float32, int8
from edgecompress.converters.real_values import dequantize, quantized_inputs
from edgecompress.core.keras_graph import walk_layers
from edgecompress.core.layer_kinds import kind_of
from edgecompress.core.record import record_of
from edgecompress.engines.run import run_engine
from edgecompress.surgery.blocks import BLOCKS
from edgecompress.surgery.factors import FACTORIZATIONS
from edgecompress.training import LAYER_LOSSES, LOSSES

keras = pytest.importorskip("keras")
kl = keras.layers

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
Y = _RNG.integers(0, 3, 64)
# Classes that lie far apart.
X = (_RNG.normal(size=(64, 8, 8, 4)) + 2 * np.eye(3, 4)[Y][:, None, None]).astype("f4")
_SPARSITY, _CLUSTERS = 0.5, 15
# The layer that is the part's own where it wants its kernels for itself.
_OWN = "second"


@dataclass(frozen=True)
class _Part:
    """Something that is composed with the others.

    Attributes:
        technique: Of its step in the record.
        rewrite: What is done to the model before it is trained; "" for nothing.
        callbacks: (teacher, folder) -> callbacks.
        own: Layers whose kernels are the part's own.
    """

    technique: str
    rewrite: str = ""
    callbacks: Callable[[Any, Path], list[Any]] = lambda teacher, folder: []
    own: tuple[str, ...] = ()


def _posteriors() -> dict[str, type]:
    kinds = {name: getattr(ec, name) for name in callback_names()}
    return {n: k for n, k in kinds.items() if inspect.isclass(k) and issubclass(k, Posterior)}


def _parts() -> dict[str, _Part]:
    found: dict[str, _Part] = {}
    for name in LOSSES:
        found[f"loss {name}"] = _Part(
            "distillation",
            callbacks=lambda teacher, folder, name=name: [ec.Distillation(teacher, name)],
        )
    for name in LAYER_LOSSES:
        found[f"layer loss {name}"] = _Part(
            "distillation",
            callbacks=lambda teacher, folder, name=name: [
                ec.Distillation(teacher, layers={"first": "first"}, layer_loss=name)
            ],
        )
    found["stored outputs"] = _Part(
        "distillation",
        callbacks=lambda teacher, folder: [
            ec.Distillation(ec.TeacherOutputs(teacher, X, folder / "outputs"))
        ],
    )
    for name in FACTORIZATIONS:
        found[f"low rank {name}"] = _Part("low-rank", f"low-rank:method={name},energy=0.8")
    for name in BLOCKS:
        found[f"block {name}"] = _Part("cheaper-blocks", f"cheaper-blocks:kind={name}")
    for name, kind in _posteriors().items():
        found[name] = _Part(
            kind.technique,
            # A prior that hardly pulls in the few steps.
            callbacks=lambda teacher, folder, kind=kind: [kind(6400, layers=[_OWN])],
            own=(_OWN,),
        )
    return found


PARTS = _parts()


def _compiled(model: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    return model


@pytest.fixture(scope="module")
def original() -> Any:
    keras.utils.set_random_seed(1)
    layers = [
        kl.Conv2D(8, 3, activation="relu", name="first"),
        kl.Conv2D(12, 3, padding="same", activation="relu", name=_OWN),
        kl.Flatten(),
        kl.Dense(3, name="head"),
    ]
    model = _compiled(keras.Sequential([keras.Input((8, 8, 4)), *layers]))
    model.fit(X, Y, epochs=3, batch_size=8, shuffle=False, verbose=0)
    return model


def _kernel(layer: Any) -> list[Any]:
    kind = kind_of(layer)
    return [axes.of(layer) for axes in kind.kernels] if kind is not None else []


def test_all_parts_are_there() -> None:
    """What the registries hold now; a failure here means that something is no longer drawn."""
    kinds = {name.split()[0] for name in PARTS}
    assert {"loss", "layer", "stored", "low", "block"} < kinds
    assert {"VariationalDropout", "BayesianGroupSparsity", "SoftWeightSharing"} < set(PARTS)
    assert "VariationalQuantization" in PARTS


@pytest.mark.parametrize("name", sorted(PARTS))
def test_with_pruning_clustering_and_int8_training(
    name: str, original: Any, tmp_path: Path
) -> None:
    part = PARTS[name]
    keras.utils.set_random_seed(2)
    start = ec.finalize(original, rewrites=part.rewrite or ())
    model = _compiled(start)

    def shared(layer: Any) -> bool:
        return layer.name not in part.own

    masks = ec.PolynomialDecay(_SPARSITY, 0, 6, frequency=2)
    losses = model.fit(
        X, Y, epochs=3, batch_size=8, shuffle=False, verbose=0,
        callbacks=[
            *part.callbacks(original, tmp_path),
            ec.Pruning(masks, layers=shared),
            ec.WeightClustering(_CLUSTERS, begin_epoch=1, layers=shared),
            ec.QuantizationAwareTraining(begin_epoch=2),
        ],
    ).history["loss"]  # fmt: skip
    assert losses[0] > losses[-1]
    # Each has done its work.
    done = [step["technique"] for step in record_of(model).steps]
    assert {part.technique, "pruning", "weight_clustering", "quantization_aware_training"} <= {
        *done
    }
    kernels = [(layer, choice) for layer in walk_layers(model) if (choice := _kernel(layer))]
    pruned = [np.array(kernel) for layer, (kernel,) in kernels if shared(layer)]
    assert len(pruned) == len(kernels) - len(part.own)
    zeros = sum(np.count_nonzero(k == 0) for k in pruned) / sum(k.size for k in pruned)
    assert zeros == pytest.approx(_SPARSITY, abs=0.1)
    assert all(len(np.unique(k[k != 0])) <= _CLUSTERS for k in pruned)
    # The file runs, and computes what was trained.
    small = ec.finalize(model)
    want = small.predict(X, verbose=0)
    artifact = int8.convert(float32.convert(small), calibration=[X])
    flat = artifact.flat
    codes = run_engine("litert", artifact.data, quantized_inputs(flat, [X])).outputs[0]
    output = flat.tensors[flat.outputs[0]]
    found = dequantize(codes, output)
    # So short a training leaves its ranges behind: larger outputs are clipped.
    ends = [dequantize(np.full_like(codes[:1, :1], code), output).item() for code in (-128, 127)]
    clipped = want.clip(*ends)
    assert np.mean(found.argmax(1) == want.argmax(1)) > 0.9
    assert np.corrcoef(found.ravel(), clipped.ravel())[0, 1] > 0.97
