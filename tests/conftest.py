"""What all tests share: a quiet TensorFlow, the reference models, fixed seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and measurements beside the checkout; skips without it."""
    if not _SHARED.is_dir():
        pytest.skip(f"the reference models and measurements are not here ({_SHARED})")
    return _SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny flatbuffers (NAME.tflite, NAME_int8.tflite) with inputs and outputs (.npz).

    NAME is classifier, autoencoder, sigmoid, two (inputs and outputs) or recurrent (float only);
    NAME.npz holds x0, x1, ... and the Keras model's outputs y0, y1, ... See tiny_models.py.
    """
    folder = tmp_path_factory.mktemp("tiny")
    program = Path(__file__).with_name("tiny_models.py")
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", program, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(autouse=True)
def _seeds(request: pytest.FixtureRequest) -> None:
    """Seeds Keras, numpy and Python where a test module imported Keras."""
    import numpy as np

    np.random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
