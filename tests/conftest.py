"""What all tests share: a quiet TensorFlow, the reference models, fixed seeds."""

from __future__ import annotations

import os
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


@pytest.fixture(autouse=True)
def _seeds(request: pytest.FixtureRequest) -> None:
    """Seeds Keras, numpy and Python where a test module imported Keras."""
    import sys

    import numpy as np

    np.random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
