"""Callbacks on Keras's JAX backend: the same losses, weights and ranges as on TensorFlow."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import edgecompress as ec
from edgecompress.callbacks.learnt_bounds import LearntBounds
from edgecompress.callbacks.views import VIEWS
from edgecompress.core.errors import ArgumentError
from edgecompress.core.record import record_of

from . import backend_fits as fits

pytestmark = pytest.mark.slow
SAME = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process on JAX left; one for all tests."""
    try:
        importlib.metadata.version("jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("JAX is not installed: pip install edgecompress[jax]")
    found = tmp_path_factory.mktemp("jax")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        # Compiling takes longer than running.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-W", "error::UserWarning", fits.__file__, str(found)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.fixture(scope="module")
def on_jax(folder: Path) -> dict[str, Any]:
    return dict(pickle.loads((folder / "found.pickle").read_bytes()))


def _compare(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert have["history"].keys() == want["history"].keys()
    for name, values in want["history"].items():
        np.testing.assert_allclose(have["history"][name], values, atol=SAME, err_msg=name)
    assert have["weights"].keys() == want["weights"].keys()
    for name, values in want["weights"].items():
        np.testing.assert_allclose(have["weights"][name], values, atol=SAME, err_msg=name)
        np.testing.assert_array_equal(have["weights"][name] == 0, values == 0, name)
    assert have["ranges"].keys() == want["ranges"].keys()
    for name, ends in want["ranges"].items():
        np.testing.assert_allclose(have["ranges"][name], ends, atol=SAME, err_msg=name)
    assert have["lent"] == 0


def test_quantized_training_on_two_devices_is_the_same(
    on_jax: dict[str, Any], folder: Path
) -> None:
    want = fits.quantized(fits.residual())
    assert on_jax["devices"] == 2
    _compare(on_jax["quantized"], want)
    assert len(want["ranges"]) == 6
    assert want["history"]["sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    loaded = ec.load_model(folder / "model.keras")
    assert record_of(loaded).ranges == on_jax["quantized"]["ranges"]
    np.testing.assert_allclose(loaded(fits.X), on_jax["quantized"]["outputs"], atol=1e-5)
    np.testing.assert_allclose(on_jax["finalized"], on_jax["quantized"]["outputs"], atol=1e-5)


def test_other_callbacks_are_the_same(on_jax: dict[str, Any]) -> None:
    want = fits.compressed(fits.dense())
    have = on_jax["compressed"]
    _compare(have, want)
    # As the second epoch begins, half of the units become zero, and they stay zero.
    assert have["zeros"] == want["zeros"] == [0, 0, 4, 4]


def test_channels_under_a_budget_are_the_same(on_jax: dict[str, Any]) -> None:
    want = fits.thinned(fits.residual())
    _compare(on_jax["thinned"], want)
    assert 0 < want["history"]["channel_pruning_zero_share"][-1] < 1


def test_distillation_is_the_same(on_jax: dict[str, Any]) -> None:
    _compare(on_jax["distilled"], fits.distilled(fits.residual()))


def test_what_does_not_run_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fits.residual()
    bounds = LearntBounds(model)
    bounds.add("limits", model.trainable_variables[0], abs)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ArgumentError, match="be tensorflow for ranges that are learnt by grad.*Go"):
        bounds.hook()
    view = VIEWS["active-share"](model)
    with pytest.raises(ArgumentError, match="be tensorflow for criteria that look at activations"):
        view.begin([], None)
    with pytest.raises(ArgumentError, match="limit what is known.*runs on Keras.s jax backend"):
        fits.residual().fit(
            fits.X, fits.Y, verbose=0, callbacks=[ec.ChannelPruning(ec.Budget(file_bytes=0.9))]
        )
    with pytest.raises(ArgumentError, match="be tensorflow for simulate. Got 'jax'. Save the mod"):
        ec.simulate(model)
